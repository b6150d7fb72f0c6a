"""Readers of the published file formats: IDX, the CIFAR batches, MATLAB 5; and archives as streams of members.

A reader takes bytes, or a path, and gives arrays; what is wrong with a file raises `ValueError` with the file, the
member and what to do.
"""

import bz2
import gzip
import io
import lzma
import math
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

__all__: list[str] = []

REMEDY = "The file is damaged or incomplete: remove it and fetch it again"

BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
"""What the decompressors raise on damaged input."""

_MAGIC: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
    (b"\x1f\x8b", gzip.GzipFile),
    (b"BZh", bz2.BZ2File),
)


def uncompressed(path: Path) -> io.BufferedIOBase:
    """Open a file, decompressed on the way if its first bytes say so; its name does not matter."""
    with path.open("rb") as file:
        head = file.read(6)
    for magic, opener in _MAGIC:
        if head.startswith(magic):
            return opener(path)
    return path.open("rb")


def content(path: Path) -> bytes:
    """Return all bytes of a file, decompressed."""
    try:
        with uncompressed(path) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except BROKEN as error:
        raise ValueError(f"{path}: {error}. {REMEDY}") from error


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the wanted files of a zip or (compressed) tar archive, which is read once.

    A folder has a slash at the end of its name, and no bytes.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        yield from (_zip_members if zipped else _tar_members)(path, wanted)
    except FileNotFoundError:
        raise
    except BROKEN as error:
        raise ValueError(f"{path}: {error}. {REMEDY}") from error


def _zip_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        # By name: the order in the archive is that of whoever packed it.
        for name in sorted(info.filename for info in archive.infolist()):
            if wanted(name):
                try:
                    data = b"" if name.endswith("/") else archive.read(name)
                except (*BROKEN, RuntimeError, NotImplementedError) as error:
                    raise ValueError(f"{path}: member {name!r}: {error}. {REMEDY}") from error
                yield name, data


def _tar_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    last = ""
    with uncompressed(path) as raw:
        stream = _Measured(raw)
        try:
            # A stream needs nothing but `read`.
            with tarfile.open(fileobj=cast(Any, stream), mode="r|", bufsize=1 << 18) as archive:
                for member in archive:
                    last = member.name
                    if member.isdir() and wanted(f"{last}/"):
                        yield f"{last}/", b""
                    elif member.isfile() and wanted(last):
                        yield last, archive.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
            while stream.read(1 << 20):
                pass  # the checksum of a compressed file stands at its end
        except BROKEN as error:
            raise ValueError(f"{path}: {error}, after member {last!r}. {REMEDY}") from error
    # `tarfile` ends quietly at a header it cannot read and at a missing end. A whole archive ends in zeros.
    # At `offset` the reader has stopped: something must follow, and all of it must be zero.
    if stream.size <= archive.offset or stream.written > archive.offset:
        raise ValueError(f"{path}: unreadable after member {last!r}. {REMEDY}")


class _Measured:
    """A stream that knows how much was read from it, and where its last byte that is not zero ends."""

    def __init__(self, raw: io.BufferedIOBase) -> None:
        self.raw = raw
        self.size = 0
        self.written = 0

    def read(self, size: int) -> bytes:
        data = self.raw.read(size)
        significant = len(data.rstrip(b"\0"))
        if significant:
            # Ends at the last byte of this piece that is not zero, counted from the start of the stream.
            self.written = self.size + significant
        self.size += len(data)
        return data


