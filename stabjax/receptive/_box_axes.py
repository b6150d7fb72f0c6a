"""Boxes after operations on whole axes of an array, and what a value sees along all axes of the image.

Functions of a `Box` know one axis of the image, those of `Boxes` all of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from stabjax._jaxpr import Step
from stabjax.receptive._box import (
    CONSTANT,
    Box,
    Stride,
    clip,
    is_constant,
    map_boxes,
    mark_inexact,
    union,
    with_axis,
)
from stabjax.receptive._masks import PARAMETER, Passive

Boxes: TypeAlias = tuple[Box, ...]
"""What an active value sees, along each axis of the image."""

Value: TypeAlias = Boxes | Passive


def reverse(box: Box, axis: int) -> Box:
    """Put the entries along an axis in reverse order."""

    def flip(box: Box) -> Box:
        # One entry further on is now one entry further back: box k + period of the reversed array lies -shift away.
        stride = box.strides[axis]
        back = None if stride is None else (stride[0], -stride[1])
        return with_axis(box, axis, np.flip(box.bounds, axis + 1), back)

    return map_boxes(box, flip)


def reduce_axes(box: Box, axes: Iterable[int]) -> Box:
    """Mix all entries along some axes, which vanish."""
    gone = {axis % len(box.strides) for axis in axes}

    def reduce(box: Box) -> Box:
        strides = tuple(stride for axis, stride in enumerate(box.strides) if axis not in gone)
        # Of no entries at all nothing is seen.
        bounds = box.bounds.min(tuple(axis + 1 for axis in gone), initial=np.inf)
        return replace(box, bounds=bounds, strides=strides)

    # Bounds of length one are the same for all entries: joining them joins nothing that differs.
    return map_boxes(box, reduce, mixes=any(box.bounds.shape[axis + 1] > 1 for axis in gone))


def merge_axis(box: Box, axis: int) -> Box:
    """Let every entry along an axis see what any of them sees."""
    if is_constant(box, axis):
        return box

    def merge(box: Box) -> Box:
        return with_axis(box, axis, box.bounds.min(axis + 1, keepdims=True, initial=np.inf), CONSTANT)

    return map_boxes(box, merge, mixes=box.bounds.shape[axis + 1] > 1)


def accumulate(box: Box, axis: int, *, backwards: bool) -> Box:
    """Let every entry along an axis see what those before it see, and itself."""
    if is_constant(box, axis):
        return box
    # One end of the box stays while the other moves on. That is no stride, so only what is seen inside counts.
    box = clip(box)
    order = slice(None, None, -1 if backwards else 1)
    index = (slice(None),) * (axis + 1) + (order,)
    stride = CONSTANT if box.strides[axis] == CONSTANT else None
    # The minimum so far is the box around all so far. Backwards: reversed, accumulated, reversed again.
    return with_axis(box, axis, np.minimum.accumulate(box.bounds[index], axis + 1)[index], stride)


def transpose(box: Box, order: Sequence[int]) -> Box:
    """Put the axes in another order."""

    def permute(box: Box) -> Box:
        bounds = box.bounds.transpose(0, *[axis + 1 for axis in order])
        return replace(box, bounds=bounds, strides=tuple(box.strides[axis] for axis in order))

    return map_boxes(box, permute)


def broadcast(box: Box, rank: int, places: Sequence[int], lengths: Sequence[int], old: Sequence[int]) -> Box:
    """Put the axes at new places among others, and stretch those of length one, as ``lax.broadcast_in_dim`` does.

    Args:
        box: boxes of the array.
        rank: of the result.
        places: for each axis of the array, which axis of the result it is.
        lengths: shape of the result.
        old: shape of the array.
    """

    def spread(box: Box) -> Box:
        # New axes, and those that are stretched from length one, repeat one entry.
        strides: list[Stride] = [CONSTANT] * rank
        shape = [1] * rank
        for axis, place in enumerate(places):
            if old[axis] == lengths[place]:
                strides[place] = box.strides[axis]
            shape[place] = box.bounds.shape[axis + 1]
        # (2, axes of the array) -> (2, axes in the order of their places) -> (2, axes of the result, ones in between).
        order = sorted(range(len(places)), key=places.__getitem__)
        bounds = box.bounds.transpose(0, *[axis + 1 for axis in order]).reshape(2, *shape)
        return replace(box, bounds=bounds, strides=tuple(strides))

    return map_boxes(box, spread)


def restrict(box: Box, seeing: np.ndarray) -> Box:
    """Keep the boxes of the entries for which ``seeing`` is true; the others see nothing."""
    # A table that is the same all along an axis needs one entry there, and the boxes go on along it as before.
    uneven = []
    for axis in range(seeing.ndim):
        first = seeing.take([0], axis)
        if (seeing == first).all():
            seeing = first
        else:
            uneven.append(axis)
    if seeing.size == 1 and seeing.all():
        return box

    def mask(box: Box) -> Box:
        strides = tuple(None if axis in uneven else stride for axis, stride in enumerate(box.strides))
        return replace(box, bounds=np.where(seeing, box.bounds, np.inf), strides=strides)

    return map_boxes(box, mask)


def mix_channels(box: Box, axis: int, groups: int, count: int) -> Box:
    """Let each of ``count`` new channels see the channels of its group.

    ``(..., length, ...) -> (..., groups, length // groups, ...) -> (..., groups, ...) -> (..., count, ...)``
    """
    if groups == 1 or is_constant(box, axis):
        return merge_axis(box, axis)

    def mix(box: Box) -> Box:
        length = box.bounds.shape[axis + 1]
        if length == 1:
            return box
        before, after = box.bounds.shape[: axis + 1], box.bounds.shape[axis + 2 :]
        # Four channels in two groups become six:
        #
        #     channels   a b | c d  ->  ab ab ab | cd cd cd
        bounds = box.bounds.reshape(*before, groups, length // groups, *after).min(axis + 2)
        return with_axis(box, axis, np.repeat(bounds, count // groups, axis + 1), None)

    return map_boxes(box, mix, mixes=True)


# Along all axes of the image


def unite(values: Sequence[Value]) -> Any:
    """Return what a value sees that may see all of these; a parameter, if none sees the image."""
    active = [value for value in values if isinstance(value, tuple)]
    if not active:
        return PARAMETER
    # `active` has one entry for each value, each with a box for each axis of the image; `zip` groups by axis.
    return tuple(union(boxes) for boxes in zip(*active, strict=True)) if len(active) > 1 else active[0]


def stretch(boxes: Boxes, shape: Sequence[int]) -> Boxes:
    """Let every entry of an array of this shape see all that any entry of another one sees."""
    return tuple(broadcast(reduce_axes(box, range(len(box.strides))), len(shape), (), shape, ()) for box in boxes)


def as_inexact(value: Value) -> Any:
    """Return what a value sees, marked as perhaps too large."""
    return tuple(map(mark_inexact, value)) if isinstance(value, tuple) else value


def along_all_axes(rule: Callable[[list[Value]], list[Any] | None], operands: list[Value]) -> list[Any] | None:
    """Apply a rule, and mark as inexact what it makes too large where an entry sees nothing along one axis alone.

    Such an entry sees nothing at all, but its other boxes count where entries are mixed. Of two rows, the first a hole:

        along the rows       -    3         mixed     3
        along the columns    5    2         mixed   2 to 5, and 2 is seen
    """
    outputs, whole = rule(operands), [_without_halves(operand) for operand in operands]
    if outputs is None or all(one is two for one, two in zip(whole, operands)):
        return outputs
    return [_compare(*pair) for pair in zip(outputs, rule(whole) or outputs, strict=True)]


def _without_halves(value: Value) -> Any:
    """Return boxes that are empty along all axes where they are along one; the same object where they are already."""
    if not isinstance(value, tuple) or all(np.isfinite(box.bounds[0]).all() for box in value):
        return value
    seeing = np.logical_and.reduce(np.broadcast_arrays(*[np.isfinite(box.bounds[0]) for box in value]))
    if all((np.isfinite(box.bounds[0]) == seeing).all() for box in value):
        return value
    return tuple(restrict(box, seeing) for box in value)


def _compare(boxes: Value, smaller: Value) -> Any:
    """Mark the boxes that are smaller elsewhere, for an entry that sees anything."""
    if not isinstance(boxes, tuple) or not isinstance(smaller, tuple):
        return boxes
    inner = [clip(box).bounds for box in smaller]
    seeing = np.logical_and.reduce(np.broadcast_arrays(*[np.isfinite(bounds[0]) for bounds in inner]))
    return tuple(
        mark_inexact(box) if ((clip(box).bounds != bounds) & seeing).any() else box
        for box, bounds in zip(boxes, inner, strict=True)
    )


def along_each_axis(rule: Callable[[Step, Box], Box]) -> Callable[[Step, list[Value]], Boxes | None]:
    """Return the rule for the first operand alone that treats one axis of the image at a time."""

    def apply(step: Step, operands: list[Any]) -> Boxes | None:
        first = operands[0]
        return tuple(rule(step, box) for box in first) if isinstance(first, tuple) else None

    return apply
