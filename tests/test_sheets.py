"""Tables as Excel writes them, frames as pandas writes them, and files as VASP calls them."""

import json
from dataclasses import replace

import pytest

from tlcgcnn_jax.errors import InputError
from tlcgcnn_jax.structures import read_structures, scan

CSCL = {
    "lattice": [[4.1, 0, 0], [0, 4.1, 0], [0, 0, 4.1]],
    "species": ["Cs", "Cl"],
    "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]],
}
POSCAR = "CsCl\n1.0\n4.1 0 0\n0 4.1 0\n0 0 4.1\nCs Cl\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"


def labelled(folder, text, ids=("a", "b"), **settings):
    """Crystals with a sheet."""
    (folder / "s.json").write_text(json.dumps([{"id": name, **CSCL} for name in ids]))
    (folder / "sheet.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = read_structures(folder / "s.json", labels=folder / "sheet.csv", **{"targets": ("k",), **settings})
    return {one.id: one.targets["k"] for one in found}


# --- numbers --------------------------------------------------------------------------------------

READ = {
    "decimal commas": "id;k\na;1,5\nb;-2\n",
    "decimal commas after tabs": "id\tk\na\t1,5\nb\t-2,0\n",
    "in quotes": 'id;k\na;"1,5"\nb;"-2,0"\n',
    "with an exponent": "id;k\na;15,0e-1\nb;-0,2E+1\n",
    "points beside a column of commas": "id;k;x\na;1.5;7,5\nb;-2.0;8,5\n",
    "the line that tells Excel": "sep=;\nid;k\na;1,5\nb;-2\n",
    "that line, with a mark and Windows lines": "\ufeffsep=,\r\nid,k\r\na,1.5\r\nb,-2\r\n",
    "that line in quotes, as wide as the table": '"sep=;";;\nid;k\na;1,5\nb;-2\n',
    "that line, with a bar": "sep=|\nid|k\na|1,5\nb|-2\n",
    "a printer's minus": "id,k\na,1.5\nb,\u22122\n",
    "a printer's minus and a comma": "id;k\na;1,5\nb;\u22122,0\n",
}


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_numbers_of_any_language_are_read(tmp_path, text):
    assert labelled(tmp_path, text) == {"a": 1.5, "b": -2.0}


REFUSED = {
    "in quotes between commas": 'id,k\na,"1,5"\nb,2\n',
    "thousands": "id;k\na;1.234,5\nb;2\n",
    "thousands in English": "id;k\na;1,234.5\nb;2\n",
    "thousands where others have points": "id;k\na;1,234\nb;999.5\n",
    "thousands after tabs": "id\tk\na\t1,234\nb\t2,345\n",
    "thousands where others have millions": "id;k\na;1,234\nb;1,234,567\n",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_a_comma_that_may_part_thousands_is_refused(tmp_path, text):
    with pytest.raises(InputError, match=r"k is '1.*', not a number \(decimals are .* without thousands separators\)"):
        labelled(tmp_path, text)


def test_columns_with_decimal_commas_hold_numbers(tmp_path):
    with pytest.raises(InputError, match=r"no column q; the columns with numbers are: k, m$"):
        labelled(tmp_path, "id;k;m;note\na;1,5;\u22122;x\nb;2,5;;y\n", targets=("q",))


def test_all_columns_are_told_where_none_has_numbers(tmp_path):
    with pytest.raises(InputError, match=r"no column q; .* numbers are: none \(all columns: id, k, note\)$"):
        labelled(tmp_path, "id,k,note\na,1 GPa,x\nb,2 GPa,y\n", targets=("q",))


def test_commas_of_ids_stay(tmp_path):
    assert labelled(tmp_path, "id;k\n0,5;1,5\n1,5;2,5\n", ids=("0,5", "1,5")) == {"0,5": 1.5, "1,5": 2.5}


def test_decimal_commas_of_id_prop_are_read(tmp_path):
    for name in ("0,5", "b"):
        (tmp_path / f"{name}.cif").write_text("")
    (tmp_path / "id_prop.csv").write_text("id;k\n0,5;1,5\nb;2,5\n")
    found = scan(tmp_path, targets=("k",))
    assert [(item.id, item.targets["k"]) for item in found.items] == [("0,5", 1.5), ("b", 2.5)]


# --- rows and their ids ---------------------------------------------------------------------------


def test_an_index_without_a_name_holds_the_ids(tmp_path):
    """As pandas writes it, unless index=False."""
    assert labelled(tmp_path, ",k\na,1.5\nb,2\n") == {"a": 1.5, "b": 2.0}
    assert labelled(tmp_path, ",k\na,1.5\nb,2\n", id_column="") == {"a": 1.5, "b": 2.0}
    with pytest.raises(InputError, match=r"its first column names none of the crystals: there it is '0', '1' …"):
        labelled(tmp_path, ",k\n0,1.5\n1,2\n")


def test_rows_without_an_id_are_left_out(tmp_path):
    """Such as sums below a table."""
    text = "id,k\na,1.5\n,9\nb,2\n,8\n"
    assert labelled(tmp_path, text, on_error="skip") == {"a": 1.5, "b": 2.0}
    with pytest.raises(InputError, match=r"sheet\.csv:3: no id in this row, which has no structure .*\(1 more"):
        labelled(tmp_path, text)
    with pytest.raises(InputError, match=r"sheet\.csv: column 'id' is empty: fill it, or name another column"):
        labelled(tmp_path, "id,k\n,1.5\n,2\n")


LINES = {
    "blank lines": "id,k\n\na,1.5\n\nb,x\n",
    "rows of nothing": "id,k\n,\na,1.5\n ,\nb,x\n",
    "the line that tells Excel": "sep=;\nid;k\na;1.5\n\nb;x\n",
    "a cell of two lines": 'id,k,note\na,1.5,"one\ntwo"\n\nb,x,"one\ntwo"\n',
    "Windows lines": "\r\nid,k\r\na,1.5\r\n\r\nb,x\r\n",
}


@pytest.mark.parametrize("text", LINES.values(), ids=LINES)
def test_lines_are_counted_as_an_editor_counts_them(tmp_path, text):
    with pytest.raises(InputError, match=r"sheet\.csv:5 \(id 'b'\): k is 'x'"):
        labelled(tmp_path, text)
    (tmp_path / "cgcnn").mkdir()
    (tmp_path / "cgcnn" / "a.cif").write_text("")
    (tmp_path / "cgcnn" / "id_prop.csv").write_bytes(text.encode())
    with pytest.raises(InputError, match=r"id_prop\.csv:5: id 'b' has no file"):
        scan(tmp_path / "cgcnn", targets=("k",))


IDS_OF_A_SHEET = ["one.jsonl", "folder", "list", "iterator", "frame"]


@pytest.mark.parametrize("kind", IDS_OF_A_SHEET)
def test_a_column_of_ids_may_be_that_of_the_sheet_alone(tmp_path, kind):
    import pandas

    rows = [{"id": name, **CSCL} for name in ("a", "b")]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "folder").mkdir()
    for row in rows:
        (tmp_path / "folder" / f"{row['id']}.json").write_text(json.dumps(row))
    in_memory = {"list": rows, "iterator": iter(rows), "frame": pandas.DataFrame(rows)}
    (tmp_path / "sheet.csv").write_text("mpid,k\na,1.5\nb,2\n")
    sheet = pandas.read_csv(tmp_path / "sheet.csv")
    found = scan(in_memory.get(kind, tmp_path / kind), targets=("k",), labels=tmp_path / "sheet.csv", id_column="mpid")
    assert [(item.id, item.targets["k"]) for item in found.items] == [("a", 1.5), ("b", 2.0)]
    if kind != "iterator":
        for labels in (sheet, sheet.set_index("mpid"), sheet.set_index("mpid")["k"]):
            again = scan(in_memory.get(kind, tmp_path / kind), targets=("k",), labels=labels, id_column="mpid")
            assert again.items[1].targets == {"k": 2.0}
        with pytest.raises(InputError, match=r"no id column \(code or|no column 'code'"):
            scan(in_memory.get(kind, tmp_path / kind), targets=("k",), labels=tmp_path / "sheet.csv", id_column="code")


TIO2 = [("NaCl", "NaCl.cif", 5), ("TiO2", "TiO2_anatase.cif", 3.2), ("rutile", "TiO2.cif", 3)]
POLYMORPHS = [("NaCl", "NaCl.cif", 5), ("TiO2", "TiO2_anatase.cif", 3.2), ("TiO2", "TiO2.cif", 3)]


@pytest.mark.parametrize("rows", [TIO2, POLYMORPHS], ids=["of another", "repeated"])
@pytest.mark.parametrize("kind", ["table", "frame", "index"])
def test_columns_that_give_a_crystal_different_rows_are_told(tmp_path, rows, kind):
    """Any of them may be the ids, and the labels of the other those of other crystals; what repeats holds no ids."""
    import pandas

    source = files(tmp_path / "s", "NaCl.vasp", "TiO2.vasp", "TiO2_anatase.vasp")
    sheet = pandas.DataFrame([(name, file.replace("cif", "vasp"), k) for name, file, k in rows], columns=[*"nfk"])
    sheet = sheet.rename(columns={"n": "name", "f": "file"})
    sheet.to_csv(tmp_path / "sheet.csv", index=False)
    labels = {"table": tmp_path / "sheet.csv", "frame": sheet, "index": sheet.set_index("file")}[kind]
    other = "its index" if kind == "index" else "column 'file'"
    told = rf"column 'name' \('TiO2'\) and {other} \('TiO2\.vasp'\) name one crystal in different rows: .*--id-column"
    if rows is TIO2:
        with pytest.raises(InputError, match=told):
            read_structures(source, targets=("k",), labels=labels)
    for column in ("file", *[None] * (rows is POLYMORPHS)):
        found = read_structures(source, targets=("k",), labels=labels, id_column=column)
        assert {one.id: one.targets["k"] for one in found} == {"NaCl": 5, "TiO2": 3, "TiO2_anatase": 3.2}


def test_the_column_that_names_the_most_crystals_holds_the_ids(tmp_path):
    import pandas

    source = files(tmp_path / "s", "NaCl.vasp", "TiO2_a.vasp", "TiO2_b.vasp")
    rows = [("NaCl", "NaCl", 5), ("TiO2", "TiO2_a", 3.2), ("TiO2", "TiO2_b", 3)]
    sheet = pandas.DataFrame(rows, columns=["name", "file", "k"])
    sheet.to_csv(tmp_path / "sheet.csv", index=False)
    for labels in (tmp_path / "sheet.csv", sheet, sheet.set_index("file")):
        found = read_structures(source, targets=("k",), labels=labels)
        assert {one.id: one.targets["k"] for one in found} == {"NaCl": 5, "TiO2_a": 3.2, "TiO2_b": 3}


def test_a_name_of_several_files_names_none_of_them(tmp_path):
    """Such as that of the database which all of them came from."""
    records = [replace(one, where="all.db") for one in read_structures([{"id": name, **CSCL} for name in "ab"])]
    (tmp_path / "sheet.csv").write_text("id,file,k\na,all.db,1\nb,all.db,2\n")
    found = read_structures(records, targets=("k",), labels=tmp_path / "sheet.csv")
    assert [one.targets["k"] for one in found] == [1, 2]


# --- what is no table -----------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"PK\x03\x04\x14\x00", b"\xd0\xcf\x11\xe0\xa1\xb1"], ids=["xlsx", "xls"])
def test_a_workbook_is_told(tmp_path, data):
    with pytest.raises(InputError, match=r"sheet\.csv: is an Excel workbook .*save the sheet as CSV"):
        labelled(tmp_path, data)
    for name in ("book.xlsx", "book.json"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}: is an Excel workbook"):
            read_structures(tmp_path / name)


def test_a_pickle_is_told(tmp_path):
    (tmp_path / "frame.pkl").write_bytes(b"\x80\x04N.")
    (tmp_path / "s.json").write_text(json.dumps([{"id": "a", **CSCL}]))
    told = r"frame\.pkl: is a pickle.* give the DataFrame to read_structures or fit"
    with pytest.raises(InputError, match=told):
        read_structures(tmp_path / "frame.pkl")
    with pytest.raises(InputError, match=told):
        read_structures(tmp_path / "s.json", targets=("k",), labels=tmp_path / "frame.pkl")


def test_lost_zeros_of_ids_are_told(tmp_path):
    with pytest.raises(InputError, match=r"there it is '1', '2' …, here '001', '002' …; .* drop leading zeros"):
        labelled(tmp_path, "id,k\n1,1.5\n2,2\n", ids=("001", "002"))


# --- frames of pandas -----------------------------------------------------------------------------

FRAMES = ["columns", "index", "split", "table"]


@pytest.mark.parametrize("orient", FRAMES)
@pytest.mark.parametrize("named", [True, False])
def test_a_frame_is_read_however_pandas_wrote_it(tmp_path, orient, named):
    import pandas

    frame = pandas.DataFrame({"structure": [CSCL, CSCL], "k": [1.5, 2.0]}, index=["a", "b"])
    if named and orient != "index":  # whose keys are the ids, whatever else there is
        frame = frame.rename_axis("row").assign(id=["x", "y"])
    frame.to_json(tmp_path / "frame.json", orient=orient)
    found = read_structures(tmp_path / "frame.json", targets=("k",))
    ids = ["x", "y"] if named and orient != "index" else ["a", "b"]
    assert [(one.id, one.targets["k"]) for one in found] == list(zip(ids, [1.5, 2.0], strict=True))


def test_a_column_that_is_null_is_a_missing_label(tmp_path):
    frame = {"atoms": {"0": CSCL, "1": CSCL}, "k": {"0": 1, "1": None}, "gap": None}
    (tmp_path / "frame.json").write_text(json.dumps(frame))
    with pytest.raises(InputError, match=r"frame\.json:1 \(id '1'\): k missing"):
        read_structures(tmp_path / "frame.json", targets=("k",))


def test_the_index_of_a_frame_may_be_asked_for(tmp_path):
    import pandas

    frame = pandas.DataFrame({"id": ["x", "y"], "structure": [CSCL] * 2}, pandas.Index(["a", "b"], name="mpid"))
    assert [one.id for one in read_structures(frame, id_column="mpid")] == ["a", "b"]
    assert [one.id for one in read_structures(frame)] == ["x", "y"]
    with pytest.raises(InputError, match="the DataFrame has no column 'code'; its columns are id, structure"):
        read_structures(frame, id_column="code")


def test_an_index_of_names_comes_before_a_column_of_names_that_repeat():
    import pandas

    frame = pandas.DataFrame({"name": ["quartz"] * 2, "structure": [CSCL] * 2}, index=["mp-1", "mp-2"])
    assert [one.id for one in read_structures(frame)] == ["mp-1", "mp-2"]
    assert [one.id for one in read_structures(frame.assign(jid=["x", "y"]))] == ["x", "y"]
    with pytest.raises(InputError, match="the id 'quartz' was already taken"):  # numbers of rows are no names
        read_structures(frame.reset_index(drop=True))


def test_one_crystal_is_no_frame(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"structure": CSCL}))
    assert [one.id for one in read_structures(tmp_path / "one.json")] == ["one"]


