"""Time of one convolution by each route, without its compilation, which may come from an earlier run."""

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import stabjax as sj
from experiments._study import Drawing

ROUTES = ("direct", "unfold", "fft")
SIZES = {
    "64 of 28 x 28, 1 to 8 channels": (64, 28, 1, 8),
    "16 of 32 x 32, 16 to 16 channels": (16, 32, 16, 16),
    "1 of 224 x 224, 3 to 16 channels": (1, 224, 3, 16),
}
"""Images, their side, channels before and behind."""


def draw(kernels: Sequence[int], *, repeats: int, seed: int, smoke: bool) -> Drawing:
    """Draw the time of one convolution by each route, against the side of the kernel."""
    sizes = {"4 of 12 x 12, 2 to 3 channels": (4, 12, 2, 3)} if smoke else SIZES
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    tables = {label: measure(size, kernels, repeats=repeats, seed=seed) for label, size in sizes.items()}
    figure, grid = sj.plot.panels(1, len(sizes), size=(3.9, 3.6), sharex=True)
    for axes, (label, table) in zip(grid[0], tables.items(), strict=True):
        for color, marker, (route, each) in zip(sj.plot.COLORS[1:], "osD", table.items(), strict=False):
            middle, low, high = 1e3 * np.array([each["seconds"], *np.transpose(each["interval"])])
            bars = [middle - low, high - middle]
            axes.errorbar(kernels, middle, bars, color=color, marker=marker, capsize=2, label=route)
        axes.set(yscale="log", title=label, xlabel="side of the kernel (pixels)")
        axes.title.set_fontsize(9)
        axes.set_xticks(kernels)
        axes.grid(color="0.93")
    grid[0, 0].set_ylabel("time of one call (ms)")
    grid[0, 0].legend(frameon=False, fontsize=9)
    figure.suptitle(
        f"One convolution of random images, stride 1, float32, by three routes on {cores} core(s) "
        f"({jax.default_backend()});\nmedian of {repeats}, bars are its 95 % interval, compilation left out",
        fontsize=9,
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return figure, {"cores": cores, "load_at_the_end": load, "kernels": kernels, "routes": tables}


def measure(
    size: tuple[int, int, int, int], kernels: Sequence[int], *, repeats: int, seed: int
) -> dict[str, dict[str, list[Any]]]:
    """Measure seconds of each route for every kernel, with the interval of the median, and the error of the result."""
    count, side, channels, out = size
    rng = np.random.default_rng(seed)
    table = {route: {"seconds": [], "interval": [], "error": []} for route in ROUTES}
    calls: dict[tuple[str, int], Callable[[], float]] = {}
    x = jnp.asarray(rng.normal(size=(count, side, side, channels)), jnp.float32)
    for kernel in kernels:
        weights = jnp.asarray(rng.normal(size=(kernel, kernel, channels, out)) / kernel, jnp.float32)
        results = []
        for route in ROUTES:
            compiled = jax.jit(partial(sj.conv.convolve, method=route)).lower(x, weights).compile()
            results.append(compiled(x, weights))
            error = jnp.max(jnp.abs(results[-1] - results[0])) / jnp.max(jnp.abs(results[0]))
            table[route]["error"].append(float(error))
            repeat = max(1, int(0.02 / seconds(compiled, x, weights, 1)))
            calls[route, kernel] = partial(seconds, compiled, x, weights, repeat)
    # Round by round, so that a busy moment of the machine falls on all of them.
    rounds = [{case: call() for case, call in calls.items()} for _ in range(repeats)]
    for route, kernel in calls:
        times = np.array([each[route, kernel] for each in rounds])
        again = np.median(times[rng.integers(len(times), size=(2000, len(times)))], axis=1)
        table[route]["seconds"].append(float(np.median(times)))
        table[route]["interval"].append(np.quantile(again, (0.025, 0.975)).tolist())
    return table


def seconds(f: Callable[..., Any], x: Any, weights: Any, calls: int) -> float:
    """Return the seconds of one call, the mean of several."""
    begin = time.perf_counter()
    for _ in range(calls):
        f(x, weights).block_until_ready()
    return (time.perf_counter() - begin) / calls
