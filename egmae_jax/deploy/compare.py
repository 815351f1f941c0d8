"""The same here as in PyTorch?

Runs a PyTorch checkpoint in timm's network (SqueezeNet: torchvision's) and in ours on the same
images. Prints how far the
activations are apart layer by layer, the first layer where they part, the difference of the logits
and which predictions agree. With --weights ours has other weights, such as a run's export. Needs
torch, torchvision and timm: pip install -e '.[parity]'.

Both networks are given our pixels; how torchvision's differ is only told.
"""

import argparse
import dataclasses
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import rich.box
import rich.console
import rich.table
from scipy.special import softmax

from egmae_jax import models
from egmae_jax.core import extras, platform
from egmae_jax.core.errors import MissingExtraError, UserError
from egmae_jax.core.files import write_json
from egmae_jax.data import images
from egmae_jax.data.datasets.folders import find_images
from egmae_jax.method import augment
from egmae_jax.models import timm as interop
from egmae_jax.models.convnext import ConvNeXt
from egmae_jax.models.resnet import ResNet
from egmae_jax.models.weights import read

PyTree = Any
Tensors = Mapping[str, np.ndarray]
Program = Callable[[np.ndarray], dict[str, np.ndarray]]  # images -> output of each layer
logger = logging.getLogger(__name__)

_NESTS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")
_PREFIXES = re.compile(r"^((module|_orig_mod|model)\.)+")  # DataParallel, torch.compile, Lightning
_WAY_OUT = "Where you trust it: torch.save(model.state_dict(), FILE)."
_SHOWN = 10  # files that are printed
_LONGEST = 16  # times the shorter side; of longer images torchvision would make huge ones


class CompareError(UserError):
    """The input cannot be used; the message says what is wrong and what would be right."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Our evaluation view against torchvision's Resize and CenterCrop, in 8-bit values.

    Attributes:
        images: how many were compared; not those that torchvision cannot open (DICOM), nor strips.
        mean: absolute difference.
        max: the largest one.
        different: files with any difference.
    """

    images: int
    mean: float
    max: int
    different: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """An image whose predicted classes differ; margins are the first class's logit lead."""

    file: str
    theirs: int
    ours: int
    their_margin: float
    our_margin: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `compare` found. 'Theirs' is PyTorch, 'ours' this library.

    Attributes:
        checkpoint: the file both have their weights from.
        weights: where ours has its weights from instead, None if from the checkpoint.
        model: name of the architecture.
        num_classes: of the classifier.
        image_size: side of the images, pixels.
        tolerance: of the relative error of a layer.
        files: images compared, relative to their folder.
        unreadable: images left out, each with the reason.
        preprocessing: our pixels against torchvision's.
        layers: relative error `|ours - theirs| / |theirs|` of every layer's output over all images
            (Euclidean norms), in the network's order and by timm's names; the last is the logits'.
        logits_mean: mean absolute difference of the logits.
        logits_max: the largest one.
        probabilities_max: largest absolute difference of the probabilities.
        agreeing: how many images are given the same class.
        disagreements: the others.
    """

    checkpoint: str
    weights: str | None
    model: str
    num_classes: int
    image_size: int
    tolerance: float
    files: tuple[str, ...]
    unreadable: tuple[str, ...]
    preprocessing: Preprocessing
    layers: dict[str, float]
    logits_mean: float
    logits_max: float
    probabilities_max: float
    agreeing: int
    disagreements: tuple[Disagreement, ...]

    @property
    def beyond(self) -> list[str]:
        """The layers whose error exceeds the tolerance; one that is no number does."""
        return [name for name, error in self.layers.items() if not error <= self.tolerance]

    @property
    def parts_at(self) -> str | None:
        """The first of them, None if there is none."""
        return next(iter(self.beyond), None)

    @property
    def passed(self) -> bool:
        """Every layer is within the tolerance, and all predictions agree."""
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
        checkpoint: of timm's or torchvision's network: safetensors, npz, or what
            `torch.load(weights_only=True)` reads. The weights may be nested ('state_dict', 'model',
            ...) and prefixed ('module.', ...).
        folder: images, at any depth.
        model: one of `models.names()`, but no ASFF-ResNet, which PyTorch's libraries do not have.
        image_size: side of the evaluation view in pixels: for ConvNeXt a multiple of 32, for
            others at least 32.
        weights: safetensors file in timm's names that ours is given instead of the checkpoint.
        max_images: of more images these many are taken, spread evenly over the sorted files.
        batch: images that go through the networks together.
        tolerance: of the relative error of a layer.

    Raises:
        CompareError: no images, no weights in the checkpoint, or an option out of range.
        MissingExtraError: torch, torchvision or timm is missing.
        interop.CheckpointError: the weights do not fit the model; names every tensor that differs.
        MissingWeightsError: there are no `weights`.
        ConfigError: no such model.
    """
    if models.family(model) not in ("convnext", "resnet", "squeezenet"):
        raise CompareError(f"Neither timm nor torchvision has {model} to compare ours with.")
    network = models.create(model, num_classes=1)
    multiple = network.stride if network.needs_multiple else 1
    if image_size < network.min_size or image_size % multiple:
        rule = f"a multiple of {multiple}" if multiple > 1 else f"at least {network.min_size}"
        raise CompareError(f"image_size is {image_size}; it must be {rule}.")
    if min(batch, max_images) < 1:
        raise CompareError(f"batch is {batch} and max_images {max_images}; both must be positive.")
    extras.require("torch", "torchvision", "timm", extra="parity")
    library, tensors = interop.as_timm(_read_checkpoint(Path(checkpoint)), model)
    if library:
        logger.info("%s has %s names of a ConvNeXt: read as timm's", checkpoint, library)
    variables = _convert(tensors, model, checkpoint)
    num_classes = len(tensors[interop.classifier_bias(model)])
    if weights is not None:
        variables = interop.load(weights, model, finite=False)
        if (ours := len(variables["params"]["head"]["fc"]["bias"])) != num_classes:
            raise CompareError(
                f"{weights} has {ours} classes, {checkpoint} {num_classes}; they must be the same."
            )
    pixels, files, unreadable, preprocessing = _load_images(Path(folder), image_size, max_images)

    logger.info("Comparing %d images of %d pixels", len(files), image_size)
    network = models.create(model, num_classes)
    layers = _layer_paths(network)
    errors, our_logits, their_logits = _run(
        _our_program(network, variables, layers),
        _their_program(model, num_classes, tensors, tuple(layers)),
        pixels,
        min(batch, len(files)),
    )
    logits = np.abs(our_logits - their_logits)
    probabilities = np.abs(softmax(our_logits, axis=1) - softmax(their_logits, axis=1))
    our_classes, their_classes = our_logits.argmax(axis=1), their_logits.argmax(axis=1)
    differing = np.flatnonzero(our_classes != their_classes).tolist()
    return Comparison(
        checkpoint=str(checkpoint),
        weights=None if weights is None else str(weights),
        model=model,
        num_classes=num_classes,
        image_size=image_size,
        tolerance=tolerance,
        files=files,
        unreadable=unreadable,
        preprocessing=preprocessing,
        layers={name: errors[name] for name in layers},
        logits_mean=float(logits.mean()),
        logits_max=float(logits.max()),
        probabilities_max=float(probabilities.max()),
        agreeing=len(files) - len(differing),
        disagreements=tuple(
            Disagreement(
                file=files[i],
                theirs=int(their_classes[i]),
                ours=int(our_classes[i]),
                their_margin=_margin(their_logits[i]),
                our_margin=_margin(our_logits[i]),
            )
            for i in differing
        ),
    )


