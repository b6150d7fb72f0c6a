"""Kernels inside a bound."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax._types import AnyArray, Scalar
from stabjax.lipschitz._ball import Geometry, entries, measured
from stabjax.lipschitz._method import wide
from stabjax.lipschitz._torus import Padding, Sizes


def constrain(
    kernel: Float[AnyArray, "..."],
    bound: Scalar,
    *,
    exact: bool = False,
    size: Sizes | None = None,
    stride: Sizes = 1,
    padding: Padding = "zero",
    dilation: Sizes = 1,
    groups: int = 1,
) -> Float[Array, "..."]:
    """The kernel closest to the given one whose spectral norm is at most the bound.

    Of a dense kernel: ``U min(S, bound) V'`` by its singular values, the closest matrix in the Frobenius norm (and in
    every other that does not see rotations). It is inside by some roundings, so that a second time nothing changes.

    Of a convolution: the kernel times a number, so that its certified bound by `conv` is at most ``bound``. That is not
    the closest: to clip the frequencies one by one would make the window as large as the image.

    What is inside already comes back as it is.

    Args:
        kernel: of a dense layer, ``(inputs, outputs)``, or of a convolution, ``(*window, inputs / groups, outputs)``.
        bound: not negative, and may be traced; 0 gives zero.
        exact: raise a smaller norm to the bound, too. Of a dense kernel that changes the largest singular value alone
            (of a zero kernel, one of many that are equally close comes back).
        size: of the images of a convolution. With None and the defaults of the rest, the bound holds for every size,
            stride, padding, dilation and number of groups; what is known of them makes it closer.
        stride: as in `conv`, and so are the following.
        padding: see there.
        dilation: see there.
        groups: see there.

    Returns:
        the kernel, of the same shape and dtype; NaN for a traced bound that is negative, for a kernel that is not
        finite, and where a zero kernel of a convolution would have to be raised.

    Raises:
        TypeError: if the kernel is not of real floating-point numbers.
        ValueError: for a negative bound, or a kernel with less than two axes; as in `conv`.
    """
    if kernel.ndim < 2:
        raise ValueError(f"expected a kernel (*window, inputs, outputs), got shape {kernel.shape}")
    geometry = geometry_of(size, stride, padding, dilation, groups)
    computed = wide(kernel)
    dtype = jnp.asarray(kernel).dtype
    return _constrained(computed, limit_of(bound, computed.dtype), exact, geometry, dtype)


def geometry_of(size: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    """The same, hashable."""

    def fixed(value: Any) -> Any:
        return tuple(map(fixed, value)) if isinstance(value, list | tuple) else value

    return Geometry(*map(fixed, (size, stride, padding, dilation, groups)))


def limit_of(bound: Scalar, dtype: Any) -> Float[Array, ""]:
    """The bound as a number of this dtype; a traced negative one is NaN, another raises."""
    if not isinstance(bound, Tracer) and not np.all(np.asarray(bound) >= 0):
        raise ValueError(f"expected a bound >= 0, got {bound}")
    limit = jnp.asarray(bound, dtype)
    if limit.ndim:
        raise ValueError(f"expected a scalar bound, got shape {limit.shape}; use jax.vmap over several")
    return jnp.where(limit < 0, jnp.nan, limit)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _constrained(kernel: Array, limit: Array, exact: bool, geometry: Geometry, dtype: np.dtype) -> Array:
    ball = measured(kernel, geometry)
    if exact:
        return ball.raised(limit).astype(dtype)
    inside = ball.inside(limit)
    if dtype != kernel.dtype:
        inside = ball.inside(limit - 0.6 * float(jnp.finfo(dtype).eps) * entries(inside))
    return jnp.where(ball.norm <= limit, kernel, inside).astype(dtype)
