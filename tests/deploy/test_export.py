"""Exported models against what evaluated the run, in timm, in a process without us, in ONNX."""

import functools
import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import markdown_it
import numpy as np
import PIL.Image
import pytest

from egmae_jax import models
from egmae_jax.commands import export as command_line
from egmae_jax.core.errors import MissingExtraError
from egmae_jax.data import images as decoding
from egmae_jax.data.samples import IntensityRange
from egmae_jax.deploy.export import card, pytorch, run, stablehlo, system, weights
from egmae_jax.deploy.export.system import View
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.method import augment
from egmae_jax.models import registry
from egmae_jax.models import timm as interop
from egmae_jax.models.convnext import register_convnext
from egmae_jax.models.init import initial_variables
from egmae_jax.run.saved_run import SavedRun
from egmae_jax.training import finetune
from tests import tiny, torch_reference

CLASSES = ("benign", "malignant", "normal")
SIZE, RESIZED = 32, 37


def random_variables(model_name, seed):
    model = models.create(model_name, len(CLASSES))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    return initial_variables(model, seed, image, kernel_init="fan_in", layer_scale=1.0)


@pytest.fixture(scope="module")
def with_asff(altered):
    """A run whose second network no library of PyTorch's has."""
    return altered(draw=random_variables, imagenet__model=tiny.ASFF)


def no_torch(*libraries, extra):
    raise MissingExtraError(f"no torch; pip install -e '.[{extra}]' installs it.")


@pytest.fixture(scope="module")
def made(altered, tmp_path_factory):
    """A run of two networks on grey images, and the export of its last round without PyTorch."""
    workdir, out = altered(data__color="grey"), tmp_path_factory.mktemp("export") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "require", no_torch)
        files = run.export_run(workdir, out, round_index=1)
    return workdir, out, files


@pytest.fixture
def export(command, monkeypatch):
    """Runs the command without PyTorch."""
    monkeypatch.setattr(run, "require", no_torch)
    monkeypatch.setenv("COLUMNS", "80")
    return functools.partial(command, command_line)


def pictures(count, seed=0):
    """Colourful images of several sizes."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        small = PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        yield small.resize((70 + 13 * k, 61 + 7 * k), PIL.Image.Resampling.BICUBIC)


def expected_of(workdir, name, views, round_index=0):
    """Outputs for uint8 views [B, S, S, 3 or 1], by the functions that evaluate a run."""
    systems = system.make_systems(SavedRun(workdir), None, round_index)
    whole = next(s for s in systems if s.name == name)
    return whole.reference({n.branch.name: probabilities_of(n, views) for n in whole.networks})


def probabilities_of(network, views):
    """By the function that computes a run's predictions."""
    program = jax.jit(functools.partial(finetune.class_probabilities, model=network.model))
    return np.asarray(program(network.variables, views))


# --- StableHLO ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cards_own_lines_classify_without_this_package(made, tmp_path):
    workdir, out, _ = made
    views = []
    for k, image in enumerate(pictures(5)):
        image.save(tmp_path / f"{k}.png")
        grey = decoding.decode((tmp_path / f"{k}.png").read_bytes(), "grey")
        view = decoding.evaluation_view(grey, "shorter_side", SIZE, RESIZED)
        views.append(decoding.to_array(view))
    np.save(tmp_path / "views.npy", np.repeat(views, 3, axis=-1))
    (tmp_path / "0.png").rename(tmp_path / "image.png")

    (lines,) = re.findall("```python\n(.*?)```", (out / "ensemble/README.md").read_text(), re.S)
    program = f"""{lines}
np.savez("outputs.npz", one=result["calibrated"], **classify(np.load("views.npy")))
import sys
assert not [name for name in sys.modules if name.startswith(("egmae_jax", "flax", "torch"))]
"""
    (tmp_path / "model.stablehlo").symlink_to(out / "ensemble" / "model.stablehlo")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    with np.load(tmp_path / "outputs.npz") as file:
        outputs = dict(file)
    expected = expected_of(workdir, "ensemble", np.stack(views), round_index=1)
    np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(outputs["calibrated"], expected["calibrated"], atol=1e-5)
    np.testing.assert_allclose(outputs["one"], expected["calibrated"][:1], atol=1e-5)


