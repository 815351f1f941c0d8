"""From a folder of images to records: every file is read, checked and described once.

TFDS writes the records as array_record, with images as bytes: the one way it has that needs no
TensorFlow. Of JPEG and WebP files they are the file's; of other formats, which take long to decode,
the pixels, unless those are many times larger than the file. What splits and audits are made from
(hashes, grey thumbnails, sizes) lies beside them in index.npz, so nothing is decoded twice and no
start reads all the images. Both are kept in a cache folder named after the files' names, sizes and
times; when a file changes, they are written anew.

Files are read a few at a time and written at once, so memory does not grow with the data set but
for its index, two kilobytes an image, and the search for duplicates, six. A set appears when it is
whole; of two processes, one writes it.
"""

import collections
import contextlib
import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import threading
import unicodedata
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar

import filelock
import numpy as np
import tensorflow_datasets as tfds

from egmae_jax.core.errors import MissingExtraError, some_of
from egmae_jax.core.files import (
    AccessError,
    DamagedFileError,
    StorageError,
    read_npz,
    storage_errors_told,
)
from egmae_jax.data import (
    datasets,
    dicom,
    duplicates,
    formats,
    images,
    lookalikes,
    pixels,
    samples,
)
from egmae_jax.data.datasets import DataError, Dataset, ImageFile
from egmae_jax.data.pixels import PixelStatistics
from egmae_jax.data.samples import IntensityRange, Rule
from egmae_jax.data.threads import read_ahead

_VERSION = "9.0.0"  # of the records; raise it when what they hold changes
_INDEX = "index.npz"
_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {  # of the index: kind of values, shape of one
    **dict.fromkeys(("path", "mode", "sha256", "pixel_hash", "digest", "skipped"), ("U", ())),
    **{"size": ("i", (2,)), "descriptor": ("u", (duplicates.DESCRIPTOR_SIZE,) * 2)},
    **{"packed": ("b", ()), "fast": ("b", ())},
    **{"types": ("U", ()), "bits": ("i", ()), "stored": ("f", (2,))},
    **{"levels": ("i", ()), "greys": ("i", (2,))},
    "intensity": ("U", ()),  # one: data.intensity_range and the range of the data set, as JSON
}
_WHOLE = ("skipped", "intensity")  # columns that are not of each image
_SPLIT = "images"  # TFDS's name for all of them
_SHARD = 10_000  # images of a file
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories
_PATTERN_SECONDS = 10  # that group_pattern may take; honest ones take milliseconds
# Pixels are packed if they are not larger than this, and than so many times the file. It bounds the
# memory while preparing, and the records.
_PACKED_BYTES, _PACKED_TIMES = 16e6, 8
_CHUNK, _CHUNK_BYTES = 16, 1e6  # files that a thread reads at a time, at most
# Files of a kind that are decoded by OpenCV too, to see if it gives the same pixels: the first ones
# and one in so many of the others.
_TRIED, _TRIED_EVERY = 8, 64

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set, described and at hand. Index i is the i-th file in sorted order.

    Attributes:
        name: of the data set, as in the config.
        title: of the data set, as people call it.
        citation: of the data set; empty where there is none.
        classes: names, sorted; a label is an index into them.
        files: paths relative to the data folder.
        labels: int [N].
        groups: int [N]; images of one patient or lesion and near-duplicates share a number.
        pairs: int [P, 2]; the near-duplicates among them, i < j.
        duplicate_groups: how many groups of near-duplicates there are.
        official: str [N]; the data set's own split of an image, '' where it has none.
        sizes: int [N, 2], height and width.
        modes: str [N], how the file stores its pixels: 'L', 'RGB', 'I;16', 'DICOM', ...
        descriptors: uint8 [N, 32, 32], grey thumbnails.
        pixel_hashes: str [N]; identical for identical pixels.
        sha256: of each file's bytes.
        pixels: what their values are like, stored and decoded.
        intensity: which values of files with more than 8 bits became black and white.
        skipped: files left out because they cannot be read, each with the reason.
        records: random access to the images; `records.pixels(i)` are the i-th file's.
        other_classes: {class: number of files} of the classes that `data.classes` does not name.
    """

    name: str
    title: str
    citation: str
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    pairs: np.ndarray
    duplicate_groups: int
    official: np.ndarray
    sizes: np.ndarray
    modes: np.ndarray
    descriptors: np.ndarray
    pixel_hashes: np.ndarray
    sha256: tuple[str, ...]
    pixels: PixelStatistics
    intensity: IntensityRange
    skipped: tuple[str, ...]
    records: "Records"
    other_classes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_found(self) -> int:
        """How many images the folder holds: described, unreadable, and of classes not asked for."""
        return len(self.files) + len(self.skipped) + sum(self.other_classes.values())

    @property
    def held_out(self) -> np.ndarray:
        """bool [N]: in the data set's own validation or test part."""
        return np.isin(self.official, ("validation", "test"))


