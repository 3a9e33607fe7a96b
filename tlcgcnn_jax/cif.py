"""CIF text -> crystal, with the sites and the order of sites that pymatgen gives."""

import functools
import re
import warnings
from typing import Any

import numpy as np

from tlcgcnn_jax.cif_formula import CONTENTS, Contents, check_elements, has_contents
from tlcgcnn_jax.cif_symmetry import CELL, OPERATORS, settings_of
from tlcgcnn_jax.crystal import CLOSEST, Crystal, atomic_number, make_crystal, ordered_species
from tlcgcnn_jax.elements import atomic_numbers
from tlcgcnn_jax.errors import InputError, ReadingWarning

_SITE_TOLERANCE = 1e-4  # pymatgen's: sites closer than this (in each fractional coordinate) are one site
_SNAP_TOLERANCE = 1e-4  # pymatgen's: coordinates this close (relatively) to 1/3 or 2/3 are made exact
_GRID = np.array([10**12, 10**6, 1])  # makes one whole number of three
_TYPE = re.compile(r"([A-Z][a-z]?)\d*[+-]?\d*")
_LABEL = re.compile(r"([A-Z][a-z]?)(?:\d\w*)?[+-]?")
_NOT_TOLD = ("?", ".")
_NEEDED = ("_cell_length_a", "_atom_site_fract_x")
# Data names that are lower case in the core dictionary; DDLm writes the first part with a dot.
_OTHER_SPELLING = re.compile(
    r"(?<!\S)_(cell|chemical_formula|space_group_symop|symmetry_equiv|atom_site|atom_type)[._]\S+", re.IGNORECASE
)
# Sites are ordered by Pauling electronegativity, as pymatgen does (ties by symbol). Elements without one are
# left to pymatgen itself.
_BY_ELECTRONEGATIVITY = (
    "Fr Cs K Rb Ba Ra Na Sr Li Ca Ac La Tb Yb Ce Pm Pr Nd Sm Eu Gd Dy Y Ho Er Tm Lu Pu Am Bk Cf Cm Es Fm "
    "Hf Th Mg Zr Np Sc U Pa Ta Ti Mn Be Nb Al Tl V Zn Cr Cd In Ga Fe Co Cu Re Si Tc Ni Ag Sn Hg Po Ge Bi "
    "B Sb Te Mo As P At H Ir Os Pd Rn Ru Pt Rh Pb W Au C Se S Xe I Br Kr N Cl O F"
)


class _Unusual(Exception):
    """The text holds something that the fast reader leaves to pymatgen."""


def read_cif(text: str, where: str) -> Crystal:
    """The structure of a CIF, its symmetry expanded, in the cell that the file gives.

    Plain files are read by gemmi's tokeniser and expanded here; whatever is out of the ordinary (no symmetry
    operators, several blocks, shared sites, odd labels) goes to pymatgen. Both give the same sites in the
    same order, because the choice among equally distant neighbours depends on the order.

    Where the file has no operators, they follow from its Hall symbol, its Hermann-Mauguin name or its number. A name
    that leaves the axes of a rhombohedral group open gets those that its cell has; one that leaves the origin open
    ('F d -3 m') gets the one pymatgen takes (mostly the first of International Tables), or the other where that one
    puts atoms upon each other or does not give the number of atoms that the file tells. What is not settled by this is
    told in a warning; so is hydrogen that stands in the formula and has no sites.

    Args:
        text: Contents of the file.
        where: What the message should call the crystal: file and id.

    Returns:
        The crystal, with fractional coordinates between 0 and 1.

    Raises:
        InputError: The text is no complete CIF, holds several structures, or its symmetry or structure is unclear,
            disordered, impossible, or of other elements than its formula.

    Source:
        The rules of pymatgen.io.cif.CifParser (Ong et al., Comput. Mater. Sci. 68, 314, 2013).
    """
    crystal, contents = _read(text, where)
    check_elements(crystal, contents.formula, where)
    return crystal


def _read(text: str, where: str) -> tuple[Crystal, Contents]:
    try:
        lattice, species, coords, contents = _read_plain(text)
    except _Unusual:
        return _read_unusual(text, where)
    return make_crystal(lattice, species, coords, where), contents


