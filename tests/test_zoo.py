"""The shipped source model is there, whole, documented, and knows salt from silicon; a user's own are found."""

import socket
from pathlib import Path

import numpy as np
import pytest
from test_import_cgcnn import write
from tiny import ONE_EPOCH, K, records, source

from tlcgcnn_jax import textbook_records, transfer
from tlcgcnn_jax.crystal import formula
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict
from tlcgcnn_jax.model_folder import CARD
from tlcgcnn_jax.zoo import PREDICTORS, find_sources, folder, load_model, load_sources, shipped

NAME = "mp-formation-energy"


@pytest.fixture(scope="module")
def model():
    """The shipped model, loaded with the network closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was asked for"))
        return load_model(NAME)


def test_it_is_shipped():
    assert NAME in shipped()


def test_it_is_of_formation_energies_with_the_default_graph_settings(model):
    (target,) = model.targets
    assert (target.unit, target.kind, target.transform) == ("eV/atom", "regression", "identity")
    assert (model.graph.cutoff, model.graph.neighbours, model.graph.ties) == (8.0, 12, "shell")


# Materials Project (GGA): NaCl -2.1 eV/atom, elemental silicon 0, GaAs -0.4. A quarter of an eV is left to the model,
# and more for silicon, of which no allotrope was trained on.
KNOWN = {"NaCl": (-2.1, 0.25), "Si": (0.0, 0.4), "GaAs": (-0.4, 0.25)}


@pytest.mark.parametrize("name, energy, margin", [(name, *known) for name, known in KNOWN.items()], ids=KNOWN.keys())
def test_it_predicts_known_crystals(model, name, energy, margin):
    (crystal,) = [record for record in textbook_records(()) if record.id.split("-")[-1] == name]
    predicted = predict(model, [crystal]).values
    assert predicted.shape == (1, 1)
    assert predicted[0, 0] == pytest.approx(energy, abs=margin)


def test_its_card_names_data_licence_and_error(model):
    card = (folder() / NAME / CARD).read_text().lower()
    for word in ("data:", "licen", "materials project", "test:", "mae"):
        assert word in card, word
    assert 0 < model.metrics["test"]["mae"] < 0.1
    assert model.notes["crystals trained on"] > 1000


@pytest.mark.parametrize("name", shipped())
def test_every_model_is_small_and_says_where_it_comes_from(name):
    model, card = load_model(name), (folder() / name / CARD).read_text()
    assert sum(path.stat().st_size for path in (folder() / name).iterdir()) < 0.7e6 + 0.5e6 * len(model.members)
    assert all(np.isfinite(leaf).all() for member in model.members for leaf in _leaves(member))
    for note in ("data", "data licence", "licence", "left out", "split", "settings", "made by"):
        assert model.notes[note] and f"- {note}: " in card, note
    assert f'load_model("{name}")' in card
    each = model.metrics.get("targets") or {model.targets[0].name: model.metrics}
    assert set(each) == {target.name for target in model.targets}
    assert all(parts["test"]["n"] > 100 for parts in each.values())


@pytest.mark.parametrize("name", [name for name in shipped() if name != "carbon-energy"])
def test_no_model_knows_a_textbook_formula(name):
    """So that the demo and the textbook set stay a fair test; carbon is all that one source has."""
    textbook = {formula(record.structure.atomic_numbers) for record in textbook_records(())}
    assert load_model(name).formulas and not textbook.intersection(load_model(name).formulas)


def _leaves(tree):
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def test_a_name_that_is_not_shipped_is_answered_by_those_that_are():
    with pytest.raises(InputError, match="mp-nothing: neither a folder nor a shipped model; shipped are: "):
        load_model("mp-nothing")


def test_what_names_no_model_is_told():
    with pytest.raises(InputError, match="the model is None: a folder's path, or the name of a shipped one, was expec"):
        load_model(None)


def test_a_folder_is_loaded_as_it_was_saved(tmp_path):
    source().save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert (again.targets, again.graph, again.model) == (source().targets, source().graph, source().model)
    for one, other in zip(_leaves(again.members[0]), _leaves(source().members[0]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source().save("~/models/own") == tmp_path / "models" / "own"
    assert load_model("~/models/own").targets == source().targets
    assert "own" in find_sources("~/models")


def test_a_model_of_ones_own_goes_before_a_shipped_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source().save(NAME)
    assert load_model(NAME).targets == source().targets
    assert find_sources()[NAME].targets != source().targets
    with pytest.raises(InputError, match="neither a folder nor"):
        load_model(Path("mp-metal"))  # a path is no name


# --- sources of the user's own ------------------------------------------------------------------------


def checkpoint(folder, name):
    """A small checkpoint of the original code under this name."""
    folder.mkdir(exist_ok=True)
    path = write(folder)
    path.with_suffix(".json").rename(folder / f"{name}.json")
    return path.rename(folder / f"{name}.npz")


def test_sources_are_the_shipped_ones_and_those_of_a_folder(tmp_path):
    assert list(find_sources()) == [name for name in shipped() if name not in PREDICTORS]
    source().save(tmp_path / "gap")
    source().save(tmp_path / NAME)  # the name of a shipped one
    checkpoint(tmp_path, "here")
    checkpoint(tmp_path / "below", "deeper")
    np.savez(tmp_path / "table.npz", x=np.zeros(3))  # without a .json it claims to be nothing
    (tmp_path / "notes").mkdir()
    found = find_sources(tmp_path)
    own = {"gap", f"{tmp_path.name}/{NAME}", "here", "below/deeper"}
    assert set(found) == {*find_sources(), *own}
    assert found["gap"].targets == source().targets
    assert found["below/deeper"].targets[0].name == "deeper"
    assert found[NAME].targets[0].name == "formation_energy_per_atom_eV"


@pytest.mark.parametrize("name", PREDICTORS)
def test_what_is_there_to_predict_is_a_source_where_it_is_named(name):
    assert name in shipped() and name not in find_sources()
    assert list(load_sources(name)) == [name]


def test_a_broken_source_is_named_and_left_out(tmp_path, caplog):
    source().save(tmp_path / "gap")
    source().save(tmp_path / "cut")
    (tmp_path / "cut" / "weights.npz").write_bytes(b"PK")
    pair = {"a": source(), "b": source()}
    transfer(records(), pair, "multi_source", K, config=ONE_EPOCH, seeds=1).model.save(tmp_path / "mixed")
    checkpoint(tmp_path, "torn").write_bytes(b"PK")
    caplog.clear()
    assert set(find_sources(tmp_path)) == {*find_sources(), "gap"}
    told = [record.getMessage() for record in caplog.records]
    assert [text.partition(": ")[0] for text in told] == [f"source {n} is left out" for n in ("cut", "mixed", "torn")]
    assert "it is a mixture of sources" in told[1]
    (tmp_path / "gap" / "config.json").unlink()
    with pytest.raises(InputError, match="holds no source model; left out as broken: cut, gap, mixed, torn"):
        find_sources(tmp_path)


def test_checkpoints_that_were_not_imported_are_told(tmp_path, caplog):
    source().save(tmp_path / "gap")
    checkpoint(tmp_path, "tensors")
    (tmp_path / "gap.pth.tar").write_bytes(b"")  # which was imported
    (tmp_path / "tensors.pth.tar").write_bytes(b"")
    assert "gap" in find_sources(tmp_path) and not caplog.text
    (tmp_path / "below").mkdir()
    for name in ("band-gap", "below/energy"):
        (tmp_path / f"{name}.pth.tar").write_bytes(b"")
    find_sources(tmp_path)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "2 checkpoints of PyTorch are not read: band-gap.pth.tar, below/energy.pth.tar; " in told
    assert told.endswith(f"tlcgcnn import-cgcnn {tmp_path}/band-gap.pth.tar --out {tmp_path}/band-gap")


def test_a_folder_without_sources_is_told(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no source model; folders with"):
        find_sources(tmp_path)
    source().save(tmp_path / "gap")
    with pytest.raises(InputError, match=f"gap: is a model itself; give the folder above it, {tmp_path}"):
        find_sources(tmp_path / "gap")
