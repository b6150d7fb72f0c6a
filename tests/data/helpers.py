"""Stand-ins for the published files: every format built small."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from stabjax import data
from stabjax.data import _named

REAL = os.environ.get("STABJAX_DATA")
CACHE = os.environ.get("STABJAX_CACHE")
needs_real = pytest.mark.skipif(not REAL, reason="STABJAX_DATA is not set; the formats are tested on stand-ins above")
CLASSES = _named.CLASSES["cifar10"]


def random_images(rng, n, *shape):
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), rng.integers(0, 10, n).astype(np.int32)


# Stand-ins of the published files


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, rng, compress):
    folder.mkdir(parents=True)
    told = {}
    for split, stem, n in (("train", "train", 30), ("test", "t10k", 11)):
        images, labels = random_images(rng, n, 28, 28)
        told[split] = images[..., None], labels
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array.astype(np.uint8))
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return told


def python2_batch(images, labels):
    """A pickle as Python 2 wrote the official batches: old module names, arrays as byte strings."""
    n = len(labels)

    def text(s):
        return b"U" + bytes([len(s)]) + s

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + b"J" + struct.pack("<i", n) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + b"T" + struct.pack("<i", n * 3072) + images.transpose(0, 3, 1, 2).tobytes() + b"tb"
    )
    numbers = b"(" + b"".join(b"K" + bytes([int(label)]) for label in labels) + b"l"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def python3_batch(protocol, images, labels):
    flat = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(labels), -1)
    return pickle.dumps({"data": flat, "labels": labels.tolist()}, protocol)


def cifar_members(rng, write=python2_batch):
    told, members = {}, {}
    parts = []
    for i in range(1, 6):
        parts.append(random_images(rng, 4, 32, 32, 3))
        members[f"data_batch_{i}"] = write(*parts[-1])
    told["train"] = tuple(map(np.concatenate, zip(*parts)))
    told["test"] = random_images(rng, 3, 32, 32, 3)
    members["test_batch"] = write(*told["test"])
    members["readme.html"] = b"nothing"
    return told, members


def tar_bytes(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def write_tar(path, members):
    squeeze = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
    path.write_bytes(squeeze(tar_bytes(members)))


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def encoded(pixels, form="JPEG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def image_members(rng, *, per_class=3, size=32, form="JPEG", splits=("train", "test"), classes=CLASSES):
    """Members of an image-folder archive in no order at all, and what decoding must give."""
    members, told = {}, {}
    for split in splits:
        images, labels = [], []
        for label, name in enumerate(sorted(classes)):
            for i in range(per_class):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                content = encoded(pixels, form)
                members[f"{split}/{name}/{i:04d}.{form.lower()}"] = content
                images.append(np.asarray(Image.open(io.BytesIO(content))))
                labels.append(label)
        told[split] = np.stack(images), np.array(labels)
    names = list(members)
    rng.shuffle(names)
    return {name: members[name] for name in names}, told


def assert_set(name, told, root):
    for split in ("train", "test"):
        images, labels = data.load_bytes(name, split, root=root)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert not images.flags.writeable
        np.testing.assert_array_equal(images, told[split][0])
        np.testing.assert_array_equal(labels, told[split][1])
        floats, labels = data.load(name, split, root=root)
        assert floats.dtype == np.float32
        np.testing.assert_array_equal(floats, told[split][0].astype(np.float32) / np.float32(255))
        np.testing.assert_array_equal(labels, told[split][1])


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])
