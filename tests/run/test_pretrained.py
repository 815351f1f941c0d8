"""Pre-training from other weights: an earlier pre-training, or a ConvNeXt of timm."""

import json
import re

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
from ml_collections import FrozenConfigDict

from egmae_jax import experiment
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import write_json
from egmae_jax.data import phantoms, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.models import weights as model_weights
from egmae_jax.models.init import initial_variables
from egmae_jax.models.weights import CheckpointError, MissingWeightsError
from egmae_jax.report import notes
from egmae_jax.report.content import Content
from egmae_jax.run import config as configs
from egmae_jax.run import default_config, seen
from egmae_jax.run.pretrained import PretrainedWeights
from egmae_jax.training import pretrain
from tests import tiny, torch_reference

AUTOENCODER = "pretrain/autoencoder.safetensors"


def read(path):
    return safetensors.numpy.load_file(path)


def start(data, cache, source, **changes):
    """The parameters that a pre-training starts from, and whether its decoder is trained."""
    config = tiny.make_config(data, cache, pretrain__weights=str(source), **changes)
    config = FrozenConfigDict(config)
    weights = PretrainedWeights(config)
    weights.load([0])
    fresh = initial_variables(pretrain.create_autoencoder(config), seed=3)["params"]
    return weights.start(0, fresh), fresh


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_an_encoder_of_timm_computes_timms_features(data, cache, tmp_path, name):
    torch = torch_reference.torch()
    theirs = torch_reference.random_convnext(name, num_classes=0)
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "theirs.safetensors")
    (params, has_decoder), fresh = start(
        data, cache, tmp_path / "theirs.safetensors", model__name=name
    )
    assert not has_decoder
    assert np.array_equal(params["mask_token"], fresh["mask_token"])
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    config = FrozenConfigDict(tiny.make_config(data, cache, model__name=name))
    encoder = pretrain.create_autoencoder(config).encoder
    head = {"norm": {"scale": np.ones(320), "bias": np.zeros(320)}}
    head["fc"] = {"kernel": np.zeros((320, 1)), "bias": np.zeros(1)}
    features = jax.jit(lambda x: encoder.apply(x, images, method="features"))(
        {"params": {**params["encoder"], "head": head}}
    )
    with torch.inference_mode():
        expected = theirs.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features, expected.permute(0, 2, 3, 1).numpy(), atol=1e-4)


def test_facebooks_dinov3_names_are_translated(data, cache, tmp_path):
    theirs = torch_reference.random_convnext("convnext_atto", num_classes=0)
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    to_facebook = (
        (r"stem\.([01])", r"downsample_layers.0.\1"),
        (r"stages\.(\d)\.downsample\.([01])", r"downsample_layers.\1.\2"),
        (r"stages\.(\d)\.blocks\.(\d+)\.conv_dw", r"stages.\1.\2.dwconv"),
        (r"stages\.(\d)\.blocks\.(\d+)\.mlp\.fc", r"stages.\1.\2.pwconv"),
        (r"stages\.(\d)\.blocks\.(\d+)", r"stages.\1.\2"),
        (r"head\.norm", "norm"),
    )
    renamed = {}
    for key, x in tensors.items():
        pattern, name = next(pair for pair in to_facebook if re.match(pair[0], key))
        renamed[re.sub(pattern, name, key)] = x
    norm = {key: x for key, x in renamed.items() if key.startswith("norm.")}
    renamed |= {f"norms.3.{key.removeprefix('norm.')}": x for key, x in norm.items()}
    for source, content in (("timm", tensors), ("facebook", renamed)):
        safetensors.numpy.save_file(content, tmp_path / f"{source}.safetensors")
    (ours, _), _ = start(data, cache, tmp_path / "timm.safetensors", model__name="convnext_atto")
    (other, _), _ = start(
        data, cache, tmp_path / "facebook.safetensors", model__name="convnext_atto"
    )
    tiny.assert_same(tiny.flatten(ours), tiny.flatten(other))


@pytest.mark.parametrize(
    ("source", "hub_id"),
    [
        ("convnext_tiny.dinov3_lvd1689m", "timm/convnext_tiny.dinov3_lvd1689m"),
        ("timm/convnext_tiny.fb_in1k", "timm/convnext_tiny.fb_in1k"),
    ],
)
def test_names_of_timm_are_looked_up_on_the_hub(data, cache, monkeypatch, source, hub_id):
    def locate(source):
        raise MissingWeightsError(f"asked for {source}")

    monkeypatch.setattr(model_weights, "locate", locate)
    with pytest.raises(MissingWeightsError, match=rf"pretrain\.weights: asked for {hub_id}$"):
        start(data, cache, source, model__name="convnext_tiny")
    with pytest.raises(ConfigError, match=r"is of convnext_tiny, but model\.name is convnext_atto"):
        start(data, cache, source, model__name="convnext_atto")


