"""The folder of a sweep, written so that a kill at any moment loses at most the chunk in flight.

    manifest.json              what is swept: axes, key, function, program, configuration, layout of the chunks
    manifest-00001.json        the same for a call that added cells, and so on
    chunk-00012-1f0c8a3e.npz   outputs of chunk 12 by name, and `valid`; the last part is a checksum
    .*.draft                   whatever is being written

A file is written as a draft, forced to disk and renamed in one step. The checksum of a chunk covers the manifest and
the number of the chunk too: a file of another sweep is recognized like a damaged one. The chunks of a manifest are
numbered on from those of the one before.
"""

import contextlib
import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from stabjax import _files

FORMAT = 2


class Store:
    """One sweep on disk, held by this process alone from when it is opened to the end of the ``with`` block.

    Nothing is touched before that: a folder that is refused is left as it was.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._stack = contextlib.ExitStack()
        self._seals: dict[int, int] = {}
        """By the number of the first chunk."""
        self._chunks: dict[int, list[Path]] = {}

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def saved(self) -> dict[str, Any] | None:
        """Return what is swept here; None if there is no folder or an empty one."""
        return next(iter(self.parts()), None)

    def parts(self) -> list[dict[str, Any]]:
        """Return the manifest of every call that computed cells here, in order; none if there is no folder."""
        if not self.path.exists():
            return []
        if not self.path.is_dir():
            raise NotADirectoryError(f"expected a folder at {self.path}, found a file: choose another path")
        if not (self.path / _name(0)).exists():
            _files.check_empty(self.path, "a sweep")
            return []
        # Counted, not searched for one after the other: a gap in the numbers is found and raises.
        count = 1 + sum(bool(re.fullmatch(r"manifest-\d+\.json", file.name)) for file in self.path.iterdir())
        return [self._manifest(number) for number in range(count)]

    def _manifest(self, number: int) -> dict[str, Any]:
        file = self.path / _name(number)
        try:
            contents = _files.read_json(file)
        except FileNotFoundError:
            raise OSError(f"the file {file} is missing, and later ones are there: restore it") from None
        if "format" not in contents:
            raise OSError(f"the file {file} is damaged or not of a sweep: restore it, or choose another path")
        if contents["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT} in {file}, got {contents['format']}: choose another path")
        return contents

    def open(self, *manifests: Mapping[str, Any]) -> None:
        """Write down what is swept, part by part, or refuse with the difference from what is swept here."""
        # Through JSON, which makes lists of tuples: so they compare with what is read back. The order of the axes is
        # kept beside them, since they are compared by name.
        parts = [json.loads(json.dumps({"format": FORMAT, "order": list(m["axes"]), **m})) for m in manifests]
        # Before anything is touched.
        self._check_agreement(parts)
        _files.make_folder(self.path)
        self._stack.enter_context(_files.locked(self.path))
        saved = self._check_agreement(parts)  # again: another process may have come before the lock
        # Under the lock every draft is what a killed process has left.
        for pattern in (".manifest*.json.draft", ".chunk-*.npz.draft"):
            for draft in self.path.glob(pattern):
                draft.unlink()
        # Manifests before any of their chunks: a chunk without its manifest would be of no sweep.
        for number, part in enumerate(parts[len(saved) :], len(saved)):
            self._write(_name(number), lambda file, part=part: _files.write_json(file, part, allow_nan=True))
        for part in [*saved, *parts[len(saved) :]]:
            # Sorted by key: the same checksum for what was read and for what is about to be written.
            self._seals[part["first"]] = zlib.crc32(json.dumps(part, sort_keys=True).encode())
        for file in sorted(self.path.glob("chunk-*.npz")):
            if number := re.match(r"chunk-(\d+)-", file.name):
                self._chunks.setdefault(int(number[1]), []).append(file)

    def _check_agreement(self, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the manifests here, which must be those that are given, or the first of them."""
        saved = self.parts()
        if len(saved) > len(parts):
            raise OSError(f"another process has added cells to the sweep in {self.path} meanwhile: call again")
        for one, other in zip(saved, parts):
            old, new = ({k: v for k, v in d.items() if k != "versions"} for d in (one, other))
            _files.refuse_difference(old, new, f"the sweep in {self.path}")
        return saved

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        """Return a finished chunk; None if it was not written, or is damaged and must be computed again."""
        for file in self._chunks.get(number, []):
            try:
                payload = file.read_bytes()
            except OSError as error:
                raise OSError(f"the chunk {file} cannot be read ({error}): restore it, or move it elsewhere") from error
            # The name holds the checksum of what should be inside: one rename puts both in place.
            if file.stem.endswith(f"-{self._checksum(number, payload)}"):
                with contextlib.suppress(ValueError, OSError, zipfile.BadZipFile):
                    return _unpack(payload)
            warnings.warn(
                f"the file {file} is damaged: its chunk is computed again, and the file replaced",
                RuntimeWarning,
                stacklevel=2,
            )
            # Removed, since the new file of the chunk may have another name and not replace it.
            file.unlink()
        return None

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a finished chunk."""
        payload = _pack(arrays)
        name = f"chunk-{number:05d}-{self._checksum(number, payload)}.npz"
        self._write(name, lambda file: _files.write(file, payload))

    def _checksum(self, number: int, payload: bytes) -> str:
        # The manifest of the last part that begins at or before this chunk.
        seal = self._seals[max(first for first in self._seals if first <= number)]
        return f"{zlib.crc32(payload, zlib.crc32(f'{seal} {number}'.encode())):08x}"

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        file = self.path / name
        try:
            write(file)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}; the chunks written before are whole: make room and call again with the same path "
                "to go on",
                str(file),
            ) from error


def _name(number: int) -> str:
    return f"manifest-{number:05d}.json" if number else "manifest.json"


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Pack arrays of any name; numpy.savez does not take "file", nor does numpy.load tell ``x`` from ``x.npy``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            # `ZipInfo` has a fixed date: equal arrays are equal bytes, and have one checksum.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def _unpack(payload: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                arrays[member.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays
