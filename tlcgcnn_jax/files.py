"""Paths as users give them, and files that are written whole or not at all."""

import contextlib
import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tlcgcnn_jax.errors import InputError

LOCK = ".lock"  # in a folder where work goes on


def user_path(given: str | Path) -> Path:
    """The path that a user means: `~` is the home folder, which a shell does not put in everywhere.

    Raises:
        InputError: This is the text of a file and not its name, or nothing.
    """
    if given == "":  # which would be the working folder
        raise InputError("found an empty path; expected that of a file or a folder")
    if "\n" in str(given) or any(len(os.fsencode(part)) > 255 for part in Path(given).parts):  # no file's name
        raise InputError(
            f"found text that begins with {str(given)[:40]!r}; expected a path: write the text to a file, and give that"
        )
    return Path(os.path.expanduser(given))


def cannot_read(path: str | Path, error: OSError) -> InputError:
    """Why a file cannot be read; of a symbolic link, where it leads."""
    link = f"; it is a symbolic link to {os.readlink(path)}: mend or remove it" if os.path.islink(path) else ""
    return InputError(f"{path}: cannot be read ({error.strerror or error}){link}")


@contextlib.contextmanager
def only_one(folder: str | Path, what: str) -> Iterator[None]:
    """Make a folder, and keep anybody else's work out of it for as long as this goes on.

    The lock is the operating system's, on a file that goes in the end, and it ends with the process whatever ends that.
    Windows and some file systems of clusters have none.

    Args:
        folder: Of the work.
        what: "study" or "run", for the message.

    Raises:
        InputError: Another one is at work there, or the folder cannot be written.
    """
    path = Path(folder) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (lock := _lock(path, os.O_CREAT)) is not None and not _is(lock, path):
            os.close(lock)  # of a file that whoever had it has removed in between
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; choose another folder") from error
    if lock is None:
        raise at_work(folder, what)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove what is open
            if _is(lock, path):
                path.unlink()
        os.close(lock)


def is_at_work(folder: str | Path) -> bool:
    """Whether `only_one` keeps a folder at the moment."""
    try:
        lock = _lock(Path(folder) / LOCK)
    except OSError:  # there is no such file
        return False
    if lock is not None:
        os.close(lock)
    return lock is None


def at_work(folder: str | Path, what: str) -> InputError:
    """Why nothing can begin in a folder that `only_one` keeps."""
    return InputError(f"{folder}: a {what} is at work here; wait until it has ended, or give another folder (--out)")


def _lock(path: Path, flags: int = 0) -> int | None:
    """The file opened and locked, where there are locks; None where somebody else has it."""
    handle = os.open(path, os.O_RDWR | flags)
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except (ImportError, OSError):
        pass
    return handle


def _is(handle: int, path: Path) -> bool:
    """Whether an open file is still that of a path; on Windows, where it cannot be removed, it is."""
    try:
        return os.name == "nt" or os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write a file under a temporary name and rename it, so that an interrupt leaves the old one or none.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a device or a pipe, which stays one
            with open(path, "wb") as stream:
                stream.write(data)
            return path
        place = Path(os.path.realpath(path))  # a link stays one
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, place)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise
    return path


def write_table(
    path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None, digits: int | None = None
) -> Path:
    """Write rows as CSV, whole or not at all.

    Args:
        path: Of the file.
        rows: One mapping a row.
        columns: Which of their keys, in this order, empty where a row lacks one; default: the keys of the first row.
        digits: Significant ones of floats; default: as many as it takes.

    Raises:
        InputError: The file cannot be written.
        ValueError: Without `columns`, a row with a key that the first one lacks.
    """
    rows = list(rows)
    names, text = columns or tuple(rows[0] if rows else ()), io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore" if columns else "raise", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{v:.{digits}g}" if digits and isinstance(v, float) else v for key, v in row.items()})
    return write_whole(path, text.getvalue().encode())


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite becomes null.

    Example:
        >>> to_json({"r2": float("nan"), "mae": 0.5})
        '{"r2": null, "mae": 0.5}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        InputError: The file is absent, holds something else, or is damaged; it is named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise cannot_read(str(path), error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged: {error}") from error
    return read_object(text, str(path))


def read_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that a text holds.

    Args:
        text: JSON.
        where: Named in the error message.

    Raises:
        InputError: Something else, or damaged.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: damaged: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: a JSON object was expected, found {type(value).__name__}")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def file_name(name: str) -> str:
    """A property's or run's name as a file's.

    Example:
        >>> file_name("log10(K) / GPa")
        'log10_K_GPa'
    """
    return "_".join(part for part in "".join(c if c.isalnum() or c in ".-" else " " for c in name).split())