def _read_unusual(text: str, where: str) -> tuple[Crystal, Contents]:
    if not all(tag in text for tag in _NEEDED):
        spelled = _OTHER_SPELLING.sub(lambda tag: tag[0].lower().replace(".", "_"), text)
        if spelled != text:
            return _read(spelled, where)
    _check_complete(text, where)
    settings = settings_of(text, where)
    if len(settings) == 1:
        return _read_setting(settings[0], text, where)
    found, problems = [], []
    for setting in settings:
        try:
            found.append((setting, *_read_setting(setting, text, where)))
        except InputError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    apart = [one for one in found if _is_apart(one[1])]
    chosen, *others = [one for one in apart if has_contents(*one[1:])] or apart or found
    if apart and others and not _are_same(chosen[1], others[0][1]):
        # In all groups with two origins the second one is a centre of inversion.
        second = next((setting for setting in settings if "-x,-y,-z" in setting), text)
        _tell_origin("second" if chosen[0] == second else "first", chosen[1], others[0][1], where)
    return chosen[1:]


def _tell_origin(name: str, chosen: Crystal, other: Crystal, where: str) -> None:
    atoms, of_other = len(chosen.atomic_numbers), len(other.atomic_numbers)
    told = (
        f"{where}: its space group has two origins, and nothing tells which is meant: the {name} is taken, with "
        f"{atoms} atoms in the cell (the other: {of_other}); add :1 or :2 to the name of the group, or give the "
        "operators"
    )
    warnings.warn(told, ReadingWarning, stacklevel=2)


def _read_setting(setting: str, text: str, where: str) -> tuple[Crystal, Contents]:
    if setting != text:
        return _read(setting, where)
    lattice, species, coords, contents = _read_with_pymatgen(text, where)
    return make_crystal(lattice, species, coords, where), contents


def _is_apart(crystal: Crystal) -> bool:
    return not (_distances(crystal) + CLOSEST * np.eye(len(crystal.atomic_numbers)) < CLOSEST).any()


def _are_same(one: Crystal, other: Crystal) -> bool:
    """Whether two readings of a file are one crystal, shifted: by their elements and all distances."""
    if sorted(one.atomic_numbers) != sorted(other.atomic_numbers):
        return False
    return np.allclose(np.sort(_distances(one), None), np.sort(_distances(other), None), atol=1e-3)


def _distances(crystal: Crystal) -> np.ndarray:
    from pymatgen.core import Lattice

    return Lattice(crystal.lattice).get_all_distances(crystal.frac_coords, crystal.frac_coords)


def _read_plain(text: str) -> tuple[np.ndarray, list[int], np.ndarray, Contents]:
    from gemmi import cif

    if "_magn" in text or "_atom_site_moment" in text:
        raise _Unusual
    try:
        document = cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        raise _Unusual from error
    if len(document) != 1:
        raise _Unusual
    block = document[0]
    lattice = _cell_vectors(tuple(_number(block.find_value("_cell" + tag)) for tag in CELL))
    for tag in OPERATORS:
        if operators := tuple(block.find_values(tag)):
            break
    else:
        raise _Unusual
    rotations, translations = _operators(operators)
    axes = [list(block.find_values(f"_atom_site_fract_{axis}")) for axis in "xyz"]
    numbers = _species(block)
    if not numbers or any(len(axis) != len(numbers) for axis in axes):
        raise _Unusual
    coords = np.array([[_snapped(_number(value)) for value in axis] for axis in axes]).T
    order = sorted(range(len(numbers)), key=lambda site: _rank()[numbers[site]])
    site_of_image, images = _expand(coords[order], rotations, translations)
    told = (cif.as_string(block.find_value(tag) or "?") for tag in CONTENTS)
    return lattice, [numbers[order[site]] for site in site_of_image], images, Contents(*told)


def _number(value: str | None) -> float:
    """A CIF number without its uncertainty, as in 5.6402(3)."""
    try:
        return float(value or "")
    except ValueError:
        pass
    try:
        return float((value or "").partition("(")[0].strip("'\""))
    except ValueError as error:
        raise _Unusual from error


def _snapped(value: float) -> float:
    if 0.333 < value < 0.667:
        for ideal in (1 / 3, 2 / 3):
            if abs(value / ideal - 1) <= _SNAP_TOLERANCE:
                return ideal
    return value


@functools.lru_cache(maxsize=1024)
def _cell_vectors(cell: tuple[float, ...]) -> np.ndarray:
    """Rows a, b, c with c along z and a in the xz plane, the orientation pymatgen chooses."""
    a, b, c, *degrees = cell
    (cos_alpha, cos_beta, cos_gamma), (sin_alpha, sin_beta, _) = (
        np.cos(np.radians(degrees)),
        np.sin(np.radians(degrees)),
    )
    if not (sin_alpha * sin_beta):
        raise _Unusual
    cos_star = np.clip((cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta), -1, 1)
    gamma_star = np.arccos(cos_star)
    return np.array(
        [
            [a * sin_beta, 0.0, a * cos_beta],
            [-b * sin_alpha * np.cos(gamma_star), b * sin_alpha * np.sin(gamma_star), b * cos_alpha],
            [0.0, 0.0, c],
        ]
    )


