"""Intervals cover what they claim, verdicts are rarely wrong and see what is there, and curves are read rightly."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from sklearn.isotonic import isotonic_regression

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.statistics import (
    Comparison,
    SeedErrors,
    catch_up,
    compare,
    compare_runs,
    correct,
    crossing,
    holm,
    mean_interval,
    verdict,
)

SAMPLES = {
    "normal, 3": (3, lambda rng, n: rng.normal(size=n), 0.0, 0.92),
    "normal, 5": (5, lambda rng, n: rng.normal(size=n), 0.0, 0.92),
    "normal, 10": (10, lambda rng, n: rng.normal(size=n), 0.0, 0.92),
    "skewed, 5": (5, lambda rng, n: rng.lognormal(0, 0.5, n), np.exp(0.125), 0.88),
    "exponential, 5": (5, lambda rng, n: rng.exponential(size=n), 1.0, 0.86),
}


@pytest.mark.parametrize(("n", "draw", "truth", "least"), SAMPLES.values(), ids=SAMPLES)
def test_interval_over_seeds_covers(n, draw, truth, least):
    rng, covered, naive, trials = np.random.default_rng(0), 0, 0, 600
    for _ in range(trials):
        values = draw(rng, n)
        mean, low, high = mean_interval(values, resamples=1000)
        covered += low <= truth <= high
        assert low <= mean <= high
        ends = np.percentile(values[rng.integers(0, n, (1000, n))].mean(1), [2.5, 97.5])
        naive += ends[0] <= truth <= ends[1]
    assert least <= covered / trials <= 0.985
    assert covered > naive


def test_interval_of_one_value_and_of_none():
    assert mean_interval([2.0])[0] == 2.0 and np.isnan(mean_interval([2.0])[1:]).all()
    assert mean_interval([3.0, 3.0, 3.0]) == (3.0, 3.0, 3.0)
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(InputError, match="mean over seeds"):
            mean_interval(values)


def test_interval_is_seeded():
    values = np.random.default_rng(0).normal(size=5)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, seed=1)


RNG = np.random.default_rng(1)
ERRORS = RNG.gamma(2.0, 1.0, 200)
COMPARISONS = {
    "half the error": (ERRORS, 0.5 * ERRORS, "helps"),
    "a little less, on nearly every crystal": (ERRORS, ERRORS - 0.05 * RNG.random(200) - 0.01, "helps"),
    "twice the error": (ERRORS, 2 * ERRORS, "hurts"),
    "other errors of the same size": (ERRORS, RNG.permutation(ERRORS), "no evidence"),
    "the same": (ERRORS, ERRORS, "no evidence"),
    "one outlier less": (np.r_[np.ones(60), 500.0], np.r_[np.full(60, 1.01), 1.0], "no evidence"),
    "ten outliers less, the others worse": (
        np.r_[np.ones(60), np.full(10, 500.0)],
        np.r_[np.full(60, 1.01), np.ones(10)],
        "no evidence",
    ),
    "three crystals": (np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.5]), "no evidence"),
}


@pytest.mark.parametrize(("baseline", "other", "word"), COMPARISONS.values(), ids=COMPARISONS)
def test_comparison(baseline, other, word):
    found = compare(baseline, other)
    assert found.verdict == word, found
    assert found.low <= found.gain_percent <= found.high
    assert found.gain_percent == pytest.approx(100 * (1 - other.mean() / baseline.mean()))
    assert found.n_crystals == len(baseline)


def test_nothing_is_gained_on_no_error():
    none, some = np.zeros(40), np.ones(40)
    for other in (none, some):
        found = compare(none, other)
        assert np.isnan([found.gain_percent, found.low, found.high]).all() and found.verdict == "no evidence"
    ways = [[SeedErrors(seed, np.arange(40), errors) for seed in range(3)] for errors in (none, some)]
    assert np.isnan(compare_runs(*ways).gain_percent) and compare_runs(*ways).verdict == "no evidence"
    rare = np.r_[np.ones(2), np.zeros(38)]  # some resamples have no error
    assert np.isfinite(compare(rare, 0.5 * rare).low)


def test_comparison_is_seeded():
    other = RNG.permutation(ERRORS)
    assert compare(ERRORS, other, seed=3) == compare(ERRORS, other, seed=3)
    assert compare(ERRORS, other, seed=3).low != compare(ERRORS, other, seed=4).low


def test_interval_over_crystals_is_that_of_scipy():
    other = 0.8 * ERRORS + 0.3 * RNG.random(200)
    gain = lambda a, b, axis: 100 * (1 - b.mean(axis) / a.mean(axis))
    expected = scipy.stats.bootstrap(
        (ERRORS, other), gain, paired=True, method="percentile", n_resamples=20000, random_state=0
    ).confidence_interval
    found = compare(ERRORS, other, resamples=20000)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.15)
    assert found.p_value == pytest.approx(scipy.stats.wilcoxon(ERRORS, other).pvalue)


def test_copies_of_a_crystal_are_no_evidence():
    """Each formula ten times over: with the formulas as groups the answer is that of the formulas alone."""
    other = ERRORS[:12] * RNG.uniform(0.5, 1.4, 12)
    alone, copied = compare(ERRORS[:12], other), compare(np.tile(ERRORS[:12], 10), np.tile(other, 10))
    grouped = compare(np.tile(ERRORS[:12], 10), np.tile(other, 10), groups=list("abcdefghijkl") * 10)
    assert grouped.p_value == pytest.approx(alone.p_value)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-6)
    assert copied.p_value < 0.1 * alone.p_value and copied.high - copied.low < 0.5 * (alone.high - alone.low)


def test_no_false_alarm_on_noise():
    """Two equally good ways are told apart in about one case of twenty, not in half of them."""
    rng = np.random.default_rng(0)
    found = [compare(rng.gamma(2, 1, 40), rng.gamma(2, 1, 40), resamples=400).verdict for _ in range(100)]
    assert 100 - found.count("no evidence") <= 12


@pytest.mark.parametrize(("one", "two"), [(3, 4), (0, 0)])
def test_comparison_needs_the_same_crystals(one, two):
    with pytest.raises(InputError, match="one for each crystal"):
        compare(np.ones(one), np.ones(two))
    with pytest.raises(InputError, match="2 group labels for 3"):
        compare(np.ones(3), np.ones(3), groups=["a", "b"])
    for errors in ([1.0, np.nan, 1.0], [1.0, np.inf, 1.0]):
        for ways in ((errors, np.ones(3)), (np.ones(3), errors)):
            with pytest.raises(InputError, match="an error is not finite"):
                compare(*map(np.array, ways))


def runs(rng, seeds=5, n_test=200, pool=600, gain=0.0, training_luck=0.03):
    """Two ways on the same splits; `training_luck`: spread of the size of all errors of one run, as a share."""
    hard = rng.lognormal(0, 0.6, pool)
    ways: tuple[list[SeedErrors], list[SeedErrors]] = ([], [])
    for seed in range(seeds):
        rows = rng.permutation(pool)[:n_test]
        common = rng.normal(size=n_test)
        for way, size in zip(ways, (1.0, 1.0 - gain), strict=True):
            noise = 0.8 * common + 0.6 * rng.normal(size=n_test)
            luck = np.exp(training_luck * rng.normal())
            way.append(SeedErrors(seed, rows, np.abs(size * luck * hard[rows] * noise)))
    return ways


@pytest.mark.parametrize("training_luck", [0.0, 0.03, 0.1])
def test_false_alarms_over_seeds_are_rare(training_luck):
    rng = np.random.default_rng(4)
    found = [
        compare_runs(*runs(rng, training_luck=training_luck), resamples=300).verdict != "no evidence"
        for _ in range(150)
    ]
    assert sum(found) <= scipy.stats.binom.ppf(0.99, len(found), 0.05)


def test_without_seeds_training_luck_would_raise_false_alarms():
    """What the interval over seeds is for: the test of the crystals alone is fooled by lucky trainings."""
    rng = np.random.default_rng(5)
    found = [compare_runs(*runs(rng, training_luck=0.1), resamples=300).p_value < 0.05 for _ in range(100)]
    assert np.mean(found) > 0.3


def test_a_gain_is_seen():
    rng = np.random.default_rng(6)
    found = [compare_runs(*runs(rng, gain=0.15), resamples=300) for _ in range(60)]
    assert np.mean([one.verdict == "helps" for one in found]) > 0.8
    assert np.mean([one.gain_percent for one in found]) == pytest.approx(15, abs=1.5)
    worse = [compare_runs(*reversed(runs(rng, gain=0.2)), resamples=300).verdict for _ in range(20)]
    assert worse.count("hurts") > 15


def test_runs_are_paired_by_seed_and_crystal():
    before, after = runs(np.random.default_rng(7), seeds=3, n_test=30, pool=50, gain=0.2)
    expected = compare_runs(before, after)
    order = np.random.default_rng(0).permutation(30)
    mixed = [SeedErrors(run.seed, run.rows[order], run.errors[order]) for run in reversed(after)]
    assert compare_runs(before, mixed) == expected
    # By hand: the error of a crystal is its mean over the seeds that tested it.
    own, scratch = ([[] for _ in range(50)] for _ in range(2))
    for table, way in ((scratch, before), (own, after)):
        for run in way:
            for row, error in zip(run.rows, run.errors, strict=True):
                table[row].append(error)
    means = [np.array([np.mean(errors) for errors in table if errors]) for table in (scratch, own)]
    assert expected.gain_percent == pytest.approx(100 * (1 - means[1].mean() / means[0].mean()))
    assert expected.p_value == pytest.approx(scipy.stats.wilcoxon(*means).pvalue)
    gains = [100 * (1 - b.errors.mean() / a.errors.mean()) for a, b in zip(before, after, strict=True)]
    assert expected.seed_gains == pytest.approx(gains)
    assert expected.n_crystals == len(means[0])
    _, low, high = mean_interval(gains, resamples=2000)
    assert expected.low <= low and expected.high >= high


def test_one_seed_is_no_verdict():
    found = compare_runs(*(way[:1] for way in runs(np.random.default_rng(8), gain=0.5)))
    assert found.verdict == "no evidence" and np.isnan(found.low) and found.gain_percent > 40


ONE = SeedErrors(0, np.arange(3), np.ones(3))
UNPAIRED = {
    "other seeds": ([ONE], [ONE._replace(seed=1)], r"seeds \[0\] against \[1\]"),
    "a seed twice": ([ONE, ONE], [ONE, ONE], "each once"),
    "no seeds": ([], [], "each once"),
    "other crystals": ([ONE], [ONE._replace(rows=np.arange(1, 4))], "seed 0: 3 test crystals against 3"),
    "fewer crystals": ([ONE], [SeedErrors(0, np.arange(2), np.ones(2))], "seed 0: 3 test crystals against 2"),
    "a crystal twice": ([ONE._replace(rows=np.zeros(3, int))] * 1, [ONE._replace(rows=np.zeros(3, int))], "twice"),
    "errors missing": ([ONE], [ONE._replace(errors=np.ones(2))], "2 errors of 3 crystals"),
}


@pytest.mark.parametrize(("before", "after", "message"), UNPAIRED.values(), ids=UNPAIRED)
def test_what_is_not_paired_is_refused(before, after, message):
    with pytest.raises(InputError, match=message):
        compare_runs(before, after)


def test_holm():
    # Holm's procedure worked by hand: 0.005·4, 0.01·3, 0.03·2, 0.04·1, made monotone.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1.0, 1.0])
    assert holm([]).tolist() == [] and holm([0.02]).tolist() == [0.02]


def test_correction_takes_verdicts_back():
    one = Comparison(10.0, 2.0, 20.0, 0.04, "helps")
    found = correct([one, replace(one, p_value=0.001)])
    assert [c.verdict for c in found] == ["helps", "helps"]
    found = correct([one, replace(one, p_value=0.03), replace(one, p_value=0.2)])
    assert [c.verdict for c in found] == ["no evidence"] * 3
    assert [c.p_value for c in found] == pytest.approx([0.09, 0.09, 0.2])


def test_verdict_needs_interval_and_test():
    for low, high, p_value in itertools.product((-5.0, 1.0, float("nan")), (-1.0, 5.0, float("nan")), (0.01, 0.2)):
        expected = "helps" if low > 0 and p_value < 0.05 else "hurts" if high < 0 and p_value < 0.05 else "no evidence"
        assert verdict(low, high, p_value) == expected


SIZES = [50, 100, 200, 400]
POWER_LAW = [3.0 * size**-0.5 for size in SIZES]


def test_catch_up_on_a_power_law():
    """Where the error goes as size^-1/2, an error smaller by 20 % is worth 1.5625 times the labels."""
    found = catch_up(SIZES, POWER_LAW, [0.8 * error for error in POWER_LAW])
    assert found[:3] == pytest.approx([50 / 0.64, 100 / 0.64, 200 / 0.64]) and found[3] is None
    assert catch_up(SIZES, POWER_LAW, POWER_LAW) == pytest.approx(SIZES)
    assert catch_up(SIZES, POWER_LAW, [1.1 * POWER_LAW[0]] * 4) == [50.0] * 4
    assert catch_up([50], [1.0], [0.9]) == [None]
    assert catch_up(SIZES, POWER_LAW, POWER_LAW[1:2]) == pytest.approx(SIZES[1:2])  # transfer is not there at all sizes
    with pytest.raises(InputError, match="errors to be reached"):
        catch_up(SIZES, POWER_LAW, [0.0])


def test_catch_up_smooths_what_rises():
    """A bump in scratch's curve is pooled as isotonic regression does it."""
    scratch = [1.0, 0.5, 0.7, 0.3]
    smooth = np.exp(isotonic_regression(np.log(scratch), increasing=False))
    assert smooth[1] == pytest.approx(smooth[2])
    assert catch_up(SIZES, scratch, list(smooth)) == pytest.approx([50, 100, 100, 400])
    middle = np.sqrt(smooth[2] * smooth[3])
    assert catch_up(SIZES, scratch, [middle] * 4) == pytest.approx([np.sqrt(200 * 400)] * 4)


