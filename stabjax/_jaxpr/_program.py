"""Trace a network to a program, and the differences between JAX releases that a reader of programs meets.

Closed and open programs are told apart by their attributes, never by class: recent releases have one class for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
from jax.core import eval_jaxpr
from jax.extend import core as jex
from jax.interpreters import partial_eval

from stabjax._images import explain_batch

Jaxpr = Any
Equation = Any
Var = Any

JIT = frozenset({"jit", "pjit", "closed_call", "core_call", "core_closed_call"})
REMAT = frozenset({"checkpoint", "remat", "remat2"})
CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})
CALLS = JIT | REMAT | CUSTOM


@dataclass(frozen=True)
class Program:
    """A network written out: parameters and input are inputs, and every parameter keeps its path.

    Attributes:
        jaxpr: the open program.
        consts: values of its constants.
        paths: for each input, the path of the parameter it is, "" for an array that is no parameter of a module,
            or None for the images.
        out_names: the name of each output, "" for a network with a single one.
        out_tree: structure of the outputs.
    """

    jaxpr: Jaxpr
    consts: Sequence[Any]
    paths: tuple[str | None, ...]
    out_names: tuple[str, ...]
    out_tree: Any

    @property
    def images(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the images, the last input."""
        aval = self.jaxpr.invars[-1].aval
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype)

    @property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the outputs."""
        return [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in self.jaxpr.outvars]


def path_name(path: Sequence[Any]) -> str:
    """Return ``blocks/2/kernel`` for the key path of a leaf of a pytree."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def trace(apply: Callable[..., Any], leaves: Sequence[Any], paths: Sequence[str], x: Any) -> Program:
    """Trace ``apply(leaves, x)``; nothing is computed.

    Args:
        apply: network as a function of its parameters and a batch.
        leaves: parameters, concrete, traced or abstract.
        paths: their paths, "" for one without.
        x: a batch, or its shape and dtype.

    Raises:
        TypeError: if JAX cannot trace the network.
    """
    return _trace(jax.make_jaxpr(apply, return_shape=True), leaves, paths, x)


def trace_shared(run: Any, leaves: Sequence[Any], paths: Sequence[str], x: Any) -> Program:
    """Trace ``run(leaves, x)``, or return the program of an equal ``run`` that JAX has traced for such inputs before.

    Args:
        run: as ``apply`` in `trace`, equal to and hashed as those that make the same program of such inputs.
        leaves: parameters, concrete, traced or abstract.
        paths: their paths, "" for one without.
        x: a batch, or its shape and dtype.
    """
    return _trace(partial(jax.make_jaxpr(_call, static_argnums=0, return_shape=True), run), leaves, paths, x)


def _call(run: Callable[..., Any], leaves: Sequence[Any], x: Any) -> Any:
    """Call what is static here: JAX keeps the programs of one function by its static arguments."""
    # `run` is compared by what it holds, so that JAX finds the program of another object that is equal to it.
    return run(leaves, x)


def _trace(make: Callable[..., Any], leaves: Sequence[Any], paths: Sequence[str], x: Any) -> Program:
    try:
        with explain_batch(x):
            closed, shapes = make(list(leaves), x)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TypeError(
            "expected a network that JAX can trace, got one whose Python code needs the values of its activations "
            f"({type(error).__name__}: {reason}); replace `if`, `float()` or NumPy calls on activations by their "
            "jax.numpy and jax.lax counterparts"
        ) from error
    outputs, out_tree = jax.tree_util.tree_flatten_with_path(shapes)
    jaxpr, consts = opened(closed)
    jaxpr = _without_dead_code(jaxpr)
    return Program(
        jaxpr=jaxpr,
        consts=consts,
        # Inputs are the parameters in order, and behind them the images.
        paths=(*paths, *[None] * (len(jaxpr.invars) - len(paths))),
        out_names=tuple(path_name(path) for path, _ in outputs),
        out_tree=out_tree,
    )


@lru_cache(maxsize=64)
def _without_dead_code(jaxpr: Jaxpr) -> Jaxpr:
    """Drop equations that no output depends on, also inside of calls: the index beside a maximum, a key not drawn from.

    One program gives one: what is read of a program is kept with it.
    """
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return live


