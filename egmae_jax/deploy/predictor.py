"""A finished run that classifies new images, as it classified its test images.

    predictor = egmae_jax.load("runs/busi")
    result = predictor.predict(["a.png", "b.dcm"])
    result.predicted, result.probabilities["ensemble"]

Images are decoded by threads, once for all branches, while the devices work on those before. Of any
number of images about three batches are in memory.
"""

import functools
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from egmae_jax import models
from egmae_jax.core import platform, sharding
from egmae_jax.core.files import DamagedFileError
from egmae_jax.data import images, samples
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.data.threads import read_ahead
from egmae_jax.evaluation import calibration
from egmae_jax.explain import gradcam
from egmae_jax.method import augment
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.training import finetune

# A file, the bytes of one, an image that Pillow has opened, or uint8 [H, W, 3] or [H, W, 1].
Source = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray
_CHUNKS = 8  # of a batch; a thread decodes one at a time, and up to sixteen are decoded ahead
logger = logging.getLogger(__name__)


class Classification(NamedTuple):
    """Predicted classes and probabilities of some images."""

    classes: tuple[str, ...]  # names, in the order of the probabilities
    # float [N, num_classes] by branch; last that of 'ensemble', if there are several branches
    probabilities: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        """Index of the likeliest class, of the ensemble if there is one: int [N]."""
        *_, decisive = self.probabilities.values()
        return decisive.argmax(axis=1)

    @property
    def predicted(self) -> list[str]:
        """Name of the likeliest class of each image, of the ensemble if there is one."""
        return [self.classes[label] for label in self.labels]


class Batch(NamedTuple):
    """Some of many images, classified."""

    indices: np.ndarray  # int [n] among the sources, of those that could be read
    pixels: np.ndarray  # uint8 [n, S, S, 3], or 1 for grey: the evaluation view of these
    classification: Classification  # of these
    unreadable: dict[int, str]  # reason by index of the others
    size: int  # images that went through the networks, with copies that fill the batch


def load(
    workdir: str | os.PathLike,
    *,
    round_index: int | Literal["all"] = 0,
    calibrated: bool = True,
    batch: int = 64,
) -> "Predictor":
    """Opens a finished run to classify images: `egmae_jax.load("runs/busi").predict("new.png")`.

    Only the workdir is read. See `Predictor` for the arguments and errors.
    """
    return Predictor(workdir, round_index=round_index, calibrated=calibrated, batch=batch)


