"""The configuration of a study: one TOML file, read into frozen dataclasses; an unknown key is an error."""

import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from tlcgcnn_jax.baselines import BASELINES
from tlcgcnn_jax.config import TRANSFORMS, ModelConfig, Target, from_dict, settle_types
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import file_name, user_path
from tlcgcnn_jax.regressors import REGRESSORS
from tlcgcnn_jax.strategies import (
    AUTO,
    BLEND,
    DESCRIPTORS,
    ENSEMBLE,
    EnsembleStrategy,
    FeatureStrategy,
    Strategy,
    find_way,
    strategy_names,
)

RESERVED = ("auto", "all", "pool")
SHIPPED = "shipped"  # for a pool: the models that come with the package
TABLES = {"targets": 'data = "crystals.json"', "sources": 'model = "mp-elastic"', "own": 'name = "mine"'}


@dataclass(frozen=True)
class StudyTarget:
    """A property to learn, and its crystals.

    Attributes:
        data: File or folder of crystals, as for `read_structures`; a relative path starts at the study's data folder.
        column: Column of the property.
        name: For tables and pictures; default: the column.
        unit: Of the values that are reported and of all errors.
        transform: "identity", "log10" or "log". A study learns and reports the transformed value.
        learn: "identity", "log10" or "log" of the reported value is what networks, regressors and the choice of sources
            see; predictions are turned back, and all errors are of the reported value.
        labels: CSV of labels, joined by id.
        id_column: Column of the ids.
        splits: JSON file (.json.gz too) of given splits, one for each seed, in place of those that the study draws: a
            list of {"train": [ids], "val": [ids], "test": [ids]}. Where "val" is empty or absent, validation
            crystals are drawn from the training crystals by formula, `StudyConfig.val` of them for each that is left.
            `disjoint` has no say here; which share of the test formulas a source knows is reported as always.
        sizes: Training sizes of this target; default: those of the study. Of given splits: nested random parts of their
            training crystals; default: all of these, and the size that is named is that of the largest split.
        leave_out: Globs over names of sources that know this very property, which "auto" and "all" leave out; of a
            source with several sizes over NAME, which means all, and over NAME-SIZE.

    Raises:
        InputError: A setting of another type, an unknown transform, or one of a transformed value; it is named.

    Example:
        >>> from tlcgcnn_jax import StudyTarget
        >>> modulus = StudyTarget("crystals.json", "k_vrh", name="bulk modulus", unit="GPa", learn="log10")
        >>> modulus.transform, modulus.learn
        ('identity', 'log10')
    """

    data: str
    column: str
    name: str = ""
    unit: str = ""
    transform: str = "identity"
    learn: str = "identity"
    labels: str = ""
    id_column: str = ""
    splits: str = ""
    sizes: tuple[int, ...] = ()
    leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        settle_types(self)
        for key in ("transform", "learn"):
            if getattr(self, key) not in TRANSFORMS:
                raise InputError(f"target {self.column}: {key} is {getattr(self, key)!r}: use one of {TRANSFORMS}")
        if "identity" not in (self.transform, self.learn):
            raise InputError(
                f"target {self.column}: the {self.learn} of the {self.transform} would be learnt: give transform for "
                f"errors of the {self.transform}, or learn for errors of {self.column} itself"
            )


def target_name(target: StudyTarget) -> str:
    """Name of a target in tables and files."""
    if target.name or target.transform == "identity":
        return target.name or target.column
    return f"{target.transform} {target.column}"


