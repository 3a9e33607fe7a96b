"""The analysis of a made-up study finds what was put in, and says so."""

import csv
import math

import made_up_study
import numpy as np
import pytest

from tlcgcnn_jax.analysis import Way, analyse, write_analysis
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.results import StudyResults
from tlcgcnn_jax.statistics import SeedErrors, catch_up, compare_runs, crossing, holm

SCRATCH = Way("", 0, "scratch", "scratch")
FULL = Way(made_up_study.ENERGY, 21000, "full", "transfer")
FOREST = Way("", 0, "forest", "baseline")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return made_up_study.write(tmp_path_factory.mktemp("made-up") / "study")


@pytest.fixture(scope="module")
def analysis(results):
    return analyse(results)


def errors(results: StudyResults, way: Way, size: int, target: str = "bulk_modulus") -> list[SeedErrors]:
    values = results.crystals(target).values
    rows = results.select(target=target, size=size, **way._asdict())
    found = [(row.seed, results.predictions(row.run)) for row in rows]
    return [SeedErrors(seed, made.test_rows, np.abs(made.test - values[made.test_rows])) for seed, made in found]


def test_every_way_has_an_outcome(results, analysis):
    assert len(analysis.outcomes) == len(results.rows) / 5
    assert len({(o.target, o.way, o.size) for o in analysis.outcomes}) == len(analysis.outcomes)
    assert {o.unit for o in analysis.of("band_gap")} == {"eV"}
    assert len(analysis.of("band_gap", SCRATCH)) == 3 and len(analysis.of("band_gap", size=50)) == 8


def test_numbers_are_those_of_the_runs(results, analysis):
    (found,) = analysis.of("bulk_modulus", FULL, 100)
    rows = results.select(target="bulk_modulus", size=100, **FULL._asdict())
    assert found.seeds == (0, 1, 2, 3, 4)
    assert found.mae.mean == pytest.approx(np.mean([row.test_mae for row in rows]))
    assert found.median_ae.mean == pytest.approx(np.mean([row.test_median_ae for row in rows]))
    assert found.val_mae == pytest.approx(np.mean([row.val_mae for row in rows]))
    assert found.mae.low < found.mae.mean < found.mae.high
    formulas = results.crystals("bulk_modulus").formulas
    for reference, comparison in ((SCRATCH, found.against_scratch), (FOREST, found.against_baseline)):
        expected = compare_runs(errors(results, reference, 100), errors(results, FULL, 100), formulas)
        assert comparison.gain_percent == pytest.approx(expected.gain_percent)
        assert (comparison.low, comparison.high) == pytest.approx((expected.low, expected.high))


def test_p_values_are_corrected_over_the_strategies_of_one_size(results, analysis):
    family = [o for o in analysis.of("band_gap", size=100) if o.way.kind == "transfer"]
    formulas = results.crystals("band_gap").formulas
    scratch = errors(results, SCRATCH, 100, "band_gap")
    alone = [compare_runs(scratch, errors(results, o.way, 100, "band_gap"), formulas).p_value for o in family]
    assert len(family) == 5
    assert [o.against_scratch.p_value for o in family] == pytest.approx(holm(alone).tolist())


def test_labels_worth_and_crossing(analysis):
    curves = {way: [analysis.of("bulk_modulus", way, n)[0].mae.mean for n in (50, 100, 300)] for way in (SCRATCH, FULL)}
    worth = catch_up([50, 100, 300], curves[SCRATCH], curves[FULL])
    assert [o.labels_worth for o in analysis.of("bulk_modulus", FULL)] == worth
    assert worth[0] > 100
    assert analysis.crossings["bulk_modulus", FULL] == crossing([50, 100, 300], curves[SCRATCH], curves[FULL])
    assert {way.kind for _, way in analysis.crossings} == {"transfer"}
    assert analysis.of("bulk_modulus", SCRATCH)[0].against_scratch is None


def test_what_was_put_in_is_found(analysis):
    """Transfer halves the error on the bulk modulus and is no better than scratch on the refractive index."""
    found = {(best.target, best.size): best for best in analysis.best}
    assert [found["bulk_modulus", size].verdict for size in (50, 100, 300)] == ["helps"] * 3
    assert all(found["bulk_modulus", size].outcome.way.strategy == "features:svr" for size in (50, 100, 300))
    assert not any(found["refractive_index", size].verdict == "helps" for size in (50, 100, 300))
    assert found["refractive_index", 50].outcome.way == FOREST and found["refractive_index", 50].verdict == "hurts"


