"""Any other callable: a pytree such as ``jax.tree_util.Partial(apply, params)``, or a function, which has no leaves."""

import sys
from collections.abc import Callable
from typing import Any

import jax

from stabjax.networks._framework import Framework, Parts, bind_method, is_array, number_repeats, paths_of


class ARRAY:
    """Stands for an array in a skeleton; a class, so that there is one of it in every process."""


def take_apart(model: Any, mode: str) -> Parts:
    """Flatten the callable; its leaves that are arrays are the variables."""
    del mode
    model = _in_inference_mode(model)
    leaves, treedef = jax.tree_util.tree_flatten(model)
    static = tuple(ARRAY if is_array(leaf) else leaf for leaf in leaves)
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    paths = [path for path, leaf in zip(paths_of(model), leaves, strict=True) if is_array(leaf)]
    if isinstance(model, jax.tree_util.Partial) and paths:
        # A leaf of ``Partial(apply, params)`` is ``0/0/conv/kernel``: positional arguments, the first one, its path.
        paths = _without_argument(paths)
    distinct = number_repeats(paths)
    # A dictionary flattens in the order of its sorted keys.
    variables = dict(zip(distinct, arrays, strict=True))
    return Parts((treedef, static, distinct), _rebuild, variables, tuple(sorted(distinct)))


def restore(skeleton: Any, variables: Any) -> Any:
    """Return the model that was taken apart, with these arrays."""
    treedef, static, paths = skeleton
    # `paths` has the order of the leaves, the dictionary `variables` that of its sorted keys: they are looked up by
    # path.
    arrays = iter([variables[path] for path in paths])
    return treedef.unflatten([next(arrays) if leaf is ARRAY else leaf for leaf in static])


def _rebuild(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    return bind_method(restore(skeleton, variables), method)


def _in_inference_mode(model: Any) -> Any:
    """Put modules of Equinox inside, as in ``Partial(apply, module)`` or ``Partial(module)``, into inference mode."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return model
    if isinstance(model, jax.tree_util.Partial) and isinstance(model.func, equinox.Module):
        # The function of a partial one is no leaf of it.
        model = jax.tree_util.Partial(equinox.nn.inference_mode(model.func), *model.args, **model.keywords)
    return equinox.nn.inference_mode(model)


def _without_argument(paths: list[str]) -> list[str]:
    """Drop the position of the one argument of a partial function that holds all arrays: ``0/0/conv`` is ``conv``."""
    while all("/" in path for path in paths) and len({path.partition("/")[0] for path in paths}) == 1:
        first, _, _ = paths[0].partition("/")
        if not first.isdigit():
            break
        paths = [path.partition("/")[2] for path in paths]
    return paths


FRAMEWORK = Framework(
    name="a callable pytree",
    claims=lambda model: True,
    take_apart=take_apart,
    state="hidden",
)
