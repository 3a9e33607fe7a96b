"""Which sources help which targets, beside what was known of their kinship before any training.

    python experiments/relatedness/matrix.py STUDY DATA

Ranks the sources on the training crystals of each seed, and correlates the labels that they learnt with the target's on
the crystals that both sets hold. Writes scores.csv (a row a target, seed and source), matrix.csv (a row a target and
source), correlations.csv, matrix.png and scores.png into the study's folder, or into --out.
"""

import argparse
import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from tlcgcnn_jax.analysis import Outcome, analyse
from tlcgcnn_jax.crystal import Record, formula
from tlcgcnn_jax.figure import BLUE, GREY, INK, VERMILLION, picture, plain
from tlcgcnn_jax.files import write_table
from tlcgcnn_jax.ranking import rank_sources
from tlcgcnn_jax.structures import read_structures
from tlcgcnn_jax.study_config import below, target_name
from tlcgcnn_jax.study_desk import Desk

SCORES = {
    "ridge_skill": "skill of ridge regression on the features",
    "log_me": "LogME of the features",
    "output_correlation": "|correlation| of output and labels",
    "label_correlation": "|correlation| of both labels",
}
# Where the labels stand that sources of these names learnt. Checkpoints learnt from earlier releases of the same data.
MP, ELASTIC = "mp_crysxpp/mp_crysxpp.jsonl.gz", "elastic_mp/elastic_mp.jsonl.gz"
LABELS = (
    ("*formation-energy", MP, "formation_energy_per_atom_eV"),
    ("*mp_eform", MP, "formation_energy_per_atom_eV"),
    ("*band-gap", MP, "band_gap_pbe_eV"),
    ("*mp_bandgap", MP, "band_gap_pbe_eV"),
    ("*elastic", ELASTIC, "k_vrh_gpa"),
    ("*mp_kvrh", ELASTIC, "k_vrh_gpa"),
    ("*mp_bulk_modulus", ELASTIC, "k_vrh_gpa"),
    ("*mp_gvrh", ELASTIC, "g_vrh_gpa"),
    ("*mp-dielectric", "dielectric_mp_riebesell/dielectric_mp_riebesell.jsonl.gz", "eps_total"),
    ("*hse-gap", "hse_gap_mp/hse_gap_mp.jsonl.gz", "band_gap_hse_eV"),
)
SAME_VOLUME = 0.03  # relative difference of the volumes per atom up to which two entries of a formula are one crystal
FEWEST = 20  # common crystals below which there is no correlation
SIGNS = {"helps": "▲", "hurts": "▼"}
NO_SKILL = -0.1  # drawn here: any skill below zero is none, however far below
FULL_COLOUR = 40.0  # per cent of gain or loss that take the strongest colour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the finished study")
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--out", type=Path, help="folder for the tables and pictures (default: the study's)")
    options = parser.parse_args()
    out, desk = options.out or options.study, Desk(options.study)
    scored = scores(desk)
    write_table(out / "scores.csv", scored, digits=5)
    rows = matrix(desk, scored, kinship(desk, options.data))
    write_table(out / "matrix.csv", rows, digits=5)
    found = correlations(rows)
    write_table(out / "correlations.csv", found, digits=5)
    draw_matrix(rows, out / "matrix.png")
    draw_scores(rows, found, out / "scores.png")
    for row in found:
        print("{target}, {score}: Spearman {spearman:.2f} over {sources} sources".format(**row))


def scores(desk: Desk) -> list[dict[str, Any]]:
    """What the ranking says of each source, from the training crystals of each seed alone."""
    rows = []
    (size,) = desk.study.sizes
    for target in map(target_name, desk.study.targets):
        everyone, values = desk.everyone(target), desk.results.crystals(target).values
        for seed in range(desk.study.seeds):
            train = desk.split(target, size, seed).train
            rows += [
                {
                    "target": target, "seed": seed, "source": score.name, "property": score.property,
                    "ridge_mae": score.ridge_mae, "ridge_skill": score.ridge_skill, "log_me": score.log_me,
                    "output_correlation": abs(score.correlation),
                }
                for score in rank_sources(desk.graph_sets(target, everyone), everyone, values, train)
            ]  # fmt: skip
    return rows


def kinship(desk: Desk, data: Path) -> dict[tuple[str, str], tuple[float, int]]:
    """Spearman's correlation of the labels of source and target, and the number of their common crystals."""
    from scipy.stats import spearmanr

    found, sets = {}, {}
    for target in below(desk.study, data).targets:
        own = labelled(target.data, target.column)
        for source in desk.everyone(target_name(target)):
            known = next(((file, column) for glob, file, column in LABELS if fnmatch.fnmatchcase(source, glob)), None)
            if known is None:
                continue
            if known not in sets:
                sets[known] = labelled(data / known[0], known[1])
            pairs = common(own, sets[known])
            value = abs(float(spearmanr(*pairs).statistic)) if pairs.shape[1] >= FEWEST else float("nan")
            found[target_name(target), source] = (value, pairs.shape[1])
    return found


def labelled(path: str | Path, column: str) -> list[tuple[str, float, float]]:
    """Formula, volume per atom (Å^3) and label of the crystals of a set that have one."""

    def entry(record: Record) -> tuple[str, float, float]:
        numbers = record.structure.atomic_numbers
        return formula(numbers), abs(np.linalg.det(record.structure.lattice)) / len(numbers), record.targets[column]

    return [
        entry(r) for r in read_structures(path, targets=(column,), on_error="skip") if np.isfinite(r.targets[column])
    ]


def common(one: list[tuple[str, float, float]], other: list[tuple[str, float, float]]) -> np.ndarray:
    """Labels of the crystals that two sets share, [2, n]: of one formula, and nearest in volume."""
    there: dict[str, list[tuple[float, float]]] = {}
    for name, volume, label in other:
        there.setdefault(name, []).append((volume, label))
    pairs = []
    for name, volume, label in one:
        if name in there:
            nearest, theirs = min(there[name], key=lambda entry: abs(entry[0] - volume))
            if abs(nearest / volume - 1) <= SAME_VOLUME:
                pairs.append((label, theirs))
    return np.array(pairs).reshape(-1, 2).T


def matrix(
    desk: Desk, scored: list[dict[str, Any]], known: dict[tuple[str, str], tuple[float, int]]
) -> list[dict[str, Any]]:
    """A row a target and source: gain and verdict of each strategy, scores (means over seeds), correlations."""
    outcomes = {(o.target, o.way.source, o.way.strategy): o for o in analyse(desk.results).outcomes}
    strategies = list(dict.fromkeys(row.strategy for row in desk.results.select(kind="transfer")))
    rows = []
    for target, source in dict.fromkeys((row["target"], row["source"]) for row in scored):
        mine = [row for row in scored if (row["target"], row["source"]) == (target, source)]
        label_correlation, shared = known.get((target, source), (float("nan"), 0))
        row = {"target": target, "source": source, "property": mine[0]["property"]}
        for strategy in strategies:
            row |= gain(strategy, outcomes.get((target, source, strategy)))
        row |= {key: float(np.mean([one[key] for one in mine])) for key in list(SCORES)[:-1]}
        rows.append(row | {"label_correlation": label_correlation, "common_crystals": shared})
    return rows


def gain(strategy: str, outcome: Outcome | None) -> dict[str, Any]:
    """Gain over scratch of one strategy from one source, as cells of a table."""
    found, nan = outcome and outcome.against_scratch, float("nan")
    values = (found.gain_percent, found.low, found.high, found.verdict) if found else (nan, nan, nan, "")
    return {f"{strategy}_{key}": v for key, v in zip(("gain", "low", "high", "verdict"), values, strict=True)}


def correlations(rows: list[dict[str, Any]], strategy: str = "full") -> list[dict[str, Any]]:
    """Spearman's rank correlation of each score with the gain of fine-tuning, over the sources that have the score."""
    from scipy.stats import spearmanr

    out = []
    for target in dict.fromkeys(row["target"] for row in rows):
        for score in SCORES:
            pairs = [(row[score], row[f"{strategy}_gain"]) for row in rows if row["target"] == target]
            x, y = np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2).T
            varied = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
            test: Any = spearmanr(x, y) if varied else None
            out.append({
                "target": target, "score": score, "sources": len(x),
                "spearman": float(test.statistic) if test else float("nan"),
                "p": float(test.pvalue) if test else float("nan"),
                "gain_of_first": float(y[np.argmax(x)]) if len(x) else float("nan"),
                "gain_of_best": float(y.max(initial=-np.inf)), "mean_gain": float(y.mean()) if len(y) else float("nan"),
                "hurt": sum(row[f"{strategy}_verdict"] == "hurts" for row in rows if row["target"] == target),
                "helped": sum(row[f"{strategy}_verdict"] == "helps" for row in rows if row["target"] == target),
            })  # fmt: skip
    return out


