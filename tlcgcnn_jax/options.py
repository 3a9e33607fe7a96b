"""Groups of command-line options, and the settings and data that they stand for."""

import argparse
import dataclasses
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, TrainConfig
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import user_path

TEXTBOOK = "textbook"
GRAPH = ("cutoff", "neighbours", "ties")
SKIP = "skip, unless these are most"
PARTS = {"train": 0.8, "val": 0.1, "test": 0.1}


def data_argument(parser: argparse.ArgumentParser) -> None:
    """Crystals with labels, for `crystals` to read with the options of `reading_options`."""
    parser.add_argument("data", metavar="DATASET", help="packed dataset; or any input, with --target; or `textbook`")


def reading_options(parser: argparse.ArgumentParser, on_error: str = SKIP) -> None:
    """Which columns of which sheet, and what to do with bad crystals (as the help tells the default)."""
    parser.add_argument(
        "--target", action="append", default=[], metavar="COLUMN", help="property; may be given several times"
    )
    parser.add_argument("--labels", type=a_path, metavar="SHEET.csv", help="spreadsheet with ids and properties")
    id_column_option(parser)
    on_error_option(parser, on_error)


def id_column_option(parser: argparse.ArgumentParser) -> None:
    """What crystals are called by."""
    parser.add_argument("--id-column", metavar="COLUMN", help="column of the ids (default: id, material_id, name, …)")


def on_error_option(parser: argparse.ArgumentParser, default: str = SKIP) -> None:
    """What to do with bad crystals."""
    parser.add_argument(
        "--on-error", choices=("skip", "raise"),
        help=f"leave crystals that cannot be used out and list them, or stop at the first (default: {default})",
    )  # fmt: skip


def graph_options(parser: argparse.ArgumentParser) -> None:
    """`GraphConfig`; what is not asked for is no attribute of the options, so that a packed dataset decides."""
    _settings_options(parser, "graph", GraphConfig(), GRAPH, absent=True)


def check_graph(options: argparse.Namespace, parser: argparse.ArgumentParser, prepared: GraphConfig) -> None:
    """Graph settings other than those that a dataset was packed with are bad usage."""
    asked = {name: value for name, value in vars(options).items() if name in GRAPH}
    if dataclasses.replace(prepared, **asked) != prepared:
        told = ", ".join(f"{name} {getattr(prepared, name)}" for name in GRAPH)
        parser.error(f"{options.data} is prepared with {told}: --cutoff, --neighbours, --ties go with prepare")


def model_options(parser: argparse.ArgumentParser) -> None:
    """`ModelConfig`."""
    names = ("convolutions", "width", "head_width", "head_layers", "dropout")
    _settings_options(parser, "network", ModelConfig(), names)


def _settings_options(
    parser: argparse.ArgumentParser, title: str, default: Any, names: Iterable[str], absent: bool = False
) -> None:
    """Some settings of a dataclass as options, each with its default (or absent) and what the docstring says of it."""
    group, text = parser.add_argument_group(title), inspect.getdoc(type(default)) or ""
    told = dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", text.partition("Attributes:")[2], re.MULTILINE))
    for name in names:
        value = getattr(default, name)
        kind: Any = {"clip": float, "patience": int, "milestones": shares}.get(name, type(value))
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        meaning = " ".join(told.get(name, "").split()).rstrip(".").removesuffix(", or None").replace("%", "%%")
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS if absent else value,
            help=f"{meaning} (default: {shown})", metavar="X,X" if isinstance(value, tuple) else None,
        )  # fmt: skip


def target_options(parser: argparse.ArgumentParser) -> None:
    """What is to be learnt of the columns."""
    group = parser.add_argument_group("targets")
    group.add_argument("--unit", action="append", default=[], help="of each --target, in their order")
    group.add_argument(
        "--task", choices=("regression", "classification"), default="regression",
        help="a number, or a class 0, 1, … (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--classes", type=int, help="number of classes (default: largest label + 1)")
    group.add_argument(
        "--transform", choices=("identity", "log10", "log"), default="identity",
        help="learn the logarithm of the property; errors are reported in its unit all the same",
    )  # fmt: skip


def split_options(parser: argparse.ArgumentParser) -> None:
    """Which crystals train, validate and test."""
    group = parser.add_argument_group("split")
    parts = '{"train": [ids], "val": [ids], "test": [ids]}; nothing but train is learnt from'
    group.add_argument("--split", type=a_path, metavar="FILE.json", help=parts)
    for part, share in PARTS.items():
        default = "what is left" if part == "train" else f"{share}, or what is left"
        group.add_argument(f"--{part}-ratio", type=float, help=f"share (default: {default})")
        group.add_argument(f"--{part}-size", type=int, help="number of crystals, instead of a share")


