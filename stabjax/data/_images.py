"""Image folders: class sub-folders of image files, on disk or in a tar or zip archive, of any size.

Labels number the class folders of all splits in alphabetical order; images stand in the order of class folder and file
name. Pixels are bytes, ``(n, h, w, channels)``.
"""

import contextlib
import io
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageOps

from stabjax.data import _cache, _classes, _formats

__all__ = ["folder", "folder_bytes", "folder_classes", "to_float"]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def folder(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str = "crop",
    cache: bool = True,
) -> tuple[Float32[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
    """Return `folder_bytes` with pixels as float32 in [0, 1]: four times the memory of the bytes."""
    images, labels = folder_bytes(
        path, split=split, classes=classes, size=size, channels=channels, fit=fit, cache=cache
    )
    return to_float(images), labels


def folder_bytes(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str = "crop",
    cache: bool = True,
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
    """Return the images and labels of a folder, or of a tar or zip archive of one, decoded once.

    The images are sorted by class folder: draw from them at random, do not take the first few. They come as a
    read-only map of a file, so they take no memory until they are used, and decoding holds one image at a time.
    `stream` decodes batch by batch instead, and keeps nothing.

    Classes are numbered in the alphabetical order of their folders (by code point: capitals before small letters, "10"
    before "2"), over all splits of the set: of ``train/{a,b,c}`` and ``test/{a,c}``, "c" is 2 in both. Two paths that
    are read without ``split`` know nothing of each other; give both the same ``classes``. Hidden folders, folders
    without images in other splits, and files that are no images do not count; links are followed.

    An image is turned upright where its EXIF orientation says so, before anything is asked of its size. Palettes, CMYK
    (without a color profile) and 1, 2 or 4 bits a pixel become 8-bit gray or RGB. Images of more than 8 bits per
    channel and files with several frames or pages are refused; of a camera's MPO file the first picture is taken.

    Args:
        path: folder with one sub-folder per class (images directly in it make a single class), or an archive of it.
        split: name of the folder above the classes, where there are several, as in ``train/cat/1.png``.
        classes: names of all classes in the order of their labels, instead of the alphabetical one. A class that this
            split does not have keeps its number; a folder with images that is not named raises.
        size: height and width to bring every image to, an int for a square. None keeps the size, which then must be
            the same for all.
        channels: 1, 3 or 4. Gray is repeated or color turned to gray as needed, transparency laid over white. None
            keeps what the first image has (with transparency: RGBA); another kind among the rest raises.
        fit: "crop" scales until the image covers ``size`` and cuts off what stands out on both sides; "stretch"
            changes the aspect ratio. Both average over the area of a pixel when they shrink (antialiased bilinear).
        cache: keep the decoded bytes in `cache_dir` for the next call.

    Returns:
        Images ``(n, h, w, channels)`` uint8, and labels ``(n,)`` int32: the number of the class.

    Raises:
        FileNotFoundError: nothing at ``path``, or no image in it.
        ValueError: an image or the archive is damaged, images differ in size or channels and ``size`` or ``channels``
            does not say what to do, an image is refused, a class folder of the split is empty, splits spell a class
            differently, or the folders are not one level of classes.
    """
    place = Path(path)
    height_width = check_options(place, size, channels, fit)
    options = (height_width, channels, fit)
    decoding: dict[str, Any] = {"size": height_width, "channels": channels, "fit": fit}
    if not place.is_dir():
        # An archive is decoded whole, all splits in one entry; rows and labels of a split are chosen from it.
        key = _cache.fingerprint([place], *options) if cache else ""
        build = partial(decode, _formats.members(place, _classes.is_wanted), place, **decoding)
        entry = _cache.decoded(_label(place), key, build, keep=cache)
        rows, labels, _ = _classes.select(entry.facts["groups"], place, split, classes=classes)
        return entry.arrays["images"][rows], labels
    # The labels come from the folders as they are now, and are never kept.
    base, names, labels, _ = on_disk(place, split, classes=classes)
    key = _cache.folder_fingerprint(base, names, *options) if cache else ""
    build = partial(decode, ((name, (base / name).read_bytes()) for name in names), base, **decoding)
    return _cache.decoded(_label(place), key, build, keep=cache).arrays["images"], labels


def folder_classes(path: str | os.PathLike[str], *, split: str | None = None) -> tuple[str, ...]:
    """Return the names of the classes of an image folder or archive, in the order of the labels; no image is decoded.

    With ``split``, the classes of all splits beside it, as `folder_bytes` numbers them.
    """
    place = Path(path)
    check_options(place, None, None, "crop")
    if place.is_dir():
        return on_disk(place, split)[3]
    names = [name for name, _ in _formats.members(place, _classes.is_wanted)]
    return _classes.select(_classes.grouped(names), place, split)[2]


def to_float(images: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Convert bytes to float32 in [0, 1], ``x / 255``; takes no more memory than its result."""
    return np.divide(images, np.float32(255), dtype=np.float32)


def decode(
    stream: Iterable[tuple[str, bytes]],
    source: Path,
    entry: _cache.Entry,
    *,
    size: tuple[int, int] | None,
    channels: int | None,
    fit: str,
) -> None:
    """Decode named image files into the array ``images``, one at a time; the fact ``groups`` counts each folder.

    Args:
        stream: names and bytes; folders have a slash at the end.
        source: named in errors.
        entry: what is filled.
        size: see `folder_bytes`; likewise ``channels`` and ``fit``.
        channels: likewise.
        fit: likewise.
    """
    folders: list[str] = []
    names: list[str] = []
    shape: tuple[int, ...] = ()
    # In the order they come, since an archive is read once and its images may not fit into memory together.
    with entry.open("stream") as file:
        for name, data in stream:
            if name.endswith("/"):
                folders.append(name)
                continue
            pixels = decode_image(data, source, name, size=size, channels=channels, fit=fit)
            shape = shape or pixels.shape
            names.append(name)
            check_shape(source, names[0], shape, name, pixels.shape)
            file.write(pixels.data)
    if not names:
        raise _classes.nothing(source)
    keys = [_classes.order(name) for name in names]
    # order[k] is the place in the stream of the image that is to be number k.
    order = sorted(range(len(names)), key=keys.__getitem__)
    streamed = entry.folder / "stream.bin"
    if order == list(range(len(names))):
        # Sorted already, as files from a folder are: nothing is copied.
        streamed.rename(entry.folder / "images.bin")
        entry.declare("images", "|u1", (len(names), *shape))
    else:
        # One image at a time through a map: sorting takes no memory, and for a while twice the space on disk.
        unsorted = np.memmap(streamed, np.uint8, "r", shape=(len(names), *shape))
        with entry.open("images") as file:
            for i in order:
                file.write(unsorted[i].data)
        entry.declare("images", "|u1", (len(names), *shape))
        streamed.unlink()
    entry.facts["groups"] = _classes.grouped([*folders, *names])


def check_options(
    path: Path, size: int | tuple[int, int] | None, channels: int | None, fit: str
) -> tuple[int, int] | None:
    """Return ``size`` as height and width; raise what `folder_bytes` does of a path or an option that is none."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or archive")
    if channels not in (None, *_MODES):
        raise ValueError(f"expected channels 1, 3, 4 or None, got {channels}")
    if fit not in ("crop", "stretch"):
        raise ValueError(f"expected fit 'crop' or 'stretch', got {fit!r}")
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"expected a positive size, got {size}")
    return height, width


def _below(path: Path, split: str | None) -> Path:
    base = path if split is None else path / split
    if not base.is_dir():
        there = ", ".join(sorted(child.name for child in path.iterdir() if child.is_dir())[:10])
        raise FileNotFoundError(f"{path}: no folder {split!r}; there are {there or 'no folders'}")
    return base


def on_disk(
    place: Path, split: str | None, *, classes: Sequence[str] | None = None
) -> tuple[Path, list[str], Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Return the folder of a split, its image files in order, their labels, and the names of all classes."""
    base = _below(place, split)
    listing = _classes.listed(base)
    others = [] if base == place else _classes.beside(base)
    _, labels, all_classes = _classes.select(_classes.grouped(listing), base, None, classes=classes, others=others)
    return base, [name for name in listing if not name.endswith("/")], labels, all_classes


def _label(path: Path) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in path.resolve().name)[:40]


def check_shape(source: Path, first: str, shape: tuple[int, ...], name: str, found: tuple[int, ...]) -> None:
    """Raise ``ValueError`` where the image ``name`` does not have the shape ``(h, w, channels)`` of the first one."""
    if found != shape:
        wrong, remedy = ("channels", "channels=3") if found[:2] == shape[:2] else ("size", "size=224")
        raise ValueError(
            f"{source}: expected images of one {wrong}, got {shape} for {first!r} and {found} for {name!r}; "
            f"pass {wrong}=, for example {remedy}"
        )


def decode_image(
    data: bytes, source: Path, name: str, *, size: tuple[int, int] | None, channels: int | None, fit: str
) -> UInt8[np.ndarray, "h w c"]:
    """Return one image file as bytes ``(h, w, channels)``; for the options, and what is raised, see `folder_bytes`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            refusal = _refusal(image)
            converted = image if refusal else _converted(_upright(image), channels)
            # Pillow has sizes as (width, height).
            if not refusal and size is not None and converted.size != (size[1], size[0]):
                bring = ImageOps.fit if fit == "crop" else Image.Image.resize
                converted = bring(converted, (size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.array([] if refusal else converted)
    except Exception as error:  # the decoders raise whatever a damaged file makes them run into
        raise ValueError(f"{source}: cannot read the image {name!r}: {error}. Replace or remove it") from error
    if refusal:
        raise ValueError(f"{source}: image {name!r} {refusal}")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _refusal(image: Image.Image) -> str:
    """Say what keeps an opened image from being one picture of bytes, and what to do; empty if nothing does.

    Pillow has no mode for colors of more than 8 bits and keeps the high byte of each. What the file holds stands in
    the raw mode of its tiles (as "RGB;16B"), in the tags of a TIFF file and in the largest value of a PPM file.
    """
    # The arguments of a decoder: a raw mode, or a tuple of it and more.
    arguments = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(image, "tile", ())]
    bits, signs = [], []
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2")  # noqa: B009
        # Tags 258 BitsPerSample and 339 SampleFormat (2: signed), one number per channel or one for all.
        bits, signs = (np.atleast_1d(tags.get(tag, 1)) for tag in (258, 339))
    elif image.format == "PPM":
        # Behind the raw mode stands the largest value; of floats, which are refused by their mode, a stride of 0.
        bits = [8 if limit <= 255 else 16 for _, *limits in arguments for limit in limits[:1] if limit > 0]
    raw = any(str(each[0]).endswith((";16B", ";16L", ";16N")) for each in arguments if each)
    if image.mode.startswith(("I", "F")) or raw or max(bits, default=8) > 8:
        return "has 16 or 32 bits per channel; convert it to 8 bits"
    if 2 in signs:
        return "has signed numbers for pixels; convert it to bytes from 0 to 255"
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return "has several frames or pages; keep one of them"
    return ""


def _upright(image: Image.Image) -> Image.Image:
    """Turn and mirror the image as its EXIF orientation says, in place."""
    image.load()  # what is wrong with the pixels raises here
    # An orientation that cannot be read is passed over, as viewers do.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _converted(image: Image.Image, channels: int | None) -> Image.Image:
    """Return the image in gray, RGB or RGBA: its own kind, or the one with that many channels."""
    # An alpha channel ("a": premultiplied), or transparent colors of a palette or a gray image.
    transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    if channels is None:
        mode = "RGBA" if transparent else "L" if image.mode in ("1", "L") else "RGB"
        return image if image.mode == mode else image.convert(mode)
    if transparent and channels != 4:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        image = Image.alpha_composite(white, over)
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])
