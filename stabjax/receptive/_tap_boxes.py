"""The boxes of every tap of a network: its program, interpreted with boxes of pixels in place of arrays."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from stabjax._jaxpr import Step, TapSite, TracedProgram, interpret
from stabjax.receptive._box import Box, box_of_image, empty, report
from stabjax.receptive._box_axes import Boxes, Value, along_all_axes, as_inexact, reduce_axes, stretch, transpose, unite
from stabjax.receptive._box_reshape import reshape
from stabjax.receptive._box_rules import follow, unknown_boxes
from stabjax.receptive._box_selection import follow_stack, row
from stabjax.receptive._constants import Constant
from stabjax.receptive._masks import GivenParameter, MaskDomain, MaskedParameter, Parameter


def boxes_of_taps(traced: TracedProgram, parameters: Sequence[Any]) -> dict[str, Boxes]:
    """Return the boxes of every tap, by name; batch and channels are joined, what is left are its units' positions.

    Args:
        traced: the network.
        parameters: those of the program, or their shapes; they count only where they are masks.
    """
    shape = traced.program.jaxpr.invars[-1].aval.shape
    sides = shape[1:-1]
    images = tuple(box_of_image(shape, 1 + k) for k in range(len(sides)))
    # Parameters in front, images last, as in the inputs of the program.
    values = interpret(traced, BoxDomain(sides), [*map(GivenParameter, parameters), images])
    return {site.name: _boxes_of_units(site, value, sides) for site, value in zip(traced.sites, values, strict=True)}


def _boxes_of_units(site: TapSite, value: Value, sides: Sequence[int]) -> Boxes:
    if not isinstance(value, tuple):
        return tuple(empty(len(site.shape) - 1, side) for side in sides)
    result = []
    for box in value:
        if site.split != site.in_order or site.batch_axis != 0:
            # As `TapSite.arranged` does to arrays. Four windows of each of 3 images, merged with the batch:
            #
            #     (12, 7, 7, c) -> (1, 3, 4, 7, 7, c) -> (3, 1, 4, 7, 7, c) -> (3, 4, 7, 7, c)
            box = reshape(box, _shape_in_program(site), site.split)
            order = [site.batch_axis, *[k for k in range(len(site.split)) if k != site.batch_axis]]
            box = reshape(transpose(box, order), [site.split[k] for k in order], site.in_order)
        result.append(box)
    # A unit is a position with all its channels; its box is the same for all images of the batch.
    joined = [0] if site.channels_from in (None, 0) else [0, site.channels_from]

    def join(values: list[Any]) -> list[Any]:
        return [tuple(reduce_axes(box, joined) for box in values[0])]

    units: Any = along_all_axes(join, [tuple(result)])
    return tuple(map(report, units[0]))


def _shape_in_program(site: TapSite) -> tuple[int, ...]:
    """Return the shape in the program, in which the batch may be merged with what stands before and behind it."""
    if site.batch_axis == 0:
        return site.split
    # split[axis - 1 : axis + 2] is (before, batch, after), one axis in the program.
    axis = site.batch_axis
    return (*site.split[: axis - 1], prod(site.split[axis - 1 : axis + 2]), *site.split[axis + 2 :])


class BoxDomain(MaskDomain):
    """Boxes of pixels; ``sides`` are those of the images."""

    def __init__(self, sides: Sequence[int]) -> None:
        self.sides = sides

    def apply(self, step: Step, operands: list[Value]) -> list[Value]:
        """Return what the outputs see; the whole image where there is no rule."""
        outputs = follow(step, operands)
        return [unknown_boxes(result.shape, self.sides) for result in step.results] if outputs is None else outputs

    def choose(self, step: Step, index: Value, alternatives: list[Value]) -> Value:
        """Return what any of the branches sees, and the choice between them, if they differ."""
        numbers = all(isinstance(value, Constant) and value.value is not None for value in alternatives)
        equal = all(_is_same(alternatives[0], value) for value in alternatives[1:])
        choice = []
        if isinstance(index, tuple) and not (numbers and equal):
            choice = [stretch(index, step.results[0].shape)]
        union = unite([*alternatives, *choice])
        return union if equal or numbers else as_inexact(union)

    def row(self, step: Step, value: Value, k: int) -> Value:
        """Return what row ``k`` sees."""
        return row(value, k) if isinstance(value, tuple) else super().row(step, value, k)

    def stack(self, step: Step, rows: list[Value]) -> Value:
        """Return what the rows see, one behind the other."""
        active = any(isinstance(value, tuple) for value in rows)
        return follow_stack(step, rows) if active else super().stack(step, rows)

    def is_same(self, one: Sequence[Value], two: Sequence[Value]) -> bool:
        """Return whether values see the same, and are the same where they see nothing."""
        return all(map(_is_same, one, two))


def _is_same(one: Value, two: Value) -> bool:
    if isinstance(one, tuple) and isinstance(two, tuple):
        return all(map(_has_same_boxes, one, two))
    if isinstance(one, Constant) and isinstance(two, Constant):
        if one is two or one.value is None or two.value is None:
            return one is two
        return np.array_equal(one.value, two.value)
    # Two masks may differ; parameters without one are any numbers, and alike.
    if isinstance(one, MaskedParameter) or isinstance(two, MaskedParameter):
        return one is two
    return one is two or (isinstance(one, Parameter) and isinstance(two, Parameter))


def _has_same_boxes(one: Box | None, two: Box | None) -> bool:
    if one is None or two is None or one is two:
        return one is two
    same = one.strides == two.strides and one.exact == two.exact and one.bounds.shape == two.bounds.shape
    return same and bool((one.bounds == two.bounds).all()) and _has_same_boxes(one.clipped, two.clipped)
