"""Every layer against every layer: batches against whole arrays, two ways to one matrix, intervals by resampling."""

import itertools
from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import features, networks, perturb, probe, similarity
from stabjax.probe import _compare, _grams, _layers
from stabjax.similarity import _pooled, _streamed

SIDE = 6
SELECT = ("conv", "dense")
SLOW = pytest.mark.slow
MEASURES = ("cka", "cka_debiased", "cca", "svcca", "pwcca")
pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


class Net(nnx.Module):
    """A convolution, batch normalisation, ReLU and a dense layer; 36 and 5 units in the layers compared here."""

    def __init__(self, *, rngs, channels=4):
        self.conv = nnx.Conv(3, channels, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(channels, rngs=rngs)
        self.dense = nnx.Linear(channels * (SIDE // 2) ** 2, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.dense(jnp.reshape(x, (len(x), -1)))


def network(seed=0, **options):
    return networks.wrap(Net(rngs=nnx.Rngs(seed)), **options)


F, G = network(0), network(1)


def make_images(n, seed=0):
    coarse = jax.random.normal(jax.random.key(seed), (n, 3, 3, 3))
    return jax.image.resize(coarse, (n, SIDE, SIDE, 3), "linear")


FEW, MANY = make_images(30), make_images(130)  # fewer and more than the 82 units of two networks
OTHERS = make_images(30, seed=1)


# The same from whole activations, in plain NumPy


def numpy_cka(x, y, debiased=False):
    k, m = x @ x.T, y @ y.T
    n = len(k)
    if debiased:
        k, m = (z - np.diag(np.diag(z)) for z in (k, m))

        def hsic(k, m):
            means = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
            return (k * m).sum() + means

    else:

        def hsic(k, m):
            h = np.eye(n) - 1 / n
            return np.trace(k @ h @ m @ h)

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def principal(x, share=1.0):
    left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    before = np.cumsum(values**2) - values**2
    kept = (before < share * np.sum(values**2)) & (values > 1e-6 * values[0])
    return left[:, kept], values[kept], right[kept]


def numpy_cca(x, y, share=1.0, weigh=False):
    one, two = (principal(z, share) for z in (x, y))
    left, correlations, _ = np.linalg.svd(one[0].T @ two[0], full_matrices=False)
    variates = one[0] @ left
    weights = np.abs(variates.T @ (x - x.mean(0))).sum(1) if weigh else np.ones_like(correlations)
    return (weights * correlations).sum() / weights.sum()


OF_ARRAYS = {
    "cka": numpy_cka,
    "cka_debiased": partial(numpy_cka, debiased=True),
    "cca": numpy_cca,
    "svcca": partial(numpy_cca, share=0.99),
    "pwcca": partial(numpy_cca, weigh=True),
}


@partial(jax.jit, static_argnames="units")
def activations(f, images, units="all"):
    def flat(tap, x):
        if units == "average" and x.ndim > 2:
            return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        return jnp.reshape(x, (len(x), -1))

    return features.capture(f, reduce=flat)(images)[1]


def whole(f, g, images, others=None, *, measure="cka", units="all", layers=None):
    """The matrix, pair by pair; of the layers with these names, of all without."""
    f, g = (h if isinstance(h, networks.Network) else networks.wrap(h) for h in (f, g))
    both = activations(f, images, units), activations(g, images if others is None else others, units)
    first, second = ([np.asarray(x[k], np.float64) for k in layers or x] for x in both)
    return np.array([[OF_ARRAYS[measure](x, y) for y in second] for x in first])


of_two = partial(whole, layers=("conv", "dense"))
compared = partial(probe.similarity, select=SELECT)


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


def by(way, f, g, images, *, measure, batch_size=40, select=SELECT):
    """One way or the other, whichever is smaller."""
    steps = _layers.deal_tiles(len(images), batch_size, 10**9)
    traced = tuple(features.trace(h, images[: steps.size]) for h in (f, g))
    return _compare.compare(
        traced,
        (images, images),
        layers=tuple(_layers.layers_of(h, select, "all") for h in traced),
        measure=measure,
        by=way,
        steps=steps,
        units="all",
        select=select,
        confidence=0.95,
    )


@pytest.mark.parametrize("measure", ["cka_debiased", pytest.param("cka", marks=SLOW)])
def test_both_ways_agree(measure):
    by_products, by_grams = (by(way, F, G, MANY, measure=measure) for way in ("products", "grams"))
    assert (np.asarray(by_products.matrix) != np.asarray(by_grams.matrix)).any(), "the same way twice"
    for name in ("matrix", "interval"):
        np.testing.assert_allclose(getattr(by_products, name), getattr(by_grams, name), atol=2e-6)


@pytest.mark.parametrize("n", [5, 511, 512, 1100])
def test_the_lower_half_of_a_tile(n):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    found = np.asarray(_grams._own(jnp.full((n + 4, n + 4), 7.0), jnp.asarray(x), jnp.asarray(2)))
    np.testing.assert_allclose(np.tril(found[2:-2, 2:-2]), np.tril(x @ x.T), atol=1e-5)
    np.testing.assert_array_equal(found[:2], 7)


def test_which_way_is_smaller():
    layers = _layers.Layers(("a", "b"), ("conv", "conv"), (30, 20))
    assert _compare.way((layers,), 101) == "products"
    assert _compare.way((layers, layers), 100) == "grams"


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


# Trouble


@pytest.mark.parametrize(
    ("images", "measure", "batch_size"),
    [
        (FEW, "cka", 7),
        (MANY, "cka_debiased", 40),
        (MANY, "cca", 40),
        pytest.param(FEW, "cka_debiased", 7, marks=SLOW),
    ],
)
def test_an_image_that_is_not_finite_is_left_out(images, measure, batch_size):
    broken = images.at[3, 2, 3, 0].set(jnp.nan).at[20].set(jnp.inf)
    others = images.at[0, 0, 0, 0].set(jnp.nan)
    found = compared(F, G, broken, others=others, measure=measure, batch_size=batch_size)
    np.testing.assert_array_equal(np.flatnonzero(~found.measured), [0, 3, 20])
    kept = images[np.asarray(found.measured)]
    np.testing.assert_allclose(found.matrix, of_two(F, G, kept, measure=measure), atol=1e-5)
    assert "(3 not finite, left out)" in str(found)
    if measure.startswith("cka"):
        layers = [[activations(f, kept)[k] for k in ("conv", "dense")] for f in (F, G)]
        layers = [[x - x.mean(0) for x in map(np.asarray, side)] for side in layers]
        _, interval = aligned(*map(grams_of, layers), np.ones(len(kept), bool), debiased=measure != "cka")
        np.testing.assert_allclose(found.interval, interval, atol=1e-5)


def troubled(x):
    """A good layer, a dead one, one that is NaN for some images and one that is NaN for a blank image."""
    x = x[:, :2, :2]
    return {
        "good": jax.nn.relu(x),
        "dead": jax.nn.softplus(0 * x),
        "bad": jnp.tanh(jnp.log(x + 1.5)),
        "blank": jnp.tanh(x / jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True)),
    }


@pytest.mark.parametrize(
    ("images", "measure"),
    [(FEW, "cka"), *(pytest.param(MANY, measure, marks=SLOW) for measure in ("cka_debiased", "pwcca"))],
)
def test_trouble_stays_in_its_layer(images, measure):
    images = images.at[1].set(jnp.nan)
    outputs = [f"output/{name}" for name in ("good", "dead", "bad", "blank")]
    found = probe.similarity(troubled, troubled, images, measure=measure, batch_size=12, select=outputs)
    good = np.array([name in ("output/good", "output/blank") for name in found.layers])
    np.testing.assert_array_equal(found.valid, np.outer(good, good))
    np.testing.assert_array_equal(np.isnan(found.matrix), ~found.valid)
    np.testing.assert_array_equal(np.isnan(found.interval[..., 0]), ~found.valid | (not measure.startswith("cka")))
    lines = {line.split()[1]: line for line in str(found).splitlines()[3:]}
    assert "invalid" in lines["output/dead"]
    assert "invalid" not in lines["output/good"]


def affine(numbers, x):
    return x[:, :2, :2] * numbers[0] + numbers[1]


@SLOW
@pytest.mark.parametrize("way", ["grams", "products"])
def test_sizes_and_large_means_cost_no_digits(way):
    f, g = (networks.wrap(jax.tree_util.Partial(h)) for h in (lambda x: x[:, :2, :2], lambda x: jnp.square(x[:, 2:])))
    expected = whole(f, g, MANY, measure="cka_debiased", layers=["output"])
    for scale, offset, tolerance in ((1e18, 0.0, 1e-5), (1e-18, 0.0, 1e-5), (1.0, 3e3, 1e-4)):
        h = networks.wrap(jax.tree_util.Partial(affine, jnp.array([scale, offset])))
        found = by(way, h, g, MANY, measure="cka_debiased", select="output")
        np.testing.assert_allclose(found.matrix, expected, atol=tolerance)


def test_more_units_than_images_are_no_correlation():
    with pytest.raises(ValueError, match=r"expected fewer units than images for 'cca', got 36 units at 'conv'"):
        compared(F, G, FEW, measure="cca")


@SLOW
def test_hardly_more_units_than_images():
    found = compared(F, G, FEW[:9], measure="cca", units="average")
    # 4 + 4 channels of 9 images are just enough, 4 + 5 are not.
    np.testing.assert_array_equal(found.valid, [[True, False], [False, False]])


# Intervals and shares, by other ways


def random_layers(seed, n, sizes=(3, 40)):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 4))
    return [common @ rng.normal(size=(4, u)) + rng.normal(size=(n, u)) for u in sizes]


