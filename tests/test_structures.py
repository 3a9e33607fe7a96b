"""Every format is read to the same crystals; every kind of bad input is named."""

import gzip
import json
import math
import os
import pickle
import re
import sys

import numpy as np
import pytest
from extras import needs

from tlcgcnn_jax import Crystal, Record, Target
from tlcgcnn_jax.cif import _BY_ELECTRONEGATIVITY, _read_plain, _Unusual, read_cif
from tlcgcnn_jax.crystal import atomic_number, ordered_species
from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.poscar import read_poscar
from tlcgcnn_jax.structures import formula, parse, read_structures, scan

CSCL = {
    "lattice": [[4.1, 0, 0], [0, 4.1, 0], [0, 0, 4.1]],
    "species": ["Cs", "Cl"],
    "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]],
}
NACL_CIF = """data_NaCl
_cell_length_a 5.6402(3)
_cell_length_b 5.6402(3)
_cell_length_c 5.6402(3)
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_symmetry_equiv_pos_as_xyz
'x, y, z'
'x, y+1/2, z+1/2'
'x+1/2, y, z+1/2'
'x+1/2, y+1/2, z'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cl1 Cl 0.5 0.5 0.5 1
Na1 Na 0 0 0 1
"""
POSCAR = "CsCl\n1.0\n4.1 0 0\n0 4.1 0\n0 0 4.1\nCs Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"


def record(name, **columns):
    return {"id": name, "formula": "CsCl", **CSCL, **columns}


def write_lines(path, records):
    path.write_text("\n".join(json.dumps(r) for r in records))
    return path


def cscl_structure(a=4.1):
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def is_cscl(crystal):
    """A CsCl cell of 4.1 Å, whatever the order of the two sites."""
    shift = crystal.frac_coords[1] - crystal.frac_coords[0]
    np.testing.assert_allclose(shift % 1, 0.5, atol=1e-9)
    np.testing.assert_allclose(crystal.lattice @ crystal.lattice.T, 4.1**2 * np.eye(3), atol=1e-6)
    return sorted(crystal.atomic_numbers.tolist()) == [17, 55]


# --- formats --------------------------------------------------------------------------------------


def as_labelled_structures(folder):
    """Labels beside the properties of pymatgen, which writes {} where there are none."""
    rows = [{**cscl_structure().as_dict(), "material_id": name, "k": k} for name, k in (("one", 1.5), ("two", 2))]
    assert rows[0]["properties"] == {}
    return write_lines(folder / "s.jsonl", rows)


def as_labelled_structures_by_id(folder):
    rows = [json.loads(line) for line in as_labelled_structures(folder).read_text().splitlines()]
    (folder / "by_id.json").write_text(json.dumps({row.pop("material_id"): row for row in rows}))
    return folder / "by_id.json"


def as_labelled_structures_in_memory(folder):
    return [json.loads(line) for line in as_labelled_structures(folder).read_text().splitlines()]


def as_jsonl(folder):
    return write_lines(folder / "s.jsonl", [record("one", k=1.5), record("two", k=2)])


def as_jsonl_gz(folder):
    path = folder / "s.jsonl.gz"
    path.write_bytes(gzip.compress(as_jsonl(folder).read_bytes()))
    return path


def as_json_list(folder):
    (folder / "s.json").write_text(json.dumps([record("one", k=1.5), record("two", k=2)], indent=1))
    return folder / "s.json"


def as_lines_named_json(folder):
    return write_lines(folder / "s.json", [record("one", k=1.5), record("two", k=2)])


def as_matbench_frame(folder):
    rows = [[cscl_structure().as_dict(), 1.5], [cscl_structure().as_dict(), 2]]
    frame = {"index": ["one", "two"], "columns": ["structure", "k"], "data": rows}
    path = folder / "matbench.json.gz"
    path.write_bytes(gzip.compress(json.dumps(frame).encode()))
    return path


def as_jarvis(folder):
    atoms = {
        "lattice_mat": CSCL["lattice"],
        "coords": CSCL["frac_coords"],
        "elements": ["Cs", "Cl"],
        "cartesian": False,
    }
    cartesian = {**atoms, "coords": (np.array(CSCL["frac_coords"]) * 4.1).tolist(), "cartesian": True}
    rows = [{"jid": "one", "atoms": atoms, "k": 1.5}, {"jid": "two", "atoms": cartesian, "k": 2}]
    (folder / "jdft.json").write_text(json.dumps(rows))
    return folder / "jdft.json"


def as_structure_mapping(folder):
    structures = {"one": cscl_structure(), "two": cscl_structure()}
    for structure, k in zip(structures.values(), (1.5, 2), strict=True):
        structure.properties = {"k": k}
    (folder / "s.json").write_text(json.dumps({name: s.as_dict() for name, s in structures.items()}))
    return folder / "s.json"


def as_structure_folder(folder):
    for name, k in (("one", 1.5), ("two", 2)):
        structure = cscl_structure()
        structure.properties = {"k": k}
        (folder / f"{name}.json").write_text(json.dumps(structure.as_dict()))
    return folder


def as_cgcnn_folder(folder):
    (folder / "id_prop.csv").write_text("one,1.5\ntwo,2\n")
    for name in ("one", "two"):
        cscl_structure().to(str(folder / f"{name}.cif"))
    return folder


def as_cgcnn_folder_with_header(folder):
    as_cgcnn_folder(folder)
    (folder / "id_prop.csv").write_text("id,k\n\none,1.5\ntwo.cif,2\n")
    return folder


def as_extxyz(folder):
    from ase import Atoms
    from ase.io import write

    cell = {"scaled_positions": CSCL["frac_coords"], "cell": CSCL["lattice"], "pbc": True}
    atoms = [Atoms("CsCl", info={"id": name, "k": k}, **cell) for name, k in (("one", 1.5), ("two", 2.0))]
    write(folder / "s.extxyz", atoms)
    return folder / "s.extxyz"


def as_ase_db(folder):
    from ase import Atoms
    from ase.db import connect

    database = connect(str(folder / "s.db"))
    for name, k in (("one", 1.5), ("two", 2.0)):
        atoms = Atoms("CsCl", scaled_positions=CSCL["frac_coords"], cell=CSCL["lattice"], pbc=True)
        database.write(atoms, name=name, k=k)
    return folder / "s.db"


def as_pandas(folder):
    import pandas as pd

    return pd.DataFrame({"crystal": [cscl_structure(), cscl_structure()], "k": [1.5, 2], "name": ["one", "two"]})


def atoms_of_ase(pbc=True, **info):
    from ase import Atoms

    return Atoms("CsCl", scaled_positions=CSCL["frac_coords"], cell=CSCL["lattice"], pbc=pbc, info=info)


JARVIS_ATOMS = {"lattice_mat": CSCL["lattice"], "coords": CSCL["frac_coords"], "elements": ["Cs", "Cl"]}


def as_record_dictionaries(folder):
    return [record("one", k=1.5), {"id": "two", "structure": cscl_structure(), "k": 2}]


def as_structure_dictionaries(folder):
    first, second = cscl_structure(), cscl_structure()
    first.properties, second.properties = {"k": 1.5}, {"k": 2}
    return {"one": first.as_dict(), "two": second}


def as_jarvis_entries(folder):
    return [{"jid": "one", "atoms": JARVIS_ATOMS, "k": 1.5}, {"jid": "two", "atoms": JARVIS_ATOMS, "k": 2}]


def as_jarvis_frame(folder):
    import pandas as pd

    return pd.DataFrame(as_jarvis_entries(folder))


def as_flat_frame(folder):
    import pandas as pd

    return pd.DataFrame([record("one", k=1.5), record("two", k=2)])


def as_series(folder):
    import pandas as pd

    return pd.Series(as_structure_dictionaries(folder))


def as_atoms(folder):
    return [atoms_of_ase(id="one", k=1.5), atoms_of_ase(name="two", k=2)]


def as_paths(folder):
    as_structure_folder(folder)
    return [folder / "one.json", ("two", str(folder / "two.json"))]


def as_records(folder):
    crystal = Crystal(np.array(CSCL["lattice"], float), np.array([55, 17]), np.array(CSCL["frac_coords"]))
    return [Record("one", crystal, {"k": 1.5}), Record("two", crystal, {"k": 2.0})]