def run_options(parser: argparse.ArgumentParser, default: TrainConfig, seeds: int) -> None:
    """Everything that `train` and `transfer` share; the defaults of the training settings and of --seeds differ."""
    data_argument(parser)
    parser.add_argument("--out", type=a_path, required=True, metavar="RUN", help="for model, errors and pictures")
    parser.add_argument(
        "--seeds", type=count, default=seeds, help="networks; more than one make an ensemble (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in RUN")
    reading_options(parser)
    target_options(parser)
    split_options(parser)
    _settings_options(parser, "training", default, [field.name for field in dataclasses.fields(default)])


def checked(parser: argparse.ArgumentParser, kind: type, options: argparse.Namespace) -> Any:
    """A settings object from the options; what it refuses is bad usage."""
    given = vars(options)
    try:
        return kind(**{f.name: given[f.name] for f in dataclasses.fields(kind) if f.name in given})
    except InputError as error:
        parser.error(str(error))


def check_targets(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """A column that is named twice is bad usage."""
    for name, number in Counter(options.target).items():
        if number > 1:
            parser.error(f"--target {name} is given {number} times: once is enough")


def crystals(options: argparse.Namespace, parser: argparse.ArgumentParser, graphs: Iterable[GraphConfig]) -> Any:
    """The `GraphSets` of the given data: of a packed dataset as it is, of anything else with these graph settings."""
    from tlcgcnn_jax.dataset import find_dataset
    from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs

    check_targets(options, parser)
    dataset = find_dataset(options.data)
    if dataset is not None:
        if not dataset.target_names:
            raise InputError(f"{options.data}: was packed without labels: prepare it again, with --target COLUMN")
        if options.labels or options.id_column:
            parser.error(f"{options.data} is packed with its labels: --labels and --id-column go with prepare")
        check_whole(options, dataset, options.data)
        return GraphSets((dataset,), tuple(dataset.skipped))
    if not options.target:
        parser.error(f"{options.data} is not a packed dataset: name at least one --target COLUMN")
    packed = pack_graphs(
        named_input(options.data, options.target), graphs, targets=tuple(options.target), labels=options.labels,
        id_column=options.id_column, on_error=options.on_error or "skip", progress=is_watched(),
    )  # fmt: skip
    check_few_left_out(options, packed)
    return packed


def check_whole(options: argparse.Namespace, dataset: Any, name: str) -> None:
    """`InputError` where a dataset was packed without crystals of which none may be missing."""
    if dataset.skipped and options.on_error == "raise":
        raise InputError(f"{name}: was packed without crystals that could not be used, {len(dataset.skipped)} of them")


def check_few_left_out(options: argparse.Namespace, packed: Any) -> None:
    """`InputError` where most crystals are left out and nobody has asked for that: it is a wrong column or folder."""
    from tlcgcnn_jax.labels import bad_majority

    bad, used = bad_majority(packed.skipped, len(packed)), len(packed)
    if options.on_error is None and bad:
        raise InputError(
            f"{len(bad):,} of {len(bad) + used:,} crystals cannot be used; the first: {bad[0].reason}; "
            f"--on-error skip goes on with the other {used:,}"
        )


def run_data(
    options: argparse.Namespace, parser: argparse.ArgumentParser, graphs: Iterable[GraphConfig]
) -> tuple[Any, Any, Any]:
    """Crystals (packed on the way if need be), targets and split."""
    packed = crystals(options, parser, graphs)
    if packed.skipped:  # before hours of training
        left_out, first = len(packed.skipped), packed.skipped[0].reason
        rows = " crystals or rows" if options.labels else ""
        print(f"{len(packed):,} crystals are used, {left_out:,}{rows} left out; the first: {first}", file=sys.stderr)
    packed, targets = labelled(options, parser, packed)
    return packed, targets, chosen_split(options, parser, packed.datasets[0], packed.skipped)


def labelled(options: argparse.Namespace, parser: argparse.ArgumentParser, packed: Any) -> tuple[Any, list[Target]]:
    """The crystals with the columns that are asked for alone, without labels that cannot be learnt, and the targets."""
    from tlcgcnn_jax.graph_sets import GraphSets
    from tlcgcnn_jax.losses import without_nonpositive

    names = tuple(options.target) or packed.datasets[0].target_names
    packed = GraphSets(tuple(dataset.with_targets(names) for dataset in packed.datasets), packed.skipped)
    first = packed.datasets[0]
    targets = column_targets(options, parser, first)
    if options.on_error != "raise":
        most = options.on_error == "skip"
        packed = packed.with_labels(without_nonpositive(first.targets, targets, first.ids, most))
    return packed, targets


def column_targets(options: argparse.Namespace, parser: argparse.ArgumentParser, dataset: Any) -> list[Target]:
    """What the columns of a dataset mean."""
    names = dataset.target_names
    if len(options.unit) not in (0, len(names)):
        parser.error(f"{len(options.unit)} --unit for {len(names)} targets: give one for each, or none")
    targets = []
    for column, name in enumerate(names):
        classes = Target.classes
        if options.task == "classification":
            labels = dataset.targets[:, column]
            largest = max((float(label) for label in labels if label == label), default=1.0)
            classes = max(2, int(largest) + 1) if options.classes is None else options.classes
        unit = options.unit[column] if options.unit else ""
        try:
            targets.append(Target(name, unit, options.task, classes, options.transform))
        except InputError as error:
            parser.error(str(error))
    return targets


def chosen_split(
    options: argparse.Namespace, parser: argparse.ArgumentParser, dataset: Any, skipped: Iterable[Any] = ()
) -> Any:
    """The split of a file, which may name crystals that were skipped, or a random one of those with a label."""
    from tlcgcnn_jax.splits import random_split, read_split

    labelled = dataset.labelled
    if not len(labelled):
        raise InputError(f"not one of {len(dataset)} crystals has a label of {' or '.join(dataset.target_names)}")
    sizes = part_sizes(options, parser, len(labelled))
    if options.split is not None:
        return read_split(options.split, dataset.ids, [one.id for one in skipped])
    return random_split(len(labelled), options.seed, sizes["train"], sizes["val"], sizes["test"]).of(labelled)


def part_sizes(options: argparse.Namespace, parser: argparse.ArgumentParser, n: int) -> dict[str, float | int]:
    """Share or number of each part of a split.

    What is not asked for validates and tests by its default share, or by its part of what is left where that does not
    fit, and the rest trains.
    """
    given: dict[str, float | int] = {}
    for part in PARTS:
        ratio, size = getattr(options, f"{part}_ratio"), getattr(options, f"{part}_size")
        if ratio is not None and size is not None:
            parser.error(f"--{part}-ratio and --{part}-size: give one of them")
        if ratio is not None and not 0 <= ratio <= 1:
            parser.error(f"--{part}-ratio is {ratio}: a share from 0 to 1 was expected")
        if size is not None and size < 0:
            parser.error(f"--{part}-size is {size}: it must not be negative")
        value = ratio if size is None else size
        if value is not None:
            given[part] = value
    if given and options.split is not None:
        parser.error("--split names every crystal's part: ratios and sizes do not go with it")
    taken = sum(value * n if isinstance(value, float) else value for value in given.values())
    free = {part: share for part, share in PARTS.items() if part not in given}
    wanted, left = sum(free.values()), max(0.0, n - taken) / n
    shrink = min(1.0, left / wanted) if free else 1.0
    parts = {part: given.get(part, PARTS[part] * shrink) for part in PARTS}
    if "train" in free:
        parts["train"] += max(0.0, left - wanted)
    return parts


def check_free_file(path: Path, header: str, table: str) -> None:
    """Raise `InputError` where a table cannot be written, or would replace another file, before any work is done.

    Args:
        path: Of the table.
        header: How tables of its kind begin: an older one is replaced, and nothing else.
        table: What it is, for people.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file, for example {path / 'predictions.csv'}")
        was_there = path.exists()
        if path.is_file() and path.stat().st_size:
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                begins = file.read(2 * len(header)).replace('"', "")
            if not begins.startswith(header):
                raise InputError(f"{path}: is there, and is not {table}: choose another file, or remove it")
        with path.open("a"):
            pass
        if not was_there:
            path.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; choose another file") from error


def named_input(name: str, targets: Sequence[str]) -> Any:
    """What to read: a path, or the built-in crystals."""
    if name != TEXTBOOK or Path(name).exists():
        return name
    from tlcgcnn_jax.textbook import textbook_records

    return textbook_records(tuple(targets))


def a_path(text: str) -> Path:
    """A path as `user_path` has it."""
    try:
        return user_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}: a whole number from 1 on was expected")
    return int(text)


def shares(text: str) -> tuple[float, ...]:
    """'0.5,0.8' as numbers."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it is {text!r}: numbers with commas between were expected") from error


def multiplier(text: str) -> tuple[str, float]:
    """'conv_*=0.1' as a pattern and its learning-rate multiplier."""
    pattern, _, rate = text.rpartition("=")
    try:
        value = float(rate)
    except ValueError:
        value = -1.0
    if not pattern or not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: PATTERN=X expected, with X 0 (frozen) or positive")
    return pattern, value


def is_watched() -> bool:
    """Bars are for people: not for files and pipes."""
    return sys.stderr.isatty()
