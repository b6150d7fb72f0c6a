"""Networks of tutorials."""

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax import conv
from stabjax._types import Images
from stabjax.models._layers import check_size, convolution, fan_in_uniform, parameter_dtype


class SimpleCNN(nnx.Module):
    """Five 3 x 3 convolutions of stride 2, from a gray image of 28 x 28 to one position: 5,274 parameters.

    ReLU behind all but the last, whose channels are the logits; no pooling, no dense layer. The network with which the
    course of fast.ai introduces convolutions on MNIST (2022, part 2, lesson 15).

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 1, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        # Sides: 28, 14, 7, 4, 2, 1.
        channels = (in_channels, 4, 8, 16, 16, num_classes)
        self.in_channels = in_channels
        self.layers = nnx.List(
            [convolution(a, b, (3, 3), stride=2, param_dtype=param_dtype, rngs=rngs) for a, b in pairwise(channels)]
        )

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, 28, 28, in_channels)``."""
        x = check_size("SimpleCNN", x, 28, channels=self.in_channels)
        *hidden, last = self.layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return jnp.reshape(last(x), (len(x), -1))


class PatchMLP(nnx.Module):
    """Two dense layers without bias, ReLU between them, on every patch alone: ``(batch, patches, features)``.

    12,288 parameters for patches of 8 x 8 x 1.

    Args:
        size: side of a patch, see `stabjax.conv.patches`.
        hidden: units of the first layer.
        features: units of the second.
        in_channels: channels of the images.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.
    """

    def __init__(
        self,
        *,
        size: int = 8,
        hidden: int = 64,
        features: int = 128,
        in_channels: int = 1,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.size, param_dtype = size, parameter_dtype(param_dtype)
        self.layers = nnx.List(
            [
                nnx.Linear(a, b, use_bias=False, kernel_init=fan_in_uniform(a), param_dtype=param_dtype, rngs=rngs)
                for a, b in pairwise((size**2 * in_channels, hidden, features))
            ]
        )

    def __call__(self, x: Images) -> Float[Array, "batch patches features"]:
        """Return features, ``(batch, patches, features)``, of images ``(batch, height, width, in_channels)``."""
        first, second = self.layers
        return second(jax.nn.relu(first(conv.patches(x, self.size))))
