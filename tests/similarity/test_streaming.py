"""Streams against whole arrays: any grouping of batches is one stream, and the empty stream changes nothing."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabjax import similarity
from stabjax.similarity import streaming
from tests.similarity.sets import SEEDS, drawn

N = 60
CUTS = (slice(0, 17), slice(17, 18), slice(18, 60))
"""Batches of 17, 1 and 42 samples."""
X_SIZES, Y_SIZES = (5, 3), (4, 5)
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-10}
PRECISIONS = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def layers(seed, dtype, offset):
    """Two layers of two networks each, far from zero by as much as half the digits allow; one unit is dead."""
    sets = [z + offset for z in drawn(seed, N, (*X_SIZES, *Y_SIZES))]
    sets[0][:, 1] = 0.1
    return tuple(z.astype(dtype) for z in sets[:2]), tuple(z.astype(dtype) for z in sets[2:])


def cut(z, batch):
    return [layer[batch] for layer in z]


def grouped(empty, update):
    """One stream, and the same batches merged to the left, to the right, and around an empty stream."""
    parts = [update(empty, batch) for batch in CUTS]
    stream = empty
    for batch in CUTS:
        stream = update(stream, batch)
    a, b, c = parts
    return [stream, a.merge(b).merge(c), a.merge(b.merge(c)), c.merge(empty.merge(a)).merge(b.merge(empty))]


def first_passes(x, y, dtype):
    products = streaming.UnitProducts.init(X_SIZES, Y_SIZES, dtype=dtype)
    products = grouped(products, lambda stream, batch: stream.update(cut(x, batch), cut(y, batch)))

    def factors(z):
        empty = streaming.QRFactor.init(z.shape[1], dtype=dtype)
        return grouped(empty, lambda stream, batch: stream.update(z[batch]))

    return products, [list(map(factors, z)) for z in (x, y)]


@partial(jax.jit, static_argnames="dtype")
def streamed(x, y, dtype):
    """Every measure by every grouping of the batches."""
    products, (x_factors, y_factors) = first_passes(x, y, dtype)
    results = []
    for grouping, moments in enumerate(products):
        terms = grouped(
            streaming.ProductTerms.init(moments, N),
            lambda stream, batch: stream.update(batch.start, cut(x, batch), cut(y, batch)),
        )[grouping]
        row = {"plain": moments.finish()}
        for name, debiased in (("cka", False), ("cka_debiased", True)):
            row[name], row[f"{name} interval"] = terms.finish(debiased=debiased).alignment(debiased=debiased)
        for standardize, measures in ((True, ("cca", "pwcca")), (False, ("svcca",))):
            bases = ([f[grouping].finish(standardize=standardize) for f in each] for each in (x_factors, y_factors))
            whitened = grouped(
                streaming.WhitenedProducts.init(*bases),
                lambda stream, batch: stream.update(cut(x, batch), cut(y, batch)),
            )[grouping]
            row |= {measure: whitened.finish(measure) for measure in measures}
        results.append(row)
    return jax.tree.map(lambda *rows: jnp.stack(rows), *results)


@jax.jit
def whole(x, y):
    measures = {
        "plain": similarity.cka,
        "cka": similarity.cka,
        "cka_debiased": partial(similarity.cka, debiased=True),
        "cca": lambda a, b: similarity.cca(a, b).mean,
        "svcca": lambda a, b: similarity.svcca(a, b).mean,
        "pwcca": similarity.pwcca,
    }
    return {name: jnp.array([[f(a, b) for b in y] for a in x]) for name, f in measures.items()}


@PRECISIONS
@given(SEEDS, st.floats(-100, 100))
def test_every_grouping_is_the_whole(dtype, seed, offset):
    with jax.enable_x64(dtype == np.float64):
        x, y = layers(seed, dtype, offset)
        found, expected = streamed(x, y, dtype), whole(x, y)
        for name, values in expected.items():
            assert found[name].dtype == dtype
            for grouping in found[name]:
                np.testing.assert_allclose(grouping, values, atol=TOLERANCE[dtype], err_msg=name)
        for name in ("cka interval", "cka_debiased interval"):
            for grouping in found[name]:
                np.testing.assert_allclose(grouping, found[name][0], atol=10 * TOLERANCE[dtype], err_msg=name)


@PRECISIONS
@given(SEEDS, st.floats(-100, 100))
def test_moments_are_those_of_all_samples(dtype, seed, offset):
    """Of second and of third order, of each grouping, by their definition."""
    with jax.enable_x64(dtype == np.float64):
        x, y = layers(seed, dtype, offset)
        groupings, factors = jax.jit(first_passes, static_argnames="dtype")(x, y, dtype)
        (a, b), (c, d) = ([np.float64(z) - np.float64(z).mean(0) for z in side] for side in (x, y))
        squares = [(z**2).sum(1) for z in (a, b, c, d)]
        first, second = np.hstack([a, b]), np.hstack([c, d])
        # Rounding is that of what is added up, in proportion to the largest products.
        size = max(1, abs(offset)) * TOLERANCE[dtype] * N * max(map(np.max, squares))
        close = partial(np.testing.assert_allclose, atol=size)
        for moments in groupings:
            assert moments.n == N
            close(moments.first.mean, np.hstack(x).astype(np.float64).mean(0), rtol=TOLERANCE[dtype])
            close(moments.cross, first.T @ second)
            close(moments.second.own[1], d.T @ d)
            close(moments.first.weighted, np.hstack([squares[0] @ a, squares[1] @ b]))
            close(moments.first_weighted, np.stack([z @ first for z in squares[2:]]))
            close(moments.second_weighted, np.stack([z @ second for z in squares[:2]]))
        for grouping in factors[0][0]:
            np.testing.assert_array_equal(np.tril(grouping.factor, -1), 0)
            close(grouping.factor.T @ grouping.factor, a.T @ a)


@PRECISIONS
@given(SEEDS)
def test_the_empty_stream_changes_no_digit(dtype, seed):
    with jax.enable_x64(dtype == np.float64):
        x, y = layers(seed, dtype, 30.0)
        empty = streaming.UnitProducts.init(X_SIZES, Y_SIZES, dtype=dtype), streaming.QRFactor.init(5, dtype=dtype)
        full = updated(empty, x, y)
        for merged in (merged_with(empty, full), merged_with(full, empty)):
            jax.tree.map(np.testing.assert_array_equal, merged, full)
        jax.tree.map(np.testing.assert_array_equal, merged_with(empty, empty), empty)


@jax.jit
def updated(streams, x, y):
    return streams[0].update(x, y), streams[1].update(x[0])


@jax.jit
def merged_with(streams, others):
    return tuple(stream.merge(other) for stream, other in zip(streams, others, strict=True))


def test_rows_that_do_not_count_are_left_out(x64):
    """Whatever they hold."""
    x, y = layers(0, np.float64, 3.0)
    counted = np.arange(N) % 3 > 0
    broken = [[np.where(counted[:, None], z, np.nan) for z in side] for side in (x, y)]
    kept = [[z[counted] for z in side] for side in (x, y)]
    products = streaming.UnitProducts.init(X_SIZES, Y_SIZES, dtype=float).update(*broken, counted)
    expected = whole(*map(tuple, kept))
    assert products.n == counted.sum()
    np.testing.assert_allclose(products.finish(), expected["cka"], rtol=1e-10)
    terms = streaming.ProductTerms.init(products, N).update(0, *broken, counted).finish(debiased=True)
    np.testing.assert_allclose(terms.alignment(debiased=True)[0], expected["cka_debiased"], rtol=1e-10)
    bases = []
    for side in broken:
        factors = [streaming.QRFactor.init(z.shape[1], dtype=float).update(z, counted) for z in side]
        bases.append([factor.finish(standardize=True) for factor in factors])
    whitened = streaming.WhitenedProducts.init(*bases).update(*broken, counted)
    np.testing.assert_allclose(whitened.finish("cca"), expected["cca"], rtol=1e-10)


def test_trouble_stays_in_its_layer():
    """A layer that is NaN, and one that does not vary though the mean of its values is not that value."""
    x, y = layers(0, np.float32, 0.0)
    bad, dead = np.where(np.arange(N)[:, None] == 30, np.nan, x[0]), np.full_like(x[0], 0.1)
    sizes = (5, 5, 3)
    products = streaming.UnitProducts.init(sizes, Y_SIZES)
    factors = [streaming.QRFactor.init(size) for size in sizes]
    for batch in CUTS:
        rows = cut((bad.astype(np.float32), dead, x[1]), batch)
        products = products.update(rows, cut(y, batch))
        factors = [factor.update(z) for factor, z in zip(factors, rows, strict=True)]
    np.testing.assert_allclose(products.finish()[2], whole(x, y)["cka"][1], atol=1e-5)
    assert np.isnan(products.finish()[:2]).all()
    assert np.isfinite(products.first_weighted[:, 5:]).all()
    assert [int(factor.finish(standardize=True).rank) for factor in factors[1:]] == [0, 3]
    assert not factors[1].finish(standardize=True).varies.any()


def test_half_precision_and_other_measures():
    x, y = layers(0, np.float32, 0.0)
    halves = [[jnp.asarray(z, jnp.bfloat16) for z in side] for side in (x, y)]
    products = streaming.UnitProducts.init(X_SIZES, Y_SIZES).update(*halves)
    assert products.cross.dtype == np.float32
    expected = whole(*(tuple(z.astype(jnp.float32) for z in side) for side in halves))["cka"]
    np.testing.assert_allclose(products.finish(), expected, atol=1e-5)
    bases = [[streaming.QRFactor.init(z.shape[1]).update(z).finish(standardize=True) for z in side] for side in (x, y)]
    with pytest.raises((TypeError, ValueError), match=r"(?i)one of|cka"):
        streaming.WhitenedProducts.init(*bases).update(x, y).finish("cka")


def test_streams_stack_and_differentiate():
    """A scan over batches, stacked over networks; the gradient is that of the whole."""
    x, y = layers(0, np.float32, 0.0)
    batches = [[jnp.reshape(z, (4, 15, -1)) for z in side] for side in (x, y)]

    def cka(scale, batches):
        def step(products, batch):
            return products.update([scale[None] * batch[0][0], batch[0][1]], batch[1]), None

        empty = streaming.UnitProducts.init(X_SIZES, Y_SIZES)
        return jax.lax.scan(step, empty, batches)[0].finish()[0, 0]

    stacked = jax.vmap(cka, (0, None))(jnp.ones((2, 5)), batches)
    np.testing.assert_allclose(stacked, np.full(2, whole(x, y)["cka"][0, 0]), atol=1e-5)
    gradient = jax.grad(cka)(jnp.ones(5), batches)
    expected = jax.grad(lambda scale: similarity.cka(scale[None] * x[0], y[0]))(jnp.ones(5))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["QRFactor", "WhitenedProducts", "UnitProducts", "ProductTerms"])
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
