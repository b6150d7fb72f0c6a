"""Samples in rows from activations that are maps, ``(n, *spatial, channels)``: by positions, averages, interpolation.

Maps of another layout come in with their ``channel_axis``; of a tap of `stabjax.features` it is ``tap.channel_axis``.
Where that is None nobody knows which axis holds the channels, and every function here refuses.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax._numerics import permit_nan
from stabjax._sharding import without_explicit_axes
from stabjax._types import AnyArray
from stabjax.similarity._bases import orthonormal_bases
from stabjax.similarity._cca import CCA, cca_of_bases
from stabjax.similarity._inputs import promote_pair

Maps = Float[AnyArray, "n *spatial"]
Others = Float[AnyArray, "n *others"]
Convention = Literal["corners", "half_pixel"]


def positions(maps: Maps, *, every: int = 1, channel_axis: int | None = -1) -> Float[Array, "samples channels"]:
    """Take every position of every image as a sample, ``(n * positions, channels)``.

    Args:
        maps: ``(n, *spatial, channels)``.
        every: step between the positions taken along each spatial axis; the first position is taken.
        channel_axis: the axis of the channels, if it is not the last.

    Raises:
        ValueError: if there is no spatial axis, ``every < 1``, or the channels are not known.
    """
    maps = _channels_last(maps, channel_axis)
    if every < 1:
        raise ValueError(f"expected every >= 1, got {every}")
    strided = maps[(slice(None), *[slice(None, None, every)] * (maps.ndim - 2))]
    return jnp.reshape(strided, (-1, maps.shape[-1]))


def average(maps: Maps, *, channel_axis: int | None = -1) -> Float[Array, "n channels"]:
    """Average each image over its positions, ``(n, channels)``.

    Args:
        maps: ``(n, *spatial, channels)``.
        channel_axis: the axis of the channels, if it is not the last.

    Raises:
        ValueError: if there is no spatial axis, or the channels are not known.
    """
    maps = _channels_last(maps, channel_axis)
    return jnp.mean(maps, axis=tuple(range(1, maps.ndim - 1)))


def resized(
    maps: Maps, size: Sequence[int], *, convention: Convention = "corners", channel_axis: int | None = -1
) -> Float[Array, "n *size channels"]:
    """Bring maps to a common size by linear interpolation, ``(n, *size, channels)``.

    Args:
        maps: ``(n, *spatial, channels)``.
        size: one number per spatial axis.
        convention: ``"corners"``: at coordinates ``linspace(0, n, m, endpoint=False)``, constant beyond the last point,
            as the CCA tutorial of Raghu et al. has it; ``"half_pixel"``: `jax.image.resize` without antialiasing, whose
            pixels are squares with their centers half a pixel inside. They differ by a shift of ``(n/m - 1) / 2``
            pixels.
        channel_axis: the axis of the channels, if it is not the last; in the result it is.

    Raises:
        ValueError: if the numbers of axes differ, for another convention, or if the channels are not known.
    """
    maps = _channels_last(maps, channel_axis)
    ndim = maps.ndim - 2
    if len(size) != ndim or min(size) < 1:
        raise ValueError(f"expected a size >= 1 for each of {ndim} axes, got {tuple(size)}")
    if convention not in get_args(Convention):
        raise ValueError(f"expected convention to be one of {get_args(Convention)}, got {convention!r}")
    if convention == "half_pixel":
        return jax.image.resize(maps, (len(maps), *size, maps.shape[-1]), "linear", antialias=False)
    # One axis after another: f(low) + weight (f(low + 1) - f(low)) at low = floor(coordinate). From 4 entries to 3 the
    # coordinates are 0, 4/3 and 8/3.
    for axis, new in enumerate(size, start=1):
        old = maps.shape[axis]
        coordinate = np.linspace(0, old, new, endpoint=False)
        low = np.floor(coordinate).astype(np.int32)
        # The weights lie along this axis, and have length 1 along all others.
        weight = jnp.asarray(coordinate - low, maps.dtype).reshape((1,) * axis + (-1,) + (1,) * (maps.ndim - axis - 1))
        # Beyond the last entry the last one is repeated: constant there.
        first, second = (jnp.take(maps, np.minimum(low + k, old - 1), axis=axis) for k in (0, 1))
        maps = first + weight * (second - first)
    return maps


@permit_nan()
def fourier_cca(x: Maps, y: Others, *, channel_axis: int | None = -1) -> CCA:
    """Compute CCA of two layers for each spatial frequency alone, all frequencies in one call.

    Maps of both layers are transformed along their spatial axes, the larger ones cut to the lower frequencies that both
    have. For translation-invariant images the frequencies of a layer are uncorrelated, so that little is lost by
    comparing them one by one, and a small analysis per frequency replaces a large one.

    Args:
        x: ``(n, *spatial, channels_x)``.
        y: ``(n, *spatial, channels_y)``, for the same images.
        channel_axis: the axis of the channels in both, if it is not the last.

    Returns:
        the result of `cca` with axes ``*frequencies`` in front, in the order of `numpy.fft.fftfreq`; directions are
        complex.

    Raises:
        ValueError: if the numbers of images or of axes differ, or the channels are not known.
    """
    x, y = (_channels_last(maps, channel_axis) for maps in (x, y))
    if len(x) != len(y) or x.ndim != y.ndim or len(x) < 2:
        raise ValueError(f"expected maps of the same images, at least two, got shapes {x.shape} and {y.shape}")
    # Both become (frequencies, n, channels): the frequencies that the smaller map has along each axis.
    size = tuple(min(a, b) for a, b in zip(x.shape[1:-1], y.shape[1:-1]))
    x, y = (_low_frequencies(z, size) for z in promote_pair(x, y))

    def cca_of_frequency(a: Array, b: Array) -> CCA:
        first, second, products = orthonormal_bases(a, b, standardize=True)
        return cca_of_bases(first, second, products, len(a))

    flat = jax.vmap(cca_of_frequency)(x, y)
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (*size, *leaf.shape[1:])), flat)


def _low_frequencies(maps: Array, size: tuple[int, ...]) -> Array:
    """Return Fourier coefficients at the lowest frequencies, ``(prod(size), n, channels)``."""
    axes = tuple(range(1, maps.ndim - 1))
    spectrum = jnp.fft.fftn(maps, axes=axes)
    for axis, (new, old) in enumerate(zip(size, maps.shape[1:-1]), start=1):
        # Order of `fftfreq`: 0, 1, ... from the front, ..., -2, -1 from the back.
        # Of new = 4 frequencies out of old = 8, these are the places 0, 1, 6, 7 of 0, 1, 2, 3, -4, -3, -2, -1.
        kept = jnp.concatenate([jnp.arange((new + 1) // 2), jnp.arange(old - new // 2, old)])
        spectrum = jnp.take(spectrum, kept, axis=axis)
    # (n, *size, channels) -> (n, frequencies, channels) -> (frequencies, n, channels).
    return jnp.moveaxis(jnp.reshape(spectrum, (len(maps), math.prod(size), -1)), 1, 0)


def _channels_last(maps: AnyArray, channel_axis: int | None) -> Array:
    """Move the channels last; raise `ValueError` where these are not known, or there is no position."""
    if maps.ndim < 3:
        raise ValueError(f"expected maps (n, *spatial, channels), got shape {maps.shape}")
    if channel_axis is None:
        raise ValueError(
            f"expected the axis of the channels in maps of shape {maps.shape}, got None, as of a tap whose channels "
            "are not known (products in attention): take every entry as a unit, jnp.reshape(maps, (len(maps), -1))"
        )
    if not -maps.ndim < channel_axis < maps.ndim or channel_axis == 0:
        raise ValueError(
            f"expected channel_axis to be one of the axes behind the first of shape {maps.shape}, got {channel_axis}"
        )
    maps = without_explicit_axes(jnp.asarray(maps))
    return maps if channel_axis in (-1, maps.ndim - 1) else jnp.moveaxis(maps, channel_axis, -1)
