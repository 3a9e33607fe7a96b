"""The NumPy reference is right itself: its derivatives against differences, its numbers against the original's."""

import functools
import json

import numpy as np
import pytest
import reference

from tlcgcnn_jax.cgcnn_import import import_cgcnn

pytestmark = pytest.mark.usefixtures("optimised")

WIDTH, STEP, LAST = 3, 1.0, 4.0


@pytest.fixture
def network():
    """Random variables of a small network with two convolutions and two hidden layers."""
    rng = np.random.default_rng(3)

    def draw(*shape):
        return rng.normal(size=shape) / np.sqrt(shape[0])

    def norm(size):
        return {"scale": 1 + 0.3 * draw(size), "bias": draw(size)}

    def statistics(size):
        return {"mean": draw(size), "var": rng.uniform(0.5, 2, size)}

    gates, gaussians = 2 * WIDTH, round(LAST / STEP) + 1
    convolutions = {
        f"conv_{layer}": {
            "receiver_kernel": draw(WIDTH, gates),
            "sender_kernel": draw(WIDTH, gates),
            "edge_kernel": draw(gaussians, gates),
            "bias": draw(gates),
            "edge_norm": norm(gates),
            "node_norm": norm(WIDTH),
        }
        for layer in range(2)
    }
    head = {
        "hidden_0": {"kernel": draw(WIDTH, 4), "bias": draw(4)},
        "hidden_1": {"kernel": draw(4, 4), "bias": draw(4)},
        "output": {"kernel": draw(4, 2), "bias": draw(2)},
    }
    params = {"embedding": {"kernel": draw(92, WIDTH), "bias": draw(WIDTH)}, **convolutions, "head": head}
    stats = {name: {"edge_norm": statistics(gates), "node_norm": statistics(WIDTH)} for name in convolutions}
    return {"params": params, "batch_stats": stats}


@pytest.fixture
def batch():
    """Three small graphs with fractional weights, uneven neighbour counts and an atom without any."""
    return reference.crystals(
        [
            ([11, 17], [[(1, 2.8, 0.5), (0, 4.0, 1.0)], [(0, 2.8, 1.0)]]),
            ([14], [[(0, 2.35, 0.75), (0, 3.8, 1.0), (0, 3.8, 0.25)]]),
            ([8, 1, 1], [[(1, 0.96, 1.0), (2, 0.97, 1.0)], [(0, 0.96, 0.6)], []]),
        ]
    )


REGRESSION = np.array([[0.3, -1.2], [np.nan, 0.4], [2.0, np.nan]])
CLASSES = np.array([[1.0], [np.nan], [0.0]])


@pytest.mark.parametrize("frozen", [(), ("conv_0",)], ids=["trained", "first convolution frozen"])
@pytest.mark.parametrize(("loss", "targets"), [("mae", REGRESSION), ("mse", REGRESSION), ("cross_entropy", CLASSES)])
def test_gradients_are_those_of_differences(network, batch, loss, targets, frozen):
    options = {"loss": loss, "frozen": frozen, "step": STEP, "last": LAST}
    gradients = reference.training_step(network, batch, targets, **options).gradients

    def check(tree, gradient):
        assert tree.keys() == gradient.keys()
        for name, leaf in tree.items():
            if isinstance(leaf, dict):
                check(leaf, gradient[name])
                continue
            flat = leaf.reshape(-1)
            for index in range(0, flat.size, max(1, flat.size // 40)):
                kept, step = flat[index], 1e-6
                values = []
                for shifted in (kept + step, kept - step):
                    flat[index] = shifted
                    values.append(reference.training_step(network, batch, targets, **options).loss)
                flat[index] = kept
                difference = (values[0] - values[1]) / (2 * step)
                assert gradient[name].reshape(-1)[index] == pytest.approx(difference, rel=1e-5, abs=1e-8), name

    check(network["params"], gradients)


def test_running_statistics_are_torchs(network, batch):
    """Weighted mean and unbiased variance enter with a share of 0.1; frozen ones stay."""
    step = functools.partial(reference.training_step, network, batch, REGRESSION, step=STEP, last=LAST)
    after, frozen = step().batch_stats, step(frozen=("conv_0",)).batch_stats
    before, params = network["batch_stats"], network["params"]["conv_0"]
    features = reference.feature_table()[batch.atomic_numbers]
    atoms = features @ network["params"]["embedding"]["kernel"] + network["params"]["embedding"]["bias"]
    rows = (
        atoms[batch.receivers] @ params["receiver_kernel"]
        + atoms[batch.senders] @ params["sender_kernel"]
        + reference.expand(batch.distances, STEP, LAST) @ params["edge_kernel"]
        + params["bias"]
    )
    mean = np.average(rows, axis=0, weights=batch.weights)
    n = batch.weights.sum()
    var = np.average((rows - mean) ** 2, axis=0, weights=batch.weights) * n / (n - 1)
    old = before["conv_0"]["edge_norm"]
    np.testing.assert_allclose(after["conv_0"]["edge_norm"]["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(after["conv_0"]["edge_norm"]["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-12)
    for norm in ("edge_norm", "node_norm"):
        for leaf in ("mean", "var"):
            assert np.array_equal(frozen["conv_0"][norm][leaf], before["conv_0"][norm][leaf])
            assert not np.allclose(frozen["conv_1"][norm][leaf], before["conv_1"][norm][leaf])


def test_forward_is_the_evaluation_mode(network, batch):
    everything = reference.training_step(network, batch, REGRESSION, frozen=("conv_0", "conv_1"), step=STEP, last=LAST)
    outputs = reference.forward(network, batch, step=STEP, last=LAST)
    np.testing.assert_array_equal(everything.outputs, outputs)


def test_reference_gives_the_numbers_of_the_original(shared_data):
    """To 1e-9 where the Gaussians are rounded as the original rounds them."""
    from pymatgen.core import Lattice, Structure

    for file, every in (("cgcnn_official", 8), ("cgcnn_short_rows", 1)):
        oracle = json.loads((shared_data / f"oracles/{file}.json").read_text())
        structures = [
            Structure(Lattice(record["lattice"]), record["species"], record["frac_coords"])
            for record in oracle["records"][::every]
        ]
        batch = reference.crystals([reference.original_graph(structure) for structure in structures])
        for name, expected in oracle["predictions"].items():
            path = shared_data / f"checkpoints/official/{name}.npz"
            model, normaliser = import_cgcnn(path), json.loads(path.with_suffix(".json").read_text())["normalizer"]
            outputs = reference.forward(model.members[0], batch, float32_gaussians=True)
            if model.targets[0].kind == "classification":
                values = np.exp(reference.log_softmax(outputs))[:, 1]
            else:
                values = outputs[:, 0] * normaliser["std"] + normaliser["mean"]
            np.testing.assert_allclose(values, expected[::every], rtol=0, atol=1e-9, err_msg=f"{file} {name}")
