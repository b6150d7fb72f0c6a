"""Streams against whole arrays: any grouping of batches is one stream, and the empty stream changes nothing."""

import inspect
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabjax import similarity
from stabjax.similarity import streaming
from tests.similarity.sets import SEEDS, drawn, numpy_cka

X_SIZES, Y_SIZES = (5, 3), (4, 5)
STARTS = (0, 20, 40)
COUNTED = np.arange(60) % 20 < np.repeat([17, 1, 20], 20)
"""Three batches of 20 rows, of which 17, 1 and 20 count; what the others hold must not matter."""
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-10}
PRECISIONS = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SHORT_IN_DOUBLE = pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])


def layers(seed, dtype, offset):
    """Two layers of two networks each, away from zero; one unit is dead, and rows that do not count are NaN."""
    sets = [z + offset for z in drawn(seed, 60, (*X_SIZES, *Y_SIZES))]
    sets[0][:, 1] = 0.1
    sets = [np.where(COUNTED[:, None], z, np.nan).astype(dtype) for z in sets]
    return tuple(sets[:2]), tuple(sets[2:])


def kept(network):
    return tuple(z[COUNTED] for z in network)


def grouped(empty, update, x, y, which=range(4)):
    """One stream, and the same batches merged to the left, to the right, and around empty streams, or some of them."""
    batches = []
    for start in STARTS:
        rows = slice(start, start + 20)
        batches.append((start, [z[rows] for z in x], [z[rows] for z in y], COUNTED[rows]))
    a, b, c = (update(empty, *batch) for batch in batches) if set(which) - {0} else (empty,) * 3
    groupings = (
        lambda: reduce(lambda stream, batch: update(stream, *batch), batches, empty),
        lambda: merge(merge(a, b), c),
        lambda: merge(a, merge(b, c)),
        lambda: merge(merge(c, merge(empty, a)), merge(b, empty)),
    )
    return [groupings[k]() for k in which]


@jax.jit
def merge(streams, others):
    return jax.tree.map(lambda a, b: a.merge(b), streams, others, is_leaf=lambda z: hasattr(z, "merge"))


def first_pass(dtype):
    products = streaming.UnitProducts.init(X_SIZES, Y_SIZES, dtype=dtype)
    return products, [[streaming.QRFactor.init(size, dtype=dtype) for size in sizes] for sizes in (X_SIZES, Y_SIZES)]


@jax.jit
def update_first(streams, _, x, y, counted):
    products, factors = streams
    factors = [[f.update(z, counted) for f, z in zip(*network, strict=True)] for network in zip(factors, (x, y))]
    return products.update(x, y, counted), factors


@jax.jit
def second_pass(streams):
    products, factors = streams
    bases = [[[f.finish(standardize=s) for f in network] for network in factors] for s in (True, False)]
    return streaming.ProductTerms.init(products, 60), *(streaming.WhitenedProducts.init(*pair) for pair in bases)


@jax.jit
def update_second(streams, start, x, y, counted):
    terms, *whitened = streams
    return terms.update(start, x, y, counted), *(products.update(x, y, counted) for products in whitened)


@jax.jit
def finish(streams):
    terms, standardized, by_variance = streams
    found = {"plain": terms.products.finish(), "svcca": by_variance.finish("svcca")}
    for name, debiased in (("cka", False), ("cka_debiased", True)):
        found[name], found[f"{name} interval"] = terms.finish(debiased=debiased).alignment(debiased=debiased)
    return found | {measure: standardized.finish(measure) for measure in ("cca", "pwcca")}


center, finish_products = jax.jit(streaming.UnitProducts.center), jax.jit(streaming.UnitProducts.finish)
finish_factor = jax.jit(streaming.QRFactor.finish, static_argnames="standardize")


@jax.jit
def whole(x, y):
    measures = {
        "cca": lambda a, b: similarity.cca(a, b).mean,
        "svcca": lambda a, b: similarity.svcca(a, b).mean,
        "pwcca": similarity.pwcca,
    }
    return {name: jnp.array([[f(a, b) for b in y] for a in x]) for name, f in measures.items()}


def whole_cka(x, y, debiased=False):
    """CKA of the rows that count, in NumPy."""
    x, y = ([z - z.mean(0) for z in kept([np.asarray(z, np.float64) for z in network])] for network in (x, y))
    return np.array([[numpy_cka(a, b, debiased) for b in y] for a in x])


@SHORT_IN_DOUBLE
@given(SEEDS, st.floats(-100, 100))
def test_every_grouping_is_the_whole(dtype, seed, offset):
    with jax.enable_x64(dtype == np.float64):
        x, y = layers(seed, dtype, offset)
        expected = {"plain": whole_cka(x, y), "cka": whole_cka(x, y), "cka_debiased": whole_cka(x, y, debiased=True)}
        expected |= whole(kept(x), kept(y))
        groupings = grouped(first_pass(dtype), update_first, x, y)
        # Each grouping of the first pass, finished by the same grouping of the second.
        results = [finish(*grouped(second_pass(z), update_second, x, y, [k])) for k, z in enumerate(groupings)]
        for found in results:
            for name, values in expected.items():
                assert found[name].dtype == dtype
                np.testing.assert_allclose(found[name], values, atol=TOLERANCE[dtype], err_msg=name)
            for name in ("cka interval", "cka_debiased interval"):
                np.testing.assert_allclose(found[name], results[0][name], atol=10 * TOLERANCE[dtype], err_msg=name)


