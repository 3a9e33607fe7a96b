"""Every kind of bad input ends with one message that says where and why, and the right exit status."""

import hashlib
import io
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from tiny import BATCH, GAP, NETWORK, ONE_EPOCH, K, command, records, source, table, write_lines

from tlcgcnn_jax.cli import _tell_skipped
from tlcgcnn_jax.config import ModelConfig
from tlcgcnn_jax.errors import InputError, Skipped
from tlcgcnn_jax.run import transfer
from tlcgcnn_jax.splits import k_fold

HEAD = """data_{name}
_cell_length_a {a}
_cell_length_b {b}
_cell_length_c {b}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
"""
SITES = """loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""
CSCL = "Cs1 Cs 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1\n"


def cif(sites=CSCL, a=4.1, b=4.1, name="bad"):
    return HEAD.format(name=name, a=a, b=b) + SITES + sites


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; gives the one message."""

    def run(*arguments, status=1):
        capsys.readouterr()
        assert command(*arguments) == status
        error = capsys.readouterr().err
        assert error.startswith("tlcgcnn: error: ") and error.count("tlcgcnn:") == 1
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return source().save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert command("prepare", write_lines(folder / "c.jsonl", records()), "--target", K, "--out", folder / "ds") == 0
    return folder / "ds"


# --- crystals -----------------------------------------------------------------------------------------

CRYSTALS = {
    "empty file": ("", "no data_ block was found; this is not a CIF"),
    "label without an element": (
        cif("Mg1 0 0 0 1\nOH1 0.5 0.5 0.5 1\n").replace("_atom_site_type_symbol\n", ""),
        "the element of sites labelled OH1 is not known: add a column _atom_site_type_symbol",
    ),
    "two structures": (cif() + cif(), "2 structures in one CIF: write a file for each"),
    "a site without a place": (cif(CSCL + "H1 H . . . 1\n"), "a site has '.' as its coordinate x"),
    "hydrogens of another atom": (
        cif("Mg1 Mg 0 0 0 1 0\nO1 O 0.5 0.5 0.5 1 1\n").replace(
            "occupancy\n", "occupancy\n_atom_site_attached_hydrogens\n"
        ),
        "hydrogens that belong to a site of another atom have no place",
    ),
    "truncated in the cell": (cif()[:60], "not found; the CIF has no atoms, or was cut short"),
    "truncated in a site": (cif()[:-9], "this CIF cannot be read"),
    "without atoms": (HEAD.format(name="bad", a=4.1, b=4.1), "the CIF has no atoms"),
    "without volume": (cif(a=0), r"the cell has no volume .* three independent vectors was expected"),
    "overlapping atoms": (cif(CSCL + "Cl2 Cl 0.5 0.5 0.501 1\n"), r"site 2 .*site 3.* Å apart.*remove the repeated"),
    "partial occupancy": (cif(CSCL.replace("0 0 0 1", "0 0 0 0.5")), r"partial occupancy \(Cs 0\.5\).*ordered approx"),
    "element beyond the table": (cif(CSCL.replace("Cs1 Cs", "Lr1 Lr")), r"'Lr', which is none of .*Z = 1 to"),
    "isolated atom": (cif("Ar1 Ar 0 0 0 1\n", 40, 40), r"\(Ar\) has no neighbour within 8 Å: raise the cutoff"),
}


def cgcnn_folder(folder, bad, good=8):
    """A folder as the original code takes it: good crystals, and bad ones among them."""
    folder.mkdir()
    texts = {f"good_{i}": cif(a=4 + 0.1 * i, b=4, name=f"good_{i}") for i in range(good)}
    names = [*texts, *bad]
    for name, text in {**texts, **bad}.items():
        (folder / f"{name}.cif").write_text(text)
    (folder / "id_prop.csv").write_text("".join(f"{name},{i}.5\n" for i, name in enumerate(sorted(names))))
    return folder


