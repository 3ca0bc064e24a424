"""Convolution, normalisation and squeeze-excite: the parts all networks are built of.

A convolution is computed in the form that its platform runs fastest; parameters and
results do not depend on the form. On CPU a depthwise convolution is a sum of shifted
slices, 30 to 90 times faster than XLA's grouped convolution, and one of wider groups a
few dense ones: at 24x24x128 in 32 groups, batch 32, its gradient takes 41 ms instead of
9.7 s. The gradient of a dense kernel is XLA's own only on small maps and in small
batches. Elsewhere the native convolution is kept. A 1x1 convolution is a matrix product
everywhere.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import dtypes
from jax import lax

KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
KAIMING_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
SAME = "same"  # padding as TensorFlow's networks have it, see `same_padding`
BLOCK = 32  # channels per dense convolution; on CPU 64 and 128 are slower, 16 no faster
# From how many images and pixels of a result on XLA's gradient of a dense kernel, which
# contracts over all of them on one core, is the slower form on CPU: up to 3 times as slow
# at 32 images, no slower at 16.
MANY_IMAGES, MANY_PIXELS = 24, 400


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, but never down by more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


@jax.custom_vjp
def swish(x: jax.Array) -> jax.Array:
    """Return x * sigmoid(x).

    The gradient stands behind a barrier: without it XLA on CPU recomputes the sigmoid
    in each of BatchNorm's reductions, which doubles the time of the backward pass. So
    does `x`: else the exponential of the forward pass is kept for the backward pass, and
    written and read in passes of its own, which is slower than computing it twice.
    """
    return x / (1 + jnp.exp(-x))  # a third of the time of x * sigmoid(x) on CPU


def _swish_backward(x, gradient):
    x = lax.optimization_barrier(x)
    gate = 1 / (1 + jnp.exp(-x))
    return (lax.optimization_barrier(gradient * gate * (1 + x * (1 - gate))),)


swish.defvjp(lambda x: (swish(x), x), _swish_backward)


def native_convolution(x, kernel, *, stride, padding, groups, dilation=1):
    """Return XLA's own convolution of [B, H, W, C] by a kernel [h, w, C / groups, O]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _taps(x, side, stride, padding, dilation=1):
    """Yield (row, column, slice) of every kernel tap: what the tap multiplies."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    reach = (side - 1) * dilation + 1
    height, width = ((n - reach) // stride + 1 for n in x.shape[1:3])
    for i, j in itertools.product(range(side), repeat=2):
        top, left = i * dilation, j * dilation
        stop = (top + (height - 1) * stride + 1, left + (width - 1) * stride + 1)
        window = (0, top, left, 0), (x.shape[0], *stop, x.shape[3])
        yield i, j, lax.slice(x, *window, (1, stride, stride, 1))


def _shifted(x, kernel, *, stride, padding, dilation=1):
    """Convolve depthwise as the sum over taps of shifted, strided slices."""
    taps = _taps(x, kernel.shape[0], stride, padding, dilation)
    return sum(tap * kernel[i : i + 1, j : j + 1] for i, j, tap in taps)


def _gradients(form, x, kernel, gradient, **where):
    return jax.vjp(functools.partial(form, **where), x, kernel)[1](gradient)


def _shifted_gradients(x, kernel, gradient, *, stride, padding, dilation=1):
    side = kernel.shape[0]
    # dx is the gradient, spread by the stride, convolved with the turned kernel.
    before = (side - 1) * dilation - padding
    spread = [
        (before, n + padding - ((m - 1) * stride + 1), stride - 1)
        for n, m in zip(x.shape[1:3], gradient.shape[1:3])
    ]
    zero = jnp.zeros((), gradient.dtype)
    spread = lax.pad(gradient, zero, [(0, 0, 0), *spread, (0, 0, 0)])
    turned = kernel[::-1, ::-1]
    dx = _shifted(spread, turned, stride=1, padding=0, dilation=dilation)
    # One pass for all taps: as separate sums XLA reads the maps once per tap, seven
    # times slower. Summing within images first keeps the passes parallel.
    products = [
        (tap * gradient).astype(jnp.float32)
        for _, _, tap in _taps(x, side, stride, padding, dilation)
    ]
    sums = lax.reduce(
        products,
        [jnp.float32(0)] * len(products),
        lambda one, other: [a + b for a, b in zip(one, other)],
        (1, 2),
    )
    dkernel = jnp.stack([total.sum(0) for total in sums]).reshape(kernel.shape)
    return dx, dkernel.astype(kernel.dtype)


def _by_platform(cpu, default, **where):
    """Choose the form when the program is lowered, from the platform it is for."""
    cpu, default = (functools.partial(form, **where) for form in (cpu, default))
    return lambda *args: lax.platform_dependent(*args, cpu=cpu, default=default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int = 1
) -> jax.Array:
    """Convolve each channel with its own kernel.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, C].
      stride: step in pixels, both ways.
      padding: zeros added on each side.
      dilation: pixels from one tap of the kernel to the next.
    """
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    native = functools.partial(native_convolution, groups=x.shape[-1])
    return _by_platform(_shifted, native, **where)(x, kernel)


def _depthwise_backward(stride, padding, dilation, residuals, gradient):
    # Chosen by platform again: differentiating through the choice would keep the
    # residuals of both forms.
    # The barrier keeps XLA from computing the maps again for every tap.
    native = functools.partial(native_convolution, groups=residuals[0].shape[-1])
    native = functools.partial(_gradients, native)
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    backward = _by_platform(_shifted_gradients, native, **where)
    maps = lax.optimization_barrier((*residuals, gradient))
    return lax.optimization_barrier(backward(*maps))


depthwise.defvjp(
    lambda x, kernel, *where: (depthwise(x, kernel, *where), (x, kernel)),
    _depthwise_backward,
)


def _blocked(x, kernel, *, stride, padding, groups):
    """Convolve as many groups at once as `BLOCK` channels hold, zeros between them."""
    _, _, channels, features = kernel.shape  # channels of one group, features of all
    at_once = max(1, BLOCK // channels)
    parts = []
    for start in range(0, groups, at_once):
        n = min(at_once, groups - start)
        part = slice(start * features // groups, (start + n) * features // groups)
        diagonal = np.kron(np.eye(n), np.ones((channels, features // groups)))
        diagonal = diagonal.astype(kernel.dtype)[None, None]
        dense = jnp.tile(kernel[..., part], (1, 1, n, 1)) * diagonal
        part = slice(start * channels, (start + n) * channels)
        where = {"stride": stride, "padding": padding, "groups": 1}
        parts.append(native_convolution(x[..., part], dense, **where))
    return jnp.concatenate(parts, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def grouped(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int
) -> jax.Array:
    """Convolve each group of channels with its own kernels.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C / groups, features], of all groups one after the other.
      stride: step in pixels, both ways.
      padding: zeros added on each side.
      groups: how many; divides C and the features.
    """
    where = {"stride": stride, "padding": padding, "groups": groups}
    return _by_platform(_blocked, native_convolution, **where)(x, kernel)


def _grouped_backward(stride, padding, groups, residuals, gradient):
    forms = (
        functools.partial(_gradients, form) for form in (_blocked, native_convolution)
    )
    where = {"stride": stride, "padding": padding, "groups": groups}
    return _by_platform(*forms, **where)(*residuals, gradient)


grouped.defvjp(
    lambda x, kernel, *where: (grouped(x, kernel, *where), (x, kernel)),
    _grouped_backward,
)


def _native_dkernel(x, gradient, *, side, **where):
    kernel = jnp.zeros((side, side, x.shape[-1], gradient.shape[-1]), x.dtype)
    convolve = functools.partial(native_convolution, x, groups=1, **where)
    return jax.vjp(convolve, kernel)[1](gradient)[0]


def _product_dkernel(x, gradient, *, side, **where):
    """Return the gradient of a dense kernel as matrix products, of two images each.

    What all taps of two large maps multiply fits into a cache, that of a batch does not;
    one image alone leaves the cores less to share.
    """
    at_once = 2 - len(x) % 2
    channels, features = x.shape[-1], gradient.shape[-1]

    def add(total, some):
        x, gradient = some
        taps = jnp.concatenate([tap for _, _, tap in _taps(x, side, **where)], -1)
        # The features first: three quarters of the time of the other order.
        return total + jnp.matmul(
            gradient.reshape(-1, features).T,
            taps.reshape(-1, side**2 * channels),
            preferred_element_type=jnp.float32,
        ), None

    total = jnp.zeros((features, side**2 * channels), jnp.float32)
    parts = (a.reshape(-1, at_once, *a.shape[1:]) for a in (x, gradient))
    total, _ = lax.scan(add, total, tuple(parts))
    return total.T.reshape(side, side, channels, features).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dense(
    x: jax.Array, kernel: jax.Array, stride: int, padding: int, dilation: int = 1
) -> jax.Array:
    """Convolve all channels with all kernels: `native_convolution` but for its gradient.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, features].
      stride: step in pixels, both ways.
      padding: zeros added on each side.
      dilation: pixels from one tap of the kernel to the next.
    """
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    return native_convolution(x, kernel, groups=1, **where)


def _dense_backward(stride, padding, dilation, residuals, gradient):
    x, kernel = residuals
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    convolve = functools.partial(native_convolution, groups=1, **where)
    (dx,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](gradient)
    images, height, width, _ = gradient.shape
    many = images >= MANY_IMAGES and height * width >= MANY_PIXELS
    form = _product_dkernel if many else _native_dkernel
    where["side"] = kernel.shape[0]
    return dx, _by_platform(form, _native_dkernel, **where)(x, gradient)


dense.defvjp(
    lambda x, kernel, *where: (dense(x, kernel, *where), (x, kernel)), _dense_backward
)


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply every pixel of [B, H, W, C] by a matrix [C, features].

    As two matrices: contracting over three axes, XLA on CPU first copies the gradient of
    the kernel's operands, which takes up to six times as long as the product.
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after `size` pixels for ceil(size / stride) results.

    TensorFlow's SAME. Where their number is odd, the last one comes after: a strided
    3x3 convolution has none before and one after at even sizes, one of each at odd ones.
    """
    needed = (-(-size // stride) - 1) * stride + kernel
    zeros = max(needed - size, 0)
    return zeros // 2, zeros - zeros // 2


def _pad_same(x, kernel, stride):
    """Return x, padded where sides differ, and the padding that all sides still need."""
    sides = [same_padding(n, kernel, stride) for n in x.shape[1:3]]
    (first, _), _ = sides
    if all(side == (first, first) for side in sides):
        return x, first
    return jnp.pad(x, ((0, 0), *sides, (0, 0))), 0


class Conv(nn.Module):
    """Square 2-D convolution; `padding` zeros on every side, none by default, or `SAME`.

    `dilation` pixels lie from one tap of the kernel to the next, in one group or with a
    group for each channel. Parameters: `kernel` [k, k, C / groups, features] and, if
    asked for, `bias`.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    padding: int | str = 0
    groups: int = 1
    dilation: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = KAIMING

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (
            self.kernel,
            self.kernel,
            x.shape[-1] // self.groups,
            self.features,
        )
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,))
            if self.use_bias
            else None
        )
        x, kernel, bias = dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = self._convolve(x, kernel)
        return x if bias is None else x + bias[None, None, None]

    def _convolve(self, x, kernel):
        padding = self.padding
        if padding == SAME:
            x, padding = _pad_same(x, self.kernel, self.stride)
        if self.kernel == 1 and self.groups == 1 and padding == 0:
            return pointwise(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        if self.groups == x.shape[-1] == self.features:
            return depthwise(x, kernel, self.stride, padding, self.dilation)
        if self.groups > 1:
            return grouped(x, kernel, self.stride, padding, self.groups)
        return dense(x, kernel, self.stride, padding, self.dilation)


def batch_norm(**kwargs) -> nn.BatchNorm:
    """BatchNorm with PyTorch's defaults; statistics are float32 whatever `dtype`."""
    return nn.BatchNorm(**{"momentum": 0.9, "epsilon": 1e-5, **kwargs})


def conv_bn(
    x: jax.Array,
    features: int,
    names: tuple[str, str],
    *,
    train: bool,
    axis_name: str | None,
    dtype: jnp.dtype,
    norm: dict | None = None,
    **conv,
) -> jax.Array:
    """Convolve and normalise; to be called inside a module.

    Args:
      x: [B, H, W, C].
      features: channels of the result.
      names: of the two modules.
      norm: arguments of `batch_norm` that differ from PyTorch's defaults.
      **conv: arguments of `Conv`.
    """
    x = Conv(features, dtype=dtype, name=names[0], **conv)(x)
    return batch_norm(
        use_running_average=not train,
        axis_name=axis_name,
        dtype=dtype,
        name=names[1],
        **(norm or {}),
    )(x)


def max_pool(x: jax.Array, side: int, stride: int, padding: int) -> jax.Array:
    """Take the maximum of every window of a map [B, H, W, C] that is never negative.

    As the maximum of shifted slices: the gradient of XLA's own pooling takes longer on
    CPU (benchmarks/training_step.py). Zero padding needs values that are not negative,
    such as ReLU's.
    """
    taps = _taps(x, side, stride, padding)
    return functools.reduce(jnp.maximum, (tap for _, _, tap in taps))


def average_pool(x: jax.Array, side: int, stride: int) -> jax.Array:
    """Take the mean of every window of a map [B, H, W, C] that lies inside it."""
    return sum(tap for _, _, tap in _taps(x, side, stride, 0)) / side**2


class Scope(nn.Module):
    """Give the modules that a function makes, names under this module's own."""

    function: Callable

    @nn.compact
    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the mean over the whole map."""

    squeezed: int
    names: tuple[str, str]
    activation: Callable = swish
    gate: Callable = nn.sigmoid
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """Scale the channels of [B, H, W, C] by gates of `mean` [B, 1, 1, C].

        Without it, of the mean over the map; a tile of a larger map is given the whole's.
        """
        conv = functools.partial(Conv, use_bias=True, dtype=self.dtype)
        pooled = x.mean((1, 2), keepdims=True) if mean is None else mean
        hidden = self.activation(conv(self.squeezed, name=self.names[0])(pooled))
        return x * self.gate(conv(x.shape[-1], name=self.names[1])(hidden))
