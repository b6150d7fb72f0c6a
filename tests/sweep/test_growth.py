"""A folder grows: finished cells are kept to the bit, and what is asked for besides is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from stabjax import _files, sweep
from stabjax.sweep import _store

KEY = jax.random.key(1)
AXES = {"a": [0.5, 1.5], "b": [1.0, 2.0, 3.0]}
CALLS = []


def counted(key, *, a, b):
    """A number of each cell, whose computation is written down."""

    def tell(*cell):
        CALLS.append(tuple(map(float, cell)))
        return np.float32(np.sin(np.sum(cell)))

    shape = jax.ShapeDtypeStruct((), np.float32)
    return {"value": jax.pure_callback(tell, shape, a, b, jax.random.normal(key), vmap_method="sequential")}


def go(path, axes=AXES, seeds=2, f=counted, **options):
    return sweep.run(f, axes, **{"key": KEY, "seeds": seeds, "path": path, **options})


def cells(axes, seeds):
    draws = [float(jax.random.normal(jax.random.fold_in(KEY, seed))) for seed in range(seeds)]
    return {(a, b, draw) for a in axes["a"] for b in axes["b"] for draw in draws}


def common(one, other):
    """Both at the cells that both have."""
    names = {name: np.intersect1d(one[name], other[name]) for name in one.dims}
    return [each.sel(names).transpose(*one.dims) for each in (one, other)]


def identical(one, other):
    """The same bits in all cells that both have."""
    for name in one:
        here, there = common(one[name], other[name])
        assert here.size
        assert here.to_numpy().tobytes() == there.to_numpy().tobytes()


GROWN = {
    "a value more": ({**AXES, "a": [0.5, 1.5, 2.5]}, 2),
    "a seed more": (AXES, 3),
    "both": ({"a": [0.5, 1.5, 2.5], "b": [1.0, 2.0, 3.0, 4.0]}, 4),
    "in between, in another order": ({**AXES, "b": [3.0, 1.0, 2.5, 2.0]}, 2),
    "axes in another order": ({"b": AXES["b"], "a": AXES["a"]}, 2),
    "fewer values": ({**AXES, "b": [2.0]}, 2),
    "a seed less": (AXES, 1),
    "one for another": ({**AXES, "b": [1.0, 9.0, 3.0]}, 2),
    "more here, fewer there": ({"a": [1.5], "b": [0.0, 1.0]}, 5),
    "nothing in common": ({"a": [7.0], "b": [7.0]}, 1),
}


@pytest.mark.parametrize("name", GROWN)
@pytest.mark.parametrize("chunk", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_only_new_cells_are_computed(tmp_path, name, chunk):
    axes, seeds = GROWN[name]
    first = go(tmp_path / "a", chunk=chunk)
    files = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    CALLS.clear()
    grown = go(tmp_path / "a", axes, seeds, chunk=chunk)
    new = cells(axes, seeds) - cells(AXES, 2)
    assert set(CALLS) == new
    assert {name: (tmp_path / "a" / name).read_bytes() for name in files} == files
    if name != "nothing in common":
        identical(first, grown)
    fresh = go(None, axes, seeds, chunk=chunk)
    xarray.testing.assert_allclose(grown, fresh, rtol=1e-6)
    assert list(grown.dims) == list(fresh.dims)
    assert bool(grown.valid.all())
    CALLS.clear()
    xarray.testing.assert_identical(go(tmp_path / "a", axes, seeds, chunk=chunk), grown)
    xarray.testing.assert_identical(go(tmp_path / "a", chunk=chunk), first)
    assert not CALLS


def test_one_call_after_the_other(tmp_path):
    seen, known = set(), None
    for axes, seeds in GROWN.values():
        CALLS.clear()
        found = go(tmp_path / "a", axes, seeds)
        assert set(CALLS) == cells(axes, seeds) - seen
        seen |= cells(axes, seeds)
        xarray.testing.assert_allclose(found, go(None, axes, seeds, chunk=4), rtol=1e-6)
        if known is not None and name_in_common(known, found):
            identical(known, found)
        known = found
    CALLS.clear()
    for axes, seeds in GROWN.values():
        go(tmp_path / "a", axes, seeds)
    assert not CALLS


def name_in_common(one, other):
    return all(np.intersect1d(one[name], other[name]).size for name in one.dims)


def described(key, *, b, name, size):
    return {"x": getattr(jnp, name)(jnp.arange(3.0) * b) + size, "draw": jax.random.normal(key, (2,))}


def test_static_axes_grow(tmp_path):
    options = {"f": described, "static": ("name", "size"), "chunk": 4}
    first = go(tmp_path / "a", {"name": ["sin"], "b": [1.0, 2.0], "size": [1]}, **options)
    more = {"size": [2, 1], "b": [2.0, 3.0, 1.0], "name": ["cos", "sin"]}
    grown = go(tmp_path / "a", more, 3, **options)
    xarray.testing.assert_allclose(grown, go(None, more, 3, **options), rtol=1e-6)
    identical(first, grown)
    fewer = {"b": [3.0], "name": ["cos"], "size": [2]}
    identical(go(tmp_path / "a", fewer, **options), grown)


def test_equal_values_and_nan_are_told_apart(tmp_path):
    first = go(tmp_path / "a", {"a": [1.0, np.nan, 1.0, 0.0], "b": [1.0]})
    CALLS.clear()
    axes = {"a": [1.0, -0.0, np.nan, 1.0, 1.0, 0.0], "b": [1.0]}
    grown = go(tmp_path / "a", axes)
    assert [a for a, *_ in CALLS if not np.signbit(a)] == [1.0, 1.0]
    assert [a for a, *_ in CALLS if np.signbit(a)] == [0.0, 0.0]
    np.testing.assert_array_equal(grown.value.to_numpy()[[0, 2, 3, 5]], first.value.to_numpy())
    np.testing.assert_array_equal(grown.value.to_numpy()[4], first.value.to_numpy()[0])
    CALLS.clear()
    go(tmp_path / "a", axes)
    assert not CALLS


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_kill_while_it_grows(tmp_path, monkeypatch, after):
    axes, seeds = GROWN["both"]
    for name in ("killed", "whole"):
        go(tmp_path / name, chunk=4)
    whole = go(tmp_path / "whole", axes, seeds, chunk=4)
    written = []

    def write(self, number, arrays, original=_store.Store.write):
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(number)
        original(self, number, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(_store.Store, "write", write)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "killed", axes, seeds, chunk=4)
    # A larger grid, asked for before the last one was finished, and what there was at first.
    larger = {**axes, "a": [0.5, 1.5, 2.5, 3.5]}
    beyond = go(tmp_path / "killed", larger, seeds, chunk=4)
    identical(beyond, whole)
    xarray.testing.assert_allclose(beyond, go(None, larger, seeds, chunk=4), rtol=1e-6)
    xarray.testing.assert_identical(go(tmp_path / "killed", axes, seeds, chunk=4), whole)
    names = [sorted(file.name for file in (tmp_path / name).glob("chunk-*")) for name in ("killed", "whole")]
    assert set(names[0]) >= set(names[1])


def test_a_failed_chunk_of_new_cells_is_tried_again(tmp_path):
    mood = ["bad"]

    def f(key, a):
        def check(x):
            if x > 1 and mood:
                raise OSError("not now")
            return x

        return jax.pure_callback(check, jax.ShapeDtypeStruct((), np.float32), a, vmap_method="sequential")

    go(tmp_path / "a", {"a": [0.5]}, f=f, chunk=1)
    with pytest.warns(RuntimeWarning, match=r"2 of 6 chunks failed .* cells \(a=1\.5, seed=0\)"):
        go(tmp_path / "a", {"a": [1.5, 0.5, 0.75]}, f=f, chunk=1)
    mood.clear()
    found = go(tmp_path / "a", {"a": [1.5, 0.5, 0.75]}, f=f, chunk=1)
    np.testing.assert_array_equal(found.value, np.repeat([[1.5], [0.5], [0.75]], 2, axis=1))
    assert bool(found.valid.all())


def test_a_chunk_may_be_larger_than_the_first_cells(tmp_path):
    first = go(tmp_path / "a", {"a": [1.0], "b": [1.0]}, chunk=100)
    grown = go(tmp_path / "a", {"a": [1.0, 2.0, 3.0], "b": [1.0]}, chunk=100)
    identical(first, grown)
    assert len(list((tmp_path / "a").glob("chunk-*"))) == 2


def other(key, *, a, b):
    return {"value": a + b + 0 * jax.random.normal(key)}


def of_three(key, *, a, b, c):
    return other(key, a=a, b=b)


other.__qualname__ = of_three.__qualname__ = "counted"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"f": other}, r"\(program: "),
        ({"f": of_three, "axes": {**AXES, "c": [1.0]}}, r"axes\.c: None there, .*float"),
        ({"f": functools.partial(other, b=1.0), "axes": {"a": AXES["a"]}}, r"axes\.b: .* there, None here"),
        ({"axes": {**AXES, "b": np.array([1, 2, 3], np.int32)}}, r"axes\.b\.dtype: float32 there, int32 here"),
        ({"f": described, "axes": {"a": [0.5], "b": [1.0]}, "static": "a"}, "axes.a"),
        ({"key": jax.random.key(2)}, r"key\.data"),
        ({"config": {"n": 1}}, "config.n: None there, 1 here"),
        ({"chunk": 3}, "chunk: 4 there, 3 here"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_more_of_the_same_is_refused(tmp_path, change, named):
    go(tmp_path / "a", chunk=4)
    go(tmp_path / "a", seeds=3, chunk=4)
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    if change.get("f") is described:
        change = {**change, "f": lambda key, a, b: {"value": jnp.float32(b) + a}}
    with pytest.raises(ValueError, match=named):
        go(tmp_path / "a", **{"seeds": 4, "chunk": 4, **change})
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before


def test_files_of_grown_folders_are_guarded(tmp_path):
    for seeds in (1, 2, 3):
        whole = go(tmp_path / "a", seeds=seeds, chunk=4)
    manifest = tmp_path / "a" / "manifest-00001.json"
    content = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(OSError, match=r"manifest-00001\.json is missing, and later ones are there"):
        go(tmp_path / "a", seeds=3, chunk=4)
    manifest.write_bytes(content[:-20])
    with pytest.raises(OSError, match=r"manifest-00001\.json cannot be read"):
        go(tmp_path / "a", seeds=3, chunk=4)
    manifest.write_bytes(content)
    last = sorted((tmp_path / "a").glob("chunk-*"))[-1]
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.warns(RuntimeWarning, match=last.name):
        xarray.testing.assert_identical(go(tmp_path / "a", seeds=3, chunk=4), whole)
    with _store.Store(tmp_path / "a") as store, pytest.raises(OSError, match="another process has added cells"):
        store.open(store.saved())
    with _files.locked(tmp_path / "a"), pytest.raises(OSError, match="another process is at work"):
        go(tmp_path / "a", seeds=5, chunk=4)
    assert not (tmp_path / "a" / "manifest-00003.json").exists()
