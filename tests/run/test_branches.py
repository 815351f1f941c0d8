"""Whole runs with other branches than the paper's two: other networks, layers, fusions, noise."""

import json

import jax
import numpy as np
import optax
import PIL.Image
import pytest

from egmae_jax import experiment, models
from egmae_jax.core import sharding
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import read_sealed
from egmae_jax.data.pipeline import Images
from egmae_jax.evaluation.metrics import compute_metrics
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.method import augment
from egmae_jax.models import registry, timm
from egmae_jax.models import weights as model_weights
from egmae_jax.run import config as configs
from egmae_jax.run import layer_selection
from egmae_jax.run.branches import Branch
from egmae_jax.run.imagenet import ImagenetWeights
from egmae_jax.training import finetune
from egmae_jax.training.state import TrainState
from tests import tiny
from tests.tiny import assert_same, flatten, outcome, run_process

EPOCHS = {"finetune__epochs": 2, "pretrain__epochs": 1, "rounds__count": 1}


@pytest.fixture(scope="module")
def selected(data, cache, tmp_path_factory):
    """Workdir and results of a ResNet of which low-entropy layers train; no other branch.

    A checkpoint is left after every dispatch, so that a killed run can go on.
    """
    workdir = tmp_path_factory.mktemp("selected")
    return workdir, experiment.run(selection_config(data, cache), workdir)


def selection_config(data, cache, **changes):
    fields = {
        "branches": ("imagenet",),
        "imagenet__model": tiny.RESNET,
        "finetune__trainable": "low_entropy",
        "finetune__trainable_share": 0.4,
        "checkpoint__save_seconds": 0.0,
    }
    return tiny.make_config(data, cache, **(EPOCHS | fields | changes))


def test_one_branch_is_neither_pretrained_nor_fused(selected):
    workdir, results = selected
    assert not (workdir / "pretrain").exists()
    assert results["pretraining"] == []
    assert results["branches"] == {"imagenet": tiny.RESNET}
    (row,) = results["rounds"]
    assert row["test"].keys() == row["confusion"].keys() == {"imagenet"}
    assert "fusion" not in row
    assert results["summary"].keys() == {"imagenet"}
    exported = [path.name for path in (workdir / "export").iterdir()]
    assert exported == ["round_0_imagenet.safetensors"]


def test_the_selection_is_left_as_numbers_and_as_a_picture(selected):
    workdir, results = selected
    report = read_sealed(workdir / "round_0" / "imagenet" / "layers.json")
    assert results["rounds"][0]["trainable"] == {"imagenet": report}
    with PIL.Image.open(workdir / "round_0" / "imagenet" / "layers.png") as image:
        image.load()
        assert min(image.size) > 100
    share = report["trainable_parameters"] / report["parameters"]
    assert 0.4 <= share < 1
    entropies = {row["layer"]: row["entropy"] for row in report["layers"]}
    trained = [row["layer"] for row in report["layers"] if row["trains"]]
    assert list(entropies) == list(models.create(tiny.RESNET, 3).layers)
    assert 0 < len(trained) < len(entropies)
    # Those of lowest entropy, none left out.
    assert sorted(entropies, key=entropies.get)[: len(trained)] == sorted(
        trained, key=entropies.get
    )


def test_frozen_layers_of_the_exported_network_are_what_it_started_from(selected, data, cache):
    workdir, _ = selected
    stages = experiment.Experiment(selection_config(data, cache), workdir)
    start = flatten(stages.finetuning.starting_variables(stages.run.branches[0], 0, 0))
    exported = workdir / "export" / "round_0_imagenet.safetensors"
    after = flatten(timm.load(exported, tiny.RESNET))
    assert after.keys() == start.keys()
    same = {path for path, x in after.items() if np.array_equal(x, start[path])}
    layers = models.create(tiny.RESNET, 3).layers
    report = read_sealed(workdir / "round_0" / "imagenet" / "layers.json")
    for row in report["layers"]:
        prefixes = layers[row["layer"]]
        own = {path for path in after if path.partition("/")[2].startswith(prefixes)}
        assert own
        if row["trains"]:
            assert not any(path in same for path in own if path.endswith(("kernel", "mean", "var")))
        else:
            assert own <= same, row["layer"]
    assert "params/head/fc/kernel" not in same


