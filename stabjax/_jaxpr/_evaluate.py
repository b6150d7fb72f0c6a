"""Evaluate a program as it was traced, and look at its taps on the way.

Calls that hide no wanted tap are bound whole, so derivatives and custom rules stay what they were. A jit with a tap
inside is inlined; a remat or scan with one is built again around the body that hands its taps out.

A rule takes the place of a primitive: ``rule(*operands, **parameters)`` returns what binding it would. Calls are
entered for it as for a tap: jit, remat and scan, not those with a derivative of their own, branches or while loops.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax

from stabjax._jaxpr._plan import TapPlan
from stabjax._jaxpr._program import REMAT, is_literal, run, scan_split

Visit = Callable[[int, Any], Any]
Rules = Mapping[str, Callable[..., Any]]
"""What takes the place of a primitive with one result, by its name."""
NO_RULES: Rules = {}


def evaluate(
    plan: TapPlan, arguments: Sequence[Any], wanted: Collection[int], visit: Visit, rules: Rules = NO_RULES
) -> tuple[list[Any], dict[int, Any]]:
    """Return the outputs of the program, and ``visit(operation, value)`` for every wanted operation.

    What is visited inside a scan comes back stacked over its iterations.

    Args:
        plan: the program, with its taps.
        arguments: its inputs.
        wanted: operations to visit.
        visit: what is done with their values.
        rules: primitives that are computed in another way.
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
        rule = rules.get(equation.primitive.name)
        if rule is not None:
            flush()
            values[equation.outvars[0]] = rule(*map(operand, equation.invars), **equation.params)
        elif child is None or not (child.reaches(wanted) or _applies(rules, child)):
            waiting.append(equation)
        else:
            flush()
            results, inner = _enter(equation, child, [operand(atom) for atom in equation.invars], wanted, visit, rules)
            values.update(zip(equation.outvars, results, strict=True))
            found |= inner
        if here:
            flush()
            for var in equation.outvars:
                # At once, so that only what visit returns is kept.
                found |= {k: visit(k, values[var]) for k in plan.taps.get(var, ()) if k in wanted}
    flush()
    return [operand(atom) for atom in jaxpr.outvars], found


def _applies(rules: Rules, plan: TapPlan) -> bool:
    """Tell whether a rule would be applied in a program, or in those that can be entered from it."""
    here = any(equation.primitive.name in rules for equation in plan.jaxpr.eqns)
    return here or any(_applies(rules, child) for child in plan.children.values())


def _enter(
    equation: Any, child: TapPlan, arguments: list[Any], wanted: Collection[int], visit: Visit, rules: Rules
) -> tuple[list[Any], dict[int, Any]]:
    params = equation.params
    name = equation.primitive.name
    if name in REMAT:
        # What was visited is an output of the new checkpoint. On all else its policy decides, as before.
        def body(*inputs: Any) -> tuple[list[Any], dict[int, Any]]:
            return evaluate(child, inputs, wanted, visit, rules)

        return jax.checkpoint(body, policy=params["policy"], prevent_cse=params["prevent_cse"])(*arguments)
    if name == "scan":
        return _scan(params, child, arguments, wanted, visit, rules)
    return evaluate(child, arguments, wanted, visit, rules)


def _scan(
    params: dict[str, Any],
    child: TapPlan,
    arguments: list[Any],
    wanted: Collection[int],
    visit: Visit,
    rules: Rules,
) -> tuple[list[Any], dict[int, Any]]:
    fixed, carried = scan_split(params)
    consts, init, stacked = arguments[:fixed], arguments[fixed : fixed + carried], arguments[fixed + carried :]

    # (carry, row) -> (carry, (row of results, visits)); `jax.lax.scan` stacks rows and visits over the iterations.
    def body(carry: list[Any], inputs: list[Any]) -> tuple[list[Any], tuple[list[Any], dict[int, Any]]]:
        outputs, found = evaluate(child, [*consts, *carry, *inputs], wanted, visit, rules)
        return outputs[:carried], (outputs[carried:], found)

    carry, (results, found) = jax.lax.scan(
        body, init, stacked, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *results], found
