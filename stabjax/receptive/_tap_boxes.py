"""Which pixels every value of a program can depend on: the program, followed with boxes in place of numbers."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from stabjax._jaxpr._constants import Constant
from stabjax._jaxpr._flow import Plan
from stabjax._jaxpr._parameters import PARAMETER, Given, Masked, Parameter
from stabjax._jaxpr._program import CUSTOM, JIT, REMAT, body, opened, scan_split
from stabjax._jaxpr._reading import Reading, Site
from stabjax._jaxpr._walk import Walk, row
from stabjax.receptive import _box, _box_reshape
from stabjax.receptive._box import Span
from stabjax.receptive._box_rules import anything, follow
from stabjax.receptive._box_selection import stack
from stabjax.receptive._box_values import Seen, Value, inexact, joined, stretched
from stabjax.receptive._box_windows import window


def extents(reading: Reading, parameters: Sequence[Any]) -> dict[str, Seen]:
    """The boxes of every tap, batch and channels joined: what is left are the positions of its units.

    ``parameters``: those of the program, or their shapes; they count only where they are masks.
    """
    program = reading.program
    image = program.jaxpr.invars[-1].aval
    sides = image.shape[1:-1]
    walk = _Walk(sides)
    inputs: list[Value] = [Given(leaf) for leaf in parameters]
    outputs = walk.run(reading.plan, [*inputs, tuple(_box.of_image(image.shape, 1 + k) for k in range(len(sides)))])
    found = walk.found
    # The outputs' operations count on from those of the taps.
    for k, value in enumerate(outputs):
        found[reading.operations + k, ()] = value
    return {site.name: _at_site(site, found[site.operation, site.iteration], sides) for site in reading.sites}


def _at_site(site: Site, value: Value, sides: Sequence[int]) -> Seen:
    if not isinstance(value, tuple):
        return tuple(_box.nothing(len(site.shape) - 1, side) for side in sides)
    result = []
    for span in value:
        if site.split != site.in_order or site.batch_axis != 0:
            shape = _split_back(site)
            span = _box_reshape.reshape(span, shape, site.split)
            order = [site.batch_axis, *[k for k in range(len(site.split)) if k != site.batch_axis]]
            span = _box_reshape.reshape(_box.permute(span, order), [site.split[k] for k in order], site.in_order)
        joined = [0] if site.channels_from in (None, 0) else [0, site.channels_from]
        result.append(_box.told(_box.reduce(span, joined)))
    return tuple(result)


def _split_back(site: Site) -> tuple[int, ...]:
    """The shape in the program, in which the batch may be merged with what stands around it."""
    if site.batch_axis == 0:
        return site.split
    axis = site.batch_axis
    return (*site.split[: axis - 1], prod(site.split[axis - 1 : axis + 2]), *site.split[axis + 2 :])


class _Walk(Walk):
    """Follows boxes."""

    def __init__(self, sides: Sequence[int]) -> None:
        super().__init__()
        self.sides = sides

    def step(self, equation: Any, operands: list[Value], child: Plan | None, iteration: tuple[int, ...]) -> list[Value]:
        name = equation.primitive.name
        if name in JIT or name in REMAT or name in CUSTOM:
            return self.run(child or Plan(*opened(body(equation))), operands, iteration)
        if name == "cond":
            return self._cond(equation, operands)
        if name == "scan":
            return self._scan(equation, operands, child, iteration)
        outputs = follow(equation, operands)
        return [anything(var, self.sides) for var in equation.outvars] if outputs is None else outputs

    def _cond(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Any of the branches may be taken."""
        outcomes = self.outcomes(equation, operands)
        if len(outcomes) == 1:
            return outcomes[0]
        results: list[Value] = []
        for var, alternatives in zip(equation.outvars, zip(*outcomes)):
            numbers = all(isinstance(value, Constant) and value.value is not None for value in alternatives)
            same = all(_alike(alternatives[0], value) for value in alternatives[1:])
            chooser: Any = operands[0]
            chosen = isinstance(chooser, tuple) and not (numbers and same)
            seen = joined([*alternatives, *([stretched(chooser, var)] if chosen else [])])
            results.append(seen if same or numbers else inexact(seen))
        return results

    def _scan(self, equation: Any, operands: list[Value], child: Plan | None, outer: tuple[int, ...]) -> list[Value]:
        """Iteration by iteration; one that begins as the last did ends as it did."""
        params = equation.params
        fixed, carried = scan_split(params)
        plan = child or Plan(*opened(params["jaxpr"]))
        consts, carry, stacked = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]
        length = params["length"]
        order = range(length - 1, -1, -1) if params["reverse"] else range(length)
        made: dict[int, list[Value]] = {}
        before: list[Value] | None = None
        outputs: list[Value] = []
        for k in order:
            inputs = [*consts, *carry, *[_row(value, k) for value in stacked]]
            if before is not None and _all_alike(before, inputs) and child is None:
                made[k] = outputs[carried:]
                continue
            before = inputs
            outputs = self.run(plan, inputs, (*outer, k))
            carry = outputs[:carried]
            made[k] = outputs[carried:]
        rows = []
        for j, var in enumerate(equation.outvars[carried:]):
            parts = [made[k][j] for k in range(length)]
            seeing = any(isinstance(part, tuple) for part in parts)
            rows.append(stack(parts, 0, len(var.aval.shape)) if seeing else PARAMETER)
        return [*carry, *rows]


def _alike(a: Value, b: Value) -> bool:
    """Whether two values see the same, and are the same where they see nothing."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(map(_same_boxes, a, b))
    if isinstance(a, Constant) and isinstance(b, Constant):
        return a is b or (a.value is not None and b.value is not None and np.array_equal(a.value, b.value))
    plain = isinstance(a, Parameter) and isinstance(b, Parameter) and not isinstance(a, Masked)
    return a is b or (plain and not isinstance(b, Masked))


def _same_boxes(a: Span | None, b: Span | None) -> bool:
    if a is None or b is None or a is b:
        return a is b
    alike = a.steps == b.steps and a.exact == b.exact and a.ends.shape == b.ends.shape
    return alike and bool((a.ends == b.ends).all()) and _same_boxes(a.within, b.within)


def _all_alike(first: Sequence[Value], second: Sequence[Value]) -> bool:
    return all(map(_alike, first, second))


def _row(value: Value, k: int) -> Value:
    """One iteration's part of a stacked value."""
    if isinstance(value, tuple):
        return tuple(_box.reduce(window(span, 0, 1, low=-k), [0]) for span in value)
    return row(value, k)
