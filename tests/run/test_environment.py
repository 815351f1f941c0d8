"""A run goes on under the settings that it began with, and says where it has been."""

import contextlib
import json

import jax
import pytest

from egmae_jax import experiment
from egmae_jax.core import hosts, platform
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import DamagedFileError
from egmae_jax.run import environment

HERE = environment.machine
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    """The settings of the process that tests are run in are no part of the tests."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path):
    """The record of a run that began under the settings of this process."""
    path = tmp_path / "environment.json"
    environment.require_same(path, recorded=False)
    environment.record(path, recorded=False)
    return path


def under(monkeypatch, setting, value):
    """A context in which a setting has a value."""
    if setting == "--deterministic":
        platform.make_deterministic()  # changes the variable, which `no_flags` puts back
        return contextlib.nullcontext()
    if setting.isupper():
        monkeypatch.setenv(setting, value)
        return contextlib.nullcontext()
    return getattr(jax, setting.removeprefix("jax_"))(value)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("jax_enable_x64", True, "jax_enable_x64: False in the workdir, True now"),
        (
            *("jax_default_matmul_precision", "highest"),
            "jax_default_matmul_precision: None in the workdir, 'highest' now",
        ),
        ("jax_numpy_dtype_promotion", "strict", "jax_numpy_dtype_promotion: 'standard' in the"),
        ("--deterministic", True, "deterministic: False in the workdir, True now"),
        ("NVIDIA_TF32_OVERRIDE", "0", "NVIDIA_TF32_OVERRIDE: not set in the workdir, '0' now"),
        (
            *("XLA_FLAGS", "--xla_dump_to=/d --xla_cpu_enable_fast_math"),
            "--xla_cpu_enable_fast_math: not set in the workdir, 'true' now",
        ),
    ],
)
def test_a_setting_that_changes_numbers_is_held(path, monkeypatch, setting, value, message):
    environment.require_same(path, recorded=True)
    with under(monkeypatch, setting, value):
        with pytest.raises(ConfigError, match="under other settings") as caught:
            environment.require_same(path, recorded=True)
        assert message in str(caught.value)
        environment.record(path, recorded=False)  # a run that begins so
        environment.require_same(path, recorded=True)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError):
        environment.require_same(path, recorded=True)


def test_flags_that_change_no_number_are_free(path, monkeypatch):
    flags = "--xla_force_host_platform_device_count=8 --xla_dump_to=/tmp/dump"
    monkeypatch.setenv("XLA_FLAGS", f"{flags} --xla_gpu_deterministic_ops=false")
    environment.require_same(path, recorded=True)


def test_equal_flags_are_equal_however_they_are_written(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=1 --xla_a=x")
    platform.make_deterministic()
    expected = environment.settings()
    assert expected["deterministic"] is True
    for written in (
        "--xla_a=x --xla_b=true --xla_gpu_deterministic_ops",
        "--xla_a=y --xla_b --xla_a=x --xla_gpu_deterministic_ops=0 --xla_gpu_deterministic_ops=1",
    ):
        monkeypatch.setenv("XLA_FLAGS", written)
        assert environment.settings() == expected, written


def test_another_machine_or_version_is_said_and_recorded(path, monkeypatch, caplog):
    environment.record(path, recorded=True)
    assert environment.read(path)["machines"] == [HERE()]
    assert not caplog.records
    there = HERE() | {"device": "NVIDIA H100", "versions": HERE()["versions"] | {"jax": "0.7.1"}}
    monkeypatch.setattr(environment, "machine", lambda: there)
    environment.require_same(path, recorded=True)
    here = HERE()
    assert f"device: {here['device']!r} in the workdir, 'NVIDIA H100' now" in caplog.text
    assert f"jax: {jax.__version__!r} in the workdir, '0.7.1' now" in caplog.text
    environment.record(path, recorded=True)
    environment.record(path, recorded=True)
    assert environment.read(path)["machines"] == [here, there]
    caplog.clear()
    environment.require_same(path, recorded=True)  # back where it has been
    assert not caplog.records


def test_settings_that_only_another_version_of_jax_has_are_not_compared(path):
    content = json.loads(path.read_text())
    del content["settings"]["jax_use_direct_linearize"]
    path.write_text(json.dumps(content))
    environment.require_same(path, recorded=True)


def test_hosts_of_different_settings_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "agree", lambda *values: tuple(value + 1 for value in values))
    with pytest.raises(ConfigError, match="The hosts have different settings"):
        environment.require_same(tmp_path / "environment.json", recorded=False)


def test_a_damaged_or_missing_record_is_named(path):
    path.write_text("{}")
    with pytest.raises(DamagedFileError, match=r"environment\.json is damaged"):
        environment.require_same(path, recorded=True)
    path.unlink()
    with pytest.raises(DamagedFileError, match=r"environment\.json is missing: restore it"):
        environment.require_same(path, recorded=True)


def test_a_run_is_held_to_its_settings_and_names_them(finished):
    made_with = finished.results["made_with"]
    assert made_with["settings"]["jax_enable_x64"] is False
    assert made_with["machines"] == [HERE()]
    with jax.default_matmul_precision("highest"), pytest.raises(ConfigError, match="'highest' now"):
        experiment.run(finished.config, finished.workdir)
