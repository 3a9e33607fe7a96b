"""A study in a reduced form: the same targets, sources and strategies with so little of each that it takes minutes.

    python experiments/reduced.py experiments/targets/study.toml --data DATA --out STUDY

What is cut: two seeds, the two smallest training sizes, one learning rate, a tenth of the strategies' updates, and the
three smallest sizes of sources that the study trains. Its numbers show that everything runs, and mean little else.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tlcgcnn_jax.study import run_study
from tlcgcnn_jax.study_config import StudyConfig, read_study

SEEDS, SIZES, SOURCE_SIZES, EPOCHS, LEAST_UPDATES = 2, 2, 3, 5, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="study.toml")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reduced study")
    options = parser.parse_args()
    print(*run_study(reduced(read_study(options.config)), options.out, data=options.data).sentences, sep="\n")


def reduced(study: StudyConfig) -> StudyConfig:
    """The same question, asked in minutes."""
    few = {"epochs": EPOCHS, "least_updates": LEAST_UPDATES}
    return replace(
        study,
        targets=tuple(replace(target, sizes=_smallest(target.sizes, SIZES)) for target in study.targets),
        sources=tuple(replace(source, sizes=_smallest(source.sizes, SOURCE_SIZES), **few) for source in study.sources),
        sizes=_smallest(study.sizes, SIZES),
        seeds=min(study.seeds, SEEDS),
        learning_rates=study.learning_rates[:1],
        title=f"{study.title}, reduced",
        **few,
    )


def _smallest(sizes: tuple[int, ...], count: int) -> tuple[int, ...]:
    return tuple(sorted(sizes)[:count])


if __name__ == "__main__":
    main()
