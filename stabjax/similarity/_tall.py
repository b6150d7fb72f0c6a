"""Sets with many samples per unit: centred, scaled and summed a chunk at a time, while it is in the cache."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from stabjax._numerics import HIGHEST
from stabjax.similarity._units import scales

_CHUNK = 2048
_SAMPLED = 1024
"""Samples that show the scale of many: so many to twice as many."""
_ROWS = 4096
"""Samples of the smallest chunk that is factored alone, or so many per unit:"""
_PER_UNIT = 16


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


class Moments(NamedTuple):
    """Two sets centred and scaled, by their products."""

    means: tuple[Array, Array]
    scales: tuple[Array, Array]
    varies: tuple[Array, Array]
    products: tuple[Array, Array, Array]
    """``X'X``, ``X'Y``, ``Y'Y`` of the centred and scaled units."""
    sound: Array
    """Whether they are as exact as those of units that were centred first, ``()``."""


def moments(x: Array, y: Array, *, alike: bool) -> Moments:
    """All that covariances need, real units, in one pass.

    Units are read less a mean and over a scale that a thousand samples show; their true mean and scale are put right in
    the products. That loses nothing if the samples say what the others are like: most of a product is left after the
    mean is taken away, and no square came near the ends of the range of numbers.
    """
    n, first = len(x), x.shape[1]
    sampled = [_sampled(z, alike) for z in (x, y)]
    shift, size = (jnp.concatenate(both) for both in zip(*sampled, strict=True))

    def sums(*sets: Array) -> tuple[Array, ...]:
        units = [(z - mean[None]) / scale[None] for z, (mean, scale) in zip(sets, sampled, strict=True)]
        units = jnp.concatenate(units, axis=1)
        # Written once for the four that read it.
        units = jax.lax.optimization_barrier(units)
        products = jnp.matmul(units.T, units, precision=HIGHEST)
        return products, jnp.sum(units, axis=0), jnp.max(units, axis=0), jnp.min(units, axis=0)

    def join(found: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        return found[0] + new[0], found[1] + new[1], jnp.maximum(found[2], new[2]), jnp.minimum(found[3], new[3])

    products, total, high, low = _over_chunks(sums, join, x, y)
    mean, largest, squares = total / n, jnp.maximum(high, -low), jnp.diagonal(products)
    limits = jnp.finfo(x.dtype)
    safe = (largest > limits.tiny**0.25) & (largest < limits.max**0.25)
    sound = jnp.all(safe & (n * jnp.square(mean) <= squares / 2))
    scale = jnp.concatenate([scales(part, alike=alike)[0] for part in _parted(size * largest, first)])
    ratio = size / scale
    products = (products - n * mean[:, None] * mean[None]) * ratio[:, None] * ratio[None]
    return Moments(
        means=_parted(shift + mean * size, first),
        scales=_parted(scale, first),
        varies=_parted(high > low, first),
        products=(products[:first, :first], products[:first, first:], products[first:, first:]),
        sound=sound,
    )


def _sampled(x: Array, alike: bool) -> tuple[Array, Array]:
    """Mean and scale of the units on some of the samples; exactly the value of a unit that does not vary."""
    shifted = x[:: max(len(x) // _SAMPLED, 1)] - x[:1]
    mean = jnp.mean(shifted, axis=0)
    return x[0] + mean, scales(jnp.max(jnp.abs(shifted - mean[None]), axis=0), alike=alike)[0]


def _parted(units: Array, first: int) -> tuple[Array, Array]:
    return units[:first], units[first:]


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


def _over_chunks(f: Callable[..., Any], join: Callable[[Any, Any], Any], *sets: Array) -> Any:
    """``f`` of chunks of samples, joined; the first chunk is what is left over, or a whole one."""
    n = len(sets[0])
    size = min(n, _CHUNK)
    first = n % size or size

    def add(found: Any, start: Array) -> tuple[Any, None]:
        # Slices: a reshaped rest would be copied first.
        chunk = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in sets)
        return join(found, f(*chunk)), None

    return jax.lax.scan(add, f(*(x[:first] for x in sets)), jnp.arange(first, n, size))[0]
