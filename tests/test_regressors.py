"""Regressors learn what they can, say how sure they are, repeat themselves, and refuse what they cannot use."""

import pickle
import time

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.svm import SVR

from tlcgcnn_jax import regressors
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.regressors import REGRESSORS, _matern, _relevance, fit_regressor

LEARNING = tuple(name for name in REGRESSORS if name not in ("mean", "median"))


def table(n: int = 80, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth function of three columns of `d`, with a little noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.logspace(-3, 3, d) + 5
    z = (x - 5) / np.logspace(-3, 3, d)
    return x, 40 + 10 * (z[:, 0] + np.sin(2 * z[:, 1]) + 0.5 * z[:, 2] ** 2) + 0.3 * rng.normal(size=n)


X, Y = table(280)
FITTED = {name: fit_regressor(name, X[:80], Y[:80], seed=1) for name in REGRESSORS}


def error(name: str) -> float:
    return float(np.abs(FITTED[name].predict(X[80:])[0] - Y[80:]).mean())


@pytest.mark.parametrize("name", LEARNING)
def test_better_than_a_constant(name: str) -> None:
    assert error(name) < 0.8 * error("median")


def test_curves_need_kernels() -> None:
    assert max(error("svr"), error("gp")) < 0.9 * error("ridge")


@pytest.mark.parametrize(("name", "expected"), [("mean", np.mean(Y[:80])), ("median", np.median(Y[:80]))])
def test_constants(name: str, expected: float) -> None:
    np.testing.assert_allclose(FITTED[name].predict(X[80:])[0], expected)


def test_a_few_large_labels_among_many_that_are_all_but_zero_are_learnt() -> None:
    """Such as magnetic moments, in which zero has the noise of its computation."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (150, 4))
    y = np.where(x[:, 0] > 0.5, 4 + 2 * x[:, 1], 0.0) + 1e-5 * rng.normal(size=150)
    error = np.abs(fit_regressor("svr", x[:100], y[:100]).predict(x[100:])[0] - y[100:]).mean()
    assert error < 0.5 * np.abs(y[100:] - np.median(y[:100])).mean()


@pytest.mark.parametrize("name", REGRESSORS)
def test_std_where_there_is_one(name: str) -> None:
    mean, std = FITTED[name].predict(X[80:90])
    assert mean.shape == std.shape == (10,)
    assert (std > 0).all() if name in ("gp", "forest") else np.isnan(std).all()


def test_std_of_a_gaussian_process_is_that_of_labels() -> None:
    mean, std = FITTED["gp"].predict(X[80:])
    assert 0.6 < np.mean(np.abs(mean - Y[80:]) < std) < 0.9  # 0.68 for a normal distribution
    nearby, far = FITTED["gp"].predict(X[:1])[1], FITTED["gp"].predict(X[:1] + 3 * X.std(0))[1]
    assert far > nearby


@pytest.mark.parametrize("name", REGRESSORS)
def test_same_seed_same_numbers_and_survives_a_pickle(name: str) -> None:
    again = fit_regressor(name, X[:80], Y[:80], seed=1)
    assert again.settings == FITTED[name].settings
    expected = FITTED[name].predict(X[80:])[0]
    np.testing.assert_array_equal(again.predict(X[80:])[0], expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)).predict(X[80:])[0], expected)


@pytest.mark.parametrize("name", REGRESSORS)
def test_units_do_not_matter(name: str) -> None:
    """Another unit of a column or of y, and columns that say nothing, change nothing."""
    units = 2.0 ** np.arange(X.shape[1])
    other = np.hstack([X * units - 3, np.full((len(X), 2), 7.1)])
    mean = fit_regressor(name, other[:80], 8 * Y[:80] + 1, seed=1).predict(other[80:])[0]
    tolerance = 2.0 if name == "forest" else 0.5  # thresholds of random trees round differently
    assert np.abs((mean - 1) / 8 - FITTED[name].predict(X[80:])[0]).mean() < tolerance


def test_ridge_is_the_one_with_the_least_leave_one_out_error() -> None:
    """Against fits without each row in turn."""
    x, y = table(25, 6, seed=4)
    z = np.clip((x - x.mean(0)) / x.std(0), -3, 3)
    chosen = fit_regressor("ridge", x, y).settings["alpha"]

    def left_out(alpha: float) -> float:
        keep = [np.delete(np.arange(25), i) for i in range(25)]
        return np.mean([abs(Ridge(alpha).fit(z[k], y[k]).predict(z[[i]])[0] - y[i]) for i, k in enumerate(keep)])

    assert left_out(chosen) == pytest.approx(min(left_out(alpha) for alpha in np.logspace(-1, 5, 25)))


def test_svr_is_the_mean_of_three_machines() -> None:
    """Against scikit-learn's with the kernel as a function, for the settings that were chosen."""
    fitted = FITTED["svr"]
    machines = fitted.inner.args[0]
    z, new = (np.clip((x - X[:80].mean(0)) / X[:80].std(0), -3, 3) for x in (X[:80], X[80:]))
    y = (Y[:80] - np.median(Y[:80])) / (np.subtract(*np.quantile(Y[:80], [0.75, 0.25])) / 1.349)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _matern(np.sqrt(((a[:, None] - b) ** 2).mean(-1)))

    expected = []
    for weights, _, coefficients, _ in machines:
        penalty = np.abs(coefficients).max()  # reached by the rows that lie outside the tube
        model = SVR(kernel=kernel, C=penalty, epsilon=0.05).fit(z * weights, y)
        expected.append(model.predict(new * weights))
    mean = np.median(Y[:80]) + fitted.spread * np.mean(expected, 0)
    assert len(machines) == 3
    np.testing.assert_allclose(fitted.predict(X[80:])[0], mean, atol=0.05)


def test_relevance() -> None:
    weights = _relevance(X[:80], Y[:80], 1)
    correlation = np.abs([np.corrcoef(column, Y[:80])[0, 1] for column in X[:80].T])
    np.testing.assert_allclose(weights, correlation / np.sqrt((correlation**2).mean()), rtol=1e-9)
    np.testing.assert_array_equal(_relevance(X[:80], Y[:80], 0), np.ones(12))


@pytest.mark.parametrize("name", REGRESSORS)
def test_few_rows_many_columns_and_heavy_tails(name: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 500)), np.exp(3 * rng.normal(size=50))
    x[:, 3] = 0
    x[0, 4] = 1e6  # a column that one row alone has
    assert np.isfinite(fit_regressor(name, x, y).predict(100 * x)[0]).all()