@dataclasses.dataclass(frozen=True)
class Listing:
    """The labelled files of a data set, as its folder or table lists them: no image is read yet.

    Attributes:
        dataset: whose files they are.
        folder: the data folder, which the files' paths are relative to.
        images: files of the classes that were asked for, sorted; images of one group share its name
            even where the data set spells it in several ways.
        classes: names of these classes, sorted.
        other_classes: {class: number of files} of the classes that `data.classes` does not name.
    """

    dataset: Dataset
    folder: Path
    images: list[ImageFile]
    classes: tuple[str, ...]
    other_classes: dict[str, int]

    @property
    def has_held_out(self) -> bool:
        """Whether the data set has a validation or test part of its own."""
        return any(image.split in ("validation", "test") for image in self.images)


def prepare(
    name: str,
    folder: Path,
    cache: Path,
    *,
    on_error: str,
    near_duplicate_threshold: float,
    classes: Sequence[str] = (),
    group_pattern: str = "",
    intensity_range: Rule = "type",
) -> Prepared:
    """Lists and describes the data set `name` below `folder`; see `list_files` and `describe`."""
    return describe(
        list_files(name, folder, classes=classes, group_pattern=group_pattern),
        cache,
        on_error=on_error,
        near_duplicate_threshold=near_duplicate_threshold,
        intensity_range=intensity_range,
    )


def list_files(
    name: str, folder: Path, *, classes: Sequence[str] = (), group_pattern: str = ""
) -> Listing:
    """Lists the data set `name` below `folder`, which reads no image and takes seconds at most.

    Args:
        name: one of `datasets.names()`.
        folder: where the files are; generated if the data set knows how and nothing is there.
        classes: the ones to keep, in whatever case; all if empty.
        group_pattern: regular expression; files in whose names its groups match the same belong
            together, instead of what the data set itself says.

    Raises:
        DataError: the folder or a class is missing, a class is empty, classes look alike or stand
            for a missing value, a name holds control characters.
    """
    dataset = datasets.get(name)
    if dataset.make is not None:
        if not folder.exists():
            logger.info("Writing %s into %s", dataset.title, folder)
        with storage_errors_told(folder):
            dataset.make(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} (data.dir). {dataset.obtain}")
    try:
        with storage_errors_told(folder):
            images = dataset.list_images(folder)
    except (AccessError, StorageError) as error:
        raise DataError(f"{folder} cannot be listed (data.dir): {error}") from None
    _require_printable(images)
    kept = _choose_classes(images, classes, folder)
    other = collections.Counter(image.label for image in images if image.label not in kept)
    images = [image for image in images if image.label in kept]
    if group_pattern:
        images = _group_by_name(images, group_pattern)
    return Listing(dataset, folder, _join_groups(images), kept, dict(sorted(other.items())))


