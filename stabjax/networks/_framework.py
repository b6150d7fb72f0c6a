"""What has to be known of a framework, and the paths of parameters in a pytree."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from stabjax._jaxpr import path_name


class Parts(NamedTuple):
    """A model taken apart into its arrays and everything else."""

    skeleton: Any
    """The model without its arrays. It compares equal for two models of one architecture."""
    rebuild: Callable[[Any, Any, Any], Callable[..., Any]]
    """``rebuild(skeleton, variables, method)`` is the model's function of a batch (or of an example), with these
    arrays. A function of a module, not a lambda: networks of one architecture have to share it."""
    variables: Any
    """The arrays, a pytree."""
    paths: tuple[str, ...]
    """Path of each parameter, in the order of the leaves of ``variables``: ``blocks/2/conv/kernel``. Taps are named by
    the module that the paths of their parameters share. "" for an array that is no parameter of a module."""
    root: str = ""
    """Outermost named scope of the model's program, which names of taps leave out."""
    separator: str = "/"
    """What the framework writes between the parts of a name: ``blocks/2/conv``, or ``blocks.2.conv``."""


@dataclass(frozen=True)
class Framework:
    """How to take the models of one framework apart.

    Attributes:
        name: as messages call it.
        claims: whether a model is one of this framework. It imports nothing: whoever has a model of a framework has
            imported it.
        take_apart: ``take_apart(model, mode)`` gives the `Parts` in evaluation mode, and changes nothing of the model.
        modes: the modes that it knows.
        state: where a call finds what it reads. ``"shown"``: all in the attributes of the model; it is traced once for
            an architecture. ``"listed"``: the framework lists all arrays, and the rest is code and options, which may
            change; it is traced at every call. ``"hidden"``: anywhere; it is traced at every call, and what it holds is
            compared where it is an argument of ``jit``.
        is_callable: whether its models are functions of a batch themselves; False where ``rebuild`` knows what to call.
        layout: the layout of images that its models take by custom.
        remedy: what to write for a model that fails as it stands, for the message.
    """

    name: str
    claims: Callable[[Any], bool]
    take_apart: Callable[[Any, str], Parts]
    modes: tuple[str, ...] = ("eval",)
    state: Literal["shown", "listed", "hidden"] = "shown"
    is_callable: bool = True
    layout: Literal["channels_last", "channels_first"] = "channels_last"
    remedy: str = ""


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array, of JAX or NumPy."""
    return isinstance(leaf, jax.Array | np.ndarray)


def paths_of(tree: Any, *, drop: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the path of each leaf, ``blocks/2/kernel``; a last part that is in ``drop`` is left out."""
    names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        # The path of a Flax variable may end in the attribute that holds its array, ``kernel/value``.
        stem, _, last = name.rpartition("/")
        names.append(stem if last in drop else name)
    return tuple(names)


def number_repeats(names: Iterable[str]) -> tuple[str, ...]:
    """Make names distinct: those used before get ``:1``, ``:2`` (keys that hold a slash can make two paths equal)."""
    used: Counter[str] = Counter()
    result = []
    for name in names:
        # The order of the leaves decides which one keeps the plain name.
        result.append(f"{name}:{used[name]}" if used[name] else name)
        used[name] += 1
    return tuple(result)


def bind_method(model: Any, method: str | Callable[..., Any] | None) -> Callable[..., Any]:
    """Return the function that is called: the model itself, its method of that name, or a function of the model."""
    if method is None:
        return model
    return getattr(model, method) if isinstance(method, str) else lambda *args, **static: method(model, *args, **static)
