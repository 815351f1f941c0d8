"""Where the data sets' files are and what their labels are."""

import collections
import os
from pathlib import Path

import pytest

from egmae_jax.core.errors import ConfigError
from egmae_jax.data import datasets
from egmae_jax.data.datasets import DataError, kvasir
from egmae_jax.data.listing import list_files
from tests.conftest import SHARED_DATA, needs_shared_data


def touch(root, *files):
    """Files of no content: listing reads none."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def listed(name, root):
    """{file: (label, group, split)} of a data set."""
    return {image.file: image[1:] for image in datasets.get(name).list_images(root)}


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
    assert listed("busi", tmp_path) == {
        f"{top}benign/benign (1).png": ("benign", None, None),
        f"{top}benign/benign (4).png": ("benign", None, None),
        f"{top}benign/mask_of_patient 3.png": ("benign", None, None),
        f"{top}malignant/malignant (1).png": ("malignant", None, None),
        f"{top}normal/normal (1).png": ("normal", None, None),
    }


def test_a_missing_class_is_named_unless_the_others_are_asked_for(tmp_path):
    touch(tmp_path, *BUSI[:9], "other/x.png")
    with pytest.raises(DataError, match=r"no images of normal; it has benign, malignant"):
        list_files("busi", tmp_path)
    listing = list_files("busi", tmp_path, classes=("benign", "malignant"))
    assert listing.classes == ("benign", "malignant")
    with pytest.raises(DataError, match=r"data.classes contains 'normal'"):
        list_files("busi", tmp_path, classes=("benign", "normal"))


def test_a_folder_without_any_class_is_refused_with_the_folders_it_has(tmp_path):
    touch(tmp_path, "other/x.png")
    with pytest.raises(DataError, match=r"class folders benign, malignant, normal.*: other"):
        list_files("busi", tmp_path)


def test_a_class_that_only_one_official_part_has_is_named(tmp_path):
    touch(tmp_path, *(f"{part}/benign/1.jpg" for part in ("train", "test")))
    touch(tmp_path, "train/malignant/1.jpg")
    with pytest.raises(DataError, match=r"test has no class folder 'malignant'"):
        list_files("skin_lesions", tmp_path)


def test_hyperkvasir_takes_its_classes_from_the_folders_at_any_depth(tmp_path):
    top = "hyper-kvasir/labeled-images/lower-gi-tract"
    files = {
        f"{top}/pathological-findings/polyps/a.jpg": "polyps",
        f"{top}/quality-of-mucosal-views/bbps-0-1/b.jpg": "bbps-0-1",
    }
    touch(tmp_path / "official", *files, "hyper-kvasir/unlabeled-images/images/c.jpg")
    rows = {file: (label, None, None) for file, label in files.items()}
    assert listed("hyperkvasir", tmp_path / "official") == rows
    touch(tmp_path / "flat", "polyps/a.jpg", "cecum/b.jpg")
    labels = [label for label, _, _ in listed("hyperkvasir", tmp_path / "flat").values()]
    assert sorted(labels) == ["cecum", "polyps"]
    touch(tmp_path / "flat", "loose.jpg")
    with pytest.raises(DataError, match=r"loose\.jpg is not in the folder of a class"):
        listed("hyperkvasir", tmp_path / "flat")


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "folder", "classes", "counts"),
    [
        ("hyperkvasir", "hyperkvasir", (), [110, 266, 104, 321, 795]),
        ("brisc2025", "brisc2025", (), [240] * 4),
        ("covid", "covid19_radiography", ("COVID", "Normal", "Viral Pneumonia"), [400] * 3),
    ],
)
def test_real_files_in_their_published_layout(name, folder, classes, counts):
    listing = list_files(name, SHARED_DATA / folder, classes=classes)
    labels = collections.Counter(image.label for image in listing.images)
    assert [labels[name] for name in listing.classes] == counts


@needs_shared_data
def test_real_busi_has_780_images():
    result = listed("busi", SHARED_DATA / "busi")
    counts = collections.Counter(label for label, _, _ in result.values())
    assert counts == {"benign": 437, "malignant": 210, "normal": 133}
    assert all((SHARED_DATA / "busi" / file).is_file() for file in result)


def test_image_folder_takes_its_classes_from_the_folders(tmp_path, caplog):
    files = ("cat/2.JPG", "cat/deep/er/1.tiff", "dog/a.webp", "dog/b.jpeg", "dog/c.DCM")
    hidden = (".cache/x.png", "cat/._2.JPG", "cat/.ipynb_checkpoints/2.png", "__MACOSX/cat/2.png")
    touch(tmp_path, *files, *hidden, "cat/a.nii", "cat/b.nii", "dog/LICENSE", "stray.png")
    (tmp_path / "dog" / "more").symlink_to(tmp_path / "cat")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    images = datasets.get("image_folder").list_images(tmp_path)
    assert [(x.file, x.label) for x in images] == [(file, file[:3]) for file in files]
    for words in ("2 .nii", "1 .png", "1 without suffix", "1 links to folders"):
        assert words in caplog.text
    assert "because they are not in a class folder: stray.png" in caplog.text


def test_image_folder_warns_of_masks(tmp_path, caplog):
    touch(
        tmp_path, "cat/1.png", "cat/1_mask.png", "cat/1_mask_1.png", "dog/2.png", "dog/3_mask.png"
    )
    assert len(datasets.get("image_folder").list_images(tmp_path)) == 5
    assert "2 files look like masks of other images" in caplog.text


@pytest.mark.parametrize("files", [(), ("only/1.png",), ("1.png", "2.png")])
def test_image_folder_needs_two_classes(tmp_path, files):
    touch(tmp_path, *files)
    with pytest.raises(DataError, match="two or more classes") as caught:
        datasets.get("image_folder").list_images(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'bussi'\. Did you mean 'busi'\? Known: brain_tumor"):
        datasets.get("bussi")


COVID = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
COVID_OTHERS = ("{label}/masks/{label}-1.png", "{label}.metadata.xlsx")
COVID_TOP = "COVID-19_Radiography_Dataset/"
TUMOURS = ("glioma", "meningioma", "notumor", "pituitary")
TUMOURS_OF_BRISC = ("glioma", "meningioma", "no_tumor", "pituitary")
BRISC = "brisc2025/classification_task/{part}/{label}/1.jpg"
BRISC_OTHERS = ("brisc2025/segmentation_task/{part}/{label}/1.jpg",)
SKIN_OTHERS = ("data/{part}/{label}/1.jpg",)  # the archive has all twice
NONE, PARTS = {"": None}, {"train": "train", "test": "test"}


@pytest.mark.parametrize(
    ("name", "file", "classes", "parts", "others"),
    [
        ("kvasir", "kvasir-dataset-v2/{label}/a.jpg", kvasir._CLASSES, NONE, ()),
        ("kvasir", "{label}/a.jpg", kvasir._CLASSES, NONE, ()),
        ("kvasir_v1", "kvasir-dataset/{label}/a.jpg", kvasir._CLASSES, NONE, ()),
        ("covid", "{label}/images/1.png", COVID, NONE, COVID_OTHERS),
        ("covid", COVID_TOP + "{label}/images/1.png", COVID, NONE, COVID_OTHERS),
        ("skin_lesions", "{part}/{label}/1.jpg", ("benign", "malignant"), PARTS, SKIN_OTHERS),
        (
            "brain_tumor",
            "{part}/{label}/1.jpg",
            TUMOURS,
            {"Training": "train", "Testing": "test"},
            (),
        ),
        ("brisc2025", BRISC, TUMOURS_OF_BRISC, PARTS, BRISC_OTHERS),
    ],
)
def test_published_sets_are_listed_by_their_layout(tmp_path, name, file, classes, parts, others):
    expected = {
        file.format(label=label, part=folder): (label, None, part)
        for label in classes
        for folder, part in parts.items()
    }
    unused = [x.format(label=y, part=part) for x in others for y in classes for part in parts]
    touch(tmp_path, *expected, *unused)
    assert listed(name, tmp_path) == expected


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
    isic(tmp_path, "Training", *((label, label) for label in diagnoses))
    labels = {Path(file).stem: row[0] for file, row in listed("isic2018_binary", tmp_path).items()}
    assert {name for name, label in labels.items() if label == "malignant"} == {
        "MEL",
        "BCC",
        "AKIEC",
    }
    assert set(labels.values()) == {"malignant", "benign"}


def test_isic_says_what_its_tables_and_folders_do_not_share(tmp_path, caplog):
    isic(tmp_path, "Training", ("ISIC_1", "MEL"), ("ISIC_2", "MEL"))
    isic(tmp_path, "Test", ("ISIC_9", "NV"))
    folder = tmp_path / "ISIC2018_Task3_Training_Input"
    (folder / "ISIC_2.jpg").rename(folder / "ISIC_2.PNG")
    touch(folder, "ISIC_3.jpg", "LICENSE.txt")
    table = tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv"
    table.write_text("image;lesion_id\nISIC_1;L1\n")
    (tmp_path / "ISIC2018_Task3_Test_Input").rename(tmp_path / "elsewhere")
    assert {name: row[1] for name, row in listed("isic2018", tmp_path).items()} == {
        f"{folder.name}/ISIC_1.jpg": "L1",
        f"{folder.name}/ISIC_2.PNG": None,
    }
    assert "are not used because" in caplog.text
    assert "list them: ISIC_3" in caplog.text
    assert "and each is treated as a lesion of its own: ISIC_2" in caplog.text


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (f"{ISIC_HEADER}ISIC_1,1,1,0,0,0,0,0\n", "line 2: 2 classes are 1; exactly one must be"),
        (f"{ISIC_HEADER}ISIC_1,1,0\n", "line 2 has 3 values, but its first line names 8"),
        ("image,MEL\nISIC_1,1\n", "no column AKIEC, BCC, BKL, DF, NV, VASC"),
        (f"{ISIC_HEADER}ISIC_7,1,0,0,0,0,0,0\n", "1 images that .* lists are not in .*ISIC_7"),
        (ISIC_HEADER + 2 * "ISIC_1,1,0,0,0,0,0,0\n", "line 3: ISIC_1 is listed twice"),
        (None, r"no ISIC2018_Task3_Training_GroundTruth\.csv"),
        *(
            (f"{ISIC_HEADER}{name},1,0,0,0,0,0,0\n", "1 images that .* lists are not in ")
            for name in ("../secret", "/etc/passwd", "", "x" * 300)
        ),
    ],
)
def test_isic_names_what_is_wrong_with_its_tables(tmp_path, table, message):
    touch(tmp_path, "secret.jpg")
    path = next(isic(tmp_path, "Training", ("ISIC_1", "MEL")).rglob("*.csv"))
    path.unlink() if table is None else path.write_text(table)
    with pytest.raises(DataError, match=message):
        listed("isic2018", tmp_path)


@needs_shared_data
def test_real_isic_has_10015_images_of_7470_lesions():
    result = listed("isic2018", SHARED_DATA / "isic2018")
    assert len(result) == 10015
    assert len({group for _, group, _ in result.values()}) == 7470
    counts = collections.Counter(label for label, _, _ in result.values())
    assert counts == {
        "NV": 6705, "MEL": 1113, "BKL": 1099, "BCC": 514, "AKIEC": 327, "VASC": 142, "DF": 115,
    }  # fmt: skip


@needs_shared_data
def test_real_brain_tumours_have_both_parts():
    result = listed("brain_tumor", SHARED_DATA / "brain_tumor_mri")
    counts = collections.Counter(split for _, _, split in result.values())
    assert counts == {"train": 5708, "test": 1311}


@pytest.mark.parametrize("names", [("train", "test"), ("Train_Set", "test_set"), ("train", "dev")])
def test_split_folders_on_top_are_not_taken_for_classes(tmp_path, names):
    for split in names:
        (tmp_path / split / "benign").mkdir(parents=True)
    with pytest.raises(DataError, match="which are parts, not classes"):
        datasets.get("image_folder").list_images(tmp_path)
