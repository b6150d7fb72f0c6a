"""`conv_general_dilated`: the public convolution, by its route on a CPU and by XLA elsewhere."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from stabjax._sharding import is_explicit
from stabjax._types import AnyArray
from stabjax.conv import _routes
from stabjax.conv._geometry import Geometry

_DTYPES = tuple(map(np.dtype, (jnp.bfloat16, np.float32, np.float64)))


def conv_general_dilated(
    lhs: Float[AnyArray, "..."],
    rhs: Float[AnyArray, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
) -> Float[Array, "..."]:
    """Convolve as `jax.lax.conv_general_dilated` does, faster on a CPU; takes its place in Flax layers.

    Arguments, result and errors are those of `jax.lax.conv_general_dilated`, and so are the derivatives of every order,
    to rounding. bfloat16 is computed in float32 and rounded once. A pixel that is not finite may reach the outputs next
    to its own.

    Example:
        >>> nnx.Conv(3, 64, (3, 3), conv_general_dilated=conv.conv_general_dilated, rngs=rngs)
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    plain = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    # Shape and dtype without any work; wrong arguments raise the errors of JAX here, before a route is chosen.
    out = jax.eval_shape(plain, lhs, rhs)
    has_route = (
        lhs.dtype == rhs.dtype == out.dtype
        and out.dtype in _DTYPES
        and 3 <= lhs.ndim <= 5
        and lhs.size > 0
        and rhs.size > 0
        and out.size > 0
        and batch_group_count == 1
        and out_sharding is None
        and not (is_explicit(lhs) or is_explicit(rhs))  # XLA's own carries the sharding; the routes reshape
        and (lhs_dilation is None or all(d == 1 for d in lhs_dilation))
    )
    if not has_route:
        return plain(lhs, rhs)
    # Axes of each array in the canonical order: specs are (batch, channels, *spatial) and (out, in, *spatial).
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    lhs_order = (layout.lhs_spec[0], *layout.lhs_spec[2:], layout.lhs_spec[1])
    rhs_order = (*layout.rhs_spec[2:], layout.rhs_spec[1], layout.rhs_spec[0])
    out_order = (layout.out_spec[0], *layout.out_spec[2:], layout.out_spec[1])
    batch, *size, in_channels = (lhs.shape[axis] for axis in lhs_order)
    *kernel, _, out_channels = (rhs.shape[axis] for axis in rhs_order)
    dilation = tuple(rhs_dilation or (1,) * len(size))
    if isinstance(padding, str):
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
        # "SAME" depends on the stride, so it becomes numbers here; a `Geometry` holds nothing else.
        padding = lax.padtype_to_pads(size, extent, window_strides, padding)
    geometry = Geometry(
        size=tuple(size),
        kernel=tuple(kernel),
        strides=tuple(window_strides),
        padding=tuple((int(low), int(high)) for low, high in padding),
        dilation=dilation,
        in_channels=in_channels,
        out_channels=out_channels,
        groups=feature_group_count,
        batch=batch,
    )
    # Negative padding crops the image, and the routes only know how to add zeros.
    if any(side < 0 for pair in geometry.padding for side in pair):
        return plain(lhs, rhs)

    def by_route(lhs: Array, rhs: Array) -> Array:
        return _convolve(lhs, rhs, geometry, lhs_order, rhs_order, out_order)

    # Decided when the program is lowered, as its inputs may be traced: only then is the device known.
    return lax.platform_dependent(lhs, rhs, cpu=by_route, default=plain)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _convolve(
    lhs: Array,
    rhs: Array,
    geometry: Geometry,
    lhs_order: tuple[int, ...],
    rhs_order: tuple[int, ...],
    out_order: tuple[int, ...],
) -> Array:
    """Convolve in the canonical layout, ``(batch, *spatial, channels)`` and ``(*kernel, in / groups, out)``."""
    compute = jnp.float32 if lhs.dtype == jnp.bfloat16 else lhs.dtype
    x, kernel = jnp.transpose(lhs, lhs_order), jnp.transpose(rhs, rhs_order)
    y = _routes.convolve(x.astype(compute), kernel.astype(compute), geometry).astype(lhs.dtype)
    # `out_order` takes the caller's axes to the canonical ones; argsort of a permutation is its inverse.
    return jnp.transpose(y, tuple(int(axis) for axis in np.argsort(out_order)))
