"""A batch of samples of several layers: one array per layer, or all units side by side."""

from collections.abc import Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from stabjax._numerics import HIGHEST
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, Scalar

Layers = Sequence[Float[AnyArray, "b _"]]
"""One array of samples in rows per layer, for the same samples."""
Sizes = tuple[int, ...]
"""Number of units of each layer."""


def rows_of(x: AnyArray, dtype: np.dtype) -> Array:
    """Return samples in rows as an array of this dtype."""
    return without_explicit_axes(jnp.asarray(x)).astype(dtype)


def mask_of(counted: Bool[AnyArray, " b"] | None, n: int) -> Bool[Array, " b"]:
    """Return which of ``n`` rows count; all, where nothing is said."""
    return jnp.ones(n, bool) if counted is None else without_explicit_axes(jnp.asarray(counted))


def concatenate(layers: Layers, dtype: np.dtype) -> Float[Array, "b units"]:
    """Return the units of all layers side by side."""
    return jnp.concatenate([rows_of(x, dtype) for x in layers], axis=1)


def split(x: Float[Array, "*rows units"], sizes: Sizes) -> Sequence[Float[Array, "*rows _"]]:
    """Split units that stand side by side along the last axis into those of each layer."""
    # The ends of all layers but the last are where the axis is cut.
    return jnp.split(x, list(accumulate(sizes))[:-1], axis=-1)


def sum_by_layer(x: Array, sizes: Sizes) -> Array:
    """Sum ``(..., units)`` over the units of each layer, ``(layers, ...)``.

    Each apart, so that what is not a number in one does not reach the others.
    """
    return jnp.stack([jnp.sum(part, axis=-1) for part in split(x, sizes)])


def multiply(x: Array, y: Array) -> Array:
    """Return the matrix product, in full precision."""
    return jnp.matmul(x, y, precision=HIGHEST)


def write_samples(
    x: Shaped[Array, "*rows n"], new: Shaped[Array, "*rows b"], start: Scalar
) -> Shaped[Array, "*rows n"]:
    """Write samples along the last axis from ``start`` on; those for which there is no room are dropped."""
    n = x.shape[-1]
    new = new[..., :n]
    b = new.shape[-1]
    # A slice that would reach over the end is moved back to ``low``, without an error. Its samples are moved on by as
    # much, and what stands before them is written as it is. With n = 6, b = 4, start = 4:
    #     x   0 1 2 3 4 5      new       a b c d      written at 2       2 3 a b
    # A scatter that drops them takes four times as long on the CPU.
    low = jnp.clip(start, 0, n - b)
    kept = jax.lax.dynamic_slice_in_dim(x, low, b, axis=-1)
    moved = jnp.roll(new, start - low, axis=-1)
    return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(jnp.arange(b) < start - low, kept, moved), low, axis=-1)
