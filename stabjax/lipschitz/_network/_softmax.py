"""Softmax and its relatives, found in what they are written as.

With ``p = softmax(u)`` over ``n`` entries, and Euclidean norms:

- ``log sum exp`` has gradient ``p``, and ``|p| <= 1``.
- softmax has Jacobian ``J = diag(p) - p p'``, symmetric, with row sums ``sum_j |J_ij| = 2 p_i (1 - p_i) <= 1/2``: its
  norm is at most 1/2, which two equal entries attain (Nair 2025, arXiv 2510.23012; 1 in Gao, Pavel 2017, arXiv
  1704.00805).
- the logarithm of softmax has Jacobian ``I - 1 p'``, a projection along the constants; its norm is that of ``1 p'``,
  which is ``sqrt(n) |p| <= sqrt(n)``, approached where one entry leads.

Programs subtract the largest entry first. That changes nothing: softmax and its logarithm do not see a constant,
whatever it depends on, and ``log sum exp`` gets it back. So sums of exponentials are kept as ``exp(l)``, ``l = log sum
exp``, and a quotient of exponentials is one of a difference.
"""

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import numpy as np

from stabjax import _jaxpr
from stabjax.lipschitz._network._elementwise import NUMBER, Curve, steepest
from stabjax.lipschitz._network._lipschitz_value import Root, Slope, after, selected
from stabjax.lipschitz._network._selection import Places, whole, written

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Difference:
    """A value minus another."""

    value: Slope
    other: Slope
    other_shape: Shape


@dataclass(frozen=True, eq=False)
class LogSumExp:
    """``log sum_axes exp v``: ``v`` and its shape, ``u`` that differs from it by ``other``, constant along the axes."""

    exponent: Slope
    shape: Shape
    axes: tuple[int, ...]
    value: Slope
    other: Slope | None = None
    other_shape: Shape = ()

    @property
    def entries(self) -> int:
        return prod(self.shape[axis] for axis in self.axes)


@dataclass(frozen=True, eq=False)
class SumExp:
    """``exp`` of this, where that has a bound of its own."""

    log: Slope


@dataclass(frozen=True, eq=False)
class LogSoftmax:
    """``log softmax u`` over so many entries."""

    value: Slope
    entries: int


@dataclass(frozen=True, eq=False)
class Softmax:
    """``exp`` of this."""

    log: Slope


def found(step: _jaxpr.Step, operands: list[Any]) -> Slope | None:
    """The output of an operation that is part of a softmax; None if it is none."""
    active = [operand for operand in operands if isinstance(operand, Slope)]
    if not active or not step.results:
        return None
    name, shape = step.name, step.results[0].shape
    if name == "exp":
        return _exponential(operands[0])
    if name == "log":
        return _logarithm(operands[0])
    if name == "reduce_sum":
        return _summed(operands[0], step.shapes[0], tuple(map(int, step.params["axes"])), shape)
    if len(active) != 2 or len(operands) != 2:
        return None
    one, two = operands
    if name == "div":
        logs = _logarithm(one), _logarithm(two)
        if logs[0] is None or logs[1] is None:
            return None
        log = _log_softmax(logs[0], logs[1], step.shapes, shape)
        return None if log is None else _exponential(log)
    if name == "sub":
        return _log_softmax(one, two, step.shapes, shape)
    if name in ("add", "add_any") and step.shapes[0] == step.shapes[1] == shape:
        return _given_back(one, two, shape) or _given_back(two, one, shape)
    return None


def difference(step: _jaxpr.Step, operands: list[Any]) -> Difference | None:
    """What is to be kept of a difference of two values."""
    if step.name != "sub" or step.shapes[0] != step.results[0].shape:
        return None
    value, other = operands
    return Difference(value, other, step.shapes[1])


def _same(one: Slope, two: Slope, shape: Shape) -> bool:
    """Whether two values of this shape are the same, also if each was computed by itself."""
    if one.root is two.root:
        return one.curve.lines() == two.curve.lines()
    first, second = _form(one), _form(two)
    if not isinstance(first, Difference) or not isinstance(second, Difference):
        return False
    if first.other_shape != second.other_shape or not _same(first.value, second.value, shape):
        return False
    (key, places), (other_key, other_places) = (_places(form.other, form.other_shape) for form in (first, second))
    return key == other_key and _equal(places, other_places) and _equal(*(_places(v, shape)[1] for v in (one, two)))


def _equal(one: Places, two: Places) -> bool:
    """Whether they are the same entries in the same order; of constants, which may differ, that is not known."""
    if one.whole and two.whole:
        return one.shape == two.shape
    both = written(one, two)
    return both is not None and np.array_equal(both[0], both[1]) and bool((both[0] >= 0).all())


