"""Where the data sets' files are and what their labels are."""

import collections
import os

import pytest

from egmae_jax.data import datasets
from egmae_jax.data.datasets import DataError
from tests.conftest import SHARED_DATA, needs_shared_data


def touch(root, *files):
    """Files of no content: listing reads none."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


BUSI = (
    "benign/benign (1).png",
    "benign/benign (1)_mask.png",
    "benign/benign (4).png",
    "benign/benign (4)_mask.png",
    "benign/benign (4)_mask_1.png",
    "benign/benign (4)_mask_12.png",
    "malignant/malignant (1).png",
    "malignant/malignant (1)_mask.png",
    "normal/normal (1).png",
    "normal/normal (1)_mask.png",
)


@pytest.mark.parametrize("top", ["", "Dataset_BUSI_with_GT/"])
def test_busi_lists_images_without_masks_from_either_level(tmp_path, top):
    touch(tmp_path, *(top + file for file in BUSI))
    listed = datasets.get("busi").list_images(tmp_path)
    assert [(image.file, image.label, image.group) for image in listed] == [
        (f"{top}benign/benign (1).png", "benign", None),
        (f"{top}benign/benign (4).png", "benign", None),
        (f"{top}malignant/malignant (1).png", "malignant", None),
        (f"{top}normal/normal (1).png", "normal", None),
    ]


def test_busi_keeps_an_image_whose_name_only_contains_mask(tmp_path):
    touch(tmp_path, *BUSI, "benign/mask_of_patient 3.png", "benign/a_mask_b.png")
    files = {image.file for image in datasets.get("busi").list_images(tmp_path)}
    assert {"benign/mask_of_patient 3.png", "benign/a_mask_b.png"} <= files


def test_busi_without_a_class_folder_names_it_and_those_found(tmp_path):
    touch(tmp_path, *BUSI[:8], "other/x.png")
    with pytest.raises(DataError, match=r"no class folder 'normal'.*benign, malignant, other"):
        datasets.get("busi").list_images(tmp_path)


def test_busi_with_masks_only_is_an_empty_class(tmp_path):
    touch(tmp_path, *BUSI[:8], "normal/normal (1)_mask.png")
    with pytest.raises(DataError, match="'normal' is empty"):
        datasets.get("busi").list_images(tmp_path)


@needs_shared_data
def test_real_busi_has_780_images():
    listed = datasets.get("busi").list_images(SHARED_DATA / "busi")
    counts = collections.Counter(image.label for image in listed)
    assert counts == {"benign": 437, "malignant": 210, "normal": 133}
    assert len({image.file for image in listed}) == 780
    assert all((SHARED_DATA / "busi" / image.file).is_file() for image in listed)


@needs_shared_data
def test_real_busi_with_masks_has_ten_images_a_class():
    root = SHARED_DATA / "busi_with_masks_sample"
    masks = [path for path in root.rglob("*.png") if "_mask" in path.name]
    assert len(masks) >= 30  # there is something to leave out
    listed = datasets.get("busi").list_images(root)
    counts = collections.Counter(image.label for image in listed)
    assert counts == {"benign": 10, "malignant": 10, "normal": 10}
    assert not any("mask" in image.file for image in listed)


def test_image_folder_takes_its_classes_from_the_folders(tmp_path):
    touch(
        tmp_path,
        "cat/2.JPG",
        "cat/deep/er/1.tiff",
        "cat/notes.txt",
        "dog/a.webp",
        "dog/b.jpeg",
        "dog/c.bmp",
        ".cache/x.png",
        "readme.md",
        "stray.png",
    )
    listed = datasets.get("image_folder").list_images(tmp_path)
    assert [(image.file, image.label) for image in listed] == [
        ("cat/2.JPG", "cat"),
        ("cat/deep/er/1.tiff", "cat"),
        ("dog/a.webp", "dog"),
        ("dog/b.jpeg", "dog"),
        ("dog/c.bmp", "dog"),
    ]


def test_image_folder_ignores_what_a_mac_leaves_in_archives(tmp_path):
    # "._x.png" is a file's resource fork beside it, and __MACOSX holds a tree of them.
    touch(tmp_path, "cat/1.png", "cat/._1.png", "dog/2.png", "__MACOSX/cat/._1.png")
    listed = datasets.get("image_folder").list_images(tmp_path)
    assert [image.file for image in listed] == ["cat/1.png", "dog/2.png"]


def test_hidden_folders_within_a_class_are_passed_over(tmp_path):
    touch(tmp_path, "cat/1.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "dog/2.png")
    listed = datasets.get("image_folder").list_images(tmp_path)
    assert [image.file for image in listed] == ["cat/1.png", "dog/2.png"]


def test_files_that_are_no_images_are_ignored_with_a_warning(tmp_path, caplog):
    touch(tmp_path, "cat/1.png", "cat/a.dcm", "cat/b.dcm", "dog/2.png", "dog/LICENSE")
    (tmp_path / "dog" / "more").symlink_to(tmp_path / "cat")
    datasets.get("image_folder").list_images(tmp_path)
    assert "2 .dcm, 1 without suffix, 1 links to folders" in caplog.text


def test_a_name_that_is_no_text_is_named(tmp_path):
    touch(tmp_path, "cat/1.png", "dog/2.png")
    with open(os.path.join(os.fsencode(tmp_path), b"dog", b"m\xe4rz.png"), "w"):
        pass
    with pytest.raises(DataError, match=r"dog/m\\xe4rz\.png is not UTF-8"):
        datasets.get("image_folder").list_images(tmp_path)


@pytest.mark.parametrize("files", [(), ("only/1.png",), ("1.png", "2.png")])
def test_image_folder_needs_two_classes(tmp_path, files):
    touch(tmp_path, *files)
    with pytest.raises(DataError, match="two or more classes") as caught:
        datasets.get("image_folder").list_images(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_image_folder_names_an_empty_class_and_what_counts_as_an_image(tmp_path):
    touch(tmp_path, "cat/1.png", "dog/1.dcm")
    with pytest.raises(DataError, match=r"'dog' is empty.*\.png"):
        datasets.get("image_folder").list_images(tmp_path)


@pytest.mark.parametrize("name", ["isic2018", "kvasir", "covid"])
def test_data_sets_to_come_say_so_and_offer_a_way(name):
    with pytest.raises(ValueError, match=rf"{name}.*not written yet.*image_folder"):
        datasets.get(name)
    assert name not in datasets.names()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("bussi", "busi"), ("imagefolder", "image_folder"), ("phantom", "phantoms")],
)
def test_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"no data set '{name}'. Did you mean '{nearest}'"):
        datasets.get(name)


def test_a_name_like_no_other_lists_all():
    with pytest.raises(ValueError, match="Known: busi, image_folder, phantoms") as caught:
        datasets.get("xyz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_says_what_it_is_and_how_to_get_it(name):
    dataset = datasets.get(name)
    assert dataset.name == name
    assert dataset.title
    assert "data.dir" in dataset.obtain


def test_split_folders_on_top_are_not_taken_for_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "benign").mkdir(parents=True)
    with pytest.raises(DataError, match="these are splits, not classes"):
        datasets.get("image_folder").list_images(tmp_path)
