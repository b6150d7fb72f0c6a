"""Sets with many samples per unit: centred, scaled and summed a chunk at a time, while it is in the cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from stabjax._numerics import HIGHEST
from stabjax.similarity._units import scales

_CHUNK = 1024
_ROWS = 4096
"""Samples of the smallest chunk that is factored alone, or so many per unit:"""
_PER_UNIT = 16

Grams = tuple[Array, Array, Array]


class Tall(NamedTuple):
    """Units that are centred and scaled when they are read; see `stabjax.similarity._units.scaled`."""

    rows: Array
    """As they came, ``(n, units)``."""
    shift: Array
    """Mean of the scaled units less the first one, ``(units,)``."""
    mean: Array
    scale: Array
    varies: Array

    def units(self, rows: Array) -> Array:
        """Some rows, centred and scaled."""
        scale = self.scale[None].astype(rows.dtype)
        return (rows - self.rows[:1]) / scale - self.shift[None]


def tall(x: Array, *, alike: bool) -> Tall:
    """The same scales and means as `scaled` finds, in two passes that write nothing."""

    def largest(rows: Array) -> Array:
        return jnp.max(jnp.abs(rows - x[:1]), axis=0)

    most = _over_chunks(largest, jnp.maximum, x)
    scale, varies = scales(most, alike=alike)
    wide = scale.astype(x.dtype)

    def total(rows: Array) -> Array:
        return jnp.sum((rows - x[:1]) / wide[None], axis=0)

    shift = _over_chunks(total, jnp.add, x) / len(x)
    return Tall(x, shift, x[0] + shift * wide, scale, varies)


def grams(one: Tall, two: Tall) -> Grams:
    """``X'X``, ``X'Y``, ``Y'Y``."""

    def products(x: Array, y: Array) -> Grams:
        x, y = one.units(x), two.units(y)
        xx, xy, yy = (jnp.matmul(u.T, v, precision=HIGHEST) for u, v in ((x, x), (x, y), (y, y)))
        return xx, xy, yy

    return _over_chunks(products, jnp.add, one.rows, two.rows)


def transformed_product(one: Tall, two: Tall, a: Array, b: Array) -> Array:
    """``(X a)* (Y b)``."""

    def product(x: Array, y: Array) -> Array:
        x, y = jnp.matmul(one.units(x), a, precision=HIGHEST), jnp.matmul(two.units(y), b, precision=HIGHEST)
        return jnp.matmul(jnp.conj(x.T), y, precision=HIGHEST)

    return _over_chunks(product, jnp.add, one.rows, two.rows)


def triangle(x: Tall) -> Array:
    """``R`` with ``R'R = X'X``, ``(units, units)``, from the factors of chunks of samples."""
    units = x.rows.shape[1]
    size = min(len(x.rows), max(_ROWS, _PER_UNIT * units))
    count = len(x.rows) // size

    def factor(start: Array) -> Array:
        return jnp.linalg.qr(x.units(jax.lax.dynamic_slice_in_dim(x.rows, start, size)), mode="r")

    factors = jax.lax.map(factor, size * jnp.arange(count))
    rest = x.units(x.rows[count * size :])
    return jnp.linalg.qr(jnp.concatenate([jnp.reshape(factors, (-1, units)), rest]), mode="r")


def _over_chunks(f: Callable[..., Any], join: Callable[[Array, Array], Array], *sets: Array) -> Any:
    """``f`` of chunks of samples, joined; the first chunk is what is left over, or a whole one."""
    n = len(sets[0])
    size = min(n, _CHUNK)
    first = n % size or size

    def add(found: Any, start: Array) -> tuple[Any, None]:
        # Slices: a reshaped rest would be copied first.
        chunk = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in sets)
        return jax.tree.map(join, found, f(*chunk)), None

    return jax.lax.scan(add, f(*(x[:first] for x in sets)), jnp.arange(first, n, size))[0]
