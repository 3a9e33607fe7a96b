"""The tables of README.md from a study's comparisons.csv, as Markdown.

python experiments/strategies/table.py STUDY/comparisons.csv
"""

import argparse
import csv
from pathlib import Path

SIGNS = {"helps": "▲", "hurts": "▼", "no evidence": "·"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", type=Path)
    options = parser.parse_args()
    with open(options.comparisons, newline="") as handle:
        rows = list(csv.DictReader(handle))
    for target in dict.fromkeys(row["target"] for row in rows):
        print(table([row for row in rows if row["target"] == target]))


def table(rows: list[dict[str, str]]) -> str:
    """A row a way, a column a size: test MAE, gain over scratch in per cent, and the verdict as a sign."""
    sizes = sorted({int(row["size"]) for row in rows})
    ways: dict[tuple[str, str, str], dict[int, dict[str, str]]] = {}
    for row in rows:
        ways.setdefault((row["strategy"], row["source"], row["kind"]), {})[int(row["size"])] = row
    order = sorted(ways, key=lambda way: (way[2] == "baseline", mean(ways[way])))
    lines = [f"| {rows[0]['target']} ({rows[0]['unit']}) | source | {' | '.join(f'{size:,}' for size in sizes)} |"]
    lines += [f"|---|---|{'---|' * len(sizes)}"]
    for way in order:
        cells = [cell(ways[way].get(size)) for size in sizes]
        way = (way[0].replace("@mp-formation-energy", ""), *way[1:])  # where not told otherwise
        described = way[2] == "baseline" and "ensemble" not in way[0] and way[0] not in ("mean", "median")
        name = f"{way[0]} (descriptors)" if described else way[0]
        lines.append(f"| {name} | {way[1]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean(by_size: dict[int, dict[str, str]]) -> float:
    """Error at the smallest size, which every way has."""
    return float(by_size[min(by_size)]["mae"])


def cell(row: dict[str, str] | None) -> str:
    if row is None:
        return "–"
    text = f"{float(row['mae']):.3f}"
    if row["kind"] != "scratch" and row["scratch_gain_percent"]:
        text += f" ({float(row['scratch_gain_percent']):+.0f} % {SIGNS[row['scratch_verdict']]})".replace("-", "−")
    return text


if __name__ == "__main__":
    main()
