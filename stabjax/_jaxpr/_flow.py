"""What is known of a value while a program is read: where it comes from and which operation is still open on it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from stabjax._jaxpr._axes import Axes
from stabjax._jaxpr._program import Var


class Entry:
    """Where an elementwise region starts; compared by identity."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A scan around an operation: the path its parameters share, and its iterations in order of execution."""

    prefix: str
    length: int
    reverse: bool

    def iterations(self) -> Iterable[int]:
        """Return the positions along the stacked axis, first executed first."""
        return range(self.length - 1, -1, -1) if self.reverse else range(self.length)


@dataclass(eq=False)
class Plan:
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
    children: dict[int, "Plan"] = field(default_factory=dict)
    taps: dict[Var, list[int]] = field(default_factory=dict)
    starts: dict[Var, tuple["Plan", Var]] = field(default_factory=dict)


@dataclass(eq=False)
class Operation:
    """A candidate tap. Its site moves while a bias, a scale or a mean's divisor is taken in.

    ``dropped`` is set when it turns out to be part of something larger, as the mean inside a norm. ``held`` are values
    that end an elementwise region only if the operation stays. ``start`` is where the region of an activation began.
    """

    kind: str
    label: str
    site: tuple[Plan, Var]
    order: int
    axes: Axes
    scope: tuple[str, ...]
    frames: tuple[Frame, ...]
    paths: frozenset[str] = frozenset()
    scaled: bool = False
    biased: bool = False
    dropped: bool = False
    held: tuple["Flow", ...] = ()
    start: tuple[Plan, Var] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Flow:
    """What is known of one value.

    Attributes:
        active: whether it depends on the images.
        paths: parameters it is made of (for an activation: those applied affinely since the region began).
        scalar: whether it has a single entry.
        root, inverse_root: whether it descends from a square root, as a deviation does, or from its inverse.
        entries: beginnings of the elementwise region it belongs to; centring a region adds one.
        nonlinear: names of the non-affine primitives since the region began.
        before: the value before parameters were applied to a finished non-affine region.
        start: the value at which the region began, with the views that were taken of it before anything else; None
            where it has several.
        site, order: the value itself, with views taken off, and when it was made.
        axes, site_axes: what its axes are, here and before the views.
        operation: the operation whose value this is, up to views and constant factors.
        statistics: reductions it descends from by elementwise steps, each with the region that was reduced.
        source: the region it was cut from, for slices over space.
    """

    active: bool = True
    paths: frozenset[str] = frozenset()
    scalar: bool = False
    root: bool = False
    inverse_root: bool = False
    entries: frozenset[Entry] = frozenset()
    nonlinear: frozenset[str] = frozenset()
    before: "Flow | None" = None
    start: tuple[Plan, Var] | None = None
    site: tuple[Plan, Var] | None = None
    order: int = 0
    axes: Axes = ()
    site_axes: Axes = ()
    scope: tuple[str, ...] = ()
    frames: tuple[Frame, ...] = ()
    operation: Operation | None = None
    statistics: frozenset[tuple[Entry, Operation]] = frozenset()
    source: frozenset[Entry] = frozenset()

    def reduced(self, other: "Flow") -> list[Operation]:
        """Return the reductions of the other's region that this value descends from."""
        return [operation for entry, operation in self.statistics if entry in other.entries]


def passive(aval: Any, flows: Iterable[Flow] = (), *, root: bool = False, inverse_root: bool = False) -> Flow:
    """Return a value made of parameters and constants alone."""
    paths = frozenset().union(*[flow.paths for flow in flows])
    scalar = getattr(aval, "size", 1) == 1
    known = bool(paths) or not scalar
    return Flow(active=False, paths=paths, scalar=scalar, root=root and known, inverse_root=inverse_root and known)


def common_path(paths: Iterable[str]) -> str:
    """Return the module that the parameters share: ``blocks/2`` of ``blocks/2/kernel`` and ``blocks/2/bias``."""
    split = [path.split("/") for path in paths]
    if not split:
        return ""
    shared = []
    for parts in zip(*[parts[:-1] for parts in split], strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) or (split[0][0] if len(split) == 1 else "")


def stacked_module(stacked: frozenset[str], paths: frozenset[str], around: str) -> str:
    """Return the module that a scan runs over: the outermost one all of whose parameters it stacks.

    Programs know arrays, not modules: ``blocks/conv/kernel`` may come from a stack of blocks or from a stacked
    convolution. So the answer follows from the paths alone, alike in every framework.

    Args:
        stacked: paths of the parameters that the scan stacks.
        paths: paths of all parameters.
        around: module that the scan around this one runs over, or ""; the answer lies inside of it, if it can.
    """
    parts = common_path(stacked).split("/")
    outer = around.split("/") if around else []
    least = len(outer) + 1 if len(parts) > len(outer) and parts[: len(outer)] == outer else 1
    while len(parts) > least:
        inside = "/".join(parts[:-1]) + "/"
        if not all(path in stacked for path in paths if path.startswith(inside)):
            break
        parts.pop()
    return "/".join(parts)
