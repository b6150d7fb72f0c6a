"""Norms of kernels as they stand in a program: scaled by channel, transposed, with the image spread or cut."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from stabjax.lipschitz._conv import conv


class Axes(NamedTuple):
    """A convolution along each axis of space; ``spread`` is the dilation of its input."""

    sides: tuple[int, ...]
    results: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    spread: tuple[int, ...]
    dilation: tuple[int, ...]


def norm_of_convolution(kernel: Array, axes: Axes, groups: int, scale: Any) -> Array:
    """A certified bound, each output channel times its entry of ``scale``."""
    sides = [(side - 1) * spread + 1 for side, spread in zip(axes.sides, axes.spread)]
    # Negative padding cuts the image.
    sides = [side + min(low, 0) + min(high, 0) for side, (low, high) in zip(sides, axes.padding)]
    padding = tuple((max(low, 0), max(high, 0)) for low, high in axes.padding)
    options: Any = {"stride": axes.strides, "padding": padding, "dilation": axes.dilation, "groups": groups}
    return conv(by_channel(kernel, scale), tuple(sides), **options).value


def norm_of_transposed(kernel: Array, axes: Axes, groups: int, scale: Any) -> Array:
    """That of the convolution whose transpose it is, ``x_i = sum_q w_q' y_(s i - d q + low)``."""
    kernel = by_channel(kernel, scale)
    *window, inputs, outputs = kernel.shape
    ndim = len(window)
    kernel = jnp.reshape(jnp.flip(kernel, range(ndim)), (*window, inputs, groups, outputs // groups))
    kernel = jnp.reshape(
        jnp.transpose(kernel, (*range(ndim), ndim + 2, ndim + 1, ndim)), (*window, -1, inputs * groups)
    )
    padding = []
    for k, side, result, (low, _), s, d in zip(
        window, axes.sides, axes.results, axes.padding, axes.spread, axes.dilation
    ):
        before = (k - 1) * d - low
        padding.append((before, s * (side - 1) + (k - 1) * d + 1 - result - before))
    swapped = Axes(axes.results, axes.sides, axes.spread, tuple(padding), (1,) * ndim, axes.dilation)
    return norm_of_convolution(kernel, swapped, groups, 1.0)


def by_channel(kernel: Array, scale: Any) -> Array:
    """The kernel with its last axis scaled."""
    return kernel * jnp.reshape(jnp.asarray(scale, kernel.dtype), (*[1] * (kernel.ndim - 1), -1))
