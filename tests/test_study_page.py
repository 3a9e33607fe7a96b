"""The page of a study: what it says agrees with the runs, nothing in it is taken for markup, any study has one."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import made_up_study
import numpy as np
import pytest

from tlcgcnn_jax import analysis as analysis_file
from tlcgcnn_jax.analysis import analyse
from tlcgcnn_jax.page import number
from tlcgcnn_jax.report import run_report
from tlcgcnn_jax.results import StudyResults, start_study
from tlcgcnn_jax.statistics import compare_runs
from tlcgcnn_jax.study_data import rounded
from tlcgcnn_jax.study_page import SECTIONS, study_page
from tlcgcnn_jax.study_plots import study_pictures

NASTY = '</script><b onclick="x">&\u2028$x$'
SMALL = {"sizes": (50, 100), "seeds": 3, "n_test": 25, "n_val": 15}
WAYS = {way.strategy: way for way in made_up_study.WAYS}


class Page(HTMLParser):
    """The page's text, its scripts, its tables, and what it would load; fails where a tag is not closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.scripts, self.headings, self.rows, self.loads, self.text = [], [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [value for name, value in attrs.items() if name in ("src", "href", "srcset", "data")]
        assert not [name for name in attrs if name.startswith("on")], "a handler that the policy would refuse"
        if tag == "script":
            self.scripts.append((attrs, ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attrs, before = self.scripts.pop()
            self.scripts.append((attrs, before + data))
        elif "style" not in self.open:
            self.text += data
            if "tr" in self.open and self.rows[-1]:
                self.rows[-1][-1] += data
            if self.open and self.open[-1] == "h2":
                self.headings.append(data)


def read(results):
    """The page of a study, parsed, and its block of data."""
    page = Page(study_page(results, analyse(results)))
    (attrs, block), (code_attrs, code) = page.scripts
    assert attrs == {"type": "application/json", "id": "study"} and code_attrs == {}
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert page.policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    return page, json.loads(block)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return made_up_study.write(tmp_path_factory.mktemp("study") / "study", **SMALL)


@pytest.fixture(scope="module")
def whole(study):
    return read(study)


def test_sections_verdicts_and_badges(study, whole):
    page, _ = whole
    assert page.headings == list(SECTIONS.values())
    analysis = analyse(study)
    assert len(analysis.best) == 6
    for best in analysis.best:
        assert best.sentence.partition(f": {best.verdict}. ")[2].replace("`", "") in page.text
    words = {best.verdict for best in analysis.best}
    assert words <= {"helps", "hurts", "no evidence"} and "helps" in words
    assert page.text.count("transfer helps") == sum(best.verdict == "helps" for best in analysis.best)
    assert "3 properties · 8 ways of learning · 2 training sizes · 3 seeds · 144 runs" in page.text
    assert "not finished" not in page.text


def test_results_table_has_every_way_and_the_runs_means(study, whole):
    page, _ = whole
    rows = [row for row in page.rows if len(row) > 12 and row[3] in ("50", "100")]
    assert len(rows) == 3 * 8 * 2
    found = {(row[0], row[1], row[3]): row for row in rows}
    runs = study.select(target="band_gap", strategy="frozen", size=100)
    errors = []
    for run in runs:
        made, crystals = study.predictions(run.run), study.crystals("band_gap")
        errors.append(np.abs(made.test - crystals.values[made.test_rows]).mean())
    row = found["band_gap (eV)", "frozen · mp-formation-energy", "100"]
    assert row[4] == "3"
    assert float(row[5]) == pytest.approx(np.mean(errors), rel=1e-3)
    assert float(row[6]) < float(row[5]) < float(row[7])


def test_gain_tables_hold_the_gain_of_the_way_chosen_on_validation_crystals(study, whole):
    page, _ = whole
    rows = [row for row in page.rows if row and row[0] == "full"]
    assert len(rows) == 2  # one a size
    for size, row in zip((50, 100), rows, strict=True):
        full = [o for o in analyse(study).of("bulk_modulus", size=size) if o.way.strategy == "full"]
        best = min(full, key=lambda outcome: outcome.val_mae)
        assert row[1].startswith(f"{best.against_scratch.gain_percent:+.0f} %".replace("-", "−"))
        assert best.against_scratch.verdict in row[1] and best.way.source in row[1]
    assert [row[0] for row in page.rows if row and row[0] == "mp-band-gap"]


def test_tables_of_crystals_and_overlap(study, whole):
    page, _ = whole
    table = study.crystals("band_gap")
    row = next(row for row in page.rows if row[0] == "band_gap" and len(row) == 7)
    counts = {formula: table.formulas.count(formula) for formula in table.formulas}
    shared = sum(count for count in counts.values() if count > 1)
    assert row[1:5] == [str(len(table.ids)), str(len(counts)), str(shared), "50, 100"]
    tested = {len(study.predictions(run.run).test_rows) for run in study.select(target="band_gap")}
    assert row[6] == (f"{min(tested)} to {max(tested)}" if len(tested) > 1 else f"{min(tested)}")
    overlap = study.study["overlap"][0]
    share = number(round(100 * overlap["share"], 1))
    assert [overlap["source"], overlap["target"], str(overlap["count"]), share] in page.rows


def test_data_hold_every_prediction_once(study, whole):
    _, data = whole
    target = next(t for t in data["targets"] if t["name"] == "band_gap")
    table = study.crystals("band_gap")
    assert (target["ids"], target["formulas"]) == (table.ids, table.formulas)
    assert len(target["tests"]) == 3  # all ways of a seed share its list
    way = next(w for w in target["ways"] if w["strategy"] == "full" and w["sourceSize"] == 1000)
    point = next(p for p in way["points"] if p["size"] == 50)
    for run in point["runs"]:
        row = study.select(target="band_gap", strategy="full", source_size=1000, size=50, seed=run["seed"])[0]
        made = study.predictions(row.run)
        assert target["tests"][run["test"]] == made.test_rows.tolist()
        np.testing.assert_allclose(run["predicted"], made.test, rtol=1e-3)
        np.testing.assert_allclose(run["std"], made.test_std, rtol=1e-2)
    values = np.array(target["values"])
    mae = np.mean([np.abs(np.array(r["predicted"]) - values[target["tests"][r["test"]]]).mean() for r in point["runs"]])
    assert point["mae"] == pytest.approx(mae, rel=2e-3)
    levels, observed = np.array(point["calibration"]["coverage"]).T
    assert (levels[0], observed[0], levels[-1], observed[-1]) == (0, 0, 1, 1)
    assert observed[10] < 0.5 and point["calibration"]["factor"] > 1  # made up to be too sure
    assert next(w for w in target["ways"] if w["strategy"] == "mean")["points"][0]["calibration"] is None


def test_500_runs_of_300_crystals_stay_below_3_megabytes(tmp_path):
    made = made_up_study.write(tmp_path / "study", targets=("bulk_modulus",), sizes=(50,), n_test=200, seeds=3)
    assert np.mean([row.test_n for row in made.rows]) < 300
    whole = len(study_page(made, analyse(made)).encode())
    made.rows[:] = [row for row in made.rows if row.seed == 0]
    one_seed = len(study_page(made, analyse(made)).encode())
    runs = 2 * len(made.rows)
    assert whole + (500 - runs) * (whole - one_seed) / runs < 3e6


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.23456, -0.000123456], [1.235, -0.0001235]), ([float("nan"), float("inf"), 0.0], [None, None, 0.0])],
)
def test_rounded(values, expected):
    assert rounded(values) == expected


