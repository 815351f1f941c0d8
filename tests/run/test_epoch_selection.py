"""The validation metric that selects the epoch."""

import json

import numpy as np
import pytest

from egmae_jax import experiment
from egmae_jax.evaluation.metrics import compute_metrics
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.run import epoch_selection
from tests import tiny

LABELS = np.array([0, 0, 0, 1])
# All images are of class 0 by a small margin, which the first ranks rightly and the second wrongly.
RANKED = np.array([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
BALANCED = np.array([[0.9, 0.1], [0.9, 0.1], [0.05, 0.95], [0.1, 0.9]])


@pytest.mark.parametrize(
    ("select", "better"),
    [("auc", 0), ("accuracy", 0), ("loss", 0), ("f1", 1), ("balanced_accuracy", 1)],
)
def test_the_metric_decides_which_epoch_is_better(select, better):
    scores, rows = zip(
        *(epoch_selection.score(select, LABELS, x) for x in (RANKED, BALANCED)), strict=True
    )
    assert scores.index(max(scores)) == better
    logged = {"validation_auc", "validation_accuracy", "validation_loss"}
    assert rows[0].keys() == logged | {f"validation_{select}"}


def test_the_words_name_the_metric():
    words = [epoch_selection.describe(select) for select in epoch_selection.METRICS]
    assert words[0] == "highest validation AUC"
    assert words[3:] == ["highest validation balanced accuracy", "lowest validation loss"]


@pytest.mark.slow
@pytest.mark.parametrize("select", ["f1", "loss"])
def test_a_run_keeps_the_epoch_of_the_metric(data, cache, tmp_path, select):
    fields = {"branches": ("imagenet",), "rounds__count": 1, "finetune__epochs": 5}
    experiment.run(tiny.make_config(data, cache, finetune__select=select, **fields), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = [row[f"validation_{select}"] for row in rows]
    saved = load_predictions(tmp_path / "predictions" / "round_0_imagenet_validation.npz")
    own = compute_metrics(saved.labels, saved.probabilities).get(select)
    if select == "loss":
        own = epoch_selection.score(select, saved.labels, saved.probabilities)[1]["validation_loss"]
    assert own == pytest.approx(min(values) if select == "loss" else max(values))
