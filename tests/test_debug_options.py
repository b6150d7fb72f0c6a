"""NaN is an answer: JAX's options that make an error of it do not stop a measurement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stabjax as sj

IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
SPOILT = np.concatenate([IMAGES[:2], np.full_like(IMAGES[:1], np.nan), IMAGES[3:]])
STILL = {"a": np.ones((4, 3), np.float32)}
SAME = STILL["a"]


@pytest.fixture(params=["jax_debug_nans", "jax_debug_infs"])
def checked(request):
    """One of the options, as a user sets it."""
    jax.config.update(request.param, True)
    yield
    jax.config.update(request.param, False)


def dead(x):
    return jax.nn.relu(jnp.tanh(x) - 2)


def stability(temperature, images, **options):
    deformation = sj.perturb.Diffeomorphism(temperature, 2.0)
    return sj.probe.stability(dead, images, key=jax.random.key(0), deformation=deformation, **options)


def test_a_measurement_of_what_is_undefined(checked):
    for temperature, images, left in ((0.01, IMAGES, 4), (0.0, IMAGES, 4), (0.01, SPOILT, 3)):
        result = stability(temperature, images, batch_size=2)
        assert np.isnan(result.relative).tolist() == [*2 * [temperature == 0], True, True]
        assert int(np.sum(np.asarray(result.measured))) == left
        assert "invalid" in repr(result)
        assert result.to_xarray().valid.dims == ("layer",)


def dead_noise(key, image):
    return dead(image)


def half(key, *, shift):
    x = jnp.asarray(IMAGES)
    return {"relative": sj.stability.relative(x, x, x + shift), "logarithm": jnp.log(shift - 1), "inverse": 1 / shift}


def test_cells_of_a_sweep(checked):
    found = sj.sweep.run(half, {"shift": [0.0, 2.0]}, key=jax.random.key(0))
    assert "errors" not in found.attrs
    assert found.valid.values.ravel().tolist() == [False, True]
    np.testing.assert_array_equal(found.relative.values.ravel(), [np.nan, 0])
    np.testing.assert_array_equal(found.logarithm.values.ravel(), [np.nan, 0])


UNDEFINED = {
    "perturbed": lambda: sj.probe.perturbed(SPOILT[2:3], key=jax.random.key(0), deformation=dead_noise)[0],
    "similarity": lambda: sj.probe.similarity(dead, dead, IMAGES, select="output").matrix,
    "from_features": lambda: sj.stability.from_features(jax.random.key(0), STILL, STILL, STILL).relative,
    "relative": lambda: sj.stability.relative(SAME, SAME, SAME),
    "deformation": lambda: sj.stability.deformation(SAME, SAME),
    "noise": lambda: sj.stability.noise(SAME, SAME),
    "one image": lambda: sj.stability.pair_distance(SAME[:1], distinct=True),
    "squared_change": lambda: sj.stability.squared_change(SPOILT[2:3], IMAGES[:1]),
    "median": lambda: sj.stability.median(SPOILT[2:3]),
    "cca": lambda: sj.similarity.cca(SAME, SAME).mean,
    "pwcca": lambda: sj.similarity.pwcca(SAME, SAME),
    "cka": lambda: sj.similarity.cka(SAME, SAME),
    "procrustes": lambda: sj.similarity.procrustes(SAME, SAME),
    "local": lambda: sj.lipschitz.local(jnp.sqrt, 0 * SAME, key=jax.random.key(0)).value,
    "center": lambda: sj.receptive.center(0 * IMAGES[0, :, :, 0]),
    "growth": lambda: sj.receptive.growth(SAME[0], SAME[0]).power,
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_what_is_undefined_is_nan(name):
    with jax.debug_nans(True):
        found = np.asarray(UNDEFINED[name]())
        assert np.isnan(found).all()
        with pytest.raises(FloatingPointError):  # the option itself is as it was
            jnp.log(jnp.float32(-1))
    assert not jax.debug_nans.value


def test_within_a_callers_own_program_nan_is_the_callers(checked):
    relative = jax.jit(lambda x: sj.stability.relative(x, x, x))
    if jax.debug_nans.value:
        with pytest.raises(FloatingPointError):
            relative(SAME)
    else:
        assert np.isnan(relative(SAME))
