"""CKA from products of units, for layers with fewer units than there are samples.

Two networks give ``x`` and ``y``: the units of all their layers side by side. `UnitProducts` adds up moments about the
mean in a first pass; `ProductTerms` finds what each sample adds to HSIC with them, in a second one. Throughout,
``a`` is the squared length of the centered units of a layer of the first network, ``b`` that of the second: one number
per layer and sample.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stabjax._numerics import permit_nan
from stabjax._types import AnyArray, Scalar
from stabjax.similarity._cka import alignment_of_hsic
from stabjax.similarity._inputs import center_rows
from stabjax.similarity.streaming._hsic import HsicTerms
from stabjax.similarity.streaming._layers import Layers, Sizes, concatenate, mask_of, multiply, split, sum_by_layer


class NetworkProducts(NamedTuple):
    """Hold the moments of the units of one network, about their mean."""

    mean: Float[Array, " units"]
    """Of the units, ``(units,)``."""
    own: tuple[Float[Array, "_ _"], ...]
    """``sum x x'`` within each layer."""
    weighted: Float[Array, " units"]
    """``sum a x``, with ``a`` of the layer of the unit, ``(units,)``."""

    @property
    def sizes(self) -> Sizes:
        """Return the number of units of each layer."""
        return tuple(len(products) for products in self.own)

    @property
    def squares(self) -> Float[Array, " layers"]:
        """Return ``sum a``, ``(layers,)``."""
        return jnp.stack([jnp.trace(products) for products in self.own])


