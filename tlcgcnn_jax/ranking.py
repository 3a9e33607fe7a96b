"""Which source is worth fine-tuning: scores of its features on the labelled training crystals, before any training."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.embeddings import FEATURES, activations, graphs_for
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs
from tlcgcnn_jax.machine import in_float32
from tlcgcnn_jax.splits import k_fold, overlap
from tlcgcnn_jax.zoo import load_sources

FOLDS, REPEATS = 5, 3
PENALTIES = np.logspace(-4, 3, 15)  # of ridge, for each training crystal and standardised column


@dataclass(frozen=True)
class SourceScore:
    """How well a source's features tell the labels.

    Attributes:
        name: Of the source.
        property: What the source was trained on.
        ridge_mae: Cross-validated mean absolute error of ridge regression on the features, in the learnt space.
        ridge_skill: 1 - `ridge_mae` / (the same error of predicting the training median): 1 is perfect, 0 useless.
        log_me: LogME score; higher is better.
        correlation: Spearman's rank correlation of the source's own output with the labels; of several outputs the
            strongest; NaN where the output is constant.
        seconds: Wall time.
        left_out: What the source's notes say was left out of its training crystals; "" where they say nothing, and
            part of a good score may then be memory of the same crystals.
        overlap: Share of the labelled training crystals whose formula the source was trained on; NaN where its formulas
            are not known.
    """

    name: str
    property: str
    ridge_mae: float
    ridge_skill: float
    log_me: float
    correlation: float
    seconds: float
    left_out: str = ""
    overlap: float = float("nan")


@in_float32
def rank_sources(
    data: Any,
    sources: Any,
    values: Any,
    rows: Any,
    seed: int = 0,
    progress: bool = False,
) -> list[SourceScore]:
    """Sources by how well a linear model on their features predicts the labels, best first.

    Args:
        data: `GraphSets` with the graph settings of every source, a packed dataset, or whatever `read_structures`
            takes.
        sources: Models by name, or whatever else `transfer` takes as source; of an ensemble, the first network counts.
        values: [n], labels in the learnt space (as `losses.transform_labels` gives them), NaN where missing; two
            classes are 0 and 1.
        rows: Training rows: numbers, or a mask [n]. No other crystal is looked at, so that the choice does not leak
            from the test set.
        seed: Of the folds, which are the same for all sources.
        progress: Show a bar.

    Returns:
        One score for each source, by the cross-validated error of ridge regression on its features, the smallest first.

    Raises:
        InputError: Fewer than 10 labelled training crystals, labels that are all equal or no numbers, rows that cannot
            be, no such source, or crystals that a source cannot read.

    Example:
        >>> import numpy as np
        >>> from tlcgcnn_jax import rank_sources, textbook_records
        >>> records = [r for r in textbook_records(("band_gap_ev",)) if r.targets["band_gap_ev"] >= 0][:40]
        >>> gaps = np.array([record.targets["band_gap_ev"] for record in records])
        >>> (score,) = rank_sources(records, "mp-formation-energy", gaps, np.arange(40))
        >>> score.ridge_skill > 0.2
        True
    """
    from tqdm import tqdm

    models = load_sources(sources)
    crystals = pack_graphs(data, [model.graph for model in models.values()])
    try:
        values = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"values: {error}: numbers were expected, one label for each crystal") from error
    if values.shape != (len(crystals),):
        raise InputError(f"values of shape {values.shape} for {len(crystals)} crystals: one label each was expected")
    rows = _row_numbers(rows, len(crystals))
    rows = rows[np.isfinite(values[rows])]
    labels = values[rows]
    check_rankable(labels)
    chosen = GraphSets(tuple(dataset.select(rows) for dataset in crystals.datasets))
    found = {name: graphs_for(name, model, chosen) for name, model in models.items()}  # refused before any work
    trivial, formulas, scores = _median_cv_mae(labels, seed), chosen.datasets[0].formulas, []
    for name, model in tqdm(models.items(), disable=not progress, unit="source", desc="ranking"):
        began = time.perf_counter()
        said = activations(model, found[name])
        features = np.concatenate([said[layer] for layer in FEATURES], axis=1)
        mae = ridge_cv_mae(features, labels, seed=seed)
        scores.append(
            SourceScore(
                name=name,
                property=", ".join(target.name for target in model.targets),
                ridge_mae=mae,
                ridge_skill=1 - mae / trivial,
                log_me=log_me(features, labels),
                correlation=_strongest(_ordered_outputs(model, said["output"]), labels),
                seconds=time.perf_counter() - began,
                left_out=str(model.notes.get("left out", "")),
                overlap=overlap(model.formulas, formulas).share if model.formulas else float("nan"),
            )
        )
    return sorted(scores, key=lambda score: score.ridge_mae)


def _row_numbers(rows: Any, count: int) -> np.ndarray:
    """Row numbers from themselves or from a mask, int64, each once."""
    found = np.asarray(rows)
    if found.dtype == bool and found.shape == (count,):
        return np.flatnonzero(found)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise InputError(
            f"rows are {found.dtype} of shape {found.shape}: row numbers, or a mask of {count}, were expected"
        )
    if len(np.unique(found)) != len(found) or found.min(initial=0) < 0 or found.max(initial=0) >= count:
        raise InputError(f"rows name a crystal twice, or lie beyond the {count} that there are: 0 to {count - 1}")
    return found.astype(np.int64)


def check_rankable(labels: np.ndarray) -> None:
    """Raise `InputError` unless sources can be ranked by some labels of training crystals, float [n]."""
    if len(labels) < 2 * FOLDS:
        raise InputError(f"{len(labels)} labelled training crystals: at least {2 * FOLDS} are needed to rank sources")
    if np.ptp(labels) == 0:
        raise InputError(f"all {len(labels)} labels are {labels[0]:g}: there is nothing that a source could explain")


def log_me(features: np.ndarray, y: np.ndarray) -> float:
    """LogME: the largest log evidence of Bayesian linear regression of labels on features, for each crystal.

    Weights have the prior N(0, 1/α), labels the noise N(0, 1/β); α and β are those of the largest evidence, found by
    fixed-point iteration in the basis of the features' singular vectors. Here columns and labels are standardised
    first, so that scores neither depend on units nor lack an intercept (whose degree of freedom is taken off n: with
    it, the evidence of more columns than rows would have no bound); constant columns are dropped.

    Args:
        features: [n, d]; n may be smaller than d.
        y: [n].

    Returns:
        Log evidence / (n - 1), which compares features on the same labels only.

    Raises:
        InputError: Not one label for each row, or labels that are all equal.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 5))
        >>> log_me(x, x[:, 0]) > log_me(x[:, 1:], x[:, 0])
        True

    Source:
        K. You, Y. Liu, J. Wang and M. Long, "LogME: Practical Assessment of Pre-trained Models for Transfer
        Learning", ICML 2021, Algorithms 1 and 3; the fixed point is D. J. C. MacKay's, Neural Comput. 4, 415 (1992).
    """
    y = _check_labels(features, y)
    y = (y - y.mean()) / y.std(ddof=1)
    x, _ = _standardised(features, features[:0])
    u, singular, _ = np.linalg.svd(x, full_matrices=False)
    n, strength, along = len(y) - 1, singular**2, (u.T @ y) ** 2
    across = max(float(y @ y - along.sum()), 0.0)  # what no weights explain
    largest = max(float(strength.max(initial=0.0)), 1e-12)
    ratio = largest / n  # α/β
    for _ in range(2000):
        fitted = float(np.sum(strength / (ratio + strength)))  # γ, effective number of weights
        squared_weights = float(np.sum(strength * along / (ratio + strength) ** 2))
        residual = float(np.sum(along * (ratio / (ratio + strength)) ** 2)) + across
        before = ratio
        ratio = fitted * max(residual, 1e-12 * n) / max(squared_weights * (n - fitted), 1e-300)
        ratio = float(np.clip(ratio, 1e-12 * largest, 1e12 * largest))  # from labels without noise to noise alone
        if abs(ratio / before - 1) < 1e-6:
            break
    # The best β for a given α/β is known in closed form.
    misfit = max(float(np.sum(along * ratio / (ratio + strength))) + across, 1e-12 * n)
    found = -0.5 * (np.log(2 * np.pi * misfit / n) + 1 + np.sum(np.log1p(strength / ratio)) / n)
    # Where features tell nothing, the largest evidence is the limit α → ∞, which the iteration nears but slowly.
    return float(max(found, -0.5 * (np.log(2 * np.pi) + 1)))


def ridge_cv_mae(features: np.ndarray, y: np.ndarray, folds: int = FOLDS, seed: int = 0) -> float:
    """Mean absolute error of ridge regression in repeated cross-validation, at the best penalty of a grid.

    Columns are standardised on each fold's training part. The penalty is chosen on the held-out rows themselves,
    one number for hundreds of them, which flatters all sources alike.

    Args:
        features: [n, d].
        y: [n].
        folds: Number of folds.
        seed: Of the folds, which are drawn `REPEATS` times.

    Returns:
        In the unit of `y`.

    Raises:
        InputError: Not one label for each row, labels that are all equal, or fewer rows than folds.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(60, 3))
        >>> ridge_cv_mae(x, x @ [1.0, 2.0, 3.0]) < 1e-2
        True
    """
    y, features = _check_labels(features, y), np.asarray(features, np.float64)
    errors = np.zeros(len(PENALTIES))
    for train, held in _folds(len(y), folds, seed):
        x, x_held = _standardised(features[train], features[held])
        mean = y[train].mean()
        u, singular, vt = np.linalg.svd(x, full_matrices=False)
        shrunk = singular[:, None] / (singular[:, None] ** 2 + len(train) * PENALTIES + 1e-300)
        predicted = mean + (x_held @ vt.T) @ (shrunk * (u.T @ (y[train] - mean))[:, None])
        errors += np.abs(predicted - y[held][:, None]).sum(0)
    return float(errors.min() / (REPEATS * len(y)))


def score_table(scores: Sequence[SourceScore]) -> str:
    """Scores as aligned text, one line a source; "seen" is the share of the crystals' formulas that it knows."""
    wide = max([len("source"), *(len(score.name) for score in scores)])
    header = f"{'':>3} {'source':<{wide}} {'CV error':>9} {'skill':>6} {'LogME':>7} {'correlation':>11} {'seen':>5}"
    lines = [f"{header}  trained on"]
    lines += [
        f"{place:>3} {score.name:<{wide}} {score.ridge_mae:>9.4g} {score.ridge_skill:>6.2f} {score.log_me:>7.3f} "
        f"{score.correlation:>11.2f} {'?' if np.isnan(score.overlap) else f'{score.overlap:.0%}':>5}  {score.property}"
        for place, score in enumerate(scores, 1)
    ]
    return "\n".join(lines)


