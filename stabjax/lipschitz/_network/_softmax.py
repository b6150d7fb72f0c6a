"""Softmax and its relatives, recognized in the operations that programs write them as.

With ``p = softmax(u)`` over ``n`` entries, and Euclidean norms:

- ``log sum exp`` has gradient ``p``, and ``|p| <= 1``.
- softmax has Jacobian ``J = diag(p) - p p'``, symmetric, with row sums ``sum_j |J_ij| = 2 p_i (1 - p_i) <= 1/2``: its
  norm is at most 1/2, which two equal entries attain (Nair 2025, arXiv 2510.23012; 1 in Gao, Pavel 2017, arXiv
  1704.00805).
- the logarithm of softmax has Jacobian ``I - 1 p'``, a projection along the constants; its norm is that of ``1 p'``,
  which is ``sqrt(n) |p| <= sqrt(n)``, approached where one entry leads.

Programs subtract the largest entry first. That changes nothing: softmax and its logarithm do not see a constant,
whatever it depends on, and ``log sum exp`` gets it back. So sums of exponentials are kept as ``exp(l)``, ``l = log sum
exp``, and a quotient of exponentials is one of a difference. The usual program, and the part each value is of it::

    c = max u               r = u - c            Difference(u, c)
    e = exp r                                    exp as a function of r
    s = sum e                                    SumExp, or exp of its log: LogSumExp(r; u, c)
    e / s                                        Softmax:     exp(r - log s)
    r - log s                                    LogSoftmax:  u - log sum exp u
    log s + c                                    LogSumExp(u)
"""

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import numpy as np

from stabjax import _jaxpr
from stabjax.lipschitz._network._elementwise import IDENTITY, ScalarFunction, lipschitz_constant
from stabjax.lipschitz._network._lipschitz_value import LipschitzValue, Root, compose, select
from stabjax.lipschitz._network._selection import IndexMap, materialize, select_all

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Difference:
    """A value minus another, of the shape ``other_shape``, which broadcasts."""

    value: LipschitzValue
    other: LipschitzValue
    other_shape: Shape


@dataclass(frozen=True, eq=False)
class LogSumExp:
    """``log sum_axes exp v`` of ``v = exponent``; ``value = v + other``, with ``other`` constant along the axes."""

    exponent: LipschitzValue
    shape: Shape
    axes: tuple[int, ...]
    value: LipschitzValue
    other: LipschitzValue | None = None
    other_shape: Shape = ()

    @property
    def entries(self) -> int:
        """Number of terms of each sum."""
        return prod(self.shape[axis] for axis in self.axes)


@dataclass(frozen=True, eq=False)
class SumExp:
    """``exp(log)``, where that has a bound of its own."""

    log: LipschitzValue


@dataclass(frozen=True, eq=False)
class LogSoftmax:
    """``log softmax`` of a value over so many entries."""

    value: LipschitzValue
    entries: int


@dataclass(frozen=True, eq=False)
class Softmax:
    """``exp(log)`` with ``log`` a `LogSoftmax`."""

    log: LipschitzValue


def match_softmax(step: _jaxpr.Step, operands: list[Any]) -> LipschitzValue | None:
    """Return the output of an operation that is part of a softmax; None if it is none."""
    active = [operand for operand in operands if isinstance(operand, LipschitzValue)]
    if not active or not step.results:
        return None
    name, shape = step.name, step.results[0].shape
    if name == "exp":
        return _exp_rule(operands[0])
    if name == "log":
        return _log_of(operands[0])
    if name == "reduce_sum":
        return _sum_exp_rule(operands[0], step.shapes[0], tuple(map(int, step.params["axes"])))
    if len(active) != 2 or len(operands) != 2:
        return None
    # Only quotients, differences and sums of two values that both depend on the images are left.
    first, second = operands
    if name == "div":
        # exp(a) / exp(b) = exp(a - b): a quotient is a softmax exactly if the difference of the logarithms is a log
        # softmax.
        logs = _log_of(first), _log_of(second)
        if logs[0] is None or logs[1] is None:
            return None
        log = _log_softmax(logs[0], logs[1], step.shapes, shape)
        return None if log is None else _exp_rule(log)
    if name == "sub":
        return _log_softmax(first, second, step.shapes, shape)
    if name in ("add", "add_any") and step.shapes[0] == step.shapes[1] == shape:
        return _restore_shift(first, second, shape) or _restore_shift(second, first, shape)
    return None


