"""Decoded images on disk: once, whole or not at all, by several processes."""

import functools
import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from stabjax import data
from stabjax.data import _cache
from tests import ROOT
from tests.data.helpers import assert_set, cut, image_members, write_tar


def test_decoding_happens_once(tmp_path, rng, monkeypatch):
    members, told = image_members(rng)
    write_tar(tmp_path / "cifar10.tar.xz", members)
    assert_set("cifar10", told, tmp_path)
    monkeypatch.setattr("stabjax.data._images.decode_image", None)  # no image may be decoded again
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
decode, seen = _images.decode_image, []
def decode_image(*args, **options):
    seen.append(1)
    if len(seen) == int(sys.argv[2]):
        import os
        os._exit(9)
    return decode(*args, **options)
_images.decode_image = decode_image
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
