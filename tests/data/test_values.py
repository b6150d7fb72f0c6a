"""Values of pixels: what may be normalized, and what is taken for bytes by mistake."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import _numerics, data, train
from stabjax._numerics import extremes
from stabjax.train._augment import normalize as prepared

IMAGES = np.random.default_rng(11).random((6, 4, 4, 3), dtype=np.float32)
IMAGES[0, 0, 0], IMAGES[0, 0, 1] = 0, 1
STATS = data.STATISTICS["cifar10"]
CONVERSIONS = [np.asarray, jnp.asarray]


def expected(images):
    return (np.asarray(images, np.float64) - STATS.mean) / STATS.deviation


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_normalize_takes_floats_in_the_unit_interval_only(convert):
    np.testing.assert_allclose(data.normalize(convert(IMAGES), "cifar10"), expected(IMAGES), atol=1e-5)
    once = data.normalize(convert(IMAGES), "cifar10")
    for wrong, got in (
        (convert(255 * IMAGES), "got 0 to 255; divide by 255"),
        (convert(2 * IMAGES - 1), "got -1 to 1"),
        (once, "got -2.42"),
        (convert(np.where(IMAGES == 1, np.inf, IMAGES)), "got 0 to inf"),
        (convert(IMAGES[:0] + 0), None),
    ):
        if got is None:
            assert data.normalize(wrong, "cifar10").shape == (0, 4, 4, 3)
        else:
            with pytest.raises(ValueError, match=rf"expected values in \(0.0, 1.0\), {got}"):
                data.normalize(wrong, "cifar10")
    # A single image, and one number too many.
    with pytest.raises(ValueError, match="got 0 to 2"):
        data.normalize(convert(IMAGES[0] + (IMAGES[0] == 1)), "cifar10")


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_what_is_outside_on_purpose(convert):
    noisy = convert(IMAGES + np.float32(0.3))
    np.testing.assert_allclose(data.normalize(noisy, "cifar10", value_range=None), expected(noisy), atol=1e-5)
    np.testing.assert_allclose(data.normalize(noisy, "cifar10", value_range=(0, 1.5)), expected(noisy), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected values in \(0, 1.2\), got 0.3 to 1.3"):
        data.normalize(noisy, "cifar10", value_range=(0, 1.2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_rounding_passes(dtype):
    spacing = float(jnp.finfo(dtype).eps)
    above = jnp.asarray(IMAGES, dtype).at[0, 0, 1].set(1 + max(spacing, 0.0009))
    assert data.normalize(above, "cifar10").dtype == dtype
    with pytest.raises(ValueError, match="got 0 to 1"):
        data.normalize(above.at[0, 0, 1].set(1 + max(2 * spacing, 0.002)), "cifar10")
    with pytest.raises(ValueError, match=r"got -0\.0"):
        data.normalize(above.at[0, 0, 1].set(-0.02), "cifar10")


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_nan_passes_and_hides_nothing(convert):
    holes = IMAGES.copy()
    holes[1, 2] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(data.normalize(convert(holes), "cifar10"), expected(holes), atol=1e-5)
        assert np.isnan(data.normalize(convert(np.full_like(holes, np.nan)), "cifar10")).all()
        assert np.isnan(data.arrays(np.full_like(holes, np.nan), np.zeros(6, int))[0]).all()
    with pytest.raises(ValueError, match="got 0 to 255"):
        data.normalize(convert(255 * holes), "cifar10")


def test_values_are_not_known_inside_transformations():
    traced = jax.jit(lambda x: data.normalize(x, "cifar10"))(255 * jnp.asarray(IMAGES))
    np.testing.assert_allclose(traced, expected(255 * IMAGES), rtol=1e-5)
    jax.vmap(lambda x: prepared(x, mean=STATS.mean, deviation=STATS.deviation))(255 * jnp.asarray(IMAGES))


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_statistics_of_floats_and_integers(unchecked, convert):
    stats = data.statistics(convert(IMAGES))
    np.testing.assert_allclose(stats.mean, IMAGES.mean((0, 1, 2), np.float64), rtol=1e-6)
    np.testing.assert_allclose(stats.deviation, IMAGES.std((0, 1, 2), np.float64), rtol=1e-6)
    with pytest.raises(ValueError, match="got 0 to 255"):
        data.statistics(convert(255 * IMAGES))
    free = data.statistics(convert(255 * IMAGES), value_range=None)
    np.testing.assert_allclose(free.mean, 255 * np.array(stats.mean), rtol=1e-6)
    for dtype in (np.int32, np.uint16, np.int8, bool):
        with pytest.raises(TypeError, match="expected uint8 or floating"):
            data.statistics(convert((100 * IMAGES).astype(dtype)))
        with pytest.raises(TypeError, match="expected uint8 or floating"):
            data.normalize(convert((100 * IMAGES).astype(dtype)), "cifar10")
    with pytest.raises(ValueError, match="at least one image"):
        data.statistics(convert(IMAGES[:0]))
    flat = np.array(IMAGES)
    flat[..., 1] = 0.1
    with pytest.raises(ValueError, match="expected positive deviations"):
        data.statistics(convert(flat))
    holes = IMAGES.copy()
    holes[0, 0, 0, 0] = np.nan
    assert np.isnan(data.statistics(convert(holes)).mean).tolist() == [True, False, False]


# TrainLoop


WITH = {"mean": STATS.mean, "deviation": STATS.deviation}


class Dense(nnx.Module):
    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(48, rngs=rngs)
        self.dense = nnx.Linear(48, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x.reshape(len(x), -1)))


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_images_for_training(unchecked, convert):
    np.testing.assert_allclose(prepared(convert(IMAGES), **WITH), expected(IMAGES), atol=1e-5)
    for wrong in (255 * IMAGES, 2 * IMAGES - 1, expected(IMAGES).astype(np.float32)):
        with pytest.raises(ValueError, match=r"which mean \(0.4914, .* are statistics of, got .* divide by 255"):
            prepared(convert(wrong), **WITH)
        with pytest.raises(ValueError, match="divide by 255"):
            prepared(convert(wrong), deviation=(0.25,))
        np.testing.assert_array_equal(prepared(convert(wrong)), wrong)
        np.testing.assert_allclose(data.normalize(convert(wrong), STATS, value_range=None), expected(wrong), rtol=1e-4)
        # Statistics that cannot be those of images in [0, 1] go with images of any values.
        prepared(convert(wrong), mean=(120.0,), deviation=(60.0,))
    whole = np.round(255 * IMAGES)
    for dtype in (np.uint8, np.int16, np.int32, np.uint16):
        np.testing.assert_allclose(prepared(convert(whole.astype(dtype)), **WITH), expected(whole / 255), atol=1e-5)
    for wrong in (256 * whole.astype(np.uint16), whole.astype(np.int16) - 1):
        with pytest.raises(ValueError, match=r"expected integer images in 0\.\.255, got"):
            prepared(convert(wrong))
    with pytest.raises(TypeError, match="got bool"):
        prepared(convert(IMAGES > 0.5))
    with pytest.raises(TypeError, match="got bool"):
        jax.jit(prepared)(convert(IMAGES > 0.5))


@pytest.mark.parametrize("convert", CONVERSIONS)
@pytest.mark.parametrize(
    "fields",
    [WITH, {"mean": (0.4,)}, {"deviation": STATS.deviation}, {"mean": (0.4,), "deviation": STATS.deviation}, {}],
)
def test_normalized_as_for_training(convert, fields):
    """By the statistics of a recipe: to the bit on the device, where 255 divides as XLA has it, else to rounding."""
    statistics = train.Recipe(**fields).statistics
    for images in (IMAGES, np.round(255 * IMAGES).astype(np.uint8)):
        found = data.normalize(convert(images), statistics)
        assert isinstance(found, type(convert(images)))
        if convert is jnp.asarray:
            np.testing.assert_array_equal(found, prepared(images, **fields))
        np.testing.assert_allclose(found, prepared(images, **fields), rtol=1e-6, atol=1e-6)
    beyond = convert(100 * IMAGES)
    if fields:
        with pytest.raises(ValueError, match="divide by 255"):
            data.normalize(beyond, statistics)
    else:
        np.testing.assert_array_equal(data.normalize(beyond, statistics), beyond)


@pytest.mark.parametrize("convert", CONVERSIONS)
def test_statistics_of_other_images(convert):
    """What cannot be of images in [0, 1] goes with images of any values."""
    of_bytes = data.Statistics((120.0,), (60.0,))
    images = (255 * IMAGES).astype(np.float32)
    np.testing.assert_allclose(data.normalize(convert(images), of_bytes), (images - 120) / 60, atol=1e-5)


def test_fit_evaluate_and_calibrate_refuse_them_too():
    labels = np.array([0, 1, 0, 1, 0, 1])
    recipe = train.Recipe(epochs=1, batch_size=6, **WITH)
    model = Dense(rngs=nnx.Rngs(0))
    calls = (
        lambda x: train.fit(Dense, (x, labels), key=jax.random.key(0), recipe=recipe),
        lambda x: train.fit(Dense, (IMAGES, labels), key=jax.random.key(0), recipe=recipe, test=(x, labels)),
        lambda x: train.evaluate(model, x, labels, **WITH),
        lambda x: train.calibrate(model, x, **WITH),
    )
    for call in calls:
        for wrong, says in ((255 * IMAGES, "got 0 to 255: divide by 255"), (np.full((6, 4, 4, 3), 300), r"0\.\.255")):
            with pytest.raises(ValueError, match=says):
                call(wrong)
    assert np.isfinite(train.evaluate(model, IMAGES, labels, **WITH).loss)


def test_extremes(monkeypatch):
    mesh = jax.make_mesh((1,), ("d",))
    spread = jax.device_put(IMAGES, jax.NamedSharding(mesh, jax.P("d")))
    for x in (IMAGES, jnp.asarray(IMAGES), spread, IMAGES.astype(jnp.bfloat16)):
        assert extremes(x) == (0, 1)
    assert extremes(np.array([np.nan, 3, -2], np.float16)) == (-2, 3)
    assert extremes(np.array(7, np.int32)) == (7, 7)
    for nothing in (np.zeros((0, 3)), np.array([np.nan]), jnp.array([jnp.nan])):
        assert np.isnan(extremes(nothing)).all()
    # The route of accelerators.
    monkeypatch.setattr(_numerics, "_on_cpu", lambda x: False)
    holes = jnp.asarray(np.where(IMAGES == 0, np.nan, IMAGES))
    nothing = jnp.full(2, jnp.nan)
    for debug in (False, True):
        with jax.debug_nans(debug):
            assert extremes(jnp.asarray(IMAGES)) == (0, 1)
            assert extremes(holes) == (IMAGES[IMAGES > 0].min(), 1)
            assert extremes(jnp.array([-3, 300])) == (-3, 300)
            assert np.isnan(extremes(nothing)).all()
