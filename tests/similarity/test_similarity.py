"""Published values, laws and hard cases of the measures of similarity; NumPy in double precision as the other route."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from stabjax import similarity
from stabjax.similarity import _whiten
from tests import GOLDEN_FOLDER

GOLDEN = dict(np.load(GOLDEN_FOLDER / "similarity.npz"))
NETWORKS = {"mnist": ("mnist_model{}_logits", "mnist_logits"), "svhn": ("svhn_model{}_fc200", "svhn_fc200")}
SEEDS = st.integers(0, 2**31)


def pair(name):
    return [GOLDEN[NETWORKS[name][0].format(k)].astype(np.float64) for k in (0, 1)]


# Published values


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


# Other routes


def drawn(seed, n=60, units=(5, 4), shared=3):
    """Two sets that share some directions."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, shared))
    return [common @ rng.normal(size=(shared, u)) + rng.normal(size=(n, u)) for u in units]


def numpy_correlations(x, y):
    q = [np.linalg.qr(z - z.mean(0))[0] for z in (x, y)]
    return np.linalg.svd(q[0].T @ q[1], compute_uv=False)


@given(SEEDS)
@pytest.mark.parametrize("n", [60, 300])
def test_cca_by_qr(n, seed):
    x, y = drawn(seed, n)
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, similarity.cca(x, y))
        np.testing.assert_allclose(found.correlations, numpy_correlations(x, y), atol=1e-10)
        u, v = (x - found.x_mean) @ found.x_directions, (y - found.y_mean) @ found.y_directions
        for variates in (u, v):
            np.testing.assert_allclose(variates.T @ variates, np.eye(4), atol=1e-10)
        np.testing.assert_allclose(u.T @ v, np.diag(found.correlations), atol=1e-10)
        np.testing.assert_allclose(similarity.cca(x, y).mean, numpy_correlations(x, y).mean(), atol=1e-10)


def test_badly_conditioned_units_in_single_precision():
    """Where covariances would lose the small directions, the decomposition does not."""
    x, y = drawn(0, 4000, (6, 6), shared=4)
    tilt = np.diag(10.0 ** -np.arange(6)) @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    found = similarity.cca((x @ tilt).astype(np.float32), y.astype(np.float32))
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
        LARGE(x, y.astype(np.float32)).correlations, numpy_correlations(x.astype(float), y), atol=3e-5
    )


def test_factors_are_the_last_way_for_many_samples(monkeypatch):
    """Neither small directions nor dead units need them; beyond rounding nothing else will do."""
    original = _whiten._by_factors
    monkeypatch.setattr(_whiten, "_by_factors", lambda *args: jax.tree.map(jnp.zeros_like, original(*args)))
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
    found = LARGE(x, y)
    assert not found.x_varies[2]
    assert found.x_varies.sum() == found.x_rank == 4
    np.testing.assert_allclose(found.correlations, numpy_correlations(np.delete(x, 2, 1).astype(float), y), atol=3e-5)


LARGE = jax.jit(similarity.cca)


@given(SEEDS)
def test_pwcca_by_its_definition(seed):
    x, y = drawn(seed)
    with jax.enable_x64(True):
        result = jax.tree.map(np.asarray, similarity.cca(x, y))
        h, rho = (x - x.mean(0)) @ result.x_directions, np.asarray(result.correlations)
        alpha = np.abs(h.T @ (x - x.mean(0))).sum(1)
        np.testing.assert_allclose(similarity.pwcca(x, y), (alpha * rho).sum() / alpha.sum(), rtol=1e-10)


@given(SEEDS)
def test_svcca_is_cca_of_principal_components(seed):
    x, y = drawn(seed, units=(8, 7))
    reduced = []
    for z in (x, y):
        left, values, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
        count = np.argmax(np.cumsum(values**2) >= 0.9 * np.sum(values**2)) + 1
        reduced.append(left[:, :count])
    with jax.enable_x64(True):
        found = similarity.svcca(x, y, keep=0.9)
        mean, ranks = float(found.mean), (int(found.x_rank), int(found.y_rank))
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
        centring = np.eye(n) - 1 / n
        return np.trace(k @ centring @ m @ centring)
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
    np.testing.assert_allclose(similarity.cka(x, y, kernel=kernel, debiased=debiased), expected, rtol=1e-9)


