"""A program with all its weights one, written out anew as a linear function of the images.

Layers add up what they read, activations hand on what they began with, a maximum is a mean, products of activations and
other choices between values are the mean of both. So no two paths cancel, and an entry is positive exactly where a path
leads to it: counted, where `_extents` bounds it.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from stabjax._jaxpr._constants import Constant
from stabjax._jaxpr._flow import Plan
from stabjax._jaxpr._parameters import PARAMETER, Given, is_dense, nonzero
from stabjax._jaxpr._primitives import AFFINE, NONLINEAR, SCATTERS, VIEWS, WINDOWS, is_activation
from stabjax._jaxpr._program import CUSTOM, JIT, REMAT, body, opened, scan_split
from stabjax._jaxpr._reading import Reading, Site
from stabjax._jaxpr._walk import PASSIVE, Walk, row


def positive(reading: Reading, parameters: Sequence[Any], site: Site, x: Any) -> Any:
    """The value of a tap of the network with all weights one; linear in ``x``, of a floating type of one's choice.

    ``parameters``: those of the program, or their shapes; they count only where they are masks.
    """
    walk = _Walk()
    outputs = walk.run(reading.plan, [*map(Given, parameters), x])
    walk.found |= {(reading.operations + k, ()): value for k, value in enumerate(outputs)}
    value = walk.found[site.operation, site.iteration]
    return jnp.zeros(site.shape, x.dtype) if isinstance(value, PASSIVE) else site.arranged(value)


class _Walk(Walk):
    """Follows values, with all weights one."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[Plan, Any], Any] = {}

    def keep(self, plan: Plan, var: Any, value: Any) -> Any:
        """An activation hands on what it began with."""
        begun = self.values.get(plan.starts[var]) if var in plan.starts else None
        if begun is not None and not isinstance(begun, PASSIVE) and begun.shape == value.shape:
            value = begun
        self.values[plan, var] = value
        return value

    def step(self, equation: Any, operands: list[Any], child: Plan | None, iteration: tuple[int, ...]) -> list[Any]:
        name = equation.primitive.name
        active = [operand for operand in operands if not isinstance(operand, PASSIVE)]
        if name in JIT or name in REMAT or name in CUSTOM:
            inner = body(equation)
            if len(active) == len(equation.outvars) == 1 and is_activation(inner) and child is None:
                return [jnp.broadcast_to(active[0], equation.outvars[0].aval.shape)]
            return self.run(child or Plan(*opened(inner)), operands, iteration)
        if name == "cond":
            outcomes = self.outcomes(equation, operands)
            chooser = [] if isinstance(operands[0], PASSIVE) else [operands[0]]
            return [
                _mean([*alternatives, *chooser], var.aval.shape)
                for var, alternatives in zip(equation.outvars, zip(*outcomes))
            ]
        if name == "scan":
            return self._scan(equation, operands, child, iteration)
        if name in VIEWS and len(equation.outvars) > 1:
            return operands
        rule = _elementwise if name in AFFINE or name in NONLINEAR else _RULES.get(name)
        result = None if rule is None else rule(equation, operands)
        if result is None:
            mixed = sum(jnp.mean(value) for value in active)
            return [jnp.broadcast_to(mixed, getattr(var.aval, "shape", ())) for var in equation.outvars]
        return result if isinstance(result, list) else [result]

    def _scan(self, equation: Any, operands: list[Any], child: Plan | None, outer: tuple[int, ...]) -> list[Any]:
        params = equation.params
        fixed, carried = scan_split(params)
        plan = child or Plan(*opened(params["jaxpr"]))
        consts, carry, stacked = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]
        made: list[list[Any]] = [[]] * params["length"]
        order = range(params["length"])
        for k in reversed(order) if params["reverse"] else order:
            outputs = self.run(
                plan, [*consts, *carry, *[row(v, k) if isinstance(v, PASSIVE) else v[k] for v in stacked]], (*outer, k)
            )
            carry, made[k] = outputs[:carried], outputs[carried:]
        results = []
        for column, var in zip(zip(*made), equation.outvars[carried:]):
            blank = all(isinstance(value, PASSIVE) for value in column)
            results.append(PARAMETER if blank else jnp.stack(_filled(column, [var.aval.shape[1:]] * len(column))))
        return [*carry, *results]


