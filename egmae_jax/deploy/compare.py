"""Compares a network with the same network in PyTorch, layer by layer.

The weights of a PyTorch checkpoint run in timm's network (torchvision's for SqueezeNet) and in
ours, on the same images, which are resized and cropped as in our evaluation. The relative
difference of the outputs is reported for each layer. Needs torch, torchvision and timm:
pip install -e '.[parity]'.
"""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import PIL.Image
import rich.table

from egmae_jax import models
from egmae_jax.core import console, extras
from egmae_jax.core.errors import UserError
from egmae_jax.data import images
from egmae_jax.data.datasets.folders import find_given
from egmae_jax.data.pipeline import pad_batch
from egmae_jax.deploy.checkpoint import read_checkpoint
from egmae_jax.deploy.layer_outputs import (
    Program,
    make_jax_program,
    make_torch_program,
)
from egmae_jax.method import augment
from egmae_jax.models import timm as interop
from egmae_jax.models import timm_names

PyTree = Any
_BATCH_SIZE = 8
_MAX_LISTED = 10  # files printed per list
logger = logging.getLogger(__name__)


class CompareError(UserError):
    """The input cannot be compared; the message names the problem and a correct value."""


class Comparison(NamedTuple):
    """Differences between the outputs of our network and of PyTorch's.

    Attributes:
        files: paths of the compared images.
        different_pixels: largest difference from the pixels of torchvision's Resize and CenterCrop,
            in 8-bit values, by file; only files with a difference.
        layers: relative error `|ours - theirs| / |theirs|` of each layer's output over all images
            (Euclidean norms), by its name in PyTorch, in the order of computation; the last layer
            gives the logits.
        tolerance: largest relative error at which a layer counts as equal.
        logits_max: largest absolute difference of the logits.
        disagreements: predicted classes (theirs, ours), as indices, by file; only files where they
            differ.
    """

    files: tuple[str, ...]
    different_pixels: dict[str, int]
    layers: dict[str, float]
    tolerance: float
    logits_max: float
    disagreements: dict[str, tuple[int, int]]

    @property
    def different_layers(self) -> list[str]:
        """Names of the layers whose relative error exceeds the tolerance or is NaN."""
        return [name for name, error in self.layers.items() if not error <= self.tolerance]

    @property
    def first_different_layer(self) -> str | None:
        """Name of the first of `different_layers`; None if all layers are equal."""
        return next(iter(self.different_layers), None)

    @property
    def passed(self) -> bool:
        """Whether all layers are equal within the tolerance and all predictions agree."""
        return not self.different_layers and not self.disagreements


def compare(
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    model: str = "convnext_tiny",
    image_size: int = 224,
    weights: str | os.PathLike | None = None,
    max_images: int = 64,
    tolerance: float = 1e-4,
) -> Comparison:
    """Runs a checkpoint in PyTorch, on CPU, and in JAX on the same images, both in float32.

    Args:
        checkpoint: weights of timm's or torchvision's network, see `checkpoint.read_checkpoint`.
        folder: folder of the images, which is searched recursively.
        model: one of `models.names()`, except ASFF-ResNets, which neither timm nor torchvision has.
        image_size: side of the square input images in pixels: a multiple of 32 for ConvNeXt, at
            least 32 for other models.
        weights: safetensors file in timm's names for our network; None uses the checkpoint.
        max_images: largest number of images to compare, spread evenly over the folder's files.
        tolerance: largest relative error at which a layer counts as equal.

    Raises:
        ConfigError, CompareError: there is no such model, or it does not accept the image size.
        CheckpointError, MissingWeightsError: the weights are missing or do not fit the model.
        DataError: the folder contains no images.
        MissingExtraError: torch, torchvision or timm is not installed.
    """
    _check_model(model, image_size)
    extras.require("torch", "torchvision", "timm", extra="parity")
    tensors, variables = _load(checkpoint, weights, model)
    num_classes = len(tensors[timm_names.classifier_bias(model)])
    views, different_pixels = _load_images(Path(folder), image_size, max_images)
    logger.info("Comparing %d images of %dx%d pixels", len(views), image_size, image_size)
    network = models.create(model, num_classes)
    paths = network.torch_modules
    options = network.timm_options(image_size)
    layers, our_logits, their_logits = _run(
        make_jax_program(network, variables, paths),
        make_torch_program(model, num_classes, tensors, paths, options),
        np.stack(list(views.values())),
        models.normalization(model),
    )
    return Comparison(
        files=tuple(views),
        different_pixels=different_pixels,
        layers=layers,
        tolerance=tolerance,
        logits_max=float(np.abs(our_logits - their_logits).max()),
        disagreements=_find_disagreements(list(views), their_logits, our_logits),
    )


