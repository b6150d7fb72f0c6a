"""Architectures of public packages, with what is to be found in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import equimo.models
import haiku as hk
import keras
import timm
import torchvision
import transformers

from tests.guests.counting import Guest, of_equinox, of_haiku, of_keras, of_torch


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Attributes:
        framework, package, name: where it comes from.
        build: makes it.
        side: of the images, ``(n, side, side, 3)``.
        more: how many taps of a kind there are more than modules of that kind that ran, and why.
        extent: tap, and the published side of what its units see.
        probed: whether images are deformed and passed through it, too.
        fault: why it does not come in as it should.
    """

    framework: str
    package: str
    name: str
    build: Callable[[], Guest]
    side: int = 64
    more: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    extent: tuple[str, int] | None = None
    probed: bool = False
    fault: str = ""


def of_torchvision(name: str, *, build: Callable[..., Any] | None = None, options: Any = (), **others: Any):
    make = build or getattr(torchvision.models, name)
    whole = partial(of_torch, partial(make, num_classes=10, **dict(options)))
    return Architecture("PyTorch", "torchvision", name, whole, **others)


def of_timm(name: str, *, options: Any = (), **others: Any):
    whole = partial(of_torch, partial(timm.create_model, name, num_classes=10, **dict(options)))
    return Architecture("PyTorch", "timm", name, whole, **others)


def of_transformers(name: str, model: Any, config: Any, **others: Any):
    return Architecture("PyTorch", "transformers", name, partial(of_torch, lambda: model(config)), **others)


def of_applications(name: str, side: int, **others: Any):
    options = {"weights": None, "input_shape": (side, side, 3), "classes": 10, "classifier_activation": None}
    whole = partial(of_keras, partial(getattr(keras.applications, name), **options))
    return Architecture("Keras", "keras.applications", name, whole, side, **others)


def of_nets(name: str, **others: Any):
    build = partial(getattr(hk.nets, name), num_classes=10)
    return Architecture("Haiku", "haiku.nets", name, partial(of_haiku, build), **others)


def of_equimo(name: str, options: Any = (), **others: Any):
    make = getattr(equimo.models, name)
    build = lambda key: make(num_classes=10, key=key, **dict(options))  # noqa: E731
    return Architecture("Equinox", "equimo", name, partial(of_equinox, build), **others)


def at(side: int, *, of_model: bool = True) -> dict[str, Any]:
    """Return the options of a transformer for images of a side."""
    return {"side": side, "options": {"img_size" if of_model else "image_size": side}}


def small_maxvit(**options: Any) -> Any:
    """Return a MaxViT of two blocks for images of 64 x 64."""
    blocks = {"block_channels": [16, 32], "block_layers": [1, 1], "stem_channels": 16}
    attention = {"head_dim": 16, "partition_size": 4, "stochastic_depth_prob": 0.0}
    return torchvision.models.MaxVit(input_size=(64, 64), **blocks, **attention, **options)


def dense_by_functions(number: int) -> dict[str, tuple[int, str]]:
    return {"dense": (number, "layers of attention are called by torch.nn.functional.linear, not as modules")}


def by_functions(**numbers: int) -> dict[str, tuple[int, str]]:
    """Return what a framework has functions for, in the numbers of the published architecture."""
    return {kind: (number, "a function, not a module") for kind, number in numbers.items()}


