"""Orthonormal bases of what two sets of units span, and how the two bases lie to each other."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from stabjax._numerics import HIGHEST
from stabjax._types import AnyArray, Scalar
from stabjax.similarity._tall import Frame, frame, moments, transformed, triangle
from stabjax.similarity._units import Scaled, scaled

_TALL = 16
"""From so many samples per unit on, covariances are worth a try, and triangular factors are faster than the singular
value decomposition of all samples."""
_WELL = 1e-2
"""Smallest share of the largest variance that covariances resolve: they square the condition, so an error of one
rounding becomes a hundred."""
_NEAR = 0.1
"""How far from orthonormal a first whitening may be."""
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


Found = tuple[Basis, Basis, Array]
"""Two bases, and the products of their vectors ``(k_x, k_y)``."""


@partial(jax.jit, static_argnames="alike")
def bases(x: AnyArray, y: AnyArray, *, alike: bool) -> Found:
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
        return _by_factors(x, y, alike)
    one, two, (xx, xy, yy), sound = moments(x, y, alike=alike)
    spectra = [_spectrum(gram, each.varies) for gram, each in ((xx, one), (yy, two))]
    well = sound & jnp.all(jnp.array([squares[0] > _WELL * squares[-1] for squares, _ in spectra]))
    return jax.lax.cond(
        well,
        lambda *_: _by_covariance(one, two, spectra, xy),
        _of_sets(lambda x, y: _by_second_pass(x, y, one, two, spectra, alike), x, y),
        *map(jnp.ravel, (x, y)),
    )


def _of_sets(f: Callable[..., Found], *sets: Array) -> Callable[..., Found]:
    """A branch that takes the sets flat: factors want columns, and whole sets would be transposed before the choice."""
    return lambda *flat: f(*(jnp.reshape(z, like.shape) for z, like in zip(flat, sets, strict=True)))


def _spectrum(gram: Array, varies: Array) -> tuple[Array, Array]:
    """Eigenvalues, rising, and vectors; a negative one for each unit that does not vary, which is alone in its row."""
    diagonal = jnp.diagonal(gram)
    dead = jnp.where(varies, 0, jnp.max(diagonal) + 1)
    return jnp.linalg.eigh(gram - jnp.diag(dead))


def _by_svd(one: Scaled, two: Scaled) -> Found:
    vectors, found = [], []
    for units, mean, scale, varies in (one, two):
        # Centring takes one direction away: what is left of it is rounding.
        left, values, right = decomposed(units, len(units) - 1)
        vectors.append(left)
        found.append(Basis(mean, scale, values, right, jnp.sum(values > 0), varies))
    return *found, jnp.matmul(jnp.conj(vectors[0].T), vectors[1], precision=HIGHEST)


def _by_factors(x: Array, y: Array, alike: bool) -> Found:
    """The same for tall sets: from triangular factors, which have the singular values and the right vectors."""
    one, two = (frame(z, alike=alike) for z in (x, y))
    p, q = (_basis(each, triangle(z, each), len(x) - 1) for z, each in ((x, one), (y, two)))
    a, b = (basis.right * _reciprocal(basis.values)[None].astype(basis.right.dtype) for basis in (p, q))
    return p, q, transformed(x, y, one, two, a, b)[1]


def _by_second_pass(
    x: Array, y: Array, one: Frame, two: Frame, spectra: list[tuple[Array, Array]], alike: bool
) -> Found:
    """From covariances whose small directions are rough: with them the units are nearly orthonormal, and made so.

    The products of what the first whitening gives are close to the identity, so they lose nothing (Yamamoto et al.
    2015, CholeskyQR2). If they are not close, the first was no whitening, and the factors are taken.
    """
    roots = [jnp.sqrt(jnp.maximum(squares, 0)) for squares, _ in spectra]
    rough = [vectors * _reciprocal(root)[None] for root, (_, vectors) in zip(roots, spectra, strict=True)]
    aa, ab, bb = transformed(x, y, one, two, *rough)
    sides = list(zip((one, two), roots, (vectors for _, vectors in spectra), (aa, bb), strict=True))
    near = jnp.all(jnp.array([_is_near(gram, root > 0, each.varies) for each, root, _, gram in sides]))

    def made_so(*_: Array) -> Found:
        found, turns = [], []
        for each, root, vectors, gram in sides:
            # X = Q (root V') with Q'Q = gram, so X'X = F'F with F = gram^1/2 root V'
            unrolled = root[:, None] * vectors.T
            squares, axes = jnp.linalg.eigh(gram)
            half = jnp.matmul(axes * jnp.sqrt(jnp.maximum(squares, 0))[None], axes.T, precision=HIGHEST)
            basis = _basis(each, jnp.matmul(half, unrolled, precision=HIGHEST), len(x) - 1)
            turn = jnp.matmul(unrolled, basis.right, precision=HIGHEST)
            turns.append(turn * _reciprocal(basis.values)[None])
            found.append(basis)
        return *found, jnp.matmul(turns[0].T, jnp.matmul(ab, turns[1], precision=HIGHEST), precision=HIGHEST)

    carefully = _of_sets(lambda x, y: _by_factors(x, y, alike), x, y)
    return jax.lax.cond(near, made_so, carefully, *map(jnp.ravel, (x, y)))


def _is_near(gram: Array, kept: Array, varies: Array) -> Array:
    """Whether these are the products of an orthonormal basis of as many vectors as there are units that vary."""
    identity = jnp.diag(kept.astype(gram.dtype))
    return (jnp.sum(kept) == jnp.sum(varies)) & jnp.all(jnp.abs(gram - identity) < _NEAR)


def _basis(each: Frame, factor: Array, most: Scalar) -> Basis:
    """From a factor, ``factor' factor = X'X``."""
    _, values, right = decomposed(factor, most)
    return Basis(each.mean, each.scale, values, right, jnp.sum(values > 0), each.varies)


def decomposed(units: Array, most: Scalar) -> tuple[Array, Array, Array]:
    """Left singular vectors, values and right singular vectors in columns; zero beyond the rank, which is ``most``."""
    left, values, right = jnp.linalg.svd(units, full_matrices=False)
    floor = _ROUNDING * values[0] * jnp.finfo(values.dtype).eps * units.shape[1] ** 0.5
    kept = (values > floor) & (jnp.arange(len(values)) < most)
    return jnp.where(kept[None], left, 0), jnp.where(kept, values, 0), jnp.where(kept[None], jnp.conj(right.T), 0)


def _by_covariance(one: Frame, two: Frame, spectra: list[tuple[Array, Array]], cross: Array) -> Found:
    found = []
    for each, (squares, right) in zip((one, two), spectra, strict=True):
        values = jnp.sqrt(squares[::-1])
        found.append(Basis(each.mean, each.scale, values, right[:, ::-1], jnp.array(len(values)), each.varies))
    a, b = (basis.right / basis.values[None] for basis in found)
    return *found, jnp.matmul(a.T, jnp.matmul(cross, b, precision=HIGHEST), precision=HIGHEST)


def _reciprocal(values: Array) -> Array:
    return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)
