"""The report of a run: pictures are there, the page needs nothing else, and bad folders are named."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tlcgcnn_jax import files, plots
from tlcgcnn_jax.config import Target, to_dict
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import Predictions
from tlcgcnn_jax.page import flat, number, plus_minus
from tlcgcnn_jax.report import run_report
from tlcgcnn_jax.run_pictures import run_pictures

MODULUS = Target("k_vrh", "GPa", transform="log10")
GAP = Target("gap", "eV")
METAL = Target("is_metal", kind="classification")
NASTY = '<script>alert("mp-1")</script> & $x$'


def png_size(path):
    """Width and height in pixels; fails for anything but a PNG."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def history(members=1, epochs=12):
    """Losses that fall by more than a decade."""
    return [
        {"member": m, "epoch": e, "train_loss": 0.7**e, "val_score": 0.1 + 0.75**e + 0.001 * m * e, "seconds": 1.0}
        for m in range(members)
        for e in range(1, epochs + 1)
    ]


def predictions(targets, n=30, members=2):
    """Random predictions and labels, the second label missing."""
    rng = np.random.default_rng(0)
    columns, labels = [], []
    for target in targets:
        if target.kind == "classification":
            label = np.arange(n) % target.classes
            p = rng.dirichlet(np.ones(target.classes), (members, n))
            columns.append(0.5 * p + 0.5 * np.eye(target.classes)[label])
        else:
            label = rng.uniform(5, 200, n)
            columns.append((label * rng.uniform(0.8, 1.2, (members, n)))[..., None])
        labels.append(label.astype(float))
    labels = np.stack(labels, 1)
    labels[1] = np.nan
    ids = [NASTY, *(f"mp-{i}" for i in range(1, n))]
    return Predictions(ids, tuple(targets), np.concatenate(columns, -1)), labels


def make_run(folder, targets=(MODULUS,), members=2):
    """A folder as a finished run leaves it."""
    folder.mkdir()
    test, labels = predictions(targets, members=members)
    part = {"mae": 12.0, "rmse": 20.0, "r2": 0.9, "n": 29}
    metrics = {"test": part, "val": part}
    if len(targets) > 1:
        metrics["targets"] = {target.name: {"test": part} for target in targets}
    settings = {"verb": "transfer", "source": "mp-formation-energy", "strategy": "full"}
    settings |= {"training": {"epochs": 12, "clip": None}, "versions": {"jax": "0.10.2"}, "machine": "cpu"}
    (folder / "config.json").write_text(json.dumps({"targets": [to_dict(t) for t in targets], "members": members}))
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history(members)))
    (folder / "settings.json").write_text(json.dumps(settings))
    test.write(folder / "test_results.csv", labels)
    return folder


COMPARED = [
    {"target": "Bulk modulus", "unit": "GPa", "strategy": "scratch", "mae": [18.0, 19.0, 17.5], "gain_percent": None},
    {
        "target": "Bulk modulus", "unit": "GPa", "strategy": "full", "mae": [14.0, 15.0, float("nan")],
        "gain_percent": 20.0, "gain_low": 12.0, "gain_high": 27.0, "p_value": 1e-5, "verdict": "helps",
    },
    {"target": "Gap $", "unit": "eV", "strategy": "head", "mae": [0.5], "gain_percent": -3.0, "verdict": "no evidence"},
]  # fmt: skip


