"""What each network is known to be; the suite that all of them pass is in `test_zoo`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import features, models, networks
from tests.models.helpers import abstract, forward, images, options


def small(name, seed=0):
    return models.build(name, rngs=nnx.Rngs(seed), **options(name))


@pytest.mark.parametrize("name", ["LeNet", "SmallCNN", "MinimalCNN", "AlexNet"])
def test_starts_as_pytorch_does(name):
    """Weights and biases uniform within 1 / sqrt(fan_in), whatever the kind of layer."""
    state = nnx.state(small(name), nnx.Param)
    layers = {}
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(state)):
        layers.setdefault(jax.tree_util.keystr(path[:-1]), {})[path[-1].key] = np.asarray(leaf)
    for layer in layers.values():
        if "kernel" not in layer:
            continue
        bound = np.prod(layer["kernel"].shape[:-1]) ** -0.5
        for leaf in layer.values():
            assert np.abs(leaf).max() <= bound
        if layer["kernel"].size > 400:
            assert np.abs(layer["kernel"]).max() > 0.98 * bound
            np.testing.assert_allclose(np.std(layer["kernel"]), bound / 3**0.5, rtol=0.08)


def test_standard_normal_networks_scale_in_the_forward_pass():
    model = models.FullyConnected(3072, layers=4, width=64, rngs=nnx.Rngs(0))
    x = np.asarray(images("FCL4"))
    y = np.reshape(x, (4, -1))
    for layer in model.layers:
        kernel, bias = np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])
        np.testing.assert_allclose(np.std(kernel), 1, rtol=0.05)
        y = np.maximum(y @ kernel / kernel.shape[0] ** 0.5 + bias, 0)
    assert model.classifier.bias is None
    expected = y @ np.asarray(model.classifier.kernel[...]) / 64
    np.testing.assert_allclose(nnx.jit(model)(x), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_scale_detection_net_is_periodic_and_averages(kernel):
    """A cyclic shift by the total stride permutes the last maps, and their mean stays."""
    model = models.GAPConvNet(1, blocks=3, channels=8, kernel=kernel, stride=2, rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(2), (2, 64, 1)))
    f, state = forward(model)
    y = f(state, x)[0]
    np.testing.assert_allclose(f(state, np.roll(x, 8, 1))[0], y, rtol=1e-4)
    assert not np.allclose(f(state, np.roll(x, 1, 1))[0], y, rtol=1e-3)
    # first block by hand: kernel 2 pads one pixel on the right, kernel 3 one on both sides
    block = model.blocks[0]
    weights, bias = np.asarray(block.kernel[...])[:, 0], np.asarray(block.bias[...])
    window = np.stack([np.roll(x[..., 0], (kernel - 1) // 2 - k, 1)[:, ::2] for k in range(kernel)], -1)
    response = np.einsum("npk,kh->nph", window, weights) / kernel**0.5 + bias
    expected = kernel**0.5 * np.maximum(response, 0)
    np.testing.assert_allclose(jax.jit(lambda x: block(x))(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("VGG11", (2, 33, 32, 3), "multiples of 32.*33 x 32"),
        ("SmallCNN", (2, 30, 32, 3), "multiples of 4.*30 x 32"),
        ("LeNet", (2, 64, 64, 3), "32 x 32 or 28 x 28.*64 x 64"),
        ("AlexNet", (2, 64, 64, 3), "32 x 32 or 28 x 28.*64 x 64"),
        ("MinimalCNN", (2, 28, 28, 3), "32 x 32.*28 x 28"),
        ("MinimalLCN", (2, 28, 28, 3), "32 x 32.*28 x 28"),
        ("ViT", (2, 28, 28, 3), "32 x 32.*28 x 28"),
        ("ConvNeXt", (2, 40, 32, 3), "multiples of 16.*40 x 32"),
        ("ResNet18", (2, 32, 32, 1), "in_channels=1"),
        ("VGG11", (2, 32, 32, 1), "in_channels=1"),
        ("FCL4", (2, 28, 28, 1), "in_features=784"),
    ],
)
def test_images_that_do_not_fit(name, shape, says):
    graph, state = nnx.split(abstract(name))
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: models.VGG(12, rngs=rngs),
        lambda rngs: models.VGG(11, width=0, rngs=rngs),
        *[
            lambda rngs, name=name: models.build(name, width=0, rngs=rngs)
            for name in ("AlexNet", "ResNet18", "PreActResNet18", "ResNeXt29", "DenseNet121", "MobileNetV2")
        ],
        *[
            lambda rngs, name=name: models.build(name, width=-1, rngs=rngs)
            for name in ("EfficientNetB0", "ConvNeXt", "ViT")
        ],
        lambda rngs: models.ResNet(20, rngs=rngs),
        lambda rngs: models.PreActResNet(50, rngs=rngs),
        lambda rngs: models.DenseNet(169, rngs=rngs),
        lambda rngs: models.ResNeXt(groups=0, rngs=rngs),
        lambda rngs: models.VisionTransformer(30, rngs=rngs),
        lambda rngs: models.VisionTransformer(32, width=64, rngs=rngs),
        lambda rngs: models.VisionTransformer(32, depth=0, rngs=rngs),
        lambda rngs: models.MinimalCNN(31, rngs=rngs),
        lambda rngs: models.MinimalCNN(32, pooling="median", rngs=rngs),
        lambda rngs: models.MinimalLCN(24, rngs=rngs),
        lambda rngs: models.FullyConnected(10, layers=1, rngs=rngs),
        lambda rngs: models.GAPConvNet(3, rngs=rngs),
        lambda rngs: models.GAPConvNet(1, blocks=0, rngs=rngs),
        lambda rngs: models.build("VGG12", rngs=rngs),
    ],
)
def test_networks_that_do_not_exist(make):
    with pytest.raises(ValueError, match="expected"):
        make(nnx.Rngs(0))


def test_names_of_the_parameters():
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(small("VGG11bn")))}
    assert {"features/0/conv/kernel", "features/7/norm/scale", "features/7/norm/var", "classifier/bias"} <= paths


def test_larger_images_are_averaged_at_the_end():
    f, state = forward(small("VGG11"))
    x = images("VGG11", 2)
    tiled = jnp.tile(x, (1, 2, 2, 1))
    assert f(state, tiled)[0].shape == (2, 10)


def test_residual_nets_take_any_size():
    graph, state = nnx.split(abstract("ResNet18"))
    x = jax.ShapeDtypeStruct((2, 45, 30, 3), jnp.float32)
    assert jax.eval_shape(lambda s, x: nnx.merge(graph, s, copy=True)(x), state, x).shape == (2, 10)


@pytest.mark.parametrize("network", [models.MinimalCNN, models.MinimalLCN])
def test_one_hidden_layer_with_other_pooling(network, key):
    sizes = {"channels": 3, "kernel": 1, "in_channels": 1, "rngs": nnx.Rngs(0)}
    x = jax.random.normal(key, (2, 8, 8, 1))
    averaged, unpooled = network(8, pooling="average", **sizes), network(8, pool=1, **sizes)
    maps = averaged.features(x)
    means = jnp.stack([jnp.mean(maps[:, i : i + 4, j : j + 4], (1, 2)) for i in (0, 4) for j in (0, 4)], 1)
    np.testing.assert_allclose(averaged(x), averaged.classifier(jnp.reshape(means, (2, -1))), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        unpooled(x), unpooled.classifier(jnp.reshape(unpooled.features(x), (2, -1))), rtol=1e-4, atol=1e-6
    )


def test_transformer_without_positions_does_not_see_the_order_of_patches():
    model = small("ViT")
    f, state = forward(model)
    patches = np.reshape(np.asarray(images("ViT", 2)), (2, 8, 4, 8, 4, 3)).transpose(0, 1, 3, 2, 4, 5)
    patches = np.reshape(patches, (2, 64, 4, 4, 3))

    def shown(patches):
        return np.reshape(np.reshape(patches, (2, 8, 8, 4, 4, 3)).transpose(0, 1, 3, 2, 4, 5), (2, 32, 32, 3))

    other = patches[:, np.random.default_rng(0).permutation(64)]
    assert not np.allclose(f(state, shown(patches))[0], f(state, shown(other))[0], atol=1e-5)
    model.positions[...] = np.zeros_like(model.positions[...])
    state = nnx.state(model)
    np.testing.assert_allclose(f(state, shown(patches))[0], f(state, shown(other))[0], rtol=1e-3, atol=1e-5)


# Constant filters


def test_constant_filters_count_paths():
    network = models.ConstantFilterCNN(1, kernel=3, stride=2, depth=3, weights="one")
    counts = network(jnp.eye(64)[:, :, None])[:, :, 0]
    # The third layer has 8 units, whose fields of 15 pixels start every 8; the first ones hang over the edge by 7.
    assert counts.shape == (64, 8)
    np.testing.assert_array_equal(counts[17 - 8 : 32 - 8, 2], [1, 1, 2, 1, 3, 2, 3, 1, 3, 2, 3, 1, 2, 1, 1])
    assert np.sum(counts[:, 2]) == 27


def test_constant_filters_keep_the_sum_and_add_the_bias():
    network = models.ConstantFilterCNN(1, kernel=4, stride=2, depth=2)
    pixel = jnp.zeros((1, 40, 1)).at[0, 20].set(1)
    np.testing.assert_allclose(jnp.sum(network(pixel)), 1, rtol=1e-6)
    biased = models.ConstantFilterCNN(1, kernel=4, stride=2, depth=2, bias=jnp.asarray(0.5))
    inside = (biased(pixel) - network(pixel))[0, 3:-3, 0]
    np.testing.assert_allclose(inside, 0.5 + 0.5 * 2, rtol=1e-6)
    negative = models.ConstantFilterCNN(1, kernel=4, stride=2, depth=2, bias=-10)
    np.testing.assert_array_equal(negative(pixel), 0)


def test_constant_filters_of_images_are_products_of_those_of_signals(key):
    rows, columns = jax.random.uniform(key, (2, 12))
    columns = columns[:9]
    options = {"kernel": 3, "stride": 2, "depth": 2}
    line, plane = (models.ConstantFilterCNN(ndim, **options) for ndim in (1, 2))
    image = rows[:, None] * columns[None]
    expected = line(rows[None, :, None])[0] * line(columns[None, :, None])[0].T
    np.testing.assert_allclose(plane(image[None, :, :, None])[0, :, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"kernel": 2, "stride": 3}, "kernel >= stride"),
        ({"ndim": 3}, "ndim 1 or 2"),
        ({"depth": 0}, "depth and stride >= 1"),
        ({"weights": "two"}, "stride/kernel or one"),
    ],
)
def test_constant_filters_that_do_not_exist(changed, says):
    options = {"ndim": 1, "kernel": 3, "stride": 2, "depth": 2} | changed
    with pytest.raises(ValueError, match=says):
        models.ConstantFilterCNN(options.pop("ndim"), **options)


def sizes(model):
    return [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]


def test_the_network_of_the_primer(key):
    model = models.SimpleCNN(rngs=nnx.Rngs(0))
    assert sizes(model) == [4, 36, 8, 288, 16, 1152, 16, 2304, 10, 1440]
    assert sum(sizes(model)) == 5_274
    x = jax.random.uniform(key, (3, 28, 28, 1))
    maps = jax.eval_shape(features.capture(networks.wrap(model)), x)[1]
    assert [a.shape[1:] for tap, a in maps.items() if tap.startswith("layers/")] == [
        (14, 14, 4),
        (7, 7, 8),
        (4, 4, 16),
        (2, 2, 16),
        (1, 1, 10),
    ]
    assert model(x).shape == (3, 10)
    with pytest.raises(ValueError, match="28 x 28"):
        model(jnp.zeros((1, 32, 32, 1)))


def test_dense_layers_over_patches(key):
    model = models.PatchMLP(rngs=nnx.Rngs(0))
    assert sum(sizes(model)) == 12_288
    x = np.asarray(jax.random.normal(key, (6, 32, 32, 1)))
    y = np.asarray(nnx.jit(model)(x))
    assert y.shape == (6, 16, 128)
    first, second = (np.asarray(layer.kernel[...]) for layer in model.layers)
    patch = x[2, 8:16, 24:32].reshape(-1)
    np.testing.assert_allclose(y[2, 4 + 3], np.maximum(patch @ first, 0) @ second, rtol=1e-4, atol=1e-5)
