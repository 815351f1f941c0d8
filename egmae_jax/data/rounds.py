"""Which images every round trains, validates and tests on, and the images themselves."""

import functools
import logging
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from egmae_jax import sharding
from egmae_jax.data import pipeline, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.pipeline import Images
from egmae_jax.data.prepare import Prepared

logger = logging.getLogger(__name__)


class RoundData:
    """The prepared images, split for each round.

    With rounds.kind='seeds' all rounds share one split, in splits.json of the workdir; with 'folds'
    each has its own, in round_<i>/splits.json. A run that is resumed keeps its split: the images
    it names must be the very ones at hand.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: FrozenConfigDict,
        workdir: Path,
        mesh: Mesh,
        *,
        resuming: bool,
    ):
        self.prepared = prepared
        self._config = config
        self._mesh = mesh
        self._parts = []  # int [N] for each split: which part an image is in
        for index in range(config.rounds.count if config.rounds.kind == "folds" else 1):
            folder = workdir / f"round_{index}" if config.rounds.kind == "folds" else workdir
            path = folder / "splits.json"
            saved = _saved_parts(path, prepared) if resuming and path.exists() else None
            self._parts.append(self._split(index, path) if saved is None else saved)

    def split_of(self, round_index: int) -> int:
        """The index of the split a round uses; rounds with the same split share pre-training."""
        return round_index if len(self._parts) > 1 else 0

    @property
    def num_splits(self) -> int:
        """How many different splits, and so pre-trainings, there are."""
        return len(self._parts)

    def indices(self, round_index: int, *names: str) -> np.ndarray:
        """The images of some of SPLITS in a round, as sorted indices into `prepared`."""
        parts = self._parts[self.split_of(round_index)]
        return np.flatnonzero(np.isin(parts, [splits.SPLITS.index(name) for name in names]))

    def counts(self, round_index: int) -> dict[str, dict[str, int]]:
        """{split: {class: number of images}} of a round."""
        classes = self.prepared.classes
        return {
            split: {
                name: int((self.prepared.labels[self.indices(round_index, split)] == label).sum())
                for label, name in enumerate(classes)
            }
            for split in splits.SPLITS
        }

    def training_images(self, round_index: int, *names: str) -> Images:
        """The images of some splits on the devices, as random crops want them."""
        return self._training_images(self.split_of(round_index), names)

    def evaluation_images(self, round_index: int, name: str) -> Images:
        """The images of one split on the devices, as evaluation wants them."""
        return self._evaluation_images(self.split_of(round_index), name)

    # Both branches and all seeds use the same images; two sets at a time are kept on the devices.
    @functools.lru_cache(maxsize=2)  # noqa: B019 (lives as long as the process)
    def _training_images(self, split: int, names: tuple[str, ...]) -> Images:
        data = self._config.data
        images = pipeline.load_training(
            self.prepared,
            self.indices(split, *names),
            resize=data.resize,
            store_size=data.store_size,
        )
        megabytes = images.pixels.nbytes / 1e6
        logger.info("%d training images on the device, %.0f MB", len(images), megabytes)
        return sharding.replicate(images, self._mesh)

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _evaluation_images(self, split: int, name: str) -> Images:
        data = self._config.data
        images = pipeline.load_evaluation(
            self.prepared,
            self.indices(split, name),
            resize=data.resize,
            image_size=data.image_size,
        )
        return sharding.replicate(images, self._mesh)

    def _split(self, index: int, path: Path) -> np.ndarray:
        """Splits the images anew and writes splits.json."""
        data, config = self.prepared, self._config
        grouped = config.data.protocol == "grouped"
        groups = data.groups if grouped else np.arange(len(data.files))
        if config.rounds.kind == "folds":
            parts = splits.fold_split(
                data.labels,
                groups,
                data.classes,
                fold=index,
                num_folds=config.rounds.count,
                validation_share=config.data.validation_share,
                seed=config.data.split_seed,
            )
        else:
            parts = splits.fixed_split(
                data.labels,
                groups,
                data.classes,
                validation_share=config.data.validation_share,
                test_share=config.data.test_share,
                seed=config.data.split_seed,
            )
        labels = [data.classes[label] for label in data.labels]
        splits.write(path, data.files, labels, parts, data.groups, data.sha256)
        return parts


def _saved_parts(path: Path, data: Prepared) -> np.ndarray:
    """The parts that splits.json holds, if its images are the ones at hand.

    Raises:
        DataError: names files that were added, removed or changed since.
    """
    rows = {row["file"]: row for row in splits.read(path)}
    now = dict(zip(data.files, data.sha256, strict=True))
    changes = [f"removed: {file}" for file in rows if file not in now]
    changes += [f"added: {file}" for file in now if file not in rows]
    changes += [
        f"changed: {file}" for file in rows if now.get(file, "") not in ("", rows[file]["sha256"])
    ]
    if changes:
        shown = "\n  ".join(changes[:10])
        raise DataError(
            f"The images are not those that {path} has split; {len(changes)} files differ:\n  "
            f"{shown}\nBring them back, or start in another --workdir."
        )
    return np.array([splits.SPLITS.index(rows[file]["split"]) for file in data.files])
