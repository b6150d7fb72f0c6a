"""The named image sets: where they lie, how they are read, and where they come from."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from stabjax.data import _cache, _formats, _images, _places

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

JPEG_NOTE = "JPEG copies of CIFAR-10: pixel values differ slightly from the original batches"


@dataclass(frozen=True)
class Source:
    """Where a named set is read from.

    Attributes:
        name: name of the set.
        path: the file or folder it is read from.
        format: "idx", "python batches", "binary batches", "image folder" or "matlab 5".
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
    """Return the images and labels of a named set: `load_bytes` with pixels as float32 in [0, 1].

    Args:
        name: "mnist", "fashion-mnist", "cifar10" or "svhn".
        split: "train" or "test".
        root: see `load_bytes`.

    Returns:
        Images ``(n, h, w, c)`` float32, not normalized, and labels ``(n,)`` int32, in the order of the file.
    """
    images, labels = load_bytes(name, split, root=root)
    return _images.to_float(images), labels


def load_bytes(
    name: str, split: str, *, root: str | os.PathLike[str] | None = None
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, " n"]]:
    """Return images as bytes and labels of a named set, found on disk or downloaded.

    A set is looked for under ``root`` and in its own folder there, as it is published: the IDX files of MNIST and
    Fashion-MNIST, plain or compressed, with ``-idx`` or ``.idx`` in their names, in ``mnist/`` and ``fashion-mnist/``
    (or torchvision's ``MNIST/raw/`` and ``FashionMNIST/raw/``; where they lie in ``root`` itself, their first labels
    tell the two sets apart); ``cifar-10-python.tar.gz`` or its folder ``cifar-10-batches-py/``, and the binary version
    ``cifar-10-binary.tar.gz`` or ``cifar-10-batches-bin/``; ``train_32x32.mat`` and ``test_32x32.mat``. CIFAR-10 is
    read from images too: a folder ``cifar10/`` or an archive ``cifar10.tar.xz`` (any tar or zip) with
    ``train/<class>/<image>``. **Those are JPEG copies**, whose pixels differ slightly from the original, and they stand
    **sorted by class**: draw from them at random. `describe` tells which one it is.

    Archives are decoded once, into `cache_dir`; afterwards the images are a read-only map of a file.

    Args:
        name: "mnist", "fashion-mnist", "cifar10" or "svhn".
        split: "train" or "test".
        root: folder to look in. None: the variable ``STABJAX_DATA`` where it is set, then `cache_dir`.

    Returns:
        Read-only images ``(n, h, w, c)`` uint8, and labels ``(n,)`` int32, in the order of the file.

    Raises:
        FileNotFoundError: the set is neither on disk nor to be had by download (with the names and the folders that
            were looked for), or ``root`` does not exist.
        ValueError: an unknown name or split; a damaged file, with its name, the member and what to do; files of
            Fashion-MNIST in the folder of MNIST, or the reverse.
    """
    if split not in ("train", "test"):
        raise ValueError(f"expected split 'train' or 'test', got {split!r}")
    source = _find(name, root) or _download(name, root)
    images, labels = _READERS[source.format](source, split)
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"{source.path}: {len(images)} images, but {len(labels)} labels. {_formats.REMEDY}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{source.path}: labels from {labels.min()} to {labels.max()}, expected 0 to 9")
    # Alike for all formats: those that come from the cache are maps that cannot be written to.
    images.flags.writeable = False
    return images, labels


def describe(name: str, *, root: str | os.PathLike[str] | None = None) -> Source:
    """Say which copy of a named set `load` reads, and what to note beside numbers measured on it; download nothing.

    Raises:
        FileNotFoundError: the set is not on disk.
    """
    source = _find(name, root)
    if source is None:
        raise FileNotFoundError(f"{_missing(name, root)}; {_by_hand(name, _roots(root)[-1])}")
    return source


