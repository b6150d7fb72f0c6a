"""What a value of a program is, while it is followed for the pixels it depends on."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from stabjax._jaxpr._constants import Constant
from stabjax._jaxpr._parameters import PARAMETER, Parameter
from stabjax.receptive import _box
from stabjax.receptive._box import Span

Seen: TypeAlias = tuple[Span, ...]
"""What a value sees, along each axis of the image."""

Value: TypeAlias = Seen | Constant | Parameter


def joined(values: Sequence[Value]) -> Value:
    """What a value sees that may see all of these."""
    seen = [value for value in values if isinstance(value, tuple)]
    if not seen:
        return PARAMETER
    return tuple(_box.join(spans) for spans in zip(*seen)) if len(seen) > 1 else seen[0]


def stretched(value: Seen, var: Any) -> Seen:
    """A single entry's boxes for every entry of another value."""
    shape = getattr(var.aval, "shape", ())
    return tuple(
        _box.spread_over(_box.reduce(span, range(len(span.steps))), len(shape), (), shape, ()) for span in value
    )


def inexact(seen: Value) -> Value:
    return tuple(_box.inexact(span) for span in seen) if isinstance(seen, tuple) else seen


def each(rule: Callable[[Any, Span], Span]) -> Callable[[Any, list[Value]], Value]:
    """A rule for the first operand alone, one axis of the image at a time."""

    def apply(equation: Any, operands: list[Any]) -> Any:
        first = operands[0]
        return tuple(rule(equation, span) for span in first) if isinstance(first, tuple) else None

    return apply
