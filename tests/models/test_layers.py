"""The parts that networks are made of, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stabjax.models._densenet import DenseLayer, Transition
from stabjax.models._efficientnet import MBConv, SqueezeExcitation
from stabjax.models._layers import BatchNorm, LayerNorm, convolution, max_pool, scale_channels
from stabjax.models._minimal import LocalBlock
from stabjax.models._mobilenet import InvertedResidual
from stabjax.models._resnet import PreActBlock, ResidualBlock


def test_width_scales_channels():
    assert [scale_channels("", 64, width) for width in (1, 0.5, 0.26, 1e-3, 2)] == [64, 32, 17, 1, 128]
    assert [scale_channels("", 64, width, multiple=8) for width in (0.3, 1e-3)] == [16, 8]


def test_convolutions_pad_both_sides_alike_at_any_stride(key):
    layer = convolution(4, 6, (3, 3), stride=2, groups=2, use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(key, (2, 8, 8, 4))
    expected = jax.lax.conv_general_dilated(
        x,
        layer.kernel[...],
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert layer.bias is None
    bound = (3 * 3 * 2) ** -0.5
    assert 0.9 * bound < np.abs(layer.kernel[...]).max() <= bound


def test_layer_norm_against_float64():
    draw = np.random.default_rng(0)
    x = (1000 + draw.normal(size=(4, 3, 16))).astype(np.float32)
    layer = LayerNorm(16, rngs=nnx.Rngs(0))
    layer.scale[...], layer.bias[...] = jnp.linspace(1, 2, 16), jnp.linspace(-1, 1, 16)
    exact = x.astype(np.float64)
    centered = exact - exact.mean(-1, keepdims=True)
    expected = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + 1e-6)
    expected = expected * np.linspace(1, 2, 16) + np.linspace(-1, 1, 16)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-3)


def test_locally_connected_windows(key):
    """One window by hand; with one kernel at all positions it is a convolution."""
    block = LocalBlock(3, 5, 4, (2, 3), rngs=nnx.Rngs(0))
    x = jax.random.normal(key, (2, 8, 12, 3))
    kernel, bias = block.kernel[...], block.bias[...]
    y = jnp.einsum("bijc,ijco->bo", x[:, 4:8, 8:12], kernel[1, 2]) + bias[1, 2][None]
    np.testing.assert_allclose(block(x)[:, 1, 2], jnp.maximum(y, 0), rtol=1e-4, atol=1e-5)
    block.kernel[...] = jnp.broadcast_to(kernel[:1, :1], kernel.shape)
    block.bias[...] = jnp.zeros_like(bias)
    y = jax.lax.conv_general_dilated(x, kernel[0, 0], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(block(x), jnp.maximum(y, 0), rtol=1e-4, atol=1e-5)
    wide = LocalBlock(3, 64, 4, (8, 8), rngs=nnx.Rngs(1))
    np.testing.assert_allclose(np.std(wide.kernel[...]), 48**-0.5, rtol=0.01)
    assert 0.98 * 48**-0.5 < np.abs(wide.bias[...]).max() <= 48**-0.5


def test_blocks_without_a_branch_are_the_identity(key):
    """A residual block whose last layer is switched off gives its input back (rectified, if it rectifies the sum)."""
    x = jax.random.normal(key, (3, 6, 6, 4))

    @jax.jit
    def outputs(x):
        rngs = nnx.Rngs(0)
        basic = ResidualBlock(4, (4, 4), (3, 3), stride=1, rngs=rngs)
        basic.layers[-1].norm.scale[...] = jnp.zeros(4)
        before = PreActBlock(4, 4, stride=1, rngs=rngs)
        before.second.conv.kernel[...] = jnp.zeros((3, 3, 4, 4))
        inverted = InvertedResidual(4, 4, expansion=2, stride=1, rngs=rngs)
        inverted.narrow.norm.scale[...] = jnp.zeros(4)
        return basic(x), before(x), inverted(x), InvertedResidual(4, 4, expansion=2, stride=2, rngs=rngs)(x)

    basic, before, inverted, strided = outputs(x)
    np.testing.assert_array_equal(basic, np.maximum(x, 0))
    np.testing.assert_array_equal(before, x)
    np.testing.assert_array_equal(inverted, x)
    assert strided.shape == (3, 3, 3, 4)


def test_dense_layers_add_channels_and_transitions_average(key):
    x = jax.random.normal(key, (2, 4, 4, 6))

    @jax.jit
    def outputs(x):
        transition = Transition(6, 3, (1, 1), rngs=nnx.Rngs(0))
        normed = jnp.maximum(transition.norm(x), 0) @ transition.conv.kernel[0, 0]
        return DenseLayer(6, 3, rngs=nnx.Rngs(0))(x), normed, transition(x)

    y, normed, averaged = map(np.asarray, outputs(x))
    assert y.shape == (2, 4, 4, 9)
    np.testing.assert_array_equal(y[..., :6], x)
    boxes = [np.mean(normed[:, i : i + 2, j : j + 2], (1, 2)) for i in (0, 2) for j in (0, 2)]
    expected = np.reshape(np.stack(boxes, 1), (2, 2, 2, 3))
    np.testing.assert_allclose(averaged, expected, rtol=1e-4, atol=1e-6)


def test_gates_see_the_mean_of_all_positions(key):
    gate = SqueezeExcitation(6, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(key, (3, 4, 4, 6))
    mean = np.asarray(x, np.float64).mean((1, 2))
    squeeze, excite = (
        [np.asarray(p[...]) for p in (layer.kernel, layer.bias)] for layer in (gate.squeeze, gate.excite)
    )
    hidden = mean @ squeeze[0] + squeeze[1]
    hidden = hidden / (1 + np.exp(-hidden))
    share = 1 / (1 + np.exp(-(hidden @ excite[0] + excite[1])))
    np.testing.assert_allclose(gate(x), x * share[:, None, None], rtol=1e-4, atol=1e-6)


def test_whole_images_drop_out_of_a_branch():
    """``x``, or ``x`` and twice the branch, at a rate of one half; in evaluation mode ``x`` and the branch."""
    x = np.random.default_rng(0).normal(size=(64, 5, 5, 4)).astype(np.float32)

    @jax.jit
    def outputs(x):
        block = MBConv(4, 4, expansion=1, kernel=3, stride=1, drop=0.5, rngs=nnx.Rngs(0))
        branch = nnx.view(block, deterministic=True, use_running_average=False)(x) - x
        trained = block(x), block(x)
        block.eval()
        return branch, trained, (block(x), block(x))

    branch, (y, again), evaluated = jax.tree.map(np.asarray, outputs(x))
    factor = np.sum((y - x) * branch, (1, 2, 3)) / np.sum(np.square(branch), (1, 2, 3))
    np.testing.assert_allclose(y - x, factor[:, None, None, None] * branch, atol=1e-4)
    dropped = np.isclose(factor, 0, atol=1e-4)
    np.testing.assert_allclose(factor, np.where(dropped, 0, 2), atol=1e-4)
    assert 16 < dropped.sum() < 48
    assert not np.array_equal(y, again)
    np.testing.assert_array_equal(*evaluated)


def test_max_pool_is_the_windowed_maximum():
    x = jax.random.normal(jax.random.key(4), (3, 6, 9, 5))
    window = (1, 3, 3, 1)
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    np.testing.assert_array_equal(max_pool(x, 3), expected)
    ours, theirs = (
        jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x)
        for f in (
            lambda x: max_pool(x, 3),
            lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID"),
        )
    )
    np.testing.assert_array_equal(ours, theirs)


def test_batch_norm_against_float64():
    """Also where the mean is a thousand deviations: the mean of squares has no digits left there."""
    draw = np.random.default_rng(0)
    x = (1000 + draw.normal(size=(10, 2, 2, 3)) * np.array([1, 2, 0.5])).astype(np.float32)
    layer = BatchNorm(3, rngs=nnx.Rngs(0))
    layer.scale[...] = jnp.array([1.0, 2.0, 3.0])
    layer.bias[...] = jnp.array([0.5, 0.0, -0.5])
    y = layer(jnp.asarray(x))
    exact = x.astype(np.float64)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    expected = (exact - mean) / np.sqrt(variance + 1e-5) * np.array([1, 2, 3]) + np.array([0.5, 0, -0.5])
    np.testing.assert_allclose(y, expected, atol=2e-3)
    np.testing.assert_allclose(layer.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * exact.var((0, 1, 2), ddof=1), rtol=1e-3)
    layer.eval()
    running = (exact - np.asarray(layer.mean[...])) / np.sqrt(np.asarray(layer.var[...]) + 1e-5)
    np.testing.assert_allclose(
        layer(jnp.asarray(x)), running * np.array([1, 2, 3]) + np.array([0.5, 0, -0.5]), rtol=1e-4
    )
