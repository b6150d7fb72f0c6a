"""A traced network: its own Python runs once for whatever is asked, and the program is passed on as a value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import features, lipschitz, perturb, probe, receptive
from stabjax.networks._network import Adapter
from tests.sample_networks import conv, normal

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

KEY = jax.random.key(0)
DEFORMATION = perturb.Translation(0.7)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (12, 8, 8, 3))


def known(seed, width=4):
    """A network of known modules: it is traced once for its architecture."""
    rngs = nnx.Rngs(seed)
    whole = nnx.Conv(width, 2, (8, 8), padding="VALID", rngs=rngs)
    return nnx.Sequential(nnx.Conv(3, width, (3, 3), rngs=rngs), nnx.relu, whole)


def plain(seed):
    """A function that holds its arrays: it is traced at every call."""
    first, second = normal(seed, 3, 3, 3, 4), normal(seed + 1, 4, 2)
    return lambda x: jax.nn.relu(conv(x, first)).mean((1, 2)) @ second


QUESTIONS = {
    "taps": features.taps,
    "hidden": features.hidden,
    "capture": lambda f, x: features.capture(f, select="conv")(x),
    "probe.stability": lambda f, x: probe.stability(f, x, key=KEY, deformation=DEFORMATION, batch_size=4),
    "probe.stability, one batch": lambda f, x: probe.stability(f, x, key=KEY, deformation=DEFORMATION, batch_size=12),
    "probe.similarity": lambda f, x: probe.similarity(f, f, x, batch_size=5),
    "receptive.extent": receptive.extent,
    "receptive.effective": lambda f, x: receptive.effective(f, x[:2], tap="relu_0", channel=0),
    "receptive.constant_weight": lambda f, x: receptive.constant_weight(f, x[:2], tap="relu_0"),
    "lipschitz.network": lipschitz.network,
    "lipschitz.local": lambda f, x: lipschitz.local(f, x[:2], key=KEY, layer="relu_0", steps=2),
}


@pytest.fixture
def runs(monkeypatch):
    """Grows by one whenever the Python code of a network runs."""
    seen = []
    call = Adapter.__call__

    def recorded(adapter, variables, x):
        seen.append(x.shape)
        return call(adapter, variables, x)

    monkeypatch.setattr(Adapter, "__call__", recorded)
    return seen


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_code_of_a_network_runs_once_for_a_question(question, images, runs):
    ask = QUESTIONS[question]
    for times, seed in enumerate((0, 5), start=1):
        ask(plain(seed), images)
        assert len(runs) == times
    runs.clear()
    for seed in (0, 5):
        ask(known(seed, 5 + list(QUESTIONS).index(question)), images)  # an architecture that nobody has asked of before
        assert len(runs) == 1


def test_similarity_inside_jit_traces_again_only_if_the_activations_do_not_fit(images, runs):
    f, g = plain(0), plain(5)

    def compare(**options):
        return jax.jit(lambda x: probe.similarity(f, g, x, batch_size=4, **options).matrix)(images[:10])

    whole = compare()
    assert [shape[0] for shape in runs] == [4, 4]
    runs.clear()
    one_image = 2 * 4 * (8 * 8 * 4 * 2 + 4 + 2 + 2)  # bytes: two networks, their convolution, relu, pool, dense, output
    parts = compare(memory=6.5 * one_image / 2**30)  # two tiles of five images, in batches of three
    assert [shape[0] for shape in runs] == [4, 4, 3, 3]
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    runs.clear()
    # Outside, a tile is of as many batches as fit, whatever their size.
    np.testing.assert_allclose(probe.similarity(f, g, images[:10], batch_size=4).matrix, whole, atol=1e-5)
    assert [shape[0] for shape in runs] == [4, 4]


def test_a_traced_network_answers_as_the_questions_do(images):
    f = known(0)
    traced = features.trace(f, images)
    assert (traced.batch.shape, traced.batch.dtype) == (images.shape, images.dtype)
    assert traced.taps == features.taps(f, images)
    assert (traced.hidden, traced.mixed_rows) == ((), ())
    outputs, activations = traced.capture(images, select="conv")
    expected, others = features.capture(f, select="conv")(images)
    np.testing.assert_array_equal(outputs, expected)
    np.testing.assert_array_equal(traced(images), expected)
    assert list(activations) == list(others) == ["layers/0", "layers/2"]
    abstract = features.trace(f, jax.ShapeDtypeStruct(images.shape, images.dtype))
    assert abstract.taps == traced.taps


@pytest.mark.parametrize("make", [known, plain])
def test_a_traced_network_is_an_argument_of_jit(make, images):
    count = 0

    @jax.jit
    def run(traced, x):
        nonlocal count
        count += 1
        return traced(x)

    for seed in (0, 5):
        f = make(seed)
        np.testing.assert_allclose(run(features.trace(f, images), images), f(images), rtol=1e-5, atol=1e-6)
    assert count == 1
    run(features.trace(lambda x: make(0)(x) + 1.0, images), images)
    assert count == 2


def test_mixed_rows_are_refused_with_the_remedy(images):
    mixed = features.trace(lambda x: x - x.mean(0, keepdims=True), images)
    assert mixed.mixed_rows
    with pytest.raises(ValueError, match=r"at reduce_sum, .*train\.calibrate, or pass them all$"):
        mixed.check_rows(otherwise=", or pass them all")
    features.trace(plain(0), images).check_rows()


def test_entries_of_a_selection_are_strings():
    assert features.as_select(["conv", "dense"]) == ("conv", "dense")
    assert features.as_select("conv") == ("conv",)
    assert features.as_select(None) is None
    assert features.as_select(callable) is callable
    with pytest.raises(TypeError, match="a predicate is passed alone"):
        features.as_select([callable])


def test_images_of_another_precision_are_those_that_jax_makes_of_them(images):
    traced = features.trace(known(0), images)
    np.testing.assert_array_equal(traced(np.asarray(images, np.float64)), traced(images))
    with pytest.raises(ValueError, match="trace it for that"):
        traced(jnp.asarray(images, jnp.bfloat16))
