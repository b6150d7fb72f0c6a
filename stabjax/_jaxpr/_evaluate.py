"""Evaluate a program as it was traced, and look at its taps on the way.

Calls that hide no wanted tap are bound whole, so derivatives and custom rules stay what they were. A jit with a tap
inside is inlined; a remat or scan with one is built again around the body that hands its taps out.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax

from stabjax._jaxpr._plan import TapPlan
from stabjax._jaxpr._program import REMAT, is_literal, run, scan_split

Visit = Callable[[int, Any], Any]


def evaluate(
    plan: TapPlan, arguments: Sequence[Any], wanted: Collection[int], visit: Visit
) -> tuple[list[Any], dict[int, Any]]:
    """Return the outputs of the program, and ``visit(operation, value)`` for every wanted operation.

    What is visited inside a scan comes back stacked over its iterations.
    """
    jaxpr = plan.jaxpr
    values = dict(zip(jaxpr.constvars, plan.consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))
    found: dict[int, Any] = {}
    waiting = []

    def flush() -> None:
        if waiting:
            run(jaxpr, waiting, values)
            waiting.clear()

    def operand(atom: Any) -> Any:
        return atom.val if is_literal(atom) else values[atom]

    # Equations wait until a tap or a call is reached that has to be looked into, and then run in one piece.
    for index, equation in enumerate(jaxpr.eqns):
        child = plan.children.get(index)
        here = [operation for var in equation.outvars for operation in plan.taps.get(var, ()) if operation in wanted]
        if child is None or not _reaches(child, wanted):
            waiting.append(equation)
        else:
            flush()
            results, inner = _enter(equation, child, [operand(atom) for atom in equation.invars], wanted, visit)
            values.update(zip(equation.outvars, results, strict=True))
            found |= inner
        if here:
            flush()
            for var in equation.outvars:
                # At once, so that only what visit returns is kept.
                found |= {k: visit(k, values[var]) for k in plan.taps.get(var, ()) if k in wanted}
    flush()
    return [operand(atom) for atom in jaxpr.outvars], found


def _reaches(plan: TapPlan, wanted: Collection[int]) -> bool:
    mine = any(operation in wanted for operations in plan.taps.values() for operation in operations)
    return mine or any(_reaches(child, wanted) for child in plan.children.values())


def _enter(
    equation: Any, child: TapPlan, arguments: list[Any], wanted: Collection[int], visit: Visit
) -> tuple[list[Any], dict[int, Any]]:
    params = equation.params
    name = equation.primitive.name
    if name in REMAT:
        # What was visited is an output of the new checkpoint. On all else its policy decides, as before.
        def body(*inputs: Any) -> tuple[list[Any], dict[int, Any]]:
            return evaluate(child, inputs, wanted, visit)

        return jax.checkpoint(body, policy=params["policy"], prevent_cse=params["prevent_cse"])(*arguments)
    if name == "scan":
        return _scan(params, child, arguments, wanted, visit)
    return evaluate(child, arguments, wanted, visit)


def _scan(
    params: dict[str, Any], child: TapPlan, arguments: list[Any], wanted: Collection[int], visit: Visit
) -> tuple[list[Any], dict[int, Any]]:
    fixed, carried = scan_split(params)
    consts, init, stacked = arguments[:fixed], arguments[fixed : fixed + carried], arguments[fixed + carried :]

    # (carry, row) -> (carry, (row of results, visits)); `jax.lax.scan` stacks rows and visits over the iterations.
    def body(carry: list[Any], inputs: list[Any]) -> tuple[list[Any], tuple[list[Any], dict[int, Any]]]:
        outputs, found = evaluate(child, [*consts, *carry, *inputs], wanted, visit)
        return outputs[:carried], (outputs[carried:], found)

    carry, (results, found) = jax.lax.scan(
        body, init, stacked, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *results], found
