"""Functions of one number that are linear on each side of zero: ReLU, and ReLUs with slopes of their own per channel.

The slopes may be parameters, also traced, and differ from entry to entry: what a curve cannot say. Wherever such
functions of one value are added, scaled, chosen from by the sign of the value, or the larger taken, there is another.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax.lipschitz._network._elementwise import Curve, Lines

Slopes: TypeAlias = tuple[Any, Any, Any]
"""Above zero, below, and a size: of the largest number that was added up to them, whose rounding they may share.

Numbers, or arrays that broadcast."""

NUMBER: Slopes = (1.0, 1.0, 1.0)
"""Those of the number itself."""

_ROUNDINGS = 32


@dataclass(frozen=True, eq=False)
class Rays:
    """A value made of two rays, entry by entry.

    Attributes:
        key: what it is a function of: a root, and a function of that.
        bound: Lipschitz constant of that as a function of the image, from above, ``()``.
        factor: the part of it that came since the last tap, ``()``.
        slopes: see `Slopes`.
    """

    key: tuple[Any, Lines]
    bound: Float[Array, ""]
    factor: Float[Array, ""]
    slopes: Slopes

    @property
    def steepest(self) -> Float[Array, ""]:
        """At least the Lipschitz constant, whatever was rounded."""
        up, down, size = (jnp.max(jnp.abs(jnp.asarray(slope, self.bound.dtype))) for slope in self.slopes)
        return jnp.maximum(up, down) + _ROUNDINGS * float(jnp.finfo(self.bound.dtype).eps) * size


@dataclass(frozen=True)
class Side:
    """A number, the same on a whole side of zero: true or false, one or zero, or a constant that is on both."""

    above: Any
    below: Any


Known: TypeAlias = Slopes | Side | None


def along(curve: Curve, number: Lines, slopes: Slopes) -> Known:
    """What a curve is, if a part of it, ``number``, is rays of these slopes; None if it has no such form."""
    made: dict[int, Known] = {}

    def of(part: Curve) -> Known:
        if id(part) not in made:
            made[id(part)] = slopes if part.lines() == number else applied(part)
        return made[id(part)]

    def applied(part: Curve) -> Known:
        if part.constant is not None:
            low, high = part.constant
            return Side(low, low) if low == high else None
        return None if part.exponent is not None else apply(part.name, list(map(of, part.operands)))

    return of(curve)


def apply(name: str, operands: Sequence[Known]) -> Known:
    """An operation on rays and constants; None if the outcome is neither."""
    rule = RULES.get(name)
    return None if rule is None or any(operand is None for operand in operands) else rule(*operands)


def _zero(x: Known) -> bool:
    return isinstance(x, Side) and all(isinstance(side, int | float) and side == 0 for side in (x.above, x.below))


def _as_rays(x: Known) -> Slopes | None:
    """Rays, or the constant zero, which is flat."""
    return (0.0, 0.0, 0.0) if _zero(x) else x if isinstance(x, tuple) else None


def _pairwise(above: Callable[..., Any], below: Callable[..., Any], size: Callable[..., Any]) -> Callable[..., Known]:
    def rule(*operands: Known) -> Known:
        sides = [operand for operand in operands if isinstance(operand, Side)]
        if len(sides) == len(operands):
            return Side(above(*[side.above for side in sides]), above(*[side.below for side in sides]))
        rays = [_as_rays(operand) for operand in operands]
        if any(ray is None for ray in rays):
            return None
        ups, downs, sizes = zip(*rays)
        return above(*ups), below(*downs), size(*sizes)

    return rule


def _mul(a: Known, b: Known) -> Known:
    if isinstance(a, Side) and isinstance(b, Side):
        return Side(a.above * b.above, a.below * b.below)
    if isinstance(a, Side):
        a, b = b, a
    if not isinstance(a, tuple) or not isinstance(b, Side):
        return None
    return a[0] * b.above, a[1] * b.below, a[2] * _largest(abs(b.above), abs(b.below))


def _div(a: Known, b: Known) -> Known:
    if not isinstance(a, tuple) or not isinstance(b, Side) or _zero(b):
        return None
    return a[0] / b.above, a[1] / b.below, a[2] / _smallest(abs(b.above), abs(b.below))


def _select(which: Known, no: Known, yes: Known) -> Known:
    no, yes = _as_rays(no), _as_rays(yes)
    if not isinstance(which, Side) or no is None or yes is None:
        return None

    def chosen(side: Any, k: int) -> Any:
        return (yes[k] if side else no[k]) if isinstance(side, bool) else jnp.where(side, yes[k], no[k])

    return chosen(which.above, 0), chosen(which.below, 1), _largest(no[2], yes[2])


def _compared(above: bool) -> Callable[[Known, Known], Known]:
    """Whether the number is above zero, say, if it is compared with that."""

    def rule(a: Known, b: Known) -> Known:
        for rays, other, sign in ((a, b, 1), (b, a, -1)):
            if isinstance(rays, tuple) and _zero(other) and all(isinstance(slope, int | float) for slope in rays):
                up, down, _ = rays
                # Equal to zero on a whole side would be neither above nor below.
                return None if 0 in (up, down) else Side((sign * up > 0) is above, (sign * down < 0) is above)
        return None

    return rule


def _not(a: Known) -> Known:
    if isinstance(a, Side) and isinstance(a.above, bool) and isinstance(a.below, bool):
        return Side(not a.above, not a.below)
    return None


def _largest(a: Any, b: Any) -> Any:
    return float(np.maximum(a, b)) if isinstance(a, int | float) and isinstance(b, int | float) else jnp.maximum(a, b)


def _smallest(a: Any, b: Any) -> Any:
    return -_largest(-a, -b)


def _same(a: Any) -> Any:
    return a


RULES: dict[str, Callable[..., Known]] = {
    "add": _pairwise(operator.add, operator.add, operator.add),
    "add_any": _pairwise(operator.add, operator.add, operator.add),
    "sub": _pairwise(operator.sub, operator.sub, operator.add),
    "neg": _pairwise(operator.neg, operator.neg, _same),
    # Below zero the larger value has the smaller slope.
    "max": _pairwise(_largest, _smallest, _largest),
    "min": _pairwise(_smallest, _largest, _largest),
    "abs": _pairwise(abs, lambda a: -abs(a), _same),
    "mul": _mul,
    "div": _div,
    "select_n": _select,
    "gt": _compared(True),
    "ge": _compared(True),
    "lt": _compared(False),
    "le": _compared(False),
    "not": _not,
    "convert_element_type": _same,
}
