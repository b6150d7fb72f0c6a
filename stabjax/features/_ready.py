"""What objects hold that can change between two calls, for those that pass them to a compiled program."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from stabjax import _jaxpr


def held(model: Any, parameters: Sequence[Any]) -> object:
    """What a module holds that can change in place besides its parameters, as one object for all that is equal.

    None where there is no such thing, as in most modules.
    """
    found = _jaxpr.examine(model, parameters)
    return _jaxpr.token(found.identity) if found.may_change else None


@jax.tree_util.register_pytree_node_class
class Watched:
    """A plain function as an argument of a compiled program: equal to itself as long as it holds what it held."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        """What the function returns."""
        return self.function(*args)

    def tree_flatten(self) -> tuple[tuple[()], "_Seen"]:
        """No leaves; the function, looked at."""
        return (), _Seen(self.function, _jaxpr.token(_jaxpr.of_object(self.function)))

    @classmethod
    def tree_unflatten(cls, seen: "_Seen", children: Any) -> "Watched":
        """The function."""
        del children
        return cls(seen.function)


@dataclass(frozen=True)
class _Seen:
    """A function, compared by what it held."""

    function: Callable[..., Any] = field(compare=False)
    held: object
