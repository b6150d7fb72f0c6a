"""Enclosures: where the value and the slope of a function lie over a cell of its argument, by interval arithmetic.

Value and slope go together, by the chain rule, as in forward-mode differentiation. A slope is one almost everywhere,
which is what a Lipschitz constant takes: where two functions meet in a maximum or a choice, that of either; whether
they meet at all is for `Enclosure.may_jump` to say.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from stabjax.lipschitz._network import _intervals
from stabjax.lipschitz._network._intervals import ULPS, Interval, round_outward, underflow


class Enclosure(NamedTuple):
    """Intervals that hold the value and the slope of a function over each cell; truth is zero or one.

    Attributes:
        low: lower end of the value, ``(cells,)``, as the rest.
        high: its upper end.
        slope_low: lower end of the slope.
        slope_high: its upper end.
        may_jump: whether the value may jump within the cell.
    """

    low: np.ndarray
    high: np.ndarray
    slope_low: np.ndarray
    slope_high: np.ndarray
    may_jump: np.ndarray

    @property
    def value(self) -> Interval:
        """Ends of the value."""
        return self.low, self.high

    @property
    def slope(self) -> Interval:
        """Ends of the slope."""
        return self.slope_low, self.slope_high


Rule = Callable[..., Enclosure]


def constant(low: float, high: float, cells: np.ndarray) -> Enclosure:
    """Enclose a number between these ends, the same over all cells."""
    zero = np.zeros_like(cells)
    return Enclosure(zero + low, zero + high, zero, zero, zero > 0)


def identity(low: np.ndarray, high: np.ndarray) -> Enclosure:
    """Enclose the argument itself: slope one."""
    return Enclosure(low, high, np.ones_like(low), np.ones_like(low), np.zeros(low.shape, bool))


def widen_unknown(a: Enclosure) -> Enclosure:
    """Take what is not a number for all numbers; an enclosure without such ends stays the same object."""
    if not any(np.isnan(end).any() for end in (*a.value, *a.slope)):
        return a
    return Enclosure(*_intervals.repair(*a.value), *_intervals.repair(*a.slope), a.may_jump)


def _join(a: Enclosure, b: Enclosure, value: Interval, may_jump: np.ndarray) -> Enclosure:
    """Enclose the slope of one function or the other, with this value."""
    # Almost everywhere the slope is that of one of the two, so the smallest interval around both holds it.
    slope = np.minimum(a.slope_low, b.slope_low), np.maximum(a.slope_high, b.slope_high)
    return Enclosure(*value, *slope, may_jump)


def _choose(which: np.ndarray, a: Enclosure, b: Enclosure) -> Enclosure:
    """Take ``a`` in the cells where ``which``, else ``b``."""
    return Enclosure(*(np.where(which, x, y) for x, y in zip(a, b)))


def _add(a: Enclosure, b: Enclosure) -> Enclosure:
    """Add two functions."""
    return Enclosure(*_intervals.add(a.value, b.value), *_intervals.add(a.slope, b.slope), a.may_jump | b.may_jump)


def _neg(a: Enclosure) -> Enclosure:
    """Negate a function."""
    return Enclosure(*_intervals.negate(a.value), *_intervals.negate(a.slope), a.may_jump)


def _mul(a: Enclosure, b: Enclosure) -> Enclosure:
    """Multiply two functions."""
    # (a b)' = a' b + a b'. The square of one function is known to be positive, a product of two is not.
    if a is b:
        return integer_pow(a, 2)
    slope = _intervals.add(_intervals.multiply(a.slope, b.value), _intervals.multiply(a.value, b.slope))
    return Enclosure(*_intervals.multiply(a.value, b.value), *slope, a.may_jump | b.may_jump)


def _div(a: Enclosure, b: Enclosure) -> Enclosure:
    """Divide: ``(a / b)' = (a' - (a / b) b') / b``, with ``a / b`` used twice."""
    inverse = _intervals.reciprocal(b.value)
    quotient = _intervals.multiply(a.value, inverse)
    # b occurs twice here and three times in (a' b - a b') / b^2: the interval is narrower as a rule.
    slope = _intervals.multiply(
        _intervals.add(a.slope, _intervals.negate(_intervals.multiply(quotient, b.slope))), inverse
    )
    return Enclosure(*quotient, *slope, a.may_jump | b.may_jump)


def integer_pow(a: Enclosure, n: int) -> Enclosure:
    """Raise to an integer power: ``(a^n)' = n a^(n - 1) a'``."""
    times = np.array(float(n))
    factor = _intervals.multiply((times, times), _intervals.power(a.value, n - 1))
    return Enclosure(*_intervals.power(a.value, n), *_intervals.multiply(factor, a.slope), a.may_jump)


