"""Conversion of tensors between PyTorch's and Flax's axis orders."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """A pair of inverse conversions of a tensor between PyTorch's and Flax's axis orders."""

    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


VECTOR = Layout(lambda x: x, lambda x: x)
DENSE = Layout(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW, HWIO
# A 1x1 convolution in timm that is a linear layer here: [out, in, 1, 1] <-> [in, out].
DENSE_AS_CONV = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
