"""Which cells there are, and in which chunks: every call with a folder adds the cells that none before it had.

A cell is known by its coordinates, whatever the order of the axes and of the values on them. What one call adds is a
part: from the grid it asked for, without the cells of the parts before. So the parts of a folder follow from the grids
that were asked for, one after the other, and no list of cells is kept.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stabjax.sweep import _program


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """The points of a grid: axes of static values, as text, then traced ones, then seeds."""

    static: dict[str, list[str]]
    traced: dict[str, np.ndarray]
    seeds: int

    @classmethod
    def of(cls, axes: Mapping[str, Any], order: Sequence[str], seeds: int) -> "Lattice":
        """Build the lattice from axes as they are written down, which keep no order of their own."""
        static = {name: axes[name]["static"] for name in order if "static" in axes[name]}
        traced = {name: np.asarray(axes[name]["values"], axes[name]["dtype"]) for name in order if name not in static}
        return cls(static, traced, seeds)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the numbers of blocks (combinations of static values), of points in each, and of seeds."""
        return math.prod(map(len, self.static.values())), math.prod(map(len, self.traced.values())), self.seeds

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the lengths of all axes, the seeds last."""
        return (*map(len, self.static.values()), *map(len, self.traced.values()), self.seeds)

    @functools.cached_property
    def combinations(self) -> list[str]:
        """Return the static values of each block as text that does not depend on the order of the axes."""
        names, found = sorted(self.static), []
        for index in np.ndindex(*map(len, self.static.values())):
            # By the sorted names: the same text whatever the order of the axes.
            place = dict(zip(self.static, index))
            found.append("; ".join(f"{name}={self.static[name][place[name]]}" for name in names))
        return list(_number_repeats(found))

    @functools.cached_property
    def blocks(self) -> dict[str, int]:
        """Return the numbers of the blocks, by that text."""
        return {text: k for k, text in enumerate(self.combinations)}

    def positions_on(self, other: "Lattice") -> list[np.ndarray]:
        """Return for every axis where its values stand on the axis of another lattice; -1 if they do not."""
        if other is self:
            return [np.arange(length) for length in self.lengths]
        found = []
        for name, values in (self.static | self.traced).items():
            # Axes have the same names on both, but may stand in another order and have other values.
            mine, theirs = _identities(values), _identities((other.static | other.traced)[name])
            index = {identity: k for k, identity in enumerate(theirs)}
            found.append(np.array([index.get(identity, -1) for identity in mine]))
        # A seed is its own number: the other lattice has those below its count.
        seeds = np.arange(self.seeds)
        return [*found, np.where(seeds < other.seeds, seeds, -1)]

    def cells_in(self, other: "Lattice") -> np.ndarray:
        """Tell which of its cells another lattice has too, ``(blocks, points, seeds)``."""
        mask = np.zeros(self.lengths, bool)
        # A cell is there if all of its coordinates are: the product of the places on each axis.
        mask[np.ix_(*(np.flatnonzero(places >= 0) for places in self.positions_on(other)))] = True
        return mask.reshape(self.shape)

    def coordinates(self, block: int, points: np.ndarray, seeds: np.ndarray) -> list[Any]:
        """Return where some of its cells stand on each of its axes."""
        # Cells are numbered block, then point, then seed, each in C order over its own axes.
        blocks = np.unravel_index(block, tuple(map(len, self.static.values()))) if self.static else ()
        inner = np.unravel_index(points, tuple(map(len, self.traced.values()))) if self.traced else ()
        return [*blocks, *inner, seeds]


def _identities(values: Any) -> list[tuple[Any, int]]:
    """Return for each value its bits (one for all NaN), and how often it came before on the axis."""
    if isinstance(values, np.ndarray):
        values = np.array(values)
        # Bits tell 0.0 from -0.0. NaN has many bit patterns, and one is taken for all.
        if np.any(other := values != values):
            values[other] = np.nan
        values = values.view(f"V{values.dtype.itemsize}").tolist()
    return list(_number_repeats(values, join=False))


def _number_repeats(values: Sequence[Any], *, join: bool = True) -> Iterator[Any]:
    seen: dict[Any, int] = {}
    for value in values:
        seen[value] = seen.get(value, -1) + 1
        yield (value, seen[value]) if not join else f"{value} #{seen[value]}" if seen[value] else value


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Points of one block that lack the same seeds."""

    block: int
    points: np.ndarray | range
    seeds: np.ndarray

    @property
    def count(self) -> int:
        """Return the number of cells."""
        return len(self.points) * len(self.seeds)

    def cells(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the point and seed of some of its cells, all seeds of a point after each other."""
        # Position p of the piece is point p // seeds, seed p % seeds, of its own lists.
        point, seed = np.divmod(positions, len(self.seeds))
        return np.asarray(self.points)[point] if isinstance(self.points, np.ndarray) else point, self.seeds[seed]


def pieces_of(new: np.ndarray) -> list[Piece]:
    """Deal out new cells, ``(blocks, points, seeds)``, to as few pieces as can be.

    A piece is a rectangle: some points of one block times the seeds that all of them lack. Here three seeds were there
    for the points ``a`` and ``b``, and the call asks for a point and two seeds more (``x``: new cells)::

               seed 0  1  2  3  4
        a           .  .  .  x  x      piece of the points a, b and the seeds 3, 4
        b           .  .  .  x  x
        c           x  x  x  x  x      piece of the point c and all seeds
    """
    found = []
    for block, rows in enumerate(new):
        # The common case, and a range takes no memory: all points lack all seeds.
        if rows.all():
            found.append(Piece(block, range(len(rows)), np.arange(rows.shape[1])))
            continue
        # Points that lack the same seeds have the same row, (seeds,).
        patterns, which = np.unique(rows, axis=0, return_inverse=True)
        for k, pattern in enumerate(patterns):
            if pattern.any():
                found.append(Piece(block, np.flatnonzero(which.ravel() == k), np.flatnonzero(pattern)))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What one call has added: its pieces, and how the cells of each are dealt out to chunks."""

    lattice: Lattice
    pieces: list[Piece]
    sizes: list[int]
    """Cells of a chunk, by piece."""
    layouts: list[_program.ChunkLayout]
    """By piece."""
    first: int
    """Number of the first chunk."""

    @property
    def count(self) -> int:
        """Return the number of chunks."""
        return sum(-(-piece.count // size) for piece, size in zip(self.pieces, self.sizes))


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Cells that are computed in one call and kept in one file."""

    number: int
    part: Part
    piece: int
    """Place of the piece in the part."""
    start: int
    stop: int
    """Its cells of the piece."""
    rows: np.ndarray
    """Their numbers in the sweep that is asked for; -1 for those it has not."""

    @property
    def count(self) -> int:
        """Return the number of cells."""
        return self.stop - self.start


def parts_of(manifests: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Return the parts that are written down in a folder."""
    parts: list[Part] = []
    for manifest in manifests:
        # In the order they were written: a part is what the ones before it lack, so its pieces follow from the grids.
        lattice = Lattice.of(manifest["axes"], manifest["order"], manifest["seeds"])
        pieces = pieces_of(missing_cells(lattice, parts))
        layouts = [_program.ChunkLayout(*layout) for layout in manifest["layouts"]]
        parts.append(Part(lattice, pieces, manifest["sizes"], layouts, manifest["first"]))
    return parts


def missing_cells(lattice: Lattice, parts: Sequence[Part]) -> np.ndarray:
    """Tell which cells none of the parts has, ``(blocks, points, seeds)``."""
    new = np.ones(lattice.shape, bool)
    for part in parts:
        new &= ~lattice.cells_in(part.lattice)
    return new


def chunks_for(request: Lattice, parts: Sequence[Part]) -> list[Chunk]:
    """Return the chunks that hold what is asked for."""
    found = []
    for part in parts:
        # Chunks are numbered through the pieces of a part, those that are not asked for included. With pieces of 5 and
        # 4 cells, in chunks of 2 and 4, and first = 7:
        #     piece 0  | 7 7 | 8 8 | 9 |
        #     piece 1  | 10 10 10 10 |
        lattice, number = part.lattice, part.first
        places = lattice.positions_on(request)
        order = [*lattice.static, *lattice.traced, "seed"]
        # The axes of the part in the order of the request, the seed last in both.
        axes = [order.index(name) for name in (*request.static, *request.traced, "seed")]
        for k, (piece, size) in enumerate(zip(part.pieces, part.sizes)):
            for start in range(0, piece.count, size):
                stop = min(start + size, piece.count)
                # Coordinates on the axes of the part, then on those of the request: -1 for a value that it has not.
                own = lattice.coordinates(piece.block, *piece.cells(np.arange(start, stop)))
                theirs = [np.broadcast_to(places[axis][own[axis]], stop - start) for axis in axes]
                there = np.all([index >= 0 for index in theirs], axis=0)
                if there.any():
                    # Any valid index will do for a cell that is not asked for: its row is -1 below.
                    row = np.ravel_multi_index([np.maximum(index, 0) for index in theirs], request.lengths)
                    found.append(Chunk(number, part, k, start, stop, np.where(there, row, -1)))
                number += 1
    return found
