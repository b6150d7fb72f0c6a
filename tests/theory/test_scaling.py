"""Growth rates, exponents and fits: every number by two routes at least."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from stabjax import theory
from tests.theory.chains import published_size

PAIRS = [(kernel, stride) for stride in range(1, 5) for kernel in range(stride, 10)]


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
