"""Recognition of operations: for every kind a table of functions, each with the taps that should be found in it."""

import jax
import jax.numpy as jnp
from jax import lax

from stabjax import features, networks
from tests.sample_networks import IMAGES, conv, normal

PARAMETERS = {
    "conv": {"kernel": normal(0, 3, 3, 3, 4), "bias": normal(1, 1, 1, 1, 4), "gain": normal(2, 1, 1, 1, 4)},
    "dense": {"kernel": normal(3, 3, 4), "bias": normal(4, 1, 1, 1, 4)},
    "mix": {"kernel": normal(5, 4, 4)},
    "norm": {
        "mean": normal(6, 1, 1, 1, 4),
        "var": jnp.ones((1, 1, 1, 4)),
        "scale": jnp.ones((1, 1, 1, 4)),
        "bias": jnp.ones((1, 1, 1, 4)),
    },
    "color": {"gain": normal(7, 1, 1, 1, 3), "shift": normal(8, 1, 1, 1, 3)},
    "slope": normal(9, 1, 1, 1, 1),
    "layers": {"kernel": normal(11, 3, 4, 4), "bias": normal(12, 3, 1, 1, 1, 4), "steps": normal(13, 3)},
}


def taps(f, *, pathless=False):
    """The taps of ``f(parameters, images)``; ``pathless``: its parameters are constants of a plain function."""
    network = (lambda x: f(PARAMETERS, x)) if pathless else networks.wrap(jax.tree_util.Partial(f, PARAMETERS))
    return features.taps(network, jax.ShapeDtypeStruct(IMAGES, jnp.float32))


def recognized(f, *, pathless=False):
    """Names and kinds of the taps, the output left out."""
    return " ".join(f"{tap.name}={tap.kind}" for tap in taps(f, pathless=pathless) if tap.kind != "output")


def first_layer(p, x):
    """A convolution, so that what follows has a layer in front."""
    return conv(x, p["conv"]["kernel"])


def average(x, axis=-1):
    """The mean over axes that stay."""
    return x.mean(axis, keepdims=True)


def layer_norm(x, axis=-1):
    """A norm without parameters."""
    return (x - average(x, axis)) * lax.rsqrt(x.var(axis, keepdims=True) + 1e-5)
