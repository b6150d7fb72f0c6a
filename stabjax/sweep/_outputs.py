"""What a swept function returns, by name: its arrays, and what their axes are."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from stabjax.sweep._grid import RESERVED


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """The arrays of one cell."""

    leaves: dict[str, jax.ShapeDtypeStruct]
    """By name, in the order they are returned."""
    dimensions: dict[str, tuple[str, ...]]
    """Names of the axes of each."""
    coordinates: dict[str, tuple[tuple[str, ...], np.ndarray]]
    """Labels along them, as results give them: the axes of the labels, and the labels."""
    attributes: dict[str, dict[str, Any]]
    """What a result says besides, by array."""

    def kinds(self) -> dict[str, str]:
        """Return the dtype and shape of each, as text."""
        return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in self.leaves.items()}

    def labels(self) -> dict[str, Any]:
        """Return the labels beside the axes, to compare and to show."""
        along = {name: (axes, values.tolist()) for name, (axes, values) in self.coordinates.items()}
        return {"dimensions": self.dimensions, **along}


def is_result(node: Any) -> bool:
    """Tell whether part of an output is a dataclass of arrays, such as a `stabjax.stability.Stability`."""
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def name_outputs(out: Any, axes: tuple[str, ...]) -> Outputs:
    """Name what a function returns.

    Arrays are named by their path. What a result calls like an axis or like what a sweep uses itself takes the name of
    the result in front; so do dimensions in which several results differ.
    """
    nodes = jax.tree_util.tree_flatten_with_path(out, is_leaf=is_result)[0]
    parts = [_Part(_dotted_path(path), node) for path, node in nodes]
    # Names that the dataset has already, and whose they are.
    taken = {"seed": "a sweep", "valid": "a sweep"} | dict.fromkeys(axes, "an axis")
    leaves: dict[str, Any] = {}
    for part in parts:
        for own, leaf in part.leaves.items():
            name = part.inside(own)
            # Only a bare result can give way: what is below a path has been named by the caller.
            if name in taken and part.labels is not None and not part.path:
                name = part.beside(own)
            if name in taken or name in leaves:
                raise ValueError(
                    f"expected every name once, got an output {name!r}, which is also the name of "
                    f"{taken.get(name, 'another')}: return it under another name, such as {{'my_{name}': ...}}"
                )
            part.names[own], leaves[name] = name, leaf
    if not leaves:
        raise ValueError("expected a function that returns arrays, got one that returns none")
    found = Outputs(leaves, {}, {}, {})
    # A dimension must not be called like any of these.
    clear = {*axes, *RESERVED, *leaves}
    for part in parts:
        _label(part, parts, clear, found)
    for name, own in found.dimensions.items():
        if clash := {*axes, *leaves} & set(own):
            raise ValueError(
                f"expected no axis or output named like a dimension of the output {name!r}, got {sorted(clash)}: give "
                "it another name"
            )
    return found


class _Part:
    """An array, or a result with its arrays."""

    def __init__(self, path: str, node: Any) -> None:
        self.path, self.kind = path, type(node).__name__.lower()
        self.names: dict[str, str] = {}
        """Of the arrays in the dataset, by what the result calls them."""
        self.labels: Any = None
        """The result as a labeled dataset of zeros; None for an array."""
        if not is_result(node):
            self.leaves = {"": node}
            return
        import xarray

        self.leaves = {_dotted_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(node)[0]}
        # Zeros that take no memory: only the shapes and labels of the dataset are looked at.
        zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), node)
        self.labels = zeros.to_xarray() if hasattr(zeros, "to_xarray") else xarray.Dataset()

    def inside(self, name: str) -> str:
        """Return the name of one of its arrays, or what it calls a dimension."""
        return ".".join(filter(None, (self.path, name))) or "value"

    def beside(self, name: str) -> str:
        """Return another name, where that one is taken."""
        return self.inside(name) if self.path else f"{self.kind}_{name}"

    def along(self, name: str) -> Any:
        """Return the length and labels of a dimension, or a coordinate beside it; None if it has none of this name."""
        if name in self.labels.coords:
            return self.labels.coords[name].dims, self.labels.coords[name].to_numpy().tolist()
        return self.labels.sizes.get(name)


def _label(part: _Part, parts: list[_Part], taken: set[str], found: Outputs) -> None:
    """Enter the dimensions and labels of one part."""
    results = [other for other in parts if other.labels is not None]

    def named(own: str) -> str:
        # The short name if no other result has another length or other labels under it.
        agreed = all(other.along(own) in (None, part.along(own)) for other in results)
        return own if agreed and own not in taken else part.beside(own)

    for own, leaf in part.leaves.items():
        name = part.names[own]
        known = None if part.labels is None else part.labels.variables.get(own)
        # A leaf that the dataset leaves out, or holds in another shape, has no labels.
        if part.labels is not None and known is not None and known.shape == leaf.shape:
            found.dimensions[name] = tuple(named(str(dimension)) for dimension in known.dims)
            found.attributes[name] = dict(part.labels.attrs)
        else:
            found.dimensions[name] = tuple(f"{name}_dim_{k}" for k in range(leaf.ndim))
            found.attributes[name] = {}
    for own, labels in {} if part.labels is None else part.labels.coords.items():
        axes = tuple(named(str(dimension)) for dimension in labels.dims)
        found.coordinates[named(str(own))] = (axes, labels.to_numpy())


def _dotted_path(path: Any) -> str:
    # Files of labeled arrays keep "/" for groups.
    return jax.tree_util.keystr(path, simple=True, separator=".").replace("/", ".")


def check_same_labels(found: Sequence[tuple[Any, Outputs]]) -> None:
    """Raise unless the outputs for all static values are of one kind and labeled alike."""
    (first, one), *others = found
    for static, other in others:
        if one.kinds() != other.kinds():
            raise ValueError(
                f"expected outputs of the same names, shapes and dtypes for all static values, got {other.kinds()} for "
                f"{static} and {one.kinds()} before: sweep the sizes one by one"
            )
        if one.labels() != other.labels():
            differ = [name for name, labels in other.labels().items() if labels != one.labels().get(name)]
            raise ValueError(
                f"expected results with the same labels for all static values, got other ones along {differ} for "
                f"{static} than for {first}: sweep these values one by one, or return the arrays without their labels"
            )
