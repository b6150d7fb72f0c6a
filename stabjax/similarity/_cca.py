"""Canonical correlations, and the similarities made of them: CCA, SVCCA, PWCCA."""

from dataclasses import dataclass
from typing import Literal, get_args, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax._numerics import HIGHEST, permit_nan
from stabjax._types import Scalar
from stabjax.similarity._bases import Basis, orthonormal_bases
from stabjax.similarity._inputs import X, Y, validate_pair

Weights = Literal["paper", "google", "anatome"]


@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False)
class CCA:
    """Hold the canonical correlations of two sets of units.

    A frozen pytree, so results stack under `vmap`; further axes then stand in front.

    Attributes:
        correlations: ``(k,)``, ``k = min(units_x, units_y, n)``, falling, each in [0, 1]; zero beyond ``count``.
        x_directions: coefficients of the canonical variates, ``(units_x, k)``: ``(x - x_mean) @ x_directions`` are
            orthonormal columns; zero beyond ``count``.
        y_directions: ``(units_y, k)``; column ``i`` belongs to correlation ``i``.
        x_mean: ``(units_x,)``.
        y_mean: ``(units_y,)``.
        x_rank: dimension of what the units of ``x`` span (of what was kept of it, in `svcca`), ``()``.
        y_rank: ``()``.
        x_varies: False for units dropped because they have one value on all samples, ``(units_x,)``.
        y_varies: ``(units_y,)``.
        valid: whether the correlations say anything, ``()``: both sets vary, nothing is NaN, ``x_rank + y_rank < n``.
            With fewer samples, any two sets of units share directions: some correlations are 1 whatever the networks,
            and with no more samples than units all of them are.
    """

    correlations: Float[Array, "*sets k"]
    x_directions: Array
    y_directions: Array
    x_mean: Array
    y_mean: Array
    x_rank: Int[Array, "*sets"]
    y_rank: Int[Array, "*sets"]
    x_varies: Bool[Array, "*sets units_x"]
    y_varies: Bool[Array, "*sets units_y"]
    valid: Bool[Array, "*sets"]

    @property
    def count(self) -> Int[Array, "*sets"]:
        """Return the number of correlations, ``min(x_rank, y_rank)``, ``()``."""
        return jnp.minimum(self.x_rank, self.y_rank)

    @property
    @permit_nan()
    def mean(self) -> Float[Array, "*sets"]:
        """Return the mean correlation, in [0, 1], ``()``; NaN where ``valid`` is False."""
        total = jnp.sum(self.correlations, axis=-1)
        return jnp.where(self.valid, total / jnp.maximum(self.count, 1).astype(total.dtype), jnp.nan)


@permit_nan()
def cca(x: X, y: Y) -> CCA:
    """Compute canonical correlations of two sets of units over the same samples (Hotelling 1936).

    Both sets are whitened; the singular values of the products of the two orthonormal bases are the correlations. They
    are the same for any invertible affine map of either set. Dead and duplicate units, or directions that are only
    rounding, are left out: nothing is added to a covariance.

    Args:
        x: activations, ``(n, units_x)``: samples in rows. Make them of maps by `positions`, `average`, `resized`. Half
            precision is taken as single.
        y: ``(n, units_y)``, for the same samples.

    Returns:
        the correlations; read ``valid`` before using them.

    Raises:
        TypeError: if the activations are not real floating-point numbers.
        ValueError: if the numbers of samples differ, or there is one sample.
    """
    x, y = validate_pair(x, y)
    first, second, products = orthonormal_bases(x, y, standardize=True)
    return cca_of_bases(first, second, products, len(x))


@permit_nan()
def svcca(x: X, y: Y, *, keep: float | int = 0.99) -> CCA:
    """Compute CCA of the leading directions of each set (Raghu et al. 2017, arXiv 1706.05806).

    Each set is first reduced to its leading principal directions, which removes directions of little variance. Its
    ``mean`` is the published similarity.

    Args:
        x: activations, ``(n, units_x)``.
        y: ``(n, units_y)``.
        keep: a share of the variance in (0, 1], such as 0.99: the fewest directions that explain it; or a whole number
            of directions, at least one (all there are, if there are fewer).

    Raises:
        TypeError: as in `cca`.
        ValueError: as in `cca`, or if ``keep`` is neither.
    """
    x, y = validate_pair(x, y)
    if isinstance(keep, bool) or (keep < 1 if isinstance(keep, int) else not 0 < keep <= 1):
        raise ValueError(f"expected keep to be a share in (0, 1] or a number of directions >= 1, got {keep}")
    first, second, products = orthonormal_bases(x, y, standardize=False)
    first, second, products = truncate_pair(first, second, products, keep)
    return cca_of_bases(first, second, products, len(x))