FORMATS = [as_jsonl, as_jsonl_gz, as_json_list, as_lines_named_json, as_matbench_frame, as_jarvis,
           as_labelled_structures, as_labelled_structures_by_id, as_labelled_structures_in_memory,
           as_structure_mapping, as_structure_folder, as_cgcnn_folder, as_cgcnn_folder_with_header, as_extxyz,
           as_ase_db, as_pandas, as_record_dictionaries, as_structure_dictionaries, as_jarvis_entries, as_jarvis_frame,
           as_flat_frame, as_series, as_atoms, as_paths, as_records]  # fmt: skip


@pytest.mark.parametrize("write", FORMATS, ids=[f.__name__ for f in FORMATS])
def test_every_format_gives_the_same_records(tmp_path, write):
    source = write(tmp_path)
    found = scan(source, targets=("k",))
    assert [item.id for item in found.items] == ["one", "two"]
    assert "k" in found.columns
    assert found.fingerprint == scan(source, targets=("k",)).fingerprint and len(found.fingerprint) == 64
    records = [parse(pickle.loads(pickle.dumps(item))) for item in found.items]
    assert [r.targets for r in records] == [{"k": 1.5}, {"k": 2.0}]
    assert all(is_cscl(r.structure) for r in records)
    assert [r.targets for r in read_structures(source)] == [{}, {}]


def test_files_with_a_table_of_labels(tmp_path):
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    (tmp_path / "POSCAR_1").write_text(POSCAR)
    (tmp_path / "b.vasp").write_text(POSCAR)
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("material_id,k,comment\nnacl.cif,24.4,a\nPOSCAR_1,17,b\nb,,c\n")
    before = scan(tmp_path).fingerprint
    result = read_structures(tmp_path, targets=("k",), labels=sheet, on_error="skip")
    assert {r.id: r.targets["k"] for r in result} == {"nacl": 24.4, "POSCAR_1": 17}
    assert [s.id for s in result.skipped] == ["b"]
    assert scan(tmp_path, labels=sheet).fingerprint != before
    assert len(read_structures(tmp_path / "b.vasp")) == 1
    sheet.write_text("code,k\nnacl,24.4\nPOSCAR_1,17\nb,1\n")
    assert len(read_structures(tmp_path, targets=("k",), labels=sheet, id_column="code")) == 3


def test_lists_of_structures():
    structures = [cscl_structure(), cscl_structure()]
    assert [r.id for r in read_structures(structures)] == ["row_0", "row_1"]
    assert [r.id for r in read_structures([("x", structures[0]), ("y", structures[1])])] == ["x", "y"]
    for one in (structures[0], structures[0].as_dict(), record("x"), JARVIS_ATOMS, atoms_of_ase()):
        assert is_cscl(read_structures(one)[0].structure)


def test_a_list_of_paths_is_called_by_their_names_and_known_by_their_contents(tmp_path):
    files = [tmp_path / "nacl.cif", tmp_path / "b.vasp", tmp_path / "c.extxyz"]
    files[0].write_text(NACL_CIF)
    files[1].write_text(POSCAR)
    atoms_of_ase().write(files[2])
    assert [one.id for one in read_structures(files)] == ["nacl", "b", "c"]
    labelled = read_structures(files, targets=("k",), labels={"nacl.cif": 1, "b": 2, "c": 3})
    assert [one.targets["k"] for one in labelled] == [1, 2, 3]
    before = scan(files).fingerprint
    files[0].write_text(NACL_CIF.replace("5.6402", "5.7"))
    assert scan(files).fingerprint != before
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "POSCAR").write_text(POSCAR)
    assert [one.id for one in read_structures(sorted(tmp_path.glob("*/POSCAR")))] == ["first", "second"]
    (tmp_path / "by_key.json").write_text(json.dumps({"mp-1": record("x")}))
    (tmp_path / "POSCAR.mp-2").write_text(POSCAR)
    named = read_structures([tmp_path / "by_key.json", tmp_path / "POSCAR.mp-2"], id_column="code", on_error="skip")
    assert [one.id for one in named] == ["mp-1", "POSCAR.mp-2"]
    left_out = read_structures([*files, tmp_path / "no.cif", NACL_CIF], on_error="skip").skipped
    assert "no.cif: there is no such file" in left_out[0].reason and "found text" in left_out[1].reason
    write_lines(tmp_path / "two.jsonl", [record("a"), record("b")])
    with pytest.raises(InputError, match=r"list:0: .*two.jsonl: 2 crystals in it; a list takes files of one"):
        read_structures([tmp_path / "two.jsonl"])


def test_names_of_files_keep_their_dots(tmp_path):
    for name in ("Si.300K.xyz", "Si.600K.EXTXYZ"):
        atoms_of_ase().write(tmp_path / name, format="extxyz")
    (tmp_path / "a.1.json").write_text(json.dumps(CSCL))
    (tmp_path / "a.2.json.gz").write_bytes(gzip.compress(json.dumps(CSCL).encode()))
    paths = sorted(path for path in tmp_path.iterdir() if path.suffix != ".EXTXYZ")
    assert [one.id for one in read_structures(paths)] == ["Si.300K", "a.1", "a.2"]
    assert [read_structures(path)[0].id for path in paths[1:]] == ["a.1", "a.2"]


@pytest.mark.parametrize("id_column", [None, "mpid"])
def test_a_listed_file_without_crystals_is_told(tmp_path, id_column):
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(InputError, match=r"list:0: .*none\.json: 0 crystals in it; a list takes files of one"):
        read_structures([tmp_path / "none.json"], id_column=id_column)


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    as_jsonl(tmp_path)
    (tmp_path / "sheet.csv").write_text("id,g\none,1\ntwo,2\n")
    found = read_structures("~/s.jsonl", targets=("g",), labels="~/sheet.csv")
    assert [one.targets["g"] for one in found] == [1, 2]
    atoms_of_ase().write(tmp_path / "c.extxyz")
    assert [one.id for one in read_structures(["~/c.extxyz"])] == ["c"]


def test_only_ids_in_id_prop_are_enough_to_predict(tmp_path):
    (tmp_path / "id_prop.csv").write_text("nacl\n")
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    assert read_structures(tmp_path)[0].targets == {}


def test_columns_of_id_prop_are_numbered_where_nothing_names_them(tmp_path):
    (tmp_path / "id_prop.csv").write_text("nacl,1,2\n")
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    assert read_structures(tmp_path, targets=("target_2",))[0].targets == {"target_2": 2.0}


def test_ids_that_are_null_become_row_numbers_and_another_column_can_be_named(tmp_path):
    path = write_lines(tmp_path / "s.jsonl", [record(None, row=7), record(None, row=9)])
    assert [r.id for r in read_structures(path)] == ["row_0", "row_1"]
    assert [r.id for r in read_structures(path, id_column="row")] == ["7", "9"]


def test_booleans_are_zero_and_one_and_partly_missing_labels_are_nan(tmp_path):
    path = write_lines(tmp_path / "s.jsonl", [record("a", metal=True, gap=None), record("b", metal=False, gap="1.2")])
    first, second = read_structures(path, targets=("metal", "gap"))
    assert first.targets["metal"] == 1.0 and math.isnan(first.targets["gap"])
    assert second.targets == {"metal": 0.0, "gap": 1.2}


@pytest.mark.parametrize(
    "numbers, expected",
    [([8, 8, 13, 8, 13], "Al2O3"), ([6], "C"), ([11, 17, 11, 17], "ClNa"), ([26] * 4, "Fe")],
)
def test_formula(numbers, expected):
    assert formula(numbers) == expected


# --- bad input ------------------------------------------------------------------------------------

