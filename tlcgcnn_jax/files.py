"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path

from tlcgcnn_jax.errors import InputError


def write_whole(path: str | Path, data: bytes) -> Path:
    """Write a file under a temporary name and rename it, so that an interrupt leaves the old one or none.

    Raises:
        InputError: The file cannot be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise
    return path
