"""Which sources a run transfers from: those that were named, or the best of those there are."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import GraphConfig, Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.graph_sets import GraphSets
from tlcgcnn_jax.losses import transform_labels
from tlcgcnn_jax.ranking import SourceScore, rank_sources
from tlcgcnn_jax.strategies import FeatureStrategy, Strategy
from tlcgcnn_jax.zoo import AUTO, load_sources

logger = logging.getLogger(__name__)

MOST_MIXED = 5  # sources of a mixture that was not named, where all of them are trained


@dataclass(frozen=True, eq=False)
class SourcePool:
    """Sources to choose from.

    Attributes:
        models: By name.
        auto: They were not named: the best are to be found.
    """

    models: dict[str, Model]
    auto: bool = False

    @property
    def graphs(self) -> tuple[GraphConfig, ...]:
        """Kinds of graphs that they need."""
        return tuple(model.graph for model in self.models.values())


def find_pool(source: Any, own: str | Path | None = None) -> SourcePool:
    """The sources that a user means.

    Args:
        source: A pool, or what `load_sources` takes.
        own: With "auto": folder of further sources, see `find_sources`.

    Raises:
        InputError: As `load_sources`.

    Example:
        >>> list(find_pool("mp-formation-energy").models)
        ['mp-formation-energy']
    """
    if isinstance(source, SourcePool):
        return source
    return SourcePool(load_sources(source, own), auto=isinstance(source, str) and source == AUTO)


class SourceChoice:
    """Sources for strategies on one set of crystals.

    A packed dataset has graphs of one kind, so that sources of other kinds are left out, with a warning.

    Args:
        pool: Sources to choose from.
        crystals: With the targets' columns.
        targets: What is to be learnt.
        rows: Training rows; no other label is looked at.
        seed: Of the ranking's folds.
        top: Take so many of the best, where several are taken; default: all that were named, and of others 5 for
            mixtures of which all is trained, and all for the rest.
        progress: Show a bar.

    Raises:
        InputError: No source whose graphs the crystals have.
    """

    def __init__(
        self,
        pool: SourcePool,
        crystals: GraphSets,
        targets: tuple[Target, ...],
        rows: np.ndarray,
        seed: int = 0,
        top: int | None = None,
        progress: bool = False,
    ) -> None:
        if top is not None and top < 1:
            raise InputError(f"top is {top}: at least one source must be taken")
        kinds = [dataset.graph.kind for dataset in crystals.datasets]
        self.models = {name: model for name, model in pool.models.items() if model.graph.kind in kinds}
        if others := [name for name in pool.models if name not in self.models]:
            if not self.models:
                crystals[pool.models[others[0]].graph]  # raises, and says what differs
            logger.warning("%s left out: the dataset was packed with other graph settings", _listed(others))
        self._crystals, self._targets, self._rows = crystals, targets, rows
        self._auto, self._seed, self._top, self._progress = pool.auto, seed, top, progress
        self.ranked = False  # whether the ranking was needed

    @functools.cached_property
    def ranking(self) -> list[SourceScore]:
        """Scores of all sources, best first.

        Raises:
            InputError: As `rank_sources`; or several targets.
        """
        if len(self._targets) != 1 or self._targets[0].outputs > 2:
            raise InputError(
                "sources are ranked for one property or two classes: name no more of them than the strategy takes, or "
                "learn one target"
            )
        first = self._crystals.datasets[0]
        labels = transform_labels(np.asarray(first.targets), self._targets, first.ids)[:, 0]
        self.ranked = True
        return rank_sources(self._crystals, self.models, labels, self._rows, self._seed, self._progress)

    def sources(self, way: Strategy | FeatureStrategy) -> dict[str, Model]:
        """The sources that a strategy takes, best first where they are ranked; those that do not fit are warned of.

        Args:
            way: Fine-tuning takes one source, or all in a mixture; features take all.

        Raises:
            InputError: As `ranking`, where there is something to choose.
        """
        if isinstance(way, FeatureStrategy):
            return self._first(self._ordered(self._auto or self._top is not None), self._top)
        if way.sources == 1:
            # From scratch a source gives the kind of graphs and the sizes alone: of such as agree in them any will do.
            any_will_do = way.from_scratch and len({(one.graph.kind, one.model) for one in self.models.values()}) == 1
            return self._first(self._ordered((self._auto or len(self.models) > 1) and not any_will_do), 1)
        bodies = {*map(_body, self.models.values())}
        # Of equal weights, as all are at first, a gate lets those of the first sources through.
        chosen = self._auto or self._top is not None or len(bodies) > 1 or 0 < way.top_k < len(self.models)
        ordered = self._ordered(chosen)
        alike = mixable(ordered, way, self._auto and self._top is None)
        if others := [name for name in ordered if _body(ordered[name]) != _body(next(iter(alike.values())))]:
            logger.warning("%s left out: other graphs or sizes than those of %s", _listed(others), next(iter(alike)))
        return self._first(alike, self._top)

    def _ordered(self, rank: bool) -> dict[str, Model]:
        return {score.name: self.models[score.name] for score in self.ranking} if rank else self.models

    def _first(self, models: dict[str, Model], count: int | None) -> dict[str, Model]:
        return dict(list(models.items())[:count])


def mixable(ranked: Mapping[str, Model], way: Strategy, few: bool = True) -> dict[str, Model]:
    """Of ranked sources those that one network can join: the largest group that agrees in graphs and sizes.

    Args:
        ranked: By name, best first. Of groups of one size that of the better source is taken.
        way: What is done with the mixture.
        few: Take the best 5 of them where everything is trained, which takes as long as that many networks.
    """
    groups: dict[Any, dict[str, Model]] = {}
    for name, model in ranked.items():
        groups.setdefault(_body(model), {})[name] = model
    alike = max(groups.values(), key=len)
    everything_trained = any(rate and pattern == "*" for pattern, rate in way.rates)
    return dict(list(alike.items())[:MOST_MIXED]) if few and everything_trained else alike


def _body(model: Model) -> tuple[Any, ...]:
    """What the sources of a mixture must have in common."""
    sizes = model.model
    return model.graph.kind, sizes.width, sizes.convolutions, sizes.gaussian_step, sizes.gaussian_max


def _listed(names: list[str]) -> str:
    return f"source{'s' if len(names) > 1 else ''} {', '.join(names)}"
