"""D, G and R after every operation of a network, at initialization and trained.

Draws ``figures/layerwise_<data>_<model>.png`` (and ``.pdf``) with its numbers beside it in ``.json``: settings,
versions, test accuracy, D, G and R with their intervals. A run that was killed goes on where it was::

    python -m experiments.layerwise --data cifar10
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from rich.console import Console

import stabjax as sj
from experiments import _images, _networks
from experiments._study import Drawing, ResumableStudy, run


@dataclass(frozen=True)
class Config(ResumableStudy):
    """D, G and R after every operation of a network, at initialization and trained."""

    SMOKE: ClassVar[Mapping[str, Any]] = {
        "data": "scale-detection",
        "model": "LeNet",
        "epochs": 1.0,
        "training": 256,
        "images": 40,
        "draws": 2,
    }

    data: _images.Name = "cifar10"
    """Images; all but scale-detection are read from STABJAX_DATA or downloaded."""
    model: str = "VGG11bn"
    """A name of stabjax.models.NAMES."""
    width: float = 0.5
    """Factor on the channels of a VGG."""
    epochs: float = 10.0
    """Passes through the training images."""
    training: int | None = None
    """Number of training images; all of them if not given."""
    seeds: int = 1
    """Networks trained, each with its own initialization."""
    images: int = 500
    """Test images that are deformed, a fixed random choice."""
    draws: int = 10
    """Deformations, and noises, of each image."""
    cutoff: int = 3
    """Highest frequency of the deformations."""
    displacement: float = 1.0
    """Their typical size in pixels, in the convention of the paper."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Train, or read a finished run, probe it before and after, and draw."""
    train_key, probe_key = jax.random.split(jax.random.key(config.seed))
    task = _images.load(
        config.data,
        seed=config.seed,
        epochs=config.epochs,
        training=config.training,
        images=config.images,
        cutoff=config.cutoff,
        displacement=config.displacement,
        batch_size=64 if config.smoke else 128,
    )
    network = {"data": config.data, "model": config.model, "width": config.width}
    trained = _networks.train_layerwise(
        task, config, **network, key=train_key, seeds=config.seeds, progress=console.is_terminal
    )
    accuracy = np.asarray(trained.history.test_accuracy[-1])
    console.print(trained.history)

    chosen, images = task.draw_test_images(config.images, seed=config.seed)
    stages: dict[str, list[sj.stability.Stability]] = {"at initialisation": [], "trained": []}
    for seed in range(config.seeds):
        options = {"key": jax.random.fold_in(probe_key, seed), "deformation": task.deformation, "draws": config.draws}
        initial = sj.networks.wrap(trained.model("initial", seed=seed), mode="batch_statistics")
        stages["at initialisation"].append(sj.probe.stability(initial, images, batch_size=len(images), **options))
        stages["trained"].append(sj.probe.stability(trained.model("last", seed=seed), images, **options))
    console.print(str(stages["trained"][0]))

    numbers = {
        "recipe": task.recipe.to_json(),
        "data": task.note,
        "test_accuracy": accuracy.tolist(),
        "training_seconds": float(trained.history.seconds[-1]),
        "test_images": chosen.tolist(),
        "change_by_kind": {label: change_by_kind(results) for label, results in stages.items()},
        "results": {label: [result.to_json() for result in results] for label, results in stages.items()},
    }
    width = "" if config.width == 1 else f", width {config.width:g}"
    figure = sj.plot.layerwise(
        stages,
        title=f"{config.model}{width} on {config.data}: test error {100 * (1 - accuracy.mean()):.1f} %\n"
        f"{len(images)} images, {config.draws} deformations and noises each",
    )
    return {f"layerwise_{config.data}_{config.model}": (figure, numbers)}


def change_by_kind(results: Sequence[sj.stability.Stability]) -> dict[str, dict[str, Any]]:
    """Return the mean change of ``log D``, ``log G`` and ``log R`` across each kind of operation.

    Over layers and networks, with its standard error; the repeated value at the output is left out.
    """
    table: dict[str, dict[str, Any]] = {}
    kinds = np.asarray(results[0].kinds)
    for name in ("deformation", "noise", "relative"):
        values = np.stack([np.log(np.asarray(getattr(result, name), np.float64)) for result in results])
        change = np.diff(values, axis=1)
        for kind in dict.fromkeys(kinds[1:-1].tolist()):
            here = change[:, kinds[1:] == kind].ravel()
            error = float(here.std(ddof=1) / np.sqrt(len(here))) if len(here) > 1 else None
            table.setdefault(kind, {})[name] = {"mean": float(here.mean()), "error": error, "count": len(here)}
    return table


if __name__ == "__main__":
    main()