@dataclass(frozen=True)
class StudySource:
    """A source model: one that is there, or one that the study trains at several sizes.

    Attributes:
        model: Folder of a model, or the name of a shipped one; or "" and
        data: File or folder of crystals to train on, from which all formulas of the targets are removed;
        column: Column of the property to train on;
        sizes: Training sizes, nested; () is all crystals there are.
        name: For tables and pictures; default: the model's, or the column.
        transform: "identity", "log10" or "log", of a source that the study trains.
        epochs: Passes over the training crystals, of a source that the study trains.
        least_updates: Small sources take more passes until there are so many updates.
        alone: Fine-tuned by itself too; False: only for the "auto" and "all" of the study.

    Raises:
        InputError: A setting of another type or outside its range, or an unknown transform; it is named.

    Example:
        >>> from tlcgcnn_jax import StudySource
        >>> shipped, own = StudySource("mp-elastic"), StudySource(data="all.json", column="e_form", sizes=(500, 5000))
        >>> shipped.alone, own.epochs
        (True, 50)
    """

    model: str = ""
    data: str = ""
    column: str = ""
    sizes: tuple[int, ...] = ()
    name: str = ""
    transform: str = "identity"
    epochs: int = 50
    least_updates: int = 2000
    alone: bool = True

    def __post_init__(self) -> None:
        settle_types(self)
        if self.transform not in TRANSFORMS:
            raise InputError(f"{source_name(self)}: transform is {self.transform!r}: use one of {TRANSFORMS}")
        if self.epochs < 1 or self.least_updates < 0:
            raise InputError(
                f"{source_name(self)}: epochs is {self.epochs}, least_updates is {self.least_updates}: "
                "at least 1 and 0 were expected"
            )


def source_name(source: StudySource) -> str:
    """Name of a source in tables and files."""
    return source.name or (Path(source.model).name if source.model else source.column)


