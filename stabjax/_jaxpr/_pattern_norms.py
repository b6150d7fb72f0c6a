"""The patterns of normalizations, in the ways in which libraries write them (`_patterns` says what a pattern is)."""

from collections.abc import Callable, Collection

from stabjax._jaxpr._graph import Node, Value
from stabjax._jaxpr._primitives import WINDOWS
from stabjax._jaxpr._regions import Match, Operation, Regions, without_views

ADDITIONS = ("add", "add_any")
FACTORS = ("mul", "div")


# Layer normalization, equation by equation, with the pattern that claims each:
#
#     s = reduce_sum x     pool             an operation for now
#     m = div s n          mean             it goes on
#     c = sub x m          centering        the region of x goes on; the pool is absorbed, and no operation any more
#     q = integer_pow c    (none)           the region of x grows
#     t = reduce_sum q     pool
#     v = div t n          mean
#     e = add v eps        (none)           the region of t grows
#     r = rsqrt e          (none)
#     y = mul c r          norm             r descends from a reduction of the region of c, by a root; t is absorbed
#     z = mul y gain       scale_or_bias    the norm goes on
def norm(node: Node, regions: Regions) -> Match | None:
    """Match ``x * g(rsqrt(stat(x))) [* scale] [+ bias]``, or ``x / g(sqrt(stat(x)))``; mostly ``x`` is centered."""
    if node.name not in FACTORS or (found := regions.statistic(node)) is None:
        return None
    x, statistic, reductions = found
    if not _divides_by_root(node, statistic, regions):
        return None
    parameters = regions.segment(statistic).parameters
    reads, affine = (x,), frozenset[str]()
    if _is_scaled(x, regions) and not any(_reads(operation, x, regions) for operation in reductions):
        # (x * scale) * rsqrt(stat(x)): the scale comes first, and the statistic does not see it.
        segment = regions.segment(x)
        reads = (segment.activation,) if segment.activation else ()
        parameters, affine = parameters | segment.parameters, frozenset({"scale"})
    return Match(kind="norm", label="norm", parameters=parameters, affine=affine, reads=reads, absorbs=reductions)


def running_norm(node: Node, regions: Regions) -> Match | None:
    """Match ``(x [- mean]) * g(rsqrt(var)) [* scale] [+ bias]``, or ``/ g(sqrt(var))``, with constant statistics."""
    if node.name not in FACTORS or len(node.active) != 1:
        return None
    (x,), (statistic,) = node.active, node.constants
    # If the active factor is a root itself, this is a factor on a statistic, ``rsqrt(var) * gain``, and not yet the
    # norm.
    if not _divides_by_root(node, statistic, regions) or _is_root(x, regions) or _is_inverse_root(x, regions):
        return None
    # The mean is a part of the norm; what is not affine in front of it is an activation.
    segment = regions.segment(x)
    reads = (segment.activation or x,) if segment.nonlinear else ()
    return Match(kind="norm", label="norm", parameters=node.parameters, reads=reads)


def centering(node: Node, regions: Regions) -> Match | None:
    """Match ``x - stat(x)``, or ``+``: a part of a norm, and no operation by itself."""
    if node.name not in (*ADDITIONS, "sub") or (found := regions.statistic(node)) is None:
        return None
    x, statistic, reductions = found
    if slides(reductions):
        return None
    parameters = regions.segment(statistic).parameters
    return Match(parameters=parameters, reads=(x,), absorbs=reductions, region=x)


def offset(node: Node, regions: Regions) -> Match | None:
    """Match ``norm(x) + (bias - stat(x) * g(rsqrt(stat(x))))``, the mean taken off behind the division."""
    if node.name not in (*ADDITIONS, "sub") or not regions.joins_regions(node):
        return None
    for y, shift in (node.active, node.active[::-1]):
        operation = regions.operation(y)
        if operation is None or operation.kind != "norm" or "bias" in operation.affine:
            continue
        found = regions.statistic(operation.node)
        if found is None or not _descends(shift, regions, _inverts(regions), (*ADDITIONS, "sub", "neg", "mul")):
            continue
        # The mean is one of the value that the norm divides.
        reductions = regions.reductions(shift).get(regions.segment(found[0]).origin)
        if reductions:
            parameters, affine = regions.segment(shift).parameters, frozenset({"bias"})
            absorbs = tuple(reductions)
            return Match(extends=operation, parameters=parameters, affine=affine, absorbs=absorbs, region=y)
    return None


