"""Batch statistics set from given images."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import models, train
from tests.train.helpers import DATA, SIDE, Dense


class Tower(nnx.Module):
    """Normalizations one after the other and side by side."""

    def __init__(self, *, rngs):
        self.first = nnx.BatchNorm(1, rngs=rngs)
        self.conv = nnx.Conv(1, 5, (3, 3), rngs=rngs)
        self.sides = nnx.List([nnx.BatchNorm(5, rngs=rngs), nnx.Conv(5, 5, (1, 1), rngs=rngs)])
        self.last = nnx.Sequential(nnx.BatchNorm(5, rngs=rngs), nnx.relu, nnx.BatchNorm(5, rngs=rngs))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.conv(self.first(x))
        x = self.sides[0](x) + nnx.relu(self.sides[1](x))
        return jnp.mean(self.dropout(self.last(x)), axis=(1, 2))


@pytest.mark.parametrize("batch_size", [None, 21])
def test_models_of_the_library_are_calibrated(batch_size):
    """Their normalizations keep running statistics the way of PyTorch, which calibration must not."""
    model = models.SmallCNN(channels=(3, 4), in_channels=1, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).normal(3, 2, (64, SIDE, SIDE, 1)).astype(np.float32)
    calibrated = train.calibrate(model, images, batch_size=batch_size)
    first = model.blocks[0].conv(images)
    norm = next(node for _, node in nnx.iter_graph(calibrated) if isinstance(node, nnx.BatchNorm))
    np.testing.assert_allclose(norm.mean[...], np.mean(first, (0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(norm.var[...], np.var(first, (0, 1, 2)), rtol=1e-4)
    model.train()
    np.testing.assert_allclose(calibrated(images), model(images), rtol=1e-4, atol=1e-5)


Pair = collections.namedtuple("Pair", "left right")


class Odd(nnx.Module):
    """Normalizations in containers of all kinds, one of them in two places."""

    def __init__(self, *, rngs):
        def norm():
            return nnx.BatchNorm(1, rngs=rngs)

        self.named, self.listed, self.dictionary = nnx.data({"n": norm()}), nnx.List([norm()]), nnx.Dict(n=norm())
        self.tupled, self.paired = nnx.data((norm(),)), nnx.data({"pair": Pair(norm(), norm())})
        self.again = self.named["n"]

    def __call__(self, x):
        x = jnp.square(self.named["n"](x, use_running_average=None))
        for norm in (self.listed[0], self.dictionary["n"], self.tupled[0], *self.paired["pair"]):
            x = jnp.sqrt(1 + jnp.square(norm(x)))
        return x


class Scanned(nnx.Module):
    """Three normalizations as one, their statistics stacked."""

    def __init__(self, *, rngs):
        make = nnx.vmap(lambda rngs: nnx.BatchNorm(1, rngs=rngs), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=3)(make)(rngs)

    def __call__(self, x):
        step = nnx.scan(lambda layer, x: jnp.sqrt(1 + layer(x)), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return step(self.layers, x)


@pytest.mark.parametrize("batch_size", [None, 21])
@pytest.mark.parametrize("build", [Odd, Scanned, functools.partial(nnx.BatchNorm, 1)])
def test_normalizations_anywhere_are_calibrated(build, batch_size):
    model = build(rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).uniform(0, 2, (64, SIDE, SIDE, 1)).astype(np.float32)
    calibrated = train.calibrate(model, images, batch_size=batch_size)
    assert jax.tree.structure(nnx.state(calibrated)) == jax.tree.structure(nnx.state(model))
    model.train()
    np.testing.assert_allclose(calibrated(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [None, 21])
def test_a_normalization_of_two_inputs_cannot_be_calibrated(batch_size):
    class Twice(Odd):
        def __call__(self, x):
            return self.again(jnp.square(self.named["n"](x)))

    class Masked(Odd):
        def __call__(self, x):
            return self.again(x, mask=jnp.ones(x.shape, bool))

    images = np.random.default_rng(0).normal(3, 2, (64, SIDE, SIDE, 1)).astype(np.float32)
    with pytest.raises(ValueError, match="used once in a pass, got again used 2 times"):
        train.calibrate(Twice(rngs=nnx.Rngs(0)), images, batch_size=batch_size)
    with pytest.raises(ValueError, match="without a mask"):
        train.calibrate(Masked(rngs=nnx.Rngs(0)), images, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [None, 21])
def test_calibrated_statistics_are_those_of_the_images(batch_size):
    model = Tower(rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).normal(3, 2, (64, SIDE, SIDE, 1)).astype(np.float32)
    before = jax.tree.map(np.array, nnx.state(model, nnx.BatchStat))
    calibrated = train.calibrate(model, images, batch_size=batch_size)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.BatchStat), before)
    assert calibrated.first.momentum == model.first.momentum
    assert calibrated.dropout.deterministic
    np.testing.assert_allclose(calibrated.first.mean[...], images.mean(), rtol=1e-5)
    np.testing.assert_allclose(calibrated.first.var[...], images.var(), rtol=1e-5)
    # One training pass over all images as one batch, dropout off.
    model.train()
    model.dropout.deterministic = True
    np.testing.assert_allclose(calibrated(images), model(images), rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(nnx.state(calibrated)) == jax.tree.structure(nnx.state(model))


def test_calibrate_normalizes_and_passes_networks_without_statistics():
    images = DATA[0]
    calibrated = train.calibrate(Dense(rngs=nnx.Rngs(0)), images, mean=(0.2,), deviation=(0.3,))
    flat = ((images / 255 - 0.2) / 0.3).reshape(len(images), -1)
    np.testing.assert_allclose(calibrated.norm.mean[...], flat.mean(0), rtol=1e-4, atol=1e-5)
    plain = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(train.calibrate(plain, np.zeros((2, 3), np.float32)).kernel[...], plain.kernel[...])
    with pytest.raises(ValueError, match="at least one image"):
        train.calibrate(plain, np.zeros((0, 3), np.float32))
