"""Few labels and unequal classes: what config.finetune asks for, and runs that do it."""

import json
import re
import types

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from egmae_jax import experiment
from egmae_jax.core.errors import ConfigError
from egmae_jax.data import phantoms, splits
from egmae_jax.run import class_balance
from tests import tiny
from tests.tiny import assert_same, outcome

CLASSES = ("benign", "malignant", "normal")
LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def settings(**fields):
    defaults = {"class_weights": "none", "loss": "cross_entropy", "sampling": "plain"}
    return types.SimpleNamespace(**{**defaults, **fields})


def weights(text, classes=CLASSES):
    given = settings(class_weights=text)
    class_balance.require_classes(given, classes)
    return class_balance.of_loss(given, classes, LABELS).weights


def test_weights_are_scikit_learns_or_those_given():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(weights("balanced"), expected, rtol=1e-6)
    assert weights("none") is None
    np.testing.assert_allclose(weights("normal=3, benign=1,malignant=.25"), [1, 0.25, 3])
    odd = ("a=b", "x, y", "z")
    np.testing.assert_allclose(weights("a=b=1,x, y=2.5,z=3", odd), [1, 2.5, 3])


@pytest.mark.parametrize(
    "text", ["", "balance", "1,2,1", "benign=1,benign=2", "benign=0", "benign=-1", "a=x"]
)
def test_weights_that_cannot_be_read_are_quoted(text):
    (problem,) = class_balance.problems(settings(class_weights=text))
    assert problem.startswith(f"finetune.class_weights is {text!r}; it must be 'none', 'balanced'")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("benign=1,malignant=2", "the class 'normal' has no weight"),
        (
            "Benign=1,malignant=2,normal=1",
            "there is no class 'Benign', the class 'benign' has no weight",
        ),
    ],
)
def test_weights_of_other_classes_are_refused_before_images_are_read(
    data, cache, tmp_path, text, wrong
):
    config = tiny.make_config(data, cache, finetune__class_weights=text)
    expected = f"{wrong}; it must give each class a weight: benign=1,malignant=1,normal=1"
    with pytest.raises(ConfigError, match=expected):
        experiment.run(config, tmp_path)
    assert not (tmp_path / "splits.json").exists()


def test_shares_are_those_of_the_labels_and_only_for_the_loss_that_reads_them():
    assert class_balance.of_loss(settings(loss="focal"), CLASSES, LABELS).shares is None
    balance = class_balance.of_loss(settings(loss="logit_adjusted"), CLASSES, LABELS)
    np.testing.assert_allclose(balance.shares, [0.6, 0.3, 0.1], rtol=1e-6)


def test_balanced_sampling_weights_sum_to_the_same_for_each_class():
    assert class_balance.sampling_weights(settings(), LABELS) is None
    sampled = class_balance.sampling_weights(settings(sampling="balanced"), LABELS)
    np.testing.assert_allclose([sampled[c == LABELS].sum() for c in range(3)], 1)


def test_what_is_odd_is_said_at_the_start(data, cache, tmp_path, caplog):
    caplog.set_level("INFO", "egmae_jax")
    config = tiny.make_config(
        data,
        cache,
        finetune__label_share=0.3,
        finetune__class_weights="balanced",
        finetune__sampling="balanced",
        finetune__focal_gamma=1.0,
    )
    run = experiment.Experiment(config, tmp_path).run
    for warning in (
        "finetune.focal_gamma is 1.0, but finetune.loss=cross_entropy does not read it",
        "finetune.class_weights=balanced and finetune.sampling=balanced: each makes up for",
    ):
        assert warning in caplog.text
    for index in (0, 1):
        count = len(run.data.indices(index, "labelled"))
        said = re.search(rf"Round {index} uses the labels of (\d+) of (\d+) training", caplog.text)
        assert (int(said[1]), int(said[2])) == (count, len(run.data.indices(index, "train")))
    assert set(run.data.indices(0, "labelled")) != set(run.data.indices(1, "labelled"))
    assert set(run.data.indices(0, "labelled")) < set(run.data.indices(0, "train"))


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """Phantoms of three classes, of which one is rare."""
    folder = tmp_path_factory.mktemp("unequal") / "phantoms"
    phantoms.write(folder, images_per_class=24, seed=1, height=48, width=64)
    for path in sorted((folder / "normal").glob("*.png"))[10:]:
        path.unlink()
    return folder


FIELDS = {
    "rounds__count": 2,
    "finetune__label_share": 0.5,
    "finetune__sampling": "balanced",
    "finetune__class_weights": "benign=1,malignant=2,normal=1.5",
    "checkpoint__save_seconds": 0.0,
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["focal", "logit_adjusted"])
def test_a_stopped_run_of_few_labels_and_unequal_classes_ends_in_the_same_bits(
    unequal, cache, tmp_path, loss
):
    fields = {**FIELDS, "finetune__loss": loss}
    config = tiny.make_config(unequal, cache, **fields, evaluation__report=True)
    recorder = tiny.Recorder()
    whole = experiment.run(config, tmp_path / "whole", trackers=[recorder])
    stopped = tiny.Recorder(stop=("finetune/mae", recorder.rows[-2][2]))
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "stopped", trackers=[stopped])
    experiment.run(config, tmp_path / "stopped")
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "stopped"))
    streamed = tiny.make_config(unequal, cache, **fields, data__feeding="stream")
    experiment.run(streamed, tmp_path / "streamed")
    assert_same(outcome(tmp_path / "whole"), outcome(tmp_path / "streamed"))

    rows = splits.read(tmp_path / "whole" / "splits.json")
    train = [row["label"] for row in rows if row["split"] == "train"]
    for row in whole["rounds"]:
        labelled = row["labelled"]
        assert labelled["of"] == len(train)
        assert labelled["images"] == sum(labelled["by_class"].values()) == labelled["groups"]
        for name, count in labelled["by_class"].items():
            assert abs(count - train.count(name) / 2) <= 0.5
    # An epoch is as long as the labels; pre-training sees all images.
    epochs = {stage: step // 3 for stage, _, step, _ in recorder.rows}
    assert epochs["finetune/mae"] == max(1, whole["rounds"][1]["labelled"]["images"] // 8)
    assert epochs["pretrain"] == len(train) // 8
    page = (tmp_path / "whole" / "report.html").read_text()
    count = whole["rounds"][0]["labelled"]["images"]
    assert f"Fine-tuning used the labels of {count} of {len(train)} training images" in page
    assert "class weights benign=1,malignant=2,normal=1.5; images drawn with replacement" in page
    assert json.loads((tmp_path / "whole" / "results.json").read_text()) == json.loads(
        json.dumps(whole)
    )


@pytest.mark.slow
def test_rare_classes_are_predicted_more_often_with_each_remedy(unequal, cache, tmp_path):
    """The mean probability of the rare class, of networks that learn little else."""
    means = {}
    for name, fields in {
        "none": {},
        "weights": {"finetune__class_weights": "balanced"},
        "sampling": {"finetune__sampling": "balanced"},
        "logits": {"finetune__loss": "logit_adjusted"},
    }.items():
        options = {"branches": ("imagenet",), "rounds__count": 1, "finetune__epochs": 10}
        config = tiny.make_config(unequal, cache, **options, **fields)
        experiment.run(config, tmp_path / name)
        saved = np.load(tmp_path / name / "predictions" / "round_0_imagenet_test.npz")
        means[name] = saved["probabilities"].mean(axis=0)[2]
    assert all(means[name] > means["none"] for name in ("weights", "sampling", "logits")), means
