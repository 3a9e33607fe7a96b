"""Ways to carry a source model over to a target, as data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tlcgcnn_jax.config import COMBINATIONS, ModelConfig
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.optim import ALL, Rates

BATCH_NORMS = ("source", "target", "update")
FREEZE, FEATURES, HYBRID, DESCRIPTORS = "freeze:", "features:", "hybrid:", "descriptors:"
ENSEMBLE, BLEND, AUTO = "ensemble:", "blend:", "auto"
LAYER_DECAY = 2.6  # from one layer to the next below it (Howard & Ruder, ACL 2018, section 3.2)


def check_rates(patterns: Mapping[str, float] | Iterable[tuple[str, float]]) -> Rates:
    """Multipliers as a tuple, each of them finite and not negative.

    Args:
        patterns: Learning-rate multipliers by glob, as a mapping or as pairs.

    Raises:
        InputError: Not (pattern, number) each, or a number that is negative or not finite.

    Example:
        >>> check_rates({"conv_*": 0.1, "*": 1})
        (('conv_*', 0.1), ('*', 1.0))
    """
    try:
        pairs = patterns.items() if isinstance(patterns, Mapping) else patterns
        rates = tuple((str(pattern), float(rate)) for pattern, rate in pairs)
    except (TypeError, ValueError) as error:
        raise InputError(
            f'learning-rate multipliers are {patterns!r}: (pattern, number) each was expected, as ("conv_*", 0.1)'
        ) from error
    for pattern, rate in rates:
        if not (np.isfinite(rate) and rate >= 0):
            raise InputError(f"learning-rate multiplier of {pattern!r} is {rate:g}: it must be 0 (frozen) or positive")
    return rates


def _several(what: str, values: Any, example: str) -> tuple[Any, ...]:
    """Values as a tuple; of a single text each letter would count."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{what} is {values!r}: several were expected, as {example}")
    return tuple(values)


@dataclass(frozen=True)
class Phase:
    """A part of the training with rates of its own, and a schedule from warm-up to its end.

    Attributes:
        share: Of all epochs.
        rates: Learning-rate multipliers by glob, the first match counts; 0 freezes.

    Raises:
        InputError: A multiplier that is negative or not finite.

    Example:
        >>> from tlcgcnn_jax import Phase
        >>> Phase(0.2, (("head/*", 1), ("*", 0))).rates
        (('head/*', 1.0), ('*', 0.0))
    """

    share: float
    rates: Rates

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", check_rates(self.rates))


