"""A finished run that classifies new images, as it classified its test images.

    predictor = egmae_jax.load("runs/busi")
    found = predictor.predict(["a.png", "b.dcm"])
    found.predicted, found.probabilities["ensemble"]

Images are decoded by threads, once for all branches, while the devices work on those before. Of any
number of images three batches or so are in memory.
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
from egmae_jax.explain import gradcam
from egmae_jax.method import augment
from egmae_jax.run.saved_run import Classifier, RunError, SavedRun
from egmae_jax.training import finetune

# A file, the bytes of one, an image that Pillow has opened, or uint8 [H, W, 3] or [H, W, 1].
Source = str | os.PathLike | bytes | PIL.Image.Image | np.ndarray
_CHUNKS = 8  # of a batch; a thread decodes one at a time, and up to sixteen are decoded ahead
_EXPECTED = (
    "expected are uint8 of 0 to 255, [H, W] for grey, [H, W, 3] for RGB or [N, H, W, 3] for several"
)
logger = logging.getLogger(__name__)


class Predictions(NamedTuple):
    """What a run says of images."""

    classes: tuple[str, ...]
    # By branch, and of 'ensemble' where there are several: float [N, num_classes].
    probabilities: dict[str, np.ndarray]
    labels: np.ndarray  # int [N], the likeliest class of the last of these: an index into `classes`

    @property
    def predicted(self) -> list[str]:
        """The names of the likeliest classes."""
        return [self.classes[label] for label in self.labels]


class Part(NamedTuple):
    """What a run says of some of many images."""

    indices: np.ndarray  # int [n], of those that could be read
    pixels: np.ndarray  # uint8 [n, S, S, 3], or 1 for grey: as they are evaluated
    predictions: Predictions  # of these
    unreadable: dict[int, str]  # the reason by index of the others
    batch: int  # images that went through the networks, those that fill it up included


def load(
    workdir: str | os.PathLike,
    *,
    round_index: int | Literal["all"] = 0,
    calibrated: bool = True,
    batch: int = 64,
) -> "Predictor":
    """A finished run that classifies images: `egmae_jax.load("runs/busi").predict("new.png")`.

    Only the workdir is read. See `Predictor` for the arguments and for what is raised.
    """
    return Predictor(workdir, round_index=round_index, calibrated=calibrated, batch=batch)


class Predictor:
    """Classifies images by every branch of a finished run, and fuses what they say.

    Images are seen as in evaluation: decoded in the colours of the run, resized and cropped alike,
    without noise, for which a warning says where the run tested with it.

    Args:
        workdir: of the run. Nothing else is read: neither its images nor its cache.
        round_index: whose networks are used. Round 0 is what a user would have trained with one
            seed, and results.json scores such single rounds. 'all' averages the probabilities of
            all rounds, a deep ensemble (Lakshminarayanan et al. 2017): mostly more often right, as
            many times slower, scored nowhere, and less sure than calibrated, as means of
            calibrated probabilities are. With folds it also asks networks that were trained on the
            images that another fold tests.
        calibrated: scales probabilities as was fitted on the validation part, none surer than so
            many images support. It makes them more honest and changes no single round's predicted
            class.
        batch: images that go through a network together.

    Attributes:
        run: that is used.
        classes: their names, in the order of the probabilities.
        calibrated: as given.
        batch: as given.

    Raises:
        RunError: the run is not finished, or has no such round; its message says what is missing.
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
        self.run = SavedRun(Path(workdir))
        self.calibrated, self.batch = calibrated, batch
        self._warned_of_range = False
        self.run.intensity  # noqa: B018 (a file that is damaged is told before any work)
        rounds = self._rounds(round_index)
        self._ensembles = [
            self.run.ensemble(i) for i in rounds
        ]  # finished, before weights are read
        for sentence, names in self._limits() if calibrated else ():
            logger.warning("Calibration of %s: %s", ", ".join(names), sentence)
        self.classes = self.run.classes()
        self._mesh = sharding.make_mesh()
        self._classifiers = {
            branch.name: [self._placed(self.run.classifier(branch, i)) for i in rounds]
            for branch in self.run.branches
        }
        if (noise := self.run.config.finetune.input_noise) > 0:
            logger.warning(
                "The run trained and tested with noise on its images (finetune.input_noise=%g); "
                "these are classified without",
                noise,
            )

    def predict(self, images: Source | Iterable[Source]) -> Predictions:
        """Classifies images.

        Args:
            images: one or several, of any kinds: paths of files, the bytes of files, Pillow's
                images, arrays uint8 [H, W], [H, W, 3] or, for several of a size, [N, H, W, 3].

        Raises:
            UnreadableImageError: one of them cannot be used; says which and why. `stream` tells it
                with the others and goes on.
        """
        sources = _sources(images)
        parts = []
        for part in self.stream(sources):
            for index, reason in part.unreadable.items():
                source = sources[index]
                name = source if isinstance(source, (str, os.PathLike)) else f"image {index}"
                raise UnreadableImageError(f"{name}: {reason}")
            parts.append(part.predictions)
        return self._joined(parts)

    def stream(self, sources: Sequence[Source]) -> Iterator[Part]:
        """Classifies any number of images, some at a time and in their order.

        Those that cannot be read are told with the others, and do not stop it.
        """
        size = self._batch_size(len(sources))
        seen = enumerate(self._seen(sources, max(1, size // _CHUNKS)))
        before: Callable[[], Part] | None = None
        while taken := list(itertools.islice(seen, size)):
            finish = self._start(taken, size)  # the devices work; the batch before is ready by then
            if before is not None:
                yield before()
            before = finish
        if before is not None:
            yield before()

    def heat_layer(self, branch: str | None = None) -> gradcam.Layer:
        """Where `heat` is taken from, `gradcam.default_layer`, and the grid that it has there."""
        classifier = self._classifiers[self.run.branch(branch).name][0]
        return gradcam.layer_at(classifier.model, self.run.config.data.image_size)

    def heat(self, part: Part, branch: str | None = None) -> np.ndarray:
        """Grad-CAM of the predicted classes by a branch in its first round, at `heat_layer`.

        Args:
            part: some images of `stream`.
            branch: its name; None: as `SavedRun.branch`.

        Returns:
            float32 [n, S, S], in [0, 1].
        """
        if not len(part.indices):
            return np.zeros(part.pixels.shape[:3], np.float32)
        classifier = self._classifiers[self.run.branch(branch).name][0]
        found = gradcam.gradcam(
            classifier.model,
            classifier.variables,
            augment.normalize(jnp.asarray(_filled(part.pixels, part.batch))),
            classes=_filled(part.predictions.labels, part.batch),
        )
        return np.asarray(found)[: len(part.indices)]

    # --- Images ----------------------------------------------------------------------------------

    def _seen(self, sources: Sequence[Source], chunk: int) -> Iterator[np.ndarray | str]:
        """Every image as it is evaluated, or why it cannot be."""

        def see(i: int) -> list[np.ndarray | str]:
            return [self._see(sources[k]) for k in range(i, min(i + chunk, len(sources)))]

        chunks = read_ahead(lambda i: see(i * chunk), 0, math.ceil(len(sources) / chunk))
        return itertools.chain.from_iterable(chunks)

    def _see(self, source: Source) -> np.ndarray | str:
        data, intensity = self.run.config.data, self.run.intensity
        if isinstance(source, (str, os.PathLike)):
            try:
                source = Path(source).read_bytes()
            except OSError as error:
                return error.strerror or str(error)
        try:
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
                "data.intensity_range='dataset'): they become black or white. Others are not told",
                low,
                high,
                samples.listed(self.run.intensity),
            )
        self._warned_of_range = True

    # --- Batches ---------------------------------------------------------------------------------

    def _rounds(self, wanted: int | str) -> Sequence[int]:
        if wanted == "all":
            return self.run.rounds
        if not isinstance(wanted, int):
            raise RunError(f"The round is {wanted!r}; it must be a round's number or 'all'.")
        self.run.require_round(wanted)
        return [wanted]

    def _limits(self) -> Iterator[tuple[str, list[str]]]:
        """Each limit that acted on the calibration, and on that of which classifiers."""
        told = [pair for ensemble in self._ensembles for pair in ensemble.limits.items()]
        for sentence in dict.fromkeys(sentence for _, sentence in told):
            yield sentence, list(dict.fromkeys(name for name, each in told if each == sentence))

    def _placed(self, classifier: Classifier) -> Classifier:
        return classifier._replace(variables=sharding.replicate(classifier.variables, self._mesh))

    def _batch_size(self, count: int) -> int:
        """Of few images the next power of two, so that they need not wait for a whole batch."""
        enough = 1 << max(count - 1, 0).bit_length()
        return sharding.divisible(min(enough, self.batch), self._mesh)

    def _start(
        self, taken: Sequence[tuple[int, np.ndarray | str]], size: int
    ) -> Callable[[], Part]:
        """Hands a batch to the devices; what is returned waits for them."""
        unreadable = {index: seen for index, seen in taken if isinstance(seen, str)}
        readable = [(index, seen) for index, seen in taken if not isinstance(seen, str)]
        indices = np.array([index for index, _ in readable], np.int64)
        if not readable:
            return lambda: Part(indices, self._no_pixels(), self._joined([]), unreadable, size)
        pixels = np.stack([seen for _, seen in readable])
        filled = _filled(pixels, size)
        running = {
            name: [_program(x.model, self._mesh)(x.variables, filled) for x in classifiers]
            for name, classifiers in self._classifiers.items()
        }
        count = len(pixels)
        return lambda: Part(indices, pixels, self._finish(running, count), unreadable, size)

    def _finish(self, running: dict[str, list[jax.Array]], count: int) -> Predictions:
        found = {name: [np.asarray(x)[:count] for x in each] for name, each in running.items()}
        for name, each in found.items():
            for probabilities, classifier in zip(each, self._classifiers[name], strict=True):
                if not np.isfinite(probabilities).all():
                    reason = "what its network says is no finite number"
                    raise DamagedFileError(classifier.weights, reason)
        rounds = [
            ensemble.apply({name: each[k] for name, each in found.items()},
                           calibrated=self.calibrated)
            for k, ensemble in enumerate(self._ensembles)
        ]  # fmt: skip
        return self._predictions({n: np.mean([r[n] for r in rounds], axis=0) for n in rounds[0]})

    def _predictions(self, probabilities: dict[str, np.ndarray]) -> Predictions:
        *_, decisive = probabilities.values()
        return Predictions(self.classes, probabilities, decisive.argmax(axis=1))

    def _joined(self, parts: Sequence[Predictions]) -> Predictions:
        names = [*self._classifiers, *(["ensemble"] if len(self._classifiers) > 1 else [])]
        nothing = np.zeros((0, len(self.classes)))
        return self._predictions(
            {
                name: np.concatenate([p.probabilities[name] for p in parts] or [nothing])
                for name in names
            }
        )

    def _no_pixels(self) -> np.ndarray:
        data = self.run.config.data
        return np.zeros((0, data.image_size, data.image_size, 1 if data.color == "grey" else 3),
                        np.uint8)  # fmt: skip


@functools.cache
def _program(model: models.Model, mesh: Mesh) -> Callable[[Any, np.ndarray], jax.Array]:
    """Compiled once for all branches and rounds of a model."""

    @platform.jit
    def program(variables, pixels):
        split = sharding.split_batch(pixels, mesh)
        return sharding.gather(finetune.class_probabilities(variables, split, model=model), mesh)

    return program


def _filled(array: np.ndarray, size: int) -> np.ndarray:
    """An array of that length; its first row stands in for what is missing."""
    return array[np.where(np.arange(size) < len(array), np.arange(size), 0)]


def _sources(given: Any) -> list[Source]:
    """One image a place.

    Raises:
        UnreadableImageError: something is none.
    """
    if isinstance(given, (str, os.PathLike)) and os.path.isdir(given):
        raise UnreadableImageError(
            f"{os.fspath(given)} is a folder; egmae_jax.data.datasets.folders.find_given("
            "[Path(folder)]) gives its images"
        )
    if isinstance(given, (str, os.PathLike, bytes, PIL.Image.Image)):
        return [given]
    if hasattr(given, "__array__"):  # NumPy's, JAX's, PyTorch's
        return _arrays(np.asarray(given))
    try:
        several = list(given)
    except TypeError:
        raise UnreadableImageError(
            f"a {type(given).__name__} is no image; paths, Pillow's images and uint8 arrays are"
        ) from None
    return [source for one in several for source in _sources(one)]


def _arrays(array: np.ndarray) -> list[Source]:
    found = f"an array is {array.dtype} {list(array.shape)}"
    if array.dtype != np.uint8:
        hint = ""
        if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
            hint = "; of values from 0 to 1, np.rint(255 * x).astype(np.uint8) makes them"
        raise UnreadableImageError(f"{found}; {_EXPECTED}{hint}")
    if array.ndim == 2:
        array = array[None, :, :, None]
    elif array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape[1:]:
        raise UnreadableImageError(f"{found}; {_EXPECTED}")
    return list(array)
