"""A program written out: calls inlined, scans unrolled."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stabjax._jaxpr._plan import TapPlan
from stabjax._jaxpr._program import Program, is_literal, run, scan_split, trace
from stabjax._jaxpr._traced import TracedProgram


def write_out(traced: TracedProgram, operations: Collection[int]) -> Program:
    """Return a program without calls that can be entered, and without scans that have one of these operations.

    Each variable then stands for one value: an iteration of a scan has variables of its own.
    """
    program = traced.program
    leaves = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in program.jaxpr.invars[:-1]]

    def flat(leaves: Sequence[Any], x: Any) -> list[Any]:
        return _write_out(traced.plan, [*leaves, x], operations)

    return trace(flat, leaves, [path or "" for path in program.paths[:-1]], program.images)


def _write_out(plan: TapPlan, inputs: Sequence[Any], operations: Collection[int]) -> list[Any]:
    jaxpr = plan.jaxpr
    values = dict(zip(jaxpr.constvars, plan.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

    def operand(atom: Any) -> Any:
        return atom.val if is_literal(atom) else values[atom]

    for index, equation in enumerate(jaxpr.eqns):
        child = plan.children.get(index)
        is_scan = equation.primitive.name == "scan"
        if child is None or (is_scan and not child.reaches(operations)):
            run(jaxpr, [equation], values)
            continue
        arguments = list(map(operand, equation.invars))
        if is_scan:
            results = _unroll(equation.params, child, arguments, operations)
        else:
            results = _write_out(child, arguments, operations)
        values.update(zip(equation.outvars, results, strict=True))
    return [operand(atom) for atom in jaxpr.outvars]


def _unroll(params: dict[str, Any], body: TapPlan, arguments: list[Any], operations: Collection[int]) -> list[Any]:
    """Write out a scan, iteration by iteration."""
    fixed, carried = scan_split(params)
    consts, carry, stacked = arguments[:fixed], arguments[fixed : fixed + carried], arguments[fixed + carried :]
    rows: dict[int, list[Any]] = {}
    order = range(params["length"])
    for k in reversed(order) if params["reverse"] else order:
        row = [jax.lax.index_in_dim(value, k, keepdims=False) for value in stacked]
        outputs = _write_out(body, [*consts, *carry, *row], operations)
        carry, rows[k] = outputs[:carried], outputs[carried:]
    return [*carry, *[jnp.stack(column) for column in zip(*[rows[k] for k in order])]]
