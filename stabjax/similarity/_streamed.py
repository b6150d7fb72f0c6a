"""Measures from what is pooled over batches: Gram matrices, or products of units.

CKA is taken apart into shares of the images: with centred Grams ``K`` and ``L``, image ``i`` has the share
``h_i = sum_j K_ij L_ij`` in ``HSIC(x, y) = sum_i h_i``. Both ways to them give the same numbers; the shares give the
interval.
"""

from statistics import NormalDist
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stabjax._numerics import HIGHEST, safe_ratio
from stabjax.similarity._cka import of_hsic

_TOGETHER = 2**22
"""Numbers of all Gram matrices that are centred at a time."""


class Shares(NamedTuple):
    """What each image adds to HSIC, for every layer of two networks."""

    cross: Float[Array, "x y n"]
    """Of every pair."""
    first: Float[Array, "x n"]
    """Of every layer of the first network with itself."""
    second: Float[Array, "y n"]
    """Likewise."""


def alignment(
    shares: Shares, n: Float[Array, ""], confidence: float, *, debiased: bool
) -> tuple[Float[Array, "x y"], Float[Array, "x y 2"]]:
    """CKA of every pair, and its interval by the infinitesimal jackknife over images (Jaeckel 1972).

    A small weight more on image ``i`` changes ``c = xy / sqrt(xx yy)`` by its influence, up to a factor ``n``::

        u_i = 2 h_i / sqrt(xx yy) - c (h_i(x, x) / xx + h_i(y, y) / yy)

    (centring adds nothing to first order), and the variance of ``c`` is ``n / (n - 1) sum_i u_i^2`` over the ``n``
    images that count. The interval is normal in ``artanh c``, which keeps it within [-1, 1] (and what is not debiased,
    above 0); that of a layer with itself has no width.
    """
    cross, first, second = (jnp.sum(each, axis=-1) for each in shares)
    first, second = first[:, None], second[None]
    least = -1 if debiased else 0
    value = jnp.clip(of_hsic(cross, first, second), least)
    scale = jnp.sqrt(jnp.maximum(first, 0)) * jnp.sqrt(jnp.maximum(second, 0))
    own = safe_ratio(shares.first[:, None], first[..., None]) + safe_ratio(shares.second[None], second[..., None])
    influence = 2 * safe_ratio(shares.cross, scale[..., None]) - value[..., None] * own
    deviation = jnp.sqrt(jnp.sum(jnp.square(influence), axis=-1) * n / (n - 1))
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2)
    # d artanh(c) = dc / (1 - c^2);  tanh(artanh c + z) = (c + tanh z) / (1 + c tanh z)
    step = jnp.tanh(quantile * deviation / jnp.maximum(1 - jnp.square(value), jnp.finfo(value.dtype).eps))
    ends = [jnp.where(step < 1, (value + s) / (1 + value * s), s) for s in (-step, step)]
    return value, jnp.clip(jnp.stack(ends, axis=-1), least, 1)


def shares_of_grams(
    first: Float[Array, "x n n"], second: Float[Array, "y n n"], counted: Bool[Array, " n"], *, debiased: bool
) -> Shares:
    """The shares from the Gram matrices of all layers, of which a few rows are centred at a time.

    Args:
        first: Grams of the first network; the units need not be centred.
        second: Of the second.
        counted: False for images that are left out.
        debiased: As in `stabjax.similarity._cka.centred_gram`: without the diagonal.
    """
    sides = [_Grams.of(grams, counted, debiased) for grams in (first, second)]

    def of_image(i: Array) -> tuple[Array, Array, Array]:
        k, m = (side.centred_row(i, counted, debiased) for side in sides)
        return jnp.matmul(k, m.T, precision=HIGHEST), jnp.sum(k * k, axis=-1), jnp.sum(m * m, axis=-1)

    n = len(counted)
    together = max(1, min(n, _TOGETHER // (n * (len(first) + len(second)))))
    found = jax.lax.map(of_image, jnp.arange(n), batch_size=together)
    return Shares(*(jnp.moveaxis(each, 0, -1) for each in found))


class _Grams(NamedTuple):
    """Gram matrices, with what centring takes off."""

    grams: Float[Array, "x n n"]
    scale: Float[Array, " x"]
    """Of the largest element, by which all are divided."""
    rows: Float[Array, "x n"]
    whole: Float[Array, " x"]

    @classmethod
    def of(cls, grams: Array, counted: Array, debiased: bool) -> "_Grams":
        weights = counted.astype(grams.dtype)
        n = jnp.sum(weights)
        diagonal = jnp.diagonal(grams, axis1=1, axis2=2)
        largest = jnp.max(jnp.abs(diagonal) * weights[None], axis=1)
        scale = jnp.where(largest == 0, 1, largest)
        rows = jnp.matmul(grams, weights, precision=HIGHEST) / scale[:, None]
        if debiased:
            rows = (rows - diagonal * weights[None] / scale[:, None]) / (n - 2)
            whole = jnp.matmul(rows, weights, precision=HIGHEST) / (n - 1)
        else:
            rows = rows / n
            whole = jnp.matmul(rows, weights, precision=HIGHEST) / n
        return cls(grams, scale, rows, whole)

    def centred_row(self, i: Array, counted: Array, debiased: bool) -> Float[Array, "x n"]:
        """Row ``i`` of every centred matrix, zero where an image does not count."""
        kept = counted & counted[i]
        if debiased:
            kept = kept & (jnp.arange(len(counted)) != i)
        row = self.grams[:, i] / self.scale[:, None] - self.rows[:, i, None] - self.rows + self.whole[:, None]
        return jnp.where(kept[None], row, 0)
