"""Every strategy at work on a small network: what starts anew, what is trained, what is kept, and what is refused."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from unittest import mock

import jax
import numpy as np
import pytest
import reference
import toy
from test_frozen_bitwise import optimizer_paths

from tlcgcnn_jax import fine_tuning, many, norms
from tlcgcnn_jax.bundle import Model, flatten, load_bundle, unflatten
from tlcgcnn_jax.checkpoint import Checkpoints
from tlcgcnn_jax.config import GraphConfig, Target
from tlcgcnn_jax.embeddings import embed, head_activations
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.fine_tuning import Job, fine_tune, network_of, start
from tlcgcnn_jax.graphs import build_graph
from tlcgcnn_jax.losses import Normaliser, normalise, score
from tlcgcnn_jax.model import CGCNN, SourceMixture, SourceNorm, build_network
from tlcgcnn_jax.norms import feature_statistics
from tlcgcnn_jax.optim import ALL
from tlcgcnn_jax.outputs import head_features, network_outputs, padded_batches, prefix_features
from tlcgcnn_jax.strategies import HEAD_ONLY, Phase, Strategy, find_strategy, strategy_names
from tlcgcnn_jax.train import Trained, init_state

CONFIG = dataclasses.replace(toy.CONFIG, weight_decay=0.1, clip=1.0)  # either would move what is frozen, were it let to
LAST = dataclasses.replace(CONFIG, keep="last")
NAMES = strategy_names(toy.SIZES.convolutions)
MIXTURES = tuple(name for name in NAMES if name.startswith("multi"))
LOADED = tuple(name for name in NAMES if name != "scratch")
TRAINING = tuple(name for name in NAMES if name != "keep_head")
JOBS = tuple(Job(toy.SPLIT.train, toy.SPLIT.val, seed, 1e-2, member=seed) for seed in (0, 1))
SMALL = dataclasses.replace(toy.SIZES, convolutions=1)


@functools.cache
def source() -> Model:
    return toy.source(1)


@functools.cache
def mixed() -> list[Model]:
    """Smaller ones, since all of a mixture are compiled."""
    return [toy.source(2, SMALL), toy.source(3, SMALL)]


@pytest.fixture(autouse=True)
def one_epoch_a_call(monkeypatch):
    """Phases of every length share a program."""
    monkeypatch.setattr(many, "CHUNK", 1)


def strategy(name: str, **changes) -> Strategy:
    return dataclasses.replace(find_strategy(name, convolutions=toy.SIZES.convolutions), **changes)


def sources(way: Strategy) -> list[Model]:
    return [] if way.name == "scratch" else [source()] if way.sources == 1 else mixed()


def tuned(way: Strategy, jobs=JOBS, dataset=None, config=CONFIG, **others) -> list[Trained]:
    given = others.pop("given", sources(way))
    return fine_tune(
        dataset or toy.dataset(), (toy.ENERGY,), way, given, jobs, config, model_config=toy.SIZES, **others
    )


@functools.cache
def starts(name: str) -> list[fine_tuning.Start]:
    way = strategy(name)
    return [start(toy.dataset(), (toy.ENERGY,), way, sources(way), job, toy.SIZES) for job in JOBS]


@functools.cache
def phases(name: str, cache: bool = True, config=CONFIG) -> tuple[list[Trained], list[tuple]]:
    """The results, and the (program, runs) of each phase."""
    with mock.patch.object(fine_tuning, "train_many", wraps=fine_tuning.train_many) as trains:
        found = tuned(strategy(name), starts=starts(name), cache=cache, config=config)
    return found, [(call.args[2], call.args[1]) for call in trains.call_args_list]


def trained(name: str, cache: bool = True) -> list[Trained]:
    return phases(name, cache)[0]


def under(*prefixes: str):
    return lambda path: path.startswith(prefixes)


EVERYTHING, HEAD, TOP = under(""), under("head/"), under("conv_1/", "head/")
# Which parameters start anew, and which are trained in each phase.
TABLE = {
    "scratch": (EVERYTHING, [EVERYTHING]),
    "full": (HEAD, [EVERYTHING]),
    "frozen": (HEAD, [HEAD]),
    "head": (under("head/output/"), [under("head/output/")]),
    "head_then_full": (HEAD, [HEAD, EVERYTHING]),
    "l2sp": (HEAD, [EVERYTHING]),
    "keep_head": (under("head/output/"), []),
    "keep_head_then_full": (under("head/output/"), [EVERYTHING]),
    "adapters": (under("head/", "adapter/"), [under("head/", "adapter/")]),
    "multi_source": (HEAD, [HEAD]),
    "multi_source_gate": (under("head/", "gate/"), [under("head/", "gate/")]),
    "multi_source_gate_top3": (under("head/", "gate/"), [under("head/", "gate/")]),
    "multi_source_gate_full": (under("head/", "gate/"), [under("head/", "gate/"), EVERYTHING]),
    "multi_source_full": (HEAD, [HEAD, EVERYTHING]),
    "discriminative": (HEAD, [EVERYTHING]),
    "gradual": (HEAD, [HEAD, TOP, EVERYTHING]),
    "freeze:conv_0": (HEAD, [TOP]),
    "freeze:conv_1": (HEAD, [HEAD]),
}


def source_leaves(name: str) -> dict[str, np.ndarray]:
    if name not in MIXTURES:
        return flatten(source().members[0])
    each = [flatten(model.members[0]) for model in mixed()]
    return {
        f"{kind}/source_{i}/{path}": leaf
        for i, leaves in enumerate(each)
        for kind, path, leaf in ((*full.split("/", 1), leaf) for full, leaf in leaves.items())
    }


def test_every_strategy_is_tested():
    assert set(TABLE) == set(NAMES)


@pytest.mark.parametrize("name", LOADED)
def test_start(name):
    fresh, known = TABLE[name][0], source_leaves(name)
    one, two = (flatten(each.variables) for each in starts(name))
    for path, leaf in one.items():
        if path.startswith("batch_stats/norm/"):
            assert not np.isin(leaf, (0, 1)).any(), f"{path} is not measured"
        elif path.startswith("batch_stats/") and strategy(name).batch_norm == "target":
            assert (leaf != known[path]).all(), f"{path} is the source's"
        elif not fresh(path.split("/", 1)[1]):
            assert leaf.tobytes() == known[path].tobytes() == two[path].tobytes(), f"{path} is not the source's"
        elif path.endswith(("/kernel", "/down")):
            other = known.get(path)
            assert other is None or (leaf != other).all(), f"{path} is to be fresh and is the source's"
            assert name.startswith("keep") or (leaf != two[path]).all(), f"{path} does not depend on the seed"
    lost = {path for path in known if path not in one}
    assert lost == {path for path in known if name in MIXTURES and "/head/" in path}


@pytest.mark.parametrize("name", TRAINING)
def test_what_is_trained(name):
    """Bit for bit, in spite of weight decay and clipping; adapters, too, leave all but the kernels as it was."""
    is_trained = lambda path: any(each(path) for each in TABLE[name][1])
    for begin, found in zip(starts(name), phases(name, config=LAST)[0], strict=True):
        before, now = flatten(begin.variables), flatten(found.variables)
        assert now.keys() == {path for path in before if "/adapter/" not in path}
        for path, leaf in now.items():
            kind, inner = path.split("/", 1)
            module = inner.rsplit("/", 1)[0] + "/"
            if kind == "batch_stats":
                moves = is_trained(module) and module != "norm/"  # a mixture's norm is measured once
            elif inner.endswith(("conv_0/bias", "conv_1/bias")) and is_trained(inner):
                continue  # a batch norm takes it away: it may or may not move
            else:
                moves = is_trained(inner) or is_trained(f"adapter/{inner}") and inner.endswith("_kernel")
            assert (leaf.tobytes() != before[path].tobytes()) == moves, f"{path}: trained is to be {moves}"


@pytest.mark.parametrize("name", TRAINING)
def test_optimizer_holds_what_is_trained_once(name):
    _, programs = phases(name)
    assert len(programs) == len(TABLE[name][1])
    for (program, runs), is_trained in zip(programs, TABLE[name][1], strict=True):
        assert len(runs) == len(JOBS)
        opt_state = init_state(program, runs[0].variables).opt_state
        wanted = sorted(
            path.removeprefix("params/")
            for path in flatten(starts(name)[0].variables)
            if path.startswith("params/") and is_trained(path.removeprefix("params/"))
        )
        for moment in ("mu", "nu"):
            assert sorted(optimizer_paths(opt_state, moment)) == wanted


# Convolutions whose activations are computed once, by phase.
CACHED = {
    "frozen": [2],
    "head": [2],
    "freeze:conv_0": [1],
    "freeze:conv_1": [2],
    "head_then_full": [2, None],
    "gradual": [2, 1, None],
    "multi_source": [1],
    "multi_source_gate": [1],
    "multi_source_gate_top3": [1],
    "multi_source_gate_full": [1, None],
    "multi_source_full": [1, None],
}


@pytest.mark.parametrize("name", TRAINING)
def test_depth_of_the_cache(name):
    found = [program.cached for program, _ in phases(name)[1]]
    assert found == CACHED.get(name, [None])


@pytest.mark.parametrize("name", ["frozen", "freeze:conv_0", "head_then_full", "multi_source"])
def test_cached_is_uncached(name):
    assert all(program.cached is None for program, _ in phases(name, cache=False)[1])
    # A convolution's bias has no gradient but rounding, of which Adam makes full steps; the running means follow.
    noisy = name in ("freeze:conv_0", "head_then_full")
    for one, other in zip(trained(name), trained(name, cache=False), strict=True):
        for ours, theirs in zip(one.history, other.history, strict=True):
            assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-2 if noisy else 1e-4)
            assert ours["val_score"] == pytest.approx(theirs["val_score"], rel=1e-2 if noisy else 1e-4)
        for path, leaf in flatten(other.variables).items() if not noisy else ():
            np.testing.assert_allclose(flatten(one.variables)[path], leaf, rtol=1e-3, atol=1e-4, err_msg=path)


def network(name: str):
    way = strategy(name)
    return build_network(network_of(way, sources(way), toy.SIZES), 1, 4)


def val_score(name: str, found: Trained) -> float:
    labels = normalise(toy.dataset().targets[toy.SPLIT.val], (toy.ENERGY,), found.normaliser)
    outputs = network_outputs(network(name), found.variables, toy.dataset().select(toy.SPLIT.val))
    return score(outputs, labels, (toy.ENERGY,))


@pytest.mark.parametrize("name", TRAINING)
def test_extractor_and_head_belong_together(name):
    """What is returned has the best score of all phases, and the epochs are counted through."""
    for found in trained(name):
        scores = [row["val_score"] for row in found.history]
        assert [row["epoch"] for row in found.history] == list(range(1, len(scores) + 1))
        assert found.best_epoch == 1 + int(np.argmin(scores))
        assert val_score(name, found) == pytest.approx(min(scores), rel=1e-4)


def test_the_last_phase_is_kept_on_request():
    """Also where an earlier one has a better score."""
    jobs = [dataclasses.replace(job, learning_rate=3.0) for job in JOBS]  # so that the first phase has
    found, best = (tuned(strategy("head_then_full"), jobs, config=one) for one in (LAST, CONFIG))
    assert any(one.best_epoch < len(one.history) for one in best)
    for one in found:
        assert one.best_epoch == len(one.history)
        assert val_score("head_then_full", one) == pytest.approx(one.history[-1]["val_score"], rel=1e-4)


def bits(found: Trained) -> list[bytes]:
    leaves = [*jax.tree.leaves(found.variables), *found.normaliser]
    return [np.asarray(leaf).tobytes() for leaf in leaves] + [repr(found.history).encode()]


def relabelled(rows) -> dict:
    targets = np.array(toy.dataset().targets)
    targets[rows] += 100
    return {"dataset": toy.replaced(toy.dataset(), targets=targets)}


@pytest.mark.parametrize("name", ["head_then_full", "keep_head"])
def test_labels_that_are_held_out_are_not_seen(name):
    expected = trained(name)
    for one, other in zip(tuned(strategy(name), **relabelled(toy.SPLIT.test)), expected, strict=True):
        assert bits(one) == bits(other)


def test_validation_labels_choose_the_epoch_and_nothing_else():
    last = phases("full", config=LAST)[0]
    for one, other in zip(tuned(strategy("full"), config=LAST, **relabelled(toy.SPLIT.val)), last, strict=True):
        assert bits(dataclasses.replace(one, history=[])) == bits(dataclasses.replace(other, history=[]))


def test_no_phase_repeats_the_orders_and_the_dropout_of_another():
    """Nor those of another job's; the first one has those of a training in one phase."""
    with mock.patch.object(many, "batch_plan", wraps=many.batch_plan) as plans, mock.patch.object(
        many, "Hyper", wraps=many.Hyper
    ) as hypers:  # fmt: skip
        tuned(strategy("gradual"))
    drawn = [call.args[3:] for call in plans.call_args_list if len(call.args) > 3]
    assert len(set(drawn)) == len(drawn) == sum(epochs for epochs, _ in strategy("gradual").phases(4)) * len(JOBS)
    seeds = [int(call.args[2]) for call in hypers.call_args_list]
    assert len(set(seeds)) == len(seeds) == 3 * len(JOBS) and seeds[:2] == [0, 1]
    assert {seed for seed, _ in drawn} == set(seeds)