def test_weights_that_do_not_fit_or_are_missing_are_named(data, cache, finished, tmp_path):
    with pytest.raises(ConfigError, match=r"is of convnext_test, but model\.name is convnext_atto"):
        start(data, cache, finished.workdir, model__name="convnext_atto")
    with pytest.raises(CheckpointError, match=r"does not fit .*=convnext_atto; \d+ parameters"):
        start(data, cache, finished.workdir / AUTOENCODER, model__name="convnext_atto")
    with pytest.raises(MissingWeightsError, match=r"pretrain\.weights: There is no file"):
        start(data, cache, tmp_path / "x.safetensors")
    write_json(tmp_path / "config.json", finished.config.to_dict())
    with pytest.raises(MissingWeightsError, match="its pre-training is not finished"):
        start(data, cache, tmp_path)


def test_what_a_file_was_trained_on_is_said_to_be_unknown(data, cache, finished, tmp_path):
    changes = {"pretrain__epochs": 0, "rounds__count": 1, "branches": ("mae",)}
    changes |= {"pretrain__weights": str(finished.workdir / AUTOENCODER)}
    results = experiment.run(tiny.make_config(data, cache, **changes), tmp_path / "run")
    assert results["pretraining_started_from"][0]["seen"] is None
    facts = " ".join(notes.facts(Content(tmp_path / "run")))
    assert f"What {changes['pretrain__weights']} was trained on is unknown." in facts
    assert "Pre-training saw no test image" not in facts


def test_another_decoder_is_trained_anew(data, cache, finished):
    (params, has_decoder), fresh = start(data, cache, finished.workdir, decoder__dim=8)
    assert not has_decoder
    tiny.assert_same(tiny.flatten(params["decoder"]), tiny.flatten(fresh["decoder"]))
    saved = read(finished.workdir / AUTOENCODER)
    for path, leaf in tiny.flatten(params["encoder"]).items():
        assert np.array_equal(leaf, saved[f"encoder/{path}"])


def test_a_finished_pretraining_is_finetuned_anew_without_training_it_further(
    data, cache, finished, tmp_path
):
    changes = {"pretrain__epochs": 0, "rounds__count": 1, "branches": ("mae",)}
    config = tiny.make_config(data, cache, pretrain__weights=str(finished.workdir), **changes)
    results = experiment.run(config, tmp_path / "run")
    tiny.assert_same(read(tmp_path / "run" / AUTOENCODER), read(finished.workdir / AUTOENCODER))
    file = "export/round_0_mae.safetensors"
    tiny.assert_same(read(tmp_path / "run" / file), read(finished.workdir / file))
    assert results["pretraining"] == [finished.results["pretraining"][0]]
    (record,) = results["pretraining_started_from"]
    assert record["source"] == str(finished.workdir)
    assert record["seen"] == {"validation": 0, "test": 0}
    assert results["pretraining_saw_test"] is False


