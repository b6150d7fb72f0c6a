"""A folder with networks, images and nothing else."""

import numpy as np
import pytest
from PIL import Image

SOURCE = '''
"""Networks of a user."""
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Small(nnx.Module):
    def __init__(self, classes, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(x.mean((1, 2))))


class Flat(nnx.Module):
    """Takes images of 8 x 8 alone."""

    def __init__(self, rngs):
        self.head = nnx.Linear(8 * 8 * 3, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))


def small(rngs, classes=5):
    return Small(classes, rngs)


def flat(*, rngs):
    return Flat(rngs)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(5)(x.mean((1, 2)))


def linen(key):
    module = Linen()
    return module.bind(module.init(key, jnp.zeros((1, 8, 8, 3)), train=False))


def bare_linen():
    return Linen()


def plain():
    return lambda x: jnp.tanh(x).mean((1, 2))


def loop():
    def function(x):
        x = jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))[1]
        return jnp.tanh(x).mean((1, 2))

    return function


def of_images(images, other):
    return images


def nothing():
    pass


def broken():
    raise RuntimeError("no such file of mine")


network = jax.tree_util.Partial(lambda w, x: jnp.tanh(x @ w).mean((1, 2)), jnp.eye(3, 4))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that the command is run in."""
    (tmp_path / "my_networks.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(12))
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(5):
        Image.fromarray(rng.integers(0, 256, (12 + k, 10, 3), np.uint8)).save(photos / f"{k}.png")
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(photos / "gray.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path