def test_an_interrupted_phase_goes_on_exactly(tmp_path):
    kept = lambda name: Checkpoints(tmp_path / name)

    def interrupt(i: int, row: dict) -> None:
        if (i, row["epoch"]) == (1, 3):  # in the last phase
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(strategy("head_then_full"), checkpoints=kept, on_epoch=interrupt)
    resumed = tuned(strategy("head_then_full"), checkpoints=kept)
    for one, other in zip(resumed, trained("head_then_full"), strict=True):
        assert bits(one) == bits(other)


def test_epochs_are_told_by_job():
    seen = []
    found = tuned(strategy("head_then_full"), on_epoch=lambda i, row: seen.append((i, row)))
    for i, one in enumerate(found):
        assert [row for j, row in seen if j == i] == one.history


def test_patience_ends_a_phase_and_the_next_one_counts_on():
    config = dataclasses.replace(CONFIG, epochs=12, patience=1)
    way = strategy("head_then_full", before=(Phase(0.5, HEAD_ONLY),))
    seen = []
    found = tuned(way, config=config, on_epoch=lambda i, row: seen.append((i, row["epoch"])))
    assert any(len(one.history) < 12 for one in found)
    for i, one in enumerate(found):
        assert [row["epoch"] for row in one.history] == list(range(1, len(one.history) + 1))
        assert [epoch for j, epoch in seen if j == i] == [row["epoch"] for row in one.history]
        assert one.history[one.best_epoch - 1]["val_score"] == min(row["val_score"] for row in one.history)


