"""Canonical correlations of every pair of layers, in two passes."""

from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST
from stabjax.probe._layers import Steps
from stabjax.probe._sides import Side, starts_of, summed
from stabjax.similarity._pooled import split
from stabjax.similarity._spans import Canonical, Triangle, added, correlation, span


def correlations(sides: list[Side], steps: Steps, measure: Canonical) -> Float[Array, "x y"]:
    """The first pass takes what the units of each layer span, the second the products of the whitened units."""
    spans = [[span(t, alike=measure != "svcca") for t in _triangles(side, steps)] for side in sides]
    dtype = jnp.result_type(*(basis.values.dtype for each in spans for basis in each))

    def whitened(side: Side, bases: list[Any], start: Array) -> Array:
        kept = side.counts(start, steps)[:, None]
        units = zip(side.units(start, steps), bases, strict=True)
        centred = ((jnp.where(kept, x - basis.mean[None], 0), basis.coefficients) for x, basis in units)
        return jnp.concatenate([jnp.matmul(x, c, precision=HIGHEST).astype(dtype) for x, c in centred], axis=1)

    def products(start: Array) -> Array:
        x = [whitened(side, bases, start) for side, bases in zip(sides, spans, strict=True)]
        return jnp.matmul(x[0].T, x[-1], precision=HIGHEST)

    sizes = sides[0].layers.sizes, sides[-1].layers.sizes
    blocks = [split(part.T, sizes[1]) for part in split(summed(products, steps).T, sizes[0])]
    # Pairs of one size run in one loop, of which one step is compiled.
    alike = defaultdict(list)
    for k, one in enumerate(sizes[0]):
        for m, two in enumerate(sizes[1]):
            alike[one, two].append((k, m))
    n = jnp.sum(sides[0].counted)
    matrix = jnp.zeros((len(sizes[0]), len(sizes[1])), dtype)
    for places in alike.values():
        pairs = [(spans[0][k], spans[-1][m], blocks[k][m]) for k, m in places]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
        found = jax.lax.map(lambda pair: correlation(measure, pair[0], pair[1], pair[2], n), stacked)
        matrix = matrix.at[tuple(zip(*places, strict=True))].set(found.astype(dtype))
    return matrix


def _triangles(side: Side, steps: Steps) -> list[Triangle]:
    def add(triangles: list[Triangle], start: Array) -> tuple[list[Triangle], None]:
        counted = side.counts(start, steps)
        units = side.units(start, steps)
        return [added(t, x, counted) for t, x in zip(triangles, units, strict=True)], None

    shifts = side.read.shifts
    empty = [Triangle(jnp.zeros((), m.dtype), jnp.zeros_like(m), jnp.zeros((len(m), len(m)), m.dtype)) for m in shifts]
    return jax.lax.scan(add, empty, starts_of(steps))[0]