def _read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors by timm's names, those of floating point as float32."""
    if not path.is_file():
        raise CompareError(f"There is no file {path}; a checkpoint is expected.")
    plain = path.suffix in {".safetensors", ".npz"}
    found = read(path) if plain else _read_pickle(path)
    tensors = {_PREFIXES.sub("", name): x for name, x in found.items()}
    if len(tensors) < len(found):
        raise CompareError(
            f"{path} holds several networks: without module., _orig_mod. and model. in front, some "
            "of its names are the same. Save the state_dict() of one."
        )
    return {
        name: x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for name, x in tensors.items()
    }


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    import torch

    try:
        # timm saves a training's command line beside the weights, which is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files bring whatever the unpickler stumbles upon
        raise CompareError(
            f"{path} cannot be read by torch.load(weights_only=True) ({type(error).__name__}): it "
            f"is damaged, or holds more than tensors, such as a whole model. {_WAY_OUT}"
        ) from None
    while isinstance(content, dict):
        nests = [name for name in _NESTS if isinstance(content.get(name), dict)]
        if not nests:
            break
        if len(nests) > 1:
            logger.warning("%s holds %s; %r is compared", path, ", ".join(nests), nests[0])
        content = content[nests[0]]
    if not isinstance(content, dict) or not content:
        kind = "an empty" if content == {} else "a value of type"
        raise CompareError(f"{path} holds {kind} {type(content).__name__}, no weights. {_WAY_OUT}")
    if other := [str(name) for name, x in content.items() if not isinstance(x, torch.Tensor)]:
        raise CompareError(
            f"{path} holds no state dict; what is no tensor: {', '.join(other[:_SHOWN])}. "
            f"{_WAY_OUT}"
        )
    return {
        str(name): (x.float() if x.is_floating_point() else x).detach().numpy()
        for name, x in content.items()
    }


