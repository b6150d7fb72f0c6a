"""Receptive fields of residual networks, against the time it takes to trace them; nothing is computed in either.

The networks are those of He, Zhang, Ren, Sun 2016 in two versions that differ in where a block strides: version 1, in
the last unit of a block, and version 1.5, in its first. Their parameters are shapes alone.
"""

import time

import jax
import jax.numpy as jnp
from flax import linen

import stabjax as sj

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


class Bottleneck(linen.Module):
    """Three convolutions around a shortcut."""

    width: int
    stride: int

    @linen.compact
    def __call__(self, x):  # noqa: D102
        def conv(x, channels, side, stride=1):
            x = linen.Conv(channels, (side, side), (stride, stride), use_bias=False)(x)
            return linen.BatchNorm(use_running_average=True)(x)

        y = linen.relu(conv(x, self.width, 1))
        y = linen.relu(conv(y, self.width, 3, self.stride))
        y = conv(y, 4 * self.width, 1)
        if x.shape[-1] != 4 * self.width:
            x = conv(x, 4 * self.width, 1, self.stride)
        elif self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
        return linen.relu(x + y)


class ResNet(linen.Module):
    """A residual network of bottlenecks, without the softmax."""

    depth: int
    version: float

    @linen.compact
    def __call__(self, x):  # noqa: D102
        x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(64, (7, 7), (2, 2), use_bias=False)(x)))
        x = linen.max_pool(x, (3, 3), (2, 2), "SAME")
        for block, units in enumerate(UNITS[self.depth]):
            for unit in range(units):
                strides = (unit == units - 1 and block < 3) if self.version == 1 else (unit == 0 and block > 0)
                x = Bottleneck(64 * 2**block, 2 if strides else 1, name=f"block{block + 1}_unit{unit + 1}")(x)
        return linen.Dense(1000)(x.mean((1, 2)))


def resnet(depth, version=1):
    """Return a residual network whose parameters are shapes alone."""
    return abstract_network(ResNet(depth, version))


class VGG16(linen.Module):
    """The convolutions and pools of VGG16 (Simonyan and Zisserman 2015)."""

    @linen.compact
    def __call__(self, x):  # noqa: D102
        for repeats, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
            for _ in range(repeats):
                x = linen.relu(linen.Conv(channels, (3, 3))(x))
            x = linen.max_pool(x, (2, 2), (2, 2))
        return x


def abstract_network(module):
    """Return a network whose parameters are shapes alone."""
    return sj.networks.wrap(module.bind(jax.eval_shape(module.init, jax.random.key(0), IMAGES)))


def vgg16():
    """Return VGG16 whose parameters are shapes alone."""
    return abstract_network(VGG16())


def run() -> list[dict]:
    rows = []
    for depth in (50, 101):
        network = resnet(depth)
        traced = milliseconds(
            lambda network=network: jax.make_jaxpr(lambda v, x: network.adapter(v, x))(network.variables, IMAGES)
        )
        ours = milliseconds(lambda network=network: sj.receptive.extent(network, IMAGES))
        before = len(jax.live_arrays())
        boxes = sj.receptive.extent(network, IMAGES)
        size = boxes["block4_unit3/add_0"].size[0]
        rows.append(
            {
                "name": f"ResNet-v1-{depth}",
                "ms": ours,
                "peer": "tracing it",
                "peer ms": traced,
                "ratio": ours / traced,
                "field": size,
                "taps": len(boxes),
                "arrays": len(jax.live_arrays()) - before,
            }
        )
    return rows


def milliseconds(work, repeats=5):
    """Return the time of the best of several calls, each with JAX's memory of earlier traces emptied."""
    times = []
    for _ in range(repeats):
        jax.clear_caches()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)
