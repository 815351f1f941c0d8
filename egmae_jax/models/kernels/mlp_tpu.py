"""LayerNorm and MLP of a ConvNeXt block with its residual connection for TPUs, in Pallas.

XLA writes the hidden layer, four times as wide as the block, to memory and reads it again, and
computes norms in several passes. Here a tile of pixels stays in the core's own memory from the
norm to the sum with the block's input. The backward pass keeps only the norm's input and computes
the hidden layer again, which costs one product more of seven. The gradients of biases and norms
are by-products.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from egmae_jax.core import sharding
from egmae_jax.models.kernels.operations import largest_divisor

BATCH_TILE = 16  # images at a time; as many rows as a tile of bfloat16 has
# Of a tile, whose program would be long with more; the backward pass's is three times as long.
_MOST_PIXELS = 64
_MOST_PIXELS_BACKWARD = 32
_FEWEST_PIXELS = 16  # otherwise a tile of the backward pass is as large as of the forward pass
_MOST_VALUES = 100 * 2**10  # of the norm at a time
_MOST_WEIGHTS = 96 * 2**10  # of a layer at a time
_LANES = 128  # of a vector
_MEMORY = 100 * 2**20  # bytes of a core's own memory that a program may take
EPSILON = 1e-6  # of the norm


class Weights(NamedTuple):
    """Parameters of the norm and the MLP."""

    scale: jax.Array  # of the norm, [C]
    bias: jax.Array  # of the norm, [C]
    kernel1: jax.Array  # [C, D]
    bias1: jax.Array  # [D]
    kernel2: jax.Array  # [D, C]
    bias2: jax.Array  # [C]
    gamma: jax.Array  # layer scale of the MLP's result, [C]


# logit of the normal distribution function Phi(x), divided by 2 x, as a polynomial of x ** 2. The
# error of x Phi(x) is below .14 of a rounding to bfloat16, or below 1e-6.
_HALF_LOGIT = (
    0.79736273798264,
    0.03701530645676,
    -0.000298904322694,
    -1.06112182436e-5,
    3.852140667e-7,
)


def normal_cdf(x: jax.Array) -> jax.Array:
    """Phi(x), float32, as a hyperbolic tangent, which a TPU has an instruction for."""
    squares = x * x
    polynomial = jnp.full_like(x, _HALF_LOGIT[-1])
    for coefficient in _HALF_LOGIT[-2::-1]:
        polynomial = polynomial * squares + coefficient
    return 0.5 + 0.5 * jnp.tanh(x * polynomial)


def is_supported(x: jax.ShapeDtypeStruct | jax.Array) -> bool:
    """Whether `forward` and `backward` compute features [B, H, W, C], B that of all devices."""
    batch, height, width, channels = x.shape
    size = x.dtype.itemsize
    rows = BATCH_TILE * largest_divisor(height * width, _MOST_PIXELS)
    weights = 4 * channels**2 * 4 * 4  # two kernels and their gradients, in float32
    tile = rows * (channels * (6 * size + 4 * 4) + _hidden_tile(channels, 4 * channels) * 6 * 4)
    is_whole = batch % (BATCH_TILE * sharding.batch_parts()) == 0
    return is_whole and weights + tile < _MEMORY


@jax.jit  # so equal blocks share a trace
def forward(x: jax.Array, y: jax.Array, scales: jax.Array, weights: Weights) -> jax.Array:
    """x + scales * gamma * mlp(layer_norm(y)).

    Args:
        x: input of the block [H, W, B, C].
        y: output of its depthwise convolution [H, W, B, C], in the dtype of `x`.
        scales: float32 [B], factors of drop path.
        weights: the parameters, of any dtype.
    """
    call = _Call(y, _hidden(weights))
    kernel = functools.partial(_forward, chunk=call.chunk)
    arrays = [
        *(call.pixels(a) for a in (x, y)),
        call.scales(scales),
        *(call.whole(a) for a in _float32(weights)),
    ]
    scratch = [(call.rows, y.shape[-1], y.dtype), (call.rows, y.shape[-1], jnp.float32)]
    (out,) = call(kernel, "block_mlp", arrays, [call.pixels(x)], scratch, products=2)
    return out.reshape(x.shape)


@jax.jit
def backward(
    gradient: jax.Array, y: jax.Array, scales: jax.Array, weights: Weights
) -> tuple[jax.Array, jax.Array, Weights]:
    """Gradients of `forward` by the convolution's output and the parameters.

    Args:
        gradient: gradient of the result [H, W, B, C], which is also that of `x`.
        y: as in `forward`.
        scales: as in `forward`.
        weights: as in `forward`.

    Returns:
        The gradient of `y` [H, W, B, C], its sum over all pixels, float32 [C], and the gradients of
        the parameters in float32.
    """
    channels, hidden = y.shape[-1], _hidden(weights)
    call = _Call(y, hidden, _MOST_PIXELS_BACKWARD)
    kernel = functools.partial(_backward, chunk=call.chunk)
    arrays = [
        *(call.pixels(a) for a in (gradient, y)),
        call.scales(scales),
        *(call.whole(a) for a in _float32(weights)),
    ]
    sums = [(1, channels)] * 4 + [(1, hidden)] + [(channels, hidden)] * 2
    outputs = [
        call.pixels(y),
        *(call.whole(jax.ShapeDtypeStruct(shape, jnp.float32)) for shape in sums),
    ]
    rows = call.rows
    scratch = [
        (rows, channels, y.dtype),
        (rows, channels, y.dtype),
        (channels, rows, y.dtype),
        (channels, rows, y.dtype),
        (rows, channels, jnp.float32),
    ]
    results = call(kernel, "block_mlp_gradient", arrays, outputs, scratch, products=5)
    y_gradient, total, scale, bias, bias2, bias1, kernel1, kernel2 = results
    # Up to here `kernel2` and `bias2` are gradients by these weights times gamma.
    kernel2, bias2 = kernel2.T, bias2[0]
    gamma = (kernel2 * weights.kernel2).sum(axis=0) + bias2 * weights.bias2
    kernel2, bias2 = kernel2 * weights.gamma, bias2 * weights.gamma
    gradients = Weights(scale[0], bias[0], kernel1, bias1[0], kernel2, bias2, gamma)
    return y_gradient.reshape(y.shape), total[0], gradients


def _float32(weights: Weights) -> Weights:
    """The parameters in float32, vectors as [1, C or D]."""
    return jax.tree.map(lambda a: a.astype(jnp.float32).reshape(-1, a.shape[-1]), weights)


def _hidden(weights: Weights) -> int:
    return weights.kernel1.shape[1]


def _hidden_tile(channels: int, hidden: int) -> int:
    """Channels of the hidden layer at a time."""
    most = max(_LANES, _MOST_WEIGHTS // channels)
    if hidden <= most or hidden % _LANES:
        return hidden
    return _LANES * largest_divisor(hidden // _LANES, most // _LANES)


class _Call:
    """A Pallas call over tiles of pixels [H * W, B, C] with parameters that stay in place."""

    def __init__(self, y: jax.Array, hidden: int, most_pixels: int = _MOST_PIXELS):
        height, width, self.batch, self.channels = y.shape
        self.count = height * width
        self.tile = largest_divisor(self.count, most_pixels)
        if self.tile < _FEWEST_PIXELS:
            self.tile = largest_divisor(self.count, _MOST_PIXELS)
        self.rows = self.tile * BATCH_TILE
        self.hidden, self.chunk = hidden, _hidden_tile(self.channels, hidden)

    def pixels(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        shape = self.count, self.batch, self.channels
        x = x.reshape(shape) if isinstance(x, jax.Array) else jax.ShapeDtypeStruct(shape, x.dtype)
        block = self.tile, BATCH_TILE, self.channels
        return x, pl.BlockSpec(block, lambda p, b: (p, b, 0))

    def scales(self, scales: jax.Array) -> tuple[jax.Array, pl.BlockSpec]:
        wide = jnp.broadcast_to(scales.astype(jnp.float32)[:, None], (self.batch, self.channels))
        return wide, pl.BlockSpec((BATCH_TILE, self.channels), lambda p, b: (b, 0))

    def whole(self, x: Any) -> tuple[Any, pl.BlockSpec]:
        once = pl.Buffered(1)
        return x, pl.BlockSpec(x.shape, lambda p, b: (0, 0), pipeline_mode=once)

    def __call__(
        self,
        kernel: Callable[..., None],
        name: str,
        arrays: list[Any],
        outputs: list[Any],
        scratch: list[Any],
        *,
        products: int,
    ) -> Any:
        inputs, in_specs = zip(*arrays, strict=True)
        shapes, out_specs = zip(*outputs, strict=True)
        rows = self.count * self.batch
        moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*inputs, *shapes))
        call = functools.partial(
            pl.pallas_call,
            kernel,
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes],
            grid=(self.count // self.tile, self.batch // BATCH_TILE),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM((m, n), dtype) for m, n, dtype in scratch],
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_MEMORY + 2**20),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * rows * self.channels * self.hidden,
                bytes_accessed=moved,
                transcendentals=(products - 1) // 2 * rows * self.hidden,
            ),
            name=name,
        )
        return lax.platform_dependent(
            *inputs, tpu=lambda *x: call()(*x), default=lambda *x: call(interpret=True)(*x)
        )


def _rows(x: jax.Array) -> jax.Array:
    """[P, B, C] -> float32 [P * B, C]."""
    return x.astype(jnp.float32).reshape(-1, x.shape[-1])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _dot_transposed(a: jax.Array, b: jax.Array) -> jax.Array:
    """[N, D] and [C, D] -> [N, C]."""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _normalized(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns [N, C], normalized, and the reciprocal of the standard deviations, [N, 1]."""
    centred = y - y.mean(axis=-1, keepdims=True)
    rate = lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON)
    return centred * rate, rate


