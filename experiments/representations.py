"""What layers of networks have in common: seeds, training, deformations, and CCA of convolutions in three ways.

Trains two seeds of the network of the CCA tutorial of Raghu et al. (2017, arXiv 1706.05806) on SVHN where it is on
disk, on CIFAR-10 otherwise, and draws four figures, each with its numbers beside it in ``.json``::

    representations_seeds     every layer of one seed against every layer of the other, untrained and trained
    representations_training  a network along its training against what it becomes
    representations_deformed  a network on clean images against itself on deformed and on noisy ones
    representations_ways      canonical correlations of two convolutions, by positions, averages and interpolation,
                              and with fewer positions in less time

Finished trainings are read, others go on where they were::

    python -m experiments.representations
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import stabjax as sj
from experiments import _images
from experiments._study import Drawing, ResumableStudy, run

SUBSAMPLED = (1, 2, 5)


@dataclass(frozen=True)
class Config(ResumableStudy):
    """What layers of networks have in common."""

    SMOKE: ClassVar[Mapping[str, Any]] = {
        "data": "scale-detection",
        "epochs": 1.0,
        "training": 256,
        "channels": (4, 6),
        "hidden": 8,
        "images": 40,
    }

    data: Literal["auto", "svhn", "cifar10", "scale-detection"] = "auto"
    """``auto``: SVHN where it is on disk, CIFAR-10 otherwise."""
    epochs: float = 8.0
    """Passes through the training images."""
    training: int | None = None
    """Number of training images; all of them if not pair."""
    images: int = 1000
    """Test images, a fixed random choice."""
    cutoff: int = 3
    """Highest frequency of the deformations."""
    displacement: float = 1.0
    """Their typical size in pixels, in the convention of the paper."""
    channels: tuple[int, int] = (32, 64)
    """Of the two convolutions."""
    hidden: int = 200
    """Units of the first dense layer."""


class TutorialCNN(nnx.Module):
    """Convolution, pool, convolution, pool, batch normalization, two dense layers.

    Args:
        size: side of the images, a multiple of four.
        in_channels: of the images.
        num_classes: length of the output.
        channels: of the convolutions.
        hidden: units of the first dense layer.
        rngs: key of the initial weights.
    """

    def __init__(
        self,
        size: int,
        *,
        in_channels: int,
        num_classes: int,
        channels: tuple[int, int],
        hidden: int,
        rngs: nnx.Rngs,
    ) -> None:
        fast: dict[str, Any] = {"conv_general_dilated": sj.conv.conv_general_dilated, "rngs": rngs}
        self.conv1 = nnx.Conv(in_channels, channels[0], (3, 3), **fast)
        self.conv2 = nnx.Conv(*channels, (3, 3), **fast)
        self.norm = nnx.BatchNorm(channels[1], rngs=rngs)
        self.dense1 = nnx.Linear(channels[1] * (size // 4) ** 2, hidden, rngs=rngs)
        self.dense2 = nnx.Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits, ``(batch, num_classes)``, of images ``(batch, size, size, in_channels)``."""
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), (2, 2))
        x = jnp.reshape(self.norm(x), (len(x), -1))
        return self.dense2(nnx.relu(self.dense1(x)))


