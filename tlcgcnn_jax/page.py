"""Parts of one HTML page that needs nothing else: styles and pictures are inside, nothing is loaded."""

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1d2125; --soft: #59626b; --line: #d5dade; --card: #f4f6f8; --page: #fff;
  --accent: #00568a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #a4adb5; --line: #3b4248; --card: #23282d;
  --page: #16191c; --accent: #7cc4f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 58rem; color: var(--ink); background: var(--page);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { margin: .6rem 0; max-width: 46rem; }
.result { background: var(--card); border-left: .3rem solid var(--accent); border-radius: .3rem; padding: .9rem 1.1rem;
  margin: .8rem 0; }
.result strong { display: block; font-size: 1.5rem; line-height: 1.3; }
.result p { margin: .2rem 0 0; }
.soft, figcaption, caption { color: var(--soft); font-size: .92rem; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: .3rem; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .95rem; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .32rem 1.1rem .32rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { overflow-wrap: break-word; max-width: 24rem; }
td { min-width: 7.5rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { min-width: 0; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 600; min-width: 5.5rem; }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# The policy makes it true that nothing is loaded and no other script runs, whatever a column's name holds.
PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<link rel="icon" href="data:,">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>$script
</body>
</html>
"""
)


@dataclass(frozen=True)
class Html:
    """Text that is markup already; everything else is escaped."""

    text: str


def page(title: str, parts: Iterable[Html], style: str = "", script: str = "") -> str:
    """A whole page.

    Args:
        title: Of the page, and its heading.
        parts: From top to bottom.
        style: Further CSS, after the common one.
        script: The one program that may run on the page, named in the page's policy by its hash.

    Example:
        >>> "<h1>a &lt; b</h1>" in page("a < b", [])
        True
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return PAGE.substitute(
        title=escape(title),
        style=STYLE + style,
        body="\n".join(part.text for part in parts),
        policy=POLICY + (f"; script-src 'sha256-{digest}'" if script else ""),
        script=f"\n<script>{script}</script>" if script else "",
    )


def section(title: str, *parts: Html) -> Html:
    """A heading with what belongs to it; nothing at all where there is nothing under it."""
    body = "\n".join(part.text for part in parts)
    return Html(f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else "")


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph, of the style's class `kind` if one is given."""
    start = f'<p class="{kind}">' if kind else "<p>"
    return Html(f"{start}{escape(text)}</p>")


def result(value: str, *lines: str) -> Html:
    """The number that the page is about, and what it means."""
    return Html(
        f'<div class="result"><strong>{escape(value)}</strong>{"".join(paragraph(t).text for t in lines)}</div>'
    )


def figure(path: Path, alt: str, caption: str = "", dpi: int = 150) -> Html:
    """A PNG file inside the page; its size is told so that nothing moves while it is decoded.

    Args:
        path: PNG file.
        alt: What the picture shows, for those who do not see it.
        caption: Below the picture.
        dpi: Dots per inch it was drawn with.
    """
    data = path.read_bytes()
    # The header of a PNG keeps width and height in bytes 16 to 24 (ISO/IEC 15948).
    width, height = (round(int.from_bytes(data[i : i + 4], "big") * 96 / dpi) for i in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(alt)}">'
    return Html(f"<figure>{image}{below}</figure>")


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str, kind: str = "", targets: Sequence[str] = ()
) -> Html:
    """A table whose first column heads the rows; numbers stand to the right.

    Args:
        header: Of the columns.
        rows: Cells: text, markup, or numbers (written by `number`).
        caption: What the table shows.
        kind: Class of the table; the cells of a "sortable" one keep their numbers for the page's script.
        targets: Property that each row is about, for the page's filter; default: none.
    """
    rows = [list(row) for row in rows]
    right = [all(isinstance(row[i], int | float | None) for row in rows) and rows != [] for i in range(len(header))]
    kinds = [' class="number"' if r else "" for r in right]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    lines = []
    for index, row in enumerate(rows):
        text = [_cell(value) for value in row]
        values = [_sort_value(cell) if r and kind == "sortable" else "" for cell, r in zip(row, right, strict=True)]
        starts = [f"<td{k}{value}>" for k, value in zip(kinds, values, strict=True)]
        cells = [f"{start}{cell}</td>" for start, cell in zip(starts[1:], text[1:], strict=True)]
        about = f' data-target="{escape(targets[index])}"' if targets else ""
        lines.append(f'<tr{about}><th scope="row"{kinds[0]}{values[0]}>{text[0]}</th>{"".join(cells)}</tr>')
    body = "\n".join(lines)
    opening = f'<table class="{kind}">' if kind else "<table>"
    # Focusable, so that a wide table can be scrolled without a mouse.
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">{opening}'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    return value.text if isinstance(value, Html) else escape(value if isinstance(value, str) else number(value))


def _sort_value(value: float | None) -> str:
    return f' data-value="{"" if value is None or not math.isfinite(value) else f"{value:.6g}"}"'


def number(value: float | None) -> str:
    """A number with four digits, an en dash where there is none.

    Example:
        >>> number(0.123456), number(1234567), number(None), number(-9999.7)
        ('0.1235', '1,234,567', '–', '−10,000')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or (9999.5 <= abs(value) < 1e9):
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def plus_minus(value: float, half: float | None) -> str:
    """A value and its uncertainty, both to the second digit of the uncertainty.

    Example:
        >>> plus_minus(12.3456, 0.789), plus_minus(0.5, None), plus_minus(1234.5, 56.7)
        ('12.35 ± 0.79', '0.5', '1234 ± 57')
    """
    if half is None or not math.isfinite(half) or half <= 0:
        return number(value)
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{value:.{decimals}f} ± {half:.{decimals}f}"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text).

    Example:
        >>> flat({"training": {"epochs": 3, "clip": None}, "rates": [["*", 1.0]]})
        [('training.epochs', '3'), ('training.clip', 'none'), ('rates', '* 1.0')]
    """
    out: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            out += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for item in value:
                out += flat(item, f"{prefix}{name}.{item.get('name', value.index(item))}.")
        else:
            out.append((f"{prefix}{name}", _text(value)))
    return out


def _text(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(" ".join(map(str, item)) if isinstance(item, list) else str(item) for item in value)
    return str(value)
