"""Embeddings are the network's own activations, whatever batch a crystal is in."""

import dataclasses

import jax
import numpy as np
import pytest
import toy

from tlcgcnn_jax import outputs
from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import GraphConfig, Target
from tlcgcnn_jax.embeddings import LAYERS, activations, embed, embed_many
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict
from tlcgcnn_jax.graph_sets import pack_graphs
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.outputs import network_outputs
from tlcgcnn_jax.train import example_graph

FAMILY = Target("family", kind="classification", classes=3)
TWO_LAYERS = dataclasses.replace(toy.SIZES, head_layers=2)
ORIGINAL = GraphConfig(ties="reference", legacy_padding=True)


def model(sizes=toy.SIZES, target=toy.ENERGY, seeds=(0,), graph=GraphConfig()) -> Model:
    members = tuple(toy.variables(sizes, target.outputs, seed, moved=True) for seed in seeds)
    return Model(graph, sizes, (target,), Normaliser(np.zeros(1, np.float32), np.ones(1, np.float32)), members)


def softplus(x):
    return np.log1p(np.exp(np.asarray(x, np.float64)))


@pytest.mark.parametrize("sizes", [toy.SIZES, TWO_LAYERS], ids=["one hidden layer", "two"])
def test_the_rest_of_the_head_gives_what_the_network_gives(sizes):
    source, dataset = model(sizes), toy.dataset()
    found = activations(source, dataset)
    expected = network_outputs(source.network, source.members[0], dataset)
    np.testing.assert_allclose(found["output"], expected, rtol=1e-5, atol=1e-5)
    head = source.members[0]["params"]["head"]
    x = found["hidden"].astype(float)
    for layer in range(1, sizes.head_layers):
        x = softplus(x @ head[f"hidden_{layer}"]["kernel"] + head[f"hidden_{layer}"]["bias"])
    np.testing.assert_allclose(x @ head["output"]["kernel"] + head["output"]["bias"], expected, rtol=1e-5, atol=1e-5)
    hidden = softplus(softplus(found["pooled"]) @ head["hidden_0"]["kernel"] + head["hidden_0"]["bias"])
    np.testing.assert_allclose(found["hidden"], hidden, rtol=1e-5)


def test_pooled_features_are_those_of_each_crystal_alone():
    source, dataset = model(), toy.dataset()
    found = embed(source, dataset, ("pooled",))
    assert found.dtype == np.float32 and np.ptp(found, axis=0).min() > 1e-4
    features = jax.jit(lambda graph: source.network.apply(source.members[0], graph, method="features"))
    for row in (0, 5):
        alone = features(example_graph(dataset.select([row])))
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-5, atol=1e-6)
    rows = [7, 2, 11]
    np.testing.assert_allclose(embed(source, dataset.select(rows), ("pooled",)), found[rows], rtol=1e-5, atol=1e-6)


def test_layers_and_members_are_the_ones_that_are_asked_for():
    source, dataset = model(seeds=(0, 1)), toy.dataset()
    assert embed(source, dataset).shape == (toy.N, 8 + 8)
    assert embed(source, dataset, LAYERS).shape == (toy.N, 8 + 8 + 1)
    np.testing.assert_array_equal(embed(source, dataset, ("output", "pooled"))[:, 1:], embed(source, dataset)[:, :8])
    np.testing.assert_array_equal(embed(source, dataset, member=1), embed(model(seeds=(1,)), dataset))
    assert np.abs(embed(source, dataset, member=1) - embed(source, dataset)).max() > 1e-3
    assert embed(source, dataset.select([])).shape == (0, 16)


def test_a_classifier_gives_log_probabilities():
    source = model(target=FAMILY)
    found = activations(source, toy.dataset())["output"]
    np.testing.assert_allclose(np.exp(found), predict(source, toy.dataset()).mean, rtol=1e-5)


def test_several_sources_stand_side_by_side():
    records = [toy.record(seed) for seed in range(toy.N)]
    sources = {"one": model(), "other": model(TWO_LAYERS, FAMILY, (3,), ORIGINAL)}
    crystals = pack_graphs(records, [source.graph for source in sources.values()])
    found = embed_many(sources, crystals, LAYERS)
    assert found.shape == (toy.N, 17 + 19)
    alone = [embed(source, crystals[source.graph], LAYERS) for source in sources.values()]
    np.testing.assert_array_equal(found, np.concatenate(alone, axis=1))


def test_places_do_not_matter():
    found = embed(model(), toy.dataset(places=3))
    np.testing.assert_allclose(found, embed(model(), toy.dataset()), rtol=1e-5, atol=1e-6)


def test_sources_of_one_body_share_a_compilation():
    dataset = toy.dataset(places=6)  # as in no other test, which would have compiled all of these
    embed(model(), dataset)
    before = outputs._prefix._cache_size()
    for source in (model(seeds=(5,)), model(TWO_LAYERS), model(target=FAMILY)):
        embed(source, dataset)
    assert outputs._prefix._cache_size() == before


MIXTURE = dataclasses.replace(model(), model=dataclasses.replace(toy.SIZES, sources=2))
BAD = {
    "layer": (lambda: embed(model(), toy.dataset(), ("conv_0",)), "no layer conv_0; there are: pooled, hidden, output"),
    "no layer": (lambda: embed(model(), toy.dataset(), ()), "no layer was named"),
    "member": (lambda: embed(model(), toy.dataset(), member=1), "member is 1: the model has 1"),
    "graph": (lambda: embed(model(graph=ORIGINAL), toy.dataset()), "ties is shell, the model's reference"),
    "mixture": (lambda: embed(MIXTURE, toy.dataset()), "mixes 2 sources"),
    "no source": (lambda: embed_many({}, pack_graphs(toy.dataset(), ())), "at least one model"),
    "graph of one of many": (
        lambda: embed_many({"a": model(), "b": model(graph=ORIGINAL)}, pack_graphs(toy.dataset(), ())),
        "source b: .*ties is shell",
    ),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_told(call, message):
    with pytest.raises(InputError, match=message):
        call()
