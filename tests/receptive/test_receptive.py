"""Extents of receptive fields against the recursion, and against what a pixel changes."""

import math
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
from stabjax import receptive
from tests.receptive.pixels import (
    SIDES,
    compare,
    conv,
    image_shape,
    max_pool,
    mirrored,
    reach,
    shape_of,
    wrapped,
)
from tests.sample_networks import CASES, normal

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
        pytest.param(101, 1.5, 971, marks=pytest.mark.slow),
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


# Frameworks


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
