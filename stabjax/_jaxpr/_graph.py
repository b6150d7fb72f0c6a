"""The def-use graph of a program: an equation is a node, a value an edge.

The facts of a value are: whether it depends on the images (active; all others are constants), the parameters it is
computed from, and the role of each of its axes (`_axes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from stabjax._jaxpr._axes import Axes
from stabjax._jaxpr._plan import Frame, TapPlan
from stabjax._jaxpr._primitives import AFFINE, NONLINEAR, REDUCTIONS, VIEWS, WINDOWS
from stabjax._jaxpr._program import Equation, Var, is_literal

_NEUTRAL = {"mul": 1, "div": 1, "add": 0, "sub": 0}
"""The second operand that leaves the first as it is."""


@dataclass(eq=False, slots=True)
class Value:
    """A value of a program.

    Attributes:
        plan, var: the program it stands in, and its variable there (a literal stands for itself).
        active: whether it depends on the images.
        parameters: paths of the parameters that a constant is computed from.
        axes: roles of the axes of an active value.
        node: the equation that defines it; None for an input.
        position: the position of that equation in the graph.
    """

    plan: TapPlan
    var: Var
    active: bool
    parameters: frozenset[str] = frozenset()
    axes: Axes = ()
    node: "Node | None" = None
    position: int = 0

    @property
    def size(self) -> int:
        """Return the number of entries."""
        return getattr(self.var.aval, "size", 1)


@dataclass(eq=False)
class Node:
    """An equation of the def-use graph.

    Attributes:
        equation, plan, index: the equation, its program and its position there.
        scope, frames: the named scopes and the scans around it.
        operands: what it reads; for a scan also what its body returns.
        results: what it defines.
        bodies: graphs of the programs inside a call that is bound whole.
        reason: why the operations of the bodies cannot be tapped.
        is_transparent: whether a single operation inside stands for the call.
        is_activation: whether it is a call of one elementwise function.
    """

    equation: Equation
    plan: TapPlan
    index: int
    scope: tuple[str, ...]
    frames: tuple[Frame, ...]
    operands: tuple[Value, ...]
    results: tuple[Value, ...] = ()
    bodies: tuple["Graph", ...] = ()
    reason: str = ""
    is_transparent: bool = False
    is_activation: bool = False

    @cached_property
    def name(self) -> str:
        """Return the name of the primitive."""
        return self.equation.primitive.name

    @cached_property
    def active(self) -> tuple[Value, ...]:
        """Return the operands that depend on the images."""
        return tuple(value for value in self.operands if value.active)

    @cached_property
    def constants(self) -> tuple[Value, ...]:
        """Return the other operands."""
        return tuple(value for value in self.operands if not value.active)

    @cached_property
    def parameters(self) -> frozenset[str]:
        """Return the paths of the parameters that its constants are computed from."""
        return frozenset().union(*[value.parameters for value in self.constants])

    @cached_property
    def axes(self) -> list[Axes | None]:
        """Return the axes of the operands, None for constants."""
        return [value.axes if value.active else None for value in self.operands]

    @property
    def is_view(self) -> bool:
        """Return whether it only moves or repeats entries."""
        # x * 1 and x + 0, as programs that were generated have them.
        second = self.equation.invars[1:2]
        neutral = _NEUTRAL.get(self.name) if second and is_literal(second[0]) else None
        return self.name in VIEWS or (neutral is not None and bool(second[0].val == neutral))

    @property
    def is_elementwise(self) -> bool:
        """Return whether it maps entries to entries."""
        return self.name in AFFINE or self.name in NONLINEAR

    @property
    def is_affine(self) -> bool:
        """Return whether it is elementwise, and affine in its active operands together."""
        # x * y and 1 / x are not affine in x and y together; x * 2 and x / 2 are.
        if self.name in ("mul", "div"):
            return len(self.active) == 1 and (self.name == "mul" or self.operands[0].active)
        # A select_n by a condition on the images is not affine; one by a mask is.
        return self.name in AFFINE and not (self.name == "select_n" and self.operands[0].active)

    @property
    def is_reduction(self) -> bool:
        """Return whether it reduces axes or windows of one value."""
        return (self.name in REDUCTIONS or self.name in WINDOWS) and len(self.results) == 1


@dataclass(eq=False)
class Graph:
    """The def-use graph of a program.

    Attributes:
        root: outermost named scope, left out of all scopes.
        has_paths: whether any parameter has a path; otherwise every array of several entries counts as one.
        is_nested: whether it is the body of a call that is bound whole.
        mixed_rows: scopes and names of the equations that reduce, contract or reorder the batch axis.
        nodes: the equations in order of execution.
        outputs: what the program returns.
    """

    root: str
    has_paths: bool
    is_nested: bool
    mixed_rows: list[str]
    nodes: list[Node] = field(default_factory=list)
    outputs: Sequence[Value] = ()

    def is_parameter(self, value: Value) -> bool:
        """Return whether a value is a constant that counts as a parameter."""
        return not value.active and (bool(value.parameters) or (not self.has_paths and value.size != 1))