@dataclass(frozen=True)
class Pair:
    """Two trained networks of one architecture, and the images they are compared on."""

    trained: sj.train.Run
    images: jax.Array
    deformed: jax.Array
    noisy: jax.Array
    title: str
    """What is on every figure."""
    common: Mapping[str, Any]
    """What is beside all numbers."""

    def network(self, stage: Any, *, seed: int = 0) -> sj.networks.Network:
        """Return a network at a stage or step; its statistics are those of training, at step 0 those of the images."""
        model = self.trained.model(stage, seed=seed)
        return sj.networks.wrap(sj.train.calibrate(model, self.images) if stage in (0, "initial") else model)

    def compare(self, f: Any, g: Any, **options: Any) -> sj.similarity.Similarity:
        """Compare every layer with every layer but the repeated one at the output; by debiased CKA unless told."""
        options = {"measure": "cka_debiased", "select": _not_output, "batch_size": 100} | options
        return sj.probe.similarity(f, g, self.images, **options)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Train two networks, or read a finished run, and compare their layers."""
    pair = train(config, progress=console.is_terminal)
    console.print(pair.trained.history)
    draw = {"seeds": draw_seeds, "training": draw_training, "deformed": draw_deformed, "ways": draw_ways}
    figures: dict[str, Drawing] = {}
    for name, part in draw.items():
        figure, numbers = part(pair)
        figures[f"representations_{name}"] = figure, {**pair.common, **numbers}
    return figures


def train(config: Config, *, progress: bool = False) -> Pair:
    """Train two seeds on the images; a run that was finished before is read, one that was killed goes on."""
    data = _on_disk() if config.data == "auto" else config.data
    task = _images.load(
        data,
        seed=config.seed,
        epochs=config.epochs,
        training=config.training,
        images=config.images,
        cutoff=config.cutoff,
        displacement=config.displacement,
        batch_size=64 if config.smoke else 128,
    )
    task = replace(task, recipe=replace(task.recipe, rate=0.05, crop=0, flip=False))
    train_key, key = jax.random.split(jax.random.key(config.seed))
    sizes = "_".join(map(str, (*config.channels, config.hidden, config.training or "all")))
    trained = sj.train.fit(
        lambda *, rngs: TutorialCNN(
            task.training[0].shape[-2],
            in_channels=task.channels,
            num_classes=task.classes,
            channels=config.channels,
            hidden=config.hidden,
            rngs=rngs,
        ),
        task.training,
        key=train_key,
        recipe=task.recipe,
        test=task.test,
        seeds=2,
        path=config.runs / f"representations_{data}_{sizes}_e{config.epochs:g}_s{config.seed}",
        progress=progress,
    )
    chosen, images = task.draw_test_images(config.images, seed=config.seed)
    (deformed,), (noisy,) = sj.probe.perturbed(images, key=key, deformation=task.deformation)
    accuracy = np.asarray(trained.history.test_accuracy[-1])
    common = {
        "recipe": task.recipe.to_json(),
        "data": task.note,
        "test_accuracy": accuracy.tolist(),
        "test_images": chosen.tolist(),
    }
    errors = " and ".join(f"{100 * (1 - a):.1f}" for a in accuracy)
    title = f"Network of the CCA tutorial on {task.label(data)}, test errors {errors} %; {len(images)} test images"
    return Pair(trained, images, deformed, noisy, title, common)


def draw_seeds(pair: Pair) -> Drawing:
    """Draw two seeds, untrained and trained by CKA, trained by canonical correlations of channel averages."""
    networks = {stage: [pair.network(stage, seed=seed) for seed in (0, 1)] for stage in ("initial", "last")}
    results = {
        "untrained, debiased CKA": pair.compare(*networks["initial"]),
        "trained, debiased CKA": pair.compare(*networks["last"]),
        "trained, PWCCA of channel averages": pair.compare(
            *networks["last"], measure="pwcca", units="average", select=_narrow
        ),
    }
    figure = draw_heat_maps(results, rows="seed 0", columns="seed 1")
    figure.suptitle(pair.title, fontsize=10)
    return figure, {"results": {name: result.to_json() for name, result in results.items()}}


def draw_training(pair: Pair) -> Drawing:
    """Draw each layer along training against itself at the end, and two early checkpoints against the last."""
    steps = sj.train.checkpoints(pair.trained.path) if pair.trained.path is not None else {}
    last = pair.network("last")
    results = {epoch: pair.compare(pair.network(step), last) for step, epoch in steps.items()}
    epochs = list(results)
    first = results[epochs[0]]
    same = np.stack([np.diag(result.matrix) for result in results.values()], axis=1)
    early = {f"epoch {epoch:g} against the end": results[epoch] for epoch in (epochs[0], epochs[1])}
    figure, grid = sj.plot.panels(1, 3, size=(5.0, 4.4))
    _heat(grid[0, 0], same, first.layers, [f"{epoch:g}" for epoch in epochs])
    grid[0, 0].set(xlabel="epochs", ylabel="layer", title="each layer against itself at the end")
    for axes, (name, result) in zip(grid[0, 1:], early.items(), strict=True):
        _heat(axes, result.matrix, result.layers, result.other_layers)
        axes.set(xlabel="layer at the end", ylabel="layer before", title=name)
    figure.colorbar(grid[0, 0].images[0], ax=grid[0].tolist(), label="debiased CKA", shrink=0.8)
    figure.suptitle(f"{pair.title} (seed 0)", fontsize=10)
    return figure, {"results": {f"{epoch:g}": result.to_json() for epoch, result in results.items()}}


def draw_deformed(pair: Pair) -> Drawing:
    """Draw clean against deformed images, untrained and trained; and the diagonals, also of noise of the same size."""
    stages = {"untrained": pair.network("initial"), "trained": pair.network("last")}
    results = {
        f"{stage}, {name}": pair.compare(f, f, others=others)
        for stage, f in stages.items()
        for name, others in (("deformed", pair.deformed), ("noisy", pair.noisy))
    }
    figure, grid = sj.plot.panels(1, 3, size=(5.0, 4.4))
    for axes, stage in zip(grid[0], stages, strict=False):
        result = results[f"{stage}, deformed"]
        _heat(axes, result.matrix, result.layers, result.other_layers)
        axes.set(xlabel="layer, deformed images", ylabel="layer, clean images", title=stage)
    figure.colorbar(grid[0, 0].images[0], ax=grid[0, :2].tolist(), label="debiased CKA", shrink=0.8)
    axes, layers = grid[0, 2], results["trained, deformed"].layers
    place = np.arange(len(layers))
    for name, result in results.items():
        color = sj.plot.COLORS[0 if name.startswith("untrained") else 1]
        line = "-" if name.endswith("deformed") else "--"
        axes.plot(place, 1 - np.diag(result.matrix), line, color=color, marker="o", markersize=3, label=name)
        low, high = (np.diag(result.interval[..., end]) for end in (0, 1))
        axes.fill_between(place, 1 - high, 1 - low, color=color, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_xticks(place, layers, rotation=90, fontsize=7)
    axes.set(xlabel="layer", ylabel="1 - debiased CKA with clean images", title="the same layer, 95 % intervals")
    axes.legend(fontsize=7, frameon=False, handlelength=4)
    axes.grid(axis="y", color="0.92")
    figure.suptitle(f"{pair.title} (seed 0)", fontsize=10)
    return figure, {"results": {name: result.to_json() for name, result in results.items()}}


def draw_ways(pair: Pair) -> Drawing:
    """Draw correlations of the second convolution of one seed with the same and with the second pool of the other."""
    maps = [_maps(pair.network("last", seed=seed), pair.images) for seed in (0, 1)]
    conv, same, pool = maps[0]["conv"], maps[1]["conv"], maps[1]["pool"]
    size = conv.shape[1:-1]
    positions, average, resized = sj.similarity.positions, sj.similarity.average, sj.similarity.resized
    ways = {
        "conv2 and conv2, positions": (positions(conv), positions(same)),
        "conv2 and conv2, averages": (average(conv), average(same)),
        "conv2 and pool2, averages": (average(conv), average(pool)),
        "conv2 and pool2, interpolated": (positions(conv), positions(resized(pool, size))),
        "the same, half-pixel centres": (
            positions(conv),
            positions(resized(pool, size, convention="half_pixel")),
        ),
    }
    correlations = {name: _correlations(*samples) for name, samples in ways.items()}
    wide = resized(pool, size)
    fewer = {
        "all positions" if every == 1 else f"positions ::{every}": _correlations(
            positions(conv, every=every), positions(wide, every=every)
        )
        for every in SUBSAMPLED
    }
    figure, grid = sj.plot.panels(1, 2, size=(5.4, 4.8), sharey=True)
    for axes, curves in zip(grid[0], (correlations, fewer), strict=True):
        for color, (name, numbers) in zip(sj.plot.COLORS[1:], curves.items(), strict=False):
            values = np.array(numbers["correlations"])
            label = f"{name}: {numbers['samples']:,} samples, {1e3 * numbers['seconds']:.0f} ms"
            axes.plot(np.arange(1, len(values) + 1), values, "o-", markersize=2, linewidth=1, color=color, label=label)
        axes.set_xlabel("canonical correlation, in falling order")
        axes.grid(color="0.93")
        axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    grid[0, 0].set(ylabel="correlation", title="three ways to samples", ylim=(0, 1.02))
    grid[0, 1].set(title="conv2 and pool2, interpolated, with fewer positions")
    figure.suptitle(pair.title, fontsize=10)
    every = fewer["all positions"]
    saved = {
        name: {
            "times_faster": every["seconds"] / numbers["seconds"],
            "largest_difference": float(np.max(np.abs(np.subtract(numbers["correlations"], every["correlations"])))),
        }
        for name, numbers in fewer.items()
    }
    return figure, {"ways": correlations, "subsampled": fewer, "saved": saved}


def draw_heat_maps(results: Mapping[str, sj.similarity.Similarity], *, rows: str, columns: str) -> Any:
    """Draw one heat map per result, from 0 to 1, the number in each field."""
    figure, grid = sj.plot.panels(1, len(results), size=(5.0, 4.4))
    for axes, (name, result) in zip(grid[0], results.items(), strict=True):
        _heat(axes, result.matrix, result.layers, result.other_layers)
        axes.set(xlabel=f"layer, {columns}", ylabel=f"layer, {rows}", title=name)
    figure.colorbar(grid[0, 0].images[0], ax=grid[0].tolist(), label="similarity", shrink=0.8)
    return figure


def _heat(axes: Any, matrix: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    matrix = np.asarray(matrix, float)
    axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.title.set_fontsize(9)
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            color = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=color)


def _not_output(tap: sj.features.Tap) -> bool:
    return tap.kind != "output"


def _narrow(tap: sj.features.Tap) -> bool:
    """Return whether an operation has parameters."""
    return tap.kind in ("conv", "norm", "dense")


@jax.jit
def _maps(f: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Return the second convolution, before its nonlinearity, and the second pool."""

    def second(tap: sj.features.Tap) -> bool:
        return tap.name == "conv2" or tap.kind == "pool"

    activations = sj.features.capture(f, select=second)(images)[1]
    return {"conv": activations["conv2"], "pool": list(activations.values())[-1]}


def _correlations(x: jax.Array, y: jax.Array, *, repeats: int = 3) -> dict[str, Any]:
    """Measure canonical correlations, and the seconds they take once compiled."""
    result, seconds = jax.block_until_ready(_cca(x, y)), []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(_cca(x, y))
        seconds.append(time.perf_counter() - start)
    return {
        "correlations": np.asarray(result.correlations, float).tolist(),
        "mean": float(result.mean),
        "valid": bool(result.valid),
        "samples": len(x),
        "seconds": min(seconds),
    }


@jax.jit
def _cca(x: jax.Array, y: jax.Array) -> sj.similarity.CCA:
    return sj.similarity.cca(x, y)


def _on_disk() -> Literal["svhn", "cifar10"]:
    try:
        sj.data.describe("svhn")
    except FileNotFoundError:
        return "cifar10"
    return "svhn"


if __name__ == "__main__":
    main()
