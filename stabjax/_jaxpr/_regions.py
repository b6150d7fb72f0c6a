"""What the patterns have claimed of a program so far, and the elementwise regions in between.

A region begins at its origin, a value that no elementwise equation defines, and runs on through the bias and the scale
of an operation: values belong to one region where they descend elementwise from one origin. The steps since the last
operation are a segment. A segment that something else reads is an activation, or what parameters make of one:

    conv ──> + bias ──> * 0.5 ──> tanh ──> * gain ──> conv
    origin   (conv)     └── activation ┘   (other)
                        └───────── segment ───────┘
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from stabjax._jaxpr._graph import Graph, Node, Value
from stabjax._jaxpr._primitives import region_label

Kind = Literal["conv", "norm", "activation", "pool", "dense", "attention", "residual", "other", "output"]


@dataclass(frozen=True)
class Hidden:
    """Operations that cannot be tapped, and why."""

    operations: tuple[str, ...]
    reason: str


@dataclass(eq=False)
class Operation:
    """An operation of the network.

    Attributes:
        kind, label: what it is, and its name where no parameter names it.
        node: the equation that it was matched at.
        site: its value, behind a bias or a scale.
        parameters: paths of the parameters that name it.
        affine: which of ``scale`` and ``bias`` were taken in.
        start: for an activation, what its segment begins with; None where it begins with several values.
    """

    kind: Kind
    label: str
    node: Node
    site: Value
    parameters: frozenset[str] = frozenset()
    affine: frozenset[str] = frozenset()
    start: Value | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Match:
    """What a pattern says of an equation.

    Attributes:
        kind, label: the operation that begins here; None for a part of a pattern that is no operation by itself.
        extends: the operation that goes on here instead.
        parameters: paths of the parameters applied here.
        affine: whether these are a ``scale`` or a ``bias``.
        reads: values whose segments end here.
        absorbs: operations that become parts of the pattern.
        hides: operations that cannot be tapped.
        region: the value whose region goes on here; without one a new region begins.
    """

    kind: Kind | None = None
    label: str = ""
    extends: Operation | None = None
    parameters: frozenset[str] = frozenset()
    affine: frozenset[str] = frozenset()
    reads: tuple[Value, ...] = ()
    absorbs: tuple[Operation, ...] = ()
    hides: tuple[Hidden, ...] = ()
    region: Value | None = None


@dataclass(frozen=True, eq=False)
class Segment:
    """The steps of a region since the last operation, up to one value.

    Attributes:
        origin: where the region begins.
        start: where the segment begins, with views taken first; None where it begins with several values.
        nonlinear: names of the primitives that are not affine.
        parameters: paths of the parameters applied.
        activation: the value in front of the parameters that are applied to what is not affine, if there are any.
    """

    origin: Value
    start: Value | None
    nonlinear: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    activation: Value | None = None


class Regions:
    """The claims of a program, equation by equation, and the questions that patterns ask."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.operations: dict[Operation, None] = {}
        self.hidden: list[Hidden] = []
        self._claims: dict[Value, Operation] = {}
        self._segments: dict[Value, Segment] = {}
        self._reads: list[Value] = []

    def claim(self, node: Node, match: Match) -> None:
        """Make an equation, and what it absorbs, part of an operation, or begin a region at it."""
        for absorbed in match.absorbs:
            self.operations.pop(absorbed, None)
        self._reads += match.reads
        self.hidden += match.hides
        for result in node.results:
            if not result.active:
                continue
            # A bias, a scale or a centering continues the region of what it is applied to; an operation begins one at
            # its value.
            origin = result if match.region is None else self.segment(match.region).origin
            operation = match.extends
            if operation is None and match.kind is not None:
                operation = Operation(match.kind, match.label, node, result, match.parameters, match.affine)
                self.operations[operation] = None
            elif operation is not None:
                # The value of an operation is that behind its last part.
                operation.site, operation.label = result, match.label or operation.label
                operation.affine |= match.affine
                # A kernel names its layer alone, wherever its bias is kept.
                if operation.kind == "norm" or not operation.parameters:
                    operation.parameters |= match.parameters
            if operation is not None:
                self._claims[result] = operation
            # Parameters that no operation has taken stay with the segment.
            parameters = match.parameters if operation is None else frozenset()
            # A claimed value ends the segment before it, and is the start of the next.
            self._segments[result] = Segment(origin, result, parameters=parameters)

    def grow(self, node: Node) -> None:
        """Add a view, or an elementwise equation that no pattern claims, to its region."""
        (result,) = node.results
        active = node.active
        segments = [self.segment(value) for value in active]
        first = segments[0]
        if node.is_view:
            # Views in front of an activation are no part of it: it starts behind them. One in the middle may change the
            # shape, so that nothing of the start can stand in for the value.
            self._segments[result] = replace(first, start=None if first.nonlinear else result)
            return
        nonlinear = frozenset().union(*[segment.nonlinear for segment in segments])
        activation = None
        if node.is_affine and len(active) == 1:
            # tanh(x) * gain: the activation ends in front of the gain, which makes something else of it.
            applies = nonlinear and any(map(self.graph.is_parameter, node.constants))
            activation = first.activation or (active[0] if applies else None)
        self._segments[result] = Segment(
            origin=first.origin,
            start=first.start if all(segment.start is first.start for segment in segments) else None,
            nonlinear=nonlinear if node.is_affine else nonlinear | {node.name},
            parameters=node.parameters.union(*[segment.parameters for segment in segments]),
            activation=activation,
        )

    # Questions

    def segment(self, value: Value) -> Segment:
        """Return the segment that ends at a value."""
        return self._segments.get(value) or Segment(value, value)

    def share_region(self, values: Iterable[Value]) -> bool:
        """Return whether values belong to one region."""
        return len({self.segment(value).origin for value in values}) == 1

    def joins_regions(self, node: Node) -> bool:
        """Return whether an equation maps entries of two values of different regions to entries."""
        return node.is_elementwise and len(node.active) == 2 and not self.share_region(node.active)

    def goes_on(self, value: Value) -> bool:
        """Return whether the region of a value began before it, so that the value is an elementwise step."""
        return self.segment(value).origin is not value

    def operation(self, value: Value) -> Operation | None:
        """Return the operation whose value this is, up to views and constant factors and offsets."""
        while value not in self._claims and (node := value.node) is not None and self.goes_on(value):
            # Numbers may be added or multiplied in between. A parameter, a difference or a sign makes another value.
            applies = len(node.active) > 1 or any(map(self.graph.is_parameter, node.constants))
            if not node.is_view and (applies or not node.is_affine or node.name in ("sub", "neg")):
                return None
            value = next(iter(node.active))
        return self._claims.get(value)

    def operation_at(self, value: Value) -> Operation | None:
        """Return the operation that begins a region at this origin."""
        return self._claims.get(value)

    def is_activation(self, value: Value) -> bool:
        """Return whether a value is an activation, recognized or still open."""
        operation = self.operation(value)
        return bool(self.segment(value).nonlinear) if operation is None else operation.kind == "activation"

    def statistic(self, node: Node) -> tuple[Value, Value, tuple[Operation, ...]] | None:
        """Return ``x``, a statistic of it and the reductions in between, where an equation takes these two."""
        if not self.joins_regions(node):
            return None
        # Which of the two is the statistic: the one that descends from a reduction of the other's region.
        for x, statistic in (node.active, node.active[::-1]):
            reductions = self.reductions(statistic).get(self.segment(x).origin)
            if reductions:
                return x, statistic, tuple(reductions)
        return None

    def reductions(self, value: Value) -> dict[Value, list[Operation]]:
        """Return the reductions that a value descends from by elementwise steps, by the origin of what they reduce."""
        found, seen, stack = {}, set(), [value]
        while stack:
            value = stack.pop()
            if value in seen or (node := value.node) is None:
                continue
            seen.add(value)
            if node.is_reduction:
                found.setdefault(self.segment(node.active[0]).origin, []).append(self._claims[value])
            # On through a reduction: a variance descends from the mean that was taken off before, too.
            if node.is_reduction or self.goes_on(value):
                stack += node.active
        return found

    # The end

    def close(self) -> list[Operation]:
        """Return all operations in order of execution; segments that are read are operations, too."""
        # What a pool reads ends a segment. Absorbed reductions are no operations any more: what they read belongs to
        # the norm.
        reduced = [operation.node.active[0] for operation in self.operations if operation.node.is_reduction]
        for value in (*self._reads, *self.graph.outputs, *reduced):
            if value.active:
                self._close_segment(value)
        return sorted(self.operations, key=lambda operation: operation.site.position)

    def _close_segment(self, value: Value) -> None:
        """Make the segment that ends at a value an operation, if there is more to it than numbers."""
        segment = self.segment(value)
        if segment.activation is not None:
            self._close_segment(segment.activation)
        value = without_views(value)
        node = value.node
        if node is None or value in self._claims or not (segment.nonlinear or segment.parameters):
            return
        if segment.nonlinear and segment.activation is None:
            label = region_label(segment.nonlinear)
            operation = Operation("activation", label, node, value, segment.parameters, start=segment.start)
        else:
            # A product or sum with parameters that belong to no layer: behind an activation, or by themselves.
            operation = Operation("other", "affine", node, value, segment.parameters)
        self.operations[operation] = None
        self._claims[value] = operation


def without_views(value: Value) -> Value:
    """Return the value that a view, or a view of a view, was taken of."""
    while value.node is not None and value.node.is_view:
        value = value.node.operands[0]
    return value
