"""The ConvNet of the scale-detection study."""

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax import conv
from stabjax._types import Images
from stabjax.models._fully_connected import ScaledDense
from stabjax.models._layers import check_images, parameter_dtype


class ScaledConvBlock(nnx.Module):
    """``y = sqrt(F) relu(conv(x, w / sqrt(fan_in)) + b)``, periodic, with ``F`` the number of pixels of a filter."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, ...],
        *,
        stride: int,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride, param_dtype = stride, parameter_dtype(param_dtype)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (*kernel, in_channels, out_channels), param_dtype))
        self.bias = nnx.Param(jax.random.normal(rngs.params(), (out_channels,), param_dtype))

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the response, ``(batch, ceil(n / stride), ..., out_channels)``."""
        dtype = jnp.result_type(x, self.kernel[...])
        x, kernel = jnp.asarray(x, dtype), self.kernel[...].astype(dtype)
        *window, fan_in, _ = kernel.shape
        positions = math.prod(window)
        # (F-1)/2 on both sides of an odd filter, F/2-1 before and F/2 after an even one
        x = jnp.pad(x, [(0, 0), *[((side - 1) // 2, side // 2) for side in window], (0, 0)], mode="wrap")
        spatial = "HWD"[: len(window)]
        y = conv.conv_general_dilated(
            x,
            kernel / math.sqrt(positions * fan_in),
            (self.stride,) * len(window),
            "VALID",
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        )
        bias = jnp.reshape(self.bias[...], (1,) * (y.ndim - 1) + (-1,))
        return jax.nn.relu(y + bias) * math.sqrt(positions)


class GAPConvNet(nnx.Module):
    """Strided periodic convolutions, then the mean over positions (Tomasini et al. 2022, scale-detection tasks).

    Weights and biases are standard normal; the output is ``(y . beta) / H + b`` with ``H`` channels. Any size fits.

    Args:
        ndim: number of spatial axes, 1 or 2.
        blocks: number of convolutions.
        channels: channels ``H`` of each; 1000 in the study.
        kernel: side of the filters.
        stride: stride of every convolution.
        num_classes: length of the output; 1 for the hinge loss of the study.
        in_channels: channels of the images.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when ``ndim`` is neither 1 nor 2, or there is no block.
    """

    def __init__(
        self,
        ndim: int,
        *,
        blocks: int = 7,
        channels: int = 1000,
        kernel: int = 2,
        stride: int = 2,
        num_classes: int = 1,
        in_channels: int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if ndim not in (1, 2):
            raise ValueError(f"GAPConvNet: expected ndim 1 or 2, got {ndim}")
        if blocks < 1:
            raise ValueError(f"GAPConvNet: expected at least one block, got {blocks}")
        sizes = (in_channels, *[channels] * blocks)
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.ndim = ndim
        self.in_channels = in_channels
        self.blocks = nnx.List(
            [ScaledConvBlock(a, b, (kernel,) * ndim, stride=stride, **options) for a, b in pairwise(sizes)]
        )
        self.classifier = ScaledDense(channels, num_classes, power=1, use_bias=True, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return the output, ``(batch, num_classes)``, of signals ``(batch, n, c)`` or images ``(batch, h, w, c)``."""
        x = check_images("GAPConvNet", x, channels=self.in_channels, ndim=self.ndim)
        for block in self.blocks:
            x = block(x)
        return self.classifier(jnp.mean(x, tuple(range(1, self.ndim + 1))))
