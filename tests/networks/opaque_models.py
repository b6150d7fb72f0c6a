"""Models that hold arrays where nobody lists them, and a network that they all compute."""

import functools

import equinox as eqx
import jax
import numpy as np
from flax import nnx

from stabjax import perturb, probe
from tests.sample_networks import conv, normal

KEY = jax.random.key(0)
DEFORMATION = perturb.Translation(0.7)


def kernels(seed):
    return [normal(seed, 3, 3, 3, 4), normal(seed + 1, 4, 5)]


def run(first, second, x):
    """The one network of this file."""
    return jax.nn.relu(conv(x, first)).mean((1, 2)) @ second


class Cell:
    """An array that is replaced, as a variable of Keras replaces it."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Objects:
    """A model of objects that JAX knows nothing of: layers in a list, variables in layers."""

    class Layer:
        def __init__(self, value):
            self.kernel = Cell(value)

    def __init__(self):
        self.layers = [self.Layer(value) for value in kernels(0)]
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return run(*(layer.kernel.value for layer in self.layers), x)

    def forward(self, x):
        return self(x)

    def change(self):
        for layer, value in zip(self.layers, kernels(5), strict=True):
            layer.kernel.value = value


def objects():
    model = Objects()
    return model, model.change


def bound_method():
    model = Objects()
    return model.forward, model.change


def arrays_of_numpy():
    held = [np.array(value) for value in kernels(0)]

    def change():
        for old, new in zip(held, kernels(5), strict=True):
            old[...] = new

    return lambda x: run(*held, x), change


def partial_with_a_dictionary():
    held = dict(zip(("first", "second"), kernels(0), strict=True))

    def network(held, x):
        return run(held["first"], held["second"], x)

    return functools.partial(network, held), lambda: held.update(zip(held, kernels(5), strict=True))


class Module(nnx.Module):
    def __init__(self, values):
        self.first, self.second = map(nnx.Param, values)

    def __call__(self, x):
        return run(self.first[...], self.second[...], x)


def module_in_a_lambda():
    module = Module(kernels(0))

    def change():
        module.first[...], module.second[...] = kernels(5)

    return lambda x: module(x), change


class Shared(eqx.Module):
    """A module whose parameter is a leaf, with an array beside it that a function of its own closes over."""

    first: jax.Array
    rest: object = eqx.field(static=True)

    def __call__(self, x):
        return self.rest(jax.nn.relu(conv(x, self.first)))


def hidden_beside_parameters():
    held = [normal(1, 4, 5)]

    def rest(x):
        return x.mean((1, 2)) @ held[0]

    # The parameters of a module are read when the network is made; what it hides, at every call.
    return Shared(kernels(0)[0], rest), lambda: held.__setitem__(0, kernels(5)[1])


def partial_that_hides():
    held = [kernels(0)[1]]
    network = jax.tree_util.Partial(lambda params, x: run(params["conv"]["kernel"], held[0], x), {
        "conv": {"kernel": kernels(0)[0]}
    })  # fmt: skip
    return network, lambda: held.__setitem__(0, kernels(5)[1])


def stable(f, x):
    return probe.stability(f, x, key=KEY, deformation=DEFORMATION, batch_size=4, select="output").deformation[-1]
