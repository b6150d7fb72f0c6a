"""Norms of convolutions as `jax.lax` states them: channels scaled, transposed, the image dilated or cut."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from stabjax.lipschitz._conv import conv


class ConvAxes(NamedTuple):
    """A convolution along each spatial axis.

    Attributes:
        sides: pixels of the input.
        results: pixels of the output.
        strides: step of the window.
        padding: zeros ``(low, high)``; negative numbers cut.
        spread: dilation of the input.
        dilation: of the window.
    """

    sides: tuple[int, ...]
    results: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    spread: tuple[int, ...]
    dilation: tuple[int, ...]


def convolution_norm(kernel: Array, axes: ConvAxes, groups: int, scale: Any) -> Array:
    """Bound the norm from above, certified, each output channel times its entry of ``scale``."""
    sides = [(side - 1) * spread + 1 for side, spread in zip(axes.sides, axes.spread)]
    # Zeros between the pixels are part of the image: a larger one, of which most pixels are zero. Negative padding
    # cuts it.
    sides = [side + min(low, 0) + min(high, 0) for side, (low, high) in zip(sides, axes.padding)]
    padding = tuple((max(low, 0), max(high, 0)) for low, high in axes.padding)
    options: Any = {"stride": axes.strides, "padding": padding, "dilation": axes.dilation, "groups": groups}
    return conv(scale_outputs(kernel, scale), tuple(sides), **options).value


def transposed_convolution_norm(kernel: Array, axes: ConvAxes, groups: int, scale: Any) -> Array:
    """Bound the norm of a transposed convolution by that of the convolution whose transpose it is.

    With input dilation ``s`` and stride 1, ``y_i = sum_q w_q x_((i + d q - low) / s)`` over indices that are integers.
    The transpose is ``x_j = sum_q w_q' y_(s j - d q + low)``: a convolution with stride ``s``, the window
    flipped, inputs and outputs of each group exchanged.
    """
    kernel = scale_outputs(kernel, scale)
    *window, inputs, outputs = kernel.shape
    ndim = len(window)
    # Groups are blocks of the outputs, so the exchange is made inside each block.
    kernel = jnp.reshape(jnp.flip(kernel, range(ndim)), (*window, inputs, groups, outputs // groups))
    kernel = jnp.reshape(
        jnp.transpose(kernel, (*range(ndim), ndim + 2, ndim + 1, ndim)), (*window, -1, inputs * groups)
    )
    # (*window, inputs, groups, out) -> (*window, out, groups * inputs)
    padding = []
    for k, side, result, (low, _), s, d in zip(
        window, axes.sides, axes.results, axes.padding, axes.spread, axes.dilation
    ):
        # Tap q is number p = k - 1 - q of the flipped window, which reads y at s j + d p - ((k - 1) d - low): so many
        # zeros before. The zeros behind are as many as make (result + before + behind - (k - 1) d - 1) // s + 1 = side.
        before = (k - 1) * d - low
        padding.append((before, s * (side - 1) + (k - 1) * d + 1 - result - before))
    swapped = ConvAxes(axes.results, axes.sides, axes.spread, tuple(padding), (1,) * ndim, axes.dilation)
    return convolution_norm(kernel, swapped, groups, 1.0)


def scale_outputs(kernel: Array, scale: Any) -> Array:
    """Multiply the last axis of a kernel, that of the outputs, by a number or one number each."""
    return kernel * jnp.reshape(jnp.asarray(scale, kernel.dtype), (*[1] * (kernel.ndim - 1), -1))
