"""The patterns of operations: `PATTERNS`, tried in order on every equation that reads an active value.

A pattern is a function of an equation that looks back over the def-use graph. Equations are tried in order of
execution, so what stands in front of one is claimed already; a scale and a bias behind an operation extend it. Views
and elementwise equations that no pattern claims grow regions (`_regions`). A new kind is one function more.

In the shapes below ``x`` and ``y`` are active, ``stat(x)`` descends elementwise from reductions of the region of ``x``,
``g`` stands for factors, and brackets stand around what may be missing.
"""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp

from stabjax._jaxpr import _axes
from stabjax._jaxpr._graph import Graph, Node, Value
from stabjax._jaxpr._pattern_norms import (
    ADDITIONS,
    FACTORS,
    centering,
    moments,
    norm,
    offset,
    running_norm,
    slides,
    ungrouping,
)
from stabjax._jaxpr._primitives import SELECTIONS
from stabjax._jaxpr._program import call_name, is_dropped
from stabjax._jaxpr._regions import Hidden, Match, Operation, Regions, without_views

Pattern = Callable[[Node, Regions], Match | None]


# Layers


def convolution(node: Node, regions: Regions) -> Match | None:
    """Match ``conv(x, kernel) [+ bias]``, named by the kernel."""
    if node.name != "conv_general_dilated" or node.operands[1].active:
        return None
    image, kernel = node.operands
    if not regions.graph.is_nested and not any(op.kind in ("conv", "dense") for op in regions.operations):
        _axes.check_channels_last(node.equation, image.axes)
    return Match(kind="conv", label="conv", parameters=kernel.parameters, reads=(image,))


def dense(node: Node, regions: Regions) -> Match | None:
    """Match ``dot_general(x, kernel) [+ bias]``, with the kernel on either side."""
    if node.name != "dot_general" or len(node.active) == 2 or (regions.graph.has_paths and not node.parameters):
        return None
    return Match(kind="dense", label="dense", parameters=node.parameters, reads=node.active)


def scale_or_bias(node: Node, regions: Regions) -> Match | None:
    """Match ``norm * scale``, and ``+ bias`` behind a conv, dense or norm; views and numbers may stand in between."""
    if len(node.active) != 1 or not any(map(regions.graph.is_parameter, node.constants)):
        return None
    operation = regions.operation(node.active[0])
    # A bias is the last part of an operation: what follows belongs to none.
    if operation is None or "bias" in operation.affine:
        return None
    if node.name in ADDITIONS and operation.kind in ("conv", "dense", "norm"):
        affine = frozenset({"bias"})
    elif node.name == "mul" and operation.kind == "norm" and "scale" not in operation.affine:
        affine = frozenset({"scale"})
    else:
        return None
    return Match(extends=operation, parameters=node.parameters, affine=affine, region=node.active[0])


# Softmax


def log_softmax(node: Node, regions: Regions) -> Match | None:
    """Match ``x - log(stat(x))``."""
    if node.name != "sub" or (found := regions.statistic(node)) is None:
        return None
    _, statistic, reductions = found
    segment = regions.segment(statistic)
    if "log" not in segment.nonlinear:
        return None
    return Match(kind="other", label="log_softmax", parameters=segment.parameters, absorbs=reductions)


def softmax(node: Node, regions: Regions) -> Match | None:
    """Match ``exp(x) / stat(exp(x))``, and any other ``f(x, stat(x))``, as ``x * mean(x)``: its mean is no pool."""
    if (found := regions.statistic(node)) is None:
        return None
    x, statistic, reductions = found
    # ``pool(x) - x`` is a pool, and a difference.
    if slides(reductions):
        return None
    label, reads = ("softmax", ()) if "exp" in regions.segment(x).nonlinear else (node.name, (x,))
    parameters = regions.segment(statistic).parameters
    return Match(kind="other", label=label, parameters=parameters, reads=reads, absorbs=reductions)


def empty_row(node: Node, regions: Regions) -> Match | None:
    """Match ``where(any(x), softmax(x), 0)``: a row of attention with nothing to attend to is zero."""
    if node.name != "select_n" or not node.operands[0].active or len(node.active) != 2:
        return None
    operation = regions.operation(node.active[1])
    if operation is None or operation.label != "softmax":
        return None
    return Match(extends=operation, reads=node.active[:1], region=node.active[1])


def attention(node: Node, regions: Regions) -> Match | None:
    """Match ``dot_general(softmax(x y), z)``: values, averaged with weights that a product of activations gives."""
    if node.name != "dot_general" or len(node.active) != 2:
        return None
    for weights in node.active:
        operation = regions.operation(weights)
        if operation is None or operation.label != "softmax":
            continue
        # The logits may be scaled and masked. Behind a softmax of its own the region is the logits'.
        logits = regions.operation_at(regions.segment(operation.node.active[0]).origin)
        if logits is not None and logits.node.name == "dot_general" and len(logits.node.active) == 2:
            return Match(kind="attention", label="attention", reads=node.active)
    return None


# Pools


def pool(node: Node, regions: Regions) -> Match | None:
    """Match ``reduce(x)`` over windows or space; over other axes, as a sum over the channels, it is no pool."""
    del regions
    if not node.is_reduction:
        return None
    if _axes.is_pooled(node.active[0].axes, _axes.crossed_axes(node.equation)):
        return Match(kind="pool", label=f"{node.name.rsplit('_', 1)[-1]}_pool")
    return Match(kind="other", label=node.name)


