"""Convolution as matrix products over its taps, and, for depthwise kernels, as a sum of shifted products."""

import dataclasses
import itertools
import math
import operator
from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from stabjax.conv._geometry import Geometry, pad, strided

_FEW_CHANNELS = 64
"""Below this many channels a product per tap is too narrow, and the patches are gathered for one wide product."""


def _shifted(x: Array, geometry: Geometry) -> list[Array]:
    """What each tap sees: (batch, *out_size, in) for every position of the kernel, in row-major order."""
    x = pad(x, geometry.padding)
    starts = itertools.product(*[[k * d for k in range(n)] for n, d in zip(geometry.kernel, geometry.dilation)])
    return [strided(x, start, geometry.out_size, geometry.strides) for start in starts]


def _matrix(x: Array) -> Array:
    return jnp.reshape(x, (-1, x.shape[-1]))


def forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The patches of the input (im2col) times the kernel, as one product."""
    patches = _matrix(jnp.concatenate(_shifted(x, geometry), -1))
    y = patches @ jnp.reshape(kernel, (-1, geometry.out_channels))
    return jnp.reshape(y, (geometry.batch, *geometry.out_size, geometry.out_channels))


def kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """The transpose of the convolution with respect to the kernel."""
    over_positions = (((0,), (0,)), ((), ()))
    g = _matrix(g)
    if geometry.in_channels < _FEW_CHANNELS:
        patches = _matrix(lax.optimization_barrier(jnp.concatenate(_shifted(x, geometry), -1)))
        gradient = lax.dot_general(patches, g, over_positions)
    else:
        shifted = lax.optimization_barrier(_shifted(x, geometry))
        gradient = jnp.stack([lax.dot_general(_matrix(tap), g, over_positions) for tap in shifted])
    return jnp.reshape(gradient, (*geometry.kernel, geometry.in_channels, geometry.out_channels))


def depthwise_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Every channel with its own kernels: a sum of shifted products, (batch, *out_size, in * multiplier)."""
    kernel = jnp.reshape(kernel, (geometry.taps, *(1,) * (1 + len(geometry.size)), geometry.out_channels))
    # Images of one channel take the place of channels, so that neighbours in memory are computed alike.
    lone = geometry.in_channels == geometry.out_channels == 1
    shifted = _shifted(jnp.swapaxes(x, 0, -1) if lone else x, geometry)
    y = reduce(operator.add, [_repeat(tap, geometry.out_group) * weight for tap, weight in zip(shifted, kernel)])
    return jnp.swapaxes(y, 0, -1) if lone else y


def depthwise_kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """The transpose of the depthwise convolution with respect to the kernel.

    One image after the other is added to sums of the size of an image, a row of the kernel at a time so that they stay
    in the cache; a reduction over the whole batch would be a loop over single numbers on the CPU.
    """
    padded = pad(x, geometry.padding)
    flat = ((0, 0),) * len(geometry.size)
    alone = dataclasses.replace(geometry, batch=1, size=padded.shape[1:-1], padding=flat)
    start = jnp.zeros((1, *geometry.out_size, geometry.out_channels), g.dtype)
    width = geometry.kernel[-1]
    sums: list[Array] = []
    for row in range(0, geometry.taps, width):

        def add(sums: list[Array], image: tuple[Array, Array], row: int = row) -> tuple[list[Array], None]:
            pixels, slope = image
            taps = _shifted(pixels[None], alone)[row : row + width]
            return [s + _repeat(tap, geometry.out_group) * slope[None] for s, tap in zip(sums, taps)], None

        # Else a transposed loop keeps what every tap sees of every image.
        sums += lax.scan(jax.checkpoint(add, prevent_cse=False), [start] * width, (padded, g))[0]
    axes = tuple(range(g.ndim - 1))
    return jnp.reshape(jnp.stack([jnp.sum(s, axes) for s in sums]), (*geometry.kernel, 1, geometry.out_channels))


def _repeat(x: Array, times: int) -> Array:
    return x if times == 1 else jnp.repeat(x, times, -1)


def _dense_taps(geometry: Geometry) -> list[list[int | None]]:
    """For every input and output pixel the tap that joins them, row-major, or None."""

    def tap(pixel: tuple[int, ...], out: tuple[int, ...]) -> int | None:
        index = 0
        for p, q, k, s, d, (low, _) in zip(
            pixel, out, geometry.kernel, geometry.strides, geometry.dilation, geometry.padding
        ):
            step, rest = divmod(p + low - q * s, d)
            if rest or not 0 <= step < k:
                return None
            index = index * k + step
        return index

    outs = list(itertools.product(*map(range, geometry.out_size)))
    return [[tap(pixel, out) for out in outs] for pixel in itertools.product(*map(range, geometry.size))]


def dense_matrix(kernel: Array, geometry: Geometry) -> Array:
    """The whole convolution of a small map as one matrix, (pixels * in, out pixels * out)."""
    blocks = jnp.reshape(kernel, (-1, geometry.in_channels, geometry.out_channels))
    zero = jnp.zeros(blocks.shape[1:], kernel.dtype)
    rows = [[zero if tap is None else blocks[tap] for tap in row] for row in _dense_taps(geometry)]
    return lax.optimization_barrier(jnp.concatenate([jnp.concatenate(row, 1) for row in rows], 0))


def dense_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution of a small map as a dense layer."""
    y = jnp.reshape(x, (geometry.batch, -1)) @ dense_matrix(kernel, geometry)
    return jnp.reshape(y, (geometry.batch, *geometry.out_size, geometry.out_channels))


def dense_input_gradient(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """The transpose of the dense layer with respect to its input."""
    matrix = dense_matrix(kernel, geometry)
    x = lax.dot_general(jnp.reshape(g, (geometry.batch, -1)), matrix, (((1,), (1,)), ((), ())))
    return jnp.reshape(x, (geometry.batch, *geometry.size, geometry.in_channels))


def dense_kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """The transpose of the dense layer with respect to the kernel."""
    x, g = jnp.reshape(x, (geometry.batch, -1)), jnp.reshape(g, (geometry.batch, -1))
    matrix = lax.dot_general(x, g, (((0,), (0,)), ((), ())))
    pixels, outs = math.prod(geometry.size), math.prod(geometry.out_size)
    blocks = jnp.reshape(matrix, (pixels, geometry.in_channels, outs, geometry.out_channels))
    taps: list[list[Array]] = [[] for _ in range(geometry.taps)]
    for p, row in enumerate(_dense_taps(geometry)):
        for q, tap in enumerate(row):
            if tap is not None:
                taps[tap].append(blocks[p, :, q])
    zero = jnp.zeros((geometry.in_channels, geometry.out_channels), matrix.dtype)
    gradient = jnp.stack([reduce(operator.add, terms) if terms else zero for terms in taps])
    return jnp.reshape(gradient, (*geometry.kernel, geometry.in_channels, geometry.out_channels))
