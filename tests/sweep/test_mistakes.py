"""What cannot be swept is named."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import sweep
from tests.sweep.helpers import ok


def needs_value(key, a):
    return 1.0 if a > 0 else 2.0


def raises(key, a):
    raise ZeroDivisionError("of my own")


@pytest.mark.parametrize(
    ("f", "axes", "options", "error", "match"),
    [
        (ok, {"a": [[1.0, 2.0], [3.0]]}, {}, ValueError, "axis 'a' .* unequal lengths"),
        (ok, {"a": [[1.0], [3.0]]}, {}, ValueError, r"axis 'a' in one dimension, got shape \(2, 1\)"),
        (ok, {"a": 1.0}, {}, ValueError, r"axis 'a' in one dimension, got shape \(\)"),
        (ok, {"a": []}, {}, ValueError, "at least one value on axis 'a'"),
        (ok, {"a": []}, {"static": "a"}, ValueError, "at least one value on axis 'a'"),
        (ok, {"a": ["x"]}, {}, TypeError, "numbers on axis 'a', .* name the axis in static"),
        (ok, {"a": [None]}, {}, TypeError, "numbers on axis 'a'"),
        (ok, {"a": [2**40]}, {}, ValueError, "fit int32 on axis 'a'"),
        (ok, {"a": [1e300]}, {}, ValueError, "fit float32 on axis 'a'"),
        (ok, {"a": [1.0, 1e-300]}, {}, ValueError, "fit float32 on axis 'a'"),
        (ok, {"a": [1j]}, {}, TypeError, "real ones of at most 64 bits, got complex128"),
        (ok, {"a": [1.0]}, {"config": {"p": Path("x")}}, TypeError, r"lists and mappings only: got PosixPath\('x'\)"),
        (ok, {"a": [1.0]}, {"config": {"p": [1j]}}, TypeError, "lists and mappings only: got 1j of type complex"),
        (ok, {"a": [[1, 2]]}, {"static": "a"}, TypeError, "hashable values on the static axis 'a', got list"),
        (ok, {"a": "xyz"}, {"static": "a"}, TypeError, "list of the values of axis 'a', got str"),
        (ok, {"a": [1.0]}, {"static": "b"}, ValueError, r"static to name some of the axes \['a'\], got \['b'\]"),
        (ok, {"a": [1.0]}, {"static": ["a", "a"]}, ValueError, "once"),
        (ok, {"seed": [1.0]}, {}, ValueError, "another name for the axis 'seed'"),
        (ok, {"key": [1.0]}, {}, ValueError, "another name for the axis 'key'"),
        (ok, {1: [1.0]}, {}, TypeError, "axes"),
        (ok, {"b": [1.0]}, {}, TypeError, r"function \(key, b\), got tests.sweep.helpers.ok\(key, a\): missing"),
        (ok, {"a": [1.0], "b": [1.0]}, {}, TypeError, "unexpected keyword argument 'b'"),
        (ok, {}, {}, TypeError, "missing a required argument: 'a'"),
        (functools.partial(ok, a=1.0), {"a": [1.0]}, {}, ValueError, r"every name once, got \['a'\]"),
        (lambda key, a: {"a": a}, {"a": [1.0]}, {}, ValueError, "output 'a', which is also the name of an axis"),
        (
            lambda key, a: {"valid": a},
            {"a": [1.0]},
            {},
            ValueError,
            "output 'valid', which is also the name of a sweep",
        ),
        (lambda key, a: {"b": {"c": a}, "b.c": a}, {"a": [1.0]}, {}, ValueError, "the name of another"),
        (lambda key, a: None, {"a": [1.0]}, {}, ValueError, "returns none"),
        (
            lambda key, x_dim_1: {"x": jnp.ones((2, 3))},
            {"x_dim_1": [1.0]},
            {},
            ValueError,
            r"dimension of the output 'x', got \['x_dim_1'\]",
        ),
        (
            lambda key, a: {"x": jnp.ones(2), "x_dim_0": a},
            {"a": [1.0]},
            {},
            ValueError,
            r"dimension of the output 'x', got \['x_dim_0'\]",
        ),
        (
            lambda key, a: jnp.ones(a),
            {"a": [1, 2]},
            {"static": "a"},
            ValueError,
            "same names, shapes .* sizes one by one",
        ),
        (needs_value, {"a": [1.0]}, {}, TypeError, "JAX can trace, .* name an axis in static"),
        (lambda key, a: np.sin(a), {"a": [1.0]}, {}, TypeError, "JAX can trace"),
        (raises, {"a": [1.0]}, {}, ZeroDivisionError, "of my own"),
        (ok, {"a": [1.0]}, {"seeds": 0}, ValueError, "seeds as a number of at least 1, got 0"),
        (ok, {"a": [1.0]}, {"chunk": 0}, ValueError, "chunk=None or at least 1, got 0"),
        (ok, {"a": [1.0]}, {"config": {"a": {1, 2}.__iter__}}, TypeError, "config to hold numbers"),
    ],
)
def test_mistakes_are_named(key, f, axes, options, error, match):
    with pytest.raises(error, match=match):
        sweep.run(f, axes, key=key, **options)


def test_more_mistakes(key, unchecked):
    with pytest.raises(TypeError, match=r"expected a function \(key, \*\*cell\) -> arrays, got NoneType"):
        sweep.run(None, {"a": [1.0]}, key=key)
    with pytest.raises(TypeError, match=r"expected one key, got .*: make it with"):
        sweep.run(ok, {"a": [1.0]}, key=0)
    with pytest.raises(TypeError, match=r"expected axes as a mapping from name to values, got list"):
        sweep.run(ok, [("a", [1.0])], key=key)
    with pytest.raises(TypeError, match=r"a jax\.sharding\.Mesh, got 8: make it with"):
        sweep.run(ok, {"a": [1.0]}, key=key, mesh=8)
    for static in (None, [["a"]], 5):
        with pytest.raises(TypeError, match=r"static as the name of an axis or several, got "):
            sweep.run(ok, {"a": [1.0]}, key=key, static=static)
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(TypeError, match=r"real ones of at most 64 bits, got float128"):
            sweep.run(ok, {"a": np.ones(2, np.longdouble)}, key=key)
    with pytest.raises(TypeError, match=r"got tracers: call sweep\.run outside of jax\.jit"):
        jax.jit(lambda key: sweep.run(ok, {"a": [1.0]}, key=key))(key)
    with pytest.raises(TypeError, match=r"got tracers: call sweep\.run outside of jax\.jit"):
        jax.jit(lambda x: sweep.run(ok, {"a": [1.0]}, key=key))(1.0)
    with pytest.raises(ZeroDivisionError) as caught:
        sweep.run(raises, {"a": [1.0]}, key=key)
    assert "while a cell was traced (key, a: float32)" in "".join(caught.value.__notes__)
    unhashable = functools.partial(lambda thing, key, a: a, Unhashable())
    with pytest.raises(TypeError, match="arrays or hashable"):
        sweep.run(unhashable, {"a": [1.0]}, key=key)


class Unhashable:
    __hash__ = None
