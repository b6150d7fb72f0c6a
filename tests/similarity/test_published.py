"""Published values of the measures of similarity."""

import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import similarity
from tests import GOLDEN_FOLDER

GOLDEN = dict(np.load(GOLDEN_FOLDER / "similarity.npz"))
NETWORKS = {"mnist": ("mnist_model{}_logits", "mnist_logits"), "svhn": ("svhn_model{}_fc200", "svhn_fc200")}


def pair(name):
    return [GOLDEN[NETWORKS[name][0].format(k)].astype(np.float64) for k in (0, 1)]


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_correlations(name, x64):
    found = similarity.cca(*pair(name))
    np.testing.assert_allclose(found.correlations, GOLDEN[f"{NETWORKS[name][1]}_coefficients"], atol=1e-6)
    assert found.valid
    assert found.count == len(found.correlations)


# value of 0 -> 1, of 1 -> 0
PWCCA = {
    ("mnist", "paper"): (0.807445, 0.798955),
    ("svhn", "paper"): (0.665171, 0.666192),
    ("mnist", "google"): (0.737201, 0.817963),
    ("svhn", "google"): (0.712649, None),
    ("mnist", "anatome"): (0.664291, None),
    ("svhn", "anatome"): (0.594523, None),
}


@pytest.mark.parametrize(("name", "weights"), PWCCA)
def test_golden_pwcca(name, weights, x64):
    x, y = pair(name)
    there, back = PWCCA[name, weights]
    np.testing.assert_allclose(similarity.pwcca(x, y, weights=weights), there, atol=1e-6)
    if back is not None:
        np.testing.assert_allclose(similarity.pwcca(y, x, weights=weights), back, atol=1e-6)


def test_golden_means(x64):
    np.testing.assert_allclose([similarity.cca(*pair(name)).mean for name in NETWORKS], [0.705726, 0.548182], atol=1e-6)


def test_golden_svcca(x64):
    found = similarity.svcca(*pair("svhn"), keep=int(GOLDEN["svcca_dims"]))
    expected = GOLDEN["svhn_fc200_svcca_top20_coefficients"]
    np.testing.assert_allclose(found.correlations[: len(expected)], expected, atol=1e-6)
    assert found.count == len(expected)
    np.testing.assert_array_equal(found.correlations[len(expected) :], 0)


def test_golden_cka(x64):
    for name, (_, golden) in NETWORKS.items():
        np.testing.assert_allclose(similarity.cka(*pair(name)), GOLDEN[f"{golden}_linear_cka"], rtol=1e-10)
    found = similarity.cka(*pair("svhn"), debiased=True)
    np.testing.assert_allclose(found, GOLDEN["svhn_fc200_linear_cka_debiased"], rtol=1e-10)


@pytest.mark.parametrize(("how", "key"), [("positions", "flatten"), ("average", "average_pool")])
def test_golden_maps(how, key, x64):
    x, y = (getattr(similarity, how)(GOLDEN[f"conv_{k}"]) for k in "ab")
    np.testing.assert_allclose(similarity.cca(x, y).correlations, GOLDEN[f"conv_{key}_coefficients"], atol=1e-6)


def test_golden_in_single_precision():
    for name, (_, golden) in NETWORKS.items():
        x, y = (z.astype(np.float32) for z in pair(name))
        found = similarity.cca(x, y)
        assert found.correlations.dtype == jnp.float32
        np.testing.assert_allclose(found.correlations, GOLDEN[f"{golden}_coefficients"], atol=2e-5)
        np.testing.assert_allclose(similarity.cka(x, y), GOLDEN[f"{golden}_linear_cka"], rtol=1e-5)
        np.testing.assert_allclose(similarity.pwcca(x, y), PWCCA[name, "paper"][0], atol=1e-5)