@functools.lru_cache(maxsize=256)
def _operators(triplets: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [n_op, 3, 3] and translations [n_op, 3] of operators such as '1/2-x, y, z+3/4'."""
    from gemmi import Op

    if any("." in triplet for triplet in triplets):  # decimal fractions: gemmi rounds them to 24ths
        raise _Unusual
    try:
        operators = [Op(triplet.strip("'\"")) for triplet in triplets]
    except (ValueError, RuntimeError) as error:
        raise _Unusual from error
    return np.array([op.rot for op in operators]) / Op.DEN, np.array([op.tran for op in operators]) / Op.DEN


@functools.cache
def _rank() -> dict[int, int]:
    return {atomic_numbers()[symbol]: rank for rank, symbol in enumerate(_BY_ELECTRONEGATIVITY.split())}


def _species(block: Any) -> list[int]:
    """Atomic number of each site of the file; sites that are not plain and full go to pymatgen."""
    labels = list(block.find_values("_atom_site_label"))
    types = list(block.find_values("_atom_site_type_symbol"))
    if not labels or len(labels) != len(types or labels):
        raise _Unusual
    pairs = zip(labels, types or _NOT_TOLD[:1] * len(labels), strict=True)
    names = [(label, _LABEL) if kind in _NOT_TOLD else (kind, _TYPE) for label, kind in pairs]
    known = {name: _plain_element(*name) for name in set(names)}
    if len(set(known.values())) != len(known) and types and block.find_values("_atom_type_oxidation_number"):
        raise _Unusual  # two oxidation states of one element are two species, and are ordered as such
    if set(block.find_values("_atom_site_attached_hydrogens")) - {"0", ".", "?"}:
        raise _Unusual
    for occupancy in set(block.find_values("_atom_site_occupancy")):
        if occupancy not in _NOT_TOLD and _number(occupancy) != 1:  # not told: full
            raise _Unusual
    return [known[name] for name in names]


def _plain_element(name: str, pattern: re.Pattern[str]) -> int:
    match = pattern.fullmatch(name.strip("'\""))
    number = atomic_numbers().get(match[1], 0) if match else 0
    if number not in _rank():
        raise _Unusual
    return number


def _expand(coords: np.ndarray, rotations: np.ndarray, translations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct images of the sites under the operators, in the order sites x operators.

    Args:
        coords: float64 [n_site, 3].
        rotations: float64 [n_op, 3, 3].
        translations: float64 [n_op, 3].

    Returns:
        Site of each image, int [n], and the images, float64 [n, 3], within the cell.
    """
    # [n_site, 3] @ [3, n_op * 3]: one product, where a loop would make up to 192 small ones
    images = (coords @ rotations.transpose(2, 0, 1).reshape(3, -1) + translations.ravel()).reshape(-1, 3)
    images -= np.floor(images)
    if len(rotations) == 1:
        if _close_pairs(images):
            raise _Unusual
        return np.arange(len(images)), images
    site = np.repeat(np.arange(len(coords)), len(rotations))
    # Most images coincide but for rounding; whole numbers find these at the cost of one sort.
    grid = np.rint(images * 1e6).astype(np.int64) % 1_000_000
    _, first, inverse = np.unique(grid @ _GRID, return_index=True, return_inverse=True)
    if (site[first][inverse] != site).any():
        raise _Unusual  # two sites of the file at one position
    first.sort()
    kept = images[first]
    close = _close_pairs(kept)
    if close:
        if any(site[first[i]] != site[first[j]] for i, j in close):
            raise _Unusual
        chosen: list[int] = []
        for image in range(len(kept)):
            if not any((earlier, image) in close for earlier in chosen):
                chosen.append(image)
        first, kept = first[chosen], kept[chosen]
    return site[first], kept


def _close_pairs(points: np.ndarray) -> set[tuple[int, int]]:
    """Pairs i < j of positions [n, 3] within the tolerance of each other, across the cell's faces too."""
    if len(points) <= 24:  # where all pairs cost less than a tree
        difference = points[:, None] - points
        difference -= np.rint(difference)
        near = (np.abs(difference) < _SITE_TOLERANCE).all(axis=-1)
        if np.count_nonzero(near) == len(points):
            return set()
        return {(int(i), int(j)) for i, j in np.argwhere(near) if i < j}
    from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]

    return cKDTree(points % 1.0, boxsize=1.0).query_pairs(_SITE_TOLERANCE, p=np.inf)


