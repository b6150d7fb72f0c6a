"""Decoded images on disk: written once, whole or not at all, and read as memory maps.

An entry is a folder ``decoded/<label>-<fingerprint>`` that holds one raw file per array and ``entry.json``, which names
their shapes, types and sizes. It is built under another name and renamed when complete, so a reader meets a whole entry
or none, whatever is killed and however many processes build at once.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = ["cache_dir"]

FORMAT = 2
"""Part of every fingerprint: raise it when the layout or the decoding changes."""

_WHOLE = 1 << 28
_DAY = 86_400


def cache_dir() -> Path:
    """Return the folder of downloads and decoded images: the variable ``STABJAX_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("STABJAX_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("stabjax"))


def fingerprint(paths: Iterable[Path], *options: object) -> str:
    """Return the name of the decoded form of some files: a digest of their bytes and of the options of decoding.

    Of a file above 256 MiB only place, size and time of change count; reading it would take longer than a load may.
    """
    digest = hashlib.sha256(repr((FORMAT, options)).encode())
    for path in paths:
        state = path.stat()
        # A zero byte ends each field: no name and number run into another pair.
        digest.update(f"{path.name}\0{state.st_size}\0".encode())
        if state.st_size > _WHOLE:
            digest.update(f"{path.resolve()}\0{state.st_mtime_ns}".encode())
        else:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:24]


def folder_fingerprint(folder: Path, names: Iterable[str], *options: object) -> str:
    """Fingerprint the files ``names`` of a folder, by place, size and time of change: they may be a million."""
    digest = hashlib.sha256(repr((FORMAT, str(folder.resolve()), options)).encode())
    for name in names:
        state = (folder / name).stat()
        digest.update(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:24]


@dataclass(eq=False)
class Entry:
    """A set of named arrays under construction in ``folder``, and the facts that go with them."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def open(self, name: str) -> BinaryIO:
        """Return a file to write the bytes of the array ``name`` to, in C order; `declare` its shape afterwards."""
        return (self.folder / f"{name}.bin").open("wb")

    def declare(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """State type and shape of the array that was written to ``open(name)``."""
        self.arrays[name] = (dtype, shape)

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a whole array, a thousand rows at a time: a transposed view is never copied as a whole."""
        with self.open(name) as file:
            for start in range(0, len(array), 1000):
                file.write(np.ascontiguousarray(array[start : start + 1000]).data)
        self.declare(name, array.dtype.str, array.shape)

    def seal(self) -> None:
        """Write ``entry.json`` with the size every file must have, and force all of it to the disk."""
        listed = {}
        for name, (dtype, shape) in self.arrays.items():
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            listed[name] = {"dtype": dtype, "shape": shape, "bytes": size}
        # Last: an entry without it is not whole, and with it every size can be checked.
        (self.folder / "entry.json").write_text(json.dumps({"arrays": listed, "facts": self.facts}))
        self.folder.chmod(0o755)  # temporary folders are private; a cache may be shared
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@dataclass(frozen=True, eq=False)
class Decoded:
    """A finished entry: its arrays as read-only memory maps, and its facts."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def read(folder: Path) -> Decoded | None:
    """Return the entry in ``folder``; None where there is none, or where it is not whole."""
    try:
        record = json.loads((folder / "entry.json").read_text())
        arrays = {}
        for name, told in record["arrays"].items():
            path = folder / f"{name}.bin"
            # A file of the right size is taken as whole: it was on disk before the folder had its name.
            if path.stat().st_size != told["bytes"]:
                return None
            arrays[name] = np.asarray(np.memmap(path, told["dtype"], "r", shape=tuple(told["shape"])))
        return Decoded(arrays, record["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def decoded(label: str, key: str, build: Callable[[Entry], None], *, keep: bool = True) -> Decoded:
    """Return the entry ``label-key`` of the cache, built by ``build`` where it is missing or damaged.

    Args:
        label: readable part of the folder's name.
        key: fingerprint of the source.
        build: fills an empty `Entry`. What it raises goes to the caller, and nothing is kept.
        keep: False builds in the temporary folder and leaves nothing behind, as does a cache that cannot be written.
    """
    shelf = cache_dir() / "decoded"
    final = shelf / f"{label}-{key}"
    # Without a lock: a folder under its final name does not change, and only a damaged one is ever replaced.
    if keep and (known := read(final)) is not None:
        return known
    work = _workplace(shelf) if keep else None
    kept = work is not None
    work = Path(tempfile.mkdtemp(prefix="stabjax-")) if work is None else work
    try:
        entry = Entry(work)
        build(entry)
        entry.seal()
        if kept:
            _place(work, final)
        # From the final place, also where another process was faster: both have the same contents.
        result = read(final if kept else work)
    finally:
        # The maps of an entry that is not kept outlive its files.
        shutil.rmtree(work, ignore_errors=True)
    if result is None:
        raise OSError(f"{final}: the decoded images could not be read back; is the disk full? Set STABJAX_CACHE")
    return result


def _workplace(shelf: Path) -> Path | None:
    """Make a folder beside the entries, None where nothing can be written; clear what killed runs have left."""
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        # Only what is older than a day: a younger one may be of a process that is still decoding.
        for old in shelf.glob(".partial-*"):
            with contextlib.suppress(OSError):
                if time.time() - old.stat().st_mtime > _DAY:
                    shutil.rmtree(old, ignore_errors=True)
        # Beside the entries: a rename is one step only within one file system.
        return Path(tempfile.mkdtemp(prefix=".partial-", dir=shelf))
    except OSError as error:
        warnings.warn(
            f"decoded images cannot be kept in {shelf} ({error}); they are decoded anew each time. "
            "Set STABJAX_CACHE to a folder that can be written",
            stacklevel=5,
        )
        return None


def _place(work: Path, final: Path) -> None:
    """Rename ``work`` to ``final``; an entry that another process placed meanwhile is as good, a damaged one goes."""
    # Other processes may place or remove an entry between two of these steps: try again, but not forever.
    for _ in range(10):
        try:
            # Fails if there is a folder with something in it: of another process, or damaged.
            os.rename(work, final)
            return
        except OSError:
            if read(final) is not None:
                return
            # Renamed before it is removed, so that no reader meets half of it.
            with contextlib.suppress(OSError):
                os.rename(final, work / "damaged")
    raise OSError(f"{final}: cannot be replaced; remove this folder by hand")
