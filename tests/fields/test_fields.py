"""Displacement fields: golden values, laws of the random fields, calibration, folds, flows, affine maps."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabjax import fields, warp
from tests import GOLDEN_FOLDER

SHAPES = [(40,), (16, 24), (9, 8, 10)]


def golden_field(data, dtype):
    cutoff, n = data["cutoff"].item(), data["size"].item()
    i = np.arange(1, cutoff + 1)
    square = i[:, None] ** 2 + i**2
    amplitude = np.where(square < (cutoff + 0.5) ** 2, 1 / np.sqrt(square), 0)
    # The published code draws dx first, and its first index belongs to x.
    coefficients = np.stack([(data["normals"][1] * amplitude).T, (data["normals"][0] * amplitude).T])
    return fields.synthesize(coefficients.astype(dtype), (n, n), data["temperature"].item())


def all_differences(positions):
    """Determinants of a discrete 2-D map: ((one-sided, at every corner of every cell), (central))."""
    dy, dx = np.diff(positions, axis=-2), np.diff(positions, axis=-1)
    cells = [
        a[..., 0, :, :] * b[..., 1, :, :] - a[..., 1, :, :] * b[..., 0, :, :]
        for a in (dy[..., :-1], dy[..., 1:])
        for b in (dx[..., :-1, :], dx[..., 1:, :])
    ]
    gy, gx = np.gradient(positions, axis=(-2, -1))
    return np.stack(cells), gy[..., 0, :, :] * gx[..., 1, :, :] - gy[..., 1, :, :] * gx[..., 0, :, :]


class TestGolden:
    @pytest.mark.parametrize("name", ["diffeo_n32_c3", "diffeo_n28_c5"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
    def test_field_and_temperature(self, name, dtype, tolerance):
        data = np.load(GOLDEN_FOLDER / f"{name}.npz")
        with jax.enable_x64(dtype == np.float64):
            field = golden_field(data, dtype)
            shape = (data["size"].item(),) * 2
            temperature = fields.temperature(data["delta"].item(), data["cutoff"].item(), shape, convention="paper")
        assert field.dtype == dtype
        np.testing.assert_allclose(field, np.stack([data["dy"], data["dx"]]), rtol=0, atol=tolerance)
        np.testing.assert_allclose(temperature, data["temperature"], rtol=tolerance)

    @pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 1e-4)])
    def test_range_and_displacement(self, x64, tolerance):
        data = np.load(GOLDEN_FOLDER / "temperature.npz")
        with jax.enable_x64(x64):
            for n, cutoff, low, high, typical in zip(*(data[k].tolist() for k in data), strict=True):
                np.testing.assert_allclose(fields.temperature_range(cutoff, (n, n)), (low, high), rtol=tolerance)
                found = fields.displacement(1e-4, cutoff, (n, n), convention="paper")
                np.testing.assert_allclose(found, typical, rtol=tolerance)


class TestCoefficients:
    @pytest.mark.parametrize("ndim", [1, 2, 3])
    def test_same_low_modes_for_any_number_of_modes(self, key, ndim):
        low = np.asarray(fields.coefficients(key, 3, ndim=ndim))
        assert low.shape == (ndim, *(3,) * ndim)
        for max_cutoff in (4, 7):
            more = np.asarray(fields.coefficients(key, 3, max_cutoff=max_cutoff, ndim=ndim))
            assert more.shape == (ndim, *(max_cutoff,) * ndim)
            inner = more[(slice(None), *(slice(3),) * ndim)]
            np.testing.assert_array_equal(inner, low)
            assert np.count_nonzero(more) == np.count_nonzero(low) > 0

    def test_zero_beyond_the_cutoff_only(self, key):
        drawn = np.asarray(fields.coefficients(key, 5, max_cutoff=6))
        i = np.arange(1, 7)
        np.testing.assert_array_equal(drawn[0] != 0, i[:, None] ** 2 + i**2 < 5.5**2)
        assert not np.array_equal(drawn[0], drawn[1])

    def test_variance_is_one_over_square_frequency(self, key):
        drawn = np.asarray(jax.jit(jax.vmap(partial(fields.coefficients, cutoff=3)))(jax.random.split(key, 20_000)))
        i = np.arange(1, 4)
        square = i[:, None] ** 2 + i**2
        expected = np.where(square < 3.5**2, 1 / square, 0)
        np.testing.assert_allclose(np.var(drawn, axis=0), np.stack([expected] * 2), rtol=0.05)
        np.testing.assert_allclose(np.mean(drawn, axis=0), 0, atol=0.025)

    def test_too_few_modes_for_a_traced_cutoff_is_data(self, key):
        draw = jax.jit(lambda cutoff: fields.coefficients(key, cutoff, max_cutoff=3))
        assert np.isnan(draw(4.0)).all()
        np.testing.assert_array_equal(draw(3.0), fields.coefficients(key, 3))
        np.testing.assert_array_equal(draw(2.0)[:, :2, :2], fields.coefficients(key, 2))


class TestLaws:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_zero_temperature_and_still_border(self, key, shape):
        still = fields.sample(key, shape, temperature=0.0, cutoff=3)
        np.testing.assert_array_equal(still, np.zeros((len(shape), *shape)))
        moving = np.asarray(fields.sample(key, shape, temperature=1e-2, cutoff=3))
        for axis in range(1, len(shape) + 1):
            np.testing.assert_allclose(np.take(moving, [0, -1], axis=axis), 0, atol=1e-5)
        assert np.abs(moving).max() > 0.3

    def test_mean_isotropy_and_exact_variance_at_every_pixel(self, key):
        shape, cutoff, temperature, draws = (12, 17), 3, 2e-3, 20_000
        draw = jax.jit(jax.vmap(partial(fields.sample, shape=shape, temperature=temperature, cutoff=cutoff)))
        tau = np.asarray(draw(jax.random.split(key, draws)), np.float64)
        s, t = (np.sin(np.pi * np.arange(1, 4)[:, None] * np.linspace(0, 1, n)) for n in shape)
        variance = np.zeros(shape)
        for i in range(3):
            for j in range(3):
                square = (i + 1) ** 2 + (j + 1) ** 2
                if square < 3.5**2:
                    variance += np.outer(s[i] ** 2, t[j] ** 2) / square
        variance *= temperature * 12 * 17  # the square of the geometric mean of the sides
        inner = (slice(1, -1), slice(1, -1))
        error = np.sqrt(variance[inner] / draws)
        assert np.abs(tau.mean(0)[:, *inner] / error).max() < 5
        for component in tau.var(0):
            np.testing.assert_allclose(component[inner], variance[inner], rtol=0.06)
        correlation = np.mean(tau[:, 0] * tau[:, 1], axis=0)[inner] / variance[inner]
        assert np.abs(correlation).max() < 5 / np.sqrt(draws)

    @pytest.mark.parametrize(("shape", "cutoff"), [((16, 16), 3), ((12, 20), 5), ((24,), 4), ((6, 7, 8), 2)])
    def test_displacement_as_asked(self, key, shape, cutoff):
        temperature = fields.temperature(1.3, cutoff, shape)

        def square(key):
            return jnp.mean(jnp.sum(fields.sample(key, shape, temperature=temperature, cutoff=cutoff) ** 2, axis=0))

        squares = jax.jit(partial(jax.lax.map, square, batch_size=1000))(jax.random.split(key, 20_000))
        np.testing.assert_allclose(np.sqrt(np.mean(squares)), 1.3, rtol=0.01)

    def test_jit_eager_vmap_and_repeat_agree(self, key):
        def draw(key, temperature):
            return fields.sample(key, (8, 9), temperature=temperature, cutoff=3)

        keys, temperatures = jax.random.split(key, 3), jnp.array([1e-3, 2e-3, 3e-3])
        batch = np.asarray(jax.jit(jax.vmap(draw))(keys, temperatures))
        jitted = jax.jit(draw)
        for k, temperature, expected in zip(keys, temperatures, batch):
            np.testing.assert_allclose(draw(k, temperature), expected, atol=1e-6)
            np.testing.assert_allclose(jitted(k, temperature), expected, atol=1e-6)
            np.testing.assert_array_equal(jitted(k, temperature), jitted(k, temperature))
        assert not np.allclose(batch[0], batch[1])

    def test_one_compile_for_a_sweep(self, key):
        chex.clear_trace_counter()

        @jax.jit
        @chex.assert_max_traces(n=1)
        def draw(temperature, cutoff):
            return fields.sample(key, (16, 16), temperature=temperature, cutoff=cutoff, max_cutoff=6)

        for cutoff in (1, 3, 6):
            for temperature in (0.0, 1e-4, 1e-3):
                expected = fields.sample(key, (16, 16), temperature=temperature, cutoff=cutoff)
                np.testing.assert_allclose(draw(temperature, cutoff), expected, atol=1e-5)

    def test_gradient_by_temperature(self, key):
        @jax.jit
        def energy(temperature):
            return jnp.sum(fields.sample(key, (8, 8), temperature=temperature, cutoff=3) ** 2)

        # The energy is proportional to the temperature.
        gradient = jax.jit(jax.grad(energy))
        np.testing.assert_allclose(gradient(2e-3), energy(1.0), rtol=1e-4)
        assert gradient(0.0) == 0
        assert np.isnan(energy(-1.0))

    def test_dtype_follows_x64(self, key, x64):
        assert fields.sample(key, (8, 8), temperature=1e-3, cutoff=3).dtype == jnp.float64


class TestCalibration:
    @given(st.floats(0.01, 20), st.sampled_from([2, 7]), st.sampled_from([*SHAPES, (32, 32)]))
    def test_temperature_and_displacement_are_inverse(self, delta, cutoff, shape):
        found = fields.displacement(fields.temperature(delta, cutoff, shape), cutoff, shape)
        np.testing.assert_allclose(found, delta, rtol=1e-5)

    def test_known_sizes_of_a_nominal_pixel(self):
        for n, cutoff, expected in [(32, 2, 0.881), (32, 3, 0.816), (32, 5, 0.835), (32, 15, 0.862), (28, 3, 0.812)]:
            temperature = fields.temperature(1.0, cutoff, (n, n), convention="paper")
            np.testing.assert_allclose(fields.displacement(temperature, cutoff, (n, n)), expected, atol=6e-4)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_mode_sums_beyond_the_grid(self, x64, shape):
        # With more modes than pixels the sines alias; the sum must still be that of the grid.
        cutoff = 12
        i = np.arange(1, cutoff + 1)
        square, profile = np.zeros(()), np.ones(())
        for n in shape:
            power = np.mean(np.sin(np.pi * i[:, None] * np.arange(n) / (n - 1)) ** 2, axis=1)
            square = square[..., None] + i**2
            profile = profile[..., None] * power
        total = np.sum(np.where(square < (cutoff + 0.5) ** 2, profile / square, 0))
        expected = np.sqrt(1e-4 * total * len(shape)) * np.prod(shape) ** (1 / len(shape))
        np.testing.assert_allclose(fields.displacement(1e-4, cutoff, shape), expected, rtol=1e-12)

    def test_one_compile_for_a_sweep(self):
        chex.clear_trace_counter()

        @jax.jit
        @chex.assert_max_traces(n=1)
        def calibrate(delta, cutoff):
            return fields.temperature(delta, cutoff, (20, 24), max_cutoff=9)

        for cutoff in (1, 4, 9):
            np.testing.assert_allclose(calibrate(0.5, cutoff), fields.temperature(0.5, cutoff, (20, 24)), rtol=1e-5)
        assert np.isnan(calibrate(0.5, 10))

    def test_no_mode_in_three_dimensions_at_cutoff_one(self):
        assert np.isnan(jax.jit(lambda c: fields.temperature(1.0, c, (8, 8, 8), max_cutoff=2))(1))

    def test_paper_is_undefined_at_cutoff_one(self):
        with pytest.raises(ValueError, match="above 1"):
            fields.temperature(1.0, 1, (32, 32), convention="paper")
        with pytest.raises(ValueError, match="above 1"):
            fields.temperature_range(1, (32, 32))
        assert np.isnan(jax.jit(lambda c: fields.temperature(1.0, c, (32, 32), convention="paper"))(1))
        assert np.isnan(jax.jit(lambda c: fields.temperature_range(c, (32, 32)))(1)).all()

    def test_range_by_mode_sums(self):
        low, high = fields.temperature_range(4, (32, 40), convention="rms")
        np.testing.assert_allclose(fields.displacement(low, 4, (32, 40)), 0.5, rtol=1e-5)
        np.testing.assert_allclose(fields.displacement(high, 4, (32, 40)), np.sqrt(32 * 40) / (4 * np.pi), rtol=1e-5)
        low, high = fields.temperature_range(21, (32, 32))
        assert low > high


class TestJacobian:
    @pytest.mark.parametrize("shape", [(11,), (9, 12), (6, 7, 8)])
    def test_finite_differences_of_a_fine_synthesis(self, key, x64, shape):
        ndim, times, temperature = len(shape), 200 if len(shape) < 3 else 24, 5e-3
        coefficients = fields.coefficients(key, 3, ndim=ndim)
        found = fields.jacobian_determinant(coefficients, shape, temperature)
        fine = tuple((n - 1) * times + 1 for n in shape)
        scale = np.prod(shape) ** (1 / ndim) / np.prod(fine) ** (1 / ndim)  # pixels of the coarse grid
        tau = np.asarray(fields.synthesize(coefficients, fine, temperature)) * scale
        gradient = np.stack([np.gradient(tau, 1 / times, axis=axis, edge_order=2) for axis in range(1, ndim + 1)], 1)
        coarse = gradient[(slice(None), slice(None), *(slice(None, None, times),) * ndim)]
        jacobian = np.eye(ndim) - np.moveaxis(coarse, (0, 1), (-2, -1))
        np.testing.assert_allclose(found, np.linalg.det(jacobian), atol=3e-4 if ndim < 3 else 2e-2)

    def test_fold_probabilities_of_the_published_limit(self, key):
        @jax.jit
        def estimate(cutoff):
            hottest = fields.temperature_range(cutoff, (32, 32))[1]
            return fields.fold_probability(
                (32, 32), key=key, temperature=hottest, cutoff=cutoff, samples=2000, max_cutoff=15
            )

        for cutoff, expected in [(2, 0.57), (3, 0.37), (5, 0.32), (10, 0.17), (15, 0.08)]:
            found = estimate(cutoff)
            value, error = float(found.value), float(found.standard_error)
            np.testing.assert_allclose(error, np.sqrt(value * (1 - value) / 2000), rtol=1e-4)
            assert abs(value - expected) < 3 * error + 0.012

    def test_certain_cases(self, key):
        never = fields.fold_probability((16, 16), key=key, temperature=0.0, cutoff=3, samples=50)
        always = fields.fold_probability((16, 16), key=key, temperature=1.0, cutoff=3, samples=50)
        assert (never.value, never.standard_error, always.value) == (0, 0, 1)


compressed = jax.jit(lambda strength: fields.affine((9, 12), compression=strength))


class TestFlow:
    def test_exponential_never_folds(self, key):
        shape = (32, 32)
        grid = np.indices(shape)

        @jax.jit
        @partial(jax.vmap, in_axes=(0, None))
        def draw(key, cutoff):
            hottest = fields.temperature_range(cutoff, shape)[1]
            velocity = fields.sample(key, shape, temperature=1.5 * hottest, cutoff=cutoff, max_cutoff=15)
            return velocity, fields.exponential(velocity)

        for cutoff in (2, 3, 5, 10, 15):
            velocity, flow = map(np.asarray, draw(jax.random.split(key, 60), cutoff))
            cells, central = all_differences(grid - flow)
            assert cells.min() > 0, cutoff
            assert central.min() > 0, cutoff
            cells, _ = all_differences(grid - velocity)
            assert cells.min() < 0, cutoff

    def test_exponential_of_large_one_dimensional_fields_is_monotone(self, key):
        velocity = np.asarray(fields.sample(key, (64,), temperature=0.5, cutoff=4))
        assert np.diff(np.arange(64) - np.asarray(velocity[0])).min() < -1
        assert np.diff(np.arange(64) - np.asarray(fields.exponential(velocity)[0])).min() >= 0

    def test_exponential_of_an_affine_field(self, x64):
        velocity, expected = (np.asarray(compressed(s)) for s in (0.3, 1 - (1 - 0.3 / 2**8) ** 2**8))
        np.testing.assert_allclose(fields.exponential(velocity), expected, atol=1e-12)
        np.testing.assert_allclose(
            fields.exponential(velocity, squarings=16), (1 - np.exp(-0.3)) / 0.3 * velocity, atol=1e-4
        )

    @pytest.mark.parametrize("shape", SHAPES)
    def test_exponential_of_the_opposite_is_the_inverse(self, key, shape):
        velocity = fields.sample(key, shape, temperature=fields.temperature(0.35, 2, shape), cutoff=2)
        velocity = np.asarray(velocity)
        there, back = fields.exponential(velocity), fields.exponential(-velocity)
        np.testing.assert_allclose(fields.invert(there).field, back, atol=0.05)
        assert np.abs(np.asarray(there)).max() > 0.3

    def test_inverse_in_closed_form(self, x64):
        # (1 + a) s, undone by s / (1 + a); both stay on affine functions, where interpolation is exact.
        inverse = fields.invert(compressed(-0.25))
        np.testing.assert_allclose(inverse.field, compressed(0.25 / 1.25), atol=1e-12)
        assert inverse.residual < 1e-12

    @pytest.mark.parametrize("shape", SHAPES)
    def test_residual(self, key, shape):
        gentle = np.asarray(fields.sample(key, shape, temperature=fields.temperature(0.5, 2, shape), cutoff=2))
        assert fields.invert(gentle).residual < 1e-4
        assert fields.invert(gentle, steps=1).residual > 1e-3
        if len(shape) == 2:
            assert fields.invert(30 * gentle).residual > 0.1

    def test_there_and_back(self, key):
        tau = fields.sample(key, (48, 48), temperature=fields.temperature(1.5, 3, (48, 48)), cutoff=3)
        s = np.linspace(0, np.pi, 48, dtype=np.float32)
        image = (np.sin(s)[:, None] * np.cos(s))[..., None]
        moved = np.asarray(warp.pull_back(image, tau, interpolation="cubic"))
        back = warp.pull_back(moved, fields.invert(tau).field, interpolation="cubic")
        assert np.abs(moved - image).max() > 0.05
        np.testing.assert_allclose(back, image, atol=0.01)

    def test_zero_and_derivatives(self):
        zero = jnp.zeros((2, 8, 8))
        np.testing.assert_array_equal(fields.exponential(zero), zero)
        np.testing.assert_array_equal(fields.invert(zero).field, zero)
        for f in (fields.exponential, lambda v: fields.invert(v, steps=5).field):
            assert np.isfinite(jax.jit(jax.grad(lambda v, f=f: jnp.sum(f(v))))(zero)).all()


class TestAffine:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-4)])
    @pytest.mark.parametrize(
        ("name", "strengths"),
        [
            ("translate", {"translation": (-0.6, 1.3)}),
            ("rotate", {"rotation": np.deg2rad(7.0).item()}),
            ("compress", {"compression": 0.08}),
            ("shear", {"shear": (0.06, -0.04)}),
        ],
    )
    def test_golden(self, name, strengths, dtype, tolerance):
        data = np.load(GOLDEN_FOLDER / "affine.npz")

        @jax.jit
        def moved(images):
            tau = fields.affine((24, 24), **strengths, center=(11.5, 11.5))
            return jax.vmap(partial(warp.pull_back, field=tau))(images)

        with jax.enable_x64(dtype == np.float64):
            found = moved(data["image"].astype(dtype))
        np.testing.assert_allclose(found, data[name], rtol=0, atol=tolerance)

    def test_a_quarter_turn_is_counterclockwise(self, x64):
        image = np.random.default_rng(0).normal(size=(9, 9, 2))
        turned = jax.jit(lambda image: warp.pull_back(image, fields.affine((9, 9), rotation=np.pi / 2)))(image)
        np.testing.assert_allclose(turned, np.rot90(image), atol=1e-12)

    def test_positive_translation_moves_the_picture_forward(self):
        image = np.random.default_rng(0).normal(size=(7, 8, 1)).astype(np.float32)
        moved = jax.jit(lambda image: warp.pull_back(image, fields.affine((7, 8), translation=(2.0, 1.0))))(image)
        moved = np.asarray(moved)
        np.testing.assert_allclose(moved[2:, 1:], image[:-2, :-1], atol=1e-6)

    def test_parts_add_up_and_may_be_traced(self):
        parts = {"translation": (0.2, -0.3), "rotation": 0.1, "compression": -0.2, "shear": (0.05, 0.1)}
        together = np.asarray(fields.affine((6, 9), **parts, center=(1.0, 2.0)))
        apart = sum(np.asarray(fields.affine((6, 9), **{k: v}, center=(1.0, 2.0))) for k, v in parts.items())
        np.testing.assert_allclose(together, apart, atol=1e-5)
        traced = jax.jit(lambda parts: fields.affine((6, 9), **parts, center=(1.0, 2.0)))(parts)
        np.testing.assert_allclose(traced, together, atol=1e-6)
        np.testing.assert_allclose(together[:, 1, 2], parts["translation"], atol=1e-6)

    def test_other_ranks(self):
        np.testing.assert_allclose(fields.affine((5,), translation=2.0, compression=0.5)[0], 2 + 0.5 * np.arange(-2, 3))
        assert fields.affine((3, 4, 5), translation=(1.0, 2.0, 3.0)).shape == (3, 3, 4, 5)
        with pytest.raises(ValueError, match="two spatial axes"):
            fields.affine((5,), rotation=0.1)


@pytest.mark.usefixtures("unchecked")
class TestErrors:
    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (lambda k: fields.coefficients(k, 0), "cutoff >= 1"),
            (lambda k: fields.coefficients(k, -1), "cutoff >= 0"),
            (lambda k: fields.coefficients(k, 1, ndim=3), "no mode of 3 axes"),
            (lambda k: fields.coefficients(k, float("nan")), "finite cutoff"),
            (lambda k: fields.coefficients(k, 5, max_cutoff=4), "cutoff <= max_cutoff"),
            (lambda k: fields.coefficients(k, 3, max_cutoff=0), "max_cutoff >= 1"),
            (lambda k: fields.coefficients(k, 3, ndim=4), "ndim 1, 2 or 3"),
            (lambda k: jax.jit(lambda c: fields.coefficients(k, c))(3), "max_cutoff beside a traced cutoff"),
            (lambda k: fields.coefficients(k, np.array([2, 3])), "scalar cutoff"),
            (lambda k: fields.sample(k, (8, 8), temperature=-1.0, cutoff=3), "temperature >= 0"),
            (lambda k: fields.sample(k, (8, 8), temperature=np.ones(3), cutoff=3), "scalar temperature"),
            (lambda k: fields.sample(k, (8, 1), temperature=1.0, cutoff=3), "at least 2 pixels"),
            (lambda k: fields.sample(k, (), temperature=1.0, cutoff=3), "one to three sides"),
            (lambda k: fields.sample(k, (4, 4, 4, 4), temperature=1.0, cutoff=3), "one to three sides"),
            (lambda k: fields.synthesize(jnp.ones((2, 3, 3)), (8,), 1.0), r"shape \(1, m\)"),
            (lambda k: fields.jacobian_determinant(jnp.ones((1, 3, 3)), (8, 8), 1.0), r"shape \(2, m, m\)"),
            (lambda k: fields.temperature(-1.0, 3, (8, 8)), "displacement >= 0"),
            (lambda k: fields.temperature(1.0, 3, (8, 8), convention="l2"), "convention out of"),
            (lambda k: fields.temperature(1.0, 3, (8,), convention="paper"), "two spatial axes"),
            (lambda k: fields.fold_probability((8, 8), key=k, temperature=1.0, cutoff=3, samples=0), "one sample"),
            (lambda k: fields.exponential(jnp.ones((3, 8, 8))), r"\(ndim, \*spatial\)"),
            (lambda k: fields.exponential(jnp.ones((2, 8, 8)), squarings=-1), "squarings >= 0"),
            (lambda k: fields.invert(jnp.ones((2, 8, 8)), steps=0), "steps >= 1"),
            (lambda k: fields.affine((8, 8), translation=(1.0, 2.0, 3.0)), "translation of length 2"),
            (lambda k: fields.affine((8, 8), center=(1.0,)), "center of length 2"),
        ],
    )
    def test_says_what_was_expected(self, key, call, match):
        with pytest.raises(ValueError, match=match):
            call(key)
