"""What the closed forms refuse, and in which words."""

import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import models, theory


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
