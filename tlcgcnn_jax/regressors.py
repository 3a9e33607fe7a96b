"""Regressors of scikit-learn for small tables, their settings tuned by cross-validation inside the training rows."""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tlcgcnn_jax.errors import InputError

Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
Choice = tuple[Predict, dict[str, Any]]
Fit = Callable[[np.ndarray, np.ndarray, int], Choice]

BLOCK = 4096  # rows predicted at once: between them and the training rows there may be a matrix
_FEWEST = 5  # rows; below this, cross-validation has nothing to choose by
_TUNED_ON = 1500  # rows, drawn with the seed: the best settings hardly change with more, the time does
_LENGTHS = (1.3, 2.2, 4.0, 8.0, 16.0, 32.0)  # of the Matérn kernel; two crystals are about 1.4 apart
_PENALTIES = (1.0, 4.0, 16.0, 64.0)
_MOST_COLUMNS = 200  # looked at for one branch of a tree: more take longer and do not help
_CLIP = 3.0  # standard deviations; a rare element must not throw a crystal out of all others' sight


@dataclass(frozen=True)
class Regressor:
    """A kind of regressor.

    Attributes:
        name: Short name.
        summary: One sentence for people.
        fit: From standardised x [n, d], standardised y [n] and a seed to a prediction and the settings chosen.
    """

    name: str
    summary: str
    fit: Fit


