"""Bounds of whole networks and local norms: against full Jacobians, sampled slopes, and each other."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import lipschitz
from tests.guests import conv, normal

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)


def bound_of(f, shape=(2, 8, 8, 3)):
    return float(lipschitz.network(f, shape).value)


def norm_of(f, shape):
    """The exact norm of a linear function of one image."""
    jacobian = jax.jacobian(lambda x: jnp.ravel(f(x[None])))(jnp.zeros(shape))
    return np.linalg.norm(np.asarray(jacobian, np.float64).reshape(len(jacobian), -1), 2)


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


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_of_activations(name, x64):
    function, expected = SLOPES[name]
    found = bound_of(function, (1, 5))
    t = jnp.linspace(-20, 20, 400_001)
    seen = float(jnp.max(jnp.abs(jnp.diff(function(t))) / (t[1] - t[0])))
    assert found >= seen * (1 - 1e-9)
    np.testing.assert_allclose(found, expected, rtol=2e-4 if name != "root" else 5e-3)


REFUSED = {
    "exponential": (jnp.exp, "`exp`"),
    "square": (jnp.square, "`square`"),
    "cube": (lambda x: x**3, "`integer_pow`"),
    "product with itself": (lambda x: x * x, "`mul`"),
    "root at zero": (lambda x: jnp.sqrt(jnp.abs(x)), "`abs, sqrt`"),
    "inverse": (lambda x: 1 / x, "`div`"),
    "step": (lambda x: (x > 0).astype(x.dtype), "`gt, convert_element_type`"),
    "jump": (lambda x: jnp.where(x > 0.3, x + 1, x), "`gt, add, select_n`"),
    "jump at zero": (lambda x: jnp.where(x >= 0, x + 1e-3, x), "`ge, add, select_n`"),
    "rounding": (jnp.round, "`round`"),
    "integers": (lambda x: x.astype(int).astype(x.dtype), "`convert_element_type`"),
    "softmax": (jax.nn.softmax, "`exp`.*softmax"),
    "gate": (lambda x: jax.nn.sigmoid(x @ normal(0, 3, 3)) * (x @ normal(1, 3, 3)), "`mul` of several.*gate"),
    "attention": (lambda x: jnp.einsum("bhwc,bijc->bhwij", x, x), "`dot_general` of several.*attention"),
    "normalised": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), "statistics"),
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
