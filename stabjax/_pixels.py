"""Values of pixels: integers 0..255 or floats in [0, 1], and the mean and deviation of their channels."""

from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stabjax._numerics import extremes
from stabjax._types import AnyArray

A = TypeVar("A", jax.Array, np.ndarray)


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel, of pixels in [0, 1].

    Attributes:
        mean: one number per channel.
        deviation: one positive number per channel.
    """

    mean: tuple[float | int, ...]
    deviation: tuple[float | int, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.deviation) or not self.mean:
            raise ValueError(
                f"expected one mean and one deviation per channel, got {len(self.mean)} and {len(self.deviation)}"
            )
        if min(self.deviation) <= 0:
            raise ValueError(f"expected positive deviations, got {self.deviation}")


def normalize_channels(images: A, mean: tuple[float | int, ...], deviation: tuple[float | int, ...]) -> A:
    """Return ``(images - mean) / deviation`` for each channel; integers are divided by 255 first.

    Three roundings in this order: what is measured on normalized images is measured on those that were trained on.

    Args:
        images: ``(..., channels)``, NumPy or JAX; integers become float32, floats keep their type.
        mean: one number per channel, or one for all, or none (nothing is taken off).
        deviation: likewise (none: no division).

    Raises:
        ValueError: another number of statistics.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        images = images.astype(np.float32) / 255
    for name, values in (("mean", mean), ("deviation", deviation)):
        if len(values) not in (0, 1, images.shape[-1]):
            raise ValueError(f"expected {name} of {images.shape[-1]} channels, or one number, got {values}")
    row = (1,) * (images.ndim - 1) + (-1,)
    if mean:
        images = images - np.reshape(mean, row).astype(images.dtype)
    if deviation:
        images = images / np.reshape(deviation, row).astype(images.dtype)
    return images


def are_of_unit_interval(mean: tuple[float | int, ...], deviation: tuple[float | int, ...]) -> bool:
    """Tell whether statistics are taken for those of images in [0, 1]: means in [0, 1] and deviations up to 1."""
    return bool(mean or deviation) and all(0 <= m <= 1 for m in mean) and all(d <= 1 for d in deviation)


def range_outside(
    images: AnyArray, value_range: tuple[float | int, float | int] | None, *, rounded: bool = True
) -> tuple[float, float] | None:
    """Return the extremes of floating images that leave a range; None if they keep to it, or are not known.

    Bytes have a range of their own, and inside a transformation values are not known.

    Args:
        images: an array, traced or not.
        value_range: smallest and largest value; None allows all.
        rounded: whether values may lie beyond by a quarter of the step of a byte, 0.001, or by the spacing of the type
            where that is larger.
    """
    if value_range is None or isinstance(images, Tracer) or not jnp.issubdtype(images.dtype, jnp.floating):
        return None
    slack = max(0.25 / 255, float(jnp.finfo(images.dtype).eps)) if rounded else 0.0
    low, high = extremes(images)
    # Of nothing but NaN, which passes, both extremes are NaN, and no comparison is true.
    outside = low < value_range[0] - slack or high > value_range[1] + slack
    return (low, high) if outside else None