def grams_of(layers):
    return np.stack([x @ x.T for x in layers])


@partial(jax.jit, static_argnames=("debiased", "confidence"))
def aligned(first, second, counted, *, debiased, confidence=0.95):
    shares = _streamed.shares_of_grams(jnp.asarray(first), jnp.asarray(second), counted, debiased=debiased)
    return _streamed.alignment(shares, jnp.sum(counted).astype(first.dtype), confidence, debiased=debiased)


@pytest.mark.parametrize("debiased", [False, True])
def test_intervals_by_leaving_images_out(debiased, x64):
    n = 60
    layers = random_layers(0, n), random_layers(0, n)[::-1]
    value, interval = aligned(*map(grams_of, layers), np.ones(n, bool), debiased=debiased, confidence=0.6827)
    for (i, x), (j, y) in itertools.product(*map(enumerate, layers)):
        np.testing.assert_allclose(value[i, j], numpy_cka(x, y, debiased), rtol=1e-10)
        left = [numpy_cka(np.delete(x, o, 0), np.delete(y, o, 0), debiased) for o in range(n)]
        deviation = np.sqrt((n - 1) * np.var(left))
        found = (interval[i, j, 1] - interval[i, j, 0]) / 2
        if i + j == 1:  # a layer with itself
            np.testing.assert_allclose([found, deviation], 0, atol=1e-7)
        else:
            np.testing.assert_allclose(found, deviation, rtol=0.1)


