"""PyTorch's libraries, which only comparing with them and ONNX need: the extras parity and onnx."""

import importlib
import logging
import re
from typing import Any

from egmae_jax.core.errors import MissingExtraError

logger = logging.getLogger(__name__)


def require(*libraries: str, extra: str) -> None:
    """Imports libraries.

    A torchvision that was built for another torch, such as a GPU's beside the CPU's, is taken all
    the same: its networks and transforms are Python. A warning says so.

    Args:
        *libraries: names of modules, torch before what needs it.
        extra: extra of this package that installs them.

    Raises:
        MissingExtraError: one cannot be imported; says which extra brings it.
    """
    for library in libraries:
        try:
            _import_torchvision() if library == "torchvision" else importlib.import_module(library)
        except (ImportError, OSError) as error:  # the latter of a shared library
            raise MissingExtraError(
                f"{library} cannot be imported ({error}); pip install -e '.[{extra}]' brings it."
            ) from None
        except (RuntimeError, AttributeError) as error:
            raise MissingExtraError(
                f"{library} cannot be imported ({error}): torch and torchvision are not built for "
                "each other; install both anew, from the same index."
            ) from None


def _import_torchvision() -> None:
    """Imports torchvision, also where its compiled operators do not load.

    Its Python part then stops at the name of the first that it describes. Neither timm nor we call
    them, so each is given a name, which says nothing of what it computes.
    """
    torch: Any = importlib.import_module("torch")
    named: list[str] = []
    while True:
        try:
            torchvision: Any = importlib.import_module("torchvision")
            break
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] in named:
                raise
            named.append(missing[1])
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{missing[1]}", schema)
    if named:
        logger.warning(
            "torchvision %s was built for another torch than %s: its compiled operators, such as "
            "%s, are not there. Its networks and transforms need none of them.",
            torchvision.__version__,
            torch.__version__,
            named[0],
        )
