"""The zoo: which networks are trained and how, and the images all of them are probed on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import stabjax as sj
from experiments import layerwise

Size = Literal["smoke", "cpu", "paper"]
STATISTICS = ("published", "median", "mean")
"""Medians per unit of the first draw, as published; of all draws; means over images and draws."""
QUANTITIES = {"relative": "R", "deformation": "D", "noise": "G"}


@dataclass(frozen=True)
class Member:
    """One network of the zoo and how it is trained."""

    model: str
    """A name of `stabjax.models.NAMES`."""
    family: str
    """Families share a colour, and are left out of the fit together."""
    epochs: float = 10.0
    """Passes through the training images."""
    rate: float = 0.2
    """Peak learning rate."""
    adam: bool = False
    """Adam at a constant rate and no decay, the published way for fully connected networks."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the network's constructor."""


def _half(model: str, family: str, **options: Any) -> Member:
    return Member(model, family, options={"width": 0.5}, **options)


def _quarter(model: str, family: str, **options: Any) -> Member:
    return Member(model, family, options={"width": 0.25}, **options)


_FULLY_CONNECTED = {f"FC L{n}": Member(f"FCL{n}", "fully connected", 12, 0.1, adam=True) for n in (2, 4, 6)}
_PUBLISHED_EPOCHS = 250

