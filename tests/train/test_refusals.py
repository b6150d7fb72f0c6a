"""What cannot be trained: seeds that diverge, and arguments that do not fit together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import train
from tests.train.helpers import CLASSES, DATA, ONE, SHORT, SIDE, TEST, Dense, Net, same


def test_a_diverging_seed_stops_and_the_others_go_on(key, capsys):
    built = []

    def build(*, rngs):
        model = Dense(rngs=rngs)
        if len(built) % 2:
            model.dense.kernel[...] = model.dense.kernel[...] * 1e38
        built.append(model)
        return model

    with pytest.warns(RuntimeWarning, match=r"seed 1 diverged in step 0 \(epoch 0.00\)"):
        run = train.fit(build, DATA, test=TEST, key=key, recipe=SHORT, seeds=2, progress=True)
    for text in (str(run.history), capsys.readouterr().out):
        assert "(1 of 2 seeds)" in text
        assert "nan" not in text
    np.testing.assert_array_equal(run.diverged, [-1, 0])
    same({k: v[1] for k, v in run.last.items()}, {k: v[1] for k, v in run.initial.items()})
    assert np.all(np.isnan(run.history.test_accuracy[:, 1]))
    assert np.all(np.isfinite(run.history.test_accuracy[:, 0]))
    assert run.history.test_accuracy[-1, 0] > 0.9


def test_divergence_keeps_the_last_finite_weights(key):
    recipe = dataclasses.replace(SHORT, epochs=30, rate=1e12, schedule="constant", decay=1.0)
    with pytest.warns(RuntimeWarning, match="seed 0 diverged in step"):
        run = train.fit(Dense, DATA, test=TEST, key=key, recipe=recipe)
    assert 0 < run.diverged[0] < 30
    assert all(np.all(np.isfinite(v)) for v in run.last.values())
    short = dataclasses.replace(recipe, epochs=run.diverged[0].item() / 6)
    before = train.fit(Dense, DATA, test=TEST, key=key, recipe=short)
    same(run.last, before.last)


def test_training_refuses(key):
    images, labels = DATA
    with pytest.raises(ValueError, match="as many labels as images"):
        train.fit(Net, (images, labels[:-1]), key=key)
    with pytest.raises(ValueError, match="batch of 512 images, got 208"):
        train.fit(Net, DATA, key=key, recipe=train.Recipe(batch_size=512))
    with pytest.raises(ValueError, match=r"labels below 4.*got 4"):
        train.fit(Net, (images, labels + 1), key=key)
    with pytest.raises(ValueError, match=r"labels below 4.*got 4"):
        train.evaluate(Net(rngs=nnx.Rngs(0)), images, labels + 1)
    for wrong in (labels + 0.5, np.eye(CLASSES)[labels]):
        with pytest.raises(ValueError, match="labels as whole numbers"):
            train.fit(Net, (images, wrong), key=key)
    broken = np.where(np.arange(len(images)) == 7, np.nan, 1).reshape(-1, 1, 1, 1) * images
    for call in (functools.partial(train.fit, Net, key=key), lambda data: train.evaluate(Net(rngs=nnx.Rngs(0)), *data)):
        with pytest.raises(ValueError, match="expected finite images, got NaN or infinity in 1 of 208, image 7"):
            call((broken.astype(np.float32), labels))
    with pytest.raises(ValueError, match="labels from 0"):
        train.fit(Net, (images, labels - 1), key=key)
    with pytest.raises(ValueError, match="labels -1 and"):
        train.fit(functools.partial(Dense, outputs=1), DATA, key=key, recipe=train.Recipe(loss="hinge"))
    with pytest.raises(ValueError, match="one output per image"):
        train.fit(Dense, (images, 2 * (labels // 2) - 1), key=key, recipe=train.Recipe(loss="hinge"))
    with pytest.raises(ValueError, match="function that builds"):
        train.fit(Net(rngs=nnx.Rngs(0)), DATA, key=key, seeds=2)
    with pytest.raises(TypeError, match="NNX module"):
        train.fit(lambda rngs: "net", DATA, key=key)
    with pytest.raises(ValueError, match="spatial axes"):
        train.fit(Dense, (images.reshape(len(images), -1), labels), key=key, recipe=train.Recipe(flip=True))
    with pytest.raises(ValueError, match="deviation of 1 channels"):
        train.fit(Net, DATA, key=key, recipe=train.Recipe(deviation=(1.0, 2.0, 3.0)))


def test_training_refuses_what_has_another_type(key, unchecked):
    images, labels = DATA
    for wrong in (0, jax.random.split(key)):
        with pytest.raises(TypeError, match=r"expected one key, got .* jax\.random\.key\(seed\)"):
            train.fit(Net, DATA, key=wrong)
    with pytest.raises(TypeError, match="expected images as an array, got list"):
        train.fit(Net, (images.tolist(), labels), key=key)
    with pytest.raises(TypeError, match="expected labels as an array, got list"):
        train.evaluate(Net(rngs=nnx.Rngs(0)), images, labels.tolist())
    with pytest.raises(ValueError, match=r"checkpoints as whole numbers of epochs, got \(0\.5,\)"):
        train.fit(Net, DATA, key=key, recipe=ONE, checkpoints=(0.5,))


def test_only_real_numbers_are_trained(key):
    class Chosen(Dense):
        def __init__(self, *, rngs):
            super().__init__(rngs=rngs)
            self.order = nnx.Param(jnp.arange(SIDE * SIDE))

    with pytest.raises(ValueError, match=r"variables of real numbers to train, got \{'order': 'int32'\}"):
        train.fit(Chosen, DATA, key=key)
    with pytest.raises(ValueError, match=r"variables of real numbers to train, got .*'dropout/rngs/count': 'uint32'"):
        train.fit(Net, DATA, key=key, trainable=...)
