"""Memory, compilations, transformations, precision and the result of a comparison of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import features, networks, probe, similarity
from stabjax.probe import _batching, _comparison, _layers, _source_units, _traced_comparison
from tests.probe.similarity_cases import FEW, MANY, SIDE, F, G, compared, network, of_two, whole

SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("relaxed_promotion")  # Flax leans on it


def wide(x):
    x = jnp.tanh(jnp.tile(jnp.reshape(x, (len(x), -1)), (1, 200)))
    return jnp.sin(jax.lax.cumsum(x, axis=1))


UNITS = SIDE**2 * 3 * 200


def temporary(n, count, **division):
    """Bytes that a comparison of wide networks takes beside its arguments and its result."""
    tiles = _batching.divide_into_tiles(n, **division)
    shape = jax.ShapeDtypeStruct((tiles.size, SIDE, SIDE, 3), jnp.float32)
    traced = tuple(features.trace(wide, shape) for _ in range(count))
    layers = _layers.layers_of(traced[0], "activation", "all")
    assert layers.sizes == (UNITS, UNITS)
    compiled = _traced_comparison.compare_traced.lower(
        traced,
        (jax.ShapeDtypeStruct((n, *shape.shape[1:]), shape.dtype),) * count,
        layers=(layers,) * count,
        tiles=tiles,
        asked=_comparison.Comparison("cka", "all", "activation", 8, 1.0, 0.95, None),
    ).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@SLOW
def test_memory_does_not_grow_with_the_units():
    """Twice the images take the memory of larger Gram matrices, not of more activations."""
    small, large = (temporary(n, 1, batch_size=8, held=16) for n in (64, 128))
    one_image = 2 * UNITS * 4
    assert 8 * one_image < small < 64 * one_image
    assert large - small < 2 * 8 * 128**2 * 4


@pytest.mark.parametrize("count", [1, 2])
def test_memory_is_that_of_the_activations_that_may_be_held(count):
    """Also where all images make one tile, and nothing but the program says what comes after what."""
    n = 1024
    held = count * n * 2 * UNITS * 4
    assert held < temporary(n, count, batch_size=128, held=n) < 1.4 * held


def test_one_compilation_for_all_networks():
    found = [compared(F, G, FEW, batch_size=7).matrix]
    count = _source_units.read_batch._cache_size()
    found += [compared(network(seed), network(seed + 1), FEW, batch_size=7).matrix for seed in (3, 4)]
    assert _source_units.read_batch._cache_size() == count
    assert len(np.unique(np.array(found)[:, 0, 0])) == 3


@SLOW
def test_inside_jit_and_over_stacked_networks():
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), F, G)

    def measure(f, g):
        return compared(f, g, FEW, batch_size=16, memory=1e-9)

    results = jax.jit(jax.vmap(measure, (None, 0)))(F, stacked)
    assert results.matrix.shape == (2, 2, 2)
    np.testing.assert_allclose(results.matrix[0], of_two(F, F, FEW), atol=1e-5)
    np.testing.assert_allclose(results.matrix[1], of_two(F, G, FEW), atol=1e-5)
    assert "stacked (2,)" in str(results)
    assert results.to_xarray().matrix.dims == ("net", "layer", "other_layer")


@SLOW
def test_double_and_half_precision(x64):
    x = np.asarray(MANY[:100], np.float64)
    f, g = (
        networks.wrap(jax.tree_util.Partial(linear, np.random.default_rng(seed).normal(size=(SIDE * SIDE * 3, 4))))
        for seed in (0, 1)
    )
    for images, measure in ((x, "cka_debiased"), (x, "cca"), (x[:7], "cka")):
        found = probe.similarity(f, g, images, measure=measure, batch_size=33, select="output")
        assert found.matrix.dtype == np.float64
        np.testing.assert_allclose(found.matrix, whole(f, g, images, measure=measure, layers=["output"]), atol=1e-12)
    half = probe.similarity(jnp.tanh, jnp.square, x[:7].astype(jnp.bfloat16), batch_size=7, select="output")
    assert half.matrix.dtype == np.float32
    assert half.valid.all()


def linear(weight, x):
    return jnp.reshape(x, (len(x), -1)) @ weight


def test_result():
    found = compared(F, G, FEW, batch_size=7)
    text = str(found)
    assert text.startswith("cka of 30 images, all units, 95 % intervals")
    assert f"{float(found.matrix[0, 1]):.2f}" in text
    data = found.to_xarray()
    assert data.matrix.sel(layer="conv", other_layer="dense") == found.matrix[0, 1]
    assert data.interval.sel(bound="low").shape == (2, 2)
    assert data.attrs == {"measure": "cka", "units": "all", "confidence": 0.95}
    plain = found.to_json()
    np.testing.assert_allclose(plain["matrix"], found.matrix)
    assert plain["images"] == 30
    names = tuple(f"layer_{k}" for k in range(30))
    wide = similarity.Similarity(
        layers=names,
        kinds=("conv",) * 30,
        other_layers=names,
        other_kinds=("conv",) * 30,
        matrix=jnp.eye(30).at[3].set(jnp.nan),
        interval=jnp.full((30, 30, 2), jnp.nan),
        valid=jnp.ones((30, 30), bool).at[3].set(False),
        measured=jnp.ones(9, bool),
        measure="cca",
        units="average",
        confidence=0.95,
    )
    assert max(map(len, str(wide).splitlines())) < 80
    assert "7 layer_7" in str(wide)
    assert wide.to_json()["matrix"][3] == [None] * 30


@pytest.mark.parametrize("images", [2, 3, 5, 50, 63, 65, 500])
@pytest.mark.parametrize("batch_size", [1, 3, 50, 64])
@pytest.mark.parametrize("held", [0, 7, 50, 100, 10**9, None])
def test_every_image_has_one_place(images, batch_size, held):
    tiles = _batching.divide_into_tiles(images, batch_size, held)
    assert 1 <= tiles.size <= batch_size
    assert held is None or tiles.tile <= max(held, batch_size)
    assert held is not None or tiles.number == 1
    assert images <= tiles.padded < images + tiles.batches * tiles.number + tiles.number
    assert tiles.is_one_batch == (batch_size >= images)
