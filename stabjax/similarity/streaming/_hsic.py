"""CKA from what each sample adds to HSIC, which gives the interval, too.

With centered Gram matrices ``K`` and ``L`` sample ``i`` has the term ``h_i = sum_j K_ij L_ij``, and ``HSIC(x, y)`` is
``sum_i h_i``. The terms come from Gram matrices (`HsicTerms.of_grams`) or from products of units
(`stabjax.similarity.streaming.ProductTerms`); both ways give the same numbers.
"""

from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax._numerics import HIGHEST, permit_nan, safe_ratio
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray
from stabjax.similarity._cka import alignment_of_hsic

_HELD = 2**22
"""Numbers of all Gram matrices that are centered at a time."""


class HsicTerms(NamedTuple):
    """Hold what each sample adds to HSIC, for every layer of two networks; a frozen pytree.

    Up to a factor per layer, which cancels in CKA. Zero for samples that are left out.
    """

    cross: Float[Array, "x y n"]
    """For every pair of layers, ``(x, y, n)``."""
    first: Float[Array, "x n"]
    """For every layer of the first network with itself, ``(x, n)``."""
    second: Float[Array, "y n"]
    """For every layer of the second with itself, ``(y, n)``."""
    n: Int[Array, ""]
    """Number of samples that count, ``()``."""

    @classmethod
    def of_grams(
        cls,
        first: Float[AnyArray, "x n n"],
        second: Float[AnyArray, "y n n"],
        counted: Bool[AnyArray, " n"],
        *,
        debiased: bool,
    ) -> "HsicTerms":
        """Return the terms from the Gram matrices of all layers, of which a few rows are centered at a time.

        Args:
            first: Gram matrices of the first network, ``(x, n, n)``; the units need not be centered.
            second: of the second, ``(y, n, n)``.
            counted: False for samples that are left out, ``(n,)``.
            debiased: whether they are centered for the unbiased estimator (Song et al. 2012), without their diagonals.
        """
        first, second, counted = without_explicit_axes(tuple(map(jnp.asarray, (first, second, counted))))
        networks = [_CenteredGrams.of(grams, counted, debiased) for grams in (first, second)]

        def of_sample(i: Array) -> tuple[Array, Array, Array]:
            # Row i of every centered matrix, (x, n) and (y, n): sums over j of their products are the terms h_i.
            k, m = (grams.row(i, counted, debiased) for grams in networks)
            return jnp.matmul(k, m.T, precision=HIGHEST), jnp.sum(k * k, axis=-1), jnp.sum(m * m, axis=-1)

        n = len(counted)
        # One sample takes (x + y) n numbers; as many run side by side as keep to the limit.
        rows = max(1, min(n, _HELD // (n * (len(first) + len(second)))))
        terms = jax.lax.map(of_sample, jnp.arange(n), batch_size=rows)
        # The loop puts samples in front: (n, x, y), (n, x) and (n, y) become (x, y, n), (x, n) and (y, n).
        cross, first, second = (jnp.moveaxis(each, 0, -1) for each in terms)
        return cls(cross, first, second, jnp.sum(counted))

    @permit_nan()
    def alignment(
        self, *, debiased: bool, confidence: float = 0.95
    ) -> tuple[Float[Array, "x y"], Float[Array, "x y 2"]]:
        """Return CKA of every pair, and its interval by the infinitesimal jackknife over samples (Jaeckel 1972).

        A small weight more on sample ``i`` changes ``c = xy / sqrt(xx yy)`` by its influence, up to a factor ``n``::

            u_i = 2 h_i / sqrt(xx yy) - c (h_i(x, x) / xx + h_i(y, y) / yy)

        (centering adds nothing to first order), and the variance of ``c`` is ``n / (n - 1) sum_i u_i^2`` over the ``n``
        samples that count. The interval is normal in ``artanh c``, which keeps it within [-1, 1] (and what is not
        debiased, above 0); that of a layer with itself has no width.

        Args:
            debiased: whether the terms are those of the unbiased estimator.
            confidence: probability that an interval covers.

        Returns:
            the values ``(x, y)`` and lower and upper ends ``(x, y, 2)``; NaN where a layer does not vary.
        """
        n = self.n.astype(self.cross.dtype)
        cross, first, second = (jnp.sum(each, axis=-1) for each in (self.cross, self.first, self.second))
        # HSIC of the layers with themselves, (x, 1) and (1, y), to stand beside the (x, y) of the pairs.
        first, second = first[:, None], second[None]
        least = -1 if debiased else 0
        # With fewer samples the unbiased estimator divides by zero. An overflow of a sum is no similarity of zero.
        known = jnp.isfinite(cross) & jnp.isfinite(first) & jnp.isfinite(second) & (self.n >= (4 if debiased else 2))
        value = jnp.where(known, jnp.clip(alignment_of_hsic(cross, first, second), least), jnp.nan)
        scale = jnp.sqrt(jnp.maximum(first, 0)) * jnp.sqrt(jnp.maximum(second, 0))
        own = safe_ratio(self.first[:, None], first[..., None]) + safe_ratio(self.second[None], second[..., None])
        # The u_i of all pairs, (x, y, n). They sum to 2 c - c - c = 0, so their squares need no mean taken off.
        influence = 2 * safe_ratio(self.cross, scale[..., None]) - value[..., None] * own
        deviation = jnp.sqrt(jnp.sum(jnp.square(influence), axis=-1) * n / (n - 1))
        quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
        # d artanh(c) = dc / (1 - c^2);  tanh(artanh c + z) = (c + tanh z) / (1 + c tanh z)
        # At c = 1 the guard against a division by zero decides nothing: both ends are 1 for any step below 1.
        step = jnp.tanh(quantile * deviation / jnp.maximum(1 - jnp.square(value), jnp.finfo(value.dtype).eps))
        # A step of 1 is an infinite z: the interval is all there is.
        ends = [jnp.where(step < 1, (value + s) / (1 + value * s), s) for s in (-step, step)]
        return value, jnp.clip(jnp.stack(ends, axis=-1), least, 1)


class _CenteredGrams(NamedTuple):
    """Hold Gram matrices, and what centering subtracts: ``K_ij / scale - rows_i - rows_j + total``."""

    grams: Float[Array, "x n n"]
    scale: Float[Array, " x"]
    """Largest element of each, by which it is divided."""
    rows: Float[Array, "x n"]
    """Sums over a row, divided by ``n`` or, debiased, ``n - 2``."""
    total: Float[Array, " x"]
    """Sums over ``rows``, divided by ``n`` or, debiased, ``n - 1``."""

    @classmethod
    def of(cls, grams: Array, counted: Array, debiased: bool) -> "_CenteredGrams":
        """Measure what centering subtracts, over the samples that count; see `stabjax.similarity._cka.center_gram`."""
        weights = counted.astype(grams.dtype)
        n = jnp.sum(weights)
        # The largest element of a Gram matrix is on its diagonal.
        diagonal = jnp.diagonal(grams, axis1=1, axis2=2)
        largest = jnp.max(jnp.abs(diagonal) * weights[None], axis=1)
        scale = jnp.where(largest == 0, 1, largest)
        # (x, n): over the samples that count. Sums over columns are the same, since Gram matrices are symmetric.
        rows = jnp.matmul(grams, weights, precision=HIGHEST) / scale[:, None]
        if debiased:
            # Without the diagonal, n - 1 elements are left in a row; the divisors are those of U-centering.
            rows = (rows - diagonal * weights[None] / scale[:, None]) / (n - 2)
            total = jnp.matmul(rows, weights, precision=HIGHEST) / (n - 1)
        else:
            rows = rows / n
            total = jnp.matmul(rows, weights, precision=HIGHEST) / n
        return cls(grams, scale, rows, total)

    def row(self, i: Array, counted: Array, debiased: bool) -> Float[Array, "x n"]:
        """Return row ``i`` of every centered matrix, zero where a sample does not count."""
        kept = counted & counted[i]
        if debiased:
            kept = kept & (jnp.arange(len(counted)) != i)
        # K_ij - rows_i - rows_j + total for all j. All over the scale, so that products of two rows do not overflow.
        row = self.grams[:, i] / self.scale[:, None] - self.rows[:, i, None] - self.rows + self.total[:, None]
        return jnp.where(kept[None], row, 0)
