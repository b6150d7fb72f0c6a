"""Bootstrap intervals over images, from a few numbers per image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from stabjax._arguments import as_key
from stabjax._compilation import quick_jit
from stabjax._numerics import HIGHEST, permit_nan, safe_ratio
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, PRNGKey
from stabjax.stability._formulas import Average

RESAMPLES = 1000
_HELD = 2**20
"""Weights of resampled images held at a time."""


class Intervals(NamedTuple):
    """Hold lower and upper ends, ``(layers, 2)`` each."""

    deformation: Float[Array, "layers 2"]
    """Of ``D``."""
    noise: Float[Array, "layers 2"]
    """Of ``G``."""
    relative: Float[Array, "layers 2"]
    """Of ``R``."""


@permit_nan()
def bootstrap(
    key: PRNGKey,
    deformation_numerators: Float[AnyArray, "layers draws n"],
    noise_numerators: Float[AnyArray, "layers draws n"],
    spread: Float[AnyArray, "layers n"],
    pair_distance: Float[AnyArray, " layers"],
    *,
    measured: Bool[AnyArray, " n"] | None = None,
    average: Average = "mean",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Intervals:
    """Compute percentile intervals of ``D``, ``G`` and ``R`` by resampling the images (Efron 1979).

    Images are the sampling units: the draws of one image are averaged first. The intervals are paired: a resample takes
    the same images, with the same weights, for both numerators, for the denominator and in every layer, so what images
    share cancels from ``R``. The resampled denominator is the pair distance times the resampled mean of ``spread`` over
    its mean.

    Args:
        key: key of the resampling.
        deformation_numerators: ``|f(tau x) - f(x)|^2`` of every layer, draw and image.
        noise_numerators: ``|f(x + eta) - f(x)|^2``, likewise.
        spread: share of every image in the pair distance, ``2 |f(x) - <f>|^2 B / (B - 1)`` with the mean over ``B``
            images, itself among them. NaN where it is not known, as of one image alone: the mean of the others stands
            for it, so that such an image varies the numerators only.
        pair_distance: mean squared distance of two images, per layer.
        measured: False for images that are to be left out; all are taken by default.
        average: ``"mean"`` or ``"median"`` over images (the lower middle value).
        confidence: probability that the interval covers.
        resamples: number of resamples.

    Returns:
        The intervals; NaN where a numerator, or the pair distance, is NaN or undefined, or no share is known.
    """
    check_average(average)
    ends = interval_ends(confidence, spread.dtype)
    measured = jnp.ones(spread.shape[-1], bool) if measured is None else measured
    numbers = without_explicit_axes((deformation_numerators, noise_numerators, spread, pair_distance, measured))
    return resample_images(as_key(key), *numbers, ends, average, resamples)


def check_average(average: Average) -> Average:
    """Return an average over images; raise for one that is taken of units."""
    if average not in ("mean", "median"):
        raise ValueError(f"expected average 'mean' or 'median' over images, got {average!r}: others need whole arrays")
    return average


def interval_ends(confidence: float, dtype: Any) -> Float[np.ndarray, " 2"]:
    """Return the two quantiles between which a share ``confidence`` of the resamples lies; raise for no probability."""
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}: 0.95 is usual")
    return np.array([(1 - confidence) / 2, (1 + confidence) / 2], dtype)


@quick_jit(level=0, static_argnames=("average", "resamples"))
def resample_images(
    key: PRNGKey,
    deformation_numerators: Float[Array, "layers draws n"],
    noise_numerators: Float[Array, "layers draws n"],
    spread: Float[Array, "layers n"],
    pair_distance: Float[Array, " layers"],
    measured: Bool[Array, " n"],
    ends: Float[Array, " 2"],
    average: Average,
    resamples: int = RESAMPLES,
) -> Intervals:
    """Compute the intervals of `bootstrap` between the quantiles ``ends``."""
    n = spread.shape[-1]
    present = jnp.sum(measured)
    # Positions of the measured images in front, of which there are `present`; the rest is never drawn.
    images = jnp.flatnonzero(measured, size=n, fill_value=0)

    def zero_unmeasured(values: AnyArray) -> Array:
        return jnp.where(jnp.broadcast_to(measured, values.shape), values, 0)

    # (2 layers, n): those of the deformation, then those of the noise, so that one product weighs both alike.
    numerators = jnp.concatenate([jnp.mean(deformation_numerators, axis=1), jnp.mean(noise_numerators, axis=1)])
    known = measured[None] & ~jnp.isnan(spread)
    spread = jnp.where(jnp.isnan(spread), jnp.mean(spread, axis=1, keepdims=True, where=known), spread)
    numerators, spread = zero_unmeasured(numerators), zero_unmeasured(spread)
    over_images = _weighted_mean if average == "mean" else _weighted_median
    # A median holds the reordered weights of every layer.
    held = _HELD if average == "mean" else _HELD // numerators.shape[0]

    def resample(key: PRNGKey) -> tuple[Array, Array]:
        drawn = images[jax.random.randint(key, (n,), 0, jnp.maximum(present, 1))]
        # How often each image was drawn. Where images are missing only the first `present` draws count.
        counts = jnp.where(jnp.arange(n) < present, 1, 0).astype(spread.dtype)
        # (n,), summing to `present`; zero for images that are not measured.
        weights = jnp.zeros(n, spread.dtype).at[drawn].add(counts)
        return over_images(numerators, weights), _weighted_mean(spread, weights)

    keys = jax.random.split(key, resamples)
    # (resamples, 2 layers) and (resamples, layers).
    averages, spreads = jax.lax.map(resample, keys, batch_size=max(1, min(resamples, held // n)))
    mean_spread = _weighted_mean(spread, measured.astype(spread.dtype))
    # The denominator of each resample, (resamples, layers). The spread is about the means of batches, the pair distance
    # about the mean of all images: by the ratio the denominators agree with the latter on average over resamples.
    pairs = spreads * safe_ratio(pair_distance, mean_spread)[None]
    deformed, noisy = jnp.split(averages, 2, axis=1)

    # (3, resamples, layers) -> quantiles (2, 3, layers) -> (3, layers, 2).
    ratios = jnp.stack([safe_ratio(deformed, pairs), safe_ratio(noisy, pairs), safe_ratio(deformed, noisy)])
    return Intervals(*jnp.moveaxis(jnp.quantile(ratios, ends, axis=1), 0, 2))


def average_images(
    numerators: Float[AnyArray, "layers draws n"], measured: Bool[AnyArray, " n"], average: Average
) -> Float[Array, " layers"]:
    """Average the mean over draws over the measured images."""
    # (layers, draws, n) -> (layers, n). Zero where not measured: NaN times a weight of zero would be NaN.
    values = jnp.mean(numerators, axis=1)
    values = jnp.where(jnp.broadcast_to(measured, values.shape), values, 0)
    over_images = _weighted_mean if average == "mean" else _weighted_median
    return over_images(values, jnp.asarray(measured, values.dtype))


def _weighted_mean(values: Float[Array, "rows n"], weights: Float[Array, " n"]) -> Float[Array, " rows"]:
    return jnp.matmul(values, weights, precision=HIGHEST) / jnp.sum(weights)


def _weighted_median(values: Float[Array, "rows n"], weights: Float[Array, " n"]) -> Float[Array, " rows"]:
    """Return the lower middle value of each row, each value counting as often as its weight says; NaN for any NaN."""
    # The first value at which the weights of all values up to it reach half of the total.
    order = jnp.argsort(values, axis=1)
    cumulative = jnp.cumsum(weights[order], axis=1)
    # `argmax` finds the first True; that is never a value of weight zero, since the sum does not grow there.
    middle = jnp.argmax(cumulative >= jnp.sum(weights) / 2, axis=1)
    # From the place in the order to the image, then to its value.
    median = jnp.take_along_axis(values, jnp.take_along_axis(order, middle[:, None], axis=1), axis=1)[:, 0]
    return jnp.where(jnp.any(jnp.isnan(values), axis=1), jnp.nan, median)
