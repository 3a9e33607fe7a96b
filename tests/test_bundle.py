"""A saved model comes back bit for bit, and a damaged folder is told by the name of the file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import toy

from tlcgcnn_jax.bundle import WEIGHTS, Model, flatten, load_bundle, unflatten
from tlcgcnn_jax.config import GraphConfig, Target
from tlcgcnn_jax.error_bars import ErrorBar
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.losses import Normaliser
from tlcgcnn_jax.model_folder import CARD, CONFIG
from tlcgcnn_jax.novelty import fit_novelty


def model() -> Model:
    return Model(
        GraphConfig(places=3),
        toy.SIZES,
        (Target("k_vrh", "GPa", transform="log10"),),
        Normaliser(*np.array([[1.2345678], [1 / 3], [-0.1], [np.nan]], np.float32)),
        (toy.variables(moved=True), toy.variables(seed=1)),
        {"test": {"mae": 12.5, "n": 24669.0}},
        {"data": "made up", "licence": "MIT"},
    )


@pytest.fixture
def folder(tmp_path):
    return model().save(tmp_path / "model")


def test_round_trip_is_bitwise(folder):
    saved, loaded = model(), load_bundle(folder)
    assert (loaded.graph, loaded.model, loaded.targets) == (saved.graph, saved.model, saved.targets)
    assert (loaded.metrics, loaded.notes) == (saved.metrics, saved.notes)
    for ours, theirs in zip(loaded.normaliser, saved.normaliser, strict=True):
        assert ours.tobytes() == theirs.tobytes() and ours.dtype == theirs.dtype
    assert len(loaded.members) == 2
    for ours, theirs in zip(loaded.members, saved.members, strict=True):
        assert flatten(ours).keys() == flatten(theirs).keys()
        for path, array in flatten(theirs).items():
            assert flatten(ours)[path].tobytes() == array.tobytes(), path
            assert flatten(ours)[path].dtype == np.float32


def test_card_tells_what_a_reader_needs(folder):
    card = (folder / CARD).read_text()
    for words in ("k_vrh (GPa)", "2 members", "12 neighbours within 8 Å", "licence: MIT", "test: mae 12.5, n 24,669"):
        assert words in card


def test_only_its_own_files_are_there(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD, CONFIG, WEIGHTS])


def test_a_model_is_renewed(folder):
    (folder / "test_results.csv").write_text("id\n")
    other = Model(GraphConfig(), toy.SIZES, (toy.ENERGY,), Normaliser(np.zeros(1), np.ones(1)), (toy.variables(),))
    assert load_bundle(other.save(folder)).targets == (toy.ENERGY,)
    assert (folder / "test_results.csv").exists()


def knowing() -> Model:
    """With all that a model may know of the crystals it was trained and validated on."""
    bars = (ErrorBar(0.9, 1.25, True, 40, 0.02),)
    seen = fit_novelty(np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32))
    return replace(model(), formulas=("ClNa", "Si"), calibration=bars, novelty=seen)


def test_what_it_knows_of_its_crystals_comes_back(tmp_path):
    saved, loaded = knowing(), load_bundle(knowing().save(tmp_path / "model"))
    assert (loaded.formulas, loaded.calibration) == (saved.formulas, saved.calibration)
    for name, array in saved.novelty.arrays().items():
        np.testing.assert_array_equal(loaded.novelty.arrays()[name], array, err_msg=name)
    assert "error bars of k_vrh: 90 % interval: ± 1.25 standard deviations" in (tmp_path / "model" / CARD).read_text()
    model().save(tmp_path / "model")  # what an earlier model knew does not stay behind
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted([CARD, CONFIG, WEIGHTS])
    assert load_bundle(tmp_path / "model").novelty is None


def test_the_same_model_is_the_same_bytes(tmp_path):
    one, other = knowing().save(tmp_path / "one"), knowing().save(tmp_path / "other")
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_a_model_of_the_first_format_is_read(folder):
    edit(folder, lambda c: [c.pop(name) for name in ("kind", "calibration")])
    loaded = load_bundle(folder)
    assert (loaded.formulas, loaded.calibration, loaded.novelty) == ((), (), None)


LOST = {
    "no novelty": (lambda f: (f / "novelty.npz").unlink(), "novelty.npz: 0 bytes .*missing"),
    "formulas cut short": (lambda f: cut(f / "formulas.txt.gz"), "formulas.txt.gz: .*cut short"),
    "an error bar too many": (lambda f: edit(f, lambda c: c["calibration"].append(None)), "2 entries for 1 targets"),
    "half an error bar": (lambda f: edit(f, lambda c: c["calibration"][0].pop("n")), "calibration: ErrorBar needs n"),
}


@pytest.mark.parametrize(("damage", "told"), LOST.values(), ids=LOST)
def test_damage_to_what_it_knows_is_told(tmp_path, damage, told):
    folder = knowing().save(tmp_path / "model")
    damage(folder)
    with pytest.raises(InputError, match=told) as error:
        load_bundle(folder)
    assert str(folder) in str(error.value)


def edit(folder, change):
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "missing"),
    "no settings": (lambda f: (f / CONFIG).unlink(), CONFIG, "missing"),
    "weights cut short": (lambda f: cut(f / WEIGHTS), WEIGHTS, "cut short"),
    "one bit": (lambda f: flip(f / WEIGHTS), WEIGHTS, "changed"),
    "weights of another model": (lambda f: np.savez(f / WEIGHTS, a=np.zeros(3)), WEIGHTS, "changed"),
    "settings cut short": (lambda f: cut(f / CONFIG), CONFIG, "damaged"),
    "settings that are none": (lambda f: (f / CONFIG).write_text("[1, 2]"), CONFIG, "damaged"),
    "not text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), CONFIG, "damaged"),
    "no targets": (lambda f: edit(f, lambda c: c.pop("targets")), CONFIG, "targets"),
    "unknown setting": (lambda f: edit(f, lambda c: c["graph"].update(radius=8.0)), CONFIG, "radius"),
    "bad setting": (lambda f: edit(f, lambda c: c["graph"].update(cutoff=-1.0)), CONFIG, "must be positive"),
    "another width": (lambda f: edit(f, lambda c: c["model"].update(width=16)), WEIGHTS, "conv_0"),
    "more convolutions": (lambda f: edit(f, lambda c: c["model"].update(convolutions=3)), WEIGHTS, "conv_2"),
    "fewer convolutions": (lambda f: edit(f, lambda c: c["model"].update(convolutions=1)), WEIGHTS, "conv_1"),
    "another target": (
        lambda f: edit(f, lambda c: c["targets"].append({"name": "gap"})), WEIGHTS, "normaliser/mean"
    ),
    "other classes": (
        lambda f: edit(f, lambda c: c["targets"][0].update(kind="classification", transform="identity")),
        WEIGHTS, "head/output",
    ),
    "more members": (lambda f: edit(f, lambda c: c.update(members=3)), WEIGHTS, "missing"),
    "no member": (lambda f: edit(f, lambda c: c.update(members=0)), WEIGHTS, "no member"),
    "of a later version": (lambda f: edit(f, lambda c: c.update(format=99)), CONFIG, "99"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "named", "told"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told(folder, damage, named, told):
    damage(folder)
    with pytest.raises(InputError) as error:
        load_bundle(folder)
    assert str(folder) in str(error.value)
    assert named in str(error.value) and told in str(error.value)


def test_not_a_model(tmp_path):
    with pytest.raises(InputError, match="an empty folder"):
        load_bundle(tmp_path)
    (tmp_path / "POSCAR").write_text("NaCl")
    with pytest.raises(InputError, match="POSCAR"):
        load_bundle(tmp_path)
    with pytest.raises(InputError, match="no such model folder"):
        load_bundle(tmp_path / "absent")
    with pytest.raises(InputError, match="no such model folder"):
        load_bundle(tmp_path / "POSCAR")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        model().save(tmp_path / "file" / "model")


def test_flatten_and_back():
    tree = toy.variables()
    again = unflatten(flatten(tree))
    assert flatten(again).keys() == flatten(tree).keys()
    assert again["params"]["conv_0"]["bias"] is tree["params"]["conv_0"]["bias"]


@pytest.mark.parametrize("name", [CONFIG, "README.md"])
def test_files_of_something_else_are_left_alone(folder, tmp_path, name):
    other = tmp_path / "other"
    other.mkdir()
    (other / name).write_text("mine")
    with pytest.raises(InputError, match="of something else; give another folder"):
        load_bundle(folder).save(other)
    assert [path.name for path in other.iterdir()] == [name] and (other / name).read_text() == "mine"
