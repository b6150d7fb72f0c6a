"""Constant filters in closed form: every number by two routes at least."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import models, theory
from tests import GOLDEN_FOLDER

GOLDEN = dict(np.load(GOLDEN_FOLDER / "constant_filters.npz"))
NETS = sorted({name[:5] for name in GOLDEN})
PAIRS = [(kernel, stride) for stride in range(1, 5) for kernel in range(stride, 10)]


def run(x, kernel, stride, depth, *, bias=0.0):
    """A plain network on signals ``(n, size)``: the pre-activations of every layer, ``(n, units)``."""
    padding = (kernel - 1) // 2
    for _ in range(depth):
        x = np.pad(np.maximum(x, 0) if _ else x, ((0, 0), (padding, padding)))
        seen = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=1)[:, ::stride]
        x = stride / kernel * np.sum(seen, axis=2) + bias
        yield x


def published_size(kernel, stride, depth):
    return kernel + (kernel - 1) * sum(stride**k for k in range(1, depth + 1)) + 1


def sphere(n, size, radius, *, seed=0):
    noise = np.random.default_rng(seed).normal(size=(n, size))
    return radius * noise / np.linalg.norm(noise, axis=1, keepdims=True)


def mean_and_error(samples):
    return np.mean(samples), np.std(samples) / math.sqrt(len(samples))


# Paths


def test_known_path_counts():
    rows = ["111", "1121211", "112132313231211", "1121323143525341435253413231211"]
    for depth, row in enumerate(rows, start=1):
        counts = theory.path_counts(3, 2, depth)
        assert counts.dtype == np.int64
        assert counts.tolist() == [int(digit) for digit in row]
        assert theory.receptive_field(3, 2, depth) == len(row)
    assert [theory.receptive_field(3, 2, depth) for depth in range(1, 5)] == [3, 7, 15, 31]
    assert [theory.path_counts(3, 2, depth).max() for depth in range(1, 4)] == [1, 2, 3]
    assert theory.path_counts(3, 2, 0).tolist() == [1]


@pytest.mark.parametrize(
    ("kernel", "stride", "squares"),
    [
        (3, 2, [2, 6, 26, 118]),
        (8, 2, [2, 8, 56, 432]),
        (5, 2, [2, 10, 110, 1350]),
        (4, 2, [2, 4, 8, 16]),
        (2, 2, [2, 2, 2, 2]),
        (3, 3, [2, 2, 2, 2]),
    ],
)
def test_known_sums_of_squared_differences(kernel, stride, squares):
    assert [np.sum(theory.path_differences(kernel, stride, depth) ** 2) for depth in range(1, 5)] == squares
    assert list(theory.path_sums(kernel, stride, 4).squared_differences) == squares


def test_known_squared_differences_per_pixel():
    per_pixel = [np.mean(theory.path_differences(3, 2, k + 1) ** 2) * (2**k * 4 / (2**k * 4 - 1)) for k in range(3)]
    np.testing.assert_allclose(per_pixel, [2 / 3, 6 / 7, 26 / 15], rtol=1e-12)
    scaled = [value * (2 / 3) ** (2 * k) for k, value in enumerate(per_pixel)]
    np.testing.assert_allclose(scaled, [0.6666667, 0.3809524, 0.3423868], atol=5e-8)


@pytest.mark.parametrize(("kernel", "stride"), PAIRS)
def test_paths_by_recursion_by_multi_indices_and_by_counting(kernel, stride):
    sums = theory.path_sums(kernel, stride, 4)
    for depth in range(1, 5):
        counts, differences = (f(kernel, stride, depth) for f in (theory.path_counts, theory.path_differences))
        assert len(counts) == theory.receptive_field(kernel, stride, depth)
        np.testing.assert_array_equal(np.diff(counts, prepend=0, append=0), differences)
        assert sums.squares[depth - 1] == np.sum(counts**2)
        assert sums.squared_differences[depth - 1] == np.sum(differences**2)
    ends = [sum(j * stride**k for k, j in enumerate(path)) for path in itertools.product(range(kernel), repeat=3)]
    np.testing.assert_array_equal(theory.path_counts(kernel, stride, 3), np.bincount(ends))


def test_large_counts_are_exact_or_refused():
    polynomial = [1]
    for _ in range(41):  # 3^41 paths, more than 64 bits hold, but no pixel has as many
        polynomial = [sum(polynomial[max(i - 2, 0) : i + 1]) for i in range(len(polynomial) + 2)]
    assert theory.path_counts(3, 1, 41).tolist() == polynomial
    assert theory.path_differences(3, 1, 41).tolist() == [b - a for a, b in itertools.pairwise([0, *polynomial, 0])]
    with pytest.raises(OverflowError, match=r"does not fit 64 bits; take path_sums"):
        theory.path_counts(3, 1, 45)
    with pytest.raises(OverflowError, match=r"does not fit 64 bits"):
        theory.path_differences(3, 1, 60)
    with pytest.raises(ValueError, match=r"2\d* pixels, too many to write out; take fewer layers"):
        theory.path_counts(3, 2, 40)
    assert theory.receptive_field(3, 2, 100) == 2**101 - 1
    assert theory.path_sums(3, 2, 100).squares[-1] > 4.5**99
    # n is symmetric: the squares of depth k are the middle count of depth 2k
    assert theory.path_sums(3, 1, 20).squares[-1] == theory.path_counts(3, 1, 40)[40]


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


# Scaling


@pytest.mark.parametrize(("kernel", "stride"), [pair for pair in PAIRS if pair[1] > 1])
def test_growth_rates_and_factors(kernel, stride):
    squares, differences = (np.array(x, object) for x in vars(theory.path_sums(kernel, stride, 60)).values())
    rate = theory.growth_rate(kernel, stride)
    assert rate == pytest.approx(squares[-1] / squares[-2], rel=1e-12)
    assert rate == pytest.approx(kernel**2 / stride, rel=0.11)
    law, chain = theory.scaling(kernel, stride), theory.infinite_chain(kernel, stride, 60)
    for name in ("deformation_numerators", "noise_numerators", "denominators", "deformation", "noise", "relative"):
        values = getattr(chain, name)
        np.testing.assert_allclose(values[-1] / values[-2], getattr(law, name), rtol=1e-9)
        np.testing.assert_allclose(law.curve(name, [59, 60], through=(60, values[-1])), values[-2:], rtol=1e-9)
    assert chain.deformation[-1] == pytest.approx(law.limit, abs=1e-12)
    assert law.law == ("constant" if kernel % stride else "geometric")
    assert (law.limit > 0) == (kernel % stride != 0)
    assert differences[-1] / squares[-1] == pytest.approx(2 * chain.deformation[-1])


def test_known_factors():
    factor = {pair: theory.scaling(*pair).deformation for pair in [(2, 2), (3, 3), (4, 2), (6, 3), (8, 2), (6, 2)]}
    expected = {(2, 2): 1 / 2, (3, 3): 1 / 3, (4, 2): 1 / 4, (6, 3): 1 / 6, (8, 2): 1 / 4}
    assert {pair: factor[pair] for pair in expected} == pytest.approx(expected)
    assert factor[6, 2] == pytest.approx(0.2534, abs=5e-5)
    assert theory.growth_rate(3, 2) == pytest.approx((5 + math.sqrt(17)) / 2, rel=1e-12)
    assert theory.growth_rate(2, 3) == 2
    for pair, relative in [((2, 2), 1 / 4), ((4, 2), 1 / 8)]:
        law = theory.scaling(*pair)
        assert (law.noise, law.denominators, law.relative) == pytest.approx((2, 1, relative))
    trap = theory.scaling(3, 2)
    assert (trap.law, trap.deformation) == ("constant", 1)
    assert trap.denominators == trap.deformation_numerators == pytest.approx(1.0137, abs=5e-5)
    for pair, values in [
        ((3, 2), [0.3333, 0.2308, 0.2203, 0.2193, 0.2192]),
        ((5, 2), [0.2, 0.0909, 0.0815, 0.0803, 0.08]),
    ]:
        np.testing.assert_allclose(theory.infinite_chain(*pair, 5).deformation, values, atol=5.1e-5)
        assert theory.scaling(*pair).limit == pytest.approx(values[-1], abs=1e-4)


@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_exponents_of_stride_one(kernel):
    chain, law = theory.infinite_chain(kernel, 1, 160), theory.scaling(kernel, 1)
    assert law.law == "power"
    layers = np.arange(80, 161)
    for name in ("deformation_numerators", "noise_numerators", "denominators", "deformation", "noise", "relative"):
        fitted = theory.fit(getattr(chain, name)[79:], law="power", layers=layers)
        # the first term of the noise falls as slowly as the denominator
        tolerance = 0.07 if name in ("noise_numerators", "noise", "relative") else 0.01
        assert fitted.value == pytest.approx(getattr(law, name), abs=tolerance)
    np.testing.assert_allclose(chain.deformation[79:] * layers, 3 / (kernel**2 - 1), rtol=0.015)
    np.testing.assert_allclose(
        law.curve("deformation", layers, through=(80, chain.deformation[79])), chain.deformation[79:], rtol=0.01
    )


def test_kernel_one_copies():
    law, chain = theory.scaling(1, 1), theory.infinite_chain(1, 1, 4)
    assert (law.law, law.limit) == ("constant", 1)
    np.testing.assert_array_equal(chain.deformation, 1)


@pytest.mark.parametrize(
    "net", [(2, 2, 7), (3, 3, 5), (4, 2, 6), (6, 3, 5), (8, 2, 6), (6, 2, 6), (3, 2, 6), (5, 2, 6)], ids=str
)
def test_predicted_factors_at_finite_size(net):
    """Without the last two layers, where the border takes its share; it is halved by twice the size."""
    kernel, stride, _ = net
    law, chain = theory.scaling(kernel, stride), theory.infinite_chain(*net)
    numerators, denominators = theory.constant_filter_moments(*net, 8 * theory.receptive_field(*net))
    np.testing.assert_allclose((numerators / denominators)[:-2], chain.deformation[:-2], rtol=0.05)
    numerators, _ = theory.constant_filter_moments(*net, 16 * theory.receptive_field(*net))
    factors, predicted = (x[2:] / x[1:-1] for x in (numerators, chain.deformation_numerators))  # from layer 2
    np.testing.assert_allclose(factors[:-2], predicted[:-2], rtol=0.01)
    # kernels up to the square of the stride are at their factor from layer 2, others come to it soon
    soon = 0 if law.law == "geometric" and kernel <= stride**2 else 2
    np.testing.assert_allclose(predicted[soon:], law.deformation_numerators, rtol=0.01)


def test_finite_size_bends_the_laws():
    numerators, denominators = theory.constant_filter_moments(2, 2, 8, 513)
    assert theory.fit(numerators / denominators).value == pytest.approx(0.541, abs=1e-3)
    assert theory.fit(numerators).value == pytest.approx(0.5, rel=1e-6)
    numerators, denominators = theory.constant_filter_moments(3, 1, 8, published_size(3, 1, 8))
    noise = theory.rectified_noise_numerators(3, 1, 8, published_size(3, 1, 8))
    for values, exponent in [
        (numerators / denominators, -0.72),
        (noise / denominators, 0.46),
        (numerators / noise, -1.17),
        (theory.infinite_chain(3, 1, 60).deformation[20:], -0.98),
    ]:
        layers = np.arange(21, 61) if len(values) == 40 else None
        assert theory.fit(values, law="power", layers=layers).value == pytest.approx(exponent, abs=0.02)


def test_the_chain_is_a_tree():
    chain = theory.infinite_chain(3, 2, 4)
    doubled = jax.tree.map(lambda x: 2 * x, chain)
    np.testing.assert_allclose(doubled.denominators, 2 * chain.denominators)
    np.testing.assert_allclose(chain.relative, chain.deformation / chain.noise)


# Fits


@hypothesis.given(rate=st.floats(0.1, 3), amplitude=st.floats(1e-3, 1e3))
def test_fit_recovers_its_law(rate, amplitude):
    layers = np.array([2, 3, 5, 9])
    geometric = theory.fit(amplitude * rate**layers, layers=layers)
    power = theory.fit(amplitude * layers ** (rate - 2), law="power", layers=layers)
    assert (geometric.value, geometric.amplitude) == pytest.approx((rate, amplitude))
    assert (power.value, power.amplitude) == pytest.approx((rate - 2, amplitude))
    assert max(geometric.error, power.error) < 1e-6
    np.testing.assert_allclose(geometric.curve(layers), amplitude * rate**layers)
    np.testing.assert_allclose(power.curve(layers), amplitude * layers ** (rate - 2))


def test_fit_errors_are_those_of_a_regression():
    values = np.exp(np.random.default_rng(0).normal(size=9))
    (slope, _), covariance = np.polyfit(np.arange(1, 10), np.log(values), 1, cov=True)
    fitted = theory.fit(values)
    assert fitted.value == pytest.approx(np.exp(slope))
    assert fitted.error == pytest.approx(np.exp(slope) * np.sqrt(covariance[0, 0]))
    (slope, _), covariance = np.polyfit(np.log(np.arange(1, 10)), np.log(values), 1, cov=True)
    fitted = theory.fit(values, law="power")
    assert (fitted.value, fitted.error) == pytest.approx((slope, np.sqrt(covariance[0, 0])))


def test_fit_of_what_has_no_logarithm():
    assert np.isnan(theory.fit([1.0, 0.5, 0.0]).value)
    assert np.isnan(theory.fit([1.0, np.nan, 0.2]).error)
    two = theory.fit([1.0, 0.5])
    assert two.value == pytest.approx(0.5)
    assert np.isnan(two.error)


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.path_counts(2, 3, 2), "expected a kernel at least as large as the stride, got kernel 2"),
        (lambda: theory.receptive_field(1, 2, 2), "some pixels would be seen by no unit; take a kernel of 2"),
        (lambda: theory.path_differences(3, 2, 0), "expected depth >= 1, got 0"),
        (lambda: theory.path_counts(3, 2, -1), "expected depth >= 0, got -1"),
        (lambda: theory.path_sums(0, 1, 2), "expected kernel >= 1, got 0"),
        (lambda: theory.scaling(2, 4), "or a smaller stride"),
        (lambda: theory.infinite_chain(3, 0, 2), "expected stride >= 1, got 0"),
        (lambda: theory.infinite_chain(3, 1, 2, radius=-1), "expected radius >= 0"),
        (lambda: theory.growth_rate(0, 1), "expected kernel >= 1"),
        (lambda: theory.constant_filter_moments(3, 4, 2, 9), "kernel 3 and stride 4"),
        (lambda: theory.constant_filter_moments(3, 2, 2, 0), "expected size >= 1"),
        (lambda: theory.constant_filter_moments(2, 2, 5, 16), "leaves no unit in layer 5 .* take a larger size"),
        (lambda: theory.rectified_noise_numerators(2, 2, 5, 16), "leaves no unit in layer 5"),
        (lambda: theory.rectified_noise_numerators(3, 2, 2, 16, radius=-1.0), "expected radius >= 0, got -1"),
        (lambda: theory.raw_noise_numerator(3, 2, 2, 9, bias=-0.1, radius=1), "expected bias >= 0 and radius >= 0"),
        (lambda: theory.noise_plateaus(2, 3, 2, 9), "kernel 2 and stride 3"),
        (lambda: theory.scaling(3, 2).curve("depth", [1], through=(1, 1.0)), "expected a quantity out of"),
        (lambda: theory.fit([1.0, 2.0], law="linear"), "expected a law out of"),
        (lambda: theory.fit([1.0]), "expected at least two values"),
        (lambda: theory.fit([1.0, 2.0], layers=[1, 2, 3]), "as many layers, got 2 and 3"),
        (lambda: theory.fit([1.0, 2.0], layers=[2, 2]), "expected distinct layers from 1"),
        (lambda: theory.fit([1.0, 2.0], layers=[0, 2]), "expected distinct layers from 1"),
    ],
)
def test_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_whole_numbers_only(unchecked):
    with pytest.raises(TypeError):
        theory.path_counts(3.0, 2, 2)


def test_depths_that_double_precision_does_not_hold():
    last = theory.infinite_chain(4, 2, 999)
    assert np.isfinite(last.noise_numerators).all()
    with pytest.raises(ValueError, match=r"expected stride \*\* depth below 2 \*\* 1000, got 2 \*\* 1100"):
        theory.infinite_chain(4, 2, 1100)


@pytest.mark.parametrize(("layers", "through"), [([1, 2, 3], (0, 0.25)), ([0, 1], (1, 0.25))])
def test_curves_begin_at_the_first_layer(layers, through):
    with pytest.raises(ValueError, match="expected layers from 1 on"):
        theory.scaling(3, 1).curve("deformation", layers, through=through)


def test_constant_filter_networks_refuse(unchecked):
    with pytest.raises(ValueError, match=r"leave a unit in every layer, got \(1,\) units for layer 4"):
        models.ConstantFilterCNN(1, kernel=2, stride=2, depth=5)(jnp.ones((1, 8, 1)))
    with pytest.raises(TypeError, match=r"expected kernel as an integer, got 3\.0"):
        models.ConstantFilterCNN(1, kernel=3.0, stride=2, depth=5)
    with pytest.raises(TypeError, match=r"expected kernel as an integer, got 3\.0"):
        theory.path_counts(3.0, 2, 2)
    with pytest.raises(ValueError, match=r"expected one bias for all layers, got the shape \(2,\)"):
        models.ConstantFilterCNN(1, kernel=3, stride=2, depth=5, bias=jnp.ones(2))
