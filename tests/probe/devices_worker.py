"""The probe in processes of their own: on eight devices, or as one of two processes.

python -m tests.probe.devices_worker devices [NAME ...]
python -m tests.probe.devices_worker processes PORT K OUT [NAME ...]

The names are those of the networks; all of them by default.
"""

import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from stabjax import networks, perturb, probe
from stabjax.probe import _checkpoint, _effort, _plan, _source_pass

SEED = 1
SIDE = 8
NAMES = ("nnx", "linen", "function")


class Small(nnx.Module):
    """Convolution, statistics of many images, a mean over positions."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        return jnp.mean(nnx.relu(self.norm(self.conv(x))), (1, 2))


def linear(weight, x):
    """Two products, the first of which may lie on several devices."""
    return jnp.tanh(jnp.reshape(x, (len(x), -1)) @ weight)


def sample_networks():
    """Make three networks, of three frameworks."""
    module = nn.Sequential([nn.Conv(4, (3, 3), strides=2), nn.gelu, nn.Dense(3)])
    variables = module.init(jax.random.key(SEED), jnp.zeros((1, SIDE, SIDE, 3)))
    weight = jax.random.normal(jax.random.key(SEED), (SIDE * SIDE * 3, 16)) / 10
    return {
        "nnx": networks.wrap(Small()),
        "linen": networks.wrap(module.bind(variables)),
        "function": networks.wrap(jax.tree_util.Partial(linear, weight)),
    }


def sample_images(n):
    """Draw smooth images, the same in every process."""
    coarse = np.random.default_rng(0).normal(size=(n, 4, 4, 3)).astype(np.float32)
    return np.repeat(np.repeat(coarse, 2, 1), 2, 2) + np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]


def measure(network, images, batch_size=5, **options):
    """Measure with two draws, so that several of everything pass together."""
    deformation = perturb.Diffeomorphism(3e-2, 2)
    return probe.stability(
        network, images, key=jax.random.key(SEED), deformation=deformation, draws=2, batch_size=batch_size, **options
    )


def numbers(result):
    """Return what must not depend on how images are grouped, scaled to at most one in each layer."""
    names = ("deformation", "noise", "relative", "pair_distance", "noise_radius", "relative_interval")
    found = {name: np.asarray(getattr(result, name)) for name in names}
    for name in ("deformation_numerators", "noise_numerators"):
        values = np.asarray(getattr(result, name))
        found[name] = values / np.abs(values).max((1, 2), keepdims=True)
    return found


def close(found, expected):
    """Compare to 1e-5."""
    for name, value in numbers(expected).items():
        np.testing.assert_allclose(numbers(found)[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def compare(network, images, *ways, **options):
    """Compare layers by Gram matrices, in tiles of a few batches, by products of few units, and by correlations."""
    other, found = sample_networks()["function"], {}
    for way in ways:
        measure, units, memory = WAYS[way]
        settings = {"measure": measure, "units": units, "memory": memory, "batch_size": 5}
        result = probe.similarity(network, other, images, **settings, **options)
        found |= {f"{way} {name}": np.asarray(getattr(result, name)) for name in ("matrix", "interval")}
    return found


def alike(found, expected):
    """Compare similarities to 1e-5."""
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


WAYS = {
    "grams": ("cka_debiased", "all", 2e-4),
    "products": ("cka", "average", 1.0),
    "canonical": ("cca", "average", 1.0),
}


def ways(names):
    """Return how layers are compared: in all ways if there are several networks."""
    return tuple(WAYS) if len(names) > 1 else ("grams",)


def flops_of_a_step(call):
    """Return the operations of one step on one device, as the compiler counts them, and the number of steps."""
    counted, plain = [], _source_pass.pass_window

    def spy(*args, **options):
        if not counted:
            counted.append(plain.lower(*args, **options).compile().cost_analysis()["flops"])
        counted.append(None)
        return plain(*args, **options)

    _source_pass.pass_window = spy
    try:
        call()
    finally:
        _source_pass.pass_window = plain
    # The first call counts twice, and one abstract call is made for a resumed pass only.
    return counted[0], len(counted) - 1


def devices(names):
    """Split images over eight devices, on automatic and explicit axes, beside a network that is split too."""
    assert jax.device_count() == 8
    images = sample_images(83)  # the last batch is partial, on two of the devices too
    auto = jax.make_mesh((8,), ("images",), axis_types=(AxisType.Auto,))
    explicit = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    for name in names:
        network = sample_networks()[name]
        expected = measure(network, images)
        similar = compare(network, images, *ways(names))
        close(measure(network, iter(np.split(images, [10, 50])), mesh=explicit), expected)
        alike(compare(network, lambda: np.split(images, [10, 50]), *ways(names), mesh=explicit), similar)
        if len(names) > 1:
            close(measure(network, images, mesh=auto), expected)
            alike(compare(network, images, *ways(names), mesh=auto), similar)
        print(name, flush=True)
    _split_work(auto)
    if len(names) > 1:
        _where_images_lie(images[:80], auto, explicit)
        _split_network(images)


def _split_work(mesh):
    """Each device does an eighth of the work. Of a loop the compiler counts one turn: a program for every batch."""
    network, many = sample_networks()["nnx"], sample_images(470)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_plan, "MOST_BATCHES", 1)
        patch.setattr(_effort, "FEW_PIXELS", 0)
        alone, steps = flops_of_a_step(lambda: measure(network, many, batch_size=50))
        share, fewer = flops_of_a_step(lambda: measure(network, many, batch_size=50, mesh=mesh))
    assert share * fewer <= 1.05 * alone * steps / 8, (alone, steps, share, fewer)


def _where_images_lie(images, auto, explicit):
    """An array that is sharded says over which devices; a mesh of one device is taken as it is given."""
    network = sample_networks()["nnx"]
    expected = measure(network, images)
    for mesh, axes in ((auto, "images"), (explicit, ("a", "b"))):
        close(measure(network, jax.device_put(images, NamedSharding(mesh, PartitionSpec(axes)))), expected)
    second = jax.sharding.Mesh(np.array(jax.devices()[1:2]), ("images",))
    close(measure(network, images, mesh=second), expected)


def _split_network(images):
    """A network on two devices stays there, and images are split over the other axis."""
    weight = sample_networks()["function"].variables
    mesh = jax.make_mesh((4, 2), ("images", "model"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "model"))), weight)
    split = networks.wrap(jax.tree_util.Partial(linear, *jax.tree.leaves(placed)))
    close(measure(split, images, mesh=mesh), measure(sample_networks()["function"], images))


def processes(port, k, out, names):
    """Measure as process ``k`` of two, each with images of its own."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=k)
    assert jax.process_count() == 2
    mesh = jax.make_mesh((jax.device_count(),), ("images",), axis_types=(AxisType.Auto,))
    images = sample_images(83)[k::2]  # 42 and 41
    for name in names:
        network = sample_networks()[name]
        if len(names) == 1:
            # That one is killed and goes on, below: to the same numbers.
            continue
        found = measure(network, iter(np.split(images, [3, 20])), mesh=mesh)
        similar = compare(network, lambda: np.split(images, [3, 20]), *ways(names), mesh=mesh)
        np.savez(out / f"{name}-{k}.npz", **numbers(found), **similar)
    # Killed: each process goes on by a folder of its own.
    _checkpoint.INTERVAL, _plan.MOST_BATCHES = 0.0, 1
    network = sample_networks()["nnx"]
    with pytest.raises(RuntimeError, match="no more images"):
        measure(network, _dying(np.split(images, [10, 20, 30]), 3), mesh=mesh, path=out / "run")
    found = measure(network, iter(np.split(images, [10, 20, 30])), mesh=mesh, path=out / "run")
    cut, calls = np.split(images, [10, 20, 30]), []

    def interrupted():
        calls.append(None)
        return _dying(cut, 3 if len(calls) == 2 else 99)

    with pytest.raises(RuntimeError, match="no more images"):
        compare(network, interrupted, "grams", mesh=mesh, path=out / "compared")
    similar = compare(network, interrupted, "grams", mesh=mesh, path=out / "compared")
    np.savez(out / f"resumed-{k}.npz", **numbers(found), **similar)
    # One has many more than the other, and one cannot read its own: all of them say so.
    uneven = measure(network, images[: 40 if k else 3], mesh=mesh)
    assert uneven.measured.shape == (43,)
    with pytest.raises(RuntimeError, match="no more images" if k else r"got an error in \[1\]"):
        measure(network, _dying([images[:5]] * 9, 5 if k else 99), mesh=mesh)

    # Images of one process that change from pass to pass: all of them say so.
    mine = itertools.count()
    error, message = (ValueError, "got others in batch 0") if k else (RuntimeError, r"got an error in \[1\]")
    with pytest.raises(error, match=message):
        compare(network, lambda: [images + next(mine) * k], "grams", mesh=mesh)


def _dying(batches, after):
    for number, batch in enumerate(batches):
        if number == after:
            raise RuntimeError("no more images")
        yield batch


if __name__ == "__main__":
    jaxtyping.config.update("jaxtyping_disable", True)
    match sys.argv[1:]:
        case ["devices", *names]:
            devices(names or NAMES)
        case ["processes", port, k, out, *names]:
            processes(port, int(k), Path(out), names or NAMES)
