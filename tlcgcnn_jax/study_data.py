"""What the script of a study's page draws, as one block of JSON: each crystal and each prediction stands there once."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlcgcnn_jax.analysis import Outcome
from tlcgcnn_jax.calibration import confidence_curve, coverage, miscalibration_area, sharpness, std_factor
from tlcgcnn_jax.results import Crystals, Row, RunPredictions, StudyResults
from tlcgcnn_jax.strategies import strategy_name
from tlcgcnn_jax.study_series import Series, best_series, family, source_name

WIDE = 10  # a property whose 5th and 95th percentile differ by this factor is drawn on logarithmic axes
FEWEST = 20  # crystals of which a calibration curve is drawn
LONGEST = 18  # letters at the end of a line


def study_data(
    results: StudyResults, series: Mapping[str, Sequence[Series]], predictions: Mapping[str, RunPredictions]
) -> str:
    """The block of data, safe inside a script element.

    Args:
        results: Of the study.
        series: Of each target.
        predictions: Of each run, by its name.

    Returns:
        {"targets": [{"name", "unit", "log", "ids", "formulas", "values", "tests": lists of row numbers, "best": number
        of the series with the lowest validation error, "ways": [{..., "points": [{"size", "mae", ..., "runs": [{"seed",
        "test": number of its list, "predicted", "std"}], "calibration"}]}]}]}, without a "<" in it.
    """
    targets = [_target(results, target, of_target, predictions) for target, of_target in series.items()]
    text = json.dumps({"targets": targets}, separators=(",", ":"), allow_nan=False)
    # These signs stand inside texts only; escaped, no text can end the element (HTML standard, 4.12.1.3).
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _target(
    results: StudyResults, target: str, series: Sequence[Series], predictions: Mapping[str, RunPredictions]
) -> dict[str, Any]:
    crystals = results.crystals(target)
    runs: dict[tuple[Any, int], list[Row]] = {}
    for row in results.select(target=target):
        runs.setdefault(((row.source, row.source_size, row.strategy, row.kind), row.size), []).append(row)
    tests: dict[tuple[int, ...], int] = {}
    ways, names = [], _names(series)
    for one, name in zip(series, names, strict=True):
        points = []
        for outcome in one.outcomes:
            rows = sorted(runs[tuple(one.way), outcome.size], key=lambda row: row.seed)
            made = [predictions[row.run] for row in rows]
            seeds = [
                {
                    "seed": row.seed,
                    "test": tests.setdefault(tuple(found.test_rows.tolist()), len(tests)),
                    "predicted": rounded(found.test),
                    "std": rounded(found.test_std, 3) if np.isfinite(found.test_std).any() else None,
                }
                for row, found in zip(rows, made, strict=True)
            ]
            points.append(_point(outcome) | {"runs": seeds, "calibration": _calibration(crystals, made)})
        ways.append(_way(one, name) | {"points": points})
    largest = max((outcome.size for one in series for outcome in one.outcomes), default=0)
    best = best_series(series, largest, lambda way: True)
    return {
        "name": target,
        "unit": results.targets[target],
        "log": _is_wide(crystals.values),
        "ids": crystals.ids,
        "formulas": crystals.formulas,
        "values": rounded(crystals.values, 5),
        "tests": [list(rows) for rows in tests],
        "best": series.index(best) if best else None,
        "ways": ways,
    }


def _names(series: Sequence[Series]) -> list[str]:
    """As few words as tell the series apart, to stand at the end of a line."""
    ways = [one.way for one in series]
    names = []
    for way in ways:
        same = [other for other in ways if other.strategy == way.strategy]
        if len(same) == 1:
            names.append(strategy_name(way.strategy))
        elif len([other for other in same if other.source == way.source]) > 1:
            size = f"{way.source_size / 1000:.3g}k" if way.source_size >= 1000 else str(way.source_size)
            names.append(f"{strategy_name(way.strategy)} · {size}")
        else:
            names.append(f"{strategy_name(way.strategy)} · {source_name(way.source)}")
    return [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]


def _way(series: Series, name: str) -> dict[str, Any]:
    way = series.way
    return {
        "strategy": way.strategy, "source": way.source, "sourceSize": way.source_size, "kind": way.kind,
        "name": name, "label": series.label, "family": family(way),
        "colour": series.colour, "shape": series.shape, "shown": series.shown,
    }  # fmt: skip


def _point(outcome: Outcome) -> dict[str, Any]:
    gain = outcome.against_scratch
    mae, low, high = rounded(outcome.mae)
    gains = rounded((gain.gain_percent, gain.low, gain.high), 3) if gain else [None] * 3
    return {
        "size": outcome.size, "n": len(outcome.seeds), "mae": mae, "low": low, "high": high,
        "gain": gains[0], "gainLow": gains[1], "gainHigh": gains[2], "verdict": gain.verdict if gain else "",
    }  # fmt: skip


def rounded(values: Any, digits: int = 4) -> list[float | None]:
    """Numbers with so many significant digits, None where they are not finite.

    Example:
        >>> rounded([0.123456, float("nan")])
        [0.1235, None]
    """
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in np.asarray(values).tolist()]


def _is_wide(values: np.ndarray) -> bool:
    low, high = np.percentile(values, [5, 95])
    return bool(values.min() > 0 and high / low > WIDE)


def _calibration(crystals: Crystals, runs: Sequence[RunPredictions]) -> dict[str, Any] | None:
    """What the standard deviations of a way are worth on its test crystals, all seeds together; None without them."""
    test, val = (_errors(crystals, runs, part) for part in ("test", "val"))
    if len(test[0]) < FEWEST:
        return None
    curve = confidence_curve(*test)
    shares = np.arange(0, 1, 0.05)
    places = (shares * len(curve.mae)).astype(int)
    levels = np.linspace(0, 1, 21)
    measures = [miscalibration_area(*test), sharpness(test[1]), std_factor(*val) if len(val[0]) else np.nan]
    area, sharp, factor = rounded(measures, 3)
    return {
        "coverage": [rounded(point, 3) for point in zip(levels, coverage(*test, levels), strict=True)],
        "confidence": [rounded(point, 3) for point in zip(shares, curve.mae[places], strict=True)],
        "oracle": [rounded(point, 3) for point in zip(shares, curve.oracle[places], strict=True)],
        "area": area, "sharpness": sharp, "factor": factor,
    }  # fmt: skip


def _errors(crystals: Crystals, runs: Sequence[RunPredictions], part: str) -> tuple[np.ndarray, np.ndarray]:
    """Errors and standard deviations of all runs, where there is a standard deviation."""
    rows, mean, std = (
        np.concatenate([getattr(run, name) for run in runs]) for name in (f"{part}_rows", part, f"{part}_std")
    )
    error = mean - crystals.values[rows]
    known = np.isfinite(error) & np.isfinite(std) & (std > 0)
    return error[known], std[known].astype(float)
