"""Transfer learning for crystal properties: CGCNN in functional JAX.

Names are loaded when they are first used: `import tlcgcnn_jax` is quick, and the training path needs no pymatgen.
"""

import importlib
from importlib.metadata import version
from typing import Any

_HOME = {
    "InputError": "errors",
    "GraphConfig": "config",
    "ModelConfig": "config",
    "Target": "config",
    "TrainConfig": "config",
    "FINE_TUNING": "config",
    "Crystal": "crystal",
    "Record": "crystal",
    "read_structures": "structures",
    "textbook_records": "textbook",
    "CrystalDataset": "dataset",
    "load_dataset": "dataset",
    "build_dataset": "dataset",
    "Split": "splits",
    "k_fold": "splits",
    "random_split": "splits",
    "read_split": "splits",
    "Model": "bundle",
    "FeatureModel": "feature_model",
    "Committee": "committee",
    "import_cgcnn": "cgcnn_import",
    "load_model": "zoo",
    "STRATEGIES": "strategies",
    "Strategy": "strategies",
    "FeatureStrategy": "strategies",
    "Phase": "strategies",
    "Predictions": "predictions",
    "compare": "statistics",
    "StudyConfig": "study_config",
    "StudySource": "study_config",
    "StudyTarget": "study_config",
    "read_study": "study_config",
    "run_study": "study",
    "rank_sources": "ranking",
    "find_sources": "zoo",
    "predict": "evaluate",
    "Result": "run",
    "fit": "run",
    "transfer": "run",
    "CGCNNRegressor": "estimator",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version(__name__)
    if name not in _HOME:
        raise AttributeError(f"module 'tlcgcnn_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tlcgcnn_jax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