CROSSINGS = {
    "never": ([1.0, 0.8, 0.6, 0.5], [0.9, 0.7, 0.5, 0.4], None),
    "at once": ([1.0, 0.8, 0.6, 0.5], [1.0, 0.9, 0.7, 0.5], 50),
    "in the middle": ([1.0, 0.8, 0.5, 0.4], [0.8, 0.64, 0.625, 0.6], np.sqrt(100 * 200)),
    "at a size": ([1.0, 0.8, 0.5, 0.4], [0.9, 0.7, 0.5, 0.5], 200),
    "for good only": ([1.0, 0.8, 0.5, 0.4], [1.1, 0.7, 0.6, 0.3], None),
}


@pytest.mark.parametrize(("scratch", "transfer", "expected"), CROSSINGS.values(), ids=CROSSINGS)
def test_crossing(scratch, transfer, expected):
    found = crossing(SIZES, scratch, transfer)
    assert found is expected if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize("read", [catch_up, crossing])
@pytest.mark.parametrize(
    ("sizes", "scratch"), [([50, 50], [1.0, 0.5]), ([50, 100], [1.0, 0.0]), ([50, 100], [1.0]), ([], [])]
)
def test_curves_that_are_none(read, sizes, scratch):
    with pytest.raises(InputError, match="increase|positive"):
        read(sizes, scratch, scratch)
