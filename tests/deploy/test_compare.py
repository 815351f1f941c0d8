"""The comparison of a checkpoint in PyTorch and here; PyTorch is the oracle of its figures."""

import argparse
import dataclasses
import functools
import json
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from egmae_jax.commands import compare as command_line
from egmae_jax.data.images import NOT_AN_IMAGE
from egmae_jax.deploy import compare
from egmae_jax.deploy.checkpoint import read_checkpoint
from tests import torch_reference
from tests.conftest import REPOSITORY
from tests.tiny import environment

torch = torch_reference.torch()
safetensors_torch = pytest.importorskip("safetensors.torch")
timm = torch_reference.timm()
transforms = torch_reference.torchvision().transforms

NAME = "convnext_atto"
SIZE = 64
FILES = ("0.png", "1.png", "2.jpg", "more/3.png", "more/4.jpg", "more/5.png")
LAYERS = [
    *("stem", "stages.0.blocks.0", "stages.0.blocks.1"),
    *("stages.1.downsample", "stages.1.blocks.0", "stages.1.blocks.1"),
    *("stages.2.downsample", "stages.2.blocks.0", "stages.2.blocks.1", "stages.2.blocks.2"),
    *("stages.2.blocks.3", "stages.2.blocks.4", "stages.2.blocks.5"),
    *("stages.3.downsample", "stages.3.blocks.0", "stages.3.blocks.1", "head.norm", "head.fc"),
]


@functools.cache
def reference():
    return torch_reference.random_convnext(NAME, num_classes=5)


def weights():
    """A copy."""
    return {key: x.clone() for key, x in reference().state_dict().items()}


def changed(key, change):
    tensors = weights()
    tensors[key] = change(tensors[key])
    return tensors


def without(*keys):
    return {key: x for key, x in weights().items() if key not in keys}


def prefixed(prefix):
    return {prefix + key: x for key, x in weights().items()}


def write(content, path):
    if path.suffix == ".safetensors":
        safetensors_torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def picture(seed, size):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images, two of them JPEG, of several sizes, and files that are none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for k, file in enumerate(FILES):
        picture(k, (70 + 9 * k, 100 - 7 * k)).save(folder / file)
    (folder / "notes.txt").write_text("no image")
    (folder / "more" / "._3.png").write_text("macOS leaves these")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(weights(), tmp_path_factory.mktemp("checkpoint") / "model.pth")


@pytest.fixture
def run(checkpoint, folder):
    """`compare` of the checkpoint and the images, six in batches of four."""
    return functools.partial(
        compare.compare, checkpoint, folder, model=NAME, image_size=SIZE, batch=4
    )


