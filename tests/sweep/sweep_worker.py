"""Sweeps in processes of their own: to be killed, to hold eight devices, to be one of two.

python tests/sweep/sweep_worker.py kill PATH          one sweep of many chunks; prints a line when it starts
python tests/sweep/sweep_worker.py devices OUT        eight virtual devices against one
python tests/sweep/sweep_worker.py processes PORT K OUT    process K of two
"""

import functools
import os
import sys

AXES = {"scale": [0.5, 1.0, 2.0], "name": [], "power": [1, 2]}


def response(key, weights, *, scale, name, power):
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(key, (weights.shape[1],))
    y = getattr(jnp, name)(scale * (weights @ x))
    return {"norm": jnp.sum(y**2) ** power.astype(jnp.float32), "y": y, "count": jnp.sum(y > 0)}


def sweep(seeds=5, names=("sin", "cos"), **options):
    import jax
    import numpy as np

    import stabjax as sj

    weights = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    f = functools.partial(response, weights=weights)
    return sj.sweep.run(f, {**AXES, "name": names}, key=jax.random.key(3), seeds=seeds, static="name", **options)


def long_sweep(path=None):
    return sweep(seeds=40, names=("sin",), path=path, chunk=1)


def kill(path):
    long_sweep()
    print("ready", flush=True)
    long_sweep(path)
    print("finished", flush=True)


def devices(out):
    import jax
    import pytest
    import xarray

    assert jax.device_count() == 8
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    stored = sweep(mesh=mesh, path=f"{out}/stored", chunk=7)
    again = sweep(mesh=mesh, path=f"{out}/stored", chunk=7)
    xarray.testing.assert_identical(stored, again)
    assert stored.attrs["chunk"] == 8
    row = sweep(mesh=jax.make_mesh((8,), ("c",)), path=f"{out}/stored", chunk=7)
    xarray.testing.assert_identical(stored, row)
    with pytest.raises(ValueError, match="devices: 8 there, 1 here"):
        sweep(path=f"{out}/stored", chunk=8)
    grown = sweep(seeds=7, mesh=mesh, path=f"{out}/stored")
    xarray.testing.assert_identical(grown.isel(seed=slice(5)).drop_attrs(), stored.drop_attrs())
    xarray.testing.assert_allclose(grown, sweep(seeds=7), rtol=1e-5, atol=1e-6)
    xarray.testing.assert_identical(sweep(seeds=7, mesh=mesh, path=f"{out}/stored"), grown)
    stored.to_netcdf(f"{out}/stored.nc", engine="scipy")
    sweep(mesh=mesh).to_netcdf(f"{out}/spread.nc", engine="scipy")


def processes(port, k, out):
    import jax
    import pytest
    import xarray

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(k))
    assert jax.process_count() == 2
    # A path of its own for each process: one of them alone may touch it.
    path = f"{out}/files-{k}"
    first = sweep(path=path, chunk=4)
    os.listdir(f"{out}/files-0")
    again = sweep(path=path, chunk=4)
    first.to_netcdf(f"{out}/first-{k}.nc", engine="scipy")
    again.to_netcdf(f"{out}/again-{k}.nc", engine="scipy")
    with pytest.raises(ValueError if k == "0" else RuntimeError, match="chunk: 4 there, 6 here"):
        sweep(path=path, chunk=6)
    assert os.path.exists(path) == (k == "0")
    path = f"{out}/grown-{k}"
    one, two = (sweep(seeds=seeds, names=("sin",), path=path) for seeds in (1, 2))
    xarray.testing.assert_identical(two.isel(seed=[0]).drop_attrs(), one.drop_attrs())
    xarray.testing.assert_allclose(two, first.isel(seed=[0, 1]).sel(name=["sin"]), rtol=1e-5, atol=1e-6)


def main(command, *arguments):
    {"kill": kill, "devices": devices, "processes": processes}[command](*arguments)


if __name__ == "__main__":
    # By its own name: a function that is swept is known by its module.
    from tests.sweep import sweep_worker

    sweep_worker.main(*sys.argv[1:])
