"""A traced program with its taps by name, and how to reach each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp

from stabjax._images import check_numbers
from stabjax._jaxpr import _axes
from stabjax._jaxpr._facts import analyze
from stabjax._jaxpr._graph import Value
from stabjax._jaxpr._names import Names
from stabjax._jaxpr._patterns import recognize
from stabjax._jaxpr._plan import TapPlan
from stabjax._jaxpr._program import Program, trace, trace_shared
from stabjax._jaxpr._regions import Hidden, Kind, Operation


@dataclass(frozen=True)
class TapSite:
    """One tap of a network.

    Attributes:
        name, kind: as in `stabjax.features.Tap`.
        operation: position among all operations; the iterations of a scan share one.
        iteration: where in the scans around it, outermost first.
        shape, dtype: of the activation as it is handed out, batch first and channels last.
        channel_axis: position of its channels in that shape, the last, or None if they are not known.
        split, batch_axis: the shape in the program, with the batch told from what it was merged with, and where it
            stands there.
        in_order, channels_from: the shape with the batch in front and all else in the order of the program, and the
            position of the channels there, or None.
    """

    name: str
    kind: Kind
    operation: int
    iteration: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    channel_axis: int | None
    split: tuple[int, ...]
    batch_axis: int
    in_order: tuple[int, ...]
    channels_from: int | None

    def arranged(self, value: Any) -> Any:
        """Return an activation with its batch in front and its channels last."""
        # The axis that holds the batch, (*a, before batch after, *z), is split in three:
        #
        #     split (*a, before, batch, after, *z) -> (batch, *a, before, after, *z) -> in_order (batch, *a, merged, *z)
        #
        # before and after stand side by side then, so that one reshape merges them.
        if value.shape != self.in_order or self.batch_axis != 0:
            value = jnp.moveaxis(value.reshape(self.split), self.batch_axis, 0).reshape(self.in_order)
        if self.channels_from is None or self.channels_from == self.channel_axis:
            return value
        return jnp.moveaxis(value, self.channels_from, -1)


@dataclass(frozen=True, eq=False)
class TracedProgram:
    """A traced program, the plan to evaluate it, and its taps in order of execution.

    Attributes:
        program: what was traced.
        plan: where the taps stand.
        sites: the taps.
        operations: how many operations there are; the outputs count on from here.
        hidden: operations that cannot be tapped, with the reason.
        mixed_rows: operations that reduce or contract the batch axis.
    """

    program: Program
    plan: TapPlan
    sites: tuple[TapSite, ...]
    operations: int
    hidden: tuple[Hidden, ...]
    mixed_rows: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """A network as a function of its leaves and a batch; equal for networks of one architecture."""

    adapter: Any
    treedef: Any

    def __call__(self, leaves: Sequence[Any], x: Any) -> Any:
        """Return the outputs."""
        return self.adapter(jax.tree_util.tree_unflatten(self.treedef, leaves), x)


def trace_network(adapter: Any, leaves: Sequence[Any], treedef: Any, x: Any, *, shared: bool) -> Program:
    """Trace a network on a batch, or its shape; nothing is computed.

    Args:
        adapter: ``adapter(variables, x)`` runs the network; it knows the ``paths`` of the parameters.
        leaves: the parameters, flattened.
        treedef: their structure.
        x: a batch, ``(batch, *spatial, channels)``, or its shape and dtype.
        shared: whether networks with equal adapters have one program, which then is traced once for them all.

    Raises:
        TypeError: if JAX cannot trace the network, or ``x`` is no array.
        ValueError: if ``x`` is no batch.
    """
    check_numbers(x, "images")
    if len(x.shape) < 2:
        raise ValueError(f"expected a batch, (batch, *spatial, channels), got {x.shape}; put an axis in front: x[None]")
    images = jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
    run = _Run(adapter, treedef)
    return (trace_shared if shared else trace)(run, leaves, adapter.paths, images)


def read(program: Program, *, root_scope: str = "", separator: str = "/") -> TracedProgram:
    """Recognize the operations of a program.

    Args:
        program: a traced network.
        root_scope: outermost named scope, left out of names (Linen puts the class of the root there).
        separator: what stands between the parts of a name.
    """
    if program.consts:
        return _read(program, root_scope, separator)
    # JAX keeps the programs of networks of one architecture: what was read of one is kept with it.
    return _read_once(program.jaxpr, program.paths, program.out_names, program.out_tree, root_scope, separator)


@lru_cache(maxsize=64)
def _read_once(jaxpr: Any, paths: Any, out_names: Any, out_tree: Any, root_scope: str, separator: str) -> TracedProgram:
    return _read(Program(jaxpr, (), paths, out_names, out_tree), root_scope, separator)


def _read(program: Program, root_scope: str, separator: str) -> TracedProgram:
    plan = TapPlan(program.jaxpr, program.consts)
    graph = analyze(plan, program.paths, root_scope)
    operations, hidden = recognize(graph)
    parameters = {path: var.aval for var, path in zip(program.jaxpr.invars, program.paths, strict=True) if path}
    names = Names(parameters, separator)
    batch = program.images.shape[0]
    taps: list[_Tap] = []
    for operation in operations:
        value, start = operation.site, operation.start
        # The interpreter asks for this where a domain treats an activation as one step from its start.
        if start is not None:
            value.plan.starts[value.var] = start.plan, start.var
        holder = _axes.batch_first(value.axes, value.var.aval.shape, batch)
        if holder is None:
            hidden.append(Hidden((operation.kind,), f"{operation.label}, whose value has no batch axis"))
        else:
            # The position in `taps` is the number of the operation, here and in its site.
            value.plan.taps.setdefault(value.var, []).append(len(taps))
            taps.append((operation, _site(operation.kind, len(taps), value, holder, batch)))
    sites = [
        replace(site, name=names.of_operation(operation, iteration), iteration=iteration)
        for operation, site, iteration in _unrolled(taps)
    ]
    # Outputs are numbered behind the operations; one of integers keeps its number, and is no tap.
    for k, (value, name) in enumerate(zip(graph.outputs, program.out_names, strict=True), len(taps)):
        if jnp.issubdtype(value.var.aval.dtype, jnp.inexact):
            site = _site("output", k, value, (0, 1, 1), batch)
            sites.append(replace(site, name=names.once(f"output/{name}" if name else "output")))
    return TracedProgram(program, plan, tuple(sites), len(taps), tuple(hidden), tuple(graph.mixed_rows))


_Tap = tuple[Operation, TapSite]


def _unrolled(taps: list[_Tap], iteration: tuple[int, ...] = ()) -> list[tuple[Operation, TapSite, tuple[int, ...]]]:
    """Unroll the scans: all operations of the first iteration, then of the second."""
    found = []
    # The frame at this depth, None for what stands in no further scan. Taps of one scan stand side by side, as it is
    # one equation.
    for frame, group in groupby(taps, lambda tap: dict(enumerate(tap[0].node.frames)).get(len(iteration))):
        members = list(group)
        if frame is None:
            found += [(*tap, iteration) for tap in members]
        else:
            for k in frame.iterations():
                found += _unrolled(members, (*iteration, k))
    return found


def _site(kind: Kind, operation: int, value: Value, holder: tuple[int, int, int], batch: int) -> TapSite:
    """Return the site of an operation, still without a name.

    Args:
        kind: of the operation.
        operation: its position among all operations.
        value: its value.
        holder: the axis that holds the batch, and how much was merged before and behind it.
        batch: number of images.
    """
    axis, before, after = holder
    aval = value.var.aval
    # The axis that holds the batch, of size before * batch * after, is split in three; then the batch goes to the front
    # of all axes, and what it was merged with stays where it was, as one axis.
    old, merged = tuple(aval.shape), (before * after,) if before * after > 1 else ()
    is_first = axis == 0 and not merged
    in_order = old if is_first else (batch, *old[:axis], *merged, *old[axis + 1 :])
    shape, source, channel = in_order, _axes.channel(value.axes), None
    if source is not None:
        # The batch comes to the front, and what it was merged with stays as one axis. Channels on axis 0 of (c, b, s):
        # to 1. On axis 2 of (b s, h, c): to 3. On axis 2 of (n, b, c): they stay.
        source += (source < axis) + len(merged) * (source > axis)
        channel = source
    # The channels are handed out last, where they do not stand in place of the batch.
    if source:
        shape, channel = (*in_order[:source], *in_order[source + 1 :], in_order[source]), len(in_order) - 1
    return TapSite(
        name="",
        kind=kind,
        operation=operation,
        iteration=(),
        shape=shape,
        dtype=aval.dtype,
        channel_axis=channel,
        split=old if is_first else (*old[:axis], before, batch, after, *old[axis + 1 :]),
        batch_axis=0 if is_first else axis + 1,
        in_order=in_order,
        channels_from=source,
    )
