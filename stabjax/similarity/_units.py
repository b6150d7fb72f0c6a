"""Activations as every measure takes them: checked, centred, scaled."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray

X = Float[AnyArray, "n units_x"]
Y = Float[AnyArray, "n units_y"]
Scaled = tuple[Array, Array, Array, Array]


def taken(x: AnyArray, y: AnyArray, *, least: int = 2) -> tuple[Array, Array]:
    """Both as arrays of one dtype; raises unless they are real activations of the same samples, at least so many."""
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
    return together(x, y)


def together(x: AnyArray, y: AnyArray) -> tuple[Array, Array]:
    """Both in one dtype, of single precision at least: half precision cannot hold their squares."""
    x, y = without_explicit_axes((jnp.asarray(x), jnp.asarray(y)))
    dtype = np.result_type(x.dtype, y.dtype, np.float32)
    return x.astype(dtype), y.astype(dtype)


def scaled(x: Array, *, alike: bool) -> Scaled:
    """Centred units over their scales, ``(n, units)``, and mean, scale and whether it varies of each unit.

    Squares of what is scaled neither overflow nor vanish, and units that do not vary are exactly zero. The scale is the
    largest value of each unit if they are to count ``alike``, else that of all.
    """
    shifted = x - x[:1]
    largest = jnp.max(jnp.abs(shifted), axis=0)
    scale, varies = scales(largest, alike=alike)
    shifted = shifted / scale[None].astype(x.dtype)
    mean = jnp.mean(shifted, axis=0)
    return shifted - mean[None], x[0] + mean * scale.astype(x.dtype), scale, varies


def scales(sizes: Float[Array, " units"], *, alike: bool) -> tuple[Array, Array]:
    """What units of such sizes are divided by, and which vary: each by its own if they are to count alike."""
    varies = sizes > 0
    scale = jnp.where(varies, sizes, 1) if alike else jnp.full_like(sizes, jnp.max(sizes))
    return jnp.where(scale > 0, scale, 1), varies
