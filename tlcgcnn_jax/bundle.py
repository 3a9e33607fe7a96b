"""The model that users pass around: one folder with settings, weights, metrics and a model card."""

import gzip
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jraph
import numpy as np

from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, from_dict, to_dict
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import to_json, write_whole
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.model import Network, Variables, build_network

FORMAT = 1
CONFIG, WEIGHTS, CARD, FORMULAS = "config.json", "weights.npz", "README.md", "formulas.txt.gz"


@dataclass(frozen=True)
class Model:
    """A trained network, or an ensemble of them, with everything that a prediction needs.

    Attributes:
        graph: How crystals become graphs; predictions build theirs from it.
        model: Sizes of the network.
        targets: What the outputs mean.
        normaliser: Of the targets, as fitted on the training rows.
        members: One {"params", "batch_stats"} of NumPy arrays for each member of the ensemble.
        metrics: Errors on named parts of the data, in the targets' units.
        notes: Whatever the card shall tell: data, licence, settings, source.
        formulas: Reduced formulas of the crystals that it was trained on, its source's included; () if not known.
    """

    graph: GraphConfig
    model: ModelConfig
    targets: tuple[Target, ...]
    normaliser: Normaliser
    members: tuple[Variables, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    formulas: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Numbers per crystal."""
        return sum(target.outputs for target in self.targets)

    @property
    def network(self) -> Network:
        """The Flax module that the members' variables belong to."""
        return build_network(self.model, self.outputs, self.graph.places)

    def save(self, folder: str | Path) -> Path:
        """Write config.json, weights.npz and README.md; a folder that holds a model is renewed, others are kept.

        Raises:
            InputError: The folder cannot be written, or holds files of these names that are not a model's.
        """
        folder = Path(folder)
        there = [name for name in (CONFIG, WEIGHTS, CARD) if (folder / name).exists()]
        if there and WEIGHTS not in there:
            raise InputError(f"{folder}: holds {' and '.join(there)} of something else; give another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            arrays = {
                f"{index}/{path}": array
                for index, member in enumerate(self.members)
                for path, array in flatten(member).items()
            }
            weights = io.BytesIO()
            np.savez(weights, **arrays)  # type: ignore[arg-type]
            write_whole(folder / WEIGHTS, weights.getvalue())
            formulas = gzip.compress("".join(f"{name}\n" for name in self.formulas).encode(), mtime=0)
            if self.formulas:
                write_whole(folder / FORMULAS, formulas)
            else:
                (folder / FORMULAS).unlink(missing_ok=True)
            config = {
                "format": FORMAT,
                "graph": to_dict(self.graph),
                "model": to_dict(self.model),
                "targets": [to_dict(target) for target in self.targets],
                "normaliser": {name: np.asarray(v, float).tolist() for name, v in self.normaliser._asdict().items()},
                "members": len(self.members),
                "weights_sha256": hashlib.sha256(weights.getvalue()).hexdigest(),
                "formulas_sha256": hashlib.sha256(formulas).hexdigest() if self.formulas else None,
                "metrics": self.metrics,
                "notes": self.notes,
            }
            write_whole(folder / CONFIG, to_json(config, indent=1).encode())
            write_whole(folder / CARD, model_card(self).encode())
        except OSError as error:
            raise InputError(f"{folder}: the model cannot be written: {error}") from error
        return folder


def load_bundle(folder: str | Path) -> Model:
    """Read a model back; it is checked that nothing is missing or cut short.

    Raises:
        InputError: The folder is no model, a file is missing, damaged, or does not fit the settings.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; `tlcgcnn models` lists the shipped ones")
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: not a whole model: {' and '.join(missing)} missing (found: {_listing(folder)})")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise InputError(f"{folder / CONFIG}: format {config['format']!r}, this version reads {FORMAT}: update it")
        graph = from_dict(GraphConfig, config["graph"], f"{folder / CONFIG}: graph")
        model = from_dict(ModelConfig, config["model"], f"{folder / CONFIG}: model")
        targets = tuple(from_dict(Target, target, f"{folder / CONFIG}: targets") for target in config["targets"])
        normaliser = Normaliser(*(np.asarray(config["normaliser"][name], np.float32) for name in Normaliser._fields))
        count, digest = int(config["members"]), config["weights_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            named = str(error) if str(folder) in str(error) else f"{folder / CONFIG}: {error}"
            raise InputError(named) from error
        raise InputError(f"{folder / CONFIG}: damaged: {type(error).__name__}: {error}") from error
    data = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError(
            f"{folder / WEIGHTS}: {len(data)} bytes that are not the ones config.json was written with: "
            "the file is cut short or changed; copy the whole folder again"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        flat = {name: arrays[name] for name in arrays.files}
    members = tuple(
        unflatten({name.split("/", 1)[1]: array for name, array in flat.items() if name.startswith(f"{index}/")})
        for index in range(count)
    )
    formulas = _formulas(folder / FORMULAS, config.get("formulas_sha256"))
    metrics, notes = config.get("metrics", {}), config.get("notes", {})
    loaded = Model(graph, model, targets, normaliser, members, metrics, notes, formulas)
    _check_shapes(loaded, folder)
    return loaded


def check_graph(graph: GraphConfig, source: Model, where: str = "the dataset") -> None:
    """Raise `InputError` unless a dataset's graphs are of the kind that a model was trained on."""
    check_same_graph(graph, source.graph, where)


def check_same_graph(found: GraphConfig, wanted: GraphConfig, where: str = "the dataset") -> None:
    """Raise `InputError` unless graph settings differ at most in `places`, which changes no result."""
    wanted = replace(wanted, places=found.places)
    if wanted == found:
        return
    names = [name for name in GraphConfig.__dataclass_fields__ if getattr(wanted, name) != getattr(found, name)]
    told = "; ".join(f"{name} is {getattr(found, name)}, the model's {getattr(wanted, name)}" for name in names)
    raise InputError(
        f"{where} was prepared with other graph settings than the model's ({told}): "
        "prepare it again with those, or give the crystals themselves instead of a prepared dataset"
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """A nested dictionary of arrays as {"params/conv_0/bias": array}.

    Example:
        >>> flatten({"head": {"bias": np.zeros(1)}})
        {'head/bias': array([0.])}
    """
    out: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        out.update(flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: np.asarray(value)})
    return out


def unflatten(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    return tree


def model_card(model: Model) -> str:
    """What a reader needs to know of a model, as Markdown."""
    names = ", ".join(f"{t.name} ({t.unit})" if t.unit else t.name for t in model.targets)
    sizes = f"{model.model.convolutions} convolutions of width {model.model.width}, head {model.model.head_width}"
    lines = [
        f"# CGCNN for {names}",
        "",
        f"- network: {sizes}; {len(model.members)} member{'s' if len(model.members) > 1 else ''}",
        f"- graph: {model.graph.neighbours} neighbours within {model.graph.cutoff:g} Å, ties: {model.graph.ties}",
    ]
    lines += [f"- {key}: {value}" for key, value in model.notes.items() if not isinstance(value, dict | list)]
    for part, values in model.metrics.items():
        if isinstance(values, Mapping):
            shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items() if isinstance(v, int | float))
            lines.append(f"- {part}: {shown}")
    lines += ["", "```python", "import tlcgcnn_jax", "", 'model = tlcgcnn_jax.load_model("PATH OF THIS FOLDER")']
    lines += ['predictions = tlcgcnn_jax.predict(model, "folder_of_cifs")', "```", ""]
    return "\n".join(lines)


def _formulas(path: Path, digest: str | None) -> tuple[str, ...]:
    """The formulas that a model was trained on; models of earlier versions do not tell."""
    if digest is None:
        return ()
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise InputError(f"{path}: missing or changed since the model was saved; copy the whole folder again")
    return tuple(gzip.decompress(path.read_bytes()).decode().split())


def _check_shapes(model: Model, folder: Path) -> None:
    """Raise `InputError` unless the arrays are those of the network that the settings describe."""
    row: Any = np.zeros(model.graph.places, np.int32)
    one: Any = np.ones(1, np.int32)
    graph = jraph.GraphsTuple(
        nodes={"atomic_number": np.zeros(1, np.int32)},
        edges={"distance": row.astype(np.float32), "weight": row.astype(np.float32)},
        senders=row, receivers=row, globals=None,
        n_node=one, n_edge=len(row) * one,
    )  # fmt: skip
    wanted = dict(_shapes(jax.eval_shape(model.network.init, jax.random.key(0), graph)))
    targets = {"normaliser/mean": model.normaliser.mean, "normaliser/std": model.normaliser.std}
    problems = [
        f"{name} {array.shape}, {(len(model.targets),)} needed"
        for name, array in targets.items()
        if array.shape != (len(model.targets),)
    ]
    for index, member in enumerate(model.members):
        found = dict(_shapes(member))
        problems += [
            f"{index}/{path} {found.get(path, 'missing')}, {wanted.get(path, 'none')} needed"
            for path in sorted({*found, *wanted})
            if found.get(path) != wanted.get(path)
        ]
    if not model.members:
        problems.append("no member")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(
            f"{folder / WEIGHTS}: not the weights of the network in {CONFIG}: {'; '.join(problems[:4])}{more}"
        )


def _shapes(tree: Any) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [("/".join(str(key.key) for key in path), tuple(leaf.shape)) for path, leaf in leaves]


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())[:8]
    return ", ".join(names) if names else "an empty folder"
