"""What a model says of some crystals: values with their standard deviations, intervals and novelty."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.blending import weighted_mean, weighted_std
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.errors import InputError, Skipped
from tlcgcnn_jax.files import user_path, write_table


@dataclass(frozen=True)
class Predictions:
    """What a model says of some crystals.

    Attributes:
        ids: One for each crystal.
        targets: The model's targets.
        members: float64 [n_member, n, outputs], in the targets' units; probabilities for classes. A member is a network
            of an ensemble, or a part of a committee.
        skipped: Crystals that could not be read, with the reasons.
        own_std: float64 [n_member, n, n_target], standard deviation that a member has of its own, in the space that is
            learnt, NaN where it has none; None where no member has any.
        low: float64 [n, n_target], lower end of the 90 % interval in the targets' units, NaN for targets without;
            None for a model without error bars.
        high: The upper end.
        novelty: float64 [n], distance to the training crystals; above 1 farther from them than 95 % of these are from
            each other. None where the model does not know its training crystals.
        weights: float64 [n_member], of the members in the mean, with sum 1; None: all alike.

    Example:
        >>> from tlcgcnn_jax import predict, textbook_records
        >>> found = predict("mp-formation-energy", textbook_records()[:2])
        >>> found.values.shape, list(found.columns())
        ((2, 1), ['prediction', 'low', 'high', 'novelty'])
    """

    ids: list[str]
    targets: tuple[Target, ...]
    members: np.ndarray
    skipped: tuple[Skipped, ...] = ()
    own_std: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    novelty: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """Mean over the members, [n, outputs]."""
        return self.members.mean(0) if self.weights is None else weighted_mean(self.members, self.weights)

    @property
    def std(self) -> np.ndarray | None:
        """Standard deviation, [n, outputs]: between the members, and what these have of their own; None without."""
        own = np.full(self.members.shape, np.nan)
        if self.own_std is not None:
            for column, (target, part) in enumerate(self._parts):
                if target.kind == "regression":
                    middle, std = losses.transform(self.members[:, :, part.start], target), self.own_std[:, :, column]
                    low, high = (losses.untransform(end, target) for end in (middle - std, middle + std))
                    own[:, :, part.start] = (high - low) / 2
        return _total_std(self.members, own, self.weights)

    @property
    def learnt_std(self) -> np.ndarray | None:
        """The same for the values as they are learnt, e.g. of their logarithm, [n, n_target]; NaN for classes."""
        columns = [
            losses.transform(self.members[:, :, part.start], target)
            if target.kind == "regression"
            else np.full(self.members.shape[:2], np.nan)
            for target, part in self._parts
        ]
        members = np.stack(columns, -1)
        own = np.full(members.shape, np.nan) if self.own_std is None else self.own_std
        return _total_std(members, own, self.weights)

    @property
    def values(self) -> np.ndarray:
        """One number a crystal and target, [n, n_target]: the value, or the most probable class."""
        columns = []
        for target, part in self._parts:
            mean = self.mean[:, part]
            columns.append(mean.argmax(1).astype(float) if target.kind == "classification" else mean[:, 0])
        return np.stack(columns, 1)

    @property
    def novel(self) -> str:
        """A warning of crystals that are unlike the training crystals; empty where there is none."""
        if self.novelty is None or not (far := np.flatnonzero(self.novelty > 1)).size:
            return ""
        some = ", ".join(self.ids[row] for row in far[np.argsort(-self.novelty[far])][:5])
        return (
            f"{len(far)} of {len(self.ids)} crystals are farther from the training crystals than 95 % of these are "
            f"from each other: {some}{', …' if len(far) > 5 else ''}; their errors may be larger"
        )

    def select(self, rows: Sequence[int] | np.ndarray) -> "Predictions":
        """Those of some crystals (row numbers, or a mask of length n), in that order.

        Raises:
            InputError: A mask of another length.
        """
        index, n = np.asarray(rows), len(self.ids)
        if index.dtype == bool and index.shape != (n,):
            raise InputError(f"a mask of shape {index.shape} for {n} crystals: ({n},) was expected")
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        some = {
            name: None if (values := getattr(self, name)) is None else values[index]
            for name in ("low", "high", "novelty")
        }
        own = None if self.own_std is None else self.own_std[:, index]
        ids = [self.ids[row] for row in index.tolist()]
        return replace(self, ids=ids, members=self.members[:, index], own_std=own, skipped=(), **some)

    def columns(self) -> dict[str, np.ndarray]:
        """Named columns of a table: prediction (std, low, high); one a target or class where there are several."""
        out: dict[str, np.ndarray] = {}
        std = self.std
        for column, (target, part) in enumerate(self._parts):
            end = f":{target.name}" if len(self.targets) > 1 else ""
            out[f"prediction{end}"] = self.values[:, column]
            if target.kind == "classification":
                for label in range(target.classes):
                    out[f"p_{label}{end}"] = self.mean[:, part][:, label]
                continue
            if std is not None:
                out[f"std{end}"] = std[:, part.start]
            if self.low is not None and self.high is not None:
                out |= {f"low{end}": self.low[:, column], f"high{end}": self.high[:, column]}
        return out if self.novelty is None else out | {"novelty": self.novelty}

    def write(self, path: str | Path, labels: np.ndarray | None = None) -> None:
        """Write a CSV with the columns id, target (where labels are given), and those of `columns`.

        Args:
            path: File.
            labels: [n, n_target] true values to stand beside, NaN where unknown.

        Raises:
            InputError: The file cannot be written.
        """
        columns: dict[str, Any] = {"id": self.ids}
        if labels is not None:
            for column, target in enumerate(self.targets):
                columns[f"target:{target.name}" if len(self.targets) > 1 else "target"] = labels[:, column]
        columns.update(self.columns())
        rows = (dict(zip(columns, map(_cell, row), strict=True)) for row in zip(*columns.values(), strict=True))
        write_table(user_path(path), rows, tuple(columns))

    @property
    def _parts(self) -> list[tuple[Target, slice]]:
        return list(zip(self.targets, losses.output_slices(self.targets), strict=True))


def mixture(parts: Sequence[Predictions], weights: Sequence[float] = ()) -> Predictions:
    """What several models say together, each part as one member.

    Args:
        parts: Of the same crystals and targets.
        weights: Of the parts, with sum 1; (): all alike.
    """
    first = parts[0]
    unknown = np.full((len(first.ids), len(first.targets)), np.nan)
    own = [unknown if (std := part.learnt_std) is None else std for part in parts]
    known = [part.novelty for part in parts if part.novelty is not None]
    return Predictions(
        first.ids, first.targets, np.stack([part.mean for part in parts]), own_std=np.stack(own),
        novelty=np.mean(known, 0) if known else None, weights=np.array(weights) if weights else None,
    )  # fmt: skip


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several sets of crystals as those of one; intervals and novelty are left out."""
    first = parts[0]
    own: np.ndarray | None = None
    if any(part.own_std is not None for part in parts):
        shapes = [(*part.members.shape[:2], len(part.targets)) for part in parts]
        stds = [part.own_std for part in parts]
        own = np.concatenate([np.full(n, np.nan) if s is None else s for n, s in zip(shapes, stds, strict=True)], 1)
    return Predictions(
        [id_ for part in parts for id_ in part.ids], first.targets, np.concatenate([part.members for part in parts], 1),
        own_std=own, weights=first.weights,
    )  # fmt: skip


def _cell(value: Any) -> Any:
    """The shortest number that float32 reads as this one; an empty cell for an unknown value."""
    if isinstance(value, float | np.floating):
        single = 1e-37 < abs(value) < 1e38  # what float32 holds with all its digits
        return "" if np.isnan(value) else f"{float(str(np.float32(value))) if single else value:.9g}"
    return value


def _total_std(members: np.ndarray, own: np.ndarray, weights: np.ndarray | None) -> np.ndarray | None:
    """Of a mixture, [n, columns]: mean own variance (where known) and variance between the members."""
    known = np.isfinite(own)
    if len(members) < 2 and not known.any():
        return None
    weights = np.full(len(members), 1 / len(members)) if weights is None else weights
    within = np.tensordot(weights, np.where(known, own, 0.0) ** 2, 1)
    share = np.tensordot(weights, known.astype(float), 1)
    within = within / np.where(share > 0, share, 1.0)
    between = weighted_std(members, weights) ** 2 if len(members) > 1 else np.where(known.any(0), 0.0, np.nan)
    return np.sqrt(within + between)
