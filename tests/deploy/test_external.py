"""A finished run on labelled images from elsewhere: the scores, the names, what is left out."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
from sklearn import metrics as sk

from egmae_jax.commands import evaluate
from egmae_jax.data import phantoms
from egmae_jax.data.datasets import DataError
from egmae_jax.data.listing import list_files
from egmae_jax.deploy.external import rename_classes
from egmae_jax.evaluation.metrics import TITLES
from egmae_jax.run.saved_run import SavedRun
from tests.conftest import HTML_CLASSES
from tests.report.conftest import Page

CLASSES = ("benign", "malignant", "normal")
CLASSIFIERS = ("imagenet", "mae", "ensemble")


@pytest.fixture
def start(command, finished, tmp_path):
    """Runs the command; returns its exit status, results, rows of the table, output and errors."""

    def start(images, *flags, out=tmp_path / "external", workdir=finished.workdir):
        status, *streams = command(evaluate, *flags, workdir=workdir, images=images, out=out)
        if not (out / "report.html").is_file():
            return status, None, None, *streams
        with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return status, json.loads((out / "results.json").read_text()), rows, *streams

    return start


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """Other phantoms than the run's, with the classes of the run."""
    folder = tmp_path_factory.mktemp("elsewhere") / "images"
    phantoms.write(folder, images_per_class=5, seed=1, height=48, width=64)
    return folder


@pytest.fixture
def images(elsewhere, tmp_path) -> Path:
    """A copy of them, which a test may change."""
    return shutil.copytree(elsewhere, tmp_path / "images")


def pngs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def of_round(rows, index, classifier):
    """Labels [N] and probabilities [N, C] of a classifier in a round."""
    chosen = [row for row in rows if row["round"] == str(index)]
    labels = np.array([CLASSES.index(row["label"]) for row in chosen])
    return labels, np.array([[float(row[f"{classifier}:{c}"]) for c in CLASSES] for row in chosen])


# --- Scores --------------------------------------------------------------------------------------


def test_the_runs_own_test_images_get_the_runs_own_scores(start, finished, data):
    """Of its whole data set, only they are not left out."""
    status, results, rows, output, errors = start(data)
    assert (status, errors) == (0, "")
    run = SavedRun(finished.workdir)
    split = {row["file"]: row["split"] for row in run.split(0)}
    tested = sorted(file for file, part in split.items() if part == "test")
    for index, own in enumerate(finished.results["rounds"]):
        assert [row["file"] for row in rows if row["round"] == str(index)] == tested
        ours = results["rounds"][index]
        assert ours["confusion"] == own["confusion"]
        assert ours["fusion"] == own["fusion"]
        for name in CLASSIFIERS:
            for key in ("test", "intervals", "calibration"):
                expected = own[key][name]
                if key == "intervals":
                    expected = {m: pytest.approx(x, abs=1e-6) for m, x in expected.items()}
                    assert ours[key][name] == expected
                else:
                    assert ours[key][name] == pytest.approx(expected, abs=1e-6)
    assert results["summary"].keys() == finished.results["summary"].keys()
    left_out = {row["file"]: row["reason"] for row in results["dataset"]["left_out_files"]}
    assert left_out == {
        file: f"identical to the {part} image {file}"
        for file, part in split.items()
        if part != "test"
    }
    first = next(iter(left_out))
    assert f"Left out: {first} (identical to the {split[first]} image {first}), " in output
    assert f"and {len(left_out) - 20} more" in output


def test_scores_are_scikit_learns_on_the_table(start, elsewhere):
    status, results, rows, output, _ = start(elsewhere)
    assert status == 0
    assert results["dataset"]["counts"] == {"test": dict.fromkeys(CLASSES, 5)}
    assert len(rows) == 2 * 15
    assert {row["label"] for row in rows} == set(CLASSES)
    assert all(row["file"].startswith(f"{row['label']}/") for row in rows)
    for index, name in np.ndindex(2, 3):
        labels, p = of_round(rows, index, CLASSIFIERS[name])
        ours = results["rounds"][index]["test"][CLASSIFIERS[name]]
        assert set(ours) == set(TITLES)
        guess = p.argmax(axis=1)
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            labels, guess, average="macro", zero_division=0
        )
        expected = {
            "accuracy": sk.accuracy_score(labels, guess),
            **{"precision": precision, "recall": recall, "f1": f1},
            "auc": sk.roc_auc_score(labels, p / p.sum(axis=1, keepdims=True), multi_class="ovr"),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, guess),
            "kappa": sk.cohen_kappa_score(labels, guess),
        }
        assert {key: ours[key] for key in expected} == pytest.approx(expected, abs=1e-6)
        matrix = sk.confusion_matrix(labels, guess).tolist()
        assert results["rounds"][index]["confusion"][CLASSIFIERS[name]] == matrix
        if CLASSIFIERS[name] == "ensemble":
            predicted = [row["predicted"] for row in rows if row["round"] == str(index)]
            assert predicted == [CLASSES[k] for k in guess]
    summary = results["summary"]["ensemble"]["accuracy"]
    values = [row["test"]["ensemble"]["accuracy"] for row in results["rounds"]]
    assert summary == pytest.approx({"mean": np.mean(values), "std": np.std(values, ddof=1)})
    assert "15 test images" in output


