"""What each sample adds to HSIC, from products of units: the second pass of CKA for layers with few units."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stabjax._types import AnyArray, Scalar
from stabjax.similarity.streaming._hsic import HsicTerms
from stabjax.similarity.streaming._layers import (
    Layers,
    concatenate,
    mask_of,
    multiply,
    split,
    sum_by_layer,
    write_samples,
)
from stabjax.similarity.streaming._products import NetworkProducts, UnitProducts
from stabjax.similarity.streaming._term_sums import OfLayers, debias, products_of


class ProductTerms(NamedTuple):
    """Accumulate, sample by sample, what the terms of HSIC are made of; a frozen pytree.

    With the centered units ``x_i``, ``y_i`` of two layers, and their products over all samples::

        q_i = sum_j (x_i.x_j) (y_i.y_j)                          =  x_i' (sum x y') y_i
        r_i = sum_j (x_i.x_j) b_j + sum_j (y_i.y_j) a_j          =  x_i.(sum b x) + y_i.(sum a y)

    Where a batch has not come yet, all is zero.
    """

    products: UnitProducts
    """From a pass over all samples, centered."""
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

    @classmethod
    def init(cls, products: UnitProducts, n: int) -> "ProductTerms":
        """Return the terms of an empty stream with room for ``n`` samples; rows that only fill a batch need none."""
        x, y = len(products.first.own), len(products.second.own)
        empty = OfLayers.zeros(x, y, n, products.cross.dtype)
        # Centered once, here: what the second pass subtracts is then the mean over all samples.
        return cls(products.center(), empty, empty, empty.first, empty.second, jnp.zeros(n, bool))

    def update(
        self, start: Scalar, x: Layers, y: Layers, counted: Bool[AnyArray, " b"] | None = None
    ) -> "ProductTerms":
        """Write the terms of a batch of samples, the first of which is sample ``start``.

        Args:
            start: position of the first row among all samples.
            x: of each layer of the first network, samples in rows, ``(b, units)``.
            y: of the second, for the same samples.
            counted: as in the first pass.
        """
        counted = mask_of(counted, len(x[0]))
        first, second, cross = self.products.first, self.products.second, self.products.cross
        # Rows that do not count are zero again, and so is each of their terms.
        x_rows, y_rows = (
            jnp.where(counted[:, None], concatenate(z, cross.dtype) - network.origin[None], 0)
            for z, network in ((x, first), (y, second))
        )
        # For each layer of x, q before the sum over the units of a layer of y: (b, units_y).
        x_parts = zip(split(x_rows, first.sizes), split(cross.T, first.sizes), strict=True)
        q = jnp.stack([sum_by_layer(multiply(part, c.T) * y_rows, second.sizes) for part, c in x_parts])
        # The two halves of r, of all pairs of layers: w is (layers of the other network, units), a part (b, units).
        x_linear, y_linear = (
            [multiply(w, part.T) for part, w in zip(split(rows, sizes), split(weighted, sizes), strict=True)]
            for rows, weighted, sizes in (
                (x_rows, self.products.first_weighted, first.sizes),
                (y_rows, self.products.second_weighted, second.sizes),
            )
        )
        (x_q, x_r), (y_q, y_r) = (_own_terms(rows, network) for rows, network in ((x_rows, first), (y_rows, second)))
        batch = (
            OfLayers(q, x_q, y_q),
            # x_linear has a (y, b) for each layer of x, y_linear an (x, b) for each layer of y; both become (x, y, b).
            OfLayers(jnp.stack(x_linear) + jnp.stack(y_linear, axis=1), x_r, y_r),
            sum_by_layer(jnp.square(x_rows), first.sizes),
            sum_by_layer(jnp.square(y_rows), second.sizes),
            counted,
        )
        terms = jax.tree.map(partial(write_samples, start=start), self[1:], batch)
        return ProductTerms(self.products, *terms)

    def merge(self, other: "ProductTerms") -> "ProductTerms":
        """Join two streams over different samples, for the same products."""
        # At every position one of the two is zero, or False.
        return ProductTerms(self.products, *jax.tree.map(jnp.add, self[1:], other[1:]))

    def finish(self, *, debiased: bool) -> HsicTerms:
        """Return the terms of all samples: ``h = q``, or debiased; NaN unless all of the first pass have come."""
        count = jnp.sum(self.counted)
        # The products are those of all samples: with fewer terms than samples (no room for some), HSIC is unknown.
        q = jax.tree.map(lambda each: jnp.where(count == self.products.n, each, jnp.nan), self.q)
        if not debiased:
            return HsicTerms(q.cross, q.first, q.second, count)
        # Without the sample itself, of which q has a b and r has twice a b.
        own = products_of(self.a, self.b)
        q, r = jax.tree.map(jnp.subtract, q, own), jax.tree.map(lambda r, ab: r - 2 * ab, self.r, own)
        return debias(q, r, self.a, self.b, self.counted)


def _own_terms(rows: Array, network: NetworkProducts) -> tuple[Array, Array]:
    """Return ``q`` and ``r`` of every layer with itself, ``(layers, b)`` each."""
    # x_i' (sum x x') x_i, and x_i.(sum a x) twice: with y = x both halves of r are the same.
    parts = list(zip(split(rows, network.sizes), network.own, split(network.weighted, network.sizes), strict=True))
    q = jnp.stack([jnp.sum(multiply(part, c) * part, axis=1) for part, c, _ in parts])
    return q, jnp.stack([2 * multiply(part, w) for part, _, w in parts])
