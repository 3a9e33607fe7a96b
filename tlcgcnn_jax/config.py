"""Every setting, as frozen dataclasses that travel as JSON inside datasets, runs and models."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from tlcgcnn_jax.errors import InputError

T = TypeVar("T")

COMBINATIONS = ("concatenate", "gate")  # of several sources in one network
TRANSFORMS = ("identity", "log10", "log")  # of labels


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def settle_types(config: Any) -> None:
    """Give every setting its annotated type, lists that of tuples, or say which one has another."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = _typed(hint, getattr(config, name), f"{type(config).__name__}: {name}")
        object.__setattr__(config, name, value)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type: JSON turns tuples into lists and drops the point of 8.0."""
    if hasattr(value, "tolist"):  # NumPy's
        value = value.tolist()
    if isinstance(hint, types.UnionType):
        return None if value is None else _typed(typing.get_args(hint)[0], value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where} is {value!r}: a list was expected")
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise InputError(f"{where} is {value!r}: {len(kinds)} entries were expected")
        return tuple(_typed(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_dict(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise InputError(f"{where} is {value!r}: {hint.__name__} was expected")
    return value


@dataclass(frozen=True)
class GraphConfig:
    """How a crystal becomes a graph.

    Attributes:
        cutoff: Largest neighbour distance, in Å.
        neighbours: Neighbours of each atom (k).
        ties: "shell" keeps the whole last shell of equally distant neighbours and shares the remaining places
            among them by weight, so that a prediction does not depend on the order of the atoms or the choice
            of the cell; "reference" cuts it in the order of the original CGCNN code.
        tie_tolerance: Distances closer than this are equal, in Å.
        legacy_padding: Invent a neighbour (atom 0 at `cutoff` + 1 Å) for every missing one, as the original
            code does; only for its weights.
        places: Edge places in one row of the packed graph. It changes the layout and the speed, not the result.

    Raises:
        InputError: A setting of another type or outside its range, or `legacy_padding` without ties="reference"; it is
            named.

    Example:
        >>> from tlcgcnn_jax import GraphConfig, build_dataset, textbook_records
        >>> build_dataset(textbook_records()[:2], graph=GraphConfig(cutoff=6.0, neighbours=8)).graph.cutoff
        6.0

    Source:
        Xie & Grossman, Phys. Rev. Lett. 120, 145301 (2018); cutoff and neighbours are those of the authors' code.
    """

    cutoff: float = 8.0
    neighbours: int = 12
    ties: str = "shell"
    tie_tolerance: float = 1e-3
    legacy_padding: bool = False
    places: int = 4

    def __post_init__(self) -> None:
        settle_types(self)
        _require(0 < self.cutoff < math.inf, f"cutoff is {self.cutoff} Å: it must be positive and finite")
        _require(self.neighbours > 0, f"neighbours is {self.neighbours}: it must be at least 1")
        _require(self.ties in ("shell", "reference"), f"ties is {self.ties!r}: use 'shell' or 'reference'")
        _require(self.tie_tolerance >= 0, f"tie_tolerance is {self.tie_tolerance} Å: it must not be negative")
        _require(self.places > 0, f"places is {self.places}: it must be at least 1")
        _require(
            not self.legacy_padding or self.ties == "reference",
            "legacy_padding needs ties='reference': invented neighbours belong to the original's graphs alone",
        )

    @property
    def kind(self) -> "GraphConfig":
        """The same without the layout, which changes no result: equal kinds are equal graphs."""
        return dataclasses.replace(self, places=GraphConfig.places)


@dataclass(frozen=True)
class Target:
    """One property to learn.

    Attributes:
        name: Column name.
        unit: Unit of the values, for tables and plots.
        kind: "regression" or "classification" (labels 0, 1, ... in the column).
        classes: Number of classes (classification only).
        transform: "identity", "log10" or "log": the network learns the transformed value, and everything that is
            reported is in the unit of the column.

    Raises:
        InputError: A setting of another type or outside its range, or a transform of classes; it is named.

    Example:
        >>> from tlcgcnn_jax import Target
        >>> Target("bulk_modulus_gpa", "GPa", transform="log10").outputs
        1
        >>> Target("crystal_system", kind="classification", classes=7).outputs
        7
    """

    name: str
    unit: str = ""
    kind: str = "regression"
    classes: int = 2
    transform: str = "identity"

    def __post_init__(self) -> None:
        settle_types(self)
        kinds = ("regression", "classification")
        _require(self.kind in kinds, f"target {self.name}: kind is {self.kind!r}: use one of {kinds}")
        _require(
            self.transform in TRANSFORMS, f"target {self.name}: transform {self.transform!r}: use one of {TRANSFORMS}"
        )
        _require(self.classes >= 2, f"target {self.name}: {self.classes} classes: there must be at least 2")
        _require(
            self.kind == "regression" or self.transform == "identity",
            f"target {self.name}: classes take no transform, {self.transform} was given",
        )

    @property
    def outputs(self) -> int:
        """Number of network outputs that this target takes."""
        return self.classes if self.kind == "classification" else 1


def target_names(targets: Any) -> tuple[str, ...]:
    """Columns of one target or of several, each a name or a `Target`.

    Example:
        >>> target_names("gap"), target_names([Target("k"), "g"])
        (('gap',), ('k', 'g'))
    """
    several = (targets,) if isinstance(targets, str | Target) else targets
    return tuple(target.name if isinstance(target, Target) else str(target) for target in several)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network (Xie & Grossman, Phys. Rev. Lett. 120, 145301 (2018)).

    Attributes:
        width: Features of an atom inside the network.
        convolutions: Gated graph convolutions.
        head_width: Hidden features after pooling.
        head_layers: Hidden layers after pooling.
        gaussian_step: Spacing and width of the Gaussians that a distance is expanded in, in Å.
        gaussian_max: Centre of the last Gaussian, in Å.
        dropout: Share of hidden features dropped while training.
        sources: Extractors side by side, each of this width and number of convolutions, before one head.
        combine: How several sources reach the head: "concatenate" their pooled features, or mix them with a learnt
            weight each ("gate").
        top_k: Sources with the largest weights that the gate lets through; 0: all.

    Raises:
        InputError: A setting of another type or outside its range; it is named.

    Example:
        >>> from tlcgcnn_jax import ModelConfig
        >>> ModelConfig(width=32, gaussian_step=0.5).gaussians
        17
    """

    width: int = 64
    convolutions: int = 4
    head_width: int = 128
    head_layers: int = 1
    gaussian_step: float = 0.2
    gaussian_max: float = 8.0
    dropout: float = 0.0
    sources: int = 1
    combine: str = "concatenate"
    top_k: int = 0

    def __post_init__(self) -> None:
        settle_types(self)
        for name in ("width", "convolutions", "head_width", "head_layers", "gaussian_step", "gaussian_max", "sources"):
            _require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}: it must be positive")
        _require(0 <= self.dropout < 1, f"dropout is {self.dropout}: it must be in [0, 1)")
        _require(self.combine in COMBINATIONS, f"combine is {self.combine!r}: use one of {COMBINATIONS}")
        _require(
            0 <= self.top_k <= self.sources, f"top_k is {self.top_k}: use 1 to {self.sources}, the number of sources"
        )

    @property
    def gaussians(self) -> int:
        """Number of Gaussians."""
        return round(self.gaussian_max / self.gaussian_step) + 1


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training crystals.
        batch_size: Crystals in a batch, on average: a batch is filled up to a fixed number of atoms.
        optimizer: "adamw" or "sgd".
        learning_rate: Highest learning rate.
        weight_decay: Decoupled weight decay, applied to trained kernels only.
        momentum: Momentum of SGD.
        schedule: "cosine" (to zero), "step" or "constant", after the warm-up.
        warmup: Share of all updates in which the rate climbs linearly to its peak.
        milestones: Shares of all updates after which "step" multiplies the rate by `decay`.
        decay: Factor of each step of "step".
        loss: "mae", "mse" or "huber" on normalised targets; classes always take the cross-entropy.
        clip: Largest norm of the gradient, or None.
        patience: Epochs without a better validation score after which training stops, or None.
        keep: Weights of the "best" epoch by validation score, or of the "last" one: where a network learns several
            properties, the score is the mean of all, and the best epoch of one may be early for another.
        seed: Seed of initial weights, batches and dropout.

    Raises:
        InputError: A setting of another type or outside its range, or `patience` with keep="last"; it is named.

    Example:
        >>> from tlcgcnn_jax import TrainConfig
        >>> TrainConfig(epochs=200, schedule="step", milestones=[0.5, 0.8]).milestones
        (0.5, 0.8)
    """

    epochs: int = 100
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    milestones: tuple[float, ...] = (0.8,)
    decay: float = 0.1
    loss: str = "mae"
    clip: float | None = None
    patience: int | None = None
    keep: str = "best"
    seed: int = 0

    def __post_init__(self) -> None:
        settle_types(self)
        _require(self.epochs > 0, f"epochs is {self.epochs}: it must be at least 1")
        _require(self.batch_size > 0, f"batch_size is {self.batch_size}: it must be at least 1")
        _require(self.optimizer in ("adamw", "sgd"), f"optimizer is {self.optimizer!r}: use 'adamw' or 'sgd'")
        rate, weight_decay = self.learning_rate, self.weight_decay
        _require(0 < rate < math.inf, f"learning_rate is {rate}: it must be positive and finite")
        _require(0 <= weight_decay < math.inf, f"weight_decay is {weight_decay}: it must be finite and not negative")
        _require(0 <= self.momentum < 1, f"momentum is {self.momentum}: it must be in [0, 1)")
        _require(0 < self.decay <= 1, f"decay is {self.decay}: it must be in (0, 1]")
        shares = all(0 < milestone < 1 for milestone in self.milestones)
        _require(shares, f"milestones are {self.milestones}: each is a share of all updates, in (0, 1)")
        _require(self.clip is None or 0 < self.clip < math.inf, f"clip is {self.clip}: positive, or None")
        _require(self.keep in ("best", "last"), f"keep is {self.keep!r}: use 'best' or 'last'")
        _require(self.keep == "best" or self.patience is None, "patience waits for a best epoch: keep='last' has none")
        _require(0 <= self.seed < 2**32, f"seed is {self.seed}: it must be in [0, 2**32)")
        schedules, losses = ("cosine", "step", "constant"), ("mae", "mse", "huber")
        _require(self.schedule in schedules, f"schedule is {self.schedule!r}: use one of {schedules}")
        _require(self.loss in losses, f"loss is {self.loss!r}: use one of {losses}")
        _require(0 <= self.warmup < 1, f"warmup is {self.warmup}: it is a share of all updates, in [0, 1)")
        _require(self.patience is None or self.patience > 0, f"patience is {self.patience}: at least 1, or None")


FINE_TUNING = TrainConfig(epochs=100, batch_size=32, learning_rate=2e-3)  # of `transfer`: hundreds of crystals


def to_dict(config: Any) -> dict[str, Any]:
    """Settings as a dictionary that JSON can hold.

    Example:
        >>> to_dict(GraphConfig(neighbours=8))["neighbours"]
        8
    """
    # A NumPy number counts as the number that it is.
    plain = lambda pairs: {name: value.item() if hasattr(value, "item") else value for name, value in pairs}
    return dataclasses.asdict(config, dict_factory=plain)


def from_dict(kind: type[T], values: dict[str, Any], where: str = "settings") -> T:
    """Settings from a dictionary; an unknown key is an error, a missing one takes its default.

    Args:
        kind: A dataclass whose values JSON can hold.
        values: What `to_dict` gave, possibly through JSON.
        where: Named in the error message.

    Raises:
        InputError: An unknown key, or a value that `kind` refuses.

    Example:
        >>> from_dict(GraphConfig, {"cutoff": 6.0}).cutoff
        6.0
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(f"{where}: {kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(fields)}")
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values]
    if missing:
        raise InputError(f"{where}: {kind.__name__} needs {', '.join(missing)}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(hints[name], value, f"{where}: {name}") for name, value in values.items()})
