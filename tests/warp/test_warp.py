"""Pulling an image back: golden values, plain loops, exact cases, dtypes, derivatives, bad input."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from stabjax import warp
from tests import GOLDEN_FOLDER

SHAPES = [(17,), (7, 10), (5, 4, 6)]
LARGE_SHAPES = [(34,), (14, 20), (10, 8, 12)]
KINDS = ["linear", "nearest", "gaussian", "cubic"]
EVERYWHERE = [(kind, ndim) for kind in KINDS for ndim in (1, 2, 3) if (kind, ndim) != ("gaussian", 3)]


def example(key, shape, *, channels=2, size=3.0):
    """An image, and a field that also leaves it."""
    rng, dtype = np.random.default_rng(np.asarray(jax.random.key_data(key))), jnp.result_type(float)
    image, field = rng.normal(size=(*shape, channels)), size * rng.normal(size=(len(shape), *shape))
    return jnp.asarray(image, dtype), jnp.asarray(field, dtype)


def plain(image, field, kind):
    """Every pixel by itself, every weight over the whole image."""
    image, field = np.asarray(image, np.float64), np.asarray(field, np.float64)
    shape = image.shape[:-1]
    out = np.zeros_like(image)
    for s in np.ndindex(*shape):
        weights = []
        for axis, n in enumerate(shape):
            p = min(max(s[axis] - field[(axis, *s)], 0.0), n - 1.0)
            d = np.arange(n) - p
            if kind == "linear":
                w = np.maximum(0, 1 - np.abs(d))
            elif kind == "nearest":
                w = (np.arange(n) == np.round(p)).astype(float)
            elif kind == "gaussian":
                w = np.exp(-(d**2) / (2 * 0.4715**2))
                w /= w.sum()
            else:
                padded = np.abs(np.arange(-2, n + 2) - p)
                near, far = 1.5 * padded**3 - 2.5 * padded**2 + 1, -0.5 * padded**3 + 2.5 * padded**2 - 4 * padded + 2
                padded = np.where(padded <= 1, near, np.where(padded < 2, far, 0))
                w = padded[2:-2]
                w[0] += padded[:2].sum()
                w[-1] += padded[-2:].sum()
            weights.append(w)
        out[s] = np.einsum(image, range(image.ndim), *itertools.chain(*zip(weights, ([i] for i in range(len(shape))))))
    return out


class TestValues:
    @pytest.mark.parametrize("name", ["diffeo_n32_c3", "diffeo_n28_c5"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
    def test_golden(self, name, dtype, tolerance):
        data = np.load(GOLDEN_FOLDER / f"{name}.npz")
        field = np.stack([data["dy"], data["dx"]]).astype(dtype)
        with jax.enable_x64(dtype == np.float64):
            for kind in ("linear", "nearest", "gaussian"):
                found = warp.pull_back(data["image"].astype(dtype), field, interpolation=kind)
                assert found.dtype == dtype
                np.testing.assert_allclose(found, data[kind], rtol=0, atol=tolerance)

    @pytest.mark.parametrize(("kind", "ndim"), EVERYWHERE)
    def test_plain_loop(self, key, x64, kind, ndim):
        image, field = example(key, SHAPES[ndim - 1])
        found = warp.pull_back(image, field, interpolation=kind)
        np.testing.assert_allclose(found, plain(image, field, kind), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("shape", LARGE_SHAPES)
    def test_scipy(self, shape):
        @given(st.integers(0, 2**32 - 1), st.floats(0, 30, width=32))
        def check(seed, size):
            image, field = example(jax.random.key(seed), shape, size=size)
            found = np.asarray(warp.pull_back(image, field))
            image, positions = np.asarray(image), np.indices(shape) - np.asarray(field, np.float64)
            for channel in range(2):
                expected = scipy.ndimage.map_coordinates(image[..., channel], positions, order=1, mode="nearest")
                np.testing.assert_allclose(found[..., channel], expected, atol=2e-5)

        check()

    @pytest.mark.parametrize(("kind", "ndim"), [case for case in EVERYWHERE if case[0] != "gaussian"])
    def test_zero_field_is_the_identity(self, key, kind, ndim):
        image, field = example(key, LARGE_SHAPES[ndim - 1])
        np.testing.assert_array_equal(warp.pull_back(image, np.zeros_like(field), interpolation=kind), image)

    @pytest.mark.parametrize(("kind", "ndim"), EVERYWHERE)
    def test_integer_shift_is_a_roll_inside(self, key, kind, ndim):
        shape = LARGE_SHAPES[ndim - 1]
        image, field = example(key, shape)
        shift = tuple(range(1, len(shape) + 1))
        still = np.asarray(warp.pull_back(image, np.zeros_like(field), interpolation=kind))
        steady = np.stack([np.full(shape, step, np.float32) for step in shift])
        moved = np.asarray(warp.pull_back(image, steady, interpolation=kind))
        # The Gaussian is normalized over what lies in the image, so it needs its width as margin.
        low = 3 if kind == "gaussian" else 0
        inside = tuple(slice(step + low, n - low) for step, n in zip(shift, shape))
        rolled = np.roll(still, shift, axis=range(len(shape)))
        assert rolled[inside].size > 0
        np.testing.assert_allclose(moved[inside], rolled[inside], atol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_polynomials_and_constants(self, key, x64, kind):
        _, field = example(key, (12, 15), size=0.4)
        y, x = (np.indices((12, 15)) - np.asarray(field)).clip(np.zeros((2, 1, 1)), np.array([11, 14])[:, None, None])
        degree = {"linear": 1, "cubic": 2}.get(kind, 0)

        def polynomial(y, x):
            return (2 + (y + 2 * x) * (degree > 0) + (0.3 * x**2 - 0.2 * x * y + y**2) * (degree > 1))[..., None]

        image = polynomial(*np.indices((12, 15)).astype(float))
        found = warp.pull_back(image, field, interpolation=kind)
        margin = slice(3, -3) if kind == "cubic" else slice(None)  # the repeated border pixel is no polynomial
        np.testing.assert_allclose(found[margin, margin], polynomial(y, x)[margin, margin], atol=1e-9)

    @pytest.mark.parametrize("kind", KINDS)
    def test_sides_of_one_pixel(self, kind):
        image = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
        field = np.full((2, 3, 1), 0.25, np.float32)
        column = warp.pull_back(image[:, 0], field[:1, :, 0], interpolation=kind)
        np.testing.assert_allclose(warp.pull_back(image, field, interpolation=kind)[:, 0], column, atol=1e-6)


class TestPrograms:
    @pytest.mark.parametrize("kind", KINDS)
    def test_jit_eager_and_vmap_agree(self, key, kind):
        images, fields = map(np.stack, zip(*(example(k, (6, 9)) for k in jax.random.split(key, 3))))
        one = partial(warp.pull_back, interpolation=kind)
        batch = np.asarray(jax.jit(jax.vmap(one))(images, fields))
        for image, field, expected in zip(images, fields, batch):
            np.testing.assert_allclose(one(jnp.asarray(image), jnp.asarray(field)), expected, atol=1e-6)
            np.testing.assert_allclose(jax.jit(one)(image, field), expected, atol=1e-6)
        shared = jax.vmap(one, in_axes=(None, 0))(images[0], fields)
        np.testing.assert_allclose(np.asarray(shared)[0], batch[0], atol=1e-6)

    def test_one_compile(self, key):
        chex.clear_trace_counter()
        image, field = example(key, (6, 9))
        pull = jax.jit(chex.assert_max_traces(warp.pull_back, n=1))
        for size in (0.0, 1.0, 50.0):
            pull(image, size * field)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_narrow_images_keep_their_dtype_and_are_moved_exactly(self, key, kind, dtype):
        image, field = example(key, (6, 300), size=0.5)
        narrow = image.astype(dtype)
        found = warp.pull_back(narrow, field, interpolation=kind)
        assert found.dtype == dtype
        # Positions near 300 would be wrong by a pixel in bfloat16. The values are those in single precision, which two
        # programs round alike to its last digit only, rounded once: off by half a digit of the narrow type at most.
        exact = np.asarray(warp.pull_back(narrow.astype(jnp.float32), field, interpolation=kind))
        half = np.abs(exact) * float(jnp.finfo(dtype).eps) / 2 + float(jnp.finfo(dtype).smallest_subnormal) / 2
        rounding = 4 * np.finfo(np.float32).eps * np.abs(np.asarray(image)).max()
        assert (np.abs(np.asarray(found, np.float32) - exact) <= half + rounding).all()

    def test_mixed_widths(self, key, x64):
        image, field = example(key, (6, 9))
        expected = warp.pull_back(image, field)
        assert warp.pull_back(image.astype(jnp.float32), field).dtype == jnp.float32
        np.testing.assert_allclose(warp.pull_back(image.astype(jnp.float32), field), expected, atol=1e-5)
        np.testing.assert_allclose(warp.pull_back(image, field.astype(jnp.float32)), expected, atol=1e-5)


@partial(jax.jit, static_argnums=2)
def gradients(image, field, kind):
    """Of a sum over the moved image with weights, by the image and by the field."""
    weights = np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
    return jax.grad(lambda x, f: jnp.sum(weights * warp.pull_back(x, f, interpolation=kind)), (0, 1))(image, field)


class TestDerivatives:
    @pytest.mark.parametrize("kind", ["linear", "gaussian", "cubic"])
    def test_by_image_and_field(self, key, x64, kind):
        image, field = example(key, (5, 7), channels=1, size=0.3)
        check_grads(partial(warp.pull_back, interpolation=kind), (image, field), order=1, eps=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_finite_at_the_zero_field(self, key, kind):
        image, field = example(key, (5, 7))
        gradient = np.asarray(gradients(image, np.zeros_like(field), kind)[1])
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max() > 0) == (kind != "nearest")

    def test_one_sided_at_the_pixels(self):
        image = jnp.array([0.0, 1.0, 3.0, 7.0])[:, None]
        slope = jax.vmap(jax.grad(lambda t: warp.pull_back(image, jnp.full((1, 4), t))[1, 0]))(jnp.array([0.0, 1e-3]))
        np.testing.assert_allclose(slope, [-2.0, -1.0], rtol=1e-4)


class TestNumericTrouble:
    @pytest.mark.parametrize("kind", KINDS)
    def test_nan_stays_where_it_is(self, key, kind):
        image, field = example(key, (9, 20), size=0.3)
        where = np.zeros((9, 20), bool)
        where[4, 6] = True
        field_with_hole, image_with_hole = np.array(field), np.array(image)
        field_with_hole[:, where] = image_with_hole[where] = np.nan
        found = np.asarray(warp.pull_back(image, field_with_hole, interpolation=kind))
        np.testing.assert_array_equal(np.isnan(found).all(-1), where)
        found = np.asarray(warp.pull_back(image_with_hole, field, interpolation=kind))
        assert np.isnan(found[3:6, 5:8]).any()
        assert np.isfinite(found[:, 12:]).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradient_by_the_image_with_a_nan_field(self, key, kind):
        image, field = example(key, (5, 7))
        assert np.isnan(gradients(image, np.full_like(field, np.nan), kind)[0]).any()

    @pytest.mark.parametrize("kind", ["linear", "nearest"])
    def test_infinitely_far_is_the_border(self, key, kind):
        image, field = example(key, (5, 7))
        found = warp.pull_back(image, np.full_like(field, np.inf), interpolation=kind)
        np.testing.assert_array_equal(found, np.broadcast_to(np.asarray(image)[0, 0], image.shape))


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    @pytest.mark.parametrize(
        ("image", "field", "kind", "error", "match"),
        [
            (np.zeros((4, 5, 1), np.uint8), np.zeros((2, 4, 5)), "linear", TypeError, "floating image, got uint8"),
            (np.zeros((4, 5, 1)), np.zeros((2, 4, 5), int), "linear", TypeError, "floating field, got int32"),
            (np.zeros((4, 5, 1)), np.zeros((2, 5, 4)), "linear", ValueError, r"shape \(2, 4, 5\)"),
            (np.zeros((9, 4, 5, 1)), np.zeros((9, 2, 4, 5)), "linear", ValueError, "jax.vmap"),
            (np.zeros(4), np.zeros((1, 4)), "linear", ValueError, "one to three spatial axes"),
            (np.zeros((2, 2, 2, 2, 1)), np.zeros((4, 2, 2, 2, 2)), "linear", ValueError, "one to three spatial axes"),
            (np.zeros((4, 5, 1)), np.zeros((2, 4, 5)), "spline", ValueError, "interpolation out of"),
            (np.zeros((4, 5, 6, 1)), np.zeros((3, 4, 5, 6)), "gaussian", ValueError, "one or two spatial axes"),
        ],
    )
    def test_says_what_was_expected(self, image, field, kind, error, match):
        with pytest.raises(error, match=match):
            warp.pull_back(image, field, interpolation=kind)
