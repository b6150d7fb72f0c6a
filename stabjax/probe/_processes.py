"""Several processes in one pass: they go on together, end together, and share what they found."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from jax.experimental import multihost_utils

from stabjax.probe._context import Rows
from stabjax.probe._devices import Devices
from stabjax.probe._rows import sort_rows

T = TypeVar("T")
_DONE, _MORE, _FAILED = 0, 1, 2


def agree_on_end(shares: Iterator[T], empty: T) -> Iterator[T]:
    """Yield shares until no process has any left; one that has none takes part with ``empty``.

    Every step is one program over all devices, so a process that stopped alone would leave the others waiting. One that
    cannot read its images says so, and all of them raise.
    """
    while True:
        error, share = None, None
        try:
            share = next(shares, None)
        except Exception as caught:
            error = caught
        mine = _FAILED if error else _DONE if share is None else _MORE
        all_of_them = np.asarray(multihost_utils.process_allgather(np.array([mine]))).ravel()
        if error is not None:
            raise error
        if _FAILED in all_of_them:
            failed = np.flatnonzero(all_of_them == _FAILED).tolist()
            raise RuntimeError(f"expected images from every process, got an error in {failed}: see what it says there")
        if _MORE not in all_of_them:
            return
        yield empty if share is None else share


def agree(mine: Any, choose: Callable[[Any], Any], devices: Devices) -> Any:
    """Return what all processes take: the choice (`min`, `max`) of what each of them says."""
    if devices.processes == 1:
        return mine
    return type(mine)(choose(np.asarray(multihost_utils.process_allgather(np.array([int(mine)]))).ravel().tolist()))


def gather_rows(positions: np.ndarray, rows: Any, devices: Devices) -> Any:
    """Return the rows of all processes, in the order of the images.

    Args:
        positions: Of the images of this process.
        rows: A pytree of `Rows` of these images.
        devices: The devices of the pass.
    """
    if devices.processes == 1:
        return sort_rows(positions, rows)
    counts = np.asarray(multihost_utils.process_allgather(np.array([len(positions)]))).ravel()

    def gathered(x: np.ndarray, axis: int) -> np.ndarray:
        # Arrays to gather have one shape in all processes: filled up here, cut behind.
        fill = [(0, 0)] * x.ndim
        fill[axis] = (0, int(counts.max()) - x.shape[axis])
        of_processes = np.asarray(multihost_utils.process_allgather(np.pad(x, fill)))
        parts = [np.take(x, np.arange(count), axis) for x, count in zip(of_processes, counts, strict=True)]
        return np.concatenate(parts, axis)

    of_all = Rows.map(lambda x: gathered(x, 0), lambda x: gathered(x, 1), rows)
    return sort_rows(gathered(positions, 0), of_all)
