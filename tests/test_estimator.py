"""The regressor behaves as scikit-learn expects, on crystals."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from tiny import GAP, ONE_EPOCH, K, records, source

from tlcgcnn_jax import CGCNNRegressor
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.evaluate import predict
from tlcgcnn_jax.run import transfer
from tlcgcnn_jax.splits import random_split

CRYSTALS = records(18)
MODULI = np.array([record.targets[K] for record in CRYSTALS])
SMALL = {"width": 8, "convolutions": 1, "head_width": 8, "epochs": 1, "batch_size": 8}


def structures(crystals):
    from pymatgen.core import Structure

    cells = [record.structure for record in crystals]
    return [Structure(cell.lattice, cell.atomic_numbers.tolist(), cell.frac_coords) for cell in cells]


def object_array(crystals):
    array = np.empty(len(crystals), object)
    for row, crystal in enumerate(crystals):
        array[row] = crystal
    return array


def frame(crystals):
    import pandas as pd

    return pd.DataFrame({"structure": structures(crystals), "composition": "x"})


@pytest.fixture(scope="module")
def fitted():
    return CGCNNRegressor(**SMALL).fit(CRYSTALS, MODULI)


KINDS = {
    "records": list,
    "crystals": lambda crystals: [record.structure for record in crystals],
    "structures": structures,
    "object array": object_array,
    "object array of structures": lambda crystals: object_array(structures(crystals)),
    "frame": frame,
    "column": lambda crystals: frame(crystals)["structure"],
    "records with one id": lambda crystals: [type(r)("same", r.structure, {}) for r in crystals],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_crystal_gives_the_same(fitted, kind):
    expected = fitted.predict(CRYSTALS)
    assert expected.shape == (18,) and expected.dtype == np.float64
    np.testing.assert_allclose(fitted.predict(kind(CRYSTALS)), expected, rtol=1e-5)


def test_fit_does_not_care_for_the_kind_either(fitted):
    again = CGCNNRegressor(**SMALL).fit(object_array(structures(CRYSTALS)), MODULI.tolist())
    np.testing.assert_allclose(again.predict(CRYSTALS), fitted.predict(CRYSTALS), rtol=1e-4)


def test_it_is_a_run_without_test_part(fitted):
    """The same numbers as `transfer` with the same split; labels of the records are not looked at."""
    for val_fraction, parts in ((0.2, (14, 4, 0)), (0, (18, 0, 0))):
        regressor = CGCNNRegressor(source(), "frozen", epochs=1, batch_size=8, val_fraction=val_fraction)
        regressor.fit([type(r)(r.id, r.structure, {GAP: 1.0}) for r in CRYSTALS], MODULI)
        split = regressor.result_.split
        assert (len(split.train), len(split.val), len(split.test)) == parts
        expected = transfer(
            CRYSTALS, source(), "frozen", K, split=random_split(18, 0, *map(int, parts)),
            config=type(ONE_EPOCH)(epochs=1, batch_size=8, learning_rate=2e-3), seeds=1,
        )  # fmt: skip
        np.testing.assert_array_equal(np.sort(expected.split.train), np.sort(split.train))
        np.testing.assert_allclose(regressor.predict(CRYSTALS), predict(expected.model, CRYSTALS).mean[:, 0], rtol=1e-5)


def test_labels_that_hide_in_the_records_do_not_leak(fitted):
    again = CGCNNRegressor(**SMALL).fit(CRYSTALS, MODULI[::-1])
    assert np.abs(again.predict(CRYSTALS) - fitted.predict(CRYSTALS)).max() > 1e-3


def test_parameters_go_round():
    given = {"source": "some-name", "strategy": "head", "epochs": 3, "seeds": 2, "multipliers": (("conv_*", 0.1),)}
    regressor = CGCNNRegressor(**given)
    assert given.items() <= regressor.get_params().items()
    assert clone(regressor).get_params() == regressor.get_params()
    assert regressor.set_params(epochs=5).epochs == 5
    with pytest.raises(ValueError, match="no_such"):
        regressor.set_params(no_such=1)


def test_nothing_is_checked_or_loaded_before_fit():
    regressor = CGCNNRegressor(source="no-such-model", epochs=-1, transform="cube")
    assert not [name for name in vars(regressor) if name.endswith("_")]
    with pytest.raises(NotFittedError):
        regressor.predict(CRYSTALS)
    with pytest.raises(InputError, match="no-such-model"):
        regressor.fit(CRYSTALS, MODULI)


def test_a_clone_of_a_fitted_one_is_not_fitted(fitted):
    with pytest.raises(NotFittedError):
        clone(fitted).predict(CRYSTALS)


def test_the_seed_decides(fitted):
    first, again = fitted.predict(CRYSTALS), clone(fitted).fit(CRYSTALS, MODULI).predict(CRYSTALS)
    np.testing.assert_array_equal(first, again)
    other = CGCNNRegressor(**SMALL, random_state=np.random.RandomState(1)).fit(CRYSTALS, MODULI)
    assert np.abs(other.predict(CRYSTALS) - first).max() > 0


def test_an_ensemble_gives_its_spread():
    regressor = CGCNNRegressor(**SMALL, seeds=2).fit(CRYSTALS, MODULI)
    mean, std = regressor.predict(CRYSTALS[:3], return_std=True)
    members = predict(regressor.model_, CRYSTALS[:3]).members[:, :, 0]
    np.testing.assert_allclose(mean, members.mean(0))
    np.testing.assert_allclose(std, members.std(0, ddof=1))


def test_features_and_ensembles_of_ways_are_strategies():
    regressor = CGCNNRegressor(source(), "features:gp", transform="log10").fit(CRYSTALS, MODULI)
    mean, std = regressor.predict(CRYSTALS, return_std=True)
    assert (mean > 0).all() and (std > 0).all() and std.shape == (18,)
    both = CGCNNRegressor({"gap": source()}, "ensemble:keep_head+features:ridge", epochs=1).fit(CRYSTALS, MODULI)
    parts = [predict(part, CRYSTALS).mean[:, 0] for part in both.model_.parts.values()]
    np.testing.assert_allclose(both.predict(CRYSTALS), np.mean(parts, 0))
    plain = CGCNNRegressor(source(), "features:ridge").fit(CRYSTALS, MODULI)
    with pytest.raises(InputError, match="no standard deviation"):
        plain.predict(CRYSTALS, return_std=True)


def test_a_logarithm_is_learnt_and_the_unit_kept():
    regressor = CGCNNRegressor(**SMALL, transform="log10").fit(CRYSTALS, MODULI)
    predicted = regressor.predict(CRYSTALS)
    assert (predicted > 0).all() and np.median(predicted) > 10
    assert regressor.model_.normaliser.mean[0] < 3


def test_cross_validation():
    scores = cross_val_score(
        CGCNNRegressor(**SMALL), structures(CRYSTALS), MODULI, cv=3, scoring="neg_mean_absolute_error",
        error_score="raise",
    )  # fmt: skip
    assert scores.shape == (3,) and (scores < 0).all()
    assert cross_val_score(CGCNNRegressor(**SMALL), CRYSTALS, MODULI, cv=3, error_score="raise").shape == (3,)


def test_cross_validation_tests_every_crystal_with_a_network_that_did_not_see_it():
    folds = KFold(3, shuffle=True, random_state=0)
    predicted = cross_val_predict(CGCNNRegressor(**SMALL), CRYSTALS, MODULI, cv=folds)
    for train, test in folds.split(CRYSTALS):
        alone = CGCNNRegressor(**SMALL).fit([CRYSTALS[i] for i in train], MODULI[train])
        np.testing.assert_allclose(predicted[test], alone.predict([CRYSTALS[i] for i in test]), rtol=1e-5)


def test_the_last_step_of_a_pipeline():
    steps = [("as they are", FunctionTransformer()), ("network", CGCNNRegressor(**SMALL))]
    pipeline = Pipeline(steps).fit(CRYSTALS, MODULI)
    assert np.isfinite(pipeline.score(CRYSTALS, MODULI))
    assert cross_val_score(Pipeline(steps), structures(CRYSTALS), MODULI, cv=3, error_score="raise").shape == (3,)


def test_a_search_over_strategies():
    grid = {"strategy": ["frozen", "full"]}
    regressor = CGCNNRegressor(source(), epochs=1, batch_size=8)
    search = GridSearchCV(regressor, grid, cv=2, error_score="raise").fit(CRYSTALS, MODULI)
    assert search.best_params_["strategy"] in grid["strategy"]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(CRYSTALS[:2]).shape == (2,)


MISTAKES = {
    "lengths differ": ({}, CRYSTALS, MODULI[:-1], "18 crystals and 17 labels"),
    "a label is missing": ({}, CRYSTALS, [*MODULI[:-1], np.nan], r"y\[17\] is nan"),
    "a label is infinite": ({}, CRYSTALS, [np.inf, *MODULI[1:]], r"y\[0\] is inf"),
    "a label is a word": ({}, CRYSTALS, ["hard", *MODULI[1:]], "not a number"),
    "two columns of labels": ({}, CRYSTALS, np.ones((18, 2)), r"shape \(18, 2\)"),
    "no crystals": ({}, [], [], "no crystals"),
    "numbers instead of crystals": ({}, np.ones((18, 3)), MODULI, r"list:0 \(id '0'\): found ndarray"),
    "one crystal": ({}, CRYSTALS[0], MODULI[:1], "X is a Record: a list of crystals"),
    "a path": ({}, "folder", MODULI, "X is a str: a list of crystals"),
    "all for validation": ({"val_fraction": 1.0}, CRYSTALS, MODULI, "val_fraction is 1.0"),
    "a share in words": ({"val_fraction": "0.1"}, CRYSTALS, MODULI, "val_fraction is '0.1': a share from 0"),
    "no share": ({"val_fraction": None}, CRYSTALS, MODULI, "val_fraction is None: a share from 0"),
    "a dictionary": ({}, {str(i): crystal for i, crystal in enumerate(CRYSTALS)}, MODULI, "X is a dict: a list of cry"),
    "labels of other rows": (
        {},
        frame(CRYSTALS)["structure"],
        frame(CRYSTALS).assign(k=MODULI)["k"][::-1],
        "X and y have different indexes: give y.loc",
    ),
    "no epochs": ({"epochs": 0}, CRYSTALS, MODULI, "epochs is 0"),
    "epochs in words": ({"epochs": "ten"}, CRYSTALS, MODULI, "epochs is 'ten': int was expected"),
    "graphs as a dictionary": ({"graph": {"cutoff": 6}}, CRYSTALS, MODULI, "graph is .*: a GraphConfig was expected"),
    "unknown transform": ({"transform": "cube"}, CRYSTALS, MODULI, "transform 'cube'"),
    "unknown strategy": ({"source": "SOURCE", "strategy": "half"}, CRYSTALS, MODULI, "no strategy 'half'"),
    "a strategy without a source": (
        {"strategy": "descriptors:svr"},
        CRYSTALS,
        MODULI,
        "'descriptors:svr' goes with a source",
    ),
    "multipliers without a source": ({"multipliers": (("conv_*", 0.1),)}, CRYSTALS, MODULI, "multipliers goes with"),
    "logarithm of a negative label": ({"transform": "log"}, CRYSTALS, -MODULI, "needs positive values"),
}


@pytest.mark.parametrize("settings, X, y, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(settings, X, y, message):
    settings = {**settings, "source": source()} if "source" in settings else settings
    with pytest.raises(InputError, match=message):
        CGCNNRegressor(**settings).fit(X, y)


def test_mistakes_in_predicting_are_named(fitted):
    with pytest.raises(InputError, match="no standard deviation; fit with seeds=2"):
        fitted.predict(CRYSTALS, return_std=True)
    far = CRYSTALS[0].structure._replace(lattice=np.eye(3) * 99)
    with pytest.raises(InputError, match=r"list:1: site 1 \(Ar\) has no neighbour within 8 Å"):
        fitted.predict([CRYSTALS[0], far._replace(atomic_numbers=np.array([18]), frac_coords=np.zeros((1, 3)))])


def test_no_advice_to_leave_crystals_out():
    far = CRYSTALS[0].structure._replace(lattice=np.eye(3) * 99)
    bad = far._replace(atomic_numbers=np.array([18]), frac_coords=np.zeros((1, 3)))
    with pytest.raises(InputError, match="list:17: site 1 .* has no neighbour") as error:
        CGCNNRegressor(**SMALL).fit([*CRYSTALS[:-1], bad], MODULI)
    assert "on_error" not in str(error.value)
