"""The published medians per unit, with bootstrap intervals over images, from whole arrays."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stabjax._numerics import row_sum, safe_ratio
from stabjax._types import AnyArray, PRNGKey

_HELD = 2**22  # weights of resampled values held at a time


class PerUnit(NamedTuple):
    """One layer by medians per unit."""

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
    """``sum_u med_x (f_u(x') - f_u(x))^2`` over ``med_{x,z} |f(x) - f(z)|^2`` (code of Petrini et al. 2021).

    Numerators are averaged over draws. A resample takes the same images above and below; a pair counts as often as the
    product of the weights of its images, so that pairs of an image with itself grow as they do in a resampled set.
    Holds ``n^2`` numbers.
    """
    n = clean.shape[0]
    rows = jnp.reshape(jnp.asarray(clean), (n, -1))
    changes = jnp.stack([jnp.square(jnp.reshape(x, (x.shape[0], n, -1)) - rows[None]) for x in (deformed, noisy)])
    by_unit = _sort(jnp.swapaxes(changes, -1, -2))
    first, second = map(jnp.asarray, np.triu_indices(n, 1))
    distances = _sort(jax.lax.map(lambda i: row_sum(jnp.square(rows - rows[i][None])), jnp.arange(n))[first, second])

    def statistics(weights: Int[Array, " n"]) -> tuple[Array, Array]:
        medians = _median(by_unit.values, weights[by_unit.images])
        pairs = 2 * weights[first[distances.images]] * weights[second[distances.images]]
        # Every image is at distance zero from itself.
        values = jnp.concatenate([jnp.zeros((1,), rows.dtype), distances.values])
        pairs = jnp.concatenate([jnp.sum(jnp.square(weights))[None], pairs])
        return jnp.mean(jnp.sum(medians, -1), -1), _median(values, pairs)

    def resample(key: PRNGKey) -> Array:
        drawn = jax.random.randint(key, (n,), 0, n)
        tops, pairs = statistics(jnp.zeros(n, jnp.int32).at[drawn].add(1))
        return _ratios(tops, pairs)

    held = max(1, min(resamples, _HELD // max(by_unit.values.size, distances.values.size)))
    found = jax.lax.map(resample, jax.random.split(key, resamples), batch_size=held)
    tops, pairs = statistics(jnp.ones(n, jnp.int32))
    return PerUnit(tops[0], tops[1], pairs, jnp.quantile(found, ends, axis=0).T)


def _ratios(tops: Float[Array, " 2"], pairs: Float[Array, ""]) -> Float[Array, " 3"]:
    return jnp.stack([safe_ratio(tops[0], pairs), safe_ratio(tops[1], pairs), safe_ratio(tops[0], tops[1])])


def _sort(values: Float[Array, "*rows k"]) -> _Sorted:
    order = jnp.argsort(values, axis=-1)
    return _Sorted(jnp.take_along_axis(values, order, axis=-1), order)


def _median(ordered: Float[Array, "*rows k"], weights: Int[Array, "*rows k"]) -> Float[Array, "*rows"]:
    """The lower middle value where each value counts as often as its weight says; NaN if any value is NaN."""
    reached = jnp.cumsum(weights, axis=-1)
    middle = jnp.argmax(2 * reached >= reached[..., -1:], axis=-1)
    median = jnp.take_along_axis(ordered, middle[..., None], axis=-1)[..., 0]
    return jnp.where(jnp.isnan(ordered[..., -1]), jnp.nan, median)
