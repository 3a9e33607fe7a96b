"""The source models: those that come with the package, and those in a folder of the user's own."""

import logging
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tlcgcnn_jax.bundle import WEIGHTS, Model, load_bundle
from tlcgcnn_jax.cgcnn_import import import_cgcnn
from tlcgcnn_jax.committee import AnyModel, load_any
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import user_path
from tlcgcnn_jax.model_folder import CONFIG

logger = logging.getLogger(__name__)

AUTO = "auto"
PICKLE = ".pth.tar"  # the ending of the original's checkpoints
PREDICTORS = ("mp-formation-energy-ensemble",)  # no source of "auto", without which all studies were made


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


def load_model(name: str | Path) -> AnyModel:
    """A model of any kind by its folder, or by the name of a shipped one.

    Args:
        name: Path of a run or of a model folder, or a name of `shipped`, unless a model lies in a folder of that name.

    Returns:
        A `Model`, and for runs with such a strategy a `FeatureModel` or a `Committee`.

    Raises:
        InputError: Neither; or the folder is not a whole model.

    Example:
        >>> from tlcgcnn_jax import load_model
        >>> load_model("mp-formation-energy").targets[0].unit
        'eV/atom'
    """
    if not isinstance(name, str | Path):
        raise InputError(f"the model is {name!r:.80}: a folder's path, or the name of a shipped one, was expected")
    own = user_path(name)
    if not isinstance(name, Path) and not (own / CONFIG).is_file() and name in shipped():
        return load_bundle(folder() / name)
    if not own.exists():
        raise InputError(f"{name}: neither a folder nor a shipped model; shipped are: {', '.join(shipped()) or 'none'}")
    return load_any(own)


def load_source(name: str | Path) -> Model:
    """A model that can be transferred from: a network or an ensemble of networks.

    Raises:
        InputError: As `load_model`; or the model is of another kind.
    """
    model = load_model(name)
    if not isinstance(model, Model):
        raise InputError(
            f"{name}: a {type(model).__name__} cannot be a source; give a network, for example its own source"
        )
    return model


def load_sources(source: Any, own: str | Path | None = None) -> dict[str, Model]:
    """The models that a user names as sources, by name.

    Args:
        source: A model, its folder, the name of a shipped one, a list of such, a dictionary of such by names of one's
            own, or "auto" for all that there are.
        own: With "auto": folder of further sources, see `find_sources`.

    Raises:
        InputError: A source that is not there, is named twice, or cannot be transferred from.

    Example:
        >>> list(load_sources("mp-formation-energy"))
        ['mp-formation-energy']
    """
    if isinstance(source, str) and source == AUTO:
        return find_sources(own)
    if own is not None:
        raise InputError(f"{own}: a folder of sources to choose from goes with the source 'auto', found {source!r}")
    if isinstance(source, str | Path) or not isinstance(source, Iterable):
        source = [source]
    pairs = source.items() if isinstance(source, Mapping) else ((_name(one), one) for one in source)
    models: dict[str, Model] = {}
    for name, one in pairs:
        if name in models:
            raise InputError(
                f"source {name} is given twice: leave one out, or give a dictionary with names of your own"
            )
        model = load_source(one) if isinstance(one, str | Path) else one
        if not isinstance(model, Model):
            raise InputError(f"source {name}: found {type(model).__name__}, expected a network, its folder or its name")
        models[str(name)] = model
    if not models:
        raise InputError("no source was given; name one, or 'auto' for the best of those there are")
    return models


def _name(source: Any) -> str:
    # "./source/" is "source", also for a run that is resumed.
    return str(Path(source)) if isinstance(source, str | Path) else "a model in memory"


def find_sources(own: str | Path | None = None) -> dict[str, Model]:
    """All models to choose a source from: the shipped ones, but for `PREDICTORS`, and those in a folder.

    Args:
        own: Folder with models, each in a folder of its own (`config.json` and `weights.npz`), or checkpoints of the
            original CGCNN (`NAME.npz` with `NAME.json`) in it or one level below. What cannot be read is named in a
            warning and left out, and so are checkpoints as PyTorch writes them (`NAME.pth.tar`).

    Returns:
        Models by name: a path within the folder, without the checkpoint's suffix.

    Raises:
        InputError: The folder is missing, or holds no model that can be read.

    Example:
        >>> from tlcgcnn_jax import find_sources
        >>> "mp-formation-energy" in find_sources()
        True
    """
    found = {name: load_source(folder() / name) for name in shipped() if name not in PREDICTORS}
    if own is None:
        return found
    here = len(found)
    place = user_path(own)
    if not place.is_dir():
        raise InputError(f"{place}: no such folder; give one that holds source models")
    folders = sorted(path for path in place.iterdir() if path.is_dir())
    readers: dict[Path, Callable[[Path], Model]] = {
        path: load_bundle for path in folders if (path / CONFIG).is_file() or (path / WEIGHTS).is_file()
    }
    for at in (place, *folders):
        pairs = (path for path in sorted(at.glob("*.npz")) if path.with_suffix(".json").is_file())
        readers |= dict.fromkeys(pairs, import_cgcnn)
    broken = []
    for path, read in readers.items():
        name = path.relative_to(place).as_posix().removesuffix(".npz")
        try:
            model = read(path)
        except InputError as error:
            broken.append(name)
            logger.warning("source %s is left out: %s", name, error)
            continue
        if model.model.sources > 1:
            broken.append(name)
            logger.warning("source %s is left out: it is a mixture of sources; give these, each on its own", name)
            continue
        found[f"{place.resolve().name}/{name}" if name in found else name] = model
    if len(found) == here:
        if (place / CONFIG).is_file():
            raise InputError(f"{place}: is a model itself; give the folder above it, {place.resolve().parent}")
        told = f"; left out as broken: {', '.join(broken)}" if broken else ""
        raise InputError(
            f"{place}: holds no source model{told}; folders with {CONFIG} and {WEIGHTS}, or checkpoints as NAME.npz "
            "with NAME.json were expected (`tlcgcnn import-cgcnn` reads .pth.tar)"
        )
    _tell_unread(place, folders, readers)
    return found


def _tell_unread(place: Path, folders: Iterable[Path], read: Iterable[Path]) -> None:
    """Warn of checkpoints that nobody has imported, which look like sources and are none."""
    known = {path.parent / path.name.removesuffix(".npz") for path in read}
    pickles = [path for at in (place, *folders) for path in sorted(at.glob(f"*{PICKLE}"))]
    if unread := [path for path in pickles if path.parent / path.name.removesuffix(PICKLE) not in known]:
        names = [path.relative_to(place).as_posix() for path in unread]
        logger.warning(
            "%s: %d checkpoints of PyTorch are not read: %s; to use one: tlcgcnn import-cgcnn %s --out %s",
            place, len(names), ", ".join(names[:3]) + (", …" if len(names) > 3 else ""), unread[0],
            str(unread[0]).removesuffix(PICKLE),
        )  # fmt: skip
