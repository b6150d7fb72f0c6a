"""One record per network: test error, D, G and R, with everything they depend on; what the figures are drawn from."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import stabjax as sj
from experiments import _networks
from experiments._images import Task
from experiments._networks import Architecture
from experiments._probe import QUANTITIES, STATISTICS, Probe

CHANCE = 0.85
"""A network with a larger error has not learned anything: it is reported, and left out of fits."""


def record(probe: Probe, *, error: float, family: str, best: Any, initial: Any = None, **notes: Any) -> dict[str, Any]:
    """Return the record of a network that the figure takes: one seed, any framework.

    Args:
        probe: the images, see `relative_stability.probe`.
        error: test error of the trained network, in (0, 1]: a share, not percent.
        family: which color it has, and with which others it is left out of the fit.
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
    stability = {stage: [probe.measure(f)] for stage, f in stages.items() if f is not None}
    return {"family": family, "test_error": {"best": [error]}, "stability": stability, **notes}


def zoo_record(
    name: str,
    architecture: Architecture,
    task: Task,
    probe: Probe,
    *,
    key: jax.Array,
    seeds: int,
    path: Path | None,
    progress: bool = False,
) -> dict[str, Any]:
    """Return the record of a network of the zoo: trained, or its finished run read, and measured at three stages.

    Args:
        name: of the network.
        architecture: what is trained, and how.
        task: the images it is trained on.
        probe: the images it is measured on.
        key: of the training.
        seeds: networks trained.
        path: folder of the zoo; None keeps nothing.
        progress: whether to show a bar.
    """
    run = _networks.train(name, architecture, task, key=key, seeds=seeds, path=path, progress=progress)

    def measure() -> dict[str, Any]:
        errors = 1 - run.history.test_accuracy
        if not len(errors):  # none of the seeds came through its first epoch
            errors = np.full((1, seeds), np.nan)
        stages = {
            "initial": lambda seed: sj.networks.wrap(run.model("initial", seed=seed), mode="batch_statistics"),
            "best": lambda seed: run.model("best", seed=seed),
            "last": lambda seed: run.model("last", seed=seed),
        }
        return {
            "family": architecture.family,
            "parameters": sum(_networks.parameters(run.model("initial"))),
            "seconds": float(run.history.seconds[-1]) if len(run.history.seconds) else 0.0,
            "device": sj.cli.versions()["device"],
            "diverged": run.diverged.tolist(),
            "test_error": {"best": np.fmin.reduce(errors).tolist(), "last": errors[-1].tolist()},
            "stability": {
                stage: [probe.measure(network(seed)) for seed in range(seeds)] for stage, network in stages.items()
            },
        }

    file = None if path is None else path / _networks.file_name(name) / "record.json"
    return load_or_compute(file, settings(architecture, task, probe) | {"seeds": seeds}, measure)


def settings(architecture: Architecture, task: Task, probe: Probe) -> dict[str, Any]:
    """Return what the numbers of a network of the zoo depend on."""
    return {
        "model": architecture.model,
        "options": dict(architecture.options),
        "recipe": architecture.recipe(task).to_json(),
        "training_images": len(task.training[0]),
        "probe": dict(probe.settings),
    }


def load_or_compute(
    file: Path | None, settings: Mapping[str, Any], compute: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the settings and the numbers that depend on them, from a file if it holds those of the same settings.

    Otherwise the numbers are computed, and written at once or not at all; a file that cannot be read is made again.

    Args:
        file: JSON; None keeps nothing.
        settings: what the numbers depend on.
        compute: gives the numbers.
    """
    settings = json.loads(json.dumps(settings))  # as it comes back
    if file is not None and file.exists():
        try:
            saved = json.loads(file.read_text())
        except ValueError:
            saved = {}
        if all(saved.get(k) == v for k, v in settings.items()):
            return saved
    result = settings | json.loads(json.dumps(compute()))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.draft")
        draft.write_text(json.dumps(result, indent=1) + "\n")
        os.replace(draft, file)
    return result


def successes(record: Mapping[str, Any], stage: str = "best", statistic: str = "median") -> list[int]:
    """Return the seeds of a record whose training went well: not diverged, better than chance, with finite numbers."""
    errors, numbers = _seeds(record, stage, statistic)
    diverged = record.get("diverged", [-1] * len(errors))
    return [
        seed
        for seed, (error, each) in enumerate(zip(errors, numbers, strict=True))
        if diverged[seed] < 0 and 0 < error < CHANCE and all(0 < each[q] < np.inf for q in QUANTITIES)
    ]


def point(record: Mapping[str, Any], stage: str = "best", statistic: str = "median") -> dict[str, float]:
    """Return test error, ``R``, ``D`` and ``G`` of a record, with the ends of the intervals.

    Geometric means over the `successes`, over all seeds if there are none. With several the ends are one deviation of
    the logarithm over seeds, else those over images.
    """
    errors, numbers = _seeds(record, stage, statistic)
    seeds = successes(record, stage, statistic) or range(len(errors))
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


def _seeds(record: Mapping[str, Any], stage: str, statistic: str) -> tuple[list[float], list[dict[str, Any]]]:
    """Return error and numbers of each seed. A record that has no last epoch of its own has one set of weights."""
    if stage not in ("best", "last"):
        raise ValueError(f"expected stage to be 'best' or 'last', got {stage!r}")
    if statistic not in STATISTICS:
        raise ValueError(f"expected statistic to be one of {STATISTICS}, got {statistic!r}")
    errors, stability = (record[part].get(stage, record[part]["best"]) for part in ("test_error", "stability"))
    return errors, [numbers[statistic] for numbers in stability]
