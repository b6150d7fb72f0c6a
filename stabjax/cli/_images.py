"""Images of the user: a folder, an ``.npz`` file, or a named set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from stabjax import data
from stabjax.cli._refusal import Refusal, refusing
from stabjax.data import Statistics

IN_MEMORY = 2**30
"""Bytes: more images than this are read from their folder batch by batch."""
_NAMES = ("images", "image", "x", "x_test", "arr_0")
"""What images are called in an ``.npz`` file, best first."""


@dataclass(frozen=True)
class Images:
    """Images that are to be measured.

    Attributes:
        source: an array ``(n, h, w, channels)`` of bytes or of floats in [0, 1], or a stream of batches of bytes.
        first: the first ones of them, an array.
        count: of all.
        text: what they are, for the page.
        statistics: mean and deviation that belong to the set, if it is a named one.
    """

    source: Any
    first: np.ndarray
    count: int
    text: str
    statistics: Statistics | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels."""
        return self.first.shape[1:]


def load(name: str, *, count: int, seed: int, size: tuple[int, ...], channels: int | None, split: str) -> Images:
    """Read images, drawn with the seed where there are more than ``count``, and bring them to a size.

    Args:
        name: a folder, an ``.npz`` file, or a named set of `stabjax.data`.
        count: largest number of images.
        seed: of the choice among them.
        size: one side, or height and width; nothing keeps the size.
        channels: of the images of a folder; None: 3.
        split: of a named set.

    Raises:
        Refusal: if there are no such images, fewer than two, or they cannot be read.
    """
    if len(size) > 2 or any(side < 1 for side in size):
        raise Refusal(f"expected --size as one side or as height and width, got {size}: write, for example, --size 224")
    if count < 2:
        raise Refusal(f"expected --count of at least 2 images, got {count}: D compares different images")
    sides = (size[0], size[-1]) if size else None
    path = Path(name)
    if name in data.STATISTICS:
        return _named(name, split, count, seed, sides)
    if path.is_dir():
        return _folder(path, count, seed, sides, 3 if channels is None else channels)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path, count, seed, sides)
    raise Refusal(
        f"expected images as a folder, an .npz file or one of {', '.join(data.STATISTICS)}, got {name!r}, which is "
        "none of these: check the path"
    )


def _folder(path: Path, count: int, seed: int, sides: tuple[int, int] | None, channels: int) -> Images:
    with refusing(kinds=(ValueError, OSError)):
        stream = data.stream(path, seed=seed, count=count, size=sides, channels=channels)
    _check_count(stream.count, str(path))
    text = _describe(path.resolve().name, stream.count, stream.shape)
    with refusing(kinds=(ValueError, OSError)):
        if stream.count * np.prod(stream.shape) <= IN_MEMORY:
            images = np.concatenate([batch for batch, _ in stream])
            return Images(images, images[:_FIRST], stream.count, text)
        return Images(stream, next(iter(stream))[0][:_FIRST], stream.count, text)


def _npz(path: Path, count: int, seed: int, sides: tuple[int, int] | None) -> Images:
    with (
        refusing(f"the file {str(path)!r} cannot be read", remedy="Save it with np.savez(file, images=images)"),
        np.load(path, allow_pickle=False) as file,
    ):
        arrays = {key: file[key] for key in file.files}
    four = [key for key, array in arrays.items() if array.ndim == 4]
    chosen = next((key for key in _NAMES if key in four), four[0] if len(four) == 1 else None)
    if chosen is None:
        held = ", ".join(f"{key} {array.shape}" for key, array in arrays.items()) or "nothing"
        raise Refusal(
            f"expected an array 'images' (n, height, width, channels) in {str(path)!r}, got {held}: save it with "
            "np.savez(file, images=images); gray images need their axis of one channel, images[..., None]"
        )
    images = arrays[chosen]
    with refusing(f"{chosen!r} in {str(path)!r}", kinds=(ValueError, TypeError)):
        data.arrays(images[:_FIRST], np.zeros(len(images[:_FIRST]), np.int32))
    return _from_array(images, path.name, count, seed, sides)


def _named(name: str, split: str, count: int, seed: int, sides: tuple[int, int] | None) -> Images:
    with refusing(kinds=(ValueError, OSError)):
        images, _ = data.load_bytes(name, split)
        note = data.describe(name).note
    text = f"{name}, {split} images{f' ({note})' if note else ''}"
    return _from_array(images, text, count, seed, sides, data.STATISTICS[name])


def _from_array(
    images: np.ndarray,
    name: str,
    count: int,
    seed: int,
    sides: tuple[int, int] | None,
    statistics: Statistics | None = None,
) -> Images:
    _check_count(len(images), name)
    chosen = images[data.subset(len(images), count, seed=seed)] if count < len(images) else np.asarray(images)
    if sides is not None and chosen.shape[1:3] != sides:
        chosen = fit(chosen, sides)
    return Images(chosen, chosen[:_FIRST], len(chosen), _describe(name, len(chosen), chosen.shape[1:]), statistics)


def fit(images: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """Scale images until they cover a size, and cut off what stands out on both sides, as it is done with a folder.

    Args:
        images: ``(n, h, w, channels)``, bytes or floats in [0, 1].
        sides: height and width.

    Returns:
        floats in [0, 1], ``(n, *sides, channels)`` float32.
    """
    result = np.empty((len(images), *sides, images.shape[-1]), np.float32)
    for image, place in zip(images, result, strict=True):
        pixels = data.to_float(image) if image.dtype == np.uint8 else image.astype(np.float32)
        for channel in range(pixels.shape[-1]):
            plane = Image.fromarray(np.ascontiguousarray(pixels[..., channel]))
            # Pillow has sizes as (width, height).
            place[..., channel] = np.asarray(ImageOps.fit(plane, (sides[1], sides[0]), Image.Resampling.BILINEAR))
    return np.clip(result, 0, 1)


def _check_count(count: int, name: str) -> None:
    if count < 2:
        raise Refusal(f"expected at least two images in {name!r}, got {count}: D compares different images; add some")


def _describe(name: str, count: int, shape: tuple[int, ...]) -> str:
    return f"{name}, {count} images of {' x '.join(map(str, shape))}"


_FIRST = 8
"""Images that are looked at one by one."""
