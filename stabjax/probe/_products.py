"""Shares of the images in CKA from products of units, in two passes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from stabjax.probe._layers import Steps
from stabjax.probe._sides import Side, by_image, starts_of, summed
from stabjax.similarity._pooled import centred, parts_of, products_of, shares_of_parts
from stabjax.similarity._streamed import Shares


def products(sides: list[Side], steps: Steps, debiased: bool) -> Shares:
    """The first pass adds up products and means, the second takes the shares with them."""
    sizes = sides[0].layers.sizes, sides[-1].layers.sizes

    def rows(start: Array) -> tuple[Array, Array]:
        x = [jnp.concatenate(side.units(start, steps), axis=1) for side in sides]
        dtype = jnp.result_type(*(z.dtype for z in x))
        return x[0].astype(dtype), x[-1].astype(dtype)

    total = summed(lambda start: products_of(*rows(start), sizes), steps)
    counted = sides[0].counted
    exact = centred(total, jnp.sum(counted).astype(total.cross.dtype), sizes)

    def parts(start: Array) -> Any:
        return parts_of(*rows(start), sides[0].counts(start, steps), exact, sizes)

    found = jax.tree.map(by_image, jax.lax.map(parts, starts_of(steps)))
    return shares_of_parts(found, counted, debiased=debiased)
