"""Receptive fields of windows on a map that was rolled: alike along all axes, and what the pixels reach."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import receptive
from tests.receptive.pixels import compare, conv, shape_of
from tests.sample_networks import normal

MIXING = normal(0, 3, 3)


def rolled(x, shift, *, slices=False):
    """All spatial axes rolled, by `jnp.roll` or by slices put together."""
    axes = tuple(range(1, x.ndim - 1))
    if not slices:
        return jnp.roll(x, (shift,) * len(axes), axes)
    for axis in axes:
        first, last = jnp.split(x, [x.shape[axis] - shift % x.shape[axis]], axis)
        x = jnp.concatenate([last, first], axis)
    return x


def windowed(x, side, order):
    """Tokens of each window, ``(..., tokens, channels)``, and the way back; windows in the ``order`` of their axes."""
    b, *sides, c = x.shape
    ndim = len(sides)
    split = [n for length in sides for n in (length // side, side)]
    windows, within = range(1, 2 * ndim, 2), range(2, 2 * ndim + 1, 2)
    if order == "columns first":
        windows = reversed(windows)
    places = [0, *windows, *within, 2 * ndim + 1]
    moved = x.reshape(b, *split, c).transpose(places)
    tokens = (b, -1, side**ndim, c) if order == "batch apart" else (-1, side**ndim, c)

    def back(t):
        return t.reshape(moved.shape).transpose(np.argsort(places)).reshape(x.shape)

    return moved.reshape(tokens), back


def attended(x, shift=1, side=2, *, order="batch merged", slices=False, mask=None):
    t, back = windowed(rolled(x, -shift, slices=slices), side, order)
    scores = t @ jnp.swapaxes(t, -1, -2)
    if mask is not None:
        scores = scores + mask
    t = jax.nn.softmax(scores, -1) @ t
    return rolled(back(t), shift, slices=slices) @ MIXING


def pooled(x, gate):
    """A map scaled, or shifted, by the mean of its window."""
    b, h, w, c = x.shape
    t = rolled(x, -1).reshape(b, h // 2, 2, w // 2, 2, c)
    mean = t.mean((2, 4), keepdims=True)
    return rolled((t * jax.nn.sigmoid(mean) if gate else t + mean).reshape(x.shape), 1)


SQUARE = (8, 8)
WINDOWS = {  # network, sides, then of every axis: size, stride, start
    "one block": (attended, SQUARE, 2, 1, -1),
    "batch apart": (partial(attended, order="batch apart"), SQUARE, 2, 1, -1),
    "columns first": (partial(attended, order="columns first"), SQUARE, 2, 1, -1),
    "by slices": (partial(attended, slices=True), SQUARE, 2, 1, -1),
    "other way": (partial(attended, shift=-1), SQUARE, 2, 1, -1),
    "not square": (attended, (8, 12), 2, 1, -1),
    "windows of four": (partial(attended, shift=2, side=4), (12, 8), 4, 1, -2),
    "unequal parts": (partial(attended, shift=3, side=4), SQUARE, 4, 1, -1),
    "windows of three": (partial(attended, side=3), (9, 9), 3, 1, -2),
    "at rest": (partial(attended, shift=0), SQUARE, 2, 1, 0),
    "all in one": (partial(attended, shift=2, side=4), (4, 4), 4, 0, 0),
    "signals": (attended, (8,), 2, 1, -1),
    "volumes": (attended, (4, 4, 4), 2, 1, -1),
    "added mask": (partial(attended, mask=-np.eye(4, dtype=np.float32)[None]), SQUARE, 2, 1, -1),
    "two blocks": (lambda x: attended(attended(x, 0), 1), SQUARE, 4, 1, -2),
    "three blocks": (lambda x: attended(attended(attended(x, 0), 1), 0), SQUARE, 6, 1, -2),
    "beside a skip": (lambda x: x + attended(x), SQUARE, 2, 1, -1),
    "between convolutions": (lambda x: conv(attended(conv(x))), SQUARE, 6, 1, -2),
    "of patches": (lambda x: attended(conv(x, 2, 2, "VALID")), (16, 16), 4, 2, -2),
    "before a merger": (lambda x: conv(attended(x), 2, 2, "VALID"), SQUARE, 4, 2, -1),
    "mean added": (partial(pooled, gate=False), SQUARE, 2, 1, -1),
    "gate": (partial(pooled, gate=True), SQUARE, 2, 1, -1),
}
QUICK = ("one block", "batch apart", "windows of four", "signals", "two blocks", "between convolutions", "gate")


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_alike_along_all_axes(name):
    network, sides, *expected = WINDOWS[name]
    every = receptive.extent(network, shape_of(1, *sides, 3), spatial=sides)
    others = receptive.extent(network, shape_of(2, *sides, 3), spatial=sides)
    assert all(repr(extent) == repr(others[tap]) for tap, extent in every.items())
    found = every["output"]
    assert [{*values} for values in (found.size, found.stride, found.start)] == [{value} for value in expected]
    assert found.exact
    for extent in every.values():
        for values in (extent.size, extent.stride, extent.start):
            if len(set(sides)) == 1:
                np.testing.assert_array_equal(values, values[:1] * len(values))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in WINDOWS]
)
def test_windows_against_pixels(name):
    network, sides, *_ = WINDOWS[name]
    compare(network, sides, folds=True)
