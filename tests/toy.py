"""Small made-up crystals and settings, so that tests share data and compiled programs."""

import dataclasses
import functools
import itertools

import jax
import numpy as np

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, TrainConfig
from tlcgcnn_jax.crystal import Crystal, Record
from tlcgcnn_jax.dataset import CrystalDataset, build_dataset
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.model import CGCNN, init_variables
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.train import example_graph

SIZES = ModelConfig(width=8, convolutions=2, head_width=8, gaussian_step=0.5)
CONFIG = TrainConfig(epochs=4, batch_size=3, learning_rate=1e-2)
ENERGY = Target("energy", "eV/atom")
N = 12
SPLIT = Split(np.arange(8), np.arange(8, 10), np.arange(10, 12))
COLUMNS = ("energy", "gap", "metal", "family")


def crystal(seed: int) -> Crystal:
    """1 to 6 atoms near the points of a cubic grid."""
    rng = np.random.default_rng(seed)
    sites = np.array(list(itertools.product((0.0, 0.5), repeat=3)))[: 1 + seed % 6]
    return Crystal(
        np.eye(3) * (4 + 0.3 * (seed % 4)), rng.integers(3, 40, len(sites)), sites + rng.normal(0, 0.02, sites.shape)
    )


def labels(seed: int) -> dict[str, float]:
    """Smooth in the species, so that they can be learnt; gaps in some columns."""
    mean = float(crystal(seed).atomic_numbers.mean())
    return {
        "energy": mean / 10 - 2,
        "gap": float("nan") if seed % 3 == 0 else 5 - mean / 8,
        "metal": float("nan") if seed % 5 == 1 else float(mean > 20),
        "family": float(seed % 6 // 2),
    }


def record(seed: int) -> Record:
    return Record(f"c{seed}", crystal(seed), labels(seed), f"made up: c{seed}")


@functools.cache
def dataset(columns: tuple[str, ...] = ("energy",), places: int = 4) -> CrystalDataset:
    return build_dataset([record(seed) for seed in range(N)], targets=columns, graph=GraphConfig(places=places))


@functools.cache
def _variables(sizes: ModelConfig, outputs: int, seed: int) -> dict:
    return jax.device_get(init_variables(CGCNN(sizes, outputs, 4), example_graph(dataset()), seed))


def variables(sizes: ModelConfig = SIZES, outputs: int = 1, seed: int = 0, moved: bool = False) -> dict:
    """Fresh variables; `moved`: with batch-norm parameters and statistics that are not 0 and 1."""
    fresh = _variables(sizes, outputs, seed)
    if not moved:
        return jax.tree.map(np.array, fresh)
    rng = np.random.default_rng(7)

    def move(path, leaf):
        if any(str(key.key).endswith("_norm") for key in path):
            return (leaf + rng.uniform(-0.3, 0.3, leaf.shape)).astype(np.float32)
        return np.array(leaf)

    return jax.tree_util.tree_map_with_path(move, fresh)


def replaced(source: CrystalDataset, **changes) -> CrystalDataset:
    return dataclasses.replace(source, **changes)


def source(
    seed: int = 1, sizes: ModelConfig = SIZES, targets: tuple[Target, ...] = (ENERGY,), members: int = 1
) -> Model:
    """A model to transfer from, which has learnt nothing; its members differ."""
    outputs = sum(target.outputs for target in targets)
    networks = tuple(variables(sizes, outputs, seed + 100 * member, moved=True) for member in range(members))
    none = Normaliser(np.zeros(len(targets), np.float32), np.ones(len(targets), np.float32))
    return Model(dataset().graph, sizes, targets, none, networks)
