"""Receptive fields where a program is easily misread: each against what its pixels reach."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

import stabjax as sj
from stabjax import receptive
from tests.receptive.pixels import (
    boxes_of,
    by_rows,
    compare,
    conv,
    image_shape,
    mirrored,
    rolled,
    shape_of,
    wrapped,
)
from tests.sample_networks import normal

SIDES = (12, 10)
NAN = math.nan


def reached_by_change(f, sides=SIDES, channels=3):
    """First and last pixel that changes each unit of the output: ``(*units, ndim)``, infinite for none."""
    image = np.random.default_rng(0).uniform(0.5, 1, (*sides, channels)).astype(np.float32)
    pixels = np.stack(np.indices(sides), -1).reshape(-1, len(sides))
    changed = np.stack([image] * len(pixels))
    for row, pixel in zip(changed, pixels):
        row[tuple(pixel)] += 2
    run = jax.jit(jax.vmap(lambda image: f(image[None])[0]))
    reached = np.abs(run(changed) - run(image[None])).sum(-1) > 1e-5
    places = pixels.reshape(len(pixels), *[1] * (reached.ndim - 1), len(sides))
    first = np.where(reached[..., None], places, np.inf).min(0)
    return first, np.where(reached[..., None], places, -np.inf).max(0)


def compare_change(f, *, exact=True):
    """Hold the boxes of the output against `reached_by_change`."""
    first, last = reached_by_change(f)
    seen = np.isfinite(first).all(-1)
    assert seen.any()
    for axis, (low, high, sure) in enumerate(boxes_of(f, image_shape(sides=SIDES))["output"]):
        assert sure == exact
        low, high = np.broadcast_to(low, seen.shape)[seen], np.broadcast_to(high, seen.shape)[seen]
        assert (low <= first[seen][:, axis]).all()
        assert (high >= last[seen][:, axis]).all()
        if exact:
            np.testing.assert_array_equal(low, first[seen][:, axis])
            np.testing.assert_array_equal(high, last[seen][:, axis])


def two_repeats(x):
    """Boxes that repeat with periods 2 and 3, side by side: the common period is longer than the map."""
    two, three = jnp.repeat(x[:, ::2], 2, 1), jnp.repeat(x[:, ::3], 3, 1)
    return jnp.concatenate([two[:, :5], three[:, :5]], -1)


def rows_by_index(x):
    """The rows from the last to the first, one iteration each: nothing but a number changes between iterations."""
    return lax.map(lambda image: lax.map(lambda i: image[11 - i], jnp.arange(12)), x)


def volume(x):
    """A volume with a single layer of depth."""
    return conv(x.reshape(len(x), 1, *x.shape[1:]))[:, 0]


def pool_with_positions(x):
    def larger(a, b):
        first = a[0] > b[0]
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])

    rows = lax.broadcasted_iota(jnp.float32, x.shape, 1)
    values, places = lax.reduce_window((x, rows), (-jnp.inf, -1.0), larger, (1, 3, 2, 1), (1, 3, 2, 1), "VALID")
    return values + 0.001 * places


def circular_transpose(x):
    module = linen.ConvTranspose(3, (3, 3), padding="CIRCULAR")
    kernel = {"params": {"kernel": jnp.abs(normal(0, 3, 3, 3, 3)) + 0.1, "bias": jnp.zeros(3)}}
    return module.apply(kernel, x)


def attended(x, roll):
    """Attention within windows of 7 x 7, after a roll of the map."""
    b, h, w, c = x.shape
    t = jnp.roll(x, (-roll, -roll), (1, 2)) if roll else x
    t = t.reshape(b, h // 7, 7, w // 7, 7, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 49, c)
    t = jax.nn.softmax(t @ t.swapaxes(1, 2)) @ t
    t = t.reshape(b, h // 7, w // 7, 7, 7, c).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
    return x + (jnp.roll(t, (roll, roll), (1, 2)) if roll else t)


def shifted_windows(x):
    return attended(attended(conv(x, 4, 4, "VALID"), 0), 3)


def edged(x, width):
    return mirrored(x, width, "edge")


FOUND = {  # f, size, stride, start, exact
    "vmap over rows": (by_rows, (1, 3), (1, 1), (0, -1), True),
    "row by row": (rows_by_index, (1, 1), (-1, 1), (11, 0), True),
    "mean of a mirror": (lambda x: mirrored(x, 4, "reflect")[:, :3].mean((1, 2)), (3, 10), (0, 0), (2, 0), True),
    "in front of a mirror": (lambda x: mirrored(x, 2, "reflect").mean(1), (12, 1), (0, 1), (0, -2), True),
    "part of a mirror": (lambda x: mirrored(x, 3, "symmetric")[:, 1:3].mean((1, 2)), (2, 10), (0, 0), (0, 0), True),
    "border alone": (lambda x: edged(conv(x), 4)[:, :3].mean((1, 2)), (2, 10), (0, 0), (0, 0), True),
    "around alone": (lambda x: wrapped(x, 4)[:, :3].mean((1, 2)), (3, 10), (0, 0), (8, 0), True),
    "two copies": (lambda x: jnp.tile(x, (1, 2, 1, 1))[:, 14:16].mean((1, 2)), (2, 10), (0, 0), (2, 0), True),
    "several operands": (pool_with_positions, (3, 2), (3, 2), (0, 0), True),
    "two periods": (two_repeats, (3, 1), (NAN, 1), (0, 0), True),
    "two periods, windows": (lambda x: conv(two_repeats(x)), (5, 3), (NAN, 1), (0, -1), True),
    "a new axis": (volume, (3, 3), (1, 1), (-1, -1), True),
    "crop": (lambda x: conv(x[:, 3:9, 2:8]), (3, 3), (1, 1), (2, 1), False),
    "crop of a map": (lambda x: conv(conv(x)[:, 2:-2, 2:-2]), (5, 5), (1, 1), (0, 0), False),
    "crop and back": (lambda x: conv(x[:, 3:9])[:, 1:-1], (3, 3), (1, 1), (3, -1), True),
    "mean of a crop": (lambda x: conv(x[:, 3:9]).mean((1, 2)), (6, 10), (0, 0), (3, 0), True),
    "left over": (lambda x: conv(conv(x, 3, 3, "VALID"), 1, 1, 1), (3, 3), (3, 3), (-3, -3), False),
    "circular transpose": (circular_transpose, (12, 10), (NAN, NAN), (0, 0), True),
    "hole at the border": (lambda x: conv(x, 3, dilation=4)[:, 1:2].mean(1), (5, 9), (0, 1), (1, -4), True),
    "zeros seen by none": (lambda x: conv(jnp.pad(x.mean((1, 2), keepdims=True), [(0, 0), (2, 0), (0, 0), (0, 0)])),
                           (12, 10), (0, 0), (0, 0), True),
    "one row set": (lambda x: conv(x.at[:, 2:5].set(x[:, 6:9]), 1, channels=2), (1, 1), (NAN, 1), (0, 0), True),
    "one row cleared": (lambda x: conv(x.at[:, 3].set(0.0))[:, 3:6].mean((1, 2)), (5, 10), (0, 0), (2, 0), True),
    "rows added": (lambda x: x.at[:, 2].add(conv(x)[:, 5]), (5, 3), (NAN, NAN), (0, 0), True),
    "crop in its mirror": (lambda x: conv(mirrored(x[:, 3:9], 2, "reflect")), (3, 3), (NAN, 1), (4, -3), True),
    "rolled": (rolled, (4, 1), (1, 1), (-2, 0), True),
}  # fmt: skip
FOLDING = ("circular transpose", "rolled")


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found(name):
    f, size, stride, start, exact = FOUND[name]
    found = receptive.extent(f, image_shape(sides=SIDES))["output"]
    assert (found.size, found.start, found.exact) == (size, start, exact)
    np.testing.assert_array_equal(found.stride, stride)


@pytest.mark.parametrize("name", [name for name in FOUND if name not in ("several operands", "row by row")])
def test_what_is_found_against_pixels(name):
    compare(FOUND[name][0], SIDES, folds=name in FOLDING)


@pytest.mark.parametrize("name", ["several operands", "row by row"])
def test_what_is_found_against_changes(name):
    compare_change(FOUND[name][0])


def test_padding_by_a_pixel():
    padding = ((0, 0, 0), (2, 0, 0), (0, 0, 0), (0, 0, 0))
    compare_change(lambda x: lax.pad(x, x[0, 7, 3, 0], padding), exact=False)
    found = receptive.extent(lambda x: lax.pad(jnp.ones((1, 2, 2, 3)), x[0, 7, 3, 0], padding), image_shape())["output"]
    assert (found.size, found.start, found.exact) == ((1, 1), (7, 3), False)


@pytest.mark.parametrize(
    ("indices", "start"),
    [
        (lambda: lax.cumsum(jnp.asarray([1, 2, 1]), reverse=True)[:1], 4),
        (lambda: lax.round(lax.iota(jnp.float32, 1) + 2.5, lax.RoundingMethod.AWAY_FROM_ZERO).astype(jnp.int32), 3),
        (lambda: lax.round(lax.iota(jnp.float32, 1) + 2.5, lax.RoundingMethod.TO_NEAREST_EVEN).astype(jnp.int32), 2),
        (lambda: lax.reshape(lax.reshape(lax.iota(jnp.int32, 6), (2, 3)), (6,), dimensions=(1, 0))[1:2], 3),
        (lambda: lax.pad(lax.iota(jnp.int32, 3) + 2, 0, ((-1, 1, 1),))[1:2], 3),
    ],
)  # fmt: skip
def test_constants_are_what_the_program_computes(indices, start):
    assert int(indices()[0]) == start
    found = receptive.extent(lambda x: jnp.take(x, indices(), 1, mode="clip"), image_shape())["output"]
    assert (found.size, found.start, found.exact) == ((1, 1), (start, 0), True)


@pytest.mark.parametrize(("other", "size"), [(5.0, SIDES), (2.0, (0, 0))])
def test_branches_that_are_numbers(other, size):
    """The choice shows in the value if the numbers differ."""

    def f(x):
        return jnp.broadcast_to(lax.cond(x.sum() > 0, lambda: 2.0, lambda: other), (len(x), 4))

    found = receptive.extent(f, image_shape(sides=SIDES))["output"]
    assert (found.size, found.exact) == (size, True)


def test_shifted_windows_are_alike_along_both_axes():
    found = receptive.extent(shifted_windows, shape_of(1, 56, 56, 3))["output"]
    assert (found.size, found.start, found.stride, found.exact) == ((56, 56), (-28, -28), (4, 4), True)


# Masked kernels


def masked_rows(sides=(3, 3)):
    mask = np.ones((*sides, 3, 3), np.float32)
    mask[2:] = 0
    return mask


def pixel_mask():
    """Nothing below the middle, and nothing right of it in its row."""
    mask = masked_rows()
    mask[1, 2:] = 0
    return mask


def by_constant(x):
    mask = np.arange(3).reshape(3, 1, 1, 1) < 2
    kernel = jnp.where(mask, jnp.abs(normal(3, 3, 3, 3, 3)) + 0.1, 0.0)
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(("mask", "exact"), [(masked_rows, True), (pixel_mask, False)])
@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_masked_convolutions(mask, exact, framework, relaxed_promotion):
    if framework == "nnx":
        network = sj.networks.wrap(nnx.Conv(3, 3, (3, 3), mask=jnp.asarray(mask()), rngs=nnx.Rngs(0)))
    else:
        module = linen.Conv(3, (3, 3), mask=mask())
        network = sj.networks.wrap(module.bind({"params": {"kernel": normal(3, 3, 3, 3, 3), "bias": jnp.zeros(3)}}))
    found = receptive.extent(network, image_shape(sides=SIDES))["output"]
    assert (found.size, found.start, found.exact) == ((2, 3), (-1, -1), exact)
    compare_change(network, exact=exact)
    paths = receptive.constant_weight(network, image_shape(sides=SIDES), tap="output", unit=(5, 5))
    np.testing.assert_allclose(paths[4:7, 4:7], mask().mean((2, 3)))


def test_masks_by_choice_and_masks_that_are_not_known():
    found = receptive.extent(by_constant, image_shape(sides=SIDES))["output"]
    assert (found.size, found.exact) == ((2, 3), True)
    compare_change(by_constant)
    module = ByParameter()
    shapes = jax.eval_shape(module.init, jax.random.key(0), image_shape(sides=SIDES))
    found = receptive.extent(sj.networks.wrap(module.bind(shapes)), image_shape(sides=SIDES))["output"]
    assert (found.size, found.exact) == ((3, 3), False)


@pytest.mark.parametrize("change", [jnp.negative, lax.optimization_barrier, lambda kernel: kernel / 2])
def test_masks_stay_behind_what_keeps_zeros(change):
    f = jax.tree_util.Partial(lambda kernel, x: conv_of(change(kernel * masked_rows()), x), normal(3, 3, 3, 3, 3))
    found = receptive.extent(f, image_shape(sides=SIDES))["output"]
    assert (found.size, found.start, found.exact) == ((2, 3), (-1, -1), True)


class ByParameter(linen.Module):
    """A mask that is a parameter."""

    @linen.compact
    def __call__(self, x):
        kernel, mask = (self.param(name, linen.initializers.ones, (3, 3, 3, 3)) for name in ("kernel", "mask"))
        return conv_of(kernel * mask, x)


def conv_of(kernel, x):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


# Constant weights


@pytest.mark.parametrize("activation", [jax.nn.gelu, jax.nn.silu, lambda x: jnp.tanh(0.5 * x) * x])
def test_activations_hand_on_what_they_get(activation):
    counts = receptive.constant_weight(
        lambda x: activation(conv(activation(conv(x, 3, 2)))), image_shape(), tap="output"
    )
    plain = receptive.constant_weight(lambda x: conv(conv(x, 3, 2)), image_shape(), tap="output")
    np.testing.assert_allclose(counts, plain, rtol=1e-12)


def test_activations_inside_a_scan():
    def network(kernels, x):
        return lax.scan(lambda x, kernel: (conv_of(kernel, jax.nn.gelu(x)), None), x, kernels)[0]

    def linear(kernels, x):
        return lax.scan(lambda x, kernel: (conv_of(kernel, x), None), x, kernels)[0]

    maps = [
        receptive.constant_weight(jax.tree_util.Partial(f, jnp.ones((2, 3, 3, 3, 3))), image_shape(), tap="output")
        for f in (network, linear)
    ]
    np.testing.assert_allclose(*maps, rtol=1e-12)
    assert maps[0].sum() == 81


def test_activations_of_a_view():
    counts = receptive.constant_weight(lambda x: jnp.tanh(x[:, ::-1]) * 0.5, image_shape(), tap="tanh_0", unit=(2, 3))
    assert np.argwhere(counts).tolist() == [[21, 3]]
    assert counts.sum() == 1


def test_averages_that_leave_the_padding_out():
    pool = lambda x: linen.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False)  # noqa: E731
    counts = receptive.constant_weight(pool, image_shape(), tap="output", unit=(11, 9))
    np.testing.assert_allclose(counts.sum(), 1)
    np.testing.assert_allclose(counts[22:, 17:], 0.25)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_network_for_one_size_of_batch(batch):
    fixed = lambda x: conv(x.reshape(batch, *SIDES, 3))  # noqa: E731
    shape = shape_of(batch, *SIDES, 3)
    assert receptive.constant_weight(fixed, shape, tap="conv_0", unit=(5, 5)).sum() == 9


# Errors


def test_what_is_refused(unchecked):
    images = np.ones((2, *SIDES, 3), np.float32)
    effective = lambda x, **options: receptive.effective(conv, x, tap="conv_0", **options)  # noqa: E731
    assert effective(images, channel=np.int64(1)).shape == SIDES
    for unit in (3, (1.5, 2)):
        with pytest.raises(ValueError, match="expected a unit of 'conv_0' as a position"):
            effective(images, unit=unit)
    for channel in (1.5, [], [0, 3]):
        with pytest.raises(ValueError, match="expected channels of 'conv_0'"):
            effective(images, channel=channel)
    with pytest.raises(TypeError, match="expected floating images, got uint8"):
        effective(images.astype(np.uint8))
    with pytest.raises(TypeError, match="expected images, got a shape"):
        effective(shape_of(2, *SIDES, 3))
    with pytest.raises(ValueError, match=r"expected at least one image, got 0, shape \(0, 12, 10, 3\)"):
        effective(images[:0])
    with pytest.raises(ValueError, match=r"expected images .* got shape \(3,\)"):
        receptive.constant_weight(conv, [3], tap="conv_0")
    with pytest.raises(TypeError, match="expected a map as an array, got list"):
        receptive.center([1.0, 2.0])
    with pytest.raises(ValueError, match="expected a width for each of 3 depths, got 2"):
        receptive.growth(np.arange(1, 4), np.ones(2))


def test_boxes_count_on_beyond_the_map():
    assert receptive.extent(conv, image_shape(sides=SIDES))["conv_0"].box((-1, 0)) == ((-2, 1), (-1, 2))