class Page(HTMLParser):
    """Tags that are opened and never closed, what is loaded, and pictures without a text."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.headings, self.images, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [value for name, value in attrs.items() if name in ("src", "href", "srcset", "data")]
        if tag == "img":
            self.images.append(attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data}\n"
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def read_page(path):
    """The page, checked to be whole, alone, and told in words."""
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert all(load.startswith("data:") for load in page.loads)
    assert "@import" not in text and "url(" not in text
    assert page.images and all(image["alt"] and image["width"] and image["height"] for image in page.images)
    assert '<html lang="en">' in text and '<th scope="col"' in text and "prefers-color-scheme: dark" in text
    return page


RNG = np.random.default_rng(1)
TRUE = 10 ** RNG.uniform(0, 2.5, 4000)
GUESS = TRUE * RNG.uniform(0.7, 1.4, 4000)
PICTURES = {
    "learning curve": lambda path: plots.learning_curve(history(), path, title="a_$"),
    "learning curve of members": lambda path: plots.learning_curve(history(3), path),
    "learning curve of members of unequal length": lambda path: plots.learning_curve(
        history(1, 5) + [{**row, "member": 1} for row in history(1, 9)], path
    ),
    "learning curve of one epoch": lambda path: plots.learning_curve(history(1, 1), path),
    "learning curve without validation": lambda path: plots.learning_curve(
        [{**row, "val_score": float("nan")} for row in history()], path
    ),
    "parity": lambda path: plots.parity(TRUE[:50], GUESS[:50], path, name="k_$", unit="GPa", std=TRUE[:50] / 9),
    "parity, logarithmic": lambda path: plots.parity(TRUE[:50], GUESS[:50], path, name="k", std=GUESS[:50], log=True),
    "parity, logarithmic with a zero": lambda path: plots.parity(TRUE[:9] * 0, GUESS[:9], path, name="k", log=True),
    "parity, crowded": lambda path: plots.parity(TRUE, GUESS, path, name="k", unit="GPa"),
    "parity, crowded and logarithmic": lambda path: plots.parity(TRUE, GUESS, path, name="k", unit="GPa", log=True),
    "parity of one crystal": lambda path: plots.parity(TRUE[:1], TRUE[:1], path, name="k", unit="GPa"),
    "confusion": lambda path: plots.confusion(
        np.array([0, 1, 2, np.nan]), np.array([0, 1, 1, 2]), path, name="c", classes=3
    ),
    "roc": lambda path: plots.roc(np.array([0, 1, 0, np.nan]), np.array([0.1, 0.9, 0.9, 0.5]), path, name="c"),
    "comparison": lambda path: plots.comparison(COMPARED, path),
}  # fmt: skip


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_pictures_are_png_of_sensible_size(tmp_path, draw):
    path = draw(tmp_path / "picture.png")
    width, height = png_size(path)
    assert 600 <= width <= 1300 and 500 <= height <= 1300
    assert 5_000 < path.stat().st_size < 300_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]


def test_same_numbers_same_bytes_and_no_trace_in_the_settings_of_matplotlib(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    one, two = (plots.comparison(COMPARED, tmp_path / name).read_bytes() for name in ("1.png", "2.png"))
    assert one == two
    assert dict(matplotlib.rcParams) == before


def drawn_texts(monkeypatch, draw, path):
    """All texts of a picture."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    draw(path)
    return [text.get_text() for text in figures[0].findobj(Text) if text.get_text()]


def test_parity_leaves_out_crystals_without_a_label(tmp_path, monkeypatch):
    target, prediction = np.array([1.0, np.nan, 3.0, 5.0]), np.array([2.0, 1e9, 3.0, np.nan])
    texts = drawn_texts(
        monkeypatch, lambda path: plots.parity(target, prediction, path, name="gap", unit="eV"), tmp_path / "p.png"
    )
    assert "MAE 0.5 eV\nRMSE 0.707 eV\nR² 0.500\n2 crystals" in texts
    assert "Predicted gap (eV)" in texts and "True gap (eV)" in texts


def test_area_under_the_curve_counts_ties_half(tmp_path, monkeypatch):
    target, p = np.array([0, 0, 1, 1]), np.array([0.2, 0.5, 0.5, 0.9])  # pairs: 1, 1, 1/2, 1
    texts = drawn_texts(monkeypatch, lambda path: plots.roc(target, p, path, name="metal"), tmp_path / "p.png")
    assert "area under the curve 0.875" in texts


def test_comparison_tells_gain_and_significance(tmp_path, monkeypatch):
    texts = drawn_texts(monkeypatch, lambda path: plots.comparison(COMPARED, path), tmp_path / "p.png")
    for text in ("Bulk modulus", "Test MAE (GPa)", "Test MAE (eV)", "baseline", "helps: +20 % (+12 to +27)\np < 0.001"):
        assert text in texts
    assert "no evidence: −3 %" in texts


NOTHING = np.full(3, np.nan)
REFUSED = {
    "no epoch": (lambda path: plots.learning_curve([], path), "no epoch"),
    "no label": (lambda path: plots.parity(NOTHING, NOTHING, path, name="k_vrh"), "k_vrh: not one of 3 crystals"),
    "no class": (lambda path: plots.confusion(NOTHING, NOTHING, path, name="metal"), "metal: not one of 3"),
    "one class": (lambda path: plots.roc(np.ones(3), np.ones(3), path, name="metal"), "only one of two classes"),
    "no rows": (lambda path: plots.comparison([], path), "no rows"),
    "no errors": (lambda path: plots.comparison([{**COMPARED[0], "mae": []}], path), "Bulk modulus, scratch"),
    "no folder": (lambda path: plots.learning_curve(history(), path.parent / "no" / "x.png"), "cannot be written"),
}


