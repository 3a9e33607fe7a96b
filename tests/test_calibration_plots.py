"""Pictures of calibration hold the curves that the numbers give, and are the same bytes again."""

from contextlib import contextmanager

import numpy as np
import pytest

from tlcgcnn_jax import calibration, calibration_plots
from tlcgcnn_jax.errors import InputError

RNG = np.random.default_rng(0)
STD = RNG.lognormal(0, 0.5, 200)
SURE = (2 * STD * RNG.normal(size=200), STD)
MODELS = {"full": SURE, "$scratch$": (STD * RNG.normal(size=200), STD)}
PICTURES = (calibration_plots.calibration_curve, calibration_plots.confidence_curve)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were drawn."""
    figures, picture = [], calibration_plots.picture

    @contextmanager
    def kept(*arguments):
        with picture(*arguments) as figure:
            yield figure
            figures.append(figure)

    monkeypatch.setattr(calibration_plots, "picture", kept)
    return figures


@pytest.mark.parametrize("draw", PICTURES)
def test_same_numbers_same_bytes(draw, tmp_path):
    first, second = (draw(MODELS, tmp_path / name, title="a title") for name in ("a.png", "b.png"))
    assert first.read_bytes().startswith(b"\x89PNG") and first.read_bytes() == second.read_bytes()


def test_calibration_curve(drawn, tmp_path):
    calibration_plots.calibration_curve({"full": SURE}, tmp_path / "a.png")
    diagonal, curve = drawn[0].axes[0].lines
    np.testing.assert_allclose(curve.get_ydata(), 100 * calibration.coverage(*SURE)[:-1])
    assert (curve.get_ydata()[10:90] < diagonal.get_ydata().max() * np.arange(10, 90) / 100).all()
    assert f"area {calibration.miscalibration_area(*SURE):.2f}, 200 crystals" in curve.get_label()


def test_confidence_curve(drawn, tmp_path):
    calibration_plots.confidence_curve(MODELS, tmp_path / "a.png", unit="eV")
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == "MAE of the rest (eV)" and len(axes.lines) == 6
    expected = calibration.confidence_curve(*SURE)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected.mae[expected.removed <= 0.95])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), expected.oracle[expected.removed <= 0.95])
    assert axes.lines[2].get_ydata() == pytest.approx([np.abs(SURE[0]).mean()] * 2)


@pytest.mark.parametrize("draw", PICTURES)
@pytest.mark.parametrize("count", [0, 4])
def test_number_of_models(draw, count, tmp_path):
    with pytest.raises(InputError, match=f"{count} models to draw: 1 to 3"):
        draw({str(i): SURE for i in range(count)}, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
