"""Names inside of a scan: the stacked module, the iteration, then the rest, in every framework."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from stabjax import features, networks
from stabjax._jaxpr._names import stacked_module
from tests import sample_networks
from tests.sample_networks import normal

pytestmark = pytest.mark.usefixtures("relaxed_promotion")

IMAGES = (2, 4, 4, 3)
LENGTH = 2


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.conv(x))


class NNXStack(nnx.Module):
    def __init__(self, rngs):
        stacked = nnx.split_rngs(splits=LENGTH)(nnx.vmap(NNXBlock))
        self.blocks = stacked(rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, block):
            return block(x)

        return self.head(run(x, self.blocks).mean((1, 2)))


class LinenBlock(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        return linen.relu(linen.Conv(3, (3, 3), name="conv")(x)), None


class LinenStack(linen.Module):
    @linen.compact
    def __call__(self, x):
        scan = linen.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=LENGTH)
        x, _ = scan(name="blocks")(x, None)
        return linen.Dense(2, name="head")(x.mean((1, 2)))


class EquinoxBlock(eqx.Module):
    conv: eqx.nn.Conv2d

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(3, 3, 3, padding=1, key=key)

    def __call__(self, x):
        return jax.nn.relu(self.conv(x))


class EquinoxStack(eqx.Module):
    blocks: EquinoxBlock
    head: eqx.nn.Linear

    def __call__(self, x):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, block: (eqx.combine(block, static)(x), None), x, arrays)
        return self.head(x.mean((1, 2)))


def equinox_stack():
    keys = jax.random.split(jax.random.key(0), LENGTH)
    return EquinoxStack(eqx.filter_vmap(EquinoxBlock)(keys), eqx.nn.Linear(3, 2, key=keys[0]))


def pure_stack(params, x):
    x, _ = jax.lax.scan(
        lambda x, p: (jax.nn.relu(sample_networks.conv(x, p["conv"]["kernel"])), None), x, params["blocks"]
    )
    return x.mean((1, 2)) @ params["head"]["kernel"]


def pure_params():
    return {
        "blocks": {"conv": {"kernel": normal(0, LENGTH, 3, 3, 3, 3)}},
        "head": {"kernel": normal(1, 3, 2)},
    }


GUESTS = {
    "nnx": lambda: networks.wrap(NNXStack(nnx.Rngs(0))),
    "linen": lambda: networks.wrap(LinenStack().bind(LinenStack().init(jax.random.key(0), jnp.zeros(IMAGES)))),
    "equinox": lambda: sample_networks.single(equinox_stack()),
    "partial": lambda: networks.wrap(jax.tree_util.Partial(pure_stack, pure_params())),
}


@pytest.mark.parametrize("name", GUESTS)
def test_the_iteration_stands_behind_the_stacked_module(name):
    names = [tap.name for tap in features.taps(GUESTS[name](), jax.ShapeDtypeStruct(IMAGES, jnp.float32))]
    rows = [f"blocks/{k}/{operation}" for k in range(LENGTH) for operation in ("conv", "relu_0")]
    assert names == [*rows, "avg_pool_0", "head", "output"]


def test_values_are_those_of_the_iteration_in_the_name():
    params, x = pure_params(), jax.random.normal(jax.random.key(1), IMAGES)
    _, found = features.capture(jax.tree_util.Partial(pure_stack, params), select="blocks/*")(x)
    for k in range(LENGTH):
        x = sample_networks.conv(x, params["blocks"]["conv"]["kernel"][k])
        np.testing.assert_allclose(found[f"blocks/{k}/conv"], x, rtol=1e-5, atol=1e-5)
        x = jax.nn.relu(x)
        np.testing.assert_allclose(found[f"blocks/{k}/relu_0"], x, rtol=1e-5, atol=1e-5)


def nested(params, x):
    def outer(x, block):
        def inner(x, layer):
            return jnp.tanh(x @ layer["dense"]["kernel"]), None

        x, _ = jax.lax.scan(inner, x, block["layers"])
        return x @ block["out"]["kernel"] if "out" in block else x, None

    return jax.lax.scan(outer, x.mean((1, 2)), params["blocks"])[0]


@pytest.mark.parametrize("with_more", [False, True])
def test_scans_in_scans_number_their_own_modules(with_more):
    blocks = {"layers": {"dense": {"kernel": normal(0, 2, 2, 3, 3)}}}
    if with_more:
        blocks["out"] = {"kernel": normal(1, 2, 3, 3)}
    f = networks.wrap(jax.tree_util.Partial(nested, {"blocks": blocks}))
    dense = [tap.name for tap in features.taps(f, jax.ShapeDtypeStruct(IMAGES, jnp.float32)) if tap.kind == "dense"]
    expected = []
    for i in range(2):
        expected += [f"blocks/{i}/layers/{j}/dense" for j in range(2)]
        expected += [f"blocks/{i}/out"] if with_more else []
    assert dense == expected


@pytest.mark.parametrize(
    ("stacked", "others", "around", "expected"),
    [
        ("blocks/conv/kernel blocks/conv/bias", "head/kernel", "", "blocks"),
        ("net/blocks/conv/kernel", "net/head/kernel", "", "net/blocks"),
        ("blocks/kernel blocks/bias", "", "", "blocks"),
        ("a/one/kernel a/two/kernel", "a/shared/kernel", "", "a"),
        ("blocks/layers/conv/kernel", "", "blocks", "blocks/layers"),
        ("blocks/kernel", "", "blocks", "blocks"),
        ("kernel", "bias", "", "kernel"),
        ("", "kernel", "", ""),
    ],
)
def test_the_stacked_module_follows_from_the_paths(stacked, others, around, expected):
    stacked, others = frozenset(stacked.split()), frozenset(others.split())
    assert stacked_module(stacked, stacked | others, around) == expected
