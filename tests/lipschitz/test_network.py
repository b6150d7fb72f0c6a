"""Bounds of whole networks and local norms: against full Jacobians, sampled slopes, and each other."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import features, lipschitz, models, networks
from tests.lipschitz.helpers import bound_and_slopes, bound_of, norm_of, random_array, window
from tests.sample_networks import CASES, conv, normal

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


# Activations: steepest slopes, in closed form where there is one

SLOPES = {
    "relu": (jax.nn.relu, 1.0),
    "relu6": (jax.nn.relu6, 1.0),
    "leaky relu": (jax.nn.leaky_relu, 1.0),
    "elu": (jax.nn.elu, 1.0),
    "selu": (jax.nn.selu, 1.0507009873554805 * 1.6732632423543772),
    "celu": (jax.nn.celu, 1.0),
    "silu": (jax.nn.silu, 1.09984),
    "gelu": (jax.nn.gelu, 1.12899),
    "exact gelu": (partial(jax.nn.gelu, approximate=False), 1.12890),
    "gelu by hand": (lambda x: x * 0.5 * (1 + jax.lax.erf(x / math.sqrt(2))), 1.12890),
    "silu by hand": (lambda x: jax.nn.sigmoid(x) * x, 1.09984),
    "tanh": (jnp.tanh, 1.0),
    "steep tanh": (lambda x: jnp.tanh(3 * x + 1) * 2 - 5, 6.0),
    "sigmoid": (jax.nn.sigmoid, 0.25),
    "log sigmoid": (jax.nn.log_sigmoid, 1.0),
    "softplus": (jax.nn.softplus, 1.0),
    "softplus by hand": (lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), 1.0),
    "mish": (jax.nn.mish, 1.08850),
    "hard swish": (jax.nn.hard_swish, 1.5),
    "hard sigmoid": (jax.nn.hard_sigmoid, 1 / 6),
    "hard tanh": (jax.nn.hard_tanh, 1.0),
    "soft sign": (jax.nn.soft_sign, 1.0),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.5), 1.0),
    "soft shrink": (lambda x: jnp.where(x > 0.1, x - 0.1, jnp.where(x < -0.1, x + 0.1, 0.0)), 1.0),
    "masked": (lambda x: x * (x > 0).astype(x.dtype), 1.0),
    "by its sign": (lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.5, 0), 1.0),
    "bell": (lambda x: jnp.exp(-(x**2)), math.sqrt(2 / math.e)),
    "sine": (lambda x: jnp.sin(2 * x), 2.0),
    "arctangent": (lambda x: jnp.arctan(x) + jnp.arcsinh(x), 2.0),
    "root": (lambda x: jnp.sqrt(1 + x * x), 1.0),
    "shifts that cancel": (lambda x: jax.nn.relu(x) - jax.nn.relu(x - 1), 1.0),
    "hard swish by hand": (lambda x: x * jax.nn.relu6(x + 3) / 6, 1.5),
    "two pieces": (lambda x: jnp.where((x > -1) & ~(x >= 1), x, jnp.sign(x)), 1.0),
}


OFTEN = (
    "relu",
    "leaky relu",
    "selu",
    "gelu",
    "silu",
    "tanh",
    "sigmoid",
    "softplus",
    "mish",
    "masked",
    "hard swish by hand",
)


@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in SLOPES])
def test_slopes_of_activations(name, x64):
    function, expected = SLOPES[name]
    found = bound_of(function, (1, 5))
    t = np.linspace(-20, 20, 40_001)
    seen = np.max(np.abs(np.diff(jax.jit(function)(t))) / (t[1] - t[0]))
    assert found >= seen * (1 - 1e-9)
    np.testing.assert_allclose(found, expected, rtol=2e-4 if name != "root" else 5e-3)


REFUSED = {
    "exponential": (jnp.exp, "`exp`"),
    "square": (jnp.square, "`square`"),
    "cube": (lambda x: x**3, "`integer_pow`"),
    "product with itself": (lambda x: x * x, "`mul`"),
    "root at zero": (lambda x: jnp.sqrt(jnp.abs(x)), "`abs, sqrt`"),
    "inverse": (lambda x: 1 / x, "`div`"),
    "root of the inverse": (lambda x: jnp.power(1 / jnp.abs(x), 0.5), "`div`"),
    "power of the inverse": (lambda x: jnp.power(1 / (x * x), 0.3), "`mul`"),
    "infinite power": (lambda x: x**jnp.inf, "`pow`"),
    "step": (lambda x: (x > 0).astype(x.dtype), "`gt, convert_element_type`"),
    "jump": (lambda x: jnp.where(x > 0.3, x + 1, x), "`gt, add, select_n`"),
    "jump at zero": (lambda x: jnp.where(x >= 0, x + 1e-3, x), "`ge, add, select_n`"),
    "small jump": (lambda x: jnp.where(x > 0, 5e-7, 0.0), "`gt, select_n`"),
    "jump by the last digit": (lambda x: jnp.where(x > 0, 1 + 2.0**-23, 1.0) * 1e9, "`mul`"),
    "jump to infinity": (lambda x: jnp.where(x > 0, jnp.inf, x), "`gt, select_n`"),
    "jump where undefined": (lambda x: jnp.where(jax.nn.sigmoid(jnp.log(x)) >= 0, x, 1.0), "`log, logistic"),
    "rounding": (jnp.round, "`round`"),
    "integers": (lambda x: x.astype(int).astype(x.dtype), "`convert_element_type`"),
    "sum of exponentials": (lambda x: jnp.exp(x).sum(-1), "`exp`.*softmax"),
    "unnormalized": (lambda x: jnp.exp(x) / (1 + jnp.exp(x).sum(-1, keepdims=True)), "softmax"),
    "gate": (lambda x: jax.nn.sigmoid(x @ normal(0, 3, 3)) * (x @ normal(1, 3, 3)), "`mul` of several.*gate"),
    "attention": (lambda x: jnp.einsum("bhwc,bijc->bhwij", x, x), "`dot_general` of several.*attention"),
    "normalized": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), "statistics"),
    "choice": (lambda x: jnp.argmax(x, -1).astype(x.dtype), "`argmax`"),
    "its own index": (lambda x: jnp.take(jnp.arange(3.0), jnp.argmax(x, -1)), "`argmax`"),
    "loop": (lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x), "`while`"),
    "branches of its own": (
        lambda x: jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x),
        "`convert_element_type`",
    ),
    "kernel of its own": (lambda x: conv(x, x[0, :3, :3, :, None]), "`conv_general_dilated` of several"),
    "product": (lambda x: jnp.prod(x, -1), "`reduce_prod`"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bound_is_named(name, relaxed_promotion):
    function, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        lipschitz.network(function, (1, 8, 8, 3))


# Linear operations, against the norm of the whole matrix: (function, shape of an image, whether the bound is the norm)

K3 = normal(0, 3, 3, 3, 4)


LINEAR = {
    "dense": (lambda x: x @ normal(0, 3, 5), (4, 3), 1.01),
    "dense from the left": (lambda x: jnp.einsum("ph,bhc->bpc", normal(0, 5, 3), x), (3, 2), 1.01),
    "a matrix for each position": (lambda x: jnp.einsum("bpc,pcd->bpd", x, normal(0, 4, 3, 2)), (4, 3), 1.01),
    "all pixels": (lambda x: x.reshape(len(x), -1) @ normal(0, 12, 5), (4, 3), 1.01),
    "convolution": (lambda x: conv(x, K3), (6, 6, 3), 1.1),
    "strided, dilated, grouped": (
        lambda x: jax.lax.conv_general_dilated(
            x.transpose(0, 3, 1, 2), normal(1, 4, 1, 3, 2), (2, 1), [(1, 2), (0, 3)], rhs_dilation=(1, 2),
            feature_group_count=2,
        ),
        (7, 5, 2),
        1.3,
    ),
    "transposed": (
        lambda x: jax.lax.conv_general_dilated(
            x, normal(2, 3, 3, 3, 2), (1, 1), [(2, 1), (1, 2)], (2, 2), None, ("NHWC", "HWIO", "NHWC")
        ),
        (4, 4, 3),
        1.1,
    ),
    "spread and strided": (
        lambda x: jax.lax.conv_general_dilated(
            x, normal(2, 2, 3, 2), (3,), [(1, 2)], (2,), None, ("NHC", "HIO", "NHC")
        ),
        (8, 3),
        2.0,
    ),
    "transposed, grouped": (
        lambda x: jax.lax.conv_general_dilated(
            x, normal(2, 3, 2, 2, 4), (1, 1), [(2, 1), (1, 3)], (2, 3), (1, 2), ("NHWC", "HWIO", "NHWC"), 2
        ),
        (3, 4, 4),
        1.2,
    ),
    "average pool": (lambda x: window(jax.lax.add, 0.0, (2, 2), (2, 2), "VALID")(x) / 4, (6, 6, 2), 1.0001),
    "overlapping average": (lambda x: window(jax.lax.add, 0.0, (3, 3), (2, 1), "SAME")(x) / 9, (5, 6, 2), 1.0001),
    "global average": (lambda x: x.mean((1, 2)), (4, 4, 2), 1.0001),
    "mean of slices": (lambda x: (x[:, ::2] + x[:, 1::2]) / 2, (4, 2), 1.5),
    "running sum": (lambda x: jnp.cumsum(x, 1), (5, 2), 1.0001),
    "repeated": (lambda x: jnp.repeat(x, 3, 1), (4, 2), 1.0001),
    "stretched": (lambda x: jnp.broadcast_to(x.mean(1, keepdims=True), x.shape) * 2, (4, 2), 1.0001),
    "stretched by a sum": (lambda x: x[:, :1] + jnp.zeros((1, 4, 2)), (4, 2), 1.0001),
    "tiled": (lambda x: jnp.tile(x, (1, 2, 2)), (4, 2), 1.0001),
    "looked up": (lambda x: x[:, jnp.array([0, 2, 2, 1, 2])], (4, 2), 1.0001),
    "padded and cut": (
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0)))[:, 1:-1:2, ::-1].transpose(0, 2, 1), (5, 2), 1.0001
    ),
    "mirrored": (lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0)), mode="reflect"), (5, 2), 1.0001),
    "side by side": (lambda x: jnp.concatenate([x, 2 * x, jnp.ones_like(x)], -1), (4, 2), 1.0001),
    "stacked": (lambda x: jnp.stack([x, jnp.ones_like(x), 2 * x]).sum(0), (4, 2), 1.3),
    "written over": (lambda x: jnp.ones_like(x).at[:, 1].set(x[:, 0]), (4, 2), 1.0001),
    "part of it updated": (
        lambda x: jax.lax.dynamic_update_slice(
            jnp.zeros((len(x), 6, 2)), jax.lax.dynamic_slice(x, (0, 1, 0), (len(x), 2, 2)), (0, 3, 0)
        ),
        (4, 2),
        1.0001,
    ),
    "masked": (lambda x: jnp.where(jnp.arange(4).reshape(1, 4, 1) > 1, 3 * x, x), (4, 2), 1.2),
    "scaled": (lambda x: (x - normal(0, 1, 1, 2)) * normal(1, 1, 1, 2) / normal(2, 1, 4, 1), (4, 2), 1.0001),
    "chosen": (lambda x: jax.lax.cond(jnp.arange(3).sum() > 1, lambda x: 3 * x, lambda x: 5 * x, x), (4, 2), 1.0001),
    "residual": (lambda x: x + 2 * x[..., ::-1], (4, 3), 1.0001),
    "constant": (lambda x: jnp.ones_like(x), (4, 2), 1.0),
    "identity": (lambda x: x, (4, 2), 1.0001),
}  # fmt: skip


LONG = ("convolution", "spread and strided", "transposed, grouped", "a matrix for each position", "all pixels")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in LINEAR])
def test_linear_operations_against_their_matrices(name, relaxed_promotion):
    function, shape, slack = LINEAR[name]
    exact, found = norm_of(function, shape), bound_of(function, (1, *shape))
    assert exact * (1 - 1e-6) <= found <= exact * slack + 1e-6, (exact, found)


# Whole networks


def test_a_chain_of_layers_is_the_product_of_their_norms():
    kernels = [normal(0, 48, 5), normal(1, 5, 5), normal(2, 5, 5)]
    found = lipschitz.network(lambda x: jnp.tanh(x.reshape(2, -1) @ kernels[0]) @ kernels[1] @ kernels[2], (2, 4, 4, 3))
    norms = [float(np.linalg.norm(kernel, 2)) for kernel in kernels]
    np.testing.assert_allclose(found.factor, [norms[0], 1, norms[1], norms[2], 1], rtol=0.01)
    np.testing.assert_allclose(found.bound, np.cumprod(found.factor), rtol=1e-5)
    assert found.value == found.bound[-1]
    assert found.value >= math.prod(norms)
    assert found.layers == ("dense_0", "tanh_0", "dense_1", "dense_2", "output")
    assert found.kinds == ("dense", "activation", "dense", "dense", "output")
    assert found.certified


def test_an_image_that_is_cut_or_spread_by_a_convolution():
    """By its padding, or with zeros between its pixels: as if that were done to the image."""

    def rows(x, padding, stride=1, spread=1):
        kernel, numbers = normal(3, 3, 3, 5), ("NHC", "HIO", "NHC")
        return jax.lax.conv_general_dilated(x, kernel, (stride,), [padding], (spread,), None, numbers)

    cut = bound_of(lambda x: rows(x, (-1, 1)), (2, 6, 3))
    np.testing.assert_allclose(cut, bound_of(lambda x: rows(x[:, 1:], (0, 1)), (2, 6, 3)), rtol=1e-6)
    spread = bound_of(lambda x: rows(x, (1, 1), 2, 2), (2, 4, 3))
    apart = bound_of(lambda x: rows(jax.lax.pad(x, 0.0, [(0, 0, 0), (0, 0, 1), (0, 0, 0)]), (1, 1), 2), (2, 4, 3))
    np.testing.assert_allclose(spread, apart, rtol=1e-6)


def test_branches_add_up():
    kernel = normal(0, 3, 3)
    alone = bound_of(lambda x: x @ kernel)
    np.testing.assert_allclose(bound_of(lambda x: x + x @ kernel), 1 + alone, rtol=1e-6)
    np.testing.assert_allclose(bound_of(lambda x: x + jax.nn.relu(x)), 2, rtol=1e-6)
    np.testing.assert_allclose(
        bound_of(lambda x: jnp.concatenate([x, x @ kernel], -1)), math.hypot(1, alone), rtol=1e-6
    )
    np.testing.assert_allclose(bound_of(lambda x: jnp.maximum(x, x @ kernel)), math.hypot(1, alone), rtol=1e-6)
    both = lipschitz.network(lambda x: {"a": x, "b": x @ kernel}, IMAGES)
    np.testing.assert_allclose(both.bound[-2:], [1, alone], rtol=1e-6)
    np.testing.assert_allclose(both.value, math.hypot(1, alone), rtol=1e-6)


@pytest.mark.parametrize(
    ("sides", "strides", "expected"), [((2, 2), (2, 2), 1), ((3, 3), (2, 2), 2), ((3, 1), (1, 1), 3**0.5)]
)
def test_a_maximum_counts_how_often_a_pixel_is_read(sides, strides, expected):
    pool = window(jax.lax.max, -jnp.inf, sides, strides, "VALID")
    np.testing.assert_allclose(bound_of(pool), expected, rtol=1e-6)
    x = np.zeros((1, 8, 8, 3), np.float32)
    x[0, 2, 2, 0] = 1  # a pixel that is read most often
    np.testing.assert_allclose(np.linalg.norm(pool(x)), expected, rtol=1e-6)


def test_a_normalization_counts_with_the_layer_before_it():
    kernel, scale = normal(0, 3, 3, 3, 4), jnp.asarray(np.array([4, -0.5, 0.25, 0.125], np.float32)[None, None, None])
    bias = normal(1, 1, 1, 1, 4)

    def normed(kernel, scale):
        return lipschitz.network(lambda x: ((conv(x, kernel) + bias - 2 * bias) * scale - bias) / scale * scale, IMAGES)

    alone, folded = lipschitz.conv(kernel, (8, 8)).value, lipschitz.conv(kernel * scale, (8, 8)).value
    assert folded < 0.9 * 4 * alone
    found = normed(kernel, scale)
    np.testing.assert_allclose(found.value, folded, rtol=1e-5)
    np.testing.assert_allclose(found.bound[0], alone, rtol=1e-5)
    np.testing.assert_allclose(np.prod(found.factor), folded, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(normed)(kernel, scale).value, folded, rtol=1e-5)
    kernel, scale = normal(3, 3, 5), jnp.array([4.0, 1.0, -0.5, 0.25, 1.0])
    found = bound_of(lambda x: (x @ kernel) * scale.reshape(1, 1, 1, 5))
    np.testing.assert_allclose(found, np.linalg.norm(kernel * scale[None], 2), rtol=0.01)


# Certified: never below a slope that was seen, nor below a local norm


def norm_of_batch(x, k):
    return (conv(x, k[0]) - 0.1) * k[1] + 0.2


def pooled(x, k):
    x = jax.nn.relu(norm_of_batch(x, k))
    x = window(jax.lax.max, -jnp.inf, (3, 3), (2, 2), "SAME")(x)
    return jax.nn.gelu(x.reshape(len(x), -1) @ k[2]) @ k[3]


def residual(x, k):
    x = conv(x, k[0])
    x = x + conv(jax.nn.silu(conv(x, k[1])), k[2])
    return jax.nn.leaky_relu(x).mean((1, 2)) @ k[3]


def dense_blocks(x, k):
    x = jnp.concatenate([x, jax.nn.mish(conv(x, k[0]))], -1)
    x = jnp.concatenate([x, jax.nn.hard_swish(conv(x, k[1]))], -1)
    x = window(jax.lax.add, 0.0, (3, 3), (1, 2), "VALID")(x) / 9
    return jax.nn.softplus(x.reshape(len(x), -1)) @ k[2]


def separable(x, k):
    x = jax.nn.relu6(conv(x, k[0], groups=2))
    x = jax.nn.elu(jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0))) @ k[1])
    x = jax.lax.conv_general_dilated(x, k[2], (2, 1), [(0, 0), (1, 0)], (1, 1), (2, 2), ("NHWC", "HWIO", "NHWC"))
    return jnp.maximum(x[..., 0], x[..., 1]).sum((1, 2)).reshape(-1, 1) * k[3]


def perceptron(x, k):
    x = x.reshape(len(x), -1)
    for kernel in k[:-1]:
        x = jnp.tanh(x @ kernel)
    return x * k[-1]


NETWORKS = {
    "residual": (residual, [(3, 3, 2, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3)]),
    "pooled": (pooled, [(3, 3, 2, 3), (1, 1, 1, 3), (27, 4), (4, 3)]),
    "dense blocks": (dense_blocks, [(3, 3, 2, 3), (3, 3, 5, 2), (56, 3)]),
    "separable": (separable, [(3, 3, 1, 4), (4, 3), (3, 3, 3, 2), (1, 1)]),
    "perceptron": (perceptron, [(72, 5), (5, 5), (5, 4), (1, 4)]),
}


@pytest.mark.parametrize(
    "name", [name if name == "perceptron" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_bounds_of_500_random_networks(name, key):
    """Weights of any scale; pairs of images from far apart to as near as rounding lets tell."""
    network, shapes = NETWORKS[name]
    of_one = partial(bound_and_slopes, network=network, shapes=shapes)
    bounds, slopes, norms = jax.jit(jax.vmap(of_one))(jax.random.split(key, 500))
    bounds, slopes, norms = map(np.asarray, (bounds, slopes, norms))
    assert np.all(np.isfinite(bounds) & (bounds > 0))
    assert np.max(slopes / bounds[:, None]) <= 1
    assert np.max(norms / bounds[:, None]) <= 1
    # and not by being vacuous, nor trivially so
    assert np.max(norms / bounds[:, None]) > 0.1
    assert np.median(slopes[:, -1] / np.maximum(norms[:, 0], 1e-30)) > 0.9


BOUNDED = {
    "nnx residual", "nnx wrapped", "nnx tied", "equinox perceptron", "plain convolutional", "plain sliced",
    "partial windowed", "partial scanned", "plain odd",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n == "partial scanned" else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_networks_of_every_framework_are_bounded_or_refused(name, relaxed_promotion):
    network = CASES[name].build()
    if name not in BOUNDED:
        with pytest.raises(ValueError, match=r"known, got|rows depend"):
            lipschitz.network(network, (2, 8, 8, 3))
        return
    found = lipschitz.network(network, (2, 8, 8, 3))
    taps = features.taps(network, IMAGES)
    assert found.layers == tuple(tap.name for tap in taps)
    assert found.kinds == tuple(tap.kind for tap in taps)
    bounds = np.asarray(found.bound)
    assert np.all(np.isfinite(bounds) & (bounds > 0))
    x, step = random_array(0, 2, 8, 8, 3), np.float32(0.1) * random_array(1, 2, 8, 8, 3)
    capture = jax.jit(features.capture(network))
    one, two = (jax.tree.map(np.asarray, capture(x)[1]) for x in (x, x + step))
    for layer, bound in zip(found.layers, bounds, strict=True):
        change = np.linalg.norm((one[layer] - two[layer]).reshape(2, -1), axis=1)
        assert np.all(change <= bound * np.linalg.norm(step.reshape(2, -1), axis=1)), layer


def test_integers_that_are_not_used_are_no_matter():
    found = lipschitz.network(lambda x: {"class": jnp.argmax(x, -1), "scores": x}, (2, 5))
    np.testing.assert_allclose(found.value, 1, rtol=1e-6)
    assert "class" not in " ".join(found.layers)


def test_traced_stacked_and_printed(key):
    kernel = normal(0, 3, 5)
    bounds = jax.jit(jax.vmap(lambda k: lipschitz.network(lambda x: jnp.tanh(x @ k), (2, 3))))(
        np.stack([kernel, 2 * kernel])
    )
    alone = lipschitz.network(lambda x: jnp.tanh(x @ kernel), (2, 3))
    assert bounds.bound.shape == (2, 3)
    np.testing.assert_allclose(bounds.value, [alone.value, 2 * alone.value], rtol=1e-5)
    assert "2 layers" not in repr(bounds)
    assert "NetworkBound of 3 layers, stacked (2,)" in repr(bounds)
    assert repr(alone).splitlines()[0].startswith("|f(x) - f(y)| <= ")
    assert "dense_0" in repr(alone)
    gradient = jax.jit(jax.grad(lambda k: lipschitz.network(lambda x: jnp.tanh(x @ k), (2, 3)).value))(kernel)
    left, _, right = np.linalg.svd(kernel)
    np.testing.assert_allclose(gradient, np.outer(left[:, 0], right[0]), atol=0.1)


def test_weights_that_are_zero_or_not_finite():
    dead = lipschitz.network(lambda x: jnp.tanh(x @ jnp.zeros((3, 5))) @ normal(0, 5, 5), (2, 3))
    np.testing.assert_array_equal(dead.bound, 0)
    assert dead.factor[-2] > 0
    assert jnp.isnan(bound_of(lambda x: x @ jnp.full((3, 5), jnp.nan), (2, 3)))


def test_half_precision_is_bounded_in_single():
    found = lipschitz.network(
        lambda x: x @ normal(0, 3, 5).astype(jnp.bfloat16), jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
    )
    assert found.value.dtype == jnp.float32


@pytest.mark.parametrize(
    ("f", "x", "message"),
    [
        (lambda x: x, (3,), "expected images"),
        (lambda x: x.sum(0), (2, 3), "one output row per image"),
        (lambda x: x - x.mean(0, keepdims=True), (2, 3), "sums over its batch at reduce_sum"),
    ],
)
def test_bad_networks(f, x, message):
    with pytest.raises(ValueError, match=message):
        lipschitz.network(f, x)


MODELS = [name for name in models.NAMES if not name.startswith("GAP")]
GATED = {"EfficientNetB0": "`mul` of several", "ConvNeXt": "`square`", "ViT": "`square`"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_at_initialization(name, key, relaxed_promotion):
    """The certified bound, above what is seen at every layer and the local norm; or what stands in its way."""
    network = networks.wrap(models.build(name, rngs=nnx.Rngs(0)))
    if name in GATED:
        with pytest.raises(ValueError, match=GATED[name]):
            lipschitz.network(network, (2, 32, 32, 3))
        return
    found = lipschitz.network(network, (2, 32, 32, 3))
    x = jax.random.normal(key, (2, 32, 32, 3))
    assert bool(jnp.all(lipschitz.local(network, x, key=key).value <= found.value))
    step = 0.1 * jax.random.normal(jax.random.key(1), x.shape)

    @jax.jit
    def activations(network, x):
        return features.capture(network)(x)[1]

    one, two = (activations(network, x) for x in (x, x + step))
    for layer, bound in zip(found.layers, found.bound, strict=True):
        change = jnp.linalg.norm((one[layer] - two[layer]).reshape(2, -1), axis=1)
        assert bool(jnp.all(change <= bound * jnp.linalg.norm(step.reshape(2, -1), axis=1))), layer