def _over_pixels(ref: Any, body: Callable[[Any, Any], None]) -> None:
    """Calls a function with slices of a few pixels of a tile [P, B, C] and of their rows."""
    count, batch, channels = ref.shape
    pixels = largest_divisor(count, max(1, _MOST_VALUES // (batch * channels)))
    rows = pixels * batch

    def turn(index: jax.Array, _: None) -> None:
        body(pl.ds(index * pixels, pixels), pl.ds(pl.multiple_of(index * rows, rows), rows))

    lax.fori_loop(0, count // pixels, turn, None)


def _over_chunks(hidden: int, chunk: int, body: Callable[[Any], None]) -> None:
    def turn(index: jax.Array, _: None) -> None:
        body(pl.ds(pl.multiple_of(index * chunk, chunk), chunk))

    if hidden == chunk:
        body(slice(None))
    else:
        lax.fori_loop(0, hidden // chunk, turn, None)


def _forward(
    x_ref,
    y_ref,
    scales_ref,
    scale_ref,
    bias_ref,
    kernel1_ref,
    bias1_ref,
    kernel2_ref,
    bias2_ref,
    gamma_ref,
    out_ref,
    z_ref,
    sum_ref,
    *,
    chunk,
):
    dtype = z_ref.dtype

    def normalize(pixels, rows):
        normalized, _ = _normalized(_rows(y_ref[pixels]))
        z_ref[rows] = (normalized * scale_ref[...] + bias_ref[...]).astype(dtype)
        shape = normalized.shape
        sum_ref[rows] = jnp.broadcast_to(bias2_ref[...] * gamma_ref[...], shape)

    def add(part):
        a = _dot(z_ref[...], kernel1_ref[:, part].astype(dtype)) + bias1_ref[:, part]
        h = (a * normal_cdf(a)).astype(dtype)
        sum_ref[...] += _dot(h, (kernel2_ref[part, :] * gamma_ref[...]).astype(dtype))

    def add_input(pixels, rows):
        x = x_ref[pixels].astype(jnp.float32)
        update = sum_ref[rows].reshape(x.shape) * scales_ref[...][None]
        out_ref[pixels] = (x + update).astype(out_ref.dtype)

    _over_pixels(x_ref, normalize)
    _over_chunks(kernel1_ref.shape[1], chunk, add)
    _over_pixels(x_ref, add_input)


def _backward(
    gradient_ref,
    y_ref,
    scales_ref,
    scale_ref,
    bias_ref,
    kernel1_ref,
    bias1_ref,
    kernel2_ref,
    _,
    gamma_ref,
    out_ref,
    total_ref,
    scale_sum_ref,
    bias_sum_ref,
    bias2_sum_ref,
    bias1_sum_ref,
    kernel1_sum_ref,
    kernel2_t_sum_ref,
    z_ref,
    g_ref,
    z_t_ref,
    g_t_ref,
    sum_ref,
    *,
    chunk,
):
    sums = (total_ref, scale_sum_ref, bias_sum_ref, bias2_sum_ref, bias1_sum_ref)

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _():
        for ref in (*sums, kernel1_sum_ref, kernel2_t_sum_ref):
            ref[...] = jnp.zeros_like(ref)

    dtype = z_ref.dtype

    def normalize(pixels, rows):
        normalized, _ = _normalized(_rows(y_ref[pixels]))
        z_ref[rows] = (normalized * scale_ref[...] + bias_ref[...]).astype(dtype)
        g = _rows(gradient_ref[pixels].astype(jnp.float32) * scales_ref[...][None])
        bias2_sum_ref[...] += g.sum(axis=0, keepdims=True)
        g_ref[rows] = g.astype(dtype)
        sum_ref[rows] = jnp.zeros_like(g)

    def add(part):
        kernel1 = kernel1_ref[:, part].astype(dtype)
        kernel2 = (kernel2_ref[part, :] * gamma_ref[...]).astype(dtype)
        a = _dot(z_ref[...], kernel1) + bias1_ref[:, part]
        cdf = normal_cdf(a)
        density = jnp.exp(-0.5 * (a * a)) * (1 / math.sqrt(2 * math.pi))
        da = _dot_transposed(g_ref[...], kernel2) * (cdf + a * density)
        bias1_sum_ref[:, part] += da.sum(axis=0, keepdims=True)
        da, h = da.astype(dtype), (a * cdf).astype(dtype)
        kernel1_sum_ref[:, part] += _dot(z_t_ref[...], da)
        kernel2_t_sum_ref[:, part] += _dot(g_t_ref[...], h)
        sum_ref[...] += _dot_transposed(da, kernel1)

    def differentiate_norm(pixels, rows):
        dz = sum_ref[rows]
        normalized, rate = _normalized(_rows(y_ref[pixels]))
        scale_sum_ref[...] += (dz * normalized).sum(axis=0, keepdims=True)
        bias_sum_ref[...] += dz.sum(axis=0, keepdims=True)
        dn = dz * scale_ref[...]
        mean = dn.mean(axis=-1, keepdims=True)
        dy = rate * (dn - mean - normalized * (dn * normalized).mean(axis=-1, keepdims=True))
        total_ref[...] += dy.sum(axis=0, keepdims=True)
        out_ref[pixels] = dy.reshape(-1, *out_ref.shape[1:]).astype(out_ref.dtype)

    _over_pixels(y_ref, normalize)
    z_t_ref[...], g_t_ref[...] = z_ref[...].T, g_ref[...].T
    _over_chunks(kernel1_ref.shape[1], chunk, add)
    _over_pixels(y_ref, differentiate_norm)
