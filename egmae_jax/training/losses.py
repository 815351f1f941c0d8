"""Losses of fine-tuning: the paper's cross-entropy, and forms of it for unequal classes.

With class weights, every loss is a weighted mean: the sum of the images' weighted losses over the
sum of the weights of their classes, as in `torch.nn.CrossEntropyLoss(weight=...)` for class
indices. An image with two classes (mixup) has the mean of their weights, by their shares.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core import platform

NAMES = ("cross_entropy", "focal", "logit_adjusted")


@struct.dataclass
class ClassBalance:
    """Weights and sizes of the classes for a loss; `ALIKE` treats all classes alike.

    Attributes:
        weights: weight of each class, float32 [num_classes]; None: all have the weight 1.
        shares: share of each class among the training images, float32 [num_classes]; None unless
            the loss is 'logit_adjusted'.
    """

    weights: jax.Array | np.ndarray | None = None
    shares: jax.Array | np.ndarray | None = None


ALIKE = ClassBalance()


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Returns scikit-learn's balanced class weights, N / (num_classes * counts), float64 [C].

    Args:
        counts: number of training images of each class, int [C], all positive.
    """
    return counts.sum() / (len(counts) * counts)


def classification_loss(
    logits: jax.Array,
    targets: jax.Array,
    settings: ConfigDict | FrozenConfigDict,
    balance: ClassBalance = ALIKE,
) -> jax.Array:
    """Computes the loss of a batch that `settings` describe, float32 [].

    Args:
        logits: float32 [B, num_classes].
        targets: one-hot labels, or shares of several classes, float32 [B, num_classes]; not yet
            smoothed.
        settings: config section `finetune`: `loss`, `label_smoothing`, and `focal_gamma` or
            `logit_adjustment_tau`.
        balance: weights and shares of the classes.
    """
    smooth = optax.smooth_labels(targets, settings.label_smoothing)
    if settings.loss == "logit_adjusted":
        assert balance.shares is not None
        logits = adjust_logits(logits, balance.shares, tau=settings.logit_adjustment_tau)
    if settings.loss == "focal":
        smooth *= focal_factors(logits, gamma=settings.focal_gamma)
    if balance.weights is None:
        return platform.join(optax.softmax_cross_entropy(logits, smooth)).mean()
    losses = optax.softmax_cross_entropy(logits, smooth * balance.weights)
    return losses.sum() / loss_weight(targets, balance)


def loss_weight(targets: jax.Array, balance: ClassBalance = ALIKE) -> jax.Array | int:
    """Returns what `classification_loss` divides the sum of the images' losses by.

    Args:
        targets: one-hot labels, or shares of several classes, float32 [B, num_classes].
        balance: weights of the classes.
    """
    return len(targets) if balance.weights is None else (targets * balance.weights).sum()


def focal_factors(logits: jax.Array, *, gamma: float) -> jax.Array:
    """Returns the factors (1 - p)^gamma of the focal loss (Lin et al. 2017), float32 [B, C].

    They weight the cross-entropy of each class, which makes it torchvision's `sigmoid_focal_loss`
    if there are two classes, and Kornia's `focal_loss` for more.

    Args:
        logits: float32 [B, num_classes].
        gamma: exponent; 0 gives the cross-entropy.
    """
    missing = 1 - jax.nn.softmax(logits)
    # With gamma below 1, the power has an infinite derivative at 0.
    return jnp.maximum(missing, jnp.finfo(missing.dtype).eps) ** gamma


def adjust_logits(logits: jax.Array, shares: jax.Array | np.ndarray, *, tau: float) -> jax.Array:
    """Adds tau * log(share of the class) to logits (Menon et al. 2021, equation 10).

    A network that is trained on adjusted logits and predicts without the adjustment minimises the
    balanced error.

    Args:
        logits: float32 [B, num_classes].
        shares: share of each class among the training images, float32 [num_classes].
        tau: strength of the adjustment; 1 is consistent for the balanced error.
    """
    return logits + tau * jnp.log(shares)
