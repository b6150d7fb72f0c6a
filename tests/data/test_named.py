"""Named sets under all the names and in all the places their files are handed around by."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest

from stabjax import data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test, no data, and no network."""
    monkeypatch.setenv("STABJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STABJAX_DATA", raising=False)

    def no_network(url, *args, **kwargs):
        raise ConnectionError(f"no way to {url}")

    monkeypatch.setattr("pooch.retrieve", no_network)
    return tmp_path / "cache"


def idx(array):
    array = np.asarray(array, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, *, mark="-", end="", inside=False, labels=None):
    """Four files, and what reading them must give; ``inside``: each in a folder of its own name."""
    rng = np.random.default_rng(5)
    told = {}
    for split, stem, n in (("train", "train", 12), ("test", "t10k", 11)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        classes = rng.integers(0, 10, n) if labels is None else np.resize(labels[split], n)
        told[split] = images[..., None], classes
        for name, array in ((f"{stem}-images{mark}idx3-ubyte", images), (f"{stem}-labels{mark}idx1-ubyte", classes)):
            place = folder / name if inside else folder
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}{end}").write_bytes(gzip.compress(idx(array)) if end else idx(array))
    return told


def assert_set(name, told, root):
    for split, (images, labels) in told.items():
        found, classes = data.load_bytes(name, split, root=root)
        np.testing.assert_array_equal(found, images)
        np.testing.assert_array_equal(classes, labels)


PLACES = [
    ("mnist", ""),
    ("mnist", "mnist"),
    ("mnist", "mnist/raw"),
    ("mnist", "MNIST/raw"),
    ("fashion-mnist", ""),
    ("fashion-mnist", "fashion_mnist"),
    ("fashion-mnist", "FashionMNIST/raw"),
]
FIRST = {
    "mnist": {"train": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "test": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]},
    "fashion-mnist": {"train": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], "test": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]},
}
OTHER = {"mnist": "fashion-mnist", "fashion-mnist": "mnist"}


@pytest.mark.parametrize(("name", "place"), PLACES)
@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("inside", [False, True])
def test_idx_files_are_found(tmp_path, name, place, mark, end, inside):
    told = write_idx(tmp_path / "root" / place, mark=mark, end=end, inside=inside)
    assert_set(name, told, tmp_path / "root")
    assert_set(name, told, tmp_path / "root" / place)
    assert data.describe(name, root=tmp_path / "root").path == tmp_path / "root" / place


def test_a_gzip_name_without_gzip_inside_and_a_mixture(tmp_path):
    told = write_idx(tmp_path / "root", mark=".", end=".gz")
    path = tmp_path / "root/t10k-labels.idx1-ubyte.gz"  # unpacked by a browser that left the name
    path.write_bytes(gzip.decompress(path.read_bytes()))
    (tmp_path / "root/train-images.idx3-ubyte.gz").rename(tmp_path / "root/train-images-idx3-ubyte.gz")
    assert_set("mnist", told, tmp_path / "root")


@pytest.mark.parametrize("name", FIRST)
def test_the_first_labels_tell_two_sets_of_one_file_name_apart(tmp_path, name):
    other = OTHER[name]
    flat = tmp_path / "flat"
    told = write_idx(flat, labels=FIRST[name])
    assert_set(name, told, flat)
    with pytest.raises(FileNotFoundError, match=f"{other} is not in"):
        data.load(other, "test", root=flat)
    named = write_idx(flat / other, mark=".", labels=FIRST[other])
    assert_set(other, named, flat)
    assert_set(name, told, flat)
    # In a folder that is named after the other set they are refused.
    write_idx(tmp_path / "wrong" / other, labels=FIRST[name])
    with pytest.raises(ValueError, match=f"expected the labels of {other}, got those of {name}"):
        data.load(other, "train", root=tmp_path / "wrong")
    # As many labels as published, in another order: neither set.
    (flat / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(10_000) % 10))
    with pytest.raises(FileNotFoundError, match=f"{name} is not in"):
        data.describe(name, root=flat)


@pytest.mark.parametrize("place", ["MNIST/raw", "mnist"])
def test_the_folder_of_the_other_set_is_left_to_it(tmp_path, place):
    write_idx(tmp_path / place, mark=".")
    with pytest.raises(FileNotFoundError, match="fashion-mnist is not in"):
        data.load("fashion-mnist", "test", root=tmp_path / place)


