import collections
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from stabjax import conv, models, perturb, train
from stabjax.train import _layout as train_layout
from stabjax.train._augment import normalize
from stabjax.train._program import Machine

SIDE, CLASSES = 8, 4


class Net(nnx.Module):
    """Convolution, batch normalisation, dropout, dense."""

    traces = []  # one object for each: a number would be state that the program reads

    def __init__(self, *, width=6, rngs):
        self.blocks = nnx.List([nnx.Conv(1, width, (3, 3), strides=2, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.dense = nnx.Linear(width * (SIDE // 2) ** 2, CLASSES, rngs=rngs)

    def __call__(self, x):
        self.traces.append(object())
        for block in self.blocks:
            x = block(x)
        x = nnx.relu(x)
        return self.dense(self.dropout(x.reshape(len(x), -1)))


class Dense(nnx.Module):
    """Without convolution: trained in one compiled loop everywhere."""

    traces = []

    def __init__(self, *, features=SIDE * SIDE, outputs=CLASSES, rngs):
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.dense = nnx.Linear(features, outputs, rngs=rngs)

    def __call__(self, x):
        self.traces.append(object())
        return self.dense(self.norm(x.reshape(len(x), -1)))


class Tower(nnx.Module):
    """Normalisations one after the other and side by side."""

    def __init__(self, *, rngs):
        self.first = nnx.BatchNorm(1, rngs=rngs)
        self.conv = nnx.Conv(1, 5, (3, 3), rngs=rngs)
        self.sides = nnx.List([nnx.BatchNorm(5, rngs=rngs), nnx.Conv(5, 5, (1, 1), rngs=rngs)])
        self.last = nnx.Sequential(nnx.BatchNorm(5, rngs=rngs), nnx.relu, nnx.BatchNorm(5, rngs=rngs))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        x = self.conv(self.first(x))
        x = self.sides[0](x) + nnx.relu(self.sides[1](x))
        return jnp.mean(self.dropout(self.last(x)), axis=(1, 2))


def task(n, seed=0):
    """Which quarter of the image is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n).astype(np.int32)
    images = rng.integers(0, 60, (n, SIDE, SIDE, 1)).astype(np.uint8)
    half = SIDE // 2
    for image, label in zip(images, labels):
        row, column = divmod(label, 2)
        image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 60
    return images, labels


DATA, TEST = task(208), task(70, seed=1)
SHORT = train.Recipe(epochs=3, batch_size=32, rate=0.05, schedule="triangular")
ONE = dataclasses.replace(SHORT, epochs=1)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def close(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], err_msg=name, **tolerance)


# The recipe


def test_recipe_survives_json_hashing_and_the_command_line():
    recipe = train.Recipe(epochs=2.5, mean=(0.1, 0.2), deviation=(0.3, 0.4), schedule="triangular", flip=True)
    assert train.Recipe.from_json(recipe.to_json()) == recipe
    assert hash(recipe) == hash(dataclasses.replace(recipe))
    words = "--epochs 2.5 --mean 0.1 0.2 --deviation 0.3 0.4 --schedule triangular --flip"
    assert tyro.cli(train.Recipe, args=words.split()) == recipe
    with pytest.raises(ValueError, match="another version"):
        train.Recipe.from_json({**recipe.to_json(), "sharpness": 1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"rate": math.inf},
        {"batch_size": 0},
        {"crop": -1},
        {"smoothing": 1.0},
        {"momentum": 1.0},
        {"decay": -1.0},
        {"turn": 0.0},
        {"warmup": 1.0},
        {"averaging": 1.0},
        {"averaging": -0.1},
        {"deviation": (0.0,)},
        {"loss": "hinge", "smoothing": 0.1},
    ],
)
def test_recipe_refuses(wrong):
    with pytest.raises(ValueError, match="expected"):
        train.Recipe(**wrong)


@pytest.mark.parametrize("name", ["loss", "optimizer", "schedule", "decay_on", "precision"])
def test_recipe_refuses_unknown_options(name):
    recipe = train.Recipe()
    object.__setattr__(recipe, name, "unknown")  # the type checker of the tests would refuse a constructor first
    with pytest.raises(ValueError, match=f"{name} one of"):
        recipe.__post_init__()


def test_cosine_is_the_published_one():
    # torch.optim.lr_scheduler.CosineAnnealingLR(T_max=8), rate 0.1, at the epochs 0..10 of 10.
    torch = [0.1, 0.0961940, 0.0853553, 0.0691342, 0.05, 0.0308658, 0.0146447, 0.0038060, 0.0, 0.0038060, 0.0146447]
    rate = train.schedule(train.Recipe(epochs=10, schedule="cosine"), 7)
    np.testing.assert_allclose([rate(7 * e) for e in range(11)], torch, atol=1e-7)
    np.testing.assert_allclose([rate(7 * e + 6) for e in range(10)], torch[:10], atol=1e-7)


def test_triangular_and_constant():
    rate = train.schedule(train.Recipe(epochs=10, rate=0.3, schedule="triangular", warmup=0.2), 10)
    values = np.array([rate(s) for s in range(101)])
    assert values.argmax() == 19
    np.testing.assert_allclose(
        [values[0], values[19], values[60], values[99], values[100]], [0.015, 0.3, 0.15, 0.00375, 0]
    )
    np.testing.assert_allclose(np.diff(values[20:], 2), 0, atol=1e-7)
    no_warmup = train.schedule(train.Recipe(epochs=1, rate=0.3, schedule="triangular", warmup=0.0), 10)
    np.testing.assert_allclose([no_warmup(0), no_warmup(5)], [0.3, 0.15], rtol=1e-6)
    assert float(train.schedule(train.Recipe(rate=0.3, schedule="constant"), 10)(77)) == pytest.approx(0.3)


def test_log_spaced_epochs():
    formula = {int(x) for x in 10 ** np.linspace(-1, np.log10(313.5), 30)}
    assert train.log_spaced(313.5) == tuple(sorted(formula))
    assert len(formula) == 20
    assert train.log_spaced(250)[-1] == 250  # floating point alone says 249
    assert train.log_spaced(1) == (0, 1)
    assert train.log_spaced(0.3) == (0,)
    assert train.log_spaced(20, count=5) == (0, 1, 5, 20)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay_on", ["matrices", "all"])
def test_sgd_is_the_textbook_one(nesterov, decay_on):
    recipe = train.Recipe(schedule="constant", momentum=0.9, nesterov=nesterov, decay=0.01, decay_on=decay_on)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=3)}
    rule = train.optimizer(recipe, 1)
    current = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    state, velocity = rule.init(current), dict.fromkeys(params, 0.0)
    for _ in range(4):
        gradient = {k: rng.normal(size=v.shape) for k, v in params.items()}
        updates, state = rule.update({k: jnp.asarray(v, jnp.float32) for k, v in gradient.items()}, state, current)
        current = optax.apply_updates(current, updates)
        for k in params:
            g = gradient[k] + 0.01 * params[k] * (decay_on == "all" or k == "kernel")
            velocity[k] = 0.9 * velocity[k] + g
            params[k] = params[k] - 0.1 * (g + 0.9 * velocity[k] if nesterov else velocity[k])
    close(current, params, rtol=1e-5)


def test_adam_is_the_textbook_one(relaxed_promotion):
    rng = np.random.default_rng(0)
    p, m, v = rng.normal(size=(3, 2)), 0.0, 0.0
    rule = train.optimizer(train.Recipe(schedule="constant", optimizer="adam", decay=0.1), 1)
    current = jnp.asarray(p, jnp.float32)
    state = rule.init(current)
    for t in range(1, 5):
        gradient = rng.normal(size=p.shape)
        updates, state = rule.update(jnp.asarray(gradient, jnp.float32), state, current)
        current = optax.apply_updates(current, updates)
        g = gradient + 0.1 * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(current, p, rtol=1e-4)


# Losses


@given(seed=st.integers(0, 1000), smoothing=st.floats(0, 0.9))
def test_cross_entropy_against_the_definition(seed, smoothing):
    rng = np.random.default_rng(seed)
    logits, labels = 3 * rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    value, hit = train.loss(logits.astype(np.float32), labels.astype(np.int32), smoothing=smoothing)
    np.testing.assert_allclose(value, -(target * np.log(p)).sum(1), rtol=2e-4)
    np.testing.assert_array_equal(hit, (logits.argmax(1) == labels).astype(float))


@given(seed=st.integers(0, 1000))
def test_hinge_against_the_definition(seed):
    rng = np.random.default_rng(seed)
    outputs, labels = rng.normal(size=6).astype(np.float32), rng.choice([-1, 1], 6)
    value, hit = train.loss(outputs, labels, kind="hinge")
    np.testing.assert_allclose(value, np.maximum(0, 1 - labels * outputs), rtol=1e-6)
    np.testing.assert_array_equal(hit, np.sign(outputs) == labels)
    np.testing.assert_array_equal(value, train.loss(outputs[:, None], labels, kind="hinge")[0])


def test_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match="one output per image"):
        train.loss(np.zeros((3, 2), np.float32), np.ones(3, np.int32), kind="hinge")
    with pytest.raises(ValueError, match="logits"):
        train.loss(np.zeros((3, 2, 2), np.float32), np.ones(3, np.int32))


# Preparation of batches


@pytest.mark.parametrize("shape", [(7,), (6, 9), (3, 4, 5)])
def test_crop_is_a_window_of_the_padded_image(key, shape):
    images = np.arange(1, 40 * math.prod(shape) * 2 + 1).reshape(40, *shape, 2).astype(np.int32)
    cropped = np.asarray(train.crop(key, images, 1))
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


# Training


@pytest.fixture(scope="module")
def learned():
    class Counted(Net):
        """A class of its own, so that no program of another test is found again."""

    recipe = dataclasses.replace(SHORT, epochs=4.4)
    Net.traces.clear()
    run = train.fit(Counted, DATA, test=TEST, key=jax.random.key(0), recipe=recipe, seeds=2)
    return run, len(Net.traces)


def test_it_learns_and_says_how(learned):
    run, _ = learned
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
    run, _ = learned
    for seed in (0, 1):
        score = train.evaluate(run.model(seed=seed), *TEST, batch_size=33)
        assert score.accuracy == pytest.approx(run.history.test_accuracy[-1, seed])
        assert score.loss == pytest.approx(run.history.test_loss[-1, seed], rel=1e-5)
        best = train.evaluate(run.model("best", seed=seed), *TEST).accuracy
        assert best == pytest.approx(run.history.test_accuracy[:, seed].max())
        first = int(np.argmax(run.history.test_accuracy[:, seed]))
        assert run.best_step[seed] == run.history.step[first]


def test_initial_weights_are_those_that_were_built(learned):
    run, _ = learned
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
    run, _ = learned
    alone = train.fit(Net, DATA, test=TEST, key=jax.random.key(0), recipe=run.recipe)
    same({k: v[:1] for k, v in run.last.items()}, alone.last)
    assert not np.array_equal(run.last["dense/kernel"][0], run.last["dense/kernel"][1])
    together = train.fit(Net, DATA, test=TEST, key=jax.random.key(0), recipe=run.recipe, seeds=2, vectorised=True)
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
    first, second = (train_layout.Layout.of(build(rngs=nnx.Rngs(seed)))[0] for seed in (0, 1))
    assert first == second
    assert first.contents is None


@pytest.mark.parametrize("build", [Net, Dense])
def test_one_loop_and_single_steps_agree(key, monkeypatch, build):
    runs = []
    for by_step in (False, True):
        monkeypatch.setattr(Machine, "must_step", lambda *_, answer=by_step: answer)
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

    ask = Machine.must_step

    def stop(*args):
        assert ask(*args) == (singly and jax.default_backend() == "cpu")
        raise Asked

    monkeypatch.setattr(Machine, "must_step", stop)
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
    recipe = train.Recipe(epochs=40, batch_size=64, rate=1e-6, schedule="constant", decay=0.0)
    spread = {}
    for crop in (0, 2):
        run = train.fit(Dense, (images, labels), key=key, recipe=dataclasses.replace(recipe, crop=crop, flip=crop > 0))
        spread[crop] = np.std(run.history.train_loss)
    assert spread[0] < 0.1 * spread[2]


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


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_half_precision_parameters_without_a_gradient(key, relaxed_promotion, optimizer):
    """The epsilon of these rules is zero in float16."""

    class Half(nnx.Module):
        def __init__(self, *, rngs):
            for name in ("used", "idle"):
                setattr(self, name, nnx.Linear(SIDE * SIDE, CLASSES + 1, param_dtype=jnp.float16, rngs=rngs))

        def __call__(self, x):
            x = x.reshape(len(x), -1)
            return self.used(x) + 0 * self.idle(x)

    recipe = dataclasses.replace(ONE, optimizer=optimizer, rate=0.01)
    run = train.fit(Half, DATA, key=key, recipe=recipe)
    assert run.diverged[0] == -1
    assert {str(v.dtype) for v in run.last.values()} == {"float16"}
    wide = train.fit(lambda *, rngs: _widened(Half(rngs=rngs)), DATA, key=key, recipe=recipe)
    close(run.last, wide.last, rtol=0.02, atol=0.02)


def _widened(model):
    nnx.update(model, jax.tree.map(lambda x: x.astype(jnp.float32), nnx.state(model)))
    return model


def test_the_bar_says_where_it_is(key, capsys):
    train.fit(Dense, DATA, test=TEST, key=key, recipe=ONE, progress=True)
    assert "epoch 1.0 of 1" in capsys.readouterr().out


# Scores and statistics


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


@pytest.mark.parametrize("batch_size", [None, 21])
def test_models_of_the_library_are_calibrated(batch_size):
    """Their normalisations keep running statistics the way of PyTorch, which calibration must not."""
    model = models.SmallCNN(channels=(3, 4), in_channels=1, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).normal(3, 2, (64, SIDE, SIDE, 1)).astype(np.float32)
    calibrated = train.calibrate(model, images, batch_size=batch_size)
    first = model.blocks[0].conv(images)
    norm = next(node for _, node in nnx.iter_graph(calibrated) if isinstance(node, nnx.BatchNorm))
    np.testing.assert_allclose(norm.mean[...], np.mean(first, (0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(norm.var[...], np.var(first, (0, 1, 2)), rtol=1e-4)
    model.train()
    np.testing.assert_allclose(calibrated(images), model(images), rtol=1e-4, atol=1e-5)


Pair = collections.namedtuple("Pair", "left right")


class Odd(nnx.Module):
    """Normalisations in containers of all kinds, one of them in two places."""

    def __init__(self, *, rngs):
        def norm():
            return nnx.BatchNorm(1, rngs=rngs)

        self.named, self.listed, self.dictionary = nnx.data({"n": norm()}), nnx.List([norm()]), nnx.Dict(n=norm())
        self.tupled, self.paired = nnx.data((norm(),)), nnx.data({"pair": Pair(norm(), norm())})
        self.again = self.named["n"]

    def __call__(self, x):
        x = jnp.square(self.named["n"](x, use_running_average=None))
        for norm in (self.listed[0], self.dictionary["n"], self.tupled[0], *self.paired["pair"]):
            x = jnp.sqrt(1 + jnp.square(norm(x)))
        return x


class Scanned(nnx.Module):
    """Three normalisations as one, their statistics stacked."""

    def __init__(self, *, rngs):
        make = nnx.vmap(lambda rngs: nnx.BatchNorm(1, rngs=rngs), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=3)(make)(rngs)

    def __call__(self, x):
        step = nnx.scan(lambda layer, x: jnp.sqrt(1 + layer(x)), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return step(self.layers, x)


@pytest.mark.parametrize("batch_size", [None, 21])
@pytest.mark.parametrize("build", [Odd, Scanned, functools.partial(nnx.BatchNorm, 1)])
def test_normalisations_anywhere_are_calibrated(build, batch_size):
    model = build(rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).uniform(0, 2, (64, SIDE, SIDE, 1)).astype(np.float32)
    calibrated = train.calibrate(model, images, batch_size=batch_size)
    assert jax.tree.structure(nnx.state(calibrated)) == jax.tree.structure(nnx.state(model))
    model.train()
    np.testing.assert_allclose(calibrated(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [None, 21])
def test_a_normalisation_of_two_inputs_cannot_be_calibrated(batch_size):
    class Twice(Odd):
        def __call__(self, x):
            return self.again(jnp.square(self.named["n"](x)))

    class Masked(Odd):
        def __call__(self, x):
            return self.again(x, mask=jnp.ones(x.shape, bool))

    images = np.random.default_rng(0).normal(3, 2, (64, SIDE, SIDE, 1)).astype(np.float32)
    with pytest.raises(ValueError, match="used once in a pass, got again used 2 times"):
        train.calibrate(Twice(rngs=nnx.Rngs(0)), images, batch_size=batch_size)
    with pytest.raises(ValueError, match="without a mask"):
        train.calibrate(Masked(rngs=nnx.Rngs(0)), images, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [None, 21])
def test_calibrated_statistics_are_those_of_the_images(batch_size):
    model = Tower(rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).normal(3, 2, (64, SIDE, SIDE, 1)).astype(np.float32)
    before = jax.tree.map(np.array, nnx.state(model, nnx.BatchStat))
    calibrated = train.calibrate(model, images, batch_size=batch_size)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.BatchStat), before)
    assert calibrated.first.momentum == model.first.momentum
    assert calibrated.dropout.deterministic
    np.testing.assert_allclose(calibrated.first.mean[...], images.mean(), rtol=1e-5)
    np.testing.assert_allclose(calibrated.first.var[...], images.var(), rtol=1e-5)
    # One training pass over all images as one batch, dropout off.
    model.train()
    model.dropout.deterministic = True
    np.testing.assert_allclose(calibrated(images), model(images), rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(nnx.state(calibrated)) == jax.tree.structure(nnx.state(model))


def test_calibrate_normalises_and_passes_networks_without_statistics():
    images = DATA[0]
    calibrated = train.calibrate(Dense(rngs=nnx.Rngs(0)), images, mean=(0.2,), deviation=(0.3,))
    flat = ((images / 255 - 0.2) / 0.3).reshape(len(images), -1)
    np.testing.assert_allclose(calibrated.norm.mean[...], flat.mean(0), rtol=1e-4, atol=1e-5)
    plain = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(train.calibrate(plain, np.zeros((2, 3), np.float32)).kernel[...], plain.kernel[...])
    with pytest.raises(ValueError, match="at least one image"):
        train.calibrate(plain, np.zeros((0, 3), np.float32))
