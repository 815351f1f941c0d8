"""Every backbone without an oracle: its layers, options, exported programs and fusion."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from egmae_jax import models
from egmae_jax.core import platform
from egmae_jax.core.errors import ConfigError
from egmae_jax.models import transfer
from egmae_jax.models.asff import ASFFResNet
from egmae_jax.models.densenet import DenseNet
from egmae_jax.models.efficientnet import EfficientNet, Stage
from egmae_jax.models.init import abstract_variables, initial_variables
from egmae_jax.models.resnet import BasicBlock, ResNet
from egmae_jax.models.swin import Swin
from egmae_jax.models.vit import ViT
from tests.tiny import flatten

IMAGE = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
SHAPE = ((1, 2, 1, 1), (8, 12, 16, 20), True)
ONE_OF_EACH = (
    *("convnext_atto", "convnextv2_atto", "resnet18", "resnet50", "squeezenet1_0"),
    *("squeezenet1_1", "asff_resnet18", "asff_resnet50", "densenet121", "efficientnet_b0"),
    *("tf_efficientnet_lite0", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"),
)


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def variables_of(network):
    """Initial ones, but for scales of zero, which would hide the branches."""
    flat = flatten(initial_variables(network(*SHAPE, num_classes=3), 0, IMAGE))
    flat = {k: np.ones_like(x) if k.endswith("scale") else x for k, x in flat.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_of_the_body_is_in_one_layer_and_every_layer_is_tapped(name):
    model = models.create(name, 3)
    variables = abstract_variables(model, IMAGE)
    paths = [path for collection in variables.values() for path in flatten(collection)]
    for path in paths:
        owners = [a for a, prefixes in model.layers.items() if path.startswith(prefixes)]
        assert len(owners) == (not path.startswith(("head/", "fusion/"))), (path, owners)
    for address, prefixes in model.layers.items():
        for prefix in prefixes:
            assert any(path.startswith(prefix) for path in paths), (address, prefix)
    assert all(any(p.startswith(f) for p in paths) for f in model.fresh_prefixes)

    tapped = []

    def program(variables, images):
        _, state = model.apply(variables, images, mutable=["intermediates"])
        tapped.extend(flatten(state["intermediates"]))  # in the order of computation

    jax.eval_shape(program, variables, IMAGE)
    tapped = [path.removesuffix("/output") for path in tapped]
    assert [path for path in tapped if path in model.layers] == list(model.layers)


def test_the_asff_backbone_has_the_resnets_variables_and_starts_from_them():
    resnet, fused = variables_of(ResNet), variables_of(ASFFResNet)
    resnet = jax.tree.map(lambda x: x + 1, resnet)
    for collection in ("params", "batch_stats"):
        theirs = {path for path in flatten(resnet[collection]) if not path.startswith("head/")}
        ours = flatten(fused[collection])
        assert {p for p in ours if not p.startswith(("head/", "fusion/"))} == theirs
    started = flatten(
        transfer.start_finetuning(fused, resnet, keep_fresh=ASFFResNet.fresh_prefixes)
    )
    assert started.keys() == flatten(fused).keys()
    for path, x in started.items():
        is_fresh = path.partition("/")[2].startswith(ASFFResNet.fresh_prefixes)
        expected = flatten(fused)[path] if is_fresh else flatten(resnet)[path]
        np.testing.assert_array_equal(x, expected, path)
    assert models.imagenet_model("asff_resnet50") == "resnet50"
    assert models.imagenet_model("convnext_tiny") == "convnext_tiny"
    assert models.default_weights("asff_resnet34") == "timm/resnet34.tv_in1k"


def test_fusion_is_the_sum_of_both_pooled_branches_by_the_softmax_of_their_weights():
    model, variables = ASFFResNet(*SHAPE, num_classes=3), variables_of(ASFFResNet)
    variables = jax.tree.map(lambda x: x + 0.1 * random(x.size, *x.shape), variables)
    variables = traverse_util.unflatten_dict(
        {k: abs(x) if k.endswith("var") else x for k, x in flatten(variables).items()}, sep="/"
    )
    images = random(0, 3, 70, 90, 3)

    @jax.jit
    def program(variables, images):
        ours = model.bind(variables, mutable=["intermediates"])
        logits = ours(images)
        return logits, ours.variables["intermediates"], ours.features(images)

    logits, taps, features = program(variables, images)
    fusion, head = variables["params"]["fusion"], variables["params"]["head"]
    statistics = variables["batch_stats"]["fusion"]
    np.testing.assert_array_equal(features, taps["layer4_0"]["output"])
    pooled = []
    for branch, stage in (("mid", "layer3_0"), ("high", "layer4_0")):
        x, norm = np.asarray(taps[stage]["output"], np.float64), fusion[branch]["bn"]
        mean, var = (statistics[branch]["bn"][name] for name in ("mean", "var"))
        x = x @ fusion[branch]["conv"]["kernel"][0, 0]
        x = (x - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
        pooled.append(np.maximum(x, 0).mean(axis=(1, 2)))
    hidden = np.concatenate(pooled, 1) @ fusion["fc1"]["kernel"] + fusion["fc1"]["bias"]
    scores = np.maximum(hidden, 0) @ fusion["fc2"]["kernel"] + fusion["fc2"]["bias"]
    first = 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    np.testing.assert_allclose(taps["fusion"]["weights"], np.stack([first, 1 - first], 1), 1e-4)
    assert np.ptp(first) > 1e-3  # they do adapt to the image
    fused = first[:, None] * pooled[0] + (1 - first[:, None]) * pooled[1]
    expected = fused @ head["fc"]["kernel"] + head["fc"]["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_drop_path_drops_whole_branches_of_a_block():
    block = BasicBlock(4)
    x = random(0, 3, 8, 8, 4)
    variables = block.init(jax.random.key(0), x, train=False)
    variables["params"]["bn2"]["scale"] = jnp.ones(4)
    apply = jax.jit(functools.partial(block.apply, train=False))
    out = apply(variables, x, jnp.array([0.0, 1.0, 2.0]))
    whole = apply(variables, x)
    np.testing.assert_array_equal(out[0], np.maximum(x[0], 0))  # the shortcut alone
    np.testing.assert_allclose(out[1], whole[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(out[2], whole[2])


@pytest.mark.parametrize("name", ["resnet", "squeezenet"])
def test_drop_path_and_dropout_are_of_training_only(name):
    stream = {"resnet": "drop_path", "squeezenet": "dropout"}[name]
    if name == "resnet":
        dropping, variables = (
            ResNet(*SHAPE, num_classes=3).copy(drop_path_rate=0.9),
            variables_of(ResNet),
        )
        without = dropping.copy(drop_path_rate=0.0)
    else:
        dropping = models.create("squeezenet1_1", 2)
        variables, without = initial_variables(dropping, 0, IMAGE), dropping.copy(dropout_rate=0.0)
    images = random(0, 4, 32, 32, 3)

    @jax.jit
    def program(variables, images):
        def train(model, **options):
            train_options = {"train": True, "mutable": ["batch_stats"], **options}
            return model.apply(variables, images, **train_options)[0]

        evaluated = [model.apply(variables, images) for model in (dropping, without)]
        dropped = train(dropping, rngs={stream: jax.random.key(0)})
        return *evaluated, dropped, train(without)

    evaluated, expected, dropped, trained = program(variables, images)
    np.testing.assert_array_equal(evaluated, expected)
    assert not np.allclose(dropped, trained, rtol=1e-3)


def test_layers_and_names_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="resnet18 has no layers layer1_0/conv3; it has stem/conv"):
        models.create("resnet18", 3, frozen={"layer1_0/conv1", "layer1_0/conv3"})
    with pytest.raises(ConfigError, match=r"Did you mean 'asff_resnet50'"):
        models.library("asff_resnet500")
    with pytest.raises(ValueError, match="convnext_atto has no layers head/fc; it has stem/conv"):
        models.create("convnext_atto", 3, frozen=["head/fc"])
    assert models.create("resnet18", 3, frozen=["stem/conv"]).frozen == {"stem/conv"}


SMALL = {
    "efficientnet": (EfficientNet(False, num_classes=3, sizes=(Stage(2, 5, 2, 6, 8),)), 48),
    "lite": (
        EfficientNet(True, num_classes=3, sizes=(Stage(1, 3, 1, 1, 8), Stage(1, 5, 2, 6, 8))),
        48,
    ),
    "densenet": (DenseNet((1, 1), 8, num_classes=3), 48),
    "vit": (ViT(1, 24, 3, num_classes=3), 96),
    "swin": (Swin((2, 1, 1, 2), 8, (1, 1, 1, 2), num_classes=3), 96),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_program_for_any_batch_and_platform_can_be_exported(name):
    model, side = SMALL[name]
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, side, side, 3), np.float32)
    with platform.portable():
        program = jax.export.export(jax.jit(model.apply), platforms=("cpu", "cuda", "tpu"))
        exported = program(abstract_variables(model, IMAGE), images)
    assert exported.out_avals[0].shape == (batch, 3)


@pytest.mark.parametrize(("name", "multiple"), [("vit", 16), ("swin", 4)])
def test_transformers_refuse_sides_that_their_patches_do_not_divide(name, multiple):
    model, side = SMALL[name]
    assert model.side_multiple == multiple
    with pytest.raises(ValueError, match=f"sides divisible by {multiple}; got {side}x{side + 2}"):
        abstract_variables(model, jax.ShapeDtypeStruct((1, side, side + 2, 3), np.float32))
