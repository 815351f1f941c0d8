"""Entropy-guided self-supervised learning for medical image classification, in JAX."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egmae_jax.deploy.predictor import load
    from egmae_jax.method.corruption import corrupt, patch_entropy

__all__ = ["__version__", "corrupt", "load", "patch_entropy"]
__version__ = "0.1.0"  # pyproject.toml reads it here
# Lets `python -m egmae_jax.predict` find commands/predict.py.
__path__ = [*__path__, os.path.join(__path__[0], "commands")]

# Modules of the names in `__all__`. They are imported on first use, because they import JAX.
_MODULES = {
    "corrupt": "egmae_jax.method.corruption",
    "load": "egmae_jax.deploy.predictor",
    "patch_entropy": "egmae_jax.method.corruption",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
