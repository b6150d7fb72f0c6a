"""Fields of many units of a tap: compiled once, mapped over at once; and fields of awkward networks and images."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import networks, receptive
from stabjax._jaxpr import in_double
from tests.receptive.pixels import conv, max_pool, shape_of
from tests.receptive.test_boxes import doubled
from tests.sample_networks import normal
from tests.sweep.helpers import compilations

SHAPE = shape_of(2, 8, 8, 2)
UNITS = np.indices((8, 8)).reshape(2, -1).T


def small(x):
    return jnp.tanh(conv(jnp.tanh(conv(x, channels=3)), channels=2))


def effective(images, unit=None, **options):
    return receptive.effective(small, images, tap="tanh_1", unit=unit, **options)


def counted(unit=None, f=small):
    return receptive.constant_weight(f, SHAPE, tap="tanh_1", unit=unit)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (2, 8, 8, 2))


@pytest.fixture(scope="module")
def jacobian(images):
    """Sizes of all gradients of the last layer, ``(rows, columns, channels, h, w)``."""
    whole = jax.jit(jax.vmap(jax.jacrev(lambda image: small(image[None])[0])))(images)
    return np.abs(whole).sum(-1).mean(0)


@pytest.mark.parametrize("field", [effective, counted])
def test_units_share_one_program(field, images):
    field = partial(field, images) if field is effective else field
    before = jax.device_get(field((1, 1)))
    with compilations() as compiled:
        others = [field(unit) for unit in ((0, 0), (-1, 7), np.array([3, 4]))]
        again = field((1, 1))
    assert not compiled
    np.testing.assert_array_equal(again, before)
    assert all(np.any(other != before) for other in others)


def test_channels_share_one_program(images, jacobian):
    first = effective(images, (1, 1), channel=0)
    with compilations() as compiled:
        found = [effective(images, (2, 5), channel=channel) for channel in (1, -1, [1], np.array([-1]))]
    assert not compiled
    for field in found:
        np.testing.assert_allclose(field, jacobian[2, 5, 1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(first, jacobian[1, 1, 0], rtol=1e-5, atol=1e-7)


def test_first_call_compiles_once(images):
    fewer = jax.block_until_ready(images[:, 1:])
    for field in (
        lambda unit: effective(fewer, unit),
        lambda unit: receptive.constant_weight(small, fewer, tap="tanh_1", unit=unit),
    ):
        with compilations() as compiled:
            jax.block_until_ready(field((2, 3)))
        assert len(compiled) == 1


def test_all_fields_at_once(images, jacobian):
    with compilations() as compiled:
        fields = jax.vmap(partial(effective, images))(UNITS)
        paths = np.asarray(jax.vmap(counted)(UNITS))
    assert len(compiled) <= 2
    assert fields.shape == paths.shape == (64, 8, 8)
    assert paths.dtype == np.float64
    np.testing.assert_allclose(fields, jacobian.mean(2).reshape(64, 8, 8), rtol=1e-5, atol=1e-7)
    for k, unit in list(enumerate(UNITS))[::9]:
        np.testing.assert_allclose(paths[k], counted(unit), rtol=1e-12)
    with compilations() as compiled:
        jax.vmap(counted)(UNITS[::-1])
    assert not compiled


def test_traced_units_and_channels(images, jacobian):
    def field(images, row, channel):
        return effective(images, (row, 3), channel=channel)

    found = jax.jit(jax.vmap(field, (None, 0, 0)))(images, np.array([0, 2, -1, 8, 2]), np.array([0, 1, -1, 0, 2]))
    expected = jacobian[[0, 2, 7], 3, [0, 1, 1]]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-5, atol=1e-7)
    assert np.isnan(found[3:]).all()
    paths = np.asarray(jax.jit(jax.vmap(counted))(np.array([[0, 0], [-1, -1], [8, 0], [0, -9]])))
    np.testing.assert_array_equal(paths[0], paths[1, ::-1, ::-1])
    assert np.isnan(paths[2:]).all()


def test_units_and_channels_that_are_not_there(images, unchecked):
    for unit in ((8, 0), (0, -9), (1,), (1, 2, 3), (1.0, 2), np.zeros((2, 2), int), np.zeros(2), 3):
        for field in (partial(effective, images), counted):
            with pytest.raises(ValueError, match="expected a unit of 'tanh_1' as a position on its axes"):
                field(unit)
    with pytest.raises(ValueError, match="expected a unit of 'tanh_1' as a position on its axes"):
        jax.vmap(partial(effective, images))(np.zeros((4, 3), int))
    with pytest.raises(ValueError, match="expected a unit of 'tanh_1' as a position on its axes"):
        jax.vmap(counted)(np.zeros((4, 2)))
    for channel in (2, -3, [0, 2], [], 1.0, [[0]]):
        with pytest.raises(ValueError, match=r"expected channels of 'tanh_1' within 0\.\.1"):
            effective(images, channel=channel)
    for batch_size in (0, -1, 1.5):
        with pytest.raises(ValueError, match="expected batch_size as a number of images"):
            effective(images, batch_size=batch_size)


def test_numbers_of_a_program_are_looked_at_again():
    """Programs that differ in numbers alone share a compilation, and none of the numbers."""

    held = np.array([1.0, 2.0])
    f = lambda x: [jnp.asarray(held) * x.astype(np.float64)]  # noqa: E731
    for expected, compiles in (([1 / 3, 2.0], 1), ([5.0, 2.0], 0)):
        held[0] = expected[0]
        with compilations() as compiled:
            (found,) = in_double(f, np.ones(2, np.float32))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-15)
        assert len(compiled) == compiles


def test_parameters_that_mask():
    kernel = normal(0, 3, 3, 2, 2)

    def network(variables, x):
        weights = variables["kernel"] * variables["mask"]
        return jnp.tanh(
            jax.lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        )

    for rows in (3, 2, 1, 2):
        mask = np.zeros((3, 3, 2, 2), np.float32)
        mask[:rows] = 1
        f = jax.tree_util.Partial(network, {"kernel": kernel, "mask": jnp.asarray(mask)})
        found = receptive.constant_weight(f, SHAPE, tap="tanh_0", unit=(4, 4))
        np.testing.assert_array_equal(np.flatnonzero(found.any(1)), np.arange(3, 3 + rows))


# Awkward networks and images


def channels_first(image):
    return jnp.moveaxis(small(jnp.moveaxis(image, 0, -1)[None])[0], -1, 0)


def test_single_examples_with_channels_in_front(images, jacobian):
    network = networks.wrap(channels_first, single=True, layout="channels_first")
    found = jax.vmap(lambda unit: receptive.effective(network, images, tap="output", unit=unit))(UNITS[:20:7])
    np.testing.assert_allclose(found, jacobian.mean(2).reshape(64, 8, 8)[:20:7], rtol=1e-5, atol=1e-7)
    paths = receptive.constant_weight(network, SHAPE, tap="output", unit=(2, 3))
    np.testing.assert_allclose(paths, counted((2, 3)))


@pytest.mark.parametrize("ndim", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_signals_and_volumes(ndim):
    sides = (5,) * ndim
    images = jax.random.normal(jax.random.key(1), (2, *sides, 2))
    f = lambda x: jnp.tanh(conv(x, channels=2))  # noqa: E731
    units = np.array([[0] * ndim, [2] * ndim, [4] * ndim])
    fields = jax.vmap(lambda unit: receptive.effective(f, images, tap="tanh_0", unit=unit, spatial=ndim))(units)
    paths = jax.vmap(lambda unit: receptive.constant_weight(f, images, tap="tanh_0", unit=unit, spatial=ndim))(units)
    paths = np.asarray(paths)
    for k, (low, high) in enumerate(((0, 2), (1, 4), (3, 5))):
        for field in (fields[k], paths[k]):
            places = np.argwhere(field)
            np.testing.assert_array_equal([places.min(0), places.max(0) + 1], [[low] * ndim, [high] * ndim])


@pytest.mark.parametrize("number", [1, 3])
def test_images_pass_by_themselves(images, number):
    batch = jnp.concatenate([images, images])[:number]
    each = [effective(image[None], (0, 7)) for image in batch]
    np.testing.assert_allclose(effective(batch, (0, 7)), np.mean(each, 0), rtol=1e-5, atol=1e-7)


def test_dense_layers_have_one_unit(images):
    f = lambda x: conv(x, channels=1).reshape(len(x), -1) @ normal(1, 64, 3)  # noqa: E731
    fields = jax.vmap(lambda k: receptive.effective(f, images, tap="dense_0", unit=(), channel=k))(np.arange(3))
    whole = receptive.effective(f, images, tap="dense_0")
    np.testing.assert_allclose(fields.mean(0), whole, rtol=1e-5, atol=1e-7)
    assert receptive.constant_weight(f, SHAPE, tap="dense_0", unit=()).all()


def test_taps_that_do_not_see_the_image(images):
    f = lambda x: {"x": x, "y": jnp.zeros((len(x), 4))}  # noqa: E731
    np.testing.assert_array_equal(receptive.effective(f, images, tap="output/y"), 0)
    np.testing.assert_array_equal(receptive.constant_weight(f, SHAPE, tap="output/y"), 0)
    dead = lambda x: jax.nn.relu(conv(x) - 1e6)  # noqa: E731
    blank = receptive.effective(dead, images, tap="relu_0")
    np.testing.assert_array_equal(blank, 0)
    assert np.isnan(receptive.width(blank)).all()


def test_units_whose_extent_is_not_exact(images):
    f = lambda x: conv(max_pool(x[:, 1:-1], 3, 3))  # noqa: E731
    assert not receptive.extent(f, SHAPE)["output"].exact
    found = jax.vmap(lambda unit: receptive.effective(f, images, tap="output", unit=unit))(np.array([[0, 0], [1, 1]]))
    assert (found > 0).any((1, 2)).all()
    paths = receptive.constant_weight(lambda x: conv(doubled(x)), SHAPE, tap="output", unit=(15, 0))
    np.testing.assert_array_equal(np.argwhere(paths), [[7, 0], [7, 0]][:1])


@pytest.mark.parametrize("dtype", [jnp.float16, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_half_precision(images, dtype, relaxed_promotion):
    f = lambda x: jnp.tanh(conv(x.astype(np.float32), channels=2)).astype(dtype)  # noqa: E731
    found = receptive.effective(f, images.astype(dtype), tap="tanh_0", unit=(3, 3))
    expected = receptive.effective(f, images.astype(dtype).astype(np.float32), tap="tanh_0", unit=(3, 3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.05 * float(expected.max()))
    many = jnp.concatenate([images.astype(dtype)] * 40)
    again = receptive.effective(f, many, tap="tanh_0", unit=(3, 3))
    np.testing.assert_allclose(again, found, rtol=1e-5)


def test_missing_pixels_are_said(images):
    found = effective(images.at[1, 3, 3, 0].set(jnp.nan), (3, 3))
    assert np.isnan(found).any()
