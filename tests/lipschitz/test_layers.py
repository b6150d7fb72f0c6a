"""Norms of layers against singular values of the operator written out entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import lipschitz
from stabjax.lipschitz import _circulant, _gram
from tests import GOLDEN_FOLDER
from tests.lipschitz.helpers import KINDS, hard_matrix, norm, operator, random_array

GOLDEN = dict(np.load(GOLDEN_FOLDER / "conv_spectral_norm.npz"))


GEOMETRIES = {
    "plain": ((3, 3, 2, 3), 5, {}),
    "circular": ((3, 3, 3, 2), (4, 5), {"padding": "circular"}),
    "even window": ((2, 4, 2, 2), (5, 6), {}),
    "valid": ((3, 2, 2, 2), 6, {"padding": "valid"}),
    "full": ((3, 3, 2, 2), 4, {"padding": 2}),
    "more padding than window": ((2, 2, 1, 2), 3, {"padding": ((3, 2), (0, 4))}),
    "stride": ((3, 3, 2, 2), 7, {"stride": 2}),
    "circular stride": ((3, 3, 2, 3), (4, 6), {"padding": "circular", "stride": 2}),
    "circular stride that does not fit": ((3, 3, 2, 2), 5, {"padding": "circular", "stride": 2}),
    "stride of two sizes": ((5, 3, 1, 2), (9, 6), {"stride": (3, 2), "padding": ((1, 2), (1, 0))}),
    "patches": ((2, 2, 2, 3), 6, {"stride": 2, "padding": "valid"}),
    "gaps": ((2, 2, 2, 2), 6, {"stride": 3, "padding": "valid"}),
    "dilated": ((3, 3, 2, 2), 7, {"dilation": 2}),
    "dilated, strided": ((3, 2, 2, 2), 8, {"dilation": (2, 3), "stride": 2}),
    "groups": ((3, 3, 2, 6), 5, {"groups": 3}),
    "depthwise": ((3, 3, 1, 4), 5, {"groups": 4, "stride": 2}),
    "window larger than image": ((5, 5, 2, 2), 2, {}),
    "window wraps around": ((5, 4, 2, 2), 3, {"padding": "circular"}),
    "one pixel": ((3, 3, 2, 2), 1, {}),
    "pointwise": ((1, 1, 3, 4), 3, {}),
    "signal": ((4, 2, 3), 9, {"stride": 2}),
    "volume": ((2, 3, 2, 2, 2), (3, 4, 2), {"stride": (1, 2, 1)}),
    "sees nothing": ((1, 2, 2), 3, {"padding": 5, "stride": 10}),
}
EXACT = {"circular", "circular stride", "patches", "gaps", "window wraps around", "pointwise", "one pixel"}
SMALL = {"window larger than image"}
"""The torus is much larger than the image."""
LONG = {
    "full",
    "gaps",
    "valid",
    "even window",
    "dilated",
    "groups",
    "signal",
    "one pixel",
    "pointwise",
    "plain",
    "stride",
}
"""Cases whose parts others cover too."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in GEOMETRIES])
def test_convolutions_written_out(name):
    shape, size, options = GEOMETRIES[name]
    kernel = random_array(1, *shape)
    true = norm(operator(kernel, size, **options))
    above = lipschitz.conv(kernel, size, steps=1, **options)
    assert (above.kind, above.certified) == ("upper", True)
    assert above.value.dtype == jnp.float32
    assert true <= float(above.value) <= (2 if name in SMALL else 1.5) * true
    if name in EXACT:
        exact = lipschitz.conv(kernel, size, method="exact", **options)
        assert (exact.kind, exact.certified) == ("exact", False)
        np.testing.assert_allclose(exact.value, true, rtol=2e-6)
    else:
        with pytest.raises(ValueError, match="'gram' bounds it from above and 'power' from below"):
            lipschitz.conv(kernel, size, method="exact", **options)


POWER = {"circular", "window wraps around", "depthwise", "volume", "dilated, strided", "more padding than window"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in POWER)) for n in GEOMETRIES])
def test_power_iteration_on_convolutions(name):
    shape, size, options = GEOMETRIES[name]
    kernel = random_array(1, *shape)
    true = norm(operator(kernel, size, **options))
    below = lipschitz.conv(kernel, size, method="power", **options)
    assert (below.kind, below.certified) == ("lower", False)
    assert 0.97 * true <= float(below.value) <= (1 + 1e-5) * true


# Published values


