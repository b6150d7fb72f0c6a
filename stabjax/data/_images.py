"""Image folders: class sub-folders of image files, on disk or in a tar or zip archive, of any size.

Labels number the class folders in alphabetical order; images stand in the order of class and file name. Pixels are
bytes, ``(n, h, w, channels)``.
"""

import io
import itertools
import os
import posixpath
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageOps

from stabjax.data import _cache, _formats

__all__ = ["folder", "folder_bytes", "folder_classes", "to_float"]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def folder(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str = "crop",
    cache: bool = True,
) -> tuple[Float32[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
    """`folder_bytes` with pixels as float32 in [0, 1]: four times the memory of the bytes."""
    images, labels = folder_bytes(path, split=split, size=size, channels=channels, fit=fit, cache=cache)
    return to_float(images), labels


def folder_bytes(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    fit: str = "crop",
    cache: bool = True,
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
    """Images and labels of a folder, or of a tar or zip archive of one, decoded once.

    The images are sorted by class: draw from them at random, do not take the first few. They come as a read-only map
    of a file, so they take no memory until they are used, and decoding holds one image at a time.

    Args:
        path: folder with one sub-folder per class (images directly in it make a single class), or an archive of it.
        split: name of the folder above the classes, where there are several, as in ``train/cat/1.png``.
        size: height and width to bring every image to, an int for a square. None keeps the size, which then must be
            the same for all.
        channels: 1, 3 or 4. Gray is repeated or colour turned to gray as needed, transparency laid over white. None
            keeps what the first image has; another kind among the rest raises.
        fit: "crop" scales until the image covers ``size`` and cuts off what stands out on both sides; "stretch"
            changes the aspect ratio. Both average over the area of a pixel when they shrink (antialiased bilinear).
        cache: keep the decoded bytes in `cache_dir` for the next call.

    Returns:
        Images ``(n, h, w, channels)`` uint8, and labels ``(n,)`` int32: the number of the class in alphabetical order.

    Raises:
        FileNotFoundError: nothing at ``path``, or no image in it.
        ValueError: an image or the archive is damaged, images differ in size or channels and ``size`` or ``channels``
            does not say what to do, or the folders are not one level of classes.
    """
    place = Path(path)
    height_width = _checked(place, size, channels, fit)
    options = (height_width, channels, fit)
    if place.is_dir():
        base = _below(place, split)
        names = list(_files(base))
        key = _cache.folder_fingerprint(base, names, *options) if cache else ""
        stream: Iterable[tuple[str, bytes]] = ((name, (base / name).read_bytes()) for name in names)
        chosen = None
    else:
        base, chosen = place, split
        key = _cache.fingerprint([place], *options) if cache else ""
        stream = _formats.members(place, _is_image)
    build = partial(decode, stream, base, size=height_width, channels=channels, fit=fit)
    entry = _cache.decoded(_label(place), key, build, keep=cache)
    rows, labels, _ = select(entry.facts["groups"], base, chosen)
    return entry.arrays["images"][rows], labels


def folder_classes(path: str | os.PathLike[str], *, split: str | None = None) -> tuple[str, ...]:
    """Names of the classes of an image folder or archive, in the order of the labels; no image is decoded."""
    place = Path(path)
    _checked(place, None, None, "crop")
    if place.is_dir():
        place, names, split = _below(place, split), list(_files(_below(place, split))), None
    else:
        names = [name for name, _ in _formats.members(place, _is_image)]
    groups = [(parent, len(list(group))) for parent, group in itertools.groupby(sorted(map(_order, names)), _parent)]
    return select([["/".join(parent), count] for parent, count in groups], place, split)[2]


def to_float(images: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Bytes as float32 in [0, 1], ``x / 255``; takes no more memory than its result."""
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
    """Decode named image files into the array ``images``, one at a time; the fact ``groups`` counts each folder."""
    names: list[str] = []
    shape: tuple[int, ...] = ()
    with entry.open("stream") as file:
        for name, data in stream:
            pixels = _pixels(data, source, name, size, channels, fit)
            if not names:
                shape = pixels.shape
            elif pixels.shape != shape:
                wrong, remedy = ("channels", "channels=3") if pixels.shape[:2] == shape[:2] else ("size", "size=224")
                raise ValueError(
                    f"{source}: expected images of one {wrong}, got {shape} for {names[0]!r} and {pixels.shape} for "
                    f"{name!r}; pass {wrong}=, for example {remedy}"
                )
            names.append(name)
            file.write(pixels.data)
    if not names:
        raise FileNotFoundError(f"{source}: no image in it (looked for {', '.join(sorted(_SUFFIXES))})")
    keys = [_order(name) for name in names]
    order = sorted(range(len(names)), key=keys.__getitem__)
    streamed = entry.folder / "stream.bin"
    if order == list(range(len(names))):
        streamed.rename(entry.folder / "images.bin")
        entry.declare("images", "|u1", (len(names), *shape))
    else:
        unsorted = np.memmap(streamed, np.uint8, "r", shape=(len(names), *shape))
        with entry.open("images") as file:
            for i in order:
                file.write(unsorted[i].data)
        entry.declare("images", "|u1", (len(names), *shape))
        streamed.unlink()
    parents = itertools.groupby(_parent(keys[i]) for i in order)
    entry.facts["groups"] = [["/".join(parent), len(list(group))] for parent, group in parents]


def select(
    groups: list[list], source: Path, split: str | None
) -> tuple[slice, Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Rows, labels and class names of one split, from the folders in alphabetical order with their image counts."""
    parts = [PurePosixPath(parent).parts for parent, _ in groups]
    if split is None:
        shared = len(PurePosixPath(posixpath.commonpath(["/".join(path) for path in parts])).parts)
        deepest = max(map(len, parts))
        below = [path[min(shared, deepest - 1) :] for path in parts]
        chosen = list(range(len(parts)))
    else:
        chosen = [i for i, path in enumerate(parts) if split in path]
        below = [parts[i][parts[i].index(split) + 1 :] for i in chosen]
    found = ", ".join(sorted({path[0] for path in below if len(path) > 1})[:10])
    if not chosen:
        there = ", ".join(sorted({path[0] for path in parts if path})[:10])
        raise FileNotFoundError(f"{source}: no folder {split!r} with images in it; there are {there or 'no folders'}")
    if found:
        raise ValueError(
            f"{source}: expected one folder per class with images in it, got folders in folders; "
            f"pass split= one of {found}"
        )
    if len({len(path) for path in below}) > 1:
        raise ValueError(f"{source}: images lie both in class folders and beside them; move the latter into a folder")
    if chosen != list(range(chosen[0], chosen[-1] + 1)) or len({path[-1:] for path in below}) < len(below):
        raise ValueError(f"{source}: more than one folder {split!r}; give the path down to the one that is meant")
    counts = [int(groups[i][1]) for i in chosen]
    first = sum(int(count) for _, count in groups[: chosen[0]])
    rows = slice(first, first + sum(counts))
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return rows, labels, tuple(path[0] if path else "" for path in below)


def _checked(path: Path, size: int | tuple[int, int] | None, channels: int | None, fit: str) -> tuple[int, int] | None:
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


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != "." for part in path.parts) or "__MACOSX" in path.parts
    return path.suffix.lower() in _SUFFIXES and not hidden


def _files(base: Path) -> Iterator[str]:
    """Images below a folder, relative and sorted."""
    names = (
        (Path(root) / name).relative_to(base).as_posix()
        for root, _, files in os.walk(base, followlinks=True)
        for name in files
    )
    return iter(sorted(filter(_is_image, names), key=_order))


def _order(name: str) -> tuple[tuple[str, ...], str]:
    """Sorts by folder, then by name, so that every folder is one block of rows."""
    path = PurePosixPath(name.lstrip("/"))
    return path.parent.parts, path.name


def _parent(order: tuple[tuple[str, ...], str]) -> tuple[str, ...]:
    return order[0]


def _label(path: Path) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in path.resolve().name)[:40]


def _pixels(
    data: bytes, source: Path, name: str, size: tuple[int, int] | None, channels: int | None, fit: str
) -> np.ndarray:
    """One image as bytes ``(h, w, channels)``."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            deep = image.mode in _DEEP
            converted = image if deep else _converted(image, channels)
            if size is not None and converted.size != (size[1], size[0]):
                bring = ImageOps.fit if fit == "crop" else Image.Image.resize
                converted = bring(converted, (size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.array(converted)
    except Exception as error:  # the decoders raise whatever a damaged file makes them run into
        raise ValueError(f"{source}: cannot read the image {name!r}: {error}. Replace or remove it") from error
    if deep:
        raise ValueError(f"{source}: image {name!r} has 16 or 32 bits per pixel; convert it to 8 bits")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _converted(image: Image.Image, channels: int | None) -> Image.Image:
    """The image in gray, RGB or RGBA: its own kind, or the one with that many channels."""
    transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    if channels is None:
        mode = "RGBA" if transparent else "L" if image.mode in ("1", "L") else "RGB"
        return image if image.mode == mode else image.convert(mode)
    if transparent and channels != 4:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        image = Image.alpha_composite(white, over)
    return image if image.mode == _MODES[channels] else image.convert(_MODES[channels])
