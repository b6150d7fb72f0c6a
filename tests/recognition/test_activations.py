"""The kind ``activation``: calls by their names, and elementwise regions of one origin that are not affine."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from tests.recognition import first_layer, recognized
from tests.sample_networks import conv

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

CALLS = {
    "relu": (lambda p, x: jax.nn.relu(x), "relu_0=activation"),
    "relu6": (lambda p, x: jax.nn.relu6(x) + 1, "relu6_0=activation"),
    "silu": (lambda p, x: jax.nn.silu(x), "silu_0=activation"),
    "elu": (lambda p, x: jax.nn.elu(x) * 2, "elu_0=activation"),
    "softplus": (lambda p, x: jax.nn.softplus(x), "softplus_0=activation"),
    "a gain behind it": (lambda p, x: jax.nn.softplus(x) * p["color"]["gain"], "softplus_0=activation color=other"),
}

REGIONS = {
    "one primitive": (lambda p, x: jnp.tanh(x), "tanh_0=activation"),
    "gelu": (lambda p, x: jax.nn.gelu(x), "gelu_0=activation"),
    "gelu by the error function": (lambda p, x: jax.nn.gelu(x, approximate=False), "gelu_0=activation"),
    "sigmoid": (lambda p, x: jax.nn.sigmoid(x), "sigmoid_0=activation"),
    "product with itself": (lambda p, x: x * jax.nn.sigmoid(x), "silu_0=activation"),
    "powers": (lambda p, x: x**2 + 3 * x, "integer_pow_0=activation"),
    "quotient": (lambda p, x: 1 / (1 + jnp.exp(-x)), "activation_0=activation"),
    "choice": (lambda p, x: jnp.where(x > 0.1, x - 0.1, jnp.where(x < -0.1, x + 0.1, 0.0)), "activation_0=activation"),
    "choice by a constant": (lambda p, x: jnp.where(p["color"]["gain"] > 0, x, 0), "color=other"),
    "several in one": (lambda p, x: jnp.sin(jnp.tanh(x) * 2 + 1), "activation_0=activation"),
    "learned slope": (lambda p, x: jnp.where(x > 0, x, p["slope"] * x), "slope=activation"),
    "numbers belong to it": (
        lambda p, x: conv(jnp.tanh(x) * 2 + 1, p["conv"]["kernel"]),
        "tanh_0=activation conv=conv",
    ),
    "parameters behind it": (
        lambda p, x: conv(jnp.tanh(x) * 2 + p["color"]["shift"] + 1, p["conv"]["kernel"]),
        "tanh_0=activation color=other conv=conv",
    ),
    "parameters in between": (
        lambda p, x: jnp.sin(jnp.tanh(x) * p["color"]["gain"] + p["color"]["shift"]),
        "color=activation",
    ),
    "parameters alone": (lambda p, x: x * p["color"]["gain"] + p["color"]["shift"], "color=other"),
    "numbers alone": (lambda p, x: x * 0.5 + 1, ""),
    "used on the way": (
        lambda p, x: (lambda y: (y.mean((1, 2)), jnp.sin(y)))(jnp.tanh(x)),
        "tanh_0=activation avg_pool_0=pool activation_0=activation",
    ),
    "times one, used twice": (
        lambda p, x: (lambda y: (y.mean((1, 2)), conv(y * 1.0 + 0.0, p["conv"]["kernel"])))(jnp.tanh(x)),
        "tanh_0=activation avg_pool_0=pool conv=conv",
    ),
    "views do not end it": (lambda p, x: (lambda y: y * jax.nn.sigmoid(y))(x.reshape(2, -1, 3)), "silu_0=activation"),
    "a view is no tap": (
        lambda p, x: conv(jnp.tanh(x.reshape(2, -1)).reshape(x.shape), p["conv"]["kernel"]),
        "tanh_0=activation conv=conv",
    ),
    "cut and joined": (lambda p, x: jnp.concatenate([x, jnp.tanh(x)], -1), "tanh_0=activation"),
    "two origins": (lambda p, x: jnp.where(x > 0, x, x @ jnp.eye(3)), "product_0=other select_n_0=other"),
    "a gate": (
        lambda p, x: (lambda a, b: a * jax.nn.sigmoid(b))(*jnp.split(first_layer(p, x), 2, -1)),
        "conv=conv sigmoid_0=activation gate_0=other",
    ),
    "no gradient": (lambda p, x: lax.stop_gradient(jnp.tanh(x)).astype(jnp.bfloat16) * 2, "tanh_0=activation"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_by_name(name):
    f, expected = CALLS[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", REGIONS)
def test_elementwise_regions(name):
    f, expected = REGIONS[name]
    assert recognized(f) == expected
