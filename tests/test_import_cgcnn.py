"""Checkpoints: what is accepted, and what a user is told about one that is not."""

import json
import pickle
import sys

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from extras import needs
from tiny import command

from tlcgcnn_jax.cgcnn_import import import_cgcnn, load_torch_tensors, variables_from_torch
from tlcgcnn_jax.config import ModelConfig, Target
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.zoo import load_model

SIZES = ModelConfig(width=3, convolutions=2, head_width=5, head_layers=2)
ARGS = {"task": "regression", "atom_fea_len": 3, "n_conv": 2, "h_fea_len": 5, "n_h": 2, "lr": 0.02}
NORMALIZER = {"mean": 1.5, "std": 0.5}


def make_tensors(outputs=1, seed=0):
    """A small network under the original's names."""
    rng = np.random.default_rng(seed)
    shapes = {"embedding.weight": (3, 92), "embedding.bias": (3,)}
    for layer in range(2):
        shapes |= {f"convs.{layer}.fc_full.weight": (6, 47), f"convs.{layer}.fc_full.bias": (6,)}
        for norm, size in (("bn1", 6), ("bn2", 3)):
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"convs.{layer}.{norm}.{leaf}"] = (size,)
    shapes |= {"conv_to_fc.weight": (5, 3), "conv_to_fc.bias": (5,), "fcs.0.weight": (5, 5), "fcs.0.bias": (5,)}
    shapes |= {"fc_out.weight": (outputs, 5), "fc_out.bias": (outputs,)}
    return {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, tensors=None, **settings):
    """An .npz with its .json; settings that are None are left out."""
    path = folder / "network.npz"
    np.savez(path, **(make_tensors() if tensors is None else tensors))
    content = {"args": ARGS, "normalizer": NORMALIZER} | settings
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def test_sizes_names_and_values(tmp_path):
    tensors = make_tensors()
    model = import_cgcnn(write(tmp_path, tensors, epoch=7, best_metric=0.25), unit="eV", name="gap")
    assert model.model == SIZES
    assert (model.targets[0].name, model.targets[0].unit, model.targets[0].kind) == ("gap", "eV", "regression")
    assert model.normaliser.mean == [1.5] and model.normaliser.std == [0.5]
    assert model.notes["epoch"] == 7 and model.notes["best_validation"] == 0.25
    params, stats = model.members[0]["params"], model.members[0]["batch_stats"]
    full = np.concatenate([params["conv_1"][f"{part}_kernel"] for part in ("receiver", "sender", "edge")])
    np.testing.assert_array_equal(full.T, tensors["convs.1.fc_full.weight"])
    np.testing.assert_array_equal(params["conv_1"]["node_norm"]["scale"], tensors["convs.1.bn2.weight"])
    np.testing.assert_array_equal(stats["conv_0"]["edge_norm"]["var"], tensors["convs.0.bn1.running_var"])
    np.testing.assert_array_equal(params["head"]["hidden_1"]["kernel"].T, tensors["fcs.0.weight"])
    np.testing.assert_array_equal(params["head"]["output"]["kernel"].T, tensors["fc_out.weight"])


def test_tree_is_that_of_the_network(tmp_path):
    """Every leaf that the network asks for is there with its shape, and no other."""
    model = import_cgcnn(write(tmp_path))
    zeros, ones, pair = jnp.zeros(8, jnp.int32), jnp.ones(8), jnp.array([1, 1])
    nodes, edges = {"atomic_number": zeros[:2]}, {"distance": ones, "weight": ones}
    graph = jraph.GraphsTuple(nodes, edges, zeros, zeros, None, pair, 4 * pair)
    expected = jax.eval_shape(model.network.init, jax.random.key(0), graph)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), dict(expected))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), model.members[0]) == shapes


def test_counters_and_prefixes_of_other_versions_are_understood(tmp_path):
    """Newer torch counts batches, and training on several GPUs puts a prefix before every name."""
    tensors = make_tensors()
    other = {f"module.{name}": array for name, array in tensors.items()}
    other |= {
        f"module.convs.{layer}.{norm}.num_batches_tracked": np.array(9) for layer in (0, 1) for norm in ("bn1", "bn2")
    }
    loaded = import_cgcnn(write(tmp_path, other)).members[0]["params"]
    np.testing.assert_array_equal(loaded["embedding"]["bias"], tensors["embedding.bias"])
    assert set(load_torch_tensors(tmp_path / "network.npz")) > set(tensors)


