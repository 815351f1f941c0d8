"""The encoder's features are scored during pre-training, without changing it."""

import json

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from egmae_jax import experiment
from egmae_jax.data import splits
from egmae_jax.evaluation import probe
from tests import tiny, torch_reference


@pytest.fixture(scope="module")
def probed(data, cache, tmp_path_factory):
    """A run of three epochs of pre-training that are scored after the second and the last."""
    workdir = tmp_path_factory.mktemp("probed")
    config = tiny.make_config(
        data,
        cache,
        rounds__count=1,
        branches=("mae",),
        pretrain__probe_epochs=2,
        evaluation__report=True,
        tensorboard__events=True,
    )
    return workdir, experiment.run(config, workdir)


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["stage"] == "pretrain"]


@pytest.mark.essential
@pytest.mark.slow
def test_scores_are_logged_when_they_are_due_and_training_is_the_same(probed, finished):
    workdir, results = probed
    scored = {row["epoch"]: row for row in rows(workdir) if "validation_knn_accuracy" in row}
    assert list(scored) == [2, 3]
    probe = results["pretraining"][0]["probe"]
    for name, value in probe["after"].items():
        assert scored[3][f"validation_{name}"] == value
    assert probe["before"].keys() == probe["after"].keys()
    assert probe["majority_accuracy"] == pytest.approx(1 / 3)
    for file in ("pretrain/autoencoder.safetensors", "export/round_0_mae.safetensors"):
        assert (workdir / file).read_bytes() == (finished.workdir / file).read_bytes()


@pytest.mark.essential
@pytest.mark.slow
def test_report_and_tensorboard_show_them(probed):
    workdir, _ = probed
    page = (workdir / "report.html").read_text()
    assert "linear probe from" in page
    assert "a linear probe has accuracy" in page
    (events,) = (workdir / "tensorboard" / "pretrain" / "round_0").glob("events*")
    assert b"pretrain/validation_probe_accuracy" in events.read_bytes()


@pytest.mark.essential
@pytest.mark.slow
def test_the_features_are_timms(probed, data):
    """The k nearest neighbours by timm's features have the accuracy that was logged."""
    torch, timm = torch_reference.torch(), torch_reference.timm()
    workdir, results = probed
    from egmae_jax.data import images
    from egmae_jax.method import augment
    from egmae_jax.models.transfer import load_params

    (depths, dims, _) = tiny.ENTRY
    theirs = timm.models.convnext.ConvNeXt(depths=depths, dims=dims, num_classes=0).eval()
    from egmae_jax.models import timm_names

    params = load_params(workdir / "pretrain" / "autoencoder.safetensors")["encoder"]
    flat = tiny.flatten(params)
    state = {
        key: torch.from_numpy(np.array(layout.to_torch(flat[path]), np.float32))
        for key, (path, _, layout) in timm_names.expected_tensors(tiny.MODEL, 1).items()
        if path in flat
    }
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert not extra
    assert all(name.startswith("head.") for name in missing)
    parts = {"train": [], "validation": []}
    for row in splits.read(workdir / "splits.json"):
        if row["split"] in parts:
            image = images.decode((data / row["file"]).read_bytes())
            view = images.evaluation_view(image, resize="shorter_side", image_size=32, resized=32)
            parts[row["split"]].append((images.to_array(view), row["label"]))
    features, labels = {}, {}
    for part, found in parts.items():
        pixels = np.asarray(augment.normalize(np.stack([x for x, _ in found])))
        with torch.inference_mode():
            maps = theirs.forward_features(torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2))
        features[part], labels[part] = maps.mean((2, 3)).numpy(), [label for _, label in found]
    neighbours = KNeighborsClassifier(20, metric="cosine").fit(features["train"], labels["train"])
    expected = neighbours.score(features["validation"], labels["validation"])
    after = results["pretraining"][0]["probe"]["after"]
    assert after["knn_accuracy"] == pytest.approx(expected)


def test_only_labels_that_fine_tuning_uses_train_the_probe(data, cache, tmp_path, monkeypatch):
    config = tiny.make_config(
        data,
        cache,
        rounds__count=1,
        branches=("mae",),
        pretrain__epochs=1,
        pretrain__warmup_epochs=0,
        pretrain__probe_epochs=1,
        finetune__label_share=0.5,
    )
    given = []
    score = probe.score
    monkeypatch.setattr(probe, "score", lambda *x: given.append(len(x[1])) or score(*x))
    run = experiment.Experiment(config, tmp_path, "pretrain")
    run.pretrain()
    labelled = run.run.data.labelled(0)
    assert labelled["images"] < labelled["of"]
    assert set(given) == {labelled["images"]}
