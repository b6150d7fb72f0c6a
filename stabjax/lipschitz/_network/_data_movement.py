"""Data movement: operations that put the entries of a value in other places, unchanged."""

from functools import partial
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from stabjax import _jaxpr
from stabjax.lipschitz._network._lipschitz_value import (
    LipschitzValue,
    Values,
    as_root,
    as_selection,
    compose,
    l2_sum,
    select,
)
from stabjax.lipschitz._network._selection import IndexMap, compose_indices, index_transform, join, select_all


def move_entries(step: _jaxpr.Step, operands: Values) -> list[LipschitzValue]:
    """Move the entries of a value; the norm is the root of how often one occurs, exactly where the places are known."""
    value = operands[0]
    known = index_transform(step, operands[1:])
    if known is None:
        return [compose(value, _repetition_norm(step, operands)) for _ in step.results]
    if step.name in ("pad", "gather"):
        # The entries filled in are no function of the old ones: the function is applied before.
        start, value = as_selection(value, step.shapes[0]), as_root(value)
    else:
        # Entries that were moved before keep their origin: index maps compose, so slice and join again is one
        # selection.
        start = value.root.selection or select_all(value.root, value.bound, step.shapes[0])
    # All others put an entry in one place at most.
    injective = step.name not in ("gather", "broadcast_in_dim", "tile")
    results = []
    for build, result in zip(known.builds, step.results, strict=True):
        index_map = IndexMap(tuple(result.shape), build, (start.index_map,), known.row_wise)
        selection = compose_indices(start, index_map, injective=injective)
        count = selection.max_count()
        if count is None:
            # Too large to be counted: a root of its own, and the count from the shapes.
            results.append(compose(value, _repetition_norm(step, operands)))
        else:
            results.append(select(value, selection, sqrt(max(count, 1))))
    return results


def _repetition_norm(step: _jaxpr.Step, operands: Values) -> Any:
    """Bound the norm of a data movement from its shapes, or from its own counts."""
    if step.name == "gather":
        return _gather_norm(step, *operands)
    # Broadcasts and tiles repeat every entry equally often, results / entries times. All others repeat none.
    return sqrt(max(1, prod(step.results[0].shape) / max(1, prod(step.shapes[0]))))


def _gather_norm(step: _jaxpr.Step, value: LipschitzValue, indices: Any) -> Array:
    """Count how often each entry is read: the transpose of reading, applied to ones; the places may be traced."""
    dtype = value.bound.dtype
    struct = jax.ShapeDtypeStruct(step.shapes[0], dtype)
    (counts,) = jax.linear_transpose(lambda x: step.apply(x, indices)[0], struct)(
        jnp.ones(step.results[0].shape, dtype)
    )
    return jnp.sqrt(jnp.max(counts))


def concatenate(step: _jaxpr.Step, operands: Values) -> LipschitzValue:
    """Put values and constants side by side; parts of one value count as one selection of it."""
    axis = int(step.params["dimension" if step.name == "concatenate" else "axis"])
    put = partial(np.concatenate if step.name == "concatenate" else np.stack, axis=axis)
    active = [operand for operand in operands if isinstance(operand, LipschitzValue)]
    # Constants beside one value add nothing to a change.
    if len(active) == 1:
        return l2_sum(active)
    parts = [
        as_selection(operand, shape) if isinstance(operand, LipschitzValue) else None
        for operand, shape in zip(operands, step.shapes, strict=True)
    ]
    # Parts of one value, the rest taken as constants, are one selection; different values join by the l2 sum.
    kinds = list(dict.fromkeys(part.key for part in parts if part is not None))
    groups = []
    for key in kinds:
        several = [part if part is not None and part.key == key else None for part in parts]
        values = [operand for operand, part in zip(operands, several) if part is not None]
        joined = join(
            several, step.shapes, tuple(step.results[0].shape), lambda *indices: put(indices), row_wise=axis > 0
        )
        groups.append(l2_sum(values) if joined is None else select(as_root(values[0]), joined[1], joined[0]))
    return groups[0] if len(groups) == 1 else l2_sum(groups)
