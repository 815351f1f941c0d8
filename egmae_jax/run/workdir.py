"""The workdir of a run: paths of its files, its lock, and checks that a run may resume in it."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
from ml_collections import ConfigDict, FrozenConfigDict

from egmae_jax.core import hosts
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, require_writable, write_json
from egmae_jax.data import samples
from egmae_jax.data.datasets import DataError
from egmae_jax.data.samples import IntensityRange
from egmae_jax.run.config import require_same, split_indices


@dataclasses.dataclass(frozen=True)
class Paths:
    """Paths of the files in a workdir.

    Attributes:
        workdir: folder of the run.
        folds: whether each round has its own split and pre-training.
    """

    workdir: Path
    folds: bool

    @classmethod
    def of(cls, workdir: Path, config: ConfigDict | FrozenConfigDict) -> "Paths":
        """Returns the paths of a run in `workdir` with a config."""
        return cls(workdir, folds=config.rounds.kind == "folds")

    def split_index(self, round_index: int) -> int:
        """Returns the index of a round's split; rounds with the same split share pre-training."""
        return round_index if self.folds else 0

    def _split_folder(self, split: int) -> Path:
        """Returns the folder of a split: round_<i> with folds, else the workdir."""
        return self.workdir / f"round_{split}" if self.folds else self.workdir

    def splits(self, split: int) -> Path:
        """splits.json: file name, label, part, group and content hash of each image."""
        return self._split_folder(split) / "splits.json"

    def unlabelled(self, split: int) -> Path:
        """unlabelled.json: name, content hash and use of each image of pretrain.unlabelled."""
        return self._split_folder(split) / "unlabelled.json"

    def autoencoder(self, split: int) -> Path:
        """Parameters of the pre-trained autoencoder."""
        return self._split_folder(split) / "pretrain" / "autoencoder.safetensors"

    def started_from(self, split: int) -> Path:
        """started_from.json: the weights that pre-training started from; only with any."""
        return self.autoencoder(split).with_name("started_from.json")

    def pretraining_report(self, split: int) -> Path:
        """Reconstruction losses of the pre-trained autoencoder on validation images."""
        return self.autoencoder(split).with_name("report.json")

    def layers(self, branch: str, round_index: int) -> Path:
        """layers.json: the layers of a branch that train."""
        return self.workdir / f"round_{round_index}" / branch / "layers.json"

    def finetuned(self, branch: str, round_index: int) -> Path:
        """Weights of a branch's best epoch, with timm's tensor names."""
        return self.workdir / "export" / f"round_{round_index}_{branch}.safetensors"

    def predictions(self, branch: str, round_index: int, part: str) -> Path:
        """Predictions of a branch for a part, 'validation' or 'test'."""
        return self.workdir / "predictions" / f"round_{round_index}_{branch}_{part}.npz"

    def features(self, branch: str, round_index: int) -> Path:
        """Features of the training and test images by a branch, for the report."""
        return self.workdir / "features" / f"round_{round_index}_{branch}.npz"

    def fusion_weights(self, branch: str, round_index: int) -> Path:
        """Fusion weights of an ASFF on the test images, by class."""
        name = f"round_{round_index}_{branch}_fusion_weights.json"
        return self.workdir / "predictions" / name

    @property
    def nonfinite(self) -> Path:
        """Folder of reports about steps that were not finite."""
        return self.workdir / "nonfinite"

    @property
    def results(self) -> Path:
        """results.json: config, data, and the metrics of every round."""
        return self.workdir / "results.json"

    @property
    def report(self) -> Path:
        """report.html: the results as a page."""
        return self.workdir / "report.html"

    @property
    def intensity_range(self) -> Path:
        """Stored values of black and white; only with data.intensity_range='dataset'."""
        return self.workdir / "intensity_range.json"

    @property
    def audit(self) -> Path:
        """audit.json: problems found in the images."""
        return self.workdir / "audit.json"

    @property
    def environment(self) -> Path:
        """environment.json: settings that affect numbers, and the machines that were used."""
        return self.workdir / "environment.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: a JSON object for each epoch of each stage."""
        return self.workdir / "metrics.jsonl"


