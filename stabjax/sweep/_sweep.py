"""One call of `run`: the programs of all blocks, their chunks one after the other, and the rows of all cells."""

import dataclasses
import json
import math
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
from rich.console import Console

from stabjax import _files
from stabjax._progress import progress_bar
from stabjax._provenance import describe_shortly, digest
from stabjax.sweep import _program
from stabjax.sweep._grid import Grid
from stabjax.sweep._outputs import check_same_labels, name_outputs
from stabjax.sweep._plan import Chunk, Lattice, Part, Piece, chunks_for, missing_cells, parts_of, pieces_of
from stabjax.sweep._processes import Processes
from stabjax.sweep._result import Errors, dataset, error_text, key_numbers, versions
from stabjax.sweep._store import Store


class Sweep:
    """A checked sweep: the function is traced, nothing is compiled yet."""

    def __init__(
        self,
        f: Any,
        cells: Grid,
        key: jax.Array,
        mesh: Mesh | None,
        processes: Processes,
        store: Store | None,
        config: str,
    ) -> None:
        self.cells, self.mesh, self.processes, self.store = cells, mesh, processes, store
        program, arrays = _program.split_arrays(f)
        probe = jax.device_put(np.zeros(()))  # under jit, a tracer too
        if any(isinstance(x, Tracer) for x in (probe, key, *arrays)):
            raise TypeError(
                "expected a key and arrays with values, got tracers: call sweep.run outside of jax.jit, jax.vmap and "
                "jax.grad; it compiles by itself"
            )
        self.devices = 1 if mesh is None else mesh.size
        self.device = next(iter(probe.devices())) if mesh is None else mesh.devices.flat[0]
        self.about = {"function": _program.function_name(f), "key": key_numbers(key), "config": json.loads(config)}
        # Once, before the first chunk: no chunk copies them again.
        self.key, self.arrays = self._replicate((key, arrays))
        self.programs = [program.of(combination) for combination in cells.combinations()]
        # One cell stands for all of a program: they differ in values, not in types.
        one = {name: axis[0] for name, axis in cells.traced.items()}
        traced = [_program.trace(program, self.arrays, self.key, one) for program in self.programs]
        self.outputs = [name_outputs(out, cells.names) for out in traced]
        """Of every program, in the order it returns them."""
        check_same_labels(list(zip([program.static for program in self.programs], self.outputs)))
        shapes, treedef = jax.tree.flatten(jax.tree.map(_shape, (self.arrays, self.key, one)))
        # Part of the key of what is cached: the same shapes give another program with x64.
        x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self.shapes = treedef, tuple(shapes), x64
        self.traffic = [_program.bytes_accessed(program, *self.shapes) for program in self.programs]
        static = {name: [describe_shortly(value) for value in values] for name, values in cells.static.items()}
        self.request = Lattice(static, cells.traced, cells.seeds)

    def _replicate(self, tree: Any) -> Any:
        """Copy arrays, as a whole, to every device."""
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
        """Compute all cells, ``chunk`` of them at once."""
        manifests = [] if self.store is None else self._saved_manifests(chunk)
        # What the folder has, part by part, and as a new part what it lacks.
        parts = parts_of(manifests)
        old = set(parts)
        if (new := missing_cells(self.request, parts)).any():
            parts.append(self._new_part(pieces_of(new), chunk, sum(part.count for part in parts)))
            # Before any chunk runs: a function that cannot be batched is no failure of a chunk.
            for piece, layout in zip(parts[-1].pieces, parts[-1].layouts):
                self._lower(parts[-1], piece, layout)
            manifests.append(self._manifest(parts[-1]) if self.store is not None else {})
        chunks = chunks_for(self.request, parts)
        total = math.prod(self.request.lengths)
        shapes = {name: ((total, *leaf.shape), leaf.dtype) for name, leaf in self.outputs[0].leaves.items()}
        # A row for each cell of the request, in its own order, whatever chunk it comes from.
        rows = {name: np.zeros(*shape) for name, shape in shapes.items()}
        rows["valid"] = np.zeros(total, bool)
        # The manifests are written here, before any chunk is computed.
        left = chunks if self.store is None else self._resume(self.store, manifests, chunks, rows)
        # Parts of earlier calls, as far as they are unfinished; those of this call are traced already.
        for part, k in dict.fromkeys((c.part, c.piece) for c in left if c.part in old):
            self._lower(part, part.pieces[k], part.layouts[k])
        errors: Errors = []
        total, done = sum(c.count for c in left), 0
        console = Console(stderr=True)
        with progress_bar(total, shown=self.processes.is_leader and console.is_terminal, console=console) as update:
            for c in left:
                if text := self._compute(c, rows):
                    # A chunk of an earlier call may hold cells that this one does not ask for.
                    there = c.rows[c.rows >= 0].tolist()
                    errors.append((self.cells.where(there[0]), self.cells.where(there[-1]), text))
                done += c.count
                update(done, f"sweep: {done}/{total} cells")
        if errors:
            text = f"{len(errors)} of {len(chunks)} chunks failed and are not valid; see attrs['errors']. "
            warnings.warn(text + error_text(errors[:1]), RuntimeWarning, stacklevel=3)
        attributes = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.about.items()}
        device = f"{self.device.platform} ({self.device.device_kind}, {self.devices})"
        about = {"device": device, **attributes, "chunk": parts[0].sizes[0]}
        return dataset(self.cells, rows, self.outputs[0], about, errors)

    def _new_part(self, pieces: list[Piece], chunk: int | None, first: int) -> Part:
        """Return a part of these pieces, dealt out to chunks."""
        per_cell = sum(leaf.size * leaf.dtype.itemsize for leaf in self.outputs[0].leaves.values())
        # At least so many chunks in all, so each piece needs its share of them.
        least = 1 if self.store is None else max(1, _program.PIECES // len(pieces))
        sizes, layouts = [], []
        for piece in pieces:
            options = {"seeds": len(piece.seeds), "devices": self.devices}
            if chunk is None:
                sizes.append(_program.chunk_size(piece.count, per_cell, pieces=least, **options))
            else:
                sizes.append(_program.round_up(min(int(chunk), piece.count), self.devices))
            layouts.append(self._layout(Part(self.request, [piece], [], [], 0), piece, sizes[-1]))
        return Part(self.request, pieces, sizes, layouts, first)

    def _layout(self, part: Part, piece: Piece, size: int) -> _program.ChunkLayout:
        block = self._block(part, piece)
        largest = _program.cells_side_by_side(self.traffic[block], self.device.platform)
        # Under vmap, XLA's generator takes one key for a whole batch.
        if "rbg" in str(jax.random.key_impl(self.key)):
            largest = 1
        options = {"seeds": len(piece.seeds), "devices": self.devices}
        layout = _program.choose_layout(size, largest=largest, **options)
        # What a cell reads and writes bounds what it holds; only where that bound is too large the program is asked.
        while layout.batch * self.traffic[block] > _program.MEMORY and layout.batch > 1:
            if _program.fits_memory(self._lower(part, piece, layout).compile()):
                break
            layout = _program.choose_layout(size, largest=layout.batch // 2, **options)
        return layout

    def _block(self, part: Part, piece: Piece) -> int:
        """Return the static values of a piece among those that are asked for."""
        return self.request.blocks[part.lattice.combinations[piece.block]]

    def _arguments(self, part: Part, piece: Piece, start: int, rows: int) -> tuple[Any, ...]:
        """Return arguments for the cells from ``start`` on; beyond the end the last one is repeated."""
        # Padding repeats a cell that is there, so that nothing is computed on values that nobody asked for.
        points, seeds = piece.cells(np.minimum(np.arange(start, start + rows), piece.count - 1))
        # Places on the traced axes; the seed, behind them, falls off in `zip`.
        inner = part.lattice.coordinates(piece.block, points, seeds)[len(part.lattice.static) :]
        values = {name: axis[index] for (name, axis), index in zip(part.lattice.traced.items(), inner)}
        seeds = seeds.astype(np.uint32)
        if self.mesh is not None:
            seeds, values = jax.device_put((seeds, values), NamedSharding(self.mesh, P(self.mesh.axis_names)))
        return self.arrays, self.key, seeds, values

    def _lower(self, part: Part, piece: Piece, layout: _program.ChunkLayout) -> Any:
        arguments = self._arguments(part, piece, 0, layout.rows)
        return _program.lower(self.programs[self._block(part, piece)], arguments, layout, self.mesh)

    def _compute(self, c: Chunk, rows: dict[str, np.ndarray]) -> str:
        """Fill in the rows of a chunk and keep them; or say what was raised."""
        piece, layout = c.part.pieces[c.piece], c.part.layouts[c.piece]
        block, there = self._block(c.part, piece), c.rows >= 0
        text, results = "", None
        try:
            arguments = self._arguments(c.part, piece, c.start, layout.rows)
            results = _program.run_chunk(*arguments, program=self.programs[block], layout=layout, mesh=self.mesh)
            jax.block_until_ready(results)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            # Raised inside of a callback, an interrupt comes back as an error of the runtime.
            if re.search(r"^KeyboardInterrupt\b", text, re.MULTILINE):
                raise KeyboardInterrupt from error
        # All processes agree on whether the chunk has failed, and none waits for the others in vain.
        if text := self.processes.first_error(text):
            for array in rows.values():
                array[c.rows[there]] = np.nan if np.issubdtype(array.dtype, np.inexact) else 0
            return text
        leaves, valid = self.processes.gather(results)
        # Without the padding; all cells of the chunk, also those not asked for, go into the file.
        found = dict(zip([*self.outputs[block].leaves, "valid"], (array[: c.count] for array in [*leaves, valid])))
        for name, array in rows.items():
            array[c.rows[there]] = found[name][there]
        if (store := self.store) is not None:
            self.processes.on_leader(lambda: store.write(c.number, {name: found[name] for name in rows}))
        return ""

    def _resume(
        self, store: Store, manifests: list[dict[str, Any]], chunks: list[Chunk], rows: dict[str, np.ndarray]
    ) -> list[Chunk]:
        """Read what is finished; say what is left."""
        done = np.zeros(len(chunks), bool)

        def read() -> None:
            store.open(*manifests)
            for k, c in enumerate(chunks):
                if (found := store.read(c.number)) is not None:
                    there = c.rows >= 0
                    for name, array in rows.items():
                        array[c.rows[there]] = found[name][there]
                    done[k] = True

        self.processes.on_leader(read)
        # Only the leader has read files.
        self.processes.broadcast([done, *rows.values()])
        return [c for k, c in enumerate(chunks) if not done[k]]

    def _saved_manifests(self, chunk: int | None) -> list[dict[str, Any]]:
        """Return the manifests of the folder, which must be of this function and key, whatever its grid."""
        found: list[dict[str, Any]] = []

        def look() -> None:
            if self.store is not None:
                found.extend(self.store.parts())
                if found:
                    self._check(found, chunk, f"the sweep in {self.store.path}")

        self.processes.on_leader(look)
        return json.loads(self.processes.broadcast_text(json.dumps(found)))

    def _check(self, manifests: list[dict[str, Any]], chunk: int | None, what: str) -> None:
        """Raise ``ValueError`` for any difference but in the values on the axes and the number of seeds."""
        saved, given = manifests[0], {**self._about(), "axes": _axis_kinds(self.cells.describe())}
        # Axes are compared by name and type alone: other values and more seeds add cells, and the order does not count.
        kept = {name: saved[name] for name in given} | {"axes": _axis_kinds(saved["axes"])}
        if chunk is not None:
            [first, *_] = parts_of(manifests[:1])
            # The size that this number would have given in the first call, which is what was written down.
            given["chunk"] = _program.round_up(min(int(chunk), first.pieces[0].count), self.devices)
            kept["chunk"] = saved["sizes"][0]
        programs = self._digests()
        for manifest in manifests:
            for static, saved_program in manifest["program"].items():
                # Only for static values that are asked for now; the others have no program here to compare.
                if programs.get(static, saved_program) != saved_program:
                    kept["program"], given["program"] = saved_program, programs[static]
        _files.refuse_difference(kept, given, what)

    def _digests(self) -> dict[str, str]:
        """Return the program of every block, by its static values."""
        digests = (_program.program_digest(program, *self.shapes) for program in self.programs)
        return dict(zip(self.request.combinations, digests))

    def _about(self) -> dict[str, Any]:
        """Describe what has to be the same for the same numbers, beside the program."""
        return {
            **self.about,
            "outputs": self.outputs[0].kinds(),
            "devices": self.devices,
            "device": f"{self.device.platform} {self.device.device_kind}",
            "jax": jax.__version__,
            "arrays": digest(self.arrays),
        }

    def _manifest(self, part: Part) -> dict[str, Any]:
        """Describe a part, as it is written down."""
        return {
            **self._about(),
            "axes": self.cells.describe(),
            "seeds": self.cells.seeds,
            "first": part.first,
            "sizes": part.sizes,
            "layouts": [list(dataclasses.astuple(layout)) for layout in part.layouts],
            "program": self._digests(),
            "versions": versions(),
        }


def _axis_kinds(axes: Mapping[str, Any]) -> dict[str, Any]:
    """Return which axes there are, and the type of their values, in the order of the names."""
    return {name: "static" if "static" in axes[name] else {"dtype": axes[name]["dtype"]} for name in sorted(axes)}


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype if isinstance(x, jax.Array) else jax.dtypes.canonicalize_dtype(x.dtype)
    )
