"""A classifier as it leaves: from the pixels of the evaluation view to calibrated probabilities.

`System.probabilities` is one function of JAX that any platform can run; `reference` computes the
same as the run was evaluated.
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
# Pillow's grey value is floor((w . rgb) / 65536 + 1/2), which float32 computes without an error.
LUMA = (19595, 38470, 7471)


class View(NamedTuple):
    """How an image becomes the pixels that a network sees."""

    size: int  # pixels, of a square
    resize: Resize
    color: Color
    resized: int  # pixels of the shorter side, or of the square, before its centre is cropped
    intensity: IntensityRange = BY_TYPE  # of files with more than 8 bits a value

    def in_words(self) -> str:
        """What is done to an image before the program sees it."""
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
    """A branch's network; computes in float32, whatever the run did."""

    branch: Branch
    model: nn.Module
    variables: PyTree


class System(NamedTuple):
    """What is exported as one: a branch, or all branches of a round, fused."""

    name: str  # of the branch, or 'ensemble'
    networks: tuple[Network, ...]
    fusion: Fusion | None  # None for a branch
    scaling: Scaling  # that calibrates its probabilities
    classes: tuple[str, ...]
    view: View

    def probabilities(self, images: jax.Array) -> dict[str, jax.Array]:
        """uint8 [B, S, S, 3] of the evaluation view -> probabilities, float32 [B, C] each.

        'probabilities' are those that the run was tested by, 'calibrated' the same made as sure as
        validation images support. Where the run made grey of its images, so does this.
        """
        pixels = images.astype(jnp.float32)
        if self.view.color == "grey":
            luma = (pixels * jnp.array(LUMA, jnp.float32)).sum(axis=-1, keepdims=True)
            pixels = jnp.floor(luma / 65536 + 0.5)
        normalized = augment.normalize(pixels)
        found = [
            jax.nn.softmax(cast(jax.Array, model.apply(variables, normalized)))
            for _, model, variables in self.networks
        ]
        fused = found[0] if self.fusion is None else self.fusion.apply(found)
        temperature, least = self.scaling
        logits = jnp.log(jnp.maximum(fused, calibration.TINY))
        share = 1 - len(self.classes) * least
        return {
            "probabilities": fused,
            "calibrated": least + share * jax.nn.softmax(logits / temperature),
        }

    def reference(self, of_branches: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `probabilities` should be, from those of the branches, [B, C] each."""
        found = [of_branches[network.branch.name] for network in self.networks]
        fused = found[0] if self.fusion is None else self.fusion.apply(found)
        return {
            "probabilities": fused,
            "calibrated": self.scaling.apply(fused),
        }


def systems(run: SavedRun, branch: str | None, round_index: int) -> list[System]:
    """One branch, or all of a round and their ensemble.

    Args:
        run: that has been evaluated.
        branch: its name; None for all.
        round_index: of the run.

    Raises:
        RunError, DamagedFileError, CheckpointError: see `SavedRun`.
    """
    run.require_round(round_index)
    fused, scalings, _ = run.ensemble(round_index)
    chosen = run.branches if branch is None else (run.branch(branch),)
    networks = []
    for each in chosen:
        model, variables, _ = run.classifier(each, round_index)
        networks.append(Network(each, model.clone(dtype=jnp.float32), jax.device_get(variables)))
    data, classes = run.config.data, run.classes()
    resized = run.config.evaluation.resize
    view = View(data.image_size, data.resize, data.color, resized, run.intensity)
    found = [
        System(n.branch.name, (n,), None, scalings[n.branch.name], classes, view) for n in networks
    ]
    if len(networks) > 1:
        whole = System("ensemble", tuple(networks), fused, scalings["ensemble"], classes, view)
        found.append(whole)
    return found


def branch_logits(network: Network, images: np.ndarray) -> np.ndarray:
    """Of uint8 images [B, S, S, 3 or 1], by our own programs in full float32; [B, C]."""

    @platform.jit
    def program(variables, images):
        return network.model.apply(variables, augment.normalize(images))

    with jax.default_matmul_precision("highest"):  # which the exported programs have everywhere
        return np.asarray(program(network.variables, images))
