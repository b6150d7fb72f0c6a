"""Local norms of networks, against the singular values of the whole Jacobian."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stabjax import features, lipschitz, models, networks
from stabjax.lipschitz import _jacobian
from tests.lipschitz.helpers import random_array
from tests.sample_networks import conv, normal

KERNELS = (normal(0, 3, 3, 2, 5), normal(1, 3, 3, 5, 4), normal(2, 100, 70), normal(3, 70, 3))


def small(x, kernels=KERNELS):
    x = jax.nn.relu(conv(x, kernels[0]))
    x = jnp.tanh(conv(x, kernels[1]))
    x = jax.nn.gelu(x.reshape(len(x), -1) @ kernels[2])
    return x @ kernels[3]


def images(seed, n=3):
    return jnp.asarray(random_array(seed + 10, n, 5, 5, 2))


def singular_values(f, x):
    """Of the Jacobian of each row, in double precision, and the first right vectors."""
    jacobian = jax.jit(jax.vmap(jax.jacobian(lambda row: jnp.ravel(f(row[None])))))(x)
    matrices = np.asarray(jacobian, np.float64).reshape(len(x), -1, x[0].size)
    return np.linalg.svd(matrices, compute_uv=False)


def layer_of(name):
    return lambda x: features.capture(small, select=[name])(x)[1][name]


@pytest.mark.parametrize("layer", [None, "conv_1", pytest.param("dense_0", marks=pytest.mark.slow)])
def test_against_the_whole_jacobian(layer, key):
    """The output has three entries, the hidden layers more than the image, or more than the steps."""
    x = images(0)
    value = small if layer is None else layer_of(layer)
    expected = singular_values(value, x)[:, 0]
    found = lipschitz.local(small, x, key=key, layer=layer, tolerance=1e-4, steps=50)
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    change = np.asarray(jax.jit(lambda v: jax.jvp(value, (x,), (v,))[1])(found.direction))
    found = jax.tree.map(np.asarray, found)
    assert np.all(found.converged & found.valid & (found.residual <= 1e-4 * found.value))
    np.testing.assert_allclose(np.linalg.norm(found.direction.reshape(3, -1), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(change.reshape(3, -1), axis=1), expected, rtol=1e-4)


def matrix(singular, rows=40, columns=60):
    """A matrix with these singular values."""
    rng = np.random.default_rng(5)
    left, _ = np.linalg.qr(rng.normal(size=(rows, rows)))
    right, _ = np.linalg.qr(rng.normal(size=(columns, columns)))
    middle = np.zeros((rows, columns))
    np.fill_diagonal(middle, singular)
    return jnp.asarray(left @ middle @ right, jnp.float32)


SPECTRA = {
    "of rank one": [3.0],
    "of rank two": [3.0, 2.0],
    "all the same": [2.0] * 40,
    "close together": [2.0, 1.98, 1.97, *np.linspace(1.9, 0, 37)],
    "falling": list(0.7 ** np.arange(40)),
    "zero": [0.0],
    "tiny": list(1e-25 * 0.9 ** np.arange(40)),
    "huge": list(1e25 * 0.9 ** np.arange(40)),
}


@jax.jit
def norms(kernels, x, key):
    """Of several matrices, with keys of their own."""
    keys = jax.random.split(key, len(kernels))
    return jax.vmap(lambda k, key: lipschitz.local(lambda x: x @ k, x, key=key, steps=40))(kernels, keys)


def test_spectra(key):
    """Invariant spaces, none at all, and what would under- or overflow when squared."""
    kernels = np.stack([matrix(np.pad(s, (0, 40 - len(s)))) for s in SPECTRA.values()])
    found = jax.tree.map(np.asarray, norms(kernels, np.ones((2, 40), np.float32), key))
    expected = np.array([s[0] for s in SPECTRA.values()], np.float32)[:, None].repeat(2, 1)
    np.testing.assert_allclose(found.value, expected, rtol=1e-2)
    assert np.all(found.value <= expected * (1 + 1e-5))
    assert np.all(found.converged & found.valid)
    exact = [k for k, name in enumerate(SPECTRA) if name in ("of rank one", "of rank two", "all the same", "zero")]
    np.testing.assert_allclose(found.value[exact], expected[exact], rtol=1e-5)
    np.testing.assert_array_equal(found.direction[list(SPECTRA).index("zero")], 0)


def test_numbers_that_are_not_finite_and_other_keys(key):
    kernels = np.stack([matrix(np.linspace(1, 2, 40))] * len(SPECTRA))
    kernels[0] = np.nan
    found = jax.tree.map(np.asarray, norms(kernels, np.ones((2, 40), np.float32), key))
    assert found.valid[:2].tolist() == found.converged[:2].tolist() == [[False, False], [True, True]]
    values = np.asarray(found.value[1:])
    np.testing.assert_allclose(values, 2, rtol=0.01)
    assert len(np.unique(values)) > values.size / 2


def test_random_matrices_to_the_tolerance(key):
    """From below, and within one per cent of the norm but where the start was unlucky; what the residual says holds."""
    rng = np.random.default_rng(0)
    spectra = np.abs(rng.normal(size=(300, 40))) ** rng.uniform(0.1, 3, (300, 1))
    left, _, right = np.linalg.svd(rng.normal(size=(300, 40, 60)), full_matrices=False)
    found = norms(jnp.asarray((left * spectra[:, None]) @ right, jnp.float32), jnp.ones((2, 40)), key)
    error = 1 - np.asarray(found.value) / spectra.max(1, keepdims=True)
    assert (error > -1e-5).all()
    assert (error < 0.01).mean() > 0.99
    assert np.median(error) < 1e-5
    apart = np.abs(spectra[:, None] - np.asarray(found.value)[..., None]).min(-1)
    assert (apart <= np.asarray(found.residual) + 1e-5 * spectra.max(1, keepdims=True)).all()
    assert bool(jnp.all(found.converged))


def test_too_few_steps_are_told(key):
    kernel = matrix(np.linspace(0, 3, 40))
    found = lipschitz.local(lambda x: x @ kernel, jnp.ones((4, 40)), key=key, tolerance=1e-6, steps=3)
    found = jax.tree.map(np.asarray, found)
    assert not np.any(found.converged)
    assert np.all(found.valid & (found.value < 3) & (found.value > 1))
    assert np.all(3 - found.value < 3 * found.residual)


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_company(key):
    x = images(0, 4)
    norm = partial(lipschitz.local, small, key=key, layer="conv_1")
    np.testing.assert_allclose(norm(x).value[:3], norm(x[:3]).value, rtol=1e-6)


@pytest.mark.slow
def test_networks_under_vmap(key):
    x = images(0)
    expected = singular_values(small, x)[:, 0]
    scaled = jax.vmap(lambda s: lipschitz.local(lambda x: s * small(x), x, key=key).value)(jnp.array([1.0, 3.0, 0.0]))
    np.testing.assert_allclose(scaled, np.outer([1, 3, 0], expected), rtol=1e-4)


def test_one_output_one_pixel_and_one_image(key):
    kernel = normal(0, 6, 1)
    found = lipschitz.local(lambda x: x @ kernel, jnp.ones((1, 6)), key=key)
    norm, direction = np.linalg.norm(kernel), np.asarray(found.direction[0])
    np.testing.assert_allclose(found.value, [norm], rtol=1e-5)
    np.testing.assert_allclose(np.abs(direction), np.abs(kernel[:, 0]) / norm, rtol=1e-4)
    found = lipschitz.local(lambda x: x @ kernel.T, jnp.ones((1, 1)), key=key)
    np.testing.assert_allclose(found.value, [norm], rtol=1e-5)


@pytest.mark.slow
def test_a_layer_without_a_batch_of_its_own(key):
    """With a single image the mean over space leaves none."""
    found = lipschitz.local(lambda x: x.mean((1, 2)) @ normal(0, 2, 3), images(0, 1), key=key, layer="avg_pool_0")
    np.testing.assert_allclose(found.value, [25**-0.5], rtol=1e-5)


@pytest.mark.slow
def test_dead_networks_and_images_that_are_not_finite(key):
    dead = lipschitz.local(lambda x: jax.nn.relu(-jnp.abs(x) - 1), jnp.ones((2, 40)), key=key)
    np.testing.assert_array_equal(dead.value, 0)
    np.testing.assert_array_equal(dead.direction, 0)
    assert bool(jnp.all(dead.converged & dead.valid))
    x = jnp.ones((2, 40)).at[1].set(jnp.nan)
    for width in (3, 40):
        broken = lipschitz.local(lambda x: (x * x) @ normal(0, 40, width), x, key=key)
        assert broken.valid.tolist() == broken.converged.tolist() == [True, False]


def test_double_precision(key, x64):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)))
    found = lipschitz.local(lambda x: x @ kernel, jnp.ones((1, 40)), key=key, tolerance=1e-12, steps=40)
    np.testing.assert_allclose(found.value, [np.linalg.norm(kernel, 2)], rtol=1e-12)


@pytest.mark.slow
def test_half_precision(key):
    kernel = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    half = jnp.asarray(kernel, jnp.bfloat16)
    found = lipschitz.local(lambda x: x @ half, jnp.ones((1, 40), jnp.bfloat16), key=key)
    assert (found.value.dtype, found.direction.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(found.value, [np.linalg.norm(kernel, 2)], rtol=0.03)


def test_one_compilation_for_networks_of_one_architecture(key):
    """A network is an argument, and so is the tolerance."""
    pair = [networks.wrap(models.FullyConnected(12, layers=2, width=4, rngs=nnx.Rngs(k))) for k in range(2)]
    compiled = _jacobian._local
    x = jnp.ones((2, 2, 2, 3))
    lipschitz.local(pair[0], x, key=key)
    before = compiled._cache_size()
    lipschitz.local(pair[1], x, key=jax.random.key(1), tolerance=0.5)
    assert compiled._cache_size() == before


BAD = {
    "integers": (TypeError, lambda x: x, jnp.ones((1, 2), int), {}, None),
    "no images": (ValueError, lambda x: x, jnp.ones((0, 2)), {}, "at least one image"),
    "no steps": (ValueError, lambda x: x, jnp.ones((1, 2)), {"steps": 0}, "expected at least one step"),
    "no such layer": (
        ValueError,
        jnp.tanh,
        jnp.ones((1, 2)),
        {"layer": "relu_0"},
        "got 'relu_0'; the network has tanh_0",
    ),
    "several outputs": (
        ValueError,
        lambda x: (x, 2 * x),
        jnp.ones((1, 2)),
        {},
        "with one output, got output/0, output/1",
    ),
    "mixed rows": (
        ValueError,
        lambda x: x - x.mean(0, keepdims=True),
        jnp.ones((2, 2)),
        {},
        "sums over its batch at reduce_sum",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, key):
    error, f, x, options, message = BAD[name]
    with pytest.raises(error, match=message):
        lipschitz.local(f, x, key=key, **options)


@pytest.mark.slow
def test_vgg11(key):
    """The local norm of a network of the field, ten outputs and a hidden layer."""
    network = networks.wrap(models.build("VGG11bn", rngs=nnx.Rngs(0)))
    x = jax.random.normal(key, (4, 32, 32, 3))
    (jacobian,) = jax.vmap(lambda e: jax.vjp(network, x)[1](jnp.broadcast_to(e[None], (4, 10))))(jnp.eye(10))
    expected = np.linalg.norm(np.asarray(jacobian).reshape(10, 4, -1).swapaxes(0, 1), 2, axis=(1, 2))
    np.testing.assert_allclose(lipschitz.local(network, x, key=key).value, expected, rtol=1e-5)
    norm = partial(lipschitz.local, network, x, key=key, layer="features/3/conv", steps=200)
    np.testing.assert_allclose(norm(tolerance=0.01).value, norm(tolerance=1e-5).value, rtol=0.01)
