"""Labels as people keep them: tables, frames and dictionaries, joined to crystals by id, and cells as numbers."""

import csv
import io
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tlcgcnn_jax.entries import Entry, id_text
from tlcgcnn_jax.errors import InputError, Skipped
from tlcgcnn_jax.files import user_path

# Spreadsheets, pandas and databases write no value in ways of their own, which must not pass for text.
MISSING = ("", "-", "nan", "na", "n/a", "#n/a", "null", "none")
NO_STRUCTURE = "has no structure in what was read"  # of a row that is of no crystal
_SEPARATOR_LINE = re.compile(r"\"?sep=([\t;,|])\"?\1*\s*", re.IGNORECASE)  # with which Excel is told of it
_DECIMAL_COMMA = re.compile(r"[-+\u2212]?\d+,\d+(e[-+]?\d+)?", re.IGNORECASE)
# With a decimal point, or with so many commas that they part thousands.
_NO_DECIMAL_COMMA = re.compile(r"[-+\u2212]?[\d,]*(\.|\d,\d+,)\d*(e[-+]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+\u2212]?\d{1,3},\d{3}")  # or a number with three decimals
_AS_NUMBERS_ARE = "decimals are written with a point, and numbers without thousands separators"


class Sheet(NamedTuple):
    """Labels of many crystals.

    Attributes:
        name: What messages call it.
        column: Column of the ids.
        rows: An entry without geometry for each crystal.
        data: What the fingerprint covers.
    """

    name: str
    column: str
    rows: list[Entry]
    data: bytes


def read_sheet(
    labels: Any, targets: Sequence[str], id_column: str | None, usual: Sequence[str], entries: Sequence[Entry]
) -> Sheet:
    """Labels from wherever the user keeps them.

    Args:
        labels: Path of a CSV table with a header; a DataFrame; a Series or a dictionary from ids to labels, or to
            {column: label}.
        targets: Columns that are asked for; labels without a name are those of the only one.
        id_column: Column of the ids, which is taken where it is there.
        usual: What it may be called otherwise; the one whose cells name the most crystals is taken.
        entries: The crystals.

    Raises:
        InputError: There is no such table, no column of ids, two that name a crystal in different rows, or a column is
            named twice.
    """
    known, column = _known(entries), "its keys"
    if isinstance(labels, str | Path):
        return _table(user_path(labels), id_column, usual, known)
    if isinstance(labels, Mapping):
        rows = list(labels.items())
    elif hasattr(labels, "to_frame") and hasattr(labels, "index"):  # a Series
        rows, column = list(zip(labels.index, labels.tolist(), strict=True)), "its index"
        if labels.name is not None:
            rows = [(index, {str(labels.name): value}) for index, value in rows]
    elif hasattr(labels, "columns") and hasattr(labels, "iloc"):
        return _frame(labels, targets, id_column, usual, known)
    else:
        raise InputError(
            f"labels: found {type(labels).__name__}; expected the path of a CSV table, a DataFrame, a Series, or a "
            "dictionary from ids to labels, such as dict(zip(ids, values)); for crystals in memory also a list"
        )
    bare = any(not isinstance(cells, Mapping) for _, cells in rows)
    if bare and not targets:
        raise InputError("labels: one value a crystal, and no target that says what it is: name one")
    if bare and len(targets) != 1:
        raise InputError(f"labels: one value a crystal for {len(targets)} targets: give {{id: {{column: value}}}}")
    named = [(id_, dict(cells) if isinstance(cells, Mapping) else {targets[0]: cells}) for id_, cells in rows]
    return _in_memory(named, targets, column)


def is_in_order(labels: Any) -> bool:
    """Whether these are labels without ids, to be put beside crystals in memory in their order."""
    return isinstance(labels, list | tuple) or (hasattr(labels, "__array__") and not hasattr(labels, "index"))


