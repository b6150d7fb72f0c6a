"""Random networks: extents against what a pixel changes, and against counted paths."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import stabjax as sj
from stabjax import receptive
from tests.receptive.pixels import (
    by_rows,
    compare,
    conv,
    image_shape,
    max_pool,
    mirrored,
    rolled,
    support,
    wrapped,
)


def drawn(seed, *, tame=False):
    """A network of a few stages with branches; ``tame`` leaves out what goes beyond a chain of layers."""
    chance = random.Random(seed)
    pad = ["SAME", "SAME", "VALID"]

    def layer():
        side, stride, dilation = chance.choice([1, 2, 3, 5]), chance.choice([1, 1, 1, 2]), chance.choice([1, 1, 2])
        padding = chance.choice(pad) if not tame else "SAME"
        return lambda x: conv(x, side, stride, padding, dilation=dilation)

    def keeping():
        side = chance.choice([1, 3, 5])
        kind = chance.choice(["conv", "max", "mean", "deep"])
        if kind == "max":
            return lambda x: max_pool(x, side, 1, "SAME")
        if kind == "mean":
            return lambda x: lax.reduce_window(x, 0.0, lax.add, (1, side, 3, 1), (1, 1, 1, 1), "SAME") / (3 * side)
        if kind == "deep":
            return lambda x: jax.nn.relu(conv(jax.nn.relu(conv(x, side)), 3))
        return lambda x: conv(x, side)

    def stage():
        kinds = ["layer", "residual", "branches", "pool", "activation", "inverted"]
        kind = chance.choice(kinds[:5] if tame else [*kinds, *sorted(BEYOND)])
        if kind == "layer":
            return layer()
        if kind == "residual":
            branch, wrap = keeping(), chance.choice([jax.jit, jax.checkpoint, lambda f: f])
            return lambda x: x + wrap(branch)(x)
        if kind == "branches":
            branches = [keeping() for _ in range(chance.choice([2, 3]))]
            return lambda x: jnp.concatenate([branch(x) for branch in branches], -1)[..., :4]
        if kind == "pool":
            side = chance.choice([2, 3])
            return lambda x: max_pool(x, side, 2, chance_padding)
        if kind == "inverted":
            return lambda x: jnp.flip(conv(jnp.flip(x, 1), 3), 1)
        if kind in BEYOND:
            return chance.choice(BEYOND[kind])
        return jax.nn.relu

    chance_padding = chance.choice(pad)
    stages = [stage() for _ in range(chance.randint(2, 5))]

    def network(x):
        for number, apply in enumerate(stages):
            if min(x.shape[1:3]) < 6 and number:
                break
            x = apply(x)
        return x

    return network


BEYOND = {
    "up": [lambda x: conv(x, 4, padding=2, spread=2), lambda x: jnp.repeat(x, 2, 2)],
    "reshape": [lambda x: x[:, : x.shape[1] // 2 * 2].reshape(len(x), -1, 2, *x.shape[2:]).max(2)],
    "crop": [lambda x: conv(x[:, 2:-1, 1:]), lambda x: conv(x[:, :-3], 5), lambda x: max_pool(x[:, 1:], 3, 2, "SAME")],
    "rows": [by_rows],
    "mirror": [lambda x: conv(mirrored(x, 2, "reflect"), 5, 1, "VALID"), lambda x: mirrored(x, 1, "symmetric")[:, 1:]],
    "border": [lambda x: conv(mirrored(x, 2, "edge"), 3, 2, "VALID")],
    "wrap": [lambda x: conv(wrapped(x, 1), 3, 1, "VALID"), lambda x: jnp.tile(x, (1, 2, 1, 1))],
    "zeros": [lambda x: conv(jnp.pad(x[:, 1:-1], ((0, 0), (2, 2), (1, 0), (0, 0))))],
    "few rows": [lambda x: x[:, [3, 0, 4, 5, 1, 2]], lambda x: x[:, 1::3]],
    "rolled": [rolled],
    "global": [lambda x: x + conv(x, 3).mean((1, 2), keepdims=True), lambda x: x + jnp.cumsum(x, 1)],
}
"""Stages beyond a chain of layers."""


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(k, marks=pytest.mark.slow) for k in range(4, 8))])
def test_random_networks_against_pixels(seed):
    compare(drawn(seed), (20, 17), folds=True)


def test_a_map_without_units_sees_nothing():

    def network(x):
        return max_pool(conv(jnp.repeat(conv(x[:, :2], 3, 1, "VALID"), 2, 1)), 3, 2)

    shape = image_shape()
    *_, output = sj.features.taps(network, shape)
    assert 0 in output.shape
    assert receptive.extent(network, shape)["output"].size[0] == 0


@pytest.mark.slow
@settings(max_examples=150)
@given(st.integers(100, 10**6))
def test_many_random_networks_against_pixels(seed):
    compare(drawn(seed), (26, 23), folds=True)


def agree_with_paths(network, sides):
    """The box of the last unit inside the image, and that of the center, clipped, are the supports of its paths."""
    shape = image_shape(sides=sides)
    taps = {tap.name: tap for tap in sj.features.taps(network, shape)}
    name, extent = list(receptive.extent(network, shape).items())[-1]
    units = [side // 2 for side in taps[name].shape[1:3]]
    box = np.array(extent.box(units))
    first, last = support(receptive.constant_weight(network, shape, tap=name))
    np.testing.assert_array_equal(first, np.maximum(box[:, 0], 0))
    np.testing.assert_array_equal(last, np.minimum(box[:, 1], sides))


@pytest.mark.parametrize("seed", range(12))
def test_extent_is_the_support_of_constant_weights(seed):
    agree_with_paths(drawn(seed, tame=True), (32, 24))


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(100, 10**6))
def test_many_extents_are_the_support_of_constant_weights(seed):
    agree_with_paths(drawn(seed, tame=True), (64, 48))
