"""Comparing layers outside of any program: batch by batch from any source of images, over the devices of a mesh.

One program runs a network on a batch and hands out its units; others, which no network takes part in, add them up.
"""

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from stabjax import features, networks
from stabjax._progress import image_bar
from stabjax._provenance import describe
from stabjax.probe._checkpoint import folder_of_process, open_checkpoint
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
from stabjax.probe._devices import IMAGES, WHOLE, Devices
from stabjax.probe._layers import Layers, MeansOfLayers, Scaling, layers_of
from stabjax.probe._pass_progress import PassProgress
from stabjax.probe._plan import Plan, as_short_array, describe_network, plan_pass
from stabjax.probe._processes import agree_on_end
from stabjax.probe._source import ArraySource, Share, StreamSource
from stabjax.probe._source_units import Reading, Shares, find_scaling, scale
from stabjax.similarity.streaming import GramTerms

T = TypeVar("T")


def compare_sources(
    pair: tuple[networks.Network, ...],
    sources: tuple[ArraySource | StreamSource, ...],
    asked: Comparison,
    devices: Devices,
    *,
    path: Path | None,
    progress: bool | None,
) -> tuple[tuple[Layers, ...], tuple[Array, Array], Bool[np.ndarray, " n"]]:
    """Compare the layers of one or two networks on the images of each, or of both; see `stabjax.probe.similarity`.

    Returns:
        The layers of each network, similarities with their intervals, and which images are finite for both networks.
    """
    numbers = [source.number for source in sources if isinstance(source, ArraySource)]
    if len(set(numbers)) > 1:
        raise ValueError(f"expected as many others as images, image by image, got {numbers[1]} and {numbers[0]}")
    if devices.processes == 1:
        sources = tuple(as_short_array(source, asked.batch_size) for source in sources)
    # An array beside a stream is divided as it is: batches hold the same images for both networks.
    streams = any(isinstance(source, StreamSource) for source in sources)
    plans = tuple(plan_pass(source, devices, batch_size=asked.batch_size, like_a_stream=streams) for source in sources)
    step = plans[0].step

    n = plans[0].images
    together = f", or pass all images as one batch, batch_size={n}" if n else ""
    remedy = together if devices.number == 1 else ", or pass all images as one batch, without a mesh"
    images = [jax.ShapeDtypeStruct(plan.source.shape, plan.dtype) for plan in plans]
    of_networks = [images[min(k, len(images) - 1)] for k in range(len(pair))]
    traced = trace_pair(pair, of_networks, step.size, remedy=None if step.separate else remedy)
    layers = tuple(layers_of(h, asked.select, asked.units) for h in traced)
    reading = Reading(traced, layers, asked.select, asked.units, asked.normalization, devices)
    with contextlib.ExitStack() as stack:
        checkpoint = None
        if path is not None:
            what = _description(traced, plans, asked)
            checkpoint = stack.enter_context(open_checkpoint(folder_of_process(path, devices), what))
        show = stack.enter_context(image_bar(None, shown=progress))
        done = PassProgress(devices, checkpoint, show, may_change=any(isinstance(x, StreamSource) for x in sources))
        # By what is known before the first pass: a process that goes on does as the one that was killed.
        strategy = choose_strategy(layers, plans[0].images if devices.processes == 1 else None, asked.memory)
        found = compare(SourcePasses(plans, reading, asked.memory, done), strategy, asked)
    return layers, found, done.measured()


def _description(traced: tuple[features.Traced, ...], plans: tuple[Plan, ...], asked: Comparison) -> dict[str, Any]:
    """Return all that decides the numbers but the images, as JSON has it."""
    return {
        "comparison": "of one network with itself" if len(traced) == 1 else "of two networks",
        **{f"network {k}": describe_network(each) for k, each in enumerate(traced)},
        **{name: describe(value) for name, value in vars(asked).items()},
        **plans[0].describe(),
        "others": plans[1].describe() if len(plans) > 1 else None,
    }


class Column(NamedTuple):
    """A batch of images on its way through a pass."""

    batch: UnitBatch | None
    """None if the states have it already, and no other batch needs it."""
    images: int
    """Number of images of this process in it."""