def test_intervals_cover(x64):
    """Two layers of Gaussian units with a known alignment, 300 times."""
    rng = np.random.default_rng(0)
    mix = [rng.normal(size=(6, u)) / np.arange(1, 7)[:, None] for u in (3, 5)]
    exact = np.sum((mix[0].T @ mix[1]) ** 2) / np.prod([np.linalg.norm(a.T @ a) for a in mix])

    def trial(key):
        z = jax.random.normal(key, (80, 6))
        grams = [(z @ a @ a.T @ z.T)[None] for a in mix]
        return aligned(*grams, jnp.ones(80, bool), debiased=True, confidence=0.9)[1][0, 0]

    low, high = jax.jit(lambda keys: jax.lax.map(trial, keys))(jax.random.split(jax.random.key(1), 300)).T
    covered = np.mean((low < exact) & (exact < high))
    assert 0.86 < covered < 0.94  # 0.9 with a deviation of 0.017


def test_shares_by_definition(x64):
    """Row sums of products of Szekely and Rizzo's matrices, from Grams and from products of units."""
    n = 9
    layers = [random_layers(seed, n, (2, 3, 5)) for seed in (1, 2)]
    counted = np.arange(n) != 4
    kept = int(counted.sum())
    off = ~np.eye(n, dtype=bool) & np.outer(counted, counted)

    def matrix(x):
        k = (x @ x.T) * off
        rows = k.sum(1) / (kept - 2)
        return np.where(off, k - rows[:, None] - rows[None] + k.sum() / ((kept - 1) * (kept - 2)), 0)

    first, second = ([matrix(x) for x in side] for side in layers)
    expected = np.array([[(a * b).sum(1) for b in second] for a in first])
    shares = jax.jit(partial(_streamed.shares_of_grams, debiased=True))(*map(grams_of, layers), counted)
    scales = [np.array([np.max(np.diag(x @ x.T) * counted) for x in side]) for side in layers]
    scale = scales[0][:, None, None] * scales[1][None, :, None]
    np.testing.assert_allclose(shares.cross * scale, expected, atol=1e-9)

    @jax.jit
    def pooled(x, y, counted):
        sizes = ((2, 3, 5),) * 2
        parts = [_pooled.products_of(x[s], y[s], sizes) for s in (slice(0, 4), slice(4, n))]
        products = _pooled.centred(jax.tree.map(jnp.add, *parts), jnp.asarray(float(kept)), sizes)
        return _pooled.shares_of_parts(_pooled.parts_of(x, y, counted, products, sizes), counted, debiased=True)

    shares = pooled(*(np.concatenate(side, axis=1) * counted[:, None] for side in layers), jnp.asarray(counted))
    np.testing.assert_allclose(shares.cross, expected, atol=1e-9)
    for side, mine in ((first, shares.first), (second, shares.second)):
        np.testing.assert_allclose(mine, [(a * a).sum(1) for a in side], atol=1e-9)


