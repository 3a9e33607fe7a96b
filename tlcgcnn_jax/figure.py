"""The frame of every picture: one style, plain numbers on the axes, and files that are whole or not there."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from tlcgcnn_jax.files import write_whole

DPI = 150
# Okabe & Ito's palette, which stays apart for every kind of colour vision (https://jfly.uni-koeln.de/color/).
BLUE, VERMILLION, GREY, INK = "#0072B2", "#D55E00", "#6B6B6B", "#222222"
LOG_STEPS = (  # decades that are fewer than so many: the ticks of each
    (0.5, (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)), (1.2, (1, 1.5, 2, 3, 4, 6, 8)), (2.5, (1, 2, 5)),
    (math.inf, (1,)),
)  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@contextmanager
def picture(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches, written as a PNG when all has been drawn."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        buffer = BytesIO()
        # Without the version of matplotlib in it, the same numbers give the same bytes.
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_whole(path, buffer.getvalue())


def log_axis(axes: Any, which: str, low: float, high: float) -> None:
    """A logarithmic axis with plain numbers, the denser the less it spans."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=next(steps for most, steps in LOG_STEPS if decades < most)))
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_formatter(NullFormatter())


def short(value: float, _: object = None) -> str:
    """A number for an axis: thousands with commas, others as short as they are.

    Example:
        >>> short(2000.0), short(0.5)
        ('2,000', '0.5')
    """
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:g}"


def labelled(what: str, name: str, unit: str) -> str:
    """A label for an axis, the unit in parentheses where there is one.

    Example:
        >>> labelled("predicted", "band gap", "eV")
        'predicted band gap (eV)'
    """
    return plain(" ".join(part for part in (what, name, f"({unit})" if unit else "") if part))


def plain(text: str) -> str:
    """Text as it is: a dollar sign in a column's name is not the start of a formula."""
    return text.replace("$", r"\$")
