"""Projection of kernels onto a bound, once and behind every step of training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from stabjax import lipschitz
from tests.lipschitz.helpers import KINDS, hard_matrix, norm, operator, random_array


def test_constrained_is_what_an_optimizer_finds(x64):
    """Frank and Wolfe's method on the matrices inside the bound, and its gap, which is 0 at the closest alone."""
    for seed, (shape, bound) in enumerate([((5, 4), 1.5), ((3, 6), 2.0), ((4, 4), 0.5)]):
        kernel = random_array(seed, *shape, dtype=float)
        found = np.asarray(lipschitz.constrain(kernel, bound))

        def corner(direction):
            u, _, v = np.linalg.svd(direction, full_matrices=False)
            return bound * u @ v

        x = np.zeros(shape)
        for _ in range(2000):
            step = corner(kernel - x) - x
            x = x + np.clip(np.sum((kernel - x) * step) / np.sum(step**2), 0, 1) * step
        assert np.linalg.norm(kernel - found) <= np.linalg.norm(kernel - x) + 1e-9
        np.testing.assert_allclose(found, x, atol=0.02)
        gap = np.sum((kernel - found) * (corner(kernel - found) - found))
        assert abs(gap) < 1e-9


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_constrained_is_inside_and_stays(dtype):
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(np.stack([hard_matrix(KINDS[k % len(KINDS)], rng, (7, 5)) for k in range(500)]), dtype)
    bounds = rng.uniform(0, 3, 500).astype(np.float32)
    constrain = jax.jit(jax.vmap(lipschitz.constrain))
    once = constrain(kernels, bounds)
    assert once.dtype == dtype
    before, after = (norm(np.asarray(z, float)) for z in (kernels, once))
    assert np.all(after <= bounds * (1 + 1e-6))
    outside = before > bounds * (1 + 1e-6)
    assert np.all(after[outside] <= bounds[outside])
    assert np.all(after[outside] >= (0.98 if dtype == jnp.bfloat16 else 0.9999) * bounds[outside])
    np.testing.assert_array_equal(once[~outside], kernels[~outside])
    np.testing.assert_array_equal(constrain(once, bounds), once)


def test_exactly_at_the_bound(x64):
    kernel = random_array(0, 5, 3, dtype=float)
    true = norm(kernel)
    for bound in (0.3 * true, 2 * true):
        found = lipschitz.constrain(kernel, bound, exact=True)
        np.testing.assert_allclose(norm(found), bound, rtol=1e-13)
        np.testing.assert_allclose(lipschitz.constrain(found, bound, exact=True), found, atol=1e-13)
    # No matrix of that norm is closer: norms differ by at most the distance.
    np.testing.assert_allclose(np.linalg.norm(found - kernel), true, rtol=1e-12)
    np.testing.assert_allclose(norm(lipschitz.constrain(np.zeros((3, 2)), 2.0, exact=True)), 2)


def test_bound_zero_gives_zero():
    for kernel in (random_array(0, 4, 3), random_array(0, 3, 2, 2), np.zeros((3, 2, 2), np.float32)):
        for exact in (False, True):
            np.testing.assert_array_equal(lipschitz.constrain(kernel, 0.0, exact=exact), 0)
    assert np.all(np.isnan(lipschitz.constrain(np.zeros((3, 2, 2), np.float32), 1.0, exact=True)))