ZOO: Mapping[Size, Mapping[str, Member]] = {
    "smoke": {
        f"SmallCNN {channels}": Member("SmallCNN", f"depth {len(channels)}", 1, 0.05, options={"channels": channels})
        for channels in ((4,), (4, 4), (8, 8))
    },
    "cpu": {
        **_FULLY_CONNECTED,
        "LeNet": Member("LeNet", "plain CNN", 12, 0.05),
        "MinimalCNN": Member("MinimalCNN", "plain CNN", 10, 0.01),
        "SmallCNN": Member("SmallCNN", "small CNN", 10),
        "VGG11, width 1/4": _quarter("VGG11", "VGG", epochs=10, rate=0.05),
        "VGG11bn, width 1/4": _quarter("VGG11bn", "VGG-BN", epochs=10),
        "AlexNet, width 1/2": _half("AlexNet", "plain CNN", epochs=10, rate=0.05),
        "ResNet18, width 1/4": _quarter("ResNet18", "ResNet", epochs=8),
        "MobileNetV2, width 1/4": _quarter("MobileNetV2", "inverted bottlenecks", epochs=6),
        "EfficientNetB0, width 1/4": _quarter("EfficientNetB0", "inverted bottlenecks", epochs=6),
    },
    "paper": {
        **{name: replace(member, epochs=_PUBLISHED_EPOCHS) for name, member in _FULLY_CONNECTED.items()},
        **{
            model: Member(model, family, _PUBLISHED_EPOCHS, rate)
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


@dataclass(frozen=True)
class Material:
    """Images and recipes of one size."""

    training: tuple[Any, Any]
    test: tuple[Any, Any]
    recipe: sj.train.Recipe
    """Without what a member changes in it."""
    deformation: Any
    note: str
    """What to say beside every number."""
    size: Size

    def recipe_of(self, member: Member) -> sj.train.Recipe:
        """How the member is trained."""
        statistics = {"mean": self.recipe.mean, "deviation": self.recipe.deviation}
        if self.size == "paper":
            recipe = sj.train.published(epochs=member.epochs, fully_connected=member.adam, **statistics)
            return replace(recipe, rate=member.rate)
        recipe = replace(self.recipe, epochs=member.epochs, rate=member.rate)
        return replace(recipe, optimiser="adam", schedule="constant", decay=0.0) if member.adam else recipe


def material(size: Size, *, seed: int = 0, training: int | None = None) -> Material:
    """CIFAR-10, or at size ``smoke`` the scale-detection task, with the published deformation (cutoff 3, one pixel).

    Args:
        size: of the study.
        seed: of the choice of training images.
        training: number of training images; all of them by default.
    """
    common = layerwise.Config(seed=seed, training=training)
    if size == "smoke":
        common = replace(common, data="scale-detection", training=training or 256, images=64)
    training_set, test, deformation, recipe, note = layerwise.material(common)
    return Material(training_set, test, recipe, deformation, note, size)


def train(
    name: str,
    member: Member,
    given: Material,
    *,
    key: jax.Array,
    seeds: int,
    path: Path | None,
    scored: bool = True,
    progress: bool = False,
) -> sj.train.Run:
    """The member, trained; a run that was finished is read, one that was killed goes on.

    ``scored``: whether the test error is taken after every epoch.
    """
    smoke = {"in_channels": 1, "num_classes": 2} if given.size == "smoke" else {}
    return sj.train.fit(
        lambda *, rngs: sj.models.build(member.model, rngs=rngs, **smoke, **member.options),
        given.training,
        key=key,
        recipe=given.recipe_of(member),
        test=given.test if scored else None,
        seeds=seeds,
        path=None if path is None else path / folder(name),
        progress=progress,
    )


def runs_of(config: Any) -> Path:
    """Folder of the networks of a size and seed, each trained once: the studies share them."""
    return config.runs / f"zoo_{config.size}_s{config.seed}"


def folder(name: str) -> str:
    """A name that any file system takes."""
    return "".join(c if c.isalnum() else "_" for c in name)


def chosen(size: Size, names: Sequence[str], epochs: float | None) -> dict[str, Member]:
    """The members of a size with these names, all if there is none; for so many epochs where they are given."""
    members = ZOO[size]
    if unknown := [name for name in names if name not in members]:
        raise SystemExit(f"expected some of {', '.join(members)}, got {', '.join(unknown)}")
    return {
        name: members[name] if epochs is None else replace(members[name], epochs=epochs) for name in names or members
    }


# The probe


@dataclass(frozen=True)
class Probe:
    """Test images with their deformed and noisy versions: the same for every network, so that networks compare."""

    clean: jax.Array
    """``(n, *spatial, channels)``, normalised."""
    deformed: jax.Array
    """``(draws, n, *spatial, channels)``."""
    noisy: jax.Array
    """Likewise, ``|eta| = |tau x - x|`` for each image and draw."""
    labels: np.ndarray
    """``(n,)``."""
    about: Mapping[str, Any]
    """What the numbers depend on, as it is written beside them."""

    def measure(self, f: Any) -> dict[str, dict[str, Any]]:
        """``D``, ``G`` and ``R`` of the output, with intervals over images, by the three `STATISTICS`.

        Every version of the images passes as one batch, so that a network with batch statistics is measured the
        published way.
        """
        f = f if isinstance(f, sj.networks.Network) else sj.networks.wrap(f)
        clean = _output(f, self.clean)
        deformed, noisy = (np.stack([_output(f, x) for x in many]) for many in (self.deformed, self.noisy))
        found = {}
        for statistic in STATISTICS:
            some = slice(1) if statistic == "published" else slice(None)
            result = sj.stability.from_features(
                jax.random.key(0),
                {"output": clean},
                {"output": deformed[some]},
                {"output": noisy[some]},
                average="mean" if statistic == "mean" else "median_per_unit",
            )
            found[statistic] = {name: float(getattr(result, name)[0]) for name in QUANTITIES} | {
                f"{name}_interval": np.asarray(getattr(result, f"{name}_interval")[0]).tolist() for name in QUANTITIES
            }
        return found


@jax.jit
def _forward(f: Any, x: jax.Array) -> jax.Array:
    return f(x)


def _output(f: Any, x: jax.Array) -> np.ndarray:
    return np.asarray(_forward(f, x))


def probe(given: Material, *, images: int = 500, draws: int = 10, seed: int = 0) -> Probe:
    """The published images: the first of the test set in file order where the copy is the original one.

    Copies from image files are sorted by class; there the images are a fixed random draw.

    Args:
        given: images, their statistics and the deformation.
        images: number of test images.
        draws: deformations, and noises, of each; the first is that of the published protocol.
        seed: of the deformations, the noise and the draw of images.
    """
    pixels, labels = given.test
    images = min(images, len(pixels))
    in_order = given.size != "smoke" and sj.data.describe("cifar10").exact
    chosen = np.arange(images) if in_order else np.sort(np.random.default_rng(seed).permutation(len(pixels))[:images])
    clean = sj.train.normalise(pixels[chosen], mean=given.recipe.mean, deviation=given.recipe.deviation)
    deformed, noisy = sj.probe.perturbed(clean, key=jax.random.key(seed), deformation=given.deformation, draws=draws)
    deformation = {
        k: getattr(given.deformation, k).item() for k in ("temperature", "cutoff") if hasattr(given.deformation, k)
    }
    about = {"images": images, "draws": draws, "seed": seed, "deformation": deformation, "data": given.note}
    return Probe(clean, deformed, noisy, np.asarray(labels)[chosen], about)
