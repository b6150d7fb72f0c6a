"""Sets with many samples per unit: centered, scaled and summed over chunks of samples that fit into the cache."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from stabjax._numerics import HIGHEST
from stabjax.similarity._inputs import unit_scales

_CHUNK = 2048
_SAMPLED = 1024
"""Scales of many samples are first estimated from a subset: of so many to twice as many."""
_QR_ROWS = 4096
"""Samples of the smallest chunk that has a QR decomposition of its own, or so many per unit:"""
_QR_ROWS_PER_UNIT = 16

ProductBlocks = tuple[Array, Array, Array]
"""``X'X``, ``X'Y``, ``Y'Y``."""


class Standardization(NamedTuple):
    """Center and scale units by an affine map, ``(x - origin) / scale - shift``."""

    origin: Array
    """A point among the samples, ``(units,)``; exactly the value of a unit that does not vary."""
    shift: Array
    """Mean of ``(x - origin) / scale``: small, so it is subtracted after the large part is gone."""
    mean: Array
    """Mean of ``x``."""
    scale: Array
    varies: Array

    def apply(self, rows: Array) -> Array:
        """Return samples in rows, centered and scaled."""
        scale = self.scale[None].astype(rows.dtype)
        return (rows - self.origin[None]) / scale - self.shift[None]


def standardization_of(x: Array, *, standardize: bool) -> Standardization:
    """Measure the means and scales of the units of ``x``, ``(n, units)``, in two passes that write no array like it.

    The numbers are those of `stabjax.similarity._inputs.center_and_scale`.
    """

    # Distances from the first sample, not from the mean, which is not known in this pass: a unit that does not vary has
    # exactly zero.
    def largest(rows: Array) -> Array:
        return jnp.max(jnp.abs(rows - x[:1]), axis=0)

    scale, varies = unit_scales(_reduce_chunks(largest, jnp.maximum, x), standardize=standardize)
    divisor = scale.astype(x.dtype)

    def total(rows: Array) -> Array:
        return jnp.sum((rows - x[:1]) / divisor[None], axis=0)

    # About the first sample and over the scale, the mean is of order one: no digits are lost, nothing overflows.
    shift = _reduce_chunks(total, jnp.add, x) / len(x)
    return Standardization(x[0], shift, x[0] + shift * divisor, scale, varies)


