"""Grad-CAM against pytorch-grad-cam and a short one by PyTorch's hooks, on the same weights."""

import cv2
import numpy as np
import pytest

from egmae_jax import models
from egmae_jax.explain.gradcam import default_layer, explain, gradcam, layers
from egmae_jax.interop import timm as interop
from tests import torch_reference

torch = torch_reference.torch()
torch_reference.timm()

NAME, CLASSES = "convnext_gradcam", 5
DEPTHS, DIMS = (1, 1, 2, 1), (8, 12, 16, 20)
HEIGHT, WIDTH = 96, 160  # unequal, so that sides that are swapped show
# Our address: timm's module.
LAYERS = {
    "stages_1/downsample/conv": "stages.1.downsample.1",
    "stages_2/blocks_1/depthwise": "stages.2.blocks.1.conv_dw",
    "stages_3/blocks_0": "stages.3.blocks.0",
}


@pytest.fixture(scope="module")
def networks():
    """timm's network, ours, our parameters: the same weights."""
    theirs = torch_reference.random_convnext(
        "convnext_tiny", num_classes=CLASSES, depths=DEPTHS, dims=DIMS
    )
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._CONVNEXT, NAME, (DEPTHS, DIMS, "timm/none"))
        return theirs, models.create(NAME, CLASSES), interop.convert(tensors, NAME, "timm")


@pytest.fixture(scope="module")
def images():
    """Smooth and different ones, normalised: [B, H, W, 3] numpy, [B, 3, H, W] torch."""
    noise = np.random.default_rng(3).standard_normal((4, HEIGHT, WIDTH, 3)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(x, (0, 0), 4.0) for x in noise]) * 10
    return smooth, torch.from_numpy(smooth.transpose(0, 3, 1, 2).copy())


def by_hooks(network, module, images, classes):
    """Grad-CAM in PyTorch, written from the paper and pytorch-grad-cam's conventions."""
    kept = []
    handle = network.get_submodule(module).register_forward_hook(lambda m, i, out: kept.append(out))
    logits = network(images)
    handle.remove()
    (activation,) = kept
    chosen = logits.argmax(dim=1) if classes is None else torch.tensor(classes)
    score = logits.gather(1, chosen[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, activation)
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(dim=1).clamp(min=0)

    def scale(x):
        return (x - x.min()) / (1e-7 + (x - x.min()).max())

    maps = [scale(x) for x in heat.detach().numpy()]
    return np.stack([scale(cv2.resize(x, (WIDTH, HEIGHT))) for x in maps])


def by_package(network, module, images, classes):
    torch_reference.torchvision()  # the package imports it
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = None if classes is None else [ClassifierOutputTarget(c) for c in classes]
    with package.GradCAM(model=network, target_layers=[network.get_submodule(module)]) as cam:
        return cam(input_tensor=images, targets=targets)


@pytest.mark.parametrize("reference", [by_hooks, by_package])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_heat_is_theirs(layer, reference, networks, images):
    theirs, model, params = networks
    ours_images, their_images = images
    warm = []
    for classes in (None, [0, 1, 2, 3], [4, 4, 4, 4]):
        expected = reference(theirs, LAYERS[layer], their_images, classes)
        ours = np.asarray(gradcam(model, params, ours_images, layer=layer, classes=classes))
        assert ours.shape == expected.shape == (4, HEIGHT, WIDTH)
        np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=0)
        for a, b in zip(ours, expected, strict=True):
            if b.max() > 0:  # something speaks for the class
                warm.append(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert len(warm) >= 4
    assert min(warm) > 0.999999


def test_what_is_explained_is_what_the_network_says(networks, images):
    theirs, model, params = networks
    with torch.inference_mode():
        logits = theirs(images[1]).numpy()
    found = explain(model, params, images[0])
    np.testing.assert_allclose(found.logits, logits, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(found.classes, logits.argmax(axis=1))


def test_the_default_layer_is_the_one_their_readme_names(networks):
    theirs, model, _ = networks
    assert theirs.get_submodule(LAYERS[default_layer(model)]) is theirs.stages[-1].blocks[-1]


def test_every_block_and_convolution_of_timms_has_an_address(networks):
    theirs, model, _ = networks
    spatial = [
        name
        for name, module in theirs.named_modules()
        if type(module).__name__ == "ConvNeXtBlock"
        or (isinstance(module, torch.nn.Conv2d) and module.kernel_size > (1, 1))
    ]
    assert set(LAYERS.values()) <= set(spatial)
    assert set(LAYERS) <= set(layers(model))
    assert len(layers(model)) == len(spatial)
