"""A network with its images as a stream of batches of units."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax import features
from stabjax.probe._batching import Tiles
from stabjax.probe._layers import Layers, UnitReader, Units, UnitsOfLayers, make_reader

T = TypeVar("T")


class NetworkStream(NamedTuple):
    """Read the units of one of the compared networks, batch by batch of its images."""

    images: Float[Array, "padded *spatial channels"]
    """Those that do not count are blank."""
    counted: Bool[Array, " padded"]
    """False for images that are not finite, and for those that fill the last batch."""
    layers: Layers
    read: UnitReader

    def units(self, start: Array, tiles: Tiles) -> UnitsOfLayers:
        """Return the units of each layer for the batch that starts at image ``start``."""
        batch = jax.lax.dynamic_slice_in_dim(self.images, start, tiles.size)
        return self.read(batch, self.counts(start, tiles))

    def counts(self, start: Array, tiles: Tiles) -> Bool[Array, " size"]:
        """Return which images of the batch count."""
        return jax.lax.dynamic_slice_in_dim(self.counted, start, tiles.size)


def open_stream(
    traced: features.Traced,
    images: Float[Array, "n *spatial channels"],
    counted: Bool[Array, " padded"],
    layers: Layers,
    tiles: Tiles,
    select: features.Select,
    units: Units,
) -> NetworkStream:
    """Blank images that do not count, fill the last batch, and take shifts and scales from the first batch."""
    # Blank, not only weighed with zero: NaN times zero would be NaN, and the first batch sets the scales.
    kept = jnp.expand_dims(counted[: tiles.images], tuple(range(1, images.ndim)))
    blanked = jnp.where(kept, images, 0)
    filled = jnp.pad(blanked, ((0, tiles.padded - tiles.images), *[(0, 0)] * (images.ndim - 1)))
    read = make_reader(traced, layers, filled[: tiles.size], counted[: tiles.size], select, units)
    return NetworkStream(filled, counted, layers, read)


def accumulate(update: Callable[[T, Array], T], empty: T, tiles: Tiles) -> T:
    """Update an accumulator with every batch in turn: ``update(accumulated, start of the batch)``."""

    def step(accumulated: Any, start: Array) -> tuple[Any, None]:
        return update(accumulated, start), None

    return jax.lax.scan(step, empty, batch_starts(tiles))[0]


def batch_starts(tiles: Tiles) -> Int[Array, " batches"]:
    """Return the index of the first image of each batch."""
    return tiles.size * jnp.arange(tiles.batches * tiles.number)
