"""The page of a study: verdicts in words, tables that need no script, and pictures that its script draws."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from tlcgcnn_jax.analysis import Analysis, Best, Outcome, Way
from tlcgcnn_jax.page import Html, flat, page, paragraph, table
from tlcgcnn_jax.results import RunPredictions, StudyResults
from tlcgcnn_jax.strategies import is_mean, strategy_name
from tlcgcnn_jax.study_data import study_data
from tlcgcnn_jax.study_series import (
    Series,
    best_series,
    names_of,
    shared_size,
    source_name,
    study_series,
)

FILES = ("study.css", "chart.js", "curves.js", "crystals.js", "study.js")
SECTIONS = {
    "verdict": "Verdict",
    "curves": "Learning curves",
    "sources": "Size of the source",
    "gains": "Gain over scratch",
    "parity": "Predicted against true",
    "calibration": "Calibration",
    "elements": "Errors by element",
    "data": "Crystals and overlap",
    "results": "All results",
    "settings": "Settings and versions",
}
# Here and not in the script that draws below it, so that it can be read without JavaScript, too.
CHARTS = {
    "curves": "Mean over the seeds; the band is its 95 % interval. Dashed lines are baselines on descriptors.",
    "sources": "The same transfer from sources that saw fewer or more crystals.",
    "parity": "Each dot is a test crystal in one seed; on the dashed line prediction and truth agree.",
    "calibration": "Does the standard deviation (std) of a prediction tell its error? Test crystals of all seeds. "
    "The factor is the one that fits the std to the validation errors.",
    "elements": "Mean absolute error of the test crystals that contain an element, over all seeds.",
}
GAINS = (
    "Reduction of the test MAE, in per cent of that of scratch on the same crystals. Where several ways share a cell, "
    "it shows the one with the lowest validation error and names it."
)
VERDICTS = (
    "For each number of training crystals: the way with the lowest validation error, and whether transfer lowers the "
    "test error on the same crystals, splits and seeds: against training from scratch or, where a baseline on "
    "descriptors has the lowest validation error, against that. The epoch of networks is chosen by these validation "
    "errors, which flatters them beside regressors."
)
RESULTS = (
    "Means over the seeds, errors in the property's unit, with 95 % intervals (from, to). Overlap: share of the test "
    "crystals whose formula the source was trained on. Every single run stands in results.csv beside this page."
)


def study_page(results: StudyResults, analysis: Analysis) -> str:
    """The report of a study as one HTML page that needs no other file.

    Args:
        results: Of the study, which need not be finished.
        analysis: Of the same study.

    Returns:
        The page.

    Raises:
        InputError: Crystals or predictions are missing or damaged.

    Example:
        >>> results = StudyResults("STUDY")  # doctest: +SKIP
        >>> page = study_page(results, analyse(results))  # doctest: +SKIP
    """
    series = study_series(analysis, results.targets)
    predictions = {row.run: results.predictions(row.run) for row in results.rows}
    parts = {
        "verdict": _verdicts(results, analysis),
        **{name: _chart(name, text) for name, text in CHARTS.items() if results.rows},
        "gains": _gains(series),
        "data": _crystals(results, predictions),
        "results": _results(results, series),
        "settings": _settings(results),
    }
    there = {name: title for name, title in SECTIONS.items() if parts.get(name, Html("")).text}
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in there.items())
    body = [
        paragraph(_scope(results), "soft"),
        Html(f'<nav class="contents" aria-label="Contents">{links}</nav>\n<div class="filter"></div>'),
        *(Html(f'<section id="{name}">\n<h2>{there[name]}</h2>\n{parts[name].text}\n</section>') for name in there),
        Html(f'<script type="application/json" id="study">{study_data(results, series, predictions)}</script>'),
    ]
    style, *scripts = (resources.files("tlcgcnn_jax").joinpath("data/page", name).read_text("utf-8") for name in FILES)
    return page(str(results.study.get("title") or "Study of transfer"), body, style, "\n".join(scripts))


def _scope(results: StudyResults) -> str:
    """How much was run, and what is missing."""
    rows = results.rows
    ways = {(row.strategy, row.source, row.source_size) for row in rows}
    # A mean takes no time but that of its parts, which are rows themselves.
    timed = [row.seconds for row in rows if not is_mean(row.strategy)]
    minutes = sum(filter(math.isfinite, timed)) / 60
    time = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.0f} min"
    parts = [
        _count(len(results.targets), "property", "properties"),
        _count(len(ways), "way of learning", "ways of learning"),
        _count(len({row.size for row in rows}), "training size"),
        _count(len({row.seed for row in rows}), "seed"),
        f"{_count(len(rows), 'run')}, {time}",
        *sorted({row.machine for row in rows if row.machine}),
    ]
    cells = Counter((row.target, row.strategy, row.source, row.source_size, row.size) for row in rows)
    seeds = {target: len({row.seed for row in rows if row.target == target}) for target in results.targets}
    missing = sum(seeds[cell[0]] - count for cell, count in cells.items())
    if missing or not all(seeds.values()):
        parts.append(f"not finished: at least {_count(missing, 'run')} missing" if missing else "not finished")
    return " · ".join(parts)


def _with_unit(target: str, unit: str) -> str:
    return f"{target} ({unit})" if unit else target


def _count(n: int, one: str, several: str = "") -> str:
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def _verdicts(results: StudyResults, analysis: Analysis) -> Html:
    """A card a target: at each size the way to choose, and what may be said of transfer."""
    cards = []
    for target, unit in results.targets.items():
        lines = "".join(_verdict(best) for best in analysis.best if best.target == target)
        text = f"<dl>{lines}</dl>" if lines else paragraph("No run has finished yet.").text
        title = escape(_with_unit(target, unit))
        cards.append(f'<article data-target="{escape(target)}"><h3>{title}</h3>{text}</article>')
    return Html(f'{paragraph(VERDICTS, "soft").text}\n<div class="verdicts">{"".join(cards)}</div>')


def _verdict(best: Best) -> str:
    head = f"{best.target}, {best.size:,} crystals: {best.verdict}. "  # stands in the heading and the badge
    text = escape(best.sentence.removeprefix(head)).split("`")
    marked = "".join(part if i % 2 == 0 else f"<b>{part}</b>" for i, part in enumerate(text))
    return f"<dt><span>{best.size:,} crystals</span> {_badge(best.verdict, 'transfer ')}</dt><dd>{marked}</dd>"


def _badge(verdict: str, before: str = "") -> str:
    text = f"{before}{verdict}" if verdict in ("helps", "hurts") else verdict
    return f'<span class="badge {verdict.replace(" ", "-")}">{text}</span>'


def _chart(name: str, text: str) -> Html:
    without = paragraph("Pictures need JavaScript; their numbers stand in the tables below.", "unscripted").text
    return Html(f'{paragraph(text, "soft").text}{without}<div class="panels" data-chart="{name}"></div>')


def _gains(series: Mapping[str, Sequence[Series]]) -> Html:
    """For each size a table of strategies, and one of sources where there are several, against targets."""
    sizes = sorted({o.size for of_target in series.values() for one in of_target for o in one.outcomes})
    blocks = []
    for size in sizes:
        strategies, sources = (names_of(series, field, size) for field in ("strategy", "source"))
        tables = [_heat(series, size, "strategy", strategies)] if strategies else []
        tables += [_heat(series, size, "source", sources)] if len(sources) > 1 else []
        shown = ' data-shown=""' if size == shared_size(series) else ""
        blocks += [f'<div data-size="{size}"{shown}>{"".join(tables)}</div>'] if tables else []
    return Html(paragraph(GAINS, "soft").text + "\n".join(blocks)) if blocks else Html("")


def _heat(series: Mapping[str, Sequence[Series]], size: int, field: str, names: Sequence[str]) -> str:
    """Gains as a table: `field` of the way ("strategy" or "source") against targets."""
    lines = []
    for name in names:
        cells = "".join(_gain_cell(target, of_target, size, field, name) for target, of_target in series.items())
        short = strategy_name(name) if field == "strategy" else source_name(name)
        lines.append(f'<tr><th scope="row">{escape(short)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col" data-target="{escape(t)}">{escape(t)}</th>' for t in series)
    caption = f"By {field}: gain over scratch with {size:,} training crystals"
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table class="heat">'
        f"<caption>{caption}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _gain_cell(target: str, series: Sequence[Series], size: int, field: str, name: str) -> str:
    def wanted(way: Way) -> bool:
        return getattr(way, field) == name and way.kind != "scratch"

    best = best_series(series, size, wanted)
    outcome = best.at(size) if best else None
    gain = outcome.against_scratch if outcome else None
    if best is None or gain is None or math.isnan(gain.gain_percent):
        return f'<td data-target="{escape(target)}">–</td>'
    several = len([one for one in series if wanted(one.way) and one.at(size)]) > 1
    other = source_name(best.way.source) if field == "strategy" else strategy_name(best.way.strategy)
    text = f"{gain.verdict} ({other})" if several else gain.verdict
    whole = round(gain.gain_percent)
    value = f"{whole:+d} %".replace("-", "−") if whole else "0 %"
    return (
        f'<td data-target="{escape(target)}" data-gain="{gain.gain_percent:.3g}"><b>{value}</b>'
        f"<small>{escape(text)}</small></td>"
    )


def _crystals(results: StudyResults, predictions: Mapping[str, RunPredictions]) -> Html:
    """What was learnt from and tested on, and how much of it the sources had seen."""
    rows = []
    for target in results.targets:
        crystals, runs = results.crystals(target), results.select(target=target)
        counts = Counter(crystals.formulas)
        shared = sum(count for count in counts.values() if count > 1)
        sizes = ", ".join(f"{size:,}" for size in sorted({run.size for run in runs}))
        val, test = ([len(getattr(predictions[run.run], f"{part}_rows")) for run in runs] for part in ("val", "test"))
        rows.append([target, len(crystals.ids), len(counts), shared, sizes or "–", _between(val), _between(test)])
    header = ("property", "labelled", "formulas", "in a shared formula", "training", "validation", "test")
    parts = [table(header, rows, "Crystals of each property, and of a seed's split", targets=list(results.targets))]
    overlap = [entry for entry in results.study.get("overlap") or [] if entry.get("target") in results.targets]
    if overlap:
        names = [str(entry["target"]) for entry in overlap]
        cells = [[str(e["source"]), str(e["target"]), e.get("count"), _per_cent(e.get("share"))] for e in overlap]
        caption = "Overlap: crystals whose formula the source has seen"
        parts.append(table(("source", "property", "crystals", "share (%)"), cells, caption, targets=names))
    return Html("\n".join(part.text for part in parts))


def _between(counts: Sequence[int]) -> str:
    if not counts:
        return "–"
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _results(results: StudyResults, series: Mapping[str, Sequence[Series]]) -> Html:
    """A row a way and size."""
    rows, names = [], []
    for target, of_target in series.items():
        name = _with_unit(target, results.targets[target])
        for one in of_target:
            for outcome in one.outcomes:
                rows.append([name, one.label, one.way.kind, *_cells(results, outcome)])
                names.append(target)
    header = (
        "property", "way", "kind", "training crystals", "seeds", "test MAE", "from", "to", "median error", "RMSE", "R²",
        "gain (%)", "gain from", "gain to", "p (Holm)", "verdict", "scratch needs", "overlap (%)", "seconds",
    )  # fmt: skip
    whole = table(header, rows, "Every way at every training size", "sortable", names).text
    tall = whole.replace('class="scroll"', 'class="scroll tall"', 1)
    return Html(f"{paragraph(RESULTS, 'soft').text}\n{tall}") if rows else Html("")


def _cells(results: StudyResults, outcome: Outcome) -> list[Any]:
    runs = results.select(target=outcome.target, size=outcome.size, **outcome.way._asdict())
    rmse, r2, overlap, seconds = (
        float(np.mean([getattr(run, name) for run in runs])) for name in ("test_rmse", "test_r2", "overlap", "seconds")
    )
    gain = outcome.against_scratch
    compared = (gain.gain_percent, gain.low, gain.high, gain.p_value) if gain else (None,) * 4
    return [
        outcome.size, len(outcome.seeds), *outcome.mae, outcome.median_ae.mean, rmse, r2, *compared,
        Html(_badge(gain.verdict)) if gain else "", outcome.labels_worth and round(outcome.labels_worth),
        _per_cent(overlap), seconds,
    ]  # fmt: skip


def _per_cent(share: Any) -> float | None:
    return None if share is None else round(100 * float(share), 1)


def _settings(results: StudyResults) -> Html:
    parts = []
    for key, first, caption in (
        ("settings", "setting", "What the study was started with"),
        ("versions", "package", "What it ran with"),
    ):
        values = results.study.get(key)
        if isinstance(values, Mapping) and values:
            whole = table((first, "value"), flat(values), caption).text
            parts.append(f"<details><summary>{key.capitalize()}</summary>{whole}</details>")
    return Html("\n".join(parts))
