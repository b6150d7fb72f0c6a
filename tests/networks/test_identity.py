"""What objects hold and what programs compute, as values that compare."""

import functools

import beartype
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from stabjax import features, models, networks
from stabjax._jaxpr import of_object
from stabjax.probe._windows import pass_window_quickly
from tests.networks.opaque_models import KEY, Shared, kernels, objects, run, stable
from tests.sample_networks import conv

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

IMAGES = (6, 6, 6, 3)
checked = jaxtyping.jaxtyped(typechecker=beartype.beartype)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), IMAGES)


def is_traced_at_every_call(model):
    adapter = networks.wrap(model).adapter
    return adapter.opaque or adapter.foreign


# What an object holds


def test_equal_holdings_compare_equal_and_changes_are_seen():
    def functions(value, other):
        cell = [value]
        return lambda x, y=other: x * cell[0] + y

    a, b = jnp.ones(2), jnp.zeros(2)
    one, same, changed, defaults = functions(a, 1), functions(a, 1), functions(b, 1), functions(a, 2)
    assert of_object(one) == of_object(same)
    assert hash(of_object(one)) == hash(of_object(same))
    assert of_object(one) != of_object(changed)
    assert of_object(one) != of_object(defaults)
    table = np.zeros(100)
    before = of_object({"table": table})
    assert before == of_object({"table": np.zeros(100)})
    table[3] = 1
    assert before != of_object({"table": table})
    cycle = []
    cycle.append(cycle)
    assert of_object(cycle) == of_object(cycle)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert of_object(deep) != of_object(deep)  # too deep to be followed
    assert [of_object(value) == of_object(other) for value, other in ((1, True), (1, 1.0), (0.0, -0.0))] == [False] * 3
    assert of_object(float("nan")) == of_object(float("nan"))


def test_an_array_that_is_gone_is_equal_to_none():
    array = jnp.arange(3.0)
    before = of_object(array)
    assert before == of_object(array)
    del array
    assert before != of_object(jnp.arange(3.0))


@jax.custom_jvp
def doubled(x):
    return 2 * x


SLOPE = [2.0]
doubled.defjvp(lambda primals, tangents: (doubled(*primals), SLOPE[0] * tangents[0]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled(factor, x):
    return x


scaled.defvjp(lambda factor, x: (x, None), lambda factor, _, cotangent: (factor * cotangent,))


def test_programs_compare_by_what_they_compute():
    def identity(f):
        return jax.tree.structure(features.trace(f, jnp.ones((2, 3))))

    alike = [
        jax.nn.relu,
        jax.nn.gelu,
        jax.nn.silu,
        lambda x: jax.nn.relu6(x) * 0.5,
        lambda x: jax.checkpoint(jnp.sin)(x),
        lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
        lambda x: jax.vmap(jax.nn.relu)(x) + jax.random.normal(KEY, x.shape),
        doubled,
        functools.partial(scaled, 3.0),
    ]
    found = [identity(f) for f in alike]
    assert [identity(f) for f in alike] == found
    assert len(set(found)) == len(found)
    assert identity(functools.partial(scaled, 4.0)) != found[-1]
    before = identity(doubled)
    SLOPE[0] = 3.0
    assert identity(doubled) != before
    SLOPE[0] = 2.0
    assert identity(doubled) == before
    assert identity(lambda x: 2.0 * x) != identity(lambda x: 3.0 * x)
    assert identity(lambda x: jnp.roll(x, 1, 0)) != identity(lambda x: jnp.roll(x, 1, 1))


def test_arrays_inside_of_jitted_functions_are_lifted(images):
    def jitted(seed):
        first, second = kernels(seed)

        @jax.jit
        def inner(x):
            with jax.named_scope("head"):
                return x @ second

        @jax.jit
        def outer(x):
            return inner(jax.nn.relu(conv(x, first)).mean((1, 2)))

        return outer

    (arrays, one), (others, other) = (jax.tree.flatten(features.trace(jitted(seed), images)) for seed in (0, 5))
    assert one == other
    assert sorted(array.shape for array in arrays) == [(3, 3, 3, 4), (4, 5)]
    outputs = jax.tree.unflatten(one, others)(images)
    np.testing.assert_allclose(outputs, run(*kernels(5), images), rtol=1e-4, atol=1e-5)
    stable(jitted(0), images)
    compiled = pass_window_quickly._cache_size()
    expected = stable(networks.wrap(jax.tree_util.Partial(run, *kernels(5))), images)
    np.testing.assert_allclose(stable(jitted(5), images), expected, rtol=1e-4)
    assert pass_window_quickly._cache_size() <= compiled + 1
    filtered = eqx.filter_jit(Shared(kernels(0)[0], lambda x: x.mean((1, 2)) @ kernels(0)[1]))
    np.testing.assert_allclose(features.capture(filtered)(images)[0], run(*kernels(0), images), rtol=1e-4, atol=1e-5)


def test_another_shape_than_it_was_traced_for_is_refused(images):
    model, change = objects()
    user = jax.jit(lambda traced, x: traced(x))
    for seed in (0, 5):
        traced = features.trace(model, images)
        np.testing.assert_allclose(user(traced, images), run(*kernels(seed), images), rtol=1e-4, atol=1e-5)
        for other in (images[:2], images.astype(jnp.float16)):
            with pytest.raises(ValueError, match=r"expected a batch of float32 \(6, 6, 6, 3\).*: trace it"):
                user(traced, other)
        change()


def test_a_check_of_types_is_seen_through(images):
    """A checker wraps every function in one that holds lists of its own; what it wraps is looked at instead."""

    class Checked(nnx.Module):
        def __init__(self, act):
            self.dense = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            self.act = act

        @checked
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.act(self.dense(x).mean((1, 2)))

    held = [2.0]

    @checked
    def hides(x: jax.Array) -> jax.Array:
        return held[0] * x

    def double(x: jax.Array) -> jax.Array:
        return 2 * x

    for check in (checked, beartype.beartype):
        assert not networks.wrap(Checked(check(double))).adapter.opaque
        assert of_object(check(double)) == of_object(double)
    before = of_object(hides)
    assert before == of_object(hides)
    held[0] = 3.0
    assert of_object(hides) != before
    assert networks.wrap(Checked(hides)).adapter.opaque
    model = models.build("VGG11bn", rngs=nnx.Rngs(0), width=0.1)
    assert not is_traced_at_every_call(model)
