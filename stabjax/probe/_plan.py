"""How the images of a source are dealt to the steps of a pass, to devices and to processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import jax
import numpy as np

from stabjax.probe._batching import Batches, Step, divide, step_size
from stabjax.probe._checkpoint import BEGIN, Position, extend_digest
from stabjax.probe._devices import Devices
from stabjax.probe._processes import agree_on_end
from stabjax.probe._request import Request
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
        shares = self.shares(behind)
        while some := list(islice(shares, self.batches_of_window)):
            yield as_window(some, self.batches_of_window)

    def shares(self, behind: Position) -> Iterator[Share]:
        """Yield the images of each step, those behind a position."""
        if behind.source is not None and isinstance(self.source, StreamSource):
            self.source.seek(behind.source)
            yield from self._shares(behind.images)
            return
        shares = self._shares(0)
        digest = 0
        for share in islice(shares, behind.batches):
            digest = extend_digest(digest, share.images, share.counted)
        if digest != behind.digest:
            raise ValueError(
                "expected the images that were measured before, in their order, got others: give the same images and "
                "the same order, or another path"
            )
        yield from shares

    def _shares(self, seen: int) -> Iterator[Share]:
        if self.batches is not None and isinstance(self.source, ArraySource):
            yield from self.source.shares(self.batches, self.slots)
        elif self.devices.processes == 1:
            yield from self._stream(seen, 0, 1)
        else:
            blank = Share(
                np.zeros((self.slots, *self.source.shape), self.source.dtype),
                np.zeros(self.slots, np.int32),
                np.zeros(self.slots, np.bool_),
            )
            yield from agree_on_end(self._stream(seen, jax.process_index(), self.devices.processes), blank)

    def _stream(self, seen: int, process: int, processes: int) -> Iterator[Share]:
        # Image i of process p of P has the position i P + p among all.
        for images in recut(self.source.batches(), self.slots):
            yield fill_share(images, seen * processes + process, processes, self.slots)
            seen += len(images)


def plan_pass(source: ArraySource | StreamSource, request: Request, devices: Devices) -> Plan:
    """Divide images into steps.

    The number of images in an array is known, so its batches are of like length. Those of a stream have the full
    length, up to the last two; a stream that ends within the first batch is an array.
    """
    draws, size, kinds = request.draws, request.batch_size, request.kinds
    if devices.processes == 1:
        if isinstance(source, StreamSource):
            source = source.as_array_up_to(size) or source
        if isinstance(source, ArraySource):
            batches = divide(source.number, draws, size, kinds=kinds, devices=devices.number)
            return Plan(source, batches.step, devices, batches)
    return Plan(source, Step(step_size(draws, size, kinds), draws, kinds, separate=False), devices, None)