def _read_with_pymatgen(text: str, where: str) -> tuple[np.ndarray, list[str], np.ndarray, Contents]:
    from pymatgen.io.cif import CifParser

    text = _with_full_sites(text, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same is told by parser.warnings
        problems: list[str] = []
        try:
            parser = CifParser.from_str(text)
            problems = parser.warnings  # the parser says here why it passed over a block
            structure = parser.parse_structures(primitive=False, on_error="ignore")[0]
        except Exception as error:  # the parser lets errors of many kinds through
            said = (problems[-1] if problems else str(error)).strip() or type(error).__name__
            raise InputError(f"{where}: this CIF cannot be read: {said.splitlines()[-1]}") from error
    fields = next((fields for fields in parser.as_dict().values() if _NEEDED[1] in fields), {})
    if any("implicit hydrogens" in said for said in problems) or "implicit_hydrogens" in structure.site_properties:
        raise InputError(f"{where}: hydrogens that belong to a site of another atom have no place: give each its site")
    # The parser leaves out sites whose label means nothing to it, such as OH1, and only says so here.
    lost = {said.split()[0] for said in problems if said.endswith(" parsed as ")}
    lost |= set(filter(_is_passed_over, fields.get("_atom_site_type_symbol", fields.get("_atom_site_label", ()))))
    if lost:
        raise InputError(
            f"{where}: the element of sites labelled {', '.join(sorted(lost))} is not known: add a column "
            "_atom_site_type_symbol with elements"
        )
    species = [
        ordered_species([(_symbol(specie), float(occupancy)) for specie, occupancy in site.species.items()], i, where)
        for i, site in enumerate(structure)
    ]
    contents = Contents(*(str(fields.get(tag, "")) for tag in CONTENTS))
    return structure.lattice.matrix, species, structure.frac_coords, contents


def _is_passed_over(name: str) -> bool:
    """Whether a label or type means no element to pymatgen, which leaves out the site without a word."""
    elements = (name[:2].title(), name[:1].upper())
    return not re.match("w?[A-Z]", name) and not any(atomic_number(symbol) for symbol in elements)


def _with_full_sites(text: str, where: str) -> str:
    """The same CIF without what makes pymatgen drop or refuse a site.

    That is an occupancy that is told to be inapplicable, which becomes 1, a type that is not told, which becomes the
    label, and deuterium, which pymatgen cannot add to the hydrogen of the same site.

    Raises:
        InputError: A site without coordinates, which pymatgen would put at the origin.
    """
    from gemmi import cif

    try:
        document = cif.read_string(text)
    except (ValueError, RuntimeError):  # which pymatgen may be able to read
        return text
    changed = False
    for block in document:
        for axis in "xyz":
            if "." in list(block.find_values(f"_atom_site_fract_{axis}")):
                raise InputError(f"{where}: a site has '.' as its coordinate {axis}: give it a place, or leave it out")
        column = block.find_loop("_atom_site_occupancy")
        for row in range(len(column)):
            if column[row] == ".":
                column[row], changed = "1", True
        types, labels = (block.find_values(f"_atom_site_{tag}") for tag in ("type_symbol", "label"))
        for row, kind in enumerate(list(types) if len(types) == len(labels) else ()):
            if kind in (*_NOT_TOLD, "D", "T"):
                types[row], changed = labels[row] if kind in _NOT_TOLD else "H", True
    return document.as_string() if changed else text


def _symbol(specie: Any) -> str:
    symbol = getattr(specie, "symbol", str(specie))
    return symbol if atomic_number(symbol) else str(specie)


def _check_complete(text: str, where: str) -> None:
    if not re.search(r"^\s*data_", text, re.MULTILINE | re.IGNORECASE):
        raise InputError(f"{where}: no data_ block was found; this is not a CIF, or it was cut short")
    missing = [tag for tag in _NEEDED if tag not in text]
    if missing:
        raise InputError(f"{where}: {' and '.join(missing)} not found; the CIF has no atoms, or was cut short")
    if (structures := len(re.findall(r"^\s*_atom_site_fract_x\b", text, re.MULTILINE))) > 1:
        raise InputError(f"{where}: {structures} structures in one CIF: write a file for each")
