"""Pictures of a run and of a comparison, as PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import regression_metrics
from tlcgcnn_jax.figure import BLUE, GREY, INK, VERMILLION, labelled, log_axis, picture, plain, short

CROWD = 2000  # points above which single ones are no longer told apart
VERDICTS = {"helps": BLUE, "hurts": VERMILLION, "no evidence": GREY}


def learning_curve(history: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "") -> Path:
    """Draw training loss and validation score by epoch: a faint line a member, a bold one for their mean.

    Args:
        history: Rows with epoch, train_loss, val_score, kept and, where there are several members, member.
        path: PNG file.
        title: Above the picture.

    Raises:
        InputError: An empty history, or a file that cannot be written.

    Example:
        >>> losses = ((1.0, 1.1), (0.6, 0.8))
        >>> rows = [{"epoch": i + 1, "train_loss": a, "val_score": b} for i, (a, b) in enumerate(losses)]
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     learning_curve(rows, Path(folder) / "curve.png").name
        'curve.png'
    """
    if not history:
        raise InputError("the history has no epoch: there is no learning curve to draw")
    members: dict[int, list[Mapping[str, Any]]] = {}
    for row in history:
        members.setdefault(int(row.get("member", 0)), []).append(row)
    curves = [sorted(rows, key=lambda row: row["epoch"]) for _, rows in sorted(members.items())]
    # An epoch that only some members reached has no mean that could be compared with the one before.
    common = min(len(rows) for rows in curves)
    everything: list[float] = []
    with picture(path, 7.2, 3.9) as figure:
        axes = figure.add_subplot()
        for key, colour, label in (
            ("train_loss", BLUE, "training loss"),
            ("val_score", VERMILLION, "validation score"),
        ):
            values = [np.array([_float(row.get(key)) for row in rows]) for rows in curves]
            if not any(np.isfinite(v).any() for v in values):
                continue
            everything += [float(x) for v in values for x in v if np.isfinite(x)]
            epochs = [[row["epoch"] for row in rows] for rows in curves]
            marker = "o" if max(map(len, values)) < 4 else None
            if len(curves) > 1:
                for x, y in zip(epochs, values, strict=True):
                    axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.9, marker=marker, markersize=3)
                label += f", mean of {len(curves)}"
            mean = np.mean([v[:common] for v in values], axis=0)
            axes.plot(epochs[0][:common], mean, color=colour, linewidth=2, label=label, marker=marker)
        marks = [
            (row["epoch"], _float(row.get("val_score")))
            for rows in curves
            for kept in [kept_epochs(rows)]
            for row in rows
            if row["epoch"] in kept and math.isfinite(_float(row.get("val_score")))
        ]
        if marks:
            text = f"kept: epoch {marks[0][0]}, score {marks[0][1]:.3g}" if len(marks) == 1 else "kept epochs"
            dots = axes.scatter(*zip(*marks, strict=True), s=46, color=VERMILLION, edgecolor=INK, zorder=5, label=text)
            dots.set_clip_on(False)  # that of the last epoch stands on the edge
        if everything and min(everything) > 0 and max(everything) > 10 * min(everything):
            log_axis(axes, "y", min(everything), max(everything))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(axis="y", which="major", color="#DDDDDD", linewidth=0.7)
        axes.set(xlabel="Epoch", ylabel="Loss, score (normalised)", title=plain(title))
        axes.set_xlim(
            0.5 if max(map(len, curves)) < 4 else 0, max(row["epoch"] for rows in curves for row in rows) + 0.5
        )
        figure.legend(loc="outside upper right", ncols=3, fontsize=9)  # inside, it would hide a score that rises again
    return Path(path)


def kept_epochs(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The epochs of one member that were kept; where no row tells, that of the lowest validation score, or the last.

    Example:
        >>> kept_epochs([{"epoch": 1, "val_score": 0.5}, {"epoch": 2, "val_score": 0.4}])
        [2]
    """
    scored = [row for row in rows if math.isfinite(_float(row.get("val_score")))]
    kept = [row for row in rows if row.get("kept")]
    return [int(row["epoch"]) for row in kept or [min(scored, key=lambda row: row["val_score"], default=rows[-1])]]