OCCUPIED = {"species": [{"element": "Cs", "occu": "x"}], "abc": [0, 0, 0]}
RECORDS = {
    "target null": (
        {"k": None},
        r"s\.jsonl:1 \(id 'bad'\): k missing .*on_error=\"skip\" \(--on-error skip\)",
    ),
    "target empty text": ({"k": " "}, "k missing"),
    "target NaN": ({"k": math.nan}, "k missing"),
    "target absent in one record": ({}, "k missing"),
    "target infinite": ({"k": math.inf}, "k is infinite"),
    "target is a class": ({"k": "Metal"}, r"k is 'Metal', not a number; classes are written 0, 1, … .*--task classif"),
    "target with its unit": ({"k": "12 GPa"}, r"k is '12 GPa', not a number; use on_error"),
    "target is a list": ({"k": [1, 2]}, "not a number"),
    "duplicated id": ({"k": 1, "id": "good"}, r"'good' was already taken by .*s\.jsonl:"),
    "no volume": (
        {"k": 1, "lattice": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]},
        r"s\.jsonl:1 \(id 'bad'\): .*no volume",
    ),
    "cell not finite": ({"k": 1, "lattice": [[math.nan, 0, 0], [0, 1, 0], [0, 0, 1]]}, "not finite"),
    "cell of wrong shape": ({"k": 1, "lattice": [1, 2, 3]}, "3 rows of 3 numbers"),
    "coordinate not finite": ({"k": 1, "frac_coords": [[0, 0, 0], [0, 0, math.inf]]}, r"site 2 \(Cl\)"),
    "coordinate missing": ({"k": 1, "frac_coords": [[0, 0, 0]]}, r"2 species need .* shape \(2, 3\)"),
    "element beyond the table": ({"k": 1, "species": ["Cs", "Lr"]}, r"site 2 is 'Lr'.*Z = 1 to 100"),
    "no element": ({"k": 1, "species": ["Cs", "Vac"]}, "site 2 is 'Vac'"),
    "partial occupancy": (
        {"k": 1, "species": ["Cs", {"Cl": 0.5, "Br": 0.5}]},
        r"site 2 has partial .*Cl 0\.5, Br 0\.5",
    ),
    "no atoms": ({"k": 1, "species": [], "frac_coords": []}, "no atoms"),
    "no lattice": ({"k": 1, "lattice": None}, "3 rows of 3 numbers"),
    "occupancy is text": (
        {"k": 1, "structure": {"lattice": {"matrix": np.eye(3).tolist()}, "sites": [OCCUPIED]}},
        "no structure in it .ValueError",
    ),
}


@pytest.mark.parametrize("columns, message", RECORDS.values(), ids=RECORDS.keys())
def test_a_bad_record_is_named_or_skipped(tmp_path, columns, message):
    rows = [record("bad", **columns), record("good", k=1.0), record("fine", k=1.0)]
    rows = rows[::-1] if columns.get("id") else [{k: v for k, v in row.items()} for row in rows]
    path = write_lines(tmp_path / "s.jsonl", rows)
    with pytest.raises(InputError, match=message):
        read_structures(path, targets=("k",))
    result = read_structures(path, targets=("k",), on_error="skip")
    assert sorted(r.id for r in result) == ["fine", "good"]
    (left_out,) = result.skipped
    assert "s.jsonl:" in left_out.where and left_out.reason and "on_error" not in left_out.reason


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = write_lines(tmp_path / "s.jsonl", [record("a", k=1)])
    path.write_text(path.read_text() + "\n\n" + '{"id": "b", "latt')
    with pytest.raises(InputError, match="line 3 is no valid JSON"):
        read_structures(path)
    assert read_structures(path, on_error="skip").skipped[0].where.endswith(":3")


def test_an_absent_column_is_answered_by_those_there_are(tmp_path):
    path = write_lines(tmp_path / "s.jsonl", [record("a", gap=1, split="train")])
    with pytest.raises(InputError, match="no column k; the columns with numbers are: gap$"):
        scan(path, targets=("k",), on_error="skip")


def cgcnn(table, **files):
    return {"id_prop.csv": table, **{f"{name}.cif": text for name, text in files.items()}}


LAR = NACL_CIF.replace("Na1 Na 0", "Lr1 Lr 0")
SOURCES = {
    "empty folder": ({}, "an empty folder; expected id_prop.csv"),
    "folder of other things": ({"notes.txt": "", "a.png": ""}, r"a folder with a\.png, notes\.txt; expected"),
    "id without file": (cgcnn("a,1\nb,2\n", a=NACL_CIF), r"id_prop\.csv:2: id 'b' has no file b\.cif"),
    "id twice": (
        cgcnn("a,1\na.cif,2\n", a=NACL_CIF),
        r"id_prop\.csv:2: the id 'a' stands twice, first at .*id_prop\.csv:1: remove one",
    ),
    "label empty": (cgcnn("a,\nb,2\n", a=NACL_CIF, b=NACL_CIF), r"id_prop\.csv:1 \(id 'a'\): k missing"),
    "label no number": (cgcnn("a,1\nb,x\n", a=NACL_CIF, b=NACL_CIF), r"id_prop\.csv:2 \(id 'b'\): k is 'x', not a num"),
    "empty table": (cgcnn(""), "the table is empty"),
    "no column of that name": (cgcnn("id,gap\na,1\n", a=NACL_CIF), "no column k; .*: gap"),
    "truncated CIF": (cgcnn("a,1\n", a=NACL_CIF[:150]), r"a\.cif: _atom_site_fract_x not found.*cut short"),
    "CIF cut within a site": (cgcnn("a,1\n", a=NACL_CIF[:-9]), r"a\.cif: this CIF cannot be read"),
    "empty CIF": (cgcnn("a,1\n", a=""), r"a\.cif: no data_ block"),
    "CIF without atoms": (cgcnn("a,1\n", a=NACL_CIF[: NACL_CIF.index("loop_\n_atom")]), "no atoms"),
    "CIF without volume": (cgcnn("a,1\n", a=NACL_CIF.replace("length_a 5.6402(3)", "length_a 0")), r"a\.cif"),
    "CIF with impossible angle": (cgcnn("a,1\n", a=NACL_CIF.replace("alpha 90", "alpha 0")), r"a\.cif"),
    "CIF with partial occupancy": (
        cgcnn("a,1\n", a=NACL_CIF.replace("0 0 0 1", "0 0 0 0.5")),
        r"site 1 .*Na 0\.5",
    ),
    "CIF with an element beyond the table": (cgcnn("a,1\n", a=LAR), "is 'Lr'"),
    "POSCAR of VASP 4": ({"POSCAR": POSCAR.replace("Cs Cl\n", "")}, "names the elements"),
    "POSCAR cut short": ({"POSCAR": POSCAR[:60]}, "incomplete or malformed"),
    "JSON of another kind": ({"a.json": '{"a": 1}'}, "a JSON object with a"),
    "JSON cut short": ({"a.json": '[{"id": "a"'}, "no valid JSON"),
    "JSON without structure": ({"a.json": '{"lattice": 1}'}, "no structure in it"),
}


@pytest.mark.parametrize("files, message", SOURCES.values(), ids=SOURCES.keys())
def test_a_bad_folder_is_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_structures(tmp_path, targets=("k",) if "id_prop.csv" in files else ())


@pytest.mark.parametrize("listed", [True, False])
def test_a_column_of_ids_that_files_cannot_have_is_refused(tmp_path, listed):
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    if listed:
        (tmp_path / "id_prop.csv").write_text("nacl,1\n")
    ids = "the first column of id_prop.csv" if listed else "the names of the files"
    with pytest.raises(InputError, match=rf"the ids are {ids}, so that 'code' .*--id-column.* only be .* of a sheet"):
        read_structures(tmp_path, id_column="code")
    labels = {"nacl": {"k": 1}}
    assert read_structures(tmp_path, id_column="code", labels=labels, targets=("k",))[0].targets == {"k": 1}


@pytest.mark.parametrize("listed", [True, False])
def test_a_broken_link_is_named(tmp_path, listed):
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    (tmp_path / "lost.cif").symlink_to(tmp_path / "elsewhere.cif")
    if listed:
        (tmp_path / "id_prop.csv").write_text("nacl,1\nlost,2\n")
    for source in (tmp_path, tmp_path / "lost.cif"):
        with pytest.raises(InputError, match=r"lost\.cif: cannot be read .*a symbolic link to .*elsewhere\.cif"):
            read_structures(source)
    assert [one.id for one in read_structures(tmp_path, on_error="skip").skipped] == ["lost"]
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "lost.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match=r"lost\.json: cannot be read .*a symbolic link"):
        read_structures(tmp_path / "json")


PERIODICITY = {
    "periodic": (True, 4.12, None),
    "slab in vacuum": ((True, True, False), 12, None),
    "slab": ((True, True, False), 4.12, r"c \(vacuum of 2\.1 Å\)"),
    "molecule": (False, 12, r"a \(vacuum of 2\.1 Å\), b \(vacuum of 2\.1 Å\)"),
}


