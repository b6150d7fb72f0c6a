"""Canonical correlations from what is pooled over batches.

A first pass keeps a triangular factor of the centred units of each layer, which has their products ``R'R = X'X`` and,
other than the products, all their digits; a second pass adds up the products of the whitened units.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax._numerics import HIGHEST
from stabjax.similarity._cca import leading, sound
from stabjax.similarity._units import scales
from stabjax.similarity._whiten import Basis, decomposed

Canonical = Literal["cca", "svcca", "pwcca"]
EXPLAINED = 0.99
"""Share of the variance that SVCCA keeps."""


class Triangle(NamedTuple):
    """So many images, the mean of their units, and a triangular factor of what is left without it."""

    images: Float[Array, ""]
    mean: Float[Array, " units"]
    factor: Float[Array, "units units"]


def added(triangle: Triangle, x: Float[Array, "b units"], counted: Bool[Array, " b"]) -> Triangle:
    """With the images of a batch, of those that count.

    Scatters around two means add to that around the common mean with one row more, their difference times
    ``sqrt(n m / (n + m))`` (Chan et al. 1983).
    """
    n, m = triangle.images, jnp.sum(counted).astype(x.dtype)
    mean = jnp.sum(x, axis=0, where=counted[:, None]) / jnp.maximum(m, 1)
    step = mean - triangle.mean
    between = step * jnp.sqrt(n * m / jnp.maximum(n + m, 1))
    within = jnp.where(counted[:, None], x - mean[None], 0)
    rows = jnp.concatenate([triangle.factor, within, between[None]])
    return Triangle(n + m, triangle.mean + step * m / jnp.maximum(n + m, 1), jnp.linalg.qr(rows, mode="r"))


def span(triangle: Triangle, *, alike: bool) -> Basis:
    """An orthonormal basis of the span of the units: see `stabjax.similarity._whiten.bases`."""
    scale, varies = scales(jnp.linalg.norm(triangle.factor, axis=0), alike=alike)
    _, values, right = decomposed(triangle.factor / scale[None], (triangle.images - 1).astype(int))
    return Basis(triangle.mean, scale, values, right, jnp.sum(values > 0), varies)


def correlation(
    measure: Canonical, one: Basis, two: Basis, products: Float[Array, "k_x k_y"], n: Int[Array, ""]
) -> Float[Array, ""]:
    """The similarity of two layers, ``()``, from the products of their basis vectors; NaN where it says nothing."""
    if measure == "svcca":
        one, two = (leading(basis, EXPLAINED, False) for basis in (one, two))
        products = jnp.where((one.values > 0)[:, None] & (two.values > 0)[None], products, 0)
    left, correlations, _ = jnp.linalg.svd(products, full_matrices=False)
    weights = jnp.ones_like(correlations)
    if measure == "pwcca":
        weights = jnp.sum(jnp.abs(jnp.matmul(left.T, one.loadings, precision=HIGHEST)), axis=1)
    weights = jnp.where(jnp.arange(len(weights)) < jnp.minimum(one.rank, two.rank), weights, 0)
    value = jnp.dot(weights, correlations, precision=HIGHEST) / jnp.sum(weights)
    return jnp.where(sound(one, two, correlations, n), jnp.clip(value, 0, 1), jnp.nan)
