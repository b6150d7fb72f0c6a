"""A network read: its taps by name, and how to reach each of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp

from stabjax._images import check_numbers
from stabjax._jaxpr import _axes
from stabjax._jaxpr._flow import Entry, Flow, Frame, Operation, Plan, common_path, passive
from stabjax._jaxpr._program import Program, trace, trace_shared
from stabjax._jaxpr._recognise import Reader
from stabjax._jaxpr._regions import Hidden


@dataclass(frozen=True)
class Site:
    """One tap of a network.

    Attributes:
        name, kind: as in `stabjax.features.Tap`.
        operation: position of the operation in the reading; the iterations of a scan share one.
        iteration: where in the scans around it, outermost first.
        shape, dtype: of the activation as it is handed out, batch first and channels last.
        channel_axis: position of its channels in that shape, the last, or None if they are not known.
        split, batch_axis: the shape in the program, with the batch told from what it was merged with, and where it
            stands there.
        in_order, channels_from: the shape with the batch in front and all else in the order of the program, and the
            position of the channels there, or None.
    """

    name: str
    kind: str
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
        """Return the activation with its batch in front and its channels last."""
        if value.shape != self.in_order or self.batch_axis != 0:
            value = jnp.moveaxis(value.reshape(self.split), self.batch_axis, 0).reshape(self.in_order)
        if self.channels_from is None or self.channels_from == self.channel_axis:
            return value
        return jnp.moveaxis(value, self.channels_from, -1)


@dataclass(frozen=True, eq=False)
class Reading:
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
    plan: Plan
    sites: tuple[Site, ...]
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


def read(program: Program, *, root_scope: str = "") -> Reading:
    """Recognise the operations of a program.

    Args:
        program: a traced network.
        root_scope: outermost named scope, left out of names (Linen puts the class of the root there).
    """
    if program.consts:
        return _read(program, root_scope)
    # JAX keeps the programs of networks of one architecture: what was read of one is kept with it.
    return _read_once(program.jaxpr, program.paths, program.out_names, program.out_tree, root_scope)


@lru_cache(maxsize=64)
def _read_once(jaxpr: Any, paths: Any, out_names: Any, out_tree: Any, root_scope: str) -> Reading:
    return _read(Program(jaxpr, (), paths, out_names, out_tree), root_scope)


def _read(program: Program, root_scope: str) -> Reading:
    plan = Plan(program.jaxpr, program.consts)
    parameters = frozenset(
        path
        for var, path in zip(program.jaxpr.invars, program.paths)
        if path and jnp.issubdtype(var.aval.dtype, jnp.inexact)
    )
    reader = Reader(pathless=not any(program.paths), root=root_scope, parameters=parameters)
    inputs = []
    sizes = {}
    for var, path in zip(program.jaxpr.invars, program.paths):
        if path is None:
            inputs.append(Flow(entries=frozenset({Entry()}), start=(plan, var), axes=_axes.of_images(var.aval.shape)))
        elif not path:
            inputs.append(passive(var.aval))
        else:
            inputs.append(passive(var.aval, [Flow(active=False, paths=frozenset({path}))]))
            sizes[path] = var.aval.size
    outputs = reader.read(plan, inputs)
    names = _Names(sizes, program.jaxpr.invars[-1].aval.shape[0])
    kept = []
    for operation in reader.finish(outputs):
        inner, var = operation.site
        if operation.start is not None:
            inner.starts[var] = operation.start
        arrangement = _axes.batch_first(operation.axes, var.aval.shape, names.batch)
        if arrangement is None:
            reader.hidden.append(Hidden((operation.kind,), f"{operation.label}, whose value has no batch axis"))
        else:
            inner.taps.setdefault(var, []).append(len(kept))
            kept.append((len(kept), operation, arrangement))
    sites = names.unrolled(kept) + names.outputs(program, outputs, len(kept))
    return Reading(program, plan, tuple(sites), len(kept), tuple(reader.hidden), tuple(reader.mixed_rows))


_Found = tuple[int, Operation, tuple[int, int, int]]


class _Names:
    """Gives every tap its name, once."""

    def __init__(self, sizes: Mapping[str, int], batch: int) -> None:
        self.sizes = sizes
        self.batch = batch
        self.used: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()

    def unrolled(self, found: list[_Found], iteration: tuple[int, ...] = ()) -> list[Site]:
        """Unroll the scans: all operations of the first iteration, then of the second."""
        depth = len(iteration)
        sites = []
        for frame, group in groupby(found, lambda item: dict(enumerate(item[1].frames)).get(depth)):
            members = list(group)
            if frame is None:
                sites += [self.site(item, iteration) for item in members]
            else:
                for k in frame.iterations():
                    sites += self.unrolled(members, (*iteration, k))
        return sites

    def outputs(self, program: Program, flows: Sequence[Flow], start: int) -> list[Site]:
        """Return the outputs that are numbers; their operations count on from those of the taps."""
        return [
            _site(
                name=self.once(f"output/{name}" if name else "output"),
                kind="output",
                operation=start + k,
                iteration=(),
                dtype=var.aval.dtype,
                split=tuple(var.aval.shape),
                batch_axis=0,
                in_order=tuple(var.aval.shape),
                channels_from=_axes.channel(flow.axes) if flow.active else None,
            )
            for k, (var, flow, name) in enumerate(zip(program.jaxpr.outvars, flows, program.out_names))
            if jnp.issubdtype(var.aval.dtype, jnp.inexact)
        ]

    def site(self, found: _Found, iteration: tuple[int, ...]) -> Site:
        """Return the tap of an operation in one iteration of the scans around it."""
        index, operation, (axis, before, after) = found
        aval = operation.site[1].aval
        shape, parts = aval.shape, before * after
        whole = (axis, parts) == (0, 1)
        merged = (parts,) if parts > 1 else ()
        channel = _axes.channel(operation.axes)
        if channel is not None:
            channel += (channel < axis) + len(merged) * (channel > axis)
        return _site(
            name=self.name(operation, iteration),
            kind=operation.kind,
            operation=index,
            iteration=iteration,
            dtype=aval.dtype,
            split=shape if whole else (*shape[:axis], before, self.batch, after, *shape[axis + 1 :]),
            batch_axis=0 if whole else axis + 1,
            in_order=(self.batch, *shape[:axis], *merged, *shape[axis + 1 :]),
            channels_from=channel,
        )

    def name(self, operation: Operation, iteration: tuple[int, ...]) -> str:
        """Name a tap by the module of its parameters, or by the scope and a number."""
        module = common_path(operation.paths)
        if operation.paths and not module and operation.kind != "other":
            # Parameters of modules that share nothing, as a kernel and its weight norm: the largest is the kernel.
            module = common_path([max(sorted(operation.paths), key=self.sizes.__getitem__)])
        name = _indexed(module.split("/") if module else list(operation.scope), operation.frames, iteration)
        if not module:
            stem = f"{name}/{operation.label}" if name else operation.label
            name = f"{stem}_{self.numbers[stem]}"
            self.numbers[stem] += 1
        return self.once(name)

    def once(self, name: str) -> str:
        """Return the name, with the number of times it was used before."""
        self.used[name] += 1
        return name if self.used[name] == 1 else f"{name}:{self.used[name] - 1}"


def _site(*, in_order: tuple[int, ...], channels_from: int | None, **known: Any) -> Site:
    """Return a tap whose channels are handed out last, if they are known and do not stand in place of the batch."""
    shape, channel = in_order, channels_from
    if channel:
        shape, channel = (*in_order[:channel], *in_order[channel + 1 :], in_order[channel]), len(in_order) - 1
    return Site(shape=shape, channel_axis=channel, in_order=in_order, channels_from=channels_from, **known)


def _indexed(parts: list[str], frames: tuple[Frame, ...], iteration: tuple[int, ...]) -> str:
    """Put the iteration of every scan behind the path that its parameters share: ``layers/3/conv``."""
    for frame, k in reversed(list(zip(frames, iteration))):
        prefix = frame.prefix.split("/")
        shared = 0
        while shared < min(len(prefix), len(parts)) and parts[shared] == prefix[shared]:
            shared += 1
        parts = [*prefix, str(k), *parts[shared:]]
    return "/".join(parts)
