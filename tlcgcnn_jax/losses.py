"""Labels as the network sees them, and masked losses on them."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from tlcgcnn_jax.config import Target
from tlcgcnn_jax.errors import InputError

logger = logging.getLogger(__name__)


class Normaliser(NamedTuple):
    """What the training labels of each target are like, after its transform; (0, 1) and no range for classes.

    Attributes:
        mean: float32 [n_target].
        std: float32 [n_target], standard deviation.
        low: float32 [n_target], smallest; NaN for classes. None in models that do not know it: imported or older ones.
        high: float32 [n_target], largest; likewise.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def known(self) -> dict[str, np.ndarray]:
        """The parts that there are, by name."""
        return {name: part for name, part in self._asdict().items() if part is not None}


FORWARD: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": np.asarray, "log10": np.log10, "log": np.log,
}  # fmt: skip


def fit_normaliser(values: np.ndarray, targets: Sequence[Target]) -> Normaliser:
    """Mean, standard deviation and range of the training rows, and of these alone.

    Args:
        values: [n_train, n_target] in the targets' units, NaN where missing.
        targets: The targets, in the order of the columns.

    Raises:
        InputError: A target without any training label, or a label that its transform cannot take.
    """
    transformed = transform_labels(values, targets)
    mean, std = np.zeros(len(targets)), np.ones(len(targets))
    low, high = np.full((2, len(targets)), np.nan)
    for column, target in enumerate(targets):
        known = transformed[np.isfinite(transformed[:, column]), column]
        if not len(known):
            raise InputError(f"target {target.name}: not one training crystal has a label")
        if target.kind == "regression":
            mean[column] = known.mean()
            # Relative: labels in joules are no less to be learnt than those in electronvolts.
            std[column] = known.std() if known.std() > 1e-9 * np.abs(known).max() else 1.0
            low[column], high[column] = known.min(), known.max()
    return Normaliser(*(part.astype(np.float32) for part in (mean, std, low, high)))


def transform_labels(values: np.ndarray, targets: Sequence[Target], ids: Sequence[str] = ()) -> np.ndarray:
    """Values in the targets' units to the space that is learnt, float64 [n, n_target]; NaN stays NaN.

    Args:
        values: [n, n_target] in the targets' units.
        targets: The targets, in the order of the columns.
        ids: Of the crystals, for the message.

    Raises:
        InputError: A label that is not positive where its logarithm is learnt, or that is no class of its target.

    Example:
        >>> transform_labels(np.array([[100.0], [np.nan]]), [Target("k", transform="log10")])
        array([[ 2.],
               [nan]])
    """
    out = np.array(values, np.float64)
    for column, target in enumerate(targets):
        known = out[np.isfinite(out[:, column]), column]
        if target.transform != "identity":
            if np.any(known <= 0):
                whose = f" ({ids[int(np.nanargmin(out[:, column]))]}; {np.sum(known <= 0)} in all)" if len(ids) else ""
                raise InputError(
                    f"target {target.name}: transform {target.transform} needs positive values, found "
                    f"{known.min():g}{whose}"
                )
            out[:, column] = FORWARD[target.transform](out[:, column])
        if target.kind == "classification" and not np.all(np.isin(known, np.arange(target.classes))):
            whole = known == np.round(known)
            if not whole.all():
                raise InputError(f"target {target.name}: class {known[~whole][0]:g} found: classes are whole numbers")
            wrong = known[~np.isin(known, np.arange(target.classes))][0]
            raise InputError(f"target {target.name}: class {wrong:g} found, expected 0 to {target.classes - 1}")
    return out


