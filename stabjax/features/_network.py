"""A network of any framework as data: a callable pytree whose leaves are its parameters."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.core import Tracer

from stabjax._jaxpr import examine, of_object, path_name, token

MODES = ("eval", "batch_statistics")
LAYOUTS = ("channels_last", "channels_first")
RNGS = " rngs"
"""Stands for the random keys among the collections of a Linen module: before any of their names, and none of them."""


@dataclass(frozen=True)
class Adapter:
    """How to call a guest. Equal for two networks of one architecture, so that they share one compilation.

    Attributes:
        skeleton: what is left of the guest without its arrays.
        rebuild: puts the arrays back: ``rebuild(skeleton, variables)`` is the function of a batch or an example.
        paths: path of each parameter, in the order of the leaves; "" for what is no parameter of a module.
        root: outermost named scope, which names leave out.
        single, layout: what the guest takes.
        method, static: what is called, and its further arguments.
        opaque: whether the guest may hold arrays besides its parameters.
        foreign: whether it runs code of no known library, which may read anything: it is traced at every call.
        seen: of an opaque one that is an argument of ``jit``, what it held when it was passed.
    """

    skeleton: Any
    rebuild: Callable[..., Callable[..., Any]]
    paths: tuple[str, ...]
    root: str
    single: bool
    layout: str
    method: str | Callable[..., Any] | None
    static: tuple[tuple[str, Any], ...]
    opaque: bool = field(compare=False)
    foreign: bool = field(compare=False)
    seen: object = None

    def __hash__(self) -> int:
        # Without the skeleton: a layer may hold a list (a padding), which compares but has no hash.
        mine = (self.rebuild, self.paths, self.root, self.single, self.layout, self.method, self.static, self.seen)
        return hash(mine)

    def __call__(self, variables: Any, x: Any) -> Any:
        """The guest's outputs for a batch with its channels last."""
        function = self.rebuild(self.skeleton, variables, self.method)
        static = dict(self.static)
        if self.layout == "channels_first":
            x = jnp.moveaxis(x, -1, 1)
        if self.single:
            return jax.vmap(lambda example: function(example, **static))(x)
        return function(x, **static)


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Guest:
    """A network as data, made by `stabjax.features.of`.

    A registered pytree: pass it as an argument of ``jit``, stack several under ``vmap``, save it as a tree. Calling it
    on a batch, ``(batch, *spatial, channels)``, runs the network.

    Attributes:
        variables: parameters and statistics by their paths (of a Linen module, its collections and random keys).
        adapter: everything else, static: how to run it, ``adapter(variables, x)``.
    """

    variables: Any
    adapter: Any

    def __call__(self, x: Any, /) -> Any:
        """The outputs for a batch."""
        return self.adapter(self.variables, x)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], Any]:
        """The variables, and the adapter; with it what an opaque guest holds now, so that no program outlives it."""
        adapter = self.adapter
        if isinstance(adapter, Adapter) and adapter.opaque:
            held = of_object((adapter.skeleton, adapter.method, adapter.static))
            adapter = replace(adapter, seen=token(held))
        return ((jax.tree_util.GetAttrKey("variables"), self.variables),), adapter

    @classmethod
    def tree_unflatten(cls, adapter: Any, children: Iterable[Any]) -> "Guest":
        """The network of these variables."""
        (variables,) = children
        return cls(variables, adapter)