def test_at_most_six_series_are_shown_at_first(whole):
    _, data = whole
    for target in data["targets"]:
        shown = [way for way in target["ways"] if way["shown"]]
        assert 3 <= len(shown) <= 6
        kinds = [way["kind"] for way in shown]
        assert kinds.count("scratch") == kinds.count("baseline") == 1
        assert len({way["colour"] for way in shown}) == len(shown)
        assert len({way["label"] for way in target["ways"]}) == len(target["ways"])


def test_names_ids_and_formulas_are_text(tmp_path):
    made = made_up_study.write(tmp_path / "made", targets=("band_gap",), **SMALL)
    table = made.crystals("band_gap")
    table.ids[0], table.formulas[0] = NASTY, NASTY
    study = {**made.study, "title": NASTY, "settings": {NASTY: NASTY}, "versions": {NASTY: NASTY}}
    study |= {"targets": [{"name": NASTY, "unit": NASTY}], "overlap": [{"source": NASTY, "target": NASTY, "count": 1}]}
    results = start_study(tmp_path / "nasty", study, {NASTY: table})
    for row in made.rows:
        source, strategy = (NASTY if row.source else "", NASTY if row.kind == "transfer" else row.strategy)
        changed = dataclasses.replace(row, target=NASTY, source=source, strategy=strategy, machine=NASTY)
        results.rows.append(changed)
        (results.folder / "predictions").mkdir(exist_ok=True)
        name = f"predictions/{row.run}.npz"
        (results.folder / name).write_bytes((made.folder / name).read_bytes())
    # Ways that have become equal in name would be two runs of one seed: one of them is enough.
    results.rows[:] = {(r.strategy, r.source_size, r.size, r.seed, r.kind): r for r in results.rows}.values()
    page, data = read(results)
    assert data["targets"][0]["name"] == data["targets"][0]["ids"][0] == NASTY
    assert NASTY in page.text
    assert "<b onclick" not in study_page(results, analyse(results))


