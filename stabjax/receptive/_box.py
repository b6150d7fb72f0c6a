"""Boxes of pixels: what every entry of an array sees of the image along one of its axes.

A `Span` holds, for every entry, the first and the last pixel seen; an operation that moves entries moves their boxes,
one that mixes entries joins them. Along an axis over which the boxes do not change the arrays have length one, so a
span is about as small as the side of the image. Boxes are not clipped to the image: where an array is padded, the
boxes go on beyond its border as they do inside, which is what its step says. What is seen inside the image stands
beside them where clipping does not tell it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import lcm

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
        exact: whether each box is the smallest that holds all that is seen; otherwise it may be too large.
        within: what the entries see inside the image, where that is not what clipping leaves of these boxes: behind
            a padding that repeats or mirrors, behind the zeros around a part of the image, and where a box has a
            hole at the border. None elsewhere.
    """

    ends: np.ndarray
    steps: tuple[Step, ...]
    side: int
    exact: bool = True
    within: "Span | None" = None


def of_image(shape: Sequence[int], axis: int) -> Span:
    """Every pixel sees itself."""
    pixels = np.arange(shape[axis], dtype=float)
    ends = np.stack([pixels, -pixels]).reshape(2, *[side if k == axis else 1 for k, side in enumerate(shape)])
    return Span(ends, tuple((1, 1) if k == axis else STILL for k in range(len(shape))), shape[axis])


def whole(rank: int, side: int, *, exact: bool) -> Span:
    """Every entry sees the whole side."""
    return Span(np.array([0.0, 1.0 - side]).reshape(2, *[1] * rank), (STILL,) * rank, side, exact=exact)


def nothing(rank: int, side: int) -> Span:
    """No entry sees anything, or there is none."""
    return Span(np.full((2, *[1] * rank), np.inf), (STILL,) * rank, side)


def is_still(span: Span, axis: int) -> bool:
    """Whether the boxes do not depend on the position along an axis, inside the array and beyond."""
    return span.steps[axis] == STILL and (span.within is None or span.within.steps[axis] == STILL)


def clipped(span: Span) -> Span:
    """What is seen inside the image; beyond the borders of the array nothing is seen any more."""
    if span.within is not None:
        return span.within
    return replace(span, ends=cut(span.ends, span.side), steps=standing(span.steps))


def cut(ends: np.ndarray, side: int) -> np.ndarray:
    """Boxes without what lies outside the image."""
    ends = np.maximum(ends, np.array([0.0, 1.0 - side]).reshape(2, *[1] * (ends.ndim - 1)))
    return np.where(ends[:1] + ends[1:] > 0, np.inf, ends)


def settled(span: Span, within: Span) -> Span:
    """The boxes, together with what is seen inside the image if clipping does not tell it.

    Beyond the borders of the array nothing is seen inside the image, whatever steps the boxes show.
    """
    if (cut(span.ends, span.side) == within.ends).all():
        return replace(span, exact=within.exact, within=None)
    return replace(span, within=replace(within, steps=standing(within.steps)))


def told(span: Span) -> Span:
    """The boxes to tell of: those inside the image alone where the others go on nowhere or would mislead.

    So they would if one that lies in the image does not hold what its entry sees, as where a part of the image is
    padded by its own mirror image, or if they are larger than the image and most of them larger than what is seen.
    Boxes that move unevenly are told as they are only behind a padding that shows a part of the image, whose pixels
    lie a side apart, or on both sides of the border, where what is seen inside is larger.
    They are exact if no box reaches back into the image, and each that lies in it is what its entry sees.
    """
    still, uneven = set(span.steps) <= {STILL}, None in span.steps
    if span.within is None:
        return clipped(span) if still or uneven else span
    inner, outer = span.within.ends, cut(span.ends, span.side)
    held, alike = (inner >= outer).all(0), (inner == outer).all(0)
    contained = (outer == span.ends).all(0) & np.isfinite(outer).all(0)
    beyond = (1 - span.ends.sum(0)).max() > span.side
    large = (held & ~alike).mean() > 0.5 and beyond
    lost = uneven and (beyond or (held & ~alike).any())
    if still or large or lost or not (held | ~contained).all():
        return span.within
    return span if (alike | ~contained).all() else replace(span, exact=False)


def through(span: Span, move: Callable[[Span], Span], *, mixes: bool = False) -> Span:
    """The boxes after an operation on their entries, inside the image too.

    One that only moves entries commutes with clipping. One that ``mixes`` does where the boxes join without a gap.
    """
    if span.within is not None:
        return settled(move(replace(span, within=None)), move(span.within))
    moved = move(span)
    return settled(moved, move(clipped(span))) if mixes else moved


def join(spans: Sequence[Span]) -> Span:
    """The smallest boxes that hold those of several arrays of one shape.

    Boxes that move at different rates go on no further than the array.
    """
    result = spans[0]
    for other in spans[1:]:
        if other is not result:
            result = _joined(result, other)
    return result


