"""Strategies at work: from sources and a strategy to trained networks, for many seeds at once."""

import contextlib
import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from tlcgcnn_jax import losses
from tlcgcnn_jax.adapters import ADAPTER, add_adapters, fold_adapters
from tlcgcnn_jax.bundle import Model, check_same_graph
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.config import ModelConfig, Target, TrainConfig
from tlcgcnn_jax.dataset import CrystalDataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.many import Run, digest, train_many
from tlcgcnn_jax.merging import Account, merge
from tlcgcnn_jax.model import SourceMixture, Variables, build_network, init_head, init_variables
from tlcgcnn_jax.norms import estimate_norm, estimate_statistics
from tlcgcnn_jax.optim import Rates, frozen_modules, parameter_paths
from tlcgcnn_jax.outputs import network_outputs, prefix_features
from tlcgcnn_jax.strategies import Strategy
from tlcgcnn_jax.train import Program, Trained, example_graph

OUTPUTS_ALIKE = 1e-4  # smallest singular value, of the largest, that a fit to several outputs of a source uses


@dataclass(frozen=True, eq=False)
class Job:
    """One fine-tuning of many.

    Attributes:
        train: int [n_train], rows of the dataset.
        val: int [n_val], rows to choose the epoch by; may be empty.
        seed: Of fresh weights, batches and dropout.
        learning_rate: Highest learning rate.
        member: Which network of each source that is an ensemble, in turn: after the last one comes the first.
    """

    train: np.ndarray
    val: np.ndarray
    seed: int
    learning_rate: float
    member: int = 0


@dataclass(frozen=True, eq=False)
class Start:
    """What the strategy makes of the sources before any training.

    Attributes:
        variables: {"params", "batch_stats"}, with adapters where the strategy has some.
        normaliser: Of the targets, fitted on the training rows.
        account: What became of every array; None without a source.
    """

    variables: Variables
    normaliser: Normaliser
    account: Account | None


def network_of(strategy: Strategy, sources: Sequence[Model], model_config: ModelConfig) -> ModelConfig:
    """Sizes of the network that a strategy trains: the source's, side by side for several, or the given ones.

    Args:
        strategy: How many sources it takes, and how it combines them.
        sources: () for training from scratch, one, or several for a mixture.
        model_config: Sizes of a network without a source, and of the head of a mixture.

    Raises:
        InputError: A mixture without sources, or of sources of which one is a mixture itself; one source where the
            strategy joins several, or several where it takes one; or sources of different sizes.
    """
    if not sources:
        if model_config.sources > 1:
            raise InputError(f"a mixture of {model_config.sources} sources is made of sources: none was given")
        return model_config
    first = sources[0].model
    if mixed := [model.model.sources for model in sources if model.model.sources > 1]:
        raise InputError(f"a source is itself a mixture of {mixed[0]} sources: give these, each on its own")
    if strategy.sources == 1:
        if len(sources) > 1:
            raise InputError(
                f"{strategy.name} takes one source, {len(sources)} were given: choose one, or a strategy that joins "
                "several (multi_source)"
            )
        return first
    if len(sources) == 1:
        raise InputError(f"{strategy.name} joins several sources, one was given: use full or frozen, or give more")
    body = ("width", "convolutions", "gaussian_step", "gaussian_max")
    for model in sources[1:]:
        other = [name for name in body if getattr(model.model, name) != getattr(first, name)]
        if other:
            raise InputError(
                f"sources that are mixed must agree in {', '.join(body)}: they differ in {', '.join(other)}"
            )
    top_k = min(strategy.top_k, len(sources))
    # A head as wide as a new network's: that of a source was made for its own property.
    return replace(model_config, sources=len(sources), combine=strategy.combine, top_k=top_k,
                   **{name: getattr(first, name) for name in body})  # fmt: skip


