"""Strategies say what is loaded, re-initialised and trained, and a source that does not fit is explained."""

import numpy as np
import pytest
import toy

from tlcgcnn_jax.adapters import add_adapters
from tlcgcnn_jax.bundle import check_same_graph, flatten
from tlcgcnn_jax.config import GraphConfig
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.merging import merge
from tlcgcnn_jax.optim import frozen_modules, rate_tree
from tlcgcnn_jax.strategies import (
    STRATEGIES,
    EnsembleStrategy,
    FeatureStrategy,
    Phase,
    Strategy,
    find_strategy,
    find_way,
    strategy_names,
)


@pytest.fixture(scope="module")
def source():
    return toy.variables(seed=1, moved=True)


@pytest.fixture(scope="module")
def fresh():
    return toy.variables(seed=2)


def under(*prefixes):
    return lambda name: name.startswith(prefixes)


def tenths(name):
    """Rates of a network of two convolutions, of which each layer is 2.6 times as slow as the one above."""
    layers = ("head/", "conv_1/", "conv_0/", "embedding/")
    return 2.6 ** -[name.startswith(layer) for layer in layers].index(True)


EVERYTHING, NOTHING, HEAD, LAST = under(""), lambda name: False, under("head/"), under("head/output/")
FRESH = {
    "scratch": EVERYTHING,
    "full": HEAD,
    "frozen": HEAD,
    "head": LAST,
    "head_then_full": HEAD,
    "l2sp": HEAD,
    "keep_head": NOTHING,
    "keep_head_then_full": NOTHING,
    "adapters": under("adapter/", "head/"),
    "multi_source": HEAD,
    "multi_source_gate": under("gate/", "head/"),
    "multi_source_gate_top3": under("gate/", "head/"),
    "multi_source_gate_full": under("gate/", "head/"),
    "multi_source_full": HEAD,
    "discriminative": HEAD,
    "gradual": HEAD,
    "freeze:conv_0": HEAD,
    "freeze:conv_1": HEAD,
}
TRAINED = {  # in the last phase, as multipliers
    "scratch": EVERYTHING,
    "full": EVERYTHING,
    "frozen": HEAD,
    "head": LAST,
    "head_then_full": EVERYTHING,
    "l2sp": EVERYTHING,
    "keep_head": NOTHING,
    "keep_head_then_full": EVERYTHING,
    "adapters": under("adapter/", "head/"),
    "multi_source": HEAD,
    "multi_source_gate": lambda name: 10.0 if name.startswith("gate/") else HEAD(name),
    "multi_source_gate_top3": lambda name: 10.0 if name.startswith("gate/") else HEAD(name),
    "multi_source_gate_full": lambda name: 10.0 if name.startswith("gate/") else 1.0,
    "multi_source_full": EVERYTHING,
    "discriminative": tenths,
    "gradual": EVERYTHING,
    "freeze:conv_0": under("conv_1/", "head/"),
    "freeze:conv_1": HEAD,
}


def test_every_strategy_is_tested():
    assert set(FRESH) == set(TRAINED) == set(strategy_names(2))


def network(variables, strategy, name):
    """The variables as the strategy arranges them."""
    if strategy.adapter_rank and name == "fresh":
        return {**variables, "params": add_adapters(variables["params"], strategy.adapter_rank, 0)}
    if strategy.sources == 1:
        return variables
    bodies = {kind: {n: part for n, part in tree.items() if n != "head"} for kind, tree in variables.items()}
    out = {kind: {"source_0": body, "source_1": body} for kind, body in bodies.items()}
    if name == "fresh":
        out["params"]["head"] = variables["params"]["head"]
        out["batch_stats"]["norm"] = {"mean": np.zeros(16, np.float32), "inverse_std": np.ones(16, np.float32)}
        if strategy.combine == "gate":
            out["params"]["gate"] = {"logits": np.zeros(2, np.float32)}
    return out


