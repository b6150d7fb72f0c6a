"""Networks of the field, as Flax NNX modules.

Images are channels-last, ``(batch, *spatial, channels)``; weights and biases start as PyTorch's do, uniform within
``1 / sqrt(fan_in)``, since the relative stability of an untrained network depends on it. Modes are switched by
``model.train()`` and ``model.eval()``; a new model is in training mode.
"""

from stabjax.models._constant import ConstantFilterCNN
from stabjax.models._fully_connected import FullyConnected
from stabjax.models._gap import GAPConvNet
from stabjax.models._small import LeNet, MinimalCNN, SmallCNN
from stabjax.models._table import NAMES, build
from stabjax.models._vgg import VGG

__all__ = [
    "NAMES",
    "VGG",
    "ConstantFilterCNN",
    "FullyConnected",
    "GAPConvNet",
    "LeNet",
    "MinimalCNN",
    "SmallCNN",
    "build",
]
