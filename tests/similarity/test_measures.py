"""The measures of similarity by other routes, in NumPy and double precision, and the laws they keep to."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabjax import similarity
from stabjax.similarity import _bases
from tests.similarity.sets import CCA, CKA, PLS, PROCRUSTES, PWCCA, SEEDS, SVCCA, drawn, mean_of, numpy_correlations

# Other routes


@given(SEEDS)
@pytest.mark.parametrize("n", [60, 300])
def test_cca_by_qr(n, seed):
    x, y = drawn(seed, n)
    with jax.enable_x64(True):
        result = CCA(x, y)
        found = jax.tree.map(np.asarray, result)
        np.testing.assert_allclose(found.correlations, numpy_correlations(x, y), atol=1e-10)
        u, v = (x - found.x_mean) @ found.x_directions, (y - found.y_mean) @ found.y_directions
        for variates in (u, v):
            np.testing.assert_allclose(variates.T @ variates, np.eye(4), atol=1e-10)
        np.testing.assert_allclose(u.T @ v, np.diag(found.correlations), atol=1e-10)
        np.testing.assert_allclose(mean_of(result), numpy_correlations(x, y).mean(), atol=1e-10)


def test_badly_conditioned_units_in_single_precision():
    """Where covariances would lose the small directions, the decomposition does not."""
    x, y = drawn(0, 4000, (6, 6), shared=4)
    tilt = np.diag(10.0 ** -np.arange(6)) @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    found = CCA((x @ tilt).astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(found.correlations, numpy_correlations(x, y), atol=3e-3)
    assert found.x_rank == 6


def sorted_by_a_unit(x, seen):
    return x[np.argsort(x[:, 0])]


def seen_elsewhere(x, seen):
    return np.where(seen, x - 100, x)


def seen_still(x, seen):
    return np.where(seen, 7, x)


def seen_tiny(x, seen):
    return np.where(seen, 1e-30 * x, x)


def seen_still_others_tiny(x, seen):
    return np.where(seen, 0, 1e-19 * x)


def an_outlier(x, seen):
    return np.where(np.arange(len(x))[:, None] == 2001, 300, x)


@pytest.mark.parametrize(
    "change", [sorted_by_a_unit, seen_elsewhere, seen_still, seen_tiny, seen_still_others_tiny, an_outlier]
)
def test_many_samples_unlike_those_that_are_seen_first(change):
    """Of many samples some show the scale; no set is measured worse because they are not like the others."""
    x, y = drawn(2, 5000)
    x = change(x, (np.arange(5000) % 4 == 0)[:, None]).astype(np.float32)
    np.testing.assert_allclose(
        CCA(x, y.astype(np.float32)).correlations, numpy_correlations(x.astype(float), y), atol=3e-5
    )


def test_qr_is_the_last_route_for_many_samples(monkeypatch):
    """Neither small directions nor dead units need them; beyond rounding nothing else will do."""
    original = _bases._bases_by_qr
    monkeypatch.setattr(_bases, "_bases_by_qr", lambda *args: jax.tree.map(jnp.zeros_like, original(*args)))
    without = jax.jit(lambda x, y: similarity.cca(x, y).correlations)
    rng = np.random.default_rng(5)
    for spread, dead, found in ((0, 0, True), (2.5, 0, True), (2.5, 2, True), (4.5, 0, False)):
        x, y = drawn(4, 6007, (6, 5), shared=4)
        tilt = np.diag(10 ** -np.linspace(0, spread, 6)) @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
        x, y = (x @ tilt).astype(np.float32), y.astype(np.float32)
        x[:, 6 - dead :] = 3.3
        correlations = np.asarray(without(x, y))
        if found:
            expected = numpy_correlations(x[:, : 6 - dead].astype(float), y)[:5]
            np.testing.assert_allclose(correlations[: len(expected)], expected, atol=1e-5)
        np.testing.assert_array_equal(correlations[5 if not dead else 4 :] if found else correlations, 0)


def test_a_constant_among_many_samples_is_dropped():
    """Also where the mean of equal numbers is not that number."""
    x, y = (z.astype(np.float32) for z in drawn(3, 5000))
    x[:, 2] = 0.1
    found = jax.tree.map(np.asarray, CCA(x, y))
    assert not found.x_varies[2]
    assert found.x_varies.sum() == found.x_rank == 4
    np.testing.assert_allclose(found.correlations, numpy_correlations(np.delete(x, 2, 1).astype(float), y), atol=3e-5)


@given(SEEDS)
def test_pwcca_by_its_definition(seed):
    x, y = drawn(seed)
    with jax.enable_x64(True):
        result = jax.tree.map(np.asarray, CCA(x, y))
        h, rho = (x - x.mean(0)) @ result.x_directions, np.asarray(result.correlations)
        alpha = np.abs(h.T @ (x - x.mean(0))).sum(1)
        np.testing.assert_allclose(PWCCA(x, y), (alpha * rho).sum() / alpha.sum(), rtol=1e-10)


@given(SEEDS)
def test_svcca_is_cca_of_principal_components(seed):
    x, y = drawn(seed, units=(8, 7))
    reduced = []
    for z in (x, y):
        left, values, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
        count = np.argmax(np.cumsum(values**2) >= 0.9 * np.sum(values**2)) + 1
        reduced.append(left[:, :count])
    with jax.enable_x64(True):
        found = SVCCA(x, y, keep=0.9)
        mean, ranks = float(mean_of(found)), (int(found.x_rank), int(found.y_rank))
    expected = numpy_correlations(*reduced)
    assert ranks == tuple(r.shape[1] for r in reduced)
    np.testing.assert_allclose(found.correlations[: len(expected)], expected, atol=1e-10)
    np.testing.assert_allclose(mean, expected.mean(), atol=1e-10)


def kernel_matrix(z, kernel):
    if kernel == "linear":
        return z @ z.T
    distances = np.square(z[:, None] - z[None]).sum(-1)
    return np.exp(-distances / (2 * np.median(distances[np.triu_indices(len(z), 1)])))


def hsic(k, m, debiased):
    n = len(k)
    if not debiased:
        centering = np.eye(n) - 1 / n
        return np.trace(k @ centering @ m @ centering)
    # The definition: all quadruples of different samples.
    total = 0.0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    return total


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("units", [(2, 3), (9, 12)])
def test_cka_by_its_definition(units, kernel, debiased, x64):
    x, y = drawn(3, 8, units)
    k, m = (kernel_matrix(z, kernel) for z in (x, y))
    expected = hsic(k, m, debiased) / np.sqrt(hsic(k, k, debiased) * hsic(m, m, debiased))
    np.testing.assert_allclose(CKA(x, y, kernel=kernel, debiased=debiased), expected, rtol=1e-9)


def test_debiased_cka_of_independent_sets_is_about_zero():
    draw = partial(np.random.default_rng(0).normal, size=(50, 300))
    found = [CKA(draw().astype(np.float32), draw().astype(np.float32), debiased=True) for _ in range(20)]
    biased = CKA(draw().astype(np.float32), draw().astype(np.float32))
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(20)
    assert np.std(found) < 0.05
    assert biased > 0.8


@given(SEEDS)
@pytest.mark.parametrize(("n", "units"), [(60, (5, 4)), (20, (22, 24))])
def test_pls_and_procrustes_by_numpy(n, units, seed):
    x, y = drawn(seed, n, units)
    a, b = (z - z.mean(0) for z in (x, y))
    with jax.enable_x64(True):
        found, distance = jax.tree.map(np.asarray, (PLS(x, y), PROCRUSTES(x, y)))
    left, values, right = np.linalg.svd(a.T @ b / (len(x) - 1), full_matrices=False)
    k = len(found.covariances)
    np.testing.assert_allclose(found.covariances, values[:k], atol=1e-9 * values[0])
    np.testing.assert_allclose(
        found.x_directions.T @ (a.T @ b) @ found.y_directions, np.diag(found.covariances) * (len(x) - 1), atol=1e-8
    )
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    rotation = left @ right
    np.testing.assert_allclose(found.similarity, np.sum(np.linalg.svd(a.T @ b, compute_uv=False)), rtol=1e-9)
    np.testing.assert_allclose(distance, 2 - 2 * np.sum(a.T @ b * rotation), rtol=1e-9)


# Laws


@given(SEEDS)
def test_cca_does_not_see_invertible_maps(seed):
    x, y = drawn(seed)
    rng = np.random.default_rng(seed + 1)
    with jax.enable_x64(True):
        other = CCA(x @ rng.normal(size=(5, 5)) + 7, y @ rng.normal(size=(4, 4)) - 3)
        np.testing.assert_allclose(other.correlations, CCA(x, y).correlations, atol=1e-7)
        np.testing.assert_allclose(other.correlations, CCA(y, x).correlations, atol=1e-7)


@given(SEEDS, st.floats(1e-3, 1e3))
@pytest.mark.parametrize("options", [{}, {"debiased": True}, {"kernel": "rbf"}, {"kernel": "rbf", "debiased": True}])
def test_cka_does_not_see_rotation_and_scale(options, seed, size):
    x, y = drawn(seed, units=(5, 5))
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(5, 5)))[0]
    with jax.enable_x64(True):
        cka = partial(CKA, **options)
        np.testing.assert_allclose(cka(size * x @ rotation + 5, y), cka(x, y), rtol=1e-7)
        np.testing.assert_allclose(cka(y, x), cka(x, y), rtol=1e-9)
        np.testing.assert_allclose(PROCRUSTES(size * x @ rotation + 5, y), PROCRUSTES(x, y), rtol=1e-7)
        np.testing.assert_allclose(PROCRUSTES(size * x @ rotation, x), 0, atol=1e-9)


def test_cka_sees_other_maps(x64):
    x, y = drawn(0)
    assert abs(float(CKA(x * np.array([10, 1, 1, 1, 1.0]), y)) - float(CKA(x, y))) > 0.01
