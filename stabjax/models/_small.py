"""Small convolutional networks."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import ConvBlock, check_divisible, check_images, dense, max_pool, pad_small


class SmallCNN(nnx.Module):
    """A plain CNN that trains in minutes: blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max pooling.

    The last maps are averaged and read by one dense layer. Sides are multiples of ``2 ** len(channels)``; 28 x 28
    images are padded with two zeros.

    Args:
        channels: channels of each block.
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: whether each convolution is followed by batch normalisation.
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
            [ConvBlock(a, b, (3, 3), norm=norm, param_dtype=param_dtype, rngs=rngs) for a, b in pairwise(sizes)]
        )
        self.classifier = dense(sizes[-1], num_classes, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Logits, ``(batch, num_classes)``, of images ``(batch, height, width, in_channels)``."""
        x = check_images("SmallCNN", x, channels=self.in_channels)
        x = pad_small(x)
        check_divisible("SmallCNN", x, 2 ** len(self.blocks))
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
                ConvBlock(in_channels, 6, (5, 5), norm=False, padding="VALID", **options),
                ConvBlock(6, 16, (5, 5), norm=False, padding="VALID", **options),
            ]
        )
        self.hidden = nnx.List([dense(16 * 5 * 5, 120, **options), dense(120, 84, **options)])
        self.classifier = dense(84, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Logits, ``(batch, num_classes)``, of images ``(batch, 32, 32, in_channels)``."""
        x = check_images("LeNet", x, channels=self.in_channels)
        x = pad_small(x)
        if x.shape[1:3] != (32, 32):
            raise ValueError(f"LeNet: expected images of 32 x 32 or 28 x 28, got {x.shape[1]} x {x.shape[2]}; resize")
        for block in self.features:
            x = max_pool(block(x), 2)
        x = jnp.reshape(x, (len(x), -1))
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return self.classifier(x)


class MinimalCNN(nnx.Module):
    """One hidden layer: convolution without padding, ReLU, max pooling, dense. 36,234 parameters for 32 x 32 x 3.

    Args:
        size: side of the square images; ``size - kernel + 1`` must be a multiple of ``pool``.
        channels: channels of the hidden layer.
        kernel: side of the filters.
        pool: side of the pooling windows.
        num_classes: length of the output.
        in_channels: channels of the images.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when the pooling windows do not fit.
    """

    def __init__(
        self,
        size: int,
        *,
        channels: int = 64,
        kernel: int = 5,
        pool: int = 4,
        num_classes: int = 10,
        in_channels: int = 3,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        side = size - kernel + 1
        if side <= 0 or side % pool:
            raise ValueError(
                f"MinimalCNN: expected size - kernel + 1 to be a positive multiple of pool = {pool}, got {side}; "
                "change the size, the kernel or the pool"
            )
        self.size, self.pool, self.in_channels = size, pool, in_channels
        self.features = ConvBlock(
            in_channels, channels, (kernel, kernel), norm=False, padding="VALID", param_dtype=param_dtype, rngs=rngs
        )
        self.classifier = dense((side // pool) ** 2 * channels, num_classes, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Logits, ``(batch, num_classes)``, of images ``(batch, size, size, in_channels)``."""
        x = check_images("MinimalCNN", x, channels=self.in_channels)
        if x.shape[1:3] != (self.size, self.size):
            raise ValueError(
                f"MinimalCNN: expected images of {self.size} x {self.size}, got {x.shape[1]} x {x.shape[2]}; "
                "build the network for this size, or resize the images"
            )
        x = max_pool(self.features(x), self.pool)
        return self.classifier(jnp.reshape(x, (len(x), -1)))
