"""Boxes of windows that slide over an array: convolutions, pools, slices and padding."""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import numpy as np

from stabjax.receptive._box import (
    CONSTANT,
    Box,
    Stride,
    clip,
    cut_to_image,
    frozen_strides,
    is_constant,
    mark_inexact,
    with_axis,
    with_clipped,
)
from stabjax.receptive._box_axes import Boxes, merge_axis, restrict


def bounds_at(box: Box, axis: int, positions: np.ndarray) -> np.ndarray:
    """Return the bounds at any positions along an axis over which they change, also outside of the array.

    With the stride ``(period, shift) = (2, 6)``, of an array of four boxes ``a b a+6 b+6``:

        position   -2   -1    0    1    2    3    4
        box       a-6  b-6    a    b   a+6  b+6  a+12      = box of (position mod 2), + 6 (position div 2)

    Without a stride nothing is seen outside.
    """
    length, stride = box.bounds.shape[axis + 1], box.strides[axis]
    if length == 0:
        return np.full((*box.bounds.shape[: axis + 1], len(positions), *box.bounds.shape[axis + 2 :]), np.inf)
    if stride is None:
        read = box.bounds.take(positions.clip(0, length - 1), axis + 1)
        outside = (positions < 0) | (positions >= length)
        return np.where(_along_axis(outside, axis, box), np.inf, read)
    period, shift = stride
    # divmod rounds down, also below zero: position -1 is the last entry of the period before, turn -1.
    turns, rest = np.divmod(positions, period)
    moved = _along_axis(turns * float(shift), axis, box)
    return box.bounds.take(rest, axis + 1) + np.stack([moved, -moved])


def box_at(box: Box, places: Sequence[int]) -> tuple[float, float] | None:
    """Return first and last pixel of one entry, also outside of the array; None where the boxes do not go on there."""
    # One axis after the other is cut to the one entry; those behind it are still whole.
    for axis, place in enumerate(places):
        if box.strides[axis] is None and not 0 <= place < box.bounds.shape[axis + 1]:
            return None
        box = replace(box, bounds=bounds_at(box, axis, np.array([place])))
    first, last = box.bounds.ravel()
    return float(first), -float(last)


def _along_axis(values: np.ndarray, axis: int, box: Box) -> np.ndarray:
    """Return values along one axis as an array that broadcasts against the others."""
    return values.reshape([-1 if k == axis else 1 for k in range(len(box.strides))])


def stride_after(stride: Stride, window_stride: int, spread: int = 1) -> Stride:
    """Return the stride of every ``window_stride``-th entry, after the entries were spread apart.

    The boxes repeat where a whole number of periods is a whole number of window strides: at their least common
    multiple. With ``(3, 5)`` and a window stride of 2, after 6 entries, which are 3 windows and 2 periods: ``(3, 10)``.
    """
    if stride is None:
        return None
    period, shift = stride[0] * spread, stride[1]
    common = gcd(period, window_stride)
    return period // common, shift * (window_stride // common)


def slide(
    box: Box,
    axis: int,
    count: int,
    *,
    taps: Sequence[int] | np.ndarray = (0,),
    stride: int = 1,
    low: int = 0,
    spread: int = 1,
) -> Box:
    """Return the boxes of ``count`` windows: window ``i`` reads the entries ``stride i + t - low``, ``t`` in ``taps``.

    A kernel of 3 with dilation 2, stride 3 and padding 1 (taps 0 2 4, low 1) over six entries:

        entry       .  0  1  2  3  4  5  .
        window 0    x     x     x
        window 1             x     x     x        one further on: stride entries, and as many boxes' shifts

    A slice is a window of one entry, padding a window of one entry that begins outside.

    Entries beyond the array are zeros, whose boxes go on outside of the image. Where such a box reaches back into the
    image, to pixels that the entries inside do not see, it is too large.

    Args:
        box: boxes of the array.
        axis: to slide along.
        count: number of windows.
        taps: entries of a window, in order, from its first on.
        stride: entries between windows.
        low: entries before the array at which the first window begins.
        spread: the entries were spread apart first (input dilation), with nothing in between.
    """
    if is_constant(box, axis):
        return box
    positions = (stride * np.arange(count) - low)[:, None] + np.asarray(taps)  # (windows, taps)
    # Strides of the other axes. If those move and all windows read entry 0 of a single one, this axis is only a dummy,
    # as that of a signal (n, 1, w, c).
    others = set(box.strides[:axis] + box.strides[axis + 1 :]) - {CONSTANT, None}
    if box.bounds.shape[axis + 1] == 1 and others and (positions == 0).any(1).all():
        return merge_axis(box, axis)  # a new axis of length one, along which nothing would go on

    def over(box: Box) -> Box:
        """Slide over boxes that may go on beyond the array."""
        if is_constant(box, axis):
            return box
        own = box.strides[axis]
        evenly = len(taps) > 1 and spread == 1 and own is not None and own[0] == 1
        read = positions[:, [0, -1]] if evenly else positions  # boxes that move evenly: the outer entries decide
        bounds = _enclose(_bounds_of_entries(box, axis, read, spread), axis, read.shape)
        return with_axis(box, axis, bounds, stride_after(own, stride, spread))

    # Two answers: with boxes that go on beyond the array, and with what is seen inside the image alone.
    windows = over(replace(box, clipped=None))
    if box.clipped is None and spread == 1 and _is_clipping_enough(box, axis, positions):
        return windows
    if box.strides[axis] is not None and not is_constant(replace(box, clipped=None), axis):
        # What the boxes of the zeros beyond the array add inside the image, no entry sees.
        frozen = replace(box, strides=frozen_strides(box.strides))
        seen = cut_to_image(_bounds_of_entries(box, axis, positions, spread), box.side)
        inside = cut_to_image(_bounds_of_entries(frozen, axis, positions, spread), box.side)
        if (_enclose(seen, axis, positions.shape) != _enclose(inside, axis, positions.shape)).any():
            windows = mark_inexact(windows)
    return with_clipped(windows, over(clip(box)))


