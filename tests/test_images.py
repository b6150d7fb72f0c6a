"""What a batch of images is: shapes that leave their axes open are refused, and one word of the caller decides them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from stabjax import data, perturb, probe, train
from stabjax._images import as_spatial, check_batch, check_image

pytestmark = pytest.mark.usefixtures("unchecked")

DIGITS = np.random.default_rng(0).random((6, 28, 28), np.float32)
DEFORMATION = perturb.Diffeomorphism.of_displacement(1.0, 3, (28, 28))


def refusal(batch):
    """The message of what is refused, and nothing for what is taken."""
    try:
        check_batch(batch)
    except ValueError as error:
        return str(error)
    return ""


class TestBatch:
    @pytest.mark.parametrize("shape", [(5, 28, 28, 1), (5, 8, 8, 64), (1, 1, 1, 3), (5, 3, 3, 8)])
    def test_is_taken_where_its_shape_decides(self, shape):
        check_batch(np.zeros(shape, np.float32))

    @pytest.mark.parametrize(
        ("shape", "match"),
        [
            ((5, 28, 28), r"gray images without channels, one image, or signals: .*x\[\.\.\., None\]"),
            ((28, 28, 1), r"put the axis of the batch in front, x\[None\]"),
            ((5, 16, 64), "say spatial=1 for signals of 16 pixels and 64 channels"),
            ((2, 5, 9, 9, 3), r"batches of images, or volumes: merge"),
            ((5, 3, 28, 28), r"channels first: .*np.moveaxis\(x, 1, -1\).*say spatial=\(3, 28\)"),
            ((5, 1, 28, 28), "looks like channels first"),
            ((5, 3, 4, 4), "looks like channels first"),
            ((28, 28), r"expected images \(n, h, w, channels\), got shape \(28, 28\)"),
            ((2, 3, 4, 5, 6, 7), "signals and volumes say spatial=1 and spatial=3"),
            ((0, 8, 8, 3), "at least one image, got 0"),
            ((5, 0, 8, 3), "at least one of each"),
        ],
    )
    def test_is_refused_where_its_shape_is_open(self, shape, match):
        with pytest.raises(ValueError, match=match):
            check_batch(np.zeros(shape, np.float32))

    @pytest.mark.parametrize(
        ("shape", "spatial"),
        [
            ((5, 28, 28), 1),
            ((5, 28, 28), (28,)),
            ((5, 3, 28, 28), (3, 28)),
            ((5, 7), 0),
            ((5, 1, 9, 9, 9), (1, 9, 9)),
            ((2, 9, 8, 7, 2), 3),
        ],
    )
    def test_one_word_decides(self, shape, spatial):
        check_batch(np.zeros(shape, np.float32), spatial=spatial)

    @pytest.mark.parametrize(
        ("shape", "spatial", "match"),
        [
            ((5, 28, 28), 2, r"expected images \(n, h, w, channels\) as spatial=2 says.*x\[\.\.\., None\]"),
            ((5, 28, 28), (28, 28), r"expected images \(n, 28, 28, channels\)"),
            ((5, 3, 28, 28), 2, "looks like channels first"),
            ((5, 3, 28, 28), (28, 28), "move the channels to the end"),
            ((5, 1, 9, 9, 9), 3, r"say spatial=\(1, 9, 9\)"),
            ((5, 28, 28, 1), 1, r"expected images \(n, length, channels\)"),
            ((5, 32, 32, 3), (28, 28), r"expected images \(n, 28, 28, channels\) .* got shape \(5, 32, 32, 3\)"),
        ],
    )
    def test_what_contradicts_the_word_is_refused(self, shape, spatial, match):
        with pytest.raises(ValueError, match=match):
            check_batch(np.zeros(shape, np.float32), spatial=spatial)

    @pytest.mark.parametrize("word", ["2", 2.0, (28.0, 28.0), ("28",)])
    def test_the_word_is_a_number_or_sides(self, word):
        with pytest.raises(TypeError, match="number of axes or their sides, got"):
            as_spatial(word)
        with pytest.raises(ValueError, match="from 0 to 3"):
            as_spatial(4)

    @given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 3))
    def test_no_batch_passes_in_both_layouts(self, shape, axis):
        """What is taken is refused with its channels first, unless moving them gives a batch of the same reading."""
        batch = np.broadcast_to(np.float32(0), tuple(shape))
        if refusal(batch):
            assert "got shape" in refusal(batch)
            return
        channels = shape[-1]
        if len(shape) == 4 and channels <= 4 and all(side > channels for side in shape[1:-1]):
            with pytest.raises(ValueError, match="expected images"):
                check_batch(np.moveaxis(batch, -1, 1))


class TestImage:
    @pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (1, 1, 3)])
    def test_is_taken_where_its_shape_decides(self, shape):
        check_image(np.zeros(shape, np.float32))

    @pytest.mark.parametrize(
        ("shape", "match"),
        [
            ((28, 28), r"may be a gray image without channels.*x\[\.\.\., None\]"),
            ((100, 2), "or a signal: .*say spatial=1"),
            ((3, 28, 28), "may be a side"),
            ((5, 28, 28), r"jax\.vmap over a batch"),
            ((5, 28, 28, 1), "may be a batch: use jax.vmap"),
            ((2, 2, 2, 2, 2), "one to three spatial axes"),
            ((7,), "one to three spatial axes"),
            ((0, 3, 3), "at least one of each"),
        ],
    )
    def test_is_refused_where_its_shape_is_open(self, shape, match):
        with pytest.raises(ValueError, match=match):
            check_image(np.zeros(shape, np.float32))

    @pytest.mark.parametrize(
        ("shape", "spatial"), [((28, 28), 1), ((5, 28, 28), (5, 28)), ((5, 6, 7, 1), 3), ((7,), 0)]
    )
    def test_one_word_decides(self, shape, spatial):
        check_image(np.zeros(shape, np.float32), spatial=spatial)


class TestArrays:
    """A mask is never lost, bytes are never read in the wrong order, and no number is kept to two digits."""

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda x: np.ma.array(x, mask=x > 0.5), r"got a masked one: .*x\.filled\(0\)"),
            (lambda x: x.astype(">f4"), r"numbers as JAX has them, got >f4: .*np\.float32"),
            (lambda x: x.astype(">f2"), r"numbers as JAX has them, got >f2: .*np\.float16"),
            pytest.param(
                lambda x: x.astype(np.longdouble),
                r"got float\d+: .*np\.float64",
                marks=pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="is double precision here"),
            ),
            (lambda x: x.astype(jnp.float8_e5m2), "at least 16 bits, got float8_e5m2"),
            (lambda x: jnp.asarray(x, jnp.float8_e4m3fn), "at least 16 bits, got float8_e4m3fn"),
        ],
    )
    def test_what_is_no_plain_array_is_refused(self, change, match):
        for check, x in ((check_batch, DIGITS[..., None]), (check_image, DIGITS[0, ..., None])):
            with pytest.raises(TypeError, match=match):
                check(change(x))

    @pytest.mark.filterwarnings("ignore:the matrix subclass")
    def test_matrices_are_refused(self):
        with pytest.raises(TypeError, match=r"got a matrix: give np\.asarray"):
            check_batch(np.matrix(np.ones((3, 4))), vectors=True)

    def test_other_views_of_an_array_are_taken(self, tmp_path):
        x = DIGITS[..., None]
        kept = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
        for view in (
            kept,
            x[::-1],
            np.moveaxis(x, 1, 2),
            jnp.asarray(x, jnp.bfloat16),
            x.view(type("Own", (np.ndarray,), {})),
        ):
            check_batch(view)

    @pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
    def test_sets_of_images_take_every_byte_order(self, dtype):
        x, labels = np.repeat(DIGITS[..., None], 3, axis=-1), np.arange(6)
        np.testing.assert_array_equal(data.arrays(x.astype(dtype), labels)[0], x)
        assert data.statistics(x.astype(dtype)) == data.statistics(x)
        np.testing.assert_allclose(data.normalize(x.astype(dtype), "cifar10"), data.normalize(x, "cifar10"), atol=1e-5)
        assert data.normalize(x.astype(dtype), "cifar10").dtype.isnative

    def test_masked_labels_are_refused(self):
        labels = np.ma.array(np.arange(6) % 2, mask=np.arange(6) > 4)
        with pytest.raises(TypeError, match="labels as a plain array, got a masked one"):
            data.arrays(DIGITS[..., None], labels)
        model = nnx.Sequential(lambda x: jnp.reshape(x, (len(x), -1)), nnx.Linear(784, 2, rngs=nnx.Rngs(0)))
        with pytest.raises(TypeError, match="labels as a plain array, got a masked one"):
            train.evaluate(model, DIGITS[..., None], labels)


MAKERS = {
    "Diffeomorphism": lambda **word: perturb.Diffeomorphism(1e-3, 3, **word),
    "RandomDiffeomorphism": lambda **word: perturb.RandomDiffeomorphism(cutoffs=(2, 4), **word),
    "Translation": lambda **word: perturb.Translation(1.0, **word),
    "Affine": lambda **word: perturb.Affine(rotation=0.1, **word),
    "SphericalNoise": lambda **word: perturb.SphericalNoise(1.0, **word),
    "GaussianNoise": lambda **word: perturb.GaussianNoise(1.0, **word),
}


class TestPerturbations:
    @pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
    def test_a_batch_is_no_image(self, key, make):
        for batch in (DIGITS, DIGITS[..., None], np.zeros((6, 3, 28, 28), np.float32)):
            with pytest.raises(ValueError, match=r"expected an image \(.*got shape"):
                make()(key, batch)
            with pytest.raises(ValueError, match=r"expected an image \(28, 28, channels\).*was made for, got shape"):
                make(spatial=(28, 28))(key, batch)

    @pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
    def test_the_shape_it_was_made_for_is_known(self, key, make):
        made = make(spatial=[28, 28])
        assert made.spatial == (28, 28)
        assert jax.tree.unflatten(jax.tree.structure(made), jax.tree.leaves(made)).spatial == (28, 28)
        assert made(key, DIGITS[0, ..., None]).shape == (28, 28, 1)
        with pytest.raises(ValueError, match=r"expected an image \(28, 28, channels\)"):
            made(key, np.zeros((64, 64, 1), np.float32))

    def test_of_displacement_knows_its_shape(self, key):
        with pytest.raises(ValueError, match=r"make the deformation for \(64, 64\)"):
            DEFORMATION(key, np.zeros((64, 64, 1), np.float32))
        with pytest.raises(ValueError, match=r"x\[\.\.\., None\]"):
            DEFORMATION(key, DIGITS[0])
        assert replace(DEFORMATION, spatial=None)(key, np.zeros((64, 64, 1), np.float32)).shape == (64, 64, 1)
        # Sides that hold the channels make a deformation of volumes, which takes no image.
        with pytest.raises(ValueError, match=r"expected an image \(32, 32, 3, channels\)"):
            perturb.Diffeomorphism.of_displacement(1.0, 3, (32, 32, 3))(key, np.zeros((32, 32, 3), np.float32))

    def test_affine_maps_are_two_dimensional(self):
        with pytest.raises(ValueError, match="two spatial axes, got spatial=1; use Translation"):
            perturb.Affine(rotation=0.1, spatial=1)

    def test_matched_noise_and_steps_take_one_image(self, key):
        batch = DIGITS[..., None]
        for call in (lambda: perturb.noise_like(key, batch, batch), lambda: perturb.toward(batch, 1 + batch, 1.0)):
            with pytest.raises(ValueError, match="may be a batch"):
                call()
        volume = perturb.noise_like(key, batch, 1 + batch, spatial=3)
        np.testing.assert_allclose(np.linalg.norm(volume - batch), np.sqrt(batch.size), rtol=1e-4)


class TestEntrances:
    """One digit more or less of the right number, and no number from wrong axes."""

    def network(self, x):
        return jnp.mean(jax.nn.relu(x - 0.5), axis=(1, 2))

    def probe(self, key, images, deformation=DEFORMATION, **options):
        return probe.stability(self.network, images, key=key, deformation=deformation, **options)

    def test_digits_without_channels_are_refused(self, key):
        for deformation in (DEFORMATION, perturb.Diffeomorphism(1e-3, 3), lambda key, x: 2 * x):
            for images in (DIGITS, np.zeros((6, 3, 28, 28), np.float32)):
                with pytest.raises(ValueError, match="expected images"):
                    self.probe(key, images, deformation)
                with pytest.raises(ValueError, match="expected images"):
                    probe.perturbed(images, key=key, deformation=deformation)
        with pytest.raises(
            ValueError, match=r"\(n, 28, 28, channels\) as the deformation was made for.*x\[\.\.\., None"
        ):
            self.probe(key, DIGITS)

    def test_the_word_reaches_the_perturbations(self, key):
        images = np.random.default_rng(1).random((4, 12, 16), np.float32)
        signals = self.probe(key, images, lambda key, x: 2 * x, spatial=1, select=["output"])
        deformation = perturb.Diffeomorphism.of_displacement(1.0, 3, (12,))
        made_for = self.probe(key, images, deformation, radius="mean", select=["output"])
        assert signals.layers == made_for.layers == ("input", "output")
        np.testing.assert_allclose(made_for.noise_radius, np.mean(made_for.noise_radius), rtol=1e-5)
        # Twice the image: |x|^2 over the mean squared distance of two images.
        flat = images.reshape(4, -1)
        pairs = np.mean(np.sum((flat[:, None] - flat[None]) ** 2, axis=-1))
        np.testing.assert_allclose(signals.deformation[0], np.mean(np.sum(flat**2, axis=1)) / pairs, rtol=1e-5)

    @pytest.mark.parametrize(("shape", "word"), [((4, 8, 8, 6), None), ((4, 8, 6), 1)])
    def test_perturbations_learn_the_sides_of_a_known_batch(self, key, shape, word):
        """One image of many channels leaves its axes open, the batch does not."""
        images = np.random.default_rng(1).random(shape, np.float32)
        sides = shape[1:-1]
        found, expected = (
            probe.perturbed(
                images,
                key=key,
                deformation=perturb.Translation(1.0, spatial=each),
                noise=perturb.SphericalNoise(1.0, spatial=each),
                spatial=word,
            )
            for each in (None, sides)
        )
        for one, other in zip(found, expected):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(np.linalg.norm((found[1][0] - images).reshape(4, -1), axis=1), 1, rtol=1e-5)

    def test_training_tells_the_perturbation_too(self, key):
        images, labels = np.random.default_rng(1).random((4, 4, 6), np.float32), np.arange(4) % 2
        model = nnx.Sequential(lambda x: jnp.reshape(x, (len(x), -1)), nnx.Linear(24, 2, rngs=nnx.Rngs(0)))
        recipe = train.Recipe(epochs=1, batch_size=4, crop=0, flip=False)
        found, expected = (
            train.fit(model, (images, labels), key=key, recipe=recipe, perturbation=noise, spatial=1).last
            for noise in (perturb.GaussianNoise(0.1), perturb.GaussianNoise(0.1, spatial=(4,)))
        )
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    def test_sides_that_hold_the_channels_are_named(self, key):
        wrong = perturb.Diffeomorphism.of_displacement(1.0, 3, (28, 28, 3))
        with pytest.raises(ValueError, match=r"make the deformation for \(28, 28\), without the channels"):
            self.probe(key, np.repeat(DIGITS[..., None], 3, axis=-1), wrong)

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda key, x: x[..., :1],
            lambda key, x: jnp.mean(x),
            lambda key, x: x.astype(jnp.complex64),
            lambda key, x: None,
            lambda key, x: (x, x),
        ],
    )
    def test_what_a_perturbation_gives_is_one_image(self, key, wrong):
        images = np.random.default_rng(1).random((3, 4, 4, 2), np.float32)
        for name, both in (("deformation", {"deformation": wrong}), ("noise", {"noise": wrong})):
            perturbations = {"deformation": lambda key, x: 2 * x} | both
            for call in (
                lambda given=perturbations: probe.perturbed(images, key=key, **given),
                lambda given=perturbations: probe.stability(self.network, images, key=key, **given),
            ):
                with pytest.raises(ValueError, match=rf"expected the {name} to give a real image .*\(4, 4, 2\), got"):
                    call()

    @pytest.mark.parametrize("wrong", [1.5, None, "2"])
    def test_numbers_of_images_and_draws_are_whole(self, key, wrong):
        for options in ({"draws": wrong}, {"batch_size": wrong}):
            with pytest.raises(TypeError, match="as a whole number, got"):
                self.probe(key, DIGITS[..., None], **options)
        with pytest.raises(TypeError, match="batch_size as a whole number, got"):
            probe.similarity(self.network, self.network, DIGITS[..., None], batch_size=wrong)

    def test_a_class_is_no_perturbation(self, key):
        with pytest.raises(TypeError, match="got the class Diffeomorphism"):
            self.probe(key, DIGITS[..., None], perturb.Diffeomorphism)

    def test_noise_and_deformation_must_agree(self, key):
        with pytest.raises(ValueError, match="as the noise was made for"):
            self.probe(key, DIGITS[..., None], noise=perturb.SphericalNoise(1.0, spatial=(32, 32)))

    def test_sets_of_images(self):
        labels = np.arange(6) % 2
        for images in (DIGITS, np.zeros((6, 3, 28, 28), np.float32)):
            with pytest.raises(ValueError, match=r"expected images .* got shape"):
                data.arrays(images, labels)
            with pytest.raises(ValueError, match=r"expected images .* got shape"):
                data.statistics(images)
        assert data.arrays(DIGITS, labels, spatial=1)[0].shape == (6, 28, 28)
        assert len(data.statistics(DIGITS, spatial=1).mean) == 28

    def test_training(self, key):
        """A fully connected network takes pixels in any order, so that nothing else would tell."""
        model = nnx.Sequential(lambda x: jnp.reshape(x, (len(x), -1)), nnx.Linear(784, 2, rngs=nnx.Rngs(0)))
        labels = np.arange(6) % 2
        for images in (DIGITS, DIGITS[:, None]):
            for call in (
                lambda images=images: train.fit(model, (images, labels), key=key),
                lambda images=images: train.evaluate(model, images, labels),
                lambda images=images: train.calibrate(model, images),
            ):
                with pytest.raises(ValueError, match=r"expected images .* got shape"):
                    call()
        with pytest.raises(ValueError, match="as the perturbation was made for"):
            train.fit(model, (DIGITS.reshape(6, 14, 56, 1), labels), key=key, perturbation=DEFORMATION)
        right = train.evaluate(model, DIGITS[..., None], labels)
        assert train.evaluate(model, DIGITS, labels, spatial=1) == right
        assert train.evaluate(model, DIGITS.reshape(6, -1), labels) == right
