"""ConvNeXt against timm: logits, the gradient of every parameter, checkpoints both ways."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egmae_jax import models
from egmae_jax.models import timm as interop
from egmae_jax.models import timm_names
from tests import torch_reference
from tests.models.names import in_names_of
from tests.tiny import flatten

torch = torch_reference.torch()
safetensors_torch = pytest.importorskip("safetensors.torch")
timm = torch_reference.timm()

CLASSES = 5
NAMES = [name for name in models.names() if name.startswith("convnext")]


def every_model(*, fast):
    """All names; those that are not `fast` are slow tests."""
    return pytest.mark.parametrize(
        "name",
        [pytest.param(n, marks=() if n in fast else pytest.mark.slow) for n in NAMES],
    )


@functools.lru_cache(maxsize=2)
def reference(name):
    return torch_reference.random_convnext(name, num_classes=CLASSES)


def write(state_dict, path):
    safetensors_torch.save_file({k: v.contiguous() for k, v in state_dict.items()}, path)
    return path


def random_images(batch, side, seed=1):
    """Normalised images as both frameworks take them: [B, H, W, 3] numpy, [B, 3, H, W] torch."""
    images = np.random.default_rng(seed).standard_normal((batch, side, side, 3)).astype(np.float32)
    return images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@functools.lru_cache
def our_program(name):
    """(variables, images) -> features and logits."""
    model = models.create(name, CLASSES)

    @jax.jit
    def program(variables, images):
        ours = model.bind(variables)
        features = ours.features(images)
        return features, ours.head(features)

    return program


@every_model(fast={"convnext_atto", "convnextv2_atto"})
def test_logits_are_timms(name, tmp_path):
    theirs = reference(name)
    variables = interop.load(write(theirs.state_dict(), tmp_path / "model.safetensors"), name)
    images, images_torch = random_images(1, 224)
    with torch.inference_mode():
        expected = theirs(images_torch).numpy()
        features = theirs.forward_features(images_torch).permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.1  # the logits do say something

    our_features, logits = our_program(name)(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    error = np.linalg.norm(our_features - features) / np.linalg.norm(features)
    assert error < 1e-5


def test_the_epsilon_of_every_norm_is_timms(tmp_path):
    theirs = torch_reference.random_convnext("convnext_atto", num_classes=CLASSES)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            # What enters a norm then has a variance near 1e-6, so that epsilon counts.
            if re.match(r"stem|.*(gamma|conv_dw\.bias|downsample\.1)", key):
                parameter *= 1e-3
    source = write(theirs.state_dict(), tmp_path / "model.safetensors")
    variables = interop.load(source, "convnext_atto")
    images, images_torch = random_images(1, 224)
    with torch.inference_mode():
        expected = theirs(images_torch).numpy()
    _, logits = our_program("convnext_atto")(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)

    for norm in theirs.modules():
        if isinstance(norm, torch.nn.LayerNorm):
            norm.eps = 1e-5
    with torch.inference_mode():  # and the test does see epsilon
        assert np.abs(theirs(images_torch).numpy() - expected).max() > 1e-2


SLOW_GRADIENTS = ("convnext_tiny", "convnextv2_atto")


@pytest.mark.parametrize(
    "name",
    ["convnext_atto", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_GRADIENTS)],
)
def test_the_gradient_of_every_parameter_is_timms(name, tmp_path):
    theirs = reference(name)
    variables = interop.load(write(theirs.state_dict(), tmp_path / "model.safetensors"), name)
    images, images_torch = random_images(2, 64)
    labels = np.array([1, 4])
    theirs.zero_grad()
    loss = torch.nn.functional.cross_entropy(theirs(images_torch), torch.from_numpy(labels))
    loss.backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    # A gradient has its parameter's layout, so it travels the same way.
    expected = interop.load(write(gradients, tmp_path / "gradients.safetensors"), name)
    expected = flatten(expected["params"])
    theirs.zero_grad()

    model = models.create(name, CLASSES)

    @jax.jit
    @jax.value_and_grad
    def our_loss(params):
        logits = model.apply({"params": params}, images, train=True)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    value, gradient = our_loss(variables["params"])
    assert value == pytest.approx(loss.item(), rel=1e-4)
    ours = flatten(gradient)
    assert ours.keys() == expected.keys()
    errors = {}
    for path, g in expected.items():
        assert np.linalg.norm(g) > 1e-6, path  # no leaf passes by being zero
        errors[path] = np.linalg.norm(ours[path] - g) / np.linalg.norm(g)
    assert {path: e for path, e in errors.items() if not e < 1e-3} == {}


@every_model(fast={"convnext_atto", "convnextv2_atto"})
def test_checkpoints_travel_both_ways_without_losing_a_bit(name, tmp_path):
    theirs = reference(name)
    source = write(theirs.state_dict(), tmp_path / "source.safetensors")
    variables = interop.load(source, name)
    interop.save(variables, tmp_path / "saved.safetensors", name)

    saved = safetensors_torch.load_file(tmp_path / "saved.safetensors")
    with torch.device("meta"):  # an empty frame; assign=True fills it
        empty = timm.create_model(name, num_classes=CLASSES)
    empty.load_state_dict(saved, strict=True, assign=True)
    original, loaded = theirs.state_dict(), empty.state_dict()
    assert list(original) == list(loaded)
    assert [key for key in original if not torch.equal(original[key], loaded[key])] == []

    again, once = flatten(interop.load(tmp_path / "saved.safetensors", name)), flatten(variables)
    assert again.keys() == once.keys()
    assert [path for path in once if again[path].tobytes() != once[path].tobytes()] == []


def test_drop_path_grows_with_depth_as_timms():
    theirs = timm.create_model("convnext_tiny", num_classes=CLASSES, drop_path_rate=0.3)
    expected = [
        getattr(block.drop_path, "drop_prob", 0.0)  # timm has an identity at rate 0
        for stage in theirs.stages
        for block in stage.blocks
    ]
    rates = models.create("convnext_tiny", CLASSES, drop_path_rate=0.3).drop_path_rates
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.3)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_weights_are_those_of_this_architecture(name):
    hub_id = models.default_weights(name)
    assert hub_id.startswith(f"timm/{name}.")
    tag = hub_id.removeprefix("timm/")
    assert tag in timm.list_pretrained(f"{name}.*")
    options = timm.get_pretrained_cfg(tag)
    assert options.num_classes == 1000
    assert (options.mean, options.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# --- Other libraries' names -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_facebooks_names_are_read_as_timm_reads_them(name):
    """timm's own filter is the judge."""
    from timm.models.convnext import checkpoint_filter_fn

    theirs = reference(name)
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    facebooks = in_names_of("Facebook's", tensors)
    expected = checkpoint_filter_fn({k: torch.from_numpy(x) for k, x in facebooks.items()}, theirs)
    library, ours = timm_names.as_timm(facebooks, name)
    assert library == "Facebook's"
    assert ours.keys() == expected.keys() == tensors.keys()
    for key, x in expected.items():
        np.testing.assert_array_equal(ours[key], x.numpy(), err_msg=key)


@pytest.mark.essential
@pytest.mark.slow
def test_torchvisions_convnext_computes_the_same_here():
    theirs = torch_reference.torchvision().models.convnext_tiny(num_classes=CLASSES)
    theirs = torch_reference.randomize(theirs).eval()
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    variables = interop.convert(tensors, "convnext_tiny", "torchvision's")
    images, images_torch = random_images(1, 64)
    with torch.inference_mode():
        expected = theirs(images_torch).numpy()
    assert expected.std() > 0.1
    logits = models.create("convnext_tiny", CLASSES).apply(variables, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
