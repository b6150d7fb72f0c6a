"""D, G, R and their intervals, from arrays."""

import json
from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from stabjax import stability
from stabjax.stability._per_unit import _median
from tests import GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "stability.npz"
SEEDS = st.integers(0, 2**31)


def golden(dtype):
    with np.load(GOLDEN) as file:
        return {name: file[name].astype(dtype) for name in file.files}


def check_golden(dtype, tolerance):
    g = golden(dtype)
    exact = golden(np.float64)

    @jax.jit
    def measured(clean, deformed, noisy):
        return (
            stability.squared_change(clean, deformed).mean(),
            stability.squared_change(clean, noisy).mean(),
            stability.median_change(clean, deformed),
            stability.median_change(clean, noisy),
            stability.pair_distance(clean),
            stability.pair_distance(clean, distinct=True),
            stability.deformation(clean, deformed),
            stability.noise(clean, noisy),
            stability.relative(clean, deformed, noisy, average="median_per_unit"),
        )

    # The published denominator has 1e-10 added to it.
    pairs = exact["denominator_all_ordered_pairs"] - 1e-10
    deformation, noise = exact["deformation_numerator"], exact["noise_numerator"]
    medians = [exact[f"{name}_numerator_median_per_unit"] for name in ("deformation", "noise")]
    expected = [deformation, noise, *medians, pairs, pairs * 48 / 47, deformation / pairs, noise / pairs]
    expected.append(medians[0] / medians[1])
    for value, known in zip(measured(g["clean"], g["deformed"], g["noisy"]), expected, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(value, known, rtol=tolerance)


def test_golden_values_in_double_precision(x64):
    check_golden(np.float64, 1e-10)


def test_golden_values_in_single_precision():
    check_golden(np.float32, 1e-4)


def test_medians_are_the_lower_of_the_two_middle_values():
    np.testing.assert_array_equal(stability.median(jnp.array([4.0, 1.0, 3.0, 2.0])), 2)
    np.testing.assert_array_equal(stability.median(jnp.array([[4.0, 0], [1, 0], [3, 1]])), [3, 0])
    np.testing.assert_array_equal(stability.median(jnp.array([4.0, jnp.nan, 3.0])), np.nan)


@jax.jit
def pair_distances(x):
    """Of all pairs, of different images, and the median of all pairs."""
    both = stability.pair_distance(x), stability.pair_distance(x, distinct=True)
    return (*both, stability.median_pair_distance(x))


@hypothesis.given(SEEDS)
def test_pair_distances_are_those_of_all_pairs(seed):
    x = np.random.default_rng(seed).normal(size=(11, 2, 3)).astype(np.float32)
    pairs = np.square(x[:, None] - x[None]).sum((2, 3))
    expected = pairs.mean(), pairs.sum() / 110, np.sort(pairs.ravel())[60]
    np.testing.assert_allclose(pair_distances(x), expected, rtol=1e-5)


def test_pair_distance_with_a_mean_a_thousand_times_the_spread():
    x = 1000 + np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    wide = x.astype(np.float64)
    pairs = np.square(wide[:, None] - wide[None]).sum(2)
    mean, _, median = pair_distances(x)
    np.testing.assert_allclose(mean, pairs.mean(), rtol=1e-5)
    np.testing.assert_allclose(median, np.sort(pairs.ravel())[19999], rtol=1e-5)


@pytest.mark.parametrize("average", ["mean", "median", "median_per_unit"])
def test_scale_and_offset_of_the_features_do_not_matter(key, average):
    clean, deformed, noisy = np.asarray(jax.random.normal(key, (3, 20, 6)))
    deformation, noise, relative = (
        jax.jit(partial(f, average=average)) for f in (stability.deformation, stability.noise, stability.relative)
    )
    d = np.asarray(deformation(clean, deformed))
    np.testing.assert_allclose(deformation(3 * clean + 2, 3 * deformed + 2), d, rtol=1e-5)
    g = np.asarray(noise(clean, noisy))
    np.testing.assert_allclose(d / g, relative(clean, deformed, noisy), rtol=1e-5)
    # Another image in the place of the perturbed one: as far as two images.
    np.testing.assert_allclose(stability.deformation(clean, np.roll(clean, 1, 0)), 2 * 20 / 19 / 2, rtol=0.3)
    assert deformation(clean, clean) == 0


def test_undefined_is_nan_and_has_finite_gradients():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    dead = np.full((5, 4), 1 / 3, np.float32)

    @jax.jit
    def undefined(x, dead):
        alone = stability.pair_distance(x[:1], distinct=True)
        return stability.deformation(dead, x), stability.relative(x, x, x), alone

    assert np.isnan(undefined(x, dead)).all()
    slope = jax.jit(jax.grad(lambda deformed: stability.relative(x, deformed, x + 1)))(x)
    assert np.all(np.isfinite(slope))


def test_errors(key, unchecked):
    x = jnp.ones((4, 3))
    numbers = jnp.ones((1, 1, 4)), jnp.ones((1, 1, 4)), jnp.ones((1, 4)), jnp.ones(1)
    with pytest.raises(ValueError, match="same layers"):
        stability.from_features(key, {"a": x}, {"b": x}, {"a": x})
    with pytest.raises(ValueError, match="confidence between"):
        stability.bootstrap(key, *numbers, confidence=95.0)
    with pytest.raises(ValueError, match=r"of one shape, got \(4, 3\) and \(2, 3\)"):
        stability.squared_change(x, x[:2])
    with pytest.raises(ValueError, match="'median_per_unit', got 'mode'"):
        stability.deformation(x, x, average="mode")
    with pytest.raises(ValueError, match="got 'median_per_unit'"):
        stability.bootstrap(key, *numbers, average="median_per_unit")


@pytest.mark.parametrize("average", ["mean", "median"])
def test_one_result_for_all_layers(key, average):
    """Rows of `from_features` are the formulas, layer by layer; draws are averaged within an image."""
    rng = np.random.default_rng(0)
    clean = {"a": rng.normal(size=(30, 4)), "b": 5 + rng.normal(size=(30, 2, 3))}
    deformed, noisy = (
        {k: (v + size * rng.normal(size=(2, *v.shape))).astype(np.float32) for k, v in clean.items()}
        for size in (0.1, 0.2)
    )
    clean = {k: v.astype(np.float32) for k, v in clean.items()}
    summarize = jax.jit(partial(stability.from_features, kinds={"a": "conv"}, average=average))
    result = jax.tree.map(np.asarray, summarize(key, clean, deformed, noisy))
    assert result.layers == ("a", "b")
    assert result.kinds == ("conv", "other")
    assert result.valid.all()
    assert result.deformation_numerators.shape == (2, 2, 30)
    assert result.deformation_interval.shape == (2, 2)
    reduce = np.mean if average == "mean" else lambda x: np.sort(x)[14]
    squared_change, pair_distance = jax.jit(stability.squared_change), jax.jit(stability.pair_distance)
    for k, name in enumerate("ab"):
        d, g = (
            reduce(np.mean([squared_change(clean[name], one) for one in many[name]], axis=0))
            for many in (deformed, noisy)
        )
        pairs = np.asarray(pair_distance(clean[name]))
        np.testing.assert_allclose(result.deformation[k], d / pairs, rtol=1e-5)
        np.testing.assert_allclose(result.noise[k], g / pairs, rtol=1e-5)
        np.testing.assert_allclose(result.relative[k], d / g, rtol=1e-5)
        distinct = stability.pair_distance(clean[name], distinct=True)
        np.testing.assert_allclose(np.mean(result.spread[k]), distinct, rtol=1e-5)
    for name in ("deformation", "noise", "relative"):
        low, high = getattr(result, f"{name}_interval").T
        assert np.all((low < getattr(result, name)) & (getattr(result, name) < high))


def test_medians_per_unit_in_one_result(key):
    """Against the formulas, and intervals against resampled whole arrays."""
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(40, 3)).astype(np.float32)
    deformed = clean + rng.gamma(1, 0.1, (2, 40, 3)).astype(np.float32)
    noisy = clean + rng.gamma(1, 0.2, (2, 40, 3)).astype(np.float32)
    features = [{"output": x} for x in (clean, deformed, noisy)]
    result = stability.from_features(key, *features, average="median_per_unit", confidence=0.8)

    def statistics(chosen):
        images, *versions = (jnp.asarray(x)[..., chosen, :] for x in (clean, deformed, noisy))
        tops = [sum(stability.median_change(images, x) for x in draws) / 2 for draws in versions]
        pairs = stability.median_pair_distance(images)
        return tops[0] / pairs, tops[1] / pairs, tops[0] / tops[1]

    found = [getattr(result, name).item() for name in ("deformation", "noise", "relative")]
    chosen = np.stack([np.arange(40), *(rng.integers(0, 40, 40) for _ in range(400))])
    expected, *resampled = np.transpose(jax.jit(partial(jax.lax.map, statistics))(chosen))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert result.average == "median_per_unit"
    for name, values in zip(("deformation", "noise", "relative"), np.transpose(resampled), strict=True):
        interval = np.asarray(getattr(result, f"{name}_interval"))[0]
        expected = np.quantile(values, [0.1, 0.9])
        np.testing.assert_allclose(interval, expected, atol=0.25 * np.ptp(expected))


