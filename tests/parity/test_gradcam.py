"""Grad-CAM against pytorch-grad-cam, on the same weights."""

import cv2
import jax
import numpy as np
import pytest

from egmae_jax import models
from egmae_jax.data import images as decoding
from egmae_jax.explain.gradcam import explain, gradcam, layer_at, layers
from egmae_jax.method import augment
from egmae_jax.models import asff, registry
from egmae_jax.models import timm as interop
from egmae_jax.models.asff import register_asff
from egmae_jax.models.convnext import register_convnext
from egmae_jax.models.resnet import register_resnet
from tests import torch_reference
from tests.conftest import SHARED_DATA, SQUEEZENET_WEIGHTS

torch = torch_reference.torch()
timm = torch_reference.timm()
torchvision = torch_reference.torchvision()
pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

NAME, CLASSES = "convnext_gradcam", 5
DEPTHS, DIMS = (1, 1, 2, 1), (8, 12, 16, 20)
QUESTIONS = (None, [0, 1, 2, 3], [4, 4, 4, 4])  # classes of four images; None: the predicted ones
HEIGHT, WIDTH = 96, 160  # unequal, so that sides that are swapped show
# Our address: timm's module.
LAYERS = {
    "stages_1/blocks_0": "stages.1.blocks.0",  # the default of these images
    "stages_1/downsample/conv": "stages.1.downsample.1",
    "stages_2/blocks_1/depthwise": "stages.2.blocks.1.conv_dw",
    "stages_3/blocks_0": "stages.3.blocks.0",
}


@pytest.fixture(scope="module")
def networks():
    """timm's network, ours, our variables: the same weights."""
    theirs = torch_reference.random_convnext(
        "convnext_tiny", num_classes=CLASSES, depths=DEPTHS, dims=DIMS
    )
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.NETWORKS, "entries", dict(registry.NETWORKS.entries))
        register_convnext(NAME, DEPTHS, DIMS, "none")
        return theirs, models.create(NAME, CLASSES), interop.convert(tensors, NAME, "timm")


@pytest.fixture(scope="module")
def images():
    """Smooth and different ones, normalised: [B, H, W, 3] numpy, [B, 3, H, W] torch."""
    noise = np.random.default_rng(3).standard_normal((4, HEIGHT, WIDTH, 3)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(x, (0, 0), 4.0) for x in noise]) * 10
    return smooth, torch.from_numpy(smooth.transpose(0, 3, 1, 2).copy())


def their_heat(network, module, images, classes):
    targets = None if classes is None else [ClassifierOutputTarget(c) for c in classes]
    with pytorch_grad_cam.GradCAM(
        model=network, target_layers=[network.get_submodule(module)]
    ) as cam:
        return cam(input_tensor=images, targets=targets)


