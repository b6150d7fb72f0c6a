"""Clocks that the benchmarks share, and the line of their tables; all work is waited for."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def best_milliseconds(work: Callable[[], Any], repeats: int, *, pause: float = 0.0) -> float:
    """Return the time of the best of several calls, with so many seconds between them.

    Threads of a BLAS spin for some 30 ms after their work is done, and take a core of whatever comes next.
    """
    times = []
    for _ in range(repeats):
        time.sleep(pause)
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def first_and_best_milliseconds(work: Callable[[], Any], repeats: int, *, pause: float = 0.0) -> tuple[float, float]:
    """Return the times of the first call, which compiles, and of the best one after it."""
    return best_milliseconds(work, 1, pause=pause), best_milliseconds(work, repeats, pause=pause)


def median_milliseconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Return the median time of a call, after one to warm up; the work waits for itself."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def compile_call(f: Callable, *arguments: object) -> tuple[Callable[[], object], float]:
    """Compile a function for its arguments; return a call of it, which waits, and the seconds of the compilation."""
    start = time.perf_counter()
    program = jax.jit(f).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(program(*arguments)), seconds


def row(name: str, ours: float, compile_seconds: float, peer: str, theirs: float) -> dict:
    """Return one line of the table, times in milliseconds; a ratio below one means that this library is faster."""
    return {
        "name": name,
        "stabjax_ms": round(ours, 2),
        "compile_s": round(compile_seconds, 2),
        "peer": peer,
        "peer_ms": round(theirs, 2),
        "ratio": round(ours / theirs, 3),
    }
