"""Rules of elementwise operations.

Functions of one value stay functions of it. Where different values meet, bounds are added, scaled, or joined.
"""

from dataclasses import replace
from math import prod, sqrt
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stabjax import _jaxpr
from stabjax.lipschitz._network import _piecewise_linear
from stabjax.lipschitz._network._elementwise import IDENTITY, ScalarFunction
from stabjax.lipschitz._network._lipschitz_value import (
    LipschitzValue,
    Root,
    UnboundedError,
    as_root,
    as_selection,
    compose,
    l2_sum,
    max_bound,
    multiply,
    select,
    sum_bounds,
    uniform_number,
)
from stabjax.lipschitz._network._piecewise_linear import Piecewise, PiecewiseConstant, PiecewiseLinear
from stabjax.lipschitz._network._selection import join, match_pairs, select_from_pairs
from stabjax.lipschitz._network._softmax import as_difference

Values = list[Any]


def apply_elementwise(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Return the output of an elementwise operation; None if it has no bound.

    The first that applies: a function of one root; a two-sided linear function of one value; a choice among entries of
    one value; and what holds for any values.
    """
    name, shape = step.name, step.results[0].shape
    active = [operand for operand in operands if isinstance(operand, LipschitzValue)]
    aligned = all(step.shapes[k] == shape for k, operand in enumerate(operands) if isinstance(operand, LipschitzValue))
    # 1. All operands are functions of one root: so is the result.
    if aligned and all(value.root is active[0].root for value in active):
        function = _scalar_function(step, operands)
        if function is not None:
            # A layer with a shift is the same linear map: the scale of a normalization behind a bias still joins the
            # kernel.
            keeps = len(active) == 1 and name in ("add", "sub")
            first = active[0]
            return LipschitzValue(first.bound, first.factor, first.root, function, first.layer if keeps else None)
    # 2. All operands are linear on each side of zero, of one value: so is the result. Of several such forms the one
    # with the smallest bound counts, and all are remembered.
    # A conversion of dtype that is no function of a number is one to integers, which rounds.
    pieces = _piecewise_forms(name, operands) if aligned and name != "convert_element_type" else ()
    # A product with a constant is left to `multiply`, which may join it to a layer; the pieces go along.
    if pieces and not (name in ("mul", "div") and len(active) == 1):
        bound = jnp.min(jnp.stack([piece.bound * piece.lipschitz_constant for piece in pieces]))
        return compose(
            LipschitzValue(bound, pieces[0].factor * pieces[0].lipschitz_constant, Root()), 1.0, Root(pieces=pieces)
        )
    # 3. Entries of one value, sorted in pairs or chosen by a constant mask.
    if aligned and len(active) > 1 and name in ("max", "min", "select_n"):
        output = _order_pairs(step, active) if name != "select_n" else _choose_entries(step, operands)
        if output is not None:
            return output
    # 4. Any values: sums add bounds, what takes each entry from one operand has the l2 sum. Operands that broadcast
    # first: an entry repeated n times, sqrt(n).
    spread = [
        value if step.shapes[k] == shape else compose(value, sqrt(prod(shape) / prod(step.shapes[k])))
        for k, value in enumerate(operands)
        if isinstance(value, LipschitzValue)
    ]
    if name in ("add", "add_any", "sub"):
        # A difference of two values is remembered as such: it may be the u - max u of a softmax.
        return sum_bounds(spread, as_difference(step, operands)) if len(spread) > 1 else _shift(spread[0])
    if name == "mul" and len(spread) == 1:
        return multiply(
            spread[0], next(operand for operand in operands if not isinstance(operand, LipschitzValue)), pieces
        )
    if name == "div" and not isinstance(operands[1], LipschitzValue):
        # A zero in the divisor makes an infinite bound, as it must.
        return multiply(spread[0], 1 / _widen(operands[1], spread[0].bound.dtype), pieces)
    if name == "select_n" and not isinstance(operands[0], LipschitzValue):
        # A mask takes each entry from one case, so |change|^2 <= the sum over the cases. A scalar takes one case as a
        # whole.
        return l2_sum(spread) if step.shapes[0] else max_bound(spread)
    # |max(u, v) - max(u', v')| <= max(|u - u'|, |v - v'|), entry by entry.
    return l2_sum(spread) if name in ("max", "min", "clamp") else None


def _scalar_function(step: _jaxpr.Step, operands: Values) -> ScalarFunction | None:
    """Return the operation as a function of the root, if the other operands are numbers; None if not."""
    functions = []
    for operand in operands:
        constant = None if isinstance(operand, LipschitzValue) else uniform_number(operand)
        if isinstance(operand, LipschitzValue):
            functions.append(operand.function)
        elif constant is None:
            return None
        else:
            functions.append(ScalarFunction(constant=(constant, constant)))
    if step.name == "convert_element_type" and not jnp.issubdtype(step.results[0].dtype, jnp.floating):
        return None
    # log(exp(t)) = t, |exp(t)| = exp(t): kept simple, as softmax is recognized by its exponentials.
    if functions[0].name == "exp" and step.name in ("abs", "convert_element_type", "log"):
        return functions[0].operands[0] if step.name == "log" else functions[0]
    # `y` is the exponent of `integer_pow`; no other rule has a parameter.
    return ScalarFunction(step.name, tuple(functions), step.params.get("y"))


def _piecewise_forms(name: str, operands: Values) -> tuple[PiecewiseLinear, ...]:
    """Return the output as functions with a kink at zero, of every value that all operands are such functions of."""
    if name not in _piecewise_linear.RULES:
        return ()
    active = [value for value in operands if isinstance(value, LipschitzValue)]
    # Candidates are all values that some operand is a function of. For each, every operand is written as a function of
    # it; where one cannot be, `apply` returns None and the candidate drops out.
    arguments = {piece.key: piece for value in active for piece in _arguments(value)}
    forms = []
    for key, piece in arguments.items():
        slopes = _piecewise_linear.apply(
            name,
            [
                _express(value, key) if isinstance(value, LipschitzValue) else _as_constant(value, piece.bound.dtype)
                for value in operands
            ],
        )
        if isinstance(slopes, tuple):
            forms.append(replace(piece, slopes=slopes))
    return tuple(forms)


def _arguments(value: LipschitzValue) -> list[PiecewiseLinear]:
    """List what the value is a function of: its root, what that is a function of, and itself."""
    forms = [
        PiecewiseLinear(
            (value.root, IDENTITY.instructions()), value.bound, value.factor, _piecewise_linear.IDENTITY_SLOPES
        ),
        *value.root.pieces,
    ]
    try:
        here = as_root(value)
    except UnboundedError:
        return forms
    return [
        *forms,
        PiecewiseLinear(
            (value.root, value.function.instructions()), here.bound, here.factor, _piecewise_linear.IDENTITY_SLOPES
        ),
    ]


def _express(value: LipschitzValue, key: Any) -> Piecewise:
    """Express a value as a function, with a kink at zero, of the value of this key; None if it is none."""
    root, argument = key
    if root is value.root:
        return _piecewise_linear.substitute(value.function, argument, _piecewise_linear.IDENTITY_SLOPES)
    slopes = next((piece.slopes for piece in value.root.pieces if piece.key == key), None)
    return None if slopes is None else _piecewise_linear.substitute(value.function, IDENTITY.instructions(), slopes)


def _as_constant(value: Any, dtype: Any) -> PiecewiseConstant:
    """Return a constant, the same on both sides of zero, in the precision of the bound or a higher one."""
    if value.dtype == bool:
        return PiecewiseConstant(value, value)
    known = uniform_number(value)
    number = _widen(value, dtype) if known is None else known
    return PiecewiseConstant(number, number)


def _widen(value: Any, dtype: Any) -> Any:
    """Return an array in the precision of the bound at least: a lower one would round what is made of it by more."""
    wide = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize > dtype.itemsize
    return jnp.asarray(value, value.dtype if wide else dtype)


def _order_pairs(step: _jaxpr.Step, active: list[LipschitzValue]) -> LipschitzValue | None:
    """Take the larger or the smaller of two slices of one value: a selection of that value with its pairs sorted."""
    shape = step.results[0].shape
    first, second = (as_selection(value, shape) for value in active)
    pairs = match_pairs(first, second)
    if pairs is None:
        return None
    # Maximum and minimum of the same pairs are entries of one sorted value, so both must get the same root: joined
    # again (as in MaxMin, the GroupSort of pairs), they count once.
    root = first.key[0].derived.setdefault((first.key[1:], pairs.name), Root())
    return select(as_root(active[0]), select_from_pairs(first, root, pairs, larger=step.name == "max"), 1.0)


def _choose_entries(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Choose between entries of one value by a mask that does not depend on the images."""
    which, *cases = operands
    shape = step.results[0].shape
    if isinstance(which, LipschitzValue | Tracer) or np.shape(which) != shape or not shape:
        return None
    # select_n takes case k where the mask is k, as np.choose does. A mask alike in all rows keeps the rows alike.
    index = np.asarray(which).astype(int)
    same_rows = bool((index == index[:1]).all())
    index = index[:1] if same_rows else index
    parts = [as_selection(case, shape) if isinstance(case, LipschitzValue) else None for case in cases]
    joined = join(parts, [shape] * len(cases), shape, lambda *indices: np.choose(index, indices), row_wise=same_rows)
    first = next(case for case in cases if isinstance(case, LipschitzValue))
    return None if joined is None else select(as_root(first), joined[1], joined[0])


def _shift(value: LipschitzValue) -> LipschitzValue:
    """Add numbers, which may differ from entry to entry; the bound stays."""
    value = as_root(value)
    return LipschitzValue(value.bound, value.factor, Root(), layer=value.layer)
