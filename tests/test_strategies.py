"""Strategies say what is loaded, re-initialised and trained, and a source that does not fit is explained."""

import numpy as np
import pytest
import toy

from tlcgcnn_jax.bundle import Model, check_graph, flatten
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.merging import merge
from tlcgcnn_jax.strategies import STRATEGIES, Strategy, find_strategy

NORMALISER = Normaliser(np.zeros(1, np.float32), np.ones(1, np.float32))


@pytest.fixture(scope="module")
def source():
    return toy.variables(seed=1, moved=True)


@pytest.fixture(scope="module")
def fresh():
    return toy.variables(seed=2)


FRESH = {
    "scratch": lambda name: True,
    "full": lambda name: name.startswith("head/"),
    "frozen": lambda name: name.startswith("head/"),
    "head": lambda name: name.startswith("head/output/"),
}
TRAINED = {
    "scratch": lambda name: True,
    "full": lambda name: True,
    "frozen": lambda name: name.startswith("head/"),
    "head": lambda name: name.startswith("head/output/"),
}


def test_every_strategy_is_tested():
    assert FRESH.keys() == TRAINED.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_merge(source, fresh, name):
    merged, account = merge(source, fresh, STRATEGIES[name])
    old, new = flatten(source), flatten(fresh)
    assert flatten(merged).keys() == new.keys()
    for path, array in flatten(merged).items():
        leaf = path.split("/", 1)[1]
        np.testing.assert_array_equal(array, (new if FRESH[name](leaf) else old)[path], err_msg=path)
    assert len(account.leaves) == len(new)
    assert sum(leaf.size for leaf in account.leaves) == sum(array.size for array in new.values())
    for leaf in account.leaves:
        assert leaf.fate == ("re-initialised" if FRESH[name](leaf.path) else "loaded"), leaf
        statistics = leaf.path.endswith(("/mean", "/var"))
        assert leaf.rate == (None if statistics else float(TRAINED[name](leaf.path))), leaf


def test_account_can_be_read(source, fresh):
    strategy = find_strategy("frozen", (("head/hidden_0/*", 0.5),))
    lines = str(merge(source, fresh, strategy)[1]).splitlines()
    found = {" ".join(line.split()) for line in lines}
    assert "embedding 2 arrays 744 numbers loaded frozen" in found
    assert "head/hidden_0 2 arrays 72 numbers re-initialised trained x0.5" in found
    assert "head/output 2 arrays 9 numbers re-initialised trained x1" in found
    assert "conv_1 4 arrays 48 numbers loaded statistics" in found


def changed(variables, change):
    copied = {"params": dict(variables["params"]), "batch_stats": dict(variables["batch_stats"])}
    change(copied)
    return copied


def narrow(variables):
    variables["params"]["conv_1"] = {name: np.zeros(3) for name in ("bias",)} | {
        name: leaf for name, leaf in variables["params"]["conv_1"].items() if name != "bias"
    }


MISFITS = {
    "shape": (narrow, "full", ["- params/conv_1/bias: (3,) in the source, (16,) needed"]),
    "less": (lambda v: v["params"].pop("embedding"), "full", ["- params/embedding/kernel (92, 8): not in the source"]),
    "more": (
        lambda v: v["batch_stats"].update(conv_2={"edge_norm": {"mean": np.zeros(4)}}),
        "full",
        ["+ batch_stats/conv_2/edge_norm/mean (4,): in the source only"],
    ),
    "several": (
        lambda v: (narrow(v), v["params"].pop("embedding")),
        "frozen",
        ["params/conv_1/bias", "params/embedding/bias", "params/embedding/kernel"],
    ),
}


@pytest.mark.parametrize(("change", "strategy", "told"), MISFITS.values(), ids=MISFITS)
def test_misfits_are_listed(source, fresh, change, strategy, told):
    with pytest.raises(InputError) as error:
        merge(changed(source, change), fresh, STRATEGIES[strategy])
    for line in told:
        assert line in str(error.value)


@pytest.mark.parametrize("change", [narrow, lambda v: v["params"].pop("embedding")], ids=["shape", "less"])
def test_scratch_needs_nothing_of_the_source(source, fresh, change):
    for from_ in (changed(source, change), {"params": {}, "batch_stats": {}}):
        merged, _ = merge(from_, fresh, STRATEGIES["scratch"])
        for path, array in flatten(fresh).items():
            np.testing.assert_array_equal(flatten(merged)[path], array)


def test_another_head_is_no_misfit_where_it_is_renewed(source):
    wider = toy.variables(outputs=3)
    merged, _ = merge(source, wider, STRATEGIES["full"])
    assert merged["params"]["head"]["output"]["kernel"].shape == (8, 3)
    with pytest.raises(InputError, match="head/output/kernel"):
        merge(source, wider, Strategy("all", "", (), (("*", 1.0),)))


def test_a_pattern_for_nothing_is_told(source, fresh):
    with pytest.raises(InputError, match=r"\? haed/\*: nothing in the network"):
        merge(source, fresh, Strategy("typing error", "", ("haed/*",), (("*", 1.0),)))


def test_unknown_strategy():
    with pytest.raises(InputError, match="'freeze'.*scratch, full, frozen, head"):
        find_strategy("freeze")


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_multipliers_that_make_no_sense(rate):
    with pytest.raises(InputError, match="conv_"):
        find_strategy("full", (("conv_*", rate),))


def test_own_strategy():
    own = Strategy("own", "", ("head/*",), (("embedding/*", 0.0), ("*", 1.0)))
    assert find_strategy(own, (("conv_0/*", 0.1),)).rates == (("conv_0/*", 0.1), ("embedding/*", 0.0), ("*", 1.0))


def model(graph: GraphConfig) -> Model:
    return Model(graph, toy.SIZES, (toy.ENERGY,), NORMALISER, (toy.variables(),))


def test_layout_may_differ():
    check_graph(GraphConfig(places=12), model(GraphConfig(places=4)))


OTHER_GRAPHS = {
    "cutoff": (GraphConfig(cutoff=6.0), ["cutoff is 6.0, the model's 8.0"]),
    "two": (GraphConfig(neighbours=8, ties="reference"), ["neighbours is 8, the model's 12", "ties is reference"]),
}


@pytest.mark.parametrize(("graph", "told"), OTHER_GRAPHS.values(), ids=OTHER_GRAPHS)
def test_other_graphs_are_refused(graph, told):
    with pytest.raises(InputError) as error:
        check_graph(graph, model(GraphConfig()), "packed/perovskites")
    for line in ["packed/perovskites", *told]:
        assert line in str(error.value)
