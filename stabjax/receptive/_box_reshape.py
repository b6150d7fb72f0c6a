"""Boxes of entries in a new order: reshaped, joined end to end, looked up in a table, resampled by a matrix."""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any

import numpy as np

from stabjax.receptive._box import (
    CONSTANT,
    Box,
    Stride,
    clip,
    common_strides,
    cut_to_image,
    empty,
    map_boxes,
    visible_strides,
    with_axis,
    with_clipped,
)
from stabjax.receptive._box_axes import transpose
from stabjax.receptive._box_windows import bounds_at, stride_after


def reshape(box: Box, old: Sequence[int], new: Sequence[int]) -> Box:
    """Reshape an array: axes that are split or merged are written out, the others stay as they are.

    Where an axis is split, the strides are read off the boxes anew. Eight pixels as four rows of two:

        boxes     0 1 2 3 4 5 6 7             stride (1, 1)
        reshaped  0 1 | 2 3 | 4 5 | 6 7       strides (1, 2) over rows, (1, 1) within a row
    """
    if 0 in old:
        return empty(len(new), box.side)
    return map_boxes(box, lambda box: _reshape(box, old, new))


def _reshape(box: Box, old: Sequence[int], new: Sequence[int]) -> Box:
    bounds, strides, done = box.bounds, [], 0  # the first `done` axes are those of the result already
    for (i, before), (j, after) in _groups(old, new):
        # Invariant: `bounds` is (lower and -upper, `done` axes of the result, axes of the array from i on). An axis of
        # stride CONSTANT has length one there, whatever its size in the array.
        sizes, targets = old[i : i + before], new[j : j + after]
        mine = box.strides[i : i + before]
        if before == after == 1:
            strides.append(mine[0])
        elif before == 0:
            # An axis of length one in front of another: the next row would begin where that ends.
            # (6,) -> (1, 6) with stride (1, 1) gives (1, 6) and (1, 1), as (12,) -> (2, 6) does.
            following = box.strides[i] if i < len(old) and j + 1 < len(new) and old[i] == new[j + 1] else CONSTANT
            outer = stride_after(following, old[i]) if following is not None and following != CONSTANT else CONSTANT
            bounds = np.expand_dims(bounds, done + 1)
            strides.append(outer if outer is not None and outer[0] == 1 else CONSTANT)
        elif after == 0:
            bounds = bounds.reshape(*bounds.shape[: done + 1], *bounds.shape[done + 2 :])
        elif all(stride == CONSTANT for stride in mine):
            bounds = bounds.reshape(*bounds.shape[: done + 1], *[1] * after, *bounds.shape[done + 1 + before :])
            strides += [CONSTANT] * after
        else:
            # Axes that are split or merged: all their entries are written out, and what is constant is found again
            # after.
            full = (*bounds.shape[: done + 1], *sizes, *bounds.shape[done + 1 + before :])
            bounds = np.broadcast_to(bounds, full).reshape(*full[: done + 1], *targets, *full[done + 1 + before :])
            for axis in range(done, done + after):
                stride = detect_stride(bounds, axis) if bounds.shape[axis + 1] > 1 else CONSTANT
                bounds = bounds.take([0], axis + 1) if stride == CONSTANT else bounds
                strides.append(stride)
        done += after
    return replace(box, bounds=bounds, strides=tuple(strides))


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return runs of axes with the same entries before and after a reshape: ``((start, count), (start, count))``.

    ``(2, 12, 5) -> (2, 3, 4, 5)`` has the runs ``2 -> 2``, ``12 -> 3 4`` and ``5 -> 5``. An axis of length one comes
    and goes by itself, with a count of zero on the other side.
    """
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = i, j
        if i < len(old) and j < len(new) and old[i] == new[j]:
            a, b = i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            a += 1
        elif j < len(new) and new[j] == 1:
            b += 1
        else:
            a, b = i + 1, j + 1
            while prod(old[i:a]) != prod(new[j:b]):
                if prod(old[i:a]) < prod(new[j:b]):
                    a += 1
                else:
                    b += 1
        groups.append(((i, a - i), (j, b - j)))
        i, j = a, b
    return groups


def detect_stride(bounds: np.ndarray, axis: int) -> Stride:
    """Return the stride that the boxes themselves show along an axis, the one with the smallest period, or None."""
    length = bounds.shape[axis + 1]
    if length > 4096:
        return None  # a flattened map: nothing slides along it, and the search would take its time
    rows = np.moveaxis(bounds, axis + 1, 1).reshape(2, length, -1)  # (lower and -upper, entries, all other axes)
    # At most half of the length: a period is believed only where the array shows it twice.
    for period in range(1, min(length // 2, 256) + 1):
        before, after = rows[:, :-period], rows[:, period:]
        # Entries one period apart both see something, or both see nothing.
        seen = np.isfinite(before)
        if not (seen == np.isfinite(after)).all():
            continue
        if not seen.any():
            return CONSTANT
        shift = np.subtract(after, before, out=np.zeros_like(before), where=seen)
        first = float(shift[0][seen[0]][0])
        # Lower and upper move by the same, all other axes alike.
        if (shift[0][seen[0]] == first).all() and (shift[1][seen[1]] == -first).all():
            return (period, round(first))
    return None


def concatenate(parts: Sequence[Box | None], lengths: Sequence[int], axis: int, blank: Sequence[bool]) -> Box:
    """Join arrays one behind the other.

    Padding, also circular, mirrored, or with the border's own values, continues the array that it stands beside, as
    the zeros around a convolution do: a padded pixel keeps its place outside of the image. Four pixels, two before:

        zeros      .  . | 0 1 2 3       joined: -2 -1 0 1 2 3
        circular   2  3 | 0 1 2 3       the same, and inside the image 2 3 0 1 2 3 (`Box.clipped`)
        mirrored   2  1 | 0 1 2 3       the same, and inside the image 2 1 0 1 2 3

    Args:
        parts: boxes of each array; None sees nothing.
        lengths: of the arrays along the axis.
        axis: along which they are joined.
        blank: whether an array that sees nothing is padding.
    """
    seeing = [box for box in parts if box is not None]
    if len(seeing) == len(parts) and all(part is parts[0] and part.strides[axis] == CONSTANT for part in seeing):
        return seeing[0]
    # Three cases:
    #
    #     the longest part that moves is the map, the others continue it    the boxes go on beyond the result
    #     the parts do not continue each other                              only what is seen inside the image counts
    #     no part has a stride along this axis, as where channels are joined    both kinds of boxes are written out
    inner = [None if box is None else clip(box) for box in parts]
    agree = common_strides(seeing, but=axis)[1]
    moving = [k for k, box in enumerate(parts) if box is not None and box.strides[axis] not in (CONSTANT, None)]
    longest = max(moving, key=lambda k: lengths[k]) if agree and moving else None
    continued = None if longest is None else _continue(parts, lengths, axis, blank, longest)
    if continued is not None:
        return with_clipped(continued, _write_out(inner, lengths, axis))
    if moving or not agree:
        return _write_out(inner, lengths, axis)
    if all(box.clipped is None for box in seeing):
        return _write_out(parts, lengths, axis)
    return with_clipped(
        _write_out([box and replace(box, clipped=None) for box in parts], lengths, axis),
        _write_out(inner, lengths, axis),
    )


def _write_out(parts: Sequence[Box | None], lengths: Sequence[int], axis: int) -> Box:
    """Write all boxes out along the axis, which then goes on no further than the array."""
    seeing = [box for box in parts if box is not None]
    strides, _ = common_strides(seeing, but=axis)
    others = np.broadcast_shapes(*[(*box.bounds.shape[: axis + 1], 1, *box.bounds.shape[axis + 2 :]) for box in seeing])
    written = []
    for part, length in zip(parts, lengths):
        shape = (*others[: axis + 1], length, *others[axis + 2 :])
        written.append(np.full(shape, np.inf) if part is None else np.broadcast_to(part.bounds, shape))
    bounds = np.concatenate(written, axis + 1)
    constant = all(box.strides[axis] == CONSTANT for box in seeing) and (bounds == bounds.take([0], axis + 1)).all()
    strides = (*strides[:axis], CONSTANT if constant else None, *strides[axis + 1 :])
    bounds = bounds.take([0], axis + 1) if constant else bounds
    return Box(bounds, visible_strides(bounds, strides), seeing[0].side, all(box.exact for box in seeing))


def _continue(
    parts: Sequence[Box | None], lengths: Sequence[int], axis: int, blank: Sequence[bool], longest: int
) -> Box | None:
    """Let the longest array go on over its neighbors; None if these do not continue it."""
    seeing = [box for box in parts if box is not None]
    base: Any = parts[longest]
    offsets = [0, *np.cumsum(lengths).tolist()]
    # Positions are those of the longest array: its neighbors stand below zero and from its length on.
    bounds = bounds_at(base, axis, np.arange(offsets[-1]) - offsets[longest])
    exact = all(box.exact for box in seeing)
    for k, part in enumerate(parts):
        place = slice(offsets[k], offsets[k + 1])
        index = (slice(None),) * (axis + 1) + (place,)
        if part is None:
            if not blank[k]:
                return None
            # Zeros around a part of the image: their boxes would reach back into it.
            exact &= not np.isfinite(cut_to_image(bounds[index], base.side)).any()
        elif k != longest and not _continues(part, base, axis, np.arange(place.start, place.stop) - offsets[longest]):
            return None
    strides, _ = common_strides(seeing, but=axis)
    strides = (*strides[:axis], base.strides[axis], *strides[axis + 1 :])
    return Box(bounds, visible_strides(bounds, strides), base.side, exact)


def _continues(part: Box, base: Box, axis: int, positions: np.ndarray) -> bool:
    """Return whether a neighbor continues an array: as it is, a whole side further on, mirrored, or by its border."""
    length = base.bounds.shape[axis + 1]
    # A part of one entry that stands for several, as the border repeated.
    if part.strides[axis] == CONSTANT and len(positions) > 1:
        part = replace(part, bounds=np.repeat(part.bounds, len(positions), axis + 1))
    expected = bounds_at(base, axis, positions)
    if expected.shape != part.bounds.shape:
        return False
    if (part.bounds == expected).all():
        return True
    if not (np.isfinite(part.bounds).all() and np.isfinite(expected).all()):
        return False
    # Circular: lower bounds and upper bounds move alike, each by a whole number of sides.
    shift = part.bounds - expected
    if (shift[0] == -shift[1]).all() and (shift % base.side == 0).all():
        return True
    # Which entry stands at a position before the array, and at one behind it:
    before, after = positions < 0, positions >= length
    for low, high in (
        (-positions, 2 * length - 2 - positions),  # ... 2 1 | 0 1 2: mirrored at the first entry
        (-1 - positions, 2 * length - 1 - positions),  # ... 1 0 | 0 1 2: mirrored at the border
        (0, length - 1),  # ... 0 0 | 0 1 2: the border itself
    ):
        mirrored = np.where(before, low, np.where(after, high, positions))
        if ((mirrored >= 0) & (mirrored < length)).all() and (part.bounds == bounds_at(base, axis, mirrored)).all():
            return True
    return False


def gather(box: Box, places: Sequence[np.ndarray], kept: dict[int, int]) -> Box:
    """Look entries up.

    Args:
        box: boxes of the array.
        places: for each of its axes, the positions that are read, as arrays of the result's rank that broadcast.
        kept: axes of the result along which an axis of the array is read as it was: ``{of the result: of the array}``.
    """
    return map_boxes(box, lambda box: _gather(box, places, kept))


def _gather(box: Box, places: Sequence[np.ndarray], kept: dict[int, int]) -> Box:
    # Where the boxes are constant along an axis of the array, its one entry is read at every position.
    index = tuple(
        np.zeros_like(table) if box.bounds.shape[axis + 1] == 1 else table for axis, table in enumerate(places)
    )
    bounds = box.bounds[(slice(None), *index)]
    strides: list[Stride] = []
    for axis in range(places[0].ndim):
        if axis in kept:
            stride = box.strides[kept[axis]]
        else:
            stride = detect_stride(bounds, axis) if bounds.shape[axis + 1] > 1 else CONSTANT
        if stride == CONSTANT:
            bounds = bounds.take([0], axis + 1)
        strides.append(stride)
    return replace(box, bounds=bounds, strides=tuple(strides))


def contract(box: Box, axis: int, table: np.ndarray, kept: Sequence[int], *, behind: bool) -> Box:
    """Multiply an array by a matrix of which it is known where it is zero.

    Args:
        box: boxes of the array.
        axis: of the array, which is contracted.
        table: where the matrix may differ from zero, ``(axis, *others)``.
        kept: the other axes of the array, in the order of the result.
        behind: whether the matrix' own axes stand behind the kept ones in the result, or in front.
    """
    place = [*kept, axis] if behind else [axis, *kept]
    even = _resample(box, axis, table)
    clipped = _columns(clip(box), axis, table, kept, behind=behind)
    return clipped if even is None else with_clipped(transpose(even, place), clipped)


def _columns(box: Box, axis: int, table: np.ndarray, kept: Sequence[int], *, behind: bool) -> Box:
    """Let every column of the matrix see through the rows where it is not zero."""
    # (2, *kept, entries), for each column (2, *kept), together (2, *kept, columns), and then (2, *kept, *others).
    bounds = box.bounds.transpose(0, *[k + 1 for k in kept], axis + 1)
    columns = table.reshape(len(table), -1).T
    seen = np.stack([np.where(column, bounds, np.inf).min(-1) for column in columns], -1)
    seen = seen.reshape(*seen.shape[:-1], *table.shape[1:])
    others = table.ndim - 1
    new = (None,) * others
    strides = tuple(box.strides[k] for k in kept)
    if not behind:
        seen = np.moveaxis(seen, range(1 + len(kept), seen.ndim), range(1, 1 + others))
    return replace(box, bounds=seen, strides=(*strides, *new) if behind else (*new, *strides))


def _resample(box: Box, axis: int, table: np.ndarray) -> Box | None:
    """Resample an axis by a matrix that reads the same neighbors everywhere, but for what lies outside; else None.

    From ``n`` entries to ``m`` the pattern repeats after ``m / gcd(n, m)`` results, ``n / gcd(n, m)`` entries further
    on. An enlargement by two, of which result 2 i reads the entries i - 1 and i, and result 2 i + 1 i and i + 1:

        results   0   1   2   3   4   5         first    -1 0 0 1 1 2     cut to the array: 0 0 0 1 1 2
        entries     0       1       2           last      0 1 1 2 2 3                       0 1 1 2 2 2

    The turn in the middle is taken for the pattern, and all that is read must be the pattern, cut to the array.
    """
    stride, box = box.strides[axis], replace(box, clipped=None)
    if table.ndim != 2 or stride is None or stride == CONSTANT or stride[0] != 1 or not table.any(0).all():
        return None
    entries, count = table.shape
    period, shift = count // gcd(entries, count), entries // gcd(entries, count)
    turns, rest = np.divmod(np.arange(count), period)
    middle = count // period // 2
    bounds = []
    for seen in (table.argmax(0), entries - 1 - table[::-1].argmax(0)):  # the first and the last entry of each result
        # Result (turn, rest) reads what (middle, rest) reads, moved on by (turn - middle) * shift entries.
        pattern = seen[middle * period + rest] + (turns - middle) * shift
        if (pattern.clip(0, entries - 1) != seen).any():
            return None
        bounds.append(bounds_at(box, axis, pattern))
    # The boxes of the array move evenly, so the first and the last entry decide. shift entries are shift * stride
    # pixels.
    return with_axis(box, axis, np.minimum(*bounds), (period, shift * stride[1]))
