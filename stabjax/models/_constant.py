"""Networks of constant filters, whose stability is known in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax import conv
from stabjax._types import AnyArray, Images
from stabjax.models._layers import check_images, parameter_dtype

_WEIGHTS = ("stride/kernel", "one")


class ConstantFilter(nnx.Module):
    """``relu(w * x + b)`` with the same weight at all positions of the filter, padded by ``(F - 1) // 2`` zeros."""

    def __init__(self, window: tuple[int, ...], *, stride: int, weight: float, bias: Any, param_dtype: Any) -> None:
        self.stride, param_dtype = stride, parameter_dtype(param_dtype)
        self.kernel = nnx.Param(jnp.full((*window, 1, 1), weight, param_dtype))
        self.bias = nnx.Param(jnp.reshape(jnp.asarray(bias, param_dtype), (1,)))

    def __call__(self, x: Float[Array, "batch *spatial_in 1"]) -> Float[Array, "batch *spatial 1"]:
        """Return the response, ``(batch, floor((n + 2 padding - F) / stride) + 1, ..., 1)``."""
        dtype = jnp.result_type(x, self.kernel[...])
        x, kernel = jnp.asarray(x, dtype), self.kernel[...].astype(dtype)
        ndim = kernel.ndim - 2
        spatial = "HWD"[:ndim]
        # Equal padding on both sides, also for an even filter: with stride 1 it makes n - 1 units of n pixels.
        y = conv.conv_general_dilated(
            x,
            kernel,
            (self.stride,) * ndim,
            [((side - 1) // 2, (side - 1) // 2) for side in kernel.shape[:ndim]],
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        )
        return jax.nn.relu(y + jnp.reshape(self.bias[...], (1,) * y.ndim))


class ConstantFilterCNN(nnx.Module):
    """Convolutions with constant filters and ReLU, one channel (Tomasini et al. 2022, section 5).

    They show what spatial pooling alone does to stability: `stabjax.theory` has its numbers in closed form. Nothing is
    drawn and nothing needs training.

    Args:
        ndim: number of spatial axes, 1 or 2; in two dimensions the response to an outer product of signals is, without
            bias, the outer product of the responses in one.
        kernel: side ``F`` of the filters.
        stride: stride ``s`` of every layer, at most ``F``.
        depth: number of layers.
        bias: added in every layer before the ReLU; may be traced.
        weights: ``"stride/kernel"``: every weight is ``s / F`` per axis, so that the sum over all units is kept;
            ``"one"``: every weight is one, so that activations count paths.
        param_dtype: dtype of the parameters.

    Raises:
        TypeError: when kernel, stride or depth is no integer.
        ValueError: when an option is out of range; when the kernel is smaller than the stride; when called on images
            too small for all layers.
    """

    def __init__(
        self,
        ndim: int,
        *,
        kernel: int,
        stride: int,
        depth: int,
        bias: float | int | Float[AnyArray, ""] = 0.0,
        weights: str = "stride/kernel",
        param_dtype: Any = jnp.float32,
    ) -> None:
        if ndim not in (1, 2):
            raise ValueError(f"ConstantFilterCNN: expected ndim 1 or 2, got {ndim}")
        for name, value in (("kernel", kernel), ("stride", stride), ("depth", depth)):
            if not hasattr(value, "__index__"):
                raise TypeError(f"ConstantFilterCNN: expected {name} as an integer, got {value!r}")
        if jnp.shape(bias) != ():
            raise ValueError(f"ConstantFilterCNN: expected one bias for all layers, got the shape {jnp.shape(bias)}")
        if depth < 1 or stride < 1:
            raise ValueError(f"ConstantFilterCNN: expected depth and stride >= 1, got {depth} and {stride}")
        if kernel < stride:
            raise ValueError(
                f"ConstantFilterCNN: expected kernel >= stride, got {kernel} < {stride}: pixels between two filters "
                "would be seen by none"
            )
        if weights not in _WEIGHTS:
            raise ValueError(f"ConstantFilterCNN: expected weights {' or '.join(_WEIGHTS)}, got {weights!r}")
        # Away from the borders each input is read by (F / s) ** ndim units on average, so weights of (s / F) ** ndim
        # keep the sum over all units.
        weight = (stride / kernel) ** ndim if weights == "stride/kernel" else 1.0
        self.ndim = ndim
        self.layers = nnx.List(
            [
                ConstantFilter((kernel,) * ndim, stride=stride, weight=weight, bias=bias, param_dtype=param_dtype)
                for _ in range(depth)
            ]
        )

    def __call__(self, x: Images) -> Float[Array, "batch *units 1"]:
        """Return activations of the last layer, of signals ``(batch, n, 1)`` or images ``(batch, h, w, 1)``."""
        x = check_images("ConstantFilterCNN", x, channels=1, ndim=self.ndim)
        for number, layer in enumerate(self.layers, 1):
            sides = x.shape[1:-1]
            x = layer(x)
            if 0 in x.shape[1:-1]:
                raise ValueError(
                    f"ConstantFilterCNN: expected images that leave a unit in every layer, got {sides} units for layer "
                    f"{number}, of which its filters take none; take larger images or fewer layers"
                )
        return x
