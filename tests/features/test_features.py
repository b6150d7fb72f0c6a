"""Features of guests: the right operations, the right values, and the network left as it is."""

import math
import random

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from stabjax import features, networks
from stabjax._jaxpr import _axes
from tests import random_networks, sample_networks
from tests.sample_networks import CASES, IMAGES, conv, normal

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

capture = jax.jit(lambda f, x: features.capture(f)(x))


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), IMAGES)


def names_and_kinds(f, x):
    return " ".join(f"{tap.name}={tap.kind}" for tap in features.taps(f, x))


@pytest.mark.parametrize("name", CASES)
def test_operations_are_found_and_the_network_is_left_as_it_is(name, images):
    case = CASES[name]
    network = case.build()
    taps = features.taps(network, images)
    assert names_and_kinds(network, images) == case.expected

    def total(x, f, run):
        outputs, activations = run(f, x)
        numbers = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in numbers), (outputs, activations)

    @jax.jit
    def both(f, x):
        runs = lambda f, x: features.capture(f)(x), lambda f, x: (f(x), None)
        return [jax.grad(total, has_aux=True)(x, f, run) for run in runs]

    (gradient, (outputs, activations)), (expected_gradient, (expected, _)) = both(network, images)
    chex.assert_trees_all_close(outputs, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    assert list(activations) == [tap.name for tap in taps]
    for tap, activation in zip(taps, activations.values()):
        chex.assert_shape(activation, tap.shape)
        assert activation.dtype == tap.dtype
        assert tap.shape[0] == len(images)


@pytest.mark.parametrize("name", ["equinox convolutional", "linen"])
def test_channels_stand_last_in_every_layout(name, images):
    assert all(tap.channel_axis == len(tap.shape) - 1 for tap in features.taps(CASES[name].build(), images))


@pytest.mark.parametrize("train", [False, True])
def test_linen_values_equal_its_own_intermediates(train, images):
    module = sample_networks.LinenNet()
    variables = module.init(jax.random.key(0), images)
    _, state = module.apply(variables, images, train=train, capture_intermediates=True, mutable=True)
    expected = {name: values["__call__"][0] for name, values in state["intermediates"].items() if name != "__call__"}
    _, activations = capture(networks.wrap(module.bind(variables), train=train), images)
    assert len(expected) == 6
    chex.assert_trees_all_close({name: activations[name] for name in expected}, expected, rtol=1e-5, atol=1e-6)


def test_nnx_values_equal_the_modules_called_by_hand(images):
    model = sample_networks.NNXResidual(nnx.Rngs(0))
    _, activations = capture(networks.wrap(model), images)
    model.eval()
    x = model.stem(images)
    expected = {"stem": x}
    for k, block in enumerate(model.blocks):
        expected[f"blocks/{k}/conv"] = block.conv(x)
        expected[f"blocks/{k}/norm"] = block.norm(expected[f"blocks/{k}/conv"])
        expected[f"add_{k}"] = x + expected[f"blocks/{k}/norm"]
        expected[f"relu_{k}"] = x = jnp.maximum(expected[f"add_{k}"], 0)
    expected["avg_pool_0"] = x.mean((1, 2))
    expected["head"] = expected["output"] = model.head(expected["avg_pool_0"])
    chex.assert_trees_all_close(dict(activations), expected, rtol=1e-5, atol=1e-6)


def test_values_inside_a_scan_are_those_of_its_iterations(images):
    network = sample_networks.scanned_guest()
    _, activations = capture(networks.wrap(network), images)
    params = network.args[0]
    h = conv(images, params["stem"]["kernel"]).mean((1, 2))
    for k in (2, 1, 0):
        layer = jax.tree.map(lambda leaf, k=k: leaf[k], params["layers"])
        dense = h @ layer["dense"]["kernel"] + layer["dense"]["bias"] * layer["gain"]
        h = h + jax.nn.gelu(dense)
        np.testing.assert_allclose(activations[f"layers/{k}/dense"], dense, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(activations[f"layers/{k}/add_0"], h, rtol=1e-5, atol=1e-6)


def test_a_batch_merged_with_windows_is_put_in_front(images):
    network = networks.wrap(sample_networks.windowed_guest())
    first, second = (network.variables[f"{name}/kernel"] for name in ("first", "second"))
    activations = capture(network, images)[1]
    for batch in (images, images[:1]):
        found = capture(network, batch)[1]
        windows = batch.reshape(-1, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 4, 16, 3)
        chex.assert_trees_all_close(found["first"], windows @ first, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(found["second"], jnp.tanh(windows @ first) @ second, rtol=1e-5, atol=1e-6)
    assert {tap.name: tap.channel_axis for tap in features.taps(network, images[:1])}["first"] == 3
    assert activations["first"].shape == (2, 4, 16, 3)


def test_the_batch_is_found_behind_a_map_over_another_axis():
    """`vmap` over the rows merges them with the batch in a single reshape that permutes first."""
    kernel = normal(0, 3, 3, 3)
    network = jax.vmap(lambda rows: random_networks.conv_of_rows(rows, kernel), 1, 1)
    images = jax.random.normal(jax.random.key(2), (4, 6, 5, 3))
    changed = images.at[3].add(1.0)
    clean, other = (capture(networks.wrap(jax.tree_util.Partial(network)), x)[1]["conv_0"] for x in (images, changed))
    np.testing.assert_allclose(clean, network(images), rtol=1e-5, atol=1e-6)
    assert (np.abs(clean - other).max((1, 2, 3)) > 0).tolist() == [False, False, False, True]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_is_found_after_any_reshapes_and_transposes(batch):
    chance = random.Random(batch)
    for _ in range(200):
        value = np.broadcast_to(np.arange(batch).reshape(-1, 1, 1, 1), (batch, 4, 6, 2))
        axes = _axes.of_images(value.shape)
        for _ in range(6):
            if chance.random() < 0.5:
                order = chance.sample(range(value.ndim), value.ndim)
                value, axes = value.transpose(order), tuple(axes[k] for k in order)
            else:
                cuts = sorted(chance.sample(range(1, value.ndim), chance.randint(0, value.ndim - 1)))
                shape = [math.prod(value.shape[a:b]) for a, b in zip([0, *cuts], [*cuts, value.ndim])]
                k = chance.randrange(len(shape))
                shape[k : k + 1] = [size for _, size in _axes.reshape(axes, value.shape, shape)[k]] or [1]
                value, axes = value.reshape(shape), _axes.reshape(axes, value.shape, shape)
        found = _axes.batch_first(axes, value.shape, batch)
        assert found is not None
        axis, before, after = found
        split = value.reshape(*value.shape[:axis], before, batch, after, *value.shape[axis + 1 :])
        rows = np.moveaxis(split, axis + 1, 0).reshape(batch, -1)
        np.testing.assert_array_equal(rows, np.broadcast_to(np.arange(batch)[:, None], rows.shape))


def test_softmax_has_its_batch_in_front(images):
    _, activations = capture(CASES["nnx transformer"].build(), images)
    softmax = activations["softmax_0"]
    assert softmax.shape[0] == len(images)
    np.testing.assert_allclose(softmax.sum(-1), 1, rtol=1e-5)
    alone = [capture(CASES["nnx transformer"].build(), image[None])[1]["softmax_0"][0] for image in images]
    np.testing.assert_allclose(softmax, jnp.stack(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_random_networks(seed):
    check_random_network(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_hundreds_of_random_networks(block):
    for seed in range(100 + 30 * block, 130 + 30 * block):
        check_random_network(seed)


def check_random_network(seed):
    network, params, x = random_networks.draw(seed)
    guest = networks.wrap(jax.tree_util.Partial(random_networks.run, jax.tree_util.Partial(network), params))
    kinds = []

    @jax.jit
    def both(guest, params, x):
        recorded = []
        network(params, x, recorded.append)
        kinds.extend(kind for kind, _ in recorded)
        return [value for _, value in recorded], features.capture(guest)(x)[1]

    expected, activations = both(guest, params, x)
    assert [tap.kind for tap in features.taps(guest, x)][:-1] == kinds, f"seed {seed}"
    for value, (name, activation) in zip(expected, activations.items()):
        scale = float(jnp.abs(value).max()) + 1e-6
        np.testing.assert_allclose(activation, value, rtol=1e-4, atol=1e-5 * scale, err_msg=f"seed {seed}, {name}")


# The gradient of relu at zero


def test_gradient_of_relu_at_zero_stays_zero():
    def network(x):
        return jax.checkpoint(lambda x: jax.nn.relu(x @ jnp.ones((2, 2))))(x)

    gradient = jax.grad(lambda x: features.capture(network)(x)[0].sum())(jnp.zeros((1, 2)))
    np.testing.assert_array_equal(gradient, 0)


# Selecting and reducing


def test_select(images):
    network = CASES["nnx residual"].build()

    def selected(select):
        return list(features.capture(network, select=select)(images)[1])

    assert selected("conv") == ["stem", "blocks/0/conv", "blocks/1/conv"]
    assert selected(["blocks/*/norm", "output"]) == ["blocks/0/norm", "blocks/1/norm", "output"]
    assert selected("relu_1") == ["relu_1"]
    assert selected(lambda tap: tap.shape[-1] == 10) == ["head", "output"]
    assert selected([]) == []
    with pytest.raises(
        ValueError, match=r"expected a kind .* got 'blocks/7/conv'; the network has stem, blocks/0/conv"
    ):
        selected("blocks/7/conv")
    with pytest.raises(TypeError):
        selected([3])


def test_selecting_inside_a_scan_takes_the_iteration_asked_for(images):
    network = networks.wrap(sample_networks.scanned_guest())
    everything = capture(network, images)[1]
    one = features.capture(network, select="layers/1/add_0")(images)[1]
    assert list(one) == ["layers/1/add_0"]
    np.testing.assert_allclose(one["layers/1/add_0"], everything["layers/1/add_0"], rtol=1e-6)


def test_reduce_is_applied_at_the_tap(images):
    network = networks.wrap(sample_networks.scanned_guest())
    seen = []

    def reduce(tap, activation):
        seen.append(tap.name)
        return {"sum": activation.sum(tuple(range(1, activation.ndim))), "max": activation.max()}

    reduced = features.capture(network, reduce=reduce)(images)[1]
    plain = features.capture(network)(images)[1]
    assert seen == ["stem", "avg_pool_0", "layers/2/dense", "layers/2/gelu_0", "layers/2/add_0", "head", "output"]
    for name, activation in plain.items():
        np.testing.assert_allclose(reduced[name]["max"], activation.max(), rtol=1e-5)
        np.testing.assert_allclose(
            reduced[name]["sum"], activation.reshape(len(images), -1).sum(-1), rtol=1e-4, atol=1e-4
        )


# A network is data


def test_networks_of_one_architecture_compile_once(images):
    module = sample_networks.LinenNet()
    kinds = {
        "nnx": lambda seed: networks.wrap(sample_networks.NNXResidual(nnx.Rngs(seed))),
        "linen": lambda seed: networks.wrap(module.bind(module.init(jax.random.key(seed), images))),
        "equinox": lambda seed: sample_networks.single(eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(seed))),
        "partial": lambda seed: networks.wrap(jax.tree_util.Partial(jnp.matmul, normal(seed, 2, 8, 8, 8))),
    }
    for name, build in kinds.items():
        traces = []

        @jax.jit
        def counted(f, x, traces=traces):
            traces.append(f)
            return f(x)

        for seed in range(3):
            counted(build(seed), images)
        assert len(traces) == 1, name


def test_a_layer_may_hold_a_list(images):
    listed, tupled = (
        networks.wrap(nnx.Conv(3, 4, (3, 3), padding=padding, rngs=nnx.Rngs(0)))
        for padding in ([(1, 1), (2, 0)], ((1, 1), (2, 0)))
    )
    (_, found), (_, expected) = capture(listed, images), capture(tupled, images)
    chex.assert_trees_all_equal(dict(found), dict(expected))
    other = networks.wrap(nnx.Conv(3, 4, (3, 3), padding=[(1, 1), (1, 1)], rngs=nnx.Rngs(0)))
    assert not np.array_equal(capture(other, images)[0], capture(listed, images)[0])


def test_networks_stack_under_vmap(images):
    pair = [networks.wrap(sample_networks.NNXResidual(nnx.Rngs(seed))) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pair)
    _, together = jax.vmap(lambda f: features.capture(f, select=["norm", "output"])(images))(stacked)
    for k, network in enumerate(pair):
        _, alone = features.capture(network, select=["norm", "output"])(images)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, k=k: leaf[k], together), alone, rtol=1e-4, atol=1e-5)


def test_the_guest_is_never_changed(images):
    model = sample_networks.NNXResidual(nnx.Rngs(0))
    model.train()
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState))))
    network = networks.wrap(model)
    capture(network, images)
    assert not model.drop.deterministic
    assert not model.blocks[0].norm.use_running_average
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngState))), before)
    model.eval()
    np.testing.assert_allclose(network(images), model(images), rtol=1e-5, atol=1e-6)


