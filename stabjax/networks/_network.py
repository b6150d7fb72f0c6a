"""`Network`, and `wrap`, which makes one of a model by the table of frameworks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from stabjax._jaxpr import examine, of_object, token
from stabjax.networks import _equinox, _haiku, _keras, _linen, _nnx, _pytorch, _pytree
from stabjax.networks._framework import Framework, is_array

LAYOUTS = ("channels_last", "channels_first")
CONVOLUTIONS = ("fast", "own")

FRAMEWORKS = [
    _nnx.FRAMEWORK,
    _linen.FRAMEWORK,
    _equinox.FRAMEWORK,
    _equinox.WITH_STATE,
    _pytorch.FRAMEWORK,
    _keras.FRAMEWORK,
    _haiku.FRAMEWORK,
    _pytree.FRAMEWORK,
]
"""The first that claims a model takes it apart; the last claims all."""


def register(framework: Framework) -> None:
    """Add a framework in front of the table, so that `wrap` and every function that takes a network know its models.

    Args:
        framework: how to take its models apart. One of the same name is replaced.
    """
    FRAMEWORKS[:] = [framework, *[known for known in FRAMEWORKS if known.name != framework.name]]


@dataclass(frozen=True)
class Adapter:
    """How to call a model. Equal for two networks of one architecture, so that they share one compilation.

    Attributes:
        skeleton, rebuild, paths, root, separator: as in `Parts`.
        single, layout: what the model takes.
        image: name of the argument that takes the images, "" for the first.
        has_inputs: whether the variables are ``{"inputs": further inputs, "model": variables of the model}``.
        method, static: what is called, and its further arguments.
        opaque: whether the model may hold arrays besides its parameters.
        foreign: whether it runs code of no known library, which may read anything: it is traced at every call.
        held: of an opaque one that is an argument of ``jit``, a token of what it held when it was passed.
        convolutions: whether a probe may compute its convolutions by routes that are faster on a CPU.
        remedy: what to write if it fails as it stands; "" where options were given.
    """

    skeleton: Any
    rebuild: Callable[..., Callable[..., Any]]
    paths: tuple[str, ...]
    root: str
    single: bool
    layout: str
    method: str | Callable[..., Any] | None
    static: tuple[tuple[str, Any], ...]
    # Not compared: both follow from the model, and what an opaque one holds is compared as `held`.
    opaque: bool = field(compare=False)
    foreign: bool = field(compare=False)
    held: object = None
    convolutions: str = "fast"
    separator: str = "/"
    image: str = ""
    has_inputs: bool = False
    remedy: str = field(compare=False, default="")

    def __hash__(self) -> int:
        # Without the skeleton: a layer may hold a list (a padding), which compares but has no hash.
        return hash(
            (
                self.rebuild,
                self.paths,
                self.root,
                self.single,
                self.layout,
                self.method,
                self.static,
                self.image,
                self.held,
            )
        )

    def __call__(self, variables: Any, x: Any) -> Any:
        """Return the model's outputs for a batch with its channels last."""
        variables, inputs = (variables["model"], variables["inputs"]) if self.has_inputs else (variables, {})
        function = self.rebuild(self.skeleton, variables, self.method)
        static = dict(self.static)

        def call(images: Any, inputs: Any) -> Any:
            if self.image:
                return function(**{self.image: images}, **inputs, **static)
            return function(images, **inputs, **static)

        if self.layout == "channels_first":
            x = jnp.moveaxis(x, -1, 1)
        if self.single:
            # (batch, ...) -> one example (...) at a time, in the layout of the model.
            return jax.vmap(lambda example: call(example, inputs))(x)
        # Of one image -> of each image of the batch.
        return call(x, jax.tree_util.tree_map(lambda leaf: jnp.broadcast_to(leaf, (len(x), *leaf.shape)), inputs))


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Network:
    """A network as data, made by `wrap`.

    A registered pytree: pass it as an argument of ``jit``, stack several under ``vmap``, save it as a tree. Calling it
    on a batch, ``(batch, *spatial, channels)``, runs the network.

    Attributes:
        variables: parameters and statistics by their paths (of a Linen module, its collections and random keys).
        adapter: everything else, static: how to run it, ``adapter(variables, x)``.
    """

    variables: Any
    adapter: Adapter

    def __call__(self, x: Any, /) -> Any:
        """Return the outputs for a batch."""
        return self.adapter(self.variables, x)

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[Any, Any], ...], Any]:
        """Return the variables and the adapter.

        An opaque model is looked at anew, so that no compiled program outlives what it holds.
        """
        adapter = self.adapter
        if adapter.opaque:
            # `jit` compares what is flattened: with a token of the contents, a change in place is another adapter, and
            # compiles anew.
            held = of_object((adapter.skeleton, adapter.method, adapter.static))
            adapter = replace(adapter, held=token(held))
        return ((jax.tree_util.GetAttrKey("variables"), self.variables),), adapter

    @classmethod
    def tree_unflatten(cls, adapter: Any, children: Iterable[Any]) -> "Network":
        """Return the network of these variables."""
        (variables,) = children
        return cls(variables, adapter)


