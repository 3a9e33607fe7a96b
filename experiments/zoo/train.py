"""Train one of the source models that are shipped, see sources.toml.

    python experiments/zoo/train.py mp-formation-energy DATA --out runs/zoo/mp-formation-energy \
        --ship tlcgcnn_jax/data/models/mp-formation-energy

DATA is the folder of the data sets. Their crystals are packed once, beside the run (in packed/NAME);
with --pack-only nothing else is done. On a machine that has the packed datasets alone DATA is the folder `packed`.
A source that starts from another one takes it from beside the run, or from those shipped; rounds of a source with
several lie beside the run, too. A killed run goes on with --resume.
"""

import argparse
import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sources import HELD_OUT, Packed, Source, in_sample, pack, read_sources, split_by_formula, tenth, with_validation

from tlcgcnn_jax.bundle import PLACE, Model
from tlcgcnn_jax.committee import known_formulas
from tlcgcnn_jax.config import Target, to_dict
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.model_folder import CARD
from tlcgcnn_jax.optim import ALL
from tlcgcnn_jax.plots import learning_curve
from tlcgcnn_jax.run import Result, fit, transfer
from tlcgcnn_jax.strategies import Strategy
from tlcgcnn_jax.zoo import load_source

GO_ON = Strategy("go_on", "all weights, those of the head too, are trained further", (), ALL)
AS_THEY_ARE = Strategy("as_they_are", "networks that are trained already, together", (), (("*", 0.0),))
PICTURES = ("learning_curve*.png", "parity*.png", "confusion*.png", "roc*.png")


