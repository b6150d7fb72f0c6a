"""The layers of a network as sets of units, batch by batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from stabjax import features
from stabjax._numerics import column_sum
from stabjax._types import AnyArray
from stabjax.probe._checks import check_front, real
from stabjax.probe._effort import rules_of

Units = Literal["all", "average"]


@dataclass(frozen=True)
class Layers:
    """The selected operations of a network, in the order of execution.

    Attributes:
        names: Their names.
        kinds: Their kinds.
        sizes: Number of units of each.
        dtypes: Of their units.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    dtypes: tuple[np.dtype, ...]

    @property
    def bytes_of_image(self) -> int:
        """Memory that the units of one image take."""
        return sum(size * dtype.itemsize for size, dtype in zip(self.sizes, self.dtypes, strict=True))


def layers_of(traced: features.Traced, select: features.Select, units: Units) -> Layers:
    """List what there is to compare in a network; nothing is computed."""
    # Shapes alone: (rows, units) of every operation.
    found = jax.eval_shape(partial(_activations, traced, select=select, units=units), traced.batch)
    kinds = {tap.name: tap.kind for tap in traced.taps}
    names = tuple(name for name in kinds if name in found)
    if not names:
        raise ValueError(f"expected select to name at least one operation, got {select!r}: see features.taps")
    shapes = [found[name] for name in names]
    sizes, dtypes = tuple(x.shape[1] for x in shapes), tuple(np.dtype(x.dtype) for x in shapes)
    return Layers(names, tuple(kinds[name] for name in names), sizes, dtypes)


UnitsOfLayers = tuple[Float[AnyArray, "b _"], ...]
MeansOfLayers = tuple[Float[AnyArray, " _"], ...]


def read_units(
    traced: features.Traced, images: Array, layers: Layers, *, select: features.Select, units: Units
) -> UnitsOfLayers:
    """Run a network and return the units of each layer, ``(b, units)``."""
    found = _activations(traced, images, select=select, units=units)
    return tuple(found[name] for name in layers.names)


class Scaling(NamedTuple):
    """The mean and the largest deviation of a batch, by which units are brought to a common size.

    So neither squares nor large means cost digits. One scale for all units of a layer keeps their variances in
    proportion.
    """

    shifts: MeansOfLayers
    scales: tuple[Float[AnyArray, ""], ...]

    @classmethod
    def identity(cls, layers: Layers) -> "Scaling":
        """Return what leaves units as they are."""
        pairs = list(zip(layers.sizes, layers.dtypes, strict=True))
        shifts, scales = [np.zeros(size, dtype) for size, dtype in pairs], [np.ones((), dtype) for _, dtype in pairs]
        return cls(tuple(shifts), tuple(scales))

    @classmethod
    def of(cls, units: UnitsOfLayers, counted: Bool[Array, " b"]) -> "Scaling":
        """Return that of a batch."""
        return cls(*map(tuple, zip(*(_shift_and_scale(jnp.asarray(x), counted) for x in units), strict=True)))

    def apply(self, units: UnitsOfLayers, counted: Bool[Array, " b"]) -> UnitsOfLayers:
        """Return ``(x - shift) / scale``, zero for images that do not count."""
        rows = zip(units, self.shifts, self.scales, strict=True)
        # Chosen after the division: NaN of images that do not count goes too.
        return tuple(jnp.where(counted[:, None], (x - m[None]) / s, 0) for x, m, s in rows)


def _shift_and_scale(x: Array, counted: Array) -> tuple[Array, Array]:
    """Return the mean of the rows that count, and the largest deviation from it."""
    # From an image that counts: equal rows give exactly their value.
    one = x[jnp.argmax(counted)]
    shifted = jnp.where(counted[:, None], x - one[None], 0)
    mean = column_sum(shifted) / jnp.maximum(jnp.sum(counted), 1).astype(x.dtype)
    # Rows that do not count stand where `one` stands, which counts: the maximum is that of the others.
    largest = jnp.max(jnp.abs(shifted - mean[None]))
    # Of a single image, or equal ones, the size: there is no deviation.
    size = jnp.max(jnp.abs(one))
    # NaN stays: a layer that returns it shall show it, not look like one that does not vary.
    return one + mean, jnp.where(largest == 0, jnp.where(size > 0, size, 1), largest)


def _activations(traced: features.Traced, images: Any, *, select: features.Select, units: Units) -> Mapping[str, Array]:
    rows = images.shape[0]
    return traced.capture(images, select=select, reduce=partial(_units, rows, units), rules=rules_of(traced))[1]


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