@permit_nan()
def pwcca(x: X, y: Y, *, weights: Weights = "paper") -> Float[Array, ""]:
    """Compute projection-weighted CCA, ``sum_i alpha_i rho_i / sum_i alpha_i`` (Morcos et al. 2018, arXiv 1806.05759).

    ``alpha_i = sum_j |<h_i, x_j>|`` weighs a correlation by how much of ``x`` its variate accounts for: ``h_i`` are the
    orthonormal canonical variates of ``x``, ``x_j`` its centered units. Not symmetric: the weights are those of ``x``.

    Not unique where correlations tie, as where several are 1: the variates of equal correlations may be turned among
    each other, which changes their weights. The value is then that of the variates which the decomposition happens to
    find. So too, by nearly as much, where correlations are equal to rounding.

    Args:
        x: activations, ``(n, units_x)``.
        y: ``(n, units_y)``.
        weights: ``"paper"``; or what two implementations in circulation compute instead: ``"google"`` (google/svcca
            takes directions of units that are not whitened, adds the means of the units, orthonormalizes, and projects
            activations that are not centered; it depends on the signs of singular vectors, which nothing fixes) or
            ``"anatome"`` (orthonormalizes the coefficients instead of the variates, and sums over samples what they
            make of the activations as they are, not centered: the value changes with the means of the units).

    Returns:
        the similarity, in [0, 1], ``()``; NaN where `cca` is not ``valid``.

    Raises:
        TypeError: as in `cca`.
        ValueError: as in `cca`, or for other weights.
    """
    x, y = validate_pair(x, y)
    if weights not in get_args(Weights):
        raise ValueError(f"expected weights to be one of {get_args(Weights)}, got {weights!r}")
    # All weights are of first order in x: a common factor cancels from the weighted mean.
    x = x / _power_of_two(x)
    first, second, products = orthonormal_bases(x, y, standardize=weights == "paper")
    if weights == "google":
        # Whitened units, (x - mean) (X'X)^-1/2, in place of the basis: left singular vectors are theirs then.
        products = first.right @ products @ second.right.T
    # Column i of `left` says what the variate i of x is made of, in terms of the basis.
    left, correlations, _ = jnp.linalg.svd(products, full_matrices=False)
    if weights == "paper":
        alpha = projection_weights(first, left)
    else:
        alpha = _google_weights(x, first, left) if weights == "google" else _anatome_weights(x, first, left)
    return weighted_mean(alpha, correlations, first, second, len(x))