# --- statistics of batch norm -----------------------------------------------------------------------------------------


def batch_statistics(variables: dict, rows) -> dict[str, np.ndarray]:
    """Means and unbiased variances of each batch norm's input, by the NumPy network in float64."""
    zero = {"params": variables["params"], "batch_stats": jax.tree.map(np.zeros_like, variables["batch_stats"])}
    graphs = [reference.unpack(build_graph(toy.crystal(row), GraphConfig())) for row in rows]
    step = reference.training_step(
        zero, reference.crystals(graphs), np.zeros((len(rows), 1)),
        step=toy.SIZES.gaussian_step, last=toy.SIZES.gaussian_max,
    )  # fmt: skip
    return {path: leaf / reference.MOMENTUM for path, leaf in flatten(step.batch_stats).items()}


OTHER_ROWS = dataclasses.replace(JOBS[0], train=np.arange(4, 12), val=np.array([0, 1]))


def test_statistics_of_the_target():
    """Those of each job's own training crystals, which then stay; a job in company gets what it gets alone."""
    way = strategy("frozen", batch_norm="target")
    jobs = [JOBS[0], OTHER_ROWS]
    found = tuned(way, jobs)
    for job, one in zip(jobs, found, strict=True):
        for path, leaf in batch_statistics(source().members[0], job.train).items():
            now = flatten(one.variables["batch_stats"])[path]
            np.testing.assert_allclose(now, leaf, rtol=1e-4, atol=1e-5, err_msg=path)
        begin = start(toy.dataset(), (toy.ENERGY,), way, [source()], job).variables
        assert flatten(begin["batch_stats"]).keys() == flatten(one.variables["batch_stats"]).keys()
        for path, leaf in flatten(begin["batch_stats"]).items():
            assert flatten(one.variables["batch_stats"])[path].tobytes() == leaf.tobytes()
        assert bits(tuned(way, [job])[0]) == bits(one)