def test_debiased_cka_of_independent_sets_is_about_zero():
    draw = partial(np.random.default_rng(0).normal, size=(50, 300))
    found = [similarity.cka(draw().astype(np.float32), draw().astype(np.float32), debiased=True) for _ in range(20)]
    biased = similarity.cka(draw().astype(np.float32), draw().astype(np.float32))
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(20)
    assert np.std(found) < 0.05
    assert biased > 0.8


@given(SEEDS)
@pytest.mark.parametrize("units", [(5, 4), (70, 80)])
def test_pls_and_procrustes_by_numpy(units, seed):
    x, y = drawn(seed, units=units)
    a, b = (z - z.mean(0) for z in (x, y))
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, similarity.pls(x, y))
        distance = np.asarray(similarity.procrustes(x, y))
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
        other = similarity.cca(x @ rng.normal(size=(5, 5)) + 7, y @ rng.normal(size=(4, 4)) - 3)
        np.testing.assert_allclose(other.correlations, similarity.cca(x, y).correlations, atol=1e-7)
        np.testing.assert_allclose(other.correlations, similarity.cca(y, x).correlations, atol=1e-7)


@given(SEEDS, st.floats(1e-3, 1e3))
@pytest.mark.parametrize("options", [{}, {"debiased": True}, {"kernel": "rbf"}, {"kernel": "rbf", "debiased": True}])
def test_cka_does_not_see_rotation_and_scale(options, seed, size):
    x, y = drawn(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(5, 5)))[0]
    with jax.enable_x64(True):
        cka = partial(similarity.cka, **options)
        np.testing.assert_allclose(cka(size * x @ rotation + 5, y), cka(x, y), rtol=1e-7)
        np.testing.assert_allclose(cka(y, x), cka(x, y), rtol=1e-9)
        np.testing.assert_allclose(
            similarity.procrustes(size * x @ rotation + 5, y), similarity.procrustes(x, y), rtol=1e-7
        )
        np.testing.assert_allclose(similarity.procrustes(size * x @ rotation, x), 0, atol=1e-9)


def test_cka_sees_other_maps(x64):
    x, y = drawn(0)
    assert abs(similarity.cka(x * np.array([10, 1, 1, 1, 1.0]), y) - similarity.cka(x, y)) > 0.01


# Hard cases

SHAPES = ((40, 6, 5), (12, 20, 3), (8, 9, 30), (200, 4, 4), (33, 1, 2))
KINDS = (
    "plain",
    "dead unit",
    "all dead",
    "duplicates",
    "rank deficient",
    "tiny",
    "huge",
    "mixed sizes",
    "far from zero",
    "nearly equal",
    "equal",
    "one sample differs",
)


def hard(kind, seed, shape):
    n, a, b = shape
    rng = np.random.default_rng(seed)
    x, y = (z.astype(np.float32) for z in drawn(seed, n, (a, b), shared=2))
    if kind == "dead unit":
        x[:, 0] = 0.1
    elif kind == "all dead":
        x[:] = rng.normal(size=a)
    elif kind == "duplicates":
        x[:, -1] = x[:, 0]
        y[:] = y[:, :1]
    elif kind == "rank deficient":
        x = (x[:, :1] @ rng.normal(size=(1, a)) + 3).astype(np.float32)
    elif kind == "tiny":
        x *= 1e-30
    elif kind == "huge":
        x *= 1e30
        y *= 1e25
    elif kind == "mixed sizes":
        x *= 10 ** rng.uniform(-12, 12, a).astype(np.float32)
    elif kind == "far from zero":
        x += 1e4
    elif kind == "nearly equal":
        y = np.resize(x, (b, n)).T if a != b else x + 1e-7 * y
    elif kind == "equal":
        y = x.copy()
    elif kind == "one sample differs":
        x[1:] = x[0]
    return x, np.asarray(y, np.float32)


def measured(x, y):
    found = similarity.cca(x, y)
    return {
        "correlations": found.correlations,
        "cca": (found.mean, found.valid),
        "svcca": (similarity.svcca(x, y).mean, similarity.svcca(x, y).valid),
        "pwcca": (similarity.pwcca(x, y), found.valid),
        **{
            f"cka {kernel} {debiased}": (similarity.cka(x, y, kernel=kernel, debiased=debiased), None)
            for kernel in ("linear", "rbf")
            for debiased in (False, True)
        },
        "pls": (similarity.pls(x, y).similarity, similarity.pls(x, y).valid),
        "procrustes": (1 - similarity.procrustes(x, y) / 2, None),
    }


