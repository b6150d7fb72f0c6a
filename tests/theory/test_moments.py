"""Moments and noise numerators in closed form against published values, runs over all images, and simulation."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from stabjax import theory
from tests import GOLDEN_FOLDER
from tests.theory.chains import mean_and_error, published_size, run, sphere

GOLDEN = dict(np.load(GOLDEN_FOLDER / "constant_filters.npz"))
NETS = sorted({name[:5] for name in GOLDEN})


# Moments


@pytest.mark.parametrize("net", NETS)
def test_published_moments(net):
    kernel, stride, (size, depth) = int(net[1]), int(net[4]), (int(GOLDEN[f"{net}_{n}"]) for n in ("size", "depth"))
    assert size == published_size(kernel, stride, depth)
    deformation, denominators = theory.constant_filter_moments(kernel, stride, depth, size)
    np.testing.assert_allclose(deformation, GOLDEN[f"{net}_deformation_numerator"], rtol=0, atol=1e-12)
    small = 1e-10  # the published code adds it to the denominator
    np.testing.assert_allclose(denominators + small, GOLDEN[f"{net}_denominator"], rtol=0, atol=1e-12)

    x = np.eye(size)
    clean = run(x, kernel, stride, depth)
    noisy = run(np.maximum(x + GOLDEN[f"{net}_noise_unit"], 0), kernel, stride, depth)
    expected = theory.rectified_noise_numerators(kernel, stride, depth, size)
    for a, b, published, closed in zip(clean, noisy, GOLDEN[f"{net}_noise_numerator"], expected):
        mean, error = mean_and_error(np.sum((b - a) ** 2, axis=1))
        np.testing.assert_allclose(mean, published, rtol=0, atol=1e-10 * max(1, published))
        assert abs(published - closed) < 3 * error


FINITE = [
    (3, 1, 8, 20),
    (5, 1, 6, 7),
    (4, 1, 5, 30),
    (2, 2, 5, 65),
    (2, 2, 8, 513),
    (3, 2, 7, 10),
    (3, 2, 4, 64),
    (4, 2, 4, 95),
    (5, 2, 9, 33),
    (8, 2, 4, 100),
    (3, 3, 3, 61),
    (4, 3, 4, 130),
    (6, 4, 3, 50),
    (1, 1, 3, 5),
    (3, 2, 2, 1),
]


@pytest.mark.parametrize("net", FINITE, ids=str)
def test_moments_equal_a_run_over_all_images(net):
    kernel, stride, depth, size = net
    deformation, denominators = theory.constant_filter_moments(*net)
    x = np.eye(size)
    layers = zip(run(x, kernel, stride, depth), run(np.roll(x, 1, axis=1), kernel, stride, depth))
    for k, (clean, moved) in enumerate(np.maximum(layer, 0) for layer in layers):
        pairs = [np.mean(np.sum((clean - one) ** 2, axis=1)) for one in clean]
        np.testing.assert_allclose(denominators[k], np.mean(pairs), rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(
            deformation[k], np.mean(np.sum((moved - clean) ** 2, axis=1)), rtol=1e-10, atol=1e-15
        )


def test_moments_of_deep_networks():
    """The field is far larger than the signal, of which one unit is left, that each layer copies with weight 2/3."""
    for moments in theory.constant_filter_moments(3, 2, 40, 64):
        np.testing.assert_allclose(moments[10:] / moments[9:-1], 4 / 9, rtol=1e-10)


def test_moments_of_long_signals():
    """Near the limit of an infinite chain; doubling the signal halves the distance to it."""
    for kernel, stride in [(3, 1), (5, 1), (2, 2), (4, 2), (3, 2), (5, 2), (6, 3)]:
        limit = theory.infinite_chain(kernel, stride, 5)
        for got, expected in zip(
            theory.constant_filter_moments(kernel, stride, 5, 120_000),
            (limit.deformation_numerators, limit.denominators),
        ):
            assert got.dtype == np.float64
            np.testing.assert_allclose(got, expected, rtol=2e-2)
        noise = theory.rectified_noise_numerators(kernel, stride, 5, 120_000)
        np.testing.assert_allclose(noise, limit.noise_numerators, rtol=2e-2)


# Noise at the input


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "values"),
    [
        (3, 1, 20, [0.5166, 0.4294, 0.3887, 0.3622]),
        (2, 2, 65, [1.3035, 1.9111, 3.1262, 5.5563, 10.417]),
        (3, 2, 128, [1.0818, 1.6657, 2.8280, 4.9745]),
        (4, 2, 95, [0.9549, 1.4714, 2.4588, 3.9626]),
    ],
)
def test_rectified_noise(kernel, stride, size, values):
    depth = len(values)
    numerators = theory.rectified_noise_numerators(kernel, stride, depth, size)
    np.testing.assert_allclose(numerators, values, rtol=1.5e-4)
    np.testing.assert_allclose(
        theory.rectified_noise_numerators(kernel, stride, depth, size, radius=0.1), numerators / 200, rtol=1e-12
    )
    x = np.tile(np.eye(size), (20_000 // size, 1))
    noise = sphere(len(x), size, 0.5)  # where no lit pixel is ever put out
    noisy = run(np.maximum(x + noise, 0), kernel, stride, depth)
    for expected, a, b in zip(numerators / 8, run(x, kernel, stride, depth), noisy):
        mean, error = mean_and_error(np.sum((b - a) ** 2, axis=1))
        assert abs(mean - expected) < 3 * error


# Noise behind a bias

BIAS_STUDY = (3, 2, 4, 64)


def by_quadrature(kernel, stride, depth, size, bias, radius):
    """Pair by pair of first-layer units, for every lit pixel, integrating over one on both sides of its kink."""
    first = np.array(list(run(np.eye(size), kernel, stride, 1)))[0].T
    later = np.array(list(run(np.eye(len(first)), kernel, stride, depth - 1))[-1]).T
    covariance = radius**2 / size * first @ first.T
    spread = np.sqrt(np.diag(covariance))
    rho = covariance / np.outer(spread, spread)
    nodes, weights = np.polynomial.legendre.leggauss(80)
    total = 0.0
    for p in range(size):
        clean = first[:, p] + bias
        kinks = np.clip(-clean / spread, -10, 10)
        ends = np.stack([np.full_like(kinks, -10), kinks, np.full_like(kinks, 10)])
        half, middle = np.diff(ends, axis=0) / 2, (ends[1:] + ends[:-1]) / 2
        t = half[..., None] * nodes + middle[..., None]  # (below or above, units, nodes)
        w = half[..., None] * weights * np.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
        change = np.maximum(clean[:, None] + spread[:, None] * t, 0) - clean[:, None]
        moments = np.diag(np.sum(w * change**2, axis=(0, 2)))
        for j, k in itertools.permutations(range(len(first)), 2):
            mean = clean[k] + rho[j, k] * spread[k] * t[:, j]
            rest = spread[k] * math.sqrt(1 - rho[j, k] ** 2)
            cdf = np.vectorize(math.erfc)(-mean / rest / math.sqrt(2)) / 2
            expected = mean * cdf + rest * np.exp(-((mean / rest) ** 2) / 2) / math.sqrt(2 * math.pi)
            moments[j, k] = np.sum(w[:, j] * change[:, j] * (expected - clean[k]))
        total += np.trace(later @ moments @ later.T)
    return total / size


@pytest.mark.parametrize("net", [(3, 2, 3, 12), (5, 1, 2, 6), (4, 2, 2, 9)], ids=str)
def test_raw_noise_by_quadrature(net):
    bias, radius = np.array([0.0, 0.05, 0.3]), np.array([0.5, 0.2, 8.0])
    expected = [by_quadrature(*net, b, r) for b, r in zip(bias, radius)]
    np.testing.assert_allclose(theory.raw_noise_numerator(*net, bias=bias, radius=radius), expected, rtol=1e-10)


def test_raw_noise_by_simulation():
    """On the sphere, and Gaussian, which is what the formula is exact for."""
    kernel, stride, depth, size = BIAS_STUDY
    x = np.tile(np.eye(size), (300, 1))
    normal = np.random.default_rng(1).normal(size=x.shape) / math.sqrt(size)
    for noise, bias, radius in itertools.product((normal, sphere(len(x), size, 1.0)), (0.0, 0.1), (0.5, 3.0, 30.0)):
        expected = theory.raw_noise_numerator(*BIAS_STUDY, bias=bias, radius=radius)
        *_, clean = run(x, kernel, stride, depth, bias=bias)
        *_, noisy = run(x + radius * noise, kernel, stride, depth, bias=bias)
        mean, error = mean_and_error(np.sum((noisy - clean) ** 2, axis=1))
        assert abs(mean - expected) < 3 * error
        assert error < 0.02 * mean


def test_known_raw_noise():
    """Against a quadrature across the kink, which is off by up to 7e-4, and exact at the plateau."""
    bias = np.array([[0.0], [0.001], [0.1]])
    radius = np.array([0.001, 0.1, 1.0, 100.0])
    values = [[0.8320, 0.8320, 0.8320, 0.8728], [0.5743, 0.7451, 0.8227, 0.8727], [0.5743, 0.5743, 0.4482, 0.8625]]
    got = theory.raw_noise_numerator(*BIAS_STUDY, bias=bias, radius=radius) / radius**2
    assert got.shape == (3, 4)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, values, atol=7e-4)
    np.testing.assert_allclose(got[values == np.float64(0.5743)], 0.5743, atol=5e-5)
    assert got[2, 2] == pytest.approx(0.4482, abs=5e-5)


def test_raw_noise_between_its_plateaus():
    plateaus = theory.noise_plateaus(*BIAS_STUDY)
    *_, last = run(np.eye(64), 3, 2, 4)
    np.testing.assert_allclose(plateaus.linear, np.mean(np.sum(last**2, axis=1)), rtol=1e-12)  # tr(A A^T) / N
    assert plateaus.linear < plateaus.dark < plateaus.rectified
    assert list(map(float, (plateaus.linear, plateaus.dark, plateaus.rectified))) == pytest.approx(
        [
            theory.raw_noise_numerator(*BIAS_STUDY, bias=b, radius=r) / r**2
            for b, r in [(1, 1e-3), (0, 1e-3), (0.1, 1e9)]
        ],
        rel=1e-7,
    )
    bias, radius = 0.01, np.logspace(-4, 5, 60)
    curve = theory.raw_noise_numerator(*BIAS_STUDY, bias=bias, radius=radius) / radius**2
    assert curve[0] == pytest.approx(plateaus.linear)
    assert curve[-1] == pytest.approx(plateaus.rectified, rel=1e-4)
    dip, half = np.argmin(curve), np.argmax(curve > (plateaus.linear + plateaus.rectified) / 2)
    onset = bias * math.sqrt(64 * 3) / 2  # where the noise of a unit is as large as the bias
    assert curve[dip] == pytest.approx(0.778 * plateaus.linear, rel=0.01)
    assert 1 < radius[dip] / onset < 2
    assert 8 < radius[half] / onset < 16
    # without stride nothing piles up: rectification only takes away
    flat = theory.noise_plateaus(5, 1, 4, 60)
    assert flat.rectified < flat.dark < flat.linear
    only = theory.noise_plateaus(3, 2, 1, 40)
    assert only.linear == only.dark == only.rectified == theory.raw_noise_numerator(3, 2, 1, 40, bias=0.3, radius=1)
    assert theory.raw_noise_numerator(*BIAS_STUDY, bias=0.1, radius=0) == 0


@hypothesis.given(bias=st.floats(0, 10), radius=st.floats(1e-6, 1e6))
def test_raw_noise_stays_below_its_plateau(bias, radius):
    """Never more than the highest plateau; a scalar is treated like an entry of an array."""
    plateaus = theory.noise_plateaus(*BIAS_STUDY)
    value = theory.raw_noise_numerator(*BIAS_STUDY, bias=bias, radius=radius)
    assert 0 < value <= plateaus.rectified * radius**2 * (1 + 1e-12)
    both = theory.raw_noise_numerator(*BIAS_STUDY, bias=np.array([bias, 0.0]), radius=np.array([radius, 1.0]))
    np.testing.assert_allclose(both[0], value, rtol=1e-12)
