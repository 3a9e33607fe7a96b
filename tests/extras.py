"""Packages that the project can do without, and its continuous integration not."""

import importlib
import os
from types import ModuleType

import pytest


def needs(module: str) -> ModuleType:
    """An optional package; skips where it is not installed, but fails where CI is set."""
    try:
        return importlib.import_module(module)
    except ImportError:
        message = f"needs {module}: pip install 'tlcgcnn_jax[{module}]'"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
