"""CCA of two large sets of activations against NumPy; CKA of all layers of ResNet18 against torch_cka.

Peers: CCA as published (google/svcca: covariance of the stacked units, inverse square roots by eigendecompositions, one
singular value decomposition), two sets of 64 units and 256,000 samples. And torch_cka, which keeps the activations of a
batch and makes the Gram matrices of every pair of layers anew: in batches of 250, whose mean is not CKA of all images;
and in one batch, which gives our number. Few images are timed there and the time is scaled: with the number of images,
the Gram matrices of one batch with its square.
"""

import time
import warnings
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

import stabjax as sj
from benchmarks._timing import first_and_best_milliseconds
from benchmarks.training import resnet18

SAMPLES, UNITS = 256_000, 64
IMAGES, TIMED, BATCH = 2000, 500, 250
LAYERS = 18


def run() -> list[dict]:
    return [time_cca(1), time_cca(300), *time_cka()]


def time_cca(condition: float) -> dict:
    """Time CCA of sets whose deviations along their axes differ by so large a factor: activations have hundreds."""
    draw = np.random.default_rng(0)
    common = draw.normal(size=(SAMPLES, UNITS))
    axes = np.geomspace(1, 1 / condition, UNITS)[:, None] * np.linalg.qr(draw.normal(size=(UNITS, UNITS)))[0]
    x, y = (((common + draw.normal(size=(SAMPLES, UNITS))) @ axes).astype(np.float32) for _ in range(2))
    ours = jax.jit(lambda x, y: sj.similarity.cca(x, y).correlations)
    device = [jax.device_put(z) for z in (x, y)]
    first, best = first_and_best_milliseconds(lambda: ours(*device), 5, pause=0.1)
    wide = [np.ascontiguousarray(z.T) for z in (x, y)]  # the peer takes units in rows
    _, theirs = first_and_best_milliseconds(lambda: published_cca(*wide), 5, pause=0.1)
    np.testing.assert_allclose(ours(x, y), published_cca(*wide), atol=1e-4)
    return _row(f"CCA, two sets of 64 x 256,000, condition {condition}", first, best, "NumPy as published", theirs)


def published_cca(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return correlations of units in rows, ``(units, samples)``."""
    x, y = (z - z.mean(axis=1, keepdims=True) for z in (x, y))
    covariance = np.cov(x, y)
    scales = [np.max(np.abs(block)) for block in (covariance[:UNITS, :UNITS], covariance[UNITS:, UNITS:])]
    xx, xy, yy = (
        covariance[:UNITS, :UNITS] / scales[0],
        covariance[:UNITS, UNITS:] / np.sqrt(scales[0] * scales[1]),
        covariance[UNITS:, UNITS:] / scales[1],
    )
    roots = []
    for block in (xx, yy):
        values, vectors = np.linalg.eigh(block)
        root = vectors @ np.diag(np.sqrt(np.abs(values))) @ vectors.T
        roots.append(np.linalg.pinv(root))
    return np.linalg.svd(roots[0] @ xy @ roots[1])[1]


def time_cka() -> list[dict]:
    """Time the matrix of 18 x 18 layers: all convolutions of the blocks, the first one and the dense layer."""
    images = np.random.default_rng(0).normal(size=(IMAGES, 32, 32, 3)).astype(np.float32)
    f, g = (sj.networks.wrap(sj.models.ResNet(18, rngs=nnx.Rngs(seed))) for seed in (0, 1))
    taps = sj.features.taps(f, images[:2])
    names = [tap.name for tap in taps if tap.kind in ("conv", "dense") and "shortcut" not in tap.name]
    if len(names) != LAYERS:
        raise ValueError(f"expected {LAYERS} layers, got {names}")
    chosen = frozenset(names)

    def select(tap: sj.features.Tap) -> bool:
        return tap.name in chosen

    rows = []
    in_batches, at_once = torch_cka_milliseconds(TIMED, BATCH), torch_cka_milliseconds(TIMED, TIMED)
    scale = IMAGES / TIMED
    bare = torch_forward_milliseconds(TIMED)
    peers = {
        f"torch_cka, batches of {BATCH} ({TIMED} images timed)": in_batches * scale,
        f"torch_cka, one batch, our number ({TIMED} images timed)": bare * scale + (at_once - bare) * scale**2,
    }
    for name, other in (("another seed", g), ("itself", f)):

        def ours(other: Any = other) -> Any:
            return sj.probe.similarity(f, other, images, measure="cka_debiased", select=select, memory=10)

        first, best = first_and_best_milliseconds(ours, 2)
        title = f"CKA of ResNet18 and {name}, {LAYERS} x {LAYERS} layers, {IMAGES} images"
        rows += [_row(title, first, best, peer_name, theirs) for peer_name, theirs in peers.items()]
    return rows


def torch_cka_milliseconds(images: int, batch: int) -> float:
    """Return the time of torch_cka for two networks."""
    from torch_cka import CKA

    models = [resnet18().eval() for _ in range(2)]
    layers = [
        name
        for name, layer in models[0].named_modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and ".shortcut." not in name
    ]
    data = torch.utils.data.TensorDataset(torch.randn(images, 3, 32, 32))
    loader = torch.utils.data.DataLoader(data, batch_size=batch)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        compared = CKA(*models, "one", "two", model1_layers=layers, model2_layers=layers)
        start = time.perf_counter()
        compared.compare(loader, loader)
        return 1e3 * (time.perf_counter() - start)


def torch_forward_milliseconds(images: int) -> float:
    """Return the time of the two networks alone."""
    models = [resnet18().eval() for _ in range(2)]
    x = torch.randn(images, 3, 32, 32)
    with torch.inference_mode():
        return first_and_best_milliseconds(lambda: [model(x) for model in models], 2)[1]


def _row(name: str, first: float, best: float, peer: str, theirs: float) -> dict:
    return {
        "name": name,
        "ms": best,
        "compile ms": first - best,
        "peer": peer,
        "peer ms": theirs,
        "ratio": theirs / best,
    }
