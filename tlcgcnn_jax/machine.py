"""What a number was made with: versions of the libraries, the kind of processor, and the precision."""

import functools
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ParamSpec, TypeVar

from tlcgcnn_jax.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

PACKAGES = ("tlcgcnn_jax", "jax", "flax", "optax", "jraph", "orbax-checkpoint", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter for the numbers."""
    out = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "not installed"
    return out


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """The same function where a notebook has set `jax_enable_x64`: networks, and what is known of them, are float32.

    Args:
        function: That makes arrays with JAX.
    """

    @functools.wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        import jax

        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return inner


def check_device() -> None:
    """Raise `InputError` where JAX_PLATFORMS asks for a device that is not there."""
    asked = os.environ.get("JAX_PLATFORMS")
    if not asked:
        return
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # in more words than help; the second for a missing plugin
        raise InputError(
            f"JAX_PLATFORMS is {asked!r}, and JAX finds no such device: install JAX for it (for NVIDIA "
            "pip install 'jax[cuda12]'), or unset the variable to take what there is"
        ) from error


def processor() -> str:
    """Kind of processor, or of accelerator."""
    import jax

    if jax.default_backend() != "cpu":
        return str(jax.devices()[0].device_kind)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