@dataclass(frozen=True)
class Strategy:
    """How a source becomes a start, and what is trained from there.

    Attributes:
        name: Short name, as on the command line.
        summary: One sentence for people.
        reinitialise: Globs over parameter paths that get fresh weights; everything else is loaded.
        rates: Learning-rate multipliers by glob, the first match counts; 0 freezes.
        before: Phases that come before the one with `rates`, which has what is left of the epochs.
        batch_norm: What a convolution of which nothing is trained normalises by: the statistics of the "source";
            those of the "target", estimated once on its training crystals; or those of each batch ("update"), which
            then change. Convolutions that are trained always update theirs.
        pull: Strength of a pull of the loaded parameters towards the source, in place of weight decay.
        adapter_rank: Rank of the adapters beside the kernels of the convolutions; 0: none. The pattern "adapter/*"
            stands for them; a finished model holds them folded into the kernels.
        refit_output: Replace the source's last layer by its least-squares fit to the training labels: of one output,
            a new scale and shift. All below it starts as in the source.
        sources: 1, or 0 for all that are given: they stand side by side in one network (`SourceMixture`), whose
            parameters are "source_0/conv_0/…", …, "gate/logits" and "head/…".
        combine: "concatenate" or "gate", see `ModelConfig`.
        top_k: Sources that the gate lets through; 0: all.

    Raises:
        InputError: A multiplier that is negative or not finite, one pattern or phase where several are expected, an
            unknown batch_norm or combine, sources other than 0 and 1, a negative pull, adapter_rank or top_k, phases
            that leave no epochs for the last one, or refit_output of a mixture or of what does not stay the source's.

    Example:
        >>> from tlcgcnn_jax import Phase, Strategy
        >>> head = Phase(0.2, (("head/*", 1.0), ("*", 0.0)))
        >>> mine = Strategy("mine", "a head, then all, slowly", ("head/*",), (("*", 0.1),), before=(head,))
        >>> [(epochs, rates[0]) for epochs, rates in mine.phases(10)]
        [(2, ('head/*', 1.0)), (8, ('*', 0.1))]
    """

    name: str
    summary: str
    reinitialise: tuple[str, ...]
    rates: Rates
    before: tuple[Phase, ...] = ()
    batch_norm: str = "source"
    pull: float = 0.0
    adapter_rank: int = 0
    refit_output: bool = False
    sources: int = 1
    combine: str = "concatenate"
    top_k: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", check_rates(self.rates))
        patterns = _several(f"{self.name}: reinitialise", self.reinitialise, '("head/*",)')
        object.__setattr__(self, "reinitialise", patterns)
        object.__setattr__(self, "before", _several(f"{self.name}: before", self.before, "(Phase(0.3, rates),)"))
        if self.batch_norm not in BATCH_NORMS:
            raise InputError(f"{self.name}: batch_norm is {self.batch_norm!r}: use one of {BATCH_NORMS}")
        if self.combine not in COMBINATIONS:
            raise InputError(f"{self.name}: combine is {self.combine!r}: use one of {COMBINATIONS}")
        if self.sources not in (0, 1):
            raise InputError(f"{self.name}: sources is {self.sources}: use 1, or 0 for all that are given")
        if self.top_k < 0:
            raise InputError(f"{self.name}: top_k is {self.top_k}: use 1 or more, or 0 for all")
        shares = [phase.share for phase in self.before]
        if any(share <= 0 for share in shares) or sum(shares) >= 1:
            raise InputError(f"{self.name}: phases before the last take {shares} of the epochs: together less than 1")
        if self.pull < 0 or self.adapter_rank < 0:
            raise InputError(f"{self.name}: pull {self.pull}, adapter_rank {self.adapter_rank}: not negative, please")
        if self.refit_output and (self.sources != 1 or self.reinitialise or self.batch_norm == "target"):
            raise InputError(
                f"{self.name}: refit_output is of the output of one source as it is, found sources {self.sources}, "
                f"reinitialise {self.reinitialise}, batch_norm {self.batch_norm!r}: use 1, () and 'source'"
            )

    @property
    def from_scratch(self) -> bool:
        """True where no weight of a source is kept."""
        return self.reinitialise == ("*",)

    @property
    def trains(self) -> bool:
        """False where nothing is left to train."""
        return any(rate for _, rate in self.rates) or bool(self.before)

    @property
    def pulls(self) -> Rates:
        """Strength of the pull by pattern, for `optim.make_optimizer`."""
        if not self.pull:
            return ()
        return (*((pattern, 0.0) for pattern in self.reinitialise), ("*", self.pull))

    def phases(self, epochs: int) -> list[tuple[int, Rates]]:
        """Epochs and rates of each phase; every one has an epoch at least.

        Example:
            >>> [(n, rates[0]) for n, rates in find_strategy("head_then_full").phases(10)]
            [(3, ('head/*', 1.0)), (7, ('*', 1.0))]
        """
        out = [(max(1, round(phase.share * epochs)), phase.rates) for phase in self.before]
        return [*out, (max(1, epochs - sum(n for n, _ in out)), self.rates)]


@dataclass(frozen=True)
class FeatureStrategy:
    """A regressor on what the sources make of the crystals, which stay as they are.

    Attributes:
        name: "features:" and the regressor; "hybrid:" and the regressor, with descriptors of the crystals beside; or
            "descriptors:" and the regressor, which asks no source: what transfer has to beat.
        regressor: One of `regressors.REGRESSORS`.
        layers: Some of `embeddings.LAYERS`, of each source, and "descriptors".

    Example:
        >>> from tlcgcnn_jax import FeatureStrategy, textbook_records, transfer
        >>> records = textbook_records(("bulk_modulus_gpa",))[:20]
        >>> pooled = FeatureStrategy("features:ridge, pooled", "ridge", ("pooled",))
        >>> transfer(records, "mp-formation-energy", pooled, "bulk_modulus_gpa").model.x.shape
        (18, 64)
    """

    name: str
    regressor: str
    layers: tuple[str, ...] = ("pooled", "hidden")

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _several(f"{self.name}: layers", self.layers, '("pooled",)'))


@dataclass(frozen=True)
class EnsembleStrategy:
    """The mean of what several strategies predict.

    Attributes:
        name: "ensemble:" or "blend:" and the parts, joined by "+"; or "auto".
        parts: Names of strategies; in a study, NAME@SOURCE stands for that of another source.
        weighted: Errors on crystals that were held out choose the weights ("blend:", "auto"); otherwise all are equal.
    """

    name: str
    parts: tuple[str, ...]
    weighted: bool = False


# What "auto" chooses from: fine-tuning, all sources' features, and descriptors alone in case no source helps.
AUTO_PARTS = ("full", "features:svr", "hybrid:svr", "descriptors:svr", "descriptors:gp")
AUTO_OF_CLASSES = "full"  # regressors do not learn classes

