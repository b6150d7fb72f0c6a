"""Flax Linen: a module that is bound to its variables."""

from collections.abc import Callable
from typing import Any

from flax import linen

from stabjax.networks._framework import Framework, Parts, paths_of

RNGS = " rngs"
"""Stands for the random keys among the collections: before any of their names in sorted order, and none of them."""


def take_apart(model: linen.Module, mode: str) -> Parts:
    """Unbind the module; what it was bound to are its variables."""
    del mode
    if model.scope is None:
        raise TypeError(
            f"expected a bound Linen module, got {type(model).__name__} without variables; "
            "write networks.wrap(module.bind(variables))"
        )
    rngs = dict(model.scope.rngs)
    skeleton, variables = model.unbind()
    # "params/Conv_0/kernel" without the collection.
    paths = tuple(path.partition("/")[2] for path in paths_of(variables, drop=("value",)))
    root = type(model).__name__
    if not rngs:
        return Parts(skeleton, _rebuild, dict(variables), paths, root)
    # Keys are no parameters, and have no path. They come first, in the order of the leaves.
    return Parts(skeleton, _rebuild, {RNGS: rngs, **variables}, ("",) * len(rngs) + paths, root)


def _rebuild(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    collections = {name: value for name, value in variables.items() if name != RNGS}
    mutable = [name for name in collections if name != "params"]

    def apply(*images: Any, **inputs: Any) -> Any:
        rngs = variables.get(RNGS)
        result = skeleton.apply(collections, *images, rngs=rngs, method=method, mutable=mutable or False, **inputs)
        # With mutable collections Linen returns their new values beside the outputs.
        return result[0] if mutable else result

    return apply


FRAMEWORK = Framework(
    name="Flax Linen",
    claims=lambda model: isinstance(model, linen.Module),
    take_apart=take_apart,
)