def idx(path: Path, *, rank: int) -> np.ndarray:
    """Return the array of bytes of an IDX file (the format of MNIST), plain or compressed, of the given rank."""
    data = content(path)
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{path}: expected an IDX file, which starts with two zero bytes, got {data[:4]!r}. {REMEDY}")
    # Byte 2 is the type of the elements, 8 for unsigned bytes; byte 3 is the number of axes.
    if data[2] != 8 or data[3] != rank:
        raise ValueError(
            f"{path}: expected IDX magic number {0x0800 + rank} (bytes, {rank} axes), "
            f"got {int.from_bytes(data[:4], 'big')}. Is it the file its name says?"
        )
    start = 4 + 4 * rank
    if len(data) < start:
        raise ValueError(f"{path}: ends within its header. {REMEDY}")
    # A length of four bytes for each axis, the most significant first; then the bytes, in C order.
    shape = struct.unpack(f">{rank}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(f"{path}: header promises {math.prod(shape)} bytes {shape}, got {len(data) - start}. {REMEDY}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


_NUMPY = {
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays and nothing else: a pickle from elsewhere may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) == ("_codecs", "encode"):
            import codecs

            return codecs.encode
        raise pickle.UnpicklingError(f"refers to {module}.{name}, which no CIFAR batch does")


def cifar_batch(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``(n, 32, 32, 3)`` and labels of one batch of the official python archive."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
        flat = np.asarray(batch["data"])
        labels = np.asarray(batch["labels"], np.int32)
        n = len(labels)
        if flat.dtype != np.uint8 or flat.shape != (n, 3072) or labels.shape != (n,):
            raise ValueError(f"expected data uint8 ({n}, 3072), got {flat.dtype} {flat.shape}")
    except Exception as error:  # a damaged pickle raises whatever its broken program runs into
        raise ValueError(f"{where}: not a CIFAR-10 batch: {error!r}. {REMEDY}") from error
    # A row is all of red, then green, then blue, each 32 x 32: channels go last.
    return flat.reshape(n, 3, 32, 32).transpose(0, 2, 3, 1), labels


def cifar_binary(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``(n, 32, 32, 3)`` and labels of one batch of the official binary archive.

    A record is one byte of label and 3072 of image, channel by channel.
    """
    if not data or len(data) % 3073:
        raise ValueError(f"{where}: expected records of 3073 bytes, got {len(data)} bytes. {REMEDY}")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int32)


Order = Literal["<", ">"]
_MAT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15
_MAT_CLASSES = range(6, 16)
_MAT_COMPLEX = 1 << 11


def mat(path: Path) -> dict[str, np.ndarray]:
    """Return the numeric arrays of a MATLAB file of version 5 (also called 6 and 7), by name."""
    data = memoryview(path.read_bytes())
    if len(data) >= 128 and b"MATLAB 7.3" in bytes(data[:116]):
        raise ValueError(f"{path}: is a MATLAB 7.3 (HDF5) file, expected version 5: save it again with '-v7'")
    # The header: 116 bytes of text, 8 of an offset, the version, and a mark whose two letters show the byte order.
    mark = bytes(data[126:128])
    if mark not in (b"IM", b"MI"):
        raise ValueError(f"{path}: expected a MATLAB 5 file, got the mark {mark!r} at byte 126. {REMEDY}")
    order: Order = "<" if mark == b"IM" else ">"
    arrays: dict[str, np.ndarray] = {}
    complex_names = []
    try:
        position = 128
        while position < len(data):
            kind, body, position = _mat_element(data, position, order, aligned=False)
            if kind == _MAT_COMPRESSED:
                # Compressed elements stand one after the other without padding; inside is one element, a matrix.
                kind, body, _ = _mat_element(memoryview(zlib.decompress(body)), 0, order)
            if kind == _MAT_MATRIX:
                name, array, is_complex = _mat_matrix(body, order)
                if array is not None:
                    arrays[name] = array
                if is_complex:
                    complex_names.append(name)
    except (zlib.error, struct.error, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: {error}. {REMEDY}") from error
    if complex_names:
        raise ValueError(
            f"{path}: expected real numbers, got complex ones in {complex_names}: save their real and imaginary parts "
            "as arrays of their own"
        )
    return arrays


def _mat_element(data: memoryview, position: int, order: Order, *, aligned: bool = True) -> tuple[int, memoryview, int]:
    """Return type, bytes and end of one element: a tag of eight bytes and its data, or both in eight if it is small."""
    # The two layouts of an element, words of 4 bytes; the small one has its size in the upper half of the first word:
    #     | type        | size        | data ...                      | up to a multiple of 8
    #     | size | type | up to 4 bytes of data |
    kind, size = struct.unpack_from(f"{order}2I", data, position)
    start = position + 8
    end = start + size
    if kind >> 16:
        kind, size, start, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
    elif aligned:
        end += -size % 8
    if start + size > len(data):
        raise ValueError(f"ends within an element of {size} bytes")
    return kind, data[start : start + size], end


def _mat_matrix(body: memoryview, order: Order) -> tuple[str, np.ndarray | None, bool]:
    """Return name and value of a matrix, and whether this is the real part alone, of complex numbers.

    The value is None for cells, structures, sparse and character arrays.
    """
    # Four elements: flags (the class in the lowest byte), sizes of the axes, name, values. A fifth, the imaginary part,
    # is not read.
    _, flags, position = _mat_element(body, 0, order)
    _, sizes, position = _mat_element(body, position, order)
    _, name, position = _mat_element(body, position, order)
    (word,) = struct.unpack_from(f"{order}I", flags)
    if word & 0xFF not in _MAT_CLASSES:
        return bytes(name).decode(), None, False
    kind, values, _ = _mat_element(body, position, order)
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    # The type of the values as written, which may be a shorter one than the class of the matrix.
    flat = np.frombuffer(values, np.dtype(_MAT_TYPES[kind]).newbyteorder(order))
    if flat.size != math.prod(shape):
        raise ValueError(f"array {bytes(name).decode()!r} of shape {shape} has {flat.size} values")
    # MATLAB writes the first axis fastest.
    return bytes(name).decode(), flat.reshape(shape, order="F"), bool(word & _MAT_COMPLEX)