MEASURED = jax.jit(measured)
FEW = pytest.mark.slow


@pytest.mark.parametrize("rounds", [1, pytest.param(9, marks=FEW)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hard_cases(shape, rounds):
    """Values in range or NaN with a reason, 1 for a set and itself, the same both ways: 60 cases, 600 in all."""
    for kind, seed in itertools.product(KINDS, range(rounds)):
        x, y = hard(kind, 100 * rounds + seed, shape)
        # A set that does not vary is not compared with anything.
        dead = [bool(np.all(z == z[:1])) for z in (x, y)]
        there, self = MEASURED(x, y), MEASURED(x, x)
        back = MEASURED(y, x)
        correlations = np.asarray(there.pop("correlations"))
        assert np.all((correlations >= 0) & (correlations <= 1)), (kind, seed)
        assert np.all(np.diff(correlations) <= 0), (kind, seed)
        for name, (value, valid) in there.items():
            case = (kind, seed, name, float(value))
            low = -1 if "True" in name else 0
            assert np.isnan(value) or low <= value <= 1, case
            if any(dead):
                assert np.isnan(value), case
            elif valid is None:
                assert np.isfinite(value), case
            if valid is not None:
                assert np.isfinite(value) == bool(valid), case
            if not dead[0] and self[name][1] in (None, True):
                np.testing.assert_allclose(self[name][0], 1, atol=2e-5, err_msg=str(case))
            if name != "pwcca" and np.isfinite(value):
                np.testing.assert_allclose(value, back[name][0], atol=1e-4, err_msg=str(case))


@pytest.mark.parametrize("units", [50, 200])
def test_too_few_samples_are_no_similarity(units):
    """With as many units as samples, CCA of any two sets is 1: that is said, and CKA without bias sees nothing."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(50, units)).astype(np.float32) for _ in range(2))
    found = similarity.cca(x, y)
    np.testing.assert_allclose(found.correlations[:49], 1, atol=1e-4)
    assert not found.valid
    assert np.isnan(found.mean)
    assert np.isnan(similarity.pwcca(x, y))
    assert similarity.svcca(x, y, keep=5).valid
    assert similarity.svcca(x, y, keep=5).mean < 0.8
    assert abs(similarity.cka(x, y, debiased=True)) < 0.2


def test_dropped_units_are_named_and_change_nothing(x64):
    x, y = drawn(0)
    dead = np.insert(x, [0, 3], 0.1, axis=1)
    twice = np.concatenate([dead, dead], axis=1)
    expected = similarity.cca(x, y)
    for case, rank in ((dead, 5), (twice, 5)):
        found = similarity.cca(case, y)
        np.testing.assert_allclose(found.correlations, expected.correlations, atol=1e-10)
        assert found.x_rank == rank
        assert np.flatnonzero(~np.asarray(found.x_varies)[:7]).tolist() == [0, 4]
        np.testing.assert_array_equal(np.asarray(found.x_directions)[0], 0)
        np.testing.assert_allclose(similarity.pwcca(dead, y), similarity.pwcca(x, y), rtol=1e-9)


def test_a_missing_value_is_said():
    x, y = (z.astype(np.float32) for z in drawn(0))
    x[3, 2] = np.nan
    found = similarity.cca(x, y)
    assert not found.valid
    assert np.isnan(found.mean)
    for value in (similarity.pwcca(x, y), similarity.cka(x, y), similarity.procrustes(x, y)):
        assert np.isnan(value)


# Samples of maps


def test_positions_and_averages():
    maps = np.random.default_rng(0).normal(size=(3, 5, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(similarity.positions(maps), maps.reshape(-1, 2))
    np.testing.assert_array_equal(similarity.positions(maps, every=2), maps[:, ::2, ::2].reshape(-1, 2))
    np.testing.assert_allclose(similarity.average(maps), maps.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (5, 6), (10, 2)])
def test_resizing_by_scipy(size):
    maps = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    shapes = list(zip(maps.shape[1:3], size, strict=True))
    corners = np.meshgrid(*[np.linspace(0, n, m, endpoint=False) for n, m in shapes], indexing="ij")
    centres = np.meshgrid(*[(np.arange(m) + 0.5) * n / m - 0.5 for n, m in shapes], indexing="ij")
    for convention, places in (("corners", corners), ("half_pixel", centres)):
        found = np.asarray(similarity.resized(maps, size, convention=convention))
        for k, channel in np.ndindex(2, 3):
            expected = ndimage.map_coordinates(maps[k, ..., channel], places, order=1, mode="nearest")
            np.testing.assert_allclose(found[k, ..., channel], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", [(4, 6), (3, 4)])
def test_fourier_by_a_loop_over_frequencies(other, x64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4, 6, 3)), rng.normal(size=(30, *other, 2))
    y[:, : other[0], : other[1]] += 2 * x[:, : other[0], : other[1], :2]
    found = similarity.fourier_cca(x, y)
    assert found.correlations.shape == (*other, 2)
    a, b = (np.fft.fft2(z, axes=(1, 2)) for z in (x, y))
    for row, column in np.ndindex(*other):
        frequency = [int(np.fft.fftfreq(n, 1 / n)[k]) for n, k in zip(other, (row, column), strict=True)]
        expected = numpy_complex(a[:, frequency[0], frequency[1]], b[:, frequency[0], frequency[1]])
        np.testing.assert_allclose(found.correlations[row, column], expected, atol=1e-9)


def numpy_complex(x, y):
    q = [np.linalg.qr(z - z.mean(0))[0] for z in (x, y)]
    return np.linalg.svd(q[0].conj().T @ q[1], compute_uv=False)


# Use


@pytest.mark.parametrize("dtypes", [(jnp.float16, jnp.float16), (jnp.float32, jnp.bfloat16)])
def test_half_precision_is_measured_in_single(dtypes):
    halves = [jnp.asarray(z, dtype) for z, dtype in zip(drawn(0, 200, (4, 4)), dtypes, strict=True)]
    found, expected = MEASURED(*halves), MEASURED(*(z.astype(jnp.float32) for z in halves))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5)
    maps = [jnp.reshape(z, (20, 5, 2, 4)) for z in halves]
    one, two = (similarity.fourier_cca(*z).mean for z in (maps, [m.astype(jnp.float32) for m in maps]))
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_jit_vmap_and_gradients(x64):
    many = np.stack([drawn(seed)[0] for seed in range(3)])
    y = drawn(0)[1]
    stacked = jax.jit(jax.vmap(lambda x: similarity.cca(x, y)))(many)
    assert stacked.mean.shape == (3,)
    for k in range(3):
        np.testing.assert_allclose(stacked.correlations[k], similarity.cca(many[k], y).correlations, atol=1e-10)
    large = drawn(1, 3000, (3, 2), shared=2)
    cases = [(f, many[0], y) for f in (similarity.cka, similarity.procrustes, similarity.pwcca)]
    for f, x, y in [*cases, (lambda x, y: similarity.cca(x, y).mean, *large)]:
        gradient = jax.grad(f)(x, y)
        step = np.random.default_rng(0).normal(size=x.shape)
        slope = (f(x + 1e-5 * step, y) - f(x - 1e-5 * step, y)) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * step), slope, rtol=1e-4, atol=1e-8)


FLOATS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.mark.parametrize("f", [similarity.cca, similarity.pwcca, similarity.cka, similarity.pls, similarity.procrustes])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (FLOATS, FLOATS[:5], "(?i)same samples|n=6"),
        (FLOATS[:1], FLOATS[:1], "at least 2 samples"),
        (FLOATS.astype(complex), FLOATS, "(?i)floating-point|Float"),
        (FLOATS.astype(int), FLOATS, "(?i)floating-point|Float"),
    ],
)
def test_wrong_activations(f, x, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        f(x, y)


def test_wrong_options():
    for keep in (0, -1, 0.0, 1.5, True):
        with pytest.raises(ValueError, match="expected keep"):
            similarity.svcca(FLOATS, FLOATS, keep=keep)
    with pytest.raises(ValueError, match="at least 4 samples"):
        similarity.cka(FLOATS[:3], FLOATS[:3], debiased=True)
    with pytest.raises(ValueError, match="expected every"):
        similarity.positions(FLOATS[:, :, None], every=0)
    with pytest.raises(ValueError, match="expected a size"):
        similarity.resized(FLOATS[:, :, None], (3, 3))
    with pytest.raises((TypeError, ValueError), match=r"same images|n=6"):
        similarity.fourier_cca(FLOATS[:, :, None], FLOATS[:4, :, None])
