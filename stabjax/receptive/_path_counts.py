"""A network with all its weights one: the paths from pixels to a unit, counted.

The traced program is interpreted as a linear function of the images. Layers add up what they read, activations hand on
what they began with, a maximum is a mean, products of activations and other choices between values are the mean of
both. So no two paths cancel, and an entry is positive exactly where a path leads to it: counted, where boxes bound it.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from stabjax._jaxpr import (
    AFFINE,
    IDENTITIES,
    NONLINEAR,
    RESHAPES,
    SCATTERS,
    VIEWS,
    WINDOWS,
    Step,
    TapSite,
    TracedProgram,
    interpret,
)
from stabjax.receptive._constants import Constant
from stabjax.receptive._masks import PARAMETER, GivenParameter, MaskDomain, Passive, is_dense, nonzero


def unit_weight_output(traced: TracedProgram, parameters: Sequence[Any], site: TapSite, x: Any) -> Any:
    """Return the value of a tap of the network with all weights one.

    Args:
        traced: the network.
        parameters: those of the program, or their shapes; they count only where they are masks.
        site: the tap.
        x: images, of a floating type of one's choice; the value is linear in them.
    """
    values = interpret(traced, PathCounts(), [*map(GivenParameter, parameters), x])
    # `interpret` returns values in the order of the sites.
    value = values[traced.sites.index(site)]
    return jnp.zeros(site.shape, x.dtype) if isinstance(value, Passive) else site.arranged(value)


class PathCounts(MaskDomain):
    """Arrays of counts."""

    def apply(self, step: Step, operands: list[Any]) -> list[Any]:
        """Return the outputs; where there is no rule, every entry counts the mean of all that goes in."""
        if step.name in VIEWS and len(step.results) > 1:
            return operands
        rule = _apply_elementwise if step.name in AFFINE or step.name in NONLINEAR else _RULES.get(step.name)
        outputs = None if rule is None else rule(step, operands)
        if outputs is None:
            # What every rule keeps: linear, no negative weights, positive where an operand that is read is positive.
            mixed = sum(jnp.mean(value) for value in _active(operands))
            return [jnp.broadcast_to(mixed, result.shape) for result in step.results]
        return outputs if isinstance(outputs, list) else [outputs]

    def apply_call(self, step: Step, operands: list[Any]) -> list[Any] | None:
        """Let an activation that is a call hand on what it gets."""
        active = _active(operands)
        if len(active) == len(step.results) == 1 and step.is_activation:
            return [jnp.broadcast_to(active[0], step.results[0].shape)]
        return None

    def at_activation(self, value: Any, start: Any) -> Any:
        """Let an activation that is written out hand on what it began with."""
        return start if not isinstance(start, Passive) and start.shape == value.shape else value

    def choose(self, step: Step, index: Any, alternatives: list[Any]) -> Any:
        """Return the mean of the branches, and of the choice between them."""
        # The index, where it is active, is a scalar, and counts as one value more.
        return _mean([*alternatives, index], step.results[0].shape)

    def row(self, step: Step, value: Any, k: int) -> Any:
        """Return row ``k``."""
        return super().row(step, value, k) if isinstance(value, Passive) else value[k]

    def stack(self, step: Step, rows: list[Any]) -> Any:
        """Return the rows as one array."""
        return jnp.stack(_fill(rows, step.shapes)) if _active(rows) else PARAMETER


def _active(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if not isinstance(value, Passive)]


def _fill(values: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Return the values, with zeros where they do not depend on the images."""
    dtype = _active(values)[0].dtype
    return [
        jnp.zeros(shape, dtype) if isinstance(value, Passive) else value
        for value, shape in zip(values, shapes, strict=True)
    ]


def _fit(value: Any, shape: tuple[int, ...]) -> Any:
    if value.ndim < len(shape):
        value = value.reshape(*[1] * (len(shape) - value.ndim), *value.shape)
    return jnp.broadcast_to(value, shape)