@pytest.mark.parametrize("pbc, c, axes", PERIODICITY.values(), ids=PERIODICITY.keys())
def test_what_would_be_another_crystal_is_refused_in_each_format_that_says_so(tmp_path, pbc, c, axes):
    from ase.db import connect
    from pymatgen.core import Lattice, Structure

    atoms = atoms_of_ase(pbc)
    atoms.set_cell([4.12, 4.12, c])  # its sites stay where they are
    atoms.write(tmp_path / "s.extxyz")
    connect(str(tmp_path / "s.db")).write(atoms)
    lattice = Lattice(np.array(atoms.cell), pbc=np.broadcast_to(pbc, 3).tolist())
    structure = Structure(lattice, ["Cs", "Cl"], atoms.get_positions(), coords_are_cartesian=True)
    flat = {
        "lattice": lattice.matrix,
        "species": ["Cs", "Cl"],
        "frac_coords": structure.frac_coords,
        "pbc": lattice.pbc,
    }
    jarvis = {
        "lattice_mat": lattice.matrix,
        "elements": ["Cs", "Cl"],
        "coords": structure.frac_coords,
        "pbc": lattice.pbc,
    }
    for source in (
        tmp_path / "s.extxyz", tmp_path / "s.db", [atoms], [structure], [structure.as_dict()], [flat], [jarvis],
    ):  # fmt: skip
        if axes is None:
            assert len(read_structures(source)) == 1
            continue
        with pytest.raises(InputError, match=rf"\(id '\w+'\): not periodic along {axes}; .*8 Å of vacuum"):
            read_structures(source)


def test_a_vacuum_of_just_the_cutoff_is_wide_enough():
    from ase.build import fcc111

    slabs = [fcc111("Pt", (1, 1, n), vacuum=4.0) for n in range(1, 30)]
    for seed, slab in enumerate(slabs):
        slab.translate([0, 0, np.random.default_rng(seed).uniform(0, 30)])
    assert len(read_structures(slabs)) == len(slabs)


def test_atoms_of_ase_without_a_cell_are_told_so():
    from ase.build import molecule

    with pytest.raises(InputError, match="not periodic along a, b, c, and its cell has no volume"):
        read_structures([molecule("H2O")])


@pytest.mark.parametrize("note", [{"Cs": {"Cs": 1.0}}, {0: 0.5}, {"2": {"H": 0.5}}, "half"])
def test_notes_of_ase_on_other_sites_are_nothing(note):
    atoms = atoms_of_ase(occupancy=note)
    atoms.set_array("spacegroup_kinds", np.array([0, 1]))
    assert len(read_structures([atoms, atoms_of_ase(occupancy=note)])) == 2


def test_disorder_that_ase_passed_over_is_refused(tmp_path):
    from ase.io import read

    disordered().to(str(tmp_path / "d.cif"))
    with pytest.raises(InputError, match="site 1 has partial occupancy"):
        read_structures([read(tmp_path / "d.cif")])


FORMS = {
    "charges": ({"Fe2+": 0.5, "Fe3+": 0.5}, 26),
    "isotopes": ({"D": 0.94, "H": 0.06}, 1),
}


@pytest.mark.parametrize("species, number", FORMS.values(), ids=FORMS.keys())
def test_forms_of_one_element_fill_a_site(species, number):
    assert atomic_number(ordered_species(list(species.items()), 0, "x")) == number
    sites = [{"species": [{"element": e, "occu": n} for e, n in species.items()], "abc": [0, 0, 0]}]
    found = read_structures([{"lattice": {"matrix": CSCL["lattice"]}, "sites": sites}])
    flat = read_structures([{"lattice": CSCL["lattice"], "species": [species], "frac_coords": [[0, 0, 0]]}])
    assert [one[0].structure.atomic_numbers.tolist() for one in (found, flat)] == [[number], [number]]
    for short in ({**species, "Fe2+": 0.4}, {**species, "Cl": 0.1}):
        with pytest.raises(InputError, match="site 1 has partial occupancy"):
            ordered_species(list(short.items()), 0, "x")


def test_a_row_that_stands_twice_does_not_stop_the_others(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.cif").write_text(NACL_CIF)
    (tmp_path / "id_prop.csv").write_text("a,1\nb,2\na,3\n")
    found = read_structures(tmp_path, targets=("target",), on_error="skip")
    assert [(one.id, one.targets["target"]) for one in found] == [("a", 1), ("b", 2)]
    assert "id_prop.csv:3: the id 'a' stands twice" in found.skipped[0].reason


def test_a_first_row_without_label_or_file_is_no_header(tmp_path):
    (tmp_path / "id_prop.csv").write_text("lost,\nnacl,1\n")
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    assert [s.id for s in scan(tmp_path, on_error="skip").skipped] == ["lost"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: data[:30] + b"\xff" * 9 + data[39:]], ids=["cut", "altered"]
)
def test_a_damaged_gzip_is_named(tmp_path, damage):
    path = as_jsonl_gz(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"s\.jsonl\.gz: the gzip file is damaged"):
        scan(path)


@pytest.mark.parametrize("name", ["s.db", "s.extxyz", "s.xyz"])
def test_formats_of_ase_say_what_to_install(tmp_path, monkeypatch, name):
    for module in ("ase", "ase.db", "ase.io"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match="pip install ase"):
        scan(tmp_path / name)


def test_partial_occupancy_in_a_matbench_frame_is_named(tmp_path):
    frame = {"index": [0], "columns": ["structure", "k"], "data": [[disordered().as_dict(), 1]]}
    (tmp_path / "f.json").write_text(json.dumps(frame))
    with pytest.raises(InputError, match=r"row 0 \(id '0'\): site 1 has partial occupancy"):
        read_structures(tmp_path / "f.json", targets=("k",))


PYTHON = {
    "text of a CIF": (lambda: NACL_CIF * 30, r"found text that begins with 'data_NaCl.*write the text to a file"),
    "text of JSON": (lambda: json.dumps([record("a")] * 9), "found text that begins with .*expected a path"),
    "bytes": (lambda: NACL_CIF.encode(), "found bytes; expected a path"),
    "a molecule": (lambda: [molecule()], "found Molecule; expected a pymatgen Structure, a Record, ASE Atoms"),
    "a number": (lambda: 3, "expected a path, a DataFrame, or a list"),
    "a list of numbers": (lambda: [3], r"list:0 \(id 'row_0'\): found int"),
    "an empty list": (list, "no crystals"),
    "a path that is not there": (lambda: "no/such/place", "no such file or folder"),
    "disordered structure": (lambda: [disordered()], r"site 1 has partial occupancy \(Cs 0\.5, Rb 0\.5\)"),
    "a frame without structures": (lambda: frame(), "no column of structures; its columns are k"),
}


def disordered():
    structure = cscl_structure()
    structure.replace_species({"Cs": {"Cs": 0.5, "Rb": 0.5}})
    return structure


def molecule():
    from pymatgen.core import Molecule

    return Molecule(["H", "H"], [[0, 0, 0], [0, 0, 0.7]])


def frame_of(rows):
    import pandas as pd

    return pd.DataFrame(rows)


def frame():
    import pandas as pd

    return pd.DataFrame({"k": [1.0]})


@pytest.mark.parametrize("source, message", PYTHON.values(), ids=PYTHON.keys())
def test_a_bad_python_object_is_named(source, message):
    with pytest.raises(InputError, match=message):
        read_structures(source())


def test_a_column_of_a_sheet_is_not_that_of_id_prop(tmp_path):
    """The second column of a table without a header has no name, so that it is not the one a sheet lacks."""
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    (tmp_path / "id_prop.csv").write_text("nacl,0.0\n")
    (tmp_path / "sheet.csv").write_text("id,bulk\nnacl,24.5\n")
    with pytest.raises(InputError, match=r"sheet\.csv: no column bulk_modulus; .*bulk"):
        read_structures(tmp_path, targets=("bulk_modulus",), labels=tmp_path / "sheet.csv")
    assert read_structures(tmp_path, targets=("bulk",), labels=tmp_path / "sheet.csv")[0].targets == {"bulk": 24.5}
    assert read_structures(tmp_path, targets=("k",))[0].targets == {"k": 0.0}


