"""One call of `run`: the programs of all blocks, their chunks one after the other, and the rows of all cells."""

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stabjax.sweep import _program
from stabjax.sweep._grid import Grid
from stabjax.sweep._progress import bar
from stabjax.sweep._result import Errors, dataset, error_text, key_numbers, output_names, versions
from stabjax.sweep._store import Store
from stabjax.sweep._team import Team


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Cells that are computed in one call and kept in one file."""

    number: int
    block: int
    """The combination of static values they belong to."""
    start: int
    """The first of them in the block."""
    rows: slice
    """All of them in the sweep."""

    @property
    def count(self) -> int:
        """How many they are."""
        return self.rows.stop - self.rows.start


class Sweep:
    """A checked sweep: the function is traced, nothing is compiled yet."""

    def __init__(
        self, f: Any, cells: Grid, key: jax.Array, mesh: Mesh | None, team: Team, store: Store | None, config: str
    ) -> None:
        self.cells, self.mesh, self.team, self.store = cells, mesh, team, store
        program, arrays = _program.split(f)
        probe = jax.device_put(np.zeros(()))  # under jit, a tracer too
        if any(isinstance(x, Tracer) for x in (probe, key, *arrays)):
            raise TypeError(
                "expected a key and arrays with values, got tracers: call sweep.run outside of jax.jit, jax.vmap and "
                "jax.grad; it compiles by itself"
            )
        self.devices = 1 if mesh is None else mesh.size
        self.device = next(iter(probe.devices())) if mesh is None else mesh.devices.flat[0]
        self.about = {"function": _program.function_name(f), "key": key_numbers(key), "config": json.loads(config)}
        self.key, self.arrays = self._everywhere((key, arrays))
        self.programs = [program.of(combination) for combination in cells.combinations()]
        values = cells.cells(np.zeros(1, int))[1]
        one = {name: v[0] for name, v in values.items()}
        self.outputs: dict[str, Any] = {}
        self.names: list[tuple[str, ...]] = []
        """Of the outputs of every program, in the order it returns them."""
        for program in self.programs:
            out = _program.trace(program, self.arrays, self.key, one)
            self.names.append(output_names(out, cells.names))
            outputs = dict(zip(self.names[-1], jax.tree.leaves(out)))
            self.outputs = self.outputs or outputs
            if (here := _kinds(outputs)) != (before := _kinds(self.outputs)):
                raise ValueError(
                    f"expected outputs of the same names, shapes and dtypes for all static values, got {here} for "
                    f"{program.static} and {before} before: sweep the sizes one by one"
                )
        shapes, treedef = jax.tree.flatten(jax.tree.map(_shape, (self.arrays, self.key, one)))
        x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self.traffic = [_program.traffic(program, treedef, tuple(shapes), x64) for program in self.programs]
        self.layouts: list[_program.Layout] = []
        self.lowered: list[Any] = []

    def _everywhere(self, tree: Any) -> Any:
        """Arrays as a whole on every device."""
        if self.mesh is None:
            return jax.device_put(tree)
        whole = NamedSharding(self.mesh, P())

        def place(x: Any) -> jax.Array:
            # Keys go as their numbers: those of one process cannot be put on the devices of another.
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(place(jax.random.key_data(x)), impl=jax.random.key_impl(x))
            return jax.device_put(np.asarray(x), whole)

        return jax.tree.map(place, tree)

    def run(self, chunk: int | None) -> xarray.Dataset:
        """All cells, ``chunk`` of them at once."""
        size, blocks, block = self._size(chunk), range(len(self.programs)), self.cells.block
        self.layouts = [self._layout(b, size) for b in blocks]
        # Before any chunk runs: a function that cannot be batched is no failure of a chunk.
        self.lowered = [self._lowered(b, layout) for b, layout in enumerate(self.layouts)]
        starts = [(b, start) for b in blocks for start in range(0, block, size)]
        chunks = [
            Chunk(number, b, start, slice(b * block + start, b * block + min(start + size, block)))
            for number, (b, start) in enumerate(starts)
        ]
        shapes = {name: ((block * len(blocks), *leaf.shape), leaf.dtype) for name, leaf in self.outputs.items()}
        rows = {name: np.zeros(*shape) for name, shape in shapes.items()}
        rows["valid"] = np.zeros(block * len(blocks), bool)
        left = chunks if self.store is None else self._resume(self.store, size, chunks, rows)
        errors: Errors = []
        with bar(sum(c.count for c in left), shown=self.team.leads) as tell:
            for c in left:
                if text := self._compute(c, rows):
                    errors.append((self.cells.where(c.rows.start), self.cells.where(c.rows.stop - 1), text))
                tell(c.count)
        if errors:
            text = f"{len(errors)} of {len(chunks)} chunks failed and are not valid; see attrs['errors']. "
            warnings.warn(text + error_text(errors[:1]), RuntimeWarning, stacklevel=3)
        attributes = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.about.items()}
        device = f"{self.device.platform} ({self.device.device_kind}, {self.devices})"
        return dataset(self.cells, rows, {"device": device, **attributes, "chunk": size}, errors)

    def _size(self, chunk: int | None) -> int:
        """Cells of a chunk; without a wish, as many as there were before the sweep was interrupted."""
        saved = np.zeros(1, np.int64)
        if (store := self.store) is not None and chunk is None:

            def look() -> None:
                saved[0] = (store.saved() or {}).get("chunk", 0)

            self.team.lead(look)
            self.team.share([saved])
        if chunk is None and saved[0] == 0:
            per_cell = sum(leaf.size * leaf.dtype.itemsize for leaf in self.outputs.values())
            pieces = 1 if store is None else max(1, _program.PIECES // len(self.programs))
            return _program.chunk_size(
                self.cells.block, per_cell, seeds=self.cells.seeds, devices=self.devices, pieces=pieces
            )
        asked = int(saved[0] if chunk is None else chunk)
        return _program.multiple(min(asked, self.cells.block), self.devices)

    def _layout(self, block: int, size: int) -> _program.Layout:
        largest = _program.side_by_side(self.traffic[block], self.device.platform)
        # Under vmap, XLA's generator takes one key for a whole batch.
        if "rbg" in str(jax.random.key_impl(self.key)):
            largest = 1
        options = {"seeds": self.cells.seeds, "devices": self.devices}
        layout = _program.layout(size, largest=largest, **options)
        # What a cell reads and writes bounds what it holds; only where that bound is too large the program is asked.
        while layout.batch * self.traffic[block] > _program.MEMORY and layout.batch > 1:
            if _program.fits(self._lowered(block, layout).compile()):
                break
            layout = _program.layout(size, largest=layout.batch // 2, **options)
        return layout

    def _arguments(self, start: int, rows: int) -> tuple[Any, ...]:
        """Arguments for the cells from ``start`` on; beyond the end the last one is repeated."""
        seeds, values = self.cells.cells(np.minimum(np.arange(start, start + rows), self.cells.block - 1))
        if self.mesh is not None:
            seeds, values = jax.device_put((seeds, values), NamedSharding(self.mesh, P(self.mesh.axis_names)))
        return self.arrays, self.key, seeds, values

    def _lowered(self, block: int, layout: _program.Layout) -> Any:
        return _program.lower(self.programs[block], self._arguments(0, layout.rows), layout, self.mesh)

    def _compute(self, c: Chunk, rows: dict[str, np.ndarray]) -> str:
        """Fill in the rows of a chunk and keep them; or say what was raised."""
        program, layout = self.programs[c.block], self.layouts[c.block]
        text, results = "", None
        try:
            arguments = self._arguments(c.start, layout.rows)
            results = _program.chunk(*arguments, program=program, layout=layout, mesh=self.mesh)
            jax.block_until_ready(results)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            # Raised inside of a callback, an interrupt comes back as an error of the runtime.
            if re.search(r"^KeyboardInterrupt\b", text, re.MULTILINE):
                raise KeyboardInterrupt from error
        if text := self.team.errors(text):
            for array in rows.values():
                array[c.rows] = np.nan if np.issubdtype(array.dtype, np.inexact) else 0
            return text
        outputs, valid = self.team.whole(results)
        for name, array in zip([*self.names[c.block], "valid"], [*outputs, valid]):
            rows[name][c.rows] = array[: c.count]
        if (store := self.store) is not None:
            self.team.lead(lambda: store.write(c.number, {name: array[c.rows] for name, array in rows.items()}))
        return ""

    def _resume(self, store: Store, size: int, chunks: list[Chunk], rows: dict[str, np.ndarray]) -> list[Chunk]:
        """Read what is finished; say what is left."""
        manifest, done = self._manifest(size), np.zeros(len(chunks), bool)

        def read() -> None:
            store.open(manifest)
            for c in chunks:
                if (found := store.read(c.number)) is not None:
                    for name, array in rows.items():
                        array[c.rows] = found[name]
                    done[c.number] = True

        self.team.lead(read)
        self.team.share([done, *rows.values()])
        return [c for c in chunks if not done[c.number]]

    def _manifest(self, size: int) -> dict[str, Any]:
        """What has to be the same for the same bits."""
        program = hashlib.sha256()
        for lowered in self.lowered:
            program.update(lowered.as_text().encode())
        return {
            **self.about,
            "axes": self.cells.describe(),
            "seeds": self.cells.seeds,
            "outputs": _kinds(self.outputs),
            "chunk": size,
            "devices": self.devices,
            "device": f"{self.device.platform} {self.device.device_kind}",
            "jax": jax.__version__,
            "arrays": _fingerprint(self.arrays),
            "program": program.hexdigest(),
            "versions": versions(),
        }


def _kinds(outputs: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in outputs.items()}


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype if isinstance(x, jax.Array) else jax.dtypes.canonicalize_dtype(x.dtype)
    )


def _fingerprint(tree: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