@SHORT_IN_DOUBLE
@given(SEEDS, st.floats(-100, 100))
def test_moments_are_those_of_all_samples(dtype, seed, offset):
    """Of second and of third order, of each grouping, by their definition."""
    with jax.enable_x64(dtype == np.float64):
        x, y = layers(seed, dtype, offset)
        groupings = grouped(first_pass(dtype), update_first, x, y)
        x, y = ([z.astype(np.float64) for z in kept(network)] for network in (x, y))
        (a, b), (c, d) = ([z - z.mean(0) for z in network] for network in (x, y))
        squares = [(z**2).sum(1) for z in (a, b, c, d)]
        first, second = np.hstack([a, b]), np.hstack([c, d])
        # Rounding is that of what is added up, in proportion to the largest products.
        size = max(1, abs(offset)) * TOLERANCE[dtype] * len(a) * max(map(np.max, squares))
        close = partial(np.testing.assert_allclose, atol=size)
        for moments, factors in groupings:
            assert moments.n == len(a)
            moments = center(moments)
            close(moments.first.total, 0)
            close(moments.first.origin, np.hstack(x).mean(0), rtol=TOLERANCE[dtype])
            close(moments.cross, first.T @ second)
            close(moments.second.own[1], d.T @ d)
            close(moments.first.weighted, np.hstack([squares[0] @ a, squares[1] @ b]))
            close(moments.first_weighted, np.stack([z @ first for z in squares[2:]]))
            close(moments.second_weighted, np.stack([z @ second for z in squares[:2]]))
            factor = np.asarray(factors[0][0].factor, np.float64)
            np.testing.assert_array_equal(np.tril(factor, -1), 0)
            close(factor.T @ factor, a.T @ a)


@PRECISIONS
@given(SEEDS)
def test_the_empty_stream_changes_no_digit(dtype, seed):
    with jax.enable_x64(dtype == np.float64):
        x, y = layers(seed, dtype, 30.0)
        empty = first_pass(dtype)
        full = update_first(empty, 0, [z[:20] for z in x], [z[:20] for z in y], COUNTED[:20])
        for merged in (merge(empty, full), merge(full, empty)):
            jax.tree.map(np.testing.assert_array_equal, merged, full)
        jax.tree.map(np.testing.assert_array_equal, merge(empty, empty), empty)


def test_trouble_stays_in_its_layer():
    """A layer that is NaN, and one that does not vary though the mean of its values is not that value."""
    x, y = layers(0, np.float32, 0.0)
    bad, dead = np.where(np.arange(60)[:, None] == 45, np.nan, x[0]), np.full_like(x[0], 0.1)
    x = (bad.astype(np.float32), x[1])
    ((stream, _),) = grouped(first_pass(np.float32), update_first, x, y, [0])
    products = np.asarray(finish_products(stream))
    np.testing.assert_allclose(products[1], whole_cka(x, y)[1], atol=1e-5)
    assert np.isnan(products[0]).all()
    assert np.isfinite(np.asarray(stream.first_weighted)[:, 5:]).all()
    ((moments, (factors, _)),) = grouped(first_pass(np.float32), update_first, (dead, x[1]), y, [0])
    assert np.isnan(np.asarray(finish_products(moments))[0]).all()
    bases = [jax.tree.map(np.asarray, finish_factor(factor, standardize=True)) for factor in factors]
    assert [int(basis.rank) for basis in bases] == [0, 3]
    assert not bases[0].varies.any()


def test_half_precision_and_other_measures():
    x, y = ([jnp.asarray(z, jnp.bfloat16) for z in network] for network in layers(0, np.float32, 0.0))
    ((products, factors),) = grouped(first_pass(np.float32), update_first, x, y, [0])
    assert products.cross.dtype == np.float32
    np.testing.assert_allclose(finish_products(products), whole_cka(x, y), atol=1e-5)
    _, whitened, _ = second_pass((products, factors))
    with pytest.raises((TypeError, ValueError), match=r"(?i)one of|cka"):
        whitened.finish("cka")


def test_streams_stack_and_differentiate():
    """A scan over batches, stacked over networks; the gradient is that of the whole."""
    x, y = layers(0, np.float32, 0.0)
    x, y = ([np.reshape(z[:16], (4, 4, -1)) for z in network] for network in (x, y))

    def cka(scale, x, y):
        def step(products, batch):
            return products.update([scale[None] * batch[0]], [batch[1]]), None

        return jax.lax.scan(step, streaming.UnitProducts.init((5,), (4,)), (x, y))[0].finish()[0, 0]

    def of_whole(scale, x, y):
        return similarity.cka(scale[None] * jnp.reshape(x, (16, -1)), jnp.reshape(y, (16, -1)))

    scales = np.stack([np.ones(5), np.arange(1.0, 6)]).astype(np.float32)
    both = (jax.jit(jax.vmap(jax.value_and_grad(f), (0, None, None)))(scales, x[0], y[0]) for f in (cka, of_whole))
    for found, expected in zip(*both, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["QRFactor", "WhitenedProducts", "UnitProducts", "ProductTerms", "GramTerms"])
def test_every_accumulator_has_the_same_steps(name):
    """Documented and annotated; what has a default is keyword-only, but for the mask."""
    accumulator = getattr(streaming, name)
    for step in ("init", "update", "merge", "finish"):
        method = getattr(accumulator, step)
        signature = inspect.signature(method)
        assert inspect.getdoc(method)
        assert signature.return_annotation is not inspect.Signature.empty
        for parameter in list(signature.parameters.values())[step != "init" :]:
            assert parameter.annotation is not inspect.Parameter.empty
            optional = parameter.default is not inspect.Parameter.empty
            assert not optional or parameter.kind is inspect.Parameter.KEYWORD_ONLY or parameter.name == "counted"


def test_names_of_the_room():
    assert streaming.__all__ == sorted(streaming.__all__)
    assert all(hasattr(streaming, name) for name in streaming.__all__)
