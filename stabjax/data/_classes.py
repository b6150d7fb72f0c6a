"""Class folders: which files of a listing are images, which folders are classes, and how these are numbered.

A listing is a sequence of paths with slashes, relative to one folder; one that ends with a slash is itself a folder.
Classes are numbered over all splits of a set, so that a number means one class whichever split is read.
"""

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int32

__all__: list[str] = []

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"})


def is_wanted(name: str) -> bool:
    """Tell whether a path of a listing is an image file or a folder, and not hidden."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != "." for part in path.parts) or "__MACOSX" in path.parts
    return not hidden and (name.endswith("/") or path.suffix.lower() in _SUFFIXES)


def listed(base: Path) -> list[str]:
    """Return images and folders below a folder, sorted by folder, then by name; links are followed.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    names = [
        (Path(root) / name).relative_to(base).as_posix() + end
        for root, folders, files in os.walk(base, followlinks=True, onerror=refuse)
        for part, end in ((folders, "/"), (files, ""))
        for name in part
    ]
    return sorted(filter(is_wanted, names), key=order)


def order(name: str) -> tuple[tuple[str, ...], str]:
    """Return a key that sorts by folder, then by name, so that every folder is one block of rows."""
    path = PurePosixPath(name.lstrip("/"))
    return path.parent.parts, path.name


def grouped(names: Iterable[str]) -> list[list]:
    """Return the folders of a listing in alphabetical order, ``[path, number of images directly in it]`` each."""
    counts: dict[tuple[str, ...], int] = {}
    for name in names:
        path = PurePosixPath(name.lstrip("/"))
        # An empty folder is listed too, with no image: it may be a class whose images are missing.
        folder, more = (path.parts, 0) if name.endswith("/") else (path.parent.parts, 1)
        counts[folder] = counts.get(folder, 0) + more
    return [["/".join(folder), count] for folder, count in sorted(counts.items())]


def beside(base: Path) -> list[set[str]]:
    """Return the class names of each of the other splits: of the folders that lie beside ``base``."""
    return [_holding(each) for each in _visible(base.parent) if each != base]


def _holding(split: Path) -> set[str]:
    """Return sub-folders with an image in them; where there is but one and it has none, those of that one."""
    inside = _visible(split)
    found = {each.name for each in inside if _has_image(each)}
    return _holding(inside[0]) if len(inside) == 1 and not found else found


def _has_image(folder: Path) -> bool:
    """Tell whether an image lies directly in a folder; stops at the first one, which a large folder shows soon."""
    with os.scandir(folder) as entries:
        return any(is_wanted(entry.name) and entry.is_file() for entry in entries)


def _visible(folder: Path) -> list[Path]:
    """Return sub-folders that are not hidden and can be read."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and is_wanted(f"{path.name}/") and os.access(path, os.R_OK | os.X_OK)
    ]


def nothing(source: Path) -> FileNotFoundError:
    """Return the error for a set without any image."""
    return FileNotFoundError(f"{source}: no image in it (looked for {', '.join(sorted(_SUFFIXES))})")


def select(
    groups: Sequence[Sequence],
    source: Path,
    split: str | None,
    *,
    classes: Sequence[str] | None = None,
    others: Iterable[set[str]] = (),
) -> tuple[slice, Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Return the rows, labels and class names of one split.

    Args:
        groups: the folders of a listing, from `grouped`.
        source: named in errors.
        split: folder above the classes; None where the listing is that of one split, or there are no splits.
        classes: names in the order of the labels. None: those of all splits in alphabetical order.
        others: class names of each split that the listing does not show.
    """
    paths = [(PurePosixPath(folder).parts, int(count)) for folder, count in groups]
    holding = [(path, count) for path, count in paths if count]
    if not holding:
        raise nothing(source)
    # The folder above the classes, and the numbers of the groups below it. Those must be consecutive, since the rows of
    # a split are one slice; this is checked below.
    top, chosen = _split_of([path for path, _ in holding], source, split)
    level = len(top)
    below = [holding[i][0][level:] for i in chosen]
    nested = ", ".join(sorted({rest[0] for rest in below if len(rest) > 1})[:10])
    if nested:
        raise ValueError(
            f"{source}: expected one folder per class with images in it, got folders in folders; "
            f"pass split= one of {nested}, or move the images of these up"
        )
    if len({len(rest) for rest in below}) > 1:
        raise ValueError(f"{source}: images lie both in class folders and beside them; move the latter into a folder")
    if chosen != list(range(chosen[0], chosen[-1] + 1)):
        raise ValueError(f"{source}: more than one folder {split!r}; give the path down to the one that is meant")

    own = [_spelling(rest[0]) if rest else "" for rest in below]
    splits = [set(own), *(set(map(_spelling, names)) for names in others)]
    if split is not None:
        splits += _splits_beside([path for path, _ in holding], top)
    if own == [""] and (classes is not None or any(splits[1:])):
        known = sorted(classes if classes is not None else set().union(*splits[1:]))
        raise ValueError(
            f"{source}: expected a folder for each class, as in other splits ({', '.join(known[:10])}), got images "
            "without one; give the path of this folder alone, without split= and classes=, to read images of one class"
        )
    within = {_spelling(path[level]) for path, _ in paths if path[:level] == top and len(path) > level}
    names = _numbered(splits, source) if classes is None else _given(classes, own, source)
    empty = [] if own == [""] else sorted(within.difference(own))
    if classes is not None:
        empty = [name for name in empty if name in names]
    if empty:
        raise ValueError(
            f"{source}: expected images in each class folder, got none in {', '.join(map(repr, empty[:10]))}; put them "
            "there, remove the folder, or name the folders that are classes by classes="
        )
    counts = [holding[i][1] for i in chosen]
    # Rows are sorted as the groups are: those of the split begin behind all groups before its first.
    first = sum(count for _, count in holding[: chosen[0]])
    number = {name: k for k, name in enumerate(names)}
    labels = np.repeat(np.array([number[name] for name in own], np.int32), counts)
    return slice(first, first + sum(counts)), labels, names


