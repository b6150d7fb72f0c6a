"""Networks that compute with channels first: activations have their channels last, and no statistic takes rows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from stabjax import features, lipschitz, networks, receptive, similarity
from tests import sample_networks
from tests.sample_networks import normal

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

SIDES = {1: (7,), 2: (7, 5), 3: (4, 5, 3)}
OF_DIMENSIONS = pytest.mark.parametrize("ndim", [1, 2, pytest.param(3, marks=pytest.mark.slow)])


class Net(eqx.Module):
    conv: eqx.nn.Conv
    ndim: int = eqx.field(static=True)

    def __init__(self, ndim):
        self.conv = eqx.nn.Conv(ndim, 3, 6, 3, stride=1, key=jax.random.key(ndim))
        self.ndim = ndim

    def __call__(self, x):
        return jnp.tanh(self.conv(x))


def batch(ndim, n=5):
    return jax.random.normal(jax.random.key(0), (n, *SIDES[ndim], 3))


def by_hand(network, x):
    """Convolution of every image with channels first, then the channels moved last."""
    return jnp.moveaxis(jax.vmap(network.conv)(jnp.moveaxis(x, -1, 1)), 1, -1)


@OF_DIMENSIONS
def test_activations_are_handed_out_with_channels_last(ndim):
    network, x = Net(ndim), batch(ndim)
    f = sample_networks.single(network)
    outputs, found = features.capture(f)(x)
    expected = by_hand(network, x)
    np.testing.assert_allclose(outputs, jnp.tanh(jnp.moveaxis(expected, -1, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["conv"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["output"], jnp.tanh(expected), rtol=1e-5, atol=1e-6)
    for tap in features.taps(f, x):
        assert (tap.shape, tap.channel_axis) == (found[tap.name].shape, ndim + 1)
    shapes = {}
    features.capture(f, reduce=lambda tap, value: shapes.setdefault(tap.name, (tap.shape, value.shape)))(x)
    assert all(told == given for told, given in shapes.values())
    np.testing.assert_allclose(
        similarity.average(found["conv"]), expected.mean(tuple(range(1, ndim + 1))), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(similarity.positions(found["conv"]), expected.reshape(-1, 6), rtol=1e-5, atol=1e-6)


def test_functions_that_move_the_channels_themselves():
    kernel = normal(0, 4, 3, 3, 3)

    def network(x):
        return jnp.tanh(lax.conv_general_dilated(jnp.moveaxis(x, -1, 1), kernel, (1, 1), "SAME"))

    x = batch(2)
    _, found = features.capture(network)(x)
    np.testing.assert_allclose(
        found["conv_0"], sample_networks.conv(x, kernel.transpose(2, 3, 1, 0)), rtol=1e-5, atol=1e-5
    )


def test_channels_stand_last_inside_a_scan():
    kernels = normal(0, 2, 3, 3, 3, 3)

    def network(kernels, x):
        return lax.scan(lambda x, k: (lax.conv_general_dilated(x, k, (1, 1), "SAME"), None), x, kernels)[0]

    f = networks.wrap(jax.tree_util.Partial(network, {"layers": kernels}["layers"]), layout="channels_first")
    x = batch(2)
    found = features.capture(f, select="conv")(x)[1]
    for value, kernel in zip(found.values(), kernels, strict=True):
        x = sample_networks.conv(x, kernel.transpose(2, 3, 1, 0))
        np.testing.assert_allclose(value, x, rtol=1e-4, atol=1e-4)


def test_a_function_of_images_with_channels_first_is_refused():
    def network(x):
        return lax.conv_general_dilated(jax.nn.relu(x), jnp.ones((4, 3, 3, 3)), (1, 1), "SAME")

    with pytest.raises(ValueError, match=r"channels last.*takes its channels from axis 1.*layout='channels_first'"):
        features.capture(network)(jnp.moveaxis(batch(2), -1, 1))
    f = networks.wrap(network, layout="channels_first")
    assert [tap.channel_axis for tap in features.taps(f, batch(2))] == [3, 3, 3]
    signal = lambda x: lax.conv_general_dilated(x, jnp.ones((4, 3, 3)), (1,), "SAME")  # noqa: E731
    with pytest.raises(ValueError, match="channels last"):
        features.taps(signal, jnp.moveaxis(batch(1), -1, 1))


@pytest.mark.parametrize("window", [(1,), (3,)])
def test_mixers_may_take_positions_for_channels(window):
    """Behind a layer, a convolution along the channels is no sign of the images' layout."""

    def network(x):
        x = jnp.tanh(x @ normal(0, 3, 4))
        return lax.conv_general_dilated(x, jnp.ones((6, 7, *window)), (1,), "SAME")

    assert [tap.kind for tap in features.taps(network, batch(1))] == ["dense", "activation", "conv", "output"]


