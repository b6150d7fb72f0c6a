"""What guests hold and take: arrays of their own, random keys, one batch of images."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from stabjax import features, lipschitz, networks, perturb, probe, receptive
from tests import sample_networks
from tests.sample_networks import normal

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

IMAGES = (2, 4, 4, 3)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), IMAGES)


# A copy of the guest


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.table = np.full(4, 0.5, np.float32)

    def __call__(self, x):
        return self.drop(self.norm(self.conv(x))) * self.table


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Conv(4, (3, 3))(x)
        x = linen.BatchNorm(use_running_average=True)(x)
        return linen.Dropout(0.5, deterministic=not train)(x)


def linen_guest():
    variables = LinenNet().init(jax.random.key(0), jnp.zeros(IMAGES))
    return LinenNet().bind(variables, rngs={"dropout": jax.random.key(7)})


def partial_guest():
    kernel = normal(0, 3, 4)
    shift = np.full(4, 0.25, np.float32)
    apply = lambda params, x: (x @ params["one"]) * (x @ params["again"]) + params["shift"]  # noqa: E731
    return jax.tree_util.Partial(apply, {"one": kernel, "again": kernel, "shift": shift})


def arrays_of(model):
    tree = nnx.state(model) if isinstance(model, nnx.Module) else model
    tree = tree.variables if isinstance(tree, linen.Module) else tree
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array | np.ndarray)]


MODELS = {
    "nnx": (lambda: NNXNet(nnx.Rngs(0)), networks.wrap),
    "linen": (linen_guest, lambda model: networks.wrap(model, train=True)),
    "equinox": (lambda: eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0)), sample_networks.single),
    "partial": (partial_guest, networks.wrap),
}


@pytest.mark.filterwarnings("ignore:Some donated buffers")
@pytest.mark.parametrize("name", MODELS)
def test_a_network_can_be_donated_and_the_guest_lives_on(name, images):
    build, of = MODELS[name]
    model = build()
    before = [np.array(leaf) for leaf in arrays_of(model) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    expected = of(model)(images)

    def trained(network, x):
        moved = jax.tree.map(lambda leaf: leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, network)
        return moved, network(x)

    _, outputs = jax.jit(trained, donate_argnums=0)(of(model), images)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    leaves = arrays_of(model)
    assert not any(leaf.is_deleted() for leaf in leaves if isinstance(leaf, jax.Array))
    after = [np.array(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_allclose(of(model)(images), expected, rtol=1e-5, atol=1e-5)


def test_arrays_of_numpy_are_copied_too(images):
    model = partial_guest()
    network = networks.wrap(model)
    expected = network(images)
    model.args[0]["shift"] += 1
    np.testing.assert_array_equal(network(images), expected)
    np.testing.assert_allclose(networks.wrap(model)(images), expected + 1, rtol=1e-5, atol=1e-5)


def test_networks_are_made_inside_of_transformations_and_of_shapes(images):
    kernels = normal(0, 2, 3, 4)
    found = jax.jit(jax.vmap(lambda k: networks.wrap(jax.tree_util.Partial(jnp.multiply, k.sum()))(images)))(kernels)
    np.testing.assert_allclose(found, kernels.sum((1, 2)).reshape(2, 1, 1, 1, 1) * images, rtol=1e-5, atol=1e-6)
    abstract = nnx.eval_shape(lambda: NNXNet(nnx.Rngs(0)))
    assert [tap.kind for tap in features.taps(networks.wrap(abstract), images)][:2] == ["conv", "norm"]


# Random keys


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_a_linen_module_keeps_the_keys_it_was_bound_with(make, images):
    module = LinenNet()
    variables = module.init(jax.random.key(0), images)
    pair = [networks.wrap(module.bind(variables, rngs={"dropout": make(k)}), train=True) for k in range(2)]
    run = jax.jit(lambda f, x: features.capture(f)(x))
    for k, network in enumerate(pair):
        outputs, found = run(network, images)
        expected = module.apply(variables, images, train=True, rngs={"dropout": make(k)})
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
        assert list(found) == ["Conv_0", "BatchNorm_0", "output"]
    assert run._cache_size() == 1
    keys = jnp.stack([make(k) for k in range(2)])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    assert any(leaf.dtype == keys.dtype and leaf.shape == keys.shape for leaf in jax.tree.leaves(stacked))
    together = jax.vmap(lambda f: f(images))(stacked)
    np.testing.assert_allclose(together[1], pair[1](images), rtol=1e-5, atol=1e-6)


def test_a_part_of_a_bound_module_keeps_its_keys(images):
    class Whole(linen.Module):
        def setup(self):
            self.part = LinenNet()

        def __call__(self, x):
            return self.part(x, train=True)

    variables = Whole().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, images)
    bind = lambda: Whole().bind(variables, rngs={"dropout": jax.random.key(2)})  # noqa: E731
    expected = bind().part(images, train=True)
    np.testing.assert_allclose(networks.wrap(bind().part, train=True)(images), expected, rtol=1e-5, atol=1e-6)


# One batch of images


@pytest.mark.parametrize(
    ("several", "named"),
    [
        (lambda x: (x, x[:, 0]), r"a tuple of 0: \(2, 4, 4, 3\), 1: \(2, 4, 3\)"),
        (lambda x: [x], r"a list of 0: \(2, 4, 4, 3\)"),
        (lambda x: {"image": x, "mask": x[..., 0]}, r"a dict of image: \(2, 4, 4, 3\), mask: \(2, 4, 4\)"),
    ],
)
def test_several_inputs_are_refused_by_name(several, named, images):
    network = lambda inputs: jax.tree.leaves(inputs)[0]  # noqa: E731
    for look in (features.capture(network), lambda x: features.taps(network, x)):
        with pytest.raises(
            TypeError, match=rf"expected one batch of images.*got {named}.*networks.wrap\(lambda images"
        ):
            look(several(images))


@pytest.mark.parametrize("nothing", [None, 3.0, "images", ()])
def test_what_is_no_array_is_refused_by_its_type(nothing):
    with pytest.raises(TypeError, match=f"expected images as an array, got {type(nothing).__name__}"):
        features.capture(jnp.tanh)(nothing)


def test_other_inputs_are_held_fixed_as_the_error_says(images):
    model = lambda x, y: x @ y  # noqa: E731
    other = normal(0, 3, 2)
    by_name = networks.wrap(jax.tree_util.Partial(lambda others, x: model(x, others["kernel"]), {"kernel": other}))
    for network in (networks.wrap(lambda x: model(x, other)), by_name):
        np.testing.assert_allclose(features.capture(network)(images)[0], images @ other, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_several_inputs_are_refused_at_every_entrance(images):
    network = lambda x: x @ normal(0, 3, 2)  # noqa: E731
    key, two = jax.random.key(0), (images, images)
    looks = (
        lambda x: probe.stability(network, x, key=key, deformation=perturb.Translation(0.5)),
        lambda x: probe.similarity(network, network, x),
        lambda x: probe.similarity(network, network, images, others=x),
        lambda x: lipschitz.local(network, x, key=key),
        lambda x: lipschitz.network(network, x),
        lambda x: receptive.effective(network, x, tap="dense_0"),
        lambda x: receptive.extent(network, x),
        lambda x: features.hidden(network, x),
        lambda x: features.mixed_rows(network, x),
    )
    for look in looks:
        for several in (two, list(two), {"0": images, "1": images}):
            with pytest.raises(TypeError, match=r"one batch of images.*0: \(2, 4, 4, 3\), 1: \(2, 4, 4, 3\)"):
                look(several)
    assert lipschitz.network(network, list(images.shape)).certified
