"""`egmae features`: the features of new images, as timm computes them, with the files' names."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from egmae_jax.commands import features
from egmae_jax.data import images, splits
from egmae_jax.method import augment
from egmae_jax.models import timm_names
from egmae_jax.models.transfer import load_params
from tests import tiny, torch_reference


@pytest.fixture
def folder(tmp_path, finished, data):
    """Five test images of a run in a tree, one of them renamed like a formula."""
    rows = [r for r in splits.read(finished.workdir / "splits.json") if r["split"] == "test"][:5]
    for i, row in enumerate(rows):
        name = "=1.png" if i == 4 else f"{i}.png"
        target = tmp_path / "images" / f"ward_{i % 2}" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((data / row["file"]).read_bytes())
    return tmp_path / "images"


def timms(finished, files, *, pretrained):
    """Features of files by timm's network."""
    torch, timm = torch_reference.torch(), torch_reference.timm()
    depths, dims, _ = tiny.ENTRY
    theirs = timm.models.convnext.ConvNeXt(depths=depths, dims=dims, num_classes=3).eval()
    if pretrained:
        flat = tiny.flatten(
            load_params(finished.workdir / "pretrain" / "autoencoder.safetensors")["encoder"]
        )
        state = {
            key: torch.from_numpy(np.array(layout.to_torch(flat[path]), np.float32))
            for key, (path, _, layout) in timm_names.expected_tensors(tiny.MODEL, 1).items()
            if path in flat
        }
    else:
        from safetensors.torch import load_file

        state = load_file(finished.workdir / "export" / "round_0_mae.safetensors")
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    views = [
        images.to_array(
            images.evaluation_view(
                images.decode(Path(file).read_bytes()),
                resize="shorter_side",
                image_size=32,
                resized=32,
            )
        )
        for file in files
    ]
    pixels = np.asarray(augment.normalize(np.stack(views)))
    with torch.inference_mode():
        return theirs.forward_features(torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)).mean(
            (2, 3)
        )


@pytest.mark.parametrize("pretrained", [False, True])
def test_arrays_and_table_hold_timms_features_with_file_names(
    command, finished, folder, tmp_path, pretrained
):
    flags = ["--pretrained"] if pretrained else []
    arguments = ["--images", folder, f"--workdir={finished.workdir}", "--batch=2", *flags]
    for out in ("x.npz", "x.csv"):
        status, _, errors = command(features, *arguments, f"--out={tmp_path / out}")
        assert status == 0, errors
    with np.load(tmp_path / "x.npz") as arrays:
        files, found = arrays["files"].tolist(), arrays["features"]
    assert [re.search(r"ward_\d/.*", file)[0] for file in files] == [
        *("ward_0/0.png", "ward_0/2.png", "ward_0/=1.png", "ward_1/1.png", "ward_1/3.png"),
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, timms(finished, files, pretrained=pretrained), atol=1e-5)
    header, *rows = csv.reader((tmp_path / "x.csv").read_text().splitlines())
    assert header == ["file", *(f"feature_{k}" for k in range(20))]
    assert [row[0] for row in rows] == files
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), found, rtol=1e-6)


def test_unreadable_files_are_listed_and_the_others_written(command, finished, folder, tmp_path):
    (folder / "broken.png").write_bytes(b"no image")
    out = tmp_path / "x.npz"
    arguments = ["--images", folder, f"--workdir={finished.workdir}", f"--out={out}"]
    status, _, errors = command(features, *arguments)
    assert status == 3
    assert "broken.png" in errors
    with np.load(out) as arrays:
        assert arrays["features"].shape == (5, 20)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=x.txt"], r"x\.txt"),
        (["--out=x.npz", "--round=9"], r"no round 9"),
        (["--out=x.npz", "--branch=imagenet", "--pretrained"], r"excludes --pretrained"),
        (["--out=x.npz", "--batch=0"], r"batch is 0"),
    ],
)
def test_mistakes_end_in_a_sentence(
    command, finished, folder, tmp_path, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    arguments = ["--images", folder, f"--workdir={finished.workdir}"]
    status, _, errors = command(features, *arguments, *flags)
    assert status in (1, 2)
    assert re.search(message, errors.replace("\n", " "))