def wrap(
    model: Any,
    *,
    method: str | Callable[..., Any] | None = None,
    single: bool = False,
    layout: str | None = None,
    mode: str = "eval",
    convolutions: str = "fast",
    image: str = "",
    inputs: Mapping[str, Any] | None = None,
    **static: Any,
) -> Network:
    """Make a network of a model of any framework; the model itself is never changed.

    The arrays are copied, so that the network can be donated to ``jit``, and the model trained on, each without the
    other.

    * Flax NNX: the module. The copy is put into evaluation mode.
    * Flax Linen: the bound module, ``module.bind(variables)``. Its mode is an argument of its own, passed on as
      ``static``: ``wrap(module.bind(variables), train=False)``. Random keys it was bound with stay with it, as leaves,
      and every call starts from them: ``wrap(module.bind(variables, rngs={"dropout": key}), train=True)``.
    * Equinox: the module, in inference mode, or ``(module, state)``; most take one example, hence ``single=True,
      layout="channels_first"``.
    * PyTorch: the module, as it is: a copy runs in JAX through torchax, in evaluation mode, and takes its channels
      first. Taps have the names that torch prints, ``features.0``. ``pip install 'stabjax[pytorch]'``.
    * Keras 3 on the backend JAX: the model, once it is built. ``pip install 'stabjax[keras]'``.
    * Haiku: ``(transformed, params)``, ``(transformed, params, state)``, and a random key behind them where the
      function takes one. ``pip install 'stabjax[haiku]'``.
    * Any other callable pytree, such as ``jax.tree_util.Partial(apply, params)``.
    * Any other callable, such as a plain function. It holds its arrays itself, and its operations have
      no module names. `stabjax.probe`, `stabjax.lipschitz` and `stabjax.receptive` trace it anew at every call and take
      the arrays as arguments: what was changed in place is seen, and the same program compiles once. In a ``jit`` of
      your own its arrays are constants, and it compiles again when one has changed, as far as they can be followed: in
      attributes, items, closures, and globals that its own code names.
    * A model of a framework that was added by `register`.

    Args:
        model: the network in its framework.
        method: name of the method to call, or the method; by default the module itself is called.
        single: whether the model takes one example instead of a batch.
        layout: ``"channels_last"``, or ``"channels_first"`` for a model that wants its channels in front of space; by
            default the custom of the framework, channels first for PyTorch alone. The network made here takes channels
            last in all cases.
        mode: ``"eval"``, or ``"batch_statistics"`` for networks of NNX and PyTorch at initialization, which have no
            running statistics yet: normalization by the batch at hand, dropout off.
        convolutions: ``"fast"``: while `stabjax.probe` measures the network on a CPU, its convolutions are those of
            `stabjax.conv`, equal to rounding, except in branches, while loops and functions with a derivative of their
            own. ``"own"``: they run as the network has them.
        image: name of the argument that takes the images, of a model of several inputs; by default its first.
        inputs: its other inputs by name, arrays or pytrees of them: those of one image, without an axis for the batch.
            They are held fixed, and every image comes with the same. Of a Keras model, the names of its inputs.
        **static: further keyword arguments of the model, hashable.

    Returns:
        the network.

    Raises:
        TypeError: if the model is not callable, or one of a known framework that cannot run as it is, with what to
            write; or a keyword argument holds arrays, or is not hashable.
        ValueError: for an unknown layout, mode, or word for convolutions.
    """
    network = _wrap(
        model,
        method=method,
        single=single,
        layout=layout,
        mode=mode,
        convolutions=convolutions,
        image=image,
        inputs=inputs,
        **static,
    )
    return Network(jax.tree_util.tree_map(_copy, network.variables), network.adapter)