def start(
    dataset: CrystalDataset,
    targets: Sequence[Target],
    strategy: Strategy,
    sources: Sequence[Model],
    job: Job,
    model_config: ModelConfig = ModelConfig(),
) -> Start:
    """Fresh and loaded weights, adapters, batch-norm statistics and the output layer, as the strategy wants them.

    Args:
        dataset: Packed crystals with the targets' columns and the sources' graph settings.
        targets: What to learn.
        strategy: How.
        sources: () for training from scratch, one, or several for a mixture.
        job: Rows and seed.
        model_config: Sizes of a network without a source, and of the head of a mixture.

    Raises:
        InputError: Columns that are not the targets, sources that do not fit, patterns that do not cover the
            parameters, or a training set without labels.
    """
    names = tuple(target.name for target in targets)
    if names != tuple(dataset.target_names):
        raise InputError(f"the dataset holds the targets {dataset.target_names}, asked for {names}")
    if not sources and not strategy.from_scratch:
        raise InputError(f"{strategy.name} starts from a source, none was given: give one, or choose scratch")
    for model in sources:
        check_same_graph(dataset.graph, model.graph)
    normaliser = losses.fit_normaliser(dataset.targets[job.train], targets)
    config = network_of(strategy, sources, model_config)
    network = build_network(config, sum(target.outputs for target in targets), dataset.graph.places)
    members = [model.members[job.member % len(model.members)] for model in sources]
    output = "loaded"
    if strategy.refit_output and sources:
        members, output = [refit_output(dataset, job.train, targets, normaliser, sources[0], members[0])], "fitted"
    elif len(sources) == 1 and _learnt_alike(sources[0].targets, targets):
        # Where the head is kept it goes on saying what it said.
        members, output = [on_scale(members[0], targets, sources[0].normaliser, normaliser)], "rescaled"
    if config.sources > 1:
        if whole := [pattern for pattern in strategy.reinitialise if _means_sources(pattern, members)]:
            raise InputError(
                f"{strategy.name}: the sources of a mixture are taken as they are: {', '.join(whole)} cannot start anew"
            )
        old = {
            kind: {f"source_{i}": _without_head(member.get(kind, {})) for i, member in enumerate(members)}
            for kind in ("params", "batch_stats")
        }
        # Norm, gate and head alone are fresh: to initialise all sources would take as long as to train.
        new = init_head(network, job.seed)
        fresh = {kind: {**tree, **new.get(kind, {})} for kind, tree in old.items()}
    else:
        fresh = jax.device_get(init_variables(network, example_graph(dataset), job.seed))
        old = members[0] if members else fresh
    if strategy.adapter_rank:
        fresh = {**fresh, "params": add_adapters(fresh["params"], strategy.adapter_rank, job.seed)}
    variables, account = merge(old, fresh, strategy, output)
    if strategy.batch_norm == "target":
        folded = {**variables, "params": fold_adapters(variables["params"])}
        variables = {**variables, "batch_stats": estimate_statistics(network, folded, dataset, job.train)}
    if isinstance(network, SourceMixture):
        norm = estimate_norm(network, variables, dataset, job.train)
        variables = {**variables, "batch_stats": {**variables["batch_stats"], "norm": norm}}
    return Start(variables, normaliser, account if sources else None)


