"""What a unit can see: the box of pixels it depends on, read off the program of the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stabjax import features
from stabjax._images import Spatial, as_batch
from stabjax.receptive._box import Box, clip, is_constant
from stabjax.receptive._box_windows import box_at
from stabjax.receptive._tap_boxes import boxes_of_taps
from stabjax.receptive._unit import integers


@dataclass(frozen=True)
class Extent:
    """The boxes of pixels that the units of one tap see, one entry for each axis of the image.

    Attributes:
        size: sides of the box of one unit; the largest where they differ.
        stride: pixels between the boxes of neighboring units: 0 where every unit sees the same, a fraction after
            upsampling, negative where the map is mirrored, NaN where the boxes lie on no regular grid; ``size`` and
            ``start`` are then those of what is seen inside the image.
        start: first pixel of the box of the first unit; negative where it begins in the padding.
        exact: whether these are the smallest boxes that hold all a unit depends on, for parameters in general position,
            padding at its place outside of the image included. Otherwise they hold all of that, and perhaps more.
        regular: whether unit ``k`` of an axis begins at ``start + stride * k`` and all boxes have this size. Not so
            after upsampling, where boxes repeat with a period, nor where positions were merged into one axis.
        boxes: the boxes themselves where they are not regular, as `box` reads them; one for each axis of the image.
    """

    size: tuple[int, ...]
    stride: tuple[int | float, ...]
    start: tuple[int, ...]
    exact: bool
    regular: bool
    boxes: tuple[Box, ...] = field(default=(), repr=False, compare=False)

    def box(self, unit: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the first pixel and the one behind the last, on each axis, of the unit at this position.

        Not clipped to the image, but along axes whose ``stride`` is NaN. A unit that sees nothing has an empty box,
        ``(0, 0)`` on each axis.

        Args:
            unit: one entry for each axis of the image; any where the stride is 0. They count on beyond the map: -1 is
                the unit before the first, where a padding would stand, not the last as in `effective`. Where axes of
                the image were merged or split, as in tokens, a position on the axes of the tap, as in `effective`.

        Raises:
            ValueError: if ``unit`` has not that many entries, or lies beyond a map whose boxes go on no further.
        """
        place, ndim = integers(unit), len(self.size)
        if self.regular or not self.boxes:
            if place is None or len(place) != ndim or not self.regular:
                raise ValueError(
                    f"expected a position on {ndim} axes of regular boxes, got {unit}; these are "
                    f"{'regular' if self.regular else 'irregular, and are not given one by one'}"
                )
            first = [start + int(stride) * k for start, stride, k in zip(self.start, self.stride, place)]
            return tuple((low, low + size) for low, size in zip(first, self.size))
        moving, rank = _moving(self.boxes), len(self.boxes[0].strides)
        in_place = _is_in_place(moving)
        count = ndim if in_place else rank
        if place is None or len(place) != count:
            kind = "of the image" if in_place else "of the tap, on which those of the image do not lie one by one"
            raise ValueError(f"expected a position on {count} axes {kind}, got {unit}")
        found = []
        for k, (box, axes) in enumerate(zip(self.boxes, moving)):
            # Along axes over which the boxes do not change, any position does.
            places = [place[k] if in_place else place[axis] for axis in range(rank)]
            found.append(box_at(box, [p if axis in axes else 0 for axis, p in enumerate(places)]))
        if None in found:
            raise ValueError(f"expected a unit of the map, got {unit}; its boxes are irregular and end with it")
        if not np.isfinite(found).all():
            return ((0, 0),) * ndim
        return tuple((int(low), int(high) + 1) for low, high in found)


