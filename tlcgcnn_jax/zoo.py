"""The source models that come with the package."""

from importlib import resources
from pathlib import Path

from tlcgcnn_jax.bundle import CONFIG, Model, load_bundle
from tlcgcnn_jax.errors import InputError


def folder() -> Path:
    """Where the shipped models lie."""
    return Path(str(resources.files("tlcgcnn_jax").joinpath("data/models")))


def shipped() -> tuple[str, ...]:
    """Names of the shipped models.

    Example:
        >>> "mp-formation-energy" in shipped()
        True
    """
    return tuple(sorted(path.parent.name for path in folder().glob(f"*/{CONFIG}")))


def load_model(name: str | Path) -> Model:
    """A model by its folder, or by the name of a shipped one.

    Args:
        name: Path of a run or of a model folder, or a name of `shipped`.

    Raises:
        InputError: Neither; or the folder is not a whole model.

    Example:
        >>> load_model("mp-formation-energy").targets[0].unit
        'eV/atom'
    """
    if str(name) in shipped():
        return load_bundle(folder() / str(name))
    if not Path(name).exists():
        raise InputError(f"{name}: neither a folder nor a shipped model; shipped are: {', '.join(shipped()) or 'none'}")
    return load_bundle(name)
