"""Sums over the other samples, of which the terms of HSIC are made, however they were found."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stabjax.similarity.streaming._hsic import HsicTerms


class OfLayers(NamedTuple):
    """Numbers of each sample, for every pair of layers of two networks, and for each layer with itself."""

    cross: Float[Array, "x y n"]
    first: Float[Array, "x n"]
    second: Float[Array, "y n"]

    @classmethod
    def zeros(cls, x: int, y: int, n: int, dtype: jax.typing.DTypeLike) -> "OfLayers":
        """Return zeros for so many layers of either network and so many samples."""
        return cls(jnp.zeros((x, y, n), dtype), jnp.zeros((x, n), dtype), jnp.zeros((y, n), dtype))


def products_of(a: Float[Array, "x n"], b: Float[Array, "y n"]) -> OfLayers:
    """Return ``a b`` of every pair of layers; a layer with itself has ``a`` in both places."""
    return OfLayers(a[:, None] * b[None], jnp.square(a), jnp.square(b))


def debias(
    q: OfLayers, r: OfLayers, a: Float[Array, "x n"], b: Float[Array, "y n"], counted: Bool[Array, " n"]
) -> HsicTerms:
    """Return the debiased terms, row sums of products of the matrices of `stabjax.similarity._cka.center_gram`.

    With the centered units ``x_i``, ``y_i`` of two layers and sums over the other samples::

        q_i = sum_(j != i) (x_i.x_j) (y_i.y_j)
        r_i = sum_(j != i) (x_i.x_j) b_j + (y_i.y_j) a_j          a_j = |x_j|^2,  b_j = |y_j|^2

    the term of a sample is, with ``m = n - 2``, ``A = sum a``, ``B = sum b`` and ``T = sum a b``::

        h = q + (r - a b) / m + (a B + b A + T - 2 a b - A B / (n - 1)) / m^2

    (Szekely and Rizzo 2014). Written in sums without the sample itself nothing large cancels: ``a b`` may be thousands
    of times ``q`` where there are more units than samples.

    Args:
        q: As above, zero for samples that do not count.
        r: As above, likewise.
        a: Squared lengths of the units of each layer of the first network, likewise.
        b: Of the second.
        counted: False for samples that are left out.
    """
    count = jnp.sum(counted)
    n = count.astype(a.dtype)

    def of_pair(q: Array, r: Array, a: Array, b: Array) -> Array:
        ab = a * b
        # Samples that do not count are zero: sums over the last axis are sums over the others.
        all_a, all_b, all_ab = (jnp.sum(z, axis=-1, keepdims=True) for z in (a, b, ab))
        rest = a * all_b + b * all_a + all_ab - 2 * ab - all_a * all_b / (n - 1)
        return jnp.where(counted, q + (r - ab) / (n - 2) + rest / jnp.square(n - 2), 0)

    return HsicTerms(
        # (x, 1, n) with (1, y, n) for the pairs of layers; a layer with itself has a in both places.
        of_pair(q.cross, r.cross, a[:, None], b[None]),
        of_pair(q.first, r.first, a, a),
        of_pair(q.second, r.second, b, b),
        count,
    )
