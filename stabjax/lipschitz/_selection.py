"""Values that are entries of another value, in other places: slices, mirror images, and what is joined from them.

Such a value is ``S x`` with ``S`` a matrix of zeros and ones, at most a single one in a row. So ``S' S`` is diagonal,
and says how often each entry of ``x`` was read: ``|S|_2`` is the root of the largest count, exactly. Slices of one
value that are joined again are one value. Only where something is joined or repeated are the places written out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
        make: the places, from those of the parts.
        parts: what it is made from.
    """

    shape: tuple[int, ...]
    make: Callable[..., np.ndarray]
    parts: tuple["Places", ...] = ()

    def written(self) -> np.ndarray | None:
        """The places, of this shape; None if they are too many."""
        made: dict[int, np.ndarray] = {}

        def write(places: Places) -> np.ndarray:
            if id(places) not in made:
                made[id(places)] = places.make(*map(write, places.parts))
            return made[id(places)]

        return None if self._largest() > _ENTRIES else write(self)

    def _largest(self) -> int:
        waiting, seen, found = [self], {id(self)}, 0
        while waiting:
            place = waiting.pop()
            found = max(found, prod(place.shape))
            fresh = [part for part in place.parts if id(part) not in seen]
            seen.update(map(id, fresh))
            waiting += fresh
        return found


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
    places = Places(shape, lambda: np.arange(prod(shape), dtype=np.int32).reshape(shape))
    return Selection((root,), bound, prod(shape), places)


def moves(step: _jaxpr.Step, known: Sequence[Any]) -> list[Callable[[np.ndarray], np.ndarray]] | None:
    """What an operation that hands entries on does to the places of its first operand, for each output.

    None if it is not known, such as where the places are traced. ``known`` are the other operands.
    """
    if any(isinstance(other, Tracer) for other in known):
        return None
    params, shape = step.params, step.results[0].shape
    if step.name in ("reshape", "squeeze", "expand_dims"):
        return [lambda x: x.reshape(shape)] if params.get("dimensions") is None or step.name != "reshape" else None
    if step.name == "transpose":
        return [lambda x: x.transpose(params["permutation"])]
    if step.name == "rev":
        return [lambda x: np.flip(x, params["dimensions"])]
    if step.name == "slice" and params:
        steps = params["strides"] or (1,) * len(shape)
        cut = tuple(map(slice, params["start_indices"], params["limit_indices"], steps))
        return [lambda x: x[cut]]
    if step.name == "split":
        ends = np.cumsum([0, *params["sizes"]]).tolist()
        axis = params["axis"]
        return [lambda x, a=a, b=b: x[(slice(None),) * axis + (slice(a, b),)] for a, b in pairwise(ends)]
    if step.name == "unstack":
        return [lambda x, k=k: np.take(x, k, params["axis"]) for k in range(len(step.results))]
    if step.name == "dynamic_slice":
        first = [int(np.clip(a, 0, n - m)) for a, n, m in zip(known, step.shapes[0], shape)]
        window = tuple(slice(a, a + m) for a, m in zip(first, shape))
        return [lambda x: x[window]]
    if step.name == "pad":
        return [lambda x: _padded(x, shape, params["padding_config"])]
    if step.name == "broadcast_in_dim":
        kept = params["broadcast_dimensions"]
        sides = [step.shapes[0][kept.index(axis)] if axis in kept else 1 for axis in range(len(shape))]
        return [lambda x: np.broadcast_to(x.reshape(sides), shape)]
    if step.name in ("gather", "tile"):
        return [lambda x: _computed(step, x, known)]
    return None


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
    with jax.ensure_compile_time_eval():
        return np.maximum(np.asarray(step.apply(jnp.asarray(x), *known)), -1)


def moved(selection: Selection, shape: tuple[int, ...], make: Callable[..., np.ndarray], *, once: bool) -> Selection:
    """The entries in other places; ``once``: if none was there twice, none is now."""
    return replace(selection, places=Places(shape, make, (selection.places,)), once=selection.once and once)


def joined(
    parts: Sequence[Selection | None], shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...], make: Callable
) -> tuple[float, Selection] | None:
    """Selections of one value made into one, ``make`` being given the places of all parts, and the norm of it.

    A part that is None consists of constants. None if not all are of one value, or are too large.
    """
    several = [part for part in parts if part is not None]
    if any(part.key != several[0].key for part in several):
        return None
    constants = [Places(s, lambda s=s: np.full(s, -1, np.int32)) for s in shapes]
    places = Places(
        shape, make, tuple(none if part is None else part.places for part, none in zip(parts, constants, strict=True))
    )
    written = places.written()
    if written is None:
        return None
    count = most(written)
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
    a, b = one.places.written(), two.places.written()
    if a is None or b is None or a.shape != b.shape or (a < 0).any() or (b < 0).any():
        return None
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
    ends = pairs.first if larger else pairs.second
    return Selection((root,), selection.bound, selection.entries, Places(ends.shape, lambda: ends))


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
    return numbered if len(np.unique(places[places >= 0])) == kinds else None
