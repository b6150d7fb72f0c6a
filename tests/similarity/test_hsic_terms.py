"""Terms of HSIC by sample, from Gram matrices and from products of units, and the intervals made of them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax.similarity.streaming import GramTerms, HsicTerms, ProductTerms, UnitProducts
from tests.similarity.sets import ALIGNMENT, align, grams_of, numpy_cka


def random_layers(seed, n, sizes=(3, 40)):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 4))
    return [common @ rng.normal(size=(4, u)) + rng.normal(size=(n, u)) for u in sizes]


@pytest.mark.parametrize("debiased", [False, True])
def test_intervals_by_leaving_samples_out(debiased, x64):
    n = 60
    layers = random_layers(0, n), random_layers(0, n)[::-1]
    value, interval = align(*map(grams_of, layers), np.ones(n, bool), debiased=debiased, confidence=0.6827)
    for (i, x), (j, y) in itertools.product(*map(enumerate, layers)):
        np.testing.assert_allclose(value[i, j], numpy_cka(x, y, debiased), rtol=1e-10)
        left = [numpy_cka(np.delete(x, o, 0), np.delete(y, o, 0), debiased) for o in range(n)]
        deviation = np.sqrt((n - 1) * np.var(left))
        found = (interval[i, j, 1] - interval[i, j, 0]) / 2
        if i + j == 1:  # a layer with itself
            np.testing.assert_allclose([found, deviation], 0, atol=1e-7)
        else:
            np.testing.assert_allclose(found, deviation, rtol=0.1)


def test_intervals_cover(x64):
    """Two layers of Gaussian units with a known alignment, 300 times."""
    rng = np.random.default_rng(0)
    mix = [rng.normal(size=(6, u)) / np.arange(1, 7)[:, None] for u in (3, 5)]
    exact = np.sum((mix[0].T @ mix[1]) ** 2) / np.prod([np.linalg.norm(a.T @ a) for a in mix])

    def trial(key):
        z = jax.random.normal(key, (80, 6))
        grams = [(z @ a @ a.T @ z.T)[None] for a in mix]
        return align(*grams, jnp.ones(80, bool), debiased=True, confidence=0.9)[1][0, 0]

    low, high = jax.jit(lambda keys: jax.lax.map(trial, keys))(jax.random.split(jax.random.key(1), 300)).T
    covered = np.mean((low < exact) & (exact < high))
    assert 0.86 < covered < 0.94  # 0.9 with a deviation of 0.017


def test_terms_by_definition(x64):
    """Row sums of products of Szekely and Rizzo's matrices, from Grams and from products of units."""
    n = 9
    layers = [random_layers(seed, n, (2, 5)) for seed in (1, 2)]
    counted = np.arange(n) != 4
    kept = int(counted.sum())
    off = ~np.eye(n, dtype=bool) & np.outer(counted, counted)

    def matrix(x):
        k = (x @ x.T) * off
        rows = k.sum(1) / (kept - 2)
        return np.where(off, k - rows[:, None] - rows[None] + k.sum() / ((kept - 1) * (kept - 2)), 0)

    first, second = ([matrix(x) for x in side] for side in layers)
    expected = np.array([[(a * b).sum(1) for b in second] for a in first])
    terms = jax.jit(partial(HsicTerms.of_grams, debiased=True))(*map(grams_of, layers), counted)
    scales = [np.array([np.max(np.diag(x @ x.T) * counted) for x in side]) for side in layers]
    scale = scales[0][:, None, None] * scales[1][None, :, None]
    np.testing.assert_allclose(terms.cross * scale, expected, atol=1e-9)

    @jax.jit
    def by_products(x, y, counted):
        halves = [([z[s] for z in x], [z[s] for z in y], counted[s]) for s in (slice(0, 4), slice(4, n))]
        products = UnitProducts.init((2, 5), (2, 5), dtype=float)
        for half in halves:
            products = products.update(*half)
        terms = ProductTerms.init(products, n)
        for start, half in zip((0, 4), halves, strict=True):
            terms = terms.update(start, *half)
        return terms.finish(debiased=True)

    for terms in (by_products(*layers, jnp.asarray(counted)), by_blocks(*layers, counted, debiased=True)):
        np.testing.assert_allclose(terms.cross, expected, atol=1e-9)
        for side, mine in ((first, terms.first), (second, terms.second)):
            np.testing.assert_allclose(mine, [(a * a).sum(1) for a in side], atol=1e-9)
        assert terms.n == kept


