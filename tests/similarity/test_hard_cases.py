"""Hard cases of the measures of similarity, their use under transformations, and what they refuse."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stabjax import similarity
from tests.similarity.sets import CCA, CKA, FOURIER, PWCCA, drawn, mean_of

# Hard cases


SHAPES = ((40, 4, 4), (12, 20, 3), (33, 1, 2), (8, 9, 30), (40, 6, 5), (200, 4, 4))
KINDS = (
    "plain",
    "dead unit",
    "all dead",
    "duplicates",
    "rank deficient",
    "tiny",
    "huge",
    "mixed sizes",
    "far from zero",
    "nearly equal",
    "equal",
    "one sample differs",
)


def hard(kind, seed, shape):
    n, a, b = shape
    rng = np.random.default_rng(seed)
    x, y = (z.astype(np.float32) for z in drawn(seed, n, (a, b), shared=2))
    if kind == "dead unit":
        x[:, 0] = 0.1
    elif kind == "all dead":
        x[:] = rng.normal(size=a)
    elif kind == "duplicates":
        x[:, -1] = x[:, 0]
        y[:] = y[:, :1]
    elif kind == "rank deficient":
        x = (x[:, :1] @ rng.normal(size=(1, a)) + 3).astype(np.float32)
    elif kind == "tiny":
        x *= 1e-30
    elif kind == "huge":
        x *= 1e30
        y *= 1e25
    elif kind == "mixed sizes":
        x *= 10 ** rng.uniform(-12, 12, a).astype(np.float32)
    elif kind == "far from zero":
        x += 1e4
    elif kind == "nearly equal":
        y = np.resize(x, (b, n)).T if a != b else x + 1e-7 * y
    elif kind == "equal":
        y = x.copy()
    elif kind == "one sample differs":
        x[1:] = x[0]
    return x, np.asarray(y, np.float32)


def measured(x, y):
    found, leading, pls = similarity.cca(x, y), similarity.svcca(x, y), similarity.pls(x, y)
    return {
        "correlations": found.correlations,
        "cca": (found.mean, found.valid),
        "svcca": (leading.mean, leading.valid),
        "pwcca": (similarity.pwcca(x, y), found.valid),
        **{
            f"cka {kernel} {debiased}": (similarity.cka(x, y, kernel=kernel, debiased=debiased), None)
            for kernel in ("linear", "rbf")
            for debiased in (False, True)
        },
        "pls": (pls.similarity, pls.valid),
        "procrustes": (1 - similarity.procrustes(x, y) / 2, None),
    }


MEASURED = jax.jit(measured)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("shape", "rounds"),
    [
        *((shape, 1) for shape in SHAPES[:2]),
        *(pytest.param(shape, 1, marks=SLOW) for shape in SHAPES[2:]),
        *(pytest.param(shape, 9, marks=SLOW) for shape in SHAPES),
    ],
    ids=str,
)
def test_hard_cases(shape, rounds):
    """Values in range or NaN with a reason, 1 for a set and itself, the same both ways."""
    for kind, seed in itertools.product(KINDS, range(rounds)):
        x, y = hard(kind, 100 * rounds + seed, shape)
        # A set that does not vary is not compared with anything.
        dead = [bool(np.all(z == z[:1])) for z in (x, y)]
        there, self = MEASURED(x, y), MEASURED(x, x)
        back = MEASURED(y, x)
        correlations = np.asarray(there.pop("correlations"))
        assert np.all((correlations >= 0) & (correlations <= 1)), (kind, seed)
        assert np.all(np.diff(correlations) <= 0), (kind, seed)
        for name, (value, valid) in there.items():
            case = (kind, seed, name, float(value))
            low = -1 if "True" in name else 0
            assert np.isnan(value) or low <= value <= 1, case
            if any(dead):
                assert np.isnan(value), case
            elif valid is None:
                assert np.isfinite(value), case
            if valid is not None:
                assert np.isfinite(value) == bool(valid), case
            if not dead[0] and self[name][1] in (None, True):
                np.testing.assert_allclose(self[name][0], 1, atol=2e-5, err_msg=str(case))
            if name != "pwcca" and np.isfinite(value):
                np.testing.assert_allclose(value, back[name][0], atol=1e-4, err_msg=str(case))


@pytest.mark.parametrize("units", [50, 200])
def test_too_few_samples_are_no_similarity(units):
    """With as many units as samples, CCA of any two sets is 1: that is said, and CKA without bias sees nothing."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(50, units)).astype(np.float32) for _ in range(2))

    @jax.jit
    def measured(x, y):
        found, few = similarity.cca(x, y), similarity.svcca(x, y, keep=5)
        others = similarity.pwcca(x, y), similarity.cka(x, y, debiased=True)
        return found.correlations, found.valid, found.mean, few.valid, few.mean, *others

    correlations, valid, mean, few_valid, few_mean, pwcca, cka = map(np.asarray, measured(x, y))
    np.testing.assert_allclose(correlations[:49], 1, atol=1e-4)
    assert not valid
    assert np.isnan(mean)
    assert np.isnan(pwcca)
    assert few_valid
    assert few_mean < 0.8
    assert abs(cka) < 0.2