def fine_tune(
    dataset: CrystalDataset,
    targets: Sequence[Target],
    strategy: Strategy,
    sources: Sequence[Model],
    jobs: Sequence[Job],
    config: TrainConfig,
    *,
    model_config: ModelConfig = ModelConfig(),
    starts: Sequence[Start] | None = None,
    checkpoints: Callable[[str], contextlib.AbstractContextManager[Checkpoints | None]] | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    cache: bool = True,
) -> list[Trained]:
    """Train one network for each job by a strategy, all in one compiled program a phase.

    Each phase starts from the best epoch so far by validation score (the last one where nothing is held out, or with
    `keep` "last"), so that what is kept in the end is an extractor and a head that belong together. Leading layers that
    stay as they are, batch-norm statistics included, are computed once for all epochs.

    Args:
        dataset: As in `start`.
        targets: As in `start`.
        strategy: As in `start`.
        sources: As in `start`.
        jobs: Rows, seed and learning rate of each.
        config: Epochs of all phases together, batch size and optimiser.
        model_config: As in `start`.
        starts: What `start` gave for each job, where it has been called already.
        checkpoints: From the name of a part of the work to its checkpoints, as a context.
        on_epoch: Called with the job's number and every row of its history.
        cache: Compute leading frozen layers once; False recomputes them in every batch, for comparison.

    Returns:
        One result a job, in their order, with adapters folded into the kernels.

    Raises:
        InputError: As `start`, and as `many.train_many`: a training loss that is not a number, or checkpoints of other
            jobs.
    """
    targets = tuple(targets)
    starts = starts or [start(dataset, targets, strategy, sources, job, model_config) for job in jobs]
    network = build_network(
        network_of(strategy, sources, model_config), sum(t.outputs for t in targets), dataset.graph.places
    )
    results = [Trained(one.variables, one.normaliser, [], 0) for one in starts]
    phases = strategy.phases(config.epochs) if strategy.trains else []
    params, update = starts[0].variables["params"], strategy.batch_norm == "update"
    stills = [() if update else frozen_modules(params, rates) for _, rates in phases]
    # What an earlier phase has trained is each job's own.
    settled = itertools.accumulate(stills, lambda before, now: tuple(name for name in now if name in before))
    depths = [cached_depth(params, names, network.config) if cache else None for names in settled]
    for number, ((epochs, rates), frozen, depth) in enumerate(zip(phases, stills, depths, strict=True)):
        still = cached_modules(network.config, depth)
        # Jobs with the same frozen layers share their activations.
        kinds = [digest(_apart(one.variables, still)[1]) for one in results]
        groups = [[i for i, kind in enumerate(kinds) if kind == one] for one in dict.fromkeys(kinds)]
        for group, some in enumerate(groups):
            first = results[some[0]].variables
            features = None if depth is None else prefix_features(network, first, dataset, depth)
            left = _of_use(rates, _apart(first, still)[0]["params"])
            program = Program(network, targets, config, left, frozen, strategy.pulls, depth)
            runs = [
                Run(jobs[i].train, jobs[i].val, _apart(results[i].variables, still)[0], starts[i].normaliser,
                    jobs[i].learning_rate, jobs[i].seed, number)
                for i in some
            ]  # fmt: skip
            done = {i: len(results[i].history) for i in some}  # fewer epochs where one ran out of patience
            tell = functools.partial(_tell, on_epoch, done) if on_epoch else None
            with checkpoints(f"group_{group}_phase_{number}") if checkpoints else contextlib.nullcontext() as kept:
                phase = replace(config, epochs=epochs)
                trained = train_many(
                    dataset, runs, program, phase, features=features, checkpoints=kept, on_epoch=tell
                )  # fmt: skip
            for i, one in zip(some, trained, strict=True):
                rest = _apart(results[i].variables, still)[1]
                one = replace(one, variables=_together(one.variables, rest))
                results[i] = _joined(results[i], one, config.keep)
    return [replace(one, variables=_folded(one.variables)) for one in results]


def cached_depth(params: Any, frozen: Sequence[str], config: ModelConfig) -> int | None:
    """How many leading convolutions give the same atom features in every epoch; None for none.

    Example:
        >>> cached_depth({}, ("embedding", "conv_0", "conv_2"), ModelConfig(convolutions=3))
        1
    """
    if ADAPTER in params:
        return None  # the convolutions change although none of their own parameters does
    if config.sources > 1:
        return config.convolutions if all(f"source_{i}" in frozen for i in range(config.sources)) else None
    if "embedding" not in frozen:
        return None
    free = (layer for layer in range(config.convolutions) if f"conv_{layer}" not in frozen)
    return next(free, config.convolutions) or None


def cached_modules(config: ModelConfig, depth: int | None) -> tuple[str, ...]:
    """Names of the modules that take no part once their activations are cached."""
    if depth is None:
        return ()
    if config.sources > 1:
        return tuple(f"source_{i}" for i in range(config.sources))
    return ("embedding", *(f"conv_{layer}" for layer in range(depth)))


def refit_output(
    dataset: CrystalDataset,
    rows: np.ndarray,
    targets: Sequence[Target],
    normaliser: Normaliser,
    source: Model,
    member: Variables,
) -> Variables:
    """A source's variables with a last layer whose output is the least-squares fit to the training labels.

    Of a source with one output this is a new scale and shift; of several, a linear combination of them.

    Args:
        dataset: Packed crystals with the targets' columns.
        rows: Training rows.
        targets: Values, not classes.
        normaliser: Of the targets.
        source: The source.
        member: The variables to start from.

    Raises:
        InputError: A target is a class.
    """
    if wrong := [target.name for target in targets if target.kind != "regression"]:
        raise InputError(f"{', '.join(wrong)}: classes cannot be fitted by scale and shift; choose another strategy")
    network = build_network(source.model, source.outputs, dataset.graph.places)
    outputs = network_outputs(network, member, dataset.select(rows)).astype(np.float64)
    labels = losses.normalise(np.asarray(dataset.targets[rows]), targets, normaliser)
    slopes, offsets = [], []
    for column in labels.T.astype(np.float64):
        known = np.isfinite(column)
        means = outputs[known].mean(0), column[known].mean()
        # Outputs that hardly differ from each other would get large weights of opposite sign, beyond float32.
        slopes.append(np.linalg.lstsq(outputs[known] - means[0], column[known] - means[1], rcond=OUTPUTS_ALIKE)[0])
        offsets.append(means[1] - means[0] @ slopes[-1])
    return _with_outputs(member, np.stack(slopes, 1), np.array(offsets))


