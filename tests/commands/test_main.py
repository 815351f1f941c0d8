"""`python main.py` as a user starts it: mistakes end in a sentence before anything is done.

Whole runs are in test_experiment.py.
"""

import numpy as np
import PIL.Image
import pytest

from tests import forks


def refused(tmp_path, *arguments):
    """Runs main.py, which must refuse, and returns its whole output."""
    variables = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),  # where no weights are cached
        "HOME": str(tmp_path / "home"),  # where the config's cache folder is
        "JAX_PLATFORMS": "cpu",
    }
    before = set(tmp_path.rglob("*"))
    done = forks.run("main.py", f"--workdir={tmp_path / 'run'}", *arguments, **variables)
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


def test_an_unknown_field_ends_in_one_line_that_names_the_nearest(tmp_path):
    output = refused(tmp_path, "--config=configs/busi.py", "--config.pretrain.epoch=2")
    # One line in a pipe: nothing wrapped at 80 columns, which would break names and commands.
    assert output == (
        "Error: There is no config field 'pretrain.epoch'. Did you mean 'pretrain.epochs'?\n"
    )


def test_a_cache_folder_that_cannot_be_written_to_is_named(tmp_path, busi):
    (tmp_path / "file").write_text("")
    output = refused(
        tmp_path,
        "--config=configs/busi.py",
        f"--config.data.dir={busi}",
        f"--config.data.cache_dir={tmp_path / 'file'}",
        "--config.imagenet.weights=none",
    )
    assert "(data.cache_dir)" in output


def test_missing_imagenet_weights_are_named_with_the_ways_out(tmp_path, busi):
    output = refused(tmp_path, "--config=configs/busi.py", f"--config.data.dir={busi}")
    assert "hf download timm/convnext_tiny.fb_in1k" in output
    assert "--config.imagenet.weights=none" in output
