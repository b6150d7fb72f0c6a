"""Bounds of slices that are joined again, and of convolutions behind paddings made of the image itself."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from stabjax import lipschitz, networks
from stabjax.lipschitz import _indexed_conv
from tests.lipschitz.helpers import bound_of, norm_of
from tests.sample_networks import normal


def pad(x, low, high, mode):
    """Along the two axes of space."""
    return jnp.pad(x, ((0, 0), low, high, (0, 0)), mode=mode)


# Slices of one value that are joined again: (function, shape of an image, its norm)


def ordered(x):
    """GroupSort of two neighbors."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    one, two = pairs[..., :1], pairs[..., 1:]
    return jnp.concatenate([jnp.maximum(one, two), jnp.minimum(one, two)], -1).reshape(x.shape)


def halves(x):
    one, two = jnp.split(x, 2, -1)
    return jnp.concatenate([jnp.maximum(one, two), jnp.minimum(two, one)], -1)


JOINED = {
    "rolled": (lambda x: jnp.roll(x, (1, -2), (1, 2)), (6, 5, 4), 1),
    "rolled flat": (lambda x: jnp.roll(x.reshape(len(x), -1), 3, 1), (6, 5, 4), 1),
    "rolled after an activation": (lambda x: jnp.roll(jnp.tanh(2 * x), 1, 1), (6, 5, 4), 2),
    "wrapped": (lambda x: pad(x, (1, 2), (0, 0), "wrap"), (6, 5, 4), 2**0.5),
    "wrapped more than once": (lambda x: pad(x, (7, 2), (0, 0), "wrap"), (6, 5, 4), 3**0.5),
    "mirrored on both axes": (lambda x: pad(x, (1, 1), (1, 1), "reflect"), (6, 5, 4), 2),
    "mirrored with the border": (lambda x: pad(x, (2, 2), (0, 1), "symmetric"), (6, 5, 4), 2),
    "the border again": (lambda x: pad(x, (2, 1), (0, 0), "edge"), (6, 5, 4), 3**0.5),
    "wrapped and cut": (lambda x: pad(x, (2, 2), (1, 1), "wrap")[:, 2:-2, 1:-1], (6, 5, 4), 1),
    "wrapped and zeros": (lambda x: pad(pad(x, (1, 1), (0, 0), "wrap"), (0, 0), (1, 1), "constant"), (4, 4, 2), 2**0.5),
    "shuffled channels": (lambda x: x.reshape(len(x), 6, 5, 2, 2).swapaxes(3, 4).reshape(x.shape), (6, 5, 4), 1),
    "dealt out": (lambda x: jnp.concatenate([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1), (6, 4, 3), 1),
    "rows stacked": (lambda x: jnp.stack([x[:, 2], x[:, 0], x[:, 1]], 1), (3, 2), 1),
    "looked up and rolled": (lambda x: jnp.roll(x[:, jnp.array([0, 2, 2, 1])], 1, 1), (4, 2), 2**0.5),
    "chosen": (lambda x: jnp.where(jnp.arange(4).reshape(1, 4, 1) > 1, x, jnp.roll(x, 1, 1)), (4, 2), 2**0.5),
    "two values dealt out": (
        lambda x: (lambda y: jnp.concatenate([x[:, :1], y[:, :2], x[:, 1:], y[:, 2:]], 1))(2 * jnp.roll(x, 1, 1)),
        (4, 2),
        5**0.5,
    ),
    "pairs in order": (ordered, (3, 3, 4), 1),
    "halves in order": (halves, (3, 3, 4), 1),
    "halves of an activation in order": (lambda x: jnp.roll(halves(jax.nn.relu(3 * x)), 1, 1), (3, 3, 4), 3),
    "every pair twice": (lambda x: jnp.concatenate([ordered(x), x], -1), (3, 3, 4), 2**0.5),
    "the larger of two slices": (lambda x: jnp.maximum(x[:, ::2], x[:, 1::2]), (4, 2), 1),
    "of overlapping slices": (lambda x: jnp.maximum(x[:, :-1], x[:, 1:]), (4, 2), 2**0.5),
}  # fmt: skip


SELDOM = {
    "rolled flat", "rolled after an activation", "mirrored on both axes", "wrapped and zeros", "rows stacked",
    "looked up and rolled", "halves in order", "every pair twice", "of overlapping slices", "shuffled channels",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SELDOM)) for n in JOINED])
