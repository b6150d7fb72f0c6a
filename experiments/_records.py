"""One record per network: test error, D, G and R, with everything they depend on; what the figures are drawn from."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.console import Console

import stabjax as sj
from experiments import _zoo
from experiments._zoo import QUANTITIES, STATISTICS, Material, Member, Probe

CHANCE = 0.85
"""A network with a larger error has not learned anything: it is reported, and left out of fits."""


def record(
    measured: Probe, *, error: float, family: str, best: Any, initial: Any = None, **notes: Any
) -> dict[str, Any]:
    """A network as the figure takes it: one seed, any framework.

    Args:
        measured: the images, see `probe`.
        error: test error of the trained network, in (0, 1]: a share, not percent.
        family: which colour it has, and with which others it is left out of the fit.
        best: the trained network.
        initial: the untrained network, where there is one. A Flax NNX module is measured with the statistics of its
            batch, as published; of another framework, give `stabjax.networks.wrap` in its training mode.
        **notes: whatever else is to stand in the file.
    """
    if not 0 < error <= 1:
        raise ValueError(f"expected error in (0, 1], a share of the test images, got {error}")
    if isinstance(initial, nnx.Module):
        initial = sj.networks.wrap(initial, mode="batch_statistics")
    stages = {"initial": initial, "best": best}
    stability = {stage: [measured.measure(f)] for stage, f in stages.items() if f is not None}
    return {"family": family, "test_error": {"best": [error]}, "stability": stability, **notes}


def member_record(
    name: str,
    member: Member,
    given: Material,
    measured: Probe,
    *,
    key: jax.Array,
    seeds: int,
    path: Path | None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train a member of the zoo, or read its finished run, and probe it at initialisation and trained."""
    run = _zoo.train(name, member, given, key=key, seeds=seeds, path=path, progress=progress)

    def probed() -> dict[str, Any]:
        errors = 1 - run.history.test_accuracy
        if not len(errors):  # none of the seeds came through its first epoch
            errors = np.full((1, seeds), np.nan)
        stages = {
            "initial": lambda seed: sj.networks.wrap(run.model("initial", seed=seed), mode="batch_statistics"),
            "best": lambda seed: run.model("best", seed=seed),
            "last": lambda seed: run.model("last", seed=seed),
        }
        return {
            "family": member.family,
            "parameters": parameters(run.model("initial")),
            "seconds": float(run.history.seconds[-1]) if len(run.history.seconds) else 0.0,
            "device": sj.cli.versions()["device"],
            "diverged": run.diverged.tolist(),
            "test_error": {"best": np.fmin.reduce(errors).tolist(), "last": errors[-1].tolist()},
            "stability": {stage: [measured.measure(of(seed)) for seed in range(seeds)] for stage, of in stages.items()},
        }

    file = None if path is None else path / _zoo.folder(name) / "record.json"
    return kept(file, settings(member, given, measured) | {"seeds": seeds}, probed)


def about(module: str, config: Any, measured: Probe) -> dict[str, Any]:
    """What stands beside the numbers of every figure: command, settings, versions, images."""
    return {
        "command": sj.cli.command(f"experiments.{module}", config),
        "config": asdict(config),
        "versions": sj.cli.versions(),
        "probe": dict(measured.about),
    }


def save(figures: Mapping[str, tuple[Any, Mapping[str, Any]]], out: Path, console: Console) -> dict[str, Any]:
    """Write every figure with its numbers under its name; gives the numbers back."""
    for name, (figure, numbers) in figures.items():
        console.print(sj.plot.save(figure, out / name, numbers))
    return {name: numbers for name, (_, numbers) in figures.items()}


def settings(member: Member, given: Material, measured: Probe) -> dict[str, Any]:
    """What the numbers of a member depend on."""
    return {
        "model": member.model,
        "options": dict(member.options),
        "recipe": given.recipe_of(member).to_json(),
        "training_images": len(given.training[0]),
        "probe": dict(measured.about),
    }


def kept(file: Path | None, about: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """``about`` and what ``make`` gives; from the file where that holds the same ``about``, else made and written.

    Written at once or not at all; a file that cannot be read is made again.
    """
    about = json.loads(json.dumps(about))  # as it comes back
    if file is not None and file.exists():
        try:
            saved = json.loads(file.read_text())
        except ValueError:
            saved = {}
        if all(saved.get(k) == v for k, v in about.items()):
            return saved
    found = about | json.loads(json.dumps(make()))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.draft")
        draft.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(draft, file)
    return found


def parameters(model: nnx.Module) -> int:
    """Number of trained numbers."""
    return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def learned(found: Mapping[str, Any], stage: str = "best", statistic: str = "median") -> list[int]:
    """The seeds of a record whose training went well: not diverged, better than chance, with finite numbers."""
    errors, numbers = _seeds(found, stage, statistic)
    diverged = found.get("diverged", [-1] * len(errors))
    return [
        seed
        for seed, (error, each) in enumerate(zip(errors, numbers, strict=True))
        if diverged[seed] < 0 and 0 < error < CHANCE and all(0 < each[q] < np.inf for q in QUANTITIES)
    ]


def point(found: Mapping[str, Any], stage: str = "best", statistic: str = "median") -> dict[str, float]:
    """Test error, ``R``, ``D`` and ``G`` of a record, with the ends of the intervals.

    Geometric means over the seeds that have `learned`, over all if none has. With several the ends are one deviation of
    the logarithm over seeds, else those over images.
    """
    errors, numbers = _seeds(found, stage, statistic)
    seeds = learned(found, stage, statistic) or range(len(errors))
    each = [numbers[seed] for seed in seeds]
    with np.errstate(all="ignore"):
        result = {"error": float(np.exp(np.mean(np.log([errors[seed] for seed in seeds]))))}
        for name, symbol in QUANTITIES.items():
            logs = np.log([seed[name] for seed in each])
            middle, spread = logs.mean(), logs.std(ddof=1) if len(each) > 1 else 0.0
            ends = each[0][f"{name}_interval"] if len(each) == 1 else np.exp([middle - spread, middle + spread])
            low, high = (float(end) for end in ends)
            result |= {symbol: float(np.exp(middle)), f"{symbol} low": low, f"{symbol} high": high}
    return result


def _seeds(found: Mapping[str, Any], stage: str, statistic: str) -> tuple[list[float], list[dict[str, Any]]]:
    """Error and numbers of each seed. A record that has no last epoch of its own has one set of weights."""
    if stage not in ("best", "last"):
        raise ValueError(f"expected stage to be 'best' or 'last', got {stage!r}")
    if statistic not in STATISTICS:
        raise ValueError(f"expected statistic to be one of {STATISTICS}, got {statistic!r}")
    errors, stability = (found[part].get(stage, found[part]["best"]) for part in ("test_error", "stability"))
    return errors, [numbers[statistic] for numbers in stability]