def _learnt_alike(some: Sequence[Target], others: Sequence[Target]) -> bool:
    """Whether outputs for some targets are outputs for others: by unit, and by name where one has no unit."""
    return len(some) == len(others) and all(
        (one.outputs, one.kind, one.transform) == (other.outputs, other.kind, other.transform)
        and (one.unit == other.unit if one.unit and other.unit else one.name == other.name)
        for one, other in zip(some, others, strict=True)
    )


def on_scale(member: Variables, targets: Sequence[Target], learnt: Normaliser, scale: Normaliser) -> Variables:
    """A network that learnt on a scale of its own as one of a model whose networks share theirs.

    Args:
        member: {"params", "batch_stats"}.
        targets: What it learnt.
        learnt: The scale that it learnt on.
        scale: That of the model.

    Returns:
        Variables that predict the same, to float32 accuracy: only the last layer differs.
    """
    outputs = [target.outputs for target in targets]
    slope = np.repeat(learnt.std.astype(np.float64) / scale.std, outputs)
    offset = np.repeat((learnt.mean.astype(np.float64) - scale.mean) / scale.std, outputs)
    return _with_outputs(member, np.diag(slope), offset)


def _with_outputs(member: Variables, slope: np.ndarray, offset: np.ndarray) -> Variables:
    """Variables whose outputs are a member's times slope [outputs, new outputs] plus offset [new outputs]."""
    output = member["params"]["head"]["output"]
    kernel = np.asarray(output["kernel"], np.float64) @ slope
    bias = np.asarray(output["bias"], np.float64) @ slope + offset
    new = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return {**member, "params": {**member["params"], "head": {**member["params"]["head"], "output": new}}}


def _apart(variables: Variables, names: Sequence[str]) -> tuple[Variables, Variables]:
    """What is not in the named modules, and what is: a cached part need not travel through every update."""
    out, still = {}, {}
    for kind, tree in variables.items():
        out[kind] = {name: part for name, part in tree.items() if name not in names}
        still[kind] = {name: part for name, part in tree.items() if name in names}
    return out, still


def _together(variables: Variables, still: Variables) -> Variables:
    return {kind: {**still.get(kind, {}), **tree} for kind, tree in variables.items()}


def _of_use(rates: Rates, params: Any) -> Rates:
    """The patterns that are of use for what is left of the network: those of cached parts may not be."""
    paths = parameter_paths(params)
    firsts = (next(i for i, (pattern, _) in enumerate(rates) if fnmatch.fnmatchcase(path, pattern)) for path in paths)
    used = set(firsts)
    return tuple(rate for i, rate in enumerate(rates) if i in used)


def _joined(before: Trained, phase: Trained, keep: str) -> Trained:
    """Two phases as one training: the better epoch of both is kept, or the last one."""
    done = len(before.history)
    history = [*before.history, *({**row, "epoch": row["epoch"] + done} for row in phase.history)]

    if keep == "best" and before.history and before.best_score <= phase.best_score < math.inf:
        return replace(before, history=history)
    return replace(phase, history=history, best_epoch=phase.best_epoch + done)


def _tell(
    on_epoch: Callable[[int, dict[str, float]], None], done: dict[int, int], place: int, row: dict[str, float]
) -> None:
    """Pass on a row of a phase: `done` holds the epochs before it by job, in the order of the phase's runs."""
    i = list(done)[place]
    on_epoch(i, {**row, "epoch": row["epoch"] + done[i]})


def _folded(variables: Variables) -> Variables:
    """The plain network that acts as the adapted one."""
    return {**variables, "params": jax.device_get(fold_adapters(variables["params"]))}


def _means_sources(pattern: str, members: Sequence[Variables]) -> bool:
    """Whether a pattern over the parameters of a mixture matches some of a source's."""
    each = (parameter_paths(_without_head(member["params"])) for member in members)
    paths = (f"source_{index}/{path}" for index, paths in enumerate(each) for path in paths)
    return any(fnmatch.fnmatchcase(path, pattern) for path in paths)


def _without_head(tree: Any) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name != "head"}
