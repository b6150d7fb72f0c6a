"""Where the files of the named sets are looked for below a folder, under all names they are handed around by."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from stabjax.data import _formats

__all__: list[str] = []

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "mnist": ("mnist", "mnist/raw", "MNIST/raw", "MNIST"),
    "fashion-mnist": ("fashion-mnist", "fashion-mnist/raw", "fashion_mnist", "FashionMNIST/raw", "FashionMNIST"),
    "cifar10": ("cifar10", "cifar-10", "CIFAR10"),
    "svhn": ("svhn", "SVHN"),
}
"""Folders of each set below a root, the first one that of downloads."""

SPLITS = ("train", "test")
_STEMS = {"train": "train", "test": "t10k"}
_RANKS = {"images": 3, "labels": 1}

_FIRST_LABELS: Mapping[str, Mapping[str, bytes]] = {
    "mnist": {"train": bytes([5, 0, 4, 1, 9, 2, 1, 3, 1, 4]), "test": bytes([7, 2, 1, 0, 4, 1, 4, 9, 5, 9])},
    "fashion-mnist": {"train": bytes([9, 0, 0, 3, 0, 2, 7, 2, 5, 5]), "test": bytes([9, 2, 1, 1, 6, 1, 4, 6, 5, 7])},
}
"""The files of the two sets have the same names and sizes; their first labels tell them apart."""

_BATCHES = (
    ("cifar-10-batches-py", "python batches"),
    ("cifar-10-python.tar.gz", "python batches"),
    ("cifar-10-python.tar", "python batches"),
    ("cifar-10-batches-bin", "binary batches"),
    ("cifar-10-binary.tar.gz", "binary batches"),
    ("cifar-10-binary.tar", "binary batches"),
)
_ARCHIVES = tuple(f"cifar10{suffix}" for suffix in (".tar.xz", ".tar.gz", ".tar.bz2", ".tar", ".zip"))


def find(name: str, base: Path) -> tuple[Path, str] | None:
    """Return the file or folder of a set below ``base``, and its format; the original goes before copies."""
    for place in places(name, base):
        if place.is_dir() and (found := _recognize(name, place)) is not None:
            return found
    return None


def places(name: str, base: Path) -> list[Path]:
    """Return the folders to look in: those of the set below ``base``, and ``base`` itself.

    IDX files that lie in ``base`` are left to the set they belong to, by the name of the folder or by their labels.
    """
    found = [base / folder for folder in FOLDERS[name]]
    others = [each for each in _FIRST_LABELS if each != name] if name in _FIRST_LABELS else []
    # The path ends with a folder of the other set, of one or two parts.
    if any(base.parts[-folder.count("/") - 1 :] == Path(folder).parts for each in others for folder in FOLDERS[each]):
        return found
    return found if others and _is_other(name, base) else [*found, base]


def looked_for(name: str, base: Path) -> str:
    """Return the names that `find` knows, and the folders it looks in."""
    match name:
        case "cifar10":
            names = [*(original for original, _ in _BATCHES), "data_batch_1", "data_batch_1.bin", *_ARCHIVES]
            known = f"{', '.join(names)}, train/airplane/"
        case "svhn":
            known = ", ".join(f"{split}_32x32.mat" for split in SPLITS)
        case _:
            known = f"{', '.join(n for s in SPLITS for p in _RANKS for n in idx_names(s, p))}, each plain or with .gz"
    return f"looked for {known}, in {', '.join(map(str, places(name, base)))}"


def idx_names(split: str, part: str) -> tuple[str, str]:
    """Return the two names under which the "images" or "labels" of a split are published, as unpacked."""
    return f"{_STEMS[split]}-{part}-idx{_RANKS[part]}-ubyte", f"{_STEMS[split]}-{part}.idx{_RANKS[part]}-ubyte"


def idx_file(place: Path, split: str, part: str) -> Path | None:
    """Return the file in ``place``, plain or compressed, or in a folder of its own name."""
    return next((path for path in _idx_paths(place, split, part) if path.is_file()), None)


def set_of_labels(labels: np.ndarray, split: str) -> str | None:
    """Name the set whose published labels begin as these, None if there is none."""
    head = bytes(labels[:10].tolist())
    return next((name for name, first in _FIRST_LABELS.items() if head == first[split]), None)


def _idx_paths(place: Path, split: str, part: str) -> Iterator[Path]:
    names = idx_names(split, part)
    for folder in (place, *(place / name for name in names)):
        for name in names:
            yield folder / name
            yield folder / f"{name}.gz"


def _is_other(name: str, place: Path) -> bool:
    """Tell whether labels in ``place`` show another set: they begin as its own, or are as many but begin otherwise."""
    for split, published in zip(SPLITS, (60_000, 10_000)):
        path = idx_file(place, split, "labels")
        if path is None:
            continue
        try:
            labels = _formats.idx(path, rank=1)
        except ValueError:
            continue  # reading the set says what is wrong with the file
        known = set_of_labels(labels, split)
        if known != name and (known is not None or len(labels) == published):
            return True
    return False


def _recognize(name: str, place: Path) -> tuple[Path, str] | None:
    if name == "svhn":
        return (place, "matlab 5") if any((place / f"{split}_32x32.mat").is_file() for split in SPLITS) else None
    if name != "cifar10":
        return (place, "idx") if any(idx_file(place, s, part) for s in SPLITS for part in _RANKS) else None
    for file, form in (("data_batch_1", "python batches"), ("data_batch_1.bin", "binary batches")):
        if (place / file).is_file():
            return place, form
    for original, form in _BATCHES:
        if (place / original).exists():
            return place / original, form
    for archive in _ARCHIVES:
        if (place / archive).is_file():
            return place / archive, "image folder"
    return (place, "image folder") if (place / "train" / "airplane").is_dir() else None
