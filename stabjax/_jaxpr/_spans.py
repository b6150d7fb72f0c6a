"""Boxes of pixels: what every entry of an array sees of the image along one of its axes.

A `Span` holds, for every entry, the first and the last pixel seen; an operation that moves entries moves their boxes,
one that mixes entries joins them. Along an axis over which the boxes do not change the arrays have length one, so a
span is about as small as the side of the image. Boxes are not clipped to the image: where an array is padded, the
boxes go on beyond its border as they do inside, which is what its step says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm

import numpy as np

Step = tuple[int, int] | None
"""``(period, shift)``: the box ``period`` entries further on lies ``shift`` pixels further on; None if that varies."""

STILL = (1, 0)


@dataclass(frozen=True, eq=False)
class Span:
    """Boxes along one axis of the image.

    Attributes:
        ends: the first pixel and minus the last one, ``(2, *shape)``, so that the smaller of two is the end of both;
            infinite where nothing is seen; each axis of length one where the boxes do not depend on it.
        steps: how the boxes go on along each axis.
        side: of the image, in pixels.
        wraps: whether the image goes round: a pixel beyond one border is one behind the other.
        exact: whether each box is the smallest that holds all that is seen; otherwise it may be too large.
    """

    ends: np.ndarray
    steps: tuple[Step, ...]
    side: int
    wraps: bool = False
    exact: bool = True


def of_image(shape: Sequence[int], axis: int) -> Span:
    """Every pixel sees itself."""
    pixels = np.arange(shape[axis], dtype=float)
    ends = np.stack([pixels, -pixels]).reshape(2, *[side if k == axis else 1 for k, side in enumerate(shape)])
    return Span(ends, tuple((1, 1) if k == axis else STILL for k in range(len(shape))), shape[axis])


def whole(rank: int, side: int, *, exact: bool) -> Span:
    """Every entry sees the whole side."""
    return Span(np.array([0.0, 1.0 - side]).reshape(2, *[1] * rank), (STILL,) * rank, side, exact=exact)


def is_still(span: Span, axis: int) -> bool:
    """Whether the boxes do not depend on the position along an axis, inside the array and beyond."""
    return span.steps[axis] == STILL


def clipped(span: Span) -> Span:
    """The boxes without what lies outside the image; beyond the borders of the array nothing is seen any more."""
    low = np.array([0.0, 1.0 - span.side]).reshape(2, *[1] * len(span.steps))
    ends = np.maximum(span.ends, low)
    ends = np.where(ends[:1] + ends[1:] > 0, np.inf, ends)
    if span.wraps:
        outside = ((span.ends < low) & np.isfinite(span.ends)).any(0, keepdims=True)
        ends = np.where(outside, low, ends)
    steps = []
    for axis, step in enumerate(span.steps):
        if step != STILL and ends.shape[axis + 1] > 1:
            first = ends.take([0], axis + 1)
            if (ends == first).all():
                ends, step = first, STILL
        steps.append(step if step == STILL else None)
    return replace(span, ends=ends, steps=tuple(steps), wraps=False)


def join(spans: Sequence[Span]) -> Span:
    """The smallest boxes that hold those of several arrays of one shape.

    Boxes that move at different rates, as where a map is scaled by a mean over itself, are clipped first.
    """
    result = spans[0]
    for other in spans[1:]:
        if other is result:
            continue
        steps, agree = agreed((result, other))
        pair = (result, other) if agree else (clipped(result), clipped(other))
        steps = steps if agree else agreed(pair)[0]
        ends = np.minimum(pair[0].ends, pair[1].ends)
        result = Span(
            ends,
            shown(ends, steps),
            result.side,
            any(span.wraps for span in pair),
            result.exact and other.exact,
        )
    return result


def agreed(spans: Sequence[Span], *, but: int | None = None) -> tuple[tuple[Step, ...], bool]:
    """Steps that hold for several arrays, and whether their boxes move at the same rate along every axis but one."""
    steps, agree = [], True
    for axis, candidates in enumerate(zip(*[span.steps for span in spans])):
        step = candidates[0]
        if any(other != step for other in candidates[1:]):
            known = [other for other in candidates if other is not None]
            rates = {shift / period for period, shift in known}
            agree &= axis == but or len(rates) == 1
            step = None
            if len(rates) == 1 and len(known) == len(candidates):
                period = lcm(*[other[0] for other in known])
                step = (period, round(rates.pop() * period))
        steps.append(step)
    return tuple(steps), agree


def shown(ends: np.ndarray, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of which the array has a whole period."""
    return tuple(
        None if step is not None and step[0] > length else step
        for step, length in zip(steps, ends.shape[1:], strict=True)
    )


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Minus and plus: what is added to both ends for a shift along an axis."""
    return np.stack([values, -values]).reshape(2, *[-1 if k == axis else 1 for k in range(rank)])


def at(span: Span, axis: int, positions: np.ndarray) -> np.ndarray:
    """Ends at any positions along an axis that is not still, also outside of the array."""
    length, step = span.ends.shape[axis + 1], span.steps[axis]
    if step is None:
        taken = span.ends.take(positions.clip(0, length - 1), axis + 1)
        outside = (positions < 0) | (positions >= length)
        return np.where(outside.reshape([-1 if k == axis else 1 for k in range(len(span.steps))]), np.inf, taken)
    period, shift = step
    turns, rest = np.divmod(positions, period)
    return span.ends.take(rest, axis + 1) + _along(turns * float(shift), axis, len(span.steps))


def strided(step: Step, stride: int, *, spread: int = 1) -> Step:
    """The step of every ``stride``-th entry, after the entries were spread apart."""
    if step is None:
        return None
    period, shift = step[0] * spread, step[1]
    turns = stride // gcd(period, stride)
    return (period // gcd(period, stride), shift * turns)


def stepped(span: Span, axis: int, ends: np.ndarray, step: Step) -> Span:
    """The span with other boxes along one axis; a step is kept only if the array shows all of its period."""
    return replace(span, ends=ends, steps=shown(ends, (*span.steps[:axis], step, *span.steps[axis + 1 :])))


def window(
    span: Span,
    axis: int,
    count: int,
    *,
    size: int = 1,
    stride: int = 1,
    dilation: int = 1,
    low: int = 0,
    spread: int = 1,
) -> Span:
    """Boxes of ``count`` windows: window i reads entries ``stride * i + dilation * t - low``, ``0 <= t < size``.

    ``spread``: the entries were spread apart first (input dilation), with nothing in between. A slice is a window of
    one entry, padding a window of one entry that begins outside.
    """
    step = span.steps[axis]
    if step == STILL:
        return span
    taps = np.arange(size) * dilation
    if spread == 1 and step is not None and step[0] == 1:
        taps = taps[[0, -1]] if size > 1 else taps  # the boxes move evenly: the outer entries decide
    positions = (stride * np.arange(count) - low)[:, None] + taps
    entries, rest = np.divmod(positions.ravel(), spread)
    ends = at(span, axis, entries)
    if spread > 1:
        ends = np.where(rest.reshape([-1 if k == axis else 1 for k in range(len(span.steps))]) > 0, np.inf, ends)
    if len(taps) > 1:
        shape = ends.shape
        ends = ends.reshape(*shape[: axis + 1], count, len(taps), *shape[axis + 2 :]).min(axis + 2)
    return stepped(span, axis, ends, strided(step, stride, spread=spread))


def reverse(span: Span, axis: int) -> Span:
    """The entries along an axis in reverse order."""
    step = span.steps[axis]
    return stepped(span, axis, np.flip(span.ends, axis + 1), None if step is None else (step[0], -step[1]))


def reduce(span: Span, axes: Iterable[int]) -> Span:
    """Boxes of what mixes all entries along some axes, which vanish."""
    gone = {axis % len(span.steps) for axis in axes}
    steps = tuple(step for axis, step in enumerate(span.steps) if axis not in gone)
    return replace(span, ends=span.ends.min(tuple(axis + 1 for axis in gone)), steps=steps)


def mixed(span: Span, axis: int) -> Span:
    """Every entry along an axis sees what any of them sees."""
    if span.steps[axis] == STILL:
        return span
    return stepped(span, axis, span.ends.min(axis + 1, keepdims=True), STILL)


def accumulate(span: Span, axis: int, *, backwards: bool) -> Span:
    """Every entry along an axis sees what those before it see, and itself."""
    if span.steps[axis] == STILL:
        return span
    span = clipped(span)
    order = slice(None, None, -1 if backwards else 1)
    index = (slice(None),) * (axis + 1) + (order,)
    return stepped(span, axis, np.minimum.accumulate(span.ends[index], axis + 1)[index], None)


def permute(span: Span, order: Sequence[int]) -> Span:
    """The axes in another order."""
    ends = span.ends.transpose(0, *[axis + 1 for axis in order])
    return replace(span, ends=ends, steps=tuple(span.steps[axis] for axis in order))


def spread_over(span: Span, rank: int, places: Sequence[int], lengths: Sequence[int], old: Sequence[int]) -> Span:
    """The axes at new places among others; an axis of length one may be stretched (``lax.broadcast_in_dim``)."""
    steps: list[Step] = [STILL] * rank
    shape = [1] * rank
    for axis, place in enumerate(places):
        if old[axis] == lengths[place]:
            steps[place] = span.steps[axis]
        shape[place] = span.ends.shape[axis + 1]
    order = sorted(range(len(places)), key=places.__getitem__)
    ends = span.ends.transpose(0, *[axis + 1 for axis in order]).reshape(2, *shape)
    return replace(span, ends=ends, steps=tuple(steps))


def inexact(span: Span) -> Span:
    """The same boxes, which may be larger than needed."""
    return replace(span, exact=False)


def only(span: Span, seeing: np.ndarray) -> Span:
    """The boxes of some entries; the others see nothing."""
    steps = list(span.steps)
    for axis in range(seeing.ndim):
        first = seeing.take([0], axis)
        if (seeing == first).all():
            seeing = first
        else:
            steps[axis] = None
    if seeing.size == 1 and seeing.all():
        return span
    return replace(span, ends=np.where(seeing, span.ends, np.inf), steps=tuple(steps))


def channels(span: Span, axis: int, groups: int, count: int) -> Span:
    """Boxes of ``count`` channels, each of which mixes those of its group."""
    length = span.ends.shape[axis + 1]
    if groups == 1 or length == 1:
        return mixed(span, axis) if length > 1 else span
    before, after = span.ends.shape[: axis + 1], span.ends.shape[axis + 2 :]
    ends = span.ends.reshape(*before, groups, length // groups, *after).min(axis + 2)
    return stepped(span, axis, np.repeat(ends, count // groups, axis + 1), None)
