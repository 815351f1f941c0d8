"""Entropy maps of a data set and of a run: which images, with what, and the command."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from egmae_jax import experiment
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import DamagedFileError
from egmae_jax.data.datasets import DataError
from egmae_jax.explain import entropy_maps, noise
from egmae_jax.explain.source import Source, config_of
from egmae_jax.run.saved_run import RunError
from tests import forks
from tests.conftest import SHARED_DATA, needs_shared_data
from tests.tiny import make_config, make_data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished pre-training on tiny phantoms: config, workdir."""
    folder = tmp_path_factory.mktemp("run")
    config = make_config(make_data(folder / "data"), folder / "cache")
    experiment.run(config, folder / "work", stage="pretrain")
    return config, folder / "work"


def test_a_workdir_gives_the_reconstruction_of_validation_images(run, tmp_path):
    _, workdir = run
    saved = ConfigDict(json.loads((workdir / "config.json").read_text()))
    source = Source(saved, workdir)
    indices = entropy_maps.choose(source.prepared, 3, entropy_maps.held_out(source))
    assert {source.prepared.labels[i] for i in indices} == {0, 1, 2}
    files = entropy_maps.draw(source, indices, tmp_path)
    assert files[0].name == "sheet.png"
    assert all(file.stat().st_size > 10_000 for file in files)
    panel = source.panels(indices[0])
    assert panel.reconstruction.shape == (32, 32, 3)
    again = source.panels(indices[0], reconstruct=False)  # the same noise
    np.testing.assert_array_equal(panel.mask, again.mask)
    np.testing.assert_allclose(panel.corrupted, again.corrupted, atol=1e-5)
    assert source.caption(indices[0]).endswith("validation")


def test_without_training_there_is_no_reconstruction(run):
    source = Source(run[0], None)
    assert source.panels(0).reconstruction is None
    result, rows = noise.measure(source)
    assert rows == []
    assert result["images"]["all"]["images"] == 36
    assert "lesions" not in result
    noise.show(result)


def test_files_are_found_by_their_end_and_others_by_a_sentence(run):
    prepared = Source(run[0], None).prepared
    file = prepared.files[5]
    assert entropy_maps.find(prepared, [file]) == [5]
    with pytest.raises(DataError, match=r"has no such image\. Did you mean"):
        entropy_maps.find(prepared, [file + "x"])


def test_a_workdir_that_is_not_pretrained_ends_in_a_sentence(run, tmp_path):
    with pytest.raises(RunError, match="no finished pre-training"):
        Source(run[0], tmp_path)
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "autoencoder.safetensors").touch()
    with pytest.raises(DamagedFileError, match="damaged"):
        Source(run[0], tmp_path)


def test_a_workdir_without_the_branch_mae_ends_in_a_sentence(run, tmp_path):
    config = run[0].copy_and_resolve_references()
    config.branches = ("resnet18", "imagenet")
    message = r"without the branch 'mae' \(its branches: 'resnet18', 'imagenet'\)"
    with pytest.raises(ConfigError, match=message):
        Source(config, tmp_path)


def command(*arguments):
    return forks.run("-m", "egmae_jax.explain.entropy_maps", *arguments)


@needs_shared_data
@pytest.mark.slow
def test_the_command_on_busi_with_masks(tmp_path):
    out = tmp_path / "out"
    done = command(
        "--config=configs/busi.py:cpu",
        f"--config.data.dir={SHARED_DATA / 'busi_with_masks_sample'}",
        f"--config.data.cache_dir={tmp_path / 'cache'}",
        "--file=benign (9).png",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    lesions = json.loads((out / "noise.json").read_text())["lesions"]
    assert lesions["all"]["images"] == 19
    assert lesions["images_without_lesion"] == 10
    assert ["benign (4)_mask_1" in text for text in lesions["images_left_out"]] == [True]
    assert sorted(path.name for path in out.iterdir()) == [
        "Dataset_BUSI_with_GT_benign_benign (9).png",
        "lesions.png",
        "noise.json",
        "sheet.png",
    ]


def test_mistakes_on_the_command_line_end_in_sentences(run, tmp_path):
    done = command(f"--out={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: Give --workdir=W of a run, or --config=configs/busi.py."
    with pytest.raises(RunError, match=r"holds no run: there is no config\.json"):
        config_of(tmp_path, None)
    assert config_of(run[1], run[0]) is run[0]
    other = run[0].copy_and_resolve_references()
    other.corruption.scale = 0.18
    with pytest.raises(ConfigError, match=r"corruption\.scale: 1\.0 in the workdir, 0\.18 now"):
        config_of(run[1], other)
