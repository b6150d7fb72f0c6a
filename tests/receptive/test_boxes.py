"""Boxes of single units where they repeat with a period, behind upsampling, and where axes were merged."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from stabjax import receptive
from tests.receptive.pixels import conv, max_pool, mirrored, reach, shape_of
from tests.receptive.test_windows import attended
from tests.sample_networks import normal


def raised(f, sides, channels=3):
    """Boxes of every unit of the output: the pixels that raise it, as none but a large positive number would."""
    pixels = np.stack(np.indices(sides), -1).reshape(-1, len(sides))
    images = np.random.default_rng(0).uniform(0.5, 1, (len(pixels) + 1, *sides, channels)).astype(np.float32)
    images[:] = images[-1:]
    for row, pixel in zip(images, pixels):
        row[tuple(pixel)] += 1e3
    *changed, clean = np.asarray(jax.jit(f)(images))
    reached = (np.stack(changed) > clean * 1.001).any(-1)[..., None]
    places = pixels.reshape(len(pixels), *[1] * (reached.ndim - 2), len(sides))
    return np.where(reached, places, np.inf).min(0), np.where(reached, places, -np.inf).max(0)


def compare_boxes(f, sides, channels=3, *, folds=False, linear=False):
    """Hold the box of every unit against what the pixels reach; returns the extents.

    It holds all that is seen inside the image, and is no larger where it lies in the image and is exact. ``folds`` is
    for padding that shows a part of the image: there, only boxes inside the image tell. ``linear`` for products with a
    matrix of weights, which a NaN passes where a weight is zero: then the output alone is compared.
    """
    extents = receptive.extent(f, shape_of(2, *sides, channels), spatial=sides)
    reached = {"output": raised(f, sides, channels)} if linear else reach(f, sides, channels)
    for name, (first, last) in reached.items():
        extent = extents[name]
        merged = not extent.regular and first.ndim - 1 != len(sides)
        for unit in np.ndindex(first.shape[:-1]):
            box = np.array(extent.box(unit if merged or any(extent.stride) else (0,) * len(sides)))
            place = f"{name} at {unit}: {box.tolist()}, reached {first[unit]} to {last[unit]}"
            if not np.isfinite(first[unit]).all():
                assert not extent.exact or (box[:, 0] <= 0).any() or (box[:, 1] >= sides).any(), place
                continue
            inside = (box[:, 0] >= 0) & (box[:, 1] <= sides)
            held = inside if folds else np.full(len(sides), True)
            assert (first[unit] >= box[:, 0].clip(0))[held].all(), place
            assert (last[unit] < box[:, 1])[held].all(), place
            if extent.exact:
                assert (first[unit] == box[:, 0])[inside].all(), place
                assert (last[unit] == box[:, 1] - 1)[inside].all(), place
    return extents


def doubled(x):
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 2, axis)
    return x


def resized(x, factor, method):
    sides = [round(side * factor) for side in x.shape[1:-1]]
    return jax.image.resize(x, (len(x), *sides, x.shape[-1]), method)


def transposed(side, stride, padding="SAME"):
    def up(x):
        module = linen.ConvTranspose(2, (side,) * (x.ndim - 2), (stride,) * (x.ndim - 2), padding)
        shape = (side,) * (x.ndim - 2)
        kernel = jnp.abs(normal(1, *shape, x.shape[-1], 2)) + 0.1
        return module.apply({"params": {"kernel": kernel, "bias": jnp.zeros(2)}}, x)

    return up


def shuffled(x):
    """Channels to space."""
    x = conv(x, 1, channels=4 * x.shape[-1])
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


def decoded(x, up):
    """Down and up again, with what was there beside it."""
    wide = jax.nn.relu(conv(x, channels=2))
    narrow = jax.nn.relu(conv(max_pool(wide, 2, 2), channels=2))
    return conv(jnp.concatenate([up(narrow), wide], -1), channels=2)


def tokens(x):
    x = conv(x, 2, 2, "VALID")
    return jnp.tanh(x.reshape(len(x), -1, x.shape[-1]))


DECODERS = {
    "repeat": doubled,
    "nearest": lambda x: resized(x, 2, "nearest"),
    "linear": lambda x: resized(x, 2, "linear"),
    "transposed": transposed(2, 2),
    "transposed, overlap": transposed(4, 2),
    "shuffle": shuffled,
}
BOXES = {
    "three times": (lambda x: conv(resized(x, 3, "nearest")), (6, 5)),
    "uneven": (lambda x: conv(resized(conv(x), 1.5, "nearest")), (6, 8)),
    "linear, uneven": (lambda x: resized(conv(x), 1.5, "linear"), (6, 8)),
    "smaller": (lambda x: conv(resized(x, 0.5, "linear")), (8, 12)),
    "transposed, odd": (transposed(3, 2), (5, 6)),
    "transposed, valid": (transposed(3, 2, "VALID"), (5, 6)),
    "transposed, holes": (transposed(1, 2), (4, 3)),
    "up and down": (lambda x: max_pool(conv(doubled(conv(x))), 2, 2), (6, 5)),
    "up twice": (lambda x: conv(doubled(conv(doubled(x)))), (4, 3)),
    "one axis": (lambda x: conv(jnp.repeat(x, 2, 2)), (5, 4)),
    "signal": (lambda x: conv(doubled(conv(x, 3, 2))), (11,)),
    "volume": (lambda x: conv(doubled(max_pool(x, 2, 2))), (4, 4, 4)),
    "tokens": (tokens, (6, 8)),
    "uneven rows": (lambda x: conv(x)[:, np.array([3, 5, 9])], (12, 5)),
}

QUICK = ("repeat", "linear", "transposed, overlap", "uneven", "transposed, holes", "smaller", "tokens", "signal")


def quick(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick(DECODERS))
def test_boxes_of_a_decoder(name):
    found = compare_boxes(lambda x: decoded(x, DECODERS[name]), (10, 12), linear=name == "linear")["output"]
    assert found.exact
    assert found.stride == (1, 1)
    assert not found.regular


@pytest.mark.parametrize("name", quick(BOXES))
def test_boxes_of_units(name):
    compare_boxes(*BOXES[name], linear=name in ("linear, uneven", "smaller"))


def test_boxes_of_rolled_windows():
    compare_boxes(attended, (6, 6), folds=True)
    found = receptive.extent(attended, shape_of(1, 6, 6, 3))
    assert found["output"].box((0, 2)) == ((-1, 1), (1, 3))
    assert found["softmax_0"].box((8, 3, 0)) == ((5, 7), (5, 7))


def test_boxes_go_on_with_their_period():
    found = receptive.extent(lambda x: conv(doubled(x)), shape_of(1, 6, 6, 3))["output"]
    assert found.box((6, 6)) == ((2, 4), (2, 4))
    assert [found.box((k, 0))[0] for k in (-2, -1, 0, 1, 2)] == [(-2, 0), (-1, 1), (-1, 1), (0, 2), (0, 2)]
    assert found.box((13, 3)) == ((6, 8), (1, 3))
    mirror = receptive.extent(lambda x: mirrored(x[:, ::-1], 1, "reflect"), shape_of(1, 6, 6, 3))["output"]
    assert mirror.box((0, 0)) == ((6, 7), (-1, 0))


def test_units_that_have_no_box():
    rows = receptive.extent(lambda x: x[:, np.array([3, 5, 9])], shape_of(1, 12, 6, 3))["output"]
    assert math.isnan(rows.stride[0])
    assert rows.box((2, 7)) == ((9, 10), (7, 8))
    for unit in ((3, 0), (-1, 0)):
        with pytest.raises(ValueError, match=r"expected a unit of the map, got .* irregular and end with it"):
            rows.box(unit)
    up = receptive.extent(doubled, shape_of(1, 6, 6, 3))["output"]
    for unit in ((1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="expected a position on 2 axes of the image, got"):
            up.box(unit)
    with pytest.raises(ValueError, match=r"expected a position on 1 axes of the tap, .* got"):
        receptive.extent(tokens, shape_of(1, 6, 6, 3))["output"].box((1, 2))
    column = receptive.extent(lambda x: doubled(conv(x))[:, :, 3], shape_of(1, 6, 6, 3))["output"]
    assert column.box((3, 9)) == ((0, 3), (0, 3))
    holes = receptive.extent(transposed(1, 2), shape_of(1, 4, 4, 3))["output"]
    assert holes.box((1, 0)) == ((0, 0), (0, 0))
    bare = receptive.Extent((1,), (0.5,), (0,), exact=True, regular=False)
    assert bare == receptive.extent(doubled, (1, 6, 3), spatial=1)["output"]
    with pytest.raises(ValueError, match="irregular, and are not given one by one"):
        bare.box((0,))
