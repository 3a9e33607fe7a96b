"""How far the predictions of a run can be trusted, as parts of its page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.calibration import std_factor
from tlcgcnn_jax.calibration_plots import calibration_curve, confidence_curve
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.error_bars import ErrorBar
from tlcgcnn_jax.page import Html, figure, number, paragraph

FEWEST = 20  # test crystals of which curves are drawn


def trust(
    target: Target,
    bar: ErrorBar | None,
    metrics: Mapping[str, Any],
    error: np.ndarray,
    std: np.ndarray | None,
    novelty: np.ndarray | None,
    drawn: Path,
) -> Iterator[Html]:
    """What the error bars of one target are worth on the test crystals, and how new these are.

    Args:
        target: Values, not classes.
        bar: Error bar of the model, if it has one.
        metrics: Of the test crystals, with "coverage_90" and "interval_width" where they have intervals.
        error: [n] errors of the test crystals, in the target's unit.
        std: [n] standard deviations of their predictions; None without.
        novelty: [n], see `Predictions`; None where it is not known.
        drawn: Folder for the pictures.

    Yields:
        Paragraphs and figures.
    """
    unit = f" {target.unit}" if target.unit else ""
    if bar is not None:
        learnt = "" if target.transform == "identity" else f" (of {target.transform} {target.name})"
        yield paragraph(
            f"{target.name}, {bar}{learnt}. They chose the epoch of networks as well, so that it is approximate."
        )
    if "coverage_90" in metrics:
        width, held = number(metrics["interval_width"]), metrics["coverage_90"]
        yield paragraph(
            f"The intervals hold {100 * held:.0f} % of the test crystals; they are {width}{unit} wide on average."
        )
    known = None if std is None else np.isfinite(std) & (std > 0)
    if std is not None and known is not None and known.sum() >= FEWEST:
        some = {target.name: (error[known], std[known])}
        factor = std_factor(*some[target.name])
        stem = target.name.encode().hex()[:40]
        yield figure(
            calibration_curve(some, drawn / f"calibration_{stem}.png"),
            f"Share of test crystals within the intervals that the standard deviations of {target.name} promise.",
            f"What the standard deviations promise and what they hold; errors are {number(factor)} times as large.",
        )
        yield figure(
            confidence_curve(some, drawn / f"confidence_{stem}.png", unit=target.unit),
            f"Mean absolute error of {target.name} when the least certain crystals are left out.",
            "The error of the crystals that remain when the least certain ones are left out.",
        )
    if novelty is not None and len(novelty):
        far = novelty > 1
        text = (
            f"{int(far.sum())} of {len(far)} test crystals are farther from the training crystals than 95 % of these "
            "are from each other"
        )
        if far.any() and not far.all():
            inside, outside = (number(float(np.abs(error[rows]).mean())) for rows in (~far, far))
            text += f": their mean absolute error is {outside}{unit}, that of the others {inside}{unit}"
        yield paragraph(f"{text}.")
