"""The audit finds what is wrong with a data set."""

import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from egmae_jax.data import audit
from egmae_jax.data.prepare import prepare
from tests.conftest import REPOSITORY, SHARED_DATA, needs_shared_data


def picture(seed, size=(40, 40)):
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(20, 236, (7, 7, 3), np.uint8))
    return coarse.resize(size, PIL.Image.Resampling.BICUBIC)


def prepared(folder, name="image_folder"):
    cache = folder.parent / "cache"
    return prepare(name, folder, cache, on_error="skip", near_duplicate_threshold=0.99)


@pytest.fixture
def flawed(tmp_path):
    """Two classes: a copy within one, a copy across both, one unreadable; grey tells the class."""
    folder = tmp_path / "data"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for k in range(10):
            image = picture(k + 100 * (label == "dog"))
            image = image.convert("L") if label == "dog" else image
            image.save(folder / label / f"{k}.png")
    picture(0).save(folder / "cat" / "copy.bmp")
    picture(1).save(folder / "dog" / "crossing.png")
    (folder / "dog" / "broken.png").write_bytes(b"no image")
    return folder


def test_every_flaw_is_found(flawed):
    found = audit.audit(prepared(flawed))
    assert found["images"] == 22
    assert [text.split()[0] for text in found["unreadable"]] == ["dog/broken.png"]
    assert found["counts"] == {"none": {"cat": 11, "dog": 11}}
    assert found["identical_pixels"] == {
        "groups": 2,
        "extra_copies": 2,
        "groups_across_folders": 1,
        "groups_across_classes": 1,
        "groups_across_official_parts": 0,
    }
    near = found["near_duplicates"]
    assert near["pairs"] == 2
    assert near["groups"] == 2
    assert near["largest_group"] == 2
    assert near["conflicts"] == [["cat/1.png", "dog/crossing.png"]]
    assert found["groups"] == {"number": 20, "largest": 2}
    assert found["modes"] == {"cat": {"RGB": 11}, "dog": {"L": 10, "RGB": 1}}
    assert found["sizes"]["most_frequent"] == {"40x40": 22}
    assert found["confounders"]["chance"] == 0.5
    assert found["confounders"]["mode"] > 0.9
    assert found["confounders"]["size"] == pytest.approx(0.5)


def test_size_as_a_confounder(tmp_path):
    for label, size in (("cat", (40, 30)), ("dog", (40, 31))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for k in range(8):
            picture(k + 100 * (label == "dog"), size).save(tmp_path / "data" / label / f"{k}.png")
    assert audit.audit(prepared(tmp_path / "data"))["confounders"]["size"] == 1.0


def test_the_command_prints_and_saves(flawed, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "egmae_jax.data.audit", "--config=configs/image_folder.py"),
            f"--config.data.dir={flawed}",
            f"--config.data.cache_dir={tmp_path / 'cache'}",
            f"--out={tmp_path / 'audit'}",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "conflict: cat/1.png | dog/crossing.png" in done.stdout
    assert "The class shows in mode alone: balanced accuracy" in done.stdout
    saved = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert saved["near_duplicates"]["pairs"] == 2
    with PIL.Image.open(tmp_path / "audit" / "classes.png") as sheet:
        assert sheet.size == (960, 216)
    with PIL.Image.open(tmp_path / "audit" / "conflicts.png") as sheet:
        assert sheet.size == (192, 108)


def test_a_folder_that_is_missing_ends_in_a_sentence(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "egmae_jax.data.audit", "--config=configs/busi.py"),
            f"--config.data.dir={tmp_path / 'nowhere'}",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "There is no folder" in done.stderr
    assert "Traceback" not in done.stderr


@needs_shared_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "expected"),
    [
        ("busi", "busi", {"pairs": 133, "across": 7, "identical": 1, "folders": 1}),
        (
            "brain_tumor",
            "brain_tumor_mri",
            {"pairs": 9453, "across": 4, "identical": 300, "folders": 189},
        ),
    ],
)
def test_the_known_flaws_of_real_data(tmp_path, name, folder, expected):
    cache = tmp_path / "cache"
    data = prepare(
        name, SHARED_DATA / folder, cache, on_error="raise", near_duplicate_threshold=0.99
    )
    found = audit.audit(data)
    assert {
        "pairs": found["near_duplicates"]["pairs"],
        "across": found["near_duplicates"]["pairs_across_classes"],
        "identical": found["identical_pixels"]["groups"],
        "folders": found["identical_pixels"]["groups_across_folders"],
    } == expected