def test_statistics_that_are_updated():
    """Then a frozen convolution normalises by the batch, too, and nothing can be computed once for all epochs."""
    way = strategy("frozen", batch_norm="update")
    with mock.patch.object(fine_tuning, "train_many", wraps=fine_tuning.train_many) as trains:
        found = tuned(way)[0]
    program = trains.call_args.args[2]
    assert program.cached is None and program.frozen == ()
    for path, leaf in flatten(source().members[0]).items():
        same = flatten(found.variables)[path].tobytes() == leaf.tobytes()
        assert same == (path.startswith("params/") and "/head/" not in path), path
    assert found.history[0]["train_loss"] != pytest.approx(trained("frozen")[0].history[0]["train_loss"], rel=1e-3)


# --- what is computed once must be the same for all jobs --------------------------------------------------------------


SEEDS = tuple(dataclasses.replace(job, member=0) for job in JOBS)
SHARED = {
    "fresh layers that stay": (find_strategy("scratch", (("embedding/*", 0.0), ("conv_*", 0.0))), SEEDS, lambda: []),
    "members of an ensemble": (strategy("frozen"), JOBS, lambda: [toy.source(1, members=2)]),
    "trained before it is frozen": (strategy("frozen", before=(Phase(0.5, ALL),)), SEEDS, lambda: [source()]),
}


