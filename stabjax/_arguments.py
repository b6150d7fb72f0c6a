"""Arguments that callers give in several forms, in the one form that compiled programs take: keys, numbers, functions.

A plain function is static in a compiled program: it is compared, not traced. Compared by itself, a function made anew
for every call would compile every time, and one whose contents were changed in place would not compile again. So it is
compared by what it holds: its code, and the variables, attributes and globals that the code reads.
"""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from stabjax import _jaxpr


def as_key(key: Any) -> Key[Array, ""]:
    """Return one key as JAX types it, whether typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).

    A raw key is one of the default generator: both kinds of one seed give the same numbers. Every public function with
    a key calls this first, so that all say the same about what is none.

    Args:
        key: a typed key of any generator; or its numbers, uint32 in one dimension, those of the default generator.

    Raises:
        TypeError: a seed, None, several keys, or anything else.
    """
    if isinstance(key, jax.Array) and is_key(key):
        if key.ndim == 0:
            return key
        raise TypeError(f"expected one key, got {_several(key.shape)}")
    if not isinstance(key, jax.Array | np.ndarray) or key.dtype != np.uint32 or key.ndim == 0:
        raise TypeError(f"expected one key, got {_described(key)}: make it with jax.random.key(seed)")
    # Raw numbers do not name their generator; the default one has keys of this shape, (2,) for threefry.
    words = _words(jax.default_prng_impl.value)
    if key.shape == words:
        return jax.random.wrap_key_data(jnp.asarray(key))
    if key.shape[1:] == words:
        raise TypeError(f"expected one key, got {_several(key.shape[:1])}")
    raise TypeError(
        f"expected one key, got the numbers of one, {key.shape}, that are not of the default generator, {words}: make "
        "it with jax.random.key(seed), or of these with jax.random.wrap_key_data(key, impl=...)"
    )


def is_key(x: Any) -> bool:
    """Tell whether ``x`` is an array of typed random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def as_integer(name: str, value: Any) -> int:
    """Return a whole number as Python has it; raise ``TypeError`` for another, and for what is none."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"expected {name} as a whole number, got {value!r}: give e.g. 64") from error


@dataclasses.dataclass(frozen=True)
class ComparedByContents:
    """A value that is static in a compiled program, equal to another that holds the same."""

    value: Any = dataclasses.field(compare=False)
    contents: object
    """One object for all values that hold the same."""

    @classmethod
    def of(cls, value: Any) -> "ComparedByContents":
        """Look at a value now; what is changed in it afterwards is not seen."""
        return cls(value, _jaxpr.token(_jaxpr.of_object(value)))


@jax.tree_util.register_pytree_node_class
class StaticArgument:
    """A plain function, or another object, as an argument of a compiled program: a pytree without leaves.

    Its contents are looked at when it is made, so make one in every call of a public function.
    """

    def __init__(self, value: Any) -> None:
        self.static = ComparedByContents.of(value)

    def __call__(self, *args: Any) -> Any:
        """Call it, if it is a function."""
        return self.static.value(*args)

    def tree_flatten(self) -> tuple[tuple[()], ComparedByContents]:
        """Return no leaves, and the function."""
        return (), self.static

    @classmethod
    def tree_unflatten(cls, static: ComparedByContents, children: Any) -> "StaticArgument":
        """Return the function as it was looked at."""
        del children
        # Not by __init__, which would look at the function again: inside of a trace it is what it was at the call.
        self = object.__new__(cls)
        self.static = static
        return self


def as_argument(function: Any) -> Any:
    """Return a function, or None, as an argument of a compiled program: a pytree stays one, others become leafless."""
    # A callable that is one leaf of a tree is opaque to JAX; a registered pytree (a network) flattens into its arrays.
    plain = callable(function) and jax.tree_util.all_leaves([function])
    return StaticArgument(function) if plain else function


def as_tree(value: Any) -> Any:
    """Return an object of any class as an argument of a compiled program; `value_of` returns it there.

    A registered pytree stays one, whose arrays are inputs of the program. Others are static, compared by what they
    hold.
    """
    return StaticArgument(value) if jax.tree_util.all_leaves([value]) else value


def value_of(argument: Any) -> Any:
    """Return the object behind an argument made by `as_tree`."""
    return argument.static.value if isinstance(argument, StaticArgument) else argument


def partial_as_tree(function: Any) -> Any:
    """Return a partial function as a pytree of its arguments, and of its function if that is one; others as they are.

    `jax.tree_util.Partial` is a pytree of its arguments alone: the arrays of a network that is bound to arguments would
    be out of sight.
    """
    if isinstance(function, functools.partial) and not isinstance(function, jax.tree_util.Partial):
        return _BoundFunction(partial_as_tree(function.func), function.args, function.keywords)
    return function


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _BoundFunction:
    """A function with some of its arguments."""

    function: Any
    args: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        return self.function(*self.args, *args, **{**self.keywords, **keywords})


def mutable_contents(model: Any, parameters: Sequence[Any]) -> object:
    """Return one object for all that a module holds besides its parameters and that can change in place.

    Equal contents give the same object. None where there are none, as in most modules.
    """
    found = _jaxpr.examine(model, parameters)
    return _jaxpr.token(found.identity) if found.may_change else None


@functools.lru_cache
def _words(generator: str) -> tuple[int, ...]:
    """Return the shape of the numbers of a key."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=generator))).shape


def _several(shape: tuple[int, ...]) -> str:
    return (
        f"several, of shape {shape}: take one of them, as keys[0], or jax.vmap over all; jax.random.key(seed) makes one"
    )


def _described(key: Any) -> str:
    if isinstance(key, jax.Array | np.ndarray):
        return f"an array {key.dtype}{list(key.shape)}"
    kind = type(key).__name__
    return f"{key!r} of type {kind}" if isinstance(key, int | float | np.number) else f"something of type {kind}"
