"""Networks that hide their arrays: what they hold is read anew at every call, and compiles once."""

import functools

import beartype
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen, nnx

from stabjax import features, lipschitz, models, networks, perturb, probe, receptive, sweep, train
from stabjax.lipschitz._jacobian import _local
from stabjax.probe._source_units import read_batch
from stabjax.probe._windows import pass_window_quickly as pass_window
from stabjax.receptive._effective import _mean_gradient
from tests import sample_networks
from tests.networks.opaque_models import (
    DEFORMATION,
    KEY,
    Cell,
    arrays_of_numpy,
    bound_method,
    hidden_beside_parameters,
    kernels,
    module_in_a_lambda,
    objects,
    partial_that_hides,
    partial_with_a_dictionary,
    run,
)

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

IMAGES = (6, 6, 6, 3)
checked = jaxtyping.jaxtyped(typechecker=beartype.beartype)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), IMAGES)


def is_traced_at_every_call(model):
    adapter = networks.wrap(model).adapter
    return adapter.opaque or adapter.foreign


WHOLE = {f.__name__: f for f in (objects, bound_method, arrays_of_numpy, partial_with_a_dictionary, module_in_a_lambda)}
PART = {f.__name__: f for f in (hidden_beside_parameters, partial_that_hides)}


def stable(f, x):
    return probe.stability(f, x, key=KEY, deformation=DEFORMATION, batch_size=4, select="output").deformation[-1]


def alone(f, x):
    return probe.stability(f, x, key=KEY, deformation=DEFORMATION, batch_size=6, select="output").deformation[-1]


def similar(f, x):
    fixed = networks.wrap(jax.tree_util.Partial(run, *kernels(3)))
    return probe.similarity(f, fixed, x, select=["output"], batch_size=4).matrix


def steep(f, x):
    return lipschitz.local(f, x, key=KEY).value


def bounded(f, x):
    return lipschitz.network(f, x).value


def seen(f, x):
    return receptive.effective(f, x, tap=features.taps(f, x)[0].name)


def taken(f, x):
    return features.capture(f, select="dense")(x)[1]


LOOKS = {look.__name__: look for look in (stable, alone, similar, steep, bounded, seen, taken)}
COMPILED = {
    "stable": pass_window,
    "alone": pass_window,
    "similar": read_batch,
    "steep": _local,
    "seen": _mean_gradient,
}


@pytest.mark.parametrize(
    "look", [pytest.param(look, marks=[pytest.mark.slow] * (look in ("alone", "similar"))) for look in LOOKS]
)
def test_what_a_network_hides_is_read_at_every_call(look, images):
    """Whatever hides the arrays: the numbers are those of the same network as a tree, and nothing compiles again."""
    run_look, jitted = LOOKS[look], COMPILED.get(look)
    expected = [
        jax.tree.leaves(run_look(networks.wrap(jax.tree_util.Partial(run, *kernels(seed))), images)) for seed in (0, 5)
    ]
    compiled = None
    for k, build in enumerate(WHOLE.values()):
        model, change = build()
        f = networks.wrap(model) if k % 2 else model
        for values in expected:
            found = jax.tree.leaves(run_look(f, images))
            for one, other in zip(found, values, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=build.__name__)
            compiled = compiled or (jitted._cache_size() if jitted else None)
            change()
    # Five ways to hide the arrays of one network are one program.
    assert jitted is None or jitted._cache_size() <= compiled + 1


@pytest.mark.parametrize("build", PART)
def test_arrays_beside_parameters_are_read_at_every_call(build, images):
    model, change = PART[build]()
    f = networks.wrap(model)
    before, compiled = steep(f, images), _local._cache_size()
    change()
    after = steep(f, images)
    assert _local._cache_size() == compiled
    expected = networks.wrap(jax.tree_util.Partial(run, kernels(0)[0], kernels(5)[1]))
    np.testing.assert_allclose(after, steep(expected, images), rtol=1e-4)
    assert not np.allclose(after, before, rtol=1e-3)
    assert features.taps(f, images)[0].name in ("conv", "conv_0", "first")


SCALE = {"of all": 1.0}


class Scaled(nnx.Module):
    def __init__(self, values, scale):
        self.first, self.second = map(nnx.Param, values)
        self.scale = scale

    def __call__(self, x):
        scale = self.scale(x) if callable(self.scale) else self.scale["here"] * SCALE["of all"]
        return scale * run(self.first[...], self.second[...], x)