class UnitProducts(NamedTuple):
    """Accumulate moments of the units of two networks, about their means; a frozen pytree."""

    n: Int[Array, ""]
    """Number of samples, ``()``."""
    first: NetworkProducts
    """Of the first network by itself."""
    second: NetworkProducts
    """Of the second."""
    cross: Float[Array, "units_x units_y"]
    """``sum x y'``."""
    first_weighted: Float[Array, "y units_x"]
    """``sum b x``, for ``b`` of each layer of the second network."""
    second_weighted: Float[Array, "x units_y"]
    """``sum a y``, for ``a`` of each layer of the first."""

    @classmethod
    def init(
        cls, x_sizes: Sequence[int], y_sizes: Sequence[int], *, dtype: jax.typing.DTypeLike = jnp.float32
    ) -> "UnitProducts":
        """Return the moments of an empty stream.

        Args:
            x_sizes: number of units of each layer of the first network.
            y_sizes: of the second.
            dtype: of the moments; samples are converted to it.
        """

        def network(sizes: Sequence[int]) -> NetworkProducts:
            own = tuple(jnp.zeros((size, size), dtype) for size in sizes)
            return NetworkProducts(jnp.zeros(sum(sizes), dtype), own, jnp.zeros(sum(sizes), dtype))

        units_x, units_y = sum(x_sizes), sum(y_sizes)
        return cls(
            n=jnp.zeros((), int),
            first=network(x_sizes),
            second=network(y_sizes),
            cross=jnp.zeros((units_x, units_y), dtype),
            first_weighted=jnp.zeros((len(y_sizes), units_x), dtype),
            second_weighted=jnp.zeros((len(x_sizes), units_y), dtype),
        )

    def update(self, x: Layers, y: Layers, counted: Bool[AnyArray, " b"] | None = None) -> "UnitProducts":
        """Add a batch of samples.

        Args:
            x: of each layer of the first network, samples in rows, ``(b, units)``.
            y: of the second, for the same samples.
            counted: False for rows that are left out, ``(b,)``; all are taken by default.
        """
        counted = mask_of(counted, len(x[0]))
        (x_mean, x_rows), (y_mean, y_rows) = (center_rows(concatenate(z, self.cross.dtype), counted) for z in (x, y))
        a, b = (
            sum_by_layer(jnp.square(rows), network.sizes)
            for rows, network in ((x_rows, self.first), (y_rows, self.second))
        )
        batch = UnitProducts(
            n=jnp.sum(counted),
            first=_network_products(x_mean, x_rows, a, self.first.sizes),
            second=_network_products(y_mean, y_rows, b, self.second.sizes),
            cross=multiply(x_rows.T, y_rows),
            first_weighted=multiply(b, x_rows),
            second_weighted=multiply(a, y_rows),
        )
        return self.merge(batch)

    def merge(self, other: "UnitProducts") -> "UnitProducts":
        """Join two streams over different samples.

        With ``n`` and ``m`` samples, shares ``p = n / (n + m)`` and ``q = m / (n + m)``, and the steps ``d, e`` from
        the means of ``x, y`` here to those of the other, moments about the common means are (Chan, Golub and LeVeque
        1983 and, of third order, Pebay 2008, SAND2008-6212)::

            sum x y'  =  C_n + C_m  +  n q d e'
            sum b x   =  W_n + W_m  +  (p B_m - q B_n) d  +  2 (p C_m - q C_n) e  +  n q (p - q) |e|^2 d

        with ``C = sum x y'``, ``B = sum b``, ``W = sum b x`` of each set, and ``y, b, e`` of one layer. An empty set
        has the share zero and changes no digit.
        """
        shares = _Shares.of(self.n, other.n, self.cross.dtype)
        d, e = other.first.mean - self.first.mean, other.second.mean - self.second.mean
        x_sizes, y_sizes = self.first.sizes, self.second.sizes
        return UnitProducts(
            n=self.n + other.n,
            first=_merge_network(self.first, other.first, d, shares),
            second=_merge_network(self.second, other.second, e, shares),
            cross=shares.second_order(self.cross, other.cross, d, e),
            first_weighted=shares.third_order(
                (self.first_weighted, other.first_weighted),
                (self.second.squares, other.second.squares),
                tuple(_project(products, e, y_sizes) for products in (self.cross, other.cross)),
                d,
                sum_by_layer(jnp.square(e), y_sizes),
            ),
            second_weighted=shares.third_order(
                (self.second_weighted, other.second_weighted),
                (self.first.squares, other.first.squares),
                tuple(_project(products.T, d, x_sizes) for products in (self.cross, other.cross)),
                e,
                sum_by_layer(jnp.square(d), x_sizes),
            ),
        )

    @permit_nan()
    def finish(self) -> Float[Array, "x y"]:
        """Return plain CKA of every pair of layers, ``|x'y|_F^2 / (|x'x|_F |y'y|_F)``; NaN where one does not vary.

        `ProductTerms` gives the debiased one, and intervals, in a second pass.
        """
        rows = split(jnp.square(self.cross), self.second.sizes)
        xy = jnp.stack([sum_by_layer(jnp.sum(each, axis=1), self.first.sizes) for each in rows], axis=1)
        xx, yy = (jnp.stack([jnp.sum(jnp.square(c)) for c in network.own]) for network in (self.first, self.second))
        return jnp.clip(alignment_of_hsic(xy, xx[:, None], yy[None]), 0)


