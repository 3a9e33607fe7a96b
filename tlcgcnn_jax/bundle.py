"""The model that users pass around: one folder with settings, weights, metrics and a model card."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jraph
import numpy as np

from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target, from_dict, to_dict
from tlcgcnn_jax.error_bars import ErrorBar
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.model import Network, Variables, build_network
from tlcgcnn_jax.model_folder import (
    CONFIG,
    FORMULAS,
    NETWORK,
    arrays_to_bytes,
    bytes_to_arrays,
    bytes_to_formulas,
    damage_named,
    formulas_to_bytes,
    read_config,
    read_file,
    write_model,
)
from tlcgcnn_jax.novelty import Novelty

WEIGHTS, NOVELTY = "weights.npz", "novelty.npz"
PLACE = "PATH OF THIS FOLDER"  # in a card: a model does not know where it will lie


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
        calibration: Error bars of each target, None for a target without; () for a model that has none.
        novelty: Some of its training crystals as the first member sees them, to tell which others are unlike them.

    Example:
        >>> from tlcgcnn_jax import load_model
        >>> model = load_model("mp-formation-energy")
        >>> model.targets[0].unit, model.model.width, len(model.members)
        ('eV/atom', 64, 1)
    """

    graph: GraphConfig
    model: ModelConfig
    targets: tuple[Target, ...]
    normaliser: Normaliser
    members: tuple[Variables, ...] = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    formulas: tuple[str, ...] = field(default=(), repr=False)
    calibration: tuple[ErrorBar | None, ...] = ()
    novelty: Novelty | None = field(default=None, repr=False)

    @property
    def graphs(self) -> tuple[GraphConfig, ...]:
        """Kinds of graphs that a prediction needs."""
        return (self.graph,)

    @property
    def outputs(self) -> int:
        """Numbers per crystal."""
        return sum(target.outputs for target in self.targets)

    @property
    def network(self) -> Network:
        """The Flax module that the members' variables belong to."""
        return build_network(self.model, self.outputs, self.graph.places)

    def save(self, folder: str | Path) -> Path:
        """Write config.json, weights.npz, README.md and more; a folder that holds a model is renewed, others are kept.

        Raises:
            InputError: The folder cannot be written, or holds files of these names that are not a model's.
        """
        arrays = {
            f"{index}/{path}": array
            for index, member in enumerate(self.members)
            for path, array in flatten(member).items()
        }
        files = {
            WEIGHTS: arrays_to_bytes(arrays),
            FORMULAS: formulas_to_bytes(self.formulas),
            NOVELTY: arrays_to_bytes(self.novelty.arrays()) if self.novelty else None,
        }
        config = {
            "kind": NETWORK,
            "graph": to_dict(self.graph),
            "model": to_dict(self.model),
            "targets": [to_dict(target) for target in self.targets],
            "normaliser": {name: part.astype(float).tolist() for name, part in self.normaliser.known().items()},
            "members": len(self.members),
            "calibration": calibration_to_json(self.calibration),
            "metrics": self.metrics,
            "notes": self.notes,
        }
        return write_model(folder, WEIGHTS, config, files, model_card(self))


def load_bundle(folder: str | Path) -> Model:
    """Read a model back; it is checked that nothing is missing or cut short.

    Raises:
        InputError: The folder is no model, a file is missing, damaged, or does not fit the settings.
    """
    folder = Path(folder)
    config = read_config(folder, NETWORK, (WEIGHTS,))
    with damage_named(folder):
        graph = from_dict(GraphConfig, config["graph"], f"{folder / CONFIG}: graph")
        model = from_dict(ModelConfig, config["model"], f"{folder / CONFIG}: model")
        targets = tuple(from_dict(Target, target, f"{folder / CONFIG}: targets") for target in config["targets"])
        # Earlier versions wrote mean and std alone; null becomes NaN.
        normaliser = Normaliser(**{name: np.asarray(v, np.float32) for name, v in config["normaliser"].items()})
        count = int(config["members"])
        calibration = calibration_from_json(config.get("calibration", []), targets, folder)
    flat = bytes_to_arrays(read_file(folder, WEIGHTS, config))
    members = tuple(
        unflatten({name.split("/", 1)[1]: array for name, array in flat.items() if name.startswith(f"{index}/")})
        for index in range(count)
    )
    # Models of earlier versions have neither formulas nor novelty nor error bars.
    formulas, seen = bytes_to_formulas(read_file(folder, FORMULAS, config)), read_file(folder, NOVELTY, config)
    loaded = Model(
        graph, model, targets, normaliser, members, config.get("metrics", {}), config.get("notes", {}), formulas,
        calibration, Novelty.from_arrays(bytes_to_arrays(seen)) if seen else None,
    )  # fmt: skip
    _check_shapes(loaded, folder)
    return loaded


def calibration_to_json(calibration: tuple[ErrorBar | None, ...]) -> list[dict[str, Any] | None]:
    """Error bars as JSON can hold them."""
    return [None if bar is None else to_dict(bar) for bar in calibration]


