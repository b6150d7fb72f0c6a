"""Cells: their values and keys, how they are compiled and dealt out to chunks."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from stabjax import sweep
from stabjax.sweep import _program
from tests.sweep.helpers import AXES, TRACES, Scaled, by_hand, cell, compilations, product


def test_every_cell_is_the_call_by_hand(key):
    found = sweep.run(cell, AXES, key=key, seeds=3)
    for name, expected in by_hand(cell, key, AXES, 3).items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
    assert found.norm.dims == ("bias", "power", "seed")
    assert found.x.dims == ("bias", "power", "seed", "x_dim_0")
    assert found.power.dtype == np.int64
    np.testing.assert_array_equal(found.bias, AXES["bias"])
    assert bool(found.valid.all())
    with pytest.raises(KeyError):
        found.norm.sel(bias=0.26)


def test_the_key_depends_on_the_seed_alone(key):
    found = sweep.run(lambda key, a, b: jax.random.normal(key), {"a": [1.0, 2.0], "b": [3, 4]}, key=key, seeds=3)
    expected = [jax.random.normal(jax.random.fold_in(key, s)) for s in range(3)]
    np.testing.assert_allclose(found.value, np.broadcast_to(expected, (2, 2, 3)), rtol=1e-6)


def test_one_trace_and_one_compilation(key):
    def f(key, a, b):
        TRACES.append(a)
        return a * jax.random.normal(key) + b

    TRACES.clear()
    axes = {"a": np.linspace(0, 1, 7), "b": [1.0, 2.0]}
    with compilations() as first:
        sweep.run(f, axes, key=key, seeds=3, chunk=4)
    with compilations() as second:
        sweep.run(f, axes, key=jax.random.key(8), seeds=3, chunk=4)
        sweep.run(f, {**axes, "b": [5.0, 6.0, 7.0]}, key=key, seeds=30, chunk=4)
    assert (len(TRACES), len(first), len(second)) == (1, 1, 0)


def test_static_axes_are_python_values_and_compile_once_each(key):
    def f(key, size, scale, kind):
        TRACES.append(size)
        assert type(size) is int
        x = scale * jnp.sum(jax.random.normal(key, (size,)))
        return {"square": jnp.square, "double": lambda x: 2 * x}[kind](x)

    axes = {"size": np.array([2, 3]), "scale": [1.0, 2.0, 3.0], "kind": ["square", "double"]}
    TRACES.clear()
    with compilations() as compiled:
        found = sweep.run(f, axes, key=key, seeds=2, static=("kind", "size"), chunk=4)
    assert (len(TRACES), len(compiled)) == (4, 4)
    assert found.value.dims == ("size", "scale", "kind", "seed")
    assert list(found.kind.values) == ["square", "double"]
    draws = {(n, s): np.asarray(jax.random.normal(jax.random.fold_in(key, s), (n,))) for n in (2, 3) for s in (0, 1)}
    for index in np.ndindex(2, 3, 2, 2):
        size, scale, kind = (values[i] for values, i in zip(axes.values(), index))
        x = scale * np.sum(draws[int(size), index[-1]])
        expected = x**2 if kind == "square" else 2 * x
        np.testing.assert_allclose(found.value.values[index], expected, rtol=1e-5)


def test_equal_static_values_of_other_types_are_others(key):
    def f(key, v):
        return {bool: jnp.float32(10), int: jnp.float32(20), float: jnp.float32(30), type(cell): jnp.float32(40)}[
            type(v)
        ]

    found = sweep.run(f, {"v": (1, True, 1.0, by_hand)}, key=key, static="v")
    np.testing.assert_array_equal(found.value.values.ravel(), [20, 10, 30, 40])
    assert list(found.v.values) == ["1", "True", "1.0", "by_hand"]


@pytest.mark.parametrize(
    "make",
    [
        lambda w: Scaled(w, "x"),
        lambda w: functools.partial(product, weights=np.asarray(w), size=1),
        lambda w: jax.tree_util.Partial(product, weights=w, size=1),
        lambda w: functools.partial(functools.partial(Scaled(w, "y"))),
        lambda w: functools.partial(lambda f, key, a: f(key, a), Scaled(w, "z")),
    ],
    ids=["pytree", "partial", "Partial", "partial of pytree", "pytree in partial"],
)
def test_arrays_of_a_function_are_arguments(key, make):
    # The same lambda each time: a new one is a new function.
    calls = {}
    inner = make(jnp.ones(1000))
    for scale in (1.0, 3.0):
        f = jax.tree.map(lambda x: x, inner)
        if isinstance(inner, functools.partial) and not isinstance(inner, jax.tree_util.Partial):
            args = jax.tree.map(lambda x: x * scale if isinstance(x, jax.Array) else x, inner.args)
            keywords = {k: v * np.float32(scale) if isinstance(v, np.ndarray) else v for k, v in inner.keywords.items()}
            func = jax.tree.map(lambda x: x * scale if isinstance(x, jax.Array) else x, inner.func)
            f = functools.partial(func, *args, **keywords)
        else:
            f = jax.tree.map(lambda x: x * scale if isinstance(x, jax.Array) else x, f)
        with compilations() as compiled:
            calls[scale] = sweep.run(f, {"a": [1.0, 2.0]}, key=key), len(compiled)
    for scale, (found, _) in calls.items():
        np.testing.assert_allclose(found.out, scale * 1000 * np.array([[1.0], [2.0]]))
    assert calls[3.0][1] == 0


def test_equal_bound_values_of_other_types_are_others(key):
    def f(key, a, *, flag):
        return a + (10 if flag is True else 20)

    for flag, expected in ((1, 21), (True, 11)):
        found = sweep.run(functools.partial(f, flag=flag), {"a": [1.0]}, key=key)
        assert found.value.item() == expected


def test_any_chunk_size_gives_the_same_labeled_values(key, whole):
    for chunk in (1, 7, 12, 100, None):
        found = sweep.run(cell, AXES, key=key, seeds=2, chunk=chunk)
        xarray.testing.assert_allclose(found, whole, rtol=1e-6)
        assert found.attrs["chunk"] == min(chunk or 12, 12)


@pytest.mark.parametrize(("traffic", "batch"), [(2.0**30, 1), (2.0**28, 4), (1.0, 12)])
def test_batches_inside_a_chunk(key, whole, monkeypatch, traffic, batch):
    seen = []
    original = _program.lower
    monkeypatch.setattr(_program, "bytes_accessed", lambda *args: traffic)
    monkeypatch.setattr(_program, "lower", lambda *args: seen.append(args[2].batch) or original(*args))
    found = sweep.run(cell, AXES, key=key, seeds=2)
    assert seen == [batch]
    xarray.testing.assert_allclose(found, whole, rtol=1e-6)


def test_chunks_keep_to_the_memory():
    size = functools.partial(_program.chunk_size, seeds=1)
    assert size(100, 1, devices=1, pieces=1) == 100
    assert size(100, 1, devices=8, pieces=1) == 104
    assert size(100, 1, devices=1, pieces=16) == 7
    assert size(100, _program.MEMORY // 40, devices=1, pieces=1) == 34
    assert size(100, 2 * _program.MEMORY, devices=1, pieces=1) == 1
    # All seeds of a point stay together, if enough chunks are left.
    assert size(100, 1, seeds=4, devices=1, pieces=16) == 4
    assert size(100, 1, seeds=10, devices=1, pieces=16) == 7
    assert size(100, 1, seeds=10, devices=4, pieces=1) == 120


def test_points_are_computed_with_all_their_seeds():
    layout, Layout = _program.choose_layout, _program.ChunkLayout
    assert layout(7, seeds=1, devices=1, largest=5) == Layout(8, 4, 0)
    assert layout(16, seeds=1, devices=8, largest=100) == Layout(16, 2, 1)
    assert layout(60, seeds=5, devices=1, largest=60) == Layout(60, 60, 5)
    assert layout(60, seeds=5, devices=1, largest=22) == Layout(60, 20, 5)
    assert layout(60, seeds=5, devices=1, largest=4) == Layout(60, 4, 0)
    assert layout(61, seeds=5, devices=1, largest=61) == Layout(61, 61, 0)
    # A point per device would leave many of them idle.
    assert layout(10, seeds=10, devices=8, largest=100) == Layout(16, 2, 0)


def test_what_depends_on_the_seed_or_the_strength_alone_is_computed_once(key, monkeypatch):
    texts = []
    original = _program.lower

    def read(*args):
        texts.append(original(*args).as_text())
        return original(*args)

    def f(key, a):
        return jnp.sum(jnp.sin(jax.random.normal(key, (100,))) * jnp.cos(a * jnp.arange(100.0)))

    monkeypatch.setattr(_program, "lower", read)
    found = sweep.run(f, {"a": np.arange(7.0)}, key=key, seeds=3)
    assert re.findall(r"stablehlo.sine .*tensor<(.*)xf32>", texts[0]) == ["3x100"]
    assert re.findall(r"stablehlo.cosine .*tensor<(.*)xf32>", texts[0]) == ["7x100"]
    np.testing.assert_allclose(found.value[4, 2], f(jax.random.fold_in(key, 2), 4.0), rtol=1e-5)


def test_what_is_held_keeps_to_the_memory(key, monkeypatch):
    # Where reading and writing bound nothing, the program is asked what it holds.
    monkeypatch.setattr(_program, "cells_side_by_side", lambda traffic, platform: 10**6)
    monkeypatch.setattr(_program, "MEMORY", 2**22)

    def f(key, a):
        x = jax.random.normal(key, (200, 200))
        return jnp.trace((x * a) @ x)

    asked = []
    original = _program.fits_memory
    monkeypatch.setattr(_program, "fits_memory", lambda compiled: asked.append(original(compiled)) or asked[-1])
    found = sweep.run(f, {"a": np.arange(10.0)}, key=key, seeds=2)
    assert asked[0] is False
    assert asked[-1] is True
    x = jax.random.normal(jax.random.fold_in(key, 1), (200, 200))
    np.testing.assert_allclose(found.value[3, 1], 3 * np.trace(np.asarray(x) @ np.asarray(x)), rtol=1e-4)


def test_traffic_grows_with_the_cell(key):
    def traffic(n):
        program, _ = _program.split_arrays(lambda key, a: jnp.sum(jax.random.normal(key, (n, n)) * a))
        leaves, treedef = jax.tree.flatten(
            ((), jax.eval_shape(lambda: key), {"a": jax.ShapeDtypeStruct((), np.float32)})
        )
        return _program.bytes_accessed(program, treedef, tuple(leaves), False)

    assert traffic(40) > 4 * 40**2
    assert 2 < traffic(80) / traffic(40) < 5
