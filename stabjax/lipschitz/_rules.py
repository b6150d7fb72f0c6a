"""How far each operation stretches: Lipschitz constants by primitive, composed along the program.

Constants are those of a whole value, all rows of the batch together; as long as no operation mixes rows, that is the
constant of one row. What is not here is refused, by name.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from stabjax import _jaxpr
from stabjax.lipschitz._curve import Curve
from stabjax.lipschitz._dense import dense
from stabjax.lipschitz._intervals import RULES as ENTRYWISE
from stabjax.lipschitz._kernels import Axes, by_channel, norm_of_convolution, norm_of_transposed
from stabjax.lipschitz._slope import (
    Layer,
    Root,
    Slope,
    Unbounded,
    UnboundedError,
    after,
    largest,
    number,
    scaled,
    settled,
    tapped,
    together,
    total,
)

Values = list[Any]

_SAME = frozenset("copy copy_p stop_gradient reduce_precision optimization_barrier name".split())

_MOVES = frozenset(
    "reshape transpose squeeze expand_dims rev slice split unstack sort reduce_max reduce_min "
    "device_put sharding_constraint layout_constraint pvary pbroadcast reshard".split()
)
"""What hands on every entry at most once, in another place, or of several the largest."""

_STATISTICS = "a normalisation by statistics of the batch or of the image"

_STEEP = {
    "exp": "a softmax",
    "square": _STATISTICS,
    "integer_pow": _STATISTICS,
    "mul": _STATISTICS,
    "rsqrt": _STATISTICS,
    "div": _STATISTICS,
}
"""Where functions are usually found whose slope has no bound."""

_SEVERAL = {"mul": "a gate or attention", "dot_general": "attention", "div": f"a softmax, or {_STATISTICS}"}


def follow(step: _jaxpr.Step, operands: Values) -> Values:
    """What the outputs of an operation are, one of its operands at least being followed.

    Raises:
        ValueError: for an operation without a bound, or with none that is known.
    """
    for operand in operands:
        if isinstance(operand, Unbounded):
            raise operand.error
    try:
        if step.name in ENTRYWISE:
            found = _entrywise(step, operands)
        elif step.name in _SAME:
            return operands
        elif step.name in _MOVES and len(operands) == 1:
            return [after(operands[0], 1.0) for _ in step.results]
        else:
            rule = _RULES.get(step.name)
            found = None if rule is None else rule(step, operands)
    except UnboundedError as error:
        raise _too_steep(error, step.where) from None
    if found is None:
        several = len(_followed(operands)) > 1
        usual = _SEVERAL.get(step.name) if several else None
        error = _refused([step.name], f"of {'several activations' if several else 'an activation'}", usual, step.where)
        if any(jnp.issubdtype(result.dtype, jnp.inexact) for result in step.results):
            raise error
        return [Unbounded(error) for _ in step.results]
    return [found]


def is_followed(value: Any) -> bool:
    """Whether a value depends on the images."""
    return isinstance(value, Slope | Unbounded)


def at_tap(value: Any, where: str) -> Any:
    """The value at a tap; raises as `follow` does."""
    if isinstance(value, Unbounded):
        return value
    try:
        return tapped(value)
    except UnboundedError as error:
        raise _too_steep(error, where) from None


def _followed(operands: Sequence[Any]) -> list[Slope]:
    return [operand for operand in operands if isinstance(operand, Slope)]


def _too_steep(error: UnboundedError, where: str) -> ValueError:
    names = error.args[0]
    familiar = next((name for name in names if name in _STEEP), None)
    shown = names if familiar is None else [familiar]
    return _refused(shown, "of an activation, whose slope has no bound", _STEEP.get(familiar or ""), where)


def _refused(names: Sequence[str], what: str, usual: str | None, where: str) -> ValueError:
    return ValueError(
        f"expected operations whose Lipschitz constant is known, got `{', '.join(names)}` {what}"
        f"{f' (as in {usual})' if usual else ''}, {where}; put the network in evaluation mode, bound the part before "
        "it, or exchange the operation"
    )


def _entrywise(step: _jaxpr.Step, operands: Values) -> Slope | None:
    """A function of one root stays one; what else meets is added, scaled, or chosen from."""
    name, shape = step.name, step.results[0].shape
    active = _followed(operands)
    aligned = all(step.shapes[k] == shape for k, operand in enumerate(operands) if isinstance(operand, Slope))
    if aligned and all(value.root is active[0].root for value in active):
        curve = _curve(step, operands)
        if curve is not None:
            keeps = len(active) == 1 and name in ("add", "sub")
            first = active[0]
            return Slope(first.bound, first.factor, first.root, curve, first.layer if keeps else None)
    spread = [
        value if step.shapes[k] == shape else after(value, sqrt(prod(shape) / prod(step.shapes[k])))
        for k, value in enumerate(operands)
        if isinstance(value, Slope)
    ]
    if name in ("add", "add_any", "sub"):
        return total(spread) if len(spread) > 1 else _shifted(spread[0])
    if name == "mul" and len(spread) == 1:
        return scaled(spread[0], next(operand for operand in operands if not isinstance(operand, Slope)))
    if name == "div" and not isinstance(operands[1], Slope):
        return scaled(spread[0], 1 / jnp.asarray(operands[1]))
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
    rounds = step.name == "convert_element_type" and not jnp.issubdtype(step.results[0].dtype, jnp.floating)
    return None if rounds else Curve(step.name, tuple(curves), step.params.get("y"))


def _shifted(value: Slope) -> Slope:
    """The value plus numbers, which may differ from entry to entry."""
    value = settled(value)
    return Slope(value.bound, value.factor, Root(), layer=value.layer)


def _of_layer(before: Slope, axis: int | None, norm: Callable[[Any], Array]) -> Slope:
    before = settled(before)
    dtype = before.bound.dtype

    def rounded(scale: Any) -> Array:
        return norm(scale).astype(dtype)

    made = after(before, rounded(1.0))
    layer = None if axis is None else Layer(before.bound, axis, rounded)
    return Slope(made.bound, made.factor, made.root, layer=layer)


def _convolution(step: _jaxpr.Step, operands: Values) -> Slope | None:
    image, kernel = operands
    params, numbers = step.params, step.params["dimension_numbers"]
    if isinstance(kernel, Slope) or params["batch_group_count"] > 1:
        return None
    out, inputs, *window = numbers.rhs_spec
    kernel = _real(jnp.transpose(kernel, (*window, inputs, out)), image)
    axes = Axes(
        tuple(step.shapes[0][axis] for axis in numbers.lhs_spec[2:]),
        tuple(step.results[0].shape[axis] for axis in numbers.out_spec[2:]),
        tuple(params["window_strides"]),
        tuple(params["padding"]),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
    )
    transposed = max(axes.spread) > 1 and max(axes.strides) == 1
    norm = partial(norm_of_transposed if transposed else norm_of_convolution, kernel, axes)
    return _of_layer(image, numbers.out_spec[1], partial(norm, params["feature_group_count"]))


def _product(step: _jaxpr.Step, operands: Values) -> Slope | None:
    """A matrix for each entry of the shared axes, applied to every row of the activation."""
    active = _followed(operands)
    if len(active) > 1:
        return None
    side = 1 if isinstance(operands[0], Slope) else 0
    contracted, shared = (axes[side] for axes in step.params["dimension_numbers"])
    kernel = jnp.asarray(operands[side])
    free = [axis for axis in range(kernel.ndim) if axis not in contracted and axis not in shared]
    sides = [prod(kernel.shape[axis] for axis in axes) for axes in (shared, contracted, free)]
    kernel = _real(jnp.reshape(jnp.transpose(kernel, (*shared, *contracted, *free)), sides), active[0])
    axis = None
    if not shared and len(free) == 1:
        axis = len(step.results[0].shape) - 1 if side == 1 else 0

    def norm(scale: Any) -> Array:
        matrices = by_channel(kernel, scale)
        if len(matrices) == 1:
            return dense(matrices[0]).value
        return jnp.max(jax.lax.map(lambda matrix: dense(matrix).value, matrices))

    return _of_layer(active[0], axis, norm)


def _real(kernel: Array, value: Slope) -> Array:
    precise = jnp.issubdtype(kernel.dtype, jnp.floating) and kernel.dtype.itemsize >= value.bound.dtype.itemsize
    return kernel if precise else kernel.astype(value.bound.dtype)


def _window(step: _jaxpr.Step, axis: int) -> np.ndarray:
    """Which entries along an axis each window reads, ``(windows, entries)``."""
    params, entries, windows = step.params, step.shapes[0][axis], step.results[0].shape[axis]
    ones = (1,) * len(step.shapes[0])
    spread, gap = ((params.get(name) or ones)[axis] for name in ("base_dilation", "window_dilation"))
    first = params["window_strides"][axis] * np.arange(windows) - params["padding"][axis][0]
    reads = first[:, None] + gap * np.arange(params["window_dimensions"][axis])[None]
    return (reads[..., None] == spread * np.arange(entries)).sum(1)


def _sums_of_windows(step: _jaxpr.Step, operands: Values) -> Slope | None:
    """A product of one matrix for each axis, hence of their norms."""
    return after(operands[0], prod(map(_norm, (_window(step, axis) for axis in range(len(step.shapes[0]))))))


def _norm(matrix: np.ndarray) -> float:
    if not matrix.any():
        return 0.0
    found = float(np.linalg.norm(matrix.astype(float), 2)) * (1 + 1e-12)
    return 1.0 if (matrix.sum(0) <= 1).all() and (matrix.sum(1) <= 1).all() else found


def _largest_of_windows(step: _jaxpr.Step, operands: Values) -> Slope | None:
    """An entry counts in as many windows as read it, at most."""
    counts = [_window(step, axis).sum(0).max() for axis in range(len(step.shapes[0]))]
    return after(operands[0], sqrt(prod(map(float, counts))))


def _summed(step: _jaxpr.Step, operands: Values) -> Slope | None:
    return after(operands[0], sqrt(prod(step.shapes[0]) / prod(step.results[0].shape)))


def _accumulated(step: _jaxpr.Step, operands: Values) -> Slope | None:
    return after(operands[0], _norm(np.tri(step.shapes[0][step.params["axis"]])))


def _repeated(step: _jaxpr.Step, operands: Values) -> Slope | None:
    return after(operands[0], sqrt(prod(step.results[0].shape) / prod(step.shapes[0])))


def _looked_up(step: _jaxpr.Step, operands: Values) -> Slope | None:
    """An entry counts as often as it is read: what reading gives, transposed, finds on it."""
    value, places = operands
    if isinstance(places, Slope):
        return None
    dtype = value.bound.dtype
    struct = jax.ShapeDtypeStruct(step.shapes[0], dtype)
    (counts,) = jax.linear_transpose(lambda x: step.apply(x, places), struct)(jnp.ones(step.results[0].shape, dtype))
    return after(value, jnp.sqrt(jnp.max(counts)))


def _side_by_side(step: _jaxpr.Step, operands: Values) -> Slope | None:
    return together(_followed(operands))


def _placed(arrays: int) -> Callable[[_jaxpr.Step, Values], Slope | None]:
    """Arrays of which every entry is handed on at most once, at places that the images have no part in."""

    def rule(step: _jaxpr.Step, operands: Values) -> Slope | None:
        return None if _followed(operands[arrays:]) else together(_followed(operands[:arrays]))

    return rule


def _written(step: _jaxpr.Step, operands: Values) -> Slope | None:
    base, places, parts = operands
    return None if isinstance(places, Slope) else together(_followed([base, parts]))


_RULES: dict[str, Callable[[_jaxpr.Step, Values], Slope | None]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reduce_sum": _summed,
    "cumsum": _accumulated,
    "reduce_window_sum": _sums_of_windows,
    "reduce_window_max": _largest_of_windows,
    "reduce_window_min": _largest_of_windows,
    "broadcast_in_dim": _repeated,
    "tile": _repeated,
    "gather": _looked_up,
    "concatenate": _side_by_side,
    "stack": _side_by_side,
    "pad": _placed(1),
    "dynamic_slice": _placed(1),
    "dynamic_update_slice": _placed(2),
    "scatter": _written,
    "branches": lambda step, operands: largest(_followed(operands)),
}
