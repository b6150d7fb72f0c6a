"""Test error against relative stability, over architectures: the headline figure of Petrini et al. 2021.

Trains the zoo, or reads finished runs, probes every network at initialization and trained, fits ``eps = a R^b``, and
draws two figures with their numbers beside them::

    relative_stability_<size>          test error against R, D and G of the trained networks
    relative_stability_initial_<size>  D, G and R of the untrained networks at full width

A run that was killed goes on where it was::

    python -m experiments.relative_stability --size cpu

A network of one's own joins the figure: see `record` and `draw`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from scipy import stats

import stabjax as sj
from experiments import _networks, _probe, _records
from experiments._images import Task
from experiments._networks import ZOO, Architecture, Size, ZooStudy
from experiments._probe import STATISTICS, Probe
from experiments._records import record
from experiments._study import Drawing, run

__all__ = ["Config", "Probe", "draw", "law", "main", "probe", "read", "record"]

PUBLISHED_LAW = (0.2, 0.5)
"""``eps = 0.2 sqrt(R)`` over fifteen architectures on CIFAR-10 (Petrini et al. 2021)."""

INITIAL = {
    "FC L2": ("FCL2", 0.056, 0.057, 0.99, 0.99),
    "FC L4": ("FCL4", 0.061, 0.063, 0.96, 0.98),
    "FC L6": ("FCL6", 0.072, 0.073, 0.98, 1.05),
    "LeNet": ("LeNet", 0.12, 0.14, 0.87, 0.92),
    "AlexNet": ("AlexNet", 0.093, 0.14, 0.68, 0.67),
    "VGG11": ("VGG11", 0.10, 0.26, 0.39, 0.38),
    "VGG11bn": ("VGG11bn", 0.31, 0.35, 0.89, 0.94),
    "VGG16bn": ("VGG16bn", 0.53, 0.61, 0.88, 0.90),
    "VGG19bn": ("VGG19bn", 0.50, 0.59, 0.85, 0.95),
    "ResNet18": ("ResNet18", 0.22, 0.28, 0.77, 0.84),
    "EfficientNetB0": ("EfficientNetB0", 0.74, 0.76, 0.98, 1.05),
}
"""Model, and what the published networks and formulas in PyTorch give untrained: D, G, R by means, R by medians.

Measured on 500 test images of the same JPEG copies with one draw; three seeds of the fully connected networks, LeNet,
AlexNet, VGG11 and VGG11bn, one of the others.
"""


@dataclass(frozen=True)
class Config(ZooStudy):
    """Test error against relative stability, over architectures."""

    SMOKE: ClassVar[Mapping[str, Any]] = {"draws": 2, "images": 16, "initial_seeds": 0}

    networks: tuple[str, ...] = ()
    """Names of the zoo of that size; all of them if not given."""
    epochs: float | None = None
    """Passes through the training images, instead of those of the zoo."""
    training: int | None = None
    """Number of training images; all of them if not given."""
    seeds: int = 1
    """Networks trained of each architecture."""
    initial_seeds: int = 3
    """Untrained networks of each architecture in the second figure; 0 leaves it out."""
    draws: int = 10
    """Deformations, and noises, of each image; the first is that of the published protocol."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Train the zoo, or read finished runs, measure every network, and fit the law."""
    task = _networks.load_task(config.size, seed=config.seed, training=config.training)
    probe = _probe.draw_probe(task, images=config.images, draws=config.draws, seed=config.seed)
    zoo = config.zoo_folder()
    options = {
        "key": jax.random.key(config.seed),
        "seeds": config.seeds,
        "path": None if config.smoke else zoo.with_name(zoo.name + _variant(config)),
        "progress": console.is_terminal,
    }
    common = {"probe": dict(probe.settings)}
    architectures = _networks.select(config.size, config.networks, epochs=config.epochs)
    records = {}
    for name, architecture in architectures.items():
        records[name] = _records.zoo_record(name, architecture, task, probe, **options)
        place = _records.point(records[name])
        console.print(f"{name}: error {place['error']:.3f}, R {place['R']:.3g}, D {place['D']:.3g}, G {place['G']:.3g}")
    figures: dict[str, Drawing] = {
        f"relative_stability_{config.size}": (
            draw(records, title=_title(config, task, architectures)),
            common | {"laws": laws(records), "networks": records},
        )
    }
    if config.initial_seeds:
        seeds = range(config.seed, config.seed + config.initial_seeds)
        probes = {seed: _probe.draw_probe(task, images=config.images, draws=1, seed=seed) for seed in seeds}
        untrained = {name: measure_untrained(name, config, probes) for name in INITIAL}
        figures[f"relative_stability_initial_{config.size}"] = (
            draw_initial(untrained),
            common | {"networks": untrained},
        )
    return figures


