"""Sources by name or by rank: which are taken, which are left out and why."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from tiny import GAP, K, records, source

from tlcgcnn_jax.config import GraphConfig, Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs
from tlcgcnn_jax.source_choice import SourceChoice, SourcePool, find_pool
from tlcgcnn_jax.strategies import STRATEGIES, find_way
from tlcgcnn_jax.zoo import find_sources

BULK = (Target(K, "GPa"),)
ROWS = np.arange(16)
OLD = GraphConfig(ties="reference", legacy_padding=True)


@functools.cache
def pool(auto=False):
    """Three of one kind, one of another kind of graph, one of another width in its head only."""
    one = source()
    return SourcePool({f"s{i}": noisy(one, i) for i in range(3)} | {"old": replace(one, graph=OLD)}, auto)


def noisy(model, seed):
    """The same network with other weights in its embedding."""
    member = model.members[0]
    kernel = member["params"]["embedding"]["kernel"]
    moved = kernel + seed * np.random.default_rng(seed).normal(0, 0.3, kernel.shape).astype(np.float32)
    embedding = {**member["params"]["embedding"], "kernel": moved}
    return replace(model, members=({**member, "params": {**member["params"], "embedding": embedding}},))


@functools.cache
def crystals():
    return pack_graphs(records(), [GraphConfig(), OLD], targets=(K,))


def choice(auto=False, sets=None, **settings):
    return SourceChoice(pool(auto), sets or crystals(), BULK, ROWS, **settings)


def test_a_pool_is_named_by_what_it_was_given(tmp_path):
    folder = source().save(tmp_path / "gap")
    assert list(find_pool(folder).models) == [str(folder)]
    assert list(find_pool([str(folder), "mp-formation-energy"]).models) == [str(folder), "mp-formation-energy"]
    assert list(find_pool(source()).models) == ["a model in memory"]
    assert list(find_pool({"mine": source()}).models) == ["mine"]
    assert find_pool({"mine": str(folder)}).models["mine"].targets == source().targets
    found = find_pool("auto", tmp_path)
    assert found.auto and set(found.models) == {"gap", *find_sources()}
    assert find_pool(found) is found


POOLS = {
    "nothing": (lambda: find_pool([]), "no source was given"),
    "twice": (lambda: find_pool([source(), source()]), "a model in memory is given twice"),
    "a name that there is not": (lambda: find_pool(["mp-formation-energy", "gold"]), "gold: neither a folder nor"),
    "not a model": (lambda: find_pool({"mine": 7}), "source mine: found int, expected a network"),
    "a folder to choose from beside a name": (lambda: find_pool("gold", "sources"), "goes with the source 'auto'"),
}


@pytest.mark.parametrize("make, told", POOLS.values(), ids=POOLS)
def test_a_pool_that_cannot_be_is_refused(make, told):
    with pytest.raises(InputError, match=told):
        make()


def test_fine_tuning_takes_the_best_and_one_source_is_not_ranked():
    found = choice()
    assert list(found.sources(STRATEGIES["full"])) == [found.ranking[0].name]
    alone = SourceChoice(SourcePool({"s0": source()}), crystals(), BULK, np.arange(3))  # too few to rank
    assert list(alone.sources(STRATEGIES["full"])) == ["s0"] and not alone.ranked


def test_from_scratch_sources_are_ranked_where_they_differ_in_graphs_or_sizes():
    scratch = STRATEGIES["scratch"]
    found = choice(auto=True)
    assert list(found.sources(scratch)) == [found.ranking[0].name]
    models = {name: model for name, model in pool().models.items() if name != "old"}
    alike = SourceChoice(SourcePool(models, auto=True), crystals(), BULK, ROWS)
    assert list(alike.sources(scratch)) == ["s0"] and not alike.ranked


def test_features_take_all_and_the_top_is_the_best():
    assert list(choice().sources(find_way("features:svr"))) == ["s0", "s1", "s2", "old"]
    assert not choice().ranked
    best = choice(top=2)
    assert list(best.sources(find_way("features:svr"))) == [score.name for score in best.ranking[:2]]
    everyone = choice(auto=True).sources(find_way("features:svr"))
    assert list(everyone) == [score.name for score in best.ranking]


def test_a_mixture_keeps_the_largest_group_that_is_alike(caplog):
    found = choice()
    taken = found.sources(STRATEGIES["multi_source"])
    assert list(taken) == [score.name for score in found.ranking if score.name != "old"]
    assert f"source old left out: other graphs or sizes than those of {next(iter(taken))}" in caplog.text


def test_a_mixture_that_was_not_named_and_is_trained_is_small():
    many = SourcePool({f"s{i}": noisy(source(), i) for i in range(7)}, auto=True)
    found = SourceChoice(many, crystals(), BULK, ROWS)
    assert list(found.sources(STRATEGIES["multi_source_full"])) == [score.name for score in found.ranking[:5]]
    assert len(found.sources(STRATEGIES["multi_source"])) == 7
    assert len(SourceChoice(many, crystals(), BULK, ROWS, top=6).sources(STRATEGIES["multi_source_full"])) == 6


def test_sources_of_a_gate_that_takes_some_are_ranked():
    """At first all weigh alike, and it lets those through that come first."""
    named = SourcePool({f"s{i}": noisy(source(), i) for i in range(4)})
    found = SourceChoice(named, crystals(), BULK, ROWS)
    best = [score.name for score in found.ranking]
    assert best != list(named.models), "their order is to differ from the given one"
    assert list(found.sources(STRATEGIES["multi_source_gate_top3"])) == best
    few = SourceChoice(SourcePool(dict(list(named.models.items())[:3])), crystals(), BULK, ROWS)
    assert list(few.sources(STRATEGIES["multi_source_gate_top3"])) == ["s0", "s1", "s2"] and not few.ranked


def test_a_packed_dataset_leaves_other_kinds_out(caplog):
    packed = GraphSets(crystals().datasets[:1])
    assert list(choice(sets=packed).models) == ["s0", "s1", "s2"]
    assert "source old left out: the dataset was packed with other graph settings" in caplog.text
    nothing = SourcePool({"old": pool().models["old"]})
    with pytest.raises(InputError, match="legacy_padding is False, the model's True.*prepare it again"):
        SourceChoice(nothing, packed, BULK, ROWS)


def test_the_ranking_sees_training_labels_alone():
    sets = crystals()
    labels = sets.datasets[0].targets.copy()
    labels[16:] = 1e6
    changed = GraphSets(tuple(replace(dataset, targets=labels) for dataset in sets.datasets))
    expected = [(score.name, score.ridge_mae) for score in choice().ranking]
    assert [(score.name, score.ridge_mae) for score in choice(sets=changed).ranking] == expected


def test_the_overlap_of_formulas_is_in_the_ranking():
    known = replace(source(), formulas=tuple(crystals().datasets[0].formulas[:4]))
    models = {"known": known, "unknown": replace(source(), formulas=())}
    found = SourceChoice(SourcePool(models, auto=True), crystals(), BULK, ROWS).ranking
    scores = {score.name: score.overlap for score in found}
    assert scores["known"] == 4 / 16 and np.isnan(scores["unknown"])


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(InputError, match="top is 0"):
        choice(top=0)
    both = pack_graphs(records(20, (K, GAP)), [GraphConfig()], targets=(K, GAP))
    two = SourceChoice(SourcePool(pool().models), both, (*BULK, Target(GAP)), ROWS)
    with pytest.raises(InputError, match="ranked for one property or two classes: name no more of them than"):
        two.sources(STRATEGIES["full"])
    few = SourceChoice(pool(), crystals(), BULK, np.arange(9))
    with pytest.raises(InputError, match="9 labelled training crystals: at least 10"):
        few.sources(STRATEGIES["full"])
