"""Samples made of maps: positions, averages, interpolation, frequencies."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from stabjax import similarity
from tests.similarity.sets import FOURIER


def test_positions_and_averages():
    maps = np.random.default_rng(0).normal(size=(3, 5, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(similarity.positions(maps), maps.reshape(-1, 2))
    np.testing.assert_array_equal(similarity.positions(maps, every=2), maps[:, ::2, ::2].reshape(-1, 2))
    np.testing.assert_allclose(similarity.average(maps), maps.mean((1, 2)), rtol=1e-5, atol=1e-6)


resized = jax.jit(similarity.resized, static_argnums=1, static_argnames="convention")


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (5, 6), (10, 2)])
def test_resizing_by_scipy(size):
    maps = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    shapes = list(zip(maps.shape[1:3], size, strict=True))
    corners = np.meshgrid(*[np.linspace(0, n, m, endpoint=False) for n, m in shapes], indexing="ij")
    centers = np.meshgrid(*[(np.arange(m) + 0.5) * n / m - 0.5 for n, m in shapes], indexing="ij")
    for convention, places in (("corners", corners), ("half_pixel", centers)):
        found = np.asarray(resized(maps, size, convention=convention))
        for k, channel in np.ndindex(2, 3):
            expected = ndimage.map_coordinates(maps[k, ..., channel], places, order=1, mode="nearest")
            np.testing.assert_allclose(found[k, ..., channel], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", [pytest.param((4, 6), marks=pytest.mark.slow), (3, 4)])
def test_fourier_by_a_loop_over_frequencies(other, x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4, 6, 3)), rng.normal(size=(30, *other, 2))
    y[:, : other[0], : other[1]] += 2 * x[:, : other[0], : other[1], :2]
    correlations = np.asarray(FOURIER(x, y).correlations)
    assert correlations.shape == (*other, 2)
    a, b = (np.fft.fft2(z, axes=(1, 2)) for z in (x, y))
    for row, column in np.ndindex(*other):
        frequency = [int(np.fft.fftfreq(n, 1 / n)[k]) for n, k in zip(other, (row, column), strict=True)]
        expected = numpy_complex(a[:, frequency[0], frequency[1]], b[:, frequency[0], frequency[1]])
        np.testing.assert_allclose(correlations[row, column], expected, atol=1e-9)


def numpy_complex(x, y):
    q = [np.linalg.qr(z - z.mean(0))[0] for z in (x, y)]
    return np.linalg.svd(q[0].conj().T @ q[1], compute_uv=False)