@pytest.mark.parametrize(("way", "jobs", "given"), SHARED.values(), ids=SHARED)
def test_a_job_in_company_gets_what_it_gets_alone(way, jobs, given):
    given = given()
    together = tuned(way, jobs, given=given)
    assert bits(together[0]) != bits(together[1])
    rows = toy.SPLIT.val
    for job, one in zip(jobs, together, strict=True):
        assert bits(tuned(way, [job], given=given)[0]) == bits(one)
        labels = normalise(toy.dataset().targets[rows], (toy.ENERGY,), one.normaliser)
        outputs = network_outputs(CGCNN(toy.SIZES, 1, 4), one.variables, toy.dataset().select(rows))
        best = min(row["val_score"] for row in one.history)
        assert score(outputs, labels, (toy.ENERGY,)) == pytest.approx(best, rel=1e-4)


def test_jobs_that_can_share_do():
    """Different seeds, rates and rows of one source are one call."""
    with mock.patch.object(fine_tuning, "train_many", wraps=fine_tuning.train_many) as trains:
        tuned(strategy("frozen"), [*JOBS, OTHER_ROWS])
    assert trains.call_count == 1


# --- particular strategies --------------------------------------------------------------------------------------------


def away(found: Trained) -> float:
    """Distance of the loaded parameters from the source."""
    loaded = {
        path: leaf for path, leaf in flatten(source().members[0]["params"]).items() if not path.startswith("head/")
    }
    now = flatten(found.variables["params"])
    return float(np.sqrt(sum(np.sum((now[path] - leaf) ** 2) for path, leaf in loaded.items())))


def test_a_strong_pull_keeps_the_weights_at_the_source():
    """At a rate of 0.9 each update goes nine tenths of the way back."""
    fast = [dataclasses.replace(JOBS[0], learning_rate=0.9)]
    pulled, free = (tuned(strategy(name), fast, config=LAST)[0] for name in ("l2sp", "full"))
    assert 0 < away(pulled) < 0.3 * away(free)
    head = [flatten(found.variables["params"]["head"])["hidden_0/kernel"] for found in (pulled, free)]
    begin = flatten(starts("l2sp")[0].variables["params"]["head"])["hidden_0/kernel"]
    moved = [np.linalg.norm(each - begin) for each in head]
    assert moved[0] > 0.5 * moved[1], "the new head is not pulled"


def outputs(variables: dict, model: Model | None = None) -> np.ndarray:
    return network_outputs((model or source()).network, variables, toy.dataset())


def test_a_head_that_is_kept_goes_on_saying_what_it_said():
    """Also where the training crystals of the target set another scale than those of the source."""
    model = dataclasses.replace(source(), normaliser=Normaliser(np.full(1, 2.0), np.full(1, 3.0)))
    as_is = Strategy("as_is", "", (), (("*", 0.0),))
    for called in (toy.ENERGY, dataclasses.replace(toy.ENERGY, unit="")):
        found = start(toy.dataset(), (called,), as_is, [model], JOBS[0])
        said = outputs(found.variables)[:, 0] * found.normaliser.std[0] + found.normaliser.mean[0]
        np.testing.assert_allclose(said, outputs(model.members[0])[:, 0] * 3 + 2, rtol=1e-5)
    assert found.normaliser.std[0] != pytest.approx(3, rel=0.01)
    gap = dataclasses.replace(model, targets=(Target("gap", "eV/atom"),))
    for unit, other in (("GPa", model), ("", gap)):  # another property, or one of which that is not known: as loaded
        found = start(toy.dataset(), (dataclasses.replace(toy.ENERGY, unit=unit),), as_is, [other], JOBS[0])
        np.testing.assert_array_equal(outputs(found.variables), outputs(model.members[0]))
        assert fates(found)["output"] == "loaded"


def fates(begin: fine_tuning.Start) -> dict[str, str]:
    """What the account says of each layer of the head."""
    assert begin.account
    return {leaf.path.split("/")[1]: leaf.fate for leaf in begin.account.leaves if leaf.path.startswith("head/")}


def test_the_account_tells_what_became_of_a_head_that_is_kept():
    """It is not the source's, though nothing of it is trained."""
    as_is = Strategy("as_is", "", (), (("*", 0.0),))
    rescaled = start(toy.dataset(), (toy.ENERGY,), as_is, [source()], JOBS[0])
    assert fates(rescaled) == {"hidden_0": "loaded", "output": "rescaled"}
    (fitted, _), (new, _) = starts("keep_head"), starts("head")
    assert fates(fitted) == {"hidden_0": "loaded", "output": "fitted"}
    assert re.search(r"head/output +2 arrays +9 numbers +fitted +frozen", str(fitted.account))
    assert fates(new) == {"hidden_0": "loaded", "output": "re-initialised"}