class Predictor:
    """Classifies images by every branch of a finished run, and fuses their probabilities.

    Images are seen as in evaluation: decoded in the colours of the run, resized and cropped alike,
    without noise; a warning says so where the run tested with noise.

    Args:
        workdir: folder of the run. Nothing else is read: neither its images nor its cache.
        round_index: round whose networks are used. Round 0 is what a user would have trained with
            one seed, and results.json scores such single rounds. 'all' averages the probabilities
            of all rounds, a deep ensemble (Lakshminarayanan et al. 2017): mostly more accurate, as
            many times slower, scored nowhere, and less confident than calibrated. With folds it
            also asks networks that were trained on the images that another fold tests.
        calibrated: scales probabilities as was fitted on the validation part, none surer than so
            many images support. It changes no single round's predicted class.
        batch: images that go through a network together.

    Attributes:
        run: the run.
        classes: names of the classes, in the order of the probabilities.

    Raises:
        RunError: the run is not finished, or has no such round.
        DamagedFileError, CheckpointError: a file of the workdir cannot be read.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        round_index: int | Literal["all"] = 0,
        calibrated: bool = True,
        batch: int = 64,
    ):
        if batch < 1:
            raise RunError(f"batch is {batch}; it must be positive.")
        if round_index != "all" and not isinstance(round_index, int):
            raise RunError(f"The round is {round_index!r}; it must be a round's number or 'all'.")
        self.run = run = SavedRun(Path(workdir))
        self._intensity = run.intensity
        self._calibrated, self._batch, self._warned_of_range = calibrated, batch, False
        rounds = run.rounds if round_index == "all" else [round_index]
        self._ensembles = [run.ensemble(i) for i in rounds]
        if calibrated:
            results = [run.results()["rounds"][i] for i in rounds]
            for sentence in calibration.explain_rounds(results, self._ensembles[0].scalings):
                logger.warning("%s", sentence)
        if (noise := run.config.finetune.input_noise) > 0:
            logger.warning(
                "The run trained and tested with noise on its images (finetune.input_noise=%g); "
                "these are classified without noise",
                noise,
            )
        self.classes = run.classes()
        self._mesh = sharding.make_mesh()
        self._classifiers = {
            branch.name: [
                c._replace(variables=sharding.replicate(c.variables, self._mesh))
                for c in (run.classifier(branch, i) for i in rounds)
            ]
            for branch in run.branches
        }

    def predict(self, images: Source | Iterable[Source]) -> Classification:
        """Classifies images.

        Args:
            images: one or several, of any kinds: paths of files, the bytes of files, Pillow's
                images, arrays uint8 [H, W], [H, W, 3] or, for several of a size, [N, H, W, 3].

        Raises:
            UnreadableImageError: an image cannot be used; names the first. `stream` reports such
                images with the others and goes on.
        """
        sources = _sources(images)
        batches = []
        for batch in self.stream(sources):
            for index, reason in batch.unreadable.items():
                source = sources[index]
                name = source if isinstance(source, (str, os.PathLike)) else f"image {index}"
                raise UnreadableImageError(f"{name}: {reason}")
            batches.append(batch.classification.probabilities)
        names = [*self._classifiers, *(["ensemble"] if len(self._classifiers) > 1 else [])]
        nothing = np.zeros((0, len(self.classes)))
        return Classification(
            self.classes, {n: np.concatenate([b[n] for b in batches] or [nothing]) for n in names}
        )

    def stream(self, sources: Sequence[Source]) -> Iterator[Batch]:
        """Classifies any number of images, some at a time and in their order.

        Images that cannot be read are reported with the others, and do not stop it.
        """
        size = self._batch_size(len(sources))
        views = enumerate(self._views(sources, max(1, size // _CHUNKS)))
        started = None
        while chunk := list(itertools.islice(views, size)):
            following = chunk, self._start([x for _, x in chunk if not isinstance(x, str)], size)
            if started is not None:  # which the devices have computed while images were decoded
                yield self._finish(*started, size)
            started = following
        if started is not None:
            yield self._finish(*started, size)

    def heat_layer(self, branch: str | None = None) -> gradcam.Layer:
        """The layer of `heat` and its grid: `gradcam.default_layer` of the branch's network."""
        classifier = self._classifiers[self.run.branch(branch).name][0]
        return gradcam.layer_at(classifier.model, self.run.config.data.image_size)

    def heat(self, batch: Batch, branch: str | None = None) -> np.ndarray:
        """Grad-CAM of the predicted classes by a branch in its first round, at `heat_layer`.

        Args:
            batch: some images of `stream`.
            branch: name of the branch; None: as `SavedRun.branch`.

        Returns:
            float32 [n, S, S], in [0, 1].
        """
        if not len(batch.indices):
            return np.zeros(batch.pixels.shape[:3], np.float32)
        classifier = self._classifiers[self.run.branch(branch).name][0]
        heat = gradcam.gradcam(
            classifier.model,
            classifier.variables,
            augment.normalize(jnp.asarray(gradcam.filled(batch.pixels, batch.size))),
            classes=gradcam.filled(batch.classification.labels, batch.size),
        )
        return np.asarray(heat)[: len(batch.indices)]

    # --- Images ----------------------------------------------------------------------------------

    def _views(self, sources: Sequence[Source], chunk: int) -> Iterator[np.ndarray | str]:
        """The evaluation view of every image, or the reason why there is none."""

        def views(i: int) -> list[np.ndarray | str]:
            return [self._view(source) for source in sources[i * chunk : (i + 1) * chunk]]

        chunks = read_ahead(views, 0, math.ceil(len(sources) / chunk))
        return itertools.chain.from_iterable(chunks)

    def _view(self, source: Source) -> np.ndarray | str:
        data, intensity = self.run.config.data, self._intensity
        try:
            if isinstance(source, (str, os.PathLike)):
                try:
                    source = Path(source).read_bytes()
                except OSError as error:
                    return error.strerror or str(error)
            if isinstance(source, bytes):
                decoded = images.examine(source, intensity)
                image = decoded.image if data.color == "rgb" else decoded.image.convert("L")
                if decoded.stored is not None and samples.lies_beyond(intensity, *decoded.stored):
                    self._warn_of_range(*decoded.stored[1:])
            elif isinstance(source, PIL.Image.Image):
                image = images.convert(source, data.color, intensity)
            else:
                image = images.convert(images.from_array(source), data.color)
        except UnreadableImageError as error:
            return str(error)
        resized = self.run.config.evaluation.resize
        return images.to_array(images.evaluation_view(image, data.resize, data.image_size, resized))

    def _warn_of_range(self, low: float, high: float) -> None:
        if not self._warned_of_range:
            logger.warning(
                "An image has values of %g to %g, beyond those that the run was trained on (%s; "
                "data.intensity_range='dataset'): they become black or white. Further images of "
                "this kind are not reported",
                low,
                high,
                samples.listed(self._intensity),
            )
        self._warned_of_range = True

    # --- Batches ---------------------------------------------------------------------------------

    def _batch_size(self, count: int) -> int:
        """Few images make a batch of the next power of two, which takes less time than a whole."""
        enough = 1 << max(count - 1, 0).bit_length()
        return sharding.divisible(min(enough, self._batch), self._mesh)

    def _start(self, views: Sequence[np.ndarray], size: int) -> dict[str, list[jax.Array]]:
        """Hands a batch to the devices; returns the probabilities to come, by branch and round."""
        if not views:
            return {}
        pixels = gradcam.filled(np.stack(views), size)
        return {
            name: [_program(x.model, self._mesh)(x.variables, pixels) for x in rounds]
            for name, rounds in self._classifiers.items()
        }

    def _finish(
        self,
        chunk: Sequence[tuple[int, np.ndarray | str]],
        running: dict[str, list[jax.Array]],
        size: int,
    ) -> Batch:
        unreadable = {index: view for index, view in chunk if isinstance(view, str)}
        readable = {index: view for index, view in chunk if not isinstance(view, str)}
        data = self.run.config.data
        shape = (-1, data.image_size, data.image_size, 1 if data.color == "grey" else 3)
        pixels = np.array(list(readable.values()), np.uint8).reshape(shape)
        indices = np.array(list(readable), np.int64)
        return Batch(indices, pixels, self._fused(running, len(indices)), unreadable, size)

    def _fused(self, running: dict[str, list[jax.Array]], count: int) -> Classification:
        by_round: list[dict[str, np.ndarray]] = []
        for k, ensemble in enumerate(self._ensembles):
            probabilities = {}
            for name, rounds in self._classifiers.items():
                nothing = np.zeros((0, len(self.classes)))
                probabilities[name] = np.asarray(running[name][k])[:count] if count else nothing
                if not np.isfinite(probabilities[name]).all():
                    reason = "its network computes values that are not finite"
                    raise DamagedFileError(rounds[k].weights, reason)
            by_round.append(ensemble.apply(probabilities, calibrated=self._calibrated))
        means = {n: np.mean([one[n] for one in by_round], axis=0) for n in by_round[0]}
        return Classification(self.classes, means)


