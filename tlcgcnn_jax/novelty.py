"""How far a crystal is from the crystals that a model was trained on, as the model sees them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from tlcgcnn_jax.errors import InputError

NEIGHBOURS = 5
TYPICAL = 95  # per cent of the training crystals that count as usual
BLOCK = 2**22  # distances held in memory at once
LEAST = 1e-3  # standard deviations; crystals that are nearer to each other differ by rounding


@dataclass(frozen=True, eq=False)
class Novelty:
    """Training crystals in the space of a network's features, and how near to each other they are.

    Attributes:
        mean: float32 [d], of the training features.
        scale: float32 [d], factor that gives each feature a standard deviation of 1 over the training crystals; 0 where
            it is the same for all of them, but 1 where all features are.
        embeddings: float32 [n, d], standardised features of the training crystals.
        reach: 95 % of the training crystals have their nearest others within this distance.
    """

    mean: np.ndarray
    scale: np.ndarray
    embeddings: np.ndarray
    reach: float

    def score(self, embeddings: np.ndarray) -> np.ndarray:
        """Mean distance to the nearest training crystals over `reach`.

        Args:
            embeddings: [m, d] features of crystals, from the same network.

        Returns:
            float64 [m]; above 1: farther from the training crystals than 95 % of these are from each other. The
            prediction is then an extrapolation, and neither its standard deviation nor a conformal interval can be
            relied on.

        Raises:
            InputError: Another number of features, or some that are not finite.

        Example:
            >>> training = np.random.default_rng(0).normal(size=(100, 2))
            >>> (fit_novelty(training).score(np.array([[0.0, 0.0], [9.0, 9.0]])) > 1).tolist()
            [False, True]
        """
        embeddings = _features(embeddings)
        if embeddings.shape[1] != len(self.mean):
            raise InputError(
                f"{embeddings.shape[1]} features a crystal, the training crystals have {len(self.mean)}: use features "
                "of the same network"
            )
        found = _nearest((embeddings - self.mean) * self.scale, self.embeddings)
        return found / max(self.reach, LEAST)  # training crystals that are all alike have no reach

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, to be saved with NumPy."""
        return {field.name: np.asarray(getattr(self, field.name), np.float32) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Novelty":
        """What `arrays` gave.

        Raises:
            InputError: One is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in arrays]
        if missing:
            raise InputError(f"novelty: no {', '.join(missing)} among the arrays {', '.join(arrays)}: fit it again")
        return cls(arrays["mean"], arrays["scale"], arrays["embeddings"], float(arrays["reach"]))


def fit_novelty(train_embeddings: np.ndarray) -> Novelty:
    """Learn what is usual among training crystals.

    A crystal's distance is the mean Euclidean distance to its 5 nearest training crystals in standardised features; for
    a training crystal, to its 5 nearest others.

    Args:
        train_embeddings: [n, d] features of the training crystals, e.g. pooled ones.

    Raises:
        InputError: Fewer than two crystals, or features that are not finite.

    Source:
        Distances in a network's feature space as a measure of doubt: Janet et al., Chem. Sci. 10, 7913 (2019).
    """
    features = _features(train_embeddings)
    if len(features) < 2:
        raise InputError(f"{len(features)} training crystal: distances among at least 2 were expected")
    mean, std = features.mean(0).astype(np.float32), features.std(0)
    # Below that, a feature varies by rounding only.
    least = np.maximum(1e-5 * np.abs(mean), 1e-30)
    varies = std > least
    scale = np.divide(1.0, std, out=np.full_like(std, not varies.any()), where=varies).astype(np.float32)
    standard = ((features - mean) * scale).astype(np.float32)
    reach = float(np.float32(np.percentile(_nearest(standard, standard, themselves=True), TYPICAL)))  # as it is saved
    return Novelty(mean, scale, standard, reach)


def _nearest(points: np.ndarray, others: np.ndarray, themselves: bool = False) -> np.ndarray:
    """Mean distance of each point to its nearest others; `themselves`: both are the same points."""
    points, others = points.astype(float), others.astype(float)
    count = min(NEIGHBOURS, len(others) - themselves)
    squares, found = np.sum(others**2, 1), []
    step = max(1, BLOCK // len(others))
    for start in range(0, len(points), step):
        block = points[start : start + step]
        distances = np.sum(block**2, 1)[:, None] - 2 * block @ others.T + squares[None, :]
        if themselves:
            distances[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        nearest = np.partition(distances, count - 1, axis=1)[:, :count]
        found.append(np.sqrt(np.maximum(nearest, 0)).mean(1))
    return np.concatenate(found) if found else np.zeros(0)


def _features(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 2 or not values.shape[1] or not np.isfinite(values).all():
        raise InputError(
            f"features of shape {values.shape}: finite numbers of shape [crystals, features] were expected"
        )
    return values