# --- names of VASP --------------------------------------------------------------------------------


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(POSCAR)
    return folder


def test_a_sheet_may_leave_out_the_prefix_of_a_poscar(tmp_path):
    source = files(tmp_path / "s", "POSCAR_a", "CONTCAR-b", "POSCAR.c", "d.poscar", "e.POSCAR", "f.contcar")
    (tmp_path / "sheet.csv").write_text("code,id,k\n1,a,1\n2,b,2\n3,c,3\n4,d,4\n5,e,5\n6,f,6\n")
    found = read_structures(source, targets=("k",), labels=tmp_path / "sheet.csv")
    told = {"POSCAR_a": 1, "CONTCAR-b": 2, "POSCAR.c": 3, "d": 4, "e": 5, "f": 6}
    assert {one.id: one.targets["k"] for one in found} == told


@pytest.mark.parametrize("other", ["a.vasp", "CONTCAR_a"])
def test_a_row_goes_to_one_crystal_and_first_to_the_one_it_names(tmp_path, other):
    source = files(tmp_path / "s", "POSCAR_a", other)
    with pytest.raises(InputError, match=r"POSCAR_a.* has no row for it in its keys; that of 'a' is for .*" + other):
        read_structures(source, labels={"a": 1}, targets=("k",))
    found = read_structures(source, labels={"a": 1, "POSCAR_a": 2}, targets=("k",))
    assert sorted(one.targets["k"] for one in found) == [1, 2]


