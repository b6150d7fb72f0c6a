"""``R``, ``D``, ``G`` and the test error along training, and against the size of the training set.

Draws two figures, each with its numbers beside it::

    training_<size>       along training, at log-spaced epochs
    training_set_<size>   against the number of training images, for equal epochs and for equal steps

Networks that ``experiments.relative_stability`` has trained are read, others are trained first::

    python -m experiments.training --size cpu
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

import stabjax as sj
from experiments import _records, _zoo

DEFAULT: Mapping[_zoo.Size, tuple[str, ...]] = {
    "smoke": ("SmallCNN (4,)",),
    "cpu": ("FC L4", "LeNet", "VGG11bn, width 1/4"),
    "paper": ("FC L4", "LeNet", "ResNet18", "EfficientNetB0"),
}
IMAGES: Mapping[_zoo.Size, tuple[int, ...]] = {
    "smoke": (128, 256),
    "cpu": (512, 1024, 2048, 4096, 8192),
    "paper": (512, 1024, 2048, 4096, 8192, 16384, 32768, 50000),
}
BATCH = 128
"""Images in a step of every recipe here."""
RULES = ("equal epochs", "equal steps")


@dataclass(frozen=True)
class Config:
    """R, D, G and the test error along training, and against the size of the training set."""

    size: _zoo.Size = "cpu"
    """Which zoo the networks are from."""
    networks: tuple[str, ...] = ()
    """Names of the zoo; a few of different kinds if not given."""
    seeds: int = 3
    """Networks of each size of the training set, each with its own choice of images."""
    images: int = 500
    """Test images that are deformed."""
    draws: int = 4
    """Deformations, and noises, of each."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("figures")
    """Folder of the figures."""
    runs: Path = Path("runs")
    """Folder of the checkpoints."""
    smoke: bool = False
    """The same as ``--size smoke``."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, probe, draw; returns what is written beside the figures, by their names.

    Args:
        argv: command line; that of the process if None.
    """
    config = tyro.cli(Config, args=None if argv is None else list(argv), description=__doc__)
    if config.smoke or config.size == "smoke":
        config = replace(config, size="smoke", smoke=True, draws=1, images=64, seeds=1)
    console = Console()
    given = _zoo.material(config.size, seed=config.seed)
    measured = _zoo.probe(given, images=config.images, draws=config.draws, seed=config.seed)
    members = _zoo.chosen(config.size, config.networks or DEFAULT[config.size], None)
    about = _records.about("training", config, measured)
    along = {name: along_training(name, member, config, given, measured) for name, member in members.items()}
    sets: dict[str, Any] = {}
    for name, member in members.items():
        sets[name] = {rule: against_size(name, member, rule, config, measured) for rule in RULES}
        console.print(f"{name}: { ({rule: each['slopes'] for rule, each in sets[name].items()}) }")
    figures = {
        f"training_{config.size}": (draw_along(along), about | {"networks": along}),
        f"training_set_{config.size}": (draw_sets(sets), about | {"networks": sets}),
    }
    return _records.save(figures, config.out, console)


def along_training(
    name: str, member: _zoo.Member, config: Config, given: _zoo.Material, measured: _zoo.Probe
) -> dict[str, Any]:
    """``R``, ``D``, ``G`` and test error at the kept checkpoints of one run; step 0 with batch statistics."""
    folder = _zoo.runs_of(config)
    run = _zoo.train(name, member, given, key=jax.random.key(config.seed), seeds=1, path=folder)
    about = _records.settings(member, given, measured)
    return _records.kept(folder / _zoo.folder(name) / "along.json", about, lambda: _along(name, run, folder, measured))


def _along(name: str, run: sj.train.Run, folder: Path, measured: _zoo.Probe) -> dict[str, list[Any]]:
    errors = {int(step): 1 - float(a[0]) for step, a in zip(run.history.step, run.history.test_accuracy, strict=True)}
    rows: dict[str, list[Any]] = {"epoch": [], "error": [], "R": [], "D": [], "G": [], "R low": [], "R high": []}
    for step, epoch in sj.train.checkpoints(folder / _zoo.folder(name)).items():
        model = run.model(step)
        network = sj.networks.wrap(model, mode="batch_statistics") if step == 0 else model
        result = measured.measure(network)["median"]
        rows["epoch"].append(epoch)
        rows["error"].append(errors.get(step))
        for quantity, symbol in _zoo.QUANTITIES.items():
            rows[symbol].append(result[quantity])
        for end, value in zip(("low", "high"), result["relative_interval"], strict=True):
            rows[f"R {end}"].append(value)
    return rows


