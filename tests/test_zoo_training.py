"""The trainings of the shipped source models (experiments/zoo): data, splits and held-out formulas."""

import functools
import gzip
import hashlib
import importlib
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy

from tlcgcnn_jax.bundle import flatten, load_bundle
from tlcgcnn_jax.config import Target, TrainConfig
from tlcgcnn_jax.elements import symbols
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict
from tlcgcnn_jax.losses import normalise
from tlcgcnn_jax.run import Result, fit
from tlcgcnn_jax.splits import Split
from tlcgcnn_jax.textbook import textbook_records
from tlcgcnn_jax.train import Program, train

FOLDER = Path(__file__).parents[1] / "experiments" / "zoo"
MODULES = ("sources", "train", "trials", "table")


@pytest.fixture(scope="module")
def zoo():
    """The scripts, as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
    for name in MODULES:
        del sys.modules[name]


def row(name: str, species: list[str], edge: float = 4.2, **columns) -> dict:
    """A crystal of two atoms, as a row of the data sets."""
    lattice = (np.eye(3) * edge).tolist()
    return {"id": name, "lattice": lattice, "species": species, "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]], **columns}


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as handle:
        handle.writelines(json.dumps(one) + "\n" for one in rows)


def last_digit(formula: str) -> str:
    """Of the hash of a formula as a decimal number."""
    return str(int.from_bytes(hashlib.sha256(formula.encode()).digest(), "big"))[-1]


def composition(species: list[str]) -> frozenset:
    """Elements and their numbers without a common factor."""
    counts = Counter(species)
    return frozenset((element, n // math.gcd(*counts.values())) for element, n in counts.items())


# --- sources.toml -----------------------------------------------------------------------------------------------------


def test_every_source_is_complete(zoo):
    sources = zoo.sources.read_sources()
    assert {"mp-formation-energy", "mp-band-gap", "mp-metal", "mp-elastic", "carbon-energy"} <= set(sources)
    names = list(sources)
    for name, source in sources.items():
        assert source.data and source.licence and source.attribution and source.files and source.targets, name
        assert set(source.starts) <= set(names[: names.index(name)]), f"{name} starts from what comes later"
        for target in source.targets:
            dimensionless = target.kind == "classification" or target.name.startswith("eps_")
            assert bool(target.unit) != dimensionless, f"{name}: {target}"


def test_every_source_finds_its_columns(zoo, shared_data):
    for name, source in zoo.sources.read_sources().items():
        for file in source.files:
            found: set[str] = set()
            for _, one in zip(range(50), zoo.sources.read_rows(shared_data / file), strict=False):
                found |= zoo.sources.labels(one).keys()
            assert {target.name for target in source.targets} <= found, f"{name}: {file}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[x]\nepochs = 3", "no setting epochs"),
        ('[x]\nfiles = ["a"]', "needs targets"),
        ('[x]\nfiles = []\ntargets = []\ntraining = {}\ndata = ""\nlicence = ""\nattribution = ""\nheld_out = "some"',
         "use one of all, textbook, none"),
    ],
)  # fmt: skip
def test_a_bad_source_is_refused(zoo, tmp_path, text, message):
    (tmp_path / "sources.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        zoo.sources.read_sources(tmp_path / "sources.toml")


# --- splits -----------------------------------------------------------------------------------------------------------


def test_a_formula_is_in_the_same_part_of_every_source(zoo):
    formulas = [f"{a}{b}{n}" for a in symbols()[1:12] for b in symbols()[12:20] for n in range(2, 5)]
    others = formulas[::-2] * 2
    parts = {}
    for names in (formulas, others):
        split = zoo.sources.split_by_formula(names)
        rows = np.concatenate([split.train, split.val, split.test])
        assert sorted(rows.tolist()) == list(range(len(names)))
        for part in ("train", "val", "test"):
            for at in getattr(split, part):
                assert parts.setdefault(names[at], part) == part
    expected = {"0": "test", "1": "val"}
    assert parts == {name: expected.get(last_digit(name), "train") for name in formulas}


def test_one_formula_is_split_by_rows(zoo):
    split = zoo.sources.split_by_formula(["C"] * 50)
    assert [len(part) for part in (split.train, split.val, split.test)] == [40, 5, 5]


def test_a_sample_grows_and_does_not_favour_a_part(zoo):
    formulas = [f"{a}{n}{b}" for a in symbols()[1:40] for b in symbols()[40:60] for n in range(2, 5)]
    tenth, half = (zoo.sources.in_sample(formulas, share) for share in (0.1, 0.5))
    assert not np.any(tenth & ~half) and abs(tenth.mean() - 0.1) < 0.02 and abs(half.mean() - 0.5) < 0.03
    tests = np.array([last_digit(name) == "0" for name in formulas])
    assert abs(tests[half].mean() - 0.1) < 0.02


# --- which crystals ---------------------------------------------------------------------------------------------------


def test_repeats_are_taken_once_and_columns_are_made(zoo, tmp_path):
    first = [
        row("a", ["Sc", "Y"], 4.00, k_vrh_gpa=50.0, g_vrh_gpa=20.0),
        row("a-dense", ["Sc", "Y"], 3.80, k_vrh_gpa=70.0, g_vrh_gpa=None),
    ]
    second = [
        row("b", ["Y", "Sc"], 4.01, log10_K_VRH=1.72, log10_G_VRH=1.3),  # volume 0.8 % from that of a
        row("b-wide", ["Sc", "Y"], 4.20, log10_K_VRH=1.5, log10_G_VRH=1.0),
        row("a", ["Sc", "La"], 5.00, log10_K_VRH=1.5, log10_G_VRH=1.0),  # an id that is taken
        row("none", ["Sc", "Lu"]),
        row("c", ["Sc", "Lu"], log10_K_VRH=2.0, log10_G_VRH=1.0),
        row("held-out", ["Ti", "Zr"], log10_K_VRH=2.0, log10_G_VRH=1.0),
    ]
    source = zoo.sources.read_sources()["mp-elastic"]
    write_rows(tmp_path / source.files[0], first)
    write_rows(tmp_path / source.files[1], second)
    write_rows(tmp_path / "moe" / "task.jsonl.gz", [row("x", ["Zr", "Ti"], target=0.0)])
    records, counts = zoo.sources.read_records(source, tmp_path)
    assert [record.id for record in records] == ["a", "a-dense", "b-wide", "c"]
    assert counts == {"read": 8, "without a label": 1, "repeats": 2, "held out": 1, "kept": 4}
    assert records[3].targets == {"k_vrh_gpa": pytest.approx(100), "g_vrh_gpa": pytest.approx(10)}
    assert records[1].targets["k_vrh_gpa"] == 70 and np.isnan(records[1].targets["g_vrh_gpa"])


def test_metals_are_those_without_a_gap(zoo):
    assert zoo.sources.labels({"band_gap_pbe_eV": 0.0})["metal"] == 1
    assert zoo.sources.labels({"band_gap_pbe_eV": 1e-4})["metal"] == 0
    assert "metal" not in zoo.sources.labels({"band_gap_pbe_eV": None})


def test_held_out_formulas_are_gone_from_real_data(zoo, shared_data):
    tasks = [gzip.decompress(path.read_bytes()) for path in (shared_data / "moe").glob("*.jsonl.gz")]
    suite = {composition(json.loads(line)["species"]) for task in tasks for line in task.splitlines()}
    source = zoo.sources.read_sources()["mp-hse-gap"]
    records, counts = zoo.sources.read_records(source, shared_data)
    table = symbols()
    kept = {composition([table[z] for z in record.structure.atomic_numbers]) for record in records}
    textbook = {composition([table[z] for z in record.structure.atomic_numbers]) for record in textbook_records(())}
    assert len(suite) > 1000 and not kept & suite and not kept & textbook
    lines = gzip.decompress((shared_data / source.files[0]).read_bytes()).splitlines()
    found = [composition(json.loads(line)["species"]) for line in lines]
    assert counts["held out"] == sum(one in suite | textbook for one in found)


def test_no_suite_is_not_an_empty_suite(zoo, tmp_path):
    with pytest.raises(InputError, match="must be held out"):
        zoo.sources.held_out_formulas("all", tmp_path)
    assert "ClNa" in zoo.sources.held_out_formulas("textbook", tmp_path)
    assert not zoo.sources.held_out_formulas("none", tmp_path)


# --- a training -------------------------------------------------------------------------------------------------------


def test_a_source_is_trained_without_held_out_formulas_and_shipped(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo.train, "fit", functools.partial(fit, model=toy.SIZES))  # a small network
    name, column = "mp-band-gap", "band_gap_pbe_eV"
    pairs = [(a, b) for a in symbols()[21:31] for b in symbols()[39:45]]
    rows = [row(f"c{i}", [*pair], 3.6 + i / 100, **{column: i / 50}) for i, pair in enumerate(pairs)]
    rows.append(row("salt", ["Na", "Cl"], 3.9, **{column: 5.0}))
    rows.append(row("gas", ["Ar", "Kr"], 40.0, **{column: 9.0}))  # no atom has a neighbour
    write_rows(tmp_path / "data" / "mp_crysxpp" / "mp_crysxpp.jsonl.gz", rows)
    write_rows(tmp_path / "data" / "mp_gap_matbench_subset" / "mp_gap_matbench_subset.jsonl.gz", [])
    write_rows(tmp_path / "data" / "moe" / "task.jsonl.gz", [row("x", [*pairs[0]], target=0.0)])
    call = [name, str(tmp_path / "data"), "--out", str(tmp_path / "runs" / name)]
    assert zoo.train.main([*call, "--pack-only"]) is None
    assert not (tmp_path / "runs" / name).exists()
    call[1] = str(tmp_path / "runs" / "packed")  # where the suite is not known any more
    result = zoo.train.main([*call, "--epochs", "1", "--ship", str(tmp_path / "shipped" / name)])
    assert len(result.predictions.ids) == len(rows) - 3
    assert not {"c0", "salt", "gas"} & set(result.predictions.ids)
    counts = json.loads((tmp_path / "runs" / "packed" / f"{name}.json").read_text())
    assert (counts["without neighbours"], counts["held out"], counts["kept"]) == (1, 2, len(rows) - 3)
    model = load_bundle(tmp_path / "shipped" / name)
    assert len(model.formulas) == len(result.split.train) and all(last_digit(f) not in "01" for f in model.formulas)
    tested = json.loads((tmp_path / "runs" / name / "split.json").read_text())["test"]
    formulas = {f"c{i}": "".join(sorted(pair)) for i, pair in enumerate(pairs)}
    assert sorted(tested) == sorted(name for name, f in formulas.items() if name != "c0" and last_digit(f) == "0")
    card = (tmp_path / "shipped" / name / "README.md").read_text()
    for told in ("CC BY 4.0", "A. Jain", "(2 crystals)", "epochs 1,", "learning_rate 0.004", "![parity](parity.png)"):
        assert told in card, told
    assert {"learning_curve.png", "parity.png"} <= {p.name for p in (tmp_path / "shipped").rglob("*.png")}
    assert f"{result.metrics['test']['mae']:.4f} eV" in zoo.table.table(tmp_path / "shipped")
    assert zoo.train.load_start(name, tmp_path / "runs").formulas == model.formulas


def test_several_starts_make_an_ensemble(zoo, tmp_path, monkeypatch):
    """A network from each, in rounds that start where the one before ended, the head included."""
    monkeypatch.setattr(zoo.train, "split_by_formula", lambda formulas: toy.SPLIT)
    for number, (name, target) in enumerate({"a": toy.ENERGY, "b": Target("other")}.items()):
        replace(toy.source(number), formulas=(f"Known{name}",), targets=(target,)).save(tmp_path / name)
    source = zoo.sources.Source(
        "x", (), (toy.ENERGY,), toy.CONFIG, "", "", "", starts=("a", "b"), rounds=((2, 1), (2, 1))
    )  # fmt: skip
    packed = zoo.sources.Packed(toy.dataset(), {"kept": toy.N, "read": toy.N, "held out": 0})
    result = zoo.train.train(source, packed, tmp_path / "x")
    lines = [[load_bundle(tmp_path / f"x-from-{name}-round-{number}") for number in range(2)] for name in "ab"]
    assert [[one.notes["strategy"] for one in line] for line in lines] == [["go_on"] * 2, ["full", "go_on"]]
    for network, line in zip(result.model.members, lines, strict=True):
        jax.tree.map(np.testing.assert_array_equal, network, line[-1].members[0])
    assert {"Knowna", "Knownb"} < set(result.model.formulas)
    each = np.stack([predict(line[-1], toy.dataset()).mean for line in lines])
    np.testing.assert_allclose(result.predictions.mean, each.mean(0), rtol=1e-5)
    assert [(row["member"], row["epoch"]) for row in result.history] == [(m, e) for m in (0, 1) for e in (1, 2, 3)]
    assert [row["epoch"] > 2 for row in result.history if row["kept"]] == [True, True] and result.model.calibration
    # An epoch at rate zero: what a round starts from.
    still = replace(source.training, learning_rate=1e-30, weight_decay=0.0)
    zoo.train.train(replace(source, name="y", starts=("a",), rounds=((1, 1),), training=still), packed, tmp_path / "y")
    first, second = (load_bundle(tmp_path / f"y-from-a-round-{n}").members[0]["params"] for n in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    with pytest.raises(InputError, match="is not empty"):
        zoo.train.train(source, packed, tmp_path / "x")
    again = zoo.train.train(source, packed, tmp_path / "x", resume=True)
    np.testing.assert_array_equal(again.predictions.mean, result.predictions.mean)
    with pytest.raises(InputError, match="rounds of 2 networks, with 0 starts"):
        replace(source, starts=())


def test_validation_crystals_train_in_the_last_round(zoo, tmp_path, monkeypatch):
    formulas = [f"{a}{b}" for a in symbols()[1:30] for b in symbols()[30:60]]
    split = zoo.sources.split_by_formula(formulas)
    last = zoo.sources.with_validation(split, formulas)
    assert np.array_equal(last.test, split.test) and set(last.val) < set(split.val)
    assert sorted([*last.train, *last.val]) == sorted([*split.train, *split.val])
    assert 0.05 < len(last.val) / len(split.val) < 0.2

    monkeypatch.setattr(zoo.train, "split_by_formula", lambda _: toy.SPLIT)
    monkeypatch.setattr(zoo.train, "with_validation", lambda *_: moved)
    moved = replace(toy.SPLIT, train=np.concatenate([toy.SPLIT.train, toy.SPLIT.val[1:]]), val=toy.SPLIT.val[:1])
    toy.source().save(tmp_path / "a")
    source = zoo.sources.Source(
        "x", (), (toy.ENERGY,), toy.CONFIG, "", "", "", starts=("a",), rounds=((1, 2),), val_trains=True
    )
    packed = zoo.sources.Packed(toy.dataset(), {"kept": toy.N, "read": toy.N, "held out": 0})
    result = zoo.train.train(source, packed, tmp_path / "x")
    assert [row["epoch"] for row in result.history if row["kept"]] == [3] and result.split is moved
    rounds = [json.loads((tmp_path / f"x-from-a-round-{n}" / "split.json").read_text()) for n in range(2)]
    assert [len(one["train"]) for one in rounds] == [len(toy.SPLIT.train), len(moved.train)]
    with pytest.raises(InputError, match="give rounds"):
        replace(source, rounds=())


def test_a_start_that_has_seen_test_formulas_is_refused(zoo, tmp_path):
    seen = next(name for name in ("NaCl", "Si", "GaAs", "ZnS", "CdTe", "LiF", "MgO", "KBr") if last_digit(name) == "0")
    replace(toy.source(), formulas=(seen,)).save(tmp_path / "old")
    with pytest.raises(InputError, match=f"1 formulas that test or validate here, such as {seen}"):
        zoo.train.load_start("old", tmp_path)


def test_errors_of_logarithms(zoo):
    targets = zoo.sources.read_sources()["mp-elastic"].targets
    labels = np.array([[10.0, np.nan], [100.0, 10.0], [1.0, 1.0]])
    said = np.array([[20.0, 5.0], [50.0, 40.0], [9.0, 9.0]])
    metrics = {"targets": {target.name: {"test": {}} for target in targets}}
    split = replace(toy.SPLIT, test=np.array([0, 1]))
    result = Result(SimpleNamespace(targets=targets), metrics, SimpleNamespace(mean=said), split, [])
    found = zoo.train.with_log10_errors(result, labels).metrics["targets"]
    assert found["k_vrh_gpa"]["test"]["mae_log10"] == pytest.approx(math.log10(2))
    assert found["g_vrh_gpa"]["test"]["mae_log10"] == pytest.approx(math.log10(4))
    assert not metrics["targets"]["k_vrh_gpa"]["test"]


# --- trials -----------------------------------------------------------------------------------------------------------


def test_a_trial_differs_from_the_base_in_one_setting(zoo):
    base, *others = zoo.trials.trials(TrainConfig())
    assert base.option == "base" and others[-1].option == "mean of weights"
    for trial in others[:-1]:
        differing = [
            (name, f"{getattr(now, name)}")
            for now, before in ((trial.graph, base.graph), (trial.model, base.model), (trial.training, base.training))
            for name in before.__dataclass_fields__
            if getattr(now, name) != getattr(before, name)
        ]
        assert differing == [(trial.option, trial.value)]


def test_weights_and_their_mean(zoo):
    """The last weights are those of `train`, and the mean is what its formula gives."""
    config = replace(toy.CONFIG, epochs=2, batch_size=8, schedule="constant", warmup=0.0)  # one update an epoch
    split = Split(toy.SPLIT.train, *[np.zeros(0, int)] * 2)
    trained = train(toy.dataset(), split, (toy.ENERGY,), toy.SIZES, config)
    labels = normalise(toy.dataset().targets, (toy.ENERGY,), trained.normaliser)
    program = Program(toy.source().network, (toy.ENERGY,), config).static()
    (first, _), (last, mean) = (
        zoo.trials.train_averaged(toy.dataset(), split.train, labels, program, replace(config, epochs=epochs))
        for epochs in (1, 2)
    )
    decay = zoo.trials.DECAY
    expected = jax.tree.map(
        lambda w0, w1, w2: decay**2 * w0 + decay * (1 - decay) * w1 + (1 - decay) * w2, toy.variables(), first, last
    )
    start, now, wanted = (flatten(tree) for tree in (toy.variables(), last, trained.variables))
    assert any(np.abs(now[name] - start[name]).max() > 1e-3 for name in start)
    for name, array in flatten(mean).items():
        np.testing.assert_allclose(now[name], wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(array, flatten(expected)[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_trials_go_on_where_they_stopped(zoo, tmp_path, monkeypatch):
    """Each trial is made once, over two calls of which the first broke off."""
    made: list[tuple] = []

    def fit(dataset, target, *, config, **_):
        made.append((config.loss, config.seed))
        if made[1:] == [("mse", 0)]:
            raise KeyboardInterrupt
        return SimpleNamespace(metrics={"val": {"mae": 1 + config.seed}, "test": {"mae": 3.0}})

    monkeypatch.setattr(zoo.trials, "fit", fit)
    monkeypatch.setattr(zoo.trials, "averaged", lambda *_: {"last weights": (1.0, 2.0), "mean of weights": (3.0, 4.0)})
    monkeypatch.setattr(zoo.trials, "VALUES", {"loss": ("mse",)})
    monkeypatch.setattr(zoo.trials, "crystals", lambda *_: (toy.dataset(), toy.SPLIT, toy.ENERGY))
    monkeypatch.setattr(sys, "argv", ["trials.py", "DATA", "--out", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt):
        zoo.trials.main()
    zoo.trials.main()
    assert made == [("mae", 0), ("mse", 0), ("mse", 0), ("mae", 1), ("mse", 1)]
    rows = zoo.trials.read_rows(tmp_path / "trials.csv")
    assert [row["option"] for row in rows] == ["base", "loss", "last weights", "mean of weights"] * 2
    assert [row["val_mae"] for row in rows] == ["1", "1", "1.0", "3.0", "2", "2", "1.0", "3.0"]
    assert (tmp_path / "trials.png").stat().st_size > 1000


def test_changes_are_against_the_base_of_the_same_seed(zoo):
    rows = [
        {"option": option, "value": value, "seed": seed, "val_mae": mae, "test_mae": mae}
        for option, value, seed, mae in (
            ("base", "", "0", "0.10"), ("clip", "1.0", "0", "0.09"), ("base", "", "1", "0.20"),
            ("clip", "1.0", "1", "0.22"), ("loss", "mse", "1", "0.30"),
        )
    ]  # fmt: skip
    found = zoo.trials.changes(rows, "val_mae")
    assert found == {"clip 1.0": pytest.approx([-10, 10]), "loss mse": pytest.approx([50])}
    assert "| loss mse | 1 | +50.0 % | +50.0 % |" in zoo.trials.table(rows)