@pytest.mark.parametrize("listed", [True, False])
def test_crystals_that_are_not_read_are_told(tmp_path, caplog, listed):
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    (tmp_path / "more.cif.gz").write_bytes(gzip.compress(NACL_CIF.encode()))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "deep.cif").write_text(NACL_CIF)
    if listed:
        (tmp_path / "unlisted.cif").write_text(NACL_CIF)
        (tmp_path / "id_prop.csv").write_text("nacl,0.0\n")
    assert [record.id for record in read_structures(tmp_path)] == ["nacl"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"{2 + listed} not read" in told and "below/, more.cif.gz" in told and ("unlisted.cif" in told) == listed


def test_a_damaged_file_of_a_folder_of_json_can_be_left_out(tmp_path):
    as_structure_folder(tmp_path)
    (tmp_path / "three.json").write_text('{"lattice": ')
    (tmp_path / "settings.json").write_text('{"epochs": 3}')
    records = read_structures(tmp_path, on_error="skip")
    assert [record.id for record in records] == ["one", "two"]
    assert sorted(left_out.id for left_out in records.skipped) == ["settings", "three"]
    with pytest.raises(InputError, match=r"settings\.json: a JSON object with epochs"):
        read_structures(tmp_path)


def test_rows_of_an_ase_database_are_called_as_the_database_calls_them(tmp_path):
    from ase.db import connect

    database = connect(str(tmp_path / "x.db"))
    for k in (1.0, 2.0, 3.0):
        database.write(atoms_of_ase(), k=k)
    del database[1]
    found = read_structures(tmp_path / "x.db", targets=("k",))
    assert [(one.id, one.where[-5:]) for one in found] == [("2", "row 2"), ("3", "row 3")]
    assert [one.id for one in read_structures(tmp_path / "x.db", id_column="id")] == ["2", "3"]
    keys = [row.unique_id for row in database.select()]
    assert [one.id for one in read_structures(tmp_path / "x.db", id_column="unique_id")] == keys


def test_the_energy_of_an_ase_database_is_a_label(tmp_path):
    ase, db = needs("ase"), needs("ase.db")
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = ase.Atoms("CsCl", scaled_positions=CSCL["frac_coords"], cell=CSCL["lattice"], pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5)
    with db.connect(tmp_path / "x.db") as database:
        database.write(atoms, gap=2.0)
    assert read_structures(tmp_path / "x.db", targets=("energy", "gap"))[0].targets == {"energy": -1.5, "gap": 2.0}


LABELS = {
    "no such table": (None, "no such table"),
    "no id column": ("code,k\nnacl,1\n", "no id column .* among code, k"),
    "no row for any crystal": ("id,k\nother,1\n", "names none of the crystals: there it is 'other' …, here 'nacl'"),
    "a cell with a unit": ("id,k\nnacl,5 GPa\n", r"sheet\.csv:2 \(id 'nacl'\): k is '5 GPa', not a number"),
    "a row without crystal": ("id,k\nnacl,1\nother,1\n", r"sheet\.csv:3: id 'other' has no structure"),
    "an id twice": (
        "id,k\nnacl,1\nnacl,2\n",
        r"sheet\.csv:3: the id 'nacl' stands twice in column 'id', first at .*:2",
    ),
    "text of a table": ("id,k\nnacl,1\n", "found text that begins with 'id,k"),
    "no column of that name": ("id,gap\nnacl,1\n", r"sheet\.csv: no column k; .*: gap"),
}


@pytest.mark.parametrize("table, message", LABELS.values(), ids=LABELS.keys())
def test_a_bad_table_of_labels_is_named(tmp_path, table, message):
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    if table is not None:
        (tmp_path / "sheet.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        read_structures(tmp_path, targets=("k",), labels=table if "text" in message else tmp_path / "sheet.csv")


IN_MEMORY = {
    "a frame": lambda pd: pd.DataFrame({"material_id": ["b", "a"], "k": [2, 1.5]}),
    "a frame whose index names": lambda pd: pd.DataFrame({"k": [1.5, 2]}, index=["a", "b"]),
    "a frame with names and an index": lambda pd: pd.DataFrame({"name": ["x", "y"], "k": [1.5, 2]}, index=["a", "b"]),
    "a frame with two names": lambda pd: pd.DataFrame({"id": ["x", "y"], "file": ["a", "b"], "k": [1.5, 2]}),
    "a series": lambda pd: pd.Series([1.5, 2], ["a", "b"], name="k"),
    "a series without a name": lambda pd: pd.Series([1.5, 2], ["a", "b"]),
    "values by id": lambda pd: {"a": 1.5, "b": 2},
    "rows by id": lambda pd: {"a": {"k": 1.5, "note": "x"}, "b": {"k": 2}},
}


@pytest.mark.parametrize("make", IN_MEMORY.values(), ids=IN_MEMORY.keys())
def test_labels_in_memory_are_joined_as_those_of_a_table(tmp_path, make):
    import pandas as pd

    path = write_lines(tmp_path / "s.jsonl", [record("a"), record("b")])
    labels = make(pd)
    found = read_structures(path, targets=("k",), labels=labels)
    assert [one.targets["k"] for one in found] == [1.5, 2]
    turned = labels.iloc[::-1] if hasattr(labels, "iloc") else dict(reversed(labels.items()))
    marks = [scan(path, labels=one, targets=("k",)).fingerprint for one in (labels, turned)]
    assert marks[0] == marks[1] != scan(path).fingerprint
    left_out = read_structures([record("a"), record("c")], targets=("k",), labels=labels, on_error="skip").skipped
    assert "(id 'c'): labels has no row for it" in left_out[0].reason


BAD_IN_MEMORY = {
    "a list": ([1.5, 2], ("k",), "labels: found list; expected the path of a CSV table, a DataFrame"),
    "values of two targets": ({"a": 1, "b": 2}, ("k", "g"), "one value a crystal for 2 targets"),
    "nothing": ({}, ("k",), "labels: there are no labels in it"),
    "values of no target": ({"a": 1}, (), "no target that says what it is: name one"),
    "no such column": ({"a": {"g": 1}, "b": {"g": 2}}, ("k",), "labels: no column k; .*: g"),
    "a crystal without": ({"a": 1}, ("k",), r"\(id 'b'\): labels has no row for it in its keys"),
}


@pytest.mark.parametrize("labels, targets, message", BAD_IN_MEMORY.values(), ids=BAD_IN_MEMORY.keys())
def test_bad_labels_in_memory_are_named(tmp_path, labels, targets, message):
    path = write_lines(tmp_path / "s.jsonl", [record("a"), record("b")])
    with pytest.raises(InputError, match=message):
        read_structures(path, targets=targets, labels=labels)


@pytest.mark.parametrize("labels", [[1.5, 2], (1.5, 2), np.array([[1.5], [2]])], ids=["list", "tuple", "array"])
def test_labels_in_a_list_stand_beside_crystals_in_memory(labels):
    found = read_structures([record("b"), record("a")], targets=("k",), labels=labels)
    assert {one.id: one.targets["k"] for one in found} == {"b": 1.5, "a": 2}
    again = read_structures([record("a"), record("a")], targets=("k",), labels=labels, on_error="skip")
    assert [one.targets["k"] for one in again] == [1.5] and len(again.skipped) == 1
    behind = read_structures([record("a"), record("a")], targets=("k",), labels=[None, 2], on_error="skip")
    assert [one.targets["k"] for one in behind] == [2] and "labels:0" in behind.skipped[0].reason


@pytest.mark.parametrize(
    "labels, told",
    [
        ([1.5], "1 for 2 crystals"),
        (np.array(1.5), "one number for 2 crystals"),
        (np.ones((2, 2)), "one number a crystal"),
        ([{}, {}], "one number a crystal"),
    ],
)
def test_lists_of_labels_that_do_not_fit_are_refused(labels, told):
    with pytest.raises(InputError, match=told):
        read_structures([record("a"), record("b")], targets=("k",), labels=labels)


def test_a_frame_is_read_by_what_its_cells_hold():
    import pandas as pd

    structure = atoms_of_ase()
    frame = pd.DataFrame(
        {"atoms": [2, 2], "relaxed": [None, structure], "sites": [1, 2], "k": [1.5, 2]}, index=["a", "b"]
    )
    found = read_structures(frame, targets=("sites", "k"), on_error="skip")
    assert [one.targets for one in found] == [{"sites": 2, "k": 2}] and found[0].id == "b"
    assert "found NoneType" in found.skipped[0].reason
    frame = pd.DataFrame(
        {"material_id": ["mp-1", None], "name": ["x", "y"], "structure": [structure] * 2}, index=["u", "v"]
    )
    assert [one.id for one in read_structures(frame)] == ["mp-1", "v"]  # one column for all, then the index


def test_ids_of_a_frame_may_be_called_in_capitals():
    import pandas as pd

    frame = pd.DataFrame({"ID": ["x", "y"], "structure": [atoms_of_ase()] * 2})
    assert [one.id for one in read_structures(frame)] == ["x", "y"]


def test_documents_of_an_interface_are_read_as_their_dictionaries():
    class Document:
        def model_dump(self):
            return {**record("mp-1"), "k": 1.5}

    for source in (Document(), [Document()]):
        found = read_structures(source, targets=Target("k"))
        assert found[0].id == "mp-1" and found[0].targets == {"k": 1.5}


NO_SOURCE = {
    "nothing": (lambda folder: "", "found an empty path"),
    "a packed dataset": (lambda folder: folder, "is a packed dataset: read it with tlcgcnn_jax.load_dataset"),
}


@pytest.mark.parametrize("source, message", NO_SOURCE.values(), ids=NO_SOURCE.keys())
def test_what_is_no_source_is_told(tmp_path, source, message):
    (tmp_path / "senders.npy").write_text("")
    with pytest.raises(InputError, match=message):
        read_structures(source(tmp_path))


def test_files_of_structures_have_no_labels(tmp_path):
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    with pytest.raises(InputError, match=r"no column k; files of structures have no labels: give a sheet"):
        read_structures(tmp_path, targets=("k",))


def test_a_property_of_a_structure_may_be_its_id():
    from pymatgen.core import Structure

    structure = Structure(CSCL["lattice"], CSCL["species"], CSCL["frac_coords"], properties={"code": "x7"})
    assert [one.id for one in read_structures([structure], id_column="code")] == ["x7"]
    assert [one.id for one in read_structures([structure.as_dict()], id_column="code")] == ["x7"]
    assert [one.id for one in read_structures([structure])] == ["row_0"]
    with pytest.raises(InputError, match="no id in column 'number'"):
        read_structures([structure], id_column="number")


def test_properties_of_a_structure_come_before_what_stands_beside_them():
    row = {**cscl_structure().as_dict(), "properties": {"k": 1.5, "charge": 2}, "k": 7, "g": 3}
    found = scan([row], targets=("k", "g", "charge"))
    assert found.items[0].targets == {"k": 1.5, "g": 3, "charge": 2} and set(found.columns) == {"k", "g", "charge"}
    assert not scan([cscl_structure().as_dict()]).columns  # the charge that pymatgen writes is no label


def test_labels_that_name_a_column_twice_are_refused():
    import pandas as pd

    labels = pd.DataFrame([["a", 1, 99]], columns=["id", "k", "k"])
    for source, given in (([record("a")], labels), (labels, None)):
        with pytest.raises(InputError, match="header names k more than once"):
            read_structures(source, targets=("k",), labels=given)


def test_a_column_of_ids_that_is_asked_for_is_the_only_one(tmp_path):
    import pandas as pd

    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    (tmp_path / "sheet.csv").write_text("id,code,k\nnacl,7,1\n")
    frame = pd.read_csv(tmp_path / "sheet.csv")
    for labels in (tmp_path / "sheet.csv", frame):
        with pytest.raises(InputError, match="'code' names none of the crystals: there it is '7' …, here 'nacl'"):
            read_structures(tmp_path, targets=("k",), labels=labels, id_column="code")
    by_code = frame.assign(code=["nacl"], id=["x"]).set_index("code")
    assert read_structures(tmp_path, targets=("k",), labels=by_code, id_column="code")[0].targets == {"k": 1}
    with pytest.raises(InputError, match=r"labels: no column 'number' \(--id-column\) among id, code, k"):
        read_structures(tmp_path, targets=("k",), labels=frame, id_column="number")


def test_the_column_of_ids_is_the_one_that_names_the_crystals(tmp_path):
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    (tmp_path / "sheet.csv").write_text("id,file,k\nmp-22862,nacl.cif,1\n")
    assert read_structures(tmp_path, targets=("k",), labels=tmp_path / "sheet.csv")[0].targets == {"k": 1}
    with pytest.raises(InputError, match="column 'id' names none of the crystals"):
        read_structures(tmp_path, targets=("k",), labels=tmp_path / "sheet.csv", id_column="id")


@pytest.mark.parametrize("word", ["-", "#N/A", "NA", "n/a", "None", "null", "NaN", " "])
def test_words_for_no_value(tmp_path, word):
    found = labelled(tmp_path, f"id,k,g\na,{word},1\nb,2,1\n", on_error="skip")
    assert [one.id for one in found] == ["b"] and "k missing" in found.skipped[0].reason


@pytest.mark.parametrize("labels", [None, "sheet.csv"])
def test_a_wrong_column_of_ids_is_told_and_not_a_missing_target(tmp_path, labels):
    path = as_jsonl(tmp_path)
    (tmp_path / "sheet.csv").write_text("id,k\none,1\ntwo,2\n")
    sheet = labels and tmp_path / labels
    with pytest.raises(InputError, match=r"no id in column 'code' \(--id-column\); the columns are id, k"):
        read_structures(path, targets=("k",), labels=sheet, id_column="code")
    left_out = read_structures(path, targets=("k",), labels=sheet, id_column="code", on_error="skip").skipped
    assert "no id in column 'code'" in left_out[0].reason


def test_on_error_takes_two_words(tmp_path):
    with pytest.raises(InputError, match="'ignore'"):
        read_structures(as_records(tmp_path), on_error="ignore")


# --- CIF against pymatgen -------------------------------------------------------------------------


def assert_as_pymatgen(text, name, plain=None):
    """Same lattice, sites and order of sites; `plain` says whether the fast reader must have been used."""
    from pymatgen.io.cif import CifParser

    expected = CifParser.from_str(text).parse_structures(primitive=False)[0]
    crystal = read_cif(text, name)
    np.testing.assert_allclose(crystal.lattice, expected.lattice.matrix, atol=1e-8, err_msg=name)
    assert crystal.atomic_numbers.tolist() == [s.Z for s in expected.species], name
    difference = crystal.frac_coords - expected.frac_coords
    np.testing.assert_allclose(difference - np.round(difference), 0, atol=1e-6, err_msg=name)
    try:
        _read_plain(text)
        was_plain = True
    except _Unusual:
        was_plain = False
    assert plain in (None, was_plain), name
    return was_plain


HEAD, _, SITES = NACL_CIF.split("loop_")
SECOND = "Na1 Na"
NEAR = NACL_CIF.replace("0.5 0.5 0.5", "0.50004 0.5 0.5").replace("'x, y, z'", "'x, y, z'\n'-x, y, z'")
LABELS_ONLY = NACL_CIF.replace("_atom_site_type_symbol\n", "").replace(SECOND, "Na1")
VARIANTS = {
    "plain": (NACL_CIF, True),
    "thirds": (NACL_CIF.replace("0.5 0.5 0.5", "0.3333 0.66667 0.5"), True),
    "sixths": (NACL_CIF.replace("0.5 0.5 0.5", "0.1667 0.8333 0.5"), True),
    "negative and beyond the cell": (NACL_CIF.replace("0.5 0.5 0.5", "-0.25 1.25 0.5"), True),
    "a block without structure first": ("data_first\n_journal_year 1990\n" + NACL_CIF, False),
    "symbol instead of operators": (f"{HEAD}_symmetry_space_group_name_H-M 'F m -3 m'\nloop_{SITES}", False),
    "neither symbol nor operators": (f"{HEAD}loop_{SITES}", False),
    "charges": (NACL_CIF.replace(SECOND, "Na1 Na+").replace("Cl1 Cl", "Cl1 Cl1-"), True),
    "deuterium": (NACL_CIF.replace(SECOND, "D1 D"), False),
    "labels only": (LABELS_ONLY.replace("Cl1 Cl", "Cl1"), True),
    "odd labels only": (LABELS_ONLY.replace("Cl1 Cl", "ClA"), False),
    "two sites of one orbit almost the same": (NEAR, True),
    "noble gas": (NACL_CIF.replace(SECOND, "Ar1 Ar"), False),
    "decimal operators": (NACL_CIF.replace("1/2", "0.5"), False),
}


# pymatgen's own parser, the oracle here, warns of what it mends (rounded coordinates, occupancies, missing fields).
OF_PYMATGEN = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@OF_PYMATGEN
@pytest.mark.parametrize("text, plain", VARIANTS.values(), ids=VARIANTS.keys())
def test_cif_variants_are_read_as_pymatgen_reads_them(text, plain):
    assert_as_pymatgen(text, "variant", plain)


@OF_PYMATGEN
def test_cif_files_of_the_original_are_read_as_pymatgen_reads_them(shared_data):
    files = sorted((shared_data / "cgcnn_folders").glob("*/*.cif"))
    assert len(files) == 20
    assert sum(assert_as_pymatgen(file.read_text(), file.name) for file in files) >= 18


@OF_PYMATGEN
@pytest.mark.parametrize("name", ["mp_crysxpp", "elastic_mp", "qsgw_gap_ecalj", "perov_5", "carbon_24"])
def test_cif_of_pymatgen_are_read_as_pymatgen_reads_them(shared_data, name):
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifWriter

    items = scan(shared_data / name / f"{name}.jsonl.gz").items
    plain = []
    for item in items[:: len(items) // 8][:8]:
        crystal = parse(item).structure
        structure = Structure(crystal.lattice, crystal.atomic_numbers.tolist(), crystal.frac_coords)
        texts = [str(CifWriter(structure, symprec=symprec)) for symprec in (None, 1e-3)]
        plain += [assert_as_pymatgen(text, item.id) for text in texts]
    assert np.mean(plain) > 0.9


def test_order_of_elements_is_that_of_pymatgen():
    from pymatgen.core import Element

    elements = [Element(symbol) for symbol in _BY_ELECTRONEGATIVITY.split()]
    assert len(elements) == 97
    assert elements == sorted(elements, key=lambda e: (e.X, e.symbol))


def test_the_folder_of_the_original(shared_data):
    records = read_structures(shared_data / "cgcnn_folders" / "sample-regression", targets=("property",))
    assert [r.targets["property"] for r in records] == list(range(1, 11))
    assert records[0].id == "1000041" and len(records[0].structure.atomic_numbers) == 8


def test_another_column_of_ids_is_another_input(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**CSCL, "a": "a0", "b": "b0"}) + "\n")
    found = [scan(path, id_column=column) for column in ("a", "b")]
    assert [scanned.items[0].id for scanned in found] == ["a0", "b0"]
    assert found[0].fingerprint != found[1].fingerprint


@pytest.mark.parametrize(
    ("row", "told"),
    [({"k": 1e39}, "too large for float32"), ({"k": -1e300}, "too large for float32")],
    ids=["beyond float32", "far below"],
)
def test_a_label_that_float32_cannot_hold(tmp_path, row, told):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**CSCL, "id": "one", **row}) + "\n")
    with pytest.raises(InputError, match=told):
        scan(path, targets=("k",))


