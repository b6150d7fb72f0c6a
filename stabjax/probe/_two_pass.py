"""Measures that take two passes over the images: CKA by products of units, and canonical correlations.

The first pass adds up moments or triangular factors of the units, the second one what is measured with them.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from stabjax.probe._batching import Tiles
from stabjax.probe._network_stream import NetworkStream, accumulate
from stabjax.similarity.streaming import Canonical, HsicTerms, ProductTerms, QRFactor, UnitProducts, WhitenedProducts


def terms_by_products(streams: list[NetworkStream], tiles: Tiles, debiased: bool) -> HsicTerms:
    """Return the terms of HSIC of every image from products of units."""
    dtype = jnp.result_type(*(shift.dtype for stream in streams for shift in stream.read.shifts))

    def with_batch(products: UnitProducts, start: Array) -> UnitProducts:
        x, y = _both_units(streams, start, tiles)
        return products.update(x, y, streams[0].counts(start, tiles))

    empty = UnitProducts.init(streams[0].layers.sizes, streams[-1].layers.sizes, dtype=dtype)
    # The whole first pass, before the second one begins: the terms of an image need the sums over all.
    products = accumulate(with_batch, empty, tiles)

    def with_terms(terms: ProductTerms, start: Array) -> ProductTerms:
        x, y = _both_units(streams, start, tiles)
        return terms.update(start, x, y, streams[0].counts(start, tiles))

    # With room for the blank images, as in Gram matrices of whole tiles; their terms are zero.
    return accumulate(with_terms, ProductTerms.init(products, tiles.padded), tiles).finish(debiased=debiased)


def correlations(streams: list[NetworkStream], tiles: Tiles, measure: Canonical) -> Float[Array, "x y"]:
    """Return the canonical similarity of every pair of layers."""
    # SVCCA leaves out directions of little variance, so units count by theirs.
    bases = [
        [factor.finish(standardize=measure != "svcca") for factor in _qr_factors(stream, tiles)] for stream in streams
    ]

    def with_batch(products: WhitenedProducts, start: Array) -> WhitenedProducts:
        x, y = _both_units(streams, start, tiles)
        return products.update(x, y, streams[0].counts(start, tiles))

    # One network with itself has one list of bases: first and last are the same.
    return accumulate(with_batch, WhitenedProducts.init(bases[0], bases[-1]), tiles).finish(measure)


def _qr_factors(stream: NetworkStream, tiles: Tiles) -> list[QRFactor]:
    def with_batch(factors: list[QRFactor], start: Array) -> list[QRFactor]:
        counted = stream.counts(start, tiles)
        units = stream.units(start, tiles)
        return [factor.update(x, counted) for factor, x in zip(factors, units, strict=True)]

    empty = [QRFactor.init(len(shift), dtype=shift.dtype) for shift in stream.read.shifts]
    return accumulate(with_batch, empty, tiles)


def _both_units(streams: list[NetworkStream], start: Array, tiles: Tiles) -> tuple[Any, Any]:
    """Return the units of both networks; one network that is compared with itself runs once."""
    units = [stream.units(start, tiles) for stream in streams]
    return units[0], units[-1]