ONE = {"targets": ("band_gap",)}
STUDIES = {
    "one target": (ONE, set()),
    "one seed": ({**ONE, "seeds": 1}, set()),
    "one size": ({**ONE, "sizes": (50,)}, set()),
    "no std": ({**ONE, "ways": (WAYS["scratch"]._replace(has_std=False), WAYS["features:svr"])}, {"Calibration"}),
    "no baselines": ({**ONE, "ways": tuple(way for way in made_up_study.WAYS if way.kind != "baseline")}, set()),
    "scratch only": ({**ONE, "ways": (WAYS["scratch"],)}, {"Gain over scratch"}),
    "transfer only": ({**ONE, "ways": (WAYS["full"],)}, set()),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "absent"), STUDIES.values(), ids=STUDIES)
def test_any_study_has_a_page(tmp_path, changes, absent):
    results = made_up_study.write(tmp_path / "study", **{**SMALL, **changes})
    page, data = read(results)
    # Sections of pictures are taken away by the script where there is nothing to draw.
    assert [h for h in SECTIONS.values() if h not in page.headings] == sorted(absent - {"Calibration"})
    points = [point for way in data["targets"][0]["ways"] for point in way["points"]]
    assert any(point["calibration"] for point in points) == ("Calibration" not in absent)
    assert "NaN" not in page.scripts[0][1]


def test_nothing_is_gained_on_no_error(tmp_path, monkeypatch):
    unknown = {"gain_percent": math.nan, "low": math.nan, "high": math.nan, "verdict": "no evidence"}
    compared = lambda *runs, **settings: dataclasses.replace(compare_runs(*runs, **settings), **unknown)
    monkeypatch.setattr(analysis_file, "compare_runs", compared)
    results = made_up_study.write(tmp_path / "study", **SMALL)
    analysis = analyse(results)
    assert any("gained nothing on scratch, whose error is 0" in sentence for sentence in analysis.sentences)
    page = study_page(results, analysis)
    assert not re.search(r"\bnan\b", page) and '<td data-target="band_gap">–</td>' in page
    study_pictures(results, analysis, tmp_path)


def test_unfinished_studies(tmp_path):
    results = made_up_study.write(tmp_path / "study", **SMALL, missing=0.4)
    page, _ = read(results)
    assert re.search(r"not finished: at least \d+ runs missing", page.text)
    results.rows[:] = [row for row in results.rows if row.target != "band_gap"]
    page, data = read(results)
    assert "No run has finished yet." in page.text
    assert [t["best"] is None for t in data["targets"]] == [False, True, False]
    results.rows.clear()
    page, data = read(results)
    assert page.headings == ["Verdict", "Crystals and overlap", "Settings and versions"]


def test_report_of_a_study_is_its_page(study):
    path = run_report(study.folder)
    assert path == study.folder / "report.html"
    results = StudyResults(study.folder)
    assert path.read_text() == study_page(results, analyse(results))
