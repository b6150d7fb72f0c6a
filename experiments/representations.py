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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

import stabjax as sj
from experiments import _records, layerwise

Drawn = tuple[Any, dict[str, Any]]
SUBSAMPLED = (1, 2, 5)


@dataclass(frozen=True)
class Config:
    """What layers of networks have in common."""

    data: Literal["auto", "svhn", "cifar10", "scale-detection"] = "auto"
    """``auto``: SVHN where it is on disk, CIFAR-10 otherwise."""
    epochs: float = 8.0
    """Passes through the training images."""
    training: int | None = None
    """Number of training images; all of them if not given."""
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
    seed: int = 0
    """Of everything random."""
    out: Path = Path("figures")
    """Folder of the figures."""
    runs: Path = Path("runs")
    """Folder of the checkpoints."""
    smoke: bool = False
    """A few seconds, on the embedded task, to see that everything runs."""


class TutorialCNN(nnx.Module):
    """Convolution, pool, convolution, pool, batch normalisation, two dense layers.

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
class Material:
    """Two trained networks, and the images they are compared on."""

    run: sj.train.Run
    images: jax.Array
    deformed: jax.Array
    noisy: jax.Array
    title: str
    """What is on every figure."""
    about: Mapping[str, Any]
    """What is beside all numbers."""

    def network(self, which: Any, *, seed: int = 0) -> sj.networks.Network:
        """At a stage or step; the statistics are those of training, at the beginning those the images give."""
        model = self.run.model(which, seed=seed)
        return sj.networks.wrap(sj.train.calibrate(model, self.images) if which in (0, "initial") else model)

    def compare(self, f: Any, g: Any, **options: Any) -> sj.similarity.Similarity:
        """Every layer with every layer, the repeated one at the output left out; by debiased CKA if nothing is said."""
        chosen = {"measure": "cka_debiased", "select": _not_output, "batch_size": 100} | options
        return sj.probe.similarity(f, g, self.images, **chosen)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, compare, draw; returns what is written beside the figures, by their names.

    Args:
        argv: command line; that of the process if None.
    """
    config = tyro.cli(Config, args=None if argv is None else list(argv), description=__doc__)
    if config.smoke:
        small: dict[str, Any] = {"channels": (4, 6), "hidden": 8, "images": 40}
        config = replace(config, data="scale-detection", epochs=2.0, training=256, **small)
    console = Console()
    given = material(config, progress=console.is_terminal)
    console.print(given.run.history)
    parts = {"seeds": of_seeds, "training": of_training, "deformed": of_deformed, "ways": of_ways}
    figures: dict[str, Drawn] = {}
    for name, part in parts.items():
        figure, numbers = part(given)
        figures[f"representations_{name}"] = figure, dict(given.about) | numbers
    return _records.save(figures, config.out, console)


