"""A network of any framework as data: a callable pytree whose leaves are its parameters.

    network = networks.wrap(model)      # Flax, Equinox, PyTorch, Keras, Haiku, a function
    outputs = network(images)           # (batch, *spatial, channels) -> (batch, ...)

Every function that takes a network takes the bare model, too, and wraps it itself; `wrap` is for what a model does not
tell: that it takes single examples, or channels first, or that another method is to be called. What is known of each
framework stands in a file of its own and in one table, which `register` adds to.
"""

from stabjax.networks._framework import Framework, Parts
from stabjax.networks._network import Network, as_network, register, wrap

__all__ = ["Framework", "Network", "Parts", "as_network", "register", "wrap"]
