"""Batches on their way into the network: random crop and flip, pixel range, channel statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Num

from stabjax._arguments import as_key
from stabjax._numerics import extremes
from stabjax._pixels import are_of_unit_interval, normalize_channels, range_outside
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray, PRNGKey
from stabjax.train._recipe import Real, as_count


def crop(key: PRNGKey, images: Num[AnyArray, "n *spatial channels"], pad: int) -> Num[Array, "n *spatial channels"]:
    """Put each image at a random place of its own frame of ``pad`` zero pixels, at its own size.

    Args:
        key: one key for the batch.
        images: any number of spatial axes.
        pad: pixels on each side; the shift is uniform on ``-pad..pad`` along each axis.
    """
    pad = as_count("pad", pad, least=0)
    images = without_explicit_axes(jnp.asarray(images))
    n, *spatial, channels = images.shape
    padded = jnp.pad(images, ((0, 0), *((pad, pad) for _ in spatial), (0, 0)))
    # The corner `pad` leaves the image where it is; 0 and 2 pad are the largest shifts.
    corner = jax.random.randint(as_key(key), (n, len(spatial)), 0, 2 * pad + 1)

    def one(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*start, jnp.zeros((), start.dtype)), (*spatial, channels))

    return jax.vmap(one)(padded, corner)


def flip(key: PRNGKey, images: Num[AnyArray, "n *spatial channels"]) -> Num[Array, "n *spatial channels"]:
    """Mirror each image, with probability one half, along its last spatial axis (left-right)."""
    images = jnp.asarray(images)
    # (n, 1, ..., 1): one coin for all pixels of an image. Axis -2 is the last spatial one.
    coin = jax.random.bernoulli(as_key(key), shape=(images.shape[0],) + (1,) * (images.ndim - 1))
    return jnp.where(coin, jnp.flip(images, axis=-2), images)


def normalize(
    images: Num[AnyArray, "n *spatial channels"],
    *,
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
) -> Float[Array, "n *spatial channels"]:
    """Return images as the network sees them, `stabjax.data.normalize` for integers of any type and on the device.

    Args:
        images: integers 0..255, or floats: in [0, 1] where the statistics are those of such images.
        mean: one number per channel, or one for all, or empty (nothing is taken off).
        deviation: likewise (empty: no division).

    Raises:
        ValueError: the number of statistics is neither 1 nor the number of channels, or values do not fit.
        TypeError: truth values for pixels.
    """
    images = jnp.asarray(images)
    check_values(images, mean=mean, deviation=deviation)
    return normalize_channels(images, mean, deviation)


def check_values(
    images: Num[AnyArray, "n *spatial channels"],
    *,
    mean: tuple[Real, ...],
    deviation: tuple[Real, ...],
) -> None:
    """Refuse images that are not what their statistics are of: bytes as floats, or images normalized already.

    Statistics with means in [0, 1] and deviations up to 1 are taken for those of images in [0, 1]; with others, or with
    none, floats may have any value. Inside a transformation, values are not known and not compared.

    Args:
        images: as `normalize` takes them.
        mean: of the channels.
        deviation: likewise.

    Raises:
        ValueError: integers outside 0..255, or floats outside [0, 1].
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
    found = range_outside(images, (0.0, 1.0)) if are_of_unit_interval(mean, deviation) else None
    if found is not None:
        raise ValueError(
            f"expected images in (0.0, 1.0), which mean {mean} and deviation {deviation} are statistics of, got "
            f"{found[0]:g} to {found[1]:g}: divide by 255 first; for images that are normalized already, leave mean "
            "and deviation empty; for others, pass data.normalize(..., value_range=None) of them"
        )
