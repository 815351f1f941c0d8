"""ASFF-ResNet: adaptive fusion of mid-level detail and high-level semantics.

The paper (ASFF-ResNet-50 for skin lesions) states: two branches, global average pooling and fully
connected layers that give adaptive weights, a weighted sum that is classified. It leaves open, so
decided here: the branches are the third and fourth stage, each projected to one width by a 1x1
convolution with batch norm, as in ASFF (Liu, Huang and Wang 2019); the two weights of an image are
a softmax.
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from egmae_jax.models.convnext import Dense
from egmae_jax.models.layers import ConvNorm, tap
from egmae_jax.models.registry import register
from egmae_jax.models.resnet import RESNETS, ResNet, conv_init

WIDTH = 512  # channels of both branches
HIDDEN = 32  # width of the layer between the pooled branches and their weights


class Fusion(nn.Module):
    """Projects two branches, weighs them by their pooled features and adds them up.

    An image's two weights are tapped at the address 'fusion/weights'.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, mid: jax.Array, high: jax.Array, *, train: bool) -> jax.Array:
        """[B, 2h, 2w, C] and [B, h, w, 2C] -> [B, WIDTH], float32."""
        pooled = []
        for name, x in (("mid", mid), ("high", high)):
            projection = ConvNorm(WIDTH, 1, dtype=self.dtype, kernel_init=conv_init, name=name)
            x = nn.relu(projection(x, train=train))
            pooled.append(x.astype(jnp.float32).mean(axis=(1, 2)))
        hidden = nn.relu(Dense(HIDDEN, name="fc1")(jnp.concatenate(pooled, axis=-1)))
        weights = nn.softmax(Dense(2, name="fc2")(hidden), axis=-1)
        weights = tap(self, weights, "weights")
        return jnp.einsum("nb,bnc->nc", weights, jnp.stack(pooled))


class ASFFResNet(ResNet):
    """ResNet whose classifier sees the fusion of its last two stages.

    The backbone's parameters have ResNet's paths; `fusion/` and `head/` are its own. `features` are
    the fourth stage's, as ResNet's.
    """

    fresh_prefixes = ("head/", "fusion/")  # parameters that a ResNet's weights do not give
    # By the beginnings of layers' addresses: what passes these is one branch's part of the score.
    partial_layers: ClassVar[dict[str, str]] = {
        "layer4_": "high-level branch alone",
        "fusion/high": "high-level branch alone",
        "fusion/mid": "mid-level branch alone",
    }

    def setup(self):
        super().setup()
        self.fusion = Fusion(self.dtype)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalised images [B, H, W, 3] -> logits [B, num_classes], float32."""
        *_, mid, high = self.stages(images, train=train)
        fused = self.fusion(mid, high, train=train)
        return self.head(fused[:, None, None])  # the head pools; this is one pixel


@functools.partial(jax.jit, static_argnames="model")
def fusion_weights(model: ASFFResNet, variables: Any, images: jax.Array) -> jax.Array:
    """Weights of the third stage and of the fourth for each image; they sum to 1.

    Args:
        model: the network.
        variables: its variables.
        images: normalised, [B, H, W, 3].

    Returns:
        float32 [B, 2].
    """
    _, state = model.apply(variables, images, mutable=["intermediates"])
    return state["intermediates"]["fusion"]["weights"]


def register_asff(backbone: str, sizes: tuple) -> None:
    """Registers the ASFF of a ResNet of depths, features and kind of block."""
    build = functools.partial(ASFFResNet, *sizes)
    register(f"asff_{backbone}", build, family="asff_resnet", backbone=backbone)


for _name, _sizes in RESNETS.items():
    register_asff(_name, _sizes)
