"""Selections: values whose entries are entries of another value: slices, mirror images, and what is joined of them.

Such a value is ``S x`` with ``S`` a matrix of zeros and ones, at most a single one in a row. So ``S' S`` is diagonal,
and says how often each entry of ``x`` was read: ``|S|_2`` is the root of the largest count, exactly. Slices of one
value that are joined again are one value. Only where something is joined or repeated are the indices written out::

    x          0 1 2 3               an index map of a value says which entry of x stands at each place,
    x[1:]      1 2 3                 -1 where a constant does
    pad        0 0 1 2 3 3           joined from x[:1], x, x[-1:]: entries 0 and 3 count twice, |S|_2 = sqrt(2)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import prod, sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax import _jaxpr

_MAX_ENTRIES = 2**24
"""Index maps of larger values are not written out."""


@dataclass(frozen=True, eq=False)
class IndexMap:
    """Where each entry comes from: its index in ``x`` flattened, or a negative number for a constant; computed lazily.

    Attributes:
        shape: of the value.
        build: makes the indices from those of the parts; without parts, from the number of rows.
        parts: what it is built from.
        row_wise: whether all rows are built alike, each from its own row of the parts.
        is_identity: whether these are all entries of ``x``, in order.
    """

    shape: tuple[int, ...]
    build: Callable[..., np.ndarray]
    parts: tuple["IndexMap", ...] = ()
    row_wise: bool = True
    is_identity: bool = False

    @cached_property
    def same_rows(self) -> bool:
        """Whether each row (an image of the batch) sees its own row of ``x`` alone, and all rows do so alike."""
        return bool(self.row_wise and self.shape) and all(part.same_rows for part in self.parts)

    def materialize(self, *, same_rows: bool | None = None) -> np.ndarray | None:
        """Compute the indices; None if they are too many.

        Args:
            same_rows: compute those of the first row alone, which then stands for all; by default where that is so.
        """
        same_rows = self.same_rows if same_rows is None else same_rows
        built: dict[int, np.ndarray] = {}

        def write(index_map: IndexMap) -> np.ndarray:
            # A part may occur in several others; it is built once.
            if id(index_map) not in built:
                # A map without parts is asked for so many rows; every other one works on what its parts give, one row
                # or all.
                rows = 1 if same_rows or not index_map.shape else index_map.shape[0]
                built[id(index_map)] = index_map.build(*(map(write, index_map.parts) if index_map.parts else [rows]))
            return built[id(index_map)]

        return None if self._largest_size(same_rows) > _MAX_ENTRIES else write(self)

    def _largest_size(self, same_rows: bool) -> int:
        """Return the number of entries of the largest part."""
        waiting, seen, largest = [self], {id(self)}, 0
        while waiting:
            index_map = waiting.pop()
            largest = max(largest, prod(index_map.shape[int(same_rows) :]))
            fresh = [part for part in index_map.parts if id(part) not in seen]
            seen.update(map(id, fresh))
            waiting += fresh
        return largest


def materialize(*several: IndexMap, same_rows: bool = True) -> list[np.ndarray] | None:
    """Compute several index maps, of the first row if that is allowed and stands for all; None if one is too large."""
    # All or none: arrays of one row and arrays of all rows cannot be compared entry by entry.
    same_rows = same_rows and all(part.same_rows for part in several) and len({part.shape[0] for part in several}) == 1
    built = [part.materialize(same_rows=same_rows) for part in several]
    known = [indices for indices in built if indices is not None]
    return known if len(known) == len(built) else None


@dataclass(frozen=True, eq=False)
class Selection:
    """Entries of a value.

    Attributes:
        key: what it is that they are entries of: a root, and the functions applied to its entries.
        bound: Lipschitz constant of that as a function of the image, from above, ``()``.
        entries: how many that value has.
        index_map: which they are.
        injective: whether it is known that none occurs twice.
    """

    key: tuple[Any, ...]
    bound: Float[Array, ""]
    entries: int
    index_map: IndexMap
    injective: bool = True

    def max_count(self) -> int | None:
        """Return how often an entry occurs at most; None if that is not known."""
        if self.injective:
            return 1
        # Rows read disjoint parts of x if one row stands for all: the largest count in one row is that in all.
        indices = self.index_map.materialize()
        return None if indices is None else max_multiplicity(indices)


def max_multiplicity(indices: np.ndarray) -> int:
    """Return how often an index occurs at most; negative ones do not count."""
    entries = indices[indices >= 0]
    return int(np.bincount(entries.ravel()).max(initial=0))


def select_all(root: Any, bound: Array, shape: tuple[int, ...]) -> Selection:
    """Select all entries of a root, in order."""

    def build(rows: int) -> np.ndarray:
        sides = (rows, *shape[1:]) if shape else ()
        return np.arange(prod(sides), dtype=np.int32).reshape(sides)

    return Selection((root,), bound, prod(shape), IndexMap(shape, build, is_identity=True))


class IndexTransform(NamedTuple):
    """What an operation does to the indices of its first operand, for each output, and whether row by row."""

    builds: list[Callable[[np.ndarray], np.ndarray]]
    row_wise: bool


def index_transform(step: _jaxpr.Step, known: Sequence[Any]) -> IndexTransform | None:
    """Return what a data movement does to indices; ``known`` are its other operands.

    The functions act on an array of all rows, or of one row that stands for all. None where that is not known, as where
    the places are traced.
    """
    if any(isinstance(other, Tracer) for other in known):
        return None
    params, old, shape = step.params, step.shapes[0], step.results[0].shape
    keeps_rows = bool(old) and bool(shape) and old[0] == shape[0]
    if step.name in ("reshape", "squeeze", "expand_dims"):
        if step.name == "reshape" and params.get("dimensions") is not None:
            return None
        return IndexTransform([lambda x: x.reshape(_with_rows(x, shape, keeps_rows))], keeps_rows)
    if step.name == "transpose":
        return IndexTransform([lambda x: x.transpose(params["permutation"])], params["permutation"][:1] == (0,))
    if step.name == "rev":
        return IndexTransform([lambda x: np.flip(x, params["dimensions"])], 0 not in params["dimensions"])
    if step.name == "slice" and params:
        cut = map(slice, params["start_indices"], params["limit_indices"], params["strides"] or (1,) * len(shape))
        return _slice_transform(tuple(cut), keeps_rows)
    # Axis 0 holds the images. Where each row is moved alike, one row is enough to know all.
    if step.name == "split":
        ends, axis = np.cumsum([0, *params["sizes"]]).tolist(), int(params["axis"])
        # The cut of each part is a default argument: a closure would see the last one of the loop only.
        cuts = [(slice(None),) * axis + (slice(a, b),) for a, b in pairwise(ends)]
        return IndexTransform([lambda x, cut=cut: x[cut] for cut in cuts], axis > 0)
    if step.name == "unstack":
        axis = int(params["axis"])
        return IndexTransform([lambda x, k=k: np.take(x, k, axis) for k in range(len(step.results))], axis > 0)
    if step.name == "dynamic_slice":
        # As in XLA, a start that would reach beyond the end is moved back.
        first = [int(np.clip(a, 0, n - m)) for a, n, m in zip(known, old, shape)]
        return _slice_transform(tuple(slice(a, a + m) for a, m in zip(first, shape)), keeps_rows)
    if step.name == "pad":
        config = params["padding_config"]
        rows = bool(config) and tuple(config[0]) == (0, 0, 0)
        return IndexTransform([lambda x: _pad_indices(x, _with_rows(x, shape, rows), config)], rows)
    if step.name == "broadcast_in_dim":
        into = params["broadcast_dimensions"]
        rows = keeps_rows and into[:1] == (0,)
        # x (a, c) into (a, b, c), say: first (a, 1, c), then as a view with stride zero. One row stays one row.
        sides = [old[into.index(axis)] if axis in into else 1 for axis in range(len(shape))]
        return IndexTransform(
            [lambda x: np.broadcast_to(x.reshape(_with_rows(x, sides, rows)), _with_rows(x, shape, rows))], rows
        )
    # No index arithmetic for these: the operation itself runs, on indices instead of values.
    if step.name in ("gather", "tile"):
        return IndexTransform([lambda x: _run_on_indices(step, x, known)], False)
    return None


def _with_rows(x: np.ndarray, shape: Sequence[int], row_wise: bool) -> tuple[int, ...]:
    """Return the shape with as many rows as ``x`` has, one or all."""
    return (len(x), *shape[1:]) if row_wise else tuple(shape)


def _slice_transform(window: tuple[slice, ...], row_wise: bool) -> IndexTransform:
    """Cut a window out; of all rows, if their number stays."""
    window = (slice(None), *window[1:]) if row_wise else window
    return IndexTransform([lambda x: x[window]], row_wise)


def _pad_indices(x: np.ndarray, shape: tuple[int, ...], config: Any) -> np.ndarray:
    """Put constants around and between the entries; negative padding cuts."""
    # low = 1, between = 1:     x       0 1 2
    #                           padded -1 0 -1 1 -1 2
    full = np.full(shape, -1, np.int32)
    into, source = [], []
    for n, side, (low, _, between) in zip(x.shape, shape, config):
        # Entry i of this axis goes to low + (between + 1) i.
        at = low + (between + 1) * np.arange(n)
        inside = (at >= 0) & (at < side)
        into.append(at[inside])
        source.append(np.flatnonzero(inside))
    full[np.ix_(*into)] = x[np.ix_(*source)]
    return full


def _run_on_indices(step: _jaxpr.Step, x: np.ndarray, known: Sequence[Any]) -> np.ndarray:
    """Run the operation on the indices; once more on -1 everywhere, which shows what it fills in."""
    # Evaluated at once, also while the caller is traced. An entry that is still -1 in the second run was read from x.
    with jax.ensure_compile_time_eval():
        built, filled = (np.asarray(step.apply(jnp.asarray(y), *known)[0]) for y in (x, np.full_like(x, -1)))
    return np.where(filled == -1, built, -1)


def compose_indices(selection: Selection, index_map: IndexMap, *, injective: bool) -> Selection:
    """Return the entries in other places; ``injective``: if none occurred twice, none does now."""
    return replace(selection, index_map=index_map, injective=selection.injective and injective)


def join(
    parts: Sequence[Selection | None],
    shapes: Sequence[tuple[int, ...]],
    shape: tuple[int, ...],
    build: Callable[..., np.ndarray],
    *,
    row_wise: bool,
) -> tuple[float, Selection] | None:
    """Join selections of one value to one, ``build`` being given the indices of all parts; return its norm and it.

    A part that is None consists of constants. None if the parts are not all of one value, or too large.
    """
    several = [part for part in parts if part is not None]
    if any(part.key != several[0].key for part in several):
        return None
    constants = [IndexMap(s, lambda rows, s=s: np.full((rows, *s[1:]) if s else (), -1, np.int32)) for s in shapes]
    given = tuple(none if part is None else part.index_map for part, none in zip(parts, constants, strict=True))
    # What all parts have in common is the key: their indices count entries of the same x, flattened.
    index_map = IndexMap(shape, build, given, row_wise)
    indices = index_map.materialize()
    if indices is None:
        return None
    # S' S is diagonal and holds the counts, so |S| = sqrt(largest count).
    count = max_multiplicity(indices)
    return sqrt(count), replace(several[0], index_map=index_map, injective=count <= 1)


class Pairs(NamedTuple):
    """Pairs of entries of a value, no entry in two of them: their name, and the smaller and larger index of each."""

    name: bytes
    first: np.ndarray
    second: np.ndarray


def match_pairs(one: Selection, two: Selection) -> Pairs | None:
    """Pair the entries of two selections of one value; None if they are of several, or if an entry occurs twice."""
    if one.key != two.key:
        return None
    both = materialize(one.index_map, two.index_map)
    # A pair with a constant is no pair of entries of x.
    if both is None or (np.stack(both) < 0).any():
        return None
    a, b = both
    # Which operand an entry comes from does not matter to a maximum: in order, (a, b) and (b, a) are the same pair.
    first, second = np.minimum(a, b), np.maximum(a, b)
    if max_multiplicity(np.stack([first, second])) > 1:
        return None
    # The name does not depend on the order of the pairs: a maximum and a minimum of the same slices share it.
    order = np.argsort(first, axis=None)
    return Pairs(np.stack([first.ravel()[order], second.ravel()[order]]).tobytes(), first, second)


def select_from_pairs(selection: Selection, root: Any, pairs: Pairs, *, larger: bool) -> Selection:
    """Select the larger or smaller of each pair, as entries of the value with every pair put in order.

    Sorting pairs is a permutation of the value that depends on it, hence 1-Lipschitz: the larger stand where the first
    ends were, the smaller where the second were.
    """
    ends, shape = pairs.first if larger else pairs.second, selection.index_map.shape
    row_size = selection.entries // shape[0]

    def build(rows: int) -> np.ndarray:
        # Ends of the first row stand for all: row r adds r times the size of a row.
        if rows <= len(ends):
            return ends
        return ends + row_size * np.arange(rows, dtype=np.int32).reshape(-1, *[1] * (ends.ndim - 1))

    index_map = IndexMap(shape, build, row_wise=len(ends) == 1)
    return Selection((root,), selection.bound, selection.entries, index_map)


def factor_axes(selection: Selection) -> list[np.ndarray] | None:
    """Return for each axis which entries along an axis of ``x`` it holds, numbered in order; negative for a constant.

    None unless the selection is one along each axis by itself: ``S`` is a Kronecker product of one matrix per axis.
    """
    indices = selection.index_map.materialize()
    if indices is None or (indices < 0).all():
        return None
    # One line along each axis through an entry that is no constant. If S is a product, index[i, j, ...] =
    # start + (line_0[i] - start) + (line_1[j] - start) + ..., and a constant where one of the lines has one.
    origin = np.unravel_index(np.argmax(indices >= 0), indices.shape)
    start = indices[origin]
    lines, summed, valid = [], np.int64(start), np.array(True)
    for axis in range(indices.ndim):
        index: list[Any] = list(origin)
        index[axis] = slice(None)
        line = indices[tuple(index)]
        sides = [-1 if k == axis else 1 for k in range(indices.ndim)]
        summed = summed + (line.astype(np.int64) - start).reshape(sides)
        valid = valid & (line >= 0).reshape(sides)
        lines.append(line)
    if not np.array_equal(indices, np.where(valid, summed, -1)):
        return None
    # Strides of x do not matter, only which entries are equal: each line is numbered 0, 1, ... in order. Different
    # combinations must be different entries, or the axes of x are not those of the value.
    numbered = [np.where(line < 0, -1, np.searchsorted(np.unique(line[line >= 0]), line)) for line in lines]
    kinds = prod(int(line.max()) + 1 for line in numbered)
    if len(np.unique(indices[indices >= 0])) != kinds:
        return None
    # Where one row was written out, its line along axis 0 has a single entry. Each of the rows reads its own row of x.
    return [np.arange(selection.index_map.shape[0]), *numbered[1:]] if selection.index_map.same_rows else numbered
