"""Does a network compute the same here as in PyTorch?

Runs a PyTorch checkpoint in timm's network (SqueezeNet: torchvision's) and in ours on the same
pixels, which are ours, and reports how far the activations are apart layer by layer. Needs torch,
torchvision and timm: pip install -e '.[parity]'.
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
import rich.box
import rich.table

from egmae_jax import models
from egmae_jax.core import console, extras
from egmae_jax.core.errors import UserError
from egmae_jax.data import images
from egmae_jax.data.datasets.folders import find_given
from egmae_jax.deploy.checkpoint import read_checkpoint
from egmae_jax.deploy.layer_outputs import Program, layer_paths, our_program, their_program
from egmae_jax.explain.gradcam import filled
from egmae_jax.method import augment
from egmae_jax.models import timm as interop
from egmae_jax.models import timm_names

PyTree = Any
_BATCH = 8  # images that go through the networks together
_PRINTED = 10  # most files that are printed of a list
logger = logging.getLogger(__name__)


class CompareError(UserError):
    """The input cannot be compared; the message says what is wrong and what would be right."""


class Comparison(NamedTuple):
    """How far our network's outputs are from PyTorch's.

    Attributes:
        files: paths of the images that were compared.
        different_pixels: of images whose pixels differ from those by torchvision's Resize and
            CenterCrop, the largest difference in 8-bit values, by file.
        layers: relative error `|ours - theirs| / |theirs|` of every layer's output over all images
            (Euclidean norms), in the network's order and by timm's names; the last is the logits'.
        tolerance: largest relative error of a layer that counts as equal.
        logits_max: largest absolute difference of the logits.
        disagreements: classes (theirs, ours) of the images that are given different ones, by file.
    """

    files: tuple[str, ...]
    different_pixels: dict[str, int]
    layers: dict[str, float]
    tolerance: float
    logits_max: float
    disagreements: dict[str, tuple[int, int]]

    @property
    def beyond(self) -> list[str]:
        """Layers whose error exceeds the tolerance, or is NaN."""
        return [name for name, error in self.layers.items() if not error <= self.tolerance]

    @property
    def parts_at(self) -> str | None:
        """First layer whose error exceeds the tolerance; None: there is no such layer."""
        return next(iter(self.beyond), None)

    @property
    def passed(self) -> bool:
        """Whether every layer is within the tolerance and all predictions agree."""
        return not self.beyond and not self.disagreements


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
    """Runs a checkpoint in PyTorch (on its CPU) and here on the same images, both in float32.

    Args:
        checkpoint: weights of timm's or torchvision's network: see `checkpoint.read_checkpoint`.
        folder: folder of images, at any depth.
        model: one of `models.names()`, but no ASFF-ResNet, which PyTorch's libraries do not have.
        image_size: side of the evaluation view in pixels: for ConvNeXt a multiple of 32, for
            others at least 32.
        weights: safetensors file in timm's names that our network is given; None: the checkpoint.
        max_images: most images that are compared, spread evenly over the folder's files.
        tolerance: largest relative error of a layer that counts as equal.

    Raises:
        ConfigError, CompareError: there is no such model, or it does not take the image size.
        CheckpointError, MissingWeightsError: the weights are missing or do not fit the model.
        DataError: there are no images.
        MissingExtraError: torch, torchvision or timm is missing.
    """
    _require(model, image_size)
    extras.require("torch", "torchvision", "timm", extra="parity")
    tensors, variables = _load(checkpoint, weights, model)
    num_classes = len(tensors[timm_names.classifier_bias(model)])
    views, different_pixels = _load_images(Path(folder), image_size, max_images)
    logger.info("Comparing %d images of %d pixels", len(views), image_size)
    network = models.create(model, num_classes)
    paths = layer_paths(network)
    layers, our_logits, their_logits = _run(
        our_program(network, variables, paths),
        their_program(model, num_classes, tensors, paths),
        np.stack(list(views.values())),
    )
    return Comparison(
        files=tuple(views),
        different_pixels=different_pixels,
        layers=layers,
        tolerance=tolerance,
        logits_max=float(np.abs(our_logits - their_logits).max()),
        disagreements=_disagreements(list(views), their_logits, our_logits),
    )


def _require(model: str, image_size: int) -> None:
    """Raises CompareError where PyTorch has no such network, or the image size does not suit it."""
    if models.family(model) not in ("convnext", "resnet", "squeezenet"):
        raise CompareError(f"Neither timm nor torchvision has {model} to compare ours with.")
    network = models.create(model, num_classes=1)
    multiple = network.stride if network.needs_multiple else 1
    if image_size < network.min_size or image_size % multiple:
        rule = f"a multiple of {multiple}" if multiple > 1 else f"at least {network.min_size}"
        raise CompareError(f"image_size is {image_size}; it must be {rule}.")


def _load(
    checkpoint: str | os.PathLike, weights: str | os.PathLike | None, model: str
) -> tuple[Mapping[str, np.ndarray], PyTree]:
    """The tensors of PyTorch's network and the variables of ours."""
    library, tensors = timm_names.as_timm(read_checkpoint(Path(checkpoint)), model)
    if library:
        logger.info("%s has %s names of a ConvNeXt: read as timm's", checkpoint, library)
    variables = interop.convert(tensors, model, checkpoint)
    if weights is not None:
        variables = interop.load(weights, model, finite=False)
        theirs = len(tensors[timm_names.classifier_bias(model)])
        if (ours := len(variables["params"]["head"]["fc"]["bias"])) != theirs:
            raise CompareError(
                f"{weights} has {ours} classes, {checkpoint} {theirs}; they must be the same."
            )
    return tensors, variables


