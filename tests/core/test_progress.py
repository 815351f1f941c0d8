"""What a stage shows on the terminal while it trains."""

import io

import pytest
import rich.console

from egmae_jax import experiment
from egmae_jax.core import console
from egmae_jax.core.progress import ProgressBar
from tests import tiny

ROW = {"loss": 0.5, "validation_auc": 0.75, "validation_loss": 0.25, "images_per_second": 9.0}


@pytest.fixture
def output(monkeypatch):
    """What the package prints on a terminal."""
    printed = io.StringIO()
    terminal = rich.console.Console(file=printed, force_terminal=True, width=200, highlight=False)
    monkeypatch.setattr(console, "terminal", terminal)
    return printed


def test_a_line_per_epoch_has_loss_and_validation_metrics(output):
    bar = ProgressBar("finetune/mae, round 0", 30, 0)
    for epoch in (1, 2):
        bar.epoch(epoch, 15, ROW)
    assert output.getvalue().splitlines() == [
        "finetune/mae, round 0",
        "    epoch      loss  val. auc  val. loss",
        "     1/15    0.5000    0.7500     0.2500",
        "     2/15    0.5000    0.7500     0.2500",
    ]


def test_of_many_epochs_without_validation_twenty_are_shown(output):
    bar = ProgressBar("pretrain, round 0", 1000, 0)
    for epoch in range(1, 1001):
        bar.epoch(epoch, 1000, {"loss": 0.5})
    assert len(output.getvalue().splitlines()) == 2 + 20


def test_the_time_left_of_the_whole_run_is_shown(output):
    bar = ProgressBar("pretrain, round 0", 10, 0, lambda step, speed: (10 - step) * speed + 3600)
    with bar:
        bar.update(4, 0.5, 2.0)
    assert "loss 0.5000, 2 images/s, left: run 1:00:12, stage" in output.getvalue()


def test_the_time_left_counts_the_stages_that_follow(output, data, cache, tmp_path):
    config = tiny.make_config(data, cache, rounds__count=1)
    run = experiment.Experiment(config, tmp_path).run
    images = len(run.data.indices(0, "train"))
    plans = {
        stage: run.plan(stage, 0, ("train",), batch_size=8, epochs=3)
        for stage in ("pretrain", "finetune/imagenet", "finetune/mae")
    }
    total = plans["pretrain"].total_steps
    assert run._seconds_left(plans["pretrain"])(total, 2.0) == 2 * 3 * images / 2
    run._seconds_left(plans["finetune/imagenet"])(0, 4.0)  # whose speed is then known
    assert run._seconds_left(plans["pretrain"])(total, 2.0) == 3 * images * (1 / 4 + 1 / 2)
    (tmp_path / "export").mkdir()
    (tmp_path / "export/round_0_imagenet.safetensors").touch()  # a stage that is complete
    assert run._seconds_left(plans["finetune/mae"])(total, 2.0) == 3 * images / 2
