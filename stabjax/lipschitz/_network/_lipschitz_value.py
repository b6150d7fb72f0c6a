"""What is known of a value while a network is followed: how far it may move when the image moves by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax.lipschitz._network._elementwise import NUMBER, Curve, steepest
from stabjax.lipschitz._network._piecewise_linear import Rays
from stabjax.lipschitz._network._selection import Selection, whole


@dataclass(eq=False)
class Root:
    """A value whose entries may be any numbers, compared by identity, and what is known of where they come from.

    Attributes:
        selection: the entries of another value that it is.
        rays: functions with a kink at zero that its entries are, of values before it.
        form: what it is in a softmax, see `stabjax.lipschitz._network._softmax`.
        made: what some operations make of it, so that the same made twice is one.
    """

    selection: Selection | None = None
    rays: tuple[Rays, ...] = ()
    form: Any = None
    made: dict[Any, "Root"] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer whose channels may still be scaled, so that both count as one map.

    Attributes:
        before: bound of its input, ``()``.
        axis: of its channels in the value.
        norm: bound of the layer with its channels scaled, ``(channels,) -> ()``.
        scale: what they were scaled by already, ``(channels,)``.
    """

    before: Float[Array, ""]
    axis: int
    norm: Callable[[Any], Float[Array, ""]]
    scale: Any = 1.0


@dataclass(frozen=True, eq=False)
class Slope:
    """A value that depends on the images: entry by entry a function of a root with a known bound.

    Attributes:
        bound: Lipschitz constant of the root as a function of the image, from above, ``()``.
        factor: the part of it that came since the last tap, ``()``.
        root: what the entries are a function of.
        curve: the function.
        layer: the linear layer that the value is, up to a shift.
        tap: at a tap, the bound there, and the factor since the one before.
    """

    bound: Float[Array, ""]
    factor: Float[Array, ""]
    root: Root
    curve: Curve = NUMBER
    layer: Layer | None = None
    tap: tuple[Array, Array] | None = None


@dataclass(frozen=True, eq=False)
class Unbounded:
    """Whole numbers or truths that depend on the images, and what is to say if they are used further on."""

    error: ValueError


class UnboundedError(Exception):
    """Holds the primitives of a function that is too steep."""


def image(dtype: Any) -> Slope:
    """The images themselves."""
    one = jnp.ones((), dtype)
    return Slope(one, one, Root())


def still(dtype: Any) -> Slope:
    """A value that does not see them, at a tap."""
    zero = jnp.zeros((), dtype)
    return Slope(zero, zero, Root(), tap=(zero, zero))


def settled(value: Slope) -> Slope:
    """The value as a root of its own."""
    if value.curve is NUMBER:
        return value
    factor = steepest(value.curve)
    if not isfinite(factor):
        raise UnboundedError(value.curve.names)
    return replace(_grown(value, factor), layer=value.layer)


def tapped(value: Slope) -> Slope:
    """The value at a tap, where a new factor begins; as a function of its root it goes on."""
    if not isfinite(steepest(value.curve)):
        endless = jnp.full_like(value.bound, jnp.inf)
        return replace(value, tap=(endless, endless))
    here = settled(value)
    steep = steepest(value.curve)
    if steep == 0:
        return replace(here, factor=jnp.ones_like(here.factor), tap=(here.bound, here.factor))
    return replace(value, factor=jnp.full_like(here.factor, 1 / steep), tap=(here.bound, here.factor))


def after(value: Slope, factor: Any, root: Root | None = None) -> Slope:
    """The value after an operation of this Lipschitz constant, with what is known of the outcome."""
    return _grown(settled(value), factor, root)


def _grown(value: Slope, factor: Any, root: Root | None = None) -> Slope:
    return Slope(_times(value.bound, factor), _times(value.factor, factor), root or Root())


def _times(bound: Array, factor: Any) -> Array:
    """The product, rounded upwards."""
    if isinstance(factor, float) and factor == 1:
        return bound
    return bound * factor * _above(4, bound)


def _above(roundings: int, bound: Array) -> float:
    return 1 + roundings * float(jnp.finfo(bound.dtype).eps)


def scaled(value: Slope, factors: Any, rays: tuple[Rays, ...] = ()) -> Slope:
    """The value times numbers of its rank, or one number; a layer and the scale of its channels are one linear map."""
    value = settled(value)
    factors = jnp.abs(jnp.asarray(factors, value.bound.dtype))
    plain = _grown(value, jnp.max(factors), Root(rays=rays))
    layer = value.layer
    if layer is None or not factors.ndim:
        return plain
    channels = jnp.max(factors, axis=tuple(axis for axis in range(factors.ndim) if axis != layer.axis))
    layer = replace(layer, scale=layer.scale * channels)
    bound = jnp.minimum(plain.bound, _times(layer.before, layer.norm(layer.scale)))
    return replace(leading(plain, bound, plain.root), layer=layer)


def selection_of(value: Slope, shape: tuple[int, ...]) -> Selection:
    """The value as entries of another, or of itself."""
    found = value.root.selection or whole(value.root, value.bound, shape)
    if value.curve is NUMBER:
        return found
    factor = steepest(value.curve)
    if not isfinite(factor):
        raise UnboundedError(value.curve.names)
    return replace(found, key=(*found.key, value.curve.lines()), bound=_times(found.bound, factor))


def selected(value: Slope, selection: Selection, norm: float) -> Slope:
    """A selection of this norm that was made of a value, among others; functions of its entries stay functions."""
    return leading(value, _times(selection.bound, norm), Root(selection=selection), value.curve)


def leading(value: Slope, bound: Array, root: Root, curve: Curve = NUMBER) -> Slope:
    """What has this bound, and was made from a value."""
    positive = value.bound > 0
    gain = bound / jnp.where(positive, value.bound, 1)
    return Slope(bound, jnp.where(positive, value.factor * gain, value.factor), root, curve)


def total(values: Sequence[Slope], form: Any = None) -> Slope:
    """Paths that meet in a sum."""
    bounds = _bounds(values)
    return replace(_beginning(jnp.sum(bounds), len(bounds)), root=Root(form=form))


def together(values: Sequence[Slope]) -> Slope:
    """Values side by side, or of which every entry is that of one: ``sqrt(sum_i L_i^2)``."""
    if len(values) == 1:
        return after(values[0], 1.0)
    bounds = _bounds(values)
    largest = jnp.max(bounds)
    size = jnp.where(largest > 0, largest, 1)  # the square of a small bound would underflow
    return _beginning(size * jnp.sqrt(jnp.sum(jnp.square(bounds / size))), len(bounds))


def largest(values: Sequence[Slope]) -> Slope:
    """One of the values as a whole."""
    return _beginning(jnp.max(_bounds(values)), 1)


def _bounds(values: Sequence[Slope]) -> Array:
    return jnp.stack([settled(value).bound for value in values])


def _beginning(bound: Array, terms: int) -> Slope:
    """A value that several make up, with nothing done to it since."""
    bound = bound * _above(4 + terms, bound)
    return Slope(bound, jnp.ones_like(bound), Root())


def number(value: Any) -> float | None:
    """The number that is in all entries, if it is known while the program is followed."""
    if isinstance(value, Tracer) or not value.size or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return None
    entries = np.asarray(value)
    return float(entries.flat[0]) if (entries == entries.flat[0]).all() else None
