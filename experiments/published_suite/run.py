"""The whole of the published suite: data, the strategies, `auto` with several sets of sources, and these alone.

    python experiments/published_suite/run.py DATA --out RUNS

Goes on where it was stopped. RUNS/strategies is the study of study.toml: single networks. The others are `auto` and its
parts, of five networks as `tlcgcnn transfer` makes them: RUNS/shipped with the shipped sources, RUNS/checkpoints with
those of DATA beside them, and RUNS/energies for the tasks of formation energies with the sources of these, which are
left out everywhere else.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import own_property
import prepare

from tlcgcnn_jax.strategies import EnsembleStrategy
from tlcgcnn_jax.study import run_study
from tlcgcnn_jax.study_config import StudyConfig, read_study, target_name

NETWORKS = 5  # of `tlcgcnn transfer`
SEEN = ("mp-dielectric",)  # knows test rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with moe/ and checkpoints/")
    parser.add_argument("--out", type=Path, required=True, metavar="RUNS")
    options = parser.parse_args()
    runs, study = options.out, read_study(Path(__file__).parent / "study.toml")
    prepare.main([str(options.data), "--out", str(runs / "data")])
    plans = {
        "strategies": study,
        "shipped": recipe(study, "shipped"),
        "energies": recipe(with_energies(study), "shipped"),
        "checkpoints": recipe(study, "checkpoints"),
    }
    for name, plan in plans.items():
        run_study(plan, runs / name, data=runs / "data", progress=True)
    own_property.main([str(runs / "checkpoints"), "--out", str(runs / "own_property.csv")])


def recipe(study: StudyConfig, pool: str) -> StudyConfig:
    """The study cut down to "auto" and its parts, of several networks."""
    auto = study.strategy("auto")
    assert isinstance(auto, EnsembleStrategy)
    baselines, strategies = ([part for part in auto.parts if (part in study.baselines) == is_baseline]
                             for is_baseline in (True, False))  # fmt: skip
    return replace(
        study, pool=pool, baselines=tuple(baselines), strategies=(*strategies, "auto"),
        without_scratch=True, members=NETWORKS, title=f"{study.title}: auto, {pool}",
    )  # fmt: skip


def with_energies(study: StudyConfig) -> StudyConfig:
    """The tasks of formation energies alone, for which energies may be sources."""
    energies = [target for target in study.targets if "eform" in target_name(target)]
    return replace(study, targets=tuple(replace(target, leave_out=SEEN) for target in energies))


if __name__ == "__main__":
    main()
