"""The networks of the experiments: a zoo in three sizes, the options of its studies, and how networks are trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import jax
from flax import nnx

import stabjax as sj
from experiments import _images
from experiments._images import Task
from experiments._study import ResumableStudy

Size: TypeAlias = Literal["smoke", "cpu", "paper"]


@dataclass(frozen=True)
class ZooStudy(ResumableStudy):
    """Options of a study of networks of the zoo, which are trained once: the studies share them."""

    size: Size = "cpu"
    """``smoke`` (seconds), ``cpu`` (two cores, under two hours) or ``paper`` (an accelerator, 250 epochs)."""
    images: int = 500
    """Test images that are deformed."""
    smoke: bool = False
    """The same as ``--size smoke``."""

    def resize(self) -> Self:
        """Return the options at the smoke size if either option asks for it, as they are if not."""
        small = self.smoke or self.size == "smoke"
        return replace(self, size="smoke", smoke=True, **self.SMOKE) if small else self

    def zoo_folder(self) -> Path:
        """Return the folder of the trained networks of this size and seed."""
        return self.runs / f"zoo_{self.size}_s{self.seed}"


@dataclass(frozen=True)
class Architecture:
    """A network of the zoo and how it is trained."""

    model: str
    """A name of `stabjax.models.NAMES`."""
    family: str
    """Families share a color, and are left out of the fit together."""
    epochs: float = 10.0
    """Passes through the training images."""
    rate: float = 0.2
    """Peak learning rate."""
    adam: bool = False
    """Adam at a constant rate and no decay, the published way for fully connected networks."""
    published: bool = False
    """By the published recipe for everything but the rate, instead of that of the images."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the network's constructor."""

    def recipe(self, task: Task) -> sj.train.Recipe:
        """Return the recipe of its training on these images."""
        if self.published:
            statistics = {"mean": task.recipe.mean, "deviation": task.recipe.deviation}
            recipe = sj.train.published(epochs=self.epochs, fully_connected=self.adam, **statistics)
            return replace(recipe, rate=self.rate)
        recipe = replace(task.recipe, epochs=self.epochs, rate=self.rate)
        return replace(recipe, optimizer="adam", schedule="constant", decay=0.0) if self.adam else recipe


def _scaled(model: str, width: float, family: str, **training: Any) -> Architecture:
    return Architecture(model, family, options={"width": width}, **training)


_FULLY_CONNECTED = {f"FC L{n}": Architecture(f"FCL{n}", "fully connected", 12, 0.1, adam=True) for n in (2, 4, 6)}
_PUBLISHED: dict[str, Any] = {"epochs": 250, "published": True}

ZOO: Mapping[Size, Mapping[str, Architecture]] = {
    "smoke": {
        f"SmallCNN {channels}": Architecture(
            "SmallCNN", f"depth {len(channels)}", 1, 0.05, options={"channels": channels}
        )
        for channels in ((4,), (8,), (4, 4))
    },
    "cpu": {
        **_FULLY_CONNECTED,
        "LeNet": Architecture("LeNet", "plain CNN", 12, 0.05),
        "MinimalCNN": Architecture("MinimalCNN", "plain CNN", 10, 0.01),
        "SmallCNN": Architecture("SmallCNN", "small CNN", 10),
        "VGG11, width 1/4": _scaled("VGG11", 0.25, "VGG", epochs=10, rate=0.05),
        "VGG11bn, width 1/4": _scaled("VGG11bn", 0.25, "VGG-BN", epochs=10),
        "AlexNet, width 1/2": _scaled("AlexNet", 0.5, "plain CNN", epochs=10, rate=0.05),
        "ResNet18, width 1/4": _scaled("ResNet18", 0.25, "ResNet", epochs=8),
        "MobileNetV2, width 1/4": _scaled("MobileNetV2", 0.25, "inverted bottlenecks", epochs=6),
        "EfficientNetB0, width 1/4": _scaled("EfficientNetB0", 0.25, "inverted bottlenecks", epochs=6),
    },
    "paper": {
        **{name: replace(each, **_PUBLISHED) for name, each in _FULLY_CONNECTED.items()},
        **{
            model: Architecture(model, family, rate=rate, **_PUBLISHED)
            for family, rate, models in (
                ("plain CNN", 0.02, ("LeNet", "AlexNet")),
                ("VGG", 0.05, ("VGG11", "VGG16", "VGG19")),
                ("VGG-BN", 0.1, ("VGG11bn", "VGG16bn", "VGG19bn")),
                ("ResNet", 0.1, ("ResNet18", "ResNet34", "ResNet50", "PreActResNet18", "ResNeXt29", "DenseNet121")),
                ("inverted bottlenecks", 0.1, ("EfficientNetB0", "MobileNetV2")),
            )
            for model in models
        },
    },
}
"""By size and name: ``smoke`` for tests, ``cpu`` for two cores and two hours, ``paper`` as published."""


