"""Test error against relative stability, over architectures: the headline figure of Petrini et al. 2021.

Trains the zoo, or reads finished runs, probes every network at initialisation and trained, fits ``eps = a R^b``, and
draws two figures with their numbers beside them::

    relative_stability_<size>          test error against R, D and G of the trained networks
    relative_stability_initial_<size>  D, G and R of the untrained networks at full width

A run that was killed goes on where it was::

    python -m experiments.relative_stability --size cpu

A network of one's own joins the figure: see `record` and `draw`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from scipy import stats

import stabjax as sj
from experiments import _records, _zoo
from experiments._records import record
from experiments._zoo import Probe

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
class Config:
    """Test error against relative stability, over architectures."""

    size: _zoo.Size = "cpu"
    """``smoke`` (seconds), ``cpu`` (two cores, under two hours) or ``paper`` (an accelerator, 250 epochs)."""
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
    images: int = 500
    """Test images that are deformed."""
    draws: int = 10
    """Deformations, and noises, of each image; the first is that of the published protocol."""
    seed: int = 0
    """Of everything random."""
    out: Path = Path("figures")
    """Folder of the figures."""
    runs: Path = Path("runs")
    """Folder of the checkpoints."""
    smoke: bool = False
    """The same as ``--size smoke``."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, probe, fit, draw; returns what is written beside the figures, by their names.

    Args:
        argv: command line; that of the process if None.
    """
    config = tyro.cli(Config, args=None if argv is None else list(argv), description=__doc__)
    if config.smoke or config.size == "smoke":
        config = replace(config, size="smoke", smoke=True, draws=2, images=64, initial_seeds=0)
    console = Console()
    given = _zoo.material(config.size, seed=config.seed, training=config.training)
    measured = _zoo.probe(given, images=config.images, draws=config.draws, seed=config.seed)
    train_key = jax.random.key(config.seed)
    runs = _zoo.runs_of(config)
    path = None if config.smoke else runs.with_name(runs.name + _changed(config))
    about = _records.about("relative_stability", config, measured)
    members = _zoo.chosen(config.size, config.networks, config.epochs)
    records = {}
    for name, member in members.items():
        options = {"key": train_key, "seeds": config.seeds, "path": path, "progress": console.is_terminal}
        records[name] = _records.member_record(name, member, given, measured, **options)
        found = _records.point(records[name])
        console.print(f"{name}: error {found['error']:.3f}, R {found['R']:.3g}, D {found['D']:.3g}, G {found['G']:.3g}")
    figures: dict[str, Any] = {
        f"relative_stability_{config.size}": (
            draw(records, title=_title(config, given, members)),
            about | {"laws": laws(records), "networks": records},
        )
    }
    if config.initial_seeds:
        seeds = range(config.seed, config.seed + config.initial_seeds)
        probes = {seed: _zoo.probe(given, images=config.images, draws=1, seed=seed) for seed in seeds}
        found = {name: untrained(name, config, probes) for name in INITIAL}
        figures[f"relative_stability_initial_{config.size}"] = (draw_initial(found), about | {"networks": found})
    return _records.save(figures, config.out, console)


def probe(size: _zoo.Size = "cpu", *, images: int = 500, draws: int = 10, seed: int = 0) -> Probe:
    """The images of the published protocol, deformed and with noise: what `record` measures a network on."""
    if size not in _zoo.ZOO:
        raise ValueError(f"expected size to be one of {tuple(_zoo.ZOO)}, got {size!r}")
    return _zoo.probe(_zoo.material(size, seed=seed), images=images, draws=draws, seed=seed)


def read(path: Path | str) -> dict[str, Any]:
    """The records behind a figure of trained networks, by name, from the file beside it."""
    records = json.loads(Path(path).read_text()).get("networks", {})
    if not records or any("test_error" not in found for found in records.values()):
        raise ValueError(
            f"expected the numbers beside a figure of trained networks, relative_stability_*.json, got {path}"
        )
    return records


# The law


def laws(records: Mapping[str, Any]) -> dict[str, Any]:
    """`law` for the weights of the best and of the last epoch, by each statistic: ``{"best, median": ...}``."""
    cases = [(stage, statistic) for stage in ("best", "last") for statistic in _zoo.STATISTICS]
    return {f"{stage}, {statistic}": law(records, stage=stage, statistic=statistic) for stage, statistic in cases}


def law(
    records: Mapping[str, Any], *, stage: str = "best", statistic: str = "median", resamples: int = 2000
) -> dict[str, Any]:
    """``eps = a R^b`` by least squares of the logarithms, one point per architecture.

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
    kept = {n: _records.point(r, stage, statistic) for n, r in records.items() if _records.learned(r, stage, statistic)}
    result: dict[str, Any] = {"stage": stage, "statistic": statistic, "left_out": sorted(set(records) - set(kept))}
    names = list(kept)
    error, r, d, g = (np.array([kept[n][k] for n in names]) for k in ("error", "R", "D", "G"))
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
    result["error_over_root_R"] = {name: kept[name]["error"] / kept[name]["R"] ** 0.5 for name in names}
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


# Initialisation


