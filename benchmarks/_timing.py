"""Clocks that the benchmarks share; the work is waited for."""

import time
from collections.abc import Callable
from typing import Any

import jax


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """The best of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def first_and_best(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Milliseconds of the first call, which compiles, and of the best one after it."""
    return milliseconds(work, 1), milliseconds(work, repeats)