def test_units_of_both_layouts_are_the_same():
    network, x = Net(2), batch(2)
    first = sample_networks.single(network)
    kernel, bias = network.conv.weight.transpose(2, 3, 1, 0), network.conv.bias.reshape(1, 1, 1, -1)

    def with_channels_last(params, x):
        x = lax.conv_general_dilated(x, params["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(x + params["bias"])

    last = networks.wrap(jax.tree_util.Partial(with_channels_last, {"conv": {"kernel": kernel, "bias": bias}}["conv"]))
    taps = [next(tap for tap in features.taps(f, x) if tap.kind == "conv") for f in (first, last)]
    assert taps[0].shape == taps[1].shape
    seen = [
        receptive.effective(f, x, tap=tap.name, unit=(1, 2), channel=4)
        for f, tap in zip((first, last), taps, strict=True)
    ]
    np.testing.assert_allclose(*seen, rtol=1e-4, atol=1e-5)
    boxes = [receptive.extent(f, x)[tap.name] for f, tap in zip((first, last), taps, strict=True)]
    assert boxes[0] == boxes[1]
    norms = [lipschitz.local(f, x, key=jax.random.key(0), layer="output").value for f in (first, last)]
    np.testing.assert_allclose(*norms, rtol=1e-4)


# Arrays of another layout


@OF_DIMENSIONS
def test_maps_with_channels_first_come_in_by_their_axis(ndim):
    last = np.random.default_rng(0).normal(size=(9, *SIDES[ndim], 2)).astype(np.float32)
    first = np.moveaxis(last, -1, 1)
    size = (3,) * ndim
    for function in (
        similarity.average,
        similarity.positions,
        lambda z, **axis: similarity.resized(z, size, **axis),
        lambda z, **axis: similarity.resized(z, size, convention="half_pixel", **axis),
        lambda z, **axis: similarity.fourier_cca(z, z[::-1], **axis).correlations,
    ):
        for axis in (1, 1 - first.ndim):
            np.testing.assert_array_equal(function(first, channel_axis=axis), function(last))


def test_maps_whose_channels_are_not_known_are_refused():
    f, x = lambda x: jnp.tanh(jnp.einsum("bhwc,bhvc->bhwv", x, x)), batch(2)
    tap = features.taps(f, x)[0]
    assert (tap.kind, tap.shape, tap.channel_axis) == ("other", (5, 7, 5, 5), None)
    value = features.capture(f, select=tap.name)(x)[1][tap.name]
    for function in (
        similarity.average,
        similarity.positions,
        lambda z, **axis: similarity.resized(z, (2, 2), **axis),
        lambda z, **axis: similarity.fourier_cca(z, z, **axis),
    ):
        with pytest.raises(ValueError, match=r"axis of the channels.*got None.*reshape"):
            function(value, channel_axis=tap.channel_axis)
        with pytest.raises(ValueError, match="one of the axes behind the first"):
            function(value, channel_axis=0)
        with pytest.raises(ValueError, match="one of the axes behind the first"):
            function(value, channel_axis=7)
