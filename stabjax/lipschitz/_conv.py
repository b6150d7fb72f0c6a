"""The spectral norm of a convolution, on its torus or from below on the convolution itself."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST
from stabjax._types import AnyArray
from stabjax.lipschitz import _circulant, _indexed_conv
from stabjax.lipschitz._bound import Bound, Method, as_bound, promote_kernel, resolve_steps
from stabjax.lipschitz._circulant import NormPlan, Padding, Sizes, circulant_norm
from stabjax.lipschitz._gram import split_scale
from stabjax.lipschitz._power_iteration import power_iteration


def conv(
    kernel: Float[AnyArray, "*window inputs outputs"],
    size: Sizes | None,
    *,
    stride: Sizes = 1,
    padding: Padding = "zero",
    dilation: Sizes = 1,
    groups: int = 1,
    method: Method = "gram",
    steps: int | None = None,
) -> Bound:
    """Bound the largest singular value of a convolution as a linear map of images; not that of the reshaped kernel.

    On a torus, a convolution is one small matrix ``K(w)`` for each frequency, and its norm the largest of theirs
    (Sedghi, Gupta, Long 2019, arXiv 1805.10408). With stride ``s``, the ``s`` frequencies that land on the same one
    stand in one matrix, over ``sqrt(s)``. Circular padding is that, exactly, if the stride divides the size. Axes of
    which it does not are written out as a matrix, which is as exact, as long as the iteration on it takes at most
    ``2^35`` multiplications (a second's work: both axes of an image with a thousand entries in all, one axis of much
    larger ones); along those that are left, the norm without stride bounds it. Zeros around the image are bounded by a
    larger torus, of side ``n + k // 2`` for padding ``k // 2``: at the side of the image the circular norm may be too
    small. That is close for images much larger than the window, and loose for smaller ones (by a factor 1.8 for a
    random 5 x 5 window on 2 x 2 pixels).

    ``"gram"``: from above, by Gram iteration on every ``K(w)``, as in `dense` (Delattre et al. 2023, arXiv 2305.16173).
    Certified at every step; the rounding of the ``K(w)`` counts too. ``"exact"``: by their singular values, where the
    convolution is the one on the torus. ``"power"``: from below, by power iteration on the convolution itself.

    Args:
        kernel: ``(*window, inputs / groups, outputs)``; `jax.vmap` takes several. Half precision is computed in single.
        size: of the image, one number per axis or one number for all; None for a bound that holds at any size (by ``1
            / cos(pi / 32)``, 0.5 %, per axis above the largest over all frequencies; dearer than a small image).
        stride: step of the window, a number or one per axis, as in the rest.
        padding: ``"zero"``: ``d (k - 1)`` zeros in all, the smaller half in front, which keeps the size at stride 1
            (with another stride, ``"SAME"`` of JAX is less: give it as pairs);
            ``"valid"``: none; zeros on both sides of each axis: a number, one number or one pair ``(low, high)`` per
            axis; ``"circular"``: the image wraps around, more than once under a larger window.
        dilation: step between the entries of the window.
        groups: number of groups of channels that do not mix.
        method: see above.
        steps: products of Gram iteration (6 by default), or power iterations (100).

    Returns:
        the bound; its value, ``()``, can be differentiated at about the cost of the value itself. Of equally large
        frequencies one is differentiated.

    Raises:
        TypeError: if the kernel is not of real floating-point numbers.
        ValueError: if kernel, size and options do not fit together, such as a window larger than the padded image; for
            an unknown method or padding; for ``"exact"`` where zeros stand around the image, or ``"power"`` without
            a size.
    """
    steps = resolve_steps(method, steps)
    if kernel.ndim < 3:
        raise ValueError(
            f"expected a kernel (*window, inputs / groups, outputs), got shape {kernel.shape}: of dense layers, use "
            "dense"
        )
    *window, _, outputs = kernel.shape
    if groups < 1 or outputs % groups:
        raise ValueError(f"expected a number of groups that divides {outputs} outputs, got {groups}")
    ndim = len(window)
    strides, dilations = _circulant.per_axis(ndim, stride, "stride"), _circulant.per_axis(ndim, dilation, "dilation")
    # Zeros are bounded on a larger torus, circular padding is the torus of the image; both then take one path.
    wraps = isinstance(padding, str) and padding == "circular"
    pads = _circulant.resolve_padding(window, dilations, "zero" if wraps else padding)
    kernel = promote_kernel(kernel)
    if size is None:
        axes = tuple(
            _circulant.any_size_axis(k, s, d, strided=not wraps)
            for k, s, d in zip(window, strides, dilations, strict=True)
        )
    else:
        sizes = _circulant.per_axis(ndim, size, "size")
        geometry = zip(sizes, window, strides, dilations, strict=True)
        if wraps:
            axes = tuple(_circulant.circular_axis(*axis) for axis in geometry)
        else:
            axes = tuple(_circulant.embedded_axis(*axis, pair) for axis, pair in zip(geometry, pads, strict=True))
        # Power iteration runs on the convolution itself, so it needs no torus and takes every geometry.
        if method == "power":
            value = _power_norm(kernel, sizes, strides, pads, dilations, wraps, groups, steps)
            return as_bound(value, method)
        if wraps and method == "gram" and not all(axis.exact for axis in axes):
            rings = tuple(map(_indexed_conv.ring_axis, sizes, window, strides, dilations))
            # The stride does not divide the size: written out (exact, large matrices), or on the torus without stride
            # (small matrices). After few steps the second is closer.
            bounds = (
                _indexed_conv.indexed_conv_norm(kernel, rings, groups, steps),
                circulant_norm(kernel, NormPlan(axes, groups, method, steps)),
            )
            # Both are certified, so the smaller one is as well.
            return as_bound(jnp.minimum(*bounds), method)
    if method != "gram" and (size is None or not all(axis.exact for axis in axes)):
        raise ValueError(
            f"expected method 'gram' for this padding, stride and size, got {method!r}: {_explain_method(method, size)}"
        )
    return as_bound(circulant_norm(kernel, NormPlan(axes, groups, method, steps)), method)


def _explain_method(method: Method, size: Sizes | None) -> str:
    """Say why another method than Gram iteration does not serve."""
    if size is None:
        return "it needs a size"
    return (
        "the convolution is a part of the circular one only; 'gram' bounds it from above and 'power' from below, and "
        "it is exact for circular padding with a stride that divides the size, and for windows side by side"
    )


@partial(jax.jit, static_argnums=tuple(range(1, 8)))
def _power_norm(
    kernel: Array,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    wraps: bool,
    groups: int,
    steps: int,
) -> Array:
    """Bound the norm from below by power iteration on the convolution itself."""
    kernel, scale = split_scale(kernel)
    ndim = len(size)
    axes = tuple(range(ndim))
    # Specs list the axes (batch, channels, *spatial) of images (batch, *spatial, channels), and (outputs, inputs,
    # *spatial) of kernels (*window, inputs, outputs).
    channels_last = (0, ndim + 1, *(axis + 1 for axis in axes))
    layout = lax.ConvDimensionNumbers(channels_last, (ndim + 1, ndim, *axes), channels_last)

    def convolve(x: Array) -> Array:
        if wraps:
            # d (k - 1) wrapped entries per axis leave ceil(n / s) windows. Where the first one starts does not matter
            # to the norm: another start is a rolled image.
            x = jnp.pad(x, [(0, 0), *pads, (0, 0)], mode="wrap")
        return lax.conv_general_dilated(
            x,
            kernel,
            stride,
            [(0, 0)] * ndim if wraps else pads,
            rhs_dilation=dilation,
            dimension_numbers=layout,
            feature_group_count=groups,
            precision=HIGHEST,
        )

    return scale * power_iteration(convolve, (1, *size, kernel.shape[-2] * groups), kernel.dtype, steps)
