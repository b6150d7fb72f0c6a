"""Comparing layers within a program of the caller's (`jit`, `vmap`, `grad`): loops over the batches of an array."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from stabjax import features, networks
from stabjax._sharding import beside
from stabjax.probe._batching import Tiles, divide_into_tiles
from stabjax.probe._checks import finite_rows
from stabjax.probe._comparison import (
    Comparison,
    Means,
    Passes,
    UnitBatch,
    UpdatePairs,
    center,
    choose_strategy,
    compare,
    empty_terms,
    trace_pair,
    update_means,
)
from stabjax.probe._layers import Layers, Scaling, UnitsOfLayers, layers_of, read_units
from stabjax.similarity.streaming import GramTerms

T = TypeVar("T")


def compare_arrays(
    pair: tuple[networks.Network, ...], images: tuple[Array, ...], asked: Comparison
) -> tuple[tuple[Layers, ...], tuple[Array, Array], Bool[Array, " n"]]:
    """Compare the layers of one or two networks on the images of each, or of both; see `stabjax.probe.similarity`.

    Returns:
        The layers of each network, similarities with their intervals, and which images are finite for both networks.
    """
    if len({len(x) for x in images}) > 1:
        raise ValueError(
            f"expected as many others as images, image by image, got {len(images[1])} and {len(images[0])}"
        )
    images = images if len(images) == len(pair) else images * 2
    n = len(images[0])

    of_image = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in images]
    # The batch that passes is known if the activations of all images can be held, and seldom is it another one.
    tiles = divide_into_tiles(n, asked.batch_size)
    remedy = None if tiles.is_one_batch else f", or pass all images as one batch, batch_size={n}"
    traced = trace_pair(pair, of_image, tiles.size, remedy=remedy)
    # Names and numbers of units depend on no batch size: they tell what one image takes.
    layers = tuple(layers_of(h, asked.select, asked.units) for h in traced)
    # Of both networks: nothing keeps the compiler from running them side by side.
    most = asked.memory * 2**30 / sum(each.bytes_of_image for each in layers)
    # So many images as the memory holds; only Gram matrices need it, the other ways hold one batch.
    tiles = divide_into_tiles(n, asked.batch_size, int(min(most, 2 * n)))
    if tiles.size != traced[0].batch.shape[0]:
        traced = trace_pair(pair, of_image, tiles.size, remedy=None)
    return layers, *compare_traced(traced, images, layers=layers, tiles=tiles, asked=asked)


@partial(jax.jit, static_argnames=("layers", "tiles", "asked"))
def compare_traced(
    traced: tuple[features.Traced, ...],
    images: tuple[Array, ...],
    *,
    layers: tuple[Layers, ...],
    tiles: Tiles,
    asked: Comparison,
) -> tuple[tuple[Array, Array], Bool[Array, " n"]]:
    """Do the same for networks that are traced."""
    measured = jnp.all(jnp.stack(list(map(finite_rows, images))), axis=0)
    read = partial(read_units, select=asked.select, units=asked.units)
    passes = _open_passes(traced, images, measured, layers, tiles, read)
    return compare(passes, choose_strategy(layers, tiles.images, asked.memory), asked), measured


@dataclass(frozen=True)
class TracedPasses(Passes):
    """Loops over the batches of images that fill whole tiles."""

    run: tuple[Callable[[Array], UnitsOfLayers], ...]
    """Each network."""
    filled: tuple[Array, ...]
    """``(padded, *image)`` for each; those that do not count are blank."""
    counted: Bool[Array, " padded"]
    """False for images that are not finite, and for those that fill the last batch."""
    of_networks: tuple[Layers, ...]
    scalings: tuple[Scaling, ...]
    tiles: Tiles

    @property
    def layers(self) -> tuple[Layers, ...]:
        """Return what is compared of each network."""
        return self.of_networks

    @property
    def images(self) -> int:
        """Return how many images there are."""
        return self.tiles.images

    @property
    def room(self) -> int:
        """Return how many images there are, with the blank ones at the end."""
        return self.tiles.padded

    def read(self, start: Array) -> UnitBatch:
        """Return the units of the batch that starts at this image."""

        def batch_of(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, start, self.tiles.size)

        counted = batch_of(self.counted)
        sides = (
            scaling.apply(run(batch_of(images)), counted)
            for run, images, scaling in zip(self.run, self.filled, self.scalings, strict=True)
        )
        return UnitBatch(start, tuple(sides), counted)

    def accumulate(self, state: T, update: Callable[[T, UnitBatch], T]) -> T:
        """Update accumulators with every batch in turn."""

        def step(state: Any, start: Array) -> tuple[Any, None]:
            return update(state, self.read(start)), None

        return jax.lax.scan(
            step, beside(self.filled[0], state), self.tiles.size * jnp.arange(self.tiles.batches * self.tiles.number)
        )[0]

    def accumulate_pairs(self, update: UpdatePairs) -> GramTerms:
        """Update terms with all pairs, tile by tile.

        The units of one tile of images are held; with every one of its batches a later tile gives a block of each Gram
        matrix, and is gone. So tile ``t`` passes the network ``t`` times, all of them ``(tiles + 1) / 2`` times on
        average, and once more for their mean. Of the blocks of tiles::

            own                         own: pairs of batches within the tile that is held
            batches  own                batches: each batch of a later tile with those of the tile that is held
            batches  batches  own
        """
        tiles = self.tiles
        held = self._hold(jnp.asarray(0)) if tiles.number == 1 else None
        if held is None:
            sums = self.accumulate(Means.init(self.layers), update_means)
        else:
            sums = Means(jnp.sum(held.counted), jax.tree.map(lambda x: jnp.sum(x, (0, 1)), held.sides))
        means = sums.finish()
        terms = beside(self.filled[0], empty_terms(self.layers, tiles.padded))
        if held is not None:
            return self._meet(terms, held, means, update)

        def with_tile(terms: GramTerms, first: Array) -> tuple[GramTerms, None]:
            held = self._hold(first)
            terms = self._meet(terms, held, means, update)

            def with_later(index: Array, terms: GramTerms) -> GramTerms:
                columns = center(self.read(index * tiles.size), means)
                return jax.lax.fori_loop(
                    0,
                    tiles.batches,
                    lambda row, terms: update(terms, _held_batch(held, row, means), columns, True),
                    terms,
                )

            # Batches are numbered through all tiles: the first one behind this tile, up to the last of all.
            behind = first // tiles.size + tiles.batches
            return jax.lax.fori_loop(behind, tiles.number * tiles.batches, with_later, terms), None

        return jax.lax.scan(with_tile, terms, tiles.tile * jnp.arange(tiles.number))[0]

    def _meet(self, terms: GramTerms, held: UnitBatch, means: Any, update: UpdatePairs) -> GramTerms:
        """Update terms with the pairs of batches within a tile, each pair once."""
        # In a loop over a list of pairs, not in loops up to a batch: those have no derivative in reverse mode.
        pairs = np.transpose(np.tril_indices(self.tiles.batches))

        def with_pair(terms: GramTerms, pair: Array) -> tuple[GramTerms, None]:
            column, row = pair
            rows, columns = (_held_batch(held, index, means) for index in (row, column))
            return update(terms, rows, columns, row != column), None

        return jax.lax.scan(with_pair, terms, jnp.asarray(pairs))[0]

    def _hold(self, first: Array) -> UnitBatch:
        """Return the units of a tile, ``(batches, size, ...)``."""
        return jax.lax.map(self.read, first + self.tiles.size * jnp.arange(self.tiles.batches))


def _held_batch(held: UnitBatch, index: Array, means: Any) -> UnitBatch:
    """Return one batch of a tile, less the mean of all images."""
    return center(jax.tree.map(lambda x: x[index], held), means)


def _open_passes(
    traced: tuple[features.Traced, ...],
    images: tuple[Array, ...],
    measured: Bool[Array, " n"],
    layers: tuple[Layers, ...],
    tiles: Tiles,
    read: Callable[..., UnitsOfLayers],
) -> TracedPasses:
    """Blank images that do not count, fill the last batch, and take shifts and scales from the first batch."""
    missing = tiles.padded - tiles.images
    counted = jnp.pad(measured, (0, missing))

    def fill(x: Array) -> Array:
        # Blank, not only weighed with zero: NaN times zero would be NaN, and the first batch sets the scales.
        blanked = jnp.where(jnp.expand_dims(measured, tuple(range(1, x.ndim))), x, 0)
        return jnp.pad(blanked, ((0, missing), *[(0, 0)] * (x.ndim - 1)))

    filled = tuple(map(fill, images))
    run = tuple(partial(read, f, layers=each) for f, each in zip(traced, layers, strict=True))
    # The first batch with an image that counts says how all are scaled.
    start = jnp.argmax(counted) // tiles.size * tiles.size
    first = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=tiles.size)
    scalings = tuple(Scaling.of(f(first(x)), first(counted)) for f, x in zip(run, filled, strict=True))
    return TracedPasses(run, filled, counted, layers, scalings, tiles)
