"""Networks with one hidden layer of local windows, whose kernel is shared between positions or is not."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from stabjax._types import Images
from stabjax.models._layers import ConvBlock, average_pool, check_size, dense, fan_in_uniform, max_pool, parameter_dtype

_POOLS = {"max": max_pool, "average": average_pool}


class LocalBlock(nnx.Module):
    """``relu(w_p . x_p + b_p)`` in windows that lie side by side, each position ``p`` with weights of its own.

    Weights are normal with variance ``1 / fan_in``, biases uniform within ``1 / sqrt(fan_in)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: int,
        positions: tuple[int, int],
        *,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        fan_in, param_dtype = in_channels * window**2, parameter_dtype(param_dtype)
        shape = (*positions, window, window, in_channels, out_channels)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape, param_dtype) / math.sqrt(fan_in))
        self.bias = nnx.Param(fan_in_uniform(fan_in)(rngs.params(), (*positions, out_channels), param_dtype))

    def __call__(
        self, x: Float[Array, "batch height width channels_in"]
    ) -> Float[Array, "batch rows columns channels"]:
        """Return the rectified response, ``(batch, *positions, out_channels)``."""
        kernel = self.kernel[...]
        rows, columns, window, _, channels, _ = kernel.shape
        # Windows lie side by side, so a reshape cuts them out: axes b, p and i (rows of windows, and rows inside), q
        # and j (columns), c. The kernel has the same letters, and o for the channels of the result.
        x = jnp.reshape(x, (len(x), rows, window, columns, window, channels))
        return jax.nn.relu(jnp.einsum("bpiqjc,pqijco->bpqo", x, kernel) + self.bias[...][None])


class _OneHiddenLayer(nnx.Module):
    """A hidden layer, pooling, dense."""

    features: Callable[[Array], Array]
    classifier: nnx.Linear
    size: int
    pool: int
    pooling: str
    in_channels: int

    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Return logits, ``(batch, num_classes)``, of images ``(batch, size, size, in_channels)``."""
        y = self.features(check_size(type(self).__name__, x, self.size, channels=self.in_channels))
        y = _POOLS[self.pooling](y, self.pool)
        return self.classifier(jnp.reshape(y, (len(y), -1)))


def _check_pooling(name: str, pooling: str) -> None:
    """Raise ``ValueError`` unless there is such a pooling."""
    if pooling not in _POOLS:
        raise ValueError(f"{name}: expected pooling {' or '.join(_POOLS)}, got {pooling!r}; without any, pool=1")


class MinimalCNN(_OneHiddenLayer):
    """One hidden layer: convolution without padding, ReLU, max pooling, dense. 36,234 parameters for 32 x 32 x 3.

    Args:
        size: side of the square images; ``size - kernel + 1`` must be a multiple of ``pool``.
        channels: channels of the hidden layer.
        kernel: side of the filters.
        pool: side of the pooling windows; 1 is no pooling.
        pooling: ``"max"`` or ``"average"``.
        num_classes: length of the output.
        in_channels: channels of the images.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when the pooling windows do not fit, or there is no such pooling.
    """

    def __init__(
        self,
        size: int,
        *,
        channels: int = 64,
        kernel: int = 5,
        pool: int = 4,
        pooling: str = "max",
        num_classes: int = 10,
        in_channels: int = 3,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        # Sides for 32 x 32: 28 behind the convolution, 7 behind the pool; the dense layer reads 7 * 7 * 64 units.
        side = size - kernel + 1
        if side <= 0 or side % pool:
            raise ValueError(
                f"MinimalCNN: expected size - kernel + 1 to be a positive multiple of pool = {pool}, got {side}; "
                "change the size, the kernel or the pool"
            )
        _check_pooling("MinimalCNN", pooling)
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.size, self.pool, self.pooling, self.in_channels = size, pool, pooling, in_channels
        self.features = ConvBlock(
            in_channels, channels, (kernel, kernel), norm=False, use_bias=True, padding=0, **options
        )
        self.classifier = dense((side // pool) ** 2 * channels, num_classes, **options)


class MinimalLCN(_OneHiddenLayer):
    """The locally connected twin of `MinimalCNN`: windows side by side, each with a kernel and a bias of its own.

    203,274 parameters for 32 x 32 x 3. The weights of the hidden layer are normal with variance ``1 / fan_in``.

    Args:
        size: side of the square images, a multiple of ``kernel * pool``.
        channels: channels of the hidden layer.
        kernel: side of the windows, and their stride.
        pool: side of the pooling windows, in positions; 1 is no pooling.
        pooling: ``"max"`` or ``"average"``.
        num_classes: length of the output.
        in_channels: channels of the images.
        param_dtype: dtype of the parameters.
        rngs: key of the initial weights.

    Raises:
        ValueError: when the windows do not fit, or there is no such pooling.
    """

    def __init__(
        self,
        size: int,
        *,
        channels: int = 64,
        kernel: int = 4,
        pool: int = 4,
        pooling: str = "max",
        num_classes: int = 10,
        in_channels: int = 3,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if size <= 0 or size % (kernel * pool):
            raise ValueError(
                f"MinimalLCN: expected a size that is a positive multiple of kernel * pool = {kernel * pool}, "
                f"got {size}; change the size, the kernel or the pool"
            )
        _check_pooling("MinimalLCN", pooling)
        # Sides for 32 x 32: 8 positions, 2 behind the pool; the dense layer reads 2 * 2 * 64 units.
        side = size // kernel
        options: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.size, self.pool, self.pooling, self.in_channels = size, pool, pooling, in_channels
        self.features = LocalBlock(in_channels, channels, kernel, (side, side), **options)
        self.classifier = dense((side // pool) ** 2 * channels, num_classes, **options)
