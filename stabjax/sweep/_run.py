"""`run`: what is asked for, checked and handed on."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any

import jax
import numpy as np
import xarray
from jax.sharding import Mesh

from stabjax._arguments import as_key
from stabjax._numerics import permit_nan
from stabjax._types import PRNGKey
from stabjax.sweep import _program
from stabjax.sweep._grid import check_grid
from stabjax.sweep._processes import Processes
from stabjax.sweep._result import as_json
from stabjax.sweep._store import Store
from stabjax.sweep._sweep import Sweep


def run(
    f: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    key: PRNGKey,
    seeds: int = 1,
    static: str | Iterable[str] = (),
    path: str | PathLike[str] | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    config: Mapping[str, Any] | None = None,
) -> xarray.Dataset:
    """Evaluate a function of a key and named parameters at every point of a grid, for several seeds.

    Example::

        def noise_gain(key, *, bias, radius):
            ...
            return {"gain": gain}

        result = sj.sweep.run(noise_gain, {"bias": biases, "radius": radii}, key=jax.random.key(0), seeds=20)
        result.gain.sel(bias=0.1).mean("seed")          # (radius,)

    The function sees one cell: a key and one number per axis. Cells run side by side under `jax.vmap`, as one compiled
    program for the whole grid: as many at a time as memory allows, on the CPU as many as is fastest there. The key of a
    cell is ``fold_in(key, seed)``, whatever the strengths: the curves of one seed over an axis are paired, and differ
    by the strength alone.

    Axes hold numbers, which are traced. A parameter that Python needs the value of (a size, a name, an `if`) is named
    in ``static``; its axis may hold anything hashable, and each combination of static values compiles once.

    XLA's own generator (keys of kind ``rbg`` and ``unsafe_rbg``) takes one key for all cells that run side by side, so
    with such a key they run one at a time; with keys of these kinds that the function makes itself, cells are not
    independent of the chunks, and curves are not paired.

    The program is compiled once per function, so define it once, outside of loops. It is compiled again if a variable
    that the function closes over, a global that it names, or an attribute of a callable object is bound to something
    new. What lies deeper is not seen in the same process: a list or an object that is changed in place, and what other
    functions that it calls read. Arrays that it closes over are constants of the program. Large ones are better
    arguments: `functools.partial` (or `jax.tree_util.Partial`) of arrays, networks of `stabjax.networks.wrap` and other
    registered pytrees, or a callable pytree itself, keep their arrays outside of the program; other numbers bound this
    way are static.

    With a ``path``, each finished chunk is written at once. After a kill the same call goes on where it stopped, and
    its result is the same to the bit; at most the chunk in flight is lost. A call with other values on the axes, in any
    order, or another number of seeds keeps the cells that are there, to the bit, and computes the new ones: they agree
    with those of a sweep of the whole grid up to rounding. What else differs from the sweep in that folder (names of
    axes, key, function, its program, configuration, chunks, devices, version of JAX) is refused by name: one axis more
    needs another path. What Python does inside of callbacks is not part of the comparison. A damaged chunk is named in
    a warning and computed again.

    On several devices, ``mesh`` deals the cells of a chunk out to all of them; every device runs its share by itself.
    In several processes (`jax.distributed`), every process makes the same call and gets the whole result; by default
    all devices of all processes take part. The first process alone reads and writes ``path``.

    Args:
        f: ``(key, **cell) -> arrays``: an array, a dictionary of arrays, or any pytree of them, and of results such as
            a `stabjax.stability.Stability`.
        axes: Name of a parameter to its values, one-dimensional.
        key: Key of the sweep, `jax.random.key`.
        seeds: Number of seeds.
        static: Names of the axes whose values are handed over as they are.
        path: Folder for the chunks, new or of the same sweep, whatever its values and seeds.
        chunk: Number of cells in one call of the program, and in one file (rounded up to a multiple of the devices). By
            default all, if their outputs keep within 1 GiB per device; with a ``path`` at most a sixteenth of them.
            Results with other chunks agree up to rounding.
        mesh: Devices that share the work.
        config: Anything that JSON can hold, kept with the result.

    Returns:
        A dataset with the dimensions of ``axes`` in their order, ``seed``, and those of an output ``x``,
        ``x_dim_0, ...``. Its variables are named by their path in the output (``value`` for a bare array; nested names
        are joined by dots, as is a ``/`` in a name). ``valid`` says in which cells every number is finite, and every
        result with a ``valid`` of its own valid. Keys become their numbers, half precision single precision.
        Attributes: ``jax``, ``numpy``, ``stabjax``, ``python``, ``device``, ``function``, ``key`` and ``config`` as
        JSON, the size of a ``chunk``, and ``errors``, if any.

        A result with a ``to_xarray`` brings its own dimensions and labels (``layer``, ...), shared by those that agree
        in them. What it calls like an axis or like ``valid`` has its name in front: ``stability_valid``.

        A chunk that raises while it runs is NaN (zero where there are integers) and not valid; the text stands in
        ``errors`` and in a warning, with its first and last cell, and the rest goes on. It is not written: the next
        call with the same path tries again.

    Raises:
        TypeError: if the function does not take these names or cannot be traced, if an axis holds no numbers and is
            not static, or if something static is not hashable.
        ValueError: for an axis that is empty or not one-dimensional, a name used twice, or a path that holds something
            else.
        OSError: if a file cannot be written, by name; all chunks before it stay whole.
        RuntimeError: in several processes, what the first one raised about the files.
    """
    key = as_key(key)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int | np.integer) or chunk < 1):
        raise ValueError(f"expected chunk=None or at least 1, got {chunk!r}")
    cells = check_grid(axes, static, seeds)
    _program.check_names(f, cells.names)
    mesh = _row_of_devices(mesh)
    processes = Processes(mesh)
    with permit_nan(), contextlib.nullcontext() if path is None else Store(path) as store:
        if store is not None:
            processes.on_leader(store.saved)  # what is no folder of a sweep is refused before the work
        return Sweep(f, cells, key, mesh, processes, store, as_json(config)).run(chunk)


def _row_of_devices(mesh: Mesh | None) -> Mesh | None:
    """Return all devices of a mesh in one row, in the same order whatever its shape."""
    if not isinstance(mesh, Mesh | None):
        raise TypeError(f"expected a jax.sharding.Mesh, got {mesh!r}: make it with jax.make_mesh")
    if mesh is None and jax.process_count() == 1:
        return None
    devices = jax.devices() if mesh is None else mesh.devices.flat
    return Mesh(np.asarray(sorted(devices, key=lambda device: device.id)), ("cells",))
