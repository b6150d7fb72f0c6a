"""D and G after every operation of VGG11-BN and ResNet18: against bare forward passes, and against hooks in torch.

The floor of any probe is a pass that sums the square of every activation once: it keeps the operations apart, which the
compiler otherwise fuses, and reads what they give. Peak memory is that of a fresh process, 500 and 2000 images.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import stabjax as sj
from benchmarks._timing import best_milliseconds

IMAGES, SIDE, BATCH = 500, 32, 50
CHANNELS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


def run() -> list[dict]:
    x = images(IMAGES)
    rows = time_passes("VGG11-BN", sj.models.VGG(11, rngs=nnx.Rngs(0)), x, repeats=3)
    probe = rows[0]["ms"]
    hooks = best_milliseconds(torch_hooks(x), 2)
    rows.append({"name": "VGG11-BN, probe", "ms": probe, "peer": "torch, hooks and all pairs", "peer ms": hooks})
    rows[-1]["ratio"] = hooks / probe
    rows += time_passes("ResNet18", sj.models.ResNet(18, rngs=nnx.Rngs(0)), x[: IMAGES // 2], repeats=2)
    peaks = {n: peak_megabytes(n) for n in (500, 2000)}
    rows.append({"name": "peak memory, 2000 images", "MB": peaks[2000], "peer": "500 images", "peer MB": peaks[500]})
    rows[-1]["ratio"] = peaks[2000] / peaks[500]
    return rows


def time_passes(name: str, model: nnx.Module, x: np.ndarray, *, repeats: int) -> list[dict]:
    """Time the probe of all operations against the forward passes it needs, and passes that read every value."""
    network = sj.networks.wrap(model)
    bare = jax.jit(lambda f, x: jax.lax.map(f, x.reshape(-1, BATCH, SIDE, SIDE, 3)))
    read_once = jax.jit(lambda f, x: jax.lax.map(partial(_squares, f), x.reshape(-1, BATCH, SIDE, SIDE, 3)))
    key, deformation = jax.random.key(0), _deformation()
    timed = {
        "three bare forward passes": lambda: bare(network, np.concatenate([x, x, x])),
        "every activation read once": lambda: read_once(network, np.concatenate([x, x, x])),
        "probe": lambda: sj.probe.stability(network, x, key=key, deformation=deformation, batch_size=BATCH // 3),
    }
    first = {name: best_milliseconds(work, 1) for name, work in timed.items()}
    best = {name: best_milliseconds(work, repeats) for name, work in timed.items()}
    rows = []
    bare_passes, floor = "three bare forward passes", "every activation read once"
    for what, against in (("probe", bare_passes), ("probe", floor), (floor, bare_passes), (bare_passes, "")):
        row = {"name": f"{name}, {what}", "ms": best[what], "compile ms": first[what] - best[what], "peer": against}
        rows.append(row | ({"ratio": best[what] / best[against]} if against else {}))
    return rows


def _squares(f, x):
    return sj.features.capture(f, reduce=lambda tap, a: jnp.sum(jnp.square(a.reshape(len(a), -1)), axis=1))(x)[1]


def images(n):
    return np.random.default_rng(0).normal(size=(n, SIDE, SIDE, 3)).astype(np.float32)


def _deformation():
    return sj.perturb.Diffeomorphism.of_displacement(1.0, 3, (SIDE, SIDE), convention="paper")


def torch_hooks(x):
    """Return a call of the published way: hooks keep all activations, the denominator is taken over all pairs."""
    import torch

    layers, width = [], 3
    for channels in CHANNELS:
        if channels == "pool":
            layers.append(torch.nn.MaxPool2d(2))
        else:
            layers += [torch.nn.Conv2d(width, channels, 3, padding=1), torch.nn.BatchNorm2d(channels), torch.nn.ReLU()]
            width = channels
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(width, 10)).eval()
    clean = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    noise = torch.randn_like(clean)
    versions = [clean, clean + 0.1 * torch.roll(noise, 1, -1), clean + 0.1 * noise]

    def activations(x):
        outputs = []
        hooks = [
            layer.register_forward_hook(lambda layer, inputs, out: outputs.append(out.flatten(1))) for layer in network
        ]
        with torch.no_grad():
            network(x)
        for hook in hooks:
            hook.remove()
        return outputs

    def measure():
        passes = [activations(x) for x in versions]
        result = []
        for f, deformed, noisy in zip(*passes, strict=True):
            pairs = torch.cdist(f, f).square().mean()
            result.append([float((g - f).square().sum(1).mean() / pairs) for g in (deformed, noisy)])
        return jnp.asarray(result)

    return measure


def peak_megabytes(n):
    """Return the peak memory of a process that probes so many images and does nothing else."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.probing", str(n)], check=True, capture_output=True, text=True, env=os.environ
    )
    return float(out.stdout.split()[-1])


if __name__ == "__main__":
    result = sj.probe.stability(
        sj.networks.wrap(sj.models.VGG(11, rngs=nnx.Rngs(0))),
        images(int(sys.argv[1])),
        key=jax.random.key(0),
        deformation=_deformation(),
    )
    jax.block_until_ready(result)
    # Not ru_maxrss: a child starts with the peak of the process that started it.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