def _pow(a: Enclosure, b: Enclosure) -> Enclosure:
    """Raise to a constant power: an integer one, or any of a positive base; else nothing is known."""
    # One number as exponent, the same in all cells. Powers that are no integers are known for a positive base alone.
    n = float(b.low.flat[0])
    everything = np.full_like(a.low, -np.inf), np.full_like(a.low, np.inf)
    unknown = Enclosure(*everything, *everything, a.may_jump | b.may_jump)
    if (b.low != n).any() or (b.high != n).any():
        return unknown
    # Infinity is no integer: the power jumps at one, and its slope, infinity times zero, is not known.
    if n.is_integer():
        return integer_pow(a, int(n))
    return _choose(a.low > 0, _monotone(lambda u: u**n, lambda u: n * u ** (n - 1), rising=n > 0)(a), unknown)


def _max(a: Enclosure, b: Enclosure) -> Enclosure:
    """Take the larger; where the intervals overlap, the slope is that of either."""
    # Intervals that do not overlap: the maximum is one function over the whole cell, and the other does not count.
    value = np.maximum(a.low, b.low), np.maximum(a.high, b.high)
    return _choose(a.low >= b.high, a, _choose(b.low >= a.high, b, _join(a, b, value, a.may_jump | b.may_jump)))


def _min(a: Enclosure, b: Enclosure) -> Enclosure:
    """Take the smaller, as ``-max(-a, -b)``."""
    return _neg(_max(_neg(a), _neg(b)))


def _select(which: Enclosure, no: Enclosure, yes: Enclosure) -> Enclosure:
    """Choose between two functions; where the choice is open, the value may jump from one to the other."""
    value = np.minimum(no.low, yes.low), np.maximum(no.high, yes.high)
    either = _join(no, yes, value, np.ones(no.low.shape, bool))
    # A truth value is 0 or 1: a lower end above 0 is true for certain, an upper end below 1 false for certain.
    return _choose(which.low > 0, yes, _choose(which.high < 1, no, either))


def _indicator(yes: np.ndarray, no: np.ndarray, *, low: float = 0.0) -> Enclosure:
    """Return a truth value: one where surely yes, ``low`` where surely no, in between a jump."""
    zero = np.zeros(yes.shape)
    # The slope of a step is zero almost everywhere; only `may_jump` says that there is one.
    return Enclosure(np.where(yes, 1.0, low), np.where(no, low, 1.0), zero, zero, ~(yes | no))


def _is_known(a: Enclosure) -> np.ndarray:
    """Tell where a value is a number for certain: an undefined one, as a logarithm below zero, may have any slope."""
    return np.isfinite(a.slope_low) | np.isfinite(a.slope_high)


def _gt(a: Enclosure, b: Enclosure) -> Enclosure:
    """Compare ``a > b``: false where one is undefined, as NaN is."""
    return _indicator((a.low > b.high) & _is_known(a) & _is_known(b), a.high <= b.low)


def _ge(a: Enclosure, b: Enclosure) -> Enclosure:
    """Compare ``a >= b``: false where one is undefined, as NaN is."""
    return _indicator((a.low >= b.high) & _is_known(a) & _is_known(b), a.high < b.low)


def _eq(a: Enclosure, b: Enclosure) -> Enclosure:
    """Compare ``a == b``; a number equals itself unless it is NaN."""
    if a is b:
        return _is_finite(a)
    # Equal for certain are only two numbers, each an interval of no width.
    point = (a.low == a.high) & (b.low == b.high) & (a.low == b.low) & _is_known(a) & _is_known(b)
    return _indicator(point, (a.low > b.high) | (a.high < b.low))


def _is_finite(a: Enclosure) -> Enclosure:
    """Tell whether a value is a finite number, as the values of defined functions are."""
    return _indicator(np.isfinite(a.low) & _is_known(a), np.zeros(a.low.shape, bool))


def _not(a: Enclosure) -> Enclosure:
    """Negate a truth value."""
    return _indicator(a.high < 1, a.low > 0)


def _and(a: Enclosure, b: Enclosure) -> Enclosure:
    """Join two truth values."""
    return _indicator((a.low > 0) & (b.low > 0), (a.high < 1) | (b.high < 1))


def _monotone(f: Callable[[Any], Any], slope: Callable[[Any], Any], *, rising: bool = True, even: bool = False) -> Rule:
    """Make the rule of a monotone function: its values at the ends are the ends of its values.

    The slope is monotone as well, or ``even`` and smaller in size the farther from zero: then it is taken at the points
    of the cell nearest to zero and farthest from it.
    """

    def rule(a: Enclosure) -> Enclosure:
        # No function here is zero but at zero, or exactly: e^-800 is the smallest number.
        low, high = (underflow(f(end), np.abs(np.sign(end))) for end in (a.value if rising else a.value[::-1]))
        # An even slope depends on |u| alone, which runs over [near, far]::
        #
        #     low < 0 < high     near = 0, far = max(-low, high)
        #     else               near, far = the smaller and the larger of |low| and |high|
        ends = a.value
        if even:
            near = np.where((a.low < 0) & (a.high > 0), 0, np.minimum(np.abs(a.low), np.abs(a.high)))
            ends = near, np.maximum(np.abs(a.low), np.abs(a.high))
        slopes = [slope(end) for end in ends]
        low_slope, high_slope = np.minimum(*slopes), np.maximum(*slopes)
        # A slope that underflows has either sign: which, is not asked.
        low_slope, high_slope = underflow(low_slope, -1.0), underflow(high_slope, 1.0)
        return Enclosure(
            *round_outward(low, high),
            *_intervals.multiply(round_outward(low_slope, high_slope), a.slope),
            a.may_jump,
        )

    return rule