@pytest.mark.slow
def test_a_selection_that_was_interrupted_ends_in_the_same_bits(
    selected, data, cache, tmp_path, monkeypatch
):
    """Stopped in its second epoch; layers are not measured again."""
    workdir, results = selected
    config = selection_config(data, cache)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path, trackers=[tiny.Recorder(("finetune/imagenet", 4))])
    assert (tmp_path / "round_0" / "imagenet" / "layers.json").exists()
    assert not (tmp_path / "export").exists()
    monkeypatch.setattr(
        layer_selection, "layer_entropies", lambda *_: pytest.fail("measured again")
    )
    assert experiment.run(config, tmp_path)["rounds"] == results["rounds"]
    assert_same(outcome(workdir), outcome(tmp_path))


def test_calibration_takes_training_images_whatever_the_batch(selected, data, cache):
    workdir, _ = selected
    config = selection_config(data, cache, evaluation__batch_size=3)
    stages = experiment.Experiment(config, workdir)
    drawn = pictures(stages.run.data.calibration(0, 10))
    assert len(drawn) == len(set(drawn)) == 10
    assert set(drawn) < set(pictures(stages.run.data.evaluation(0, "train")))
    start = stages.finetuning.starting_variables(stages.run.branches[0], 0, 0)
    entropies = stages.finetuning.layer_entropies(stages.run.branches[0], 0, start)
    report = read_sealed(workdir / "round_0" / "imagenet" / "layers.json")
    expected = {row["layer"]: row["entropy"] for row in report["layers"]}  # in batches of eight
    assert entropies == pytest.approx(expected, abs=0.02)


def pictures(images):
    """The pixels of all images but padding."""
    return [
        pixels.tobytes()
        for batch, indices, valid in images.batches(3)
        for pixels in np.asarray(batch.take(indices).pixels)[np.asarray(valid) > 0]
    ]


def test_training_sees_the_input_noise():
    std = 0.3
    config = tiny.make_config("", "", finetune__input_noise=std)
    seen = []

    class Watching:
        num_classes = 3

        def apply(self, variables, images, **_):
            seen.append(images)
            return images.mean(axis=(1, 2)) @ variables["params"]["kernel"], {}

    batch = Images(
        np.zeros((4, 40, 40, 3), np.uint8), np.full((4, 2), 40, np.int32), np.zeros(4, np.int32)
    )
    optimizer = optax.sgd(0.1)
    variables = {"params": {"kernel": np.zeros((3, 3), np.float32)}}
    state = TrainState.create(variables, optimizer, sharding.make_mesh())
    finetune.finetune_step(
        state, batch, jax.random.key(1), model=Watching(), optimizer=optimizer, config=config
    )
    (images,) = seen
    spread = np.asarray(images, np.float64).std(axis=(0, 1, 2))
    np.testing.assert_allclose(spread, std / np.array(augment.STD), rtol=0.05)


@pytest.mark.slow
def test_input_noise_does_not_depend_on_the_evaluation_batch(data, cache, tmp_path):
    def predictions(size, noise, name):
        config = selection_config(
            data,
            cache,
            finetune__trainable="head",
            finetune__input_noise=noise,
            evaluation__batch_size=size,
        )
        experiment.run(config, tmp_path / name)
        path = tmp_path / name / "predictions" / "round_0_imagenet_test.npz"
        return load_predictions(path).probabilities

    noisy = predictions(8, 0.4, "noisy")
    (tmp_path / "noisy" / "predictions" / "round_0_imagenet_test.npz").unlink()
    again = predictions(3, 0.4, "noisy")  # of the same network
    np.testing.assert_allclose(noisy, again, rtol=1e-5, atol=1e-6)
    clean = predictions(8, 0.0, "clean")
    assert np.abs(clean - noisy).max() > 1e-3


