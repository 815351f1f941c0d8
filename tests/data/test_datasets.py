"""Where the data sets' files are and what their labels are."""

import collections
import os

import pytest

from egmae_jax.data import datasets
from egmae_jax.data.datasets import DataError, kvasir
from tests.conftest import SHARED_DATA, needs_shared_data

SKIN = ("benign", "malignant")


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
    "benign/mask_of_patient 3.png",
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
        (f"{top}benign/mask_of_patient 3.png", "benign", None),
        (f"{top}malignant/malignant (1).png", "malignant", None),
        (f"{top}normal/normal (1).png", "normal", None),
    ]


def test_busi_without_a_class_folder_names_it_and_those_found(tmp_path):
    touch(tmp_path, *BUSI[:9], "other/x.png")
    with pytest.raises(DataError, match=r"no class folder 'normal'.*benign, malignant, other"):
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


def test_image_folder_takes_its_classes_from_the_folders(tmp_path, caplog):
    files = ("cat/2.JPG", "cat/deep/er/1.tiff", "dog/a.webp", "dog/b.jpeg", "dog/c.DCM")
    hidden = (".cache/x.png", "cat/._2.JPG", "cat/.ipynb_checkpoints/2.png", "__MACOSX/cat/2.png")
    touch(tmp_path, *files, *hidden, "cat/a.nii", "cat/b.nii", "dog/LICENSE", "stray.png")
    (tmp_path / "dog" / "more").symlink_to(tmp_path / "cat")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    listed = datasets.get("image_folder").list_images(tmp_path)
    assert [(x.file, x.label) for x in listed] == [(file, file[:3]) for file in files]
    for words in ("2 .nii", "1 without suffix", "1 links to folders", "1 pipes or devices"):
        assert words in caplog.text
    assert "being no class folder and in none: stray.png" in caplog.text


def test_image_folder_warns_of_masks(tmp_path, caplog):
    touch(
        tmp_path, "cat/1.png", "cat/1_mask.png", "cat/1_mask_1.png", "dog/2.png", "dog/3_mask.png"
    )
    assert len(datasets.get("image_folder").list_images(tmp_path)) == 5
    assert "2 files look like masks of images beside them" in caplog.text


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


def test_an_empty_class_is_named_with_what_there_is_instead(tmp_path):
    touch(tmp_path, "cat/1.png", "dog/1.nii", "dog/2.nii")
    with pytest.raises(DataError, match=r"'dog' is empty.*\.png.*DICOM\); there are 2 \.nii"):
        datasets.get("image_folder").list_images(tmp_path)


def test_an_unknown_name_suggests_the_nearest_and_lists_all():
    with pytest.raises(DataError, match=r"'bussi'. Did you mean 'busi'. Known: brain_tumor, brisc"):
        datasets.get("bussi")


def listed(name, root):
    """{file: (label, group, split)} of a data set."""
    return {image.file: image[1:] for image in datasets.get(name).list_images(root)}


@pytest.mark.parametrize(
    ("name", "top"),
    [("kvasir", "kvasir-dataset-v2/"), ("kvasir", ""), ("kvasir_v1", "kvasir-dataset/")],
)
def test_kvasir_has_eight_classes(tmp_path, name, top):
    for label in kvasir._CLASSES:
        touch(tmp_path, f"{top}{label}/a.jpg")
    found = listed(name, tmp_path)
    assert len(found) == 8
    assert found[f"{top}polyps/a.jpg"] == ("polyps", None, None)


@pytest.mark.parametrize("top", ["", "COVID-19_Radiography_Dataset/"])
def test_covid_takes_images_and_neither_masks_nor_spreadsheets(tmp_path, top):
    for label in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        touch(tmp_path, f"{top}{label}/images/{label}-1.png", f"{top}{label}/masks/{label}-1.png")
        touch(tmp_path, f"{top}{label}.metadata.xlsx")
    found = listed("covid", tmp_path)
    assert sorted(found) == sorted(
        f"{top}{label}/images/{label}-1.png"
        for label in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    )


