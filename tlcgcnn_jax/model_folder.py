"""How a model of any kind lies on disk: one folder with settings, files under checksums, and a card."""

import contextlib
import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import to_json, user_path, write_whole

FORMAT = 1
CONFIG, CARD, FORMULAS = "config.json", "README.md", "formulas.txt.gz"
NETWORK, FEATURES, COMMITTEE = "network", "features", "committee"  # kinds


def write_model(
    folder: str | Path,
    main: str,
    config: Mapping[str, Any],
    files: Mapping[str, bytes | None],
    card: str,
    inner: Mapping[str, tuple[str, Any]] | None = None,
) -> Path:
    """Write a model's files, then its settings with their checksums, then its card.

    Args:
        folder: A folder that holds such a model already is renewed, what else lies there is kept.
        main: File or folder by which a model of this kind is known.
        config: Settings, for `read_config`.
        files: Contents by name; None removes what an earlier model left there.
        card: Markdown for people.
        inner: Models that are saved inside the folder: (place, model) by name; the settings hold them as "inner".

    Returns:
        The folder.

    Raises:
        InputError: The folder cannot be written, or holds files of these names that are not a model's.
    """
    folder = user_path(folder)
    there = [name for name in (CONFIG, main, CARD) if (folder / name).exists()]
    if there and main not in there:
        raise InputError(f"{folder}: holds {' and '.join(there)} of something else; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            if data is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_whole(folder / name, data)
        listed = [
            {"name": name, "folder": place, "sha256": _digest(model.save(folder / place))}
            for name, (place, model) in (inner or {}).items()
        ]
        digests = {_key(name): hashlib.sha256(data).hexdigest() for name, data in files.items() if data is not None}
        whole = {"format": FORMAT, **config, **({"inner": listed} if listed else {}), **digests}
        write_whole(folder / CONFIG, to_json(whole, indent=1).encode())
        write_whole(folder / CARD, card.encode())
    except OSError as error:
        raise InputError(f"{folder}: the model cannot be written: {error}") from error
    return folder


def model_kind(folder: str | Path) -> str:
    """Kind of the model in a folder, "network" where it does not say so; whether it is whole is for its reader."""
    try:
        return str(json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return NETWORK


def read_config(folder: str | Path, kind: str, needed: Sequence[str]) -> dict[str, Any]:
    """The settings of a model.

    Args:
        folder: Of the model.
        kind: That is expected.
        needed: Names of what must be there beside the settings.

    Raises:
        InputError: No model, or not a whole one, one of another kind or of a later version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; `tlcgcnn models` lists the shipped ones")
    found = model_kind(folder)
    if found != kind:
        raise InputError(f"{folder}: a model of the kind {found!r} where a {kind} was expected; give one of these")
    missing = [name for name in (CONFIG, *needed) if not (folder / name).exists()]
    if missing:
        raise InputError(f"{folder}: not a whole model: {' and '.join(missing)} missing (found: {_listing(folder)})")
    with damage_named(folder):
        config = dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        if config["format"] != FORMAT:
            raise InputError(f"{folder / CONFIG}: format {config['format']!r}, this version reads {FORMAT}: update it")
        if unknown := [name for name in needed if (folder / name).is_file() and not config.get(_key(name))]:
            raise InputError(f"{folder / CONFIG}: damaged: no checksum of {', '.join(unknown)}")
        return config


@contextlib.contextmanager
def damage_named(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while settings are understood into an `InputError` that names their file."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            named = str(error) if str(folder) in str(error) else f"{folder / CONFIG}: {error}"
            raise InputError(named) from error
        raise InputError(f"{folder / CONFIG}: damaged: {type(error).__name__}: {error}") from error


def read_file(folder: Path, name: str, config: Mapping[str, Any]) -> bytes:
    """Content of a file that the settings hold the checksum of; empty where they hold none: an old or plain model.

    Raises:
        InputError: It is missing, cut short or changed.
    """
    if config.get(_key(name)) is None:
        return b""
    path = folder / name
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != config[_key(name)]:
        raise InputError(
            f"{path}: {len(data)} bytes that are not the ones config.json was written with: "
            "the file is missing, cut short or changed; copy the whole folder again"
        )
    return data


def inner_folders(folder: Path, config: Mapping[str, Any]) -> dict[str, Path]:
    """Where the models lie that are saved inside another one, by name.

    Raises:
        InputError: One is missing or is not the one that was saved.
    """
    out = {}
    for one in config.get("inner", ()):
        place = folder / one["folder"]
        if not (place / CONFIG).is_file() or _digest(place) != one["sha256"]:
            raise InputError(f"{place}: missing, or changed since the model was saved; copy the whole folder again")
        out[one["name"]] = place
    return out


def arrays_to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Named arrays as the content of an .npz file."""
    data = io.BytesIO()
    np.savez(data, **arrays)  # type: ignore[arg-type]
    return data.getvalue()


def bytes_to_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The inverse of `arrays_to_bytes`.

    Example:
        >>> bytes_to_arrays(arrays_to_bytes({"x": np.arange(3)}))
        {'x': array([0, 1, 2])}
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def formulas_to_bytes(formulas: Sequence[str]) -> bytes | None:
    """Formulas as a compressed text, the same bytes at any time; None for none."""
    return gzip.compress("".join(f"{name}\n" for name in formulas).encode(), mtime=0) if formulas else None


def bytes_to_formulas(data: bytes) -> tuple[str, ...]:
    """The inverse of `formulas_to_bytes`; nothing gives nothing.

    Example:
        >>> bytes_to_formulas(formulas_to_bytes(["NaCl", "Si"]) or b"")
        ('NaCl', 'Si')
    """
    return tuple(gzip.decompress(data).decode().split()) if data else ()


def _key(name: str) -> str:
    return f"{name.split('.')[0]}_sha256"


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())[:8]
    return ", ".join(names) if names else "an empty folder"
