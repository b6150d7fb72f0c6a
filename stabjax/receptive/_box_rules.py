"""What a value sees of the image after each kind of operation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stabjax._jaxpr._constants import Constant
from stabjax._jaxpr._parameters import is_dense, nonzero
from stabjax._jaxpr._primitives import AFFINE, NONLINEAR, SCATTERS, VIEWS, WINDOWS
from stabjax.receptive import _box, _box_reshape, _box_selection
from stabjax.receptive._box import Span
from stabjax.receptive._box_values import Seen, Value, each, inexact, joined, stretched
from stabjax.receptive._box_windows import slid


def follow(equation: Any, operands: list[Any]) -> list[Any] | None:
    """What the outputs of an operation see, one of its operands at least being seen; None if it is not known."""
    name = equation.primitive.name
    if name in VIEWS and len(equation.outvars) > 1:
        return operands
    rule = _elementwise if name in AFFINE or name in NONLINEAR else _RULES.get(name)
    result = None if rule is None else rule(equation, operands)
    return result if result is None or isinstance(result, list) else [result]


def anything(var: Any, sides: Sequence[int]) -> Seen:
    """A value of which nothing is known: it may see the whole image."""
    rank = len(getattr(var.aval, "shape", ()))
    return tuple(_box.whole(rank, side, exact=False) for side in sides)


def _elementwise(equation: Any, operands: list[Any]) -> Any:
    name, shape = equation.primitive.name, equation.outvars[0].aval.shape
    if name == "select_n" and not isinstance(operands[0], tuple):
        return _chosen(operands, shape)
    seen = []
    for atom, operand in zip(equation.invars, operands):
        if isinstance(operand, tuple):
            seen.append(operand if atom.aval.shape == shape else _fitted(operand, atom.aval.shape, equation.outvars[0]))
    result: Any = joined(seen)
    if name == "mul" and len(seen) == 1:
        for atom, operand in zip(equation.invars, operands):
            if not isinstance(operand, tuple) and atom.aval.size > 1:
                result = _masked(result, operand)
    return result


def _fitted(seen: Seen, old: tuple[int, ...], var: Any) -> Seen:
    """Axes of length one, and single entries, stretched as an elementwise operation does."""
    new = var.aval.shape
    if len(old) != len(new):
        return stretched(seen, var)
    return tuple(_box.spread_over(span, len(new), range(len(new)), new, old) for span in seen)


def _masked(seen: Seen, factor: Any) -> Seen:
    """What is multiplied by zero is not seen."""
    if is_dense(factor):
        return seen
    table = nonzero(factor)
    return tuple(_box.inexact(span) if table is None else _box.only(span, table) for span in seen)


def _chosen(operands: list[Any], shape: tuple[int, ...]) -> Any:
    """A choice that the images have no part in: exact where its table is known."""
    which, cases = operands[0], operands[1:]
    table = which.value if isinstance(which, Constant) else None
    if table is None:
        return inexact(joined(cases))
    if np.ndim(table) == 0:
        return cases[int(table)]
    table = np.broadcast_to(table.astype(int), shape)
    parts = [
        tuple(_box.only(span, table == k) for span in case) for k, case in enumerate(cases) if isinstance(case, tuple)
    ]
    others = [case.value for k, case in enumerate(cases) if not isinstance(case, tuple) and (table == k).any()]
    # What is masked by another number than zero, as before a softmax, may vanish later on, and that is not followed.
    zero = all(value is not None and not value.any() for value in others)
    return joined(parts) if zero else inexact(joined(parts))


def _convolution(equation: Any, operands: list[Any]) -> Any:
    image, kernel = operands
    params = equation.params
    numbers = params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in equation.invars]
    out = equation.outvars[0].aval.shape
    if not isinstance(image, tuple) or isinstance(kernel, tuple):
        # Images that are kernels: everything may meet everything.
        return None
    groups = params["feature_group_count"]
    result, seen = [], image
    taps, exact = _taps(kernel, shapes[1], numbers.rhs_spec)
    for k, axis in enumerate(numbers.lhs_spec[2:]):
        seen = slid(
            seen,
            axis,
            shapes[0][axis],
            out[numbers.out_spec[2 + k]],
            taps=taps[k] * params["rhs_dilation"][k],
            stride=params["window_strides"][k],
            low=params["padding"][k][0],
            spread=params["lhs_dilation"][k],
        )
    for span in seen:
        span = _box.channels(span, numbers.lhs_spec[1], groups, out[numbers.out_spec[1]])
        if params["batch_group_count"] > 1:
            span = _box.mixed(span, numbers.lhs_spec[0])
        order = sorted(range(len(out)), key=numbers.out_spec.__getitem__)
        span = _box.permute(span, [numbers.lhs_spec[k] for k in order])
        result.append(span if exact else _box.inexact(span))
    return tuple(result)


def _taps(kernel: Any, shape: Sequence[int], spec: Sequence[int]) -> tuple[list[np.ndarray], bool]:
    """Which entries of a kernel are used along each of its spatial axes, and whether the others are zero throughout."""
    sides = [shape[axis] for axis in spec[2:]]
    table = None if is_dense(kernel) else nonzero(kernel)
    if table is None or not table.any():
        return [np.arange(side) for side in sides], is_dense(kernel)
    table = table.transpose(spec).reshape(-1, *sides)
    lines = [np.moveaxis(table, axis + 1, 0).reshape(side, -1).any(1) for axis, side in enumerate(sides)]
    outer = np.logical_and.reduce(np.meshgrid(*lines, indexing="ij"))
    return [np.flatnonzero(line) for line in lines], bool((table == outer).all())


def _product(equation: Any, operands: list[Any]) -> Any:
    (contracted, batch) = equation.params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in equation.invars]
    free = [[k for k in range(len(shapes[i])) if k not in contracted[i] and k not in batch[i]] for i in (0, 1)]
    shared = len(batch[0])
    out = equation.outvars[0].aval.shape
    results = []
    for side, operand in enumerate(operands):
        if not isinstance(operand, tuple):
            continue
        start = shared + (len(free[0]) if side else 0)
        places = [*range(shared), *range(start, start + len(free[side]))]
        kept = [*batch[side], *free[side]]
        other = operands[1 - side]
        spans = []
        for span in operand:
            moving = any(span.ends.shape[k + 1] > 1 for k in contracted[side])
            table = None if isinstance(other, tuple) or not moving or is_dense(other) else nonzero(other)
            if table is not None and not shared and len(contracted[0]) == 1:
                table = np.moveaxis(table, contracted[1 - side][0], 0)
                spans.append(_box_reshape.contract(span, contracted[side][0], table, kept, behind=side == 0))
                continue
            span = span if isinstance(other, tuple) or is_dense(other) or not moving else _box.inexact(span)
            mixed = _box.reduce(_box.permute(span, [*kept, *contracted[side]]), range(len(kept), len(shapes[side])))
            spans.append(_box.spread_over(mixed, len(out), places, out, [shapes[side][k] for k in kept]))
        results.append(tuple(spans))
    return joined(results)


def _pool(equation: Any, operands: list[Any]) -> list[Any] | None:
    """Windows of one array, or of several at once, as where a maximum brings its position along."""
    params, old, new = equation.params, equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    seen, ones = _alongside(equation, operands), (1,) * len(old)
    if seen is None:
        return None
    for axis in range(len(old)):
        seen = slid(
            seen,
            axis,
            old[axis],
            new[axis],
            taps=np.arange(params["window_dimensions"][axis]) * (params.get("window_dilation") or ones)[axis],
            stride=params["window_strides"][axis],
            low=params["padding"][axis][0],
            spread=(params.get("base_dilation") or ones)[axis],
        )
    return [seen] * len(equation.outvars)


def _reduction(equation: Any, operands: list[Any]) -> list[Any] | None:
    axes = [int(axis) for axis in equation.params.get("axes", equation.params.get("dimensions", ()))]
    seen = _alongside(equation, operands)
    return None if seen is None else [tuple(_box.reduce(span, axes) for span in seen)] * len(equation.outvars)


def _alongside(equation: Any, operands: list[Any]) -> Any:
    """Arrays that are reduced together; None if what they begin with depends on the image."""
    arrays, starts = operands[: len(equation.outvars)], operands[len(equation.outvars) :]
    return None if any(isinstance(start, tuple) for start in starts) else joined(arrays)


def _mixing(axes: Callable[[dict[str, Any], int], Sequence[int]]) -> Callable[[Any, list[Value]], list[Value]]:
    """All entries along some axes meet, as in a sort."""

    def rule(equation: Any, operands: list[Any]) -> list[Any]:
        seen: Any = joined(operands)
        for axis in axes(equation.params, len(equation.invars[0].aval.shape)):
            seen = tuple(_box.mixed(span, axis) for span in seen)
        return [seen] * len(equation.outvars)

    return rule


def _accumulated(equation: Any, span: Span) -> Span:
    return _box.accumulate(span, equation.params["axis"], backwards=equation.params["reverse"])


def _reverse(equation: Any, span: Span) -> Span:
    for axis in map(int, equation.params["dimensions"]):
        span = _box.reverse(span, axis)
    return span


def _broadcast(equation: Any, span: Span) -> Span:
    shape = equation.outvars[0].aval.shape
    places = [int(place) for place in equation.params["broadcast_dimensions"]]
    return _box.spread_over(span, len(shape), places, shape, equation.invars[0].aval.shape)


def _reshaped(equation: Any, span: Span) -> Span:
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    order = equation.params.get("dimensions") if equation.primitive.name == "reshape" else None
    if order is not None:
        span, old = _box.permute(span, order), [old[axis] for axis in order]
    return _box_reshape.reshape(span, old, new)


_RULES: dict[str, Callable[[Any, list[Value]], Any]] = {
    **dict.fromkeys(VIEWS, lambda equation, operands: operands[0]),
    **dict.fromkeys(WINDOWS, _pool),
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reshape": each(_reshaped),
    "squeeze": each(_reshaped),
    "expand_dims": each(_reshaped),
    "transpose": each(lambda equation, span: _box.permute(span, [int(k) for k in equation.params["permutation"]])),
    "broadcast_in_dim": each(_broadcast),
    "rev": each(_reverse),
    "slice": each(_box_selection.slicing),
    "pad": _box_selection.padding,
    "tile": each(_box_selection.tiling),
    "dynamic_slice": _box_selection.dynamic_slice,
    "dynamic_update_slice": _box_selection.update,
    **dict.fromkeys(SCATTERS, _box_selection.scatter),
    "concatenate": _box_selection.concatenation,
    "gather": _box_selection.lookup,
    "split": _box_selection.splitting,
    "stack": _box_selection.stacking,
    "unstack": _box_selection.unstacking,
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor reduce argmax argmin".split(),
        _reduction,
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), each(_accumulated)),
    "sort": _mixing(lambda params, rank: [params["dimension"]]),
    "top_k": _mixing(lambda params, rank: [params.get("axis", rank - 1) % rank]),
    "fft": _mixing(lambda params, rank: range(rank - len(params["fft_lengths"]), rank)),
}
