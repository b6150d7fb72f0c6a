"""The pass over the images: against whole arrays, for any batch size, for any network."""

from dataclasses import dataclass
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import features, networks, perturb, probe, stability
from tests.sample_networks import NNXConvNormDense

N, SIDE = 50, 8
DEFORMATION = perturb.Diffeomorphism(3e-2, 2)


def network(seed=0, **options):
    return networks.wrap(NNXConvNormDense(SIDE, rngs=nnx.Rngs(seed)), **options)


def make_images(n=N, seed=0):
    coarse = jax.random.normal(jax.random.key(seed), (n, 4, 4, 3))
    return jax.image.resize(coarse, (n, SIDE, SIDE, 3), "linear")


@pytest.fixture(scope="module")
def images():
    return make_images()


@pytest.fixture(scope="module")
def once(images):
    """All images in one batch, the three versions passing separately."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return probe.stability(network(), images, key=jax.random.key(1), deformation=DEFORMATION)


pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


def versions_of(images, key, *, draws=1, deformation=DEFORMATION):
    """Deformed and noisy images as the docstring says they are drawn, ``(draws, n, ...)`` each."""

    def of_one(i, image):
        def draw(d):
            deformation_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, i), d))
            deformed = deformation(deformation_key, image)
            return deformed, perturb.noise_like(noise_key, image, deformed)

        return jax.vmap(draw)(jnp.arange(draws))

    return jax.jit(jax.vmap(of_one, out_axes=1))(jnp.arange(len(images)), images)


@pytest.mark.parametrize("noise", [None, perturb.GaussianNoise(0.1)])
def test_the_images_behind_a_measurement(images, noise):
    deformed, noisy = probe.perturbed(images, key=jax.random.key(1), deformation=DEFORMATION, noise=noise, draws=3)
    expected = versions_of(images, jax.random.key(1), draws=3)
    np.testing.assert_allclose(deformed, expected[0], atol=1e-6)
    if noise is None:
        np.testing.assert_allclose(noisy, expected[1], atol=1e-6)
    else:
        np.testing.assert_allclose(jnp.std(noisy - images[None]), 0.1, rtol=0.02)
    once = probe.perturbed(images[:3], key=jax.random.key(1), deformation=DEFORMATION, noise=noise)
    np.testing.assert_allclose(once[1], noisy[:1, :3], atol=1e-6)


def whole(f, images, key, *, draws=1, average="mean", radius=None):
    """The same measurement from whole arrays, without loop, batches or moments."""
    deformed, noisy = versions_of(images, key, draws=draws)
    if radius is not None:
        noisy = images[None] + (noisy - images[None]) * radius(deformed, images)
    g = jax.jit(features.capture(f))
    activations = [{"input": x} | dict(g(x)[1]) for x in (images, *deformed, *noisy)]
    stacked = [
        {name: jnp.stack([a[name] for a in some]) for name in activations[0]}
        for some in (activations[1 : 1 + draws], activations[1 + draws :])
    ]
    return stability.from_features(jax.random.key(0), activations[0], *stacked, average=average)


def close(a, b, rtol=2e-4):
    for name in ("deformation", "noise", "relative", "pair_distance", "deformation_numerators", "noise_numerators"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=rtol, atol=1e-7, err_msg=name)


def test_against_whole_arrays(images, once):
    expected = whole(network(), images, jax.random.key(1))
    assert once.layers == ("input", "conv", "norm", "relu_0", "dense", "output")
    assert once.kinds == ("input", "conv", "norm", "activation", "dense", "output")
    assert once.layers == expected.layers
    close(once, expected)
    np.testing.assert_allclose(once.spread, expected.spread, rtol=1e-4)
    deformed, noisy = versions_of(images, jax.random.key(1))
    radii = jnp.sqrt(jnp.sum(jnp.square(noisy - images[None]), (2, 3, 4)))
    np.testing.assert_allclose(once.noise_radius, radii, rtol=1e-5)
    np.testing.assert_allclose(radii, jnp.sqrt(jnp.sum(jnp.square(deformed - images[None]), (2, 3, 4))), rtol=1e-5)
    assert once.valid.all()
    assert once.measured.all()


def test_matched_noise_makes_the_input_neutral(once):
    assert once.relative[0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(once.relative_interval[0], [1, 1], atol=1e-5)


# 50 images: 49 leave a batch of one behind, which 2, 7 and 24 do too in a naive cut (or an uneven rest).
@pytest.mark.parametrize("batch_size", [49, *(pytest.param(b, marks=pytest.mark.slow) for b in (2, 7, 24))])
def test_batches_do_not_matter(images, once, batch_size):
    result = probe.stability(network(), images, key=jax.random.key(1), deformation=DEFORMATION, batch_size=batch_size)
    close(result, once)
    for name in ("deformation_interval", "noise_interval", "relative_interval"):
        # The resampled images are the same; the denominator varies with the means of the batches.
        tolerance = {2: 0.25, 7: 0.1}.get(batch_size, 0.03) if name != "relative_interval" else 1e-3
        np.testing.assert_allclose(getattr(result, name), getattr(once, name), rtol=tolerance)


@pytest.mark.parametrize("images", [2, 3, 5, 65, *(pytest.param(n, marks=pytest.mark.slow) for n in (50, 63, 500))])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("batch_size", [2, 3, 4, 50, 64])
def test_every_image_has_one_place(images, draws, batch_size):
    from stabjax.probe._batching import divide
    from stabjax.probe._context import Rows
    from stabjax.probe._rows import order_rows

    batches = divide(images, draws, batch_size)
    starts, lengths, step = batches.starts(), batches.lengths(), batches.step
    assert step.separate == (batch_size >= images)
    assert min(lengths) >= 2
    assert max(lengths) == batches.size == step.size <= max(batch_size, 3)
    assert (starts + batches.size <= images).all(), "a slice would be moved"
    steps = [(start, first) for start in starts for first in batches.first_draws()]
    seen = [
        (i, d)
        for start, length in zip(starts, lengths, strict=True)
        for first in batches.first_draws()
        for i in range(start, start + length)
        for d in range(first, first + step.draws)
    ]
    assert sorted(seen) == [(i, d) for i in range(images) for d in range(draws)]
    # Rows that say which image and which draw they are of.
    slots, first = np.arange(step.size), np.arange(step.draws)
    of_image = np.array([start + slots for start, _ in steps])
    of_draw = np.array([[[(start + slot, d + draw) for slot in slots] for draw in first] for start, d in steps])
    found = order_rows(Rows(jnp.asarray(of_image), jnp.asarray(of_draw)), batches)
    np.testing.assert_array_equal(found.per_image, np.arange(images))
    np.testing.assert_array_equal(found.per_draw, np.moveaxis(np.mgrid[:draws, :images], 0, -1)[..., ::-1])


@pytest.mark.parametrize(
    ("average", "radius", "batch_size"),
    [
        ("median", "mean", 12),
        pytest.param("mean", "each", 12, marks=pytest.mark.slow),
        pytest.param("median", "mean", 64, marks=pytest.mark.slow),
    ],
)
def test_several_draws(images, once, average, radius, batch_size):
    options = {"average": average, "radius": radius, "batch_size": batch_size, "draws": 3}
    result = probe.stability(network(), images, key=jax.random.key(1), deformation=DEFORMATION, **options)
    assert result.deformation_numerators.shape == (6, 3, N)
    np.testing.assert_allclose(result.deformation_numerators[:, :1], once.deformation_numerators, rtol=1e-3, atol=1e-6)

    def one_for_all(deformed, images):
        sizes = jnp.sqrt(jnp.sum(jnp.square(deformed - images[None]), (2, 3, 4), keepdims=True))
        return jnp.mean(sizes) / sizes

    expected = whole(
        network(),
        images,
        jax.random.key(1),
        draws=3,
        average=average,
        radius=one_for_all if radius == "mean" else None,
    )
    close(result, expected)
    assert result.average == average
    if radius == "mean":
        np.testing.assert_allclose(result.noise_radius, result.noise_radius[0, 0], rtol=1e-5)


def linear(weight, x):
    return jnp.reshape(x, (len(x), -1)) @ weight


def test_a_random_linear_map_cannot_tell_noise_from_noise(key):
    """Noise in the place of the deformation, of the same law as the noise: R = 1 within its interval."""
    f = networks.wrap(jax.tree_util.Partial(linear, jax.random.normal(key, (SIDE * SIDE * 3, 30))))
    result = probe.stability(
        f,
        make_images(400),
        key=key,
        deformation=perturb.SphericalNoise(1.0),
        noise=perturb.SphericalNoise(1.0),
        draws=2,
    )
    assert result.layers[0] == "input"
    np.testing.assert_allclose(result.relative[0], 1, atol=1e-5)
    low, high = result.relative_interval[-1]
    assert low < 1 < high
    assert 0.02 < high - low < 0.1
    # |W eta|^2 / |eta|^2 is 30 on average, in units of the pair distance.
    np.testing.assert_allclose(result.noise_numerators[-1].mean(), 30, rtol=0.05)


def test_noise_of_ones_own(images):
    result = probe.stability(
        network(),
        images,
        key=jax.random.key(1),
        deformation=DEFORMATION,
        noise=perturb.SphericalNoise(0.5),
        select=["conv", "output"],
        batch_size=25,
        confidence=0.8,
    )
    assert result.layers == ("input", "conv", "output")
    np.testing.assert_allclose(result.noise_radius, 0.5, rtol=1e-5)
    np.testing.assert_allclose(result.noise_numerators[0], 0.25, rtol=1e-4)
    assert result.confidence == 0.8


def test_batch_statistics_need_all_images_together(images):
    f = network(mode="batch_statistics")
    measure = partial(probe.stability, f, images, key=jax.random.key(1), deformation=DEFORMATION)
    with pytest.raises(ValueError, match=r"depend on themselves alone.*batch_size=50"):
        measure(batch_size=49)
    # Each version is normalized by its own statistics.
    close(measure(batch_size=50), whole(f, images, jax.random.key(1)))


def test_an_image_that_is_not_finite_is_left_out(images, once):
    broken = images.at[7, 2, 3, 0].set(jnp.nan).at[49].set(jnp.inf)
    result = probe.stability(network(), broken, key=jax.random.key(1), deformation=DEFORMATION, batch_size=2)
    np.testing.assert_array_equal(np.flatnonzero(~result.measured), [7, 49])
    kept = np.asarray(result.measured)
    assert result.valid.all()
    np.testing.assert_allclose(
        result.deformation_numerators[:, :, kept], once.deformation_numerators[:, :, kept], rtol=1e-3, atol=1e-6
    )
    assert jnp.isnan(result.deformation_numerators[:, :, ~kept]).all()
    np.testing.assert_allclose(
        result.relative,
        once.deformation_numerators[:, 0, kept].mean(1) / once.noise_numerators[:, 0, kept].mean(1),
        rtol=1e-4,
    )
    pairs = stability.pair_distance(images[kept])
    np.testing.assert_allclose(result.pair_distance[0], pairs, rtol=1e-4)
    assert "2 not finite, left out" in str(result)
    # Their neighbors, alone in a batch of two, have an unknown share in the pair distance.
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(result.spread).any(axis=0)), [6, 7, 48, 49])
    assert jnp.isfinite(result.deformation_interval).all()


def troubled(x):
    """A dead layer, one that is NaN for some images, and a good one."""
    good = jax.nn.relu(x)
    dead = jax.nn.softplus(0 * x)
    bad = jnp.tanh(jnp.log(x + 2.5))
    return {"good": good, "dead": dead, "bad": bad}


def test_trouble_stays_in_its_layer(images):
    result = probe.stability(troubled, images, key=jax.random.key(1), deformation=DEFORMATION, batch_size=25)
    valid = dict(zip(result.layers, np.asarray(result.valid), strict=True))
    for name in ("good", "dead", "bad"):
        assert valid[f"output/{name}"] == (name == "good")
    assert valid["input"]
    k = result.layers.index("output/dead")
    assert result.pair_distance[k] == 0
    assert jnp.isnan(result.deformation[k])
    assert jnp.isnan(result.deformation_interval[k]).all()
    k = result.layers.index("output/bad")
    assert jnp.isnan(result.relative[k])
    assert jnp.isnan(result.deformation_numerators[k]).any()
    assert jnp.isfinite(result.deformation_numerators[k]).any()
    table = {line.split()[0]: line for line in str(result).splitlines()[3:]}
    assert table["output/dead"].endswith("invalid")
    assert not table["output/good"].endswith("invalid")


def test_no_deformation_is_no_number(images):
    result = probe.stability(
        troubled, images, key=jax.random.key(1), deformation=perturb.Diffeomorphism(0.0, 2), batch_size=25
    )
    k = result.layers.index("output/good")
    assert result.deformation[k] == 0
    assert jnp.isnan(result.relative[k])
    assert not result.valid[k]


def test_networks_and_strengths_share_one_compilation(images):
    chex.clear_trace_counter()

    @jax.tree_util.register_dataclass
    @dataclass
    class Counted:
        """A deformation that counts how often it is traced."""

        inside: perturb.Diffeomorphism

        def __call__(self, key, image):
            return traced(self.inside, key, image)

    @chex.assert_max_traces(n=1)
    def traced(inside, key, image):
        return inside(key, image)

    relative = [
        probe.stability(
            network(seed),
            images,
            key=jax.random.key(seed),
            deformation=Counted(perturb.Diffeomorphism(temperature, 2.0, max_cutoff=3)),
            batch_size=20,
        ).relative[-1]
        for seed, temperature in ((0, 1e-2), (1, 1e-2), (2, 1e-2), (2, 2e-2), (2, 3e-2))
    ]
    assert len(np.unique(relative)) == 5


def test_inside_jit_and_over_stacked_networks(images, once):
    def measure(f, key):
        return probe.stability(f, images, key=key, deformation=DEFORMATION, batch_size=24, select="output")

    nets = [network(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
    results = jax.jit(jax.vmap(measure, (0, None)))(stacked, jax.random.key(1))
    assert results.relative.shape == (2, 2)
    np.testing.assert_allclose(results.relative[0], once.relative[jnp.array([0, 5])], rtol=1e-3)
    looped = jax.lax.map(lambda f: measure(f, jax.random.key(1)), stacked)
    np.testing.assert_allclose(results.relative, looped.relative, rtol=1e-3)


def test_double_precision(x64):
    x = np.asarray(make_images(12), np.float64)
    f = networks.wrap(
        jax.tree_util.Partial(linear, jnp.asarray(np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, 4))))
    )
    results = [probe.stability(f, x, key=jax.random.key(1), deformation=DEFORMATION, batch_size=b) for b in (5, 12)]
    assert results[0].relative.dtype == np.float64
    close(*results, rtol=1e-10)


class Layers(nn.Module):
    """Residual blocks scanned over, and merged windows: a batch axis that is a multiple of the batch."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return x + nn.tanh(nn.Dense(4)(x)), None

        x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(x, None)
        windows = jnp.reshape(x, (-1, SIDE // 2, SIDE, 4))
        x = nn.Dense(2, name="windows")(windows)
        return jnp.reshape(x, (-1, SIDE * SIDE * 2))


def test_scanned_layers_and_windows(images):
    module = Layers()
    f = networks.wrap(module.bind(module.init(jax.random.key(0), images[:1])))
    result = probe.stability(f, images, key=jax.random.key(1), deformation=DEFORMATION, batch_size=17)
    inner = [name for name in result.layers if name.startswith("ScanBlock_0/")]
    assert len(inner) == 9
    a = dict(features.capture(f)(images)[1])
    for name in inner:
        pairs = stability.pair_distance(a[name])
        np.testing.assert_allclose(result.pair_distance[result.layers.index(name)], pairs, rtol=1e-4)
    k = result.layers.index("windows")
    np.testing.assert_allclose(result.relative[k], result.relative[-1], rtol=1e-4)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_no_strength_is_no_change_in_any_layer(key, batch_size):
    """Not even by rounding, which differs from row to row: a ratio of roundings would pass for a number."""
    images = jax.random.normal(key, (9, 12, 12, 3))
    network = lambda x: jax.nn.relu(x @ jnp.ones((3, 5))).mean((1, 2))  # noqa: E731
    deformation = perturb.Diffeomorphism(0.0, 3.0, max_cutoff=3)
    result = probe.stability(network, images, key=key, deformation=deformation, batch_size=batch_size)
    np.testing.assert_array_equal(result.deformation, 0)
    np.testing.assert_array_equal(result.noise, 0)
    assert np.isnan(result.relative).all()
    assert not result.valid.any()


def test_half_precision_images_and_signals(key):
    signals = jax.random.normal(key, (20, 16, 2)).astype(jnp.bfloat16)
    result = probe.stability(
        lambda x: jnp.sum(jnp.square(x), axis=1),
        signals,
        key=key,
        deformation=perturb.Translation(0.7, spatial=1),
        batch_size=7,
    )
    assert result.relative.dtype == jnp.float32
    assert result.valid.all()


def test_a_plain_function_as_deformation(images):
    result = probe.stability(
        lambda x: x[:, ::2],
        images,
        key=jax.random.key(0),
        deformation=lambda key, image: jnp.roll(image, 1, axis=0),
        batch_size=25,
    )
    rolled = stability.deformation(images, jnp.roll(images, 1, axis=1))
    np.testing.assert_allclose(result.deformation[0], rolled, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.zeros((4, 8, 8, 3), np.uint8)}, TypeError, "got uint8: divide by 255"),
        ({"images": np.zeros((8, 8))}, ValueError, r"got shape \(8, 8\)"),
        ({"images": np.zeros((1, 8, 8, 3))}, ValueError, "at least two images"),
        ({"deformation": 0.5}, TypeError, "expected deformation to be a function"),
        ({"noise": 0.5}, TypeError, "expected noise to be a function"),
        ({"radius": "all"}, ValueError, "'each' or 'mean', got 'all'"),
        ({"radius": "mean", "noise": perturb.SphericalNoise(1.0)}, ValueError, "noise=None"),
        ({"average": "median_per_unit"}, ValueError, "whole arrays"),
        ({"draws": 0}, ValueError, "draws >= 1"),
        ({"batch_size": 1}, ValueError, "batch_size >= 2"),
        ({"confidence": 95}, ValueError, "between 0 and 1"),
        ({"select": "no such layer"}, ValueError, "no such layer"),
        ({"f": lambda x: x - jnp.mean(x, 0, keepdims=True)}, ValueError, "sums over its batch"),
        ({"f": 3}, TypeError, "callable"),
    ],
)
def test_errors_say_what_to_do(unchecked, change, error, message):
    arguments = {
        "f": jnp.tanh,
        "images": np.ones((9, 5, 5, 3), np.float32),
        "key": jax.random.key(0),
        "deformation": DEFORMATION,
        "batch_size": 4,
    }
    with pytest.raises(error, match=message):
        probe.stability(**(arguments | change))


def test_an_activation_without_its_batch_in_front_is_named():
    from stabjax.probe import _pass

    tap = features.Tap("odd", "other", (5, 9), jnp.float32, None)
    with pytest.raises(ValueError, match=r"batch of 9 images in front, got shape \(5, 9\) at 'odd'"):
        _pass.by_image(tap, jnp.ones((5, 9)), 9)
