"""Rules for boxes where parts of arrays are cut out, put together, looked up or overwritten."""

from collections.abc import Sequence
from itertools import repeat
from math import prod
from typing import Any

import numpy as np
from jax import lax

from stabjax._jaxpr import Step
from stabjax.receptive._box import Box, is_constant, mark_inexact
from stabjax.receptive._box_axes import (
    Boxes,
    Value,
    as_inexact,
    broadcast,
    merge_axis,
    reduce_axes,
    restrict,
    stretch,
    unite,
)
from stabjax.receptive._box_reshape import concatenate, gather, reshape
from stabjax.receptive._box_windows import slide, slide_all
from stabjax.receptive._constants import Constant
from stabjax.receptive._masks import PARAMETER


def follow_slice(step: Step, box: Box) -> Box:
    """Cut a window out: a slice is a window of one entry."""
    params, old, new = step.params, step.shapes[0], step.results[0].shape
    strides = params["strides"] or (1,) * len(old)
    for axis, (start, stride) in enumerate(zip(map(int, params["start_indices"]), map(int, strides), strict=True)):
        # Entry i of the slice is entry start + stride i of the array.
        if (start, stride, new[axis]) != (0, 1, old[axis]):
            box = slide(box, axis, new[axis], stride=stride, low=-start)
    return box


def follow_pad(step: Step, operands: list[Value]) -> Any:
    """Pad by a number; by one that depends on the image, anywhere in the result."""
    first, filling = operands
    old, new = step.shapes[0], step.results[0].shape
    padded: Boxes = first if isinstance(first, tuple) else ()
    # Entry i of the result is at place i - low of the entries, spread apart by interior; a negative low cuts.
    for axis, (low, _, interior) in enumerate(step.params["padding_config"]):
        padded = slide_all(padded, axis, old[axis], new[axis], low=int(low), spread=int(interior) + 1)
    if not isinstance(filling, tuple):
        return padded
    return as_inexact(unite([*([padded] if padded else []), stretch(filling, new)]))


def follow_tile(step: Step, box: Box) -> Box:
    """Put copies one behind the other."""
    for axis, copies in enumerate(map(int, step.params["reps"])):
        copied = ([box] * copies, [step.shapes[0][axis]] * copies, axis, [False] * copies)
        box = concatenate(*copied) if copies else slide(box, axis, 0)
    return box


def follow_dynamic_slice(step: Step, operands: list[Value]) -> Any:
    """Cut a window out at known places; along an axis where the place is not known, any entry may be meant."""
    first, *starts = operands
    if not isinstance(first, tuple):
        return None
    old, new = step.shapes[0], step.results[0].shape
    # Of an axis that is kept as it is, the start is moved to 0, whatever it was.
    cut = [axis for axis, (length, part) in enumerate(zip(old, new, strict=True)) if length != part]
    result = []
    for box in first:
        for axis in cut:
            start, length, part = starts[axis], old[axis], new[axis]
            if isinstance(start, Constant) and start.value is not None:
                box = slide(box, axis, part, low=-_clamped(start.value, length, part))
            elif not is_constant(box, axis):
                box = mark_inexact(merge_axis(box, axis))
        result.append(box)
    return unite([tuple(result), *[stretch(start, new) for k in cut if isinstance(start := starts[k], tuple)]])


def _clamped(start: Any, length: int, part: int) -> int:
    """Return where a part begins, moved until it lies inside; the program has counted from the end already."""
    return max(0, min(int(start), length - part))


def follow_concatenate(step: Step, operands: list[Value]) -> Any:
    """Join arrays one behind the other."""
    axis = int(step.params["dimension"])
    pieces = [(operand, shape[axis]) for operand, shape in zip(operands, step.shapes, strict=True)]
    # Empty parts leave no trace, and would have no box to continue.
    pieces = [piece for piece in pieces if piece[1] > 0]
    if not pieces:
        return unite(operands)
    parts, lengths = zip(*pieces, strict=True)
    if not any(isinstance(part, tuple) for part in parts):
        return PARAMETER
    # Known numbers are padding; parameters are not, as a class token that stands in front of the others.
    blank = [isinstance(part, Constant) for part in parts]
    # From boxes by part to boxes by axis of the image; what is passive has None for each axis.
    by_axis = zip(*[part if isinstance(part, tuple) else repeat(None) for part in parts])
    return tuple(concatenate(boxes, lengths, axis, blank) for boxes in by_axis)