def outputs(tensors, folder, layer):
    """One layer's output and the logits of all FILES: everything by PyTorch and torchvision."""
    network = timm.create_model(NAME, num_classes=5).eval()
    network.load_state_dict(tensors)
    captured = []
    network.get_submodule(layer).register_forward_hook(lambda *args: captured.append(args[2]))
    view = transforms.Compose(
        [
            transforms.Resize(SIZE),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    batch = torch.stack([view(PIL.Image.open(folder / file).convert("RGB")) for file in FILES])
    with torch.inference_mode():
        logits = network(batch)
    return captured[0].double(), logits.double()


# Figures


def test_equal_weights_part_nowhere(run, checkpoint):
    comparison = run()
    assert comparison.files == FILES
    assert comparison.num_classes == 5
    assert (comparison.checkpoint, comparison.weights) == (str(checkpoint), None)
    assert list(comparison.layers) == LAYERS
    assert max(comparison.layers.values()) < 1e-5
    assert min(comparison.layers.values()) > 0  # two programs did compute them
    assert comparison.logits_mean <= comparison.logits_max < 1e-5
    assert comparison.probabilities_max < 1e-5
    assert comparison.parts_at is None
    assert (comparison.agreeing, comparison.disagreements) == (6, [])
    assert comparison.passed

    strict = dataclasses.replace(comparison, tolerance=0.0)
    assert strict.beyond == LAYERS
    assert strict.parts_at == "stem"
    assert not strict.passed


def test_the_figures_are_those_of_pytorch(run, folder, tmp_path):
    other = changed("stages.2.blocks.3.gamma", lambda x: -4 * x)
    comparison = run(weights=write(other, tmp_path / "other.safetensors"))
    block, logits = outputs(weights(), folder, "stages.2.blocks.3")
    other_block, other_logits = outputs(other, folder, "stages.2.blocks.3")

    assert comparison.parts_at == "stages.2.blocks.3"
    errors = list(comparison.layers.values())
    assert max(errors[: LAYERS.index("stages.2.blocks.3")]) < 1e-5
    expected = torch.linalg.norm(other_block - block) / torch.linalg.norm(block)
    assert comparison.layers["stages.2.blocks.3"] == pytest.approx(expected.item(), rel=1e-4)
    expected = torch.linalg.norm(other_logits - logits) / torch.linalg.norm(logits)
    assert comparison.layers["head.fc"] == pytest.approx(expected.item(), rel=1e-4)
    difference = (other_logits - logits).abs()
    assert comparison.logits_mean == pytest.approx(difference.mean().item(), rel=1e-4)
    assert comparison.logits_max == pytest.approx(difference.max().item(), rel=1e-4)
    difference = (other_logits.softmax(1) - logits.softmax(1)).abs()
    assert comparison.probabilities_max == pytest.approx(difference.max().item(), rel=1e-4)

    classes, other_classes = logits.argmax(1), other_logits.argmax(1)
    differing = (classes != other_classes).nonzero()[:, 0].tolist()
    assert 0 < len(differing) < len(FILES)  # else this would show nothing
    assert comparison.agreeing == len(FILES) - len(differing)
    assert [x["file"] for x in comparison.disagreements] == [FILES[i] for i in differing]
    for x, i in zip(comparison.disagreements, differing, strict=True):
        assert (x["theirs"], x["ours"]) == (classes[i], other_classes[i])
        (first, second), (other_first, other_second) = (
            values[i].topk(2).values.tolist() for values in (logits, other_logits)
        )
        assert x["their_margin"] == pytest.approx(first - second, abs=1e-4)
        assert x["our_margin"] == pytest.approx(other_first - other_second, abs=1e-4)

    tolerant = dataclasses.replace(comparison, tolerance=100.0)
    assert tolerant.parts_at is None
    assert not tolerant.passed  # predictions count too


def test_what_is_no_number_parts_and_is_saved(run, tmp_path):
    other = changed("stages.3.blocks.1.gamma", lambda x: x * float("nan"))
    comparison = run(weights=write(other, tmp_path / "nan.safetensors"), max_images=1)
    assert comparison.parts_at == "stages.3.blocks.1"
    compare.save(comparison, tmp_path / "nan.json")
    saved = json.loads((tmp_path / "nan.json").read_text(), parse_constant=pytest.fail)
    assert saved["layers"]["stages.3.blocks.1"] == saved["logits_max"] == "NaN"


def test_of_many_images_evenly_spread_ones_are_taken(folder):
    views, unreadable, preprocessing = compare.load_images(folder, SIZE, 3)
    assert list(views) == ["0.png", "2.jpg", "more/5.png"]
    assert unreadable == []
    assert preprocessing == {"images": 3, "mean": 0.0, "max": 0, "different": []}


def test_pixels_that_torchvision_sees_otherwise_are_reported(tmp_path):
    upright, turned = picture(0, (80, 64)), picture(1, (80, 64))
    upright.save(tmp_path / "a.png")
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 3  # upside down
    turned.save(tmp_path / "b.png", exif=exif)
    views, _, preprocessing = compare.load_images(tmp_path, SIZE, 64)

    ignoring = np.asarray(turned, int)[:, 8:72]
    expected = np.abs(ignoring - ignoring[::-1, ::-1])
    np.testing.assert_array_equal(views["b.png"], ignoring[::-1, ::-1])
    assert (preprocessing["images"], preprocessing["different"]) == (2, ["b.png"])
    assert preprocessing["mean"] == pytest.approx(expected.mean() / 2)  # over a.png too
    assert preprocessing["max"] == expected.max()


# Checkpoints


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (weights, "a.pt"),
        (weights, "a.safetensors"),
        (lambda: prefixed("module._orig_mod.model."), "a.bin"),
        (lambda: {"state_dict": prefixed("model."), "epoch": 3}, "a.ckpt"),
        (lambda: {"model": {"state_dict": weights()}}, "a.pt"),
        (lambda: {"model_ema": prefixed("module.")}, "a.pt"),
        (lambda: {"state_dict": weights(), "args": argparse.Namespace(lr=1e-3)}, "a.pth"),
        (lambda: {k: torch.nn.Parameter(x) for k, x in weights().items()}, "a.pt"),
        (lambda: {k: x.double() for k, x in weights().items()}, "a.pt"),
        (lambda: {"model_ema": changed("stem.0.bias", torch.neg), "state_dict": weights()}, "a.pt"),
    ],
)
def test_checkpoints_are_read_whatever_is_wrapped_around_them(content, name, tmp_path):
    tensors = read_checkpoint(write(content(), tmp_path / name))
    expected = weights()
    assert tensors.keys() == expected.keys()
    for key, x in tensors.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, expected[key].numpy(), err_msg=key)


# The command


