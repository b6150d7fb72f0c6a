"""Residual networks."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import (
    BatchNorm,
    ConvBlock,
    ConvNorm,
    NormConv,
    check_multiple,
    convolution,
    dense,
    scale_channels,
)

# conv2_x to conv5_x of table 1 of the paper; on 32 x 32 images their maps have the sides 32, 16, 8 and 4.
_CHANNELS = (64, 128, 256, 512)
_STRIDES = (1, 2, 2, 2)
_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {50: (3, 4, 6, 3)}


class ResidualBlock(nnx.Module):
    """``relu(f(x) + s(x))``: ``f`` a chain of convolutions with batch normalization, ReLU between them.

    ``s`` is the identity, or a 1 x 1 convolution with batch normalization where the shape changes. The stride and the
    groups are those of the first convolution wider than a pixel.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        kernels: Sequence[int],
        *,
        stride: int,
        groups: int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        layers = []
        for k, (a, b, side) in enumerate(zip((in_channels, *channels[:-1]), channels, kernels, strict=True)):
            # kernels (3, 3): the first; kernels (1, 3, 1): the middle one, between the narrow maps.
            spatial = {"stride": stride, "groups": groups} if k == kernels.index(3) else {}
            layers.append(ConvNorm(a, b, (side, side), **spatial, **options))
        self.layers = nnx.List(layers)
        same = stride == 1 and in_channels == channels[-1]
        self.shortcut = None if same else ConvNorm(in_channels, channels[-1], (1, 1), stride=stride, **options)

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the rectified sum, ``(batch, *spatial, channels[-1])``."""
        *inner, last = self.layers
        y = x
        for layer in inner:
            y = jax.nn.relu(layer(y))
        return jax.nn.relu(last(y) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """ResNet as it is used on 32 x 32 images (He et al. 2016, arXiv 1512.03385).

    The first layer is a 3 x 3 convolution at full size; then four stages of residual blocks, each but the first
    halving the size; the last maps are averaged and read by one dense layer. Convolutions have no bias, and a
    bottleneck has its stride in the 3 x 3 convolution. 11,173,962, 21,282,122 and 23,520,842 parameters at depth 18, 34
    and 50. Images have any size; 28 x 28 are padded with two zeros.

    Args:
        depth: 18 or 34 (two 3 x 3 convolutions in a block), or 50 (bottlenecks).
        num_classes: length of the output.
        in_channels: channels of the images.
        width: factor on the number of channels, rounded to whole channels, at least one.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when there is no ResNet of that depth, or a width is not positive.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float | int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        known = _BASIC | _BOTTLENECK
        if depth not in known:
            raise ValueError(f"ResNet: expected depth in {tuple(known)}, got {depth}")
        # Channels of the convolutions of a block over those of its stage: a bottleneck widens to four times, 256 to
        # 2048.
        kernels, factors = ((3, 3), (1, 1)) if depth in _BASIC else ((1, 3, 1), (1, 1, 4))
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        channels = scale_channels("ResNet", _CHANNELS[0], width)
        self.in_channels = in_channels
        self.stem = ConvBlock(in_channels, channels, (3, 3), **options)
        blocks = []
        for inner, stride in _stages("ResNet", known[depth], width):
            wide = [factor * inner for factor in factors]
            blocks.append(ResidualBlock(channels, wide, kernels, stride=stride, **options))
            channels = wide[-1]
        self.blocks = nnx.List(blocks)
        self.classifier = dense(channels, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        return _classify(self, check_multiple("ResNet", x, 1, channels=self.in_channels))


class ResNeXt(nnx.Module):
    """ResNeXt-29 as it is used on 32 x 32 images (Xie et al. 2017, arXiv 1611.05431): 9,128,778 parameters as 2 x 64d.

    A 1 x 1 convolution, three stages of three bottlenecks whose 3 x 3 convolution is grouped, the last two stages
    halving the size; the last maps are averaged and read by one dense layer. Images have any size; 28 x 28 are padded
    with two zeros.

    Args:
        groups: number of groups ("cardinality").
        group_width: channels of a group in the first stage, doubled in each further one.
        num_classes: length of the output.
        in_channels: channels of the images.
        width: factor on the channels of the first layer and of a group, rounded to whole channels, at least one.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when there is no group, or a width is not positive.
    """

    def __init__(
        self,
        *,
        groups: int = 2,
        group_width: int = 64,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float | int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if groups < 1 or group_width < 1:
            raise ValueError(f"ResNeXt: expected groups and group_width >= 1, got {groups} and {group_width}")
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        channels = scale_channels("ResNeXt", 64, width)
        self.in_channels = in_channels
        self.stem = ConvBlock(in_channels, channels, (1, 1), **options)
        blocks = []
        for stage, stride in enumerate((1, 2, 2)):
            # 2 x 64d, stage by stage: 128, 256, 512 channels inside, 256, 512, 1024 outside, sides 32, 16, 8.
            inner = groups * scale_channels("ResNeXt", group_width * 2**stage, width)
            for step in (stride, 1, 1):
                sizes = (inner, inner, 2 * inner)
                blocks.append(ResidualBlock(channels, sizes, (1, 3, 1), stride=step, groups=groups, **options))
                channels = 2 * inner
        self.blocks = nnx.List(blocks)
        self.classifier = dense(channels, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        return _classify(self, check_multiple("ResNeXt", x, 1, channels=self.in_channels))


class PreActBlock(nnx.Module):
    """``f(x) + s(x)``: ``f`` two times batch normalization, ReLU, 3 x 3 convolution.

    ``s`` is the identity, or a 1 x 1 convolution of ``relu(norm(x))`` where the shape changes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        strided: dict[str, Any] = {"stride": stride, "use_bias": False, **options}
        self.norm = BatchNorm(in_channels, **options)
        self.conv = convolution(in_channels, out_channels, (3, 3), **strided)
        self.second = NormConv(out_channels, out_channels, (3, 3), **options)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = None if same else convolution(in_channels, out_channels, (1, 1), **strided)

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the sum, ``(batch, *spatial, out_channels)``."""
        # The shortcut of a block that changes the shape reads what is normed already, the identity reads x.
        y = jax.nn.relu(self.norm(x))
        return self.second(self.conv(y)) + (x if self.shortcut is None else self.shortcut(y))


class PreActResNet(nnx.Module):
    """`ResNet` with normalization and ReLU before each convolution (He et al. 2016, arXiv 1603.05027).

    11,171,146 parameters at depth 18. As in the common implementation for 32 x 32 images, nothing but the average
    stands between the last sum and the dense layer. Images have any size; 28 x 28 are padded with two zeros.

    Args:
        depth: 18 or 34.
        num_classes: length of the output.
        in_channels: channels of the images.
        width: factor on the number of channels, rounded to whole channels, at least one.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when there is no such network of that depth, or a width is not positive.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float | int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if depth not in _BASIC:
            raise ValueError(f"PreActResNet: expected depth in {tuple(_BASIC)}, got {depth}")
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        channels = scale_channels("PreActResNet", _CHANNELS[0], width)
        self.in_channels = in_channels
        self.stem = convolution(in_channels, channels, (3, 3), use_bias=False, **options)
        blocks = []
        for wide, stride in _stages("PreActResNet", _BASIC[depth], width):
            blocks.append(PreActBlock(channels, wide, stride=stride, **options))
            channels = wide
        self.blocks = nnx.List(blocks)
        self.classifier = dense(channels, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        return _classify(self, check_multiple("PreActResNet", x, 1, channels=self.in_channels))


def _stages(name: str, repeats: Sequence[int], width: float | int) -> Iterator[tuple[int, int]]:
    """Yield channels and stride of each block, those of a bottleneck before it widens."""
    for blocks, published, stride in zip(repeats, _CHANNELS, _STRIDES, strict=True):
        wide = scale_channels(name, published, width)
        yield wide, stride
        yield from [(wide, 1)] * (blocks - 1)


def _classify(network: Any, x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch classes"]:
    """Apply first layer and blocks, average over positions, and apply the dense layer."""
    x = network.stem(x)
    for block in network.blocks:
        x = block(x)
    return network.classifier(jnp.mean(x, (1, 2)))