def _trigonometric(f: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Rule:
    """Make the rule of sine or cosine: the value at the middle, give or take half the cell, as ``|f'| <= 1``."""

    def rule(a: Enclosure) -> Enclosure:
        # |f(u) - f(middle)| <= |u - middle|, and the same for the slope, which is a sine or cosine too. For cells wider
        # than four this gives [-1, 1], without a search for the extremes inside.
        # The middle is rounded by a unit of its own last place, which may be more than the width.
        middle = (a.low + a.high) / 2
        half = (a.high - a.low) * (0.5 + ULPS) + ULPS * np.abs(middle)
        value, slopes = ((np.maximum(g(middle) - half, -1), np.minimum(g(middle) + half, 1)) for g in (f, slope))
        return Enclosure(
            *round_outward(*value),
            *_intervals.multiply(round_outward(*slopes), a.slope),
            a.may_jump,
        )

    return rule


def _logistic(u: Any) -> Any:
    """Compute ``1 / (1 + e^-u)`` without overflow on either side."""
    # Each formula has the exponential of a negative number on its own side; the other one may overflow and is dropped.
    return np.where(u >= 0, 1 / (1 + np.exp(-u)), np.exp(u) / (1 + np.exp(u)))


def _logistic_slope(u: Any) -> Any:
    """Compute the slope of the logistic function, ``e^-u / (1 + e^-u)^2`` of ``u >= 0``."""
    return np.exp(-u) / np.square(1 + np.exp(-u))


_erf, _erfc = np.vectorize(math.erf, otypes=[float]), np.vectorize(math.erfc, otypes=[float])
_ERF_SLOPE = 2 / math.sqrt(math.pi)

RULES: dict[str, Rule] = {
    "add": _add,
    "add_any": _add,
    "sub": lambda a, b: _add(a, _neg(b)),
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "square": lambda a: integer_pow(a, 2),
    "integer_pow": integer_pow,
    "pow": _pow,
    "max": _max,
    "min": _min,
    "clamp": lambda low, a, high: _min(_max(a, low), high),
    "abs": lambda a: _max(a, _neg(a)),
    "sign": lambda a: _indicator(a.low > 0, a.high < 0, low=-1.0),
    "select_n": _select,
    "gt": _gt,
    "ge": _ge,
    "lt": lambda a, b: _gt(b, a),
    "le": lambda a, b: _ge(b, a),
    "eq": _eq,
    "ne": lambda a, b: _not(_eq(a, b)),
    "not": _not,
    "and": _and,
    "or": lambda a, b: _not(_and(_not(a), _not(b))),
    "is_finite": _is_finite,
    "convert_element_type": lambda a: a,
    "exp": _monotone(np.exp, np.exp),
    "exp2": _monotone(np.exp2, lambda u: math.log(2) * np.exp2(u)),
    "expm1": _monotone(np.expm1, np.exp),
    # 1 / u is finite for negative u, where there is no logarithm. NaN makes such a cell all numbers, see `repair`.
    "log": _monotone(np.log, lambda u: np.where(u < 0, np.nan, 1 / u)),
    "log1p": _monotone(np.log1p, lambda u: np.where(u < -1, np.nan, 1 / (1 + u))),
    "sqrt": _monotone(np.sqrt, lambda u: 0.5 / np.sqrt(u)),
    "rsqrt": _monotone(lambda u: 1 / np.sqrt(u), lambda u: -0.5 / (u * np.sqrt(u)), rising=False),
    # 1 / cosh(u)^2 = 4 e^-2u / (1 + e^-2u)^2 for u >= 0: cosh would overflow.
    "tanh": _monotone(np.tanh, lambda u: 4 * _logistic_slope(2 * u), even=True),
    "logistic": _monotone(_logistic, _logistic_slope, even=True),
    "erf": _monotone(_erf, lambda u: _ERF_SLOPE * np.exp(-np.square(u)), even=True),
    "erfc": _monotone(_erfc, lambda u: -_ERF_SLOPE * np.exp(-np.square(u)), rising=False, even=True),
    "atan": _monotone(np.arctan, lambda u: 1 / (1 + np.square(u)), even=True),
    "asinh": _monotone(np.arcsinh, lambda u: 1 / np.sqrt(1 + np.square(u)), even=True),
    "sin": _trigonometric(np.sin, np.cos),
    "cos": _trigonometric(np.cos, lambda u: -np.sin(u)),
}
"""Rule by name of the primitive; of `integer_pow` the exponent comes last."""
