"""What training is given: numbers of things are whole, labels keep their value, data come in pairs."""

import jax
import numpy as np
import pytest
from flax import nnx

from stabjax import models, train
from tests.test_keys import IMAGES, Net

LABELS = np.array([0, 1, 0, 1])
KEY = jax.random.key(0)
RECIPE = train.Recipe(epochs=1, batch_size=2)


def test_labels_of_more_than_32_bits_are_refused_not_cut(unchecked):
    for labels in (LABELS + 2**32, LABELS - 2**40):
        with pytest.raises(
            ValueError, match=r"expected labels of 32 bits, got -?\d+ to -?\d+: number the classes from 0"
        ):
            train.fit(Net, (IMAGES, labels), key=KEY, recipe=RECIPE)
        with pytest.raises(ValueError, match="expected labels of 32 bits"):
            train.evaluate(Net(rngs=nnx.Rngs(0)), IMAGES, labels)


@pytest.mark.parametrize("wrong", [0, -3, 2.0, True, None])
def test_numbers_of_things_are_whole(unchecked, wrong):
    model = Net(rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="expected batch_size as a whole number of at least 1, got"):
        train.evaluate(model, IMAGES, LABELS, batch_size=wrong)
    with pytest.raises(ValueError, match="expected seeds as a whole number of at least 1, got"):
        train.fit(Net, (IMAGES, LABELS), key=KEY, recipe=RECIPE, seeds=wrong)
    if wrong not in (0, None):
        with pytest.raises(ValueError, match="expected pad as a whole number of at least 0, got"):
            train.crop(KEY, IMAGES, wrong)
    if wrong is not None:
        normed = nnx.Sequential(nnx.BatchNorm(1, rngs=nnx.Rngs(0)))
        with pytest.raises(ValueError, match="expected batch_size as a whole number of at least 1, got"):
            train.calibrate(normed, IMAGES, batch_size=wrong)


def test_data_come_in_pairs(unchecked):
    for options in ({"data": IMAGES}, {"data": (IMAGES,)}, {"data": (IMAGES, LABELS), "test": IMAGES}):
        with pytest.raises(TypeError, match=r"expected (data|test) as a pair \(images, labels\), got"):
            train.fit(Net, key=KEY, recipe=RECIPE, **options)


def test_one_image_is_a_set():
    run = train.fit(Net, (IMAGES[:1], LABELS[:1]), key=KEY, recipe=train.Recipe(epochs=1, batch_size=1))
    assert run.diverged.tolist() == [-1]
    with pytest.raises(ValueError, match="at least one batch of 128 images, got 1: lower batch_size"):
        train.fit(Net, (IMAGES[:1], LABELS[:1]), key=KEY)


def test_networks_are_built_from_rngs(unchecked):
    for wrong in (0, KEY, jax.random.PRNGKey(0), None):
        with pytest.raises(
            TypeError, match=r"expected rngs as flax\.nnx\.Rngs, got .*: make it with nnx\.Rngs\(seed\)"
        ):
            models.build("LeNet", rngs=wrong)
