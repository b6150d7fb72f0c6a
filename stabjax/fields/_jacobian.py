"""Jacobian of a field, and where it folds."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax._arguments import as_key
from stabjax._types import Coefficients, PRNGKey, Scalar
from stabjax.fields._checks import check_scalar, check_spatial_shape, mode_count
from stabjax.fields._modes import check_shapes, phases, pixels, safe_sqrt, separable_sum, sines
from stabjax.fields._modes import coefficients as draw_coefficients


def jacobian_determinant(
    coefficients: Coefficients, shape: Sequence[int], temperature: Scalar
) -> Float[Array, "*spatial"]:
    """Compute ``det(1 - grad tau)`` of the map ``s -> s - tau(s)`` at every pixel, analytic, in pixel coordinates.

    Pixels are ``1/(n-1)`` apart on the unit box, so ``d tau_a / d s_b`` is ``n / (n_b - 1)`` times the derivative
    there. The field folds where the determinant is not positive. Arguments as in `synthesize`.

    Returns:
        ``shape``.
    """
    shape, coefficients = check_shapes(shape, jnp.asarray(coefficients))
    return _determinant(coefficients, check_scalar("temperature", temperature, dtype=coefficients.dtype), shape)


@partial(jax.jit, static_argnums=2)
def _determinant(
    coefficients: Float[Array, " ndim *modes"], temperature: Float[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "*spatial"]:
    ndim, modes = len(shape), coefficients.shape[1:]
    # tau_a = sum_i strength^a_i prod_k sin(i_k pi u_k), in pixels.
    strength = coefficients * (pixels(shape) * safe_sqrt(temperature))
    columns = []
    for axis in range(ndim):
        # d tau / d s_axis: a cosine in place of the sine on this axis, times i pi / (n - 1), the slope of i pi u.
        tables = [sines(n, m) for n, m in zip(shape, modes)]
        n, m = shape[axis], modes[axis]
        tables[axis] = np.cos(phases(n, m)) * (np.pi * np.arange(1, m + 1) / (n - 1))[:, None]
        # All components at once: columns[b] is (ndim, *spatial), d tau_a / d s_b for every a.
        columns.append(separable_sum(strength, tables))
    # jacobian[a][b] = (a == b) - d tau_a / d s_b
    jacobian = [[float(a == b) - columns[b][a] for b in range(ndim)] for a in range(ndim)]
    return _cofactor_expansion(jacobian)


def _cofactor_expansion(rows: list[list[Float[Array, "*spatial"]]]) -> Float[Array, "*spatial"]:
    """Expand a determinant by its first row: `jnp.linalg.det` of many small matrices is slow."""
    if len(rows) == 1:
        return rows[0][0]
    minors = [[row[:b] + row[b + 1 :] for row in rows[1:]] for b in range(len(rows))]
    terms = [(-1) ** b * (entry * _cofactor_expansion(minor)) for b, (entry, minor) in enumerate(zip(rows[0], minors))]
    return reduce(operator.add, terms)


@partial(jax.tree_util.register_dataclass, data_fields=["value", "standard_error"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class FoldProbability:
    """A Monte Carlo estimate of the probability that a field folds somewhere."""

    value: Float[Array, ""]
    """Share of the fields with ``det(1 - grad tau) <= 0`` at one pixel at least."""
    standard_error: Float[Array, ""]
    """``sqrt(p (1 - p) / samples)``; zero where none or all of the fields fold."""


def fold_probability(
    shape: Sequence[int],
    *,
    key: PRNGKey,
    temperature: Scalar,
    cutoff: Scalar,
    samples: int = 1000,
    max_cutoff: int | None = None,
) -> FoldProbability:
    """Estimate the probability that a random field is no diffeomorphism: that it folds at one grid point at least.

    At the published ``T_max`` and n = 32 it is 0.58, 0.37, 0.33, 0.15, 0.08 for c = 2, 3, 5, 10, 15.

    Args:
        shape: the sides of the image in pixels.
        key: one key.
        temperature: ``T >= 0``; may be traced.
        cutoff: ``c >= 1``; may be traced, beside ``max_cutoff``.
        samples: number of fields drawn.
        max_cutoff: the largest cutoff of a sweep.
    """
    sides = check_spatial_shape(shape)
    modes = mode_count(cutoff, max_cutoff, len(sides))
    if samples < 1:
        raise ValueError(f"expected at least one sample, got {samples}")

    def folds(key: PRNGKey) -> Float[Array, ""]:
        amplitudes = draw_coefficients(key, cutoff, max_cutoff=modes, ndim=len(sides))
        # A field folds if one pixel does. NaN (a cutoff above the modes at hand) stays NaN, and is not counted as no
        # fold.
        lowest = jnp.min(jacobian_determinant(amplitudes, sides, temperature))
        return jnp.where(jnp.isnan(lowest), jnp.nan, (lowest <= 0).astype(lowest.dtype))

    # A hundred fields at a time: memory does not grow with the number of samples.
    p = jnp.mean(jax.lax.map(folds, jax.random.split(as_key(key), samples), batch_size=min(samples, 100)))
    return FoldProbability(p, jnp.sqrt(p * (1 - p) / samples))
