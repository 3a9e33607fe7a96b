"""What the shipped source models learn: their settings, their crystals without those held out, and their splits."""

import gzip
import hashlib
import json
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.config import GraphConfig, Target, TrainConfig, from_dict
from tlcgcnn_jax.crystal import Record, atomic_number, formula, make_crystal
from tlcgcnn_jax.dataset import CrystalDataset, build_dataset, load_dataset
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import read_json, to_json, write_whole
from tlcgcnn_jax.splits import Split, random_split
from tlcgcnn_jax.textbook import textbook_records

SETTINGS = Path(__file__).with_name("sources.toml")
SUITE = "moe"  # the published transfer suite, below DATA
HELD_OUT = {
    "all": "every crystal with a formula of the published transfer suite (R. Chang et al., npj Comput. Mater. 8, 242 "
    "(2022)) or of the textbook set",
    "textbook": "every crystal with a formula of the textbook set; those of the published transfer suite were NOT left "
    "out, since these data are two of its tasks",
    "none": "nothing: the data hold one formula, which the textbook set holds as well",
}
SAME_VOLUME = 0.02  # relative; formula and volume alike: the same crystal, which another file holds once more


@dataclass(frozen=True)
class Source:
    """One source model to be trained.

    Attributes:
        name: Of the model.
        files: JSON lines of crystals, below the data folder; what an earlier file holds is not taken again.
        targets: What is learnt: columns of the files, or of `labels`.
        training: How.
        data: What the data are, for the card.
        licence: Of the data.
        attribution: Whom to cite for them.
        starts: Source models that all weights start from (the head only where the targets are the same, in rounds),
            each a network of its own: of several an ensemble is made. () for one with fresh weights.
        rounds: Epochs of each round of each start; every round starts from where the one before ended, with the rate's
            schedule anew. (): one round of `training.epochs`.
        val_trains: In the last round nine tenths of the validation crystals train as well, and the last weights are
            kept: what is left is too little to choose by.
        held_out: Which formulas no crystal may have, a key of `HELD_OUT`.
    """

    name: str
    files: tuple[str, ...]
    targets: tuple[Target, ...]
    training: TrainConfig
    data: str
    licence: str
    attribution: str
    starts: tuple[str, ...] = ()
    rounds: tuple[tuple[int, ...], ...] = ()
    val_trains: bool = False
    held_out: str = "all"

    def __post_init__(self) -> None:
        if self.held_out not in HELD_OUT:
            raise InputError(f"{self.name}: held_out is {self.held_out!r}: use one of {', '.join(HELD_OUT)}")
        needed = len(self.starts) if self.rounds or len(self.starts) > 1 else 0
        if len(self.rounds) != needed or not all(self.rounds):
            raise InputError(f"{self.name}: rounds of {len(self.rounds)} networks, with {len(self.starts)} starts")
        if self.val_trains and not self.rounds:
            raise InputError(f"{self.name}: val_trains is for the last of several rounds: give rounds")


@dataclass(frozen=True)
class Packed:
    """The crystals of a source.

    Attributes:
        dataset: Graphs and labels.
        counts: Rows read, and what became of them.
    """

    dataset: CrystalDataset
    counts: dict[str, int]


def read_sources(path: Path = SETTINGS) -> dict[str, Source]:
    """All sources by name.

    Raises:
        InputError: An unknown or a missing key; the source is named.
    """
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: from_dict(Source, {"name": name, **table}, f"{path}: {name}") for name, table in tables.items()}


def pack(source: Source, data: Path, packed: Path, graph: GraphConfig = GraphConfig()) -> Packed:
    """The crystals of a source as graphs.

    Args:
        source: Which.
        data: The data folder, or one of datasets that this function packed before.
        packed: Where datasets are kept, each in a folder of its own; one of the same crystals is used again.
        graph: How crystals become graphs.

    Raises:
        InputError: A file is missing, or what is packed already is of other targets or graphs.
    """
    names = tuple(target.name for target in source.targets)
    ready = data / source.name
    if ready.is_dir():
        dataset = load_dataset(ready)
        if dataset.target_names != names or dataset.graph != graph:
            raise InputError(f"{ready}: packed for {dataset.target_names}, {dataset.graph}: pack {source.name} again")
        return Packed(dataset, read_json(_counts_file(ready)))
    records, counts = read_records(source, data)
    folder = packed / source.name
    packed.mkdir(parents=True, exist_ok=True)
    dataset = build_dataset(records, targets=names, graph=graph, out=folder, on_error="skip", progress=True)
    counts |= {"without neighbours": len(dataset.skipped), "kept": len(dataset)}
    write_whole(_counts_file(folder), to_json(counts).encode())
    return Packed(dataset, counts)


