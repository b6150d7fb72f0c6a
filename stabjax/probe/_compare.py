"""The passes behind `stabjax.probe.similarity`: Gram matrices, or products of units, whichever is smaller."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from stabjax import features
from stabjax.probe._canonical import correlations
from stabjax.probe._grams import grams
from stabjax.probe._layers import Layers, Steps, Units
from stabjax.probe._products import products
from stabjax.probe._rows import finite_rows
from stabjax.probe._sides import Side, side_of
from stabjax.similarity import Measure, Similarity
from stabjax.similarity._streamed import Shares, alignment, shares_of_grams

Way = Literal["products", "grams"]


@partial(jax.jit, static_argnames=("measure", "by", "steps", "layers", "units", "select", "confidence"))
def compare(
    networks: tuple[features.Traced, ...],
    images: tuple[Array, ...],
    *,
    layers: tuple[Layers, ...],
    measure: Measure,
    by: Way,
    steps: Steps,
    units: Units,
    select: features.Select,
    confidence: float,
) -> Similarity:
    """`stabjax.probe.similarity` for one or two networks, each with its images; see there."""
    finite = jnp.stack(list(map(finite_rows, images)))
    measured = jnp.all(finite, axis=0)
    counted = jnp.pad(measured, (0, steps.padded - steps.images))
    sides = [
        side_of(f, x, counted, which, steps, select, units)
        for f, x, which in zip(networks, images, layers, strict=True)
    ]
    if measure in ("cka", "cka_debiased"):
        debiased = measure == "cka_debiased"
        shares = (products if by == "products" else _by_grams)(sides, steps, debiased)
        n = jnp.sum(counted).astype(shares.cross.dtype)
        matrix, interval = alignment(shares, n, confidence, debiased=debiased)
    else:
        matrix = correlations(sides, steps, measure)
        interval = jnp.full((*matrix.shape, 2), jnp.nan, matrix.dtype)
    return Similarity(
        layers=layers[0].names,
        kinds=layers[0].kinds,
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


def way(layers: tuple[Layers, ...], images: int) -> Way:
    """Products of all units with each other, or Gram matrices of the images: whichever is fewer numbers."""
    return "products" if sum(layers[0].sizes) + sum(layers[-1].sizes) < images else "grams"


def _by_grams(sides: list[Side], steps: Steps, debiased: bool) -> Shares:
    found = [grams(side, steps) for side in sides]
    return shares_of_grams(found[0], found[-1], sides[0].counted, debiased=debiased)
