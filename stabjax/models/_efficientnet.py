"""EfficientNet-B0 for small images."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import ConvNorm, check_multiple, dense, scale_channels

_STAGES = (
    # Stages 2 to 8 of table 1 of the paper, and behind each the maps of 32 x 32 images. The first layer has stride 1
    # here, so that all maps have twice the side that the published strides would leave.
    # expansion, channels, blocks, kernel, stride
    (1, 16, 1, 3, 1),  # 32 x 32
    (6, 24, 2, 3, 2),  # 16 x 16
    (6, 40, 2, 5, 2),  # 8 x 8
    (6, 80, 3, 3, 2),  # 4 x 4
    (6, 112, 3, 5, 1),  # 4 x 4
    (6, 192, 4, 5, 2),  # 2 x 2
    (6, 320, 1, 3, 1),  # 2 x 2
)


class SqueezeExcitation(nnx.Module):
    """``x sigmoid(W2 swish(W1 <x>))``: each channel times a gate that sees the mean of all (Hu et al. 2018)."""

    def __init__(self, channels: int, hidden: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs) -> None:
        self.squeeze = dense(channels, hidden, param_dtype=param_dtype, rngs=rngs)
        self.excite = dense(hidden, channels, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Return the gated activations, in the shape of ``x``."""
        # (b, h, w, c) -> (b, c) -> (b, hidden) -> (b, c), one gate for each channel of each image.
        gate = jax.nn.sigmoid(self.excite(jax.nn.silu(self.squeeze(jnp.mean(x, (1, 2))))))
        return x * gate[:, None, None, :]


class MBConv(nnx.Module):
    """An inverted residual block with squeeze-excitation and swish; whole images drop out of its branch in training."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: int,
        kernel: int,
        stride: int,
        drop: float | int,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        wide = expansion * in_channels
        self.widen = ConvNorm(in_channels, wide, (1, 1), **options) if expansion > 1 else None
        self.depthwise = ConvNorm(wide, wide, (kernel, kernel), stride=stride, groups=wide, **options)
        # A quarter of the channels in front of the expansion, not of the wide ones.
        self.gate = SqueezeExcitation(wide, max(1, in_channels // 4), **options)
        self.narrow = ConvNorm(wide, out_channels, (1, 1), **options)
        # Without a skip the branch is all there is: no image may drop out of it.
        has_skip = stride == 1 and in_channels == out_channels
        self.drop = nnx.Dropout(drop, broadcast_dims=(1, 2, 3), rngs=rngs) if has_skip else None

    def __call__(self, x: Float[Array, "batch *spatial_in channels_in"]) -> Float[Array, "batch *spatial channels"]:
        """Return the response, ``(batch, *spatial, out_channels)``."""
        y = x if self.widen is None else jax.nn.silu(self.widen(x))
        y = self.narrow(self.gate(jax.nn.silu(self.depthwise(y))))
        return y if self.drop is None else self.drop(y) + x


class EfficientNetB0(nnx.Module):
    """EfficientNet-B0 as it is used on 32 x 32 images (Tan and Le 2019, arXiv 1905.11946).

    The first convolution keeps the size, and the dense layer follows the last block without a further convolution.
    3,598,598 parameters; the 3,599,686 of the common implementation count 1,088 in front of the first block that it
    never uses. Images have any size; 28 x 28 are padded with two zeros.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        width: factor on the number of channels, rounded to whole channels, at least one.
        dropout: probability with which a unit in front of the dense layer is dropped in training mode.
        drop_connect: likewise that with which an image drops out of the branch of a block; block ``k`` of ``n`` has
            ``k / n`` of it.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights, and of dropout.

    Raises:
        ValueError: when a width is not positive.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float | int = 1,
        dropout: float | int = 0.2,
        drop_connect: float | int = 0.2,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        channels = scale_channels("EfficientNetB0", 32, width)
        self.in_channels = in_channels
        self.stem = ConvNorm(in_channels, channels, (3, 3), **options)
        blocks, total = [], sum(stage[2] for stage in _STAGES)
        for expansion, published, repeats, kernel, stride in _STAGES:
            wide = scale_channels("EfficientNetB0", published, width)
            for step in (stride, *[1] * (repeats - 1)):
                # From 0 at the first block upwards; the last of 16 has 15/16 of it.
                drop = drop_connect * len(blocks) / total
                blocks.append(
                    MBConv(channels, wide, expansion=expansion, kernel=kernel, stride=step, drop=drop, **options)
                )
                channels = wide
        self.blocks = nnx.List(blocks)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = dense(channels, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        y = jax.nn.silu(self.stem(check_multiple("EfficientNetB0", x, 1, channels=self.in_channels)))
        for block in self.blocks:
            y = block(y)
        return self.classifier(self.dropout(jnp.mean(y, (1, 2))))
