"""Networks with convolutions of XLA, as other libraries have them: probed as they are, and by the library's routes.

Each is a network of `stabjax.models` whose layers call `jax.lax.conv_general_dilated`. The first probe of a process,
with compilation, and the next one; 96 images of 32 x 32.
"""

import json
import subprocess
import sys
import time

import jax
import numpy as np
from flax import nnx

import stabjax as sj

IMAGES, SIDE, BATCH = 96, 32, 16
NETWORKS = ("VGG11", "ResNet18", "MobileNetV2")


def run() -> list[dict]:
    rows = []
    for name in NETWORKS:
        first, again = zip(*(_in_a_process(name, word) for word in ("own", "fast")))
        for what, (own, fast) in (("with compilation", first), ("again", again)):
            row = {"name": f"{name}, {what}", "ms": 1000 * fast, "peer": "its own convolutions", "peer ms": 1000 * own}
            rows.append(row | {"ratio": fast / own})
    return rows


def _in_a_process(name: str, convolutions: str) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.guests", name, convolutions]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _model(name: str) -> nnx.Module:
    rngs = nnx.Rngs(0)
    routes = sj.conv.conv_general_dilated
    # The models look the convolution up when they are made.
    sj.conv.conv_general_dilated = jax.lax.conv_general_dilated
    try:
        match name:
            case "VGG11":
                return sj.models.VGG(11, rngs=rngs)
            case "ResNet18":
                return sj.models.ResNet(18, rngs=rngs)
            case _:
                return sj.models.MobileNetV2(rngs=rngs)
    finally:
        sj.conv.conv_general_dilated = routes


def _main(name: str, convolutions: str) -> list[float]:
    network = sj.networks.wrap(_model(name), convolutions=convolutions)
    x = np.random.default_rng(0).normal(size=(IMAGES, SIDE, SIDE, 3)).astype(np.float32)
    deformation = sj.perturb.Diffeomorphism.of_displacement(1.0, 3, (SIDE, SIDE), convention="paper")

    def seconds() -> float:
        start = time.perf_counter()
        result = sj.probe.stability(network, x, key=jax.random.key(0), deformation=deformation, batch_size=BATCH)
        jax.block_until_ready(result)
        return time.perf_counter() - start

    first = seconds()
    return [first, min(seconds() for _ in range(3))]


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
