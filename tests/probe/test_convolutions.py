"""The convolutions of any network, computed by the library's routes while it is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import features, networks, perturb, probe
from tests.sample_networks import conv, normal

KEY = jax.random.key(0)
SIDE, CHANNELS = 8, 4
DEFORMATION = perturb.Diffeomorphism.of_displacement(0.5, 3, (SIDE, SIDE))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(6, SIDE, SIDE, CHANNELS)).astype(np.float32)


@pytest.fixture(scope="module")
def parameters():
    return {"same": normal(0, 3, 3, CHANNELS, CHANNELS), "depthwise": normal(1, 3, 3, 1, CHANNELS)}


@jax.custom_jvp
def with_a_derivative_of_its_own(x, kernel):
    return conv(x, kernel)


@with_a_derivative_of_its_own.defjvp
def _derivative(primals, tangents):
    return with_a_derivative_of_its_own(*primals), conv(tangents[0], primals[1]) + conv(primals[0], tangents[1])


def plain(p, x):
    x = jax.nn.relu(conv(x, p["same"], stride=2))
    return conv(x, p["depthwise"], groups=CHANNELS)


def scanned(p, x):
    kernels = jnp.stack([p["same"], 2 * p["same"]])
    return jax.lax.scan(lambda x, kernel: (jax.nn.relu(conv(x, kernel)), None), x, kernels)[0]


def nested(p, x):
    x = jax.jit(lambda x: conv(x, p["same"]))(x)
    return jax.checkpoint(lambda x: jnp.tanh(conv(x, p["depthwise"], groups=CHANNELS)))(x)


def custom(p, x):
    return with_a_derivative_of_its_own(conv(x, p["same"]), p["same"])


def branching(p, x):
    return jax.lax.cond(jnp.sum(p["same"]) > 0, lambda x: conv(x, p["same"]), lambda x: x, conv(x, p["same"]))


NETWORKS = {
    "branching": (branching, 1),
    "plain": (plain, 2),
    "scanned": (scanned, 1),
    "nested": (nested, 2),
    "custom": (custom, 1),
}
"""Each with the number of convolutions that a rule is asked for."""


@pytest.mark.parametrize("name", NETWORKS)
def test_rules_take_the_place_of_primitives(name, images, parameters):
    function, expected = NETWORKS[name]
    traced = features.trace(jax.tree_util.Partial(function, parameters), images)
    kernels = []

    def doubled(x, kernel, **options):
        kernels.append(kernel.shape)
        return 2 * jax.lax.conv_general_dilated(x, kernel, **options)

    rules = {"conv_general_dilated": doubled}
    outputs, found = traced.capture(images, rules=rules)
    assert len(kernels) == expected
    plain_outputs, plain_found = traced.capture(images)
    assert list(found) == list(plain_found)
    assert not np.allclose(outputs, plain_outputs)
    # Also where nothing is looked at on the way.
    np.testing.assert_allclose(traced.capture(images, select="output", rules=rules)[1]["output"], outputs, rtol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_those_of_the_networks_own_convolutions(name, images, parameters):
    network = jax.tree_util.Partial(NETWORKS[name][0], parameters)
    fast, own = (
        probe.stability(networks.wrap(network, convolutions=word), images, key=KEY, deformation=DEFORMATION)
        for word in ("fast", "own")
    )
    assert fast.layers == own.layers
    np.testing.assert_allclose(fast.relative, own.relative, rtol=1e-5)
    np.testing.assert_allclose(fast.pair_distance, own.pair_distance, rtol=1e-5)


def test_the_word_decides_what_is_compiled(images, parameters):
    """A depthwise convolution of XLA is one convolution; the route is a sum of products, without one."""

    def convolutions(word):
        network = networks.wrap(jax.tree_util.Partial(plain, parameters), convolutions=word)
        run = jax.jit(lambda key: probe.stability(network, images, key=key, deformation=DEFORMATION).relative)
        return run.lower(KEY).as_text().count("stablehlo.convolution")

    assert convolutions("own") == 2
    assert convolutions("fast") < 2


def test_another_word_is_refused(parameters):
    with pytest.raises(ValueError, match=r"expected convolutions to be one of \('fast', 'own'\), got 'slow'"):
        networks.wrap(jax.tree_util.Partial(plain, parameters), convolutions="slow")
