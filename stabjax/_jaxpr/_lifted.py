"""Programs of functions that hold arrays out of sight: the arrays are made inputs, and equal programs compare equal."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.core import eval_jaxpr

from stabjax._jaxpr import _identity
from stabjax._jaxpr._program import JIT, Jaxpr, body, is_literal, opened, run, scope_of, trace


@dataclass(frozen=True, eq=False)
class Lifted:
    """A function for inputs of one shape, written out.

    Attributes:
        jaxpr: the open program. Arrays that the function holds are its constants, or inputs behind the parameters.
        constants: how many of them are constants; they come first.
        out_tree: structure of the outputs.
        identity: equal for functions that compute the same from these arrays and their inputs.
    """

    jaxpr: Jaxpr
    constants: int
    out_tree: Any
    identity: Hashable

    def __call__(self, hidden: Sequence[Any], leaves: Sequence[Any], x: Any) -> Any:
        """Return the outputs, from the arrays that the function held, its parameters and the images."""
        constants, inputs = hidden[: self.constants], hidden[self.constants :]
        return jax.tree_util.tree_unflatten(self.out_tree, eval_jaxpr(self.jaxpr, constants, *leaves, *inputs, x))


def lift(apply: Callable[..., Any], leaves: Sequence[Any], x: Any) -> tuple[Lifted, list[Any]]:
    """Return the program of ``apply(leaves, x)``, and the arrays that it holds besides; nothing is computed.

    Scalars are written into a program by JAX: with other ones it is another program.

    Args:
        apply: a function of parameters and a batch.
        leaves: parameters, concrete, traced or abstract.
        x: a batch, or its shape and dtype.

    Raises:
        TypeError: if JAX cannot trace the function.
    """
    program = trace(apply, leaves, [""] * len(leaves), x)
    if any(True for _ in _calls_with_constants(program.jaxpr)):
        outer = list(program.consts)
        inner = [const for call in _calls_with_constants(program.jaxpr) for const in opened(body(call))[1]]

        def flat(held: list[Any], x: Any) -> list[Any]:
            inputs, outer_held, inner_held = held[: len(leaves)], held[len(leaves) :][: len(outer)], held[len(leaves) :]
            return _inlined(program.jaxpr, outer_held, [*inputs, x], iter(inner_held[len(outer) :]))

        held = [*map(_as_array, outer), *map(_as_array, inner)]
        written = trace(flat, [*leaves, *held], [""] * (len(leaves) + len(held)), x)
    else:
        held, written = [], program
    identity = _identity.of_program(written.jaxpr), program.out_tree
    lifted = Lifted(written.jaxpr, len(written.consts), program.out_tree, identity)
    return lifted, [*map(_as_array, written.consts), *held]


def _calls_with_constants(jaxpr: Jaxpr) -> Iterator[Any]:
    """Return the calls of jitted functions that hold arrays, in order, those inside of calls behind the call itself."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in JIT and _holds(body(equation)):
            yield equation
            yield from _calls_with_constants(opened(body(equation))[0])


def _holds(closed: Jaxpr) -> bool:
    jaxpr, consts = opened(closed)
    return bool(consts) or any(True for _ in _calls_with_constants(jaxpr))


def _inlined(jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], held: Iterator[Any]) -> list[Any]:
    """Return the outputs of a program whose calls take the arrays they hold from an iterator, call by call."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def operand(atom: Any) -> Any:
        return atom.val if is_literal(atom) else values[atom]

    waiting = []
    for equation in jaxpr.eqns:
        if equation.primitive.name not in JIT or not _holds(body(equation)):
            waiting.append(equation)
            continue
        run(jaxpr, waiting, values)
        waiting = []
        inner, own = opened(body(equation))
        with ExitStack() as stack:
            for scope in scope_of(equation):
                stack.enter_context(jax.named_scope(scope))
            mine = [next(held) for _ in own]
            outputs = _inlined(inner, mine, [operand(atom) for atom in equation.invars], held)
        values.update(zip(equation.outvars, outputs, strict=True))
    run(jaxpr, waiting, values)
    return [operand(atom) for atom in jaxpr.outvars]


def _as_array(value: Any) -> Any:
    return value if isinstance(value, jax.Array) else np.asarray(value)