def test_dropped_units_are_named_and_change_nothing(x64):
    x, y = drawn(0)
    dead = np.insert(x, [0, 3], 0.1, axis=1)
    twice = np.concatenate([dead, dead], axis=1)
    expected, weighted = CCA(x, y), PWCCA(x, y)
    for case, rank in ((dead, 5), (twice, 5)):
        found = jax.tree.map(np.asarray, CCA(case, y))
        np.testing.assert_allclose(found.correlations, expected.correlations, atol=1e-10)
        assert found.x_rank == rank
        assert np.flatnonzero(~np.asarray(found.x_varies)[:7]).tolist() == [0, 4]
        np.testing.assert_array_equal(found.x_directions[0], 0)
    np.testing.assert_allclose(PWCCA(dead, y), weighted, rtol=1e-9)


def test_a_missing_value_is_said():
    x, y = (z.astype(np.float32) for z in drawn(0))
    x[3, 2] = np.nan
    found = CCA(x, y)
    assert not found.valid
    assert np.isnan(mean_of(found))
    for value in (PWCCA(x, y, weights="paper"), CKA(x, y), similarity.procrustes(x, y)):
        assert np.isnan(value)


# Use


@pytest.mark.parametrize(
    ("n", "dtypes"),
    [
        (40, (jnp.float32, jnp.bfloat16)),
        pytest.param(200, (jnp.float32, jnp.bfloat16), marks=SLOW),
        pytest.param(200, (jnp.float16, jnp.float16), marks=SLOW),
    ],
)
def test_half_precision_is_measured_in_single(n, dtypes):
    halves = [jnp.asarray(z, dtype) for z, dtype in zip(drawn(0, n, (4, 4)), dtypes, strict=True)]
    found, expected = MEASURED(*halves), MEASURED(*(z.astype(jnp.float32) for z in halves))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5)
    maps = [jnp.reshape(z, (20, n // 20, 1, 4)) for z in halves]
    one, two = (mean_of(FOURIER(*z)) for z in (maps, [m.astype(jnp.float32) for m in maps]))
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_jit_vmap_and_gradients(x64):
    many = np.stack([drawn(seed)[0] for seed in range(3)])
    y = drawn(0)[1]
    stacked = jax.jit(jax.vmap(lambda x: similarity.cca(x, y)))(many)
    assert stacked.mean.shape == (3,)
    for k in range(3):
        np.testing.assert_allclose(stacked.correlations[k], CCA(many[k], y).correlations, atol=1e-10)
    large = drawn(1, 3000, (3, 2), shared=2)
    cases = [(f, many[0], y) for f in (similarity.cka, similarity.procrustes, similarity.pwcca)]
    for f, x, y in [*cases, (lambda x, y: similarity.cca(x, y).mean, *large)]:
        value_and_gradient = jax.jit(jax.value_and_grad(f))
        gradient = value_and_gradient(x, y)[1]
        step = np.random.default_rng(0).normal(size=x.shape)
        high, low = (float(value_and_gradient(x + side * step, y)[0]) for side in (1e-5, -1e-5))
        slope = (high - low) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * step), slope, rtol=1e-4, atol=1e-8)


FLOATS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.mark.parametrize("f", [similarity.cca, similarity.pwcca, similarity.cka, similarity.pls, similarity.procrustes])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (FLOATS, FLOATS[:5], "(?i)same samples|n=6"),
        (FLOATS[:1], FLOATS[:1], "at least 2 samples"),
        (FLOATS.astype(complex), FLOATS, "(?i)floating-point|Float"),
        (FLOATS.astype(int), FLOATS, "(?i)floating-point|Float"),
    ],
)
def test_wrong_activations(f, x, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        f(x, y)


def test_wrong_options():
    for keep in (0, -1, 0.0, 1.5, True):
        with pytest.raises(ValueError, match="expected keep"):
            similarity.svcca(FLOATS, FLOATS, keep=keep)
    with pytest.raises(ValueError, match="at least 4 samples"):
        similarity.cka(FLOATS[:3], FLOATS[:3], debiased=True)
    with pytest.raises(ValueError, match="expected every"):
        similarity.positions(FLOATS[:, :, None], every=0)
    with pytest.raises(ValueError, match="expected a size"):
        similarity.resized(FLOATS[:, :, None], (3, 3))
    with pytest.raises((TypeError, ValueError), match=r"same images|n=6"):
        similarity.fourier_cca(FLOATS[:, :, None], FLOATS[:4, :, None])
