"""Norms of layers against singular values of the operator written out entry by entry, and what keeps layers inside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from stabjax import lipschitz
from stabjax.lipschitz import _circulant, _gram
from tests import GOLDEN_FOLDER

GOLDEN = dict(np.load(GOLDEN_FOLDER / "conv_spectral_norm.npz"))


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def operator(kernel, size, *, stride=1, padding="zero", dilation=1, groups=1):
    """The matrix of a convolution, ``(pixels * inputs, positions * outputs)``, by its definition."""
    *window, inputs, outputs = kernel.shape
    ndim = len(window)
    size, stride, dilation = (np.broadcast_to(v, ndim) for v in (size, stride, dilation))
    reach = (np.array(window) - 1) * dilation
    if isinstance(padding, str):
        low = 0 * reach if padding == "valid" else reach // 2
        high = 0 * reach if padding == "valid" else reach - low
    else:
        low, high = np.broadcast_to(padding, (ndim, 2)).T
    positions = (size + low + high - reach - 1) // stride + 1
    matrix = np.zeros((*size, inputs * groups, *positions, outputs))
    for p in np.ndindex(*positions):
        for q in np.ndindex(*window):
            at = np.array(p) * stride + np.array(q) * dilation - low
            at = at % size if padding == "circular" else at
            if np.any((at < 0) | (at >= size)):
                continue
            for g in range(groups):
                ins, outs = (np.arange(g * n // groups, (g + 1) * n // groups) for n in (inputs * groups, outputs))
                matrix[(*at, ins[:, None], *p, outs[None])] += kernel[q][:, outs].astype(float)
    return matrix.reshape(np.prod(size) * inputs * groups, -1)


def norm(matrix):
    return np.linalg.svd(matrix, compute_uv=False)[..., 0]


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
    kernel = normal(1, *shape)
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
    kernel = normal(1, *shape)
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
    """Differences of neighbours are largest where signs alternate."""
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

KINDS = (
    "plain",
    "rank one",
    "rank two",
    "duplicates",
    "zero",
    "one entry",
    "orthogonal",
    "tiny",
    "huge",
    "mixed sizes",
)


def hard(kind, rng, shape):
    """A matrix of that shape."""
    x = rng.normal(size=shape)
    if kind == "rank one":
        x = x[:, :1] @ x[:1]
    elif kind == "rank two":
        x = x[:, :2] @ x[:2]
    elif kind == "duplicates":
        x[:, 1:] = x[:, :1]
    elif kind == "zero":
        x[:] = 0
    elif kind == "one entry":
        x[1:], x[0, 1:] = 0, 0
    elif kind == "orthogonal":
        u, _, v = np.linalg.svd(x, full_matrices=False)
        x = u @ v
    elif kind == "tiny":
        x *= 1e-20
    elif kind == "huge":
        x *= 1e18
    elif kind == "mixed sizes":
        x *= 10.0 ** rng.uniform(-8, 8, shape[1])
    return x


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_certified_bound_of_hard_dense_kernels(dtype):
    rng = np.random.default_rng(0)
    kernels = np.stack([hard(KINDS[k % len(KINDS)], rng, (7, 5)) for k in range(500)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        for steps in (0, 6):
            found = jax.vmap(lambda kernel: lipschitz.dense(kernel, steps=steps))(kernels)
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
    kernels = np.stack([hard(KINDS[k % len(KINDS)], rng, (12, 3)) for k in range(500)]).astype(dtype)
    entries = np.eye(36).reshape(36, *shape)
    operators = np.tensordot(
        kernels.reshape(500, 36).astype(float), np.stack([operator(e, (3, 4), **options) for e in entries]), axes=1
    )
    with jax.enable_x64(dtype == np.float64):
        conv = jax.vmap(lambda kernel: lipschitz.conv(kernel.reshape(shape), (3, 4), **options).value)
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
    kernel = normal(3, 4, 2, 3)
    above = float(lipschitz.conv(kernel, None, stride=stride).value)
    norms = [norm(operator(kernel, size, stride=stride)) for size in range(1, 41)]
    norms += [norm(operator(kernel, size, stride=stride, padding="circular")) for size in range(2, 30, stride)]
    assert max(norms) <= above <= 1.02 * max(norms)
    dilated = norm(operator(kernel, 30, stride=stride, dilation=3, padding=9))
    assert dilated <= float(lipschitz.conv(kernel, None, stride=stride, dilation=3).value) <= 1.1 * dilated


def test_half_precision_is_computed_in_single():
    kernel = jnp.asarray(normal(0, 4, 3), jnp.bfloat16)
    found = lipschitz.dense(kernel).value
    assert found.dtype == jnp.float32
    assert norm(np.asarray(kernel, float)) <= float(found) <= 1.01 * norm(np.asarray(kernel, float))


# Use


def test_dense_methods(x64):
    kernel = normal(0, 5, 8, dtype=float)
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
    x, step = (normal(seed, *shape, dtype=float) for seed in (1, 2))
    value = jax.jit(f)
    slope = (value(x + 1e-6 * step) - value(x - 1e-6 * step)) / 2e-6
    gradient = jax.jit(jax.grad(f))
    np.testing.assert_allclose(np.sum(gradient(x) * step), slope, rtol=1e-5)
    assert np.all(np.isfinite(gradient(0 * x)))


def test_vmap_and_few_frequencies_at_a_time(monkeypatch):
    kernels = normal(0, 3, 3, 3, 2, 2)
    f = jax.value_and_grad(lambda kernel: lipschitz.conv(kernel, 6, steps=0).value)
    values, gradients = jax.jit(jax.vmap(f))(kernels)
    _circulant.circulant_norm.clear_cache()
    monkeypatch.setattr(_circulant, "_MAX_ENTRIES", 100)
    step = 1e-2 * normal(1, 3, 3, 2, 2)
    value, after = (lipschitz.conv(kernel, 6, steps=0).value for kernel in (kernels[1], kernels[1] + step))
    np.testing.assert_allclose(value, values[1], rtol=1e-6)
    np.testing.assert_allclose(after - value, np.sum(gradients[1] * step), atol=1e-3)
    _circulant.circulant_norm.clear_cache()


def test_not_finite_is_not_a_number():
    for bad in (np.nan, np.inf):
        kernel = normal(0, 3, 2, 2)
        kernel[0, 0, 0] = bad
        assert np.isnan(lipschitz.conv(kernel, 5, steps=2).value)
        assert np.isnan(lipschitz.dense(kernel[0]).value)
        assert np.all(np.isnan(lipschitz.constrain(kernel[0], 1.0)))


# Inside a bound


def test_constrained_is_what_an_optimiser_finds(x64):
    """Frank and Wolfe's method on the matrices inside the bound, and its gap, which is 0 at the closest alone."""
    for seed, (shape, bound) in enumerate([((5, 4), 1.5), ((3, 6), 2.0), ((4, 4), 0.5)]):
        kernel = normal(seed, *shape, dtype=float)
        found = np.asarray(lipschitz.constrain(kernel, bound))

        def corner(direction):
            u, _, v = np.linalg.svd(direction, full_matrices=False)
            return bound * u @ v

        x = np.zeros(shape)
        for _ in range(2000):
            step = corner(kernel - x) - x
            x = x + np.clip(np.sum((kernel - x) * step) / np.sum(step**2), 0, 1) * step
        assert np.linalg.norm(kernel - found) <= np.linalg.norm(kernel - x) + 1e-9
        np.testing.assert_allclose(found, x, atol=0.02)
        gap = np.sum((kernel - found) * (corner(kernel - found) - found))
        assert abs(gap) < 1e-9


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_constrained_is_inside_and_stays(dtype):
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(np.stack([hard(KINDS[k % len(KINDS)], rng, (7, 5)) for k in range(500)]), dtype)
    bounds = rng.uniform(0, 3, 500).astype(np.float32)
    constrain = jax.jit(jax.vmap(lipschitz.constrain))
    once = constrain(kernels, bounds)
    assert once.dtype == dtype
    before, after = (norm(np.asarray(z, float)) for z in (kernels, once))
    assert np.all(after <= bounds * (1 + 1e-6))
    outside = before > bounds * (1 + 1e-6)
    assert np.all(after[outside] <= bounds[outside])
    assert np.all(after[outside] >= (0.98 if dtype == jnp.bfloat16 else 0.9999) * bounds[outside])
    np.testing.assert_array_equal(once[~outside], kernels[~outside])
    np.testing.assert_array_equal(constrain(once, bounds), once)