@pytest.fixture
def command(checkpoint, folder, monkeypatch, capsys):
    """Runs the command and returns its exit status, output and errors; flags replace the usual."""
    monkeypatch.setattr(command_line.console, "set_up_logging", lambda: None)  # global

    def start(**changes):
        flags = {"checkpoint": checkpoint, "images": folder, "model": NAME, "image_size": SIZE}
        try:
            status = command_line.main([f"--{k}={v}" for k, v in {**flags, **changes}.items()])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return start


def test_the_command_prints_and_saves_equal_weights(command, checkpoint, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for k in range(3):
        picture(k, (80, 70)).save(images / f"{k}.png")
    (images / "broken.png").write_bytes(b"no image")
    status, output, errors = command(images=images, json=tmp_path / "out" / "comparison.json")
    assert (status, errors) == (0, "")
    lines = [line.rstrip() for line in output.splitlines()]
    assert f"{NAME}, 5 classes, 3 images of 64 pixels" in lines
    assert (
        lines[lines.index("1 unreadable images left out:") + 1] == f"  broken.png ({NOT_AN_IMAGE})"
    )
    assert "Pixels equal torchvision's Resize(64), CenterCrop(64) in 3 of 3 images." in lines
    assert "Activations part nowhere (tolerance 0.0001)." in lines
    assert lines[-1] == "Predictions agree for all 3 images."
    shown = [line.split()[0] for line in lines if line.startswith((" st", " head"))]
    assert shown == LAYERS
    assert max(map(len, (line for line in lines if str(checkpoint) not in line))) <= 80

    saved = json.loads((tmp_path / "out" / "comparison.json").read_text())
    layers = saved.pop("layers")
    assert list(layers) == LAYERS
    assert 0 < max(layers.values()) < 1e-5
    assert 0 < saved.pop("logits_mean") <= saved.pop("logits_max") < 1e-5
    assert saved.pop("probabilities_max") < 1e-5
    assert saved == {
        "passed": True,
        "parts_at": None,
        "checkpoint": str(checkpoint),
        "weights": None,
        "model": NAME,
        "num_classes": 5,
        "image_size": 64,
        "tolerance": 1e-4,
        "files": ["0.png", "1.png", "2.png"],
        "unreadable": [f"broken.png ({NOT_AN_IMAGE})"],
        "preprocessing": {"images": 3, "mean": 0.0, "max": 0, "different": []},
        "agreeing": 3,
        "disagreements": [],
    }


def test_the_command_names_the_layer_and_the_images_that_differ(command, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for k in range(16):
        picture(k, (64, 64)).save(images / f"{k:02}.png")
    # Whatever the image, ours says class 3 by a margin of about 100.
    other = changed("head.fc.bias", lambda x: x + 100 * torch.eye(5)[3])
    other["stages.0.blocks.1.gamma"] *= 1.01
    path = write(other, tmp_path / "other.safetensors")
    status, output, errors = command(images=images, weights=path, json=tmp_path / "comparison.json")
    assert (status, errors) == (1, "")
    lines = [line.rstrip() for line in output.splitlines()]
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert (saved["passed"], saved["parts_at"]) == (False, "stages.0.blocks.1")
    assert [line.split()[0] for line in lines if line.endswith("parts here")] == [saved["parts_at"]]
    assert "Activations part first at stages.0.blocks.1 (tolerance 0.0001)." in lines
    differing = saved["disagreements"]
    assert len(differing) == 16 - saved["agreeing"] > 10
    start = lines.index(f"Predictions agree for {saved['agreeing']} of 16 images, not for:") + 1
    assert lines[start:] == [
        *(
            f"  {x['file']}: theirs {x['theirs']} (margin {x['their_margin']:.2g}), "
            f"ours 3 (margin {x['our_margin']:.2g})"
            for x in differing[:10]
        ),
        f"  and {len(differing) - 10} more",
    ]
    assert all(x["theirs"] != 3 and 90 < x["our_margin"] < 110 for x in differing)


def test_all_tensors_that_do_not_fit_are_named_at_once(command, tmp_path):
    tensors = without("stem.0.bias", "stages.3.blocks.1.gamma")
    tensors["head.model.weight"] = torch.zeros(2, 3)
    tensors["stages.0.blocks.0.conv_dw.weight"] = torch.zeros(40, 1, 5, 5)
    path = write(tensors, tmp_path / "a.pth")
    status, _, errors = command(checkpoint=path)
    assert status == 2
    assert errors.splitlines() == [
        f"Error: {path} does not fit {NAME}; 4 tensors differ:",
        "  missing: stages.3.blocks.1.gamma (320,)",
        "  missing: stem.0.bias (40,)",
        "  extra: head.model.weight (2, 3)",
        "  shape: stages.0.blocks.0.conv_dw.weight is (40, 1, 5, 5), the model's is (40, 1, 7, 7)",
    ]


def test_checkpoints_and_weights_that_cannot_be_compared_are_refused(command, checkpoint, tmp_path):
    path = write(weights(), tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:5000])
    status, _, errors = command(checkpoint=path)
    assert status == 2
    assert str(path) in errors
    other = changed("head.fc.weight", lambda x: x[:3]) | {"head.fc.bias": torch.zeros(3)}
    path = write(other, tmp_path / "other.safetensors")
    status, _, errors = command(weights=path)
    assert status == 2
    assert errors == f"Error: {path} has 3 classes, {checkpoint} 5; they must be the same.\n"


def test_a_checkpoint_of_another_model_names_its_model(command):
    status, _, errors = command(model="convnext_pico")
    assert status == 2
    assert "shape: stem.0.weight is (40, 3, 4, 4), the model's is (64, 3, 4, 4)" in errors
    assert errors.endswith(f"\nTry --model={NAME}.\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict but '[1, 2]'"),
        ({"state_dict": {}}, "holds no state dict but '{}'"),
        ({"epoch": 3, "lr": 0.1}, "holds no state dict: these are no tensors: epoch, lr."),
        (torch.nn.Linear(2, 2), "(UnpicklingError): it is damaged, or holds more than tensors"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message, command, tmp_path):
    status, _, errors = command(checkpoint=write(content, tmp_path / "a.pt"))
    assert status == 2
    assert errors.startswith(f"Error: {tmp_path / 'a.pt'} ")
    assert message in errors
    assert "torch.save(model.state_dict(), FILE)" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"checkpoint": "absent.pth"}, "There is no file absent.pth"),
        ({"images": "absent"}, "There is no folder absent"),
        ({"weights": "absent.pth"}, "absent.pth is a pickle"),
        ({"model": "convnext_ato"}, "Did you mean 'convnext_atto'?"),
        ({"image_size": 100}, "image_size is 100; it must be a multiple of 32"),
        ({"model": "resnet18", "image_size": 31}, "image_size is 31; it must be at least 32"),
        ({"model": "asff_resnet18"}, "Neither timm nor torchvision has asff_resnet18"),
        ({"batch": 0}, "batch is 0 and max_images 64; both must be positive"),
    ],
)
def test_what_cannot_be_is_refused(flags, message, command):
    status, _, errors = command(**flags)
    assert status == 2
    assert message in errors