def in_their_order(labels: Any, entries: Sequence[Entry], targets: Sequence[str]) -> list[Entry]:
    """The crystals with labels that were given as one for each.

    Raises:
        InputError: More or fewer than there are crystals, anything but one number for each, or not one target.
    """
    values = labels.tolist() if hasattr(labels, "tolist") else np.asarray(labels, object).tolist()
    if not isinstance(values, list) or len(values) != len(entries):
        found = len(values) if isinstance(values, list) else "one number"
        raise InputError(f"labels: {found} for {len(entries)} crystals; in a list there must be one for each")
    values = [one[0] if isinstance(one, list | tuple) and len(one) == 1 else one for one in values]
    if len(targets) != 1 or any(isinstance(one, Mapping | list | tuple) for one in values):
        raise InputError(
            f"labels: a list holds one number a crystal, of one target, and {len(targets)} are asked for: name one, or "
            "give a DataFrame with ids"
        )
    return [
        replace(entry, row={**entry.row, targets[0]: value}, labelled=f"labels:{number}")
        for number, (entry, value) in enumerate(zip(entries, values, strict=True))
    ]


def bad_majority(skipped: Iterable[Skipped], used: int) -> list[Skipped]:
    """Crystals that were left out, where they are more than those that are used: a wrong column, or a wrong folder.

    Rows of labels without a crystal do not count.
    """
    bad = [one for one in skipped if NO_STRUCTURE not in one.reason]
    return bad if len(bad) > used else []


def has_column(labels: Any, name: str) -> bool:
    """Whether labels, as `read_sheet` takes them, have a column or an index of this name."""
    if isinstance(labels, str | Path):
        table = user_path(labels)
        columns = next(iter(read_table(table)[0]), []) if table.is_file() else []
    else:
        index = getattr(getattr(labels, "index", None), "name", None)
        columns = [str(column) for column in (*getattr(labels, "columns", ()), index) if column is not None]
    return bool(id_columns(columns, name, ()))


def _table(table: Path, id_column: str | None, usual: Sequence[str], known: Mapping[str, int]) -> Sheet:
    if not table.is_file():
        raise InputError(f"{table}: there is no such table of labels")
    rows, plain, places = read_table(table)
    if len(rows) < 2:
        raise InputError(f"{table}: expected a header and at least one row of labels")
    header, lines = rows[0], [row + [""] * (len(rows[0]) - len(row)) for row in rows[1:]]
    check_header(header, table)
    there = id_columns(header, id_column, usual)
    if not there and usual and not header[0]:  # as pandas writes an index without a name
        there = [0]
    if not there:
        names = ([id_column] if id_column else []) + [name for name in usual if name != id_column]
        raise InputError(
            f"{table}: no id column ({' or '.join(names)}) among {', '.join(header)}; name it with id_column "
            "(--id-column)"
        )
    naming = _naming({header[c]: [row[c] for row in lines] for c in there}, known, str(table))
    column = there[0] if naming is None else header.index(naming)
    found = []
    for row, cells, line in zip(lines, plain[1:], places[1:], strict=True):
        name, where = row[column], f"{table}:{line}"
        problem = too_long(row, header, f"{where} (id {name!r})")
        labels = dict(zip(header, cells + [""] * len(header), strict=False))
        found.append(Entry(name, where, row=labels, problem=problem))
    named = _column(header[column]) if header[column] else "its first column"
    return Sheet(str(table), named, found, table.read_bytes())


def _frame(
    frame: Any, targets: Sequence[str], id_column: str | None, usual: Sequence[str], known: Mapping[str, int]
) -> Sheet:
    columns = [str(column) for column in frame.columns]
    check_header(columns, "labels")
    rows = [dict(zip(columns, values, strict=True)) for values in frame.itertuples(index=False, name=None)]
    asked = id_column is not None and str(frame.index.name) == id_column and id_column not in columns
    there = [] if asked else [columns[c] for c in id_columns(columns, id_column, usual)]
    if id_column and not (asked or there or usual):
        raise InputError(f"labels: no column {id_column!r} (--id-column) among {', '.join(columns)}")
    cells: dict[str | None, list[str | None]] = {c: [id_text(row[c]) for row in rows] for c in there}
    if not id_column and (frame.index.name is not None or any(isinstance(name, str) for name in frame.index)):
        cells[None] = [id_text(name) for name in frame.index]  # numbers of rows are no names
    column = _naming(cells, known, "labels")
    if column is None and there and (id_column or not any(id_text(index) in known for index in frame.index)):
        column = there[0]
    ids = frame.index if column is None else [row[column] for row in rows]
    return _in_memory(list(zip(ids, rows, strict=True)), targets, _column(column))


