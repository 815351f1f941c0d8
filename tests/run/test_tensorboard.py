"""TensorBoard's events and other trackers: what they are told, and what a kill leaves of it."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tensorboardX.proto.event_pb2 import Event

from egmae_jax import experiment
from egmae_jax.core import sharding
from egmae_jax.run import trackers
from egmae_jax.run.config import ConfigError
from egmae_jax.run.logs import MetricsLog
from egmae_jax.run.tensorboard import EventFiles
from tests import tiny


def events(folder: Path) -> list[Event]:
    """What TensorBoard shows of a stage: a session that starts drops older events from its step on.

    Files are read as TensorFlow documents its records: length, checksum, data, checksum.
    """
    found: list[Event] = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = struct.unpack("<Q", content[:8])[0]
            event = Event.FromString(content[12 : 12 + length])
            if event.HasField("session_log"):
                found = [older for older in found if older.step < event.step]
            elif event.HasField("summary"):
                found.append(event)
            content = content[16 + length :]
    return found


def scalars(folder: Path) -> list[tuple]:
    """Step, tag and value of all numbers, in order."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def images(folder: Path) -> dict[int, bytes]:
    return {
        event.step: value.image.encoded_image_string
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("image")
    }


def timeless(points) -> list[tuple]:
    return [point for point in points if not point[1].endswith("images_per_second")]


class Recorder:
    """A tracker that stops the run at a step, as Ctrl-C would."""

    def __init__(self, stop=None):
        self.stop, self.told = stop, []

    def log(self, stage, round, step, metrics):
        if (stage, step) == self.stop:
            raise KeyboardInterrupt
        self.told.append((stage, round, step, dict(metrics)))