def describe(
    listing: Listing,
    cache: Path,
    *,
    on_error: str,
    near_duplicate_threshold: float,
    intensity_range: Rule = "type",
) -> Prepared:
    """Reads and describes the images of a listing, from the cache where nothing has changed.

    Args:
        listing: of the files.
        cache: folder for the records.
        on_error: 'raise' stops at unreadable images, 'skip' leaves them out.
        near_duplicate_threshold: correlation above which two images are the same one.
        intensity_range: which values of files with more than 8 bits a value become black and
            white, as data.intensity_range says. 'dataset' reads such files twice.

    Raises:
        DataError: an image cannot be read, the records cannot be written.
        DamagedFileError: the cache is.
    """
    folder, listed, found = listing.folder, listing.images, listing.classes
    data_dir = _records_of(listing.dataset, folder, listed, cache, on_error, intensity_range)
    by_file = {image.file: image for image in listed}
    index = _read_index(data_dir / _INDEX, by_file)
    skipped = tuple(index["skipped"].tolist())
    if skipped and on_error == "raise":  # written where they were left out
        raise _unreadable(folder, skipped, len(listed))
    if skipped:
        logger.warning("%d unreadable images are left out: %s", len(skipped), some_of(skipped))

    records = Records(data_dir, index)
    intensity = _intensity(index)
    statistics = PixelStatistics(*(index[name] for name in PixelStatistics._fields))
    if odd := pixels.findings(index["path"].tolist(), statistics, intensity):
        logger.warning("%s", " ".join(f"{sentence}." for sentence in odd))
    pairs = duplicates.duplicate_pairs(
        index["descriptor"], index["pixel_hash"].tolist(), threshold=near_duplicate_threshold
    )
    count = len(records)
    near = duplicates.group_ids(count, pairs)
    readable = [by_file[file] for file in index["path"].tolist()]
    known = [image.group or None for image in readable]
    return Prepared(
        name=listing.dataset.name,
        title=listing.dataset.title,
        citation=listing.dataset.citation,
        classes=found,
        files=tuple(index["path"].tolist()),
        labels=np.array([found.index(image.label) for image in readable]),
        groups=duplicates.group_ids(count, pairs, known),
        pairs=pairs,
        duplicate_groups=int((np.bincount(near) > 1).sum()),
        official=np.array([image.split or "" for image in readable]),
        sizes=index["size"],
        modes=index["mode"],
        descriptors=index["descriptor"],
        pixel_hashes=index["pixel_hash"],
        sha256=tuple(index["sha256"].tolist()),
        pixels=statistics,
        intensity=intensity,
        skipped=skipped,
        records=records,
        other_classes=listing.other_classes,
    )


def _require_printable(listed: list[ImageFile]) -> None:
    """Names go to terminals, tables and figures, where control characters are commands.

    Raises:
        DataError: names the first that holds one.
    """
    for image in listed:
        for kind, name in (("file", image.file), ("class", image.label)):
            if name.isprintable():  # spaces other than the common one are not, and may stay
                continue
            if any(unicodedata.category(letter) in _CONTROL for letter in name):
                raise DataError(
                    f"The name of the {kind} {name!r} holds a line break or another control "
                    "character; rename it."
                )


