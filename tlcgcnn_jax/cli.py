"""The command line: it parses, calls, and turns errors into one line and an exit status."""

import argparse
import csv
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlcgcnn_jax.config import FINE_TUNING, GraphConfig, ModelConfig, Target, TrainConfig
from tlcgcnn_jax.errors import InputError, Skipped

TEXTBOOK = "textbook"
BAD_INPUT, INTERRUPTED = 1, 130  # argparse gives 2 on bad usage
PARTS = {"train": 0.8, "val": 0.1, "test": 0.1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 1 on bad input, 2 on bad usage, 130 when interrupted."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(format="tlcgcnn: %(message)s", level=logging.WARNING)
    try:
        options.run(options, parser)
    except InputError as error:
        print(f"tlcgcnn: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on" if getattr(options, "resume", None) is not None else ""
        print(f"\ntlcgcnn: interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # a full disk, a folder without permission
        where = f"{error.filename}: " if error.filename else ""
        print(f"tlcgcnn: error: {where}{error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def make_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="tlcgcnn",
        description="Transfer learning for crystal properties with CGCNN.",
        epilog="Start with: tlcgcnn demo",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    demo = _verb(verbs, "demo", run_demo, "from scratch against transferred on 120 textbook crystals, offline")
    demo.add_argument("--out", type=Path, default=Path("tlcgcnn-demo"), help="results (default: %(default)s)")
    demo.add_argument("--repeats", type=int, default=3, help="times the folds are drawn anew (default: %(default)s)")

    prepare = _verb(verbs, "prepare", run_prepare, "pack crystals and labels once, for many runs")
    prepare.add_argument("input", metavar="INPUT", help="folder or file of crystals, or `textbook`")
    prepare.add_argument("--out", type=Path, required=True, metavar="DATASET", help="folder for the packed dataset")
    _reading_options(prepare)
    _graph_options(prepare)

    train = _verb(verbs, "train", run_train, "train from scratch")
    _run_options(train, TrainConfig())
    _graph_options(train)
    _model_options(train)

    transfer = _verb(verbs, "transfer", run_transfer, "train on a target, starting from a source model")
    transfer.add_argument("--source", required=True, metavar="MODEL", help="folder of a model, or a shipped name")
    transfer.add_argument(
        "--strategy", default="full", metavar="NAME", help="full, frozen, head or scratch (default: full)"
    )
    transfer.add_argument(
        "--rate", action="append", default=[], metavar="PATTERN=X", type=_multiplier,
        help="learning-rate multiplier of some parameters, e.g. 'conv_*=0.1'; may be given several times",
    )  # fmt: skip
    _run_options(transfer, FINE_TUNING)

    predict = _verb(verbs, "predict", run_predict, "predict the property of crystals")
    predict.add_argument("model", metavar="MODEL", help="folder of a model or run, or a shipped name")
    predict.add_argument("input", metavar="INPUT", help="folder or file of crystals, a packed dataset, or `textbook`")
    predict.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    _on_error(predict)

    _verb(verbs, "models", run_models, "list the shipped source models")

    importer = _verb(verbs, "import-cgcnn", run_import, "read a checkpoint of the original PyTorch CGCNN")
    importer.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help=".pth.tar (needs PyTorch), or .npz with .json"
    )
    importer.add_argument("--out", type=Path, required=True, metavar="MODEL", help="folder for the model")
    importer.add_argument("--target", help="name of the property (default: the file's name)")
    importer.add_argument("--unit", default="", help="unit of the property")
    importer.add_argument(
        "--transform", default="identity", choices=("identity", "log10", "log"), help="what it was trained on"
    )

    report = _verb(verbs, "report", run_report, "one HTML page on a finished run or on the demo")
    report.add_argument("run_folder", metavar="RUN", type=Path)
    report.add_argument("--out", type=Path, metavar="FILE.html")
    return parser


def run_demo(options: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    """`tlcgcnn demo`."""
    from tlcgcnn_jax.demo import demo

    demo(options.out, repeats=options.repeats)


def run_prepare(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`tlcgcnn prepare`."""
    from tlcgcnn_jax.dataset import build_dataset

    graph = _checked(parser, GraphConfig, options)
    if not options.target:
        parser.error("prepare needs at least one --target COLUMN")
    dataset = build_dataset(
        _source(options.input, options.target), targets=tuple(options.target), graph=graph, labels=options.labels,
        id_column=options.id_column, out=options.out, on_error=options.on_error, progress=_is_watched(),
    )  # fmt: skip
    _tell_skipped(dataset.skipped, options.out / "skipped.csv")
    count = f"{len(dataset):,} crystals, {int(dataset.n_atom.sum()):,} atoms"
    print(f"{options.out}: {count}, targets {', '.join(options.target)}")


def run_train(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`tlcgcnn train`."""
    from tlcgcnn_jax.run import fit

    config, model = _checked(parser, TrainConfig, options), _checked(parser, ModelConfig, options)
    graph = _checked(parser, GraphConfig, options)
    dataset, targets, split = _data(options, parser, graph)
    if graph not in (GraphConfig(), dataset.graph):  # what was asked for is not what was prepared
        parser.error(f"{options.data} is prepared with {dataset.graph}: --cutoff, --neighbours, --ties go with prepare")
    result = fit(
        dataset, targets, split=split, model=model, config=config, seeds=options.seeds, out=options.out,
        progress=_is_watched(), resume=options.resume,
    )  # fmt: skip
    _tell_result(result, dataset.skipped)


def run_transfer(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`tlcgcnn transfer`."""
    from tlcgcnn_jax.run import transfer
    from tlcgcnn_jax.strategies import STRATEGIES
    from tlcgcnn_jax.zoo import load_model

    if options.strategy not in STRATEGIES:
        parser.error(f"no strategy {options.strategy!r}; there are: {', '.join(STRATEGIES)}")
    config = _checked(parser, TrainConfig, options)
    source = load_model(options.source)
    dataset, targets, split = _data(options, parser, source.graph)
    result = transfer(
        dataset, source, options.strategy, targets, split=split, config=config, multipliers=tuple(options.rate),
        seeds=options.seeds, out=options.out, progress=_is_watched(), resume=options.resume, source_name=options.source,
        on_merge=lambda account: print(f"{options.strategy} from {options.source}:\n{account}", flush=True),
    )  # fmt: skip
    _tell_result(result, dataset.skipped)


def run_predict(options: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    """`tlcgcnn predict`."""
    from tlcgcnn_jax.evaluate import predict
    from tlcgcnn_jax.zoo import load_model

    model = load_model(options.model)
    _free_file(options.out)
    inputs = _packed(options.input) or _source(options.input, ())
    predictions = predict(model, inputs, on_error=options.on_error, progress=_is_watched())
    predictions.write(options.out)
    _tell_skipped(predictions.skipped, options.out.with_suffix(".skipped.csv"))
    names = ", ".join(f"{t.name} ({t.unit})" if t.unit else t.name for t in model.targets)
    print(f"{options.out}: {names} of {len(predictions.ids):,} crystals")


def run_models(_: argparse.Namespace, __: argparse.ArgumentParser) -> None:
    """`tlcgcnn models`."""
    from tlcgcnn_jax.zoo import load_model, shipped

    print(f"{'name':<24} {'property':<32} {'unit':<8} {'crystals':>8}  test error")
    for name in shipped():
        model = load_model(name)
        for target in model.targets:
            test = model.metrics.get("targets", {}).get(target.name, model.metrics).get("test", {})
            error = f"MAE {test['mae']:.4f}" if "mae" in test else f"ROC-AUC {test.get('roc_auc', float('nan')):.3f}"
            crystals = model.notes.get("crystals trained on", 0)
            print(f"{name:<24} {target.name:<32} {target.unit:<8} {crystals:>8,}  {error}")


def run_import(options: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    """`tlcgcnn import-cgcnn`."""
    from tlcgcnn_jax.cgcnn_import import import_cgcnn

    model = import_cgcnn(options.checkpoint, name=options.target, unit=options.unit, transform=options.transform)
    model.save(options.out)
    print(f"{options.out}: {model.targets[0].kind}, {model.model.convolutions} convolutions, {model.targets[0].name}")


def run_report(options: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    """`tlcgcnn report`."""
    from tlcgcnn_jax.report import run_report as write_report

    print(write_report(options.run_folder, options.out))


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _reading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target", action="append", default=[], metavar="COLUMN", help="property; may be given several times"
    )
    parser.add_argument("--labels", type=Path, metavar="SHEET.csv", help="spreadsheet with ids and properties")
    parser.add_argument("--id-column", metavar="COLUMN", help="column of the ids (default: id, material_id, name, …)")
    _on_error(parser)


def _on_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise",
        help="stop at a crystal that cannot be used, or leave it out and list it (default: %(default)s)",
    )  # fmt: skip


def _graph_options(parser: argparse.ArgumentParser) -> None:
    group, default = parser.add_argument_group("graph"), GraphConfig()
    group.add_argument("--cutoff", type=float, default=default.cutoff, help="Å (default: %(default)s)")
    group.add_argument("--neighbours", type=int, default=default.neighbours, help="of each atom (default: %(default)s)")
    group.add_argument("--ties", choices=("shell", "reference"), default=default.ties, help="(default: %(default)s)")


def _model_options(parser: argparse.ArgumentParser) -> None:
    group, default = parser.add_argument_group("network"), ModelConfig()
    group.add_argument("--convolutions", type=int, default=default.convolutions, help="(default: %(default)s)")
    group.add_argument("--width", type=int, default=default.width, help="features of an atom (default: %(default)s)")
    group.add_argument("--head-width", type=int, default=default.head_width, help="(default: %(default)s)")
    group.add_argument("--head-layers", type=int, default=default.head_layers, help="(default: %(default)s)")
    group.add_argument("--dropout", type=float, default=default.dropout, help="(default: %(default)s)")


def _run_options(parser: argparse.ArgumentParser, default: TrainConfig) -> None:
    parser.add_argument("data", metavar="DATASET", help="packed dataset; or any input, with --target; or `textbook`")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for model, errors and pictures")
    parser.add_argument("--seeds", type=int, default=1, help="networks; more than one make an ensemble (default: 1)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in RUN")
    _reading_options(parser)

    group = parser.add_argument_group("targets")
    group.add_argument("--unit", action="append", default=[], help="of each --target, in their order")
    group.add_argument("--task", choices=("regression", "classification"), default="regression")
    group.add_argument("--classes", type=int, help="number of classes (default: largest label + 1)")
    group.add_argument(
        "--transform", choices=("identity", "log10", "log"), default="identity",
        help="learn the logarithm of the property; errors are reported in its unit all the same",
    )  # fmt: skip

    group = parser.add_argument_group("split")
    group.add_argument("--split", type=Path, metavar="FILE.json", help='{"train": [ids], "val": [ids], "test": [ids]}')
    for part, share in PARTS.items():
        group.add_argument(f"--{part}-ratio", type=float, help=f"share (default: {share}, or what is left)")
        group.add_argument(f"--{part}-size", type=int, help="number of crystals, instead of a share")

    group = parser.add_argument_group("training")
    choices = {
        "optimizer": ("adamw", "sgd"), "schedule": ("cosine", "step", "constant"), "loss": ("mae", "mse", "huber"),
    }  # fmt: skip
    for field in dataclasses.fields(TrainConfig):
        value = getattr(default, field.name)
        kind: Any = {"clip": float, "patience": int, "milestones": float}.get(field.name, type(value))
        many: Any = {"nargs": "+"} if field.name == "milestones" else {}
        group.add_argument(
            f"--{field.name.replace('_', '-')}", type=kind, default=value, choices=choices.get(field.name),
            help=f"(default: {value})", **many,
        )  # fmt: skip


def _checked(parser: argparse.ArgumentParser, kind: type, options: argparse.Namespace) -> Any:
    """A settings object from the options; what it refuses is bad usage."""
    given = vars(options)
    values = {f.name: given[f.name] for f in dataclasses.fields(kind) if f.name in given}
    if isinstance(values.get("milestones"), list):
        values["milestones"] = tuple(values["milestones"])
    try:
        return kind(**values)
    except InputError as error:
        parser.error(str(error))


def _data(options: argparse.Namespace, parser: argparse.ArgumentParser, graph: GraphConfig) -> tuple[Any, Any, Any]:
    """Dataset (packed on the way if need be), targets and split."""
    from tlcgcnn_jax.dataset import build_dataset
    from tlcgcnn_jax.splits import random_split, read_split

    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}: at least 1")
    dataset = _packed(options.data)
    if dataset is not None and (options.labels or options.id_column):
        parser.error(f"{options.data} is packed with its labels: --labels and --id-column go with prepare")
    if dataset is None:
        if not options.target:
            parser.error(f"{options.data} is not a packed dataset: name at least one --target COLUMN")
        dataset = build_dataset(
            _source(options.data, options.target), targets=tuple(options.target), graph=graph, labels=options.labels,
            id_column=options.id_column, on_error=options.on_error, progress=_is_watched(),
        )  # fmt: skip
    names = tuple(options.target) or dataset.target_names
    dataset = dataset.with_targets(names)
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
    sizes = _sizes(options, parser, len(dataset))
    if options.split is not None:
        return dataset, targets, read_split(options.split, dataset.ids)
    return dataset, targets, random_split(len(dataset), options.seed, sizes["train"], sizes["val"], sizes["test"])


def _sizes(options: argparse.Namespace, parser: argparse.ArgumentParser, n: int) -> dict[str, float | int]:
    """Share or number of each part; parts that were not asked for take what is left where their defaults do not fit."""
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
    return {part: given.get(part, PARTS[part] * shrink) for part in PARTS}


def _free_file(path: Path) -> None:
    """Raise `InputError` where a file cannot be written, before any work is done for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file, for example {path / 'predictions.csv'}")
        was_there = path.exists()
        with path.open("a"):
            pass
        if not was_there:
            path.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; choose another file") from error


def _packed(path: str) -> Any:
    """The dataset in a folder that `prepare` made, or None for any other input."""
    from tlcgcnn_jax.array_folder import MANIFEST
    from tlcgcnn_jax.dataset import load_dataset

    traces = (MANIFEST, "senders.npy")  # a dataset that lost a file shall be named as damaged
    return load_dataset(path) if any((Path(path) / name).is_file() for name in traces) else None


def _source(name: str, targets: Sequence[str]) -> Any:
    """What to read: a path, or the built-in crystals."""
    if name != TEXTBOOK or Path(name).exists():
        return name
    from tlcgcnn_jax.textbook import textbook_records

    return textbook_records(tuple(targets))


def _tell_skipped(skipped: Sequence[Skipped], path: Path) -> None:
    """List the crystals that were left out, in a file and in a line."""
    if not skipped:
        return
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "where", "reason"])
        writer.writerows([s.id, s.where, s.reason] for s in skipped)
    print(f"{len(skipped)} crystals left out, listed in {path}; the first: {skipped[0].reason}", file=sys.stderr)


def _tell_result(result: Any, skipped: Sequence[Skipped]) -> None:
    """Errors in the target's unit, and where everything lies."""
    _tell_skipped(skipped, result.folder / "skipped.csv")
    tables = result.metrics.get("targets") or {result.model.targets[0].name: result.metrics}
    for target in result.model.targets:
        for part, values in tables[target.name].items():
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
            print(f"{target.name:<24} {part:<6} {shown}{f'  [{target.unit}]' if target.unit else ''}")
    files = "model, metrics.json, test_results.csv, learning_curve.png"
    print(f"{result.folder}: {files}; next: tlcgcnn report {result.folder}")


def _multiplier(text: str) -> tuple[str, float]:
    """'conv_*=0.1' as a pattern and its learning-rate multiplier."""
    pattern, _, rate = text.rpartition("=")
    try:
        value = float(rate)
    except ValueError:
        value = -1.0
    if not pattern or not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: PATTERN=X expected, with X 0 (frozen) or positive")
    return pattern, value


def _is_watched() -> bool:
    """Bars are for people: not for files and pipes."""
    return sys.stderr.isatty()


if __name__ == "__main__":
    sys.exit(main())
