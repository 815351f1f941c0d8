"""Exported models against what evaluated the run, in timm, in a process without us, in ONNX."""

import functools
import hashlib
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

from egmae_jax import experiment, models
from egmae_jax.commands import export as command_line
from egmae_jax.core.errors import MissingExtraError
from egmae_jax.core.files import DamagedFileError, write_json
from egmae_jax.data import images as decoding
from egmae_jax.data import splits
from egmae_jax.deploy import export
from egmae_jax.deploy.export import card, pytorch, stablehlo, system, weights
from egmae_jax.deploy.export import run as exporting
from egmae_jax.deploy.export.system import View
from egmae_jax.evaluation import ensemble
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.evaluation.predictions import Predictions
from egmae_jax.evaluation.scores import score_branches, summarize
from egmae_jax.method import augment, fusion
from egmae_jax.models import registry
from egmae_jax.models import timm as interop
from egmae_jax.models.convnext import register_convnext
from egmae_jax.models.init import initial_variables
from egmae_jax.run.saved_run import RunError, SavedRun
from egmae_jax.training import finetune
from tests import tiny, torch_reference

CLASSES = ("benign", "malignant", "normal")
SIZE, RESIZED = 32, 36


def random_variables(model_name, num_classes, seed):
    model = models.create(model_name, num_classes)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    return initial_variables(model, seed, image, kernel_init="fan_in", layer_scale=1.0)


def make_run(workdir, *, draw=random_variables, classes=CLASSES, fusion_kind="mean", **changes):
    """What a finished run leaves that exports are made of: two rounds, of which there is one."""
    config = tiny.make_config("images", "cache", **changes)
    write_json(workdir / "config.json", config.to_dict())
    files = [f"{k}.png" for k in range(6 * len(classes))]
    labels = np.repeat(np.arange(len(classes)), 6)
    parts = np.tile([0, 0, 1, 1, 2, 2], len(classes))
    rows = files, [classes[i] for i in labels], parts, np.arange(len(files)), files
    splits.write(workdir / "splits.json", *rows)
    run = SavedRun(workdir)
    names = {branch.name: branch.model_name for branch in run.branches}
    for seed, (branch, model_name) in enumerate(names.items()):
        path = workdir / "export" / f"round_0_{branch}.safetensors"
        interop.save(draw(model_name, len(classes), seed), path, model_name)

    rng = np.random.default_rng(0)
    of_part = np.repeat(np.arange(len(classes)), 2)

    def predictions():
        made = rng.dirichlet(np.ones(len(classes)), len(of_part))
        return Predictions(
            np.arange(len(of_part)).astype(str), of_part, made, np.arange(len(of_part))
        )

    rounds = [
        {
            **{"round": index, "seed": index},
            **score_branches(
                {name: predictions() for name in names},
                {name: predictions() for name in names},
                classes=classes,
                fusion_kind=fusion_kind,
                resamples=20,
            ),
        }
        for index in range(2)
    ]
    results = {
        "config": config.to_dict(),
        "dataset": {
            **{"name": "busi", "title": "Breast Ultrasound Images (BUSI)", "classes": classes},
            **{"citation": "Al-Dhabyani et al., 2020", "protocol": "grouped"},
            "counts": {part: dict.fromkeys(classes, 2) for part in splits.PARTS},
        },
        "pretraining_saw_test": False,
        "imagenet_weights": {name: "none" for name in names if name != "mae"},
        "imagenet_sha256": {},
        "rounds": rounds,
        "summary": summarize(rounds),
    }
    write_json(workdir / "results.json", results)
    return workdir


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two networks on grey images, and its export without PyTorch."""
    folder = tmp_path_factory.mktemp("export")
    workdir = make_run(
        folder / "run",
        branches=("mae", tiny.RESNET),
        fusion_kind="stacked",
        data__color="grey",
        evaluation__resize=RESIZED,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "require", no_torch)
        files = export.export_run(workdir, folder / "out")
    return workdir, folder / "out", files


def no_torch(*libraries, extra):
    raise MissingExtraError(f"no torch; pip install -e '.[{extra}]' brings it.")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command and returns its exit status, output and errors."""
    monkeypatch.setattr(command_line.console, "set_up_logging", lambda: None)  # global
    monkeypatch.setattr(exporting, "require", no_torch)
    monkeypatch.setenv("COLUMNS", "80")

    def start(**flags):
        try:
            status = command_line.main([f"--{name}={value}" for name, value in flags.items()])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return start


