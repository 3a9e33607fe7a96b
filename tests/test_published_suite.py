"""The published suite: which sources are left out, what is prepared, and what the tables say of made-up results."""

import csv
import gzip
import importlib.util
import inspect
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tlcgcnn_jax import textbook_records, transfer
from tlcgcnn_jax.elements import symbols
from tlcgcnn_jax.study_config import read_study, target_name
from tlcgcnn_jax.study_grid import left_out

SUITE = Path(__file__).parents[1] / "experiments" / "published_suite"
STUDY = read_study(SUITE / "study.toml")
TASKS = [target_name(target) for target in STUDY.targets]
ENERGIES = (  # mp-elastic starts from mp-multi
    "mp-formation-energy", "mp-multi", "mp-elastic", "perovskite-heat", "carbon-energy", "moe/mp_eform",
    "moe/jarvis_eform", "moe/castelli_eform", "official/mp_eform", "official/mp_final_energy",
)  # fmt: skip
DIELECTRIC = ("mp-dielectric", "moe/jarvis_dielectric_opt")
OTHERS = (
    "mp-band-gap", "mp-metal", "mp-hse-gap", "moe/mp_bandgap", "moe/jarvis_bandgap", "moe/mp_kvrh",
    "moe/jarvis_gvrh", "moe/n_Seebeck", "moe/p_avg_eff_mass", "moe/weighted_n_th_cond", "official/mp_bandgap",
    "official/mp_bulk_modulus", "official/mp_semi_metal",
)  # fmt: skip


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the folder, which may import its neighbours."""
    monkeypatch.syspath_prepend(str(SUITE))
    spec = importlib.util.spec_from_file_location(f"published_suite_{name}", SUITE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", STUDY.targets, ids=TASKS)
def test_sources_of_the_own_property_are_left_out(target):
    name = target_name(target)
    own = {"mp-dielectric"}  # it has seen the suite's crystals
    own |= set(ENERGIES) if "eform" in name else set()
    own |= set(DIELECTRIC) if any(part in name for part in ("eps", "poly", "dielectric")) else set()
    assert {source for source in (*ENERGIES, *DIELECTRIC, *OTHERS) if left_out(target, source)} == own


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_prepared_as_published(shared_data, tmp_path, monkeypatch):
    script("prepare", monkeypatch).main([str(shared_data), "--out", str(tmp_path)])
    published = json.loads(gzip.decompress((shared_data / "moe" / "splits.json.gz").read_bytes()))
    for target in STUDY.targets:
        records = lines(tmp_path / target.data)
        values = {record["id"]: record["target"] for record in records}
        original = lines(shared_data / "moe" / target.data)
        splits = json.loads((tmp_path / target.splits).read_text())
        assert len(values) == len(records) == len(original) and len(splits) == STUDY.seeds
        for seed, split in enumerate(splits):
            for part, rows in published[target_name(target)][str(seed)].items():
                assert [values[id_] for id_ in split[part]] == [original[row]["target"] for row in rows]


def test_auto_is_run_with_its_parts_and_networks(monkeypatch):
    run = script("run", monkeypatch)
    more = run.recipe(STUDY, "checkpoints")
    assert more.strategies == ("full@auto", "features:svr@all", "hybrid:svr@all", "auto") and more.without_scratch
    assert more.baselines == ("svr", "gp") and more.pool == "checkpoints"
    assert more.members == inspect.signature(transfer).parameters["seeds"].default
    assert (more.targets, more.learning_rates, more.epochs) == (STUDY.targets, STUDY.learning_rates, STUDY.epochs)
    energies = run.with_energies(STUDY).targets
    assert [target_name(target) for target in energies] == ["expt_eform", "jarvis_2d_eform"]
    assert {source for source in (*ENERGIES, *DIELECTRIC) if left_out(energies[0], source)} == {"mp-dielectric"}


def test_high_labels_and_all_others_make_the_error(tmp_path, monkeypatch):
    anisotropy = script("anisotropy", monkeypatch)
    labels = [1.0] * 20 + [201.0, 2.0, 3.0]  # the median of the training rows is 1
    records = [
        {"id": one.id, "lattice": one.structure.lattice.tolist(), "frac_coords": one.structure.frac_coords.tolist(),
         "species": [symbols()[number] for number in one.structure.atomic_numbers], "target": label}
        for one, label in zip(textbook_records(())[:23], labels, strict=True)
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / f"{anisotropy.TASK}.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(one) for one in records).encode()))
    ids = [one["id"] for one in records]
    split = {"train": ids[:18], "val": ids[18:20], "test": ids[20:]}
    path.with_name(f"{anisotropy.TASK}-splits.json").write_text(json.dumps([split]))
    monkeypatch.setattr(anisotropy, "WAYS", anisotropy.WAYS[:1])
    monkeypatch.setattr(sys, "argv", ["anisotropy.py", str(tmp_path), "--out", str(tmp_path / "out.csv")])
    anisotropy.main()
    (row,) = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert (row["split"], row["regressor"], row["learns"]) == ("0", "median", "identity")
    assert [float(row[name]) for name in ("left_out_mae", "val_mae", "test_mae")] == pytest.approx(
        [0, 0, 67.67], abs=0.01
    )
    assert [float(row[f"test_mae_of_{name}"]) for name in ("high", "others")] == pytest.approx([66.67, 1], abs=0.01)
    assert [row[f"high_in_{part}"] for part in ("train", "val", "test")] == ["0", "0", "1"]


PUBLISHED = {"a": {"CGCNN": 0.2, "MoE-(18)": 0.15, "JMP-FT": 0.1, "MoMa (Full)": 0.05},
             "b": {"CGCNN": 4.0, "MoE-(18)": 3.0, "JMP-FT": 2.0, "MoMa (Full)": 1.0}}  # fmt: skip
FACTORS = {"scratch": 1.1, "auto": 0.7}  # of the published CGCNN


def made_up(folder: Path, tasks: dict[str, float], factors: dict[str, float], zoo: str) -> None:
    """Results of a study: test MAEs that are known parts of the CGCNN's, in five splits that differ by 1 %."""
    (folder / zoo).mkdir(parents=True)
    (folder / zoo / "comparisons.csv").touch()  # as a finished study has
    with open(folder / zoo / "results.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(("target", "source", "strategy", "size", "seed", "val_mae", "test_mae", "test_median_ae"))
        for task, cgcnn in tasks.items():
            for way, factor in factors.items():
                for seed in range(5):
                    mae = factor * cgcnn * (1 + 0.01 * (seed - 2))
                    writer.writerow((task, "all" if way == "auto" else "", way, 100, seed, mae, mae, mae / 2))


def test_means_and_bars(tmp_path, monkeypatch):
    table = script("table", monkeypatch)
    made_up(tmp_path, {"a": 0.2, "b": 4.0, "c": 1.0}, {"scratch": 1.1}, "strategies")
    made_up(tmp_path, {"a": 0.2, "b": 4.0, "c": 1.0}, {"auto": 0.7, "svr": 0.9}, "shipped")
    made_up(tmp_path, {"a": 0.2}, {"auto": 0.2}, "checkpoints")
    made_up(tmp_path, {"a": 0.2}, {"auto": 0.3}, "energies")
    with open(tmp_path / "own_property.csv", "w") as handle:
        handle.write("target,source,strategy,size,seed,val_mae,test_mae,test_median_ae\na,x,keep_head,9,0,1,0.3,0.2\n")
    means = table.summarise(table.read_runs(tmp_path))
    assert {way[0] for _, way in means} == {*table.PLACES}
    auto = means["b", table.AUTO]
    assert (auto.mae, auto.median, auto.size, auto.splits) == (pytest.approx(2.8), pytest.approx(1.4), 100, 5)
    assert auto.mae_std == pytest.approx(2.8 * 0.01 * 2.5**0.5)  # of -2, -1, 0, 1, 2 per cent
    assert means["a", ("own property", "x", "keep_head")][:3] == (9, 1, 0.3)
    lines = table.bars(means, PUBLISHED).splitlines()
    assert lines[0] == "- scratch is no worse than CGCNN on 0 of 2 tasks (bar: 9); not on a, b"
    assert "auto` with shipped sources is no worse than MoE-(18) on 2 of 2" in lines[1]
    assert "JMP-FT on 0 of 2" in lines[2] and "MoMa (Full) on 1 of 1 tasks" in lines[-1]
    assert "energies too is no worse than MoE-(18) on 2 of 2" in lines[4]  # of b without energies
    assert len(lines) == 1 + 3 * 3
    (tmp_path / "energies" / "comparisons.csv").unlink()  # as in a study that is not finished
    assert table.ENERGIES not in {row["sources"] for row in table.read_runs(tmp_path)}


def test_all_is_written(shared_data, tmp_path, monkeypatch):
    table, out = script("table", monkeypatch), tmp_path / "out"
    published = table.read_published(shared_data / "moe" / "published_results.json")
    assert sorted(published) == sorted(set(TASKS) - {"jarvis_2d_dielectric_tbmbj"})
    for zoo, way in {"strategies": "scratch", "shipped": "auto"}.items():
        made_up(
            tmp_path, {task: published.get(task, {"CGCNN": 3.0})["CGCNN"] for task in TASKS}, {way: FACTORS[way]}, zoo
        )
    out.mkdir()
    shutil.copy(SUITE / "README.md", out)
    for _ in range(2):  # the second time over what the first has written
        table.main([str(shared_data), str(tmp_path), "--out", str(out)])
    text = (out / "README.md").read_text()
    assert text.count("| mean absolute error |") == 1 and text.startswith("# The published suite")
    row = next(line for line in text.splitlines() if line.startswith("| mp_poisson_ratio |"))
    assert [cell.strip() for cell in row.split("|")][2:9] == [
        "100", "0.0326", "0.0359 ± 0.0006", "0.0292", "0.0221", "**0.0204**", "0.0228 ± 0.0004",
    ]  # fmt: skip
    assert (out / "errors.png").stat().st_size > 10_000
    with open(out / "table.csv", newline="") as handle:
        assert len(list(csv.DictReader(handle))) == len(TASKS) * len(FACTORS)