def test_keep_head_is_least_squares():
    """Slope and offset by `numpy.polyfit`; every other crystal is predicted by the same map."""
    rows, before = toy.SPLIT.train, outputs(source().members[0])[:, 0]
    values = toy.dataset().targets[rows, 0]
    labels = (values - values.mean()) / values.std()
    slope, offset = np.polyfit(before[rows].astype(float), labels, 1)
    for found in trained("keep_head"):
        np.testing.assert_allclose(outputs(found.variables)[:, 0], slope * before + offset, rtol=1e-4, atol=1e-5)
        assert found.history == [] and found.best_epoch == 0


SEVERAL = (toy.ENERGY, Target("gap"), Target("metal", kind="classification"), Target("family", "", "classification", 3))


@functools.cache
def rich() -> Model:
    return toy.source(5, targets=SEVERAL)


def test_keep_head_of_several_outputs():
    rows = toy.SPLIT.train
    found = tuned(strategy("keep_head"), JOBS[:1], given=[rich()])[0]
    before = outputs(rich().members[0], rich()).astype(float)
    before -= before[rows].mean(0)
    values = toy.dataset().targets[rows, 0]
    weights = np.linalg.pinv(before[rows], rcond=1e-4) @ ((values - values.mean()) / values.std())
    np.testing.assert_allclose(outputs(found.variables)[:, 0], before @ weights, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in LOADED if name not in MIXTURES])
def test_a_source_of_several_targets_is_one_like_any_other(name):
    begin = start(toy.dataset(), (toy.ENERGY,), strategy(name), [rich()], JOBS[0]).variables
    shapes = {path: leaf.shape for path, leaf in flatten(starts(name)[0].variables).items()}
    assert {path: leaf.shape for path, leaf in flatten(begin).items()} == shapes
    for path, leaf in flatten(rich().members[0]).items():
        if not TABLE[name][0](path.split("/", 1)[1]):
            assert flatten(begin)[path].tobytes() == leaf.tobytes()


def test_fine_tuning_from_a_source_of_several_targets():
    found = tuned(strategy("full"), JOBS[:1], given=[rich()])[0]
    assert found.history[-1]["train_loss"] < found.history[0]["train_loss"]


# --- mixtures ---------------------------------------------------------------------------------------------------------


def own_features(models: Sequence[Model], job: Job) -> np.ndarray:
    """[crystal, source, width], each on the scale of the training crystals, logarithmic far out."""
    each = np.stack([embed(model, toy.dataset(), ("pooled",)) for model in models], 1).astype(float)
    return np.arcsinh((each - each[job.train].mean(0)) / each[job.train].std(0))


@pytest.mark.parametrize("name", ["multi_source", "multi_source_gate"])
def test_a_mixture_is_its_sources_and_a_head(name):
    for job, found in zip(JOBS, trained(name), strict=True):
        features = own_features(mixed(), job)
        params = found.variables["params"]
        if name == "multi_source":
            joined = features.reshape(toy.N, -1)
        else:
            logits = np.asarray(params["gate"]["logits"], float)
            weights = np.exp(logits) / np.exp(logits).sum()
            assert weights.sum() == pytest.approx(1) and np.ptp(weights) > 1e-3
            joined = np.einsum("s,gsw->gw", weights, features)
        seen = head_features(network(name), found.variables, toy.dataset())
        np.testing.assert_allclose(seen, features.reshape(toy.N, -1), rtol=1e-4, atol=1e-5)
        expected = head_activations(params["head"], joined)[1]
        ours = network_outputs(network(name), found.variables, toy.dataset())
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_source_of_huge_features_does_not_drown_the_others():
    """As of a network that has seen one element alone; what it says of nearly all crystals alike is left out."""
    few, some = slice(0, toy.N - 1), np.random.default_rng(0).normal(size=(toy.N, 5))
    far = some * [1e4, 10, 1e-3, 1e-7, 1] + [9e4, 9e4, 9, 0, 0]
    far[-1, :4] = 1e9, 8e4, 8, 1
    stats = feature_statistics(far[few].astype(np.float32))
    found = np.asarray(SourceNorm().apply({"batch_stats": stats}, far.astype(np.float32)))
    np.testing.assert_allclose(found[few].std(0), [0.75, 0, 0, 0, 0.75], atol=0.1)
    np.testing.assert_allclose(found[-1, :4], [12, 0, 0, 0], atol=1)


def far_source() -> Model:
    """Whose batch norm has seen inputs that hardly differ, as of one element: it makes all others huge."""
    model = toy.source(3, SMALL)
    leaves = flatten(model.members[0]).items()
    member = unflatten({path: leaf * np.float32(1e-8 if path.endswith("/var") else 1) for path, leaf in leaves})
    return dataclasses.replace(model, members=(member,))