@dataclass(frozen=True)
class StudyConfig:
    """A grid of source × source size × strategy × target × target size × seed.

    Attributes:
        targets: What is to be learnt.
        sources: What to transfer from.
        pool: Folder of further source models, for "auto" and "all" only, which then have the shipped ones as well; or
            "shipped": these alone.
        strategies: Names as for `tlcgcnn transfer`, or of `own` strategies; scratch comes by itself. Each is
            run from every source alone, one that takes several sources from all of them. NAME@SOURCE names the source
            instead: one of the study's, "auto" (the best by `rank_sources` on the training crystals), "all" together,
            or "pool": each one of the pool alone.
        own: Further strategies, as tables with the fields of `Strategy`.
        baselines: Regressors on descriptors of the crystals, see `baselines.BASELINES`.
        sizes: Training crystals; each set is a part of every larger one.
        seeds: Number of seeds; each draws its own test, validation and training crystals.
        test: Test crystals, a share up to 1.0 or a number.
        val: Validation crystals for each training crystal.
        disjoint: Test and validate only on crystals whose formula no source is known to have been trained on.
        learning_rates: The grid that validation chooses from, the same for scratch and transfer.
        epochs: Passes over the training crystals, all phases together; validation chooses which epoch is kept.
        least_updates: Small training sets take more passes until there are so many updates.
        batch_size: Crystals in a batch, on average.
        weight_decay: Decoupled weight decay.
        without_scratch: Train nothing from scratch, with which transfer is compared otherwise.
        members: Networks of each run, which make an ensemble with a standard deviation.
        folds: Every run is made so many times (3 or more), each time validated on another part of training and
            validation crystals together (of those that may validate, see `disjoint`), as "auto" is in `tlcgcnn
            transfer`: test crystals are predicted by the mean of the networks, or a regressor that was fitted to all,
            validation errors are those of all parts. 0: once, as the split says.
        on_error: "skip" goes on where most crystals of a target cannot be used or have no label, which is refused
            otherwise; fewer are left out in any case, and listed below `datasets`.
        model: Sizes of the network that is trained from scratch.
        title: Of the report.

    Raises:
        InputError: A setting of another type or outside its range, two that exclude each other, a name that is reserved
            or given twice, or a strategy, regressor, baseline or source that there is not; the message names it.

    Example:
        >>> from tlcgcnn_jax import StudyConfig, StudyTarget
        >>> study = StudyConfig((StudyTarget("crystals.json", "gap", unit="eV"),), sizes=(50, 100), seeds=3)
        >>> study.strategies
        ('full', 'frozen', 'head_then_full', 'features:svr')
    """

    targets: tuple[StudyTarget, ...]
    sources: tuple[StudySource, ...] = (StudySource("mp-formation-energy"),)
    pool: str = ""
    strategies: tuple[str, ...] = ("full", "frozen", "head_then_full", "features:svr")
    own: tuple[Strategy, ...] = ()
    baselines: tuple[str, ...] = ("median", "ridge", "svr", "forest")
    sizes: tuple[int, ...] = (100, 300, 1000)
    seeds: int = 5
    test: float = 0.2
    val: float = 0.25
    disjoint: bool = True
    learning_rates: tuple[float, ...] = (2e-3, 6e-3)
    epochs: int = 60
    least_updates: int = 600
    batch_size: int = 32
    weight_decay: float = 1e-4
    without_scratch: bool = False
    members: int = 1
    folds: int = 0
    on_error: str = ""
    model: ModelConfig = ModelConfig()
    title: str = "Transfer study"

    def __post_init__(self) -> None:
        settle_types(self)

        def require(condition: bool, message: str) -> None:
            if not condition:
                raise InputError(message)

        require(bool(self.targets), "a study needs at least one [[targets]] table")
        require(self.seeds >= 1, f"seeds is {self.seeds}: at least 1 (5 or more tell something)")
        require(bool(self.sizes) and min(self.sizes) >= 5, f"sizes are {self.sizes}: at least 5 training crystals each")
        require(self.test > 0, f"test is {self.test}: a share up to 1.0, or a number of crystals")
        require(self.val > 0, f"val is {self.val}: a share of the training crystals was expected")
        require(bool(self.learning_rates), "learning_rates is empty: give at least one")
        require(min(self.learning_rates, default=0) > 0, f"learning_rates are {self.learning_rates}: all above 0")
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}: at least 1")
        require(
            not (self.without_scratch and "scratch" in self.strategies),
            "strategies name scratch, without_scratch forbids it",
        )
        require(self.on_error in ("", "skip"), f'on_error is {self.on_error!r}: "skip", or leave it out')
        require(self.epochs >= 1 and self.members >= 1, "epochs and members must be at least 1")
        require(self.folds == 0 or self.folds >= 3, f"folds is {self.folds}: 3 or more, or 0 for none")
        require(not self.folds or self.members == 1, "every fold has a network of its own: leave members at 1")
        names = [target_name(target) for target in self.targets]
        apart = len({*map(file_name, names)}) == len(names)
        require(apart, f"targets are named {', '.join(names)}: give each a name of its own, also as a file's")
        of_files: dict[str, set[str]] = {}
        for name in map(source_name, self.sources):  # one of several sizes is one name
            of_files.setdefault(file_name(name), set()).add(name)
        alike = next((found for found in of_files.values() if len(found) > 1), set[str]())
        require(
            not alike, f"sources are named {', '.join(sorted(alike))}: give each a name of its own, also as a file's"
        )
        taken = [own.name for own in self.own if own.name in {AUTO, *strategy_names(), *BASELINES}]
        require(not taken, f"own strategy {', '.join(taken)}: there is one of this name already; give another")
        strange = [name for name in self.baselines if name not in BASELINES]
        require(not strange, f"no baseline {', '.join(strange)}; there are: {', '.join(BASELINES)}")
        for source in self.sources:
            told = source_name(source) or "a source"
            require(bool(source.model) != bool(source.data), f"{told}: give either model, or data and column")
            require(not source.data or bool(source.column), f"{told}: data without a column to train on")
            require(told not in RESERVED, f"a source is named {told}, which stands for a choice of sources")
        numbers: Counter[str] = Counter()
        for source in self.sources:
            numbers[source_name(source)] += max(1, len(source.sizes))
        of_several_sizes = {name for name, number in numbers.items() if number > 1}
        for name in self.strategies:
            way = self.strategy(name)
            source = "" if isinstance(way, EnsembleStrategy) else name.partition("@")[2]
            regressor = way.regressor if isinstance(way, FeatureStrategy) else "ridge"
            require(regressor in REGRESSORS, f"{name}: no such regressor; there are: {', '.join(REGRESSORS)}")
            alone = name.removeprefix(DESCRIPTORS)
            require(alone == name, f"{name} asks no source: add {alone!r} to the baselines, which are that")
            known = {*RESERVED, *map(source_name, self.sources)}
            require(not source or source in known, f"{name}: no source {source}; there are {', '.join(sorted(known))}")
            if isinstance(way, Strategy):
                one, plain = way.sources == 1, name.partition("@")[0]
                require(not (one and source == "all"), f"{name} takes one source: name it, or write {plain}@auto")
                require(one or source in ("", "all"), f"{name} joins several sources: write {plain}")
            parts = way.parts if isinstance(way, EnsembleStrategy) else ()
            unclear = {part.partition("@")[2] for part in parts} & of_several_sizes
            require(not unclear, f"{name}: {', '.join(unclear)} has several sizes: give each a name of its own")
            scratch = set() if self.without_scratch else {"scratch"}
            there = {*scratch, *self.baselines, *self.strategies}
            if name != AUTO:  # whose parts are not the user's choice, so that they are named as they are to be written
                bare = [strategy for strategy in self.strategies if "@" not in strategy]
                there |= {strategy.partition("@")[0] for strategy in self.strategies}
                there |= {f"{strategy}@{source_name(source)}" for strategy in bare for source in self.sources}
            absent = [part for part in parts if part not in there or part.endswith("@pool")]  # which are many
            require(not absent, f"{name}: {', '.join(absent)} is not among the study's strategies and baselines")

    def strategy(self, name: str) -> Strategy | FeatureStrategy | EnsembleStrategy:
        """A strategy by name, of the study's own first; the parts of "auto" are runs of the study."""
        if name == AUTO:
            way = find_way(AUTO)
            assert isinstance(way, EnsembleStrategy)
            return replace(way, parts=tuple(map(_run_of, way.parts)))
        bare = name if name.startswith((ENSEMBLE, BLEND)) else name.partition("@")[0]
        return next((own for own in self.own if own.name == bare), None) or find_way(bare)


