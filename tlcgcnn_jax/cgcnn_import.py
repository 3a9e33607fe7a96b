"""PyTorch checkpoints of the original CGCNN code, as models of this package."""

import argparse
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.bundle import Model
from tlcgcnn_jax.config import GraphConfig, ModelConfig, Target
from tlcgcnn_jax.elements import N_FEATURES
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.files import user_path
from tlcgcnn_jax.losses import Normaliser

Tensors = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]

# A checkpoint does not say how its graphs were made: these are the defaults of the original's CIFData.
GRAPH = GraphConfig(cutoff=8.0, neighbours=12, ties="reference", legacy_padding=True)
GAUSSIAN_STEP = 0.2  # Å

# The settings of a checkpoint name the sizes as the original's command line does: they are checked against the tensors.
SIZES = {"atom_fea_len": "width", "n_conv": "convolutions", "h_fea_len": "head_width", "n_h": "head_layers"}


class Checkpoint(NamedTuple):
    """What a checkpoint of the original code holds, apart from the state of its optimiser."""

    tensors: Tensors  # under their PyTorch names
    args: dict[str, Any]  # settings of the training run
    mean: float  # of the normaliser
    std: float
    notes: dict[str, Any]  # epoch and best validation score, where they are given


def import_cgcnn(
    checkpoint: str | Path, *, name: str | None = None, unit: str = "", transform: str = "identity"
) -> Model:
    """Read a checkpoint of the original CGCNN code (Xie & Grossman 2018) as a model of this package.

    The model builds its graphs as the original does (12 nearest neighbours within 8 Å, missing ones invented), so it
    gives the original's predictions. Every tensor is accounted for. Dropout, which the original applies to
    classifiers while it trains them, is not carried over.

    Args:
        checkpoint: `.pth.tar` of the original code (needs PyTorch), or its tensors as `.npz` with the settings in a
            `.json` of the same name beside it ("args", "normalizer").
        name: Name of the property; the file's name if None.
        unit: Unit of the property.
        transform: "log10" or "log" if the network was trained on that logarithm of the property; the model's
            predictions are then in `unit`, not in its logarithm.

    Returns:
        A model with one member.

    Raises:
        InputError: The file cannot be read, or holds anything else than such a network.

    Example:
        >>> from tlcgcnn_jax import import_cgcnn
        >>> model = import_cgcnn("formation-energy-per-atom.pth.tar", unit="eV/atom")  # doctest: +SKIP
    """
    path = user_path(checkpoint)
    read = _read(path)
    sizes, outputs = _sizes(read.tensors)
    variables = variables_from_torch(read.tensors, sizes, outputs, str(path))
    kind = _kind(read.args, sizes, outputs, path)
    name = re.sub(r"(\.pth)?\.(tar|npz|pth|pt)$", "", path.name) if name is None else name
    target = Target(name, unit, kind, max(outputs, 2), transform)
    # The original leaves the classes alone (mean 0, std 1).
    mean, std = (read.mean, read.std) if kind == "regression" else (0.0, 1.0)
    return Model(
        graph=GRAPH,
        model=sizes,
        targets=(target,),
        normaliser=Normaliser(np.array([mean], np.float32), np.array([std], np.float32)),
        members=(variables,),
        metrics={},
        notes={"imported_from": f"{path.name} (PyTorch CGCNN)", **read.notes},
    )


def load_torch_tensors(path: str | Path) -> Tensors:
    """The tensors of a checkpoint under their PyTorch names, from `.pth.tar` (needs PyTorch) or `.npz`.

    Args:
        path: As for `import_cgcnn`; an `.npz` needs no `.json` here.

    Raises:
        InputError: The file cannot be read.

    Example:
        >>> load_torch_tensors("band-gap.pth.tar")["embedding.weight"].shape  # doctest: +SKIP
        (64, 92)
    """
    path = Path(path)
    return _load_npz(path) if path.suffix == ".npz" else _state_dict(_load_torch(path), path)


