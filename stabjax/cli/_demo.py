"""``stabjax demo``: train a small network and probe it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from stabjax import data, models, networks, perturb, plot, probe, train
from stabjax._provenance import versions
from stabjax.stability import Stability


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
class _Task:
    """Images to classify, how a network is trained on them, and how they are deformed."""

    training: tuple[Any, Any]
    test: tuple[Any, Any]
    recipe: train.Recipe
    deformation: Any
    outputs: int
    """Of the network: one per class, or one whose sign is the class."""
    note: str
    """What to say beside the name of the images."""


def table(before: Stability, after: Stability, *, title: str = "") -> Table:
    """Write ``D``, ``G`` and ``R`` of every operation, at initialization and trained, into a rich table."""
    result = Table(title=title, title_justify="left", caption_justify="left")
    for heading in ("operation", "D", "G", "R = D / G"):
        result.add_column(heading, no_wrap=True)
    result.caption = f"at initialization → trained; R with its {100 * after.confidence:g} % interval over images"
    for k, layer in enumerate(after.layers):
        row = [layer]
        for name in ("deformation", "noise", "relative"):
            first, second = (f"{float(getattr(each, name)[k]):.3g}" for each in (before, after))
            row.append(f"{first} → {second}")
        low, high = np.asarray(after.relative_interval)[k]
        row[-1] += f" [{low:.2g}, {high:.2g}]"
        result.add_row(*row)
    return result


def run(demo: Demo, console: Console) -> None:
    """Train and probe a network, print the table, write the figure and its numbers."""
    draw_key, train_key, probe_key = jax.random.split(jax.random.key(demo.seed), 3)
    task = _task(demo, draw_key)
    channels = int(task.training[0].shape[-1])

    def build(*, rngs: nnx.Rngs) -> nnx.Module:
        return models.SmallCNN(channels=(16, 32, 64, 64), in_channels=channels, num_classes=task.outputs, rngs=rngs)

    console.print(f"[bold]{demo.data}[/]: {len(task.training[0])} training images{task.note}")
    run = train.fit(
        build, task.training, key=train_key, recipe=task.recipe, test=task.test, progress=console.is_terminal
    )
    accuracy = float(run.history.test_accuracy[-1, 0])
    console.print(f"test accuracy {accuracy:.3f} after {demo.epochs} epochs, {run.history.seconds[-1]:.0f} s")

    images = task.test[0][data.subset(len(task.test[0]), demo.probed, seed=demo.seed)]
    images = data.normalize(jnp.asarray(images), task.recipe.statistics)
    options = {"key": probe_key, "deformation": task.deformation, "draws": demo.draws}
    with console.status("probing before and after training"):
        # Before training there are no statistics of the data: the network takes those of its batch, here of all images.
        initial = networks.wrap(run.model("initial"), mode="batch_statistics")
        before = probe.stability(initial, images, batch_size=len(images), **options)
        after = probe.stability(run.model("last"), images, **options)
    console.print(table(before, after, title=f"{len(images)} test images, {demo.draws} deformations each"))

    figure = plot.layerwise(
        {"at initialization": before, "trained": after},
        title=f"small CNN on {demo.data}: test accuracy {accuracy:.3f}",
    )
    record = {"config": asdict(demo), "versions": versions(), "test_accuracy": accuracy}
    results = {"initial": before.to_json(), "trained": after.to_json()}
    console.print(plot.save(figure, demo.out / f"demo_{demo.data}", record | results))
    console.print(
        f"R of the output: {float(before.relative[-1]):.3g} at initialization, {float(after.relative[-1]):.3g} trained"
    )


def _task(demo: Demo, key: jax.Array) -> _Task:
    """Load the images of the demo, or draw the embedded task with this key."""
    if demo.data == "scale-detection":
        task = data.ScaleTask.plane(size=28)
        sets = [
            # One key, and the test images are those behind the training images in its order: no pair is in both.
            data.scale_detection(key, count, task=task, skip=skip)
            for count, skip in ((demo.images, 0), (2048, demo.images))
        ]
        # Lit pixels become 1: the deformation, which takes their value away and puts it elsewhere, gets it as `value`.
        training, test = [(drawn.images / task.value, drawn.labels) for drawn in sets]
        return _Task(
            training=training,
            test=test,
            recipe=train.Recipe(loss="hinge", rate=0.05, epochs=demo.epochs, schedule="triangular", nesterov=True),
            deformation=data.LocalTranslation(task, value=1.0),
            outputs=1,
            note=" (two lit pixels, near or far), deformed by moving each pixel one step",
        )
    (images, labels), test = (data.load_bytes(demo.data, split) for split in ("train", "test"))
    chosen = data.subset(len(images), demo.images, seed=demo.seed)
    statistics, source = data.STATISTICS[demo.data], data.describe(demo.data)
    return _Task(
        training=(images[chosen], labels[chosen]),
        test=test,
        recipe=train.short(epochs=demo.epochs, natural=demo.data == "cifar10", **asdict(statistics)),
        deformation=perturb.Diffeomorphism.of_displacement(1.0, 3, images.shape[1:3], convention="paper"),
        outputs=len(source.classes),
        note=f" ({source.note})" if source.note else "",
    )
