"""New images through a small finished run: the table, the pictures, and from Python."""

import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest

import egmae_jax
from egmae_jax.commands import predict
from egmae_jax.core.files import DamagedFileError
from egmae_jax.data import images
from egmae_jax.data.images import UnreadableImageError
from egmae_jax.deploy import predictor
from egmae_jax.evaluation import calibration
from egmae_jax.evaluation.metrics import compute_metrics, cross_entropy
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.explain import gradcam
from egmae_jax.explain.overlay import overlay
from egmae_jax.method import augment
from egmae_jax.run.saved_run import RunError, SavedRun
from tests import forks, tiny

BRANCHES = ("imagenet", "mae")


@pytest.fixture
def command(monkeypatch, capsys, moved, tmp_path):
    """Runs the command; returns its exit status, the rows of the table, output and errors."""
    monkeypatch.setattr(predict.console, "set_up_logging", lambda: None)  # global

    def start(*arguments, workdir=moved[0], out=tmp_path / "out" / "table.csv"):
        flags = [f"--workdir={workdir}", f"--out={out}", *map(str, arguments)]
        try:
            status = predict.main(flags)
        except SystemExit as stop:
            status = stop.code
        rows = None
        if out.is_file():
            with out.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        return status, rows, *capsys.readouterr()

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
def test_test_images_get_what_the_run_gave_them(round_index, moved, command):
    workdir, folder = moved
    saved = {
        name: load_predictions(SavedRun(workdir).paths.predictions(name, round_index, "test"))
        for name in BRANCHES
    }
    files = [folder / name for name in saved["mae"].ids]
    flags = (f"--round={round_index}", "--batch=3", "--images", *files)
    status, rows, output, errors = command(*flags, "--uncalibrated")
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
    _, calibrated, *_ = command(*flags)
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
    assert list(every.probabilities) == [*BRANCHES, "ensemble"]
    for name, probabilities in every.probabilities.items():
        mean = (first.probabilities[name] + second.probabilities[name]) / 2
        np.testing.assert_allclose(probabilities, mean, atol=1e-7)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    likeliest = every.probabilities["ensemble"].argmax(axis=1)
    assert every.predicted == [every.classes[k] for k in likeliest]


def test_of_one_branch_there_is_no_ensemble(moved, tmp_path):
    workdir = shutil.copytree(moved[0], tmp_path / "run")
    edit(workdir / "config.json", branches=["mae"])
    image = next(moved[1].rglob("*.png"))
    alone, both = egmae_jax.load(workdir).predict(image), egmae_jax.load(moved[0]).predict(image)
    assert list(alone.probabilities) == ["mae"]
    assert np.array_equal(alone.probabilities["mae"], both.probabilities["mae"])
    assert alone.labels == alone.probabilities["mae"].argmax()


def test_a_run_with_noise_classifies_without_and_warns(moved, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("egmae_jax"), "propagate", True)
    workdir = shutil.copytree(moved[0], tmp_path / "run")
    edit(workdir / "config.json", finetune={"input_noise": 0.2})
    image = next(moved[1].rglob("*.png"))
    probabilities = egmae_jax.load(workdir).predict(image).probabilities["mae"]
    assert "finetune.input_noise=0.2" in caplog.text
    assert np.array_equal(
        probabilities, egmae_jax.load(moved[0]).predict(image).probabilities["mae"]
    )


# --- The table -----------------------------------------------------------------------------------