@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize(
    ("x", "y"), [(np.zeros((6, 2)), np.arange(6.0)), (np.eye(6), np.full(6, 3.0))], ids=["constant x", "constant y"]
)
def test_nothing_to_learn(name: str, x: np.ndarray, y: np.ndarray) -> None:
    np.testing.assert_allclose(fit_regressor(name, x, y).predict(x)[0], np.median(y))


def test_quick() -> None:
    x, y = table(300, 400)
    start = time.process_time()
    fit_regressor("svr", x, y)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("name", "x", "y", "words"),
    [
        pytest.param("tree", X, Y, "no regressor 'tree'; there are: mean", id="unknown"),
        pytest.param("svr", X[:, 0], Y, "rows and columns", id="one column as a vector"),
        pytest.param("svr", X, Y[:9], r"\(9,\) for 280 rows", id="lengths"),
        pytest.param("svr", X, np.where(np.arange(280) == 7, np.nan, Y), "row 7 is not finite", id="no label"),
        pytest.param("svr", np.where(np.eye(280, 12) > 0, np.inf, X), Y, "inf in row 0, column 0", id="infinite"),
        pytest.param("svr", X[:4], Y[:4], "at least 5", id="too few"),
    ],
)
def test_bad_input(name: str, x: np.ndarray, y: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit_regressor(name, x, y)


def test_other_columns_are_refused() -> None:
    with pytest.raises(InputError, match="11 columns: the 12 that ridge was fitted on"):
        FITTED["ridge"].predict(X[:, 1:])


@pytest.mark.parametrize("name", ["ridge", "gp"])
def test_many_rows_are_predicted_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FITTED[name].predict(X)
    monkeypatch.setattr(regressors, "BLOCK", 7)
    for part, expected in zip(FITTED[name].predict(X), whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-9)
