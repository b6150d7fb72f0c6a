"""Values of a program that depend neither on the images nor on parameters: index tables, masks, resampling weights.

They are evaluated with NumPy, when they are asked for. `Step.compute` would run the equation instead, in a tenth of the
code, but it starts a device and compiles every equation by itself: for a network with one linear enlargement and one
average pool that leaves its padding out, 25 compilations and 630 ms instead of 19 ms for all extents, most of which is
tracing (JAX 0.10 on a CPU). A residual network of 50 layers needs no constant at all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stabjax._jaxpr import Step

LARGEST = 2**22
"""Entries of the largest constant that is evaluated."""


class Constant:
    """An output of an operation on constants, or a given array; `value` is None where it cannot be told."""

    def __init__(self, step: Step | None, operands: Sequence[Any] = (), output: int = 0) -> None:
        self.step, self.operands, self.output = step, operands, output
        self._known = step is None
        self._value: np.ndarray | None = None

    @classmethod
    def of(cls, value: Any) -> "Constant":
        """Return the constant of this value; None stands for one that is not known."""
        constant = cls(None)
        constant._value = None if value is None else np.asarray(value)
        return constant

    @property
    def value(self) -> np.ndarray | None:
        """The array."""
        if not self._known and self.step is not None:
            # Before the evaluation, so that one that fails is not tried again.
            self._known = True
            outputs = evaluate(self.step, [operand.value for operand in self.operands])
            self._value = None if outputs is None else outputs[self.output]
        return self._value


def evaluate(step: Step, operands: Sequence[np.ndarray | None]) -> list[Any] | None:
    """Return the outputs of an operation on arrays, each None where it cannot be told; None if none can."""
    rule = _call if step.is_jit else _RULES.get(step.name)
    known = [operand for operand in operands if operand is not None]
    sizes = [result.size for result in step.results]
    # The rules take arrays: with one operand unknown, no output is known.
    if rule is None or max(sizes, default=0) > LARGEST or len(known) < len(operands):
        return None
    with np.errstate(all="ignore"):
        made = rule(step, *known)
        if made is None:
            return None
        outputs = made if isinstance(made, list) else [made]
        return [
            # NumPy promotes otherwise than JAX: the dtype is that of the program.
            None if value is None else np.asarray(value).astype(result.dtype)
            for value, result in zip(outputs, step.results, strict=True)
        ]


def _call(step: Step, *operands: np.ndarray) -> list[np.ndarray | None]:
    return [output.value for output in step.enter(list(map(Constant.of, operands)), constant=Constant.of)]


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda step, *operands: function(*operands)


def _broadcast(step: Step, x: np.ndarray) -> np.ndarray:
    # x (3,) at place 1 of (2, 3, 4): (3,) -> (1, 3, 1) -> (2, 3, 4).
    shape = [1] * len(step.params["shape"])
    for axis, place in enumerate(step.params["broadcast_dimensions"]):
        shape[place] = np.shape(x)[axis]
    return np.broadcast_to(np.reshape(x, shape), step.params["shape"])


def _iota(step: Step) -> np.ndarray:
    params = step.params
    # Counts along one axis, the same along all others.
    line = np.arange(params["shape"][params["dimension"]])
    shape = [-1 if axis == params["dimension"] else 1 for axis in range(len(params["shape"]))]
    return np.broadcast_to(line.reshape(shape), params["shape"])


def _slice(step: Step, x: np.ndarray) -> np.ndarray:
    params = step.params
    strides = params["strides"] or (1,) * np.ndim(x)
    return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _select(step: Step, which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    return np.choose(which.astype(int), cases) if np.ndim(which) else cases[int(which)]


def _truncated(name: str) -> Callable[..., Any]:
    def divide(step: Step, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # Integer quotients round to zero in XLA, -7 / 2 = -3, and down in NumPy's //.
        if np.issubdtype(np.asarray(a).dtype, np.inexact):
            return np.divide(a, b) if name == "div" else np.fmod(a, b)
        return np.fmod(a, b) if name == "rem" else np.trunc(np.true_divide(a, b))

    return divide


def _reducer(function: Callable[..., Any]) -> Callable[..., Any]:
    def reduce(step: Step, x: np.ndarray) -> Any:
        # NumPy knows no largest of no numbers.
        return function(x, axis=tuple(int(axis) for axis in step.params["axes"])) if x.size else None

    return reduce


def _accumulated(step: Step, x: np.ndarray) -> np.ndarray:
    axis = step.params["axis"]
    # In reverse every entry adds up itself and those behind it.
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if step.params["reverse"] else np.cumsum(x, axis)


def _rounded(step: Step, x: np.ndarray) -> np.ndarray:
    """Round halves away from zero, or to the even neighbor."""
    if int(step.params["rounding_method"]) == 1:
        return np.rint(x)
    return np.where(np.abs(x - np.trunc(x)) == 0.5, x + np.copysign(0.5, x), np.rint(x))


def _reshape(step: Step, x: np.ndarray) -> np.ndarray:
    order = step.params.get("dimensions")
    return np.reshape(x if order is None else np.transpose(x, order), step.params["new_sizes"])


def _pad(step: Step, x: np.ndarray, filling: np.ndarray) -> np.ndarray:
    return _padded(x, filling, step.params["padding_config"])


def _padded(x: np.ndarray, filling: Any, config: Sequence[Sequence[int]]) -> np.ndarray:
    """Pad, cut where that is negative, and spread apart: low, high and interior for each axis, as in `lax.pad`."""
    for axis, (low, high, interior) in enumerate(config):
        # Entry k goes to place low + k (interior + 1) of a line of all places; what falls outside of it is cut:
        #
        #     low 1, high 1, interior 1     . 0 . 1 . 2 .
        #     low -1                        0 1 2  ->  1 2
        length = x.shape[axis]
        places = np.arange(length) * (interior + 1) + low
        total = low + high + length + max(length - 1, 0) * interior
        inside = (places >= 0) & (places < total)
        # A view with the axis in front: (places, all other axes).
        line = np.moveaxis(np.full((*x.shape[:axis], total, *x.shape[axis + 1 :]), filling, x.dtype), axis, 0)
        line[places[inside]] = np.moveaxis(x, axis, 0)[inside]
        x = np.moveaxis(line, 0, axis)
    return x


def _window_sum(step: Step, x: np.ndarray) -> np.ndarray:
    """Add windows up, as to count the pixels of an average."""
    params, shape, ones = step.params, step.results[0].shape, (1,) * x.ndim
    spread, dilation = params.get("base_dilation") or ones, params.get("window_dilation") or ones
    if 0 in shape:  # a window that is larger than the array
        return np.zeros(shape)
    x = _padded(x, 0, [(low, high, apart - 1) for (low, high), apart in zip(params["padding"], spread, strict=True)])
    # A window of 3 with dilation 2 spans 5 entries, of which it reads every other.
    spans = [(side - 1) * apart + 1 for side, apart in zip(params["window_dimensions"], dilation, strict=True)]
    # (*sides) -> (*windows, *spans); every stride-th window, summed over the entries that it reads.
    seen = np.lib.stride_tricks.sliding_window_view(x, spans)
    strides = [*params["window_strides"], *dilation]
    return seen[tuple(slice(None, None, stride) for stride in strides)].sum(tuple(range(-x.ndim, 0)))


def _dot(step: Step, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    (left, right), batch = step.params["dimension_numbers"]
    # Without shared axes tensordot has the axes of dot_general: free ones of a, then those of b.
    return None if any(batch) else np.tensordot(a, b, (tuple(left), tuple(right)))


# Entry by entry. Their parameters do not matter: `evaluate` brings what they give to the dtype of the program.
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
    "integer_pow": lambda step, x: np.power(x, step.params["y"]),
    "select_n": _select,
    "iota": _iota,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": lambda step, x: np.squeeze(x, tuple(step.params["dimensions"])),
    "expand_dims": lambda step, x: np.expand_dims(x, tuple(step.params["dimensions"])),
    "transpose": lambda step, x: np.transpose(x, step.params["permutation"]),
    "rev": lambda step, x: np.flip(x, tuple(step.params["dimensions"])),
    "concatenate": lambda step, *parts: np.concatenate(parts, step.params["dimension"]),
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
}
