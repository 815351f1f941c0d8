"""The models by timm's and torchvision's names: `models.create("convnext_tiny", num_classes=3)`."""

import difflib
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from egmae_jax.core.errors import ConfigError
from egmae_jax.models.asff import ASFFResNet
from egmae_jax.models.convnext import ConvNeXt
from egmae_jax.models.resnet import ResNet
from egmae_jax.models.squeezenet import SqueezeNet

Model = ConvNeXt | ResNet | SqueezeNet

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
    "convnextv2_atto": ((2, 2, 6, 2), (40, 80, 160, 320), "timm/convnextv2_atto.fcmae_ft_in1k"),
    "convnextv2_femto": ((2, 2, 6, 2), (48, 96, 192, 384), "timm/convnextv2_femto.fcmae_ft_in1k"),
    "convnextv2_pico": ((2, 2, 6, 2), (64, 128, 256, 512), "timm/convnextv2_pico.fcmae_ft_in1k"),
    "convnextv2_nano": ((2, 2, 8, 2), (80, 160, 320, 640), "timm/convnextv2_nano.fcmae_ft_in1k"),
    "convnextv2_tiny": ((3, 3, 9, 3), (96, 192, 384, 768), "timm/convnextv2_tiny.fcmae_ft_in1k"),
    "convnextv2_base": ((3, 3, 27, 3), (128, 256, 512, 1024), "timm/convnextv2_base.fcmae_ft_in1k"),
}
# Whether the blocks are bottlenecks. The weights are torchvision's first ones, which the papers
# that the recipes come from started from.
_RESNET = {
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512), False, "timm/resnet18.tv_in1k"),
    "resnet34": ((3, 4, 6, 3), (64, 128, 256, 512), False, "timm/resnet34.tv_in1k"),
    "resnet50": ((3, 4, 6, 3), (64, 128, 256, 512), True, "timm/resnet50.tv_in1k"),
}
# The hub has no safetensors of these; torchvision publishes pickles.
_SQUEEZENET = {
    "squeezenet1_0": ("1_0", "https://download.pytorch.org/models/squeezenet1_0-b66bff10.pth"),
    "squeezenet1_1": ("1_1", "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"),
}
_ASFF = "asff_"  # stands before a ResNet's name


def names() -> tuple[str, ...]:
    """Every name that `create` takes."""
    return (*_CONVNEXT, *_RESNET, *_SQUEEZENET, *(_ASFF + name for name in _RESNET))


def family(name: str) -> str:
    """'convnext', 'resnet', 'squeezenet' or 'asff_resnet'; the autoencoder takes ConvNeXts only.

    Raises:
        ConfigError: no such model; the message names the nearest.
    """
    if name in _CONVNEXT:
        return "convnext"
    if name in _SQUEEZENET:
        return "squeezenet"
    if name.removeprefix(_ASFF) in _RESNET:
        return "asff_resnet" if name.startswith(_ASFF) else "resnet"
    nearest = difflib.get_close_matches(name, names(), n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"There is no model {name!r}.{hint} Known: {', '.join(names())}.")


def create(
    name: str,
    num_classes: int,
    *,
    drop_path_rate: float = 0.0,
    dtype: Any = jnp.float32,
    rematerialize: bool = False,
    frozen: Iterable[str] = (),
) -> Model:
    """The model `name` with a classifier of `num_classes` outputs.

    Args:
        name: one of `names()`.
        num_classes: width of the classifier.
        drop_path_rate: drop path of the last residual block; 0 for SqueezeNet, which has none.
        dtype: compute dtype, float32 or bfloat16.
        rematerialize: see `ConvNeXt`; False for all others.
        frozen: layers, keys of the model's `layers`, that training leaves alone: their batch norms
            keep and use their running statistics.

    Raises:
        ConfigError: no such model.
        ValueError: no such layers, or an option that the model does not have.
    """
    kind = family(name)
    options: dict[str, Any] = {
        "drop_path_rate": drop_path_rate,
        "dtype": dtype,
        "frozen": frozenset(frozen),
    }
    model: Model
    if kind == "convnext":
        depths, dims, _ = _CONVNEXT[name]
        options |= {"rematerialize": rematerialize, "response_norm": name.startswith("convnextv2")}
        model = ConvNeXt(depths, dims, num_classes, **options)
    elif rematerialize:
        raise ValueError(f"rematerialize is for ConvNeXt; {name} does not have it.")
    elif kind == "squeezenet":
        model = SqueezeNet(_SQUEEZENET[name][0], num_classes, **options)
    else:
        depths, dims, bottleneck, _ = _RESNET[imagenet_model(name)]
        network = ResNet if kind == "resnet" else ASFFResNet
        model = network(depths, dims, bottleneck, num_classes, **options)
    if unknown := sorted(model.frozen - model.layers.keys()):
        raise ValueError(
            f"{name} has no layers {', '.join(unknown)}; it has {', '.join(model.layers)}."
        )
    return model


def imagenet_model(name: str) -> str:
    """The model whose ImageNet weights the model `name` starts from.

    They give every parameter but those of its `fresh_prefixes`.
    """
    return name.removeprefix(_ASFF) if family(name) == "asff_resnet" else name


def default_weights(name: str) -> str:
    """Hub id of the ImageNet weights for the model `imagenet_model(name)`.

    For SqueezeNet the address of a pickle; `models.timm.locate` says how to convert it.
    """
    table: dict[str, Any] = {**_CONVNEXT, **_RESNET, **_SQUEEZENET}
    return table[imagenet_model(name)][-1]
