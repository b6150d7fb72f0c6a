"""The published medians per unit, with bootstrap intervals over images, from whole arrays."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from stabjax._numerics import row_sum, safe_ratio
from stabjax._types import AnyArray, PRNGKey

_HELD = 2**22
"""Weights of resampled values held at a time."""
_MOST_IMAGES = 2**16 - 1
"""Ordered pairs of images are counted in 32 bits without a sign: the square is just below ``2**32``."""


class PerUnit(NamedTuple):
    """Hold the numbers of one layer by medians per unit."""

    deformed: Float[Array, ""]
    """Numerator of ``D``."""
    noisy: Float[Array, ""]
    """Numerator of ``G``."""
    pairs: Float[Array, ""]
    """Denominator of both."""
    intervals: Float[Array, "3 2"]
    """Lower and upper ends of ``D``, ``G`` and ``R``."""


class _Sorted(NamedTuple):
    """Values in ascending order, and the images they belong to."""

    values: Float[Array, "*rows k"]
    images: Int[Array, "*rows k"]


@partial(jax.jit, static_argnames="resamples")
def per_unit(
    key: PRNGKey,
    clean: Float[AnyArray, " n *units"],
    deformed: Float[AnyArray, " draws n *units"],
    noisy: Float[AnyArray, " draws n *units"],
    ends: Float[AnyArray, " 2"],
    *,
    resamples: int = 1000,
) -> PerUnit:
    """Compute ``sum_u med_x (f_u(x') - f_u(x))^2`` over ``med_{x,z} |f(x) - f(z)|^2`` (code of Petrini et al. 2021).

    Numerators are averaged over draws. A resample takes the same images above and below; a pair counts as often as the
    product of the weights of its images, so that pairs of an image with itself grow as they do in a resampled set.
    Holds ``n^2`` numbers.
    """
    n = clean.shape[0]
    if n > _MOST_IMAGES:
        raise ValueError(
            f"expected at most {_MOST_IMAGES} images for 'median_per_unit', which counts their pairs, got {n}: take "
            "fewer, or average='median'"
        )
    rows = jnp.reshape(jnp.asarray(clean), (n, -1))
    # (2, draws, n, units), deformed and noisy; sorted over the images for each unit, (2, draws, units, n).
    changes = jnp.stack([jnp.square(jnp.reshape(x, (x.shape[0], n, -1)) - rows[None]) for x in (deformed, noisy)])
    by_unit = _sort(jnp.swapaxes(changes, -1, -2))
    # Distances of all n (n - 1) / 2 unordered pairs i < j, sorted.
    first, second = map(jnp.asarray, np.triu_indices(n, 1))
    distances = _sort(jax.lax.map(lambda i: row_sum(jnp.square(rows - rows[i][None])), jnp.arange(n))[first, second])

    def weighted_medians(weights: UInt32[Array, " n"]) -> tuple[Array, Array]:
        # Sorted once, values are only weighed anew in each resample.
        medians = _median(by_unit.values, weights[by_unit.images])
        # Here `images` are numbers of pairs. Each stands for two ordered pairs: in all the weights sum to n^2.
        pairs = 2 * weights[first[distances.images]] * weights[second[distances.images]]
        # Every image is at distance zero from itself.
        values = jnp.concatenate([jnp.zeros((1,), rows.dtype), distances.values])
        pairs = jnp.concatenate([jnp.sum(jnp.square(weights), dtype=weights.dtype)[None], pairs])
        # (2, draws, units): summed over units, averaged over draws.
        return jnp.mean(jnp.sum(medians, -1), -1), _median(values, pairs)

    def resample(key: PRNGKey) -> Array:
        drawn = jax.random.randint(key, (n,), 0, n)
        numerators, pairs = weighted_medians(jnp.zeros(n, jnp.uint32).at[drawn].add(1))
        return _ratios(numerators, pairs)

    # One resample holds a weight for every sorted value.
    held = max(1, min(resamples, _HELD // max(by_unit.values.size, distances.values.size)))
    ratios = jax.lax.map(resample, jax.random.split(key, resamples), batch_size=held)
    numerators, pairs = weighted_medians(jnp.ones(n, jnp.uint32))
    return PerUnit(numerators[0], numerators[1], pairs, jnp.quantile(ratios, ends, axis=0).T)


def _ratios(numerators: Float[Array, " 2"], pairs: Float[Array, ""]) -> Float[Array, " 3"]:
    """Return ``D``, ``G`` and ``R``."""
    deformed, noisy = numerators[0], numerators[1]
    return jnp.stack([safe_ratio(deformed, pairs), safe_ratio(noisy, pairs), safe_ratio(deformed, noisy)])


def _sort(values: Float[Array, "*rows k"]) -> _Sorted:
    order = jnp.argsort(values, axis=-1)
    return _Sorted(jnp.take_along_axis(values, order, axis=-1), order)


def _median(ordered: Float[Array, "*rows k"], weights: UInt32[Array, "*rows k"]) -> Float[Array, "*rows"]:
    """Return the lower middle value, each value counting as often as its weight says; NaN if any value is NaN."""
    cumulative = jnp.cumsum(weights, axis=-1)
    # The sum against what is left of the total: half of the total may be no integer, and twice the sum may overflow.
    middle = jnp.argmax(cumulative >= cumulative[..., -1:] - cumulative, axis=-1)
    median = jnp.take_along_axis(ordered, middle[..., None], axis=-1)[..., 0]
    # NaNs sort last.
    return jnp.where(jnp.isnan(ordered[..., -1]), jnp.nan, median)