@SLOW
def test_five_hundred_hard_cases_stay_in_range():
    """Few images, dead layers, copies, one image that differs, huge and tiny units."""

    def case(key):
        keys = jax.random.split(key, 4)
        x = jax.random.normal(keys[0], (8, 30)) * 10 ** jax.random.uniform(keys[1], (1, 30), minval=-6, maxval=6)
        kind = jax.random.randint(keys[2], (), 0, 6)
        y = jnp.stack(
            [x, 0 * x + 0.1, jnp.roll(x, 1, 0), x.at[2:].set(x[:1]), x @ x.T @ x * 1e-9, jnp.abs(x[:, ::-1]) + 1]
        )[kind]
        grams = jnp.stack([z @ z.T for z in (x - x[:1], y - y[:1])])
        found = [aligned(grams, grams, jnp.arange(8) < 7, debiased=debiased) for debiased in (False, True)]
        return kind, *map(jnp.stack, zip(*found, strict=True))

    kinds, values, intervals = map(np.asarray, jax.jit(jax.vmap(case))(jax.random.split(jax.random.key(0), 500)))
    assert set(kinds.tolist()) == set(range(6))
    finite = np.isfinite(values)
    assert finite[:, :, 0, 0].all()
    assert ((np.abs(values) <= 1) | ~finite).all()
    assert (values[:, 0] >= 0)[finite[:, 0]].all()
    np.testing.assert_allclose(values[:, :, 0, 0], 1, atol=1e-5)
    np.testing.assert_allclose(values, values.transpose(0, 1, 3, 2), atol=1e-6)
    assert ((intervals[..., 0] <= values + 1e-6) & (values <= intervals[..., 1] + 1e-6))[finite].all()
    assert (np.isfinite(intervals).all(-1) == finite).all()


