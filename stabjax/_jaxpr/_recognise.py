"""Recognise the operations of a network in its program: layers, pools, and the calls they stand in.

A conv or dense is named by its kernel's parameters. A pool is a window or spatial reduction that is not fed back into
its own input. What elementwise steps make of these is in `_regions`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from stabjax._jaxpr import _axes
from stabjax._jaxpr._flow import Entry, Flow, Frame, Operation, Plan, common_path, passive
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
    inner_programs,
    is_literal,
    opened,
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
            place = Place(equation, index, plan, scope + scope_of(equation), frames)
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
        if name in REDUCTIONS or name in WINDOWS:
            return self._reduction(place, flows[0])
        if name in VIEWS:
            if len(equation.outvars) > 1:
                return flows
            return [replace(flows[0], roles=_axes.through(equation, flows[0].roles))]
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
        roles = _axes.convolution(place.equation, image.roles)
        return [self._made(place, "conv", "conv", roles, paths=kernel.paths)]

    def _product(self, place: Place, flows: list[Flow]) -> list[Flow]:
        first = flows[0].active
        activation, kernel = (flows[0], flows[1]) if first else (flows[1], flows[0])
        roles = _axes.dot(place.equation, first, activation.roles)
        contracted = place.equation.params["dimension_numbers"][0][0 if first else 1]
        if any(activation.roles[axis] == "b" for axis in contracted):
            self.mixed_rows.append("/".join((*place.scope, "dot_general")))
        if kernel.active or not (kernel.paths or self.pathless):
            return [self._other(place, flows, "product", roles)]
        self.fire(activation)
        return [self._made(place, "dense", "dense", roles, paths=kernel.paths)]

    def _reduction(self, place: Place, flow: Flow) -> list[Flow]:
        equation = place.equation
        name = equation.primitive.name
        if name in WINDOWS:
            axes = [axis for axis, width in enumerate(equation.params["window_dimensions"]) if width > 1]
        else:
            axes = [int(axis) for axis in equation.params["axes"]]
        roles = _axes.through(equation, flow.roles)
        if any(flow.roles[axis] == "b" for axis in axes):
            self.mixed_rows.append("/".join((*place.scope, name)))
        pooled = _axes.is_pooled(flow.roles, axes)
        label = f"{name.rsplit('_', 1)[-1]}_pool" if pooled else name
        operation = self._operation(place, "pool" if pooled else "other", label, roles, held=(flow,))
        statistics = flow.statistics | {(entry, operation) for entry in flow.entries}
        return [self._fresh(place, roles, operation=operation, statistics=statistics)]

    def _selection(self, place: Place, flows: list[Flow]) -> list[Flow]:
        equation = place.equation
        active = [flow for flow in flows if flow.active]
        for flow in active:
            self.fire(flow)
        first = active[0]
        atom = equation.invars[[flow.active for flow in flows].index(True)]
        results = []
        for output, var in enumerate(equation.outvars):
            same_rank = len(var.aval.shape) == len(first.roles)
            roles = first.roles if same_rank else (None,) * len(var.aval.shape)
            source = first.source or first.entries
            if equation.primitive.name == "pad":
                source = frozenset()
            elif same_rank:
                cut = [k for k, (old, new) in enumerate(zip(atom.aval.shape, var.aval.shape)) if old != new]
                source = source if all(roles[k] not in ("b", "c") for k in cut) else frozenset()
            results.append(self._fresh(place, roles, output=output, source=source))
        return results

    def _opaque(self, place: Place, flows: list[Flow], reason: str = "") -> list[Flow]:
        """A primitive that is not known, or a call that is bound whole: what is inside is listed."""
        name = call_name(place.equation)
        for inner in inner_programs(place.equation):
            self._hide(inner, reason or f"inside {name}, which is bound whole")
        first = self._other(place, flows, name)
        rest = [
            self._fresh(place, (None,) * len(getattr(var.aval, "shape", ())), output=k)
            for k, var in enumerate(place.equation.outvars)
        ]
        return [first, *rest[1:]]

    def _hide(self, inner: Jaxpr, reason: str) -> None:
        jaxpr, _ = opened(inner)
        nested = self._nested()
        nested.read(Plan(jaxpr), [_alone(var.aval) for var in jaxpr.invars])
        found = tuple(operation.kind for operation in nested.finish())
        self.hidden += nested.hidden
        if found:
            self.hidden.append(Hidden(found, reason))

    # Calls

    def _nested(self) -> "Reader":
        nested = Reader(pathless=self.pathless)
        nested.clock = self.clock
        return nested

    def _call(self, place: Place, flows: list[Flow]) -> list[Flow]:
        """A jit is inlined and a remat rebuilt: values flow in and out as if there were no call."""
        equation = place.equation
        inner, consts = opened(body(equation))
        active = {atom for atom, flow in zip(equation.invars, flows) if flow.active}
        named = equation.primitive.name in JIT and call_name(equation) in ACTIVATIONS
        if named and len(active) == 1 and is_activation(inner):
            return self._activation(place, flows)
        child = Plan(inner, consts)
        place.plan.children[place.index] = child
        return self.read(child, flows, place.scope, place.frames)

    def _activation(self, place: Place, flows: list[Flow]) -> list[Flow]:
        flow = next(flow for flow in flows if flow.active)
        self.fire(flow)
        return [self._made(place, "activation", call_name(place.equation), flow.roles)]

    def _closed(self, place: Place, flows: list[Flow], inner: Any, reason: str) -> list[Flow]:
        """A call that is looked into but bound whole: a single operation at its output is adopted."""
        equation = place.equation
        active = {atom for atom, flow in zip(equation.invars, flows) if flow.active}
        if len(active) == 1 and len(equation.outvars) == 1 and is_activation(inner):
            return self._activation(place, flows)
        jaxpr, consts = opened(inner)
        nested = self._nested()
        operands = flows[-len(jaxpr.invars) :] if jaxpr.invars else []
        inside = [
            replace(_alone(var.aval), roles=flow.roles) if flow.active else flow
            for var, flow in zip(jaxpr.invars, operands, strict=True)
        ]
        outputs = nested.read(Plan(jaxpr, consts), inside)
        found = nested.finish(outputs)
        self.mixed_rows += nested.mixed_rows
        if len(found) == 1 and len(outputs) == 1 and outputs[0].site == found[0].site:
            for flow in flows:
                self.fire(flow)
            adopted = found[0]
            flow = self._made(place, adopted.kind, adopted.label, outputs[0].roles, paths=adopted.paths)
            if flow.operation is not None:
                flow.operation.scaled, flow.operation.biased = adopted.scaled, adopted.biased
            return [flow]
        self.hidden += nested.hidden
        if found:
            self.hidden.append(Hidden(tuple(operation.kind for operation in found), reason))
        return [self._other(place, flows, call_name(equation)), *self._rest(place)]

    def _rest(self, place: Place) -> list[Flow]:
        outvars = place.equation.outvars
        return [self._fresh(place, (None,) * var.aval.ndim, output=k) for k, var in enumerate(outvars) if k]

    def _cond(self, place: Place, flows: list[Flow]) -> list[Flow]:
        """`platform_dependent` is read on its default branch; any other cond is bound whole."""
        params = place.equation.params
        platforms = params.get("branches_platforms")
        if platforms is None:
            return self._opaque(place, flows, "inside a cond, whose branch is chosen while it runs")
        default = platforms.index(None) if None in platforms else len(platforms) - 1
        reason = "inside a platform_dependent call, which is bound whole"
        return self._closed(place, flows[1:], params["branches"][default], reason)

    def _scan(self, place: Place, flows: list[Flow]) -> list[Flow]:
        """The body is read once; its operations stand for one tap in every iteration."""
        params = place.equation.params
        jaxpr, consts = opened(params["jaxpr"])
        fixed, carried = params["num_consts"], params["num_carry"]
        for flow in flows:
            self.fire(flow)
        prefix = common_path(frozenset().union(*[flow.paths for flow in flows[fixed + carried :] if not flow.active]))
        frame = Frame(prefix or "/".join((*place.scope, "scan")), params["length"], params["reverse"])

        def inside(flow: Flow, var: Any, stacked: bool) -> Flow:
            if not flow.active:
                return replace(flow, scalar=var.aval.size == 1)
            return replace(_alone(var.aval), roles=flow.roles[1:] if stacked else flow.roles)

        inputs = [inside(flow, var, k >= fixed + carried) for k, (flow, var) in enumerate(zip(flows, jaxpr.invars))]
        for _ in range(carried + 1):
            outputs = self._nested().read(Plan(jaxpr, consts), inputs)
            late = [k for k in range(carried) if outputs[k].active and not inputs[fixed + k].active]
            if not late:
                break
            for k in late:
                inputs[fixed + k] = replace(_alone(jaxpr.invars[fixed + k].aval), roles=outputs[k].roles)
        child = Plan(jaxpr, consts)
        place.plan.children[place.index] = child
        outputs = self.read(child, inputs, place.scope, (*place.frames, frame))
        for flow in outputs:
            self.fire(flow)
        results = []
        for k, (flow, var) in enumerate(zip(outputs, place.equation.outvars)):
            if flow.active:
                results.append(self._fresh(place, flow.roles if k < carried else (None, *flow.roles), output=k))
            else:
                results.append(passive(var.aval, [flow]))
        return results

    # The end

    def finish(self, outputs: Sequence[Flow] = ()) -> list[Operation]:
        """The operations that stay, in order of execution."""
        for flow in outputs:
            self.fire(flow)
        for operation in list(self.operations):
            if not operation.dropped:
                for flow in operation.held:
                    self.fire(flow)
        kept = [operation for operation in self.operations if not operation.dropped and _is_float(operation)]
        return sorted(kept, key=lambda operation: operation.order)


def _alone(aval: Any) -> Flow:
    """An activation of unknown origin."""
    return Flow(entries=frozenset({Entry()}), roles=(None,) * len(getattr(aval, "shape", ())))


def _is_float(operation: Operation) -> bool:
    dtype = getattr(operation.site[1].aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