def _known(entries: Sequence[Entry]) -> dict[str, int]:
    """Which crystal a table means by a name: the one with this id, else the only one with this file or bare name."""
    known = {entry.id: number for number, entry in enumerate(entries)}
    for names in ([_names(entry)[1] for entry in entries], [_bare(entry) for entry in entries]):
        times = Counter(names)
        known = {name: number for number, name in enumerate(names) if times[name] == 1} | known
    return known


def _naming(columns: Mapping[str | None, Sequence[str | None]], known: Mapping[str, int], table: str) -> str | None:
    """The column (None: the index) that names the most crystals, of several the first; None where none names any.

    Raises:
        InputError: Another column names one of these crystals in another row.
    """
    found: dict[str | None, dict[int, list[int]]] = {name: {} for name in columns}
    for name, cells in columns.items():
        for row, cell in enumerate(cells):
            if cell and cell in known:
                found[name].setdefault(known[cell], []).append(row)
    # Ids do not repeat: a column that does may name parents, or formulas.
    once = {name: rows for name, rows in found.items() if all(len(places) == 1 for places in rows.values())}
    found = once if any(once.values()) else found
    best = max(found, key=lambda name: len(found[name]), default=None)
    ours = found.get(best, {})
    for name, theirs in found.items():
        for crystal in (crystal for crystal in theirs if theirs[crystal] != ours.get(crystal, theirs[crystal])):
            both = ((name, theirs), (best, ours))
            told = " and ".join(f"{_column(one)} ({columns[one][rows[crystal][0]]!r})" for one, rows in both)
            raise InputError(
                f"{table}: {told} name one crystal in different rows: name the one that holds the ids with id_column "
                "(--id-column)"
            )
    return best if ours else None


def _column(name: str | None) -> str:
    return "its index" if name is None else f"column {name!r}"


def id_columns(columns: Sequence[str], id_column: str | None, usual: Sequence[str]) -> list[int]:
    """Which columns may hold the ids: the one that was asked for alone, or else those that are usually called so."""
    plain = [name.lower() for name in columns]
    for names in ((id_column,) if id_column else (), usual):
        if found := [columns.index(name) for name in names if name in columns]:
            return found
        if found := [plain.index(name.lower()) for name in names if name.lower() in plain]:
            return found
    return []


def _in_memory(rows: Sequence[tuple[Any, dict[str, Any]]], targets: Sequence[str], column: str) -> Sheet:
    found = [Entry(id_text(id_) or "", f"labels:{row}", row=cells) for row, (id_, cells) in enumerate(rows)]
    data = sorted((entry.id, *(plain(entry.row.get(target)) for target in targets)) for entry in found)
    return Sheet("labels", column, found, repr(data).encode())


def plain(cell: Any) -> str:
    """A label for the fingerprint: 1, 1.0 and NumPy's are one."""
    try:
        return repr(float(cell))
    except (TypeError, ValueError):
        return str(cell)


def _names(entry: Entry) -> tuple[str, str]:
    """What a table may call a crystal: by its id, or by its file, which VASP calls alike in all folders."""
    file = Path(entry.where)
    return entry.id, f"{file.parent.name}/{file.name}" if file.name in ("POSCAR", "CONTCAR") else file.name


def _bare(entry: Entry) -> str:
    """The name of POSCAR_name; a table may call the crystal so where no other is called so."""
    return re.sub(r"^(POSCAR|CONTCAR)[-_.]", "", entry.id)


