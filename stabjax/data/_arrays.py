"""Array pairs checked, and channel statistics."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float32, Int32, Num, Shaped

from stabjax._images import Spatial, as_native, check_array, check_batch, check_plain
from stabjax._numerics import extremes
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray
from stabjax.data._images import to_float

__all__ = ["STATISTICS", "Statistics", "arrays", "normalize", "statistics"]

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


STATISTICS = MappingProxyType(
    {
        "mnist": Statistics((0.0,), (1.0,)),
        "fashion-mnist": Statistics((0.5,), (0.5,)),
        "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "svhn": Statistics((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    }
)
"""The usual statistics of the named sets, as in the code of Petrini et al. 2021: MNIST stays in [0, 1]."""


def normalize(
    images: A, stats: str | Statistics, *, value_range: tuple[float | int, float | int] | None = (0.0, 1.0)
) -> A:
    """``(images - mean) / deviation`` for each channel.

    Args:
        images: ``(..., channels)``, NumPy or JAX: bytes, which are divided by 255 first, or floats in [0, 1].
        stats: a name in `STATISTICS`, or the statistics.
        value_range: smallest and largest value that floats may take; None allows all, as images need to which noise
            was added, or which were resized by an interpolation that overshoots. It is compared, never divided by.
            Beyond it passes a quarter of the step of a byte, 0.001, for rounding (in half precision the spacing of the
            type). Inside `jax.jit` and other transformations values are not known and not compared.

    Returns:
        The same shape and kind of array; bytes become float32, floats keep their dtype.

    Raises:
        ValueError: an unknown name, another number of channels, or floats outside ``value_range``, which are most
            often bytes as floats, or normalized already. NaN pixels pass.
        TypeError: integers other than bytes.
    """
    if isinstance(stats, str):
        if stats not in STATISTICS:
            raise ValueError(f"expected statistics of {', '.join(STATISTICS)} or a Statistics, got {stats!r}")
        stats = STATISTICS[stats]
    images = _native(images)
    check_array(images, "images", integers="bytes")
    if images.ndim == 0 or images.shape[-1] != len(stats.mean):
        raise ValueError(
            f"expected images with {len(stats.mean)} channels last, got shape {images.shape}: move the channels to the "
            "end, gray images x[..., None], or take other statistics"
        )
    _check_range(images, value_range, slack=max(0.25 / 255, _spacing(images)))
    wide = np.float64 if images.dtype == np.float64 else np.float32
    dtype = np.float32 if images.dtype == np.uint8 else images.dtype
    # One multiplication and one addition a pixel: x/255 and the statistics are folded into one scale and one shift.
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    row = (1,) * (images.ndim - 1) + (-1,)
    deviation = np.asarray(stats.deviation)
    scale = (1 / (unit * deviation)).astype(wide).reshape(row)
    shift = (-np.asarray(stats.mean) / deviation).astype(wide).reshape(row)
    return (images.astype(wide) * scale + shift).astype(dtype)


def statistics(
    images: Num[AnyArray, "n *spatial channels"],
    *,
    value_range: tuple[float | int, float | int] | None = (0.0, 1.0),
    spatial: Spatial = None,
) -> Statistics:
    """Channel statistics of a set of images, in double precision, a few at a time.

    Args:
        images: bytes, or floats in [0, 1], ``(n, *spatial, channels)``.
        value_range: smallest and largest value that floats may take; see `normalize`.
        spatial: number of spatial axes, or their sides, where the shape leaves open which axis is which.

    Raises:
        ValueError: no image, a shape that is wrong or open, floats outside ``value_range``, or a channel of one value.
            NaN pixels pass: the mean and deviation of their channel are NaN.
        TypeError: integers other than bytes.
    """
    images = _native(images)
    check_batch(images, spatial=spatial, integers="bytes")
    images = without_explicit_axes(images)
    _check_range(images, value_range, slack=max(0.25 / 255, _spacing(images)))
    # Shifted by the first pixel, so that a channel of one value has a deviation of exactly zero.
    shift = np.asarray(images[:1]).astype(np.float64).reshape(-1, images.shape[-1])[0]
    total = square = np.zeros(images.shape[-1])
    for start in range(0, images.shape[0], 256):
        part = np.asarray(images[start : start + 256]).astype(np.float64).reshape(-1, images.shape[-1]) - shift
        total, square = total + part.sum(0), square + (part * part).sum(0)
    count = images.size // images.shape[-1]
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    mean = total / count
    deviation = np.sqrt(np.maximum(square / count - mean * mean, 0))
    return Statistics(tuple(((shift + mean) / unit).tolist()), tuple((deviation / unit).tolist()))


def arrays(
    images: Shaped[AnyArray, "..."],
    labels: Shaped[AnyArray, "..."],
    *,
    value_range: tuple[float | int, float | int] | None = (0.0, 1.0),
    spatial: Spatial = None,
) -> tuple[Float32[np.ndarray, "n *spatial channels"], Int32[np.ndarray, " n"]]:
    """A pair of your own arrays in the form of `load`.

    Args:
        images: ``(n, *spatial, channels)``, bytes or floats; a set of gray images needs its axis of one channel.
        labels: ``(n,)`` integers.
        value_range: smallest and largest value that floats may take; None allows all.
        spatial: number of spatial axes, or their sides, where the shape leaves open which axis is which: ``(n, 28,
            28)`` may be gray images without channels, or (``spatial=1``) signals of 28 channels.

    Returns:
        Images float32 (bytes are divided by 255) and labels int32.

    Raises:
        ValueError: a shape or value that does not fit. NaN pixels pass: what they spoil is marked where it is measured.
        TypeError: images that are neither bytes nor floats, labels that are not integers.
    """
    check_plain(images, "images")
    check_plain(labels, "labels")
    pixels, classes = _native(np.asarray(images)), np.asarray(labels)
    check_batch(pixels, spatial=spatial, integers="bytes")
    if classes.shape != pixels.shape[:1]:
        raise ValueError(f"expected one label per image, ({len(pixels)},), got shape {classes.shape}")
    if not np.issubdtype(classes.dtype, np.integer):
        raise TypeError(f"expected integer labels, got {classes.dtype}; one-hot labels need argmax first")
    if classes.size and not -(2**31) <= classes.min() <= classes.max() < 2**31:
        raise ValueError(
            f"expected labels of 32 bits, got {classes.min()} to {classes.max()}: number the classes from 0"
        )
    if pixels.dtype == np.uint8:
        return to_float(pixels), classes.astype(np.int32)
    pixels = pixels.astype(np.float32)
    _check_range(pixels, value_range)
    return pixels, classes.astype(np.int32)


def _check_range(images: AnyArray, value_range: tuple[float | int, float | int] | None, *, slack: float = 0.0) -> None:
    """Refuse concrete floats that lie more than ``slack`` outside of a range; bytes have theirs."""
    if value_range is None or images.dtype == np.uint8 or isinstance(images, Tracer):
        return
    low, high = extremes(images)
    if low < value_range[0] - slack or high > value_range[1] + slack:
        raise ValueError(
            f"expected values in {value_range}, got {low:g} to {high:g}; divide by 255, or pass value_range=None"
        )


def _native(images: Any) -> Any:
    """An array of NumPy in the byte order of this machine, as arrays of JAX are; others, and what is none, as given."""
    known = type(images) in (np.ndarray, np.memmap) and images.dtype.kind in "fc"
    return images.astype(as_native(images.dtype), copy=False) if known else images


def _spacing(images: AnyArray) -> float:
    """Distance of the floats of this type above one."""
    return 0.0 if images.dtype == np.uint8 else float(jnp.finfo(images.dtype).eps)
