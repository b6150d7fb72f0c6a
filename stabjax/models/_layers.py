"""The parts that the networks share."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from stabjax import conv
from stabjax._types import Images


@functools.cache
def fan_in_uniform(fan_in: int) -> Callable[..., Array]:
    """Return the initializer of PyTorch's layers: uniform within ``1 / sqrt(fan_in)``, biases too."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def parameter_dtype(dtype: Any) -> np.dtype:
    """Return the dtype of parameters; raise unless it is real, and JAX has it."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"expected param_dtype to be a floating-point dtype, got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"expected param_dtype of at most single precision, got {dtype}: double precision is switched off, and "
            'comes by jax.config.update("jax_enable_x64", True)'
        )
    return dtype


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    use_bias: bool = True,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Build a convolution that takes the fastest route of the device.

    ``padding`` zeros stand on each side, whatever the stride, as PyTorch counts them; ``(F - 1) // 2`` if None.
    """
    # fan_in: inputs of one unit of the result.
    init = fan_in_uniform(in_channels // groups * math.prod(kernel))
    # "SAME" would put the zeros elsewhere at strides above 1: 0 before and 1 behind for a kernel of 3 at stride 2 on an
    # even side, not 1 and 1.
    zeros = [(side - 1) // 2 if padding is None else padding for side in kernel]
    return nnx.Conv(
        in_channels,
        out_channels,
        kernel,
        stride,
        padding=tuple((n, n) for n in zeros),
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=init,
        bias_init=init,
        param_dtype=parameter_dtype(param_dtype),
        conv_general_dilated=conv.conv_general_dilated,
        rngs=rngs,
    )


def dense(in_features: int, out_features: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> nnx.Linear:
    """Build a dense layer with bias."""
    init, param_dtype = fan_in_uniform(in_features), parameter_dtype(param_dtype)
    return nnx.Linear(in_features, out_features, kernel_init=init, bias_init=init, param_dtype=param_dtype, rngs=rngs)


class BatchNorm(nnx.BatchNorm):
    """Batch normalization over all axes but the last, with PyTorch's conventions.

    The variance is that of the centered activations: the mean of squares less the square of the mean loses all digits
    where the mean is large. The running variance is the unbiased one, and moves a tenth of the way at each step.
    Statistics are in the precision of the parameters, in single precision at least.
    """

    def __init__(self, features: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        param_dtype = parameter_dtype(param_dtype)
        super().__init__(features, momentum=0.9, epsilon=1e-5, param_dtype=param_dtype, rngs=rngs)
        # The parent's statistics are always in single precision.
        statistics = np.promote_types(param_dtype, np.float32)
        self.mean = nnx.BatchStat(jnp.zeros((features,), statistics))
        self.var = nnx.BatchStat(jnp.ones((features,), statistics))

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  the parent's mask is not offered
        self, x: Float[Array, "batch *spatial channels"], use_running_average: bool | None = None
    ) -> Float[Array, "batch *spatial channels"]:
        """Return the normalized activations, by running statistics in evaluation mode, else by those of the batch."""
        compute = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
        axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]

        def along_channels(v: Array) -> Array:
            return jnp.reshape(v.astype(compute), (1,) * len(axes) + (-1,))

        if self.use_running_average if use_running_average is None else use_running_average:
            centered, variance = x.astype(compute) - along_channels(self.mean[...]), self.var[...]
        else:
            # Two passes, mean and then squares of what is centered: E[x^2] - E[x]^2 loses its digits at a large mean.
            mean = jnp.mean(x, axes, dtype=compute)
            centered = x.astype(compute) - along_channels(mean)
            # The batch is normalized by the biased variance; the running one takes count / (count - 1) of it, as
            # PyTorch.
            variance = jnp.mean(jnp.square(centered), axes)
            for average, value in ((self.mean, mean), (self.var, variance * (count / max(count - 1, 1)))):
                old = average[...]
                average[...] = lax.stop_gradient(self.momentum * old + (1 - self.momentum) * value.astype(old.dtype))
        scale, bias = (along_channels(p[...]) for p in (self.scale, self.bias) if p is not None)
        # gamma / sqrt(var + eps) first, on one number for each channel: one product on the large array.
        return (centered * (lax.rsqrt(along_channels(variance) + self.epsilon) * scale) + bias).astype(x.dtype)


class LayerNorm(nnx.LayerNorm):
    """Layer normalization over the last axis, by the variance of the centered activations."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  the parent's mask is not offered
        self, x: Float[Array, "batch *places channels"]
    ) -> Float[Array, "batch *places channels"]:
        """Return the normalized activations, in the shape and dtype of ``x``."""
        compute = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
        centered = x.astype(compute)
        centered = centered - jnp.mean(centered, -1, keepdims=True)
        normed = centered * lax.rsqrt(jnp.mean(jnp.square(centered), -1, keepdims=True) + 1e-6)
        scale, bias = (
            jnp.reshape(p[...].astype(compute), (1,) * (x.ndim - 1) + (-1,))
            for p in (self.scale, self.bias)
            if p is not None
        )
        return (normed * scale + bias).astype(x.dtype)


class ConvNorm(nnx.Module):
    """Convolution, batch normalization where asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        *,
        norm: bool = True,
        use_bias: bool = False,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = convolution(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            use_bias=use_bias,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(out_channels, param_dtype=param_dtype, rngs=rngs) if norm else None

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the response, ``(batch, *spatial, out_channels)``."""
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


class ConvBlock(ConvNorm):
    """Convolution, batch normalization where asked for, ReLU."""

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the rectified response, ``(batch, *spatial, out_channels)``."""
        return jax.nn.relu(super().__call__(x))


class NormConv(nnx.Module):
    """Batch normalization, ReLU, convolution without bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm = BatchNorm(in_channels, param_dtype=param_dtype, rngs=rngs)
        self.conv = convolution(in_channels, out_channels, kernel, use_bias=False, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch *spatial channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the response, ``(batch, *spatial, out_channels)``."""
        return self.conv(jax.nn.relu(self.norm(x)))


def max_pool(x: Float[Array, "batch *spatial_in channels"], window: int) -> Float[Array, "batch *spatial channels"]:
    """Take the largest value of each ``window``-wide box, without overlap.

    The windows become axes of their own: on the CPU the gradient of that maximum is a few times faster than the
    scatter which the gradient of a windowed reduction needs.
    """
    return _pool(jnp.max, x, window)


def average_pool(x: Float[Array, "batch *spatial_in channels"], window: int) -> Float[Array, "batch *spatial channels"]:
    """Take the mean of each ``window``-wide box, without overlap."""
    return _pool(jnp.mean, x, window)


def _pool(reduce: Callable[..., Array], x: Array, window: int) -> Array:
    """Give each window axes of its own, ``(batch, h, window, w, window, channels)``, and reduce over these."""
    batch, *spatial, channels = x.shape
    split = [side for n in spatial for side in (n // window, window)]
    # (b, h, window, w, window, c): the windows are axes 2 and 4.
    return reduce(jnp.reshape(x, (batch, *split, channels)), axis=tuple(range(2, 2 * len(spatial) + 1, 2)))


def scale_channels(name: str, channels: int, width: float | int, *, multiple: int = 1) -> int:
    """Return ``width * channels`` rounded to a multiple, at least one; raise unless the factor is positive."""
    if not width > 0:
        raise ValueError(f"{name}: expected a positive width factor, got {width}; 1 is the published width")
    # round takes halves to the even number: 0.5 of 5 channels are 2, of 7 are 4.
    return max(1, round(width * channels / multiple)) * multiple


def pad_small(x: Float[Array, "batch *spatial_in channels"]) -> Float[Array, "batch *spatial channels"]:
    """Put images of 28 x 28 in a frame of two zero pixels; return others as they are."""
    if x.shape[1:-1] != (28, 28):
        return x
    return jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))


def check_images(name: str, x: Images, *, channels: int, ndim: int = 2) -> Float[Array, "batch *spatial channels"]:
    """Return the batch as a JAX array; raise unless it has that many channels and spatial axes."""
    if x.ndim != ndim + 2:
        raise ValueError(
            f"{name}: expected a batch (batch, {', '.join('n' * ndim)}, {channels}), got shape {x.shape}; "
            "a single image needs a batch axis in front"
        )
    if x.shape[-1] != channels:
        raise ValueError(
            f"{name}: expected {channels} channels on the last axis, got shape {x.shape}; "
            f"build the network with in_channels={x.shape[-1]}, or move the channels last"
        )
    return jnp.asarray(x)


def check_size(name: str, x: Images, size: int, *, channels: int) -> Float[Array, "batch height width channels"]:
    """Return the batch as a JAX array; raise unless its images are ``size x size`` with that many channels."""
    x = check_images(name, x, channels=channels)
    if x.shape[1:3] != (size, size):
        raise ValueError(
            f"{name}: expected images of {size} x {size}, got {x.shape[1]} x {x.shape[2]}; "
            "build the network for this size, or resize the images"
        )
    return x


def check_32(name: str, x: Images, *, channels: int) -> Float[Array, "batch height width channels"]:
    """Return the batch as a JAX array, 28 x 28 padded to 32 x 32; raise unless its images are then 32 x 32."""
    x = pad_small(check_images(name, x, channels=channels))
    if x.shape[1:3] != (32, 32):
        raise ValueError(f"{name}: expected images of 32 x 32 or 28 x 28, got {x.shape[1]} x {x.shape[2]}; resize")
    return x


def check_multiple(
    name: str, x: Images, multiple: int, *, channels: int
) -> Float[Array, "batch height width channels"]:
    """Return the batch as a JAX array, 28 x 28 padded to 32 x 32; raise unless its sides are then multiples."""
    x = pad_small(check_images(name, x, channels=channels))
    if any(side % multiple or side == 0 for side in x.shape[1:-1]):
        raise ValueError(
            f"{name}: expected sides that are multiples of {multiple} (or 28 x 28, padded with zeros to 32 x 32), "
            f"got {' x '.join(map(str, x.shape[1:-1]))}; crop, pad or resize the images"
        )
    return x