def against_size(name: str, member: _zoo.Member, rule: str, config: Config, measured: _zoo.Probe) -> dict[str, Any]:
    """The same at the end of training on part of the images, and slopes in logarithms of those runs that have learned.

    ``equal epochs``: those of the zoo at every size, so fewer steps on fewer images; ``equal steps``: those that the
    largest set takes.
    """
    sizes = IMAGES[config.size]
    found: dict[str, Any] = {"images": list(sizes), **{k: [] for k in ("error", "R", "D", "G")}}
    for images in sizes:
        more = sizes[-1] // BATCH / (images // BATCH)
        changed = member if rule == RULES[0] else replace(member, epochs=member.epochs * more)
        # On the largest set both rules are one training.
        where = RULES[0] if more == 1 else rule
        each: dict[str, list[float]] = {k: [] for k in ("error", "R", "D", "G")}
        for seed in range(config.seed, config.seed + config.seeds):
            one = _trained(name, changed, where, images, seed, config, measured)
            for key, values in each.items():
                values.append(one[key])
        for key, values in each.items():
            found[key].append(values)
    found["slopes"] = {}
    for key in ("error", "R", "D", "G"):
        middle, _ = over_seeds(found, key)
        some = np.isfinite(middle)
        slope = np.polyfit(np.log(sizes)[some], middle[some], 1)[0] if some.sum() > 1 else np.nan
        found["slopes"][key] = float(slope)
    return found


def over_seeds(found: Mapping[str, Any], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the logarithm for each number of images, NaN where no run has learned."""
    errors, r, values = (np.array(found[each], float) for each in ("error", "R", key))
    learned = (errors < _records.CHANCE) & np.isfinite(r)
    logs = np.where(learned, np.log(np.where(learned, values, 1)), np.nan)
    count = learned.sum(1)
    middle = np.nansum(logs, 1) / np.where(count, count, np.nan)
    spread = np.sqrt(np.nansum(np.square(logs - middle[:, None]), 1) / np.maximum(count - 1, 1))
    return middle, spread


def _trained(
    name: str,
    member: _zoo.Member,
    rule: str,
    images: int,
    seed: int,
    config: Config,
    measured: _zoo.Probe,
) -> dict[str, Any]:
    given = _zoo.material(config.size, seed=seed, training=images)
    folder = config.runs / f"training_set_{config.size}" / f"{_zoo.folder(rule)}_p{images}_s{seed}"

    def probed() -> dict[str, float]:
        # Scored once: small sets take hundreds of epochs.
        run = _zoo.train(name, member, given, key=jax.random.key(seed), seeds=1, path=folder, scored=False)
        model, recipe = run.model("last"), run.recipe
        score = sj.train.evaluate(model, *given.test, mean=recipe.mean, deviation=recipe.deviation)
        numbers = measured.measure(model)["median"]
        return {"error": 1 - score.accuracy} | {symbol: numbers[name] for name, symbol in _zoo.QUANTITIES.items()}

    about = _records.settings(member, given, measured) | {"seed": seed}
    return _records.kept(folder / f"{_zoo.folder(name)}.json", about, probed)


def draw_along(along: Mapping[str, Any]) -> Any:
    """Four panels against the epoch, one curve per network; initialisation stands at the left."""
    figure, grid = sj.plot.panels(1, 4, size=(3.6, 3.4))
    for axes, (key, label) in zip(grid[0], _PANELS, strict=True):
        for colour, (name, rows) in zip(sj.plot.COLORS[1:], along.items(), strict=False):
            epoch = np.array(rows["epoch"], float)
            shown = np.where(epoch > 0, epoch, 0.5 * epoch[epoch > 0].min())
            values = np.array([np.nan if v is None else v for v in rows[key]], float)
            axes.plot(shown, values, "o-", color=colour, markersize=3, label=name)
            if key == "R":
                axes.fill_between(shown, rows["R low"], rows["R high"], color=colour, alpha=0.25, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="epoch (first point: initialisation)", ylabel=label)
        sj.plot.plain_ticks(axes.xaxis)
        sj.plot.plain_ticks(axes.yaxis)
        axes.grid(color="0.93")
    grid[0, 0].legend(fontsize=7, frameon=False)
    figure.suptitle("Along training; medians per unit of the output", fontsize=10)
    return figure


def draw_sets(sets: Mapping[str, Any]) -> Any:
    """Four panels against the number of training images: geometric means and deviations over seeds."""
    figure, grid = sj.plot.panels(1, 4, size=(3.6, 4.8))
    for axes, (key, label) in zip(grid[0], _PANELS, strict=True):
        for colour, (name, rules) in zip(sj.plot.COLORS[1:], sets.items(), strict=False):
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
                    color=colour,
                    label=f"{name}, {rule}: slope {slope:+.2f}",
                )
                axes.fill_between(
                    images, np.exp(middle - spread), np.exp(middle + spread), color=colour, alpha=0.15, linewidth=0
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
