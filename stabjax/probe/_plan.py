"""How the images of a source are dealt to the steps of a pass, to devices and to processes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import jax
import numpy as np

from stabjax import features
from stabjax._provenance import digest
from stabjax.probe._batching import Batches, Kinds, Step, divide, step_size
from stabjax.probe._checkpoint import BEGIN, Position, extend_digest
from stabjax.probe._devices import Devices
from stabjax.probe._processes import agree_on_end
from stabjax.probe._source import ArraySource, Share, StreamSource, Window, as_window, fill_share, recut

MOST_BATCHES = 16
WINDOW_BYTES = 2**28
"""Batches in a window, and the memory that all versions of their images may take."""


@dataclass(frozen=True)
class Plan:
    """How images pass.

    Attributes:
        source: The images of this process.
        step: What passes together on a device.
        devices: Devices over which the images of a step are split.
        batches: The batches of an array; None for a stream, whose length is not known.
    """

    source: ArraySource | StreamSource
    step: Step
    devices: Devices
    batches: Batches | None

    @property
    def slots(self) -> int:
        """Images of this process in a step."""
        return self.step.size * self.devices.number // self.devices.processes

    @property
    def images(self) -> int | None:
        """Number of images of this process, where it is known."""
        return self.source.number if isinstance(self.source, ArraySource) else None

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of images once they are normalized."""
        dtype = self.source.dtype
        return np.dtype(np.float32) if dtype == np.uint8 else np.dtype(jax.dtypes.canonicalize_dtype(dtype))

    def describe(self) -> dict[str, Any]:
        """Return what decides how images are grouped, as JSON has it."""
        return {
            "image": [str(self.source.dtype), *self.source.shape],
            "images": self.images,
            "batch": self.step.size,
            "devices": self.devices.number,
            "processes": self.devices.processes,
        }

    @property
    def batches_of_window(self) -> int:
        """Batches that one program passes.

        With separate versions it is one batch anyway, and an accelerator keeps its memory between two calls.
        """
        if self.step.separate or jax.default_backend() != "cpu":
            return 1
        bytes_of_batch = self.step.versions * self.step.size * int(np.prod(self.source.shape)) * 4
        most = max(1, min(MOST_BATCHES, WINDOW_BYTES // bytes_of_batch))
        return most if self.batches is None else min(most, self.batches.number)

    def windows(self, behind: Position = BEGIN) -> Iterator[Window]:
        """Yield the images of a few steps at a time, those behind a position."""
        shares = self._behind(behind)
        while some := list(islice(shares, self.batches_of_window)):
            yield as_window(some, self.batches_of_window)

    def own_shares(self, *, first: int = 0) -> Iterator[Share]:
        """Yield the images of this process in each step, from step ``first`` on; of a stream those before are read."""
        if self.batches is not None and isinstance(self.source, ArraySource):
            return self.source.shares(self.batches, self.slots, first)
        return islice(self._cut(0), first, None)

    @property
    def blank(self) -> Share:
        """Return a step without images."""
        return Share(
            np.zeros((self.slots, *self.source.shape), self.source.dtype),
            np.zeros(self.slots, np.int32),
            np.zeros(self.slots, np.bool_),
        )

    def _behind(self, finished: Position) -> Iterator[Share]:
        """Yield the images of each step, those behind a position."""
        if finished.source is not None and isinstance(self.source, StreamSource):
            self.source.seek(finished.source)
            yield from self._with_others(self._cut(finished.images))
            return
        shares = self._with_others(self.own_shares())
        seen = 0
        for share in islice(shares, finished.batches):
            seen = extend_digest(seen, share.images, share.counted)
        if seen != finished.digest:
            raise ValueError(
                "expected the images that were measured before, in their order, got others: give the same images and "
                "the same order, or another path"
            )
        yield from shares

    def _with_others(self, shares: Iterator[Share]) -> Iterator[Share]:
        """Go on until no process has any images left."""
        return agree_on_end(shares, self.blank) if self.devices.processes > 1 else shares

    def _cut(self, seen: int) -> Iterator[Share]:
        processes = self.devices.processes
        process = jax.process_index() if processes > 1 else 0
        # Image i of process p of P has the position i P + p among all.
        for images in recut(self.source.batches(), self.slots):
            yield fill_share(images, seen * processes + process, processes, self.slots)
            seen += len(images)


def plan_pass(
    source: ArraySource | StreamSource,
    devices: Devices,
    *,
    batch_size: int,
    draws: int = 1,
    kinds: Kinds = (),
    like_a_stream: bool = False,
) -> Plan:
    """Divide images into steps.

    The number of images in an array is known, so its batches are of like length. Those of a stream have the full
    length, up to the last two; a stream that ends within the first batch is an array.

    Args:
        source: The images.
        devices: Over which they are split.
        batch_size: Largest number of images that pass together on a device, see `stabjax.probe.run`.
        draws: Number of draws of each image.
        kinds: Versions beside the clean one.
        like_a_stream: Whether an array is divided as a stream of the same images is.
    """
    if devices.processes == 1 and not like_a_stream:
        source = as_short_array(source, batch_size)
        if isinstance(source, ArraySource):
            batches = divide(source.number, draws, batch_size, kinds=kinds, devices=devices.number)
            return Plan(source, batches.step, devices, batches)
    return Plan(source, Step(step_size(draws, batch_size, kinds), draws, kinds, separate=False), devices, None)


def as_short_array(source: ArraySource | StreamSource, batch_size: int) -> ArraySource | StreamSource:
    """Return a stream that ends within one batch as an array, and anything else as it is."""
    return (source.as_array_up_to(batch_size) or source) if isinstance(source, StreamSource) else source


def describe_network(traced: features.Traced) -> dict[str, Any]:
    """Return what a network computes, as JSON has it."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), traced)
    lowered = jax.jit(lambda network, images: network(images)).lower(shapes, traced.batch)
    return {
        # Of the tree, whose leaves are also arrays that a plain function closes over.
        "arrays": digest(traced),
        # With the numbers that stand in its code.
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
        "taps": [f"{tap.name} {tap.kind}" for tap in traced.taps],
        "convolutions": traced.convolutions,
    }
