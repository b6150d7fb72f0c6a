"""Damaged files are named, and nothing of them is kept."""

import bz2
import gzip
import lzma
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from stabjax import data
from tests.data.helpers import (
    cifar_members,
    cut,
    flip,
    idx_bytes,
    image_members,
    random_images,
    tar_bytes,
    write_idx,
    write_tar,
    write_zip,
)

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
