"""What a batch of images is, said once: ``(n, *spatial, channels)``, channels last.

A shape alone does not say which of its axes is which: ``(n, 28, 28)`` may be gray images without their axis of one
channel, or signals of 28 pixels and 28 channels; ``(n, 3, 32, 32)`` has its channels first unless its images are three
pixels high. What the shape leaves open is refused here, and the caller decides it by one word, ``spatial``: the number
of spatial axes, or their sides. A perturbation made for a shape carries that word itself.

=====================  ===============================================================================================
shape                  without a word
=====================  ===============================================================================================
``(n, length, c)``     taken where ``c`` is 1, or at most 4 and below ``length``
``(n, h, w, c)``       taken unless axis 1 looks like channels: at most 4 long and shorter than every axis behind it
``(n, d, h, w, c)``    likewise
one image ``(h, w, c)``  taken where ``c <= 4`` too: a longer last axis may be a side, the first one a batch
one image of rank 4    refused: it may be a batch
=====================  ===============================================================================================
"""

import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Spatial: TypeAlias = int | Sequence[int] | None
"""Number of spatial axes, or their sides; None says nothing."""

MOST_CHANNELS = 4
"""Channels that a photograph may have. A longer last axis may be a side of an image."""

AXES = ((), ("length",), ("h", "w"), ("d", "h", "w"))
"""What the spatial axes are called, by their number."""

CHANNELS_LAST = "move the channels to the end, np.moveaxis(x, 1, -1)"
ADD_CHANNELS = "add the axis of one channel, x[..., None]"


def as_spatial(spatial: Spatial) -> int | tuple[int, ...] | None:
    """Return the word in a form that can be hashed and compared: a number, a tuple of sides, or None.

    Raises:
        ValueError: for fewer than zero or more than three axes, or a side below 1.
        TypeError: for anything else.
    """
    if spatial is None:
        return None
    try:
        word = operator.index(spatial) if np.ndim(spatial) == 0 else tuple(operator.index(n) for n in spatial)  # pyright: ignore
    except TypeError as error:
        raise TypeError(
            f"expected spatial as a number of axes or their sides, got {spatial!r}; e.g. spatial=2, or spatial=(32, 32)"
        ) from error
    axes = word if isinstance(word, int) else len(word)
    if not 0 <= axes <= 3 or (not isinstance(word, int) and min(word, default=1) < 1):
        raise ValueError(
            f"expected spatial as a number of axes from 0 to 3 or as many sides, got {spatial}; leave out the axes of "
            "batch and channels"
        )
    return word


def check_batch(
    images: Any,
    *,
    spatial: Spatial = None,
    made_for: Mapping[str, Spatial] = MappingProxyType({}),
    least: int = 1,
    vectors: bool = False,
    integers: bool = False,
    by_network: bool = False,
) -> None:
    """Raise unless this is a batch of images, ``(n, *spatial, channels)``, whose axes are known.

    Args:
        images: An array, traced or not, or a `jax.ShapeDtypeStruct`.
        spatial: What the caller says of the spatial axes.
        made_for: What was made for images of such axes, ``{"deformation": (32, 32)}``; None where it does not say.
        least: Fewest images that will do.
        vectors: Whether ``(n, units)``, images without spatial axes, will do.
        integers: Whether integers will do, which are divided by 255.
        by_network: Whether the network alone decides what the axes are, so that ``(n, length, channels)`` of any
            length is taken as it is; images with their channels first are refused all the same.

    Raises:
        TypeError: If this is no array, or one of other numbers.
        ValueError: If the shape is not that of a batch, or leaves open which axis is which.
    """
    _check_array(images, "images", integers=integers)
    shape = tuple(images.shape)
    word = as_spatial(spatial)
    for source, known in made_for.items():
        _check_word(shape, as_spatial(known), source, "images")
        word = known if isinstance(known, tuple) or word is None else word
    _check_word(shape, as_spatial(spatial), "", "images")
    low = 2 if vectors or word == 0 else 3
    if not low <= len(shape) <= 5:
        raise ValueError(
            f"expected images (n, *spatial, channels), got shape {shape}: "
            + (
                "a single image needs an axis in front, x[None]; "
                if len(shape) < low
                else "one to three spatial axes; "
            )
            + f"gray images without channels, {ADD_CHANNELS}"
        )
    if min(shape[1:]) < 1:
        raise ValueError(f"expected images with pixels and channels, got shape {shape}: an axis of length 0 has none")
    if shape[0] < least:
        few = {1: "one image", 2: "two images"}.get(least, f"{least} images")
        raise ValueError(f"expected at least {few}, got {shape[0]}, shape {shape}")
    if isinstance(word, tuple) or len(shape) == 2:
        return
    if len(shape) == 3 and word is None and not by_network and not _is_signal(shape[1:]):
        raise ValueError(
            f"expected images (n, *spatial, channels), got shape {shape}, which may be gray images without channels, "
            f"or signals of {shape[1]} pixels and {shape[2]} channels: {ADD_CHANNELS}, or say spatial=1 for signals"
        )
    if len(shape) > 3 and _looks_channels_first(shape[1:]):
        raise ValueError(
            f"expected images (n, *spatial, channels), got shape {shape}, which looks like channels first: "
            f"{CHANNELS_LAST}, also for a network that wants them first (features.of(model, layout='channels_first') "
            f"moves them back); if they are {_sides(shape[1:-1])} pixels of {shape[-1]} channels, say "
            f"spatial={shape[1:-1]}"
        )