def assert_the_heat_is_theirs(networks, images, layer, module, *questions, atol=2e-5):
    """`questions`: the classes to explain; None, the predicted ones."""
    theirs, model, variables = networks
    ours_images, their_images = images
    correlations = []
    for classes in questions:
        expected = their_heat(theirs, module, their_images, classes)
        ours = np.asarray(gradcam(model, variables, ours_images, layer=layer, classes=classes))
        assert ours.shape == expected.shape == ours_images.shape[:3]
        np.testing.assert_allclose(ours, expected, atol=atol, rtol=0)
        for a, b in zip(ours, expected, strict=True):
            if b.max() > 0:  # something speaks for the class
                correlations.append(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert len(correlations) >= 4
    assert min(correlations) > 0.999999


@pytest.mark.parametrize("layer", LAYERS)
def test_the_heat_is_theirs(layer, networks, images):
    assert_the_heat_is_theirs(networks, images, layer, LAYERS[layer], *QUESTIONS)


def test_what_is_explained_is_what_the_network_says(networks, images):
    theirs, model, variables = networks
    with torch.inference_mode():
        logits = theirs(images[1]).numpy()
    explanation = explain(model, variables, images[0])
    np.testing.assert_allclose(explanation.logits, logits, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(explanation.classes, logits.argmax(axis=1))


def test_the_default_layer_is_the_one_their_readme_names(networks):
    theirs, model, _ = networks
    assert theirs.get_submodule(LAYERS[layer_at(model).address]) is theirs.stages[-1].blocks[-1]


def test_the_default_heat_of_smaller_images_is_theirs_of_seven_by_seven(networks, images):
    _, model, variables = networks
    address = next(iter(LAYERS))
    assert layer_at(model, (HEIGHT, WIDTH)) == (address, (12, 20), "")
    ours = gradcam(model, variables, images[0])
    np.testing.assert_array_equal(ours, gradcam(model, variables, images[0], layer=address))


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


# --- The other backbones --------------------------------------------------------------------------

# timm's stem always gives 64 channels.
RESNETS = {
    "resnet_shallow": ((1, 2, 1, 2), (64, 16, 24, 32), False),
    "resnet_narrow": ((2, 1, 1, 1), (64, 8, 12, 16), True),
}
# Ours: theirs. Of each network the first is its default at 224 pixels, the second that of images
# of 96 x 160.
OTHER_LAYERS = {
    "resnet_shallow": {
        "layer4_1": "layer4.1",
        "layer2_1": "layer2.1",
        "layer4_1/conv2": "layer4.1.conv2",
        "layer4_0/downsample/conv": "layer4.0.downsample.0",
        "layer1_0/conv1": "layer1.0.conv1",
        "stem/conv": "conv1",
    },
    "resnet_narrow": {
        "layer4_0": "layer4.0",
        "layer2_0": "layer2.0",
        "layer3_0/downsample/conv": "layer3.0.downsample.0",
        "layer2_0/conv2": "layer2.0.conv2",
        "layer1_1": "layer1.1",
    },
    "asff_resnet_shallow": {
        "layer4_1": "layer4.1",
        "layer2_1": "layer2.1",
        "fusion/high/conv": "fusion.high.conv",
        "fusion/mid/conv": "fusion.mid.conv",
        "layer3_0": "layer3.0",  # speaks by both branches
        "layer4_0/downsample/conv": "layer4.0.downsample.0",
    },
    "squeezenet1_1": {
        "features_12": "features.12",
        "features_7": "features.7",
        "features_10/expand3x3": "features.10.expand3x3",
        "features_4/squeeze": "features.4.squeeze",
        "features_0": "features.0",
    },
}


class TorchASFF(timm.models.resnet.ResNet):
    """The definition of `models/asff.py` in PyTorch."""

    def __init__(self, *args, num_classes, **options):
        super().__init__(*args, num_classes=0, **options)
        nn, width = torch.nn, asff.WIDTH
        channels = [stage[-1].conv2.out_channels for stage in (self.layer3, self.layer4)]
        self.fusion = nn.ModuleDict(
            {
                name: nn.ModuleDict(
                    {"conv": nn.Conv2d(c, width, 1, bias=False), "bn": nn.BatchNorm2d(width)}
                )
                for name, c in zip(("mid", "high"), channels, strict=True)
            }
        )
        self.fusion["fc1"] = nn.Linear(2 * width, asff.HIDDEN)
        self.fusion["fc2"] = nn.Linear(asff.HIDDEN, 2)
        self.head = nn.ModuleDict({"fc": nn.Linear(width, num_classes)})

    def forward(self, images):
        x = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        mid = self.layer3(self.layer2(self.layer1(x)))
        pooled = []
        for name, x in (("mid", mid), ("high", self.layer4(mid))):
            part = self.fusion[name]
            pooled.append(torch.relu(part["bn"](part["conv"](x))).mean(dim=(2, 3)))
        hidden = torch.relu(self.fusion["fc1"](torch.cat(pooled, dim=1)))
        first, second = self.fusion["fc2"](hidden).softmax(dim=1).T
        return self.head["fc"](first[:, None] * pooled[0] + second[:, None] * pooled[1])


def without_inplace(network):
    """pytorch-grad-cam keeps activations without copying: what follows must not overwrite them."""
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    return network.eval()


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow) for name in OTHER_LAYERS],
)
def other(request):
    """A name, and its timm's or torchvision's network, ours, our variables."""
    name = request.param
    if name == "squeezenet1_1":
        theirs = torchvision.models.squeezenet1_1(num_classes=CLASSES)
    else:
        depths, dims, bottleneck = RESNETS[name.removeprefix("asff_")]
        kind = TorchASFF if name.startswith("asff_") else timm.models.resnet.ResNet
        block = timm.models.resnet.Bottleneck if bottleneck else timm.models.resnet.BasicBlock
        theirs = kind(block, depths, channels=dims, num_classes=CLASSES)
    theirs = without_inplace(torch_reference.randomize(theirs))
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.NETWORKS, "entries", dict(registry.NETWORKS.entries))
        for resnet, entry in RESNETS.items():
            register_resnet(resnet, entry)
            register_asff(resnet, entry)
        return name, (theirs, models.create(name, CLASSES), interop.convert(tensors, name, name))


