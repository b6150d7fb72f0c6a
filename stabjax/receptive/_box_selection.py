"""What a value sees of the image where parts of others are cut out, put together or looked up."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np

from stabjax._jaxpr._constants import Constant
from stabjax._jaxpr._parameters import PARAMETER
from stabjax.receptive import _box, _box_reshape
from stabjax.receptive._box import Span
from stabjax.receptive._box_values import Value, inexact, joined, stretched
from stabjax.receptive._box_windows import slid, window


def slicing(equation: Any, span: Span) -> Span:
    params = equation.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    for axis, (start, stride) in enumerate(zip(map(int, params["start_indices"]), map(int, strides))):
        count = equation.outvars[0].aval.shape[axis]
        if (start, stride, count) != (0, 1, equation.invars[0].aval.shape[axis]):
            span = window(span, axis, count, stride=stride, low=-start)
    return span


def padding(equation: Any, operands: list[Any]) -> Any:
    """Padding by a number; by one that depends on the image, anywhere in the result."""
    first, filling = operands
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    padded = first if isinstance(first, tuple) else ()
    for axis, (low, _, interior) in enumerate(equation.params["padding_config"]):
        padded = slid(padded, axis, old[axis], new[axis], low=int(low), spread=int(interior) + 1)
    if not isinstance(filling, tuple):
        return padded
    return inexact(joined([*([padded] if padded else []), stretched(filling, equation.outvars[0])]))


def tiling(equation: Any, span: Span) -> Span:
    """Copies one behind the other."""
    for axis, copies in enumerate(map(int, equation.params["reps"])):
        length = equation.invars[0].aval.shape[axis]
        span = _box_reshape.concatenate([span] * copies, [length] * copies, axis, [False] * copies)
    return span


def dynamic_slice(equation: Any, operands: list[Any]) -> Any:
    first, *starts = operands
    if not isinstance(first, tuple):
        return None
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    result = []
    for span in first:
        for axis, (start, whole, part) in enumerate(zip(starts, old, new)):
            if whole == part:
                continue
            if isinstance(start, Constant) and start.value is not None:
                place = int(start.value) + (whole if start.value < 0 else 0)
                span = window(span, axis, part, low=-max(0, min(place, whole - part)))
            elif not _box.is_still(span, axis):
                span = _box.inexact(_box.mixed(span, axis))
        result.append(span)
    return joined(
        [tuple(result), *[stretched(start, equation.outvars[0]) for start in starts if isinstance(start, tuple)]]
    )


def concatenation(equation: Any, operands: list[Any]) -> Any:
    axis = int(equation.params["dimension"])
    pieces = [(operand, atom.aval.shape[axis]) for operand, atom in zip(operands, equation.invars)]
    parts, lengths = zip(*[piece for piece in pieces if piece[1] > 0])
    if not any(isinstance(part, tuple) for part in parts):
        return PARAMETER
    blank = [isinstance(part, Constant) for part in parts]
    by_axis = zip(*[part if isinstance(part, tuple) else repeat(None) for part in parts])
    return tuple(_box_reshape.concatenate(spans, lengths, axis, blank) for spans in by_axis)


def stacking(equation: Any, operands: list[Any]) -> Any:
    axis, rank = equation.params["axis"], len(equation.outvars[0].aval.shape)
    return stack(operands, axis, rank)


def stack(operands: Sequence[Value], axis: int, rank: int) -> Value:
    """Values along a new axis of a result of that rank."""
    places = [k for k in range(rank) if k != axis]
    ones = [0] * rank
    result = []
    for parts in zip(*[operand if isinstance(operand, tuple) else repeat(None) for operand in operands]):
        raised = [None if span is None else _box.spread_over(span, rank, places, ones, ones[1:]) for span in parts]
        result.append(_box_reshape.concatenate(raised, [1] * len(parts), axis, [False] * len(parts)))
    return tuple(result)


def unstacking(equation: Any, operands: list[Any]) -> list[Any]:
    axis = equation.params["axis"]
    return [
        tuple(_box.reduce(window(span, axis, 1, low=-k), [axis]) for span in operands[0])
        for k in range(len(equation.outvars))
    ]


def splitting(equation: Any, operands: list[Any]) -> list[Any]:
    axis, sizes = equation.params["axis"], [int(size) for size in equation.params["sizes"]]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return [tuple(window(span, axis, size, low=-start) for span in operands[0]) for start, size in zip(starts, sizes)]


def lookup(equation: Any, operands: list[Any]) -> Any:
    """Rows from a table: by known indices exactly, by others any row may be meant."""
    table, indices = operands
    if not isinstance(table, tuple):
        return None
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    indices_batching = tuple(getattr(numbers, "start_indices_batching_dims", ()))
    rows = [axis for axis in range(len(new)) if axis not in numbers.offset_dims]
    inside = [axis for axis in range(len(old)) if axis not in numbers.collapsed_slice_dims and axis not in batching]
    known = indices.value if isinstance(indices, Constant) else None

    def placed(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        shape = [1] * len(new)
        for axis, length in zip(axes, values.shape):
            shape[axis] = length
        return values.reshape(shape)

    places, kept, unknown = [], {}, []
    for axis, side in enumerate(old):
        position = np.zeros([1] * len(new), int)
        if axis in numbers.start_index_map and sizes[axis] < side:
            if known is None:
                unknown.append(axis)
            else:
                start = known[..., numbers.start_index_map.index(axis)].astype(int)
                position = position + placed(start.clip(0, side - sizes[axis]), rows)
        if axis in batching:
            row = rows[indices_batching[batching.index(axis)]]
            position = position + placed(np.arange(side), [row])
            kept[row] = axis
        if axis in inside:
            offset = numbers.offset_dims[inside.index(axis)]
            position = position + placed(np.arange(sizes[axis]), [offset])
            if sizes[axis] == side:
                kept[offset] = axis
        places.append(position)
    result: Any = []
    for span in table:
        for axis in unknown:
            if not _box.is_still(span, axis):
                span = _box.inexact(_box.mixed(span, axis))
        result.append(
            _box_reshape.gather(span, [np.zeros_like(p) if k in unknown else p for k, p in enumerate(places)], kept)
        )
    if isinstance(indices, tuple):
        chosen = tuple(_box.reduce(span, range(len(span.steps))) for span in indices)
        result = joined([tuple(result), stretched(chosen, equation.outvars[0])])
    return tuple(result)


def update(equation: Any, operands: list[Any]) -> Any:
    """A part overwritten: at a known place exactly."""
    base, part, *starts = operands
    old, new = (atom.aval.shape for atom in equation.invars[:2])
    places: list[Any] = [start.value if isinstance(start, Constant) else None for start in starts]
    if any(place is None for place in places):
        return None
    places = [int(place) + (side if place < 0 else 0) for place, side in zip(places, old)]
    return _overwritten(base, part, [max(0, min(p, a - b)) for p, a, b in zip(places, old, new)], old, new)


def _overwritten(
    base: Any, part: Any, places: Sequence[int], old: Sequence[int], new: Sequence[int], *, keeps: bool = False
) -> Any:
    """A part at this place of a whole, instead of what was there or, if the base ``keeps`` it, together with that."""
    inside = np.ones((1,) * len(old), bool)
    for axis, (side, length, start) in enumerate(zip(old, new, places)):
        line = (np.arange(side) >= start) & (np.arange(side) < start + length)
        inside = inside & line.reshape([-1 if k == axis else 1 for k in range(len(old))])
    parts = []
    if isinstance(base, tuple):
        parts.append(base if keeps else tuple(_box.only(span, ~inside) for span in base))
    if isinstance(part, tuple):
        moved = []
        for span in part:
            for axis, start in enumerate(places):
                span = window(span, axis, old[axis], low=start) if old[axis] != new[axis] else span
            moved.append(_box.only(span, inside))
        parts.append(tuple(moved))
    return joined(parts)


def scatter(equation: Any, operands: list[Any]) -> Any:
    """Parts put at the places of a table: exact for one part at a known place, and for numbers that overwrite."""
    base, indices, parts = operands
    if isinstance(indices, tuple):
        return None
    numbers = equation.params["dimension_numbers"]
    old, given = equation.invars[0].aval.shape, equation.invars[2].aval.shape
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    sizes = iter([given[axis] for axis in numbers.update_window_dims])
    new = [1 if axis in numbers.inserted_window_dims or axis in batching else next(sizes) for axis in range(len(old))]
    keeps = equation.primitive.name != "scatter"
    table = indices.value if isinstance(indices, Constant) and not batching else None
    rows = [] if table is None else table.reshape(-1, table.shape[-1]).astype(int)
    places = [[0] * len(old) for _ in rows]
    for place, row in zip(places, rows):
        for axis, start in zip(numbers.scatter_dims_to_operand_dims, row):
            place[axis] = int(start)
    fits = all(0 <= p <= a - b for place in places for p, a, b in zip(place, old, new))
    if len(places) == 1 and fits:
        if isinstance(parts, tuple):
            parts = tuple(_box_reshape.reshape(span, given, new) for span in parts)
        return _overwritten(base, parts, places[0], old, new, keeps=keeps)
    if isinstance(parts, tuple):
        everywhere = stretched(parts, equation.outvars[0])
        return inexact(joined([base, everywhere]))
    if keeps:
        return base
    if not fits or not 0 < len(places) <= 256:
        return inexact(base)
    for place in places:
        base = _overwritten(base, None, place, old, new)
    return base
