"""Receptive fields against the recursion, against counted paths, and against what a pixel changes."""

import math
import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import stabjax as sj
from benchmarks.extents import IMAGES as LARGE
from benchmarks.extents import resnet, vgg16
from stabjax import _jaxpr, features, receptive
from tests.sample_networks import CASES, normal

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


# What a pixel reaches


def reach(f, sides, channels=3):
    """Boxes of every unit of every tap, pixel by pixel: whatever a NaN in its place, or a huge number, changes.

    A NaN passes what a number does not (a saturated tanh, a cancelled sum), but XLA may drop it in a maximum, which a
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
            changed[name] |= ~(np.abs(value - clean[name]) <= 1e-5 * (np.abs(clean[name]) + 1e-3))
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
    traced = features.trace(f, x)
    spans = _jaxpr.extents(traced.program, traced.arrays)
    inner = {name: [_jaxpr.clipped(span) for span in seen] for name, seen in spans.items()}
    return {name: [(span.ends[0], -span.ends[1], span.exact) for span in seen] for name, seen in inner.items()}


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
        for unit in np.ndindex(seen.shape):
            box = np.array(extent.box(unit if any(extent.stride) else (0,) * len(sides)))
            place = f"{name} at {unit}: expected {box.tolist()}, reached {first[unit]} to {last[unit]}"
            inside = (box[:, 0] >= 0) & (box[:, 1] <= sides)
            held = inside | (not folds)
            assert (first[unit] >= np.maximum(box[:, 0], 0))[held].all(), place
            assert (last[unit] < box[:, 1])[held].all(), place
            inside &= extent.exact & exact
            assert (first[unit] == box[:, 0])[inside].all(), place
            assert (last[unit] == box[:, 1] - 1)[inside].all(), place


# Known sizes


@pytest.mark.parametrize(
    ("depth", "pool", "every"),
    [
        (11, 150, [3, 4, 8, 10, 18, 26, 30, 46, 62, 70, 102, 134, 150]),
        (16, 212, None),
        (19, 268, None),
    ],
)
def test_vgg(depth, pool, every):
    network = sj.networks.wrap(sj.models.VGG(depth, norm=False, width=0.02, rngs=nnx.Rngs(0)))
    extents = receptive.extent(network, image_shape(sides=(32, 64)))
    operations = [extent.size for name, extent in extents.items() if not name.startswith("relu")][:13]
    assert extents["max_pool_4"].size == (pool, pool)
    assert extents["max_pool_4"].stride == (32, 32)
    assert extents["classifier"].size == (32, 64)
    if every is not None:
        assert operations == [(size, size) for size in every]
        assert [extents["max_pool_4"].start, extents["output"].start] == [(-59, -59), (0, 0)]


@pytest.mark.parametrize(
    ("depth", "version", "size"),
    [
        (50, 1, 483),
        pytest.param(50, 1.5, 427, marks=pytest.mark.slow),
        pytest.param(101, 1, 1027, marks=pytest.mark.slow),
        (101, 1.5, 971),
    ],
)
def test_residual_networks(depth, version, size, relaxed_promotion):
    network = resnet(depth, version)
    extents = receptive.extent(network, LARGE)
    last = extents["block4_unit3/add_0"]
    assert (last.size, last.stride, last.exact) == ((size, size), (32, 32), True)
    assert extents["avg_pool_0"] == extents["output"] == receptive.Extent((224, 224), (0, 0), (0, 0), True, True)


def test_vgg16_of_large_images(relaxed_promotion):
    assert list(receptive.extent(vgg16(), LARGE).values())[-1].size == (212, 212)


def test_kernel_three_stride_two():
    def chain(x):
        for _ in range(4):
            x = conv(x, 3, 2, "VALID")
        return x

    assert [extent.size for extent in receptive.extent(chain, (1, 64, 1), spatial=1).values()][:4] == [
        (3,),
        (7,),
        (15,),
        (31,),
    ]


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 4)), min_size=1, max_size=5
    )
)
def test_chains_keep_the_recursion(layers):
    """Backwards through the layers, ``r = s r + (k - s)``, and the start likewise; nothing compiles for a new size.

    Forwards, pixel by pixel, it is seen whether the boxes are exact: whether a unit sees less than its box because
    what it reads beyond a layer was left over in it.
    """

    def chain(x):
        for side, stride, dilation, padding in layers:
            x = conv(x, side, stride, padding, dilation=dilation)
        return x

    pixels = 500
    extent = receptive.extent(chain, (1, pixels, 1), spatial=1)["output"]
    size, stride, start = 1, 1, 0
    for side, step, dilation, padding in reversed(layers):
        size = step * size + (side - 1) * dilation + 1 - step
        start = step * start - padding
        stride *= step
    assert (extent.size, extent.stride, extent.start) == ((size,), (stride,), (start,))
    first, last = np.arange(pixels) * 1.0, np.arange(pixels) * 1.0
    for side, step, dilation, padding in layers:
        count = (len(first) + 2 * padding - (side - 1) * dilation - 1) // step + 1
        reads = step * np.arange(count)[:, None] - padding + np.arange(side) * dilation
        inside = (reads >= 0) & (reads < len(first))
        reads = reads.clip(0, len(first) - 1)
        first = np.where(inside, first[reads], np.inf).min(1)
        last = np.where(inside, last[reads], -np.inf).max(1)
    low = start + stride * np.arange(len(first))
    high = low + size - 1
    contained = (low >= 0) & (high < pixels)
    assert not extent.exact or ((first == low) & (last == high))[contained].all()
    if not extent.exact:
        assert ((first > low.clip(0)) | (last < high.clip(None, pixels - 1))).any()


# One operation at a time


def wrapped(x, width):
    return jnp.pad(x, [(0, 0), *[(width, width)] * (x.ndim - 2), (0, 0)], mode="wrap")


def mirrored(x, width, mode):
    return jnp.pad(x, [(0, 0), *[(width, width)] * (x.ndim - 2), (0, 0)], mode=mode)


def shuffled(x):
    """Depth to space."""
    x = conv(x, 4, 4, "VALID", channels=12)
    b, h, w, _ = x.shape
    return x.reshape(b, h, w, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, 3)


def folded(x):
    """Space to depth."""
    x = x[:, :24, :18]
    x = x.reshape(len(x), 12, 2, 9, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(len(x), 12, 9, 12)


def tokens(x):
    x = conv(x, 4, 4, "VALID")
    return x.reshape(len(x), -1, 3)


def attended(x, mask=None):
    t = tokens(x)
    scores = t @ t.swapaxes(1, 2)
    if mask == "causal":
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool))[None], scores, -jnp.inf)
    return jnp.tanh(jax.nn.softmax(scores, -1) @ t)


def with_class_token(x):
    return jnp.concatenate([jnp.tile(normal(0, 1, 1, 3), (len(x), 1, 1)), tokens(x)], 1)


def gated(x):
    x = conv(x)
    return conv(x * jax.nn.sigmoid(x.mean((1, 2), keepdims=True)))


def inception(x):
    return jnp.concatenate([conv(x), conv(max_pool(x, 3, 1, "SAME"), 5), conv(x, 1)], -1)


def recurrent(x):
    """A state carried down the rows."""
    rows = jnp.moveaxis(x, 1, 0)
    _, states = lax.scan(lambda state, row: (state + row, state + row), jnp.zeros_like(rows[0]), rows)
    return jnp.moveaxis(states, 0, 1)


def linear_resize(x):
    return jax.image.resize(conv(x, 3, 2), (len(x), 24, 20, 3), "linear")


def looped(x):
    return lax.while_loop(lambda state: state[0] < 3, lambda state: (state[0] + 1, conv(state[1])), (0, x))[1]


def branched(x):
    return lax.cond(jnp.ones(()) > 0, lambda x: conv(x, 3), lambda x: conv(x, 5), x)


WHOLE = (24, 19), (0, 0), (0, 0)
OPERATIONS = {
    "valid": (lambda x: conv(x, 5, 2, "VALID"), (5, 5), (2, 2), (0, 0)),
    "same, even": (lambda x: conv(x, 4), (4, 4), (1, 1), (-1, -1)),
    "kernel dilation": (lambda x: conv(x, dilation=4), (9, 9), (1, 1), (-4, -4)),
    "transposed": (lambda x: conv(x, 4, padding=2, spread=2), (2, 2), (0.5, 0.5), (-1, -1)),
    "transposed, holes": (lambda x: conv(x, 1, padding=0, spread=2), (1, 1), (0.5, 0.5), (0, 0)),
    "down and up": (lambda x: conv(conv(conv(x, 3, 2), 4, padding=2, spread=2)), (7, 7), (1, 1), (-2, -3)),
    "max pool, padded": (lambda x: max_pool(conv(x), 3, 2, "SAME"), (5, 5), (2, 2), (-1, -2)),
    "reshape pool": (lambda x: conv(x).reshape(len(x), 12, 2, 19, 3).max(2), (4, 3), (2, 1), (-1, -1)),
    "sliced pool": (lambda x: jnp.maximum(x[:, ::2], x[:, 1::2]), (2, 1), (2, 1), (0, 0)),
    "zeros": (lambda x: conv(jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))), 5, 1, "VALID"), (5, 5), (1, 1), (-2, -2)),
    "mirrored": (lambda x: conv(mirrored(x, 2, "reflect"), 5, 1, "VALID"), (5, 5), (1, 1), (-2, -2)),
    "symmetric": (lambda x: conv(mirrored(x, 2, "symmetric"), 5, 1, "VALID"), (5, 5), (1, 1), (-2, -2)),
    "border": (lambda x: conv(mirrored(x, 2, "edge"), 5, 1, "VALID"), (5, 5), (1, 1), (-2, -2)),
    "crop": (lambda x: conv(x)[:, 3:20:2, 1], (3, 3), (2, 0), (2, 0)),
    "reversed": (lambda x: conv(x[:, ::-1], 3, 2), (3, 3), (-2, 2), (21, -1)),
    "table": (lambda x: jnp.take(x, jnp.array([3, 5, 7]), 1), (1, 1), (2, 1), (3, 0)),
    "uneven table": (lambda x: x[:, np.array([3, 5, 9])], (1, 1), (math.nan, 1), (3, 0)),
    "repeat": (lambda x: conv(jnp.repeat(conv(x, 3, 2), 2, 1)), (5, 7), (1, 2), (-2, -3)),
    "nearest": (lambda x: jax.image.resize(x, (len(x), 48, 38, 3), "nearest"), (1, 1), (0.5, 0.5), (0, 0)),
    "linear": (linear_resize, (5, 5), (1, 1), (-2, -3)),
    "inception": (inception, (7, 7), (1, 1), (-3, -3)),
    "groups": (lambda x: conv(jnp.concatenate([conv(x), conv(x, 5)], -1), 1, groups=2), (5, 5), (1, 1), (-2, -2)),
    "depth to space": (lambda x: conv(shuffled(x)), (8, 8), (2, 2), (-4, -4)),
    "space to depth": (lambda x: conv(folded(x)), (6, 6), (2, 2), (-2, -2)),
    "tokens": (lambda x: jnp.tanh(tokens(x)), (4, 4), (4, 4), (0, 0)),
    "class token": (with_class_token, (4, 4), (4, 4), (0, 0)),
    "attention": (attended, (24, 16), (0, 0), (0, 0)),
    "flattened": (lambda x: conv(x).reshape(len(x), -1) @ normal(1, 24 * 19 * 3, 2), *WHOLE),
    "global mean": (lambda x: conv(x).mean((1, 2)), *WHOLE),
    "global mean of windows": (lambda x: conv(x, 5, 5, "VALID").mean((1, 2)), (20, 15), (0, 0), (0, 0)),
    "gate": (gated, *WHOLE),
    "recurrent": (recurrent, (24, 1), (math.nan, 1), (0, 0)),
    "running sum": (lambda x: jnp.cumsum(x, 2), (1, 19), (1, math.nan), (0, 0)),
    "sort": (lambda x: jnp.sort(x, 1), (24, 1), (0, 1), (0, 0)),
    "mask": (lambda x: x * (jnp.arange(24) < 12).astype(jnp.float32).reshape(1, 24, 1, 1), (1, 1), (1, 1), (0, 0)),
    "loop": (lambda x: lax.fori_loop(0, 3, lambda _, x: conv(x), x), (7, 7), (1, 1), (-3, -3)),
    "remat, jit": (lambda x: jax.checkpoint(jax.jit(conv))(conv(x)), (5, 5), (1, 1), (-2, -2)),
    "over images": (lambda x: lax.map(lambda image: conv(image[None])[0], x), (3, 3), (1, 1), (-1, -1)),
    "by platform": (lambda x: sj.conv.conv_general_dilated(x, normal(0, 7, 3, 3, 4), (2, 2), "SAME",
                                                           dimension_numbers=("NHWC", "HWIO", "NHWC")),
                    (7, 3), (2, 2), (-2, -1)),
}  # fmt: skip
LEFT_OVER = ("depth to space", "space to depth")
"""Where the pixels that no window takes in would be reached by the zeros of the next layer."""
EXPECTED_INEXACT = {
    "while": (looped, *WHOLE),
    "cond": (branched, (5, 5), (1, 1), (-2, -2)),
    "causal": (partial(attended, mask="causal"), (24, 16), (0, 0), (0, 0)),
    "index from the image": (lambda x: x[:, jnp.argmax(x[0, 0, 0])], (24, 19), (0, math.nan), (0, 0)),
}


@pytest.mark.parametrize("name", [*OPERATIONS, *EXPECTED_INEXACT])
def test_operations(name):
    f, size, stride, start = (OPERATIONS | EXPECTED_INEXACT)[name]
    found = receptive.extent(f, image_shape())["output"]
    assert (found.size, found.start, found.exact) == (size, start, name in OPERATIONS and name not in LEFT_OVER)
    np.testing.assert_array_equal(found.stride, stride)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("sort", "linear", "mask")])
def test_operations_against_pixels(name):
    compare(OPERATIONS[name][0], SIDES)


def test_circular_padding_goes_round():
    def circular(x):
        x = conv(wrapped(x, 1), 3, 2, "VALID")
        return conv(wrapped(x, 1), 3, 1, "VALID")

    sides = (24, 20)
    found = receptive.extent(circular, image_shape(sides=sides))["output"]
    assert (found.size, found.stride, found.start, found.exact) == ((7, 7), (2, 2), (-3, -3), True)
    first, last = reach(circular, sides)["output"]
    assert (first[0, 0] == 0).all()
    assert (last[0, 0] == (23, 19)).all()
    # What reads on from the first unit has seen both ends of a side from the beginning.
    summed = receptive.extent(lambda x: jnp.cumsum(circular(x), 1), image_shape(sides=sides))["output"]
    assert (summed.size, summed.stride, summed.start) == ((24, 7), (0, 2), (0, -3))


@pytest.mark.parametrize("ndim", [1, 3])
def test_signals_and_volumes(ndim):
    sides = (9, 10, 11)[:ndim]

    def f(x):
        return conv(max_pool(conv(x), 2, 2), 3, dilation=2) * 1.0

    found = receptive.extent(f, image_shape(sides=sides), spatial=ndim)["conv_1"]
    assert (found.size, found.stride, found.start) == ((12,) * ndim, (2,) * ndim, (-5,) * ndim)
    assert receptive.extent(jnp.tanh, shape_of(2, 7))["output"] == receptive.Extent((), (), (), True, True)


def test_what_sees_nothing():
    found = receptive.extent(lambda x: {"x": x, "y": jnp.zeros((1, 4))}, image_shape())
    assert found["output/y"] == receptive.Extent((0, 0), (0, 0), (0, 0), True, True)


# Any network


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


def by_rows(x):
    """A convolution along the rows, each by itself."""
    return jax.vmap(conv, 1, 1)(x)


def rolled(x):
    """Windows of a map that was rolled, each mixed and rolled back, as in shifted window attention."""
    x = x[:, : x.shape[1] // 4 * 4]
    windows = jnp.roll(x, -2, 1).reshape(len(x), -1, 4, *x.shape[2:])
    mixed = jnp.broadcast_to(windows.sum(2, keepdims=True), windows.shape)
    return x + jnp.roll(mixed.reshape(x.shape), 2, 1)


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


@pytest.mark.parametrize("seed", range(8))
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


def support(weights):
    places = np.argwhere(weights > 0)
    return places.min(0), places.max(0) + 1


def agree_with_paths(network, sides):
    """The box of the last unit inside the image, and that of the centre, clipped, are the supports of its paths."""
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


QUICK = ("nnx squeeze", "equinox convolutional", "plain sliced", "plain nested", "partial windowed")
GUESTS = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in CASES
    if "batch statistics" not in name
]


@pytest.mark.parametrize("name", GUESTS)
def test_guests(name, relaxed_promotion):
    """Every guest: the taps of `features`, and boxes as far as a pixel reaches (not through a comparison)."""
    network = CASES[name].build()
    found = receptive.extent(network, shape_of(2, 8, 8, 3))
    assert list(found) == [tap.name for tap in sj.features.taps(network, shape_of(2, 8, 8, 3))]
    compare(network, (8, 8), exact=name != "plain nested")


def test_batch_statistics_see_everything(relaxed_promotion):
    found = receptive.extent(CASES["nnx batch statistics"].build(), shape_of(2, 8, 8, 3))
    assert found["stem"].size == (3, 3)
    assert found["blocks/0/norm"].size == (8, 8)


def test_single_examples_with_channels_in_front():
    def single(x):
        return lax.conv_general_dilated(x[None], jnp.ones((4, 3, 5, 3)), (2, 1), "SAME")[0]

    network = sj.networks.wrap(single, single=True, layout="channels_first")
    found = receptive.extent(network, image_shape(sides=(24, 20)))["conv_0"]
    assert (found.size, found.stride, found.start) == ((5, 3), (2, 1), (-1, -1))


def test_scans_are_unrolled(relaxed_promotion):
    def network(kernels, x):
        return lax.scan(lambda x, kernel: (sj.conv.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")), None), x, kernels)[0]  # fmt: skip

    f = jax.tree_util.Partial(network, {"layers": jnp.ones((4, 3, 3, 3, 3))}["layers"])
    assert [extent.size[0] for extent in receptive.extent(f, image_shape()).values()] == [3, 5, 7, 9, 9]


def test_nothing_is_allocated(relaxed_promotion):
    network = resnet(50)
    before = {id(array) for array in jax.live_arrays()}
    receptive.extent(network, LARGE)
    assert {id(array) for array in jax.live_arrays()} <= before


def test_box():
    found = receptive.extent(lambda x: conv(x, 3, 2), image_shape())["output"]
    assert found.box((0, 5)) == ((0, 3), (9, 12))
    with pytest.raises(ValueError, match="expected a position on 2 axes"):
        found.box((0,))
    enlarged = receptive.extent(lambda x: jnp.repeat(x, 2, 1), image_shape())["output"]
    assert [enlarged.box((k, 0)) for k in (0, 1, 2)] == [((0, 1), (0, 1)), ((0, 1), (0, 1)), ((1, 2), (0, 1))]


def test_extent_refuses_what_is_no_batch():
    with pytest.raises(ValueError, match="expected images"):
        receptive.extent(jnp.tanh, jnp.ones(3))
    with pytest.raises(TypeError, match="JAX can trace"):
        receptive.extent(lambda x: x if x.sum() > 0 else -x, image_shape())


# Constant weights


def middle(weights):
    return [int(weight) for weight in weights if weight > 0]


def test_path_counts():
    def chain(x):
        for _ in range(4):
            x = jax.nn.relu(conv(x, 3, 2, "VALID")) + 0.5
        return x

    counts = [middle(receptive.constant_weight(chain, (1, 127, 1), tap=f"conv_{k}", spatial=1)) for k in range(4)]
    assert counts[0] == [1, 1, 1]
    assert counts[1] == [1, 1, 2, 1, 2, 1, 1]
    assert counts[2] == [1, 1, 2, 1, 3, 2, 3, 1, 3, 2, 3, 1, 2, 1, 1]
    assert counts[3] == [1, 1, 2, 1, 3, 2, 3, 1, 4, 3, 5, 2, 5, 3, 4, 1, 4, 3, 5, 2, 5, 3, 4, 1, 3, 2, 3, 1, 2, 1, 1]
    assert [sum(np.diff([0, *row, 0]) ** 2) for row in counts] == [2, 6, 26, 118]


def test_maxima_are_means_and_weights_do_not_matter(key):
    def network(kernel, x):
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return max_pool(x - 1.0, 2, 2)

    maps = []
    for k in range(2):
        f = jax.tree_util.Partial(network, jax.random.normal(jax.random.fold_in(key, k), (3, 3, 3, 5)))
        before = jax.tree_util.tree_map(np.array, f)
        maps.append(receptive.constant_weight(f, image_shape(), tap="max_pool_0", unit=(3, 4)))
        np.testing.assert_array_equal(before.args[0], f.args[0])
    np.testing.assert_array_equal(*maps)
    line = np.array([1, 2, 2, 1])
    np.testing.assert_allclose(maps[0][5:9, 7:11], np.outer(line, line) / 4)
    assert maps[0].sum() == 9


@pytest.mark.slow
def test_deep_networks_do_not_overflow(relaxed_promotion):
    sides = (64, 64)
    found = receptive.constant_weight(resnet(50), shape_of(1, *sides, 3), tap="block4_unit3/add_0")
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert np.isfinite(receptive.width(found)).all()


# Effective fields


def small(x):
    return jnp.tanh(conv(jnp.tanh(conv(x, 3, 2, channels=4)), 3, channels=2))


def test_effective_is_the_mean_size_of_the_jacobian(key):
    images = jax.random.normal(key, (3, 9, 8, 2))
    jacobian = jax.vmap(jax.jacrev(lambda image: small(image[None])[0]))(images)  # (n, h, w, channels, *image)
    expected = jnp.abs(jacobian[:, 2, 1]).sum(-1).mean(0)
    seen = [
        receptive.effective(small, images, tap="tanh_1", unit=(2, 1), channel=channel) for channel in (None, 1, [0])
    ]
    np.testing.assert_allclose(seen[0], expected.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen[1], expected[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(seen[2], expected[0], rtol=1e-5, atol=1e-7)
    apart = receptive.effective(small, images, tap="tanh_1", unit=(2, 1), batch_size=2)
    np.testing.assert_allclose(apart, seen[0], rtol=1e-5, atol=1e-7)


def test_effective_stays_within_the_extent(key):
    images = jax.random.normal(key, (2, 24, 19, 3))
    found = receptive.effective(small, images, tap="conv_1")
    first, last = np.array(receptive.extent(small, images)["conv_1"].box((6, 5))).T
    np.testing.assert_array_equal(np.stack(support(np.asarray(found))), [first, last])


def test_effective_of_a_dense_layer(key):
    def dense(x):
        return conv(x).reshape(len(x), -1) @ normal(1, 72, 4)

    images = jax.random.normal(key, (2, 6, 4, 3))
    assert receptive.effective(dense, images, tap="dense_0", unit=()).shape == (6, 4)


def test_units_that_are_not_there(key):
    images = jax.random.normal(key, (2, 9, 8, 3))
    with pytest.raises(ValueError, match="expected the name of an operation, got 'conv_9'; the network has conv_0"):
        receptive.effective(small, images, tap="conv_9")
    with pytest.raises(ValueError, match=r"expected a unit of 'conv_0' as a position on its axes of \(5, 4\)"):
        receptive.constant_weight(small, images, tap="conv_0", unit=(5, 0))
    with pytest.raises(ValueError, match=r"expected channels of 'conv_0' within 0\.\.3"):
        receptive.effective(small, images, tap="conv_0", channel=4)


# Measures


@settings(max_examples=20)
@given(st.integers(0, 6), st.integers(1, 9))
def test_centre_and_width_of_a_box(start, side):
    box = np.zeros((20, 11))
    box[start : start + side, 3] = 2.0
    np.testing.assert_allclose(receptive.centre(box), [start + (side - 1) / 2, 3], rtol=1e-5)
    np.testing.assert_allclose(receptive.width(box), [math.sqrt((side**2 - 1) / 12), 0], rtol=1e-4, atol=1e-3)


def test_measures_of_nothing_and_of_much():
    assert np.isnan(receptive.centre(np.zeros((3, 4)))).all()
    assert np.isnan(jax.jit(receptive.width)(jnp.zeros((3, 4)))).all()
    np.testing.assert_allclose(receptive.centre(np.array([1e200, 1e200])), [0.5])


def test_growth_is_the_fitted_line(key, x64):
    depths = np.arange(1, 9)
    noise = np.exp(0.1 * np.asarray(jax.random.normal(key, (8,), jnp.float64)))
    widths = 3.0 * depths**0.7 * noise
    (power, offset), covariance = np.polyfit(np.log(depths), np.log(widths), 1, cov=True)
    found = receptive.growth(depths, widths)
    np.testing.assert_allclose([found.power, found.prefactor], [power, math.exp(offset)], rtol=1e-10)
    np.testing.assert_allclose(found.error, math.sqrt(covariance[0, 0]), rtol=1e-10)
    exact = receptive.growth(depths, 2.0 * depths**1.5)
    np.testing.assert_allclose([exact.power, exact.error, exact.prefactor], [1.5, 0, 2], atol=1e-7)
    assert np.isnan(receptive.growth(depths[:2], widths[:2]).error)
    with pytest.raises(ValueError, match="at least two"):
        receptive.growth(depths[:1], widths[:1])


def test_effective_fields_grow_like_the_root_of_the_depth():
    """Constant weights spread as a random walk: a variance of 2/3 per layer of kernel 3, exactly."""

    def chain(x):
        for _ in range(12):
            x = conv(x, channels=1)
        return x

    shape, depths = shape_of(1, 41, 1), np.arange(1, 13)
    extents = receptive.extent(chain, shape, spatial=1)
    maps = [receptive.constant_weight(chain, shape, tap=f"conv_{k}", spatial=1) for k in (0, 3, 7, 11)]
    widths = [receptive.width(paths)[0] for paths in maps]
    np.testing.assert_allclose(np.square(widths), depths[[0, 3, 7, 11]] * 2 / 3, rtol=1e-5)
    assert abs(receptive.growth(depths[[0, 3, 7, 11]], jnp.stack(widths)).power - 0.5) < 1e-4
    reach = np.array([extents[f"conv_{k}"].size[0] - 1.0 for k in range(12)])
    assert abs(receptive.growth(depths, reach).power - 1) < 1e-5