@pytest.mark.parametrize("verb", ["prepare", "predict"])
@pytest.mark.parametrize("text, reason", CRYSTALS.values(), ids=CRYSTALS.keys())
def test_a_bad_crystal_is_named(refused, tmp_path, model, verb, text, reason):
    folder = cgcnn_folder(tmp_path / "in", {"bad": text}, good=2)
    arguments = (folder, "--target", K) if verb == "prepare" else (model, folder)
    message = refused(verb, *arguments, "--on-error", "raise", "--out", tmp_path / "out")
    assert f"{folder / 'bad.cif'}: " in message and re.search(reason, message)
    assert not (tmp_path / "out").exists()


def test_bad_crystals_among_good_ones_are_left_out_and_listed(tmp_path, model, capsys):
    """In every verb that reads crystals, unless asked otherwise."""
    bad = {f"bad_{i}": text for i, (text, _) in enumerate(CRYSTALS.values())}
    folder = cgcnn_folder(tmp_path / "in", bad, good=16)
    train = ("--target", K, "--epochs", 1, *BATCH)
    assert command("prepare", folder, "--target", K, "--out", tmp_path / "ds") == 0
    assert command("train", folder, *train, *NETWORK, "--out", tmp_path / "run") == 0
    assert command("transfer", folder, *train, "--source", model, "--out", tmp_path / "moved") == 0
    assert command("predict", model, folder, "--out", tmp_path / "p.csv") == 0
    assert capsys.readouterr().err.count(f"{len(bad)} crystals left out, listed in ") == 4
    for where in ("ds/skipped.csv", "run/skipped.csv", "moved/skipped.csv", "p.skipped.csv"):
        rows = {row["id"]: row for row in table(tmp_path / where)}
        assert sorted(rows) == sorted(bad), where
        for name, (_, reason) in zip(bad, CRYSTALS.values(), strict=True):
            assert re.search(reason, rows[name]["reason"]), (where, name)
            assert "--on-error" not in rows[name]["reason"]  # which is in force
            assert rows[name]["where"].endswith(f"{name}.cif")
    good = sorted(f"good_{i}" for i in range(16))
    assert [row["id"] for row in table(tmp_path / "p.csv")] == good
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert sorted(sum(split.values(), [])) == good
    again = ("train", tmp_path / "ds", "--epochs", 1, *NETWORK, *BATCH)
    assert command(*again, "--out", tmp_path / "again") == 0  # the packed dataset still knows them
    assert len(table(tmp_path / "again" / "skipped.csv")) == len(bad)


def test_a_file_name_that_is_no_text_is_listed(tmp_path):
    name = os.fsdecode(b"Na\x81Cl")
    _tell_skipped([Skipped(name, f"{name}.cif", "why")], tmp_path / "skipped.csv")
    assert (tmp_path / "skipped.csv").read_bytes() == b"id,where,reason\r\nNa\\udc81Cl,Na\\udc81Cl.cif,why\r\n"


def test_most_crystals_are_left_out_only_when_that_is_asked_for(refused, tmp_path, model, capsys):
    """A wrong column of ids or the wrong folder looks like many bad crystals."""
    folder = cgcnn_folder(tmp_path / "in", {"bad_1": "", "bad_2": "", "bad_3": ""}, good=2)
    out = ("--out", tmp_path / "p.csv")
    message = refused("predict", model, folder, *out)
    assert "3 of 5 crystals cannot be used; the first: " in message
    assert "--on-error skip goes on with the other 2" in message and not (tmp_path / "p.csv").exists()
    assert command("predict", model, folder, "--on-error", "skip", *out) == 0
    assert "3 crystals left out, listed in" in capsys.readouterr().err


def test_a_packed_dataset_without_its_bad_crystals_is_not_one_without_bad_crystals(refused, tmp_path, model):
    folder = cgcnn_folder(tmp_path / "in", {"bad": ""})
    assert command("prepare", folder, "--target", K, "--out", tmp_path / "ds") == 0
    for verb in (("train", tmp_path / "ds"), ("predict", model, tmp_path / "ds")):
        message = refused(*verb, "--on-error", "raise", "--out", tmp_path / "run")
        assert "was packed without crystals that could not be used, 1 of them" in message


