"""The precision of networks: double throughout where it is asked for, statistics in single precision at least."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from stabjax import features, models, networks, train
from stabjax.models._layers import BatchNorm, LayerNorm
from tests.models.helpers import abstract, filled, forward, images, options

VARIABLES = (nnx.Param, nnx.BatchStat)
QUICK = ("SmallCNN", "VGG11bn", "ViT", "MinimalLCN", "FCL4", "GAPConvNet1d")
"""One of each kind of layer; the others share theirs."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in models.NAMES]
)
def test_everything_is_in_double_precision(name, x64, relaxed_promotion):
    """Every parameter, every statistic, every operation; of images in single precision too."""
    model = abstract(name, jnp.float64)
    for path, leaf in nnx.to_flat_state(nnx.state(model, VARIABLES)):
        assert leaf.dtype == jnp.float64, path
    network = networks.wrap(model)
    for tap in features.taps(network, jax.eval_shape(lambda: images(name, dtype=jnp.float64))):
        assert tap.dtype == jnp.float64, tap.name
    *_, output = features.taps(network, jax.eval_shape(lambda: images(name)))
    assert output.dtype == jnp.float64


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_statistics_are_in_single_precision_at_least(dtype, relaxed_promotion):
    model = nnx.eval_shape(lambda: models.build("VGG11bn", rngs=nnx.Rngs(0), param_dtype=dtype, **options("VGG11bn")))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))} == {jnp.dtype(jnp.float32)}


def by_definition(model, x):
    """VGG11 layer by layer: convolution of `lax`, NumPy's normalization."""
    for number, layer in enumerate(model.features):
        kernel, bias = (np.asarray(getattr(layer.conv, name)[...]) for name in ("kernel", "bias"))
        x = lax.conv_general_dilated(
            jnp.asarray(x), jnp.asarray(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        names = ("mean", "var", "scale", "bias")
        mean, var, scale, offset = (np.asarray(getattr(layer.norm, name)[...]) for name in names)
        x = np.maximum((np.asarray(x) + bias - mean) / np.sqrt(var + 1e-5) * scale + offset, 0)
        if number in (0, 1, 3, 5, 7):
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
    return x.reshape(len(x), -1) @ np.asarray(model.classifier.kernel[...]) + np.asarray(model.classifier.bias[...])


def test_vgg_by_its_definition(x64, relaxed_promotion):
    model = filled("VGG11bn", dtype=jnp.float64)
    x = images("VGG11bn", batch=2, dtype=jnp.float64)
    f, state = forward(model)
    y = f(state, x)[0]
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, by_definition(model, x), rtol=1e-12, atol=1e-12 * float(jnp.abs(y).max()))


def test_statistics_in_double_precision(x64):
    """A third, and moments of images, are not what single precision makes of them."""
    x = np.random.default_rng(0).normal(1 / 3, 1, (6, 5, 3))
    norm = BatchNorm(3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    y = norm(jnp.asarray(x))
    mean, var = x.mean((0, 1)), x.var((0, 1))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-13)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * var * 30 / 29, rtol=1e-13)
    layer = LayerNorm(3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_calibration_keeps_the_precision(batch_size, x64):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.norm = BatchNorm(2, param_dtype=jnp.float64, rngs=rngs)

        def __call__(self, x):
            return self.norm(x)

    x = np.random.default_rng(0).normal(1 / 3, 1, (6, 4, 4, 2))
    model: Any = train.calibrate(Network(nnx.Rngs(0)), x, batch_size=batch_size)
    norm = model.norm
    np.testing.assert_allclose(norm.mean[...], x.mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(norm.var[...], x.var((0, 1, 2)), rtol=1e-13)


BUILDERS = {
    **{name: lambda name=name, **how: models.build(name, **options(name), **how)
       for name in ("SmallCNN", "VGG11bn", "ViT", "ConvNeXt", "MinimalLCN", "FCL2", "GAPConvNet1d")},
    "ConstantFilterCNN": lambda *, rngs, **how: models.ConstantFilterCNN(1, kernel=2, stride=2, depth=2, **how),
    "PatchMLP": models.PatchMLP,
    "SimpleCNN": models.SimpleCNN,
}  # fmt: skip


@pytest.mark.parametrize("name", BUILDERS)
def test_precision_that_is_not_there(name):
    with pytest.raises(ValueError, match="expected param_dtype of at most single precision, got float64"):
        BUILDERS[name](param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    for dtype in (jnp.int32, jnp.complex64, bool):
        with pytest.raises(TypeError, match="expected param_dtype to be a floating-point dtype"):
            BUILDERS[name](param_dtype=dtype, rngs=nnx.Rngs(0))
