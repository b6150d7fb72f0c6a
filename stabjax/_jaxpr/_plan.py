"""How to reach the taps of a program: which of its values are taps, and which nested programs have to be entered."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from stabjax._jaxpr._program import Var


@dataclass(frozen=True, eq=False)
class Frame:
    """A scan around an equation.

    Attributes:
        parameters: paths of the parameters that it stacks.
        scope: named scopes around it.
        length: number of iterations.
        reverse: whether the last one runs first.
    """

    parameters: frozenset[str]
    scope: tuple[str, ...]
    length: int
    reverse: bool

    def iterations(self) -> Iterable[int]:
        """Return the positions along the stacked axis, first executed first."""
        return range(self.length - 1, -1, -1) if self.reverse else range(self.length)


@dataclass(eq=False)
class TapPlan:
    """A program within the program: which of its values are taps, and which calls must be entered to reach others.

    Attributes:
        jaxpr: the open program.
        consts: values of its constants (none of them for an inner open program).
        children: plans of the calls that can be entered, by position of the equation.
        taps: operations that stand at a value.
        starts: for the value of an activation, where its elementwise region began, perhaps in another program.
    """

    jaxpr: Any
    consts: Any = ()
    children: dict[int, "TapPlan"] = field(default_factory=dict)
    taps: dict[Var, list[int]] = field(default_factory=dict)
    starts: dict[Var, tuple["TapPlan", Var]] = field(default_factory=dict)

    def reaches(self, operations: Collection[int]) -> bool:
        """Return whether one of these operations stands in the program or in one that can be entered from it."""
        mine = any(operation in operations for found in self.taps.values() for operation in found)
        return mine or any(child.reaches(operations) for child in self.children.values())
