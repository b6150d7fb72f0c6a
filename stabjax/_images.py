"""What a batch of images is, said once: ``(n, h, w, channels)``, channels last.

A shape alone does not say which of its axes is which: ``(n, 28, 28)`` may be gray images without their axis of one
channel, signals of 28 pixels and 28 channels, or one image of 28 channels. So four axes are a batch of two-dimensional
images, three are one image, and everything else needs a word from the caller, ``spatial``: the number of spatial axes,
or their sides. A perturbation made for a shape carries that word itself. Two readings of four axes are refused too:

* ``(n, 3, 32, 32)``, whose second axis is at most 4 long and shorter than all behind it: channels first;
* one image ``(5, 28, 28)`` with more than 4 channels, which may be a batch of gray images.

Only their sides, ``spatial=(3, 32)``, say that they are what they look unlike.
"""

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Integers: TypeAlias = Literal[False, "bytes", "any"]
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
    integers: Integers = False,
    abstract: bool = False,
) -> None:
    """Raise unless this is a batch of images, ``(n, *spatial, channels)``, whose axes are known.

    Args:
        images: An array, traced or not.
        spatial: What the caller says of the spatial axes.
        made_for: What was made for images of such axes, ``{"deformation": (32, 32)}``; None where it does not say.
        least: Fewest images that will do.
        vectors: Whether ``(n, units)``, images without spatial axes, will do.
        integers: Whether bytes, or integers of any size, will do, which are divided by 255.
        abstract: Whether a `jax.ShapeDtypeStruct` will do.

    Raises:
        TypeError: If this is no array, or one of other numbers.
        ValueError: If the shape is not that of a batch, or leaves open which axis is which.
    """
    check_array(images, "images", integers=integers, abstract=abstract)
    shape = tuple(images.shape)
    word = as_spatial(spatial)
    for source, known in made_for.items():
        _check_word(shape, as_spatial(known), source, "images")
        # Sides say more than a number of axes, whoever gives them; all of them have to fit the shape.
        word = known if isinstance(known, tuple) or word is None else word
    _check_word(shape, as_spatial(spatial), "", "images")
    if not 2 <= len(shape) <= 5 or (word is None and len(shape) == 2 and not vectors):
        raise ValueError(
            f"expected images (n, h, w, channels), got shape {shape}: {ADD_CHANNELS}, and one for a batch, x[None]; "
            "signals and volumes say spatial=1 and spatial=3"
        )
    if min(shape[1:]) < 1:
        raise ValueError(f"expected images with pixels and channels, got shape {shape}: give at least one of each")
    if shape[0] < least:
        few = {1: "one image", 2: "two images"}.get(least, f"{least} images")
        raise ValueError(f"expected at least {few}, got {shape[0]}, shape {shape}: give more images")
    # Sides leave nothing open. A number of axes does not say where the channels are: the shape is looked at below.
    if isinstance(word, tuple) or len(shape) == 2:
        return
    if len(shape) == 3 and word is None:
        raise ValueError(
            f"expected images (n, h, w, channels), got shape {shape}, which may be gray images without channels, one "
            f"image, or signals: {ADD_CHANNELS}, put the axis of the batch in front, x[None], or say spatial=1 for "
            f"signals of {shape[1]} pixels and {shape[2]} channels"
        )
    if len(shape) == 5 and word is None:
        raise ValueError(
            f"expected images (n, h, w, channels), got shape {shape}, which may be batches of images, or volumes: "
            "merge the first two axes, x.reshape(-1, *x.shape[2:]), or say spatial=3 for volumes"
        )
    if len(shape) > 3 and _looks_channels_first(shape[1:]):
        raise ValueError(
            f"expected images ({', '.join(('n', *AXES[len(shape) - 2], 'channels'))}), got shape {shape}, which looks "
            f"like channels first: {CHANNELS_LAST}, also for a network that wants them first, which comes in by "
            f"networks.wrap(model, layout='channels_first'); if they are {_sides(shape[1:-1])} pixels of {shape[-1]} "
            f"channels, say spatial={shape[1:-1]}"
        )


