"""Grouped convolution as a few dense ones.

Groups of a few channels make products too narrow for any CPU. Several groups make a bundle, about as wide as the
registers like it; its kernel is block-diagonal, and the zeros cost less than the narrowness::

    groups   in 0 1 | 2 3 | 4 5 | 6 7            bundle kernel    w01  0
    bundles  in 0 1   2 3 | 4 5   6 7                              0  w23
"""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from stabjax.conv._geometry import Geometry

_BUNDLE_CHANNELS = 64

Convolution = Callable[[Array, Array, Geometry], Array]


def _bundle(geometry: Geometry) -> tuple[int, Geometry]:
    """Return how many groups make a bundle, and the geometry of the dense convolution that a bundle is."""
    # The largest divisor of the number of groups that fits: all bundles are alike.
    widest = max(1, _BUNDLE_CHANNELS // max(geometry.in_group, geometry.out_group))
    count = max(m for m in range(1, widest + 1) if geometry.groups % m == 0)
    return count, replace(
        geometry, in_channels=count * geometry.in_group, out_channels=count * geometry.out_group, groups=1
    )


def _split_channels(x: Array, width: int) -> list[Array]:
    """Cut the last axis into parts of this width."""
    return [lax.slice_in_dim(x, start, start + width, axis=x.ndim - 1) for start in range(0, x.shape[-1], width)]


def _block_mask(count: int, geometry: Geometry, dtype: jnp.dtype) -> Array:
    """Return ones where input and output channel are of one group, ``(1, ..., groups, 1, groups, 1)``."""
    return jnp.reshape(jnp.eye(count, dtype=dtype), (*(1,) * len(geometry.kernel), count, 1, count, 1))


def forward(x: Array, kernel: Array, geometry: Geometry, dense: Convolution) -> Array:
    """Convolve in groups, every bundle by the convolution ``dense``."""
    count, bundle = _bundle(geometry)
    # (*kernel, in_group, out) is spread over a new axis of input groups, of which the mask keeps the own one.
    blocks = (*geometry.kernel, 1, geometry.in_group, count, geometry.out_group)
    mask = _block_mask(count, geometry, kernel.dtype)
    outputs = []
    for part, narrow in zip(
        _split_channels(x, bundle.in_channels), _split_channels(kernel, bundle.out_channels), strict=True
    ):
        # Kernel (*kernel, 1, in_group, count, out_group) times mask (1, ..., count, 1, count, 1) is block-diagonal,
        # (*kernel, count, in_group, count, out_group): inputs and outputs of the bundle, each by group and channel.
        wide = jnp.reshape(narrow, blocks) * mask
        wide = jnp.reshape(wide, (*geometry.kernel, bundle.in_channels, bundle.out_channels))
        outputs.append(dense(part, lax.optimization_barrier(wide), bundle))
    return jnp.concatenate(outputs, -1)


def kernel_gradient(x: Array, g: Array, geometry: Geometry, dense: Convolution) -> Array:
    """Compute the gradient of the kernel, every bundle by ``dense``: the transpose of `forward`."""
    count, bundle = _bundle(geometry)
    # The dense gradient has blocks off the diagonal, too; the mask drops them, and the sum takes its axis away.
    blocks = (*geometry.kernel, count, geometry.in_group, count, geometry.out_group)
    mask = _block_mask(count, geometry, g.dtype)
    gradients = []
    for part, cotangent in zip(
        _split_channels(x, bundle.in_channels), _split_channels(g, bundle.out_channels), strict=True
    ):
        wide = jnp.reshape(dense(part, cotangent, bundle), blocks)
        narrow = jnp.sum(wide * mask, axis=len(geometry.kernel))
        gradients.append(jnp.reshape(narrow, (*geometry.kernel, geometry.in_group, bundle.out_channels)))
    return jnp.concatenate(gradients, -1)
