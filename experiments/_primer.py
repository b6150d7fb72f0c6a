"""The primer of the course of fast.ai on convolutions (2022, part 2, lesson 15): its images, networks, and training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import stabjax as sj

PUBLISHED = (0.819, 0.944, 0.960, 0.965, 0.939, 0.975, 0.971, 0.975, 0.977, 0.975)
"""Validation accuracy of its convolutional network after each of ten epochs."""
RATES = (0.4, 0.1)
"""Learning rates, each for half of the epochs."""


@dataclass(frozen=True)
class Digits:
    """Images of 28 x 28 and their labels for training and validation, as bytes of MNIST or as floats."""

    training: tuple[Any, Any]
    validation: tuple[Any, Any]
    name: str

    def pixels(self, images: Any) -> Any:
        """Return numbers as the primer has them, bytes / 256."""
        return np.asarray(images, np.float32) / (256 if images.dtype == np.uint8 else 1)

    @property
    def deviation(self) -> tuple[float, ...]:
        """Return what pixels are divided by after bytes were divided by 255."""
        return (256 / 255,) if self.training[0].dtype == np.uint8 else ()


def load_digits(*, smoke: bool, seed: int) -> Digits:
    """Load the training images of MNIST, the last 10,000 kept for validation; or the drawn task."""
    if smoke:
        task = sj.data.ScaleTask.plane(size=28)
        drawn = sj.data.scale_detection(jax.random.key(seed), 1024, task=task)
        images, labels = np.asarray(drawn.images / task.value), (np.asarray(drawn.labels) + 1) // 2
        return Digits((images[:768], labels[:768]), (images[768:], labels[768:]), "two lit pixels")
    images, labels = sj.data.load_bytes("mnist", "train")
    return Digits((images[:50_000], labels[:50_000]), (images[50_000:], labels[50_000:]), "MNIST")


def train(
    digits: Digits,
    build: Callable[..., nnx.Module],
    *,
    epochs: int,
    seed: int,
    path: Path | None,
    progress: bool = False,
) -> tuple[sj.train.Run, np.ndarray]:
    """Train a network at the two rates, so many epochs each; return it with its accuracies, ``(2 * epochs,)``.

    Plain gradient descent has no state, so the second rate is a training of its own that begins with the weights of the
    first.
    """

    def half(k: int, model: Any) -> sj.train.Run:
        recipe = sj.train.Recipe(
            epochs=epochs,
            batch_size=256,
            rate=RATES[k],
            schedule="constant",
            momentum=0.0,
            decay=0.0,
            deviation=digits.deviation,
        )
        return sj.train.fit(
            model,
            digits.training,
            key=jax.random.fold_in(jax.random.key(seed), k),
            recipe=recipe,
            test=digits.validation,
            path=None if path is None else path / f"rate_{RATES[k]}",
            progress=progress,
        )

    first = half(0, build)
    second = half(1, first.model("last"))
    return second, np.concatenate([run.history.test_accuracy[:, 0] for run in (first, second)])


def convolutional(*, rngs: nnx.Rngs) -> nnx.Module:
    """Build the network of five convolutions."""
    return sj.models.SimpleCNN(rngs=rngs)


def dense(*, rngs: nnx.Rngs) -> nnx.Module:
    """Build the network of two dense layers, initialized likewise: weights uniform within ``1 / sqrt(fan-in)``."""
    init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    first, second = (nnx.Linear(a, b, kernel_init=init, rngs=rngs) for a, b in pairwise((28 * 28, 50, 10)))
    return nnx.Sequential(_flat, first, jax.nn.relu, second)


def _flat(x: Any) -> Any:
    return jnp.reshape(x, (len(x), -1))


NETWORKS: Mapping[str, Callable[..., nnx.Module]] = {"SimpleCNN": convolutional, "dense 784-50-10": dense}
