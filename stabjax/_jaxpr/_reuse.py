"""Programs that are written out anew at every call, and compiled for the first of those that are alike."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.core import eval_jaxpr

from stabjax._jaxpr._program import inner_programs, is_literal, opened


def in_double(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in double precision, compiled only if no program of the same text was compiled before.

    The function is traced at every call, so that nothing it holds can be stale; its constants are arguments of what is
    compiled. Its own arguments are what they are where it is called, outside of double precision.

    Args:
        function: any function of arrays that returns a list of them.
        arguments: arrays, perhaps traced.
    """
    with jax.enable_x64(True):
        # A function of its own: JAX remembers the traces of one that it has seen.
        jaxpr, consts = opened(jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments))
        text, consts = _Text(jaxpr), jax.device_put(list(consts))
    return _run(text, consts, arguments)


class _Text:
    """A program without the values of its constants, equal to another one that does the same with them."""

    def __init__(self, jaxpr: Any) -> None:
        self.jaxpr = jaxpr
        # Text names variables by their order, so that two traces of one function read the same.
        self.key = (str(jaxpr), *_arrays(jaxpr))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Text) and self.key == other.key


def _arrays(jaxpr: Any) -> Iterator[tuple[Any, ...]]:
    """Return the arrays that stand within a program, which its text may leave out or cut short."""
    for equation in jaxpr.eqns:
        values = [atom.val for atom in equation.invars if is_literal(atom) and np.ndim(atom.val)]
        for inner in inner_programs(equation):
            program, consts = opened(inner)
            values += consts
            yield from _arrays(program)
        for value in map(np.asarray, values):
            yield value.shape, str(value.dtype), value.tobytes()


@partial(jax.jit, static_argnums=0)
def _run(program: _Text, consts: list[Any], arguments: tuple[Any, ...]) -> list[Any]:
    with jax.enable_x64(True):
        return eval_jaxpr(program.jaxpr, consts, *arguments)
