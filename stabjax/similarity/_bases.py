"""Orthonormal bases of the spans of two sets of units, and the products of their vectors.

There are four routes to them, from the fastest, which squares the condition of the units, to the safest::

    few samples per unit          singular value decomposition of all samples
    many samples per unit         covariances        where all their directions are well above rounding
                                  CholeskyQR2        where whitening by them comes out nearly orthonormal
                                  triangular factors, for all others and for complex units

Which of the last three it is depends on the numbers, so it is chosen at run time.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from stabjax._numerics import HIGHEST
from stabjax._types import AnyArray, Scalar
from stabjax.similarity._chunked import Standardization, moments, qr_factor, standardization_of, transformed_products
from stabjax.similarity._inputs import Scaled, center_and_scale

_MANY_PER_UNIT = 16
"""From so many samples per unit on, covariances are worth a try, and triangular factors are faster than the singular
value decomposition of all samples."""
_SMALLEST_VARIANCE = 1e-2
"""Smallest share of the largest variance that covariances resolve: they square the condition, so an error of one
rounding becomes a hundred."""
_LARGEST_DEFECT = 0.1
"""How far from orthonormal a first whitening may be."""
_ROUNDINGS = 8.0
"""Singular values below so many roundings of the largest, times the root of the number of units, count as zero."""


class Basis(NamedTuple):
    """Hold an orthonormal basis of the span of centered units, in the order of explained variance.

    With the singular value decomposition ``U diag(values) right'`` of the centered units over their scales, the basis
    is ``U``. Columns beyond the rank are zero.
    """

    mean: Array
    """Of the units, ``(units,)``."""
    scale: Array
    """What the units are divided by, ``(units,)``: 1 where a unit does not vary."""
    values: Array
    """Singular values, ``(k,)``, falling, zero beyond the rank."""
    right: Array
    """Right singular vectors, ``(units, k)``."""
    rank: Int[Array, ""]
    """Dimension of the span, ``()``."""
    varies: Bool[Array, " units"]
    """False for units that have one value on all samples, ``(units,)``."""

    @property
    def coefficients(self) -> Array:
        """Return ``c`` with ``(centered units) @ c`` the basis, ``(units, k)``."""
        # (X / scale) right / values = U, where X / scale = U diag(values) right'.
        return self.right * (_reciprocal(self.values)[None] / self.scale[:, None]).astype(self.right.dtype)

    @property
    def loadings(self) -> Array:
        """Return the product of every basis vector with every centered unit, ``(k, units)``."""
        # U'X = diag(values) right' diag(scale).
        return jnp.conj(self.right.T) * (self.values[:, None] * self.scale[None]).astype(self.right.dtype)


BasisPair = tuple[Basis, Basis, Array]
"""Two bases, and the products of their vectors ``(k_x, k_y)``."""
Spectrum = tuple[Array, Array]
"""Eigenvalues, rising, and eigenvectors in columns."""


@partial(jax.jit, static_argnames="standardize")
def orthonormal_bases(x: AnyArray, y: AnyArray, *, standardize: bool) -> BasisPair:
    """Return bases of two sets of units ``(n, units)``, and the products of their vectors ``(k_x, k_y)``.

    Args:
        x: samples in rows; real or complex.
        y: the same samples.
        standardize: whether each unit is brought to one scale, which an analysis that does not see linear maps may do
            and which keeps tiny and huge units exact; otherwise units count by their variance.
    """
    x, y = (jnp.asarray(z) for z in (x, y))
    # Both sets take one route: the products of the vectors need both bases at the same samples.
    if min(len(x) // z.shape[1] for z in (x, y)) < _MANY_PER_UNIT:
        return _bases_by_svd(*(center_and_scale(z, standardize=standardize) for z in (x, y)))
    if jnp.iscomplexobj(x) or jnp.iscomplexobj(y):
        return _bases_by_qr(x, y, standardize)
    first, second, (xx, xy, yy), is_reliable = moments(x, y, standardize=standardize)
    spectra = [_spectrum(gram, each.varies) for gram, each in ((xx, first), (yy, second))]
    # Eigenvalues are squares of singular values, rising: the first over the last is the smallest share. Where a unit
    # does not vary the first is negative, and its set is not resolved.
    resolved = jnp.array([squares[0] > _SMALLEST_VARIANCE * squares[-1] for squares, _ in spectra])
    # The first branch needs the moments alone, the second further passes over the samples. Outside of `vmap` only the
    # branch that is taken runs.
    return jax.lax.cond(
        is_reliable & jnp.all(resolved),
        lambda *_: _bases_by_covariances(first, second, spectra, xy),
        _take_flat(lambda x, y: _bases_by_cholesky_qr2(x, y, first, second, spectra, standardize), x, y),
        *map(jnp.ravel, (x, y)),
    )


def _take_flat(f: Callable[..., BasisPair], *sets: Array) -> Callable[..., BasisPair]:
    """Make a branch that takes the sets flat: QR wants columns, so whole ones would be transposed first."""
    return lambda *flat: f(*(jnp.reshape(z, like.shape) for z, like in zip(flat, sets, strict=True)))


def _spectrum(gram: Array, varies: Array) -> Spectrum:
    """Decompose products of units; a unit that does not vary, alone in its row, gets a negative eigenvalue."""
    diagonal = jnp.diagonal(gram)
    # Its row and column are zero, so it is an eigenvector by itself and the others stay as they are.
    dead = jnp.where(varies, 0, jnp.max(diagonal) + 1)
    return jnp.linalg.eigh(gram - jnp.diag(dead))


def _bases_by_svd(first: Scaled, second: Scaled) -> BasisPair:
    """Decompose all samples."""
    vectors, bases = [], []
    for units, mean, scale, varies in (first, second):
        # Centering takes one direction away: what is left of it is rounding.
        left, values, right = truncated_svd(units, len(units) - 1)
        vectors.append(left)
        bases.append(Basis(mean, scale, values, right, jnp.sum(values > 0), varies))
    return *bases, jnp.matmul(jnp.conj(vectors[0].T), vectors[1], precision=HIGHEST)


def _bases_by_qr(x: Array, y: Array, standardize: bool) -> BasisPair:
    """Decompose triangular factors, which have the singular values and the right singular vectors of all samples."""
    first, second = (standardization_of(z, standardize=standardize) for z in (x, y))
    p, q = (_basis_of_factor(each, qr_factor(z, each), len(x) - 1) for z, each in ((x, first), (y, second)))
    # a and b, (units, k), have X a = U; of the three blocks of products only U_x'U_y is asked for.
    a, b = (basis.right * _reciprocal(basis.values)[None].astype(basis.right.dtype) for basis in (p, q))
    return p, q, transformed_products(x, y, first, second, a, b)[1]


def _bases_by_cholesky_qr2(
    x: Array, y: Array, first: Standardization, second: Standardization, spectra: list[Spectrum], standardize: bool
) -> BasisPair:
    """Whiten by covariances whose small directions are rough, and orthonormalize what that gives.

    Two whitenings are as exact as one QR decomposition, for two passes of products: those of the whitened units are
    close to the identity, so the second one loses nothing (CholeskyQR2, Yamamoto et al. 2015; here with eigenvectors
    in place of Cholesky factors). In the symbols used below, of each set ``X``::

        X'X ~ V root^2 V'                 the covariances, small directions rough
        Q   = X V / root                  the first whitening: nearly orthonormal
        G   = Q'Q ~ 1                     its products, from a second pass over the samples
        X   = Q (root V')                 so  X'X = F'F  with  F = G^1/2 (root V'),  exactly
        F   = U diag(values) right'       its decomposition is that of X

    If some ``G`` is not close to the identity, the first step was no whitening, and triangular factors are taken.
    """
    # Eigenvalues that are not positive are rounding, or a unit that does not vary: their column of Q is zero.
    roots = [jnp.sqrt(jnp.maximum(squares, 0)) for squares, _ in spectra]
    whiteners = [vectors * _reciprocal(root)[None] for root, (_, vectors) in zip(roots, spectra, strict=True)]
    # Q'Q of both sets, and Q_x'Q_y between them.
    xx, xy, yy = transformed_products(x, y, first, second, *whiteners)
    sets = list(zip((first, second), roots, (vectors for _, vectors in spectra), (xx, yy), strict=True))
    # A lost direction shows here too: Q must have as many vectors as there are units that vary.
    near = [_is_nearly_orthonormal(gram, root > 0, each.varies) for each, root, _, gram in sets]

    def orthonormalize(*_: Array) -> BasisPair:
        bases, rotations = [], []
        for each, root, vectors, gram in sets:
            # root V', (k, units): what takes the first whitening back to the units.
            unwhitening = root[:, None] * vectors.T
            squares, axes = jnp.linalg.eigh(gram)
            # G^1/2; roots of negative eigenvalues, which are rounding, are zero.
            square_root = jnp.matmul(axes * jnp.sqrt(jnp.maximum(squares, 0))[None], axes.T, precision=HIGHEST)
            basis = _basis_of_factor(each, jnp.matmul(square_root, unwhitening, precision=HIGHEST), len(x) - 1)
            # The basis is X right / values = Q (root V' right / values): how it lies in the first whitening.
            rotation = jnp.matmul(unwhitening, basis.right, precision=HIGHEST)
            rotations.append(rotation * _reciprocal(basis.values)[None])
            bases.append(basis)
        # U_x'U_y = rotation_x' (Q_x'Q_y) rotation_y.
        cross = jnp.matmul(xy, rotations[1], precision=HIGHEST)
        return *bases, jnp.matmul(rotations[0].T, cross, precision=HIGHEST)

    by_qr = _take_flat(lambda x, y: _bases_by_qr(x, y, standardize), x, y)
    return jax.lax.cond(jnp.all(jnp.array(near)), orthonormalize, by_qr, *map(jnp.ravel, (x, y)))


def _is_nearly_orthonormal(gram: Array, positive: Array, varies: Array) -> Array:
    """Tell whether these are products of a near-orthonormal basis of as many vectors as there are units that vary."""
    identity = jnp.diag(positive.astype(gram.dtype))
    return (jnp.sum(positive) == jnp.sum(varies)) & jnp.all(jnp.abs(gram - identity) < _LARGEST_DEFECT)


def _basis_of_factor(standardization: Standardization, factor: Array, most: Scalar) -> Basis:
    """Return the basis of units ``X``, of rank ``most`` or less, from a factor with ``factor' factor = X'X``."""
    _, values, right = truncated_svd(factor, most)
    mean, scale, varies = standardization.mean, standardization.scale, standardization.varies
    return Basis(mean, scale, values, right, jnp.sum(values > 0), varies)


def truncated_svd(units: Array, most: Scalar) -> tuple[Array, Array, Array]:
    """Return left singular vectors, values, and right singular vectors in columns; zero beyond the rank.

    The rank is ``most`` or less: values that are rounding of the largest one do not count.
    """
    left, values, right = jnp.linalg.svd(units, full_matrices=False)
    floor = _ROUNDINGS * values[0] * jnp.finfo(values.dtype).eps * units.shape[1] ** 0.5
    # Values fall, so those that are kept stand in front.
    kept = (values > floor) & (jnp.arange(len(values)) < most)
    return jnp.where(kept[None], left, 0), jnp.where(kept, values, 0), jnp.where(kept[None], jnp.conj(right.T), 0)


def _bases_by_covariances(
    first: Standardization, second: Standardization, spectra: list[Spectrum], cross: Array
) -> BasisPair:
    """Take the eigenvectors of covariances of full rank as right singular vectors."""
    bases = []
    for each, (squares, right) in zip((first, second), spectra, strict=True):
        # Rising eigenvalues become falling values. This route is taken where all directions are well above rounding:
        # the rank is the number of units, and nothing is divided by zero.
        values = jnp.sqrt(squares[::-1])
        bases.append(Basis(each.mean, each.scale, values, right[:, ::-1], jnp.array(len(values)), each.varies))
    # U_x'U_y = a'(X'Y) b, with X a = U_x and Y b = U_y.
    a, b = (basis.right / basis.values[None] for basis in bases)
    return *bases, jnp.matmul(a.T, jnp.matmul(cross, b, precision=HIGHEST), precision=HIGHEST)


def _reciprocal(values: Array) -> Array:
    """Return ``1 / values``, zero where the value is zero."""
    return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)
