"""Weights of the original give the original's predictions, on the whole road from a file to a number.

The expected numbers are those of the original code in float64; ours are float32. The tolerance is a hundred-thousandth
of the spread of the predictions.
"""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
from extras import needs

from tlcgcnn_jax.bundle import flatten, load_bundle
from tlcgcnn_jax.cgcnn_import import GRAPH, import_cgcnn, load_torch_tensors
from tlcgcnn_jax.evaluate import predict

pytestmark = pytest.mark.usefixtures("optimised")

TOLERANCE = 1e-5  # standard deviations of the predictions


def assert_met(model, inputs, expected, what):
    """Compare by id; of a classifier, the probability of class 1."""
    predictions = predict(model, inputs)
    values = dict(zip(predictions.ids, predictions.mean[:, -1], strict=True))
    assert values.keys() == expected.keys()
    error = np.array([values[id] - expected[id] for id in expected])
    allowed = TOLERANCE * np.std(list(expected.values()))
    worst = int(np.abs(error).argmax())
    assert np.abs(error).max() <= allowed, (
        f"{what}: {list(expected)[worst]} is off by {error[worst]:.3g}, allowed are {allowed:.3g}"
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("cgcnn_official", "mp_eform"),
        ("cgcnn_official", "mp_bandgap"),
        ("cgcnn_official", "mp_bulk_modulus"),
        ("cgcnn_official", "mp_semi_metal"),
        ("cgcnn_short_rows", "mp_eform"),  # atoms with fewer than 12 neighbours, or none
        ("cgcnn_short_rows", "mp_semi_metal"),
    ],
)
def test_records(shared_data, tmp_path, file, name):
    oracle = json.loads((shared_data / f"oracles/{file}.json").read_text())
    path = tmp_path / "records.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in oracle["records"])
    ids = [record["id"] for record in oracle["records"]]
    expected = dict(zip(ids, oracle["predictions"][name], strict=True))
    assert_met(import_cgcnn(shared_data / f"checkpoints/official/{name}.npz"), path, expected, f"{file} {name}")


@pytest.mark.parametrize("folder", ["sample-regression", "sample-classification"])
@pytest.mark.parametrize("name", ["mp_eform", "mp_bandgap", "mp_semi_metal"])
def test_cif_folders(shared_data, folder, name):
    oracle = json.loads((shared_data / "oracles/cgcnn_folders.json").read_text())
    model = import_cgcnn(shared_data / f"checkpoints/official/{name}.npz")
    assert_met(model, shared_data / "cgcnn_folders" / folder, oracle[folder][name], f"{folder} {name}")


def test_padding_and_layout_change_nothing(shared_data, tmp_path):
    """The same predictions from batches of one crystal, and from rows of another length."""
    oracle = json.loads((shared_data / "oracles/cgcnn_short_rows.json").read_text())
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in oracle["records"]))
    model = import_cgcnn(shared_data / "checkpoints/official/mp_eform.npz")
    expected = predict(model, path).mean
    allowed = TOLERANCE * expected.std()
    np.testing.assert_allclose(predict(model, path, batch_size=1).mean, expected, rtol=0, atol=allowed)
    wide = replace(model, graph=replace(model.graph, places=12))
    np.testing.assert_allclose(predict(wide, path).mean, expected, rtol=0, atol=allowed)


@pytest.mark.parametrize(
    "name", ["official/mp_eform", "official/mp_bandgap", "official/mp_semi_metal", "moe/mp_eform", "moe/mp_kvrh"]
)
def test_pickle_and_arrays_give_one_model(shared_data, name):
    needs("torch")
    from_torch = import_cgcnn(shared_data / f"checkpoints/{name}.pth.tar")
    from_arrays = import_cgcnn(shared_data / f"checkpoints/{name}.npz")
    assert from_torch.graph == from_arrays.graph == GRAPH
    assert from_torch.model == from_arrays.model
    assert from_torch.targets == from_arrays.targets
    assert from_torch.normaliser.known() == from_arrays.normaliser.known()
    assert set(from_torch.normaliser.known()) == {"mean", "std"}  # the original keeps no range
    ours, theirs = flatten(from_torch.members[0]), flatten(from_arrays.members[0])
    assert ours.keys() == theirs.keys()
    for leaf, array in ours.items():
        assert array.dtype == np.float32, leaf
        np.testing.assert_array_equal(array, theirs[leaf], err_msg=leaf)
    raw = load_torch_tensors(shared_data / f"checkpoints/{name}.pth.tar")
    np.testing.assert_array_equal(raw["embedding.weight"].T, ours["params/embedding/kernel"])


def test_imported_model_is_a_bundle(shared_data, tmp_path):
    model = import_cgcnn(
        shared_data / "checkpoints/official/mp_bulk_modulus.npz", name="k_vrh", unit="GPa", transform="log10"
    )
    again = load_bundle(model.save(tmp_path / "model"))
    assert again.targets == model.targets and again.graph == model.graph and again.model == model.model
    for leaf, array in flatten(model.members[0]).items():
        np.testing.assert_array_equal(flatten(again.members[0])[leaf], array, err_msg=leaf)
    record = json.loads((shared_data / "oracles/cgcnn_official.json").read_text())
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(record["records"][0]) + "\n")
    assert predict(again, path).values[0, 0] == pytest.approx(
        10 ** record["predictions"]["mp_bulk_modulus"][0], rel=1e-5
    )