@pytest.mark.parametrize("k", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2])
def test_golden_bounds(k, x64):
    kernel, size, stride = (GOLDEN[f"{name}_{k}"] for name in ("kernel", "size", "stride"))
    zero = GOLDEN[f"zero_singular_values_{k}"][0]
    assert zero <= float(lipschitz.conv(kernel, int(size), stride=int(stride)).value) <= 1.1 * zero


@pytest.mark.parametrize("k", range(3))
def test_golden(k, x64):
    kernel, size, stride = (GOLDEN[f"{name}_{k}"] for name in ("kernel", "size", "stride"))
    circular = GOLDEN[f"circular_singular_values_{k}"][0]
    found = lipschitz.conv(kernel, int(size), stride=int(stride), padding="circular", method="exact")
    np.testing.assert_allclose(found.value, circular, atol=1e-8)


def test_golden_is_the_operator_written_out():
    kernel = GOLDEN["kernel_2"]
    for padding in ("circular", "zero"):
        found = norm(operator(kernel, 8, stride=2, padding=padding))
        np.testing.assert_allclose(found, GOLDEN[f"{padding}_singular_values_2"][0], rtol=1e-12)


def test_circular_norm_of_the_same_size_does_not_bound_zero_padding():
    kernel = jnp.array([1.0, -2.0, 1.0])[:, None, None]
    np.testing.assert_allclose(lipschitz.conv(kernel, 3, padding="circular", method="exact").value, 3, rtol=1e-6)
    true = 2 + 2**0.5
    assert true <= float(lipschitz.conv(kernel, 3).value)
    np.testing.assert_allclose(lipschitz.conv(kernel, 3, method="power").value, true, rtol=1e-6)


def test_power_iteration_sees_what_a_constant_does_not():
    """Differences of neighbors are largest where signs alternate."""
    kernel = np.array([1.0, -1.0], np.float32)[:, None, None]
    found = lipschitz.conv(kernel, 8, padding="circular", method="power").value
    np.testing.assert_allclose(found, 2, rtol=1e-5)


LARGE = np.random.default_rng(0).normal(size=(5, 5, 64, 64))


def test_large_kernel():
    above = lipschitz.conv(LARGE.astype(np.float32), 12, padding="circular", steps=5).value
    assert 80.5168535 <= float(above) <= 1.001 * 80.5168535


@pytest.mark.slow
def test_excess_of_a_large_kernel(x64):
    exact = lipschitz.conv(LARGE, 12, padding="circular", method="exact").value
    np.testing.assert_allclose(exact, 80.517, atol=1e-3)
    for steps, excess in {3: 2.87, 4: 0.313, 5: 0.0118, 6: 5e-5}.items():
        above = lipschitz.conv(LARGE, 12, padding="circular", steps=steps).value
        np.testing.assert_allclose(above - exact, excess, rtol=5e-3)


