"""Streams of image folders: every image once in the drawn order, a few batches ahead, and nothing left running."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from stabjax import data
from stabjax.data import _images
from tests import ROOT
from tests.data.helpers import encoded, write_zip

COUNTS = {"b": 4, "a": 3, "c": 6}


def write(root, members):
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def path(tmp_path, rng):
    """Thirteen images of three classes."""
    names = [f"{name}/{k}.png" for name, count in COUNTS.items() for k in range(count)]
    return write(
        tmp_path / "set", {name: encoded(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8), "PNG") for name in names}
    )


def whole(stream):
    """Images and labels of all batches, in the order in which they come."""
    images, labels = zip(*stream)
    return np.concatenate(images), np.concatenate(labels)


def fail_at_the_first_batch(stream):
    for _ in stream:
        raise KeyError


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("stabjax-stream")]


@pytest.mark.parametrize("workers", [1, 5])
def test_every_image_once_in_the_drawn_order(path, workers):
    stream = data.stream(path, seed=3, batch_size=4, threads=workers)
    images, labels = whole(stream)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    assert stream.shape == (6, 5, 3)
    assert stream.count == 13
    # Each against its own file, and all together, sorted back, against the whole folder.
    for image, label, name in zip(images, labels, stream.names, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(path / name)))
        assert stream.classes[label] == name.split("/")[0]
    back = np.argsort(stream.names)
    for streamed, read in zip((images, labels), data.folder_bytes(path), strict=True):
        np.testing.assert_array_equal(streamed[back], read)
    np.testing.assert_array_equal(stream.labels, labels)
    assert stream.classes == data.folder_classes(path) == ("a", "b", "c")


def test_the_seed_decides_the_order(path):
    stream = data.stream(path, seed=3)
    assert data.stream(path, seed=3).names == stream.names
    assert data.stream(path, seed=4).names != stream.names
    in_order = data.stream(path, seed=None)
    assert list(in_order.names) == sorted(in_order.names)
    np.testing.assert_array_equal(whole(in_order)[0], data.folder_bytes(path)[0])
    # The same on every machine, so these are published numbers.
    places = np.random.default_rng(3).permutation(13)
    assert [in_order.names.index(name) for name in stream.names] == places.tolist()


def test_so_many_images(path):
    images, labels = data.folder_bytes(path)
    stream = data.stream(path, seed=3, count=5)
    assert stream.count == 5
    chosen = data.subset(13, 5, seed=3)
    back = np.argsort(stream.names)
    np.testing.assert_array_equal(whole(stream)[0][back], images[chosen])
    np.testing.assert_array_equal(stream.labels[back], labels[chosen])
    np.testing.assert_array_equal(whole(data.stream(path, seed=None, count=5))[0], images[:5])
    assert data.stream(path, seed=3, count=99).count == 13


def test_batches_and_loops(path):
    stream = data.stream(path, seed=0, batch_size=5)
    first = list(stream)
    assert [len(images) for images, _ in first] == [len(labels) for _, labels in first] == [5, 5, 3]
    assert len(stream) == 3
    assert len(data.stream(path, seed=0, batch_size=13)) == len(data.stream(path, seed=0, batch_size=99)) == 1
    told, labels = whole(first)
    for images, numbers in first:  # they belong to the consumer
        images[:], numbers[:] = 0, -1
    # Two loops at once do not take images from each other.
    for each in (stream, *zip(*zip(stream, stream))):
        again, numbers = whole(each)
        np.testing.assert_array_equal(again, told)
        np.testing.assert_array_equal(numbers, labels)
    assert repr(stream) == "Stream(13 images 6x5x3 of 3 classes in 3 batches)"


def test_nothing_runs_on_after_a_loop(path):
    stream = data.stream(path, seed=0, batch_size=1, threads=3)
    files = len(os.listdir("/dev/fd"))
    for _ in stream:
        assert threads()
        break
    assert not threads()
    iterator = iter(stream)
    next(iterator)
    assert threads()
    iterator.close()
    assert not threads()
    with pytest.raises(KeyError):
        fail_at_the_first_batch(stream)
    assert not threads()
    assert len(list(stream)) == 13
    assert not threads()
    assert len(os.listdir("/dev/fd")) == files


@pytest.mark.slow
def test_the_interpreter_ends_with_an_open_iterator(path):
    code = "import sys; from stabjax import data; iterator = iter(data.stream(sys.argv[1], seed=0)); next(iterator)"
    run = [sys.executable, "-c", code, str(path)]
    ended = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert b"Exception ignored" not in ended.stderr


def test_an_early_end_does_not_decode_what_waits(path, monkeypatch):
    decode, calls, goes_on = _images.decode_image, [], threading.Event()
    stream = data.stream(path, seed=0, batch_size=4, threads=2)

    def hold(content, source, name, **options):
        calls.append(name)
        assert name in stream.names[:4] or goes_on.wait(5)
        return decode(content, source, name, **options)

    monkeypatch.setattr(_images, "decode_image", hold)
    iterator = iter(stream)
    next(iterator)
    threading.Timer(0.2, goes_on.set).start()
    iterator.close()
    # Four of the first batch, and one that each of the two threads had begun, of the eight that were handed to them.
    assert len(calls) <= 6


def test_a_broken_image_raises_where_its_batch_is_due(path):
    stream = data.stream(path, seed=1, batch_size=3)
    for place in (8, 7):
        (path / stream.names[place]).write_bytes(b"not an image")
    batches = []
    with pytest.raises(ValueError, match=rf"set: cannot read the image '{stream.names[7]}': .*Replace or remove it"):
        batches.extend(stream)
    assert not threads()
    iterator = iter(stream)
    assert [next(iterator)[1].tolist() for _ in range(2)] == stream.labels[:6].reshape(2, 3).tolist()
    iterator.close()
    (path / stream.names[2]).unlink()
    with pytest.raises(OSError, match=rf"cannot open the image '{stream.names[2]}'.*make the stream anew"):
        next(iter(stream))
    assert not threads()


def test_images_of_several_sizes(tmp_path, rng):
    def image(*shape):
        return encoded(rng.integers(0, 256, shape, dtype=np.uint8), "PNG")

    path = write(tmp_path / "set", {"a/0.png": image(8, 8, 3), "a/1.png": image(8, 8, 3), "b/0.png": image(9, 12, 3)})
    stream = data.stream(path, seed=None, batch_size=1)
    batches = iter(stream)
    assert next(batches)[0].shape == next(batches)[0].shape == (1, 8, 8, 3)
    with pytest.raises(
        ValueError, match=r"one size, got \(8, 8, 3\) for 'a/0.png' and \(9, 12, 3\) for 'b/0.png'; pass size="
    ):
        next(batches)
    for options in ({"size": 4}, {"size": (5, 7), "fit": "stretch"}):
        stream = data.stream(path, seed=None, **options)
        np.testing.assert_array_equal(whole(stream)[0], data.folder_bytes(path, **options)[0])


def test_kinds_of_pixels(tmp_path, rng):
    shapes = {"0/gray.png": (4, 4), "1/color.png": (4, 4, 3), "2/clear.png": (4, 4, 4)}
    members = {name: encoded(rng.integers(0, 256, shape, dtype=np.uint8), "PNG") for name, shape in shapes.items()}
    path = write(tmp_path / "set", members)
    for channels in (1, 3, 4):
        stream = data.stream(path, seed=None, channels=channels)
        assert stream.shape == (4, 4, channels)
        np.testing.assert_array_equal(whole(stream)[0], data.folder_bytes(path, channels=channels)[0])
        # Without `channels` a set is what its images are, if they are of one kind.
        name = list(members)[[1, 3, 4].index(channels)]
        write(tmp_path / f"only{channels}", {name: members[name]})
        assert data.stream(tmp_path / f"only{channels}", seed=0).shape == (4, 4, channels)
    with pytest.raises(ValueError, match=r"one channels, .*'0/gray.png'.*'1/color.png'; pass channels="):
        list(data.stream(path, seed=None))


def test_splits_and_classes(tmp_path, rng):
    image = encoded(rng.integers(0, 256, (2, 2), dtype=np.uint8), "PNG")
    path = write(tmp_path / "set", dict.fromkeys(("train/a/0.png", "train/b/0.png", "test/b/0.png"), image))
    stream = data.stream(path, seed=0, split="test")
    assert stream.classes == ("a", "b")
    assert stream.labels.tolist() == whole(stream)[1].tolist() == [1]
    stream = data.stream(path, seed=None, split="train", classes=("b", "x", "a"))
    assert whole(stream)[1].tolist() == [2, 0]


def test_wrong_input(path, tmp_path):
    for option in ("batch_size", "count", "threads"):
        with pytest.raises(ValueError, match=f"expected {option} >= 1, got 0"):
            data.stream(path, seed=0, **{option: 0})
    write_zip(tmp_path / "set.zip", {"a/0.png": b""})
    with pytest.raises(
        ValueError, match=r"set.zip: expected a folder, got a file; unpack the archive, or read it with"
    ):
        data.stream(tmp_path / "set.zip", seed=0)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.stream(tmp_path / "nowhere", seed=0)
    with pytest.raises(FileNotFoundError, match="no folder 'val'"):
        data.stream(path, seed=0, split="val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in it"):
        data.stream(tmp_path / "empty", seed=0)
    with pytest.raises(ValueError, match="fit 'crop' or 'stretch'"):
        data.stream(path, seed=0, fit="pad")


@pytest.mark.parametrize(("batch_size", "workers", "ahead"), [(2, 2, 2), (1, 3, 4), (5, 1, 2)])
def test_no_more_than_a_few_batches_are_decoded_ahead(path, monkeypatch, batch_size, workers, ahead):
    decode, calls = _images.decode_image, []

    def record(*args, **options):
        calls.append(threading.current_thread().name)
        return decode(*args, **options)

    monkeypatch.setattr(_images, "decode_image", record)
    stream = data.stream(path, seed=0, batch_size=batch_size, size=6, channels=3, threads=workers)
    assert stream.ahead == ahead
    batches = iter(stream)
    assert not calls  # nothing is decoded before it is asked for
    for k, _ in enumerate(batches):
        due = min(13, (k + 1 + ahead) * batch_size)
        end = time.monotonic() + 5
        while len(calls) < due and time.monotonic() < end:
            time.sleep(1e-3)
        time.sleep(5e-3)  # more would come now
        assert len(calls) == due
    assert len(set(calls)) <= workers


@pytest.mark.parametrize("batch_size", [1, 13])
def test_threads_decode_at_the_same_time(path, monkeypatch, batch_size):
    decode = _images.decode_image
    # Opens when three threads wait at it; with fewer at work it would raise.
    barrier = threading.Barrier(3, timeout=5)

    def together(*args, **options):
        barrier.wait()
        return decode(*args, **options)

    stream = data.stream(path, seed=0, count=12, batch_size=batch_size, threads=3)
    monkeypatch.setattr(_images, "decode_image", together)
    assert len(whole(stream)[0]) == 12
