"""MobileNetV2 for small images."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import ConvBlock, ConvNorm, check_multiple, dense, scale_channels

_STAGES = (
    # The bottlenecks of table 2 of the paper, and behind each the maps of 32 x 32 images. The first layer and the
    # second row have stride 1 here and 2 in the paper, whose strides would leave single pixels at the end.
    # expansion, channels, blocks, stride
    (1, 16, 1, 1),  # 32 x 32
    (6, 24, 2, 1),  # 32 x 32
    (6, 32, 3, 2),  # 16 x 16
    (6, 64, 4, 2),  # 8 x 8
    (6, 96, 3, 1),  # 8 x 8
    (6, 160, 3, 2),  # 4 x 4
    (6, 320, 1, 1),  # 4 x 4
)


class InvertedResidual(nnx.Module):
    """``f(x) + s(x)``, or ``f(x)`` where the size changes.

    ``f`` widens by 1 x 1, convolves each channel by 3 x 3, both rectified, and narrows by 1 x 1, linearly; ``s`` is the
    identity, or a 1 x 1 convolution where the number of channels changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        stride: int,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        wide = expansion * in_channels
        self.widen = ConvBlock(in_channels, wide, (1, 1), **options)
        self.depthwise = ConvBlock(wide, wide, (3, 3), stride=stride, groups=wide, **options)
        self.narrow = ConvNorm(wide, out_channels, (1, 1), **options)
        self.stride = stride
        # Where the stride is 1 there is always a shortcut, unlike in the paper, whose blocks add only equal shapes.
        changes = stride == 1 and in_channels != out_channels
        self.shortcut = ConvNorm(in_channels, out_channels, (1, 1), **options) if changes else None

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the response, ``(batch, *spatial, out_channels)``."""
        y = self.narrow(self.depthwise(self.widen(x)))
        if self.stride > 1:
            return y
        return y + (x if self.shortcut is None else self.shortcut(x))


class MobileNetV2(nnx.Module):
    """MobileNetV2 as it is used on 32 x 32 images (Sandler et al. 2018, arXiv 1801.04381): 2,296,922 parameters.

    The first convolution and the second stage keep the size, activations are ReLU, and where the number of channels
    alone changes the shortcut is a 1 x 1 convolution. Images have any size; 28 x 28 are padded with two zeros.

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
        channels = scale_channels("MobileNetV2", 32, width)
        self.in_channels = in_channels
        self.stem = ConvBlock(in_channels, channels, (3, 3), **options)
        blocks = []
        for expansion, published, repeats, stride in _STAGES:
            wide = scale_channels("MobileNetV2", published, width)
            for step in (stride, *[1] * (repeats - 1)):
                blocks.append(InvertedResidual(channels, wide, expansion=expansion, stride=step, **options))
                channels = wide
        self.blocks = nnx.List(blocks)
        head = scale_channels("MobileNetV2", 1280, width)
        self.head = ConvBlock(channels, head, (1, 1), **options)
        self.classifier = dense(head, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        y = self.stem(check_multiple("MobileNetV2", x, 1, channels=self.in_channels))
        for block in self.blocks:
            y = block(y)
        return self.classifier(jnp.mean(self.head(y), (1, 2)))
