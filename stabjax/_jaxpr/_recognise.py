"""Recognise the operations of a network in its program: layers, pools, and the calls they stand in.

A conv or dense is named by its kernel's parameters. A pool is a window or spatial reduction that is not fed back into
its own input. What elementwise steps make of these is in `_regions`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from stabjax._jaxpr import _axes
from stabjax._jaxpr._flow import Entry, Flow, Frame, Operation, Plan, passive, stacked_module
from stabjax._jaxpr._primitives import (
    ACTIVATIONS,
    AFFINE,
    NONLINEAR,
    REDUCTIONS,
    SELECTIONS,
    VIEWS,
    WINDOWS,
    is_activation,
    root_of,
)
from stabjax._jaxpr._program import (
    CUSTOM,
    JIT,
    REMAT,
    Jaxpr,
    body,
    call_name,
    default_branch,
    inner_programs,
    is_dropped,
    is_literal,
    opened,
    scan_split,
    scope_of,
)
from stabjax._jaxpr._regions import Hidden, Place, Regions


class Reader(Regions):
    """Reads one program, equation by equation; `operations` and `hidden` are what it found."""

    # Reading

    def read(
        self,
        plan: Plan,
        flows: Sequence[Flow],
        scope: tuple[str, ...] = (),
        frames: tuple[Frame, ...] = (),
    ) -> list[Flow]:
        """Follow the values of a program from its inputs to its outputs."""
        jaxpr = plan.jaxpr
        known = dict(zip(jaxpr.invars, flows, strict=True)) | {var: passive(var.aval) for var in jaxpr.constvars}

        def lookup(atom: Any) -> Flow:
            return passive(atom.aval) if is_literal(atom) else known[atom]

        for index, equation in enumerate(jaxpr.eqns):
            self.clock += 1
            own = scope_of(equation)
            if not scope and own[:1] == (self.root,):
                own = own[1:]
            place = Place(equation, index, plan, scope + own, frames)
            known |= zip(equation.outvars, self._step(place, [lookup(atom) for atom in equation.invars]), strict=True)
        return [lookup(atom) for atom in jaxpr.outvars]

    def _step(self, place: Place, flows: list[Flow]) -> list[Flow]:
        equation = place.equation
        name = equation.primitive.name
        active = [flow for flow in flows if flow.active]
        if not active:
            root, inverse = root_of(equation)
            inverse |= name == "div" and flows[1].root
            carried = name in ("mul", "div") or name in VIEWS
            return [
                passive(
                    var.aval,
                    flows,
                    root=root or (carried and any(flow.root for flow in flows)),
                    inverse_root=inverse or (carried and any(flow.inverse_root for flow in flows)),
                )
                for var in equation.outvars
            ]
        if flows[0].active and any(_axes.role(flows[0].axes[k]) == "b" for k in _axes.crossed(equation)):
            self.mixed_rows.append("/".join((*place.scope, name)))
        if name in JIT | REMAT:
            return self._call(place, flows)
        if name in CUSTOM:
            return self._closed(place, flows, body(equation), f"inside {call_name(equation)}, which is bound whole")
        if name == "cond":
            return self._cond(place, flows)
        if name == "scan":
            return self._scan(place, flows)
        if name == "conv_general_dilated":
            return self._convolution(place, flows)
        if name == "dot_general":
            return self._product(place, flows)
        if (name in REDUCTIONS or name in WINDOWS) and len(equation.outvars) == 1:
            return self._reduction(place, flows[0])
        if name in VIEWS:
            if len(equation.outvars) > 1:
                return flows
            start = None if flows[0].nonlinear else (place.plan, equation.outvars[0])
            return [replace(flows[0], axes=_axes.through(equation, flows[0].axes), start=start)]
        if name in SELECTIONS:
            return self._selection(place, flows)
        if name in AFFINE or name in NONLINEAR:
            return [self._elementwise(place, flows)]
        return self._opaque(place, flows)

    # Layers

    def _convolution(self, place: Place, flows: list[Flow]) -> list[Flow]:
        image, kernel = flows
        if kernel.active:
            return [self._other(place, flows, "convolution")]
        self.fire(image)
        if self.outermost and not any(operation.kind in ("conv", "dense") for operation in self.operations):
            _axes.check_channels_last(place.equation, image.axes)
        axes = _axes.convolution(place.equation, image.axes)
        return [self._made(place, "conv", "conv", axes, paths=kernel.paths)]

    def _product(self, place: Place, flows: list[Flow]) -> list[Flow]:
        first = flows[0].active
        activation, kernel = (flows[0], flows[1]) if first else (flows[1], flows[0])
        axes = _axes.dot(place.equation, first, activation.axes, kernel.axes if kernel.active else None)
        (contracted, _) = place.equation.params["dimension_numbers"]
        summed = [flow.axes[k] for flow, dims in zip(flows, contracted) if flow.active for k in dims]
        if any(_axes.role(axis) == "b" for axis in summed) or [_axes.role(axis) for axis in axes].count("b") > 1:
            self.mixed_rows.append("/".join((*place.scope, "dot_general")))
        if kernel.active or not (kernel.paths or self.pathless):
            return [self._other(place, flows, "product", axes)]
        self.fire(activation)
        return [self._made(place, "dense", "dense", axes, paths=kernel.paths)]

    def _reduction(self, place: Place, flow: Flow) -> list[Flow]:
        name = place.equation.primitive.name
        reduced = _axes.crossed(place.equation)
        axes = _axes.through(place.equation, flow.axes)
        pooled = _axes.is_pooled(flow.axes, reduced)
        label = f"{name.rsplit('_', 1)[-1]}_pool" if pooled else name
        operation = self._operation(place, "pool" if pooled else "other", label, axes, held=(flow,))
        statistics = flow.statistics | {(entry, operation) for entry in flow.entries}
        return [self._fresh(place, axes, operation=operation, statistics=statistics)]

    def _selection(self, place: Place, flows: list[Flow]) -> list[Flow]:
        equation = place.equation
        name = equation.primitive.name
        active = [flow for flow in flows if flow.active]
        for flow in active:
            self.fire(flow)
        first = active[0]
        if name in ("stack", "unstack"):
            axes = _axes.through(equation, first.axes)
        elif name == "gather" and not flows[0].active:
            axes = _axes.lookup(equation, first.axes)
        else:
            axes = first.axes
        old = equation.invars[[flow.active for flow in flows].index(True)].aval.shape
        results = []
        for output, var in enumerate(equation.outvars):
            new = var.aval.shape
            whole = len(axes) == len(new)
            cut = {_axes.role(axis) for axis, before, after in zip(axes, old, new) if before != after}
            source = first.source or first.entries
            if name == "pad" or (len(old) == len(new) and cut & {"b", "c"}):
                source = frozenset()
            axes_here = axes if whole else _axes.unknown(var.aval)
            results.append(self._fresh(place, axes_here, output=output, source=source))
        return results

    # Calls

    def _call(self, place: Place, flows: list[Flow]) -> list[Flow]:
        """Read a jit, to be inlined, or a remat, to be rebuilt: values flow in and out as if there were no call."""
        equation = place.equation
        inner, consts = opened(body(equation))
        active = {atom for atom, flow in zip(equation.invars, flows) if flow.active}
        named = equation.primitive.name in JIT and call_name(equation) in ACTIVATIONS
        # A gradient through an activation calls one of its name that returns the residuals too.
        if named and len(active) == 1 and len(equation.outvars) == 1 and is_activation(inner):
            return self._activation(place, flows)
        child = Plan(inner, consts)
        place.plan.children[place.index] = child
        return self.read(child, flows, place.scope, place.frames)

    def _activation(self, place: Place, flows: list[Flow]) -> list[Flow]:
        flow = next(flow for flow in flows if flow.active)
        self.fire(flow)
        return [self._made(place, "activation", call_name(place.equation), flow.axes)]

    def _closed(self, place: Place, flows: list[Flow], inner: Jaxpr, reason: str) -> list[Flow]:
        """Look into a call that is bound whole, and adopt a single operation at its output."""
        equation = place.equation
        active = {atom for atom, flow in zip(equation.invars, flows) if flow.active}
        if len(active) == 1 and len(equation.outvars) == 1 and is_activation(inner):
            return self._activation(place, flows)
        outputs, found = self._inside(place, inner, flows)
        if len(found) == 1 and len(outputs) == 1 and outputs[0].site == found[0].site:
            for flow in flows:
                self.fire(flow)
            adopted = found[0]
            known = {"paths": adopted.paths, "scaled": adopted.scaled, "biased": adopted.biased}
            return [self._made(place, adopted.kind, adopted.label, outputs[0].axes, **known)]
        self._hide(found, reason)
        return self._whole(place, flows, outputs)

    def _cond(self, place: Place, flows: list[Flow]) -> list[Flow]:
        """Read `platform_dependent` on its default branch; any other cond is bound whole."""
        branches = place.equation.params["branches"]
        default = default_branch(place.equation)
        if default is not None:
            reason = "inside a platform_dependent call, which is bound whole"
            return self._closed(place, flows[1:], default, reason)
        outcomes = []
        for branch in branches:
            outputs, found = self._inside(place, branch, flows)
            self._hide(found, "inside a cond, whose branch is chosen while it runs")
            outcomes.append(outputs)
        seen = [max(alternatives, key=lambda flow: flow.active) for alternatives in zip(*outcomes)]
        return self._whole(place, flows, () if flows[0].active else seen)

    def _opaque(self, place: Place, flows: list[Flow]) -> list[Flow]:
        """List what is inside a primitive that is not known."""
        for inner in inner_programs(place.equation):
            _, found = self._inside(place, inner, flows)
            self._hide(found, f"inside {call_name(place.equation)}, which is bound whole")
        return self._whole(place, flows)

    def _whole(self, place: Place, flows: list[Flow], known: Sequence[Flow] = ()) -> list[Flow]:
        """Return the values of a call that is bound whole; ``known`` is what was seen of them inside."""
        results = []
        for output in range(len(place.equation.outvars)):
            flow = known[output] if known else None
            if flow is not None and not flow.active:
                results.append(flow)
            else:
                axes = flow.axes if flow is not None and any(flow.axes) else None
                results.append(self._other(place, flows, call_name(place.equation), axes, output=output))
        return results

    def _nested(self) -> "Reader":
        nested = Reader(pathless=self.pathless, root=self.root, parameters=self.parameters)
        nested.clock = self.clock
        nested.outermost = False
        return nested

    def _inside(self, place: Place, inner: Jaxpr, flows: Sequence[Flow]) -> tuple[list[Flow], list[Operation]]:
        """Read a program by itself: its outputs and operations; its inputs are the last operands, if they fit."""
        jaxpr, consts = opened(inner)
        count = len(jaxpr.invars)
        atoms = place.equation.invars[-count:] if count else []
        if [atom.aval.ndim for atom in atoms] == [var.aval.ndim for var in jaxpr.invars]:
            operands = flows[len(flows) - count :]
            inputs = [replace(_alone(flow.axes), scalar=flow.scalar) if flow.active else flow for flow in operands]
        else:
            inputs = [_alone(_axes.unknown(var.aval)) for var in jaxpr.invars]
        return self._apart(jaxpr, consts, inputs, place)

    def _apart(
        self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Flow], place: Place
    ) -> tuple[list[Flow], list[Operation]]:
        """Return the outputs and operations of a program, with what it hides itself."""
        nested = self._nested()
        outputs = nested.read(Plan(jaxpr, consts), inputs, place.scope)
        found = nested.finish(outputs)
        self.hidden += nested.hidden
        self.mixed_rows += nested.mixed_rows
        return outputs, [operation for operation in found if operation.site[1].aval.shape]

    def _hide(self, found: Sequence[Operation], reason: str) -> None:
        if found:
            self.hidden.append(Hidden(tuple(operation.kind for operation in found), reason))

    def _scan(self, place: Place, flows: list[Flow]) -> list[Flow]:
        """Read the body once; its operations stand for one tap in every iteration."""
        params = place.equation.params
        jaxpr, consts = opened(params["jaxpr"])
        fixed, carried = scan_split(params)
        stacked = flows[fixed + carried :]
        for flow in flows:
            self.fire(flow)
        child = Plan(jaxpr, consts)
        paths = frozenset().union(*[flow.paths for flow in stacked if not flow.active])
        prefix = stacked_module(paths, self.parameters, place.frames[-1].prefix if place.frames else "")
        frame = Frame(prefix or "/".join((*place.scope, "scan")), params["length"], params["reverse"])
        inputs = [
            replace(flow, scalar=var.aval.size == 1)
            if not flow.active
            else _alone(flow.axes[1:] if k >= fixed + carried else flow.axes, (child, var))
            for k, (flow, var) in enumerate(zip(flows, jaxpr.invars))
        ]
        if any(flow.active and _axes.role(flow.axes[0]) == "b" for flow in stacked):
            if carried:
                self.mixed_rows.append("/".join((*place.scope, "scan")))
            _, found = self._apart(jaxpr, consts, inputs, place)
            self._hide(found, "inside a loop over the images, as lax.map makes one; jax.vmap lets them be seen")
            return self._whole(place, flows)
        for _ in range(carried + 1):
            outputs = self._nested().read(Plan(jaxpr, consts), inputs)
            late = [k for k in range(carried) if outputs[k].active and not inputs[fixed + k].active]
            if not late:
                break
            for k in late:
                inputs[fixed + k] = _alone(outputs[k].axes, (child, jaxpr.invars[fixed + k]))
        place.plan.children[place.index] = child
        outputs = self.read(child, inputs, place.scope, (*place.frames, frame))
        for flow in outputs:
            self.fire(flow)
        results = []
        for k, (flow, var) in enumerate(zip(outputs, place.equation.outvars)):
            if flow.active:
                axes = flow.axes if k < carried else ((("s", params["length"]),), *flow.axes)
                results.append(self._fresh(place, axes, output=k))
            else:
                results.append(passive(var.aval, [flow]))
        return results

    # The end

    def finish(self, outputs: Sequence[Flow] = ()) -> list[Operation]:
        """Return the operations that stay, in order of execution."""
        for flow in outputs:
            self.fire(flow)
        for operation in list(self.operations):
            if not operation.dropped:
                for flow in operation.held:
                    self.fire(flow)
        kept = [operation for operation in self.operations if not operation.dropped and _is_value(operation)]
        return sorted(kept, key=lambda operation: operation.order)


def _alone(axes: _axes.Axes, start: tuple[Plan, Any] | None = None) -> Flow:
    """Return an activation of unknown origin."""
    return Flow(entries=frozenset({Entry()}), axes=axes, start=start)


def _is_value(operation: Operation) -> bool:
    """Return whether there is something to look at: numbers, some of them, that are used."""
    var = operation.site[1]
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact) and 0 not in var.aval.shape and not is_dropped(var)
