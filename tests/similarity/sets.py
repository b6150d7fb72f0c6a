"""Sets of units that the tests of several files draw, and measures of them in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from stabjax import similarity
from stabjax.similarity.streaming import HsicTerms

SEEDS = st.integers(0, 2**31)

# The measures as one program for each shape, shared by all tests.

CCA, SVCCA = jax.jit(similarity.cca), jax.jit(similarity.svcca, static_argnames="keep")
PWCCA = jax.jit(similarity.pwcca, static_argnames="weights")
CKA = jax.jit(similarity.cka, static_argnames=("kernel", "debiased"))
PLS, PROCRUSTES = jax.jit(similarity.pls), jax.jit(similarity.procrustes)
FOURIER = jax.jit(similarity.fourier_cca)


@jax.jit
def mean_of(result):
    """The mean correlation of a result."""
    return result.mean


def drawn(seed, n=60, units=(5, 4), shared=3):
    """Two sets that share some directions."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, shared))
    return [common @ rng.normal(size=(shared, u)) + rng.normal(size=(n, u)) for u in units]


def numpy_correlations(x, y):
    q = [np.linalg.qr(z - z.mean(0))[0] for z in (x, y)]
    return np.linalg.svd(q[0].T @ q[1], compute_uv=False)


def numpy_cka(x, y, debiased=False):
    """CKA of two sets by its formula, in NumPy."""
    k, m = x @ x.T, y @ y.T
    n = len(k)
    if debiased:
        k, m = (z - np.diag(np.diag(z)) for z in (k, m))

        def hsic(k, m):
            means = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(0))
            return (k * m).sum() + means

    else:

        def hsic(k, m):
            h = np.eye(n) - 1 / n
            return np.trace(k @ h @ m @ h)

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def grams_of(layers):
    return np.stack([x @ x.T for x in layers])


@partial(jax.jit, static_argnames=("debiased", "confidence"))
def align(first, second, counted, *, debiased, confidence=0.95):
    """CKA and its interval from Gram matrices of the layers of two networks."""
    terms = HsicTerms.of_grams(jnp.asarray(first), jnp.asarray(second), counted, debiased=debiased)
    return terms.alignment(debiased=debiased, confidence=confidence)


ALIGNMENT = jax.jit(HsicTerms.alignment, static_argnames=("debiased", "confidence"))