def moments(x: Array, y: Array, *, standardize: bool) -> tuple[Standardization, Standardization, ProductBlocks, Array]:
    """Measure means, scales and products of two sets of real units in one pass over the samples.

    The pass reads ``u = (x - o) / s`` with a mean ``o`` and a scale ``s`` estimated from about a thousand samples. With
    the exact mean ``m = <u>`` and the exact scale ``t`` the products of what is centered and scaled are then::

        sum (u - m)(u - m)' s s' / (t t')  =  (sum u u' - n m m') (s / t)(s / t)'

    Nothing is lost if the thousand samples were like the others.

    Returns:
        the standardizations of ``x`` and ``y``; ``X'X``, ``X'Y``, ``Y'Y`` of what they give; and whether the products
        are reliable, ``()``: most of each is left after its mean is taken away, and no square came near the ends of the
        range of numbers.
    """
    n, units_x = len(x), x.shape[1]
    estimated = [_estimate(z, standardize) for z in (x, y)]
    # From here on the units of both sets stand side by side: one product gives all three blocks.
    origin, size = (jnp.concatenate(parts) for parts in zip(*estimated, strict=True))

    def sums(*sets: Array) -> tuple[Array, ...]:
        units = _concatenate_units((z - o[None]) / s[None] for z, (o, s) in zip(sets, estimated, strict=True))
        return _gram(units), jnp.sum(units, axis=0), jnp.max(jnp.abs(units), axis=0)

    def add(total: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
        return total[0] + new[0], total[1] + new[1], jnp.maximum(total[2], new[2])

    # sum u u', (units, units); sum u and max |u|, (units,).
    products, total, largest = _reduce_chunks(sums, add, x, y)
    mean, squares = total / n, jnp.diagonal(products)
    limits = jnp.finfo(products.dtype)
    # Products are of second order and their squares of fourth: within the fourth roots of the limits all are exact.
    in_range = (largest > limits.tiny**0.25) & (largest < limits.max**0.25)
    # n m^2 is the part of sum u^2 that the mean makes: at least half has to be left. With max |u| = 0 a unit does not
    # vary.
    is_reliable = jnp.all((in_range & (n * jnp.square(mean) <= squares / 2)) | (largest == 0))
    # One common scale is common to a set, not to both, so they part here.
    scaled = [unit_scales(part, standardize=standardize) for part in _split_units(size * largest, units_x)]
    scale, varies = (jnp.concatenate(parts) for parts in zip(*scaled, strict=True))
    # s / t: from the estimated to the exact scale.
    ratio = size / scale
    products = (products - n * mean[:, None] * mean[None]) * ratio[:, None] * ratio[None]
    first, second = (
        Standardization(*fields)
        for fields in zip(
            *(_split_units(each, units_x) for each in (origin, mean * ratio, origin + mean * size, scale, varies)),
            strict=True,
        )
    )
    return first, second, _blocks(products, units_x), is_reliable


def transformed_products(
    x: Array, y: Array, first: Standardization, second: Standardization, a: Array, b: Array
) -> ProductBlocks:
    """Sum the products of ``X a`` and ``Y b``, where ``X`` and ``Y`` are centered and scaled."""

    def products(x: Array, y: Array) -> Array:
        # X a and Y b of one chunk, (rows, k_x) and (rows, k_y): neither is ever written for all samples.
        sets = (jnp.matmul(s.apply(z), m, precision=HIGHEST) for z, s, m in ((x, first, a), (y, second, b)))
        return _gram(_concatenate_units(sets))

    return _blocks(_reduce_chunks(products, jnp.add, x, y), a.shape[1])


def qr_factor(x: Array, standardization: Standardization) -> Array:
    """Return the triangular factor ``R``, ``R'R = X'X``, ``(units, units)``, of centered and scaled units.

    The factors of chunks, stacked, have the same products as all samples, so their own factor is that of all (tall
    skinny QR, Demmel et al. 2012)::

        X = [X_1; X_2; ...],   X_i = Q_i R_i   ->   X'X = sum_i R_i'R_i = [R_1; R_2; ...]'[R_1; R_2; ...]
    """
    units = x.shape[1]
    # There are more samples than units on this route, so every chunk has at least as many rows as units, and a factor
    # (units, units).
    size = min(len(x), max(_QR_ROWS, _QR_ROWS_PER_UNIT * units))
    count = len(x) // size

    def factor(start: Array) -> Array:
        return jnp.linalg.qr(standardization.apply(jax.lax.dynamic_slice_in_dim(x, start, size)), mode="r")

    factors = jax.lax.map(factor, size * jnp.arange(count))
    # Less than one chunk is left: its rows are stacked as they are, without a factor of their own.
    rest = standardization.apply(x[count * size :])
    return jnp.linalg.qr(jnp.concatenate([jnp.reshape(factors, (-1, units)), rest]), mode="r")


def _concatenate_units(sets: Iterable[Array]) -> Array:
    # Behind a barrier, so that it is written once for all that read it instead of being computed again for each.
    return jax.lax.optimization_barrier(jnp.concatenate(list(sets), axis=1))


def _gram(units: Array) -> Array:
    return jnp.matmul(jnp.conj(units.T), units, precision=HIGHEST)


def _blocks(products: Array, first: int) -> ProductBlocks:
    """Cut the products of the units of two sets, of which the first has ``first``, into their blocks."""
    return products[:first, :first], products[:first, first:], products[first:, first:]


def _estimate(x: Array, standardize: bool) -> tuple[Array, Array]:
    """Estimate mean and scale of the units from a subset of samples; exactly the value of a unit that does not vary."""
    shifted = x[:: max(len(x) // _SAMPLED, 1)] - x[:1]
    mean = jnp.mean(shifted, axis=0)
    largest = jnp.max(jnp.abs(shifted - mean[None]), axis=0)
    # x[0] + mean is exactly the value of a unit that does not vary: its mean is zero, as all of `shifted` is.
    return x[0] + mean, unit_scales(largest, standardize=standardize)[0]


def _split_units(units: Array, first: int) -> tuple[Array, Array]:
    return units[:first], units[first:]


def _reduce_chunks(f: Callable[..., Any], combine: Callable[[Any, Any], Any], *sets: Array) -> Any:
    """Combine ``f`` of all chunks of samples, in order.

    The first chunk is the remainder, or a whole one where there is none: all later ones then have one size, and one
    compiled step::

        |rest| chunk | chunk | ... | chunk |
    """
    n = len(sets[0])
    size = min(n, _CHUNK)
    # Starts from `first` on are then whole chunks up to n exactly.
    first = n % size or size

    def step(total: Any, start: Array) -> tuple[Any, None]:
        # Slices: a reshaped rest would be copied first.
        chunk = (jax.lax.dynamic_slice_in_dim(x, start, size) for x in sets)
        return combine(total, f(*chunk)), None

    return jax.lax.scan(step, f(*(x[:first] for x in sets)), jnp.arange(first, n, size))[0]