@pytest.mark.parametrize("name", FRESH)
def test_merge(source, fresh, name):
    strategy = find_strategy(name, convolutions=2)
    source, fresh = network(source, strategy, "source"), network(fresh, strategy, "fresh")
    merged, account = merge(source, fresh, strategy)
    is_fresh = lambda path: FRESH[name](path) or path.startswith("norm/")
    old, new = flatten(source), flatten(fresh)
    assert flatten(merged).keys() == new.keys()
    for path, array in flatten(merged).items():
        leaf = path.split("/", 1)[1]
        np.testing.assert_array_equal(array, (new if is_fresh(leaf) else old)[path], err_msg=path)
    assert len(account.leaves) == len(new)
    assert sum(leaf.size for leaf in account.leaves) == sum(array.size for array in new.values())
    for leaf in account.leaves:
        statistics = leaf.path.endswith(("/mean", "/var", "/inverse_std"))
        measured = leaf.path.startswith("norm/") or statistics and strategy.batch_norm == "target"
        assert leaf.fate == ("measured" if measured else "re-initialised" if is_fresh(leaf.path) else "loaded"), leaf
        assert leaf.rate == (None if statistics else pytest.approx(float(TRAINED[name](leaf.path)))), leaf


LAYERS = {depth: ["embedding", *(f"conv_{layer}" for layer in range(depth)), "head"] for depth in (1, 2, 3, 4)}


def layer_rates(rates, depth: int) -> list[float]:
    """Of a network with one parameter in each layer, from below."""
    tree = rate_tree({layer: {"kernel": np.zeros(1)} for layer in LAYERS[depth]}, rates)
    return [tree[layer]["kernel"] for layer in LAYERS[depth]]


@pytest.mark.parametrize("depth", LAYERS)
def test_discriminative_rates(depth):
    rates = layer_rates(find_strategy("discriminative", convolutions=depth).rates, depth)
    assert rates[-1] == 1
    assert [above / below for below, above in zip(rates, rates[1:], strict=False)] == pytest.approx([2.6] * (depth + 1))


GRADUAL = {  # which layers are trained, phase after phase
    1: ["001", "111"],
    2: ["0001", "0011", "1111"],
    3: ["00001", "00011", "00111", "11111"],
    4: ["000001", "000011", "000111", "001111", "111111"],
}


