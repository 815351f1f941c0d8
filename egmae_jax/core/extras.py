"""Imports of libraries that only some commands need: the extras parity, onnx and demo."""

import importlib
import logging
import re
from typing import Any

from egmae_jax.core.errors import MissingExtraError

logger = logging.getLogger(__name__)


def require(*libraries: str, extra: str) -> None:
    """Imports optional libraries.

    A torchvision that was built for another torch, such as a GPU build next to a CPU build, is
    accepted with a warning, because its networks and transforms are written in Python.

    Args:
        *libraries: names of the modules; torch must precede the modules that import it.
        extra: extra of this package that installs them.

    Raises:
        MissingExtraError: a library cannot be imported; the message names the extra.
    """
    for library in libraries:
        try:
            _import_torchvision() if library == "torchvision" else importlib.import_module(library)
        except (ImportError, OSError) as error:  # OSError: a shared library cannot be loaded
            raise MissingExtraError(
                f"{library} cannot be imported ({error}); pip install -e '.[{extra}]' installs it."
            ) from None
        except (RuntimeError, AttributeError) as error:
            raise MissingExtraError(
                f"{library} cannot be imported ({error}): torch and torchvision are not built for "
                "each other; reinstall both from the same index."
            ) from None


def _import_torchvision() -> None:
    """Imports torchvision even if its compiled operators cannot be loaded.

    That is so where torch is a CPU build and torchvision PyPI's: importing fails at the first
    operator that torchvision registers. Neither timm nor this package calls these operators, so a
    placeholder without an implementation is defined for each.
    """
    torch: Any = importlib.import_module("torch")
    placeholders: list[str] = []
    while True:
        try:
            torchvision: Any = importlib.import_module("torchvision")
            break
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] in placeholders:
                raise
            placeholders.append(missing[1])
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{missing[1]}", schema)
    if placeholders:
        logger.warning(
            "torchvision %s was not built for torch %s: its compiled operators, such as %s, are "
            "missing. Its networks and transforms do not need them.",
            torchvision.__version__,
            torch.__version__,
            placeholders[0],
        )
