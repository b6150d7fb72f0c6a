"""The compiled program of a sweep: one cell, and a chunk of cells.

What is swept is split into arrays, which are arguments of the program, and the rest, which is static. So functions that
differ in their arrays alone share one compilation, and no array is a constant of the program.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stabjax._arguments import partial_as_tree
from stabjax.sweep._cache_key import cache_key, intern, structure_key
from stabjax.sweep._outputs import is_result

MEMORY = 2**30
"""Bytes that the outputs of one chunk may take on a device, and what is under way besides."""
ACCELERATOR = 16
"""Operations of a batch read and write so many times the memory before it is tried for size, off the CPU."""
PIECES = 16
"""A sweep that is written to disk has at least so many chunks: each is lost as a whole when the process is killed."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is fixed while a program runs. Two are equal if their identities are."""

    treedef: Any
    constants: tuple[Any, ...] = dataclasses.field(compare=False)
    """Leaves of the function, None in the places of arrays."""
    identity: object
    static: Mapping[str, Any] = dataclasses.field(compare=False, default_factory=dict)
    """Values of the static axes."""

    def cell(self, arrays: tuple[Any, ...], key: jax.Array, values: Mapping[str, Any]) -> Any:
        """Call the function."""
        # Arrays go back, in order, to the places where None stands: for JAX None is no leaf, so nothing else is None.
        found = iter(arrays)
        leaves = [next(found) if constant is None else constant for constant in self.constants]
        f = jax.tree.unflatten(self.treedef, leaves)
        return f(key, **values, **self.static)

    def of(self, static: Mapping[str, Any]) -> "Program":
        """Return the same program with values for the static axes."""
        # Of the function and of the values: 1, 1.0 and True are different programs.
        identity = intern((self.identity, tuple((name, cache_key(value)) for name, value in static.items())))
        return dataclasses.replace(self, identity=identity, static=static)


def split_arrays(f: Any) -> tuple[Program, tuple[Any, ...]]:
    """Return a function as a program and its arrays."""
    leaves, treedef = jax.tree.flatten(partial_as_tree(f))
    arrays = tuple(leaf for leaf in leaves if _is_array(leaf))
    constants = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    try:
        identity = intern((structure_key(treedef), cache_key(constants)))
    except TypeError as error:
        raise TypeError(
            "expected a function whose parts are arrays or hashable, got one that holds something else: hand lists "
            f"over as tuples, and objects as registered pytrees ({error})"
        ) from error
    return Program(treedef, constants, identity), arrays


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUMm")


def check_names(f: Any, names: tuple[str, ...]) -> None:
    """Check that every axis is a parameter of the function, and that every parameter has a value."""
    if not callable(f):
        raise TypeError(f"expected a function (key, **cell) -> arrays, got {type(f).__name__}")
    inner, given = f, set()
    # A partial may hold another: all of their keywords are given already.
    while isinstance(inner, functools.partial):
        given |= set(inner.keywords)
        inner = inner.func
    if twice := sorted(given & set(names)):
        raise ValueError(f"expected every name once, got {twice} as axes and as arguments of the partial function")
    try:
        signature = inspect.signature(f)
    except (ValueError, TypeError):
        return
    try:
        # The key comes first and by position, the axes by name.
        signature.bind(None, **dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(
            f"expected a function (key, {', '.join(names)}), got {function_name(f)}{signature}: {error}; name the "
            "axes like its parameters and bind the others with functools.partial"
        ) from error


def function_name(f: Any) -> str:
    """Return module and name of a function."""
    while isinstance(f, functools.partial):
        f = f.func
    f = f if hasattr(f, "__qualname__") else type(f)
    return f"{f.__module__}.{f.__qualname__}"


@functools.partial(jax.jit, static_argnames="program")
def cell(
    arrays: tuple[Any, ...], key: jax.Array, seed: Any, values: dict[str, Any], *, program: Program
) -> tuple[Any, jax.Array]:
    """Return outputs of one cell, and whether all of them are finite, or as valid as a result says itself.

    A function of its own under `jit`, so that it is traced once whatever the size of the chunks.
    """
    # The key of a cell depends on its seed alone: all points of the grid share it, so curves over them are paired.
    out = jax.tree.map(_as_storable, program.cell(arrays, jax.random.fold_in(key, seed), values))
    sound = map(_is_valid, jax.tree.leaves(out, is_leaf=is_result))
    return out, functools.reduce(jnp.logical_and, sound, jnp.array(True))


def _is_valid(part: Any) -> jax.Array:
    """Tell whether all of an array is finite, or all of a result is valid."""
    valid = getattr(part, "valid", None)
    if isinstance(valid, jax.Array) and valid.dtype == bool:
        return jnp.all(valid)
    leaves = [leaf for leaf in jax.tree.leaves(part) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves], jnp.array(True))