@pytest.mark.parametrize(("draw", "message"), REFUSED.values(), ids=REFUSED)
def test_pictures_of_nothing_are_refused(tmp_path, draw, message):
    with pytest.raises(InputError, match=message):
        draw(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plots.learning_curve(history(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_kept_epochs_are_those_of_training():
    rows = [{"epoch": e + 1, "val_score": v} for e, v in enumerate((0.5, 0.3, float("nan"), 0.3))]
    assert plots.kept_epochs(rows) == [2]
    assert plots.kept_epochs([{"epoch": 1, "val_score": float("nan")}, {"epoch": 2, "val_score": None}]) == [2]
    assert plots.kept_epochs([{**row, "kept": row["epoch"] in (3, 4)} for row in rows]) == [3, 4]


DRAWN = {
    "one property": ((MODULUS,), {"learning_curve.png", "parity.png"}),
    "two classes": ((METAL,), {"learning_curve.png", "confusion.png", "roc.png"}),
    "three classes": ((Target("c", kind="classification", classes=3),), {"learning_curve.png", "confusion.png"}),
    "several": (
        (GAP, METAL, Target("a/b")),
        {
            "learning_curve.png",
            "parity_1_gap.png",
            "confusion_2_is_metal.png",
            "roc_2_is_metal.png",
            "parity_3_a_b.png",
        },
    ),
}


@pytest.mark.parametrize(("targets", "names"), DRAWN.values(), ids=DRAWN)
def test_run_pictures(tmp_path, targets, names):
    test, labels = predictions(targets)
    paths = run_pictures(tmp_path, history(2), test, labels)
    assert {path.name for path in paths} == names == {path.name for path in tmp_path.iterdir()}


def test_run_pictures_without_labels_or_epochs(tmp_path):
    test, labels = predictions((GAP,))
    assert run_pictures(tmp_path, [], test, np.full_like(labels, np.nan)) == []


def test_page_of_a_run(tmp_path):
    run = make_run(tmp_path / "run")
    path = run_report(run)
    assert path == run / "report.html"
    page = read_page(path)
    assert [h for h in page.headings if h.strip()] == [
        "CGCNN for k_vrh", "Errors", "Training", "Test crystals", "Error bars", "Largest errors", "Settings",
        "Versions",
    ]  # fmt: skip
    assert len(page.images) == 4  # learning curve, parity, calibration, confidence
    test, labels = predictions((MODULUS,))
    known = np.isfinite(labels[:, 0])
    errors = np.abs(test.mean[known, 0] - labels[known, 0])
    assert f"k_vrh: MAE {plus_minus(errors.mean(), plots.interval(errors))} GPa" in page.text
    assert "29 test crystals" in page.text
    assert "Transferred from mp-formation-energy with the strategy full." in page.text
    assert "An ensemble of 2 networks" in page.text
    for text in ("training.epochs", "0.10.2", "MAE (GPa)", "standard deviation (GPa)"):
        assert text in page.text
    worst = [test.ids[row] for row in np.flatnonzero(known)[np.argsort(-errors)][:10]]
    assert re.findall(r"mp-\d+", page.text.split("furthest off")[-1]) == [i for i in worst if i != NASTY]


def test_page_tells_what_the_error_bars_are_worth(tmp_path):
    run = make_run(tmp_path / "run", (GAP,), members=1)
    config = json.loads((run / "config.json").read_text())
    bar = {"level": 0.9, "quantile": 25.0, "normalised": False, "n": 40, "std_factor": None}
    (run / "config.json").write_text(json.dumps(config | {"calibration": [bar]}))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"] |= {"coverage_90": 0.875, "interval_width": 50.0}
    (run / "metrics.json").write_text(json.dumps(metrics))
    rows = [line + f",{novelty}" for line, novelty in zip(
        (run / "test_results.csv").read_text().splitlines(), ["novelty", *[0.5] * 25, *[1.5] * 5], strict=True
    )]  # fmt: skip
    (run / "test_results.csv").write_text("\n".join(rows))
    page = read_page(run_report(run))
    assert "gap, 90 % interval: ± 25, from 40 validation crystals" in page.text
    assert "The intervals hold 88 % of the test crystals; they are 50 eV wide on average." in page.text
    test, labels = predictions((GAP,), members=1)
    error = np.abs(test.mean[:, 0] - labels[:, 0])
    assert "5 of 29 test crystals are farther from the training crystals than 95 %" in page.text
    assert f"their mean absolute error is {number(error[25:].mean())} eV" in page.text
    assert len(page.images) == 2  # without standard deviations there is nothing to draw


def test_page_says_why_there_is_no_interval(tmp_path):
    run = make_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    bar = {"level": 0.9, "quantile": None, "normalised": False, "n": 4, "std_factor": None}
    (run / "config.json").write_text(json.dumps(config | {"calibration": [bar]}))
    page = read_page(run_report(run))
    assert "no 90 % interval: 4 validation crystals, at least 9 are needed (of log10 k_vrh)" in page.text


def test_ids_and_names_are_text(tmp_path):
    run = make_run(tmp_path / "run", (Target('<img src="http://x.y/z">', "<b>"),))
    cells = (run / "test_results.csv").read_text().splitlines()
    cells[1:] = [cells[1].rsplit(",", 3)[0] + ",10,9000,1", *cells[3:]]  # the nasty id is the worst by far
    (run / "test_results.csv").write_text("\n".join(cells))
    path = run_report(run)
    assert NASTY in read_page(path).text
    assert "<script" not in path.read_text() and 'src="http' not in path.read_text()


def test_page_of_several_targets_goes_where_it_is_told(tmp_path):
    run = make_run(tmp_path / "run", (GAP, METAL), members=1)
    page = read_page(run_report(run, tmp_path / "page.html"))
    assert len(page.images) == 4
    assert "gap: MAE" in page.text and "is_metal: accuracy" in page.text
    assert "probability of the true class" in page.text
    assert not (run / "report.html").exists()


def test_page_of_a_run_whose_test_crystals_have_no_label(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "test_results.csv").write_text("id,target,prediction\nmp-1,,3.0\n")
    page = read_page(run_report(run))
    assert "k_vrh: not tested" in page.text and "Largest errors" not in page.text


def test_page_of_the_demo(tmp_path):
    demo = {"rows": COMPARED, "title": "Does it help? <yes>", "text": ["First.", "Second & last."]}
    (tmp_path / "demo.json").write_text(json.dumps(demo))
    page = read_page(run_report(tmp_path))
    assert page.headings == ["Does it help? <yes>"]
    for text in ("Second & last.", "Bulk modulus", "18.2 ± 1.9 GPa", "helps: +20 % (+12 to +27), p < 0.001", "0.5 eV"):
        assert text in page.text


def remove(name):
    return lambda run: (run / name).unlink()


def write(name, text):
    return lambda run: (run / name).write_text(text)


BROKEN = {
    "no weights' settings": (remove("config.json"), r"not a finished run: config\.json missing"),
    "not finished": (remove("metrics.json"), r"metrics\.json missing .*has not finished: resume"),
    "no results": (remove("test_results.csv"), r"test_results\.csv missing \(found: config\.json"),
    "cut short": (write("metrics.json", '{"test": {'), r"metrics\.json: damaged"),
    "not an object": (write("settings.json", "[]"), r"settings\.json: a JSON object was expected, found list"),
    "a bad epoch": (write("metrics.jsonl", '{"epoch": 1}\n\n{"ep'), r"metrics\.jsonl:3: damaged"),
    "no targets": (write("config.json", "{}"), r"config\.json: damaged: no list of targets"),
    "a column too few": (write("test_results.csv", "id,target\na,1\n"), r"no column prediction \(found: id, target\)"),
    "a cell too few": (write("test_results.csv", "id,target,prediction\nmp-1,1\n"), r"test_results\.csv:2: 2 cells"),
    "not a number": (write("test_results.csv", "id,target,prediction\na,b,1\n"), r"column target: .*'b'"),
    "an empty table": (write("test_results.csv", ""), r"no column id, target, prediction"),
    "a demo without rows": (write("demo.json", '{"rows": []}'), r"demo\.json: there is nothing to compare"),
    "a damaged demo": (write("demo.json", '{"rows": [{"target": "k"}]}'), r"demo\.json: damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN)
def test_folders_that_cannot_be_told_of(tmp_path, damage, message):
    run = make_run(tmp_path / "run")
    damage(run)
    with pytest.raises(InputError, match=message):
        run_report(run)
    assert not (run / "report.html").exists()


def test_a_class_that_there_is_not_is_named(tmp_path):
    run = make_run(tmp_path / "run", (METAL,))
    (run / "test_results.csv").write_text("id,target,prediction,p_0,p_1\nmp-1,2,1,0.2,0.8\n")
    with pytest.raises(InputError, match=r"column target: classes 0 to 1 were expected"):
        run_report(run)


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        run_report(tmp_path / "none")
    with pytest.raises(InputError, match=r"found: nothing"):
        run_report(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (float("nan"), "–"), (-1234.56, "−1235"), (98765.4, "98,765"), (3e-7, "3e−07")]
)
def test_numbers(value, text):
    assert number(value) == text


def test_settings_are_flat():
    nested = {"targets": [{"name": "k", "unit": ""}], "training": {"milestones": [0.5, 0.8]}, "resume": False}
    assert flat(nested) == [
        ("targets.k.name", "k"), ("targets.k.unit", "none"), ("training.milestones", "0.5, 0.8"), ("resume", "no"),
    ]  # fmt: skip
