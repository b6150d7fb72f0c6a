"""Following a program with something else in place of its numbers: what the ways of doing so share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stabjax._jaxpr._constants import Constant, literal
from stabjax._jaxpr._flow import Plan
from stabjax._jaxpr._parameters import PARAMETER, Given, Masked, Parameter, made_of_parameters, masks
from stabjax._jaxpr._program import JIT, body, default_branch, is_literal, opened

PASSIVE = (Constant, Parameter)
"""What does not depend on the images."""


class Walk:
    """Follows a program; `found` holds what stands at its taps, by operation and iteration."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, tuple[int, ...]], Any] = {}

    def step(self, equation: Any, operands: list[Any], child: Plan | None, iteration: tuple[int, ...]) -> list[Any]:
        """Outputs of an equation, one of whose operands depends on the images."""
        raise NotImplementedError

    def is_active(self, value: Any) -> bool:
        """Whether a value depends on the images."""
        return not isinstance(value, PASSIVE)

    def literal(self, value: Any) -> Any:
        """What stands for a literal."""
        return literal(value)

    def constants(self, plan: Plan) -> dict[Any, Any]:
        """What stands for the constants of a program."""
        return _constants_of(plan)

    def still(self, equation: Any, operands: list[Any]) -> list[Any]:
        """Outputs of an equation, none of whose operands depends on the images."""
        if any(isinstance(operand, Parameter) for operand in operands):
            if equation.primitive.name in JIT and masks(equation, operands):
                return self.run(Plan(*opened(body(equation))), operands)
            return [made_of_parameters(equation, operands)] * len(equation.outvars)
        return [Constant(equation, operands, k) for k in range(len(equation.outvars))]

    def keep(self, plan: Plan, var: Any, value: Any) -> Any:
        """What goes on from a value of a program."""
        return value

    def run(self, plan: Plan, inputs: Sequence[Any], iteration: tuple[int, ...] = ()) -> list[Any]:
        """Outputs of a program, from its inputs."""
        jaxpr = plan.jaxpr
        given = {var: self.keep(plan, var, value) for var, value in zip(jaxpr.invars, inputs, strict=True)}
        known: dict[Any, Any] = given | self.constants(plan)

        def lookup(atom: Any) -> Any:
            return self.literal(atom.val) if is_literal(atom) else known[atom]

        for index, equation in enumerate(jaxpr.eqns):
            operands = [lookup(atom) for atom in equation.invars]
            if any(map(self.is_active, operands)):
                outputs = self.step(equation, operands, plan.children.get(index), iteration)
            else:
                outputs = self.still(equation, operands)
            for var, value in zip(equation.outvars, outputs, strict=True):
                known[var] = value = self.keep(plan, var, value)
                for operation in plan.taps.get(var, ()):
                    self.found[operation, iteration] = value
        return [lookup(atom) for atom in jaxpr.outvars]

    def outcomes(self, equation: Any, operands: Sequence[Any]) -> list[list[Any]]:
        """Outputs of every branch of a ``cond``; of `platform_dependent` those of the default branch alone."""
        default = default_branch(equation)
        branches = equation.params["branches"] if default is None else [default]
        return [self.run(Plan(*opened(branch)), operands[1:]) for branch in branches]


def _constants_of(plan: Plan) -> dict[Any, Constant | Parameter]:
    """What is known of the constants of a program."""
    given = dict(zip(plan.jaxpr.constvars, plan.consts))
    return {var: _given(given[var]) if var in given else PARAMETER for var in plan.jaxpr.constvars}


def _given(value: Any) -> Constant | Parameter:
    """A constant of the program: tables of integers count by their values, kernels as any parameter does."""
    known = isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, Tracer)
    if known and (jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool):
        return literal(np.asarray(value))
    return Given(value)


def row(value: Constant | Parameter, k: int) -> Constant | Parameter:
    """One iteration's part of a stacked value that does not depend on the images."""
    if isinstance(value, Constant):
        return literal(None if value.value is None else value.value[k])
    return value[k] if isinstance(value, Given | Masked) else value
