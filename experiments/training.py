"""``R``, ``D``, ``G`` and the test error along training, and against the size of the training set.

Draws two figures, each with its numbers beside it::

    training_<size>       along training, at log-spaced epochs
    training_set_<size>   against the number of training images, for equal epochs and for equal steps

Networks that ``experiments.relative_stability`` has trained are read, others are trained first::

    python -m experiments.training --size cpu
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import numpy as np
from rich.console import Console

import stabjax as sj
from experiments import _networks, _records
from experiments._images import Task
from experiments._networks import Architecture, Size, ZooStudy
from experiments._probe import QUANTITIES, Probe, draw_probe
from experiments._study import Drawing, run

DEFAULT: Mapping[Size, tuple[str, ...]] = {
    "smoke": ("SmallCNN (4,)",),
    "cpu": ("FC L4", "LeNet", "VGG11bn, width 1/4"),
    "paper": ("FC L4", "LeNet", "ResNet18", "EfficientNetB0"),
}
IMAGES: Mapping[Size, tuple[int, ...]] = {
    "smoke": (128, 256),
    "cpu": (512, 1024, 2048, 4096, 8192),
    "paper": (512, 1024, 2048, 4096, 8192, 16384, 32768, 50000),
}
BATCH = 128
"""Images in a step of every recipe here."""
RULES = ("equal epochs", "equal steps")


@dataclass(frozen=True)
class Config(ZooStudy):
    """R, D, G and the test error along training, and against the size of the training set."""

    SMOKE: ClassVar[Mapping[str, Any]] = {"draws": 1, "images": 16, "seeds": 1}

    networks: tuple[str, ...] = ()
    """Names of the zoo; a few of different kinds if not given."""
    seeds: int = 3
    """Networks of each size of the training set, each with its own choice of images."""
    draws: int = 4
    """Deformations, and noises, of each."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Train networks of the zoo, measure them along training, and train them on parts of the images."""
    task = _networks.load_task(config.size, seed=config.seed)
    probe = draw_probe(task, images=config.images, draws=config.draws, seed=config.seed)
    architectures = _networks.select(config.size, config.networks or DEFAULT[config.size])
    common = {"probe": dict(probe.settings)}
    along = {name: along_training(name, each, config, task, probe) for name, each in architectures.items()}
    sets: dict[str, Any] = {}
    for name, architecture in architectures.items():
        sets[name] = {rule: against_size(name, architecture, rule, config, probe) for rule in RULES}
        console.print(f"{name}: { ({rule: each['slopes'] for rule, each in sets[name].items()}) }")
    return {
        f"training_{config.size}": (draw_along(along), common | {"networks": along}),
        f"training_set_{config.size}": (draw_sets(sets), common | {"networks": sets}),
    }


def along_training(name: str, architecture: Architecture, config: Config, task: Task, probe: Probe) -> dict[str, Any]:
    """Measure ``R``, ``D``, ``G`` and test error at the checkpoints of one run; at step 0 with batch statistics."""
    zoo = config.zoo_folder()
    trained = _networks.train(name, architecture, task, key=jax.random.key(config.seed), seeds=1, path=zoo)
    folder = zoo / _networks.file_name(name)
    history = trained.history
    errors = {int(step): 1 - float(a[0]) for step, a in zip(history.step, history.test_accuracy, strict=True)}

    def measure() -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"epoch": [], "error": [], "R": [], "D": [], "G": [], "R low": [], "R high": []}
        for step, epoch in sj.train.checkpoints(folder).items():
            model = trained.model(step)
            network = sj.networks.wrap(model, mode="batch_statistics") if step == 0 else model
            result = probe.measure(network)["median"]
            rows["epoch"].append(epoch)
            rows["error"].append(errors.get(step))
            for quantity, symbol in QUANTITIES.items():
                rows[symbol].append(result[quantity])
            for end, value in zip(("low", "high"), result["relative_interval"], strict=True):
                rows[f"R {end}"].append(value)
        return rows

    return _records.load_or_compute(folder / "along.json", _records.settings(architecture, task, probe), measure)


def against_size(name: str, architecture: Architecture, rule: str, config: Config, probe: Probe) -> dict[str, Any]:
    """Measure the same at the end of training on part of the images, and fit slopes in logarithms to successful runs.

    ``equal epochs``: those of the zoo at every size, so fewer steps on fewer images; ``equal steps``: those that the
    largest set takes.
    """
    sizes = IMAGES[config.size]
    result: dict[str, Any] = {"images": list(sizes), **{k: [] for k in ("error", "R", "D", "G")}}
    for images in sizes:
        more = sizes[-1] // BATCH / (images // BATCH)
        longer = architecture if rule == RULES[0] else replace(architecture, epochs=architecture.epochs * more)
        # On the largest set both rules are one training.
        where = RULES[0] if more == 1 else rule
        each: dict[str, list[float]] = {k: [] for k in ("error", "R", "D", "G")}
        for seed in range(config.seed, config.seed + config.seeds):
            one = train_and_measure(name, longer, where, images, seed, config, probe)
            for key, values in each.items():
                values.append(one[key])
        for key, values in each.items():
            result[key].append(values)
    result["slopes"] = {}
    for key in ("error", "R", "D", "G"):
        middle, _ = over_seeds(result, key)
        some = np.isfinite(middle)
        slope = np.polyfit(np.log(sizes)[some], middle[some], 1)[0] if some.sum() > 1 else np.nan
        result["slopes"][key] = float(slope)
    return result


