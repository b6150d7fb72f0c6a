"""Models of several inputs, one of which is the images, and of several outputs."""

import functools

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from stabjax import features, networks, perturb, probe

IMAGES = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype(np.float32)
DETAILS = np.random.default_rng(1).normal(size=5).astype(np.float32)


def combine(image_layer, detail_layer, details, images):
    """A sum of what both inputs give, beside the part of the images alone."""
    y = image_layer(images).mean((1, 2))
    return {"logits": jnp.tanh(y) * detail_layer(details), "embedding": (y, 2 * y)}


class NNXModel(nnx.Module):
    def __init__(self):
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(5, 4, rngs=nnx.Rngs(1))

    def __call__(self, details, pixels, *, sign=1):
        return combine(self.conv, self.dense, sign * details, pixels)


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, details, pixels, sign=1):
        return combine(nn.Conv(4, (3, 3)), nn.Dense(4), sign * details, pixels)


class EquinoxModel(equinox.Module):
    """A model of one example, whose channels come first."""

    conv: equinox.nn.Conv2d
    dense: equinox.nn.Linear

    def __init__(self):
        self.conv = equinox.nn.Conv2d(2, 4, 3, key=jax.random.key(0))
        self.dense = equinox.nn.Linear(5, 4, key=jax.random.key(1))

    def __call__(self, details, pixels, *, sign=1):
        y = self.conv(pixels).mean((1, 2))
        return {"logits": jnp.tanh(y) * self.dense(sign * details), "embedding": (y, 2 * y)}


def nnx_model():
    model = NNXModel()
    return model, model, {}


def linen_model():
    module = LinenModel()
    variables = module.init(jax.random.key(0), jnp.tile(DETAILS, (3, 1)), IMAGES)
    return module.bind(variables), functools.partial(module.apply, variables), {}


def equinox_model():
    model = EquinoxModel()

    def apply(details, images, sign):
        return jax.vmap(functools.partial(model, sign=sign))(details, jnp.moveaxis(images, -1, 1))

    return model, apply, {"single": True, "layout": "channels_first"}


def pytree_model():
    kernel = jnp.ones((2, 4)) / 3

    def apply(kernel, details, pixels, sign=1):
        return combine(lambda x: x @ kernel, lambda d: d[:, :4], sign * details, pixels)

    model = jax.tree_util.Partial(apply, kernel)
    return model, model, {}


@pytest.mark.parametrize("build", [nnx_model, linen_model, equinox_model, pytree_model])
def test_one_input_is_the_images(build):
    model, apply, options = build()
    network = networks.wrap(model, image="pixels", inputs={"details": DETAILS}, sign=-1, **options)
    outputs = network(IMAGES)
    expected = apply(jnp.tile(DETAILS, (3, 1)), IMAGES, sign=-1)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), outputs, expected)
    names = [tap.name for tap in features.taps(network, IMAGES)]
    assert names[-3:] == ["output/embedding/0", "output/embedding/1", "output/logits"]
    # The other input is a leaf, and can be another array without another program.
    other = networks.wrap(model, image="pixels", inputs={"details": DETAILS + 1}, sign=-1, **options)
    assert jax.tree.structure(other) == jax.tree.structure(network)
    assert not np.allclose(other(IMAGES)["logits"], outputs["logits"])


def test_every_output_is_measured():
    network = networks.wrap(NNXModel(), image="pixels", inputs={"details": DETAILS})
    deformation = perturb.Diffeomorphism.of_displacement(1.0, 2, (6, 6))
    found = probe.stability(network, IMAGES, key=jax.random.key(0), deformation=deformation, draws=2)
    assert found.layers[-3:] == ("output/embedding/0", "output/embedding/1", "output/logits")
    np.testing.assert_allclose(found.relative[-3], found.relative[-2], rtol=1e-4)
    assert np.isfinite(found.relative).all()


def test_arrays_go_into_inputs():
    with pytest.raises(TypeError, match=r"networks.wrap\(model, inputs=\{'details': details\}\)"):
        networks.wrap(NNXModel(), image="pixels", details=DETAILS)


def test_what_no_output_depends_on_is_no_operation():
    def network(x):
        values, _ = jax.jit(lambda y: (jnp.tanh(y), jnp.sin(y)))(x)
        jax.random.key(0)
        return values

    assert [tap.name for tap in features.taps(network, IMAGES)] == ["tanh_0", "output"]
    # Statistics of the batch that nothing reads do not mix rows.
    assert features.mixed_rows(lambda x: (x - x.mean(0, keepdims=True), jnp.tanh(x))[1], IMAGES) == ()
