"""TrainLoop: what it learns and says of it, seeds, compiled programs, scores."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import conv, train
from stabjax.train import _state_dict
from stabjax.train._program import CompiledSteps
from tests.train.helpers import CLASSES, DATA, ONE, SHORT, SIDE, TEST, Dense, Net, close, same


@pytest.fixture(scope="module")
def learned():
    class Counted(Net):
        """A class of its own, so that no program of another test is found again."""

    recipe = dataclasses.replace(SHORT, epochs=4.4)
    Net.traces.clear()
    run = train.fit(Counted, DATA, test=TEST, key=jax.random.key(0), recipe=recipe, seeds=2)
    return run, len(Net.traces), Counted


def test_it_learns_and_says_how(learned):
    run = learned[0]
    rows = run.history
    np.testing.assert_allclose(rows.epoch, [1, 2, 3, 4, 26 / 6])
    np.testing.assert_array_equal(rows.step, [6, 12, 18, 24, 26])
    assert rows.train_loss.shape == rows.test_accuracy.shape == (5, 2)
    assert np.all(rows.train_loss[-1] < 0.5 * rows.train_loss[0])
    assert np.all(rows.test_accuracy[-1] > 0.9)
    assert np.all(np.diff(rows.seconds) > 0)
    np.testing.assert_allclose(rows.rate, [train.schedule(run.recipe, 6)(s - 1) for s in rows.step], rtol=1e-6)
    assert rows.to_xarray().test_loss.dims == ("epoch", "seed")
    assert len(str(rows).splitlines()) == 7
    np.testing.assert_array_equal(run.diverged, [-1, -1])


def test_compiles_once(learned):
    # Each seed is built without a call; the check of shapes, the step and the test batches are traced once each.
    assert learned[1] == 3


def test_history_agrees_with_evaluate(learned):
    run = learned[0]
    for seed in (0, 1):
        score = train.evaluate(run.model(seed=seed), *TEST, batch_size=33)
        assert score.accuracy == pytest.approx(run.history.test_accuracy[-1, seed])
        assert score.loss == pytest.approx(run.history.test_loss[-1, seed], rel=1e-5)
        best = train.evaluate(run.model("best", seed=seed), *TEST).accuracy
        assert best == pytest.approx(run.history.test_accuracy[:, seed].max())
        first = int(np.argmax(run.history.test_accuracy[:, seed]))
        assert run.best_step[seed] == run.history.step[first]


def test_initial_weights_are_those_that_were_built(learned):
    run = learned[0]
    built = nnx.state(Net(rngs=nnx.Rngs(jax.random.split(jax.random.fold_in(jax.random.key(0), 1), 3)[0])), nnx.Param)
    kept = nnx.state(run.model("initial", seed=1), nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, built, kept)
    with pytest.raises((ValueError, TypeError)):
        run.model("first")
    with pytest.raises(ValueError, match="keeps steps"):
        run.model(6)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        run.model(seed=2)


def test_seeds_do_not_depend_on_each_other(learned):
    run, _, build = learned
    alone = train.fit(build, DATA, test=TEST, key=jax.random.key(0), recipe=run.recipe)
    same({k: v[:1] for k, v in run.last.items()}, alone.last)
    assert not np.array_equal(run.last["dense/kernel"][0], run.last["dense/kernel"][1])
    together = train.fit(build, DATA, test=TEST, key=jax.random.key(0), recipe=run.recipe, seeds=2, vectorized=True)
    close(together.last, run.last, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(together.history.train_loss, run.history.train_loss, rtol=1e-3)


def test_one_step_of_all_images_is_gradient_descent(key):
    images = np.random.default_rng(0).normal(size=(24, 3, 1)).astype(np.float32)
    labels = np.sign(images.sum((1, 2)) + 0.1).astype(np.int32)

    class Linear(nnx.Module):
        def __init__(self, *, rngs):
            self.layer = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x):
            return self.layer(x.reshape(len(x), -1))

    recipe = train.Recipe(
        epochs=5,
        batch_size=24,
        loss="hinge",
        rate=0.5,
        schedule="constant",
        momentum=0.0,
        decay=0.0,
        mean=(0.2,),
        deviation=(2.0,),
    )
    run = train.fit(Linear, (images, labels), key=key, recipe=recipe, spatial=1)
    x = (images[:, :, 0] - 0.2) / 2
    w, b = run.initial["layer/kernel"][0, :, 0].astype(float), float(run.initial["layer/bias"][0, 0])
    losses = []
    for _ in range(5):
        margin = labels * (x @ w + b)
        losses.append(np.maximum(0, 1 - margin).mean())
        active = -((margin < 1) * labels) / 24
        w, b = w - 0.5 * active @ x, b - 0.5 * active.sum()
    np.testing.assert_allclose(run.last["layer/kernel"][0, :, 0], w, rtol=1e-5)
    np.testing.assert_allclose(run.last["layer/bias"][0, 0], b, rtol=1e-5)
    np.testing.assert_allclose(run.history.train_loss[:, 0], losses, rtol=1e-5)


def test_every_image_is_used_once_in_an_epoch(key):
    seen = []

    class Watch(nnx.Module):
        def __init__(self, *, rngs):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            jax.debug.callback(lambda v: seen.append(np.asarray(v)), x[:, 0, 0])
            return x[:, 0] * self.scale[...] * jnp.ones((1, 2))

    images = np.arange(26, dtype=np.float32).reshape(26, 1, 1)
    recipe = train.Recipe(epochs=2, batch_size=8, rate=1e-3)
    train.fit(Watch, (images, np.zeros(26, np.int32)), key=key, recipe=recipe, spatial=1)
    jax.effects_barrier()
    first, second = np.sort(np.concatenate(seen[:3])), np.sort(np.concatenate(seen[3:]))
    assert len(set(first)) == len(set(second)) == 24
    assert not np.array_equal(np.concatenate(seen[:3]), np.concatenate(seen[3:]))


@pytest.mark.parametrize("build", [Net, Dense])
def test_networks_of_one_class_share_their_programs(build):
    """Defaults of a constructor are no state, and objects made one after the other are of one architecture."""
    first, second = (_state_dict.Layout.of(build(rngs=nnx.Rngs(seed)))[0] for seed in (0, 1))
    assert first == second
    assert first.contents is None


@pytest.mark.parametrize("build", [Net, Dense])
def test_one_loop_and_single_steps_agree(key, monkeypatch, build):
    runs = []
    for by_step in (False, True):
        monkeypatch.setattr(CompiledSteps, "needs_single_steps", lambda *_, answer=by_step: answer)
        runs.append(train.fit(build, DATA, key=key, recipe=ONE))
    close(runs[0].last, runs[1].last, rtol=1e-4, atol=1e-5)


class Fast(nnx.Module):
    """A convolution by the route of this library."""

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), conv_general_dilated=conv.conv_general_dilated, rngs=rngs)
        self.dense = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.conv(x)).mean((1, 2)))


@pytest.mark.parametrize(("build", "singly"), [(Net, True), (Fast, False), (Dense, False)])
def test_what_is_slow_in_a_loop_on_the_cpu_steps_singly(key, monkeypatch, build, singly):
    class Asked(Exception):
        pass

    ask = CompiledSteps.needs_single_steps

    def stop(*args):
        assert ask(*args) == (singly and jax.default_backend() == "cpu")
        raise Asked

    monkeypatch.setattr(CompiledSteps, "needs_single_steps", stop)
    with pytest.raises(Asked):
        train.fit(build, DATA, key=key, recipe=ONE)


def test_a_module_is_trained_from_its_own_weights_and_left_alone(key):
    model = Net(rngs=nnx.Rngs(3))
    model.eval()
    before = jax.tree.map(np.array, nnx.state(model, nnx.Param))
    run = train.fit(model, DATA, key=key, recipe=ONE)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), before)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(run.model("initial"), nnx.Param), before)
    assert model.dropout.deterministic
    trained = run.model()
    assert trained.dropout.deterministic
    assert trained.blocks[1].use_running_average
    assert not np.array_equal(trained.dense.kernel[...], model.dense.kernel[...])


def test_a_layer_may_hold_a_list(key):
    class Padded(nnx.Module):
        def __init__(self, *, padding=((1, 1), (1, 1)), rngs):
            self.conv = nnx.Conv(1, CLASSES, (3, 3), padding=padding, rngs=rngs)

        def __call__(self, x):
            return jnp.mean(self.conv(x), axis=(1, 2))

    listed = train.fit(functools.partial(Padded, padding=[(1, 1), (1, 1)]), DATA, key=key, recipe=ONE, test=TEST)
    tupled = train.fit(Padded, DATA, key=key, recipe=ONE, test=TEST)
    same(listed.last, tupled.last)
    assert train.evaluate(listed.model(), *TEST) == train.evaluate(tupled.model(), *TEST)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_variables_made_while_running_disturb_no_other(key):
    class Noted(nnx.Module):
        sows = True

        def __init__(self, *, rngs):
            self.norm = nnx.BatchNorm(SIDE * SIDE, rngs=rngs)
            self.dense = nnx.Linear(SIDE * SIDE, CLASSES, rngs=rngs)

        def __call__(self, x):
            x = self.norm(x.reshape(len(x), -1))
            if self.sows:
                self.sow(nnx.Intermediate, "aaa", jnp.mean(x, axis=0))
            return self.dense(x)

    class Silent(Noted):
        """A class of its own: the compiled program of the other is not found again."""

        sows = False

    noted, silent = (train.fit(build, DATA, key=key, recipe=ONE) for build in (Noted, Silent))
    same(noted.last, silent.last)


def test_seeds_of_a_network_that_makes_functions(key):
    def build(*, rngs):
        return nnx.Sequential(
            nnx.Conv(1, CLASSES, (3, 3), rngs=rngs),
            functools.partial(nnx.leaky_relu, negative_slope=0.2),
            lambda x: x.mean((1, 2)),
        )

    both = train.fit(build, DATA, key=key, recipe=ONE, seeds=2)
    alone = train.fit(build, DATA, key=key, recipe=ONE)
    same({k: v[0] for k, v in both.last.items()}, {k: v[0] for k, v in alone.last.items()})
    widths = iter((4, 5))
    with pytest.raises(ValueError, match=r"blocks/0/bias: float32\[4\] in seed 0, float32\[5\] in seed 1"):
        train.fit(lambda *, rngs: Net(width=next(widths), rngs=rngs), DATA, key=key, seeds=2)


def test_seeds_that_differ_in_a_setting_are_refused(key):
    shares = iter((0.1, 0.4))

    def build(*, rngs):
        return nnx.Sequential(
            nnx.Conv(1, CLASSES, (3, 3), rngs=rngs),
            nnx.Dropout(next(shares), rngs=rngs),
            lambda x: x.mean((1, 2)),
        )

    with pytest.raises(ValueError, match=r"one architecture.*0\.1.* in seed 0, .*0\.4.* in seed 1"):
        train.fit(build, DATA, key=key, seeds=2)


def test_only_the_chosen_variables_are_trained(key):
    dense = nnx.All(nnx.Param, nnx.PathContains("dense"))
    run = train.fit(Net, DATA, key=key, recipe=ONE, trainable=dense)
    changed = {k for k in run.last if not np.array_equal(run.last[k], run.initial[k])}
    assert changed == {"dense/kernel", "dense/bias", "blocks/1/mean", "blocks/1/var", "dropout/rngs/count"}
    with pytest.raises(ValueError, match="at least one variable"):
        train.fit(Net, DATA, key=key, trainable=nnx.PathContains("nowhere"))


def test_hinge_training_in_a_loop_compiled_once(key):
    class Counted(Dense):
        """A class of its own, so that no program of another test is found again."""

    images, labels = DATA
    recipe = dataclasses.replace(SHORT, epochs=3.4, loss="hinge")
    Dense.traces.clear()
    data, test = (images, 2 * (labels // 2) - 1), (TEST[0], 2 * (TEST[1] // 2) - 1)
    run = train.fit(functools.partial(Counted, outputs=1), data, test=test, key=key, recipe=recipe)
    assert run.history.test_accuracy[-1, 0] > 0.9
    np.testing.assert_array_equal(run.history.step, [6, 12, 18, 20])
    # The check of shapes, the step, the loop over it and the test batches.
    assert len(Dense.traces) == 4


def test_the_bar_says_where_it_is(key, capsys):
    train.fit(Dense, DATA, test=TEST, key=key, recipe=ONE, progress=True)
    assert "epoch 1.0 of 1" in capsys.readouterr().out


def test_evaluate_counts_every_image_once():
    model = Net(rngs=nnx.Rngs(0))
    model.train()
    images, labels = TEST
    before = jax.tree.map(np.array, nnx.state(model, nnx.BatchStat))
    scores = [
        train.evaluate(model, images, labels, batch_size=b, mean=(0.1,), deviation=(0.5,)) for b in (70, 69, 32, 1000)
    ]
    assert not model.dropout.deterministic
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.BatchStat), before)
    guest = nnx.clone(model)
    guest.eval()
    logits = np.asarray(guest((jnp.asarray(images, jnp.float32) / 255 - 0.1) / 0.5), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for score in scores:
        assert score.accuracy == pytest.approx(np.mean(logits.argmax(1) == labels), abs=1e-6)
        assert score.loss == pytest.approx(-np.mean(np.log(p[np.arange(70), labels])), rel=1e-5)


def test_a_network_that_counts_its_calls_is_scored():
    class Counting(Dense):
        def __init__(self, *, rngs):
            super().__init__(rngs=rngs)
            self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, x):
            self.calls[...] += 1
            return super().__call__(x)

    assert train.evaluate(Counting(rngs=nnx.Rngs(0)), *TEST) == train.evaluate(Dense(rngs=nnx.Rngs(0)), *TEST)
