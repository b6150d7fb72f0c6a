"""Run in a process of its own with four devices: arrays over explicit mesh axes give the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from stabjax import conv, perturb, probe, receptive, similarity, stability

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (8, 6, 6, 3))
KERNEL = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
FILTERS = jax.tree_util.Partial(conv.convolve, kernel=KERNEL)


def features(images):
    return {"images": images}


CALLS = {
    "probe": lambda f, x: (
        probe.stability(
            f, x, key=KEY, deformation=perturb.Diffeomorphism.of_displacement(1.0, 3, (6, 6)), batch_size=4
        ).deformation
    ),
    "similarity": lambda f, x: probe.similarity(f, f, x, batch_size=4, select="conv").matrix,
    "effective": lambda f, x: receptive.effective(f, x, tap="conv_0"),
    "cka": lambda f, x: similarity.cka(jnp.reshape(x, (8, -1)), jnp.reshape(x, (8, -1))[:, :5]),
    "cca": lambda f, x: similarity.cca(jnp.reshape(x, (8, -1))[:, :3], jnp.reshape(x, (8, -1))[:, :2]).correlations,
    "from_features": lambda f, x: stability.from_features(KEY, {"x": x}, {"x": 1.1 * x}, {"x": x + 1}).deformation,
    "pair_distance": lambda f, x: stability.pair_distance(x),
    "convolution": lambda f, x: f(x),
    "unfolded": lambda f, x: conv.convolve(x, KERNEL, method="unfold"),
}


def main():
    assert jax.device_count() == 4
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Explicit,))
    sharded = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("devices")))
    everywhere = jax.device_put(FILTERS, NamedSharding(mesh, PartitionSpec()))
    for name, call in CALLS.items():
        expected = np.asarray(call(FILTERS, IMAGES))
        np.testing.assert_allclose(call(FILTERS, sharded), expected, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(call(everywhere, sharded), expected, atol=1e-5, err_msg=f"{name}, network too")
        np.testing.assert_allclose(jax.jit(call)(FILTERS, sharded), expected, atol=1e-5, err_msg=f"{name}, jitted")
        with jax.set_mesh(mesh):
            np.testing.assert_allclose(call(everywhere, sharded), expected, atol=1e-5, err_msg=f"{name}, mesh set")
        print(name, flush=True)


if __name__ == "__main__":
    main()
