"""The activations of any network, by operation.

    network = features.of(model)                        # Flax NNX, Flax Linen, Equinox, or a plain function
    outputs, activations = features.capture(network)(x) # {"blocks/0/conv": ..., "relu_0": ..., "output": ...}

A network is traced to a program, its operations are recognised there and named by the modules their parameters stand
in. Nothing is patched and no name has to be given in the network's code.
"""

from stabjax.features._capture import Capture, Select, Tap, capture, hidden, mixed_rows, taps
from stabjax.features._network import Guest, of

__all__ = ["Capture", "Guest", "Select", "Tap", "capture", "hidden", "mixed_rows", "of", "taps"]