# Certificates


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certified_bound_of_hard_dense_kernels(dtype):
    rng = np.random.default_rng(0)
    kernels = np.stack([hard_matrix(KINDS[k % len(KINDS)], rng, (7, 5)) for k in range(500)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        for steps in (0, 6):
            found = jax.jit(jax.vmap(lambda kernel: lipschitz.dense(kernel, steps=steps)))(kernels)
            assert found.value.dtype == dtype
            above = np.asarray(found.value, float)
            true = norm(kernels.astype(float))
            assert np.all(above >= true)
            assert np.all(above <= 5 ** (1 / 2 ** (steps + 1)) * (1 + 1e-5) * true)
            x, y = (rng.normal(size=(500, 1, 7)).astype(dtype) for _ in range(2))
            slopes = np.linalg.norm((x - y).astype(float) @ kernels, axis=-1) / np.linalg.norm(x - y, axis=-1)
            assert np.all(above[:, None] >= slopes)
            assert np.all((above == 0) == (true == 0))


@pytest.mark.parametrize(
    ("dtype", "padding"),
    [(np.float32, "zero"), (np.float64, "circular"), pytest.param(np.float32, "circular", marks=pytest.mark.slow)],
)
def test_certified_bound_of_hard_convolutions(dtype, padding):
    rng = np.random.default_rng(1)
    shape, options = (3, 2, 2, 3), {"padding": padding, "stride": (1, 2)}
    kernels = np.stack([hard_matrix(KINDS[k % len(KINDS)], rng, (12, 3)) for k in range(500)]).astype(dtype)
    entries = np.eye(36).reshape(36, *shape)
    operators = np.tensordot(
        kernels.reshape(500, 36).astype(float), np.stack([operator(e, (3, 4), **options) for e in entries]), axes=1
    )
    with jax.enable_x64(dtype == np.float64):
        conv = jax.jit(jax.vmap(lambda kernel: lipschitz.conv(kernel.reshape(shape), (3, 4), **options).value))
        above = np.asarray(conv(kernels), float)
    true = norm(operators)
    assert np.all(above >= true)
    assert np.all(above <= 1.5 * true)
    differences = rng.normal(size=(500, 1, operators.shape[1]))
    assert np.all(
        above >= (np.linalg.norm(differences @ operators, axis=-1) / np.linalg.norm(differences, axis=-1))[:, 0]
    )


def test_certified_if_everything_is_rounded_down(monkeypatch):
    """Products that lose as much as any order of additions can lose, all of them in the direction that hurts."""
    eps = float(jnp.finfo(jnp.float32).eps)
    kernel = jnp.full((1000, 3), 0.7, jnp.float32)
    signal = np.full((100, 1, 1), 0.7, np.float32)
    true = [float(kernel[0, 0]) * 3000**0.5, 100 * float(kernel[0, 0])]
    honest = _gram.blocked_product

    def low(a, b):
        lost = 0.8 * _gram.summation_error(len(a), eps, extra=0) * honest(jnp.abs(a), jnp.abs(b))
        return honest(a, b) - lost

    monkeypatch.setattr(_gram, "blocked_product", low)
    monkeypatch.setattr(_circulant, "blocked_product", low)
    _circulant.circulant_norm.clear_cache()
    found = [_gram.gram_bound(kernel, 6), lipschitz.conv(signal, 100, padding="circular", steps=0).value]
    for value, least in zip(found, true, strict=True):
        assert least <= float(value) <= 1.0002 * least
    _circulant.circulant_norm.clear_cache()


def test_products_are_rounded_no_more_than_that():
    rng = np.random.default_rng(0)
    eps = float(jnp.finfo(jnp.float32).eps)
    for length, spread in ((100, 0), (128, 3), (3000, 0), (3000, 3)):
        a, b = (np.exp(spread * rng.normal(size=(length, 9))).astype(np.float32) for _ in range(2))
        exact = a.T.astype(float) @ b
        found = _gram.blocked_product(jnp.asarray(a), jnp.asarray(b))
        assert np.all(np.abs(found - exact) <= _gram.summation_error(length, eps, extra=0) / 1.2 * exact)


def test_between_the_frequencies():
    """The largest norm lies halfway between two of the frequencies that stand for all sizes."""
    c, s = np.cos(np.pi / 32), np.sin(np.pi / 32)
    turn = np.array([[c, s], [-s, c]])
    kernel = np.stack([np.eye(2), turn, turn @ turn]).astype(np.float32)
    np.testing.assert_allclose(norm(operator(kernel, 64, padding="circular")), 3, rtol=1e-6)
    assert 3 <= float(lipschitz.conv(kernel, None, steps=12).value) <= 3.006


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_any_size(stride):
    kernel = random_array(3, 4, 2, 3)
    above = float(lipschitz.conv(kernel, None, stride=stride).value)
    norms = [norm(operator(kernel, size, stride=stride)) for size in range(1, 41)]
    norms += [norm(operator(kernel, size, stride=stride, padding="circular")) for size in range(2, 30, stride)]
    assert max(norms) <= above <= 1.02 * max(norms)
    dilated = norm(operator(kernel, 30, stride=stride, dilation=3, padding=9))
    assert dilated <= float(lipschitz.conv(kernel, None, stride=stride, dilation=3).value) <= 1.1 * dilated


def test_half_precision_is_computed_in_single():
    kernel = jnp.asarray(random_array(0, 4, 3), jnp.bfloat16)
    found = lipschitz.dense(kernel).value
    assert found.dtype == jnp.float32
    assert norm(np.asarray(kernel, float)) <= float(found) <= 1.01 * norm(np.asarray(kernel, float))


# Use


def test_dense_methods(x64):
    kernel = random_array(0, 5, 8, dtype=float)
    true = norm(kernel)
    np.testing.assert_allclose(lipschitz.dense(kernel, method="exact").value, true, rtol=1e-14)
    below = float(lipschitz.dense(kernel, method="power").value)
    assert 0.99 * true <= below <= true * (1 + 1e-14)
    assert str(lipschitz.dense(np.eye(2), method="exact")) == "Bound(norm = 1., not certified)"
    assert str(lipschitz.dense(np.zeros((2, 2)))) == "Bound(norm <= 0., certified)"


def above_of_conv(kernel):
    return lipschitz.conv(kernel, 6, steps=2).value


@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (lambda k: lipschitz.dense(k, steps=3).value, (4, 3)),
        (above_of_conv, (3, 2, 3)),
        pytest.param(
            lambda k: lipschitz.conv(k, 6, method="power", steps=5000).value, (3, 2, 3), marks=pytest.mark.slow
        ),
        pytest.param(
            lambda k: lipschitz.conv(k, 6, method="exact", padding="circular").value, (3, 2, 3), marks=pytest.mark.slow
        ),
        pytest.param(
            lambda k: jnp.sum(jax.grad(above_of_conv)(k) * jnp.arange(18.0).reshape(3, 2, 3)),
            (3, 2, 3),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["dense", "conv", "power", "exact", "second"],
)
def test_gradients(f, shape, x64):
    x, step = (random_array(seed, *shape, dtype=float) for seed in (1, 2))
    both = jax.jit(jax.value_and_grad(f))
    high, low = (float(both(x + side * step)[0]) for side in (1e-6, -1e-6))
    np.testing.assert_allclose(np.sum(np.asarray(both(x)[1]) * step), (high - low) / 2e-6, rtol=1e-5)
    assert np.all(np.isfinite(both(0 * x)[1]))


def test_vmap_and_few_frequencies_at_a_time(monkeypatch):
    kernels = random_array(0, 3, 3, 3, 2, 2)
    f = jax.value_and_grad(lambda kernel: lipschitz.conv(kernel, 6, steps=0).value)
    values, gradients = jax.jit(jax.vmap(f))(kernels)
    _circulant.circulant_norm.clear_cache()
    monkeypatch.setattr(_circulant, "_MAX_ENTRIES", 100)
    step = 1e-2 * random_array(1, 3, 3, 2, 2)
    value, after = (float(lipschitz.conv(kernel, 6, steps=0).value) for kernel in (kernels[1], kernels[1] + step))
    np.testing.assert_allclose(value, np.asarray(values)[1], rtol=1e-6)
    np.testing.assert_allclose(after - value, np.sum(np.asarray(gradients)[1] * step), atol=1e-3)
    _circulant.circulant_norm.clear_cache()


def test_not_finite_is_not_a_number():
    for bad in (np.nan, np.inf):
        kernel = random_array(0, 3, 2, 2)
        kernel[0, 0, 0] = bad
        assert np.isnan(lipschitz.conv(kernel, 5, steps=2).value)
        assert np.isnan(lipschitz.dense(kernel[0]).value)
        assert np.all(np.isnan(lipschitz.constrain(kernel[0], 1.0)))


# Bad input

DENSE, CONV = random_array(0, 3, 2), random_array(0, 3, 3, 2, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lipschitz.dense(CONV), "expected a kernel \\(inputs, outputs\\)|inputs outputs"),
        (lambda: lipschitz.dense(DENSE.astype(complex)), "real floating-point|Float"),
        (lambda: lipschitz.dense(DENSE.astype(int)), "real floating-point|Float"),
        (lambda: lipschitz.dense(DENSE[:0]), "a kernel with entries"),
        (lambda: lipschitz.dense(DENSE, method="svd"), "expected method to be one of|method"),
        (lambda: lipschitz.dense(DENSE, steps=-1), "a number >= 0, got -1"),
        (lambda: lipschitz.dense(DENSE, method="exact", steps=3), "does not iterate"),
        (lambda: lipschitz.conv(DENSE, 5), "of dense layers, use dense|inputs outputs"),
        (lambda: lipschitz.conv(CONV.astype(complex), 5), "real floating-point|Float"),
        (lambda: lipschitz.conv(CONV, 2, padding="valid"), "a window that fits into the padded image, got window 3"),
        (lambda: lipschitz.conv(CONV, 4, padding="valid", dilation=2), "got window 5"),
        (lambda: lipschitz.conv(CONV, (5, 5, 5)), "expected size >= 1 for each of 2 axes"),
        (lambda: lipschitz.conv(CONV, 0), "expected size >= 1"),
        (lambda: lipschitz.conv(CONV, 5, stride=0), "expected stride >= 1"),
        (lambda: lipschitz.conv(CONV, 5, padding="same"), "padding 'zero', 'circular', 'valid'"),
        (lambda: lipschitz.conv(CONV, 5, padding=-1), "expected padding >= 0"),
        (lambda: lipschitz.conv(CONV, 5, groups=3), "divides 4 outputs, got 3"),
        (lambda: lipschitz.conv(CONV, None, method="power"), "it needs a size"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