def untrained(name: str, config: Config, probes: Mapping[int, Probe]) -> dict[str, Any]:
    """An architecture at full width, untrained: geometric means over seeds, with the deviation of the logarithm.

    One draw per seed, all images in one batch, batch statistics, as published.
    """
    model, *reference = INITIAL[name]
    path = config.runs / "zoo_initial" / f"{_zoo.folder(name)}_s{config.seed}_n{len(probes)}_i{config.images}.json"
    about = {"model": model, "probes": {str(seed): dict(measured.about) for seed, measured in probes.items()}}

    def measure() -> dict[str, Any]:
        networks = {seed: sj.models.build(model, rngs=nnx.Rngs(seed)) for seed in probes}
        return {
            "seeds": [
                probes[seed].measure(sj.networks.wrap(network, mode="batch_statistics"))
                for seed, network in networks.items()
            ]
        }

    found = _records.kept(path, about, measure)
    seeds = found["seeds"]
    for statistic in ("mean", "published"):
        logs = np.log([[each[statistic][q] for q in ("deformation", "noise", "relative")] for each in seeds])
        found[statistic] = dict(zip("DGR", np.exp(logs.mean(0)).tolist(), strict=True))
        found[f"{statistic}_deviation"] = dict(
            zip("DGR", (logs.std(0, ddof=1) if len(seeds) > 1 else np.full(3, np.nan)).tolist(), strict=True)
        )
    found["reference"] = {"mean": dict(zip("DGR", reference[:3], strict=True)), "published": {"R": reference[3]}}
    return found


# Figures


def draw(records: Mapping[str, Any], *, title: str = "", stage: str = "best", statistic: str = "median") -> Any:
    """Test error against ``R``, ``D`` and ``G``, one point per architecture, with the law and the published one.

    Args:
        records: by name, of `read` and `record`.
        title: over the figure.
        stage: as in `law`.
        statistic: as in `law`.
    """
    found = law(records, stage=stage, statistic=statistic)
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
            colour = sj.plot.COLORS[1:][family % (len(sj.plot.COLORS) - 1)]
            out = name in found["left_out"]
            axes.errorbar(
                p[symbol],
                p["error"],
                xerr=np.maximum([[p[symbol] - p[f"{symbol} low"]], [p[f"{symbol} high"] - p[symbol]]], 0),
                color=colour,
                marker=_MARKERS[family % len(_MARKERS)],
                mfc="none" if out else colour,
                markersize=6,
                linewidth=1,
                label=None if records[name]["family"] in axes.get_legend_handles_labels()[1] else families[family],
            )
        axes.set(xscale="log", yscale="log", xlabel=f"{label}  of the trained network")
        correlation = found["rank_correlation"][symbol]
        if correlation is not None:
            axes.set_title(f"rank correlation with the error {correlation:+.2f}", fontsize=9)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.margins(x=0.16)
        sj.plot.plain_ticks(axes.xaxis)
    first = grid[0, 0]
    left, right = first.get_xlim()
    line = np.geomspace(left, right, 50)
    a, b = found["amplitude"], found["exponent"]
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


def draw_initial(found: Mapping[str, Any]) -> Any:
    """``D``, ``G`` and ``R`` of untrained networks, beside what the published code gives."""
    figure, grid = sj.plot.panels(1, 3, size=(4.0, 4.2), sharey=True)
    position = np.arange(len(found))[::-1]
    for axes, symbol in zip(grid[0], "RDG", strict=True):
        for statistic, colour, label, shift in (
            ("mean", sj.plot.COLORS[1], "means", 0.12),
            ("published", sj.plot.COLORS[2], "medians per unit", -0.12),
        ):
            middle = np.array([each[statistic][symbol] for each in found.values()])
            spread = np.array([each[f"{statistic}_deviation"][symbol] for each in found.values()], float)
            ends = np.abs(middle * np.exp(np.stack([-spread, spread])) - middle)
            axes.errorbar(middle, position + shift, xerr=ends, fmt="o", color=colour, markersize=5, label=label)
            reference = [each["reference"][statistic].get(symbol, np.nan) for each in found.values()]
            axes.plot(reference, position + shift, "|", color=colour, markersize=12, label=f"{label}, published code")
        axes.set_xscale("log")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        sj.plot.plain_ticks(axes.xaxis)
        axes.set_xlabel(f"${symbol}_f$ at initialisation")
    grid[0, 0].set_yticks(position, list(found))
    grid[0, 0].legend(fontsize=6.5, frameon=False, loc="upper left")
    figure.suptitle("Untrained networks: geometric mean and deviation over seeds", fontsize=10)
    return figure


def _title(config: Config, given: _zoo.Material, members: Mapping[str, _zoo.Member]) -> str:
    if config.size == "smoke":
        return given.note
    epochs = sorted({member.epochs for member in members.values()})
    span = f"{epochs[0]:g}" if len(epochs) == 1 else f"{epochs[0]:g} to {epochs[-1]:g}"
    copies = " (JPEG copies)" if given.note.startswith("JPEG") else ""
    return (
        f"CIFAR-10{copies}, {span} epochs each; {config.images} test images, "
        f"{config.draws} deformations (cutoff 3, 1 pixel) and noises each; medians per unit"
    )


def _changed(config: Config) -> str:
    epochs = "" if config.epochs is None else f"_e{config.epochs:g}"
    training = "" if config.training is None else f"_p{config.training}"
    return epochs + training + ("" if config.seeds == 1 else f"_n{config.seeds}")


if __name__ == "__main__":
    main()
