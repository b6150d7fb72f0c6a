"""The activations of any network, by operation.

    outputs, activations = features.capture(network)(x) # {"blocks/0/conv": ..., "relu_0": ..., "output": ...}
    traced = features.trace(network, x)                 # the network for one shape: traced.taps, traced.capture(x), ...

A network is traced to a program, its operations are recognized there and named by the modules their parameters stand
in. Nothing is patched and no name has to be given in the network's code.
"""

from stabjax._jaxpr import Hidden
from stabjax.features._capture import Capture, capture, hidden, mixed_rows, taps
from stabjax.features._traced import Select, Tap, Traced, as_select, trace

__all__ = [
    "Capture",
    "Hidden",
    "Select",
    "Tap",
    "Traced",
    "as_select",
    "capture",
    "hidden",
    "mixed_rows",
    "taps",
    "trace",
]
