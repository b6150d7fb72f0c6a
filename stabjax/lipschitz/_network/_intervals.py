"""Interval arithmetic: sums, products and powers of numbers that lie between two ends, one pair for each cell.

Ends are rounded outwards: the interval holds the exact result for all numbers in the intervals that it is computed
from. An infinite end says that no bound is known on that side.
"""

from typing import Any

import numpy as np

Interval = tuple[np.ndarray, np.ndarray]

# At least four units in the last place of a double. `_LARGEST` replaces an end that overflowed to the side where it
# would cut numbers off, `_SMALLEST` a slope that underflowed.
ULPS = 2.0**-50
_LARGEST = np.finfo(np.float64).max
_SMALLEST = np.nextafter(0.0, 1.0)


def repair(low: np.ndarray, high: np.ndarray) -> Interval:
    """Widen ends that overflowed to the wrong side, and what is not known to all numbers."""
    # A lower end of +inf, or an upper one of -inf, would be an empty interval: the largest finite number takes its
    # place.
    low, high = np.minimum(low, _LARGEST), np.maximum(high, -_LARGEST)
    unknown = np.isnan(low) | np.isnan(high)
    # Adding zero makes a negative zero positive: one divided by it has the other sign.
    return np.where(unknown, -np.inf, low) + 0.0, np.where(unknown, np.inf, high) + 0.0


def round_outward(low: np.ndarray, high: np.ndarray) -> Interval:
    """Widen an interval by ``2^-50`` of its ends, several units in the last place: more than one operation rounds."""
    # The smallest number is half a unit of those below 1e-308, and more than any that underflowed. Zero stays zero.
    margins = (ULPS * np.abs(end) + _SMALLEST * (end != 0) for end in (low, high))
    return repair(low - next(margins), high + next(margins))


def underflow(result: np.ndarray, sign: Any) -> np.ndarray:
    """Take the smallest number of that sign where a result is zero though its sign is not."""
    # Zero would be exact, and in `multiply` zero times what is not bounded is zero: the true product may be any
    # number.
    return np.where(result == 0, sign * _SMALLEST, result)


def multiply(a: Interval, b: Interval) -> Interval:
    """Multiply intervals; zero times what is not bounded is zero."""
    # The product is linear in each factor, so its extremes over a box stand at the four corners. An infinite end says
    # that no bound is known; the numbers themselves are finite, so zero times them is zero and not NaN.
    corners = np.stack(
        [np.where((x == 0) | (y == 0), 0, underflow(x * y, np.sign(x) * np.sign(y))) for x in a for y in b]
    )
    return round_outward(corners.min(0), corners.max(0))


def add(a: Interval, b: Interval) -> Interval:
    """Add intervals."""
    return round_outward(a[0] + b[0], a[1] + b[1])


def negate(a: Interval) -> Interval:
    """Negate an interval."""
    return 0 - a[1], 0 - a[0]


def reciprocal(a: Interval) -> Interval:
    """Take ``1 / a``: all numbers where the interval holds zero."""
    crosses = (a[0] <= 0) & (a[1] >= 0)
    # 1 / a decreases on each side of zero, so the ends change places. In cells with a zero the 1 is only a placeholder.
    low, high = round_outward(1 / np.where(crosses, 1, a[1]), 1 / np.where(crosses, 1, a[0]))
    return np.where(crosses, -np.inf, low), np.where(crosses, np.inf, high)


def power(a: Interval, n: int) -> Interval:
    """Raise an interval to an integer power."""
    if n < 0:
        return reciprocal(power(a, -n))
    low, high = (underflow(end**n, np.sign(end) ** n) for end in a)
    if n % 2 == 0:
        # An even power decreases below zero and increases above it: in a cell across zero its minimum is 0, at 0.
        low, high = np.where((a[0] < 0) & (a[1] > 0), 0, np.minimum(low, high)), np.maximum(low, high)
    return round_outward(low, high)
