"""Datasets: the graphs of many crystals packed in flat arrays, made in parallel and saved as a folder."""

import contextlib
import logging
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.array_folder import FolderWriter, check_free, holds_arrays, read_folder, read_manifest
from tlcgcnn_jax.config import GraphConfig, from_dict, target_names, to_dict
from tlcgcnn_jax.errors import InputError, ReadingWarning, Skipped, advised, check_on_error
from tlcgcnn_jax.files import user_path
from tlcgcnn_jax.graphs import build_graphs
from tlcgcnn_jax.processes import cores, script_not_run_again, worker_pool
from tlcgcnn_jax.structures import Item, Record, formula, parse_all, scan

logger = logging.getLogger(__name__)

# Type, and what the first axis counts. Packing, selecting and saving go by one table, so that no array is forgotten.
_ARRAYS: dict[str, tuple[type, str]] = {
    "targets": (np.float32, "crystal"),
    "n_atom": (np.int32, "crystal"),
    "n_row": (np.int32, "crystal"),
    "volume": (np.float32, "crystal"),
    "atomic_numbers": (np.uint8, "atom"),
    "receivers": (np.int32, "row"),
    "senders": (np.int32, "row"),
    "distances": (np.float32, "row"),
    "weights": (np.float32, "row"),
}
_TASK = 256  # crystals sent to a process at once
_TOGETHER = 64  # crystals whose graphs are made at once: more do not fit the processor's cache
_WORTH_PROCESSES = 512  # crystals; below this, starting processes takes longer than the work