def draw_matrix(rows: list[dict[str, Any]], path: Path, strategy: str = "full") -> None:
    """The gains as a map of colours, losses in a colour of their own, beside two measures of kinship."""
    from matplotlib.colors import LinearSegmentedColormap

    targets = list(dict.fromkeys(row["target"] for row in rows))
    cell = {(row["source"], row["target"]): row for row in rows}
    names = {source: [row[f"{strategy}_gain"] for row in rows if row["source"] == source] for source, _ in cell}
    sources = sorted(names, key=lambda source: -np.nanmean(names[source]))
    diverging = LinearSegmentedColormap.from_list("gain", ["#E8A26F", "white", "#6FB0D6"])
    panels = (
        (f"{strategy}_gain", "gain over scratch (%)", diverging, (-FULL_COLOUR, FULL_COLOUR)),
        ("label_correlation", SCORES["label_correlation"], "Greys", (0.0, 1.8)),
        ("ridge_skill", "skill of ridge regression", "Greys", (0.0, 1.8)),
    )
    with picture(path, 4 + 3.0 * len(targets), 1.8 + 0.27 * len(sources)) as figure:
        for number, (key, title, colours, (low, high)) in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), number)
            table = np.array([[cell.get((s, t), {}).get(key, np.nan) for t in targets] for s in sources], float)
            axes.imshow(table, cmap=colours, vmin=low, vmax=high, aspect="auto")
            for (row, column), value in np.ndenumerate(table):
                said = cell.get((sources[row], targets[column]), {}).get(f"{strategy}_verdict", "")
                text = f"{value:+.0f} {SIGNS.get(said, '')}" if number == 1 else f"{value:.2f}"
                text = "< 0" if number == 3 and value < NO_SKILL else text
                text = "–" if np.isnan(value) else text.replace("-", "−").strip()
                axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=INK)
            axes.set_xticks(range(len(targets)), [plain(name.replace(" ", "\n")) for name in targets], fontsize=9)
            axes.set_yticks(range(len(sources)), [plain(name) for name in sources] if number == 1 else [], fontsize=9)
            axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
            axes.spines[:].set_visible(False)
            axes.set_title(title, fontsize=10, pad=8)


