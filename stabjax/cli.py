"""The command ``stabjax``: see what the library does before writing a line of code.

stabjax demo                       the scale-detection task, no download
stabjax demo --data cifar10        the same on real images
stabjax info                       versions and devices
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from stabjax import data, models, networks, perturb, plot, probe, train
from stabjax._provenance import command, versions
from stabjax.stability import Stability

__all__ = ["Demo", "Info", "command", "main", "table", "versions"]


@dataclass(frozen=True)
class Demo:
    """Train a small CNN, probe it before and after, print D, G and R of every operation, draw them."""

    data: Literal["scale-detection", "cifar10", "mnist"] = "scale-detection"
    """The embedded task (two lit pixels: near or far?), or real images from STABJAX_DATA or a download."""
    images: int = 8192
    """Training images."""
    epochs: int = 8
    """Passes through them."""
    probed: int = 500
    """Test images that are deformed."""
    draws: int = 4
    """Deformations, and noises, of each."""
    seed: int = 0
    """Of everything."""
    out: Path = Path("runs/demo")
    """Folder of the figure and its numbers."""


@dataclass(frozen=True)
class Info:
    """Print versions and devices."""


@dataclass(frozen=True)
class _Material:
    """What a demo needs of a data set."""

    training: tuple[Any, Any]
    test: tuple[Any, Any]
    recipe: train.Recipe
    deformation: Any
    classes: int
    note: str


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command ``stabjax``.

    Args:
        argv: command-line arguments; those of the process if None.
    """
    chosen: Demo | Info = tyro.cli(
        Annotated[Demo, tyro.conf.subcommand("demo")] | Annotated[Info, tyro.conf.subcommand("info")],  # pyright: ignore[reportArgumentType]
        args=None if argv is None else list(argv),
        prog="stabjax",
        description=__doc__,
    )
    console = Console(width=None if sys.stdout.isatty() else 110)
    if isinstance(chosen, Info):
        for name, value in versions().items():
            console.print(f"{name:10} {value}")
    else:
        _demo(chosen, console)


def table(before: Stability, after: Stability, *, title: str = "") -> Table:
    """``D``, ``G`` and ``R`` of every operation of a network, at initialisation and trained, as a rich table."""
    result = Table(title=title, title_justify="left", caption_justify="left")
    for heading in ("operation", "D", "G", "R = D / G"):
        result.add_column(heading, no_wrap=True)
    result.caption = f"at initialisation → trained; R with its {100 * after.confidence:g} % interval over images"
    for k, layer in enumerate(after.layers):
        row = [layer]
        for name in ("deformation", "noise", "relative"):
            first, second = (f"{float(getattr(each, name)[k]):.3g}" for each in (before, after))
            row.append(f"{first} → {second}")
        low, high = np.asarray(after.relative_interval)[k]
        row[-1] += f" [{low:.2g}, {high:.2g}]"
        result.add_row(*row)
    return result


def _demo(demo: Demo, console: Console) -> None:
    draw_key, train_key, probe_key = jax.random.split(jax.random.key(demo.seed), 3)
    material = _material(demo, draw_key)
    channels = int(material.training[0].shape[-1])

    def build(*, rngs: nnx.Rngs) -> nnx.Module:
        return models.SmallCNN(channels=(16, 32, 64, 64), in_channels=channels, num_classes=material.classes, rngs=rngs)

    console.print(f"[bold]{demo.data}[/]: {len(material.training[0])} training images{material.note}")
    run = train.fit(
        build,
        material.training,
        key=train_key,
        recipe=material.recipe,
        test=material.test,
        progress=console.is_terminal,
    )
    accuracy = float(run.history.test_accuracy[-1, 0])
    console.print(f"test accuracy {accuracy:.3f} after {demo.epochs} epochs, {run.history.seconds[-1]:.0f} s")

    chosen = np.sort(np.random.default_rng(demo.seed).permutation(len(material.test[0]))[: demo.probed])
    images = train.normalise(material.test[0][chosen], mean=material.recipe.mean, deviation=material.recipe.deviation)
    options = {"key": probe_key, "deformation": material.deformation, "draws": demo.draws}
    with console.status("probing before and after training"):
        initial = networks.wrap(run.model("initial"), mode="batch_statistics")
        before = probe.stability(initial, images, batch_size=len(images), **options)
        after = probe.stability(run.model("last"), images, **options)
    console.print(table(before, after, title=f"{len(images)} test images, {demo.draws} deformations each"))

    figure = plot.layerwise(
        {"at initialisation": before, "trained": after},
        title=f"small CNN on {demo.data}: test accuracy {accuracy:.3f}",
    )
    record = {"config": asdict(demo), "versions": versions(), "test_accuracy": accuracy}
    results = {"initial": before.to_json(), "trained": after.to_json()}
    console.print(plot.save(figure, demo.out / f"demo_{demo.data}", record | results))
    console.print(
        f"R of the output: {float(before.relative[-1]):.3g} at initialisation, {float(after.relative[-1]):.3g} trained"
    )


def _material(demo: Demo, key: jax.Array) -> _Material:
    schedule = {"epochs": demo.epochs, "schedule": "triangular", "nesterov": True}
    if demo.data == "scale-detection":
        task = data.ScaleTask.plane(size=28)
        drawn = [
            data.scale_detection(key, count, task=task, skip=skip)
            for count, skip in ((demo.images, 0), (2048, demo.images))
        ]
        training, test = [(d.images / task.value, d.labels) for d in drawn]
        return _Material(
            training=training,
            test=test,
            recipe=train.Recipe(loss="hinge", rate=0.05, batch_size=128, **schedule),
            deformation=data.LocalTranslation(task, value=1.0),
            classes=1,
            note=" (two lit pixels, near or far), deformed by moving each pixel one step",
        )
    (images, labels), test = (data.load_bytes(demo.data, split) for split in ("train", "test"))
    chosen = np.sort(np.random.default_rng(demo.seed).permutation(len(images))[: demo.images])
    statistics = data.STATISTICS[demo.data]
    source = data.describe(demo.data)
    return _Material(
        training=(images[chosen], labels[chosen]),
        test=test,
        recipe=train.Recipe(
            rate=0.2,
            crop=4 if demo.data == "cifar10" else 2,
            flip=demo.data == "cifar10",
            mean=statistics.mean,
            deviation=statistics.deviation,
            **schedule,
        ),
        deformation=perturb.Diffeomorphism.of_displacement(1.0, 3, images.shape[1:3], convention="paper"),
        classes=10,
        note=f" ({source.note})" if source.note else "",
    )
