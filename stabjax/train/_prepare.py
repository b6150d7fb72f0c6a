"""Batches on their way into the network: random crop and flip, pixel range, channel statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from stabjax._types import AnyArray, PRNGKey
from stabjax.train._recipe import Real


def crop(key: PRNGKey, images: Num[AnyArray, "n *spatial channels"], pad: int) -> Num[Array, "n *spatial channels"]:
    """Each image at a random place of its own frame of ``pad`` zero pixels, at its own size.

    Args:
        key: one key for the batch.
        images: any number of spatial axes.
        pad: pixels on each side; the shift is uniform on ``-pad..pad`` along each axis.
    """
    images = jnp.asarray(images)
    n, *spatial, channels = images.shape
    padded = jnp.pad(images, ((0, 0), *((pad, pad) for _ in spatial), (0, 0)))
    corner = jax.random.randint(key, (n, len(spatial)), 0, 2 * pad + 1)

    def one(image: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice(image, (*start, jnp.zeros((), start.dtype)), (*spatial, channels))

    return jax.vmap(one)(padded, corner)


def flip(key: PRNGKey, images: Num[AnyArray, "n *spatial channels"]) -> Num[Array, "n *spatial channels"]:
    """Each image, with probability one half, mirrored along its last spatial axis (left-right)."""
    images = jnp.asarray(images)
    coin = jax.random.bernoulli(key, shape=(images.shape[0],) + (1,) * (images.ndim - 1))
    return jnp.where(coin, jnp.flip(images, axis=-2), images)


def normalise(
    images: Num[AnyArray, "n *spatial channels"],
    *,
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
) -> Float[Array, "n *spatial channels"]:
    """``(x - mean) / deviation`` per channel; integer images are divided by 255 first.

    Args:
        images: integers 0..255, or floats.
        mean: one number per channel, or one for all, or empty (nothing is taken off).
        deviation: likewise (empty: no division).

    Raises:
        ValueError: the number of statistics is neither 1 nor the number of channels.
    """
    x = jnp.asarray(images)
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