def test_the_heat_of_the_other_backbones_is_theirs(other, images):
    name, networks = other
    for layer, module in OTHER_LAYERS[name].items():
        assert_the_heat_is_theirs(networks, images, layer, module, *QUESTIONS)


def test_the_other_backbones_default_layer_is_the_deepest_block_of_seven_by_seven(other):
    name, (_, model, _) = other
    at_224, here, *_ = OTHER_LAYERS[name]
    assert layer_at(model).address == at_224
    assert layer_at(model, (HEIGHT, WIDTH)).address == here


@pytest.mark.skipif(not SQUEEZENET_WEIGHTS.is_file(), reason="the real weights are not at hand")
@pytest.mark.slow
def test_the_heat_of_real_weights_on_real_medical_images_is_theirs():
    theirs = without_inplace(torchvision.models.squeezenet1_1())
    with np.load(SQUEEZENET_WEIGHTS) as archive:
        theirs.load_state_dict({k: torch.from_numpy(archive[k]) for k in archive.files})
    variables = interop.load(SQUEEZENET_WEIGHTS, "squeezenet1_1")
    folders = [folder for folder in sorted(SHARED_DATA.iterdir()) if folder.is_dir()]
    files = [sorted(folder.rglob("*.[pj][np]g"))[0] for folder in folders]
    views = [
        decoding.to_array(
            decoding.evaluation_view(decoding.decode(file.read_bytes()), "shorter_side", 224)
        )
        for file in files
    ]
    ours_images = np.array(augment.normalize(np.stack(views)))
    their_images = torch.from_numpy(ours_images.transpose(0, 3, 1, 2).copy())
    model = models.create("squeezenet1_1", 1000)
    with jax.enable_x64(True):
        exact = (
            (theirs.double(), model.clone(dtype=np.float64), as_float64(variables)),
            (as_float64(ours_images), their_images.double()),
        )
        for layer, module in OTHER_LAYERS["squeezenet1_1"].items():
            assert_the_heat_is_theirs(*exact, layer, module, None, atol=2e-6)
    # In float32, as users have it, also wherever no ReLU's input is within rounding of zero: where
    # one is, as in two of these images, its gradient passes or not as the rounding falls.
    for layer, module in OTHER_LAYERS["squeezenet1_1"].items():
        expected = their_heat(theirs.float(), module, their_images, None)
        ours = np.asarray(gradcam(model, variables, ours_images, layer=layer))
        errors = np.abs(ours - expected).max(axis=(1, 2))
        assert np.median(errors) < 2e-5
        assert errors.max() < 2e-3


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
