"""Bounds of layers with a constant kernel: convolutions and products with an array."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from stabjax import _jaxpr
from stabjax.lipschitz._bound import DEFAULT_STEPS
from stabjax.lipschitz._dense import dense
from stabjax.lipschitz._indexed_conv import indexed_axis, indexed_conv_norm
from stabjax.lipschitz._network._lax_conv import ConvAxes, convolution_norm, scale_outputs, transposed_convolution_norm
from stabjax.lipschitz._network._lipschitz_value import (
    Layer,
    LipschitzValue,
    Root,
    Values,
    active_operands,
    as_root,
    as_selection,
    compose,
    with_bound,
)
from stabjax.lipschitz._network._selection import factor_axes, max_multiplicity


def _linear_layer(
    value: LipschitzValue, axis: int | None, norm: Callable[[Any], Array], bound: Array | None = None
) -> LipschitzValue:
    """Apply a linear layer of this norm, ``norm`` being a function of the scale of its channels.

    With a ``bound``, the norm is that of the layer and of the selection in front of it together, and ``bound`` that of
    the value selected from.
    """
    value = as_root(value)
    input_bound = value.bound if bound is None else bound
    dtype = input_bound.dtype

    def rounded(scale: Any) -> Array:
        # This may round down: `compose` and `multiply` widen the product by more than that.
        return norm(scale).astype(dtype)

    # Bound of the output = bound of the input * norm. The layer keeps its input bound and its norm as a function of the
    # scale, so that a normalization behind it can be joined: |W diag(scale)| instead of |W| max |scale|.
    output = compose(LipschitzValue(input_bound, value.factor, Root()), rounded(1.0))
    output = output if bound is None else with_bound(value, output.bound, Root())
    layer = None if axis is None else Layer(input_bound, axis, rounded)
    return LipschitzValue(output.bound, output.factor, output.root, layer=layer)


def convolution(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Bound a convolution whose kernel does not depend on the images, with a padding of the image in front of it."""
    image, kernel = operands
    params, numbers = step.params, step.params["dimension_numbers"]
    if isinstance(kernel, LipschitzValue) or params["batch_group_count"] > 1:
        return None
    # Kernels as `conv` has them: (*window, inputs / groups, outputs).
    # Each spec lists axes: lhs (batch, channels, *spatial), rhs (outputs, inputs, *spatial), out as lhs.
    out, inputs, *window = numbers.rhs_spec
    kernel = _promote(jnp.transpose(kernel, (*window, inputs, out)), image)
    axes = ConvAxes(
        tuple(step.shapes[0][axis] for axis in numbers.lhs_spec[2:]),
        tuple(step.results[0].shape[axis] for axis in numbers.out_spec[2:]),
        tuple(params["window_strides"]),
        tuple(params["padding"]),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
    )
    groups = params["feature_group_count"]
    indices = _axis_indices(image, step, numbers.lhs_spec)
    if indices is not None:
        # A padding made of the image, and the convolution behind it, as one map of the image without padding.
        window = tuple(
            indexed_axis(index_line, k, *rest)
            for index_line, k, *rest in zip(
                indices, kernel.shape, axes.strides, axes.padding, axes.spread, axes.dilation
            )
        )
        bound = as_selection(image, step.shapes[0]).bound

        def joint(scale: Any) -> Array:
            return indexed_conv_norm(scale_outputs(kernel, scale), window, groups, DEFAULT_STEPS["gram"])

        return _linear_layer(image, numbers.out_spec[1], joint, bound)
    # Zeros between the pixels and stride 1: the transpose of a strided convolution, whose bound is closer.
    transposed = max(axes.spread) > 1 and max(axes.strides) == 1
    norm = partial(transposed_convolution_norm if transposed else convolution_norm, kernel, axes)
    return _linear_layer(image, numbers.out_spec[1], partial(norm, groups))


def _axis_indices(image: LipschitzValue, step: _jaxpr.Step, spec: Sequence[int]) -> list[np.ndarray] | None:
    """Return which entries stand along each spatial axis, for a convolution that reads some twice.

    That is so behind a padding that is made of the image itself. None where it is not, or not along the axes of space
    alone.
    """
    selection = image.root.selection
    if selection is None or selection.injective:
        return None
    indices = factor_axes(selection)
    # spec[:2] are batch and channels: there every entry must stand once at most, and no constant. Only along the axes
    # of space may the padding repeat entries.
    if indices is None or any((indices[axis] < 0).any() or max_multiplicity(indices[axis]) > 1 for axis in spec[:2]):
        return None
    return [indices[axis] for axis in spec[2:]]


def dot_general(step: _jaxpr.Step, operands: Values) -> LipschitzValue | None:
    """Bound a product with a constant array: one matrix for each entry of the batch axes, applied to every row."""
    active = active_operands(operands)
    if len(active) > 1:
        return None
    side = 1 if isinstance(operands[0], LipschitzValue) else 0
    # dimension_numbers = ((lhs contracted, rhs contracted), (lhs batch, rhs batch)); the results have the axes (batch,
    # free of lhs, free of rhs). `side` is the operand that is constant.
    contracted, shared = (axes[side] for axes in step.params["dimension_numbers"])
    # The constant as (shared, contracted, free): the norm of a block-diagonal matrix is the largest of its blocks.
    kernel = jnp.asarray(operands[side])
    free = [axis for axis in range(kernel.ndim) if axis not in contracted and axis not in shared]
    sides = [prod(kernel.shape[axis] for axis in axes) for axes in (shared, contracted, free)]
    kernel = _promote(jnp.reshape(jnp.transpose(kernel, (*shared, *contracted, *free)), sides), active[0])
    # Outputs of one matrix are channels, whose scale may be folded in: the last axis, or the first if the constant
    # stands on the left.
    axis = None
    if not shared and len(free) == 1:
        axis = len(step.results[0].shape) - 1 if side == 1 else 0

    def norm(scale: Any) -> Array:
        matrices = scale_outputs(kernel, scale)
        if len(matrices) == 1:
            return dense(matrices[0]).value
        # One after the other: a Gram iteration of all matrices at once would hold all their products.
        return jnp.max(jax.lax.map(lambda matrix: dense(matrix).value, matrices))

    return _linear_layer(active[0], axis, norm)


def _promote(kernel: Array, value: LipschitzValue) -> Array:
    """Return the kernel in the precision of the bound, or wider."""
    precise = jnp.issubdtype(kernel.dtype, jnp.floating) and kernel.dtype.itemsize >= value.bound.dtype.itemsize
    return kernel if precise else kernel.astype(value.bound.dtype)
