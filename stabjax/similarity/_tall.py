"""Sets with many samples per unit: centred, scaled and summed a chunk at a time, while it is in the cache."""

from collections.abc import Callable, Iterable
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

Grams = tuple[Array, Array, Array]
"""``X'X``, ``X'Y``, ``Y'Y``."""


class Frame(NamedTuple):
    """Where the zero and the one of each unit are: ``(x - origin) / scale - shift`` are centred and scaled."""

    origin: Array
    """Some point among the samples, ``(units,)``; the value of a unit that does not vary."""
    shift: Array
    """Mean of the scaled units less the origin."""
    mean: Array
    scale: Array
    varies: Array

    def units(self, rows: Array) -> Array:
        """Some rows, centred and scaled."""
        scale = self.scale[None].astype(rows.dtype)
        return (rows - self.origin[None]) / scale - self.shift[None]


def frame(x: Array, *, alike: bool) -> Frame:
    """The same scales and means as `stabjax.similarity._units.scaled` finds, in two passes that write nothing."""

    def largest(rows: Array) -> Array:
        return jnp.max(jnp.abs(rows - x[:1]), axis=0)

    most = _over_chunks(largest, jnp.maximum, x)
    scale, varies = scales(most, alike=alike)
    wide = scale.astype(x.dtype)

    def total(rows: Array) -> Array:
        return jnp.sum((rows - x[:1]) / wide[None], axis=0)

    shift = _over_chunks(total, jnp.add, x) / len(x)
    return Frame(x[0], shift, x[0] + shift * wide, scale, varies)


def moments(x: Array, y: Array, *, alike: bool) -> tuple[Frame, Frame, Grams, Array]:
    """Frames of two sets of real units and the products of what is centred and scaled, in one pass.

    Units are read less a mean and over a scale that a thousand samples show; their true mean and scale are put right in
    the products. That loses nothing if those samples are like the others: most of a product is left after the mean is
    taken away, and no square came near the ends of the range of numbers. Whether it is so, ``()``, is returned last.
    """
    n, first = len(x), x.shape[1]
    sampled = [_sampled(z, alike) for z in (x, y)]
    origin, size = (jnp.concatenate(both) for both in zip(*sampled, strict=True))

    def sums(*sets: Array) -> tuple[Array, ...]:
        units = _side_by_side((z - o[None]) / s[None] for z, (o, s) in zip(sets, sampled, strict=True))
        return _squared(units), jnp.sum(units, axis=0), jnp.max(jnp.abs(units), axis=0)

    def join(found: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        return found[0] + new[0], found[1] + new[1], jnp.maximum(found[2], new[2])

    products, total, largest = _over_chunks(sums, join, x, y)
    mean, squares = total / n, jnp.diagonal(products)
    limits = jnp.finfo(products.dtype)
    safe = (largest > limits.tiny**0.25) & (largest < limits.max**0.25)
    sound = jnp.all((safe & (n * jnp.square(mean) <= squares / 2)) | (largest == 0))
    scaled = [scales(part, alike=alike) for part in _parted(size * largest, first)]
    scale, varies = (jnp.concatenate(both) for both in zip(*scaled, strict=True))
    ratio = size / scale
    products = (products - n * mean[:, None] * mean[None]) * ratio[:, None] * ratio[None]
    one, two = (
        Frame(*parts)
        for parts in zip(
            *(_parted(each, first) for each in (origin, mean * ratio, origin + mean * size, scale, varies)),
            strict=True,
        )
    )
    return one, two, _blocks(products, first), sound


def transformed(x: Array, y: Array, one: Frame, two: Frame, a: Array, b: Array) -> Grams:
    """Products of ``X a`` and ``Y b``, where ``X`` and ``Y`` are centred and scaled."""

    def products(x: Array, y: Array) -> Array:
        sets = (jnp.matmul(f.units(z), m, precision=HIGHEST) for z, f, m in ((x, one, a), (y, two, b)))
        return _squared(_side_by_side(sets))

    return _blocks(_over_chunks(products, jnp.add, x, y), a.shape[1])


def triangle(x: Array, frame: Frame) -> Array:
    """``R`` with ``R'R = X'X``, ``(units, units)``, from the factors of chunks of samples."""
    units = x.shape[1]
    size = min(len(x), max(_ROWS, _PER_UNIT * units))
    count = len(x) // size

    def factor(start: Array) -> Array:
        return jnp.linalg.qr(frame.units(jax.lax.dynamic_slice_in_dim(x, start, size)), mode="r")

    factors = jax.lax.map(factor, size * jnp.arange(count))
    rest = frame.units(x[count * size :])
    return jnp.linalg.qr(jnp.concatenate([jnp.reshape(factors, (-1, units)), rest]), mode="r")


def _side_by_side(sets: Iterable[Array]) -> Array:
    # Written once for all that read it.
    return jax.lax.optimization_barrier(jnp.concatenate(list(sets), axis=1))


def _squared(units: Array) -> Array:
    return jnp.matmul(jnp.conj(units.T), units, precision=HIGHEST)


def _blocks(products: Array, first: int) -> Grams:
    return products[:first, :first], products[:first, first:], products[first:, first:]


def _sampled(x: Array, alike: bool) -> tuple[Array, Array]:
    """Mean and scale of the units on some of the samples; exactly the value of a unit that does not vary."""
    shifted = x[:: max(len(x) // _SAMPLED, 1)] - x[:1]
    mean = jnp.mean(shifted, axis=0)
    return x[0] + mean, scales(jnp.max(jnp.abs(shifted - mean[None]), axis=0), alike=alike)[0]


def _parted(units: Array, first: int) -> tuple[Array, Array]:
    return units[:first], units[first:]


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