def of(
    model: Any,
    *,
    method: str | Callable[..., Any] | None = None,
    single: bool = False,
    layout: str = "channels_last",
    mode: str = "eval",
    **static: Any,
) -> Guest:
    """A network of any framework as a callable pytree; the guest itself is never changed.

    The arrays are copied, so that the network can be donated to ``jit``, and the guest trained on, each without the
    other.

    * Flax NNX: the module. The copy is put into evaluation mode.
    * Flax Linen: the bound module, ``module.bind(variables)``. Its mode is an argument of its own, passed on as
      ``static``: ``of(module.bind(variables), train=False)``. Random keys it was bound with stay with it, as leaves,
      and every call starts from them: ``of(module.bind(variables, rngs={"dropout": key}), train=True)``.
    * Equinox: the module, in inference mode; most take one example, hence ``single=True, layout="channels_first"``.
    * Any other callable pytree, such as ``jax.tree_util.Partial(apply, params)``.
    * Any other callable, such as a plain function or a Keras model. It holds its arrays itself, and its operations have
      no module names. `stabjax.probe`, `stabjax.lipschitz` and `stabjax.receptive` trace it anew at every call and take
      the arrays as arguments: what was changed in place is seen, and the same program compiles once. In a ``jit`` of
      your own its arrays are constants, and it compiles again when one has changed, as far as they can be followed: in
      attributes, items, closures, and globals that its own code names.

    Args:
        model: the guest.
        method: name of the method to call, or the method; by default the module itself is called.
        single: whether the guest takes one example instead of a batch.
        layout: ``"channels_last"``, or ``"channels_first"`` for a guest that wants its channels in front of space.
            The network made here takes channels last in both cases.
        mode: ``"eval"``, or ``"batch_statistics"`` for NNX networks at initialisation, which have no running
            statistics yet: normalisation by the batch at hand, dropout off.
        **static: further keyword arguments of the guest, hashable.

    Returns:
        the network.

    Raises:
        TypeError: if the guest is not callable, an unbound Linen module, or a keyword argument is not hashable.
        ValueError: for an unknown layout or mode.
    """
    network = taken(model, method=method, single=single, layout=layout, mode=mode, **static)
    return Guest(jax.tree_util.tree_map(_copied, network.variables), network.adapter)


def taken(
    model: Any,
    *,
    method: str | Callable[..., Any] | None = None,
    single: bool = False,
    layout: str = "channels_last",
    mode: str = "eval",
    **static: Any,
) -> Guest:
    """`of` with the arrays of the guest itself, for a use that changes none."""
    if layout not in LAYOUTS:
        raise ValueError(f"expected layout to be one of {LAYOUTS}, got {layout!r}")
    if mode not in MODES:
        raise ValueError(f"expected mode to be one of {MODES}, got {mode!r}")
    if isinstance(model, Guest):
        raise TypeError("expected a guest network, got one that features.of has already made; use it as it is")
    if not callable(model) and method is None:
        raise TypeError(f"expected a network, a callable, got {type(model).__name__}; name its method=...")
    try:
        hash((method, tuple(static.values())))
    except TypeError as error:
        raise TypeError(f"expected hashable keyword arguments, got {static}; arrays belong into the network") from error
    skeleton, rebuild, variables, paths, root = _taken_apart(model, mode)
    opaque, foreign = _hides(model, variables)
    adapter = Adapter(
        skeleton=skeleton,
        rebuild=rebuild,
        paths=paths,
        root=root,
        single=single,
        layout=layout,
        method=method,
        static=tuple(sorted(static.items())),
        opaque=opaque,
        foreign=foreign or callable(method),
    )
    return Guest(variables, adapter)


def _hides(model: Any, variables: Any) -> tuple[bool, bool]:
    """Whether a guest may hold arrays besides its parameters, and whether its code may read anything."""
    equinox = sys.modules.get("equinox")
    if isinstance(model, nnx.Module | linen.Module) or (equinox is not None and isinstance(model, equinox.Module)):
        found = examine(model, jax.tree_util.tree_leaves(variables))
        return found.may_change, found.foreign
    return True, True