def test_a_split_may_name_crystals_that_are_left_out(tmp_path, caplog):
    folder = cgcnn_folder(tmp_path / "in", {"bad": ""})
    (tmp_path / "split.json").write_text(
        json.dumps({"train": [*(f"good_{i}" for i in range(7)), "bad"], "test": ["good_7"]})
    )
    arguments = ("train", folder, "--target", K, "--epochs", 1, *NETWORK, *BATCH, "--split", tmp_path / "split.json")
    assert command(*arguments, "--out", tmp_path / "run") == 0
    assert "split.json: 1 of its crystals cannot be used and are left out" in caplog.text
    assert len(json.loads((tmp_path / "run" / "split.json").read_text())["train"]) == 7


def test_nothing_but_bad_crystals(refused, tmp_path):
    folder = cgcnn_folder(tmp_path / "in", {"bad": ""}, good=0)
    message = refused("prepare", folder, "--target", K, "--out", tmp_path / "out")
    assert "no crystal of 1 could be used" in message and "bad.cif" in message


# --- ids and labels -----------------------------------------------------------------------------------


def without(key, rows):
    return [{k: v for k, v in row.items() if k != key} if i == 1 else row for i, row in enumerate(rows)]


def with_label(value):
    return lambda rows: [{**row, K: value} if i == 1 else row for i, row in enumerate(rows)]


ROWS = {
    "no id at all": (
        lambda rows: [{"name": row.pop("code"), **row} for row in rows],
        r"c\.jsonl:1: there is no id in column 'code' \(--id-column\); the columns are name",
    ),
    "classes in words": (
        lambda rows: [{**row, K: "Metal"} for row in rows],
        rf"{K} is 'Metal', not a number; classes are written 0, 1, … and learnt with --task classification [^;]*$",
    ),
    "missing id": (lambda rows: without("code", rows), r"c\.jsonl:2: there is no id in column 'code'"),
    "duplicated id": (lambda rows: [*rows, rows[0]], r"c\.jsonl:4: the id 'a' was already taken by .*:1; .*rename"),
    "target missing": (lambda rows: without(K, rows), rf"c\.jsonl:2 \(id 'b'\): {K} missing .*--on-error skip"),
    "target null": (with_label(None), rf"c\.jsonl:2 \(id 'b'\): {K} missing .*--on-error skip"),
    "target not a number": (with_label("high"), rf"c\.jsonl:2 \(id 'b'\): {K} is 'high', not a number; .*--on-error"),
    "target infinite": (with_label(float("inf")), rf"c\.jsonl:2 \(id 'b'\): {K} is infinite; .*--on-error skip"),
    "no such column": (lambda rows: [{"gap": row.pop(K), **row} for row in rows], f"no column {K}.* gap"),
    "not an object": (lambda rows: [*rows, 7], r"c\.jsonl:4: found 7; expected a JSON object"),
}