def follow_stack(step: Step, operands: Sequence[Value]) -> Any:
    """Join arrays along a new axis."""
    axis, rank = step.params["axis"], len(step.results[0].shape)
    places = [k for k in range(rank) if k != axis]
    # Equal lengths, here zeros, before and after: no axis is stretched, and strides stay.
    lengths = [0] * rank
    result = []
    for parts in zip(*[operand if isinstance(operand, tuple) else repeat(None) for operand in operands]):
        raised = [None if box is None else broadcast(box, rank, places, lengths, lengths[1:]) for box in parts]
        result.append(concatenate(raised, [1] * len(parts), axis, [False] * len(parts)))
    return tuple(result)


def follow_unstack(step: Step, operands: list[Any]) -> list[Any]:
    """Take the entries along an axis apart."""
    return [row(operands[0], k, step.params["axis"]) for k in range(len(step.results))]


def row(boxes: Boxes, k: int, axis: int = 0) -> Boxes:
    """Return one entry along an axis, which vanishes."""
    return tuple(reduce_axes(slide(box, axis, 1, low=-k), [axis]) for box in boxes)


def follow_split(step: Step, operands: list[Any]) -> list[Any]:
    """Cut an axis into parts one behind the other."""
    axis, sizes = step.params["axis"], [int(size) for size in step.params["sizes"]]
    # Sizes 2 3 1 start at 0 2 5.
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    return [
        tuple(slide(box, axis, size, low=-start) for box in operands[0])
        for start, size in zip(starts, sizes, strict=True)
    ]


