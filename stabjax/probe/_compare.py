"""The compiled program behind `stabjax.probe.similarity`: by Gram matrices or by products of units."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from stabjax import features
from stabjax.probe._batching import Tiles
from stabjax.probe._checks import finite_rows
from stabjax.probe._gram_pass import gram_matrices
from stabjax.probe._layers import Layers, Units
from stabjax.probe._network_stream import NetworkStream, open_stream
from stabjax.probe._two_pass import correlations, terms_by_products
from stabjax.similarity import Measure, Similarity
from stabjax.similarity.streaming import HsicTerms

Strategy = Literal["products", "grams"]


@partial(jax.jit, static_argnames=("measure", "strategy", "tiles", "layers", "units", "select", "confidence"))
def compare(
    networks: tuple[features.Traced, ...],
    images: tuple[Array, ...],
    *,
    layers: tuple[Layers, ...],
    measure: Measure,
    strategy: Strategy,
    tiles: Tiles,
    units: Units,
    select: features.Select,
    confidence: float,
) -> Similarity:
    """Compare the layers of one or two networks, each with its images; see `stabjax.probe.similarity`."""
    finite = jnp.stack(list(map(finite_rows, images)))
    measured = jnp.all(finite, axis=0)
    # (padded,): an image counts if both networks can see it; blank ones at the end do not count.
    counted = jnp.pad(measured, (0, tiles.padded - tiles.images))
    streams = [
        open_stream(f, x, counted, which, tiles, select, units)
        for f, x, which in zip(networks, images, layers, strict=True)
    ]
    if measure in ("cka", "cka_debiased"):
        debiased = measure == "cka_debiased"
        # Both give the same terms, up to a factor per layer that cancels in CKA.
        terms = (terms_by_products if strategy == "products" else _terms_by_grams)(streams, tiles, debiased)
        matrix, interval = terms.alignment(debiased=debiased, confidence=confidence)
    else:
        matrix = correlations(streams, tiles, measure)
        interval = jnp.full((*matrix.shape, 2), jnp.nan, matrix.dtype)
    return Similarity(
        layers=layers[0].names,
        kinds=layers[0].kinds,
        # One network with itself has one entry in all these tuples: the first is the last, too.
        other_layers=layers[-1].names,
        other_kinds=layers[-1].kinds,
        matrix=matrix,
        interval=interval,
        valid=jnp.isfinite(matrix),
        measured=measured,
        measure=measure,
        units=units,
        confidence=confidence,
    )


def choose_strategy(layers: tuple[Layers, ...], images: int) -> Strategy:
    """Choose products of all units with each other or Gram matrices of the images, whichever are fewer numbers."""
    return "products" if sum(layers[0].sizes) + sum(layers[-1].sizes) < images else "grams"


def _terms_by_grams(streams: list[NetworkStream], tiles: Tiles, debiased: bool) -> HsicTerms:
    grams = [gram_matrices(stream, tiles) for stream in streams]
    return HsicTerms.of_grams(grams[0], grams[-1], streams[0].counted, debiased=debiased)
