"""The folder of a sweep, written so that a kill at any moment loses at most the chunk in flight.

    manifest.json              what is swept: axes, key, function, program, configuration, layout of the chunks
    chunk-00012-1f0c8a3e.npz   outputs of chunk 12 by name, and `valid`; the last part is a checksum
    .*.draft                   whatever is being written

A file is written as a draft, forced to disk and renamed in one step. The checksum of a chunk covers the manifest and
the number of the chunk too: a file of another sweep is recognised like a damaged one.
"""

import contextlib
import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from stabjax import _files

FORMAT = 1


class Store:
    """One sweep on disk, held by this process alone while it is entered."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._stack = contextlib.ExitStack()
        self._seal = 0

    def __enter__(self) -> "Store":
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"expected a folder at {self.path}, found a file: choose another path")
        self.path.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(_files.locked(self.path))
        for draft in self.path.glob(".*.draft"):
            draft.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def saved(self) -> dict[str, Any] | None:
        """What is swept here, None in an empty folder."""
        file = self.path / "manifest.json"
        if not file.exists():
            _files.check_empty(self.path, "a sweep")
            return None
        contents = _files.read_json(file)
        if contents["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT} in {file}, got {contents['format']}: choose another path")
        return contents

    def open(self, manifest: Mapping[str, Any]) -> None:
        """Write down what is swept, or refuse with the difference from what is swept here."""
        given = json.loads(json.dumps({"format": FORMAT, "order": list(manifest["axes"]), **manifest}))
        saved = self.saved()
        if saved is None:
            saved = given
            self._write("manifest.json", lambda file: _files.write_json(file, given, allow_nan=True))
        else:
            old, new = ({k: v for k, v in d.items() if k != "versions"} for d in (saved, given))
            _files.refuse_difference(old, new, f"the sweep in {self.path}")
        self._seal = zlib.crc32(json.dumps(saved, sort_keys=True).encode())

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        """A finished chunk; None if it was not written, or is damaged and must be computed again."""
        for file in sorted(self.path.glob(f"chunk-{number:05d}-*.npz")):
            payload = file.read_bytes()
            if file.stem.endswith(f"-{self._checksum(number, payload)}"):
                with contextlib.suppress(ValueError, OSError, zipfile.BadZipFile), np.load(io.BytesIO(payload)) as data:
                    return dict(data)
            warnings.warn(
                f"the file {file} is damaged: its chunk is computed again, and the file replaced",
                RuntimeWarning,
                stacklevel=2,
            )
            file.unlink()
        return None

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a finished chunk."""
        buffer = io.BytesIO()
        # As numpy.savez does, which does not take every name ("file").
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        payload = buffer.getvalue()
        name = f"chunk-{number:05d}-{self._checksum(number, payload)}.npz"
        self._write(name, lambda file: _files.write(file, payload))

    def _checksum(self, number: int, payload: bytes) -> str:
        return f"{zlib.crc32(payload, zlib.crc32(f'{self._seal} {number}'.encode())):08x}"

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
