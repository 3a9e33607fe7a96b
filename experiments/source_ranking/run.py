"""Does `rank-sources` say beforehand which source helps? Its scores beside the gain of fine-tuning.

    python experiments/source_ranking/run.py DATA --work runs/source_ranking

Runs the study of study.toml beside this file (it goes on where it was stopped), ranks the same sources on the training
crystals of each seed, and writes scores.csv (one row a target, source and seed), correlations.csv and scores.png.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from tlcgcnn_jax.figure import BLUE, GREY, VERMILLION, picture
from tlcgcnn_jax.ranking import rank_sources
from tlcgcnn_jax.study import run_study
from tlcgcnn_jax.study_config import target_name
from tlcgcnn_jax.study_work import Desk

HERE = Path(__file__).parent
FIELDS = ("target", "seed", "source", "ridge_mae", "ridge_skill", "log_me", "correlation", "scratch_mae", "test_mae",
          "gain_percent")  # fmt: skip
SCORES = {"ridge_skill": "cross-validated ridge (skill)", "log_me": "LogME", "correlation": "|correlation of output|"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the data sets and checkpoints")
    parser.add_argument("--work", type=Path, required=True, help="folder of the study")
    options = parser.parse_args()
    run_study(HERE / "study.toml", options.work, data=options.data, progress=True)
    rows = scores(Desk(options.work))
    write(HERE / "scores.csv", FIELDS, rows)
    found = correlations(rows)
    write(HERE / "correlations.csv", tuple(found[0]), found)
    for row in found:
        print(row)
    draw(rows, HERE / "scores.png")


def scores(desk: Desk) -> list[dict[str, object]]:
    """What the ranking says of each source, and what fine-tuning from it gained over scratch."""
    rows = []
    (size,) = desk.study.sizes
    for target in map(target_name, desk.study.targets):
        everyone, values = desk.everyone(target), desk.results.crystals(target).values
        for seed in range(desk.study.seeds):
            split = desk.split(target, size, seed)
            ranked = rank_sources(desk.graph_sets(target, everyone), everyone, values, split.train)
            (scratch,) = desk.results.select(target=target, seed=seed, strategy="scratch")
            for score in ranked:
                name = score.name
                tuned = [r for r in desk.results.select(target=target, seed=seed, strategy="full")
                         if name in (r.source, f"{r.source}-{r.source_size}")]  # fmt: skip
                gain = 100 * (1 - tuned[0].test_mae / scratch.test_mae)
                values_ = (target, seed, name, score.ridge_mae, score.ridge_skill, score.log_me,
                           abs(score.correlation), scratch.test_mae, tuned[0].test_mae, gain)  # fmt: skip
                rows.append(dict(zip(FIELDS, values_, strict=True)))
    return rows


def means(rows: list[dict[str, object]], target: str) -> dict[str, dict[str, float]]:
    """Scores and gain of each source, means over seeds."""
    names = dict.fromkeys(str(row["source"]) for row in rows if row["target"] == target)
    return {
        name: {
            key: float(np.nanmean([row[key] for row in rows if (row["target"], row["source"]) == (target, name)]))  # type: ignore[arg-type]
            for key in (*SCORES, "gain_percent")
        }
        for name in names
    }


def correlations(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Spearman's rank correlation of each score with the gain, over the sources, and what the first choice gains."""
    from scipy.stats import spearmanr

    out = []
    for target in dict.fromkeys(str(row["target"]) for row in rows):
        table = means(rows, target)
        gain = np.array([values["gain_percent"] for values in table.values()])
        for key in SCORES:
            score = np.nan_to_num([values[key] for values in table.values()])
            test = spearmanr(score, gain)
            out.append({
                "target": target, "score": key, "sources": len(gain), "spearman": round(float(test.statistic), 3),
                "p": round(float(test.pvalue), 4), "gain_of_first": round(float(gain[np.argmax(score)]), 1),
                "gain_of_best": round(float(gain.max()), 1), "mean_gain": round(float(gain.mean()), 1),
            })  # fmt: skip
    return out


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Gain against the ridge score, a panel a target."""
    targets = list(dict.fromkeys(str(row["target"]) for row in rows))
    with picture(path, 4.6 * len(targets), 4.2) as figure:
        for index, target in enumerate(targets):
            axes = figure.add_subplot(1, len(targets), index + 1)
            table = means(rows, target)
            axes.axhline(0, color=GREY, linewidth=0.8)
            for name, values in table.items():
                colour = BLUE if values["gain_percent"] > 0 else VERMILLION
                axes.plot(values["ridge_skill"], values["gain_percent"], "o", color=colour, markersize=5)
                axes.annotate(name, (values["ridge_skill"], values["gain_percent"]), (3, 3), textcoords="offset points",
                              fontsize=6, color=GREY)  # fmt: skip
            axes.set(title=target, xlabel="skill of ridge regression on the source's features",
                     ylabel="gain of fine-tuning over scratch (%)")  # fmt: skip


def write(path: Path, fields: tuple[str, ...], rows: list[dict[str, object]]) -> None:
    with open(path, "w", newline="") as handle:
        writer = csv.DictWriter(handle, fields)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    main()