def _roots(root: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to look in; a download goes into the last."""
    given = root if root is not None else os.environ.get("STABJAX_DATA") or None
    chosen = None if given is None else Path(given).expanduser()
    if chosen is not None and not chosen.is_dir():
        origin = "root" if root is not None else "STABJAX_DATA"
        raise FileNotFoundError(f"{origin}={str(given)!r} is no folder{', but a file' if chosen.exists() else ''}")
    if chosen is None:
        return [_cache.cache_dir()]
    # A root that is given is the only one; the variable goes before the cache.
    return [chosen] if root is not None else [chosen, _cache.cache_dir()]


def _missing(name: str, root: str | os.PathLike[str] | None) -> str:
    roots = _roots(root)
    looked = "; ".join(_places.looked_for(name, base) for base in roots)
    return f"{name} is not in {' or '.join(map(str, roots))} ({looked})"


def _find(name: str, root: str | os.PathLike[str] | None) -> Source | None:
    """Return the best copy of the set below the first folder that has one: the original before image files."""
    if name not in CLASSES:
        raise ValueError(f"expected one of {', '.join(CLASSES)}, got {name!r}; other images come in by data.folder")
    for base in _roots(root):
        if (found := _places.find(name, base)) is not None:
            path, form = found
            exact = form != "image folder"
            return Source(name, path, form, exact, "" if exact else JPEG_NOTE, CLASSES[name])
    return None


def _read_idx(source: Source, split: str) -> Pair:
    images = _formats.idx(_idx_file(source, split, "images"), rank=3)
    path = _idx_file(source, split, "labels")
    labels = _formats.idx(path, rank=1)
    # The files of MNIST and Fashion-MNIST have the same names and sizes; other sets of this form pass.
    if (known := _places.set_of_labels(labels, split)) not in (None, source.name):
        raise ValueError(
            f"{path}: expected the labels of {source.name}, got those of {known}; move the files of {known} to a "
            f"folder {_places.FOLDERS[known][0]!r}"
        )
    return images[..., None], labels.astype(np.int32)


def _idx_file(source: Source, split: str, part: str) -> Path:
    path = _places.idx_file(source.path, split, part)
    if path is None:
        plain, dotted = _places.idx_names(split, part)
        raise FileNotFoundError(
            f"{source.path / plain}.gz is missing (and {plain}, {dotted}.gz, {dotted}), other files of {source.name} "
            "are there; put it there"
        )
    return path


def _read_images(source: Source, split: str) -> Pair:
    # The published order of the classes, which is the alphabetical one, so that numbers do not depend on what is there.
    images, labels = _images.folder_bytes(source.path, split=split, classes=CLASSES["cifar10"])
    classes = len(np.unique(labels))
    if images.shape[1:] != (32, 32, 3) or classes != 10:
        raise ValueError(
            f"{source.path}: expected 10 classes of 32x32x3 images, got {classes} of {images.shape[1:]}; "
            "other images come in by data.folder"
        )
    return images, labels


_TRAINING = tuple(f"data_batch_{i}" for i in range(1, 6))


def _read_batches(source: Source, split: str) -> Pair:
    binary = source.format == "binary batches"
    end = ".bin" if binary else ""
    parts = {"train": [f"{name}{end}" for name in _TRAINING], "test": [f"test_batch{end}"]}
    read = _formats.cifar_binary if binary else _formats.cifar_batch
    if source.path.is_dir():
        for name in parts[split]:
            if not (source.path / name).is_file():
                raise FileNotFoundError(
                    f"{source.path / name} is missing, other files of {source.name} are there; put it there"
                )
        content = {name: _formats.content(source.path / name) for name in parts[split]}
        return _batches(content, parts[split], source.path, read)

    def build(entry: _cache.Entry) -> None:
        def wanted(member: str) -> bool:
            return member.rpartition("/")[2] in (*parts["train"], *parts["test"])

        # Both splits from one pass: an archive cannot be entered in the middle.
        found = {member.rpartition("/")[2]: data for member, data in _formats.members(source.path, wanted)}
        for part, names in parts.items():
            images, labels = _batches(found, names, source.path, read)
            entry.put(f"{part}_images", images)
            entry.put(f"{part}_labels", labels)

    arrays = _cache.decoded("cifar10", _cache.fingerprint([source.path]), build).arrays
    return arrays[f"{split}_images"], arrays[f"{split}_labels"]


def _batches(data: Mapping[str, bytes], names: list[str], source: Path, read: Callable[[bytes, str], Pair]) -> Pair:
    missing = [name for name in names if name not in data]
    if missing:
        raise ValueError(f"{source}: no member {', '.join(missing)}. {_formats.REMEDY}")
    pairs = [read(data[name], f"{source}: {name}") for name in names]
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
    # Published as (32, 32, 3, n), the images last.
    entry.put("images", np.moveaxis(images, -1, 0))
    # The digit 0 is published as class 10.
    entry.put("labels", (labels.reshape(-1) % 10).astype(np.int32))


_READERS: Mapping[str, Callable[[Source, str], Pair]] = {
    "idx": _read_idx,
    "image folder": _read_images,
    "python batches": _read_batches,
    "binary batches": _read_batches,
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
                # A file that is there already with the right hash is not fetched again.
                pooch.retrieve(mirror + file, f"md5:{md5}", fname=file, path=target)
                break
            except (OSError, ValueError) as error:  # no network, no permission; or another hash
                errors.append(f"{mirror + file}: {error}")
        else:
            raise FileNotFoundError(
                f"{_missing(name, root)}, and the download failed ({'; '.join(errors)}); "
                f"{_by_hand(name, target.parent)}"
            )
    source = _find(name, root)
    if source is None:
        raise FileNotFoundError(f"{name} was downloaded to {target}, and is not found there")
    return source


def _by_hand(name: str, base: Path) -> str:
    return f"put {' and '.join(FILES[name])} from {MIRRORS[name][0]} into {base / name}, or set STABJAX_DATA"
