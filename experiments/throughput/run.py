"""Measure the speed of the package as ratios within one run, on one machine.

    python experiments/throughput/run.py DATA                 # everything but `memory`
    python experiments/throughput/run.py DATA --only memory   # two epochs over the largest set
    python experiments/throughput/run.py DATA --quick         # tiny sizes, to see that it runs; its times mean nothing

DATA is the folder of data sets. Both sides of a ratio take turns (A B A B ...) after a warm-up, and the ratio is the
median over the turns. Sections that a run does not measure keep their rows in results.csv.
"""

import argparse
import functools
import gc
import gzip
import itertools
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
import straightforward as plain
from table import Row, compared, read_rows, value, write_report

from tlcgcnn_jax import cif
from tlcgcnn_jax.batching import PadBudget, batch_plan, pad_budget, padding_waste, rounded_up, stack_batches
from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, TrainConfig
from tlcgcnn_jax.crystal import Crystal, Record
from tlcgcnn_jax.dataset import CrystalDataset, build_dataset, load_dataset
from tlcgcnn_jax.graphs import Graph, Graphs, build_graph, build_graphs
from tlcgcnn_jax.losses import fit_normaliser, normalise
from tlcgcnn_jax.model import CGCNN, init_variables
from tlcgcnn_jax.outputs import network_outputs
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.structures import parse, scan
from tlcgcnn_jax.train import Hyper, Program, example_graph, init_state, train, train_scan, train_step

HERE = Path(__file__).parent
SOURCE = "mp_crysxpp"
CIF_SETS = ("elastic_mp", "dielectric_petousis2017", "qsgw_gap_ecalj", "perov_5", "piezo_dejong2015")
TARGET = Target("formation_energy_per_atom_eV", unit="eV/atom")
ORIGINAL = GraphConfig(ties="reference", legacy_padding=True)  # the original's graphs, edge for edge
TOGETHER = 50  # crystals whose graphs are made in one call, near to what packing does
PROCESSES = 2  # that pack
SMALL = 32  # crystals in a batch of a prediction: the default on a CPU


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    blocks: int = 10  # of crystals whose neighbours are searched
    block: int = 100
    cifs: int = 10  # from each set
    crystals: int = 2560
    batch: int = 256
    steps: int = 6
    repetitions: int = 7
    packings: int = 3
    lines: int | None = None  # of the set that is packed


