"""Diffeomorphisms out of fields: the exponential, and the inverse."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float

from stabjax._sharding import without_explicit_axes
from stabjax._types import Field
from stabjax.fields._checks import check_spatial_shape


def exponential(velocity: Field, *, squarings: int = 8) -> Float[Array, " ndim *spatial"]:
    """Return the field ``tau`` of the flow of a velocity field: ``s - tau(s) = exp(-velocity)(s)``.

    A flow for unit time cannot fold, however large the velocity; ``exponential(-velocity)`` is its inverse. Scaling and
    squaring (Arsigny, Commowick, Pennec, Ayache 2006): ``velocity / 2^squarings`` is composed with itself ``squarings``
    times, with linear interpolation between pixels. The flow is sampled on the pixel grid: where the Jacobian itself
    changes from one pixel to the next (random fields far above ``T_max``), one-sided differences may still change sign.

    Args:
        velocity: ``(ndim, *spatial)``, pixels per unit time.
        squarings: number of compositions.

    Returns:
        ``(ndim, *spatial)``, pixels.
    """
    velocity = _check_field(velocity)
    if squarings < 0:
        raise ValueError(f"expected squarings >= 0, got {squarings}")
    return _exponential(velocity, squarings)


@partial(jax.jit, static_argnums=1)
def _exponential(velocity: Float[Array, " ndim *spatial"], squarings: int) -> Float[Array, " ndim *spatial"]:
    # The map s -> s - tau(s) applied twice moves a pixel by tau(s) + tau(s - tau(s)).
    return jax.lax.fori_loop(0, squarings, lambda _, tau: tau + _pull_back(tau, tau), velocity / 2**squarings)


@partial(jax.tree_util.register_dataclass, data_fields=["field", "residual"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Inverse:
    """The inverse of a field, and how well it undoes it."""

    field: Float[Array, " ndim *spatial"]
    """``sigma``, ``(ndim, *spatial)``, pixels: ``s -> s - sigma(s)`` undoes ``s -> s - tau(s)``."""
    residual: Float[Array, ""]
    """Largest distance in pixels between a pixel and where the two maps send it. Large where the field folds or is too
    steep for the iteration."""


def invert(field: Field, *, steps: int = 50) -> Inverse:
    """Invert a field by fixed-point iteration of ``sigma(s) = -tau(s - sigma(s))``, linear between pixels.

    Converges where ``|grad tau| < 1``; look at the residual elsewhere.

    Args:
        field: ``tau``, ``(ndim, *spatial)``, pixels.
        steps: number of iterations.
    """
    field = _check_field(field)
    if steps < 1:
        raise ValueError(f"expected steps >= 1, got {steps}")
    return _invert(field, steps)


@partial(jax.jit, static_argnums=1)
def _invert(field: Float[Array, " ndim *spatial"], steps: int) -> Inverse:
    # s - sigma(s) must be taken to s: s - sigma - tau(s - sigma) = s.
    sigma = jax.lax.fori_loop(0, steps, lambda _, sigma: -_pull_back(field, sigma), jnp.zeros_like(field))
    # A true inverse has sigma(s) + tau(s - sigma(s)) = 0.
    miss = sigma + _pull_back(field, sigma)
    return Inverse(sigma, jnp.sqrt(jnp.max(jnp.sum(jnp.square(miss), axis=0))))


def _pull_back(
    field: Float[Array, " ndim *spatial"], by: Float[Array, " ndim *spatial"]
) -> Float[Array, " ndim *spatial"]:
    """Compute ``field(s - by(s))``, clamped at the border."""
    # (ndim, *spatial) positions, the same for every component of the field.
    positions = list(jnp.asarray(np.indices(by.shape[1:]), by.dtype) - by)
    return jax.vmap(lambda component: map_coordinates(component, positions, order=1, mode="nearest"))(field)


def _check_field(field: Field) -> Float[Array, " ndim *spatial"]:
    """Return the field as an array; raise ``ValueError`` unless it has one component per axis."""
    array = without_explicit_axes(jnp.asarray(field))
    check_spatial_shape(array.shape[1:])
    if array.shape[0] != array.ndim - 1:
        raise ValueError(f"expected a field of shape (ndim, *spatial), got {array.shape}; use jax.vmap over several")
    return array