def test_batch_statistics_switch_dropout_off(images):
    model = sample_networks.NNXResidual(nnx.Rngs(0))
    network = networks.wrap(model, mode="batch_statistics")
    np.testing.assert_array_equal(network(images), network(images))
    _, activations = capture(network, images)
    np.testing.assert_allclose(activations["blocks/0/norm"].mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(activations["blocks/0/norm"].std((0, 1, 2)), 1, atol=1e-2)


def test_a_method_by_name_and_static_arguments(images):
    class Module(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)

        def encode(self, x, *, twice=False):
            x = self.stem(x)
            return nnx.relu(x) if twice else x

    model = Module(nnx.Rngs(0))
    assert names_and_kinds(networks.wrap(model, method="encode"), images) == "stem=conv output=output"
    network = networks.wrap(model, method="encode", twice=True)
    assert names_and_kinds(network, images) == "stem=conv relu_0=activation output=output"
    assert names_and_kinds(networks.wrap(model, method=Module.encode, twice=True), images).startswith(
        "stem=conv relu_0"
    )


def test_one_image_and_half_precision(images):
    model = sample_networks.NNXResidual(nnx.Rngs(0))
    network = networks.wrap(model)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, network)
    expected = names_and_kinds(network, images)
    assert names_and_kinds(half, images.astype(jnp.bfloat16)) == expected
    assert names_and_kinds(network, images[:1]) == expected
    assert all(tap.shape[0] == 1 for tap in features.taps(network, images[:1]))


