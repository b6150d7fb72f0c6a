"""Gram matrices of all layers of a network, tile by tile."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST
from stabjax.probe._layers import Steps
from stabjax.probe._sides import Side

_BLOCK = 256
"""Rows of a tile from which on only the lower half of its Gram matrix is computed, by blocks of at least so many."""


def grams(side: Side, steps: Steps) -> Float[Array, "layers padded padded"]:
    """``<f(x_i), f(x_j)>`` of all images, for every layer.

    The activations of one tile of images are held; with every one of its batches a later tile gives a block of each
    matrix, and is gone. So tile ``t`` passes the network ``t`` times, all of them ``(tiles + 1) / 2`` times on average.
    """

    def with_tile(found: tuple[Array, ...], first: Array) -> tuple[tuple[Array, ...], None]:
        starts = first + steps.size * jnp.arange(steps.batches)
        held = tuple(
            jnp.reshape(x, (steps.tile, -1)) for x in jax.lax.map(lambda start: side.units(start, steps), starts)
        )
        found = tuple(_own(k, x, first) for k, x in zip(found, held, strict=True))

        def with_batch(index: Array, found: tuple[Array, ...]) -> tuple[Array, ...]:
            start = index * steps.size
            return tuple(
                _placed(k, _product(x, other), start, first)
                for k, x, other in zip(found, side.units(start, steps), held, strict=True)
            )

        later = first // steps.size + steps.batches
        return jax.lax.fori_loop(later, steps.tiles * steps.batches, with_batch, found), None

    empty = tuple(jnp.zeros((steps.padded, steps.padded), m.dtype) for m in side.read.shifts)
    found, _ = jax.lax.scan(with_tile, empty, steps.tile * jnp.arange(steps.tiles))
    dtype = jnp.result_type(*(k.dtype for k in found))
    return jnp.stack([jnp.tril(k) + jnp.tril(k, -1).T for k in (k.astype(dtype) for k in found)])


def _own(gram: Array, x: Array, start: Array) -> Array:
    """With the products of a tile with itself: blocks of rows, up to the diagonal."""
    n = len(x)
    ends = [n * (k + 1) // blocks for k in range(blocks)] if (blocks := min(8, n // _BLOCK)) > 1 else [n]
    for low, high in zip([0, *ends[:-1]], ends, strict=True):
        gram = _placed(gram, _product(x[low:high], x[:high]), start + low, start)
    return gram


def _placed(gram: Array, block: Array, row: Any, column: Any) -> Array:
    return jax.lax.dynamic_update_slice(gram, block, (row, column))


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y.T, precision=HIGHEST)
