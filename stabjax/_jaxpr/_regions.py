"""Elementwise regions, and the operations that are recognised by what meets in them.

The conventions: a bias or scale is taken into the operation it follows; a norm is a product with a descendant of an
inverse root (or a quotient by a root); an activation is a single-entry, non-affine region; a residual is a sum of two
activations of different origin.
"""

from dataclasses import dataclass, replace
from typing import Any

from stabjax._jaxpr import _axes
from stabjax._jaxpr._flow import Entry, Flow, Frame, Operation, Plan
from stabjax._jaxpr._primitives import NONLINEAR, region_label, root_of
from stabjax._jaxpr._program import Equation


@dataclass(frozen=True)
class Hidden:
    """Operations that cannot be tapped, and why."""

    operations: tuple[str, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Place:
    """Where an equation stands."""

    equation: Equation
    index: int
    plan: Plan
    scope: tuple[str, ...]
    frames: tuple[Frame, ...]


class Regions:
    """What a reader has found so far, and the steps that grow, end and join elementwise regions."""

    def __init__(self, *, pathless: bool, root: str = "", parameters: frozenset[str] = frozenset()) -> None:
        self.pathless = pathless
        self.root = root
        self.parameters = parameters
        self.outermost = True
        self.clock = 0
        self.operations: list[Operation] = []
        self.hidden: list[Hidden] = []
        self.mixed_rows: list[str] = []
        self._fired: set[tuple[int, Any]] = set()

    def _fresh(self, place: Place, axes: _axes.Axes, *, output: int = 0, **known: Any) -> Flow:
        """Return an activation at which a new elementwise region begins."""
        return Flow(
            entries=frozenset({Entry()}),
            start=(place.plan, place.equation.outvars[output]),
            site=(place.plan, place.equation.outvars[output]),
            order=self.clock,
            axes=axes,
            site_axes=axes,
            scope=place.scope,
            frames=place.frames,
            **known,
        )

    def _operation(
        self, place: Place, kind: str, label: str, axes: _axes.Axes, *, output: int = 0, **known: Any
    ) -> Operation:
        operation = Operation(
            kind=kind,
            label=label,
            site=(place.plan, place.equation.outvars[output]),
            order=self.clock,
            axes=axes,
            scope=place.scope,
            frames=place.frames,
            **known,
        )
        self.operations.append(operation)
        return operation

    def _made(self, place: Place, kind: str, label: str, axes: _axes.Axes, *, output: int = 0, **known: Any) -> Flow:
        """Return a fresh activation that is the value of a new operation."""
        operation = self._operation(place, kind, label, axes, output=output, **known)
        return self._fresh(place, axes, output=output, operation=operation)

    def _move(self, place: Place, operation: Operation, flow: Flow, paths: frozenset[str] = frozenset()) -> Flow:
        """Take one more step into an open operation."""
        operation.site, operation.order = (place.plan, place.equation.outvars[0]), self.clock
        if operation.kind == "norm" or not operation.paths:
            operation.paths |= paths  # a kernel names its layer alone, wherever its bias is kept
        operation.axes = flow.axes
        moved = self._fresh(place, flow.axes, operation=operation, statistics=flow.statistics, source=flow.source)
        return replace(moved, entries=moved.entries | flow.entries)

    def fire(self, flow: Flow) -> None:
        """End an elementwise region at a value: it becomes a tap if the region is more than affine."""
        if flow.before is not None:
            self.fire(flow.before)
        if not flow.active or flow.site is None or not (flow.nonlinear or flow.paths):
            return
        plan, var = flow.site
        if (id(plan), var) in self._fired:
            return
        self._fired.add((id(plan), var))
        activation = bool(flow.nonlinear) and flow.before is None
        self.operations.append(
            Operation(
                kind="activation" if activation else "other",
                label=region_label(flow.nonlinear) if activation else "affine",
                site=flow.site,
                order=flow.order,
                axes=flow.site_axes,
                scope=flow.scope,
                frames=flow.frames,
                paths=flow.paths,
                start=flow.start if activation else None,
            )
        )

    def _is_parameter(self, flow: Flow) -> bool:
        return not flow.active and (bool(flow.paths) or (self.pathless and not flow.scalar))

    def _elementwise(self, place: Place, flows: list[Flow]) -> Flow:
        active = [flow for flow in flows if flow.active]
        if len(active) == 1 or frozenset.intersection(*[flow.entries for flow in active]):
            return self._member(place, flows, active)
        if len(active) == 2:
            a, b = active
            if b.reduced(a) or a.reduced(b):
                return self._feedback(place, *((a, b) if b.reduced(a) else (b, a)), denominator=flows[-1])
            if {entry for entry, _ in a.statistics} & {entry for entry, _ in b.statistics}:
                return self._fresh(place, a.axes, statistics=a.statistics | b.statistics, paths=a.paths | b.paths)
            name = place.equation.primitive.name
            if a.source & b.source and name in ("max", "min", "add"):
                return self._slices(place, a, b)
            if name in ("add", "add_any"):
                self.fire(a)
                self.fire(b)
                return self._made(place, "residual", "add", _wider(a, b).axes)
        return self._other(place, flows, place.equation.primitive.name)

    def _member(self, place: Place, flows: list[Flow], active: list[Flow]) -> Flow:
        """Take a step within one region: perhaps the bias or scale of an open operation, perhaps a norm."""
        name = place.equation.primitive.name
        flow = _wider(*active)
        others = [other for other in flows if not other.active]
        parameters = [other for other in others if self._is_parameter(other)]
        paths = frozenset().union(*[other.paths for other in others])
        single = len(active) == 1
        operation = flow.operation if single else None
        if single and others and not (flow.inverse_root or flow.root):
            other = others[0]
            if (name == "mul" and other.inverse_root) or (name == "div" and other.root and flows[0] is flow):
                self.fire(flow.before or replace(flow, paths=frozenset()))
                return self._made(place, "norm", "norm", flow.axes, paths=paths)
        if operation is not None and others:
            if name in ("add", "add_any") and operation.kind in ("conv", "dense", "norm"):
                if parameters and not operation.biased and not flow.paths:
                    operation.biased = True
                    return self._move(place, operation, flow, paths)
            elif name == "mul" and operation.kind == "norm" and parameters:
                if not operation.scaled and not operation.biased:
                    operation.scaled = True
                    return self._move(place, operation, flow, paths)
            elif name in ("mul", "div") and "sum" in operation.label and not operation.scaled:
                operation.label = operation.label.replace("sum_pool", "avg_pool")
                operation.scaled = True
                return self._move(place, operation, flow)
        nonlinear = frozenset().union(*[other.nonlinear for other in active])
        added = frozenset(
            {name}
            if name in NONLINEAR
            or (name in ("mul", "div") and not single)
            or (name == "div" and flows[1].active)
            or (name == "select_n" and flows[0].active)
            else ()
        )
        root, inverse = root_of(place.equation)
        roots = any(other.root for other in flows)
        before = flow.before if single and not added else None
        if before is None and single and not added and parameters and nonlinear:
            before = flow
        return Flow(
            paths=flow.paths.union(*[other.paths for other in (*active, *parameters)]),
            root=root or (roots and name in ("add", "mul", "max")),
            inverse_root=inverse
            or (name == "div" and flows[1].root and not flows[0].root)
            or (name == "mul" and any(other.inverse_root for other in flows)),
            entries=frozenset.union(*[other.entries for other in active]),
            nonlinear=nonlinear | added,
            before=before,
            start=flow.start if all(other.start == flow.start for other in active) else None,
            site=(place.plan, place.equation.outvars[0]),
            order=self.clock,
            axes=flow.axes,
            site_axes=flow.axes,
            scope=place.scope,
            frames=place.frames,
            operation=operation if not (parameters or added or name in ("sub", "neg")) else None,
            statistics=frozenset().union(*[other.statistics for other in active]),
            source=flow.source,
        )

    def _feedback(self, place: Place, main: Flow, statistic: Flow, *, denominator: Flow) -> Flow:
        """Let an activation meet a statistic of itself: centering, a norm or a softmax; the reductions are no pools."""
        name = place.equation.primitive.name
        for operation in statistic.reduced(main):
            operation.dropped = True
        if name == "sub" and "log" in statistic.nonlinear:
            return self._made(place, "other", "log_softmax", main.axes)
        if name in ("add", "add_any", "sub"):
            self.fire(main)
            centred = self._fresh(place, main.axes, paths=statistic.paths, statistics=main.statistics)
            return replace(centred, entries=centred.entries | main.entries)
        if (name == "mul" and statistic.inverse_root) or (
            name == "div" and statistic.root and denominator is statistic
        ):
            self.fire(main)
            return self._made(place, "norm", "norm", main.axes, paths=statistic.paths)
        if "exp" not in main.nonlinear:
            self.fire(main)
        label = "softmax" if "exp" in main.nonlinear else name
        return self._made(place, "other", label, main.axes, paths=statistic.paths)

    def _slices(self, place: Place, a: Flow, b: Flow) -> Flow:
        """Join slices of one activation pairwise: a pool written out."""
        name = place.equation.primitive.name
        pools = [flow.operation for flow in (a, b) if flow.operation is not None]
        for extra in pools[1:]:
            extra.dropped = True
        label = {"max": "max_pool", "min": "min_pool"}.get(name, "sum_pool")
        operation = pools[0] if pools else self._operation(place, "pool", label, a.axes)
        return self._move(place, operation, replace(a, statistics=frozenset()))

    def _other(
        self, place: Place, flows: list[Flow], label: str, axes: _axes.Axes | None = None, *, output: int = 0
    ) -> Flow:
        """Return an operation that is none of the known kinds."""
        active = [flow for flow in flows if flow.active]
        for flow in active:
            self.fire(flow)
        if axes is None:
            aval = place.equation.outvars[output].aval
            rank = len(getattr(aval, "shape", ()))
            axes = next((flow.axes for flow in active if len(flow.axes) == rank), _axes.unknown(aval))
        paths = frozenset().union(*[flow.paths for flow in flows if not flow.active])
        return self._made(place, "other", label, axes, output=output, paths=paths)


def _wider(*flows: Flow) -> Flow:
    """Return the activation whose axes are known best."""
    return max(flows, key=lambda flow: (len(flow.entries), _axes.known(flow.axes)))
