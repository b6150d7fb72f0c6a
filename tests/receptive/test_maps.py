"""Maps of a unit: paths counted, gradients, and the numbers made of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from benchmarks.extents import resnet
from stabjax import receptive
from tests.receptive.pixels import (
    conv,
    image_shape,
    max_pool,
    shape_of,
    support,
)
from tests.sample_networks import normal

# Constant weights


def middle(weights):
    return [int(weight) for weight in weights if weight > 0]


def test_path_counts():
    def chain(x):
        for _ in range(4):
            x = jax.nn.relu(conv(x, 3, 2, "VALID")) + 0.5
        return x

    counts = [middle(receptive.constant_weight(chain, (1, 127, 1), tap=f"conv_{k}", spatial=1)) for k in range(4)]
    assert counts[0] == [1, 1, 1]
    assert counts[1] == [1, 1, 2, 1, 2, 1, 1]
    assert counts[2] == [1, 1, 2, 1, 3, 2, 3, 1, 3, 2, 3, 1, 2, 1, 1]
    assert counts[3] == [1, 1, 2, 1, 3, 2, 3, 1, 4, 3, 5, 2, 5, 3, 4, 1, 4, 3, 5, 2, 5, 3, 4, 1, 3, 2, 3, 1, 2, 1, 1]
    assert [sum(np.diff([0, *row, 0]) ** 2) for row in counts] == [2, 6, 26, 118]


def test_maxima_are_means_and_weights_do_not_matter(key):
    def network(kernel, x):
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return max_pool(x - 1.0, 2, 2)

    maps = []
    for k in range(2):
        f = jax.tree_util.Partial(network, jax.random.normal(jax.random.fold_in(key, k), (3, 3, 3, 5)))
        before = jax.tree_util.tree_map(np.array, f)
        maps.append(receptive.constant_weight(f, image_shape(), tap="max_pool_0", unit=(3, 4)))
        np.testing.assert_array_equal(before.args[0], f.args[0])
    np.testing.assert_array_equal(*maps)
    line = np.array([1, 2, 2, 1])
    np.testing.assert_allclose(maps[0][5:9, 7:11], np.outer(line, line) / 4)
    assert maps[0].sum() == 9


@pytest.mark.slow
def test_deep_networks_do_not_overflow(relaxed_promotion):
    sides = (64, 64)
    found = receptive.constant_weight(resnet(50), shape_of(1, *sides, 3), tap="block4_unit3/add_0")
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert np.isfinite(receptive.width(found)).all()


# Effective fields


def small(x):
    return jnp.tanh(conv(jnp.tanh(conv(x, 3, 2, channels=4)), 3, channels=2))


def test_effective_is_the_mean_size_of_the_jacobian(key):
    images = jax.random.normal(key, (3, 9, 8, 2))
    jacobian = jax.vmap(jax.jacrev(lambda image: small(image[None])[0]))(images)  # (n, h, w, channels, *image)
    expected = jnp.abs(jacobian[:, 2, 1]).sum(-1).mean(0)
    seen = [
        receptive.effective(small, images, tap="tanh_1", unit=(2, 1), channel=channel) for channel in (None, 1, [0])
    ]
    np.testing.assert_allclose(seen[0], expected.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen[1], expected[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen[2], expected[0], rtol=1e-5, atol=1e-7)
    apart = receptive.effective(small, images, tap="tanh_1", unit=(2, 1), batch_size=2)
    np.testing.assert_allclose(apart, seen[0], rtol=1e-5, atol=1e-7)


def test_effective_stays_within_the_extent(key):
    images = jax.random.normal(key, (2, 24, 19, 3))
    found = receptive.effective(small, images, tap="conv_1")
    first, last = np.array(receptive.extent(small, images)["conv_1"].box((6, 5))).T
    np.testing.assert_array_equal(np.stack(support(np.asarray(found))), [first, last])


def test_effective_of_a_dense_layer(key):
    def dense(x):
        return conv(x).reshape(len(x), -1) @ normal(1, 72, 4)

    images = jax.random.normal(key, (2, 6, 4, 3))
    assert receptive.effective(dense, images, tap="dense_0", unit=()).shape == (6, 4)


def test_units_that_are_not_there(key):
    images = jax.random.normal(key, (2, 9, 8, 3))
    with pytest.raises(ValueError, match="expected the name of an operation, got 'conv_9'; the network has conv_0"):
        receptive.effective(small, images, tap="conv_9")
    with pytest.raises(ValueError, match=r"expected a unit of 'conv_0' as a position on its axes of \(5, 4\)"):
        receptive.constant_weight(small, images, tap="conv_0", unit=(5, 0))
    with pytest.raises(ValueError, match=r"expected channels of 'conv_0' within 0\.\.3"):
        receptive.effective(small, images, tap="conv_0", channel=4)


# Measures


@settings(max_examples=20)
@given(st.integers(0, 6), st.integers(1, 9))
def test_center_and_width_of_a_box(start, side):
    box = np.zeros((20, 11))
    box[start : start + side, 3] = 2.0
    np.testing.assert_allclose(receptive.center(box), [start + (side - 1) / 2, 3], rtol=1e-5)
    np.testing.assert_allclose(receptive.width(box), [math.sqrt((side**2 - 1) / 12), 0], rtol=1e-4, atol=1e-3)


def test_measures_of_nothing_and_of_much():
    assert np.isnan(receptive.center(np.zeros((3, 4)))).all()
    assert np.isnan(jax.jit(receptive.width)(jnp.zeros((3, 4)))).all()
    np.testing.assert_allclose(receptive.center(np.array([1e200, 1e200])), [0.5])


def test_growth_is_the_fitted_line(key, x64):
    depths = np.arange(1, 9)
    noise = np.exp(0.1 * np.asarray(jax.random.normal(key, (8,), jnp.float64)))
    widths = 3.0 * depths**0.7 * noise
    (power, offset), covariance = np.polyfit(np.log(depths), np.log(widths), 1, cov=True)
    found = receptive.growth(depths, widths)
    np.testing.assert_allclose([found.power, found.prefactor], [power, math.exp(offset)], rtol=1e-10)
    np.testing.assert_allclose(found.error, math.sqrt(covariance[0, 0]), rtol=1e-10)
    exact = receptive.growth(depths, 2.0 * depths**1.5)
    np.testing.assert_allclose([exact.power, exact.error, exact.prefactor], [1.5, 0, 2], atol=1e-7)
    assert np.isnan(receptive.growth(depths[:2], widths[:2]).error)
    with pytest.raises(ValueError, match="at least two"):
        receptive.growth(depths[:1], widths[:1])


def test_effective_fields_grow_like_the_root_of_the_depth():
    """Constant weights spread as a random walk: a variance of 2/3 per layer of kernel 3, exactly."""

    def chain(x):
        for _ in range(12):
            x = conv(x, channels=1)
        return x

    shape, depths = shape_of(1, 41, 1), np.arange(1, 13)
    extents = receptive.extent(chain, shape, spatial=1)
    maps = [receptive.constant_weight(chain, shape, tap=f"conv_{k}", spatial=1) for k in (0, 3, 7, 11)]
    widths = [receptive.width(paths)[0] for paths in maps]
    np.testing.assert_allclose(np.square(widths), depths[[0, 3, 7, 11]] * 2 / 3, rtol=1e-5)
    assert abs(receptive.growth(depths[[0, 3, 7, 11]], jnp.stack(widths)).power - 0.5) < 1e-4
    reach = np.array([extents[f"conv_{k}"].size[0] - 1.0 for k in range(12)])
    assert abs(receptive.growth(depths, reach).power - 1) < 1e-5
