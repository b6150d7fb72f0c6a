"""Pairs of arrays, and statistics of channels."""

import os
import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from stabjax import data
from stabjax.data import _named
from tests import ROOT
from tests.data.helpers import random_images


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
