"""Keras 3 on JAX: a model is called with the values of its variables, and gives no new ones back."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from stabjax.networks._framework import Framework, Parts, number_repeats


def _claims(model: Any) -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and isinstance(model, keras.layers.Layer)


def take_apart(model: Any, mode: str) -> Parts:
    """Read the variables of a built model; the model itself stays as it is."""
    del mode
    backend = sys.modules["keras"].config.backend()
    if backend != "jax":
        raise TypeError(
            f"expected a Keras model on the backend jax, got one on {backend}: set the environment variable "
            'KERAS_BACKEND=jax, or write os.environ["KERAS_BACKEND"] = "jax" before the first import of keras'
        )
    if not model.built:
        raise TypeError(
            f"expected a Keras model that is built, got {type(model).__name__} without variables; call it on a batch "
            "first, or model.build((None, *spatial, channels))"
        )
    groups = (model.trainable_variables, model.non_trainable_variables)
    found = [variable for group in groups for variable in group]
    # "sequential/conv2d/kernel" -> "conv2d/kernel"
    names = number_repeats(variable.path.removeprefix(f"{model.name}/") for variable in found)
    variables = {name: variable.value for name, variable in zip(names, found, strict=True)}
    # Seeds of dropout are no parameters of a module.
    seeds = {name for name, value in variables.items() if not jnp.issubdtype(value.dtype, jnp.inexact)}
    # A dictionary flattens in the order of its sorted keys.
    paths = tuple("" if name in seeds else name for name in sorted(names))
    return Parts((model, names, len(groups[0])), _rebuild, variables, paths, root=model.name)


def _rebuild(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    model, names, trainable = skeleton
    values = [variables[name] for name in names]

    def apply(*images: Any, training: bool = False, **static: Any) -> Any:
        x = images[0] if images else _join_inputs(model, static)
        if method is not None:
            scope = sys.modules["keras"].StatelessScope
            pairs = zip([*model.trainable_variables, *model.non_trainable_variables], values, strict=True)
            with scope(state_mapping=list(pairs)):
                function = getattr(model, method) if isinstance(method, str) else lambda *args: method(model, *args)
                return function(x, **static)
        # The new values of statistics and random seeds come back beside the outputs; the model does not get them.
        outputs, _ = model.stateless_call(values[:trainable], values[trainable:], x, training=training, **static)
        return outputs

    return apply


def _join_inputs(model: Any, named: dict[str, Any]) -> Any:
    """Take the inputs of a functional model out of keyword arguments, in the structure that the model takes them in."""
    structure = getattr(model, "input", None)
    names = [tensor.name for tensor in getattr(model, "inputs", ())]
    missing = [name for name in names if name not in named]
    if missing or not names:
        raise TypeError(
            f"expected inputs by the names of the model's own, {', '.join(names) or 'which it does not have'}, got "
            f"{', '.join(named)}"
        )
    given = {name: named.pop(name) for name in names}
    if isinstance(structure, Mapping):
        return {key: given[tensor.name] for key, tensor in structure.items()}
    return list(given.values()) if isinstance(structure, list | tuple) else given[names[0]]


FRAMEWORK = Framework(name="Keras", claims=_claims, take_apart=take_apart, state="listed")
