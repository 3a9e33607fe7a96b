"""A structure of JSON, as its parser gives it -> crystal."""

from typing import Any

import numpy as np

from tlcgcnn_jax.crystal import Crystal, check_periodic, make_crystal, ordered_species
from tlcgcnn_jax.errors import InputError


def crystal_from_json(record: Any, where: str) -> Crystal:
    """A crystal from a record of arrays, a pymatgen `Structure.as_dict()`, or a JARVIS `atoms` dictionary.

    Args:
        record: The dictionary, or one that holds it as "structure" or "atoms".
        where: What the message should call the crystal: file and id.

    Raises:
        InputError: It is none of the three, or cannot be used.
    """
    try:
        if isinstance(record.get("structure"), dict):
            record = record["structure"]
        if isinstance(record.get("atoms"), dict):
            record = record["atoms"]
        if "sites" in record:
            sites, lattice = record["sites"], record["lattice"]
            species = [
                ordered_species([(s["element"], float(s.get("occu", 1))) for s in site["species"]], i, where)
                for i, site in enumerate(sites)
            ]
            crystal = make_crystal(lattice["matrix"], species, [site["abc"] for site in sites], where)
            pbc = lattice.get("pbc")
        elif "lattice_mat" in record:
            species = [str(element).strip() for element in record["elements"]]
            coords = record["coords"]
            if record.get("cartesian") in (True, "True", "true", 1):
                make_crystal(record["lattice_mat"], species, coords, where)
                coords = np.array(coords, np.float64) @ np.linalg.inv(np.array(record["lattice_mat"], np.float64))
            crystal, pbc = make_crystal(record["lattice_mat"], species, coords, where), record.get("pbc")
        else:
            species = [
                ordered_species(list(occupant.items()), site, where) if isinstance(occupant, dict) else occupant
                for site, occupant in enumerate(record["species"])
            ]
            crystal = make_crystal(record["lattice"], species, record["frac_coords"], where)
            pbc = record.get("pbc")
        check_periodic(pbc, crystal.lattice, crystal.frac_coords @ crystal.lattice, where)
        return crystal
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        found = ", ".join(map(str, record)) if isinstance(record, dict) else f"{record!r:.60}"
        raise InputError(
            f"{where}: no structure in it ({type(error).__name__}: {error}); found {found:.200}; expected "
            "lattice, species and frac_coords, or a pymatgen structure, or JARVIS atoms"
        ) from error
