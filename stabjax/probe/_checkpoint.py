"""The folder of a pass that may be killed at any moment and goes on where it was.

    run.json          what is measured: network, key, perturbations, measurements, sizes of batches
    rows-00012.npz    numbers of each image of some batches, written once
    state-00013.npz   states of the measurements after the batches of so many files of rows, and the one before

A comparison of layers keeps no rows; its states are numbered by how often they were saved.

Every file is written in one step, rows before the state that counts them: whatever a kill leaves behind, a state and
the rows in front of it agree. Of several processes each has a folder of its own. They save after the same batches, so
a kill leaves them at most one saving apart: that is why the state before is kept.
"""

import contextlib
import io
import json
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stabjax import _files
from stabjax.probe._devices import Devices

INTERVAL = 10.0
"""Seconds between two savings."""
FORMAT = 2


@dataclass(frozen=True)
class Position:
    """How far a pass has come.

    Attributes:
        batches: Batches that are finished.
        images: Images in them.
        digest: Checksum of all images in them.
        source: Where the source of the images stands, if it knows itself.
    """

    batches: int = 0
    images: int = 0
    digest: int = 0
    source: Mapping[str, Any] | None = None


BEGIN = Position()


@dataclass(frozen=True)
class Saved:
    """What was kept of a pass: its position, the leaves of its states and rows, and positions of the images."""

    position: Position
    states: list[np.ndarray]
    rows: list[list[np.ndarray]]
    """Leaves of each file."""
    positions: list[np.ndarray]


class Checkpoint:
    """The folder of one pass, held by this process alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts = 0
        self._time = time.monotonic()

    def newest(self) -> int:
        """Return how many files of rows the newest state counts, 0 if there is none."""
        return max((int(file.stem.removeprefix("state-")) for file in self._path.glob("state-*.npz")), default=0)

    def load(self, parts: int, *, rows: bool = True) -> Saved | None:
        """Return what was saved with so many files of rows, or as often without any; None for none."""
        self._parts = parts
        if parts == 0:
            return None
        arrays = _read(self._path / _state_name(parts))
        position = json.loads(arrays.pop("position").tobytes())
        files = [_read(self._path / _rows_name(number)) for number in range(parts if rows else 0)]
        positions = [file.pop("positions") for file in files]
        return Saved(Position(**position), _leaves(arrays), [_leaves(file) for file in files], positions)

    def is_due(self) -> bool:
        """Tell whether it is time to save again."""
        return time.monotonic() - self._time >= INTERVAL

    def save(self, position: Position, states: Any, rows: Any = None, positions: np.ndarray | None = None) -> None:
        """Save the states, and the rows of all batches since the last time.

        Args:
            position: How far the pass has come.
            states: A pytree of arrays.
            rows: A pytree of arrays, those of new batches; none if what is measured keeps none.
            positions: Of the images of these rows.
        """
        if positions is not None:
            _write(self._path / _rows_name(self._parts), {"positions": positions, **_numbered(rows)})
        self._parts += 1
        packed = np.frombuffer(json.dumps(asdict(position)).encode(), np.uint8)
        _write(self._path / _state_name(self._parts), {"position": packed, **_numbered(states)})
        for file in self._path.glob("state-*.npz"):
            if int(file.stem.removeprefix("state-")) not in (self._parts, self._parts - 1):
                file.unlink()
        self._time = time.monotonic()


@contextlib.contextmanager
def open_checkpoint(path: Path, what: Mapping[str, Any]) -> Iterator[Checkpoint]:
    """Hold a folder for a pass; make it, or refuse one of another pass with the difference.

    Args:
        path: The folder.
        what: What is measured, as JSON has it.

    Raises:
        ValueError: The folder holds another pass, or something else.
        OSError: Another process is at work in it, or a file is damaged; the error names it.
    """
    given = json.loads(json.dumps({"format": FORMAT, **what}))
    file = path / "run.json"
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"expected a folder at {path}, found a file: choose another path")
    if path.exists() and not file.exists():
        _files.check_empty(path, "a probe")
    _files.make_folder(path)
    with _files.locked(path):
        if file.exists():
            _files.refuse_difference(_files.read_json(file), given, f"the probe in {path}")
        else:
            _files.write_json(file, given)
        yield Checkpoint(path)


def folder_of_process(path: Path, devices: Devices) -> Path:
    """Return the folder of this process in that of a pass."""
    return path / f"process-{jax.process_index()}" if devices.processes > 1 else path


def extend_digest(digest: int, images: Any, counted: np.ndarray) -> int:
    """Return the checksum of all images so far, with those behind them that count."""
    counted_images = np.ascontiguousarray(np.asarray(images)[counted])
    return zlib.crc32(counted_images.reshape(-1).view(np.uint8).data, digest)


def _rows_name(number: int) -> str:
    return f"rows-{number:05d}.npz"


def _state_name(parts: int) -> str:
    return f"state-{parts:05d}.npz"


def _numbered(tree: Any) -> dict[str, np.ndarray]:
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    # Files of NumPy do not know types of other libraries (bfloat16): these stand in the name.
    types = ["" if array.dtype.isbuiltin == 1 else f"-{array.dtype.name}" for array in arrays]
    return {f"leaf-{k:05d}{types[k]}": array for k, array in enumerate(arrays)}


def _leaves(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    # "leaf-00012", or "leaf-00012-bfloat16".
    leaves = []
    for name in sorted(arrays):
        _, _, *types = name.split("-")
        leaves.append(arrays[name].view(jax.numpy.dtype(types[0])) if types else arrays[name])
    return leaves


def _write(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    payload = io.BytesIO()
    np.savez(payload, **arrays)  # pyright: ignore[reportArgumentType]
    _files.write(file, payload.getvalue())


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile) as error:
        raise OSError(f"the file {file} cannot be read ({error}): restore it, or remove its folder") from error