def test_exactly_at_the_bound(x64):
    kernel = normal(0, 5, 3, dtype=float)
    true = norm(kernel)
    for bound in (0.3 * true, 2 * true):
        found = lipschitz.constrain(kernel, bound, exact=True)
        np.testing.assert_allclose(norm(found), bound, rtol=1e-13)
        np.testing.assert_allclose(lipschitz.constrain(found, bound, exact=True), found, atol=1e-13)
    # No matrix of that norm is closer: norms differ by at most the distance.
    np.testing.assert_allclose(np.linalg.norm(found - kernel), true, rtol=1e-12)
    np.testing.assert_allclose(norm(lipschitz.constrain(np.zeros((3, 2)), 2.0, exact=True)), 2)


def test_bound_zero_gives_zero():
    for kernel in (normal(0, 4, 3), normal(0, 3, 2, 2), np.zeros((3, 2, 2), np.float32)):
        for exact in (False, True):
            np.testing.assert_array_equal(lipschitz.constrain(kernel, 0.0, exact=exact), 0)
    assert np.all(np.isnan(lipschitz.constrain(np.zeros((3, 2, 2), np.float32), 1.0, exact=True)))


def test_constrained_convolutions():
    kernel = normal(0, 3, 3, 2, 3)
    once = lipschitz.constrain(kernel, 1.5, size=6)
    found = norm(operator(np.asarray(once), 6))
    assert 1.3 < found <= float(lipschitz.conv(once, 6).value) <= 1.5
    np.testing.assert_allclose(once / kernel, (once / kernel)[0, 0, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(lipschitz.constrain(once, 1.5, size=6), once)
    np.testing.assert_allclose(
        lipschitz.conv(lipschitz.constrain(kernel, 20, exact=True, size=6), 6).value, 20, rtol=1e-6
    )
    np.testing.assert_array_equal(lipschitz.constrain(kernel, 100.0, size=6), kernel)


class Small(nnx.Module):
    """A convolution and a dense layer."""

    def __init__(self, *, rngs, dtype):
        self.conv = nnx.Conv(1, 3, (3, 3), strides=2, padding=1, rngs=rngs, param_dtype=dtype)
        self.out = nnx.Linear(27, 4, rngs=rngs, param_dtype=dtype)

    def __call__(self, x):
        return self.out(jnp.reshape(nnx.relu(self.conv(x)), (len(x), -1)))


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("relaxed_promotion")
def test_training_stays_inside(dtype):
    graph, params = nnx.split(Small(rngs=nnx.Rngs(0), dtype=dtype), nnx.Param)
    x, labels = normal(0, 32, 6, 6, 1), np.arange(32) % 4
    bounds = {"conv": 0.7, "out": 2.5}
    known = {"conv": {"size": 6, "stride": 2}}
    keep = [
        lipschitz.keep(bound, select=lambda path, _, name=name: path == f"{name}/kernel", **known.get(name, {}))
        for name, bound in bounds.items()
    ]
    optimiser = optax.chain(optax.adam(0.3), *keep)

    def loss(params):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, params)(x), labels))

    def step(carry, _):
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), nnx.to_pure_dict(params)

    _, seen = jax.jit(lambda params: jax.lax.scan(step, (params, optimiser.init(params)), length=60))(params)
    seen = jax.tree.map(lambda leaf: np.asarray(leaf, float), seen)
    operators = np.stack([operator(kernel, 6, stride=2) for kernel in seen["conv"]["kernel"]])
    for name, matrices in {"conv": operators, "out": seen["out"]["kernel"]}.items():
        norms = norm(matrices)
        assert np.all(norms <= bounds[name]), name
        assert norms[-1] >= (0.7 if name == "conv" else 0.93) * bounds[name], name
    assert np.abs(seen["out"]["bias"]).max() > 0.5