def extent(f: Any, x: Any, *, spatial: Spatial = None) -> dict[str, Extent]:
    """Return size, stride and start of the receptive fields of every tap of a network; nothing is computed.

    The traced program is followed with boxes of pixels in place of numbers: a window joins the boxes that it reads, a
    sum those of its terms, a reshape puts them in a new order. For a chain of layers this is the recursion
    ``r_in = stride * r_out + kernel - stride`` of Araujo, Norris, Sim (Distill 2019), but it needs no chain: branches
    with several paths get the union of their boxes.

    * A box is not clipped to the image. What stands in a padding keeps its place outside of the image, be it zeros,
      circular (then it is the pixel a whole side further on), mirrored or the border's own.
    * A box is the smallest that encloses what is seen; dilation may leave holes inside, and where a hole lies at the
      border of the image, the clipped box holds pixels that are not seen.
    * Behind zeros around a part of the image (a crop, or a map whose windows left pixels over) the boxes of the padded
      units would reach back into the image; ``exact`` is then False. Where most boxes are too large, and larger than
      the image, ``size`` is the largest of what is seen inside it.
    * Where boxes lose their position, in flattened and dense layers, global pooling and attention, they are what is
      seen inside the image, and where a map is joined with such a value (a gate, a mean over space that is subtracted)
      too: a network with group normalization sees the whole image from its first norm on. There a unit that circular
      padding shows both borders sees the whole side.
    * Transposed convolutions and enlargements are exact; their boxes repeat with a period, ``size`` is the largest of
      it and ``stride`` the mean.
    * The channels of a tap see what any of them sees. Where positions were merged into one axis, as the tokens of a
      transformer, ``stride`` is that between the rows and columns of the merged grid.
    * ``exact`` is False behind operations that the program does not determine: ``while`` loops, unequal branches of
      ``cond``, indices computed from the image, masks before a softmax, unknown primitives. Their boxes are too large
      rather than too small. Masked kernels (a product with zeros and ones, or a choice between weights and zero) see
      what the mask leaves; they are exact if it leaves the same rows and columns to all channels.

    Args:
        f: a network from `networks.wrap`, or a plain function of a batch.
        x: a batch, ``(n, *spatial, channels)``, its `jax.ShapeDtypeStruct`, or its shape alone.
        spatial: number of spatial axes of the images, or their sides, where the shape leaves open which axis is which:
            ``(n, 28, 28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels.

    Returns:
        one extent for each tap, by name as in `features.taps`; sizes are 0 for a tap that does not see the image.

    Raises:
        TypeError: if JAX cannot trace the network, or ``x`` is no array and no shape.
        ValueError: if ``x`` is no batch, or leaves open which axis is which.

    Example:
        >>> receptive.extent(network, jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))["block4_unit3/add_0"].size
        (483, 483)
    """
    x = as_batch(x, spatial=spatial, vectors=True)
    result = {}
    traced = features.trace(f, x)
    for name, boxes in boxes_of_taps(traced.program, traced.arrays).items():
        moving = _moving(boxes)
        order = [axis for axes in moving for axis in axes]
        # Off any grid, a box behind a border says less than what is seen of it inside.
        boxes = [clip(box) if math.isnan(_along_axis(box, axes, order)[1]) else box for box, axes in zip(boxes, moving)]
        sides = [_along_axis(box, axes, order) for box, axes in zip(boxes, moving)]
        size, stride, start, even = zip(*sides) if sides else ((), (), (), ())
        # Only then start + stride k says all; otherwise the boxes are kept.
        regular = _is_in_place(moving) and all(even)
        exact = all(box.exact for box in boxes)
        result[name] = Extent(size, stride, start, exact, regular, () if regular else tuple(boxes))
    return result


def _moving(boxes: Sequence[Box]) -> list[list[int]]:
    """Return the axes of a tap along which the boxes change, for each axis of the image."""
    return [[axis for axis in range(len(box.strides)) if not is_constant(box, axis)] for box in boxes]


def _is_in_place(moving: Sequence[Sequence[int]]) -> bool:
    """Return whether every axis of the image is one of the tap, or none, in the same order."""
    order = [axis for axes in moving for axis in axes]
    return all(len(axes) <= 1 for axes in moving) and order == sorted(set(order))


def _along_axis(box: Box, moving: Sequence[int], all_moving: Sequence[int]) -> tuple[int, int | float, int, bool]:
    """Return size, stride and start along one axis of the image, and whether they tell every box.

    Args:
        box: of the tap.
        moving: axes of the tap along which the boxes change.
        all_moving: those of all axes of the image, one after the other.
    """
    # All entries of the tap in a row; axes along which the boxes are constant have length one here.
    low, high = box.bounds[0].ravel(), -box.bounds[1].ravel()
    seen = np.isfinite(low)
    if not seen.any():
        return 0, 0, 0, True
    sizes, starts = (high - low + 1)[seen], low[seen]
    size, start = int(sizes.max()), int(starts[0])
    equal = bool((sizes == size).all() and seen.all())
    # The plain case: this axis of the image is one axis of the tap, which belongs to no other axis of the image.
    stride = box.strides[moving[0]] if len(moving) == 1 else None
    if stride is not None and all_moving.count(moving[0]) == 1:
        period, shift = stride
        # With a period of several entries the starts inside of it decide, and there must be two of them at least.
        even = equal and len(set(np.diff(starts).tolist())) <= 1 and (period == 1 or len(starts) > 1)
        return size, shift // period if shift % period == 0 else shift / period, start, even
    # Without a stride, as where the map ends at its border: boxes inside it may still lie at even distances.
    gaps = np.unique(np.diff(starts))
    if len(moving) == 1 and all_moving.count(moving[0]) == 1 and len(gaps) == 1 and equal:
        return size, int(gaps[0]), start, True
    # Several axes of the image in one of the tap, or one in several: the grid is that of the distinct boxes.
    # Tokens of 4 x 4 patches of a 12 x 12 image, merged to one axis of 9, along the rows of the image:
    #
    #     starts    0 0 0 4 4 4 8 8 8     distinct 0 4 8, stride 4
    strides = np.unique(np.diff(np.unique(starts)))
    if not (sizes == size).all() or len(strides) > 1:
        return size, math.nan, start, False
    return size, int(strides[0]) if len(strides) else 0, start, equal and len(strides) == 0