def over_seeds(result: Mapping[str, Any], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of the logarithm for each number of images, NaN where no run succeeded."""
    errors, r, values = (np.array(result[each], float) for each in ("error", "R", key))
    success = (errors < _records.CHANCE) & np.isfinite(r)
    logs = np.where(success, np.log(np.where(success, values, 1)), np.nan)
    count = success.sum(1)
    middle = np.nansum(logs, 1) / np.where(count, count, np.nan)
    spread = np.sqrt(np.nansum(np.square(logs - middle[:, None]), 1) / np.maximum(count - 1, 1))
    return middle, spread


def train_and_measure(
    name: str, architecture: Architecture, rule: str, images: int, seed: int, config: Config, probe: Probe
) -> dict[str, Any]:
    """Train a network on so many images, and measure its error, ``R``, ``D`` and ``G``; read them if done before."""
    task = _networks.load_task(config.size, seed=seed, training=images)
    folder = config.runs / f"training_set_{config.size}" / f"{_networks.file_name(rule)}_p{images}_s{seed}"

    def measure() -> dict[str, float]:
        # Scored once: small sets take hundreds of epochs.
        options = {"key": jax.random.key(seed), "seeds": 1, "path": folder, "score": False}
        trained = _networks.train(name, architecture, task, **options)
        model, recipe = trained.model("last"), trained.recipe
        score = sj.train.evaluate(model, *task.test, mean=recipe.mean, deviation=recipe.deviation)
        numbers = probe.measure(model)["median"]
        return {"error": 1 - score.accuracy} | {symbol: numbers[name] for name, symbol in QUANTITIES.items()}

    settings = _records.settings(architecture, task, probe) | {"seed": seed}
    return _records.load_or_compute(folder / f"{_networks.file_name(name)}.json", settings, measure)


def draw_along(along: Mapping[str, Any]) -> Any:
    """Draw four panels against the epoch, one curve per network; initialization stands at the left."""
    figure, grid = sj.plot.panels(1, 4, size=(3.6, 3.4))
    for axes, (key, label) in zip(grid[0], _PANELS, strict=True):
        for color, (name, rows) in zip(sj.plot.COLORS[1:], along.items(), strict=False):
            epoch = np.array(rows["epoch"], float)
            position = np.where(epoch > 0, epoch, 0.5 * epoch[epoch > 0].min())
            values = np.array([np.nan if v is None else v for v in rows[key]], float)
            axes.plot(position, values, "o-", color=color, markersize=3, label=name)
            if key == "R":
                axes.fill_between(position, rows["R low"], rows["R high"], color=color, alpha=0.25, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="epoch (first point: initialization)", ylabel=label)
        sj.plot.plain_ticks(axes.xaxis)
        sj.plot.plain_ticks(axes.yaxis)
        axes.grid(color="0.93")
    grid[0, 0].legend(fontsize=7, frameon=False)
    figure.suptitle("Along training; medians per unit of the output", fontsize=10)
    return figure


def draw_sets(sets: Mapping[str, Any]) -> Any:
    """Draw four panels against the number of training images: geometric means and deviations over seeds."""
    figure, grid = sj.plot.panels(1, 4, size=(3.6, 4.8))
    for axes, (key, label) in zip(grid[0], _PANELS, strict=True):
        for color, (name, rules) in zip(sj.plot.COLORS[1:], sets.items(), strict=False):
            for style, rule in zip(("-", "--"), RULES, strict=True):
                middle, spread = over_seeds(rules[rule], key)
                images = rules[rule]["images"]
                slope = rules[rule]["slopes"][key]
                axes.plot(
                    images,
                    np.exp(middle),
                    style,
                    marker="o",
                    markersize=3,
                    color=color,
                    label=f"{name}, {rule}: slope {slope:+.2f}",
                )
                axes.fill_between(
                    images, np.exp(middle - spread), np.exp(middle + spread), color=color, alpha=0.15, linewidth=0
                )
        axes.set(xscale="log", yscale="log", xlabel="training images", ylabel=label)
        sizes = next(iter(next(iter(sets.values())).values()))["images"]
        axes.set_xticks(sizes, map(str, sizes), rotation=45, fontsize=7)
        axes.minorticks_off()
        sj.plot.plain_ticks(axes.yaxis)
        axes.legend(fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22))
        axes.grid(color="0.93")
    figure.suptitle(
        "Against the size of the training set, runs at chance left out; bands: one deviation over seeds", fontsize=10
    )
    return figure


_PANELS = (
    ("error", "test error"),
    ("R", "relative stability  $R_f$"),
    ("D", "deformation stability  $D_f$"),
    ("G", "noise stability  $G_f$"),
)

if __name__ == "__main__":
    main()
