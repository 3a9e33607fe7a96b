"""A run: data in, trained model, errors and pictures out, in Python (`fit`, `transfer`) and as a folder."""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tlcgcnn_jax import evaluate, losses, report
from tlcgcnn_jax.bundle import Model, check_graph
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.config import FINE_TUNING, GraphConfig, ModelConfig, Target, TrainConfig, to_dict
from tlcgcnn_jax.dataset import CrystalDataset, build_dataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import Predictions
from tlcgcnn_jax.files import to_json, write_whole
from tlcgcnn_jax.merging import Account, merge
from tlcgcnn_jax.model import CGCNN, init_variables
from tlcgcnn_jax.optim import Rates
from tlcgcnn_jax.splits import Split, random_split, read_split, write_split
from tlcgcnn_jax.strategies import Strategy, find_strategy
from tlcgcnn_jax.train import example_graph, train
from tlcgcnn_jax.watch import EpochBar, Interrupts, epoch_log
from tlcgcnn_jax.zoo import load_model


@dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        model: The trained network, or the ensemble of all seeds.
        metrics: {"test": {"mae", "rmse", "r2", …}, "val": …} in the target's unit; with several targets these are of
            the first, and "targets" holds those of each.
        predictions: Of every crystal of the dataset.
        split: Row numbers.
        history: One row an epoch and member.
        account: What became of every array of the source (None without a source).
        folder: Where it was written, if anywhere.
    """

    model: Model
    metrics: dict[str, Any]
    predictions: Predictions
    split: Split
    history: list[dict[str, float]]
    account: Account | None = None
    folder: Path | None = None


def fit(
    data: Any,
    targets: str | Target | Sequence[str | Target] = (),
    *,
    split: Split | None = None,
    graph: GraphConfig = GraphConfig(),
    model: ModelConfig = ModelConfig(),
    config: TrainConfig = TrainConfig(),
    seeds: int = 1,
    out: str | Path | None = None,
    labels: str | Path | None = None,
    id_column: str | None = None,
    on_error: str = "raise",
    progress: bool = False,
    resume: bool = False,
) -> Result:
    """Train from scratch.

    Args:
        data: A `CrystalDataset`, or whatever `read_structures` takes.
        targets: Column names, or `Target`s with unit, kind and transform; default: the dataset's columns.
        split: Row numbers; default: a seeded 80/10/10 split.
        graph: How crystals become graphs (not used where `data` is a dataset).
        model: Sizes of the network; Gaussians reach as far as the cutoff in any case.
        config: How to train.
        seeds: Networks, with seeds `config.seed`, `config.seed` + 1, …; more than one make an ensemble.
        out: Folder for model, metrics, test results and pictures.
        labels: CSV of labels that is joined to the crystals by id, as in `read_structures`.
        id_column: Column that holds the ids.
        on_error: "raise" or "skip" for crystals that cannot be read.
        progress: Show bars.
        resume: Go on in `out` from its last checkpoint.

    Raises:
        InputError: Anything about the data or the folder that cannot be used.

    Example:
        >>> from tlcgcnn_jax import fit, TrainConfig, textbook_records
        >>> result = fit(textbook_records(("band_gap_ev",))[:20], "band_gap_ev", config=TrainConfig(epochs=1))
        >>> sorted(result.metrics)
        ['test', 'train', 'val']
    """
    if model.gaussian_max < graph.cutoff:
        model = replace(model, gaussian_max=graph.cutoff)  # no edge may be longer than the last Gaussian
    dataset, targets = _prepared(data, targets, graph, labels, id_column, on_error, progress)
    run = _Run(dataset, targets, split, config, seeds, out, progress, resume, {"verb": "train"})
    return run.all_members(model, None, find_strategy("scratch"))


def transfer(
    data: Any,
    source: str | Path | Model,
    strategy: str | Strategy = "full",
    targets: str | Target | Sequence[str | Target] = (),
    *,
    split: Split | None = None,
    config: TrainConfig = FINE_TUNING,
    multipliers: Rates = (),
    source_name: str | None = None,
    on_merge: Callable[[Account], None] | None = None,
    seeds: int = 1,
    out: str | Path | None = None,
    labels: str | Path | None = None,
    id_column: str | None = None,
    on_error: str = "raise",
    progress: bool = False,
    resume: bool = False,
) -> Result:
    """Train on a target, starting from a source model.

    Args:
        data: A `CrystalDataset` with the source's graph settings, or whatever `read_structures` takes.
        source: A model, its folder, or the name of a shipped one.
        strategy: Name ("full", "frozen", "head", "scratch"), or a `Strategy` of your own.
        targets: As in `fit`.
        split: As in `fit`.
        config: As in `fit`.
        multipliers: Learning-rate multipliers that go before the strategy's, for example (("conv_*", 0.1),).
        source_name: What to call the source in settings and cards; default: its path or name.
        on_merge: Called before training with the account of what was loaded, re-initialised and frozen.
        seeds: As in `fit`; a source that is an ensemble gives its members in turn.
        out: As in `fit`.
        labels: As in `fit`.
        id_column: As in `fit`.
        on_error: As in `fit`.
        progress: As in `fit`.
        resume: As in `fit`.

    Raises:
        InputError: As in `fit`; and a source whose graphs or shapes do not fit.

    Example:
        >>> from tlcgcnn_jax import transfer, TrainConfig, textbook_records
        >>> records, target = textbook_records(("bulk_modulus_gpa",))[:20], "bulk_modulus_gpa"
        >>> result = transfer(records, "mp-formation-energy", "frozen", target, config=TrainConfig(epochs=1))
        >>> result.model.members[0]["params"]["embedding"]["bias"].shape
        (64,)
    """
    source_model = source if isinstance(source, Model) else load_model(source)
    dataset, targets = _prepared(data, targets, source_model.graph, labels, id_column, on_error, progress)
    check_graph(dataset.graph, source_model)
    chosen = find_strategy(strategy, multipliers)
    origin = source_name or ("a model in memory" if isinstance(source, Model) else str(source))
    rates = [list(rate) for rate in chosen.rates]
    about = {"verb": "transfer", "source": origin, "strategy": chosen.name, "rates": rates}
    run = _Run(dataset, targets, split, config, seeds, out, progress, resume, about)
    return run.all_members(source_model.model, source_model, chosen, on_merge)


@dataclass
class _Run:
    """The common part of `fit` and `transfer`."""

    dataset: CrystalDataset
    targets: tuple[Target, ...]
    split: Split | None
    config: TrainConfig
    seeds: int
    out: str | Path | None
    progress: bool
    resume: bool
    about: dict[str, Any]

    def all_members(
        self,
        model_config: ModelConfig,
        source: Model | None,
        strategy: Strategy,
        on_merge: Callable[[Account], None] | None = None,
    ) -> Result:
        """Train every member, then evaluate the ensemble."""
        dataset, targets = self.dataset, self.targets
        if self.seeds < 1:
            raise InputError(f"seeds is {self.seeds}: at least one network must be trained")
        if len(dataset) < 3:
            raise InputError(f"{len(dataset)} crystals: at least 3 are needed to train, validate and test")
        split = self.split or random_split(len(dataset), self.config.seed)
        _check_split(split, len(dataset))
        # What can be refused is refused here, before the folder is made.
        normaliser = losses.fit_normaliser(dataset.targets[split.train], targets)
        losses.transform_labels(dataset.targets, targets)
        network = CGCNN(model_config, sum(target.outputs for target in targets), dataset.graph.places)
        starts, account = [], None
        for member in range(self.seeds):
            variables = init_variables(network, example_graph(dataset), self.config.seed + member)
            if source is not None:
                old = source.members[member % len(source.members)]
                variables, account = merge(old, jax.device_get(variables), strategy)
            starts.append(variables)
        if account and on_merge:
            on_merge(account)
        folder = _folder(self.out, self.resume)
        settings = self._settings(model_config)
        if folder:
            _check_resumed(folder, settings, dataset.ids, split, self.resume)
            (folder / "settings.json").write_text(json.dumps(settings, indent=1))
            write_split(folder / "split.json", dataset.ids, split)
        members, history, best_epochs = [], [], []
        with Interrupts(wait=folder is not None) as interrupts:
            for member, variables in enumerate(starts):
                config = replace(self.config, seed=self.config.seed + member)
                bar = EpochBar(self.progress, member, self.seeds, config)
                with _checkpoints(folder, member) as checkpoints, bar as show:
                    trained = train(
                        dataset, split, targets, model_config, config,
                        variables=variables, rates=strategy.rates, normaliser=normaliser, checkpoints=checkpoints,
                        on_epoch=interrupts.after(epoch_log(folder, member), show),
                    )  # fmt: skip
                members.append(trained.variables)
                best_epochs.append(trained.best_epoch)
                history += [{"member": member, **row} for row in trained.history]
        notes = {**self.about, "crystals trained on": len(split.train), "versions": settings["versions"]}
        bundle = Model(dataset.graph, model_config, targets, normaliser, tuple(members), {}, notes)
        predictions = evaluate.predict(bundle, dataset)
        labels = np.asarray(dataset.targets, float)
        each = {
            part: evaluate.metrics(predictions, labels, rows)
            for part, rows in (("test", split.test), ("val", split.val), ("train", split.train))
            if len(rows)
        }
        metrics: dict[str, Any] = {part: values[targets[0].name] for part, values in each.items()}
        if len(targets) > 1:
            metrics["targets"] = {t.name: {part: values[t.name] for part, values in each.items()} for t in targets}
        bundle = replace(bundle, metrics=metrics)
        result = Result(bundle, metrics, predictions, split, history, account, folder)
        if folder:
            _write_results(result, labels, best_epochs)
        return result

    def _settings(self, model_config: ModelConfig) -> dict[str, Any]:
        return {
            **self.about,
            "targets": [to_dict(target) for target in self.targets],
            "graph": to_dict(self.dataset.graph),
            "model": to_dict(model_config),
            "training": to_dict(self.config),
            "seeds": self.seeds,
            "crystals": len(self.dataset),
            "dataset_fingerprint": self.dataset.fingerprint,
            "versions": _versions(),
            "machine": f"{jax.devices()[0].device_kind}, {platform.machine()}",
        }


def _check_split(split: Split, n: int) -> None:
    rows = np.concatenate([split.train, split.val, split.test])
    if len(np.unique(rows)) != len(rows) or rows.min(initial=0) < 0 or rows.max(initial=0) >= n:
        raise InputError(f"the split's parts share crystals, or name rows beyond the {n} of the dataset")


def _prepared(
    data: Any,
    targets: Any,
    graph: GraphConfig,
    labels: str | Path | None,
    id_column: str | None,
    on_error: str,
    progress: bool,
) -> tuple[CrystalDataset, tuple[Target, ...]]:
    """A dataset with exactly the columns that are asked for."""
    wanted = (targets,) if isinstance(targets, str | Target) else tuple(targets)
    chosen = tuple(Target(t) if isinstance(t, str) else t for t in wanted)
    if not isinstance(data, CrystalDataset):
        if not chosen:
            raise InputError("which property is to be learnt? Name at least one target column")
        names = tuple(target.name for target in chosen)
        data = build_dataset(
            data, targets=names, graph=graph, labels=labels, id_column=id_column, on_error=on_error, progress=progress
        )
    chosen = chosen or tuple(Target(name) for name in data.target_names)
    if not chosen:
        raise InputError("the dataset was prepared without a target column: prepare it again and name one")
    absent = [target.name for target in chosen if target.name not in data.target_names]
    if absent:
        has = ", ".join(data.target_names) or "none"
        raise InputError(f"the dataset has no target {', '.join(absent)}; it has {has}")
    return data.with_targets(tuple(target.name for target in chosen)), chosen


def _folder(out: str | Path | None, resume: bool) -> Path | None:
    """The run's folder, made; one with something in it is refused unless a run is to be resumed there."""
    if out is None:
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder for the run")
    started = (folder / "settings.json").is_file()
    if folder.is_dir() and any(folder.iterdir()) and not (resume and started):
        unfinished = started and not (folder / "metrics.json").is_file()
        hint = "it holds an unfinished run: use resume (--resume) to go on, or give" if unfinished else "give"
        nothing = " and holds no run to resume" if resume else ""
        raise InputError(f"{folder}: exists and is not empty{nothing}; {hint} another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}; choose another folder") from error
    return folder


