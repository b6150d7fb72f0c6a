"""Functions to sweep over, the same by hand, and how many programs are compiled."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from stabjax import sweep

AXES = {"bias": [0.0, 0.25, 0.5], "power": [1, 2]}
TRACES = []


def cell(key, bias, power):
    TRACES.append(bias)
    x = jax.random.normal(key, (4,)) + bias
    return {"norm": jnp.sum(x**2) * power.astype(jnp.float32), "x": x, "count": jnp.sum(x > 0)}


def by_hand(f, key, axes, seeds):
    """The same with Python loops, one cell after the other."""
    grid = np.meshgrid(*map(np.arange, map(len, axes.values())), np.arange(seeds), indexing="ij")
    found, f = {}, jax.jit(f)
    for *index, seed in zip(*map(np.ravel, grid)):
        values = {name: jnp.asarray(axis[i]) for (name, axis), i in zip(axes.items(), index)}
        for name, value in f(jax.random.fold_in(key, int(seed)), **values).items():
            found.setdefault(name, np.zeros((*grid[0].shape, *value.shape), value.dtype))[(*index, seed)] = value
    return found


@contextlib.contextmanager
def compilations():
    """How many programs are compiled in here."""
    events = []

    def listen(name, seconds, **kwargs):
        if name == "/jax/core/compile/backend_compile_duration" and active:
            events.append(name)

    active = [True]
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    active.clear()


def go(path, f=cell, axes=AXES, **options):
    return sweep.run(f, axes, **{"key": jax.random.key(1), "seeds": 2, "path": path, "chunk": 5, **options})


def chunks(path):
    return sorted(path.glob("chunk-*"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Scaled:
    weights: jax.Array
    name: str = dataclasses.field(metadata={"static": True})

    def __call__(self, key, a):
        return {"out": a * jnp.sum(self.weights)}


def product(key, weights, size, *, a):
    return {"out": a * jnp.sum(weights) * size}


def ok(key, a):
    return a