def without_nonpositive(
    values: np.ndarray, targets: Sequence[Target], ids: Sequence[str], most: bool = True
) -> np.ndarray:
    """Values of which those without a logarithm, where that is learnt, are missing; a warning names them.

    Args:
        values: [n, n_target] in the targets' units.
        targets: The targets, in the order of the columns.
        ids: Of the crystals.
        most: Also where more values are lost than stay; otherwise these are left to `transform_labels`, which raises.
    """
    out = np.array(values)
    for column, target in enumerate(targets):
        lost = np.flatnonzero(out[:, column] <= 0) if target.transform != "identity" else np.array([], int)
        if len(lost) and (most or 2 * len(lost) <= np.isfinite(out[:, column]).sum()):
            some = ", ".join(ids[int(row)] for row in lost[:5]) + (", …" if len(lost) > 5 else "")
            logger.warning(
                "%s: %d labels are not positive and have no %s: they count as missing (%s)",
                target.name, len(lost), target.transform, some,
            )  # fmt: skip
            out[lost, column] = np.nan
    return out


def check_varied(values: np.ndarray, targets: Sequence[Target]) -> None:
    """Raise `InputError` where the labels of each target, or its classes, are all one: there is nothing to learn.

    Args:
        values: [n, n_target] of all crystals, NaN where missing.
        targets: The targets, in the order of the columns.
    """
    columns = [column[np.isfinite(column)] for column in values.T]
    if all(len(known) > 1 and np.ptp(known) == 0 for known in columns):
        told = "; ".join(
            f"target {target.name}: all {len(known)} labels are {known[0]:g}"
            for known, target in zip(columns, targets, strict=True)
        )
        raise InputError(f"{told}: there is nothing to learn")


def learnt_values(values: np.ndarray, targets: Sequence[Target]) -> np.ndarray:
    """Predictions in the targets' units to the space that is learnt; not finite where there is no logarithm.

    Args:
        values: […, Σ target.outputs]; probabilities of classes stay as they are.
        targets: What is learnt.

    Returns:
        float64, of the same shape.

    Example:
        >>> learnt_values(np.array([[100.0], [0.0]]), [Target("k", transform="log10")])
        array([[  2.],
               [-inf]])
    """
    out = np.array(values, np.float64)
    for target, part in zip(targets, output_slices(targets), strict=True):
        out[..., part] = transform(out[..., part], target)
    return out


def normalise(values: np.ndarray, targets: Sequence[Target], normaliser: Normaliser) -> np.ndarray:
    """Values in the targets' units to what the network shall give, float32 [n, n_target]."""
    return ((transform_labels(values, targets) - normaliser.mean) / normaliser.std).astype(np.float32)


def denormalise(outputs: np.ndarray, targets: Sequence[Target], normaliser: Normaliser) -> np.ndarray:
    """Outputs of the network to values in the targets' units; probabilities for classes.

    What was learnt as a logarithm stays within the range of the training labels: see `bounded`.

    Args:
        outputs: [..., Σ target.outputs].
        targets: The targets.
        normaliser: As fitted on the training rows.

    Returns:
        float64, of the same shape.
    """
    out = np.array(outputs, np.float64)
    for column, (target, part) in enumerate(zip(targets, output_slices(targets), strict=True)):
        if target.kind == "classification":
            shifted = out[..., part] - out[..., part].max(-1, keepdims=True)
            out[..., part] = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
            continue
        value = out[..., part] * float(normaliser.std[column]) + float(normaliser.mean[column])
        ends = [math.nan if end is None else float(end[column]) for end in (normaliser.low, normaliser.high)]
        out[..., part] = untransform(bounded(value, target, *ends), target)
    return out


