"""Operations entry by entry: functions of one value stay functions of it; what else meets is added, scaled, chosen."""

from dataclasses import replace
from math import prod, sqrt
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stabjax import _jaxpr
from stabjax.lipschitz._network import _piecewise_linear
from stabjax.lipschitz._network._elementwise import NUMBER, Curve
from stabjax.lipschitz._network._lipschitz_value import (
    Root,
    Slope,
    UnboundedError,
    after,
    largest,
    number,
    scaled,
    selected,
    selection_of,
    settled,
    together,
    total,
)
from stabjax.lipschitz._network._piecewise_linear import Known, Rays, Side
from stabjax.lipschitz._network._selection import in_pairs, joined, of_pairs
from stabjax.lipschitz._network._softmax import difference

Values = list[Any]


def entrywise(step: _jaxpr.Step, operands: Values) -> Slope | None:
    """The output of an operation on entries; None if it has no bound."""
    name, shape = step.name, step.results[0].shape
    active = [operand for operand in operands if isinstance(operand, Slope)]
    aligned = all(step.shapes[k] == shape for k, operand in enumerate(operands) if isinstance(operand, Slope))
    if aligned and all(value.root is active[0].root for value in active):
        curve = _curve(step, operands)
        if curve is not None:
            keeps = len(active) == 1 and name in ("add", "sub")
            first = active[0]
            return Slope(first.bound, first.factor, first.root, curve, first.layer if keeps else None)
    # A conversion that is no curve rounds.
    rays = _bent(name, operands) if aligned and name != "convert_element_type" else ()
    if rays and not (name in ("mul", "div") and len(active) == 1):
        bound = jnp.min(jnp.stack([ray.bound * ray.steepest for ray in rays]))
        return after(Slope(bound, rays[0].factor * rays[0].steepest, Root()), 1.0, Root(rays=rays))
    if aligned and len(active) > 1 and name in ("max", "min", "select_n"):
        found = _ordered(step, active) if name != "select_n" else _chosen(step, operands)
        if found is not None:
            return found
    spread = [
        value if step.shapes[k] == shape else after(value, sqrt(prod(shape) / prod(step.shapes[k])))
        for k, value in enumerate(operands)
        if isinstance(value, Slope)
    ]
    if name in ("add", "add_any", "sub"):
        return total(spread, difference(step, operands)) if len(spread) > 1 else _shifted(spread[0])
    if name == "mul" and len(spread) == 1:
        return scaled(spread[0], next(operand for operand in operands if not isinstance(operand, Slope)), rays)
    if name == "div" and not isinstance(operands[1], Slope):
        return scaled(spread[0], 1 / _wide(operands[1]), rays)
    if name == "select_n" and not isinstance(operands[0], Slope):
        return together(spread) if step.shapes[0] else largest(spread)
    return together(spread) if name in ("max", "min", "clamp") else None


def _curve(step: _jaxpr.Step, operands: Values) -> Curve | None:
    """The operation as a function of one number, if the other operands are numbers."""
    curves = []
    for operand in operands:
        constant = None if isinstance(operand, Slope) else number(operand)
        if isinstance(operand, Slope):
            curves.append(operand.curve)
        elif constant is None:
            return None
        else:
            curves.append(Curve(constant=(constant, constant)))
    if step.name == "convert_element_type" and not jnp.issubdtype(step.results[0].dtype, jnp.floating):
        return None
    if curves[0].name == "exp" and step.name in ("abs", "convert_element_type", "log"):
        return curves[0].operands[0] if step.name == "log" else curves[0]
    return Curve(step.name, tuple(curves), step.params.get("y"))


def _bent(name: str, operands: Values) -> tuple[Rays, ...]:
    """The output as functions with a kink at zero, of every value that all operands are such functions of."""
    if name not in _piecewise_linear.RULES:
        return ()
    active = [value for value in operands if isinstance(value, Slope)]
    starts = {ray.key: ray for value in active for ray in _starts(value)}
    made = []
    for key, ray in starts.items():
        slopes = _piecewise_linear.apply(
            name, [_expressed(value, key) if isinstance(value, Slope) else _side(value) for value in operands]
        )
        if isinstance(slopes, tuple):
            made.append(replace(ray, slopes=slopes))
    return tuple(made)


def _starts(value: Slope) -> list[Rays]:
    """What the value may be a function of: its root, what that is a function of, or itself."""
    found = [Rays((value.root, NUMBER.lines()), value.bound, value.factor, _piecewise_linear.NUMBER), *value.root.rays]
    try:
        here = settled(value)
    except UnboundedError:
        return found
    return [*found, Rays((value.root, value.curve.lines()), here.bound, here.factor, _piecewise_linear.NUMBER)]


def _expressed(value: Slope, key: Any) -> Known:
    """The value as a function of what has this key."""
    root, lines = key
    if root is value.root:
        return _piecewise_linear.along(value.curve, lines, _piecewise_linear.NUMBER)
    slopes = next((ray.slopes for ray in value.root.rays if ray.key == key), None)
    return None if slopes is None else _piecewise_linear.along(value.curve, NUMBER.lines(), slopes)


def _side(value: Any) -> Side:
    """A constant, on both sides."""
    if value.dtype == bool:
        return Side(value, value)
    known = number(value)
    return Side(_wide(value), _wide(value)) if known is None else Side(known, known)


def _wide(value: Any) -> Any:
    """In the precision to compute with: half precision would round what is made of it."""
    return jnp.asarray(value, jnp.promote_types(value.dtype, jnp.float32))


def _ordered(step: _jaxpr.Step, active: list[Slope]) -> Slope | None:
    """The larger or the smaller of two slices of one value: that value with pairs of entries put in order, cut."""
    shape = step.results[0].shape
    one, two = (selection_of(value, shape) for value in active)
    pairs = in_pairs(one, two)
    if pairs is None:
        return None
    root = one.key[0].made.setdefault((one.key[1:], pairs.name), Root())
    return selected(settled(active[0]), of_pairs(one, root, pairs, larger=step.name == "max"), 1.0)


def _chosen(step: _jaxpr.Step, operands: Values) -> Slope | None:
    """Entries of one value, chosen by what the images have no part in."""
    which, *cases = operands
    shape = step.results[0].shape
    if isinstance(which, Slope | Tracer) or np.shape(which) != shape or not shape:
        return None
    index = np.asarray(which).astype(int)
    alike = bool((index == index[:1]).all())
    index = index[:1] if alike else index
    parts = [selection_of(case, shape) if isinstance(case, Slope) else None for case in cases]
    found = joined(parts, [shape] * len(cases), shape, lambda *places: np.choose(index, places), by_rows=alike)
    first = next(case for case in cases if isinstance(case, Slope))
    return None if found is None else selected(settled(first), found[1], found[0])


def _shifted(value: Slope) -> Slope:
    """The value plus numbers, which may differ from entry to entry."""
    value = settled(value)
    return Slope(value.bound, value.factor, Root(), layer=value.layer)