def test_the_json_beside_a_program_describes_it(made):
    path = made[1] / "ensemble" / "model.stablehlo"
    description = json.loads(path.with_name("model.stablehlo.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["input"] == {"shape": ["batch", SIZE, SIZE, 3], "dtype": "uint8"}
    assert "converted to greyscale" in description["preprocessing"]["before"]
    assert description["preprocessing"]["resized_to"] == RESIZED
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", [tiny.ASFF, "convnextv2_test", "squeezenet1_1"])
def test_every_family_becomes_a_program(name, monkeypatch):
    tiny.register()
    monkeypatch.setattr(registry.NETWORKS, "entries", dict(registry.NETWORKS.entries))
    register_convnext("convnextv2_test", *tiny.ENTRY)
    network = system.Network(
        system.Branch(name, name), models.create(name, 3), random_variables(name, 0)
    )
    view = View(SIZE, "shorter_side", "rgb", SIZE)
    alone = system.System(name, (network,), None, Scaling(0.5, 0.02), CLASSES, view)
    program = jax.export.deserialize(stablehlo.lower(alone).serialize(vjp_order=0))
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    expected = alone.reference({name: probabilities_of(network, images)})
    outputs = jax.jit(program.call)(images)
    for output, values in expected.items():
        np.testing.assert_allclose(outputs[output], values, atol=1e-5)


def test_colours_become_grey_as_by_pillow():
    colours = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    grey = np.asarray(system.to_grey(jnp.asarray(colours, jnp.float32)))[..., 0]
    np.testing.assert_array_equal(grey, np.asarray(PIL.Image.fromarray(colours).convert("L")))


# --- The command ----------------------------------------------------------------------------------


def test_every_model_gets_a_folder(made):
    _, out, files = made
    of_all = {"README.md", "model.stablehlo", "model.stablehlo.json"}
    of_branch = of_all | {"model.safetensors", "config.json"}
    for name, expected in {"imagenet": of_branch, "mae": of_branch, "ensemble": of_all}.items():
        assert {path.name for path in (out / name).iterdir()} == expected
    compared = [file for file in files if file.difference is not None]
    assert [file.path.name for file in compared] == ["model.stablehlo"] * 3
    assert max(file.difference for file in compared) < 1e-5


def test_the_command_says_what_was_not_compared(moved, export, tmp_path):
    flags = {"branch": "mae", "formats": "timm"}
    status, output, errors = export(workdir=moved[0], out=tmp_path / "out", **flags)
    assert (status, errors) == (0, "")
    assert re.search(r"^ mae/model\.safetensors +0\.\d +not compared +1e-04", output, re.M)
    assert "Not compared: no torch; pip install -e '.[parity]' installs it." in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mae"]


def test_a_program_that_computes_something_else_is_an_error(moved, export, monkeypatch, tmp_path):
    nothing = dict.fromkeys(("probabilities", "calibrated"), np.zeros((2, len(CLASSES))))
    monkeypatch.setattr(stablehlo, "write", lambda _, path: path.write_bytes(b""))
    monkeypatch.setattr(stablehlo, "load", lambda path: lambda images: nothing)
    flags = {"branch": "mae", "formats": "stablehlo"}
    status, _, errors = export(workdir=moved[0], out=tmp_path / "out", **flags)
    assert status == 1
    assert "must not be used" in errors
    assert "mae/model.stablehlo" in errors
    assert run.ExportedFile(Path("model.onnx"), float("nan")).is_wrong


def test_bad_requests_are_refused_before_anything_is_written(moved, export, tmp_path):
    out = tmp_path / "out"
    for flags, message in (
        ({"formats": "timm,pickle"}, "--formats is 'timm,pickle'; it must be one or sev"),
        ({"formats": ""}, "--formats is ''; it must be one or several of timm, stablehlo, onnx"),
        ({"round": 7}, "There is no round 7; the run's are 0 to 1."),
        ({"formats": "onnx"}, "no torch; pip install -e '.[onnx]'"),
    ):
        status, _, errors = export(**{"workdir": moved[0], "out": out} | flags)
        assert status == 1
        assert message in errors, flags
    assert not out.exists()
    (out / "mae").mkdir(parents=True)
    (out / "mae" / "model.onnx").write_text("another model's")
    assert "mae is not empty and may contain another model" in export(workdir=moved[0], out=out)[2]
    assert [path.name for path in out.rglob("*.*")] == ["model.onnx"]


def test_that_an_asff_has_no_onnx_is_logged(with_asff, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(run, "require", lambda *libraries, extra: None)
    monkeypatch.setattr(logging.getLogger("egmae_jax"), "propagate", True)
    (file,) = run.export_run(with_asff, tmp_path, branch="imagenet", formats=("onnx",))
    assert file.path == tmp_path / "imagenet" / "model.safetensors"
    assert "imagenet/model.onnx" in caplog.text


# --- The card -------------------------------------------------------------------------------------


def make_card(workdir, name):
    saved = SavedRun(workdir)
    systems = {s.name: s for s in system.make_systems(saved, None, 0)}
    return card.render_card(saved, systems[name], 0, ["model.safetensors", "model.stablehlo"])


def test_the_card_has_the_runs_figures(made):
    workdir, out, _ = made
    results = json.loads((workdir / "results.json").read_text())
    text = (out / "ensemble" / "README.md").read_text()
    of_round, over = results["rounds"][1], results["summary"]["ensemble"]["accuracy"]
    low, high = of_round["intervals"]["ensemble"]["accuracy"]
    assert (
        f"| Accuracy | {of_round['test']['ensemble']['accuracy']:.3f} | {low:.3f} to {high:.3f} | "
        f"{over['mean']:.3f} ± {over['std']:.3f} |\n"
    ) in text
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("jax", "image-classification")
    assert (data.license, data.tags) == (None, ["medical-imaging", "jax"])
    images = sum(results["dataset"]["counts"]["test"].values())
    for sentence in (
        "round 1 (seed 1) of 2",
        "- `imagenet`: started from **random weights**",
        "as an entropy-guided masked autoencoder. Pre-training did not see the test",
        f"by a bootstrap of the {of_round['groups']} groups (patients, lesions, near-duplicates) "
        f"of the {images} test images",
        "**Few groups of test images: ",
        "**It is not a medical device**",
        "**License: not chosen.**",
        "- Florindo and Moura",
        "converted to greyscale (Pillow's 'L'), resized so that the shorter side has 37 pixels, "
        "cropped to the central 32 by 32",
    ):
        assert sentence in text
    of_mae = (out / "mae" / "README.md").read_text()
    assert huggingface_hub.ModelCard(of_mae).data.library_name == "timm"
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in of_mae
    assert "timm" not in text


def test_the_card_names_what_else_one_must_know(altered):
    workdir = altered(
        draw=random_variables,
        imagenet__model=tiny.ASFF,
        data__resize="pad",
        model__dtype="bfloat16",
        finetune__input_noise=0.1,
    )
    results = json.loads((workdir / "results.json").read_text())
    results["pretraining_saw_test"] = True
    results["imagenet_weights"]["imagenet"] = "/home/me/resnet.safetensors"
    results["imagenet_sha256"]["imagenet"] = "abc"
    (workdir / "results.json").write_text(json.dumps(results))
    text = make_card(workdir, "mae")
    for sentence in (
        "**Pre-training saw the test images**",
        "**It does not make the same pixels**: images were padded with black",
        "(finetune.input_noise=0.1)",
        "The run computed in bfloat16, but the exported model computes in float32",
        "PIL.ImageOps.pad(image, (37, 37)",
    ):
        assert sentence in text
    of_asff = make_card(workdir, "imagenet")
    assert "asff\\_resnet\\_test is in no other library" in of_asff
    assert "started from the ImageNet weights resnet.safetensors (SHA-256 abc)" in of_asff
    assert huggingface_hub.ModelCard(of_asff).data.library_name == "jax"


HOSTILE = ("<script>alert(1)</script>", "a | b `c` *d* [e](f)", "x\n---\n# y\x1b[31m\u202e")


def test_names_are_text_in_the_card_and_never_markup(altered):
    workdir = altered()
    for path in (workdir / "splits.json", workdir / "results.json"):
        text = path.read_text()
        for old, new in zip(CLASSES, HOSTILE, strict=True):
            text = text.replace(json.dumps(old), json.dumps(new))
        path.write_text(text)
    results = json.loads((workdir / "results.json").read_text())
    results["dataset"]["title"] = "x\n---\n<b>title</b>"
    (workdir / "results.json").write_text(json.dumps(results))
    text = huggingface_hub.ModelCard(make_card(workdir, "mae")).text
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<h1>") == 1
    assert "<script" not in html
    assert "<b>" not in html
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in html
    assert "<td>a | b `c` *d* [e](f)</td>" in html
    assert "<td>x --- # y [31m</td>" in html


OF_DATASET = IntensityRange("dataset", {"uint16": (100.0, 4095.0)})


@pytest.mark.parametrize("resize", decoding.RESIZE_MODES)
@pytest.mark.parametrize("resized", [SIZE, RESIZED])
@pytest.mark.parametrize("rule", [IntensityRange(), OF_DATASET], ids=["type", "dataset"])
def test_the_cards_lines_make_the_evaluation_view(resize, resized, rule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = View(SIZE, resize, "rgb", resized, rule)
    lines = card._view_code(settings)
    of_16_bits = np.random.default_rng(0).integers(0, 4200, (70, 90), np.uint16)
    for image in (*pictures(3), PIL.Image.fromarray(of_16_bits)):
        image.save("image.png")
        exec("\n".join(["import PIL.ImageOps", *lines]), names := {"PIL": PIL, "np": np})
        read = decoding.decode(Path("image.png").read_bytes(), intensity=rule)
        view = decoding.evaluation_view(read, resize, SIZE, resized)
        np.testing.assert_array_equal(np.asarray(names["image"]), np.asarray(view))
    assert ("uint16 from 100 to 4095" in settings.describe()) == (rule is OF_DATASET)


@pytest.mark.parametrize(
    "rule", [IntensityRange("declared"), IntensityRange("dataset", {"float32": (0.0, 1.0)})]
)
def test_a_model_card_does_not_guess_a_range_for_16_bits(tmp_path, monkeypatch, rule):
    PIL.Image.fromarray(np.full((40, 50), 4095, np.uint16)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    lines = card._view_code(View(SIZE, "shorter_side", "rgb", SIZE, rule))
    with pytest.raises(ValueError, match="scale 16-bit values to 8 bits first"):
        exec("\n".join(lines), {"np": np, "PIL": PIL})


# --- PyTorch --------------------------------------------------------------------------------------

SIZE_IN_TIMM, RESIZED_IN_TIMM = 64, 73


@functools.cache
def torch_variables(model_name, seed):
    """Of a network of timm's or torchvision's whose every parameter is drawn anew."""
    create = torch_reference.timm().create_model
    if model_name.startswith("squeezenet"):
        create = torch_reference.torchvision().models.get_model
    theirs = create(model_name, num_classes=len(CLASSES))
    tensors = torch_reference.randomize(theirs, seed).state_dict()
    return interop.convert({k: x.numpy().copy() for k, x in tensors.items()}, model_name, "")


@pytest.fixture(scope="module")
def in_timm(altered, tmp_path_factory):
    """A run of networks that timm has, and its export for timm."""
    torch_reference.timm()
    workdir = altered(
        draw=torch_variables,
        imagenet__model="resnet18",
        model__name="convnext_atto",
        data__image_size=SIZE_IN_TIMM,
        evaluation__resize=RESIZED_IN_TIMM,
    )
    out = tmp_path_factory.mktemp("timm")
    return workdir, out, run.export_run(workdir, out, formats=("timm",))


def timms_transform(model):
    options = torch_reference.timm().data.resolve_model_data_config(model)
    return torch_reference.timm().data.create_transform(**options, is_training=False)


def test_timm_makes_the_model_and_its_view_from_the_folder_alone(in_timm):
    (workdir, out, files), timm, torch = in_timm, torch_reference.timm(), torch_reference.torch()
    assert [file.path.parent.name for file in files] == ["imagenet", "mae"]
    assert max(file.difference for file in files) < 1e-4
    model = timm.create_model(f"local-dir:{out / 'imagenet'}", pretrained=True).eval()
    transform = timms_transform(model)
    images = [*pictures(4), next(pictures(1, seed=1)).rotate(90, expand=True)]
    sizes = SIZE_IN_TIMM, RESIZED_IN_TIMM
    views = [decoding.evaluation_view(image, "shorter_side", *sizes) for image in images]
    ours = np.asarray(augment.normalize(jnp.asarray(np.stack([np.asarray(v) for v in views]))))
    theirs = torch.stack([transform(image) for image in images])
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1), ours, atol=1e-6)  # the very pixels
    with torch.inference_mode():
        probabilities = model(theirs).softmax(dim=-1).numpy()
    expected = expected_of(workdir, "imagenet", np.stack([np.asarray(view) for view in views]))
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-4)


@pytest.mark.parametrize("name", ["imagenet", "mae"])
def test_the_configuration_is_as_timm_would_write_it(name, in_timm, tmp_path):
    folder, timm = in_timm[1] / name, torch_reference.timm()
    ours = json.loads((folder / "config.json").read_text())
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    timm.models._hub.save_config_for_hf(
        model, tmp_path / "theirs.json", model_config={"label_names": list(CLASSES)}
    )
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    ours_cfg, theirs_cfg = ours.pop("pretrained_cfg"), theirs.pop("pretrained_cfg")
    assert {key: theirs.get(key) for key in ours} == ours
    assert {key: theirs_cfg.get(key) for key in ours_cfg} == ours_cfg


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_how_near_timms_view_comes_to_other_ways_of_resizing(resize, in_timm, tmp_path):
    """What the card says of them."""
    saved = SavedRun(in_timm[0])
    (alone,) = system.make_systems(saved, "imagenet", 0)
    alone = alone._replace(view=View(SIZE_IN_TIMM, resize, "rgb", RESIZED_IN_TIMM))
    weights.write(alone, saved.paths.finetuned("imagenet", 0), tmp_path)
    model = torch_reference.timm().create_model(f"local-dir:{tmp_path}", pretrained=True)
    (image,) = pictures(1)
    view = decoding.evaluation_view(image, resize, SIZE_IN_TIMM, RESIZED_IN_TIMM)
    ours = np.asarray(augment.normalize(jnp.asarray(np.asarray(view))))
    theirs = timms_transform(model)(image).permute(1, 2, 0).numpy()
    assert (np.abs(theirs - ours).max() < 1e-6) == (resize == "squash")


def test_timm_resizes_to_the_very_side_that_the_run_did():
    for size in range(16, 400):
        for resized in range(size, 2 * size):
            share = weights._crop_pct(size, resized)
            assert math.floor(size / share) == resized  # timm.data.transforms_factory


@pytest.mark.slow  # torch takes its time to export
@pytest.mark.parametrize(
    ("color", "name", "model"), [("rgb", "mae", "convnext_atto"), ("grey", "imagenet", "resnet18"),
                                 ("rgb", "imagenet", "squeezenet1_1")]
)  # fmt: skip
def test_onnx_computes_the_same(color, name, model, altered, tmp_path, monkeypatch, capsys):
    torch_reference.timm()
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    field = "model__name" if name == "mae" else "imagenet__model"
    changes = {field: model, "data__color": color, "data__image_size": SIZE_IN_TIMM}
    workdir = altered(**changes, evaluation__resize=RESIZED_IN_TIMM, branches=[name],
                      draw=torch_variables)  # fmt: skip
    files = run.export_run(workdir, tmp_path / "out", formats=("onnx",))
    assert [file.path.name for file in files] == ["model.safetensors", "model.onnx"]
    assert not any(file.is_wrong for file in files)
    shape = (5, SIZE_IN_TIMM, SIZE_IN_TIMM, 1 if color == "grey" else 3)
    views = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    expected = expected_of(workdir, name, views)
    folder = tmp_path / "out" / name
    program = pytorch.load_onnx(folder / "model.onnx")
    images = np.broadcast_to(views, (*shape[:3], 3)).copy()
    for count in (1, 5):
        outputs = program(images[:count])
        for output, values in expected.items():
            np.testing.assert_allclose(outputs[output], values[:count], atol=1e-4)
    import onnx

    properties = onnx.load(folder / "model.onnx").metadata_props
    assert {x.key: x.value for x in properties}["classes"] == json.dumps(CLASSES)
    if color == "grey":
        monkeypatch.chdir(folder)
        next(pictures(1)).save("image.png")
        *_, lines = re.findall("```python\n(.*?)```", Path("README.md").read_text(), re.S)
        exec(lines, names := {})
        printed = float(capsys.readouterr().out.split("[[")[1].split()[0].strip(","))
        grey = np.asarray(names["image"])[None, ..., :1]
        calibrated = expected_of(workdir, name, grey)["calibrated"]
        assert printed == pytest.approx(calibrated[0, 0], abs=1e-4)