def test_skin_lesions_are_read_once_with_their_split(tmp_path):
    files = [f"{split}/{label}/1.jpg" for split in ("train", "test") for label in SKIN]
    touch(tmp_path, *files, *(f"data/{file}" for file in files))  # as the archive has them
    found = listed("skin_lesions", tmp_path)
    assert sorted(found) == sorted(files)
    assert found["test/benign/1.jpg"] == ("benign", None, "test")


def test_brain_tumours_know_their_split(tmp_path):
    for part in ("Training", "Testing"):
        for label in ("glioma", "meningioma", "notumor", "pituitary"):
            touch(tmp_path, f"{part}/{label}/1.jpg")
    found = listed("brain_tumor", tmp_path)
    assert len(found) == 8
    assert found["Testing/notumor/1.jpg"] == ("notumor", None, "test")
    assert found["Training/glioma/1.jpg"] == ("glioma", None, "train")


def test_brisc_takes_the_classification_task_only(tmp_path):
    for split in ("train", "test"):
        for label in ("glioma", "meningioma", "no_tumor", "pituitary"):
            touch(tmp_path, f"brisc2025/classification_task/{split}/{label}/1.jpg")
        touch(tmp_path, f"brisc2025/segmentation_task/{split}/images/1.jpg")
    found = listed("brisc2025", tmp_path)
    assert len(found) == 8
    assert found["brisc2025/classification_task/test/no_tumor/1.jpg"] == ("no_tumor", None, "test")


ISIC_HEADER = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"


def isic(root, part, *rows):
    """A part of ISIC 2018 task 3: images and one-hot table; a row is (image, class)."""
    classes = ISIC_HEADER.strip().split(",")[1:]
    lines = [
        f"{i}," + ",".join("1.0" if c == label else "0.0" for c in classes) for i, label in rows
    ]
    folder = root / f"ISIC2018_Task3_{part}_GroundTruth"
    folder.mkdir(parents=True)
    (folder / f"{folder.name}.csv").write_text(ISIC_HEADER + "\n".join(lines) + "\n")
    touch(root, *(f"ISIC2018_Task3_{part}_Input/{image}.jpg" for image, _ in rows))
    return root


GROUPINGS = "image,lesion_id,diagnosis_confirm_type\nISIC_1,L1,histo\nISIC_2,L1,histo\n"
METADATA = "lesion_id,image_id,dx\nL1,ISIC_1,mel\nL1,ISIC_2,mel\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("ISIC2018_Task3_Training_LesionGroupings.csv", GROUPINGS),
        ("HAM10000_metadata.csv", METADATA),
    ],
)
def test_isic_reads_its_parts_and_lesions(tmp_path, file, content):
    isic(tmp_path, "Training", ("ISIC_1", "MEL"), ("ISIC_2", "MEL"), ("ISIC_3", "NV"))
    isic(tmp_path, "Test", ("ISIC_9", "VASC"))
    (tmp_path / file).write_text(content)
    assert listed("isic2018", tmp_path) == {
        "ISIC2018_Task3_Training_Input/ISIC_1.jpg": ("MEL", "L1", "train"),
        "ISIC2018_Task3_Training_Input/ISIC_2.jpg": ("MEL", "L1", "train"),
        "ISIC2018_Task3_Training_Input/ISIC_3.jpg": ("NV", None, "train"),
        "ISIC2018_Task3_Test_Input/ISIC_9.jpg": ("VASC", None, "test"),
    }


def test_isic_is_malignant_or_benign(tmp_path):
    diagnoses = ("AKIEC", "BCC", "BKL", "DF", "MEL", "NV", "VASC")
    isic(tmp_path, "Training", *((f"ISIC_{k}", label) for k, label in enumerate(diagnoses)))
    found = [label for label, _, _ in listed("isic2018_binary", tmp_path).values()]
    pairs = set(zip(diagnoses, found, strict=True))
    assert {name for name, label in pairs if label == "malignant"} == {"MEL", "BCC", "AKIEC"}
    assert set(found) == {"malignant", "benign"}