def select(size: Size, names: Sequence[str], *, epochs: float | None = None) -> dict[str, Architecture]:
    """Return the networks of a size with these names, all if there is none; for so many epochs where they are given."""
    zoo = ZOO[size]
    if unknown := [name for name in names if name not in zoo]:
        raise SystemExit(f"expected some of {', '.join(zoo)}, got {', '.join(unknown)}")
    return {name: zoo[name] if epochs is None else replace(zoo[name], epochs=epochs) for name in names or zoo}


def load_task(size: Size, *, seed: int = 0, training: int | None = None) -> Task:
    """Load CIFAR-10, or at size ``smoke`` draw the scale-detection task; deformations have cutoff 3 and one pixel.

    Args:
        size: of the study.
        seed: of the choice of training images.
        training: number of training images; all of them by default.
    """
    if size == "smoke":
        return _images.load("scale-detection", seed=seed, training=training or 256, images=64)
    return _images.load("cifar10", seed=seed, training=training)


def train(
    name: str,
    architecture: Architecture,
    task: Task,
    *,
    key: jax.Array,
    seeds: int,
    path: Path | None,
    score: bool = True,
    progress: bool = False,
) -> sj.train.Run:
    """Train a network of the zoo; a run that was finished is read, one that was killed goes on.

    ``score``: whether the test error is taken after every epoch.
    """
    # Networks are made for CIFAR-10 unless told otherwise; fully connected ones do not take these options.
    channels = {} if task.source else {"in_channels": task.channels, "num_classes": task.classes}
    return sj.train.fit(
        lambda *, rngs: sj.models.build(architecture.model, rngs=rngs, **channels, **architecture.options),
        task.training,
        key=key,
        recipe=architecture.recipe(task),
        test=task.test if score else None,
        seeds=seeds,
        path=None if path is None else path / file_name(name),
        progress=progress,
    )


def train_layerwise(
    task: Task,
    study: ResumableStudy,
    *,
    data: _images.Name,
    model: str,
    width: float,
    key: jax.Array,
    seeds: int = 1,
    progress: bool = False,
) -> sj.train.Run:
    """Train a network by the recipe of its task; a run that was finished is read, one that was killed goes on.

    Args:
        task: images and recipe.
        study: the options, for its seed and folder.
        data: name of the images.
        model: a name of `stabjax.models.NAMES`.
        width: factor on the channels of a VGG.
        key: of the training.
        seeds: networks trained.
        progress: whether to show a bar.
    """
    options: dict[str, Any] = {"width": width} if model.startswith("VGG") else {}
    options |= {"in_channels": task.channels, "num_classes": task.classes}

    def build(*, rngs: nnx.Rngs) -> Any:
        return sj.models.build(model, rngs=rngs, **options)

    settings = f"w{width:g}_e{task.recipe.epochs:g}_s{study.seed}"
    return sj.train.fit(
        build,
        task.training,
        key=key,
        recipe=task.recipe,
        test=task.test,
        seeds=seeds,
        path=study.folder(f"layerwise_{data}_{model}_{settings}"),
        progress=progress,
    )


def file_name(name: str) -> str:
    """Return a name as any file system takes it."""
    return "".join(c if c.isalnum() else "_" for c in name)


def parameters(model: nnx.Module) -> list[int]:
    """Return the number of trained numbers in each array of a network."""
    return [int(leaf.size) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
