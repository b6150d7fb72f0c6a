"""Propagation rules: the Lipschitz constant of each primitive, composed along the program.

Constants are those of a value as a whole, all rows of the batch together; as long as no operation mixes rows, that is
the constant of one row. What has no rule is refused, by name.
"""

from collections.abc import Callable, Sequence
from math import prod, sqrt
from typing import Any

import jax.numpy as jnp
import numpy as np

from stabjax import _jaxpr
from stabjax.lipschitz._network._data_movement import concatenate, move_entries
from stabjax.lipschitz._network._elementwise_rules import apply_elementwise
from stabjax.lipschitz._network._enclosures import RULES as ELEMENTWISE
from stabjax.lipschitz._network._linear_layers import convolution, dot_general
from stabjax.lipschitz._network._lipschitz_value import (
    LipschitzValue,
    Root,
    Unbounded,
    UnboundedError,
    Values,
    active_operands,
    as_root,
    compose,
    l2_sum,
    mark_tap,
    max_bound,
)
from stabjax.lipschitz._network._softmax import match_softmax

# Of `sort`: |sort x - sort y| <= |x - y|, by the rearrangement inequality.
_NONEXPANSIVE = _jaxpr.PLACEMENTS | {"sort", "reduce_max", "reduce_min"}
"""Primitives with constant 1 that return each entry at most once, or the largest of several."""

_STATISTICS = "a normalization by statistics of the batch or of the image"

_STEEP_CAUSE = {
    "exp": "a softmax",
    "square": _STATISTICS,
    "integer_pow": _STATISTICS,
    "mul": _STATISTICS,
    "rsqrt": _STATISTICS,
    "div": _STATISTICS,
}
"""Where a function without a bound on its slope usually comes from, by primitive."""

_PRODUCT_CAUSE = {"mul": "a gate or attention", "dot_general": "attention", "div": f"a softmax, or {_STATISTICS}"}


def propagate(step: _jaxpr.Step, operands: Values) -> Values:
    """Return the outputs of an operation, at least one of whose operands depends on the images.

    Raises:
        ValueError: for an operation without a bound, or with none that is known.
    """
    # The error of an unbounded value is raised where the value is used, and names the place where it was made.
    for operand in operands:
        if isinstance(operand, Unbounded):
            raise operand.error
    # Softmax first: its parts look like exponentials, sums and quotients, which have no bound by themselves.
    try:
        output = match_softmax(step, operands)
        if output is not None:
            return [output]
        if step.name in ELEMENTWISE:
            output = apply_elementwise(step, operands)
        elif step.name in _jaxpr.COPIES:
            return operands
        elif step.name in _NONEXPANSIVE and len(operands) == 1:
            # The same operation on the same function of a root gives the same root, so that a maximum that is computed
            # twice (as in softmax) is known to be one value.
            key = step.name, str(step.params), operands[0].function.instructions()
            output = compose(operands[0], 1.0, operands[0].root.derived.setdefault(key, Root()))
        elif step.name in _jaxpr.MOVES and len(active_operands(operands[:1])) == len(active_operands(operands)) == 1:
            return move_entries(step, operands)
        else:
            rule = _RULES.get(step.name)
            output = None if rule is None else rule(step, operands)
    except UnboundedError as error:
        raise _steepness_error(error, step.where) from None
    if output is None:
        several = len(active_operands(operands)) > 1
        usual = _PRODUCT_CAUSE.get(step.name) if several else None
        error = _unsupported(
            [step.name], f"of {'several activations' if several else 'an activation'}", usual, step.where
        )
        # Integers and truth values may be unused, such as an index beside a maximum: refused only where they are used.
        if any(jnp.issubdtype(result.dtype, jnp.inexact) for result in step.results):
            raise error
        return [Unbounded(error) for _ in step.results]
    return [output]


def depends_on_input(value: Any) -> bool:
    """Tell whether a value depends on the images."""
    return isinstance(value, LipschitzValue | Unbounded)


def value_at_tap(value: Any) -> Any:
    """Record a value at a tap; one that is too steep may be bounded later on, as exponentials by the log of a sum."""
    return value if isinstance(value, Unbounded) else mark_tap(value)


def value_at_output(value: Any) -> Any:
    """Record a value at the output, where nothing follows; raise as `propagate` does."""
    try:
        return value if isinstance(value, Unbounded) else mark_tap(as_root(value))
    except UnboundedError as error:
        raise _steepness_error(error, "at the output") from None


def _steepness_error(error: UnboundedError, where: str) -> ValueError:
    """Say which function is too steep, and what it is usually part of."""
    names = error.args[0]
    familiar = next((name for name in names if name in _STEEP_CAUSE), None)
    shown = names if familiar is None else [familiar]
    return _unsupported(shown, "of an activation, whose slope has no bound", _STEEP_CAUSE.get(familiar or ""), where)


def _unsupported(names: Sequence[str], what: str, usual: str | None, where: str) -> ValueError:
    """Say which primitives are not bounded, of what, and where they stand."""
    return ValueError(
        f"expected operations whose Lipschitz constant is known, got `{', '.join(names)}` {what}"
        f"{f' (as in {usual})' if usual else ''}, {where}; put the network in evaluation mode, bound the part before "
        "it, or exchange the operation"
    )