def _taken_apart(model: Any, mode: str) -> tuple[Any, Callable[..., Any], Any, tuple[str, ...], str]:
    """Static part, how to put it together again, arrays, their paths, and the root's scope."""
    if isinstance(model, nnx.Module):
        copy = nnx.view(model, deterministic=True, use_running_average=mode == "eval", raise_if_not_found=False)
        graph, state = nnx.split(copy)
        leaves, treedef = jax.tree_util.tree_flatten(state)
        paths = _distinct(_paths(state, drop=("value",)))
        return (graph, treedef, paths), _rebuild_nnx, dict(zip(paths, leaves)), tuple(sorted(paths)), ""
    if mode != "eval":
        raise ValueError(
            f"mode={mode!r} is for Flax NNX modules, got {type(model).__name__}; a Linen module takes its mode as an "
            "argument of its own, features.of(module.bind(variables), train=True)"
        )
    if isinstance(model, linen.Module):
        if model.scope is None:
            raise TypeError(
                f"expected a bound Linen module, got {type(model).__name__} without variables; "
                "write features.of(module.bind(variables))"
            )
        rngs = dict(model.scope.rngs)
        skeleton, variables = model.unbind()
        names = tuple(path.partition("/")[2] for path in _paths(variables, drop=("value",)))
        if not rngs:
            return skeleton, _rebuild_linen, dict(variables), names, type(model).__name__
        # In order of the leaves: keys are no parameters, and have no path.
        variables = {RNGS: rngs, **variables}
        return skeleton, _rebuild_linen, variables, ("",) * len(rngs) + names, type(model).__name__
    equinox = sys.modules.get("equinox")
    if equinox is not None and isinstance(model, equinox.Module):
        model = equinox.nn.inference_mode(model)
    leaves, treedef = jax.tree_util.tree_flatten(model)
    fixed = tuple(ARRAY if _is_array(leaf) else leaf for leaf in leaves)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    paths = [path for path, leaf in zip(_paths(model), leaves, strict=True) if _is_array(leaf)]
    if isinstance(model, jax.tree_util.Partial) and paths:
        paths = _shortened(paths)
    paths = _distinct(paths)
    return (treedef, fixed, paths), _rebuild_tree, dict(zip(paths, arrays)), tuple(sorted(paths)), ""


def _copied(leaf: Any) -> Any:
    """An array of its own; what is traced or has a shape only stays as it is."""
    return leaf.copy() if _is_array(leaf) and not isinstance(leaf, Tracer) else leaf


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _paths(tree: Any, drop: tuple[str, ...] = ()) -> tuple[str, ...]:
    names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = path_name(path)
        stem, _, last = name.rpartition("/")
        names.append(stem if last in drop else name)
    return tuple(names)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Paths told apart by a number where keys that hold a slash make two alike."""
    used: Counter[str] = Counter()
    result = []
    for name in names:
        result.append(f"{name}:{used[name]}" if used[name] else name)
        used[name] += 1
    return tuple(result)


def _shortened(names: list[str]) -> list[str]:
    """Paths of a partial function without the position of the argument they stand in."""
    while all("/" in name for name in names) and len({name.partition("/")[0] for name in names}) == 1:
        first, _, _ = names[0].partition("/")
        if not first.isdigit():
            break
        names = [name.partition("/")[2] for name in names]
    return names


class ARRAY:
    """Stands for an array in the static part of a network; a class, so that there is one of it in every process."""


def _rebuild_nnx(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    # The state is unflattened here, so that its variables belong to the trace that runs them.
    graph, treedef, paths = skeleton
    state = treedef.unflatten([variables[path] for path in paths])
    return _bound(nnx.merge(graph, state), method)


def _rebuild_linen(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    collections = {name: value for name, value in variables.items() if name != RNGS}
    changing = [name for name in collections if name != "params"]

    def apply(x: Any, **static: Any) -> Any:
        rngs = variables.get(RNGS)
        result = skeleton.apply(collections, x, rngs=rngs, method=method, mutable=changing or False, **static)
        return result[0] if changing else result

    return apply


def _rebuild_tree(skeleton: Any, variables: Any, method: Any) -> Callable[..., Any]:
    treedef, fixed, paths = skeleton
    arrays = iter([variables[path] for path in paths])
    return _bound(treedef.unflatten([next(arrays) if leaf is ARRAY else leaf for leaf in fixed]), method)


def _bound(model: Any, method: Any) -> Callable[..., Any]:
    if method is None:
        return model
    return getattr(model, method) if isinstance(method, str) else lambda *args, **static: method(model, *args, **static)
