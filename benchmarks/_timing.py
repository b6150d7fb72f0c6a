"""Clocks that the benchmarks share; the work is waited for."""

import time
from collections.abc import Callable
from typing import Any

import jax


def milliseconds(work: Callable[[], Any], repeats: int, *, pause: float = 0.0) -> float:
    """The best of several calls, with so many seconds between them.

    Threads of a BLAS spin for some 30 ms after their work is done, and take a core of whatever comes next.
    """
    times = []
    for _ in range(repeats):
        time.sleep(pause)
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def first_and_best(work: Callable[[], Any], repeats: int, *, pause: float = 0.0) -> tuple[float, float]:
    """Milliseconds of the first call, which compiles, and of the best one after it."""
    return milliseconds(work, 1, pause=pause), milliseconds(work, repeats, pause=pause)