def joined(entries: Sequence[Entry], sheet: Sheet) -> Iterator[Entry]:
    """The crystals with their labels, and as problems those without a row and rows without a crystal.

    Raises:
        InputError: The sheet names a crystal twice, or none of them.
    """
    by_id: dict[str, Entry] = {}
    for row in sheet.rows:
        if row.id and (first := by_id.setdefault(row.id, row)) is not row:
            raise InputError(
                f"{row.where}: the id {row.id!r} stands twice in {sheet.column}, first at {first.where}: remove one, "
                "or name another column with id_column (--id-column)"
            )
    if not by_id:
        empty = f"{sheet.column} is empty: fill it, or name another column with id_column (--id-column)"
        raise InputError(f"{sheet.name}: {empty if sheet.rows else 'there are no labels in it'}")
    whole = [entry for entry in entries if not entry.problem]
    if whole and not any(name in by_id for entry in whole for name in (*_names(entry), _bare(entry))):
        theirs, ours = (", ".join(map(repr, list(ids)[:3])) for ids in (by_id, [entry.id for entry in whole]))
        advice = "ids must be the same, or name another column with id_column (--id-column)"
        if any(entry.id.lstrip("0") in by_id for entry in whole):
            advice = "spreadsheets and pandas drop leading zeros: write them again and format the column as text (str)"
        raise InputError(
            f"{sheet.name}: {sheet.column} names none of the crystals: there it is {theirs} …, here {ours} …; {advice}"
        )
    used = {name: entry for entry in entries for name in _names(entry) if name in by_id}
    for entry in entries:
        name, bare = next((name for name in _names(entry) if name in by_id), None), _bare(entry)
        if name is None and bare in by_id and used.setdefault(bare, entry) is entry:
            name = bare
        if name is None:
            taken = f"; that of {bare!r} is for {used[bare].where}" if bare in used else ""
            missing = f"{entry.where} (id {entry.id!r}): {sheet.name} has no row for it in {sheet.column}{taken}"
            yield replace(entry, problem=entry.problem or missing)
            continue
        row = by_id[name]
        yield replace(entry, row={**entry.row, **row.row}, problem=entry.problem or row.problem, labelled=row.where)
    for row in sheet.rows:
        if row.id not in used:
            told = f"id {row.id!r} {NO_STRUCTURE}" if row.id else f"no id in this row, which {NO_STRUCTURE}"
            yield replace(row, problem=f"{row.where}: {told} (ids are those of {sheet.column})")


# --- tables ---------------------------------------------------------------------------------------