def _joined(a: Span, b: Span) -> Span:
    steps, _ = agreed((a, b))
    ends = np.minimum(a.ends, b.ends)
    made = Span(ends, shown(ends, steps), a.side, a.exact and b.exact)
    if a.within is None and b.within is None and _meet(a.ends, b.ends):
        return made
    inner, other = clipped(a), clipped(b)
    seen = np.minimum(inner.ends, other.ends)
    return settled(made, Span(seen, standing(made.steps), a.side, inner.exact and other.exact))


def _meet(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays of boxes overlap or touch everywhere: what they hold together has no gap."""
    return bool(((a[0] + b[1] <= 1) & (b[0] + a[1] <= 1)).all())


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


def stepped(span: Span, axis: int, ends: np.ndarray, step: Step) -> Span:
    """The span with other boxes along one axis; a step is kept only if the array shows all of its period."""
    return replace(span, ends=ends, steps=shown(ends, (*span.steps[:axis], step, *span.steps[axis + 1 :])))


def standing(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Steps of an array beyond whose borders nothing is seen, but where the boxes do not depend on the position."""
    return tuple(step if step == STILL else None for step in steps)


def reverse(span: Span, axis: int) -> Span:
    """The entries along an axis in reverse order."""

    def flipped(span: Span) -> Span:
        step = span.steps[axis]
        return stepped(span, axis, np.flip(span.ends, axis + 1), None if step is None else (step[0], -step[1]))

    return through(span, flipped)


def reduce(span: Span, axes: Iterable[int]) -> Span:
    """Boxes of what mixes all entries along some axes, which vanish."""
    gone = {axis % len(span.steps) for axis in axes}

    def reduced(span: Span) -> Span:
        steps = tuple(step for axis, step in enumerate(span.steps) if axis not in gone)
        return replace(span, ends=span.ends.min(tuple(axis + 1 for axis in gone)), steps=steps)

    return through(span, reduced, mixes=any(span.ends.shape[axis + 1] > 1 for axis in gone))


def mixed(span: Span, axis: int) -> Span:
    """Every entry along an axis sees what any of them sees."""
    if is_still(span, axis):
        return span

    def met(span: Span) -> Span:
        return stepped(span, axis, span.ends.min(axis + 1, keepdims=True), STILL)

    return through(span, met, mixes=span.ends.shape[axis + 1] > 1)


def accumulate(span: Span, axis: int, *, backwards: bool) -> Span:
    """Every entry along an axis sees what those before it see, and itself."""
    if is_still(span, axis):
        return span
    span = clipped(span)
    order = slice(None, None, -1 if backwards else 1)
    index = (slice(None),) * (axis + 1) + (order,)
    step = STILL if span.steps[axis] == STILL else None
    return stepped(span, axis, np.minimum.accumulate(span.ends[index], axis + 1)[index], step)


def permute(span: Span, order: Sequence[int]) -> Span:
    """The axes in another order."""

    def permuted(span: Span) -> Span:
        ends = span.ends.transpose(0, *[axis + 1 for axis in order])
        return replace(span, ends=ends, steps=tuple(span.steps[axis] for axis in order))

    return through(span, permuted)


def spread_over(span: Span, rank: int, places: Sequence[int], lengths: Sequence[int], old: Sequence[int]) -> Span:
    """The axes at new places among others; an axis of length one may be stretched (``lax.broadcast_in_dim``)."""

    def spread(span: Span) -> Span:
        steps: list[Step] = [STILL] * rank
        shape = [1] * rank
        for axis, place in enumerate(places):
            if old[axis] == lengths[place]:
                steps[place] = span.steps[axis]
            shape[place] = span.ends.shape[axis + 1]
        order = sorted(range(len(places)), key=places.__getitem__)
        ends = span.ends.transpose(0, *[axis + 1 for axis in order]).reshape(2, *shape)
        return replace(span, ends=ends, steps=tuple(steps))

    return through(span, spread)


def inexact(span: Span) -> Span:
    """The same boxes, which may be larger than needed."""
    within = None if span.within is None else replace(span.within, exact=False)
    return replace(span, exact=False, within=within)


def only(span: Span, seeing: np.ndarray) -> Span:
    """The boxes of some entries; the others see nothing."""
    moving = []
    for axis in range(seeing.ndim):
        first = seeing.take([0], axis)
        if (seeing == first).all():
            seeing = first
        else:
            moving.append(axis)
    if seeing.size == 1 and seeing.all():
        return span

    def masked(span: Span) -> Span:
        steps = tuple(None if axis in moving else step for axis, step in enumerate(span.steps))
        return replace(span, ends=np.where(seeing, span.ends, np.inf), steps=steps)

    return through(span, masked)


def channels(span: Span, axis: int, groups: int, count: int) -> Span:
    """Boxes of ``count`` channels, each of which mixes those of its group."""
    if groups == 1 or is_still(span, axis):
        return mixed(span, axis)

    def grouped(span: Span) -> Span:
        length = span.ends.shape[axis + 1]
        if length == 1:
            return span
        before, after = span.ends.shape[: axis + 1], span.ends.shape[axis + 2 :]
        ends = span.ends.reshape(*before, groups, length // groups, *after).min(axis + 2)
        return stepped(span, axis, np.repeat(ends, count // groups, axis + 1), None)

    return through(span, grouped, mixes=True)
