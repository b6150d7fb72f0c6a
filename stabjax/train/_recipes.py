"""Recipes by name: the published one, one for short runs, and one that gets far in few epochs."""

import dataclasses
from typing import Literal

import jax

from stabjax.train._recipe import Real, Recipe


def published(
    *,
    epochs: Real = 250,
    fully_connected: bool = False,
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
) -> Recipe:
    """Return the recipe of Petrini et al. 2021 for CIFAR-10, with the decay of their later code (none on vectors).

    SGD of rate 0.1 and momentum 0.9 on batches of 128, a cosine that is zero at 80 % of the epochs and rises again,
    crops with four pixels of padding and flips. Networks without batch normalization may fail to start at this rate.

    Args:
        epochs: 250 in the later code, 350 for the figure of the paper.
        fully_connected: that for fully connected networks (of `stabjax.models.FullyConnected`, whose parameters are of
            order one at any width): Adam at a constant rate of 0.1, without decay.
        mean: of the channels; see `Recipe`.
        deviation: likewise.
    """
    recipe = Recipe(epochs=epochs, crop=4, flip=True, mean=mean, deviation=deviation)
    if fully_connected:
        return dataclasses.replace(recipe, optimizer="adam", schedule="constant", decay=0.0)
    return recipe


def short(
    *,
    epochs: Real = 8,
    batch_size: int = 128,
    natural: bool = True,
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
) -> Recipe:
    """Return the recipe of the demo and of the layerwise experiments: nothing but SGD, in a short run.

    A triangular rate up to 0.2, with Nesterov momentum.

    Args:
        epochs: 5 to 20 are usual.
        batch_size: images in a step.
        natural: whether images are natural: crops with four pixels of padding, and flips. Otherwise, as of digits,
            crops with two pixels and no flips.
        mean: of the channels; see `Recipe`.
        deviation: likewise.
    """
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        rate=0.2,
        schedule="triangular",
        nesterov=True,
        crop=4 if natural else 2,
        flip=natural,
        mean=mean,
        deviation=deviation,
    )


def fast(
    *,
    epochs: Real = 20,
    optimizer: Literal["sgd", "muon"] = "sgd",
    precision: Literal["float32", "bfloat16"] | None = None,
    mean: tuple[Real, ...] = (),
    deviation: tuple[Real, ...] = (),
) -> Recipe:
    """Return a recipe that gets far in few epochs, for networks with batch normalization.

    Batches of 512, a triangular rate, Nesterov momentum, label smoothing of 0.2, crops and flips, a moving average of
    the weights over about a hundred steps, scores with the mirror image. The numbers with SGD are those of Page 2019,
    "How to train your ResNet", in means instead of sums over the batch.

    Args:
        epochs: 10 to 30 are usual.
        optimizer: see `Recipe`; ``muon`` comes with its own rate and decay.
        precision: see `Recipe`. None: bfloat16 where the default device is an accelerator, else float32; name it where
            a run may be continued on another device.
        mean: of the channels; see `Recipe`.
        deviation: likewise.
    """
    muon = optimizer == "muon"
    if precision is None:
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return Recipe(
        epochs=epochs,
        batch_size=512,
        smoothing=0.2,
        optimizer=optimizer,
        rate=0.02 if muon else 0.4,
        schedule="triangular",
        nesterov=True,
        decay=0.1 if muon else 5e-4,
        crop=4,
        flip=True,
        mean=mean,
        deviation=deviation,
        precision=precision,
        averaging=0.99,
        test_flip=True,
    )
