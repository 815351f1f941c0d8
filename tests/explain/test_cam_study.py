"""The command on a small finished run: what it writes, prints and refuses."""

import functools
import hashlib
import json
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from egmae_jax import models
from egmae_jax.commands import explain as command_line
from egmae_jax.data import splits
from egmae_jax.explain import cam_study
from egmae_jax.models import timm
from egmae_jax.models.init import initial_variables
from tests import tiny

CLASSES = ("benign", "malignant", "normal")
SIZE = 64


def make_images(folder):
    """BUSI's layout; three images a class, with a bright lesion and its mask."""
    rng = np.random.default_rng(0)
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for k in range(3):
            mask = np.zeros((70, 90), bool)
            if label != "normal":
                mask[10 + 9 * k : 40 + 9 * k, 30:60] = True
            image = rng.integers(0, 80, mask.shape) + 150 * mask
            PIL.Image.fromarray(image.astype(np.uint8)).save(folder / label / f"{label} ({k}).png")
            PIL.Image.fromarray(mask).save(folder / label / f"{label} ({k})_mask.png")
    return folder


def make_run(workdir, data, name="busi", branches=("imagenet", "mae"), exported=("mae",)):
    """config.json, splits.json and the exports of some branches."""
    files = [f"{label}/{label} ({k}).png" for label in CLASSES for k in range(3)]
    digests = [hashlib.sha256((data / file).read_bytes()).hexdigest() for file in files]
    labels = [file.split("/")[0] for file in files]
    splits.write(workdir / "splits.json", files, labels, np.full(9, 2), np.arange(9), digests)
    config = {
        "data": {
            **{"name": name, "dir": str(data), "color": "grey", "resize": "shorter_side"},
            **{"image_size": SIZE, "classes": []},
        },
        "branches": branches,
        "model": {"name": tiny.MODEL, "dtype": "float32"},
        "imagenet": {"model": ""},
        "finetune": {"input_noise": 0.0},
        "rounds": {"kind": "seeds", "count": 2},
    }
    whole = tiny.make_config(data, "", evaluation__resize=SIZE).to_dict()
    for section, fields in config.items():
        whole[section] = whole[section] | fields if isinstance(fields, dict) else fields
    (workdir / "config.json").write_text(json.dumps(whole))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    for branch in exported:
        model_name = tiny.MODEL if branch in ("imagenet", "mae") else branch
        model = models.create(model_name, len(CLASSES))
        variables = initial_variables(model, 0, image, kernel_init="fan_in", layer_scale=1.0)
        timm.save(variables, workdir / "export" / f"round_0_{branch}.safetensors", model_name)
    return workdir


@pytest.fixture(scope="module")
def busi_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny.register()
    return make_run(folder / "run", make_images(folder / "images")), folder / "images"


@pytest.fixture
def run(busi_run, tmp_path):
    """A copy that a test may spoil, and its images."""
    workdir, data = (tmp_path / path.name for path in busi_run)
    for source, copy in zip(busi_run, (workdir, data), strict=True):
        shutil.copytree(source, copy)
    return workdir, data


@pytest.fixture
def explain(command):
    return functools.partial(command, command_line)


def test_the_command_writes_pictures_and_figures(explain, run, tmp_path):
    workdir, data = run
    out = tmp_path / "out"
    # One mask is of another size, another is missing.
    PIL.Image.new("L", (9, 9)).save(data / "malignant" / "malignant (1)_mask_1.png")
    (data / "malignant" / "malignant (2)_mask.png").unlink()
    status, output, errors = explain(workdir=workdir, out=out, images=5, data_dir=data)
    assert (status, errors) == (0, "")

    content = json.loads((out / "gradcam.json").read_text())
    assert (content["layer"], content["grid"]) == ("stages_1/blocks_0", [8, 8])
    assert (content["images"], len(content["files"])) == (9, 9)
    assert content["right"] == sum(row["true"] == row["predicted"] for row in content["files"])
    scored = [row for row in content["files"] if row["heat_in_mask"] is not None]
    left_out = content["masks"]["left_out"]
    assert left_out["without_lesion"] == 3
    assert left_out["without_mask"] == 1
    (unusable,) = left_out["unusable_masks"]
    assert unusable.startswith("malignant/malignant (1).png: ")
    assert "has 9x9 pixels, but its image has 90x70: " in unusable
    assert len(scored) + left_out["without_heat"] == 4
    groups = content["masks"]
    assert groups["all"]["images"] == len(scored) > 0
    assert groups["right"]["images"] + groups["wrong"]["images"] == len(scored)
    for name in ("heat_in_mask", "pointing_game", "area_share"):
        mean = np.mean([row[name] for row in scored])
        assert groups["all"][name] == pytest.approx(mean)
    # 90x70 with its shorter side at 64, of which the middle is seen: the lesion is 30x30 of 70x70.
    assert groups["all"]["area_share"] == pytest.approx((30 / 70) ** 2, abs=0.02)

    drawn = sorted(p.relative_to(out / "overlays").as_posix() for p in out.glob("overlays/*/*"))
    chosen = {"benign": "02", "malignant": "02", "normal": "0"}
    assert drawn == [f"{label}/{label} ({k}).png" for label, ks in chosen.items() for k in ks]
    for file in drawn:
        with PIL.Image.open(out / "overlays" / file) as picture:
            assert (picture.mode, picture.size) == ("RGB", (SIZE, SIZE))
    assert [path.name for path in out.glob("sheet_*.png")] == ["sheet_0.png"]
    assert "convnext_test, branch 'mae', round 0: 9 test images," in output
    assert "layer stages_1/blocks_0, 8 x 8 grid\n" in output
    assert "Left out: 3 without lesion, 1 without mask, 1 unusable masks." in output


