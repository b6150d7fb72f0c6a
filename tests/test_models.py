"""One conformance suite over the table of networks, and what each is known to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import models
from stabjax.models._layers import BatchNorm, max_pool

PUBLISHED = {
    "SmallCNN": None,
    "LeNet": 62_006,
    "MinimalCNN": 36_234,
    "VGG11": 9_225_610,
    "VGG13": None,
    "VGG16": 14_719_818,
    "VGG19": 20_029_514,
    "VGG11bn": 9_231_114,
    "VGG13bn": None,
    "VGG16bn": 14_728_266,
    "VGG19bn": 20_040_522,
    "FCL2": 3072 * 64 + 64 + 640,
    "FCL4": None,
    "FCL6": None,
    "GAPConvNet1d": None,
    "GAPConvNet2d": None,
}
SMALL = {
    "SmallCNN": {"channels": (4, 6)},
    **{f"VGG{depth}{norm}": {"width": 1 / 32} for depth in (11, 13, 16, 19) for norm in ("", "bn")},
    "GAPConvNet1d": {"channels": 6},
    "GAPConvNet2d": {"channels": 6},
}
SHAPES = {"GAPConvNet1d": (128, 1), "GAPConvNet2d": (28, 28, 1)}
SLOW = pytest.mark.slow
RUN = (
    "SmallCNN",
    "LeNet",
    "FCL4",
    "GAPConvNet1d",
    *[pytest.param(name, marks=SLOW) for name in ("MinimalCNN", "VGG11", "VGG11bn", "VGG16bn", "GAPConvNet2d")],
)


def small(name, seed=0, **options):
    return models.build(name, rngs=nnx.Rngs(seed), **SMALL.get(name, {}), **options)


def images(name, batch=4, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (batch, *SHAPES.get(name, (32, 32, 3)))).astype(dtype)


def forward(model, train=False):
    """A pure function of (state, x), jitted, with the state."""
    model.train() if train else model.eval()
    graph, state = nnx.split(model)

    def f(state, x):
        merged = nnx.merge(graph, state)
        return merged(x), nnx.state(merged)

    return jax.jit(f), state


def test_the_table_is_complete():
    assert set(models.NAMES) == set(PUBLISHED)


@pytest.mark.parametrize("name", models.NAMES)
def test_number_of_parameters(name):
    model = nnx.eval_shape(lambda: models.build(name, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert PUBLISHED[name] is None or count == PUBLISHED[name]


@pytest.mark.parametrize("name", RUN)
def test_both_modes(name):
    model, x = small(name), images(name)
    f, state = forward(model, train=True)
    y, updated = f(state, x)
    assert y.shape == (4, 1 if name.startswith("GAP") else 10)
    assert y.dtype == jnp.float32
    assert np.isfinite(y).all()
    # training mode moves the running statistics and nothing else
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state, updated))
    statistics = len(jax.tree.leaves(nnx.state(model, nnx.BatchStat)))
    assert sum(moved) == statistics
    # evaluation mode: rows do not depend on each other, eager and jitted agree
    f, state = forward(model)
    y, updated = f(state, x)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), state, updated)))
    np.testing.assert_allclose(f(state, x[:2])[0], y[:2], rtol=1e-4, atol=1e-5 * float(jnp.abs(y).max()))
    np.testing.assert_allclose(model(x), y, rtol=1e-4, atol=1e-5 * float(jnp.abs(y).max()))


@pytest.mark.parametrize(
    "name", ["SmallCNN", "FCL2", "GAPConvNet2d", *[pytest.param(name, marks=SLOW) for name in ("LeNet", "VGG11bn")]]
)
def test_double_precision(x64, name):
    model = small(name, param_dtype=jnp.float64)
    f, state = forward(model)
    y = f(state, images(name, dtype=jnp.float64))[0]
    assert y.dtype == jnp.float64
    single = jax.tree.map(lambda a: a.astype(jnp.float32), state)
    rounded = f(single, images(name))[0]
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, y, rtol=1e-3, atol=1e-4 * float(jnp.abs(y).max()))


@pytest.mark.parametrize("name", ["SmallCNN", pytest.param("VGG11bn", marks=SLOW)])
def test_seeds_under_map_and_vmap(name):
    x = images(name)
    networks = [small(name, seed) for seed in range(3)]
    f, _ = forward(networks[0])
    states = [forward(network)[1] for network in networks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    each = jnp.stack([f(state, x)[0] for state in states])
    assert not np.allclose(each[0], each[1])
    mapped = jax.jit(lambda s: jax.lax.map(lambda state: f(state, x)[0], s))(stacked)
    batched = jax.jit(jax.vmap(lambda state: f(state, x)[0]))(stacked)
    tolerance = 1e-5 * float(jnp.abs(each).max())
    np.testing.assert_allclose(mapped, each, rtol=1e-4, atol=tolerance)
    np.testing.assert_allclose(batched, each, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("name", ["LeNet", "SmallCNN", "MinimalCNN"])
def test_starts_as_pytorch_does(name):
    """Weights and biases uniform within 1 / sqrt(fan_in), whatever the kind of layer."""
    state = nnx.state(small(name), nnx.Param)
    layers = {}
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(state)):
        layers.setdefault(jax.tree_util.keystr(path[:-1]), {})[path[-1].key] = leaf
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
    x = images("FCL4")
    y = jnp.reshape(x, (4, -1))
    for layer in model.layers:
        np.testing.assert_allclose(np.std(layer.kernel[...]), 1, rtol=0.05)
        y = jnp.maximum(y @ layer.kernel[...] / layer.kernel.shape[0] ** 0.5 + layer.bias[...][None], 0)
    assert model.classifier.bias is None
    np.testing.assert_allclose(model(x), y @ model.classifier.kernel[...] / 64, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", [2, 3])
def test_scale_detection_net_is_periodic_and_averages(kernel):
    """A cyclic shift by the total stride permutes the last maps, and their mean stays."""
    model = models.GAPConvNet(1, blocks=3, channels=8, kernel=kernel, stride=2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(2), (2, 64, 1))
    np.testing.assert_allclose(model(jnp.roll(x, 8, 1)), model(x), rtol=1e-4)
    assert not np.allclose(model(jnp.roll(x, 1, 1)), model(x), rtol=1e-3)
    # first block by hand: kernel 2 pads one pixel on the right, kernel 3 one on both sides
    block = model.blocks[0]
    window = jnp.stack([jnp.roll(x[..., 0], (kernel - 1) // 2 - k, 1)[:, ::2] for k in range(kernel)], -1)
    response = jnp.einsum("npk,kh->nph", window, block.kernel[:, 0]) / kernel**0.5 + block.bias[...][None, None]
    np.testing.assert_allclose(block(x), kernel**0.5 * jnp.maximum(response, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["LeNet", "SmallCNN", pytest.param("VGG11bn", marks=SLOW)])
def test_images_of_28_are_padded_with_two_zeros(name):
    f, state = forward(small(name, in_channels=1))
    x = jax.random.normal(jax.random.key(3), (2, 28, 28, 1))
    padded = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    np.testing.assert_allclose(f(state, x)[0], f(state, padded)[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("VGG11", (2, 33, 32, 3), "multiples of 32.*33 x 32"),
        ("SmallCNN", (2, 30, 32, 3), "multiples of 4.*30 x 32"),
        ("LeNet", (2, 64, 64, 3), "32 x 32 or 28 x 28.*64 x 64"),
        ("MinimalCNN", (2, 28, 28, 3), "32 x 32.*28 x 28"),
        ("VGG11", (2, 32, 32, 1), "in_channels=1"),
        ("FCL4", (2, 28, 28, 1), "in_features=784"),
    ],
)
def test_images_that_do_not_fit(name, shape, says):
    model = small(name)
    with pytest.raises(ValueError, match=says):
        jax.eval_shape(lambda x: model(x), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda rngs: models.VGG(12, rngs=rngs),
        lambda rngs: models.VGG(11, width=0, rngs=rngs),
        lambda rngs: models.MinimalCNN(31, rngs=rngs),
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
