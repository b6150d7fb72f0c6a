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

from stabjax.conv._geometry import Geometry, pad, strided_slice

_FEW_CHANNELS = 64
"""Below this many channels a product per tap is too narrow, and the patches are gathered for one wide product."""


def _tap_views(x: Array, geometry: Geometry) -> list[Array]:
    """Return what each tap of the kernel sees, ``(batch, *out_size, in)`` each, taps in row-major order."""
    x = pad(x, geometry.padding)
    # Tap q of output p sees padded pixel s p + d q: a slice that starts at d q, with step s.
    starts = itertools.product(*[[k * d for k in range(n)] for n, d in zip(geometry.kernel, geometry.dilation)])
    return [strided_slice(x, start, geometry.out_size, geometry.strides) for start in starts]


def _as_rows(x: Array) -> Array:
    """Flatten all axes but the last."""
    return jnp.reshape(x, (-1, x.shape[-1]))


def forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Multiply the patches of the input (im2col) by the kernel, as one product."""
    patches = _as_rows(jnp.concatenate(_tap_views(x, geometry), -1))
    # (positions, taps * in) @ (taps * in, out)
    y = patches @ jnp.reshape(kernel, (-1, geometry.out_channels))
    return jnp.reshape(y, (geometry.batch, *geometry.out_size, geometry.out_channels))


def kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """Compute the gradient of the kernel: patches transposed times the gradient of the output, over all positions."""
    over_positions = (((0,), (0,)), ((), ()))
    g = _as_rows(g)
    if geometry.in_channels < _FEW_CHANNELS:
        patches = _as_rows(lax.optimization_barrier(jnp.concatenate(_tap_views(x, geometry), -1)))
        gradient = lax.dot_general(patches, g, over_positions)
    else:
        # Wide enough for one product per tap, (in, positions) (positions, out): the views need not be joined.
        views = lax.optimization_barrier(_tap_views(x, geometry))
        gradient = jnp.stack([lax.dot_general(_as_rows(tap), g, over_positions) for tap in views])
    return jnp.reshape(gradient, (*geometry.kernel, geometry.in_channels, geometry.out_channels))


def depthwise_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolve every channel with its own kernels: a sum over the taps, ``(batch, *out_size, in * multiplier)``."""
    # (*kernel, 1, out) -> (taps, 1, ..., 1, out), one row of weights per tap. Output channels of one input channel
    # stand side by side, hence `_repeat`.
    kernel = jnp.reshape(kernel, (geometry.taps, *(1,) * (1 + len(geometry.size)), geometry.out_channels))
    # Images of one channel take the place of channels, so that neighbors in memory are computed alike.
    single_channel = geometry.in_channels == geometry.out_channels == 1
    views = _tap_views(jnp.swapaxes(x, 0, -1) if single_channel else x, geometry)
    y = reduce(operator.add, [_repeat(tap, geometry.out_group) * weight for tap, weight in zip(views, kernel)])
    return jnp.swapaxes(y, 0, -1) if single_channel else y


def depthwise_kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """Compute the gradient of the kernel of a depthwise convolution.

    One image after the other is added to sums of the size of an image, a row of the kernel at a time so that they stay
    in the cache; a reduction over the whole batch would be a loop over single numbers on the CPU.
    """
    padded = pad(x, geometry.padding)
    # The images are padded beforehand, so that the padding is not done once per row of the kernel.
    flat = ((0, 0),) * len(geometry.size)
    one_image = dataclasses.replace(geometry, batch=1, size=padded.shape[1:-1], padding=flat)
    start = jnp.zeros((1, *geometry.out_size, geometry.out_channels), g.dtype)
    width = geometry.kernel[-1]
    sums: list[Array] = []
    for row in range(0, geometry.taps, width):

        def add(sums: list[Array], image: tuple[Array, Array], row: int = row) -> tuple[list[Array], None]:
            pixels, slope = image
            taps = _tap_views(pixels[None], one_image)[row : row + width]
            return [s + _repeat(tap, geometry.out_group) * slope[None] for s, tap in zip(sums, taps)], None

        # Else a transposed loop keeps what every tap sees of every image.
        sums += lax.scan(jax.checkpoint(add, prevent_cse=False), [start] * width, (padded, g))[0]
    axes = tuple(range(g.ndim - 1))
    return jnp.reshape(jnp.stack([jnp.sum(s, axes) for s in sums]), (*geometry.kernel, 1, geometry.out_channels))


