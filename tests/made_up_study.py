"""A study that nobody ran: crystals, predictions and errors made up by a seeded recipe, in a study's own folder.

Errors fall as a power of the training size; each way has its own size of error at 100 crystals and its own power, so
what an analysis must find is known: on the bulk modulus transfer helps, on the band gap it helps little, on the
refractive index `frozen` hurts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tlcgcnn_jax.evaluate import regression_metrics
from tlcgcnn_jax.results import Crystals, Row, RunPredictions, StudyResults, start_study

ENERGY, GAP = "mp-formation-energy", "mp-band-gap"
METALS = (
    "Li", "Na", "K", "Mg", "Ca", "Sr", "Ba", "Sc", "Ti", "Zr", "Fe", "Co", "Ni", "Cu", "Zn", "Al", "Ga",
    "In", "Si", "Ge", "Sn", "La",
)  # fmt: skip
ANIONS = ("O", "S", "Se", "N", "P", "F", "Cl", "Br")


class MadeUpTarget(NamedTuple):
    """A property: how it is spread, and by which factor each strategy's error differs from the usual."""

    unit: str
    log10: bool
    centre: float
    spread: float
    help: float


class Way(NamedTuple):
    """A way of learning: its error at 100 crystals (in spreads of the target), the power of its decrease, its std."""

    source: str
    source_size: int
    strategy: str
    kind: str
    error: float
    power: float
    has_std: bool


TARGETS = {
    "bulk_modulus": MadeUpTarget("GPa", True, 1.95, 0.25, 1.0),
    "band_gap": MadeUpTarget("eV", False, 3.0, 1.6, 0.35),
    "refractive_index": MadeUpTarget("", False, 2.3, 0.5, -0.4),
}
# The error of a way with a source is scratch's, less (error of scratch - its own) times the target's `help`.
WAYS = (
    Way("", 0, "scratch", "scratch", 0.62, 0.38, True),
    Way(ENERGY, 1000, "full", "transfer", 0.55, 0.33, True),
    Way(ENERGY, 21000, "full", "transfer", 0.45, 0.28, True),
    Way(ENERGY, 21000, "frozen", "transfer", 0.52, 0.15, True),
    Way(GAP, 21000, "full", "transfer", 0.50, 0.30, True),
    Way(f"{ENERGY}+{GAP}", 42000, "features:svr", "transfer", 0.40, 0.27, False),
    Way("", 0, "forest", "baseline", 0.56, 0.22, True),
    Way("", 0, "mean", "baseline", 0.95, 0.01, False),
)


def write(
    folder: str | Path,
    targets: Sequence[str] = tuple(TARGETS),
    sizes: Sequence[int] = (50, 100, 300),
    seeds: int = 5,
    ways: Sequence[Way] = WAYS,
    n_test: int = 80,
    n_val: int = 40,
    missing: float = 0.0,
) -> StudyResults:
    """Write the study.

    Args:
        folder: To make.
        targets: Of `TARGETS`.
        sizes: Training sizes.
        seeds: Number of seeds.
        ways: Of learning.
        n_test: Test crystals of each seed.
        n_val: Validation crystals of each seed.
        missing: Share of the runs that are left out, as in a study that is not finished.
    """
    n = max(sizes) + n_test + n_val + 10
    tables = {name: crystals(name, n, number) for number, name in enumerate(targets)}
    study = {
        "title": "Made-up study",
        "targets": [{"name": name, "unit": TARGETS[name].unit} for name in targets],
        "settings": {"sizes": list(sizes), "seeds": list(range(seeds)), "strategies": [way.strategy for way in ways]},
        "versions": {"tlcgcnn_jax": "0.1.0", "jax": "0.10.2"},
        "machine": "made-up processor",
        "overlap": [{"source": s, "target": t, "count": 12, "share": 12 / n} for s in (ENERGY, GAP) for t in targets],
    }
    results, left_out = start_study(folder, study, tables), np.random.default_rng(99)
    for name in targets:
        for seed in range(seeds):
            rng = np.random.default_rng([seed, 5])
            order = rng.permutation(n)
            # A formula's crystals lie in one part.
            test = _whole_formulas(tables[name].formulas, order[:n_test])
            val = [row for row in _whole_formulas(tables[name].formulas, order[-n_val:]) if row not in set(test)]
            for size in sizes:
                for number, way in enumerate(ways):
                    if left_out.random() < missing:
                        continue
                    made = _predictions(tables[name], name, way, size, seed, number, np.array(test), np.array(val))
                    results.add(_row(name, way, size, seed, tables[name].values, made), made)
    return results


