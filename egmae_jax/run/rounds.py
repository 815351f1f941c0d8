"""Which images every round trains, validates and tests on, and the images themselves."""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from egmae_jax.core import memory, sharding
from egmae_jax.core.errors import shorten_list
from egmae_jax.core.files import RESTORE, DamagedFileError
from egmae_jax.data import pipeline, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.data.pipeline import Evaluation, HostStore, Images, Order, Resident, Stream, View
from egmae_jax.data.prepare import Prepared
from egmae_jax.run.workdir import Paths

logger = logging.getLogger(__name__)


class RoundData:
    """The prepared images, split for each round.

    With rounds.kind='seeds' all rounds share one split, in splits.json of the workdir; with 'folds'
    each has its own, in round_<i>/splits.json. A run that has begun keeps its split: the images it
    names must be the very ones at hand.
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
        # Of this object, so that its images go when it does. All branches and seeds use the same
        # ones; of training sets one at a time is kept on the devices.
        self._stays_on_device = functools.lru_cache(self._decide_residence)
        self._resident: tuple[tuple[int, tuple[str, ...]], Images] | None = None
        self._evaluation = functools.lru_cache(maxsize=2)(self._load_evaluation)
        if config.data.protocol == "official" and not begun:
            splits.require_official(prepared.official.tolist())
        elif self.protocol != config.data.protocol:
            logger.warning(
                "data.protocol=official: the data set has no part of its own, so that this run, "
                "begun by an older version, goes on with its split by groups"
            )
        self._parts = []  # int [N] for each split: which part an image is in
        for index in range(config.rounds.count if paths.folds else 1):
            path = paths.splits(index)
            parts = self._split(index)
            if begun and not path.exists():
                raise DamagedFileError(path, "it is missing", RESTORE)
            if begun:
                parts = _saved_parts(path, prepared, parts == splits.LEFT_OUT)
            elif sharding.is_primary():
                labels = [prepared.classes[label] for label in prepared.labels]
                splits.write(path, prepared.files, labels, parts, prepared.groups, prepared.sha256)
            self._parts.append(parts)

    def split_of(self, round_index: int) -> int:
        """The index of the split a round uses; rounds with the same split share pre-training."""
        return round_index if len(self._parts) > 1 else 0

    @property
    def num_splits(self) -> int:
        """How many different splits, and so pre-trainings, there are."""
        return len(self._parts)

    def indices(self, round_index: int, *names: str) -> np.ndarray:
        """The images of some of PARTS in a round, as sorted indices into `prepared`."""
        parts = self._parts[self.split_of(round_index)]
        return np.flatnonzero(np.isin(parts, [splits.PARTS.index(name) for name in names]))

    @property
    def protocol(self) -> str:
        """The split protocol; an old run called 'official' what is 'grouped' without such parts."""
        protocol = self._config.data.protocol
        has_parts = self.prepared.held_out.any()
        return "grouped" if protocol == "official" and not has_parts else protocol

    @property
    def made_parts(self) -> tuple[str, ...]:
        """The parts that protocol 'official' took from the train part, the data set having none."""
        official = self.protocol == "official"
        return splits.made_parts(self.prepared.official) if official else ()

    @property
    def num_left_out(self) -> int:
        """How many images are in no part of the first round: copies, conflicts, leaks."""
        return sum(self.left_out.values())

    @functools.cached_property
    def left_out(self) -> dict[str, int]:
        """{reason: number of images} of those in no part of the first round, whatever the reason.

        An image that several reasons hold of counts with the first of them.
        """
        out = self._parts[0] == splits.LEFT_OUT
        conflict, excluded = self._excluded()
        return {
            "near-duplicates with different labels": int((out & conflict).sum()),
            "identical copies": int((out & excluded & ~conflict).sum()),
            "that would leak into validation or test": int((out & ~excluded).sum()),
        }

    @property
    def account(self) -> str:
        """Where all the images that were found have gone; see `splits.account`."""
        account = splits.account(
            {name: len(self.indices(0, name)) for name in splits.PARTS},
            self.left_out,
            len(self.prepared.skipped),
            self.prepared.other_classes,
        )
        return f"{account} (in round 0)" if self.num_splits > 1 else account

    def counts(self, round_index: int) -> dict[str, dict[str, int]]:
        """{split: {class: number of images}} of a round."""
        classes = self.prepared.classes
        return {
            split: {
                name: int((self.prepared.labels[self.indices(round_index, split)] == label).sum())
                for label, name in enumerate(classes)
            }
            for split in splits.PARTS
        }

    def feed(
        self, round_index: int, names: tuple[str, ...], order: Order, *, total_steps: int
    ) -> Resident | Stream:
        """What feeds training on some splits: the resident images, or a stream of files."""
        split = self.split_of(round_index)
        indices = self.indices(split, *names)
        view = self._training_view(split, names)
        if not self._stays_on_device(len(indices), view.nbytes(len(indices))):
            return Stream(view, indices, order, total_steps, self._mesh, self._store)
        return Resident(self._resident_images(split, names), order)

    def evaluation(self, round_index: int, name: str) -> Evaluation:
        """One split as it is evaluated."""
        return self._evaluation(self.split_of(round_index), name)

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        """Some of `prepared`'s images as they are evaluated, on the host, [N, H, W, 3 or 1]."""
        return self._evaluation_view().load(indices).pixels

    def calibration(self, round_index: int, count: int) -> Evaluation:
        """Some training images, drawn by the split's seed, as they would be evaluated.

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
            else f"streamed, {self._host_bytes / 1e9:.3g} GB kept in memory",
        )
        return resident

    def _training_view(self, split: int, names: tuple[str, ...]) -> View:
        data = self._config.data
        return pipeline.training_view(
            self.prepared,
            self.indices(split, *names),
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
            self._resident = None  # first, to make room
            view = self._training_view(split, names)
            images = pipeline.load(view, self.indices(split, *names))
            self._resident = key, sharding.replicate(images, self._mesh)
        return self._resident[1]

    def _load_evaluation(self, split: int, name: str) -> Evaluation:
        view = self._evaluation_view()
        indices = self.indices(split, name)
        resident = self._stays_on_device(len(indices), view.nbytes(len(indices)))
        return Evaluation(view, indices, self._mesh, resident=resident, store=self._store)

    def _excluded(self) -> tuple[np.ndarray, np.ndarray]:
        """Which images are left out as conflicts, and which as these or as copies: bool [N]."""
        data, config = self.prepared, self._config.data
        conflict, either = (
            splits.left_out(
                data.labels,
                data.pairs,
                data.pixel_hashes,
                data.official,
                on_conflict=config.on_conflict,
                deduplicate=deduplicate,
            )
            for deduplicate in (False, config.deduplicate)
        )
        return conflict, either

    def _split(self, index: int) -> np.ndarray:
        """The part of every image: indices into PARTS, or LEFT_OUT."""
        _, excluded = self._excluded()
        for label, name in enumerate(self.prepared.classes):
            self._require_images(label, name, excluded)
        try:
            return self._split_of(index, np.flatnonzero(~excluded))
        except DataError as error:
            before, skipped = "", self.prepared.skipped
            if excluded.any():
                before += (
                    f" Before, {excluded.sum()} images were left out as copies or as "
                    "near-duplicates with different labels (data.deduplicate, data.on_conflict)."
                )
            if skipped:
                before += f" Not read could be {len(skipped)} images: {shorten_list(skipped)}."
            raise DataError(f"{error}{before}") from None

    def _require_images(self, label: int, name: str, excluded: np.ndarray) -> None:
        """Raises DataError where a class has no image left, and says why."""
        data = self.prepared
        of_class = data.labels == label
        if not of_class.any():
            raise DataError(
                f"No image of the class {name!r} can be read; unreadable are "
                f"{shorten_list(data.skipped)}. Mend them, or leave the class out by "
                "--config.data.classes."
            )
        if excluded[of_class].all():
            raise DataError(
                f"All {of_class.sum()} images of the class {name!r} are left out, as copies or as "
                "near-duplicates with different labels (data.deduplicate, data.on_conflict)."
            )

    def _split_of(self, index: int, kept: np.ndarray) -> np.ndarray:
        data, config = self.prepared, self._config.data
        parts = np.full(len(data.files), splits.LEFT_OUT)
        labels, groups = data.labels[kept], data.groups[kept]
        if config.protocol == "image_level":
            groups = kept
        if self._config.rounds.kind == "folds":
            parts[kept] = splits.fold_split(
                labels,
                groups,
                data.classes,
                fold=index,
                num_folds=self._config.rounds.count,
                validation_share=config.validation_share,
                seed=config.split_seed,
            )
        elif config.protocol == "official":
            parts[kept] = splits.official_split(
                data.official[kept],
                labels,
                groups,
                data.classes,
                validation_share=config.validation_share,
                test_share=config.test_share,
                drop_leaks=config.drop_leaks,
                seed=config.split_seed,
            )
        else:
            parts[kept] = splits.fixed_split(
                labels,
                groups,
                data.classes,
                validation_share=config.validation_share,
                test_share=config.test_share,
                seed=config.split_seed,
            )
        return parts


def _bytes(gigabytes: float, automatic: Callable[[], float]) -> float:
    """Bytes of so many gigabytes; -1 takes what there is room for."""
    return automatic() if gigabytes < 0 else gigabytes * 1e9


def _saved_parts(path: Path, data: Prepared, left_out: np.ndarray) -> np.ndarray:
    """The parts that splits.json holds, if its images are the ones at hand.

    Args:
        path: of splits.json.
        data: what is at hand.
        left_out: bool [N], the images that splits.json need not name.

    Raises:
        DataError: names files that were added, removed or changed since.
    """
    rows = {row["file"]: row for row in splits.read(path)}
    part_of = {file: splits.PARTS.index(row["split"]) for file, row in rows.items()}
    now = dict(zip(data.files, data.sha256, strict=True))
    changes = [f"removed: {file}" for file in rows if file not in now]
    changes += [
        f"added: {file}"
        for file, out in zip(data.files, left_out, strict=True)
        if file not in rows and not out
    ]
    changes += [
        f"changed: {file}" for file in rows if now.get(file, "") not in ("", rows[file]["sha256"])
    ]
    if changes:
        shown = "\n  ".join(changes[:10])
        raise DataError(
            f"The images are not those that {path} has split; {len(changes)} files differ:\n  "
            f"{shown}\nBring them back, or start in another --workdir."
        )
    return np.array([part_of.get(file, splits.LEFT_OUT) for file in data.files])