def slide_all(
    boxes: Boxes,
    axis: int,
    length: int,
    count: int,
    *,
    taps: Sequence[int] | np.ndarray = (0,),
    stride: int = 1,
    low: int = 0,
    spread: int = 1,
) -> Boxes:
    """Slide windows over an array of this length, of which the boxes are known along every axis of the image.

    A window that reads no entry sees nothing. Where all boxes are constant, one axis of the image is left to say so.
    Arguments as in `slide`.
    """
    moved = tuple(slide(box, axis, count, taps=taps, stride=stride, low=low, spread=spread) for box in boxes)
    if not boxes or not all(is_constant(box, axis) for box in boxes):
        return moved
    # Constant boxes do not tell where the array ends, so windows in the padding are found by their positions.
    entries, rest = np.divmod((stride * np.arange(count) - low)[:, None] + np.asarray(taps), spread)
    reading = ((entries >= 0) & (entries < length) & (rest == 0)).any(1)
    return moved if reading.all() else (restrict(moved[0], _along_axis(reading, axis, moved[0])), *moved[1:])


def _bounds_of_entries(box: Box, axis: int, positions: np.ndarray, spread: int) -> np.ndarray:
    """Return the bounds at positions, one behind the other, of an array whose entries were spread apart.

    Nothing is seen at a position between two entries: with a spread of 2, ``0 . 1 . 2``.
    """
    entries, rest = np.divmod(positions.ravel(), spread)
    bounds = bounds_at(box, axis, entries)
    return np.where(_along_axis(rest > 0, axis, box), np.inf, bounds) if spread > 1 else bounds


def _enclose(bounds: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the bounds of the boxes around all entries of each window; ``shape`` is ``(windows, taps)``."""
    if shape[1] == 1:
        return bounds
    # (2, ..., windows * taps, ...) -> (2, ..., windows, taps, ...) -> (2, ..., windows, ...).
    return bounds.reshape(*bounds.shape[: axis + 1], *shape, *bounds.shape[axis + 2 :]).min(axis + 2)


def _is_clipping_enough(box: Box, axis: int, positions: np.ndarray) -> bool:
    """Return whether cutting at the border tells what the windows see inside the image; if not sure, no.

    So it does where boxes that overlap or touch move evenly, every window reads a part of the array, and the outermost
    of its boxes that are read over reach the border of the image.

        image              |0 1 2 3 4 5|
        outermost box      [-----]              it reaches the border: what the zeros before it would add lies outside
        outermost box        [-----]            it does not (a crop): pixel 0 would be added, which no entry sees
    """
    stride, length, size = box.strides[axis], box.bounds.shape[axis + 1], positions.shape[1]
    # One tap, always inside: entries move, and nothing is mixed.
    if positions.size == 0 or (positions[0, 0] >= 0 and positions[-1, -1] < length and size == 1):
        return True
    if stride is None or stride[0] > 1:
        return False
    shift = stride[1]
    first, last = box.bounds.take([0], axis + 1), box.bounds.take([-1], axis + 1)
    before, after = positions[0, 0] < 0, positions[-1, -1] >= length
    if shift < 0:  # a mirrored map: its last entry lies at the first pixel
        first, last, before, after = last, first, after, before
    gap = np.diff(positions[0]).max(initial=1)
    passed = abs(shift) * (gap - 1)  # of the entries inside, this many pixels at the border may be read by none
    # In this order: boxes of neighboring taps, |shift| gap pixels apart, overlap or touch (1 - first[0] - first[1] is
    # the size); every window reads an entry; the first box reaches pixel 0; the last one reaches pixel side - 1.
    return bool(
        (abs(shift) * gap <= 1 - first[0] - first[1]).all()
        and positions[0, -1] >= 0
        and positions[-1, 0] < length
        and (not before or (first[0] + passed <= 0).all())
        and (not after or (last[1] + passed <= 1 - box.side).all())
    )