class ProductTerms(NamedTuple):
    """Accumulate, sample by sample, what the terms of HSIC are made of; a frozen pytree.

    With the centered units ``x_i``, ``y_i`` of two layers, and their products over all samples::

        q_i = sum_j (x_i.x_j) (y_i.y_j)                          =  x_i' (sum x y') y_i
        r_i = sum_j (x_i.x_j) b_j + sum_j (y_i.y_j) a_j          =  x_i.(sum b x) + y_i.(sum a y)

    Where a batch has not come yet, all is zero.
    """

    products: UnitProducts
    """From a pass over all samples."""
    q: tuple[Float[Array, "x y n"], Float[Array, "x n"], Float[Array, "y n"]]
    """Of every pair of layers, and of each layer of either network with itself."""
    r: tuple[Float[Array, "x y n"], Float[Array, "x n"], Float[Array, "y n"]]
    """Likewise."""
    a: Float[Array, "x n"]
    """Squared lengths ``|x_i|^2``."""
    b: Float[Array, "y n"]
    """Squared lengths ``|y_i|^2``."""
    counted: Bool[Array, " n"]
    """False for samples that have not come, or are left out."""

    @classmethod
    def init(cls, products: UnitProducts, n: int) -> "ProductTerms":
        """Return the terms of an empty stream, with room for ``n`` samples."""
        x, y = len(products.first.own), len(products.second.own)
        cross, first, second = (jnp.zeros((*layers, n), products.cross.dtype) for layers in ((x, y), (x,), (y,)))
        return cls(products, (cross, first, second), (cross, first, second), first, second, jnp.zeros(n, bool))

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
        x_rows, y_rows = (
            jnp.where(counted[:, None], concatenate(z, cross.dtype) - network.mean[None], 0)
            for z, network in ((x, first), (y, second))
        )
        # For each layer of x, q before the sum over the units of a layer of y: (b, units_y).
        x_parts = zip(split(x_rows, first.sizes), split(cross.T, first.sizes), strict=True)
        q = jnp.stack([sum_by_layer(multiply(part, c.T) * y_rows, second.sizes) for part, c in x_parts])
        x_linear, y_linear = (
            [multiply(w, part.T) for part, w in zip(split(rows, sizes), split(weighted, sizes), strict=True)]
            for rows, weighted, sizes in (
                (x_rows, self.products.first_weighted, first.sizes),
                (y_rows, self.products.second_weighted, second.sizes),
            )
        )
        (x_q, x_r), (y_q, y_r) = (_own_terms(rows, network) for rows, network in ((x_rows, first), (y_rows, second)))
        batch = (
            (q, x_q, y_q),
            (jnp.stack(x_linear) + jnp.stack(y_linear, axis=1), x_r, y_r),
            sum_by_layer(jnp.square(x_rows), first.sizes),
            sum_by_layer(jnp.square(y_rows), second.sizes),
            counted,
        )

        def write(terms: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(terms, new, start, axis=-1)

        terms = jax.tree.map(write, self[1:], batch)
        return ProductTerms(self.products, *terms)

    def merge(self, other: "ProductTerms") -> "ProductTerms":
        """Join two streams over different samples, for the same products."""
        # At every position one of the two is zero, or False.
        return ProductTerms(self.products, *jax.tree.map(jnp.add, self[1:], other[1:]))

    def finish(self, *, debiased: bool) -> HsicTerms:
        """Return the terms of all samples; debiased ones are row sums of products of the matrices of `center_gram`.

        Written out for centered units (``m = n - 2``, ``A = sum a``, ``B = sum b``, ``T = sum a b``)::

            h = q - a b + (r - 3 a b) / m + (a B + b A + T - 2 a b - A B / (n - 1)) / m^2

        (Szekely and Rizzo 2014; see `stabjax.similarity._cka.center_gram`). Not debiased, ``h = q``.
        """
        count = jnp.sum(self.counted)
        if not debiased:
            cross, first, second = self.q
            return HsicTerms(cross, first, second, count)
        n = count.astype(self.a.dtype)

        def debias(q: Array, r: Array, a: Array, b: Array) -> Array:
            ab = a * b
            all_a, all_b, all_ab = (jnp.sum(z, axis=-1, keepdims=True) for z in (a, b, ab))
            rest = a * all_b + b * all_a + all_ab - 2 * ab - all_a * all_b / (n - 1)
            return jnp.where(self.counted, q - ab + (r - 3 * ab) / (n - 2) + rest / jnp.square(n - 2), 0)

        a, b = self.a, self.b
        pairs = ((a[:, None], b[None]), (a, a), (b, b))
        cross, first, second = (debias(q, r, *pair) for q, r, pair in zip(self.q, self.r, pairs, strict=True))
        return HsicTerms(cross, first, second, count)


class _Shares(NamedTuple):
    """Merge moments of two sets of ``n`` and ``m`` samples: see `UnitProducts.merge`."""

    p: Float[Array, ""]
    """``n / (n + m)``."""
    q: Float[Array, ""]
    """``m / (n + m)``."""
    between: Float[Array, ""]
    """``n q = n m / (n + m)``."""

    @classmethod
    def of(cls, n: Array, m: Array, dtype: np.dtype) -> "_Shares":
        """Return the shares of both sets, zero of an empty one."""
        total = jnp.maximum(n + m, 1).astype(dtype)
        p, q = n.astype(dtype) / total, m.astype(dtype) / total
        return cls(p, q, n.astype(dtype) * q)

    def second_order(self, c_n: Array, c_m: Array, d: Array, e: Array) -> Float[Array, "units_d units_e"]:
        """Merge ``sum x y'``."""
        return c_n + c_m + self.between * d[:, None] * e[None]

    def third_order(
        self, w: tuple[Array, ...], b: tuple[Array, ...], ce: tuple[Array, ...], d: Array, ee: Array
    ) -> Float[Array, "layers units"]:
        """Merge ``sum b x``, from the pairs of ``W``, ``B``, ``C e`` of both sets, ``d`` and ``|e|^2``."""
        linear = (self.p * b[1] - self.q * b[0])[:, None] * d[None]
        mixed = 2 * (self.p * ce[1] - self.q * ce[0])
        cubic = self.between * (self.p - self.q) * ee[:, None] * d[None]
        return w[0] + w[1] + linear + mixed + cubic


def _merge_network(n: NetworkProducts, m: NetworkProducts, d: Array, shares: _Shares) -> NetworkProducts:
    """Merge the moments of one network, each layer weighed by its own squared length."""
    own, weighted = [], []
    parts = (split(each, n.sizes) for each in (n.weighted, m.weighted, d))
    for c_n, c_m, w_n, w_m, step in zip(n.own, m.own, *parts, strict=True):
        own.append(shares.second_order(c_n, c_m, step, step))
        third = shares.third_order(
            (w_n[None], w_m[None]),
            tuple(jnp.trace(c)[None] for c in (c_n, c_m)),
            tuple(multiply(c, step)[None] for c in (c_n, c_m)),
            step,
            jnp.sum(jnp.square(step))[None],
        )
        weighted.append(third[0])
    return NetworkProducts(n.mean + shares.q * d, tuple(own), jnp.concatenate(weighted))


def _network_products(mean: Array, rows: Array, lengths: Array, sizes: Sizes) -> NetworkProducts:
    """Return the moments of a batch of centered rows, with the squared lengths ``(layers, b)`` of their layers."""
    parts = split(rows, sizes)
    return NetworkProducts(
        mean=mean,
        own=tuple(multiply(part.T, part) for part in parts),
        weighted=jnp.concatenate([multiply(a, part) for a, part in zip(lengths, parts, strict=True)]),
    )


def _project(products: Array, e: Array, sizes: Sizes) -> Float[Array, "layers units"]:
    """Return ``C e``, layer by layer of ``e``."""
    parts = zip(split(products, sizes), split(e, sizes), strict=True)
    return jnp.stack([multiply(c, step) for c, step in parts])


def _own_terms(rows: Array, network: NetworkProducts) -> tuple[Array, Array]:
    """Return ``q`` and ``r`` of every layer with itself, ``(layers, b)`` each."""
    parts = list(zip(split(rows, network.sizes), network.own, split(network.weighted, network.sizes), strict=True))
    q = jnp.stack([jnp.sum(multiply(part, c) * part, axis=1) for part, c, _ in parts])
    return q, jnp.stack([2 * multiply(part, w) for part, _, w in parts])
