"""TensorBoard's events and other trackers: what they are told, and what a kill leaves of it."""

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


def crc32c(data: bytes) -> int:
    """Castagnoli's, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 * (value & 1))
    return value ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder: Path) -> list[Event]:
    """The events of a stage's only file with any, as TensorFlow documents its records."""
    (path,) = [p for p in folder.glob("events.out.tfevents.*") if p.stat().st_size]
    content, found = path.read_bytes(), []
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        data = content[12 : 12 + length]
        if length < 10_000:  # pictures take this sum long
            assert struct.unpack("<I", content[8:12])[0] == masked(content[:8])
            assert struct.unpack("<I", content[12 + length : 16 + length])[0] == masked(data)
        found.append(Event.FromString(data))
        content = content[16 + length :]
    assert found[0].file_version == "brain.Event:2"
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
        of_rows = [
            event.wall_time
            for event in events(workdir / "tensorboard" / stage / "round_0")
            if event.HasField("summary") and image_of(event) is None
        ]
        assert of_rows == [row["time"] for row in rows if row["stage"] == stage]
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
    for step, png in shown.items():
        path = folder / f"reconstructions_{step:08d}.png"
        assert path.read_bytes() == png
        with PIL.Image.open(path) as image:
            event = next(e for e in events(folder) if e.step == step and image_of(e))
            assert image.size == (image_of(event).width, image_of(event).height)


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


def test_events_and_panels_change_no_number_and_lost_ones_are_made_again(
    finished, config, tmp_path
):
    without = config.copy_and_resolve_references()
    without.tensorboard.events, without.tensorboard.panel_epochs = False, 0
    experiment.run(without, tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    tiny.assert_same(tiny.outcome(finished[0]), tiny.outcome(tmp_path))
    experiment.run(config, tmp_path)  # nothing is left to train
    for stage in ("pretrain/round_0", "finetune/mae/round_0"):
        made, live = (scalars(w / "tensorboard" / stage) for w in (tmp_path, finished[0]))
        assert timeless(made) == timeless(live)


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


def test_what_is_taken_again_is_nowhere_in_the_files(log, tmp_path):
    folder = tmp_path / "tensorboard" / "finetune" / "mae" / "round_1"
    for step in (10, 20, 30):
        log.write_picture("finetune/mae", 1, step, "maps", png(tmp_path))
    log.forget("finetune/mae", 1, after_step=20)
    assert {step for step, _, _ in scalars(folder)} == {10, 20}
    assert images(folder).keys() == {10, 20}
    assert sorted(p.name for p in folder.glob("*.png")) == [
        "maps_00000010.png",
        "maps_00000020.png",
    ]
    # A TensorBoard that is open drops what it has read of the file before.
    start = events(folder)[1]
    assert (start.step, start.session_log.status) == (0, start.session_log.START)
    log.write(**ROWS[5] | {"loss": 7.0})
    assert scalars(folder)[-1] == (30, "finetune/loss", 7.0)
    other = scalars(tmp_path / "tensorboard" / "finetune" / "mae" / "round_0")
    assert {step for step, _, _ in other} == {10, 20, 30}
    log.forget("finetune/mae", 1, after_step=0)
    assert [path.stat().st_size for path in folder.iterdir()] == [0]


@pytest.mark.parametrize(
    "line",
    [
        '{"stage": "finetune/mae", "round": 0, "step": %s, "loss": 1}' % ("9" * 400),
        '{"stage": "finetune/mae", "round": 0, "step": 4.5, "loss": 1}',
        '{"stage": "finetune/mae", "round": 0, "step": 4, "loss": %s}' % ("9" * 400),
        '{"stage": "finetune/mae", "round": 0, "step": 4, "\\ud800": 1}',
        '{"stage": "finetune/mae", "round": 0, "step": 4, "loss": 1, "time": "x"}',
        '{"stage": "../../out", "round": 0, "step": 4, "loss": 1}',
        '{"stage": ["x"], "round": 0, "step": 4, "loss": 1}',
    ],
)
def test_odd_lines_and_damaged_pictures_are_passed_over(log, tmp_path, line):
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    folder = tmp_path / "tensorboard" / "finetune" / "mae" / "round_0"
    (folder / "maps_00000010.png").write_bytes(b"\x89PNG")
    before = scalars(folder)
    next(folder.glob("events*")).unlink()
    log.complete_events([("finetune/mae", 0)])
    assert scalars(folder) == before
    assert {p.name for p in (tmp_path / "tensorboard").iterdir()} == {"finetune"}
    assert not (tmp_path.parent / "out").exists()


def test_of_several_hosts_one_writes_and_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "is_primary", lambda: False)
    recorder = Recorder()
    log = MetricsLog(tmp_path / "metrics.jsonl", EventFiles(tmp_path / "events"), [recorder])
    log.write(**ROWS[0])
    log.write_picture("pretrain", 0, 1, "maps", b"")
    log.forget("finetune/mae", 0, after_step=0)
    log.complete_events([("finetune/mae", 0)])
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
        ("tests.run.test_tensorboard:crc32c", "failed at its start: TypeError"),
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
