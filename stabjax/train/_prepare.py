"""Batches on their way into the network: random crop and flip, pixel range, channel statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from stabjax._arguments import as_key
from stabjax._numerics import extremes
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, PRNGKey
from stabjax.train._recipe import Real, whole


def crop(key: PRNGKey, images: Num[AnyArray, "n *spatial channels"], pad: int) -> Num[Array, "n *spatial channels"]:
    """Each image at a random place of its own frame of ``pad`` zero pixels, at its own size.

    Args:
        key: one key for the batch.
        images: any number of spatial axes.
        pad: pixels on each side; the shift is uniform on ``-pad..pad`` along each axis.
    """
    pad = whole("pad", pad, least=0)
    images = without_explicit_axes(jnp.asarray(images))
    n, *spatial, channels = images.shape
    padded = jnp.pad(images, ((0, 0), *((pad, pad) for _ in spatial), (0, 0)))
    corner = jax.random.randint(as_key(key), (n, len(spatial)), 0, 2 * pad + 1)

    def one(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*start, jnp.zeros((), start.dtype)), (*spatial, channels))

    return jax.vmap(one)(padded, corner)


def flip(key: PRNGKey, images: Num[AnyArray, "n *spatial channels"]) -> Num[Array, "n *spatial channels"]:
    """Each image, with probability one half, mirrored along its last spatial axis (left-right)."""
    images = jnp.asarray(images)
    coin = jax.random.bernoulli(as_key(key), shape=(images.shape[0],) + (1,) * (images.ndim - 1))
    return jnp.where(coin, jnp.flip(images, axis=-2), images)


def normalise(
    images: Num[AnyArray, "n *spatial channels"],
    *,
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
    value_range: tuple[Real, Real] | None = (0.0, 1.0),
) -> Float[Array, "n *spatial channels"]:
    """``(x - mean) / deviation`` per channel; integer images are divided by 255 first.

    Args:
        images: integers 0..255, or floats: in [0, 1] where the statistics are those of such images.
        mean: one number per channel, or one for all, or empty (nothing is taken off).
        deviation: likewise (empty: no division).
        value_range: smallest and largest value that floats may take; see `check_values`. None allows all.

    Raises:
        ValueError: the number of statistics is neither 1 nor the number of channels, or values do not fit.
        TypeError: truth values for pixels.
    """
    x = jnp.asarray(images)
    check_values(x, mean=mean, deviation=deviation, value_range=value_range)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32) / 255
    for name, values in (("mean", mean), ("deviation", deviation)):
        if len(values) not in (0, 1, x.shape[-1]):
            raise ValueError(f"expected {name} of {x.shape[-1]} channels, or one number, got {values}")
    per_channel = (1,) * (x.ndim - 1) + (-1,)
    if mean:
        x = x - np.reshape(mean, per_channel).astype(x.dtype)
    if deviation:
        x = x / np.reshape(deviation, per_channel).astype(x.dtype)
    return x


def check_values(
    images: Num[AnyArray, "n *spatial channels"],
    *,
    mean: tuple[Real, ...],
    deviation: tuple[Real, ...],
    value_range: tuple[Real, Real] | None = (0.0, 1.0),
) -> None:
    """Refuse images that are not what their statistics are of: bytes as floats, or images normalised already.

    Statistics with means in [0, 1] and deviations up to 1 are taken for those of images in [0, 1]; with others, or with
    none, floats may have any value. Inside a transformation, values are not known and not compared.

    Args:
        images: as `normalise` takes them.
        mean: of the channels.
        deviation: likewise.
        value_range: smallest and largest value that floats may take, but for rounding: 0.001, a quarter of the step of
            a byte, or the spacing of the type where that is larger.

    Raises:
        ValueError: integers outside 0..255, or floats outside ``value_range``.
        TypeError: truth values for pixels.
    """
    if images.dtype == np.bool_:
        raise TypeError("expected integers 0..255 or floats for pixels, got bool: give images.astype(np.float32)")
    if isinstance(images, Tracer) or images.dtype == np.uint8:
        return
    if not jnp.issubdtype(images.dtype, jnp.floating):
        low, high = extremes(images)
        if low < 0 or high > 255:
            raise ValueError(f"expected integer images in 0..255, got {low:g} to {high:g}: give floats in [0, 1]")
        return
    of_unit = (mean or deviation) and all(0 <= m <= 1 for m in mean) and all(d <= 1 for d in deviation)
    if value_range is None or not of_unit:
        return
    slack = max(0.25 / 255, float(jnp.finfo(images.dtype).eps))
    low, high = extremes(images)
    if low < value_range[0] - slack or high > value_range[1] + slack:
        raise ValueError(
            f"expected images in {value_range}, which mean {mean} and deviation {deviation} are statistics of, got "
            f"{low:g} to {high:g}: divide by 255 first; for images that are normalised already, leave mean and "
            "deviation empty; for others, pass normalise(..., value_range=None) of them"
        )
