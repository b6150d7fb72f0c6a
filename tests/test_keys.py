"""Keys: typed and raw ones give the same numbers at every entrance, and what is no key is refused by one message."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import stabjax as sj
from stabjax._arguments import as_key
from stabjax.probe._windows import pass_window_quickly

IMAGES = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype(np.float32)
SHAPE = (6, 6)
DEFORMATION = sj.perturb.Diffeomorphism(0.01, 2.0)
FEATURES = {"a": IMAGES.reshape(4, -1)}
NUMERATORS = np.ones((1, 1, 4), np.float32)
LINE = np.eye(12, dtype=np.float32)[3][:, None]
TASK = sj.data.ScaleTask(shape=(12,), near=3, far=4)


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.dense = nnx.Linear(36, 2, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape(len(x), -1))


def network(x):
    return jnp.tanh(x)


def fit(key):
    labels = np.array([0, 1, 0, 1])
    return sj.train.fit(Net, (IMAGES, labels), key=key, recipe=sj.train.Recipe(epochs=1, batch_size=2)).last


def numbers(key):
    return {
        "deformation_numerators": NUMERATORS,
        "noise_numerators": NUMERATORS,
        "spread": NUMERATORS[:, 0],
        "pair_distance": np.ones(1, np.float32),
    }


def swept(key, a):
    return a * jax.random.normal(key)


CALLS = {
    "data.LocalTranslation.__call__": lambda key: sj.data.LocalTranslation(TASK)(key, LINE),
    "data.scale_detection": lambda key: sj.data.scale_detection(key, 4, task=TASK, noise=0.1),
    "data.translation_steps": lambda key: sj.data.translation_steps(key, (3,)),
    "fields.coefficients": lambda key: sj.fields.coefficients(key, 2.0),
    "fields.fold_probability": lambda key: sj.fields.fold_probability(
        SHAPE, key=key, temperature=0.1, cutoff=2.0, samples=4
    ),
    "fields.sample": lambda key: sj.fields.sample(key, SHAPE, temperature=0.1, cutoff=2.0),
    "lipschitz.local": lambda key: sj.lipschitz.local(network, IMAGES, key=key),
    "perturb.Affine.__call__": lambda key: sj.perturb.Affine(rotation=0.1)(key, IMAGES[0]),
    "perturb.Affine.field": lambda key: sj.perturb.Affine(rotation=0.1).field(key, SHAPE),
    "perturb.Diffeomorphism.__call__": lambda key: DEFORMATION(key, IMAGES[0]),
    "perturb.Diffeomorphism.field": lambda key: DEFORMATION.field(key, SHAPE),
    "perturb.GaussianNoise.__call__": lambda key: sj.perturb.GaussianNoise(1.0)(key, IMAGES[0]),
    "perturb.RandomDiffeomorphism.__call__": lambda key: sj.perturb.RandomDiffeomorphism()(key, IMAGES[0]),
    "perturb.RandomDiffeomorphism.draw": lambda key: sj.perturb.RandomDiffeomorphism().draw(key, SHAPE),
    "perturb.RandomDiffeomorphism.field": lambda key: sj.perturb.RandomDiffeomorphism().field(key, SHAPE),
    "perturb.SphericalNoise.__call__": lambda key: sj.perturb.SphericalNoise(1.0)(key, IMAGES[0]),
    "perturb.Toward.__call__": lambda key: sj.perturb.Toward(IMAGES, 1.0)(key, IMAGES[0]),
    "perturb.Translation.__call__": lambda key: sj.perturb.Translation(1.0)(key, IMAGES[0]),
    "perturb.Translation.field": lambda key: sj.perturb.Translation(1.0).field(key, SHAPE),
    "perturb.noise_like": lambda key: sj.perturb.noise_like(key, IMAGES[0], IMAGES[1]),
    "probe.perturbed": lambda key: sj.probe.perturbed(IMAGES, key=key, deformation=DEFORMATION),
    "probe.run": lambda key: sj.probe.run(
        network, IMAGES, {"stability": sj.probe.RelativeStability()}, key=key, deformation=DEFORMATION
    ),
    "probe.stability": lambda key: sj.probe.stability(network, IMAGES, key=key, deformation=DEFORMATION),
    "stability.bootstrap": lambda key: sj.stability.bootstrap(key, *numbers(key).values()),
    "stability.from_features": lambda key: sj.stability.from_features(key, FEATURES, FEATURES, FEATURES),
    "stability.summarize": lambda key: sj.stability.summarize(
        key, layers=["a"], kinds=["conv"], **numbers(key), noise_radius=NUMERATORS[0]
    ),
    "sweep.run": lambda key: sj.sweep.run(swept, {"a": [1.0, 2.0]}, key=key).value.to_numpy(),
    "train.crop": lambda key: sj.train.crop(key, IMAGES, 2),
    "train.fit": fit,
    "train.flip": lambda key: sj.train.flip(key, IMAGES),
}
"""A call of every public function and method with a key."""


def entrances():
    for room in sj.__all__:
        module = importlib.import_module(f"stabjax.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) and "key" in inspect.signature(value).parameters:
                yield f"{room}.{name}"
            if inspect.isclass(value) and not issubclass(value, nnx.Module):
                for method, function in inspect.getmembers(value, inspect.isfunction):
                    if "key" in inspect.signature(function).parameters and function.__name__ != "__init__":
                        yield f"{room}.{name}.{method}"


def test_every_entrance_is_called():
    assert set(entrances()) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_raw_and_typed_keys_give_the_same_numbers(name):
    typed, raw = (jax.tree.leaves(CALLS[name](make(7))) for make in (jax.random.key, jax.random.PRNGKey))
    assert typed
    for one, other in zip(typed, raw, strict=True):
        np.testing.assert_array_equal(one, other)


def several():
    return jax.random.split(jax.random.key(0), 2)


NO_KEYS = {
    "an int": lambda: 0,
    "NumPy's int": lambda: np.int64(3),
    "an array": lambda: jnp.int32(3),
    "unsigned": lambda: np.uint32(3),
    "truth": lambda: True,
    "none": lambda: None,
    "a list": lambda: [0, 7],
    "signed": lambda: np.array([0, 7]),
    "a generator": lambda: np.random.default_rng(0),
    "Flax's": lambda: nnx.Rngs(0),
    "keys": several,
    "raw keys": lambda: jax.random.key_data(several()),
    "another generator's numbers": lambda: jax.random.PRNGKey(0, impl="rbg"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_key_is_refused_by_one_message(name, unchecked):
    for make in NO_KEYS.values():
        with pytest.raises(TypeError, match=r"^expected one key, got .* jax\.random\.key\(seed\)"):
            CALLS[name](make())


def test_the_message_says_what_came():
    with pytest.raises(TypeError, match=r"got 7 of type int: make it with jax\.random\.key\(seed\)$"):
        as_key(7)
    with pytest.raises(TypeError, match=r"got an array int32\[\]: make"):
        as_key(jnp.int32(3))
    for many in (several(), jax.random.key_data(several())):
        with pytest.raises(TypeError, match=r"got several, of shape \(2,\): take one of them, as keys\[0\], or "):
            as_key(many)
    with pytest.raises(TypeError, match=r"the numbers of one, \(4,\), .* generator, \(2,\): .*wrap_key_data"):
        as_key(jax.random.PRNGKey(0, impl="rbg"))


def test_keys_of_any_generator_traced_or_not():
    for impl in ("rbg", "unsafe_rbg", "threefry2x32"):
        key = jax.random.key(0, impl=impl)
        assert as_key(key) is key
    with jax.default_prng_impl("rbg"):
        raw = as_key(jax.random.PRNGKey(3))
        np.testing.assert_array_equal(jax.random.bits(raw), jax.random.bits(jax.random.key(3)))
    raw = jax.random.split(jax.random.PRNGKey(3), 2)
    drawn = jax.jit(jax.vmap(lambda key: sj.fields.coefficients(key, 2.0)))(raw)
    for each, key in zip(drawn, jax.random.split(jax.random.key(3), 2)):
        np.testing.assert_allclose(each, sj.fields.coefficients(key, 2.0), rtol=1e-6)
    host = np.asarray(jax.random.PRNGKey(3))
    np.testing.assert_array_equal(jax.random.key_data(as_key(host)), host)


def test_raw_keys_compile_no_second_program():
    CALLS["probe.stability"](jax.random.key(7))
    programs = pass_window_quickly._cache_size()
    CALLS["probe.stability"](jax.random.PRNGKey(7))
    assert pass_window_quickly._cache_size() == programs
