"""What ran in a network of another library, counted by that library's own means, beside its own outputs."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import keras
import numpy as np
import torch
from equimo.layers.norm import LayerNorm2d, RMSNorm2d

from stabjax import networks

Ran = tuple[Any, Counter[str]]
"""Outputs, a tree of arrays, and how many modules of each kind of tap ran."""


@dataclass(frozen=True)
class Guest:
    """A network as its library has it.

    Attributes:
        network: the same as a network of stabjax.
        run: the outputs of its own library for images with channels last, and what ran.
    """

    network: networks.Network
    run: Callable[[np.ndarray], Ran]


def moved(values: np.ndarray, is_variance: bool, rng: np.random.Generator) -> np.ndarray:
    """Return values that hide no layer: variances are not one, scales, biases and means neither one nor zero."""
    if is_variance:
        return rng.uniform(0.5, 1.5, values.shape).astype(values.dtype)
    if values.ndim < 2:
        return values + rng.normal(scale=0.1, size=values.shape).astype(values.dtype)
    return values if values.any() else rng.normal(scale=0.02, size=values.shape).astype(values.dtype)


# PyTorch

MODULES = {
    "conv": (torch.nn.modules.conv._ConvNd,),
    "dense": (torch.nn.Linear,),
    "norm": (torch.nn.modules.batchnorm._BatchNorm, torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.RMSNorm),
}
ACTIVATIONS = "relu relu6 hardtanh gelu silu hardswish hardsigmoid sigmoid tanh leaky_relu elu mish"
POOLS = "max_pool2d avg_pool2d adaptive_avg_pool2d mean"
ATTENTIONS = "softmax scaled_dot_product_attention multi_head_attention_forward"
FUNCTIONS = {
    **dict.fromkeys(ACTIVATIONS.split(), "activation"),
    **dict.fromkeys(POOLS.split(), "pool"),
    **dict.fromkeys(ATTENTIONS.split(), "attention"),
}


class CountFunctions(torch.overrides.TorchFunctionMode):
    """Counts calls of functions of torch; those that they call themselves do not count."""

    def __init__(self, counted: Counter[str]) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kind = FUNCTIONS.get(getattr(function, "__name__", "").rstrip("_"))
        if kind:
            self.counted[kind] += 1
        return function(*args, **(kwargs or {}))


def of_torch(build: Callable[[], torch.nn.Module], **options: Any) -> Guest:
    """Make a module, in evaluation mode, with all its numbers drawn."""
    torch.manual_seed(0)
    module, rng = build().eval(), np.random.default_rng(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(moved(tensor.numpy(), name.endswith("running_var"), rng)))

    def run(x: np.ndarray) -> Ran:
        counted: Counter[str] = Counter()
        hooks = [
            inner.register_forward_hook(lambda *_, kind=kind: counted.update([kind]))
            for inner in module.modules()
            for kind, classes in MODULES.items()
            if isinstance(inner, classes)
        ]
        with torch.no_grad(), CountFunctions(counted):
            outputs = module(torch.from_numpy(np.moveaxis(x, -1, 1).copy()), **options)
        for hook in hooks:
            hook.remove()
        if isinstance(outputs, Mapping):
            return {name: value.numpy() for name, value in outputs.items()}, counted
        return outputs.numpy(), counted

    return Guest(networks.wrap(module, **options), run)


# Keras

LAYERS = {
    **dict.fromkeys((keras.layers.Conv2D, keras.layers.DepthwiseConv2D), "conv"),
    **dict.fromkeys((keras.layers.BatchNormalization, keras.layers.LayerNormalization), "norm"),
    keras.layers.ReLU: "activation",
    keras.layers.Dense: "dense",
    **dict.fromkeys(
        (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D), "pool"
    ),
    keras.layers.Add: "residual",
}


def of_keras(build: Callable[[], keras.Model]) -> Guest:
    """Make a model; a layer of a functional model runs once for each node it is in."""
    keras.utils.set_random_seed(0)
    model, rng = build(), np.random.default_rng(1)
    for variable in model.variables:
        values = np.asarray(variable.value)
        if np.issubdtype(values.dtype, np.floating):
            variable.assign(moved(values, variable.name == "moving_variance", rng))

    def run(x: np.ndarray) -> Ran:
        layers = list(model._flatten_layers(include_self=False))
        counted = Counter(LAYERS[type(layer)] for layer in layers if type(layer) in LAYERS)
        # Convolutions and dense layers can have an activation too.
        functions = [getattr(layer, "activation", keras.activations.linear) for layer in layers]
        counted["activation"] += sum(function is not keras.activations.linear for function in functions)
        return model.predict(x, verbose=0), counted

    return Guest(networks.wrap(model), run)


# Haiku


def of_haiku(build: Callable[[], Any]) -> Guest:
    """Make parameters and state of a module of `haiku.nets`."""
    transformed = hk.without_apply_rng(hk.transform_with_state(lambda x, is_training: build()(x, is_training)))
    rng = np.random.default_rng(1)
    kinds = {hk.Conv2D: "conv", hk.DepthwiseConv2D: "conv", hk.Linear: "dense", hk.BatchNorm: "norm"}
    initialize = jax.jit(lambda key: transformed.init(key, np.zeros((1, 64, 64, 3), np.float32), is_training=True))
    params, state = initialize(jax.random.key(0))

    def drawn(tree: Any) -> Any:
        def of_leaf(path, leaf):
            module = path[0].key
            values = np.asarray(leaf).reshape(-1) if "norm" in module else np.asarray(leaf)
            if not np.issubdtype(values.dtype, np.floating):
                return leaf
            return jax.numpy.asarray(moved(values, module.endswith("var_ema"), rng).reshape(leaf.shape))

        return jax.tree_util.tree_map_with_path(of_leaf, tree)

    params, state = drawn(params), drawn(state)

    def run(x: np.ndarray) -> Ran:
        counted: Counter[str] = Counter()

        def count(call, args, kwargs, context):
            if context.method_name == "__call__" and type(context.module) in kinds:
                counted[kinds[type(context.module)]] += 1
            return call(*args, **kwargs)

        with hk.intercept_methods(count):
            outputs, _ = jax.jit(lambda x: transformed.apply(params, state, x, is_training=False))(x)
        return np.asarray(outputs), counted

    return Guest(networks.wrap((transformed, params, state), is_training=False), run)


# Equinox


def call_with_key(module: Any, x: Any) -> Any:
    """Call a module of equimo, which asks for a key that it does not use in inference mode."""
    return module(x, key=jax.random.key(0))


def of_equinox(build: Callable[[Any], eqx.Module]) -> Guest:
    """Make a module of single examples, channels first; every module in it runs once."""
    module, rng = build(jax.random.key(0)), np.random.default_rng(1)
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda values: jax.numpy.asarray(moved(np.asarray(values), False, rng)), arrays)
    module = eqx.nn.inference_mode(eqx.combine(arrays, rest))
    norms = (eqx.nn.LayerNorm, eqx.nn.GroupNorm, eqx.nn.RMSNorm, LayerNorm2d, RMSNorm2d)
    kinds = {"conv": eqx.nn.Conv, "dense": eqx.nn.Linear, "norm": norms}

    def kind_of(value: Any) -> str | None:
        return next((kind for kind, classes in kinds.items() if isinstance(value, classes)), None)

    def run(x: np.ndarray) -> Ran:
        leaves = jax.tree.leaves(module, is_leaf=lambda value: kind_of(value) is not None)
        outputs = eqx.filter_jit(jax.vmap(lambda x: call_with_key(module, x)))(np.moveaxis(x, -1, 1))
        return np.asarray(outputs), Counter(kind for kind in map(kind_of, leaves) if kind)

    return Guest(networks.wrap(module, method=call_with_key, single=True, layout="channels_first"), run)