def check_image(image: Any, *, spatial: Spatial = None, made_for: str = "", vector: bool = False) -> None:
    """Raise unless this is one floating image, ``(*spatial, channels)``, whose axes are known.

    Args:
        image: An array, traced or not.
        spatial: What is known of its spatial axes.
        made_for: What said it, for the message.
        vector: Whether ``(units,)``, an image without spatial axes, will do.

    Raises:
        TypeError: If this is no floating array.
        ValueError: If the shape is not that of one image, or leaves open which axis is which.
    """
    _check_array(image, "an image")
    shape = tuple(image.shape)
    word = as_spatial(spatial)
    _check_word((1, *shape), word, made_for, "an image")
    low = 1 if vector or word == 0 else 2
    if not low <= len(shape) <= 4:
        raise ValueError(
            f"expected an image (*spatial, channels) with one to three spatial axes, got shape {shape}: "
            f"{ADD_CHANNELS}, or use jax.vmap over a batch"
        )
    if min(shape) < 1:
        raise ValueError(f"expected an image with pixels and channels, got shape {shape}")
    if isinstance(word, tuple) or len(shape) == 1 or word == len(shape) - 1 == 1:
        return
    said = f"if it is one image of {_sides(shape[:-1])} pixels and {shape[-1]} channels, say spatial={shape[:-1]}"
    if len(shape) == 4 and word is None:
        raise ValueError(
            f"expected an image (*spatial, channels), got shape {shape}, which may be a batch: use jax.vmap over keys "
            f"and images; {said}"
        )
    if shape[-1] > MOST_CHANNELS or (len(shape) == 2 and not _is_signal(shape)) or _looks_channels_first(shape):
        raise ValueError(
            f"expected an image (*spatial, channels), got shape {shape}, whose last axis may be a side of the image: "
            f"{ADD_CHANNELS if len(shape) == 2 else 'move the channels to the end, or use jax.vmap over a batch'}; "
            f"{said}"
        )


def _check_array(images: Any, name: str, *, integers: bool = False) -> None:
    if not isinstance(images, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise TypeError(f"expected {name} as an array, got {type(images).__name__}: give np.asarray(...) of it")
    if jnp.issubdtype(images.dtype, jnp.floating) or (integers and jnp.issubdtype(images.dtype, jnp.integer)):
        return
    article, noun = ("a ", "image") if name == "an image" else ("", "images")
    kind = f"{article}floating {noun}" + (", or bytes" if integers else "")
    raise TypeError(f"expected {kind}, got {images.dtype}: divide by 255 and normalize first")


def _check_word(shape: tuple[int, ...], word: int | tuple[int, ...] | None, made_for: str, name: str) -> None:
    """Raise unless ``(n, *spatial, channels)`` has as many spatial axes, or the sides, that the word says.

    ``name`` is "images", or "an image", which has no ``n``.
    """
    axes = word if isinstance(word, int) else len(word or ())
    if word is None or (len(shape) == axes + 2 and (isinstance(word, int) or shape[1:-1] == word)):
        return
    single = name == "an image"
    got = shape[1:] if single else shape
    sides = AXES[axes] if isinstance(word, int) else [str(side) for side in word]
    wanted = ", ".join([*([] if single else ["n"]), *sides, "channels"])
    source = f" as the {made_for} was made for" if made_for else f" as spatial={word} says"
    if len(shape) == axes + 1:
        remedy = ADD_CHANNELS
    elif single and len(shape) == axes + 3:
        remedy = "use jax.vmap over the keys and images of a batch"
    elif isinstance(word, tuple) and len(shape) == axes + 2 and shape[2:] == word:
        remedy = "move the channels to the end" if single else CHANNELS_LAST
    elif made_for and isinstance(word, tuple) and len(shape) == axes + 2:
        remedy = f"make the {made_for} for {shape[1:-1]}, or bring the images to its size"
    else:
        remedy = "give other images, or say another spatial="
    raise ValueError(f"expected {name} ({wanted}){source}, got shape {got}: {remedy}")


def _is_signal(shape: tuple[int, ...]) -> bool:
    """Whether ``(length, channels)`` can only be a signal: a gray image has two sides, both longer than channels."""
    length, channels = shape
    return channels == 1 or (channels <= MOST_CHANNELS and channels < length)


def _looks_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether the first axis of ``(*spatial, channels)`` is short as channels are, and all others are longer."""
    return shape[0] <= MOST_CHANNELS and all(shape[0] < side for side in shape[1:])


def _sides(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))
