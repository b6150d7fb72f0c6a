"""Boxes of windows that slide over an array: convolutions, pools, slices and padding."""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import numpy as np

from stabjax.receptive._box import (
    STILL,
    Span,
    Step,
    clipped,
    cut,
    inexact,
    is_still,
    mixed,
    only,
    settled,
    standing,
    stepped,
)


def at(span: Span, axis: int, positions: np.ndarray) -> np.ndarray:
    """Ends at any positions along an axis that is not still, also outside of the array."""
    length, step = span.ends.shape[axis + 1], span.steps[axis]
    if step is None:
        taken = span.ends.take(positions.clip(0, length - 1), axis + 1)
        outside = (positions < 0) | (positions >= length)
        return np.where(_along(outside, axis, span), np.inf, taken)
    period, shift = step
    turns, rest = np.divmod(positions, period)
    moved = _along(turns * float(shift), axis, span)
    return span.ends.take(rest, axis + 1) + np.stack([moved, -moved])


def entry(span: Span, places: Sequence[int]) -> tuple[float, float] | None:
    """First and last pixel of one entry, also outside of the array; None where the boxes go on no further than that."""
    for axis, place in enumerate(places):
        if span.steps[axis] is None and not 0 <= place < span.ends.shape[axis + 1]:
            return None
        span = replace(span, ends=at(span, axis, np.array([place])))
    first, last = span.ends.ravel()
    return float(first), -float(last)


def _along(values: np.ndarray, axis: int, span: Span) -> np.ndarray:
    return values.reshape([-1 if k == axis else 1 for k in range(len(span.steps))])


def strided(step: Step, stride: int, spread: int = 1) -> Step:
    """The step of every ``stride``-th entry, after the entries were spread apart."""
    if step is None:
        return None
    period, shift = step[0] * spread, step[1]
    turns = stride // gcd(period, stride)
    return (period // gcd(period, stride), shift * turns)


def window(
    span: Span,
    axis: int,
    count: int,
    *,
    taps: Sequence[int] | np.ndarray = (0,),
    stride: int = 1,
    low: int = 0,
    spread: int = 1,
) -> Span:
    """Boxes of ``count`` windows: window i reads the entries ``stride * i + t - low`` for ``t`` in ``taps``.

    ``spread``: the entries were spread apart first (input dilation), with nothing in between. A slice is a window of
    one entry, padding a window of one entry that begins outside.

    Entries beyond the array are zeros, whose boxes go on outside of the image. Where such a box reaches back into the
    image, to pixels that the entries inside do not see, it is too large.
    """
    if is_still(span, axis):
        return span
    positions = (stride * np.arange(count) - low)[:, None] + np.asarray(taps)
    others = set(span.steps[:axis] + span.steps[axis + 1 :]) - {STILL, None}
    if span.ends.shape[axis + 1] == 1 and others and (positions == 0).any(1).all():
        return mixed(span, axis)  # a new axis of length one, along which nothing would go on

    def over(span: Span) -> Span:
        """The windows of boxes that may go on beyond the array."""
        if is_still(span, axis):
            return span
        step = span.steps[axis]
        evenly = len(taps) > 1 and spread == 1 and step is not None and step[0] == 1
        read = positions[:, [0, -1]] if evenly else positions  # boxes that move evenly: the outer entries decide
        ends = _smallest(_entries(span, axis, read, spread), axis, read.shape)
        return stepped(span, axis, ends, strided(step, stride, spread))

    made = over(replace(span, within=None))
    if span.within is None and spread == 1 and _is_plain(span, axis, positions):
        return made
    if span.steps[axis] is not None and not is_still(replace(span, within=None), axis):
        seen = cut(_entries(span, axis, positions, spread), span.side)
        inside = cut(_entries(replace(span, steps=standing(span.steps)), axis, positions, spread), span.side)
        if (_smallest(seen, axis, positions.shape) != _smallest(inside, axis, positions.shape)).any():
            made = inexact(made)
    return settled(made, over(clipped(span)))


def slid(
    seen: tuple[Span, ...],
    axis: int,
    length: int,
    count: int,
    *,
    taps: Sequence[int] | np.ndarray = (0,),
    stride: int = 1,
    low: int = 0,
    spread: int = 1,
) -> tuple[Span, ...]:
    """Windows over an array of this length, of which the boxes are known along every axis of the image.

    A window that reads no entry sees nothing. Where all boxes stand still, one axis of the image is left to say so.
    """
    moved = tuple(window(span, axis, count, taps=taps, stride=stride, low=low, spread=spread) for span in seen)
    if not seen or not all(is_still(span, axis) for span in seen):
        return moved
    entries, rest = np.divmod((stride * np.arange(count) - low)[:, None] + np.asarray(taps), spread)
    reading = ((entries >= 0) & (entries < length) & (rest == 0)).any(1)
    return moved if reading.all() else (only(moved[0], _along(reading, axis, moved[0])), *moved[1:])


def _entries(span: Span, axis: int, positions: np.ndarray, spread: int) -> np.ndarray:
    """Ends at the positions of an array whose entries were spread apart."""
    entries, rest = np.divmod(positions.ravel(), spread)
    ends = at(span, axis, entries)
    return np.where(_along(rest > 0, axis, span), np.inf, ends) if spread > 1 else ends


def _smallest(ends: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """The ends of the boxes around all entries of each window."""
    if shape[1] == 1:
        return ends
    return ends.reshape(*ends.shape[: axis + 1], *shape, *ends.shape[axis + 2 :]).min(axis + 2)


def _is_plain(span: Span, axis: int, positions: np.ndarray) -> bool:
    """Whether clipping tells what the windows see inside the image; if not sure, no.

    So it does where boxes that overlap or touch move evenly, every window reads a part of the array, and the outermost
    of its boxes that are read over reach the border of the image.
    """
    step, length, size = span.steps[axis], span.ends.shape[axis + 1], positions.shape[1]
    if positions.size == 0 or (positions[0, 0] >= 0 and positions[-1, -1] < length and size == 1):
        return True
    if step is None or step[0] > 1:
        return False
    first, last = span.ends.take([0], axis + 1), span.ends.take([-1], axis + 1)
    if step[1] < 0:
        first, last = last, first
    before, after = positions[0, 0] < 0, positions[-1, -1] >= length
    before, after = (after, before) if step[1] < 0 else (before, after)
    gap = np.diff(positions[0]).max(initial=1)
    passed = abs(step[1]) * (gap - 1)  # of the entries inside, this many pixels at the border may be read by none
    return bool(
        (abs(step[1]) * gap <= 1 - first[0] - first[1]).all()
        and positions[0, -1] >= 0
        and positions[-1, 0] < length
        and (not before or (first[0] + passed <= 0).all())
        and (not after or (last[1] + passed <= 1 - span.side).all())
    )
