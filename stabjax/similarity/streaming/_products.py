"""CKA from products of units, for layers with fewer units than there are samples.

Two networks give ``x`` and ``y``: the units of all their layers side by side, less an origin. `UnitProducts` adds up
their products in a first pass; `stabjax.similarity.streaming.ProductTerms` finds what each sample adds to HSIC with
them, in a second one. Throughout, ``a`` is the squared length of the units of a layer of the first network, ``b`` that
of the second: one number per layer and sample.

The origin is the mean of the first batch. It is not moved to the mean of all samples with every batch, which would take
as long as the products themselves, but once in the end (`UnitProducts.center`), and where streams are merged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from stabjax._numerics import permit_nan
from stabjax._types import AnyArray
from stabjax.similarity._cka import alignment_of_hsic
from stabjax.similarity._inputs import center_rows
from stabjax.similarity.streaming._layers import Layers, Sizes, concatenate, mask_of, multiply, split, sum_by_layer


class NetworkProducts(NamedTuple):
    """Hold sums over the units of one network, less an origin."""

    origin: Float[Array, " units"]
    """What is subtracted from the units, ``(units,)``: near their mean, or it once they are centered."""
    total: Float[Array, " units"]
    """``sum x``, ``(units,)``."""
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
        # The trace of sum x x' is the sum of squared lengths.
        return jnp.stack([jnp.trace(products) for products in self.own])


class UnitProducts(NamedTuple):
    """Accumulate products of the units of two networks, less an origin near their mean; a frozen pytree."""

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
        """Return the products of an empty stream.

        Args:
            x_sizes: number of units of each layer of the first network.
            y_sizes: of the second.
            dtype: of the products; samples are converted to it.
        """

        def network(sizes: Sequence[int]) -> NetworkProducts:
            # Any origin would do for no samples: the first batch, or the first stream that is merged, brings its own.
            units = jnp.zeros(sum(sizes), dtype)
            return NetworkProducts(units, units, tuple(jnp.zeros((size, size), dtype) for size in sizes), units)

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
        """Add a batch of samples; the mean of the first one becomes the origin.

        Args:
            x: of each layer of the first network, samples in rows, ``(b, units)``.
            y: of the second, for the same samples.
            counted: False for rows that are left out, ``(b,)``; all are taken by default.
        """
        counted = mask_of(counted, len(x[0]))
        x_rows, y_rows = (concatenate(z, self.cross.dtype) for z in (x, y))
        # Origins, and rows less them: rows that do not count are exactly zero from here on and add nothing to any sum.
        (d, x_rows), (e, y_rows) = (
            _subtract_origin(rows, network.origin, counted, self.n)
            for rows, network in ((x_rows, self.first), (y_rows, self.second))
        )
        # Squared lengths about the origin, per layer and row: a is (layers of x, rows), b is (layers of y, rows).
        a, b = (
            sum_by_layer(jnp.square(rows), network.sizes)
            for rows, network in ((x_rows, self.first), (y_rows, self.second))
        )
        return self._add(
            UnitProducts(
                n=jnp.sum(counted),
                first=_network_products(d, x_rows, a, self.first.sizes),
                second=_network_products(e, y_rows, b, self.second.sizes),
                cross=multiply(x_rows.T, y_rows),
                first_weighted=multiply(b, x_rows),
                second_weighted=multiply(a, y_rows),
            )
        )

    def merge(self, other: "UnitProducts") -> "UnitProducts":
        """Join two streams over different samples, about the origin of this one; an empty one changes no digit."""
        # A raw sample is x + (its origin) = (x + step) + (the origin of this stream): the step brings the other sums
        # about the origin of this one. An empty stream takes the other origin, so nothing has to be shifted.
        x_step, y_step = (
            theirs.origin - jnp.where(self.n == 0, theirs.origin, mine.origin)
            for mine, theirs in ((self.first, other.first), (self.second, other.second))
        )
        return self._add(other.shift(x_step, y_step))

    def center(self) -> "UnitProducts":
        """Return the products of units less their mean, which is the origin then."""
        n = jnp.maximum(self.n, 1).astype(self.cross.dtype)
        return self.shift(-self.first.total / n, -self.second.total / n)

    def shift(self, d: Float[Array, " units_x"], e: Float[Array, " units_y"]) -> "UnitProducts":
        """Return the products about origins less by ``d`` and ``e``: those of ``x + d`` and ``y + e``.

        With ``C = sum x y'``, ``B = sum b``, ``W = sum b x``, and ``y, b, e`` of one layer::

            sum (x + d)              =  sum x + n d
            sum (x + d) (y + e)'     =  C + (sum x) e' + d (sum y)' + n d e'
            sum |y + e|^2 (x + d)    =  W + 2 C e + |e|^2 sum x + d sum |y + e|^2

        Exact, but it costs the digits by which the origin is farther from the mean than the samples are (Chan, Golub
        and LeVeque 1983).
        """
        n = self.n.astype(self.cross.dtype)
        # The networks first: their squares about the new origins are what the weighted sums below are made of.
        first, second = (_shift_network(network, n, z) for network, z in ((self.first, d), (self.second, e)))
        return UnitProducts(
            n=self.n,
            first=first,
            second=second,
            cross=_shift_products(self.cross, self.first.total, self.second.total, n, d, e),
            first_weighted=_shift_weighted(self.first_weighted, self.cross, self.first.total, second, d, e),
            second_weighted=_shift_weighted(self.second_weighted, self.cross.T, self.second.total, first, e, d),
        )

    def _add(self, other: "UnitProducts") -> "UnitProducts":
        """Add sums about the same origin, which an empty stream takes over."""
        first, second = (
            # An origin is no sum: of the two, which are equal unless one stream is empty, one is kept.
            jax.tree.map(jnp.add, mine, theirs)._replace(origin=jnp.where(self.n == 0, theirs.origin, mine.origin))
            for mine, theirs in ((self.first, other.first), (self.second, other.second))
        )
        return jax.tree.map(jnp.add, self, other)._replace(first=first, second=second)

    @permit_nan()
    def finish(self) -> Float[Array, "x y"]:
        """Return plain CKA of every pair of layers, ``|x'y|_F^2 / (|x'x|_F |y'y|_F)``; NaN where one does not vary.

        `ProductTerms` gives the debiased one, and intervals, in a second pass.
        """
        _, first, second, cross, *_ = self.center()
        # The square norm |x'y|_F^2 of two layers is the sum over one block of cross, squared. With layers of 2 and 1
        # units of x, and of 1 and 2 units of y:
        #         y1  y2  y2
        #     x1   a   b   b
        #     x1   a   b   b
        #     x2   c   d   d
        # First over the units of a layer of y, (units_x,), then over those of each layer of x, (x,).
        rows = split(jnp.square(cross), second.sizes)
        xy = jnp.stack([sum_by_layer(jnp.sum(each, axis=1), first.sizes) for each in rows], axis=1)
        xx, yy = (jnp.stack([jnp.sum(jnp.square(c)) for c in network.own]) for network in (first, second))
        return jnp.clip(alignment_of_hsic(xy, xx[:, None], yy[None]), 0)


def _subtract_origin(rows: Array, origin: Array, counted: Array, n: Array) -> tuple[Array, Array]:
    """Return the origin, the mean of the batch if it is the first, and the rows less it; zero if they do not count."""
    mean, _ = center_rows(rows, counted)
    origin = jnp.where(n == 0, mean, origin)
    return origin, jnp.where(counted[:, None], rows - origin[None], 0)


def _network_products(origin: Array, rows: Array, lengths: Array, sizes: Sizes) -> NetworkProducts:
    """Return the sums over a batch of rows less the origin, with squared lengths ``(layers, b)`` of their layers."""
    parts = split(rows, sizes)
    return NetworkProducts(
        origin=origin,
        total=jnp.sum(rows, axis=0),
        own=tuple(multiply(part.T, part) for part in parts),
        # sum a x of each layer: (b,) @ (b, units).
        weighted=jnp.concatenate([multiply(a, part) for a, part in zip(lengths, parts, strict=True)]),
    )


def _shift_network(network: NetworkProducts, n: Array, d: Array) -> NetworkProducts:
    """Shift the sums over one network by ``d``, each layer weighed by its own squared length."""
    own, weighted = [], []
    parts = (split(each, network.sizes) for each in (network.total, network.weighted, d))
    for products, total, w, step in zip(network.own, *parts, strict=True):
        shifted = _shift_products(products, total, total, n, step, step)
        own.append(shifted)
        # The trace of what is shifted already is sum |x + d|^2, which the formula asks for.
        weighted.append(w + _shift_of_weighted(products, total, jnp.trace(shifted), step, step))
    return NetworkProducts(network.origin - d, network.total + n * d, tuple(own), jnp.concatenate(weighted))


def _shift_products(products: Array, x_total: Array, y_total: Array, n: Array, d: Array, e: Array) -> Array:
    """Return ``sum (x + d) (y + e)'``."""
    return products + x_total[:, None] * e[None] + d[:, None] * (y_total + n * e)[None]


def _shift_weighted(
    weighted: Array, cross: Array, total: Array, other: NetworkProducts, d: Array, e: Array
) -> Float[Array, "layers units"]:
    """Return ``sum |y + e|^2 (x + d)`` for each layer of the other network, whose sums are shifted already."""
    parts = zip(split(cross, other.sizes), other.squares, split(e, other.sizes), strict=True)
    return weighted + jnp.stack([_shift_of_weighted(c, total, square, d, step) for c, square, step in parts])


def _shift_of_weighted(cross: Array, total: Array, square: Array, d: Array, e: Array) -> Float[Array, " units"]:
    """Return what a shift adds to ``sum b x``, from ``sum x y'``, ``sum x``, and ``sum |y + e|^2`` of one layer."""
    # From |y + e|^2 (x + d) = b x + 2 (y.e) x + |e|^2 x + |y + e|^2 d, summed: all but the first term.
    return 2 * multiply(cross, e) + jnp.sum(jnp.square(e)) * total + d * square
