"""Small convolutional networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import ConvBlock, check_32, check_multiple, dense, max_pool


class SmallCNN(nnx.Module):
    """A plain CNN that trains in minutes: blocks of 3 x 3 convolution, batch normalization, ReLU and 2 x 2 max pooling.

    The last maps are averaged and read by one dense layer. Sides are multiples of ``2 ** len(channels)``; 28 x 28
    images are padded with two zeros.

    Args:
        channels: channels of each block.
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: whether each convolution is followed by batch normalization.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (32, 64, 128, 128),
        num_classes: int = 10,
        in_channels: int = 3,
        norm: bool = True,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = (in_channels, *channels)
        self.in_channels = in_channels
        self.blocks = nnx.List(
            [
                ConvBlock(a, b, (3, 3), norm=norm, use_bias=True, param_dtype=param_dtype, rngs=rngs)
                for a, b in pairwise(sizes)
            ]
        )
        self.classifier = dense(sizes[-1], num_classes, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        x = check_multiple("SmallCNN", x, 2 ** len(self.blocks), channels=self.in_channels)
        for block in self.blocks:
            x = max_pool(block(x), 2)
        return self.classifier(jnp.mean(x, (1, 2)))


class LeNet(nnx.Module):
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998): 62,006 parameters for 32 x 32 x 3.

    Images are 32 x 32, or 28 x 28 and padded with two zeros.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 3, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.in_channels = in_channels
        self.features = nnx.List(
            [
                ConvBlock(in_channels, 6, (5, 5), norm=False, use_bias=True, padding=0, **options),
                ConvBlock(6, 16, (5, 5), norm=False, use_bias=True, padding=0, **options),
            ]
        )
        self.hidden = nnx.List([dense(16 * 5 * 5, 120, **options), dense(120, 84, **options)])
        self.classifier = dense(84, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, 32, 32, in_channels)``."""
        # Sides: 32, convolved to 28, pooled to 14, convolved to 10, pooled to 5.
        x = check_32("LeNet", x, channels=self.in_channels)
        for block in self.features:
            x = max_pool(block(x), 2)
        x = jnp.reshape(x, (len(x), -1))
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return self.classifier(x)
