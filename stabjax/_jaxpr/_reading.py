"""A network read: its taps by name, and how to reach each of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jax.numpy as jnp

from stabjax._jaxpr import _axes
from stabjax._jaxpr._flow import Entry, Flow, Frame, Operation, Plan, common_path, passive
from stabjax._jaxpr._program import Program
from stabjax._jaxpr._recognise import Reader
from stabjax._jaxpr._regions import Hidden


@dataclass(frozen=True)
class Site:
    """One tap of a network.

    Attributes:
        name, kind: as in `stabjax.features.Tap`.
        operation: position of the operation in the reading; the iterations of a scan share one.
        iteration: where in the scans around it, outermost first.
        shape, dtype: of the activation, batch first.
        channel_axis: position of its channels, or None.
        batch_axis: where the batch stands in the program.
    """

    name: str
    kind: str
    operation: int
    iteration: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any
    channel_axis: int | None
    batch_axis: int

    def arranged(self, value: Any) -> Any:
        """The activation with its batch in front."""
        value = jnp.moveaxis(value, self.batch_axis, 0)
        return value if value.shape == self.shape else value.reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Reading:
    """A traced program, the plan to evaluate it, and its taps in order of execution.

    Attributes:
        program: what was traced.
        plan: where the taps stand.
        sites: the taps.
        hidden: operations that cannot be tapped, with the reason.
        mixed_rows: operations that reduce or contract the batch axis.
    """

    program: Program
    plan: Plan
    sites: tuple[Site, ...]
    hidden: tuple[Hidden, ...]
    mixed_rows: tuple[str, ...]


def read(program: Program, *, root_scope: str = "") -> Reading:
    """Recognise the operations of a program.

    Args:
        program: a traced network.
        root_scope: outermost named scope, left out of names (Linen puts the class of the root there).
    """
    plan = Plan(program.jaxpr, program.consts)
    reader = Reader(pathless=not any(program.paths))
    inputs = []
    for var, path in zip(program.jaxpr.invars, program.paths):
        if path is None:
            inputs.append(Flow(entries=frozenset({Entry()}), roles=_axes.of_images(var.aval.ndim)))
        else:
            inputs.append(passive(var.aval, [Flow(active=False, paths=frozenset({path}))]))
    outputs = reader.read(plan, inputs)
    kept = []
    for operation in reader.finish(outputs):
        inner, var = operation.site
        arrangement = _axes.batch_first(operation.roles, var.aval.shape, program.jaxpr.invars[-1].aval.shape[0])
        if arrangement is None:
            reader.hidden.append(Hidden((operation.kind,), f"{operation.label}, whose value has no batch axis"))
        else:
            inner.taps.setdefault(var, []).append(len(kept))
            kept.append((len(kept), operation, *arrangement))
    sites = _Names(root_scope).unrolled(kept) + _outputs(program, outputs, len(kept))
    return Reading(program, plan, tuple(sites), tuple(reader.hidden), tuple(reader.mixed_rows))


def _outputs(program: Program, flows: Sequence[Flow], start: int) -> list[Site]:
    return [
        Site(
            name=f"output/{name}" if name else "output",
            kind="output",
            operation=start + k,
            iteration=(),
            shape=tuple(var.aval.shape),
            dtype=var.aval.dtype,
            channel_axis=_axes.channel(flow.roles) if flow.active else None,
            batch_axis=0,
        )
        for k, (var, flow, name) in enumerate(zip(program.jaxpr.outvars, flows, program.out_names))
        if jnp.issubdtype(var.aval.dtype, jnp.inexact)
    ]


_Found = tuple[int, Operation, int, tuple[int, ...]]


class _Names:
    """Gives every tap its name, once."""

    def __init__(self, root: str) -> None:
        self.root = root
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

    def site(self, found: _Found, iteration: tuple[int, ...]) -> Site:
        """The tap of an operation in one iteration of the scans around it."""
        index, operation, batch_axis, shape = found
        channel = _axes.channel(operation.roles)
        moved = len(shape) != len(operation.roles)
        if channel is not None:
            channel += (channel < batch_axis) + moved
        return Site(
            name=self.name(operation, iteration),
            kind=operation.kind,
            operation=index,
            iteration=iteration,
            shape=shape,
            dtype=operation.site[1].aval.dtype,
            channel_axis=channel,
            batch_axis=batch_axis,
        )

    def name(self, operation: Operation, iteration: tuple[int, ...]) -> str:
        """By the module of its parameters, or by the scope and a number."""
        module = common_path(operation.paths)
        scope = operation.scope[operation.scope[:1] == (self.root,) :]
        name = _indexed(module.split("/") if module else list(scope), operation.frames, iteration)
        if not module:
            stem = f"{name}/{operation.label}" if name else operation.label
            name = f"{stem}_{self.numbers[stem]}"
            self.numbers[stem] += 1
        self.used[name] += 1
        return name if self.used[name] == 1 else f"{name}:{self.used[name] - 1}"


def _indexed(parts: list[str], frames: tuple[Frame, ...], iteration: tuple[int, ...]) -> str:
    """Put the iteration of every scan behind the path that its parameters share: ``layers/3/conv``."""
    for frame, k in reversed(list(zip(frames, iteration))):
        prefix = frame.prefix.split("/")
        inside = parts[: len(prefix)] == prefix
        parts = [*prefix, str(k), *(parts[len(prefix) :] if inside else parts)]
    return "/".join(parts)
