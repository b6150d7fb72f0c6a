"""The unsafe operations, where they could go wrong."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from stabjax._numerics import centered, row_sum, safe_norm, safe_ratio

SEEDS = st.integers(0, 2**31)


def test_norm_has_a_gradient_at_zero():
    x = np.array([3.0, 4.0], np.float32)
    assert safe_norm(x) == 5
    np.testing.assert_allclose(jax.grad(safe_norm)(x), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(safe_norm)(jnp.zeros(3)), np.zeros(3))


def test_ratio_is_undefined_where_the_denominator_is_not_positive():
    bottom = jnp.array([2.0, 0.0, -1.0, jnp.nan])
    np.testing.assert_array_equal(safe_ratio(jnp.ones(4), bottom), [0.5, np.nan, np.nan, np.nan])
    slope = jax.grad(lambda bottom: safe_ratio(jnp.ones(4), bottom)[0])(bottom)
    np.testing.assert_array_equal(slope, [-0.25, 0, 0, 0])


def test_row_sum(key):
    x = jax.random.normal(key, (5, 7, 3))
    np.testing.assert_allclose(row_sum(x), np.asarray(x).sum((1, 2)), rtol=1e-5)
    # A chain of a million additions in single precision would be off by percents.
    np.testing.assert_allclose(row_sum(jnp.full((2, 2**20), 0.1)), 0.1 * 2**20, rtol=1e-5)


@hypothesis.given(SEEDS)
def test_centered_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(9, 4, 3)).astype(np.float32) + 3, rng.integers(0, 3, 9).astype(np.float32)
    weights[0] += 1
    mean, distances = centered(x, weights=weights)
    expected = np.average(x, axis=0, weights=weights)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    np.testing.assert_allclose(distances[weights > 0], np.square(x - expected).sum((1, 2))[weights > 0], rtol=1e-4)


def test_a_row_without_weight_may_hold_anything():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    weights = np.array([0, 1, 1, 1], np.float32)
    for value in (0, np.nan, np.inf):
        x[0] = value
        mean, distances = centered(x, weights=weights)
        np.testing.assert_allclose(mean, x[1:].mean(0))
        np.testing.assert_allclose(distances[1:], [27, 0, 27])


def test_equal_rows_have_no_distance_at_all(key):
    row = jax.random.normal(key, (1, 50)) * 1e3
    mean, distances = centered(jnp.tile(row, (7, 1)))
    np.testing.assert_array_equal(distances, np.zeros(7))
    np.testing.assert_array_equal(mean, row[0])


def test_a_mean_far_above_the_spread_costs_no_digits(key):
    """Also where the first row, by which the others are shifted, is far from all of them."""
    x = np.asarray(jax.random.normal(key, (64, 40)), np.float64)
    x[0] -= 1000
    exact = np.square(x - x.mean(0)).sum(1)
    np.testing.assert_allclose(centered(x.astype(np.float32))[1], exact, rtol=1e-3)
    _, distances = centered((x[1:] + 1000).astype(np.float32))
    np.testing.assert_allclose(distances, np.square(x[1:] - x[1:].mean(0)).sum(1), rtol=1e-3)
