"""Networks of the field, as Flax NNX modules.

Images are channels-last, ``(batch, *spatial, channels)``; weights and biases start as PyTorch's do, uniform within
``1 / sqrt(fan_in)``, since the relative stability of an untrained network depends on it. Modes are switched by
``model.train()`` and ``model.eval()``; a new model is in training mode.
"""

from stabjax.models._alexnet import AlexNet
from stabjax.models._constant import ConstantFilterCNN
from stabjax.models._convnext import ConvNeXt
from stabjax.models._densenet import DenseNet
from stabjax.models._efficientnet import EfficientNetB0
from stabjax.models._fully_connected import FullyConnected
from stabjax.models._gap import GAPConvNet
from stabjax.models._minimal import MinimalCNN, MinimalLCN
from stabjax.models._mobilenet import MobileNetV2
from stabjax.models._primer import PatchMLP, SimpleCNN
from stabjax.models._resnet import PreActResNet, ResNet, ResNeXt
from stabjax.models._small import LeNet, SmallCNN
from stabjax.models._table import NAMES, build
from stabjax.models._vgg import VGG
from stabjax.models._vit import VisionTransformer

__all__ = [
    "NAMES",
    "VGG",
    "AlexNet",
    "ConstantFilterCNN",
    "ConvNeXt",
    "DenseNet",
    "EfficientNetB0",
    "FullyConnected",
    "GAPConvNet",
    "LeNet",
    "MinimalCNN",
    "MinimalLCN",
    "MobileNetV2",
    "PatchMLP",
    "PreActResNet",
    "ResNeXt",
    "ResNet",
    "SimpleCNN",
    "SmallCNN",
    "VisionTransformer",
    "build",
]
