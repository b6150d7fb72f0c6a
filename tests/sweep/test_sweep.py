"""Sweeps: every cell against a call by hand, one compilation, and files that survive what happens to files."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import io_callback
from rich.console import Console

from stabjax import _files, sweep
from stabjax._provenance import describe_shortly
from stabjax.sweep import _grid, _program, _result, _store, _sweep
from stabjax.sweep._outputs import Outputs
from tests import ROOT
from tests.sweep import sweep_worker

AXES = {"bias": [0.0, 0.25, 0.5], "power": [1, 2]}
TRACES = []


def cell(key, bias, power):
    TRACES.append(bias)
    x = jax.random.normal(key, (4,)) + bias
    return {"norm": jnp.sum(x**2) * power.astype(jnp.float32), "x": x, "count": jnp.sum(x > 0)}


def by_hand(f, key, axes, seeds):
    """The same with Python loops, one cell after the other."""
    grid = np.meshgrid(*map(np.arange, map(len, axes.values())), np.arange(seeds), indexing="ij")
    found = {}
    for *index, seed in zip(*map(np.ravel, grid)):
        values = {name: jnp.asarray(axis[i]) for (name, axis), i in zip(axes.items(), index)}
        for name, value in f(jax.random.fold_in(key, int(seed)), **values).items():
            found.setdefault(name, np.zeros((*grid[0].shape, *value.shape), value.dtype))[(*index, seed)] = value
    return found


@contextlib.contextmanager
def compilations():
    """How many programs are compiled in here."""
    events = []

    def listen(name, seconds, **kwargs):
        if name == "/jax/core/compile/backend_compile_duration" and active:
            events.append(name)

    active = [True]
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    active.clear()


@pytest.fixture
def whole(key):
    return sweep.run(cell, AXES, key=key, seeds=2, chunk=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "finished"
    return go(path), path


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[1], tmp_path / "copy"))


def go(path, f=cell, axes=AXES, **options):
    return sweep.run(f, axes, **{"key": jax.random.key(1), "seeds": 2, "path": path, "chunk": 5, **options})


def chunks(path):
    return sorted(path.glob("chunk-*"))


# The values, and how they are computed


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
    for index in np.ndindex(2, 3, 2, 2):
        size, scale, kind = (values[i] for values, i in zip(axes.values(), index))
        expected = f(jax.random.fold_in(key, index[-1]), int(size), scale, kind)
        np.testing.assert_allclose(found.value.values[index], expected, rtol=1e-5)


def test_equal_static_values_of_other_types_are_others(key):
    def f(key, v):
        return {bool: jnp.float32(10), int: jnp.float32(20), float: jnp.float32(30), type(cell): jnp.float32(40)}[
            type(v)
        ]

    found = sweep.run(f, {"v": (1, True, 1.0, test_double_precision)}, key=key, static="v")
    np.testing.assert_array_equal(found.value.values.ravel(), [20, 10, 30, 40])
    assert list(found.v.values) == ["1", "True", "1.0", "test_double_precision"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Scaled:
    weights: jax.Array
    name: str = dataclasses.field(metadata={"static": True})

    def __call__(self, key, a):
        return {"out": a * jnp.sum(self.weights)}


def product(key, weights, size, *, a):
    return {"out": a * jnp.sum(weights) * size}


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


def test_any_chunk_size_gives_the_same_labelled_values(key, whole):
    for chunk in (1, 3, 7, 12, 100, None):
        found = sweep.run(cell, AXES, key=key, seeds=2, chunk=chunk)
        xarray.testing.assert_allclose(found, whole, rtol=1e-6)
        assert found.attrs["chunk"] == min(chunk or 12, 12)


@pytest.mark.parametrize(("traffic", "batch"), [(2.0**30, 1), (2.0**28, 4), (1.0, 12)])
def test_batches_inside_a_chunk(key, whole, monkeypatch, traffic, batch):
    seen = []
    original = _program.lower
    monkeypatch.setattr(_program, "traffic", lambda *args: traffic)
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
    layout, Layout = _program.layout, _program.Layout
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
    monkeypatch.setattr(_program, "side_by_side", lambda traffic, platform: 10**6)
    monkeypatch.setattr(_program, "MEMORY", 2**22)

    def f(key, a):
        x = jax.random.normal(key, (200, 200))
        return jnp.trace((x * a) @ x)

    asked = []
    original = _program.fits
    monkeypatch.setattr(_program, "fits", lambda compiled: asked.append(original(compiled)) or asked[-1])
    found = sweep.run(f, {"a": np.arange(10.0)}, key=key, seeds=2)
    assert asked[0] is False
    assert asked[-1] is True
    x = jax.random.normal(jax.random.fold_in(key, 1), (200, 200))
    np.testing.assert_allclose(found.value[3, 1], 3 * np.trace(np.asarray(x) @ np.asarray(x)), rtol=1e-4)


def test_traffic_grows_with_the_cell(key):
    def traffic(n):
        program, _ = _program.split(lambda key, a: jnp.sum(jax.random.normal(key, (n, n)) * a))
        leaves, treedef = jax.tree.flatten(
            ((), jax.eval_shape(lambda: key), {"a": jax.ShapeDtypeStruct((), np.float32)})
        )
        return _program.traffic(program, treedef, tuple(leaves), False)

    assert traffic(40) > 4 * 40**2
    assert 2 < traffic(80) / traffic(40) < 5


# What comes out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    gain: jax.Array
    inner: dict


def test_names_come_from_the_output(key):
    def f(key, a):
        half = a.astype(jnp.bfloat16)
        inner = {"conv/1": half, "key": key, "many": (a, [a > 0])}
        return Result(jnp.stack([a, -a]), inner)

    found = sweep.run(f, {"a": np.array([0.5, 1.5], np.float16)}, key=key)
    assert set(found.data_vars) == {"gain", "inner.conv.1", "inner.key", "inner.many.0", "inner.many.1.0", "valid"}
    assert found["inner.conv.1"].dtype == np.float32
    np.testing.assert_array_equal(found["inner.conv.1"].values.ravel(), [0.5, 1.5])
    np.testing.assert_array_equal(found["inner.key"][0, 0], jax.random.key_data(jax.random.fold_in(key, 0)))
    assert found.gain.dims == ("a", "seed", "gain_dim_0")
    assert found.a.dtype == np.float32


def test_no_axes_but_seeds(key):
    found = sweep.run(lambda key: jax.random.uniform(key), {}, key=key, seeds=4)
    assert found.value.dims == ("seed",)
    assert len(set(found.value.values.tolist())) == 4


def test_cells_that_are_not_finite_are_marked(key):
    def f(key, a):
        return {"log": jnp.log(a), "half": jnp.stack([a, 1 / (a - 2)]), "n": jnp.int32(1)}

    found = sweep.run(f, {"a": [-1.0, 1.0, 2.0]}, key=key, seeds=2)
    np.testing.assert_array_equal(found.valid, [[False] * 2, [True] * 2, [False] * 2])


def test_attributes(key):
    config = {"width": 3, "rates": (0.1, np.float32(0.5)), "name": "x", "grid": np.arange(2)}
    found = sweep.run(cell, AXES, key=key, seeds=2, config=config)
    assert found.attrs["jax"] == jax.__version__
    assert found.attrs["numpy"] == np.__version__
    assert found.attrs["device"].startswith("cpu")
    assert found.attrs["function"] == "tests.sweep.test_sweep.cell"
    assert found.attrs["config"] == '{"width": 3, "rates": [0.1, 0.5], "name": "x", "grid": [0, 1]}'
    assert found.attrs["key"] == f'{{"impl": "threefry2x32", "data": {jax.random.key_data(key).tolist()}}}'
    assert {"stabjax", "python"} <= set(found.attrs)
    assert "errors" not in found.attrs


@pytest.mark.parametrize("engine", ["scipy", "h5netcdf"])
def test_a_dataset_goes_to_a_file_and_back(key, tmp_path, engine):
    def f(key, a, kind, n):
        return {"deep": {"x/y": a * n * jnp.ones(2)}, "b": a > 0, "k": jnp.int32(n)}

    axes = {"a": [0.5, 1.0], "kind": ["sin", "cos"], "n": [1, 2]}
    found = sweep.run(f, axes, key=key, seeds=2, static=["kind", "n"], config={"π": [1, None]})
    found.to_netcdf(tmp_path / "a.nc", engine=engine)
    with xarray.open_dataset(tmp_path / "a.nc", engine=engine) as back:
        xarray.testing.assert_equal(back.load(), found)
        assert {k: v for k, v in back.attrs.items() if k != "chunk"} == {
            k: v for k, v in found.attrs.items() if k != "chunk"
        }


def test_double_precision(x64, key):
    def f(key, a):
        return a * jax.random.normal(key, (), jnp.float64)

    found = sweep.run(f, {"a": [1 / 3, 2**40]}, key=key, seeds=2)
    assert found.value.dtype == np.float64
    expected = [[f(jax.random.fold_in(key, s), a) for s in range(2)] for a in (1 / 3, 2.0**40)]
    np.testing.assert_allclose(found.value, expected, rtol=1e-15)


def test_a_bar_on_a_terminal_only(key, monkeypatch, capfd, tmp_path):
    go(tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    text = io.StringIO()
    monkeypatch.setattr(_sweep, "Console", lambda **kwargs: Console(file=text, force_terminal=True, width=100))
    go(tmp_path / "loud")
    assert "12/12 cells" in text.getvalue()
    assert "left" in text.getvalue()


# Failures while running


def fussy(key, a, *, forbidden=2.0):
    def check(x):
        if x == forbidden:
            raise FloatingPointError(f"no {x}")
        return np.float32(x)

    kind = jax.ShapeDtypeStruct((), np.float32)
    y = jax.pure_callback(check, kind, a, vmap_method="sequential")
    return {"y": y, "n": jnp.int32(7)}


def test_an_exception_in_a_chunk_is_kept_as_text(key, tmp_path):
    axes = {"a": [1.0, 2.0, 3.0, 4.0]}
    with pytest.warns(RuntimeWarning, match="1 of 2 chunks failed"):
        found = sweep.run(fussy, axes, key=key, chunk=2, path=tmp_path / "a")
    np.testing.assert_array_equal(found.y, np.array([[np.nan], [np.nan], [3], [4]]))
    np.testing.assert_array_equal(found.n, np.array([[0], [0], [7], [7]]))
    np.testing.assert_array_equal(found.valid, [[False], [False], [True], [True]])
    assert found.attrs["errors"].startswith("cells (a=1.0, seed=0) to (a=2.0, seed=0): ")
    assert "no 2.0" in found.attrs["errors"]
    assert [file.name[:11] for file in chunks(tmp_path / "a")] == ["chunk-00001"]
    found.to_netcdf(tmp_path / "a.nc", engine="scipy")


def test_many_errors_are_grouped_and_shortened():
    same = [(f"{k}", f"{k + 1}", "the same") for k in range(50)]
    other = [(f"{k}", f"{k}", f"{k}: " + 10_000 * "x") for k in range(50, 100)]
    text = _result.error_text(same + other)
    assert text.startswith("cells 0 to 1, 1 to 2, ")
    assert "9 to 10, and 40 more: the same\ncells 50: 50: xxx" in text
    assert text.endswith("and 41 more kinds of errors")
    assert len(text) < 60_000


def test_cells_are_named_by_their_coordinates():
    cells = _grid.grid({"a": [0.5, 1.5], "kind": ["u", "v", "w"], "b": [1, 2]}, "kind", 2)
    count = 2 * 3 * 2 * 2
    found = _result.dataset(cells, {"row": np.arange(count)}, Outputs({}, {}, {}, {}), {}, []).row
    assert cells.where(0) == "(a=0.5, kind=u, b=1, seed=0)"
    for row in range(count):
        a, kind, b, seed = re.fullmatch(r"\(a=(.*), kind=(.*), b=(.*), seed=(.*)\)", cells.where(row)).groups()
        assert found.sel(a=float(a), kind=kind, b=int(b), seed=int(seed)) == row


def test_a_failed_chunk_is_tried_again(key, tmp_path):
    mood = [False]

    def f(key, a):
        def check(x):
            if not mood[0]:
                raise OSError("not now")
            return x

        return jax.pure_callback(check, jax.ShapeDtypeStruct((), np.float32), a, vmap_method="sequential")

    with pytest.warns(RuntimeWarning, match="2 of 2 chunks failed"):
        sweep.run(f, {"a": [1.0, 2.0]}, key=key, chunk=1, path=tmp_path / "a")
    mood[0] = True
    found = sweep.run(f, {"a": [1.0, 2.0]}, key=key, chunk=1, path=tmp_path / "a")
    np.testing.assert_array_equal(found.value, [[1.0], [2.0]])
    assert bool(found.valid.all())


@pytest.mark.parametrize("where", ["call", "callback"])
def test_an_interrupt_is_not_swallowed(key, tmp_path, monkeypatch, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    def f(key, a):
        return jax.pure_callback(interrupt, jax.ShapeDtypeStruct((), np.float32), a, vmap_method="sequential")

    if where == "call":
        monkeypatch.setattr(jax, "block_until_ready", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(f, {"a": [1.0, 2.0]}, key=key, chunk=1)


def test_the_mere_word_of_an_interrupt_is_no_interrupt(key):
    def f(key, a):
        def check(x):
            raise ValueError("KeyboardInterrupt is not meant")

        return jax.pure_callback(check, jax.ShapeDtypeStruct((), np.float32), a, vmap_method="sequential")

    with pytest.warns(RuntimeWarning, match="1 of 1 chunks failed"):
        found = sweep.run(f, {"a": [1.0]}, key=key)
    assert "is not meant" in found.attrs["errors"]


@pytest.mark.parametrize(
    ("callback", "options", "error"),
    [(jax.pure_callback, {}, NotImplementedError), (io_callback, {"ordered": True}, ValueError)],
)
def test_what_cannot_be_batched_is_no_failure_of_a_chunk(key, tmp_path, callback, options, error):
    def f(key, a):
        return callback(lambda x: x, jax.ShapeDtypeStruct((), np.float32), a, **options)

    with pytest.raises(error) as caught:
        sweep.run(f, {"a": [1.0, 2.0]}, key=key, path=tmp_path / "a", chunk=2)
    assert "while cells, 2 side by side, were traced (key, a: float32)" in "".join(caught.value.__notes__)
    assert not (tmp_path / "a").exists()


# Files


def test_a_second_call_reads_what_is_there(finished, copy, monkeypatch):
    monkeypatch.setattr(_store.Store, "write", None)
    with compilations() as compiled:
        xarray.testing.assert_identical(go(copy), finished[0])
    assert not compiled
    xarray.testing.assert_identical(go(copy, chunk=None), finished[0])


def test_the_folder_is_listed_once(finished, copy, monkeypatch):
    listed, counts = [], []
    for name in ("scandir", "listdir"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, original=original: listed.append(path) or original(path))
    with _store.Store(copy) as store:
        store.open({k: v for k, v in store.saved().items() if k not in ("format", "order")})
        for number in range(3):
            counts.append(len(listed))
            assert store.read(number) is not None
    assert counts[0] == counts[-1] == len(listed) > 0


def test_without_files_the_bits_are_the_same(finished):
    xarray.testing.assert_identical(go(None), finished[0])


def test_chunks_are_chosen_so_that_a_kill_costs_little(tmp_path):
    axes = {"a": np.arange(100.0)}
    found = go(tmp_path / "a", f=lambda key, a: a, axes=axes, chunk=None)
    assert len(chunks(tmp_path / "a")) == 17
    assert found.attrs["chunk"] == 12  # six points with two seeds each


@settings(max_examples=7)
@given(kept=st.sets(st.integers(0, 2)), damage=st.sampled_from(["none", "torn", "flipped", "swapped", "empty"]))
def test_resume_from_any_subset_of_chunks(finished, tmp_path_factory, kept, damage):
    path = tmp_path_factory.mktemp("subset") / "copy"
    shutil.copytree(finished[1], path)
    files = chunks(path)
    assert len(files) == 3
    before = {file.name: file.stat().st_mtime_ns for file in files}
    for k, file in enumerate(files):
        if k not in kept:
            file.unlink()
    (path / ".chunk-00000-1.npz.draft").write_bytes(b"half of")
    damaged = files[min(kept)] if kept and damage != "none" else None
    if damaged:
        content = damaged.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        other = chunks(finished[1])[(min(kept) + 1) % 3].read_bytes()
        damaged.write_bytes({"torn": content[:middle], "flipped": flipped, "swapped": other, "empty": b""}[damage])
    with pytest.warns(RuntimeWarning, match=damaged.name) if damaged else contextlib.nullcontext():
        xarray.testing.assert_identical(go(path), finished[0])
    after = {file.name: file.stat().st_mtime_ns for file in chunks(path)}
    assert after.keys() == before.keys()
    intact = {files[k].name for k in kept} - ({damaged.name} if damaged else set())
    assert {name for name in after if after[name] == before[name]} >= intact
    assert not (path / ".chunk-00000-1.npz.draft").exists()


def test_a_whole_chunk_under_the_number_of_another_is_recognised(finished, copy):
    first, second, _ = chunks(copy)
    wrong = copy / second.name.replace("00001", "00000")
    second.rename(wrong)
    first.unlink()
    with pytest.warns(RuntimeWarning, match=wrong.name):
        xarray.testing.assert_identical(go(copy), finished[0])
    assert not wrong.exists()


def shifted(key, bias, power):
    return cell(key, bias + 1, power)


shifted.__qualname__ = "cell"


def with_constant(value):
    constant = jnp.full(3, value)

    def f(key, bias, power):
        return jnp.sum(constant) * bias

    return f


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"axes": {**AXES, "power": np.array([1, 2], np.int16)}}, r"axes\.power\.dtype: int32 there, int16 here"),
        ({"key": jax.random.key(2)}, "key.data: .0, 1. there, .0, 2. here"),
        ({"key": jax.random.key(1, impl="rbg")}, "key.impl: threefry2x32 there, rbg here"),
        ({"config": {"a": 1}}, "config.a: None there, 1 here"),
        ({"chunk": 4}, "chunk: 5 there, 4 here"),
        ({"f": shifted}, r"\(program: "),
        ({"f": fussy, "axes": {"a": [1.0]}}, "function: .*cell.* there, .*fussy.* here"),
    ],
    ids=lambda x: "-".join(map(str, x)) if isinstance(x, dict) else "",
)
def test_another_sweep_is_refused_by_name(finished, copy, change, named):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    with pytest.raises(ValueError, match=named):
        go(copy, **change)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    xarray.testing.assert_identical(go(copy), finished[0])


def test_other_arrays_and_constants_are_refused(tmp_path):
    for name, make, named in (
        ("constants", with_constant, "program"),
        ("arrays", lambda v: functools.partial(product, weights=np.full(3, v), size=2), "arrays"),
        ("numbers", lambda v: functools.partial(product, weights=np.ones(3), size=v), "program"),
    ):
        axes = AXES if name == "constants" else {"a": [1.0, 2.0]}
        go(tmp_path / name, f=make(1.0), axes=axes)
        go(tmp_path / name, f=make(1.0), axes=axes)
        with pytest.raises(ValueError, match=rf"\({named}: "):
            go(tmp_path / name, f=make(2.0), axes=axes)


def test_nan_on_an_axis_goes_on(tmp_path):
    first = go(tmp_path / "a", lambda key, a: a, {"a": [1.0, np.nan]})
    xarray.testing.assert_identical(go(tmp_path / "a", lambda key, a: a, {"a": [1.0, np.nan]}), first)


def test_folders_of_others_are_left_alone(tmp_path, copy):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        go(tmp_path / "mine")
    with pytest.raises(NotADirectoryError, match=r"thesis\.tex"):
        go(tmp_path / "mine" / "thesis.tex")
    with _files.locked(copy), pytest.raises(OSError, match=r"another process is at work in .*copy"):
        go(copy)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_refused_folder_is_left_as_it_was(copy):
    (copy / ".lock").unlink()
    for name in (".thesis.draft", ".chunk-00000-1.npz.draft", ".manifest.json.draft"):
        (copy / name).write_text("x")
    manifest = copy / "manifest.json"
    whole = manifest.read_text()

    def refused(error, match, **options):
        before = contents(copy)
        with pytest.raises(error, match=match):
            go(copy, **options)
        assert contents(copy) == before

    refused(ValueError, "config.a: None there, 3 here", config={"a": 3})
    for text, match in (
        (whole.replace('"seeds": 2', '"seeds": 3'), "was changed"),
        (whole[:100], "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
    ):
        manifest.write_text(text)
        refused(OSError, rf"manifest\.json {match}")
    _files.write_json(manifest, {"a": 1})
    refused(OSError, r"manifest\.json is damaged or not of a sweep")
    manifest.unlink()
    refused(ValueError, r"found \['chunk-")
    manifest.write_text(whole)
    go(copy)
    assert {file.name for file in copy.glob(".*")} == {".lock", ".thesis.draft"}


def test_a_failure_does_not_keep_the_folder(finished, copy, monkeypatch):
    def refuse(*args):
        raise PermissionError("no")

    (copy / ".chunk-00000-1.npz.draft").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(PermissionError) as caught:
            go(copy)
    # The traceback is alive, and with it all that was under way.
    assert caught.tb is not None
    xarray.testing.assert_identical(go(copy), finished[0])


def test_a_folder_in_the_place_of_a_chunk_is_named(copy):
    file = chunks(copy)[1]
    file.unlink()
    file.mkdir()
    with pytest.raises(OSError, match=rf"{file.name} cannot be read .*: restore it, or move it elsewhere"):
        go(copy)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES])
def test_what_the_lock_says_is_told_apart(copy, monkeypatch, number):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    match = r"No locks available: .*\.lock" if number == errno.ENOLCK else "another process is at work"
    with pytest.raises(OSError, match=match):
        go(copy)


def test_static_values_are_written_the_same_in_every_process():
    letters = "abcdefgh"
    listed = f"frozenset({{{', '.join(repr(x) for x in letters)}}})"
    for value, text in (
        (frozenset(letters), listed),
        ((1, frozenset(letters)), f"(1, {listed})"),
        (Options(frozenset(letters)), f"Options(value={listed})"),
        ((ok,), "(tests.sweep.test_sweep.ok,)"),
        ((), "()"),
    ):
        assert describe_shortly(value) == text
    assert _grid.grid({"v": [frozenset(letters)]}, "v", 1).describe() == {"v": {"static": [listed]}}


@dataclasses.dataclass(frozen=True)
class Options:
    value: object


@pytest.mark.parametrize("full_at", range(8))
def test_a_full_disk_names_the_file_and_loses_nothing(finished, tmp_path, monkeypatch, full_at):
    calls = []
    fsync = os.fsync

    def full(handle):
        calls.append(handle)
        if len(calls) > full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    path = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device; .* the same path") as caught:
            go(path)
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).parent == path
    assert Path(caught.value.filename).name.startswith("manifest" if full_at < 2 else f"chunk-{full_at // 2 - 1:05d}")
    written = chunks(path)
    assert len(written) == full_at // 2 - 1 + full_at % 2 if full_at >= 2 else not written
    for file in written:
        with np.load(file) as data:
            assert set(data) == {"norm", "x", "count", "valid"}
    xarray.testing.assert_identical(go(path), finished[0])


def test_outputs_of_any_name_are_kept(tmp_path):
    def f(key, a):
        return {"file": a, "self": 2 * a, "allow_pickle": 3 * a, "with space": a, "x": -a, "x.npy": 5 * a}

    first = go(tmp_path / "a", f, {"a": [1.0, 2.0]})
    xarray.testing.assert_identical(go(tmp_path / "a", f, {"a": [1.0, 2.0]}), first)


# What is asked for wrongly


def needs_value(key, a):
    return 1.0 if a > 0 else 2.0


def raises(key, a):
    raise ZeroDivisionError("of my own")


def ok(key, a):
    return a


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
        (ok, {"b": [1.0]}, {}, TypeError, r"function \(key, b\), got tests.sweep.test_sweep.ok\(key, a\): missing"),
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


# Several devices, several processes, and kills


def worker(*arguments, **environment):
    # Compiled as here, so that bits compare; nothing of the strictness of this suite.
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sweep.sweep_worker", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, out + err


def load(file):
    return xarray.load_dataset(file, engine="scipy")


def test_eight_devices_give_the_values_of_one(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    finish(worker("devices", tmp_path, XLA_FLAGS=flags))
    alone = sweep_worker.sweep()
    for name in ("spread", "stored"):
        found = load(tmp_path / f"{name}.nc")
        xarray.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)
        assert found.attrs["device"] == "cpu (cpu, 8)"


def test_two_processes_get_everything_and_one_writes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    finish(*(worker("team", port, k, tmp_path) for k in range(2)))
    first, *others = (load(tmp_path / f"{name}-{k}.nc") for name in ("first", "again") for k in range(2))
    xarray.testing.assert_allclose(first, sweep_worker.sweep(), rtol=1e-5, atol=1e-6)
    for other in others:
        xarray.testing.assert_identical(first, other)
    assert len(chunks(tmp_path / "files-0")) == 2 * -(-3 * 2 * 5 // 4)
    assert not (tmp_path / "files-1").exists()


@pytest.mark.parametrize("moments", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_sweep_resumes_to_the_same_bits(tmp_path, moments):
    draw = random.Random(moments)
    expected = sweep_worker.long_sweep()
    total = 3 * 2 * 40
    counts = []
    for k in range(moments):
        path = tmp_path / str(k)
        process = worker("kill", path)
        assert process.stdout.readline() == "ready\n"
        # A moment counted in chunks as well as in time: machines differ in speed.
        wanted = draw.randrange(total // 2)
        while len(chunks(path)) < wanted and process.poll() is None:
            time.sleep(1e-4)
        time.sleep(draw.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(len(chunks(path)))
        xarray.testing.assert_identical(sweep_worker.long_sweep(path), expected)
        assert len(chunks(path)) == total
    assert any(0 < count < total for count in counts), counts
