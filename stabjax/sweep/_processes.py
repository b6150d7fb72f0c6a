"""The processes that run one sweep: one of them holds the files, all of them get everything."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

LONGEST = 2000
"""Bytes of an error message that the others get to see."""


class Processes:
    """Alone, everything is what it seems; in several processes every method is called by all of them together."""

    def __init__(self, mesh: Mesh | None) -> None:
        self.several = mesh is not None and mesh.is_multi_process
        if mesh is not None and self.several:
            members = {device.process_index for device in mesh.devices.flat}
            if len(members) < jax.process_count():
                raise ValueError(
                    f"expected a mesh over the devices of all {jax.process_count()} processes, or of this one alone, "
                    f"got one over the processes {sorted(members)}"
                )
        self.is_leader = not self.several or jax.process_index() == 0

    def first_error(self, mine: str) -> str:
        """Return the first message of a process that is not empty."""
        if not self.several:
            return mine
        # Gathered arrays must have one length in all processes: messages are cut and filled up with zeros.
        texts = [
            row.tobytes().rstrip(b"\0") for row in self._gather_bytes(mine.encode()[:LONGEST].ljust(LONGEST, b"\0"))
        ]
        return next((f"process {k}: {t.decode(errors='replace')}" for k, t in enumerate(texts) if t), "")

    def on_leader(self, work: Callable[[], object]) -> None:
        """Do work in the first process alone; what it raises, all raise."""
        failure = None
        if self.is_leader:
            try:
                work()
            except Exception as error:
                if not self.several:
                    raise
                failure = error
        # All meet here, also those that had nothing to do.
        text = self.first_error(f"{type(failure).__name__}: {failure}" if failure else "")
        if failure is not None:
            raise failure
        if text:
            raise RuntimeError(text)

    def broadcast(self, arrays: Sequence[np.ndarray]) -> None:
        """Overwrite arrays with those of the leader, bit by bit (a sum over processes would lose -0 and NaN)."""
        if self.several:
            for array in arrays:
                # (processes, bytes): those of the first.
                array[...] = self._gather_bytes(array.tobytes())[0].view(array.dtype).reshape(array.shape)

    def broadcast_text(self, text: str) -> str:
        """Return the text of the first process."""
        payload = np.frombuffer(text.encode(), np.uint8)
        # The length first: only then can the others make room for the text.
        length = np.array([len(payload)])
        self.broadcast([length])
        found = np.zeros(length[0], np.uint8)
        if len(payload) == len(found):
            found[:] = payload
        self.broadcast([found])
        return found.tobytes().decode()

    def gather(self, arrays: Any) -> Any:
        """Return the arrays spread over devices, as a whole in the memory of every process."""
        if self.several:
            return multihost_utils.process_allgather(arrays, tiled=True)
        return jax.tree.map(np.asarray, arrays)

    def _gather_bytes(self, payload: bytes) -> np.ndarray:
        return np.asarray(multihost_utils.process_allgather(np.frombuffer(payload, np.uint8)))
