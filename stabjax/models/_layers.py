"""The parts that the networks share."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from stabjax import conv
from stabjax._types import Images


def fan_in_uniform(fan_in: int) -> Callable[..., Array]:
    """Initialiser of PyTorch's convolutions and dense layers: uniform within ``1 / sqrt(fan_in)``, biases too."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    *,
    padding: str = "SAME",
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A convolution with bias, by the fastest route of the device."""
    init = fan_in_uniform(in_channels * math.prod(kernel))
    return nnx.Conv(
        in_channels,
        out_channels,
        kernel,
        padding=padding,
        kernel_init=init,
        bias_init=init,
        param_dtype=param_dtype,
        conv_general_dilated=conv.conv_general_dilated,
        rngs=rngs,
    )


def dense(in_features: int, out_features: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with bias."""
    init = fan_in_uniform(in_features)
    return nnx.Linear(in_features, out_features, kernel_init=init, bias_init=init, param_dtype=param_dtype, rngs=rngs)


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation over all axes but the last, with PyTorch's conventions.

    The variance is that of the centred activations: the mean of squares less the square of the mean loses all digits
    where the mean is large. The running variance is the unbiased one, and moves a tenth of the way at each step.
    """

    def __init__(self, features: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        super().__init__(features, momentum=0.9, epsilon=1e-5, param_dtype=param_dtype, rngs=rngs)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]  the parent's mask is not offered
        self, x: Float[Array, "batch *spatial channels"], use_running_average: bool | None = None
    ) -> Float[Array, "batch *spatial channels"]:
        """The normalised activations, by running statistics in evaluation mode, else by those of the batch."""
        compute = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
        axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]

        def along_channels(v: Array) -> Array:
            return jnp.reshape(v.astype(compute), (1,) * len(axes) + (-1,))

        if self.use_running_average if use_running_average is None else use_running_average:
            centred, variance = x.astype(compute) - along_channels(self.mean[...]), self.var[...]
        else:
            mean = jnp.mean(x, axes, dtype=compute)
            centred = x.astype(compute) - along_channels(mean)
            variance = jnp.mean(jnp.square(centred), axes)
            for average, value in ((self.mean, mean), (self.var, variance * (count / max(count - 1, 1)))):
                old = average[...]
                average[...] = lax.stop_gradient(0.9 * old + 0.1 * value.astype(old.dtype))
        scale, bias = (along_channels(p[...]) for p in (self.scale, self.bias) if p is not None)
        return (centred * (lax.rsqrt(along_channels(variance) + 1e-5) * scale) + bias).astype(x.dtype)


class ConvBlock(nnx.Module):
    """Convolution, batch normalisation where asked for, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        *,
        norm: bool,
        padding: str = "SAME",
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.conv = convolution(in_channels, out_channels, kernel, padding=padding, param_dtype=param_dtype, rngs=rngs)
        self.norm = BatchNorm(out_channels, param_dtype=param_dtype, rngs=rngs) if norm else None

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """The rectified response, ``(batch, *spatial, out_channels)``."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return jax.nn.relu(x)


def max_pool(x: Float[Array, "batch *spatial_in channels"], window: int) -> Float[Array, "batch *spatial channels"]:
    """The largest value of each ``window``-wide box, without overlap.

    The windows become axes of their own: on the CPU the gradient of that maximum is a few times faster than the
    scatter which the gradient of a windowed reduction needs.
    """
    batch, *spatial, channels = x.shape
    split = [side for n in spatial for side in (n // window, window)]
    return jnp.max(jnp.reshape(x, (batch, *split, channels)), axis=tuple(range(2, 2 * len(spatial) + 1, 2)))


def pad_small(x: Float[Array, "batch *spatial_in channels"]) -> Float[Array, "batch *spatial channels"]:
    """Images of 28 x 28 in a frame of two zero pixels, others as they come."""
    if x.shape[1:-1] != (28, 28):
        return x
    return jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))


def check_images(name: str, x: Images, *, channels: int, ndim: int = 2) -> Float[Array, "batch *spatial channels"]:
    """The batch as a JAX array; raises unless it is a batch of images with that many channels and spatial axes."""
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


def check_divisible(name: str, x: Images, divisor: int) -> None:
    """Raises unless both sides of the images are multiples of ``divisor``."""
    if any(side % divisor or side == 0 for side in x.shape[1:-1]):
        raise ValueError(
            f"{name}: expected sides that are multiples of {divisor} (or 28 x 28, padded with zeros to 32 x 32), "
            f"got {' x '.join(map(str, x.shape[1:-1]))}; crop, pad or resize the images"
        )