def _logarithm(value: Slope) -> Slope | None:
    """What the value is an exponential of."""
    if value.curve.name == "exp":
        return Slope(value.bound, value.factor, value.root, value.curve.operands[0])
    form, selection = _form(value), value.root.selection
    if not isinstance(form, SumExp | Softmax):
        return None
    if selection is None:
        return form.log
    root = Root(selection=replace(selection, key=(form.log.root,), bound=form.log.bound))
    return Slope(form.log.bound, value.factor, root)


def _form(value: Slope) -> Any:
    """What the root is a part of, also where its entries were handed on."""
    if value.curve is not NUMBER:
        return None
    selection = value.root.selection
    if selection is None:
        return value.root.form
    return selection.key[0].form if len(selection.key) == 1 else None


def _places(value: Slope, shape: Shape) -> tuple[Any, Places]:
    """What the entries are made of, and which."""
    selection = value.root.selection or whole(value.root, value.bound, shape)
    return (selection.key, value.curve.lines()), selection.places


def _spread(places: Places, shape: Shape, axes: tuple[int, ...]) -> np.ndarray | None:
    """The places spread over a value of this shape; over its first row alone, if that stands for all."""
    alike = places.alike and places.shape[0] == shape[0] and 0 not in axes
    made = places.written(alike=alike)
    if made is None or made.ndim != len(shape):
        return None
    return np.broadcast_to(made, (1, *shape[1:]) if alike else shape)


def _exponential(value: Slope) -> Slope | None:
    form = value.root.form
    if value.curve is not NUMBER or not isinstance(form, LogSoftmax):
        return None
    made = after(form.value, 0.5 if form.entries > 1 else 0.0)
    return _with_form(made, Softmax(value))


def _with_form(value: Slope, form: Any) -> Slope:
    return Slope(value.bound, value.factor, Root(form=form), value.curve)


def _summed(value: Slope, shape: Shape, axes: tuple[int, ...], result: Shape) -> Slope | None:
    if value.curve.name != "exp":
        return None
    exponent = Slope(value.bound, value.factor, value.root, value.curve.operands[0])
    form = LogSumExp(exponent, shape, axes, exponent)
    less = exponent.root.form if exponent.curve is NUMBER else None
    if isinstance(less, Difference):
        places = _spread(_places(less.other, less.other_shape)[1], shape, axes)
        if places is not None and all((places == places.take([0], axis)).all() for axis in axes):
            form = LogSumExp(exponent, shape, axes, less.value, less.other, less.other_shape)
    log = _with_form(after(exponent, 1.0), form)
    if np.isfinite(steepest(value.curve)):
        return _with_form(after(value, sqrt(form.entries)), SumExp(log))
    return Slope(log.bound, log.factor, log.root, Curve("exp", (NUMBER,)))


def _log_softmax(value: Slope, log: Slope, shapes: Any, shape: Shape) -> Slope | None:
    """``v - log sum exp v``."""
    form = _form(log)
    if not isinstance(form, LogSumExp) or shapes[0] != shape or form.shape != shape:
        return None
    if not _same(form.exponent, value, shape):
        return None
    found = _spread(_places(log, shapes[1])[1], shape, form.axes)
    if found is None:
        return None
    kept = [1 if axis in form.axes else side for axis, side in enumerate(found.shape)]
    if not np.array_equal(found, np.broadcast_to(np.arange(prod(kept)).reshape(kept), found.shape)):
        return None
    made = after(form.value, sqrt(form.entries) if form.entries > 1 else 0.0)
    return _with_form(made, LogSoftmax(form.value, form.entries))


def _given_back(log: Slope, other: Slope, shape: Shape) -> Slope | None:
    """``log sum exp (u - c) + c``."""
    form = _form(log)
    if not isinstance(form, LogSumExp) or form.other is None:
        return None
    (key, places), (taken, before) = _places(other, shape), _places(form.other, form.other_shape)
    written_out = written(before, places, _places(log, shape)[1], alike=0 not in form.axes)
    if key != taken or written_out is None:
        return None
    groups, given, sums = written_out
    if groups.ndim != len(form.shape):
        return None
    rows = len(groups) if 0 not in form.axes else form.shape[0]
    groups = np.broadcast_to(groups, (rows, *form.shape[1:]))
    for axis in form.axes:
        groups = groups.take([0], axis)
    if not np.array_equal(groups.ravel()[sums], given):
        return None
    made = _with_form(after(form.value, 1.0), LogSumExp(form.value, form.shape, form.axes, form.value))
    if log.root.selection is None:
        return made
    return selected(made, replace(log.root.selection, key=(made.root,), bound=made.bound), 1.0)
