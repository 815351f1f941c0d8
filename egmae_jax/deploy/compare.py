"""Does a network compute the same here as in PyTorch?

Runs a PyTorch checkpoint in timm's network (SqueezeNet: torchvision's) and in ours on the same
images. Prints how far the activations are apart layer by layer, the first layer where they part,
the difference of the logits and which predictions agree. With --weights ours has other weights,
such as a run's export. Needs torch, torchvision and timm: pip install -e '.[parity]'.

Both networks are given our pixels; how torchvision's differ is reported beside.
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import PIL.Image
import rich.box
import rich.console
import rich.table
from scipy.special import softmax

from egmae_jax import models
from egmae_jax.core import extras
from egmae_jax.core.errors import MissingExtraError, UserError, shorten_list
from egmae_jax.core.files import write_json
from egmae_jax.data import formats, images
from egmae_jax.data.datasets.folders import find_images
from egmae_jax.deploy.checkpoint import read_checkpoint
from egmae_jax.deploy.layer_outputs import Program, layer_paths, our_program, their_program
from egmae_jax.explain.gradcam import filled
from egmae_jax.method import augment
from egmae_jax.models import timm as interop
from egmae_jax.models import timm_names

PyTree = Any
_SHOWN = 10  # files that are printed
logger = logging.getLogger(__name__)


class CompareError(UserError):
    """The input cannot be used; the message says what is wrong and what would be right."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Result of `compare`; 'theirs' is PyTorch, 'ours' this library.

    Attributes:
        checkpoint: file that both networks have their weights from.
        weights: file that ours has its weights from; None: the checkpoint.
        model: name of the architecture.
        num_classes: number of classes.
        image_size: side of the images, pixels.
        tolerance: largest relative error of a layer that counts as equal.
        files: images that were compared, relative to their folder.
        unreadable: images that were left out, each with the reason.
        preprocessing: our pixels against torchvision's Resize and CenterCrop in 8-bit values:
            'images' that torchvision can open, 'mean' and 'max' of the absolute difference, and
            the files that are 'different'.
        layers: relative error `|ours - theirs| / |theirs|` of every layer's output over all images
            (Euclidean norms), in the network's order and by timm's names; the last is the logits'.
        logits_mean: mean absolute difference of the logits.
        logits_max: largest absolute difference of the logits.
        probabilities_max: largest absolute difference of the probabilities.
        agreeing: number of images that are given the same class.
        disagreements: the others: 'file', the classes 'theirs' and 'ours', and how far the logit
            of each leads the next, 'their_margin' and 'our_margin'.
    """

    checkpoint: str
    weights: str | None
    model: str
    num_classes: int
    image_size: int
    tolerance: float
    files: tuple[str, ...]
    unreadable: tuple[str, ...]
    preprocessing: dict[str, Any]
    layers: dict[str, float]
    logits_mean: float
    logits_max: float
    probabilities_max: float
    agreeing: int
    disagreements: list[dict[str, Any]]

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
    batch: int = 8,
    tolerance: float = 1e-4,
) -> Comparison:
    """Runs a checkpoint in PyTorch (on its CPU) and here on the same images, both in float32.

    Args:
        checkpoint: weights of timm's or torchvision's network: see `checkpoint.read_checkpoint`.
        folder: folder of images, at any depth.
        model: one of `models.names()`, but no ASFF-ResNet, which PyTorch's libraries do not have.
        image_size: side of the evaluation view in pixels: for ConvNeXt a multiple of 32, for
            others at least 32.
        weights: safetensors file in timm's names that ours is given; None: the checkpoint.
        max_images: of more images this many are taken, spread evenly over the sorted files.
        batch: images that go through the networks together.
        tolerance: largest relative error of a layer that counts as equal.

    Raises:
        CompareError: there are no images, or an option is out of range.
        NoWeightsError: the checkpoint holds no weights that can be read.
        MissingExtraError: torch, torchvision or timm is missing.
        interop.CheckpointError: the weights do not fit the model; names every tensor that differs.
        MissingWeightsError: there are no `weights`.
        ConfigError: there is no such model.
    """
    _require(model, image_size, batch, max_images)
    extras.require("torch", "torchvision", "timm", extra="parity")
    tensors, variables = _load(checkpoint, weights, model)
    num_classes = len(tensors[timm_names.classifier_bias(model)])
    views, unreadable, preprocessing = load_images(Path(folder), image_size, max_images)
    logger.info("Comparing %d images of %d pixels", len(views), image_size)
    network = models.create(model, num_classes)
    paths = layer_paths(network)
    layers, our_logits, their_logits = _run(
        our_program(network, variables, paths),
        their_program(model, num_classes, tensors, paths),
        np.stack(list(views.values())),
        min(batch, len(views)),
    )
    difference = np.abs(our_logits - their_logits)
    probabilities = np.abs(softmax(our_logits, axis=1) - softmax(their_logits, axis=1))
    disagreements = _disagreements(list(views), our_logits, their_logits)
    return Comparison(
        checkpoint=str(checkpoint),
        weights=None if weights is None else str(weights),
        model=model,
        num_classes=num_classes,
        image_size=image_size,
        tolerance=tolerance,
        files=tuple(views),
        unreadable=tuple(unreadable),
        preprocessing=preprocessing,
        layers=layers,
        logits_mean=float(difference.mean()),
        logits_max=float(difference.max()),
        probabilities_max=float(probabilities.max()),
        agreeing=len(views) - len(disagreements),
        disagreements=disagreements,
    )


def _require(model: str, image_size: int, batch: int, max_images: int) -> None:
    if models.family(model) not in ("convnext", "resnet", "squeezenet"):
        raise CompareError(f"Neither timm nor torchvision has {model} to compare ours with.")
    network = models.create(model, num_classes=1)
    multiple = network.stride if network.needs_multiple else 1
    if image_size < network.min_size or image_size % multiple:
        rule = f"a multiple of {multiple}" if multiple > 1 else f"at least {network.min_size}"
        raise CompareError(f"image_size is {image_size}; it must be {rule}.")
    if min(batch, max_images) < 1:
        raise CompareError(f"batch is {batch} and max_images {max_images}; both must be positive.")


def _load(
    checkpoint: str | os.PathLike, weights: str | os.PathLike | None, model: str
) -> tuple[Mapping[str, np.ndarray], PyTree]:
    """The tensors of PyTorch's network and the variables of ours."""
    library, tensors = timm_names.as_timm(read_checkpoint(Path(checkpoint)), model)
    if library:
        logger.info("%s has %s names of a ConvNeXt: read as timm's", checkpoint, library)
    variables = _convert(tensors, model, checkpoint)
    if weights is not None:
        variables = interop.load(weights, model, finite=False)
        theirs = len(tensors[timm_names.classifier_bias(model)])
        if (ours := len(variables["params"]["head"]["fc"]["bias"])) != theirs:
            raise CompareError(
                f"{weights} has {ours} classes, {checkpoint} {theirs}; they must be the same."
            )
    return tensors, variables


