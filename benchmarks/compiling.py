"""Waiting: processor seconds until a first probe is done, against the plain forward pass of the same rows.

Each row is a process of its own. *Cold* is the first probe of a process, *second* that of another network after it:
what does not depend on the network (perturbations, intervals) is there by then. Of both the time of one more probe,
which compiles nothing, is given and taken away. Plain is tracing, lowering and compiling the forward pass of as many
rows with XLA's own convolutions. Seconds of the processor, since a compiler uses all cores.
"""

import json
import subprocess
import sys
import time

import jax
import numpy as np
from flax import nnx

import stabjax as sj

IMAGES, BATCH = 48, 16
NETWORKS = ("one product", "SmallCNN", "ResNet18", "EfficientNetB0")
MEASURE = ("plain", "cold", "second")


def run() -> list[dict]:
    rows = []
    for name in NETWORKS:
        seconds = {what: _in_a_process(name, what) for what in MEASURE}
        taps = int(_in_a_process(name, "taps")[0])
        plain = seconds["plain"][0]
        for what in MEASURE[1:]:
            first, again = seconds[what]
            row = {"name": f"{name}, {taps} taps, {what}", "s": first, "again s": again, "waiting s": first - again}
            rows.append(row | {"peer": "plain forward", "peer s": plain, "ratio": (first - again) / plain})
    return rows


def _in_a_process(name: str, what: str) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.compiling", name, what]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _network(name: str) -> sj.networks.Network:
    rngs = nnx.Rngs(0)
    match name:
        case "one product":
            model = nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(3072, 10, rngs=rngs))
        case "SmallCNN":
            model = sj.models.SmallCNN(rngs=rngs)
        case "EfficientNetB0":
            model = sj.models.EfficientNetB0(rngs=rngs)
        case _:
            model = sj.models.ResNet(18, rngs=rngs)
    return sj.networks.wrap(model)


def _probe(network: sj.networks.Network) -> None:
    x = np.random.default_rng(0).normal(size=(IMAGES, 32, 32, 3)).astype(np.float32)
    deformation = sj.perturb.Diffeomorphism.of_displacement(1.0, 3, (32, 32), convention="paper")
    result = sj.probe.stability(network, x, key=jax.random.key(0), deformation=deformation, batch_size=BATCH)
    jax.block_until_ready(result)


def _main(name: str, what: str) -> list[float]:
    if what == "plain":
        # The drop-in for Flax's layers is looked up when a model is made.
        sj.conv.conv_general_dilated = jax.lax.conv_general_dilated
    network = _network(name)
    batch = jax.ShapeDtypeStruct((3 * BATCH, 32, 32, 3), np.float32)
    if what == "taps":
        return [len(sj.features.taps(network, batch))]
    if what == "second":
        _probe(sj.networks.wrap(nnx.Sequential(lambda x: x.mean((1, 2)), nnx.Linear(3, 2, rngs=nnx.Rngs(1)))))
    jax.block_until_ready(jax.numpy.zeros(3) + 1)
    start = time.process_time()
    if what == "plain":
        jax.jit(lambda f, x: f(x)).lower(network, batch).compile()
        return [time.process_time() - start]
    _probe(network)
    first = time.process_time() - start
    _probe(network)
    return [first, time.process_time() - start - first]


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
