"""The named image sets: where they lie, how they are read, and where they come from."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from stabjax.data import _cache, _formats, _images

__all__ = ["Source", "describe", "load", "load_bytes"]

Pair = tuple[np.ndarray, np.ndarray]

_DIGITS = tuple("0123456789")
CLASSES: Mapping[str, tuple[str, ...]] = {
    "mnist": _DIGITS,
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "svhn": _DIGITS,
}

FILES: Mapping[str, Mapping[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    "cifar10": {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    "svhn": {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
}
"""The published files of each set, with their published MD5 sums."""

MIRRORS: Mapping[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    "cifar10": ("https://www.cs.toronto.edu/~kriz/",),
    "svhn": ("http://ufldl.stanford.edu/housenumbers/",),
}

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "mnist": ("mnist", "MNIST/raw", "MNIST"),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
    "cifar10": ("cifar10", "cifar-10", "CIFAR10"),
    "svhn": ("svhn", "SVHN"),
}

JPEG_NOTE = "JPEG copies of CIFAR-10: pixel values differ slightly from the original batches"


@dataclass(frozen=True)
class Source:
    """Where a named set is read from.

    Attributes:
        name: name of the set.
        path: the file or folder it is read from.
        format: "idx", "python batches", "image folder" or "matlab 5".
        exact: whether the pixels are the publisher's. False for CIFAR-10 from image files, which are JPEG copies.
        note: what to say beside every number measured on it; empty when there is nothing to say.
        classes: names of the ten classes, in the order of the labels.
    """

    name: str
    path: Path
    format: str
    exact: bool
    note: str
    classes: tuple[str, ...]


def load(
    name: str, split: str, *, root: str | os.PathLike[str] | None = None
) -> tuple[Float32[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
    """Images and labels of a named set: `load_bytes` with pixels as float32 in [0, 1].

    Args:
        name: "mnist", "fashion-mnist", "cifar10" or "svhn".
        split: "train" or "test".
        root: see `load_bytes`.

    Returns:
        Images ``(n, h, w, c)`` float32, not normalised, and labels ``(n,)`` int32, in the order of the file.
    """
    images, labels = load_bytes(name, split, root=root)
    return _images.to_float(images), labels


def load_bytes(
    name: str, split: str, *, root: str | os.PathLike[str] | None = None
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
    """Images as bytes and labels of a named set, found on disk or downloaded.

    A set is looked for under ``root`` as it is published: the IDX files of MNIST and Fashion-MNIST, plain or
    compressed, in ``mnist/`` and ``fashion-mnist/``; ``cifar-10-python.tar.gz`` or its folder ``cifar-10-batches-py/``;
    ``train_32x32.mat`` and ``test_32x32.mat``. CIFAR-10 is read from images too: a folder ``cifar10/`` or an archive
    ``cifar10.tar.xz`` (any tar or zip) with ``train/<class>/<image>``. **Those are JPEG copies**, whose pixels differ
    slightly from the original, and they stand **sorted by class**: draw from them at random. `describe` tells which
    one it is.

    Archives are decoded once, into `cache_dir`; afterwards the images are a read-only map of a file.

    Args:
        name: "mnist", "fashion-mnist", "cifar10" or "svhn".
        split: "train" or "test".
        root: folder to look in. None: the variable ``STABJAX_DATA`` where it is set, then `cache_dir`.

    Returns:
        Read-only images ``(n, h, w, c)`` uint8, and labels ``(n,)`` int32, in the order of the file.

    Raises:
        FileNotFoundError: the set is neither on disk nor to be had by download, or ``root`` does not exist.
        ValueError: an unknown name or split; a damaged file, with its name, the member and what to do.
    """
    if split not in ("train", "test"):
        raise ValueError(f"expected split 'train' or 'test', got {split!r}")
    source = _find(name, root) or _download(name, root)
    images, labels = _READERS[source.format](source, split)
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"{source.path}: {len(images)} images, but {len(labels)} labels. {_formats.REMEDY}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{source.path}: labels from {labels.min()} to {labels.max()}, expected 0 to 9")
    images.flags.writeable = False
    return images, labels


def describe(name: str, *, root: str | os.PathLike[str] | None = None) -> Source:
    """Which copy of a named set `load` reads, and what to say beside numbers measured on it. Downloads nothing.

    Raises:
        FileNotFoundError: the set is not on disk.
    """
    source = _find(name, root)
    if source is None:
        raise FileNotFoundError(f"{name} is not in {_roots_text(root)}; {_by_hand(name, _roots(root)[-1])}")
    return source


def _roots_of(name: str) -> tuple[str, ...]:
    if name not in _ALIASES:
        raise ValueError(f"expected one of {', '.join(_ALIASES)}, got {name!r}; other images come in by data.folder")
    return _ALIASES[name]


def _roots(root: str | os.PathLike[str] | None) -> list[Path]:
    """Folders to look in; a download goes into the last."""
    chosen = root if root is not None else os.environ.get("STABJAX_DATA") or None
    if chosen is not None and not Path(chosen).is_dir():
        origin = "root" if root is not None else "STABJAX_DATA"
        raise FileNotFoundError(f"{origin}={str(chosen)!r} is no folder")
    if root is not None:
        return [Path(root)]
    return [*([Path(chosen)] if chosen else []), _cache.cache_dir()]


def _roots_text(root: str | os.PathLike[str] | None) -> str:
    return " or ".join(map(str, _roots(root)))


def _find(name: str, root: str | os.PathLike[str] | None) -> Source | None:
    """The best copy of the set below the first folder that has one: the original before image files."""
    aliases = _roots_of(name)
    for base in _roots(root):
        places = [base / alias for alias in aliases]
        named = {*aliases, *(alias.split("/")[0] for alias in aliases), "cifar-10-batches-py"}
        # The set's own folder, given as root. The IDX files of two sets have the same names, so any folder won't do.
        if base.name in named or name in ("cifar10", "svhn"):
            places.append(base)
        for place in places:
            if (source := _recognise(name, place)) is not None:
                return source
    return None


def _recognise(name: str, place: Path) -> Source | None:
    def source(path: Path, form: str, *, exact: bool = True) -> Source:
        return Source(name, path, form, exact, "" if exact else JPEG_NOTE, CLASSES[name])

    if not place.is_dir():
        return None
    if name == "svhn":
        return source(place, "matlab 5") if any((place / file).exists() for file in FILES[name]) else None
    if name != "cifar10":
        known = any((place / file).exists() or (place / file[:-3]).exists() for file in FILES[name])
        return source(place, "idx") if known else None
    if (place / "data_batch_1").exists():
        return source(place, "python batches")
    for original in ("cifar-10-batches-py", "cifar-10-python.tar.gz"):
        if (place / original).exists():
            return source(place / original, "python batches")
    for suffix in (".tar.xz", ".tar.gz", ".tar.bz2", ".tar", ".zip"):
        if (place / f"cifar10{suffix}").exists():
            return source(place / f"cifar10{suffix}", "image folder", exact=False)
    if (place / "train" / "airplane").is_dir():
        return source(place, "image folder", exact=False)
    return None


def _read_idx(source: Source, split: str) -> Pair:
    stem = {"train": "train", "test": "t10k"}[split]
    images = _formats.idx(_plain_or_compressed(source, f"{stem}-images-idx3-ubyte"), rank=3)
    labels = _formats.idx(_plain_or_compressed(source, f"{stem}-labels-idx1-ubyte"), rank=1)
    return images[..., None], labels.astype(np.int32)


def _plain_or_compressed(source: Source, stem: str) -> Path:
    for path in (source.path / stem, source.path / f"{stem}.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(f"{source.path / stem}.gz is missing, other files of {source.name} are there; put it there")


def _read_images(source: Source, split: str) -> Pair:
    images, labels = _images.folder_bytes(source.path, split=split)
    classes = int(labels[-1]) + 1
    if images.shape[1:] != (32, 32, 3) or classes != 10:
        raise ValueError(
            f"{source.path}: expected 10 classes of 32x32x3 images, got {classes} of {images.shape[1:]}; "
            "other images come in by data.folder"
        )
    return images, labels


def _read_batches(source: Source, split: str) -> Pair:
    names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    if source.path.is_dir():
        return _batches({name: _formats.content(source.path / name) for name in names}, names, source.path)

    def build(entry: _cache.Entry) -> None:
        def wanted(member: str) -> bool:
            return member.rpartition("/")[2] in (*train, "test_batch")

        train = [f"data_batch_{i}" for i in range(1, 6)]
        found = {member.rpartition("/")[2]: data for member, data in _formats.members(source.path, wanted)}
        for part, parts in (("train", train), ("test", ["test_batch"])):
            images, labels = _batches(found, parts, source.path)
            entry.put(f"{part}_images", images)
            entry.put(f"{part}_labels", labels)

    arrays = _cache.decoded("cifar10", _cache.fingerprint([source.path]), build).arrays
    return arrays[f"{split}_images"], arrays[f"{split}_labels"]


def _batches(data: Mapping[str, bytes], names: list[str], source: Path) -> Pair:
    missing = [name for name in names if name not in data]
    if missing:
        raise ValueError(f"{source}: no member {', '.join(missing)}. {_formats.REMEDY}")
    pairs = [_formats.cifar_batch(data[name], f"{source}: {name}") for name in names]
    return np.concatenate([images for images, _ in pairs]), np.concatenate([labels for _, labels in pairs])


def _read_mat(source: Source, split: str) -> Pair:
    path = source.path / f"{split}_32x32.mat"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing, the other split is there; {_by_hand('svhn', source.path)}")
    arrays = _cache.decoded("svhn", _cache.fingerprint([path]), partial(_build_mat, path)).arrays
    return arrays["images"], arrays["labels"]


def _build_mat(path: Path, entry: _cache.Entry) -> None:
    arrays = _formats.mat(path)
    images, labels = arrays.get("X"), arrays.get("y")
    if images is None or labels is None or images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3):
        got = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
        raise ValueError(f"{path}: expected X (32, 32, 3, n) of bytes and y (n, 1), got {got}. {_formats.REMEDY}")
    entry.put("images", np.moveaxis(images, -1, 0))
    # The digit 0 is published as class 10.
    entry.put("labels", (labels.reshape(-1) % 10).astype(np.int32))


_READERS: Mapping[str, Callable[[Source, str], Pair]] = {
    "idx": _read_idx,
    "image folder": _read_images,
    "python batches": _read_batches,
    "matlab 5": _read_mat,
}


def _download(name: str, root: str | os.PathLike[str] | None) -> Source:
    """Fetch the published files, whole and with the right hash or not at all."""
    import pooch

    target = _roots(root)[-1] / name
    for file, md5 in FILES[name].items():
        errors = []
        for mirror in MIRRORS[name]:
            try:
                pooch.retrieve(mirror + file, f"md5:{md5}", fname=file, path=target)
                break
            except (OSError, ValueError) as error:  # no network, no permission; or another hash
                errors.append(f"{mirror + file}: {error}")
        else:
            raise FileNotFoundError(
                f"{name} is not in {_roots_text(root)}, and the download failed ({'; '.join(errors)}); "
                f"{_by_hand(name, target.parent)}"
            )
    source = _find(name, root)
    if source is None:
        raise FileNotFoundError(f"{name} was downloaded to {target}, and is not found there")
    return source


def _by_hand(name: str, base: Path) -> str:
    return f"put {' and '.join(FILES[name])} from {MIRRORS[name][0]} into {base / name}, or set STABJAX_DATA"
