"""The models by timm's names: `models.create("convnext_tiny", num_classes=3)`."""

import difflib
from typing import Any

import jax.numpy as jnp

from egmae_jax.models.convnext import ConvNeXt

# Depths and widths are timm's; the last column is the ImageNet-1k checkpoint that
# `imagenet.weights='default'` fetches from the Hugging Face hub, by full tag because timm's bare
# names may mean another one (`convnext_tiny` is `in12k_ft_in1k`; the paper's is `fb_in1k`).
_CONVNEXT = {
    "convnext_atto": ((2, 2, 6, 2), (40, 80, 160, 320), "timm/convnext_atto.d2_in1k"),
    "convnext_femto": ((2, 2, 6, 2), (48, 96, 192, 384), "timm/convnext_femto.d1_in1k"),
    "convnext_pico": ((2, 2, 6, 2), (64, 128, 256, 512), "timm/convnext_pico.d1_in1k"),
    "convnext_nano": ((2, 2, 8, 2), (80, 160, 320, 640), "timm/convnext_nano.d1h_in1k"),
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768), "timm/convnext_tiny.fb_in1k"),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768), "timm/convnext_small.fb_in1k"),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024), "timm/convnext_base.fb_in1k"),
}


def names() -> tuple[str, ...]:
    """Every name that `create` takes."""
    return tuple(_CONVNEXT)


def create(
    name: str,
    num_classes: int,
    *,
    drop_path_rate: float = 0.0,
    dtype: Any = jnp.float32,
    rematerialize: bool = False,
) -> ConvNeXt:
    """The model `name` with a classifier of `num_classes` outputs; see `ConvNeXt` for the rest.

    Raises:
        ValueError: no such model; the message names the nearest.
    """
    depths, dims, _ = _entry(name)
    return ConvNeXt(depths, dims, num_classes, drop_path_rate, dtype, rematerialize)


def default_weights(name: str) -> str:
    """Hub id of the ImageNet weights for the model `name`."""
    return _entry(name)[2]


def _entry(name: str) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    if name not in _CONVNEXT:
        nearest = difflib.get_close_matches(name, _CONVNEXT, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"There is no model {name!r}.{hint} Known: {', '.join(_CONVNEXT)}.")
    return _CONVNEXT[name]
