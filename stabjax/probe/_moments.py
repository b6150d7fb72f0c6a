"""Mean and scatter of rows that come in batches, devices or processes, in any grouping."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax._numerics import centered
from stabjax._types import AnyArray


# Unflattening builds moments of placeholders, and of arrays with more axes: nothing to check there.
@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False)
class Moments:
    """Number, mean and squared distances of rows, which merge without loss of digits.

    Nothing is ever subtracted that is not a difference of means: ``<f^2> - <f>^2`` would lose every digit where the
    mean is much larger than the spread.
    """

    count: Float[Array, ""]
    """Rows, by their weights."""
    mean: Float[Array, "*units"]
    squares: Float[Array, ""]
    """Sum over rows and units of the squared distance to the mean."""
    lost: Float[Array, ""]
    """What rounding has taken from ``squares`` so far, which counts again in the next sum."""

    @classmethod
    def init(cls, shape: tuple[int, ...] = (), dtype: jax.typing.DTypeLike = jnp.float32) -> "Moments":
        """Return the moments of no rows."""
        # Of NumPy: a zero of JAX would be a program to compile.
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        zero: Any = np.zeros((), dtype)
        mean: Any = np.zeros(shape, dtype)
        return cls(zero, mean, zero, zero)

    @classmethod
    def of(cls, rows: Float[AnyArray, " n *units"], weights: Float[AnyArray, " n"] | None = None) -> "Moments":
        """Return the moments of these rows; one that has no weight does not count, whatever it holds."""
        mean, distances = centered(rows, weights=weights)
        weights = jnp.ones_like(distances) if weights is None else jnp.asarray(weights, distances.dtype)
        return cls.of_distances(mean, distances, weights)

    @classmethod
    def of_distances(
        cls, mean: Float[Array, "*units"], distances: Float[Array, " n"], weights: Float[Array, " n"]
    ) -> "Moments":
        """Return the moments of rows at these squared distances from their mean."""
        weights = weights.astype(distances.dtype)
        squares = jnp.sum(jnp.where(weights > 0, weights * distances, 0))
        return cls(jnp.sum(weights), mean, squares, jnp.zeros_like(squares))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of the rows of both."""
        shift = other.mean - self.mean
        return Moments(mean=_move(self, other, self.mean, shift), **_join(self, other, jnp.sum(jnp.square(shift))))

    @property
    def pair_distance(self) -> Float[Array, ""]:
        """Mean squared distance of two rows over all ordered pairs, ``2 <|f - <f>|^2>``."""
        return 2 * (self.squares + self.lost) / self.count


@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False)
class LayerMoments:
    """`Moments` of every layer of a network, the same rows in each: what is one number per layer is one array.

    A program has a few operations for all layers then, where each layer would have a dozen of its own to compile.
    """

    count: Float[Array, ""]
    means: tuple[Float[Array, " units"], ...]
    squares: Float[Array, " layers"]
    lost: Float[Array, " layers"]

    @classmethod
    def init(cls, like: Sequence[Any]) -> "LayerMoments":
        """Return the moments of no rows, for layers whose means have these shapes and dtypes."""
        means: Any = tuple(np.zeros(x.shape, x.dtype) for x in like)
        dtype = jnp.result_type(*means)
        zero: Any = np.zeros((), dtype)
        nothing: Any = np.zeros(len(means), dtype)
        return cls(zero, means, nothing, nothing)

    @classmethod
    def of_distances(
        cls, means: tuple[Array, ...], distances: Float[Array, "n layers"], weights: Float[Array, " n"]
    ) -> "LayerMoments":
        """Return the moments of rows at these squared distances from their means."""
        weights = weights.astype(distances.dtype)[:, None]
        squares = jnp.sum(jnp.where(weights > 0, weights * distances, 0), axis=0)
        return cls(jnp.sum(weights), means, squares, jnp.zeros_like(squares))

    def merge(self, other: "LayerMoments") -> "LayerMoments":
        """Return the moments of the rows of both."""
        shifts = [theirs - ours for ours, theirs in zip(self.means, other.means, strict=True)]
        apart = jnp.stack([jnp.sum(jnp.square(shift)).astype(self.squares.dtype) for shift in shifts])
        means = tuple(_move(self, other, mean, shift) for mean, shift in zip(self.means, shifts, strict=True))
        return LayerMoments(means=means, **_join(self, other, apart))

    @property
    def pair_distance(self) -> Float[Array, " layers"]:
        """Mean squared distance of two rows over all ordered pairs, of every layer."""
        return 2 * (self.squares + self.lost) / self.count


def _join(one: Any, other: Any, apart: AnyArray) -> dict[str, Array]:
    """Return number and squares of the rows of both.

    Joining ``n`` and ``m`` rows whose means are ``d`` apart adds ``n m / (n + m) |d|^2`` (Chan, Golub and LeVeque
    1983).
    """
    count = one.count + other.count
    weight = one.count * (other.count / jnp.maximum(count, 1))
    # No rows have no mean: their zero is not a place from which to measure.
    squares, lost = _add_exactly(one.squares, other.squares + jnp.where(weight > 0, weight * apart, 0))
    return {"count": count, "squares": squares, "lost": one.lost + other.lost + lost}


def _move(one: Any, other: Any, mean: AnyArray, shift: AnyArray) -> Array:
    """Return the mean of the rows of both, from that of one and how far the other lies from it."""
    share = other.count / jnp.maximum(one.count + other.count, 1)
    return jnp.where(other.count > 0, mean + share.astype(mean.dtype) * shift, mean)


def _add_exactly(x: AnyArray, y: AnyArray) -> tuple[Any, Any]:
    """Return the rounded sum, and what rounding took from it (Knuth 1969)."""
    total = x + y
    taken = total - x
    return total, (x - (total - taken)) + (y - taken)
