"""What the passes ask of perturbed images and of activations: real numbers, with one row for each image."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from stabjax import features
from stabjax._types import AnyArray


def check_front(tap: features.Tap, activation: Array, rows: int) -> None:
    """Raise unless the batch stands in front; an axis of several parts per image (windows) may stand with it."""
    if activation.ndim == 0 or activation.shape[0] % rows:
        raise ValueError(
            f"expected activations with the batch of {rows} images in front, got shape {activation.shape} at "
            f"{tap.name!r}: leave it out with select, e.g. select=lambda tap: tap.name != {tap.name!r}"
        )


def like_image(name: str, found: Any, image: Array) -> AnyArray:
    """Return what a perturbation made of an image; raise unless it is one like it, of real numbers."""
    array = isinstance(found, jax.Array | np.ndarray)
    kinds = (jnp.floating, jnp.integer)
    if not array or found.shape != image.shape or not any(jnp.issubdtype(found.dtype, kind) for kind in kinds):
        got = f"{found.dtype} of shape {found.shape}" if array else type(found).__name__
        raise ValueError(
            f"expected the {name} to give a real image of the shape it takes, {image.shape}, got {got}: see "
            "stabjax.perturb"
        )
    return found


def real(x: AnyArray) -> Array:
    """Return real numbers of at least single precision, in which sums of half-precision numbers keep their digits.

    Complex numbers become two, along a last axis.
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def finite_rows(x: Any) -> Array:
    """Tell which rows hold finite numbers only, ``(n,)``."""
    return jnp.all(jnp.isfinite(jnp.reshape(x, (len(x), -1))), axis=1)
