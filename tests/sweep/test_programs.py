"""Which sweeps share a compiled program: those that no function could tell apart, and no others."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from stabjax import sweep
from stabjax.sweep import _cache_key, _program
from tests.sweep.helpers import compilations, product

AXES = {"a": [1.0, 2.0]}
FACTOR = 2.0
HELD = [1.0]


@dataclasses.dataclass(frozen=True)
class Options:
    value: object


@dataclasses.dataclass(frozen=True)
class Cached:
    value: object
    found: dict = dataclasses.field(default_factory=dict, compare=False)


Pair = collections.namedtuple("Pair", "value other")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    weights: jax.Array
    name: object = dataclasses.field(metadata={"static": True})

    def __call__(self, key, a):
        return a * self.weights * FACTOR


class Holder:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, key, a):
        return a * self.factor

    def method(self, key, a):
        return a * self.factor


def value(f, *args, **options):
    return sweep.run(f, *args, key=jax.random.key(0), **options).value.values.ravel().tolist()


# What is static


@pytest.mark.parametrize("wrap", [lambda v: (v,), lambda v: ((v,), "x"), Options, Cached, lambda v: Pair(v, 0)])
def test_equal_values_are_told_apart_and_others_not(wrap):
    values = [1, 1.0, True, np.float32(1), np.float64(1), 1 + 0j, 0.0, -0.0, np.float32(0), np.float32(-0.0), 0j, -0j]
    keys = [_cache_key.cache_key(wrap(v)) for v in values]
    assert len(set(keys)) == len(values)
    assert keys == [_cache_key.cache_key(wrap(v)) for v in values]
    assert _cache_key.cache_key(wrap(float("nan"))) == _cache_key.cache_key(wrap(float("nan")))
    assert _cache_key.cache_key(wrap(frozenset({1, 2}))) == _cache_key.cache_key(wrap(frozenset({2, 1})))
    assert _cache_key.cache_key(wrap(frozenset({1}))) != _cache_key.cache_key(wrap(frozenset({True})))


def test_every_static_value_has_its_own_program():
    def f(key, v):
        v = v.value if isinstance(v, Options) else v
        return jnp.float32({"1": 1, "1.0": 2, "True": 3, "0.0": 4, "-0.0": 5, "nan": 6}[str(v[0])])

    values = [(1,), (1.0,), (True,), Options((0.0,)), Options((-0.0,)), (float("nan"),)]
    assert value(f, {"v": values}, static="v") == [1, 2, 3, 4, 5, 6]
    with compilations() as compiled:
        assert value(f, {"v": [(float("nan"),)]}, static="v") == [6]
    assert not compiled


def test_every_bound_value_has_its_own_program():
    def f(key, a, *, v):
        return a * jnp.copysign(1.0, v)

    for v, expected in ((0.0, [1.0, 2.0]), (-0.0, [-1.0, -2.0])):
        assert value(functools.partial(f, v=v), AXES) == expected


def test_static_parts_of_a_pytree_have_their_own_program():
    class Named(Node):
        def __call__(self, key, a):
            return a * self.weights * (10 if self.name is True else 20)

    jax.tree_util.register_dataclass(Named, ["weights"], ["name"])
    one = jnp.ones(())
    assert [value(Named(one, name), {"a": [1.0]}) for name in (1, True)] == [[20], [10]]


# What a function reads


def reads_global(key, a):
    return jnp.stack([a * FACTOR for _ in range(2)])[0] + len(HELD)


def closure():
    factor, held = 2.0, [{}]

    def rebind(new):
        nonlocal factor
        factor = new

    def f(key, a):
        return a * factor + len(held) - 1

    return f, rebind


def test_a_new_global_is_seen(monkeypatch, tmp_path):
    options = {"path": tmp_path / "a"}
    assert value(reads_global, AXES, **options) == [3, 5]
    assert value(Node(jnp.ones(()), "x"), AXES) == [2, 4]
    three = 3 * jnp.ones(())
    with compilations() as compiled:
        assert value(reads_global, AXES, **options) == [3, 5]
        assert value(Node(three, "x"), AXES) == [6, 12]
    assert not compiled
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert value(reads_global, AXES) == [4, 7]
    assert value(Node(jnp.ones(()), "x"), AXES) == [3, 6]
    with pytest.raises(ValueError, match=r"\(program: "):
        value(reads_global, AXES, **options)


@pytest.mark.parametrize("wrap", [lambda f: f, functools.partial, jax.tree_util.Partial])
def test_a_new_variable_of_a_closure_is_seen(wrap):
    f, rebind = closure()
    assert value(wrap(f), AXES) == [2, 4]
    with compilations() as compiled:
        assert value(wrap(f), AXES) == [2, 4]
    assert not compiled
    rebind(5.0)
    assert value(wrap(f), AXES) == [5, 10]


@pytest.mark.parametrize("of", [lambda holder: holder, lambda holder: holder.method])
def test_a_new_attribute_is_seen(of):
    holder = Holder(2.0)
    assert value(of(holder), AXES) == [2, 4]
    with compilations() as compiled:
        assert value(of(holder), AXES) == [2, 4]
    assert not compiled
    holder.factor = 3.0
    assert value(of(holder), AXES) == [3, 6]


@dataclasses.dataclass(frozen=True)
class Times:
    factor: float

    def __call__(self, key, a):
        return a * self.factor


def test_callables_that_are_equal_share_a_program():
    assert value(Times(float("2.5")), AXES) == [2.5, 5]
    with compilations() as compiled:
        assert value(Times(float("2.5")), AXES) == [2.5, 5]
    assert not compiled
    assert value(Times(3.5), AXES) == [3.5, 7]


def test_variables_that_are_not_bound_yet_are_no_harm():
    def f(key, a):
        return a if a.shape == () else later

    assert value(f, AXES) == [1, 2]
    if FACTOR < 0:
        later = 1.0


def test_any_name_of_a_parameter_can_be_bound():
    def f(key, a, *, func, f, self):
        return a * func + f + self

    assert value(functools.partial(f, func=2.0, f=np.float32(1), self=1), AXES) == [4, 6]


# What a program does


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_cells_of_the_generator_of_xla_are_paired(impl):
    key = jax.random.key(0, impl=impl)
    expected = [float(jax.random.normal(jax.random.fold_in(key, seed))) for seed in range(4)]
    for chunk in (5, None):
        found = sweep.run(lambda key, a: jax.random.normal(key), {"a": [1.0, 2.0, 3.0]}, key=key, seeds=4, chunk=chunk)
        np.testing.assert_array_equal(found.value, np.broadcast_to(np.float32(expected), (3, 4)))


def name_outputs(**values):
    """In the order they are named in, which a dictionary does not keep in JAX."""
    return collections.namedtuple("Outputs", values)(**values)


def test_outputs_are_known_by_name_and_weak_types_are_no_difference():
    def f(key, k):
        return name_outputs(x=1.0, y=2.0) if k == "a" else name_outputs(y=jnp.float32(2), x=jnp.float32(1))

    found = sweep.run(f, {"k": ["a", "b"]}, key=jax.random.key(0), static="k")
    assert found.x.values.ravel().tolist() == [1, 1]
    assert found.y.values.ravel().tolist() == [2, 2]


@pytest.mark.parametrize("traffic", [1.0, 2.0**28, 2.0**30])
def test_outputs_without_elements(monkeypatch, tmp_path, traffic):
    monkeypatch.setattr(_program, "bytes_accessed", lambda *args: traffic)

    def f(key, a):
        return {"double": 2 * a, "none": jnp.zeros((3, 0))}

    options = {"key": jax.random.key(0), "seeds": 2, "chunk": 12, "path": tmp_path / "a"}
    found = sweep.run(f, {"a": np.arange(6.0)}, **options)
    assert found.none.shape == (6, 2, 3, 0)
    assert bool(found.valid.all())
    assert found.double[:, 1].values.tolist() == [0, 2, 4, 6, 8, 10]
    xarray.testing.assert_identical(sweep.run(f, {"a": np.arange(6.0)}, **options), found)


def test_arrays_go_to_the_device_once(monkeypatch):
    seen = []
    original = _program.run_chunk

    class Spy:
        lower = original.lower

        def __call__(self, arrays, *args, **kwargs):
            seen.extend(arrays)
            return original(arrays, *args, **kwargs)

    monkeypatch.setattr(_program, "run_chunk", Spy())
    sweep.run(functools.partial(product, weights=np.ones(3), size=1), AXES, key=jax.random.key(0), chunk=1)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    assert isinstance(seen[0], jax.Array)