class SourcePasses(Passes):
    """Passes over images from sources.

    Attributes:
        slots: Images, of all processes, that pass together.
    """

    def __init__(self, plans: tuple[Plan, ...], reading: Reading, memory: float, progress: PassProgress) -> None:
        self._plans, self._reading, self._progress = plans, reading, progress
        self.slots = plans[0].step.size * reading.devices.number
        self._scalings: tuple[Scaling, ...] | None = None
        bytes_of_batch = self.slots * sum(each.bytes_of_image for each in self.layers)
        self._tile = max(1, int(min(memory * 2**30 / bytes_of_batch, sys.maxsize)))
        """Batches whose units may be held."""

    @property
    def layers(self) -> tuple[Layers, ...]:
        """Return what is compared of each network."""
        return self._reading.layers

    @property
    def images(self) -> int | None:
        """Return how many images there are, of all processes; of a stream None before the first pass."""
        if self._progress.batches:
            return len(self._progress.measured())
        return self._plans[0].images if self._reading.devices.processes == 1 else None

    @property
    def room(self) -> int:
        """Return how many images there are, with those that only fill batches; known after the first pass."""
        return self._progress.batches * self.slots

    def accumulate(self, state: T, update: Callable[[T, UnitBatch], T]) -> T:
        """Pass all images once, and update accumulators with each batch."""
        return self._accumulate(state, update, None)

    def accumulate_pairs(self, update: UpdatePairs) -> GramTerms:
        """Update terms with all pairs of batches, tile by tile.

        The units of as many batches as the memory holds make a tile. Each of its batches meets those before it, and
        each batch behind it all of the tile: the network runs ``(tiles + 1) / 2`` times on every image, and once more
        for the mean, unless one tile holds all.
        """
        held: list[Column] = []
        means = self._accumulate(Means.init(self.layers), update_means, held).finish()
        progress = self._progress
        states, position = progress.begin(empty_terms(self.layers, self.room))
        # Steps go on from tile to tile: with 5 batches and tiles of 2 they are 5, 3 and 1. If 6 are finished, it is all
        # of the first tile and 1 of the second.
        finished = position.batches
        for first in range(0, progress.batches, self._tile):
            batches = progress.batches - first
            if finished < batches:
                whole = len(held) == batches and not finished
                columns = _pop_all(held) if whole else self._columns(first, finished, self._tile)
                states = self._meet(states, columns, means, finished, update)
            finished = max(0, finished - batches)
        return progress.end(states)

    def _accumulate(self, state: T, update: Callable[[T, UnitBatch], T], held: list[Column] | None) -> T:
        """Update accumulators with every batch; hold all of the batches where there is room for them."""
        progress = self._progress
        found = progress.result(state)
        if found is not None:
            # Images are read again, to compare them with those that came before.
            collections.deque(self._columns(0, progress.batches, 0), maxlen=0)
            return found
        first = progress.batches == 0
        states, position = progress.begin(state)
        for number, column in enumerate(self._columns(0, position.batches, 0, record=first)):
            if column.batch is None:
                continue
            states = _update(states, column.batch, update=update, devices=self._reading.devices)
            progress.advance(column.images, states)
            if held is not None and len(held) == number < self._tile:
                held.append(column)
            elif held is not None:
                held.clear()
        return progress.end(states)

    def _meet(
        self,
        states: Any,
        columns: Iterator[Column],
        means: tuple[MeansOfLayers, ...],
        finished: int,
        update: UpdatePairs,
    ) -> Any:
        """Let every batch meet those of the tile, which come first; so many have done so before."""
        rows: list[UnitBatch] = []
        for number, column in enumerate(columns):
            if column.batch is None:
                continue
            batch = _center(column.batch, means)
            if number < self._tile:
                rows.append(batch)
            if number < finished:
                continue
            for k, each in enumerate(rows):
                mirror = np.bool_(k != number)
                states = _update_pairs(states, each, batch, mirror, update=update, devices=self._reading.devices)
            self._progress.advance(column.images, states)
        return states

    def _columns(self, first: int, finished: int, again: int, *, record: bool = False) -> Iterator[Column]:
        """Yield batches from number ``first`` on.

        Args:
            first: Number of the first batch.
            finished: The first so many have been taken into the states, and pass the network no more,
            again: but the first so many of them, whose units are needed for other batches.
            record: Whether to keep which images count.
        """
        for number, shares in enumerate(self._shares(first)):
            needed = number >= finished or number < again
            # The first one of all says how units are scaled.
            batch = self._read(first + number, shares) if needed or self._scalings is None else None
            if record and needed and batch is not None:
                self._progress.record(shares[0], batch.counted)
            yield Column(batch if needed else None, int(shares[0].counted.sum()))

    def _shares(self, first: int) -> Iterator[Shares]:
        """Yield the images of each batch from number ``first`` on, as each network takes them."""
        sides = zip_longest(*(plan.own_shares(first=first) for plan in self._plans))
        own = self._progress.compared(map(_check_pair, sides), first)
        if self._reading.devices.processes == 1:
            return own
        # What one process finds wrong with its own images all of them have to hear of.
        return agree_on_end(own, tuple(plan.blank for plan in self._plans))

    def _read(self, number: int, shares: Shares) -> UnitBatch:
        images, counted = self._reading.place(shares)
        start = np.asarray(number * self.slots, np.int32)
        if self._scalings is not None:
            return UnitBatch(start, self._reading.read(images, counted, self._scalings), counted)
        # The first batch with images that count says how all are scaled; before it all units are zero anyway.
        units = self._reading.read(images, counted, tuple(map(Scaling.identity, self.layers)))
        if not _any(counted):
            return UnitBatch(start, units, counted)
        self._scalings = tuple(find_scaling(x, counted) for x in units)
        return UnitBatch(start, tuple(scale(x, each, counted) for x, each in zip(units, self._scalings)), counted)