def _choose_classes(
    images: Sequence[ImageFile], chosen: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """The names of the classes to keep, sorted.

    Raises:
        DataError: classes that are kept look alike or stand for a missing value; a class that is
            chosen is not there.
    """
    counts = collections.Counter(image.label for image in images)
    first = {image.label: image.file for image in reversed(images)}
    wanted = {lookalikes.key(name) for name in chosen}
    alike = [
        names
        for names in lookalikes.groups(counts)
        if not chosen or lookalikes.key(names[0]) in wanted
    ]
    if alike:
        each = [
            f"{lookalikes.shown(names)}"
            f" ({', '.join(f'{counts[name]} images, such as {first[name]}' for name in names)})"
            for names in alike
        ]
        raise DataError(
            f"{folder} has classes whose names look alike: {some_of(each)}. Write those alike that "
            "are one class, and give the others names that differ by more."
        )
    by_key = {lookalikes.key(name): name for name in counts}
    unknown = sorted(name for name in chosen if lookalikes.key(name) not in by_key)
    if unknown:
        near = [difflib.get_close_matches(name, counts, n=1) for name in unknown]
        hints = [f" Is {names[0]!r} meant?" for names in near if names]
        raise DataError(
            f"data.classes names {', '.join(unknown)}; {folder} has {', '.join(sorted(counts))}."
            + "".join(hints)
        )
    kept = [by_key[lookalikes.key(name)] for name in chosen] or list(counts)
    if twice := sorted({name for name in kept if kept.count(name) > 1}):
        raise DataError(f"data.classes names the class {twice[0]!r} twice.")
    if taken := [f"{name!r} for {a!r}" for a, name in zip(chosen, kept, strict=False) if a != name]:
        logger.info("data.classes: taken %s", ", ".join(taken))
    for name in counts:
        if not lookalikes.key(name):
            raise DataError(
                f"The name of a class, {name!a}, holds no visible letter ({counts[name]} images, "
                f"such as {first[name]}); rename it."
            )
        if lookalikes.is_missing(name) and not chosen:
            raise DataError(
                f"{counts[name]} images have the label {name!r}, which stands for a missing one, "
                f"such as {first[name]}. Label them or take them out; if it is a class, name all "
                "that there are by --config.data.classes."
            )
    return tuple(sorted(kept))


def _join_groups(images: list[ImageFile]) -> list[ImageFile]:
    """The images, with one name for groups whose names look alike: they may be one patient."""
    alike = lookalikes.groups({image.group for image in images if image.group})
    if not alike:
        return images
    logger.warning(
        "%d groups (patients, lesions) are spelled in several ways, and all images of each are "
        "kept together: %s. If they are different ones, give them names that differ by more.",
        len(alike),
        some_of([lookalikes.shown(names) for names in alike]),
    )
    name_of: dict[str | None, str] = {name: names[0] for names in alike for name in names}
    return [image._replace(group=name_of.get(image.group, image.group)) for image in images]


def _group_by_name(listed: list[ImageFile], pattern: str) -> list[ImageFile]:
    """The images with the groups that their names tell.

    Raises:
        DataError: no name tells any, or the pattern is none.
    """
    try:
        if not re.compile(pattern).groups:
            raise DataError(f"data.group_pattern {pattern!r} has no (group).")
    except re.error as error:
        raise DataError(f"data.group_pattern {pattern!r}: {error}.") from None
    with _time_limit(
        _PATTERN_SECONDS,
        f"data.group_pattern {pattern!r} takes more than {_PATTERN_SECONDS} seconds to match the "
        f"names of {len(listed)} files, such as {listed[0].file}: nested repetitions such as "
        "(a+)+ can take for ever. Write it without.",
    ):
        matches = [re.search(pattern, PurePosixPath(image.file).name) for image in listed]
    # An empty match tells nobody from anybody.
    names = [match.groups() if match and any(match.groups()) else None for match in matches]
    groups = set(names) - {None}
    if not groups:
        what = "only empty text in the names" if any(matches) else "the name of none"
        raise DataError(
            f"data.group_pattern {pattern!r} matches {what} of {len(listed)} files, such as "
            f"{listed[0].file}."
        )
    without = [image.file for image, name in zip(listed, names, strict=True) if name is None]
    logger.info("data.group_pattern finds %d groups", len(groups))
    if without:
        logger.warning(
            "data.group_pattern finds nothing, or an empty match, in %d of %d names: each of these "
            "images counts as its own group unless the data set tells another: %s",
            len(without),
            len(listed),
            some_of(without),
        )
    if len(groups) == len(listed) - len(without):
        logger.warning(
            "data.group_pattern finds as many groups as names, such as %r in %s: no two images are "
            "kept together by it",
            next(name for name in names if name is not None),
            next(image.file for image, name in zip(listed, names, strict=True) if name is not None),
        )
    return [
        image if name is None else image._replace(group=json.dumps(name))
        for image, name in zip(listed, names, strict=True)
    ]


@contextlib.contextmanager
def _time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raises DataError where the block takes longer; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise DataError(message)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Records:
    """Random access to the images of a data set; says which folder is damaged.

    Every record is held to its digest: from a file cut short array_record (0.8) returns records
    without an image and says nothing.

    Args:
        folder: of the records.
        index: the columns of their index.
    """

    def __init__(self, folder: Path, index: Mapping[str, np.ndarray]):
        self._folder, self._digests = folder, index["digest"].tolist()
        self._sizes, self._modes = index["size"].tolist(), index["mode"].tolist()
        self._packed, self._fast = index["packed"].tolist(), index["fast"].tolist()
        self._intensity = _intensity(index)
        try:
            self._source = tfds.builder_from_directory(folder).as_data_source(
                split=_SPLIT, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except Exception as error:  # TFDS's, protobuf's, array_record's
            raise DamagedFileError(folder, error) from None

    def __len__(self) -> int:
        return len(self._digests)

    def pixels(self, index: int, color: images.Color = "rgb") -> np.ndarray:
        """An image upright: uint8 [H, W, 3], for grey [H, W, 1]. See `images.decode`."""
        record = self._read(index)
        if self._packed[index]:
            height, width = self._sizes[index]
            try:
                return images.unpack(record, height, width, color)
            except ValueError as error:  # the index does not belong to the records
                raise DamagedFileError(self._folder, error) from None
        if self._fast[index]:
            return images.decode_fast(record, color, self._modes[index])
        return images.to_array(images.decode(record, color, self._intensity))

    def _read(self, index: int) -> bytes:
        try:
            record = self._source[index]["image"]
            intact = hashlib.sha256(record).hexdigest() == self._digests[index]
        except Exception as error:  # array_record raises RuntimeError, protobuf its own
            raise DamagedFileError(self._folder, error) from None
        if not intact:
            raise DamagedFileError(self._folder, f"record {index} is not what was written")
        return record


def _intensity(index: Mapping[str, np.ndarray]) -> IntensityRange:
    return samples.from_json(json.loads(index["intensity"].item()))


def _write_index(
    path: Path,
    rows: Sequence[dict[str, Any]],
    skipped: Sequence[str],
    intensity: IntensityRange,
) -> None:
    """Writes {name: values of all records}, what was skipped, and the range of intensities."""
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns["intensity"] = np.array(json.dumps(samples.to_json(intensity)))
    columns["fast"] = _fast(columns.pop("kind"), columns.pop("agrees"))
    records = Records(path.parent, columns)
    columns["pixel_hash"] = _pixel_hashes(columns["size"], columns["descriptor"], records)
    with path.open("wb") as file:
        np.savez(file, **columns, skipped=np.array(skipped, str))


def _fast(kinds: np.ndarray, agrees: np.ndarray) -> np.ndarray:
    """bool [N]: files of a kind of which all that were tried agree with OpenCV.

    Args:
        kinds: str [N], of `images.examine`.
        agrees: int8 [N], 1 or 0 where it was tried, else -1.
    """
    fast = set(kinds[agrees == 1]) - set(kinds[agrees == 0])
    return np.array([kind in fast for kind in kinds])


def _pixel_hashes(sizes: np.ndarray, descriptors: np.ndarray, records: Records) -> np.ndarray:
    """str [N], equal for identical pixels.

    Identical pixels have identical thumbnails, so only images that share theirs with another are
    decoded once more, to be told apart by their pixels.
    """
    hashes = [
        hashlib.sha256(size.tobytes() + thumbnail.tobytes()).hexdigest()
        for size, thumbnail in zip(sizes, descriptors, strict=True)
    ]
    count = collections.Counter(hashes)
    shared = [i for i, value in enumerate(hashes) if count[value] > 1]
    pixel_hashes = read_ahead(
        lambda k: duplicates.pixel_hash(images.from_array(records.pixels(shared[k]))),
        0,
        len(shared),
    )
    for i, value in zip(shared, pixel_hashes, strict=True):
        hashes[i] = value
    return np.array(hashes)


def _read_index(path: Path, files: Container[str]) -> dict[str, np.ndarray]:
    """The columns of an index of some of these files.

    Raises:
        DamagedFileError: it is not what was written.
    """
    try:
        found = read_npz(path)
        count = len(found["path"])
        for name, (kind, shape) in _COLUMNS.items():
            expected = found[name].shape if name in _WHOLE else (count, *shape)
            if found[name].dtype.kind != kind or found[name].shape != expected:
                raise ValueError(f"{name} is {found[name].dtype}{list(found[name].shape)}")
        _intensity(found)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(path, error) from None
    if unknown := [file for file in found["path"].tolist() if file not in files]:
        raise DamagedFileError(path, f"it describes {unknown[0]!r}, which is not listed")
    if len(set(found["path"].tolist())) < count:
        raise DamagedFileError(path, "it describes a file twice")
    if count == 0 or found["size"].min() < 1:
        raise DamagedFileError(path, "it describes no image, or one without pixels")
    return found


def _records_of(
    dataset: Dataset,
    folder: Path,
    listed: list[ImageFile],
    cache: Path,
    on_error: str,
    rule: Rule,
) -> Path:
    """The folder of this very folder's records and their index, which it has written or found."""
    state: list[tuple[str, int | None, int | None]] = []
    for image in listed:
        try:
            stat = (folder / image.file).stat()
            state.append((image.file, stat.st_size, stat.st_mtime_ns))
        except OSError:  # a link to nothing; reading it will say so
            state.append((image.file, None, None))
    identity: list[Any] = [str(folder.resolve()), _VERSION, state, rule]
    never_dicom = tuple(formats.SUFFIXES - {".dcm", ".dicom"})
    if not all(image.file.lower().endswith(never_dicom) for image in listed):
        identity.append(dicom.decoders())  # what one more can read is not left out any longer
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    data_dir = cache / dataset.name / fingerprint
    if (data_dir / _INDEX).exists():  # whole, as all that has this name
        return data_dir
    refused = f"The records of {folder} cannot be written to {data_dir} (data.cache_dir): "
    lock = filelock.FileLock(f"{data_dir}.lock")
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DataError(f"{refused}{error}.") from error
    try:
        with storage_errors_told(data_dir):
            if not (data_dir / _INDEX).exists():
                shutil.rmtree(data_dir, ignore_errors=True)
                incomplete = data_dir.with_suffix(".incomplete")
                shutil.rmtree(incomplete, ignore_errors=True)  # of a process that was killed
                try:
                    incomplete.mkdir()
                    sizes = [size or 0 for _, size, _ in state]
                    _write(incomplete, folder, listed, sizes, on_error, rule)
                    incomplete.rename(data_dir)
                finally:
                    shutil.rmtree(incomplete, ignore_errors=True)
    except (AccessError, StorageError) as error:
        raise DataError(f"{refused}{error}") from error
    finally:
        lock.release()
    return data_dir


def _write(
    target: Path,
    folder: Path,
    listed: list[ImageFile],
    sizes: list[int],
    on_error: str,
    rule: Rule,
) -> None:
    """Writes the records of all readable images and their index.

    Raises:
        DataError: an image cannot be read, and `on_error` is 'raise', or none can.
        OSError, RuntimeError: the records cannot be written; the latter is array_record's.
    """
    intensity = IntensityRange(rule)
    if rule == "dataset":
        logger.info("Looking for the range of values of %d images in %s", len(listed), folder)
        intensity = IntensityRange(rule, _range_of_dataset(folder, listed, sizes))
    logger.info("Reading %d images from %s", len(listed), folder)
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []
    tried: collections.Counter[str] = collections.Counter()

    def examples() -> Iterator[dict[str, bytes]]:
        for image, record in _describe_all(folder, listed, sizes, intensity):
            if isinstance(record, str):
                unreadable.append(f"{image.file} ({record})")
                continue
            content, kind = record.pop("content"), record["kind"]
            # The first ones of a kind of files, and some of those that follow.
            is_tried = kind and (tried[kind] < _TRIED or tried[kind] % _TRIED_EVERY == 0)
            tried[kind] += 1
            agrees = images.is_fast(content, images.decode(content)) if is_tried else -1
            rows.append(record | {"agrees": np.int8(agrees)})
            yield {"image": content}

    identity = tfds.core.DatasetIdentity(
        name="records",
        version=tfds.core.Version(_VERSION),
        data_dir=os.fspath(target),
        module_name=__name__,
    )
    # Bytes, which TFDS takes as they are; all else is in the index.
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None,) * 3)})
    writer = tfds.core.SequentialWriter(
        tfds.core.DatasetInfo(builder=identity, features=features),
        max_examples_per_shard=_SHARD,
        file_format="array_record",
    )
    writer.initialize_splits([_SPLIT])
    writer.add_examples({_SPLIT: examples()})  # takes them one by one
    writer.close_splits([_SPLIT])
    if unreadable and (on_error == "raise" or not rows):
        raise _unreadable(folder, unreadable, len(listed))
    _write_index(target / _INDEX, rows, unreadable, intensity)


