"""A run with every augmentation and everything else that is off by default."""

import json

import numpy as np
import pytest

import egmae_jax
from egmae_jax import experiment
from egmae_jax.commands import augment
from egmae_jax.core.errors import ConfigError
from egmae_jax.deploy.export import run as export
from egmae_jax.evaluation.metrics import compute_metrics
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.run import images, rules
from tests import tiny
from tests.augmentations.test_augmentations import ALL
from tests.run.test_config import changed

FIELDS = {
    "rounds__count": 1,
    "pretrain__clip_norm": 1.0,
    "pretrain__accumulation_steps": 2,
    "finetune__augment": ALL,
    "finetune__clip_norm": 1.0,
    "finetune__accumulation_steps": 4,
    "finetune__ema_decay": 0.8,
    "finetune__patience": 2,
    "finetune__epochs": 6,
    "evaluation__tta": ("horizontal_flip", "vertical_flip", "five_crop"),
    "evaluation__resize": 37,
    "checkpoint__save_seconds": 0.0,
}


@pytest.fixture(scope="module")
def run(data, cache, tmp_path_factory):
    """Config, workdir and rows of metrics.jsonl of a complete run."""
    config, workdir = tiny.make_config(data, cache, **FIELDS), tmp_path_factory.mktemp("options")
    experiment.run(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return config, workdir, rows


@pytest.mark.slow
def test_the_average_selects_the_epoch_and_predicts(run):
    _, workdir, rows = run
    for branch in ("imagenet", "mae"):
        own = [row for row in rows if row["stage"] == f"finetune/{branch}"]
        assert all(row["gradient_norm"] > 0 for row in own)
        scores = [(row["ema_validation_auc"], -row["ema_validation_loss"]) for row in own]
        saved = load_predictions(workdir / "predictions" / f"round_0_{branch}_validation.npz")
        metrics = compute_metrics(saved.labels, saved.probabilities)
        assert metrics["auc"] == pytest.approx(max(scores)[0])
        best = scores.index(max(scores)) + 1
        assert len(own) == 6 or len(own) == best + 2
    assert all("gradient_norm" in row for row in rows)


@pytest.mark.essential
@pytest.mark.slow
@pytest.mark.parametrize("stop", [("pretrain", 6), ("finetune/mae", 6)])
def test_a_run_that_is_stopped_ends_in_the_same_bits(run, stop, tmp_path):
    config, workdir, _ = run
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path, trackers=[tiny.Recorder(stop)])
    experiment.run(config, tmp_path)
    tiny.assert_same(tiny.outcome(workdir), tiny.outcome(tmp_path))


@pytest.mark.slow
def test_new_images_are_predicted_and_exported_with_the_same_views(run, data, tmp_path):
    _, workdir, _ = run
    saved = load_predictions(workdir / "predictions" / "round_0_mae_test.npz")
    predictor = egmae_jax.load(workdir, calibrated=False, batch=4)
    files = [data / name for name in saved.ids]
    result = predictor.predict(files)
    np.testing.assert_allclose(result.probabilities["mae"], saved.probabilities, atol=1e-6)
    batch = next(predictor.stream(files[:2]))
    assert batch.pixels.shape == (2, 32, 32, 3)
    assert predictor.heat(batch, "mae").shape == (2, 32, 32)
    files = export.export_run(workdir, tmp_path / "out", branch="mae", formats=("stablehlo",))
    assert not any(file.is_wrong for file in files)
    description = json.loads((tmp_path / "out/mae/model.stablehlo.json").read_text())
    assert description["input"]["shape"] == ["batch", 37, 37, 3]
    assert "average over several views of an image" in (tmp_path / "out/mae/README.md").read_text()


# --- The sheet ------------------------------------------------------------------------------------


def test_the_sheet_shows_each_image_in_some_draws(command, data, cache, tmp_path, monkeypatch):
    fields = {"finetune__augment": ("rotate(15)", "mixup(0.5)"), "data__color": "grey"}
    config = tiny.make_config(data, cache, **fields)
    monkeypatch.setattr("egmae_jax.commands.arguments.Parser.read", _read(config, tmp_path))
    status, output, _ = command(augment)
    assert status == 0
    assert f"The sheet is {tmp_path / 'sheet.png'}" in output.replace("\n", "")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def _read(config, folder):
    def read(self, arguments):
        options = self.parse_args(["--config=x", f"--out={folder / 'sheet.png'}", "--draws=3"])
        options.config = config
        return options

    return read


# --- The title ---


@pytest.mark.parametrize(
    ("title", "shown"), [("", "a folder of images, one folder per class"), ("A & B", "A & B")]
)
def test_a_data_set_has_the_title_that_is_given_it(data, cache, title, shown):
    config = tiny.make_config(data, cache, data__title=title)
    prepared = images.prepare_images(config, images.list_images(config))
    assert (prepared.name, prepared.title) == ("image_folder", shown)


# --- Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"finetune__augment": ("rotat(15)",)}, "finetune.augment: There is no augmentation 'rot"),
        ({"finetune__augment": ("mixup",), "finetune__batch_size": 1}, "batch_size is 1; use 2"),
        ({"finetune__accumulation_steps": 3}, "is 3; it must divide finetune.batch_size=16"),
        ({"pretrain__accumulation_steps": 0}, "pretrain.accumulation_steps is 0; it must be pos"),
        ({"finetune__ema_decay": 1.0}, "ema_decay is 1.0; it must be at least 0 and below 1"),
        ({"finetune__patience": -1}, "finetune.patience is -1; it must not be negative"),
        (
            {"finetune__select": "kappa"},
            "finetune.select is 'kappa'; it must be one of 'auc', 'acc",
        ),
        ({"finetune__clip_norm": -1.0}, "finetune.clip_norm is -1.0; it must not be negative"),
        ({"evaluation__tta": ("flip",)}, "evaluation.tta names 'flip'; it may name 'horizontal"),
        ({"evaluation__tta": ("five_crop",)}, "leaves nothing to crop; .* such as 256"),
    ],
)
def test_a_mistake_is_named_before_the_run_begins(fields, message):
    with pytest.raises(ConfigError, match=message):
        rules.check(changed(**fields), 1)


def test_devices_share_the_parts_of_a_batch():
    rules.check(changed(finetune__accumulation_steps=2, mesh__data=8), 8)
    with pytest.raises(ConfigError, match="batches of 16, 4 images do not divide into 8 parts"):
        rules.check(changed(finetune__accumulation_steps=4, mesh__data=8), 8)