def test_a_short_row_of_the_table_is_a_missing_label(tmp_path):
    (tmp_path / "nacl.cif").write_text(NACL_CIF)
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("id,k,g\nnacl,24\n")
    found = scan(tmp_path, targets=("k", "g"), labels=sheet)
    assert found.items[0].targets["k"] == 24 and np.isnan(found.items[0].targets["g"])


@pytest.mark.parametrize("key, value", [("columns", 5), ("data", 5), ("index", 5), ("data", {"a": 1})])
def test_a_frame_that_is_none_is_told(tmp_path, key, value):
    frame = {"index": [0], "columns": ["structure", "k"], "data": [[cscl_structure().as_dict(), 1.0]], key: value}
    (tmp_path / "frame.json").write_text(json.dumps(frame))
    with pytest.raises(InputError, match=rf"frame.json: a frame was expected, but its '{key}' is no list: "):
        read_structures(tmp_path / "frame.json", on_error="skip")


def test_a_cif_whose_columns_differ_in_length_is_refused(tmp_path):
    """As separate loops, which no writer makes, but an editor does."""
    head, sites = NACL_CIF.split("loop_\n_atom_site", 1)
    text = head + "loop_\n_atom_site_type_symbol\n_atom_site_fract_x\nNa 0\nCl 0.5\nloop_\n_atom_site_fract_y\n0\n0.5\n"
    (tmp_path / "a.cif").write_text(text + "loop_\n_atom_site_fract_z\n0\n")
    with pytest.raises(InputError, match="a.cif"):
        read_structures(tmp_path / "a.cif")


