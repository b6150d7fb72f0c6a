"""Interpret a traced network over a domain: boxes of pixels, path counts, Lipschitz bounds.

An abstract interpreter: calls, scans and conditionals are entered here, once for all domains.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from stabjax._jaxpr._domain import Domain, Step, Value
from stabjax._jaxpr._plan import TapPlan
from stabjax._jaxpr._program import (
    CALLS,
    Equation,
    Var,
    body,
    default_branch,
    is_literal,
    opened,
    scan_split,
    scope_of,
)
from stabjax._jaxpr._traced import TracedProgram


def interpret(traced: TracedProgram, domain: Domain, inputs: Sequence[Value]) -> list[Value]:
    """Return what stands at each tap of a network, in the order of its sites.

    Args:
        traced: the network.
        domain: what the values are.
        inputs: those of the program: the parameters, and the images.
    """
    interpreter = Interpreter(traced, domain)
    outputs = interpreter.run(traced.plan, inputs)
    # The outputs' operations count on from those of the taps.
    found = interpreter.at_taps | {(traced.operations + k, ()): value for k, value in enumerate(outputs)}
    return [found[site.operation, site.iteration] for site in traced.sites]


class Interpreter:
    """Follow the programs of one network; `at_taps` holds the values at its taps, by operation and iteration."""

    def __init__(self, traced: TracedProgram, domain: Domain) -> None:
        self.jaxpr = traced.plan.jaxpr
        self.domain = domain
        self.at_taps: dict[tuple[int, tuple[int, ...]], Value] = {}
        self._names = {(site.operation, site.iteration): site.name for site in traced.sites}
        self._scopes: list[str] = []
        # All values that an activation will ask for, in this program or one inside; the others are not kept.
        self._starts: dict[tuple[TapPlan, Var], Value | None] = dict.fromkeys(_starts_of(traced.plan))

    def where(self, equation: Equation) -> str:
        """Name the place of an equation by the scopes around it and the last tap before it."""
        behind = next((self._names[place] for place in reversed(self.at_taps) if place in self._names), "the images")
        scopes = "/".join((*self._scopes, *scope_of(equation)))
        return f"in {scopes}, behind {behind}" if scopes else f"behind {behind}"

    def run(
        self,
        plan: TapPlan,
        inputs: Sequence[Value],
        iteration: tuple[int, ...] = (),
        constant: Callable[[Any], Value] | None = None,
    ) -> list[Value]:
        """Return the outputs of a program.

        Args:
            plan: the program and the taps in it.
            inputs: one value for each of its inputs.
            iteration: position in the scans around it, outermost first.
            constant: what stands for the arrays that it holds; by default what the domain says.
        """
        domain, jaxpr = self.domain, plan.jaxpr
        held = dict(zip(jaxpr.constvars, plan.consts))
        # An inner open program has no values for its constants: they are not known.
        known = {var: (constant or domain.constant)(held.get(var)) for var in jaxpr.constvars}
        known |= {var: self._exchange(plan, var, value) for var, value in zip(jaxpr.invars, inputs, strict=True)}

        def lookup(atom: Any) -> Value:
            return domain.literal(atom.val) if is_literal(atom) else known[atom]

        # Invariant: `known` holds each variable that was defined so far, as `_exchange` left it.
        for index, equation in enumerate(jaxpr.eqns):
            # Equations stand in order: what one reads has been defined by those before, or is an input.
            operands = [lookup(atom) for atom in equation.invars]
            step = Step(self, equation, plan.children.get(index))
            if any(map(domain.is_active, operands)):
                outputs = self._follow(step, equation, operands, plan.children.get(index), iteration)
            else:
                outputs = domain.fold(step, operands)
            for var, value in zip(equation.outvars, outputs, strict=True):
                known[var] = value = self._exchange(plan, var, value)
                for operation in plan.taps.get(var, ()):
                    self.at_taps[operation, iteration] = value
        return [lookup(atom) for atom in jaxpr.outvars]

    def _exchange(self, plan: TapPlan, var: Var, value: Value) -> Value:
        """Let the domain exchange the value of an activation and of a tap, and remember where activations begin."""
        # None also where the activation began in a program that was not entered: the value then stays what the rules
        # made.
        start = self._starts.get(plan.starts[var]) if var in plan.starts else None
        if start is not None:
            # First the activation, then the tap: what the tap records is what goes on.
            value = self.domain.at_activation(value, start)
        if plan.taps.get(var) and self.domain.is_active(value):
            value = self.domain.at_tap(value)
        if (plan, var) in self._starts:
            self._starts[plan, var] = value
        return value

    def _follow(
        self,
        step: Step,
        equation: Equation,
        operands: list[Value],
        child: TapPlan | None,
        iteration: tuple[int, ...],
    ) -> list[Value]:
        """Return the outputs of an operation that sees the images: entered, or made by a rule."""
        if step.name in CALLS or step.name == "cond":
            outputs = self.domain.apply_call(step, operands)
            if outputs is not None:
                return outputs
            if step.name == "cond":
                return self._cond(equation, operands)
            return self._call(equation, operands, child, iteration)
        if step.name == "scan":
            return self._scan(equation, operands, child, iteration)
        return self.domain.apply(step, operands)

    def _call(
        self, equation: Equation, operands: list[Value], child: TapPlan | None, iteration: tuple[int, ...]
    ) -> list[Value]:
        scope = scope_of(equation)
        self._scopes += scope
        # A call without a plan holds no tap, and is entered all the same.
        outputs = self.run(child or TapPlan(*opened(body(equation))), operands, iteration)
        del self._scopes[len(self._scopes) - len(scope) :]
        return outputs

    def _cond(self, equation: Equation, operands: list[Value]) -> list[Value]:
        """Run every branch that may be taken; of `platform_dependent` the default alone."""
        index, *inputs = operands
        default = default_branch(equation)
        branches = equation.params["branches"] if default is None else [default]
        known = self.domain.branch(index, len(branches)) if len(branches) > 1 else 0
        # Branches have no plans: a cond is bound whole, and there is no tap inside.
        outcomes = [self.run(TapPlan(*opened(branch)), inputs) for branch in branches]
        if known is not None:
            return outcomes[known]
        results = []
        for var, alternatives in zip(equation.outvars, zip(*outcomes)):
            shapes = [var.aval.shape] * len(alternatives)
            # One choice for each result, between what the branches have made of it.
            step = Step(self, equation, name="branches", params={}, shapes=shapes, result=var.aval)
            results.append(self.domain.choose(step, index, list(alternatives)))
        return results

    def _scan(
        self, equation: Equation, operands: list[Value], child: TapPlan | None, outer: tuple[int, ...]
    ) -> list[Value]:
        """Run the body iteration by iteration.

        One that begins as the last did ends as it did, if the domain says so and there is no tap inside. The carried
        values, which are inputs as well, then stay what they are.
        """
        params = equation.params
        fixed, carried = scan_split(params)
        plan = child or TapPlan(*opened(params["jaxpr"]))
        # Operands are (constants, carried, stacked); the body returns (carried, one row of each stacked result).
        consts, carry, stacked = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]
        avals = [atom.aval for atom in equation.invars[fixed + carried :]]
        # A step for each stacked operand, (length, *row) -> (*row), by which the domain takes a row of it.
        cuts = [
            Step(
                self,
                equation,
                name="slice",
                params={},
                shapes=[aval.shape],
                result=jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype),
            )
            for aval in avals
        ]
        # By position, not by order of execution. Each entry is replaced as a whole, so they may begin as one list.
        rows: list[list[Value]] = [[]] * params["length"]
        before: list[Value] | None = None
        outputs: list[Value] = []
        order = range(params["length"])
        for k in reversed(order) if params["reverse"] else order:
            inputs = [*consts, *carry, *[self.domain.row(cut, value, k) for cut, value in zip(cuts, stacked)]]
            # With taps inside, every iteration is a tap of its own.
            if before is None or child is not None or not self.domain.is_same(before, inputs):
                before, outputs = inputs, self.run(plan, inputs, (*outer, k))
                carry = outputs[:carried]
            rows[k] = outputs[carried:]
        results = []
        for j, var in enumerate(equation.outvars[carried:]):
            shapes = [var.aval.shape[1:]] * len(rows)
            step = Step(self, equation, name="stack", params={"axis": 0}, shapes=shapes, result=var.aval)
            results.append(self.domain.stack(step, [made[j] for made in rows]))
        return [*carry, *results]


def _starts_of(plan: TapPlan) -> set[tuple[TapPlan, Var]]:
    """Return the values at which the regions of activations begin, in a program and those inside of it."""
    return set(plan.starts.values()).union(*map(_starts_of, plan.children.values()))
