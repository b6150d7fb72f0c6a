"""Programs within the program: inlined, bound whole, or hidden with the reason."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from stabjax import features, networks
from tests.recognition import PARAMETERS, first_layer, layer_norm, recognized
from tests.sample_networks import IMAGES, conv

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def custom(f):
    """A function with a derivative of its own."""
    g = jax.custom_jvp(f)
    g.defjvp(lambda primals, tangents: (g(*primals), g(*tangents)))
    return g


layer = custom(lambda x, kernel, bias: conv(x, kernel) + bias)
layer_and_activation = custom(lambda x, kernel: jax.nn.relu(conv(x, kernel)))
exponential_unit = custom(lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1))


def recurrence(p, x):
    """What is carried begins as a constant, and becomes active one after another."""
    start = (x @ p["dense"]["kernel"], jnp.zeros((2, 8, 8, 4)), jnp.zeros((2, 8, 8, 4)))
    step = lambda c, w: ((jnp.tanh(c[0] @ w["kernel"]), c[0] * 2, c[1] + 1), None)  # noqa: E731
    return lax.scan(step, start, p["layers"])[0]


LAYERS = " ".join(f"layers/{k}=dense layers/{k}/tanh_0=activation" for k in range(3))

NESTED = {
    "jit": (lambda p, x: jax.jit(lambda y: layer_norm(y) + 1)(first_layer(p, x)), "conv=conv norm_0=norm"),
    "pattern across jits": (
        lambda p, x: jax.jit(lambda y: y - p["norm"]["mean"])(first_layer(p, x)) * lax.rsqrt(p["norm"]["var"]),
        "conv=conv norm=norm",
    ),
    "remat": (
        lambda p, x: jax.checkpoint(lambda y: jnp.tanh(conv(y, p["conv"]["kernel"])))(x),
        "conv=conv tanh_0=activation",
    ),
    "custom layer": (lambda p, x: layer(x, p["conv"]["kernel"], p["conv"]["bias"]), "conv=conv"),
    "custom layer has its bias": (
        lambda p, x: layer(x, p["conv"]["kernel"], p["conv"]["bias"]) + p["dense"]["bias"],
        "conv=conv dense=other",
    ),
    "custom activation": (lambda p, x: exponential_unit(first_layer(p, x)), "conv=conv custom_jvp_call_0=activation"),
    "two operations in a custom call": (lambda p, x: layer_and_activation(x, p["conv"]["kernel"]), "conv=other"),
    "cond": (lambda p, x: lax.cond(p["slope"].sum() > 0, jnp.tanh, lambda y: y @ jnp.eye(3), x), "slope=other"),
    "constant of a cond": (
        lambda p, x: x + lax.cond(p["slope"].sum() > 0, lambda: p["color"]["gain"], lambda: 2 * p["color"]["gain"]),
        "affine_0=other",
    ),
    "while": (
        lambda p, x: lax.while_loop(lambda y: y.sum() > 0, lambda y: jnp.tanh(y @ jnp.eye(3)), x),
        "while_0=other",
    ),
    "platforms": (
        lambda p, x: lax.platform_dependent(
            x, cpu=lambda y: conv(y, p["conv"]["kernel"]), default=lambda y: conv(y, p["conv"]["kernel"])
        ),
        "conv=conv",
    ),
    "scan": (
        lambda p, x: lax.scan(
            lambda h, w: (jnp.tanh(h @ w["kernel"] + w["bias"]), None), x @ p["dense"]["kernel"], p["layers"]
        )[0],
        f"dense=dense {LAYERS}",
    ),
    "recurrence": (
        recurrence,
        f"dense=dense {LAYERS}",
    ),
    "loop over the images": (lambda p, x: lax.map(lambda y: conv(y[None], p["conv"]["kernel"])[0], x), "conv=other"),
    "map over the images": (lambda p, x: jax.vmap(lambda y: conv(y[None], p["conv"]["kernel"])[0])(x), "conv=conv"),
    "barrier": (lambda p, x: lax.optimization_barrier((jnp.tanh(x), x * 2))[0], "tanh_0=activation"),
}


HIDDEN = {
    "jit": [],
    "custom layer": [],
    "platforms": [],
    "two operations in a custom call": [("conv activation", "inside custom_jvp_call, which is bound whole")],
    "cond": [
        ("other", "inside a cond, whose branch is chosen while it runs"),
        ("activation", "inside a cond, whose branch is chosen while it runs"),
    ],
    "while": [("other activation", "inside while, which is bound whole")],
    "loop over the images": [
        ("conv", "inside a loop over the images, as lax.map makes one; jax.vmap lets them be seen"),
    ],
}


@pytest.mark.parametrize("name", NESTED)
def test_nested_programs(name):
    f, expected = NESTED[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_is_said(name):
    network = networks.wrap(jax.tree_util.Partial(NESTED[name][0], PARAMETERS))
    found = features.hidden(network, jax.ShapeDtypeStruct(IMAGES, jnp.float32))
    assert [(" ".join(item.operations), item.reason) for item in found] == HIDDEN[name]