def test_a_frame_with_a_ragged_row_names_it(tmp_path):
    path = tmp_path / "frame.json"
    structure = cscl_structure().as_dict()
    frame = {"index": [0, 1], "columns": ["structure", "k"], "data": [[structure, 1.0], [structure]]}
    path.write_text(json.dumps(frame))
    with pytest.raises(InputError, match=r"frame.json:row 1: expected 2 values"):
        scan(path, targets=("k",))
    found = scan(path, targets=("k",), on_error="skip")
    assert [len(found.items), len(found.skipped)] == [1, 1]


# --- tables as people write them ----------------------------------------------------------------------------------


def labelled(folder, text, encoding="utf-8", **settings):
    """Two crystals, a and b, with a sheet."""
    write_lines(folder / "s.jsonl", [record("a"), record("b")])
    (folder / "sheet.csv").write_bytes(text.encode(encoding))
    return read_structures(folder / "s.jsonl", targets=("k",), labels=folder / "sheet.csv", **settings)


SHEETS = {
    "semicolons": ("id;k\na;1.5\nb;2\n", "utf-8"),
    "tabs": ("id\tk\na\t1.5\nb\t2\n", "utf-8"),
    "of Excel, in Unicode": ("id\tk\na\t1.5\nb\t2\n", "utf-16"),
    "with a mark, Windows lines": ("id,k\r\na,1.5\r\nb,2\r\n", "utf-8-sig"),
    "latin": ("id,k,größe\na,1.5,x\nb,2,y\n", "cp1252"),
    "a name in capitals": ("ID,k\na,1.5\nb,2\n", "utf-8"),
    "a semicolon in a name": ("id,k,note; unit\na,1.5,\nb,2,\n", "utf-8"),
    "empty cells at the end": ("id,k\na,1.5,\nb,2,,\n", "utf-8"),
}


@pytest.mark.parametrize("text, encoding", SHEETS.values(), ids=SHEETS)
def test_a_sheet_of_any_program_is_read(tmp_path, text, encoding):
    assert [one.targets["k"] for one in labelled(tmp_path, text, encoding)] == [1.5, 2.0]


def test_decimal_commas_are_not_taken_for_numbers(tmp_path):
    """Cut at the comma, 1,5 would be 1."""
    with pytest.raises(InputError, match=r"sheet.csv:2 \(id 'a'\): 3 cells, 2 in the header: a, 1, 5; decimals are"):
        labelled(tmp_path, "id,k\na,1,5\nb,2\n")
    found = labelled(tmp_path, "id,k\na,1,5\nb,2\n", on_error="skip")
    assert [one.id for one in found] == ["b"] and len(found.skipped) == 1
    (tmp_path / "cgcnn").mkdir()
    for name, text in cgcnn("id,k\na,1,5\n", a=NACL_CIF).items():
        (tmp_path / "cgcnn" / name).write_text(text)
    with pytest.raises(InputError, match="id_prop.csv:2: 3 cells, 2 in the header"):
        read_structures(tmp_path / "cgcnn", targets=("k",))


def test_a_column_that_is_named_twice_is_refused(tmp_path):
    with pytest.raises(InputError, match="sheet.csv: the header names k more than once"):
        labelled(tmp_path, "id,k,k\na,1,2\nb,2,3\n")


def test_the_id_column_is_that_of_both_or_of_the_crystals_alone(tmp_path):
    rows = [{**record("x"), "mpid": "a"}, {**record("y"), "mpid": "b"}]
    path = write_lines(tmp_path / "s.jsonl", rows)
    for header in ("mpid", "id"):
        (tmp_path / "sheet.csv").write_text(f"{header},k\na,1\nb,2\n")
        found = read_structures(path, targets=("k",), labels=tmp_path / "sheet.csv", id_column="mpid")
        assert [(one.id, one.targets["k"]) for one in found] == [("a", 1), ("b", 2)]


