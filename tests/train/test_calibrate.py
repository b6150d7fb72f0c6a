"""Batch statistics set from given images."""

import collections
import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from stabjax import models, networks, train
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


# Networks of any framework, whose normalizations are found in their programs


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3))(x))), None


class LinenScan(nn.Module):
    """Two blocks as one scan, and norms without a scale, without a bias, and of vectors."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = functools.partial(nn.BatchNorm, use_running_average=not train)
        x = norm(use_bias=False)(nn.Conv(3, (1, 1))(x))
        axes = {"params": 0, "batch_stats": 0}
        blocks = nn.scan(LinenBlock, variable_axes=axes, split_rngs={"params": True}, length=2, in_axes=nn.broadcast)
        x, _ = blocks()(x, train)
        x = norm(use_scale=False)(nn.remat(nn.Conv)(4, (3, 3))(x))
        return norm()(nn.Dense(3)(jnp.tanh(x).reshape(len(x), -1)))


class EquinoxNet(equinox.Module):
    conv: equinox.nn.Conv2d
    norm: equinox.nn.BatchNorm
    last: equinox.nn.BatchNorm

    def __init__(self, mode):
        self.conv = equinox.nn.Conv2d(1, 4, 3, key=jax.random.key(0))
        self.norm = equinox.nn.BatchNorm(4, "batch", mode=mode)
        self.last = equinox.nn.BatchNorm(4, "batch", mode=mode)

    def __call__(self, x, state):
        x, state = self.norm(self.conv(x), state)
        return self.last(jax.nn.relu(x).mean((1, 2)), state)


def linen():
    net = LinenScan()
    variables = net.init(jax.random.key(0), IMAGES[:2])
    outputs, _ = net.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    return net.bind(variables), outputs


def equinox_with_state(mode):
    """After one training pass over other images: a moving average that began at zero, or at these images."""
    net, state = equinox.nn.make_with_state(EquinoxNet)(mode)
    apply = jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    images = jnp.moveaxis(IMAGES, -1, 1)
    if mode == "batch":
        _, state = apply(images + 1, state)
    outputs, _ = apply(images, state)
    return networks.wrap((net, state), single=True, layout="channels_first"), outputs


def folded():
    """Means taken off behind the division, and one norm in front of a pool."""
    rng = np.random.default_rng(1)
    params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 1, 4)), jnp.float32)}}
    for name in ("first", "second"):
        params[name] = {
            part: jnp.asarray(rng.uniform(0.5, 2, (1, 1, 1, 4)), jnp.float32)
            for part in ("mean", "variance", "scale", "bias")
        }

    def norm(p, x, train):
        axes = (0, 1, 2)
        batch = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        mean, variance = batch if train else (p["mean"], p["variance"])
        inverse = jax.lax.rsqrt(variance + 1e-3) * p["scale"]
        return x * inverse + (p["bias"] - mean * inverse)

    def net(params, x, train=False):
        x = jax.lax.conv_general_dilated(
            x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return norm(params["second"], jnp.tanh(norm(params["first"], x, train)), train).max((1, 2))

    return jax.tree_util.Partial(net, params), net(params, IMAGES, train=True)


IMAGES = jnp.asarray(np.random.default_rng(0).normal(3, 2, (12, SIDE, SIDE, 1)), jnp.float32)
NETWORKS = {
    "linen": linen,
    "equinox, batch": lambda: equinox_with_state("batch"),
    "equinox, moving average": lambda: equinox_with_state("ema"),
    "folded": folded,
}


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_any_framework_are_calibrated(name, batch_size):
    model, expected = NETWORKS[name]()
    calibrated = train.calibrate(model, IMAGES, batch_size=batch_size)
    assert isinstance(calibrated, networks.Network)
    np.testing.assert_allclose(calibrated(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [Tower, functools.partial(models.SmallCNN, channels=(3, 4), in_channels=1)])
def test_modules_and_their_networks_are_calibrated_alike(build):
    model = build(rngs=nnx.Rngs(0))
    module = networks.wrap(train.calibrate(model, IMAGES, mean=(0.5,), deviation=(2.0,)))
    network = train.calibrate(networks.wrap(model), IMAGES, mean=(0.5,), deviation=(2.0,))
    changed = 0
    for before, one, other in zip(*map(jax.tree.leaves, (networks.wrap(model), module, network)), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
            changed += not jnp.array_equal(before, other)
    # Statistics, and nothing else, differ from those of the model.
    assert changed == 2 * len([node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.BatchNorm)])


def test_networks_that_cannot_be_calibrated():
    model, _ = folded()
    held = lambda x: model(x)  # noqa: E731
    with pytest.raises(ValueError, match="find the running mean and variance"):
        train.calibrate(held, IMAGES)
    twice = jax.tree_util.Partial(lambda p, x: p(x) + p(x + 1), model)
    with pytest.raises(ValueError, match="used once in a pass"):
        train.calibrate(twice, IMAGES)


def test_norms_without_statistics_stay_as_they_are():
    """A weight over its length, a division by a learned number, and a norm of single images."""

    def net(p, x):
        x = x.reshape(len(x), -1) @ p["v"] * (p["g"] / jnp.sqrt(jnp.sum(p["v"] ** 2, 0, keepdims=True)))
        x = x / jnp.sqrt(p["temperature"] + 1e-3)
        return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * p["g"]

    rng = np.random.default_rng(0)
    params = {"v": rng.normal(size=(SIDE * SIDE, 4)), "g": np.ones((1, 4)), "temperature": np.ones(())}
    network = networks.wrap(jax.tree_util.Partial(net, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)))
    jax.tree.map(np.testing.assert_array_equal, train.calibrate(network, IMAGES), network)