@pytest.fixture(scope="module")
def config(data, cache):
    return tiny.make_config(
        data,
        cache,
        branches=("mae",),
        rounds__count=1,
        tensorboard__events=True,
        tensorboard__panel_epochs=2,
        checkpoint__save_seconds=0.0,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A workdir with a complete run in it, and what a tracker was told of it."""
    workdir, recorder = tmp_path_factory.mktemp("finished"), Recorder()
    experiment.run(config, workdir, trackers=[recorder])
    return workdir, recorder.told


def test_every_number_of_metrics_jsonl_is_a_point(finished):
    workdir, told = finished
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for stage, section in (("pretrain", "pretrain"), ("finetune/mae", "finetune")):
        expected = [
            (row["step"], f"{section}/{name}", np.float32(value))
            for row in rows
            for name, value in row.items()
            if row["stage"] == stage and name not in ("stage", "round", "step", "time")
        ]
        assert len(expected) >= 15
        assert scalars(workdir / "tensorboard" / stage / "round_0") == expected
        times = {e.step: e.wall_time for e in events(workdir / "tensorboard" / stage / "round_0")
                 if image_of(e) is None}  # fmt: skip
        assert times == {row["step"]: row["time"] for row in rows if row["stage"] == stage}
    keys = ("stage", "round", "step", "time")
    assert told == [
        (row["stage"], 0, row["step"], {k: v for k, v in row.items() if k not in keys})
        for row in rows
    ]


def test_reconstructions_are_drawn_as_often_as_asked_and_at_the_end(finished, config):
    folder = finished[0] / "tensorboard" / "pretrain" / "round_0"
    steps_per_epoch = 2
    shown = images(folder)
    assert list(shown) == [2 * steps_per_epoch, 3 * steps_per_epoch]
    assert len(set(shown.values())) == 2  # the network went on
    for png in shown.values():
        with PIL.Image.open(io.BytesIO(png)) as image:
            assert min(image.size) > 100


def image_of(event):
    return next((v.image for v in event.summary.value if v.HasField("image")), None)


@pytest.mark.parametrize(
    "stop", [("pretrain", 6), pytest.param(("finetune/mae", 4), marks=pytest.mark.slow)]
)
def test_a_run_that_was_stopped_shows_the_curves_of_one_that_was_not(
    finished, config, tmp_path, stop
):
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path, trackers=[Recorder(stop)])
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["stage"], last["step"]) == stop  # its checkpoint is of an earlier step
    experiment.run(config, tmp_path)
    for stage in ("pretrain/round_0", "finetune/mae/round_0"):
        folders = [workdir / "tensorboard" / stage for workdir in (finished[0], tmp_path)]
        assert timeless(scalars(folders[0])) == timeless(scalars(folders[1]))
        assert images(folders[0]) == images(folders[1])
    tiny.assert_same(tiny.outcome(finished[0]), tiny.outcome(tmp_path))


def test_events_and_panels_change_no_number(finished, config, tmp_path):
    without = config.copy_and_resolve_references()
    without.tensorboard.events, without.tensorboard.panel_epochs = False, 0
    experiment.run(without, tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    tiny.assert_same(tiny.outcome(finished[0]), tiny.outcome(tmp_path))


# --- Without a run --------------------------------------------------------------------------------

ROWS = [
    {"stage": "finetune/mae", "round": r, "epoch": e, "step": 10 * e, "loss": 1 / (r + e)}
    for r in (0, 1)
    for e in (1, 2, 3)
]


@pytest.fixture
def log(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", EventFiles(tmp_path / "tensorboard"))
    for row in ROWS:
        log.write(**row)
    return log


def png(folder: Path) -> bytes:
    PIL.Image.new("RGB", (3, 2)).save(folder / "x.png")
    return (folder / "x.png").read_bytes()


def test_rounds_are_runs_of_their_own_with_the_same_tags(log, tmp_path):
    for r in (0, 1):
        found = scalars(tmp_path / "tensorboard" / "finetune" / "mae" / f"round_{r}")
        losses = [(step, value) for step, tag, value in found if tag == "finetune/loss"]
        assert losses == [(10 * e, np.float32(1 / (r + e))) for e in (1, 2, 3)]


def test_what_is_taken_again_is_dropped(log, tmp_path):
    folder = tmp_path / "tensorboard" / "finetune" / "mae" / "round_1"
    for step in (10, 20, 30):
        log.write_picture("finetune/mae", 1, step, "maps", png(tmp_path))
    log.forget("finetune/mae", 1, after_step=20)
    assert {step for step, _, _ in scalars(folder)} == {10, 20}
    assert images(folder).keys() == {10, 20}
    log.write(**ROWS[5] | {"loss": 7.0})
    assert scalars(folder)[-1] == (30, "finetune/loss", 7.0)
    other = scalars(tmp_path / "tensorboard" / "finetune" / "mae" / "round_0")
    assert {step for step, _, _ in other} == {10, 20, 30}


def test_of_several_hosts_one_writes_and_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "is_primary", lambda: False)
    recorder = Recorder()
    log = MetricsLog(tmp_path / "metrics.jsonl", EventFiles(tmp_path / "events"), [recorder])
    log.write(**ROWS[0])
    log.write_picture("pretrain", 0, 1, "maps", b"")
    log.forget("finetune/mae", 0, after_step=0)
    assert list(tmp_path.iterdir()) == []
    assert recorder.told == []


def test_a_tracker_that_fails_is_told_of_once_and_the_others_go_on(tmp_path, caplog):
    class Broken(Recorder):
        def log(self, *arguments):
            super().log(*arguments)
            raise ConnectionError("no route")

    broken, sound = Broken(), Recorder()
    log = MetricsLog(tmp_path / "metrics.jsonl", trackers=[broken, sound])
    with caplog.at_level("WARNING", logger="egmae_jax"):
        for row in ROWS:
            log.write(**row)
    assert len(broken.told) == len(sound.told) == 6
    (message,) = caplog.messages
    assert "Broken failed at step 10 of finetune/mae (ConnectionError('no route'))" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "must be module:function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("tests.tiny:f", "tests.tiny has no 'f'"),
        ("tests.run.test_tensorboard:scalars", "failed at its start: TypeError"),
        ("builtins:max", "failed at its start: TypeError"),
        ("tests.run.test_tensorboard:no_tracker", "made a dict, which has no log"),
    ],
)
def test_a_tracker_that_cannot_be_made_is_told_before_work_starts(config, tmp_path, name, message):
    with pytest.raises(ConfigError, match=f"--tracker={name}.*{message}"):
        trackers.load(name, config, tmp_path)


def no_tracker(config, workdir):
    return {}


def test_a_tracker_is_made_from_config_and_workdir(config, tmp_path):
    made = trackers.load("tests.run.test_tensorboard:Made", config, tmp_path)
    assert (made.config["model"]["name"], made.workdir) == (tiny.MODEL, tmp_path)


class Made(Recorder):
    def __init__(self, config, workdir):
        self.config, self.workdir = config, workdir