def read_table(path: Path) -> tuple[list[list[str]], list[list[str]], list[int]]:
    """Rows of a table without the empty ones, cells without spaces around them.

    Cells are separated by what the first row has most of: commas, or semicolons or tabs, as other languages' Excel
    writes them.

    Returns:
        The rows as they stand, which is right for ids; with decimal points for decimal commas; and the line of the
        file on which each begins.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        data = path.read_bytes()
        check_format(path, data)
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        try:
            text = data.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252")
        first = next((line for line in text.splitlines() if line.strip()), "")
        # Semicolons before commas, which are then those of decimals.
        separator = max("\t;,", key=first.count) if any(mark in first for mark in "\t;,") else ","
        if told := _SEPARATOR_LINE.fullmatch(first):
            separator, text = told[1], text.replace(first, "", 1)
        reader, rows, lines, read = csv.reader(io.StringIO(text, newline=""), delimiter=separator), [], [], 0
        for row in reader:
            if any(cells := [cell.strip() for cell in row]):
                rows.append(cells)
                lines.append(read + 1)
            read = reader.line_num
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV table ({error}); save it as CSV, UTF-8") from error
    return rows, rows if separator == "," else _with_points(rows, separator), lines


def _with_points(rows: list[list[str]], separator: str) -> list[list[str]]:
    """Decimal commas as points; but not in a column in which a comma may part thousands.

    That is one which has points as well, and one of nothing but 1,234; but not between semicolons, which are written
    where the comma is the decimal sign.
    """
    mixed = {column for row in rows for column, cell in enumerate(row) if _NO_DECIMAL_COMMA.fullmatch(cell)}
    if separator != ";":
        commas = [(column, cell) for row in rows for column, cell in enumerate(row) if _DECIMAL_COMMA.fullmatch(cell)]
        mixed |= {column for column, _ in commas} - {
            column for column, cell in commas if not _THOUSANDS.fullmatch(cell)
        }
    return [
        [
            cell.replace(",", ".") if column not in mixed and _DECIMAL_COMMA.fullmatch(cell) else cell
            for column, cell in enumerate(row)
        ]
        for row in rows
    ]


def check_format(path: Path, data: bytes) -> None:
    """Raise `InputError` for a workbook, which is no text, and for a pickle, which could run anything."""
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InputError(
            f"{path}: is an Excel workbook (or zip archive): save the sheet as CSV, for labels (--labels), or unpack "
            "the archive"
        )
    if path.name.lower().removesuffix(".gz").endswith((".pkl", ".pickle")):
        raise InputError(
            f"{path}: is a pickle, which is not read: load it in Python (pandas.read_pickle) and give the DataFrame "
            "to read_structures or fit"
        )


def check_header(header: Sequence[str], table: str | Path) -> None:
    """Raise `InputError` where a table names a column twice."""
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise InputError(f"{table}: the header names {', '.join(twice)} more than once: rename or remove a column")


def too_long(row: list[str], header: list[str], where: str) -> str:
    """What is wrong with a row that has more cells than its header; "" where nothing is."""
    if not any(row[len(header) :]):
        return ""
    return f"{where}: {len(row)} cells, {len(header)} in the header: {', '.join(row):.60}; {_AS_NUMBERS_ARE}"


# --- numbers --------------------------------------------------------------------------------------


def numbers(entry: Entry, targets: Sequence[str]) -> dict[str, float]:
    """The label of each target, NaN where it is missing.

    Raises:
        InputError: All of them are missing, or one is no number.
    """
    where = f"{entry.labelled or entry.where} (id {entry.id!r})"
    values = {target: _number(entry.row.get(target), target, where) for target in targets}
    if targets and all(math.isnan(value) for value in values.values()):
        raise InputError(f"{where}: {' and '.join(targets)} missing (empty, null or NaN)")
    return values


def _number(value: Any, target: str, where: str) -> float:
    """A label as a float; NaN stands for a missing one, a boolean for 0 or 1."""
    if value is None or value is getattr(sys.modules.get("pandas"), "NA", None):
        return math.nan
    if isinstance(value, str) and value.strip().lower() in MISSING:
        return math.nan
    try:
        number = as_float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {target} is {value!r:.60}, not a number{_hint(value)}") from None
    if math.isinf(number):
        raise InputError(f"{where}: {target} is infinite")
    if abs(number) > float(np.finfo(np.float32).max):
        raise InputError(f"{where}: {target} is {number:g}, too large for float32; use a larger unit")
    return number


def as_float(value: Any) -> float:
    """A cell as a number: text may be true or false, and its minus that of Unicode.

    Raises:
        TypeError, ValueError: It is none.

    Example:
        >>> as_float("\u22121.5"), as_float(" TRUE")
        (-1.5, 1.0)
    """
    if isinstance(value, str):
        value = value.strip().replace("\u2212", "-")
        value = {"true": 1, "false": 0}.get(value.lower(), value)
    return float(value)


def _hint(value: Any) -> str:
    """What to write instead of decimals with a comma, or of the names of classes."""
    if not isinstance(value, str):
        return ""
    if "," in value:
        return f" ({_AS_NUMBERS_ARE})"
    if any(map(str.isdigit, value)) or not any(map(str.isalpha, value)):
        return ""
    return '; classes are written 0, 1, … and learnt with --task classification (kind="classification")'