HEAD_ONLY: Rates = (("head/*", 1.0), ("*", 0.0))
GATE_ONLY: Rates = (("gate/*", 10.0), *HEAD_ONLY)
STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("scratch", "fresh weights, everything is trained: what transfer has to beat", ("*",), ALL),
        Strategy("full", "source weights with a new head, everything is trained", ("head/*",), ALL),
        Strategy(
            "frozen",
            "embedding, convolutions and their batch-norm statistics stay as in the source; a new head is trained",
            ("head/*",),
            HEAD_ONLY,
        ),
        Strategy(
            "head",
            "everything stays as in the source but the last linear layer, which is new",
            ("head/output/*",),
            (("head/output/*", 1.0), ("*", 0.0)),
        ),
        Strategy(
            "head_then_full",
            "a new head is trained on the frozen source first, then everything",
            ("head/*",),
            ALL,
            before=(Phase(0.3, HEAD_ONLY),),
        ),
        Strategy(
            "l2sp",
            "as full, with the loaded weights pulled towards those of the source",
            ("head/*",),
            ALL,
            pull=1.0,
        ),
        Strategy(
            "keep_head",
            "the whole source with its head, whose output is fitted to the labels by scale and shift: same property",
            (),
            (("*", 0.0),),
            refit_output=True,
        ),
        Strategy(
            "keep_head_then_full",
            "as keep_head, then everything is trained",
            (),
            ALL,
            refit_output=True,
        ),
        Strategy(
            "adapters",
            "low-rank adapters beside the frozen convolutions, and a new head, are trained",
            ("head/*",),
            (("adapter/*", 1.0), ("head/*", 1.0), ("*", 0.0)),
            adapter_rank=4,
        ),
        Strategy(
            "multi_source",
            "the pooled features of all sources, which stay as they are, joined before a new head",
            ("head/*",),
            HEAD_ONLY,
            sources=0,
        ),
        Strategy(
            "multi_source_gate",
            "the pooled features of all sources, which stay as they are, mixed by a learnt weight each",
            ("gate/*", "head/*"),
            GATE_ONLY,
            sources=0,
            combine="gate",
        ),
        Strategy(
            "multi_source_gate_top3",
            "as multi_source_gate, of the three sources with the largest weights",
            ("gate/*", "head/*"),
            GATE_ONLY,
            sources=0,
            combine="gate",
            top_k=3,
        ),
        Strategy(
            "multi_source_gate_full",
            "as multi_source_gate, then everything is trained",
            ("gate/*", "head/*"),
            (("gate/*", 10.0), *ALL),
            before=(Phase(0.3, GATE_ONLY),),
            batch_norm="target",
            sources=0,
            combine="gate",
        ),
        Strategy(
            "multi_source_full",
            "as multi_source, then everything is trained",
            ("head/*",),
            ALL,
            before=(Phase(0.3, HEAD_ONLY),),
            batch_norm="target",
            sources=0,
        ),
    )
}
# Apart from the others, as their patterns name each layer: `_deep` makes them once the depth of the network is known.
DEEP = {
    "discriminative": f"as full, each layer below the head learning {LAYER_DECAY:g} times slower than the one above",
    "gradual": "a new head is trained, then one convolution more after the other from the top, then everything",
    f"{FREEZE}conv_K": "embedding and convolutions 0 to K stay as in the source, the rest and a new head are trained",
}


def strategy_names(convolutions: int = ModelConfig.convolutions) -> tuple[str, ...]:
    """Names of all ways to train a network, from one source, several or none.

    Example:
        >>> [name for name in strategy_names(2) if name.startswith("freeze")]
        ['freeze:conv_0', 'freeze:conv_1']
    """
    depths = [f"{FREEZE}conv_{layer}" for layer in range(convolutions)]
    return (*STRATEGIES, *(name for name in DEEP if not name.startswith(FREEZE)), *depths)


def find_strategy(
    strategy: str | Strategy,
    multipliers: Rates | Mapping[str, float] = (),
    convolutions: int = ModelConfig.convolutions,
) -> Strategy:
    """A strategy by name, with further learning-rate multipliers in front of its own.

    Args:
        strategy: Name, or a strategy of the caller's own.
        multipliers: For example {"conv_*": 0.1}: convolutions learn at a tenth of the rate.
        convolutions: Of the network, for the strategies that depend on its depth.

    Raises:
        InputError: Unknown name, or a multiplier that is negative or no number.

    Example:
        >>> find_strategy("full", (("conv_*", 0.1),)).rates
        (('conv_*', 0.1), ('*', 1.0))
        >>> find_strategy("freeze:conv_1").rates
        (('embedding/*', 0.0), ('conv_0/*', 0.0), ('conv_1/*', 0.0), ('*', 1.0))
    """
    if isinstance(strategy, str):
        if strategy not in strategy_names(convolutions):
            known = (*STRATEGIES, *DEEP, *(f"{kind}REGRESSOR" for kind in (FEATURES, HYBRID, DESCRIPTORS)),
                     *(f"{kind}NAME+NAME" for kind in (ENSEMBLE, BLEND)), AUTO)  # fmt: skip
            if strategy.partition(f"{FREEZE}conv_")[2].isdigit():
                known = (f"{FREEZE}conv_0 to {FREEZE}conv_{convolutions - 1}",)
            raise InputError(f"no strategy {strategy!r}; there are: {', '.join(known)}")
        strategy = STRATEGIES.get(strategy) or _deep(strategy, convolutions)
    first = check_rates(multipliers)
    before = tuple(replace(phase, rates=(*first, *phase.rates)) for phase in strategy.before)
    return replace(strategy, rates=(*first, *strategy.rates), before=before)