def _load_images(
    folder: Path, image_size: int, max_images: int
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Loads images of a folder as they are evaluated; warns of those that cannot be read.

    Returns:
        uint8 [S, S, 3] by file, and `Comparison.different_pixels`.
    """
    paths = find_given([folder])
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), max_images)).round().astype(int)
    views: dict[str, np.ndarray] = {}
    different: dict[str, int] = {}
    for path in (paths[i] for i in chosen):
        try:
            image = images.decode(path.read_bytes())
        except (images.UnreadableImageError, OSError) as error:
            logger.warning("%s is left out: %s", path, error)
            continue
        view = images.to_array(images.evaluation_view(image, "shorter_side", image_size))
        views[str(path)] = view
        theirs = _torchvision_view(path, image_size)
        if theirs is not None and not np.array_equal(view, theirs):
            different[str(path)] = int(np.abs(view.astype(np.int16) - theirs).max())
    if not views:
        raise CompareError(f"None of {len(chosen)} images in {folder} can be read.")
    return views, different


def _torchvision_view(path: Path, image_size: int) -> np.ndarray | None:
    """uint8 [S, S, 3] by ImageFolder, Resize and CenterCrop; None of a file it cannot open."""
    from torchvision import transforms

    try:
        with PIL.Image.open(path) as file:
            image = file.convert("RGB")
    except OSError:  # DICOM
        return None
    return np.asarray(transforms.CenterCrop(image_size)(transforms.Resize(image_size)(image)))


def _run(
    ours: Program, theirs: Program, pixels: np.ndarray
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Relative error of each layer over all images, and both logits [N, num_classes]."""
    sums: dict[str, np.ndarray] = {}  # sums of squares by layer: of the difference, of theirs
    our_logits, their_logits = [], []
    for start in range(0, len(pixels), _BATCH):
        batch = pixels[start : start + _BATCH]
        normalized = np.array(augment.normalize(jnp.asarray(filled(batch, _BATCH))))
        our, their = (
            {name: x[: len(batch)].astype(np.float64) for name, x in program(normalized).items()}
            for program in (ours, theirs)
        )
        for name, reference in their.items():
            pair = np.square(our[name] - reference).sum(), np.square(reference).sum()
            sums[name] = sums.get(name, 0.0) + np.array(pair)
        *_, last = their  # in the order of computation; JAX sorts what a program returns
        our_logits.append(our[last])
        their_logits.append(their[last])
    errors = {}
    for name, (difference, reference) in sums.items():
        with np.errstate(divide="ignore"):
            errors[name] = float(np.sqrt(difference / reference)) if difference else 0.0
    return errors, np.concatenate(our_logits), np.concatenate(their_logits)


def _disagreements(
    files: Sequence[str], their_logits: np.ndarray, our_logits: np.ndarray
) -> dict[str, tuple[int, int]]:
    theirs, ours = (logits.argmax(axis=1).tolist() for logits in (their_logits, our_logits))
    rows = zip(files, theirs, ours, strict=True)
    return {file: (their, our) for file, their, our in rows if their != our}


def show(comparison: Comparison) -> None:
    """Prints a comparison."""
    print_line = functools.partial(
        console.terminal.print, highlight=False, markup=False, soft_wrap=True
    )
    count = len(comparison.files)
    if comparison.different_pixels:
        print_line("Pixels that differ from torchvision's Resize and CenterCrop:", style="yellow")
        differences = comparison.different_pixels.items()
        print_line(_indented([f"{file}: by {x} of 255" for file, x in differences]))
    else:
        print_line("Pixels equal torchvision's Resize and CenterCrop.")
    console.terminal.print(_table(comparison))
    part = f"first at {comparison.parts_at}" if comparison.beyond else "nowhere"
    style = "bold yellow" if comparison.beyond else "bold green"
    print_line(f"Activations part {part} (tolerance {comparison.tolerance:g}).", style=style)
    print_line(f"Logits differ by {comparison.logits_max:.1e} at most.")
    if not comparison.disagreements:
        print_line(f"Predictions agree for all {count} images.", style="bold green")
        return
    agreeing = count - len(comparison.disagreements)
    print_line(f"Predictions agree for {agreeing} of {count} images, not for:", style="bold yellow")
    classes = comparison.disagreements.items()
    print_line(
        _indented([f"{file}: theirs {theirs}, ours {ours}" for file, (theirs, ours) in classes])
    )


def _table(comparison: Comparison) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("Layer")
    table.add_column("Relative error", justify="right")
    table.add_column("")
    *_, last = comparison.layers
    for name, error in comparison.layers.items():
        table.add_row(
            f"{name} (logits)" if name == last else name,
            f"{error:.1e}",
            "parts here" if name == comparison.parts_at else "",
            style="yellow" if name in comparison.beyond else "",
        )
    return table


def _indented(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _PRINTED} more"] if len(lines) > _PRINTED else []
    return "\n".join(f"  {line}" for line in [*lines[:_PRINTED], *more])
