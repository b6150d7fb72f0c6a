"""Boxes of pixels: what every entry of an array sees of the image along one of its axes.

An operation that moves entries moves their boxes, one that mixes entries joins them. A convolution with a kernel of
three and zeros around it (`.` lies outside of the image):

    pixel            . 0 1 2 3 4 .
    box of entry 0  [-----]            lower -1, upper 1: not cut at the border
    box of entry 1    [-----]          one entry further on, one pixel further on: stride (1, 1)
    box of entry 4          [-----]    lower 3, upper 5

Along an axis over which the boxes do not change their array has length one, so a `Box` is about as small as the side
of the image. Boxes are not clipped to the image: where an array is padded, they go on beyond its border as they do
inside, which is what the stride says. What is seen inside the image stands beside them (`Box.clipped`) where cutting
them at the border does not tell it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import lcm

import numpy as np

Stride = tuple[int, int] | None
"""``(period, shift)``: the box ``period`` entries further on lies ``shift`` pixels further on; None if that varies."""

CONSTANT = (1, 0)
"""The stride along an axis over which the boxes do not change."""


@dataclass(frozen=True, eq=False)
class Box:
    """The box of every entry of an array, along one axis of the image.

    Attributes:
        bounds: the first pixel and minus the last one, ``(2, *shape)``, so that the minimum of two boxes' bounds is
            the bounds of the box around both; infinite where nothing is seen; each axis of length one where the boxes
            do not depend on it.
        strides: how the boxes go on along each axis.
        side: of the image, in pixels.
        exact: whether each box is the smallest that holds all that is seen; otherwise it may be too large.
        clipped: what the entries see inside the image, where that is not what cutting these boxes at its border
            leaves: behind a padding that repeats or mirrors, behind the zeros around a part of the image, and where a
            box has a hole at the border. None elsewhere.
    """

    bounds: np.ndarray
    strides: tuple[Stride, ...]
    side: int
    exact: bool = True
    clipped: "Box | None" = None


def box_of_image(shape: Sequence[int], axis: int) -> Box:
    """Return the boxes of a batch of images along one of its axes: every pixel sees itself."""
    pixels = np.arange(shape[axis], dtype=float)
    bounds = np.stack([pixels, -pixels]).reshape(2, *[side if k == axis else 1 for k, side in enumerate(shape)])
    return Box(bounds, tuple((1, 1) if k == axis else CONSTANT for k in range(len(shape))), shape[axis])


def whole_side(rank: int, side: int, *, exact: bool) -> Box:
    """Return boxes of entries each of which sees the whole side."""
    return Box(np.array([0.0, 1.0 - side]).reshape(2, *[1] * rank), (CONSTANT,) * rank, side, exact=exact)


def empty(rank: int, side: int) -> Box:
    """Return boxes of entries that see nothing, or of no entries."""
    return Box(np.full((2, *[1] * rank), np.inf), (CONSTANT,) * rank, side)


def is_constant(box: Box, axis: int) -> bool:
    """Return whether the boxes do not depend on the position along an axis, inside the array and beyond."""
    return box.strides[axis] == CONSTANT and (box.clipped is None or box.clipped.strides[axis] == CONSTANT)


# Inside the image


def clip(box: Box) -> Box:
    """Return what is seen inside the image; beyond the borders of the array nothing is seen any more."""
    if box.clipped is not None:
        return box.clipped
    return replace(box, bounds=cut_to_image(box.bounds, box.side), strides=frozen_strides(box.strides))


def cut_to_image(bounds: np.ndarray, side: int) -> np.ndarray:
    """Return bounds without what lies outside the image.

    With ``(lower, -upper)`` the image itself is ``(0, 1 - side)``, and a box is empty if ``lower - upper > 0``.
    """
    # max(lower, 0) and max(-upper, 1 - side): the box and the image have this in common.
    bounds = np.maximum(bounds, np.array([0.0, 1.0 - side]).reshape(2, *[1] * (bounds.ndim - 1)))
    return np.where(bounds[:1] + bounds[1:] > 0, np.inf, bounds)


def with_clipped(box: Box, clipped: Box) -> Box:
    """Return the boxes together with what is seen inside the image, if cutting does not tell it.

    Beyond the borders of the array nothing is seen inside the image, whatever strides the boxes show.
    """
    # Along an axis one of the two may be constant, of length one, and the other written out: they broadcast.
    if (cut_to_image(box.bounds, box.side) == clipped.bounds).all():
        return replace(box, exact=clipped.exact, clipped=None)
    return replace(box, clipped=replace(clipped, strides=frozen_strides(clipped.strides)))


def map_boxes(box: Box, function: Callable[[Box], Box], *, mixes: bool = False) -> Box:
    """Apply an operation on the entries to the boxes, and to what is seen inside the image.

    One that only moves entries commutes with cutting at the border. One that ``mixes`` does where the boxes that meet
    overlap or touch:

        image         |0 1 2 3|
        two boxes  [-----]  [-----]      cut, then joined: 0..1 and 2..3
        joined     [--------------]      joined, then cut: 0..3, the same; with a gap at the border it would not be
    """
    if box.clipped is not None:
        return with_clipped(function(replace(box, clipped=None)), function(box.clipped))
    moved = function(box)
    # Entries that only move may be cut before or after: `clipped` stays None.
    return with_clipped(moved, function(clip(box))) if mixes else moved


def report(box: Box) -> Box:
    """Choose between the boxes and what is seen inside the image alone, for the extent of a tap.

    The latter where the boxes go on nowhere or would mislead. So they would if one that lies in the image does not
    hold what its entry sees, as where a part of the image is padded by its own mirror image, or if they are larger
    than the image and most of them larger than what is seen. Boxes that move unevenly are reported as they are only
    behind a padding that shows a part of the image, whose pixels lie a side apart, or on both sides of the border,
    where what is seen inside is larger. They are exact if no box reaches back into the image, and each that lies in
    it is what its entry sees.
    """
    constant, uneven = set(box.strides) <= {CONSTANT}, None in box.strides
    if box.clipped is None:
        return clip(box) if constant or uneven else box
    inner, outer = box.clipped.bounds, cut_to_image(box.bounds, box.side)
    # Entry by entry: whether the box holds what is seen, is just that, and lies in the image.
    holds, equal = (inner >= outer).all(0), (inner == outer).all(0)
    contained = (outer == box.bounds).all(0) & np.isfinite(outer).all(0)
    # 1 - (lower - upper) is the size of a box, and -inf where nothing is seen.
    beyond = (1 - box.bounds.sum(0)).max() > box.side
    large = (holds & ~equal).mean() > 0.5 and beyond
    lost = uneven and (beyond or (holds & ~equal).any())
    if constant or large or lost or not (holds | ~contained).all():
        return box.clipped
    return box if (equal | ~contained).all() else replace(box, exact=False)


def mark_inexact(box: Box) -> Box:
    """Return the same boxes, which may be larger than needed."""
    clipped = None if box.clipped is None else replace(box.clipped, exact=False)
    return replace(box, exact=False, clipped=clipped)


# Several arrays


def union(boxes: Sequence[Box]) -> Box:
    """Return the smallest boxes that hold those of several arrays of one shape.

    Boxes that move at different rates go on no further than the array.
    """
    result = boxes[0]
    for other in boxes[1:]:
        if other is not result:
            result = _union(result, other)
    return result


def _union(a: Box, b: Box) -> Box:
    strides, _ = common_strides((a, b))
    bounds = np.minimum(a.bounds, b.bounds)
    both = Box(bounds, visible_strides(bounds, strides), a.side, a.exact and b.exact)
    # Without a gap between the two boxes, cutting both is cutting what holds both (see `map_boxes`).
    if a.clipped is None and b.clipped is None and _overlap(a.bounds, b.bounds):
        return both
    inner, other = clip(a), clip(b)
    seen = np.minimum(inner.bounds, other.bounds)
    return with_clipped(both, Box(seen, frozen_strides(both.strides), a.side, inner.exact and other.exact))


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two arrays of boxes overlap or touch everywhere: what they hold together has no gap."""
    # lower of one - upper of the other <= 1, both ways round
    return bool(((a[0] + b[1] <= 1) & (b[0] + a[1] <= 1)).all())


