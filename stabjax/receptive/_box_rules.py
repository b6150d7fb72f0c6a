"""Rules for boxes: what the outputs of each primitive see of the image, from what its operands see."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from stabjax._jaxpr import AFFINE, IDENTITIES, NONLINEAR, SCATTERS, VIEWS, WINDOWS, Step
from stabjax.receptive import _box_selection
from stabjax.receptive._box import Box, is_constant, mark_inexact, whole_side
from stabjax.receptive._box_axes import (
    Boxes,
    Value,
    accumulate,
    along_all_axes,
    along_each_axis,
    as_inexact,
    broadcast,
    merge_axis,
    mix_channels,
    reduce_axes,
    restrict,
    reverse,
    stretch,
    transpose,
    unite,
)
from stabjax.receptive._box_reshape import contract, reshape
from stabjax.receptive._box_windows import slide_all
from stabjax.receptive._constants import Constant
from stabjax.receptive._masks import Passive, is_dense, nonzero


def follow(step: Step, operands: list[Value]) -> list[Any] | None:
    """Propagate boxes through one operation, an operand of which is active; None if the primitive has no rule."""
    # A view of several arrays (an optimization barrier) hands each of them on.
    if step.name in VIEWS and len(step.results) > 1:
        return operands
    rule = _follow_elementwise if step.name in AFFINE or step.name in NONLINEAR else _RULES.get(step.name)
    if rule is None:
        return None

    def apply(operands: list[Value]) -> list[Any] | None:
        outputs = rule(step, operands)
        return outputs if outputs is None or isinstance(outputs, list) else [outputs]

    return along_all_axes(apply, operands)


def unknown_boxes(shape: Sequence[int], sides: Sequence[int]) -> Boxes:
    """Return the boxes of a value of which nothing is known: it may see the whole image."""
    return tuple(whole_side(len(shape), side, exact=False) for side in sides)


# Entry by entry


def _follow_elementwise(step: Step, operands: list[Value]) -> Any:
    shape = step.results[0].shape
    if step.name == "select_n" and not isinstance(operands[0], tuple):
        return _choose(operands, shape)
    active = [
        operand if old == shape else _fit(operand, old, shape)
        for old, operand in zip(step.shapes, operands, strict=True)
        if isinstance(operand, tuple)
    ]
    result: Any = unite(active)
    # One entry alone is a number, not a mask, and is taken for one that is not zero.
    if step.name == "mul" and len(active) == 1:
        for old, operand in zip(step.shapes, operands, strict=True):
            if not isinstance(operand, tuple) and prod(old) > 1:
                result = _mask(result, operand)
    return result


def _fit(boxes: Boxes, old: tuple[int, ...], new: tuple[int, ...]) -> Boxes:
    """Stretch axes of length one, and single entries, as an elementwise operation does."""
    if len(old) != len(new):
        return stretch(boxes, new)
    return tuple(broadcast(box, len(new), range(len(new)), new, old) for box in boxes)


def _mask(boxes: Boxes, factor: Passive) -> Boxes:
    """Multiply by a constant or parameter: what is multiplied by zero is not seen."""
    if is_dense(factor):
        return boxes
    table = nonzero(factor)
    return tuple(mark_inexact(box) if table is None else restrict(box, table) for box in boxes)


def _choose(operands: list[Value], shape: tuple[int, ...]) -> Any:
    """Choose between values by what the images have no part in: exactly where the table is known."""
    which, cases = operands[0], operands[1:]
    table = which.value if isinstance(which, Constant) else None
    if table is None:
        return as_inexact(unite(cases))
    if np.ndim(table) == 0:
        return cases[int(table)]
    # select_n takes entry s from case table[s]: every case is seen where the table names it.
    table = np.broadcast_to(table.astype(int), shape)
    parts = [
        tuple(restrict(box, table == k) for box in case) for k, case in enumerate(cases) if isinstance(case, tuple)
    ]
    others = [case.value for k, case in enumerate(cases) if not isinstance(case, tuple) and (table == k).any()]
    # What is masked by another number than zero, as before a softmax, may vanish later on, and that is not followed.
    zero = all(value is not None and not value.any() for value in others)
    return unite(parts) if zero else as_inexact(unite(parts))


# Layers


def _follow_convolution(step: Step, operands: list[Value]) -> Any:
    image, kernel = operands
    if not isinstance(image, tuple) or isinstance(kernel, tuple):
        # Images that are kernels: everything may meet everything.
        return None
    params, shapes, out = step.params, step.shapes, step.results[0].shape
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    taps, exact = _used_taps(kernel, shapes[1], numbers.rhs_spec)
    # lhs_spec and out_spec are (batch, channels, *space), rhs_spec is (channels out, channels in, *space), each by its
    # position in the array: for NHWC (0, 3, 1, 2). Windows along different axes do not depend on each other.
    for k, axis in enumerate(numbers.lhs_spec[2:]):
        image = slide_all(
            image,
            axis,
            shapes[0][axis],
            out[numbers.out_spec[2 + k]],
            taps=taps[k] * params["rhs_dilation"][k],
            stride=params["window_strides"][k],
            low=params["padding"][k][0],
            spread=params["lhs_dilation"][k],
        )
    # Axes so far in the order of the images; in that of the result stands at axis a what out_spec names it.
    # From NCHW to NHWC: lhs_spec (0, 1, 2, 3), out_spec (0, 3, 1, 2), order [0, 2, 3, 1].
    order = sorted(range(len(out)), key=numbers.out_spec.__getitem__)
    result = []
    for box in image:
        box = mix_channels(box, numbers.lhs_spec[1], groups, out[numbers.out_spec[1]])
        if params["batch_group_count"] > 1 and not is_constant(box, numbers.lhs_spec[0]):
            # Each group of channels sees its part of the batch, here all of it.
            box = mark_inexact(merge_axis(box, numbers.lhs_spec[0]))
        box = transpose(box, [numbers.lhs_spec[k] for k in order])
        result.append(box if exact else mark_inexact(box))
    return tuple(result)


def _used_taps(kernel: Any, shape: Sequence[int], spec: Sequence[int]) -> tuple[list[np.ndarray], bool]:
    """Return which entries of a kernel are used along each spatial axis, and whether no others are zero.

    A mask may leave any pattern. That of whole rows and columns is the outer product of its lines, and exact; of any
    other the box holds more than is seen:

        0 0 0                  0 1 0
        1 1 1  rows 1 2        1 1 1  rows 0 1 2, columns 0 1 2, inexact
        1 1 1  columns 0 1 2   0 1 0
    """
    sides = [shape[axis] for axis in spec[2:]]
    table = None if is_dense(kernel) else nonzero(kernel)
    if table is None or not table.any():
        return [np.arange(side) for side in sides], is_dense(kernel)
    # A tap is used if it is not zero for any pair of channels.
    table = table.transpose(spec).reshape(-1, *sides)  # (channels out and in, *sides)
    lines = [np.moveaxis(table, axis + 1, 0).reshape(side, -1).any(1) for axis, side in enumerate(sides)]
    outer = np.logical_and.reduce(np.meshgrid(*lines, indexing="ij"))
    return [np.flatnonzero(line) for line in lines], bool((table == outer).all())


def _follow_product(step: Step, operands: list[Any]) -> Any:
    """Multiply along contracted axes; the result has the shared axes, those of the first operand, of the second."""
    contracted, batch = step.params["dimension_numbers"]
    shapes, out = step.shapes, step.results[0].shape
    # (b, m, k) times (b, n, k), contracted k, shared b: the result is (b, m, n), free m of the first and n of the
    # second.
    free = [[k for k in range(len(shapes[i])) if k not in contracted[i] and k not in batch[i]] for i in (0, 1)]
    shared = len(batch[0])
    results = []
    for side, operand in enumerate(operands):
        if not isinstance(operand, tuple):
            continue
        start = shared + (len(free[0]) if side else 0)
        places = [*range(shared), *range(start, start + len(free[side]))]
        kept = [*batch[side], *free[side]]
        weights = None if isinstance(operands[1 - side], tuple) else operands[1 - side]
        boxes = []
        for box in operand:
            # Zeros of a matrix matter only if the boxes differ along what is contracted.
            mixes = any(box.bounds.shape[k + 1] > 1 for k in contracted[side])
            dense = weights is None or not mixes or is_dense(weights)
            table = None if weights is None or dense else nonzero(weights)
            if table is not None and not shared and len(contracted[0]) == 1:
                # Rows are the contracted entries, columns all else: a resampling matrix moves boxes, it does not mix
                # them all.
                table = np.moveaxis(table, contracted[1 - side][0], 0)
                boxes.append(contract(box, contracted[side][0], table, kept, behind=side == 0))
                continue
            box = box if dense else mark_inexact(box)
            # (*kept, *contracted) -> (*kept) -> the axes of the result, constant along those of the other operand.
            mixed = reduce_axes(transpose(box, [*kept, *contracted[side]]), range(len(kept), len(shapes[side])))
            boxes.append(broadcast(mixed, len(out), places, out, [shapes[side][k] for k in kept]))
        results.append(tuple(boxes))
    return unite(results)


# Pools and reductions


def _follow_pool(step: Step, operands: list[Value]) -> list[Any] | None:
    """Slide windows over one array, or over several at once, as where a maximum brings its position along."""
    params, old, new = step.params, step.shapes[0], step.results[0].shape
    boxes, ones = _unite_arrays(step, operands), (1,) * len(old)
    if boxes is None:
        return None
    # A pool has a window along every axis; that of batch and channels has one entry.
    for axis in range(len(old)):
        boxes = slide_all(
            boxes,
            axis,
            old[axis],
            new[axis],
            taps=np.arange(params["window_dimensions"][axis]) * (params.get("window_dilation") or ones)[axis],
            stride=params["window_strides"][axis],
            low=params["padding"][axis][0],
            spread=(params.get("base_dilation") or ones)[axis],
        )
    return [boxes] * len(step.results)


def _follow_reduction(step: Step, operands: list[Value]) -> list[Any] | None:
    axes = [int(axis) for axis in step.params.get("axes", step.params.get("dimensions", ()))]
    boxes = _unite_arrays(step, operands)
    return None if boxes is None else [tuple(reduce_axes(box, axes) for box in boxes)] * len(step.results)


def _unite_arrays(step: Step, operands: list[Value]) -> Any:
    """Unite arrays that are reduced together; None if the numbers they begin with depend on the image."""
    arrays, starts = operands[: len(step.results)], operands[len(step.results) :]
    return None if any(isinstance(start, tuple) for start in starts) else unite(arrays)


def _merge(axes: Callable[[dict[str, Any], int], Sequence[int]]) -> Callable[[Step, list[Value]], list[Any]]:
    """Return the rule of an operation in which all entries along some axes meet, as in a sort."""

    def rule(step: Step, operands: list[Value]) -> list[Any]:
        boxes: Any = unite(operands)
        for axis in axes(step.params, len(step.shapes[0])):
            boxes = tuple(merge_axis(box, axis) for box in boxes)
        return [boxes] * len(step.results)

    return rule


def _follow_sort(step: Step, operands: list[Value]) -> list[Any]:
    """Put entries in the order of the keys: the first operand, and where that is equal the next."""
    axis, count = step.params["dimension"], step.params["num_keys"]
    outputs = []
    for k in range(len(operands)):
        # Later keys decide between entries only where all earlier ones, which are those entries themselves, are equal.
        keys = operands[: min(k, count)]
        boxes = unite([*keys, operands[k]])
        if isinstance(boxes, tuple):
            boxes = tuple(merge_axis(box, axis) for box in boxes)
        # By keys that do not depend on the image every entry goes to one place, which is not followed.
        ordered = any(isinstance(key, tuple) for key in [*keys, *operands[k:count]])
        outputs.append(boxes if ordered else as_inexact(boxes))
    return outputs


# Axes


def _accumulate(step: Step, box: Box) -> Box:
    return accumulate(box, step.params["axis"], backwards=step.params["reverse"])


def _reverse(step: Step, box: Box) -> Box:
    for axis in map(int, step.params["dimensions"]):
        box = reverse(box, axis)
    return box


def _broadcast(step: Step, box: Box) -> Box:
    shape = step.results[0].shape
    places = [int(place) for place in step.params["broadcast_dimensions"]]
    return broadcast(box, len(shape), places, shape, step.shapes[0])


def _transpose(step: Step, box: Box) -> Box:
    return transpose(box, [int(axis) for axis in step.params["permutation"]])


def _reshape(step: Step, box: Box) -> Box:
    old, new = step.shapes[0], step.results[0].shape
    order = step.params.get("dimensions") if step.name == "reshape" else None
    if order is not None:
        box, old = transpose(box, order), [old[axis] for axis in order]
    return reshape(box, old, new)


_REDUCTIONS = (
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor reduce argmax argmin".split()
)

_RULES: dict[str, Callable[[Step, list[Any]], Any]] = {
    **dict.fromkeys(IDENTITIES, lambda step, operands: operands[0]),
    **dict.fromkeys(WINDOWS, _follow_pool),
    "conv_general_dilated": _follow_convolution,
    "dot_general": _follow_product,
    "reshape": along_each_axis(_reshape),
    "squeeze": along_each_axis(_reshape),
    "expand_dims": along_each_axis(_reshape),
    "transpose": along_each_axis(_transpose),
    "broadcast_in_dim": along_each_axis(_broadcast),
    "rev": along_each_axis(_reverse),
    "slice": along_each_axis(_box_selection.follow_slice),
    "pad": _box_selection.follow_pad,
    "tile": along_each_axis(_box_selection.follow_tile),
    "dynamic_slice": _box_selection.follow_dynamic_slice,
    "dynamic_update_slice": _box_selection.follow_update,
    **dict.fromkeys(SCATTERS, _box_selection.follow_scatter),
    "concatenate": _box_selection.follow_concatenate,
    "gather": _box_selection.follow_gather,
    "split": _box_selection.follow_split,
    "stack": _box_selection.follow_stack,
    "unstack": _box_selection.follow_unstack,
    **dict.fromkeys(_REDUCTIONS, _follow_reduction),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), along_each_axis(_accumulate)),
    "sort": _follow_sort,
    "top_k": _merge(lambda params, rank: [params.get("axis", rank - 1) % rank]),
    "fft": _merge(lambda params, rank: range(rank - len(params["fft_lengths"]), rank)),
}