def test_a_class_may_be_absent_and_others_have_other_names(start, images, tmp_path):
    shutil.rmtree(images / "normal")
    (images / "benign").rename(images / "Gutartig")
    status, results, rows, output, _ = start(images, "--map=Gutartig=benign")
    assert status == 0
    assert {row["label"] for row in rows} == {"benign", "malignant"}
    assert results["dataset"]["absent_classes"] == ["normal"]
    assert results["dataset"]["renamed"] == ["Gutartig=benign"]
    assert list(results["summary_by_class"]["mae"]) == ["benign", "malignant"]
    assert "No image is of normal: macro averages are over the other classes." in output
    labels, p = of_round(rows, 1, "mae")
    auc = np.mean([sk.roc_auc_score(labels == c, p[:, c]) for c in (0, 1)])
    assert results["rounds"][1]["test"]["mae"]["auc"] == pytest.approx(auc, abs=1e-6)
    page = Page((tmp_path / "external" / "report.html").read_text())
    assert "No image is of normal" in page.text
    for heading in ("Confusion matrices", "Calibration", "Beside the run's own test images"):
        assert heading in page.text
    # Curves of two classes, and reliability of three classifiers.
    assert len(page.of("svg")) == 2 * 2 + 3


def test_a_manifest_has_patients(start, images):
    lines = [
        f"{path.relative_to(images)},{path.parent.name},{k % 4}"
        for k, path in enumerate(p for c in CLASSES for p in pngs(images / c))
    ]
    (images / "manifest.csv").write_text("\n".join(["path,label,patient", *lines]))
    status, results, rows, *_ = start(images / "manifest.csv")
    assert status == 0
    assert results["rounds"][0]["groups"] == 4 == len({row["group"] for row in rows})


def test_a_pattern_names_patients(start, images):
    status, results, *_ = start(images, r"--group_pattern=_?0*(\d)\D*\.png$")
    assert status == 0
    assert results["rounds"][0]["groups"] < 15


def test_names_that_are_html_stay_names(start, html_run, tmp_path):
    status, results, *_ = start(html_run[1], workdir=html_run[0])
    assert status == 0
    assert results["dataset"]["absent_classes"] == []
    raw = (tmp_path / "external" / "report.html").read_text()
    page = Page(raw)
    for name in HTML_CLASSES.values():
        assert name in " ".join(page.strings)
        assert name not in raw
    assert not {"script", "i"} & {tag for tag, _ in page.tags}


# --- What is left out -----------------------------------------------------------------------------


def test_near_duplicates_and_copies_of_seen_images_are_left_out(start, images, finished, data):
    split = SavedRun(finished.workdir).split(0)
    train, validation, test = (
        next(row["file"] for row in split if row["split"] == part)
        for part in ("train", "validation", "test")
    )
    brighter = PIL.ImageEnhance.Brightness(PIL.Image.open(data / train)).enhance(1.1)
    brighter.save(images / "benign" / "near.png")
    shutil.copy(data / validation, images / "benign" / "same.png")
    PIL.Image.open(data / train).save(images / "benign" / "pixels.bmp")
    shutil.copy(data / test, images / "benign" / "tested.png")
    (images / "benign" / "broken.png").write_bytes(b"no image")
    status, results, rows, output, errors = start(images)
    assert status == 3
    assert "These images cannot be read and were left out:\n  benign/broken.png (" in errors
    found = {row["file"]: row["reason"] for row in results["dataset"]["left_out_files"]}
    assert found == {
        "benign/near.png": f"near-duplicate of the train image {train}",
        "benign/pixels.bmp": f"identical to the train image {train}",
        "benign/same.png": f"identical to the validation image {validation}",
    }
    files = {row["file"] for row in rows}
    assert not files & found.keys()
    assert "benign/tested.png" in files
    assert "20 images found: 16 evaluated, 3 left out" in output.replace("\n", " ")


