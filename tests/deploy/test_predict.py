"""New images through a small finished run: the table, the pictures, and from Python."""

import csv
import io
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

import egmae_jax
from egmae_jax import experiment
from egmae_jax.commands import predict
from egmae_jax.data import images
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.deploy import predictor, views
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.metrics import compute_metrics, cross_entropy
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.explain import cam_study, gradcam
from egmae_jax.explain.overlay import overlay
from egmae_jax.method import augment
from egmae_jax.run.saved_run import SavedRun
from tests import forks, tiny

BRANCHES = ("imagenet", "mae")


@pytest.fixture
def classify(command, moved, tmp_path):
    """Runs the command; returns its exit status, the rows of the table, output and errors."""

    def start(*arguments, workdir=moved[0], out=tmp_path / "out" / "table.csv"):
        status, *streams = command(predict, *arguments, workdir=workdir, out=out)
        rows = None
        if out.is_file():
            with out.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        return status, rows, *streams

    return start


def of_branch(rows, name):
    """[N, C]: the columns of a branch."""
    names = [column for column in rows[0] if column.startswith(f"{name}:")]
    return np.array([[float(row[column]) for column in names] for row in rows])


def write_image(path, seed=0, size=(40, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(path, format="PNG")
    return path


# --- Predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("round_index", [0, 1])
def test_test_images_get_what_the_run_gave_them(round_index, moved, classify):
    workdir, folder = moved
    saved = {
        name: load_predictions(SavedRun(workdir).paths.predictions(name, round_index, "test"))
        for name in BRANCHES
    }
    files = [folder / name for name in saved["mae"].ids]
    flags = (f"--round={round_index}", "--batch=3", "--images", *files)
    status, rows, output, errors = classify(*flags, "--uncalibrated")
    assert (status, errors) == (0, "")
    assert [row["file"] for row in rows] == list(map(str, files))
    for name in BRANCHES:
        np.testing.assert_allclose(of_branch(rows, name), saved[name].probabilities, atol=1e-6)

    # The ensemble, its class and its calibration are those that were scored.
    labels, classes = saved["mae"].labels, SavedRun(workdir).classes()
    scores = SavedRun(workdir).results()["rounds"][round_index]
    metrics = compute_metrics(labels, of_branch(rows, "ensemble"))
    assert metrics == pytest.approx(scores["test"]["ensemble"], abs=1e-5)
    predicted = [classes.index(row["predicted"]) for row in rows]
    assert np.mean(predicted == labels) == scores["test"]["ensemble"]["accuracy"]
    _, calibrated, *_ = classify(*flags)
    for name in (*BRANCHES, "ensemble"):
        scaled = of_branch(calibrated, name)
        expected = scores["calibration"][name]
        assert cross_entropy(labels, scaled) == pytest.approx(expected["loss"], abs=1e-5)
        assert calibration.expected_error(labels, scaled) == pytest.approx(expected["ece"])
    assert [row["predicted"] for row in calibrated] == [row["predicted"] for row in rows]
    assert f"{len(files)} images in " in output
    assert "\r" not in output  # no bar into a pipe


def test_all_rounds_are_averaged(moved):
    workdir, folder = moved
    files = sorted(folder.rglob("*.png"))[:5]
    first, second = (egmae_jax.load(workdir, round_index=i).predict(files) for i in (0, 1))
    every = egmae_jax.load(str(workdir), round_index="all").predict(files)
    assert every.classes == ("benign", "malignant", "normal")
    assert list(every.probabilities) == ["ensemble", *BRANCHES]
    for name, probabilities in every.probabilities.items():
        mean = (first.probabilities[name] + second.probabilities[name]) / 2
        np.testing.assert_allclose(probabilities, mean, atol=1e-7)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    likeliest = every.probabilities["ensemble"].argmax(axis=1)
    assert every.predicted == [every.classes[k] for k in likeliest]


def test_folds_are_averaged_unless_one_is_asked_for(moved, altered, classify, caplog):
    caplog.set_level("INFO", "egmae_jax")
    workdir, files = altered(rounds__kind="folds"), sorted(moved[1].rglob("*.png"))[:3]
    for i in (0, 1):
        (workdir / f"round_{i}").mkdir(exist_ok=True)
        shutil.copy(workdir / "splits.json", workdir / f"round_{i}")
    given = {i: egmae_jax.load(moved[0], round_index=i).predict(files) for i in (0, "all")}
    _, rows, *_ = classify("--images", *map(str, files), workdir=workdir)
    default, first = egmae_jax.load(workdir), egmae_jax.load(workdir, round_index=0)
    assert "the networks of all 2 folds are averaged" in caplog.text
    for loaded, expected in ((default, given["all"]), (first, given[0])):
        probabilities = loaded.predict(files).probabilities["mae"]
        assert np.array_equal(probabilities, expected.probabilities["mae"])
    np.testing.assert_allclose(of_branch(rows, "mae"), given["all"].probabilities["mae"], atol=1e-5)
    seeds = egmae_jax.load(moved[0]).predict(files)  # without folds: the first round
    assert np.array_equal(seeds.probabilities["mae"], given[0].probabilities["mae"])


def test_of_one_branch_there_is_no_ensemble(moved, altered):
    image = next(moved[1].rglob("*.png"))
    alone = egmae_jax.load(altered(branches=["mae"])).predict(image)
    assert list(alone.probabilities) == ["mae"]
    both = egmae_jax.load(moved[0]).predict(image)
    assert np.array_equal(alone.probabilities["mae"], both.probabilities["mae"])
    assert alone.labels == alone.probabilities["mae"].argmax()


def test_a_run_with_noise_classifies_without_and_warns(moved, altered, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("egmae_jax"), "propagate", True)
    noisy = egmae_jax.load(altered(finetune__input_noise=0.2))
    assert "finetune.input_noise=0.2" in caplog.text
    image = next(moved[1].rglob("*.png"))
    of_noisy, plain = (
        run.predict(image).probabilities for run in (noisy, egmae_jax.load(moved[0]))
    )
    assert np.array_equal(of_noisy["mae"], plain["mae"])


# --- The table -----------------------------------------------------------------------------------


def test_unreadable_files_are_listed_and_the_rest_is_predicted(classify, tmp_path):
    folder = tmp_path / "new"
    for number in (10, 2, 1):
        write_image(folder / "a" / f"{number}.png", number)
    whole = (folder / "a" / "1.png").read_bytes()
    write_image(folder / "B.PNG")
    (folder / "a" / "3.png").write_bytes(whole[:-300])
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "[red]:cat:\x1b[2J\nx.bmp").write_text("no image")
    (folder / "notes.txt").write_text("passed over")
    status, rows, output, errors = classify("--batch=2", "--images", folder)
    assert status == predict.UNREADABLE == 3
    assert [os.path.relpath(row["file"], folder) for row in rows] == [
        "B.PNG",
        "a/1.png",
        "a/2.png",
        "a/10.png",
    ]
    head, *lines = errors.splitlines()
    assert head == "Error: These images cannot be read and are not in the table:"
    assert f"  {folder}/a/3.png: damaged, truncated or not supported" in errors
    assert f"  {folder}/gone.png: No such file or directory" in lines
    assert f"  {folder}/[red]:cat:\\x1b[2J\\nx.bmp: {images.NOT_AN_IMAGE}" in lines
    assert len(lines) == 3
    assert "4 images in " in output


def test_where_nothing_can_be_read_no_table_is_written(classify, tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_text("no image")
    flags = ("--batch=2", "--images", tmp_path, "--gradcam", tmp_path / "gc")
    status, rows, _, errors = classify(*flags)
    assert (status, rows) == (1, None)
    assert "No image can be read" in errors
    assert f"  {tmp_path}/2.png: {images.NOT_AN_IMAGE}" in errors.splitlines()
    assert not (tmp_path / "gc").exists()


def test_hostile_names_are_data(classify, tmp_path, monkeypatch):
    names = [
        "=1+1.png",
        "@x.png",
        "+x.png",
        "-x.png",
        'a","b.png',
        "größer 中文.png",
        "two\nlines.png",
    ]
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    for name in [*names, os.fsdecode(b"latin-\xe9.png")]:
        write_image(Path(name))
    status, rows, _, errors = classify("--images", ".", "--gradcam", "../gc")
    assert (status, errors) == (0, "")
    files = [row["file"] for row in rows]
    assert not any(file.startswith(("=", "+", "-", "@")) for file in files)
    assert {os.path.normpath(file) for file in files} == {*names, "latin-\\udce9.png"}
    for name in names:  # those that are text open as they are written
        assert any(Path(file).samefile(name) for file in files if "udce9" not in file)
    assert len(os.listdir("../gc")) == len(names) + 1


def test_a_file_given_twice_has_one_row_and_may_have_any_suffix(classify, tmp_path):
    odd = write_image(tmp_path / "new" / "scan.001")
    one = write_image(tmp_path / "new" / "1.png")
    again = tmp_path / "new" / ".." / "new" / "1.png"  # another spelling
    flags = ("--images", odd, tmp_path / "new", f"--images={one}", f"--images={again}")
    status, rows, *_ = classify(*flags)
    assert status == 0
    assert [row["file"] for row in rows] == [str(odd), str(one)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "absent"], "absent does not exist (--images)."),
        (["--images", "{empty}"], "There are no images in {empty} (.bmp, .dcm, "),
        (["--images", "/dev/null"], "/dev/null is neither a file nor a folder (--images)."),
        (["--images", "{images}", "--round=2"], "There is no round 2; the run's are 0 to 1."),
        (["--images", "{images}", "--batch=0"], "batch is 0; it must be positive."),
        (["--images", "{images}", "--branch=mae"], "--gradcam explains, but --gradcam is not set"),
        (["--images", "{images}", "--branch=x", "--gradcam={empty}"], "The run has no branch 'x'"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, moved, classify, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "images": moved[1]}
    status, rows, _, errors = classify(*(x.format(**places) for x in arguments))
    assert (status, rows) == (1, None)
    assert message.format(**places) in errors
    assert not any((tmp_path / "out").glob("*"))
    assert not any((tmp_path / "empty").iterdir())


def test_images_are_not_replaced_by_pictures(classify, tmp_path):
    folder = tmp_path / "images"
    write_image(folder / "a.png")
    before = (folder / "a.png").read_bytes()
    error = classify("--images", folder, f"--gradcam={folder}")[3]
    assert f"would write {folder / 'a.png'} over an image" in error
    assert (folder / "a.png").read_bytes() == before
    for name in ("b.jpg", "b.jpg.png"):
        write_image(folder / name)
    error = classify("--images", folder, f"--gradcam={tmp_path / 'gc'}")[3]
    assert f"would write {tmp_path / 'gc' / 'b.jpg.png'} over" in error


# --- The run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "holds no run: there is no config.json in it."),
        (lambda w: (w / "results.json").unlink(), "the run has not been evaluated yet."),
        (lambda w: (w / "splits.json").unlink(), "splits.json is missing: restore it"),
        (lambda w: shutil.rmtree(w / "export"), "Fine-tuned are: none yet."),
        (lambda w: next(w.glob("export/*")).write_bytes(b"x" * 99), ".safetensors"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(spoil, message, moved, classify, tmp_path):
    workdir = shutil.copytree(moved[0], tmp_path / "run")
    spoil(workdir)
    status, rows, _, errors = classify("--images", moved[1], workdir=workdir)
    assert (status, rows) == (1, None)
    assert message in errors


def test_the_module_is_a_command(tmp_path):
    done = forks.run(
        *("-m", "egmae_jax.predict", "--workdir=absent"),
        *("--images", str(write_image(tmp_path / "x.png")), f"--out={tmp_path / 'out.csv'}"),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: absent holds no run: there is no config.json in it.\n"


# --- Pictures ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_show_what_speaks_for_the_class_of_the_row(altered, classify, tmp_path):
    workdir = altered(data__color="grey", data__image_size=64, evaluation__resize=70)
    folder, out = tmp_path / "new", tmp_path / "gc"
    names = ["a/x.png", "b/x.png", "b/x.jpg", "b/c/y.tif"]
    for seed, name in enumerate(names):
        write_image(folder / name, seed)
    flags = ("--batch=3", "--images", folder, f"--gradcam={out}")
    status, rows, *_ = classify(*flags, workdir=workdir)
    assert status == 0
    drawn = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert drawn == ["a/x.png", "b/c/y.tif.png", "b/x.jpg.png", "b/x.png"]

    run = SavedRun(workdir)
    network = run.classifier(run.branch("mae"), 0)
    hot = 0
    for row in rows:
        name = Path(row["file"]).relative_to(folder).as_posix()
        name = name if name.endswith(".png") else f"{name}.png"
        grey = images.decode(Path(row["file"]).read_bytes(), "grey")
        pixels = images.to_array(images.evaluation_view(grey, "shorter_side", 64, 70))
        label = run.classes().index(row["predicted"])
        normalized = augment.normalize(jax.numpy.asarray(pixels[None]))
        heat = gradcam.gradcam(network.model, network.variables, normalized, classes=label)
        hot += bool(heat.any())
        with PIL.Image.open(out / name) as picture:
            expected = overlay(pixels, np.asarray(heat[0])).astype(int)
            assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1
    assert hot >= 3
    with PIL.Image.open(out / "a/x.png") as picture:
        description = picture.info["Description"]
    assert description == "Grad-CAM of mae at layer stages_1/blocks_0, 8 x 8 grid"


# --- From Python ---------------------------------------------------------------------------------


def test_images_of_any_kind_are_seen_alike(moved, tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (40, 50, 3), np.uint8)
    grey = rng.integers(0, 256, (40, 50), np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    turned = np.rot90(colour, -1)
    paths = [tmp_path / f"{name}.png" for name in ("colour", "grey", "turned")]
    for path, pixels in zip(paths, (colour, grey, colour), strict=True):
        PIL.Image.fromarray(pixels).save(path, exif=exif if path.stem == "turned" else None)
    run = egmae_jax.load(moved[0], batch=4)
    files = run.predict(paths).probabilities["mae"]
    assert len(np.unique(files.round(6), axis=0)) == 3
    opened = [PIL.Image.open(path) for path in paths]
    encoded = [path.read_bytes() for path in paths]
    for sources in (
        map(str, paths),
        opened,
        encoded,
        [colour, grey, turned],
        [colour[None], [grey[..., None], opened[2]]],
        [jax.numpy.asarray(colour), paths[1], encoded[2]],
    ):
        result = run.predict(sources)
        np.testing.assert_allclose(result.probabilities["mae"], files, atol=1e-6)
    for one in (colour, paths[0], opened[0], encoded[0]):
        np.testing.assert_allclose(run.predict(one).probabilities["mae"], files[:1], atol=1e-6)
    stack = run.predict(np.stack([colour] * 9)).probabilities["mae"]
    np.testing.assert_allclose(stack, np.repeat(files[:1], 9, axis=0), atol=1e-6)
    nothing = run.predict([])
    assert nothing.predicted == []
    assert {p.shape for p in nothing.probabilities.values()} == {(0, 3)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            np.full((8, 8, 3), 0.5),
            r"dtype float64 and shape \[8, 8, 3\]; it must be uint8 \(0 to 255\)",
        ),
        (np.zeros((0, 8, 3), np.uint8), r"dtype uint8 and shape \[0, 8, 3\]; it must"),
        ([None], "a NoneType is not an image; it must be a path"),
        ("absent.png", "^absent.png: No such file or directory$"),
        ([np.zeros((8, 8), np.uint8), b"x"], f"^image 1: {images.NOT_AN_IMAGE}$"),
        (PIL.Image.new("F", (8, 8)), "^image 0: .* in mode 'F' lacks the tags"),
    ],
)
def test_what_is_no_image_is_refused(source, message, moved):
    with pytest.raises(UnreadableImageError, match=message):
        egmae_jax.load(moved[0]).predict(source)


def test_of_many_images_few_are_in_memory(moved, monkeypatch):
    decoded = []
    plain = images.examine
    monkeypatch.setattr(views.images, "examine", lambda *x: decoded.append(1) or plain(*x))
    buffer = io.BytesIO()
    PIL.Image.new("L", (40, 40)).save(buffer, format="PNG")
    batches = egmae_jax.load(moved[0], batch=8).stream([buffer.getvalue()] * 10_000)
    sizes = [len(next(batches).indices) for _ in range(3)]
    batches.close()
    assert sizes == [8, 8, 8]
    assert len(decoded) >= 3 * 8
    # Those three, one more at the devices, sixteen ahead, and one in every thread's hands.
    assert len(decoded) <= 4 * 8 + 16 + (os.cpu_count() or 1) + 2


@pytest.fixture
def twelve_bits(tmp_path):
    """A finished run on pictures of 12 bits in 16."""
    root = tmp_path / "twelve_bits"
    root.mkdir()
    data = tiny.make_data(root / "phantoms")
    for path in data.rglob("*.png"):
        grey = np.asarray(PIL.Image.open(path).convert("L")).astype(np.uint16) * 16
        PIL.Image.fromarray(grey).save(path)
    config = tiny.make_config(
        data,
        root / "cache",
        data__intensity_range="dataset",
        branches=("imagenet",),
        rounds__count=1,
    )
    experiment.run(config, root / "run")
    return root / "run", data


@pytest.mark.slow
def test_new_images_are_read_by_the_range_of_the_run(twelve_bits, tmp_path, caplog):
    workdir, data = twelve_bits
    values = np.stack([np.asarray(PIL.Image.open(p)) for p in sorted(data.rglob("*.png"))])
    recorded = json.loads((workdir / "intensity_range.json").read_text())
    low, high = int(values.min()), int(values.max())
    assert recorded == {"rule": "dataset", "of_dataset": {"uint16": [low, high]}}
    results = json.loads((workdir / "results.json").read_text())
    assert results["dataset"]["intensity_range"] == recorded

    saved = SavedRun(workdir)
    row = saved.split(0)[0]
    file = data / row["file"]
    result = predictor.Predictor(workdir)
    array = np.asarray(PIL.Image.open(file))
    expected = np.round(255 * (array - float(low)) / (high - low)).astype(np.uint8)
    expected = np.repeat(expected[..., None], 3, axis=-1)
    right = result.predict(expected).probabilities["imagenet"]
    for source in (file, file.read_bytes(), PIL.Image.open(file)):
        np.testing.assert_array_equal(result.predict(source).probabilities["imagenet"], right)
    rows = [{**row, "split": "test"}]
    (explained,) = cam_study.explain_images(saved, saved.branch(), 0, rows, data)
    view = images.evaluation_view(PIL.Image.fromarray(expected), "shorter_side", 32)
    np.testing.assert_array_equal(explained.example.pixels, np.asarray(view))

    assert "become black or white" not in caplog.text
    PIL.Image.fromarray(array + np.uint16(30000)).save(tmp_path / "bright.png")
    result.predict([tmp_path / "bright.png"] * 3)
    said = [record.getMessage() for record in caplog.records]
    (warned,) = [message for message in said if "become black or white" in message]
    assert f"uint16 from {low} to {high}" in warned
    PIL.Image.fromarray(array.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(images.UnreadableImageError, match=r"float32, a type that the data"):
        result.predict(tmp_path / "float.tif")
