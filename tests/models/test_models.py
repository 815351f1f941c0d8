"""The networks' parts: convolution, drop path, initial values, the decoder and its mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from scipy import stats

from egmae_jax import models
from egmae_jax.models import mae
from egmae_jax.models.asff import ASFFResNet
from egmae_jax.models.convnext import ConvNeXt, ConvNeXtBlock
from egmae_jax.models.densenet import DenseNet
from egmae_jax.models.efficientnet import EfficientNet, Stage
from egmae_jax.models.init import abstract_variables, initial_variables
from egmae_jax.models.layers import drop_path_scales, global_response_norm
from egmae_jax.models.mae import Decoder, MaskedAutoencoder
from egmae_jax.models.model import Model
from egmae_jax.models.resnet import ResNet
from egmae_jax.models.swin import Swin
from egmae_jax.models.vit import ViT
from tests.tiny import flatten

SMALL = ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 8, 12, 16), num_classes=3)


def image_shape(height=32, width=32, batch=1):
    return jax.ShapeDtypeStruct((batch, height, width, 3), np.float32)


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def redrawn(params, seed=0):
    """Parameters none of which is zero or tiny, so that each one shows."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * rng.standard_normal(x.shape)).astype(np.float32), params)


# Drop path


def test_drop_path_drops_examples_at_its_rate_and_preserves_the_expectation():
    rate = 0.1
    scales = np.asarray(drop_path_scales(jax.random.key(0), [0.0, rate], 4000))
    assert (scales[0] == 1).all()
    dropped = scales[1] == 0
    np.testing.assert_allclose(scales[1][~dropped], 1 / (1 - rate), rtol=1e-6)
    assert stats.binomtest(int(dropped.sum()), 4000, rate).pvalue > 0.01
    # 0 or 1 / keep: variance rate / keep
    assert abs(scales[1].mean() - 1) < 3 * np.sqrt(rate / (1 - rate) / 4000)


def test_blocks_drop_independently():
    # Were two blocks to share a draw, the images of one would be among those of the other.
    dropped = np.asarray(drop_path_scales(jax.random.key(0), np.linspace(0.1, 0.9, 18), 4000)) == 0
    correlations = np.corrcoef(dropped)[np.triu_indices(18, 1)]
    assert abs(correlations).max() < 4.5 / np.sqrt(4000)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_block_scales_the_branch_of_each_example(dtype):
    block = ConvNeXtBlock(dtype=dtype)
    x = jnp.asarray(random(0, 3, 8, 8, 4), dtype)
    params = redrawn(jax.eval_shape(block.init, jax.random.key(0), x)["params"])

    def branch(scales):
        out = block.apply({"params": params}, x, scales)
        assert out.dtype == dtype
        return np.asarray(out - x, np.float32)

    whole, scaled = branch(None), branch(jnp.array([0.0, 1.0, 2.0]))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"atol": 0.05}
    np.testing.assert_array_equal(scaled[0], 0)
    np.testing.assert_allclose(scaled[1:], whole[1:] * [[[[1]]], [[[2]]]], **tolerance)


def test_every_block_gets_its_scales_and_only_in_training():
    model = ConvNeXt(depths=(2, 1, 1, 1), dims=(2, 3, 4, 5), num_classes=2, drop_path_rate=0.9)
    variables = {"params": redrawn(abstract_variables(model, image_shape())["params"])}
    images = random(1, 40, 32, 32, 3)
    seen = []

    def watch(next_method, args, kwargs, context):
        if isinstance(context.module, ConvNeXtBlock):
            seen.append((context.module.name, args[1]))
        return next_method(*args, **kwargs)

    with nn.intercept_methods(watch):
        model.apply(variables, images)  # needs no rng
        model.apply(variables, images, train=True, rngs={"drop_path": jax.random.key(0)})
    names, scales = zip(*seen, strict=True)
    assert names[:5] == names[5:] == ("blocks_0", "blocks_1", *["blocks_0"] * 3)
    assert scales[:5] == (None,) * 5
    for scale, rate in zip(scales[5:], np.linspace(0, 0.9, 5), strict=True):
        kept = np.asarray(scale) != 0
        np.testing.assert_allclose(scale[kept], 1 / (1 - rate), rtol=1e-6)
        assert stats.binomtest(int((~kept).sum()), 40, rate).pvalue > 0.001


