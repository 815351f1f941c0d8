"""Classifies new images with a finished run.

    predictor = egmae_jax.load("runs/busi")
    result = predictor.predict(["a.png", "b.dcm"])
    result.predicted, result.probabilities["ensemble"]

Threads decode the images of a batch, once for all branches, while the devices compute the previous
batch. At most about three batches are in memory.
"""

import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from egmae_jax import models
from egmae_jax.augmentations import tta
from egmae_jax.core import platform, sharding
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.data.pipeline import pad_batch
from egmae_jax.data.threads import read_ahead
from egmae_jax.deploy.views import Source, Views
from egmae_jax.evaluation import calibration
from egmae_jax.explain import gradcam
from egmae_jax.method import augment
from egmae_jax.run.images import tta_view_settings, tta_views
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.training import finetune

logger = logging.getLogger(__name__)


class Classification(NamedTuple):
    """Predicted classes and probabilities of N images.

    Attributes:
        classes: names of the classes, in the order of the probabilities.
        probabilities: float [N, num_classes] by classifier: 'ensemble' first if the run has several
            branches, then each branch.
    """

    classes: tuple[str, ...]
    probabilities: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        """Index of the most probable class of each image, int [N], by the first classifier."""
        return next(iter(self.probabilities.values())).argmax(axis=1)

    @property
    def predicted(self) -> list[str]:
        """Name of the most probable class of each image, by the first classifier."""
        return [self.classes[label] for label in self.labels]


class Batch(NamedTuple):
    """A batch of classified images.

    Attributes:
        indices: positions of the n readable images among the sources, int [n].
        pixels: readable images, resized and cropped for evaluation, uint8 [n, S, S, 3], or
            [n, S, S, 1] for greyscale.
        classification: classes and probabilities of the readable images.
        unreadable: reason for each image that cannot be read, by its position among the sources.
        size: batch size of the networks, at least n; the remainder is padding.
        rounds: uncalibrated probabilities by branch, float [n, num_classes], for each round.
    """

    indices: np.ndarray
    pixels: np.ndarray
    classification: Classification
    unreadable: dict[int, str]
    size: int
    rounds: Sequence[Mapping[str, np.ndarray]] = ()


