"""A finished run that classifies new images, as it classified its test images.

    predictor = egmae_jax.load("runs/busi")
    result = predictor.predict(["a.png", "b.dcm"])
    result.predicted, result.probabilities["ensemble"]

Threads decode images, once for all branches, while the devices compute the batch before. However
many images there are, about three batches are in memory.
"""

import functools
import itertools
import logging
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
logger = logging.getLogger(__name__)


class Classification(NamedTuple):
    """Predicted classes and probabilities of N images.

    Attributes:
        classes: names of the classes, in the order of the probabilities.
        probabilities: float [N, num_classes] by classifier: 'ensemble' first, where the run has
            several branches, then each branch.
    """

    classes: tuple[str, ...]
    probabilities: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        """Index of each image's likeliest class by the first classifier, int [N]."""
        return next(iter(self.probabilities.values())).argmax(axis=1)

    @property
    def predicted(self) -> list[str]:
        """Name of each image's likeliest class by the first classifier."""
        return [self.classes[label] for label in self.labels]


class Batch(NamedTuple):
    """A batch of classified images.

    Attributes:
        indices: positions of the n readable images among the sources, int [n].
        pixels: evaluation view of the readable images, uint8 [n, S, S, 3], or 1 for grey.
        classification: classes and probabilities of the readable images.
        unreadable: why each other image could not be read, by its position.
        size: number of images that went through the networks, with those that fill the batch.
    """

    indices: np.ndarray
    pixels: np.ndarray
    classification: Classification
    unreadable: dict[int, str]
    size: int


