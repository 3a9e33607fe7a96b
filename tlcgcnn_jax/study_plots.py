"""Pictures of a study: learning curves with their intervals, and a map of gains, as PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tlcgcnn_jax.analysis import Analysis
from tlcgcnn_jax.figure import BLUE, INK, VERMILLION, labelled, log_axis, picture, plain, short
from tlcgcnn_jax.files import file_name
from tlcgcnn_jax.results import StudyResults
from tlcgcnn_jax.statistics import Comparison
from tlcgcnn_jax.strategies import strategy_name
from tlcgcnn_jax.study_series import Series, best_series, names_of, shared_size, study_series

# As on the page of a study: scratch, then Okabe & Ito's colours, the light ones darker for thin lines on white.
LINES = (INK, BLUE, VERMILLION, "#009E73", "#B0568C", "#C28A00", "#2F94CD", "#6B6B6B")
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}
FULL_COLOUR = 40.0  # per cent of gain or loss that take the strongest colour


def study_pictures(results: StudyResults, analysis: Analysis, folder: str | Path) -> list[Path]:
    """Draw the pictures of a study: learning curves of each target, and the gains of all of them.

    Args:
        results: Of the study, which need not be finished.
        analysis: Of the same study.
        folder: Where to write learning_curves_NAME.png of each target with a finished run, and gains.png where
            anything can be compared with scratch.

    Returns:
        The files.

    Raises:
        InputError: A file cannot be written.

    Example:
        >>> study_pictures(results, analyse(results), "STUDY")  # doctest: +SKIP
    """
    folder, series, paths = Path(folder), study_series(analysis, results.targets), []
    for number, (target, of_target) in enumerate(series.items(), 1):
        if of_target:
            # Two names may be the same once a file system can take them: the number tells them apart.
            same = [name for name in series if file_name(name) == file_name(target)]
            end = file_name(target) if len(same) == 1 else f"{file_name(target)}_{number}"
            path = folder / f"learning_curves_{end}.png"
            paths.append(learning_curves(of_target, path, name=target, unit=results.targets[target]))
    compared = [o for of_target in series.values() for one in of_target for o in one.outcomes if o.against_scratch]
    if compared:
        paths.append(gain_map(series, shared_size(series), folder / "gains.png"))
    return paths


def learning_curves(series: Sequence[Series], path: str | Path, *, name: str, unit: str = "") -> Path:
    """Draw test errors against training size, with the 95 % interval of the mean over seeds as a band.

    Args:
        series: Of one target; those that are `shown` are drawn.
        path: PNG file.
        name: Of the target.
        unit: Of the errors.

    Raises:
        InputError: The file cannot be written.
    """
    drawn = sorted((one for one in series if one.shown), key=lambda one: -one.outcomes[-1].mae.mean)
    sizes = sorted({outcome.size for one in drawn for outcome in one.outcomes})
    with picture(path, 7.6, 5.0) as figure:
        axes, values = figure.add_subplot(), []
        for one in drawn:
            colour = LINES[one.colour]
            x = [outcome.size for outcome in one.outcomes]
            mean, low, high = np.array([outcome.mae for outcome in one.outcomes]).T
            # An interval may reach below zero or far up; it must not flatten all lines.
            values += [*mean, *np.fmax(low, mean / 2), *np.fmin(high, mean * 2)]
            axes.plot(
                x, mean, color=colour, linewidth=1.8,
                marker=MARKERS[one.shape], markersize=5.5, markeredgecolor="white",
                linestyle=(0, (4, 2)) if one.way.kind == "baseline" else "-", label=plain(one.label), zorder=3,
            )  # fmt: skip
            if len(x) > 1:
                axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)
            else:
                axes.errorbar(x, mean, [mean - low, high - mean], color=colour, capsize=3, linestyle="none")
        log_axis(axes, "x", sizes[0], max(sizes[-1], 2 * sizes[0]))
        bottom, top = min(values) / 1.05, max(values) * 1.05
        log_axis(axes, "y", bottom, top)
        axes.set_ylim(bottom, top)
        axes.set_xticks(sizes, [short(size) for size in sizes])
        axes.set_xticks([], minor=True)
        axes.grid(axis="y", color="#E6E9EC", linewidth=0.8)
        axes.set(title=plain(name), xlabel="Training crystals", ylabel=labelled("Test MAE", "", unit))
        handles, labels = axes.get_legend_handles_labels()
        columns = 2 if max(map(len, labels)) <= 40 else 1  # longer ones would leave the picture
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9)
    return Path(path)


def gain_map(series: Mapping[str, Sequence[Series]], size: int, path: str | Path) -> Path:
    """Draw the gain over scratch of each strategy on each target as a table of colours.

    Args:
        series: Of each target.
        size: Crystals trained on.
        path: PNG file.

    Raises:
        InputError: The file cannot be written.
    """
    strategies = names_of(series, "strategy", size)
    cells = [[_gain(of_target, size, name) for of_target in series.values()] for name in strategies]
    gains = np.array([[cell.gain_percent if cell else np.nan for cell in row] for row in cells])
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("gain", ["#E8A26F", "white", "#6FB0D6"])
    with picture(path, 3.6 + 1.7 * len(series), 1.5 + 0.55 * len(strategies)) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(gains, cmap=colours, vmin=-FULL_COLOUR, vmax=FULL_COLOUR, aspect="auto")
        for row, line in enumerate(cells):
            for column, cell in enumerate(line):
                text = _text(cell) if cell else "–"
                axes.text(column, row, plain(text), ha="center", va="center", fontsize=9, linespacing=1.4)
        axes.set_xticks(range(len(series)), [plain(target) for target in series])
        axes.set_yticks(range(len(strategies)), [plain(_wrapped(name)) for name in strategies])
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        axes.set_xticks(np.arange(len(series) - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(len(strategies) - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=3)
        axes.tick_params(which="minor", length=0, top=False)
        axes.set_title(f"Gain over scratch, {size:,} training crystals", pad=10)
        bar = figure.colorbar(image, ax=axes, shrink=0.9, label="Lower test MAE (%)", extend="both")
        bar.outline.set_visible(False)
    return Path(path)


def _wrapped(strategy: str) -> str:
    """A strategy's name in lines that leave room for the table."""
    import textwrap

    return textwrap.fill(strategy_name(strategy), 32, break_long_words=False, break_on_hyphens=False)


def _gain(series: Sequence[Series], size: int, strategy: str) -> Comparison | None:
    best = best_series(series, size, lambda way: way.strategy == strategy and way.kind != "scratch")
    outcome = best.at(size) if best else None
    found = outcome.against_scratch if outcome else None
    return found if found and not math.isnan(found.gain_percent) else None


def _text(found: Comparison) -> str:
    return f"{round(found.gain_percent):+d} %\n{found.verdict}".replace("-", "−").replace("+0", "0")