def material(config: Config, *, progress: bool = False) -> Material:
    """Images, and two seeds trained on them; a run that was finished before is read, one that was killed goes on."""
    data = _on_disk() if config.data == "auto" else config.data
    given = layerwise.Config(
        data=data,
        training=config.training,
        epochs=config.epochs,
        images=config.images,
        cutoff=config.cutoff,
        displacement=config.displacement,
        seed=config.seed,
        smoke=config.smoke,
    )
    training, test, deformation, recipe, note = layerwise.material(given)
    recipe = replace(recipe, rate=0.05, crop=0, flip=False)
    size, channels = training[0].shape[-2:]
    classes = int(np.max(training[1])) + 1
    train_key, key = jax.random.split(jax.random.key(config.seed))
    some = "_".join(map(str, (*config.channels, config.hidden, config.training or "all")))
    run = sj.train.fit(
        lambda *, rngs: TutorialCNN(
            size,
            in_channels=channels,
            num_classes=classes,
            channels=config.channels,
            hidden=config.hidden,
            rngs=rngs,
        ),
        training,
        key=train_key,
        recipe=recipe,
        test=test,
        seeds=2,
        path=config.runs / f"representations_{data}_{some}_e{config.epochs:g}_s{config.seed}",
        progress=progress,
    )
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(test[0]))[: config.images])
    images = sj.train.normalise(test[0][chosen], mean=recipe.mean, deviation=recipe.deviation)
    (deformed,), (noisy,) = sj.probe.perturbed(images, key=key, deformation=deformation)
    accuracy = np.asarray(run.history.test_accuracy[-1])
    about = {
        "command": sj.cli.command("experiments.representations", config),
        "config": asdict(config),
        "recipe": recipe.to_json(),
        "versions": sj.cli.versions(),
        "data": note,
        "test_accuracy": accuracy.tolist(),
        "test_images": chosen.tolist(),
    }
    errors = " and ".join(f"{100 * (1 - a):.1f}" for a in accuracy)
    source = f"{data}{' (JPEG copies)' if 'JPEG' in note else ''}"
    title = f"Network of the CCA tutorial on {source}, test errors {errors} %; {len(images)} test images"
    return Material(run, images, deformed, noisy, title, about)


def of_seeds(given: Material) -> Drawn:
    """Two seeds, untrained and trained by CKA, trained by canonical correlations of channel averages."""
    pairs = {stage: (given.network(stage, seed=0), given.network(stage, seed=1)) for stage in ("initial", "last")}
    results = {
        "untrained, debiased CKA": given.compare(*pairs["initial"]),
        "trained, debiased CKA": given.compare(*pairs["last"]),
        "trained, PWCCA of channel averages": given.compare(
            *pairs["last"], measure="pwcca", units="average", select=_narrow
        ),
    }
    figure = heat_maps(results, rows="seed 0", columns="seed 1")
    figure.suptitle(given.title, fontsize=10)
    return figure, {"results": {name: result.to_json() for name, result in results.items()}}


def of_training(given: Material) -> Drawn:
    """Each layer along training against itself at the end, and all layers of two early checkpoints against the last."""
    steps = sj.train.checkpoints(given.run.path) if given.run.path is not None else {}
    last = given.network("last")
    results = {epoch: given.compare(given.network(step), last) for step, epoch in steps.items()}
    epochs = list(results)
    first = results[epochs[0]]
    same = np.stack([np.diag(result.matrix) for result in results.values()], axis=1)
    shown = {f"epoch {epoch:g} against the end": results[epoch] for epoch in (epochs[0], epochs[1])}
    figure, grid = sj.plot.panels(1, 3, size=(5.0, 4.4))
    _heat(grid[0, 0], same, first.layers, [f"{epoch:g}" for epoch in epochs])
    grid[0, 0].set(xlabel="epochs", ylabel="layer", title="each layer against itself at the end")
    for axes, (name, result) in zip(grid[0, 1:], shown.items(), strict=True):
        _heat(axes, result.matrix, result.layers, result.other_layers)
        axes.set(xlabel="layer at the end", ylabel="layer before", title=name)
    figure.colorbar(grid[0, 0].images[0], ax=grid[0].tolist(), label="debiased CKA", shrink=0.8)
    figure.suptitle(f"{given.title} (seed 0)", fontsize=10)
    return figure, {"results": {f"{epoch:g}": result.to_json() for epoch, result in results.items()}}


