"""Symmetry that a CIF tells by name, by Hall symbol or by number, as operators."""

import functools
import math
import re
import warnings
from typing import Any

import numpy as np

from tlcgcnn_jax.errors import InputError

OPERATORS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
CELL = ("_length_a", "_length_b", "_length_c", "_angle_alpha", "_angle_beta", "_angle_gamma")
# Data names that tell the symmetry, in lower case with '_' for '.' and '-' (old, new and DDLm spellings), and in the
# order of what they settle: a Hall symbol the axes and the origin, a name the axes, the others only the type.
_TOLD = {
    "Hall symbol": re.compile(r"_(symmetry_)?space_group_name_hall"),
    "name": re.compile(r"_(symmetry_)?space_group_name_h_m(_alt|_full|_extended)?"),
    "type": re.compile(r"_(symmetry_)?(space_group_name_h_m_ref|space_group_it_number|int_tables_number)"),
    "Schoenflies symbol": re.compile(r"_(symmetry_)?space_group_name_schoenflies"),  # of a type, and not looked up
}
_CELL_TOLERANCE = 0.03  # of a squared length: about 1 degree, or 1.5 % of an axis

_Setting = tuple[int, tuple[str, ...]]  # number of the group (0 where the tables lack it), operators 'x,y+1/2,z'


def settings_of(text: str, where: str) -> list[str]:
    """The CIF with the operators of each setting its symmetry may mean, likeliest first.

    The text stays as it is where it has operators, tells no symmetry, or is read by pymatgen with the right operators.

    Args:
        text: Contents of the file.
        where: What the message should call the crystal.

    Returns:
        One text, or two where the origin is left open.

    Raises:
        InputError: A symmetry that is not understood, that contradicts itself, or that the cell does not have.

    Source:
        International Tables for Crystallography A (2016) as gemmi holds them; S. R. Hall, Acta Cryst. A 37, 517 (1981).
    """
    from gemmi import cif, spacegroup_table

    dotted = re.compile(r"^(\s*_space_group_symop)\.(operation_xyz\b)", re.MULTILINE | re.IGNORECASE)
    if dotted.search(text):  # pymatgen passes over this spelling
        return [dotted.sub(r"\1_\2", text)]
    try:
        document = cif.read_string(text)
    except (ValueError, RuntimeError):  # which pymatgen may be able to read
        return [text]
    block = next((block for block in document if block.find_values("_atom_site_fract_x")), None)
    if block is None or "_magn" in text or "_atom_site_moment" in text:  # magnetic groups have other names
        return [text]
    items: Any = block
    tags = [tag for item in items for tag in (item.loop.tags if item.loop else item.pair[:1] if item.pair else [])]
    values = {tag: [cif.as_string(value).strip() for value in block.find_values(tag)] for tag in tags}
    values = {tag: known for tag in tags if (known := [value for value in values[tag] if value])}  # not '?' or '.'
    told = [
        (kind, tag, value)
        for kind, pattern in _TOLD.items()
        for tag in values
        if pattern.fullmatch(re.sub("[.-]", "_", tag.lower()).rstrip("_"))
        for value in values[tag]
    ]
    told = [one for one in told if one[0] != "Schoenflies symbol"] or told
    if not told or any(tag.lower().rstrip("_") in OPERATORS for tag in values):
        return [text]
    said = ", ".join(f"{tag} {value!r}" for _, tag, value in told)
    mend = "correct it, or give the operators (_symmetry_equiv_pos_as_xyz)"
    taken, by_name = _operators_of_pymatgen(tuple((tag, value) for _, tag, value in told if block.find_pair(tag)))
    meanings = [(kind, _meanings(kind, value)) for kind, _, value in told]
    understood = [meaning for meaning in meanings if meaning[1]]
    kind, settings = (understood or [("", [])])[0]
    # A number alone means the standard setting; beside a name that is not understood it may be any.
    several = settings and sum(group.number == settings[0][0] for group in spacegroup_table()) > 1
    if not settings or (kind == "type" and meanings[0][0] != "type" and several):
        if by_name:
            return [text]  # pymatgen knows a few more
        raise InputError(
            f"{where}: the symmetry {said} is not understood, and the CIF has no operators: a Hall symbol, a "
            f"Hermann-Mauguin name such as 'P 1 21/n 1' or a number from 1 to 230 was expected: {mend}"
        )
    for kind, others in understood[1:]:
        if kind == "type":
            settings = [setting for setting in settings if setting[0] in (0, others[0][0])]
        elif others[0][0]:  # a Hall symbol beyond the tables cannot be compared with a name
            settings = [setting for setting in settings if not setting[0] or setting in others]
    settings = [setting for setting in settings if _fits_cell(setting, block)]
    if not settings:
        raise InputError(f"{where}: the symmetry {said} does not agree with itself or with the cell: {mend}")
    for tag in OPERATORS:
        if unknown := block.find_values(tag):  # they say '?', which pymatgen takes for an operator
            unknown.erase()
            taken = ()
    texts = [text for _, operators in settings if operators == taken]
    for operators in (operators for _, operators in settings if operators != taken):
        block.init_loop("", [OPERATORS[0]]).set_all_values([list(operators)])
        texts.append(document.as_string())
        block.find_values(OPERATORS[0]).erase()
    return texts


