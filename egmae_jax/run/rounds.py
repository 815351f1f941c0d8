"""The training, validation and test images of every round."""

import functools
import logging
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from egmae_jax.core import hosts, memory, sharding
from egmae_jax.data import pipeline, splits
from egmae_jax.data.pipeline import Evaluation, HostStore, Images, Order, Resident, Stream, View
from egmae_jax.data.prepare import Prepared
from egmae_jax.run import parts
from egmae_jax.run.workdir import Paths

logger = logging.getLogger(__name__)


class RoundData:
    """The prepared images and their split into parts for each round.

    With rounds.kind='seeds' all rounds share one split, in splits.json of the workdir. With 'folds'
    each round has its own split, in round_<i>/splits.json. A run that has begun keeps its splits,
    and their images must be unchanged.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: FrozenConfigDict,
        paths: Paths,
        mesh: Mesh,
        *,
        begun: bool,
    ):
        self.prepared = prepared
        self._config = config
        self._mesh = mesh
        self._resident_bytes = _bytes(config.data.resident_gigabytes, memory.for_resident_images)
        self._host_bytes = _bytes(config.data.host_gigabytes, memory.for_decoded_images)
        self._store = HostStore(self._host_bytes)
        # These caches belong to the object, so that its images are freed with it. All branches and
        # seeds share the images; only one training set at a time is kept on the devices.
        self._stays_on_device = functools.lru_cache(self._decide_residence)
        self._resident: tuple[tuple[int, tuple[str, ...]], Images] | None = None
        self._evaluation = functools.lru_cache(maxsize=2)(self._load_evaluation)
        self._parts = []  # part of each image, int [N], for each split
        for index in range(config.rounds.count if paths.folds else 1):
            path, part_of = paths.splits(index), parts.assign(prepared, config, fold=index)
            if begun:
                part_of = parts.read(path, prepared, part_of == splits.LEFT_OUT)
            elif hosts.is_primary():
                parts.write(path, prepared, part_of)
            self._parts.append(part_of)

    def split_index(self, round_index: int) -> int:
        """Returns the index of a round's split; rounds with the same split share pre-training."""
        return round_index if len(self._parts) > 1 else 0

    @property
    def num_splits(self) -> int:
        """Number of different splits, which is also the number of pre-trainings."""
        return len(self._parts)

    def indices(self, round_index: int, *names: str) -> np.ndarray:
        """Returns sorted indices into `prepared` of the images in the named parts of a round."""
        part_of = self._parts[self.split_index(round_index)]
        return np.flatnonzero(np.isin(part_of, [splits.PARTS.index(name) for name in names]))

    @property
    def made_parts(self) -> tuple[str, ...]:
        """Parts that are taken from the official train part, because the data set lacks them."""
        official = self._config.data.protocol == "official"
        return splits.made_parts(self.prepared.official) if official else ()

    @property
    def left_out(self) -> dict[str, int]:
        """Number of images in no part of the first round, by the first reason that applies."""
        out = self._parts[0] == splits.LEFT_OUT
        conflict, excluded = parts.excluded(self.prepared, self._config)
        return {
            "near-duplicates with different labels": int((out & conflict).sum()),
            "identical copies": int((out & excluded & ~conflict).sum()),
            "that would leak into validation or test": int((out & ~excluded).sum()),
        }

    @property
    def account(self) -> str:
        """Sentence that accounts for all images in the first round, see `splits.account`."""
        account = splits.account(
            {name: len(self.indices(0, name)) for name in splits.PARTS},
            self.left_out,
            len(self.prepared.skipped),
            self.prepared.other_classes,
        )
        return f"{account} (in round 0)" if self.num_splits > 1 else account

    def counts(self, round_index: int) -> dict[str, dict[str, int]]:
        """Counts the images of each class in each part of a round: {part: {class: count}}."""
        counts = {}
        for part in splits.PARTS:
            labels = self.prepared.labels[self.indices(round_index, part)]
            numbers = np.bincount(labels, minlength=len(self.prepared.classes)).tolist()
            counts[part] = dict(zip(self.prepared.classes, numbers, strict=True))
        return counts

    def feed(
        self, round_index: int, names: tuple[str, ...], order: Order, *, total_steps: int
    ) -> Resident | Stream:
        """Returns the source of training batches: images on the devices, or a stream of files."""
        split = self.split_index(round_index)
        indices = self.indices(split, *names)
        view = self._training_view(indices)
        if not self._stays_on_device(len(indices), view.nbytes(len(indices))):
            return Stream(view, indices, order, total_steps, self._mesh, self._store)
        return Resident(self._resident_images(split, names), order)

    def evaluation(self, round_index: int, part: str) -> Evaluation:
        """Returns the images of one part of a round in the evaluation view."""
        return self._evaluation(self.split_index(round_index), part)

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Returns images of `prepared` in the evaluation view, uint8 [N, H, W, 3 or 1]."""
        return self._evaluation_view().load(indices).pixels

    def calibration(self, round_index: int, count: int) -> Evaluation:
        """Returns `count` random training images in the evaluation view, drawn by split_seed.

        Every host has all of them, on one device.
        """
        indices = self.indices(round_index, "train")
        drawn = np.random.default_rng(self._config.data.split_seed).permutation(indices)[:count]
        return Evaluation(
            self._evaluation_view(),
            np.sort(drawn),
            sharding.local_mesh(),
            resident=False,
            store=self._store,
        )

    def _decide_residence(self, count: int, nbytes: int) -> bool:
        data = self._config.data
        fits = nbytes <= self._resident_bytes
        resident = fits if data.feeding == "auto" else data.feeding == "resident"
        logger.info(
            "%d images, %.3f GB decoded, %s (%s): %s",
            count,
            nbytes / 1e9,
            f"of at most {self._resident_bytes / 1e9:.3g} on a device"
            if data.feeding == "auto"
            else f"data.feeding={data.feeding}",
            f"{memory.SHARE:.0%} of its memory"
            if data.resident_gigabytes < 0
            else "data.resident_gigabytes",
            "kept on the device"
            if resident
            else f"streamed, with up to {self._host_bytes / 1e9:.3g} GB kept in host memory",
        )
        return resident

    def _training_view(self, indices: np.ndarray) -> View:
        data = self._config.data
        return pipeline.training_view(
            self.prepared,
            indices,
            color=data.color,
            resize=data.resize,
            store_size=data.store_size,
        )

    def _evaluation_view(self) -> View:
        data = self._config.data
        return pipeline.evaluation_view(
            self.prepared,
            color=data.color,
            resize=data.resize,
            image_size=data.image_size,
            resized=self._config.evaluation.resize,
        )

    def _resident_images(self, split: int, names: tuple[str, ...]) -> Images:
        key = (split, names)
        if self._resident is None or self._resident[0] != key:
            self._resident = None  # frees memory before loading
            indices = self.indices(split, *names)
            images = pipeline.load(self._training_view(indices), indices)
            self._resident = key, sharding.replicate(images, self._mesh)
        return self._resident[1]

    def _load_evaluation(self, split: int, part: str) -> Evaluation:
        view = self._evaluation_view()
        indices = self.indices(split, part)
        resident = self._stays_on_device(len(indices), view.nbytes(len(indices)))
        return Evaluation(view, indices, self._mesh, resident=resident, store=self._store)


def _bytes(gigabytes: float, automatic: Callable[[], float]) -> float:
    """Converts gigabytes to bytes; a negative number gives the automatic limit."""
    return automatic() if gigabytes < 0 else gigabytes * 1e9
