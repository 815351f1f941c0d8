"""Config files, such as configs/busi.py: where they lie, and the configs that they make."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

_FOLDER = "configs"


def packaged() -> Path:
    """Folder of the configs that come with the package; in a checkout it lies beside it."""
    package = Path(__file__).parents[1]
    installed = package / _FOLDER
    return installed if installed.is_dir() else package.with_name(_FOLDER)


def locate(path: str) -> str:
    """Path of a config file; of configs/... that is not there, the package's own."""
    own = packaged().parent / path
    is_own = Path(path).parts[:1] == (_FOLDER,) and not Path(path).exists() and own.exists()
    return str(own) if is_own else path


def names() -> list[str]:
    """Names of the recipes in configs/ of the current folder and of the package, such as 'busi'."""
    files = {path.stem for folder in (Path(_FOLDER), packaged()) for path in folder.glob("*.py")}
    return sorted(files - {"__init__", "default"})


def load(name: str, words: str | None = None) -> ConfigDict:
    """The config of a recipe such as 'busi', changed by the words that stand behind the colon."""
    path = locate(f"{_FOLDER}/{name}.py")
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(words)