def crystals(name: str, n: int, seed: int = 0) -> Crystals:
    """Labelled crystals of binary and ternary formulas; about one in ten shares its formula with another."""
    rng = np.random.default_rng([seed, 11])
    metal, anion = rng.normal(size=len(METALS)), rng.normal(size=len(ANIONS))
    formulas, scores = [], []
    for i in range(n):
        if i and rng.random() < 0.1:
            other = int(rng.integers(i))
            formulas.append(formulas[other])
            scores.append(scores[other] + 0.2 * rng.normal())
            continue
        a, b = sorted(rng.choice(len(METALS), 2, replace=False))
        x, count = int(rng.integers(len(ANIONS))), int(rng.integers(1, 5))
        both = f"{METALS[a]}{METALS[b]}" if rng.random() < 0.7 else METALS[a]
        formulas.append(f"{both}{ANIONS[x]}{count if count > 1 else ''}")
        scores.append(0.6 * (metal[a] + metal[b]) / 1.4 + 0.6 * anion[x] + 0.4 * rng.normal())
    own = TARGETS[name]
    values = own.centre + own.spread * (np.array(scores) - np.mean(scores)) / np.std(scores)
    return Crystals(
        [f"mp-{1000 + 7 * i}" for i in range(n)], formulas, 10**values if own.log10 else np.maximum(values, 0.05)
    )


def _whole_formulas(formulas: Sequence[str], rows: np.ndarray) -> list[int]:
    chosen = {formulas[row] for row in rows}
    return [row for row, formula in enumerate(formulas) if formula in chosen]


def error_size(way: Way, target: str, size: int, scratch: Way = WAYS[0]) -> float:
    """Standard deviation of a way's errors, in spreads of the target."""
    usual = scratch.error * (size / 100) ** -scratch.power
    own = way.error * (size / 100) ** -way.power
    return usual + (own - usual) * TARGETS[target].help if way.kind == "transfer" else own


def _predictions(
    table: Crystals, target: str, way: Way, size: int, seed: int, number: int, test: np.ndarray, val: np.ndarray
) -> RunPredictions:
    own = TARGETS[target]
    shared = np.random.default_rng([seed, size, 1])  # the same for all ways: what is hard for one is hard for all
    difficulty = np.random.default_rng(3).lognormal(-0.1, 0.4, len(table.values))
    common = shared.normal(size=len(table.values))
    rng = np.random.default_rng([seed, size, number, 2])
    scale = own.spread * error_size(way, target, size) * difficulty * np.exp(0.04 * rng.normal())
    error = scale * (0.7 * common + 0.7 * rng.normal(size=len(scale)))
    std = 0.6 * scale * rng.lognormal(0, 0.3, len(scale))  # too sure of itself, as ensembles are
    if way.strategy == "mean":
        return _constant(table.values, test, val, seed)
    prediction = 10 ** (np.log10(table.values) + error) if own.log10 else table.values + error
    std = std * np.log(10) * prediction if own.log10 else std
    std = std if way.has_std else np.full(len(std), np.nan)
    return RunPredictions(test, prediction[test], std[test], val, prediction[val], std[val])


def _constant(values: np.ndarray, test: np.ndarray, val: np.ndarray, seed: int) -> RunPredictions:
    """What predicting the mean of the training crystals gives."""
    mean = values.mean() + 0.05 * values.std() * np.random.default_rng([seed, 4]).normal()
    guess, nothing = (lambda rows: np.full(len(rows), mean)), (lambda rows: np.full(len(rows), np.nan))
    return RunPredictions(test, guess(test), nothing(test), val, guess(val), nothing(val))


def _row(target: str, way: Way, size: int, seed: int, values: np.ndarray, made: RunPredictions) -> Row:
    found = regression_metrics(values[made.test_rows], made.test)
    name = "-".join(str(part) for part in (target, way.source.replace("+", "_"), way.source_size, way.strategy, size))
    trained = way.has_std and way.kind != "baseline"
    return Row(
        run=f"{name}-{seed}".replace(":", "_").replace("--", "-"),
        target=target,
        source=way.source,
        source_size=way.source_size,
        strategy=way.strategy,
        kind=way.kind,
        size=size,
        seed=seed,
        learning_rate=2e-3 if trained else float("nan"),
        epochs=100 if trained else 0,
        updates=100 * max(size // 32, 1) if trained else 0,
        val_mae=float(np.mean(np.abs(made.val - values[made.val_rows]))),
        test_mae=found["mae"],
        test_rmse=found["rmse"],
        test_median_ae=found["median_ae"],
        test_r2=found["r2"],
        test_n=len(made.test_rows),
        overlap=0.02 if way.source else float("nan"),
        seconds=3.5 if way.has_std else 0.4,
        machine="made-up processor",
    )