@pytest.mark.essential
@pytest.mark.slow
def test_a_pretraining_goes_on_from_it_and_resumes_from_the_same_file_only(
    data, cache, finished, tmp_path
):
    changes = {"rounds__count": 1, "branches": ("mae",)}
    config = tiny.make_config(data, cache, pretrain__weights=str(finished.workdir), **changes)
    recorder = tiny.Recorder(stop=("pretrain", 4))
    with pytest.raises(KeyboardInterrupt):
        experiment.run(config, tmp_path / "run", stage="pretrain", trackers=[recorder])
    saved = tmp_path / "run" / "pretrain" / "started_from.json"
    before = saved.read_bytes()
    experiment.run(config, tmp_path / "run", stage="pretrain")
    again = tmp_path / "again"
    experiment.run(config, again, stage="pretrain")
    tiny.assert_same(read(tmp_path / "run" / AUTOENCODER), read(again / AUTOENCODER))
    assert saved.read_bytes() == before
    first, last = (
        next(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        for folder in (finished.workdir, again)
    )
    assert last["loss"] < first["loss"]
    (again / AUTOENCODER).unlink()
    record = json.loads(saved.read_text())
    write_json(again / "pretrain" / "started_from.json", record | {"file_sha256": "0"})
    with pytest.raises(Exception, match=r"started_from\.json"):
        experiment.run(config, again, stage="pretrain")


def test_a_pretraining_on_images_that_are_held_out_now_is_refused_or_recorded(
    data, cache, finished, tmp_path
):
    changes = {"pretrain__epochs": 0, "rounds__count": 1, "branches": ("mae",)}
    changes |= {"pretrain__weights": str(finished.workdir), "data__split_seed": 1}
    config = tiny.make_config(data, cache, **changes)
    with pytest.raises(DataError, match=r"was on \d+ images that are in validation and test now,"):
        experiment.run(config, tmp_path / "run")
    config = tiny.make_config(data, cache, **changes, pretrain__drop_leaks=False)
    results = experiment.run(config, tmp_path / "run2")
    assert results["pretraining_started_from"][0]["seen"]["test"] > 0
    assert results["pretraining_saw_test"] is True
    # A run that starts from this one saw what that one saw.
    both, first = seen.read(tmp_path / "run2", 0), seen.read(finished.workdir, 0)
    assert both.sha256 >= first.sha256
    assert len(both.configs) == 2
    assert both.is_complete


def test_near_duplicates_in_other_folders_are_found_while_these_are_there(
    data, cache, finished, tmp_path, caplog
):
    """An earlier run was on a smaller copy of what is a test image now."""
    test = next(r for r in splits.read(finished.workdir / "splits.json") if r["split"] == "test")
    folder = tmp_path / "elsewhere"
    phantoms.write(folder, images_per_class=6, seed=8, height=48, width=64)
    image = PIL.Image.open(data / test["file"]).resize((60, 45))
    image.save(folder / "benign" / "copy.jpg", quality=90)
    before = tiny.make_config(
        folder, cache, branches=("mae",), pretrain__splits=("train", "validation", "test")
    )
    experiment.run(before, tmp_path / "before", stage="pretrain")
    changes = {"pretrain__epochs": 0, "rounds__count": 1, "branches": ("mae",)}
    changes |= {"pretrain__weights": str(tmp_path / "before")}
    config = tiny.make_config(data, cache, **changes)
    with pytest.raises(DataError, match=rf"on 1 images .* test now.*: {re.escape(test['file'])}"):
        experiment.run(config, tmp_path / "run", stage="pretrain")
    folder.rename(tmp_path / "moved")
    experiment.run(config, tmp_path / "run", stage="pretrain")
    assert "near-duplicates of validation and test images cannot be looked for" in caplog.text


@pytest.mark.slow
def test_a_refused_change_of_epochs_names_flags_that_fine_tune_anew(finished, tmp_path):
    config = finished.config.copy_and_resolve_references()
    config.finetune.epochs = 4
    with pytest.raises(ConfigError, match=r"finetune\.epochs: 3 in the workdir, 4 now") as caught:
        experiment.run(config, finished.workdir)
    flags = f"--config.pretrain.weights={finished.workdir} --config.pretrain.epochs=0"
    assert f"add these flags and give another --workdir: {flags}\n" in str(caught.value)
    fields = dict(re.findall(r"--config\.([\w.]+)=(\S+)", flags)) | {"pretrain.epochs": 0}
    config.update_from_flattened_dict(fields)
    experiment.run(config, tmp_path, stage="pretrain")
    tiny.assert_same(read(finished.workdir / AUTOENCODER), read(tmp_path / AUTOENCODER))
    experiment.run(config, tmp_path, stage="finetune")
    assert (tmp_path / "export/round_1_mae.safetensors").exists()


def test_only_what_pretraining_does_not_depend_on_is_advised(tmp_path):
    def message(before, pretrained_in=tmp_path):
        config = default_config.get_config()
        saved = json.loads(json.dumps(config.to_dict()))
        for name, value in before.items():
            section, _, field = name.partition(".")
            saved[section][field] = value
        with pytest.raises(ConfigError) as caught:
            configs.require_same(saved, config, pretrained_in)
        return str(caught.value)

    assert "To fine-tune anew" in message({"finetune.epochs": 30, "finetune.patience": 3})
    assert "with a schedule of their own" in message({"pretrain.epochs": 500})
    assert "--config" not in message({"finetune.epochs": 30, "data.image_size": 96})
    assert "--config" not in message({"finetune.epochs": 30}, None)