def test_taps_compute_nothing():
    network = networks.wrap(sample_networks.NNXResidual(nnx.Rngs(0)))
    large = jax.ShapeDtypeStruct((100_000, 1024, 1024, 3), jnp.float32)
    assert features.taps(network, large)[0].shape == (100_000, 1024, 1024, 4)


def test_plain_functions_come_as_they_are(images):
    assert names_and_kinds(sample_networks.plain_convolutional, images) == CASES["plain convolutional"].expected


# What cannot be reached is said


def test_hidden_operations_are_listed_with_the_reason(images):
    def loop(x):
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: jax.nn.relu(x @ jnp.eye(3)) - 1, x)

    found = {item.operations: item.reason for item in features.hidden(loop, images)}
    assert "while" in found["dense", "activation"]
    reasons = " ".join(item.reason for item in features.hidden(CASES["plain nested"].build(), images))
    assert "inside a cond" in reasons


def test_hidden_operations_keep_their_kind_where_parameters_are_operands(images):
    def network(params, x):
        y = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jax.nn.relu(c[1] @ params["loop"])), (0, x))[1]
        y, kernel = jax.lax.cond(params["loop"].sum() > 0, lambda k, y: (y @ k, k), lambda k, y: (y, k), params["a"], y)
        return jax.lax.map(lambda image: jnp.tanh(image @ kernel), y)

    f = networks.wrap(jax.tree_util.Partial(network, {"loop": jnp.eye(3), "a": jnp.eye(3)}))
    assert names_and_kinds(f, images) == "loop=other cond_0=other a=other output=output"
    found = [(item.operations, item.reason) for item in features.hidden(f, images)]
    assert [operations for operations, _ in found] == [("dense", "activation"), ("dense",), ("dense", "activation")]
    for word, (_, reason) in zip(("while", "cond", "loop over the images"), found, strict=True):
        assert word in reason


