"""Chunks that fail, interrupts, and errors that are no failures of a chunk."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from stabjax import sweep
from stabjax.sweep import _grid, _result
from stabjax.sweep._outputs import Outputs
from tests.sweep.helpers import chunks


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
    cells = _grid.check_grid({"a": [0.5, 1.5], "kind": ["u", "v", "w"], "b": [1, 2]}, "kind", 2)
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
