"""Convolution of few channels: two neighboring pixels are taken as one pixel of twice the channels.

Images have three channels, too few for the wide registers of a CPU. Along the last axis, two outputs that stand side by
side see ``k + 1`` pixels; as pairs they are one output of twice the channels, and the kernel of pairs holds the kernel
twice, once a pixel further::

    w0 w1 w2 .
    .  w0 w1 w2

It multiplies with some zeros, which costs less than what narrow products waste.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from stabjax.conv._geometry import Geometry

Route = Callable[[Array, Array, Geometry], Array]


def can_pair(geometry: Geometry) -> bool:
    """Tell whether the outputs along the last axis see neighboring pixels and are many enough to make pairs."""
    dense = geometry.strides[-1] == geometry.dilation[-1] == geometry.groups == 1
    return dense and geometry.kernel[-1] > 1 and geometry.out_size[-1] > 1


def forward(x: Array, kernel: Array, geometry: Geometry, route: Route) -> Array:
    """Convolve; ``route`` computes the convolution of pairs."""
    y = route(_as_pairs(x, geometry), _pair_kernel(kernel, geometry), _pair_geometry(geometry))
    # (..., pairs, 2 out) -> (..., pixels, out); of an odd number of outputs, the last pair is half.
    y = jnp.reshape(y, (*y.shape[:-2], -1, geometry.out_channels))
    return lax.slice_in_dim(y, 0, geometry.out_size[-1], axis=-2)


def kernel_gradient(x: Array, g: Array, geometry: Geometry, route: Route) -> Array:
    """Compute the gradient of the kernel; ``route`` computes that of the kernel of pairs."""
    pair_geometry = _pair_geometry(geometry)
    g = _pad_to(g, -2, 0, 2 * pair_geometry.out_size[-1])
    g = jnp.reshape(g, (*g.shape[:-2], -1, pair_geometry.out_channels))
    gradient = route(_as_pairs(x, geometry), g, pair_geometry)
    # The kernel stands twice in that of pairs: the transpose of laying it out adds both gradients up.
    shape = (*geometry.kernel, geometry.in_channels, geometry.out_channels)
    transpose = jax.linear_transpose(
        lambda kernel: _pair_kernel(kernel, geometry), jax.ShapeDtypeStruct(shape, gradient.dtype)
    )
    return transpose(gradient)[0]


def _pair_geometry(geometry: Geometry) -> Geometry:
    """Return the geometry in pairs along the last axis: ``k + 1`` pixels of two outputs are ``k // 2 + 1`` pairs."""
    # Output pair P holds outputs 2 P and 2 P + 1, which see padded pixels 2 P .. 2 P + k: k + 1 of them. They lie in
    # the pairs P .. P + k // 2, for even k with one pixel to spare. Padding is part of the pairs, so none is left::
    #
    #     k = 3      pixels  0 1 | 2 3 | 4 5          output pair 0 sees pairs 0 and 1,
    #                pairs    0  |  1  |  2           output pair 1 sees pairs 1 and 2
    outputs = -(-geometry.out_size[-1] // 2)
    taps = geometry.kernel[-1] // 2 + 1
    return dataclasses.replace(
        geometry,
        size=(*geometry.size[:-1], outputs + taps - 1),
        kernel=(*geometry.kernel[:-1], taps),
        padding=(*geometry.padding[:-1], (0, 0)),
        in_channels=2 * geometry.in_channels,
        out_channels=2 * geometry.out_channels,
    )


def _as_pairs(x: Array, geometry: Geometry) -> Array:
    """Take neighboring pixels as one, zeros around them included, ``(batch, ..., pairs, 2 in)``."""
    pair_geometry = _pair_geometry(geometry)
    # (batch, ..., 2 pairs, in) -> (batch, ..., pairs, 2 in): neighbors in memory, so the reshape moves nothing.
    x = _pad_to(x, -2, geometry.padding[-1][0], 2 * pair_geometry.size[-1])
    return jnp.reshape(x, (*x.shape[:-2], -1, pair_geometry.in_channels))


def _pair_kernel(kernel: Array, geometry: Geometry) -> Array:
    """Lay the kernel out twice, once a pixel further, ``(..., pairs, 2 in, 2 out)``."""
    pair_geometry = _pair_geometry(geometry)
    # Shift 0 is for the first output of a pair, shift 1 for the second:
    #   (..., k, in, out) twice -> (..., 2 taps, in, 2 out) -> (..., taps, 2 in, 2 out)
    both = [_pad_to(kernel, -3, shift, 2 * pair_geometry.kernel[-1]) for shift in (0, 1)]
    return jnp.reshape(
        jnp.concatenate(both, -1), (*pair_geometry.kernel, pair_geometry.in_channels, pair_geometry.out_channels)
    )


def _pad_to(x: Array, axis: int, before: int, count: int) -> Array:
    """Pad an axis with zeros to ``count`` entries, ``before`` of them in front; entries beyond are cut."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (before, count - before - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), padding)