# Use


def wide(x):
    x = jnp.tanh(jnp.tile(jnp.reshape(x, (len(x), -1)), (1, 200)))
    return jnp.sin(jax.lax.cumsum(x, axis=1))


UNITS = SIDE**2 * 3 * 200


def temporary(n, count, **dealt):
    """Bytes that a comparison of wide networks takes beside its arguments and its result."""
    steps = _layers.deal_tiles(n, **dealt)
    shape = jax.ShapeDtypeStruct((steps.size, SIDE, SIDE, 3), jnp.float32)
    traced = tuple(features.trace(wide, shape) for _ in range(count))
    layers = _layers.layers_of(traced[0], "activation", "all")
    assert layers.sizes == (UNITS, UNITS)
    compiled = _compare.compare.lower(
        traced,
        (jax.ShapeDtypeStruct((n, *shape.shape[1:]), shape.dtype),) * count,
        layers=(layers,) * count,
        measure="cka",
        by="grams",
        steps=steps,
        units="all",
        select="activation",
        confidence=0.95,
    ).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@SLOW
def test_memory_does_not_grow_with_the_units():
    """Twice the images take the memory of larger Gram matrices, not of more activations."""
    small, large = (temporary(n, 1, batch_size=8, held=16) for n in (64, 128))
    one_image = 2 * UNITS * 4
    assert 8 * one_image < small < 64 * one_image
    assert large - small < 2 * 8 * 128**2 * 4


@pytest.mark.parametrize("count", [1, 2])
def test_memory_is_that_of_the_activations_that_may_be_held(count):
    """Also where all images make one tile, and nothing but the program says what comes after what."""
    n = 1024
    held = count * n * 2 * UNITS * 4
    assert held < temporary(n, count, batch_size=128, held=n) < 1.4 * held


def test_one_compilation_for_all_networks():
    found = [compared(F, G, FEW, batch_size=7).matrix]
    count = _compare.compare._cache_size()
    found += [compared(network(seed), network(seed + 1), FEW, batch_size=7).matrix for seed in (3, 4)]
    assert _compare.compare._cache_size() == count
    assert len(np.unique(np.array(found)[:, 0, 0])) == 3


@SLOW
def test_inside_jit_and_over_stacked_networks():
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), F, G)

    def measure(f, g):
        return compared(f, g, FEW, batch_size=16, memory=1e-9)

    results = jax.jit(jax.vmap(measure, (None, 0)))(F, stacked)
    assert results.matrix.shape == (2, 2, 2)
    np.testing.assert_allclose(results.matrix[0], of_two(F, F, FEW), atol=1e-5)
    np.testing.assert_allclose(results.matrix[1], of_two(F, G, FEW), atol=1e-5)
    assert "stacked (2,)" in str(results)
    assert results.to_xarray().matrix.dims == ("net", "layer", "other_layer")


@SLOW
def test_double_and_half_precision(x64):
    x = np.asarray(MANY[:100], np.float64)
    f, g = (
        networks.wrap(jax.tree_util.Partial(linear, np.random.default_rng(seed).normal(size=(SIDE * SIDE * 3, 4))))
        for seed in (0, 1)
    )
    for images, measure in ((x, "cka_debiased"), (x, "cca"), (x[:7], "cka")):
        found = probe.similarity(f, g, images, measure=measure, batch_size=33, select="output")
        assert found.matrix.dtype == np.float64
        np.testing.assert_allclose(found.matrix, whole(f, g, images, measure=measure, layers=["output"]), atol=1e-12)
    half = probe.similarity(jnp.tanh, jnp.square, x[:7].astype(jnp.bfloat16), batch_size=7, select="output")
    assert half.matrix.dtype == np.float32
    assert half.valid.all()


def linear(weight, x):
    return jnp.reshape(x, (len(x), -1)) @ weight


