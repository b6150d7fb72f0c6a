"""Small networks whose training is killed at any write, and comparisons of runs."""

import contextlib
import functools
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx

from stabjax import train

RECIPE = train.Recipe(epochs=2.5, batch_size=16, rate=0.05, nesterov=True, schedule="triangular", flip=True)


class Net(nnx.Module):
    """Everything that has a state: weights, batch statistics, keys of dropout; one of them without elements."""

    def __init__(self, *, width=5, rngs):
        self.hidden = nnx.Linear(16, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(width, 3, rngs=rngs)
        self.nothing = nnx.Param(jnp.zeros((0, 2)))

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x.reshape(len(x), -1))))))


class Plain(nnx.Module):
    """Two layers, and no state but their weights: compiled in a third of the time."""

    traces = []

    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(16, 6, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        self.traces.append(object())
        return self.out(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def task(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n).astype(np.int32)
    images = rng.integers(0, 99, (n, 4, 4, 1)).astype(np.uint8)
    images[np.arange(n), labels] += 90
    return images, labels


DATA, TEST = task(70), task(30, seed=1)
go = functools.partial(train.fit, Net, DATA, test=TEST, key=jax.random.key(5), recipe=RECIPE, seeds=2)


def same(run, other):
    for which in ("initial", "best", "last"):
        a, b = getattr(run, which), getattr(other, which)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=f"{which} {name}")
    for name in ("epoch", "step", "rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        np.testing.assert_array_equal(getattr(run.history, name), getattr(other.history, name))
    np.testing.assert_array_equal(run.best_step, other.best_step)
    np.testing.assert_array_equal(run.diverged, other.diverged)


class Killed(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def killed_at(n):
    """End the run at its n-th write, rename or removal, a write half done; gives the list of those done."""
    done = []
    owners = {
        "fsync": os,
        "rename": Path,
        "replace": Path,
        "write_bytes": Path,
        "rmtree": shutil,
        "save": orbax.checkpoint.Checkpointer,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, owner in owners.items():
            patch.setattr(owner, name, _counted(name, getattr(owner, name), n, done))
        yield done


def _counted(name, original, n, done):
    def counted(*args, **kwargs):
        if len(done) == n:
            if name == "write_bytes":
                original(args[0], args[1][: len(args[1]) // 2])
            raise Killed
        done.append(name)
        return original(*args, **kwargs)

    return counted


def crash(path, n, *, fit=go, **options):
    """Whether the run was ended before its n-th operation."""
    with killed_at(n):
        try:
            fit(path=path, save_every=0.0, **options)
        except Killed:
            return True
    return False