def draw_scores(rows: list[dict[str, Any]], found: list[dict[str, Any]], path: Path, strategy: str = "full") -> None:
    """Gain against each measure of kinship: a column a target, a row a measure; the ends of the gains have names."""
    targets, keys = list(dict.fromkeys(row["target"] for row in rows)), [key for key in SCORES if key != "log_me"]
    said = {(row["target"], row["score"]): row for row in found}
    with picture(path, 4.2 * len(targets), 3.4 * len(keys)) as figure:
        for number, (key, target) in enumerate(((key, target) for key in keys for target in targets), 1):
            axes = figure.add_subplot(len(keys), len(targets), number)
            axes.axhline(0, color=GREY, linewidth=0.8)
            places = {
                row["source"]: (max(row[key], NO_SKILL), row[f"{strategy}_gain"])
                for row in rows
                if row["target"] == target and np.isfinite((row[key], row[f"{strategy}_gain"])).all()
            }
            order = sorted(places, key=lambda source: places[source][1])
            middle = np.mean([x for x, _ in places.values()])
            for source, place in places.items():
                axes.plot(*place, "o", color=BLUE if place[1] > 0 else VERMILLION, markersize=5)
                if source in (order[0], order[-1]):
                    left = place[0] > middle  # the name stands towards the middle
                    axes.annotate(
                        source, place, (-5 if left else 5, -2), textcoords="offset points", fontsize=7, color=GREY,
                        ha="right" if left else "left",
                    )  # fmt: skip
            told = said[target, key]
            cut = f"\n(lower than {NO_SKILL:g}: drawn there)" if min(x for x, _ in places.values()) == NO_SKILL else ""
            axes.set(
                title=plain(f"{target}: ρ = {told['spearman']:.2f}, {told['sources']} sources").replace("-", "−"),
                xlabel=(SCORES[key] + cut).replace("-", "−"), ylabel=f"gain of {strategy} over scratch (%)",
            )  # fmt: skip
            axes.margins(0.12)


if __name__ == "__main__":
    main()
