"""Follow a program by rules of one's own: what depends on the images is what a rule makes of it, all else is computed.

Numbers are computed at once where they are known, also inside of a ``jit`` that traces the parameters, so a rule can
tell a constant of the program from a parameter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stabjax._jaxpr._flow import Plan
from stabjax._jaxpr._program import CUSTOM, JIT, REMAT, body, is_dropped, is_literal, opened, run, scan_split, scope_of
from stabjax._jaxpr._reading import Reading
from stabjax._jaxpr._walk import Walk


@dataclass(frozen=True, eq=False)
class Step:
    """One operation, as a rule sees it.

    Attributes:
        name: of the primitive; ``"branches"`` for the results of several, one of which is chosen while it runs.
        params: its parameters.
        shapes: of the operands.
        results: shape and dtype of each output.
        where: named scopes around it, and the tap it stands behind.
        apply: the operation itself, a function of arrays.
    """

    name: str
    params: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    results: tuple[jax.ShapeDtypeStruct, ...]
    where: str
    apply: Callable[..., Any]


Rule = Callable[[Step, list[Any]], list[Any]]


def interpret(
    reading: Reading,
    parameters: Sequence[Any],
    image: Any,
    rule: Rule,
    *,
    is_followed: Callable[[Any], bool],
    tapped: Callable[[Any, str], Any],
) -> list[Any]:
    """What stands at each tap of a network, in the order of its sites; an array where it does not see the images.

    Args:
        reading: the network.
        parameters: those of the program, numbers or traced.
        image: what the images are.
        rule: outputs of an operation, one of whose operands at least is followed.
        is_followed: tells what the rules make from arrays.
        tapped: what goes on from a tap, that stands there.
    """
    walk = _Walk(reading, rule, is_followed, tapped)
    outputs = walk.run(reading.plan, [*map(jnp.asarray, parameters), image])
    found = walk.found | {(reading.operations + k, ()): value for k, value in enumerate(outputs)}
    return [found[site.operation, site.iteration] for site in reading.sites]


class _Walk(Walk):
    """Computes numbers, and asks a rule for the rest."""

    def __init__(
        self, reading: Reading, rule: Rule, is_followed: Callable[[Any], bool], tapped: Callable[[Any, str], Any]
    ) -> None:
        super().__init__()
        self.jaxpr = reading.plan.jaxpr
        self.rule, self.is_followed, self.tapped = rule, is_followed, tapped
        self.names = {(site.operation, site.iteration): site.name for site in reading.sites}
        self.scopes: list[str] = []

    def is_active(self, value: Any) -> bool:
        return self.is_followed(value)

    def literal(self, value: Any) -> Any:
        return np.asarray(value)

    def constants(self, plan: Plan) -> dict[Any, Any]:
        return dict(zip(plan.jaxpr.constvars, plan.consts, strict=True))

    def still(self, equation: Any, operands: list[Any]) -> list[Any]:
        if any(isinstance(operand, Tracer) for operand in operands):
            return self._applied(equation, operands)
        with jax.ensure_compile_time_eval():
            return self._applied(equation, operands)

    def _applied(self, equation: Any, operands: list[Any]) -> list[Any]:
        """Outputs of an equation on arrays; None where they are not used."""
        values = {atom: value for atom, value in zip(equation.invars, operands) if not is_literal(atom)}
        run(self.jaxpr, [equation], values)
        return [None if is_dropped(var) else values[var] for var in equation.outvars]

    def keep(self, plan: Plan, var: Any, value: Any) -> Any:
        return self.tapped(value, self.where()) if plan.taps.get(var) and self.is_active(value) else value

    def where(self, scope: Sequence[str] = ()) -> str:
        """The named scopes, and the last tap."""
        behind = next((self.names[place] for place in reversed(self.found) if place in self.names), "the images")
        scopes = "/".join((*self.scopes, *scope))
        return f"in {scopes}, behind {behind}" if scopes else f"behind {behind}"

    def step(self, equation: Any, operands: list[Any], child: Plan | None, iteration: tuple[int, ...]) -> list[Any]:
        name = equation.primitive.name
        if name in JIT or name in REMAT or name in CUSTOM:
            scope = scope_of(equation)
            self.scopes += scope
            outputs = self.run(child or Plan(*opened(body(equation))), operands, iteration)
            del self.scopes[len(self.scopes) - len(scope) :]
            return outputs
        if name == "cond" and not self.is_active(operands[0]):
            return self._branches(equation, operands)
        if name == "scan":
            return self._scan(equation, operands, child, iteration)
        shapes = tuple(tuple(getattr(atom.aval, "shape", ())) for atom in equation.invars)
        return self.rule(self._as_step(name, equation, shapes, equation.params), operands)

    def _as_step(self, name: str, equation: Any, shapes: Any, params: dict[str, Any], avals: Any = None) -> Step:
        avals = [var.aval for var in equation.outvars] if avals is None else avals
        return Step(
            name=name,
            params=params,
            shapes=tuple(shapes),
            results=tuple(jax.ShapeDtypeStruct(getattr(a, "shape", ()), getattr(a, "dtype", bool)) for a in avals),
            where=self.where(scope_of(equation)),
            apply=lambda *arrays: self._applied(equation, list(arrays))[0],
        )

    def _branches(self, equation: Any, operands: list[Any]) -> list[Any]:
        """A choice that the images have no part in."""
        outcomes = self.outcomes(equation, operands)
        if len(outcomes) > 1 and not isinstance(operands[0], Tracer):
            outcomes = [outcomes[int(np.clip(operands[0], 0, len(outcomes) - 1))]]
        if len(outcomes) == 1:
            return outcomes[0]
        results = []
        for var, choices in zip(equation.outvars, zip(*outcomes)):
            step = self._as_step("branches", equation, [var.aval.shape] * len(choices), {}, [var.aval])
            if any(map(self.is_active, choices)):
                results += self.rule(step, list(choices))
            else:
                results.append(jax.lax.select_n(jnp.asarray(operands[0], jnp.int32), *choices))
        return results

    def _scan(self, equation: Any, operands: list[Any], child: Plan | None, outer: tuple[int, ...]) -> list[Any]:
        params = equation.params
        fixed, carried = scan_split(params)
        plan = child or Plan(*opened(params["jaxpr"]))
        consts, carry, stacked = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]
        avals = [atom.aval for atom in equation.invars[fixed + carried :]]

        def row(value: Any, aval: Any, k: int) -> Any:
            if not self.is_active(value):
                return value[k]
            cut = jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)
            return self.rule(self._as_step("slice", equation, [aval.shape], {}, [cut]), [value])[0]

        made: list[list[Any]] = [[]] * params["length"]
        order = range(params["length"])
        for k in reversed(order) if params["reverse"] else order:
            inputs = [*consts, *carry, *[row(value, aval, k) for value, aval in zip(stacked, avals)]]
            outputs = self.run(plan, inputs, (*outer, k))
            carry, made[k] = outputs[:carried], outputs[carried:]
        results = []
        for column, var in zip(zip(*made), equation.outvars[carried:]):
            if any(map(self.is_active, column)):
                step = self._as_step("stack", equation, [var.aval.shape[1:]] * len(column), {"axis": 0}, [var.aval])
                results += self.rule(step, list(column))
            else:
                results.append(jnp.stack(column))
        return [*carry, *results]
