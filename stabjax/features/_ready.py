"""A network made ready for a compiled program: nothing that can change is a constant of it.

A module that runs the code of a known framework alone is ready as it is. Any other callable (a plain function, a model
of Keras, a module with a method of one's own) may hold arrays that nobody can list, and read what changes from one call
to the next. It is traced anew whenever it is made ready; the arrays that the trace meets become leaves of the network,
and what is left is compared step by step, so that the same program with other arrays does not compile again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from stabjax import _jaxpr
from stabjax._sharding import without_explicit_axes
from stabjax.features._network import Adapter, Guest, taken

__all__ = ["Written", "ready"]

_Shape = tuple[tuple[int, ...], str]


@dataclass(frozen=True, eq=False)
class Written:
    """How to run a network that was traced. Equal for two that compute the same from their leaves.

    Attributes:
        adapter: how the network runs itself.
        programs: what was traced for each shape and dtype of a batch, and which of the hidden arrays it takes.
        paths: path of each leaf, "" for the hidden arrays.
        identity: one object for all that are equal.
        missed: shapes that were asked for and not traced. The hidden arrays were constants then, so nothing that was
            compiled with them is used again: with one of these, networks are not equal.
    """

    adapter: Adapter
    programs: Mapping[_Shape, tuple[_jaxpr.Lifted, tuple[int, ...]]]
    paths: tuple[str, ...]
    identity: object
    missed: list[_Shape] = field(default_factory=list)

    @property
    def root(self) -> str:
        """Outermost named scope, which names leave out."""
        return self.adapter.root

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Written) or self.missed or other.missed:
            return False
        return self.identity is other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __call__(self, variables: Any, x: Any) -> Any:
        """The outputs for a batch with its channels last."""
        own, hidden = variables
        found = self.programs.get(_shape_of(x))
        if found is None:
            self.missed.append(_shape_of(x))
            return self.adapter(own, x)
        program, places = found
        return program([hidden[place] for place in places], jax.tree_util.tree_leaves(own), x)


def ready(f: Any, *batches: Any) -> Guest:
    """A network as an argument of a compiled program.

    Args:
        f: a network from `of`, or anything it takes.
        *batches: the batches it will see, or their shapes and dtypes; for another one the arrays it hides would be
            constants, and it compiles anew every time. Without any, the network comes as it is, to be traced only.

    Raises:
        TypeError: if it is no network, or JAX cannot trace it.
    """
    network = f if isinstance(f, Guest) else taken(f)
    network = Guest(without_explicit_axes(network.variables), network.adapter)
    adapter = network.adapter
    if not batches or not (isinstance(adapter, Adapter) and (adapter.opaque or adapter.foreign)):
        return network
    leaves, treedef = jax.tree_util.tree_flatten(network.variables)
    programs: dict[_Shape, tuple[_jaxpr.Lifted, tuple[int, ...]]] = {}
    hidden: list[Any] = []
    for batch in batches:
        shape = jax.ShapeDtypeStruct(batch.shape, jax.dtypes.canonicalize_dtype(batch.dtype))
        program, arrays = _jaxpr.lift(
            lambda leaves, x: adapter(jax.tree_util.tree_unflatten(treedef, leaves), x), leaves, shape
        )
        places = {id(array): place for place, array in enumerate(hidden)}
        for array in arrays:
            if places.setdefault(id(array), len(hidden)) == len(hidden):
                hidden.append(array)
        programs[_shape_of(shape)] = program, tuple(places[id(array)] for array in arrays)
    steps = tuple((shape, program.identity, places) for shape, (program, places) in programs.items())
    identity = _jaxpr.token((adapter.paths, adapter.root, treedef, steps))
    paths = (*adapter.paths, *[""] * len(hidden))
    return Guest((network.variables, tuple(hidden)), Written(adapter, programs, paths, identity))


def _shape_of(x: Any) -> _Shape:
    return tuple(x.shape), str(x.dtype)