def _power_of_two(x: Array) -> Array:
    """Return a power of two about as large as the largest value.

    Sums of what is divided by it do not overflow, and dividing by it loses no digit.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    usable = jnp.isfinite(largest) & (largest > 0)
    _, exponent = jnp.frexp(jnp.where(usable, largest, 1))
    return jnp.ldexp(jnp.ones((), x.dtype), exponent - 1)


def _google_weights(x: Array, basis: Basis, left: Array) -> Array:
    """Weigh by directions of the whitened units, applied to units that are not whitened, plus their means.

    These are means of units that vary. With fewer samples than directions, the last ones have no weight.
    """
    # Means of the units that vary in front, in their order: False sorts before True.
    means = basis.mean[jnp.argsort(~basis.varies, stable=True)]
    directions = jnp.matmul(x - basis.mean[None], left, precision=HIGHEST) + means[None, : left.shape[1]]
    # (n, k), or (n, n) where there are fewer samples than directions.
    orthonormal, _ = jnp.linalg.qr(directions)
    alpha = jnp.sum(jnp.abs(jnp.matmul(orthonormal.T, x, precision=HIGHEST)), axis=1)
    return jnp.pad(alpha, (0, left.shape[1] - len(alpha)))


def _anatome_weights(x: Array, basis: Basis, left: Array) -> Array:
    """Weigh by orthonormal coefficients, applied to activations as they are."""
    # (units, k): the columns of coefficients are made orthonormal here, not the variates x @ coefficients.
    coefficients, _ = jnp.linalg.qr(jnp.matmul(basis.coefficients, left, precision=HIGHEST))
    return jnp.sum(jnp.abs(jnp.matmul(x, coefficients, precision=HIGHEST)), axis=0)


def projection_weights(basis: Basis, left: Array) -> Float[Array, " k"]:
    """Return ``alpha_i = sum_j |<h_i, x_j>|`` of the canonical variates ``h = basis @ left`` and the centered units."""
    return jnp.sum(jnp.abs(jnp.matmul(left.T, basis.loadings, precision=HIGHEST)), axis=1)


def weighted_mean(weights: Array, correlations: Array, first: Basis, second: Basis, n: Scalar) -> Float[Array, ""]:
    """Average correlations over ``n`` samples up to the smaller rank, ``()``; NaN where they are not reliable."""
    # Beyond the smaller rank correlations are zero and variates arbitrary: their weights must not enter the sum.
    weights = jnp.where(jnp.arange(len(weights)) < jnp.minimum(first.rank, second.rank), weights, 0)
    value = jnp.dot(weights, correlations, precision=HIGHEST) / jnp.sum(weights)
    return jnp.where(is_reliable(first, second, correlations, n), jnp.clip(value, 0, 1), jnp.nan)


def truncate_pair(first: Basis, second: Basis, products: Array, keep: float | int) -> tuple[Basis, Basis, Array]:
    """Truncate two bases and the products of their vectors to leading directions; see `svcca` for ``keep``."""
    # Vectors that were dropped have the value zero; their rows and columns of the products go with them.
    first, second = (_truncate(basis, keep) for basis in (first, second))
    kept = (first.values > 0)[:, None] & (second.values > 0)[None]
    return first, second, jnp.where(kept, products, 0)


def _truncate(basis: Basis, keep: float | int) -> Basis:
    """Zero all but the leading vectors of a basis."""
    index = jnp.arange(len(basis.values))
    if isinstance(keep, int):
        kept = index < keep
    else:
        # The fewest directions that explain the share: those before which it is not explained yet.
        squares = jnp.square(basis.values)
        before = jnp.cumsum(squares) - squares
        kept = before < keep * jnp.sum(squares)
    # What is beyond the rank is zero already, and is not counted as a direction.
    kept = kept & (index < basis.rank)
    values, right = jnp.where(kept, basis.values, 0), jnp.where(kept[None], basis.right, 0)
    return basis._replace(values=values, right=right, rank=jnp.sum(kept))


def cca_of_bases(first: Basis, second: Basis, products: Array, n: Scalar) -> CCA:
    """Return CCA of two sets over ``n`` samples from the products of their orthonormal bases.

    With ``products = U diag(rho) V'`` the canonical variates are ``basis @ U`` and ``basis @ V``, and their
    correlations ``rho`` (Bjoerck and Golub 1973).
    """
    left, correlations, right = jnp.linalg.svd(products, full_matrices=False)
    defined = jnp.arange(len(correlations)) < jnp.minimum(first.rank, second.rank)
    # Singular vectors past the ranks are arbitrary.
    a, b = (jnp.where(defined[None], vectors, 0) for vectors in (left, jnp.conj(right.T)))
    return CCA(
        correlations=jnp.where(defined, jnp.clip(correlations, 0, 1), 0),
        x_directions=jnp.matmul(first.coefficients, a, precision=HIGHEST),
        y_directions=jnp.matmul(second.coefficients, b, precision=HIGHEST),
        x_mean=first.mean,
        y_mean=second.mean,
        x_rank=first.rank,
        y_rank=second.rank,
        x_varies=first.varies,
        y_varies=second.varies,
        valid=is_reliable(first, second, correlations, n),
    )


def is_reliable(first: Basis, second: Basis, correlations: Array, n: Scalar) -> Bool[Array, ""]:
    """Tell whether correlations over ``n`` samples say anything: see ``valid`` of `CCA`."""
    # Centered samples span n - 1 dimensions. Two subspaces with more dimensions than that together share a direction: a
    # correlation of 1, whatever the units.
    finite = jnp.all(jnp.isfinite(correlations))
    return finite & (jnp.minimum(first.rank, second.rank) > 0) & (first.rank + second.rank < n)