def test_rows_that_depend_on_each_other_are_seen(images):
    def gram(x):
        rows = x.reshape(x.shape[0], -1)
        return rows @ rows.T

    for mixing in (gram, lambda x: jnp.cumsum(x, 0), lambda x: jnp.sort(x, 0), lambda x: x - x[::-1]):
        assert features.mixed_rows(mixing, images)
    assert features.mixed_rows(CASES["nnx batch statistics"].build(), images)
    assert features.mixed_rows(CASES["linen batch statistics"].build(), images)
    assert features.mixed_rows(lambda x: x - x.mean(0, keepdims=True), images)
    for name in ("nnx residual", "nnx transformer", "linen", "equinox convolutional", "partial scanned"):
        assert not features.mixed_rows(CASES[name].build(), images), name


# Bad input


def test_a_network_that_cannot_be_traced_is_an_error_that_says_why(images):
    def network(x):
        return x if float(x.sum()) > 0 else -x

    with pytest.raises(TypeError, match=r"expected a network that JAX can trace.*ConcretizationTypeError"):
        features.taps(network, images)
    with pytest.raises(TypeError, match="expected a network that JAX can trace"):
        features.capture(lambda x: np.asarray(x) * 2)(images)


def test_wrong_networks(images):
    with pytest.raises(TypeError, match=r"networks\.wrap\(module\.bind\(variables\)\)"):
        networks.wrap(sample_networks.LinenNet())
    with pytest.raises(TypeError, match="already made"):
        networks.wrap(networks.wrap(sample_networks.plain_sliced))
    with pytest.raises(TypeError, match="expected a network, a callable, got int"):
        networks.wrap(3)
    with pytest.raises(TypeError, match="hashable"):
        networks.wrap(sample_networks.plain_sliced, table=[1, 2])
    with pytest.raises(ValueError, match="layout"):
        networks.wrap(sample_networks.plain_sliced, layout="NCHW")
    with pytest.raises(ValueError, match="mode"):
        networks.wrap(sample_networks.plain_sliced, mode="train")
    with pytest.raises(ValueError, match="Flax NNX"):
        networks.wrap(sample_networks.plain_sliced, mode="batch_statistics")
    with pytest.raises(ValueError, match="expected a batch"):
        features.taps(sample_networks.plain_sliced, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"one output row per image.*single=True"):
        features.taps(lambda x: x.sum(0), images)