def test_what_was_looked_for_is_named(tmp_path, monkeypatch):
    for look in (lambda: data.describe("mnist", root=tmp_path), lambda: data.load("mnist", "test", root=tmp_path)):
        with pytest.raises(FileNotFoundError) as caught:
            look()
        message = str(caught.value)
        for stem in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
            kind = "idx3" if "images" in stem else "idx1"
            assert f"{stem}-{kind}-ubyte" in message
            assert f"{stem}.{kind}-ubyte" in message
        for place in (tmp_path, tmp_path / "mnist", tmp_path / "MNIST/raw"):
            assert f"{place}," in message or f"{place})" in message
        assert ".gz" in message
    for name, files in (
        ("cifar10", ["cifar-10-batches-py", "cifar-10-binary.tar.gz", "cifar10.zip"]),
        ("svhn", ["test_32x32.mat"]),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            data.describe(name, root=tmp_path)
        assert all(file in str(caught.value) for file in files)
    write_idx(tmp_path / "some", mark=".")
    (tmp_path / "some/t10k-images.idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte\.gz is missing .*t10k-images\.idx3-ubyte"):
        data.load("mnist", "test", root=tmp_path / "some")


def test_pairs_that_do_not_belong_together(tmp_path):
    write_idx(tmp_path, mark=".")
    (tmp_path / "train-labels.idx1-ubyte").write_bytes((tmp_path / "t10k-labels.idx1-ubyte").read_bytes())
    with pytest.raises(ValueError, match="12 images, but 11 labels"):
        data.load("mnist", "train", root=tmp_path)
    (tmp_path / "train-labels.idx1-ubyte").write_bytes((tmp_path / "train-images.idx3-ubyte").read_bytes())
    with pytest.raises(ValueError, match="magic number 2049"):
        data.load("mnist", "train", root=tmp_path)
    whole = gzip.compress((tmp_path / "t10k-images.idx3-ubyte").read_bytes())
    (tmp_path / "t10k-images.idx3-ubyte").unlink()
    (tmp_path / "t10k-images.idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"t10k-images\.idx3-ubyte\.gz.*fetch it again"):
        data.load("mnist", "test", root=tmp_path)


def test_the_variable_may_point_anywhere(tmp_path, monkeypatch, cache):
    write_idx(tmp_path / "home/data")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for value, says in (("file", "is no folder, but a file"), ("nowhere", "is no folder$")):
        monkeypatch.setenv("STABJAX_DATA", str(tmp_path / value))
        for look in (lambda: data.describe("mnist"), lambda: data.load("mnist", "test")):
            with pytest.raises(FileNotFoundError, match=f"STABJAX_DATA='.*{value}' {says}"):
                look()
    monkeypatch.setenv("STABJAX_DATA", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", "test")
    assert f"not in {tmp_path / 'empty'} or {cache}" in str(caught.value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STABJAX_DATA", "~/data")
    assert data.describe("mnist").path == tmp_path / "home/data"
    assert data.describe("mnist", root="~/data").path == tmp_path / "home/data"


def cifar_binary():
    rng = np.random.default_rng(2)
    told, files = {}, {}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images, labels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, 3)
        records = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels)]
        files[f"{name}.bin"] = b"".join(records)
        told.setdefault("test" if name == "test_batch" else "train", []).append((images, labels))
    return {split: tuple(map(np.concatenate, zip(*parts))) for split, parts in told.items()}, files


@pytest.mark.parametrize(
    "place", ["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10", "", "tar.gz", "tar"]
)
def test_binary_batches_of_cifar(tmp_path, place):
    told, files = cifar_binary()
    root = tmp_path / "root"
    if place.startswith("tar"):
        root.mkdir()
        with tarfile.open(root / f"cifar-10-binary.{place}", "w:gz" if place == "tar.gz" else "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        (root / place).mkdir(parents=True)
        for name, content in files.items():
            (root / place / name).write_bytes(content)
    assert_set("cifar10", told, root)
    source = data.describe("cifar10", root=root)
    assert (source.format, source.exact, source.note) == ("binary batches", True, "")


def test_damaged_binary_batches(tmp_path):
    _, files = cifar_binary()
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name, content in files.items():
        (tmp_path / "cifar-10-batches-bin" / name).write_bytes(content)
    path = tmp_path / "cifar-10-batches-bin/data_batch_4.bin"
    path.write_bytes(files["data_batch_4.bin"][:-1])
    with pytest.raises(ValueError, match=r"data_batch_4\.bin: expected records of 3073 bytes, got 9218"):
        data.load("cifar10", "train", root=tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4\.bin is missing, .*put it there"):
        data.load("cifar10", "train", root=tmp_path)
    data.load("cifar10", "test", root=tmp_path)