@functools.cache
def _program(model: models.Model, mesh: Mesh) -> Callable[[Any, np.ndarray], jax.Array]:
    """Computes class probabilities; compiled once for all branches and rounds of a model."""

    @platform.jit
    def program(variables, pixels):
        batch = sharding.split_batch(pixels, mesh)
        return sharding.gather(finetune.class_probabilities(variables, batch, model=model), mesh)

    return program


def _sources(given: Any) -> list[Source]:
    """Lists images, however they are nested.

    Raises:
        UnreadableImageError: something is no image.
    """
    if isinstance(given, (str, os.PathLike)) and os.path.isdir(given):
        raise UnreadableImageError(
            f"{os.fspath(given)} is a folder; egmae_jax.data.datasets.folders.find_given("
            "[Path(folder)]) gives its images"
        )
    if isinstance(given, (str, os.PathLike, bytes, PIL.Image.Image)):
        return [given]
    if hasattr(given, "__array__"):  # NumPy's, JAX's, PyTorch's
        array = np.asarray(given)
        several = array[None, :, :, None] if array.ndim == 2 else array
        several = several[None] if several.ndim == 3 else several
        shape = several.shape
        if array.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape[1:]:
            raise UnreadableImageError(
                f"an array is {array.dtype} {list(array.shape)}; expected are uint8 of 0 to 255, "
                "[H, W] for grey, [H, W, 3] for RGB or [N, H, W, 3] for several"
            )
        return list(several)
    if not isinstance(given, Iterable):
        raise UnreadableImageError(
            f"a {type(given).__name__} is no image; paths, Pillow's images and uint8 arrays are"
        )
    return [source for one in given for source in _sources(one)]
