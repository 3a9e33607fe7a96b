"""The experiments: every study can be read and cut down, and what their scripts make of results is right."""

import csv
import gzip
import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import made_up_study
import numpy as np
import pytest

from tlcgcnn_jax.bundle import target_metrics
from tlcgcnn_jax.study_config import read_study
from tlcgcnn_jax.study_grid import grid
from tlcgcnn_jax.zoo import load_source, shipped

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
README = (EXPERIMENTS.parent / "README.md").read_text(encoding="utf-8")
STUDIES = sorted(path for path in EXPERIMENTS.glob("*/*.toml") if path.parent.name != "zoo")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), EXPERIMENTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_study_can_be_read_and_reduced(path, shared_data):
    study = read_study(path)
    smaller = script("reduced").reduced(study)
    assert smaller.seeds <= 2 and len(smaller.learning_rates) == 1 and smaller.strategies == study.strategies
    assert [t.column for t in smaller.targets] == [t.column for t in study.targets]
    for source in study.sources:
        assert not source.data or (shared_data / source.data).is_file()


def test_slope_of_a_power_law(tmp_path):
    """Errors that fall with the source's size as a known power, with a factor of its own in each seed."""
    sizes, power = (500, 1000, 10000), -0.2
    ways = [
        made_up_study.Way(made_up_study.ENERGY, size, "full", "transfer", 0.5, 0.3, True) for size in sizes
    ]  # fmt: skip
    results = made_up_study.write(
        tmp_path, ("bulk_modulus",), (100,), 3, (made_up_study.WAYS[0], *ways), n_test=20, n_val=10
    )
    results.rows = [
        row if row.kind == "scratch" else _with_mae(row, (1 + 0.1 * row.seed) * row.source_size**power)
        for row in results.rows
    ]
    errors, slopes = script("source_size/slope").tables(results, {500: 0.2})
    assert [row["source_size"] for row in errors] == list(sizes)
    assert math.isclose(errors[0]["mae"], 1.1 * 500**power, rel_tol=1e-6) and errors[0]["source_mae"] == 0.2
    (slope,) = slopes
    assert math.isclose(slope["slope"], power, rel_tol=1e-9) and math.isclose(slope["low"], power, rel_tol=1e-9)
    assert math.isclose(slope["percent_per_tenfold"], 100 * (10**power - 1), rel_tol=1e-9)


def _with_mae(row, mae):
    return SimpleNamespace(**{**row.__dict__, "test_mae": mae})


def test_common_crystals_by_formula_and_volume():
    common = script("relatedness/matrix").common
    one = [("Si", 20.0, 1.0), ("Si", 15.0, 2.0), ("C", 5.7, 3.0), ("ClNa", 22.0, 4.0)]
    other = [("Si", 20.4, 10.0), ("Si", 14.8, 20.0), ("C", 8.8, 30.0), ("GaAs", 22.0, 40.0)]
    assert common(one, other).tolist() == [[1.0, 2.0], [10.0, 20.0]]  # graphite is not diamond
    assert common(one, []).shape == (2, 0)


def test_correlation_of_scores_and_gains():
    correlations = script("relatedness/matrix").correlations
    rows = [
        {"target": "K", "source": name, "full_gain": gain, "full_verdict": verdict, "ridge_skill": skill,
         "log_me": -skill, "output_correlation": 0.5, "label_correlation": float("nan")}
        for name, gain, verdict, skill in (("a", 9, "helps", 0.8), ("b", 2, "", 0.5), ("c", -7, "hurts", 0.1))
    ]  # fmt: skip
    found = {row["score"]: row for row in correlations(rows)}
    assert found["ridge_skill"]["spearman"] == pytest.approx(1) and found["log_me"]["spearman"] == pytest.approx(-1)
    assert (found["ridge_skill"]["gain_of_first"], found["log_me"]["gain_of_first"]) == (9, -7)
    assert found["ridge_skill"]["hurt"] == found["ridge_skill"]["helped"] == 1
    assert math.isnan(found["output_correlation"]["spearman"]) and found["label_correlation"]["sources"] == 0


def test_crossings_of_a_study(tmp_path, monkeypatch):
    """Scratch falls faster than the forest, so that it overtakes it at a size that its powers foretell."""
    made_up_study.write(tmp_path, ("bulk_modulus",), (50, 100, 300, 1000), 3, n_test=60, n_val=30)
    monkeypatch.setattr("sys.argv", ["crossings.py", str(tmp_path)])
    script("regressors/crossings").main()
    found = {(row["way"], row["against"]): row["ahead_until"] for row in rows_of(tmp_path / "crossings.csv")}
    scratch, forest = (
        next(way for way in made_up_study.WAYS if way.strategy == name) for name in ("scratch", "forest")
    )
    expected = 100 * (scratch.error / forest.error) ** (1 / (scratch.power - forest.power))
    assert 0.4 < int(found["forest", "scratch"]) / expected < 2.5
    assert not any("mean" in pair for pair in found), "a constant is no contender"
    assert (tmp_path / "regressors_bulk_modulus.png").stat().st_size > 10_000