def test_unreadable_files_are_listed_and_the_rest_is_predicted(command, tmp_path):
    folder = tmp_path / "new"
    for number in (10, 2, 1):
        write_image(folder / "a" / f"{number}.png", number)
    whole = (folder / "a" / "1.png").read_bytes()
    write_image(folder / "B.PNG")
    (folder / "a" / "3.png").write_bytes(whole[:-300])
    (folder / "empty.jpg").touch()
    (folder / "text.tif").write_text("no image")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "[red]:cat:\x1b[2J\nx.bmp").write_text("no image")
    (folder / "notes.txt").write_text("passed over")
    write_image(folder / ".hidden.png")
    status, rows, output, errors = command("--batch=2", "--images", folder)
    assert status == predict.UNREADABLE == 3
    assert [os.path.relpath(row["file"], folder) for row in rows] == [
        "B.PNG",
        "a/1.png",
        "a/2.png",
        "a/10.png",
    ]
    head, *lines = errors.splitlines()
    assert head == "Error: 5 images cannot be read and are left out:"
    assert f"  {folder}/a/3.png: damaged or truncated" in errors
    assert f"  {folder}/empty.jpg: the file is empty" in lines
    assert f"  {folder}/text.tif: {images.NOT_AN_IMAGE}" in lines
    assert f"  {folder}/gone.png: No such file or directory" in lines
    assert f"  {folder}/[red]:cat:\\x1b[2J\\nx.bmp: {images.NOT_AN_IMAGE}" in lines
    assert len(lines) == 5
    assert "4 images in " in output


def test_where_nothing_can_be_read_no_table_is_written(command, tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").write_text("no image")
    flags = ("--batch=2", "--images", tmp_path, "--gradcam", tmp_path / "gc")
    status, rows, _, errors = command(*flags)
    assert (status, rows) == (1, None)
    assert "No image can be read" in errors
    assert f"  {tmp_path}/2.png: {images.NOT_AN_IMAGE}" in errors.splitlines()
    assert not (tmp_path / "gc").exists()


def test_a_table_of_something_else_is_not_replaced(command, tmp_path):
    write_image(tmp_path / "a.png")
    out = tmp_path / "labels.csv"
    out.write_text("id,label\n1,benign\n")
    status, _, _, errors = command("--images", tmp_path, out=out)
    assert status == 1
    assert (
        f"--out={out} exists and is no table of predictions (it begins with 'id,label')" in errors
    )
    assert out.read_text() == "id,label\n1,benign\n"
    out.unlink()
    assert [command("--images", tmp_path, out=out)[0] for _ in range(2)] == [0, 0]  # its own


def test_hostile_names_are_data(command, tmp_path, monkeypatch):
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
    for name in names:
        write_image(Path(name))
    write_image(Path(os.fsdecode(b"latin-\xe9.png")))
    status, rows, _, errors = command("--images", ".", "--gradcam", "../gc")
    assert (status, errors) == (0, "")
    files = [row["file"] for row in rows]
    assert not any(file.startswith(("=", "+", "-", "@")) for file in files)
    assert {os.path.normpath(file) for file in files} == {*names, "latin-\\udce9.png"}
    for name in names:  # those that are text open as they are written
        assert any(Path(file).samefile(name) for file in files if "udce9" not in file)
    assert len(os.listdir("../gc")) == len(names) + 1


def test_the_batch_changes_nothing_and_a_network_is_compiled_once(moved, command, monkeypatch):
    compiled = []
    plain = predictor.platform.jit
    monkeypatch.setattr(
        predictor.platform, "jit", lambda f, **k: compiled.append(plain(f, **k)) or compiled[-1]
    )
    predictor._program.cache_clear()
    _, seven, *_ = command("--batch=7", "--images", moved[1])
    assert [program._cache_size() for program in compiled] == [1]  # of one model, 36 images
    _, whole, *_ = command("--batch=64", "--images", moved[1])
    assert len(seven) == 36
    for name in (*BRANCHES, "ensemble"):
        np.testing.assert_allclose(of_branch(seven, name), of_branch(whole, name), atol=1e-6)


def test_a_file_given_twice_has_one_row_and_may_have_any_suffix(command, tmp_path):
    odd = write_image(tmp_path / "new" / "scan.001")
    one = write_image(tmp_path / "new" / "1.png")
    again = tmp_path / "new" / ".." / "new" / "1.png"  # another spelling
    given = ("--images", odd, tmp_path / "new", f"--images={one}", f"--images={again}")
    status, rows, *_ = command(*given)
    assert status == 0
    assert [row["file"] for row in rows] == [str(odd), str(one)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "absent"], "absent is not there (--images)."),
        (["--images", "{empty}"], "There is no image in {empty} (.bmp, .dcm, "),
        (["--images", "/dev/null"], "/dev/null is neither a file nor a folder (--images)."),
        (["--images", "{images}", "--round=2"], "There is no round 2; the run's are 0 to 1."),
        (["--images", "{images}", "--round=x"], "The round is 'x'; it must be a round's number"),
        (["--images", "{images}", "--batch=0"], "batch is 0; it must be positive."),
        (["--images", "{images}", "--branch=mae"], "--gradcam explains, which is not given."),
        (["--images", "{images}", "--branch=x", "--gradcam={empty}"], "The run has no branch 'x'"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message, moved, command, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "images": moved[1]}
    status, rows, _, errors = command(*(x.format(**places) for x in arguments))
    assert (status, rows) == (1, None)
    assert message.format(**places) in errors
    assert not any((tmp_path / "out").glob("*"))
    assert not any((tmp_path / "empty").iterdir())