def test_slices_that_are_joined_are_one_value(name, relaxed_promotion):
    function, shape, expected = JOINED[name]
    np.testing.assert_allclose(bound_of(function, (2, *shape)), expected, rtol=1e-5)
    x, step = np.asarray(normal(0, 2, *shape)), np.asarray(normal(1, 2, *shape))
    change = np.linalg.norm(jax.jit(lambda x, step: function(x + step) - function(x))(x, step))
    assert change <= expected * (1 + 1e-5) * np.linalg.norm(step)


@pytest.mark.parametrize("axis", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_images_that_do_not_come_first(axis, relaxed_promotion):
    """The batch may stand on any axis, and the space on the first."""

    def network(x):
        x = jnp.moveaxis(x, 1, axis)
        around = jnp.concatenate([jax.lax.slice_in_dim(x, 5, 6, axis=axis), x], axis)
        return jnp.moveaxis(around, axis, 1)

    np.testing.assert_allclose(bound_of(network, (2, 6, 3)), 2**0.5, rtol=1e-5)

    def convolved(x):
        x = jnp.pad(x.transpose(1, 0, 2), ((1, 1), (0, 0), (0, 0)), mode="wrap")
        return jax.lax.conv_general_dilated(x, KERNEL[0], (1,), "VALID", dimension_numbers=("HNC", "HIO", "NHC"))

    exact = lipschitz.conv(KERNEL[0], 6, padding="circular", method="exact").value
    np.testing.assert_allclose(bound_of(convolved, (2, 6, 3)), exact, rtol=1e-2)
    softmax = bound_of(lambda x: jax.nn.softmax(x.T, 0).T + jax.nn.log_softmax(x.T, 0).T, (2, 4))
    np.testing.assert_allclose(softmax, 2.5, rtol=1e-5)


def test_any_number_of_images(relaxed_promotion):
    """The bound is that of one image, however many are passed."""

    def network(x):
        return convolve(pad(x, (1, 1), (1, 1), "reflect"), KERNEL[..., :2, :1])

    np.testing.assert_allclose(bound_of(network, (4000, 7, 7, 2)), bound_of(network, (1, 7, 7, 2)), rtol=1e-6)


def test_places_that_are_traced_are_counted():
    """Where an index is only known when the program runs, its own counts are taken."""
    found = jax.jit(lambda index: lipschitz.network(lambda x: jnp.take(x, index, 1), (2, 4, 3), spatial=1).value)
    np.testing.assert_allclose(found(jnp.array([0, 2, 2, 2])), 3**0.5, rtol=1e-5)


def test_constants_of_a_roll_leave_the_factors(relaxed_promotion):
    """What a layer does is told from the layer before it, whatever lies between."""
    one, two = normal(0, 4, 4), normal(1, 4, 4)
    found = lipschitz.network(lambda x: jnp.roll(x @ one, 1, 1) @ two, (2, 5, 4), spatial=1)
    np.testing.assert_allclose(jnp.prod(found.factor), found.value, rtol=1e-5)
    np.testing.assert_allclose(found.factor[:2], [np.linalg.norm(k, 2) for k in (one, two)], rtol=0.01)


# Convolutions behind such a padding, against the operator written out

KERNEL = normal(0, 3, 3, 3, 4)


def convolve(x, kernel=KERNEL, *, stride=1, padding="VALID", dilation=1, groups=1):
    space = "".join("HWD"[: kernel.ndim - 2])
    layout = (f"N{space}C", f"{space}IO", f"N{space}C")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * (kernel.ndim - 2), padding, rhs_dilation=(dilation,) * (kernel.ndim - 2),
        dimension_numbers=layout, feature_group_count=groups,
    )  # fmt: skip