def _check_pair(shares: tuple[Share | None, ...]) -> Shares:
    """Raise unless each network has as many images in a batch."""
    first = shares[0]
    if first is None or any(share is None or (share.counted != first.counted).any() for share in shares):
        raise ValueError("expected as many others as images, image by image, got another number of them")
    return tuple(share for share in shares if share is not None)


def _pop_all(columns: list[Column]) -> Iterator[Column]:
    """Yield what is held, one after the other, and hold it no longer."""
    columns.reverse()
    while columns:
        yield columns.pop()


_SPLITS: Any = (WHOLE, IMAGES, IMAGES)
_UNITS = UnitBatch(*_SPLITS)
"""How a batch lies on the devices."""


_any = jax.jit(jnp.any)


@jax.jit
def _center(batch: UnitBatch, means: tuple[MeansOfLayers, ...]) -> UnitBatch:
    return center(batch, means)


@partial(jax.jit, static_argnames=("update", "devices"), donate_argnames=("states",))
def _update(states: Any, batch: UnitBatch, *, update: Callable[..., Any], devices: Devices) -> Any:
    def local(states: Any, batch: UnitBatch) -> Any:
        return update(states, _on_device(batch, devices))

    return devices.split_states(local, (_UNITS,))(states, batch)


@partial(jax.jit, static_argnames=("update", "devices"), donate_argnames=("states",))
def _update_pairs(
    states: Any, rows: UnitBatch, columns: UnitBatch, mirror: Any, *, update: UpdatePairs, devices: Devices
) -> Any:
    def local(states: Any, rows: UnitBatch, columns: UnitBatch, mirror: Any) -> Any:
        # Each device has the rows of its own images, and the columns of all.
        return update(states, _on_device(rows, devices), devices.gather(columns, _UNITS), mirror)

    return devices.split_states(local, (_UNITS, _UNITS, WHOLE))(states, rows, columns, mirror)


def _on_device(batch: UnitBatch, devices: Devices) -> UnitBatch:
    """Return the share of a device with the number of its own first image."""
    return batch._replace(start=batch.start + devices.index() * len(batch.counted))
