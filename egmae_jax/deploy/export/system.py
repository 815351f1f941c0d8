"""The exported classifier: a function from resized and cropped pixels to class probabilities.

`System.probabilities` is a JAX function for any platform. `System.reference` computes its expected
result with the functions of the run's evaluation.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egmae_jax.augmentations import tta
from egmae_jax.core import platform
from egmae_jax.data import samples
from egmae_jax.data.images import Color, Resize
from egmae_jax.data.samples import BY_TYPE, IntensityRange
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.method import augment
from egmae_jax.method.entropy import LUMA
from egmae_jax.method.fusion import Fusion
from egmae_jax.models.model import Model
from egmae_jax.run.branches import Branch
from egmae_jax.run.images import tta_view_settings
from egmae_jax.run.saved_run import SavedRun
from egmae_jax.training import finetune

PyTree = Any


def to_grey(pixels: jax.Array) -> jax.Array:
    """Converts RGB values float32 [..., 3] of 0 to 255 to Pillow's grey values [..., 1]."""
    # All sums of the products are exact in float32.
    luma = (pixels * jnp.array(LUMA, jnp.float32)).sum(axis=-1, keepdims=True)
    return jnp.floor(luma / 65536 + 0.5)


class View(NamedTuple):
    """How an image is resized, cropped and converted to the input of the networks."""

    size: int  # side of the square input in pixels
    resize: Resize
    color: Color
    resized: int  # side in pixels (of 'shorter_side': the shorter one) before the centre crop
    intensity: IntensityRange = BY_TYPE  # black and white of files with more than 8 bits per value

    def describe(self) -> str:
        """Describes how to prepare an image, for the model card: 'turned upright (EXIF), ...'."""
        grey = "converted to greyscale (Pillow's 'L'), " if self.color == "grey" else ""
        side = f"{self.resized} pixels"
        resizing = {
            "shorter_side": f"resized so that the shorter side has {side}",
            "squash": f"resized to a square of {side} per side",
            "pad": f"resized and padded with black, centred, to a square of {side} per side",
        }[self.resize]
        if self.resize == "shorter_side" or self.resized != self.size:
            resizing += f", cropped to the central {self.size} by {self.size} pixels"
        scaling = {
            "type": ". Of values of more than 8 bits the high byte is used",
            "declared": ". Values of more than 8 bits are first scaled from the range that the "
            "file declares; if it declares none, their high byte is used",
            "dataset": ". Values of more than 8 bits are first scaled from the range of the data "
            f"set ({samples.listed(self.intensity)})",
        }[self.intensity.rule]
        steps = f"turned upright (EXIF), {grey}{resizing}, and converted to RGB"
        return f"{steps}; resize with Pillow's BILINEAR{scaling}"


class Network(NamedTuple):
    """The network of a branch, which computes in float32 regardless of the run's dtype."""

    branch: Branch
    model: Model
    variables: PyTree


class System(NamedTuple):
    """One exported classifier: a branch, or the ensemble of all branches of a round."""

    name: str  # name of the branch, or 'ensemble'
    networks: tuple[Network, ...]  # one for a branch
    fusion: Fusion | None  # fusion of the networks' probabilities; None for a branch
    scaling: Scaling  # calibration of the probabilities
    classes: tuple[str, ...]
    view: View
    size: int  # side in pixels of what the networks take, that of the view or less
    tta: tuple[str, ...] = ()  # evaluation.tta of the run

    def probabilities(self, images: jax.Array) -> dict[str, jax.Array]:
        """Computes class probabilities from images that are prepared as `view` describes.

        Args:
            images: uint8 [B, S, S, 3]; converted to greyscale if the run's images were.

        Returns:
            'probabilities', with which the run was tested, and 'calibrated', the same after
            calibration on validation images; each float32 [B, C].
        """
        pixels = images.astype(jnp.float32)
        if self.view.color == "grey":
            pixels = to_grey(pixels)
        views = functools.partial(tta.views, kinds=self.tta, size=self.size) if self.tta else None
        branches = [
            finetune.class_probabilities(variables, pixels, model=model, views=views)
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
        """Returns the expected result of `probabilities`.

        Args:
            by_branch: probabilities [B, C] of each branch.
        """
        branches = [by_branch[network.branch.name] for network in self.networks]
        fused = branches[0] if self.fusion is None else self.fusion.apply(branches)
        return {"probabilities": fused, "calibrated": self.scaling.apply(fused)}


def make_systems(run: SavedRun, branch: str | None, round_index: int) -> list[System]:
    """Returns the classifiers of a round to export.

    Args:
        run: run that has been evaluated.
        branch: name of a branch; None returns all branches and, if there are several, their
            ensemble as the last.
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
    side = tta_view_settings(run.config)["image_size"]
    view = View(side, data.resize, data.color, resized, run.intensity)
    common = (classes, view, data.image_size, tuple(run.config.evaluation.tta))
    result = [System(n.branch.name, (n,), None, scalings[n.branch.name], *common) for n in networks]
    if len(networks) > 1:
        scaling = scalings["ensemble"]
        result.append(System("ensemble", tuple(networks), fused, scaling, *common))
    return result


def compute_logits(network: Network, images: np.ndarray) -> np.ndarray:
    """Computes logits [B, C] of uint8 images [B, S, S, 3 or 1], in full float32 precision."""

    @platform.jit
    def program(variables, images):
        return network.model.apply(variables, augment.normalize(images))

    with jax.default_matmul_precision("highest"):  # as in the exported programs
        return np.asarray(program(network.variables, images))
