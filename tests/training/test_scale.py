"""Devices and hosts: the mesh, what is split, and runs on many that equal one's.

What devices send each other is in tests/test_benchmarks.py.
"""

import json
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from egmae_jax.core import hosts, sharding
from tests import tiny
from tests.augmentations.test_augmentations import ALL
from tests.tiny import assert_same, free_port, outcome, run_process

DEVICES = "--xla_force_host_platform_device_count={}"


# The mesh


@pytest.mark.parametrize(
    ("count", "data", "fsdp", "batches", "shape"),
    [
        (1, -1, 1, (16, 16), (1, 1, 1)),
        (8, -1, 1, (16, 16), (8, 1, 1)),
        (8, -1, 2, (16, 16), (4, 2, 1)),
        (8, -1, 1, (16, 12), (4, 1, 2)),  # four parts is the most that both have
        (8, -1, 1, (15, 7), (1, 1, 8)),
        (8, 2, 2, (16, 16), (2, 2, 2)),
    ],
)
def test_as_many_devices_as_divide_the_batches_share_them(count, data, fsdp, batches, shape):
    assert sharding.mesh_shape(count, data, fsdp, batches) == shape


@pytest.mark.parametrize(
    ("data", "fsdp", "batches", "message"),
    [
        (3, 1, (12,), r"8 devices do not divide into 3 along mesh\.data times 1 along mesh\.fsdp"),
        (-1, 3, (12,), r"8 devices do not divide into batches of 12 images and 3 along mesh\.fsdp"),
        (8, 1, (16, 12), r"batches of 16, 12 images do not divide into 8 parts"),
        (0, 1, (8,), r"mesh\.data is 0"),
        (-1, 0, (8,), r"mesh\.fsdp is 0"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(data, fsdp, batches, message):
    with pytest.raises(hosts.DeviceError, match=message):
        sharding.mesh_shape(8, data, fsdp, batches)


def test_large_arrays_are_split_along_their_longest_axis_that_can_be(monkeypatch):
    monkeypatch.setattr(sharding, "_SPLIT_ELEMENTS", 10)
    mesh = jax.sharding.AbstractMesh((2, 4, 1), ("data", "fsdp", "copy"))
    shapes = {"columns": (3, 8), "rows": (16, 8), "odd": (9, 4), "none": (9, 7), "small": (8,)}
    tree = {name: np.ones(shape) for name, shape in shapes.items()}
    whole = jax.P()
    specs = {name: x.spec for name, x in sharding.state_shardings(tree, mesh).items()}
    assert specs == {
        "columns": jax.P(None, "fsdp"),
        "rows": jax.P("fsdp"),
        "odd": jax.P(None, "fsdp"),
        "none": whole,
        "small": whole,
    }


CLUSTERS = {
    "a TPU VM": {"TPU_ML_PLATFORM": "JAX"},
    "TPUs on GKE": {"TPU_WORKER_HOSTNAMES": "a,b"},
    "several TPU slices": {"MEGASCALE_COORDINATOR_ADDRESS": "a"},
    "SLURM": {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "2"},
}
ALONE = {
    "nothing": {},
    "one TPU without metadata": {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"},
    "one task of SLURM": {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    "a SLURM job without srun": {"SLURM_NTASKS": "2"},
}


@pytest.mark.parametrize("name", CLUSTERS | ALONE)
def test_hosts_join_where_a_cluster_is_found(name, monkeypatch):
    for variable in {v for env in CLUSTERS.values() for v in env} | {"TPU_SKIP_MDS_QUERY"}:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in (CLUSTERS | ALONE)[name].items():
        monkeypatch.setenv(variable, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    monkeypatch.setattr(jax.config, "update", lambda *args: calls.append(args))
    hosts.join()
    without_cache = ("jax_enable_compilation_cache", False)  # else hosts hang, see join
    assert calls == ([(None, None, None), without_cache] if name in CLUSTERS else [])


def test_only_all_that_names_a_process_together_joins_hosts():
    with pytest.raises(hosts.DeviceError, match="belong together"):
        hosts.join("127.0.0.1:1", 2)
    hosts.join()  # alone
    assert hosts.is_primary()


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize (x)"), AssertionError()])
def test_a_machine_without_the_backend_asked_for_is_refused(error, monkeypatch):
    def no_devices():
        raise error

    monkeypatch.setattr(jax, "devices", no_devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(hosts.DeviceError, match=r"no device with JAX_PLATFORMS='cuda' .*\[gpu\]"):
        sharding.require_devices()


# Runs


# Hosts compile all anew each time; these take half as long to.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def start_hosts(data, cache, workdir, *fields, hosts=1, devices=1, flags=""):
    """Starts tests.tiny on so many hosts."""
    port = free_port()
    return [
        run_process(
            data,
            cache,
            workdir,
            *fields,
            XLA_FLAGS=f"{DEVICES.format(devices)} {flags}",
            **({"TINY_HOSTS": f"127.0.0.1:{port} {hosts} {i}"} if hosts > 1 else {}),
        )
        for i in range(hosts)
    ]


def finish(processes, status=0):
    """Waits for all, which must end with that status; returns what the first says."""
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == status, output
    return outputs[0]


def run_hosts(data, cache, workdir, *fields, **hosts):
    return finish(start_hosts(data, cache, workdir, *fields, **hosts))


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["stage"], row["round"], row["epoch"], row["loss"]) for row in rows]


def assert_close_losses(expected, workdir):
    for one, many in zip(losses(expected), losses(workdir), strict=True):
        assert many[:3] == one[:3]
        assert many[3] == pytest.approx(one[3], rel=1e-5)


SHORT = ("rounds.count=1", "pretrain.epochs=2", "finetune.epochs=2", "checkpoint.save_seconds=0.0")
UNEVEN = ("pretrain.batch_size=7", "finetune.batch_size=6", "evaluation.batch_size=5")
REPORTED = ("evaluation.report=True",)
LEVERS = (
    "pretrain.clip_norm=1.0",
    "pretrain.accumulation_steps=2",
    "pretrain.probe_epochs=1",
    f"finetune.augment={ALL}",
    "finetune.class_weights='balanced'",
    "finetune.sampling='balanced'",
    "finetune.loss='focal'",
    "finetune.clip_norm=1.0",
    "finetune.accumulation_steps=2",
    "finetune.ema_decay=0.8",
    "evaluation.tta=('horizontal_flip', 'vertical_flip')",
)


@pytest.fixture(scope="module")
def alone(data, cache, tmp_path_factory):
    """Workdirs of runs on one device, by their fields."""
    workdirs = {}

    def run(*fields):
        if fields not in workdirs:
            workdirs[fields] = tmp_path_factory.mktemp("alone")
            run_hosts(data, cache, workdirs[fields], *SHORT, *fields)
        return workdirs[fields]

    return run


@pytest.mark.essential
@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts", "devices", "fields", "free"),
    [
        (1, 4, UNEVEN, ()),
        (1, 8, (), ("mesh.fsdp=4",)),
        (2, 1, REPORTED, ("tensorboard.events=True",)),
        (2, 2, UNEVEN, ("data.feeding=stream",)),
        (2, 4, (), ("mesh.fsdp=8",)),
    ],
)
def test_many_devices_and_hosts_give_the_results_of_one(
    alone, data, cache, tmp_path, hosts, devices, fields, free
):
    expected = alone(*fields)
    output = run_hosts(data, cache, tmp_path, *SHORT, *fields, *free, hosts=hosts, devices=devices)
    assert f"on {hosts * devices} x cpu" in output
    assert_close_losses(expected, tmp_path)
    assert_same(outcome(expected), outcome(tmp_path), atol=1e-4)
    # One process alone writes the report and the events, while the others wait for it.
    assert (tmp_path / "report.html").exists() == (fields == REPORTED)
    assert (tmp_path / "tensorboard").exists() == (fields == REPORTED)
    names = {p.relative_to(expected) for p in expected.rglob("*") if p.is_file()}
    made = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {p for p in made if p.parts[0] != "tensorboard"}


@pytest.mark.slow
def test_what_is_off_by_default_gives_the_results_of_one_device_too(alone, data, cache, tmp_path):
    expected = alone(*LEVERS)
    run_hosts(data, cache, tmp_path, *SHORT, *LEVERS, devices=4)
    assert_close_losses(expected, tmp_path)
    assert_same(outcome(expected), outcome(tmp_path), atol=1e-4)


@pytest.mark.essential
@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_devices_and_hosts(alone, data, cache, tmp_path):
    """Preempted on two hosts, then on eight devices, it ends on one."""
    for count, devices in ((2, 2), (1, 8)):
        processes = start_hosts(data, cache, tmp_path, *SHORT, hosts=count, devices=devices)
        for line in processes[0].stdout:
            if "epoch 1/2" in line:
                break
        for process in processes:
            process.send_signal(signal.SIGTERM)
        finish(processes, 128 + signal.SIGTERM)
    run_hosts(data, cache, tmp_path, *SHORT)
    expected = alone()
    assert_close_losses(expected, tmp_path)
    assert_same(outcome(expected), outcome(tmp_path), atol=1e-4)


@pytest.mark.essential
@pytest.mark.slow
def test_where_one_host_dies_the_others_end_and_say_so(data, cache, tmp_path):
    processes = start_hosts(data, cache, tmp_path, "pretrain.epochs=2000", hosts=2)
    for line in processes[0].stdout:
        if "epoch 100/" in line:
            break
    processes[1].kill()
    output = processes[0].communicate(timeout=60)[0]  # tests.tiny waits 10 s for a heartbeat
    assert processes[0].returncode != 0
    assert output
    processes[1].wait()


STOPPED = ("branches=('mae',)", "rounds.count=1", "pretrain.epochs=120", "finetune.epochs=60")


@pytest.mark.slow
@pytest.mark.essential
def test_one_signalled_host_of_two_stops_both_and_nothing_is_lost(data, cache, tmp_path):
    """Each in turn, in pre-training and in fine-tuning; the bits are those of an unbroken run."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    finals = {
        "pretrain": run / "pretrain" / "autoencoder.safetensors",
        "finetune/mae": run / "export" / "round_0_mae.safetensors",
    }
    for stage, epoch, host, number, name in (
        ("pretrain", 6, 1, signal.SIGTERM, "SIGTERM"),
        ("pretrain", 60, 0, signal.SIGTERM, "SIGTERM"),
        ("finetune/mae", 3, 1, signal.SIGINT, "Ctrl-C"),
        ("finetune/mae", 30, 0, signal.SIGTERM, "SIGTERM"),
    ):
        processes = start_hosts(data, cache, run, *STOPPED, hosts=2, flags=QUICK)
        for line in processes[0].stdout:
            if f"{stage}, round 0: epoch {epoch}/" in line:
                break
        processes[host].send_signal(number)
        words = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
        assert [process.returncode for process in processes] == [128 + number] * 2, words
        assert words[0] == words[1]
        assert re.match(
            rf"Stopped by {name}: the same command resumes from step \d+ of \d+ of {stage}, ",
            words[0],
        )
        assert not finals[stage].exists()
        assert not (run / "predictions").exists()
    run_hosts(data, cache, run, *STOPPED, hosts=2, flags=QUICK)
    run_hosts(data, cache, whole, *STOPPED, hosts=2, flags=QUICK)
    assert_same(outcome(whole), outcome(run))
    assert losses(whole) == losses(run)


WAITING = """
import sys, time
from egmae_jax.core import hosts, preemption
preemption.install()
hosts.join(sys.argv[1], 2, int(sys.argv[2]))
preemption.install()
preemption._GRACE_SECONDS = 1.0
try:
    hosts.wait_for_all("both are here")
    print("here", flush=True)
    if sys.argv[2] == sys.argv[3]:
        time.sleep(600)  # as one that still prepares its data
    with preemption.treat_lost_hosts_as_preemption():
        hosts.wait_for_all("both are ready")  # which nothing interrupts
except preemption.Preempted as stop:
    stop.exit()
"""


@pytest.mark.slow
@pytest.mark.essential
@pytest.mark.parametrize(("busy", "signalled"), [(0, 1), (1, 1), (1, 0)])
def test_between_stages_too_one_signalled_host_stops_both(busy, signalled):
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, address, str(i), str(busy)],
            env=tiny.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        for line in process.stdout:
            if line == "here\n":
                break
    processes[signalled].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    for output in outputs:
        assert "Stopped by SIGTERM: the same command resumes from the saved files." in output
