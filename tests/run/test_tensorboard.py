"""TensorBoard's events and other trackers: what they are told, and what a kill leaves of it."""

import io
import json
import struct
import sys
import unittest.mock
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tensorboardX.proto.event_pb2 import Event

from egmae_jax import experiment
from egmae_jax.core import hosts
from egmae_jax.core.errors import ConfigError
from egmae_jax.run import trackers
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


def test_every_number_of_metrics_jsonl_is_a_point_and_goes_to_the_trackers(finished):
    workdir = finished.workdir
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = ("stage", "round", "step", "time")
    metrics = [{k: v for k, v in row.items() if k not in keys} for row in rows]
    assert finished.rows == [
        (row["stage"], row["round"], row["step"], x) for row, x in zip(rows, metrics, strict=True)
    ]
    for stage, section, i in (("pretrain", "pretrain", 0), ("finetune/mae", "finetune", 1)):
        expected = [
            (row["step"], f"{section}/{name}", np.float32(value))
            for row, x in zip(rows, metrics, strict=True)
            for name, value in x.items()
            if (row["stage"], row["round"]) == (stage, i)
        ]
        assert len(expected) >= 15
        assert scalars(workdir / "tensorboard" / stage / f"round_{i}") == expected


def test_reconstructions_are_drawn_as_often_as_asked_and_at_the_end(finished):
    folder = finished.workdir / "tensorboard" / "pretrain" / "round_0"
    steps_per_epoch = 2
    shown = images(folder)
    assert list(shown) == [2 * steps_per_epoch, 3 * steps_per_epoch]
    assert len(set(shown.values())) == 2  # the network went on
    for png in shown.values():
        with PIL.Image.open(io.BytesIO(png)) as image:
            assert min(image.size) > 100


@pytest.mark.parametrize(
    ("stop", "stage"),
    [
        (("pretrain", 6), "pretrain"),
        pytest.param(("finetune/mae", 4), "all", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_shows_the_curves_of_one_that_was_not(
    finished, tmp_path, stop, stage
):
    config = finished.config.copy_and_resolve_references()
    config.checkpoint.save_seconds, config.tensorboard.panel_epochs = 0.0, 0
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path, stage, trackers=[tiny.Recorder(stop)])
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["stage"], last["step"]) == stop  # its checkpoint is of an earlier step
    experiment.run(config, tmp_path, stage)
    folder = f"tensorboard/{stop[0]}/round_0"
    whole, stopped = (scalars(path / folder) for path in (finished.workdir, tmp_path))
    assert timeless(whole) == timeless(stopped)
    expected = tiny.outcome(finished.workdir)
    if stage == "pretrain":
        expected = {name: x for name, x in expected.items() if name.startswith("pretrain/")}
    tiny.assert_same(expected, tiny.outcome(tmp_path))


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


def test_of_several_hosts_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_primary", lambda: False)
    recorder = tiny.Recorder()
    log = MetricsLog(tmp_path / "metrics.jsonl", EventFiles(tmp_path / "events"), [recorder])
    log.write(**ROWS[0])
    log.write_picture("pretrain", 0, 1, "maps", b"")
    log.forget("finetune/mae", 0, after_step=0)
    assert list(tmp_path.iterdir()) == []
    assert recorder.rows == []


def test_the_first_error_of_a_tracker_is_logged_and_the_others_go_on(tmp_path, caplog):
    class Broken(tiny.Recorder):
        def log(self, *arguments):
            super().log(*arguments)
            raise ConnectionError("no route")

    broken, sound = Broken(), tiny.Recorder()
    log = MetricsLog(tmp_path / "metrics.jsonl", trackers=[broken, sound])
    with caplog.at_level("WARNING", logger="egmae_jax"):
        for row in ROWS:
            log.write(**row)
    assert len(broken.rows) == len(sound.rows) == 6
    (message,) = caplog.messages
    assert "Broken failed at step 10 of finetune/mae (ConnectionError('no route'))" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "No module named 'no_such_module'. It must be module:function"),
        ("builtins:max", "TypeError"),
        ("operator:eq", "made a bool, which has no log"),
        ("wandbb", "no tracker of this name. It must be wandb, mlflow, aim, or module:function"),
    ],
)
def test_a_tracker_that_cannot_be_made_is_refused(tmp_path, name, message):
    with pytest.raises(ConfigError, match=f"--tracker={name}.*{message}"):
        trackers.load(name, tiny.make_config("", ""), tmp_path)


def test_a_tracker_is_made_from_config_and_workdir(tmp_path):
    made = trackers.load("tests.run.test_tensorboard:Made", tiny.make_config("", ""), tmp_path)
    assert (made.config["model"]["name"], made.workdir) == (tiny.MODEL, tmp_path)


class Made(tiny.Recorder):
    def __init__(self, config, workdir):
        self.config, self.workdir = config, workdir


@pytest.mark.parametrize("name", trackers.NAMES)
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"--tracker={name}: .*pip install {name}"):
        trackers.load(name, tiny.make_config("", ""), tmp_path)


@pytest.mark.parametrize("name", trackers.NAMES)
def test_an_error_of_a_package_is_a_sentence(tmp_path, monkeypatch, name):
    fake = unittest.mock.MagicMock()
    fake.init.side_effect = fake.set_experiment.side_effect = fake.Run.side_effect = OSError("no")
    monkeypatch.setitem(sys.modules, name, fake)
    with pytest.raises(ConfigError, match=f"--tracker={name}: {name} could not start: OSError"):
        trackers.load(name, tiny.make_config("", ""), tmp_path)


def test_packages_are_told_every_number(tmp_path, monkeypatch):
    fakes = {name: unittest.mock.MagicMock() for name in trackers.NAMES}
    fakes["mlflow"].search_runs.side_effect = [
        [],
        [unittest.mock.Mock(info=unittest.mock.Mock(run_id="7"))],
    ]
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    config = tiny.make_config("", "")
    for _ in range(2):  # as when a run is resumed
        made = [trackers.load(name, config, tmp_path / "busi") for name in fakes]
    for tracker in made:
        tracker.log("finetune/mae", 1, 30, {"loss": 0.5, "epoch": 3})
    named = {"finetune/mae/round_1/loss": 0.5, "finetune/mae/round_1/epoch": 3}
    run = fakes["wandb"].init.return_value
    run.log.assert_called_once_with(named | {"step": 30})
    first, second = fakes["wandb"].init.call_args_list
    assert first == second
    assert (first.kwargs["name"], first.kwargs["config"]) == ("busi", config.to_dict())
    fakes["mlflow"].log_metrics.assert_called_once_with(named, step=30)
    assert fakes["mlflow"].start_run.call_args_list[1].kwargs == {"run_id": "7"}
    context = {"stage": "finetune/mae", "round": 1}
    assert fakes["aim"].Run.return_value.track.call_args_list == [
        unittest.mock.call(0.5, name="loss", step=30, context=context),
        unittest.mock.call(3, name="epoch", step=30, context=context),
    ]
