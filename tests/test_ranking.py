"""Scores of sources: against brute force, without a look at the test set, and sensible on real crystals."""

import numpy as np
import pytest
import toy
from test_embeddings import FAMILY, model

from tlcgcnn_jax.cgcnn_import import import_cgcnn
from tlcgcnn_jax.dataset import build_dataset
from tlcgcnn_jax.embeddings import activations
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.ranking import PENALTIES, log_me, rank_sources, ridge_cv_mae, score_table, write_scores
from tlcgcnn_jax.splits import k_fold
from tlcgcnn_jax.structures import read_structures


def regression(n, d, noise, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + rng.normal(size=d)
    weights = rng.normal(size=d) / x.std(0) / np.sqrt(d)
    return x, x @ weights + noise * rng.normal(size=n)


# --- LogME --------------------------------------------------------------------------------------------


def brute_force_evidence(x, y):
    """The largest log density of y under N(0, 1/β + X Xᵀ/α) beside an unknown mean, by a search over (α, β)."""
    from scipy.linalg import null_space
    from scipy.optimize import minimize

    contrasts = null_space(np.ones((1, len(y)))).T  # what is left without the mean
    x = contrasts @ ((x - x.mean(0)) / x.std(0))
    y = contrasts @ (y / y.std(ddof=1))

    def loss(logs):
        alpha, beta = np.exp(logs)
        covariance = np.eye(len(y)) / beta + x @ x.T / alpha
        log_volume = len(y) * np.log(2 * np.pi) + np.linalg.slogdet(covariance).logabsdet
        return 0.5 * (log_volume + y @ np.linalg.solve(covariance, y)) / len(y)

    settings = {"method": "Nelder-Mead", "bounds": [(-8, 15), (-8, 15)], "options": {"xatol": 1e-4}}
    starts = [(a, b) for a in (0.0, 3.0, 6.0) for b in (0.0, 3.0)]
    return -min(minimize(loss, start, **settings).fun for start in starts)


CASES = {
    "more rows": (60, 5, 0.5),
    "more columns": (30, 80, 0.3),
    "little noise": (50, 10, 0.01),
    "square": (25, 25, 1),
}


@pytest.mark.parametrize("n, d, noise", CASES.values(), ids=CASES.keys())
def test_log_me_is_the_largest_evidence(n, d, noise):
    x, y = regression(n, d, noise)
    assert log_me(x, y) == pytest.approx(brute_force_evidence(x, y), abs=1e-4)


def test_log_me_of_noise_is_that_of_no_features():
    rng = np.random.default_rng(1)
    y = rng.normal(size=200)
    nothing = -0.5 * (1 + np.log(2 * np.pi))  # a standard normal with its own spread
    assert log_me(rng.normal(size=(200, 3)), y) == pytest.approx(nothing, abs=0.02)
    assert log_me(np.ones((200, 3)), y) == pytest.approx(nothing)
    assert log_me(np.zeros((200, 0)), y) == pytest.approx(nothing)


def test_log_me_knows_no_units():
    x, y = regression(40, 6, 0.3)
    score = log_me(x, y)
    assert log_me(1e3 * x + 5, 1e-3 * y - 7) == pytest.approx(score, rel=1e-6)
    assert log_me(np.column_stack([x, np.full(40, 3.0)]), y) == pytest.approx(score, rel=1e-6)
    assert log_me(x, x[:, 0]) > score  # exact labels give a finite score, too
    assert np.isfinite(log_me(x, x[:, 0]))


# --- ridge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, d", [(60, 8), (30, 50)], ids=["more rows", "more columns"])
def test_ridge_is_that_of_scikit_learn(n, d):
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    x, y = regression(n, d, 0.5)
    errors = np.zeros((len(PENALTIES), 0))
    for repeat in range(3):
        for split in k_fold(n, 5, seed=4, repeat=repeat):
            train = np.concatenate([split.train, split.val])
            scaler = StandardScaler().fit(x[train])
            some = [
                np.abs(Ridge(penalty * len(train)).fit(scaler.transform(x[train]), y[train])
                       .predict(scaler.transform(x[split.test])) - y[split.test])
                for penalty in PENALTIES
            ]  # fmt: skip
            errors = np.concatenate([errors, some], axis=1)
    assert ridge_cv_mae(x, y, seed=4) == pytest.approx(errors.mean(1).min(), rel=1e-6)


def test_ridge_is_seeded():
    x, y = regression(40, 5, 0.5)
    assert ridge_cv_mae(x, y, seed=1) == ridge_cv_mae(x, y, seed=1) != ridge_cv_mae(x, y, seed=2)


# --- ranking ------------------------------------------------------------------------------------------

SEEDS = range(40)
ROWS = np.arange(30)


@pytest.fixture(scope="module")
def crystals():
    return build_dataset([toy.record(seed) for seed in SEEDS])


@pytest.fixture(scope="module")
def labels(crystals):
    """A mix of the first model's features: it knows these labels best."""
    pooled = activations(model(), crystals)["pooled"]
    return (pooled - pooled.mean(0)) / pooled.std(0) @ np.array([1.0, -1, 2, 0.5, 1, -2, 1, 1])


SOURCES = {"other": model(seeds=(7,)), "knows": model(), "classifier": model(target=FAMILY, seeds=(2,))}


def test_the_source_that_knows_comes_first(crystals, labels):
    scores = rank_sources(crystals, SOURCES, labels, ROWS)
    assert scores[0].name == "knows" and scores[0].ridge_skill > 0.9
    assert [score.ridge_mae for score in scores] == sorted(score.ridge_mae for score in scores)
    assert max(scores, key=lambda score: score.log_me).name == "knows"
    assert {score.property for score in scores} == {"energy", "family"}
    assert scores[0].name in score_table(scores).splitlines()[1]


def test_only_labelled_training_rows_count(crystals, labels):
    """Other crystals and labels may be anything: the scores stay the same."""
    before = {s.name: (s.ridge_mae, s.log_me, s.correlation) for s in rank_sources(crystals, SOURCES, labels, ROWS)}
    changed = labels.copy()
    changed[30:] = 1e6
    changed[4] = np.nan
    rows = np.setdiff1d(ROWS, [4])
    expected = {s.name: s.ridge_mae for s in rank_sources(crystals.select(rows), SOURCES, labels[rows], range(29))}
    after = rank_sources(crystals, SOURCES, changed, ROWS)
    assert {s.name: s.ridge_mae for s in after} == pytest.approx(expected, rel=1e-5)
    changed[4] = labels[4]
    after = {s.name: (s.ridge_mae, s.log_me, s.correlation) for s in rank_sources(crystals, SOURCES, changed, ROWS)}
    assert after == before


def test_the_correlation_is_that_of_the_sources_own_output(crystals):
    from scipy.stats import spearmanr

    output = activations(SOURCES["other"], crystals)["output"][:, 0]
    (score,) = rank_sources(crystals, {"other": SOURCES["other"]}, -np.exp(output.astype(float)), ROWS)
    assert score.correlation == pytest.approx(-1)
    classes = activations(SOURCES["classifier"], crystals)["output"]
    values = classes[:, 2] + np.random.default_rng(0).normal(0, 0.1 * classes[:, 2].std(), len(classes))
    (score,) = rank_sources(crystals, {"classifier": SOURCES["classifier"]}, values, ROWS)
    both = [spearmanr(classes[ROWS, column], values[ROWS]).statistic for column in (1, 2)]
    assert score.correlation == pytest.approx(max(both, key=abs))


def test_scores_are_written_as_they_are(crystals, labels, tmp_path):
    import csv

    scores = rank_sources(crystals, SOURCES, labels, ROWS)
    write_scores(scores, tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["name"] for row in rows] == [score.name for score in scores]
    assert [float(row["ridge_mae"]) for row in rows] == pytest.approx([s.ridge_mae for s in scores], rel=1e-5)


BAD = {
    "few labels": (np.arange(40.0), np.arange(9), "9 labelled training crystals: at least 10"),
    "missing labels": (np.full(40, np.nan), ROWS, "0 labelled"),
    "equal labels": (np.ones(40), ROWS, "all 30 labels are 1"),
    "other length": (np.arange(39.0), ROWS, r"shape \(39,\) for 40 crystals"),
    "labels in words": (["54 GPa"] * 40, ROWS, "values: .*54 GPa.*: numbers were expected, one label for each"),
    "a column's name": ("K", ROWS, "values: .*: numbers were expected"),
    "another mask": (np.arange(40.0), np.ones(30, bool), r"rows are bool of shape \(30,\): .* a mask of 40"),
    "rows that are no numbers": (np.arange(40.0), np.linspace(0, 1, 12), "rows are float64 of shape"),
    "a row twice": (np.arange(40.0), [*ROWS, 3], "rows name a crystal twice, or lie beyond the 40"),
    "a row beyond": (np.arange(40.0), [*ROWS, 40], "lie beyond the 40 that there are: 0 to 39"),
    "a row before": (np.arange(40.0), [*ROWS, -1], "lie beyond the 40"),
}


@pytest.mark.parametrize("values, rows, message", BAD.values(), ids=BAD.keys())
def test_bad_labels_are_told(crystals, values, rows, message):
    with pytest.raises(InputError, match=message):
        rank_sources(crystals, SOURCES, values, rows)


def test_a_mask_is_the_rows_that_it_names(crystals, labels):
    mask = np.isin(np.arange(40), ROWS)
    one, other = (rank_sources(crystals, {"knows": model()}, labels, rows) for rows in (mask, ROWS))
    assert (one[0].ridge_mae, one[0].log_me) == (other[0].ridge_mae, other[0].log_me)


def test_sources_may_be_named(crystals, labels, tmp_path):
    folder = str(model().save(tmp_path / "knows"))
    assert [score.name for score in rank_sources(crystals, [folder], labels, ROWS)] == [folder]
    assert [score.name for score in rank_sources(crystals, {"k": folder}, labels, ROWS)] == ["k"]


@pytest.mark.parametrize("score", [log_me, ridge_cv_mae])
def test_features_without_labels_are_told(score):
    with pytest.raises(InputError, match=r"\[n, d\] and \[n\] needed"):
        score(np.zeros((5, 2)), np.zeros(4))
    with pytest.raises(InputError, match="all 5 labels are 0"):
        score(np.zeros((5, 2)), np.zeros(5))


def test_a_dielectric_source_is_best_for_dielectric_constants(shared_data):
    """And a band gap falls as the electronic dielectric constant rises, so its sources correlate negatively."""
    records = read_structures(shared_data / "moe" / "mp_eps_electronic.jsonl.gz", targets=("target",))
    records = [record for record in records if len(record.structure.atomic_numbers) <= 10][:200]
    names = ("jarvis_dielectric_opt", "mp_bandgap", "mp_gvrh", "weighted_n_e_cond")
    sources = {name: import_cgcnn(shared_data / "checkpoints" / "moe" / f"{name}.npz") for name in names}
    labels = np.array([record.targets["target"] for record in records])
    scores = {score.name: score for score in rank_sources(records, sources, labels, np.arange(len(records)))}
    assert next(iter(scores)) == "jarvis_dielectric_opt"
    assert list(scores).index("mp_bandgap") < list(scores).index("weighted_n_e_cond")
    assert scores["jarvis_dielectric_opt"].correlation > 0.8 and scores["mp_bandgap"].correlation < -0.6
    assert scores["jarvis_dielectric_opt"].log_me == max(score.log_me for score in scores.values())