def test_classifier(tmp_path):
    settings = {"args": ARGS | {"task": "classification"}, "normalizer": {"mean": 0.0, "std": 1.0}}
    model = import_cgcnn(write(tmp_path, make_tensors(outputs=2), **settings))
    assert (model.targets[0].kind, model.targets[0].classes, model.outputs) == ("classification", 2, 2)
    assert model.targets[0].name == "network"


def test_the_command_saves_a_model(tmp_path, capsys):
    given = ("--target", "k", "--unit", "GPa", "--transform", "log10", "--out", tmp_path / "model")
    assert command("import-cgcnn", write(tmp_path), *given) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'model'}: regression, 2 convolutions, k\n"
    saved = load_model(tmp_path / "model")
    assert saved.targets == (Target("k", "GPa", transform="log10"),)
    jax.tree.map(np.testing.assert_array_equal, saved.members, import_cgcnn(tmp_path / "network.npz").members)
    assert command("import-cgcnn", tmp_path / "absent.npz", "--out", tmp_path / "other") == 1
    assert "absent.npz: there is no such file" in capsys.readouterr().err and not (tmp_path / "other").exists()


def without(name):
    return {key: array for key, array in make_tensors().items() if key != name}


BAD = {
    "missing tensor": (without("convs.1.bn2.running_var"), {}, [r"- convs\.1\.bn2\.running_var \[3\]"]),
    "missing convolution": (
        {key: array for key, array in make_tensors().items() if not key.startswith("convs.0")},
        {},
        [r"- convs\.0\.fc_full\.weight \[6, 47\]", r"\+ convs\.1\.fc_full\.weight \[6, 47\]"],
    ),
    "left-over tensor": (
        make_tensors() | {"attention.weight": np.ones((2, 2))},
        {},
        [r"\+ attention\.weight \[2, 2\]"],
    ),
    "other shape": (
        make_tensors() | {"convs.0.fc_full.weight": np.ones((6, 40))},
        {},
        [r"- convs\.0\.fc_full\.weight \[6, 47\]", r"\+ convs\.0\.fc_full\.weight \[6, 40\]"],
    ),
    "other atom features": (
        make_tensors() | {"embedding.weight": np.ones((3, 100))},
        {},
        ["92 atom features", r"\+ embedding\.weight \[3, 100\]"],
    ),
    "no network at all": (
        {"layer1.weight": np.ones((4, 4))},
        {},
        [r"- embedding\.weight", r"\+ layer1\.weight \[4, 4\]"],
    ),
    "value that is not finite": (make_tensors() | {"fc_out.bias": np.array([np.nan])}, {}, [r"! fc_out\.bias"]),
    "text": (make_tensors() | {"fc_out.bias": np.array(["a"])}, {}, ["fc_out.bias is of type"]),
    "no normaliser": (None, {"normalizer": None}, ['"normalizer" is None']),
    "normaliser without spread": (None, {"normalizer": {"mean": 0.0, "std": 0.0}}, ["std must be positive"]),
    "normaliser with more": (None, {"normalizer": NORMALIZER | {"right_skewed": True}}, ["right_skewed"]),
    "other settings": (None, {"args": ARGS | {"n_conv": 4}}, ["n_conv = 4, its tensors 2"]),
    "unknown task": (None, {"args": ARGS | {"task": "ranking"}}, ["'ranking'"]),
    "task against outputs": (
        None,
        {"args": ARGS | {"task": "classification"}},
        ["classification, and it has 1 outputs"],
    ),
    "settings of another kind": (None, {"args": "none"}, ["\"args\" is 'none'"]),
}


@pytest.mark.parametrize(("tensors", "settings", "messages"), BAD.values(), ids=BAD)
def test_wrong_content(tmp_path, tensors, settings, messages):
    path = write(tmp_path, tensors, **settings)
    with pytest.raises(InputError) as caught:
        import_cgcnn(path)
    for message in messages:
        caught.match(message)
    caught.match("network")


def test_wrong_variables_name_no_file():
    with pytest.raises(InputError, match=r"\+ fcs\.0\.bias"):
        variables_from_torch(make_tensors(), ModelConfig(width=3, convolutions=2, head_width=5), 1, "given")


