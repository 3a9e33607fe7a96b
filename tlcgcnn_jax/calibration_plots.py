"""Pictures of how far predictions can be trusted, as PNG files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tlcgcnn_jax import calibration
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.figure import BLUE, GREY, INK, VERMILLION, labelled, picture, plain

Errors = Mapping[str, tuple[np.ndarray, np.ndarray]]
GREEN = "#009E73"  # Okabe & Ito
COLOURS = (BLUE, VERMILLION, GREEN)
CHANCE, ORACLE = (0.8, (0, (6, 4))), (1.2, (0, (1, 1.5)))  # width and dashes


def calibration_curve(models: Errors, path: str | Path, *, title: str = "") -> Path:
    """Draw the share of true values within intervals against the share that should be there.

    Args:
        models: By name, at most three: [n] errors and [n] standard deviations of the same predictions.
        path: PNG file.
        title: Above the picture.

    Raises:
        InputError: No model or more than three, standard deviations that are not positive, or a file that cannot be
            written.

    Example:
        >>> import tempfile
        >>> error = np.random.default_rng(0).normal(size=100)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     calibration_curve({"full": (error, np.ones(100))}, Path(folder) / "calibration.png").name
        'calibration.png'
    """
    _check(models)
    with picture(path, 4.9, 5.0) as figure:
        axes = figure.add_subplot()
        levels = 100 * calibration.LEVELS[:-1]  # an interval that should hold all crystals has no end
        axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle=(0, (5, 4)))
        for colour, (name, (error, std)) in zip(COLOURS, models.items(), strict=False):
            share, area = 100 * calibration.coverage(error, std)[:-1], calibration.miscalibration_area(error, std)
            label = f"{name}: area {area:.2f}, {len(error):,} crystals"
            axes.plot(levels, share, color=colour, linewidth=2, label=plain(label))
            if len(models) == 1:
                axes.fill_between(levels, share, levels, color=colour, alpha=0.12)
        grey = {"color": GREY, "fontsize": 9, "style": "italic"}
        axes.text(30, 93, "too careful", ha="center", **grey)
        axes.text(72, 8, "too sure", ha="center", **grey)
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", title=plain(title))
        axes.set(xlabel="Crystals that the interval should hold (%)", ylabel="Crystals that it holds (%)")
        figure.legend(loc="outside lower center", fontsize=9)
    return Path(path)


def confidence_curve(models: Errors, path: str | Path, *, unit: str = "", title: str = "") -> Path:
    """Draw the error of the crystals that remain when the least certain ones are left out, with that of an oracle.

    Args:
        models: By name, at most three: [n] errors and [n] standard deviations (or another measure of doubt).
        path: PNG file.
        unit: Of the errors.
        title: Above the picture.

    Raises:
        InputError: No model or more than three, unknown errors, or a file that cannot be written.

    Example:
        >>> import tempfile
        >>> std = np.linspace(0.5, 2, 100)
        >>> error = std * np.random.default_rng(0).normal(size=100)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     confidence_curve({"full": (error, std)}, Path(folder) / "confidence.png", unit="eV").name
        'confidence.png'
    """
    _check(models)
    with picture(path, 6.4, 4.4) as figure:
        axes = figure.add_subplot()
        for colour, (label, (error, std)) in zip(COLOURS, models.items(), strict=False):
            curve = calibration.confidence_curve(error, std)
            # The last few crystals are a mean of nothing much.
            shown = curve.removed <= 0.95
            axes.plot(
                100 * curve.removed[shown], curve.mae[shown], color=colour, linewidth=2,
                label=plain(f"{label} (skill {curve.skill:.2f})"),
            )  # fmt: skip
            for (width, style), x, y in (
                (ORACLE, 100 * curve.removed[shown], curve.oracle[shown]),
                (CHANCE, [0, 95], [curve.mae[0]] * 2),
            ):
                axes.plot(x, y, color=colour, linewidth=width, linestyle=style)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set(xlim=(0, 100), title=plain(title), xlabel="Least certain crystals left out (%)")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(labelled("MAE of the rest", "", unit))
        from matplotlib.lines import Line2D

        bounds = [Line2D([], [], color=INK, linewidth=width, linestyle=style) for width, style in (CHANCE, ORACLE)]
        figure.legend(loc="outside lower left", fontsize=9)
        figure.legend(
            bounds, ["left out by chance (skill 0)", "largest errors left out (skill 1)"], loc="outside lower right",
            fontsize=9,
        )  # fmt: skip
    return Path(path)


def _check(models: Errors) -> None:
    if not 1 <= len(models) <= len(COLOURS):
        raise InputError(
            f"{len(models)} models to draw: 1 to {len(COLOURS)} can be told apart; choose the ones to show"
        )