def find_way(name: str, convolutions: int = ModelConfig.convolutions) -> Strategy | FeatureStrategy | EnsembleStrategy:
    """A strategy of any kind by name.

    Args:
        name: Of fine-tuning, see `strategy_names`; of a regressor ("features:…", "hybrid:…", "descriptors:…"), which is
            not looked up here; of the mean of several ("ensemble:NAME+NAME", weighted by held-out crystals as
            "blend:NAME+NAME"); or "auto".
        convolutions: Of the network, for the strategies that depend on its depth.

    Raises:
        InputError: An unknown name, or a mean of fewer than two strategies or of other means.

    Example:
        >>> find_way("ensemble:full+features:svr").parts
        ('full', 'features:svr')
    """
    if name == AUTO:
        return EnsembleStrategy(AUTO, AUTO_PARTS, weighted=True)
    if name.startswith(FEATURES):
        return FeatureStrategy(name, name.removeprefix(FEATURES))
    if name.startswith(HYBRID):
        return FeatureStrategy(name, name.removeprefix(HYBRID), ("pooled", "hidden", "descriptors"))
    if name.startswith(DESCRIPTORS):
        return FeatureStrategy(name, name.removeprefix(DESCRIPTORS), ("descriptors",))
    for kind in (ENSEMBLE, BLEND):
        if name.startswith(kind):
            parts = tuple(name.removeprefix(kind).split("+"))
            if len(parts) < 2 or any(map(is_mean, parts)):
                raise InputError(f"{name}: at least two strategies, none of them an ensemble: {kind}full+features:svr")
            return EnsembleStrategy(name, parts, weighted=kind == BLEND)
    return find_strategy(name, convolutions=convolutions)


def is_mean(name: str) -> bool:
    """Whether a name stands for the mean of several strategies.

    Example:
        >>> is_mean("auto"), is_mean("blend:full+features:svr"), is_mean("full")
        (True, True, False)
    """
    return name == AUTO or name.startswith((ENSEMBLE, BLEND))


def strategy_name(strategy: str) -> str:
    """A strategy in a few words: of an ensemble the parts, and of these the source where it was chosen or joined.

    Example:
        >>> strategy_name("ensemble:full@mp-energy+features:svr@all+ridge")
        'full + features:svr@all + ridge'
    """
    kind = next((kind for kind in (ENSEMBLE, BLEND) if strategy.startswith(kind)), None)
    if kind is None:
        return strategy
    parts = (part.partition("@") for part in strategy.removeprefix(kind).split("+"))
    told = " + ".join(f"{name}@{source}" if source in ("all", "auto") else name for name, _, source in parts)
    return f"weighted {told}" if kind == BLEND else told


def _deep(name: str, convolutions: int) -> Strategy:
    """The strategies that name each layer of a network."""
    layers = ["embedding/*", *(f"conv_{layer}/*" for layer in range(convolutions))]
    if name == "discriminative":
        depth = len(layers)
        rates = [(layer, LAYER_DECAY ** (index - depth)) for index, layer in enumerate(layers)]
        return Strategy(name, DEEP[name], ("head/*",), (*rates, ("*", 1.0)))
    if name == "gradual":  # Howard & Ruder, ACL 2018, section 3.3, where each phase but the last is one epoch
        # Half of the epochs for the phases in which a part is still frozen, the other half for everything.
        share = 0.5 / convolutions
        frozen = [tuple((layer, 0.0) for layer in layers[: len(layers) - phase]) for phase in range(convolutions)]
        before = tuple(Phase(share, (*rates, ("*", 1.0))) for rates in frozen)
        return Strategy(name, DEEP[name], ("head/*",), ALL, before=before)
    last = int(name.removeprefix(f"{FREEZE}conv_"))
    still = tuple((layer, 0.0) for layer in layers[: last + 2])
    return Strategy(name, DEEP[f"{FREEZE}conv_K"], ("head/*",), (*still, ("*", 1.0)))
