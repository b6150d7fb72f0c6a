"""Values of a program that are made of parameters, and which of their entries are zero by construction.

A masked kernel is a product with a table of zeros and ones, or a choice between numbers and zero. The table may be a
constant of the program or a parameter itself, as in Flax.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from stabjax._jaxpr._constants import LARGEST, Constant, literal


class Parameter:
    """A value made of parameters: any numbers, but not of the images."""

    value = None


PARAMETER = Parameter()


class Given(Parameter):
    """A parameter as it is given: its numbers count only where they mask another one."""

    def __init__(self, numbers: Any, index: tuple[int, ...] = ()) -> None:
        self.numbers, self.index = numbers, index

    def __getitem__(self, k: int) -> "Given":
        return Given(self.numbers, (*self.index, k))

    @cached_property
    def nonzero(self) -> np.ndarray | None:
        """Where a mask, of zeros and ones, is not zero; all over if it is none; None if it cannot be told."""
        if isinstance(self.numbers, Tracer) or not isinstance(self.numbers, np.ndarray | jax.Array):
            return None
        table = np.asarray(self.numbers)[self.index]
        binary = table.size <= LARGEST and _is_binary(table.ravel()[:8]) and _is_binary(table)
        return table != 0 if binary and table.any() else np.ones(table.shape, bool)


def _is_binary(numbers: np.ndarray) -> bool:
    return bool(((numbers == 0) | (numbers == 1)).all())


class Masked(Parameter):
    """A parameter with entries that are zero whatever its numbers are."""

    def __init__(self, equation: Any, operands: Sequence[Any], index: tuple[int, ...] = ()) -> None:
        self.equation, self.operands, self.index = equation, operands, index

    def __getitem__(self, k: int) -> "Masked":
        return Masked(self.equation, self.operands, (*self.index, k))

    @cached_property
    def nonzero(self) -> np.ndarray | None:
        """Where it may differ from zero; None if it cannot be told."""
        tables = [_table(operand, atom.aval) for operand, atom in zip(self.operands, self.equation.invars)]
        made = Constant(self.equation, [literal(table) for table in tables]).value
        return None if made is None else made[self.index] != 0


def _table(operand: Any, aval: Any) -> np.ndarray | None:
    if isinstance(operand, Constant):
        return operand.value
    return operand.nonzero if isinstance(operand, Given | Masked) else np.ones(aval.shape, bool)


_KEEPING = frozenset(
    "neg convert_element_type copy reshape transpose squeeze expand_dims broadcast_in_dim rev slice pad".split()
)


def made_of_parameters(equation: Any, operands: Sequence[Any]) -> Parameter:
    """The output of an operation on parameters and constants."""
    name = equation.primitive.name
    masked = any(isinstance(operand, Masked) for operand in operands)
    tables = masks(equation, operands)
    if name == "convert_element_type" and isinstance(operands[0], Given):
        return operands[0]
    if name == "mul" and all(isinstance(operand, Given) for operand in operands):
        same = equation.invars[0].aval.shape == equation.invars[1].aval.shape
        return Masked(equation, operands) if same else PARAMETER
    known = [PARAMETER if isinstance(operand, Given) else operand for operand in operands]
    if (
        (name in _KEEPING and masked)
        or (name == "div" and isinstance(operands[0], Masked))
        or (name in ("mul", "concatenate") and (masked or tables))
        or (name in ("select_n", "pad") and isinstance(operands[name == "pad"], Constant))
    ):
        return Masked(equation, known)
    return PARAMETER


def masks(equation: Any, operands: Sequence[Any]) -> bool:
    """Whether one of the operands may be a mask."""
    return any(
        isinstance(operand, Masked) or (isinstance(operand, Constant) and getattr(atom.aval, "size", 1) > 1)
        for operand, atom in zip(operands, equation.invars)
    )


def is_dense(weights: Constant | Parameter) -> bool:
    """Whether no weight is zero by construction, as far as is known."""
    if isinstance(weights, Parameter) and not isinstance(weights, Masked):
        return True
    table = nonzero(weights)
    return table is not None and bool(table.all())


def nonzero(weights: Constant | Parameter) -> np.ndarray | None:
    """Where weights may differ from zero; None if it cannot be told."""
    if isinstance(weights, Masked):
        return weights.nonzero
    return None if weights.value is None else weights.value != 0
