"""The perturbation of a training: as an argument of its program, and as words that tell it from others."""

import functools
import hashlib
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stabjax.train._files import fingerprint
from stabjax.train._layout import is_key, named


def as_pytree(perturbation: Callable[..., Any] | None) -> tuple[Any, Any]:
    """A perturbation as an argument of a jitted function, and what to write down about it."""
    if perturbation is None:
        return None, None
    if isinstance(perturbation, jax.tree_util.Partial):
        return jax.tree.map(jnp.asarray, perturbation), described(perturbation)
    if jax.tree_util.all_leaves([perturbation]):
        return jax.tree_util.Partial(perturbation), described(perturbation)
    perturbation = jax.tree.map(jnp.asarray, perturbation)
    leaves = {k: np.asarray(v).tolist() for k, v in named(perturbation).items()}
    return perturbation, {
        "kind": type(perturbation).__name__,
        "structure": _without_addresses(str(jax.tree.structure(perturbation))),
        **leaves,
    }


def described(value: Any, *, inside: tuple[int, ...] = ()) -> Any:
    """What tells a function from others, in any process, as JSON has it.

    A function of a module by its name; a lambda or a function made in another by its code too, and by what it holds on
    to; an object by the name of its ``__call__`` and its attributes. Not what they find by a global name.
    """
    if id(value) in inside:
        return "itself"
    go = functools.partial(described, inside=(*inside, id(value)))
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return fingerprint(jax.random.key_data(value) if isinstance(value, jax.Array) and is_key(value) else value)
    if isinstance(value, (list, tuple)):
        return [go(each) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(go(each)) for each in value)
    if isinstance(value, Mapping):
        return [[go(k), go(v)] for k, v in value.items()]
    if isinstance(value, types.CodeType):
        text = repr((value.co_code, value.co_names, go(value.co_consts)))
        return hashlib.sha256(text.encode()).hexdigest()
    if isinstance(value, functools.partial):
        return [go(value.func), go(value.args), go(sorted(value.keywords.items()))]
    if isinstance(value, types.MethodType):
        return [go(value.__func__), go(value.__self__)]
    if isinstance(value, types.FunctionType):
        if "<" not in value.__qualname__:
            return value.__qualname__
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__qualname__, go(value.__code__), go((held, value.__defaults__, value.__kwdefaults__))]
    if hasattr(value, "__wrapped__"):  # by jax.jit
        return go(value.__wrapped__)
    if isinstance(value, types.ModuleType) or hasattr(value, "__qualname__"):
        return value.__name__ if isinstance(value, types.ModuleType) else value.__qualname__
    if not jax.tree_util.all_leaves([value]):
        return [_without_addresses(str(jax.tree.structure(value))), go(named(value))]
    if hasattr(value, "__dict__"):
        return [type(value).__qualname__, go(type(value).__call__ if callable(value) else None), go(vars(value))]
    return _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