def _as_storable(leaf: Any) -> jax.Array:
    """Convert keys to their numbers and short types of accelerators to what files know; both lose nothing."""
    try:
        leaf = jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"expected a function that returns arrays, or pytrees of them, got {type(leaf).__name__} among what it "
            "returns: return the numbers in it; a result, such as a Stability, is labeled by itself"
        ) from error
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4:
        return leaf.astype(jnp.float32)
    if leaf.dtype.kind == "V":
        return leaf.astype(jnp.int32)
    return leaf


@dataclasses.dataclass(frozen=True)
class ChunkLayout:
    """How the cells of a chunk are dealt out."""

    rows: int
    """All cells, padding included."""
    batch: int
    """Cells side by side on a device."""
    seeds: int
    """With which every point of the grid is computed as a whole; 0 if cells are computed one by one."""


@functools.partial(jax.jit, static_argnames=("program", "layout", "mesh"))
def run_chunk(
    arrays: tuple[Any, ...],
    key: jax.Array,
    seeds: Any,
    values: dict[str, Any],
    *,
    program: Program,
    layout: ChunkLayout,
    mesh: Mesh | None,
) -> tuple[list[jax.Array], jax.Array]:
    """Return outputs of some cells, ``(cells, ...)`` each, and which cells are finite."""

    def cells(arrays: Any, key: Any, seeds: Any, values: Any) -> Any:
        def one(seed: Any, values: Any) -> Any:
            out, valid = cell(arrays, key, seed, values, program=program)
            return jax.tree.leaves(out), valid

        if not layout.seeds:
            return _map_batches(lambda x: one(*x), (seeds, values), layout.batch)

        def point(values: Any) -> Any:
            return _map_batches(lambda seed: one(seed, values), seeds[: layout.seeds], layout.seeds)

        # Row r is seed r % seeds of point r // seeds: the strengths of a point stand in its first row.
        points = jax.tree.map(lambda x: x[:: layout.seeds], values)
        if points:
            found = _map_batches(point, points, layout.batch // layout.seeds)
        else:
            # Without traced axes there is one point: (1, seeds, ...), as above (points, seeds, ...).
            found = jax.tree.map(lambda x: x[None], point(values))
        return jax.tree.map(_merge_axes, found)

    if mesh is None:
        return cells(arrays, key, seeds, values)
    # Rows are spread over the devices; function and key are whole on each. No cell needs another one.
    rows = P(mesh.axis_names)
    specs = {"in_specs": (P(), P(), rows, rows), "out_specs": rows}
    return jax.shard_map(cells, mesh=mesh, check_vma=False, **specs)(arrays, key, seeds, values)


def _map_batches(f: Any, xs: Any, batch: int) -> Any:
    """Map ``f`` over all rows, ``batch`` of them side by side.

    One at a time is not batched: a convolution with kernels of its own would become a slow, grouped one.
    """
    if batch == 1:
        return jax.lax.map(f, xs)
    if batch == len(jax.tree.leaves(xs)[0]):
        return jax.vmap(f)(xs)
    # (rows,) -> (batches, batch), a whole number of batches by `choose_layout`; results go back to (rows, ...).
    batches = jax.tree.map(lambda x: jnp.reshape(x, (-1, batch)), xs)
    return jax.tree.map(_merge_axes, jax.lax.map(jax.vmap(f), batches))


def _merge_axes(x: jax.Array) -> jax.Array:
    """Merge the first two axes; -1 for the new one would be no length where an array has no elements."""
    return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def trace(program: Program, arrays: tuple[Any, ...], key: jax.Array, values: dict[str, Any]) -> Any:
    """Trace a cell and return the shapes of its outputs; what is wrong with the function comes out here."""
    with _explained(program, values, "a cell was", "call the function with one cell"):
        return cell.eval_shape(arrays, key, np.uint32(0), values, program=program)[0]


def lower(program: Program, arguments: tuple[Any, ...], layout: ChunkLayout, mesh: Mesh | None) -> Any:
    """Trace a chunk, not compiled; what cannot be done with many cells at once comes out here."""
    with _explained(
        program, arguments[-1], f"cells, {layout.batch} side by side, were", "call jax.vmap of the function"
    ):
        return run_chunk.lower(*arguments, program=program, layout=layout, mesh=mesh)


@contextlib.contextmanager
def _explained(program: Program, values: Mapping[str, Any], what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, jax.errors.UnexpectedTracerError) as error:
        raise TypeError(
            "expected a function that JAX can trace, but it asks for the value of something traced: name an axis in "
            "static if Python needs its value (a size, an `if`), use jax.numpy and jax.lax where it is computed with, "
            f"and jax.pure_callback for what cannot be traced. JAX says: {error}"
        ) from error
    except Exception as error:
        shown = [*(f"{k}: {v.dtype}" for k, v in values.items()), *(f"{k}={v!r}" for k, v in program.static.items())]
        error.add_note(f"raised while {what} traced ({', '.join(['key', *shown])}): {advice} to see it alone")
        raise


def chunk_size(total: int, bytes_per_cell: int, *, seeds: int, devices: int, pieces: int) -> int:
    """Return the largest number of cells whose outputs keep to the memory, dealt out evenly.

    Args:
        total: cells in all.
        bytes_per_cell: of the outputs.
        seeds: cells of one point of the grid; they stay together if that leaves enough chunks.
        devices: a multiple of it is taken.
        pieces: smallest number of chunks.
    """
    # Two limits: the memory of the outputs, and the number of chunks.
    largest = max(1, min(devices * MEMORY // max(1, bytes_per_cell), -(-total // pieces)))
    together = seeds if seeds * devices <= largest else 1
    return together * round_up(_even_share(total // together, largest // together), devices)


def choose_layout(size: int, *, seeds: int, devices: int, largest: int) -> ChunkLayout:
    """Lay out a chunk of ``size`` cells, at most ``largest`` side by side on a device.

    Where all seeds of a point fit, points are computed as a whole: what depends on the key alone is then computed once
    for all points of a batch, and what depends on the strengths alone once for all seeds. Eight points of
    three seeds on two devices, at most six cells side by side::

        device 0   a a a b b b | c c c d d d        rows = 24, batch = 6, seeds = 3
        device 1   e e e f f f | g g g h h h

    Args:
        size: cells.
        seeds: cells of one point of the grid.
        devices: that share the chunk.
        largest: cells side by side on a device.
    """
    if size % seeds == 0 and seeds <= largest:
        # Points of a device, rounded up; in batches of equal size they fill up a few rows more.
        each = -(-size // (seeds * devices))
        # Points side by side, as many in each batch.
        batch = _even_share(each, largest // seeds)
        rows = devices * round_up(each, batch) * seeds
        if 8 * rows <= 9 * size:  # else too many cells are padding
            return ChunkLayout(rows, batch * seeds, seeds)
    each = -(-size // devices)
    # One by one: the seeds of a point may lie in different batches.
    batch = _even_share(each, largest)
    return ChunkLayout(devices * round_up(each, batch), batch, 0)


def cells_side_by_side(traffic: float, platform: str) -> int:
    """Estimate the number of cells that may run side by side.

    On the CPU, cells are fastest when what is under way stays in the cache: measured from cells of a microsecond to
    small convolutional networks, the optimum lies where the operations of a batch read and write 1 GiB in all, of
    which a few MiB are alive at once. Other devices want large batches; `fits_memory` guards their memory.
    """
    return max(1, int((1 if platform == "cpu" else ACCELERATOR) * MEMORY / max(traffic, 1)))


@functools.lru_cache(maxsize=256)
def bytes_accessed(program: Program, treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], x64: bool) -> float:
    """Estimate the bytes that one cell reads and writes, an upper bound on what it holds; compile nothing."""
    del x64  # another answer, though the arguments are the same
    arrays, key, values = jax.tree.unflatten(treedef, shapes)
    lowered = cell.lower(arrays, key, jax.ShapeDtypeStruct((), np.uint32), values, program=program)
    try:
        return float((lowered.cost_analysis() or {})["bytes accessed"])
    except (KeyError, NotImplementedError, jax.errors.JaxRuntimeError):  # unknown to this device
        return 1.0


@functools.lru_cache(maxsize=256)
def program_digest(program: Program, treedef: Any, shapes: tuple[jax.ShapeDtypeStruct, ...], x64: bool) -> str:
    """Return the program of one cell as a checksum: the same for any grid, and in every process."""
    del x64
    arrays, key, values = jax.tree.unflatten(treedef, shapes)
    lowered = cell.lower(arrays, key, jax.ShapeDtypeStruct((), np.uint32), values, program=program)
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def fits_memory(compiled: Any) -> bool:
    """Tell whether what a compiled program holds besides its outputs keeps to the memory."""
    stats = compiled.memory_analysis()
    return stats is None or stats.temp_size_in_bytes <= MEMORY


def _even_share(total: int, largest: int) -> int:
    # As few batches as the limit allows, of like size: 9 in batches of at most 4 are 3, 3, 3 and not 4, 4, 1.
    return -(-total // -(-total // largest))


def round_up(number: int, of: int) -> int:
    """Return the next multiple of a number."""
    return -(-number // of) * of
