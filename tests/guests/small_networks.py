"""One small network in every framework, with a training step and its values, so that all can be asked the same.

Convolution, batch normalization, ReLU, mean over space, dropout, dense: `run` computes it from the values alone.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import torch
from flax import linen, nnx

from stabjax import networks
from tests.sample_networks import conv, normal

IMAGES = (6, 6, 6, 3)
CLASSES = 5
EPSILON = 1e-5
RATE = 0.3
NAMES = ("kernel", "scale", "shift", "mean", "variance", "weight", "bias")


def run(values, x):
    """Compute the network in evaluation mode."""
    y = conv(x, values["kernel"]) - values["mean"]
    y = y * jax.lax.rsqrt(values["variance"] + EPSILON) * values["scale"] + values["shift"]
    return jax.nn.relu(y).mean((1, 2)) @ values["weight"] + values["bias"]


def run_one(values, x):
    return run(values, x[None])[0]


def reference(guest):
    """Return the network of the values that a guest has now, which nothing can change."""
    values = {name: jnp.array(np.array(value)) for name, value in zip(NAMES, guest.values(), strict=True)}
    # Bounds of a network of single examples can be larger.
    single = isinstance(guest, Equinox)
    return networks.wrap(jax.tree_util.Partial(run_one if single else run, values), single=single)


def data():
    x = np.asarray(jax.random.normal(jax.random.key(1), IMAGES))
    return x, np.arange(IMAGES[0]) % CLASSES


def loss_of(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def stepped(tree, gradients):
    return jax.tree.map(lambda value, slope: value - RATE * slope, tree, gradients)


class OfNNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, epsilon=EPSILON, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))


class NNX:
    """Trained in place."""

    def __init__(self):
        self.model = OfNNX(nnx.Rngs(0))

    def train(self):
        x, labels = data()
        optimizer = nnx.Optimizer(self.model, optax.sgd(RATE), wrt=nnx.Param)
        optimizer.update(self.model, nnx.grad(lambda model: loss_of(model(x), labels))(self.model))

    def values(self):
        m = self.model
        norm = m.norm
        found = (m.conv.kernel, norm.scale, norm.bias, norm.mean, norm.var, m.dense.kernel, m.dense.bias)
        return [variable[...] for variable in found]

    def training(self):
        return networks.wrap(self.model, mode="batch_statistics")

    def outputs(self, x):
        return nnx.view(self.model, deterministic=True, use_running_average=True)(x)

    def state(self):
        """Every variable, the counts of the random streams, and the modes."""
        return nnx.to_pure_dict(nnx.state(self.model)), (
            self.model.norm.use_running_average,
            self.model.dropout.deterministic,
        )


class OfLinen(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        x = linen.Conv(4, (3, 3), use_bias=False)(x)
        x = linen.BatchNorm(use_running_average=not train, epsilon=EPSILON, momentum=0.5)(x)
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x).mean((1, 2)))
        return linen.Dense(CLASSES)(x)


class Linen:
    """Replaced by a module bound to new variables."""

    def __init__(self):
        self.variables = OfLinen().init(jax.random.key(0), data()[0])
        self.bound = self._bind()

    def _bind(self):
        return OfLinen().bind(self.variables, rngs={"dropout": jax.random.key(2)})

    @property
    def model(self):
        return self.bound

    def train(self):
        x, labels = data()

        def loss(params):
            variables = {**self.variables, "params": params}
            rngs = {"dropout": jax.random.key(1)}
            logits, new = OfLinen().apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
            return loss_of(logits, labels), new

        gradients, new = jax.grad(loss, has_aux=True)(self.variables["params"])
        self.variables = {"params": stepped(self.variables["params"], gradients), **new}
        self.bound = self._bind()

    def values(self):
        params, statistics = self.variables["params"], self.variables["batch_stats"]["BatchNorm_0"]
        norm, dense = params["BatchNorm_0"], params["Dense_0"]
        found = (params["Conv_0"]["kernel"], norm["scale"], norm["bias"], statistics["mean"], statistics["var"])
        return [*found, dense["kernel"], dense["bias"]]

    def training(self):
        return networks.wrap(self.bound, train=True)

    def outputs(self, x):
        return self.bound(x)

    def state(self):
        return self.bound.variables, self.bound.scope.rngs["dropout"].rng, self.bound.scope.rngs["dropout"].suffix


class OfEquinox(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    dense: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(3, 4, 3, padding=1, use_bias=False, key=first)
        self.norm = eqx.nn.BatchNorm(4, "batch", eps=EPSILON, momentum=0.5, mode="ema")
        self.dropout = eqx.nn.Dropout(0.5)
        self.dense = eqx.nn.Linear(4, CLASSES, key=second)

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.conv(x), state)
        return self.dense(self.dropout(jax.nn.relu(x).mean((1, 2)), key=key)), state


class Equinox:
    """Replaced by a new module and state."""

    def __init__(self):
        self.module, self.statistics = eqx.nn.make_with_state(OfEquinox)(jax.random.key(0))
        # There are no statistics before the first step.
        self.train()

    @property
    def model(self):
        return networks.wrap((self.module, self.statistics), single=True, layout="channels_first")

    def train(self):
        x, labels = data()
        x, keys = np.moveaxis(x, -1, 1), jax.random.split(jax.random.key(1), len(x))

        def loss(module):
            run_batch = jax.vmap(module, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
            logits, state = run_batch(x, self.statistics, keys)
            return loss_of(logits, labels), state

        gradients, self.statistics = eqx.filter_grad(loss, has_aux=True)(self.module)
        arrays, rest = eqx.partition(self.module, eqx.is_inexact_array)
        self.module = eqx.combine(stepped(arrays, gradients), rest)

    def values(self):
        m = self.module
        mean, variance = self.statistics.get(m.norm.ema_state_index)
        kernel = jnp.transpose(m.conv.weight, (2, 3, 1, 0))
        return kernel, m.norm.weight, m.norm.bias, mean, variance, m.dense.weight.T, m.dense.bias

    training = None

    def outputs(self, x):
        module = eqx.nn.inference_mode(self.module)
        return jax.vmap(lambda x: module(x, self.statistics)[0])(jnp.moveaxis(x, -1, 1))

    def state(self):
        return jax.tree.leaves((self.module, self.statistics))


class OfPyTorch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4, eps=EPSILON, momentum=0.5)
        self.dropout = torch.nn.Dropout(0.5)
        self.dense = torch.nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.dense(self.dropout(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class PyTorch:
    """Trained in place, and handed over in training mode."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = OfPyTorch()

    def train(self):
        x, labels = data()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)
        logits = self.model(torch.from_numpy(np.moveaxis(x, -1, 1).copy()))
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        optimizer.step()

    def values(self):
        m, norm = self.model, self.model.norm
        found = (norm.weight, norm.bias, norm.running_mean, norm.running_var, m.dense.weight.T, m.dense.bias)
        return [tensor.detach().numpy() for tensor in (m.conv.weight.permute(2, 3, 1, 0), *found)]

    def training(self):
        return networks.wrap(self.model, mode="batch_statistics")

    def outputs(self, x):
        with torch.no_grad():
            outputs = self.model.eval()(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()
        self.model.train()
        return outputs

    def state(self):
        """Every tensor, gradients, the modes, the functions that run before and after, and the random numbers."""
        m, parameters = self.model, list(self.model.parameters())
        inner = [
            (module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in m.modules()
        ]
        tensors = [*m.state_dict().values(), *(tensor.grad for tensor in parameters if tensor.grad is not None)]
        flags = [tensor.requires_grad for tensor in parameters], sorted(vars(m))
        return [tensor.numpy().copy() for tensor in tensors], inner, flags, torch.get_rng_state().numpy()


class Keras:
    """Trained in place."""

    def __init__(self):
        keras.utils.set_random_seed(0)
        layers = keras.layers
        parts = [
            layers.Conv2D(4, 3, padding="same", use_bias=False),
            layers.BatchNormalization(epsilon=EPSILON, momentum=0.5),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(CLASSES),
        ]
        self.model = keras.Sequential([keras.Input(IMAGES[1:]), *parts])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.SGD(RATE), loss)

    def train(self):
        self.model.train_on_batch(*data())

    def values(self):
        conv_layer, norm, *_, dense = self.model.layers
        return [*conv_layer.get_weights(), *norm.get_weights(), *dense.get_weights()]

    def training(self):
        return networks.wrap(self.model, training=True)

    def outputs(self, x):
        return self.model(x, training=False)

    def state(self):
        """Every variable, the seeds of dropout among them, and what can be trained."""
        variables = self.model.variables
        return [np.array(variable.value) for variable in variables], [variable.trainable for variable in variables]


def of_haiku(x, is_training):
    x = hk.Conv2D(4, 3, with_bias=False)(x)
    x = hk.BatchNorm(True, True, 0.5, eps=EPSILON)(x, is_training)
    x = jax.nn.relu(x).mean((1, 2))
    return hk.Linear(CLASSES)(hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x)


class Haiku:
    """Replaced by new parameters and a new state."""

    def __init__(self):
        self.transformed = hk.transform_with_state(of_haiku)
        self.params, self.statistics = self.transformed.init(jax.random.key(0), data()[0], is_training=True)

    @property
    def model(self):
        return networks.wrap((self.transformed, self.params, self.statistics, jax.random.key(2)), is_training=False)

    def train(self):
        x, labels = data()

        def loss(params):
            logits, state = self.transformed.apply(params, self.statistics, jax.random.key(1), x, is_training=True)
            return loss_of(logits, labels), state

        gradients, self.statistics = jax.grad(loss, has_aux=True)(self.params)
        self.params = stepped(self.params, gradients)

    def values(self):
        norm, dense = self.params["batch_norm"], self.params["linear"]
        mean, variance = (self.statistics[f"batch_norm/~/{name}_ema"]["average"] for name in ("mean", "var"))
        scale, shift = norm["scale"].ravel(), norm["offset"].ravel()
        return self.params["conv2_d"]["w"], scale, shift, mean.ravel(), variance.ravel(), dense["w"], dense["b"]

    def training(self):
        return networks.wrap((self.transformed, self.params, self.statistics, jax.random.key(2)), is_training=True)

    def outputs(self, x):
        return self.transformed.apply(self.params, self.statistics, None, x, is_training=False)[0]

    def state(self):
        return self.params, self.statistics


class Arrays:
    """Arrays of NumPy, changed in place by a step."""

    def __init__(self):
        shapes = ((3, 3, 3, 4), (4,), (4,), (4,), (4,), (4, CLASSES), (CLASSES,))
        self.held = {name: np.array(normal(k, *shape)) for k, (name, shape) in enumerate(zip(NAMES, shapes))}
        self.held["variance"] = self.held["variance"] ** 2 + 1

    def train(self):
        x, labels = data()
        gradients = jax.grad(lambda values: loss_of(run(values, x), labels))(jax.tree.map(jnp.asarray, self.held))
        for name, value in self.held.items():
            value -= RATE * np.asarray(gradients[name])

    def values(self):
        return [self.held[name] for name in NAMES]

    training = None

    def outputs(self, x):
        return run(self.held, x)

    def state(self):
        return {name: value.copy() for name, value in self.held.items()}


class Partial(Arrays):
    """A pytree of its arrays."""

    @property
    def model(self):
        return jax.tree_util.Partial(run, self.held)


class Function(Arrays):
    """A function that closes over its arrays."""

    def __init__(self):
        super().__init__()
        held = self.held
        self.model = lambda x: run(held, x)


GUESTS = {guest.__name__: guest for guest in (NNX, Linen, Equinox, PyTorch, Keras, Haiku, Partial, Function)}