def opened(jaxpr: Jaxpr) -> tuple[Jaxpr, Sequence[Any]]:
    """Return the open program and the values of its constants."""
    # What has no `jaxpr` inside is an open program itself.
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def body(equation: Equation) -> Jaxpr | None:
    """Return the program inside a call, or None."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in equation.params:
            return equation.params[name]
    return None


def scan_split(params: dict[str, Any]) -> tuple[int, int]:
    """Return the number of constants and of carried values of a scan.

    From JAX 0.11 on they are read off a tree of its inputs.
    """
    # Operands of a scan: constants, carried values, stacked values.
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def default_branch(equation: Equation) -> Jaxpr | None:
    """Return what `platform_dependent` runs on platforms it does not name; None for any other ``cond``."""
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return None
    # One entry for each branch: the platforms it is for, None for all others. Without such a branch the last one.
    return equation.params["branches"][platforms.index(None) if None in platforms else -1]


def inner_programs(equation: Equation) -> list[Jaxpr]:
    """Return every program in the parameters of an equation."""
    found = []
    for value in equation.params.values():
        candidates = value if isinstance(value, tuple | list) else (value,)
        found += [candidate for candidate in candidates if hasattr(opened(candidate)[0], "eqns")]
    return found


def call_name(equation: Equation) -> str:
    """Return the function's own name: of a jit, or of the rule it carries."""
    name = equation.params.get("name")
    if name:
        return str(name)
    inner = body(equation)
    if inner is None:
        return equation.primitive.name
    # A custom_jvp has no name among its parameters; the program inside knows its function.
    info = getattr(opened(inner)[0], "debug_info", None)
    name = getattr(info, "func_name", "")
    return name if name.isidentifier() else equation.primitive.name


def scope_of(equation: Equation) -> tuple[str, ...]:
    """Return the named scopes around an equation, without what transformations wrap round a name.

    Of a method (``Block_0.encode``) the module stays; Equinox names a scope after the class (``eqx.nn.Conv2d``), which
    says nothing of the place, and `einsum` names one after its formula.
    """
    text = str(equation.source_info.name_stack)
    parts = []
    for part in text.split("/"):
        # ``jvp(Block_0.encode)/eqx.nn.Conv2d/head``: jvp( ) goes first, then .encode, and eqx.nn.Conv2d as a whole.
        while part.endswith(")") and "(" in part:
            part = part[part.index("(") + 1 : -1]
        module, _, rest = part.partition(".")
        # A number is the place of a module in a list.
        if (module.isidentifier() or module.isdigit()) and not rest.startswith("nn."):
            parts.append(module)
    return tuple(parts)


def is_literal(atom: Any) -> bool:
    """Return whether an operand is a literal."""
    return isinstance(atom, jex.Literal)


def is_dropped(var: Any) -> bool:
    """Return whether a value is not used."""
    return type(var).__name__ == "DropVar"


def run(jaxpr: Jaxpr, equations: Sequence[Equation], values: dict[Var, Any]) -> None:
    """Evaluate whole equations of a program, reading and writing ``values``.

    They run as a small program of their own, so that no rule of binding a primitive is repeated here.
    """
    # Inputs of the small program: what its equations read and none of them makes, each once. Outputs: all they make, as
    # it is not known here which of it is read later.
    made = {var for equation in equations for var in equation.outvars}
    needed = dict.fromkeys(
        atom for equation in equations for atom in equation.invars if not is_literal(atom) and atom not in made
    )
    results = [var for equation in equations for var in equation.outvars if not is_dropped(var)]
    # The effects of the whole program contain those of a part of it.
    part = jex.Jaxpr(
        constvars=(),
        invars=list(needed),
        outvars=results,
        eqns=list(equations),
        effects=jaxpr.effects,
        debug_info=_debug_info(jaxpr, len(needed), len(results)),
    )
    outputs = eval_jaxpr(part, (), *[values[var] for var in needed])
    values.update(zip(results, outputs, strict=True))


def with_constants_as_inputs(jaxpr: Jaxpr, position: int) -> Jaxpr:
    """Return an open program whose constants are inputs, in front of the input at a position."""
    # Variables keep their names: only the lists of inputs change, and no equation.
    inputs = [*jaxpr.invars[:position], *jaxpr.constvars, *jaxpr.invars[position:]]
    return jex.Jaxpr(
        constvars=(),
        invars=inputs,
        outvars=jaxpr.outvars,
        eqns=jaxpr.eqns,
        effects=jaxpr.effects,
        debug_info=_debug_info(jaxpr, len(inputs), len(jaxpr.outvars)),
    )


def _debug_info(jaxpr: Jaxpr, inputs: int, outputs: int) -> Any:
    info = jaxpr.debug_info
    return info._replace(arg_names=("",) * inputs, result_paths=("",) * outputs)
