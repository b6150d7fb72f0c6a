"""What an abstract interpretation of a network is made of: a domain of values, and the steps that its rules see.

A program is followed with a value of the domain in place of every array:

    images   kernel       images: active, they depend on the input
        |     |           kernel: passive, it does not
        conv----   bias   an equation with an active operand goes to the rules of the domain (`Domain.apply`),
          |         |     one without is folded (`Domain.fold`)
          add--------

A rule sees a `Step` and never an equation of JAX. The loop over the equations is in `_interpreter`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from stabjax._jaxpr._plan import TapPlan
from stabjax._jaxpr._primitives import is_activation
from stabjax._jaxpr._program import CALLS, JIT, Equation, body, is_dropped, is_literal, opened, run

if TYPE_CHECKING:
    from stabjax._jaxpr._interpreter import Interpreter

Value = Any
"""What stands in place of an array: active or passive, as the domain tells them apart."""


class Step:
    """One operation of a program, as a rule sees it.

    Attributes:
        name: of the primitive. Scans and conditionals add three of their own, without parameters but ``axis``:
            ``"slice"`` (one iteration's part of a stacked operand), ``"stack"`` (the outputs of all iterations), and
            ``"branches"`` (the results of several branches, one of which is chosen while the program runs).
        params: the primitive's parameters.
    """

    def __init__(
        self,
        interpreter: "Interpreter",
        equation: Equation,
        child: TapPlan | None = None,
        *,
        name: str | None = None,
        params: dict[str, Any] | None = None,
        shapes: Sequence[tuple[int, ...]] | None = None,
        result: Any = None,
    ) -> None:
        self.name: str = equation.primitive.name if name is None else name
        self.params: dict[str, Any] = equation.params if params is None else params
        self._interpreter, self._equation, self._child = interpreter, equation, child
        self._shapes = None if shapes is None else tuple(shapes)
        self._results = None if result is None else (result,)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the operands."""
        if self._shapes is None:
            # Made when asked for: not every rule needs shapes, and programs have many steps.
            self._shapes = tuple([getattr(atom.aval, "shape", ()) for atom in self._equation.invars])
        return self._shapes

    @property
    def results(self) -> tuple[Any, ...]:
        """Types of the outputs, with their ``shape``, ``dtype`` and ``size`` as a `jax.ShapeDtypeStruct` has them."""
        if self._results is None:
            avals = [var.aval for var in self._equation.outvars]
            # The type of an array has both; that of anything else, as of a token, counts as a truth.
            self._results = tuple([a if hasattr(a, "dtype") else jax.ShapeDtypeStruct((), bool) for a in avals])
        return self._results

    @property
    def where(self) -> str:
        """The named scopes around the operation, and the last tap before it, for messages."""
        return self._interpreter.where(self._equation)

    @property
    def is_jit(self) -> bool:
        """Whether this is a plain call, whose program may be entered."""
        return self.name in JIT

    @property
    def is_activation(self) -> bool:
        """Whether this is a call without taps inside whose program is elementwise throughout and not affine."""
        # A plan inside means that the call was inlined, as there may be taps in it.
        return self.name in CALLS and self._child is None and is_activation(body(self._equation))

    def apply(self, *arrays: Any) -> list[Any]:
        """Apply the primitive to any arrays, also in place of literals; of any dtype that it takes."""
        outputs = self._equation.primitive.bind(*arrays, **self.params)
        return list(outputs) if self._equation.primitive.multiple_results else [outputs]

    def compute(self, *arrays: Any) -> list[Any]:
        """Run the equation as it was traced, at once where all operands are known; None for outputs that are not used.

        At once also inside of a ``jit`` that traces the parameters, so that constants of the program stay known.
        """
        if any(isinstance(array, Tracer) for array in arrays):
            return self._run(arrays)
        # Inside of a trace every primitive, also of known arrays, would be traced, and its value not be known.
        with jax.ensure_compile_time_eval():
            return self._run(arrays)

    def _run(self, arrays: Sequence[Any]) -> list[Any]:
        equation = self._equation
        # A literal stands in the equation: what was given for it is the same number.
        values = {atom: value for atom, value in zip(equation.invars, arrays, strict=True) if not is_literal(atom)}
        run(self._interpreter.jaxpr, [equation], values)
        return [None if is_dropped(var) else values[var] for var in equation.outvars]

    def enter(self, operands: Sequence[Value], *, constant: Callable[[Any], Value] | None = None) -> list[Value]:
        """Interpret the program inside a call.

        Args:
            operands: its inputs.
            constant: what stands for the arrays that the program holds itself; by default what the domain says.
        """
        # A bare plan: taps inside of a call that is entered here are not recorded.
        return self._interpreter.run(TapPlan(*opened(body(self._equation))), operands, constant=constant)


class Domain:
    """What stands in place of arrays, and what every operation does to it.

    A subclass tells active values (`is_active`) and gives their rules (`apply`). Here, passive values are arrays and
    are computed; `fold`, `literal`, `constant`, `branch`, `row`, `stack` and `choose` go together, and a domain with
    passive values of another kind overrides them all. The last three get active values, too.
    """

    def is_active(self, value: Value) -> bool:
        """Return whether a value depends on the images."""
        raise NotImplementedError

    def apply(self, step: Step, operands: list[Value]) -> list[Value]:
        """Return the outputs of an operation, one of whose operands at least is active."""
        raise NotImplementedError

    def apply_call(self, step: Step, operands: list[Value]) -> list[Value] | None:
        """Return the outputs of a call or conditional as of one operation; None to enter it."""
        return None

    def fold(self, step: Step, operands: list[Value]) -> list[Value]:
        """Return the outputs of an operation, none of whose operands is active."""
        return step.compute(*operands)

    def literal(self, value: Any) -> Value:
        """Return what stands for a literal."""
        return np.asarray(value)

    def constant(self, value: Any) -> Value:
        """Return what stands for an array that the program holds; None is one that is not known."""
        return value

    def branch(self, index: Value, count: int) -> int | None:
        """Return which of ``count`` branches is taken, if that is known."""
        # As XLA does it: an index outside of the branches takes the first or the last.
        known = not self.is_active(index) and not isinstance(index, Tracer)
        return int(np.clip(index, 0, count - 1)) if known else None

    def choose(self, step: Step, index: Value, alternatives: list[Value]) -> Value:
        """Return an output of a conditional from those of its branches."""
        return jax.lax.select_n(jnp.asarray(index, jnp.int32), *alternatives)

    def row(self, step: Step, value: Value, k: int) -> Value:
        """Return row ``k`` of a value that a scan reads row by row."""
        return value[k]

    def stack(self, step: Step, rows: list[Value]) -> Value:
        """Return the rows that a scan made as one value."""
        return jnp.stack(rows)

    def is_same(self, one: Sequence[Value], two: Sequence[Value]) -> bool:
        """Return whether an iteration on these inputs would repeat the one before, and may be skipped."""
        return False

    def at_tap(self, value: Value) -> Value:
        """Return what goes on from a tap in place of an active value that stands there."""
        return value

    def at_activation(self, value: Value, start: Value) -> Value:
        """Return what goes on from an activation, the elementwise region of which began at ``start``."""
        return value
