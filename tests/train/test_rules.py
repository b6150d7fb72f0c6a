"""Fields of a recipe, learning rates, losses and rules of descent: each against its definition."""

import dataclasses
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

from stabjax import train
from tests.train.helpers import CLASSES, DATA, ONE, SIDE, close


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


@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.slow), "muon"])
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