@pytest.mark.parametrize("weight", [1, 600_000_000, (2**32 - 1) // 3])
def test_medians_of_as_many_pairs_as_can_be_counted(weight):
    ordered, weights = jnp.arange(3.0), np.full(3, weight, np.uint32)
    assert _median(ordered, jnp.asarray(weights)) == 1
    assert _median(ordered, jnp.asarray([2 * weight, weight - 1, 1], np.uint32)) == 0


def test_more_images_than_pairs_can_be_counted_of_are_refused(key):
    features = {"output": np.zeros((2**16, 1), np.float32)}
    with pytest.raises(ValueError, match="at most 65535 images for 'median_per_unit'"):
        stability.from_features(key, features, features, features, average="median_per_unit")


def numbers_per_image(seed, n, layers=1):
    """Per-image numbers with a known law, correlated as those of one image are: means 1, 2 and 4."""
    rng = np.random.default_rng(seed)
    size = rng.gamma(4, 1 / 4, (layers, 1, n))
    own = [rng.gamma(8, 1 / 8, (layers, 1, n)) for _ in range(3)]
    deformed, noisy, spread = (m * size * x for m, x in zip((1, 2, 4), own, strict=True))
    return [a.astype(np.float32) for a in (deformed, noisy, spread[:, 0])]


def test_intervals_cover_as_often_as_they_say(key):
    """400 experiments with 100 images each; the standard error of a coverage of 0.9 is 0.015."""
    numbers = (np.reshape(x, (20, 20, *x.shape[1:])) for x in numbers_per_image(3, 100, layers=400))

    @jax.jit
    @jax.vmap
    def intervals(key, d, g, s):
        return stability.bootstrap(key, d, g, s, s.mean(1), confidence=0.9, resamples=300)

    # Twenty experiments are resampled by one key.
    ends = jax.tree.map(np.asarray, intervals(jax.random.split(key, 20), *numbers))
    for interval, truth in ((ends.deformation, 0.25), (ends.noise, 0.5), (ends.relative, 0.5)):
        covered = np.mean((interval[..., 0] < truth) & (truth < interval[..., 1]))
        assert 0.85 < covered < 0.94


def test_paired_intervals_are_narrower(key):
    """What images share cancels from R; resampling numerator and denominator apart would not see that."""
    deformed, noisy, spread = numbers_per_image(5, 300)
    low, high = stability.bootstrap(key, deformed, noisy, spread, spread.mean(1)).relative[0]
    rng = np.random.default_rng(0)
    above, below = (x[0, 0][rng.integers(0, 300, (1000, 300))].mean(1) for x in (deformed, noisy))
    apart = np.quantile(above / below, [0.025, 0.975])
    assert high - low < 0.8 * (apart[1] - apart[0])


def test_bootstrap_of_medians_against_numpy(key):
    deformed, noisy, spread = numbers_per_image(7, 60)
    interval = stability.bootstrap(key, deformed, noisy, spread, spread.mean(1), average="median", resamples=4000)
    index = np.random.default_rng(1).integers(0, 60, (4000, 60))
    above, below = (np.sort(x[0, 0][index], axis=1)[:, 29] for x in (deformed, noisy))
    expected = np.quantile(above / below, [0.025, 0.975])
    np.testing.assert_allclose(interval.relative[0], expected, rtol=0.04)


def test_the_mean_share_stands_for_an_unknown_one(key):
    deformed, noisy, spread = numbers_per_image(5, 300)
    known = np.arange(300) % 4 > 0
    unknown = np.where(known, spread, np.nan).astype(np.float32)
    filled = np.where(known, spread, np.mean(spread[:, known])).astype(np.float32)
    found, expected = (stability.bootstrap(key, deformed, noisy, x, spread.mean(1)) for x in (unknown, filled))
    np.testing.assert_allclose(found.deformation, expected.deformation, rtol=1e-5)


def test_images_that_were_not_measured_change_nothing(key):
    deformed, noisy, spread = numbers_per_image(9, 80)
    measured = np.arange(80) % 4 > 0
    holes = [np.where(measured, x, np.nan).astype(np.float32) for x in (deformed, noisy, spread)]

    def summary(deformed, noisy, spread, **options):
        return stability.summarize(
            key,
            layers=["a"],
            kinds=["conv"],
            deformation_numerators=deformed,
            noise_numerators=noisy,
            spread=spread,
            pair_distance=np.array([4.0], np.float32),
            noise_radius=np.ones(deformed.shape[1:], np.float32),
            **options,
        )

    for average in ("mean", "median"):
        some = summary(*holes, measured=measured, average=average)
        without = summary(*(x[..., measured] for x in (deformed, noisy, spread)), average=average)
        np.testing.assert_allclose(some.relative, without.relative, rtol=1e-5)
        np.testing.assert_allclose(some.relative_interval, without.relative_interval, rtol=0.05)
        assert some.valid.all()
        np.testing.assert_array_equal(jnp.isnan(some.deformation_numerators[0, 0]), ~measured)
    assert "20 not finite, left out" in str(some)


@pytest.fixture(scope="module")
def result():
    deformed, noisy, spread = numbers_per_image(11, 40, layers=3)
    deformed[1] = np.nan
    return stability.summarize(
        jax.random.key(0),
        layers=["input", "a rather long name/of a layer", "output"],
        kinds=["input", "conv", "output"],
        deformation_numerators=deformed,
        noise_numerators=noisy,
        spread=spread,
        pair_distance=spread.mean(1),
        noise_radius=np.ones((1, 40), np.float32),
        confidence=0.9,
    )


def test_table(result):
    lines = str(result).splitlines()
    assert lines[0] == "40 images, 1 draw each, mean over images, 90 % intervals"
    assert [line.endswith("invalid") for line in lines[3:]] == [False, True, False]
    columns = [line.index(kind) for line, kind in zip(lines[3:], ("input  ", "conv", "output  "), strict=True)]
    assert lines[4].index("conv") == lines[1].index("kind")
    assert columns[1] == lines[1].index("kind")
    assert f"{float(result.relative[2]):.3g}" in lines[5]
    assert f"[{float(result.relative_interval[2, 0]):.3g}, {float(result.relative_interval[2, 1]):.3g}]" in lines[5]


def test_a_result_is_a_tree_and_stacks(result):
    doubled = jax.tree.map(lambda x: jnp.stack([x, x]), result)
    assert isinstance(doubled, stability.Stability)
    assert "stacked (2,)" in str(doubled)
    assert doubled.to_xarray()["relative"].dims == ("net", "layer")
    leaves, tree = jax.tree.flatten(result)
    again = jax.tree.unflatten(tree, leaves)
    assert again.layers == result.layers
    assert jax.jit(lambda r: r.relative[2])(result) == result.relative[2]


def test_labeled_axes(result):
    data = result.to_xarray()
    assert data.sizes == {"layer": 3, "bound": 2, "draw": 1, "image": 40}
    assert float(data["relative"].sel(layer="output")) == float(result.relative[2])
    assert float(data["deformation_interval"].sel(layer="output", bound="low")) == float(
        result.deformation_interval[2, 0]
    )
    assert list(data["kind"].values) == ["input", "conv", "output"]
    assert data.attrs == {"confidence": 0.9, "average": "mean"}
    arrays = set(stability.Stability.__dataclass_fields__) - {"layers", "kinds", "confidence", "average"}
    assert set(data) == arrays


def test_plain_numbers_where_the_radius_is_unknown(recwarn):
    features = {"a": np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)}
    numbers = stability.from_features(jax.random.key(0), features, features, features).to_json()
    assert numbers["mean_noise_radius"] is None
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert not recwarn.list
