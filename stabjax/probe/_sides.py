"""A network with its images, and loops over their batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax import features
from stabjax.probe._layers import Layers, Reader, Steps, Units, UnitsOfLayers, reader


class Side(NamedTuple):
    """One of the two networks that are compared."""

    images: Float[Array, "padded *spatial channels"]
    """Those that do not count are blank."""
    counted: Bool[Array, " padded"]
    layers: Layers
    read: Reader

    def units(self, start: Array, steps: Steps) -> UnitsOfLayers:
        """Units of each layer for the batch that starts there."""
        some = jax.lax.dynamic_slice_in_dim(self.images, start, steps.size)
        return self.read(some, self.counts(start, steps))

    def counts(self, start: Array, steps: Steps) -> Bool[Array, " size"]:
        """Which images of the batch count."""
        return jax.lax.dynamic_slice_in_dim(self.counted, start, steps.size)


def side_of(
    f: features.Traced,
    images: Float[Array, "n *spatial channels"],
    counted: Bool[Array, " padded"],
    layers: Layers,
    steps: Steps,
    select: features.Select,
    units: Units,
) -> Side:
    """A network with its images; shifts and scales are those of the first batch."""
    kept = jnp.expand_dims(counted[: steps.images], tuple(range(1, images.ndim)))
    blanked = jnp.where(kept, images, 0)
    filled = jnp.pad(blanked, ((0, steps.padded - steps.images), *[(0, 0)] * (images.ndim - 1)))
    read = reader(f, layers, filled[: steps.size], counted[: steps.size], select, units)
    return Side(filled, counted, layers, read)


def starts_of(steps: Steps) -> Int[Array, " batches"]:
    """The first image of each batch."""
    return steps.size * jnp.arange(steps.batches * steps.tiles)


def summed(of_batch: Callable[[Array], Any], steps: Steps) -> Any:
    """Sum over the batches."""
    shapes = jax.eval_shape(of_batch, jax.ShapeDtypeStruct((), starts_of(steps).dtype))
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: Any, start: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_batch(start)), None

    return jax.lax.scan(add, empty, starts_of(steps))[0]


def by_image(values: Array) -> Array:
    """``(batches, ..., size)`` as ``(..., images)``."""
    moved = jnp.moveaxis(values, 0, -2)
    return jnp.reshape(moved, (*moved.shape[:-2], -1))
