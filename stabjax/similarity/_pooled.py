"""Products of units pooled over batches, for layers with fewer units than there are images.

Two networks give rows ``x`` and ``y``: the units of all their layers side by side. A first pass adds up `Products`, a
second one takes the shares of the images from their centred form.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stabjax._numerics import HIGHEST
from stabjax.similarity._streamed import Shares

Sizes = tuple[int, ...]


class Side(NamedTuple):
    """Sums over the images for one network; ``a_l`` is the squared length of its units in layer ``l``."""

    total: Float[Array, " units"]
    """Of the units."""
    own: tuple[Float[Array, "_ _"], ...]
    """Of the products of units, within each layer."""
    lengths: Float[Array, " layers"]
    """Of ``a``."""
    weighted: Float[Array, " units"]
    """Of the units, each times ``a`` of its layer."""


class Products(NamedTuple):
    """Sums over the images."""

    first: Side
    second: Side
    cross: Float[Array, "units_x units_y"]
    """Of the products of units."""
    first_weighted: Float[Array, "y units_x"]
    """Of the units of the first network, times ``a`` of each layer of the second."""
    second_weighted: Float[Array, "x units_y"]
    """The reverse."""


def products_of(x: Float[Array, "b units_x"], y: Float[Array, "b units_y"], sizes: tuple[Sizes, Sizes]) -> Products:
    """The products of a batch, to be added up; images that do not count are zero."""
    a, b = (by_layer(jnp.square(z), each) for z, each in zip((x, y), sizes, strict=True))
    return Products(
        first=_side(x, a, sizes[0]),
        second=_side(y, b, sizes[1]),
        cross=_times(x.T, y),
        first_weighted=_times(b, x),
        second_weighted=_times(a, y),
    )


def centred(products: Products, n: Float[Array, ""], sizes: tuple[Sizes, Sizes]) -> Products:
    """The same sums of units less their means over ``n`` images; ``total`` are the means.

    With ``C`` the centred products and ``d, e`` the means, ``sum (b - 2 y.e + |e|^2) (x - d) = sum b x - d sum b -
    2 C e``, and so on.
    """
    first, second = (
        _centred_side(s, n, each) for s, each in zip((products.first, products.second), sizes, strict=True)
    )
    d, e = first.total, second.total
    cross = products.cross - n * d[:, None] * e[None]
    y_parts = zip(split(cross, sizes[1]), split(e, sizes[1]), strict=True)
    x_parts = zip(split(cross.T, sizes[0]), split(d, sizes[0]), strict=True)
    to_x, to_y = (jnp.stack([_times(c, mean) for c, mean in parts]) for parts in (y_parts, x_parts))
    return Products(
        first=first,
        second=second,
        cross=cross,
        first_weighted=products.first_weighted - products.second.lengths[:, None] * d[None] - 2 * to_x,
        second_weighted=products.second_weighted - products.first.lengths[:, None] * e[None] - 2 * to_y,
    )


class Parts(NamedTuple):
    """What the shares are made of: ``q_i = x_i' C y_i``, and for debiased ones ``r_i`` and the squared lengths.

    ``r_i = sum_j x_i.x_j |y_j|^2 + sum_j y_i.y_j |x_j|^2``.
    """

    q: Shares
    r: Shares
    a: Float[Array, "x n"]
    b: Float[Array, "y n"]


def parts_of(
    x: Float[Array, "n units_x"],
    y: Float[Array, "n units_y"],
    counted: Bool[Array, " n"],
    products: Products,
    sizes: tuple[Sizes, Sizes],
) -> Parts:
    """What the images of a batch add, from centred products."""
    x, y = (
        jnp.where(counted[:, None], z - side.total[None], 0) for z, side in ((x, products.first), (y, products.second))
    )
    rows = zip(split(x, sizes[0]), split(products.cross.T, sizes[0]), strict=True)
    q = jnp.stack([by_layer(_times(part, c.T) * y, sizes[1]) for part, c in rows])
    to_x = [_times(w, part.T) for part, w in zip(split(x, sizes[0]), split(products.first_weighted, sizes[0]))]
    to_y = [_times(w, part.T) for part, w in zip(split(y, sizes[1]), split(products.second_weighted, sizes[1]))]
    own = [_own(z, side, each) for z, side, each in zip((x, y), (products.first, products.second), sizes)]
    return Parts(
        q=Shares(q, *(each[0] for each in own)),
        r=Shares(jnp.stack(to_x) + jnp.stack(to_y, axis=1), *(each[1] for each in own)),
        a=by_layer(jnp.square(x), sizes[0]),
        b=by_layer(jnp.square(y), sizes[1]),
    )


def shares_of_parts(parts: Parts, counted: Bool[Array, " n"], *, debiased: bool) -> Shares:
    """The shares of all images; the debiased ones are row sums of products of the matrices of `centred_gram`.

    Written out for centred units (``m = n - 2``, ``A = sum a``, ``B = sum b``, ``T = sum a b``)::

    h = q - a b + (r - 3 a b) / m + (a B + b A + T - 2 a b - A B / (n - 1)) / m^2
    """
    if not debiased:
        return parts.q
    n = jnp.sum(counted).astype(parts.a.dtype)

    def share(q: Array, r: Array, a: Array, b: Array) -> Array:
        ab = a * b
        all_a, all_b, all_ab = (jnp.sum(z, axis=-1, keepdims=True) for z in (a, b, ab))
        rest = a * all_b + b * all_a + all_ab - 2 * ab - all_a * all_b / (n - 1)
        return jnp.where(counted, q - ab + (r - 3 * ab) / (n - 2) + rest / jnp.square(n - 2), 0)

    a, b = parts.a, parts.b
    pairs = ((a[:, None], b[None]), (a, a), (b, b))
    return Shares(*(share(q, r, *pair) for q, r, pair in zip(parts.q, parts.r, pairs, strict=True)))


def split(x: Float[Array, "*rows units"], sizes: Sizes) -> Sequence[Float[Array, "*rows _"]]:
    """The units of each layer."""
    return jnp.split(x, list(accumulate(sizes))[:-1], axis=-1)


def by_layer(x: Float[Array, "b units"], sizes: Sizes) -> Float[Array, "layers b"]:
    """Sums over the units of each layer, apart, so that what is not a number in one does not reach the others."""
    return jnp.stack([jnp.sum(part, axis=1) for part in split(x, sizes)])


def _side(x: Array, lengths: Array, sizes: Sizes) -> Side:
    parts = split(x, sizes)
    return Side(
        total=jnp.sum(x, axis=0),
        own=tuple(_times(part.T, part) for part in parts),
        lengths=jnp.sum(lengths, axis=1),
        weighted=jnp.concatenate([_times(a, part) for a, part in zip(lengths, parts, strict=True)]),
    )


def _centred_side(side: Side, n: Array, sizes: Sizes) -> Side:
    means = side.total / n
    parts = split(means, sizes)
    own = tuple(c - n * d[:, None] * d[None] for c, d in zip(side.own, parts, strict=True))
    lengths = side.lengths - n * jnp.stack([jnp.sum(jnp.square(d)) for d in parts])
    weighted = [
        w - a * d - 2 * _times(c, d)
        for w, a, c, d in zip(split(side.weighted, sizes), side.lengths, own, parts, strict=True)
    ]
    return Side(means, own, lengths, jnp.concatenate(weighted))


def _own(x: Array, side: Side, sizes: Sizes) -> tuple[Array, Array]:
    parts = list(zip(split(x, sizes), side.own, split(side.weighted, sizes), strict=True))
    q = jnp.stack([jnp.sum(_times(part, c) * part, axis=1) for part, c, _ in parts])
    return q, jnp.stack([2 * _times(part, w) for part, _, w in parts])


def _times(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=HIGHEST)