# Initial parameters


@functools.lru_cache
def atto():
    return models.create("convnext_atto", 3)


def autoencoder_inputs():
    return image_shape(), jax.ShapeDtypeStruct((1, 2, 2), np.float32)


CASES = {
    "convnext_atto": (atto, lambda: (image_shape(),)),
    "autoencoder": (lambda: MaskedAutoencoder(SMALL, decoder_dim=32), autoencoder_inputs),
    "resnet": (
        lambda: ResNet((2, 1, 1, 1), (8, 12, 16, 20), False, num_classes=3),
        lambda: (image_shape(),),
    ),
    "asff_resnet": (
        lambda: ASFFResNet((1, 1, 1, 1), (8, 12, 16, 20), True, num_classes=3),
        lambda: (image_shape(),),
    ),
    "squeezenet": (lambda: models.create("squeezenet1_1", 3), lambda: (image_shape(),)),
    "densenet": (lambda: DenseNet((1, 1, 1, 1), 8, num_classes=3), lambda: (image_shape(),)),
    "efficientnet": (
        lambda: EfficientNet(
            False, num_classes=3, sizes=(Stage(1, 3, 1, 1, 8), Stage(1, 5, 2, 6, 8))
        ),
        lambda: (image_shape(),),
    ),
    "vit": (lambda: ViT(1, 24, 3, num_classes=3), lambda: (image_shape(),)),
    "swin": (lambda: Swin((1, 1, 1, 1), 8, (1, 1, 1, 2), num_classes=3), lambda: (image_shape(),)),
}


@pytest.mark.parametrize("case", CASES)
def test_initial_parameters_are_distributed_as_the_modules_declare(case):
    make, inputs = CASES[case]
    module = make()
    arrays = [jnp.zeros(x.shape, x.dtype) for x in inputs()]
    key = jax.random.key(0, impl="unsafe_rbg")  # another generator: it compiles in no time
    theirs = flatten(jax.device_get(jax.jit(module.init)(key, *arrays)["params"]))
    ours = flatten(jax.device_get(initial_variables(module, 0, *inputs())["params"]))
    assert list(ours) == list(theirs)
    for path, x in theirs.items():
        y = ours[path]
        assert (y.shape, y.dtype) == (x.shape, x.dtype), path
        if x.std() == 0:
            np.testing.assert_array_equal(y, x, path)
            continue
        # Both are samples of one distribution: the differences have known deviations.
        deviation = np.sqrt(2 / x.size)
        assert abs(y.mean() - x.mean()) < 4.5 * deviation * x.std(), path
        assert abs(np.log(y.std() / x.std())) < 4.5 * deviation / np.sqrt(2), path
        assert stats.ks_2samp(x.ravel(), y.ravel()).pvalue > 1e-4, path


def test_initial_parameters_depend_on_seed_and_path_alone():
    first = flatten(initial_variables(SMALL, 0, image_shape())["params"])
    again = flatten(initial_variables(SMALL, 0, image_shape(64, 96, batch=5))["params"])
    other = flatten(initial_variables(SMALL, 1, image_shape())["params"])
    kernels = [path for path in first if path.endswith("kernel")]
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
        assert np.array_equal(first[path], other[path]) == (path not in kernels), path
    # Leaves of one shape are not copies of each other.
    values = [first[path].ravel()[:3].tobytes() for path in kernels]
    assert len(set(values)) == len(values)


def test_fan_in_keeps_the_variance_of_what_goes_through():
    params = initial_variables(atto(), 0, image_shape(), kernel_init="fan_in", layer_scale=0.1)[
        "params"
    ]
    for path, x in flatten(params).items():
        if path == "head/fc/kernel":
            assert x.std() == pytest.approx(0.02, rel=0.1)
        elif path.endswith("kernel"):
            fan_in = np.prod(x.shape[:-1])
            assert x.std() == pytest.approx(fan_in**-0.5, rel=5 / np.sqrt(x.size)), path
        elif path.endswith("gamma"):
            assert (x == np.float32(0.1)).all()


