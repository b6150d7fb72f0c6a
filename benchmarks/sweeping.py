"""A sweep of 10,000 small cells against one vmapped call by hand, `jax.lax.map`, and a loop over compiled cells.

A cell draws the weights of a network of four layers, and measures its response to noise of one radius at one bias. All
sides are compiled before they are timed; the loop is given a tenth of the cells, and its time multiplied by ten.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import stabjax as sj

AXES = {"bias": np.linspace(0, 1, 10), "radius": np.geomspace(0.01, 100, 50)}
SEEDS, WIDTH, DEPTH, POINTS, REPEATS = 20, 32, 4, 32, 3
KEY = jax.random.key(0)


def cell(key, bias, radius):
    weights, points, noise = jax.random.split(key, 3)
    w = jax.random.normal(weights, (DEPTH, WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5
    x = jax.random.normal(points, (POINTS, WIDTH))
    eta = jax.random.normal(noise, (POINTS, WIDTH))
    pair = jnp.stack([x, x + radius * eta / jnp.linalg.norm(eta, axis=1, keepdims=True)])
    for layer in w:
        pair = jax.nn.relu(pair @ layer + bias)
    return {"gain": jnp.mean(jnp.sum(jnp.square(pair[1] - pair[0]), axis=-1))}


@jax.jit
def vmapped_call(key, seeds, bias, radius):
    return jax.vmap(lambda s, b, r: cell(jax.random.fold_in(key, s), b, r))(seeds, bias, radius)


@partial(jax.jit, static_argnames="size")
def mapped_call(key, seeds, bias, radius, *, size):
    def one(x):
        return cell(jax.random.fold_in(key, x[0]), x[1], x[2])

    return jax.lax.map(one, (seeds, bias, radius), batch_size=size)


def run() -> list[dict]:
    bias, radius, seeds = (a.ravel() for a in np.meshgrid(*AXES.values(), np.arange(SEEDS), indexing="ij"))
    values = (seeds.astype(np.uint32), bias.astype(np.float32), radius.astype(np.float32))
    work = {
        "sweep": lambda: sj.sweep.run(cell, AXES, key=KEY, seeds=SEEDS),
        "one vmapped call by hand": lambda: np.asarray(vmapped_call(KEY, *values)["gain"]),
        "lax.map in batches of 100": lambda: np.asarray(mapped_call(KEY, *values, size=100)["gain"]),
        "one cell at a time": lambda: sj.sweep.run(cell, AXES, key=KEY, seeds=SEEDS // 10, chunk=1),
    }
    first = {name: milliseconds(call) for name, call in work.items()}
    # In turns, so that a slow moment of the machine meets all of them.
    rounds = [{name: milliseconds(call) for name, call in work.items()} for _ in range(REPEATS)]
    best = {name: min(times[name] for times in rounds) for name in work}
    first["one cell at a time"] *= 10
    best["one cell at a time"] *= 10
    rows = []
    for peer in list(work)[1:]:
        row = {"name": f"sweep, {len(seeds)} cells", "ms": best["sweep"], "compile ms": first["sweep"] - best["sweep"]}
        rows.append(row | {"peer": peer, "peer ms": best[peer], "ratio": best["sweep"] / best[peer]})
    return rows


def milliseconds(call):
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
