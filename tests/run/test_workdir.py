"""What a workdir is, who works in it, and what it keeps."""

import errno
import os

import filelock
import pytest

from egmae_jax import experiment
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import DamagedFileError
from egmae_jax.data.datasets import DataError
from egmae_jax.data.samples import IntensityRange
from egmae_jax.run import workdir as workdirs
from egmae_jax.run.workdir import Paths, read_intensity_range, record_intensity_range
from tests import tiny


def test_a_run_that_has_begun_keeps_its_range(tmp_path):
    paths = Paths(tmp_path, folds=False)
    first = IntensityRange("dataset", {"uint16": (0.0, 4095.0), "float32": (-0.5, 1e-3)})
    record_intensity_range(paths, first, begun=False)
    assert read_intensity_range(paths) == first
    record_intensity_range(paths, first, begun=True)
    other = IntensityRange("dataset", {"uint16": (0.0, 4000.0)})
    with pytest.raises(
        DataError, match=r"range uint16 from 0 to 4000; the run began with uint16 f"
    ):
        record_intensity_range(paths, other, begun=True)
    paths.intensity_range.write_text("{}")
    with pytest.raises(DamagedFileError, match=r"intensity_range\.json is damaged"):
        read_intensity_range(paths)
    paths.intensity_range.unlink()
    with pytest.raises(DamagedFileError, match="missing"):
        record_intensity_range(paths, first, begun=True)
    record_intensity_range(paths, IntensityRange("type"), begun=False)
    assert not paths.intensity_range.exists()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    message = f"--workdir={tmp_path} cannot be locked .No locks available.: take a folder on"
    with pytest.raises(ConfigError, match=message), workdirs.lock(tmp_path):
        pass


def test_the_home_folder_is_meant_by_its_sign_and_buckets_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdirs.local_path("~/runs/busi") == tmp_path / "runs" / "busi"
    with pytest.raises(ConfigError, match="gs://bucket/run is not on this machine: mount"):
        workdirs.local_path("gs://bucket/run")


def test_two_runs_on_one_workdir_are_refused_with_the_holder_named(data, cache, tmp_path):
    with (
        workdirs.lock(tmp_path),
        pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on "),
    ):
        experiment.run(tiny.make_config(data, cache), tmp_path)
    with workdirs.lock(tmp_path):  # it was let go
        pass
