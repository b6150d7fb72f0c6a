"""Flax NNX: a module is split into its graph and its state."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from stabjax.networks._framework import Framework, Parts, bind_method, number_repeats, paths_of


def take_apart(model: nnx.Module, mode: str) -> Parts:
    """Split a view of the module: dropout off, statistics running or (``"batch_statistics"``) those of the batch."""
    view = nnx.view(model, deterministic=True, use_running_average=mode == "eval", raise_if_not_found=False)
    graph, state = nnx.split(view)
    leaves, treedef = jax.tree_util.tree_flatten(state)
    paths = number_repeats(paths_of(state, drop=("value",)))
    # A dictionary flattens in the order of its sorted keys.
    return Parts((graph, treedef, paths), _rebuild, dict(zip(paths, leaves, strict=True)), tuple(sorted(paths)))


def _rebuild(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    # The state is unflattened here, so that its variables belong to the trace that runs them.
    graph, treedef, paths = skeleton
    state = treedef.unflatten([variables[path] for path in paths])
    return bind_method(nnx.merge(graph, state), method)


FRAMEWORK = Framework(
    name="Flax NNX",
    claims=lambda model: isinstance(model, nnx.Module),
    take_apart=take_apart,
    modes=("eval", "batch_statistics"),
)
