"""Batches on their way into the network: crop, flip, pixel range, perturbations."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import perturb, train
from stabjax.train._augment import normalize
from tests.train.helpers import DATA, ONE, Dense, close, task


@pytest.mark.parametrize("shape", [(7,), (6, 9), (3, 4, 5)])
def test_crop_is_a_window_of_the_padded_image(key, shape):
    images = np.arange(1, 40 * math.prod(shape) * 2 + 1).reshape(40, *shape, 2).astype(np.int32)
    cropped = np.asarray(jax.jit(train.crop, static_argnums=2)(key, images, 1))
    padded = np.pad(images, [(0, 0)] + [(1, 1)] * len(shape) + [(0, 0)])
    found = set()
    for image, frame in zip(cropped, padded):
        places = [
            corner
            for corner in np.ndindex(*(3,) * len(shape))
            if np.array_equal(frame[tuple(slice(c, c + n) for c, n in zip(corner, shape))], image)
        ]
        assert len(places) == 1
        found.add(places[0])
    assert len(found) > 0.5 * min(40, 3 ** len(shape))
    np.testing.assert_array_equal(train.crop(key, images, 0), images)


def test_flip_mirrors_half_of_the_images(key):
    images = np.random.default_rng(0).integers(0, 255, (400, 4, 5, 3)).astype(np.uint8)
    flipped = np.asarray(train.flip(key, images))
    mirrored = np.all(flipped == images[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(mirrored | np.all(flipped == images, axis=(1, 2, 3)))
    assert 150 < mirrored.sum() < 250
    assert flipped.dtype == np.uint8


def test_normalize():
    images = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3)).astype(np.uint8)
    mean, deviation = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (images / 255 - np.array(mean)) / np.array(deviation)
    np.testing.assert_allclose(normalize(images, mean=mean, deviation=deviation), expected, rtol=1e-5, atol=1e-6)
    as_float = (images / 255).astype(np.float32)
    np.testing.assert_allclose(normalize(as_float, mean=mean, deviation=deviation), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(normalize(as_float), as_float)
    np.testing.assert_allclose(normalize(as_float, mean=(0.5,)), as_float - 0.5)
    half = jnp.asarray(as_float, jnp.bfloat16)
    assert normalize(half, mean=mean, deviation=deviation).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="3 channels"):
        normalize(images, mean=(0.1, 0.2))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["size"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Speckle:
    size: object

    def __call__(self, key, image):
        return image + self.size * jax.random.normal(key, image.shape, image.dtype)


def test_perturbations(key):
    go = functools.partial(train.fit, Dense, DATA, key=key, recipe=ONE)
    plain, none, some = go(), go(perturbation=Speckle(0.0)), go(perturbation=Speckle(0.5))
    close(plain.last, none.last, rtol=1e-5, atol=1e-6)
    growth = 0.25 * (1 - 0.99**6)
    np.testing.assert_allclose(some.last["norm/var"] - plain.last["norm/var"], growth, rtol=0.3)
    function = go(perturbation=lambda key, image: image + 0.5 * jax.random.normal(key, image.shape))
    close(some.last, function.last, rtol=1e-5, atol=1e-6)


def test_diffeomorphisms_as_augmentation(key):
    recipe = ONE
    runs = [
        train.fit(Dense, DATA, key=key, recipe=recipe, perturbation=perturb.Diffeomorphism(t, 2)) for t in (0.0, 1e-2)
    ]
    assert not np.array_equal(runs[0].last["norm/mean"], runs[1].last["norm/mean"])
    np.testing.assert_allclose(runs[0].last["norm/mean"].mean(), runs[1].last["norm/mean"].mean(), rtol=0.02)


def test_augmentation_is_random_in_every_step(key):
    images, labels = task(64)
    recipe = train.Recipe(epochs=20, batch_size=64, rate=1e-6, schedule="constant", decay=0.0)
    spread = {}
    for crop in (0, 2):
        run = train.fit(Dense, (images, labels), key=key, recipe=dataclasses.replace(recipe, crop=crop, flip=crop > 0))
        spread[crop] = np.std(run.history.train_loss)
    assert spread[0] < 0.1 * spread[2]