def read_records(source: Source, data: Path) -> tuple[list[Record], dict[str, int]]:
    """The crystals of a source, without unlabelled ones, repeats and held-out formulas; and the numbers of these."""
    held_out = held_out_formulas(source.held_out, data)
    counts = dict.fromkeys(("read", "without a label", "repeats", "held out", "kept"), 0)
    records: list[Record] = []
    ids: set[str] = set()
    volumes: dict[str, list[float]] = defaultdict(list)  # per atom, of the files before, by formula
    for file in source.files:
        here: list[tuple[str, float]] = []
        for row in read_rows(data / file):
            counts["read"] += 1
            found = labels(row)
            values = {target.name: found.get(target.name, np.nan) for target in source.targets}
            crystal = make_crystal(row["lattice"], row["species"], row["frac_coords"], f"{file} (id {row['id']!r})")
            name = formula(crystal.atomic_numbers)
            volume = abs(np.linalg.det(crystal.lattice)) / len(crystal.atomic_numbers)
            if np.isnan(list(values.values())).all():
                counts["without a label"] += 1
            elif row["id"] in ids or any(abs(other / volume - 1) < SAME_VOLUME for other in volumes[name]):
                counts["repeats"] += 1
            elif name in held_out:
                counts["held out"] += 1
            else:
                records.append(Record(row["id"], crystal, values, file))
                here.append((name, volume))
                ids.add(row["id"])
        for name, volume in here:
            volumes[name].append(volume)
    counts["kept"] = len(records)
    return records, counts


def labels(row: dict[str, Any]) -> dict[str, float]:
    """Numbers of a row, with the columns that are made of others.

    Example:
        >>> labels({"id": "x", "band_gap_pbe_eV": 0.0, "log10_K_VRH": 2.0})
        {'band_gap_pbe_eV': 0.0, 'log10_K_VRH': 2.0, 'metal': 1.0, 'k_vrh_gpa': 100.0}
    """
    out = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    if "band_gap_pbe_eV" in out:
        out["metal"] = float(out["band_gap_pbe_eV"] == 0)
    for modulus, logarithm in (("k_vrh_gpa", "log10_K_VRH"), ("g_vrh_gpa", "log10_G_VRH")):
        if logarithm in out:
            out[modulus] = 10 ** out[logarithm]
    return out


def held_out_formulas(which: str, data: Path) -> set[str]:
    """Formulas that no crystal of a source may have.

    Args:
        which: A key of `HELD_OUT`.
        data: The data folder, with the published suite in it.

    Raises:
        InputError: The suite is not there.
    """
    if which == "none":
        return set()
    formulas = {formula(record.structure.atomic_numbers) for record in textbook_records(())}
    if which == "all":
        tasks = sorted((data / SUITE).glob("*.jsonl.gz"))
        if not tasks:
            raise InputError(f"{data / SUITE}: no tasks (*.jsonl.gz) there, whose formulas must be held out")
        for task in tasks:
            formulas |= {formula(map(atomic_number, row["species"])) for row in read_rows(task)}
    return formulas


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of compressed JSON lines."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of the data sets, or one of packed datasets")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def tenth(name: str, digit: int = 0) -> int:
    """A number from 0 to 9 that a formula has on every machine, in every set; `digit`: another one.

    Example:
        >>> tenth("NaCl"), tenth("NaCl", digit=1)
        (8, 8)
    """
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) // 10**digit % 10


def split_by_formula(formulas: Sequence[str]) -> Split:
    """Tenth 0 tests and tenth 1 validates, in every source alike; one formula alone is split by rows, seed 0."""
    if len(set(formulas)) == 1:
        return random_split(len(formulas), seed=0)
    tenths = np.array([tenth(name) for name in formulas])
    return Split(np.flatnonzero(tenths > 1), np.flatnonzero(tenths == 1), np.flatnonzero(tenths == 0))


def with_validation(split: Split, formulas: Sequence[str]) -> Split:
    """The same with most validation rows among those that train; which stay another digit of the hash decides."""
    stays = np.array([tenth(formulas[row], 2) == 1 for row in split.val], bool)
    return Split(np.sort(np.concatenate([split.train, split.val[~stays]])), split.val[stays], split.test)


def in_sample(formulas: Sequence[str], share: float) -> np.ndarray:
    """Which crystals have one of a share of the formulas (in thousandths), the same ones in every source; bool [n]."""
    thousandths = [100 * tenth(name, 3) + 10 * tenth(name, 2) + tenth(name, 1) for name in formulas]
    return np.array(thousandths) < 1000 * share


def _counts_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")
