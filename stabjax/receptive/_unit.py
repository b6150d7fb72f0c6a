"""A traced network, and a unit of one of its taps found by name and position."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from stabjax import _jaxpr, features
from stabjax._types import AnyArray

Position: TypeAlias = Sequence[int | np.integer | Int[AnyArray, ""]] | Int[AnyArray, " axes"]
"""Where a unit stands on the axes of its tap without batch and channels; may be traced."""


@dataclass(frozen=True)
class Unit:
    """A position of a tap, with all its channels.

    Attributes:
        place: on each axis of the tap without batch and channels, ``(axes,)``; perhaps traced.
        site: the tap.
    """

    place: np.ndarray | Array
    site: _jaxpr.TapSite

    @property
    def channels(self) -> int:
        """The number of channels of the tap."""
        return 1 if self.site.channel_axis is None else self.site.shape[self.site.channel_axis]


def axes_of(shape: Sequence[int], channel_axis: int | None) -> list[int]:
    """Return the axes of an activation without batch and channels."""
    return [axis for axis in range(1, len(shape)) if axis != channel_axis]


def unit_mask(place: Any, shape: Sequence[int], channel_axis: int | None) -> Array:
    """Return an array of this shape that is true at a unit of the first image, at all its channels."""
    # Comparisons instead of an index: they take a traced place, and a vmap over places stays elementwise.
    found = jax.lax.broadcasted_iota(np.int32, shape, 0) == 0
    for k, axis in enumerate(axes_of(shape, channel_axis)):
        found &= jax.lax.broadcasted_iota(np.int32, shape, axis) == from_start(place[k], shape[axis])
    return found


def from_start(number: Any, side: int) -> Any:
    """Return a position or channel, counted from the first one; negative ones count from the last."""
    # np.int32, so that nothing becomes 64 bits wide where x64 is on.
    return jnp.where(number < 0, number + np.int32(side), number)


def is_inside(numbers: Any, sides: Any) -> Array:
    """Return whether positions or channels lie within these sides, counted from either end."""
    sides = np.asarray(sides, np.int32)
    return jnp.all((numbers >= -sides) & (numbers < sides))


def locate(f: Any, image: Any, tap: str, unit: Position | None) -> tuple[features.Traced, Unit]:
    """Find a unit in a network traced for a batch; where a single image loses its batch on the way, for two images."""
    traced = features.trace(f, image)
    if image.shape[0] == 1 and all(site.name != tap for site in traced.program.sites):
        traced = features.trace(f, jax.ShapeDtypeStruct((2, *image.shape[1:]), image.dtype))
    return traced, find(traced, tap, unit)


def find(traced: features.Traced, tap: str, unit: Position | None) -> Unit:
    """Find the unit of a tap at a position; by default in the center.

    Raises:
        ValueError: if there is no such tap; if there is no such unit, and the position is not traced.
    """
    sites = {site.name: site for site in traced.program.sites}
    if tap not in sites:
        raise ValueError(f"expected the name of an operation, got {tap!r}; the network has {', '.join(sites)}")
    site = sites[tap]
    sides = [site.shape[axis] for axis in axes_of(site.shape, site.channel_axis)]
    place = numbers_of([side // 2 for side in sides] if unit is None else unit, sides)
    if place is None:
        raise ValueError(
            f"expected a unit of {tap!r} as a position on its axes of {tuple(sides)}, got {unit!r}; its activation is "
            f"{site.shape} with its channels on axis {site.channel_axis}"
        )
    return Unit(place, site)


def numbers_of(numbers: Any, sides: Any) -> Any:
    """Return integers as one array: known ones counted from the first, traced ones as they are.

    None if they are no integers, or not as many as there are sides, or if known ones lie outside of these.
    """
    known = None if isinstance(numbers, Tracer) else integers(numbers)
    if known is not None:
        # -low are the sides, one for each number or one for all. The remainder counts -1 as the last one.
        low = -np.asarray(sides)
        fit = low.shape in ((), (len(known),)) and ((known >= low) & (known < -low)).all()
        return (np.array(known, np.int64) % -low).astype(np.int32) if fit else None
    try:
        # What is left may be traced: as a whole, or number by number.
        array = numbers if isinstance(numbers, Tracer) else jnp.stack([*map(jnp.asarray, numbers)])
    except (TypeError, ValueError):
        return None
    if array.ndim != 1 or not (isinstance(array, Tracer) and jnp.issubdtype(array.dtype, jnp.integer)):
        return None
    if np.shape(sides) not in ((), array.shape):
        return None
    return array.astype(np.int32)


def integers(numbers: Any) -> list[int] | None:
    """Return the numbers, if they are several integers that are known."""
    try:
        return [operator.index(number) for number in numbers]
    except TypeError:
        return None
