"""Fully connected networks in the NTK scaling."""

import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import AnyArray
from stabjax.models._layers import parameter_dtype


class ScaledDense(nnx.Module):
    """``y = x (w s) + b`` with standard normal ``w`` and ``b``; ``s`` is ``fan_in ** -power``."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        power: float | int,
        use_bias: bool,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        # NTK scaling: the weights stay of order one, and the scale is applied in the forward pass, so it also scales
        # their gradients.
        self.scale, param_dtype = in_features**-power, parameter_dtype(param_dtype)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (in_features, out_features), param_dtype))
        self.bias = nnx.Param(jax.random.normal(rngs.params(), (out_features,), param_dtype)) if use_bias else None

    def __call__(self, x: Float[AnyArray, "batch features"]) -> Float[Array, "batch out"]:
        """Return the response, ``(batch, out_features)``."""
        y = x @ (self.kernel[...] * self.scale)
        return y if self.bias is None else y + self.bias[...][None, :]


class FullyConnected(nnx.Module):
    """A fully connected ReLU network in the NTK scaling (Petrini et al. 2021, appendix).

    Weights and biases are standard normal; the forward pass multiplies the weights by ``1 / sqrt(fan_in)``, those of
    the last layer, which has no bias, by ``1 / fan_in``.

    Args:
        in_features: pixels times channels of an image; images are flattened.
        layers: number of dense layers, the last one included; 2, 4 and 6 were published.
        width: units of the hidden layers.
        num_classes: length of the output.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when there are fewer than two layers.
    """

    def __init__(
        self,
        in_features: int,
        *,
        layers: int = 4,
        width: int = 64,
        num_classes: int = 10,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if layers < 2:
            raise ValueError(f"FullyConnected: expected at least 2 layers, got {layers}; the last one counts")
        sizes = (in_features, *[width] * (layers - 1))
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.in_features = in_features
        self.layers = nnx.List([ScaledDense(a, b, power=0.5, use_bias=True, **options) for a, b in pairwise(sizes)])
        self.classifier = ScaledDense(width, num_classes, power=1, use_bias=False, **options)

    def __call__(self, x: Float[AnyArray, "batch ..."]) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of a batch with ``in_features`` numbers per image."""
        if math.prod(x.shape[1:]) != self.in_features:
            raise ValueError(
                f"FullyConnected: expected {self.in_features} numbers per image, got {x.shape[1:]}; "
                f"build the network with in_features={math.prod(x.shape[1:])}"
            )
        x = jnp.reshape(x, (len(x), -1))
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.classifier(x)