def _window_matrix(step: _jaxpr.Step, axis: int) -> np.ndarray:
    """Return how often each window reads each entry along an axis, ``(windows, entries)``."""
    params, entries, windows = step.params, step.shapes[0][axis], step.results[0].shape[axis]
    ones = (1,) * len(step.shapes[0])
    spread, gap = ((params.get(name) or ones)[axis] for name in ("base_dilation", "window_dilation"))
    # Window w reads place stride w - low + gap q at its entry q; places between entries that are spread hold nothing.
    first = params["window_strides"][axis] * np.arange(windows) - params["padding"][axis][0]
    reads = first[:, None] + gap * np.arange(params["window_dimensions"][axis])[None]
    # (windows, taps, 1) == (entries,) -> (windows, taps, entries) -> (windows, entries)
    return (reads[..., None] == spread * np.arange(entries)).sum(1)


def _reduce_window_sum(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Bound a sum over windows: a Kronecker product of one matrix per axis, so the product of their norms."""
    return compose(
        operands[0], prod(map(_matrix_norm, (_window_matrix(step, axis) for axis in range(len(step.shapes[0])))))
    )


def _matrix_norm(matrix: np.ndarray) -> float:
    """Compute the norm of a matrix of counts, rounded upwards; 1 exactly for a selection without repetition."""
    if not matrix.any():
        return 0.0
    # 1e-12 is thousands of units of double precision, more than the decomposition rounds.
    norm = float(np.linalg.norm(matrix.astype(float), 2)) * (1 + 1e-12)
    return 1.0 if (matrix.sum(0) <= 1).all() and (matrix.sum(1) <= 1).all() else norm


def _reduce_window_max(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Bound a maximum over windows: an entry is returned by as many windows as read it, at most."""
    # For two images x and y, |max_w x - max_w y|^2 <= sum over the window w of (x_i - y_i)^2. Summed over all windows,
    # entry i is counted once for each window that reads it: at most the product of the largest counts along the axes.
    counts = [_window_matrix(step, axis).sum(0).max() for axis in range(len(step.shapes[0]))]
    return compose(operands[0], sqrt(prod(map(float, counts))))


def _reduce_sum(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Bound a sum of ``n`` entries by ``sqrt(n)``: the norm of a row of ones."""
    return compose(operands[0], sqrt(prod(step.shapes[0]) / prod(step.results[0].shape)))


def _cumsum(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Bound a running sum by the norm of the triangle of ones."""
    return compose(operands[0], _matrix_norm(np.tri(step.shapes[0][step.params["axis"]])))


def _update(arrays: int) -> Callable[[_jaxpr.Step, Values], LipschitzValue | None]:
    """Make the rule of an update of so many arrays, each entry returned at most once, at places that are constant."""

    def rule(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
        return None if active_operands(operands[arrays:]) else l2_sum(active_operands(operands[:arrays]))

    return rule


def _scatter(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Bound a scatter that overwrites entries, at constant places."""
    # Where two parts are written to one place, one of them survives: no part is returned more than once.
    base, indices, parts = operands
    return None if isinstance(indices, LipschitzValue) else l2_sum(active_operands([base, parts]))


_RULES: dict[str, Callable[[_jaxpr.Step, Values], LipschitzValue | None]] = {
    "conv_general_dilated": convolution,
    "dot_general": dot_general,
    "reduce_sum": _reduce_sum,
    "cumsum": _cumsum,
    "reduce_window_sum": _reduce_window_sum,
    "reduce_window_max": _reduce_window_max,
    "reduce_window_min": _reduce_window_max,
    "concatenate": concatenate,
    "stack": concatenate,
    "dynamic_update_slice": _update(2),
    "scatter": _scatter,
    "branches": lambda step, operands: max_bound(active_operands(operands)),
}


class LipschitzDomain(_jaxpr.Domain):
    """Bounds in place of what depends on the images; all else is computed."""

    def is_active(self, value: Any) -> bool:
        """Tell whether a value depends on the images."""
        return depends_on_input(value)

    def apply(self, step: _jaxpr.Step, operands: Values) -> Values:
        """Return the outputs of an operation; raise as `propagate` does."""
        return propagate(step, operands)

    def apply_call(self, step: _jaxpr.Step, operands: Values) -> Values | None:
        """Refuse a conditional that the images choose in; enter all other calls."""
        return propagate(step, operands) if step.name == "cond" and depends_on_input(operands[0]) else None

    def choose(self, step: _jaxpr.Step, index: Any, alternatives: Values) -> Any:
        """Return a bound for whichever branch is taken."""
        active = any(map(depends_on_input, alternatives))
        return propagate(step, alternatives)[0] if active else super().choose(step, index, alternatives)

    def row(self, step: _jaxpr.Step, value: Any, k: int) -> Any:
        """Return one row of a value."""
        return propagate(step, [value])[0] if depends_on_input(value) else super().row(step, value, k)

    def stack(self, step: _jaxpr.Step, rows: Values) -> Any:
        """Return the rows as one value."""
        return propagate(step, rows)[0] if any(map(depends_on_input, rows)) else super().stack(step, rows)

    def at_tap(self, value: Any) -> Any:
        """Record the value at a tap."""
        return value_at_tap(value)