RATE = 1.0


def rated(x):
    return RATE * x


class ByGlobal(nnx.Module):
    """By a variable of this file that a function of it names."""

    def __init__(self, values):
        self.first, self.second = map(nnx.Param, values)

    def __call__(self, x):
        return rated(run(self.first[...], self.second[...], x))


class ByModule(ByGlobal):
    """By a variable of another file."""

    def __call__(self, x):
        return sample_networks.RATE * run(self.first[...], self.second[...], x)


class ByClass(ByGlobal):
    """By an attribute of the class, read in a property."""

    rate = 1.0

    @property
    def doubled(self):
        return 2 * self.rate

    def __call__(self, x):
        return self.doubled / 2 * run(self.first[...], self.second[...], x)


class LinenScaled(linen.Module):
    scale: object

    @linen.compact
    def __call__(self, x):
        return self.scale(x) * run(*(self.param(name, lambda *_: None) for name in ("first", "second")), x)


class EquinoxScaled(eqx.Module):
    first: jax.Array
    second: jax.Array
    scale: list = eqx.field(static=True)

    def __call__(self, x):
        return self.scale[0] * run(self.first, self.second, x)


def scaled_modules():
    """Modules of every framework with a factor out of sight, and how to set it."""
    table = np.ones((), np.float32)
    read = lambda x: jnp.asarray(table)  # noqa: E731
    put = lambda size: table.__setitem__((), size)  # noqa: E731
    values = dict(zip(("first", "second"), kernels(0), strict=True))
    held, listed = {"here": 1.0}, [1.0]
    yield Scaled(kernels(0), read), put
    yield LinenScaled(read).bind({"params": values}), put
    yield Scaled(kernels(0), held), lambda size: held.update(here=size)
    yield Scaled(kernels(0), {"here": 1.0}), lambda size: SCALE.update({"of all": size})
    yield ByGlobal(kernels(0)), lambda size: globals().update(RATE=size)
    yield ByModule(kernels(0)), lambda size: setattr(sample_networks, "RATE", size)
    yield ByClass(kernels(0)), lambda size: setattr(ByClass, "rate", size)
    yield EquinoxScaled(*kernels(0), listed), lambda size: listed.__setitem__(0, size)


def test_modules_with_something_that_changes_in_place_are_traced_anew():
    assert all(is_traced_at_every_call(model) for model, _ in scaled_modules())
    modules = [nnx.Linear(3, 2, rngs=nnx.Rngs(0)), eqx.nn.Identity(), models.LeNet(rngs=nnx.Rngs(0))]
    modules += [linen.Dense(2).bind({"params": {"kernel": jnp.ones((3, 2))}})]
    assert not any(is_traced_at_every_call(model) for model in modules)


@pytest.mark.slow
def test_what_changes_in_place_inside_of_modules_is_seen(images):
    plain = perturb.SphericalNoise(1.0)
    for model, put in scaled_modules():
        numerators = []
        for size in (1.0, 3.0):
            put(size)
            found = probe.stability(
                model, images, key=KEY, deformation=DEFORMATION, noise=plain, batch_size=4, select="output"
            )
            numerators.append(float(found.pair_distance[-1]))
        put(1.0)
        np.testing.assert_allclose(numerators[1], 9 * numerators[0], rtol=1e-4, err_msg=str(type(model)))


def test_an_evaluation_sees_what_changes_in_place(images):
    held = {"here": 1.0}
    model = Scaled(kernels(0), held)
    labels = jnp.zeros(len(images), jnp.int32)
    found = []
    for size in (1.0, 3.0, 1.0):
        held["here"] = size
        found.append(train.evaluate(model, images, labels).loss)
    logits = [-jax.nn.log_softmax(size * run(*kernels(0), images))[:, 0].mean() for size in (1.0, 3.0, 1.0)]
    np.testing.assert_allclose(found, logits, rtol=1e-4)


def test_names_of_a_plain_function_stay(images):
    model, _ = objects()
    names = ["conv_0", "relu_0", "avg_pool_0", "dense_0", "output"]
    traced = features.trace(model, images)
    for copy in (traced, jax.tree.map(lambda leaf: leaf, traced)):
        assert [tap.name for tap in copy.taps] == names


