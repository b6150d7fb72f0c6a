"""A framework of one's own: one table entry, and every function takes its models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import features, networks, perturb, probe
from stabjax.networks import _network
from tests.sample_networks import conv, normal


class Model:
    """A model of a small framework: layers by name, each with its arrays."""

    def __init__(self, seed):
        self.layers = {"stem": {"kernel": normal(seed, 3, 3, 3, 4)}, "head": {"kernel": normal(seed + 1, 4, 2)}}
        self.training = True

    def forward(self, x, layers=None, training=None):
        layers = self.layers if layers is None else layers
        x = jax.nn.relu(conv(x, layers["stem"]["kernel"])).mean((1, 2))
        x = 0 * x if self.training and training is None else x
        return x @ layers["head"]["kernel"]


def take_apart(model, mode):
    assert mode == "eval"
    return networks.Parts(None, rebuild, model.layers, ("head", "stem"))


def rebuild(skeleton, variables, method):
    assert (skeleton, method) == (None, None)
    return lambda x: Model(0).forward(x, variables, training=False)


FRAMEWORK = networks.Framework("Small", lambda model: isinstance(model, Model), take_apart, is_callable=False)


@pytest.fixture
def registered():
    before = list(_network.FRAMEWORKS)
    networks.register(FRAMEWORK)
    yield
    _network.FRAMEWORKS[:] = before


@pytest.mark.usefixtures("registered")
def test_a_registered_framework_is_known_everywhere():
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 3))
    model = Model(0)
    assert [tap.name for tap in features.taps(model, images)] == ["stem", "relu_0", "avg_pool_0", "head", "output"]
    np.testing.assert_allclose(networks.wrap(model)(images), model.forward(images, training=False), rtol=1e-6)
    result = probe.stability(model, images, key=jax.random.key(1), deformation=perturb.Translation(0.5), batch_size=3)
    assert result.layers == ("input", "stem", "relu_0", "avg_pool_0", "head", "output")
    assert jnp.isfinite(result.relative).all()
    assert model.training


@pytest.mark.usefixtures("registered")
def test_the_last_of_one_name_counts():
    known = len(_network.FRAMEWORKS)
    networks.register(networks.Framework("Small", lambda model: False, take_apart))
    assert len(_network.FRAMEWORKS) == known
    with pytest.raises(TypeError, match="expected a network, a callable, got Model"):
        networks.wrap(Model(0))


@pytest.mark.usefixtures("registered")
def test_modes_are_those_of_the_framework():
    with pytest.raises(ValueError, match="mode='batch_statistics' is for Flax NNX and PyTorch modules, got Model"):
        networks.wrap(Model(0), mode="batch_statistics")