def local_path(path: str | os.PathLike) -> Path:
    """Returns the path of a file or folder, with `~` expanded, which shells leave after `=`.

    Raises:
        ConfigError: the path is the address of a bucket, such as gs://bucket/run.
    """
    if "://" in (text := os.fspath(path)):
        raise ConfigError(
            f"{text} is not on this machine: mount the bucket and give the path in the mount."
        )
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def lock(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Locks a folder against other runs; the lock of a killed process is released.

    On several hosts only the primary host holds the lock.

    Args:
        workdir: folder to lock; created if it is missing, and removed if it stays empty.
        flag: flag that names the folder, for error messages.

    Raises:
        AccessError: the folder is not writable.
        ConfigError: another process uses the folder, or its file system does not support locks.
    """
    if not hosts.is_primary():
        yield
        return
    require_writable(workdir, f"{flag}={workdir}")
    workdir.mkdir(parents=True, exist_ok=True)
    holder, path = workdir / ".holder", workdir / ".lock"
    handle = filelock.FileLock(path)
    try:
        handle.acquire(timeout=0)
    except filelock.Timeout:
        user = holder.read_text(errors="replace") if holder.exists() else "another process"
        raise ConfigError(
            f"{flag}={workdir} is in use by {user}; only one run at a time can use it."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{flag}={workdir} cannot be locked ({error.strerror}): take a folder on a file system "
            "that supports locks. NFS needs its lock service, Lustre the mount option flock."
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        handle.release()
        if {entry.name for entry in workdir.iterdir()} <= {path.name}:  # stopped before any work
            path.unlink(missing_ok=True)
            workdir.rmdir()


def has_record(workdir: Path) -> bool:
    """Whether the folder contains the config.json of a run."""
    return (workdir / "config.json").exists()


def has_begun(workdir: Path) -> bool:
    """Whether a stage has written any file, including checkpoints."""
    patterns = ("pretrain", "export", "predictions", "round_*/*")
    return any(path.is_dir() for pattern in patterns for path in workdir.glob(pattern))


def require_own_folder(workdir: Path, config: ConfigDict) -> None:
    """Checks that the workdir does not mix a run's files with images.

    Raises:
        ConfigError: the workdir is data.dir, a folder in it that would be taken for a class, or in
            a folder of pretrain.unlabelled.
    """
    images, folder = Path(config.data.dir).expanduser().resolve(), workdir.resolve()
    is_searched = config.data.name in ("image_folder", "unlabelled")
    fields = {"data.dir": folder == images or (is_searched and images in folder.parents)}
    searched = {Path(x).expanduser().resolve() for x in config.pretrain.unlabelled}
    fields["pretrain.unlabelled"] = not searched.isdisjoint((folder, *folder.parents))
    if inside := [field for field, is_inside in fields.items() if is_inside]:
        raise ConfigError(
            f"--workdir={workdir} is in {inside[0]}, where the run's files would be mixed with the "
            "images. Give --workdir a folder of its own."
        )


def require_same_run(workdir: Path, config: ConfigDict) -> None:
    """Checks that the config is the one that the workdir's run, if any, began with.

    Raises:
        ConfigError: the config differs.
        DamagedFileError: config.json is missing or damaged.
    """
    if has_record(workdir) or has_begun(workdir):
        paths = Paths.of(workdir, config)
        is_pretrained = all(paths.autoencoder(i).exists() for i in split_indices(config))
        saved = read_json(workdir / "config.json", RESTORE)
        require_same(saved, config, workdir if is_pretrained else None)


def other_file_error(field: str, path: Path, record: Path) -> ConfigError:
    """Returns the error that a file of weights has not the SHA-256 that `record` holds of it."""
    return ConfigError(
        f"{field}: {path} is not the file this run began with, whose SHA-256 is in {record}. Give "
        "that file, or start in another --workdir."
    )


def record_config(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, with which `require_same_run` compares the config on resume.

    Folders are written as absolute paths, so that later commands find them from any folder.
    """
    content = config.to_dict()
    for field in ("dir", "cache_dir"):
        if folder := content["data"][field]:
            content["data"][field] = str(Path(folder).expanduser().absolute())
    write_json(workdir / "config.json", content)


def record_intensity_range(paths: Paths, intensity: IntensityRange, *, begun: bool) -> None:
    """Writes the stored values of black and white with data.intensity_range='dataset'.

    All hosts must call it; the primary host writes. A run that has begun compares instead.

    Args:
        paths: paths of the workdir.
        intensity: intensity range of the data set.
        begun: whether the run has begun, so that the file exists.

    Raises:
        DataError: the range differs from the one that the run began with.
        DamagedFileError: the run has begun, but the file is missing or damaged.
    """
    if intensity.rule != "dataset":
        return
    if not begun:
        if hosts.is_primary():
            write_json(paths.intensity_range, samples.to_json(intensity))
    elif (before := read_intensity_range(paths)) != intensity:
        raise DataError(
            f"The values of the images have the range {samples.listed(intensity)}; the run began "
            f"with {samples.listed(before)} ({paths.intensity_range}). Restore the images, or "
            "start in another --workdir."
        )


def read_intensity_range(paths: Paths) -> IntensityRange:
    """Reads the stored values of black and white of a run with data.intensity_range='dataset'.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    path = paths.intensity_range
    try:
        return samples.from_json(read_json(path, RESTORE))
    except ValueError as error:
        raise DamagedFileError(path, error, RESTORE) from None
