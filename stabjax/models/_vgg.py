"""VGG for small images."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import ConvBlock, check_multiple, dense, max_pool, scale_channels

# Configurations A, B, D and E of table 1 of the paper; the five pools leave the sides 16, 8, 4, 2, 1 of 32 x 32.
_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nnx.Module):
    """VGG with one dense layer, as it is used on 32 x 32 images (Simonyan and Zisserman 2015, arXiv 1409.1556).

    Five stages of 3 x 3 convolutions (with bias), each followed by batch normalization where ``norm``, and ReLU; a
    2 x 2 max pooling ends each stage. Sides are multiples of 32; 28 x 28 images are padded with two zeros. What is left
    of a larger image than 32 x 32 is averaged.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: whether each convolution is followed by batch normalization.
        width: factor on the number of channels, rounded to whole channels, at least one.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when there is no VGG of that depth, or a width is not positive.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        norm: bool = True,
        width: float | int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if depth not in _CONVOLUTIONS:
            raise ValueError(f"VGG: expected depth in {tuple(_CONVOLUTIONS)}, got {depth}")
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        blocks, channels = [], in_channels
        for repeats, published in zip(_CONVOLUTIONS[depth], _CHANNELS, strict=True):
            wide = scale_channels("VGG", published, width)
            for _ in range(repeats):
                blocks.append(ConvBlock(channels, wide, (3, 3), norm=norm, use_bias=True, **options))
                channels = wide
        self.depth = depth
        self.in_channels = in_channels
        self.features = nnx.List(blocks)
        self.classifier = dense(channels, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        y = check_multiple("VGG", x, 32, channels=self.in_channels)
        blocks = iter(self.features)
        for repeats in _CONVOLUTIONS[self.depth]:
            for _ in range(repeats):
                y = next(blocks)(y)
            y = max_pool(y, 2)
        y = jnp.reshape(y, (len(y), -1)) if y.shape[1:3] == (1, 1) else jnp.mean(y, (1, 2))
        return self.classifier(y)
