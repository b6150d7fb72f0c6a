"""Image sets: every published format built small, read whole, and read damaged."""

import bz2
import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from hypothesis import given
from PIL import Image

from stabjax import data
from stabjax.data import _cache, _formats, _named
from tests import ROOT

REAL = os.environ.get("STABJAX_DATA")
CACHE = os.environ.get("STABJAX_CACHE")
needs_real = pytest.mark.skipif(not REAL, reason="STABJAX_DATA is not set; the formats are tested on stand-ins above")
CLASSES = _named.CLASSES["cifar10"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has a cache of its own, and knows of no data."""
    monkeypatch.setenv("STABJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STABJAX_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def real(monkeypatch):
    """The real data, and the cache that everybody uses."""
    monkeypatch.setenv("STABJAX_DATA", REAL)
    if CACHE is None:
        monkeypatch.delenv("STABJAX_CACHE")
    else:
        monkeypatch.setenv("STABJAX_CACHE", CACHE)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


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


# Named sets


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx(tmp_path, rng, name, place, compress):
    told = write_idx(tmp_path / place, rng, compress)
    assert_set(name, told, tmp_path)
    source = data.describe(name, root=tmp_path)
    assert (source.format, source.exact, source.note, len(source.classes)) == ("idx", True, "", 10)


def test_the_folder_of_one_set_is_not_taken_for_another(tmp_path, rng, monkeypatch):
    told = write_idx(tmp_path / "mnist", rng, True)
    assert_set("mnist", told, tmp_path / "mnist")
    monkeypatch.setattr("pooch.retrieve", no_network)
    for root in (tmp_path, tmp_path / "mnist"):
        with pytest.raises(FileNotFoundError):
            data.load("fashion-mnist", "test", root=root)


WRITERS = [python2_batch, *(functools.partial(python3_batch, protocol) for protocol in (2, 4, 5))]


@pytest.mark.parametrize("write", WRITERS, ids=["python2", "2", "4", "5"])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar_batches(tmp_path, rng, write, packed):
    told, members = cifar_members(rng, write)
    if packed:
        write_tar(tmp_path / "cifar-10-python.tar.gz", {f"cifar-10-batches-py/{n}": m for n, m in members.items()})
    else:
        (tmp_path / "cifar-10-batches-py").mkdir()
        for name, content in members.items():
            (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)
        assert_set("cifar10", told, tmp_path / "cifar-10-batches-py")
    assert_set("cifar10", told, tmp_path)
    source = data.describe("cifar10", root=tmp_path)
    assert (source.format, source.exact, source.note) == ("python batches", True, "")
    assert source.classes == CLASSES


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".tar.bz2", ".tar", ".zip", ""])
def test_cifar_images(tmp_path, rng, suffix):
    members, told = image_members(rng)
    path = tmp_path / f"cifar10{suffix}"
    if not suffix:
        for name, content in members.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    else:
        (write_zip if suffix == ".zip" else write_tar)(path, members)
    assert_set("cifar10", told, tmp_path)
    source = data.describe("cifar10", root=tmp_path)
    assert (source.path, source.format, source.exact) == (path, "image folder", False)
    assert "JPEG copies" in source.note


def test_the_original_goes_before_the_copies(tmp_path, rng):
    write_tar(tmp_path / "cifar10.tar.xz", image_members(rng)[0])
    assert not data.describe("cifar10", root=tmp_path).exact
    told, members = cifar_members(rng)
    write_tar(tmp_path / "cifar-10-python.tar.gz", members)
    assert data.describe("cifar10", root=tmp_path).exact
    assert_set("cifar10", told, tmp_path)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_svhn(tmp_path, rng, compress, dtype):
    told = {}
    for split in ("train", "test"):
        images, labels = random_images(rng, 12, 32, 32, 3)
        told[split] = images, labels
        published = np.where(labels == 0, 10, labels).astype(dtype)[:, None]
        content = {
            "X": np.moveaxis(images, 0, -1),
            "y": published,
            "comment": "text",
            "cells": np.array([1, "a"], object),
        }
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", content, do_compression=compress)
    assert_set("svhn", told, tmp_path)
    assert data.describe("svhn", root=tmp_path).format == "matlab 5"


@pytest.mark.parametrize("dtype", ["i1", "u2", "i4", "f4", "f8", "i8", ">f8", "?"])
def test_matlab_arrays(tmp_path, rng, dtype):
    array = rng.integers(0, 2, (3, 4, 2)).astype(dtype)
    small = np.array([[5]], dtype)
    scipy.io.savemat(tmp_path / "a.mat", {"array": array, "s": small}, do_compression=True)
    read = _formats.mat(tmp_path / "a.mat")
    np.testing.assert_array_equal(read["array"], array)
    np.testing.assert_array_equal(read["s"], small)


# Where sets are looked for


def test_roots(tmp_path, rng, monkeypatch, cache):
    told = write_idx(tmp_path / "here" / "mnist", rng, True)
    kept = write_idx(cache / "fashion-mnist", rng, True)
    with pytest.raises(FileNotFoundError):
        data.describe("mnist")
    monkeypatch.setenv("STABJAX_DATA", str(tmp_path / "here"))
    assert_set("mnist", told, None)
    assert_set("fashion-mnist", kept, None)  # in the cache, after the data folder
    with pytest.raises(FileNotFoundError, match="fashion-mnist is not in"):
        data.describe("fashion-mnist", root=tmp_path / "here")
    monkeypatch.setenv("STABJAX_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"STABJAX_DATA=.*nowhere.* is no folder"):
        data.load("mnist", "train")
    with pytest.raises(FileNotFoundError, match="root="):
        data.load("mnist", "train", root=tmp_path / "nowhere")


def test_the_cache_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("STABJAX_CACHE")
    assert data.cache_dir().name == "stabjax"
    assert data.cache_dir().is_absolute()


def test_names_and_splits():
    with pytest.raises(ValueError, match=r"expected one of mnist, .*got 'imagenet'; .*data\.folder"):
        data.load("imagenet", "train")
    with pytest.raises(ValueError, match="got 'validation'"):
        data.load("mnist", "validation")


# Downloads


def no_network(url, *args, **kwargs):
    raise ConnectionError(f"Failed to resolve {url}")


@pytest.mark.parametrize("name", list(_named.FILES))
def test_without_network(monkeypatch, cache, name):
    monkeypatch.setattr("pooch.retrieve", no_network)
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, "train")
    message = str(caught.value)
    first = next(iter(_named.FILES[name]))
    for part in (name, first, _named.MIRRORS[name][0], "Failed to resolve", str(cache / name), "STABJAX_DATA"):
        assert part in message


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of a folder, which the mirrors of MNIST point to."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_address[1]}/"
        monkeypatch.setattr(_named, "MIRRORS", {"mnist": (address + "gone/", address)})
        yield folder
        running.shutdown()


def test_download(server, rng, monkeypatch, cache):
    told = write_idx(server / "set", rng, True)
    hashes = {}
    for path in sorted((server / "set").iterdir()):
        hashes[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
        path.rename(server / path.name)
    monkeypatch.setattr(_named, "FILES", {"mnist": hashes})
    assert_set("mnist", told, None)  # the second mirror has it
    assert data.describe("mnist").path == cache / "mnist"


def test_download_of_another_file(server, rng, cache):
    write_idx(server / "set", rng, True)
    for path in (server / "set").iterdir():
        path.rename(server / path.name)
    with pytest.raises(FileNotFoundError, match=r"hash|Hash|MD5|md5"):
        data.load("mnist", "train")
    assert not list(cache.rglob("*ubyte*"))


def test_published_hashes():
    sums = [md5 for files in _named.FILES.values() for md5 in files.values()]
    assert len(set(sums)) == len(sums) == 11
    assert all(len(bytes.fromhex(md5)) == 16 for md5 in sums)
    assert set(_named.FILES) == set(_named.MIRRORS) == set(_named.CLASSES) == set(data.STATISTICS)


# Damaged files


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


IDX_DAMAGE = {
    "cut": (lambda p: cut(p, p.stat().st_size // 2), "remove it and fetch it again"),
    "empty": (lambda p: cut(p, 0), "remove it and fetch it again"),
    "not idx": (lambda p: p.write_bytes(b"<html>"), "two zero bytes"),
    "wrong kind": (lambda p: p.write_bytes(idx_bytes(np.zeros(3, np.uint8))), "magic number 2051.* got 2049"),
    "header": (lambda p: p.write_bytes(idx_bytes(np.zeros((1, 2, 2), np.uint8))[:9]), "ends within its header"),
    "short": (lambda p: p.write_bytes(idx_bytes(np.zeros((9, 2, 2), np.uint8))[:-1]), "promises 36 bytes"),
    "long": (lambda p: p.write_bytes(idx_bytes(np.zeros((9, 2, 2), np.uint8)) + b"x"), "promises 36 bytes"),
    "fewer": (lambda p: p.write_bytes(idx_bytes(np.zeros((9, 28, 28), np.uint8))), "9 images, but 30 labels"),
}


@pytest.mark.parametrize("damage", list(IDX_DAMAGE))
def test_damaged_idx(tmp_path, rng, damage):
    write_idx(tmp_path / "mnist", rng, True)
    apply, says = IDX_DAMAGE[damage]
    apply(tmp_path / "mnist" / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match=f"mnist.*{says}"):
        data.load("mnist", "train", root=tmp_path)
    data.load("mnist", "test", root=tmp_path)


def test_flipped_bits_in_idx(tmp_path, rng):
    write_idx(tmp_path / "mnist", rng, True)
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    flip(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"t10k-images.*fetch it again"):
        data.load("mnist", "test", root=tmp_path)


def test_missing_and_wrong_labels(tmp_path, rng):
    write_idx(tmp_path / "mnist", rng, False)
    path = tmp_path / "mnist" / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.full(30, 11, np.uint8)))
    with pytest.raises(ValueError, match="labels from 11 to 11"):
        data.load("mnist", "train", root=tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte\.gz is missing"):
        data.load("mnist", "train", root=tmp_path)


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".tar.bz2", ".tar", ".zip"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_truncated_archives(tmp_path, rng, cache, suffix, share):
    path = tmp_path / f"cifar10{suffix}"
    (write_zip if suffix == ".zip" else write_tar)(path, image_members(rng, per_class=2)[0])
    content = path.read_bytes()
    # A tar file is padded to 10 KiB: what counts is what stands before the padding.
    path.write_bytes(content[: int(share * len(content.rstrip(b"\0")))])
    with pytest.raises(ValueError, match=r"cifar10.*remove it and fetch it again"):
        data.load("cifar10", "train", root=tmp_path)
    assert not list(cache.rglob("*.bin"))


@pytest.mark.parametrize("suffix", [".tar.xz", ".tar.gz", ".zip"])
def test_flipped_bits_in_archives(tmp_path, rng, suffix):
    members, _ = image_members(rng, per_class=1)
    path = tmp_path / f"cifar10{suffix}"
    (write_zip if suffix == ".zip" else write_tar)(path, members)
    whole = path.read_bytes()
    # The last of them in the checksum or index that stands at the end.
    for position in (*(int(share * len(whole)) for share in (0.2, 0.5, 0.9)), len(whole) - 6):
        path.write_bytes(whole)
        flip(path, position)
        with pytest.raises(ValueError, match=r"cifar10.*(fetch it again|Replace or remove it)"):
            data.load("cifar10", "train", root=tmp_path)


@pytest.mark.parametrize("squeeze", [gzip.compress, bz2.compress, lzma.compress])
def test_the_checksum_far_behind_the_last_member_counts(tmp_path, rng, squeeze):
    path = tmp_path / "cifar10.tar.xz"
    path.write_bytes(squeeze(tar_bytes(image_members(rng, per_class=1)[0]) + bytes(1 << 20)))
    flip(path, path.stat().st_size - 6)
    with pytest.raises(ValueError, match=r"cifar10.*fetch it again"):
        data.load("cifar10", "train", root=tmp_path)


def test_a_tar_file_that_stops_between_members(tmp_path, rng):
    members, _ = image_members(rng, per_class=1)
    path = tmp_path / "cifar10.tar"
    write_tar(path, members)
    with tarfile.open(path) as archive:
        infos = archive.getmembers()
    whole = path.read_bytes()
    path.write_bytes(whole[: infos[10].offset])
    with pytest.raises(ValueError, match=f"after member '{infos[9].name}'"):
        data.load("cifar10", "train", root=tmp_path)
    path.write_bytes(whole[: infos[10].offset] + b"?" * 512 + whole[infos[10].offset + 512 :])
    with pytest.raises(ValueError, match=f"after member '{infos[9].name}'"):
        data.load("cifar10", "train", root=tmp_path)


@pytest.mark.parametrize("suffix", [".tar.xz", ".zip"])
@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"not an image", lambda c: b""])
def test_a_damaged_image_in_an_archive(tmp_path, rng, cache, suffix, damage):
    members, _ = image_members(rng, per_class=2)
    name = "test/frog/0001.jpeg"
    members[name] = damage(members[name])
    path = tmp_path / f"cifar10{suffix}"
    (write_zip if suffix == ".zip" else write_tar)(path, members)
    with pytest.raises(ValueError, match=rf"cifar10{suffix}: cannot read the image '{name}': .*Replace or remove it"):
        data.load("cifar10", "train", root=tmp_path)
    assert not list(cache.rglob("*.bin"))


def test_damaged_cifar_batches(tmp_path, rng):
    _, members = cifar_members(rng)
    path = tmp_path / "cifar-10-python.tar.gz"

    def fails(content, says):
        write_tar(path, members | {"data_batch_3": content})
        with pytest.raises(ValueError, match=f"python.tar.gz: .*{says}.*fetch it again"):
            data.load("cifar10", "test", root=tmp_path)

    whole = members["data_batch_3"]
    fails(whole[:-100], "data_batch_3: not a CIFAR-10 batch")
    fails(pickle.dumps({"data": np.zeros((4, 3071), np.uint8), "labels": [0] * 4}), "data_batch_3.*3071")
    fails(pickle.dumps([1, 2]), "data_batch_3")
    del members["data_batch_3"]
    write_tar(path, members)
    with pytest.raises(ValueError, match="no member data_batch_3"):
        data.load("cifar10", "test", root=tmp_path)


def test_a_pickle_cannot_run_code(tmp_path, rng):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was-run",)

    _, members = cifar_members(rng)
    members["test_batch"] = pickle.dumps({"data": Evil(), "labels": []})
    write_tar(tmp_path / "cifar-10-python.tar.gz", members)
    with pytest.raises(ValueError, match="which no CIFAR batch does"):
        data.load("cifar10", "test", root=tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_damaged_matlab_files(tmp_path, rng):
    images, labels = random_images(rng, 5, 32, 32, 3)
    path = tmp_path / "train_32x32.mat"

    def fails(says):
        with pytest.raises(ValueError, match=rf"train_32x32\.mat: .*{says}"):
            data.load("svhn", "train", root=tmp_path)

    for compress in (True, False):
        scipy.io.savemat(path, {"X": np.moveaxis(images, 0, -1), "y": labels[:, None]}, do_compression=compress)
        whole = path.read_bytes()
        for size in (50, 130, 140, len(whole) // 2, len(whole) - 1):
            cut(path, size)
            fails("fetch it again")
            path.write_bytes(whole)
    scipy.io.savemat(path, {"X": images, "y": labels})
    fails(r"expected X \(32, 32, 3, n\)")
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    fails("HDF5")
    with pytest.raises(FileNotFoundError, match=r"test_32x32\.mat is missing"):
        data.load("svhn", "test", root=tmp_path)


# The cache


def test_decoding_happens_once(tmp_path, rng, monkeypatch):
    members, told = image_members(rng)
    write_tar(tmp_path / "cifar10.tar.xz", members)
    assert_set("cifar10", told, tmp_path)
    monkeypatch.setattr("stabjax.data._images._pixels", None)  # no image may be decoded again
    assert_set("cifar10", told, tmp_path)
    os.utime(tmp_path / "cifar10.tar.xz", (1, 1))  # a copy with another time is the same file
    assert_set("cifar10", told, tmp_path)


def test_another_file_of_the_same_name_and_size(tmp_path, rng):
    for _ in range(2):
        members, told = image_members(rng, per_class=1, form="BMP")
        write_tar(tmp_path / "cifar10.tar", members)
        os.utime(tmp_path / "cifar10.tar", (1, 1))
        assert_set("cifar10", told, tmp_path)


def entries(cache):
    return sorted((cache / "decoded").glob("cifar10*"))


@pytest.mark.parametrize("damage", ["cut", "grown", "missing", "no record", "half a record", "not a record"])
def test_a_damaged_cache_is_built_anew(tmp_path, rng, cache, damage):
    members, told = image_members(rng)
    write_tar(tmp_path / "cifar10.tar.xz", members)
    data.load_bytes("cifar10", "train", root=tmp_path)
    (entry,) = entries(cache)
    record, pixels = entry / "entry.json", entry / "images.bin"
    match damage:
        case "cut":
            cut(pixels, 1000)
        case "grown":
            pixels.write_bytes(pixels.read_bytes() + b"x")
        case "missing":
            pixels.unlink()
        case "no record":
            record.unlink()
        case "half a record":
            cut(record, 20)
        case _:
            record.write_text(json.dumps([1]))
    assert_set("cifar10", told, tmp_path)
    assert entries(cache) == [entry]
    assert pixels.stat().st_size == 60 * 32 * 32 * 3
    assert not list((cache / "decoded").glob(".partial*"))


CHILD = """
import hashlib, sys
from stabjax import data
from stabjax.data import _images
decode, seen = _images._pixels, []
def _pixels(*args):
    seen.append(1)
    if len(seen) == int(sys.argv[2]):
        import os
        os._exit(9)
    return decode(*args)
_images._pixels = _pixels
images, labels = data.load_bytes("cifar10", "train", root=sys.argv[1])
print(hashlib.md5(images.tobytes() + labels.tobytes()).hexdigest())
"""


def child(root, die_at=-1):
    command = [sys.executable, "-c", CHILD, str(root), str(die_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)


def test_processes_at_once_and_a_killed_one(tmp_path, rng, cache):
    members, told = image_members(rng, per_class=10)
    write_tar(tmp_path / "cifar10.tar.xz", members)
    killed = child(tmp_path, die_at=150)
    killed.communicate()
    assert killed.returncode == 9
    assert not entries(cache)
    (partial,) = (cache / "decoded").glob(".partial*")
    os.utime(partial, (time.time() - 1e6,) * 2)

    running = [child(tmp_path) for _ in range(2)]
    outputs = [process.communicate() for process in running]
    expected = hashlib.md5(told["train"][0].tobytes() + told["train"][1].astype(np.int32).tobytes()).hexdigest()
    assert [out.strip() for out, _ in outputs] == [expected] * 2, outputs
    assert len(entries(cache)) == 1
    assert not list((cache / "decoded").glob(".partial*"))  # the killed one's too
    assert_set("cifar10", told, tmp_path)


def test_a_lost_race_is_no_error(tmp_path, cache):
    def build(entry, value):
        if value == 1:
            _cache.decoded("set", "key", functools.partial(build, value=2))
        entry.put("x", np.full(3, value))

    first = _cache.decoded("set", "key", functools.partial(build, value=1))
    np.testing.assert_array_equal(first.arrays["x"], 2)  # the one that was placed first stays
    assert [path.name for path in (cache / "decoded").iterdir()] == ["set-key"]


def test_a_cache_that_cannot_be_written(tmp_path, rng, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STABJAX_CACHE", str(tmp_path / "file"))
    members, told = image_members(rng)
    write_tar(tmp_path / "cifar10.tar.xz", members)
    with pytest.warns(UserWarning, match="Set STABJAX_CACHE"):
        images, _ = data.load_bytes("cifar10", "test", root=tmp_path)
    np.testing.assert_array_equal(images, told["test"][0])


def test_large_files_are_known_by_place_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "_WHOLE", 3)
    path = tmp_path / "large"
    path.write_bytes(b"1234")
    one = _cache.fingerprint([path])
    os.utime(path, (1, 1))
    assert _cache.fingerprint([path]) != one
    assert _cache.fingerprint([path], "option") != _cache.fingerprint([path])


# Image folders


def write_folder(root, members):
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "nested"])
def test_folder(tmp_path, rng, kind):
    members, told = image_members(rng, size=20, form="PNG", splits=("one",), classes=["b", "a", "10", "9"])
    members = {name.removeprefix("one/"): content for name, content in members.items()}
    members |= {".hidden/x.png": b"", "a/._x.png": b"", "a/notes.txt": b"", "__MACOSX/a/x.png": b""}
    path = tmp_path / f"set.{kind}"
    match kind:
        case "folder":
            write_folder(path, members)
        case "tar":
            write_tar(path, members)
        case "zip":
            write_zip(path, members)
        case "nested":
            write_tar(path, {f"./deep/set/{name}": content for name, content in members.items()})
    images, labels = data.folder_bytes(path)
    np.testing.assert_array_equal(images, told["one"][0])
    np.testing.assert_array_equal(labels, told["one"][1])
    assert data.folder_classes(path) == ("10", "9", "a", "b")
    floats, labels = data.folder(path, cache=False)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, images / np.float32(255))
    np.testing.assert_array_equal(labels, told["one"][1])


def test_a_changed_folder_is_decoded_anew(tmp_path, rng):
    path = tmp_path / "set"
    members, _ = image_members(rng, size=8, form="PNG", splits=("a",), classes=["x"], per_class=2)
    write_folder(path, members)
    assert len(data.folder_bytes(path, split="a")[0]) == 2
    (path / "a/x/0000.png").unlink()
    images, _ = data.folder_bytes(path, split="a")
    assert len(images) == 1


def test_without_a_cache_nothing_is_left(tmp_path, rng, cache):
    members, told = image_members(rng, form="PNG", splits=("s",))
    write_zip(tmp_path / "set.zip", members)
    images, _ = data.folder_bytes(tmp_path / "set.zip", cache=False)
    np.testing.assert_array_equal(images, told["s"][0])
    assert not cache.exists()


def test_splits_of_a_folder(tmp_path, rng):
    members, told = image_members(rng, size=8, form="PNG", classes=["x", "y"])
    write_folder(tmp_path / "set", members)
    write_tar(tmp_path / "set.tar", members)
    for path in (tmp_path / "set", tmp_path / "set.tar"):
        for split in ("train", "test"):
            images, labels = data.folder_bytes(path, split=split)
            np.testing.assert_array_equal(images, told[split][0])
            np.testing.assert_array_equal(labels, told[split][1])
            assert data.folder_classes(path, split=split) == ("x", "y")
        with pytest.raises(ValueError, match=r"pass split= one of test, train"):
            data.folder_bytes(path)
        with pytest.raises(FileNotFoundError, match=r"no folder 'val'.*; there are test, train"):
            data.folder_bytes(path, split="val")
    write_tar(tmp_path / "two.tar", {f"{top}/{name}": c for top in "ab" for name, c in members.items()})
    with pytest.raises(ValueError, match="more than one folder 'train'"):
        data.folder_bytes(tmp_path / "two.tar", split="train")


def test_images_without_classes(tmp_path, rng):
    pixels, _ = random_images(rng, 3, 6, 5)
    write_folder(tmp_path / "flat", {f"{i}.png": encoded(p, "PNG") for i, p in enumerate(pixels)})
    images, labels = data.folder_bytes(tmp_path / "flat")
    np.testing.assert_array_equal(images, pixels[..., None])
    np.testing.assert_array_equal(labels, [0, 0, 0])
    write_folder(tmp_path / "flat", {"class/3.png": encoded(pixels[0], "PNG")})
    with pytest.raises(ValueError, match="beside them"):
        data.folder_bytes(tmp_path / "flat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in it"):
        data.folder_bytes(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder or archive"):
        data.folder_bytes(tmp_path / "nowhere")


def test_sizes(tmp_path):
    # Twice as wide as high: black and white halves in the middle, and gray sides for cropping to cut off.
    wide = np.full((40, 80, 3), 90, np.uint8)
    wide[:, 20:40] = 0
    wide[:, 40:60] = 255
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2))
    write_folder(tmp_path / "set", {"a/0.png": encoded(wide, "PNG"), "b/1.png": encoded(tall, "PNG")})
    with pytest.raises(ValueError, match=r"one size, got \(40, 80, 3\) for 'a/0.png' and \(80, 40, 3\) for 'b/1.png'"):
        data.folder_bytes(tmp_path / "set")
    images, _ = data.folder_bytes(tmp_path / "set", size=16)
    assert images.shape == (2, 16, 16, 3)
    half = np.zeros((16, 16, 3), np.uint8)
    half[:, 8:] = 255
    away = np.r_[1:7, 9:15]  # the filter mixes the two pixels at an edge
    np.testing.assert_array_equal(images[0][:, away], half[:, away])
    np.testing.assert_array_equal(images[1], images[0].transpose(1, 0, 2))
    stretched, _ = data.folder_bytes(tmp_path / "set", size=(10, 20), fit="stretch")
    assert stretched.shape == (2, 10, 20, 3)
    away = np.setdiff1d(np.arange(20), [4, 5, 9, 10, 14, 15])
    np.testing.assert_array_equal(stretched[0, 0, away, 0], np.repeat([90, 0, 255, 90], [4, 3, 3, 4]))
    assert np.all(stretched[0, :, 0] == 90)
    assert np.all(stretched[1, [0, -1]] == 90)
    assert np.all(stretched[1, 3] == 0)
    for wrong in (0, (4, -1)):
        with pytest.raises(ValueError, match="positive size"):
            data.folder_bytes(tmp_path / "set", size=wrong)
    with pytest.raises(ValueError, match="fit 'crop' or 'stretch', got 'pad'"):
        data.folder_bytes(tmp_path / "set", size=8, fit="pad")


def test_kinds_of_pixels(tmp_path):
    gray = np.full((2, 2), 100, np.uint8)
    color = np.full((2, 2, 3), (200, 100, 0), np.uint8)
    clear = np.dstack([color, np.full((2, 2), 0, np.uint8)])  # fully transparent
    palette = io.BytesIO()
    Image.fromarray(color).convert("P", palette=Image.Palette.ADAPTIVE).save(palette, "PNG")
    cmyk = io.BytesIO()
    Image.fromarray(color).convert("CMYK").save(cmyk, "TIFF")
    members = {
        "0/gray.png": encoded(gray, "PNG"),
        "1/color.png": encoded(color, "PNG"),
        "2/clear.png": encoded(clear, "PNG"),
        "3/palette.png": palette.getvalue(),
        "4/cmyk.tiff": cmyk.getvalue(),
    }
    write_zip(tmp_path / "set.zip", members)
    with pytest.raises(
        ValueError, match=r"one channels, .*'0/gray.png'.*'1/color.png'; pass channels=3|pass channels="
    ):
        data.folder_bytes(tmp_path / "set.zip")
    images, _ = data.folder_bytes(tmp_path / "set.zip", channels=3)
    np.testing.assert_array_equal(images[:, 0, 0], [[100] * 3, [200, 100, 0], [255] * 3, [200, 100, 0], [200, 100, 0]])
    images, _ = data.folder_bytes(tmp_path / "set.zip", channels=1)
    luma = round(0.299 * 200 + 0.587 * 100)
    np.testing.assert_allclose(images[:, 0, 0, 0], [100, luma, 255, luma, luma], atol=1)
    images, _ = data.folder_bytes(tmp_path / "set.zip", channels=4)
    np.testing.assert_array_equal(images[:, 0, 0, 3], [255, 255, 0, 255, 255])
    for name, channels in (("0/gray.png", 1), ("1/color.png", 3), ("2/clear.png", 4), ("3/palette.png", 3)):
        write_zip(tmp_path / "one.zip", {name: members[name]})
        assert data.folder_bytes(tmp_path / "one.zip")[0].shape == (1, 2, 2, channels)
    with pytest.raises(ValueError, match="channels 1, 3, 4 or None, got 2"):
        data.folder_bytes(tmp_path / "set.zip", channels=2)
    write_zip(tmp_path / "deep.zip", {"0/a.png": encoded(gray.astype(np.uint16), "PNG")})
    with pytest.raises(ValueError, match=r"'0/a.png' has 16 or 32 bits"):
        data.folder_bytes(tmp_path / "deep.zip")


def test_a_large_folder_takes_little_memory(tmp_path):
    """240 images of 224x224x3 are 36 MB: decoding them takes a few images more than nothing."""
    content = encoded(np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8), "BMP")
    write_zip(tmp_path / "large.zip", {f"{i % 3}/{i:03d}.bmp": content for i in range(240)})
    code = (
        "import resource, sys\n"
        "from stabjax import data\n"
        "data.folder_bytes(sys.argv[1], cache=False)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "images, _ = data.folder_bytes(sys.argv[2])\n"
        "floats = data.to_float(images) if len(sys.argv) > 3 else images\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, floats.size)\n"
    )
    write_zip(tmp_path / "small.zip", {f"0/{i}.bmp": content for i in range(3)})
    arguments = [str(tmp_path / "small.zip"), str(tmp_path / "large.zip")]
    for extra, times in (([], 0.3), (["float"], 5.5)):
        run = [sys.executable, "-c", code, *arguments, *extra]
        kilobytes, size = map(int, subprocess.run(run, cwd=ROOT, check=True, capture_output=True).stdout.split())
        assert size == 240 * 224 * 224 * 3
        assert kilobytes * 1024 < times * size, extra


# Arrays and statistics


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("name", list(_named.FILES))
def test_normalize(rng, convert, name):
    stats = data.STATISTICS[name]
    channels = len(stats.mean)
    images = rng.integers(0, 256, (4, 5, 5, channels), dtype=np.uint8)
    expected = (images / 255.0 - np.array(stats.mean)) / np.array(stats.deviation)
    for given_images in (images, (images / 255).astype(np.float32)):
        out = data.normalize(convert(given_images), name)
        assert isinstance(out, np.ndarray if convert is np.asarray else jax.Array)
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_array_equal(data.normalize(convert(images[0]), stats), data.normalize(convert(images), name)[0])


def test_normalize_keeps_the_dtype_and_traces(rng, x64):
    images = rng.random((2, 3, 3, 3))
    assert data.normalize(images, "cifar10").dtype == np.float64
    assert data.normalize(jnp.asarray(images), "cifar10").dtype == jnp.float64
    half = jnp.asarray(images, jnp.bfloat16)
    out = jax.jit(lambda x: data.normalize(x, "cifar10"))(half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(float), data.normalize(images, "cifar10"), atol=0.05)


def test_normalize_errors():
    with pytest.raises(ValueError, match="3 channels last"):
        data.normalize(np.zeros((2, 4, 4, 1), np.float32), "cifar10")
    with pytest.raises(ValueError, match="got 'imagenet'"):
        data.normalize(np.zeros((2, 4, 4, 1), np.float32), "imagenet")
    with pytest.raises(TypeError, match="int64"):
        data.normalize(np.zeros((2, 4, 4, 1), np.int64), "mnist")
    with pytest.raises(ValueError, match="positive deviations"):
        data.Statistics((0.5,), (0,))
    with pytest.raises(ValueError, match="per channel"):
        data.Statistics((0.5, 0.5), (1.0,))


@given(st.integers(0, 2**32 - 1))
def test_statistics(seed):
    images = np.random.default_rng(seed).integers(0, 256, (300, 3, 4, 2), dtype=np.uint8)
    stats = data.statistics(images)
    np.testing.assert_allclose(stats.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(stats.deviation, (images / 255).std((0, 1, 2)), rtol=1e-10)
    out = data.normalize(images, stats)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)
    floats = data.statistics(data.to_float(images))
    np.testing.assert_allclose(floats.mean, stats.mean, rtol=1e-6)


def test_arrays(rng):
    images, labels = random_images(rng, 6, 5, 4, 3)
    told = images.astype(np.float32) / np.float32(255)
    for pixels in (images, told, jnp.asarray(told), told.astype(np.float64)):
        for classes in (labels, labels.astype(np.int64), jnp.asarray(labels)):
            floats, out = data.arrays(pixels, classes)
            assert (floats.dtype, out.dtype) == (np.float32, np.int32)
            np.testing.assert_array_equal(floats, told)
            np.testing.assert_array_equal(out, labels)
    spoiled = told.copy()
    spoiled[0, 0, 0, 0] = np.nan
    assert np.isnan(data.arrays(spoiled, labels)[0]).sum() == 1
    with pytest.raises(ValueError, match=r"got 0 to 255|divide by 255"):
        data.arrays(images.astype(np.float32), labels)
    assert data.arrays(told - 0.5, labels, value_range=None)[0].min() < 0
    with pytest.raises(ValueError, match=r"one label per image, \(6,\), got shape \(5,\)"):
        data.arrays(images, labels[:5])
    with pytest.raises(ValueError, match=r"expected images .* got shape \(6, 5\): .*add the axis of one channel"):
        data.arrays(images[:, :, 0, 0], labels)
    with pytest.raises(TypeError, match="integer labels, got float32"):
        data.arrays(images, labels.astype(np.float32))
    with pytest.raises(TypeError, match="got int32"):
        data.arrays(images.astype(np.int32), labels)


def test_importing_reads_nothing(tmp_path):
    code = "import sys; from stabjax import data; assert 'pooch' not in sys.modules and 'scipy' not in sys.modules"
    missing = str(tmp_path / "nowhere")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"STABJAX_DATA": missing})
    assert not (tmp_path / "nowhere").exists()


# The real sets


@needs_real
def test_real_mnist(real):
    images, labels = data.load_bytes("mnist", "train")
    assert images.shape == (60_000, 28, 28, 1)
    whole = idx_bytes(images[..., 0])
    assert hashlib.md5(whole).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    np.testing.assert_array_equal(labels[:10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    images, labels = data.load("mnist", "test")
    assert images.shape == (10_000, 28, 28, 1)
    assert (images.min(), images.max()) == (0, 1)
    np.testing.assert_array_equal(labels[:5], [7, 2, 1, 0, 4])


@needs_real
def test_the_head_of_real_cifar(real):
    source = data.describe("cifar10")
    with contextlib.closing(_formats.members(source.path, lambda name: name.endswith(".jpg"))) as members:
        name, content = next(members)
    assert name == "train/airplane/0000.jpg"
    assert np.asarray(Image.open(io.BytesIO(content))).shape == (32, 32, 3)
    assert "JPEG copies" in source.note


@needs_real
@pytest.mark.slow
def test_real_cifar(real):
    for split, each in (("train", 5000), ("test", 1000)):
        images, labels = data.load_bytes("cifar10", split)
        assert images.shape == (10 * each, 32, 32, 3)
        np.testing.assert_array_equal(np.bincount(labels), [each] * 10)
        if split == "train":
            np.testing.assert_allclose(data.statistics(images).mean, data.STATISTICS["cifar10"].mean, atol=3e-4)
    start = time.perf_counter()
    data.load("cifar10", "train")
    assert time.perf_counter() - start < 5
