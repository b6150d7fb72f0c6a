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
from stabjax.lipschitz._dense import dense
from stabjax.lipschitz._entries import entrywise
from stabjax.lipschitz._intervals import RULES as ENTRYWISE
from stabjax.lipschitz._kernels import Axes, by_channel, norm_of_convolution, norm_of_transposed
from stabjax.lipschitz._method import STEPS
from stabjax.lipschitz._moves import handed_on, side_by_side
from stabjax.lipschitz._reads import norm_of_reads, reads
from stabjax.lipschitz._selection import along_axes, most
from stabjax.lipschitz._slope import (
    Layer,
    Root,
    Slope,
    Unbounded,
    UnboundedError,
    after,
    largest,
    leading,
    selection_of,
    settled,
    tapped,
    together,
)
from stabjax.lipschitz._softmax import found as part_of_softmax

Values = list[Any]

_KEEPS = _jaxpr.PLACEMENTS | {"sort", "reduce_max", "reduce_min"}
"""What hands on every entry at most once, or of several the largest."""

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
        found = part_of_softmax(step, operands)
        if found is not None:
            return [found]
        if step.name in ENTRYWISE:
            found = entrywise(step, operands)
        elif step.name in _jaxpr.COPIES:
            return operands
        elif step.name in _KEEPS and len(operands) == 1:
            key = step.name, str(step.params), operands[0].curve.lines()
            found = after(operands[0], 1.0, operands[0].root.made.setdefault(key, Root()))
        elif step.name in _jaxpr.MOVES and len(_followed(operands[:1])) == len(_followed(operands)) == 1:
            return handed_on(step, operands)
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


def at_tap(value: Any) -> Any:
    """The value at a tap; if it is too steep it may be bounded later on, as exponentials by the logarithm of a sum."""
    return value if isinstance(value, Unbounded) else tapped(value)


def at_output(value: Any) -> Any:
    """The value at a tap where nothing follows; raises as `follow` does."""
    try:
        return value if isinstance(value, Unbounded) else tapped(settled(value))
    except UnboundedError as error:
        raise _too_steep(error, "at the output") from None


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


def _of_layer(before: Slope, axis: int | None, norm: Callable[[Any], Array], bound: Array | None = None) -> Slope:
    """A linear layer, also of what ``before`` was made from, with this ``bound``, if ``norm`` is that of both."""
    before = settled(before)
    start = before.bound if bound is None else bound
    dtype = start.dtype

    def rounded(scale: Any) -> Array:
        return norm(scale).astype(dtype)

    made = after(Slope(start, before.factor, Root()), rounded(1.0))
    made = made if bound is None else leading(before, made.bound, Root())
    layer = None if axis is None else Layer(start, axis, rounded)
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
    groups = params["feature_group_count"]
    lines = _lines(image, step, numbers.lhs_spec)
    if lines is not None:
        window = tuple(
            reads(line, k, *rest)
            for line, k, *rest in zip(lines, kernel.shape, axes.strides, axes.padding, axes.spread, axes.dilation)
        )
        bound = selection_of(image, step.shapes[0]).bound

        def joint(scale: Any) -> Array:
            return norm_of_reads(by_channel(kernel, scale), window, groups, STEPS["gram"])

        return _of_layer(image, numbers.out_spec[1], joint, bound)
    transposed = max(axes.spread) > 1 and max(axes.strides) == 1
    norm = partial(norm_of_transposed if transposed else norm_of_convolution, kernel, axes)
    return _of_layer(image, numbers.out_spec[1], partial(norm, groups))


def _lines(image: Slope, step: _jaxpr.Step, spec: Sequence[int]) -> list[np.ndarray] | None:
    """For a convolution that reads some entries twice, as behind a padding with them, which stand along its axes."""
    selection = image.root.selection
    if selection is None or selection.once:
        return None
    lines = along_axes(selection)
    if lines is None or any((lines[axis] < 0).any() or most(lines[axis]) > 1 for axis in spec[:2]):
        return None
    return [lines[axis] for axis in spec[2:]]


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
    "concatenate": side_by_side,
    "stack": side_by_side,
    "dynamic_update_slice": _placed(2),
    "scatter": _written,
    "branches": lambda step, operands: largest(_followed(operands)),
}


class LipschitzDomain(_jaxpr.Domain):
    """Bounds in place of what depends on the images; all else is computed."""

    def is_active(self, value: Any) -> bool:
        """Return whether a value depends on the images."""
        return is_followed(value)

    def apply(self, step: _jaxpr.Step, operands: Values) -> Values:
        """Return the outputs of an operation; raises as `follow` does."""
        return follow(step, operands)

    def apply_call(self, step: _jaxpr.Step, operands: Values) -> Values | None:
        """Refuse a conditional that the images choose in; enter all other calls."""
        return follow(step, operands) if step.name == "cond" and is_followed(operands[0]) else None

    def choose(self, step: _jaxpr.Step, index: Any, alternatives: Values) -> Any:
        """Return what any of the branches is."""
        active = any(map(is_followed, alternatives))
        return follow(step, alternatives)[0] if active else super().choose(step, index, alternatives)

    def row(self, step: _jaxpr.Step, value: Any, k: int) -> Any:
        """Return one row of a value."""
        return follow(step, [value])[0] if is_followed(value) else super().row(step, value, k)

    def stack(self, step: _jaxpr.Step, rows: Values) -> Any:
        """Return the rows as one value."""
        return follow(step, rows)[0] if any(map(is_followed, rows)) else super().stack(step, rows)

    def at_tap(self, value: Any) -> Any:
        """Return the value at a tap."""
        return at_tap(value)
