"""ResNet against timm, SqueezeNet against torchvision: numbers, training and checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egmae_jax import models
from egmae_jax.data import images as decoding
from egmae_jax.method import augment
from egmae_jax.models import registry
from egmae_jax.models import timm as interop
from egmae_jax.models.resnet import register_resnet
from tests import torch_reference
from tests.conftest import SHARED_DATA, SQUEEZENET_WEIGHTS
from tests.parity.sgd import our_training_step, train_theirs
from tests.tiny import flatten

torch = torch_reference.torch()
safetensors_torch = pytest.importorskip("safetensors.torch")
timm = torch_reference.timm()
torchvision = torch_reference.torchvision()

CLASSES = 5
# Networks of both kinds of blocks that compile in a second. timm's stem always gives 64 channels.
SMALL = {
    "resnet_basic": ((2, 1, 1, 1), (64, 16, 24, 32), False),
    "resnet_bottleneck": ((1, 2, 1, 1), (64, 8, 12, 16), True),
}
NAMES = [x for x in models.names() if x.startswith(("resnet", "squeezenet"))]
BUFFERS = ("running_mean", "running_var")


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(registry.NETWORKS, "entries", dict(registry.NETWORKS.entries))
    for name, entry in SMALL.items():
        register_resnet(name, entry)


def reference(name):
    """PyTorch's network in evaluation mode, all parameters and statistics drawn anew."""
    if name in SMALL:
        depths, dims, bottleneck = SMALL[name]
        blocks = timm.models.resnet
        network = blocks.ResNet(
            blocks.Bottleneck if bottleneck else blocks.BasicBlock,
            depths,
            channels=dims,
            num_classes=CLASSES,
        )
    else:
        network = empty(name)
    return torch_reference.randomize(network).eval()


def empty(name):
    library = torchvision.models.get_model if "squeeze" in name else timm.create_model
    return library(name, num_classes=CLASSES)


def ours(network, name):
    """The variables of PyTorch's network in our tree; copies, as training works in place."""
    tensors = {key: x.numpy().copy() for key, x in network.state_dict().items()}
    return interop.convert(tensors, name, name)


def random_images(batch, height, width=None, seed=1):
    """Normalised images as both frameworks take them: [B, H, W, 3] numpy, [B, 3, H, W] torch."""
    shape = (batch, height, width or height, 3)
    images = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@functools.lru_cache
def _program(model):
    return jax.jit(lambda variables, images: model.apply(variables, images))


def assert_logits_are_theirs(name, sizes):
    network = reference(name)
    variables, program = ours(network, name), _program(models.create(name, CLASSES))
    for size in sizes:
        images, images_torch = random_images(2, *size)
        with torch.inference_mode():
            expected = network(images_torch).numpy()
        assert expected.std() > 0.1  # the logits do say something
        np.testing.assert_allclose(program(variables, images), expected, atol=1e-4, rtol=0)


# Odd sides: windows at the edges lie partly on the padding, or stick out.
@pytest.mark.parametrize(
    "name", [*SMALL, "squeezenet1_1", pytest.param("squeezenet1_0", marks=pytest.mark.slow)]
)
def test_logits_are_pytorchs_at_every_image_size(name):
    assert_logits_are_theirs(name, [(32,), (65,), (97, 54)])


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(x, marks=pytest.mark.slow) for x in ("resnet34", "resnet50"))],
)
def test_logits_of_the_whole_networks_are_timms(name):
    assert_logits_are_theirs(name, [(97,)])


