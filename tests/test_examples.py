"""Examples of docstrings run; those of public names as they are copied, with nothing imported before."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import tlcgcnn_jax

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
WITHOUT = {"STRATEGIES", "import_cgcnn"}  # a dictionary, and what needs a file of the original's
MODULES = sorted(module.name for module in pkgutil.iter_modules(tlcgcnn_jax.__path__))


def run(test: doctest.DocTest) -> None:
    told: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=told.append)
    assert not told, "".join(told)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"tlcgcnn_jax.{name}")
    for test in doctest.DocTestFinder().find(module, module.__name__):
        if test.examples and test.name.rpartition(".")[2] not in tlcgcnn_jax.__all__:
            run(test)


@pytest.mark.parametrize("name", sorted({*tlcgcnn_jax.__all__} - WITHOUT))
def test_public_names_have_an_example_that_can_be_copied(name):
    found = getattr(tlcgcnn_jax, name)
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(found) or "", {}, name, None, None)
    assert test.examples
    run(test)
