"""Files that a kill at any moment cannot spoil: written as drafts, forced to disk, renamed in one step."""

import contextlib
import errno
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write(file: Path, payload: bytes) -> None:
    """Write a file in one step; a draft that a kill leaves behind is named ``.<name>.draft``."""
    draft = file.with_name(f".{file.name}.draft")
    try:
        # Bytes on disk, then the name, then the folder that holds it: at every moment the name stands for the old
        # contents or for all of the new ones.
        draft.write_bytes(payload)
        force_to_disk(draft)
        draft.replace(file)
        force_to_disk(file.parent)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def write_json(file: Path, contents: Mapping[str, Any], *, allow_nan: bool = False) -> None:
    """Write a file in one step, with a checksum."""
    text = json.dumps(contents, allow_nan=allow_nan)
    # The checksum is that of the contents as one line, without itself, so that the file may be indented.
    write(file, json.dumps({"checksum": zlib.crc32(text.encode()), **contents}, indent=1).encode())


def read_json(file: Path) -> dict[str, Any]:
    """Return the contents written by `write_json`.

    Raises:
        FileNotFoundError: no such file.
        OSError: it was changed or damaged; the error names it.
    """
    try:
        contents = json.loads(file.read_text())
        checksum = contents.pop("checksum")
        # JSON keeps the order of names and the digits of numbers: dumped again, the contents are the same text.
        good = zlib.crc32(json.dumps(contents).encode()) == checksum
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"the file {file} cannot be read ({error}): restore it, or remove its folder") from error
    if not good:
        raise OSError(f"the file {file} was changed or damaged after it was written: restore it, or remove its folder")
    return contents


def refuse_difference(saved: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Raise ``ValueError`` naming every entry in which two nested mappings, as JSON has them, differ."""
    lines = list(_differences("", saved, given))
    if lines:
        shown = "; ".join(lines[:8]) + ("; ..." if len(lines) > 8 else "")
        raise ValueError(f"expected the configuration of {what}, got another ({shown}): use the same, or another path")


def _differences(name: str, saved: Any, given: Any) -> Iterator[str]:
    if isinstance(saved, Mapping) and isinstance(given, Mapping):
        # Names of both, in order, each once; one that is missing counts as null.
        for key in dict.fromkeys([*saved, *given]):
            yield from _differences(f"{name}.{key}".lstrip("."), saved.get(key), given.get(key))
    # As text, in which NaN equals itself and 1 differs from 1.0.
    elif json.dumps(saved) != json.dumps(given):
        yield f"{name}: {_short(saved)} there, {_short(given)} here"


def _short(value: Any) -> str:
    text = re.sub(r"\s+", " ", value if isinstance(value, str) else repr(value))
    return text if len(text) <= 80 else f"{text[:60]} ... {text[-16:]}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder by a lock that the system takes back when the process dies.

    Raises:
        OSError: another process holds it, or the system cannot lock; the error names the folder or the file.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    # The file is never removed: two processes could then hold locks on two files of one name.
    file = folder / ".lock"
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise OSError(error.errno, error.strerror, str(file)) from error
            raise OSError(f"another process is at work in {folder}: wait for it, or choose another path") from error
        yield


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, and wait until their names have reached the disk."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        # The name of a folder is an entry of the one above: forcing what is inside does not bring it to the disk.
        force_to_disk(each.parent)


def check_empty(folder: Path, what: str) -> None:
    """Raise ``ValueError`` if a folder that is to hold ``what`` holds something else."""
    strangers = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    if strangers:
        raise ValueError(f"expected {what} or an empty folder at {folder}, found {strangers[:5]}: choose another path")


def force_to_disk(path: Path) -> None:
    """Wait until a file or folder has reached the disk; an error names it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)
