"""AlexNet for small images."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import ConvBlock, check_32, dense, max_pool, scale_channels

_CHANNELS = (64, 192, 384, 256, 256)
_POOL_AFTER = (0, 1, 4)
"""The convolutions that a pooling follows."""
_HIDDEN = 4096


class AlexNet(nnx.Module):
    """AlexNet as it is used on 32 x 32 images (Krizhevsky et al. 2012): 23,272,266 parameters.

    Five 3 x 3 convolutions (with bias) and ReLU, the first with stride 2, three of them followed by 2 x 2 max pooling;
    two hidden dense layers behind dropout. Images are 32 x 32, or 28 x 28 and padded with two zeros.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        width: factor on the number of channels and hidden units, rounded to whole ones, at least one.
        dropout: probability with which a unit in front of a hidden dense layer is dropped in training mode.
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
        dropout: float | int = 0.5,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        blocks, channels = [], in_channels
        for published in _CHANNELS:
            wide = scale_channels("AlexNet", published, width)
            stride = 1 if blocks else 2
            blocks.append(ConvBlock(channels, wide, (3, 3), norm=False, use_bias=True, stride=stride, **options))
            channels = wide
        hidden = scale_channels("AlexNet", _HIDDEN, width)
        self.in_channels = in_channels
        self.features = nnx.List(blocks)
        self.dropouts = nnx.List([nnx.Dropout(dropout, rngs=rngs) for _ in range(2)])
        self.hidden = nnx.List([dense(2 * 2 * channels, hidden, **options), dense(hidden, hidden, **options)])
        self.classifier = dense(hidden, num_classes, **options)

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, 32, 32, in_channels)``."""
        # Sides: 32, 16 by the stride of the first convolution, 8, 4 and 2 by the three pools.
        y = check_32("AlexNet", x, channels=self.in_channels)
        for k, block in enumerate(self.features):
            y = block(y)
            if k in _POOL_AFTER:
                y = max_pool(y, 2)
        y = jnp.reshape(y, (len(y), -1))
        for dropout, layer in zip(self.dropouts, self.hidden, strict=True):
            y = jax.nn.relu(layer(dropout(y)))
        return self.classifier(y)
