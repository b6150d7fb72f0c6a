"""A network's program, read once: what it can be asked, and how to run it with its taps."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from stabjax import _jaxpr
from stabjax._sharding import without_explicit_axes
from stabjax.networks import Network, as_network

KINDS: tuple[_jaxpr.Kind, ...] = get_args(_jaxpr.Kind)


@dataclass(frozen=True)
class Tap:
    """One operation of a network whose value can be looked at.

    Attributes:
        name: where it stands: the path of its parameters (``blocks/2/conv``), or the named scope and what it is
            (``relu_3``) if it has none. Inside a scan the iteration stands behind the module that is stacked, the
            outermost one all of whose parameters the scan takes apart (``layers/0/conv``). A module used again adds
            ``:1``.
        kind: ``conv`` or ``dense`` (with bias), ``norm`` (with scale and bias), ``activation``, ``pool``,
            ``residual``, ``attention`` (the values, averaged), ``other`` (gates, layer scales, softmax, products of
            activations), or ``output``; ``input`` where the images themselves stand in a row with the operations.
        shape: of the activation as `capture` hands it out: batch first, and channels last wherever they are known,
            whatever the layout of the network.
        dtype: of the activation.
        channel_axis: position of the channels in ``shape``, the last, or None where they cannot be known (a product of
            activations, as in attention; heads that share the channels); the axes behind the batch then stand in the
            order of the network.
    """

    name: str
    kind: _jaxpr.Kind | Literal["input"]
    shape: tuple[int, ...]
    dtype: Any
    channel_axis: int | None


Select: TypeAlias = str | Iterable[str] | Callable[[Tap], bool] | None
"""Kinds, names or name patterns (``blocks/*/conv``), or a predicate; None is everything."""


@dataclass(frozen=True, eq=False)
class _Source:
    """The static part of a traced network. Equal for two programs that compute the same from their arrays.

    Attributes:
        program: the program, its arrays in front of the images.
        root: outermost named scope, which names leave out.
        separator: what stands between the parts of a name.
        key: what is compared; None where nothing is known to be equal yet.
        convolutions: as in `stabjax.networks.wrap`.
    """

    program: Any
    root: str
    separator: str
    key: Hashable
    convolutions: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Source) and self.key is not None and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @cached_property
    def traced(self) -> _jaxpr.TracedProgram:
        """The operations, recognized when they are first asked for."""
        return _jaxpr.read(self.program, root_scope=self.root, separator=self.separator)

    @cached_property
    def lifted(self) -> "tuple[_Source, list[Any]]":
        """The program with the arrays that it holds as inputs, and these arrays."""
        program, held, identity = _jaxpr.lift(self.program)
        key = _jaxpr.token((program.paths, self.root, self.separator, self.convolutions, identity))
        return _Source(program, self.root, self.separator, key, self.convolutions), held


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Traced:
    """A network's program for batches of one shape and dtype, made by `trace`.

    The network's own Python code has run, and does not run again: everything here is read from the program. A
    registered pytree, whose leaves are the network's arrays: pass it as an argument of ``jit``. Of a network that holds
    arrays out of sight (a plain function) these become leaves as well, so that equal programs with other arrays do not
    compile again.

    Attributes:
        arrays: inputs of the program but the images: the parameters in the order of the network's leaves.
        source: the program, static.
    """

    arrays: tuple[Any, ...]
    source: Any

    @property
    def program(self) -> _jaxpr.TracedProgram:
        """The program with its operations, as `stabjax._jaxpr` interprets it."""
        return self.source.traced

    @property
    def batch(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the images."""
        return self.source.program.images

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The operations in order of execution, as in `stabjax.features.taps`."""
        return tuple(map(_tap, self.program.sites))

    @property
    def hidden(self) -> tuple[_jaxpr.Hidden, ...]:
        """What cannot be tapped, as in `stabjax.features.hidden`."""
        return self.program.hidden

    @property
    def mixed_rows(self) -> tuple[str, ...]:
        """Operations that sum over the batch, as in `stabjax.features.mixed_rows`."""
        return self.program.mixed_rows

    def check_rows(self, *, otherwise: str = "") -> None:
        """Raise a ValueError if rows of the batch depend on each other; ``otherwise`` is a remedy of the caller's."""
        if self.mixed_rows:
            mixed = ", ".join(dict.fromkeys(self.mixed_rows))
            raise ValueError(
                "expected a network whose rows depend on themselves alone, got one that sums over its batch at "
                f"{mixed}, as batch normalization does in training mode: put it in evaluation mode (networks.wrap does "
                f"for Flax NNX), or fix its statistics by train.calibrate{otherwise}"
            )

    def __call__(self, x: Any, /) -> Any:
        """Return the outputs of the network for a batch of that shape."""
        return self.capture(x, select=())[0]

    @property
    def convolutions(self) -> str:
        """How a probe may compute the network's convolutions, see `stabjax.networks.wrap`."""
        return self.source.convolutions

    def capture(
        self,
        x: Any,
        *,
        select: Select = None,
        reduce: Callable[[Tap, Any], Any] | None = None,
        rules: Mapping[str, Callable[..., Any]] | None = None,
    ) -> tuple[Any, Mapping[str, Any]]:
        """Return the outputs for a batch, and the selected activations; see `stabjax.features.capture`.

        Args:
            x: the batch.
            select: which activations.
            reduce: what is kept of each.
            rules: primitives of one result that are computed in another way, by name: ``rule(*operands,
                **parameters)``; not in branches, while loops, and functions with a derivative of their own.

        Raises:
            ValueError: for a name that is no operation of the network, or a batch of another shape or dtype.
        """
        # The program is for one shape: another one would fail deep inside, or broadcast.
        batch = self.batch
        if (tuple(x.shape), jax.dtypes.canonicalize_dtype(x.dtype)) != (batch.shape, batch.dtype):
            raise ValueError(
                f"expected a batch of {batch.dtype} {batch.shape}, for which the network was traced, got {x.dtype} "
                f"{x.shape}: trace it for that, features.trace(network, x)"
            )
        program = self.program
        sites = _select(program, as_select(select))
        # The iterations of a scan are several sites of one operation, which is visited once for all of them.
        first: dict[int, _jaxpr.TapSite] = {}
        for site in sites:
            first.setdefault(site.operation, site)

        def visit(operation: int, value: Any) -> Any:
            value = first[operation].arranged(value)
            return value if reduce is None else reduce(_tap(first[operation]), value)

        outputs, found = _jaxpr.evaluate(program.plan, [*self.arrays, x], set(first), visit, rules or {})
        for site in sites:
            if site.kind == "output":
                # Outputs are numbered behind the operations of the program.
                found[site.operation] = visit(site.operation, outputs[site.operation - program.operations])
        # The iterations of a scan share one operation, whose value stacks them in front.
        # A site in nested scans has the iteration (outer, inner), in the order of the stacked axes.
        activations = OrderedDict(
            (
                site.name,
                jax.tree_util.tree_map(lambda value, k=site.iteration: value[k] if k else value, found[site.operation]),
            )
            for site in sites
        )
        return jax.tree_util.tree_unflatten(program.program.out_tree, outputs), activations

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Return the arrays, with those that the program holds out of sight, and the rest."""
        # A program with a key is of known modules, and all arrays that it reads are parameters.
        if self.source.key is not None:
            return self.arrays, self.source
        # Arrays out of sight would be constants of what is compiled; as leaves they are inputs.
        source, held = self.source.lifted
        return (*self.arrays, *held), source

    @classmethod
    def tree_unflatten(cls, source: Any, arrays: Iterable[Any]) -> "Traced":
        """Return the traced network with these arrays."""
        return cls(tuple(arrays), source)


def trace(f: Any, x: Any) -> Traced:
    """Trace a network for batches of one shape, once for everything that is asked of it; nothing is computed.

    Functions that take a network trace it themselves. One that asks several things traces it first and passes the
    result on::

        traced = features.trace(network, images)
        traced.taps, traced.hidden, traced.mixed_rows
        outputs, activations = traced.capture(images, select="conv")

    A network of known modules is traced once for its architecture, and what was read is used again. One with code of
    its own, which may read anything, is traced at every call.

    Args:
        f: a network from `stabjax.networks.wrap`, or anything it takes; one that is traced for such batches already is
            returned as it is.
        x: a batch, ``(batch, *spatial, channels)``, or its `jax.ShapeDtypeStruct`.

    Raises:
        TypeError: if JAX cannot trace the network, or ``x`` is no array.
        ValueError: if ``x`` is no batch, or the network does not return one row per image.
    """
    if isinstance(f, Traced) and (f.batch.shape, f.batch.dtype) == (tuple(x.shape), x.dtype):
        return f
    network = as_network(f)
    return trace_in_place(Network(without_explicit_axes(network.variables), network.adapter), x)


def trace_in_place(network: Network, x: Any) -> Traced:
    """Trace a network whose arrays stay on the mesh axes that they lie on."""
    adapter = network.adapter
    leaves, treedef = jax.tree_util.tree_flatten(network.variables)
    # Foreign code may read anything, and an opaque model may hold arrays: only without both do equal adapters promise
    # equal programs.
    shared = not (adapter.opaque or adapter.foreign)
    try:
        program = _jaxpr.trace_network(adapter, leaves, treedef, x, shared=shared)
    except (TypeError, ValueError, IndexError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        if not adapter.remedy or reason.startswith("expected"):
            raise
        raise TypeError(
            f"expected a network of a batch {tuple(x.shape)} with its channels last, got one that fails on it "
            f"({type(error).__name__}: {reason}); {adapter.remedy}"
        ) from error
    for name, output in zip(program.out_names, program.outputs, strict=True):
        if jnp.issubdtype(output.dtype, jnp.inexact) and output.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"expected a network with one output row per image, ({x.shape[0]}, ...), got "
                f"{f'output/{name}' if name else 'output'} of shape {output.shape}; a network of single examples comes "
                "in by networks.wrap(model, single=True), and of one that returns its new state too, the outputs alone "
                "are wanted: networks.wrap(lambda x: apply(params, x)[0])"
            )
    # All that decides what the program is, so that two are compared without reading either.
    key = (adapter, treedef, program.images.shape, str(program.images.dtype)) if shared else None
    return Traced(tuple(leaves), _Source(program, adapter.root, adapter.separator, key, adapter.convolutions))


def as_select(select: Any) -> Any:
    """Return a selection that can be hashed: None, a predicate, or a tuple of kinds, names and patterns.

    Raises:
        TypeError: for entries that are no strings.
    """
    if select is None or callable(select):
        return select
    entries = (select,) if isinstance(select, str) else tuple(select)
    for entry in entries:
        if not isinstance(entry, str):
            raise TypeError(f"expected select to hold kinds and names, got {entry!r}; a predicate is passed alone")
    return entries


def _select(program: _jaxpr.TracedProgram, select: Any) -> list[_jaxpr.TapSite]:
    sites = list(program.sites)
    if select is None:
        return sites
    if callable(select):
        return [site for site in sites if select(_tap(site))]
    for entry in select:
        if not any(_matches(site, entry) for site in sites):
            names = ", ".join(site.name for site in sites)
            lost = "; ".join(f"{', '.join(item.operations)} {item.reason}" for item in program.hidden)
            # A network may have no operation of a kind; a name that it does not have is a mistake.
            if entry in KINDS:
                continue
            raise ValueError(
                f"expected a kind ({', '.join(KINDS)}) or a name of an operation, got {entry!r}; the network has "
                f"{names}" + (f"; out of reach: {lost}" if lost else "")
            )
    return [site for site in sites if any(_matches(site, entry) for entry in select)]


def _matches(site: _jaxpr.TapSite, entry: str) -> bool:
    return entry == site.kind or entry == site.name or fnmatchcase(site.name, entry)


def _tap(site: _jaxpr.TapSite) -> Tap:
    return Tap(site.name, site.kind, site.shape, site.dtype, site.channel_axis)
