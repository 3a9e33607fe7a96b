"""The series of a study: one way of learning a target over all training sizes, as curves and tables show it."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tlcgcnn_jax.analysis import Analysis, Outcome, Way, chosen
from tlcgcnn_jax.results import KINDS
from tlcgcnn_jax.strategies import strategy_name

SHOWN = 4  # transfers that are drawn unless asked for more; with scratch and one baseline six lines are readable
COLOURS, SHAPES = 7, ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Series:
    """One way of learning one target.

    Attributes:
        way: Of learning.
        label: What people call it: strategy and source, and the source's size where it comes in several.
        outcomes: By increasing training size, at least one.
        colour: 0 for scratch, else 1 to 7; the same for a way on every target.
        shape: Of the marks.
        shown: Whether it is drawn before anybody asks.
    """

    way: Way
    label: str
    outcomes: tuple[Outcome, ...]
    colour: int = 0
    shape: str = SHAPES[0]
    shown: bool = False

    def at(self, size: int) -> Outcome | None:
        """The outcome at one training size."""
        return next((outcome for outcome in self.outcomes if outcome.size == size), None)


def study_series(analysis: Analysis, targets: Iterable[str]) -> dict[str, list[Series]]:
    """The series of each target: scratch first, then transfers, then baselines, in the order of validation errors.

    Args:
        analysis: Of the study.
        targets: Of the study.

    Returns:
        {target: series}; a target without a finished run has none.

    Example:
        >>> study_series(analyse(results), results.targets)["band_gap"][0].label  # doctest: +SKIP
        'scratch'
    """
    series = {target: _of_target(analysis, target) for target in targets}
    # What is drawn at first takes its colours first, so that no two lines look alike before anybody asks for more.
    places: dict[Way, int] = {}
    for shown in (True, False):
        for one in (one for of_target in series.values() for one in of_target if one.way.kind != "scratch"):
            if one.shown == shown and one.way not in places:
                places[one.way] = _free_place(one.way, places, series.values()) if shown else _next(places)
    return {target: [_dressed(one, places.get(one.way)) for one in of_target] for target, of_target in series.items()}


def best_series(series: Iterable[Series], size: int, wanted: Callable[[Way], bool]) -> Series | None:
    """The series with the lowest validation error at a size, as `chosen`, among those whose way is wanted."""
    there = {outcome.way: one for one in series if wanted(one.way) and (outcome := one.at(size))}
    best = chosen(outcome for one in there.values() if (outcome := one.at(size)))
    return there[best.way] if best else None


def names_of(series: Mapping[str, Sequence[Series]], field: str, size: int) -> list[str]:
    """Strategies or sources other than scratch with a run of this size, those of transfers first.

    Args:
        series: Of each target.
        field: "strategy" or "source".
        size: Crystals trained on.
    """
    found = (one for of_target in series.values() for one in of_target if one.way.kind != "scratch")
    ways = [one.way for one in found if one.at(size)]
    names = [getattr(way, field) for way in sorted(ways, key=lambda way: way.kind, reverse=True)]
    return [name for name in dict.fromkeys(names) if name]


def shared_size(series: Mapping[str, Sequence[Series]]) -> int:
    """The training size that most targets share, of equally shared ones the largest; 0 without any run."""
    sizes = [{o.size for one in of_target for o in one.outcomes} for of_target in series.values()]
    return max(sorted(set().union(*sizes)), key=lambda size: (sum(size in some for some in sizes), size), default=0)


def family(way: Way) -> str:
    """Strategy and source in a few words.

    Example:
        >>> family(Way("a+b", 9000, "full", "transfer")), family(Way("a+b+c", 9000, "head", "transfer"))
        ('full · a + b', 'head · 3 sources')
    """
    told = "@" in way.strategy or not way.source  # the parts of an ensemble tell where they are from
    return strategy_name(way.strategy) if told else f"{strategy_name(way.strategy)} · {source_name(way.source)}"


def source_name(source: str) -> str:
    """A source in a few words, however many models it joins."""
    parts = source.split("+")
    return " + ".join(parts) if len(parts) < 3 else f"{len(parts)} sources"


def _of_target(analysis: Analysis, target: str) -> list[Series]:
    found: dict[Way, list[Outcome]] = {}
    for outcome in analysis.of(target):
        found.setdefault(outcome.way, []).append(outcome)
    series = [
        Series(way, label, tuple(sorted(found[way], key=lambda outcome: outcome.size)))
        for way, label in zip(found, _labels(list(found)), strict=True)
    ]
    # A way that was run with fewer crystals only has larger errors for that alone: it comes last.
    series.sort(key=lambda one: (KINDS.index(one.way.kind), -one.outcomes[-1].size, one.outcomes[-1].val_mae))
    first = {kind: [one.way for one in series if one.way.kind == kind] for kind in KINDS}
    shown = {*first["scratch"], *first["transfer"][:SHOWN], *first["baseline"][:1]}
    return [replace(one, shown=one.way in shown) for one in series]


def _labels(ways: Sequence[Way]) -> list[str]:
    """Short names, with the source's size, or all its parts, where a short name would not tell two ways apart."""
    labels = [family(way) for way in ways]
    sizes = [
        f"{label}, {way.source_size:,} crystals" if labels.count(label) > 1 and way.source_size else label
        for label, way in zip(labels, ways, strict=True)
    ]
    whole = [str(way).replace("`", "") for way in ways]
    return [long if sizes.count(label) > 1 else label for label, long in zip(sizes, whole, strict=True)]


def _free_place(way: Way, places: Mapping[Way, int], series: Iterable[Sequence[Series]]) -> int:
    """A place whose colour none has that is shown beside this way, as long as there are colours."""
    beside = [[one.way for one in of_target if one.shown] for of_target in series]
    taken = {places[other] % COLOURS for ways in beside if way in ways for other in ways if other in places}
    if len(taken) == COLOURS:
        return _next(places)
    return next(place for place in itertools.count() if place not in places.values() and place % COLOURS not in taken)


def _next(places: Mapping[Way, int]) -> int:
    """The first place that is free."""
    return next(place for place in itertools.count() if place not in places.values())


def _dressed(series: Series, place: int | None) -> Series:
    if place is None:
        return series
    return replace(series, colour=1 + place % COLOURS, shape=SHAPES[(place + 1) % len(SHAPES)])
