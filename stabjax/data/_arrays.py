"""Array pairs checked, and channel statistics."""

from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Num, Shaped

from stabjax._images import Spatial, as_native, check_array, check_batch, check_plain
from stabjax._pixels import A, Statistics, are_of_unit_interval, normalize_channels, range_outside
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray
from stabjax.data._images import to_float

__all__ = ["STATISTICS", "Statistics", "arrays", "normalize", "statistics"]

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
    images: A, stats: str | Statistics | None, *, value_range: tuple[float | int, float | int] | None = (0.0, 1.0)
) -> A:
    """Return ``(images - mean) / deviation`` for each channel, as training does it.

    An array of JAX gives the bits that a call of the network in training would get; one of NumPy gives them to
    rounding, since XLA multiplies bytes by 1 / 255.

    Args:
        images: ``(..., channels)``, NumPy or JAX: bytes, which are divided by 255 first, or floats in [0, 1].
        stats: a name in `STATISTICS`; or statistics, of each channel or one for all, such as the ``statistics`` of a
            `stabjax.train.Recipe`; or None, which makes floats of bytes and leaves floats as they are.
        value_range: smallest and largest value that floats may take; None allows all, as images need to which noise
            was added, or which were resized by an interpolation that overshoots. It is compared, never divided by.
            Beyond it passes a quarter of the step of a byte, 0.001, for rounding (in half precision the spacing of the
            type). Inside `jax.jit` and other transformations values are not known and not compared, nor are they where
            the statistics cannot be those of images in [0, 1]: a mean outside of it, or a deviation above 1.

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
    mean, deviation = ((), ()) if stats is None else (stats.mean, stats.deviation)
    if images.ndim == 0 or len(mean) not in (0, 1, images.shape[-1]):
        raise ValueError(
            f"expected images with {len(mean)} channels last, got shape {images.shape}: move the channels to the end, "
            "gray images x[..., None], or take other statistics"
        )
    if are_of_unit_interval(mean, deviation):
        _check_range(images, value_range)
    if images.dtype == np.uint8:
        return normalize_channels(images, mean, deviation)
    # Half precision is normalized in single precision, and rounded once.
    wide = np.float64 if images.dtype == np.float64 else np.float32
    return normalize_channels(images.astype(wide), mean, deviation).astype(images.dtype)


def statistics(
    images: Num[AnyArray, "n *spatial channels"],
    *,
    value_range: tuple[float | int, float | int] | None = (0.0, 1.0),
    spatial: Spatial = None,
) -> Statistics:
    """Return the channel statistics of a set of images, in double precision, a few at a time.

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
    _check_range(images, value_range)
    # Shifted by the first pixel, so that a channel of one value has a deviation of exactly zero.
    shift = np.asarray(images[:1]).astype(np.float64).reshape(-1, images.shape[-1])[0]
    total = square = np.zeros(images.shape[-1])
    for start in range(0, images.shape[0], 256):
        # (pixels, channels) of 256 images at a time, less the first pixel.
        part = np.asarray(images[start : start + 256]).astype(np.float64).reshape(-1, images.shape[-1]) - shift
        total, square = total + part.sum(0), square + (part * part).sum(0)
    count = images.size // images.shape[-1]
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    # <x^2> - <x>^2 loses digits where a mean is far above its spread: both are about the first pixel, in double
    # precision.
    mean = total / count
    deviation = np.sqrt(np.maximum(square / count - mean * mean, 0))
    # Bytes were summed as they are; both results are divided by 255 once.
    return Statistics(tuple(((shift + mean) / unit).tolist()), tuple((deviation / unit).tolist()))


def arrays(
    images: Shaped[AnyArray, "..."],
    labels: Shaped[AnyArray, "..."],
    *,
    value_range: tuple[float | int, float | int] | None = (0.0, 1.0),
    spatial: Spatial = None,
) -> tuple[Float32[np.ndarray, "n *spatial channels"], Int32[np.ndarray, " n"]]:
    """Bring a pair of your own arrays to the form of `load`.

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
    _check_range(pixels, value_range, rounded=False)
    return pixels, classes.astype(np.int32)


def _check_range(
    images: AnyArray, value_range: tuple[float | int, float | int] | None, *, rounded: bool = True
) -> None:
    """Raise ``ValueError`` for concrete floats outside of a range."""
    if found := range_outside(images, value_range, rounded=rounded):
        raise ValueError(
            f"expected values in {value_range}, got {found[0]:g} to {found[1]:g}; divide by 255, or pass "
            "value_range=None"
        )


def _native(images: Any) -> Any:
    """Bring an array of NumPy to the byte order of this machine; return others, and what is none, as given."""
    known = type(images) in (np.ndarray, np.memmap) and images.dtype.kind in "fc"
    return images.astype(as_native(images.dtype), copy=False) if known else images
