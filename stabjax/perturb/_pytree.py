"""Perturbations as pytrees: how they are registered, and how their strengths become leaves."""

import copy
import dataclasses
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax._images import as_spatial
from stabjax._types import AnyArray, Scalar

Strength: TypeAlias = Scalar | Float[AnyArray, "..."]
T = TypeVar("T")

STATIC = {"static": True}
"""Metadata of a member that is part of the tree's structure, not a leaf."""


def perturbation(cls: type[T]) -> type[T]:
    """Register a frozen dataclass as a pytree that is rebuilt without its constructor.

    The constructor converts and checks what users give; what JAX puts into the leaves (tracers, axes, gradients) must
    pass untouched.
    """
    members: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    names = [f.name for f in members if not f.metadata.get("static")]
    fixed = [f.name for f in members if f.metadata.get("static")]

    def flatten(self: T) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(self, name) for name in names], tuple(getattr(self, name) for name in fixed)

    def flatten_with_keys(self: T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        leaves, rest = flatten(self)
        return [(jax.tree_util.GetAttrKey(name), leaf) for name, leaf in zip(names, leaves)], rest

    def unflatten(rest: tuple[Any, ...], leaves: Any) -> T:
        self = object.__new__(cls)
        for name, value in zip((*names, *fixed), (*leaves, *rest)):
            object.__setattr__(self, name, value)
        return self

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def convert(perturbation: Any, **minima: float) -> None:
    """Make the named strengths arrays of one dtype, so that Python floats and JAX scalars share a trace.

    What the perturbation says of spatial axes is brought to a form that can be compared.
    """
    if hasattr(perturbation, "spatial"):
        object.__setattr__(perturbation, "spatial", as_spatial(perturbation.spatial))
    for name, minimum in minima.items():
        value = getattr(perturbation, name)
        if not isinstance(value, Tracer) and np.asarray(value).dtype.kind not in "fiub" and not _is_narrow(value):
            raise TypeError(
                f"expected {type(perturbation).__name__}.{name} as a real number, got {value!r}: give e.g. 1.0"
            )
        if not isinstance(value, Tracer) and not (np.asarray(value) >= minimum).all():
            raise ValueError(f"expected {type(perturbation).__name__}.{name} >= {minimum:g}, got {value}")
        object.__setattr__(perturbation, name, jnp.asarray(value, jax.dtypes.canonicalize_dtype(float)))


def with_spatial(perturbation: T, spatial: tuple[int, ...]) -> T:
    """Return a perturbation of this room with the sides of its images noted, and any other as it is.

    One image alone may leave open which of its axes is which. Whoever has a batch whose axes are known says so here.

    Args:
        perturbation: any function ``(key, image) -> image``.
        spatial: sides of the images.
    """
    members: Any = dataclasses.fields(perturbation) if dataclasses.is_dataclass(perturbation) else ()
    if not any(f.name == "spatial" and f.metadata.get("static") for f in members):
        return perturbation
    known = copy.copy(perturbation)
    object.__setattr__(known, "spatial", tuple(spatial))
    return known


def _is_narrow(value: Any) -> bool:
    """Tell whether these are floats that NumPy does not have, as bfloat16."""
    return jnp.issubdtype(np.asarray(value).dtype, jnp.floating)


def strength(value: Strength, dtype: Any) -> Float[Array, ""]:
    """Return one strength, for one image, as a scalar array."""
    array = jnp.asarray(value, dtype)
    if array.ndim:
        raise ValueError(f"expected a scalar strength, got shape {array.shape}; use jax.vmap over several")
    return array
