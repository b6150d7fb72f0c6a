"""Functions of one number that are linear on each side of zero: ReLU, and ReLUs with slopes of their own per channel.

::

    f(t) = up t   for t > 0,      f(t) = down t   for t < 0

The slopes may be parameters, also traced, and differ from entry to entry, which a `ScalarFunction` cannot express.
Wherever such functions of one value are added, scaled, chosen by the sign of the value, or compared for the larger,
the result is another one.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax.lipschitz._network._elementwise import Instructions, ScalarFunction

Slopes: TypeAlias = tuple[Any, Any, Any]
"""Slope above zero, slope below, and what rounding may have changed in them, in units of eps.

Numbers, or arrays that broadcast."""

IDENTITY_SLOPES: Slopes = (1.0, 1.0, 32.0)
"""Slopes of the number itself, with a reserve for what is done to the outcome."""


@dataclass(frozen=True, eq=False)
class PiecewiseLinear:
    """A value that is, entry by entry, a function of another with a kink at zero.

    Attributes:
        key: what it is a function of: a root, and the instructions of a function of that.
        bound: Lipschitz constant of that as a function of the image, from above, ``()``.
        factor: the part of it that came since the last tap, ``()``.
        slopes: see `Slopes`.
    """

    key: tuple[Any, Instructions]
    bound: Float[Array, ""]
    factor: Float[Array, ""]
    slopes: Slopes

    @property
    def lipschitz_constant(self) -> Float[Array, ""]:
        """Bound on the Lipschitz constant from above, whatever was rounded: the steeper side of the steepest entry."""
        # Rounding is relative to the numbers that were added up, not to their sum: (1e8 + 1) - 1e8 has slope 1 and an
        # error of about eps * 1e8. That is why the error travels along with the slopes.
        up, down, error = (jnp.max(jnp.abs(jnp.asarray(slope, self.bound.dtype))) for slope in self.slopes)
        return jnp.maximum(up, down) + float(jnp.finfo(self.bound.dtype).eps) * error


@dataclass(frozen=True)
class PiecewiseConstant:
    """A number, the same on a whole side of zero: true or false, one or zero, or a constant that is on both."""

    above: Any
    below: Any


Piecewise: TypeAlias = Slopes | PiecewiseConstant | None


def substitute(function: ScalarFunction, number: Instructions, slopes: Slopes) -> Piecewise:
    """Evaluate a function in which a part, ``number``, has these slopes; None if the result has no such form."""
    values: dict[int, Piecewise] = {}

    def evaluate(part: ScalarFunction) -> Piecewise:
        # A function is a graph whose parts are shared: each is evaluated once. `number` is the argument itself, or a
        # part that is a value of its own, as x + b in max(x + b, 0).
        if id(part) not in values:
            values[id(part)] = slopes if part.instructions() == number else evaluate_operation(part)
        return values[id(part)]

    def evaluate_operation(part: ScalarFunction) -> Piecewise:
        if part.constant is not None:
            low, high = part.constant
            # A constant that is only known to lie between two ends is no single number.
            return PiecewiseConstant(low, low) if low == high else None
        # Powers are not linear; the rules of the others are below.
        return None if part.exponent is not None else apply(part.name, list(map(evaluate, part.operands)))

    return evaluate(function)


def apply(name: str, operands: Sequence[Piecewise]) -> Piecewise:
    """Apply an operation to slopes and constants; None if the outcome is neither."""
    rule = RULES.get(name)
    return None if rule is None or any(operand is None for operand in operands) else rule(*operands)


def _is_zero(x: Piecewise) -> bool:
    """Tell whether this is the constant zero."""
    return isinstance(x, PiecewiseConstant) and all(
        isinstance(side, int | float) and side == 0 for side in (x.above, x.below)
    )


def _as_slopes(x: Piecewise) -> Slopes | None:
    """Return slopes, those of the constant zero included, which is flat; None for other constants."""
    # A constant c != 0 beside slopes would move the kink away from zero, or the value at it: f(0) = 0 must stay true.
    return (0.0, 0.0, 0.0) if _is_zero(x) else x if isinstance(x, tuple) else None


def _rounded(up: Any, down: Any, error: Any) -> Slopes:
    """Return slopes that were rounded once more, and of which a constant was: by half an eps each, counted twice."""
    return up, down, error + 2 * _maximum(abs(up), abs(down))


def _by_side(
    above: Callable[..., Any], below: Callable[..., Any], error: Callable[..., Any]
) -> Callable[..., Piecewise]:
    """Make a rule that acts on the slopes above and below zero and on the errors, each by a function of its own."""

    def rule(*operands: Piecewise) -> Piecewise:
        # Constants are numbers on both sides: the operation itself, which is that of slopes above zero.
        sides = [operand for operand in operands if isinstance(operand, PiecewiseConstant)]
        if len(sides) == len(operands):
            return PiecewiseConstant(above(*[side.above for side in sides]), above(*[side.below for side in sides]))
        pieces = [_as_slopes(operand) for operand in operands]
        if any(piece is None for piece in pieces):
            return None
        ups, downs, errors = zip(*pieces)
        return _rounded(above(*ups), below(*downs), error(*errors))

    return rule


def _mul(a: Piecewise, b: Piecewise) -> Piecewise:
    """Multiply by a constant or a mask; two functions would make a square."""
    if isinstance(a, PiecewiseConstant) and isinstance(b, PiecewiseConstant):
        return PiecewiseConstant(a.above * b.above, a.below * b.below)
    if isinstance(a, PiecewiseConstant):
        a, b = b, a
    if not isinstance(a, tuple) or not isinstance(b, PiecewiseConstant):
        return None
    # Each slope times the constant of its side.
    return _rounded(a[0] * b.above, a[1] * b.below, a[2] * _maximum(abs(b.above), abs(b.below)))


def _div(a: Piecewise, b: Piecewise) -> Piecewise:
    """Divide by a constant."""
    if not isinstance(a, tuple) or not isinstance(b, PiecewiseConstant) or _is_zero(b):
        return None
    # The smaller divisor makes the larger error. A zero in an array of divisors gives an infinite slope: no bound.
    return _rounded(a[0] / b.above, a[1] / b.below, a[2] / _minimum(abs(b.above), abs(b.below)))


def _select(which: Piecewise, no: Piecewise, yes: Piecewise) -> Piecewise:
    """Choose by the side of zero: ``where(t > 0, f(t), g(t))`` has one slope of each."""
    no, yes = _as_slopes(no), _as_slopes(yes)
    if not isinstance(which, PiecewiseConstant) or no is None or yes is None:
        return None

    def choose(side: Any, k: int) -> Any:
        # A mask that is a plain truth value is one for all entries; an array differs from entry to entry.
        return (yes[k] if side else no[k]) if isinstance(side, bool) else jnp.where(side, yes[k], no[k])

    return choose(which.above, 0), choose(which.below, 1), _maximum(no[2], yes[2])


def _compare(above: bool) -> Callable[[Piecewise, Piecewise], Piecewise]:
    """Make the rule of a comparison with zero: true on the side above, or on the side below.

    A point more or less, ``>`` or ``>=``, makes no difference to slopes.
    """

    def rule(a: Piecewise, b: Piecewise) -> Piecewise:
        # f(t) > 0 above zero where up > 0, and below zero where down < 0. With zero on the left, 0 > f is -f > 0.
        # Slopes that are arrays may differ in sign from entry to entry, or be traced: not decided.
        for pieces, other, sign in ((a, b, 1), (b, a, -1)):
            if (
                isinstance(pieces, tuple)
                and _is_zero(other)
                and all(isinstance(slope, int | float) for slope in pieces)
            ):
                up, down, _ = pieces
                # Equal to zero on a whole side would be neither above nor below.
                return (
                    None if 0 in (up, down) else PiecewiseConstant((sign * up > 0) is above, (sign * down < 0) is above)
                )
        return None

    return rule


def _not(a: Piecewise) -> Piecewise:
    """Negate a truth value on both sides."""
    if isinstance(a, PiecewiseConstant) and isinstance(a.above, bool) and isinstance(a.below, bool):
        return PiecewiseConstant(not a.above, not a.below)
    return None


def _maximum(a: Any, b: Any) -> Any:
    """Take the larger; numbers stay numbers."""
    return float(np.maximum(a, b)) if isinstance(a, int | float) and isinstance(b, int | float) else jnp.maximum(a, b)


def _minimum(a: Any, b: Any) -> Any:
    """Take the smaller; numbers stay numbers."""
    return -_maximum(-a, -b)


def _unchanged(a: Any) -> Any:
    """Return the argument."""
    return a


RULES: dict[str, Callable[..., Piecewise]] = {
    "add": _by_side(operator.add, operator.add, operator.add),
    "add_any": _by_side(operator.add, operator.add, operator.add),
    "sub": _by_side(operator.sub, operator.sub, operator.add),
    "neg": _by_side(operator.neg, operator.neg, _unchanged),
    # Below zero the larger value has the smaller slope: 2 t < t for t < 0.
    "max": _by_side(_maximum, _minimum, _maximum),
    "min": _by_side(_minimum, _maximum, _maximum),
    # For t < 0, |down t| = -|down| t.
    "abs": _by_side(abs, lambda a: -abs(a), _unchanged),
    "mul": _mul,
    "div": _div,
    "select_n": _select,
    "gt": _compare(True),
    "ge": _compare(True),
    "lt": _compare(False),
    "le": _compare(False),
    "not": _not,
    "convert_element_type": _unchanged,
}
