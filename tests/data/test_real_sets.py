"""The real sets, where they are."""

import contextlib
import hashlib
import io
import time

import numpy as np
import pytest
from PIL import Image

from stabjax import data
from stabjax.data import _formats
from tests.data.helpers import idx_bytes, needs_real


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
