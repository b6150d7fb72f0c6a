"""The kind ``pool``: reductions over windows or space that are not fed back, and pools written out in slices."""

import jax.numpy as jnp
import pytest
from jax import lax

from tests.recognition import average, first_layer, recognized, taps

pytestmark = pytest.mark.usefixtures("relaxed_promotion")


def windows(x, start, reducer):
    return lax.reduce_window(x, start, reducer, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


POOLS = {
    "mean": (lambda p, x: x.mean((1, 2)), "avg_pool_0=pool"),
    "maximum": (lambda p, x: x.max((1, 2)), "max_pool_0=pool"),
    "sum": (lambda p, x: x.sum((1, 2)), "sum_pool_0=pool"),
    "one axis": (lambda p, x: x.max(1), "max_pool_0=pool"),
    "sum, then a gain": (lambda p, x: x.sum((1, 2), keepdims=True) * p["color"]["gain"], "avg_pool_0=pool"),
    "maximum, then a gain": (
        lambda p, x: x.max((1, 2), keepdims=True) * p["color"]["gain"],
        "max_pool_0=pool color=other",
    ),
    "mean, then numbers": (lambda p, x: x.mean((1, 2)) * 2 + 1, "avg_pool_0=pool"),
    "windows": (lambda p, x: windows(x, -jnp.inf, lax.max), "max_pool_0=pool"),
    "mean of windows": (lambda p, x: windows(x, 0.0, lax.add) / 4, "avg_pool_0=pool"),
    "mean of windows, counted": (
        lambda p, x: windows(x, 0.0, lax.add) / windows(jnp.ones_like(x), 0.0, lax.add),
        "avg_pool_0=pool",
    ),
    "reshaped": (lambda p, x: x.reshape(2, 4, 2, 4, 2, 3).max((2, 4)), "max_pool_0=pool"),
    "of repeated positions": (lambda p, x: jnp.repeat(x, 2, 1).reshape(2, 8, 2, 8, 3).max((1, 2)), "max_pool_0=pool"),
    "of an activation": (lambda p, x: jnp.tanh(x).mean((1, 2)), "tanh_0=activation avg_pool_0=pool"),
    "channels": (lambda p, x: x.mean(-1), "reduce_sum_0=other"),
    "all at once": (lambda p, x: x.mean((1, 2, 3)), "reduce_sum_0=other"),
    "running sum": (lambda p, x: jnp.cumsum(x, 1) / 2, "cumsum_0=other"),
    "two of one value": (lambda p, x: x.max((1, 2)) - x.mean((1, 2)), "max_pool_0=pool avg_pool_0=pool"),
    "two, joined": (
        lambda p, x: jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], -1),
        "max_pool_0=pool avg_pool_0=pool",
    ),
    "behind a gate": (
        lambda p, x: (lambda y: (y * jnp.tanh(average(y, (1, 2)) @ p["mix"]["kernel"])).mean((1, 2)))(
            first_layer(p, x)
        ),
        "conv=conv avg_pool_0=pool mix=dense tanh_0=activation gate_0=other avg_pool_1=pool",
    ),
    "minus its own value": (
        lambda p, x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") / 9 - x,
        "avg_pool_0=pool sub_0=other",
    ),
    "fed back": (lambda p, x: x * average(x, (1, 2)), "mul_0=other"),
    "fed back and used": (lambda p, x: (lambda m: (x - m, m @ jnp.eye(3)))(average(x, (1, 2))), "product_0=other"),
}

SLICES = {
    "maximum": (lambda p, x: jnp.maximum(x[:, ::2], x[:, 1::2]), "max_pool_0=pool"),
    "mean": (lambda p, x: (x[:, ::2] + x[:, 1::2]) / 2, "avg_pool_0=pool"),
    "one after another": (lambda p, x: jnp.maximum(jnp.maximum(x[:, 0:6], x[:, 1:7]), x[:, 2:8]), "max_pool_0=pool"),
    "in pairs": (
        lambda p, x: (x[:, ::2, ::2] + x[:, 1::2, ::2]) + (x[:, ::2, 1::2] + x[:, 1::2, 1::2]),
        "sum_pool_0=pool",
    ),
    "of a split": (lambda p, x: sum(jnp.split(x, 2, 1)), "sum_pool_0=pool"),
    "difference": (lambda p, x: x[:, ::2] - x[:, 1::2], "sub_0=other"),
    "channels": (
        lambda p, x: jnp.maximum(first_layer(p, x)[..., :2], first_layer(p, x)[..., 2:]),
        "conv=conv conv:1=conv max_0=other",
    ),
    "channels of one value": (lambda p, x: x[..., :1] + x[..., 1:2], "add_0=residual"),
    "stacked": (lambda p, x: jnp.stack([x, jnp.tanh(x)], 1).max(1), "tanh_0=activation reduce_max_0=other"),
}


@pytest.mark.parametrize("name", POOLS)
def test_reductions(name):
    f, expected = POOLS[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("name", SLICES)
def test_slices_that_are_joined(name):
    f, expected = SLICES[name]
    assert recognized(f) == expected


@pytest.mark.parametrize("gate_first", [False, True])
def test_a_product_has_the_axes_of_the_operand_that_is_known_best(gate_first):
    """A gate is the same for all positions, so it says nothing of them."""

    def network(p, x):
        y = first_layer(p, x)
        gate = jnp.tanh(average(y, (1, 2)) @ p["mix"]["kernel"])
        return (gate * y if gate_first else y * gate).mean((1, 2))

    assert [(tap.name, tap.kind) for tap in taps(network)][-3:] == [
        ("gate_0", "other"),
        ("avg_pool_1", "pool"),
        ("output", "output"),
    ]