def as_network(f: Any) -> Network:
    """Return a network as it is, and a model wrapped without copying its arrays, for a use that changes none.

    Raises:
        TypeError: if it is neither a network nor a model that `wrap` takes without options.
    """
    return f if isinstance(f, Network) else _wrap(f)


def _wrap(
    model: Any,
    *,
    method: str | Callable[..., Any] | None = None,
    single: bool = False,
    layout: str | None = None,
    mode: str = "eval",
    convolutions: str = "fast",
    image: str = "",
    inputs: Mapping[str, Any] | None = None,
    **static: Any,
) -> Network:
    if layout not in (None, *LAYOUTS):
        raise ValueError(f"expected layout to be one of {LAYOUTS}, got {layout!r}")
    if convolutions not in CONVOLUTIONS:
        raise ValueError(f"expected convolutions to be one of {CONVOLUTIONS}, got {convolutions!r}")
    modes = tuple(dict.fromkeys(mode for framework in FRAMEWORKS for mode in framework.modes))
    if mode not in modes:
        raise ValueError(f"expected mode to be one of {modes}, got {mode!r}")
    if isinstance(model, Network):
        raise TypeError("expected a model, got a network that networks.wrap has already made; use it as it is")
    _check_static(method, static)
    # The last framework of the table claims everything, so there is always one.
    framework = next(framework for framework in FRAMEWORKS if framework.claims(model))
    if framework.is_callable and not callable(model) and method is None:
        raise TypeError(f"expected a network, a callable, got {type(model).__name__}; name its method=...")
    if mode not in framework.modes:
        known = " and ".join(other.name for other in FRAMEWORKS if mode in other.modes)
        raise ValueError(
            f"mode={mode!r} is for {known} modules, got {type(model).__name__}; a Linen module takes its mode as an "
            "argument of its own, networks.wrap(module.bind(variables), train=True)"
        )
    parts = framework.take_apart(model, mode)
    # What the framework does not show may change from call to call, so its models are traced at every call.
    opaque, foreign = framework.state == "hidden", True
    if framework.state == "shown":
        # The variables are inputs of the program. What else in the model can change, or read anything, is looked for.
        found = examine(model, jax.tree_util.tree_leaves(parts.variables))
        opaque, foreign = found.may_change, found.foreign
    variables, paths = parts.variables, parts.paths
    if inputs:
        # Further inputs are leaves of the network, and no parameters of a module.
        given = {name: jax.tree_util.tree_map(jnp.asarray, value) for name, value in inputs.items()}
        variables = {"inputs": given, "model": variables}
        paths = (*[""] * len(jax.tree_util.tree_leaves(given)), *paths)
    adapter = Adapter(
        skeleton=parts.skeleton,
        rebuild=parts.rebuild,
        paths=paths,
        root=parts.root,
        single=single,
        layout=layout or framework.layout,
        method=method,
        static=tuple(sorted(static.items())),
        opaque=opaque,
        foreign=foreign or callable(method),
        convolutions=convolutions,
        separator=parts.separator,
        image=image,
        has_inputs=bool(inputs),
        remedy="" if single or layout or method else framework.remedy,
    )
    return Network(variables, adapter)


def _check_static(method: Any, static: Mapping[str, Any]) -> None:
    """Raise a TypeError where further arguments hold arrays, or cannot become a part of the adapter."""
    for name, value in static.items():
        if any(map(is_array, jax.tree_util.tree_leaves(value))):
            raise TypeError(
                f"expected keyword arguments without arrays, got {name}={type(value).__name__}; arrays belong into the "
                "network: of an Equinox module with a state, networks.wrap((module, state)), and of others "
                f"networks.wrap(model, inputs={{{name!r}: {name}}}), those of one image"
            )
    try:
        # `jit` looks the adapter up by its hash.
        hash((method, tuple(static.values())))
    except TypeError as error:
        raise TypeError(f"expected hashable keyword arguments, got {dict(static)}") from error


def _copy(leaf: Any) -> Any:
    """Copy an array; what is traced, or has a shape only, stays as it is."""
    return leaf.copy() if is_array(leaf) and not isinstance(leaf, Tracer) else leaf