def _run_of(part: str) -> str:
    """A part of "auto" as a study names it: a baseline, features of all sources, or the best source fine-tuned."""
    if part.startswith(DESCRIPTORS):
        return part.removeprefix(DESCRIPTORS)
    return f"{part}@all" if isinstance(find_way(part), FeatureStrategy) else f"{part}@auto"


def learnt_target(target: StudyTarget) -> Target:
    """A target as it is learnt: in the unit of the study's errors, with the transform that the learning sees."""
    return Target(target_name(target), target.unit, transform=target.learn)


def training_sizes(study: StudyConfig, target: StudyTarget) -> tuple[int, ...]:
    """Training sizes of a target; of given splits without sizes only once `Desk` has looked into them."""
    return target.sizes or study.sizes


def read_study(path: str | Path) -> StudyConfig:
    """A study's configuration from a TOML file.

    Args:
        path: The file; its keys are the fields of `StudyConfig`, with [[targets]], [[sources]] and [[own]] as tables.

    Raises:
        InputError: Not TOML, an unknown key, a value that makes no sense; the file and the key are named.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from tlcgcnn_jax import read_study
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "study.toml")
        ...     _ = path.write_text('targets = [{data = "crystals.json", column = "gap"}]')
        ...     read_study(path).sizes
        (100, 300, 1000)
    """
    path = user_path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML: {error}") from error
    for name, line in TABLES.items():
        given = values.get(name, [])
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise InputError(f"{path}: {name} is {given!r}: a table [[{name}]] each was expected, with {line} in it")
    try:
        return from_dict(StudyConfig, values, str(path))
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error


def below(study: StudyConfig, folder: Path) -> StudyConfig:
    """The same study with its relative paths as they are found from here, below `folder`.

    Names of what is shipped stay as they are. A study keeps the paths of its file, so that it says the same on every
    machine.

    Raises:
        InputError: There is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of data (--data)")

    def rooted(name: str) -> str:
        if name == SHIPPED:
            return name
        return str(folder / name) if name and not Path(name).is_absolute() and (folder / name).exists() else name

    def below_alone(name: str) -> str:
        """Data of the same name that happen to lie in the working directory are not meant."""
        return str(folder / name) if name and Path(name).exists() else rooted(name)

    targets = tuple(
        replace(t, data=below_alone(t.data), labels=below_alone(t.labels), splits=below_alone(t.splits))
        for t in study.targets
    )
    sources = tuple(replace(s, model=rooted(s.model), data=rooted(s.data)) for s in study.sources)
    return replace(study, targets=targets, sources=sources, pool=rooted(study.pool))
