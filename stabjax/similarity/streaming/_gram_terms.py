"""What each sample adds to HSIC, from blocks of Gram matrices: CKA of layers with more units than there are samples."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stabjax._numerics import HIGHEST
from stabjax._types import AnyArray, Scalar
from stabjax.similarity.streaming._hsic import HsicTerms
from stabjax.similarity.streaming._layers import mask_of, rows_of
from stabjax.similarity.streaming._term_sums import OfLayers, debias, products_of


class GramTerms(NamedTuple):
    """Accumulate, block by block of the Gram matrices, what the terms of HSIC are made of; a frozen pytree.

    Of a block only sums over its rows and over its columns remain, so the memory is that of a block, however many
    samples there are. Units are centered: less their mean over all samples. With Gram matrices ``K`` and ``L``::

        q_i = sum_(j != i) K_ij L_ij
        r_i = sum_(j != i) K_ij b_j + L_ij a_j          a_j = K_jj,  b_j = L_jj
    """

    q: OfLayers
    """Of every pair of layers, and of each layer of either network with itself."""
    r: OfLayers
    """Likewise."""
    a: Float[Array, "x n"]
    """Squared lengths ``|x_i|^2``."""
    b: Float[Array, "y n"]
    """Squared lengths ``|y_i|^2``."""
    counted: Bool[Array, " n"]
    """False for samples that have not come, or are left out."""
    met: Int[Array, " n"]
    """With how many samples, itself among them, a sample has met in a block."""

    @classmethod
    def init(cls, x: int, y: int, n: int, *, dtype: jax.typing.DTypeLike = jnp.float32) -> "GramTerms":
        """Return the terms of no block.

        Args:
            x: Number of layers of the first network.
            y: Of the second.
            n: Number of samples for which there is room.
            dtype: Of the sums; samples are converted to it.
        """
        empty = OfLayers.zeros(x, y, n, dtype)
        return cls(empty, empty, empty.first, empty.second, jnp.zeros(n, bool), jnp.zeros(n, int))

    def update(
        self,
        start: Scalar,
        x: Sequence[Float[AnyArray, "i _"]],
        y: Sequence[Float[AnyArray, "i _"]],
        counted: Bool[AnyArray, " i"] | None,
        other_start: Scalar,
        other_x: Sequence[Float[AnyArray, "j _"]],
        other_y: Sequence[Float[AnyArray, "j _"]],
        other_counted: Bool[AnyArray, " j"] | None,
        *,
        mirror: Bool[AnyArray, ""] | bool,
    ) -> "GramTerms":
        """Add a block: the products of some samples with some others.

        Args:
            start: Position of the first row of the block among all samples.
            x: Centered units of each layer of the first network, for the samples of the rows, ``(i, units)``.
            y: Of the second, for the same samples.
            counted: False for rows that are left out, ``(i,)``; None takes all.
            other_start: Position of the first column.
            other_x: As ``x``, for the samples of the columns, ``(j, units)``.
            other_y: As ``y``.
            other_counted: As ``counted``.
            mirror: Whether the block stands for its transpose too, which then must not come; False for a block on the
                diagonal.
        """
        dtype = self.a.dtype
        counted, other_counted = mask_of(counted, len(x[0])), mask_of(other_counted, len(other_x[0]))
        rows, columns = start + jnp.arange(len(counted)), other_start + jnp.arange(len(other_counted))
        diagonal = rows[:, None] == columns[None]
        kept = counted[:, None] & other_counted[None]

        def products(z: Sequence[AnyArray], other: Sequence[AnyArray]) -> Float[Array, "layers i j"]:
            # Chosen after the product: what is not a number in samples that do not count goes too.
            blocks = [jnp.matmul(rows_of(u, dtype), rows_of(v, dtype).T, precision=HIGHEST) for u, v in zip(z, other)]
            return jnp.where(kept & ~diagonal, jnp.stack(blocks), 0)

        k, m = products(x, other_x), products(y, other_y)
        # a and b of the samples of the rows and of the columns, (layers, i) and (layers, j).
        a, b = _squares(x, counted, dtype), _squares(y, counted, dtype)
        other_a, other_b = _squares(other_x, other_counted, dtype), _squares(other_y, other_counted, dtype)
        met = jnp.sum(kept, axis=1), jnp.sum(kept, axis=0)
        of_rows = *_sums(k, m, other_a, other_b), met[0]
        of_columns = *_sums(jnp.swapaxes(k, 1, 2), jnp.swapaxes(m, 1, 2), a, b), met[1]
        add_rows = partial(_add_samples, start=start)
        add_columns = partial(_add_samples, start=other_start, when=jnp.asarray(mirror))
        sums = jax.tree.map(add_rows, (self.q, self.r, self.met), of_rows)
        q, r, met = jax.tree.map(add_columns, sums, of_columns)
        # Every sample stands on the diagonal once.
        own = jnp.any(diagonal & kept, axis=1)
        squares = (jnp.where(own[None], z, 0) for z in (a, b))
        first, second = map(add_rows, (self.a, self.b), squares)
        return GramTerms(q, r, first, second, add_rows(self.counted, own), met)

    def merge(self, other: "GramTerms") -> "GramTerms":
        """Join the sums over different blocks."""
        return jax.tree.map(_add, self, other)

    def finish(self, *, debiased: bool) -> HsicTerms:
        """Return the terms of all samples; NaN unless each of them has met every other."""
        count = jnp.sum(self.counted)
        complete = jnp.all(self.met == jnp.where(self.counted, count, 0))
        q = jax.tree.map(lambda each: jnp.where(complete, each, jnp.nan), self.q)
        if debiased:
            return debias(q, self.r, self.a, self.b, self.counted)
        # h = sum over all j, the sample itself among them.
        own = products_of(self.a, self.b)
        return HsicTerms(q.cross + own.cross, q.first + own.first, q.second + own.second, count)


def _sums(
    k: Float[Array, "x i j"], m: Float[Array, "y i j"], a: Float[Array, "x j"], b: Float[Array, "y j"]
) -> tuple[OfLayers, OfLayers]:
    """Return ``q`` and ``r`` of the samples ``i``, summed over the samples ``j`` of one block."""
    sum_over_j = partial(jnp.einsum, precision=HIGHEST)
    q = OfLayers(sum_over_j("xij,yij->xyi", k, m), jnp.sum(jnp.square(k), axis=2), jnp.sum(jnp.square(m), axis=2))
    r = OfLayers(
        sum_over_j("xij,yj->xyi", k, b) + sum_over_j("yij,xj->xyi", m, a),
        2 * sum_over_j("xij,xj->xi", k, a),
        2 * sum_over_j("yij,yj->yi", m, b),
    )
    return q, r


def _squares(z: Sequence[AnyArray], counted: Array, dtype: np.dtype) -> Float[Array, "layers i"]:
    squares = jnp.stack([jnp.sum(jnp.square(rows_of(u, dtype)), axis=1) for u in z])
    return jnp.where(counted[None], squares, 0)


def _add(x: Array, y: Array) -> Array:
    return x | y if x.dtype == bool else x + y


def _add_samples(x: Array, new: Array, *, start: Scalar, when: Bool[Array, ""] | None = None) -> Array:
    """Add to the samples along the last axis from ``start`` on, if ``when``."""
    old = jax.lax.dynamic_slice_in_dim(x, start, new.shape[-1], axis=-1)
    added = _add(old, new.astype(x.dtype))
    if when is not None:
        added = jnp.where(when, added, old)
    return jax.lax.dynamic_update_slice_in_dim(x, added, start, axis=-1)
