"""The facts about each value of a program (`_graph`), in one forward pass by tables.

Nested programs are treated here, once for all patterns:

    jit                    inlined; one node where it is an activation called by its name
    remat, scan            inlined, and built again around their bodies by `_evaluate`
    custom_jvp, custom_vjp one node, bound whole, with the graph of its body
    platform_dependent     one node, bound whole, with the graph of its default branch
    cond, while, others    one node, bound whole, with the graphs of all bodies, and the reason why these are hidden
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stabjax._jaxpr import _axes, _program
from stabjax._jaxpr._axes import Axes
from stabjax._jaxpr._graph import Graph, Node, Value
from stabjax._jaxpr._plan import Frame, TapPlan
from stabjax._jaxpr._primitives import ACTIVATIONS, is_activation
from stabjax._jaxpr._program import CUSTOM, JIT, REMAT, Jaxpr, Var


def analyze(plan: TapPlan, paths: Sequence[str | None], root: str) -> Graph:
    """Return the def-use graph of a traced network.

    Args:
        plan: the program; plans of what is inlined become its children.
        paths: for each input the path of the parameter it is, "" for one without, None for the images.
        root: outermost named scope.
    """
    inputs = [
        Value(plan, var, True, axes=_axes.of_images(var.aval.shape))
        if path is None
        else Value(plan, var, False, frozenset({path} if path else ()))
        for var, path in zip(plan.jaxpr.invars, paths, strict=True)
    ]
    graph = Graph(root, has_paths=any(paths), is_nested=False, mixed_rows=[])
    graph.outputs = _add_program(graph, plan, inputs)
    return graph


def _add_program(
    graph: Graph, plan: TapPlan, inputs: Sequence[Value], scope: tuple[str, ...] = (), frames: tuple[Frame, ...] = ()
) -> list[Value]:
    """Add the equations of a program to a graph, and return its outputs."""
    # Arrays that the program holds are constants without a path. A variable is defined once, before it is read: one
    # pass over the equations is enough.
    values = {var: Value(plan, var, False) for var in plan.jaxpr.constvars}
    values |= zip(plan.jaxpr.invars, inputs, strict=True)

    def lookup(atom: Any) -> Value:
        return Value(plan, atom, False) if _program.is_literal(atom) else values[atom]

    for index, equation in enumerate(plan.jaxpr.eqns):
        own = _program.scope_of(equation)
        # Linen puts the class of the whole network in front of all scopes.
        if not scope and own[:1] == (graph.root,):
            own = own[1:]
        node = Node(equation, plan, index, (*scope, *own), frames, tuple(map(lookup, equation.invars)))
        values |= zip(equation.outvars, _add_equation(graph, node), strict=True)
    return [lookup(atom) for atom in plan.jaxpr.outvars]


def _add_equation(graph: Graph, node: Node) -> Sequence[Value]:
    """Add an equation, by tables, and return what it defines."""
    equation, name = node.equation, node.name
    # The order matters: the call of an activation is one operation, so it is found before calls are inlined.
    if not node.active:
        return _add(graph, node, [None] * len(equation.outvars))
    if _axes.crosses_rows(equation, node.axes):
        graph.mixed_rows.append("/".join((*node.scope, name)))
    if _is_activation_call(node):
        node.is_activation = True
        return _add(graph, node, [node.active[0].axes])
    if name in _CALLS:
        return _CALLS[name](graph, node)
    if node.is_view and len(equation.outvars) > 1:
        return node.operands  # an optimization barrier returns its operands
    if name in _axes.RULES:
        return _add(graph, node, _axes.of_results(equation, node.axes))
    return _add_whole(graph, node, _program.inner_programs(equation), _program.call_name(equation))


def _add(graph: Graph, node: Node, axes: Sequence[Axes | None]) -> tuple[Value, ...]:
    """Add a node and return its results, given their axes, None for constants."""
    position = len(graph.nodes)
    graph.nodes.append(node)
    # Paths go along with constants only. In an active value they have been used: they name the operation.
    parameters = [node.parameters if own is None else frozenset() for own in axes]
    node.results = tuple(
        Value(node.plan, var, own is not None, paths, own or (), node, position)
        for var, paths, own in zip(node.equation.outvars, parameters, axes, strict=True)
    )
    return node.results


# Nested programs


def _is_activation_call(node: Node) -> bool:
    """Return whether a call is one elementwise function of one active value, by its name or with its own derivative.

    A gradient through an activation calls one of its name that returns the residuals too.
    """
    if node.name not in JIT | CUSTOM | {"cond"} or not len(set(node.active)) == len(node.equation.outvars) == 1:
        return False
    inner = _program.default_branch(node.equation) if node.name == "cond" else _program.body(node.equation)
    # A jit by any other name is a part of the network's own code, and is inlined.
    is_named = node.name not in JIT or _program.call_name(node.equation) in ACTIVATIONS
    return is_named and inner is not None and is_activation(inner)


def _inline(graph: Graph, node: Node) -> Sequence[Value]:
    """Add the body of a jit or a remat, as if there were no call."""
    child = node.plan.children[node.index] = TapPlan(*_program.opened(_program.body(node.equation)))
    return _add_program(graph, child, node.operands, node.scope, node.frames)


def _add_custom(graph: Graph, node: Node) -> Sequence[Value]:
    """Add a call with a derivative of its own, for which a single operation inside may stand."""
    node.is_transparent = True
    name = _program.call_name(node.equation)
    return _add_whole(graph, node, [_program.body(node.equation)], name, is_seen=True)


def _add_cond(graph: Graph, node: Node) -> Sequence[Value]:
    """Add a choice of programs; of `platform_dependent` the default branch stands for all."""
    if (default := _program.default_branch(node.equation)) is not None:
        node.is_transparent = True
        return _add_whole(graph, node, [default], "a platform_dependent call", is_seen=True)
    node.reason = "inside a cond, whose branch is chosen while it runs"
    return _add_whole(graph, node, node.equation.params["branches"], "", is_seen=not node.operands[0].active)


def _add_whole(
    graph: Graph, node: Node, programs: Sequence[Jaxpr], name: str, *, is_seen: bool = False
) -> Sequence[Value]:
    """Add a call of some name that is bound whole, with the graphs of its bodies.

    Where its results are seen, they are those of one of the bodies, and their facts are known from inside.
    """
    node.bodies = tuple(_body(graph, node, program) for program in programs)
    node.reason = node.reason or f"inside {name}, which is bound whole"
    axes = _axes.of_results(node.equation, node.axes)
    if not is_seen:
        return _add(graph, node, axes)
    # For each result, what every branch returns there. One that is active makes the result active.
    choices = zip(*[body.outputs for body in node.bodies], strict=True)
    inside = [max(values, key=lambda value: value.active) for values in choices]
    known = [
        (value.axes if any(value.axes) else own) if value.active else None
        for value, own in zip(inside, axes, strict=True)
    ]
    results = _add(graph, node, known)
    # A constant keeps its definition inside, in which a norm looks for its root.
    return [result if result.active else value for result, value in zip(results, inside, strict=True)]


def _body(graph: Graph, node: Node, program: Jaxpr) -> Graph:
    """Return the graph of a program inside a call; its inputs are the last operands, if they fit."""
    jaxpr, consts = _program.opened(program)
    plan = TapPlan(jaxpr, consts)
    # A cond reads (index, *inputs), its branches read (*inputs). A loop reads the constants of its condition, those of
    # its body, and what it carries: they may not fit, and nothing is known then.
    operands = node.operands[len(node.operands) - len(jaxpr.invars) :]
    if [value.var.aval.ndim for value in operands] == [var.aval.ndim for var in jaxpr.invars]:
        inputs = [_input(plan, var, value, value.axes) for var, value in zip(jaxpr.invars, operands, strict=True)]
    else:
        inputs = [Value(plan, var, True, axes=_axes.unknown(var.aval)) for var in jaxpr.invars]
    return _nested(graph, plan, inputs, node.scope)


def _input(plan: TapPlan, var: Var, value: Value, axes: Axes) -> Value:
    """Return the input of a nested program for an operand; the definition of a constant stays known."""
    return Value(plan, var, value.active, value.parameters, axes, None if value.active else value.node)


def _nested(graph: Graph, plan: TapPlan, inputs: Sequence[Value], scope: tuple[str, ...]) -> Graph:
    """Return the graph of a nested program by itself."""
    nested = Graph(graph.root, graph.has_paths, is_nested=True, mixed_rows=graph.mixed_rows)
    nested.outputs = _add_program(nested, plan, inputs, scope)
    return nested


def _add_scan(graph: Graph, node: Node) -> Sequence[Value]:
    """Add the body of a scan once: an operation in it stands for one tap per iteration."""
    params = node.equation.params
    jaxpr, consts = _program.opened(params["jaxpr"])
    fixed, carried = _program.scan_split(params)
    stacked = node.operands[fixed + carried :]
    child = TapPlan(jaxpr, consts)
    inputs = [
        # Operands are (constants, carried, stacked); of the stacked ones the body reads one row, without the first
        # axis.
        _input(child, var, value, value.axes[1:] if k >= fixed + carried else value.axes)
        for k, (var, value) in enumerate(zip(jaxpr.invars, node.operands, strict=True))
    ]
    if any(value.active and _axes.role(value.axes[0]) == "b" for value in stacked):
        # What is carried from image to image makes rows depend on each other.
        graph.mixed_rows += ["/".join((*node.scope, node.name))] if carried else []
        node.bodies = (_nested(graph, child, inputs, node.scope),)
        node.reason = "inside a loop over the images, as lax.map makes one; jax.vmap lets them be seen"
        return _add(graph, node, _axes.of_results(node.equation, node.axes))
    _activate_carry(graph, child, inputs, range(fixed, fixed + carried))
    node.plan.children[node.index] = child
    paths = frozenset().union(*[value.parameters for value in stacked])
    frame = Frame(paths, node.scope, params["length"], params["reverse"])
    outputs = _add_program(graph, child, inputs, node.scope, (*node.frames, frame))
    # The node reads what its body returns, so that segments end there and patterns can look back into the loop.
    node = replace(node, operands=(*node.operands, *outputs))
    # Results are (carried, stacked): the stacked ones have the iterations on a first axis.
    iterations = ((("s", params["length"]),),)
    axes = [value.axes if k < carried else iterations + value.axes for k, value in enumerate(outputs)]
    results = _add(graph, node, [own if value.active else None for own, value in zip(axes, outputs, strict=True)])
    for result, value in zip(results, outputs, strict=True):
        # Those of a constant alone, and not all that the scan reads.
        result.parameters = value.parameters
    return results


def _activate_carry(graph: Graph, child: TapPlan, inputs: list[Value], carry: range) -> None:
    """Make active what a scan begins with as a constant, and carries on as a value that depends on the images."""
    # Activity only spreads: a round makes one more carried value active, or it is the last. Rounds are tried in a graph
    # and a plan of their own, which are thrown away.
    late = [k for k in carry if not inputs[k].active]
    while late:
        trial = Graph(graph.root, graph.has_paths, is_nested=True, mixed_rows=[])
        outputs = _add_program(trial, TapPlan(child.jaxpr, child.consts), inputs)
        late = [k for k in carry if outputs[k - carry.start].active and not inputs[k].active]
        for k in late:
            inputs[k] = Value(child, child.jaxpr.invars[k], True, axes=outputs[k - carry.start].axes)


_CALLS: dict[str, Callable[[Graph, Node], Sequence[Value]]] = (
    dict.fromkeys(JIT | REMAT, _inline) | dict.fromkeys(CUSTOM, _add_custom) | {"cond": _add_cond, "scan": _add_scan}
)