def as_batch(x: Any, *, spatial: Spatial = None, vectors: bool = False) -> Any:
    """Return a batch of which the shape alone matters: an array, its shape and dtype, or its shape as numbers.

    Args:
        x: What was given.
        spatial: See `check_batch`.
        vectors: See `check_batch`.

    Raises:
        TypeError: If this is no array and no shape.
        ValueError: See `check_batch`.
    """
    if isinstance(x, tuple | list) and x and all(isinstance(side, int | np.integer) for side in x):
        x = jax.ShapeDtypeStruct(tuple(map(int, x)), jax.dtypes.canonicalize_dtype(float))
    check_batch(x, spatial=spatial, vectors=vectors, abstract=True)
    return x


@contextlib.contextmanager
def explain_batch(x: Any) -> Iterator[None]:
    """Add to an error of a network, which knows nothing of what a batch is here, what it was called with."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"expected a network that takes a batch (n, h, w, channels), got this error from one called with "
            f"{tuple(np.shape(x))}: images have their channels last here, whatever the network wants, and gray images "
            "have one, x[..., None]; a network that wants them first comes in by networks.wrap(model, "
            "layout='channels_first') (of PyTorch modules this is known), one of single examples by "
            "networks.wrap(model, single=True)"
        )
        raise


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
    check_array(image, "an image")
    shape = tuple(image.shape)
    word = as_spatial(spatial)
    _check_word((1, *shape), word, made_for, "an image")
    if not 1 <= len(shape) <= 4 or (len(shape) == 1 and word is None and not vector):
        raise ValueError(
            f"expected an image (h, w, channels), got shape {shape}: give one to three spatial axes and one of "
            "channels, and use jax.vmap over a batch"
        )
    if min(shape) < 1:
        raise ValueError(f"expected an image with pixels and channels, got shape {shape}: give at least one of each")
    if isinstance(word, tuple) or len(shape) == 1 or (len(shape) == 2 and word == 1):
        return
    said = f"if it is one image of {_sides(shape[:-1])} pixels and {shape[-1]} channels, say spatial={shape[:-1]}"
    if len(shape) == 2:
        raise ValueError(
            f"expected an image (h, w, channels), got shape {shape}, which may be a gray image without channels, or a "
            f"signal: {ADD_CHANNELS}, or say spatial=1"
        )
    if len(shape) == 4 and word is None:
        raise ValueError(
            f"expected an image (h, w, channels), got shape {shape}, which may be a batch: use jax.vmap over keys and "
            f"images; {said}"
        )
    # (5, 28, 28) may be a batch of gray images, (3, 32, 32) an image with its channels in front.
    if shape[-1] > MOST_CHANNELS or _looks_channels_first(shape):
        raise ValueError(
            f"expected an image (h, w, channels), got shape {shape}, whose last axis may be a side of the image: move "
            f"the channels to the end, or use jax.vmap over a batch; {said}"
        )


def check_array(images: Any, name: str, *, integers: Integers = False, abstract: bool = False) -> None:
    """Raise ``TypeError`` unless this is an array of floating numbers, or what else will do, see `check_batch`."""
    check_numbers(images, name, abstract=abstract)
    allowed = {False: (), "bytes": (np.uint8,), "any": (np.integer,)}[integers]
    article, noun = ("a ", "image") if name == "an image" else ("", "images")
    if any(jnp.issubdtype(images.dtype, kind) for kind in (jnp.floating, *allowed)):
        if jnp.issubdtype(images.dtype, jnp.floating) and jnp.finfo(images.dtype).bits < 16:
            raise TypeError(
                f"expected {article}floating {noun} of at least 16 bits, got {images.dtype}, which keeps two digits at "
                "most: convert it, x.astype(np.float32)"
            )
        return
    kind = f"{article}{'uint8 or ' if integers else ''}floating {noun}"
    raise TypeError(f"expected {kind}, got {images.dtype}: divide by 255 and normalize first")


def check_numbers(images: Any, name: str, *, abstract: bool = True) -> None:
    """Raise ``TypeError`` unless this is one array of numbers of any kind, or its shape and dtype."""
    if not isinstance(images, jax.Array | np.ndarray) and not (abstract and isinstance(images, jax.ShapeDtypeStruct)):
        several = _several_inputs(images)
        if several:
            raise TypeError(
                f"expected one batch of images, (n, h, w, channels), got {several}. A network is looked at as a "
                "function of its images alone: hold all other inputs fixed, networks.wrap(lambda images: model(...)), "
                "or networks.wrap(jax.tree_util.Partial(apply, others)) to have them as leaves of the network; single "
                "images come in as jnp.stack(images), batches one after the other as iter(batches)"
            )
        raise TypeError(f"expected {name} as an array, got {type(images).__name__}: give np.asarray(...) of it")
    check_plain(images, name)
    if images.dtype == object or not jnp.issubdtype(images.dtype, np.generic) or images.dtype.kind in "SUMm":
        raise TypeError(f"expected {name} of numbers, got an array of {images.dtype}: convert it, x.astype(np.float32)")
    native = as_native(images.dtype)
    if images.dtype != native:
        raise TypeError(
            f"expected {name} of numbers as JAX has them, got {images.dtype}: convert it, x.astype(np.{native.name})"
        )


def check_plain(x: Any, name: str) -> None:
    """Raise ``TypeError`` for an array of NumPy that is more than its numbers: a mask would be lost without a word."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"expected {name} as a plain array, got a masked one: fill in what is masked, x.filled(0), or leave it out"
        )
    if isinstance(x, np.matrix):
        raise TypeError(f"expected {name} as a plain array, got a matrix: give np.asarray(...) of it")