def probe(size: Size = "cpu", *, images: int = 500, draws: int = 10, seed: int = 0) -> Probe:
    """Draw the images of the published protocol, deformed and with noise: what `record` measures a network on."""
    if size not in ZOO:
        raise ValueError(f"expected size to be one of {tuple(ZOO)}, got {size!r}")
    return _probe.draw_probe(_networks.load_task(size, seed=seed), images=images, draws=draws, seed=seed)


def read(path: Path | str) -> dict[str, Any]:
    """Read the records behind a figure of trained networks, by name, from the file beside it."""
    records = json.loads(Path(path).read_text()).get("networks", {})
    if not records or any("test_error" not in record for record in records.values()):
        raise ValueError(
            f"expected the numbers beside a figure of trained networks, relative_stability_*.json, got {path}"
        )
    return records


# The law


def laws(records: Mapping[str, Any]) -> dict[str, Any]:
    """Fit `law` for the weights of the best and of the last epoch, by each statistic: ``{"best, median": ...}``."""
    cases = [(stage, statistic) for stage in ("best", "last") for statistic in STATISTICS]
    return {f"{stage}, {statistic}": law(records, stage=stage, statistic=statistic) for stage, statistic in cases}


def law(
    records: Mapping[str, Any], *, stage: str = "best", statistic: str = "median", resamples: int = 2000
) -> dict[str, Any]:
    """Fit ``eps = a R^b`` by least squares of the logarithms, one point per architecture.

    Seeds whose training failed (it diverged, an error above 0.85, numbers that are not finite) are left out, and
    networks of which none is left are named. The
    intervals are bootstrapped over architectures; correlations are Spearman's. The fit is repeated with each family
    left out.

    Args:
        records: by name.
        stage: ``"best"``: weights of the best epoch, as published; ``"last"``.
        statistic: one of ``published``, ``median``, ``mean``.
        resamples: of the bootstrap.
    """
    points = {
        name: _records.point(record, stage, statistic)
        for name, record in records.items()
        if _records.successes(record, stage, statistic)
    }
    result: dict[str, Any] = {"stage": stage, "statistic": statistic, "left_out": sorted(set(records) - set(points))}
    names = list(points)
    error, r, d, g = (np.array([points[name][k] for name in names]) for k in ("error", "R", "D", "G"))
    result |= _fit(r, error)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(names), (resamples, len(names)))
    fits = [_fit(r[row], error[row]) for row in rows if len(set(r[row])) > 1]
    for key in ("amplitude", "exponent"):
        ends = np.nanquantile([fit[key] for fit in fits], [0.025, 0.975]) if fits else [np.nan, np.nan]
        result[f"{key}_interval"] = [float(end) for end in ends]
    differ = len(set(error)) > 2
    result["rank_correlation"] = {
        symbol: float(np.asarray(stats.spearmanr(values, error))[0]) if differ else None
        for symbol, values in (("R", r), ("D", d), ("G", g))
    }
    result["error_over_root_R"] = {name: points[name]["error"] / points[name]["R"] ** 0.5 for name in names}
    families = {records[name]["family"] for name in names}
    result["without_family"] = {}
    for family in sorted(families) if len(families) > 2 else ():
        rest = np.array([records[name]["family"] != family for name in names])
        result["without_family"][family] = _fit(r[rest], error[rest]) | {"networks": int(rest.sum())}
    return result


