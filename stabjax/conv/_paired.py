"""Convolution of few channels: two neighbouring pixels are taken as one pixel of twice the channels.

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
    """Whether the outputs along the last axis see neighbouring pixels and are many enough to be paired."""
    dense = geometry.strides[-1] == geometry.dilation[-1] == geometry.groups == 1
    return dense and geometry.kernel[-1] > 1 and geometry.out_size[-1] > 1


def forward(x: Array, kernel: Array, geometry: Geometry, route: Route) -> Array:
    """The convolution; ``route`` computes the one of pairs."""
    y = route(_pairs_of(x, geometry), _kernel_of_pairs(kernel, geometry), _of_pairs(geometry))
    y = jnp.reshape(y, (*y.shape[:-2], -1, geometry.out_channels))
    return lax.slice_in_dim(y, 0, geometry.out_size[-1], axis=-2)


def kernel_gradient(x: Array, g: Array, geometry: Geometry, route: Route) -> Array:
    """The transpose of the convolution with respect to the kernel; ``route`` computes the one of pairs."""
    paired = _of_pairs(geometry)
    g = _padded(g, -2, 0, 2 * paired.out_size[-1])
    g = jnp.reshape(g, (*g.shape[:-2], -1, paired.out_channels))
    gradient = route(_pairs_of(x, geometry), g, paired)
    shape = (*geometry.kernel, geometry.in_channels, geometry.out_channels)
    doubled = jax.linear_transpose(
        lambda kernel: _kernel_of_pairs(kernel, geometry), jax.ShapeDtypeStruct(shape, gradient.dtype)
    )
    return doubled(gradient)[0]


def _of_pairs(geometry: Geometry) -> Geometry:
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


def _pairs_of(x: Array, geometry: Geometry) -> Array:
    paired = _of_pairs(geometry)
    x = _padded(x, -2, geometry.padding[-1][0], 2 * paired.size[-1])
    return jnp.reshape(x, (*x.shape[:-2], -1, paired.in_channels))


def _kernel_of_pairs(kernel: Array, geometry: Geometry) -> Array:
    paired = _of_pairs(geometry)
    both = [_padded(kernel, -3, shift, 2 * paired.kernel[-1]) for shift in (0, 1)]
    return jnp.reshape(jnp.concatenate(both, -1), (*paired.kernel, paired.in_channels, paired.out_channels))


def _padded(x: Array, axis: int, before: int, count: int) -> Array:
    """So many entries along an axis, zeros where there are none; ``before`` stand in front."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (before, count - before - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), padding)
