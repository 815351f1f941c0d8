"""Entropy maps of a data set and of a run: which images, with what, and the command."""

import json

import numpy as np
import pytest

from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import DamagedFileError
from egmae_jax.data.datasets import DataError
from egmae_jax.explain import entropy_maps
from egmae_jax.explain.source import Source, resolve_config
from egmae_jax.run.saved_run import RunError
from tests import forks
from tests.conftest import SHARED_DATA, needs_shared_data


@pytest.fixture(scope="module")
def run(html_run):
    """Config and workdir of a finished run."""
    return resolve_config(html_run[0], None), html_run[0]


def test_a_workdir_gives_the_reconstruction_of_validation_images(run):
    config, workdir = run
    source = Source(config, workdir)
    indices = entropy_maps.choose(source.prepared, 3, source.unseen_indices())
    assert {source.prepared.labels[i] for i in indices} == {0, 1, 2}
    figure, captions = entropy_maps.draw(source, indices)
    assert all(caption.endswith("validation") for caption in captions)
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes if axes.get_title()]
    assert titles[-2:] == ["Reconstruction", "Squared error"]
    panel = source.panels(indices[0])
    assert panel.reconstruction.shape == (32, 32, 3)
    again = source.panels(indices[0], reconstruct=False)  # the same noise
    np.testing.assert_array_equal(panel.mask, again.mask)
    np.testing.assert_allclose(panel.corrupted, again.corrupted, atol=1e-5)


def test_a_config_alone_gives_all_but_the_reconstruction(run, tmp_path, capsys):
    entropy_maps.run(run[0], None, tmp_path, count=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noise.json", "sheet.png"]
    content = json.loads((tmp_path / "noise.json").read_text())
    assert content["images"]["all"]["images"] == 36
    assert [row["images"] for row in content["images"]["by_class"].values()] == [12, 12, 12]
    assert "lesions" not in content
    assert "No lesion masks" in capsys.readouterr().out


def test_files_are_found_by_their_end_and_others_by_a_sentence(run):
    prepared = Source(run[0], None).prepared
    file = prepared.files[5]
    assert entropy_maps.find(prepared, [file]) == [5]
    with pytest.raises(DataError, match=r"is the name of 0 images\. Give the path"):
        entropy_maps.find(prepared, [file + "x"])


def test_a_workdir_that_is_not_pretrained_ends_in_a_sentence(run, tmp_path):
    with pytest.raises(RunError, match=r"run main\.py with --stage=pretrain first"):
        Source(run[0], tmp_path)
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "autoencoder.safetensors").touch()
    with pytest.raises(DamagedFileError, match="damaged"):
        Source(run[0], tmp_path)


def command(*arguments):
    return forks.run("-m", "egmae_jax.entropy_maps", *arguments)


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
    written = sorted(path.name for path in out.iterdir())
    assert written == ["lesions.png", "noise.json", "sheet.png"]


def test_mistakes_on_the_command_line_end_in_sentences(run, tmp_path):
    done = command(f"--out={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: Give --workdir=W of a run, or --config=configs/busi.py."
    with pytest.raises(DamagedFileError, match=r"config\.json is missing"):
        resolve_config(tmp_path, None)
    assert resolve_config(run[1], run[0]) is run[0]
    other = run[0].copy_and_resolve_references()
    other.corruption.scale = 0.18
    with pytest.raises(ConfigError, match=r"corruption\.scale: 1\.0 in the workdir, 0\.18 now"):
        resolve_config(run[1], other)