def test_isic_says_what_its_tables_and_folders_do_not_share(tmp_path, caplog):
    isic(tmp_path, "Training", ("ISIC_1", "MEL"), ("ISIC_2", "MEL"))
    isic(tmp_path, "Test", ("ISIC_9", "NV"))
    folder = tmp_path / "ISIC2018_Task3_Training_Input"
    (folder / "ISIC_2.jpg").rename(folder / "ISIC_2.PNG")
    touch(folder, "ISIC_3.jpg")
    table = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
    table.write_text("image;lesion_id\nISIC_1;L1\n")
    (tmp_path / "ISIC2018_Task3_Test_Input").rename(tmp_path / "elsewhere")
    found = listed("isic2018", tmp_path)
    assert {name: row[1] for name, row in found.items()} == {
        f"{folder.name}/ISIC_1.jpg": "L1",
        f"{folder.name}/ISIC_2.PNG": None,
    }
    assert "are not used: ISIC_3" in caplog.text
    assert "have no lesion in the table; each counts as its own: ISIC_2" in caplog.text
    assert "Test_GroundTruth.csv is not used: there is no folder" in caplog.text


def test_a_part_that_is_not_known_is_told(tmp_path, caplog):
    touch(tmp_path, *(f"{part}/{c}/1.jpg" for part in ("train", "valid", "test") for c in SKIN))
    assert len(listed("skin_lesions", tmp_path)) == 4
    assert f"Not read: {tmp_path / 'valid'}, which holds classes" in caplog.text


def test_isic_names_what_is_wrong_with_its_tables(tmp_path):
    root = isic(tmp_path / "a", "Training", ("ISIC_1", "MEL"))
    table = next(root.rglob("*.csv"))
    table.write_text(ISIC_HEADER + "ISIC_1,1,1,0,0,0,0,0\n")
    with pytest.raises(DataError, match="line 2: 2 classes are 1; one must be"):
        listed("isic2018", root)
    table.write_text(ISIC_HEADER + "ISIC_1,1,0\n")
    with pytest.raises(DataError, match="line 2 has 3 values; its first line names 8"):
        listed("isic2018", root)
    table.write_text("image,MEL\nISIC_1,1\n")
    with pytest.raises(DataError, match="no column AKIEC, BCC, BKL, DF, NV, VASC"):
        listed("isic2018", root)
    table.write_text(ISIC_HEADER + "ISIC_7,1,0,0,0,0,0,0\n")
    with pytest.raises(DataError, match=r"1 images of the ground truth are not in .*ISIC_7\.jpg"):
        listed("isic2018", root)
    table.unlink()
    with pytest.raises(DataError, match=r"no ISIC2018_Task3_Training_GroundTruth\.csv"):
        listed("isic2018", root)


@needs_shared_data
def test_real_isic_has_10015_images_of_7470_lesions():
    found = listed("isic2018", SHARED_DATA / "isic2018")
    assert len(found) == 10015
    assert len({group for _, group, _ in found.values()}) == 7470
    counts = collections.Counter(label for label, _, _ in found.values())
    assert counts == {
        "NV": 6705, "MEL": 1113, "BKL": 1099, "BCC": 514, "AKIEC": 327, "VASC": 142, "DF": 115,
    }  # fmt: skip


@needs_shared_data
def test_real_brain_tumours_have_both_parts():
    found = listed("brain_tumor", SHARED_DATA / "brain_tumor_mri")
    counts = collections.Counter(split for _, _, split in found.values())
    assert counts == {"train": 5708, "test": 1311}


@pytest.mark.parametrize("names", [("train", "test"), ("Train_Set", "test_set"), ("train", "dev")])
def test_split_folders_on_top_are_not_taken_for_classes(tmp_path, names):
    for split in names:
        (tmp_path / split / "benign").mkdir(parents=True)
    with pytest.raises(DataError, match="these are parts, not classes"):
        datasets.get("image_folder").list_images(tmp_path)