def by_blocks(x, y, counted, *, debiased, leave_out=()):
    """Accumulate the blocks of Gram matrices of uneven parts, in two streams that are merged, but some of them."""
    starts, sizes, dtype = (0, 4, 6), (4, 2, 3), jnp.result_type(float)
    # Centered; what samples hold that do not count must not matter.
    x, y = ([np.where(counted[:, None], z - z[counted].mean(0), np.nan).astype(dtype) for z in s] for s in (x, y))

    @jax.jit
    def accumulate(x, y, counted):
        def part(k):
            rows = slice(starts[k], starts[k] + sizes[k])
            return starts[k], [z[rows] for z in x], [z[rows] for z in y], counted[rows]

        streams = [GramTerms.init(len(x), len(y), len(counted), dtype=dtype) for _ in range(2)]
        for k, (i, j) in enumerate(itertools.combinations_with_replacement(range(len(sizes)), 2)):
            if (i, j) not in leave_out:
                streams[k % 2] = streams[k % 2].update(*part(i), *part(j), mirror=i != j)
        return streams[0].merge(streams[1]).finish(debiased=debiased)

    return accumulate(x, y, counted)


@pytest.mark.parametrize("debiased", [False, True])
def test_blocks_of_gram_matrices_are_the_whole(debiased):
    """In single precision, with many more units than samples, where a sample by itself outweighs all others."""
    x, y = ([z.astype(np.float32) for z in random_layers(seed, 9, (500, 2000))] for seed in (1, 2))
    counted = np.arange(9) != 4
    value, interval = ALIGNMENT(by_blocks(x, y, counted, debiased=debiased), debiased=debiased)
    wide = [[np.asarray(z[counted], np.float64) for z in side] for side in (x, y)]
    expected = [[numpy_cka(a, b, debiased) for b in wide[1]] for a in wide[0]]
    np.testing.assert_allclose(value, expected, atol=2e-6)
    np.testing.assert_allclose(interval, align(*map(grams_of, wide), np.ones(8, bool), debiased=debiased)[1], atol=1e-5)


@pytest.mark.parametrize("missing", [(0, 0), (1, 2)])
def test_a_block_that_is_missing_is_noticed(missing):
    layers = ([random_layers(seed, 9)[0]] for seed in (1, 2))
    terms = by_blocks(*layers, np.ones(9, bool), debiased=True, leave_out=[missing])
    assert np.isnan(np.sum(terms.cross))


@pytest.mark.parametrize(("batch_size", "room"), [(4, 10), (16, 9)])
def test_rows_that_fill_a_batch_need_no_room(batch_size, room):
    """Ten samples in whole batches: the terms are those of the samples, or unknown if there is no room for one."""
    n = 10
    x, y = (np.pad(random_layers(seed, n, (3,))[0].astype(np.float32), ((0, 6), (0, 0))) for seed in (1, 2))

    @jax.jit
    def by_products(x, y, counted):
        slices = [(start, slice(start, start + batch_size)) for start in range(0, n, batch_size)]
        products = UnitProducts.init((3,), (3,))
        for _, rows in slices:
            products = products.update([x[rows]], [y[rows]], counted[rows])
        terms = ProductTerms.init(products, room)
        for start, rows in slices:
            terms = terms.update(start, [x[rows]], [y[rows]], counted[rows])
        return terms.finish(debiased=False).alignment(debiased=False)[0]

    expected = numpy_cka(x[:n], y[:n], False) if room >= n else np.nan
    np.testing.assert_allclose(by_products(x, y, np.arange(16) < n)[0, 0], expected, atol=1e-5)


@pytest.mark.slow
def test_five_hundred_hard_cases_stay_in_range():
    """Few images, dead layers, copies, one image that differs, huge and tiny units."""

    def case(key):
        keys = jax.random.split(key, 4)
        x = jax.random.normal(keys[0], (8, 30)) * 10 ** jax.random.uniform(keys[1], (1, 30), minval=-6, maxval=6)
        kind = jax.random.randint(keys[2], (), 0, 6)
        y = jnp.stack(
            [x, 0 * x + 0.1, jnp.roll(x, 1, 0), x.at[2:].set(x[:1]), x @ x.T @ x * 1e-9, jnp.abs(x[:, ::-1]) + 1]
        )[kind]
        grams = jnp.stack([z @ z.T for z in (x - x[:1], y - y[:1])])
        found = [align(grams, grams, jnp.arange(8) < 7, debiased=debiased) for debiased in (False, True)]
        return kind, *map(jnp.stack, zip(*found, strict=True))

    kinds, values, intervals = map(np.asarray, jax.jit(jax.vmap(case))(jax.random.split(jax.random.key(0), 500)))
    assert set(kinds.tolist()) == set(range(6))
    finite = np.isfinite(values)
    assert finite[:, :, 0, 0].all()
    assert ((np.abs(values) <= 1) | ~finite).all()
    assert (values[:, 0] >= 0)[finite[:, 0]].all()
    np.testing.assert_allclose(values[:, :, 0, 0], 1, atol=1e-5)
    np.testing.assert_allclose(values, values.transpose(0, 1, 3, 2), atol=1e-6)
    assert ((intervals[..., 0] <= values + 1e-6) & (values <= intervals[..., 1] + 1e-6))[finite].all()
    assert (np.isfinite(intervals).all(-1) == finite).all()
