"""More epochs, or fewer, than a run was begun with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stabjax.train._recipe import Recipe, schedule

FREE = ("epochs", "turn")
"""Fields of a recipe that change nothing in a step but its rate."""


def differs_in_length(saved: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Tell whether two recipes, as JSON has them, differ, and in the fields that are free alone."""
    names = [name for name in {*saved, *given} if saved.get(name) != given.get(name)]
    return bool(names) and set(names) <= set(FREE)


def check_more_epochs(
    path: Path,
    begun: Recipe,
    asked: Recipe,
    per_epoch: int,
    taken: int,
    kept: Mapping[int, float],
    *,
    rate_of_recipe: bool = True,
) -> None:
    """Raise unless the steps that a run has taken are the first ones of the training that is asked for.

    Args:
        path: its folder.
        begun: the recipe it was begun with.
        asked: the recipe to go on with, which differs in `FREE` alone.
        per_epoch: steps of an epoch.
        taken: steps of the newest state.
        kept: epochs of the weights that were kept, by step.
        rate_of_recipe: whether the learning rate is the recipe's; that of another optimizer is the same for any number
            of epochs.
    """
    so_far, total = taken / per_epoch, max(1, round(asked.epochs * per_epoch))
    what = f"the run in {path} has taken {so_far:g} epochs of {begun.epochs:g} that were asked for"
    onward = (
        "to go on from its weights, begin another run: train.fit(train.load(path, model), ..., path=another) with a "
        "recipe for the epochs to come; or train anew in another path"
    )
    if taken > total:
        raise ValueError(
            f"expected at least as many epochs as were trained, got {asked.epochs:g}: {what}; train.load(path, model, "
            f"step=...) gives the weights of the epochs {[round(e, 6) for e in kept.values()]} (steps {list(kept)}); "
            "or use another path"
        )
    # The steps that were taken must have had the rates that the longer training gives them, each of them to the bit.
    if taken and rate_of_recipe and np.any(_rates(begun, per_epoch, taken) != _rates(asked, per_epoch, taken)):
        raise ValueError(
            f"expected the {begun.epochs:g} epochs of the run, got {asked.epochs:g}: {what}, and the {begun.schedule} "
            f"rate of those steps depends on the number of epochs, so they are not the first of {asked.epochs:g}; "
            f"{onward}"
        )
    # A run that ended within an epoch has a row of its history there, which a longer one would not have.
    if taken % per_epoch and taken == max(1, round(begun.epochs * per_epoch)) < total:
        raise ValueError(
            f"expected the {begun.epochs:g} epochs of the run, got {asked.epochs:g}: {what}, and was scored at its end "
            f"within an epoch, which a longer one is not; {onward}"
        )


def _rates(recipe: Recipe, per_epoch: int, taken: int) -> np.ndarray:
    return np.asarray(jax.vmap(schedule(recipe, per_epoch))(np.arange(taken, dtype=np.int32)))