@dataclass(frozen=True, eq=False)
class CrystalDataset:
    """Crystals as packed graphs, with their labels.

    Attributes:
        graph: How the graphs were made.
        ids: Name of each crystal.
        formulas: Reduced formula of each crystal.
        target_names: Columns of `targets`.
        targets: float32 [n, n_target], in the unit of the column; NaN where a label is missing.
        n_atom: int32 [n].
        n_row: int32 [n], rows of edge places.
        volume: float32 [n], Å^3, of the cell that the graph was made of.
        atomic_numbers: uint8 [sum of n_atom].
        receivers: int32 [sum of n_row], counted from 0 in each crystal.
        senders: int32 [sum of n_row, places], counted from 0 in each crystal.
        distances: float32 [sum of n_row, places], Å.
        weights: float32 [sum of n_row, places].
        skipped: Crystals that were left out.
        fingerprint: Hash of the input that the crystals were read from.
        notes: What happened on the way, e.g. why a saved dataset was packed again; not saved.
        atom_offset: int64 [n + 1], first atom of each crystal.
        row_offset: int64 [n + 1], first row of each crystal.

    Example:
        >>> from tlcgcnn_jax import build_dataset, textbook_records
        >>> crystals = build_dataset(textbook_records(("band_gap_ev",))[:4], targets=("band_gap_ev",))
        >>> len(crystals), crystals.targets.shape, crystals.select([1, 0]).ids
        (4, (4, 1), ['diamond-Si', 'diamond-C'])
    """

    graph: GraphConfig
    ids: list[str]
    formulas: list[str]
    target_names: tuple[str, ...]
    targets: np.ndarray
    n_atom: np.ndarray
    n_row: np.ndarray
    volume: np.ndarray
    atomic_numbers: np.ndarray
    receivers: np.ndarray
    senders: np.ndarray
    distances: np.ndarray
    weights: np.ndarray
    skipped: list[Skipped] = field(default_factory=list)
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    atom_offset: np.ndarray = field(init=False)
    row_offset: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        for name, counts in (("atom_offset", self.n_atom), ("row_offset", self.n_row)):
            object.__setattr__(self, name, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> np.ndarray:
        """Rows with a label of one target at least; int64 [n_labelled]."""
        return np.flatnonzero(np.isfinite(self.targets).any(1))

    def select(self, indices: Sequence[int] | np.ndarray) -> "CrystalDataset":
        """The crystals at `indices` (row numbers, or a mask of length n), in that order, in memory.

        Raises:
            InputError: A mask of another length.
            IndexError: A row number beyond the crystals.
        """
        index = np.asarray(indices)
        if index.dtype == bool and index.shape != (len(self),):
            raise InputError(f"a mask of shape {index.shape} for {len(self)} crystals: ({len(self)},) was expected")
        index = np.flatnonzero(index) if index.dtype == bool else np.arange(len(self))[index.astype(np.int64)]
        which = {
            "crystal": index,
            "atom": gather_rows(self.atom_offset[index], self.n_atom[index]),
            "row": gather_rows(self.row_offset[index], self.n_row[index]),
        }
        arrays: dict[str, Any] = {name: getattr(self, name)[which[per]] for name, (_, per) in _ARRAYS.items()}
        rows = index.tolist()
        return replace(
            self, ids=[self.ids[i] for i in rows], formulas=[self.formulas[i] for i in rows], skipped=[], **arrays
        )

    def with_targets(self, names: Sequence[str]) -> "CrystalDataset":
        """The same crystals with the target columns `names` only, in that order.

        Raises:
            InputError: The dataset has no such column.
        """
        missing = [name for name in names if name not in self.target_names]
        if missing:
            has = ", ".join(self.target_names) or "none"
            raise InputError(f"the dataset has no target {', '.join(missing)}; its targets are: {has}")
        columns = [self.target_names.index(name) for name in names]
        return replace(self, target_names=tuple(names), targets=np.asarray(self.targets)[:, columns])

    def save(self, path: str | Path) -> None:
        """Write the dataset as a folder, whole or not at all.

        Raises:
            InputError: `path` holds something else than a dataset, or cannot be written.
        """
        with _writer(path, self.graph, self.target_names) as writer:
            writer.append({name: getattr(self, name) for name in _ARRAYS})
            _finish(writer, self.graph, self.target_names, self.fingerprint, self.ids, self.formulas, self.skipped)


def gather_rows(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Indices of several runs of rows, one run after the other.

    Args:
        starts: int [n], first row of each run.
        counts: int [n], its number of rows.

    Returns:
        int64 [sum of counts].

    Example:
        >>> gather_rows(np.array([10, 0]), np.array([2, 3])).tolist()
        [10, 11, 0, 1, 2]
    """
    counts = np.asarray(counts, np.int64)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(np.asarray(starts, np.int64) - (ends - counts), counts)


def load_dataset(path: str | Path, verify: bool = True) -> CrystalDataset:
    """A saved dataset, its arrays mapped into memory: what is not used is not kept there.

    Args:
        path: The folder.
        verify: Compare the checksum of every file (a tenth of a second for 100 MB).

    Raises:
        InputError: No dataset, one of another version, or a damaged one (the file is named).

    Example:
        >>> import tempfile
        >>> from tlcgcnn_jax import build_dataset, load_dataset, textbook_records
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     build_dataset(textbook_records()[:2]).save(f"{folder}/two")
        ...     load_dataset(f"{folder}/two").formulas
        ['C', 'Si']
    """
    manifest, lists, arrays = read_folder(path, verify)
    try:
        crystals = lists["crystals"]
        kept: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        return CrystalDataset(
            graph=from_dict(GraphConfig, manifest["graph"], str(path)),
            ids=crystals["ids"],
            formulas=crystals["formulas"],
            target_names=tuple(manifest["targets"]),
            skipped=[Skipped(**entry) for entry in crystals["skipped"]],
            fingerprint=manifest["fingerprint"],
            **kept,
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: the manifest is damaged ({error!r}): pack the dataset again") from error


def find_dataset(source: Any) -> CrystalDataset | None:
    """The packed dataset in a folder, or None for any other source.

    Raises:
        InputError: It is damaged.
    """
    if not isinstance(source, str | Path):
        return None
    return load_dataset(source) if holds_arrays(user_path(source), "senders") else None


def build_dataset(
    source: Any,
    *,
    targets: Sequence[str] = (),
    graph: GraphConfig = GraphConfig(),
    labels: Any = None,
    id_column: str | None = None,
    out: str | Path | None = None,
    on_error: str = "raise",
    processes: int | None = None,
    progress: bool = False,
) -> CrystalDataset:
    """Read crystals, make their graphs in parallel, and pack them.

    Args:
        source: Whatever `structures.read_structures` takes: a path, a list of crystals, a DataFrame.
        targets: Columns to keep as labels.
        graph: How crystals become graphs.
        labels: Joined by id, as in `read_structures`.
        id_column: Column that holds the ids.
        out: Folder to save in. One that was made from the same input with the same settings is loaded instead; a
            stale or damaged one is packed again, with a warning in the log and in `notes`.
        on_error: "raise" stops at the first crystal that cannot be used; "skip" lists them in `skipped`.
        processes: Worker processes; default: one for each core that may be used. Small inputs take none.
        progress: Show a bar.

    Returns:
        The dataset: mapped from `out`, or in memory.

    Raises:
        InputError: Bad input, no crystal left, or an `out` that is not a dataset or cannot be written.

    Example:
        >>> import numpy as np
        >>> from tlcgcnn_jax import Crystal, Record, build_dataset
        >>> salt = Crystal(np.eye(3) * 4.12, np.array([55, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
        >>> build_dataset([Record("CsCl", salt, {})]).formulas
        ['ClCs']
    """
    check_on_error(on_error)
    names = target_names(targets)
    if out is not None:
        out = user_path(out)
        check_free(out, {*_ARRAYS, "crystals"})
    found = scan(source, targets=names, labels=labels, id_column=id_column, on_error=on_error)
    notes: tuple[str, ...] = ()
    if out is not None and out.is_dir() and any(out.iterdir()):
        try:
            return _load_same(out, found.fingerprint, graph, names, on_error)
        except InputError as error:
            notes = (f"{error} (packing it again)",)
            logger.warning("%s", notes[0])
    ids: list[str] = []
    formulas: list[str] = []
    skipped, doubts, pieces = list(found.skipped), [], []
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(_writer(out, graph, names)) if out is not None else None
        bar = stack.enter_context(_bar(len(found.items), progress))
        tasks = [found.items[i : i + _TASK] for i in range(0, len(found.items), _TASK)]
        for task, piece in zip(tasks, _packed(tasks, graph, names, on_error, processes), strict=True):
            ids += piece.ids
            formulas += piece.formulas
            skipped += piece.skipped
            doubts += piece.doubts
            writer.append(piece.arrays) if writer else pieces.append(piece.arrays)
            bar.update(len(task))
        if not ids:
            first = f"; the first: {skipped[0].reason}" if skipped else ""
            raise InputError(f"no crystal of {len(skipped)} could be used{first}")
        if writer is not None:
            _finish(writer, graph, names, found.fingerprint, ids, formulas, skipped)
    if doubts:
        logger.warning("%d crystals were read with a doubt; the first: %s", len(doubts), doubts[0])
    if out is not None:
        return replace(load_dataset(out, verify=False), notes=notes)
    arrays: dict[str, Any] = {name: np.concatenate([piece[name] for piece in pieces]) for name in _ARRAYS}
    return CrystalDataset(graph, ids, formulas, names, skipped=skipped, fingerprint=found.fingerprint, **arrays)


def _load_same(
    path: Path, fingerprint: str, graph: GraphConfig, names: tuple[str, ...], on_error: str
) -> CrystalDataset:
    """The saved dataset, if this call would make the same; otherwise an `InputError` that says what differs."""
    manifest = read_manifest(path)
    # The fingerprint last: other targets change that of crystals in memory as well.
    for what, wanted in (("graph", to_dict(graph)), ("targets", list(names)), ("fingerprint", fingerprint)):
        if manifest.get(what) != wanted:
            meaning = {"fingerprint": "input", "graph": "graph settings"}.get(what, what)
            raise InputError(f"{path} was made from other {meaning}")
    dataset = load_dataset(path)
    if dataset.skipped and on_error == "raise":
        raise InputError(f"{path} leaves out {len(dataset.skipped)} crystals, which on_error='raise' does not allow")
    return dataset


def _writer(path: str | Path, graph: GraphConfig, names: Sequence[str]) -> FolderWriter:
    tails = {"targets": (len(names),)} | dict.fromkeys(("senders", "distances", "weights"), (graph.places,))
    arrays = {name: (dtype, tails.get(name, ())) for name, (dtype, _) in _ARRAYS.items()}
    return FolderWriter(path, arrays, lists=("crystals",))


def _finish(
    writer: FolderWriter,
    graph: GraphConfig,
    names: Sequence[str],
    fingerprint: str,
    ids: list[str],
    formulas: list[str],
    skipped: list[Skipped],
) -> None:
    settings = {
        "graph": to_dict(graph),
        "targets": list(names),
        "crystals": len(ids),
        "skipped": len(skipped),
        "fingerprint": fingerprint,
    }
    entries = [asdict(entry) for entry in skipped]
    writer.finish(settings, {"crystals": {"ids": ids, "formulas": formulas, "skipped": entries}})


# --- packing, in worker processes -------------------------------------------------------------------------------------


class _Piece(NamedTuple):
    ids: list[str]
    formulas: list[str]
    skipped: list[Skipped]
    doubts: list[str]
    arrays: dict[str, np.ndarray]


def _pack(items: list[Item], graph: GraphConfig, names: tuple[str, ...], on_error: str) -> _Piece:
    """Parse some crystals and make their graphs."""
    ids: list[str] = []
    formulas: list[str] = []
    skipped: list[Skipped] = []
    pieces: list[dict[str, np.ndarray]] = [_arrays([], graph, names)]
    doubts: list[str] = []
    for start in range(0, len(items), _TOGETHER):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ReadingWarning)
            read = parse_all(items[start : start + _TOGETHER], on_error)
        records: list[Record] = read
        skipped += read.skipped
        doubts += [str(one.message) for one in told if issubclass(one.category, ReadingWarning)]
        try:
            pieces.append(_arrays(records, graph, names))
        except InputError as error:
            if on_error == "raise":
                raise InputError(advised(str(error))) from error
            records, some = _one_by_one(records, graph, names, skipped)
            pieces += some
        ids += [record.id for record in records]
        formulas += [formula(record.structure.atomic_numbers) for record in records]
    return _Piece(ids, formulas, skipped, doubts, {n: np.concatenate([piece[n] for piece in pieces]) for n in _ARRAYS})


def _one_by_one(
    records: list[Record], graph: GraphConfig, names: tuple[str, ...], skipped: list[Skipped]
) -> tuple[list[Record], list[dict[str, np.ndarray]]]:
    kept, pieces = [], []
    for record in records:
        try:
            pieces.append(_arrays([record], graph, names))
            kept.append(record)
        except InputError as error:
            skipped.append(Skipped(record.id, record.where, str(error)))
    return kept, pieces


def _arrays(records: list[Record], graph: GraphConfig, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not records:
        tails = {"targets": (len(names),)} | dict.fromkeys(("senders", "distances", "weights"), (graph.places,))
        return {name: np.zeros((0, *tails.get(name, ())), dtype) for name, (dtype, _) in _ARRAYS.items()}
    wheres = [r.where if r.id in Path(r.where).name else f"{r.where} (id {r.id!r})" for r in records]
    graphs = build_graphs([record.structure for record in records], graph, wheres)
    values = [[record.targets[name] for name in names] for record in records]
    targets = np.array(values, np.float32).reshape(len(records), len(names))
    volume = np.abs(np.linalg.det([record.structure.lattice for record in records])).astype(np.float32)
    sizes = {"n_atom": graphs.n_atom, "n_row": graphs.n_row, "volume": volume}
    return {"targets": targets, **sizes, **graphs.arrays._asdict()}


def _packed(
    tasks: list[list[Item]], graph: GraphConfig, names: tuple[str, ...], on_error: str, processes: int | None
) -> Iterator[_Piece]:
    """The pieces of all tasks, in order."""
    workers = min(processes or cores(), len(tasks))
    done = 0
    if workers > 1 and sum(map(len, tasks)) >= _WORTH_PROCESSES:
        try:
            for piece in _in_processes(tasks, graph, names, on_error, workers):
                done += 1
                yield piece
        except (BrokenProcessPool, OSError) as error:
            logger.warning("worker processes cannot be used (%s): packing goes on in this one", error or "one died")
    for task in tasks[done:]:
        yield _pack(task, graph, names, on_error)


def _in_processes(
    tasks: list[list[Item]], graph: GraphConfig, names: tuple[str, ...], on_error: str, workers: int
) -> Iterator[_Piece]:
    waiting: deque[Future[_Piece]] = deque()
    with worker_pool(workers) as pool:
        try:
            for task in tasks:
                with script_not_run_again():
                    waiting.append(pool.submit(_pack, task, graph, names, on_error))
                if len(waiting) > 3 * workers:  # a bound on what waits in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, disable=not progress, unit="crystal", desc="packing")
