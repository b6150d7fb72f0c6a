"""Values of a program that depend neither on the images nor on parameters: index tables, masks, resampling weights.

They are evaluated with NumPy, when they are asked for, so that reading a program starts no device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stabjax._jaxpr._program import JIT, body, is_dropped, is_literal, opened

LARGEST = 2**22
"""Entries of the largest constant that is evaluated."""


class Constant:
    """An output of an equation, or a given value; `value` is None where it cannot be told."""

    def __init__(self, equation: Any = None, operands: Sequence[Any] = (), output: int = 0, given: Any = None) -> None:
        self.equation, self.operands, self.output = equation, operands, output
        self._known = equation is None
        self._value = given

    @property
    def value(self) -> np.ndarray | None:
        """The array."""
        if not self._known:
            self._known = True
            outputs = _evaluate(self.equation, [operand.value for operand in self.operands])
            self._value = None if outputs is None else outputs[self.output]
        return self._value


def literal(value: Any) -> Constant:
    """A constant of this value; None stands for one that is not known."""
    return Constant(given=None if value is None else np.asarray(value))


def _evaluate(equation: Any, operands: Sequence[np.ndarray | None]) -> list[Any] | None:
    rule = _RULES.get(equation.primitive.name)
    sizes = [getattr(var.aval, "size", LARGEST + 1) for var in equation.outvars]
    if rule is None or max(sizes, default=0) > LARGEST or any(operand is None for operand in operands):
        return None
    with np.errstate(all="ignore"):
        result = rule(equation, *operands)
    if result is None:
        return None
    outputs = result if isinstance(result, list) else [result]
    return [
        None if value is None else np.asarray(value).astype(var.aval.dtype) if hasattr(var.aval, "dtype") else value
        for value, var in zip(outputs, equation.outvars)
    ]


def _call(equation: Any, *operands: np.ndarray) -> list[np.ndarray | None]:
    jaxpr, consts = opened(body(equation))
    known: dict[Any, Any] = dict(zip(jaxpr.invars, operands)) | dict(zip(jaxpr.constvars, map(np.asarray, consts)))
    for inner in jaxpr.eqns:
        outputs = _evaluate(inner, [atom.val if is_literal(atom) else known.get(atom) for atom in inner.invars])
        known |= zip((var for var in inner.outvars if not is_dropped(var)), outputs or [None] * len(inner.outvars))
    return [np.asarray(atom.val) if is_literal(atom) else known.get(atom) for atom in jaxpr.outvars]


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda equation, *operands: function(*operands)


def _broadcast(equation: Any, x: np.ndarray) -> np.ndarray:
    shape = [1] * len(equation.params["shape"])
    for axis, place in enumerate(equation.params["broadcast_dimensions"]):
        shape[place] = np.shape(x)[axis]
    return np.broadcast_to(np.reshape(x, shape), equation.params["shape"])


def _iota(equation: Any) -> np.ndarray:
    params = equation.params
    line = np.arange(params["shape"][params["dimension"]])
    shape = [-1 if axis == params["dimension"] else 1 for axis in range(len(params["shape"]))]
    return np.broadcast_to(line.reshape(shape), params["shape"])


def _slice(equation: Any, x: np.ndarray) -> np.ndarray:
    params = equation.params
    strides = params["strides"] or (1,) * np.ndim(x)
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _select(equation: Any, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.choose(which.astype(int), cases) if np.ndim(which) else cases[int(which)]


def _truncated(name: str) -> Callable[..., Any]:
    def divide(equation: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if np.issubdtype(np.asarray(a).dtype, np.inexact):
            return np.divide(a, b) if name == "div" else np.fmod(a, b)
        return np.fmod(a, b) if name == "rem" else np.trunc(np.true_divide(a, b))

    return divide


def _reducer(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda equation, x: function(x, axis=tuple(int(axis) for axis in equation.params["axes"]))


def _accumulated(equation: Any, x: np.ndarray) -> np.ndarray:
    axis = equation.params["axis"]
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if equation.params["reverse"] else np.cumsum(x, axis)


def _rounded(equation: Any, x: np.ndarray) -> np.ndarray:
    """Halves go away from zero, or to the even neighbour."""
    if int(equation.params["rounding_method"]) == 1:
        return np.rint(x)
    return np.where(np.abs(x - np.trunc(x)) == 0.5, x + np.copysign(0.5, x), np.rint(x))


def _reshape(equation: Any, x: np.ndarray) -> np.ndarray:
    order = equation.params.get("dimensions")
    return np.reshape(x if order is None else np.transpose(x, order), equation.params["new_sizes"])


def _pad(equation: Any, x: np.ndarray, filling: np.ndarray) -> np.ndarray:
    """Padded, cut where that is negative, and spread apart."""
    for axis, (low, high, interior) in enumerate(equation.params["padding_config"]):
        length = x.shape[axis]
        places = np.arange(length) * (interior + 1) + low
        total = low + high + length + max(length - 1, 0) * interior
        inside = (places >= 0) & (places < total)
        line = np.moveaxis(np.full((*x.shape[:axis], total, *x.shape[axis + 1 :]), filling, x.dtype), axis, 0)
        line[places[inside]] = np.moveaxis(x, axis, 0)[inside]
        x = np.moveaxis(line, 0, axis)
    return x


def _window_sum(equation: Any, x: np.ndarray) -> np.ndarray | None:
    """Sums over windows, as the number of pixels that an average counts."""
    params = equation.params
    if any(side > 1 for name in ("base_dilation", "window_dilation") for side in params.get(name) or ()):
        return None
    x = np.pad(x, params["padding"])
    seen = np.lib.stride_tricks.sliding_window_view(x, params["window_dimensions"])
    return seen[tuple(slice(None, None, step) for step in params["window_strides"])].sum(tuple(range(-x.ndim, 0)))


def _dot(equation: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    (left, right), batch = equation.params["dimension_numbers"]
    return None if any(batch) else np.tensordot(a, b, (tuple(left), tuple(right)))


_ALIKE = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum, "neg": np.negative,
    "abs": np.abs, "floor": np.floor, "ceil": np.ceil, "sign": np.sign, "exp": np.exp, "log": np.log, "pow": np.power,
    "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "square": np.square, "rsqrt": lambda x: x**-0.5,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert, "is_finite": np.isfinite,
    "clamp": lambda low, x, high: np.clip(x, low, high), "exp2": np.exp2, "sinc": np.sinc,
    "convert_element_type": np.asarray, "copy": np.asarray, "copy_p": np.asarray, "stop_gradient": np.asarray,
}  # fmt: skip

_RULES: dict[str, Callable[..., Any]] = {name: _elementwise(function) for name, function in _ALIKE.items()} | {
    "div": _truncated("div"),
    "rem": _truncated("rem"),
    "integer_pow": lambda equation, x: np.power(x, equation.params["y"]),
    "select_n": _select,
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": lambda equation, x: np.squeeze(x, tuple(equation.params["dimensions"])),
    "expand_dims": lambda equation, x: np.expand_dims(x, tuple(equation.params["dimensions"])),
    "transpose": lambda equation, x: np.transpose(x, equation.params["permutation"]),
    "rev": lambda equation, x: np.flip(x, tuple(equation.params["dimensions"])),
    "concatenate": lambda equation, *parts: np.concatenate(parts, equation.params["dimension"]),
    "slice": _slice,
    "reduce_sum": _reducer(np.sum),
    "reduce_max": _reducer(np.max),
    "reduce_min": _reducer(np.min),
    "reduce_prod": _reducer(np.prod),
    "reduce_and": _reducer(np.all),
    "reduce_or": _reducer(np.any),
    "cumsum": _accumulated,
    "round": _rounded,
    "pad": _pad,
    "reduce_window_sum": _window_sum,
    "dot_general": _dot,
    **dict.fromkeys(JIT, _call),
}
