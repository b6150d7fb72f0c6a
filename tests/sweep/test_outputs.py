"""The dataset of a sweep: names, labels, attributes, and its file."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from rich.console import Console

from stabjax import sweep
from stabjax.sweep import _sweep
from tests.sweep.helpers import AXES, cell, go


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
    assert found.attrs["function"] == "tests.sweep.helpers.cell"
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
