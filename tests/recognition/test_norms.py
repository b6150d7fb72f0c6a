"""The kind ``norm``: ``x * g(rsqrt(stat(x))) [* scale] [+ bias]``, in the ways in which libraries write it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from stabjax import features, networks
from tests.recognition import PARAMETERS, average, first_layer, layer_norm, recognized, taps
from tests.sample_networks import IMAGES, normal

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def running(form):
    """A norm by constant statistics behind a convolution."""

    def network(p, x):
        q, y = p["norm"], first_layer(p, x)
        return form(q["mean"], q["var"], q["scale"], q["bias"], y)

    return network


def from_moments(y):
    """A layer norm whose variance is the difference of two moments."""
    mean = average(y)
    return (y - mean) * lax.rsqrt(average(y * y) - mean * mean + 1e-5)


def mean_behind(y, gain, bias, axis=-1):
    """A norm that takes its mean off behind the division, as Keras does."""
    mean, variance = average(y, axis), y.var(axis, keepdims=True)
    inverse = lax.rsqrt(variance + 1e-5) * gain
    return y * inverse + (bias - mean * inverse)


def of_groups(norm):
    """A norm of two groups of channels, by a function of values whose last axis is a group, with its axes."""

    def network(p, x):
        y = first_layer(p, x).reshape(2, 8, 8, 2, 2)
        return jnp.tanh(norm(p["norm"], y, (1, 2, 4)).reshape(2, 8, 8, 4))

    return network


def scaled_first(q, y):
    """A layer norm that applies its scale to the inverse deviation, as Haiku does."""
    return q["scale"] * lax.rsqrt(y.var(-1, keepdims=True) + 1e-5) * (y - average(y)) + q["bias"]


RUNNING = {
    "product": (running(lambda m, v, s, b, y: (y - m) * lax.rsqrt(v + 1e-5) * s + b), "conv=conv norm=norm"),
    "scale on the deviation": (
        running(lambda m, v, s, b, y: (y - m) * (lax.rsqrt(v + 1e-5) * s) + b),
        "conv=conv norm=norm",
    ),
    "quotient": (running(lambda m, v, s, b, y: (y - m) / jnp.sqrt(v + 1e-5) * s + b), "conv=conv norm=norm"),
    "power": (running(lambda m, v, s, b, y: (y - m) * (v + 1e-5) ** -0.5), "conv=conv norm=norm"),
    "folded": (
        running(lambda m, v, s, b, y: y * (s / jnp.sqrt(v + 1e-5)) + (b - m * s / jnp.sqrt(v + 1e-5))),
        "conv=conv norm=norm",
    ),
    "no mean": (running(lambda m, v, s, b, y: y * lax.rsqrt(v)), "conv=conv norm=norm"),
    "behind an activation": (
        running(lambda m, v, s, b, y: (jnp.tanh(y) - m) * lax.rsqrt(v)),
        "conv=conv tanh_0=activation norm=norm",
    ),
    "behind an activation with a parameter": (
        lambda p, x: (
            (jnp.where(x @ p["dense"]["kernel"] > 0, 1, p["slope"]) - p["norm"]["mean"]) * lax.rsqrt(p["norm"]["var"])
        ),
        "dense=dense slope=activation norm=norm",
    ),
    "only a gain": (running(lambda m, v, s, b, y: y * s + b), "conv=conv norm=other"),
    "a root of numbers": (lambda p, x: first_layer(p, x) / jnp.sqrt(jnp.float32(4)), "conv=conv"),
}

OF_ITSELF = {
    "layer": (lambda p, x: layer_norm(first_layer(p, x)), "conv=conv norm_0=norm"),
    "layer, scale and bias": (
        lambda p, x: layer_norm(first_layer(p, x)) * p["norm"]["scale"] + p["norm"]["bias"],
        "conv=conv norm=norm",
    ),
    "instance": (lambda p, x: layer_norm(first_layer(p, x), (1, 2)), "conv=conv norm_0=norm"),
    "group": (
        lambda p, x: (
            layer_norm(first_layer(p, x).reshape(2, 8, 8, 2, 2), (1, 2, 4)).reshape(2, 8, 8, 4) * p["norm"]["scale"]
        ),
        "conv=conv norm=norm",
    ),
    "batch": (lambda p, x: layer_norm(first_layer(p, x), (0, 1, 2)) * p["norm"]["scale"], "conv=conv norm=norm"),
    "by a quotient": (
        lambda p, x: (lambda y: (y - average(y)) / (y.std(-1, keepdims=True) + 1e-5))(first_layer(p, x)),
        "conv=conv norm_0=norm",
    ),
    "from moments": (lambda p, x: from_moments(first_layer(p, x)), "conv=conv norm_0=norm"),
    "statistic in front": (lambda p, x: scaled_first(p["norm"], first_layer(p, x)), "conv=conv norm=norm"),
    "root mean square": (lambda p, x: x * lax.rsqrt(average(x * x) + 1e-5) * (1 + p["color"]["gain"]), "color=norm"),
    "root mean square, scale first": (
        lambda p, x: (x * p["color"]["gain"]) * lax.rsqrt(average(x * x) + 1e-5),
        "color=norm",
    ),
    "root mean square, scale first, behind an activation": (
        lambda p, x: (lambda y: (y * p["color"]["gain"]) * lax.rsqrt(average(y * y) + 1e-5))(jnp.tanh(x)),
        "tanh_0=activation color=norm",
    ),
    "mean behind the division": (
        lambda p, x: mean_behind(first_layer(p, x), p["norm"]["scale"], p["norm"]["bias"]),
        "conv=conv norm=norm",
    ),
    "mean behind the division, without parameters": (
        lambda p, x: mean_behind(first_layer(p, x), 1.0, 0.0),
        "conv=conv norm_0=norm",
    ),
    "mean behind the division, of a batch": (
        lambda p, x: mean_behind(first_layer(p, x), p["norm"]["scale"], p["norm"]["bias"], (0, 1, 2)),
        "conv=conv norm=norm",
    ),
    "groups, mean behind the division": (
        of_groups(lambda q, y, axis: mean_behind(y, q["scale"].reshape(2, 2), q["bias"].reshape(2, 2), axis)),
        "conv=conv norm=norm tanh_0=activation",
    ),
    "groups without parameters": (
        of_groups(lambda q, y, axis: layer_norm(y, axis)),
        "conv=conv norm_0=norm tanh_0=activation",
    ),
    "length": (lambda p, x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6), "norm_0=norm"),
    "learned part of the mean": (
        lambda p, x: (x - p["color"]["gain"] * average(x)) * lax.rsqrt(x.var(-1, keepdims=True)),
        "color=other norm_0=norm",
    ),
    "local response": (
        lambda p, x: x / (1 + lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, 3), (1, 1, 1, 1), "SAME")) ** 0.75,
        "norm_0=norm",
    ),
    "behind an activation that is used again": (
        lambda p, x: (lambda y: y * lax.rsqrt(average(y * y) + 1e-5) + y)(jnp.tanh(x)),
        "tanh_0=activation norm_0=norm add_0=residual",
    ),
    "centered only": (lambda p, x: x - average(x, (1, 2)), ""),
    "divided by its sum": (lambda p, x: x / x.sum(-1, keepdims=True), "div_0=other"),
    "standardized by a library": (lambda p, x: jax.nn.standardize(x), "norm_0=norm"),
}


@pytest.mark.parametrize("name", RUNNING)
def test_norms_by_constant_statistics(name):
    f, expected = RUNNING[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", OF_ITSELF)
def test_norms_by_statistics_of_their_own(name):
    f, expected = OF_ITSELF[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", ["layer", "instance", "from moments", "root mean square"])
def test_norms_need_no_paths(name):
    assert "norm_0=norm" in recognized(OF_ITSELF[name][0], pathless=True)


@pytest.mark.parametrize("name", [name for name in OF_ITSELF if name.startswith("group")])
def test_norms_of_groups_end_in_the_shape_of_their_layer(name):
    (norm,) = [tap for tap in taps(OF_ITSELF[name][0]) if tap.kind == "norm"]
    assert norm.shape == (2, 8, 8, 4)
    assert norm.channel_axis == 3


@pytest.mark.parametrize("name", ["layer, scale and bias", "mean behind the division", "root mean square"])
def test_norms_are_their_last_value(name):
    """The tap of a norm holds the value behind its scale and its bias."""
    f = OF_ITSELF[name][0]
    images = normal(20, *IMAGES)
    network = networks.wrap(jax.tree_util.Partial(f, PARAMETERS))
    output, activations = features.capture(network, select=["norm"])(images)
    (norm,) = activations.values()
    np.testing.assert_array_equal(norm, output)