def main(arguments: Sequence[str] | None = None) -> Result | None:
    sources = read_sources()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sources, metavar="NAME", help=", ".join(sources))
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the data sets, or of packed ones")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--ship", type=Path, metavar="FOLDER", help="folder for the model with its card and pictures")
    parser.add_argument("--epochs", type=int, help="instead of those in sources.toml")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the formulas, for a quick look")
    parser.add_argument("--pack-only", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args(arguments)
    source = sources[options.name]
    if options.epochs:
        rounds = tuple(tuple(options.epochs for _ in epochs) for epochs in source.rounds)
        source = replace(source, training=replace(source.training, epochs=options.epochs), rounds=rounds)
    packed = pack(source, options.data, options.out.parent / "packed")
    print(f"{source.name}: {', '.join(f'{n:,} {what}' for what, n in packed.counts.items())}")
    if options.pack_only:
        return None
    if options.sample < 1:
        chosen = in_sample(packed.dataset.formulas, options.sample)
        packed = replace(packed, dataset=packed.dataset.select(chosen))
    result = train(source, packed, options.out, options.resume)
    result = with_log10_errors(result, np.asarray(packed.dataset.targets, float))
    notes = card_notes(source, packed, result)
    for target in source.targets:
        print(f"test of {target.name}: {notes[f'test of {target.name}']}")
    if options.ship:
        ship(result, notes, options.ship)
    return result


def train(source: Source, packed: Packed, out: Path, resume: bool = False) -> Result:
    """Train a source from scratch, or all of those that it starts from, in one round or several.

    Raises:
        InputError: One to start from is not there, or has seen formulas that test here.
    """
    dataset = packed.dataset
    common: dict[str, Any] = {
        "split": split_by_formula(dataset.formulas), "out": out, "resume": resume, "progress": True,
    }  # fmt: skip
    if not source.starts:
        return fit(dataset, source.targets, **common, config=source.training)
    starts = {name: load_start(name, out.parent) for name in source.starts}
    from_start = {**common, "seeds": 1, "tell": print}
    if not source.rounds:
        return transfer(dataset, starts, "full", source.targets, **from_start, config=source.training)
    lines = [train_rounds(source, dataset, line, start, from_start) for line, start in enumerate(starts.values())]
    return together(source, dataset, lines, common)


def train_rounds(
    source: Source, dataset: CrystalDataset, line: int, start: Model, common: dict[str, Any]
) -> list[Result]:
    """The rounds of the network that starts from one source, each in a folder beside the run."""
    rounds, model, name, epochs = [], start, source.starts[line], source.rounds[line]
    for number, count in enumerate(epochs):
        config = replace(source.training, epochs=count, seed=source.training.seed + 100 * line + number)
        again = {**common, "out": common["out"].with_name(f"{source.name}-from-{name}-round-{number}")}
        if source.val_trains and number == len(epochs) - 1:
            config = replace(config, keep="last", patience=None)
            again["split"] = with_validation(common["split"], dataset.formulas)
        # What has learnt the same before keeps its head.
        strategy = GO_ON if model.targets == source.targets else "full"
        given = {source.name if rounds else name: model}
        rounds.append(transfer(dataset, given, strategy, source.targets, **again, config=config))
        print(f"from {name}, round {number}: {test_metrics(rounds[-1].metrics, source.targets[0].name)}", flush=True)
        model = rounds[-1].model
    return rounds


def together(
    source: Source, dataset: CrystalDataset, lines: Sequence[Sequence[Result]], common: dict[str, Any]
) -> Result:
    """The networks that several lines of rounds ended with as one ensemble, with one learning curve."""
    networks = [network for rounds in lines for network in rounds[-1].model.members]
    last = [rounds[-1].model for rounds in lines]
    ensemble = replace(last[0], members=tuple(networks), formulas=known_formulas(last))
    common = {**common, "split": lines[0][-1].split}
    result = transfer(
        dataset, {source.name: ensemble}, AS_THEY_ARE, source.targets, **common, config=source.training,
        seeds=len(networks),
    )  # fmt: skip
    history = [
        {**row, "member": member, "epoch": row["epoch"] + ended, "kept": row["kept"] and one is rounds[-1]}
        for member, rounds in enumerate(lines)
        for ended, one in zip(np.cumsum([0, *source.rounds[member]]).tolist(), rounds, strict=False)
        for row in one.history
    ]  # fmt: skip
    learning_curve(history, common["out"] / "learning_curve.png")
    return replace(result, history=history)


def load_start(name: str, folder: Path) -> Model:
    """A source model to start from: the run of this name in a folder, or else the shipped one.

    Raises:
        InputError: There is none, or it was trained on formulas that test or validate in all sources.
    """
    start = load_source(folder / name if (folder / name).is_dir() else name)
    known = [formula for formula in start.formulas if tenth(formula) < 2]
    if known:
        raise InputError(
            f"{name}: trained on {len(known)} formulas that test or validate here, such as {known[0]}: train it anew "
            f"with this script, beside the new run ({folder / name})"
        )
    return start


def card_notes(source: Source, packed: Packed, result: Result) -> dict[str, Any]:
    """What the card tells beside the metrics: data, licence, what was left out, settings, errors in words."""
    counts, formulas = packed.counts, packed.dataset.formulas
    each = "; ".join(" and ".join(map(str, epochs)) for epochs in source.rounds)
    last = ", the last one on nine tenths of the validation crystals as well, with its last weights kept"
    rounds = f"{each} epochs, each round from where the one before ended" + last * source.val_trains
    by = "by formula: the tenths 0 and 1 of its hash test and validate, in all shipped sources alike"
    return {
        "name": source.name,
        "data": f"{source.data} ({counts['kept']:,} crystals kept of {counts['read']:,})",
        "data licence": source.licence,
        "attribution": source.attribution,
        "licence": "weights: CC BY 4.0",
        "left out": f"{HELD_OUT[source.held_out]} ({counts['held out']:,} crystals)",
        "split": "rows at random, 80/10/10, seed 0" if len(set(formulas)) == 1 else by,
        "crystals trained on": len(result.split.train),
        "start": f"{' and '.join(source.starts)}, all of it trained further" if source.starts else "fresh weights",
        **({"rounds": rounds} if each else {}),
        "settings": ", ".join(f"{name} {value}" for name, value in to_dict(source.training).items()),
        **{f"test of {t.name}": in_words(test_metrics(result.metrics, t.name), t) for t in source.targets},
        "made by": f"experiments/zoo/train.py {source.name}",
        "versions": result.model.notes["versions"],
    }


def with_log10_errors(result: Result, labels: np.ndarray) -> Result:
    """The same result; metrics of targets that are learnt as log10 hold "mae_log10" on the test crystals as well.

    Args:
        result: Of a run.
        labels: float [n, n_target] in the targets' units, NaN where unknown.
    """
    metrics = copy.deepcopy(result.metrics)
    for target, label, said in zip(result.model.targets, labels.T, result.predictions.mean.T, strict=False):
        if target.transform == "log10":
            rows = result.split.test[np.isfinite(label[result.split.test])]
            errors = np.abs(np.log10(said[rows]) - np.log10(label[rows]))
            test_metrics(metrics, target.name)["mae_log10"] = float(np.mean(errors))
    return replace(result, metrics=metrics)


def test_metrics(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """Those of one target on the test crystals, of one or of many."""
    return metrics["targets"][name]["test"] if "targets" in metrics else metrics["test"]


def in_words(test: dict[str, Any], target: Target) -> str:
    """Errors of one target on the test crystals."""
    n = f"{test['n']:,} crystals"
    if target.kind == "classification":
        return f"ROC-AUC {test.get('roc_auc', float('nan')):.4f}, accuracy {test['accuracy']:.4f}, {n}"
    unit = f" {target.unit}" if target.unit else ""
    log10 = f"MAE {test['mae_log10']:.4f} of log10, " if "mae_log10" in test else ""
    return f"{log10}MAE {test['mae']:.4g}{unit}, RMSE {test['rmse']:.4g}{unit}, R² {test['r2']:.4f}, {n}"


def ship(result: Result, notes: dict[str, Any], folder: Path) -> None:
    """Save a model with a card that says where it comes from, and the pictures of its run below it."""
    assert isinstance(result.model, Model) and result.folder
    replace(result.model, notes=notes, metrics=result.metrics).save(folder)
    text = (folder / CARD).read_text(encoding="utf-8")
    with open(folder / CARD, "w", encoding="utf-8") as card:
        card.write(text.replace(PLACE, notes["name"]))  # by which the package knows it
        for path in sorted(path for pattern in PICTURES for path in result.folder.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
            card.write(f"\n![{path.stem.replace('_', ' ').replace('-', ', ')}]({path.name})\n")


if __name__ == "__main__":
    main()
