"""ConvNeXt for small images."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import LayerNorm, check_multiple, convolution, dense, scale_channels

# Behind a first layer of stride 2, the maps of 32 x 32 images have the sides 16, 8, 4 and 2.
_STAGES = ((40, 2), (80, 2), (160, 6), (320, 2))
"""Channels and blocks."""


class ConvNeXtBlock(nnx.Module):
    """``x + gamma * f(x)``: 7 x 7 of each channel, layer normalization, and two dense layers with GELU between them.

    The inner layer is four times as wide; the layer scale ``gamma`` starts at 1e-6.
    """

    def __init__(self, channels: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.depthwise = convolution(channels, channels, (7, 7), groups=channels, **options)
        self.norm = LayerNorm(channels, **options)
        self.widen = dense(channels, 4 * channels, **options)
        self.narrow = dense(4 * channels, channels, **options)
        self.gamma = nnx.Param(jnp.full((channels,), 1e-6, param_dtype))

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Return the sum, in the shape of ``x``."""
        y = jax.nn.gelu(self.widen(self.norm(self.depthwise(x))), approximate=False)
        return x + self.narrow(y) * self.gamma[...][None, None, None]


class Downsample(nnx.Module):
    """Layer normalization, 2 x 2 convolution of windows side by side."""

    def __init__(self, in_channels: int, out_channels: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.norm = LayerNorm(in_channels, **options)
        self.conv = convolution(in_channels, out_channels, (2, 2), stride=2, padding=0, **options)

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the response at half the size."""
        return self.conv(self.norm(x))


class ConvNeXt(nnx.Module):
    """ConvNeXt with the 40, 80, 160 and 320 channels of its smallest kin, for 32 x 32 images (Liu et al. 2022).

    As in arXiv 2201.03545, but with windows of 2 x 2 pixels in the first layer, and weights that start as those of the
    other networks here. The last maps are averaged, normalized and read by one dense layer. Sides are multiples of 16;
    28 x 28 images are padded with two zeros.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        width: factor on the number of channels, rounded to whole channels, at least one.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when a width is not positive.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float | int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        channels = scale_channels("ConvNeXt", _STAGES[0][0], width)
        self.in_channels = in_channels
        self.patches = convolution(in_channels, channels, (2, 2), stride=2, padding=0, **options)
        self.norm = LayerNorm(channels, **options)
        blocks = []
        for published, repeats in _STAGES:
            wide = scale_channels("ConvNeXt", published, width)
            if blocks:
                blocks.append(Downsample(channels, wide, **options))
            blocks += [ConvNeXtBlock(wide, **options) for _ in range(repeats)]
            channels = wide
        self.blocks = nnx.List(blocks)
        self.last_norm = LayerNorm(channels, **options)
        self.classifier = dense(channels, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        y = self.norm(self.patches(check_multiple("ConvNeXt", x, 16, channels=self.in_channels)))
        for block in self.blocks:
            y = block(y)
        return self.classifier(self.last_norm(jnp.mean(y, (1, 2))))
