"""``stabjax measure``: any network by name, on your images, as a folder with one HTML page."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stabjax import data, features, networks, perturb, probe, report
from stabjax._provenance import versions, versions_of
from stabjax.cli import _images, _model, _weights
from stabjax.cli._refusal import Refusal, in_one_line, refusing
from stabjax.data import Statistics
from stabjax.stability import Stability

_EXAMPLES = 4
"""Images on the page."""
_PACKAGES = {name: name for name in ("torch", "torchax", "torchvision", "timm", "keras", "equinox")} | {
    "haiku": "dm-haiku"
}
"""Packages by the module that shows that they are loaded; the page says which version."""


@dataclass(frozen=True)
class Measure:
    """Measure D, G and R of every layer of a network on images; write a folder with the figure and one HTML page.

    stabjax measure torchvision.models:resnet18 --weights resnet18.pt --images photos --size 224
    --mean 0.485 0.456 0.406 --deviation 0.229 0.224 0.225
    """

    network: Annotated[str, tyro.conf.Positional]
    """``module:function`` or ``path/file.py:function``: a function that returns a network of PyTorch, Keras, Flax,
    Equinox or Haiku, in a form that `networks.wrap` takes."""
    images: str
    """A folder of images (in class folders or not), an .npz file with an array ``images`` of bytes or of floats in
    [0, 1], or a named set: cifar10, mnist, fashion-mnist, svhn."""
    arguments: tuple[str, ...] = ()
    """Of the function, as name=value."""
    weights: Path | None = None
    """A file of weights: a PyTorch state dict (.pt, .pth), .safetensors, .npz, Flax .msgpack, or an Orbax folder."""
    size: tuple[int, ...] = ()
    """Side, or height and width, that images are brought to: scaled until they cover it, and cut around the center."""
    mean: tuple[float, ...] = ()
    """Of each channel, of pixels in [0, 1], as in training. A named set has its own."""
    deviation: tuple[float, ...] = ()
    """Of each channel, likewise."""
    displacement: float = 1.0
    """Typical size of the deformations, in pixels."""
    cutoff: int = 3
    """Highest frequency of the deformations."""
    convention: Literal["rms", "paper"] = "rms"
    """What the displacement is: the root mean square, or the formula of the paper."""
    count: int = 500
    """Largest number of images, drawn among all."""
    draws: int = 1
    """Deformations, and noises, of each image."""
    radius: Literal["each", "mean"] = "each"
    """Of the noise: that of each deformed image, or one for all."""
    average: Literal["mean", "median"] = "mean"
    """Over images."""
    layers: tuple[str, ...] = ()
    """Kinds (conv, activation, ...), names or patterns of names of the operations to measure; all by default."""
    batch_size: int = 64
    """Images that pass together; less takes less memory."""
    channels: Literal[1, 3] | None = None
    """Channels that images of a folder are brought to, 3 by default."""
    split: Literal["test", "train"] = "test"
    """Of a named set."""
    seed: int = 0
    """Of the weights that are drawn, the choice of images, the deformations and the noise."""
    mode: Literal["eval", "batch_statistics"] = "eval"
    """As in `networks.wrap`: batch_statistics for untrained networks with batch normalization."""
    layout: Literal["channels_last", "channels_first"] | None = None
    """Of the images that the network takes; by default the custom of its framework."""
    single: bool = False
    """The network takes one image instead of a batch, as those of Equinox."""
    call: tuple[str, ...] = ()
    """Further arguments of the network, as name=value, such as train=False."""
    label: str = ""
    """What the network is called; by default its function, and the file of its weights."""
    out: Path = Path("report")
    """Folder of the page (index.html), the figure and the numbers."""
    traceback: bool = False
    """Show where an error was raised."""


def run(measure: Measure, words: list[str], console: Console) -> None:
    """Measure the network, print the table, write the folder."""
    # Keras chooses its backend when it is first imported.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    images = _images.load(
        measure.images,
        count=measure.count,
        seed=measure.seed,
        size=measure.size,
        channels=measure.channels,
        split=measure.split,
    )
    statistics = _statistics(measure, images)
    network = _network(measure)
    traced = _trace(network, images.shape)
    operations = sum(tap.kind != "output" for tap in traced.taps)
    console.print(f"[bold]{escape(measure.network)}[/]: {operations} operations", highlight=False)
    console.print(f"{escape(images.text)}{'' if statistics else ', not normalized: see --mean and --deviation'}")
    if traced.hidden:
        console.print(f"{len(traced.hidden)} operations are hidden; the page lists them with the reason")
    console.print("compiling and measuring; the second time the compiled program comes from the disk", style="dim")
    result, examples = _measure(measure, network, images, statistics)
    own_label = measure.network.rpartition(":")[2] + (f", {measure.weights.name}" if measure.weights else "")
    measured = report.Measured(
        label=measure.label or own_label,
        result=result,
        settings=_settings(measure, images, statistics),
        command=shlex.join(["stabjax", *words]),
        versions=_versions(),
        hidden=tuple((", ".join(each.operations), each.reason) for each in traced.hidden),
        examples=examples,
    )
    console.print(table(result))
    with refusing(f"the folder {str(measure.out)!r} cannot be written", kinds=(OSError,)):
        files = report.write(measured, measure.out)
    console.print(f"page: {escape(str(files[0]))}", highlight=False, soft_wrap=True)
    console.print(f"figure and numbers: {', '.join(file.name for file in files[1:])}", highlight=False, soft_wrap=True)


def table(result: Stability) -> Table:
    """Write ``D``, ``G`` and ``R`` of every operation, with their intervals, into a rich table."""
    count, draws = int(np.sum(result.measured)), np.shape(result.noise_radius)[0]
    each = "1 deformation" if draws == 1 else f"{draws} deformations"
    caption = f"{count} images, {each} of each; {100 * result.confidence:g} % intervals over images"
    found = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    found.add_column("operation", overflow="fold")
    for heading in ("kind", "D", "G", "R = D / G"):
        found.add_column(heading, no_wrap=True)
    for k, (layer, kind) in enumerate(zip(result.layers, result.kinds, strict=True)):
        row = [layer, kind]
        for name in ("deformation", "noise", "relative"):
            value, (low, high) = (np.asarray(getattr(result, part))[k] for part in (name, f"{name}_interval"))
            row.append(f"{value:.3g} [{low:.2g}, {high:.2g}]")
        found.add_row(*map(escape, row))
    return found


def _statistics(measure: Measure, images: _images.Images) -> Statistics | None:
    """Return how images are normalized: as asked, or as it is usual for a named set."""
    if not (measure.mean or measure.deviation):
        return images.statistics
    channels = images.shape[-1]
    mean, deviation = measure.mean or (0.0,), measure.deviation or (1.0,)
    for name, values in (("mean", mean), ("deviation", deviation)):
        if len(values) not in (1, channels):
            raise Refusal(
                f"expected --{name} as one number, or one for each of the {channels} channels of the images, got "
                f"{len(values)}: give {channels}, or bring the images to other --channels"
            )
    with refusing("--mean and --deviation", kinds=(ValueError,)):
        return Statistics(*(tuple(np.broadcast_to(values, channels).tolist()) for values in (mean, deviation)))


def _network(measure: Measure) -> networks.Network:
    """Build the network, and give it the weights of the file."""
    model = _model.build(measure.network, measure.arguments, measure.seed)
    options: dict[str, Any] = {"single": measure.single, "layout": measure.layout, "mode": measure.mode}
    is_torch = _weights.is_torch_module(model)
    if measure.weights is not None and is_torch:
        _weights.load_into_module(model, measure.weights)
    with refusing(kinds=(TypeError, ValueError, ImportError)):
        network = networks.wrap(model, **options, **_model.parse(measure.call))
    if measure.weights is not None and not is_torch:
        return _weights.load_into_network(network, measure.weights)
    return network


def _trace(network: networks.Network, shape: tuple[int, ...]) -> features.Traced:
    """Read the program of the network for such images, before anything is computed."""
    try:
        return features.trace(network, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    except Exception as error:
        said = " x ".join(map(str, shape))
        raise Refusal(
            f"the network cannot run on images of {said} (height x width x channels): {in_one_line(error)}. Bring them "
            "to the --size and --channels that it was made for; if it takes its channels first or single images, say "
            "--layout channels_first or --single"
        ) from error


def _measure(
    measure: Measure, network: networks.Network, images: _images.Images, statistics: Statistics | None
) -> tuple[Stability, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the result, and examples of the images: clean, deformed and with noise, in [0, 1]."""
    key = jax.random.key(measure.seed)
    normalize = statistics or Statistics((0.0,), (1.0,))
    with refusing(kinds=(ValueError, TypeError)):
        deformation = perturb.Diffeomorphism.of_displacement(
            measure.displacement, measure.cutoff, images.shape[:2], convention=measure.convention
        )
        result = probe.stability(
            network,
            images.source,
            key=key,
            deformation=deformation,
            draws=measure.draws,
            radius=measure.radius,
            average=measure.average,
            # The statistics of a batch are those of all images.
            batch_size=images.count if measure.mode == "batch_statistics" else measure.batch_size,
            select=measure.layers or None,
            normalize=normalize,
        )
    clean = np.asarray(data.normalize(images.first[:_EXAMPLES], statistics))
    noise = None
    if measure.radius == "mean":
        noise = perturb.SphericalNoise(float(np.nanmean(result.noise_radius)))
    deformed, noisy = probe.perturbed(clean, key=key, deformation=deformation, noise=noise)
    # As they were before they were normalized.
    shown = [np.asarray(each) * normalize.deviation + normalize.mean for each in (clean, deformed[0], noisy[0])]
    return result, (shown[0], shown[1], shown[2])


def _settings(measure: Measure, images: _images.Images, statistics: Statistics | None) -> dict[str, str]:
    found = {
        "network": measure.network,
        "arguments": " ".join(measure.arguments),
        "weights": "" if measure.weights is None else str(measure.weights),
        "images": images.text,
        "normalization": "none" if statistics is None else f"mean {statistics.mean}, deviation {statistics.deviation}",
        "deformations": f"{measure.displacement:g} pixels ({measure.convention}), cutoff {measure.cutoff}, "
        f"{measure.draws} of each image",
        "noise": f"on the sphere, radius of {'each deformed image' if measure.radius == 'each' else 'all, one mean'}",
        "average over images": measure.average,
        "operations": " ".join(measure.layers) or "all",
        "mode": measure.mode,
        "seed": str(measure.seed),
    }
    return {term: text for term, text in found.items() if text}


def _versions() -> dict[str, str]:
    """Return the versions of stabjax, of what it stands on, and of the frameworks that are loaded."""
    return {**versions_of(*(package for module, package in _PACKAGES.items() if module in sys.modules)), **versions()}
