"""`python main.py` as a user starts it: mistakes end in a sentence before anything is done.

Whole runs are in test_experiment.py.
"""

import numpy as np
import PIL.Image
import pytest

from tests import forks


def start(tmp_path, *arguments, workdir=True):
    """Runs main.py, which must refuse, and returns its whole output."""
    if workdir:
        arguments += (f"--workdir={tmp_path / 'run'}",)
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),  # where no weights are cached
        "HOME": str(tmp_path / "home"),  # where the config's cache folder is
        "JAX_PLATFORMS": "cpu",
    }
    before = set(tmp_path.rglob("*"))
    done = forks.run("main.py", *arguments, **variables)
    output = done.stdout + done.stderr
    assert done.returncode not in (0, None), output
    assert "Traceback" not in output, output
    # Nothing was trained or written: no workdir, no cache.
    written = set(tmp_path.rglob("*")) - before
    assert not {path for path in written if tmp_path / "hub" not in (path, *path.parents)}
    return output


@pytest.fixture
def busi(tmp_path):
    """A tree in BUSI's layout, four images a class with their masks."""
    rng = np.random.default_rng(0)
    for label in ("benign", "malignant", "normal"):
        folder = tmp_path / "data" / "Dataset_BUSI_with_GT" / label
        folder.mkdir(parents=True)
        for k in range(1, 5):
            image = PIL.Image.fromarray(rng.integers(0, 256, (40, 50), np.uint8))
            image.save(folder / f"{label} ({k}).png")
            image.save(folder / f"{label} ({k})_mask.png")
    return tmp_path / "data"


def test_unknown_field_ends_in_one_line_that_names_the_nearest(tmp_path):
    output = start(tmp_path, "--config=configs/busi.py", "--config.pretrain.epoch=2")
    # One line in a pipe: nothing wrapped at 80 columns, which would break names and commands.
    assert output == (
        "Error: There is no config field 'pretrain.epoch'. Did you mean 'pretrain.epochs'?\n"
    )


def test_value_of_a_wrong_type_is_named_with_its_field(tmp_path):
    output = start(tmp_path, "--config=configs/busi.py", "--config.pretrain.epochs=many")
    assert "config.pretrain.epochs" in output
    assert "'many'" in output


def test_a_flag_below_a_field_is_explained(tmp_path):
    output = start(tmp_path, "--config=configs/busi.py", "--config.data.dir.x=5")
    assert "no config field 'data.dir.x'. Did you mean 'data.dir'" in output


def test_words_without_dashes_are_refused(tmp_path):
    output = start(tmp_path, "--config=configs/busi.py", "evaluate", "config.pretrain.epochs=1")
    assert "What is 'evaluate config.pretrain.epochs=1'? Flags begin with --" in output


def test_a_cache_folder_that_cannot_be_written_to_is_named(tmp_path, busi):
    (tmp_path / "file").write_text("")
    output = start(
        tmp_path,
        "--config=configs/busi.py",
        f"--config.data.dir={busi}",
        f"--config.data.cache_dir={tmp_path / 'file'}",
        "--config.imagenet.weights=none",
    )
    assert "(data.cache_dir)" in output


def test_workdir_is_asked_for(tmp_path):
    output = start(tmp_path, "--config=configs/busi.py", workdir=False)
    assert "--workdir" in output


def test_a_tracker_that_is_not_there_is_named(tmp_path):
    output = start(tmp_path, "--config=configs/busi.py", "--tracker=my_trackers:Wandb")
    assert "--tracker=my_trackers:Wandb: No module named 'my_trackers'." in output


def test_missing_config_file_is_named(tmp_path):
    output = start(tmp_path, "--config=configs/bussi.py")
    assert "configs/bussi.py" in output


def test_unknown_preset_is_named_with_those_there_are(tmp_path):
    output = start(tmp_path, "--config=configs/busi.py:gpu")
    assert "There is no preset 'gpu'. Presets: cpu, or <pre-training epochs>" in output


def test_unknown_words_of_the_companion_recipes_are_named_with_those_there_are(tmp_path):
    output = start(tmp_path, "--config=configs/brain_tumor.py:cpu,resnet19")
    assert "There is no preset 'resnet19'. Words: all, head, low_entropy, random" in output
    output = start(tmp_path, "--config=configs/skin_asff.py:compere")
    assert "There is no preset 'compere'. Words: compare, cpu." in output


def test_missing_data_folder_is_named_with_the_way_to_get_the_data(tmp_path):
    folder = tmp_path / "nowhere"
    output = start(
        tmp_path,
        "--config=configs/busi.py",
        f"--config.data.dir={folder}",
        "--config.imagenet.weights=none",
    )
    assert f"There is no folder {folder} (data.dir)" in output
    assert "Dataset_BUSI.zip" in output
    output = start(tmp_path, "--config=configs/kvasir.py", "--config.imagenet.weights=none")
    assert "python -m egmae_jax.data.download kvasir" in output


def test_missing_imagenet_weights_are_named_with_the_ways_out(tmp_path, busi):
    output = start(tmp_path, "--config=configs/busi.py", f"--config.data.dir={busi}")
    assert "timm/convnext_tiny.fb_in1k" in output
    assert "hf download timm/convnext_tiny.fb_in1k" in output
    assert "--config.imagenet.weights=none" in output


def test_all_mistakes_in_the_config_are_told_at_once(tmp_path):
    output = start(
        tmp_path,
        "--config=configs/image_folder.py:cpu",
        "--config.data.image_size=100",
        "--config.rounds.kind=fold",
        "--config.pretrain.betas=(0.9, 1.5)",
    )
    for field in ("data.dir", "data.image_size", "rounds.kind", "pretrain.betas"):
        assert f" {field} is " in output
    assert "the nearest is 96" in output