@dataclass(frozen=True, eq=False)
class Fitted:
    """A regressor that was fitted; it can be pickled.

    Attributes:
        name: Of the regressor.
        settings: What cross-validation (or, for "gp", the marginal likelihood) chose.
        used: bool [d], columns of x that are not constant in the training rows.
        mean: float64 [d_used], of those columns.
        scale: float64 [d_used], their standard deviation.
        centre: Median of y.
        spread: Scale of y.
        inner: Prediction from standardised columns, in units of `spread`.
    """

    name: str
    settings: dict[str, Any]
    used: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    centre: float
    spread: float
    inner: Predict

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions for new rows.

        Args:
            x: [n, d], the columns that it was fitted on.

        Returns:
            (mean, std), float64 [n] each, in the unit of y; std is NaN for a regressor that has none. It is that of
            a new label for "gp" and that between the trees for "forest".

        Raises:
            InputError: Another number of columns, or values that are not finite.
        """
        x = _table(x)
        if x.shape[1] != len(self.used):
            raise InputError(
                f"x has {x.shape[1]} columns: the {len(self.used)} that {self.name} was fitted on are needed"
            )
        mean, std = np.empty(len(x)), np.full(len(x), np.nan)
        with _one_thread():
            for start in range(0, len(x), BLOCK):
                rows = slice(start, start + BLOCK)
                mean[rows], between = self.inner(_standardised(x[rows, self.used], self.mean, self.scale))
                if between is not None:
                    std[rows] = between
        return self.centre + self.spread * mean, self.spread * std


def fit_regressor(name: str, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Fitted:
    """Fit a regressor, its settings chosen by the mean absolute error of an inner cross-validation.

    Columns are standardised and cut at three standard deviations, constant ones dropped; y is centred on its median
    and scaled by its interquartile range, which a heavy tail does not stretch. All of it on these rows alone, on one
    core; settings are tuned on at most 1,500 rows and the fit itself takes all.

    Args:
        name: One of `REGRESSORS`.
        x: [n, d].
        y: [n], all finite.
        seed: Of the folds and of what is random in the regressor; same seed, same predictions.

    Raises:
        InputError: Unknown name, shapes that do not fit, values that are not finite, or fewer than 5 rows.

    Example:
        >>> x = np.linspace(0, 1, 40)[:, None]
        >>> mean, std = fit_regressor("ridge", x, 3 * x[:, 0]).predict(x[:2])
        >>> mean.round(1), std
        (array([0. , 0.1]), array([nan, nan]))
    """
    if name not in REGRESSORS:
        raise InputError(f"no regressor {name!r}; there are: {', '.join(REGRESSORS)}")
    x, y = _table(x), np.asarray(y, np.float64)
    if y.shape != (len(x),):
        raise InputError(f"y has shape {y.shape} for {len(x)} rows of x: ({len(x)},) was expected")
    if not np.isfinite(y).all():
        raise InputError(f"y of row {int(np.argmin(np.isfinite(y)))} is not finite: leave rows without a label out")
    if len(y) < _FEWEST:
        raise InputError(f"{len(y)} rows to fit {name} on: at least {_FEWEST} are needed to choose its settings")
    centre, scale = float(np.median(y)), float(np.subtract(*np.quantile(y, [0.75, 0.25])) / 1.349)
    # 1.349: the interquartile range of a normal distribution of unit variance. Where most labels are all but the same,
    # it says nothing of the others.
    scale = max(scale, 0.1 * float(y.std())) or 1.0
    deviation = x.std(0)
    used = deviation > 1e-9 * np.abs(x).max(0)
    x, mean, deviation = x[:, used], x[:, used].mean(0), deviation[used]
    learnable = used.any() and y.std() > 0
    fit = REGRESSORS[name if learnable else "median"].fit
    with _one_thread():
        inner, settings = fit(_standardised(x, mean, deviation), (y - centre) / scale, int(seed))
    return Fitted(name, settings, used, mean, deviation, centre, scale, inner)


# --- the regressors, on standardised x and y --------------------------------------------------------------------------


def _mean(x: np.ndarray, y: np.ndarray, seed: int) -> Choice:
    return functools.partial(_linear, np.zeros(x.shape[1]), float(y.mean())), {}


def _median(x: np.ndarray, y: np.ndarray, seed: int) -> Choice:
    return functools.partial(_linear, np.zeros(x.shape[1]), float(np.median(y))), {}


def _ridge(x: np.ndarray, y: np.ndarray, seed: int) -> Choice:
    """The penalty is chosen by leave-one-out errors, which ridge regression has in closed form."""
    from sklearn.linear_model import RidgeCV

    model: Any = RidgeCV(np.logspace(-1, 5, 25), scoring="neg_mean_absolute_error").fit(x, y)
    return functools.partial(_linear, model.coef_, float(model.intercept_)), {"alpha": float(model.alpha_)}


def _lasso(x: np.ndarray, y: np.ndarray, seed: int) -> Choice:
    largest = np.abs(x.T @ (y - y.mean())).max() / len(y)  # from here on, every coefficient is zero
    alphas = largest * np.logspace(0, -2.5, 26)
    error = np.zeros(len(alphas))
    for inside, outside in _folds(_some_rows(len(y), seed)):
        coefficients, intercepts = _lasso_path(x[inside], y[inside], alphas)
        error += np.abs(x[outside] @ coefficients + intercepts - y[outside, None]).sum(0)
    best = int(np.argmin(error))
    coefficients, intercepts = _lasso_path(x, y, alphas[: best + 1])
    return functools.partial(_linear, coefficients[:, -1], intercepts[-1]), {"alpha": float(alphas[best])}


def _lasso_path(x: np.ndarray, y: np.ndarray, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [d, n_alpha] and intercepts [n_alpha]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lasso_path

    mean = x.mean(0)
    with warnings.catch_warnings():
        # Where penalties are small, columns are alike and the last digits of their coefficients are of no use.
        warnings.simplefilter("ignore", ConvergenceWarning)
        coefficients = lasso_path(x - mean, y - y.mean(), alphas=alphas, tol=1e-3)[1]  # type: ignore[arg-type]
    return coefficients, y.mean() - mean @ coefficients


def _svr(x: np.ndarray, y: np.ndarray, seed: int) -> Choice:
    """Support vectors with a Matérn 3/2 kernel; the mean of the three best settings.

    Distances are computed once a fold, so that tuning takes as long for 3,000 columns as for 30.
    """
    names, grid = ("relevance", "length", "C"), list(itertools.product((0, 1), _LENGTHS, _PENALTIES))
    error = dict.fromkeys(grid, 0.0)
    for inside, outside in _folds(_some_rows(len(y), seed)):
        for power in (0, 1):
            weights = _relevance(x[inside], y[inside], power)
            distance = _distances(x[np.concatenate([inside, outside])] * weights, x[inside] * weights)
            for length in _LENGTHS:
                kernel = _matern(distance / length)
                for penalty in _PENALTIES:
                    model = _support_vectors(kernel[: len(inside)], y[inside], penalty)
                    away = model.predict(kernel[len(inside) :]) - y[outside]
                    error[power, length, penalty] += float(np.abs(away).sum())
    machines = []
    for setting in sorted(grid, key=error.__getitem__)[:3]:
        power, length, penalty = setting
        weights = _relevance(x, y, power) / length
        model = _support_vectors(_matern(_distances(x * weights, x * weights)), y, penalty)
        machines.append((weights, x[model.support_] * weights, model.dual_coef_[0], float(model.intercept_[0])))
    return functools.partial(_machines, machines), dict(zip(names, min(grid, key=error.__getitem__), strict=True))


def _support_vectors(kernel: np.ndarray, y: np.ndarray, penalty: float) -> Any:
    from sklearn.svm import SVR

    return SVR(kernel="precomputed", C=penalty, epsilon=0.05).fit(kernel, y)


def _machines(machines: list[tuple], x: np.ndarray) -> tuple[np.ndarray, None]:
    each = [_matern(_distances(x * w, vectors)) @ coefficients + b for w, vectors, coefficients, b in machines]
    return np.mean(each, 0), None


def _matern(distance: np.ndarray) -> np.ndarray:
    """Matérn covariance of smoothness 3/2 at distances in units of its length."""
    scaled = np.sqrt(3) * distance
    return (1 + scaled) * np.exp(-scaled)


def _gp(x: np.ndarray, y: np.ndarray, seed: int) -> Choice:
    """A Gaussian process with a Matérn 3/2 kernel and noise, on the first hundred principal components.

    Components and the marginal likelihood, which sets length, amplitude and noise, are those of at most 700 rows;
    the process itself sees all.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    rows = _some_rows(len(y), seed, 700)
    kernel = ConstantKernel(1.0, (1e-2, 1e4)) * Matern(1.0, (0.1, 100.0), nu=1.5) + WhiteKernel(0.05, (1e-4, 1e3))
    found: list[tuple[float, Any, np.ndarray, int]] = []
    for power in (0, 1):
        weights = _relevance(x, y, power)
        axes = np.linalg.svd((x[rows] - x[rows].mean(0)) * weights, full_matrices=False)[2][:100].T
        projection = weights[:, None] * axes / np.sqrt(x.shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a setting at the end of its range is fine
            model: Any = GaussianProcessRegressor(kernel, alpha=1e-8).fit(x[rows] @ projection, y[rows])
        found.append((float(model.log_marginal_likelihood_value_), model.kernel_, projection, power))
    _, fitted, projection, power = max(found, key=lambda one: one[0])
    model = GaussianProcessRegressor(fitted, alpha=1e-8, optimizer=None).fit(x @ projection, y)  # type: ignore[arg-type]
    settings = {"relevance": power, "length": float(fitted.k1.k2.length_scale), "noise": float(fitted.k2.noise_level)}
    return functools.partial(_process, model, projection), settings


def _process(model: Any, projection: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return model.predict(x @ projection, return_std=True)


def _forest(x: np.ndarray, y: np.ndarray, seed: int) -> Choice:
    """Extremely randomised trees (Geurts, Ernst & Wehenkel, Mach. Learn. 63, 3 (2006))."""
    from sklearn.ensemble import ExtraTreesRegressor

    def trees(number: int, share: float, leaf: int) -> Any:
        columns = max(1, min(_MOST_COLUMNS, int(share * x.shape[1])))
        return ExtraTreesRegressor(number, max_features=columns, min_samples_leaf=leaf, random_state=seed)

    grid = list(itertools.product((0.1, 0.5), (1, 3)))
    error = np.zeros(len(grid))
    for inside, outside in _folds(_some_rows(len(y), seed), 3):
        for i, setting in enumerate(grid):
            model = trees(40, *setting).fit(x[inside], y[inside])
            error[i] += np.abs(model.predict(x[outside]) - y[outside]).sum()
    best = grid[int(np.argmin(error))]
    model = trees(200, *best).fit(x, y)
    return functools.partial(_trees, model), dict(zip(("max_features", "min_samples_leaf"), best, strict=True))


def _trees(model: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    each = np.stack([tree.predict(x) for tree in model.estimators_])
    return each.mean(0), each.std(0)


def _boosting(x: np.ndarray, y: np.ndarray, seed: int) -> Choice:
    """Gradient boosting of the absolute error; the number of trees is chosen as well, at no further cost."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    def boosting(leaves: int, trees: int) -> Any:
        return HistGradientBoostingRegressor(
            loss="absolute_error", learning_rate=0.05, max_iter=trees, max_leaf_nodes=leaves, max_features=0.3,
            max_bins=63, min_samples_leaf=5, early_stopping=False, random_state=seed,  # type: ignore[arg-type]
        )  # fmt: skip

    most, sizes = 400, (4, 16)
    error = np.zeros((len(sizes), most))
    for inside, outside in _folds(_some_rows(len(y), seed), 3):
        for i, leaves in enumerate(sizes):
            model = boosting(leaves, most).fit(x[inside], y[inside])
            stages = np.stack(list(model.staged_predict(x[outside])))
            error[i] += np.abs(stages - y[outside]).sum(1)
    best, trees = np.unravel_index(int(np.argmin(error)), error.shape)
    model = boosting(sizes[best], int(trees) + 1).fit(x, y)
    return functools.partial(_boosted, model), {"max_leaf_nodes": sizes[best], "trees": int(trees) + 1}


def _boosted(model: Any, x: np.ndarray) -> tuple[np.ndarray, None]:
    return model.predict(x), None


REGRESSORS = {
    regressor.name: regressor
    for regressor in (
        Regressor("mean", "mean of the training labels", _mean),
        Regressor("median", "median of the training labels", _median),
        Regressor("ridge", "linear, with a penalty on the squares of its coefficients", _ridge),
        Regressor("lasso", "linear, with a penalty on the sizes of its coefficients", _lasso),
        Regressor("svr", "support vectors with a Matérn kernel", _svr),
        Regressor("gp", "Gaussian process with a Matérn kernel", _gp),
        Regressor("forest", "extremely randomised trees", _forest),
        Regressor("boosting", "gradient-boosted trees on the absolute error", _boosting),
    )
}  # fmt: skip


# --- what they share --------------------------------------------------------------------------------------------------


def _linear(coefficients: np.ndarray, intercept: float, x: np.ndarray) -> tuple[np.ndarray, None]:
    return x @ coefficients + intercept, None


def _table(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise InputError(f"x has shape {x.shape}: rows and columns were expected")
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise InputError(f"x holds {x[row, column]} in row {row}, column {column}: leave the row or the column out")
    return x


def _standardised(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip((x - mean) / scale, -_CLIP, _CLIP)


def _one_thread() -> Any:
    """One core for everything inside: a study fits several regressors at once, and sums keep their order."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def _some_rows(n: int, seed: int, most: int = _TUNED_ON) -> np.ndarray:
    """All rows in random order, or as many as settings are tuned on."""
    return np.random.default_rng(seed).permutation(n)[:most]


def _folds(rows: np.ndarray, folds: int = 5) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit and rows to check, for each fold."""
    for part in np.array_split(np.arange(len(rows)), folds):
        yield np.delete(rows, part), rows[part]


def _relevance(x: np.ndarray, y: np.ndarray, power: int) -> np.ndarray:
    """Weights of the columns [d], mean square 1: a power of their absolute correlation with y.

    A distance over hundreds of columns is mostly noise for a property that few of them matter to.
    """
    x, y = x - x.mean(0), y - y.mean()
    size = np.sqrt((x**2).sum(0) * (y**2).sum())
    weights = (np.abs(y @ x) / np.where(size > 0, size, 1.0)) ** power
    square = float((weights**2).mean())
    return weights / np.sqrt(square) if square > 0 else np.ones(x.shape[1])


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square difference over the columns, [n_a, n_b]."""
    total = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(total, 0) / a.shape[1])
