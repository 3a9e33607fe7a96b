"""A regressor on features: as fitted by hand, the same after a round trip, and refused where it cannot be."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import GAP, ONE_EPOCH, K, records, source

from tlcgcnn_jax.config import GraphConfig, Target
from tlcgcnn_jax.embeddings import embed
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict, predict_rows, with_error_bars
from tlcgcnn_jax.feature_model import TABLE, load_feature_model, make_feature_model
from tlcgcnn_jax.graph_sets import GraphSets, pack_graphs
from tlcgcnn_jax.model_folder import CARD, CONFIG
from tlcgcnn_jax.regressors import fit_regressor
from tlcgcnn_jax.run import fit
from tlcgcnn_jax.zoo import find_sources, load_model, load_source

BULK, LOG = Target(K, "GPa"), Target(K, "GPa", transform="log10")
TRAIN, VAL = np.arange(14), np.arange(14, 18)
OLD = GraphConfig(ties="reference", legacy_padding=True)


@functools.cache
def other():
    """A source on graphs of another kind."""
    config = ONE_EPOCH
    return fit(records(targets=(GAP,)), Target(GAP, "eV"), graph=OLD, model=source().model, config=config).model


@functools.cache
def crystals(*targets):
    return pack_graphs(records(20, targets or (K,)), [*source().graphs, OLD], targets=targets or (K,))


def made(regressor="ridge", targets=(BULK,), sources=None, rows=TRAIN):
    sources = sources or {"energy": source(), "a/b": other()}
    names = (target.name for target in targets)
    return make_feature_model(sources, ("pooled", "hidden"), regressor, crystals(*names), targets, rows)


def with_bars():
    model, labels = made("gp", (LOG,)), np.asarray(crystals(K).datasets[0].targets, float)[VAL]
    return with_error_bars(model, predict_rows(model, crystals(K), VAL), labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_bars().save(tmp_path_factory.mktemp("features") / "model")


def by_hand(regressor, target):
    """The same from its parts."""
    sets = crystals(K)
    x = np.concatenate([embed(one, sets[one.graph]) for one in (source(), other())], 1)
    y = sets.datasets[0].targets[:, 0].astype(float)
    y = np.log10(y) if target.transform == "log10" else y
    return fit_regressor(regressor, x[TRAIN], y[TRAIN]).predict(x)


def test_it_is_the_regressor_on_the_features_of_all_sources():
    mean, _ = by_hand("ridge", BULK)
    found = predict(made(), crystals(K))
    np.testing.assert_allclose(found.values[:, 0], mean, rtol=1e-6)
    assert found.std is None and found.novelty is not None and found.low is None


def test_crystals_are_packed_for_each_source():
    """Raw crystals give what packed ones of both kinds do."""
    np.testing.assert_allclose(predict(made(), records()).values, predict(made(), crystals(K)).values, rtol=1e-6)
    with pytest.raises(InputError, match="source a/b: .*legacy_padding is False, the model's True"):
        predict(made(), crystals(K).datasets[0])


def test_a_gaussian_process_has_standard_deviations_in_the_unit():
    found = predict(made("gp", (LOG,)), crystals(K))
    mean, std = by_hand("gp", LOG)
    # Where the search for the kernel ends depends on rounding, which differs between processors.
    np.testing.assert_allclose(found.values[:, 0], 10**mean, rtol=1e-3)
    np.testing.assert_allclose(found.learnt_std[:, 0], std, rtol=1e-2)
    np.testing.assert_allclose(found.std[:, 0], (10 ** (mean + std) - 10 ** (mean - std)) / 2, rtol=1e-2)


def test_a_round_trip_gives_the_same_bits(folder):
    fresh, loaded = with_bars(), load_model(folder)
    assert (loaded.targets, loaded.layers, loaded.regressor, loaded.calibration) == (
        fresh.targets, fresh.layers, fresh.regressor, fresh.calibration,
    )  # fmt: skip
    assert list(loaded.sources) == ["energy", "a/b"] and loaded.calibration[0].n == 4
    one, again = predict(fresh, crystals(K)), predict(loaded, crystals(K))
    np.testing.assert_array_equal(one.values, again.values)
    np.testing.assert_array_equal(one.std, again.std)
    np.testing.assert_array_equal(one.novelty, again.novelty)


def test_the_folder_holds_no_pickle_and_a_card(folder):
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {CONFIG, CARD, TABLE, "sources/energy/weights.npz", "sources/1_a_b/weights.npz"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".joblib"))]
    card = (folder / CARD).read_text()
    assert f"Regressor gp on network features for {K} (GPa)" in card and "Gaussian process" in card and "a/b" in card


def test_each_target_has_a_regressor_and_its_own_labels():
    """Missing labels of one property cost the other nothing."""
    packed, gap = crystals(K, GAP), Target(GAP, "eV")
    targets = packed.datasets[0].targets.copy()
    targets[[2, 5], 1] = np.nan
    holed = GraphSets(tuple(replace(dataset, targets=targets) for dataset in packed.datasets))
    both = make_feature_model({"energy": source()}, ("pooled",), "ridge", holed, (BULK, gap), TRAIN)
    assert both.y.shape == (14, 2) and np.isnan(both.y).sum() == 2
    for column, target in enumerate((BULK, gap)):
        rows = TRAIN if target is BULK else np.setdiff1d(TRAIN, [2, 5])
        column_alone = GraphSets(tuple(dataset.with_targets((target.name,)) for dataset in packed.datasets))
        alone = make_feature_model({"energy": source()}, ("pooled",), "ridge", column_alone, (target,), rows)
        found, expected = predict(both, packed).values[:, column], predict(alone, packed).values[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_it_is_no_source(folder):
    with pytest.raises(InputError, match="a FeatureModel cannot be a source"):
        load_source(folder)
    source().save(folder.parent / "network")
    assert "network" in find_sources(folder.parent) and "model" not in find_sources(folder.parent)


DAMAGE = {
    "table missing": (lambda f: (f / TABLE).unlink(), "table.npz missing"),
    "table cut short": (lambda f: (f / TABLE).write_bytes(b"PK"), "table.npz: 2 bytes .*copy the whole folder again"),
    "source missing": (lambda f: (f / "sources/energy/config.json").unlink(), "sources/energy: missing, or changed"),
    "source exchanged": (
        lambda f: (f / "sources/energy/config.json").write_bytes((f / "sources/1_a_b/config.json").read_bytes()),
        "sources/energy: missing, or changed",
    ),
    "weights of a source": (lambda f: (f / "sources/energy/weights.npz").write_bytes(b"PK"), "weights.npz: 2 bytes"),
    "unknown regressor": (lambda f: edit(f, regressor="oracle"), "no regressor 'oracle'"),
    "no checksum": (lambda f: edit(f, table_sha256=None), "no checksum of table.npz"),
    "another kind": (lambda f: edit(f, kind="committee"), "parts missing"),
}


def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


@pytest.mark.parametrize("damage, told", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told(folder, tmp_path, damage, told):
    copy = load_feature_model(folder).save(tmp_path / "model")
    damage(copy)
    with pytest.raises(InputError, match=told) as error:
        load_model(copy)
    assert str(copy) in str(error.value)


BAD = {
    "a regressor that there is not": ("oracle", (BULK,), TRAIN, "no regressor 'oracle'; there are: mean, median"),
    "a class": ("ridge", (Target(K, kind="classification"),), TRAIN, "predicts values, not classes"),
    "too few crystals": ("ridge", (BULK,), TRAIN[:4], "4 labelled training crystals: ridge needs 5 or more"),
}


@pytest.mark.parametrize("regressor, targets, rows, told", BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(regressor, targets, rows, told):
    with pytest.raises(InputError, match=told):
        made(regressor, targets, rows=rows)
