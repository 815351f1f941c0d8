"""ASFF-ResNet: adaptive fusion of mid-level detail and high-level semantics.

A published network of this name, ASFF-ResNet-50 for skin lesions, has two branches, global average
pooling and fully connected layers that give adaptive weights, and a classifier on the weighted sum.
What its authors leave open is our decision: the branches are the third and fourth stage; a 1x1
convolution with batch norm projects each to the same width, as in ASFF (Liu, Huang and Wang 2019);
and a softmax gives each image's two weights.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.models.layers import ConvNorm, Linear, fan_out_init, tap
from egmae_jax.models.layouts import CONV, DENSE, VECTOR
from egmae_jax.models.registry import Patterns, register
from egmae_jax.models.resnet import BACKBONE_PATTERNS, RESNETS, ResNet

WIDTH = 512  # channels of both branches
HIDDEN = 32  # width of the layer between the pooled branches and their weights


class Fusion(nn.Module):
    """Projects two branches, weights them by their pooled features, and adds them.

    The two weights of each image have the tap address 'fusion/weights'.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, mid: jax.Array, high: jax.Array, *, train: bool) -> jax.Array:
        """[B, 2h, 2w, C] and [B, h, w, 2C] -> [B, WIDTH], float32."""
        pooled = []
        for name, x in (("mid", mid), ("high", high)):
            projection = ConvNorm(WIDTH, 1, dtype=self.dtype, kernel_init=fan_out_init, name=name)
            x = nn.relu(projection(x, train=train))
            pooled.append(x.astype(jnp.float32).mean(axis=(1, 2)))
        hidden = nn.relu(Linear(HIDDEN, name="fc1")(jnp.concatenate(pooled, axis=-1)))
        weights = nn.softmax(Linear(2, name="fc2")(hidden), axis=-1)
        weights = tap(self, weights, "weights")
        return jnp.einsum("nb,bnc->nc", weights, jnp.stack(pooled))


class ASFFResNet(ResNet):
    """ResNet whose classifier gets the fusion of its last two stages.

    The backbone's parameters have the paths of a ResNet; `fusion/` and `head/` are new. As in a
    ResNet, `features` are those of the fourth stage.
    """

    fresh_prefixes = ("head/", "fusion/")  # parameters that a ResNet's weights do not provide
    has_fusion_weights = True
    partial_layers = {  # noqa: RUF012
        "layer4_": "high-level branch alone",
        "fusion/high": "high-level branch alone",
        "fusion/mid": "mid-level branch alone",
    }

    def setup(self):
        super().setup()
        self.fusion = Fusion(self.dtype)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images [B, H, W, 3] -> float32 logits [B, num_classes]."""
        *_, mid, high = self.stages(images, train=train)
        fused = self.fusion(mid, high, train=train)
        return self.head(fused[:, None, None])  # the head pools; this is one pixel


@functools.partial(jax.jit, static_argnames="model")
def fusion_weights(model: ASFFResNet, variables: Any, images: jax.Array) -> jax.Array:
    """Computes each image's weights of the third and the fourth stage, which sum to 1.

    Args:
        model: the network.
        variables: variables of the network.
        images: normalized images [B, H, W, 3].

    Returns:
        Weights, float32 [B, 2].
    """
    _, state = model.apply(variables, images, mutable=["intermediates"])
    return state["intermediates"]["fusion"]["weights"]


# Neither library has this network: timm's names for the backbone, names of our own otherwise.
_PATTERNS: Patterns = (
    *BACKBONE_PATTERNS,
    (r"fusion/(mid|high)/conv/kernel", r"fusion.\1.conv.weight", CONV),
    (r"fusion/(mid|high)/bn/scale", r"fusion.\1.bn.weight", VECTOR),
    (r"fusion/(mid|high)/bn/bias", r"fusion.\1.bn.bias", VECTOR),
    (r"fusion/(mid|high)/bn/(mean|var)", r"fusion.\1.bn.running_\2", VECTOR),
    (r"fusion/(fc\d)/kernel", r"fusion.\1.weight", DENSE),
    (r"fusion/(fc\d)/bias", r"fusion.\1.bias", VECTOR),
    (r"head/fc/kernel", r"head.fc.weight", DENSE),
    (r"head/fc/bias", r"head.fc.bias", VECTOR),
)


def register_asff(backbone: str, sizes: tuple) -> None:
    """Registers the ASFF of a ResNet; `sizes` are its depths, features and kind of block."""
    build = functools.partial(ASFFResNet, *sizes)
    register(f"asff_{backbone}", build, backbone=backbone, patterns=_PATTERNS)


for _name, _sizes in RESNETS.items():
    register_asff(_name, _sizes)