def test_a_network_without_deviations_of_its_own_is_initialized_by_its_initializers():
    class Other(Model):
        @nn.compact
        def __call__(self, x, *, train=False):
            x = nn.Dense(5, kernel_init=nn.initializers.xavier_uniform())(x)
            return x * self.param("temperature", nn.initializers.ones, ())

    ours = initial_variables(Other(num_classes=5), 7, image_shape())
    theirs = Other(num_classes=5).init(jax.random.key(7), np.zeros(image_shape().shape))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# ConvNeXt V2


def test_channels_without_any_response_have_a_finite_gradient():
    def loss(x):
        return jnp.square(global_response_norm(x, jnp.ones(2), jnp.zeros(2))).sum()

    x = random(0, 2, 5, 2)
    x[..., 1] = 0
    assert np.isfinite(jax.grad(loss)(x)).all()
    assert np.isfinite(jax.grad(loss)(np.zeros_like(x))).all()


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_rematerialization_changes_no_variable(name):
    plain, again = (
        abstract_variables(models.create(name, 3, remat=remat)) for remat in (False, True)
    )
    assert jax.tree.structure(plain) == jax.tree.structure(again)


# The classifier


@jax.jit
def apply_small(params, images):
    return SMALL.apply({"params": params}, images)


def test_logits_have_the_batch_and_the_classes_and_do_not_mix_examples():
    params = redrawn(abstract_variables(SMALL, image_shape())["params"])
    images = random(0, 3, 64, 96, 3)
    logits = apply_small(params, images)
    assert (logits.shape, logits.dtype) == ((3, 3), jnp.float32)
    np.testing.assert_allclose(apply_small(params, images[::-1]), logits[::-1], atol=1e-5)
    assert np.ptp(logits, axis=0).min() > 1e-3


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 33)])
def test_image_sides_that_the_stride_does_not_divide_are_refused(height, width):
    with pytest.raises(ValueError, match=f"divisible by 32; got {height}x{width}"):
        abstract_variables(SMALL, image_shape(height, width))["params"]


