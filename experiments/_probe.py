"""The test images that networks of the zoo are measured on: clean, deformed, and with noise of the same size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import stabjax as sj
from experiments._images import Task

STATISTICS = ("published", "median", "mean")
"""Medians per unit of the first draw, as published; of all draws; means over images and draws."""
QUANTITIES = {"relative": "R", "deformation": "D", "noise": "G"}
"""Names in `stabjax.stability.Stability`, and their symbols."""


@dataclass(frozen=True)
class Probe:
    """Test images with their deformed and noisy versions: the same for every network, so that networks compare."""

    clean: jax.Array
    """``(n, *spatial, channels)``, normalized."""
    deformed: jax.Array
    """``(draws, n, *spatial, channels)``."""
    noisy: jax.Array
    """Likewise, ``|eta| = |tau x - x|`` for each image and draw."""
    labels: np.ndarray
    """``(n,)``."""
    settings: Mapping[str, Any]
    """What the numbers depend on, as it is written beside them."""

    def measure(self, f: Any) -> dict[str, dict[str, Any]]:
        """Measure ``D``, ``G`` and ``R`` of the output, with intervals over images, by `STATISTICS`.

        Every version of the images passes as one batch, so that a network with batch statistics is measured the
        published way.
        """
        f = f if isinstance(f, sj.networks.Network) else sj.networks.wrap(f)
        clean = _output(f, self.clean)
        deformed, noisy = (np.stack([_output(f, x) for x in many]) for many in (self.deformed, self.noisy))
        numbers = {}
        for statistic in STATISTICS:
            draws = slice(1) if statistic == "published" else slice(None)
            result = sj.stability.from_features(
                jax.random.key(0),
                {"output": clean},
                {"output": deformed[draws]},
                {"output": noisy[draws]},
                average="mean" if statistic == "mean" else "median_per_unit",
            )
            numbers[statistic] = {name: float(getattr(result, name)[0]) for name in QUANTITIES} | {
                f"{name}_interval": np.asarray(getattr(result, f"{name}_interval")[0]).tolist() for name in QUANTITIES
            }
        return numbers


@jax.jit
def _forward(f: Any, x: jax.Array) -> jax.Array:
    return f(x)


def _output(f: Any, x: jax.Array) -> np.ndarray:
    return np.asarray(_forward(f, x))


def draw_probe(task: Task, *, images: int, draws: int, seed: int) -> Probe:
    """Draw the test images of the published protocol, their deformations and noises.

    Where the pixels are the publisher's these are the first images in file order. Copies from image files are sorted by
    class; there they are a fixed random choice.

    Args:
        task: images, their statistics and the deformation.
        images: number of test images.
        draws: deformations, and noises, of each; the first is that of the published protocol.
        seed: of the deformations, the noise and the choice of images.
    """
    pixels, labels = task.test
    images = min(images, len(pixels))
    in_order = task.source is not None and task.source.exact
    chosen = np.arange(images) if in_order else sj.data.subset(len(pixels), images, seed=seed)
    clean = task.normalize(pixels[chosen])
    deformed, noisy = sj.probe.perturbed(clean, key=jax.random.key(seed), deformation=task.deformation, draws=draws)
    strength = {
        name: getattr(task.deformation, name).item()
        for name in ("temperature", "cutoff")
        if hasattr(task.deformation, name)
    }
    settings = {"images": images, "draws": draws, "seed": seed, "deformation": strength, "data": task.note}
    return Probe(clean, deformed, noisy, np.asarray(labels)[chosen], settings)
