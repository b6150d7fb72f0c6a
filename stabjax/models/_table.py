"""Networks by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx

from stabjax.models._alexnet import AlexNet
from stabjax.models._convnext import ConvNeXt
from stabjax.models._densenet import DenseNet
from stabjax.models._efficientnet import EfficientNetB0
from stabjax.models._fully_connected import FullyConnected
from stabjax.models._gap import GAPConvNet
from stabjax.models._minimal import MinimalCNN, MinimalLCN
from stabjax.models._mobilenet import MobileNetV2
from stabjax.models._resnet import PreActResNet, ResNet, ResNeXt
from stabjax.models._small import LeNet, SmallCNN
from stabjax.models._vgg import VGG
from stabjax.models._vit import VisionTransformer


def _build_sized(network: Callable[..., nnx.Module], *, size: int = 32, **options: Any) -> nnx.Module:
    """Build a network that takes the side of its images."""
    return network(size, **options)


def _build_fully_connected(*, in_features: int = 32 * 32 * 3, **options: Any) -> nnx.Module:
    """Build a fully connected network, which takes the number of its inputs."""
    return FullyConnected(in_features, **options)


_TABLE: dict[str, Callable[..., nnx.Module]] = {
    "SmallCNN": SmallCNN,
    "LeNet": LeNet,
    "MinimalCNN": partial(_build_sized, MinimalCNN),
    "MinimalLCN": partial(_build_sized, MinimalLCN),
    "AlexNet": AlexNet,
    **{f"VGG{depth}": partial(VGG, depth, norm=False) for depth in (11, 13, 16, 19)},
    **{f"VGG{depth}bn": partial(VGG, depth, norm=True) for depth in (11, 13, 16, 19)},
    **{f"ResNet{depth}": partial(ResNet, depth) for depth in (18, 34, 50)},
    "PreActResNet18": partial(PreActResNet, 18),
    "ResNeXt29": ResNeXt,
    "DenseNet121": partial(DenseNet, 121),
    "MobileNetV2": MobileNetV2,
    "EfficientNetB0": EfficientNetB0,
    "ConvNeXt": ConvNeXt,
    "ViT": partial(_build_sized, VisionTransformer),
    **{f"FCL{layers}": partial(_build_fully_connected, layers=layers) for layers in (2, 4, 6)},
    **{f"GAPConvNet{ndim}d": partial(GAPConvNet, ndim) for ndim in (1, 2)},
}

NAMES: tuple[str, ...] = tuple(_TABLE)
"""The names that `build` knows."""


def build(name: str, *, rngs: nnx.Rngs, **options: Any) -> Any:
    """Build the network of that name, for 32 x 32 images with three channels unless told otherwise.

    Networks of a fixed size are told it: ``size=28`` (MinimalCNN, MinimalLCN, ViT), ``in_features=784`` (FCL2, 4, 6).

    Args:
        name: one of `NAMES`; a fully connected ``FCL4`` has four layers.
        rngs: key of the initial weights.
        **options: what the network's own constructor takes (``num_classes``, ``in_channels``, ``width``, ...).

    Raises:
        ValueError: when there is no such network; or for ``param_dtype=float64`` where JAX has no double precision.
        TypeError: when it does not take one of the options; the error names it.
    """
    if name not in _TABLE:
        raise ValueError(f"expected one of {', '.join(NAMES)}, got {name!r}")
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"expected rngs as flax.nnx.Rngs, got {type(rngs).__name__}: make it with nnx.Rngs(seed)")
    try:
        return _TABLE[name](rngs=rngs, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise TypeError(f"expected options that {name} takes, got {', '.join(options)}: {error}") from error