QUICK = Sizes(blocks=3, block=6, cifs=2, crystals=96, batch=16, steps=2, repetitions=2, packings=1, lines=600)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the call gave."""
    gc.collect()
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - began, result


def take_turns(repetitions: int, *calls: Callable[[], Any]) -> tuple[np.ndarray, list[Any]]:
    """Seconds [call, repetition], and what each call gave in the warm-up, which does not count."""
    first = [timed(call)[1] for call in calls]
    return np.array([[timed(call)[0] for call in calls] for _ in range(repetitions)]).T, first


@functools.cache
def sample(data: Path, name: str, n: int, seed: int) -> list[Record]:
    """`n` crystals of a set, chosen at random."""
    items = scan(jsonl(data, name), targets=(TARGET.name,) if name == SOURCE else ()).items
    return [parse(items[i]) for i in np.random.default_rng(seed).choice(len(items), n, replace=False)]


def jsonl(data: Path, name: str) -> Path:
    return data / name / f"{name}.jsonl.gz"


def to_pymatgen(crystal: Crystal) -> Any:
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(crystal.lattice), crystal.atomic_numbers.tolist(), crystal.frac_coords)


def identical(graphs: Sequence[Graph], found: Sequence[plain.Neighbours]) -> bool:
    """Whether the senders are the same, in the same order; distances must be equal in any case."""
    senders = np.concatenate([graph.senders.reshape(-1, plain.NEIGHBOURS) for graph in graphs])
    distances = np.concatenate([graph.distances.reshape(-1, plain.NEIGHBOURS) for graph in graphs])
    np.testing.assert_allclose(distances, np.concatenate([each.distances for each in found]), rtol=0, atol=1e-5)
    return np.array_equal(senders, np.concatenate([each.senders for each in found]))


# --- sections ---------------------------------------------------------------------------------------------------------


def neighbours(data: Path, sizes: Sizes) -> list[Row]:
    """Neighbour search in one process and one thread; pymatgen's structures are made beforehand."""
    crystals = [record.structure for record in sample(data, SOURCE, sizes.blocks * sizes.block, 0)]
    structures = [to_pymatgen(crystal) for crystal in crystals]

    def ours(config: GraphConfig, block: range) -> list[Graph]:
        starts = range(block.start, block.stop, TOGETHER)
        return [build_graphs(crystals[i : min(i + TOGETHER, block.stop)], config).arrays for i in starts]

    calls: dict[str, Callable[[range], Any]] = {
        "original": functools.partial(ours, ORIGINAL),
        "shell": functools.partial(ours, GraphConfig(ties="shell")),
        "arrays": lambda block: [plain.array_neighbours(structures[i]) for i in block],
        "pymatgen": lambda block: [plain.original_neighbours(structures[i]) for i in block],
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(range(2))
    for start in range(0, len(crystals), sizes.block):
        results = {}
        for name, call in calls.items():
            search = functools.partial(call, range(start, start + sizes.block))
            # Milliseconds need the middle of three; get_all_neighbors takes many seconds.
            runs = [timed(search) for _ in range(1 if name == "pymatgen" else 3)]
            times[name].append(float(np.median([seconds for seconds, _ in runs])))
            results[name] = runs[-1][1]
        assert identical(results["original"], results["pymatgen"]), f"other senders in the block from {start}"
    what = f"{sizes.block} crystals, against pymatgen's"
    return [
        compared("neighbours", f"{what} get_all_neighbors", times["original"], times["pymatgen"], 150),
        compared("neighbours", f"{what} get_neighbor_list", times["original"], times["arrays"]),
        compared("neighbours", f"ties=shell, {what} get_all_neighbors", times["shell"], times["pymatgen"]),
        value("neighbours", f"identical senders and distances, of {len(crystals)} crystals", len(crystals), "crystals"),
    ]


def cifs(data: Path, sizes: Sizes) -> list[Row]:
    """CIF text to graph, one after the other."""
    from pymatgen.io.cif import CifWriter

    source = [to_pymatgen(record.structure) for record in sample(data, SOURCE, 5 * sizes.cifs, 0)]
    others = [to_pymatgen(record.structure) for name in CIF_SETS for record in sample(data, name, sizes.cifs, 0)]
    groups = {
        f"of {SOURCE}, with symmetry": [str(CifWriter(structure, symprec=0.01)) for structure in source],
        f"of {SOURCE}, in P1": [str(CifWriter(structure)) for structure in source],
        "of smaller crystals, with symmetry": [str(CifWriter(structure, symprec=0.01)) for structure in others],
        "of the COD": [path.read_text(encoding="utf-8") for path in sorted(data.glob("cgcnn_folders/*/*.cif"))],
    }
    all_texts = list(itertools.chain(*groups.values()))

    def ours(texts: Sequence[str]) -> list[Graphs]:
        crystals = [cif.read_cif(text, "") for text in texts]
        return [build_graphs(crystals[i : i + TOGETHER], ORIGINAL) for i in range(0, len(crystals), TOGETHER)]

    def theirs(texts: Sequence[str]) -> list[plain.Neighbours]:
        return [plain.original_from_cif(text) for text in texts]

    graphs = [build_graph(cif.read_cif(text, ""), ORIGINAL) for text in all_texts]
    same = sum(identical([graph], [other]) for graph, other in zip(graphs, theirs(all_texts), strict=True))
    times = np.zeros((len(groups), sizes.repetitions, 2))
    for turn, (group, texts) in itertools.product(range(sizes.repetitions), enumerate(groups.values())):
        for cached in (cif._operators, cif._cell_vectors):
            cached.cache_clear()  # or every turn would find the cells of the one before
        times[group, turn] = [timed(functools.partial(side, texts))[0] for side in (ours, theirs)]
    main = f"{2 * len(source)} CIFs of {SOURCE}, against CifParser + get_all_neighbors"
    rows = [compared("cif", main, *times[:2].sum(0).T, 80)]
    for (name, texts), seconds in zip(groups.items(), times, strict=True):
        rows.append(compared("cif", f"{len(texts)} CIFs {name}", *seconds.T))
        with mock.patch.object(cif, "_read_with_pymatgen", wraps=cif._read_with_pymatgen) as fallback:
            ours(texts)
        left = 100 * fallback.call_count / len(texts)
        rows.append(value("cif", f"left to pymatgen's parser, of {len(texts)} CIFs {name}", left, "%"))
    return [*rows, value("cif", f"identical order of senders, of {len(all_texts)} CIFs", same, "CIFs")]


class Workload(NamedTuple):
    """The same crystals for both networks; labels float32 [n, 1], normalised."""

    dataset: CrystalDataset
    labels: np.ndarray
    budget: PadBudget
    program: Program
    variables: dict[str, Any]
    hyper: Hyper

    def plan(self, epoch: int) -> list[np.ndarray]:
        return batch_plan(self.dataset.n_atom, self.dataset.n_row, self.budget, 0, epoch)

    def straightforward(self) -> plain.Straightforward:
        n_node, n_graph = self.budget.n_node, self.budget.n_graph
        return plain.Straightforward(self.dataset, self.labels, self.variables, n_node, n_graph)


@functools.cache
def workload(data: Path, sizes: Sizes, ties: str = "reference") -> Workload:
    records = sample(data, SOURCE, sizes.crystals, 1)
    dataset = build_dataset(records, targets=(TARGET.name,), graph=GraphConfig(ties=ties), processes=1)
    labels = normalise(dataset.targets, (TARGET,), fit_normaliser(dataset.targets, (TARGET,)))
    budget = pad_budget(dataset.n_atom, dataset.n_row, sizes.batch, dataset.graph.places)
    model = CGCNN(ModelConfig(), 1, dataset.graph.places)
    hyper = Hyper(np.float32(4e-3), np.int32(1000), np.uint32(0))
    program = Program(model, (TARGET,), TrainConfig(loss="mae"))
    return Workload(dataset, labels, budget, program, init_variables(model, example_graph(dataset), 0), hyper)


def our_epochs(load: Workload, repetitions: int) -> Callable[[], Any]:
    """Every call trains for one more epoch, as `train` does but for its look-ahead in a thread."""
    epoch, state = 0, init_state(load.program, load.variables)
    # The number of batches may differ by one between epochs; one length for all, so that no turn compiles.
    length = max(rounded_up(len(load.plan(turn))) for turn in range(repetitions + 1))

    def run() -> Any:
        nonlocal epoch, state
        stack = jax.device_put(stack_batches(load.dataset, load.labels, load.plan(epoch), load.budget, length))
        state, metrics = train_scan(load.program, state, stack, load.hyper)
        epoch += 1
        return metrics

    return run


def steps(data: Path, sizes: Sizes) -> list[Row]:
    """Compiled training steps on batches that are on the device already, with the same crystals in each."""
    load = workload(data, sizes)
    other, plan = load.straightforward(), load.plan(0)[: sizes.steps]
    stack = jax.device_put(stack_batches(load.dataset, load.labels, plan, load.budget))
    singles = [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(len(plan))]
    padded = [jax.device_put(next(other.batches(rows))) for rows in plan]
    one = jax.jit(train_step, static_argnums=0, donate_argnums=1)
    states = [init_state(load.program, load.variables) for _ in range(2)]

    def in_scan() -> Any:
        states[0], metrics = train_scan(load.program, states[0], stack, load.hyper)
        return metrics["loss"] / metrics["count"]

    def one_by_one() -> Any:
        for batch in singles:
            states[1], _ = one(load.program, states[1], batch, load.hyper)
        return states[1]

    times, (losses, _, their_losses) = take_turns(sizes.repetitions, in_scan, one_by_one, lambda: other.train(padded))
    np.testing.assert_allclose(losses[0], their_losses[0], rtol=1e-4)  # that of the first step, from the same weights
    scan_s, single_s, theirs_s = times / len(plan)
    what = f"training step, {np.mean([len(rows) for rows in plan]):.0f} crystals, {load.budget.n_node:,} padded atoms"
    return [
        compared("step", f"{what}, in a scan", scan_s, theirs_s, 2),
        compared("step", f"{what}, one call each", single_s, theirs_s),
    ]


def epochs(data: Path, sizes: Sizes) -> list[Row]:
    """Whole epochs from the packed crystals, batches made on the way."""
    load, rng = workload(data, sizes), np.random.default_rng(0)
    other = load.straightforward()

    def theirs() -> Any:
        return other.train(other.batches(rng.permutation(len(other.graphs))))

    times, _ = take_turns(sizes.repetitions, our_epochs(load, sizes.repetitions), theirs)
    return [compared("epoch", f"training epoch, {sizes.crystals:,} crystals, about {sizes.batch} a batch", *times, 2)]


def inference(data: Path, sizes: Sizes) -> list[Row]:
    """Predictions of the same weights for the same crystals, batches made on the way."""
    load = workload(data, sizes)
    other = load.straightforward()
    other.train(other.batches(range(len(other.graphs))))  # fresh running statistics would hide a mistake in their use
    variables = load.variables | {"batch_stats": other.state[1]}
    mapped = plain.from_package(variables)
    data_set = load.dataset
    small = pad_budget(data_set.n_atom, data_set.n_row, SMALL, data_set.graph.places)
    other_small = plain.Straightforward(data_set, load.labels, load.variables, small.n_node, small.n_graph)
    times, (ours, theirs, _) = take_turns(
        sizes.repetitions,
        lambda: network_outputs(load.program.model, variables, data_set),
        lambda: other.predict(mapped),
        lambda: other_small.predict(mapped),
    )
    difference = np.abs(ours - theirs).max()
    assert difference < 1e-4, f"the networks differ by {difference:.2g} standard deviations for the same weights"
    return [
        compared("inference", f"prediction, {sizes.crystals:,} crystals, theirs {sizes.batch} a batch", *times[:2], 2),
        compared("inference", f"prediction, {sizes.crystals:,} crystals, theirs {SMALL} a batch", times[0], times[2]),
        value("inference", "largest difference of the two networks' predictions", difference, "standard deviations"),
    ]


def ties(data: Path, sizes: Sizes) -> list[Row]:
    """What sharing the last shell costs a training epoch; above 1, it is the faster."""
    calls = [our_epochs(workload(data, sizes, kind), sizes.repetitions) for kind in ("shell", "reference")]
    times, _ = take_turns(sizes.repetitions, *calls)
    return [compared("ties", f"training epoch, {sizes.crystals:,} crystals: shell, against reference", *times)]


def packing(data: Path, sizes: Sizes) -> list[Row]:
    """JSON lines to a saved dataset, with default settings."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = shortened(jsonl(data, SOURCE), sizes, Path(folder)), Path(folder, "0")
        pack = functools.partial(build_dataset, source, targets=(TARGET.name,), processes=PROCESSES)
        packed = [timed(functools.partial(pack, out=Path(folder, str(i))))[0] for i in range(sizes.packings)]
        loads = [timed(lambda: load_dataset(out))[0] for _ in range(sizes.repetitions)]
        sets = load_dataset(out)
        budget = pad_budget(sets.n_atom, sets.n_row, sizes.batch, sets.graph.places)
        waste = padding_waste(sets.n_atom, sets.n_row, batch_plan(sets.n_atom, sets.n_row, budget, 0, 0), budget)
    name = f"JSON lines to saved dataset, {len(sets):,} crystals, {PROCESSES} processes"
    return [
        value("packing", name, np.median(packed), "s", len(packed)),
        value("packing", "load of the saved dataset, checksums compared", np.median(loads), "s", len(loads)),
        value("packing", f"padding in an epoch, about {sizes.batch} crystals a batch", 100 * waste, "%"),
    ]


def memory(data: Path, sizes: Sizes) -> list[Row]:
    """Memory of a training process; two epochs, since the second one's batches are made during the first."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = shortened(jsonl(data, SOURCE), sizes, Path(folder)), Path(folder, "packed")
        n = len(build_dataset(source, targets=(TARGET.name,), out=out, processes=PROCESSES))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            before, peak = pool.submit(peak_memory, out, sizes.batch).result()
    name = f"peak of training, {n:,} crystals, about {sizes.batch} a batch"
    return [value("memory", name, peak, "MiB"), value("memory", "the same process before training", before, "MiB")]


def peak_memory(packed: Path, batch_size: int) -> tuple[float, float]:
    """MiB of this process before and after a training; to be called in a process of its own."""

    def high_water() -> float:
        # Not getrusage: its maximum outlives the start of a process, so that the parent's memory would count.
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

    dataset, nothing, config = load_dataset(packed), np.zeros(0, np.int64), TrainConfig(epochs=2, batch_size=batch_size)
    before = high_water()
    train(dataset, Split(np.arange(len(dataset)), nothing, nothing), (TARGET,), config=config)
    return before, high_water()


def shortened(source: Path, sizes: Sizes, folder: Path) -> Path:
    """The source, or a copy of its first lines."""
    if sizes.lines is None:
        return source
    with gzip.open(source, "rt") as lines, gzip.open(folder / source.name, "wt") as out:
        out.writelines(itertools.islice(lines, sizes.lines))
    return folder / source.name


SECTIONS: dict[str, Callable[[Path, Sizes], list[Row]]] = {
    "neighbours": neighbours, "cif": cifs, "step": steps, "epoch": epochs, "inference": inference, "ties": ties,
    "packing": packing, "memory": memory,
}  # fmt: skip


def machine() -> Row:
    cpu = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition("\n")[0].strip(" \t:")
    cores = len(os.sched_getaffinity(0))
    return {"cpu": cpu, "cores": cores, "device": jax.devices()[0].device_kind, "jax": jax.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--only", help=f"sections, separated by commas: {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; written to runs/throughput")
    parser.add_argument("--out", type=Path, help="folder of the results (default: that of this script)")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [name for name in SECTIONS if name != "memory"]
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    out = options.out or (Path("runs/throughput") if options.quick else HERE)
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # pymatgen's, about the CIFs
    for name in names:
        rows = [row | machine() for row in SECTIONS[name](options.data, QUICK if options.quick else Sizes())]
        rows += [row for row in read_rows(out) if row["section"] != name]
        write_report(sorted(rows, key=lambda row: list(SECTIONS).index(row["section"])), out)
        print(f"{name}: done", flush=True)
    print((out / "results.md").read_text())


if __name__ == "__main__":
    main()
