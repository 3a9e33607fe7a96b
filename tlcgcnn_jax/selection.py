"""A committee of which crystals that were held out choose what each part counts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tlcgcnn_jax.blending import CHOICE, FEWEST, choose_weights, cross_fitted_mean
from tlcgcnn_jax.committee import AnyModel, Committee, known_formulas
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.losses import learnt_values
from tlcgcnn_jax.predictions import Predictions, mixture

logger = logging.getLogger(__name__)


def weighted_committee(
    parts: Mapping[str, AnyModel], said: Mapping[str, Predictions], labels: np.ndarray, seed: int = 0
) -> tuple[AnyModel, Predictions]:
    """The mean of models, weighted so that its error on some crystals is small.

    The errors are those of what is learnt, of a logarithm where a target has one, and of classes the squared ones of
    their probabilities. Parts without weight are left out; of fewer than 9 labelled crystals nothing is chosen, with a
    warning.

    Args:
        parts: Models of the same targets, by the name of their strategy.
        said: What each part, or what it was made of, said of crystals that it had not learnt from.
        labels: [n, n_target] of these crystals, NaN where unknown.
        seed: Of the choice.

    Returns:
        A committee, or a part alone where that is best; its notes hold under "choice" the weight and the error of each
        part ("val_mae": mean absolute error of the first target in its unit; none for classes). And what it says of the
        crystals, each by weights that others have chosen, with the standard deviations of its own weights.

    Raises:
        InputError: No part whose predictions are finite.
    """
    targets = next(iter(parts.values())).targets
    weights, mean = np.full(len(parts), 1 / len(parts)), None
    known = int(np.isfinite(labels).any(1).sum())
    if known:
        squared = [target.kind == "classification" for target in targets for _ in range(target.outputs)]
        args = (np.stack([said[name].mean for name in parts]), _outputs(labels, targets), seed,
                lambda values: learnt_values(values, targets), np.array(squared))  # fmt: skip
        weights, mean = choose_weights(*args), cross_fitted_mean(*args)
    if known < FEWEST:
        logger.warning(
            "%d validation crystals have a label, %d are needed to choose weights by: %s count alike",
            known, FEWEST, ", ".join(parts),
        )  # fmt: skip
    shares = dict(zip(parts, weights.tolist(), strict=True))
    choice = {name: {"weight": share, **_error(said[name].mean, labels, targets)} for name, share in shares.items()}
    kept = {name: share for name, share in shares.items() if share}
    held = mixture([said[name] for name in kept], tuple(kept.values()))
    if mean is not None:
        std = held.learnt_std
        held = Predictions(held.ids, targets, mean[None], own_std=None if std is None else std[None])
    formulas = known_formulas(parts[name] for name in kept)
    if len(kept) == 1:
        return replace(parts[next(iter(kept))], formulas=formulas, notes={CHOICE: choice}), held
    made = Committee({name: parts[name] for name in kept}, {}, {CHOICE: choice}, formulas, (), tuple(kept.values()))
    return made, held


def _outputs(labels: np.ndarray, targets: Sequence[Target]) -> np.ndarray:
    """Labels in the columns of a prediction: values, and 0 or 1 for each class; NaN where unknown, [n, outputs]."""
    columns = []
    for target, column in zip(targets, labels.T, strict=True):
        if target.kind == "classification":
            classes = (column[:, None] == np.arange(target.classes)).astype(float)
            columns.append(np.where(np.isfinite(column)[:, None], classes, np.nan))
        else:
            columns.append(column[:, None])
    return np.concatenate(columns, axis=1)


def _error(said: np.ndarray, labels: np.ndarray, targets: Sequence[Target]) -> dict[str, float]:
    known = np.isfinite(labels[:, 0])
    if targets[0].kind != "regression" or not known.any():
        return {}
    return {"val_mae": float(np.abs(said[known, 0] - labels[known, 0]).mean())}