def test_best_is_chosen_by_validation_error(analysis):
    for best in analysis.best:
        family = analysis.of(best.target, size=best.size)
        assert best.outcome == min(family, key=lambda outcome: outcome.val_mae)
        transfers = [outcome for outcome in family if outcome.way.kind == "transfer"]
        assert best.transfer == min(transfers, key=lambda outcome: outcome.val_mae)
        assert family[0].baseline == "forest"


def test_sentences(analysis):
    first = analysis.sentences[0]
    assert first.startswith("bulk_modulus, 50 crystals: helps. `features:svr` from mp-formation-energy + mp-band-gap")
    (outcome,) = [best.outcome for best in analysis.best if (best.target, best.size) == ("bulk_modulus", 50)]
    gain = outcome.against_scratch
    assert f"gains {gain.gain_percent:.0f} % over scratch ({gain.low:.0f} to {gain.high:.0f} %, 5 seeds)" in first
    assert f"test MAE {outcome.mae.mean:.3g} GPa" in first
    assert f"Scratch needs about {float(f'{outcome.labels_worth:.2g}'):.0f} crystals" in first
    assert "Against the baseline that validates best, `forest`: helps" in first
    for best in analysis.best:
        assert best.sentence.startswith(f"{best.target}, {best.size} crystals: {best.verdict}.")
        assert "None" not in best.sentence and "nan" not in best.sentence


UNFINISHED = {
    "runs are missing": ({"missing": 0.3, "seeds": 4}, "of 4 seeds"),
    "one seed": ({"seeds": 1}, "1 seed: no interval"),
    "no scratch": ({"ways": made_up_study.WAYS[1:3]}, "is not compared with scratch: there is no seed of both"),
    "scratch alone": ({"ways": made_up_study.WAYS[:1]}, "no transfer to compare with"),
    "baselines alone": ({"ways": made_up_study.WAYS[-2:]}, "The baseline `forest` has the lowest validation error"),
    "one size": ({"sizes": (50,)}, "50 crystals"),
}


@pytest.mark.parametrize(("study", "words"), UNFINISHED.values(), ids=UNFINISHED)
def test_unfinished_studies(tmp_path, study, words):
    analysis = analyse(made_up_study.write(tmp_path / "study", targets=["bulk_modulus"], **study))
    assert any(words in sentence for sentence in analysis.sentences), analysis.sentences
    assert not any(word in sentence for sentence in analysis.sentences for word in ("None", "nan"))
    write_analysis(analysis, tmp_path)
    if study.get("seeds") == 1:
        assert {best.verdict for best in analysis.best} == {"no evidence"}
    for outcome in analysis.outcomes:
        if outcome.against_scratch:
            assert len(outcome.against_scratch.seed_gains) <= len(outcome.seeds)


def test_nothing_has_run_yet(tmp_path):
    analysis = analyse(made_up_study.write(tmp_path / "study", missing=1.0))
    assert analysis.outcomes == () and analysis.sentences == [] and analysis.crossings == {}
    assert write_analysis(analysis, tmp_path).read_text().count("\n") == 1


def test_other_test_crystals_are_refused(tmp_path):
    results = made_up_study.write(tmp_path / "study", targets=["band_gap"], sizes=(50,), seeds=2)
    path = tmp_path / "study" / "predictions"
    full = results.select(seed=0, **FULL._asdict())[0]
    other = results.select(seed=1, **FULL._asdict())[0]
    (path / f"{full.run}.npz").write_bytes((path / f"{other.run}.npz").read_bytes())
    with pytest.raises(InputError, match="same split"):
        analyse(results)


def test_table(analysis, tmp_path):
    path = write_analysis(analysis, tmp_path)
    with open(path, newline="") as handle:
        table = list(csv.DictReader(handle))
    assert path.name == "comparisons.csv" and len(table) == len(analysis.outcomes)
    for row, outcome in zip(table, analysis.outcomes, strict=True):
        assert (row["target"], row["strategy"], int(row["size"])) == (
            outcome.target,
            outcome.way.strategy,
            outcome.size,
        )
        assert float(row["mae_low"]) == pytest.approx(outcome.mae.low, rel=1e-4)
        against = outcome.against_scratch
        assert row["scratch_verdict"] == (against.verdict if against else "")
        if against:
            assert float(row["scratch_gain_high"]) == pytest.approx(against.high, rel=1e-4, abs=1e-4)
            assert int(row["scratch_n_seeds"]) == 5
        assert (row["labels_worth"] == "") == (outcome.labels_worth is None)
    assert not any(math.isnan(float(row["mae"])) for row in table)
