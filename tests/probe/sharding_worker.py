"""Run in a process of its own with four devices: arrays over explicit mesh axes give the numbers of one device.

Every call gets an array one axis of which is dealt out over the devices, as it is and under `jax.set_mesh`; called
with "brief", the dear ones among them (in compilation) are left out.
"""

import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from stabjax import conv, data, fields, lipschitz, perturb, probe, receptive, similarity, stability, train, warp

KEY = jax.random.key(0)
LABELS = np.arange(8) % 2
IMAGES = jax.random.uniform(KEY, (8, 8, 8, 3))
UNITS = jax.random.normal(jax.random.key(1), (8, 3))
FIELD = fields.affine((8, 8), rotation=0.1)
KERNEL = jax.random.normal(jax.random.key(2), (3, 3, 3, 4))
FILTERS = jax.tree_util.Partial(conv.convolve, kernel=KERNEL)
DEFORMATION = perturb.Diffeomorphism.of_displacement(1.0, 3, (8, 8))
MODEL = nnx.Sequential(
    nnx.Conv(3, 2, (3, 3), rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0)), lambda x: jnp.mean(x, (1, 2))
)
RECIPE = train.Recipe(epochs=1, batch_size=8, crop=1)

OF_IMAGES = {
    "stability": lambda x: (
        probe.stability(FILTERS, x, key=KEY, deformation=DEFORMATION, batch_size=4, select="output").deformation
    ),
    "perturbed": lambda x: probe.perturbed(x, key=KEY, deformation=DEFORMATION),
    "similarity": lambda x: probe.similarity(FILTERS, FILTERS, x, batch_size=4, select="output").matrix,
    "effective": lambda x: receptive.effective(FILTERS, x, tap="output"),
    "local": lambda x: lipschitz.local(FILTERS, x, key=KEY, steps=2).value,
    "evaluate": lambda x: train.evaluate(MODEL, x, LABELS).loss,
    "fit": lambda x: train.fit(MODEL, (x, LABELS), key=KEY, recipe=RECIPE).last,
    "calibrate": lambda x: nnx.state(train.calibrate(MODEL, x, batch_size=4), nnx.BatchStat),
    "crop": lambda x: train.crop(KEY, x, 1),
    "statistics": lambda x: data.statistics(x).mean,
    "normalize": lambda x: data.normalize(x, "cifar10"),
    "convolve": lambda x: conv.convolve(x, KERNEL),
    "unfold": lambda x: conv.convolve(x, KERNEL, method="unfold"),
    "average": similarity.average,
    "resized": lambda x: similarity.resized(x, (3, 3)),
    "from_features": lambda x: stability.from_features(KEY, {"x": x}, {"x": 2 * x}, {"x": x + 1}).deformation,
    "medians": lambda x: stability.deformation(x, 2 * x, average="median_per_unit"),
    "pair_distance": stability.pair_distance,
    "toward": lambda x: perturb.Toward(x, 1.0)(KEY, IMAGES[0]),
}
OF_OTHERS = {
    "cka": (UNITS, lambda x: similarity.cka(x, x * x)),
    "cca": (UNITS, lambda x: similarity.cca(x, UNITS[:, :2]).correlations),
    "procrustes": (UNITS, lambda x: similarity.procrustes(x, x * x)),
    "an image": (IMAGES[0], lambda x: DEFORMATION(KEY, x)),
    "noise": (IMAGES[0], lambda x: perturb.SphericalNoise(1.0)(KEY, x)),
    "a field": (FIELD, lambda x: warp.pull_back(IMAGES[0], x)),
}
LEFT_OUT = {"perturbed", "fit", "crop", "procrustes", "unfold", "resized", "medians", "cca", "toward"}
"""What passes through the same doors as others do, which cost less."""
WITH_MESH = {"average", "pair_distance", "statistics", "convolve", "an image", "a field", "calibrate"}


def spread_out(x, mesh):
    """Along the first axis that can be dealt out."""
    axis = next(k for k, side in enumerate(x.shape) if side % 4 == 0)
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * axis, "devices")))


def check(name, found, expected):
    for one, other in zip(jax.tree.leaves(found), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5, err_msg=name)


def main(brief):
    """Compare all; those of a brief run that are dear under one mesh only."""
    jaxtyping.config.update("jaxtyping_disable", True)
    assert jax.device_count() == 4
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Explicit,))
    calls = {name: (IMAGES, call) for name, call in OF_IMAGES.items()} | OF_OTHERS
    for name, (x, call) in calls.items():
        if brief and name in LEFT_OUT:
            continue
        expected = [np.asarray(leaf) for leaf in jax.tree.leaves(call(x))]
        check(name, call(spread_out(x, mesh)), expected)
        if not brief or name in WITH_MESH:
            with jax.set_mesh(mesh):
                check(f"{name}, mesh set", call(spread_out(x, mesh)), expected)
        print(name, flush=True)
    # Within a program of the caller the array is gathered, or JAX says what it cannot shard.
    for name in ("pair_distance",) if brief else ("pair_distance", "similarity"):
        x, call = calls[name]
        check(f"{name}, jitted", jax.jit(call)(spread_out(x, mesh)), [np.asarray(call(x))])


if __name__ == "__main__":
    main("brief" in sys.argv[1:])
