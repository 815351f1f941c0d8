"""The workdir of a run: its files, its lock, and whether it belongs to this run."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
from ml_collections import ConfigDict

from egmae_jax.core import hosts
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, require_writable, write_json
from egmae_jax.data import samples
from egmae_jax.data.datasets import DataError
from egmae_jax.data.samples import IntensityRange
from egmae_jax.run.config import ConfigError, require_same


@dataclasses.dataclass(frozen=True)
class Paths:
    """Paths of the files of a workdir.

    Attributes:
        workdir: folder of the run.
        folds: whether each round has a split, and so a pre-training, of its own.
    """

    workdir: Path
    folds: bool

    def of_split(self, split: int) -> Path:
        """Folder of what is made once for each split: round_<i> with folds, else the workdir."""
        return self.workdir / f"round_{split}" if self.folds else self.workdir

    def splits(self, split: int) -> Path:
        """splits.json: file, label, part, group and content hash of each image."""
        return self.of_split(split) / "splits.json"

    def autoencoder(self, split: int) -> Path:
        """Parameters of the pre-trained autoencoder."""
        return self.of_split(split) / "pretrain" / "autoencoder.safetensors"

    def pretraining_report(self, split: int) -> Path:
        """Reconstruction losses of the pre-trained autoencoder on validation images."""
        return self.autoencoder(split).with_name("report.json")

    def layers(self, branch: str, round_index: int) -> Path:
        """layers.json: which layers of a branch train."""
        return self.workdir / f"round_{round_index}" / branch / "layers.json"

    def finetuned(self, branch: str, round_index: int) -> Path:
        """Weights of a branch's best epoch, under timm's names."""
        return self.workdir / "export" / f"round_{round_index}_{branch}.safetensors"

    def predictions(self, branch: str, round_index: int, part: str) -> Path:
        """Predictions of a branch for the part 'validation' or 'test'."""
        return self.workdir / "predictions" / f"round_{round_index}_{branch}_{part}.npz"

    def fusion_weights(self, branch: str, round_index: int) -> Path:
        """Fusion weights of an ASFF for the test images, by class."""
        name = f"round_{round_index}_{branch}_fusion_weights.json"
        return self.workdir / "predictions" / name

    @property
    def nonfinite(self) -> Path:
        """Folder of descriptions of steps that were not finite."""
        return self.workdir / "nonfinite"

    @property
    def results(self) -> Path:
        """results.json: config, data, and the metrics of every round."""
        return self.workdir / "results.json"

    @property
    def report(self) -> Path:
        """report.html, the results for people to read."""
        return self.workdir / "report.html"

    @property
    def intensity_range(self) -> Path:
        """Which stored values are black and white, where data.intensity_range is 'dataset'."""
        return self.workdir / "intensity_range.json"

    @property
    def audit(self) -> Path:
        """audit.json: what is odd about the images."""
        return self.workdir / "audit.json"

    @property
    def environment(self) -> Path:
        """Settings that change numbers, which the run is held to, and the machines it was on."""
        return self.workdir / "environment.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: a JSON object for each epoch of each stage."""
        return self.workdir / "metrics.jsonl"


def local_folder(path: str | os.PathLike, flag: str = "--workdir") -> Path:
    """The folder that a flag names; `~` is the home folder, which no shell expands behind `=`.

    Raises:
        ConfigError: it is the address of a bucket.
    """
    if "://" in (text := os.fspath(path)):
        raise ConfigError(
            f"{flag}={text} is no folder: mount the bucket and give the folder it is mounted at."
        )
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def lock(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Locks a folder against other runs; the lock of a killed process is released.

    Of several hosts of a run the first holds the lock.

    Args:
        workdir: folder that is locked.
        flag: flag that named the folder, for the messages.

    Raises:
        AccessError: it cannot be written to.
        ConfigError: it is in use, or its file system has no locks.
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
        who = holder.read_text(errors="replace") if holder.exists() else "another process"
        raise ConfigError(f"{flag}={workdir} is in use by {who}; one run at a time.") from None
    except OSError as error:
        raise ConfigError(
            f"{flag}={workdir} cannot be locked ({error.strerror}): take a folder on a file system "
            "that has locks; of NFS it is the lock service, of Lustre the mount option flock."
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
    """Whether the folder has the config of a run."""
    return (workdir / "config.json").exists()


def has_begun(workdir: Path) -> bool:
    """Whether a stage has written anything, if only checkpoints."""
    patterns = ("pretrain", "export", "predictions", "round_*/*")
    return any(path.is_dir() for pattern in patterns for path in workdir.glob(pattern))


def require_own_folder(workdir: Path, config: ConfigDict) -> None:
    """Refuses the folder of the images, and one in it where each folder is a class.

    Raises:
        ConfigError: what a run leaves there would be among the images.
    """
    images, folder = Path(config.data.dir).expanduser().resolve(), workdir.resolve()
    is_class = config.data.name == "image_folder" and images in folder.parents
    if folder == images or is_class:
        raise ConfigError(
            f"--workdir={workdir} is in data.dir, a folder of images, and a run's files would be "
            "among them. Give --workdir a folder of its own."
        )


def require_same_run(workdir: Path, config: ConfigDict) -> None:
    """Refuses to go on with another config than the one that the run began with.

    Raises:
        ConfigError: the config differs.
        DamagedFileError: config.json cannot be read, or is lost.
    """
    if has_record(workdir) or has_begun(workdir):
        require_same(read_json(workdir / "config.json", RESTORE), config)


def record_config(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, which `require_same_run` holds later runs to."""
    write_json(workdir / "config.json", config.to_dict())


def record_intensity_range(paths: Paths, intensity: IntensityRange, *, begun: bool) -> None:
    """Writes which stored values are black and white; a run that has begun keeps its own.

    All hosts call it, and one writes; only with data.intensity_range='dataset', for otherwise the
    config says all.

    Raises:
        DataError: the images of a run that has begun have another range than when it began.
        DamagedFileError: the file of a run that has begun is missing or damaged.
    """
    if intensity.rule != "dataset":
        return
    if not begun:
        if hosts.is_primary():
            write_json(paths.intensity_range, samples.to_json(intensity))
    elif (before := read_intensity_range(paths)) != intensity:
        raise DataError(
            f"The values of the images range over {samples.listed(intensity)}; the run began with "
            f"{samples.listed(before)} ({paths.intensity_range}). Bring the images back, or start "
            "in another --workdir."
        )


def read_intensity_range(paths: Paths) -> IntensityRange:
    """Which stored values are black and white in a run with data.intensity_range='dataset'.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    path = paths.intensity_range
    try:
        return samples.from_json(read_json(path, RESTORE))
    except ValueError as error:
        raise DamagedFileError(path, error, RESTORE) from None