@pytest.mark.slow
def test_three_branches_from_a_folder_of_weights_are_fused_by_weights_of_validation(
    data, cache, tmp_path
):
    folder = tmp_path / "weights"
    fields = EPOCHS | {
        "branches": ("imagenet", "mae", tiny.RESNET),
        "imagenet__weights": str(folder),
        "fusion__kind": "weighted",
    }
    config = tiny.make_config(data, cache, **fields)
    folder.mkdir()
    tiny.write_weights(folder / f"{tiny.MODEL}.safetensors", tiny.MODEL, seed=7)
    with pytest.raises(
        model_weights.MissingWeightsError, match=rf"'timm/{tiny.RESNET}.*{tiny.RESNET}'"
    ):
        experiment.run(config, tmp_path / "workdir")  # what the folder lacks is the default
    tiny.write_weights(folder / f"{tiny.RESNET}.safetensors", tiny.RESNET, seed=8)
    results = experiment.run(config, tmp_path / "workdir")

    assert results["imagenet_weights"] == {
        "imagenet": str(folder / f"{tiny.MODEL}.safetensors"),
        tiny.RESNET: str(folder / f"{tiny.RESNET}.safetensors"),
    }
    assert len(set(results["imagenet_sha256"].values())) == 2
    (row,) = results["rounds"]
    assert (row["fusion"]["kind"], row["fusion"]["branches"]) == ("weighted", [*config.branches])
    folder = tmp_path / "workdir" / "predictions"
    tested = [load_predictions(folder / f"round_0_{b}_test.npz") for b in config.branches]
    mixed = sum(
        weight * x.probabilities.astype(float)
        for weight, x in zip(row["fusion"]["weights"], tested, strict=True)
    )
    expected = compute_metrics(tested[0].labels, mixed)
    assert row["test"]["ensemble"] == pytest.approx(expected)


def test_each_branch_starts_from_its_own_weights(data, cache, tmp_path):
    written = {
        name: tiny.write_weights(tmp_path / f"{name}.safetensors", name, seed=seed)
        for seed, name in enumerate((tiny.MODEL, tiny.RESNET))
    }
    config = tiny.make_config(
        data,
        cache,
        **EPOCHS,
        branches=(tiny.RESNET, tiny.MODEL),
        imagenet__weights=str(tmp_path),
    )
    stages = experiment.Experiment(config, tmp_path / "workdir")
    for branch in stages.run.branches:
        start = stages.finetuning.starting_variables(branch, 0, seed=5)
        theirs = written[branch.model_name]
        assert start["params"]["head"]["fc"]["kernel"].shape[-1] == 3
        for tree in (start, theirs):
            tree["params"].pop("head")
        jax.tree.map(np.testing.assert_array_equal, start, theirs)


@pytest.mark.essential
@pytest.mark.slow
def test_eight_devices_give_a_resnets_results_on_one(selected, data, cache, tmp_path):
    workdir, _ = selected
    config = configs.flatten(selection_config(data, cache))
    names = ("branches", "imagenet.model", "finetune.trainable", "finetune.trainable_share")
    names += ("finetune.epochs", "pretrain.epochs", "rounds.count")
    fields = (f"{name}={config[name]!r}" for name in names)
    process = run_process(
        data,
        cache,
        tmp_path,
        *fields,
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert "on 8 x cpu" in output
    one, eight = (
        json.loads((folder / "round_0" / "imagenet" / "layers.json").read_text())["layers"]
        for folder in (workdir, tmp_path)
    )
    for a, b in zip(one, eight, strict=True):
        assert a["trains"] == b["trains"]
        assert a["entropy"] == pytest.approx(b["entropy"], abs=0.02)
    assert_same(outcome(workdir), outcome(tmp_path), atol=2e-3)


def test_a_network_without_imagenet_weights_asks_for_some(tmp_path, monkeypatch):
    tiny.register()
    bare = registry.NETWORKS.entries[tiny.RESNET]._replace(weights="", backbone="bare")
    monkeypatch.setitem(registry.NETWORKS.entries, "bare", bare)
    with pytest.raises(ConfigError, match="no ImageNet weights of bare: give a file"):
        ImagenetWeights("default", [Branch("bare", "bare")], tmp_path / "imagenet_weights.json")
    message = f"imagenet.weights={tmp_path} has no bare.safetensors or bare.npz"
    with pytest.raises(ConfigError, match=message):
        ImagenetWeights(str(tmp_path), [Branch("bare", "bare")], tmp_path / "weights.json")
