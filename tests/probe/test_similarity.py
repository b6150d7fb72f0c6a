"""Every layer against every layer: batches against whole arrays, two strategies for one matrix."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import features, networks, perturb, probe, similarity
from stabjax.probe import _comparison, _layers
from tests.probe.similarity_cases import (
    FEW,
    MANY,
    MEASURES,
    OF_ARRAYS,
    OTHERS,
    F,
    G,
    activations,
    compare_by,
    compared,
    make_images,
    network,
    of_two,
    whole,
)
from tests.similarity.sets import numpy_cka

SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


# 30 images: one tile whose last batch is short, tiles of one batch, of two batches; all at once.
@pytest.mark.parametrize(
    ("measure", "batch_size", "memory"),
    [
        ("cka", 7, 1.0),
        ("cka_debiased", 4, 41 * 4 * 8.5 / 2**30),
        pytest.param("cka_debiased", 29, 1e-9, marks=SLOW),
        pytest.param("cka", 64, 1.0, marks=SLOW),
        pytest.param("cka", 1, 1.0, marks=SLOW),
    ],
)
def test_batches_of_grams(measure, batch_size, memory):
    found = compared(F, G, FEW, others=OTHERS, measure=measure, batch_size=batch_size, memory=memory)
    np.testing.assert_allclose(found.matrix, of_two(F, G, FEW, OTHERS, measure=measure), atol=1e-5)
    assert found.layers == found.other_layers == ("conv", "dense")
    assert found.kinds == ("conv", "dense")
    assert found.valid.all()
    assert found.measured.all()
    assert (found.interval[..., 0] < found.matrix).all()
    assert (found.matrix < found.interval[..., 1]).all()


@pytest.mark.parametrize(
    ("measure", "units"),
    [
        ("cka_debiased", "all"),
        ("cca", "all"),
        pytest.param("pwcca", "average", marks=SLOW),
        *(pytest.param(measure, "all", marks=SLOW) for measure in ("cka", "svcca", "pwcca")),
        *(pytest.param(measure, "average", marks=SLOW) for measure in MEASURES[:-1]),
    ],
)
def test_batches_of_products(measure, units):
    found = compared(F, G, MANY, measure=measure, units=units, batch_size=40)
    np.testing.assert_allclose(found.matrix, of_two(F, G, MANY, measure=measure, units=units), atol=1e-5)
    assert np.isfinite(found.interval).all() == measure.startswith("cka")
    assert (found.measure, found.units) == (measure, units)


OF_ROOM = {
    "cka": similarity.cka,
    "cka_debiased": partial(similarity.cka, debiased=True),
    "cca": lambda x, y: similarity.cca(x, y).mean,
    "svcca": lambda x, y: similarity.svcca(x, y).mean,
    "pwcca": similarity.pwcca,
}


@pytest.mark.parametrize(
    "measure", ["cka_debiased", *(pytest.param(m, marks=SLOW) for m in MEASURES if m != "cka_debiased")]
)
def test_the_measures_are_those_of_similarity(measure):
    both = [activations(f, MANY)["dense"] for f in (F, G)]
    value = jax.jit(OF_ROOM[measure])(*both)
    np.testing.assert_allclose(OF_ARRAYS[measure](*(np.asarray(x, np.float64) for x in both)), value, atol=1e-5)


@pytest.mark.parametrize("measure", ["cka_debiased", pytest.param("cka", marks=SLOW)])
def test_both_strategies_agree(measure):
    by_products, by_grams = (compare_by(strategy, F, G, MANY, measure=measure) for strategy in ("products", "grams"))
    assert (np.asarray(by_products.matrix) != np.asarray(by_grams.matrix)).any(), "the same strategy twice"
    for name in ("matrix", "interval"):
        np.testing.assert_allclose(getattr(by_products, name), getattr(by_grams, name), atol=2e-6)


def test_the_smaller_strategy_is_chosen():
    layers = _layers.Layers(("a", "b"), ("conv", "conv"), (30, 20), (np.dtype(np.float32),) * 2)
    choose = _comparison.choose_strategy
    assert choose((layers,), 101) == "products"
    assert choose((layers, layers), 100) == "grams"
    # (50 + 50)^2 products of both, 2 (30^2 + 20^2) of each by itself.
    numbers = 50 * 50 + 2 * (30**2 + 20**2)
    assert choose((layers, layers), 101, numbers * 4 / 2**30) == "products"
    assert choose((layers, layers), 101, numbers * 3.9 / 2**30) == "grams"
    assert choose((layers, layers), None) == "products"


@pytest.mark.parametrize(
    ("images", "measure"),
    [
        (FEW, "cka_debiased"),
        pytest.param(FEW, "cka", marks=SLOW),
        *(pytest.param(MANY, m, marks=SLOW) for m in MEASURES),
    ],
)
def test_a_network_and_itself(images, measure):
    found = compared(F, F, images, measure=measure)
    np.testing.assert_allclose(np.diag(found.matrix), 1, atol=1e-6)
    if measure != "pwcca":
        np.testing.assert_allclose(found.matrix, found.matrix.T, atol=1e-6)
    if measure.startswith("cka"):
        np.testing.assert_allclose(found.interval[np.arange(2), np.arange(2)], 1, atol=1e-5)
    np.testing.assert_allclose(found.matrix, of_two(F, F, images, measure=measure), atol=1e-5)


def test_a_copy_of_a_network():
    """It runs by itself, and compares as the network itself does."""
    copy = jax.tree.map(lambda leaf: leaf + 0, F)
    found = compared(F, copy, FEW, batch_size=7)
    np.testing.assert_allclose(found.matrix, of_two(F, F, FEW), atol=1e-5)
    np.testing.assert_allclose(found.interval[np.arange(2), np.arange(2)], 1, atol=1e-5)


def test_clean_against_deformed():
    (deformed,), _ = probe.perturbed(FEW, key=jax.random.key(1), deformation=perturb.Diffeomorphism(3e-2, 2))
    found = compared(F, F, FEW, others=deformed, batch_size=7)
    np.testing.assert_allclose(found.matrix, of_two(F, F, FEW, deformed), atol=1e-5)
    assert (np.diag(found.matrix) < 0.999).all()


def test_all_operations_and_other_images_of_another_shape():
    g = networks.wrap(lambda x: jnp.tanh(x[:, ::2, :, 0]))
    larger = make_images(30, seed=3)[:, :, :4]
    found = probe.similarity(F, g, FEW, others=larger, batch_size=16)
    np.testing.assert_allclose(found.matrix, whole(F, g, FEW, larger), atol=1e-5)
    assert found.layers == ("conv", "norm", "relu_0", "dense", "output")
    assert found.kinds == ("conv", "norm", "activation", "dense", "output")
    assert found.matrix.shape == (5, len(found.other_layers))


# Other networks


class Layered(nn.Module):
    """Residual blocks scanned over."""

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + nn.tanh(nn.Dense(4)(x)), None

        x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(
            nn.Dense(4)(x), None
        )
        return jnp.reshape(x, (len(x), -1))


class Single(eqx.Module):
    conv: eqx.nn.Conv2d

    def __call__(self, x):
        return jax.nn.relu(self.conv(x)).mean((1, 2))


@SLOW
def test_guests_of_other_frameworks():
    module = Layered()
    f = networks.wrap(module.bind(module.init(jax.random.key(0), FEW[:1])))
    g = networks.wrap(Single(eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0))), single=True, layout="channels_first")
    found = probe.similarity(f, g, FEW, batch_size=17, select=lambda tap: tap.kind in ("dense", "output"))
    assert found.layers == ("Dense_0", *(f"ScanBlock_0/{k}/Dense_0" for k in range(3)), "output")
    expected = [[numpy_cka(x, y) for y in double(g, found.other_layers)] for x in double(f, found.layers)]
    np.testing.assert_allclose(found.matrix, expected, atol=1e-5)


def double(f, layers):
    found = activations(f, FEW)
    return [np.asarray(found[name], np.float64) for name in layers]


def test_averages_find_the_channels():
    """Channels in the middle, windows as parts of the batch axis, complex numbers."""
    shapes = {(6, 5, 4, 3): (3, (6, 3)), (6, 3, 5, 4): (1, (6, 3)), (12, 5, 3): (2, (6, 3)), (6, 7): (1, (6, 7))}
    for shape, (axis, expected) in shapes.items():
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        tap = features.Tap("a", "conv", shape, jnp.float32, axis)
        found = _layers._units(6, "average", tap, jnp.asarray(x))
        assert found.shape == expected
        if x.ndim > 2:
            by_channel = np.moveaxis(x, axis, -1).reshape(6, -1, expected[1])
            np.testing.assert_allclose(found, by_channel.mean(1), atol=1e-6)
        both = _layers._units(6, "average", tap, jnp.asarray(x + 2j * x))
        parts = both.reshape(6, -1, 2) if x.ndim > 2 else both.reshape(6, 7, 2)
        np.testing.assert_allclose(parts, np.stack([found, 2 * found], -1), atol=1e-6)


def test_batch_statistics_need_all_images_together():
    f = network(mode="batch_statistics")
    with pytest.raises(ValueError, match=r"depend on themselves alone.*batch_size=30"):
        compared(f, f, FEW, batch_size=29)
    with pytest.raises(ValueError, match="depend on themselves alone"):
        compared(F, f, FEW, batch_size=1)


@SLOW
def test_batch_statistics_of_all_images():
    f = network(mode="batch_statistics")
    found = compared(f, f, FEW, batch_size=30)
    np.testing.assert_allclose(found.matrix, of_two(f, f, FEW), atol=1e-5)