def _check_model(model: str, image_size: int) -> None:
    """Raises CompareError if PyTorch has no such model or it does not accept the image size."""
    if not models.library(model):
        raise CompareError(
            f"Neither timm nor torchvision has {model}, so it cannot be compared with PyTorch."
        )
    multiple = models.create(model, num_classes=1).side_multiple
    if image_size < models.MIN_SIDE or image_size % multiple:
        rule = f"at least {models.MIN_SIDE}" + f" and a multiple of {multiple}" * (multiple > 1)
        raise CompareError(f"image_size is {image_size}; it must be {rule}.")


def _load(
    checkpoint: str | os.PathLike, weights: str | os.PathLike | None, model: str
) -> tuple[Mapping[str, np.ndarray], PyTree]:
    """Loads the state dict of PyTorch's network and the variables of ours."""
    library, tensors = timm_names.as_timm(read_checkpoint(Path(checkpoint)), model)
    if library:
        logger.info(
            "%s has %s names of its tensors, which are translated to timm's", checkpoint, library
        )
    variables = interop.convert(tensors, model, checkpoint)
    if weights is not None:
        variables = interop.load(weights, model, finite=False)
        theirs = len(tensors[timm_names.classifier_bias(model)])
        if (ours := len(variables["params"]["head"]["fc"]["bias"])) != theirs:
            raise CompareError(
                f"{weights} has {ours} classes, but {checkpoint} has {theirs}; both must have the "
                "same number."
            )
    return tensors, variables


