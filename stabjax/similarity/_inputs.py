"""What every measure takes: a pair of activation matrices, validated, centered and scaled."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray

X = Float[AnyArray, "n units_x"]
Y = Float[AnyArray, "n units_y"]


class Scaled(NamedTuple):
    """Hold centered units over their scales."""

    units: Array
    """``(n, units)``: ``(x - mean) / scale``; exactly zero where a unit does not vary."""
    mean: Array
    """``(units,)``."""
    scale: Array
    """``(units,)``, positive."""
    varies: Bool[Array, " units"]
    """False for units that have one value on all samples."""


def validate_pair(x: AnyArray, y: AnyArray, *, least: int = 2) -> tuple[Array, Array]:
    """Return both sets of activations in one dtype, at least single precision.

    Args:
        x: activations, ``(n, units_x)``, samples in rows.
        y: ``(n, units_y)``, for the same samples.
        least: smallest number of samples.

    Raises:
        TypeError: if the activations are not real floating-point numbers.
        ValueError: if they are not matrices, if the numbers of samples differ, or there are fewer than ``least``.
    """
    for name, z in (("x", x), ("y", y)):
        if not jnp.issubdtype(z.dtype, jnp.floating):
            raise TypeError(f"expected real floating-point activations, got {name} of {z.dtype}")
        if z.ndim != 2 or z.shape[1] == 0:
            raise ValueError(
                f"expected {name} as (n, units), samples in rows, got shape {z.shape}: make samples of maps by "
                "similarity.positions, average or resized, or flatten them"
            )
    if len(x) != len(y):
        raise ValueError(f"expected the same samples on both sides, got {len(x)} and {len(y)}")
    if len(x) < least:
        raise ValueError(f"expected at least {least} samples, got {len(x)}")
    return promote_pair(x, y)


def promote_pair(x: AnyArray, y: AnyArray) -> tuple[Array, Array]:
    """Return both arrays in their common dtype, at least single precision: half precision cannot hold squares."""
    x, y = without_explicit_axes((jnp.asarray(x), jnp.asarray(y)))
    dtype = np.result_type(x.dtype, y.dtype, np.float32)
    return x.astype(dtype), y.astype(dtype)


def center_and_scale(x: Array, *, standardize: bool) -> Scaled:
    """Center the units and divide them by their scales, so that squares neither overflow nor vanish.

    Args:
        x: activations, ``(n, units)``, real or complex.
        standardize: whether each unit is divided by its own largest value; otherwise all are divided by the largest of
            all, which keeps their variances in proportion.
    """
    # Less the first sample, before anything is averaged: a unit with one value is exactly zero from here on, which is
    # how it is recognized, and a large mean costs no digits.
    shifted = x - x[:1]
    largest = jnp.max(jnp.abs(shifted), axis=0)
    scale, varies = unit_scales(largest, standardize=standardize)
    shifted = shifted / scale[None].astype(x.dtype)
    mean = jnp.mean(shifted, axis=0)
    # The mean of the units as they came: (x - x_0) / scale has the mean `mean`.
    return Scaled(shifted - mean[None], x[0] + mean * scale.astype(x.dtype), scale, varies)


def unit_scales(sizes: Float[Array, " units"], *, standardize: bool) -> tuple[Array, Array]:
    """Return a scale per unit (``standardize``) or one common scale, and a mask of the units that vary, ``(units,)``.

    Args:
        sizes: how large each unit is; zero for a unit that does not vary, whose scale is 1.
        standardize: see `center_and_scale`.
    """
    varies = sizes > 0
    # A scale of zero, where nothing varies, becomes 1: what is divided by it is zero anyway.
    scale = jnp.where(varies, sizes, 1) if standardize else jnp.full_like(sizes, jnp.max(sizes))
    return jnp.where(scale > 0, scale, 1), varies


def center_rows(x: Float[Array, "b units"], counted: Bool[Array, " b"]) -> tuple[Array, Array]:
    """Return the mean of the rows that count, ``(units,)``, and all rows less it, zero where they do not count.

    The mean of equal numbers is exactly that number, so a unit that does not vary is exactly zero.
    """
    n = jnp.sum(counted)
    mean = jnp.sum(x, axis=0, where=counted[:, None]) / jnp.maximum(n, 1).astype(x.dtype)
    first = x[jnp.argmax(counted)]
    is_constant = jnp.all((x == first[None]) | ~counted[:, None], axis=0) & (n > 0)
    mean = jnp.where(is_constant, first, mean)
    return mean, jnp.where(counted[:, None], x - mean[None], 0)
