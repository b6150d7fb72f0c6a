"""The networks and images that comparisons of layers are tested with, and the measures of whole arrays in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stabjax import features, networks, probe
from tests.sample_networks import NNXConvNormDense
from tests.similarity.sets import numpy_cka

SIDE = 6
SELECT = ("conv", "dense")
MEASURES = ("cka", "cka_debiased", "cca", "svcca", "pwcca")


def network(seed=0, **options):
    return networks.wrap(NNXConvNormDense(SIDE, rngs=nnx.Rngs(seed)), **options)


F, G = network(0), network(1)


def make_images(n, seed=0):
    coarse = jax.random.normal(jax.random.key(seed), (n, 3, 3, 3))
    return jax.image.resize(coarse, (n, SIDE, SIDE, 3), "linear")


FEW, MANY = make_images(30), make_images(130)  # fewer and more than the 82 units of two networks
OTHERS = make_images(30, seed=1)


def principal(x, share=1.0):
    left, values, right = np.linalg.svd(x - x.mean(0), full_matrices=False)
    before = np.cumsum(values**2) - values**2
    kept = (before < share * np.sum(values**2)) & (values > 1e-6 * values[0])
    return left[:, kept], values[kept], right[kept]


def numpy_cca(x, y, share=1.0, weigh=False):
    one, two = (principal(z, share) for z in (x, y))
    left, correlations, _ = np.linalg.svd(one[0].T @ two[0], full_matrices=False)
    variates = one[0] @ left
    weights = np.abs(variates.T @ (x - x.mean(0))).sum(1) if weigh else np.ones_like(correlations)
    return (weights * correlations).sum() / weights.sum()


OF_ARRAYS = {
    "cka": numpy_cka,
    "cka_debiased": partial(numpy_cka, debiased=True),
    "cca": numpy_cca,
    "svcca": partial(numpy_cca, share=0.99),
    "pwcca": partial(numpy_cca, weigh=True),
}


@partial(jax.jit, static_argnames="units")
def activations(f, images, units="all"):
    def flat(tap, x):
        if units == "average" and x.ndim > 2:
            return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
        return jnp.reshape(x, (len(x), -1))

    return features.capture(f, reduce=flat)(images)[1]


def whole(f, g, images, others=None, *, measure="cka", units="all", layers=None):
    """The matrix, pair by pair; of the layers with these names, of all without."""
    f, g = map(networks.as_network, (f, g))
    both = activations(f, images, units), activations(g, images if others is None else others, units)
    first, second = ([np.asarray(x[k], np.float64) for k in layers or x] for x in both)
    return np.array([[OF_ARRAYS[measure](x, y) for y in second] for x in first])


of_two = partial(whole, layers=("conv", "dense"))
compared = partial(probe.similarity, select=SELECT)


def compare_by(strategy, f, g, images, *, measure, batch_size=40, select=SELECT):
    """By products of units, of which there are few here, or, where there is no memory for them, by Gram matrices."""
    memory = {"products": 1.0, "grams": 1e-9}[strategy]
    return probe.similarity(f, g, images, measure=measure, batch_size=batch_size, memory=memory, select=select)
