"""The layers of a network as sets of units, batch by batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stabjax import features
from stabjax.probe._checks import check_front, real

Units = Literal["all", "average"]


@dataclass(frozen=True)
class Layers:
    """The selected operations of a network, in the order of execution.

    Attributes:
        names: Their names.
        kinds: Their kinds.
        sizes: Number of units of each.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]


def layers_of(traced: features.Traced, select: features.Select, units: Units) -> Layers:
    """List what there is to compare in a network; nothing is computed."""
    # Shapes alone: (rows, units) of every operation.
    found = jax.eval_shape(partial(_activations, traced, select=select, units=units), traced.batch)
    kinds = {tap.name: tap.kind for tap in traced.taps}
    names = tuple(name for name in kinds if name in found)
    if not names:
        raise ValueError(f"expected select to name at least one operation, got {select!r}: see features.taps")
    return Layers(names, tuple(kinds[name] for name in names), tuple(found[name].shape[1] for name in names))


UnitsOfLayers = tuple[Float[Array, "b _"], ...]


@dataclass(frozen=True)
class UnitReader:
    """Read the units of all layers for a batch: ``(activation - shift) / scale``, zero for images that do not count.

    Shift and scale are the mean and the largest deviation in the first batch, so that neither squares nor large means
    cost digits.
    """

    run: Callable[[Array], Mapping[str, Array]]
    layers: Layers
    shifts: tuple[Float[Array, " _"], ...]
    scales: tuple[Float[Array, ""], ...]

    def __call__(self, images: Array, counted: Bool[Array, " b"]) -> UnitsOfLayers:
        """Return the units of each layer, ``(b, units)``."""
        found = self.run(images)
        rows = zip((found[name] for name in self.layers.names), self.shifts, self.scales, strict=True)
        # One scale for all units of a layer keeps their variances in proportion. Chosen after the division: NaN of
        # images that do not count goes too.
        return tuple(jnp.where(counted[:, None], (x - m[None]) / s, 0) for x, m, s in rows)


def make_reader(
    traced: features.Traced,
    layers: Layers,
    images: Float[Array, "b *spatial channels"],
    counted: Bool[Array, " b"],
    select: features.Select,
    units: Units,
) -> UnitReader:
    """Make a reader whose shifts and scales are those of a batch."""
    run = partial(_activations, traced, select=select, units=units)
    found = run(images)
    shifts, scales = zip(*(_shift_and_scale(found[name], counted) for name in layers.names), strict=True)
    return UnitReader(run, layers, shifts, scales)


def _shift_and_scale(x: Array, counted: Array) -> tuple[Array, Array]:
    """Return the mean of the rows that count, and the largest deviation from it."""
    # From an image that counts: equal rows give exactly their value.
    one = x[jnp.argmax(counted)]
    shifted = jnp.where(counted[:, None], x - one[None], 0)
    mean = jnp.sum(shifted, axis=0) / jnp.maximum(jnp.sum(counted), 1).astype(x.dtype)
    # Rows that do not count stand where `one` stands, which counts: the maximum is that of the others.
    largest = jnp.max(jnp.abs(shifted - mean[None]))
    # NaN stays: a layer that returns it shall show it, not look like one that does not vary.
    return one + mean, jnp.where(largest > 0, largest, jnp.where(jnp.isnan(largest), largest, 1))


def _activations(traced: features.Traced, images: Any, *, select: features.Select, units: Units) -> Mapping[str, Array]:
    rows = images.shape[0]
    return traced.capture(images, select=select, reduce=partial(_units, rows, units))[1]


def _units(rows: int, units: Units, tap: features.Tap, activation: Array) -> Float[Array, "rows units"]:
    """Reshape an activation to one row per image; complex numbers become two units each."""
    shape = activation.shape
    check_front(tap, activation, rows)
    activation = real(activation)
    if units == "all" or len(shape) < 3:
        return jnp.reshape(activation, (rows, -1))
    if tap.channel_axis is None:
        raise ValueError(
            f"expected to know the channels of {tap.name!r} of shape {shape} for units='average', got none: leave it "
            "out with select, or take units='all'"
        )
    # A complex number has become two along a further last axis. With the channels beside it, (..., channels, 2), each
    # channel is averaged over all other axes: (rows, positions, 2 channels) -> (rows, 2 channels).
    channels = 2 if activation.ndim > len(shape) else 1
    maps = jnp.moveaxis(jnp.reshape(activation, (*shape, channels)), tap.channel_axis, -2)
    return jnp.mean(jnp.reshape(maps, (rows, -1, shape[tap.channel_axis] * channels)), axis=1)