@pytest.mark.parametrize("change, message", ROWS.values(), ids=ROWS.keys())
def test_a_bad_row_is_named(refused, tmp_path, change, message):
    lattice = np.diag([4.1] * 3).tolist()
    crystal = {"lattice": lattice, "species": ["Cs", "Cl"], "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]]}
    rows = change([{"code": name, K: float(i), **crystal} for i, name in enumerate("abc")])
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("prepare", tmp_path / "c.jsonl", "--id-column", "code", "--target", K, "--on-error", "raise")
    assert re.search(message, refused(*arguments, "--out", tmp_path / "out"))


SOURCES = {
    "empty folder": (lambda folder: folder, r"in: found an empty folder; expected id_prop\.csv"),
    "nothing there": (lambda folder: folder / "x.cif", r"x\.cif: there is no such file or folder"),
    "textbook without that property": (lambda _: "textbook", "textbook: no property k_vrh; there are band_gap_ev"),
}


@pytest.mark.parametrize("name, message", SOURCES.values(), ids=SOURCES.keys())
def test_a_bad_source_is_named(refused, tmp_path, name, message):
    (tmp_path / "in").mkdir()
    found = refused("train", name(tmp_path / "in"), "--target", "k_vrh", "--out", tmp_path / "out")
    assert re.search(message, found)


def test_an_id_without_a_file(refused, tmp_path):
    folder = cgcnn_folder(tmp_path / "in", {})
    (folder / "good_3.cif").unlink()
    assert "id_prop.csv:4: id 'good_3' has no file good_3.cif" in refused(
        "prepare", folder, "--target", K, "--on-error", "raise", "--out", tmp_path / "out"
    )


# --- labels and splits that a run refuses ---------------------------------------------------------------

RUNS = {
    "logarithm of a negative label": (
        ("--target", "low", "--transform", "log10", "--on-error", "raise"),
        r"low: transform log10 needs positive values, found -?\S+ \(\S+; \d+ in all\)",
    ),
    "half a class": (("--target", "half", "--task", "classification"), r"half: class 0\.5 found: classes are whole"),
    "sizes beyond the crystals": (("--target", K, "--train-size", 19, "--test-size", 9), "more than the 20 crystals"),
    "nothing to train on": (("--target", K, "--train-size", 0), "nothing to train on"),
    "split with an unknown id": (("--target", K, "--split", "SPLIT"), r"split\.json names nobody, not in the dataset"),
    "no split file": (("--target", K, "--split", "absent.json"), "absent.json cannot be read"),
    "diverging": (("--target", K, "--learning-rate", 1e30, "--epochs", 5, *NETWORK, *BATCH), "lower the learning rate"),
}


@pytest.mark.parametrize("arguments, message", RUNS.values(), ids=RUNS.keys())
def test_a_run_that_cannot_be_is_refused(refused, tmp_path, arguments, message):
    crystals = write_lines(tmp_path / "c.jsonl", records(), low=[-1.0] * 20, half=[0.5] * 20)
    (tmp_path / "split.json").write_text('{"train": ["nobody"]}')
    arguments = [tmp_path / "split.json" if argument == "SPLIT" else argument for argument in arguments]
    assert re.search(message, refused("train", crystals, *arguments, "--out", tmp_path / "out"))
    assert (tmp_path / "out").exists() == ("--epochs" in arguments)  # nothing is in the way of a second try


def test_fewer_crystals_than_folds():
    with pytest.raises(InputError, match="4 crystals for 5 folds: use at most 4 folds, or more crystals"):
        k_fold(4, folds=5, seed=0)


# --- datasets and models ------------------------------------------------------------------------------


def test_a_dataset_with_other_graph_settings(refused, tmp_path, model):
    crystals = write_lines(tmp_path / "c.jsonl", records())
    assert command("prepare", crystals, "--target", K, "--cutoff", 6, "--out", tmp_path / "ds") == 0
    for arguments in (("predict", model, tmp_path / "ds"), ("transfer", tmp_path / "ds", "--source", model)):
        message = refused(*arguments, "--out", tmp_path / "out")
        assert "cutoff is 6.0, the model's 8.0" in message and "prepare it again" in message


@pytest.mark.parametrize("name", ["dataset.json", "crystals.json", "targets.npy", "senders.npy"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_damaged_dataset(refused, tmp_path, model, name, damage):
    crystals = write_lines(tmp_path / "c.jsonl", records(4))
    assert command("prepare", crystals, "--target", K, "--out", tmp_path / "ds") == 0
    break_file(tmp_path / "ds" / name, damage)
    message = refused("predict", model, tmp_path / "ds", "--out", tmp_path / "p.csv")
    assert name in message and "pack the dataset again" in message


def break_file(path, damage):
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BUNDLES = {
    "config missing": ("config.json", "missing", r"not a whole model: config\.json missing \(found: README\.md"),
    "weights missing": ("weights.npz", "missing", r"not a whole model: weights\.npz missing \(found: README\.md"),
    "config cut short": ("config.json", "cut short", r"config\.json: damaged"),
    "weights cut short": ("weights.npz", "cut short", r"weights\.npz: .*cut short.*copy the whole folder again"),
}


@pytest.mark.parametrize("name, damage, reason", BUNDLES.values(), ids=BUNDLES.keys())
def test_a_model_that_is_not_whole(refused, tmp_path, dataset, name, damage, reason):
    folder = source().save(tmp_path / "model")
    break_file(folder / name, damage)
    for arguments in (("predict", folder, dataset), ("transfer", dataset, "--source", folder)):
        message = refused(*arguments, "--out", tmp_path / "out")
        assert str(folder) in message and re.search(reason, message)


def rewrite(folder, change):
    """Change the weights and their checksum, as one who knows the format could."""
    with np.load(folder / "weights.npz") as arrays:
        changed = change(dict(arrays))
    data = io.BytesIO()
    np.savez(data, **changed)
    (folder / "weights.npz").write_bytes(data.getvalue())
    config = json.loads((folder / "config.json").read_text())
    config["weights_sha256"] = hashlib.sha256(data.getvalue()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def rename(folder, section, name, value):
    config = json.loads((folder / "config.json").read_text())
    config[section][name] = value
    (folder / "config.json").write_text(json.dumps(config))


BIAS = "0/params/conv_0/bias"
MISFITS = {
    "array of another shape": (lambda f: rewrite(f, lambda a: {**a, BIAS: a[BIAS][:-2]}), r"conv_0/bias.*\(14,\)"),
    "array missing": (lambda f: rewrite(f, lambda a: {n: v for n, v in a.items() if n != BIAS}), "conv_0/bias"),
    "one array too many": (lambda f: rewrite(f, lambda a: {**a, "0/params/x": np.zeros(3)}), "params/x"),
    "other width": (lambda f: rename(f, "model", "width", 16), r"embedding|conv_0"),
    "other convolutions": (lambda f: rename(f, "model", "convolutions", 2), "conv_1"),
    "unknown setting": (lambda f: rename(f, "graph", "radius", 8), "no setting radius"),
    "setting of another type": (lambda f: rename(f, "graph", "cutoff", "far"), "'far': float was expected"),
}


@pytest.mark.parametrize("change, reason", MISFITS.values(), ids=MISFITS.keys())
def test_a_model_whose_parts_do_not_fit(refused, tmp_path, dataset, change, reason):
    folder = source().save(tmp_path / "model")
    change(folder)
    for arguments in (("predict", folder, dataset), ("transfer", dataset, "--source", folder)):
        message = refused(*arguments, "--out", tmp_path / "out")
        assert str(folder) in message and re.search(reason, message)


def test_a_source_with_other_convolutions_lists_the_differences():
    deeper = replace(source(), model=ModelConfig(width=8, convolutions=2, head_width=8))
    with pytest.raises(InputError, match=r"(?s)does not fit the network:.*- params/conv_1/bias \(16,\): not in the so"):
        transfer(records(), deeper, "full", K, config=ONE_EPOCH, seeds=1)
    narrow = replace(source(), model=ModelConfig(width=4, convolutions=1, head_width=8))
    with pytest.raises(InputError, match=r"params/embedding/kernel: \(\d+, 8\) in the source, \(\d+, 4\) needed"):
        transfer(records(), narrow, "full", K, config=ONE_EPOCH, seeds=1)


STRATEGIES = {
    "classes for a regressor": (("--strategy", "features:svr", "--task", "classification"), "predicts values, not cla"),
    "too few rows for a regressor": (
        ("--strategy", "features:svr", "--train-size", 4), "4 labelled training crystals: svr needs 5",
    ),
    "a regressor that learns at a rate": (("--strategy", "features:svr", "--rate", "*=0.5"), "trains no network"),
    "too few rows to choose by": (
        ("--source", "mp-formation-energy", "--train-size", 9), "9 labelled training crystals: at least 10",
    ),
    "a mixture of one": (("--strategy", "multi_source"), "multi_source joins several sources, one was given"),
    "one source twice": (("--source", "MODEL"), "is given twice"),
    "a layer that the source lacks": (("--strategy", "freeze:conv_3"), "no strategy 'freeze:conv_3'"),
    "classes by scale and shift": (("--strategy", "keep_head", "--task", "classification"), "classes cannot be fitted"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, reason", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_a_strategy_that_cannot_be_is_refused(refused, tmp_path, model, arguments, reason):
    """Before anything is written."""
    hard = [float(record.targets[K] > 100) for record in records()]
    crystals = write_lines(tmp_path / "c.jsonl", records(), hard=hard)
    target = "hard" if "classification" in arguments else K
    given = [model if argument == "MODEL" else argument for argument in arguments]
    found = refused("transfer", crystals, "--target", target, "--source", model, *given, "--out", tmp_path / "out")
    assert re.search(reason, found) and not (tmp_path / "out").exists()


def test_a_model_that_is_not_a_source(refused, tmp_path, dataset, model):
    made = ("transfer", dataset, "--source", model, "--strategy", "features:ridge", "--out", tmp_path / "run")
    assert command(*made) == 0
    found = refused("transfer", dataset, "--source", tmp_path / "run", "--out", tmp_path / "out")
    assert f"{tmp_path / 'run'}: a FeatureModel cannot be a source" in found


def test_a_model_that_is_not_there(refused, tmp_path, dataset):
    message = refused("transfer", dataset, "--source", "mp-nothing", "--out", tmp_path / "out")
    assert "mp-nothing: neither a folder nor a shipped model; shipped are: " in message
    message = refused("predict", tmp_path, dataset, "--out", tmp_path / "out")
    assert f"{tmp_path}: not a whole model" in message and "an empty folder" in message


# --- output -------------------------------------------------------------------------------------------


def below_a_file(folder):
    (folder / "file").write_text("mine")
    return folder / "file" / "out"


def a_file(folder):
    (folder / "file").write_text("mine")
    return folder / "file"


def a_full_folder(folder):
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("mine")
    return folder / "full"


OUTPUTS = {
    "prepare below a file": ("prepare", below_a_file, "cannot write|is not a packed dataset"),
    "prepare onto a file": ("prepare", a_file, "not a packed dataset.*choose another folder"),
    "prepare into another's folder": ("prepare", a_full_folder, "not a packed dataset.*choose another folder"),
    "train below a file": ("train", below_a_file, "cannot be written: Not a directory; choose another"),
    "train onto a file": ("train", a_file, "is a file; give a folder"),
    "train into another's folder": ("train", a_full_folder, "exists and is not empty; give another folder"),
    "transfer below a file": ("transfer", below_a_file, "cannot be written: Not a directory"),
    "transfer into another's folder": ("transfer", a_full_folder, "exists and is not empty; give another folder"),
    "predict below a file": ("predict", below_a_file, "cannot be written: .*; choose another"),
    "predict onto a folder": ("predict", a_full_folder, "is a folder; name a file"),
    "report below a file": ("report", below_a_file, "cannot be written"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dataset):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert command("train", dataset, *NETWORK, *BATCH, "--epochs", 1, "--out", folder) == 0
    return folder


@pytest.mark.parametrize("verb, place, message", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_output_that_cannot_be_written(refused, tmp_path, dataset, model, finished, verb, place, message):
    crystals, out = write_lines(tmp_path / "c.jsonl", records(6)), place(tmp_path)
    arguments = {
        "prepare": (crystals, "--target", K),
        "train": (crystals, "--target", K),
        "transfer": (dataset, "--source", model),
        "predict": (model, crystals),
        "report": (finished,),
    }[verb]
    found = refused(verb, *arguments, "--out", out)
    assert str(out) in found and re.search(message, found)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != crystals]
    assert [path.read_text() for path in files] == ["mine"]  # nothing touched, nothing left behind


def test_a_second_run_does_not_overwrite_the_first(refused, finished, dataset):
    before = (finished / "metrics.json").read_bytes()
    found = refused("train", dataset, *NETWORK, *BATCH, "--epochs", 1, "--out", finished)
    assert f"{finished}: exists and is not empty; give another folder" in found
    assert (finished / "metrics.json").read_bytes() == before


def test_predicting_needs_no_labels_but_training_does(refused, tmp_path, model):
    crystals = write_lines(tmp_path / "c.jsonl", records(4, (GAP,)))
    assert command("predict", model, crystals, "--out", tmp_path / "p.csv") == 0
    assert f"no column {K}" in refused("transfer", crystals, "--source", model, "--target", K, "--out", tmp_path / "o")