def test_every_source_of_a_mixture_gives_its_networks_in_turn():
    """Whichever of them is an ensemble."""
    two = toy.source(3, SMALL, members=2)
    for number in range(3):
        job = dataclasses.replace(JOBS[0], member=number)
        found = start(toy.dataset(), (toy.ENERGY,), strategy("multi_source"), [mixed()[0], two], job, toy.SIZES)
        for index, member in enumerate((mixed()[0].members[0], two.members[number % 2])):
            kernel = found.variables["params"][f"source_{index}"]["embedding"]["kernel"]
            np.testing.assert_array_equal(kernel, member["params"]["embedding"]["kernel"])


@pytest.mark.parametrize("policy", ["target", "source"])
def test_a_far_source_lives_through_its_training(policy):
    """Its features still tell crystals apart where batch norm goes by the batch: why the policy is "target"."""
    given, way = [toy.source(2, SMALL), far_source()], strategy("multi_source_full")
    assert way.batch_norm == strategy("multi_source_gate_full").batch_norm == "target"
    found = tuned(dataclasses.replace(way, batch_norm=policy), JOBS[:1], given=given, config=LAST)[0]
    rows, graph = next(padded_batches(toy.dataset().select(toy.SPLIT.train)))
    mixture = build_network(network_of(way, given, toy.SIZES), 1, 4)
    features = lambda variables, graph: mixture.apply(
        variables, graph, True, method="features", mutable=["batch_stats"]
    )
    raw, _ = jax.jit(features)(found.variables, graph)
    scaled = np.asarray(SourceNorm().apply({"batch_stats": found.variables["batch_stats"]["norm"]}, raw))[: len(rows)]
    near, far = np.median(scaled.std(0).reshape(2, -1), axis=1)
    assert near > 0.1 and (far > 0.1) == (policy == "target"), (near, far)


def test_the_norm_is_measured_by_the_statistics_that_hold():
    """Those of the target where the strategy takes them, and by a part of many crystals."""
    for policy, most in (("source", 500), ("target", 500), ("source", 4)):
        way = strategy("multi_source", batch_norm=policy)
        with mock.patch.object(norms, "NORM_CRYSTALS", most):
            begin = start(toy.dataset(), (toy.ENERGY,), way, mixed(), JOBS[0], toy.SIZES).variables
        rows = JOBS[0].train if most == 500 else np.random.default_rng(0).permutation(JOBS[0].train)[:most]
        mixture = build_network(network_of(way, mixed(), toy.SIZES), 1, 4)
        features = prefix_features(mixture, begin, toy.dataset().select(rows))
        for part, measured in feature_statistics(features).items():
            np.testing.assert_allclose(begin["batch_stats"]["norm"][part], measured, rtol=1e-5, err_msg=policy)


def test_a_mixture_without_statistics_is_refused(tmp_path):
    """Those of a version that took the features of sources as they are would predict something else."""
    begin = starts("multi_source")[0]
    mixture = network_of(strategy("multi_source"), mixed(), toy.SIZES)
    whole = dataclasses.replace(source(), model=mixture, members=(begin.variables,))
    load_bundle(whole.save(tmp_path / "whole"))
    stats = {name: tree for name, tree in begin.variables["batch_stats"].items() if name != "norm"}
    old = dataclasses.replace(whole, members=({**begin.variables, "batch_stats": stats},))
    with pytest.raises(InputError, match="did not bring its sources to one scale: train it again"):
        load_bundle(old.save(tmp_path / "old"))


def test_the_gate_starts_with_all_alike():
    for begin in starts("multi_source_gate"):
        np.testing.assert_array_equal(begin.variables["params"]["gate"]["logits"], np.zeros(2, np.float32))


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_gate_lets_the_largest_through(top_k):
    way = strategy("multi_source_gate", top_k=top_k)
    third = toy.source(4, SMALL)
    begin = start(toy.dataset(), (toy.ENERGY,), way, [*mixed(), third], JOBS[0], toy.SIZES).variables
    logits = np.array([0.5, -1.0, 2.0], np.float32)
    begin["params"]["gate"]["logits"] = logits
    mixture = build_network(network_of(way, [*mixed(), third], toy.SIZES), 1, 4)
    assert isinstance(mixture, SourceMixture)
    features = own_features([*mixed(), third], JOBS[0])
    weights = np.exp(logits) * [top_k == 2, 0, 1]
    joined = np.einsum("s,gsw->gw", weights / weights.sum(), features)
    expected = head_activations(begin["params"]["head"], joined)[1]
    np.testing.assert_allclose(network_outputs(mixture, begin, toy.dataset()), expected, rtol=1e-4, atol=1e-5)


