"""A model's variables as one flat ``{name: array}``, the form in which they are trained, stacked and saved."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stabjax._arguments import is_key, mutable_contents
from stabjax._provenance import leaves_by_path
from stabjax._types import AnyArray

Weights = Mapping[str, AnyArray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How ``{name: array}`` becomes a module again. Hashable, and equal for two models of one architecture.

    Plain dictionaries of arrays cross the border of a jitted function much faster than NNX states, which matters where
    every step is one call.
    """

    training: Any
    """Graph definition in training mode."""
    evaluation: Any
    """Graph definition in evaluation mode."""
    tree: Any
    """Tree structure of the state."""
    names: tuple[str, ...]
    """Path of every variable (``blocks/0/conv/kernel``), in the order of the tree's leaves."""
    keys: tuple[tuple[str, str], ...]
    """Name and implementation of the variables that are random keys (of dropout)."""
    contents: object = None
    """What the model holds that can change in place besides its variables: a layout of another program."""

    def __hash__(self) -> int:
        # Without the definitions: a layer may hold a list (a padding), which compares but has no hash.
        return hash((self.tree, self.names, self.keys))

    @classmethod
    def of(cls, model: nnx.Module) -> tuple["Layout", dict[str, jax.Array]]:
        """Return the layout of a model, and a copy of its weights."""
        # One state, two definitions: those of training and evaluation differ in flags, not in their variables.
        training, state = nnx.split(in_mode(model, training=True))
        evaluation = nnx.split(in_mode(model, training=False))[0]
        weights = {name: jnp.array(leaf, copy=True) for name, leaf in leaves_by_path(state).items()}
        keys = tuple((k, str(jax.random.key_impl(v))) for k, v in weights.items() if is_key(v))
        contents = mutable_contents(model, jax.tree.leaves(nnx.state(model)))
        return cls(training, evaluation, jax.tree.structure(state), tuple(weights), keys, contents), weights

    def model(self, weights: Weights, *, training: bool) -> nnx.Module:
        """Return the module with these weights."""
        state = jax.tree.unflatten(self.tree, [weights[name] for name in self.names])
        return nnx.merge(self.training if training else self.evaluation, state, copy=True)

    def weights(self, model: nnx.Module) -> dict[str, jax.Array]:
        """Return the variables of a module of this layout, without those that it made while it was called."""
        found = leaves_by_path(nnx.state(model))
        # In the order of the names, which is that of the leaves of the tree.
        return {name: found[name] for name in self.names}

    def to_device(self, host: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Bring the weights back to the device that `to_host` took from it."""
        impl = dict(self.keys)
        arrays = {k: jnp.asarray(host[k]) for k in self.names}
        return {k: jax.random.wrap_key_data(v, impl=impl[k]) if k in impl else v for k, v in arrays.items()}

    def signature(self, weights: Weights) -> dict[str, str]:
        """Return the dtype and shape of every variable, as text."""
        return {k: f"{v.dtype}{list(v.shape)}" for k, v in to_host(weights).items()}


def in_mode(model: nnx.Module, *, training: bool) -> Any:
    """Copy the model in training or evaluation mode."""
    model = nnx.clone(model)
    if training:
        model.train()
    else:
        model.eval()
    return model


def to_host(tree: Any) -> dict[str, np.ndarray]:
    """Copy a tree to ``{name: array}`` on the host, the same bits; random keys as their integers.

    Copies, because NumPy may look straight into a buffer that is donated later.
    """
    return {k: np.array(jax.random.key_data(v) if is_key(v) else v) for k, v in leaves_by_path(tree).items()}


def from_host(host: Mapping[str, np.ndarray], template: Any) -> Any:
    """Build the tree like ``template`` from what `to_host` returned; what is missing stays as it is."""

    def one(name: str, old: Any) -> Any:
        if name not in host:
            return old
        if is_key(old):
            return jax.random.wrap_key_data(jnp.asarray(host[name]), impl=str(jax.random.key_impl(old)))
        # The device may look straight into the copy, which is nobody else's, so it may be donated. It is NumPy's, since
        # `jnp.array` would compile a program for every shape.
        return jax.device_put(np.array(host[name], old.dtype))

    leaves = [one(name, old) for name, old in leaves_by_path(template).items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