MAIN_PATH = {"init_weights": False, "aux_logits": False}
TORCHVISION = [
    of_torchvision("resnet18", probed=True, extent=("layer4.1.conv2", 435)),
    of_torchvision("resnet50", extent=("layer4.2.conv2", 427)),
    of_torchvision("vgg11_bn", side=96),
    of_torchvision("alexnet", extent=("features.12.max_pool2d.max_pool_0", 195)),
    of_torchvision("densenet121", side=32),
    of_torchvision("mobilenet_v2", extent=("features.18.0", 491)),
    of_torchvision("mobilenet_v3_small", probed=True),
    of_torchvision("efficientnet_b0"),
    of_torchvision("convnext_tiny", probed=True),
    of_torchvision("swin_t", probed=True, more=dense_by_functions(24)),
    of_torchvision("vit_b_16", more=dense_by_functions(24), **at(32, of_model=False)),
    of_torchvision("maxvit", build=small_maxvit),
    of_torchvision("squeezenet1_1"),
    of_torchvision("shufflenet_v2_x0_5"),
    of_torchvision("regnet_y_400mf"),
    of_torchvision("googlenet", options=MAIN_PATH),
    of_torchvision("inception_v3", side=96, options=MAIN_PATH),
    of_torchvision("mnasnet0_5"),
]
NORMALIZED = "queries and keys are normalized by torch.nn.functional.normalize"
CONSTANT = "a convolution of the positions, which do not depend on the images"
TIMM = [
    of_timm("mixer_s32_224", probed=True, **at(64)),
    of_timm("poolformer_s12"),
    of_timm("levit_128s", **at(64)),
    of_timm("crossvit_tiny_240", side=240, more={"pool": (-1, "the mean of two classifiers is no pool")}),
    of_timm("coatnet_nano_rw_224", **at(64)),
    of_timm("deit_tiny_patch16_224", **at(64)),
    of_timm("resmlp_12_224", **at(64)),
    of_timm("gmlp_ti16_224", **at(64)),
    of_timm("edgenext_xx_small", more={"conv": (-1, CONSTANT), "norm": (6, NORMALIZED)}),
    of_timm("xcit_nano_12_p8_224", more={"conv": (-1, CONSTANT), "norm": (24, NORMALIZED)}, **at(32)),
    of_timm("nf_resnet50"),
    of_timm("repvgg_a0"),
    of_timm("mobilevit_xxs"),
    of_timm("ghostnet_050"),
    of_timm("fastvit_t8"),
    of_timm("davit_tiny"),
    of_timm("focalnet_tiny_srf"),
    of_timm("dla34"),
    of_timm("inception_next_atto"),
    of_timm("convmixer_768_32"),
    of_timm("volo_d1_224", fault="torchax pads by no negative numbers", **at(64)),
    of_timm("eva02_tiny_patch14_224", more=dense_by_functions(12), **at(56)),
]
TRANSFORMERS = [
    of_transformers(
        "ViT",
        transformers.ViTForImageClassification,
        transformers.ViTConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=64
        ),
    ),
    of_transformers(
        "ConvNextV2",
        transformers.ConvNextV2ForImageClassification,
        transformers.ConvNextV2Config(hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 2, 1], image_size=64),
        more={"activation": (10, "squares and roots of the response norm")},
    ),
    of_transformers(
        "SegFormer",
        transformers.SegformerForSemanticSegmentation,
        transformers.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 64], decoder_hidden_size=32),
    ),
    of_transformers(
        "Dinov2",
        transformers.Dinov2ForImageClassification,
        transformers.Dinov2Config(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
        ),
        side=56,
    ),
]
KERAS = [
    of_applications("MobileNetV2", 64, probed=True),
    of_applications("ResNet50", 64),
    of_applications("EfficientNetB0", 64),
    of_applications("DenseNet121", 64),
    of_applications("ConvNeXtTiny", 64, more=by_functions(residual=18)),
    of_applications("MobileNet", 64, extent=("conv_pw_13", 315)),
]
HAIKU = [
    of_nets("ResNet18", more=by_functions(activation=17, pool=2), probed=True),
    of_nets("ResNet50", more=by_functions(activation=49, pool=2)),
    of_nets("MobileNetV1", more=by_functions(activation=27, pool=1)),
]
EQUIMO = [
    of_equimo("mobilenetv3_small", more=by_functions(activation=41, pool=10)),
    of_equimo("convnext_t", more=by_functions(activation=18, pool=1)),
    of_equimo(
        "vit_tiny_patch16_224", {"img_size": 64}, more=by_functions(activation=12, pool=1, attention=12), probed=True
    ),
    of_equimo("iformer_t", more=by_functions(activation=26, pool=1, attention=5)),
]
ARCHITECTURES = {
    f"{architecture.package}:{architecture.name}": architecture
    for architecture in (*TORCHVISION, *TIMM, *TRANSFORMERS, *KERAS, *HAIKU, *EQUIMO)
}