# --- refused ----------------------------------------------------------------------------------------------------------


def narrow() -> Model:
    return toy.source(1, dataclasses.replace(toy.SIZES, width=4))


def mixture() -> Model:
    return dataclasses.replace(source(), model=dataclasses.replace(toy.SIZES, sources=2))


def far() -> Model:
    return dataclasses.replace(source(), graph=GraphConfig(cutoff=6.0))


def not_finite() -> Model:
    nan = jax.tree.map(lambda leaf: leaf * np.nan, mixed()[1].members[0])
    return dataclasses.replace(mixed()[1], members=(nan,))


CLASS = Target("energy", kind="classification")
NOT_TRAINED = dataclasses.replace(JOBS[0], train=np.zeros(0, np.int64))
REFUSED = {
    "no source": ("full", lambda: [], {}, "full starts from a source, none was given"),
    "two sources for one": ("full", mixed, {}, "full takes one source, 2 were given"),
    "one source for several": (
        "multi_source",
        lambda: [source()],
        {},
        "multi_source joins several sources, one was given",
    ),
    "a source that is not finite": ("multi_source", lambda: [mixed()[0], not_finite()], {}, "are not finite: look at"),
    "a mixture as a source": ("full", lambda: [mixture()], {}, "itself a mixture of 2 sources"),
    "sources of other widths": (
        "multi_source",
        lambda: [source(), narrow()],
        {},
        "must agree in width, .*: they differ in width",
    ),
    "other graphs": ("full", lambda: [far()], {}, "cutoff is 8.0, the model's 6.0"),
    "other targets": (
        "full",
        lambda: [source()],
        {"targets": (Target("gap"),)},
        "holds the targets .*energy.*asked for .*gap",
    ),
    "classes to be scaled": (
        "keep_head",
        lambda: [source()],
        {"targets": (CLASS,)},
        "energy: classes cannot be fitted",
    ),
    "no label": ("full", lambda: [source()], {"jobs": [NOT_TRAINED]}, "energy: not one training crystal has a label"),
}


@pytest.mark.parametrize(("name", "given", "change", "told"), REFUSED.values(), ids=REFUSED)
def test_refused(name, given, change, told):
    dataset, targets = toy.dataset(), change.get("targets", (toy.ENERGY,))
    if targets == (CLASS,):
        dataset = toy.replaced(dataset, targets=np.ones_like(dataset.targets))
    with pytest.raises(InputError, match=told):
        fine_tune(dataset, targets, strategy(name), given(), change.get("jobs", JOBS), CONFIG, model_config=toy.SIZES)


@pytest.mark.parametrize("pattern", ["source_1/conv_0/*", "*"])
def test_sources_of_a_mixture_do_not_start_anew(pattern):
    """Which would be told of them, and not be so."""
    way = strategy("multi_source", reinitialise=(pattern, "head/*"))
    with pytest.raises(
        InputError, match=f"multi_source: the sources of a mixture are taken as they are: {re.escape(pattern)} "
    ):
        tuned(way, given=mixed())


def test_patterns_that_do_not_cover_are_told():
    way = Strategy("own", "", ("head/*",), (("head/*", 1.0), ("conv_*", 0.1)))
    with pytest.raises(InputError, match="- embedding/kernel: no pattern matches"):
        tuned(way, given=[source()])


def test_patterns_of_every_phase_are_checked_at_the_start():
    """Not after the phases before have been trained."""
    way = find_strategy("gradual", (("conv_*", 0.1),), toy.SIZES.convolutions)
    with pytest.raises(InputError, match="no parameter is left for it"):
        start(toy.dataset(), (toy.ENERGY,), way, [source()], JOBS[0])


def test_a_pull_towards_what_was_moved_before_is_refused():
    moved = Strategy("own", "", ("head/*",), (("*", 1.0),), (Phase(0.5, (("*", 1.0),)),), pull=0.1)
    with pytest.raises(InputError, match="one before the last trains what was loaded"):
        start(toy.dataset(), (toy.ENERGY,), moved, [source()], JOBS[0])
    still = dataclasses.replace(moved, before=(Phase(0.5, (("head/*", 1.0), ("*", 0.0))),))
    assert start(toy.dataset(), (toy.ENERGY,), still, [source()], JOBS[0]).account


def test_a_source_of_another_depth_is_explained():
    short = dataclasses.replace(source(), members=(toy.variables(dataclasses.replace(toy.SIZES, convolutions=1)),))
    with pytest.raises(InputError, match="- params/conv_1/bias .*: not in the source"):
        tuned(strategy("full"), given=[short])
