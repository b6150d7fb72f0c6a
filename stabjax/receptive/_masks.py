"""Values of a program that do not depend on the images, and which entries of parameters are zero by construction.

A masked kernel is a product with a table of zeros and ones, or a choice between numbers and zero. The table may be a
constant of the program or a parameter itself, as in Flax:

    kernel (any numbers)      mask            product: zero where the mask is
        a b c                0 1 0                0 b 0
        d e f        *       1 1 1       =        d e f
        g h i                0 1 0                0 h 0
"""

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stabjax._jaxpr import IDENTITIES, RESHAPES, Domain, Step
from stabjax.receptive._constants import LARGEST, Constant, evaluate


class Parameter:
    """A value made of parameters: any numbers, but not of the images."""

    value = None


PARAMETER = Parameter()


class GivenParameter(Parameter):
    """A parameter as it is given: its numbers count only where they mask another one."""

    def __init__(self, numbers: Any, index: tuple[int, ...] = ()) -> None:
        self.numbers, self.index = numbers, index

    def __getitem__(self, k: int) -> "GivenParameter":
        return GivenParameter(self.numbers, (*self.index, k))

    @cached_property
    def nonzero(self) -> np.ndarray | None:
        """Where a mask, of zeros and ones, is not zero; all over if it is none; None if it cannot be told."""
        if isinstance(self.numbers, Tracer) or not isinstance(self.numbers, np.ndarray | jax.Array):
            return None
        table = np.asarray(self.numbers)[self.index]
        # A few entries tell most kernels from masks.
        binary = table.size <= LARGEST and _is_binary(table.ravel()[:8]) and _is_binary(table)
        return table != 0 if binary and table.any() else np.ones(table.shape, bool)


def _is_binary(numbers: np.ndarray) -> bool:
    return bool(((numbers == 0) | (numbers == 1)).all())


class MaskedParameter(Parameter):
    """A parameter with entries that are zero whatever its numbers are: an output of an operation on masks."""

    def __init__(self, step: Step, operands: Sequence["Passive"], index: tuple[int, ...] = ()) -> None:
        self.step, self.operands, self.index = step, operands, index

    def __getitem__(self, k: int) -> "MaskedParameter":
        return MaskedParameter(self.step, self.operands, (*self.index, k))

    @cached_property
    def nonzero(self) -> np.ndarray | None:
        """Where it may differ from zero; None if it cannot be told."""
        # The operation itself, on tables of zeros and ones: a one stands for any number.
        tables = [_table(operand, shape) for operand, shape in zip(self.operands, self.step.shapes)]
        made = evaluate(self.step, tables)
        return None if made is None or made[0] is None else made[0][self.index] != 0


Passive = Constant | Parameter
"""What does not depend on the images."""


def _table(operand: Passive, shape: tuple[int, ...]) -> np.ndarray | None:
    if isinstance(operand, Constant):
        return operand.value
    known = isinstance(operand, GivenParameter | MaskedParameter)
    # A one stands for any number: nothing here is zero by construction.
    table = operand.nonzero if known else np.ones(shape, bool)
    return None if table is None else table.astype(np.float32)


_KEEPS_ZEROS = RESHAPES | {"neg", "slice", "pad"}


def parameter_of(step: Step, operands: Sequence[Passive]) -> Parameter:
    """Return the output of an operation on parameters and constants."""
    name = step.name
    if name == "mul" and all(isinstance(operand, GivenParameter) for operand in operands):
        # A kernel and a mask that is a parameter, in either order.
        return MaskedParameter(step, operands) if step.shapes[0] == step.shapes[1] else PARAMETER
    masked = any(isinstance(operand, MaskedParameter) for operand in operands)
    # A given parameter masks only what it is multiplied by. Elsewhere its zeros and ones are numbers like others.
    known = [PARAMETER if isinstance(operand, GivenParameter) else operand for operand in operands]
    if (
        # Where zeros stay zeros, or are made: entries moved or negated; divided; multiplied by a mask, or joined with
        # one; chosen by a known table (operand 0 of select_n), or padded by a known number (operand 1 of pad).
        (name in _KEEPS_ZEROS and masked)
        or (name == "div" and isinstance(operands[0], MaskedParameter))
        or (name in ("mul", "concatenate") and may_mask(step, operands))
        or (name in ("select_n", "pad") and isinstance(operands[name == "pad"], Constant))
    ):
        return MaskedParameter(step, known)
    return PARAMETER


def may_mask(step: Step, operands: Sequence[Passive]) -> bool:
    """Return whether one of the operands may be a mask."""
    return any(
        isinstance(operand, MaskedParameter) or (isinstance(operand, Constant) and prod(shape) > 1)
        for operand, shape in zip(operands, step.shapes)
    )


def is_dense(weights: Passive) -> bool:
    """Return whether no weight is zero by construction, as far as is known."""
    if isinstance(weights, Parameter) and not isinstance(weights, MaskedParameter):
        return True
    table = nonzero(weights)
    return table is not None and bool(table.all())


def nonzero(weights: Passive) -> np.ndarray | None:
    """Return where weights may differ from zero; None if it cannot be told."""
    if isinstance(weights, MaskedParameter):
        return weights.nonzero
    return None if weights.value is None else weights.value != 0


class MaskDomain(Domain):
    """A domain in which what does not depend on the images is a constant or a parameter, and parameters may be masked.

    Subclasses give the active values and their rules.
    """

    def is_active(self, value: Any) -> bool:
        """Return whether a value depends on the images."""
        return not isinstance(value, (Constant, Parameter))  # a union would take three times as long

    def fold(self, step: Step, operands: list[Passive]) -> list[Any]:
        """Return constants of constants, and of parameters parameters."""
        if not any(isinstance(operand, Parameter) for operand in operands):
            return [Constant(step, operands, k) for k in range(len(step.results))]
        if step.name in IDENTITIES and len(operands) == len(step.results):
            return operands
        # A mask may be multiplied inside of a jit, as `jnp.where` is one.
        if step.is_jit and may_mask(step, operands):
            return step.enter(operands)
        return [parameter_of(step, operands)] * len(step.results)

    def literal(self, value: Any) -> Constant:
        """Return a constant."""
        return Constant.of(value)

    def constant(self, value: Any) -> Passive:
        """Return a constant of a table of integers, which counts by its values, and a parameter of a kernel."""
        if value is None:
            return PARAMETER
        # Integers and truths are indices and masks. Floating arrays may be weights: all that is read of them is
        # whether they are masks.
        known = isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, Tracer)
        if known and (jnp.issubdtype(value.dtype, jnp.integer) or value.dtype == bool):
            return Constant.of(value)
        return GivenParameter(value)

    def branch(self, index: Any, count: int) -> int | None:
        """Return None: of a conditional, any branch may be taken."""
        return None

    def row(self, step: Step, value: Any, k: int) -> Any:
        """Return row ``k`` of a passive value."""
        if isinstance(value, Constant):
            return Constant.of(None if value.value is None else value.value[k])
        return value[k] if isinstance(value, GivenParameter | MaskedParameter) else value

    def stack(self, step: Step, rows: list[Any]) -> Any:
        """Return a parameter, of passive rows."""
        return PARAMETER