def _convert(tensors: Mapping[str, np.ndarray], model: str, source: str | os.PathLike) -> PyTree:
    """Our variables; where they do not fit, the error names the model that they do fit."""
    try:
        return interop.convert(tensors, model, source)
    except interop.CheckpointError as error:
        for name in models.names():
            if name != model and interop.fits(tensors, name):
                raise interop.CheckpointError(f"{error}\nTry --model={name}.") from None
        raise


def load_images(
    folder: Path, image_size: int, max_images: int
) -> tuple[dict[str, np.ndarray], list[str], dict[str, Any]]:
    """Loads images of a folder as they are evaluated.

    Returns:
        uint8 [H, W, 3] by file; the unreadable files; the difference from torchvision's pixels, as
        `Comparison.preprocessing`.
    """
    if not folder.is_dir():
        raise CompareError(f"There is no folder {folder}; a folder of images is expected.")
    paths = sorted(find_images(folder))
    if not paths:
        raise CompareError(f"{folder} holds no images ({formats.KNOWN}).")
    chosen = np.linspace(0, len(paths) - 1, min(len(paths), max_images)).round().astype(int)

    views: dict[str, np.ndarray] = {}
    differences: dict[str, np.ndarray] = {}
    unreadable = []
    for path in (paths[i] for i in chosen):
        file = path.relative_to(folder).as_posix()
        try:
            image = images.decode(path.read_bytes())
        except (images.UnreadableImageError, MissingExtraError, OSError) as error:
            unreadable.append(f"{file} ({error})")
            continue
        views[file] = images.to_array(images.evaluation_view(image, "shorter_side", image_size))
        theirs = _torchvision_view(path, image_size)
        if theirs is not None:
            differences[file] = np.abs(views[file].astype(np.int16) - theirs)
    if not views:
        raise CompareError(
            f"None of {len(chosen)} images in {folder} can be read: {shorten_list(unreadable)}."
        )
    preprocessing = {
        "images": len(differences),
        "mean": float(np.mean([x.mean() for x in differences.values()])) if differences else 0.0,
        "max": max((int(x.max()) for x in differences.values()), default=0),
        "different": [file for file, x in differences.items() if x.any()],
    }
    return views, unreadable, preprocessing


