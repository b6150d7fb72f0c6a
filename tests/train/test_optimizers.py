"""Optax transformations in the place of a recipe's own: against loops by hand, killed and gone on, told apart."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

from stabjax import lipschitz, train
from stabjax.train import _files
from tests.train.kills import DATA, TEST, Net, Plain, crash, same

RECIPE = train.Recipe(epochs=3, batch_size=16, rate=7.0, decay=0.5)
"""Of which an optimizer leaves the epochs and the size of a batch."""
BOUND = 0.8
fit = functools.partial(train.fit, Plain, DATA, key=jax.random.key(5), recipe=RECIPE)


def keep(bound=BOUND):
    return lipschitz.keep(bound, select=lambda path, _: path.endswith("/kernel"))


def bounded(*, bound=BOUND, last=0.05):
    """Momentum at a falling rate inside of a bound."""
    return optax.chain(optax.sgd(optax.linear_schedule(0.3, last, 12), momentum=0.9), keep(bound))


def by_hand(run, optimizer, steps):
    """Steps of plain Optax on all images, from the initial weights of a run; the weights after each."""
    graph, params = nnx.split(run.model("initial"), nnx.Param)
    images, labels = jnp.asarray(DATA[0], jnp.float32) / 255, jnp.asarray(DATA[1])

    def loss(params):
        outputs = nnx.merge(graph, params)(images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, found = optimizer.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        found.append({"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)})
    return found


@pytest.fixture
def every_step(monkeypatch):
    """The state after every step, which is not written."""
    states = {}

    def noted(path, step, arrays, meta):
        states[step] = arrays

    monkeypatch.setattr("stabjax.train._loop.PATIENCE", 0.0)
    monkeypatch.setattr(_files, "save_state", noted)
    return states


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(
            optax.adamw(optax.cosine_decay_schedule(0.02, 5), weight_decay=0.1), id="adamw", marks=pytest.mark.slow
        ),
        pytest.param(bounded(), id="keep"),
    ],
)
def test_it_is_a_plain_loop_of_optax(relaxed_promotion, optimizer, every_step, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=5, batch_size=len(DATA[0]))
    options = {"recipe": recipe, "optimizer": optimizer, "path": tmp_path, "save_every": 0.0, "checkpoints": ()}
    run = train.fit(Plain, DATA, key=jax.random.key(5), **options)
    for step, weights in enumerate(by_hand(run, optimizer, 5), 1):
        for name, value in weights.items():
            np.testing.assert_allclose(every_step[step][f"params/{name}"][0], value, rtol=1e-4, atol=1e-5)
    assert np.all(np.isnan(run.history.rate))


@pytest.mark.parametrize("vectorized", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_bound_holds_after_every_step(relaxed_promotion, every_step, tmp_path, vectorized):
    recipe = dataclasses.replace(RECIPE, averaging=0.5)
    options = {"recipe": recipe, "seeds": 2, "path": tmp_path, "save_every": 0.0, "checkpoints": ()}
    options |= {"vectorized": vectorized}
    run = fit(optimizer=bounded(), **options)
    assert sorted(every_step) == list(range(1, 13))
    largest = 0.0
    for arrays in every_step.values():
        for name in ("params/hidden/kernel", "params/out/kernel", "average/hidden/kernel", "average/out/kernel"):
            norms = np.linalg.norm(arrays[name].astype(float), 2, axis=(1, 2))
            if name.startswith("params"):
                assert np.all(norms <= BOUND)
                largest = max(largest, *norms)
    assert largest > 0.999 * BOUND
    assert np.all(np.linalg.norm(run.initial["hidden/kernel"], 2, axis=(1, 2)) > BOUND)
    np.testing.assert_array_equal(run.diverged, [-1, -1])


def test_the_average_of_weights_inside_is_inside(relaxed_promotion):
    run = fit(optimizer=bounded(), recipe=dataclasses.replace(RECIPE, epochs=30, averaging=0.3))
    for name in ("hidden/kernel", "out/kernel"):
        assert np.linalg.norm(run.last[name][0].astype(float), 2) <= BOUND * (1 + 1e-6)


@pytest.mark.parametrize(
    ("n", "vectorized"),
    # One after the other are the seeds of other optimizers below.
    [(130, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((130, False), (60, False), (60, True)))],
)
def test_killed_and_gone_on(relaxed_promotion, tmp_path, monkeypatch, n, vectorized):
    monkeypatch.setattr("stabjax.train._loop.PATIENCE", 0.0)
    options = {"recipe": RECIPE, "vectorized": vectorized}

    def optimizer():
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.02), keep())

    go = functools.partial(train.fit, Net, DATA, test=TEST, key=jax.random.key(5), seeds=2)
    assert crash(tmp_path, n, fit=go, optimizer=optimizer(), **options)
    run = go(path=tmp_path, optimizer=optimizer(), **options)
    same(run, go(optimizer=optimizer(), **options))


def test_that_of_a_recipe_as_a_link(relaxed_promotion):
    recipe = train.Recipe(epochs=3, batch_size=16, optimizer="adam", rate=0.02, schedule="triangular", decay=0.1)
    run, own = (
        fit(recipe=recipe, optimizer=optimizer) for optimizer in (None, optax.chain(train.optimizer(recipe, 4)))
    )
    for name in run.last:
        np.testing.assert_array_equal(run.last[name], own.last[name], err_msg=name)


SCHEDULE_FREE = optax.contrib.schedule_free_sgd(0.05)  # its state begins as the parameters
PLATEAU = optax.contrib.reduce_on_plateau(patience=1)  # it asks for the loss
NOISE = optax.add_noise(0.01, 0.5, 3)  # its state holds a key


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(NOISE, SCHEDULE_FREE, PLATEAU),
        *[
            pytest.param(optimizer, marks=pytest.mark.slow)
            for optimizer in (
                SCHEDULE_FREE,
                optax.chain(optax.sgd(0.05), PLATEAU),
                optax.chain(NOISE, optax.sgd(0.05)),
                optax.MultiSteps(optax.sgd(0.05), 2).gradient_transformation(),
            )
        ],
    ],
    ids=["together", "schedule_free", "plateau", "noise", "multi_steps"],
)
def test_states_of_all_kinds_are_kept(relaxed_promotion, tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr("stabjax.train._loop.PATIENCE", 0.0)
    go = functools.partial(fit, test=TEST, seeds=2, optimizer=optimizer)
    assert crash(tmp_path, 90, fit=go)
    run = go(path=tmp_path)
    same(run, go())
    assert not np.array_equal(run.last["out/kernel"], run.initial["out/kernel"])


def test_another_optimizer_is_refused_and_more_epochs_are_not(relaxed_promotion, tmp_path):
    first = fit(optimizer=bounded(), path=tmp_path)
    assert np.all(np.isnan(train.history(tmp_path).rate))
    same(fit(optimizer=bounded(), path=tmp_path), first)
    with pytest.MonkeyPatch.context() as patch:  # nothing is compiled before another run is refused
        patch.setattr("stabjax.train._fit.TrainLoop", lambda *arguments: None)
        for other in (None, optax.sgd(0.1), bounded(bound=2 * BOUND), bounded(last=0.04)):
            with pytest.raises(ValueError, match=r"expected the configuration of the run .*optimizer: "):
                fit(optimizer=other, path=tmp_path)
    longer = dataclasses.replace(RECIPE, epochs=5)
    run = fit(optimizer=bounded(), recipe=longer, path=tmp_path)
    same(run, fit(optimizer=bounded(), recipe=longer))


def test_equal_optimizers_share_their_programs(relaxed_promotion):
    class Counted(Plain):
        """A class of its own, so that no program of another test is found again."""

    def traced(optimizer):
        Plain.traces.clear()
        train.fit(Counted, DATA, key=jax.random.key(5), recipe=RECIPE, optimizer=optimizer)
        return len(Plain.traces)

    assert traced(bounded())
    assert not traced(bounded())
    assert traced(optax.sgd(0.1))


def test_what_an_optimizer_reads_is_not_stale(relaxed_promotion):
    rates = [0.0]
    optimizer = optax.sgd(lambda step: rates[0])
    runs = []
    for rates[0] in (0.0, 0.1):
        runs.append(fit(optimizer=optimizer))
    np.testing.assert_array_equal(runs[0].last["out/kernel"], runs[0].initial["out/kernel"])
    assert not np.array_equal(runs[1].last["out/kernel"], runs[1].initial["out/kernel"])


def test_what_is_no_optimizer_is_refused(unchecked):
    for wrong in ("adam", optax.sgd, optax.constant_schedule(0.1)):
        with pytest.raises(TypeError, match=r"expected optimizer as an optax\.GradientTransformation, got"):
            fit(optimizer=wrong)