def _convert(tensors: Tensors, model: str, source: str | os.PathLike) -> PyTree:
    """Our variables; if they do not fit, the error says of which model they seem to be."""
    try:
        return interop.convert(tensors, model, source)
    except interop.CheckpointError as error:
        for name in models.names():
            if name != model and interop.fits(tensors, name):
                raise interop.CheckpointError(f"{error}\nTry --model={name}.") from None
        raise


def _load_images(
    folder: Path, image_size: int, max_images: int
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...], Preprocessing]:
    """uint8 [N, H, W, 3], the files, the unreadable ones, the difference from torchvision."""
    if not folder.is_dir():
        raise CompareError(f"There is no folder {folder}; a folder of images is expected.")
    search = find_images(folder)
    search.report(folder)
    found = sorted(search.images)
    if not found:
        raise CompareError(f"{folder} holds no images {search.nothing}.")
    chosen = np.linspace(0, len(found) - 1, min(len(found), max_images)).round().astype(int)

    views: dict[str, np.ndarray] = {}
    differences: dict[str, np.ndarray] = {}
    unreadable = []
    for path in (found[i] for i in chosen):
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
        reasons = "; ".join(unreadable[:_SHOWN])
        raise CompareError(f"None of {len(chosen)} images in {folder} can be read: {reasons}.")
    preprocessing = Preprocessing(
        images=len(differences),
        mean=float(np.mean([x.mean() for x in differences.values()])) if differences else 0.0,
        max=max((int(x.max()) for x in differences.values()), default=0),
        different=tuple(file for file, x in differences.items() if x.any()),
    )
    return np.stack(list(views.values())), tuple(views), tuple(unreadable), preprocessing


def _torchvision_view(path: Path, image_size: int) -> np.ndarray | None:
    """uint8 [H, W, 3] by ImageFolder, Resize and CenterCrop; None if they cannot."""
    from torchvision import transforms

    try:
        with PIL.Image.open(path) as file:
            image = file.convert("RGB")
    except OSError:  # DICOM
        return None
    if max(image.size) > _LONGEST * min(image.size):
        return None
    return np.asarray(transforms.CenterCrop(image_size)(transforms.Resize(image_size)(image)))


def _layer_paths(network: models.Model) -> dict[str, tuple[str, ...]]:
    """PyTorch's names of the layers that are compared, in the order in which they are computed.

    Returns:
        Of each where our module is: 'stages.0.blocks.1' is ('stages_0', 'blocks_1'). The last one
        gives the logits.
    """
    starts: dict[str, tuple[str, ...]] = {}
    ends: dict[str, tuple[str, ...]]
    if isinstance(network, ConvNeXt):
        names = ["stem"]
        for stage, depth in enumerate(network.depths):
            names += [f"stages.{stage}.downsample"] if stage else []
            names += [f"stages.{stage}.blocks.{block}" for block in range(depth)]
        ends = {"head.norm": ("head", "norm"), "head.fc": ("head", "fc")}
    elif isinstance(network, ResNet):
        names = [f"layer{k}.{i}" for k, depth in enumerate(network.depths, 1) for i in range(depth)]
        starts = {"bn1": ("stem",)}
        ends = {"fc": ("head", "fc")}
    else:
        names = list(dict.fromkeys(x.split("/")[0].replace("_", ".") for x in network.layers))
        ends = {"classifier": ("head",)}
    paths = {name: tuple(re.sub(r"\.(\d)", r"_\1", name).split(".")) for name in names}
    return {**starts, **paths, **ends}


def _our_program(
    network: models.Model, variables: PyTree, paths: Mapping[str, tuple[str, ...]]
) -> Program:
    """Of normalised images [B, H, W, 3]."""

    def program(variables: PyTree, normalized: jax.Array) -> dict[str, jax.Array]:
        _, state = network.apply(
            variables,
            normalized,
            capture_intermediates=lambda module, _: module.path in paths.values(),
            mutable=["intermediates"],
        )
        outputs = {}
        for name, path in paths.items():
            module = functools.reduce(lambda tree, key: tree[key], path, state["intermediates"])
            (outputs[name],) = module["__call__"]
        return outputs

    compiled = platform.jit(program)
    variables = jax.device_put(variables)

    def run(normalized: np.ndarray) -> dict[str, np.ndarray]:
        # A GPU's default, TF32, is farther from float32 than what is looked for.
        with jax.default_matmul_precision("highest"):
            return jax.device_get(compiled(variables, normalized))

    return run