def _unreadable(folder: Path, files: Sequence[str], count: int) -> DataError:
    remedy = ", or leave them out by --config.data.on_error=skip" if len(files) < count else ""
    return DataError(
        f"{len(files)} of {count} images in {folder} cannot be read: {some_of(files)}. Mend or "
        f"remove them{remedy}."
    )


def _range_of_dataset(
    folder: Path, listed: list[ImageFile], sizes: list[int]
) -> dict[str, tuple[float, float]]:
    """The least and largest value of all files with more than 8 bits, by the type of the values."""

    def look(image: ImageFile) -> tuple[str, float, float] | None:
        try:
            return images.stored_range((folder / image.file).read_bytes())
        except (OSError, images.UnreadableImageError):
            return None  # told when it is read

    ranges: dict[str, tuple[float, float]] = {}
    for _, stored in _each(look, listed, sizes):
        if stored is not None:
            kind, low, high = stored
            least, largest = ranges.get(kind, (low, high))
            ranges[kind] = min(least, low), max(largest, high)
    return ranges


def _describe_all(
    folder: Path, listed: list[ImageFile], sizes: list[int], intensity: IntensityRange
) -> Iterator[tuple[ImageFile, dict[str, Any] | str]]:
    """Each image with its record, or with the reason why it cannot be read, in order."""
    yield from _each(lambda image: _describe(folder, image.file, intensity), listed, sizes)