def test_the_same_patient_is_left_out_with_a_seen_image(start, images, finished, data):
    train = next(r["file"] for r in SavedRun(finished.workdir).split(0) if r["split"] == "train")
    shutil.copy(data / train, images / "benign" / "p7_a.png")
    pngs(images / "malignant")[0].rename(images / "malignant" / "p7_b.png")
    _, results, *_ = start(images, r"--group_pattern=(p7)_")
    assert results["dataset"]["left_out_files"] == [
        {"file": "benign/p7_a.png", "reason": f"identical to the train image {train}"},
        {"file": "malignant/p7_b.png", "reason": "in one group with benign/p7_a.png"},
    ]


def test_without_the_runs_images_the_same_files_are_found(start, moved, elsewhere, tmp_path):
    workdir, own = moved
    images = shutil.copytree(elsewhere, tmp_path / "images")
    train = next(row["file"] for row in SavedRun(workdir).split(0) if row["split"] == "train")
    shutil.copy(own / train, images / "benign" / "same.png")
    PIL.Image.open(own / train).save(images / "benign" / "pixels.bmp")
    status, results, *_ = start(images, workdir=workdir)
    assert status == 0
    assert [row["file"] for row in results["dataset"]["left_out_files"]] == [
        "benign/pixels.bmp",  # a near-duplicate of the other
        "benign/same.png",
    ]
    assert "There is no folder" in results["dataset"]["near_duplicates_problem"]
    page = Page((tmp_path / "external" / "report.html").read_text())
    assert "Near-duplicates of images that the run has seen could not all be looked" in page.text
    _, results, *_ = start(images, f"--data_dir={own}", workdir=workdir)
    assert results["dataset"]["near_duplicates_problem"] == ""


# --- What is refused ------------------------------------------------------------------------------


def test_names_are_never_guessed(elsewhere):
    listing = list_files("image_folder", elsewhere)
    same = rename_classes(listing, ["benign=normal"], CLASSES)
    assert {x.label for x in same.images} == {"malignant", "normal"}
    odd = rename_classes(listing, ["normal=a=b"], ("a=b", "benign", "malignant"))
    assert {x.label for x in odd.images} == {"a=b", "benign", "malignant"}
    for renamed, classes, message in (
        (
            [],
            ("Benign", "malignant", "normal"),
            "no class 'benign'; its classes are Benign, .*--map",
        ),
        (["normal=healthy"], CLASSES, "'normal=healthy'.*benign, malignant, normal.*class of the"),
        (["healthy=normal"], CLASSES, "'healthy=normal'.*must be OTHER=OURS"),
        (["normal"], CLASSES, "must be OTHER=OURS"),
        (["normal=benign", "normal=malignant"], CLASSES, "renames the class 'normal' twice"),
    ):
        with pytest.raises(DataError, match=message):
            rename_classes(listing, renamed, classes)


def test_wrong_input_is_refused_in_a_sentence(start, command, images, finished, data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("path,label\n")
    for folder, flags, message in (
        (tmp_path / "nowhere", (), "nowhere does not exist (--images)."),
        (tmp_path / "empty", (), "must contain a folder for each of two or more classes"),
        (tmp_path / "list.csv", (), "must have the name manifest.csv"),
        (images, ("--map=benign=healthy",), "--map is 'benign=healthy'"),
    ):
        status, results, _, _, error = start(folder, *flags)
        assert (status, results) == (1, None)
        assert error.startswith("Error: ")
        assert message in error
        assert error.count("\n") == 1
    for out, message in (
        (finished.workdir, "is the folder of a run"),
        (images / "out", "is in the folder of the images"),
    ):
        flags = {"workdir": finished.workdir, "images": images, "out": out}
        status, _, error = command(evaluate, **flags)
        assert (status, message in error) == (1, True)
    seen = tmp_path / "seen"
    for row in SavedRun(finished.workdir).split(0):
        if row["split"] == "train":
            (seen / row["file"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / row["file"], seen / row["file"])
    status, _, _, _, error = start(seen)
    assert (status, "no image is left after" in error) == (1, True)


@pytest.mark.parametrize("pattern", ["(", "p7"])
def test_a_pattern_without_a_group_is_refused(pattern, start, elsewhere):
    status, _, _, _, error = start(elsewhere, f"--group_pattern={pattern}")
    assert (status, pattern in error) == (2, True)
