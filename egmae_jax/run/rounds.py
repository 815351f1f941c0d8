"""The training, validation and test images of every round."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from egmae_jax.core import hosts, memory, sharding
from egmae_jax.data import label_share, pipeline, splits
from egmae_jax.data.pipeline import (
    Evaluation,
    HostStore,
    Images,
    Order,
    Resident,
    Stream,
    View,
)
from egmae_jax.data.prepare import ImageSet, Prepared
from egmae_jax.run import parts
from egmae_jax.run.config import split_indices
from egmae_jax.run.images import tta_view_settings, view_settings
from egmae_jax.run.unlabelled import Unlabelled
from egmae_jax.run.workdir import Paths

logger = logging.getLogger(__name__)
LABELLED = "labelled"  # see `RoundData.indices`


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
        unlabelled: Unlabelled | None = None,
    ):
        self.prepared = prepared
        self.unlabelled = unlabelled
        self._config = config
        self._mesh = mesh
        self._split_index = paths.split_index
        self._resident_bytes = _bytes(config.data.resident_gigabytes, memory.for_resident_images)
        self._host_bytes = _bytes(config.data.host_gigabytes, memory.for_decoded_images)
        self._store = HostStore(self._host_bytes)
        # These caches belong to the object, so that its images are freed with it. All branches and
        # seeds share the images; only one training set at a time is kept on the devices.
        self._stays_on_device = functools.lru_cache(self._decide_residence)
        self._resident: tuple[tuple[int, tuple[str, ...], bool], Images] | None = None
        self._evaluation = functools.lru_cache(maxsize=2)(self._load_evaluation)
        # Shared with the former unless test-time augmentation needs larger images.
        self._tta_evaluation = self._evaluation
        if tta_view_settings(config) != view_settings(config):
            self._tta_evaluation = functools.lru_cache(maxsize=2)(
                functools.partial(self._load_evaluation, tta=True)
            )
        self._labelled = functools.lru_cache(self._draw_labelled)
        self._parts = []  # part of each image, int [N], for each split
        for index in split_indices(config):
            path, part_of = paths.splits(index), parts.assign(prepared, config, fold=index)
            if begun:
                part_of = parts.read(path, prepared, part_of == splits.LEFT_OUT)
            elif hosts.is_primary():
                parts.write(path, prepared, part_of)
            self._parts.append(part_of)
            if unlabelled is not None:
                unlabelled.settle(paths.unlabelled(index), part_of, begun=begun)

    @property
    def num_splits(self) -> int:
        """Number of different splits, which is also the number of pre-trainings."""
        return len(self._parts)

    def indices(self, round_index: int, *names: str) -> np.ndarray:
        """Returns sorted indices into `prepared` of the images in the named parts of a round.

        The name 'labelled' stands for the training images whose labels are used: all, or those that
        finetune.label_share leaves.
        """
        if names == (LABELLED,):
            return self._labelled(round_index)
        part_of = self._parts[self._split_index(round_index)]
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

    def training_images(
        self, round_index: int, names: tuple[str, ...], *, unlabelled: bool = False
    ) -> tuple[ImageSet, np.ndarray]:
        """Returns a set of images, and the indices in it of those to train on.

        Args:
            round_index: index of the round.
            names: names of the parts to train on.
            unlabelled: whether to add the run's unlabelled images, if it has any.
        """
        indices = self.indices(round_index, *names)
        if not unlabelled or self.unlabelled is None:
            return self.prepared, indices
        used = self.unlabelled.used(self._split_index(round_index))
        return self.unlabelled.images, np.concatenate([indices, used])

    def feed(
        self,
        round_index: int,
        names: tuple[str, ...],
        order: Order,
        *,
        total_steps: int,
        unlabelled: bool = False,
    ) -> Resident | Stream:
        """Returns the source of training batches: images on the devices, or a stream of files."""
        split = self._split_index(round_index)
        unlabelled = unlabelled and self.unlabelled is not None
        _, indices = self.training_images(round_index, names, unlabelled=unlabelled)
        # Labelled images are taken from those of the whole part, which all rounds share.
        names = ("train",) if names == (LABELLED,) else names
        images, loaded = self.training_images(split, names, unlabelled=unlabelled)
        view = self._training_view(images, loaded)
        if not self._stays_on_device(len(loaded), view.nbytes(len(loaded))):
            return Stream(view, indices, order, total_steps, self._mesh, self._store)
        rows = np.searchsorted(loaded, indices) if len(indices) < len(loaded) else None
        resident = self._resident_images((split, names, unlabelled), view, loaded)
        return Resident(resident, order, rows)

    def evaluation(self, round_index: int, part: str) -> Evaluation:
        """Returns the images of one part of a round in the evaluation view."""
        return self._evaluation(self._split_index(round_index), part)

    def tta_evaluation(self, round_index: int, part: str) -> Evaluation:
        """Returns the images of one part of a round in the view for test-time augmentation."""
        return self._tta_evaluation(self._split_index(round_index), part)

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

    def labelled(self, round_index: int) -> dict[str, Any]:
        """Describes the training images of a round whose labels are used.

        Returns:
            {"images": their number, "of": number of training images, "groups": number of their
            groups, "by_class": {class: number of images}}.
        """
        indices = self.indices(round_index, LABELLED)
        classes, labels = self.prepared.classes, self.prepared.labels[indices]
        return {
            "images": len(indices),
            "of": len(self.indices(round_index, "train")),
            "groups": len(np.unique(self.prepared.groups[indices])),
            "by_class": dict(
                zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True)
            ),
        }

    def _draw_labelled(self, round_index: int) -> np.ndarray:
        train, share = self.indices(round_index, "train"), self._config.finetune.label_share
        if share == 1:
            return train
        images = self.prepared.labels[train], self.prepared.groups[train]
        seed = self._config.seed + round_index
        return train[label_share.draw(*images, self.prepared.classes, share=share, seed=seed)]

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

    def _training_view(self, images: ImageSet, indices: np.ndarray) -> View:
        data = self._config.data
        return pipeline.training_view(
            images,
            indices,
            color=data.color,
            resize=data.resize,
            store_size=data.store_size,
        )

    def _evaluation_view(self, *, tta: bool = False) -> View:
        settings = (tta_view_settings if tta else view_settings)(self._config)
        return pipeline.evaluation_view(self.prepared, color=self._config.data.color, **settings)

    def _resident_images(
        self, key: tuple[int, tuple[str, ...], bool], view: View, indices: np.ndarray
    ) -> Images:
        if self._resident is None or self._resident[0] != key:
            self._resident = None  # frees memory before loading
            self._resident = key, sharding.replicate(pipeline.load(view, indices), self._mesh)
        return self._resident[1]

    def _load_evaluation(self, split: int, part: str, *, tta: bool = False) -> Evaluation:
        view = self._evaluation_view(tta=tta)
        indices = self.indices(split, part)
        resident = self._stays_on_device(len(indices), view.nbytes(len(indices)))
        return Evaluation(view, indices, self._mesh, resident=resident, store=self._store)


def _bytes(gigabytes: float, automatic: Callable[[], float]) -> float:
    """Converts gigabytes to bytes; a negative number gives the automatic limit."""
    return automatic() if gigabytes < 0 else gigabytes * 1e9