def _repeat(x: Array, times: int) -> Array:
    """Repeat each channel, next to itself."""
    return x if times == 1 else jnp.repeat(x, times, -1)


def _dense_taps(geometry: Geometry) -> list[list[int | None]]:
    """Return for every input and output pixel the tap that connects them, row-major, or None.

    Tap ``q`` of output ``o`` sees pixel ``p = o s + q d - low``, so ``q = (p + low - o s) / d`` if that is a tap.
    """

    def tap(pixel: tuple[int, ...], out: tuple[int, ...]) -> int | None:
        index = 0
        for p, q, k, s, d, (low, _) in zip(
            pixel, out, geometry.kernel, geometry.strides, geometry.dilation, geometry.padding
        ):
            # `rest`: between two taps of a dilated kernel. `index` grows to the row-major index of the tap.
            step, rest = divmod(p + low - q * s, d)
            if rest or not 0 <= step < k:
                return None
            index = index * k + step
        return index

    outs = list(itertools.product(*map(range, geometry.out_size)))
    return [[tap(pixel, out) for out in outs] for pixel in itertools.product(*map(range, geometry.size))]


def dense_matrix(kernel: Array, geometry: Geometry) -> Array:
    """Write the whole convolution of a small map as one matrix, ``(pixels * in, out pixels * out)``."""
    blocks = jnp.reshape(kernel, (-1, geometry.in_channels, geometry.out_channels))
    zero = jnp.zeros(blocks.shape[1:], kernel.dtype)
    # Block (p, q) of the matrix is the tap through which output q sees pixel p.
    rows = [[zero if tap is None else blocks[tap] for tap in row] for row in _dense_taps(geometry)]
    return lax.optimization_barrier(jnp.concatenate([jnp.concatenate(row, 1) for row in rows], 0))


def dense_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolve a small map as a dense layer."""
    # (batch, pixels * in) @ (pixels * in, out pixels * out)
    y = jnp.reshape(x, (geometry.batch, -1)) @ dense_matrix(kernel, geometry)
    return jnp.reshape(y, (geometry.batch, *geometry.out_size, geometry.out_channels))


def dense_input_gradient(g: Array, kernel: Array, geometry: Geometry) -> Array:
    """Compute the gradient of the input of the dense layer."""
    matrix = dense_matrix(kernel, geometry)
    # The transpose of the matrix, by contracting its columns: nothing is transposed in memory.
    x = lax.dot_general(jnp.reshape(g, (geometry.batch, -1)), matrix, (((1,), (1,)), ((), ())))
    return jnp.reshape(x, (geometry.batch, *geometry.size, geometry.in_channels))


def dense_kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
    """Compute the gradient of the kernel: the blocks of the dense gradient, summed by the tap that they hold."""
    x, g = jnp.reshape(x, (geometry.batch, -1)), jnp.reshape(g, (geometry.batch, -1))
    matrix = lax.dot_general(x, g, (((0,), (0,)), ((), ())))
    pixels, outs = math.prod(geometry.size), math.prod(geometry.out_size)
    blocks = jnp.reshape(matrix, (pixels, geometry.in_channels, outs, geometry.out_channels))
    # blocks[p, :, q] is the gradient of the block through which output q sees pixel p. All blocks of one tap hold the
    # same weights, so their gradients add up.
    taps: list[list[Array]] = [[] for _ in range(geometry.taps)]
    for p, row in enumerate(_dense_taps(geometry)):
        for q, tap in enumerate(row):
            if tap is not None:
                taps[tap].append(blocks[p, :, q])
    zero = jnp.zeros((geometry.in_channels, geometry.out_channels), matrix.dtype)
    # A tap that connects no pixels, all in the padding, has gradient zero.
    gradient = jnp.stack([reduce(operator.add, terms) if terms else zero for terms in taps])
    return jnp.reshape(gradient, (*geometry.kernel, geometry.in_channels, geometry.out_channels))
