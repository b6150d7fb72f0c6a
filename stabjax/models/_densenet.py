"""DenseNet for small images."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import BatchNorm, NormConv, average_pool, check_multiple, convolution, dense, scale_channels

_REPEATS = {121: (6, 12, 24, 16)}
_GROWTH = 32


class DenseLayer(nnx.Module):
    """The input, and behind it ``growth`` new channels: a bottleneck of ``4 growth`` channels, then 3 x 3."""

    def __init__(self, in_channels: int, growth: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.bottleneck = NormConv(in_channels, 4 * growth, (1, 1), **options)
        self.spatial = NormConv(4 * growth, growth, (3, 3), **options)

    def __call__(self, x: Float[Array, "batch *spatial channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return old and new channels, ``(batch, *spatial, in_channels + growth)``."""
        return jnp.concatenate([x, self.spatial(self.bottleneck(x))], -1)


class Transition(NormConv):
    """Batch normalization, ReLU, 1 x 1 convolution, 2 x 2 average pooling."""

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the averaged response, ``(batch, *spatial, out_channels)``."""
        return average_pool(super().__call__(x), 2)


class DenseNet(nnx.Module):
    """DenseNet-BC as it is used on 32 x 32 images (Huang et al. 2017, arXiv 1608.06993).

    A 3 x 3 convolution at full size to twice the growth; four stages of layers that each add ``growth = 32`` channels;
    between stages half of the channels and half of the size are kept; the last maps are normalized, rectified, averaged
    and read by one dense layer. 6,956,298 parameters at depth 121. Sides are multiples of 8; 28 x 28 images are padded
    with two zeros.

    Args:
        depth: 121.
        num_classes: length of the output.
        in_channels: channels of the images.
        width: factor on the growth, rounded to whole channels, at least one.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when there is no DenseNet of that depth, or a width is not positive.
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
        if depth not in _REPEATS:
            raise ValueError(f"DenseNet: expected depth in {tuple(_REPEATS)}, got {depth}")
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        growth = scale_channels("DenseNet", _GROWTH, width)
        # Channels and sides of depth 121 on 32 x 32 images, stage by stage (growth 32, table 1 of the paper):
        #
        #     64 -> 256    128 -> 512    256 -> 1024    512 -> 1024
        #     32           16            8              4
        channels = 2 * growth
        self.in_channels = in_channels
        self.stem = convolution(in_channels, channels, (3, 3), use_bias=False, **options)
        blocks = []
        for stage, repeats in enumerate(_REPEATS[depth]):
            if stage:
                blocks.append(Transition(channels, channels // 2, (1, 1), **options))
                channels //= 2
            for _ in range(repeats):
                blocks.append(DenseLayer(channels, growth, **options))
                channels += growth
        self.blocks = nnx.List(blocks)
        self.norm = BatchNorm(channels, **options)
        self.classifier = dense(channels, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        y = self.stem(check_multiple("DenseNet", x, 8, channels=self.in_channels))
        for block in self.blocks:
            y = block(y)
        return self.classifier(jnp.mean(jax.nn.relu(self.norm(y)), (1, 2)))
