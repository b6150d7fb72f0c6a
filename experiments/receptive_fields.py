"""Receptive fields: what a unit can see, and what it looks at, at initialization and trained.

Draws three figures, each with its numbers beside it in ``.json``::

    receptive_fields_depth   extents and effective sizes against depth
    receptive_fields_maps    effective fields of the middle unit, layer by layer
    receptive_fields_unit    the field of one unit of the 8 x 8 maps over an image

Networks that ``experiments.layerwise`` has trained are read, others are trained first::

    python -m experiments.receptive_fields --epochs 12
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from rich.console import Console

import stabjax as sj
from experiments import _images, _networks
from experiments._study import Drawing, ResumableStudy, run

STAGES = {"initial": "at initialization", "last": "trained"}


@dataclass(frozen=True)
class Config(ResumableStudy):
    """Receptive fields of networks, at initialization and trained."""

    SMOKE: ClassVar[Mapping[str, Any]] = {
        "data": "scale-detection",
        "models": ("LeNet",),
        "epochs": 1.0,
        "images": 2,
        "channels": 2,
    }

    data: Literal["cifar10", "mnist", "scale-detection"] = "cifar10"
    """Images; all but scale-detection are read from STABJAX_DATA or downloaded."""
    models: tuple[str, ...] = ("VGG11bn", "SmallCNN", "LeNet")
    """Names of stabjax.models.NAMES; the maps are drawn of the first."""
    width: float = 0.5
    """Factor on the channels of a VGG."""
    epochs: float = 10.0
    """Passes through the training images."""
    images: int = 50
    """Test images over which gradients are averaged."""
    channels: int = 16
    """Channels of a layer that are averaged."""


@dataclass(frozen=True)
class Network:
    """One architecture, its fields, and what they were measured on."""

    extents: dict[str, sj.receptive.Extent]
    layers: tuple[str, ...]
    """Convolutions and poolings, in order."""
    maps: dict[str, dict[str, np.ndarray]]
    """Effective field of the middle unit, by stage and layer."""
    error: float
    """Test error."""
    models: dict[str, Any]
    images: np.ndarray
    pixels: np.ndarray
    """The same images as they look, in [0, 1]."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the experiment; see `run`."""
    return run(Config, draw_figures, argv)


def draw_figures(config: Config, console: Console) -> dict[str, Drawing]:
    """Measure the fields of every network."""
    networks = {name: measure(name, config, console) for name in config.models}
    first = next(iter(networks.values()))
    return {
        "receptive_fields_depth": draw_depth(networks, config),
        "receptive_fields_maps": draw_maps(config.models[0], first),
        "receptive_fields_unit": draw_unit(config.models[0], first),
    }


def measure(name: str, config: Config, console: Console) -> Network:
    """Train or read a network, and find its fields."""
    task = _images.load(
        config.data,
        seed=config.seed,
        epochs=config.epochs,
        training=256 if config.smoke else None,
        images=config.images,
        batch_size=64 if config.smoke else 128,
    )
    key = jax.random.split(jax.random.key(config.seed))[0]
    options = {"data": config.data, "model": name, "width": config.width, "progress": console.is_terminal}
    trained = _networks.train_layerwise(task, config, key=key, **options)
    chosen, images = task.draw_test_images(config.images, seed=config.seed)
    images = np.asarray(images)
    # At initialization batch normalization has no statistics yet.
    initial = sj.train.calibrate(trained.model("initial"), np.asarray(task.normalize(task.training[0][:2000])))
    networks = {stage: sj.networks.wrap(model) for stage, model in zip(STAGES, (initial, trained.model("last")))}
    taps = sj.features.taps(networks["last"], images)
    layers = tuple(tap.name for tap in taps if tap.kind in ("conv", "pool") and len(tap.shape) == images.ndim)
    count = {tap.name: tap.shape[-1] for tap in taps}
    fields = {
        stage: {
            layer: np.asarray(
                sj.receptive.effective(
                    network,
                    images,
                    tap=layer,
                    channel=np.unique(np.linspace(0, count[layer] - 1, config.channels, dtype=int)).tolist(),
                )
            )
            for layer in layers
        }
        for stage, network in networks.items()
    }
    pixels = task.test[0][chosen]
    return Network(
        extents=sj.receptive.extent(networks["last"], images),
        layers=layers,
        maps=fields,
        error=1 - float(trained.history.test_accuracy[-1, 0]),
        models=networks,
        images=images,
        pixels=pixels / 255 if pixels.dtype == np.uint8 else pixels / pixels.max(),
    )


def size(field: np.ndarray) -> float:
    """Return the side of the even square box as wide as the field, in pixels: ``sqrt(12)`` times the rms width."""
    return float(np.sqrt(12 * np.mean(np.square(np.asarray(sj.receptive.width(field))))))


