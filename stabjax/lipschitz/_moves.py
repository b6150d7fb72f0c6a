"""Operations that hand on the entries of values as they are, in other places."""

from functools import partial
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from stabjax import _jaxpr
from stabjax.lipschitz._selection import Places, joined, moved, moves, whole
from stabjax.lipschitz._slope import Slope, after, selected, selection_of, settled, together

Values = list[Any]


def handed_on(step: _jaxpr.Step, operands: Values) -> list[Slope]:
    """Entries of a value in other places; where these are known, how often each is there counts."""
    value = operands[0]
    known = moves(step, operands[1:])
    if known is None:
        return [after(value, _repeats(step, operands)) for _ in step.results]
    if step.name in ("pad", "gather"):
        # The new entries are no function of the old ones.
        begun, value = selection_of(value, step.shapes[0]), settled(value)
    else:
        begun = value.root.selection or whole(value.root, value.bound, step.shapes[0])
    once = step.name not in ("gather", "broadcast_in_dim", "tile")
    results = []
    for make, result in zip(known.makes, step.results, strict=True):
        places = Places(tuple(result.shape), make, (begun.places,), known.by_rows)
        found = moved(begun, places, once=once)
        count = found.count()
        if count is None:
            results.append(after(value, _repeats(step, operands)))
        else:
            results.append(selected(value, found, sqrt(max(count, 1))))
    return results


def _repeats(step: _jaxpr.Step, operands: Values) -> Any:
    """The norm of handing on entries, from the operation alone."""
    if step.name == "gather":
        return _looked_up(step, *operands)
    return sqrt(max(1, prod(step.results[0].shape) / max(1, prod(step.shapes[0]))))


def _looked_up(step: _jaxpr.Step, value: Slope, places: Any) -> Array:
    """An entry counts as often as it is read: what reading gives, transposed, finds on it."""
    dtype = value.bound.dtype
    struct = jax.ShapeDtypeStruct(step.shapes[0], dtype)
    (counts,) = jax.linear_transpose(lambda x: step.apply(x, places)[0], struct)(jnp.ones(step.results[0].shape, dtype))
    return jnp.sqrt(jnp.max(counts))


def side_by_side(step: _jaxpr.Step, operands: Values) -> Slope:
    """Values side by side, and constants; what comes of one value counts as one."""
    axis = int(step.params["dimension" if step.name == "concatenate" else "axis"])
    put = partial(np.concatenate if step.name == "concatenate" else np.stack, axis=axis)
    active = [operand for operand in operands if isinstance(operand, Slope)]
    if len(active) == 1:
        return together(active)
    parts = [
        selection_of(operand, shape) if isinstance(operand, Slope) else None
        for operand, shape in zip(operands, step.shapes, strict=True)
    ]
    kinds = list(dict.fromkeys(part.key for part in parts if part is not None))
    groups = []
    for key in kinds:
        several = [part if part is not None and part.key == key else None for part in parts]
        values = [operand for operand, part in zip(operands, several) if part is not None]
        found = joined(
            several, step.shapes, tuple(step.results[0].shape), lambda *places: put(places), by_rows=axis > 0
        )
        groups.append(together(values) if found is None else selected(settled(values[0]), found[1], found[0]))
    return groups[0] if len(groups) == 1 else together(groups)
