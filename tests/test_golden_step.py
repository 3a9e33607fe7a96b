"""The numbers after one step of AdamW on three fixed crystals.

They may be updated, by what the test prints, only when a change is meant to alter the mathematics, the order of the
random numbers or the defaults; say so in the change. Anything else that moves them is a mistake.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from tlcgcnn_jax.batching import pad_budget, stack_batches
from tlcgcnn_jax.bundle import flatten
from tlcgcnn_jax.config import TrainConfig
from tlcgcnn_jax.losses import fit_normaliser, normalise
from tlcgcnn_jax.model import CGCNN
from tlcgcnn_jax.train import Hyper, Program, init_state, train_scan

pytestmark = pytest.mark.usefixtures("optimised")

GOLDEN = {
    "loss": 0.8847044,
    "gradient": 1.229507,
    "norm of the parameters": 8.0309906,
    "embedding/kernel[40, 3]": -0.0556497,
    "conv_0/sender_kernel[0, 0]": 0.0719957,
    "conv_1/edge_kernel[5, 9]": 0.1213419,
    "conv_1/edge_norm/scale[2]": 1.009998,
    "head/output/bias[0]": -0.0451733,
    "running mean of conv_0": 0.0472641,
    "running variance of conv_1": 15.0414028,
}
# A batch norm takes away the bias before it: its gradient is rounding, of which Adam makes a whole step.
NOISE = ("conv_0/bias", "conv_1/bias")


def test_one_step():
    dataset = toy.dataset()
    rows = np.array([3, 4, 5])
    normaliser = fit_normaliser(dataset.targets[rows], (toy.ENERGY,))
    labels = normalise(dataset.targets, (toy.ENERGY,), normaliser)
    budget = pad_budget(dataset.n_atom[rows], dataset.n_row[rows], 3, 4)
    program = Program(CGCNN(toy.SIZES, 1, 4), (toy.ENERGY,), TrainConfig()).static()
    hyper = Hyper(jnp.float32(0.01), jnp.int32(10), jnp.uint32(0))
    stacked = stack_batches(dataset, labels, [rows], budget)
    state, metrics = train_scan(program, init_state(program, toy.variables()), stacked, hyper)
    params = state.params
    steady = [leaf for path, leaf in flatten(params).items() if path not in NOISE]
    found = {
        "loss": metrics["loss"][0] / metrics["count"][0],
        "gradient": metrics["gradient"][0],
        "norm of the parameters": optax.tree.norm(steady),
        "embedding/kernel[40, 3]": params["embedding"]["kernel"][40, 3],
        "conv_0/sender_kernel[0, 0]": params["conv_0"]["sender_kernel"][0, 0],
        "conv_1/edge_kernel[5, 9]": params["conv_1"]["edge_kernel"][5, 9],
        "conv_1/edge_norm/scale[2]": params["conv_1"]["edge_norm"]["scale"][2],
        "head/output/bias[0]": params["head"]["output"]["bias"][0],
        "running mean of conv_0": jnp.sum(state.batch_stats["conv_0"]["edge_norm"]["mean"]),
        "running variance of conv_1": jnp.sum(state.batch_stats["conv_1"]["node_norm"]["var"]),
    }
    found = {name: round(float(value), 7) for name, value in found.items()}
    assert found == pytest.approx(GOLDEN, rel=1e-5, abs=1e-6), (
        f"one training step gives other numbers than before. Meant (mathematics, random numbers, defaults)? Then set "
        f"GOLDEN = {found}"
    )