def test_no_settings_beside(tmp_path):
    path = write(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"network\.json"):
        import_cgcnn(path)
    assert "fc_out.bias" in load_torch_tensors(path)
    path.with_suffix(".json").write_text("[1]")
    with pytest.raises(InputError, match="a list: a dictionary was expected"):
        import_cgcnn(path)
    path.with_suffix(".json").write_text('{"args": ')
    with pytest.raises(InputError, match="not a JSON file"):
        import_cgcnn(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95], ids=["empty", "a third", "nearly whole"])
def test_arrays_cut_short(tmp_path, share):
    path = write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"network\.npz: cannot be read"):
        import_cgcnn(path)


@pytest.mark.parametrize("name", ["absent.npz", "absent.pth.tar"])
def test_no_such_file(tmp_path, name):
    with pytest.raises(InputError, match=r"absent\..*no such file"):
        import_cgcnn(tmp_path / name)


def test_without_torch_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "network.pth.tar").write_bytes(b"")
    with pytest.raises(InputError, match="pip install torch"):
        import_cgcnn(tmp_path / "network.pth.tar")


class TestPickles:
    """Files that torch wrote."""

    @pytest.fixture(autouse=True)
    def torch(self):
        return needs("torch")

    def save(self, torch, path, **more):
        content = {
            "state_dict": {name: torch.from_numpy(array) for name, array in make_tensors().items()},
            "args": ARGS,
            "normalizer": {name: torch.tensor(value) for name, value in NORMALIZER.items()},
            "best_mae_error": np.float64(0.25),
            "epoch": 3,
        }
        torch.save(content | more, path)
        return path

    def test_same_as_arrays(self, torch, tmp_path):
        import argparse

        dictionary = import_cgcnn(self.save(torch, tmp_path / "a.pth.tar"))
        namespace = import_cgcnn(self.save(torch, tmp_path / "b.pth.tar", args=argparse.Namespace(**ARGS)))
        arrays = import_cgcnn(write(tmp_path))
        for model in (dictionary, namespace):
            assert model.model == arrays.model == SIZES
            assert model.normaliser.mean == arrays.normaliser.mean
            assert model.notes["best_validation"] == 0.25
            np.testing.assert_array_equal(
                model.members[0]["params"]["conv_0"]["edge_kernel"],
                arrays.members[0]["params"]["conv_0"]["edge_kernel"],
            )
        assert dictionary.targets[0].name == "a"

    def test_code_in_a_pickle_is_not_run(self, torch, tmp_path):
        marker = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return (open, (str(marker), "w"))

        path = self.save(torch, tmp_path / "trap.pth.tar", args=Trap())
        with pytest.raises(InputError, match=r"trap\.pth\.tar.*plain settings alone") as caught:
            import_cgcnn(path)
        assert not marker.exists()
        assert "weights_only" not in str(caught.value)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.98], ids=["empty", "a third", "nearly whole"])
    def test_cut_short(self, torch, tmp_path, share):
        path = self.save(torch, tmp_path / "network.pth.tar")
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=r"network\.pth\.tar: cannot be read"):
            import_cgcnn(path)

    @pytest.mark.parametrize(
        "content",
        [{"weights": 1}, [1, 2], {"state_dict": {"a": 1}}, {"state_dict": [1]}],
        ids=["other keys", "a list", "no tensors", "no names"],
    )
    def test_something_else(self, torch, tmp_path, content):
        torch.save(content, tmp_path / "other.pth.tar")
        with pytest.raises(InputError, match=r'other\.pth\.tar: holds .*"state_dict", "args" and "normalizer"'):
            import_cgcnn(tmp_path / "other.pth.tar")

    def test_not_a_torch_file(self, torch, tmp_path):
        (tmp_path / "text.pth.tar").write_text("not a checkpoint\n" * 9)
        (tmp_path / "pickle.pth.tar").write_bytes(pickle.dumps({"state_dict": {}}))
        (tmp_path / "folder.pth.tar").mkdir()
        for name in ("text", "pickle", "folder"):
            with pytest.raises(InputError, match=rf"{name}\.pth\.tar: .*(cannot be read|no such file|holds)"):
                import_cgcnn(tmp_path / f"{name}.pth.tar")
