"""Programs of functions that hold arrays out of sight: the arrays are made inputs, and equal programs compare equal."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import numpy as np

from stabjax._jaxpr import _identity
from stabjax._jaxpr._program import (
    JIT,
    Jaxpr,
    Program,
    body,
    is_literal,
    opened,
    run,
    scope_of,
    trace,
    with_constants_as_inputs,
)


class Lifted(NamedTuple):
    """A program whose arrays are all inputs."""

    program: Program
    """The arrays that the program held are inputs behind the parameters, without a path."""
    held: list[Any]
    """These arrays."""
    identity: Hashable
    """Equal for programs that compute the same from their inputs."""


def lift(program: Program) -> Lifted:
    """Make the arrays that a program holds inputs of it; nothing is computed.

    Scalars are written into a program by JAX: with other ones it is another program.
    """
    leaves = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in program.jaxpr.invars[:-1]]
    x = program.images
    if any(True for _ in _calls_with_constants(program.jaxpr)):
        outer = list(program.consts)
        inner = [const for call in _calls_with_constants(program.jaxpr) for const in opened(body(call))[1]]

        def flat(held: list[Any], x: Any) -> list[Any]:
            # held is (parameters, arrays of the program, arrays of the calls inside), in the order of
            # `_calls_with_constants`.
            inputs, outer_held, inner_held = held[: len(leaves)], held[len(leaves) :][: len(outer)], held[len(leaves) :]
            return _inlined(program.jaxpr, outer_held, [*inputs, x], iter(inner_held[len(outer) :]))

        held = [*map(_as_array, outer), *map(_as_array, inner)]
        written = trace(flat, [*leaves, *held], [""] * (len(leaves) + len(held)), x)
        # Inputs come as parameters, arrays that tracing has added, arrays that were held before, images.
        held = [*map(_as_array, written.consts), *held]
    else:
        written = program
        held = [*map(_as_array, written.consts)]
    jaxpr = with_constants_as_inputs(written.jaxpr, len(leaves))
    paths = (*program.paths[: len(leaves)], *[""] * len(held), None)
    found = Program(jaxpr, (), paths, program.out_names, program.out_tree)
    return Lifted(found, held, (_identity.of_program(jaxpr), program.out_tree))


def _calls_with_constants(jaxpr: Jaxpr) -> Iterator[Any]:
    """Return the calls of jitted functions that hold arrays, in order, those inside of calls behind the call itself."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in JIT and _holds(body(equation)):
            yield equation
            # Depth first, in the order in which `_inlined` meets them: both must agree.
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
        # Everything between two such calls runs in one piece.
        if equation.primitive.name not in JIT or not _holds(body(equation)):
            waiting.append(equation)
            continue
        run(jaxpr, waiting, values)
        waiting = []
        inner, own = opened(body(equation))
        with ExitStack() as stack:
            # An inlined call leaves its scopes on what stood inside: taps are named by them.
            for scope in scope_of(equation):
                stack.enter_context(jax.named_scope(scope))
            # Its own arrays first, then those of the calls inside, which the recursion takes.
            mine = [next(held) for _ in own]
            outputs = _inlined(inner, mine, [operand(atom) for atom in equation.invars], held)
        values.update(zip(equation.outvars, outputs, strict=True))
    run(jaxpr, waiting, values)
    return [operand(atom) for atom in jaxpr.outvars]


def _as_array(value: Any) -> Any:
    return value if isinstance(value, jax.Array) else np.asarray(value)
