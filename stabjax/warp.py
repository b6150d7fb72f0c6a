"""Pull an image back along a displacement field: ``(tau x)(s) = x(s - tau(s))``, clamped at the border.

One image ``(*spatial, channels)`` and one field ``(ndim, *spatial)`` in pixels; batches are `jax.vmap`.
"""

import math
import operator
from functools import partial, reduce
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stabjax._images import check_array
from stabjax._sharding import without_explicit_axes
from stabjax._types import Field, Image

__all__ = ["Interpolation", "pull_back"]

Interpolation = Literal["linear", "nearest", "gaussian", "cubic"]

_SIGMA = 0.4715
"""Width of the Gaussian interpolation in pixels, as published."""


def pull_back(
    image: Image, field: Field, *, interpolation: Interpolation = "linear"
) -> Float[Array, "*spatial channels"]:
    """Pull an image back along a field, ``x(s - tau(s))``; positions beyond the border are clamped to it.

    Args:
        image: ``(*spatial, channels)``, one to three spatial axes, of a floating dtype, which is kept. Narrow dtypes
            are computed in float32.
        field: ``(ndim, *spatial)`` in pixels; component ``i`` moves along axis ``i``.
        interpolation: ``"linear"``; ``"nearest"``; ``"gaussian"``: weights ``exp(-d^2 / 2 sigma^2)`` with sigma =
            0.4715 pixels, normalized over the whole image, so that the zero field smooths (Petrini, Favero, Geiger,
            Wyart 2021); ``"cubic"``: the convolution of Keys 1981 with a = -1/2 (Catmull-Rom), which passes through
            the pixels, unlike a spline without prefilter, and repeats the border pixel outside. The Gaussian takes up
            to two spatial axes.

    Returns:
        ``(*spatial, channels)``. Differentiable by image and field; at the pixels themselves the derivative of the
        linear interpolation by the field is one-sided. NaN positions and pixels give NaN.

    Raises:
        TypeError: an image or field of integers.
        ValueError: shapes that do not fit, or an unknown interpolation.
    """
    check_array(image, "an image")
    image, field = without_explicit_axes((jnp.asarray(image), jnp.asarray(field)))
    if not jnp.issubdtype(field.dtype, jnp.floating):
        raise TypeError(f"expected a floating field, got {field.dtype}: convert it, field.astype(float)")
    ndim = image.ndim - 1
    if not 1 <= ndim <= 3:
        raise ValueError(
            f"expected an image (*spatial, channels) with one to three spatial axes, got shape {image.shape}: use "
            "jax.vmap over a batch"
        )
    if field.shape != (ndim, *image.shape[:-1]):
        raise ValueError(
            f"expected a field of shape {(ndim, *image.shape[:-1])} for an image of shape {image.shape}, "
            f"got {field.shape}; use jax.vmap over a batch"
        )
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"expected an interpolation out of {get_args(Interpolation)}, got {interpolation!r}")
    if interpolation == "gaussian" and ndim > 2:
        raise ValueError(f"gaussian interpolation takes one or two spatial axes, got {ndim}; use 'linear' or 'cubic'")
    return _pull_back(image, field, interpolation)


WeightedIndex = tuple[Int[Array, "*spatial"], Float[Array, "*spatial"]]


