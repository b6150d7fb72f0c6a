"""D, G and R after every operation of a network, at initialisation and trained.

Draws ``figures/layerwise_<data>_<model>.png`` (and ``.pdf``) with its numbers beside it in ``.json``: settings,
versions, test accuracy, D, G and R with their intervals. A run that was killed goes on where it was::

    python -m experiments.layerwise --data cifar10
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

import stabjax as sj


@dataclass(frozen=True)
class Config:
    """D, G and R after every operation of a network, at initialisation and trained."""

    data: Literal["cifar10", "mnist", "fashion-mnist", "svhn", "scale-detection"] = "cifar10"
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
    """Networks trained, each with its own initialisation."""
    images: int = 500
    """Test images that are deformed, a fixed random choice."""
    draws: int = 10
    """Deformations, and noises, of each image."""
    cutoff: int = 3
    """Highest frequency of the deformations."""
    displacement: float = 1.0
    """Their typical size in pixels, in the convention of the paper."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("figures")
    """Folder of the figure."""
    runs: Path = Path("runs")
    """Folder of the checkpoints."""
    smoke: bool = False
    """A few seconds, on the embedded task, to see that everything runs."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, probe, draw; returns what is written beside the figure, by its name.

    Args:
        argv: command line; that of the process if None.
    """
    config = tyro.cli(Config, args=None if argv is None else list(argv), description=__doc__)
    if config.smoke:
        config = replace(config, data="scale-detection", model="LeNet", epochs=1.0, training=256, images=40, draws=2)
    console = Console()
    name = f"layerwise_{config.data}_{config.model}"
    train_key, probe_key = jax.random.split(jax.random.key(config.seed))
    training, test, deformation, recipe, note = material(config)

    run = fit(config, train_key, training, test, recipe, progress=console.is_terminal)
    accuracy = np.asarray(run.history.test_accuracy[-1])
    console.print(run.history)

    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(test[0]))[: config.images])
    images = sj.train.normalise(test[0][chosen], mean=recipe.mean, deviation=recipe.deviation)
    stages: dict[str, list[sj.stability.Stability]] = {"at initialisation": [], "trained": []}
    for seed in range(config.seeds):
        options = {"key": jax.random.fold_in(probe_key, seed), "deformation": deformation, "draws": config.draws}
        initial = sj.networks.wrap(run.model("initial", seed=seed), mode="batch_statistics")
        stages["at initialisation"].append(sj.probe.stability(initial, images, batch_size=len(images), **options))
        stages["trained"].append(sj.probe.stability(run.model("last", seed=seed), images, **options))
    console.print(str(stages["trained"][0]))

    record = {
        "command": sj.cli.command("experiments.layerwise", config),
        "config": asdict(config),
        "recipe": recipe.to_json(),
        "versions": sj.cli.versions(),
        "data": note,
        "test_accuracy": accuracy.tolist(),
        "training_seconds": float(run.history.seconds[-1]),
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
    console.print(sj.plot.save(figure, config.out / name, record))
    return {name: record}


def material(config: Config) -> tuple[tuple[Any, Any], tuple[Any, Any], Any, sj.train.Recipe, str]:
    """Training and test set, deformation, recipe, and what to say beside the numbers."""
    schedule: dict[str, Any] = {"epochs": config.epochs, "schedule": "triangular", "nesterov": True}
    if config.data == "scale-detection":
        task = sj.data.ScaleTask.plane(size=28)
        count = config.training or 8192
        key = jax.random.key(config.seed)
        training, test = [
            (drawn.images / task.value, (drawn.labels + 1) // 2)
            for drawn in (
                sj.data.scale_detection(key, count, task=task),
                sj.data.scale_detection(key, max(config.images, count // 4), task=task, skip=count),
            )
        ]
        recipe = sj.train.Recipe(rate=0.05, batch_size=64 if config.smoke else 128, **schedule)
        return training, test, sj.data.LocalTranslation(task, value=1.0), recipe, "two lit pixels, 28 x 28"
    (images, labels), test = (sj.data.load_bytes(config.data, split) for split in ("train", "test"))
    if config.training is not None:
        chosen = np.sort(np.random.default_rng(config.seed).permutation(len(images))[: config.training])
        images, labels = images[chosen], labels[chosen]
    natural = config.data == "cifar10"
    statistics = sj.data.STATISTICS[config.data]
    recipe = sj.train.Recipe(
        rate=0.2,
        crop=4 if natural else 2,
        flip=natural,
        mean=statistics.mean,
        deviation=statistics.deviation,
        **schedule,
    )
    deformation = sj.perturb.Diffeomorphism.of_displacement(
        config.displacement, config.cutoff, images.shape[1:3], convention="paper"
    )
    return (images, labels), test, deformation, recipe, sj.data.describe(config.data).note or config.data


def fit(config: Config, key: Any, training: Any, test: Any, recipe: sj.train.Recipe, *, progress: bool) -> sj.train.Run:
    """The trained networks; a run that was finished before is read, one that was killed goes on."""
    settings = f"w{config.width:g}_e{config.epochs:g}_s{config.seed}"
    return sj.train.fit(
        lambda *, rngs: build(config, training[0].shape[-1], rngs),
        training,
        key=key,
        recipe=recipe,
        test=test,
        seeds=config.seeds,
        path=None if config.smoke else config.runs / f"layerwise_{config.data}_{config.model}_{settings}",
        progress=progress,
    )


def build(config: Config, channels: int, rngs: nnx.Rngs) -> Any:
    """The network."""
    options: dict[str, Any] = {"width": config.width} if config.model.startswith("VGG") else {}
    classes = 2 if config.data == "scale-detection" else 10
    return sj.models.build(config.model, rngs=rngs, in_channels=channels, num_classes=classes, **options)


def change_by_kind(results: Sequence[sj.stability.Stability]) -> dict[str, dict[str, Any]]:
    """Mean change of ``log D``, ``log G`` and ``log R`` across each kind of operation, over layers and networks.

    With its standard error; the repeated value at the output is left out.
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
