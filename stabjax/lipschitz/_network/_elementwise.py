"""Elementwise functions: their steepest slope, bounded from above by interval arithmetic.

Whatever is done to the entries of a value one by one is a function of one number, built up here operation by operation
as a network is followed. Its slope is bounded cell by cell over the numbers up to ``2^128`` in size; cells that may
hold a larger slope than the steepest attained are halved, until the bound is within 1e-4 of the slope itself. So the
constant of an activation is certified, whether it has a name (ReLU 1, GELU 1.1290, SiLU 1.0999, Mish 1.0886) or was
written by hand.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stabjax.lipschitz._network._enclosures import (
    RULES,
    Enclosure,
    constant,
    identity,
    integer_pow,
    widen_unknown,
)
from stabjax.lipschitz._network._intervals import ULPS

_MAX_EXPONENT = 128
"""Numbers up to two to this power are looked at: all numbers of single precision."""

_MAX_SLOPE = 1e5
"""A function steeper than this counts as unbounded."""

_TOLERANCE = 1e-4
_MAX_CELLS = 2**16

_NARROW = 2.0**-40
"""Cells are halved down to this part of the numbers in them, and around zero down to `_NEAREST_ZERO`."""

_NEAREST_ZERO = 2.0**-149
"""The smallest number of single precision."""

Instruction = tuple[str, tuple[int, ...], int | None, tuple[float, float] | None]
Instructions = tuple[Instruction, ...]


@dataclass(frozen=True, eq=False)
class ScalarFunction:
    """A function of one number, by its last operation.

    Attributes:
        name: primitive; ``""`` for the number itself or a constant.
        operands: what it is applied to.
        exponent: of ``integer_pow``.
        constant: ends between which a constant lies.
    """

    name: str = ""
    operands: tuple["ScalarFunction", ...] = ()
    exponent: int | None = None
    constant: tuple[float, float] | None = None

    def instructions(self) -> Instructions:
        """Return the function as a straight-line program, equal for equal functions.

        Each instruction is an operation, the positions of its operands, its exponent, its constant.
        """
        positions: dict[int, int] = {}
        instructions: list[Instruction] = []

        def write(function: ScalarFunction) -> int:
            # Shared parts stay shared, one instruction each: the rules see in `mul` that both operands are one value,
            # hence a square, and equal functions built separately give equal programs.
            if id(function) not in positions:
                operands = tuple(map(write, function.operands))
                instructions.append((function.name, operands, function.exponent, function.constant))
                positions[id(function)] = len(instructions) - 1
            return positions[id(function)]

        write(self)
        return tuple(instructions)

    @property
    def names(self) -> tuple[str, ...]:
        """Primitives that it is made of, in order."""
        return tuple(dict.fromkeys(name for name, *_ in self.instructions() if name))


IDENTITY = ScalarFunction()
"""The number itself."""


def lipschitz_constant(function: ScalarFunction) -> float:
    """Bound the Lipschitz constant from above, to 1e-4 in most cases; infinite if a slope above 1e5 is found.

    Where two cases of a choice meet, the place ``x`` is narrowed down to 2^-40 of itself. There the function must be
    the same from both sides as far as can be told in double precision: to ``2^-36 L |x|``, with ``L`` the bound, and to
    ``2^-46`` of the value. If not, it jumps, and no bound holds, however small the step: of two cases written with
    constants that were rounded to single precision, so that they miss each other by as much, there is none either.
    """
    return 1.0 if function is IDENTITY else _lipschitz_constant(function.instructions())


@lru_cache(maxsize=1024)
def _lipschitz_constant(instructions: Instructions) -> float:
    """Bound the steepest slope by branch and bound over cells of the number line."""
    # Cells: 1/16 wide up to 8, then from each power of two to the next; mirrored.
    near = np.linspace(0, 8, 129)
    edges = np.concatenate([near, 2.0 ** np.arange(4, _MAX_EXPONENT + 1)])
    # -2^128 ... -16 -8 ... -1/16 0 1/16 ... 8 16 ... 2^128: zero is an edge, where most activations have their kink.
    edges = np.concatenate([-edges[:0:-1], edges])
    low, high = edges[:-1], edges[1:]
    attained = bound = 0.0
    cells = 0
    while low.size:
        # `attained` is a slope that exists, at the middle of a cell; `above` is one that no slope in a cell exceeds;
        # `bound` is the largest of these over the cells that are done with.
        over, middle = _enclose(instructions, low, high), _enclose(instructions, *[(low + high) / 2] * 2)
        above = np.maximum(np.abs(over.slope_low), np.abs(over.slope_high))
        attained = max(attained, float(np.maximum(middle.slope_low, -middle.slope_high).max()))
        cells += low.size
        # The budget is spent: the enclosures at hand are bounds too, only wider. With a jump still possible they are
        # not, and the search goes on for as many cells again.
        if cells > _MAX_CELLS and not over.may_jump.any():
            return max(bound, float(above.max()))
        if attained > _MAX_SLOPE or cells > 2 * _MAX_CELLS:
            return np.inf
        # A cell is done with if nothing in it can be much steeper than what is attained. Else it is halved, unless it
        # is so narrow that it is only asked for a jump or an infinite slope.
        open_cells = over.may_jump | (above > attained * (1 + _TOLERANCE))
        # Narrow is meant relative to the size of the numbers, and absolutely around zero.
        far = np.maximum(np.abs(low), np.abs(high))
        narrow = open_cells & ((high - low <= _NARROW * far) | (far <= _NEAREST_ZERO))
        if (narrow & (_jumps(over, above, high - low) | ~np.isfinite(above))).any():
            return np.inf
        # Every cell that leaves the search counts.
        bound = max(bound, float(above[~open_cells | narrow].max(initial=0)))
        low, high = low[open_cells & ~narrow], high[open_cells & ~narrow]
        half = (low + high) / 2
        low, high = np.concatenate([low, half]), np.concatenate([half, high])
    return bound


def _jumps(over: Enclosure, above: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Tell in which narrow cells, of this width, a function jumps whose slope is not above ``above`` elsewhere."""
    # The parts of a function may change more than the function, hence the factor. An infinite value meets no other.
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(over.low), np.abs(over.high))
        meets = (size < np.inf) & (over.high - over.low <= 16 * (above * width + ULPS * size))
    return over.may_jump & ~meets


def _enclose(instructions: Instructions, low: np.ndarray, high: np.ndarray) -> Enclosure:
    """Enclose value and slope of the function over each cell."""
    values: list[Enclosure] = []
    with np.errstate(all="ignore"):
        for name, operands, exponent, ends in instructions:
            # Operands come before the instructions that use them, so one pass is enough.
            arguments = [values[k] for k in operands]
            if exponent is not None:
                result = integer_pow(arguments[0], exponent)
            elif name:
                result = RULES[name](*arguments)
            else:
                result = identity(low, high) if ends is None else constant(*ends, low)
            # A comparison with NaN is false, so it would leave the search as if it were a small slope.
            values.append(widen_unknown(result))
    return values[-1]
