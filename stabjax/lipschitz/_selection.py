"""Values that are entries of another value, in other places: slices, mirror images, and what is joined from them.

Such a value is ``S x`` with ``S`` a matrix of zeros and ones, at most a single one in a row. So ``S' S`` is diagonal,
and says how often each entry of ``x`` was read: ``|S|_2`` is the root of the largest count, exactly. Slices of one
value that are joined again are one value. Only where something is joined or repeated are the places written out.
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

_ENTRIES = 2**24
"""Of larger values the places are not written out."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where each entry comes from, a number of ``x`` flattened, or negative for a constant; not yet written out.

    Attributes:
        shape: of the value.
        make: the places, from those of the parts; without parts, from how many rows there are to be.
        parts: what it is made from.
        by_rows: whether all rows of the value are made alike, each from its own row of the parts.
        whole: whether they are all entries of ``x``, in order.
    """

    shape: tuple[int, ...]
    make: Callable[..., np.ndarray]
    parts: tuple["Places", ...] = ()
    by_rows: bool = True
    whole: bool = False

    @cached_property
    def alike(self) -> bool:
        """Whether a row of ``x``, which is that of an image, is all that a row sees, and all rows are alike."""
        return bool(self.by_rows and self.shape) and all(part.alike for part in self.parts)

    def written(self, *, alike: bool | None = None) -> np.ndarray | None:
        """The places; of the first row alone, if rows are ``alike``; None if they are too many."""
        alike = self.alike if alike is None else alike
        made: dict[int, np.ndarray] = {}

        def write(places: Places) -> np.ndarray:
            if id(places) not in made:
                rows = 1 if alike or not places.shape else places.shape[0]
                made[id(places)] = places.make(*(map(write, places.parts) if places.parts else [rows]))
            return made[id(places)]

        return None if self._largest(alike) > _ENTRIES else write(self)

    def _largest(self, alike: bool) -> int:
        waiting, seen, found = [self], {id(self)}, 0
        while waiting:
            place = waiting.pop()
            found = max(found, prod(place.shape[int(alike) :]))
            fresh = [part for part in place.parts if id(part) not in seen]
            seen.update(map(id, fresh))
            waiting += fresh
        return found


def written(*several: Places, alike: bool = True) -> list[np.ndarray] | None:
    """All of them, of the first row if that is wanted and stands for all; None if one is too large."""
    alike = alike and all(places.alike for places in several) and len({places.shape[0] for places in several}) == 1
    made = [places.written(alike=alike) for places in several]
    found = [places for places in made if places is not None]
    return found if len(found) == len(made) else None


@dataclass(frozen=True, eq=False)
class Selection:
    """Entries of a value.

    Attributes:
        key: what it is that they are entries of: a root, and the functions applied to its entries.
        bound: Lipschitz constant of that as a function of the image, from above, ``()``.
        entries: how many it has.
        places: which they are.
        once: whether it is known that none is there twice.
    """

    key: tuple[Any, ...]
    bound: Float[Array, ""]
    entries: int
    places: Places
    once: bool = True

    def count(self) -> int | None:
        """How often an entry is there at most; None if that is not known."""
        if self.once:
            return 1
        places = self.places.written()
        return None if places is None else most(places)


def most(places: np.ndarray) -> int:
    """How often the same place is there."""
    kept = places[places >= 0]
    return int(np.bincount(kept.ravel()).max(initial=0))


def whole(root: Any, bound: Array, shape: tuple[int, ...]) -> Selection:
    """All entries of a root, in order."""

    def make(rows: int) -> np.ndarray:
        made = (rows, *shape[1:]) if shape else ()
        return np.arange(prod(made), dtype=np.int32).reshape(made)

    return Selection((root,), bound, prod(shape), Places(shape, make, whole=True))


class Moves(NamedTuple):
    """What an operation does to the places of its first operand, for each output, and whether row by row."""

    makes: list[Callable[[np.ndarray], np.ndarray]]
    by_rows: bool


def moves(step: _jaxpr.Step, known: Sequence[Any]) -> Moves | None:
    """What an operation that hands entries on does; ``known`` are its other operands.

    None if it is not known, such as where the places are traced.
    """
    if any(isinstance(other, Tracer) for other in known):
        return None
    params, old, shape = step.params, step.shapes[0], step.results[0].shape
    kept = bool(old) and bool(shape) and old[0] == shape[0]
    if step.name in ("reshape", "squeeze", "expand_dims"):
        if step.name == "reshape" and params.get("dimensions") is not None:
            return None
        return Moves([lambda x: x.reshape(_like(x, shape, kept))], kept)
    if step.name == "transpose":
        return Moves([lambda x: x.transpose(params["permutation"])], params["permutation"][:1] == (0,))
    if step.name == "rev":
        return Moves([lambda x: np.flip(x, params["dimensions"])], 0 not in params["dimensions"])
    if step.name == "slice" and params:
        cut = map(slice, params["start_indices"], params["limit_indices"], params["strides"] or (1,) * len(shape))
        return _cut(tuple(cut), kept)
    if step.name == "split":
        ends, axis = np.cumsum([0, *params["sizes"]]).tolist(), int(params["axis"])
        cuts = [(slice(None),) * axis + (slice(a, b),) for a, b in pairwise(ends)]
        return Moves([lambda x, cut=cut: x[cut] for cut in cuts], axis > 0)
    if step.name == "unstack":
        axis = int(params["axis"])
        return Moves([lambda x, k=k: np.take(x, k, axis) for k in range(len(step.results))], axis > 0)
    if step.name == "dynamic_slice":
        first = [int(np.clip(a, 0, n - m)) for a, n, m in zip(known, old, shape)]
        return _cut(tuple(slice(a, a + m) for a, m in zip(first, shape)), kept)
    if step.name == "pad":
        config = params["padding_config"]
        rows = bool(config) and tuple(config[0]) == (0, 0, 0)
        return Moves([lambda x: _padded(x, _like(x, shape, rows), config)], rows)
    if step.name == "broadcast_in_dim":
        into = params["broadcast_dimensions"]
        rows = kept and into[:1] == (0,)
        sides = [old[into.index(axis)] if axis in into else 1 for axis in range(len(shape))]
        return Moves([lambda x: np.broadcast_to(x.reshape(_like(x, sides, rows)), _like(x, shape, rows))], rows)
    if step.name in ("gather", "tile"):
        return Moves([lambda x: _computed(step, x, known)], False)
    return None


def _like(x: np.ndarray, shape: Sequence[int], by_rows: bool) -> tuple[int, ...]:
    """The shape, of as many rows as there are."""
    return (len(x), *shape[1:]) if by_rows else tuple(shape)


def _cut(window: tuple[slice, ...], by_rows: bool) -> Moves:
    """A window; of all rows, if their number stays."""
    window = (slice(None), *window[1:]) if by_rows else window
    return Moves([lambda x: x[window]], by_rows)


def _padded(x: np.ndarray, shape: tuple[int, ...], config: Any) -> np.ndarray:
    """With constants around and between the entries; negative padding cuts."""
    full = np.full(shape, -1, np.int32)
    into, taken = [], []
    for n, side, (low, _, between) in zip(x.shape, shape, config):
        at = low + (between + 1) * np.arange(n)
        inside = (at >= 0) & (at < side)
        into.append(at[inside])
        taken.append(np.flatnonzero(inside))
    full[np.ix_(*into)] = x[np.ix_(*taken)]
    return full


def _computed(step: _jaxpr.Step, x: np.ndarray, known: Sequence[Any]) -> np.ndarray:
    """What the operation makes of the places; what it fills in is seen where there is nothing else."""
    with jax.ensure_compile_time_eval():
        made, filled = (np.asarray(step.apply(jnp.asarray(y), *known)[0]) for y in (x, np.full_like(x, -1)))
    return np.where(filled == -1, made, -1)


def moved(selection: Selection, places: Places, *, once: bool) -> Selection:
    """The entries in other places; ``once``: if none was there twice, none is now."""
    return replace(selection, places=places, once=selection.once and once)


def joined(
    parts: Sequence[Selection | None],
    shapes: Sequence[tuple[int, ...]],
    shape: tuple[int, ...],
    make: Callable[..., np.ndarray],
    *,
    by_rows: bool,
) -> tuple[float, Selection] | None:
    """Selections of one value made into one, ``make`` being given the places of all parts, and the norm of it.

    A part that is None consists of constants. None if not all are of one value, or are too large.
    """
    several = [part for part in parts if part is not None]
    if any(part.key != several[0].key for part in several):
        return None
    constants = [Places(s, lambda rows, s=s: np.full((rows, *s[1:]) if s else (), -1, np.int32)) for s in shapes]
    given = tuple(none if part is None else part.places for part, none in zip(parts, constants, strict=True))
    places = Places(shape, make, given, by_rows)
    places_of_all = places.written()
    if places_of_all is None:
        return None
    count = most(places_of_all)
    return sqrt(count), replace(several[0], places=places, once=count <= 1)


class Pairs(NamedTuple):
    """Pairs of entries of a value, none in two of them: their name, and the places of both ends, in order."""

    name: bytes
    first: np.ndarray
    second: np.ndarray


def in_pairs(one: Selection, two: Selection) -> Pairs | None:
    """Two selections of one value side by side; None if they are of several, or if an entry is there twice."""
    if one.key != two.key:
        return None
    both = written(one.places, two.places)
    if both is None or (np.stack(both) < 0).any():
        return None
    a, b = both
    first, second = np.minimum(a, b), np.maximum(a, b)
    if most(np.stack([first, second])) > 1:
        return None
    order = np.argsort(first, axis=None)
    return Pairs(np.stack([first.ravel()[order], second.ravel()[order]]).tobytes(), first, second)


def of_pairs(selection: Selection, root: Any, pairs: Pairs, *, larger: bool) -> Selection:
    """The larger or smaller of each pair, as entries of the value with every pair put in order.

    That is a permutation of the value that depends on it, hence 1-Lipschitz: the larger are where the first ends were,
    the smaller where the second were.
    """
    ends, shape = pairs.first if larger else pairs.second, selection.places.shape
    each = selection.entries // shape[0]

    def make(rows: int) -> np.ndarray:
        if rows <= len(ends):
            return ends
        return ends + each * np.arange(rows, dtype=np.int32).reshape(-1, *[1] * (ends.ndim - 1))

    places = Places(shape, make, by_rows=len(ends) == 1)
    return Selection((root,), selection.bound, selection.entries, places)


def along_axes(selection: Selection) -> list[np.ndarray] | None:
    """For each axis, which entries along an axis of ``x`` stand there, numbered in order; negative for a constant.

    None unless the places are a product over the axes: in the end ``S`` is a Kronecker product of one matrix each.
    """
    places = selection.places.written()
    if places is None or (places < 0).all():
        return None
    origin = np.unravel_index(np.argmax(places >= 0), places.shape)
    start = places[origin]
    lines, summed, valid = [], np.int64(start), np.array(True)
    for axis in range(places.ndim):
        index: list[Any] = list(origin)
        index[axis] = slice(None)
        line = places[tuple(index)]
        sides = [-1 if k == axis else 1 for k in range(places.ndim)]
        summed = summed + (line.astype(np.int64) - start).reshape(sides)
        valid = valid & (line >= 0).reshape(sides)
        lines.append(line)
    if not np.array_equal(places, np.where(valid, summed, -1)):
        return None
    numbered = [np.where(line < 0, -1, np.searchsorted(np.unique(line[line >= 0]), line)) for line in lines]
    kinds = prod(int(line.max()) + 1 for line in numbered)
    if len(np.unique(places[places >= 0])) != kinds:
        return None
    return [np.arange(selection.places.shape[0]), *numbered[1:]] if selection.places.alike else numbered
