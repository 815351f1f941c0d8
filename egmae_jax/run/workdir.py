"""The workdir of a run: its files, its lock, and whether it belongs to this run."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
from ml_collections import ConfigDict

from egmae_jax.core import sharding
from egmae_jax.core.files import RESTORE, DamagedFileError, read_json, require_writable, write_json
from egmae_jax.data import formats, samples
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
        """Folder of what is made once for each split."""
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

    def predictions(self, branch: str, round_index: int, split: str) -> Path:
        """Predictions of a branch for the part 'validation' or 'test'."""
        return self.workdir / "predictions" / f"round_{round_index}_{branch}_{split}.npz"

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
        """results.json."""
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


def local_folder(given: str | os.PathLike, flag: str = "--workdir") -> Path:
    """The folder that a flag names; `~` is the home folder, which no shell expands behind `=`.

    Raises:
        ConfigError: it is the address of a bucket, or `~` is followed by no user's name.
    """
    if "://" in (text := os.fspath(given)):
        raise ConfigError(
            f"{flag}={text} is no folder: mount the bucket and give the folder it is mounted at."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{flag}={text} begins with a user who has no home folder.") from None


@contextlib.contextmanager
def lock(workdir: Path, flag: str = "--workdir") -> Iterator[None]:
    """Locks the folder against other runs; the lock of a killed process is released.

    Of several hosts of a run the first holds it.

    Args:
        workdir: the folder.
        flag: the flag that named it, for the messages.

    Raises:
        AccessError: it cannot be written to.
        ConfigError: it is in use, or its file system has no locks.
    """
    if not sharding.is_primary():
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
    return _record(workdir).exists()


def has_begun(workdir: Path) -> bool:
    """Whether a stage has written anything, if only checkpoints."""
    patterns = ("pretrain", "export", "predictions", "round_*/*")
    return any(path.is_dir() for pattern in patterns for path in workdir.glob(pattern))


def require_own_folder(workdir: Path, config: ConfigDict) -> None:
    """Refuses a folder of images: what a run leaves there would be found among them.

    Raises:
        ConfigError: it is no run's yet and has images, itself or in a folder of it; or it lies in
            data.dir, where each folder is a class.
    """
    if _record(workdir).exists() or has_begun(workdir):
        return
    advice = "a run's files would be among them. Give --workdir a folder of its own"
    files = (path for pattern in ("*", "*/*") for path in workdir.glob(pattern))
    if image := next((path for path in files if path.is_file() and formats.is_image(path)), None):
        raise ConfigError(f"--workdir={workdir} holds images ({image}); {advice}.")
    images = Path(config.data.dir).expanduser().resolve()
    if config.data.name == "image_folder" and images in workdir.resolve().parents:
        raise ConfigError(f"--workdir={workdir} is in data.dir, a folder of images; {advice}.")


def require_same_run(workdir: Path, config: ConfigDict) -> None:
    """Refuses to go on with another config than the one that the run began with.

    Raises:
        ConfigError: the config differs, or is lost.
        DamagedFileError: config.json cannot be read.
    """
    record = _record(workdir)
    if record.exists():
        require_same(read_json(record, RESTORE), config)
    elif has_begun(workdir):
        raise ConfigError(f"--workdir={workdir} holds a run, but not its config.json: {RESTORE}.")


def record_config(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, which `require_same_run` holds later runs to."""
    write_json(_record(workdir), config.to_dict())


def record_intensity_range(paths: Paths, intensity: IntensityRange, *, begun: bool) -> None:
    """Writes which stored values are black and white, of which a run that has begun keeps its own.

    All hosts call it, and one writes.

    Only with data.intensity_range='dataset'; otherwise the config says all.

    Raises:
        DataError: the images of a run that has begun have another range than when it began.
        DamagedFileError: the file of a run that has begun is missing or damaged.
    """
    if intensity.rule != "dataset":
        return
    if not begun:
        if sharding.is_primary():
            write_json(paths.intensity_range, samples.to_json(intensity))
    elif (before := read_intensity_range(paths)) != intensity:
        raise DataError(
            f"The values of the images range over {samples.listed(intensity)}; the run began with "
            f"{samples.listed(before)} ({paths.intensity_range}). Bring the images back, or start "
            "in another --workdir."
        )


def read_intensity_range(paths: Paths) -> IntensityRange:
    """Which stored values are black and white, of a run with data.intensity_range='dataset'.

    Raises:
        DamagedFileError: the file is missing or damaged.
    """
    path = paths.intensity_range
    if not path.is_file():
        raise DamagedFileError(path, "it is missing", RESTORE)
    try:
        return samples.from_json(read_json(path, RESTORE))
    except ValueError as error:
        raise DamagedFileError(path, error, RESTORE) from None


def _record(workdir: Path) -> Path:
    return workdir / "config.json"