@pytest.mark.parametrize("depth", LAYERS)
def test_gradual_phases(depth):
    phases = find_strategy("gradual", convolutions=depth).phases(96)
    assert ["".join(f"{rate:g}" for rate in layer_rates(rates, depth)) for _, rates in phases] == GRADUAL[depth]
    assert [epochs for epochs, _ in phases] == [48 // depth] * depth + [48]


@pytest.mark.parametrize("depth", LAYERS)
def test_freezing_up_to_a_convolution(depth):
    for last in range(depth):
        rates = layer_rates(find_strategy(f"freeze:conv_{last}", convolutions=depth).rates, depth)
        assert rates == [0.0] * (last + 2) + [1.0] * (depth - last)
    told = f"no strategy 'freeze:conv_{depth}'; there are: freeze:conv_0 to freeze:conv_{depth - 1}$"
    with pytest.raises(InputError, match=told):
        find_strategy(f"freeze:conv_{depth}", convolutions=depth)


PHASES = {
    "three tenths": (100, [30, 70]),
    "one epoch at least": (1, [1, 1]),
    "rounded": (5, [2, 3]),
}


@pytest.mark.parametrize(("epochs", "expected"), PHASES.values(), ids=PHASES)
def test_epochs_of_phases(epochs, expected):
    assert [n for n, _ in STRATEGIES["head_then_full"].phases(epochs)] == expected


def test_frozen_means_the_same_for_nested_sources():
    strategy = STRATEGIES["multi_source"]
    found = network(toy.variables(), strategy, "fresh")
    assert {"source_0", "source_1/conv_1", "source_1/conv_1/edge_norm"} <= set(
        frozen_modules(found["params"], strategy.rates)
    )


def test_pulls():
    assert STRATEGIES["full"].pulls == ()
    assert STRATEGIES["l2sp"].pulls == (("head/*", 0.0), ("*", 1.0))


SENSELESS = {
    "batch norm": ({"batch_norm": "sauce"}, "own: batch_norm is 'sauce': use one of"),
    "all the epochs before the last phase": ({"before": (Phase(0.5, ()), Phase(0.5, ()))}, "together less than 1"),
    "a phase of nothing": ({"before": (Phase(0.0, ()),)}, r"\[0.0\] of the epochs"),
    "pull": ({"pull": -1.0}, "pull -1.0"),
    "rank": ({"adapter_rank": -1}, "adapter_rank -1"),
    "the output of several": ({"sources": 0, "refit_output": True}, "of one source as it is, found sources 0"),
    "the output of a new head": (
        {"reinitialise": ("head/*",), "refit_output": True},
        r"as it is, found .*reinitialise \('head/\*',\)",
    ),
    "the output of other statistics": ({"batch_norm": "target", "refit_output": True}, "batch_norm 'target': use 1"),
    "one pattern": ({"reinitialise": "head/*"}, r"own: reinitialise is 'head/\*': several were expected, as \(\"head/"),
    "one phase": ({"before": Phase(0.5, ())}, "own: before is Phase.*: several were expected"),
}


@pytest.mark.parametrize(("change", "told"), SENSELESS.values(), ids=SENSELESS)
def test_strategies_that_make_no_sense(change, told):
    with pytest.raises(InputError, match=told):
        Strategy(**({"name": "own", "summary": "", "reinitialise": (), "rates": (("*", 1.0),)} | change))


def test_lists_are_as_good_as_tuples():
    listed = Strategy("own", "", ["*"], [("*", 1.0)], before=[Phase(0.5, ())])
    assert listed == Strategy("own", "", ("*",), (("*", 1.0),), before=(Phase(0.5, ()),)) and listed.from_scratch
    assert FeatureStrategy("own", "svr", ["pooled"]).layers == ("pooled",)
    with pytest.raises(InputError, match="own: layers is 'pooled': several were expected"):
        FeatureStrategy("own", "svr", "pooled")


def test_multipliers_may_be_a_dictionary():
    assert find_strategy("full", {"conv_*": 0.1}) == find_strategy("full", (("conv_*", 0.1),))


def test_multipliers_count_in_every_phase():
    strategy = find_strategy("head_then_full", (("head/output/*", 0.5),))
    assert [rates[0] for _, rates in strategy.phases(10)] == [("head/output/*", 0.5)] * 2


def test_ways_by_name():
    assert find_way("features:svr") == FeatureStrategy("features:svr", "svr")
    assert find_way("ensemble:full+frozen") == EnsembleStrategy("ensemble:full+frozen", ("full", "frozen"))
    assert find_way("gradual", convolutions=2) == find_strategy("gradual", convolutions=2)
    assert find_way("blend:full+frozen") == EnsembleStrategy("blend:full+frozen", ("full", "frozen"), weighted=True)
    auto = find_way("auto")
    assert auto.weighted and not any(isinstance(find_way(part), EnsembleStrategy) for part in auto.parts)
    assert find_way("descriptors:gp") == FeatureStrategy("descriptors:gp", "gp", ("descriptors",))
    for name in ("ensemble:full", "ensemble:full+ensemble:head+frozen", "blend:full", "blend:full+auto"):
        with pytest.raises(InputError, match="at least two strategies"):
            find_way(name)


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
    with pytest.raises(
        InputError, match="'freeze'.*scratch, full, frozen, head.*gradual, freeze:conv_K, features:REGRESSOR"
    ):
        find_strategy("freeze")


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_multipliers_that_make_no_sense(rate):
    with pytest.raises(InputError, match="conv_"):
        find_strategy("full", (("conv_*", rate),))


@pytest.mark.parametrize("multipliers", [0.1, ("conv_*", 0.1), {"conv_*": "slow"}, [("conv_*",)]])
def test_multipliers_of_another_form(multipliers):
    with pytest.raises(InputError, match=r"multipliers are .*: \(pattern, number\) each was expected"):
        find_strategy("full", multipliers)


def test_own_strategy():
    own = Strategy("own", "", ("head/*",), (("embedding/*", 0.0), ("*", 1.0)))
    assert find_strategy(own, (("conv_0/*", 0.1),)).rates == (("conv_0/*", 0.1), ("embedding/*", 0.0), ("*", 1.0))


def test_layout_may_differ():
    check_same_graph(GraphConfig(places=12), GraphConfig(places=4))


OTHER_GRAPHS = {
    "cutoff": (GraphConfig(cutoff=6.0), ["cutoff is 6.0, the model's 8.0"]),
    "two": (GraphConfig(neighbours=8, ties="reference"), ["neighbours is 8, the model's 12", "ties is reference"]),
}


@pytest.mark.parametrize(("graph", "told"), OTHER_GRAPHS.values(), ids=OTHER_GRAPHS)
def test_other_graphs_are_refused(graph, told):
    with pytest.raises(InputError) as error:
        check_same_graph(graph, GraphConfig())
    for line in ["the dataset", *told]:
        assert line in str(error.value)
