"""Every published format is read whole."""

import functools

import numpy as np
import pytest
import scipy.io

from stabjax import data
from stabjax.data import _formats
from tests.data.helpers import (
    CLASSES,
    assert_set,
    cifar_members,
    image_members,
    python2_batch,
    python3_batch,
    random_images,
    write_idx,
    write_tar,
    write_zip,
)
from tests.data.test_downloads import no_network


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


@pytest.mark.parametrize("compress", [True, False])
def test_complex_matlab_arrays_are_refused(tmp_path, compress):
    scipy.io.savemat(tmp_path / "a.mat", {"z": np.array([[1 + 2j, 3]]), "r": np.eye(2)}, do_compression=compress)
    with pytest.raises(ValueError, match=r"a\.mat: expected real numbers, got complex ones in \['z'\]: save"):
        _formats.mat(tmp_path / "a.mat")
