"""The names that docs/reference/api/index.md lists are there, and `egmae_jax` has no others."""

import importlib
import inspect
import re
import types

import pytest

import egmae_jax
from tests import REPOSITORY, tiny

PAGE = (REPOSITORY / "docs" / "reference" / "api" / "index.md").read_text()
NAMES = re.findall(r"^\| `([\w.]+)` \|", PAGE, re.MULTILINE)


def find(name):
    """The module of this name, or what the module before the last dot calls so."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_page_is_there_and_described(name):
    target = find(name)
    assert inspect.getdoc(target)
    assert callable(target) or isinstance(target, types.ModuleType)


def test_the_package_has_the_names_of_the_page_alone():
    assert len(NAMES) >= 10
    own = {name.split(".")[1] for name in NAMES if name.count(".") == 1}
    assert set(egmae_jax.__all__) == {*own, "__version__"}
    assert set(egmae_jax.__all__) <= set(dir(egmae_jax))
    assert egmae_jax.corrupt is find("egmae_jax.method.corruption.corrupt")
    with pytest.raises(AttributeError, match="module 'egmae_jax' has no attribute 'corupt'"):
        egmae_jax.corupt  # noqa: B018


@pytest.mark.parametrize(
    "program",
    ["import egmae_jax", "from egmae_jax import commands; commands.main(['--help'])"],
    ids=["import", "help"],
)
def test_neither_the_import_nor_help_waits_for_jax(program):
    check = "import sys; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    tiny.python("-c", f"{program}; {check}")
