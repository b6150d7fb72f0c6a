"""The steepest slope of an activation, bounded from above by interval arithmetic.

Whatever is done to the entries of a value one by one is a function of one number, built up here operation by operation
as a network is followed. Its slope is bounded cell by cell over the numbers up to ``2^100`` in size; cells that may
hold a larger slope than was found are halved, until the bound is within 1e-4 of the slope itself. So the constant of an
activation is certified, whether it has a name (ReLU 1, GELU 1.1290, SiLU 1.0999, Mish 1.0886) or was written by hand.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from stabjax.lipschitz._network._interval_arithmetic import RULES, Over, constant, identity, integer_pow

_REACH = 100
_STEEP = 1e5
_TOLERANCE = 1e-4
_CELLS = 2**16

Line = tuple[str, tuple[int, ...], int | None, tuple[float, float] | None]
Lines = tuple[Line, ...]


@dataclass(frozen=True, eq=False)
class Curve:
    """A function of one number, by its last operation.

    Attributes:
        name: primitive; ``""`` for the number itself or a constant.
        operands: what it is applied to.
        exponent: of ``integer_pow``.
        constant: ends between which a constant lies.
    """

    name: str = ""
    operands: tuple["Curve", ...] = ()
    exponent: int | None = None
    constant: tuple[float, float] | None = None

    def lines(self) -> Lines:
        """The function as a program: operation, lines of its operands, exponent, constant; equal for equal ones."""
        places: dict[int, int] = {}
        lines: list[Line] = []

        def write(curve: Curve) -> int:
            if id(curve) not in places:
                operands = tuple(map(write, curve.operands))
                lines.append((curve.name, operands, curve.exponent, curve.constant))
                places[id(curve)] = len(lines) - 1
            return places[id(curve)]

        write(self)
        return tuple(lines)

    @property
    def names(self) -> tuple[str, ...]:
        """Primitives that it is made of, in order."""
        return tuple(dict.fromkeys(name for name, *_ in self.lines() if name))


NUMBER = Curve()
"""The number itself."""


def steepest(curve: Curve) -> float:
    """At least the Lipschitz constant of the function, to 1e-4 in most cases; infinite if it is steeper than 1e5.

    Where two cases of a choice meet, the place is narrowed down to 2^-40 of itself. There the function must be the same
    from both sides, to 1e-6, or it jumps.
    """
    return 1.0 if curve is NUMBER else _steepest(curve.lines())


@lru_cache(maxsize=1024)
def _steepest(lines: Lines) -> float:
    near = np.linspace(0, 8, 129)
    edges = np.concatenate([near, 2.0 ** np.arange(4, _REACH + 1)])
    edges = np.concatenate([-edges[:0:-1], edges])
    low, high = edges[:-1], edges[1:]
    found = bound = 0.0
    looked = 0
    while low.size:
        over, middle = _over(lines, low, high), _over(lines, *[(low + high) / 2] * 2)
        above = np.maximum(np.abs(over.slope_low), np.abs(over.slope_high))
        found = max(found, float(np.maximum(middle.slope_low, -middle.slope_high).max()))
        looked += low.size
        if looked > _CELLS and not over.torn.any():
            return max(bound, float(above.max()))
        if found > _STEEP or looked > 2 * _CELLS:
            return np.inf
        waiting = over.torn | (above > found * (1 + _TOLERANCE))
        bound = max(bound, float(above[~waiting].max(initial=0)))
        far = np.maximum(np.abs(low), np.abs(high))
        narrow = waiting & ((high - low <= 2.0**-40 * far) | (far <= 2.0**-40))
        apart = over.high - over.low > 1e-6 * np.maximum(1, np.maximum(np.abs(over.low), np.abs(over.high)))
        if (narrow & ((over.torn & apart) | ~np.isfinite(above))).any():
            return np.inf
        low, high = low[waiting & ~narrow], high[waiting & ~narrow]
        half = (low + high) / 2
        low, high = np.concatenate([low, half]), np.concatenate([half, high])
    return bound


def _over(lines: Lines, low: np.ndarray, high: np.ndarray) -> Over:
    """The function over cells."""
    made: list[Over] = []
    with np.errstate(all="ignore"):
        for name, operands, exponent, ends in lines:
            taken = [made[k] for k in operands]
            if exponent is not None:
                made.append(integer_pow(taken[0], exponent))
            elif name:
                made.append(RULES[name](*taken))
            else:
                made.append(identity(low, high) if ends is None else constant(*ends, low))
    return made[-1]