def _load_images(
    folder: Path, image_size: int, max_images: int
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Loads, resizes and crops the images of a folder; warns about those that cannot be read.

    Returns:
        Images uint8 [S, S, 3] by file, and `Comparison.different_pixels`.
    """
    paths = find_given([folder])
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), max_images)).round().astype(int)
    views: dict[str, np.ndarray] = {}
    different: dict[str, int] = {}
    for path in (paths[i] for i in chosen):
        try:
            image = images.decode(path.read_bytes())
        except (images.UnreadableImageError, OSError) as error:
            logger.warning("%s is skipped: %s", path, error)
            continue
        view = images.to_array(images.evaluation_view(image, "shorter_side", image_size))
        views[str(path)] = view
        theirs = _torchvision_view(path, image_size)
        if theirs is not None and not np.array_equal(view, theirs):
            different[str(path)] = int(np.abs(view.astype(np.int16) - theirs).max())
    if not views:
        raise CompareError(f"None of the {len(chosen)} images in {folder} can be read.")
    return views, different


def _torchvision_view(path: Path, image_size: int) -> np.ndarray | None:
    """Loads an image as torchvision's ImageFolder, Resize and CenterCrop do, uint8 [S, S, 3].

    Returns None for files that Pillow cannot open, such as DICOM.
    """
    from torchvision import transforms

    try:
        with PIL.Image.open(path) as file:
            image = file.convert("RGB")
    except OSError:
        return None
    return np.asarray(transforms.CenterCrop(image_size)(transforms.Resize(image_size)(image)))


def _run(
    ours: Program, theirs: Program, pixels: np.ndarray, normalization: models.Normalization
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Runs both programs; returns the relative errors by layer and both logits [N, num_classes]."""
    # Sums of squares by layer, [2]: of the differences and of PyTorch's outputs.
    sums: dict[str, np.ndarray] = {}
    our_logits, their_logits = [], []
    for start in range(0, len(pixels), _BATCH_SIZE):
        batch = pixels[start : start + _BATCH_SIZE]
        padded = jnp.asarray(pad_batch(batch, _BATCH_SIZE))
        normalized = np.array(augment.normalize(padded, *normalization))
        our, their = (
            {name: x[: len(batch)].astype(np.float64) for name, x in program(normalized).items()}
            for program in (ours, theirs)
        )
        # Some heads keep the pixel that they have pooled to.
        their = {name: x.reshape(our[name].shape) for name, x in their.items()}
        for name, reference in their.items():
            pair = np.square(our[name] - reference).sum(), np.square(reference).sum()
            sums[name] = sums.get(name, 0.0) + np.array(pair)
        *_, last = their  # in the order of computation, whereas JAX sorts the keys of a dict
        our_logits.append(our[last])
        their_logits.append(their[last])
    errors = {}
    for name, (difference, reference) in sums.items():
        with np.errstate(divide="ignore"):
            errors[name] = float(np.sqrt(difference / reference)) if difference else 0.0
    return errors, np.concatenate(our_logits), np.concatenate(their_logits)


def _find_disagreements(
    files: Sequence[str], their_logits: np.ndarray, our_logits: np.ndarray
) -> dict[str, tuple[int, int]]:
    theirs, ours = (logits.argmax(axis=1).tolist() for logits in (their_logits, our_logits))
    rows = zip(files, theirs, ours, strict=True)
    return {file: (their, our) for file, their, our in rows if their != our}


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Converts a comparison to JSON-like values; numbers that are not finite become strings."""

    def number(x: float) -> float | str:
        return x if np.isfinite(x) else str(x)

    return comparison._asdict() | {
        "layers": {name: number(error) for name, error in comparison.layers.items()},
        "logits_max": number(comparison.logits_max),
        "first_different_layer": comparison.first_different_layer,
        "passed": comparison.passed,
    }


def show(comparison: Comparison) -> None:
    """Prints a comparison to the terminal."""
    print_line = functools.partial(console.terminal.print, soft_wrap=True)
    count = len(comparison.files)
    if comparison.different_pixels:
        print_line(
            "These images differ from the output of torchvision's Resize and CenterCrop:",
            style="yellow",
        )
        differences = comparison.different_pixels.items()
        print_line(_indent([f"{file}: by at most {x} of 255" for file, x in differences]))
    else:
        print_line("All pixels equal the output of torchvision's Resize and CenterCrop.")
    console.terminal.print(_table(comparison))
    if first := comparison.first_different_layer:
        sentence, style = f"The first layer that differs is {first}", "bold yellow"
    else:
        sentence, style = "All layers are equal", "bold green"
    print_line(f"{sentence} (tolerance {comparison.tolerance:g}).", style=style)
    print_line(f"The logits differ by at most {comparison.logits_max:.1e}.")
    if not comparison.disagreements:
        print_line(f"The predictions agree for all {count} images.", style="bold green")
        return
    agreeing = count - len(comparison.disagreements)
    print_line(
        f"The predictions agree for {agreeing} of {count} images. Predicted classes that differ:",
        style="bold yellow",
    )
    classes = comparison.disagreements.items()
    print_line(
        _indent([f"{file}: PyTorch {theirs}, JAX {ours}" for file, (theirs, ours) in classes])
    )


def _table(comparison: Comparison) -> rich.table.Table:
    table = console.table(["Layer"], ["Relative error"])
    table.add_column("")
    *_, last = comparison.layers
    for name, error in comparison.layers.items():
        table.add_row(
            f"{name} (logits)" if name == last else name,
            f"{error:.1e}",
            "differs first" if name == comparison.first_different_layer else "",
            style="yellow" if name in comparison.different_layers else "",
        )
    return table


def _indent(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return "\n".join(f"  {line}" for line in [*lines[:_MAX_LISTED], *more])
