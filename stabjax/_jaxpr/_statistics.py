"""Running statistics: which inputs of a program hold the mean and the variance of each norm, and what belongs there.

A norm by constant statistics is one of two forms, up to factors, views and the order of its steps:

    (x - mean) * rsqrt(variance + eps) * scale + bias           the mean in front
    x * inverse + (bias - mean * inverse)                       the mean behind, inverse = rsqrt(variance + eps) * scale

What stands under the root is the variance. What is taken off in front, or meets the inverse behind, is the mean.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stabjax._jaxpr import _axes
from stabjax._jaxpr._facts import analyze
from stabjax._jaxpr._graph import Node, Value
from stabjax._jaxpr._names import Names
from stabjax._jaxpr._pattern_norms import ADDITIONS, FACTORS, exponent
from stabjax._jaxpr._patterns import recognize
from stabjax._jaxpr._plan import TapPlan
from stabjax._jaxpr._primitives import REDUCTIONS
from stabjax._jaxpr._program import Program, Var, is_literal, run
from stabjax._jaxpr._regions import Operation, without_views
from stabjax._jaxpr._traced import TracedProgram
from stabjax._jaxpr._written_out import write_out

_PARTS = frozenset("slice squeeze reshape transpose expand_dims broadcast_in_dim rev".split())
"""What may stand between an input and the part of it that a norm reads."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a statistic is kept: an input, or a row of an input that stacks the layers of a scan.

    Attributes:
        input: position among the inputs of the program.
        var: the value in the flat program.
        places: for each entry of that value, where it stands in the flattened input.
        is_scaled: whether the value is the input times a number of the program, as a bias of moving averages is undone.
    """

    input: int
    var: Var
    places: np.ndarray
    is_scaled: bool


@dataclass(frozen=True, eq=False)
class RunningNorm:
    """A norm by running statistics.

    Attributes:
        name: of its parameters.
        x: what it normalizes, a value of the flat program.
        axis: the axis of the channels.
        mean, variance: where its statistics are kept.
    """

    name: str
    x: Var
    axis: int
    mean: Slot
    variance: Slot


@dataclass(frozen=True, eq=False)
class RunningNorms:
    """All norms by running statistics in a program, in order of execution.

    Attributes:
        program: the program with its calls, and the scans with such norms, written out.
        norms: the norms.
    """

    program: Program
    norms: tuple[RunningNorm, ...]

    def moments(self, inputs: Sequence[Any], *, settle: bool) -> list[tuple[jax.Array, jax.Array]]:
        """Return the mean and the (biased) variance of what each norm normalizes, over all but its channels.

        Args:
            inputs: of the program.
            settle: whether each norm goes on with these in place of what it holds.
        """
        jaxpr = self.program.jaxpr
        values = self._known(inputs)
        found = []
        for norm in self.norms:
            # Values are computed when a norm asks for them. So nothing has read the statistics of this one yet.
            run(jaxpr, _equations_before(jaxpr, norm.x, values), values)
            x = values[norm.x]
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            samples = tuple(axis for axis in range(x.ndim) if axis != norm.axis)
            found.append((jnp.mean(x, samples), jnp.var(x, samples)))
            if settle:
                for slot, moment in zip((norm.mean, norm.variance), found[-1]):
                    values[slot.var] = moment.reshape(slot.var.aval.shape).astype(slot.var.aval.dtype)
        return found

    def replace(self, inputs: Sequence[Any], moments: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the inputs but the images with other statistics, ``(mean, variance)`` for each norm."""
        inputs = list(inputs)
        for norm, pair in zip(self.norms, moments, strict=True):
            for slot, moment in zip((norm.mean, norm.variance), pair):
                # In NumPy: operations one by one would be compiled one by one.
                new = np.array(inputs[slot.input])
                new.reshape(-1)[slot.places.reshape(-1)] = np.reshape(moment, -1) / self._factor(slot, inputs)
                inputs[slot.input] = jax.device_put(new)
        return inputs

    def _factor(self, slot: Slot, inputs: Sequence[Any]) -> Any:
        """Return what the program multiplies an input with before it is a statistic."""
        if not slot.is_scaled:
            return 1
        jaxpr = self.program.jaxpr
        values = self._known(inputs) | {jaxpr.invars[slot.input]: jnp.ones_like(inputs[slot.input])}
        run(jaxpr, _equations_before(jaxpr, slot.var, values), values)
        return np.reshape(values[slot.var], -1)

    def _known(self, inputs: Sequence[Any]) -> dict[Var, Any]:
        """Return the values of a program that has not begun."""
        jaxpr = self.program.jaxpr
        return {**dict(zip(jaxpr.constvars, self.program.consts, strict=True)), **dict(zip(jaxpr.invars, inputs))}