def test_matbench_folds(tmp_path):
    run = script("matbench/run")
    folds, formulas = np.arange(60) % 5, [f"A{row // 3}" for row in range(60)]
    split = run.fold_split(folds.astype(float), formulas, 2)
    assert split.test.tolist() == [row for row in range(60) if row % 5 == 2]
    assert sorted([*split.train, *split.val, *split.test]) == list(range(60))
    assert not {formulas[row] for row in split.train} & {formulas[row] for row in split.val}
    assert [run.knows_moduli(name) for name in ("mp-elastic", "moe/mp_kvrh", "mp-band-gap")] == [True, True, False]
    found = run.scores(np.array([0.0, 1.0, 2.0]), np.array([0.3, 1.0, 1.0]))
    assert found == pytest.approx({"mae": 1.3 / 3, "rmse": math.sqrt(1.09 / 3), "mape": 0.25, "max_error": 1.0})


def test_matbench_results(tmp_path):
    """The form in which matbench keeps results, from folds that are done; keys as in its MatbenchTask.as_dict."""
    run = script("matbench/run")
    for fold in range(2):
        one = {"data": {f"mb-log-kvrh-0000{fold}": 1.5}, "parameters": {"seconds": 3},
               "scores": {"mae": 0.1 * (fold + 1), "rmse": 0.2, "mape": 0.3, "max_error": 0.4}}  # fmt: skip
        (tmp_path / "scratch").mkdir(exist_ok=True)
        (tmp_path / "scratch" / f"fold_{fold}.json").write_text(json.dumps(one))
    run.write_results(tmp_path, ("scratch",))
    whole = json.loads(gzip.decompress((tmp_path / "scratch" / "results.json.gz").read_bytes()))
    task = whole["tasks"]["matbench_log_kvrh"]
    assert set(task) == {"@module", "@class", "benchmark_name", "dataset_name", "results"}
    assert set(task["results"]) == {"fold_0", "fold_1"}
    assert all(set(fold) == {"data", "parameters", "scores"} for fold in task["results"].values())
    assert [float(row["mae"]) for row in rows_of(tmp_path / "results.csv")] == [0.1, 0.2]
    assert (tmp_path / "folds.png").stat().st_size > 1000


def test_the_readme_tells_what_the_demonstration_gave():
    """Its table is that of the demo.json beside the picture."""
    rows = json.loads((EXPERIMENTS / "demo" / "demo.json").read_text())["rows"]
    for scratch, full in zip(rows[::2], rows[1::2], strict=True):
        means = [float(f"{np.mean(row['mae']):.3g}") for row in (scratch, full)]
        spreads = [f"{np.std(row['mae'], ddof=1):.{3 if mean < 1 else 1}f}" for row, mean in
                   zip((scratch, full), means, strict=True)]  # fmt: skip
        cells = [f"{mean:g} ± {spread}" for mean, spread in zip(means, spreads, strict=True)]
        (line,) = [one for one in README.splitlines() if one.startswith(f"| {full['target'].lower()} ({full['unit']})")]
        found = [cell.strip(" *") for cell in line.split("|")[2:7]]
        low, high = (f"{round(full[name])}".replace("-", "−") for name in ("gain_low", "gain_high"))
        gain = f"{full['gain_percent']:.0f} % ({low} to {high})".replace("-", "−")
        assert found == [*cells, gain, f"{full['p_value']:.2g}", full["verdict"]]


def test_the_readme_tells_the_errors_of_the_shipped_models():
    table = README.partition("## The zoo")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table.splitlines() if "| `" in line]
    assert sorted(name for name, *_ in rows) == list(shipped())
    for name, _, crystals, told in rows:
        model = load_source(name)
        tests = [found["test"] for found in target_metrics(model.metrics, model.targets).values()]
        errors = [one.get("mae_log10", one.get("mae", one.get("roc_auc"))) for one in tests]
        assert crystals == f"{model.notes['crystals trained on']:,}", name
        assert re.findall(r"\d\.\d+", told) == [f"{error:.3f}" for error in errors], name


def test_the_study_in_the_readme_can_be_read(tmp_path):
    """It has runs of all that "auto" is made of."""
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "study.toml").write_text(text)
    study = read_study(tmp_path / "study.toml")
    computed, combined = grid(study, [(source.model, 0) for source in study.sources])
    assert {cell.strategy for cell in combined} == {"auto"}
    runs = {f"{cell.strategy}@{cell.source}" if cell.source else cell.strategy for cell in computed}
    assert set(study.strategy("auto").parts) <= runs