# Strides


def common_strides(boxes: Sequence[Box], *, but: int | None = None) -> tuple[tuple[Stride, ...], bool]:
    """Return strides that hold for several arrays, and whether their boxes move at one rate along every axis but one.

    Periods may differ: 2 pixels every entry and 4 pixels every other entry are together ``(2, 4)``.
    """
    strides, agree = [], True
    for axis, candidates in enumerate(zip(*[box.strides for box in boxes], strict=True)):
        stride = candidates[0]
        if any(other != stride for other in candidates[1:]):
            known = [other for other in candidates if other is not None]
            # Pixels per entry. Arrays of one rate share a stride at the least common multiple of their periods.
            # Quotients of equal ratios are equal floats.
            rates = {shift / period for period, shift in known}
            agree &= axis == but or len(rates) == 1
            stride = None
            if len(rates) == 1 and len(known) == len(candidates):
                period = lcm(*[other[0] for other in known])
                stride = (period, round(rates.pop() * period))
        strides.append(stride)
    return tuple(strides), agree


def visible_strides(bounds: np.ndarray, strides: Sequence[Stride]) -> tuple[Stride, ...]:
    """Return the strides of which the array has a whole period, and None for the others."""
    return tuple(
        # Invariant: a period is at most the length, so that `bounds_at` finds all of its entries.
        None if stride is not None and stride[0] > length else stride
        for stride, length in zip(strides, bounds.shape[1:], strict=True)
    )


def frozen_strides(strides: Sequence[Stride]) -> tuple[Stride, ...]:
    """Return the strides of an array beyond whose borders nothing is seen: None but where the boxes are constant."""
    return tuple(stride if stride == CONSTANT else None for stride in strides)


def with_axis(box: Box, axis: int, bounds: np.ndarray, stride: Stride) -> Box:
    """Return the array with other boxes along one axis; a stride is kept only if it shows all of its period."""
    strides = (*box.strides[:axis], stride, *box.strides[axis + 1 :])
    return replace(box, bounds=bounds, strides=visible_strides(bounds, strides))
