"""Importing the package changes nothing in the process."""

import ast
import json
import pkgutil
from pathlib import Path

import pytest

import egmae_jax
from tests import tiny

PACKAGE = Path(egmae_jax.__file__).parent
MODULES = [
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "egmae_jax.")
    if not module.name.endswith("__main__")  # which run when they are imported by -m
]

# Libraries change the process when they are imported, so they are imported first.
CHANGES = """
import importlib.util, json, logging, os, signal, sys, threading, warnings

def import_all(names):
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if importlib.util.find_spec(error.name.partition(".")[0]):  # of another version
                raise

def state():
    import cv2, jax, matplotlib, numpy
    loggers = ["", *logging.root.manager.loggerDict]
    return {
        "cv2 threads": cv2.getNumThreads(),
        "cv2 OpenCL": cv2.ocl.useOpenCL(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "signals": {str(s): str(signal.getsignal(s)) for s in signal.valid_signals()},
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.displayhook)],
        "threads": sorted(t.name for t in threading.enumerate()),
        "warnings": [str(f) for f in warnings.filters],
        "numpy errors": numpy.geterr(),
        "numpy random": str(numpy.random.get_state()),
        "matplotlib": {k: str(v) for k, v in matplotlib.rcParams.items() if k != "backend"},
        "jax": {k: str(v) for k, v in jax.config.values.items()},
        "loggers": {
            name: [logger.level, str(logger.handlers), str(logger.filters), logger.disabled,
                   logger.propagate]
            for name in loggers
            if not name.startswith("egmae_jax")
            for logger in [logging.getLogger(name)]
        },
    }

libraries, modules = json.loads(sys.argv[1])
import_all(libraries)
before = state()
import_all(modules)
after = state()
for what in before:
    a, b = before[what], after[what]
    if what == "loggers":  # of what a library imports only when it is used there are new ones
        b = {name: b[name] for name in a}
    if a != b:
        if isinstance(a, dict):
            a, b = ({k: x.get(k) for k in {**a, **b} if a.get(k) != b.get(k)} for x in (a, b))
        print(what, a, b)
"""


def libraries():
    """All modules of others that importing a module of the package imports."""
    names = {"matplotlib", "numpy"}
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.parse(path.read_text()).body)
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
            elif not isinstance(node, ast.FunctionDef):
                nodes += ast.iter_child_nodes(node)
    return sorted(name for name in names if name.partition(".")[0] != "egmae_jax")


def test_importing_the_package_changes_nothing_in_the_process():
    arguments = json.dumps([libraries(), MODULES])
    assert tiny.python("-c", CHANGES, arguments).stdout == ""


@pytest.mark.essential
@pytest.mark.slow
def test_the_library_needs_neither_torch_nor_tensorflow_nor_a_config():
    program = (
        "import sys\n"
        "from egmae_jax import experiment, models\n"
        "from egmae_jax.deploy import predictor\n"
        "from egmae_jax.explain import entropy_maps, gradcam\n"
        "assert not {'configs', 'tensorflow', 'torch'} & set(sys.modules)\n"
    )
    tiny.python("-c", program)
