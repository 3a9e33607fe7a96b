"""The pictures of a study: one of learning curves a target, one of gains, whatever has finished."""

import made_up_study
import pytest

from tlcgcnn_jax.analysis import Way, analyse
from tlcgcnn_jax.study_plots import learning_curves, study_pictures
from tlcgcnn_jax.study_series import COLOURS, Series, _free_place, study_series

SMALL = {"sizes": (50, 100), "seeds": 3, "n_test": 25, "n_val": 15}
SCRATCH = tuple(way for way in made_up_study.WAYS if way.kind == "scratch")
CURVES = {f"learning_curves_{name}.png" for name in made_up_study.TARGETS}
STUDIES = {
    "all": ({}, CURVES | {"gains.png"}),
    "one target, one seed, one size": (
        {"targets": ("band_gap",), "seeds": 1, "sizes": (50,)}, {"learning_curves_band_gap.png", "gains.png"},
    ),
    "scratch only": ({"ways": SCRATCH}, CURVES),
    "unfinished": ({"missing": 0.4}, CURVES | {"gains.png"}),
    "not begun": ({"missing": 1.0}, set()),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "names"), STUDIES.values(), ids=STUDIES)
def test_pictures(tmp_path, changes, names):
    results = made_up_study.write(tmp_path / "study", **{**SMALL, **changes})
    out = tmp_path / "out"
    out.mkdir()
    paths = study_pictures(results, analyse(results), out)
    assert {path.name for path in paths} == names == {path.name for path in out.iterdir()}
    for path in paths:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and 8_000 < len(data) < 300_000
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        assert 500 <= width <= 1500 and 300 <= height <= 1200


def test_curves_are_those_of_the_series(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    results = made_up_study.write(tmp_path / "study", targets=("band_gap",), **SMALL)
    analysis = analyse(results)
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    series = study_series(analysis, results.targets)["band_gap"]
    learning_curves(series, tmp_path / "curves.png", name="gap $", unit="eV")
    axes = figures[0].axes[0]
    assert axes.get_ylabel() == "Test MAE (eV)" and axes.get_xscale() == axes.get_yscale() == "log"
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert set(drawn) == {one.label for one in series if one.shown}
    for size, mae in zip(*drawn["scratch"].get_data(), strict=True):
        runs = results.select(strategy="scratch", size=int(size))
        assert mae == pytest.approx(sum(run.test_mae for run in runs) / len(runs))


def test_no_two_lines_of_a_picture_share_a_colour():
    """Counting colours through over all targets gave the first and the eighth way the same one, on the same target."""
    ways = [Way("", 0, f"way {number}", "transfer") for number in range(9)]
    pictures = [
        [Series(ways[i], "", (), shown=True) for i in some] for some in ((0, 1, 2, 3, 7), (2, 4, 5), (6, 7, 8, 0))
    ]
    places: dict[Way, int] = {}
    for way in ways:
        places[way] = _free_place(way, places, pictures)
    assert len(set(places.values())) == len(ways)  # colour and shape together tell all apart
    for shown in pictures:
        assert len({places[one.way] % COLOURS for one in shown}) == len(shown)