def parity(
    target: np.ndarray,
    prediction: np.ndarray,
    path: str | Path,
    *,
    name: str,
    unit: str = "",
    std: np.ndarray | None = None,
    title: str = "",
    log: bool = False,
) -> Path:
    """Draw predicted against true values, with the diagonal and the errors; crystals without a label are left out.

    Args:
        target: [n] true values, NaN where unknown.
        prediction: [n], in the same unit.
        path: PNG file.
        name: Of the property.
        unit: Of the property, "" for none.
        std: [n] standard deviation between the members, drawn as error bars where the points are few enough.
        title: Above the picture.
        log: Logarithmic axes, unless a value is zero or negative.

    Raises:
        InputError: Not one crystal has both values, or the file cannot be written.
    """
    target, prediction = np.asarray(target, float), np.asarray(prediction, float)
    known = np.isfinite(target) & np.isfinite(prediction)
    if not known.any():
        raise InputError(f"{name}: not one of {len(target)} crystals has a true and a predicted value to draw")
    x, y = target[known], prediction[known]
    errors = regression_metrics(x, y)
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    log = log and low > 0
    if log:
        margin = (high / low) ** 0.04 if high > low else 1.1
        low, high = low / margin, high * margin
    else:
        margin = 0.04 * (high - low) or max(0.05 * abs(high), 1e-3)
        low, high = low - margin, high + margin
    crowded = len(x) > CROWD
    with picture(path, 6.0 if crowded else 5.2, 5.2) as figure:
        axes = figure.add_subplot()
        if log:
            log_axis(axes, "x", low, high)
            log_axis(axes, "y", low, high)
        diagonal = {"color": INK, "linewidth": 1, "linestyle": (0, (5, 4))}
        axes.plot([low, high], [low, high], zorder=4 if crowded else 1, **diagonal)
        if crowded:
            # hexbin takes the extent of logarithmic axes as exponents.
            ends = (math.log10(low), math.log10(high)) if log else (low, high)
            scale = "log" if log else "linear"
            cells = axes.hexbin(
                x, y, gridsize=60, bins="log", mincnt=1, cmap="viridis", linewidths=0.1,
                extent=(*ends, *ends), xscale=scale, yscale=scale,
            )  # fmt: skip
            bar = figure.colorbar(cells, ax=axes, shrink=0.75, pad=0.02, label="Crystals in a cell", format=short)
            bar.outline.set_visible(False)
        else:
            if std is not None:
                bars = np.nan_to_num(np.asarray(std, float)[known])
                shown = np.stack([np.minimum(bars, y - low), bars]) if log else bars
                axes.errorbar(x, y, shown, fmt="none", ecolor=BLUE, alpha=0.35, elinewidth=0.9, zorder=2)
            alpha = 0.75 if len(x) < 300 else 0.4
            axes.scatter(x, y, s=20, color=BLUE, alpha=alpha, linewidths=0, zorder=3)
        if log:  # hexbin sets the scale and its ticks anew
            log_axis(axes, "x", low, high)
            log_axis(axes, "y", low, high)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=plain(title))
        axes.set(xlabel=labelled("True", name, unit), ylabel=labelled("Predicted", name, unit))
        end = f" {unit}" if unit else ""
        lines = [f"MAE {errors['mae']:.3g}{end}", f"RMSE {errors['rmse']:.3g}{end}"]
        lines += [f"R² {errors['r2']:.3f}"] if math.isfinite(errors["r2"]) else []
        lines += [f"{len(x):,} crystal{'s' if len(x) > 1 else ''}"]
        axes.text(0.03, 0.97, plain("\n".join(lines)), transform=axes.transAxes, va="top", zorder=6)
        if std is not None and not crowded:
            note = "bars: standard deviation\nof the prediction"
            place = {"transform": axes.transAxes, "va": "bottom", "ha": "right"}
            axes.text(0.97, 0.03, note, **place, color="#555555", fontsize=8.5)
    return Path(path)


