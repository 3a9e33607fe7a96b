"""Settings survive JSON, and what they cannot mean is refused by name."""

import json

import numpy as np
import pytest

from tlcgcnn_jax.config import FINE_TUNING, GraphConfig, ModelConfig, Target, TrainConfig, from_dict, to_dict
from tlcgcnn_jax.errors import InputError

ROUND_TRIPS = {
    "defaults": GraphConfig(),
    "graphs of the original": GraphConfig(ties="reference", legacy_padding=True, places=3),
    "target": Target("k_vrh", "GPa", transform="log10"),
    "classes": Target("family", kind="classification", classes=3),
    "model": ModelConfig(width=32, dropout=0.1),
    "training": TrainConfig(schedule="step", milestones=(0.5, 0.9), clip=1.0, patience=7),
    "fine-tuning": FINE_TUNING,
}


@pytest.mark.parametrize("config", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_round_trip_through_json(config):
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert hash(again) == hash(config)  # compiled programs are kept by their settings


def test_missing_settings_take_their_defaults():
    assert from_dict(GraphConfig, {"cutoff": 6.0}) == GraphConfig(cutoff=6.0)


def test_whole_numbers_are_floats_where_a_float_is_meant():
    cutoff = from_dict(GraphConfig, {"cutoff": 8}).cutoff
    assert isinstance(cutoff, float) and cutoff == 8.0


REFUSED = {
    "unknown": (GraphConfig, {"cut_off": 8.0}, "cut_off"),
    "two unknown": (TrainConfig, {"a": 1, "b": 2}, "a, b"),
    "text for a number": (GraphConfig, {"cutoff": "8"}, "float was expected"),
    "float for a count": (TrainConfig, {"epochs": 3.5}, "int was expected"),
    "truth for a count": (TrainConfig, {"epochs": True}, "int was expected"),
    "number for truth": (GraphConfig, {"legacy_padding": 1}, "bool was expected"),
    "number for a list": (TrainConfig, {"milestones": 0.8}, "a list was expected"),
    "text in a list": (TrainConfig, {"milestones": ["0.8"]}, "float was expected"),
    "nothing for a number": (TrainConfig, {"learning_rate": None}, "float was expected"),
    "text for a clip": (TrainConfig, {"clip": "1"}, "float was expected"),
}


@pytest.mark.parametrize(("kind", "values", "told"), REFUSED.values(), ids=REFUSED)
def test_wrong_keys_and_types(kind, values, told):
    with pytest.raises(InputError, match=told) as error:
        from_dict(kind, values, "run/settings.json")
    assert str(error.value).startswith("run/settings.json")


@pytest.mark.parametrize(("kind", "values", "told"), list(REFUSED.values())[2:], ids=list(REFUSED)[2:])
def test_wrong_types_without_a_file(kind, values, told):
    with pytest.raises(InputError, match=rf"^{kind.__name__}: {next(iter(values))} is .*: {told}"):
        kind(**values)


def test_lists_and_numpy_numbers_are_what_they_stand_for():
    given = TrainConfig(epochs=np.int64(3), learning_rate=1, milestones=[0.5, np.float64(0.9)], clip=None)
    expected = TrainConfig(epochs=3, learning_rate=1.0, milestones=(0.5, 0.9))
    assert given == expected and hash(given) == hash(expected)
    assert TrainConfig(milestones=np.array([0.5, 0.9])).milestones == (0.5, 0.9)
    assert json.dumps(to_dict(given)) == json.dumps(to_dict(expected))


BAD = {
    "no cutoff": (GraphConfig, {"cutoff": 0.0}, "cutoff"),
    "cutoff not a number": (GraphConfig, {"cutoff": float("nan")}, "cutoff"),
    "no neighbour": (GraphConfig, {"neighbours": 0}, "neighbours"),
    "unknown ties": (GraphConfig, {"ties": "half"}, "shell"),
    "negative tolerance": (GraphConfig, {"tie_tolerance": -1e-3}, "tie_tolerance"),
    "no place": (GraphConfig, {"places": 0}, "places"),
    "invented neighbours with shells": (GraphConfig, {"legacy_padding": True}, "legacy_padding"),
    "unknown kind": (Target, {"name": "x", "kind": "ranking"}, "ranking"),
    "unknown transform": (Target, {"name": "x", "transform": "sqrt"}, "sqrt"),
    "one class": (Target, {"name": "x", "kind": "classification", "classes": 1}, "classes"),
    "no width": (ModelConfig, {"width": 0}, "width"),
    "everything dropped": (ModelConfig, {"dropout": 1.0}, "dropout"),
    "no epoch": (TrainConfig, {"epochs": 0}, "epochs"),
    "no batch": (TrainConfig, {"batch_size": 0}, "batch_size"),
    "unknown optimiser": (TrainConfig, {"optimizer": "lion"}, "lion"),
    "an endless rate": (TrainConfig, {"learning_rate": float("inf")}, "learning_rate"),
    "a negative seed": (TrainConfig, {"seed": -1}, "seed is -1"),
    "no clipping norm": (TrainConfig, {"clip": 0.0}, "clip"),
    "a milestone after the end": (TrainConfig, {"milestones": (5.0,)}, "milestones"),
    "momentum that grows": (TrainConfig, {"momentum": 1.5}, "momentum"),
    "an endless cutoff": (GraphConfig, {"cutoff": float("inf")}, "cutoff"),
    "classes with a logarithm": (Target, {"name": "m", "kind": "classification", "transform": "log10"}, "no transform"),
    "no rate": (TrainConfig, {"learning_rate": 0.0}, "learning_rate"),
    "negative decay": (TrainConfig, {"weight_decay": -1.0}, "weight_decay"),
    "unknown schedule": (TrainConfig, {"schedule": "linear"}, "linear"),
    "unknown loss": (TrainConfig, {"loss": "l3"}, "l3"),
    "only warm-up": (TrainConfig, {"warmup": 1.0}, "warmup"),
    "nothing kept": (TrainConfig, {"keep": "first"}, "keep is 'first'"),
    "patience without a best epoch": (TrainConfig, {"keep": "last", "patience": 3}, "patience waits for a best epoch"),
    "no patience": (TrainConfig, {"patience": 0}, "patience"),
}


@pytest.mark.parametrize(("kind", "values", "told"), BAD.values(), ids=BAD)
def test_bad_values(kind, values, told):
    with pytest.raises(InputError, match=told):
        kind(**values)


def test_sizes_that_follow():
    assert ModelConfig().gaussians == 41
    assert Target("x", kind="classification", classes=3).outputs == 3
    assert Target("x").outputs == 1
