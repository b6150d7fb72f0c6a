"""Images from a folder of any size through a small CNN: time against the same from an array, and peak memory.

Each measurement is a process of its own; its first, short probe compiles what the second one uses.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

import stabjax as sj

FEW, MANY = 2048, 20000  # batches of one size, 64, in both
CLASSES = 10


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), MANY)
        streamed, few, array = (
            _in_a_process(folder, n, kind) for n, kind in ((MANY, "stream"), (FEW, "stream"), (MANY, "array"))
        )
    time_row = {"name": f"SmallCNN, {MANY} images from a folder", "s": streamed["s"], "peer": "from an array"}
    peak_row = {"name": f"peak memory, {MANY} images from a folder", "MB": streamed["MB"], "peer": f"{FEW} images"}
    return [
        time_row | {"peer s": array["s"], "ratio": streamed["s"] / array["s"]},
        peak_row | {"peer MB": few["MB"], "more MB": streamed["MB"] - few["MB"]},
    ]


def write_images(folder: Path, number: int) -> None:
    """Write smooth images of 32 x 32 pixels in folders of their classes."""
    rng = np.random.default_rng(0)
    for k in range(number):
        place = folder / f"class{k * CLASSES // number}"
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR).save(place / f"{k:05d}.png")


def _in_a_process(folder: str, number: int, kind: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.streaming", folder, str(number), kind]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _measure(folder: str, number: int, kind: str) -> dict[str, float]:
    network = sj.networks.wrap(sj.models.SmallCNN(rngs=nnx.Rngs(0)))
    deformation = sj.perturb.Diffeomorphism.of_displacement(1.0, 3, (32, 32), convention="paper")
    statistics = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def probe(images):
        key = jax.random.key(0)
        jax.block_until_ready(
            sj.probe.stability(network, images, key=key, deformation=deformation, normalize=statistics)
        )

    def images(count):
        stream = sj.data.stream(folder, seed=0, count=count, batch_size=256)
        return stream if kind == "stream" else np.concatenate([images for images, _ in stream])

    measured = images(number)
    probe(images(min(number, FEW)))
    start = time.perf_counter()
    probe(measured)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    return {"s": seconds, "MB": int(status.split("VmHWM:")[1].split()[0]) / 1024}


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
