"""One conformance suite over the table of networks.

What a program tells (shapes, dtypes, operations, numbers of parameters) is asked of all of them without computing; what
has to be compiled, of the smaller ones, and of the others in the long run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import features, models, networks, train
from tests.models.helpers import SHAPES, abstract, filled, forward, images, options

PUBLISHED = {
    "SmallCNN": None,
    "LeNet": 62_006,
    "MinimalCNN": 36_234,
    "MinimalLCN": 8 * 8 * 64 * (4 * 4 * 3 + 1) + 2 * 2 * 64 * 10 + 10,
    "AlexNet": 23_272_266,
    "VGG11": 9_225_610,
    "VGG13": None,
    "VGG16": 14_719_818,
    "VGG19": 20_029_514,
    "VGG11bn": 9_231_114,
    "VGG13bn": None,
    "VGG16bn": 14_728_266,
    "VGG19bn": 20_040_522,
    "ResNet18": 11_173_962,
    "ResNet34": 21_282_122,
    "ResNet50": 23_520_842,
    "PreActResNet18": 11_171_146,
    "ResNeXt29": 9_128_778,
    "DenseNet121": 6_956_298,
    "MobileNetV2": 2_296_922,
    # less the first block's expansion by one, 32 x 32 and its normalization, which is counted but never used
    "EfficientNetB0": 3_599_686 - (32 * 32 + 2 * 32),
    "ConvNeXt": None,
    "ViT": None,
    "FCL2": 3072 * 64 + 64 + 640,
    "FCL4": None,
    "FCL6": None,
    "GAPConvNet1d": None,
    "GAPConvNet2d": None,
}
ONLY_32 = ("MinimalCNN", "MinimalLCN", "ViT", "FCL2", "FCL4", "FCL6", "GAPConvNet1d")
RESIDUALS = {
    "ResNet18": 8,
    "ResNet34": 16,
    "ResNet50": 16,
    "PreActResNet18": 8,
    "ResNeXt29": 9,
    "MobileNetV2": 14,
    "EfficientNetB0": 9,
    "ConvNeXt": 12,
    "ViT": 2 * 2,
}
SLOW = pytest.mark.slow
LONG = ("DenseNet121", "ResNet34", "VGG13", "VGG16", "VGG19", "VGG13bn", "VGG19bn")
"""Traced in the long run only: the first is large, the others repeat the blocks of smaller ones."""
TRACED = [
    pytest.param(name, marks=SLOW) if name in (*LONG, "ResNet50", "MobileNetV2") else name for name in models.NAMES
]
LONG_IN_HALF = (*LONG, "ResNet50", "ResNeXt29", "EfficientNetB0", "MobileNetV2", "VGG16bn", "FCL2", "FCL6")
HALF = [pytest.param(name, marks=SLOW) if name in LONG_IN_HALF else name for name in models.NAMES]
QUICK = ("SmallCNN", "LeNet", "FCL4", "GAPConvNet1d", "MinimalLCN", "ViT")
RUN = (
    *QUICK,
    *[
        pytest.param(name, marks=SLOW)
        for name in models.NAMES
        if name not in (*QUICK, "VGG13", "VGG16", "VGG19", "VGG13bn", "VGG19bn", "FCL2", "FCL6", "ResNet34", "ResNet50")
    ],
)


def tolerance(y):
    return {"rtol": 1e-4, "atol": 1e-5 * float(np.abs(y).max())}


def test_the_table_is_complete():
    assert set(models.NAMES) == set(PUBLISHED)


@pytest.mark.parametrize("name", models.NAMES)
def test_number_of_parameters(name):
    model = nnx.eval_shape(lambda: models.build(name, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert PUBLISHED[name] is None or count == PUBLISHED[name]


@pytest.mark.parametrize("name", TRACED)
def test_operations_are_recognized(name):
    """Every layer with parameters is a tap of the right kind by the path of its parameters; nothing is out of reach."""
    model, x = networks.wrap(abstract(name)), jax.ShapeDtypeStruct((4, *SHAPES.get(name, (32, 32, 3))), jnp.float32)
    taps = features.taps(model, x)
    assert features.hidden(model, x) == features.mixed_rows(model, x) == ()
    kinds = {tap.name: tap.kind for tap in taps}
    assert len(kinds) == len(taps)
    spatial = 1 if name == "GAPConvNet1d" else 2
    for path, leaf in nnx.to_flat_state(nnx.state(abstract(name), nnx.Param)):
        layer = "/".join(map(str, path[:-1]))
        if path[-1] == "kernel":
            assert kinds[layer] == ("conv" if len(leaf.shape) == spatial + 2 else "dense")
        elif path[-1] == "scale":
            assert kinds[layer] == "norm"
        elif path[-1] == "bias":
            assert kinds[layer] in ("conv", "dense", "norm")
        else:
            assert (path[-1], kinds["positions" if path[-1] == "positions" else layer]) in (
                ("gamma", "other"),
                ("positions", "other"),
            )
    assert sum(kind == "residual" for kind in kinds.values()) == RESIDUALS.get(name, 0)
    assert taps[-1].kind == "output"
    assert (taps[-1].shape, taps[-1].dtype) == ((4, 1 if name.startswith("GAP") else 10), jnp.float32)


def shaped(model, dtype, shape, train=False):
    """Shape and dtype of the output, without computing it."""
    view = nnx.view(model, deterministic=not train, use_running_average=not train, raise_if_not_found=False)
    graph, state = nnx.split(view)
    y = jax.eval_shape(
        lambda state, x: nnx.merge(graph, state, copy=True)(x), state, jax.ShapeDtypeStruct((4, *shape), dtype)
    )
    return y.shape, y.dtype


@pytest.mark.parametrize("name", HALF)
def test_half_precision_in_training_mode_and_images_of_28(name):
    model, shape = abstract(name, jnp.bfloat16), SHAPES.get(name, (32, 32, 3))
    if name in ONLY_32:
        with pytest.raises(ValueError, match="expected"):
            shaped(model, jnp.bfloat16, (28, 28, 3))
    elif name not in SHAPES:
        shape = (28, 28, 3)
    assert shaped(model, jnp.bfloat16, shape, train=True) == ((4, 1 if name.startswith("GAP") else 10), jnp.bfloat16)


@pytest.mark.usefixtures("relaxed_promotion")
@pytest.mark.parametrize("name", ["VGG11bn", "PreActResNet18", "ConvNeXt", "ViT", "MinimalLCN"])
def test_half_precision_parameters_take_single_precision_images(name):
    assert shaped(abstract(name, jnp.bfloat16), jnp.float32, (32, 32, 3)) == ((4, 10), jnp.float32)


def differ(a, b):
    """Whether two arrays, or keys, differ anywhere."""
    key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return np.any(np.asarray(jax.random.key_data(a) if key else a) != np.asarray(jax.random.key_data(b) if key else b))


@pytest.mark.parametrize("name", RUN)
def test_both_modes(name):
    model, x = filled(name), images(name)
    f, state = forward(model, train=True)
    y, updated = f(state, x)
    assert np.isfinite(y).all()
    # training mode moves the running statistics and the counters of dropout, and nothing else
    moved = jax.tree.leaves(jax.tree.map(differ, state, updated))
    moving = nnx.state(model, nnx.Any(nnx.BatchStat, nnx.RngCount))
    assert sum(moved) == len(jax.tree.leaves(moving))
    # evaluation mode: rows do not depend on each other
    f, state = forward(model)
    y, updated = f(state, x)
    assert not any(jax.tree.leaves(jax.tree.map(differ, state, updated)))
    y, others = np.asarray(y), np.asarray(f(state, np.concatenate([x[:2], -3 * x[2:]]))[0])
    np.testing.assert_allclose(others[:2], y[:2], **tolerance(y))
    assert not np.allclose(others[2:], y[2:], **tolerance(y))


@pytest.mark.parametrize(
    "name", ["SmallCNN", *[pytest.param(name, marks=SLOW) for name in QUICK[1:]], *RUN[len(QUICK) :]]
)
def test_eager_and_jitted_agree(name):
    """For one in the short run: eagerly, every operation is compiled by itself."""
    model, x = filled(name), images(name)
    f, state = forward(model)
    y = f(state, x)[0]
    np.testing.assert_allclose(model(x), y, **tolerance(y))


@pytest.mark.parametrize("name", [*QUICK, *[p for p in RUN if not isinstance(p, str)]])
def test_gradients(name):
    """Finite in training mode; that of every parameter differs from zero somewhere, or nothing hangs on it."""
    model = filled(name)
    model.train()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, x):
        y = nnx.merge(graph, params, rest, copy=True)(x)
        return jnp.mean(jnp.square(y - 1))

    gradients = jax.jit(jax.grad(loss))(params, rest, images(name))
    for path, gradient in nnx.to_flat_state(gradients):
        values = np.asarray(gradient[...])
        assert np.isfinite(values).all(), path
        assert np.any(values != 0), path


@pytest.mark.parametrize(
    "name",
    [
        "SmallCNN",
        "FCL2",
        "GAPConvNet2d",
        "MinimalLCN",
        "ViT",
        *[pytest.param(n, marks=SLOW) for n in ("LeNet", "VGG11bn", "ResNet18")],
    ],
)
def test_double_precision(x64, name):
    f, state = forward(filled(name, dtype=jnp.float64))
    y = f(state, images(name, dtype=jnp.float64))[0]
    assert y.dtype == jnp.float64
    single = jax.tree.map(lambda a: np.asarray(a).astype(np.float32) if a.dtype == jnp.float64 else a, state)
    rounded = f(single, images(name))[0]
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, y, rtol=1e-3, atol=1e-4 * float(np.abs(y).max()))


def stack(*leaves):
    keys = jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key)
    return jnp.stack(leaves) if keys else np.stack(leaves)


@pytest.mark.parametrize(
    "name", ["SmallCNN", "AlexNet", *[pytest.param(n, marks=SLOW) for n in ("VGG11bn", "ViT", "EfficientNetB0")]]
)
def test_seeds_under_map_and_vmap(name):
    x = images(name)
    several = [filled(name, seed) for seed in range(3)]
    f, _ = forward(several[0])
    states = [forward(network)[1] for network in several]
    stacked = jax.tree.map(stack, *states)
    each = np.stack([f(state, x)[0] for state in states])
    assert not np.allclose(each[0], each[1])
    mapped = jax.jit(lambda s: jax.lax.map(lambda state: f(state, x)[0], s))(stacked)
    batched = jax.jit(jax.vmap(lambda state: f(state, x)[0]))(stacked)
    np.testing.assert_allclose(mapped, each, **tolerance(each))
    np.testing.assert_allclose(batched, each, **tolerance(each))


@pytest.mark.parametrize(
    "name",
    ["LeNet", "AlexNet", "SmallCNN", *[pytest.param(n, marks=SLOW) for n in ("VGG11bn", "ResNet18", "ConvNeXt")]],
)
def test_images_of_28_are_padded_with_two_zeros(name):
    f, state = forward(filled(name, in_channels=1))
    x = np.random.default_rng(3).normal(size=(2, 28, 28, 1)).astype(np.float32)
    y = f(state, np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))))[0]
    np.testing.assert_allclose(f(state, x)[0], y, **tolerance(y))


@SLOW
@pytest.mark.parametrize(("name", "dropouts"), [("AlexNet", 2), ("EfficientNetB0", 9 + 1)])
def test_trains_with_dropout(name, dropouts):
    """The keys of dropout go through the training: they count its steps, and evaluation has none of it."""
    data = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8), np.arange(16) % 10
    recipe = train.Recipe(epochs=1, batch_size=8, rate=1e-3)

    def build(rngs):
        return models.build(name, rngs=rngs, **options(name))

    run = train.fit(build, data, key=jax.random.key(0), recipe=recipe, seeds=2)
    counts = {k: v for k, v in run.last.items() if k.endswith("rngs/count")}
    assert len(counts) == dropouts
    for k, count in counts.items():
        np.testing.assert_array_equal(count, run.initial[k] + 2)
    kernels = [k for k in run.last if k.endswith("kernel")]
    assert all(np.any(run.last[k] != run.initial[k]) for k in kernels)
    assert (run.diverged == -1).all()
    model, x = run.model(), images(name)
    np.testing.assert_array_equal(model(x), model(x))