def test_equinox_and_linen_networks_keep_their_evaluation_mode(images):
    network = networks.wrap(Dropped(), single=True, layout="channels_first")
    np.testing.assert_allclose(network(images), jnp.moveaxis(images, -1, 1).reshape(2, -1))


class Dropped(eqx.Module):
    dropout: eqx.nn.Dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x):
        return jnp.ravel(self.dropout(x))


def test_linen_methods_by_name(images):
    class Module(linen.Module):
        def setup(self):
            self.stem = linen.Conv(4, (3, 3))

        def __call__(self, x):
            return linen.relu(self.encode(x))

        def encode(self, x):
            return self.stem(x)

    module = Module()
    variables = module.init(jax.random.key(0), images)
    assert names_and_kinds(networks.wrap(module.bind(variables), method="encode"), images) == "stem=conv output=output"
    assert names_and_kinds(networks.wrap(module.bind(variables)), images) == "stem=conv relu_0=activation output=output"


@pytest.mark.parametrize("act", [jax.nn.softplus, jax.nn.silu, jax.nn.relu])
def test_a_gradient_within_a_network_has_taps(act):
    """Under a gradient an activation is a call of its name with several outputs."""
    images = np.linspace(-1, 1, 2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    slope = jax.grad(lambda y: act(y).sum())
    outputs, activations = features.capture(slope)(images)
    np.testing.assert_array_equal(outputs, activations["output"])
    np.testing.assert_allclose(outputs, slope(jnp.asarray(images)), rtol=1e-6)


def test_a_call_with_the_name_of_an_activation_may_have_several_outputs():
    @jax.jit
    def silu(x):
        return jax.nn.relu(x), 2 * x

    names = [tap.name for tap in features.taps(lambda x: sum(silu(x)), np.zeros((2, 4, 4, 3), np.float32))]
    assert "relu_0" in names
    assert "silu_0" not in names