@partial(jax.jit, static_argnums=2)
def _pull_back(
    image: Float[Array, "*spatial channels"], field: Float[Array, " ndim *spatial"], interpolation: str
) -> Float[Array, "*spatial channels"]:
    *shape, channels = image.shape
    work = _compute_dtype(image.dtype)
    # float16 would round positions above 1024 to whole pixels, bfloat16 above 128.
    field = field.astype(_compute_dtype(field.dtype))
    neighbors = []
    for axis, n in enumerate(shape):
        start = np.arange(n).reshape(-1, *(1,) * (len(shape) - 1 - axis))
        # s - tau(s) along this axis, `start` being s with axes of length one elsewhere.
        position = jnp.clip(jnp.broadcast_to(jnp.asarray(start, field.dtype), shape) - field[axis], 0, n - 1)
        # Clamped positions, and the flat offset of each neighbor along this axis with its weight.
        stride = math.prod(shape[axis + 1 :])
        neighbors.append(
            [(index * stride, w.astype(work)[..., None]) for index, w in _KERNELS[interpolation](position, n)]
        )
    # One flat index per pixel and neighbor fetches all its channels: the fastest gather on the CPU.
    flat = image.reshape(-1, channels)

    # The weights of a pixel are a product over the axes: a sum over the neighbors on axis 0, each a sum over those on
    # axis 1, and so on; `base` is the flat index of the axes done.
    def blend(base: Int[Array, "*spatial"] | int, axis: int) -> Float[Array, "*spatial channels"]:
        if axis == len(shape):
            # The indices were clipped, so the gather need not check them again.
            return flat.at[base].get(mode="promise_in_bounds").astype(work)
        terms = [weight * blend(base + index, axis + 1) for index, weight in neighbors[axis]]
        return reduce(operator.add, terms)

    return blend(0, 0).astype(image.dtype)


def _compute_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype to compute in: float32 for narrower ones."""
    return dtype if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)


def _floor_index(position: Float[Array, "*spatial"], high: int) -> Int[Array, "*spatial"]:
    """Round down, within ``0..high``, whatever integer a NaN becomes: its weights stay NaN."""
    # The conversion cuts toward zero, which differs from rounding down only below zero, where the clip makes it 0.
    return jnp.clip(position.astype(jnp.int32), 0, high)


def _linear(position: Float[Array, "*spatial"], n: int) -> list[WeightedIndex]:
    """Weigh the two pixels around a position, ``1 - t`` and ``t``."""
    # index and index + 1, n - 2 and n - 1 at the last pixel (with t = 1). One pixel alone has no neighbor.
    index = _floor_index(position, max(n - 2, 0))
    weight = position - index.astype(position.dtype)
    return [(index, 1 - weight), (index + 1, weight)][: min(n, 2)]


def _nearest(position: Float[Array, "*spatial"], n: int) -> list[WeightedIndex]:
    """Take the nearest pixel; a NaN position keeps its NaN in the weight."""
    index = _floor_index(jnp.round(position), n - 1)
    return [(index, jnp.where(jnp.isnan(position), position, 1))]


def _gaussian(position: Float[Array, "*spatial"], n: int) -> list[WeightedIndex]:
    """Weigh the pixels around a position by ``exp(-d^2 / 2 sigma^2)``, normalized to sum one."""
    # Pixels left out weigh less than exp(-d^2 / 2 sigma^2): 2e-9 at 3 pixels, 3e-16 at 4.
    reach = 3 if jnp.finfo(position.dtype).bits < 64 else 4
    count = min(2 * reach, n)
    # Pixels floor(p) - reach + 1 .. floor(p) + reach, moved inside at the border: those left out are at least `reach`
    # away.
    first = _floor_index(position - (reach - 1), n - count)
    indices = [first + k for k in range(count)]
    weights = [jnp.exp(jnp.square(position - i.astype(position.dtype)) / (-2 * _SIGMA**2)) for i in indices]
    total = reduce(operator.add, weights)
    return [(i, w / total) for i, w in zip(indices, weights)]


def _cubic(position: Float[Array, "*spatial"], n: int) -> list[WeightedIndex]:
    """Weigh four pixels by the cubic convolution of Keys 1981 with ``a = -1/2``, eq. 4."""
    # Pixels index - 1 .. index + 2, those beyond the border being the border pixel.
    index = _floor_index(position, max(n - 2, 0))
    t = position - index.astype(position.dtype)
    weights = [
        ((-0.5 * t + 1) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    ]
    return [(jnp.clip(index + k, 0, n - 1), w) for k, w in zip(range(-1, 3), weights)]


_KERNELS = {"linear": _linear, "nearest": _nearest, "gaussian": _gaussian, "cubic": _cubic}
