"""Haiku: a transformed function, with its parameters, and its state and a random key where it takes them."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from stabjax.networks._framework import Framework, Parts, number_repeats, paths_of

_WRITE = "write networks.wrap((transformed, params)), or (transformed, params, state); a random key comes last"


def _claims(model: Any) -> bool:
    haiku = sys.modules.get("haiku")
    if haiku is None:
        return False
    kinds = (haiku.Transformed, haiku.TransformedWithState)
    return isinstance(model, kinds) or (isinstance(model, tuple) and len(model) > 0 and isinstance(model[0], kinds))


def take_apart(model: Any, mode: str) -> Parts:
    """Take ``(transformed, params, [state], [key])`` apart."""
    del mode
    haiku = sys.modules["haiku"]
    if isinstance(model, haiku.Transformed | haiku.TransformedWithState):
        raise TypeError(f"expected a Haiku function with its parameters, got {type(model).__name__} alone; {_WRITE}")
    transformed, *values = model
    has_state = isinstance(transformed, haiku.TransformedWithState)
    names = ["params", *["state"] * has_state]
    if len(values) not in (len(names), len(names) + 1):
        raise TypeError(
            f"expected {' and '.join(names)} behind {type(transformed).__name__}, and perhaps a random key, got "
            f"{len(values)} values; {_WRITE}"
        )
    trees = dict(zip(names, values, strict=False))
    # "res_net/~/conv/w" -> "conv/w": the module around everything, and the mark of what its constructor made, go.
    paths = [path.replace("/~/", "/") for path in paths_of(trees)]
    paths = _without_common([path.partition("/")[2] for path in paths])
    variables: dict[str, Any] = {"trees": trees}
    if len(values) > len(names):
        # A key is no parameter, and has no path. It comes first, in the order of the sorted names.
        variables["key"] = values[-1]
        paths = ["", *paths]
    return Parts(transformed, _rebuild, variables, number_repeats(paths), _root(trees["params"]))


def _rebuild(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    if method is not None:
        raise TypeError("expected no method=... for a Haiku function: transform the function that calls it")
    trees, key = variables["trees"], variables.get("key")
    # `without_apply_rng` takes the random key from among the parameters.
    takes_key = "rng" in inspect.signature(skeleton.apply).parameters

    def apply(*images: Any, **inputs: Any) -> Any:
        outputs = skeleton.apply(*trees.values(), *[key] * takes_key, *images, **inputs)
        return outputs[0] if "state" in trees else outputs

    return apply


def _root(params: Any) -> str:
    modules = {name.partition("/")[0] for name in params}
    return modules.pop() if len(modules) == 1 else ""


def _without_common(paths: list[str]) -> list[str]:
    """Drop the module that all parameters are in."""
    first = {path.partition("/")[0] for path in paths}
    inside = [path.partition("/")[2] for path in paths]
    # ``linear/w`` of a single module keeps its name.
    return inside if len(first) == 1 and all("/" in path for path in inside) else paths


FRAMEWORK = Framework(name="Haiku", claims=_claims, take_apart=take_apart, state="listed", is_callable=False)