def test_folders_without_a_readable_image_are_refused(command, tmp_path):
    status, _, errors = command(images=tmp_path)
    assert status == 2
    assert errors.startswith(f"Error: {tmp_path} holds no images (.bmp, ")
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "nowhere")
    status, _, errors = command(images=tmp_path)
    assert status == 2
    expected = f"None of 2 images in {tmp_path} can be read: a.png ({NOT_AN_IMAGE}), b.jpg ("
    assert expected in errors


def test_without_timm_the_extra_is_named(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    status, _, errors = command()
    assert status == 2
    assert "timm" in errors
    assert "pip install -e '.[parity]'" in errors


def test_the_module_is_a_command_and_imports_torch_only_to_compare(tmp_path):
    for library in ("torch", "torchvision", "timm"):
        (tmp_path / f"{library}.py").write_text("raise SystemExit(99)")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "egmae_jax.compare", "--checkpoint=a.pth", "--images=images"),
            "--image_size=100",
        ],
        cwd=REPOSITORY,
        env=environment(PYTHONPATH=f"{tmp_path}:{REPOSITORY}"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: image_size is 100; it must be a multiple of 32.\n"


@pytest.mark.parametrize(("name", "first", "last"), [
    ("resnet18", "bn1", "fc"), ("squeezenet1_1", "features.0", "classifier"),
])  # fmt: skip
def test_resnet_and_squeezenet_are_compared_at_any_size(name, first, last, folder, tmp_path):
    create = torch_reference.torchvision().models.get_model
    network = torch_reference.randomize(create(name, num_classes=5))
    path = write(network.state_dict(), tmp_path / "model.pth")
    same = compare.compare(path, folder, model=name, image_size=45, max_images=3)
    assert same.passed
    assert [*same.layers][:: len(same.layers) - 1] == [first, last]
    assert len(same.layers) == 10
    assert 0 < max(same.layers.values()) < 1e-5

    kernel = "layer2.0.conv1.weight" if name == "resnet18" else "features.4.squeeze.weight"
    tensors = network.state_dict() | {kernel: network.state_dict()[kernel] * 1.1}
    other = write(tensors, tmp_path / "other.safetensors")
    options = {"model": name, "image_size": 45, "max_images": 3, "weights": other}
    parted = compare.compare(path, folder, **options)
    assert parted.parts_at == ("layer2.0" if name == "resnet18" else "features.4")