def follow_gather(step: Step, operands: list[Value]) -> Any:
    """Look rows up in a table: by known indices exactly; by others, any row may be meant.

    Every axis of the table is read at a position that is a sum over axes of the result: the start of the row, which
    the indices tell; the offset inside the row; and, of a batched table, the position in the batch.
    """
    table, indices = operands
    if not isinstance(table, tuple):
        return None
    # ``x[[2, 0]]`` of a table (5, 3) is a gather with offset_dims (1,), collapsed_slice_dims (0,), start_index_map (0,)
    # and slice_sizes (1, 3); the result is (2, 3). Positions read on each axis of the table, by axes of the result:
    #
    #     axis 0    2 0      along axis 0, (2, 1)
    #     axis 1    0 1 2    along axis 1, (1, 3), as it was: kept is {1: 1}
    numbers, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
    old, new = step.shapes[0], step.results[0].shape
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    indices_batching = tuple(getattr(numbers, "start_indices_batching_dims", ()))
    # Axes of the result: those of the indices, and (offset_dims) those inside of a row. Axes inside of a row are all
    # axes of the table that have not been taken away, in order.
    rows = [axis for axis in range(len(new)) if axis not in numbers.offset_dims]
    inside = [axis for axis in range(len(old)) if axis not in numbers.collapsed_slice_dims and axis not in batching]
    known: Any = indices.value if isinstance(indices, Constant) else None
    # The last start along each axis at which a row fits.
    last = [old[axis] - sizes[axis] for axis in numbers.start_index_map]
    # A row that does not fit is filled with a number as a whole in this mode, and moved until it fits in the others.
    fills = step.params["mode"] is lax.GatherScatterMode.FILL_OR_DROP

    def placed(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """Put the axes of an array at these axes of the result."""
        shape = [1] * len(new)
        for axis, length in zip(axes, values.shape, strict=True):
            shape[axis] = length
        return values.reshape(shape)

    places, kept, unknown = [], {}, []
    for axis, side in enumerate(old):
        # An array of the result's rank, with length one on each axis that the position does not depend on.
        position = np.zeros([1] * len(new), int)
        if axis in numbers.start_index_map and sizes[axis] < side:
            if known is None:
                unknown.append(axis)
            else:
                # The last axis of the indices holds one start for each axis in start_index_map.
                column = numbers.start_index_map.index(axis)
                position = position + placed(known[..., column].astype(int).clip(0, last[column]), rows)
        if axis in batching:
            number = rows[indices_batching[batching.index(axis)]]
            position = position + placed(np.arange(side), [number])
            kept[number] = axis
        if axis in inside:
            offset = numbers.offset_dims[inside.index(axis)]
            position = position + placed(np.arange(sizes[axis]), [offset])
            if sizes[axis] == side:
                kept[offset] = axis
        places.append(position)
    result: Any = []
    for box in table:
        for axis in unknown:
            if not is_constant(box, axis):
                box = mark_inexact(merge_axis(box, axis))
        result.append(gather(box, [np.zeros_like(p) if k in unknown else p for k, p in enumerate(places)], kept))
    if fills:
        seeing = None if known is None else placed(((known >= 0) & (known <= last)).all(-1), rows)
        result = [mark_inexact(box) if seeing is None else restrict(box, seeing) for box in result]
    if isinstance(indices, tuple):
        # Indices that are computed from the image: every entry may depend on all that any index sees.
        result = as_inexact(unite([tuple(result), stretch(indices, new)]))
    return tuple(result)


def follow_update(step: Step, operands: list[Value]) -> Any:
    """Overwrite a part at a known place."""
    base, part, *starts = operands
    old, new = step.shapes[:2]
    places = []
    for start, length, size in zip(starts, old, new, strict=True):
        place = start.value if isinstance(start, Constant) else None
        if place is None and length != size:
            return None
        places.append(0 if length == size else _clamped(place, length, size))
    return _overwrite(base, part, places, old, new)


def _overwrite(
    base: Value, part: Value, places: Sequence[int], old: Sequence[int], new: Sequence[int], *, keeps: bool = False
) -> Any:
    """Put a part at this place of an array, instead of what was there or, if that ``keeps``, together with it.

    Along each axis, with ``p`` the place:

        base   b b b b b b        outside of the part the base
        part       x x            moved there by a padding of p in front
                   p
    """
    # True inside of the part: the outer product of one line for each axis.
    inside = np.ones((1,) * len(old), bool)
    for axis, (side, length, start) in enumerate(zip(old, new, places, strict=True)):
        line = (np.arange(side) >= start) & (np.arange(side) < start + length)
        inside = inside & line.reshape([-1 if k == axis else 1 for k in range(len(old))])
    parts = []
    if isinstance(base, tuple):
        parts.append(base if keeps else tuple(restrict(box, ~inside) for box in base))
    if isinstance(part, tuple):
        moved = []
        for box in part:
            for axis, start in enumerate(places):
                box = slide(box, axis, old[axis], low=start) if old[axis] != new[axis] else box
            moved.append(restrict(box, inside))
        parts.append(tuple(moved))
    return unite(parts)


def follow_scatter(step: Step, operands: list[Value]) -> Any:
    """Put parts at the places of a table: exact for one part at a known place, and for numbers that overwrite."""
    base, indices, parts = operands
    if isinstance(indices, tuple):
        return None
    numbers = step.params["dimension_numbers"]
    old, given = step.shapes[0], step.shapes[2]
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    # The shape of one part on the axes of the base: one where the part has no such axis.
    sizes = iter([given[axis] for axis in numbers.update_window_dims])
    new = [1 if axis in numbers.inserted_window_dims or axis in batching else next(sizes) for axis in range(len(old))]
    keeps = step.name != "scatter"  # what is added to stays
    table = indices.value if isinstance(indices, Constant) and not batching else None
    fitting = None
    if table is not None:
        # Each row of the indices is one place, its columns in the order of scatter_dims_to_operand_dims.
        places = np.zeros((prod(table.shape[:-1]), len(old)), int)
        places[:, numbers.scatter_dims_to_operand_dims] = table.reshape(len(places), table.shape[-1])
        last = np.subtract(old, new)  # the last place along each axis at which a part fits
        if step.params["mode"] is lax.GatherScatterMode.CLIP:
            places = places.clip(0, last)
        # In the other modes a part that does not fit is not written at all.
        fitting = places[((places >= 0) & (places <= last)).all(1)].tolist()
        if not fitting:
            return base
        if len(places) == 1:
            if isinstance(parts, tuple):
                parts = tuple(reshape(box, given, new) for box in parts)
            return _overwrite(base, parts, fitting[0], old, new, keeps=keeps)
    if isinstance(parts, tuple):
        return as_inexact(unite([base, stretch(parts, step.results[0].shape)]))
    if keeps:
        return base
    # Numbers that overwrite make holes in what is seen: one for each place.
    if fitting is None or len(fitting) > 256:
        return as_inexact(base)
    for place in fitting:
        base = _overwrite(base, PARAMETER, place, old, new)
    return base
