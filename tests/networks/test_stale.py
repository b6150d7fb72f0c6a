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
from stabjax._jaxpr import of_object
from stabjax.lipschitz._local import _local
from stabjax.probe._compare import compare
from stabjax.probe._pass import measure
from stabjax.receptive._effective import _mean_gradient
from tests import sample_networks as guests

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

IMAGES = (6, 6, 6, 3)
KEY = jax.random.key(0)
checked = jaxtyping.jaxtyped(typechecker=beartype.beartype)
DEFORMATION = perturb.Translation(0.7)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), IMAGES)


def is_traced_at_every_call(model):
    adapter = networks.wrap(model).adapter
    return adapter.opaque or adapter.foreign


def kernels(seed):
    return [guests.normal(seed, 3, 3, 3, 4), guests.normal(seed + 1, 4, 5)]


def run(first, second, x):
    """The one network of this file."""
    return jax.nn.relu(guests.conv(x, first)).mean((1, 2)) @ second


class Cell:
    """An array that is replaced, as a variable of Keras replaces it."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Objects:
    """A model of objects that JAX knows nothing of: layers in a list, variables in layers."""

    class Layer:
        def __init__(self, value):
            self.kernel = Cell(value)

    def __init__(self):
        self.layers = [self.Layer(value) for value in kernels(0)]
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return run(*(layer.kernel.value for layer in self.layers), x)

    def forward(self, x):
        return self(x)

    def change(self):
        for layer, value in zip(self.layers, kernels(5), strict=True):
            layer.kernel.value = value


def objects():
    model = Objects()
    return model, model.change


def bound_method():
    model = Objects()
    return model.forward, model.change


def arrays_of_numpy():
    held = [np.array(value) for value in kernels(0)]

    def change():
        for old, new in zip(held, kernels(5), strict=True):
            old[...] = new

    return lambda x: run(*held, x), change


def partial_with_a_dictionary():
    held = dict(zip(("first", "second"), kernels(0), strict=True))

    def network(held, x):
        return run(held["first"], held["second"], x)

    return functools.partial(network, held), lambda: held.update(zip(held, kernels(5), strict=True))


class Module(nnx.Module):
    def __init__(self, values):
        self.first, self.second = map(nnx.Param, values)

    def __call__(self, x):
        return run(self.first[...], self.second[...], x)


def module_in_a_lambda():
    module = Module(kernels(0))

    def change():
        module.first[...], module.second[...] = kernels(5)

    return lambda x: module(x), change


class Shared(eqx.Module):
    """A module whose parameter is a leaf, with an array beside it that a function of its own closes over."""

    first: jax.Array
    rest: object = eqx.field(static=True)

    def __call__(self, x):
        return self.rest(jax.nn.relu(guests.conv(x, self.first)))


def hidden_beside_parameters():
    held = [guests.normal(1, 4, 5)]

    def rest(x):
        return x.mean((1, 2)) @ held[0]

    # The parameters of a module are read when the network is made; what it hides, at every call.
    return Shared(kernels(0)[0], rest), lambda: held.__setitem__(0, kernels(5)[1])


def partial_that_hides():
    held = [kernels(0)[1]]
    network = jax.tree_util.Partial(lambda params, x: run(params["conv"]["kernel"], held[0], x), {
        "conv": {"kernel": kernels(0)[0]}
    })  # fmt: skip
    return network, lambda: held.__setitem__(0, kernels(5)[1])


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
COMPILED = {"stable": measure, "alone": measure, "similar": compare, "steep": _local, "seen": _mean_gradient}


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
        return guests.RATE * run(self.first[...], self.second[...], x)


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
    yield ByModule(kernels(0)), lambda size: setattr(guests, "RATE", size)
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
    calls, compiled = model.calls, measure._cache_size()
    change()
    stable(model, images)
    assert model.calls == calls + 1
    assert measure._cache_size() == compiled


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


# What an object holds


def test_equal_holdings_compare_equal_and_changes_are_seen():
    def functions(value, other):
        cell = [value]
        return lambda x, y=other: x * cell[0] + y

    a, b = jnp.ones(2), jnp.zeros(2)
    one, same, changed, defaults = functions(a, 1), functions(a, 1), functions(b, 1), functions(a, 2)
    assert of_object(one) == of_object(same)
    assert hash(of_object(one)) == hash(of_object(same))
    assert of_object(one) != of_object(changed)
    assert of_object(one) != of_object(defaults)
    table = np.zeros(100)
    before = of_object({"table": table})
    assert before == of_object({"table": np.zeros(100)})
    table[3] = 1
    assert before != of_object({"table": table})
    cycle = []
    cycle.append(cycle)
    assert of_object(cycle) == of_object(cycle)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert of_object(deep) != of_object(deep)  # too deep to be followed
    assert [of_object(value) == of_object(other) for value, other in ((1, True), (1, 1.0), (0.0, -0.0))] == [False] * 3
    assert of_object(float("nan")) == of_object(float("nan"))


def test_an_array_that_is_gone_is_equal_to_none():
    array = jnp.arange(3.0)
    before = of_object(array)
    assert before == of_object(array)
    del array
    assert before != of_object(jnp.arange(3.0))


@jax.custom_jvp
def doubled(x):
    return 2 * x


SLOPE = [2.0]
doubled.defjvp(lambda primals, tangents: (doubled(*primals), SLOPE[0] * tangents[0]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scaled(factor, x):
    return x


scaled.defvjp(lambda factor, x: (x, None), lambda factor, _, cotangent: (factor * cotangent,))


def test_programs_compare_by_what_they_compute():
    def identity(f):
        return jax.tree.structure(features.trace(f, jnp.ones((2, 3))))

    alike = [
        jax.nn.relu,
        jax.nn.gelu,
        jax.nn.silu,
        lambda x: jax.nn.relu6(x) * 0.5,
        lambda x: jax.checkpoint(jnp.sin)(x),
        lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
        lambda x: jax.vmap(jax.nn.relu)(x) + jax.random.normal(KEY, x.shape),
        doubled,
        functools.partial(scaled, 3.0),
    ]
    found = [identity(f) for f in alike]
    assert [identity(f) for f in alike] == found
    assert len(set(found)) == len(found)
    assert identity(functools.partial(scaled, 4.0)) != found[-1]
    before = identity(doubled)
    SLOPE[0] = 3.0
    assert identity(doubled) != before
    SLOPE[0] = 2.0
    assert identity(doubled) == before
    assert identity(lambda x: 2.0 * x) != identity(lambda x: 3.0 * x)
    assert identity(lambda x: jnp.roll(x, 1, 0)) != identity(lambda x: jnp.roll(x, 1, 1))


def test_arrays_inside_of_jitted_functions_are_lifted(images):
    def jitted(seed):
        first, second = kernels(seed)

        @jax.jit
        def inner(x):
            with jax.named_scope("head"):
                return x @ second

        @jax.jit
        def outer(x):
            return inner(jax.nn.relu(guests.conv(x, first)).mean((1, 2)))

        return outer

    (arrays, one), (others, other) = (jax.tree.flatten(features.trace(jitted(seed), images)) for seed in (0, 5))
    assert one == other
    assert sorted(array.shape for array in arrays) == [(3, 3, 3, 4), (4, 5)]
    outputs = jax.tree.unflatten(one, others)(images)
    np.testing.assert_allclose(outputs, run(*kernels(5), images), rtol=1e-4, atol=1e-5)
    stable(jitted(0), images)
    compiled = measure._cache_size()
    expected = stable(networks.wrap(jax.tree_util.Partial(run, *kernels(5))), images)
    np.testing.assert_allclose(stable(jitted(5), images), expected, rtol=1e-4)
    assert measure._cache_size() <= compiled + 1
    filtered = eqx.filter_jit(Shared(kernels(0)[0], lambda x: x.mean((1, 2)) @ kernels(0)[1]))
    np.testing.assert_allclose(features.capture(filtered)(images)[0], run(*kernels(0), images), rtol=1e-4, atol=1e-5)


def test_another_shape_than_it_was_traced_for_is_refused(images):
    model, change = objects()
    user = jax.jit(lambda traced, x: traced(x))
    for seed in (0, 5):
        traced = features.trace(model, images)
        np.testing.assert_allclose(user(traced, images), run(*kernels(seed), images), rtol=1e-4, atol=1e-5)
        for other in (images[:2], images.astype(jnp.float16)):
            with pytest.raises(ValueError, match=r"expected a batch of float32 \(6, 6, 6, 3\).*: trace it"):
                user(traced, other)
        change()


def test_a_check_of_types_is_seen_through(images):
    """A checker wraps every function in one that holds lists of its own; what it wraps is looked at instead."""

    class Checked(nnx.Module):
        def __init__(self, act):
            self.dense = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            self.act = act

        @checked
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.act(self.dense(x).mean((1, 2)))

    held = [2.0]

    @checked
    def hides(x: jax.Array) -> jax.Array:
        return held[0] * x

    def double(x: jax.Array) -> jax.Array:
        return 2 * x

    for check in (checked, beartype.beartype):
        assert not networks.wrap(Checked(check(double))).adapter.opaque
        assert of_object(check(double)) == of_object(double)
    before = of_object(hides)
    assert before == of_object(hides)
    held[0] = 3.0
    assert of_object(hides) != before
    assert networks.wrap(Checked(hides)).adapter.opaque
    model = models.build("VGG11bn", rngs=nnx.Rngs(0), width=0.1)
    assert not is_traced_at_every_call(model)


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