def test_result():
    found = compared(F, G, FEW, batch_size=7)
    text = str(found)
    assert text.startswith("cka of 30 images, all units, 95 % intervals")
    assert f"{float(found.matrix[0, 1]):.2f}" in text
    data = found.to_xarray()
    assert data.matrix.sel(layer="conv", other_layer="dense") == found.matrix[0, 1]
    assert data.interval.sel(bound="low").shape == (2, 2)
    assert data.attrs == {"measure": "cka", "units": "all", "confidence": 0.95}
    plain = found.to_json()
    np.testing.assert_allclose(plain["matrix"], found.matrix)
    assert plain["images"] == 30
    names = tuple(f"layer_{k}" for k in range(30))
    wide = similarity.Similarity(
        layers=names,
        kinds=("conv",) * 30,
        other_layers=names,
        other_kinds=("conv",) * 30,
        matrix=jnp.eye(30).at[3].set(jnp.nan),
        interval=jnp.full((30, 30, 2), jnp.nan),
        valid=jnp.ones((30, 30), bool).at[3].set(False),
        measured=jnp.ones(9, bool),
        measure="cca",
        units="average",
        confidence=0.95,
    )
    assert max(map(len, str(wide).splitlines())) < 80
    assert "7 layer_7" in str(wide)
    assert wide.to_json()["matrix"][3] == [None] * 30


@pytest.mark.parametrize("images", [2, 3, 5, 50, 63, 65, 500])
@pytest.mark.parametrize("batch_size", [1, 3, 50, 64])
@pytest.mark.parametrize("held", [0, 7, 100, 10**9])
def test_every_image_has_one_place(images, batch_size, held):
    steps = _layers.deal_tiles(images, batch_size, held)
    assert 1 <= steps.size <= batch_size
    assert steps.tile <= max(held, batch_size) + steps.batches
    assert images <= steps.padded < images + steps.batches * steps.tiles + steps.tiles
    assert steps.together == (batch_size >= images)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.zeros((9, 5, 5, 3), np.uint8)}, TypeError, "got uint8: divide by 255"),
        ({"images": np.zeros(9)}, ValueError, r"got shape \(9,\)"),
        ({"images": np.zeros((1, 5, 5, 3))}, ValueError, "at least 2 images"),
        ({"images": np.zeros((3, 5, 5, 3)), "measure": "cka_debiased"}, ValueError, "at least 4 images"),
        ({"others": np.zeros((8, 5, 5, 3))}, ValueError, "image by image, got 8 and 9"),
        ({"others": np.zeros((9, 5, 5, 3), int)}, TypeError, "divide by 255"),
        ({"measure": "rbf"}, ValueError, "measure to be one of"),
        ({"units": "positions"}, ValueError, "units to be one of"),
        ({"batch_size": 0}, ValueError, "batch_size >= 1"),
        ({"memory": 0}, ValueError, "memory > 0"),
        ({"confidence": 95}, ValueError, "between 0 and 1"),
        ({"select": "no such layer"}, ValueError, "no such layer"),
        ({"select": "conv"}, ValueError, "at least one operation"),
        ({"f": lambda x: x - jnp.mean(x, 0, keepdims=True)}, ValueError, "sums over its batch"),
        ({"f": 3}, TypeError, "callable"),
    ],
)
def test_errors_say_what_to_do(unchecked, change, error, message):
    arguments = {"f": jnp.tanh, "g": jnp.square, "images": np.ones((9, 5, 5, 3), np.float32), "batch_size": 4}
    with pytest.raises(error, match=message):
        probe.similarity(**(arguments | change))


def test_activations_that_cannot_be_compared_are_named():
    tap = features.Tap("odd", "other", (5, 9), jnp.float32, None)
    with pytest.raises(ValueError, match=r"batch of 9 images in front, got shape \(5, 9\) at 'odd'"):
        _layers._units(9, "all", tap, jnp.ones((5, 9)))
    tap = features.Tap("odd", "other", (9, 5, 5), jnp.float32, None)
    with pytest.raises(ValueError, match="know the channels of 'odd'"):
        _layers._units(9, "average", tap, jnp.ones((9, 5, 5)))