def transform(values: np.ndarray, target: Target) -> np.ndarray:
    """Values of one target from its unit to the space that is learnt; not finite where there is no logarithm.

    Example:
        >>> transform(np.array([100.0]), Target("k", transform="log10"))
        array([2.])
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return FORWARD[target.transform](np.asarray(values, np.float64))


def untransform(values: np.ndarray, target: Target) -> np.ndarray:
    """Values of one target from the space that is learnt to its unit.

    Example:
        >>> untransform(np.array([2.0]), Target("k", transform="log10"))
        array([100.])
    """
    inverse = {"identity": lambda x: x, "log10": lambda x: 10.0**x, "log": np.exp}[target.transform]
    return inverse(np.asarray(values, np.float64))


def bounded(values: np.ndarray, target: Target, low: float, high: float) -> np.ndarray:
    """Outputs of a network for one target in the space that is learnt, a logarithm no farther than the training labels.

    The exponential would make nonsense of a slip on a crystal unlike all others: 1,000 where no label is above 300.
    Values that are learnt as they are have no bounds; nor have regressors, whose inputs are cut instead.

    Args:
        values: Outputs, no longer normalised.
        target: What they are of.
        low: Smallest training label in this space, NaN if unknown.
        high: Largest.

    Example:
        >>> bounded(np.array([2.0, 9.0]), Target("k", transform="log10"), 1.0, 2.5)
        array([2. , 2.5])
    """
    values = np.asarray(values, np.float64)
    if target.transform == "identity":
        return values
    return np.where(np.isnan(values), values, np.fmax(np.fmin(values, high), low))  # NaN as an end is no bound


def output_slices(targets: Sequence[Target]) -> list[slice]:
    """Which outputs belong to which target.

    Example:
        >>> output_slices([Target("gap"), Target("metal", kind="classification"), Target("k")])
        [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)]
    """
    ends = np.cumsum([target.outputs for target in targets]).tolist()
    return [slice(end - target.outputs, end) for end, target in zip(ends, targets, strict=True)]


def label_losses(outputs: Array, labels: Array | np.ndarray, targets: Sequence[Target], loss: str) -> Array:
    """Loss of each label, 0 where it is missing.

    Args:
        outputs: [n_graph, Σ target.outputs].
        labels: [n_graph, n_target], normalised; NaN where missing and in padding graphs.
        targets: The targets.
        loss: "mae", "mse" or "huber" (δ = 1 standard deviation) for values; classes take the cross-entropy.

    Returns:
        [n_graph, n_target].
    """
    columns = []
    for column, (target, part) in enumerate(zip(targets, output_slices(targets), strict=True)):
        label, known = labels[:, column], jnp.isfinite(labels[:, column])
        label = jnp.where(known, label, 0.0)  # a NaN inside `where` would still poison the gradient
        if target.kind == "classification":
            each = optax.softmax_cross_entropy_with_integer_labels(outputs[:, part], label.astype(jnp.int32))
        else:
            error = outputs[:, part.start] - label
            each = {
                "mae": jnp.abs,
                "mse": jnp.square,
                "huber": lambda e: optax.huber_loss(e, delta=1.0),
            }[loss](error)
        columns.append(jnp.where(known, each, 0.0))
    return jnp.stack(columns, 1)


def loss_sum(outputs: Array, labels: Array | np.ndarray, targets: Sequence[Target], loss: str) -> tuple[Array, Array]:
    """Sum of the losses of all labels that are there, and their number; arguments as in `label_losses`.

    Returns:
        Scalars (sum, count); the mean loss is their quotient.
    """
    known = jnp.isfinite(labels).astype(jnp.float32)
    return jnp.sum(label_losses(outputs, labels, targets, loss)), jnp.sum(known)


def score(outputs: np.ndarray, labels: np.ndarray, targets: Sequence[Target]) -> float:
    """Validation score, lower is better: mean of each target's mean absolute error (normalised) or cross-entropy."""
    parts = []
    for column, (target, part) in enumerate(zip(targets, output_slices(targets), strict=True)):
        known = np.isfinite(labels[:, column])
        if not known.any():
            continue
        chosen, label = np.asarray(outputs, np.float64)[known][:, part], labels[known, column]
        if target.kind == "classification":
            log_p = jax.nn.log_softmax(chosen, axis=-1)
            parts.append(-float(np.mean(np.take_along_axis(np.asarray(log_p), label.astype(int)[:, None], 1))))
        else:
            parts.append(float(np.mean(np.abs(chosen[:, 0] - label))))
    return float(np.mean(parts)) if parts else float("nan")
