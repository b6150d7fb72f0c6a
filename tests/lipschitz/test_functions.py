"""Bounds of activations with slopes of their own, of softmax and its relatives, and of networks that have them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from stabjax import lipschitz
from stabjax.lipschitz._network import _piecewise_linear
from stabjax.lipschitz._network._lipschitz_value import Layer, LipschitzValue, Root, multiply
from stabjax.lipschitz._network._piecewise_linear import PiecewiseConstant, PiecewiseLinear
from tests.lipschitz.helpers import bound_and_slopes, bound_of, changes, window
from tests.sample_networks import conv, normal

SLOPES = jnp.array([0.3, -2.0, 0.1, 1.2]).reshape(1, 4)

# PReLU, however it is written: (function of the image and slopes)

BENT = {
    "from zero on": lambda x, a: jnp.where(x >= 0, x, a * x),
    "above zero": lambda x, a: jnp.where(x > 0, x, x * a),
    "below zero": lambda x, a: jnp.where(x < 0, a * x, x),
    "up to zero": lambda x, a: jnp.where(x <= 0, a * x, x),
    "not above": lambda x, a: jnp.where(~(x > 0), a * x, x),
    "two parts": lambda x, a: jnp.maximum(x, 0) + a * jnp.minimum(x, 0),
    "two rectifiers": lambda x, a: jax.nn.relu(x) - a * jax.nn.relu(-x),
    "masks": lambda x, a: x * (x > 0).astype(x.dtype) + a * (x * (x <= 0).astype(x.dtype)),
    "with the size": lambda x, a: (1 + a) / 2 * x + (1 - a) / 2 * jnp.abs(x),
    "of another function": lambda x, a: jnp.where(jnp.tanh(x) >= 0, jnp.tanh(x), a * jnp.tanh(x)),
    "divided": lambda x, a: jnp.where(x >= 0, x, x / (1 / a)),
    "function by name": lambda x, a: jax.nn.leaky_relu(x, a),
}
RARE = {"above zero", "up to zero", "not above", "divided", "function by name"}
EITHER = {
    "the larger": (jnp.maximum, [1, 2, 1, 1.2]),
    "the smaller": (jnp.minimum, [1, 2, 1, 1.2]),
    "the sum": (lambda x, y: x + y, [1.3, 1, 1.1, 2.2]),
    "of a mask": (lambda x, y: jnp.where(jnp.array([[True, False, True, False]]), x, y), [1, 2, 1, 1.2]),
    "the size": (lambda x, y: jnp.abs(y), [0.3, 2, 0.1, 1.2]),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in RARE)) for n in BENT])
def test_slopes_of_their_own(name, relaxed_promotion):
    """Traced, as a parameter is."""
    found = jax.jit(lambda a: lipschitz.network(partial(BENT[name], a=a), (2, 4)).value)
    np.testing.assert_allclose(found(SLOPES), 2, rtol=2e-5)
    assert found(SLOPES) >= 2
    np.testing.assert_allclose(found(jnp.full((1, 4), 0.25)), 1, rtol=2e-5)


@pytest.mark.parametrize("name", EITHER)
def test_multiples_of_a_value(name, relaxed_promotion):
    """Entry by entry, of both sides of zero the steeper."""
    function, expected = EITHER[name]
    found = bound_of(lambda x: function(x, SLOPES * x), (2, 4))
    np.testing.assert_allclose(found, max(expected), rtol=2e-5)
    assert found >= max(expected)


def test_slopes_of_a_module(relaxed_promotion):
    """A parameter that is traced; a layer before it, and what changes the channels behind it."""
    layer = linen.PReLU(negative_slope_init=-3.0)
    found = jax.jit(lambda v: lipschitz.network(lambda x: layer.apply(v, x), (2, 4)).value)
    np.testing.assert_allclose(found(layer.init(jax.random.key(0), jnp.ones((2, 4)))), 3, rtol=1e-5)
    kernel = normal(0, 4, 4)
    network = lipschitz.network(lambda x: BENT["from zero on"](x @ kernel, SLOPES) @ kernel, (2, 4))
    norm = np.linalg.norm(kernel, 2)
    np.testing.assert_allclose(network.value, 2 * norm**2, rtol=0.02)
    np.testing.assert_allclose(network.factor[:2], [norm, 2], rtol=0.02)
    assert network.layers[1] == "select_0" or network.kinds[1] == "activation"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.where(x >= 0.1, x, SLOPES * x), "select_n"),
        (lambda x: jnp.where(x >= 0, x + 1, SLOPES * x), "select_n"),
        (lambda x: jnp.where(x[:, ::-1] >= 0, x, SLOPES * x), "select_n"),
        (lambda x: jnp.round(SLOPES * x), "round"),
    ],
)
def test_functions_that_jump(function, message, relaxed_promotion):
    with pytest.raises(ValueError, match=message):
        bound_of(function, (2, 4))


# Softmax and its relatives: (function of an image of shape (3, 2, 4), its norm)


def by_hand(x, axis=-1):
    return jnp.exp(x) / jnp.exp(x).sum(axis, keepdims=True)


def shifted(x, axis=-1):
    """With the largest entry taken away, for each part anew."""
    return jnp.exp(x - x.max(axis, keepdims=True)) / jnp.exp(x - x.max(axis, keepdims=True)).sum(axis, keepdims=True)


def log_sum_exp(x):
    largest = x.max(-1)
    return jnp.log(jnp.exp(x - largest[..., None]).sum(-1)) + largest


SOFT = {
    "softmax": (jax.nn.softmax, 0.5),
    "over channels first": (lambda x: jax.nn.softmax(x, 1), 0.5),
    "over space": (lambda x: jax.nn.softmax(x, (1, 2)), 0.5),
    "with a temperature": (lambda x: jax.nn.softmax(x / 0.1), 5),
    "by hand": (by_hand, 0.5),
    "by hand, over rows": (lambda x: by_hand(x, 1), 0.5),
    "by hand, of a function": (lambda x: by_hand(jnp.tanh(3 * x)), 1.5),
    "by hand, shifted": (shifted, 0.5),
    "with numbers that depend on the entry": (lambda x: jax.nn.softmax(3 * x + normal(0, 1, 1, 1, 4)), 1.5),
    "some without weight": (lambda x: jax.nn.softmax(jnp.where(jnp.arange(4) < 2, x, -jnp.inf)), 0.5),
    "of two": (lambda x: jax.nn.softmax(jnp.stack([x[..., 0], x[..., 1]], -1)), 0.5),
    "of one": (lambda x: jax.nn.softmax(x[..., :1]), 0),
    "moved": (lambda x: jnp.roll(jax.nn.softmax(x).swapaxes(1, 3), 1, 1), 0.5),
    "against one": (lambda x: 1 - 2 * jax.nn.softmax(x), 1),
    "and its logarithm": (lambda x: jnp.log(jax.nn.softmax(x)), 2),
    "logarithm": (jax.nn.log_softmax, 2),
    "logarithm over rows": (lambda x: jax.nn.log_softmax(x, 1), 3**0.5),
    "logarithm by hand": (lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True), 2),
    "exponential of its logarithm": (lambda x: jnp.exp(jax.nn.log_softmax(x)), 0.5),
    "log sum exp": (lambda x: jax.nn.logsumexp(2 * x, -1), 2),
    "log sum exp over space": (lambda x: jax.nn.logsumexp(x, (1, 2), keepdims=True), 1),
    "log sum exp by hand": (lambda x: jnp.log(jnp.exp(x).sum(-1)), 1),
    "log sum exp, shifted by hand": (log_sum_exp, 1),
}  # fmt: skip


SELDOM = {
    "over space", "with a temperature", "by hand, over rows", "with numbers that depend on the entry", "of two",
    "moved", "against one", "over channels first", "log sum exp by hand", "logarithm over rows",
    "exponential of its logarithm", "log sum exp over space",
}  # fmt: skip


def logits():
    """In general position, with two entries alike and with one that leads."""
    alike, leads = np.zeros((3, 2, 4), np.float32), np.full((3, 2, 4), -10, np.float32)
    alike[:, :, 2:], leads[0, 0, 0] = -10, 10
    rows = np.stack([np.asarray(normal(0, 3, 2, 4)), alike, leads])
    return jnp.asarray(np.concatenate([rows, 3 * rows, np.float32(0.1) * rows]))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SELDOM)) for n in SOFT])
def test_softmax(name, relaxed_promotion):
    function, expected = SOFT[name]
    np.testing.assert_allclose(bound_of(function, (2, 3, 2, 4)), expected, rtol=1e-5, atol=1e-6)
    x = logits()
    sizes = np.repeat(np.array([1.0, 0.1, 0.01], np.float32), 3).reshape(-1, 1, 1, 1)
    change, step = changes(function, x, sizes * np.asarray(normal(1, *x.shape)))
    assert np.all(change <= expected * step + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOFT)
def test_softmax_comes_close_to_its_bound(name, key, relaxed_promotion):
    function, expected = SOFT[name]
    local = float(jnp.max(lipschitz.local(function, logits(), key=key, steps=20).value))
    assert 0.5 * expected <= local <= expected * (1 + 1e-4) + 1e-6


def rest(x):
    return x - x.max(-1, keepdims=True)


def first_and(x, number):
    """The first entry, and numbers in place of the others."""
    return jnp.pad(x[..., :1], ((0, 0), (0, 0), (0, 0), (0, 2)), constant_values=number)


def filled(x):
    """The first and the third entry, and a number that could be the place of one."""
    return x.at[..., jnp.array([0, 2, 9])].get(mode="fill", fill_value=2)


def test_softmax_in_half_precision():
    x = jax.ShapeDtypeStruct((2, 5), jnp.bfloat16)
    np.testing.assert_allclose(lipschitz.network(jax.nn.softmax, x).value, 0.5, rtol=1e-5)
    np.testing.assert_allclose(lipschitz.network(jax.nn.log_softmax, x).value, 5**0.5, rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.exp(x) / jnp.exp(2 * x).sum(-1, keepdims=True),
        lambda x: jnp.exp(x) / jnp.exp(x).sum(1, keepdims=True)[:, ::-1].sum(2, keepdims=True),
        lambda x: jnp.exp(x) / jnp.roll(jnp.exp(x).sum(1, keepdims=True), 1, 2),
        lambda x: jnp.exp(x) / jnp.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True),
        lambda x: jnp.exp(x).sum(-1) / jnp.exp(x).sum(-1),
        lambda x: jnp.exp(rest(x))[:, ::-1] / jnp.exp(rest(x)).sum(-1, keepdims=True),
        lambda x: jnp.exp(rest(x)[:, ::-1]) / jnp.exp(rest(x)).sum(-1, keepdims=True),
        lambda x: jnp.exp(rest(x)).swapaxes(2, 3) / jnp.exp(rest(x)).sum(-1, keepdims=True),
        lambda x: jnp.exp(x - first_and(x, -5)) / jnp.exp(x - first_and(x, 0)).sum(-1, keepdims=True),
        lambda x: jnp.exp(x - filled(x)) / jnp.exp(x - x[..., jnp.array([0, 2, 2])]).sum(-1, keepdims=True),
    ],
)
def test_quotients_that_are_no_softmax(function):
    with pytest.raises(ValueError, match="softmax"):
        bound_of(function, (2, 3, 3, 3))


def test_a_shift_that_is_not_given_back():
    """Of the logarithm of a sum, a shift of one entry by another counts."""
    found = bound_of(lambda x: jnp.log(jnp.exp(x - x[..., ::-1]).sum(-1)) + x.max(-1), (2, 4))
    assert found >= 2.9


def test_the_logarithm_of_no_softmax():
    """Each row less what belongs to another: twice the change of one entry, and of the largest besides."""
    x = np.array(2 * [[0, -10, -10, -10]], np.float32)
    function = lambda x: rest(x)[:, ::-1] - jnp.log(jnp.exp(rest(x)).sum(-1, keepdims=True))  # noqa: E731
    slope = np.linalg.norm(np.reshape(jax.jit(jax.jacobian(lambda x: function(x[None])[0]))(x), (8, 8)), 2)
    assert bound_of(function, (2, 2, 4)) >= slope


def test_entries_that_are_filled_in():
    """They are no entries of the image, whatever their number."""
    index = jnp.array([0, 7, 9])
    fill = lambda x, number: x.at[:, index].get(mode="fill", fill_value=number)  # noqa: E731
    for number in (3, 2.5, -1, None):
        found = bound_of(lambda x, n=number: jnp.concatenate([x, fill(x, n)], 1), (2, 4))
        np.testing.assert_allclose(found, 2**0.5, rtol=1e-5)


def test_slopes_in_half_precision(relaxed_promotion):
    """Not rounded to it: the inverse of 11 is 4e-4 larger than the nearest number, the product below 1e-4."""
    eleven, slopes = jnp.array([11.0, 12.0], jnp.float16), jnp.array([1.001, 0.1], jnp.float16)
    x = jax.ShapeDtypeStruct((1, 2), jnp.float16)
    true = 1 / 11
    assert true <= lipschitz.network(lambda x: x / eleven, x).value <= true * (1 + 1e-5)
    true = float(slopes[0]) ** 2
    assert true <= lipschitz.network(lambda x: slopes * jnp.where(x > 0, x, x * slopes), x).value <= true * (1 + 1e-5)


def test_a_divisor_of_lower_precision(x64):
    """The inverse of 61 in single precision is 6e-8 too small."""
    divisor, x = jnp.array([[61.0, 62.0]], jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.float64)
    assert lipschitz.network(lambda x: x.astype(jnp.float32) / divisor, x).value >= 1 / 61


# Their product is one in single precision, and half a digit more in exact arithmetic.
UP, DOWN = jnp.array([[1 + 2.0**-23, 0]]), jnp.array([[1 - 2.0**-24, 0]])
PRODUCT = (1 + 2.0**-23) * (1 - 2.0**-24)


def test_roundings_of_the_scales_of_a_layer():
    one = jnp.ones(())
    value = LipschitzValue(one, one, Root(), layer=Layer(one, 1, jnp.max))
    for constant in 20 * [UP, DOWN]:
        value = multiply(value, constant)
    assert value.bound >= PRODUCT**20


def test_roundings_of_slopes():
    slopes = _piecewise_linear.IDENTITY_SLOPES
    for constant in 100 * [UP, DOWN]:
        slopes = _piecewise_linear.apply("mul", [slopes, PiecewiseConstant(constant, constant)])
    one = jnp.ones(())
    assert PiecewiseLinear((None, ()), one, one, slopes).lipschitz_constant >= PRODUCT**100


def test_a_layer_too_steep_by_itself():
    """Exponentials have no bound; the network has, and its layers say so."""
    found = lipschitz.network(lambda x: jnp.log(jnp.exp(x @ normal(0, 3, 3)).sum(-1)), (2, 3))
    assert jnp.isinf(found.bound[found.layers.index("exp_0")])
    assert bool(jnp.isfinite(found.value))


# Certified: never below a slope that was seen, nor below a local norm


def wrapped(x, mode):
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)


def rings(x, k):
    x = bent(conv(wrapped(x, "wrap"), k[0])[:, 1:-1, 1:-1], k[1])
    x = jax.lax.conv_general_dilated(
        wrapped(x, "reflect"), k[2], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jnp.concatenate([jnp.maximum(x[..., ::2], x[..., 1::2]), jnp.minimum(x[..., ::2], x[..., 1::2])], -1)
    return jax.nn.softmax(jnp.roll(x, 1, 1).reshape(len(x), -1) @ k[3])


def bent(x, a):
    return jnp.where(x >= 0, x, a * x)


def mixed(x, k):
    x = jnp.concatenate([jax.nn.relu(x[:, 3:] @ k[0]), x[:, :3] @ k[0]], 1)
    x = jnp.maximum(x, k[1] * x) + window(jax.lax.add, 0.0, (3, 3), (1, 1), "SAME")(wrapped(x, "edge"))[:, 1:-1, 1:-1]
    x = jax.nn.log_softmax(jnp.where(x > 0, k[1] * x, x), axis=(1, 2))
    return jax.nn.logsumexp(x, 1).reshape(len(x), -1) @ k[2]


NETWORKS = {
    "rings": (rings, [(3, 3, 2, 4), (1, 1, 1, 4), (3, 3, 4, 4), (36, 3)]),
    "mixed": (mixed, [(2, 2), (1, 1, 1, 2), (12, 3)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_of_500_random_networks(name, key):
    network, shapes = NETWORKS[name]
    of_one = partial(bound_and_slopes, network=network, shapes=shapes)
    bounds, slopes, norms = jax.jit(jax.vmap(of_one))(jax.random.split(key, 500))
    assert bool(jnp.all(jnp.isfinite(bounds) & (bounds > 0)))
    assert float(jnp.max(slopes / bounds[:, None])) <= 1
    assert float(jnp.max(norms / bounds[:, None])) <= 1
    assert float(jnp.max(norms / bounds[:, None])) > 0.03


def test_bounds_of_20_random_networks():
    shapes = [(3, 2, 4), (1, 1, 4), (20, 3)]

    def network(x, k):
        x = jnp.pad(x, ((0, 0), (1, 1), (0, 0)), mode="reflect")
        x = bent(jax.lax.conv_general_dilated(x, k[0], (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC")), k[1])
        x = jnp.concatenate([jnp.maximum(x[..., ::2], x[..., 1::2]), jnp.minimum(x[..., ::2], x[..., 1::2])], -1)
        return jax.nn.softmax(jnp.roll(x, 1, 1).reshape(len(x), -1) @ k[2])

    def slopes(seed):
        kernels = [3 * np.asarray(normal(seed + 100 * k, *shape)) for k, shape in enumerate(shapes)]
        sizes = (0.1 ** (np.arange(64).reshape(-1, 1, 1) % 3)).astype(np.float32)
        x, step = 3 * np.asarray(normal(seed, 64, 5, 2)), sizes * np.asarray(normal(seed + 7, 64, 5, 2))
        change = np.asarray(moved(x, step, kernels))
        return kernels, np.linalg.norm(change, axis=1) / np.linalg.norm(step.reshape(64, -1), axis=1)

    moved = jax.jit(lambda x, step, kernels: network(x + step, kernels) - network(x, kernels))
    kernels, seen = zip(*map(slopes, range(20)))
    stacked = [np.stack(several) for several in zip(*kernels)]
    bounds = jax.jit(jax.vmap(lambda *k: lipschitz.network(partial(network, k=k), (2, 5, 2), spatial=1).value))(
        *stacked
    )
    bounds = np.asarray(bounds)[:, None]
    assert np.all(np.stack(seen) <= bounds)
    assert np.max(np.stack(seen) / bounds) > 0.03
