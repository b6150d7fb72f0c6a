"""How far several passes over the same images have come, kept in a folder so that a killed process goes on.

For every pass, in turn, one of these is called::

    result(state)                     what it found, if a process that was killed had finished it
    begin(state), advance(...), end   otherwise: from the beginning, or from where it was saved
"""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from stabjax.probe._checkpoint import BEGIN, Checkpoint, Position, extend_digest
from stabjax.probe._comparison import merge
from stabjax.probe._context import Rows
from stabjax.probe._devices import Devices, local_part
from stabjax.probe._processes import agree, gather_rows
from stabjax.probe._source import Share

T = TypeVar("T")


class PassProgress:
    """The passes that are finished, with what they found, and the one that is under way.

    Attributes:
        batches: Number of batches; 0 until the first pass is finished.
    """

    def __init__(
        self, devices: Devices, checkpoint: Checkpoint | None, show: Callable[[int], None], *, may_change: bool
    ) -> None:
        """Begin, or go on.

        Args:
            devices: Over which images are split.
            checkpoint: The folder, if there is one.
            show: Is told how many images have passed.
            may_change: Whether the images of a later pass may be others, as a loader that shuffles gives them.
        """
        self.batches = 0
        self._devices, self._checkpoint, self._show = devices, checkpoint, show
        self._compares = may_change or checkpoint is not None
        self._digests: list[int] = []
        """Checksum of the images of this process in each batch that has come."""
        self._results: list[Any] = []
        self._position = BEGIN
        self._shown = 0
        self._positions: list[np.ndarray] = []
        self._measured: list[np.ndarray] = []
        self._waiting: tuple[Share, Array] | None = None
        self._saved: list[np.ndarray] = []
        """Leaves of what was saved and is not taken yet: results of finished passes, then the state of the next one."""
        self._finished = 0
        """Passes that the process had finished that was killed."""
        saved = None if checkpoint is None else checkpoint.load(agree(checkpoint.newest(), min, devices), rows=False)
        if saved is not None:
            finished, batches, digests, positions, measured, *self._saved = saved.states
            self._finished, self.batches, self._digests = int(finished), int(batches), digests.tolist()
            self._positions, self._measured = [positions], [measured]
            self._position = saved.position

    def result(self, state: T) -> T | None:
        """Return what the next pass found, if the process that was killed had finished it; else None.

        Args:
            state: Before its first batch; what was found has the same structure.
        """
        if len(self._results) >= self._finished:
            return None
        structure = jax.tree.structure(state)
        leaves, self._saved = self._saved[: structure.num_leaves], self._saved[structure.num_leaves :]
        self._results.append(jax.tree.unflatten(structure, list(map(jnp.asarray, leaves))))
        return self._results[-1]

    def begin(self, state: T) -> tuple[T, Position]:
        """Return the states of all devices at the beginning of a pass, or as they were saved, and how far it came."""
        if self._saved:
            leaves, self._saved = self._saved, []
            return jax.tree.unflatten(jax.tree.structure(state), [self._devices.put(x) for x in leaves]), self._position
        self._position = BEGIN
        # A copy, whose memory the updates may take.
        return jax.tree.map(jnp.array, self._devices.stack(state)), BEGIN

    def advance(self, images: int, states: Any) -> None:
        """Count one batch more, of so many images, and save the states if it is time."""
        self._position = Position(self._position.batches + 1, self._position.images + images)
        if self._checkpoint is not None and agree(self._checkpoint.is_due(), max, self._devices):
            self._fetch()
            facts = (np.concatenate(each) for each in (self._positions, self._measured))
            head = [*map(np.asarray, (len(self._results), self.batches, self._digests)), *facts]
            results = jax.tree.map(np.asarray, self._results)
            self._checkpoint.save(self._position, [*head, results, self._devices.local(states)])
        self._shown += images
        self._show(self._shown)

    def end(self, states: T) -> T:
        """Finish a pass; return its states, merged."""
        self._fetch()
        self.batches = self.batches or self._position.batches
        merged = reduce(merge, self._devices.unstack(states))
        self._results.append(jax.tree.map(jnp.asarray, merged))
        return self._results[-1]

    def compared(self, batches: Iterator[tuple[Share, ...]], first: int) -> Iterator[tuple[Share, ...]]:
        """Yield the batches of this process; raise unless they hold the images they had when they came before.

        Args:
            batches: Each as every network takes it.
            first: Number of the first one.
        """
        number = first
        for shares in batches:
            if self._compares:
                digest = reduce(lambda digest, share: extend_digest(digest, share.images, share.counted), shares, 0)
                if number == len(self._digests) and not self.batches:
                    self._digests.append(digest)
                elif number >= len(self._digests) or digest != self._digests[number]:
                    raise _other_images(f"others in batch {number}")
            yield shares
            number += 1
        if self._compares and number < len(self._digests):
            raise _other_images(f"{number} batches, and {len(self._digests)} before")

    def record(self, share: Share, counted: Array) -> None:
        """Keep which images of a batch are there, and which of them count; for the first pass."""
        # What lies on a device is fetched once the next batch is under way: to fetch it is to wait for it.
        self._fetch()
        self._waiting = share, counted

    def measured(self) -> np.ndarray:
        """Return which images count, of all processes, in their order."""
        positions, measured = np.concatenate(self._positions), np.concatenate(self._measured)
        _, facts = gather_rows(positions, ((), Rows(measured)), self._devices)
        return facts.per_image

    def _fetch(self) -> None:
        if self._waiting is None:
            return
        share, counted = self._waiting
        self._waiting = None
        self._positions.append(share.positions[share.counted])
        self._measured.append(local_part(counted, 0)[share.counted])


def _other_images(found: str) -> ValueError:
    return ValueError(
        f"expected the images that came before, in their order, got {found}: give the same images in the same order at "
        "every pass (a loader that does not shuffle or augment), and those of the path, or another path"
    )
