"""The mean of models: its weights, its variance, its folder."""

import numpy as np
import pytest
from tiny import GAP, MODEL, ONE_EPOCH, K, records, source

from tlcgcnn_jax.committee import Committee
from tlcgcnn_jax.config import Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict, predict_rows, with_error_bars
from tlcgcnn_jax.feature_model import make_feature_model
from tlcgcnn_jax.graph_sets import pack_graphs
from tlcgcnn_jax.model_folder import CARD, CONFIG
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.zoo import load_model

LOG = Target(K, "GPa", transform="log10")
ROWS, HELD = np.arange(14), np.arange(14, 20)


@pytest.fixture(scope="module")
def crystals():
    return pack_graphs(records(), source().graphs, targets=(K,))


@pytest.fixture(scope="module")
def parts(crystals):
    """An ensemble of networks, a regressor with a standard deviation, and one without."""
    networks = fit(records(), LOG, seeds=2, model=MODEL, config=ONE_EPOCH).model
    kinds = {
        name: make_feature_model({"gap": source()}, ("pooled",), name, crystals, (LOG,), ROWS)
        for name in ("gp", "ridge")
    }
    return {"networks": networks, **kinds}


def test_every_part_has_the_same_weight(parts, crystals):
    said = {name: predict(part, crystals) for name, part in parts.items()}
    found = predict(Committee(parts), crystals)
    np.testing.assert_allclose(found.mean, np.mean([one.mean for one in said.values()], 0))
    assert len(found.members) == 3


def test_the_variance_is_that_of_a_mixture(parts, crystals):
    """The mean of the variances that there are, and the one between the parts; all of it of the logarithm."""
    said = [predict(part, crystals) for part in parts.values()]
    found = predict(Committee(parts), crystals)
    within = np.mean([said[0].learnt_std[:, 0] ** 2, said[1].learnt_std[:, 0] ** 2], 0)
    between = np.var([np.log10(one.values[:, 0]) for one in said], axis=0, ddof=1)
    np.testing.assert_allclose(found.learnt_std[:, 0], np.sqrt(within + between), rtol=1e-6)
    assert (found.std[:, 0] > found.members[:, :, 0].std(0, ddof=1)).all()


def test_a_round_trip_gives_the_same(parts, crystals, tmp_path):
    whole = Committee(parts, {"test": {"mae": 1.5}}, {"licence": "MIT"}, ("NaCl",))
    labels = np.asarray(crystals.datasets[0].targets, float)[HELD]
    whole = with_error_bars(whole, predict_rows(whole, crystals, HELD), labels)
    again = load_model(whole.save(tmp_path / "model"))
    assert isinstance(again, Committee) and list(again.parts) == list(parts)
    assert (again.targets, again.metrics, again.notes, again.formulas) == ((LOG,), {"test": {"mae": 1.5}},
                                                                          {"licence": "MIT"}, ("NaCl",))  # fmt: skip
    assert again.calibration == whole.calibration and again.calibration[0].n == 6
    one, other = predict(whole, crystals), predict(again, crystals)
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.std, other.std)
    np.testing.assert_array_equal(one.novelty, other.novelty)
    card = (tmp_path / "model" / CARD).read_text()
    assert f"Committee for {K} (GPa)" in card and "networks, gp, ridge" in card and "licence: MIT" in card


def test_a_committee_of_nothing_or_of_different_targets_is_refused(parts):
    with pytest.raises(InputError, match="two or more models of the same targets: there is none"):
        Committee({})
    with pytest.raises(InputError, match=f"networks predicts {K}; gap predicts {GAP}"):
        Committee({"networks": parts["networks"], "gap": source()})


DAMAGE = {
    "a part missing": (lambda f: (f / "parts/1/config.json").unlink(), "parts/1: missing, or changed since"),
    "parts exchanged": (
        lambda f: (f / "parts/1/config.json").write_bytes((f / "parts/2/config.json").read_bytes()),
        "parts/1: missing, or changed since",
    ),
    "weights of a part": (lambda f: (f / "parts/0/weights.npz").write_bytes(b"PK"), "weights.npz: 2 bytes"),
    "settings cut short": (lambda f: (f / CONFIG).write_bytes((f / CONFIG).read_bytes()[:90]), "missing|damaged"),
}


@pytest.mark.parametrize("damage, told", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told(parts, tmp_path, damage, told):
    folder = Committee(parts).save(tmp_path / "model")
    damage(folder)
    with pytest.raises(InputError, match=told) as error:
        load_model(folder)
    assert str(folder) in str(error.value)


def test_it_does_not_take_the_place_of_something_else(parts, tmp_path):
    (tmp_path / CARD).write_text("mine")
    with pytest.raises(InputError, match="of something else; give another folder"):
        Committee(parts).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CARD]