class Predictor:
    """Classifies images by every branch of a finished run, and fuses their probabilities.

    Images are seen as in evaluation: decoded in the colours of the run, resized and cropped alike,
    without noise; a warning says so where the run tested with noise.

    Args:
        workdir: folder of the run; nothing else is read, so it may have been moved.
        round_index: round whose networks are used. Round 0 is what a user would have trained with
            one seed, and results.json scores such single rounds. 'all' averages the probabilities
            of all rounds, a deep ensemble (Lakshminarayanan et al. 2017): mostly more accurate, as
            many times slower, scored nowhere, and less confident than calibrated. With folds it
            also asks networks that were trained on the images that another fold tests.
        calibrated: whether probabilities are scaled by what was fitted on the validation part,
            none surer than so many images support. In a single round the predicted classes are the
            same.
        batch: number of images that go through a network together.

    Attributes:
        run: the run.
        classes: names of the classes, in the order of the probabilities.
        classifiers: 'ensemble', where the run has several branches, then the branches' names.

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
        branches = [branch.name for branch in run.branches]
        self.classifiers = ["ensemble", *branches] if len(branches) > 1 else branches
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
        batches = batches or [dict.fromkeys(self.classifiers, np.zeros((0, len(self.classes))))]
        return Classification(
            self.classes, {n: np.concatenate([b[n] for b in batches]) for n in self.classifiers}
        )

    def stream(self, sources: Sequence[Source]) -> Iterator[Batch]:
        """Classifies any number of images, a batch at a time and in their order.

        A batch names its images that cannot be read, which do not stop the stream.
        """
        size = self._batch_size(len(sources))
        views = enumerate(read_ahead(lambda i: self._view(sources[i]), 0, len(sources)))
        started = None
        while chunk := list(itertools.islice(views, size)):
            following = self._start(chunk, size)
            if started is not None:  # the devices computed it while the chunk was decoded
                yield self._finish(*started)
            started = following
        if started is not None:
            yield self._finish(*started)

    def heat_layer(self, branch: str) -> gradcam.Layer:
        """Layer that `heat` explains, with its grid: the default layer of the branch's network."""
        classifier = self._classifiers[branch][0]
        return gradcam.layer_at(classifier.model, self.run.config.data.image_size)

    def heat(self, batch: Batch, branch: str) -> np.ndarray:
        """Grad-CAM of the predicted classes by a branch in its first round, at `heat_layer`.

        Returns:
            float32 [n, S, S] of the readable images, in [0, 1].
        """
        if not len(batch.indices):
            return np.zeros(batch.pixels.shape[:3], np.float32)
        classifier = self._classifiers[branch][0]
        heat = gradcam.gradcam(
            classifier.model,
            classifier.variables,
            augment.normalize(jnp.asarray(gradcam.filled(batch.pixels, batch.size))),
            classes=gradcam.filled(batch.classification.labels, batch.size),
        )
        return np.asarray(heat)[: len(batch.indices)]

    # --- Images ----------------------------------------------------------------------------------

    def _view(self, source: Source) -> np.ndarray | str:
        """The evaluation view of an image, uint8 [S, S, 3 or 1], or why it cannot be read."""
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

    def _start(
        self, chunk: Sequence[tuple[int, np.ndarray | str]], size: int
    ) -> tuple[Batch, dict[str, list[jax.Array]]]:
        """Hands a batch to the devices.

        Returns:
            The batch, still without probabilities, and those to come by branch and round.
        """
        unreadable = {index: view for index, view in chunk if isinstance(view, str)}
        readable = {index: view for index, view in chunk if not isinstance(view, str)}
        data = self.run.config.data
        shape = (size, data.image_size, data.image_size, 1 if data.color == "grey" else 3)
        pixels = np.zeros(shape, np.uint8)
        for row, view in enumerate(readable.values()):
            pixels[row] = view
        running = {
            name: [_program(x.model, self._mesh)(x.variables, pixels) for x in rounds]
            for name, rounds in self._classifiers.items()
        }
        indices = np.array(list(readable), np.int64)
        nothing = Classification(self.classes, {})
        return Batch(indices, pixels[: len(indices)], nothing, unreadable, size), running

    def _finish(self, batch: Batch, running: dict[str, list[jax.Array]]) -> Batch:
        """The batch with its probabilities, which are fused and averaged over the rounds."""
        by_round = []
        for k, ensemble in enumerate(self._ensembles):
            branches = {n: np.asarray(x[k])[: len(batch.indices)] for n, x in running.items()}
            by_round.append(ensemble.apply(branches, calibrated=self._calibrated))
        means = {name: np.mean([p[name] for p in by_round], axis=0) for name in self.classifiers}
        return batch._replace(classification=Classification(self.classes, means))


load = Predictor  # egmae_jax.load("runs/busi")


@functools.cache
def _program(model: models.Model, mesh: Mesh) -> Callable[[Any, np.ndarray], jax.Array]:
    """A program of class probabilities; compiled once for all branches and rounds of a model."""

    @platform.jit
    def program(variables, pixels):
        batch = sharding.split_batch(pixels, mesh)
        return sharding.gather(finetune.class_probabilities(variables, batch, model=model), mesh)

    return program


def _sources(images: Any) -> list[Source]:
    """Lists single images, however they are nested.

    Raises:
        UnreadableImageError: something is no image.
    """
    if isinstance(images, (str, os.PathLike, bytes, PIL.Image.Image)):
        return [images]
    if hasattr(images, "__array__"):  # NumPy's, JAX's, PyTorch's
        array = np.asarray(images)
        stack = array[None, :, :, None] if array.ndim == 2 else array
        stack = stack[None] if stack.ndim == 3 else stack
        shape = stack.shape
        if array.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape[1:]:
            raise UnreadableImageError(
                f"an array is {array.dtype} {list(array.shape)}; expected are uint8 of 0 to 255, "
                "[H, W] for grey, [H, W, 3] for RGB or [N, H, W, 3] for several"
            )
        return list(stack)
    if not isinstance(images, Iterable):
        raise UnreadableImageError(
            f"a {type(images).__name__} is no image; paths, Pillow's images and uint8 arrays are"
        )
    return [source for image in images for source in _sources(image)]