def variables_from_torch(tensors: Tensors, sizes: ModelConfig, outputs: int, where: str = "") -> dict[str, Any]:
    """Rearrange the original's tensors into {"params", "batch_stats"}.

    Args:
        tensors: Under their PyTorch names.
        sizes: Sizes of the network.
        outputs: Its number of outputs.
        where: Named in the error message.

    Returns:
        float32 arrays; kernels are [in, out], and the one matrix of a convolution is three.

    Raises:
        InputError: A tensor is missing, left over, of another shape, or not finite.
    """
    _account(tensors, _expected(sizes, outputs), where)
    width = sizes.width

    def dense(prefix: str) -> dict[str, np.ndarray]:
        return {"kernel": array(f"{prefix}.weight").T.copy(), "bias": array(f"{prefix}.bias")}

    def array(key: str) -> np.ndarray:
        return np.asarray(tensors[key], np.float32)

    params: dict[str, Any] = {"embedding": dense("embedding")}
    stats: dict[str, Any] = {}
    for layer in range(sizes.convolutions):
        prefix = f"convs.{layer}"
        full = array(f"{prefix}.fc_full.weight").T  # [itself | neighbour | Gaussians, gate | core]
        norms = {"edge_norm": f"{prefix}.bn1", "node_norm": f"{prefix}.bn2"}
        params[f"conv_{layer}"] = {
            "receiver_kernel": full[:width].copy(),
            "sender_kernel": full[width : 2 * width].copy(),
            "edge_kernel": full[2 * width :].copy(),
            "bias": array(f"{prefix}.fc_full.bias"),
            **{norm: {"scale": array(f"{key}.weight"), "bias": array(f"{key}.bias")} for norm, key in norms.items()},
        }
        stats[f"conv_{layer}"] = {
            norm: {"mean": array(f"{key}.running_mean"), "var": array(f"{key}.running_var")}
            for norm, key in norms.items()
        }
    hidden = ["conv_to_fc", *(f"fcs.{layer}" for layer in range(sizes.head_layers - 1))]
    params["head"] = {f"hidden_{layer}": dense(prefix) for layer, prefix in enumerate(hidden)}
    params["head"]["output"] = dense("fc_out")
    return {"params": params, "batch_stats": stats}


