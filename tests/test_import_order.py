"""A file imports only from files above it, and heavy libraries stay where they belong."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tlcgcnn_jax

ORDER = (
    "errors", "processes", "config", "files", "elements", "crystal", "cif_formula", "cif_symmetry", "cif", "poscar",
    "structure_json", "entries", "labels", "readers", "objects", "structures", "textbook", "search_order", "graphs",
    "array_folder", "dataset", "descriptors", "splits", "machine", "batching", "layers", "model", "losses", "optim",
    "adapters", "outputs", "norms", "checkpoint", "train", "many", "calibration", "novelty", "blending",
    "error_bars", "model_folder", "bundle", "cgcnn_import", "strategies", "merging", "graph_sets", "embeddings",
    "fine_tuning", "regressors", "feature_model", "committee", "zoo", "predictions", "evaluate", "selection",
    "results", "statistics", "analysis", "baselines", "ranking", "source_choice", "figure", "plots",
    "calibration_plots", "study_series", "study_plots", "page", "study_data", "study_page", "trust", "run_pictures",
    "run_page", "report", "study_config", "study_grid", "study_desk", "study_work", "engines", "watch",
    "run_folder", "plans", "ways", "run", "study", "estimator", "demo", "options", "cli",
)  # fmt: skip
FOLDER = Path(tlcgcnn_jax.__file__).parent
WITHOUT_JAX = ORDER[: ORDER.index("splits") + 1]  # these run in worker processes
ONLY = {
    "orbax": {"checkpoint"},
    "flax": {"layers", "model"},
    "sklearn": {"estimator"},
}
LAZY = ("pymatgen", "gemmi", "ase", "matplotlib", "torch", "pandas", "scipy", "tqdm", "matminer")


def imports(name: str, top: bool = False) -> set[str]:
    """Dotted names that a file imports; `top`: when it is itself imported, not inside functions."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{name}: relative import"
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
            elif not (top and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
                visit(child)

    visit(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    return found


def own(name: str) -> set[str]:
    """Files of the package that a file imports, anywhere in it."""
    dotted = [path.split(".") for path in imports(name)]
    return {parts[1] for parts in dotted if parts[0] == "tlcgcnn_jax" and len(parts) > 1 and parts[1] in ORDER}


def test_every_file_has_its_place():
    assert sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__") == sorted(ORDER)
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_only_from_above(name):
    above = set(ORDER[: ORDER.index(name)])
    assert own(name) <= above, f"{name} imports {', '.join(sorted(own(name) - above))}, which stand below it"


def test_the_check_sees_imports():
    assert {"config", "dataset", "splits"} <= own("train")
    assert "jax" in imports("train") and "jax" not in imports("config")


@pytest.mark.parametrize("library", ONLY)
def test_imported_in_few_files(library):
    users = {name for name in ORDER if any(path.split(".")[0] == library for path in imports(name, top=True))}
    assert users == ONLY[library] & set(users | ONLY[library])


def test_scikit_learn_is_used_in_two_files():
    users = {name for name in ORDER if any(path.split(".")[0] == "sklearn" for path in imports(name))}
    assert users == {"estimator", "regressors"}


@pytest.mark.parametrize("name", ORDER)
def test_heavy_libraries_are_imported_when_they_are_needed(name):
    found = {path.split(".")[0] for path in imports(name, top=True)}
    assert not found & set(LAZY)


def test_workers_do_without_jax():
    for name in WITHOUT_JAX:
        assert not {path.split(".")[0] for path in imports(name)} & {"jax", "flax", "optax", "jraph", "orbax"}, name
    assert own("dataset") <= set(WITHOUT_JAX)


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)


def test_training_needs_few_libraries():
    """`import tlcgcnn_jax.train` on a machine that has none of the readers' and reports' libraries."""
    done = run(
        """
        import sys

        class Absent:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("pymatgen", "gemmi", "ase", "matplotlib", "sklearn", "torch", "pandas"):
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Absent())
        try:
            import pymatgen
        except ModuleNotFoundError:
            import tlcgcnn_jax.train
            print("imported")
        """
    )
    assert done.stdout == "imported\n", done.stderr
