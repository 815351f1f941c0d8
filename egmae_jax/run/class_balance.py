"""Class weights, class shares and sampling of fine-tuning, from config.finetune and the labels."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.training.losses import ClassBalance, balanced_weights

SAMPLINGS = ("plain", "balanced")
# A class and its weight; a name may contain commas and equals signs.
_ENTRY = re.compile(r"\s*(?P<name>.+?)\s*=\s*(?P<number>\d+\.?\d*|\.\d+)\s*(?:,|$)")


def problems(settings: ConfigDict | FrozenConfigDict) -> Iterator[str]:
    """Yields a sentence if finetune.class_weights cannot be read; the classes are not known yet."""
    if settings.class_weights not in ("none", "balanced"):
        try:
            _parse(settings.class_weights)
        except ConfigError as error:
            yield str(error)


def require_classes(settings: ConfigDict | FrozenConfigDict, classes: Sequence[str]) -> None:
    """Checks that finetune.class_weights, if given, names the classes of the data set.

    Raises:
        ConfigError: a class has no weight, or there is no such class.
    """
    if settings.class_weights in ("none", "balanced"):
        return
    given = _parse(settings.class_weights)
    wrong = [f"there is no class {name!r}" for name in given if name not in classes]
    wrong += [f"the class {name!r} has no weight" for name in classes if name not in given]
    if wrong:
        raise ConfigError(
            f"finetune.class_weights is {settings.class_weights!r}: {', '.join(wrong)}; it must "
            f"give each class a weight: {','.join(f'{name}=1' for name in classes)}."
        )


def of_loss(
    settings: ConfigDict | FrozenConfigDict, classes: Sequence[str], labels: np.ndarray
) -> ClassBalance:
    """Returns what the loss needs to know of the classes.

    Args:
        settings: config section `finetune`.
        classes: names of the classes.
        labels: class of each training image whose label is used, int [N]; every class occurs.
    """
    counts = np.bincount(labels, minlength=len(classes))
    weights = shares = None
    if settings.class_weights == "balanced":
        weights = balanced_weights(counts).astype(np.float32)
    elif settings.class_weights != "none":
        given = _parse(settings.class_weights)
        weights = np.array([given[name] for name in classes], np.float32)
    if settings.loss == "logit_adjusted":
        shares = (counts / counts.sum()).astype(np.float32)
    return ClassBalance(weights, shares)


def sampling_weights(
    settings: ConfigDict | FrozenConfigDict, labels: np.ndarray
) -> np.ndarray | None:
    """Returns the relative frequency of each training image, float [N]; None: all are equal.

    Args:
        settings: config section `finetune`.
        labels: class of each training image whose label is used, int [N].
    """
    return 1 / np.bincount(labels)[labels] if settings.sampling == "balanced" else None


def _parse(text: str) -> dict[str, float]:
    """Reads weights by class from 'benign=1,malignant=2.5'."""
    entries = list(_ENTRY.finditer(text))
    weights = {entry["name"]: float(entry["number"]) for entry in entries}
    is_read = "".join(entry[0] for entry in entries) == text
    if not is_read or len(weights) < len(entries) or min(weights.values(), default=0) <= 0:
        raise ConfigError(
            f"finetune.class_weights is {text!r}; it must be 'none', 'balanced', or a positive "
            "number for each class, such as 'benign=1,malignant=2.5,normal=1'."
        )
    return weights