@pytest.mark.usefixtures("relaxed_promotion")
def test_updates_that_stay_inside_pass_untouched():
    params = {"a": jnp.eye(3), "bias": jnp.ones(3), "table": jnp.arange(6).reshape(2, 3)}
    small = {"a": jnp.full((3, 3), -0.1), "bias": jnp.ones(3), "table": jnp.zeros((2, 3), jnp.int32)}
    transformation = lipschitz.keep(2.0)
    updates, state = transformation.update(small, transformation.init(params), params)
    assert jax.tree.leaves(state) == []
    for name, update in small.items():
        np.testing.assert_array_equal(updates[name], update)
    far = transformation.update({**small, "a": 1e4 * jnp.ones((3, 3))}, state, params)[0]["a"]
    assert 1.9999 < norm(np.asarray(params["a"] + far, float)) <= 2
    outside = {**params, "a": 1e6 * jnp.ones((3, 3))}
    back = transformation.update(jax.tree.map(jnp.zeros_like, small), state, outside)[0]["a"]
    assert norm(np.asarray(outside["a"] + back, float)) <= 2
    with pytest.raises(ValueError, match="got no params"):
        transformation.update(small, state)


@pytest.mark.usefixtures("relaxed_promotion")
def test_kernels_at_the_bound_by_their_rounded_norm():
    """The norm that single precision finds may be below the true one; what is kept is inside all the same."""
    kernels = normal(0, 300, 8, 8)
    bounds = np.asarray(jax.vmap(lambda kernel: lipschitz.dense(kernel, method="exact").value)(kernels))
    assert np.mean(norm(kernels.astype(float)) > bounds) > 0.1
    keep = jax.vmap(lambda kernel, bound: lipschitz.keep(bound).update(jnp.zeros_like(kernel), (), kernel)[0])
    kept = kernels + np.asarray(keep(kernels, bounds))
    assert np.all(norm(kept.astype(float)) <= bounds)


# Bad input

DENSE, CONV = normal(0, 3, 2), normal(0, 3, 3, 2, 4)


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
        (lambda: lipschitz.constrain(DENSE, -1.0), "expected a bound >= 0, got -1"),
        (lambda: lipschitz.constrain(DENSE, np.nan), "expected a bound >= 0, got nan"),
        (lambda: lipschitz.constrain(DENSE, np.ones(2)), "a scalar bound|bound"),
        (lambda: lipschitz.constrain(DENSE[0], 1.0), "inputs, outputs"),
        (lambda: lipschitz.keep(-1.0), "expected a bound >= 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_traced_negative_bound_is_not_a_number():
    assert np.all(np.isnan(jax.jit(lipschitz.constrain)(DENSE, -1.0)))
