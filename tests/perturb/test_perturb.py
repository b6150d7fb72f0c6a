"""One conformance suite over all perturbations, then the law of each."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stabjax import fields, perturb, warp
from stabjax._types import Perturbation

SHAPE = (8, 11, 3)
POINTS = np.random.default_rng(7).normal(size=(5, *SHAPE)).astype(np.float32)


@dataclass
class Case:
    """How to make a perturbation from one strength, and what it takes."""

    make: Any
    strength: float
    shapes: tuple[tuple[int, ...], ...] = (SHAPE,)
    smooth: bool = True

    def make_for(self, strength, shape):
        """Make it for signals and volumes by their sides, which a shape alone leaves open."""
        made = self.make(strength)
        return replace(made, spatial=shape[:-1]) if len(shape) in (2, 4) else made


EVERY_RANK = (SHAPE, (9, 2), (4, 5, 6, 1))
CASES = {
    "Diffeomorphism": Case(lambda s: perturb.Diffeomorphism(s, 3), 1e-2, EVERY_RANK),
    "Diffeomorphism, nearest": Case(
        lambda s: perturb.Diffeomorphism(s, 3, interpolation="nearest"), 1e-1, smooth=False
    ),
    "of_displacement": Case(
        lambda s: perturb.Diffeomorphism.of_displacement(s, 3, SHAPE[:-1], max_cutoff=4, convention="paper"), 1.0
    ),
    "SphericalNoise": Case(perturb.SphericalNoise, 2.0, (SHAPE, (7,))),
    "GaussianNoise": Case(perturb.GaussianNoise, 0.3, (SHAPE, (7,))),
    "Translation": Case(perturb.Translation, 1.7, EVERY_RANK),
    "Affine": Case(lambda s: perturb.Affine(translation=s, rotation=s, compression=s, shear=s), 0.1),
    "Toward": Case(lambda s: perturb.Toward(POINTS, s), 2.0),
    "RandomDiffeomorphism": Case(
        lambda s: perturb.RandomDiffeomorphism(temperature_concentration=s, cutoffs=(1, 4)),
        2.0,
        smooth=False,
    ),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
with_identity = pytest.mark.parametrize(
    "case",
    [c for n, c in CASES.items() if n != "RandomDiffeomorphism"],
    ids=[n for n in CASES if n != "RandomDiffeomorphism"],
)


TRACES = []


@jax.jit
def apply(perturbation, key, image):
    """Shared by the tests, so that each case compiles few times; counts its traces."""
    TRACES.append(type(perturbation))
    return perturbation(key, image)


@jax.jit
def apply_to_batch(perturbation, keys, images):
    return jax.vmap(perturbation)(keys, images)


@jax.jit
@jax.vmap
def apply_stacked(perturbation, key, image):
    return perturbation(key, image)


@jax.jit
def apply_with_keys(perturbation, keys, image):
    return jax.vmap(perturbation, in_axes=(0, None))(keys, image)


def image_of(shape=SHAPE, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(5), shape).astype(dtype)


class TestConformance:
    @every
    def test_is_a_perturbation_that_keeps_shape_and_dtype(self, key, case):
        assert isinstance(case.make(case.strength), Perturbation)
        for shape in case.shapes:
            perturbation = case.make_for(case.strength, shape)
            image = image_of(shape)
            found = apply(perturbation, key, image)
            assert (found.shape, found.dtype) == (image.shape, image.dtype)
            assert np.isfinite(found).all()
            assert not np.array_equal(found, image)

    @every
    def test_numpy_and_narrow_images(self, key, case):
        perturbation = case.make(case.strength)
        expected = np.asarray(apply(perturbation, key, image_of()), np.float32)
        np.testing.assert_array_equal(apply(perturbation, key, np.asarray(image_of())), expected)
        narrow = apply(perturbation, key, image_of(dtype=jnp.bfloat16))
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_allclose(narrow.astype(np.float32), expected, atol=0.1)

    @with_identity
    def test_zero_strength_is_the_identity(self, key, case):
        for image in (*map(image_of, case.shapes), image_of(dtype=jnp.bfloat16)):
            np.testing.assert_array_equal(apply(case.make_for(0.0, image.shape), key, image), image)

    @every
    def test_jit_is_eager_is_vmap(self, key, case):
        perturbation, keys = case.make(case.strength), jax.random.split(key, 3)
        images = jax.random.normal(key, (3, *SHAPE))
        batch = apply_to_batch(perturbation, keys, images)
        np.testing.assert_allclose(perturbation(keys[0], np.asarray(images[0])), batch[0], atol=2e-5)
        for k, image, expected in zip(keys, images, batch):
            np.testing.assert_allclose(apply(perturbation, k, image), expected, atol=2e-5)

    @every
    def test_the_key_decides(self, key, case):
        perturbation, image = case.make(case.strength), image_of()
        np.testing.assert_array_equal(apply(perturbation, key, image), apply(perturbation, key, image))
        others = [apply(perturbation, k, image) for k in jax.random.split(key, 8)]
        assert len({np.asarray(other).tobytes() for other in others}) > 1

    @every
    def test_one_trace_for_all_strengths_floats_or_arrays(self, key, case):
        apply(case.make(case.strength), key, image_of())
        before = len(TRACES)
        for value in (0.5 * case.strength, 1, np.float32(case.strength), np.int32(1), jnp.float32(case.strength)):
            apply(case.make(value), key, image_of())
        assert len(TRACES) == before

    @every
    def test_traced_and_stacked_strengths(self, key, case):
        strengths = case.strength * np.array([0.5, 1.0, np.nan], np.float32)
        apart = np.stack([apply(case.make(s), key, image_of()) for s in strengths[:2]])
        made = [case.make(s) for s in (*strengths[:2], strengths[1])]
        many = (jax.jit(jax.vmap(case.make))(strengths), jax.tree.map(lambda *leaves: np.stack(leaves), *made))
        keys, images = jnp.stack([key] * 3), np.stack([image_of()] * 3)
        traced, stacked = (apply_stacked(jax.tree.map(np.asarray, each), keys, images) for each in many)
        np.testing.assert_allclose(traced[:2], apart, atol=2e-5)
        np.testing.assert_allclose(stacked[:2], apart, atol=2e-5)
        assert np.isnan(traced[2]).any()

    @every
    def test_finite_gradients(self, key, case):
        @jax.jit
        @partial(jax.grad, argnums=(0, 1))
        def gradients(perturbation, image):
            return jnp.sum(perturbation(key, image) ** 2)

        strengths = [case.strength] if not case.smooth else [0.0, case.strength]
        for strength in strengths:
            by_strength, by_image = gradients(case.make(strength), image_of())
            assert isinstance(by_strength, type(case.make(strength)))
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(by_strength))
            assert np.isfinite(by_image).all()
            assert np.abs(by_image).max() > 0

    @with_identity
    def test_nan_pixels_are_data(self, key, case):
        assert np.isnan(apply(case.make(case.strength), key, jnp.full(SHAPE, jnp.nan))).all()

    @every
    def test_is_a_tree_with_named_leaves(self, case):
        perturbation = case.make(case.strength)
        leaves, tree = jax.tree.flatten(perturbation)
        again = jax.tree.unflatten(tree, leaves)
        assert again.__dict__ == perturbation.__dict__ or type(perturbation) is perturb.Toward
        assert jax.tree.structure(again) == tree
        assert jax.tree.unflatten(tree, [None] * len(leaves)).__dict__.keys() == perturbation.__dict__.keys()
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(perturbation)]
        assert all(hasattr(perturbation, name.removeprefix(".")) for name in names)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)

    @every
    def test_double_precision(self, key, x64, case):
        for dtype in (jnp.float64, jnp.float32):
            image = jax.ShapeDtypeStruct(SHAPE, dtype)
            assert jax.eval_shape(case.make(case.strength), key, image).dtype == dtype

    @pytest.mark.usefixtures("unchecked")
    @every
    def test_integer_images_are_refused(self, key, case):
        with pytest.raises(TypeError, match="floating image, got uint8"):
            case.make(case.strength)(key, np.zeros(SHAPE, np.uint8))


class TestDiffeomorphism:
    def test_is_sample_then_pull_back(self, key):
        image = image_of()
        tau = fields.sample(key, SHAPE[:-1], temperature=1e-2, cutoff=3)
        expected = warp.pull_back(image, tau)
        np.testing.assert_allclose(perturb.Diffeomorphism(1e-2, 3)(key, image), expected, atol=1e-5)
        more_modes = perturb.Diffeomorphism(1e-2, 3, max_cutoff=9)(key, image)
        np.testing.assert_allclose(more_modes, expected, atol=1e-5)

    def test_one_compile_for_a_sweep_over_temperature_and_cutoff(self, key):
        chex.clear_trace_counter()
        once = jax.jit(chex.assert_max_traces(lambda perturbation, image: perturbation(key, image), n=1))
        for temperature in (0.0, 1e-4, 1e-3):
            for cutoff in (1, 2, 2.5, 6):
                once(perturb.Diffeomorphism(temperature, cutoff, max_cutoff=6), image_of())

    @pytest.mark.parametrize("convention", ["rms", "paper"])
    def test_of_displacement(self, convention):
        made = perturb.Diffeomorphism.of_displacement(0.8, 3, (24, 30), convention=convention, interpolation="cubic")
        expected = fields.temperature(0.8, 3, (24, 30), convention=convention)
        np.testing.assert_allclose(made.temperature, expected, rtol=1e-6)
        assert (made.max_cutoff, made.interpolation) == (3, "cubic")
        traced = jax.jit(
            lambda delta, c: perturb.Diffeomorphism.of_displacement(
                delta, c, (24, 30), convention=convention, max_cutoff=5
            )
        )(0.8, 3)
        np.testing.assert_allclose(traced.temperature, expected, rtol=1e-5)

    def test_replace_goes_through_the_constructor(self):
        hotter = replace(perturb.Diffeomorphism(1e-3, 3), temperature=2e-3)
        np.testing.assert_allclose(hotter.temperature, 2e-3)
        with pytest.raises(ValueError, match="temperature >= 0"):
            replace(hotter, temperature=-1.0)


class TestRandomDiffeomorphism:
    def draws(self, augmentation, shape, key, count=4000):
        return jax.jit(jax.vmap(lambda k: augmentation.draw(k, shape)))(jax.random.split(key, count))

    def test_published_law(self, key):
        n = 32
        drawn = self.draws(perturb.RandomDiffeomorphism(), (n, n), key)
        counts = np.bincount(np.asarray(drawn.cutoff, int), minlength=16)
        assert counts[0] == 0
        assert counts.size == 16
        assert scipy.stats.chisquare(counts[1:]).pvalue > 1e-3
        above = np.asarray(drawn.cutoff) > 1
        c, temperature = np.asarray(drawn.cutoff, np.float64)[above], np.asarray(drawn.temperature, np.float64)[above]
        low, high = 1 / (np.pi * n**2 * np.log(c)), 4 / (np.pi**3 * c**2 * np.log(c))
        assert scipy.stats.kstest((temperature - low) / (high - low), "uniform").pvalue > 1e-3

    def test_mode_sums_at_cutoff_one_and_where_the_range_is_empty(self, key):
        at_one = np.asarray(self.draws(perturb.RandomDiffeomorphism(cutoffs=(1, 1)), (32, 32), key).temperature)
        low, high = fields.temperature_range(1, (32, 32), convention="rms")
        assert scipy.stats.kstest((at_one - low) / (high - low), "uniform").pvalue > 1e-3
        empty = np.asarray(self.draws(perturb.RandomDiffeomorphism(cutoffs=(12, 12)), (16, 16), key, 10).temperature)
        np.testing.assert_allclose(empty, fields.temperature(0.5, 12, (16, 16)), rtol=1e-4)

    def test_ratio_is_the_odds_of_the_mean(self, key):
        augmentation = perturb.RandomDiffeomorphism(
            temperature_concentration=8.0, temperature_ratio=3.0, cutoff_ratio=0.25, cutoffs=(2, 11)
        )
        drawn = self.draws(augmentation, (64, 64), key)
        low, high = map(np.asarray, jax.jit(jax.vmap(lambda c: fields.temperature_range(c, (64, 64))))(drawn.cutoff))
        np.testing.assert_allclose(np.mean((np.asarray(drawn.temperature) - low) / (high - low)), 0.75, atol=0.01)
        np.testing.assert_allclose(np.mean(drawn.cutoff), 2 + 0.2 * 10 - 0.5, atol=0.2)

    @pytest.mark.parametrize(("shape", "cutoffs"), [((32,), (1, 15)), ((9, 8, 7), (2, 5))])
    def test_other_ranks(self, key, shape, cutoffs):
        temperature = self.draws(perturb.RandomDiffeomorphism(cutoffs=cutoffs), shape, key, 100).temperature
        assert np.isfinite(temperature).all()
        assert temperature.min() > 0


class TestNoise:
    def test_on_the_sphere_and_isotropic(self, key):
        image = image_of()
        noisy = apply_with_keys(perturb.SphericalNoise(2.5), jax.random.split(key, 4000), image)
        eta = (np.asarray(noisy) - np.asarray(image)).reshape(4000, -1)
        np.testing.assert_allclose(np.linalg.norm(eta, axis=1), 2.5, rtol=1e-5)
        size = eta.shape[1]
        assert np.abs(eta.mean(0)).max() < 5 * 2.5 / np.sqrt(size * 4000)
        np.testing.assert_allclose(eta.var(0), 2.5**2 / size, rtol=0.15)

    def test_gaussian(self, key):
        noisy = perturb.GaussianNoise(0.3)(key, jnp.zeros((200, 200, 3)))
        assert scipy.stats.kstest(np.ravel(noisy) / 0.3, "norm").pvalue > 1e-3

    def test_noise_like(self, key):
        image = image_of()
        other = jnp.asarray(np.asarray(image) + np.float32(0.1))
        noisy = perturb.noise_like(key, image, other)
        lengths = [np.linalg.norm(np.asarray(moved) - np.asarray(image)) for moved in (noisy, other)]
        np.testing.assert_allclose(lengths[0], 0.1 * np.sqrt(image.size), rtol=1e-4)
        np.testing.assert_allclose(noisy, apply(perturb.SphericalNoise(lengths[1].item()), key, image), atol=1e-5)
        np.testing.assert_array_equal(perturb.noise_like(key, image, image), image)
        gradient = jax.jit(jax.grad(lambda perturbed: jnp.sum(perturb.noise_like(key, image, perturbed))))(image)
        assert np.isfinite(gradient).all()
        assert perturb.noise_like(key, image.astype(jnp.bfloat16), other.astype(jnp.bfloat16)).dtype == jnp.bfloat16


class TestAffineMaps:
    @pytest.mark.parametrize("shape", [(9,), (9, 10), (9, 10, 11)])
    def test_translation_has_the_asked_length_in_every_direction(self, key, shape):
        ramp = np.moveaxis(np.indices(shape, np.float32), 0, -1)
        middle = tuple(n // 2 for n in shape)

        def shift(key):
            return (ramp - perturb.Translation(1.5, spatial=shape)(key, ramp))[middle]

        shifts = np.asarray(jax.jit(jax.vmap(shift))(jax.random.split(key, 500)))
        np.testing.assert_allclose(np.linalg.norm(shifts, axis=1), 1.5, rtol=1e-4)
        np.testing.assert_allclose(shifts.mean(0), 0, atol=0.25)
        np.testing.assert_allclose(shifts.var(0), 1.5**2 / len(shape), rtol=0.2)

    def test_affine_strengths_are_root_mean_squares(self, key):
        shape = (21, 21)
        ramp = np.moveaxis(np.indices(shape, np.float32), 0, -1)
        affine = perturb.Affine(translation=0.5, rotation=0.02, compression=0.03, shear=0.04)
        keys = jax.random.split(key, 4000)
        moved = ramp.astype(float) - np.asarray(apply_with_keys(affine, keys, ramp))
        (yy, yx), (xy, xx) = (
            (np.asarray(moved[:, 11, 10, a] - moved[:, 9, 10, a]) / 2, (moved[:, 10, 11, a] - moved[:, 10, 9, a]) / 2)
            for a in (0, 1)
        )

        def rms(*parts):
            return np.sqrt(np.mean(sum(part**2 for part in parts)))

        np.testing.assert_allclose(rms(moved[:, 10, 10, 0], moved[:, 10, 10, 1]), 0.5, rtol=0.05)
        np.testing.assert_allclose(rms((xy - yx) / 2), 0.02, rtol=0.05)
        np.testing.assert_allclose(rms((xx + yy) / 2), 0.03, rtol=0.05)
        np.testing.assert_allclose(rms((xx - yy) / 2, (xy + yx) / 2), 0.04, rtol=0.05)


class TestToward:
    def test_length_and_direction(self, key):
        image, keys = np.asarray(image_of()), jax.random.split(key, 300)
        steps = np.asarray(apply_with_keys(perturb.Toward(POINTS, 2.0), keys, image)) - image
        np.testing.assert_allclose(np.linalg.norm(steps.reshape(300, -1), axis=1), 2.0, rtol=1e-4)
        directions = (POINTS - image).reshape(5, -1)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        cosines = steps.reshape(300, -1) / 2.0 @ directions.T
        np.testing.assert_allclose(cosines.max(1), 1, atol=1e-4)
        assert scipy.stats.chisquare(np.bincount(cosines.argmax(1), minlength=5)).pvalue > 1e-3

    def test_never_toward_itself(self, key):
        found = apply_with_keys(perturb.Toward(POINTS, 1.0), jax.random.split(key, 300), POINTS[2])
        assert np.isfinite(found).all()

    def test_equal_images_leave_no_direction(self):
        image = image_of()
        assert np.isnan(perturb.toward(image, image, 1.0)).all()
        np.testing.assert_array_equal(perturb.toward(image, image, 0.0), image)
        halfway = perturb.toward(jnp.zeros(4), jnp.array([3.0, 0.0, 4.0, 0.0]), 2.5)
        np.testing.assert_allclose(halfway, [1.5, 0, 2, 0], atol=1e-6)


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (lambda k: perturb.Diffeomorphism(-1e-3, 3), "Diffeomorphism.temperature >= 0, got -0.001"),
            (lambda k: perturb.Diffeomorphism(float("nan"), 3), "temperature >= 0"),
            (lambda k: perturb.Diffeomorphism(1e-3, 0), "cutoff >= 1"),
            (lambda k: perturb.Diffeomorphism(1e-3, 5, max_cutoff=4), "cutoff <= max_cutoff"),
            (lambda k: jax.jit(lambda c: perturb.Diffeomorphism(1e-3, c))(3.0), "max_cutoff beside a traced cutoff"),
            (lambda k: perturb.Diffeomorphism(np.ones(2), 3)(k, image_of()), "scalar temperature"),
            (lambda k: perturb.Diffeomorphism(1e-3, 3, interpolation="spline")(k, image_of()), "interpolation out of"),
            (lambda k: perturb.RandomDiffeomorphism(cutoffs=(3, 2)), "smallest <= largest"),
            (lambda k: perturb.RandomDiffeomorphism(cutoffs=(0, 2)), "1 <= smallest"),
            (lambda k: perturb.RandomDiffeomorphism(cutoff_ratio=0.0), "cutoff_ratio"),
            (lambda k: perturb.RandomDiffeomorphism(spatial=3)(k, jnp.ones((8, 8, 8, 1))), "cutoffs from 2 on"),
            (lambda k: perturb.SphericalNoise(-1.0), "SphericalNoise.radius >= 0"),
            (lambda k: perturb.SphericalNoise(np.ones(2))(k, image_of()), "scalar strength"),
            (lambda k: perturb.GaussianNoise(-1.0), "GaussianNoise.scale >= 0"),
            (lambda k: perturb.Translation(-1.0), "Translation.distance >= 0"),
            (lambda k: perturb.Affine(shear=-0.1), "Affine.shear >= 0"),
            (lambda k: perturb.Affine(shear=0.1)(k, jnp.ones((8, 2))), r"expected an image \(h, w, channels\)"),
            (lambda k: perturb.Toward(POINTS, -1.0), "Toward.distance >= 0"),
            (lambda k: perturb.Toward(POINTS, 1.0)(k, jnp.ones((8, 8, 3))), r"expected an image \(8, 11, channels\)"),
            (lambda k: perturb.Toward(POINTS, 1.0)(k, jnp.ones((8, 11, 1))), "expected points of shape"),
            (lambda k: perturb.Toward(POINTS[:0], 1.0)(k, image_of()), "k > 0"),
            (lambda k: perturb.toward(image_of(), jnp.ones((8, 3)), 1.0), "target of the image's shape"),
            (lambda k: perturb.noise_like(k, image_of(), jnp.ones((8, 3))), "both images of one shape"),
        ],
    )
    def test_says_what_was_expected(self, key, call, match):
        with pytest.raises(ValueError, match=match):
            call(key)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["translation", "rotation", "compression", "shear"])
def test_strengths_of_an_affine_map_are_one_number_each(key, name):
    """Two numbers would be spread over the axes, or the columns of the map."""
    image = np.ones(SHAPE, np.float32)
    for strengths in (np.array([0.1, 0.2]), np.array([0.1])):
        with pytest.raises(ValueError, match=r"expected a scalar strength, got shape \(\d,\)"):
            perturb.Affine(**{name: strengths})(key, image)
    with pytest.raises(ValueError, match="one number for each strength"):
        fields.affine(SHAPE[:-1], compression=np.array([0.1, 0.2]))


@pytest.mark.usefixtures("unchecked")
def test_random_diffeomorphisms_take_one_number_each(key):
    with pytest.raises(ValueError, match=r"expected a scalar strength, got shape \(2,\)"):
        perturb.RandomDiffeomorphism(temperature_ratio=np.array([1.0, 2.0]))(key, np.ones(SHAPE, np.float32))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", ["a", None, 1j])
def test_a_strength_is_a_number(wrong):
    with pytest.raises(TypeError, match=r"expected SphericalNoise\.radius as a real number, got"):
        perturb.SphericalNoise(wrong)
    assert perturb.SphericalNoise(jnp.asarray(2.0, jnp.bfloat16)).radius == 2
