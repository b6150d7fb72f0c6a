"""Canonical correlations of a stream, in two passes.

The first keeps a triangular factor of the centered units of each layer, which has their products ``R'R = X'X`` and,
other than the products, all their digits. The second adds up the products of the whitened units.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax._numerics import HIGHEST, permit_nan
from stabjax._types import AnyArray, Scalar
from stabjax.similarity._bases import Basis, truncated_svd
from stabjax.similarity._cca import projection_weights, truncate_pair, weighted_mean
from stabjax.similarity._inputs import center_rows, unit_scales
from stabjax.similarity.streaming._layers import Layers, mask_of, rows_of, split

Canonical = Literal["cca", "svcca", "pwcca"]
_KEEP = 0.99
"""Share of the variance that SVCCA keeps."""


class QRFactor(NamedTuple):
    """Accumulate number, mean, and a triangular factor of the centered units of one layer; a frozen pytree."""

    n: Int[Array, ""]
    """Number of samples, ``()``."""
    mean: Float[Array, " units"]
    """Their mean, ``(units,)``."""
    factor: Float[Array, "units units"]
    """``R`` with ``R'R = X'X`` of the centered units, upper triangular, ``(units, units)``."""

    @classmethod
    def init(cls, units: int, *, dtype: jax.typing.DTypeLike = jnp.float32) -> "QRFactor":
        """Return the factor of an empty stream of samples with so many units."""
        return cls(jnp.zeros((), int), jnp.zeros(units, dtype), jnp.zeros((units, units), dtype))

    def update(self, x: Float[AnyArray, "b units"], counted: Bool[AnyArray, " b"] | None = None) -> "QRFactor":
        """Add a batch of samples.

        Args:
            x: samples in rows, ``(b, units)``.
            counted: False for rows that are left out, ``(b,)``; all are taken by default.
        """
        rows, counted = rows_of(x, self.mean.dtype), mask_of(counted, len(x))
        # Rows that do not count are zero in `centered`: they add nothing to its products, nor to the factor.
        mean, centered = center_rows(rows, counted)
        return self._merge_rows(jnp.sum(counted), mean, centered)

    def merge(self, other: "QRFactor") -> "QRFactor":
        """Join two streams over different samples; signs of the rows of the factor may differ."""
        merged = self._merge_rows(other.n, other.mean, other.factor)
        # An empty stream is the identity to the last digit.
        merged = jax.tree.map(lambda mine, both: jnp.where(other.n == 0, mine, both), self, merged)
        return jax.tree.map(lambda theirs, both: jnp.where(self.n == 0, theirs, both), other, merged)

    def _merge_rows(self, m: Array, mean: Array, rows: Array) -> "QRFactor":
        """Join a set of ``m`` samples with this mean, whose centered units have the products of these rows.

        Scatters about two means add to that about the common mean with one row more, the difference of the means times
        ``sqrt(n m / (n + m))`` (Chan, Golub and LeVeque 1983)::

            X'X = R_n'R_n + R_m'R_m + n m / (n + m) d d',     d = mean_m - mean_n

        so the factor of the three stacked is that of both sets.
        """
        dtype = self.mean.dtype
        n, m = self.n.astype(dtype), m.astype(dtype)
        step = mean - self.mean
        # Zero where one of the sets is empty: its mean, which says nothing, does not enter.
        between = step * jnp.sqrt(n * m / jnp.maximum(n + m, 1))
        # (units + rows + 1, units), at least as many rows as units: the new factor is (units, units) again.
        stacked = jnp.concatenate([self.factor, rows, between[None]])
        mean = self.mean + step * m / jnp.maximum(n + m, 1)
        return QRFactor(self.n + m.astype(self.n.dtype), mean, jnp.linalg.qr(stacked, mode="r"))

    def finish(self, *, standardize: bool) -> Basis:
        """Return an orthonormal basis of the span of the centered units.

        Args:
            standardize: True for CCA and PWCCA: each unit is brought to one scale, which keeps tiny and huge units
                exact. False for SVCCA: units count by their variance.
        """
        # Column k of the factor is as long as the centered unit k, since both have the same products.
        scale, varies = unit_scales(jnp.linalg.norm(self.factor, axis=0), standardize=standardize)
        # Centering takes one direction away: with n samples the rank is n - 1 or less.
        _, values, right = truncated_svd(self.factor / scale[None], self.n - 1)
        return Basis(self.mean, scale, values, right, jnp.sum(values > 0), varies)


class WhitenedProducts(NamedTuple):
    """Accumulate products of basis vectors, of all layers of two networks; a frozen pytree.

    Over all samples of the bases they are the cosines between the vectors of two bases, whose singular values are the
    canonical correlations.
    """

    x_bases: tuple[Basis, ...]
    """Of each layer of the first network, from a pass over all samples."""
    y_bases: tuple[Basis, ...]
    """Of the second."""
    n: Int[Array, ""]
    """Number of samples added up so far, ``()``."""
    products: Float[Array, "k_x k_y"]
    """Sums over them, the vectors of all layers side by side."""

    @classmethod
    def init(cls, x_bases: Sequence[Basis], y_bases: Sequence[Basis]) -> "WhitenedProducts":
        """Return the products of an empty stream, for layers with these bases."""
        dtype = jnp.result_type(*(basis.values.dtype for basis in (*x_bases, *y_bases)))
        shape = tuple(sum(len(basis.values) for basis in bases) for bases in (x_bases, y_bases))
        return cls(tuple(x_bases), tuple(y_bases), jnp.zeros((), int), jnp.zeros(shape, dtype))

    def update(self, x: Layers, y: Layers, counted: Bool[AnyArray, " b"] | None = None) -> "WhitenedProducts":
        """Add a batch of samples.

        Args:
            x: of each layer of the first network, samples in rows, ``(b, units)``.
            y: of the second, for the same samples.
            counted: False for rows that are left out, ``(b,)``; all are taken by default.
        """
        counted = mask_of(counted, len(x[0]))
        vectors = (self._whiten(z, bases, counted) for z, bases in ((x, self.x_bases), (y, self.y_bases)))
        first, second = vectors
        # (b, k_x)'(b, k_y): the vectors of all layers with each other, whatever their layers.
        products = jnp.matmul(first.T, second, precision=HIGHEST)
        return self._replace(n=self.n + jnp.sum(counted), products=self.products + products)

    def _whiten(self, layers: Layers, bases: tuple[Basis, ...], counted: Array) -> Float[Array, "b k"]:
        """Return the basis vectors of all layers side by side, at the samples of a batch."""
        parts = []
        for x, basis in zip(layers, bases, strict=True):
            # The mean is that of the first pass, over all samples: of a batch alone the rows are not centered.
            centered = jnp.where(counted[:, None], rows_of(x, basis.mean.dtype) - basis.mean[None], 0)
            parts.append(jnp.matmul(centered, basis.coefficients, precision=HIGHEST).astype(self.products.dtype))
        return jnp.concatenate(parts, axis=1)

    def merge(self, other: "WhitenedProducts") -> "WhitenedProducts":
        """Join two streams over different samples, for the same bases."""
        return self._replace(n=self.n + other.n, products=self.products + other.products)

    @permit_nan()
    def finish(self, measure: Canonical) -> Float[Array, "x y"]:
        """Return the similarity of every layer of the first to every layer of the second network.

        Args:
            measure: ``"cca"``, mean canonical correlation; ``"svcca"``, of the directions that explain 99 % of the
                variance; ``"pwcca"``, weighted by the layers of the first network.

        Returns:
            ``(x, y)``; NaN where it says nothing: a layer does not vary, or there are too few samples.

        Raises:
            ValueError: for another measure.
        """
        if measure not in get_args(Canonical):
            raise ValueError(f"expected measure to be one of {get_args(Canonical)}, got {measure!r}")
        sizes = [tuple(len(basis.values) for basis in bases) for bases in (self.x_bases, self.y_bases)]
        # blocks[k][m] is that of layers k and m.
        # `split` cuts the last axis: that of x once the products are turned over, then that of y.
        blocks = [split(rows.T, sizes[1]) for rows in split(self.products.T, sizes[0])]
        # Pairs of one size run in one loop, of which one step is compiled.
        pairs_of_size = defaultdict(list)
        for k, x_size in enumerate(sizes[0]):
            for m, y_size in enumerate(sizes[1]):
                pairs_of_size[x_size, y_size].append((k, m))
        matrix = jnp.zeros((len(sizes[0]), len(sizes[1])), self.products.dtype)
        for indices in pairs_of_size.values():
            pairs = [(self.x_bases[k], self.y_bases[m], blocks[k][m]) for k, m in indices]
            # Two bases and the block of their products, with the pairs of this size as a leading axis of every leaf.
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
            values = jax.lax.map(lambda pair: _correlation(measure, pair[0], pair[1], pair[2], self.n), stacked)
            matrix = matrix.at[tuple(zip(*indices, strict=True))].set(values.astype(matrix.dtype))
        return matrix


def _correlation(
    measure: Canonical, first: Basis, second: Basis, products: Float[Array, "k_x k_y"], n: Scalar
) -> Float[Array, ""]:
    """Return the similarity of two layers, ``()``, from the products of their basis vectors; NaN if not reliable."""
    if measure == "svcca":
        first, second, products = truncate_pair(first, second, products, _KEEP)
    # Vectors beyond a rank are zero, and so are their rows and columns here: they give correlations of zero, the last.
    left, correlations, _ = jnp.linalg.svd(products, full_matrices=False)
    weights = projection_weights(first, left) if measure == "pwcca" else jnp.ones_like(correlations)
    return weighted_mean(weights, correlations, first, second, n)
