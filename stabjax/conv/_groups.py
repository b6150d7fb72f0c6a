"""Grouped convolution as a few dense ones.

Groups of a few channels make products too narrow for any CPU. So many groups are joined that a bundle is about as wide
as the registers like it; its kernel is block-diagonal, and the zeros cost less than the narrowness.
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
    """The groups of a bundle, and the dense convolution that a bundle is."""
    widest = max(1, _BUNDLE_CHANNELS // max(geometry.in_group, geometry.out_group))
    joined = max(m for m in range(1, widest + 1) if geometry.groups % m == 0)
    return joined, replace(
        geometry, in_channels=joined * geometry.in_group, out_channels=joined * geometry.out_group, groups=1
    )


def _parts(x: Array, width: int) -> list[Array]:
    return [lax.slice_in_dim(x, start, start + width, axis=x.ndim - 1) for start in range(0, x.shape[-1], width)]


def _diagonal(joined: int, geometry: Geometry, dtype: jnp.dtype) -> Array:
    """Ones where the input and the output channel are of one group, (1, ..., groups, 1, groups, 1)."""
    return jnp.reshape(jnp.eye(joined, dtype=dtype), (*(1,) * len(geometry.kernel), joined, 1, joined, 1))


def forward(x: Array, kernel: Array, geometry: Geometry, dense: Convolution) -> Array:
    """The grouped convolution, every bundle by the convolution ``dense``."""
    joined, bundle = _bundle(geometry)
    blocks = (*geometry.kernel, 1, geometry.in_group, joined, geometry.out_group)
    diagonal = _diagonal(joined, geometry, kernel.dtype)
    outputs = []
    for part, narrow in zip(_parts(x, bundle.in_channels), _parts(kernel, bundle.out_channels), strict=True):
        wide = jnp.reshape(narrow, blocks) * diagonal
        wide = jnp.reshape(wide, (*geometry.kernel, bundle.in_channels, bundle.out_channels))
        outputs.append(dense(part, lax.optimization_barrier(wide), bundle))
    return jnp.concatenate(outputs, -1)


def kernel_gradient(x: Array, g: Array, geometry: Geometry, dense: Convolution) -> Array:
    """The transpose of `forward` with respect to the kernel, every bundle by ``dense``."""
    joined, bundle = _bundle(geometry)
    blocks = (*geometry.kernel, joined, geometry.in_group, joined, geometry.out_group)
    diagonal = _diagonal(joined, geometry, g.dtype)
    gradients = []
    for part, cotangent in zip(_parts(x, bundle.in_channels), _parts(g, bundle.out_channels), strict=True):
        wide = jnp.reshape(dense(part, cotangent, bundle), blocks)
        narrow = jnp.sum(wide * diagonal, axis=len(geometry.kernel))
        gradients.append(jnp.reshape(narrow, (*geometry.kernel, geometry.in_group, bundle.out_channels)))
    return jnp.concatenate(gradients, -1)