def as_difference(step: _jaxpr.Step, operands: list[Any]) -> Difference | None:
    """Record a difference of two values of one shape, or of which the second broadcasts; None for other operations."""
    if step.name != "sub" or step.shapes[0] != step.results[0].shape:
        return None
    value, other = operands
    return Difference(value, other, step.shapes[1])


def _are_equal(one: LipschitzValue, two: LipschitzValue, shape: Shape) -> bool:
    """Tell whether two values of this shape are the same, also if each was computed by itself."""
    if one.root is two.root:
        return one.function.instructions() == two.function.instructions()
    # Two roots may still be one value: u - c, written twice. They are equal if u is, if c is taken from the same
    # entries, and if the entries of both differences stand in the same order.
    first, second = _part_of(one), _part_of(two)
    if not isinstance(first, Difference) or not isinstance(second, Difference):
        return False
    if first.other_shape != second.other_shape or not _are_equal(first.value, second.value, shape):
        return False
    (key, indices), (other_key, other_indices) = (_index_map(part.other, part.other_shape) for part in (first, second))
    return (
        key == other_key
        and _same_entries(indices, other_indices)
        and _same_entries(*(_index_map(v, shape)[1] for v in (one, two)))
    )


def _same_entries(one: IndexMap, two: IndexMap) -> bool:
    """Tell whether these are the same entries in the same order; of constants, which may differ, that is not known."""
    if one.is_identity and two.is_identity:
        return one.shape == two.shape
    both = materialize(one, two)
    return both is not None and np.array_equal(both[0], both[1]) and bool((both[0] >= 0).all())


def _log_of(value: LipschitzValue) -> LipschitzValue | None:
    """Return ``l`` for a value that is ``exp(l)``, or entries of one; None for others."""
    if value.function.name == "exp":
        # The root and its bound stay: dropping the exponential only changes the function of the root.
        return LipschitzValue(value.bound, value.factor, value.root, value.function.operands[0])
    part, selection = _part_of(value), value.root.selection
    if not isinstance(part, SumExp | Softmax):
        return None
    if selection is None:
        return part.log
    # Entries of exp(l), moved: the same entries of l. Indices do not change under a function of single entries.
    root = Root(selection=replace(selection, key=(part.log.root,), bound=part.log.bound))
    return LipschitzValue(part.log.bound, value.factor, root)


def _part_of(value: LipschitzValue) -> Any:
    """Return what the value is in a softmax, also where its entries were moved; None if it is nothing."""
    if value.function is not IDENTITY:
        return None
    selection = value.root.selection
    if selection is None:
        return value.root.softmax_part
    # A key is a root, and then the functions applied to it: with one of these the entries are no part of a softmax.
    return selection.key[0].softmax_part if len(selection.key) == 1 else None


def _index_map(value: LipschitzValue, shape: Shape) -> tuple[Any, IndexMap]:
    """Return a key of what the entries are taken from, and which they are."""
    selection = value.root.selection or select_all(value.root, value.bound, shape)
    return (selection.key, value.function.instructions()), selection.index_map


def _broadcast_indices(indices: IndexMap, shape: Shape, axes: tuple[int, ...]) -> np.ndarray | None:
    """Broadcast indices to a value of this shape; to its first row alone, if that stands for all."""
    same_rows = indices.same_rows and indices.shape[0] == shape[0] and 0 not in axes
    # (1 or batch, *rest) -> (1 or batch, *shape[1:]). One row stands for all unless the sum runs over the rows.
    full = indices.materialize(same_rows=same_rows)
    if full is None or full.ndim != len(shape):
        return None
    return np.broadcast_to(full, (1, *shape[1:]) if same_rows else shape)


def _exp_rule(value: LipschitzValue) -> LipschitzValue | None:
    """Bound ``exp(log softmax u)`` by 1/2 times ``u``."""
    part = value.root.softmax_part
    if value.function is not IDENTITY or not isinstance(part, LogSoftmax):
        return None
    # The softmax of a single entry is 1, whatever the entry.
    result = compose(part.value, 0.5 if part.entries > 1 else 0.0)
    return _with_part(result, Softmax(value))


def _with_part(value: LipschitzValue, part: Any) -> LipschitzValue:
    """Return the value with what it is in a softmax."""
    return LipschitzValue(value.bound, value.factor, Root(softmax_part=part), value.function)


