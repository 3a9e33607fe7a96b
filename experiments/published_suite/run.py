"""The whole of the published suite: data, both studies, sources of a task's own property.

    python experiments/published_suite/run.py DATA --out RUNS

Goes on where it was stopped. RUNS/shipped is the study of study.toml; RUNS/checkpoints the same with the checkpoints of
DATA among the sources, of which only what `auto` is made of is run.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import own_property
import prepare

from tlcgcnn_jax.strategies import EnsembleStrategy
from tlcgcnn_jax.study import run_study
from tlcgcnn_jax.study_config import StudyConfig, read_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with moe/ and checkpoints/")
    parser.add_argument("--out", type=Path, required=True, metavar="RUNS")
    options = parser.parse_args()
    runs, study = options.out, read_study(Path(__file__).parent / "study.toml")
    prepare.main([str(options.data), "--out", str(runs / "data")])
    for name, plan in {"shipped": study, "checkpoints": with_checkpoints(study)}.items():
        run_study(plan, runs / name, data=runs / "data", progress=True)
    own_property.main([str(runs / "checkpoints"), "--out", str(runs / "own_property.csv")])


def with_checkpoints(study: StudyConfig) -> StudyConfig:
    """The study with more sources, cut down to "auto" and its parts."""
    auto = study.strategy("auto")
    assert isinstance(auto, EnsembleStrategy)
    baselines, strategies = ([part for part in auto.parts if (part in study.baselines) == is_baseline]
                             for is_baseline in (True, False))  # fmt: skip
    return replace(
        study, pool="checkpoints", baselines=tuple(baselines), strategies=(*strategies, "auto"),
        title=f"{study.title}, with checkpoints",
    )  # fmt: skip


if __name__ == "__main__":
    main()
