"""The local norm of VGG11 at 32 x 32, in forward passes; its error by the singular values of the whole Jacobian.

All on the same images in one run. ``products`` counts products with the Jacobian or its transpose, which is what takes
the time: ten outputs are spanned by ten of them; a hidden layer takes two for each step, so far as it is needed.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import stabjax as sj

IMAGES, OUTPUTS = 64, 10
LAYER = "features/3/conv"


def run() -> list[dict]:
    network = sj.features.of(sj.models.build("VGG11", rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(IMAGES, 32, 32, 3)).astype(np.float32)
    forward = milliseconds(lambda: _forward(network, x))["ms"]
    rows = [{"name": "VGG11 forward, 64 images", "ms": forward}]
    options = {"output": {}, LAYER: {"layer": LAYER, "tolerance": 0.01}}
    for name, chosen in options.items():
        timed = milliseconds(lambda chosen=chosen: sj.lipschitz.local(network, x, key=jax.random.key(0), **chosen))
        row = {"name": f"VGG11 local norm, {name}", **timed, "peer": "one forward pass", "peer ms": forward}
        rows.append(row | {"ratio": timed["ms"] / forward})
    found = sj.lipschitz.local(network, x, key=jax.random.key(0)).value
    error = jnp.max(jnp.abs(found / _singular_values(network, x)[:, 0] - 1))
    rows[1] |= {"largest error": float(error), "products": OUTPUTS}
    exact = sj.lipschitz.local(network, x, key=jax.random.key(1), layer=LAYER, tolerance=1e-4, steps=200).value
    found = sj.lipschitz.local(network, x, key=jax.random.key(0), layer=LAYER, tolerance=0.01).value
    rows[2] |= {"largest error": float(jnp.max(jnp.abs(found / exact - 1)))}
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


def milliseconds(work, repeats=3):
    """The best of several runs, and what the first took longer."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(work())
        times.append(1e3 * (time.perf_counter() - start))
    return {"ms": min(times[1:]), "compile ms": times[0] - min(times[1:])}