def test_the_scores_do_not_depend_on_the_pictures(run, tmp_path):
    few, more = (
        cam_study.explain_run(run[0], tmp_path / str(k), max_images=k)["files"] for k in (1, 4)
    )
    assert few == more


def test_all_rounds_are_pooled(run, tmp_path):
    workdir, _ = run
    first = workdir / "export" / "round_0_mae.safetensors"
    shutil.copy(first, first.with_name("round_1_mae.safetensors"))
    one = cam_study.explain_run(workdir, tmp_path / "one", max_images=3)
    pooled = cam_study.explain_run(workdir, tmp_path / "all", round_index=None, max_images=3)
    assert pooled == json.loads((tmp_path / "all" / "gradcam.json").read_text())
    # The same network twice.
    assert pooled["files"] == [row | {"round": i} for i in (0, 1) for row in one["files"]]
    assert pooled["images"] == 2 * one["images"]
    assert pooled["masks"]["all"]["images"] == 2 * one["masks"]["all"]["images"]
    assert len(list((tmp_path / "all" / "round_1" / "overlays").rglob("*.png"))) == 3


def test_a_data_set_without_masks_has_pictures_only(busi_run, explain, tmp_path):
    _, data = busi_run
    workdir = make_run(tmp_path / "run", data, name="image_folder")
    out = tmp_path / "out"
    status, output, _ = explain(workdir=workdir, out=out, images=4)
    assert status == 0
    content = json.loads((out / "gradcam.json").read_text())
    assert content["masks"] is None
    assert [row["true"] for row in content["files"]] == ["benign", *CLASSES]
    assert "no lesion masks" in output


@pytest.mark.parametrize(
    ("branch", "layer", "address", "grid"),
    [
        (tiny.ASFF, None, "layer2_0", "8 x 8 grid"),  # where the last block has 2 x 2
        ("imagenet", "stages_3/blocks_0", "stages_3/blocks_0", "2 x 2 grid, coarser than 7 x 7"),
    ],
)
def test_any_branch_is_explained_with_its_own_model(
    branch, layer, address, grid, busi_run, tmp_path
):
    _, data = busi_run
    of_run = ("resnet18", branch)
    workdir = make_run(tmp_path / "run", data, branches=of_run, exported=(branch,))
    content = cam_study.explain_run(
        workdir, tmp_path / "out", branch=branch, layer=layer, max_images=1
    )
    model = tiny.MODEL if branch == "imagenet" else branch
    assert (content["branch"], content["model"], content["layer"]) == (branch, model, address)
    assert (content["grid"], content["part"]) == ([int(grid[0])] * 2, "")
    (picture,) = (tmp_path / "out" / "overlays").rglob("*.png")
    with PIL.Image.open(picture) as opened:
        assert opened.info["Description"] == f"Grad-CAM at layer {address}, {grid}"
    assert content["images"] == 9


def test_images_are_spread_over_classes_and_files():
    labels = ["a"] * 10 + ["b"] * 2
    assert cam_study.choose_evenly(labels, 6) == [0, 3, 6, 9, 10, 11]
    assert len(cam_study.choose_evenly(labels, 1)) == 1
    assert cam_study.choose_evenly(labels, 99) == list(range(12))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"branch": "resnet18"}, "no branch 'resnet18'; its branches are 'imagenet', 'mae'."),
        ({"round": 1}, "Fine-tuned are: --branch=mae --round=0."),
        ({"layer": "stages_3/block_0"}, "The nearest: stages_3/blocks_0"),
        ({"images": 0}, "images is 0; it must be positive"),
        ({"data_dir": "absent"}, "There is no folder absent; --data_dir sets"),
    ],
)
def test_what_cannot_be_is_refused(flags, message, busi_run, explain, tmp_path):
    status, _, errors = explain(**{"workdir": busi_run[0], "out": tmp_path / "out", **flags})
    assert status == 1
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_other_images_than_the_runs_are_refused(run, explain, tmp_path):
    workdir, data = run
    (data / "normal" / "normal (1).png").write_bytes(b"other")
    flags = {"workdir": workdir, "out": tmp_path / "out", "data_dir": data}
    status, _, errors = explain(**flags)
    assert status == 1
    assert "normal (1).png is not the file that the run used." in errors
    (data / "normal" / "normal (1).png").unlink()
    assert "normal (1).png cannot be read (No such file" in explain(**flags)[2]


def test_a_damaged_split_is_named(run, explain, tmp_path):
    (run[0] / "splits.json").write_text("{")
    status, _, errors = explain(workdir=run[0], out=tmp_path / "out")
    assert status == 1
    assert "splits.json is damaged" in errors