HALF = functools.partial(models.create, num_classes=3, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
    "make",
    [
        *(
            functools.partial(HALF, name)
            for name in (
                *("convnext_atto", "resnet18", "asff_resnet50", "squeezenet1_0", "efficientnet_b0"),
                *("densenet121", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"),
            )
        ),
        lambda: MaskedAutoencoder(HALF("convnext_atto"), decoder_dim=16),
    ],
)
def test_bfloat16_compute_keeps_parameters_and_results_in_float32(make):
    model = make()
    is_classifier = not isinstance(model, MaskedAutoencoder)
    inputs = (image_shape(64, 64),) if is_classifier else autoencoder_inputs()
    shapes = abstract_variables(model, *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
    assert jax.eval_shape(model.apply, shapes, *inputs).dtype == jnp.float32
    if is_classifier:
        features = functools.partial(model.apply, method="features")
        assert jax.eval_shape(features, shapes, *inputs).dtype == jnp.bfloat16


def test_bfloat16_compute_is_float32_to_three_digits():
    params = redrawn(abstract_variables(SMALL, image_shape())["params"])
    images = random(0, 3, 64, 96, 3)
    half = SMALL.copy(dtype=jnp.bfloat16)
    logits = jax.jit(half.apply)({"params": params}, images)
    expected = apply_small(params, images)
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.03  # 0 would mean that nothing was computed in bfloat16


# The masked autoencoder


@pytest.mark.parametrize("patch_size", [8, 48])
def test_the_autoencoder_gives_an_image_whatever_the_patch_size(patch_size):
    model = MaskedAutoencoder(SMALL, decoder_dim=16)
    mask = jax.ShapeDtypeStruct((2, 96 // patch_size, 192 // patch_size), np.float32)
    images = image_shape(96, 192, batch=2)
    variables = jax.eval_shape(model.init, jax.random.key(0), images, mask)
    result = jax.eval_shape(model.apply, variables, images, mask)
    assert (result.shape, result.dtype) == ((2, 96, 192, 3), jnp.float32)
    assert sorted(variables["params"]) == ["decoder", "encoder", "mask_token"]
    assert "head" not in variables["params"]["encoder"]


@pytest.mark.parametrize("patch_size", [6, 8, 32, 48])
def test_the_masked_share_of_a_cell_is_that_of_its_pixels(patch_size):
    height, width = 96, 192
    shape = (2, height // patch_size, width // patch_size)
    mask = (np.random.default_rng(0).uniform(size=shape) < 0.5).astype(np.float32)
    pixels = np.kron(mask, np.ones((1, patch_size, patch_size)))
    expected = pixels.reshape(2, height // 32, 32, width // 32, 32).mean(axis=(2, 4))
    share = mae._masked_share(jnp.asarray(mask), height // 32, width // 32)
    np.testing.assert_allclose(share, expected, atol=1e-6)


def decoder_without_blocks(features):
    """A decoder that is two linear layers, and its parameters: the first one the identity."""
    depth = features.shape[-1]
    decoder = Decoder(dim=depth, depth=0)
    params = {
        "embed": {"kernel": np.eye(depth, dtype=np.float32), "bias": np.zeros(depth, np.float32)},
        "mask_embedding": np.zeros((1, depth), np.float32),
        "predict": {"kernel": random(3, depth, 3072), "bias": np.zeros(3072, np.float32)},
    }
    return decoder, params


def test_the_decoder_puts_the_pixels_of_a_feature_where_the_feature_is():
    features = random(0, 2, 2, 3, 4)
    decoder, params = decoder_without_blocks(features)
    result = np.asarray(decoder.apply({"params": params}, features, np.zeros((2, 2, 3))))
    assert result.shape == (2, 64, 96, 3)
    for b, i, j in np.ndindex(2, 2, 3):
        cell = (features[b, i, j] @ params["predict"]["kernel"]).reshape(32, 32, 3)
        np.testing.assert_allclose(
            result[b, 32 * i : 32 * (i + 1), 32 * j : 32 * (j + 1)], cell, atol=1e-4
        )


def test_the_decoder_is_told_the_masked_share_of_every_cell():
    features = np.zeros((1, 2, 3, 4), np.float32)
    decoder, params = decoder_without_blocks(features)
    params["mask_embedding"] = random(4, 1, 4)
    mask = np.zeros((1, 4, 6), np.float32)  # P = 16: four patches a cell
    mask[0, 0, 2] = mask[0, 1, 3] = mask[0, 3, 5] = 1
    result = np.asarray(decoder.apply({"params": params}, features, mask))
    whole = (params["mask_embedding"][0] @ params["predict"]["kernel"]).reshape(32, 32, 3)
    shares = np.zeros((2, 3))
    shares[0, 1], shares[1, 2] = 0.5, 0.25
    expected = np.kron(shares[..., None], whole)
    np.testing.assert_allclose(result[0], expected, atol=1e-4)


def test_every_parameter_of_the_autoencoder_matters():
    model = MaskedAutoencoder(SMALL, decoder_dim=16)
    params = flatten(redrawn(abstract_variables(model, *autoencoder_inputs())["params"]))
    images, mask = random(0, 2, 32, 32, 3), np.ones((2, 2, 2), np.float32)

    @jax.jit
    def reconstruct(flat):
        params = traverse_util.unflatten_dict(flat, sep="/")
        return model.apply({"params": params}, images, mask)

    expected = reconstruct(params)
    without_effect = [
        path
        for path, leaf in params.items()
        if np.abs(reconstruct({**params, path: leaf * 1.5}) - expected).max() < 1e-4
    ]
    # The token stands for masked pixels, so it enters before the network, in `corrupt`.
    assert without_effect == ["mask_token"]