def _fit(r: np.ndarray, error: np.ndarray) -> dict[str, float]:
    if len(r) < 2:
        return {"amplitude": np.nan, "exponent": np.nan}
    exponent, intercept = np.polyfit(np.log(r), np.log(error), 1)
    return {"amplitude": float(np.exp(intercept)), "exponent": float(exponent)}


# Initialization


def measure_untrained(name: str, config: Config, probes: Mapping[int, Probe]) -> dict[str, Any]:
    """Measure an architecture at full width, untrained: geometric means over seeds, with deviations of the logarithm.

    One draw per seed, all images in one batch, batch statistics, as published.
    """
    model, *reference = INITIAL[name]
    path = (
        config.runs / "zoo_initial" / f"{_networks.file_name(name)}_s{config.seed}_n{len(probes)}_i{config.images}.json"
    )
    settings = {"model": model, "probes": {str(seed): dict(probe.settings) for seed, probe in probes.items()}}

    def measure() -> dict[str, Any]:
        networks = {seed: sj.models.build(model, rngs=nnx.Rngs(seed)) for seed in probes}
        return {
            "seeds": [
                probes[seed].measure(sj.networks.wrap(network, mode="batch_statistics"))
                for seed, network in networks.items()
            ]
        }

    result = _records.load_or_compute(path, settings, measure)
    seeds = result["seeds"]
    for statistic in ("mean", "published"):
        logs = np.log([[each[statistic][q] for q in ("deformation", "noise", "relative")] for each in seeds])
        result[statistic] = dict(zip("DGR", np.exp(logs.mean(0)).tolist(), strict=True))
        result[f"{statistic}_deviation"] = dict(
            zip("DGR", (logs.std(0, ddof=1) if len(seeds) > 1 else np.full(3, np.nan)).tolist(), strict=True)
        )
    result["reference"] = {"mean": dict(zip("DGR", reference[:3], strict=True)), "published": {"R": reference[3]}}
    return result


# Figures


def draw(records: Mapping[str, Any], *, title: str = "", stage: str = "best", statistic: str = "median") -> Any:
    """Draw test error against ``R``, ``D`` and ``G``, one point per architecture, with the law and the published one.

    Args:
        records: by name, of `read` and `record`.
        title: over the figure.
        stage: as in `law`.
        statistic: as in `law`.
    """
    fit = law(records, stage=stage, statistic=statistic)
    points = {name: _records.point(each, stage, statistic) for name, each in records.items()}
    families = list(dict.fromkeys(each["family"] for each in records.values()))
    figure, grid = sj.plot.panels(1, 3, size=(4.9, 4.6), sharey=True)
    for axes, (symbol, label) in zip(
        grid[0],
        (
            ("R", "relative stability  $R_f$"),
            ("D", "deformation stability  $D_f$"),
            ("G", "noise stability  $G_f$"),
        ),
        strict=True,
    ):
        for name, p in points.items():
            family = families.index(records[name]["family"])
            color = sj.plot.COLORS[1:][family % (len(sj.plot.COLORS) - 1)]
            out = name in fit["left_out"]
            axes.errorbar(
                p[symbol],
                p["error"],
                xerr=np.maximum([[p[symbol] - p[f"{symbol} low"]], [p[f"{symbol} high"] - p[symbol]]], 0),
                color=color,
                marker=_MARKERS[family % len(_MARKERS)],
                mfc="none" if out else color,
                markersize=6,
                linewidth=1,
                label=None if records[name]["family"] in axes.get_legend_handles_labels()[1] else families[family],
            )
        axes.set(xscale="log", yscale="log", xlabel=f"{label}  of the trained network")
        correlation = fit["rank_correlation"][symbol]
        if correlation is not None:
            axes.set_title(f"rank correlation with the error {correlation:+.2f}", fontsize=9)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.margins(x=0.16)
        sj.plot.plain_ticks(axes.xaxis)
    first = grid[0, 0]
    left, right = first.get_xlim()
    line = np.geomspace(left, right, 50)
    a, b = fit["amplitude"], fit["exponent"]
    first.plot(line, a * line**b, color="0.2", linewidth=1.2, label=f"fit  ${a:.2f}\\,R^{{{b:.2f}}}$")
    first.plot(
        line, PUBLISHED_LAW[0] * line ** PUBLISHED_LAW[1], "--", color="0.5", label="published  $0.2\\,\\sqrt{R}$"
    )
    first.set_xlim(left, right)
    first.set_ylabel("test error")
    sj.plot.plain_ticks(first.yaxis)
    first.legend(fontsize=7, frameon=False, loc="lower right")
    if title:
        figure.suptitle(title, fontsize=10)
    for axes, symbol in zip(grid[0], "RDG", strict=True):
        sj.plot.name_points(axes, {name: (p[symbol], p["error"]) for name, p in points.items()})
    return figure


