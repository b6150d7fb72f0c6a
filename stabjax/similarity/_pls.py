"""Partial least squares and the Procrustes distance: comparisons by covariance."""

from dataclasses import dataclass
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stabjax._numerics import HIGHEST, permit_nan, safe_ratio
from stabjax.similarity._inputs import X, Y, center_and_scale, validate_pair


@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False)
class PLS:
    """Hold the directions of largest covariance between two sets of units; a frozen pytree.

    Attributes:
        covariances: between the two variates of each pair, ``(k,)``, falling; ``k = min(units_x, units_y, n)``; with
            ``n - 1`` in the denominator.
        x_directions: orthonormal coefficients of the variates, ``(units_x, k)``.
        y_directions: ``(units_y, k)``.
        similarity: ``sum_i covariances_i / sqrt(var(x) var(y))`` with the total variances of both sets, in [0, 1]; 1 if
            one set is a rotated and scaled copy of the other; ``()``.
        valid: whether both sets vary, and nothing is NaN, ``()``; the similarity is NaN otherwise.
    """

    covariances: Float[Array, "*sets k"]
    x_directions: Float[Array, "*sets units_x k"]
    y_directions: Float[Array, "*sets units_y k"]
    similarity: Float[Array, "*sets"]
    valid: Bool[Array, "*sets"]


@permit_nan()
def pls(x: X, y: Y) -> PLS:
    """Compute partial least squares: the singular value decomposition of the covariance of two sets of units.

    Unlike CCA it does not whiten, so directions count by their variance, and it is safe with few samples.

    Args:
        x: activations, ``(n, units_x)``, samples in rows.
        y: ``(n, units_y)``, for the same samples.

    Raises:
        TypeError: if the activations are not real floating-point numbers.
        ValueError: if the numbers of samples differ, or there is one sample.
    """
    x, y = validate_pair(x, y)
    (x, x_axes, x_size), (y, y_axes, y_size) = (_condense(z) for z in (x, y))
    # Of the units over their sizes: the sizes come back into the covariances at the end, and cancel from the
    # similarity.
    left, values, right = jnp.linalg.svd(jnp.matmul(x.T, y, precision=HIGHEST), full_matrices=False)
    similarity = jnp.clip(safe_ratio(jnp.sum(values), jnp.linalg.norm(x) * jnp.linalg.norm(y)), 0, 1)
    x_directions, y_directions = (
        vectors if axes is None else jnp.matmul(axes, vectors, precision=HIGHEST)
        for axes, vectors in ((x_axes, left), (y_axes, right.T))
    )
    covariances = values * (x_size * y_size / (len(x) - 1))
    return PLS(covariances, x_directions, y_directions, similarity, jnp.isfinite(similarity))


@permit_nan()
def procrustes(x: X, y: Y) -> Float[Array, ""]:
    """Compute the Procrustes distance, ``min_Q |x - y Q|^2`` over orthogonal ``Q``, of centered sets of norm one.

    ``|x|^2 + |y|^2 - 2 |x'y|_* = 2 - 2 |x'y|_*`` with the nuclear norm (Schoenemann 1966), in [0, 2],
    ``()``: 0 for rotated and scaled copies, 2 for sets without common variance. The smaller set is filled up with
    zeros. NaN if one does not vary.

    Args:
        x: activations, ``(n, units_x)``, samples in rows.
        y: ``(n, units_y)``, for the same samples.

    Raises:
        TypeError: as in `pls`.
        ValueError: as in `pls`.
    """
    return 2 - 2 * pls(x, y).similarity


def _condense(x: Array) -> tuple[Array, Array | None, Array]:
    """Return centered units over their largest value, and that value.

    Where there are more units than samples, they come in coordinates along orthonormal axes ``(units, n)`` of their
    span, which are returned in between; None where the units are their own axes.
    """
    units, _, scale, _ = center_and_scale(x, standardize=False)
    if x.shape[1] <= len(x):
        return units, None, scale[0]
    # x = left diag(values) right: the rows of `right` are the axes, left * values the coordinates along them, (n, n).
    left, values, right = jnp.linalg.svd(units, full_matrices=False)
    return left * values[None], right.T, scale[0]