def confusion(
    target: np.ndarray, prediction: np.ndarray, path: str | Path, *, name: str, classes: int = 2, title: str = ""
) -> Path:
    """Draw how often each true class is predicted as which; crystals without a label are left out.

    Args:
        target: [n] true classes 0, 1, …, NaN where unknown.
        prediction: [n] predicted classes.
        path: PNG file.
        name: Of the property.
        classes: Number of classes.
        title: Above the picture.

    Raises:
        InputError: Not one crystal has a label, or the file cannot be written.
    """
    known = np.isfinite(np.asarray(target, float))
    if not known.any():
        raise InputError(f"{name}: not one of {len(target)} crystals has a true class to draw")
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (np.asarray(target)[known].astype(int), np.asarray(prediction)[known].astype(int)), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(2.6 + 0.75 * classes, 8.0)
    with picture(path, side + 0.6, side) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        if classes <= 8:
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if share[row, column] > 0.55 else INK
                text = f"{count:,}\n{100 * share[row, column]:.0f} %"
                axes.text(column, row, text, ha="center", va="center", color=colour)
        axes.spines[:].set_visible(False)
        axes.set(xticks=range(classes), yticks=range(classes), title=plain(title))
        axes.set(xlabel=labelled("Predicted", name, ""), ylabel=labelled("True", name, ""))
        axes.tick_params(length=0)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, label="Share of the true class")
        bar.outline.set_visible(False)
    return Path(path)


def roc(target: np.ndarray, probability: np.ndarray, path: str | Path, *, name: str, title: str = "") -> Path:
    """Draw the receiver operating characteristic of two classes; crystals without a label are left out.

    Args:
        target: [n] true classes 0 and 1, NaN where unknown.
        probability: [n] of class 1.
        path: PNG file.
        name: Of the property.
        title: Above the picture.

    Raises:
        InputError: One of the classes does not occur, or the file cannot be written.
    """
    known = np.isfinite(np.asarray(target, float))
    positive, score = np.asarray(target)[known].astype(int) == 1, np.asarray(probability, float)[known]
    if positive.all() or not positive.any():
        raise InputError(f"{name}: only one of two classes occurs among {len(score)} crystals: no ROC curve to draw")
    order = np.argsort(-score, kind="stable")
    # Equal probabilities cannot be told apart by a threshold: they make one step together.
    last = np.r_[np.flatnonzero(np.diff(score[order])), len(order) - 1]
    true_rate = np.r_[0, np.cumsum(positive[order])[last] / positive.sum()]
    false_rate = np.r_[0, np.cumsum(~positive[order])[last] / (~positive).sum()]
    area = float(np.sum(np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2))
    with picture(path, 4.8, 4.8) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (5, 4)))
        axes.plot(false_rate, true_rate, color=BLUE, linewidth=2, clip_on=False)
        axes.text(0.97, 0.05, f"area under the curve {area:.3f}", ha="right", transform=axes.transAxes)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=plain(title or name))
        axes.set(xlabel="False positive rate", ylabel="True positive rate")
    return Path(path)