def draw_depth(networks: dict[str, Network], config: Config) -> Drawing:
    """Draw what units can see and what they look at, against depth."""
    figure, panels = sj.plot.panels(1, len(networks), size=(4.6, 4.2), sharey=True)
    numbers = {}
    for axes, (name, network) in zip(panels[0], networks.items(), strict=True):
        position = np.arange(len(network.layers))
        extents = [network.extents[layer].size for layer in network.layers]
        axes.plot(position, [side[0] for side in extents], "k-", linewidth=1.2, label="extent")
        sizes = {stage: [size(network.maps[stage][layer]) for layer in network.layers] for stage in STAGES}
        for color, (stage, label) in zip(sj.plot.COLORS, STAGES.items(), strict=False):
            axes.plot(position, sizes[stage], "o-", color=color, markersize=4, label=f"effective, {label}")
        side = network.images.shape[1]
        axes.axhline(side, color="0.7", linewidth=0.8, linestyle="--")
        axes.text(0, side * 1.04, "side of the image", fontsize=8, color="0.4")
        axes.set(yscale="log", title=f"{name}, test error {100 * network.error:.0f} %")
        axes.set_xticks(position, network.layers, rotation=90, fontsize=7)
        axes.grid(axis="y", color="0.92")
        numbers[name] = {
            "test_error": network.error,
            "layers": network.layers,
            "extents": {layer: asdict(network.extents[layer]) for layer in network.layers},
            "effective_size": sizes,
        }
    panels[0, 0].set_ylabel("side of the receptive field (pixels)")
    panels[0, 0].legend(fontsize=8, frameon=False)
    figure.suptitle(
        f"{config.data}: gradients of the middle unit, mean over {len(networks[config.models[0]].images)} test images; "
        "effective: side of an even box of the same rms width",
        fontsize=9,
    )
    return figure, {"networks": numbers}


def draw_maps(name: str, network: Network) -> Drawing:
    """Draw effective fields of the middle unit."""
    layers = [layer for layer in network.layers if "pool" not in layer][-7:]
    figure, panels = sj.plot.panels(2, len(layers), size=(2.0, 2.15), sharex=True, sharey=True)
    for row, (stage, label) in zip(panels, STAGES.items(), strict=True):
        for axes, layer in zip(row, layers, strict=True):
            field = network.maps[stage][layer]
            axes.imshow(field / field.max(), cmap="magma", vmin=0, vmax=1)
            axes.set_title(
                f"{layer}\nextent {network.extents[layer].size[0]}, effective {size(field):.1f}", fontsize=7.5
            )
            axes.tick_params(labelsize=6)
        row[0].set_ylabel(f"{label}\npixels", fontsize=8)
    figure.colorbar(panels[0, 0].images[0], ax=panels, label="gradient / its maximum", shrink=0.8)
    figure.suptitle(f"{name}: mean absolute gradient of the middle unit with respect to the image", fontsize=9)
    return figure, {
        "network": name,
        "maps": {
            stage: {layer: np.round(fields[layer], 6) for layer in layers} for stage, fields in network.maps.items()
        },
    }


def draw_unit(name: str, network: Network) -> Drawing:
    """Draw the field of one unit of the 8 x 8 maps over an image: its box, and its gradient there."""
    taps = sj.features.taps(network.models["last"], network.images)
    # The last whose units are at most four pixels apart; before its ReLU, where no unit is silent.
    fine = [tap for tap in taps if tap.kind in ("conv", "norm") and 0 < network.extents[tap.name].stride[0] <= 4]
    layer, side = fine[-1].name, fine[-1].shape[1]
    place = (side // 2 - 1, side // 2)
    _, activations = sj.features.capture(network.models["last"], select=layer)(network.images)
    responses = np.asarray(activations[layer])[:, *place]
    image, channel = np.unravel_index(np.argmax(responses), responses.shape)
    extent = network.extents[layer]
    (top, bottom), (left, right) = extent.box(place)
    options = {"tap": layer, "unit": place, "channel": int(channel)}
    fields = {
        stage: np.asarray(sj.receptive.effective(f, network.images[image : image + 1], **options))
        for stage, f in network.models.items()
    }
    figure, panels = sj.plot.panels(1, 3, size=(3.2, 3.7), sharex=True, sharey=True)
    pixels = network.pixels[image]
    panels[0, 0].imshow(pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1))
    panels[0, 0].set_title("image, and the box the unit can see", fontsize=9)
    for axes, (stage, label) in zip(panels[0, 1:], STAGES.items(), strict=True):
        axes.imshow(fields[stage] / max(fields[stage].max(), 1e-30), cmap="magma", vmin=0, vmax=1)
        axes.set_title(f"gradient of the unit, {label}", fontsize=9)
    for axes in panels[0]:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        axes.plot(*(np.array(corners).T - 0.5), color="#27ae60", linewidth=1.5)
        axes.set(xlim=(-0.5, pixels.shape[1] - 0.5), ylim=(pixels.shape[0] - 0.5, -0.5), xlabel="pixels")
    figure.colorbar(panels[0, 1].images[0], ax=panels, label="gradient / its maximum", shrink=0.75)
    figure.suptitle(f"{name}: unit {place}, channel {channel} of {layer} ({side} x {side} maps)", fontsize=10)
    return figure, {
        "network": name,
        "tap": layer,
        "unit": place,
        "channel": int(channel),
        "box": extent.box(place),
        "gradient": {stage: np.round(field, 8) for stage, field in fields.items()},
        "effective_size": {stage: size(field) if field.max() > 0 else None for stage, field in fields.items()},
    }


if __name__ == "__main__":
    main()