def find_running_norms(traced: TracedProgram) -> RunningNorms:
    """Find the norms by running statistics in a program.

    Raises:
        ValueError: if a statistic serves two norms, is no input of the program, or the channels of a norm are unknown.
    """
    program = write_out(traced, {site.operation for site in traced.sites if site.kind == "norm"})
    graph = analyze(TapPlan(program.jaxpr, program.consts), program.paths, "")
    operations, _ = recognize(graph)
    sites = {operation.site: operation for operation in operations}
    names = Names({path: var.aval for var, path in zip(program.jaxpr.invars, program.paths, strict=True) if path})
    norms = []
    for operation in operations:
        name = names.of_operation(operation, ())
        if operation.kind == "norm" and len(operation.node.active) == 1:
            norm = _running_norm(operation, name, sites, program)
            norms += [] if norm is None else [norm]
    _check_single_use(norms)
    return RunningNorms(program, tuple(norms))


def _running_norm(
    operation: Operation, name: str, sites: dict[Value, Operation], program: Program
) -> RunningNorm | None:
    """Return a norm with its statistics; None where it has none of images, as a weight that is divided by its length.

    Raises:
        ValueError: if it seems to have some, but they are not found.
    """
    roots = [root for value in operation.node.constants for root in _roots(value)]
    if len(roots) != 1 or (under := _under_numbers(roots[0].operands[0])) is None:
        return None
    variance = _source(under)
    found = None if variance is None else _mean(operation, variance[0], sites)
    if found is None and under.size == 1:
        # A learned number, by the root of which all is divided.
        return None
    axis = None if found is None else _channel_axis(found[0], under.size)
    slots = [] if found is None else [_slot(program, _source(value), under.size) for value in (found[1], under)]
    if found is None or axis is None or None in slots:
        raise ValueError(
            f"expected to find the running mean and variance of {name} among the variables of the network, and its "
            "channels, got a normalization that holds or computes them in another way; hand the module itself to "
            "networks.wrap, or set its statistics yourself"
        )
    return RunningNorm(name, found[0].var, axis, *filter(None, slots))


# The statistics of a norm


def _roots(value: Value) -> Iterator[Node]:
    """Return the roots that a constant descends from by factors and views."""
    stack = [value]
    while stack:
        node = stack.pop().node
        if node is None:
            continue
        if node.name in ("sqrt", "rsqrt") or exponent(node):
            yield node
        elif node.is_view or node.name in FACTORS:
            stack += node.operands


def _under_numbers(value: Value) -> Value | None:
    """Return what numbers were added to, as in ``variance + eps``; None where it is a reduction of a weight."""
    found = value
    while value.node is not None:
        node = value.node
        if node.name in REDUCTIONS:
            return None
        # Operands that come from inputs; all others are numbers.
        known = [operand for operand in node.operands if _inputs(operand)]
        if node.name in (*ADDITIONS, "max", "abs") and len(known) == 1:
            found = value = known[0]
        elif node.is_view or node.name in _PARTS:
            value = node.operands[0]
        else:
            break
    return found


def _source(value: Value) -> tuple[Value, list[Node]] | None:
    """Return the input that a constant is, up to views, parts and scalar factors, and the equations in between."""
    steps: list[Node] = []
    while (node := value.node) is not None:
        large = [operand for operand in node.operands if not _is_scalar(operand)]
        if not (node.is_view or node.name in _PARTS or (node.name in FACTORS and len(large) == 1)):
            return None
        steps.insert(0, node)
        value = large[0] if node.name in FACTORS else node.operands[0]
    return value, steps


def _is_scalar(value: Value) -> bool:
    """Return whether a value is a number, repeated or not."""
    return without_views(value).var.aval.shape == ()


def _inputs(value: Value) -> set[Var]:
    """Return the variables without a definition that a constant is computed from: inputs, and arrays of the program."""
    found, seen, stack = set(), set(), [value]
    while stack:
        value = stack.pop()
        if value in seen or is_literal(value.var):
            continue
        seen.add(value)
        if value.node is None:
            found.add(value.var)
        else:
            stack += value.node.operands
    return found


