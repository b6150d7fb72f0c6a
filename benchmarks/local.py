"""The local norm of VGG11 at 32 x 32, in forward passes; its error by the singular values of the whole Jacobian.

All on the same images in one run. ``products`` counts products with the Jacobian or its transpose, which is what takes
the time: ten outputs are spanned by ten of them; a hidden layer takes two for each step, so far as it is needed.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import stabjax as sj
from benchmarks._timing import first_and_best_milliseconds

IMAGES, OUTPUTS = 64, 10
LAYER = "features/3/conv"


def run() -> list[dict]:
    network = sj.networks.wrap(sj.models.build("VGG11", rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(IMAGES, 32, 32, 3)).astype(np.float32)
    _, forward = first_and_best_milliseconds(lambda: _forward(network, x), 3)
    rows = [{"name": "VGG11 forward, 64 images", "ms": forward}]
    options = {"output": {}, LAYER: {"layer": LAYER, "tolerance": 0.01}}
    for name, chosen in options.items():
        work = partial(sj.lipschitz.local, network, x, key=jax.random.key(0), **chosen)
        first, best = first_and_best_milliseconds(work, 3)
        row = {"name": f"VGG11 local norm, {name}", "ms": best, "compile ms": first - best, "ratio": best / forward}
        rows.append(row | {"peer": "one forward pass", "peer ms": forward})
    value = sj.lipschitz.local(network, x, key=jax.random.key(0)).value
    error = jnp.max(jnp.abs(value / _singular_values(network, x)[:, 0] - 1))
    rows[1] |= {"largest error": float(error), "products": OUTPUTS}
    exact = sj.lipschitz.local(network, x, key=jax.random.key(1), layer=LAYER, tolerance=1e-4, steps=200).value
    value = sj.lipschitz.local(network, x, key=jax.random.key(0), layer=LAYER, tolerance=0.01).value
    rows[2] |= {"largest error": float(jnp.max(jnp.abs(value / exact - 1)))}
    return rows


@jax.jit
def _forward(network, x):
    return network(x)


@jax.jit
def _singular_values(network, x):
    outputs, backward = jax.vjp(network, x)
    jacobian = jax.lax.map(lambda e: backward(jnp.broadcast_to(e, outputs.shape))[0], jnp.eye(OUTPUTS))
    matrices = jnp.reshape(jnp.swapaxes(jacobian, 0, 1), (len(x), OUTPUTS, -1))
    return jnp.linalg.svd(matrices, compute_uv=False)
