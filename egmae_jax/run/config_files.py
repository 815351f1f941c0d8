"""Finds and loads config files, such as configs/busi.py."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

_FOLDER = "configs"


def packaged() -> Path:
    """Returns the folder of the package's configs; in a checkout it lies beside the package."""
    package = Path(__file__).parents[1]
    installed = package / _FOLDER
    return installed if installed.is_dir() else package.with_name(_FOLDER)


def locate(path: str) -> str:
    """Returns `path`, or the package's own file if `path` is a missing file in configs/."""
    own = packaged().parent / path
    is_own = Path(path).parts[:1] == (_FOLDER,) and not Path(path).exists() and own.exists()
    return str(own) if is_own else path


def names() -> list[str]:
    """Returns recipe names such as 'busi', from ./configs and the package's configs, sorted."""
    files = {path.stem for folder in (Path(_FOLDER), packaged()) for path in folder.glob("*.py")}
    return sorted(files - {"__init__", "default"})


def load(name: str, words: str | None = None) -> ConfigDict:
    """Loads the config of a recipe.

    Args:
        name: name of the recipe, such as 'busi'.
        words: preset after the colon of --config, such as 'cpu'; None for the recipe itself.
    """
    path = locate(f"{_FOLDER}/{name}.py")
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(words)