def _torchvision_view(path: Path, image_size: int) -> np.ndarray | None:
    """uint8 [H, W, 3] by ImageFolder, Resize and CenterCrop; None of a file it cannot open."""
    from torchvision import transforms

    try:
        with PIL.Image.open(path) as file:
            image = file.convert("RGB")
    except OSError:  # DICOM
        return None
    return np.asarray(transforms.CenterCrop(image_size)(transforms.Resize(image_size)(image)))


def _run(
    ours: Program, theirs: Program, pixels: np.ndarray, batch: int
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Relative error of each layer over all images, and both logits [N, num_classes]."""
    squares: dict[str, np.ndarray] = {}  # sums of squares: of the difference, of theirs
    logits = []
    for start in range(0, len(pixels), batch):
        count = min(batch, len(pixels) - start)
        images = jnp.asarray(filled(pixels[start : start + batch], batch))
        normalized = np.array(augment.normalize(images))
        our, their = (
            {name: x[:count].astype(np.float64) for name, x in program(normalized).items()}
            for program in (ours, theirs)
        )
        for name, reference in their.items():
            pair = np.square(our[name] - reference).sum(), np.square(reference).sum()
            squares[name] = squares.get(name, 0.0) + np.array(pair)
        *_, last = their  # as they were computed; JAX sorts what a program returns
        logits.append((our[last], their[last]))
    errors = {}
    for name, (difference, reference) in squares.items():
        with np.errstate(divide="ignore"):
            errors[name] = float(np.sqrt(difference / reference)) if difference else 0.0
    our_logits, their_logits = (np.concatenate(x) for x in zip(*logits, strict=True))
    return errors, our_logits, their_logits


def _disagreements(
    files: Sequence[str], our_logits: np.ndarray, their_logits: np.ndarray
) -> list[dict[str, Any]]:
    ours, theirs = our_logits.argmax(axis=1), their_logits.argmax(axis=1)
    our_margins, their_margins = (
        np.subtract(*np.sort(x, axis=1)[:, :-3:-1].T) for x in (our_logits, their_logits)
    )
    return [
        {
            "file": files[i],
            "theirs": int(theirs[i]),
            "ours": int(ours[i]),
            "their_margin": float(their_margins[i]),
            "our_margin": float(our_margins[i]),
        }
        for i in np.flatnonzero(ours != theirs).tolist()
    ]


def show(comparison: Comparison) -> None:
    """Prints a comparison, at most 80 columns wide but for the names of files."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    say = functools.partial(terminal.print, markup=False, soft_wrap=True)
    count, size, pixels = len(comparison.files), comparison.image_size, comparison.preprocessing
    say(f"\n{comparison.model}, {comparison.num_classes} classes, {count} images of {size} pixels")
    say(f"theirs: {comparison.checkpoint} in PyTorch")
    say(f"ours:   {comparison.weights or 'the same weights'} in JAX\n")
    if comparison.unreadable:
        say(f"{len(comparison.unreadable)} unreadable images left out:", style="bold yellow")
        say(_listed(comparison.unreadable))
    torchvision = f"torchvision's Resize({size}), CenterCrop({size})"
    if pixels["different"]:
        say(
            f"{len(pixels['different'])} of {pixels['images']} images differ from {torchvision}:\n"
            f"by {pixels['mean']:.2g} on average over all images, {pixels['max']} at most (of 255)",
            style="bold yellow",
        )
        say(_listed(pixels["different"]))
    else:
        say(f"Pixels equal {torchvision} in {pixels['images']} of {count} images.")
    terminal.print(_table(comparison))
    verdict, style = "part nowhere", "bold green"
    if comparison.parts_at is not None:
        verdict, style = f"part first at {comparison.parts_at}", "bold yellow"
    say(f"Activations {verdict} (tolerance {comparison.tolerance:g}).", style=style)
    say(
        f"Logits differ by {comparison.logits_mean:.1e} on average and "
        f"{comparison.logits_max:.1e} at most, probabilities\n"
        f"by {comparison.probabilities_max:.1e} at most."
    )
    if not comparison.disagreements:
        say(f"Predictions agree for all {count} images.", style="bold green")
        return
    agreeing = comparison.agreeing
    say(f"Predictions agree for {agreeing} of {count} images, not for:", style="bold yellow")
    lines = [
        f"{x['file']}: theirs {x['theirs']} (margin {x['their_margin']:.2g}), "
        f"ours {x['ours']} (margin {x['our_margin']:.2g})"
        for x in comparison.disagreements
    ]
    say(_listed(lines))


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


def _listed(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:_SHOWN], *more])


def save(comparison: Comparison, path: Path) -> None:
    """Writes the comparison as JSON, with NaN and Infinity as strings."""
    properties = {"passed": comparison.passed, "parts_at": comparison.parts_at}
    content = json.dumps(properties | dataclasses.asdict(comparison))
    write_json(path, json.loads(content, parse_constant=str))