def channels_first(x):
    x = jnp.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="wrap")
    return jax.lax.conv_general_dilated(x, KERNEL, (1, 1), "VALID", dimension_numbers=("NCHW", "HWIO", "NCHW"))


SIX = (6, 6, 3)
BEHIND = {
    "circular": (lambda x: convolve(pad(x, (1, 1), (1, 1), "wrap")), SIX, 1.05),
    "mirrored": (lambda x: convolve(pad(x, (1, 1), (1, 1), "reflect")), SIX, 1.05),
    "mirrored with the border": (lambda x: convolve(pad(x, (1, 1), (1, 1), "symmetric")), SIX, 1.05),
    "the border again": (lambda x: convolve(pad(x, (1, 1), (1, 1), "edge")), SIX, 1.05),
    "circular, strided": (lambda x: convolve(pad(x, (0, 1), (0, 1), "wrap"), stride=2), SIX, 1.05),
    "circular, stride that does not fit": (lambda x: convolve(pad(x, (1, 1), (1, 1), "wrap"), stride=4), SIX, 1.05),
    "mirrored, strided": (lambda x: convolve(pad(x, (1, 1), (1, 1), "reflect"), stride=2), SIX, 1.05),
    "circular, dilated": (lambda x: convolve(pad(x, (2, 2), (2, 2), "wrap"), dilation=2), SIX, 1.05),
    "mirrored, dilated": (lambda x: convolve(pad(x, (2, 2), (2, 2), "reflect"), dilation=2), SIX, 1.05),
    "circular, more than the image": (lambda x: convolve(pad(x, (4, 3), (3, 4), "wrap")), (3, 3, 3), 1.05),
    "one side only": (lambda x: convolve(pad(x, (2, 0), (0, 2), "wrap")), SIX, 1.05),
    "mirrored on one side only": (lambda x: convolve(pad(x, (2, 0), (0, 1), "reflect")), SIX, 1.05),
    "circular along one axis, zeros along the other": (
        lambda x: convolve(pad(x, (0, 0), (1, 1), "wrap"), padding=((1, 1), (0, 0))), SIX, 1.1,
    ),
    "mirrored along one axis, circular along the other": (
        lambda x: convolve(pad(pad(x, (1, 1), (0, 0), "reflect"), (0, 0), (1, 1), "wrap")), SIX, 1.05,
    ),
    "circular, looked up": (
        lambda x: convolve(x[:, jnp.arange(-1, 7) % 6][:, :, jnp.arange(-1, 7) % 6]), SIX, 1.05,
    ),
    "channels first": (channels_first, SIX, 1.05),
    "even window": (lambda x: convolve(pad(x, (0, 1), (1, 2), "wrap"), normal(1, 2, 4, 3, 2)), (5, 6, 3), 1.05),
    "groups": (
        lambda x: convolve(pad(x, (1, 1), (1, 1), "reflect"), normal(1, 3, 3, 2, 4), groups=2), (4, 4, 4), 1.05
    ),
    "depthwise": (
        lambda x: convolve(pad(x, (1, 1), (1, 1), "wrap"), normal(1, 3, 3, 1, 4), groups=4), (4, 4, 4), 1.05
    ),
    "signal": (lambda x: convolve(jnp.pad(x, ((0, 0), (1, 1), (0, 0)), "wrap"), normal(2, 3, 3, 2)), (9, 3), 1.05),
    "volume": (
        lambda x: convolve(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)), "reflect"), normal(3, 3, 3, 3, 2, 2)),
        (3, 4, 3, 2), 1.05,
    ),
    "scaled after it": (lambda x: convolve(pad(x, (1, 1), (1, 1), "wrap")) * normal(5, 1, 1, 1, 4), SIX, 1.05),
    "upsampled": (
        lambda x: jax.lax.conv_general_dilated(
            pad(x, (1, 1), (1, 1), "wrap"), KERNEL, (1, 1), ((0, 0), (0, 0)), (2, 2), None, ("NHWC", "HWIO", "NHWC")
        ), (4, 4, 3), 1.1,
    ),
}  # fmt: skip
OFTEN = {
    "mirrored",
    "the border again",
    "circular, stride that does not fit",
    "circular, more than the image",
    "groups",
}
"""Circular layers stand in the tests of whole networks."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in OFTEN)) for n in BEHIND])
def test_convolutions_behind_a_padding(name, relaxed_promotion):
    function, shape, slack = BEHIND[name]
    exact, found = norm_of(function, shape), bound_of(function, (2, *shape))
    assert exact * (1 - 1e-6) <= found <= slack * exact, (exact, found)


@pytest.mark.parametrize(("mode", "slack"), [("CIRCULAR", 1.05), ("REFLECT", 1.5)])
@pytest.mark.parametrize("size", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_ten_random_layers(mode, slack, size, relaxed_promotion):
    """The padding of Flax: slices of the image, concatenated."""
    layer = linen.Conv(4, (3, 3), padding=mode)
    x = jnp.ones((2, size, size, 3))
    variables = jax.jit(jax.vmap(lambda key: layer.init(key, x)))(jax.random.split(jax.random.key(0), 10))
    found = jax.jit(jax.vmap(lambda v: lipschitz.network(lambda x: layer.apply(v, x), x).value))(variables)
    basis = np.eye(x[0].size, dtype=np.float32).reshape(-1, *x.shape[1:])
    matrices = jax.jit(jax.vmap(lambda v: layer.apply(v, basis) - layer.apply(v, 0 * basis)))(variables)
    exact = np.linalg.norm(np.asarray(matrices, float).reshape(10, len(basis), -1), 2, axis=(1, 2))
    assert np.all(exact * (1 - 1e-6) <= found)
    assert np.all(found <= slack * exact)


class Circular(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Conv(c, 8, (3, 3), padding="CIRCULAR", rngs=rngs) for c in (8, 8, 8, 8)])

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x


def test_layers_are_the_product_of_their_circular_norms(relaxed_promotion):
    model = Circular(nnx.Rngs(0))
    found = lipschitz.network(networks.wrap(model), (2, 8, 8, 8))
    norms = [lipschitz.conv(layer.kernel[...], 8, padding="circular").value for layer in model.layers]
    np.testing.assert_allclose(found.value, math.prod(map(float, norms)), rtol=1e-4)
    np.testing.assert_allclose([f for f, kind in zip(found.factor, found.kinds) if kind == "conv"], norms, rtol=1e-4)


def test_equinox_layers(relaxed_promotion):
    """Single examples, channels first."""
    layer = eqx.nn.Conv2d(3, 4, 3, padding="SAME", padding_mode="CIRCULAR", key=jax.random.key(0))
    network = networks.wrap(layer, single=True, layout="channels_first")
    kernel = layer.weight.transpose(2, 3, 1, 0)
    exact = lipschitz.conv(kernel, 6, padding="circular", method="exact").value
    np.testing.assert_allclose(lipschitz.network(network, (2, 6, 6, 3)).value, exact, rtol=0.05)


def test_large_images(monkeypatch):
    """What is too large to be written out is counted along one axis, or along both."""
    kernel = KERNEL[..., :2, :1]

    def mirrored(x):
        return convolve(pad(x, (1, 1), (1, 1), "reflect"), kernel)

    exact = norm_of(mirrored, (7, 7, 2))
    monkeypatch.setattr(_indexed_conv, "MAX_WORK", 100_000)
    assert 1.05 * exact <= bound_of(mirrored, (2, 7, 7, 2)) <= 1.5 * exact
    monkeypatch.setattr(_indexed_conv, "MAX_WORK", 0)
    _indexed_conv.indexed_conv_norm.clear_cache()
    counted = 2 * float(lipschitz.conv(kernel, 9, padding="valid").value)
    np.testing.assert_allclose(bound_of(mirrored, (2, 7, 7, 2)), counted, rtol=1e-4)
    _indexed_conv.indexed_conv_norm.clear_cache()
