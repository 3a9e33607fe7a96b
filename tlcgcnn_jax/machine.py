"""What a number was made with: versions of the libraries, and the kind of processor."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
