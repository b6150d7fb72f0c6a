"""Elementwise operations on intervals: where the value and the slope of a function lie over a cell of its argument.

Ends are rounded outwards. A slope is one almost everywhere, which is what a Lipschitz constant takes: where two
functions meet in a maximum or a choice, that of either; whether they meet at all is for `torn` to ask.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Ends = tuple[np.ndarray, np.ndarray]

_ULPS = 2.0**-50
_LARGEST = np.finfo(np.float64).max
_SMALLEST = np.nextafter(0.0, 1.0)


class Over(NamedTuple):
    """Ends of the value and of the slope over each cell, and where the value may jump; truth is zero or one."""

    low: np.ndarray
    high: np.ndarray
    slope_low: np.ndarray
    slope_high: np.ndarray
    torn: np.ndarray

    @property
    def value(self) -> Ends:
        return self.low, self.high

    @property
    def slope(self) -> Ends:
        return self.slope_low, self.slope_high


Rule = Callable[..., Over]


def constant(low: float, high: float, cells: np.ndarray) -> Over:
    """A number between these ends over all cells."""
    zero = np.zeros_like(cells)
    return Over(zero + low, zero + high, zero, zero, zero > 0)


def identity(low: np.ndarray, high: np.ndarray) -> Over:
    """The argument itself."""
    return Over(low, high, np.ones_like(low), np.ones_like(low), np.zeros(low.shape, bool))


def _safe(low: np.ndarray, high: np.ndarray) -> Ends:
    """A lower end that overflowed is a large number, not infinity; what is not known may be anything."""
    low, high = np.minimum(low, _LARGEST), np.maximum(high, -_LARGEST)
    unknown = np.isnan(low) | np.isnan(high)
    return np.where(unknown, -np.inf, low), np.where(unknown, np.inf, high)


def _wide(low: np.ndarray, high: np.ndarray) -> Ends:
    return _safe(low - _ULPS * np.abs(low), high + _ULPS * np.abs(high))


def _times(a: Ends, b: Ends) -> Ends:
    """Products; zero times what is not bounded is zero."""
    corners = np.stack([np.where((x == 0) | (y == 0), 0, x * y) for x in a for y in b])
    return _wide(corners.min(0), corners.max(0))


def _plus(a: Ends, b: Ends) -> Ends:
    return _wide(a[0] + b[0], a[1] + b[1])


def _minus(a: Ends) -> Ends:
    return -a[1], -a[0]


def _inverse(a: Ends) -> Ends:
    crosses = (a[0] <= 0) & (a[1] >= 0)
    low, high = _wide(1 / np.where(crosses, 1, a[1]), 1 / np.where(crosses, 1, a[0]))
    return np.where(crosses, -np.inf, low), np.where(crosses, np.inf, high)


def _power(a: Ends, n: int) -> Ends:
    """Whole powers."""
    if n < 0:
        return _inverse(_power(a, -n))
    low, high = a[0] ** n, a[1] ** n
    if n % 2 == 0:
        low, high = np.where((a[0] < 0) & (a[1] > 0), 0, np.minimum(low, high)), np.maximum(low, high)
    return _wide(low, high)


def _either(a: Over, b: Over, value: Ends, torn: np.ndarray) -> Over:
    """The slope of one or the other."""
    slope = np.minimum(a.slope_low, b.slope_low), np.maximum(a.slope_high, b.slope_high)
    return Over(*value, *slope, torn)


def _where(which: np.ndarray, a: Over, b: Over) -> Over:
    return Over(*(np.where(which, x, y) for x, y in zip(a, b)))


def _add(a: Over, b: Over) -> Over:
    return Over(*_plus(a.value, b.value), *_plus(a.slope, b.slope), a.torn | b.torn)


def _neg(a: Over) -> Over:
    return Over(*_minus(a.value), *_minus(a.slope), a.torn)


def _mul(a: Over, b: Over) -> Over:
    if a is b:
        return integer_pow(a, 2)
    slope = _plus(_times(a.slope, b.value), _times(a.value, b.slope))
    return Over(*_times(a.value, b.value), *slope, a.torn | b.torn)


def _div(a: Over, b: Over) -> Over:
    """``(a / b)' = (a' - (a / b) b') / b``."""
    inverse = _inverse(b.value)
    quotient = _times(a.value, inverse)
    slope = _times(_plus(a.slope, _minus(_times(quotient, b.slope))), inverse)
    return Over(*quotient, *slope, a.torn | b.torn)


def integer_pow(a: Over, n: int) -> Over:
    """``a^n``."""
    times = np.array(float(n))
    factor = _times((times, times), _power(a.value, n - 1))
    return Over(*_power(a.value, n), *_times(factor, a.slope), a.torn)


def _pow(a: Over, b: Over) -> Over:
    """A constant exponent: a whole one, or any of a positive base."""
    n = float(b.low.flat[0])
    unknown = constant(-np.inf, np.inf, a.low)._replace(slope_low=-np.inf + a.low * 0, slope_high=np.inf + a.low * 0)
    if (b.low != n).any() or (b.high != n).any():
        return unknown
    if n == int(n):
        return integer_pow(a, int(n))
    return _where(a.low > 0, _monotone(lambda u: u**n, lambda u: n * u ** (n - 1), rising=n > 0)(a), unknown)


def _max(a: Over, b: Over) -> Over:
    value = np.maximum(a.low, b.low), np.maximum(a.high, b.high)
    return _where(a.low >= b.high, a, _where(b.low >= a.high, b, _either(a, b, value, a.torn | b.torn)))


