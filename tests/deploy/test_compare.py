"""The comparison of a checkpoint in PyTorch and here; PyTorch is the oracle of its figures."""

import argparse
import functools
import json

import numpy as np
import PIL.Image
import pytest

from egmae_jax.commands import compare as command_line
from egmae_jax.deploy import compare
from egmae_jax.deploy.checkpoint import read_checkpoint
from tests import torch_reference

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
    """Six images, two of them JPEG, of several sizes, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for k, file in enumerate(FILES):
        picture(k, (70 + 9 * k, 100 - 7 * k)).save(folder / file)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write(weights(), tmp_path_factory.mktemp("checkpoint") / "model.pth")


@pytest.fixture(autouse=True)
def batches_of_four(monkeypatch):
    monkeypatch.setattr(compare, "_BATCH_SIZE", 4)


@pytest.fixture
def run(checkpoint, folder):
    """`compare` of the checkpoint and the six images, the last two a batch that is not full."""
    return functools.partial(compare.compare, checkpoint, folder, model=NAME, image_size=SIZE)


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


def test_equal_weights_give_equal_layers(run, folder):
    comparison = run()
    assert comparison.files == tuple(str(folder / file) for file in FILES)
    assert list(comparison.layers) == LAYERS
    assert max(comparison.layers.values()) < 1e-5
    assert min(comparison.layers.values()) > 0  # two programs did compute them
    assert comparison.logits_max < 1e-5
    assert comparison.passed

    strict = comparison._replace(tolerance=0.0)
    assert strict.first_different_layer == "stem"
    assert not strict.passed


def test_the_figures_are_those_of_pytorch(run, folder, tmp_path):
    other = changed("stages.2.blocks.3.gamma", lambda x: -4 * x)
    comparison = run(weights=write(other, tmp_path / "other.safetensors"))
    block, logits = outputs(weights(), folder, "stages.2.blocks.3")
    other_block, other_logits = outputs(other, folder, "stages.2.blocks.3")

    assert comparison.first_different_layer == "stages.2.blocks.3"
    expected = torch.linalg.norm(other_block - block) / torch.linalg.norm(block)
    assert comparison.layers["stages.2.blocks.3"] == pytest.approx(expected.item(), rel=1e-4)
    expected = torch.linalg.norm(other_logits - logits) / torch.linalg.norm(logits)
    assert comparison.layers["head.fc"] == pytest.approx(expected.item(), rel=1e-4)
    difference = (other_logits - logits).abs()
    assert comparison.logits_max == pytest.approx(difference.max().item(), rel=1e-4)

    pairs = zip(logits.argmax(1).tolist(), other_logits.argmax(1).tolist(), strict=True)
    differing = {str(folder / f): x for f, x in zip(FILES, pairs, strict=True) if x[0] != x[1]}
    assert 0 < len(differing) < len(FILES)  # else this would show nothing
    assert comparison.disagreements == differing

    tolerant = comparison._replace(tolerance=100.0)
    assert tolerant.first_different_layer is None
    assert not tolerant.passed  # predictions count too


def test_nan_counts_as_a_difference(run, tmp_path):
    other = changed("stages.3.blocks.1.gamma", lambda x: x * float("nan"))
    comparison = run(weights=write(other, tmp_path / "nan.safetensors"), max_images=1)
    assert comparison.first_different_layer == "stages.3.blocks.1"


def test_pixels_that_torchvision_sees_otherwise_are_reported(run, tmp_path):
    upright, turned = picture(0, (80, 64)), picture(1, (80, 64))
    upright.save(tmp_path / "a.png")
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 3  # upside down
    turned.save(tmp_path / "b.png", exif=exif)
    (path, difference), *others = compare._load_images(tmp_path, SIZE, 64)[1].items()
    ignoring = np.asarray(turned, int)[:, 8:72]
    assert (path, others) == (str(tmp_path / "b.png"), [])
    assert difference == np.abs(ignoring - ignoring[::-1, ::-1]).max()


@pytest.mark.parametrize(("name", "first", "last"), [
    ("resnet18", "bn1", "fc"), ("squeezenet1_1", "features.0", "classifier"),
])  # fmt: skip
def test_resnet_and_squeezenet_are_compared_at_any_size(name, first, last, folder, tmp_path):
    create = torch_reference.torchvision().models.get_model
    network = torch_reference.randomize(create(name, num_classes=5))
    path = write(network.state_dict(), tmp_path / "model.pth")
    same = compare.compare(path, folder, model=name, image_size=45, max_images=3)
    assert same.files == tuple(str(folder / FILES[i]) for i in (0, 2, 5))  # evenly spread
    assert same.passed
    assert [*same.layers][:: len(same.layers) - 1] == [first, last]
    assert len(same.layers) == 10
    assert 0 < max(same.layers.values()) < 1e-5


# Checkpoints


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (weights, "a.safetensors"),
        (lambda: prefixed("module._orig_mod.model."), "a.bin"),
        (lambda: {"model": {"state_dict": prefixed("model.")}, "epoch": 3}, "a.ckpt"),
        (lambda: {"state_dict": weights(), "args": argparse.Namespace(lr=1e-3)}, "a.pth"),
        (lambda: {k: torch.nn.Parameter(x.double()) for k, x in weights().items()}, "a.pt"),
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
def compared(command, checkpoint, folder):
    """Runs the command; flags replace the usual."""
    usual = {"checkpoint": checkpoint, "images": folder, "model": NAME, "image_size": SIZE}
    return lambda **changes: command(command_line, **usual | changes)


def test_the_command_prints_that_equal_weights_agree(compared):
    status, output, errors = compared(max_images=2)
    assert (status, errors) == (0, "")
    lines = [line.strip() for line in output.splitlines()]
    assert "All pixels equal the output of torchvision's Resize and CenterCrop." in lines
    assert "All layers are equal (tolerance 0.0001)." in lines
    assert lines[-1] == "The predictions agree for all 2 images."
    assert [line.split()[0] for line in lines if line.startswith(("st", "head"))] == LAYERS


def test_the_command_names_the_layer_and_the_images_that_differ(compared, folder, tmp_path):
    (tmp_path / "images").mkdir()
    for k in range(16):
        picture(k, (64, 64)).save(tmp_path / "images" / f"{k:02}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    # Whatever the image, ours says class 3.
    other = changed("head.fc.bias", lambda x: x + 100 * torch.eye(5)[3])
    other["stages.0.blocks.1.gamma"] *= 1.01
    path = write(other, tmp_path / "other.safetensors")
    saved = tmp_path / "comparison.json"
    status, output, _ = compared(images=tmp_path / "images", weights=path, json=saved)
    assert status == 1
    content = json.loads(saved.read_text())
    assert (content["passed"], content["first_different_layer"]) == (False, "stages.0.blocks.1")
    assert list(content["layers"]) == LAYERS
    lines = [line.strip() for line in output.splitlines()]
    (line,) = [x for x in lines if x.endswith("differs first")]
    assert line.startswith("stages.0.blocks.1 ")
    assert "The first layer that differs is stages.0.blocks.1 (tolerance 0.0001)." in lines
    start = next(i for i, line in enumerate(lines) if " of 16 images. Predicted" in line) + 1
    assert len(lines[start:]) == 11
    for line in lines[start:-1]:
        assert line.startswith(str(tmp_path / "images"))
        assert line.endswith("JAX 3")
    assert lines[-1].startswith("and ")


def test_weights_of_other_classes_are_refused(compared, checkpoint, tmp_path):
    other = changed("head.fc.weight", lambda x: x[:3]) | {"head.fc.bias": torch.zeros(3)}
    path = write(other, tmp_path / "other.safetensors")
    status, _, errors = compared(weights=path)
    assert status == 2
    expected = f"{path} has 3 classes, but {checkpoint} has 5; both must have the same number."
    assert errors == f"Error: {expected}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "does not contain a state dict of tensors but '[1, 2]'"),
        ({"state_dict": {}}, "does not contain a state dict of tensors but '{}'"),
        ({"epoch": 3}, "does not contain a state dict of tensors but \"{'epoch': 3}\""),
        (torch.nn.Linear(2, 2), "(UnpicklingError): it is damaged, or holds more than tensors"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message, compared, tmp_path):
    status, _, errors = compared(checkpoint=write(content, tmp_path / "a.pt"))
    assert status == 2
    assert errors.startswith(f"Error: {tmp_path / 'a.pt'} ")
    assert message in errors
    assert "torch.save(model.state_dict(), FILE)" in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"checkpoint": "absent.pth"}, "There is no file absent.pth"),
        ({"model": "convnext_pico"}, "shape: stem.0.weight is (40, 3, 4, 4), the model's is (64"),
        ({"image_size": 100}, "image_size is 100; it must be at least 32 and a multiple of 32"),
        ({"model": "resnet18", "image_size": 31}, "image_size is 31; it must be at least 32"),
        ({"model": "asff_resnet18"}, "Neither timm nor torchvision has asff_resnet18"),
        ({"max_images": 0}, "None of the 0 images in "),
    ],
)
def test_what_cannot_be_is_refused(flags, message, compared):
    status, _, errors = compared(**flags)
    assert status == 2
    assert message in errors