def test_constrained_convolutions():
    kernel = random_array(0, 3, 3, 2, 3)
    once = lipschitz.constrain(kernel, 1.5, size=6)
    found = norm(operator(np.asarray(once), 6))
    assert 1.3 < found <= float(lipschitz.conv(once, 6).value) <= 1.5
    np.testing.assert_allclose(once / kernel, (once / kernel)[0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(lipschitz.constrain(once, 1.5, size=6), once)
    np.testing.assert_allclose(
        lipschitz.conv(lipschitz.constrain(kernel, 20, exact=True, size=6), 6).value, 20, rtol=1e-6
    )
    np.testing.assert_array_equal(lipschitz.constrain(kernel, 100.0, size=6), kernel)


class Small(nnx.Module):
    """A convolution and a dense layer."""

    def __init__(self, *, rngs, dtype):
        self.conv = nnx.Conv(1, 3, (3, 3), strides=2, padding=1, rngs=rngs, param_dtype=dtype)
        self.out = nnx.Linear(27, 4, rngs=rngs, param_dtype=dtype)

    def __call__(self, x):
        return self.out(jnp.reshape(nnx.relu(self.conv(x)), (len(x), -1)))


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("relaxed_promotion")
def test_training_stays_inside(dtype):
    graph, params = nnx.split(Small(rngs=nnx.Rngs(0), dtype=dtype), nnx.Param)
    x, labels = random_array(0, 32, 6, 6, 1), np.arange(32) % 4
    bounds = {"conv": 0.7, "out": 2.5}
    known = {"conv": {"size": 6, "stride": 2}}
    keep = [
        lipschitz.keep(bound, select=lambda path, _, name=name: path == f"{name}/kernel", **known.get(name, {}))
        for name, bound in bounds.items()
    ]
    optimizer = optax.chain(optax.adam(0.3), *keep)

    def loss(params):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), labels))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), nnx.to_pure_dict(params)

    _, seen = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=60))(params)
    seen = jax.tree.map(lambda leaf: np.asarray(leaf, float), seen)
    operators = np.stack([operator(kernel, 6, stride=2) for kernel in seen["conv"]["kernel"]])
    for name, matrices in {"conv": operators, "out": seen["out"]["kernel"]}.items():
        norms = norm(matrices)
        assert np.all(norms <= bounds[name]), name
        assert norms[-1] >= (0.7 if name == "conv" else 0.93) * bounds[name], name
    assert np.abs(seen["out"]["bias"]).max() > 0.5


@pytest.mark.usefixtures("relaxed_promotion")
def test_updates_that_stay_inside_pass_untouched():
    one = np.float32(1)
    params = {"a": np.eye(3, dtype=np.float32), "bias": np.full(3, one), "table": np.arange(6).reshape(2, 3)}
    small = {"a": np.full((3, 3), -0.1 * one), "bias": np.full(3, one), "table": np.zeros((2, 3), np.int32)}
    params, small = jax.tree.map(jnp.asarray, (params, small))
    transformation = lipschitz.keep(2.0)
    updates, state = transformation.update(small, transformation.init(params), params)
    assert jax.tree.leaves(state) == []
    for name, update in small.items():
        np.testing.assert_array_equal(updates[name], update)
    far = transformation.update({**small, "a": 1e4 * jnp.ones((3, 3))}, state, params)[0]["a"]
    assert 1.9999 < norm(np.asarray(params["a"] + far, float)) <= 2
    outside = {**params, "a": 1e6 * jnp.ones((3, 3))}
    back = transformation.update(jax.tree.map(jnp.zeros_like, small), state, outside)[0]["a"]
    assert norm(np.asarray(outside["a"] + back, float)) <= 2
    with pytest.raises(ValueError, match="got no params"):
        transformation.update(small, state)


@pytest.mark.usefixtures("relaxed_promotion")
def test_kernels_at_the_bound_by_their_rounded_norm():
    """The norm that single precision finds may be below the true one; what is kept is inside all the same."""
    kernels = random_array(0, 300, 8, 8)
    bounds = np.asarray(jax.vmap(lambda kernel: lipschitz.dense(kernel, method="exact").value)(kernels))
    assert np.mean(norm(kernels.astype(float)) > bounds) > 0.1
    keep = jax.vmap(lambda kernel, bound: lipschitz.keep(bound).update(jnp.zeros_like(kernel), (), kernel)[0])
    kept = kernels + np.asarray(keep(kernels, bounds))
    assert np.all(norm(kept.astype(float)) <= bounds)


DENSE = random_array(0, 3, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lipschitz.constrain(DENSE, -1.0), "expected a bound >= 0, got -1"),
        (lambda: lipschitz.constrain(DENSE, np.nan), "expected a bound >= 0, got nan"),
        (lambda: lipschitz.constrain(DENSE, np.ones(2)), "a scalar bound|bound"),
        (lambda: lipschitz.constrain(DENSE[0], 1.0), "inputs, outputs"),
        (lambda: lipschitz.keep(-1.0), "expected a bound >= 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_traced_negative_bound_is_not_a_number():
    assert np.all(np.isnan(jax.jit(lipschitz.constrain)(DENSE, -1.0)))
