"""Networks, images and recipes that train in a second, and comparisons of weights."""

import dataclasses

import numpy as np
from flax import nnx

from stabjax import train

SIDE, CLASSES = 8, 4


class Net(nnx.Module):
    """Convolution, batch normalization, dropout, dense."""

    traces = []  # one object for each: a number would be state that the program reads

    def __init__(self, *, width=6, rngs):
        self.blocks = nnx.List([nnx.Conv(1, width, (3, 3), strides=2, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.dense = nnx.Linear(width * (SIDE // 2) ** 2, CLASSES, rngs=rngs)

    def __call__(self, x):
        self.traces.append(object())
        for block in self.blocks:
            x = block(x)
        x = nnx.relu(x)
        return self.dense(self.dropout(x.reshape(len(x), -1)))


class Dense(nnx.Module):
    """Without convolution: trained in one compiled loop everywhere."""

    traces = []

    def __init__(self, *, features=SIDE * SIDE, outputs=CLASSES, rngs):
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.dense = nnx.Linear(features, outputs, rngs=rngs)

    def __call__(self, x):
        self.traces.append(object())
        return self.dense(self.norm(x.reshape(len(x), -1)))


def task(n, seed=0):
    """Which quarter of the image is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    images = rng.integers(0, 60, (n, SIDE, SIDE, 1)).astype(np.uint8)
    half = SIDE // 2
    for image, label in zip(images, labels):
        row, column = divmod(label, 2)
        image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 60
    return images, labels


DATA, TEST = task(208), task(70, seed=1)
SHORT = train.Recipe(epochs=3, batch_size=32, rate=0.05, schedule="triangular")
ONE = dataclasses.replace(SHORT, epochs=1)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **tolerance)