def _their_program(
    model: str, num_classes: int, tensors: Tensors, layers: Sequence[str]
) -> Program:
    """Of normalised images [B, H, W, 3]; outputs have their channels last, as ours."""
    import timm
    import torch
    import torchvision

    in_torchvision = models.family(model) == "squeezenet"
    create = torchvision.models.get_model if in_torchvision else timm.create_model
    network = create(model, num_classes=num_classes).float().eval()
    # What our conversion has passed lacks at most batch norm's counters, which are of no effect.
    counted = {k: x for k, x in network.state_dict().items() if k.endswith("num_batches_tracked")}
    given = {k: torch.from_numpy(x) for k, x in tensors.items()}
    network.load_state_dict(counted | given, strict=True)
    outputs: dict[str, np.ndarray] = {}

    def keep(name: str, module: Any, inputs: Any, output: Any) -> None:
        if output.ndim == 4:
            output = output.permute(0, 2, 3, 1)
        if name in ("head.norm", "classifier"):  # of pooled features, one pixel
            output = output[:, 0, 0]
        outputs[name] = output.numpy().copy()  # what follows may work in place

    for name in layers:
        network.get_submodule(name).register_forward_hook(functools.partial(keep, name))

    def run(normalized: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            network(torch.from_numpy(normalized).permute(0, 3, 1, 2))
        return dict(outputs)

    return run


def _run(
    ours: Program, theirs: Program, pixels: np.ndarray, batch: int
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Relative error of each layer over all images, and both logits [N, num_classes]."""
    squares: dict[str, np.ndarray] = {}  # sums of squares: of the difference, of theirs
    logits = []
    for start in range(0, len(pixels), batch):
        # The last batch is filled up by the last image, which then does not count again.
        indices = np.minimum(np.arange(start, start + batch), len(pixels) - 1)
        count = min(batch, len(pixels) - start)
        normalized = np.array(augment.normalize(jnp.asarray(pixels[indices])))
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


def _margin(logits: np.ndarray) -> float:
    second, first = np.sort(logits)[-2:]
    return float(first - second)


def show(found: Comparison) -> None:
    """Prints a comparison, at most 80 columns wide but for the names of files."""
    terminal = rich.console.Console(highlight=False, emoji=False)
    say = functools.partial(terminal.print, markup=False, soft_wrap=True)
    count, size, pixels = len(found.files), found.image_size, found.preprocessing

    say(f"\n{found.model}, {found.num_classes} classes, {count} images of {size} pixels")
    say(f"theirs: {found.checkpoint} in PyTorch")
    say(f"ours:   {found.weights or 'the same weights'} in JAX\n")
    if found.unreadable:
        say(f"{len(found.unreadable)} unreadable images left out:", style="bold yellow")
        say(_listed(found.unreadable))
    torchvision = f"torchvision's Resize({size}), CenterCrop({size})"
    if pixels.different:
        say(
            f"{len(pixels.different)} of {pixels.images} images differ from {torchvision}:\n"
            f"by {pixels.mean:.2g} on average over all images, {pixels.max} at most (of 255)",
            style="bold yellow",
        )
        say(_listed(pixels.different))
    else:
        say(f"Pixels equal {torchvision} in {pixels.images} of {count} images.")

    table = rich.table.Table(box=rich.box.SIMPLE, pad_edge=False)
    table.add_column("Layer")
    table.add_column("Relative error", justify="right")
    table.add_column("")
    *_, last = found.layers
    for name, error in found.layers.items():
        table.add_row(
            f"{name} (logits)" if name == last else name,
            f"{error:.1e}",
            "parts here" if name == found.parts_at else "",
            style="yellow" if name in found.beyond else "",
        )
    terminal.print(table)

    if found.parts_at is None:
        say(f"Activations part nowhere (tolerance {found.tolerance:g}).", style="bold green")
    else:
        say(
            f"Activations part first at {found.parts_at} (tolerance {found.tolerance:g}).",
            style="bold yellow",
        )
    say(
        f"Logits differ by {found.logits_mean:.1e} on average and {found.logits_max:.1e} at most, "
        f"probabilities\nby {found.probabilities_max:.1e} at most."
    )
    if not found.disagreements:
        say(f"Predictions agree for all {count} images.", style="bold green")
        return
    say(f"Predictions agree for {found.agreeing} of {count} images, not for:", style="bold yellow")
    say(
        _listed(
            [
                f"{x.file}: theirs {x.theirs} (margin {x.their_margin:.2g}), "
                f"ours {x.ours} (margin {x.our_margin:.2g})"
                for x in found.disagreements
            ]
        )
    )


def _listed(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:_SHOWN], *more])


def save(found: Comparison, path: Path) -> None:
    """Writes all figures as JSON; those that are no number as the strings NaN and Infinity."""
    figures = {"passed": found.passed, "parts_at": found.parts_at, **dataclasses.asdict(found)}
    write_json(path, json.loads(json.dumps(figures), parse_constant=str))