def _each(
    function: Callable[[ImageFile], _T], listed: list[ImageFile], sizes: list[int]
) -> Iterator[tuple[ImageFile, _T]]:
    """Each image with what the function says of it, in order, by threads a few images ahead."""
    chunks: list[list[ImageFile]] = []
    room = 0.0
    for image, size in zip(listed, sizes, strict=True):
        if not chunks or size > room or len(chunks[-1]) == _CHUNK:
            chunks.append([])
            room = _CHUNK_BYTES
        chunks[-1].append(image)
        room -= size
    results = read_ahead(lambda k: [function(image) for image in chunks[k]], 0, len(chunks))
    for chunk, values in zip(chunks, results, strict=True):
        yield from zip(chunk, values, strict=True)


def _describe(folder: Path, file: str, intensity: IntensityRange) -> dict[str, Any] | str:
    path = folder / file
    try:
        encoded = path.read_bytes()
    except FileNotFoundError as error:
        return str(error)
    except OSError as error:  # may be mended, the file being the same
        raise DataError(f"{path} cannot be read: {error!r}.") from None
    try:
        decoded = images.examine(encoded, intensity)
    except images.UnreadableImageError as error:
        return str(error)
    except MemoryError as error:  # a larger machine may have room for it
        raise DataError(f"{path} cannot be read: {error!r}.") from None
    except MissingExtraError as error:
        raise MissingExtraError(f"{path} cannot be read: {error}.") from None
    sha256 = hashlib.sha256(encoded).hexdigest()
    content, digest, packed = encoded, sha256, False
    most = min(_PACKED_BYTES, _PACKED_TIMES * len(encoded))
    if not decoded.lossy and decoded.image.width * decoded.image.height <= most:
        packed_pixels = images.pack(decoded.image)
        if len(packed_pixels) <= most:
            content, packed = packed_pixels, True
            digest = hashlib.sha256(content).hexdigest()
    grey = decoded.image.convert("L")
    levels, greys = pixels.levels(grey)
    return {
        "content": content,
        "path": file,
        "size": np.array((decoded.image.height, decoded.image.width), np.int32),
        "mode": decoded.mode,
        "kind": decoded.kind,
        "packed": packed,
        "digest": digest,
        "sha256": sha256,
        "descriptor": duplicates.descriptor(grey),
        "types": decoded.stored[0] if decoded.stored else "",
        "bits": np.int16(decoded.bits),
        "stored": np.array(decoded.stored[1:] if decoded.stored else greys, np.float64),
        "levels": np.int16(levels),
        "greys": np.array(greys, np.int16),
    }