def _check_resumed(folder: Path, settings: dict[str, Any], ids: Sequence[str], split: Split, resume: bool) -> None:
    """A run goes on with the settings and the split that it was started with, or not at all."""
    path = folder / "settings.json"
    if not (resume and path.is_file()):
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}), so the run cannot be resumed; start in another folder") from error
    free = ("versions", "machine")
    now = json.loads(json.dumps(settings))
    changed = [name for name in now if name not in free and before.get(name) != now[name]]
    if changed:
        told = "; ".join(f"{name} was {before.get(name)}, now {now[name]}" for name in changed)
        raise InputError(f"{folder}: cannot be resumed with other settings: {told}")
    if (folder / "split.json").is_file():
        started = read_split(folder / "split.json", ids)
        if any(getattr(started, part).tolist() != getattr(split, part).tolist() for part in ("train", "val", "test")):
            raise InputError(f"{folder}: cannot be resumed with another split than that of its split.json")


class _NoCheckpoints:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _checkpoints(folder: Path | None, member: int) -> Checkpoints | _NoCheckpoints:
    return Checkpoints(folder / "checkpoints" / f"member_{member}") if folder else _NoCheckpoints()


def _write_results(result: Result, labels: np.ndarray, best_epochs: list[int]) -> None:
    """Model, metrics, test results and pictures of a finished run."""
    folder, rows, predictions = result.folder, result.split.test, result.predictions
    assert folder is not None
    result.model.save(folder)
    write_whole(folder / "metrics.jsonl", "".join(to_json(row) + "\n" for row in result.history).encode())
    test = Predictions([predictions.ids[row] for row in rows], predictions.targets, predictions.members[:, rows])
    test.write(folder / "test_results.csv", labels[rows])
    report.run_pictures(folder, result.history, best_epochs, test, labels[rows])
    # Last, since it says that the run is finished.
    write_whole(folder / "metrics.json", to_json(result.metrics, indent=1).encode())


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for package in ("tlcgcnn_jax", "jax", "flax", "optax", "jraph", "orbax-checkpoint", "numpy"):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    return out