def test_folders_of_calculations_are_called_by_their_names(tmp_path, caplog):
    source = files(tmp_path / "s", "run2/POSCAR", "run1/POSCAR", "run1/CONTCAR", ".trash/POSCAR", "old/POSCAR.bak")
    (source / "scripts").mkdir()
    (source / "run1" / "CONTCAR").write_text(POSCAR.replace("4.1", "4.2"))
    found = read_structures(source, labels={"run1": 1, "run2": 2}, targets=("k",))
    assert [(one.id, one.targets["k"], one.structure.lattice[0, 0]) for one in found] == [
        ("run1", 1, 4.2),
        ("run2", 2, 4.1),
    ]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "old/" in told and "run" not in told.split("compressed)")[1]
    before = scan(source).fingerprint
    (source / "run2").rename(source / "run3")
    assert scan(source).fingerprint != before


def test_an_empty_contcar_is_that_of_a_run_which_has_not_made_a_step(tmp_path):
    source = files(tmp_path / "s", "run7/POSCAR", "run7/CONTCAR", "run8/CONTCAR")
    (source / "run7" / "CONTCAR").write_text("")
    assert [(one.id, one.where[-11:]) for one in read_structures(source)] == [
        ("run7", "run7/POSCAR"),
        ("run8", "un8/CONTCAR"),
    ]
    (source / "run7" / "POSCAR").write_text("")
    with pytest.raises(InputError, match="run7/CONTCAR"):
        read_structures(source)


@pytest.mark.parametrize("name", ["POSCAR_1.gz", "CONTCAR.bz2", "a.cif.xz", "POSCAR_all.ZIP"])
def test_compressed_structures_are_not_read_and_told(tmp_path, caplog, name):
    source = files(tmp_path / "s", "POSCAR_0", name, f"below/{name}")
    assert [one.id for one in read_structures(source)] == ["POSCAR_0"]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "2 not read" in told and name in told and "below/" in told
    with pytest.raises(InputError, match=f"found a file named {name}; expected"):
        read_structures(source / name)


def test_a_file_of_one_name_in_every_folder_names_none_of_them(tmp_path):
    source = files(tmp_path / "s", "Si/POSCAR", "Ge/POSCAR")
    with pytest.raises(InputError, match="names none of the crystals"):
        read_structures(source, targets=("gap",), labels={"POSCAR": 1.1})
    found = read_structures(source, targets=("gap",), labels={"Si/POSCAR": 1.1, "Ge/POSCAR": 0.7})
    assert {one.id: one.targets["gap"] for one in found} == {"Si": 1.1, "Ge": 0.7}
