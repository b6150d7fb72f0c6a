"""Centered kernel alignment."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST, permit_nan, safe_ratio
from stabjax._types import Scalar
from stabjax.similarity._inputs import X, Y, center_and_scale, validate_pair

Kernel = Literal["linear", "rbf"]


@permit_nan()
def cka(x: X, y: Y, *, kernel: Kernel = "linear", debiased: bool = False, bandwidth: Scalar = 1.0) -> Float[Array, ""]:
    """Compute centered kernel alignment (Kornblith et al. 2019, arXiv 1905.00414).

    ``CKA = HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))``. With the linear kernel
    it is ``|y'x|_F^2 / (|x'x|_F |y'y|_F)`` of centered units: the same for rotations and scalings of either set, not
    for other linear maps. Meaningful with fewer samples than units, where CCA is not; but biased upwards there, which
    ``debiased`` removes.

    Args:
        x: activations, ``(n, units_x)``, samples in rows.
        y: ``(n, units_y)``, for the same samples.
        kernel: ``"linear"``, or ``"rbf"``: ``exp(-|a - b|^2 / (2 s^2))`` with ``s = bandwidth`` times the median
            distance of two samples of the set (the rms distance where that is 0), so that it does not depend on scale.
        debiased: HSIC by its unbiased estimator (Song et al. 2012), in [-1, 1] and about 0 for independent sets; at
            least four samples. Otherwise in [0, 1].
        bandwidth: see ``kernel``.

    Returns:
        the alignment, ``()``; NaN if one of the sets does not vary.

    Raises:
        TypeError: if the activations are not real floating-point numbers.
        ValueError: if the numbers of samples differ, or there are too few; or for another kernel.
    """
    x, y = validate_pair(x, y, least=4 if debiased else 2)
    if kernel not in get_args(Kernel):
        raise ValueError(f"expected kernel to be one of {get_args(Kernel)}, got {kernel!r}")
    x, y = (center_and_scale(z, standardize=False).units for z in (x, y))
    if kernel == "linear" and x.shape[1] * y.shape[1] < len(x) ** 2:
        # Fewer products of units with units than of samples with samples.
        return alignment_of_hsic(*(_hsic_of_units(a, b, debiased) for a, b in ((x, y), (x, x), (y, y))))
    grams = [jnp.matmul(z, z.T, precision=HIGHEST) if kernel == "linear" else _rbf(z, bandwidth) for z in (x, y)]
    grams = jnp.stack([center_gram(gram, debiased=debiased) for gram in grams])
    (xx, xy), (_, yy) = inner_products(grams, grams)
    return alignment_of_hsic(xy, xx, yy)


def alignment_of_hsic(xy: Array, xx: Array, yy: Array) -> Array:
    """Return ``xy / sqrt(xx yy)`` of values of HSIC; by Cauchy and Schwarz never outside [-1, 1] but by rounding."""
    # Two roots: the product of two values could overflow.
    return jnp.clip(safe_ratio(xy, jnp.sqrt(jnp.maximum(xx, 0)) * jnp.sqrt(jnp.maximum(yy, 0))), -1, 1)


def center_gram(gram: Float[Array, "n n"], *, debiased: bool) -> Float[Array, "n n"]:
    """Return ``H K H`` with ``H = 1 - 1/n``, or debiased what makes products of two unbiased estimates of HSIC.

    The latter up to a factor, by U-centering (Szekely and Rizzo 2014)::

        K_ij - sum_l K_il / (n - 2) - sum_k K_kj / (n - 2) + sum_kl K_kl / ((n - 1) (n - 2)),    0 on the diagonal
    """
    n = len(gram)
    if not debiased:
        rows = gram - jnp.mean(gram, axis=1, keepdims=True)
        return rows - jnp.mean(rows, axis=0, keepdims=True)
    off = 1 - jnp.eye(n, dtype=gram.dtype)
    gram = gram * off
    rows = jnp.sum(gram, axis=1)
    return off * (gram - (rows[:, None] + rows[None]) / (n - 2) + jnp.sum(rows) / ((n - 1) * (n - 2)))


def inner_products(a: Float[Array, "x n n"], b: Float[Array, "y n n"]) -> Float[Array, "x y"]:
    """Return ``sum_ij A_ij B_ij`` of every pair."""
    return jnp.matmul(jnp.reshape(a, (len(a), -1)), jnp.reshape(b, (len(b), -1)).T, precision=HIGHEST)


def _hsic_of_units(x: Array, y: Array, debiased: bool) -> Array:
    """Return ``|x'y|_F^2``, or less its bias: the diagonals of the kernels, ``|x_i|^2``, must not count.

    The same numbers as from `center_gram`, without the ``(n, n)`` matrices.
    """
    square = jnp.sum(jnp.square(jnp.matmul(x.T, y, precision=HIGHEST)))
    if not debiased:
        return square
    n = len(x)
    a, b = (jnp.sum(jnp.square(z), axis=1) for z in (x, y))
    # Rows of a centered Gram sum to zero, so without its diagonal a they sum to -a. The estimator (Song et al. 2012)
    #   sum_(i != j) K_ij L_ij - 2 / (n - 2) sum_i (K1)_i (L1)_i + (1'K1) (1'L1) / ((n - 1) (n - 2))
    # has  sum_(i != j) K_ij L_ij = |x'y|^2 - sum a b,  K1 = -a,  L1 = -b.
    return square - jnp.sum(a * b) * (n / (n - 2)) + jnp.sum(a) * jnp.sum(b) / ((n - 1) * (n - 2))


def _rbf(x: Array, bandwidth: Scalar) -> Array:
    """Return the Gram matrix of the RBF kernel, ``(n, n)``; zero if all samples are one point."""
    squares = jnp.sum(jnp.square(x), axis=1)
    distances = squares[:, None] + squares[None] - 2 * jnp.matmul(x, x.T, precision=HIGHEST)
    distances = jnp.maximum(distances, 0) * (1 - jnp.eye(len(x), dtype=x.dtype))
    pairs = distances[jnp.triu_indices(len(x), 1)]
    median, mean = jnp.median(pairs), jnp.mean(pairs)
    square = jnp.where(median > 0, median, mean)  # where more than half of the samples are one point
    return jnp.where(square > 0, jnp.exp(-distances / jnp.where(square > 0, 2 * bandwidth**2 * square, 1)), 0)