def _filled(values: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """The values, zero where they do not depend on the images."""
    dtype = next(value.dtype for value in values if not isinstance(value, PASSIVE))
    return [jnp.zeros(shape, dtype) if isinstance(value, PASSIVE) else value for value, shape in zip(values, shapes)]


def _fitted(value: Any, shape: tuple[int, ...]) -> Any:
    if value.ndim < len(shape):
        value = value.reshape(*[1] * (len(shape) - value.ndim), *value.shape)
    return jnp.broadcast_to(value, shape)


def _mean(values: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """The mean of what depends on the images."""
    active = [_fitted(value, shape) for value in values if not isinstance(value, PASSIVE)]
    return sum(active[1:], active[0]) / len(active) if active else PARAMETER


def _elementwise(equation: Any, operands: list[Any]) -> Any:
    """Sums stay sums, numbers factors; what is chosen among or multiplied is averaged."""
    name, shape = equation.primitive.name, equation.outvars[0].aval.shape
    active = [operand for operand in operands if not isinstance(operand, PASSIVE)]
    if name == "select_n" and isinstance(operands[0], Constant) and operands[0].value is not None:
        table = jnp.broadcast_to(jnp.asarray(operands[0].value, int), shape)
        cases = _filled(operands[1:], [shape] * (len(operands) - 1))
        return sum(jnp.where(table == k, case, jnp.zeros_like(case)) for k, case in enumerate(cases))
    if name in ("add", "add_any", "sub"):
        return sum(_fitted(value, shape) for value in active)
    result = _mean(active, shape)
    if name not in ("mul", "div") or len(active) > 1:
        return result
    factor = operands[1] if operands[0] is active[0] else operands[0] if name == "mul" else None
    if not isinstance(factor, Constant) or factor.value is None:
        return result
    size = np.abs(np.asarray(factor.value, float))
    usable = np.isfinite(size).all() and size.any() and (name == "mul" or size.all())
    size = size if name == "mul" else 1 / np.where(size, size, 1)
    return result * jnp.asarray(np.broadcast_to(size, shape), result.dtype) if usable else result


def _first(rule: Callable[[Any, Any], Any]) -> Callable[[Any, list[Any]], Any]:
    """A rule for the first operand alone."""
    return lambda equation, operands: None if isinstance(operands[0], PASSIVE) else rule(equation, operands[0])


def _convolution(equation: Any, operands: list[Any]) -> Any:
    """Every spatial weight that is not masked is one; the channels of a group are averaged."""
    x, kernel = operands
    if isinstance(x, PASSIVE) or not isinstance(kernel, PASSIVE):
        return None
    params, numbers, out = equation.params, equation.params["dimension_numbers"], equation.outvars[0].aval.shape
    shape = list(equation.invars[1].aval.shape)
    groups, width = params["feature_group_count"], shape[numbers.rhs_spec[1]]
    table = None if is_dense(kernel) else nonzero(kernel)
    if groups == 1 and table is None:
        x = jnp.mean(x, numbers.lhs_spec[1], keepdims=True)
        shape[numbers.rhs_spec[0]] = shape[numbers.rhs_spec[1]] = width = 1
    weights = jnp.asarray(np.ones(shape) if table is None else table, x.dtype) / width
    y = lax.conv_general_dilated(
        x,
        weights,
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        numbers,
        feature_group_count=groups,
        batch_group_count=params["batch_group_count"],
    )
    return jnp.broadcast_to(y, out)


def _product(equation: Any, operands: list[Any]) -> Any:
    """The mean over what is contracted, of each operand that depends on the images."""
    contracted, _ = numbers = equation.params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in equation.invars]
    count = prod(shapes[0][k] for k in contracted[0])
    active = [operand for operand in operands if not isinstance(operand, PASSIVE)]
    results = []
    for side, operand in enumerate(operands):
        if isinstance(operand, PASSIVE):
            continue
        other = operands[1 - side]
        table = other.value if isinstance(other, Constant) else None
        if table is not None:
            weights = np.abs(np.asarray(table, float))
        else:
            seen = None if not isinstance(other, PASSIVE) or is_dense(other) else nonzero(other)
            weights = (np.ones(shapes[1 - side]) if seen is None else seen) / count
        pair = [operand, jnp.asarray(weights, operand.dtype)]
        left, right = pair if side == 0 else pair[::-1]
        results.append(lax.dot_general(left, right, numbers))
    return sum(results) / len(active)


def _pool(equation: Any, operands: list[Any]) -> list[Any]:
    params, results = equation.params, len(equation.outvars)
    x = _mean(operands[:results], equation.invars[0].aval.shape)
    rank = x.ndim
    total = lax.reduce_window(
        x,
        np.zeros((), x.dtype),
        lax.add,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        base_dilation=params.get("base_dilation") or (1,) * rank,
        window_dilation=params.get("window_dilation") or (1,) * rank,
    )
    summed = equation.primitive.name == "reduce_window_sum"
    return [total if summed else total / prod(params["window_dimensions"])] * results


def _reduction(equation: Any, operands: list[Any]) -> list[Any]:
    axes = tuple(int(axis) for axis in equation.params.get("axes", equation.params.get("dimensions", ())))
    x = _mean(operands[: len(equation.outvars)], equation.invars[0].aval.shape)
    reduced = jnp.sum(x, axes) if equation.primitive.name == "reduce_sum" else jnp.mean(x, axes)
    return [reduced] * len(equation.outvars)


def _pad(equation: Any, operands: list[Any]) -> Any:
    x, filling = _filled(operands, [atom.aval.shape for atom in equation.invars])
    return lax.pad(x, filling, equation.params["padding_config"])


def _concatenate(equation: Any, operands: list[Any]) -> Any:
    parts = _filled(operands, [atom.aval.shape for atom in equation.invars])
    return jnp.concatenate(parts, equation.params["dimension"])


def _stack(equation: Any, operands: list[Any]) -> Any:
    return jnp.stack(_filled(operands, [atom.aval.shape for atom in equation.invars]), equation.params["axis"])


def _unstack(equation: Any, operands: list[Any]) -> list[Any]:
    axis = equation.params["axis"]
    return [lax.index_in_dim(operands[0], k, axis, keepdims=False) for k in range(len(equation.outvars))]


def _split(equation: Any, operands: list[Any]) -> list[Any]:
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    ends = np.cumsum([0, *sizes]).tolist()
    return [lax.slice_in_dim(operands[0], start, stop, axis=axis) for start, stop in pairwise(ends)]


def _dynamic_slice(equation: Any, operands: list[Any]) -> Any:
    x, *starts = operands
    places: list[Any] = [start.value if isinstance(start, PASSIVE) else None for start in starts]
    if isinstance(x, PASSIVE) or any(place is None for place in places):
        return None
    return lax.dynamic_slice(x, [int(place) for place in places], equation.params["slice_sizes"])


def _update(equation: Any, operands: list[Any]) -> Any:
    base, part, *starts = operands
    places: list[Any] = [start.value if isinstance(start, PASSIVE) else None for start in starts]
    if any(place is None for place in places):
        return None
    base, part = _filled([base, part], [atom.aval.shape for atom in equation.invars[:2]])
    return lax.dynamic_update_slice(base, part, [int(place) for place in places])


def _scatter(equation: Any, operands: list[Any]) -> Any:
    base, indices, parts = operands
    if not isinstance(indices, Constant) or indices.value is None:
        return None
    base, parts = _filled([base, parts], [equation.invars[k].aval.shape for k in (0, 2)])
    rule = lax.scatter if equation.primitive.name == "scatter" else lax.scatter_add
    numbers, mode = equation.params["dimension_numbers"], equation.params["mode"]
    return rule(base, jnp.asarray(indices.value), parts, numbers, unique_indices=True, mode=mode)


def _gather(equation: Any, operands: list[Any]) -> Any:
    x, indices = operands
    if isinstance(x, PASSIVE) or not isinstance(indices, Constant) or indices.value is None:
        return None
    return equation.primitive.bind(x, jnp.asarray(indices.value), **equation.params)


def _everywhere(axis: Callable[[dict[str, Any], int], Any]) -> Callable[[Any, list[Any]], list[Any]]:
    """All entries along some axes meet."""

    def rule(equation: Any, operands: list[Any]) -> list[Any]:
        x = _mean(operands, equation.invars[0].aval.shape)
        mixed = jnp.mean(x, axis(equation.params, x.ndim), keepdims=True)
        return [jnp.broadcast_to(mixed, var.aval.shape) for var in equation.outvars]

    return rule


def _accumulate(equation: Any, x: Any) -> Any:
    return lax.cumsum(x, equation.params["axis"], reverse=equation.params["reverse"])


def _reshape(equation: Any, x: Any) -> Any:
    order = equation.params.get("dimensions") if equation.primitive.name == "reshape" else None
    return jnp.reshape(x if order is None else jnp.transpose(x, order), equation.outvars[0].aval.shape)


_RULES: dict[str, Callable[[Any, list[Any]], Any]] = {
    **dict.fromkeys(VIEWS, _first(lambda equation, x: x)),
    **dict.fromkeys(WINDOWS, _pool),
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reshape": _first(_reshape),
    "squeeze": _first(_reshape),
    "expand_dims": _first(_reshape),
    "transpose": _first(lambda equation, x: jnp.transpose(x, equation.params["permutation"])),
    "broadcast_in_dim": _first(
        lambda equation, x: lax.broadcast_in_dim(
            x, equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
        )
    ),
    "rev": _first(lambda equation, x: lax.rev(x, equation.params["dimensions"])),
    "slice": _first(
        lambda equation, x: lax.slice(x, *[equation.params[k] for k in ("start_indices", "limit_indices", "strides")])
    ),
    "pad": _pad,
    "tile": _first(lambda equation, x: jnp.tile(x, equation.params["reps"])),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _update,
    **dict.fromkeys(SCATTERS, _scatter),
    "concatenate": _concatenate,
    "gather": _gather,
    "split": _split,
    "stack": _stack,
    "unstack": _unstack,
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor reduce argmax argmin".split(),
        _reduction,
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), _first(_accumulate)),
    "sort": _everywhere(lambda params, rank: params["dimension"]),
    "top_k": _everywhere(lambda params, rank: params.get("axis", rank - 1)),
    "fft": _everywhere(lambda params, rank: tuple(range(rank - len(params["fft_lengths"]), rank))),
}
