"""Mean and scatter of rows that come in batches, devices or processes, in any grouping."""

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
        """Return the moments of the rows of both.

        Joining ``n`` and ``m`` rows whose means are ``d`` apart adds ``n m / (n + m) |d|^2`` (Chan, Golub and LeVeque
        1983).
        """
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1)
        shift = other.mean - self.mean
        # No rows have no mean: their zero is not a place from which to measure.
        between = jnp.where(self.count * share > 0, self.count * share * jnp.sum(jnp.square(shift)), 0)
        squares, lost = _add_exactly(self.squares, other.squares + between)
        mean = jnp.where(other.count > 0, self.mean + share * shift, self.mean)
        return Moments(count, mean, squares, self.lost + other.lost + lost)

    @property
    def pair_distance(self) -> Float[Array, ""]:
        """Mean squared distance of two rows over all ordered pairs, ``2 <|f - <f>|^2>``."""
        return 2 * (self.squares + self.lost) / self.count


def _add_exactly(x: AnyArray, y: AnyArray) -> tuple[Any, Any]:
    """Return the rounded sum, and what rounding took from it (Knuth 1969)."""
    total = x + y
    taken = total - x
    return total, (x - (total - taken)) + (y - taken)