_MARKERS = "osD^vP*X"


def draw_initial(networks: Mapping[str, Any]) -> Any:
    """Draw ``D``, ``G`` and ``R`` of untrained networks, beside what the published code gives."""
    figure, grid = sj.plot.panels(1, 3, size=(4.0, 4.2), sharey=True)
    position = np.arange(len(networks))[::-1]
    for axes, symbol in zip(grid[0], "RDG", strict=True):
        for statistic, color, label, shift in (
            ("mean", sj.plot.COLORS[1], "means", 0.12),
            ("published", sj.plot.COLORS[2], "medians per unit", -0.12),
        ):
            middle = np.array([each[statistic][symbol] for each in networks.values()])
            spread = np.array([each[f"{statistic}_deviation"][symbol] for each in networks.values()], float)
            ends = np.abs(middle * np.exp(np.stack([-spread, spread])) - middle)
            axes.errorbar(middle, position + shift, xerr=ends, fmt="o", color=color, markersize=5, label=label)
            reference = [each["reference"][statistic].get(symbol, np.nan) for each in networks.values()]
            axes.plot(reference, position + shift, "|", color=color, markersize=12, label=f"{label}, published code")
        axes.set_xscale("log")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        sj.plot.plain_ticks(axes.xaxis)
        axes.set_xlabel(f"${symbol}_f$ at initialization")
    grid[0, 0].set_yticks(position, list(networks))
    grid[0, 0].legend(fontsize=6.5, frameon=False, loc="upper left")
    figure.suptitle("Untrained networks: geometric mean and deviation over seeds", fontsize=10)
    return figure


def _title(config: Config, task: Task, architectures: Mapping[str, Architecture]) -> str:
    if config.size == "smoke":
        return task.note
    epochs = sorted({each.epochs for each in architectures.values()})
    span = f"{epochs[0]:g}" if len(epochs) == 1 else f"{epochs[0]:g} to {epochs[-1]:g}"
    return (
        f"{task.label('CIFAR-10')}, {span} epochs each; {config.images} test images, "
        f"{config.draws} deformations (cutoff 3, 1 pixel) and noises each; medians per unit"
    )


def _variant(config: Config) -> str:
    """Return what the name of the zoo's folder says of options that differ from the usual ones."""
    epochs = "" if config.epochs is None else f"_e{config.epochs:g}"
    training = "" if config.training is None else f"_p{config.training}"
    return epochs + training + ("" if config.seeds == 1 else f"_n{config.seeds}")


if __name__ == "__main__":
    main()
