"""The command line: it parses, calls, and turns errors into one line and an exit status."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tlcgcnn_jax
from tlcgcnn_jax.array_folder import SKIPPED, write_skipped
from tlcgcnn_jax.config import FINE_TUNING, GraphConfig, ModelConfig, TrainConfig
from tlcgcnn_jax.errors import InputError, Skipped
from tlcgcnn_jax.machine import check_device
from tlcgcnn_jax.options import (
    a_path,
    check_few_left_out,
    check_free_file,
    check_graph,
    check_targets,
    check_whole,
    checked,
    chosen_split,
    count,
    crystals,
    data_argument,
    graph_options,
    id_column_option,
    is_watched,
    labelled,
    model_options,
    multiplier,
    named_input,
    on_error_option,
    reading_options,
    run_data,
    run_options,
    split_options,
    target_options,
)

BAD_INPUT, INTERRUPTED = 1, 130  # argparse gives 2 on bad usage
FURTHER = "folder of further models; a checkpoint of CGCNN (.pth.tar) is one once import-cgcnn has read it"
GOES_ON = {"study": "; the same command goes on"}
GOES_ON |= dict.fromkeys(("train", "transfer"), "; the same command with --resume goes on")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 1 on bad input, 2 on bad usage, 130 when interrupted."""
    options, unknown = make_parser().parse_known_args(arguments)
    parser = options.parser  # the verb's, whose usage is what an error needs
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    logging.basicConfig(format="tlcgcnn: %(message)s", level=logging.WARNING)
    os.environ.pop("JAX_ENABLE_X64", None)  # networks are float32, those of worker processes too
    try:
        check_device()
        options.run(options, parser)
    except InputError as error:
        print(f"tlcgcnn: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\ntlcgcnn: interrupted{GOES_ON.get(options.verb, '')}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:  # a full disk, a folder without permission
        where = f"{error.filename}: " if error.filename else ""
        print(f"tlcgcnn: error: {where}{error.strerror or error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def run() -> None:
    """The command: `main`, and the end of the process."""
    status = main()
    if status == INTERRUPTED:  # at once: threads that compile or write would work on an interpreter that is gone
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def make_parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    parser = argparse.ArgumentParser(
        prog="tlcgcnn",
        description="Transfer learning for crystal properties with CGCNN.",
        epilog="Start with: tlcgcnn demo",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {tlcgcnn_jax.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    demo = _verb(verbs, "demo", run_demo, "from scratch against transferred on textbook crystals, offline")
    demo.add_argument("--out", type=a_path, default=Path("tlcgcnn-demo"), help="results (default: %(default)s)")
    demo.add_argument("--repeats", type=count, default=3, help="times the folds are drawn anew (default: %(default)s)")

    prepare = _verb(verbs, "prepare", run_prepare, "pack crystals and labels once, for many runs")
    prepare.add_argument("input", metavar="INPUT", help="folder or file of crystals, or `textbook`")
    prepare.add_argument("--out", type=a_path, required=True, metavar="DATASET", help="folder for the packed dataset")
    reading_options(prepare, on_error="skip")
    graph_options(prepare)

    train = _verb(verbs, "train", run_train, "train from scratch")
    run_options(train, TrainConfig(), seeds=1)
    graph_options(train)
    model_options(train)

    transfer = _verb(verbs, "transfer", run_transfer, "train on a target, starting from a source model")
    transfer.add_argument(
        "--source", action="append", metavar="MODEL",
        help="folder of a model, or a shipped name; may be given several times; default: `auto`, the best there is",
    )  # fmt: skip
    transfer.add_argument("--sources", type=a_path, metavar="DIR", help=f"for `--source auto`: {FURTHER}")
    transfer.add_argument(
        "--top", type=count, metavar="N",
        help="sources that a strategy of several takes (default: all; with `--source auto` 5 where all is trained)",
    )  # fmt: skip
    transfer.add_argument(
        "--strategy", default="full", metavar="NAME",
        help="full, frozen, adapters, …; features:, hybrid:, descriptors:REGRESSOR; ensemble:, blend:NAME+NAME; auto; "
        "a name that there is not is answered by all that there are (default: full)",
    )  # fmt: skip
    transfer.add_argument(
        "--rate", action="append", default=[], metavar="PATTERN=X", type=multiplier,
        help="learning-rate multiplier of some parameters, e.g. 'conv_*=0.1'; may be given several times",
    )  # fmt: skip
    run_options(transfer, FINE_TUNING, seeds=5)

    ranking = _verb(verbs, "rank-sources", run_rank_sources, "which source to transfer from, before any training")
    data_argument(ranking)
    ranking.add_argument("--sources", type=a_path, metavar="DIR", help=FURTHER)
    ranking.add_argument("--out", type=a_path, metavar="FILE.csv", help="the table as a file")
    ranking.add_argument("--seed", type=int, default=0, help="of the split and the folds (default: %(default)s)")
    reading_options(ranking)
    target_options(ranking)
    split_options(ranking)

    predict = _verb(verbs, "predict", run_predict, "predict the property of crystals")
    predict.add_argument("model", metavar="MODEL", help="folder of a model or run, or a shipped name")
    predict.add_argument("input", metavar="INPUT", help="folder or file of crystals, a packed dataset, or `textbook`")
    predict.add_argument("--out", type=a_path, required=True, metavar="FILE.csv")
    id_column_option(predict)
    on_error_option(predict)

    _verb(verbs, "models", run_models, "list the shipped source models")

    importer = _verb(verbs, "import-cgcnn", run_import, "read a checkpoint of the original PyTorch CGCNN")
    importer.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=a_path, help=".pth.tar (needs PyTorch), or .npz with .json"
    )
    importer.add_argument("--out", type=a_path, required=True, metavar="MODEL", help="folder for the model")
    importer.add_argument("--target", help="name of the property (default: the file's name)")
    importer.add_argument("--unit", default="", help="unit of the property")
    importer.add_argument(
        "--transform", default="identity", choices=("identity", "log10", "log"), help="what it was trained on"
    )

    study = _verb(verbs, "study", run_study, "a grid of sources, strategies, targets, sizes and seeds, with statistics")
    study.add_argument("config", metavar="CONFIG.toml", type=a_path, help="its keys: see tlcgcnn_jax.StudyConfig")
    study.add_argument("--out", type=a_path, required=True, metavar="DIR", help="one with the same study goes on")
    study.add_argument(
        "--data", type=a_path, metavar="DIR", help="where relative paths start (default: CONFIG's folder)"
    )
    study.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="processes of this machine, or a Ray cluster (default: %(default)s)",
    )  # fmt: skip
    study.add_argument(
        "--workers", type=count, metavar="N", help="processes (default: the cores; 1 with an accelerator)"
    )

    report = _verb(verbs, "report", run_report, "one HTML page on a finished run, a study or the demo")
    report.add_argument("run_folder", metavar="DIR", type=a_path, help="folder of a run, a study or the demo")
    report.add_argument("--out", type=a_path, metavar="FILE.html")
    return parser


def run_demo(options: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    """`tlcgcnn demo`."""
    from tlcgcnn_jax.demo import demo

    demo(options.out, repeats=options.repeats)


def run_prepare(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`tlcgcnn prepare`."""
    from tlcgcnn_jax.dataset import build_dataset

    graph = checked(parser, GraphConfig, options)
    check_targets(options, parser)
    if options.labels and not options.target:
        parser.error("--labels is given, but no --target COLUMN that says which of its columns to keep")
    dataset = build_dataset(
        named_input(options.input, options.target), targets=tuple(options.target), graph=graph, labels=options.labels,
        id_column=options.id_column, out=options.out, on_error=options.on_error or "skip", progress=is_watched(),
    )  # fmt: skip
    _tell_skipped(dataset.skipped, options.out / SKIPPED)
    size = f"{len(dataset):,} crystals, {int(dataset.n_atom.sum()):,} atoms"
    told = f"targets {', '.join(options.target)}" if options.target else "no --target, so only to predict"
    print(f"{options.out}: {size}, {told}")


def run_train(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`tlcgcnn train`."""
    from tlcgcnn_jax.run import fit
    from tlcgcnn_jax.run_folder import check_run_folder

    config, model = checked(parser, TrainConfig, options), checked(parser, ModelConfig, options)
    graph = checked(parser, GraphConfig, options)
    check_run_folder(options.out, options.resume)  # before anything is packed
    packed, targets, split = run_data(options, parser, (graph,))
    check_graph(options, parser, packed.datasets[0].graph)
    result = fit(
        packed, targets, split=split, model=model, config=config, seeds=options.seeds, out=options.out,
        progress=is_watched(), resume=options.resume,
    )  # fmt: skip
    _tell_result(result, packed.skipped)


def run_transfer(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`tlcgcnn transfer`."""
    from tlcgcnn_jax.run import transfer
    from tlcgcnn_jax.run_folder import check_run_folder
    from tlcgcnn_jax.source_choice import AUTO, find_pool
    from tlcgcnn_jax.ways import check_way, needed_graphs

    try:
        check_way(options.strategy)
    except InputError as error:
        parser.error(str(error))
    config = checked(parser, TrainConfig, options)
    source = options.source or [AUTO]
    if AUTO in source and len(source) > 1:
        parser.error(f"--source {AUTO} chooses among all there are: leave the other --source out")
    if options.sources is not None and source != [AUTO]:
        parser.error(f"--sources goes with --source {AUTO}")
    pool = find_pool(AUTO if source == [AUTO] else source, options.sources)
    check_run_folder(options.out, options.resume)
    packed, targets, split = run_data(options, parser, needed_graphs(options.strategy, pool))
    result = transfer(
        packed, pool, options.strategy, targets, top=options.top, split=split, deal=options.split is None,
        config=config, multipliers=tuple(options.rate), seeds=options.seeds, out=options.out, progress=is_watched(),
        resume=options.resume, tell=lambda text: print(text, flush=True),
    )  # fmt: skip
    _tell_result(result, packed.skipped)


def run_rank_sources(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`tlcgcnn rank-sources`."""
    from tlcgcnn_jax.ranking import score_table, write_scores
    from tlcgcnn_jax.source_choice import AUTO, SourceChoice, find_pool

    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed is {options.seed}: 0 to {2**32 - 1}")
    pool = find_pool(AUTO, options.sources)
    if options.out is not None:
        check_free_file(options.out, "name,property", "a ranking of sources")
    packed, targets = labelled(options, parser, crystals(options, parser, pool.graphs))
    dataset = packed.datasets[0]
    split = chosen_split(options, parser, dataset, packed.skipped)
    if len(targets) != 1 or targets[0].outputs > 2:
        parser.error("sources are ranked for one property or two classes: give one --target, and no more classes")
    _tell_skipped(packed.skipped, options.out and options.out.with_suffix(".skipped.csv"))
    choice = SourceChoice(pool, packed, tuple(targets), split.train, options.seed, progress=is_watched())
    scores = choice.ranking
    learnt = targets[0].name if options.transform == "identity" else f"{options.transform} {targets[0].name}"
    known = sum(label == label for label in dataset.targets[split.train, 0])
    print(f"sources for {learnt}, by their features on {known:,} labelled training crystals, best first\n")
    print(score_table(scores))
    if options.out is not None:
        write_scores(scores, options.out)


def run_predict(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """`tlcgcnn predict`."""
    from tlcgcnn_jax.dataset import find_dataset
    from tlcgcnn_jax.evaluate import predict
    from tlcgcnn_jax.graph_sets import pack_graphs
    from tlcgcnn_jax.splits import overlap
    from tlcgcnn_jax.zoo import load_model

    model = load_model(options.model)
    check_free_file(options.out, "id,prediction", "a table of predictions")
    dataset = find_dataset(options.input)
    if dataset is not None and options.id_column:
        parser.error(f"{options.input} is packed with its ids: --id-column goes with prepare")
    inputs = dataset or named_input(options.input, ())
    packed = pack_graphs(
        inputs, model.graphs, id_column=options.id_column, on_error=options.on_error or "skip", progress=is_watched()
    )
    if dataset is None:
        check_few_left_out(options, packed)
    else:
        check_whole(options, dataset, options.input)
    predictions = predict(model, packed)
    predictions.write(options.out)
    _tell_skipped(predictions.skipped, options.out.with_suffix(".skipped.csv"))
    seen = overlap(model.formulas, packed.datasets[0].formulas).count
    if seen:
        print(f"{seen} of {len(packed)} crystals have a formula that the model was trained on")
    _tell_error_bars(model)
    names = ", ".join(f"{t.name} ({t.unit})" if t.unit else t.name for t in model.targets)
    print(f"{options.out}: {names} of {len(predictions.ids):,} crystals")


def run_models(_: argparse.Namespace, __: argparse.ArgumentParser) -> None:
    """`tlcgcnn models`."""
    from tlcgcnn_jax.bundle import target_metrics
    from tlcgcnn_jax.zoo import PREDICTORS, folder, load_source, shipped

    print(f"{'name':<29} {'property':<32} {'unit':<8} {'crystals':>8}  test error")
    for name in shipped():
        model = load_source(folder() / name)
        for target in model.targets:
            test = target_metrics(model.metrics, model.targets)[target.name].get("test", {})
            error = f"MAE {test['mae']:.4f}" if "mae" in test else f"ROC-AUC {test.get('roc_auc', float('nan')):.3f}"
            crystals = model.notes.get("crystals trained on", 0)
            print(f"{name:<29} {target.name:<32} {target.unit:<8} {crystals:>8,}  {error}")
    print(f"{', '.join(PREDICTORS)}: to predict with; --source auto leaves it out")


def run_import(options: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    """`tlcgcnn import-cgcnn`."""
    from tlcgcnn_jax.cgcnn_import import import_cgcnn

    model = import_cgcnn(options.checkpoint, name=options.target, unit=options.unit, transform=options.transform)
    model.save(options.out)
    print(f"{options.out}: {model.targets[0].kind}, {model.model.convolutions} convolutions, {model.targets[0].name}")


def run_study(options: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    """`tlcgcnn study`."""
    from tlcgcnn_jax.study import run_study as run

    analysis = run(
        options.config, options.out, data=options.data, engine=options.engine, workers=options.workers,
        progress=is_watched(),
    )  # fmt: skip
    print("\n".join(analysis.sentences))
    print(f"{options.out}: results.csv, comparisons.csv, report.html and pictures")


def run_report(options: argparse.Namespace, _: argparse.ArgumentParser) -> None:
    """`tlcgcnn report`."""
    from tlcgcnn_jax.report import run_report as write_report

    print(write_report(options.run_folder, options.out))


def _verb(verbs: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _tell_skipped(skipped: Sequence[Skipped], path: Path | None) -> None:
    """List the crystals that were left out, in a file (if there is one) and in a line."""
    if path is not None:
        write_skipped(path, skipped)
    if not skipped:
        return
    listed = f", listed in {path}" if path is not None else ""
    many = "s" if len(skipped) > 1 else ""
    print(f"{len(skipped):,} crystal{many} left out{listed}; the first: {skipped[0].reason}", file=sys.stderr)


def _tell_result(result: Any, skipped: Sequence[Skipped]) -> None:
    """Errors in the target's unit, and where everything lies."""
    from tlcgcnn_jax.bundle import target_metrics

    _tell_skipped(skipped, result.folder / "skipped.csv")
    tables = target_metrics(result.metrics, result.model.targets)
    for target in result.model.targets:
        for part, values in tables[target.name].items():
            shown = ", ".join(f"{name} {_told(value)}" for name, value in values.items())
            print(f"{target.name:<24} {part:<6} {shown}{f'  [{target.unit}]' if target.unit else ''}")
    _tell_choice(result.model)
    _tell_error_bars(result.model)
    files = "model, metrics.json, test_results.csv, pictures"
    print(f"{result.folder}: {files}; next: tlcgcnn report {shlex.quote(str(result.folder))}")


def _told(value: float) -> str:
    """A number of crystals in full, others with four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{float(value):.4g}"


def _tell_choice(model: Any) -> None:
    """What the validation crystals chose from, and how much of it they took."""
    from tlcgcnn_jax.blending import CHOICE

    for name, part in model.notes.get(CHOICE, {}).items():
        error = f"validation MAE {part['val_mae']:.4g}" if "val_mae" in part else "no validation error"
        print(f"{name:<24} weight {part['weight']:>4.0%}  {error}")


def _tell_error_bars(model: Any) -> None:
    """How wide the intervals are, or why there are none."""
    for bar, target in zip(model.calibration, model.targets, strict=False):
        if bar is not None:
            learnt = target.transform != "identity" and bar.quantile is not None
            print(f"{target.name}: {bar}{f', of {target.transform}' if learnt else ''}")


if __name__ == "__main__":
    run()