def as_native(dtype: np.dtype) -> np.dtype:
    """Return the same numbers in the byte order of this machine, and in double precision where they have more."""
    if dtype.kind in "fc" and dtype.itemsize > {"f": 8, "c": 16}[dtype.kind]:
        return np.dtype({"f": np.float64, "c": np.complex128}[dtype.kind])
    return dtype.newbyteorder("=")


def _several_inputs(tree: Any) -> str:
    """Describe what a tuple, list or dictionary of arrays holds; nothing for what holds no array."""
    named = jax.tree_util.tree_leaves_with_path(tree) if isinstance(tree, tuple | list | dict) else []
    if not any(isinstance(leaf, jax.Array | np.ndarray) for _, leaf in named):
        return ""
    found = [f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {np.shape(leaf)}" for path, leaf in named]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"a {type(tree).__name__} of {', '.join(found[:3])}{more}"


def _check_word(shape: tuple[int, ...], word: int | tuple[int, ...] | None, made_for: str, name: str) -> None:
    """Raise unless ``(n, *spatial, channels)`` has as many spatial axes, or the sides, that the word says.

    ``name`` is "images", or "an image", which has no ``n``.
    """
    # Full shape: n, spatial axes, channels; check_image puts n = 1 in front.
    axes = word if isinstance(word, int) else len(word or ())
    if word is None or (len(shape) == axes + 2 and (isinstance(word, int) or shape[1:-1] == word)):
        return
    single = name == "an image"
    got = shape[1:] if single else shape
    sides = AXES[axes] if isinstance(word, int) else [str(side) for side in word]
    wanted = ", ".join([*([] if single else ["n"]), *sides, "channels"])
    source = f" as the {made_for} was made for" if made_for else f" as spatial={word} says"
    if isinstance(word, tuple) and made_for and shape[1:] == word and axes == 3 and word[-1] <= MOST_CHANNELS:
        remedy = f"make the {made_for} for {word[:-1]}, without the channels"
    elif len(shape) == axes + 1:
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


def _looks_channels_first(shape: tuple[int, ...]) -> bool:
    """Tell whether the first axis of ``(*spatial, channels)`` is short as channels are, and all others are longer."""
    return shape[0] <= MOST_CHANNELS and all(shape[0] < side for side in shape[1:])


def _sides(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))