def _expected(sizes: ModelConfig, outputs: int) -> Shapes:
    """The shape of every tensor of such a network."""
    width, hidden = sizes.width, sizes.head_width
    shapes: Shapes = {"embedding.weight": (width, N_FEATURES), "embedding.bias": (width,)}
    for layer in range(sizes.convolutions):
        prefix = f"convs.{layer}"
        shapes[f"{prefix}.fc_full.weight"] = (2 * width, 2 * width + sizes.gaussians)
        shapes[f"{prefix}.fc_full.bias"] = (2 * width,)
        for norm, size in ((f"{prefix}.bn1", 2 * width), (f"{prefix}.bn2", width)):
            shapes |= {f"{norm}.{leaf}": (size,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {"conv_to_fc.weight": (hidden, width), "conv_to_fc.bias": (hidden,)}
    for layer in range(sizes.head_layers - 1):
        shapes |= {f"fcs.{layer}.weight": (hidden, hidden), f"fcs.{layer}.bias": (hidden,)}
    return shapes | {"fc_out.weight": (outputs, hidden), "fc_out.bias": (outputs,)}


def _account(tensors: Tensors, expected: Shapes, where: str) -> None:
    """Raise unless the tensors are those expected; the counters of torch >= 0.4 are the only ones left out."""
    differences: list[str] = []
    for key in sorted(set(expected) | {key for key in tensors if not key.endswith(".num_batches_tracked")}):
        if key not in tensors:
            differences.append(f"- {key} {list(expected[key])}")
        elif key not in expected:
            differences.append(f"+ {key} {list(tensors[key].shape)}")
        elif tensors[key].shape != expected[key]:
            differences += [f"- {key} {list(expected[key])}", f"+ {key} {list(tensors[key].shape)}"]
        elif not np.isfinite(tensors[key]).all():
            differences.append(f"! {key} has values that are not finite")
    if differences:
        listed = "\n  ".join(differences)
        raise InputError(
            f"{where}: its tensors are not those of a CGCNN with {N_FEATURES} atom features and Gaussians up to"
            f" {GRAPH.cutoff:g} Å (- expected, + found):\n  {listed}"
        )


def _sizes(tensors: Tensors) -> tuple[ModelConfig, int]:
    """Sizes of the network and its number of outputs, as far as the tensors tell; the original's where they do not."""

    def rows(key: str, otherwise: int) -> int:
        return tensors[key].shape[0] if key in tensors and tensors[key].ndim else otherwise

    def count(prefix: str) -> int:
        return len({match[1] for key in tensors if (match := re.match(rf"{prefix}\.(\d+)\.", key))})

    sizes = ModelConfig(
        width=rows("embedding.weight", 64),
        convolutions=count("convs") or 4,
        head_width=rows("conv_to_fc.weight", 32),
        head_layers=1 + count("fcs"),
        gaussian_step=GAUSSIAN_STEP,
        gaussian_max=GRAPH.cutoff,
    )
    return sizes, rows("fc_out.weight", 1)


def _kind(args: dict[str, Any], sizes: ModelConfig, outputs: int, path: Path) -> str:
    """Regression or classification; the settings of the training run must agree with the tensors."""
    for theirs, ours in SIZES.items():
        if theirs in args and args[theirs] != getattr(sizes, ours):
            raise InputError(
                f"{path}: its settings say {theirs} = {args[theirs]}, its tensors {getattr(sizes, ours)}: they are not"
                " from the same network"
            )
    kind = args.get("task", "regression" if outputs == 1 else "classification")
    if kind not in ("regression", "classification"):
        raise InputError(f"{path}: its task is {kind!r}: regression or classification was expected")
    if (kind == "regression") != (outputs == 1):
        raise InputError(f"{path}: its task is {kind}, and it has {outputs} outputs: 1 belongs to regression alone")
    return kind


def _read(path: Path) -> Checkpoint:
    if path.suffix == ".npz":
        tensors, beside = _load_npz(path), path.with_suffix(".json")
        try:
            content = json.loads(beside.read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f'{beside}: the settings of {path.name} ("args", "normalizer") are read from it, and it is not a'
                f" JSON file: {error}"
            ) from error
    else:
        content = _load_torch(path)
        tensors = _state_dict(content, path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: its settings are a {type(content).__name__}: a dictionary was expected")
    args = content.get("args") or {}
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if not isinstance(args, dict):
        raise InputError(f'{path}: "args" is {args!r}: the settings of the training run were expected')
    normaliser = content.get("normalizer")
    try:
        scale = dict(normaliser or {})
        mean, std = float(scale["mean"]), float(scale["std"])
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f'{path}: "normalizer" is {normaliser!r}: {{"mean": number, "std": number}} was expected, without which'
            " the outputs have no scale"
        ) from error
    if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
        raise InputError(f"{path}: its normalizer has mean {mean} and std {std}: std must be positive")
    skewed = [key for key, value in scale.items() if key not in ("mean", "std") and value]
    if skewed:
        raise InputError(f"{path}: its normalizer has {', '.join(skewed)}, which this package does not know")
    best = content.get("best_mae_error", content.get("best_metric"))
    notes = {"epoch": int(content["epoch"])} if content.get("epoch") is not None else {}
    notes |= {"best_validation": float(best)} if best is not None else {}
    return Checkpoint(tensors, args, mean, std, notes)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; a .pth.tar or .npz checkpoint was expected")


def _load_npz(path: Path) -> Tensors:
    _check_file(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return _clean({key: archive[key] for key in archive.files}, path)
    except InputError:
        raise
    except Exception as error:  # a broken archive raises whatever zipfile, zlib or NumPy first stumble upon
        raise InputError(f"{path}: cannot be read as an .npz of tensors: {type(error).__name__}: {error}") from error


def _load_torch(path: Path) -> Any:
    _check_file(path)
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading a PyTorch checkpoint needs PyTorch: pip install torch, or give the"
            " tensors as .npz with their settings in a .json beside it"
        ) from error
    # Plain values that checkpoints of the original carry: its settings, and a validation score that NumPy computed
    # (under the name that NumPy 1 gave it).
    allowed = [
        argparse.Namespace,
        (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
        np.float64(0).__reduce__()[0],
        np.dtype,
        np.dtypes.Float32DType,
        np.dtypes.Float64DType,
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises half a dozen kinds, down to UnicodeDecodeError, for a broken file
        # Its advice to unpickle anything is left out: a checkpoint from elsewhere could run any code.
        reason = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
        shown = next((line.strip() for line in reason if "Unsupported" in line), reason[0] if reason else "")
        raise InputError(
            f"{path}: cannot be read as a PyTorch checkpoint that holds weights and plain settings alone; it may be"
            f" cut short, or something else. PyTorch says: {type(error).__name__}: {shown}"
        ) from error


def _state_dict(content: Any, path: Path) -> Tensors:
    """The tensors of what torch read."""
    tensors = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(hasattr(value, "numpy") for value in tensors.values()):
        found = f"keys {', '.join(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise InputError(
            f'{path}: holds {found}: a checkpoint of the original code has "state_dict", "args" and "normalizer"'
        )
    return _clean({key: value.detach().cpu().numpy() for key, value in tensors.items()}, path)


def _clean(tensors: Tensors, path: Path) -> Tensors:
    """Names without the prefix that training on several GPUs adds; numbers only."""
    for key, value in tensors.items():
        if not np.issubdtype(value.dtype, np.number):
            raise InputError(f"{path}: {key} is of type {value.dtype}: numbers were expected")
    return {key.removeprefix("module."): value for key, value in tensors.items()}
