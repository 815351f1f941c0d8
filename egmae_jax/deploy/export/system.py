"""A classifier as it is exported: from the pixels of the evaluation view to probabilities.

`System.probabilities` is one function of JAX that any platform can run; `System.reference` is what
it should return, computed as the run was evaluated.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from egmae_jax.core import platform
from egmae_jax.data import samples
from egmae_jax.data.images import Color, Resize
from egmae_jax.data.samples import BY_TYPE, IntensityRange
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.method import augment
from egmae_jax.method.fusion import Fusion
from egmae_jax.run.branches import Branch
from egmae_jax.run.saved_run import SavedRun

PyTree = Any
# Pillow's grey value is floor((w . rgb) / 65536 + 1/2), which float32 computes exactly.
LUMA = (19595, 38470, 7471)


def to_grey(pixels: jax.Array) -> jax.Array:
    """Pillow's grey values [..., 1] of RGB values [..., 3], float32 of 0 to 255."""
    luma = (pixels * jnp.array(LUMA, jnp.float32)).sum(axis=-1, keepdims=True)
    return jnp.floor(luma / 65536 + 0.5)


class View(NamedTuple):
    """How an image becomes the pixels that a network sees."""

    size: int  # pixels, of a square
    resize: Resize
    color: Color
    resized: int  # pixels of the shorter side, or of the square, before its centre is cropped
    intensity: IntensityRange = BY_TYPE  # of files with more than 8 bits a value

    def in_words(self) -> str:
        """How an image is prepared before the program sees it."""
        grey = "made grey (Pillow's 'L'), " if self.color == "grey" else ""
        side = f"{self.resized} pixels"
        middle = f"the middle {self.size} by {self.size} cut out"
        how = {
            "shorter_side": f"the shorter side resized to {side}",
            "squash": f"both sides resized to {side}",
            "pad": f"padded with black to a square in the middle of which it is, of {side} a side",
        }[self.resize]
        if self.resize == "shorter_side" or self.resized != self.size:
            how += f", {middle}"
        wide = {
            "type": "",
            "declared": "; values of more than 8 bits first scaled from the range that their file "
            "declares",
            "dataset": "; values of more than 8 bits first scaled from the range of the data set "
            f"({samples.listed(self.intensity)})",
        }[self.intensity.rule]
        steps = f"turned upright (EXIF), {grey}{how}; resized by Pillow's BILINEAR"
        return f"{steps}; given as RGB{wide}"


class Network(NamedTuple):
    """A branch's network, which computes in float32, whatever the run did."""

    branch: Branch
    model: nn.Module
    variables: PyTree


class System(NamedTuple):
    """One exported classifier: a branch, or all branches of a round, fused."""

    name: str  # name of the branch, or 'ensemble'
    networks: tuple[Network, ...]
    fusion: Fusion | None  # None for a branch
    scaling: Scaling  # calibrates the probabilities
    classes: tuple[str, ...]
    view: View

    def probabilities(self, images: jax.Array) -> dict[str, jax.Array]:
        """Computes probabilities, float32 [B, C] each, from uint8 [B, S, S, 3] of the view.

        'probabilities' are those that the run was tested with, 'calibrated' the same made as sure
        as validation images support. Images are made grey where the run made its images grey.
        """
        pixels = images.astype(jnp.float32)
        if self.view.color == "grey":
            pixels = to_grey(pixels)
        normalized = augment.normalize(pixels)
        branches = [
            jax.nn.softmax(cast(jax.Array, model.apply(variables, normalized)))
            for _, model, variables in self.networks
        ]
        fused = branches[0] if self.fusion is None else self.fusion.apply(branches)
        temperature, least = self.scaling
        logits = jnp.log(jnp.maximum(fused, calibration.TINY))
        share = 1 - len(self.classes) * least
        return {
            "probabilities": fused,
            "calibrated": least + share * jax.nn.softmax(logits / temperature),
        }

    def reference(self, by_branch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `probabilities` should return, from the branches' probabilities [B, C]."""
        branches = [by_branch[network.branch.name] for network in self.networks]
        fused = branches[0] if self.fusion is None else self.fusion.apply(branches)
        return {"probabilities": fused, "calibrated": self.scaling.apply(fused)}


def systems(run: SavedRun, branch: str | None, round_index: int) -> list[System]:
    """The classifiers of one branch, or of all branches of a round and their ensemble.

    Args:
        run: run that has been evaluated.
        branch: name of a branch; None: all branches.
        round_index: round of the run.

    Raises:
        RunError, DamagedFileError, CheckpointError: see `SavedRun`.
    """
    run.require_round(round_index)
    fused, scalings = run.ensemble(round_index)
    chosen = run.branches if branch is None else (run.branch(branch),)
    networks = []
    for each in chosen:
        model, variables, _ = run.classifier(each, round_index)
        networks.append(Network(each, model.clone(dtype=jnp.float32), jax.device_get(variables)))
    data, classes = run.config.data, run.classes()
    resized = run.config.evaluation.resize
    view = View(data.image_size, data.resize, data.color, resized, run.intensity)
    result = [
        System(n.branch.name, (n,), None, scalings[n.branch.name], classes, view) for n in networks
    ]
    if len(networks) > 1:
        scaling = scalings["ensemble"]
        result.append(System("ensemble", tuple(networks), fused, scaling, classes, view))
    return result


def branch_logits(network: Network, images: np.ndarray) -> np.ndarray:
    """Logits [B, C] of uint8 images [B, S, S, 3 or 1], by our own programs in full float32."""

    @platform.jit
    def program(variables, images):
        return network.model.apply(variables, augment.normalize(images))

    with jax.default_matmul_precision("highest"):  # which the exported programs have everywhere
        return np.asarray(program(network.variables, images))