def mean(node: Node, regions: Regions) -> Match | None:
    """Match ``sum(x) / n``, or ``* (1 / n)``: the mean."""
    if node.name not in FACTORS or len(node.active) != 1:
        return None
    operation = regions.operation(node.active[0])
    # Only a sum becomes a mean, and once.
    if operation is None or "sum" not in operation.label or "scale" in operation.affine:
        return None
    label = operation.label.replace("sum_pool", "avg_pool")
    return Match(extends=operation, label=label, affine=frozenset({"scale"}), region=node.active[0])


def pool_of_slices(node: Node, regions: Regions) -> Match | None:
    """Match ``max(x[:, ::2], x[:, 1::2])``, or ``min``, ``+``: slices of one region over space, one after another."""
    label = {"max": "max_pool", "min": "min_pool", "add": "sum_pool"}.get(node.name)
    if label is None or not regions.joins_regions(node):
        return None
    first, second = [_source(value, regions) for value in node.active]
    if first is None or first is not second:
        return None
    # The first two slices make a pool; each further one, or a pool of others of the same map, joins it.
    pools = [operation for operation in map(regions.operation, node.active) if operation is not None]
    if pools:
        return Match(extends=pools[0], absorbs=tuple(pools[1:]), region=node.active[0])
    return Match(kind="pool", label=label, region=node.active[0])


def _source(value: Value, regions: Regions) -> Value | None:
    """Return the origin of the region that a value was cut from over space, None if it was not."""
    source = None
    while (node := value.node) is not None and (node.name in SELECTIONS or regions.goes_on(value)):
        operand = node.active[0]
        if node.name in SELECTIONS:
            old, new = operand.var.aval.shape, value.var.aval.shape
            # The axes along which entries are left out; those of batch or channels are no windows.
            cut = {_axes.role(axis) for axis, a, b in zip(value.axes, old, new, strict=False) if a != b}
            if node.name == "pad" or (len(old) == len(new) and cut & {"b", "c"}):
                break
            source = regions.segment(operand).origin
        value = operand
    return source


# What is left


def residual(node: Node, regions: Regions) -> Match | None:
    """Match ``x + y``, of different regions."""
    if node.name not in ADDITIONS or not regions.joins_regions(node):
        return None
    return Match(kind="residual", label="add", reads=node.active)


def activation(node: Node, regions: Regions) -> Match | None:
    """Match ``f(x)``, a call with the name of an activation or a derivative of its own; others are regions."""
    del regions
    return Match(kind="activation", label=call_name(node.equation), reads=node.active) if node.is_activation else None


def call(node: Node, regions: Regions) -> Match | None:
    """Match ``call(x, ...)``, bound whole: it is the only operation inside, if it returns that, or hides them all."""
    if not node.bodies:
        return None
    match = other(node, regions) or Match()
    hides = []
    for body in node.bodies:
        operations, hidden = recognize(body)
        operations = [operation for operation in operations if operation.site.var.aval.shape]
        hides += hidden
        inner = operations[0] if len(operations) == len(body.outputs) == 1 else None
        if inner is not None and node.is_transparent and without_views(body.outputs[0]) is inner.site:
            match = replace(match, kind=inner.kind, label=inner.label, parameters=inner.parameters, affine=inner.affine)
        elif operations:
            hides.append(Hidden(tuple(operation.kind for operation in operations), node.reason))
    return replace(match, hides=tuple(hides))


def selection(node: Node, regions: Regions) -> Match | None:
    """Match ``x[...]``, padding, joining, and what a scan returns: regions end here and others begin."""
    del regions
    return Match(reads=node.active) if node.name in SELECTIONS or node.name == "scan" else None


def other(node: Node, regions: Regions) -> Match | None:
    """Match ``f(x, ...)``: products of activations, gates, calls, all else that does not go on with a region."""
    if node.is_view or (node.is_elementwise and regions.share_region(node.active)):
        return None
    if not any(result.active for result in node.results):
        return Match()
    label = {"conv_general_dilated": "convolution", "dot_general": "product"}.get(node.name, call_name(node.equation))
    if node.name == "mul" and len(node.active) == 2 and any(map(regions.is_activation, node.active)):
        label = "gate"
    return Match(kind="other", label=label, parameters=node.parameters, reads=node.active)


# Of the patterns that fit an equation the first one claims it: a norm comes before a scale, a centering before a
# softmax, moments and slices before a residual.
PATTERNS: tuple[Pattern, ...] = (
    convolution,
    dense,
    running_norm,
    norm,
    scale_or_bias,
    offset,
    ungrouping,
    log_softmax,
    centering,
    softmax,
    empty_row,
    attention,
    moments,
    pool,
    mean,
    pool_of_slices,
    residual,
    activation,
    call,
    selection,
    other,
)


def recognize(graph: Graph) -> tuple[list[Operation], list[Hidden]]:
    """Return the operations of a program in order of execution, and those that cannot be tapped.

    Raises:
        ValueError: if the first convolution takes its channels from another axis than the last.
    """
    regions = Regions(graph)
    for node in graph.nodes:
        if node.active:
            match = next((match for pattern in PATTERNS if (match := pattern(node, regions)) is not None), None)
            regions.grow(node) if match is None else regions.claim(node, match)
    return [operation for operation in regions.close() if _can_be_tapped(operation)], regions.hidden


def _can_be_tapped(operation: Operation) -> bool:
    """Return whether the value of an operation consists of numbers, at least one, and is used."""
    var = operation.site.var
    dtype = getattr(var.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact) and 0 not in var.aval.shape and not is_dropped(var)