def ungrouping(node: Node, regions: Regions) -> Match | None:
    """Match the reshape behind a norm of groups, ``(b, h, w, groups, c / groups)`` to ``(b, h, w, c)``: its end."""
    if node.name != "reshape" or (operation := regions.operation(node.operands[0])) is None:
        return None
    if operation.kind != "norm" or operation.site is not node.operands[0]:
        return None
    found = regions.statistic(operation.node)
    shape = node.results[0].var.aval.shape
    # The shape in front of the groups is that of the value which the region of the norm's operand begins with.
    value = regions.segment(found[0]).origin if found else None
    if value is None or value.var.aval.shape == operation.site.var.aval.shape or value.var.aval.shape != shape:
        return None
    return Match(extends=operation, affine=operation.affine, region=node.operands[0])


def moments(node: Node, regions: Regions) -> Match | None:
    """Match ``f(stat(x), stat(x))``, as the variance ``mean(x * x) - mean(x) ** 2``: a statistic, and no operation."""
    if not regions.joins_regions(node):
        return None
    first, second = node.active
    # Both are statistics of one region: by origin, {origin of what is reduced: reductions}.
    if not regions.reductions(first).keys() & regions.reductions(second).keys():
        return None
    parameters = regions.segment(first).parameters | regions.segment(second).parameters
    return Match(parameters=parameters, region=first)


def _divides_by_root(node: Node, statistic: Value, regions: Regions) -> bool:
    """Return whether a product has an inverse root as one factor, or a quotient a root as its divisor."""
    if node.name == "mul":
        return _is_inverse_root(statistic, regions)
    return statistic is node.operands[1] and _is_root(statistic, regions)


def _is_scaled(value: Value, regions: Regions) -> bool:
    """Return whether a value is a product with a parameter, up to views."""
    node = without_views(value).node
    return node is not None and node.name in FACTORS and any(map(regions.graph.is_parameter, node.constants))


def _is_root(value: Value, regions: Regions) -> bool:
    """Return whether a value is a root up to factors, as a deviation is; any positive power counts."""
    # sqrt(v) + eps and max(sqrt(v), eps) count as well.
    return _descends(value, regions, lambda node: node.name == "sqrt" or exponent(node) > 0, ("add", "mul", "max"))


def _is_inverse_root(value: Value, regions: Regions) -> bool:
    """Return whether a value is the inverse of a root up to factors; any negative power counts."""
    return _descends(value, regions, _inverts(regions), ("mul",))


def _inverts(regions: Regions) -> Callable[[Node], bool]:
    """Return the question whether an equation takes the inverse of a root."""

    def inverts(node: Node) -> bool:
        if node.name != "div":
            return node.name == "rsqrt" or exponent(node) < 0
        # 1 / sqrt(v), but no quotient of two roots, in which they may cancel.
        above, below = node.operands
        return _is_root(below, regions) and not (node.active and _is_root(above, regions))

    return inverts


def exponent(node: Node) -> float:
    """Return the exponent of a power, 0 where it is no number or the equation no power."""
    return float(getattr(node.equation.invars[1], "val", 0)) if node.name == "pow" else 0.0


def _descends(value: Value, regions: Regions, goal: Callable[[Node], bool], through: Collection[str]) -> bool:
    """Return whether a value descends from such an equation by views and, where it is active, these primitives."""
    seen, stack = set(), [value]
    while stack:
        value = stack.pop()
        node = value.node
        # A number that the program computes, as the root of the width of attention heads, is no statistic.
        relevant = regions.goes_on(value) if value.active else value.parameters or value.size != 1
        if node is None or value in seen or not relevant:
            continue
        seen.add(value)
        if goal(node):
            return True
        if node.is_view or node.name in (through if value.active else FACTORS):
            stack += node.operands
    return False


def slides(reductions: Collection[Operation]) -> bool:
    """Return whether a statistic is that of a window around each position, as a pool has it."""
    return any(operation.kind == "pool" and operation.node.name in WINDOWS for operation in reductions)


def _reads(reduction: Operation, x: Value, regions: Regions) -> bool:
    """Return whether what is reduced descends elementwise from a value."""
    seen, stack = set(), [reduction.node.active[0]]
    while stack:
        value = stack.pop()
        if value is x:
            return True
        if value not in seen and value.node is not None and regions.goes_on(value):
            seen.add(value)
            stack += value.node.active
    return False