def test_a_table_that_could_not_be_written_is_refused_first(moved, command, tmp_path):
    assert "must end in .csv" in command("--images", moved[1], out=tmp_path)[3]
    (tmp_path / "file").touch()
    status, _, _, errors = command("--images", moved[1], out=tmp_path / "file" / "table.csv")
    assert (status, errors.splitlines()[-1][:6]) == (1, "Error:")
    flags = ("--images", moved[1], f"--gradcam={tmp_path / 'file'}")
    assert "file is a file, not a folder" in command(*flags)[3]


def test_images_are_not_replaced_by_pictures(command, tmp_path):
    folder = tmp_path / "images"
    write_image(folder / "a.png")
    before = (folder / "a.png").read_bytes()
    error = command("--images", folder, f"--gradcam={folder}")[3]
    assert f"would write a picture over the image {folder / 'a.png'}" in error
    assert (folder / "a.png").read_bytes() == before
    for name in ("b.jpg", "b.jpg.png"):
        write_image(folder / name)
    error = command("--images", folder, f"--gradcam={tmp_path / 'gc'}")[3]
    assert f"2 images would have the one picture {tmp_path / 'gc' / 'b.jpg.png'}" in error


# --- The run -------------------------------------------------------------------------------------


def edit(path, **changes):
    """Changes fields of a JSON file; of sections, the fields given."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        content[name] = content[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def spoil_temperature(workdir):
    content = json.loads((workdir / "results.json").read_text())
    content["rounds"][0]["calibration"]["mae"]["temperature"] = 0
    (workdir / "results.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "holds no run: there is no config.json in it."),
        (lambda w: (w / "results.json").unlink(), "the run has not been evaluated yet."),
        (lambda w: (w / "results.json").write_text("{"), "results.json is damaged"),
        (lambda w: (w / "splits.json").unlink(), "splits.json is missing: restore it"),
        (lambda w: shutil.rmtree(w / "export"), "Fine-tuned are: none yet."),
        (lambda w: next(w.glob("export/*")).write_bytes(b"x" * 99), ".safetensors"),
        (spoil_temperature, "does not say how branches are fused and calibrated"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(spoil, message, moved, command, tmp_path):
    workdir = shutil.copytree(moved[0], tmp_path / "run")
    spoil(workdir)
    status, rows, _, errors = command("--images", moved[1], workdir=workdir)
    assert (status, rows) == (1, None)
    assert message in errors


def test_probabilities_that_are_no_numbers_are_refused(moved, monkeypatch):
    asked = egmae_jax.load(moved[0])
    nothing = np.full((1, 3), np.nan)
    monkeypatch.setattr(predictor, "_program", lambda *_: lambda *_: nothing)
    with pytest.raises(DamagedFileError, match=r"round_0_imagenet\.safetensors is damaged"):
        asked.predict(np.zeros((9, 9), np.uint8))


def test_the_module_is_a_command(tmp_path):
    done = forks.run(
        *("-m", "egmae_jax.predict", "--workdir=absent"),
        *("--images", str(write_image(tmp_path / "x.png")), f"--out={tmp_path / 'out.csv'}"),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: absent holds no run: there is no config.json in it.\n"


# --- Pictures ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_show_what_speaks_for_the_class_of_the_row(moved, command, tmp_path):
    workdir = shutil.copytree(moved[0], tmp_path / "run")
    edit(workdir / "config.json", data={"color": "grey", "image_size": 64})
    edit(workdir / "config.json", evaluation={"resize": 70})
    folder, out = tmp_path / "new", tmp_path / "gc"
    names = ["a/x.png", "b/x.png", "b/x.jpg", "b/c/y.tif"]
    for seed, name in enumerate(names):
        write_image(folder / name, seed)
    flags = ("--batch=3", "--images", folder, f"--gradcam={out}")
    status, rows, *_ = command(*flags, workdir=workdir)
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
    PIL.Image.fromarray(colour).save(tmp_path / "colour.png")
    PIL.Image.fromarray(grey).save(tmp_path / "grey.png")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    PIL.Image.fromarray(colour).save(tmp_path / "turned.png", exif=exif)
    names = ["colour.png", "grey.png", "turned.png"]
    asked = egmae_jax.load(moved[0], batch=4)
    files = asked.predict([tmp_path / name for name in names]).probabilities["mae"]
    assert len(np.unique(files.round(6), axis=0)) == 3
    opened = [PIL.Image.open(tmp_path / name) for name in names]
    before = [image.size for image in opened]
    encoded = [(tmp_path / name).read_bytes() for name in names]
    turned = PIL.Image.fromarray(np.rot90(colour, -1))
    for several in (
        [str(tmp_path / name) for name in names],
        opened,
        encoded,
        [colour, grey, turned],
        [colour[None], [grey[..., None], opened[2]]],
        (x for x in [jax.numpy.asarray(colour), tmp_path / "grey.png", encoded[2]]),
    ):
        result = asked.predict(several)
        np.testing.assert_allclose(result.probabilities["mae"], files, atol=1e-6)
        assert result.labels.shape == (3,)
    assert [image.size for image in opened] == before
    for one in (colour, tmp_path / "colour.png", opened[0], encoded[0]):
        np.testing.assert_allclose(asked.predict(one).probabilities["mae"], files[:1], atol=1e-6)
    batch = asked.predict(np.stack([colour] * 9)).probabilities["mae"]
    np.testing.assert_allclose(batch, np.repeat(files[:1], 9, axis=0), atol=1e-6)
    nothing = asked.predict([])
    assert nothing.predicted == []
    assert {p.shape for p in nothing.probabilities.values()} == {(0, 3)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((8, 8, 3), 0.5), r"float64 \[8, 8, 3\]; expected are uint8 of 0 to 255, \["),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]; expected"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]; expected"),
        (np.zeros(8, np.uint8), r"uint8 \[8\]; expected"),
        ([None], "a NoneType is no image; paths"),
        ("absent.png", "^absent.png: No such file or directory$"),
        ([np.zeros((8, 8), np.uint8), b"x"], f"^image 1: {images.NOT_AN_IMAGE}$"),
        (PIL.Image.new("F", (8, 8)), "^image 0: .* in mode 'F' lacks the tags"),
    ],
)
def test_what_is_no_image_is_refused(given, message, moved):
    with pytest.raises(UnreadableImageError, match=message):
        egmae_jax.load(moved[0]).predict(given)


def test_of_many_images_few_are_in_memory(moved, monkeypatch):
    decoded = []
    plain = images.decode
    monkeypatch.setattr(predictor.images, "decode", lambda *x: decoded.append(1) or plain(*x))
    buffer = io.BytesIO()
    PIL.Image.new("L", (40, 40)).save(buffer, format="PNG")
    parts = egmae_jax.load(moved[0], batch=8).stream([buffer.getvalue()] * 10_000)
    sizes = [len(next(parts).indices) for _ in range(3)]
    parts.close()
    assert sizes == [8, 8, 8]
    # Those three, one more at the devices, sixteen chunks ahead, and one in every thread's hands.
    assert len(decoded) <= 4 * 8 + 16 + (os.cpu_count() or 1) + 2


@pytest.mark.parametrize("options", [{"round_index": 2}, {"round_index": "x"}, {"batch": 0}])
def test_options_are_checked(options, moved):
    with pytest.raises(RunError):
        egmae_jax.load(moved[0], **options)


def test_importing_the_package_is_cheap():
    code = "import egmae_jax, sys; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=tiny.environment()).returncode == 0