def _split_of(paths: list[tuple[str, ...]], source: Path, split: str | None) -> tuple[tuple[str, ...], list[int]]:
    """Return the folder above the classes, and which of the paths lie in it."""
    if split is None:
        shared = len(PurePosixPath(posixpath.commonpath(["/".join(path) for path in paths])).parts)
        return paths[0][: max(0, min(shared, max(map(len, paths)) - 1))], list(range(len(paths)))
    # The highest one: a class may have the name of a split.
    levels = [path.index(split) for path in paths if split in path]
    if not levels:
        there = ", ".join(sorted({path[0] for path in paths if path})[:10])
        raise FileNotFoundError(f"{source}: no folder {split!r} with images in it; there are {there or 'no folders'}")
    level = min(levels)
    chosen = [i for i, path in enumerate(paths) if path[level : level + 1] == (split,)]
    tops = {paths[i][: level + 1] for i in chosen}
    if len(tops) > 1:
        raise ValueError(f"{source}: more than one folder {split!r}; give the path down to the one that is meant")
    return tops.pop(), chosen


def _splits_beside(paths: list[tuple[str, ...]], top: tuple[str, ...]) -> list[set[str]]:
    """Return the class names of the splits beside ``top`` in the same listing."""
    found: dict[str, set[str]] = {}
    for path in paths:
        # A class folder of another split: as deep as those below `top`, and under a neighbor of it.
        if len(path) == len(top) + 1 and path[: len(top) - 1] == top[:-1] and path[: len(top)] != top:
            found.setdefault(path[-2], set()).add(_spelling(path[-1]))
    return list(found.values())


def _spelling(name: str) -> str:
    """Return one spelling of a name: file systems keep an accented letter as one character or as two."""
    return unicodedata.normalize("NFC", name)


def _numbered(splits: list[set[str]], source: Path) -> tuple[str, ...]:
    """Return the class names of all splits in alphabetical order."""
    names = sorted(set().union(*splits))
    alike: dict[str, set[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), set()).add(name)
    for group in alike.values():
        # Two classes where one split has both; else most likely one class, which would get two numbers.
        if len(group) > 1 and not any(len(group & split) > 1 for split in splits):
            spellings = " and ".join(map(repr, sorted(group)))
            raise ValueError(
                f"{source}: expected one spelling of a class in all splits, got {spellings}; rename a folder, or name "
                "all classes by classes="
            )
    return tuple(names)


def _given(classes: Sequence[str], own: list[str], source: Path) -> tuple[str, ...]:
    """Return the names a caller gives, checked against those of the split."""
    if isinstance(classes, str):
        raise TypeError(f"expected classes as a sequence of names, got the string {classes!r}; write ({classes!r},)")
    names = tuple(map(_spelling, classes))
    if len(set(names)) < len(names):
        raise ValueError(f"expected every class once, got {names}")
    if extra := sorted(set(own).difference(names)):
        raise ValueError(
            f"{source}: expected the folders of classes={names}, got also {', '.join(map(repr, extra[:10]))}; "
            "add them to classes, or move them elsewhere"
        )
    return names
