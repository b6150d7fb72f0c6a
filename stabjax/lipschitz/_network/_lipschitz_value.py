"""The abstract value of the verifier: how far a value of the program may move when the image moves by one.

A value is ``f(r)``, entry by entry, with ``f`` a function of one number and ``r`` a root whose Lipschitz constant is
bounded. Elementwise operations extend ``f`` and cost nothing; every other operation needs the value as a root of its
own, whose bound is that of ``r`` times the steepest slope of ``f``. So a shift that cancels, or ``x * sigmoid(x)``, is
bounded as one function and not as a product of factors. All bounds are rounded upwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax.lipschitz._network._elementwise import IDENTITY, ScalarFunction, lipschitz_constant
from stabjax.lipschitz._network._piecewise_linear import PiecewiseLinear
from stabjax.lipschitz._network._selection import Selection, select_all

Values = list[Any]
"""Operands of an operation: a `LipschitzValue` for each that depends on the images, the arrays of the others."""


@dataclass(eq=False)
class Root:
    """A value whose entries may be any numbers, compared by identity, and what is known of where they come from.

    Attributes:
        selection: the entries of another value that it is.
        pieces: functions with a kink at zero that its entries are, of values before it.
        softmax_part: what it is in a softmax, see `stabjax.lipschitz._network._softmax`.
        derived: what some operations make of it, by operation, so that the same made twice is one root.
    """

    selection: Selection | None = None
    pieces: tuple[PiecewiseLinear, ...] = ()
    softmax_part: Any = None
    derived: dict[Any, "Root"] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer whose channels may still be scaled, so that both count as one map.

    Attributes:
        input_bound: bound of its input, ``()``.
        axis: of its channels in the value.
        norm: bound of the layer with its channels scaled, ``(channels,) -> ()``.
        scale: what they were scaled by already, ``(channels,)``.
    """

    input_bound: Float[Array, ""]
    axis: int
    norm: Callable[[Any], Float[Array, ""]]
    scale: Any = 1.0


@dataclass(frozen=True, eq=False)
class LipschitzValue:
    """A value that depends on the images: entry by entry a function of a root with a known bound.

    Attributes:
        bound: Lipschitz constant of the root as a function of the image, from above, ``()``.
        factor: the part of it that came since the last tap, ``()``.
        root: what the entries are a function of.
        function: the function.
        layer: the linear layer that the value is, up to a shift.
        tap: at a tap, the bound there, and the factor since the one before.
    """

    bound: Float[Array, ""]
    factor: Float[Array, ""]
    root: Root
    function: ScalarFunction = IDENTITY
    layer: Layer | None = None
    tap: tuple[Array, Array] | None = None


@dataclass(frozen=True, eq=False)
class Unbounded:
    """Integers or truth values that depend on the images, without a bound; holds the error to raise at a use."""

    error: ValueError


class UnboundedError(Exception):
    """A function is steeper than any number; holds the primitives that it is made of."""


def active_operands(operands: Sequence[Any]) -> list[LipschitzValue]:
    """Return the operands that have a bound."""
    return [operand for operand in operands if isinstance(operand, LipschitzValue)]


def input_value(dtype: Any) -> LipschitzValue:
    """Return the images themselves, with bound 1."""
    one = jnp.ones((), dtype)
    return LipschitzValue(one, one, Root())


def constant_value(dtype: Any) -> LipschitzValue:
    """Return a value at a tap that does not depend on the images, with bound 0."""
    zero = jnp.zeros((), dtype)
    return LipschitzValue(zero, zero, Root(), tap=(zero, zero))


def as_root(value: LipschitzValue) -> LipschitzValue:
    """Return the value as a root of its own: the bound times the slope of its function.

    Raises:
        UnboundedError: if the function is steeper than any number.
    """
    if value.function is IDENTITY:
        return value
    factor = lipschitz_constant(value.function)
    if not isfinite(factor):
        raise UnboundedError(value.function.names)
    # Only shifts keep the layer while they extend the function, and a shift has slope 1: the layer is still the value.
    return replace(_scale(value, factor), layer=value.layer)


def mark_tap(value: LipschitzValue) -> LipschitzValue:
    """Record bound and factor at a tap, where a new factor begins; the value stays a function of its root.

    A function of infinite slope gives an infinite bound here: it may be bounded later on, as an exponential is by the
    logarithm of a sum.
    """
    if not isfinite(lipschitz_constant(value.function)):
        infinite = jnp.full_like(value.bound, jnp.inf)
        return replace(value, tap=(infinite, infinite))
    here = as_root(value)
    constant = lipschitz_constant(value.function)
    # From here on the factor counts from the tap: as a root the value has factor 1, hence before f it has 1 / slope.
    # A constant function would need the factor 1 / 0; as a root of its own, with bound zero, the value says the same.
    if constant == 0:
        return replace(here, factor=jnp.ones_like(here.factor), tap=(here.bound, here.factor))
    return replace(value, factor=jnp.full_like(here.factor, 1 / constant), tap=(here.bound, here.factor))


def compose(value: LipschitzValue, factor: Any, root: Root | None = None) -> LipschitzValue:
    """Apply an operation of this Lipschitz constant; ``root`` is what is known of the outcome."""
    return _scale(as_root(value), factor, root)


def _scale(value: LipschitzValue, factor: Any, root: Root | None = None) -> LipschitzValue:
    """Multiply bound and factor; the result is a root."""
    return LipschitzValue(_multiply_up(value.bound, factor), _multiply_up(value.factor, factor), root or Root())


