"""What pages need: data sets of a few images of noise in their publishers' layouts, weights."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors.numpy

from egmae_jax.models import timm_names

_SIZE = (48, 64)  # height and width
_PARTS = {"Training": 6, "Validation": 2, "Test": 3}  # of ISIC 2018: images of each class
_DIAGNOSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
_BUSI = ("benign", "malignant", "normal")
_KVASIR = (
    *("dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum"),
    *("normal-pylorus", "normal-z-line", "polyps", "ulcerative-colitis"),
)
_FINDINGS = ("cecum", "polyps", "bbps-0-1")
_COVID = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
_SKIN = ("benign", "malignant")
_TUMOURS = ("glioma", "meningioma", "notumor", "pituitary")
_BRISC = ("glioma", "meningioma", "no_tumor", "pituitary")
# By the folder's name: paths, their classes, how many of each. {patient} has two images.
_LAYOUTS: dict[str, list[tuple[str, tuple[str, ...], int]]] = {
    "busi": [("Dataset_BUSI_with_GT/{label}/{label} ({k}).png", _BUSI, 10)],
    "kvasir": [("kvasir-dataset-v2/{label}/{k}.jpg", _KVASIR, 6)],
    "kvasir_v1": [("kvasir-dataset/{label}/{k}.jpg", _KVASIR, 6)],
    "hyperkvasir": [("labeled-images/lower-gi-tract/findings/{label}/{k}.jpg", _FINDINGS, 8)],
    "covid": [("COVID-19_Radiography_Dataset/{label}/images/{label}-{k}.png", _COVID, 8)],
    "skin_lesions": [("train/{label}/{k}.jpg", _SKIN, 10), ("test/{label}/{k}.jpg", _SKIN, 4)],
    "brain_tumor": [
        ("Training/{label}/Tr-{k:04}.jpg", _TUMOURS, 8),
        ("Testing/{label}/Te-{k:04}.jpg", _TUMOURS, 4),
    ],
    "brisc2025": [
        (f"brisc2025/classification_task/{split}/{{label}}/{{k}}.jpg", _BRISC, count)
        for split, count in (("train", 8), ("test", 4))
    ],
    "mine": [("{label}/patient{patient:03}_{k}.png", _BUSI, 12)],
    "xray": [("{label}/{patient:08}_{k:03}.png", ("COVID-19", "No_findings", "Pneumonia"), 12)],
    "archive": [("ward_{k}/{label}.png", ("a", "b", "c", "d", "e"), 4)],
    "hospital_b": [("{label}/p{patient:03}_{k}.png", ("benign", "cancer", "normal"), 8)],
    "table": [("images/{label}_{k}.png", _BUSI, 12)],
    "isic2018": [
        (f"ISIC2018_Task3_{part}_Input/ISIC_{{label}}_{part}_{{k}}.jpg", _DIAGNOSES, count)
        for part, count in _PARTS.items()
    ],
}
_LAYOUTS["brain_tumor_mri"] = _LAYOUTS["brain_tumor"]


def make(path: Path) -> None:
    """Writes the image, the weights or the data set that a file or folder is named after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".npz", ".safetensors"):
        _write_weights(path)
    elif path.suffix:
        _write_image(path, np.random.default_rng(1))
    else:
        _write_data_set(path)


def _write_weights(path: Path) -> None:
    """Noise in timm's names: of the model of the file's name, or of ConvNeXt-Tiny."""
    rng = np.random.default_rng(0)
    name = "convnext_tiny" if path.stem == "mine" else path.stem
    tensors = {
        # Variances must be positive, and what scales a block near nothing, as in trained networks.
        key: np.abs(rng.normal(scale=0.05, size=shape)).astype(np.float32)
        for key, (_, shape, _) in timm_names.expected_tensors(name, 1000).items()
    }
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **tensors)
    else:
        safetensors.numpy.save_file(tensors, path)


def _write_data_set(folder: Path) -> None:
    # Those with a seed of their own show no image of others.
    rng = np.random.default_rng({"archive": 2, "hospital_b": 3}.get(folder.name, 0))
    rows = []
    for file, label, patient in _files(folder.name):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_image(path, rng)
        rows.append((file, label, patient))
    if folder.name == "busi":
        _write_masks(folder, [(file, label) for file, label, _ in rows])
    elif folder.name == "isic2018":
        _write_isic_tables(folder, [(file, label) for file, label, _ in rows])
    elif folder.name == "hospital_b":
        _write_table(folder / "manifest.csv", ("path", "label", "patient"), rows)
    elif folder.name == "table":
        splits = (*["train"] * 8, *["validation"] * 2, *["test"] * 2)
        table = [(*row, splits[i % len(splits)]) for i, row in enumerate(rows)]
        _write_table(folder / "manifest.csv", ("path", "label", "group", "split"), table)


def _write_image(path: Path, rng: np.random.Generator) -> None:
    """Noise, grey where the suffix is .png; no two images are near-duplicates."""
    shape = _SIZE if path.suffix == ".png" else (*_SIZE, 3)
    PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)


def _files(name: str) -> Iterator[tuple[str, str, int]]:
    """Path, class and patient of each image."""
    for pattern, classes, count in _LAYOUTS.get(name, [("{k}.png", ("",), 6)]):
        for index, label in enumerate(classes):
            for k in range(1, count + 1):
                patient = 100 * index + (k + 1) // 2
                yield pattern.format(label=label, k=k, patient=patient), label, patient


def _write_masks(folder: Path, images: list[tuple[str, str]]) -> None:
    """The lesion of every image, which normal ones do not have."""
    mask = np.zeros(_SIZE, np.uint8)
    mask[16:32, 20:44] = 255
    for file, label in images:
        path = folder / file
        pixels = mask * (label != "normal")
        PIL.Image.fromarray(pixels).save(path.with_name(f"{path.stem}_mask.png"))


def _write_isic_tables(folder: Path, images: list[tuple[str, str]]) -> None:
    for part in _PARTS:
        name = f"ISIC2018_Task3_{part}_GroundTruth"
        labels = [(Path(file).stem, label) for file, label in images if f"_{part}_" in file]
        rows = [(image, *(float(label == each) for each in _DIAGNOSES)) for image, label in labels]
        _write_table(folder / name / f"{name}.csv", ("image", *_DIAGNOSES), rows)
        if part == "Training":
            groups = [(image, f"L{index // 2}", "histo") for index, (image, _) in enumerate(labels)]
            path = folder / "ISIC2018_Task3_Training_LesionGroupings.csv"
            _write_table(path, ("image", "lesion_id", "diagnosis_confirm_type"), groups)


def _write_table(path: Path, columns: tuple[str, ...], rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
