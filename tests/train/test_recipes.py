"""Muon, half precision, moving averages and mirrored scores: each against another way to the same numbers."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import conv, models, train
from stabjax.train import _files
from tests.train.kills import DATA, TEST, Net, Plain, crash, same

FIXED = train.Recipe(epochs=3, batch_size=16, rate=0.05, schedule="constant")
ALL = train.Recipe(
    epochs=4.5,
    batch_size=16,
    optimizer="muon",
    rate=0.01,
    schedule="triangular",
    precision="bfloat16",
    averaging=0.9,
    test_flip=True,
)
fit = functools.partial(train.fit, Net, DATA, key=jax.random.key(5))


# Its types


def test_a_recipe_holds_what_comes_back_from_json(unchecked):
    statistics = np.array([0.5, 0.25, 0.1], np.float32)
    given = train.Recipe(
        epochs=np.int64(3), batch_size=16.0, rate=np.float64(0.1), crop=np.int32(2), flip=np.bool_(True),
        mean=tuple(statistics), deviation=jnp.asarray(statistics), decay=0,
    )  # fmt: skip
    text = json.dumps(given.to_json())
    read = train.Recipe.from_json(json.loads(text))
    assert (given, hash(given), text) == (read, hash(read), json.dumps(read.to_json()))
    assert given == train.Recipe(
        epochs=3.0, batch_size=16, rate=0.1, crop=2, flip=True, mean=[0.5, 0.25, float(statistics[2])],
        deviation=[0.5, 0.25, float(statistics[2])], decay=0.0,
    )  # fmt: skip
    for name, value in dataclasses.asdict(given).items():
        assert type(value) in (str, bool, int, float, tuple), name
    assert (type(given.batch_size), type(given.crop), type(given.epochs), type(given.mean[2])) == (
        int,
        int,
        float,
        float,
    )


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"rate": "0.1"}, TypeError),
        ({"epochs": None}, TypeError),
        ({"epochs": True}, TypeError),
        ({"flip": "no"}, TypeError),
        ({"test_flip": 1}, TypeError),
        ({"mean": 0.5}, TypeError),
        ({"mean": ("0.5",)}, TypeError),
        ({"deviation": "0.5"}, TypeError),
        ({"crop": 2.5}, ValueError),
        ({"batch_size": math.inf}, ValueError),
        ({"batch_size": math.nan}, ValueError),
        ({"mean": (math.nan,)}, ValueError),
        ({"deviation": (math.inf,)}, ValueError),
    ],
)
def test_a_recipe_refuses_another_type_and_names_the_field(unchecked, wrong, error):
    name = next(iter(wrong))
    for make in (lambda: train.Recipe(**wrong), lambda: train.Recipe.from_json(wrong)):
        with pytest.raises(error, match=f"expected {name} "):
            make()


# Muon


def optimizer(recipe, **options):
    """At a rate of one."""
    return train.optimizer(dataclasses.replace(recipe, rate=1.0, schedule="constant"), 1, **options)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (3, 3, 8, 20), (5, 4, 3)])
def test_a_first_update_of_muon_is_nearly_orthogonal(key, relaxed_promotion, shape):
    rule = optimizer(train.Recipe(optimizer="muon", decay=0.0))
    gradient = jax.random.normal(key, shape)
    update, _ = jax.jit(lambda g, params: rule.update(g, rule.init(params), params))(gradient, jnp.zeros(shape))
    u, _, v = np.linalg.svd(np.asarray(gradient, np.float64).reshape(-1, shape[-1]), full_matrices=False)
    matrix = -np.asarray(update).reshape(-1, shape[-1]) / (0.2 * max(matrix_shape(shape)) ** 0.5)
    # In the basis of the gradient it is diagonal, and each direction counts about as much as every other.
    inside = u.T @ matrix @ v.T
    values = np.diag(inside)
    np.testing.assert_allclose(inside, np.diag(values), atol=1e-4)
    assert np.all((values > 0.65) & (values < 1.25))
    # So the elements are as large as those of Adam's updates commonly are.
    assert np.sqrt(np.mean(np.square(update))) == pytest.approx(0.2, rel=0.2)


def matrix_shape(shape):
    return np.prod(shape[:-1]), shape[-1]


def newton_schulz(x):
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_the_textbook_one(relaxed_promotion, nesterov):
    rng = np.random.default_rng(0)
    recipe = train.Recipe(optimizer="muon", momentum=0.8, nesterov=nesterov, decay=0.1)
    rule, adam = optimizer(recipe, outputs=4), optimizer(train.Recipe(optimizer="adam", decay=0.0))
    shapes = {"kernel": (2, 3, 5), "head": (5, 4), "bias": (5,)}
    params = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    state, others = rule.init(params), adam.init(params)
    step, step_of_adam = jax.jit(rule.update), jax.jit(adam.update)
    moment = 0.0
    for t in range(1, 5):
        gradient = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
        updates, state = step(gradient, state, params)
        expected, others = step_of_adam(gradient, others, params)
        moment = 0.8 * moment + 0.2 * gradient["kernel"]
        mean = moment / (1 - 0.8**t)
        if nesterov:  # the moment as it will be if the next gradient is like this one
            mean = 0.8 * moment / (1 - 0.8 ** (t + 1)) + 0.2 * gradient["kernel"] / (1 - 0.8**t)
        orthogonal = newton_schulz(mean.reshape(6, 5)).T.reshape(2, 3, 5)
        expected["kernel"] = -0.2 * 6**0.5 * orthogonal
        for k, p in params.items():
            np.testing.assert_allclose(updates[k], expected[k] - 0.1 * p * (p.ndim > 1), rtol=2e-4, atol=1e-5)


# The moving average


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run with averages, its folder, and its states after every step, of which the last one is saved."""
    path, states, save = tmp_path_factory.mktemp("runs") / "averaged", {}, _files.save_state

    def keep(path, step, arrays, meta):
        states[step] = arrays
        if step == 12:
            save(path, step, arrays, meta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stabjax.train._loop.PATIENCE", 0.0)
        patch.setattr(_files, "save_state", keep)
        recipe = dataclasses.replace(FIXED, averaging=0.45)
        run = fit(recipe=recipe, test=TEST, seeds=2, path=path, save_every=0.0)
    return run, path, states


def test_averages_are_those_of_the_weights_of_all_steps(recorded):
    run, _, states = recorded
    assert sorted(states) == list(range(1, 13))
    trained = {"hidden/kernel", "hidden/bias", "norm/scale", "norm/bias", "out/kernel", "out/bias", "nothing"}
    statistics = {"norm/mean", "norm/var"}
    assert {k.removeprefix("average/") for k in states[1] if k.startswith("average")} == trained | statistics
    for name in trained | statistics:
        kind = "rest" if name in statistics else "params"
        weights = [run.initial[name], *(states[t][f"{kind}/{name}"] for t in range(1, 13))]
        mean = np.asarray(weights[0], np.float64)
        for t in range(12):
            d = min(0.45, (1 + t) / (10 + t))  # 0.45 from the seventh step on
            mean = d * mean + (1 - d) * weights[t + 1]
            np.testing.assert_allclose(states[t + 1][f"average/{name}"], mean, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(run.last[name], states[12][f"average/{name}"])
        assert mean.size == 0 or not np.allclose(mean, weights[-1], rtol=1e-4, atol=0)
    for name in run.last.keys() - trained - statistics:
        np.testing.assert_array_equal(run.last[name], states[12][f"rest/{name}"])


def test_averages_do_not_touch_the_training(recorded):
    run, _, states = recorded
    plain = fit(recipe=FIXED, test=TEST, seeds=2)
    for name, value in plain.last.items():
        found = states[12].get(f"params/{name}", states[12].get(f"rest/{name}"))
        np.testing.assert_array_equal(found, value, err_msg=name)
    np.testing.assert_array_equal(run.history.train_loss, plain.history.train_loss)
    assert np.all(run.history.test_loss != plain.history.test_loss)


def test_averages_are_scored_given_back_and_kept(recorded):
    run, path, _ = recorded
    for seed in (0, 1):
        losses = [train.evaluate(run.model(step, seed=seed), *TEST).loss for step in (4, 8, 12)]
        np.testing.assert_allclose(losses, run.history.test_loss[:, seed], rtol=1e-5)
        best = int(np.argmax(run.history.test_accuracy[:, seed]))
        assert train.evaluate(run.model("best", seed=seed), *TEST).loss == pytest.approx(losses[best], rel=1e-5)
        for which in ("best", "last"):
            read = nnx.state(train.load(path, Net(rngs=nnx.Rngs(0)), step=which, seed=seed), nnx.Param, nnx.BatchStat)
            kept = nnx.state(run.model(which, seed=seed), nnx.Param, nnx.BatchStat)
            jax.tree.map(np.testing.assert_array_equal, read, kept)


def test_averages_of_seeds_trained_side_by_side(recorded):
    one = recorded[0]
    _assert_close(one, fit(recipe=one.recipe, test=TEST, seeds=2, vectorized=True))


@pytest.mark.slow
def test_averages_of_seeds_trained_side_by_side_by_muon(relaxed_promotion):
    recipe = dataclasses.replace(ALL, epochs=2, precision="float32")
    _assert_close(*(fit(recipe=recipe, seeds=2, vectorized=v) for v in (False, True)))


def _assert_close(one, other):
    np.testing.assert_allclose(one.history.train_loss, other.history.train_loss, rtol=1e-3)
    for name in ("hidden/kernel", "out/kernel", "norm/var"):
        np.testing.assert_allclose(one.last[name], other.last[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_averages_before_a_divergence_are_kept(tmp_path):
    recipe = dataclasses.replace(FIXED, epochs=20, rate=1e4, decay=1.0, averaging=0.9)
    fit = functools.partial(train.fit, Plain, DATA, key=jax.random.key(5))
    with pytest.warns(RuntimeWarning, match="diverged in step"):
        run = fit(recipe=recipe, path=tmp_path)
    step = int(run.diverged[0])
    assert 4 < step < 80
    before = fit(recipe=dataclasses.replace(recipe, epochs=step / 4))
    for name in before.last:
        np.testing.assert_array_equal(run.last[name], before.last[name], err_msg=name)
    assert max(train.checkpoints(tmp_path)) <= step
    for which in (*train.checkpoints(tmp_path), "last"):
        model = train.load(tmp_path, Plain(rngs=nnx.Rngs(0)), step=which)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    with pytest.warns(RuntimeWarning, match=f"diverged in step {step} "):
        same(fit(recipe=recipe, path=tmp_path), run)


# Half precision


class Conv(nnx.Module):
    """A convolution by the route of this library and a normalization by Flax; it notes what they compute in."""

    seen = []

    def __init__(self, *, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), conv_general_dilated=conv.conv_general_dilated, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.out = nnx.Linear(8 * 16, 3, rngs=rngs)

    def __call__(self, x):
        steps = [x, self.conv(x)]
        steps.append(self.norm(steps[-1]))
        steps.append(self.out(nnx.relu(steps[-1]).reshape(len(x), -1)))
        Conv.seen.append(("scored" if self.norm.use_running_average else "trained", {str(s.dtype) for s in steps}))
        return steps[-1]


def test_half_precision_agrees_with_single(relaxed_promotion):
    recipe = dataclasses.replace(FIXED, epochs=6, decay=0.0)
    go = functools.partial(train.fit, Conv, DATA, test=TEST, key=jax.random.key(5))
    Conv.seen.clear()
    half = go(recipe=dataclasses.replace(recipe, precision="bfloat16"))
    assert ("trained", {"bfloat16"}) in Conv.seen
    assert ("scored", {"float32"}) in Conv.seen
    assert ("trained", {"float32"}) not in Conv.seen
    single = go(recipe=recipe)
    assert {str(v.dtype) for v in half.last.values()} == {"float32"}
    np.testing.assert_allclose(half.history.train_loss, single.history.train_loss, rtol=0.02)
    np.testing.assert_allclose(half.history.test_loss, single.history.test_loss, rtol=0.05)
    assert single.history.train_loss[-1] < 0.5 * single.history.train_loss[0]
    assert np.any(half.history.train_loss != single.history.train_loss)
    # Neither weights nor statistics were rounded.
    for name in ("out/kernel", "norm/mean", "norm/var"):
        assert np.mean(half.last[name] == half.last[name].astype(jnp.bfloat16)) < 0.2, name
        np.testing.assert_allclose(half.last[name], single.last[name], rtol=0.1, atol=0.02, err_msg=name)


def test_half_precision_leaves_frozen_weights_alone(relaxed_promotion):
    out = nnx.All(nnx.Param, nnx.PathContains("out"))
    Conv.seen.clear()
    run = train.fit(
        Conv,
        DATA,
        key=jax.random.key(5),
        trainable=out,
        recipe=dataclasses.replace(FIXED, epochs=1, precision="bfloat16"),
    )
    changed = {k for k in run.last if not np.array_equal(run.last[k], run.initial[k])}
    assert changed == {"out/kernel", "out/bias", "norm/mean", "norm/var"}
    assert ("trained", {"bfloat16"}) in Conv.seen


def test_half_precision_with_one_output():
    class One(nnx.Module):
        def __init__(self, *, rngs):
            self.out = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(x.reshape(len(x), -1))

    data = (DATA[0], np.where(DATA[1] == 0, 1, -1))
    recipe = dataclasses.replace(FIXED, loss="hinge", batch_size=len(DATA[0]))
    one, other = (
        train.fit(One, data, key=jax.random.key(5), recipe=dataclasses.replace(recipe, precision=p))
        for p in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(one.history.train_loss, other.history.train_loss, rtol=0.02)
    # The mean over the batch is no bfloat16 number.
    assert not np.array_equal(other.history.train_loss, other.history.train_loss.astype(jnp.bfloat16))


# Mirrored scores


def test_mirrored_scores_are_those_of_the_mean_logits():
    model = Net(rngs=nnx.Rngs(0))
    images, labels = TEST
    guest = nnx.clone(model)
    guest.eval()
    x = (images / 255).astype(np.float32)
    logits = (np.asarray(guest(x), np.float64) + np.asarray(guest(x[:, :, ::-1]), np.float64)) / 2
    expected = -np.mean((logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(30), labels])
    for batch_size in (30, 7):
        score = train.evaluate(model, images, labels, batch_size=batch_size, flip=True)
        assert score.loss == pytest.approx(expected, rel=1e-5)
        assert score.accuracy == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert train.evaluate(model, images, labels).loss != pytest.approx(expected, rel=1e-3)
    mirrored = train.evaluate(model, images[:, :, ::-1], labels, flip=True)
    assert mirrored.loss == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="spatial axes"):
        train.evaluate(model, images.reshape(30, 16), labels, flip=True)
    flat = (DATA[0].reshape(len(DATA[0]), -1), DATA[1])
    with pytest.raises(ValueError, match="spatial axes"):
        train.fit(Net, flat, key=jax.random.key(0), recipe=train.Recipe(batch_size=16, test_flip=True))


# All together, killed and gone on


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return fit(recipe=ALL, test=TEST, seeds=2, path=path)


def test_muon_is_for_all_matrices_but_the_output_layer(whole):
    arrays, _ = _files.newest_state(whole.path)
    moved = {
        rule: {k for k in arrays if k.startswith("optimizer_state") and f"/{rule}/" in k} for rule in ("muon", "adam")
    }
    of = {k: {n for n in whole.last if any(m.endswith(n) for m in moved[k])} for k in moved}
    assert of == {
        "muon": {"hidden/kernel"},
        "adam": {"hidden/bias", "norm/scale", "norm/bias", "out/kernel", "out/bias"},
    }


def test_all_together_learns_and_is_scored_mirrored(whole):
    assert np.all(whole.history.train_loss[-1] < 0.8 * whole.history.train_loss[0])
    for seed in (0, 1):
        score = train.evaluate(whole.model(seed=seed), *TEST, flip=True)
        assert score.loss == pytest.approx(whole.history.test_loss[-1, seed], rel=1e-5)
        assert train.evaluate(whole.model(seed=seed), *TEST).loss != pytest.approx(score.loss, rel=1e-4)


@pytest.mark.parametrize("n", [75, pytest.param(160, marks=pytest.mark.slow)])
def test_all_together_killed_and_gone_on(whole, tmp_path, monkeypatch, relaxed_promotion, n):
    monkeypatch.setattr("stabjax.train._loop.PATIENCE", 0.0)
    assert crash(tmp_path, n, recipe=ALL)
    assert 0 < max(int(f.name) for f in (tmp_path / "state").iterdir()) < 18
    same(fit(recipe=ALL, test=TEST, seeds=2, path=tmp_path), whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"precision": "float32"}, "recipe.precision: bfloat16 there, float32 here"),
        ({"averaging": 0.8}, "recipe.averaging: 0.9 there, 0.8 here"),
        ({"test_flip": False}, "recipe.test_flip: True there, False here"),
        ({"optimizer": "adam"}, "recipe.optimizer: muon there, adam here"),
    ],
)
def test_another_recipe_is_refused_and_named(whole, untrained, change, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        fit(recipe=dataclasses.replace(ALL, **change), test=TEST, seeds=2, path=whole.path)


class Begun(Exception):
    """The folder is open."""


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is compiled."""
    monkeypatch.setattr("stabjax.train._fit.TrainLoop", lambda *arguments: None)


def _begun(path, recipe):
    """Begin a run, or go on with one, as far as the opened folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "newest_state", _begin)
        with pytest.raises(Begun):
            fit(recipe=recipe, path=path)


def _begin(path):
    raise Begun


def test_runs_older_than_the_fields_of_a_recipe(tmp_path, untrained):
    _begun(tmp_path, FIXED)
    manifest = _files.read_json(tmp_path / "run.json")
    for name in ("precision", "averaging", "test_flip"):
        del manifest["recipe"][name]
    _files.write_json(tmp_path / "run.json", manifest)
    assert train.recipe(tmp_path) == FIXED
    _begun(tmp_path, FIXED)
    # They kept whole numbers as they were given.
    _files.write_json(tmp_path / "run.json", {**manifest, "recipe": {**manifest["recipe"], "epochs": 3}})
    _begun(tmp_path, FIXED)
    _begun(tmp_path, dataclasses.replace(FIXED, epochs=3.0))
    with pytest.raises(ValueError, match=r"\(recipe\.averaging: 0\.0 there, 0\.5 here\)"):
        fit(recipe=dataclasses.replace(FIXED, averaging=0.5), path=tmp_path)
    _files.write_json(tmp_path / "run.json", {**manifest, "recipe": {**manifest["recipe"], "sharpness": 1}})
    with pytest.raises(ValueError, match=r"recipe\.sharpness: 1 there, None here"):
        fit(recipe=FIXED, path=tmp_path)


# Recipes by name


def test_the_published_recipe():
    statistics = {"mean": (0.4914, 0.4822, 0.4465), "deviation": (0.2023, 0.1994, 0.2010)}
    recipe = train.published(**statistics)
    assert recipe == train.Recipe(
        epochs=250,
        batch_size=128,
        optimizer="sgd",
        rate=0.1,
        momentum=0.9,
        nesterov=False,
        decay=5e-4,
        decay_on="matrices",
        schedule="cosine",
        turn=0.8,
        crop=4,
        flip=True,
        **statistics,
    )
    rate = train.schedule(recipe, 390)
    np.testing.assert_allclose([rate(0), rate(200 * 390)], [0.1, 0], atol=1e-8)
    dense = train.published(epochs=350, fully_connected=True)
    assert (dense.optimizer, dense.rate, dense.decay, dense.epochs) == ("adam", 0.1, 0, 350)
    assert float(train.schedule(dense, 390)(349 * 390)) == pytest.approx(0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_the_fast_recipe(optimizer):
    recipe = train.fast(optimizer=optimizer, epochs=12)
    assert (recipe.optimizer, recipe.epochs, recipe.smoothing, recipe.schedule) == (optimizer, 12, 0.2, "triangular")
    assert recipe.nesterov
    assert recipe.test_flip
    assert recipe.averaging == 0.99
    assert recipe.precision == ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    assert train.fast(precision="bfloat16").precision == "bfloat16"
    assert train.Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_the_short_recipe():
    natural, digits = (train.short(epochs=3, natural=natural, mean=(0.5,)) for natural in (True, False))
    assert natural == train.Recipe(
        epochs=3, rate=0.2, schedule="triangular", nesterov=True, crop=4, flip=True, mean=(0.5,)
    )
    assert digits == dataclasses.replace(natural, crop=2, flip=False)


def test_the_recipe_for_fully_connected_networks_trains_them(relaxed_promotion):
    recipe = dataclasses.replace(train.published(epochs=6, fully_connected=True), batch_size=16, crop=0)
    build = functools.partial(models.FullyConnected, 16, layers=2, width=32, num_classes=3)
    run = train.fit(build, DATA, test=TEST, key=jax.random.key(0), recipe=recipe)
    assert run.history.test_accuracy[-1, 0] > 0.8