def calibration_from_json(values: list[Any], targets: tuple[Target, ...], folder: Path) -> tuple[ErrorBar | None, ...]:
    """The inverse of `calibration_to_json`.

    Raises:
        InputError: Not one entry for each target, or one that makes no sense.
    """
    where = f"{folder / CONFIG}: calibration"
    if values and len(values) != len(targets):
        raise InputError(f"{where}: {len(values)} entries for {len(targets)} targets: it is damaged")
    for value in values:
        if isinstance(value, dict):
            value.pop("std_factor", None)  # earlier versions wrote it, nothing read it
    return tuple(None if value is None else from_dict(ErrorBar, value, where) for value in values)


def check_same_graph(found: GraphConfig, wanted: GraphConfig) -> None:
    """Raise `InputError` unless graphs of a dataset differ from a model's in `places` at most, which is no matter."""
    if wanted.kind == found.kind:
        return
    wanted = replace(wanted, places=found.places)
    names = [name for name in GraphConfig.__dataclass_fields__ if getattr(wanted, name) != getattr(found, name)]
    told = "; ".join(f"{name} is {getattr(found, name)}, the model's {getattr(wanted, name)}" for name in names)
    raise InputError(
        f"the dataset was prepared with other graph settings than the model's ({told}): "
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
    sizes = f"{model.model.convolutions} convolutions of width {model.model.width}, head {model.model.head_width}"
    about = [
        f"network: {sizes}; {len(model.members)} member{'s' if len(model.members) > 1 else ''}",
        f"graph: {model.graph.neighbours} neighbours within {model.graph.cutoff:g} Å, ties: {model.graph.ties}",
    ]
    return write_card("CGCNN", about, model)


def write_card(kind: str, about: list[str], model: Any) -> str:
    """A card of a model of any kind.

    Args:
        kind: What the model is.
        about: A line for each of its parts.
        model: With targets, notes, metrics and calibration.
    """
    names = ", ".join(f"{t.name} ({t.unit})" if t.unit else t.name for t in model.targets)
    lines = [f"# {kind} for {names}", "", *(f"- {line}" for line in about)]
    lines += [f"- {key}: {value}" for key, value in model.notes.items() if not isinstance(value, dict | list)]
    several = model.metrics.get("targets", {})
    errors = {f"{name}, {part}": v for name, parts in several.items() for part, v in parts.items()} or model.metrics
    for part, values in errors.items():
        if isinstance(values, Mapping):
            numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
            counts = {k for k, v in numbers.items() if k == "n" or isinstance(v, int)}
            shown = ", ".join(f"{k} {v:,.0f}" if k in counts else f"{k} {v:.4g}" for k, v in numbers.items())
            lines.append(f"- {part}: {shown}")
    for target, bar in zip(model.targets, model.calibration, strict=False):
        if bar is not None:
            learnt = "" if target.transform == "identity" else f", of {target.transform} {target.name}"
            lines.append(f"- error bars of {target.name}: {bar}{learnt} (they chose the epoch, too: approximate)")
    lines += ["", "```python", "import tlcgcnn_jax", "", f'model = tlcgcnn_jax.load_model("{PLACE}")']
    lines += ['predictions = tlcgcnn_jax.predict(model, "folder_of_cifs")', "```", ""]
    return "\n".join(lines)


def target_metrics(metrics: Mapping[str, Any], targets: Sequence[Target]) -> dict[str, dict[str, Any]]:
    """Metrics of a run or model by target, then by part of the data: of one target they stand alone.

    Example:
        >>> target_metrics({"test": {"mae": 0.1}}, [Target("k")])
        {'k': {'test': {'mae': 0.1}}}
    """
    return metrics.get("targets") or {targets[0].name: dict(metrics)}


def _check_shapes(model: Model, folder: Path) -> None:
    """Raise `InputError` unless the arrays are those of the network that the settings describe."""
    wanted = _wanted(model.model, model.outputs, model.graph.places)
    targets = {f"normaliser/{name}": part for name, part in model.normaliser.known().items()}
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
    if model.model.sources > 1 and any("norm" not in member.get("batch_stats", {}) for member in model.members):
        raise InputError(
            f"{folder}: a mixture of a version that did not bring its sources to one scale: train it again"
        )
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(
            f"{folder / WEIGHTS}: not the weights of the network in {CONFIG}: {'; '.join(problems[:4])}{more}"
        )


@functools.cache  # tracing a network takes far longer than reading its weights
def _wanted(config: ModelConfig, outputs: int, places: int) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a network's variables by their paths."""
    row: Any = np.zeros(places, np.int32)
    one: Any = np.ones(1, np.int32)
    graph = jraph.GraphsTuple(
        nodes={"atomic_number": np.zeros(1, np.int32)},
        edges={"distance": row.astype(np.float32), "weight": row.astype(np.float32)},
        senders=row, receivers=row, globals=None,
        n_node=one, n_edge=len(row) * one,
    )  # fmt: skip
    return dict(_shapes(jax.eval_shape(build_network(config, outputs, places).init, jax.random.key(0), graph)))


def _shapes(tree: Any) -> list[tuple[str, tuple[int, ...]]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [("/".join(str(key.key) for key in path), tuple(leaf.shape)) for path, leaf in leaves]