def pictures(count, seed=0):
    """Colourful files' contents, of several sizes."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        small = PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        yield small.resize((70 + 13 * k, 61 + 7 * k), PIL.Image.Resampling.BICUBIC)


def expected_of(workdir, name, views):
    """Outputs for uint8 views [B, S, S, 3 or 1], by the functions that evaluate a run."""
    whole = {s.name: s for s in system.systems(SavedRun(workdir), None, 0)}[name]
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
        views.append(
            decoding.to_array(decoding.evaluation_view(grey, "shorter_side", SIZE, RESIZED))
        )
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
    expected = expected_of(workdir, "ensemble", np.stack(views))
    assert expected["probabilities"].std() > 0.01  # images differ
    np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(outputs["calibrated"], expected["calibrated"], atol=1e-5)
    np.testing.assert_allclose(outputs["one"], expected["calibrated"][:1], atol=1e-5)


def test_the_json_beside_a_program_describes_it(made):
    _, out, _ = made
    path = out / "ensemble" / "model.stablehlo"
    description = json.loads(path.with_name("model.stablehlo.json").read_text())
    assert description["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert description["classes"] == list(CLASSES)
    assert description["input"] == {"shape": ["batch", SIZE, SIZE, 3], "dtype": "uint8"}
    assert description["networks"] == {"mae": tiny.MODEL, tiny.RESNET: tiny.RESNET}
    assert description["fusion"]["kind"] == "stacked"
    assert "made grey" in description["preprocessing"]["before"]
    assert (
        "shorter side resized to 36 pixels, the middle 32 by 32 cut out"
        in (description["preprocessing"]["before"])
    )
    assert description["preprocessing"]["resized_to"] == RESIZED
    assert description["outputs"]["calibrated"]["least_probability"] == 1 / 8 / 2  # of six images
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert list(program.platforms) == description["platforms"] == ["cpu", "cuda", "tpu"]
    assert program.calling_convention_version == description["calling_convention_version"]
    assert not program.has_vjp()


@pytest.mark.parametrize("name", [tiny.ASFF, "convnextv2_test", "squeezenet1_1"])
def test_every_family_becomes_a_program(name, monkeypatch):
    tiny.register()
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    register_convnext("convnextv2_test", *tiny.ENTRY)
    network = system.Network(
        system.Branch(name, name), models.create(name, 3), random_variables(name, 3, 0)
    )
    view = View(SIZE, "shorter_side", "rgb", SIZE)
    alone = system.System(name, (network,), None, Scaling(0.5, 0.02), CLASSES, view)
    program = jax.export.deserialize(stablehlo.lower(alone).serialize(vjp_order=0))
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    expected = alone.reference({name: probabilities_of(network, images)})
    outputs = jax.jit(program.call)(images)
    for output, values in expected.items():
        np.testing.assert_allclose(outputs[output], values, atol=1e-5)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("kind", fusion.KINDS)
def test_branches_are_fused_as_in_the_run(kind, num_classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, max(2, num_classes - 1), 40)  # of four classes one is not there
    branches = rng.dirichlet(np.ones(num_classes), (3, 40)).astype(np.float32)
    branches[0, 0] = np.eye(num_classes)[0]  # logarithms of 0
    fitted = ensemble.fit(kind, labels, list(branches))
    fused = fitted.apply(list(jnp.asarray(branches)))
    np.testing.assert_allclose(fused, fitted.apply(list(branches)), atol=1e-6)


def test_colours_become_grey_as_by_pillow():
    colours = np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)
    grey = np.asarray(system.to_grey(jnp.asarray(colours, jnp.float32)))[..., 0]
    np.testing.assert_array_equal(grey, np.asarray(PIL.Image.fromarray(colours).convert("L")))


# --- The command ----------------------------------------------------------------------------------


def test_every_model_gets_a_folder(made):
    _, out, files = made
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {
        f"{name}/{file}"
        for name, more in {
            "mae": ("model.safetensors", "config.json"),
            tiny.RESNET: ("model.safetensors", "config.json"),
            "ensemble": (),
        }.items()
        for file in ("README.md", "model.stablehlo", "model.stablehlo.json", *more)
    }
    assert not any(file.wrong for file in files)
    compared = [file for file in files if file.difference is not None]
    assert [file.path.name for file in compared] == ["model.stablehlo"] * 3
    assert max(file.difference for file in compared) < 1e-5


def test_the_command_prints_a_table_that_fits(made, command, tmp_path):
    workdir, *_ = made
    status, output, errors = command(workdir=workdir, out=tmp_path / "out", branch="mae")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert max(map(len, lines[:-1])) <= 80  # the last names the folder
    assert any(re.match(r" mae/model\.stablehlo +0\.\d +\d\.\de-\d\d +1e-05", x) for x in lines)
    assert any("mae/model.safetensors" in line and "not compared" in line for line in lines)
    assert "Not compared: no torch; pip install -e '.[parity]' brings it." in output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mae"]


def test_a_program_that_computes_something_else_is_an_error(made, command, monkeypatch, tmp_path):
    workdir, *_ = made
    right = system.System.reference

    def off(self, of_branches):
        outputs = right(self, of_branches)
        return outputs | {"probabilities": outputs["probabilities"] + 2e-5}

    monkeypatch.setattr(system.System, "reference", off)
    flags = {"branch": "mae", "formats": "stablehlo"}
    status, output, errors = command(workdir=workdir, out=tmp_path / "out", **flags)
    assert status == 1
    assert "2.0e-05" in output
    assert errors.startswith("Error: Not what the run computed, and not to be used: ")
    assert "mae/model.stablehlo." in errors
    assert export.ExportedFile("x", float("nan"), 1e-5, "").wrong


def test_bad_requests_are_refused_before_anything_is_written(made, command, tmp_path):
    workdir, *_ = made
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    for flags, message in (
        ({"formats": "timm,pickle"}, "--formats=timm,pickle: expected are some of timm, stableh"),
        ({"formats": ""}, "--formats=: expected are some of timm, stablehlo, onnx."),
        ({"out": tmp_path / "file"}, "is a file, not a folder"),
        ({"branch": "resnet99"}, "The run has no branch 'resnet99'; its branches are 'mae'"),
        ({"round": 7}, "There is no round 7; the run's are 0 to 1."),
        ({"round": 1}, "Fine-tuned are: --branch=mae --round=0"),
        ({"workdir": tmp_path / "none"}, "holds no run"),
        ({"formats": "onnx"}, "ONNX cannot be written: no torch; pip install -e '.[onnx]'"),
    ):
        status, _, errors = command(**{"workdir": workdir, "out": out} | flags)
        assert status == 1
        assert message in errors, flags
    assert not out.exists()
    (out / "mae").mkdir(parents=True)
    (out / "mae" / "model.onnx").write_text("another model's")
    assert "mae holds files, which may be another model's" in command(workdir=workdir, out=out)[2]
    assert [path.name for path in out.rglob("*.*")] == ["model.onnx"]


def test_results_that_lack_what_a_card_needs_are_named(tmp_path):
    workdir = make_run(tmp_path / "run", branches=("mae",))
    # As an older version left it, whose intervals took images for independent.
    edit(workdir / "results.json", lambda results: results["rounds"][0].pop("groups"))
    with pytest.raises(DamagedFileError, match=r"a model card cannot .*'groups'.*--stage=evaluate"):
        export.export_run(workdir, tmp_path / "out")
    (workdir / "results.json").unlink()
    with pytest.raises(RunError, match="has not been evaluated yet"):
        export.export_run(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_asff_has_no_onnx(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "require", lambda *libraries, extra: None)
    tiny.register()
    workdir = make_run(tmp_path / "run", branches=(tiny.ASFF,))
    with pytest.raises(export.ExportError, match=f"no library has {tiny.ASFF}"):
        export.export_run(workdir, tmp_path / "out", formats=("onnx",))


def test_what_is_not_written_is_reported_with_the_way_to_get_it(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(exporting, "require", no_torch)
    monkeypatch.setattr(logging.getLogger("egmae_jax"), "propagate", True)
    workdir = make_run(tmp_path / "run", branches=("mae", tiny.ASFF))
    export.export_run(workdir, tmp_path / "out", formats=("timm",))
    for name in ("mae", tiny.ASFF, "ensemble"):
        folder = tmp_path / "out" / name
        text = (folder / "README.md").read_text()
        for file in ("model.safetensors", "model.stablehlo", "model.onnx"):
            absent = not (folder / file).exists()
            assert absent == (f"- `{file}`: " in text), (name, file)
            assert absent == (f"{name}/{file}" in caplog.text), (name, file)
    of_mae = (tmp_path / "out" / "mae" / "README.md").read_text()
    assert "--formats=timm,stablehlo,onnx writes it, and needs pip install -e '.[onnx]'" in of_mae
    of_asff = (tmp_path / "out" / tiny.ASFF / "README.md").read_text()
    assert f"no library of PyTorch's has {tiny.ASFF}" in of_asff


@pytest.mark.slow
def test_a_run_from_its_beginning_to_its_export(data, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "require", no_torch)
    workdir = tmp_path / "run"
    experiment.run(
        tiny.make_config(data, cache, rounds__kind="folds", rounds__count=3), str(workdir)
    )
    files = export.export_run(workdir, tmp_path / "out", round_index=1)
    assert [file.path.parent.name for file in files if file.difference is not None] == [
        "imagenet",
        "mae",
        "ensemble",
    ]
    assert not any(file.wrong for file in files)
    text = (tmp_path / "out" / "ensemble" / "README.md").read_text()
    assert "round 1 (seed 1) of 3" in text
    assert "- `imagenet`: started from **random weights**" in text


# --- The card -------------------------------------------------------------------------------------


def make_card(workdir, formats=("timm", "stablehlo"), name=None):
    run = SavedRun(workdir)
    systems = {s.name: s for s in system.systems(run, None, 0)}
    return card.card(run, systems[name or run.branches[0].name], 0, formats)


def test_the_card_has_the_runs_figures(made):
    workdir, out, _ = made
    results = json.loads((workdir / "results.json").read_text())
    text = (out / "ensemble" / "README.md").read_text()
    of_round, over = results["rounds"][0], results["summary"]["ensemble"]["accuracy"]
    low, high = of_round["intervals"]["ensemble"]["accuracy"]
    assert (
        f"| Accuracy | {of_round['test']['ensemble']['accuracy']:.3f} | {low:.3f} to {high:.3f} | "
        f"{over['mean']:.3f} ± {over['std']:.3f} |\n"
    ) in text
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("jax", "image-classification")
    assert data.license is None
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values["f1"] == round(of_round["test"]["ensemble"]["f1"], 4)
    for sentence in (
        "- `resnet_test`: started from **random weights**",
        "(train) as an entropy-guided masked autoencoder. Pre-training did not see the test",
        "by a bootstrap of the 6 groups (patients, lesions, near-duplicates) of the 6 test images",
        "**Few groups of test images: 6 (benign 2, malignant 2",
        "**It is not a medical device**",
        "**License: not chosen.**",
        "- Al-Dhabyani et al., 2020\n- Florindo and Moura",
        "made grey (Pillow's 'L'), the shorter side resized to 36 pixels, the middle 32 by 32",
    ):
        assert sentence in text
    of_mae = (out / "mae" / "README.md").read_text()
    assert huggingface_hub.ModelCard(of_mae).data.library_name == "timm"
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in of_mae
    assert "timm" not in text


def test_the_card_names_what_else_one_must_know(tmp_path):
    workdir = make_run(
        tmp_path / "run",
        branches=("mae", tiny.ASFF),
        data__resize="pad",
        model__dtype="bfloat16",
        finetune__input_noise=0.1,
    )

    def change(results):
        results["pretraining_saw_test"] = True
        results["imagenet_weights"][tiny.ASFF] = "/home/me/resnet.safetensors"
        results["imagenet_sha256"][tiny.ASFF] = "abc"

    edit(workdir / "results.json", change)
    text = make_card(workdir)
    for sentence in (
        "**Pre-training saw the test images**",
        "**It does not make the same pixels**: images were padded with black",
        "(finetune.input_noise=0.1)",
        "The run computed in bfloat16; this computes in float32",
        "PIL.ImageOps.pad(image, (32, 32)",
    ):
        assert sentence in text
    of_asff = make_card(workdir, name=tiny.ASFF)
    assert "asff\\_resnet\\_test is in no other library" in of_asff
    assert "started from the ImageNet weights resnet.safetensors (SHA-256 abc)" in of_asff
    assert huggingface_hub.ModelCard(of_asff).data.library_name == "jax"


HOSTILE = ("<script>alert(1)</script>", "a | b `c` *d* [e](f)", "x\n---\n# y\x1b[31m\u202e")


def test_names_are_text_in_the_card_and_never_markup(tmp_path):
    workdir = make_run(tmp_path / "run", branches=("mae",), classes=tuple(sorted(HOSTILE)))
    title = "evil: '\"\n---\n<b>title</b>"
    edit(workdir / "results.json", lambda results: results["dataset"].update(title=title))
    text = make_card(workdir)
    parsed = huggingface_hub.ModelCard(text)
    assert parsed.data.eval_results[0].dataset_name == "evil: '\" --- <b>title</b>"
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(parsed.text)
    assert html.count("<h1>") == 1
    assert "<script" not in html
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in html
    assert "<td>a | b `c` *d* [e](f)</td>" in html
    assert "<td>x --- # y [31m</td>" in html


# --- PyTorch --------------------------------------------------------------------------------------

SIZE_IN_TIMM, RESIZED_IN_TIMM = 64, 73


@functools.cache
def torch_variables(model_name, num_classes, seed):
    """Of a network of timm's or torchvision's whose every parameter is drawn anew."""
    if model_name.startswith("squeezenet"):
        theirs = torch_reference.torchvision().models.get_model(model_name, num_classes=num_classes)
    else:
        theirs = torch_reference.timm().create_model(model_name, num_classes=num_classes)
    tensors = torch_reference.randomize(theirs, seed).state_dict()
    return interop.convert({k: x.numpy().copy() for k, x in tensors.items()}, model_name, "")


@pytest.fixture(scope="module")
def in_timm(tmp_path_factory):
    """A run of networks that timm has, exported for it."""
    torch_reference.timm()
    folder = tmp_path_factory.mktemp("timm")
    workdir = make_run(
        folder / "run",
        draw=torch_variables,
        branches=("resnet18", "convnext_atto"),
        data__image_size=SIZE_IN_TIMM,
        evaluation__resize=RESIZED_IN_TIMM,
    )
    out = folder / "out"
    return workdir, out, export.export_run(workdir, out, branch="resnet18", formats=("timm",))


def test_weights_load_strictly_in_timm_and_give_the_same_logits(in_timm):
    _, _, (file,) = in_timm
    assert file.note == "logits"
    assert file.difference < 1e-4


def test_timm_makes_the_model_and_its_view_from_the_folder_alone(in_timm):
    (workdir, out, _), name = in_timm, "resnet18"
    timm, torch = torch_reference.timm(), torch_reference.torch()
    model = timm.create_model(f"local-dir:{out / name}", pretrained=True).eval()
    options = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**options, is_training=False)
    images = [*pictures(4), next(pictures(1, seed=1)).rotate(90, expand=True)]
    sizes = SIZE_IN_TIMM, RESIZED_IN_TIMM
    views = [decoding.evaluation_view(image, "shorter_side", *sizes) for image in images]
    ours = np.asarray(augment.normalize(jnp.asarray(np.stack([np.asarray(v) for v in views]))))
    theirs = torch.stack([transform(image) for image in images])
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1), ours, atol=1e-6)  # the very pixels
    with torch.inference_mode():
        probabilities = model(theirs).softmax(dim=-1).numpy()
    expected = expected_of(workdir, name, np.stack([np.asarray(view) for view in views]))
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-4)

    again = timm.create_model(
        name, num_classes=3, checkpoint_path=str(out / name / "model.safetensors")
    )
    assert all(
        torch.equal(again.state_dict()[key], tensor) for key, tensor in model.state_dict().items()
    )


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_the_configuration_is_as_timm_would_write_it(name, in_timm, tmp_path):
    timm, run = torch_reference.timm(), SavedRun(in_timm[0])
    (alone,) = system.systems(run, name, 0)
    weights.write(alone, run.paths.finetuned(name, 0), tmp_path)
    ours = json.loads((tmp_path / "config.json").read_text())
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
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
    workdir, *_ = in_timm
    timm = torch_reference.timm()
    run = SavedRun(workdir)
    (alone,) = system.systems(run, "resnet18", 0)
    alone = alone._replace(view=View(SIZE_IN_TIMM, resize, "rgb", RESIZED_IN_TIMM))
    weights.write(alone, run.paths.finetuned("resnet18", 0), tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    options = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**options, is_training=False)
    (image,) = pictures(1)
    view = decoding.evaluation_view(image, resize, SIZE_IN_TIMM, RESIZED_IN_TIMM)
    ours = np.asarray(augment.normalize(jnp.asarray(np.asarray(view))))
    same = np.abs(transform(image).permute(1, 2, 0).numpy() - ours).max() < 1e-6
    assert same == (resize == "squash")


@pytest.mark.slow  # torch takes its time to export
@pytest.mark.parametrize("color", ["rgb", "grey"])
def test_onnx_computes_the_same(color, tmp_path, monkeypatch, capsys):
    torch_reference.timm()
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    workdir = make_run(
        tmp_path / "run",
        draw=torch_variables,
        branches=("resnet18",) if color == "grey" else ("convnext_atto", "squeezenet1_1"),
        data__image_size=SIZE_IN_TIMM,
        data__color=color,
    )
    files = export.export_run(workdir, tmp_path / "out", formats=("onnx",))
    names = {"resnet18"} if color == "grey" else {"convnext_atto", "squeezenet1_1"}
    assert {f.path.parent.name for f in files if f.path.name == "model.onnx"} == names
    assert not any(file.wrong for file in files)
    name = min(names)
    shape = (5, SIZE_IN_TIMM, SIZE_IN_TIMM, 1 if color == "grey" else 3)
    views = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    expected = expected_of(workdir, name, views)
    program = pytorch.load_onnx(tmp_path / "out" / name / "model.onnx")
    images = np.broadcast_to(views, (*shape[:3], 3)).copy()
    for count in (1, 5):
        outputs = program(images[:count])
        for output, values in expected.items():
            np.testing.assert_allclose(outputs[output], values[:count], atol=1e-4)
    if color == "grey":
        monkeypatch.chdir(tmp_path / "out" / name)
        next(pictures(1)).save("image.png")
        *_, lines = re.findall("```python\n(.*?)```", Path("README.md").read_text(), re.S)
        exec(lines, shown := {})
        printed = float(capsys.readouterr().out.split("[[")[1].split()[0].strip(","))
        grey = np.asarray(shown["image"])[None, ..., :1]
        assert printed == pytest.approx(
            expected_of(workdir, name, grey)["calibrated"][0, 0], abs=1e-4
        )
    import onnx

    properties = onnx.load(tmp_path / "out" / name / "model.onnx").metadata_props
    assert {x.key: x.value for x in properties}["classes"] == json.dumps(CLASSES)


@pytest.mark.parametrize("resize", decoding.RESIZE_MODES)
@pytest.mark.parametrize("resized", [SIZE, RESIZED])
def test_the_cards_lines_make_the_evaluation_view(resize, resized, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for image in pictures(3):
        image.save("image.png")
        here = {"PIL": PIL, "np": np}
        exec(
            "import PIL.ImageOps\n"
            + "\n".join(card._view_code(View(SIZE, resize, "rgb", resized))),
            here,
        )
        view = decoding.evaluation_view(image, resize, SIZE, resized)
        np.testing.assert_array_equal(np.asarray(here["image"]), np.asarray(view))


def test_timm_resizes_to_the_very_side_that_the_run_did():
    for size in range(16, 400):
        for resized in range(size, 2 * size):
            share = weights._crop_pct(size, resized)
            assert math.floor(size / share) == resized  # timm.data.transforms_factory