def of_deformed(given: Material) -> Drawn:
    """Clean against deformed images, untrained and trained; and the diagonals, with noise of the same size beside."""
    stages = {"untrained": given.network("initial"), "trained": given.network("last")}
    results = {
        f"{stage}, {name}": given.compare(f, f, others=others)
        for stage, f in stages.items()
        for name, others in (("deformed", given.deformed), ("noisy", given.noisy))
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
        colour = sj.plot.COLORS[0 if name.startswith("untrained") else 1]
        line = "-" if name.endswith("deformed") else "--"
        axes.plot(place, 1 - np.diag(result.matrix), line, color=colour, marker="o", markersize=3, label=name)
        low, high = (np.diag(result.interval[..., end]) for end in (0, 1))
        axes.fill_between(place, 1 - high, 1 - low, color=colour, alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    axes.set_xticks(place, layers, rotation=90, fontsize=7)
    axes.set(xlabel="layer", ylabel="1 - debiased CKA with clean images", title="the same layer, 95 % intervals")
    axes.legend(fontsize=7, frameon=False, handlelength=4)
    axes.grid(axis="y", color="0.92")
    figure.suptitle(f"{given.title} (seed 0)", fontsize=10)
    return figure, {"results": {name: result.to_json() for name, result in results.items()}}


def of_ways(given: Material) -> Drawn:
    """Correlations of the second convolution of one seed with the same and with the second pool of the other."""
    maps = [_maps(given.network("last", seed=seed), given.images) for seed in (0, 1)]
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
    found = {name: _correlations(*pair) for name, pair in ways.items()}
    wide = resized(pool, size)
    fewer = {
        "all positions" if every == 1 else f"positions ::{every}": _correlations(
            positions(conv, every=every), positions(wide, every=every)
        )
        for every in SUBSAMPLED
    }
    figure, grid = sj.plot.panels(1, 2, size=(5.4, 4.8), sharey=True)
    for axes, curves in zip(grid[0], (found, fewer), strict=True):
        for colour, (name, numbers) in zip(sj.plot.COLORS[1:], curves.items(), strict=False):
            values = np.array(numbers["correlations"])
            label = f"{name}: {numbers['samples']:,} samples, {1e3 * numbers['seconds']:.0f} ms"
            axes.plot(np.arange(1, len(values) + 1), values, "o-", markersize=2, linewidth=1, color=colour, label=label)
        axes.set_xlabel("canonical correlation, in falling order")
        axes.grid(color="0.93")
        axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    grid[0, 0].set(ylabel="correlation", title="three ways to samples", ylim=(0, 1.02))
    grid[0, 1].set(title="conv2 and pool2, interpolated, with fewer positions")
    figure.suptitle(given.title, fontsize=10)
    whole = fewer["all positions"]
    saved = {
        name: {
            "times_faster": whole["seconds"] / numbers["seconds"],
            "largest_difference": float(np.max(np.abs(np.subtract(numbers["correlations"], whole["correlations"])))),
        }
        for name, numbers in fewer.items()
    }
    return figure, {"ways": found, "subsampled": fewer, "saved": saved}


def heat_maps(results: Mapping[str, sj.similarity.Similarity], *, rows: str, columns: str) -> Any:
    """One heat map per result, from 0 to 1, the number in each field."""
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
            colour = "black" if value > 0.6 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=colour)


def _not_output(tap: sj.features.Tap) -> bool:
    return tap.kind != "output"


def _narrow(tap: sj.features.Tap) -> bool:
    """The operations with parameters."""
    return tap.kind in ("conv", "norm", "dense")


@jax.jit
def _maps(f: Any, images: jax.Array) -> dict[str, jax.Array]:
    """The second convolution, before its nonlinearity, and the second pool."""

    def second(tap: sj.features.Tap) -> bool:
        return tap.name == "conv2" or tap.kind == "pool"

    found = sj.features.capture(f, select=second)(images)[1]
    return {"conv": found["conv2"], "pool": list(found.values())[-1]}


def _correlations(x: jax.Array, y: jax.Array, *, repeats: int = 3) -> dict[str, Any]:
    """Canonical correlations, and the seconds they take once compiled."""
    found, seconds = jax.block_until_ready(_cca(x, y)), []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(_cca(x, y))
        seconds.append(time.perf_counter() - start)
    return {
        "correlations": np.asarray(found.correlations, float).tolist(),
        "mean": float(found.mean),
        "valid": bool(found.valid),
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
