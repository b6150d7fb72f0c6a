"""More epochs on the path of a run: those of one run, or an error that says how to go on."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from stabjax import train
from stabjax.train import _files, _loop
from tests.train.kills import DATA, TEST, Plain, same

CONSTANT = train.Recipe(epochs=2, batch_size=16, rate=0.05, schedule="constant", averaging=0.9)
COSINE = dataclasses.replace(CONSTANT, schedule="cosine", turn=0.8)
go = functools.partial(train.fit, Plain, DATA, test=TEST, key=jax.random.key(5), seeds=2)


def longer(recipe, epochs, **fields):
    return dataclasses.replace(recipe, epochs=epochs, **fields)


@pytest.fixture(scope="module")
def whole():
    return go(recipe=longer(CONSTANT, 4))


def test_more_epochs_at_a_constant_rate_are_those_of_one_run(whole, tmp_path, monkeypatch):
    first = go(recipe=CONSTANT, path=tmp_path)
    run = go(recipe=longer(CONSTANT, 4), path=tmp_path)
    same(run, whole)
    np.testing.assert_array_equal(run.history.test_loss[:2], first.history.test_loss)
    assert train.recipe(tmp_path) == longer(CONSTANT, 4)
    assert list(train.checkpoints(tmp_path).values()) == [0, 1, 2, 3, 4]
    # The whole run is there now: nothing is trained.
    monkeypatch.setattr(_loop.TrainLoop, "_close_epoch", None)
    same(go(recipe=longer(CONSTANT, 4), path=tmp_path), whole)


def test_more_epochs_for_a_run_that_was_killed(whole, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def save(self, path, best, original=_loop.TrainLoop._save):
        original(self, path, best)
        if self.step == 5:  # of four steps in an epoch
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_loop, "PATIENCE", 0)
        patch.setattr(_loop.TrainLoop, "_save", save)
        with pytest.raises(Killed):
            go(recipe=longer(CONSTANT, 2.5), path=tmp_path, save_every=0)
    same(go(recipe=longer(CONSTANT, 4), path=tmp_path), whole)


@pytest.fixture(scope="module")
def cosine(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "cosine"
    return go(recipe=COSINE, path=path), path


def test_a_cosine_that_is_the_same_so_far_goes_on(cosine, tmp_path):
    path, recipe = tmp_path / "copy", longer(COSINE, 4, turn=0.4)
    shutil.copytree(cosine[1], path)
    same(go(recipe=recipe, path=path), go(recipe=recipe))


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        (
            longer(COSINE, 3),
            r"the cosine rate of those steps depends on the number of epochs, so they are not the first of 3; to go on "
            r"from its weights, begin another run: train\.fit\(train\.load\(path, model\), \.\.\., path=another\)",
        ),
        (longer(COSINE, 2, turn=0.9), "the cosine rate of those steps"),
        (
            longer(COSINE, 1),
            r"at least as many epochs as were trained, got 1: the run in .* has taken 2 epochs of 2 .* "
            r"the weights of the epochs \[0\.0, 1\.0, 2\.0\] \(steps \[0, 4, 8\]\)",
        ),
        (
            longer(COSINE, 4, rate=0.1),
            r"\(recipe\.epochs: 2\.0 there, 4\.0 here; recipe\.rate: 0\.05 there, 0\.1 here\)",
        ),
        (longer(COSINE, 4, schedule="triangular"), r"recipe\.schedule: cosine there, triangular here"),
    ],
)
def test_other_recipes_are_refused_with_what_to_do(cosine, recipe, named):
    run, path = cosine
    before = (path / "run.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stabjax.train._fit.TrainLoop", lambda *arguments: None)  # nothing is compiled
        with pytest.raises(ValueError, match=named):
            go(recipe=recipe, path=path)
    assert (path / "run.json").read_bytes() == before
    same(go(recipe=COSINE, path=path), run)


def test_other_data_are_refused_with_more_epochs_too(cosine, monkeypatch):
    monkeypatch.setattr("stabjax.train._fit.TrainLoop", lambda *arguments: None)
    with pytest.raises(ValueError, match=r"\(seeds: 2 there, 1 here"):
        go(recipe=longer(COSINE, 4, turn=0.4), path=cosine[1], seeds=1)


def test_an_end_within_an_epoch_is_not_gone_beyond(tmp_path):
    go(recipe=longer(CONSTANT, 2.5), path=tmp_path)
    with pytest.raises(ValueError, match=r"has taken 2\.5 epochs .* scored at its end within an epoch"):
        go(recipe=longer(CONSTANT, 4), path=tmp_path)


def test_the_way_on_that_the_error_names(cosine, tmp_path):
    run, path = cosine
    model = train.load(path, Plain(rngs=nnx.Rngs(0)), seed=1)
    more = train.fit(model, DATA, key=jax.random.key(6), recipe=CONSTANT, path=tmp_path)
    for name in run.last:
        np.testing.assert_array_equal(more.initial[name][0], run.last[name][1])
    assert train.recipe(tmp_path) == CONSTANT


def test_a_run_of_no_steps_may_be_of_any_length(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_files, "newest_state", None)
        with pytest.raises(TypeError):
            go(recipe=longer(COSINE, 4), path=tmp_path)
    run = go(recipe=COSINE, path=tmp_path)
    assert run.history.epoch.tolist() == [1.0, 2.0]