def _min(a: Over, b: Over) -> Over:
    return _neg(_max(_neg(a), _neg(b)))


def _select(which: Over, no: Over, yes: Over) -> Over:
    value = np.minimum(no.low, yes.low), np.maximum(no.high, yes.high)
    either = _either(no, yes, value, np.ones(no.low.shape, bool))
    return _where(which.low > 0, yes, _where(which.high < 1, no, either))


def _step(yes: np.ndarray, no: np.ndarray, *, low: float = 0.0) -> Over:
    """One where surely yes, ``low`` where surely no, in between a jump."""
    zero = np.zeros(yes.shape)
    return Over(np.where(yes, 1.0, low), np.where(no, low, 1.0), zero, zero, ~(yes | no))


def _gt(a: Over, b: Over) -> Over:
    return _step(a.low > b.high, a.high <= b.low)


def _ge(a: Over, b: Over) -> Over:
    return _step(a.low >= b.high, a.high < b.low)


def _eq(a: Over, b: Over) -> Over:
    if a is b:
        return _step(np.isfinite(a.low), np.isnan(a.low))
    point = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
    return _step(point, (a.low > b.high) | (a.high < b.low))


def _not(a: Over) -> Over:
    return _step(a.high < 1, a.low > 0)


def _and(a: Over, b: Over) -> Over:
    return _step((a.low > 0) & (b.low > 0), (a.high < 1) | (b.high < 1))


def _monotone(f: Callable[[Any], Any], slope: Callable[[Any], Any], *, rising: bool = True, even: bool = False) -> Rule:
    """A monotone function; its slope is monotone as well, or ``even`` and smaller in size the farther from zero."""

    def rule(a: Over) -> Over:
        low, high = (f(a.low), f(a.high)) if rising else (f(a.high), f(a.low))
        ends = a.value
        if even:
            near = np.where((a.low < 0) & (a.high > 0), 0, np.minimum(np.abs(a.low), np.abs(a.high)))
            ends = near, np.maximum(np.abs(a.low), np.abs(a.high))
        slopes = [slope(end) for end in ends]
        low_slope, high_slope = np.minimum(*slopes), np.maximum(*slopes)
        # A slope that underflows is not zero.
        low_slope = np.where(low_slope == 0, -_SMALLEST, low_slope)
        high_slope = np.where(high_slope == 0, _SMALLEST, high_slope)
        return Over(*_wide(low, high), *_times(_wide(low_slope, high_slope), a.slope), a.torn)

    return rule


def _wave(f: Callable[[Any], Any], slope: Callable[[Any], Any]) -> Rule:
    """A sine or cosine, by its middle and half the cell's width: neither changes faster than that."""

    def rule(a: Over) -> Over:
        middle, half = (a.low + a.high) / 2, (a.high - a.low) * (0.5 + _ULPS)
        value, slopes = ((np.maximum(g(middle) - half, -1), np.minimum(g(middle) + half, 1)) for g in (f, slope))
        return Over(*_wide(*value), *_times(_wide(*slopes), a.slope), a.torn)

    return rule


def _logistic(u: Any) -> Any:
    return np.where(u >= 0, 1 / (1 + np.exp(-u)), np.exp(u) / (1 + np.exp(u)))


def _bell(u: Any) -> Any:
    """``e^-u / (1 + e^-u)^2`` of ``u >= 0``, the slope of the logistic function."""
    return np.exp(-u) / np.square(1 + np.exp(-u))


_erf, _erfc = np.vectorize(math.erf, otypes=[float]), np.vectorize(math.erfc, otypes=[float])
_GAUSS = 2 / math.sqrt(math.pi)

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
    "sign": lambda a: _step(a.low > 0, a.high < 0, low=-1.0),
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
    "is_finite": lambda a: _step(np.isfinite(a.low), np.isnan(a.low)),
    "convert_element_type": lambda a: a,
    "exp": _monotone(np.exp, np.exp),
    "exp2": _monotone(np.exp2, lambda u: math.log(2) * np.exp2(u)),
    "expm1": _monotone(np.expm1, np.exp),
    "log": _monotone(np.log, lambda u: np.where(u < 0, np.nan, 1 / u)),
    "log1p": _monotone(np.log1p, lambda u: np.where(u < -1, np.nan, 1 / (1 + u))),
    "sqrt": _monotone(np.sqrt, lambda u: 0.5 / np.sqrt(u)),
    "rsqrt": _monotone(lambda u: 1 / np.sqrt(u), lambda u: -0.5 / (u * np.sqrt(u)), rising=False),
    "tanh": _monotone(np.tanh, lambda u: 4 * _bell(2 * u), even=True),
    "logistic": _monotone(_logistic, _bell, even=True),
    "erf": _monotone(_erf, lambda u: _GAUSS * np.exp(-np.square(u)), even=True),
    "erfc": _monotone(_erfc, lambda u: -_GAUSS * np.exp(-np.square(u)), rising=False, even=True),
    "atan": _monotone(np.arctan, lambda u: 1 / (1 + np.square(u)), even=True),
    "asinh": _monotone(np.arcsinh, lambda u: 1 / np.sqrt(1 + np.square(u)), even=True),
    "sin": _wave(np.sin, np.cos),
    "cos": _wave(np.cos, lambda u: -np.sin(u)),
}
"""By the name of the primitive; of `integer_pow` the exponent comes last."""