class Config:
    rate = 1.0


class Dense(nnx.Module):
    def __init__(self, rate):
        self.dense = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.rate = rate

    def __call__(self, x):
        return self.rate() * self.dense(x).mean((1, 2))


def one(self):
    return 1.0


class Method(Dense):
    rate = one

    def __init__(self):
        self.dense = nnx.Linear(3, 2, rngs=nnx.Rngs(0))


def readers():
    """Modules of one's own that read something by other means than containers, and how to set it."""
    yield Dense(lambda: Config.rate), lambda size: setattr(Config, "rate", size)

    rate = 1.0

    def put(size):
        nonlocal rate
        rate = size

    yield Dense(lambda: rate), put

    def default(rate=1.0):
        return rate

    yield Dense(default), lambda size: setattr(default, "__defaults__", (size,))
    held = {}
    yield Dense(lambda: held.get("here", 1.0)), lambda size: held.update(here=size)
    pair = Cell((1.0,))
    yield Dense(lambda: pair.value[0]), lambda size: setattr(pair, "value", (size,))
    yield Method(), lambda size: setattr(Method, "rate", lambda self: size)


def test_what_modules_of_ones_own_read_is_read_at_every_call(images):
    compiled = None
    for model, put in readers():
        f = networks.wrap(model)
        slopes = []
        for size in (1.0, 3.0, 1.0):
            put(size)
            slopes.append(steep(f, images))
        np.testing.assert_allclose(slopes, np.multiply.outer([1, 3, 1], slopes[0]), rtol=1e-4)
        compiled = compiled or _local._cache_size()
    # The two rates are two programs, the same ones for all that read them.
    assert _local._cache_size() == compiled
    network = networks.wrap(Method(), method=lambda model, x: Config.rate * model(x))
    first = steep(network, images)
    Config.rate = 2.0
    np.testing.assert_allclose(steep(network, images), 2 * first, rtol=1e-4)
    Config.rate = 1.0


def test_an_opaque_network_is_traced_once_per_call(images):
    model, change = objects()
    stable(model, images)
    calls, compiled = model.calls, pass_window._cache_size()
    change()
    stable(model, images)
    assert model.calls == calls + 1
    assert pass_window._cache_size() == compiled


# Where nobody traces them


def test_a_program_of_the_user_compiles_again_for_what_has_changed(images):
    model, change = objects()
    f = networks.wrap(model)
    run_user = jax.jit(lambda f, x: features.capture(f, select="dense")(x)[0])
    for seed in (0, 5):
        for _ in range(2):
            np.testing.assert_allclose(run_user(f, images), run(*kernels(seed), images), rtol=1e-4, atol=1e-5)
            model.calls = 0  # what a call leaves behind is held too
        change()
    assert run_user._cache_size() == 2


def test_a_sweep_sees_what_has_changed(images):
    model, change = arrays_of_numpy()

    def cell(network, key, *, strength):
        return {"total": strength * jnp.sum(network(images))}

    swept = functools.partial(cell, networks.wrap(model))
    for seed in (0, 5):
        found = sweep.run(swept, {"strength": [1.0, 2.0]}, key=KEY).total.values[..., 0]
        expected = float(jnp.sum(run(*kernels(seed), images)))
        np.testing.assert_allclose(found, [expected, 2 * expected], rtol=1e-3)
        change()


def test_plain_perturbations_are_looked_at_too(images):
    shift = np.zeros(3, np.float32)
    perturbed = lambda key, image: image + shift  # noqa: E731
    for size in (0.5, 2.0):
        shift[...] = size
        deformed, _ = probe.perturbed(images, key=KEY, deformation=perturbed)
        np.testing.assert_allclose(deformed - images[None], size, rtol=1e-4)


def by_config(key, image):
    return image + Config.rate


def test_perturbations_and_programs_of_the_user_see_attributes_of_classes(images):
    network = networks.wrap(lambda x: Config.rate * x)
    run_user = jax.jit(lambda f, x: f(x))
    for rate in (1.0, 2.0, 1.0):
        Config.rate = rate
        deformed, _ = probe.perturbed(images, key=KEY, deformation=by_config)
        np.testing.assert_allclose(deformed[0], images + rate, rtol=1e-6)
        np.testing.assert_allclose(run_user(network, images), rate * images, rtol=1e-6)