@pytest.mark.skipif(not SQUEEZENET_WEIGHTS.is_file(), reason="the real weights are not at hand")
def test_real_imagenet_weights_see_the_same_in_real_medical_images():
    network = torchvision.models.squeezenet1_1().eval()
    with np.load(SQUEEZENET_WEIGHTS) as archive:
        network.load_state_dict({k: torch.from_numpy(archive[k]) for k in archive.files})
    variables = interop.load(SQUEEZENET_WEIGHTS, "squeezenet1_1")
    files = [
        sorted(folder.rglob("*.[pj][np]g"))[k]
        for folder in sorted(SHARED_DATA.iterdir())
        if folder.is_dir()
        for k in (0, -1)
    ]
    assert len(files) >= 10
    views = [
        decoding.to_array(
            decoding.evaluation_view(decoding.decode(file.read_bytes()), "shorter_side", 224)
        )
        for file in files
    ]
    images = np.array(augment.normalize(jnp.asarray(np.stack(views))))
    with torch.inference_mode():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    logits = _program(models.create("squeezenet1_1", 1000))(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    assert expected.max() > 10
    np.testing.assert_array_equal(np.argmax(logits, 1), expected.argmax(1))


# Training


@pytest.mark.parametrize("name", [*SMALL, "squeezenet1_1"])
def test_the_gradient_of_every_parameter_is_pytorchs(name):
    network = reference(name).train()
    model = models.create(name, CLASSES)
    if name.startswith("squeezenet"):
        network.classifier[0].p = 0.0
        model = model.copy(dropout_rate=0.0)
    variables = ours(network, name)
    images, images_torch = random_images(4, 65)
    labels = np.array([1, 4, 0, 2])
    _, gradient = our_training_step(model, learning_rate=0.0)(variables, images, labels)
    train_theirs(network, [(images_torch, labels)], 0.0)
    # A gradient has its parameter's layout, so it travels the same way; statistics have none.
    theirs = {key: x.grad.numpy() for key, x in network.named_parameters()}
    theirs |= {
        key: np.zeros_like(x.numpy()) for key, x in network.named_buffers() if key.endswith(BUFFERS)
    }
    expected = flatten(interop.convert(theirs, name, name)["params"])
    gradient = flatten(gradient)
    assert gradient.keys() == expected.keys()
    errors = {}
    for path, g in expected.items():
        assert np.linalg.norm(g) > 1e-6, path  # no leaf passes by being zero
        errors[path] = np.linalg.norm(gradient[path] - g) / np.linalg.norm(g)
    assert {path: e for path, e in errors.items() if not e < 1e-3} == {}


# Layers of resnet_bottleneck and timm's names of their norms, a shortcut's among them.
FROZEN = {
    "stem/conv": "bn1",
    "layer1_0/downsample/conv": "layer1.0.downsample.1",
    "layer2_0/conv2": "layer2.0.bn2",
    "layer3_0/conv3": "layer3.0.bn3",
}


@pytest.mark.parametrize(("name", "frozen"), [
    ("resnet_basic", {}), ("resnet_bottleneck", FROZEN),
])  # fmt: skip
def test_training_moves_parameters_and_running_statistics_as_pytorch(name, frozen):
    network = reference(name).train()
    for norm in frozen.values():
        network.get_submodule(norm).eval()
    start = variables = ours(network, name)
    batches = [(random_images(8, 49, seed=k), np.arange(8) * (k + 1) % CLASSES) for k in range(3)]
    step = our_training_step(models.create(name, CLASSES, frozen=frozen), learning_rate=1e-3)
    for (images, _), labels in batches:
        variables, _ = step(variables, images, labels)
    train_theirs(network, [(images, labels) for (_, images), labels in batches], 1e-3)

    start, after, expected = (flatten(x) for x in (start, variables, ours(network, name)))
    assert after.keys() == expected.keys()
    for path, x in expected.items():
        assert np.linalg.norm(after[path] - x) < 1e-4 * np.linalg.norm(x), path
        collection, _, within = path.partition("/")
        if collection == "batch_stats":
            stays = any(within.startswith(layer.replace("conv", "bn")) for layer in frozen)
            assert np.array_equal(after[path], start[path]) == stays, path


def test_drop_path_grows_with_depth_as_timms():
    theirs = timm.create_model("resnet50", num_classes=CLASSES, drop_path_rate=0.3)
    expected = [
        getattr(block.drop_path, "drop_prob", 0.0)  # timm has None at rate 0
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
        for block in stage
    ]
    rates = models.create("resnet50", CLASSES, drop_path_rate=0.3).drop_path_rates
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_new_networks_are_distributed_as_pytorchs():
    for name in ("resnet18", "squeezenet1_1"):
        theirs = flatten(ours(empty(name), name))
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        fresh = flatten(models.init.initial_variables(models.create(name, CLASSES), 0, image))
        assert fresh.keys() == theirs.keys()
        for path, x in theirs.items():
            if path == "params/head/fc/bias":  # uniform in nn.Linear, zeros here
                assert np.abs(x).max() < 0.1
            elif path.endswith("kernel"):
                assert fresh[path].std() == pytest.approx(x.std(), rel=6 / x.size**0.5), path
            else:
                np.testing.assert_array_equal(fresh[path], x, path)


# Checkpoints


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ("resnet34", "resnet50") else ())
        for n in NAMES
    ],
)
def test_checkpoints_travel_both_ways_without_losing_a_bit(name, tmp_path):
    network = reference(name)
    source = tmp_path / "source.safetensors"
    safetensors_torch.save_file(
        {key: x.contiguous() for key, x in network.state_dict().items()}, source
    )
    variables = interop.load(source, name)
    interop.save(variables, tmp_path / "saved.safetensors", name)

    saved = safetensors_torch.load_file(tmp_path / "saved.safetensors")
    with torch.device("meta"):  # an empty frame; assign=True fills it
        frame = empty(name)
    frame.load_state_dict(saved, strict=True, assign=True)
    original, loaded = network.state_dict(), frame.state_dict()
    assert list(original) == list(loaded)
    assert [key for key in original if not torch.equal(original[key], loaded[key])] == []
    assert {str(x.dtype) for x in saved.values()} <= {"torch.float32", "torch.int64"}

    again, once = flatten(interop.load(tmp_path / "saved.safetensors", name)), flatten(variables)
    assert again.keys() == once.keys()
    assert [path for path in once if again[path].tobytes() != once[path].tobytes()] == []


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_the_default_weights_are_torchvisions(name):
    tag = models.default_weights(name).removeprefix("timm/")
    options = timm.get_pretrained_cfg(tag)
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    assert options.url == weights.url
    assert (options.mean, options.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1"])
def test_squeezenets_default_weights_are_torchvisions(name):
    assert models.default_weights(name) == torchvision.models.get_model_weights(name).DEFAULT.url
