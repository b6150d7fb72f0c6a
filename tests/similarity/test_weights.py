"""The weights of projection-weighted CCA: each kind against its definition in NumPy, on small and on hard sets."""

import itertools

import numpy as np
import pytest

from tests.similarity.sets import PWCCA, drawn

X = np.array([[0, 1], [1, 0], [2, 5], [3, 1], [5, 2]], np.float64)
Y = np.array([[1, 0], [0, 2], [3, 3], [1, 4], [2, 2]], np.float64)
WEIGHTS = ("paper", "google", "anatome")


def whitener(x):
    values, vectors = np.linalg.eigh(np.cov(x.T))
    return vectors @ np.diag(values**-0.5) @ vectors.T


def decomposed(x, y):
    """Coefficients of orthonormal variates, directions of the whitened units, and correlations."""
    a, b = (z - z.mean(0) for z in (x, y))
    left, correlations, _ = np.linalg.svd(whitener(x) @ a.T @ b / (len(x) - 1) @ whitener(y), full_matrices=False)
    return whitener(x) @ left / np.sqrt(len(x) - 1), left, correlations


def weighted(alpha, correlations):
    return (alpha * correlations).sum() / alpha.sum()


def anatome(x, y):
    """Sample by sample: how far each reaches along the orthonormalized coefficients."""
    coefficients, _, correlations = decomposed(x, y)
    basis, _ = np.linalg.qr(coefficients)
    alpha = np.zeros(len(correlations))
    for sample in x:
        for i in range(len(alpha)):
            alpha[i] += abs(sum(sample[j] * basis[j, i] for j in range(len(sample))))
    return weighted(alpha, correlations)


def google(x, y):
    """For every choice of the signs that a decomposition leaves open."""
    varying = x.std(0) > 0
    kept = x[:, varying]
    _, left, correlations = decomposed(kept, y)
    values = []
    for signs in itertools.product((1, -1), repeat=len(correlations)):
        directions = (kept - kept.mean(0)) @ (left * signs) + kept.mean(0)[: len(signs)]
        values.append(weighted(np.abs(np.linalg.qr(directions)[0].T @ x).sum(1), correlations))
    return np.array(values)


def test_anatome_weighs_by_activations_as_they_are(x64):
    np.testing.assert_allclose(PWCCA(X, Y, weights="anatome"), 0.7461613, atol=1e-6)
    np.testing.assert_allclose(PWCCA(X, Y), 0.7262402, atol=1e-6)
    for x, y in ((X, Y), (Y, X), [z + 3 for z in drawn(0)]):
        np.testing.assert_allclose(PWCCA(x, y, weights="anatome"), anatome(x, y), rtol=1e-9)


@pytest.mark.parametrize("dead", [[], [0, 3]])
def test_google_takes_the_means_of_units_that_vary(dead, x64):
    x, y = drawn(0, units=(4, 5))
    x = np.insert(x + 2, dead, 7.0, axis=1)
    assert np.abs(google(x, y) - np.asarray(PWCCA(x, y, weights="google"))).min() < 1e-10


@pytest.mark.parametrize("weights", WEIGHTS)
def test_scale_and_few_samples(weights):
    x, y = (z.astype(np.float32) for z in drawn(0))
    found = PWCCA(x, y, weights=weights)
    for scale in (1e-30, 1e37):
        np.testing.assert_allclose(PWCCA(x * np.float32(scale), y, weights=weights), found, rtol=1e-4)
    assert np.isnan(PWCCA(x[:3], y[:3], weights=weights))
    for blank in (np.zeros_like(x), np.full_like(x, np.nan)):
        assert np.isnan(PWCCA(blank, y, weights=weights))
