"""`egmae pretrain`: an encoder from folders without labels, for timm and for later runs."""

import re

import jax
import numpy as np
import PIL.Image
import pytest

from egmae_jax import commands, experiment
from egmae_jax.commands import pretrain
from egmae_jax.data import phantoms, splits
from egmae_jax.data.datasets import DataError
from egmae_jax.models.init import initial_variables
from tests import tiny, torch_reference

CONFIG = """
from tests import tiny

def get_config():
    config = tiny.make_config("unused", {cache!r})
    config.pretrain.epochs = 1
    return config
"""


@pytest.fixture(scope="module")
def pretrained(cache, tmp_path_factory):
    """A workdir of `egmae pretrain` on two folders, and the folders."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (3, 4):
        target = folder / f"images_{seed}"
        phantoms.write(target, images_per_class=6, seed=seed, height=48, width=64)
    (folder / "mine.py").write_text(CONFIG.format(cache=str(cache)))
    images = [str(folder / f"images_{seed}") for seed in (3, 4)]
    arguments = [f"--config={folder}/mine.py", "--images", *images, f"--out={folder}/run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "start_training", lambda: None)  # global
        for _ in range(2):  # the second time nothing is left to do
            assert commands.main(["pretrain", *arguments]) == 0
    return folder / "run", images


def test_timm_loads_the_encoder_strictly_and_computes_the_same_features(pretrained):
    torch, timm = torch_reference.torch(), torch_reference.timm()
    import safetensors.torch

    workdir, _ = pretrained
    file = workdir / "encoder.safetensors"
    depths, dims, _ = tiny.ENTRY
    theirs = timm.create_model(
        "convnext_tiny", depths=depths, dims=dims, num_classes=0, checkpoint_path=str(file)
    ).eval()
    assert theirs.load_state_dict(safetensors.torch.load_file(file), strict=True)
    from egmae_jax.models.transfer import load_params
    from egmae_jax.training import pretrain as stage

    config = tiny.make_config("unused", "unused")
    encoder = stage.create_autoencoder(config).encoder
    params = load_params(workdir / "pretrain" / "autoencoder.safetensors")["encoder"]
    images = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    features = jax.jit(lambda x: encoder.apply({"params": params}, x, method="features"))(images)
    with torch.inference_mode():
        expected = theirs.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features, expected.permute(0, 2, 3, 1).numpy(), atol=1e-4)
    assert initial_variables(encoder, 0)["params"]["stem"]["conv"]["kernel"].shape == (4, 4, 3, 8)


def test_both_folders_are_trained_on_but_for_the_images_held_out(pretrained):
    workdir, (first, second) = pretrained
    rows = splits.read(workdir / "splits.json")
    assert len(rows) == 18
    assert {row["split"] for row in rows} == set(splits.PARTS)
    text = (workdir / "unlabelled.json").read_text()
    assert text.count('"use": "train"') == 18
    assert str(second) in text
    assert first not in text


def test_a_run_starts_from_it_unless_it_saw_the_images_that_are_held_out(
    pretrained, data, cache, tmp_path
):
    workdir, (first, _) = pretrained
    changes = {"pretrain__weights": str(workdir), "pretrain__epochs": 0, "rounds__count": 1}
    changes |= {"branches": ("mae",)}
    seen = tiny.make_config(first, cache, **changes)
    with pytest.raises(DataError, match=r"was on \d+ images that are in validation"):
        experiment.run(seen, tmp_path / "seen", stage="pretrain")
    experiment.run(tiny.make_config(data, cache, **changes), tmp_path / "run", stage="pretrain")
    file = "pretrain/autoencoder.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (workdir / file).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.dir=x"], r"--config\.data\.dir cannot be set: --images names"),
        (["--images=nowhere"], r"no folder nowhere \(pretrain\.unlabelled\).*--images"),
        (
            ["--config.pretrain.probe_epochs=1"],
            r"images without labels: .* pretrain\.probe_epochs 0",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(command, monkeypatch, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    PIL.Image.new("L", (40, 40)).save(tmp_path / "images" / "x.png")
    status, _, errors = command(pretrain, "--images", "images", "--out=run", *flags)
    assert status == 1
    assert re.search(message, " ".join(errors.split()))


def test_images_without_labels_are_not_finetuned(data, cache, tmp_path):
    config = tiny.make_config(data, cache, data__name="unlabelled", branches=("mae",))
    with pytest.raises(experiment.StageError, match="for pre-training only"):
        experiment.run(config, tmp_path / "run")