def _meanings(kind: str, value: str) -> list[_Setting]:
    """Settings that a symbol or number may mean, the default first; none where it is not understood."""
    import gemmi

    try:
        if kind == "Hall symbol":
            found = gemmi.symops_from_hall(value)
            group = gemmi.find_spacegroup_by_ops(found)
            return [(group.number if group else 0, _triplets(found))]
        if kind == "Schoenflies symbol":
            value = "P 1" if re.fullmatch(r"C1([.^]1)?", value, re.IGNORECASE) else ""
        if number := re.fullmatch(r"(\d{1,3})(\.0*)?", value):
            value = gemmi.find_spacegroup_by_number(int(number[1])).hm
    except (ValueError, RuntimeError, AttributeError):
        return []
    for name in _spellings(value):
        groups = [gemmi.find_spacegroup_by_name(name, prefer=prefer) for prefer in ("1H", "2R")]
        if groups[0]:
            return list(dict.fromkeys((group.number, _triplets(group.operations())) for group in groups))
    return []


def _triplets(operators: Any) -> tuple[str, ...]:
    return tuple(sorted(operator.wrap().triplet() for operator in operators))


def _spellings(name: str) -> list[str]:
    """The name as gemmi may know it, from 'F d -3 m S' (first origin; Z: second), 'P 2(1)/c', 'P 2_1/c' and so on."""
    name = re.sub(r"\((\d)\)", r"\1", name).replace("_", "")
    name = re.sub(r"\s*:?\s*([SZ])$", lambda match: ":1" if match[1] in "Ss" else ":2", name, flags=re.IGNORECASE)
    full = name.count("/") > 1 or "-3" in name  # else monoclinic, where 2/m is no m
    short = re.sub(r"(?<![46])21?/([a-z])", r"\1", name) if full else name
    return [name, re.sub(r"4[1-3]?/([a-z])\s*(?=-3)", r"\1", short)]


def _fits_cell(setting: _Setting, block: Any) -> bool:
    """Whether its rotations leave the lengths and angles of the cell as they are."""
    import gemmi

    lengths = [gemmi.cif.as_number(block.find_value("_cell" + tag) or "?") for tag in CELL]
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        return True  # what is wrong with the cell is told later
    metric = np.array(gemmi.UnitCell(*lengths).metric_tensor().as_mat33().tolist())
    rotations = np.array([gemmi.Op(operator).rot for operator in setting[1]]) / gemmi.Op.DEN
    changes = np.abs(rotations.transpose(0, 2, 1) @ metric @ rotations - metric)
    return bool((changes <= _CELL_TOLERANCE * np.sqrt(np.outer(np.diag(metric), np.diag(metric)))).all())


@functools.lru_cache(maxsize=256)
def _operators_of_pymatgen(fields: tuple[tuple[str, str], ...]) -> tuple[tuple[str, ...], bool]:
    """The operators that pymatgen finds for a CIF without any, and whether it found them by a name."""
    from gemmi import Op
    from pymatgen.io.cif import CifBlock, CifParser

    with warnings.catch_warnings(action="ignore"):
        parser = CifParser.from_str("data_symmetry\n_cell_length_a 1\n")
        found = parser.get_symops(CifBlock(dict(fields), [], "symmetry"))
    return _triplets(Op(operator.as_xyz_str()) for operator in found), any(
        "Spacegroup from" in said for said in parser.warnings
    )