def _mean(values: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Return the mean of what depends on the images."""
    active = [_fit(value, shape) for value in _active(values)]
    return sum(active[1:], active[0]) / len(active) if active else PARAMETER


# Linear primitives run themselves


def _run_itself(arrays: int | None = 1) -> Callable[[Step, list[Any]], Any]:
    """Return the rule of a primitive that is linear in its first operands, so many or all, at places that are known.

    The primitive itself, with zeros for what does not depend on the images.
    """

    def rule(step: Step, operands: list[Any]) -> list[Any] | None:
        moved, places = operands[:arrays], [] if arrays is None else operands[arrays:]
        known = [place.value for place in places if isinstance(place, Constant) and place.value is not None]
        if not _active(moved) or len(known) < len(places):
            return None
        return step.apply(*_fill(moved, step.shapes[:arrays]), *[place.astype(np.int32) for place in known])

    return rule


def _apply_gather(step: Step, operands: list[Any]) -> Any:
    """Look rows up at known places."""
    table, indices = operands
    if isinstance(table, Passive) or not isinstance(indices, Constant) or indices.value is None:
        return None
    params, mode = step.params, step.params["mode"]
    # Where a row does not fit against the promise, XLA moves it until it does; the transpose would leave it out.
    if mode is lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        mode = lax.GatherScatterMode.CLIP
    places = indices.value.astype(np.int32)
    return lax.gather(table, places, params["dimension_numbers"], params["slice_sizes"], mode=mode, fill_value=0)


# Entry by entry


def _apply_elementwise(step: Step, operands: list[Any]) -> Any:
    """Add sums up, multiply by the size of a number, and average what is chosen among or multiplied."""
    name, shape = step.name, step.results[0].shape
    active = _active(operands)
    # select_n by a known table is linear in its cases.
    if name == "select_n" and isinstance(operands[0], Constant) and operands[0].value is not None:
        return step.apply(operands[0].value, *_fill(operands[1:], step.shapes[1:]))
    # A difference adds up as well: no weight is negative, and no two paths cancel.
    if name in ("add", "add_any", "sub"):
        return sum(_fit(value, shape) for value in active)
    result = _mean(active, shape)
    if name not in ("mul", "div") or len(active) > 1:
        return result
    # The other factor, or the divisor; a number divided by the image has no linear part, and counts as the identity.
    factor = operands[1] if operands[0] is active[0] else operands[0] if name == "mul" else None
    if not isinstance(factor, Constant) or factor.value is None:
        return result
    size = np.abs(np.asarray(factor.value, float))
    # A factor that is zero everywhere would end all paths, and a division by zero would make infinitely many.
    usable = np.isfinite(size).all() and size.any() and (name == "mul" or size.all())
    size = size if name == "mul" else 1 / np.where(size, size, 1)
    return result * jnp.asarray(np.broadcast_to(size, shape), result.dtype) if usable else result


# Layers


def _apply_convolution(step: Step, operands: list[Any]) -> Any:
    """Convolve with a kernel of ones, and zeros where it is masked; the channels of a group are averaged.

    Without a mask one channel stands for all: their mean goes in, and what comes out is the same for every channel.
    """
    x, kernel = operands
    if isinstance(x, Passive) or not isinstance(kernel, Passive):
        return None
    params, numbers, out = step.params, step.params["dimension_numbers"], step.results[0].shape
    shape = list(step.shapes[1])
    groups, width = params["feature_group_count"], shape[numbers.rhs_spec[1]]
    table = None if is_dense(kernel) else nonzero(kernel)
    # All outputs are equal, and read the mean of the inputs: one channel goes in, and one comes out, which is
    # broadcast in the end. Not so where channels are divided into groups, or read a part of the batch each.
    if groups == params["batch_group_count"] == 1 and table is None:
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


def _apply_product(step: Step, operands: list[Any]) -> Any:
    """Return the mean over what is contracted, of each operand that depends on the images."""
    contracted, _ = numbers = step.params["dimension_numbers"]
    count = prod(step.shapes[0][k] for k in contracted[0])
    results = []
    for side, operand in enumerate(operands):
        if isinstance(operand, Passive):
            continue
        other = operands[1 - side]
        table = other.value if isinstance(other, Constant) else None
        # A known matrix (a resampling, a mean over space) keeps its weights; any other averages over what it contracts.
        if table is not None:
            weights = np.abs(np.asarray(table, float))
        else:
            mask = None if not isinstance(other, Passive) or is_dense(other) else nonzero(other)
            weights = (np.ones(step.shapes[1 - side]) if mask is None else mask) / count
        # In the order of the operands, so that the result has its axes in theirs.
        pair = [operand, jnp.asarray(weights, operand.dtype)]
        left, right = pair if side == 0 else pair[::-1]
        results.append(lax.dot_general(left, right, numbers))
    return sum(results) / len(results)


# Pools and reductions


def _apply_pool(step: Step, operands: list[Any]) -> list[Any]:
    """Add windows up if the network does, and else average them."""
    params, count = step.params, len(step.results)
    x = _mean(operands[:count], step.shapes[0])
    ones = (1,) * x.ndim
    total = lax.reduce_window(
        x,
        np.zeros((), x.dtype),
        lax.add,
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        base_dilation=params.get("base_dilation") or ones,
        window_dilation=params.get("window_dilation") or ones,
    )
    # A sum stays one: what divides it to an average is an equation of its own.
    return [total if step.name == "reduce_window_sum" else total / prod(params["window_dimensions"])] * count


def _apply_reduction(step: Step, operands: list[Any]) -> list[Any]:
    axes = tuple(int(axis) for axis in step.params.get("axes", step.params.get("dimensions", ())))
    x = _mean(operands[: len(step.results)], step.shapes[0])
    # As for windows: a mean is a sum, and a division that follows.
    return [jnp.sum(x, axes) if step.name == "reduce_sum" else jnp.mean(x, axes)] * len(step.results)


def _apply_scatter(step: Step, operands: list[Any]) -> Any:
    """Overwrite or add at known places; a scatter that multiplies adds."""
    base, indices, parts = operands
    if not isinstance(indices, Constant) or indices.value is None:
        return None
    base, parts = _fill([base, parts], [step.shapes[0], step.shapes[2]])
    scatter = lax.scatter if step.name == "scatter" else lax.scatter_add
    numbers, mode = step.params["dimension_numbers"], step.params["mode"]
    # A part that does not fit against the promise XLA leaves out; the transpose would move it.
    if mode is lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        mode = lax.GatherScatterMode.FILL_OR_DROP
    # A transpose of a scatter that overwrites exists for unique indices only.
    return scatter(base, jnp.asarray(indices.value), parts, numbers, unique_indices=True, mode=mode)


def _mix(axis: Callable[[dict[str, Any], int], Any]) -> Callable[[Step, list[Any]], list[Any]]:
    """Return the rule of an operation in which all entries along some axes meet."""

    def rule(step: Step, operands: list[Any]) -> list[Any]:
        x = _mean(operands, step.shapes[0])
        mixed = jnp.mean(x, axis(step.params, x.ndim), keepdims=True)
        return [jnp.broadcast_to(mixed, result.shape) for result in step.results]

    return rule


def _apply_sort(step: Step, operands: list[Any]) -> list[Any]:
    """Let each array meet the keys that order it: the first operands, each of which orders those behind it."""
    axis, count = step.params["dimension"], step.params["num_keys"]
    outputs = []
    for k, operand in enumerate(operands):
        x = _mean([*operands[: min(k, count)], operand], step.shapes[0])
        outputs.append(x if isinstance(x, Passive) else _fit(jnp.mean(x, axis, keepdims=True), step.shapes[0]))
    return outputs


def _accumulate(step: Step, operands: list[Any]) -> Any:
    return lax.cumsum(operands[0], step.params["axis"], reverse=step.params["reverse"])


_REDUCTIONS = (
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor reduce argmax argmin".split()
)

_RULES: dict[str, Callable[[Step, list[Any]], Any]] = {
    **dict.fromkeys(IDENTITIES, lambda step, operands: operands[0]),
    **dict.fromkeys(RESHAPES | {"slice", "split", "unstack", "tile", "dynamic_slice"}, _run_itself()),
    "gather": _apply_gather,
    **dict.fromkeys(("pad", "dynamic_update_slice"), _run_itself(2)),
    **dict.fromkeys(("concatenate", "stack"), _run_itself(None)),
    **dict.fromkeys(WINDOWS, _apply_pool),
    **dict.fromkeys(SCATTERS, _apply_scatter),
    **dict.fromkeys(_REDUCTIONS, _apply_reduction),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), _accumulate),
    "conv_general_dilated": _apply_convolution,
    "dot_general": _apply_product,
    "sort": _apply_sort,
    "top_k": _mix(lambda params, rank: params.get("axis", rank - 1)),
    "fft": _mix(lambda params, rank: tuple(range(rank - len(params["fft_lengths"]), rank))),
}
