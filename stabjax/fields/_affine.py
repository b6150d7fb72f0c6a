"""Fields of affine maps."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax._types import AnyArray, Scalar
from stabjax.fields._checks import check_spatial_shape, concrete_value, float_dtype

Vector = Scalar | Sequence[Scalar] | Float[AnyArray, " ndim"]


def affine(
    shape: Sequence[int],
    *,
    translation: Vector = 0.0,
    rotation: Scalar = 0.0,
    compression: Scalar = 0.0,
    shear: Sequence[Scalar] | Float[AnyArray, "2"] = (0.0, 0.0),
    center: Vector | None = None,
) -> Float[Array, " ndim *spatial"]:
    """Return the affine field ``tau(s) = U (s - center) + translation`` in pixels; every strength may be traced.

    In two dimensions, on the components (y, x)::

        U = (1 - cos t,    -sin t)  +  compression  +  (-a,  b)
            (    sin t, 1 - cos t)                     ( b,  a)

    The parts add up; a rotation alone is an exact one.

    Args:
        shape: the sides of the image in pixels, one to three.
        translation: pixels along each axis, (dy, dx), or one number for all axes; the picture moves that way.
        rotation: angle ``t`` in radians; turns the picture counterclockwise as displayed (rows downwards).
        compression: ``tau = compression (s - center)``: the picture grows by ``1 / (1 - compression)``.
        shear: ``(a, b)``, along the axes and along the diagonals.
        center: the fixed point in pixels, (y, x); the middle of the image by default.

    Returns:
        ``(ndim, *shape)``, pixels.

    Raises:
        ValueError: a translation or center of the wrong length, or a rotation or shear off two dimensions.
    """
    sides = check_spatial_shape(shape)
    ndim = len(sides)
    if center is None:
        center = tuple((n - 1) / 2 for n in sides)
    offset = _as_vector("translation", translation, ndim)
    origin = _as_vector("center", center, ndim)
    # tau(s) = U (s - center) + translation; `strain` is U.
    strain = _as_scalar(compression) * jnp.eye(ndim, dtype=float_dtype())
    if ndim == 2:
        t, a, b = _as_scalar(rotation), *_as_vector("shear", shear, 2)
        # A rotation R of the picture pulls back along s - tau(s) = R^-1 s, so tau = (1 - R^-1) s: hence 1 - cos t.
        grow, sine = 1 - jnp.cos(t), jnp.sin(t)
        strain = strain + jnp.array([[grow - a, b - sine], [b + sine, grow + a]])
    elif not all(_is_zero(part) for part in (rotation, *shear)):
        raise ValueError(f"a rotation or shear needs two spatial axes, got the shape {sides}; leave it out")
    positions = jnp.asarray(np.indices(sides), float_dtype()) - _broadcast_over_pixels(origin, ndim)
    # (ndim, ndim) x (ndim, *spatial) -> (ndim, *spatial)
    return jnp.tensordot(strain, positions, axes=1) + _broadcast_over_pixels(offset, ndim)


def _as_scalar(value: Scalar) -> Float[Array, ""]:
    """Return one strength as a scalar array."""
    array = jnp.asarray(value, float_dtype())
    if array.ndim:
        raise ValueError(f"expected one number for each strength, got shape {array.shape}; use jax.vmap over several")
    return array


def _is_zero(value: Scalar) -> bool:
    """Tell whether a strength is known to be zero."""
    known = concrete_value(value)
    return known is not None and not known.any()


def _as_vector(name: str, value: Vector, length: int) -> Float[Array, " ndim"]:
    """Return one number per axis, from a number for all or a sequence of them."""
    if isinstance(value, Sequence):
        # One by one: some numbers of a sequence may be traced, and others not.
        parts = jnp.stack([_as_scalar(part) for part in value])
    else:
        parts = jnp.asarray(value, float_dtype())
    if parts.ndim == 0:
        parts = jnp.full((length,), parts)
    if parts.shape != (length,):
        raise ValueError(f"expected {name} of length {length}, one number per axis, got shape {parts.shape}")
    return parts


def _broadcast_over_pixels(vector: Float[Array, " ndim"], ndim: int) -> Float[Array, " ndim *ones"]:
    """Give a vector of components axes of length one for the pixels."""
    return vector.reshape(-1, *(1,) * ndim)