def comparison(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the errors of training from scratch and of each strategy, a panel a property.

    Args:
        rows: {"target", "unit", "strategy", "mae" (one a repeat, in the unit), "gain_percent", "gain_low", "gain_high",
            "p_value", "verdict"}; the last five may be absent or None. Panels and strategies keep this order.
        path: PNG file.

    Raises:
        InputError: No rows, a row without errors, or a file that cannot be written.
    """
    if not rows:
        raise InputError("there is nothing to compare: no rows")
    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if not np.isfinite(np.asarray(row["mae"], float)).any():
            raise InputError(f"{row['target']}, {row['strategy']}: no mean absolute error to draw")
        panels.setdefault((str(row["target"]), str(row.get("unit") or "")), []).append(row)
    counts = [len(strategies) for strategies in panels.values()]
    with picture(path, 8.0, 0.45 + 0.95 * len(counts) + 0.5 * sum(counts)) as figure:
        grid = figure.add_gridspec(len(counts), 1, height_ratios=counts)
        for index, ((target, unit), strategies) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[index])
            for y, row in enumerate(strategies):
                _strategy(axes, y, row)
            axes.set_yticks(range(len(strategies)), [plain(str(row["strategy"])) for row in strategies])
            axes.set(ylim=(len(strategies) - 0.5, -0.5), title=plain(target), xlabel=labelled("Test MAE", "", unit))
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.margins(x=0.06)
        from matplotlib.lines import Line2D

        dot = Line2D([], [], color=INK, marker="o", linestyle="", alpha=0.4, markersize=5)
        mean = Line2D([], [], color=INK, marker="D", markersize=6)
        text = ["one repeat", "mean, 95 % interval of the repeats; further left is better"]
        figure.legend([dot, mean], text, loc="outside lower center", ncols=2, fontsize=9)
    return Path(path)


def _strategy(axes: Any, y: int, row: Mapping[str, Any]) -> None:
    """One line of a panel: dots, mean with its interval, and what was gained."""
    values = np.asarray(row["mae"], float)
    values = values[np.isfinite(values)]
    colour = VERDICTS.get(str(row.get("verdict")), INK)
    below = y + 0.25 + (np.linspace(-0.08, 0.08, len(values)) if len(values) > 1 else 0.0)  # not behind the mean
    axes.scatter(values, np.broadcast_to(below, values.shape), s=22, color=colour, alpha=0.45, linewidths=0, zorder=2)
    half = interval(values)
    axes.errorbar(
        values.mean(), y, xerr=None if half is None else [[half], [half]], fmt="D", markersize=6.5,
        color=colour, markeredgecolor="white", markeredgewidth=0.8, elinewidth=2, capsize=3, zorder=3,
    )  # fmt: skip
    axes.text(
        1.02, y, gain_text(row), transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=colour,
        linespacing=1.3,
    )  # fmt: skip


def gain_text(row: Mapping[str, Any], end: str = "\n") -> str:
    """What a strategy gained over scratch, in words.

    Example:
        >>> row = {"gain_percent": 12.3, "gain_low": 4.0, "gain_high": 20.0, "p_value": 0.0004, "verdict": "helps"}
        >>> gain_text(row, end=", ")
        'helps: +12 % (+4 to +20), p < 0.001'
    """
    gain, p_value = _float(row.get("gain_percent")), _float(row.get("p_value"))
    if not math.isfinite(gain):
        return "baseline" if str(row.get("strategy")) == "scratch" else ""
    low, high = _float(row.get("gain_low")), _float(row.get("gain_high"))
    between = f" ({_signed(low)} to {_signed(high)})" if math.isfinite(low) and math.isfinite(high) else ""
    chance = "" if not math.isfinite(p_value) else "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
    verdict = f"{row['verdict']}: " if row.get("verdict") else ""
    text = f"{verdict}{_signed(gain)} %{between}"
    return f"{text}{end}{chance}" if chance else text


def interval(values: np.ndarray) -> float | None:
    """Half the width of the 95 % interval of a mean (Student's t), None for fewer than two values.

    Example:
        >>> round(interval(np.array([1.0, 2.0, 3.0])), 2)
        2.48
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def _signed(value: float) -> str:
    return f"{value:+.0f}".replace("-", "−").replace("−0", "0").replace("+0", "0")


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)
