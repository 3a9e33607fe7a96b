"""The network as a scikit-learn regressor, for cross-validation, pipelines and searches."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from tlcgcnn_jax.config import FINE_TUNING, GraphConfig, ModelConfig, Target, TrainConfig
from tlcgcnn_jax.crystal import Record
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict as predict_crystals
from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs
from tlcgcnn_jax.optim import Rates
from tlcgcnn_jax.predictions import Predictions
from tlcgcnn_jax.run import Result, fit, transfer
from tlcgcnn_jax.source_choice import SourcePool, find_pool
from tlcgcnn_jax.splits import random_split
from tlcgcnn_jax.strategies import Strategy
from tlcgcnn_jax.ways import needed_graphs


class CGCNNRegressor(RegressorMixin, BaseEstimator):
    """A crystal graph network that follows scikit-learn's conventions, from scratch or from a source model.

    X is a sequence (list, object array, pandas column) of pymatgen Structures, `Record`s or `Crystal`s, or a
    DataFrame with a column "structure"; y holds one number each, in the property's unit. Labels of `Record`s are not
    looked at.

    Args:
        source: What to transfer from, as in `transfer`: a model, its folder, the name of a shipped one, several of
            these, or "auto"; None trains from scratch.
        strategy: With a source: a name as in `transfer`, for example "full", "features:svr" or "auto"; or a `Strategy`.
            Without one "full" or "scratch", which are then the same.
        epochs: Passes over the training crystals.
        batch_size: Crystals in a batch, on average; None: 32 with a source, 128 without.
        learning_rate: Highest learning rate; None: 0.002 with a source, 0.004 without.
        weight_decay: Decoupled weight decay.
        loss: "mae", "mse" or "huber".
        patience: Epochs without a better validation error after which training stops; None: never.
        multipliers: Learning-rate multipliers by pattern that go before the strategy's.
        seeds: Networks; more than one make an ensemble, whose spread `predict(X, return_std=True)` gives.
        val_fraction: Share of X that is kept out of networks' training to choose the epoch by; 0 keeps the last
            weights. Regressors learn from it in the end, and with seeds=3 or more "auto" and "blend:…" keep another
            part out of each network instead, see `transfer`; with fewer networks this part alone weights them.
        transform: "identity", "log10" or "log": what the network learns; predictions are in the unit of y.
        width: Features of an atom; without a source only, as are the three that follow.
        convolutions: Gated graph convolutions.
        head_width: Hidden features after pooling.
        graph: How crystals become graphs (`GraphConfig`); None: the defaults.
        random_state: Seed of the split, the initial weights and the batches.
        verbose: Show progress bars.

    Attributes:
        model_: The trained model, mostly a `Model`, which can be saved, and loaded again with `load_model`.
        result_: What `fit` or `transfer` gave: metrics of the held-out part, history, account of the transfer.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> from tlcgcnn_jax import CGCNNRegressor, textbook_records
        >>> records = textbook_records(["bulk_modulus_gpa"])[:12]
        >>> moduli = [record.targets["bulk_modulus_gpa"] for record in records]
        >>> regressor = CGCNNRegressor("mp-formation-energy", "features:ridge", transform="log10")
        >>> cross_val_score(regressor, records, moduli, cv=2).shape
        (2,)
    """

    def __init__(
        self,
        source: Any = None,
        strategy: str | Strategy = "full",
        *,
        epochs: int = 100,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 1e-4,
        loss: str = "mae",
        patience: int | None = None,
        multipliers: Rates | Mapping[str, float] = (),
        seeds: int = 1,
        val_fraction: float = 0.1,
        transform: str = "identity",
        width: int = 64,
        convolutions: int = 4,
        head_width: int = 128,
        graph: GraphConfig | None = None,
        random_state: Any = 0,
        verbose: bool = False,
    ) -> None:
        self.source = source
        self.strategy = strategy
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.loss = loss
        self.patience = patience
        self.multipliers = multipliers
        self.seeds = seeds
        self.val_fraction = val_fraction
        self.transform = transform
        self.width = width
        self.convolutions = convolutions
        self.head_width = head_width
        self.graph = graph
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> "CGCNNRegressor":
        """Train on crystals and their property.

        Args:
            X: Crystals.
            y: float [n], in the property's unit; every crystal needs a label.

        Raises:
            InputError: A crystal or a label that cannot be used, by its position; or settings that cannot.
        """
        crystals, labels = _crystals(X), _labels(y)
        if len(crystals) != len(labels):
            raise InputError(f"{len(crystals)} crystals and {len(labels)} labels: one label for each was expected")
        if hasattr(X, "iloc") and hasattr(y, "iloc") and not X.index.equals(y.index):
            raise InputError("X and y have different indexes: give y.loc[X.index], or y.to_numpy() if the order is one")
        if not isinstance(self.val_fraction, Real) or not 0 <= self.val_fraction < 1:
            raise InputError(f"val_fraction is {self.val_fraction!r}: a share from 0 to below 1 was expected")
        if self.source is None and (self.strategy not in ("full", "scratch") or self.multipliers):
            what = "multipliers" if self.multipliers else f"strategy {self.strategy!r}"
            raise InputError(f"{what} goes with a source: give one, for example source='auto'")
        pool = None if self.source is None else find_pool(self.source)
        graphs = needed_graphs(self.strategy, pool) if pool else (self.graph or GraphConfig(),)
        packed = _packed(crystals, graphs, self.verbose)
        target = Target("target", transform=self.transform)
        column = labels.astype(np.float32)[:, None]
        labelled = [
            dataclasses.replace(dataset, target_names=(target.name,), targets=column) for dataset in packed.datasets
        ]
        self.result_ = self._run(GraphSets(tuple(labelled)), target, pool)
        self.model_ = self.result_.model
        return self

    def predict(self, X: Any, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Predict the property, in the unit of y.

        Args:
            X: Crystals.
            return_std: Give the standard deviation as well: between the networks of an ensemble, or the regressor's.

        Returns:
            float64 [n], or (mean [n], standard deviation [n]).

        Raises:
            InputError: A crystal that cannot be used, or `return_std` of a model without, such as a single network.
            NotFittedError: `fit` was not called before.
        """
        check_is_fitted(self, "model_")
        packed = _packed(_crystals(X), self.model_.graphs, self.verbose)
        predictions: Predictions = predict_crystals(self.model_, packed)
        if not return_std:
            return predictions.mean[:, 0]
        if predictions.std is None:
            raise InputError(
                "return_std: the model has no standard deviation; fit with seeds=2 or more, or a strategy that has one "
                "(ensembles, regressors such as gp)"
            )
        return predictions.mean[:, 0], predictions.std[:, 0]

    def _run(self, crystals: GraphSets, target: Target, pool: SourcePool | None) -> Result:
        """A run without a test part: that is scikit-learn's, which holds it back itself."""
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31 - 1)
        given = {"batch_size": self.batch_size, "learning_rate": self.learning_rate}
        config = dataclasses.replace(
            FINE_TUNING if pool else TrainConfig(), epochs=self.epochs, weight_decay=self.weight_decay,
            loss=self.loss, patience=self.patience, seed=int(seed),
            **{name: value for name, value in given.items() if value is not None},
        )  # fmt: skip
        val = float(self.val_fraction)
        split = random_split(len(crystals), config.seed, train=1.0 - val, val=val, test=0)
        if pool is None:
            sizes = ModelConfig(self.width, self.convolutions, self.head_width)
            return fit(
                crystals, target, split=split, model=sizes, config=config, seeds=self.seeds, progress=self.verbose
            )
        return transfer(
            crystals, pool, self.strategy, target, split=split, deal=True, config=config,
            multipliers=self.multipliers, seeds=self.seeds, progress=self.verbose,
        )  # fmt: skip

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False  # X holds crystals, not rows of numbers
        tags.no_validation = True
        return tags


