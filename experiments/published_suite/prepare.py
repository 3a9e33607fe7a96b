"""What the studies of the published suite read, from the data folder.

    python experiments/published_suite/prepare.py DATA --out FOLDER

Writes FOLDER/TASK.jsonl.gz, whose crystals are named TASK-ROW, and FOLDER/TASK-splits.json with the five published
splits (the ids of the original repeat, or are absent; it names crystals by their row). Rows that are in no part stay
unused. FOLDER/checkpoints leads to the checkpoints of DATA.
"""

import argparse
import gzip
import json
from pathlib import Path

from tlcgcnn_jax.files import write_whole

PARTS = ("train", "val", "test")
KEPT = ("lattice", "species", "frac_coords", "target")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with moe/ and checkpoints/")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for task, crystals, splits in tasks(options.data / "moe"):
        lines = "".join(json.dumps(crystal) + "\n" for crystal in crystals)
        write_whole(options.out / f"{task}.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
        write_whole(options.out / f"{task}-splits.json", json.dumps(splits).encode())
        print(f"{task}: {len(crystals):,} crystals, {len(splits)} splits")
    link = options.out / "checkpoints"
    if not link.exists():
        link.symlink_to((options.data / "checkpoints").resolve(), target_is_directory=True)


def tasks(folder: Path) -> list[tuple[str, list[dict], list[dict[str, list[str]]]]]:
    """Each task's name, its crystals, and its splits in the order of their seeds."""
    published = json.loads(gzip.decompress((folder / "splits.json.gz").read_bytes()))
    found = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        task = path.name.removesuffix(".jsonl.gz")
        records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        crystals = [{"id": f"{task}-{one['row']}", **{key: one[key] for key in KEPT}} for one in records]
        seeds = sorted(published[task], key=int)
        splits = [{part: [f"{task}-{row}" for row in published[task][seed][part]] for part in PARTS} for seed in seeds]
        found.append((task, crystals, splits))
    return found


if __name__ == "__main__":
    main()