def _sum_exp_rule(value: LipschitzValue, shape: Shape, axes: tuple[int, ...]) -> LipschitzValue | None:
    """Bound ``sum exp v`` as ``exp(log sum exp v)``, whose logarithm has constant 1; None for other sums.

    If ``v = u - c`` with ``c`` constant along the summed axes, ``u`` is recorded too.
    """
    if value.function.name != "exp":
        return None
    exponent = LipschitzValue(value.bound, value.factor, value.root, value.function.operands[0])
    part = LogSumExp(exponent, shape, axes, exponent)
    difference = exponent.root.softmax_part if exponent.function is IDENTITY else None
    if isinstance(difference, Difference):
        indices = _broadcast_indices(_index_map(difference.other, difference.other_shape)[1], shape, axes)
        # `indices` says which entry of c each entry of u was lowered by. Along the summed axes it must be one and the
        # same: then sum exp(u - c) = exp(-c) sum exp(u), and c can be added back to the logarithm.
        if indices is not None and all((indices == indices.take([0], axis)).all() for axis in axes):
            part = LogSumExp(exponent, shape, axes, difference.value, difference.other, difference.other_shape)
    log = _with_part(compose(exponent, 1.0), part)
    # If the exponential has a bounded slope (of a bounded argument), so has the sum: sqrt(n), the norm of a row of
    # ones. Else only the logarithm has a bound, and the sum is kept as the exponential of that.
    if np.isfinite(lipschitz_constant(value.function)):
        return _with_part(compose(value, sqrt(part.entries)), SumExp(log))
    return LipschitzValue(log.bound, log.factor, log.root, ScalarFunction("exp", (IDENTITY,)))


def _log_softmax(value: LipschitzValue, log: LipschitzValue, shapes: Any, shape: Shape) -> LipschitzValue | None:
    """Recognize ``v - log sum exp v``; its constant with respect to ``u`` is ``sqrt(n)``."""
    part = _part_of(log)
    # The value must have the full shape of u, and the log of the sums may broadcast to it, as (batch, 1) to (batch, n).
    if not isinstance(part, LogSumExp) or shapes[0] != shape or part.shape != shape:
        return None
    if not _are_equal(part.exponent, value, shape):
        return None
    sums = _broadcast_indices(_index_map(log, shapes[1])[1], shape, part.axes)
    if sums is None:
        return None
    # Each entry must meet the sum of its own group: sums numbered in order, spread along the axes summed over.
    group_sides = [1 if axis in part.axes else side for axis, side in enumerate(sums.shape)]
    if not np.array_equal(sums, np.broadcast_to(np.arange(prod(group_sides)).reshape(group_sides), sums.shape)):
        return None
    result = compose(part.value, sqrt(part.entries) if part.entries > 1 else 0.0)
    return _with_part(result, LogSoftmax(part.value, part.entries))


def _restore_shift(log: LipschitzValue, other: LipschitzValue, shape: Shape) -> LipschitzValue | None:
    """Recognize ``log sum exp (u - c) + c``, which is ``log sum exp u``, with constant 1."""
    part = _part_of(log)
    # For u (batch, n), summed over axis 1: c is (batch, 1), or was broadcast; log and other are (batch,) or (batch, 1).
    if not isinstance(part, LogSumExp) or part.other is None:
        return None
    (key, indices), (other_key, other_indices) = _index_map(other, shape), _index_map(part.other, part.other_shape)
    materialized = materialize(other_indices, indices, _index_map(log, shape)[1], same_rows=0 not in part.axes)
    if key != other_key or materialized is None:
        return None
    # `groups` says which entry of c each term was lowered by, `sums` which sum stands where, `added` which entry of c
    # is added there: it must be that of the sum's group.
    groups, added, sums = materialized
    if groups.ndim != len(part.shape):
        return None
    # groups (rows, ...) -> 1 along the summed axes. There all entries are equal, as `_sum_exp_rule` has checked, so the
    # first one stands for its group; flattened, the array says for every sum which entry of c belongs to it.
    rows = len(groups) if 0 not in part.axes else part.shape[0]
    groups = np.broadcast_to(groups, (rows, *part.shape[1:]))
    for axis in part.axes:
        groups = groups.take([0], axis)
    if not np.array_equal(groups.ravel()[sums], added):
        return None
    result = _with_part(compose(part.value, 1.0), LogSumExp(part.value, part.shape, part.axes, part.value))
    if log.root.selection is None:
        return result
    # The log may itself be entries of the sums that were moved: the same entries of the result.
    return select(result, replace(log.root.selection, key=(result.root,), bound=result.bound), 1.0)