def _crystals(X: Any) -> list[tuple[str, Any]]:
    """(position, crystal) of every crystal: ids of records may repeat, as in a bootstrap."""
    if hasattr(X, "columns") and hasattr(X, "iloc"):
        if "structure" not in X.columns:
            raise InputError(f"the DataFrame has no column 'structure'; it has {', '.join(map(str, X.columns))}")
        X = X["structure"]
    if isinstance(X, str | Path | CrystalDataset | Record | Mapping) or hasattr(X, "lattice"):
        raise InputError(f"X is a {type(X).__name__}: a list of crystals was expected")
    return list(_positions(X))


def _packed(crystals: list[tuple[str, Any]], graphs: Iterable[GraphConfig], progress: bool) -> GraphSets:
    """All crystals as graphs; none can be left out, so that the advice to do so is not given."""
    packed = pack_graphs(crystals, graphs, on_error="skip", progress=progress)
    if packed.skipped:
        raise InputError(packed.skipped[0].reason)
    return packed


def _positions(X: Any) -> Iterator[tuple[str, Any]]:
    for position, crystal in enumerate(X):
        yield str(position), crystal.structure if isinstance(crystal, Record) else crystal


def _labels(y: Any) -> np.ndarray:
    """y as float64 [n], each of them finite."""
    try:
        labels = np.asarray(y, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"y holds something that is not a number: {error}") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"y has the shape {labels.shape}: one number for each crystal was expected")
    if not np.isfinite(labels).all():
        position = int(np.argmin(np.isfinite(labels)))
        raise InputError(f"y[{position}] is {labels[position]}: leave crystals without a label out")
    return labels
