"""Bounds of functions of single entries that are hard to bound: hidden slopes, underflow, random compositions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.lipschitz.helpers import bound_of

HIDDEN = {
    "in a single cell": (lambda x: jnp.clip((x - 1) * 1e4, 0, 1e-9) * 1e9, 1e13),
    "far away": (lambda x: 3 * jax.nn.relu(x - 2.0**110), 3.0),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_slopes_that_are_easily_missed(name, x64, relaxed_promotion):
    function, expected = HIDDEN[name]
    assert expected <= bound_of(function, (1, 1)) <= expected * 1.01


def test_a_slope_that_underflows(x64):
    """Products of 1e-200 are zero in double precision; the slope is one."""
    assert bound_of(lambda x: x * 1e-200 * 1e-200 * 1e200 * 1e200, (1, 1)) >= 1


PARTS = (
    jnp.tanh, jnp.abs, jnp.sin, jax.lax.erf, jnp.arcsinh, jax.nn.sigmoid, jax.nn.relu, jnp.log1p, jnp.expm1,
    lambda x: jnp.sqrt(1e-3 + x * x), lambda x: jnp.exp(-x * x), lambda x: jnp.power(1 + jnp.abs(x), -1.3),
    lambda x: jnp.where(x > 0.5, x, 0.5 * x + 0.25), lambda x: 1 / (2 + x), lambda x: jnp.clip(30 * x, -1, 2),
    lambda x: jnp.sign(x) * x * x,
)  # fmt: skip


def test_bounds_of_random_functions(x64, relaxed_promotion):
    """Never below a slope that was seen, beyond its rounding, on even and on logarithmic grids."""
    rng = np.random.default_rng(0)
    far = np.geomspace(1e-5, 1e4, 2000)
    x = np.sort(np.concatenate([-far, far, np.linspace(-8, 8, 4000)]))
    bounded = 0
    for _ in range(10):
        first, second, last = (PARTS[k] for k in rng.integers(len(PARTS), size=3))
        function = lambda x, f=first, g=second, h=last: h(g(f(x)) - 0.7 * f(x))  # noqa: E731
        try:
            bound = bound_of(function, (1, 1))
        except ValueError:
            continue
        bounded += 1
        y = np.asarray(jax.jit(function)(x))
        seen = (np.abs(np.diff(y)) - 1e-14 * (1 + np.abs(y[1:]))) / np.diff(x)
        assert bound * (1 + 1e-9) >= seen.max()
    assert bounded >= 5
