"""Gram matrices of all layers of a network, tile by tile."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST
from stabjax.probe._layers import Steps
from stabjax.probe._sides import Side

_BLOCK = 256
_BLOCKS = 4
"""Only the lower half of the Gram matrix of a tile is computed, by at most so many blocks of rows, each of so many."""


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
    """With the products of a tile with itself, a block of rows and one of columns at a time, up to the diagonal.

    In loops: the slices that products written out would take are all in memory together.
    """
    n = len(x)
    blocks = min(_BLOCKS, n // _BLOCK)
    if blocks < 2:
        return _placed(gram, _product(x, x), start, start)
    size = -(-n // blocks)

    def block(index: Array) -> tuple[Array, Array]:
        low = jnp.minimum(index * size, n - size)
        return low, jax.lax.dynamic_slice_in_dim(x, low, size)

    def of_rows(i: Array, gram: Array) -> Array:
        row, rows = block(i)

        def of_columns(j: Array, gram: Array) -> Array:
            column, columns = block(j)
            return _placed(gram, _product(rows, columns), start + row, start + column)

        return jax.lax.fori_loop(0, i + 1, of_columns, gram)

    return jax.lax.fori_loop(0, blocks, of_rows, gram)


def _placed(gram: Array, block: Array, row: Any, column: Any) -> Array:
    return jax.lax.dynamic_update_slice(gram, block, (row, column))


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y.T, precision=HIGHEST)
