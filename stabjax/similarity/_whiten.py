"""Orthonormal bases of what two sets of units span, and how the two bases lie to each other."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from stabjax._numerics import HIGHEST
from stabjax._types import AnyArray, Scalar
from stabjax.similarity._tall import Moments, Tall, moments, tall, transformed_product, triangle
from stabjax.similarity._units import Scaled, scaled

_TALL = 16
"""From so many samples per unit on, covariances are worth a try, and triangular factors are faster than the singular
value decomposition of all samples."""
_WELL = 1e-2
"""Smallest share of the largest variance that covariances resolve: they square the condition, so an error of one
rounding becomes a hundred."""
_ROUNDING = 8.0
"""Singular values below so many roundings of the largest, times the root of the number of units, are nothing else."""


class Basis(NamedTuple):
    """An orthonormal basis of the span of centred units, in the order of explained variance.

    ``scaled @ (right / values)`` are its vectors, one column each, where ``scaled`` are the centred units over their
    scales. Columns beyond the rank are zero.
    """

    mean: Array
    """``(units,)``."""
    scale: Array
    """``(units,)``: 1 where a unit does not vary."""
    values: Array
    """Singular values of the scaled units, ``(k,)``, zero beyond the rank."""
    right: Array
    """Right singular vectors, ``(units, k)``."""
    rank: Int[Array, ""]
    varies: Bool[Array, " units"]

    @property
    def coefficients(self) -> Array:
        """``(centred units) @ coefficients`` is the basis, ``(units, k)``."""
        return self.right * (_reciprocal(self.values)[None] / self.scale[:, None]).astype(self.right.dtype)

    @property
    def loadings(self) -> Array:
        """Product of every basis vector with every centred unit, ``(k, units)``."""
        return jnp.conj(self.right.T) * (self.values[:, None] * self.scale[None]).astype(self.right.dtype)


@partial(jax.jit, static_argnames="alike")
def bases(x: AnyArray, y: AnyArray, *, alike: bool) -> tuple[Basis, Basis, Array]:
    """Bases of two sets of units ``(n, units)``, and the products of their vectors ``(k_x, k_y)``.

    Args:
        x: samples in rows; real or complex.
        y: the same samples.
        alike: whether units count alike (each is brought to one scale, which an analysis that does not see linear maps
            may do and which keeps tiny and huge units exact), or by their variance.
    """
    x, y = (jnp.asarray(z) for z in (x, y))
    if min(len(x) // z.shape[1] for z in (x, y)) < _TALL:
        return _by_svd(*(scaled(z, alike=alike) for z in (x, y)))
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return _by_factors(tall(x, alike=alike), tall(y, alike=alike))
    found = moments(x, y, alike=alike)
    spectra = [jnp.linalg.eigh(gram) for gram in (found.products[0], found.products[2])]
    well = found.sound & jnp.all(jnp.array([values[0] > _WELL * values[-1] for values, _ in spectra]))

    def carefully(found: Moments, spectra: object, *flat: Array) -> tuple[Basis, Basis, Array]:
        x_, y_ = (jnp.reshape(z, like.shape) for z, like in zip(flat, (x, y), strict=True))
        return _by_factors(tall(x_, alike=alike), tall(y_, alike=alike))

    # Flat: the factors want columns, for which whole sets would be transposed before anything is decided.
    return jax.lax.cond(well, _by_covariance, carefully, found, spectra, jnp.ravel(x), jnp.ravel(y))


def _by_svd(one: Scaled, two: Scaled) -> tuple[Basis, Basis, Array]:
    vectors, found = [], []
    for units, mean, scale, varies in (one, two):
        # Centring takes one direction away: what is left of it is rounding.
        left, values, right = decomposed(units, len(units) - 1)
        vectors.append(left)
        found.append(Basis(mean, scale, values, right, jnp.sum(values > 0), varies))
    return *found, jnp.matmul(jnp.conj(vectors[0].T), vectors[1], precision=HIGHEST)


def _by_factors(one: Tall, two: Tall) -> tuple[Basis, Basis, Array]:
    """The same for tall sets: from triangular factors, which have the singular values and the right vectors."""
    found = []
    for each in (one, two):
        _, values, right = decomposed(triangle(each), len(each.rows) - 1)
        found.append(Basis(each.mean, each.scale, values, right, jnp.sum(values > 0), each.varies))
    a, b = (basis.right * _reciprocal(basis.values)[None].astype(basis.right.dtype) for basis in found)
    return *found, transformed_product(one, two, a, b)


def decomposed(units: Array, most: Scalar) -> tuple[Array, Array, Array]:
    """Left singular vectors, values and right singular vectors in columns; zero beyond the rank, which is ``most``."""
    left, values, right = jnp.linalg.svd(units, full_matrices=False)
    floor = _ROUNDING * values[0] * jnp.finfo(values.dtype).eps * units.shape[1] ** 0.5
    kept = (values > floor) & (jnp.arange(len(values)) < most)
    return jnp.where(kept[None], left, 0), jnp.where(kept, values, 0), jnp.where(kept[None], jnp.conj(right.T), 0)


def _by_covariance(moments: Moments, spectra: list[tuple[Array, Array]], *_: Array) -> tuple[Basis, Basis, Array]:
    found = []
    for mean, scale, varies, (squares, right) in zip(
        moments.means, moments.scales, moments.varies, spectra, strict=True
    ):
        values = jnp.sqrt(squares[::-1])
        found.append(Basis(mean, scale, values, right[:, ::-1], jnp.array(len(values)), varies))
    a, b = (basis.right / basis.values[None] for basis in found)
    cross = jnp.matmul(moments.products[1], b, precision=HIGHEST)
    return *found, jnp.matmul(a.T, cross, precision=HIGHEST)


def _reciprocal(values: Array) -> Array:
    return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)
