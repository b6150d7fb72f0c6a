"""Gram matrices of all layers of a network, tile by tile."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST
from stabjax.probe._batching import Tiles
from stabjax.probe._network_stream import NetworkStream

_LEAST_ROWS = 256
_MOST_BLOCKS = 4
"""Only the lower half of the Gram matrix of a tile is computed, by at most so many blocks, of at least so many rows."""


def gram_matrices(stream: NetworkStream, tiles: Tiles) -> Float[Array, "layers padded padded"]:
    """Return ``<f(x_i), f(x_j)>`` of all images, for every layer, ``(layers, padded, padded)``.

    The activations of one tile of images are held; with every one of its batches a later tile gives a block of each
    matrix, and is gone. So tile ``t`` passes the network ``t`` times, all of them ``(tiles + 1) / 2`` times on average.
    Of the blocks of tiles::

        own                         own: the lower half of the tile with itself
        batches  own                batches: each batch of a later tile with the tile that is held
        batches  batches  own       the upper half is the transpose
    """

    def with_tile(grams: tuple[Array, ...], first: Array) -> tuple[tuple[Array, ...], None]:
        # (batches, size, units) of every layer -> (tile, units).
        starts = first + tiles.size * jnp.arange(tiles.batches)
        held = tuple(
            jnp.reshape(x, (tiles.tile, -1)) for x in jax.lax.map(lambda start: stream.units(start, tiles), starts)
        )
        grams = tuple(_write_own_products(k, x, first) for k, x in zip(grams, held, strict=True))

        def with_batch(index: Array, grams: tuple[Array, ...]) -> tuple[Array, ...]:
            start = index * tiles.size
            return tuple(
                _write(k, _multiply(x, tile), start, first)
                for k, x, tile in zip(grams, stream.units(start, tiles), held, strict=True)
            )

        # Batches are numbered through all tiles: the first one behind this tile, up to the last of all.
        later = first // tiles.size + tiles.batches
        return jax.lax.fori_loop(later, tiles.number * tiles.batches, with_batch, grams), None

    empty = tuple(jnp.zeros((tiles.padded, tiles.padded), m.dtype) for m in stream.read.shifts)
    grams, _ = jax.lax.scan(with_tile, empty, tiles.tile * jnp.arange(tiles.number))
    dtype = jnp.result_type(*(k.dtype for k in grams))
    # What was written above the diagonal, within a block, is dropped, and the lower half mirrored.
    return jnp.stack([jnp.tril(k) + jnp.tril(k, -1).T for k in (k.astype(dtype) for k in grams)])


def _write_own_products(gram: Array, x: Array, start: Array) -> Array:
    """Write the products of a tile with itself, a block of rows and one of columns at a time, up to the diagonal.

    In loops: the slices that products written out would take are all in memory together.
    """
    n = len(x)
    blocks = min(_MOST_BLOCKS, n // _LEAST_ROWS)
    if blocks < 2:
        return _write(gram, _multiply(x, x), start, start)
    # The last block is moved up to end with the tile: where it overlaps, the same numbers are written twice.
    size = -(-n // blocks)

    def block(index: Array) -> tuple[Array, Array]:
        low = jnp.minimum(index * size, n - size)
        return low, jax.lax.dynamic_slice_in_dim(x, low, size)

    def write_rows(i: Array, gram: Array) -> Array:
        row, rows = block(i)

        def write_columns(j: Array, gram: Array) -> Array:
            column, columns = block(j)
            return _write(gram, _multiply(rows, columns), start + row, start + column)

        # Columns up to the block of the rows: j <= i.
        return jax.lax.fori_loop(0, i + 1, write_columns, gram)

    return jax.lax.fori_loop(0, blocks, write_rows, gram)


def _write(gram: Array, block: Array, row: Array, column: Array) -> Array:
    return jax.lax.dynamic_update_slice(gram, block, (row, column))


def _multiply(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y.T, precision=HIGHEST)
