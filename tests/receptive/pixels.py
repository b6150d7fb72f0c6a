"""Layers to build networks of, and what a pixel reaches in a network, found by changing it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import stabjax as sj
from stabjax import receptive
from stabjax.receptive._box import clip
from stabjax.receptive._tap_boxes import boxes_of_taps
from tests.sample_networks import normal

SIDES = (24, 19)


def shape_of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def image_shape(*, sides=SIDES, channels=3):
    return shape_of(1, *sides, channels)


def conv(x, side=3, stride=1, padding="SAME", *, spread=1, dilation=1, groups=1, channels=None):
    """A convolution over any number of axes, with a kernel of positive weights."""
    ndim = x.ndim - 2
    axes = "DHW"[-ndim:]
    channels = x.shape[-1] if channels is None else channels
    kernel = jnp.abs(normal(side, *[side] * ndim, x.shape[-1] // groups, channels)) + 0.01
    if isinstance(padding, int):
        padding = [(padding, padding)] * ndim
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * ndim,
        padding,
        (spread,) * ndim,
        (dilation,) * ndim,
        (f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
    )


def max_pool(x, side, stride, padding="VALID"):
    ndim = x.ndim - 2
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *[side] * ndim, 1), (1, *[stride] * ndim, 1), padding)


def wrapped(x, width):
    return jnp.pad(x, [(0, 0), *[(width, width)] * (x.ndim - 2), (0, 0)], mode="wrap")


def mirrored(x, width, mode):
    return jnp.pad(x, [(0, 0), *[(width, width)] * (x.ndim - 2), (0, 0)], mode=mode)


def by_rows(x):
    """A convolution along the rows, each by itself."""
    return jax.vmap(conv, 1, 1)(x)


def rolled(x):
    """Windows of a map that was rolled, each mixed and rolled back, as in shifted window attention."""
    x = x[:, : x.shape[1] // 4 * 4]
    windows = jnp.roll(x, -2, 1).reshape(len(x), -1, 4, *x.shape[2:])
    mixed = jnp.broadcast_to(windows.sum(2, keepdims=True), windows.shape)
    return x + jnp.roll(mixed.reshape(x.shape), 2, 1)


# What a pixel reaches


def reach(f, sides, channels=3):
    """Boxes of every unit of every tap, pixel by pixel: whatever a NaN in its place, or a huge number, changes.

    A NaN passes what a number does not (a saturated tanh, a canceled sum), but XLA may drop it in a maximum, which a
    huge number passes; so it takes both. Returns ``{name: (first, last)}``, ``(*units, ndim)``, of the pixels that
    reach a unit; infinite where none does.
    """
    pixels = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), -1).reshape(-1, len(sides))
    x = np.random.default_rng(0).uniform(0.5, 1, (len(pixels), *sides, channels)).astype(np.float32)
    taps = sj.features.taps(f, x)
    run = jax.jit(lambda x: sj.features.capture(f)(x)[1])
    clean = {name: np.asarray(value) for name, value in run(x).items()}
    changed = {name: np.zeros(value.shape, bool) for name, value in clean.items()}
    for put in (np.nan, 1e6, -1e6):
        for row, pixel in zip(other := x.copy(), pixels):
            row[tuple(pixel)] = put
        for name, value in run(other).items():
            # Not so little that rounding counts: what is put there is far from any number of the network.
            kept = np.abs(value - clean[name]) <= 1e-5 * (np.abs(clean[name]) + 1e-3)
            # A NaN where nothing was changed is what the network fills in.
            changed[name] |= ~(kept | np.isnan(clean[name]))
    boxes = {}
    for tap in taps:
        reached = changed[tap.name]
        if tap.channel_axis is not None:
            reached = reached.any(tap.channel_axis)
        places = pixels.reshape(len(pixels), *[1] * (reached.ndim - 1), len(sides))
        first = np.where(reached[..., None], places, np.inf).min(0)
        last = np.where(reached[..., None], places, -np.inf).max(0)
        boxes[tap.name] = first, last
    return boxes


def boxes_of(f, x):
    """What every unit of every tap sees inside the image: ``{name: [(first, last, exact)]}``, one for each axis."""
    traced = sj.features.trace(f, x)
    boxes = boxes_of_taps(traced.program, traced.arrays)
    inner = {name: [clip(box) for box in seen] for name, seen in boxes.items()}
    return {name: [(box.bounds[0], -box.bounds[1], box.exact) for box in seen] for name, seen in inner.items()}


def compare(f, sides, channels=3, *, exact=True, folds=False):
    """Hold the extents of a network against `reach`.

    What a unit sees inside the image, unit by unit: never less, and the same where it is called exact. The boxes that
    are told: the same where the padding has no part; ``folds`` is for padding that shows a part of the image.
    """
    shape = shape_of(2, *sides, channels)
    found, inner = receptive.extent(f, shape, spatial=sides), boxes_of(f, shape)
    for name, (first, last) in reach(f, sides, channels).items():
        extent, seen = found[name], np.isfinite(first).all(-1)
        blank = np.zeros(seen.shape, bool)
        for low, _, _ in inner[name]:
            blank |= ~np.isfinite(np.broadcast_to(low, seen.shape))
        assert not (blank & seen).any(), (name, "seen, but not said")
        if exact and all(sure for *_, sure in inner[name]):
            assert not (~blank & ~seen).any(), (name, "said, but not seen")
        if not seen.any():
            continue
        lengths = (last - first + 1)[seen]
        assert folds or (lengths <= extent.size).all(), (name, extent, lengths.max(0))
        for axis, (low, high, sure) in enumerate(inner[name]):
            place = f"{name} along {axis}, {extent}"
            low, high = np.broadcast_to(low, seen.shape)[seen], np.broadcast_to(high, seen.shape)[seen]
            assert (low <= first[seen][:, axis]).all(), place
            assert (high >= last[seen][:, axis]).all(), place
            if sure and exact:
                np.testing.assert_array_equal(low, first[seen][:, axis], place)
                np.testing.assert_array_equal(high, last[seen][:, axis], place)
                assert not math.isnan(extent.stride[axis]) or extent.size[axis] == lengths[:, axis].max(), place
        if not extent.regular or (any(extent.stride) and seen.ndim != len(sides)):
            continue
        for unit in map(tuple, np.argwhere(seen).tolist()):
            box = np.array(extent.box(unit if any(extent.stride) else (0,) * len(sides)))
            place = f"{name} at {unit}: expected {box.tolist()}, reached {first[unit]} to {last[unit]}"
            inside = (box[:, 0] >= 0) & (box[:, 1] <= sides)
            held = inside | (not folds)
            assert (first[unit] >= np.maximum(box[:, 0], 0))[held].all(), place
            assert (last[unit] < box[:, 1])[held].all(), place
            inside &= extent.exact & exact
            assert (first[unit] == box[:, 0])[inside].all(), place
            assert (last[unit] == box[:, 1] - 1)[inside].all(), place


def support(weights):
    places = np.argwhere(weights > 0)
    return places.min(0), places.max(0) + 1