def write_scores(scores: Sequence[SourceScore], path: str | Path) -> None:
    """Write a CSV with one row a source, in the order given."""
    write_table(path, map(asdict, scores), [field.name for field in fields(SourceScore)], digits=6)


def _median_cv_mae(y: np.ndarray, seed: int) -> float:
    """Error of predicting the training median, on the folds of `ridge_cv_mae`."""
    errors = [np.abs(y[held] - np.median(y[train])).sum() for train, held in _folds(len(y), FOLDS, seed)]
    return float(np.sum(errors) / (REPEATS * len(y)))


def _folds(n: int, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and held-out rows of every fold of every repeat."""
    splits = [split for repeat in range(REPEATS) for split in k_fold(n, folds, seed, repeat)]
    return [(np.concatenate([split.train, split.val]), split.test) for split in splits]


def _standardised(train: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the training rows' mean and spread taken out, without the columns that are constant there."""
    train, other = np.asarray(train, np.float64), np.asarray(other, np.float64)
    mean, std = train.mean(0), train.std(0)
    kept = std > 1e-6 * np.abs(mean) + 1e-12  # float32 features are rounded at 1e-7
    return (train[:, kept] - mean[kept]) / std[kept], (other[:, kept] - mean[kept]) / std[kept]


def _check_labels(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = np.asarray(y, np.float64)
    if np.ndim(features) != 2 or y.shape != (len(features),) or not len(y):
        raise InputError(f"features of shape {np.shape(features)} and labels of shape {y.shape}: [n, d] and [n] needed")
    if np.ptp(y) == 0:
        raise InputError(f"all {len(y)} labels are {y[0]:g}: there is nothing to explain")
    return y


def _ordered_outputs(model: Model, output: np.ndarray) -> np.ndarray:
    """The outputs that can rise and fall with a label: values, and classes but the first, which follows from them."""
    columns = []
    for target, part in zip(model.targets, losses.output_slices(model.targets), strict=True):
        columns.append(output[:, part][:, 1 if target.kind == "classification" else 0 :])
    return np.concatenate(columns, axis=1)


def _strongest(outputs: np.ndarray, y: np.ndarray) -> float:
    """The rank correlation of largest size between any output and the labels; NaN where all outputs are constant."""
    from scipy.stats import rankdata

    ranks = rankdata(y)
    found = [float(np.corrcoef(rankdata(column), ranks)[0, 1]) for column in outputs.T if np.ptp(column) > 0]
    return max(found, key=abs, default=float("nan"))