def _mean(norm: Operation, variance: Value, sites: dict[Value, Operation]) -> tuple[Value, Value] | None:
    """Return what a norm normalizes, and the mean that it takes off."""
    inverse = set().union(*map(_inputs, norm.node.constants))
    # Behind: of all that is added, the term that depends on the variance is mean * inverse.
    for _, shift in _shifts(norm.site, lambda value: value.node is norm.node):
        for term in _terms(shift):
            if variance.var in _inputs(term):
                own = [factor for factor in _factors(term) if not _inputs(factor) <= inverse]
                return (norm.node.active[0], own[0]) if len(own) == 1 else None
    # In front: the last thing that is added.
    shifts = _shifts(norm.node.active[0], lambda value: value in sites)
    return next(((x, term) for x, shift in shifts for term in _terms(shift) if _inputs(term)), None)


def _shifts(value: Value, is_end: Callable[[Value], bool]) -> Iterator[tuple[Value, Value]]:
    """Return what is added to a value by affine steps, last first, with what it is added to."""
    while not is_end(value) and (node := value.node) is not None and len(node.active) == 1:
        if not (node.is_view or node.is_affine):
            return
        if node.name in (*ADDITIONS, "sub"):
            yield node.active[0], node.constants[0]
        value = node.active[0]


def _terms(value: Value) -> list[Value]:
    """Return the terms of a sum of constants."""
    node = value.node
    if node is None or not (node.is_view or node.name in (*ADDITIONS, "sub", "neg")):
        return [value]
    return [term for operand in node.operands for term in _terms(operand)]


def _factors(value: Value) -> list[Value]:
    """Return the factors of a product of constants."""
    node = value.node
    if node is None or not (node.is_view or node.name in (*FACTORS, "neg")):
        return [value]
    return [factor for operand in node.operands for factor in _factors(operand)]


def _channel_axis(x: Value, size: int) -> int | None:
    """Return the axis of as many channels as there are statistics."""
    shape = x.var.aval.shape
    fitting = [axis for axis in range(len(shape)) if shape[axis] == size and _axes.role(x.axes[axis]) != "b"]
    channel = _axes.channel(x.axes)
    if channel in fitting:
        return channel
    return fitting[0] if len(fitting) == 1 else None


def _slot(program: Program, source: tuple[Value, list[Node]] | None, size: int) -> Slot | None:
    """Return where a statistic is kept; None where it is no part of an input."""
    variables = program.jaxpr.invars
    if source is None or source[0].var not in variables:
        return None
    value, steps = source
    number, places = variables.index(value.var), np.arange(value.size).reshape(value.var.aval.shape)
    factors = [k for k, node in enumerate(steps) if node.name in FACTORS]
    if factors:
        (var,) = steps[factors[-1]].equation.outvars
        return Slot(number, var, places, is_scaled=True) if value.size == size else None
    # The first part that is as large as a statistic.
    var = value.var
    for node in steps:
        if places.size == size:
            break
        values = {var: jnp.asarray(places)}
        (var,) = node.equation.outvars
        # What moves no entry, as a conversion, moves no place.
        if node.name in _PARTS:
            run(program.jaxpr, [node.equation], values)
            places = np.asarray(values[var])
    return Slot(number, var, places, is_scaled=False) if places.size == size else None


def _check_single_use(norms: Sequence[RunningNorm]) -> None:
    users: dict[tuple[int, bytes], list[str]] = {}
    for norm in norms:
        users.setdefault((norm.mean.input, norm.mean.places.tobytes()), []).append(norm.name)
    for names in users.values():
        if len(names) > 1:
            raise ValueError(
                f"expected every batch normalization to be used once in a pass, got {names[0]} used {len(names)} "
                "times: its one mean and variance cannot be those of several inputs; give each place its own"
            )


def _equations_before(jaxpr: Any, target: Var, values: dict[Var, Any]) -> list[Any]:
    """Return the equations that compute a value from those that are known."""
    missing, found = {target} - values.keys(), []
    for equation in reversed(jaxpr.eqns):
        if missing.isdisjoint(equation.outvars):
            continue
        found.append(equation)
        missing |= {atom for atom in equation.invars if not is_literal(atom) and atom not in values}
    return found[::-1]
