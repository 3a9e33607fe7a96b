"""What a whole study says: errors with intervals, gains with verdicts, the best way at each size, in words."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.files import write_whole
from tlcgcnn_jax.results import KINDS, Row, StudyResults
from tlcgcnn_jax.statistics import (
    Comparison,
    Interval,
    SeedErrors,
    catch_up,
    compare_runs,
    correct,
    crossing,
    mean_interval,
)
from tlcgcnn_jax.strategies import strategy_name

COMPARISONS = "comparisons.csv"
NO_EVIDENCE = "no evidence"


class Way(NamedTuple):
    """A way of learning a target: source model ("" for none), its training crystals, strategy, and kind of strategy."""

    source: str
    source_size: int
    strategy: str
    kind: str

    def __str__(self) -> str:
        size = f" ({self.source_size:,} crystals)" if self.source_size else ""
        origin = f" from {self.source.replace('+', ' + ')}{size}" if self.source else ""
        return f"`{strategy_name(self.strategy)}`{origin}" if self.kind != "scratch" else "training from scratch"


@dataclass(frozen=True)
class Outcome:
    """How well a way does on a target with so many training crystals.

    Attributes:
        target: Property.
        unit: Of the property and of all errors.
        way: Of learning.
        size: Crystals trained on.
        seeds: Seeds of the finished runs.
        mae: Test mean absolute error, mean over seeds with its 95 % interval.
        median_ae: Test median absolute error, likewise.
        val_mae: Mean over seeds of the validation error, by which ways are chosen. That of networks, which have chosen
            their epoch and learning rate by it, is more flattering than that of regressors.
        against_scratch: Comparison with training from scratch, on the seeds that both have; None for scratch itself or
            where there is no common seed. p-values are corrected over the ways of one kind (transfer or baseline),
            target and size.
        baseline: Strategy of the baseline with the lowest validation error at this size; "" where there is none.
        against_baseline: Comparison with that baseline, for scratch and transfer.
        labels_worth: Crystals with which scratch reaches this error; None where it does not with the largest size
            (or where `against_scratch` is None).
    """

    target: str
    unit: str
    way: Way
    size: int
    seeds: tuple[int, ...]
    mae: Interval
    median_ae: Interval
    val_mae: float
    against_scratch: Comparison | None = None
    baseline: str = ""
    against_baseline: Comparison | None = None
    labels_worth: float | None = None


@dataclass(frozen=True)
class Best:
    """The way to choose for a target and size, by validation error, and whether transfer is worth it.

    Attributes:
        target: Property.
        size: Crystals trained on.
        outcome: Of the way with the lowest validation error, of whatever kind.
        transfer: Outcome of the transfer with the lowest validation error, None where there is none.
        verdict: Of that transfer: against scratch where the transfer itself is the way to choose; else against the
            way to choose, scratch or a baseline, where it cannot be "helps".
        sentence: All this in words.
    """

    target: str
    size: int
    outcome: Outcome
    transfer: Outcome | None
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Analysis:
    """Everything that a study says.

    Attributes:
        outcomes: One a target, way and size, in the study's order.
        best: One a target and size.
        crossings: (target, way) → size from which scratch is no worse than this transfer; None where transfer is still
            better at the largest size.
    """

    outcomes: tuple[Outcome, ...]
    best: tuple[Best, ...]
    crossings: dict[tuple[str, Way], float | None]

    @property
    def sentences(self) -> list[str]:
        """What the study says, a sentence or two a target and size."""
        return [best.sentence for best in self.best]

    def of(self, target: str, way: Way | None = None, size: int | None = None) -> list[Outcome]:
        """Outcomes of a target; of one way, at one size where these are given."""
        return [
            outcome
            for outcome in self.outcomes
            if outcome.target == target and way in (None, outcome.way) and size in (None, outcome.size)
        ]


def analyse(results: StudyResults) -> Analysis:
    """Analyse a study, finished or not: ways are compared on the seeds that they have in common.

    Args:
        results: With at least one run, or the analysis is empty.

    Raises:
        InputError: Predictions that are missing or damaged, or runs of one seed that tested other crystals.

    Example:
        >>> analysis = analyse(StudyResults("STUDY"))  # doctest: +SKIP
        >>> print(*analysis.sentences, sep="\\n")  # doctest: +SKIP
    """
    study = _Study(results)
    outcomes: list[Outcome] = []
    for target, unit in results.targets.items():
        sizes = sorted({row.size for row in results.rows if row.target == target})
        for size in sizes:
            outcomes += _at_size(study, target, unit, size)
    crossings: dict[tuple[str, Way], float | None] = {}
    worth: dict[tuple[str, Way, int], float | None] = {}
    for target, way in dict.fromkeys((o.target, o.way) for o in outcomes if o.way.kind != "scratch"):
        scratch, own = _curve(outcomes, target, "scratch"), _curve(outcomes, target, way)
        if scratch and own:
            found = catch_up([*scratch], [*scratch.values()], [*own.values()])
            worth |= {(target, way, size): n for size, n in zip(own, found, strict=True)}
        if way.kind == "transfer" and (common := [size for size in own if size in scratch]):
            curves = ([curve[size] for size in common] for curve in (scratch, own))
            crossings[target, way] = crossing(common, *curves)
    outcomes = [replace(o, labels_worth=worth.get((o.target, o.way, o.size))) for o in outcomes]
    families: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        families.setdefault((outcome.target, outcome.size), []).append(outcome)
    best = tuple(_best(family) for family in families.values())
    return Analysis(tuple(outcomes), best, crossings)


def write_analysis(analysis: Analysis, folder: str | Path) -> Path:
    """Write the outcomes as comparisons.csv, one row a target, way and size; unknown values are empty cells.

    Args:
        analysis: From `analyse`.
        folder: Of the study.

    Returns:
        The file.

    Raises:
        InputError: The file cannot be written.
    """
    rows = [_flat(outcome) for outcome in analysis.outcomes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(row[column]) for column in COLUMNS])
    return write_whole(Path(folder) / COMPARISONS, text.getvalue().encode())


COLUMNS = (
    "target", "unit", "source", "source_size", "strategy", "kind", "size", "n_seeds", "mae", "mae_low", "mae_high",
    "median_ae", "median_ae_low", "median_ae_high", "val_mae",
    *(f"{what}_{end}" for what in ("scratch", "baseline") for end in
      ("gain_percent", "gain_low", "gain_high", "p_holm", "verdict", "n_seeds", "n_crystals")),
    "best_baseline", "labels_worth",
)  # fmt: skip


class _Study:
    """Runs by target, way and size, with the errors of each read once."""

    def __init__(self, results: StudyResults) -> None:
        self.results = results
        self.runs: dict[tuple[str, int], dict[Way, list[Row]]] = {}
        for row in results.rows:
            way = Way(row.source, row.source_size, row.strategy, row.kind)
            self.runs.setdefault((row.target, row.size), {}).setdefault(way, []).append(row)
        self._errors: dict[str, SeedErrors] = {}

    def errors(self, row: Row) -> SeedErrors:
        if row.run not in self._errors:
            found, values = self.results.predictions(row.run), self.results.crystals(row.target).values
            errors = np.abs(found.test.astype(float) - values[found.test_rows])
            self._errors[row.run] = SeedErrors(row.seed, found.test_rows, errors)
        return self._errors[row.run]

    def compare(self, target: str, size: int, baseline: Way, other: Way) -> Comparison | None:
        """On the seeds that both have; None without any."""
        ways = self.runs[target, size]
        before, after = ({row.seed: row for row in ways.get(way, ())} for way in (baseline, other))
        seeds = sorted(before.keys() & after.keys())
        if not seeds or baseline == other:
            return None
        runs = ([self.errors(way[seed]) for seed in seeds] for way in (before, after))
        return compare_runs(*runs, formulas=self.results.crystals(target).formulas)


def _at_size(study: _Study, target: str, unit: str, size: int) -> list[Outcome]:
    """Outcomes of all ways at one size, scratch first."""
    ways = study.runs[target, size]
    order = sorted(ways, key=lambda way: KINDS.index(way.kind))
    outcomes = []
    for way in order:
        rows = ways[way]
        outcomes.append(
            Outcome(
                target, unit, way, size, tuple(sorted(row.seed for row in rows)),
                mean_interval([row.test_mae for row in rows]), mean_interval([row.test_median_ae for row in rows]),
                float(np.mean([row.val_mae for row in rows])),
            )
        )  # fmt: skip
    scratch = next((way for way in order if way.kind == "scratch"), None)
    baseline = chosen([outcome for outcome in outcomes if outcome.way.kind == "baseline"])
    against: dict[str, dict[Way, Comparison]] = {"scratch": {}, "baseline": {}}
    for name, reference in (("scratch", scratch), ("baseline", baseline and baseline.way)):
        for kind in KINDS if name == "scratch" else ("scratch", "transfer"):
            found = {
                way: study.compare(target, size, reference, way) for way in order if way.kind == kind and reference
            }
            known = {way: comparison for way, comparison in found.items() if comparison}
            against[name] |= dict(zip(known, correct(list(known.values())), strict=True))
    return [
        replace(
            outcome,
            against_scratch=against["scratch"].get(outcome.way),
            baseline=baseline.way.strategy if baseline else "",
            against_baseline=against["baseline"].get(outcome.way),
        )
        for outcome in outcomes
    ]


def chosen(outcomes: Iterable[Outcome]) -> Outcome | None:
    """The one with the lowest validation error among those with the most seeds: other means are of other splits."""
    outcomes = list(outcomes)
    most = max((len(outcome.seeds) for outcome in outcomes), default=0)
    complete = [outcome for outcome in outcomes if len(outcome.seeds) == most]
    return min(complete, key=lambda outcome: outcome.val_mae, default=None)


def _curve(outcomes: Sequence[Outcome], target: str, way: Way | str) -> dict[int, float]:
    """The positive errors of a way, or of a kind of ways, by increasing training size."""
    mine = [o for o in outcomes if o.target == target and way in (o.way, o.way.kind) and o.mae.mean > 0]
    return {o.size: o.mae.mean for o in sorted(mine, key=lambda outcome: outcome.size)}


def _best(family: Sequence[Outcome]) -> Best:
    best = chosen(family)
    assert best is not None, "a family has at least one outcome"
    transfer = chosen([outcome for outcome in family if outcome.way.kind == "transfer"])
    if best.way.kind == "transfer":
        found = best.against_scratch
        word = found.verdict if found else NO_EVIDENCE
    else:
        # Transfer is judged against what the user would take instead.
        found = transfer and (transfer.against_scratch if best.way.kind == "scratch" else transfer.against_baseline)
        word = "hurts" if found and found.verdict == "hurts" else NO_EVIDENCE
    return Best(best.target, best.size, best, transfer, word, _sentence(best, transfer, word))


def _sentence(best: Outcome, transfer: Outcome | None, word: str) -> str:
    """What `Best` says, e.g. "gap, 50 crystals: helps. `full` gains 21 % over scratch (12 to 29 %, 5 seeds) …"."""
    head, n = f"{best.target}, {best.size:,} crystals: {word}.", len(best.seeds)
    error = f"test MAE {_number(best.mae.mean)}{' ' if best.unit else ''}{best.unit}"
    if best.way.kind == "transfer":
        text = f"{head} {best.way} {_gain_words(best.against_scratch, 'scratch', n)}; {error}."
        if word == "helps" and best.labels_worth is None:
            text += " Scratch does not get there with the largest training set."
        elif word == "helps":
            text += f" Scratch needs about {float(f'{best.labels_worth:.2g}'):,.0f} crystals to get there."
        if best.baseline:
            found = best.against_baseline
            text += f" Against the baseline that validates best, `{strategy_name(best.baseline)}`: "
            text += f"{found.verdict if found else NO_EVIDENCE}; it {_gain_words(found, '', n)}."
        return text
    name = "Training from scratch" if best.way.kind == "scratch" else f"The baseline {best.way}"
    text = f"{head} {name} has the lowest validation error; {error}."
    if transfer is None:
        return f"{text} There is no transfer to compare with."
    found, name = (
        (transfer.against_scratch, "scratch")
        if best.way.kind == "scratch"
        else (transfer.against_baseline, f"`{strategy_name(best.way.strategy)}`")
    )
    return f"{text} The best transfer, {transfer.way}, {_gain_words(found, name, n)}."


def _gain_words(found: Comparison | None, reference: str, seeds: int) -> str:
    """A gain as a predicate, e.g. "gains 21 % over scratch (12 to 29 %, 5 seeds)"."""
    if found is None:
        return f"is not compared with {reference or 'that'}: there is no seed of both"
    if math.isnan(found.gain_percent):
        return f"has gained nothing on {reference or 'that'}, whose error is 0"
    n, gains = len(found.seed_gains), found.gain_percent >= 0
    verb, link = ("gains", "over") if gains else ("loses", "against")
    low, high = (found.low, found.high) if gains else (-found.high, -found.low)
    count = f"{n} of {seeds} seeds" if n < seeds else f"{n} seed{'s' if n > 1 else ''}"
    between = f"{_percent(low)} to {_percent(high)} %, {count}" if math.isfinite(low) else f"{count}: no interval"
    return f"{verb} {_percent(abs(found.gain_percent))} %{f' {link} {reference}' if reference else ''} ({between})"


def _percent(value: float) -> str:
    """Whole, but never rounded to zero: the sign is what counts."""
    return f"{value:.{0 if abs(value) >= 0.95 else 1 if abs(value) >= 0.05 else 2}f}".replace("-", "−")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def _flat(outcome: Outcome) -> dict[str, Any]:
    """An outcome as cells of a table."""
    row: dict[str, Any] = {
        "target": outcome.target,
        "unit": outcome.unit,
        **outcome.way._asdict(),
        "size": outcome.size,
    }
    row |= {"n_seeds": len(outcome.seeds), "val_mae": outcome.val_mae, "best_baseline": outcome.baseline}
    for name in ("mae", "median_ae"):
        interval: Interval = getattr(outcome, name)
        row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    for name, found in (("scratch", outcome.against_scratch), ("baseline", outcome.against_baseline)):
        row |= {
            f"{name}_gain_percent": found and found.gain_percent,
            f"{name}_gain_low": found and found.low,
            f"{name}_gain_high": found and found.high,
            f"{name}_p_holm": found and found.p_value,
            f"{name}_verdict": found and found.verdict,
            f"{name}_n_seeds": found and len(found.seed_gains),
            f"{name}_n_crystals": found and found.n_crystals,
        }
    return row | {"labels_worth": outcome.labels_worth}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value