def test_ids_are_those_of_people(tmp_path):
    """Whole numbers that a frame has made decimal, keys of a mapping, and rows without any."""
    path = write_lines(tmp_path / "s.jsonl", [{**record("x"), "id": 1.0}, {**record("x"), "id": None}])
    assert [one.id for one in read_structures(path)] == ["1", "row_1"]
    salts = {key: {**record("x"), "id": None, "name": "salt"} for key in ("mp-1", "mp-2")}
    (tmp_path / "m.json").write_text(json.dumps(salts))
    assert [one.id for one in read_structures(tmp_path / "m.json")] == ["mp-1", "mp-2"]
    import pandas as pd

    frame = pd.DataFrame({"structure": [cscl_structure()] * 3, "id": [7.0, np.nan, 9.0]}, index=["a", "b", "c"])
    assert [one.id for one in read_structures(frame)] == ["7", "b", "9"]
    frame["id"] = pd.array([7, None, 9], dtype="Int64")
    assert [one.id for one in read_structures(frame)] == ["7", "b", "9"]


def test_notes_of_other_systems_are_no_crystals(tmp_path):
    (tmp_path / "a.cif").write_text("\ufeff" + NACL_CIF, encoding="utf-8")  # with a byte-order mark, too
    (tmp_path / "._a.cif").write_bytes(b"\x00\x05\x16\x07")
    assert [one.id for one in read_structures(tmp_path)] == ["a"]


BY_PYMATGEN = NACL_CIF.replace("_symmetry_equiv_pos_as_xyz", "_unknown_tag")


@pytest.mark.parametrize("text", [NACL_CIF, BY_PYMATGEN], ids=["plain", "through pymatgen"])
@pytest.mark.parametrize("mark", ["?", "."])
def test_a_type_that_is_not_told_is_that_of_the_label(text, mark):
    known = sorted(read_cif(text, "a").atomic_numbers)
    for untold in (text.replace("Na1 Na", f"Na1 {mark}"), re.sub("(Na1|Cl1) (Na|Cl)", rf"\1 {mark}", text)):
        assert untold != text and sorted(read_cif(untold, "a").atomic_numbers) == known
    with pytest.raises(InputError, match=r"a: the element of sites labelled 1Na is not known"):
        read_cif(text.replace("Na1 Na", f"1Na {mark}"), "a")


@pytest.mark.parametrize("text", [NACL_CIF, BY_PYMATGEN], ids=["plain", "through pymatgen"])
def test_hydrogen_at_the_place_of_oxygen_is_not_lost(text):
    hydroxide = text.replace("Cl1 Cl", "O1 O")
    with pytest.raises(InputError, match="a: hydrogens that belong to a site of another atom have no place"):
        read_cif(hydroxide + "H1 H 0.5 0.5 0.5 1\n", "a")


def test_isotopes_and_charges_share_a_site_of_a_cif():
    rows = "Cl1 Cl 0.5 0.5 0.5 1\nD1 D 0 0 0 0.94\nH1 H 0 0 0 0.06\n"
    assert sorted(read_cif(NACL_CIF.partition("Cl1")[0] + rows, "a").atomic_numbers) == [1] * 4 + [17] * 4
    rows = "Cl1 Cl1- 0.5 0.5 0.5 1\nFe1 Fe2+ 0 0 0 0.5\nFe2 Fe3+ 0 0 0 0.5\n"
    charges = "loop_\n_atom_type_symbol\n_atom_type_oxidation_number\nCl1- -1\nFe2+ 2\nFe3+ 3\n"
    text = NACL_CIF.partition("Cl1")[0] + rows + charges
    assert sorted(read_cif(text, "a").atomic_numbers) == [17] * 4 + [26] * 4


SPELLINGS = {
    "of DDLm": lambda tag: re.sub("^_(cell|atom_site|space_group_symop)_", r"_\1.", tag),
    "of DDLm, another tag of operators": lambda tag: re.sub(
        "^_(cell|atom_site|space_group_symop)_",
        r"_\1.",
        tag.replace("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz"),
    ),
    "capitals": str.upper,
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("half", ["1/2", "0.5"], ids=["plain", "through pymatgen"])
def test_data_names_may_be_spelled_otherwise(spell, half):
    text = NACL_CIF.replace("1/2", half)
    other = re.sub(r"^_\S+", lambda tag: spell(tag[0]), text, flags=re.MULTILINE)
    read, known = read_cif(other, "a"), read_cif(text, "a")
    assert other != text
    np.testing.assert_array_equal(read.atomic_numbers, known.atomic_numbers)
    np.testing.assert_allclose(read.frac_coords, known.frac_coords, atol=1e-12)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "through pymatgen"])
def test_an_occupancy_that_is_not_told_is_full(plain):
    text = NACL_CIF if plain else NACL_CIF.replace("_symmetry_equiv_pos_as_xyz", "_unknown_tag")
    assert "_atom_site_occupancy" in text
    known = sorted(read_cif(text, "a").atomic_numbers)
    lines = [re.sub(r" 1(\.0*)?$", " .", line.rstrip()) for line in text.splitlines()]
    assert "\n".join(lines) != text and sorted(read_cif("\n".join(lines), "a").atomic_numbers) == known


def test_the_fingerprint_sees_all_of_a_long_array_and_the_name_of_a_file(tmp_path):
    coords = np.random.default_rng(0).uniform(size=(600, 3))
    moved = coords.copy()
    moved[300] += 0.3
    one, other = ({"lattice": np.eye(3) * 40, "species": ["Na"] * 600, "frac_coords": c} for c in (coords, moved))
    assert scan([("a", one)]).fingerprint != scan([("a", other)]).fingerprint
    for name in ("s1", "s2"):
        (tmp_path / f"{name}.json").write_text(json.dumps(cscl_structure().as_dict()))
    assert scan(tmp_path / "s1.json").fingerprint != scan(tmp_path / "s2.json").fingerprint


@pytest.mark.parametrize("kind", ["records", "frame", "structures", "pairs"])
def test_the_fingerprint_sees_the_columns_that_are_asked_for(kind):
    """A note in another column makes no other dataset."""

    def mark(name="a", k=1, note="x", a=4.1, targets=("k",)):
        row, structure = record(name, k=k, note=note, lattice=(np.eye(3) * a).tolist()), cscl_structure(a)
        structure.properties = {"k": k, "note": note}
        source = {"records": [row], "frame": frame_of([row]), "structures": {name: structure}, "pairs": [(name, row)]}
        return scan(source[kind], targets=targets).fingerprint

    assert mark() == mark(note="y") == mark(k=1.0)
    assert len({mark(), mark(k=2), mark(name="b"), mark(a=4.2)}) == 4
    assert mark(targets=()) == mark(targets=(), k=2)


CSCL_LINES = ["CsCl", "4.12", "1 0 0", "0 1 0", "0 0 1", "Cs Cl", "1 1", "Direct", "0 0 0", ".5 .5 .5"]


def test_a_poscar_may_have_comments_and_fortran_numbers():
    lines = [*CSCL_LINES[:1], "0.412D+01 # Å", *CSCL_LINES[2:5], "Cs Cl ! salt", "1 1 # each", *CSCL_LINES[7:]]
    assert read_poscar("\n".join(lines), "x").lattice[0, 0] == pytest.approx(4.12)


def test_more_counts_than_elements_in_a_poscar_are_refused():
    lines = [*CSCL_LINES[:6], "1 1 3", *CSCL_LINES[7:], "0 0 .5", "0 .5 0", ".5 0 0"]
    with pytest.raises(InputError, match="names 2 species, counts 3"):
        read_poscar("\n".join(lines), "x")


@pytest.mark.skipif(sys.platform != "linux", reason="file names must be text there")
def test_a_file_name_that_is_no_text_is_told_or_left_out(tmp_path):
    """As zip files of other systems leave them behind: such an id could be written nowhere."""
    (tmp_path / "good.cif").write_text(NACL_CIF)
    (tmp_path / os.fsdecode(b"Na\x81Cl.cif")).write_text(NACL_CIF)
    with pytest.raises(InputError, match="cannot be written as text: rename it"):
        read_structures(tmp_path)
    assert [record.id for record in read_structures(tmp_path, on_error="skip")] == ["good"]
    listed = read_structures(sorted(tmp_path.iterdir()), on_error="skip")
    assert [record.id for record in listed] == ["good"] and len(listed.skipped) == 1