def _multiply_up(bound: Array, factor: Any) -> Array:
    """Multiply a bound by a factor, rounded upwards."""
    if isinstance(factor, float) and factor == 1:
        return bound
    # Three roundings of half an eps (two products, and the factor in this dtype) and a reserve.
    return bound * factor * _rounding_factor(4, bound)


def _rounding_factor(roundings: int, bound: Array) -> float:
    """Return the factor that outweighs so many roundings to nearest."""
    return 1 + roundings * float(jnp.finfo(bound.dtype).eps)


def multiply(value: LipschitzValue, factors: Any, pieces: tuple[PiecewiseLinear, ...] = ()) -> LipschitzValue:
    """Multiply by an array of the value's rank, or by one number.

    A layer and the scale of its channels are one linear map (as a convolution with the normalization behind it), whose
    norm may be far below the product of the two: the smaller bound is taken.
    """
    value = as_root(value)
    factors = jnp.abs(jnp.asarray(factors, value.bound.dtype))
    # Without a layer: a diagonal matrix, whose norm is the largest factor.
    plain = _scale(value, jnp.max(factors), Root(pieces=pieces))
    layer = value.layer
    if layer is None or not factors.ndim:
        return plain
    # With one: factors that differ along other axes count by their largest, per channel.
    channels = jnp.max(factors, axis=tuple(axis for axis in range(factors.ndim) if axis != layer.axis))
    # Several factors one after the other (normalization, then its own scale) gather in one scale per channel.
    layer = replace(layer, scale=_multiply_up(channels, layer.scale))
    bound = jnp.minimum(plain.bound, _multiply_up(layer.input_bound, layer.norm(layer.scale)))
    return replace(with_bound(plain, bound, plain.root), layer=layer)


def as_selection(value: LipschitzValue, shape: tuple[int, ...]) -> Selection:
    """Return the value as a selection of entries of another, or of itself.

    Raises:
        UnboundedError: if its function is steeper than any number.
    """
    selection = value.root.selection or select_all(value.root, value.bound, shape)
    if value.function is IDENTITY:
        return selection
    factor = lipschitz_constant(value.function)
    if not isfinite(factor):
        raise UnboundedError(value.function.names)
    # relu(x)[1:] and x[1:] are entries of different values: the function becomes part of the key.
    return replace(
        selection, key=(*selection.key, value.function.instructions()), bound=_multiply_up(selection.bound, factor)
    )


def select(value: LipschitzValue, selection: Selection, norm: float) -> LipschitzValue:
    """Return a selection of this norm that holds entries of the value; functions of entries stay functions."""
    return with_bound(value, _multiply_up(selection.bound, norm), Root(selection=selection), value.function)


def with_bound(value: LipschitzValue, bound: Array, root: Root, function: ScalarFunction = IDENTITY) -> LipschitzValue:
    """Return a value made from another, with this bound; the factor grows as the bound does."""
    # factor_new / factor_old = bound_new / bound_old; a bound of zero leaves the factor.
    positive = value.bound > 0
    gain = bound / jnp.where(positive, value.bound, 1)
    return LipschitzValue(bound, jnp.where(positive, value.factor * gain, value.factor), root, function)


def sum_bounds(values: Sequence[LipschitzValue], softmax_part: Any = None) -> LipschitzValue:
    """Add paths that meet in a sum: ``L = sum_i L_i``, by the triangle inequality."""
    bounds = _bounds(values)
    # |u + v - u' - v'| <= |u - u'| + |v - v'| <= (L_u + L_v) |x - x'|
    return replace(_start_factor(jnp.sum(bounds), len(bounds)), root=Root(softmax_part=softmax_part))


def l2_sum(values: Sequence[LipschitzValue]) -> LipschitzValue:
    """Join values side by side, or values of which each entry is that of one: ``L = sqrt(sum_i L_i^2)``."""
    if len(values) == 1:
        return compose(values[0], 1.0)
    # |(u, v)|^2 = |u|^2 + |v|^2 <= (L_u^2 + L_v^2) |x|^2, over the largest bound.
    bounds = _bounds(values)
    largest = jnp.max(bounds)
    size = jnp.where(largest > 0, largest, 1)  # the square of a small bound would underflow
    return _start_factor(size * jnp.sqrt(jnp.sum(jnp.square(bounds / size))), len(bounds))


def max_bound(values: Sequence[LipschitzValue]) -> LipschitzValue:
    """Take one of the values, not known which: ``L = max_i L_i``."""
    # The choice does not depend on the images, so two images see the same branch.
    return _start_factor(jnp.max(_bounds(values)), 1)


def _bounds(values: Sequence[LipschitzValue]) -> Array:
    """Stack the bounds of several values, each as a root of its own."""
    return jnp.stack([as_root(value).bound for value in values])


def _start_factor(bound: Array, terms: int) -> LipschitzValue:
    """Return a value made of several, rounded upwards; a new factor begins."""
    # A sum of so many terms rounds at most so many times; the rest is for squares, root and scale.
    bound = bound * _rounding_factor(4 + terms, bound)
    return LipschitzValue(bound, jnp.ones_like(bound), Root())


def uniform_number(value: Any) -> float | None:
    """Return the number that is in all entries; None if they differ, or are known only when the program runs."""
    # Extended dtypes are those of random keys, which have no value as a number.
    if isinstance(value, Tracer) or not value.size or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return None
    entries = np.asarray(value)
    return float(entries.flat[0]) if (entries == entries.flat[0]).all() else None
