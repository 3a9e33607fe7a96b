"""A folder of arrays: NumPy files with a manifest and checksums, written whole or not at all, mapped when read."""

import contextlib
import csv
import json
import os
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.errors import InputError, Skipped
from tlcgcnn_jax.files import user_path

FORMAT = "tlcgcnn_jax dataset"
VERSION = 2  # 1 had no volumes
MANIFEST = "dataset.json"
SKIPPED = "skipped.csv"  # what was left out, which `tlcgcnn prepare` lists there
_AGAIN = "pack the dataset again"


class FolderWriter:
    """Writes arrays piece by piece into a folder beside `path`, and moves it there at the end.

    Use it as a context manager; if `finish` is not reached, nothing is left behind.

    Args:
        path: The folder to make; an array folder that is there is replaced, one that holds more is refused.
        arrays: Type and shape after the first axis of each array.
        lists: Names of what `finish` will be given as lists.

    Raises:
        InputError: `path` is something else than an array folder, or cannot be written.
    """

    def __init__(
        self, path: str | Path, arrays: Mapping[str, tuple[type, tuple[int, ...]]], lists: Collection[str] = ()
    ) -> None:
        self.path, self._arrays, self._names = user_path(path), arrays, {*arrays, *lists}
        check_free(self.path, self._names)
        self._folder = self.path.absolute().with_name(f".{self.path.absolute().name}.{os.getpid()}.partial")
        self._files: dict[str, _ArrayFile] = {}

    def __enter__(self) -> "FolderWriter":
        with self._writing():
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            for name, (dtype, tail) in self._arrays.items():
                self._files[name] = _ArrayFile(self._folder / f"{name}.npy", dtype, tail)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add rows to every array of the folder."""
        with self._writing():
            for name, file in self._files.items():
                file.append(arrays[name])

    def finish(self, settings: Mapping[str, Any], lists: Mapping[str, Any]) -> None:
        """Complete the folder and move it to its place.

        Args:
            settings: Goes into the manifest.
            lists: Each value is saved as JSON under its key.
        """
        with self._writing():
            for file in self._files.values():
                file.close()
            checksums = {}
            for name, value in lists.items():
                text = json.dumps(value).encode()
                (self._folder / f"{name}.json").write_bytes(text)
                checksums[name] = zlib.crc32(text)
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                **settings,
                "arrays": {
                    name: {"type": file.dtype.str, "shape": file.shape, "crc32": file.checksum}
                    for name, file in self._files.items()
                },
                "lists": checksums,
            }
            (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            check_free(self.path, self._names)
            old = self._folder.with_suffix(".old")
            with contextlib.suppress(FileNotFoundError):
                self.path.rename(old)
            self._folder.rename(self.path)
            shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot write {self.path}: {reason}; choose another folder or make room") from error


def read_folder(path: str | Path, verify: bool = True) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """The manifest, the lists and the arrays (mapped into memory) of a folder.

    Args:
        path: The folder.
        verify: Compare the checksum of every array; those of the lists always are.

    Raises:
        InputError: No such folder, another version, or a file that is missing, cut short or changed.
    """
    path = user_path(path)
    manifest = read_manifest(path)
    lists: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    try:
        for name, checksum in manifest["lists"].items():
            lists[name] = _read_list(path / f"{name}.json", checksum)
        for name, about in manifest["arrays"].items():
            array = arrays[name] = _map_array(path / f"{name}.npy", about["type"], tuple(about["shape"]))
            if verify and zlib.crc32(array.data) != about["crc32"]:
                raise InputError(f"{path / name}.npy is damaged (its checksum differs): {_AGAIN}")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path / MANIFEST} is damaged ({error!r}): {_AGAIN}") from error
    return manifest, lists, arrays


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        InputError: No such folder, no manifest, a damaged one, or one of another format or version.
    """
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder; a packed dataset was expected")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except OSError as error:
        raise InputError(f"{path} is not a packed dataset, or damaged: {MANIFEST} is missing: {_AGAIN}") from error
    except ValueError as error:
        raise InputError(f"{path / MANIFEST} is damaged ({error}): {_AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path / MANIFEST} does not describe a dataset of this package")
    if manifest.get("version") != VERSION:
        raise InputError(f"{path} has version {manifest.get('version')}; {VERSION} was expected: {_AGAIN}")
    return manifest


def holds_arrays(path: Path, name: str) -> bool:
    """Whether a folder is one of arrays, be it damaged: by its manifest, or by the array of this name."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (path / f"{name}.npy").is_file() or FORMAT in (path / MANIFEST).read_text()
    return False


def check_free(path: Path, names: Collection[str] = ()) -> None:
    """Raise `InputError` if `path` is no array folder, or holds more than that: it would be lost.

    Args:
        path: The folder to make or to replace.
        names: Of its arrays and lists: a folder with no other files is ours even if its manifest is lost.
    """
    known = {MANIFEST, SKIPPED, ".DS_Store", *(f"{name}{ending}" for name in names for ending in (".npy", ".json"))}
    try:
        if not path.is_symlink() and not path.exists():
            return
        others = sorted({entry.name for entry in path.iterdir()} - known)
        if not others and not path.is_symlink():
            return
        if FORMAT in (path / MANIFEST).read_text():
            if not others:
                return
            raise InputError(
                f"{path}: {', '.join(others[:3])}{' and more' if len(others) > 3 else ''} would be lost if the dataset "
                "there were packed again: move that, or choose another folder"
            )
    except (OSError, UnicodeDecodeError):
        pass
    raise InputError(
        f"{path} exists and is not a packed dataset (no {MANIFEST} of this package in it): it is left as it is; "
        "choose another folder, or remove it yourself"
    )


class _ArrayFile:
    """A .npy file that grows along its first axis; its header is written again, at the same length, at the end."""

    def __init__(self, path: Path, dtype: type, tail: tuple[int, ...]) -> None:
        self.dtype, self.shape, self.checksum = np.dtype(dtype), (0, *tail), 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array, self.dtype)
        if data.shape[1:] != self.shape[1:]:
            raise ValueError(f"rows of shape {data.shape[1:]} for an array of shape {self.shape}")
        self.shape = (self.shape[0] + len(data), *self.shape[1:])
        if data.size:
            self.checksum = zlib.crc32(data.data, self.checksum)
            self._file.write(data.data)

    def close(self) -> None:
        if not self._file.closed:
            with self._file:
                self._file.seek(0)
                self._write_header()

    def _write_header(self) -> None:
        # NumPy pads a header so that the first axis may grow without moving the data.
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        )


def _read_list(path: Path, checksum: int) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} is missing or cannot be read: {_AGAIN}") from error
    if zlib.crc32(data) != checksum:
        raise InputError(f"{path} is damaged (its checksum differs): {_AGAIN}")
    return json.loads(data)


def _map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r" if np.prod(shape) else None)
    except OSError as error:
        raise InputError(f"{path} is missing or cannot be read: {_AGAIN}") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}): {_AGAIN}") from error
    if array.shape != shape or array.dtype.str != dtype:
        found = f"{array.dtype} {array.shape}"
        raise InputError(f"{path} is damaged: {found} was found, {np.dtype(dtype)} {shape} expected: {_AGAIN}")
    return array


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """List crystals that were left out; where there are none, no list of an earlier time stays."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    # A crystal may be left out because the name of its file is no text.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "where", "reason"])
        writer.writerows([one.id, one.where, one.reason] for one in skipped)
