"""A network read, and a unit of one of its taps found by name and position."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from stabjax import _jaxpr, features


@dataclass(frozen=True)
class Unit:
    """A position of a tap, with all its channels.

    Attributes:
        index: position on each axis of the tap, 0 on the batch, None on the channels.
        site: the tap.
    """

    index: tuple[int | None, ...]
    site: _jaxpr.Site

    @property
    def channels(self) -> int:
        """How many channels the tap has."""
        return 1 if self.site.channel_axis is None else self.site.shape[self.site.channel_axis]


def network_of(f: Any) -> features.Guest:
    """The network as data."""
    return f if isinstance(f, features.Guest) else features.of(f)


def reading_of(f: Any, x: Any) -> _jaxpr.Reading:
    """The program of a network, read; nothing is computed."""
    network = network_of(f)
    return _jaxpr.read_network(network.variables, network.adapter, x)


def parameters_of(f: Any) -> list[Any]:
    """The parameters, in the order of the program's inputs."""
    return jax.tree.leaves(network_of(f).variables)


def locate(f: Any, image: Any, tap: str, unit: Sequence[int] | None) -> tuple[_jaxpr.Reading, Unit]:
    """The unit in a program for that batch; with a single image some taps lose their batch, then in one for two."""
    reading = reading_of(f, image)
    if image.shape[0] == 1 and all(site.name != tap for site in reading.sites):
        reading = reading_of(f, jax.ShapeDtypeStruct((2, *image.shape[1:]), image.dtype))
    return reading, find(reading, tap, unit)


def find(reading: _jaxpr.Reading, tap: str, unit: Sequence[int] | None) -> Unit:
    """The unit of that name and position; raises where there is none."""
    sites = {site.name: site for site in reading.sites}
    if tap not in sites:
        raise ValueError(f"expected the name of an operation, got {tap!r}; the network has {', '.join(sites)}")
    site = sites[tap]
    axes = [axis for axis in range(1, len(site.shape)) if axis != site.channel_axis]
    sides = [site.shape[axis] for axis in axes]
    places = [side // 2 for side in sides] if unit is None else integers(unit)
    if places is None or len(places) != len(sides) or any(not -side <= k < side for k, side in zip(places, sides)):
        raise ValueError(
            f"expected a unit of {tap!r} as a position on its axes of {tuple(sides)}, got {unit!r}; its activation is "
            f"{site.shape} with its channels on axis {site.channel_axis}"
        )
    by_axis = {axis: place % side for axis, place, side in zip(axes, places, sides)}
    return Unit((0, *[by_axis.get(axis) for axis in range(1, len(site.shape))]), site)


def integers(numbers: Any) -> list[int] | None:
    """The numbers, if they are several integers."""
    try:
        return [operator.index(number) for number in numbers]
    except TypeError:
        return None