class Predictor:
    """Classifies images with every branch of a finished run, and with their ensemble.

    Images are decoded, resized and cropped as in the run's evaluation, but without noise; if the
    run was evaluated with noise (`finetune.input_noise`), a warning is logged.

    Args:
        workdir: folder of the run; no other folder is read, so the run may have been moved.
        round_index: round whose networks are used; results.json has the metrics of each round.
            'all' averages the probabilities of all rounds (a deep ensemble, Lakshminarayanan et al.
            2017). This is usually more accurate, but takes longer in proportion to the number of
            rounds, has no metrics in results.json, and is less confident than calibrated. With
            folds, every image of the data set was in the training part of some of these networks.
            None: 'all' with folds, else 0.
        calibrated: whether probabilities are calibrated by the temperature that was fitted on the
            validation part, which also limits their confidence to what the number of validation
            images supports. In a single round this does not change the predicted classes.
        batch: batch size.

    Attributes:
        run: the run.
        classes: names of the classes, in the order of the probabilities.
        classifiers: 'ensemble' if the run has several branches, then the names of the branches.

    Raises:
        RunError: the run is not finished or has no such round, or `batch` is not positive.
        DamagedFileError, CheckpointError: a file of the workdir cannot be read.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        round_index: int | Literal["all"] | None = None,
        calibrated: bool = True,
        batch: int = 64,
    ):
        if batch < 1:
            raise RunError(f"batch is {batch}; it must be positive.")
        self.run = run = SavedRun(Path(workdir))
        self._view = Views(run, tta_view_settings(run.config))
        self._views = tta_views(run.config)
        self._calibrated, self._batch = calibrated, batch
        if round_index is None and run.paths.folds:
            logger.info(
                "The probabilities of the networks of all %d folds are averaged. Images of the "
                "run's own data set were in the training part of most of them.",
                len(run.rounds),
            )
            round_index = "all"
        rounds = run.rounds if round_index == "all" else [round_index or 0]
        self._ensembles = [run.ensemble(i) for i in rounds]
        if calibrated:
            results = [run.results()["rounds"][i] for i in rounds]
            for sentence in calibration.explain_rounds(results, self._ensembles[0].scalings):
                logger.warning("%s", sentence)
        if (noise := run.config.finetune.input_noise) > 0:
            logger.warning(
                "The run was trained and tested with noise on its images "
                "(finetune.input_noise=%g), but new images are classified without noise",
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
            images: one image or an iterable of images. An image is the path of a file, the bytes
                of a file, a Pillow image, or a uint8 array: [H, W] for greyscale, [H, W, 3] for
                RGB, [N, H, W, 3] or [N, H, W, 1] for several images.

        Raises:
            UnreadableImageError: an image cannot be read; the message names the first such image.
                `stream` skips these images and reports all of them.
        """
        sources = _list_sources(images)
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
        """Classifies images and yields them batch by batch, in their order.

        Images that cannot be read are skipped and reported in `Batch.unreadable`.

        Args:
            sources: paths of files, bytes of files, Pillow images or uint8 arrays [H, W, 3 or 1].
        """
        size = self._batch_size(len(sources))
        views = enumerate(read_ahead(lambda i: self._view(sources[i]), 0, len(sources)))
        started = None
        while chunk := list(itertools.islice(views, size)):
            following = self._start(chunk, size)
            if started is not None:
                yield self._finish(*started)
            started = following
        if started is not None:
            yield self._finish(*started)

    def heat_layer(self, branch: str) -> gradcam.Layer:
        """Layer of a branch's network that `heat` uses, with the size of its grid."""
        classifier = self._classifiers[branch][0]
        return gradcam.layer_at(classifier.model, self.run.config.data.image_size)

    def heat(self, batch: Batch, branch: str) -> np.ndarray:
        """Computes Grad-CAM of the predicted classes at `heat_layer`.

        Args:
            batch: a batch of `stream`.
            branch: name of the branch that is explained; if several rounds are used, the network of
                the first.

        Returns:
            Heat maps of the readable images, float32 [n, S, S] in [0, 1].
        """
        if not len(batch.indices):
            return np.zeros(batch.pixels.shape[:3], np.float32)
        classifier = self._classifiers[branch][0]
        heat = gradcam.gradcam(
            classifier.model,
            classifier.variables,
            augment.normalize(jnp.asarray(pad_batch(batch.pixels, batch.size))),
            classes=pad_batch(batch.classification.labels, batch.size),
        )
        return np.asarray(heat)[: len(batch.indices)]

    # --- Batches ---------------------------------------------------------------------------------

    def _batch_size(self, count: int) -> int:
        """Returns the batch size for `count` images, a multiple of the number of devices.

        A few images are padded only to the next power of two, because a full batch takes longer.
        """
        power_of_two = 1 << max(count - 1, 0).bit_length()
        return sharding.divisible(min(power_of_two, self._batch), self._mesh)

    def _start(
        self, chunk: Sequence[tuple[int, np.ndarray | str]], size: int
    ) -> tuple[Batch, dict[str, list[jax.Array]]]:
        """Starts to compute a batch on the devices, without waiting for the result.

        Args:
            chunk: position and result of `_view` of each image.
            size: batch size, to which the readable images are padded.

        Returns:
            The batch without probabilities; and the probabilities of the branches, [size,
            num_classes] for each branch and round.
        """
        unreadable = {index: view for index, view in chunk if isinstance(view, str)}
        readable = {index: view for index, view in chunk if not isinstance(view, str)}
        data = self.run.config.data
        side = tta_view_settings(self.run.config)["image_size"]
        shape = (-1, side, side, 1 if data.color == "grey" else 3)
        pixels = pad_batch(np.array(list(readable.values()), np.uint8).reshape(shape), size)
        running = {
            name: [_program(x.model, self._mesh, self._views)(x.variables, pixels) for x in rounds]
            for name, rounds in self._classifiers.items()
        }
        indices = np.array(list(readable), np.int64)
        empty = Classification(self.classes, {})
        centre = tta.centre_crop(pixels[: len(indices)], data.image_size)
        return Batch(indices, centre, empty, unreadable, size), running

    def _finish(self, batch: Batch, running: dict[str, list[jax.Array]]) -> Batch:
        """Waits for the devices; returns the batch with fused probabilities, averaged over rounds.

        Args:
            batch: the batch from `_start`.
            running: probabilities of the branches from `_start`.
        """
        rounds = [
            {name: np.asarray(x[k])[: len(batch.indices)] for name, x in running.items()}
            for k in range(len(self._ensembles))
        ]
        by_round = [
            ensemble.apply(branches, calibrated=self._calibrated)
            for ensemble, branches in zip(self._ensembles, rounds, strict=True)
        ]
        means = {name: np.mean([p[name] for p in by_round], axis=0) for name in self.classifiers}
        classification = Classification(self.classes, means)
        return batch._replace(classification=classification, rounds=rounds)


load = Predictor  # the public name: egmae_jax.load("runs/busi")


@functools.cache
def _program(
    model: models.Model, mesh: Mesh, views: Callable[[Any], list[Any]] | None
) -> Callable[[Any, np.ndarray], jax.Array]:
    """Returns the jitted program (variables, pixels) -> class probabilities [B, num_classes].

    Branches and rounds with the same model share one compiled program.
    """

    @platform.jit
    def program(variables, pixels):
        batch = sharding.split_batch(pixels, mesh)
        probabilities = finetune.class_probabilities(variables, batch, model=model, views=views)
        return sharding.gather(probabilities, mesh)

    return program


def _list_sources(images: Any) -> list[Source]:
    """Flattens nested iterables and stacked arrays into a list of single images.

    Raises:
        UnreadableImageError: an element is not an image.
    """
    if isinstance(images, (str, os.PathLike, bytes, PIL.Image.Image)):
        return [images]
    if hasattr(images, "__array__"):  # arrays of NumPy and JAX, tensors of PyTorch
        array = np.asarray(images)
        stack = array[None, :, :, None] if array.ndim == 2 else array
        stack = stack[None] if stack.ndim == 3 else stack
        shape = stack.shape
        if array.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape[1:]:
            raise UnreadableImageError(
                f"an array has dtype {array.dtype} and shape {list(array.shape)}; it must be uint8 "
                "(0 to 255) and [H, W] for greyscale, [H, W, 3] for RGB or [N, H, W, 3] for "
                "several images"
            )
        return list(stack)
    if not isinstance(images, Iterable):
        raise UnreadableImageError(
            f"a {type(images).__name__} is not an image; it must be a path, the bytes of a file, "
            "a Pillow image or a uint8 array"
        )
    return [source for image in images for source in _list_sources(image)]
