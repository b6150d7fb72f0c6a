"""Numbers from maps: where a map is centered, how wide it is, and how widths grow with depth."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stabjax._numerics import permit_nan, safe_ratio
from stabjax._types import AnyArray


@permit_nan()
def center(map: Float[AnyArray, "*spatial"]) -> Float[Array, " ndim"]:
    """Return the center of mass of a map of non-negative weights ``m``, in pixels: ``<s> = sum_s m(s) s / sum_s m(s)``.

    Args:
        map: weights, such as those of `effective` and `constant_weight`.

    Returns:
        one coordinate for each axis; NaN for a map without weight.

    Raises:
        TypeError: for what is no array.
    """
    return jnp.stack([mean for mean, _ in _moments(map)])


@permit_nan()
def width(map: Float[AnyArray, "*spatial"]) -> Float[Array, " ndim"]:
    """Return the root mean square distance from the center along each axis, ``sqrt(<(s - <s>)^2>)``, in pixels.

    A uniform box of ``k`` pixels has the width ``sqrt((k^2 - 1) / 12)``, about ``0.29 k``; a Gaussian its standard
    deviation. Arguments, NaN and errors as in `center`.
    """
    return jnp.stack([jnp.sqrt(variance) for _, variance in _moments(map)])


def _moments(weights: AnyArray) -> list[tuple[Array, Array]]:
    """Return mean and variance of the position along each axis."""
    if not isinstance(weights, np.ndarray | jax.Array):
        raise TypeError(f"expected a map as an array, got {type(weights).__name__}; np.asarray makes one of a list")
    largest = weights.max()
    if isinstance(weights, np.ndarray):
        weights = weights / (largest if largest > 0 else 1)  # counts of paths exceed single precision
    else:
        weights = weights / jnp.where(largest > 0, largest, 1)
    weights = jnp.asarray(weights)
    moments = []
    for axis in range(weights.ndim):
        line = jnp.sum(weights, tuple(k for k in range(weights.ndim) if k != axis))
        pixels, total = jnp.arange(len(line), dtype=line.dtype), jnp.sum(line)
        # Moments along one axis are those of the marginal, the map summed over all others.
        mean = safe_ratio(jnp.sum(line * pixels), total)
        moments.append((mean, safe_ratio(jnp.sum(line * jnp.square(pixels - mean)), total)))
    return moments


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Growth:
    """A power law ``width = prefactor * depth ** power``, fitted to logarithms.

    Attributes:
        power: the exponent, a scalar.
        error: its standard error, from the scatter about the line, a scalar; NaN with less than three points.
        prefactor: width at depth one, a scalar.
    """

    power: Array
    error: Array
    prefactor: Array


@permit_nan()
def growth(depths: Float[AnyArray, " points"] | Int[AnyArray, " points"], widths: Float[AnyArray, " points"]) -> Growth:
    """Fit how a receptive field grows with depth: least squares of ``log width`` against ``log depth``.

    Of stacked convolutions with random weights the effective width grows as the square root of the depth, the extent
    in proportion to it (Luo, Li, Urtasun, Zemel 2016, arXiv 1701.04128, section 2).

    Args:
        depths: numbers of layers, positive.
        widths: a width at each of them, positive.

    Returns:
        power, its standard error, and prefactor; NaN where all depths are equal.

    Raises:
        ValueError: if there are fewer than two points, or not as many widths as depths.
    """
    if len(depths) != len(widths):
        raise ValueError(f"expected a width for each of {len(depths)} depths, got {len(widths)}")
    if len(depths) < 2:
        raise ValueError(f"expected at least two depths, got {len(depths)}; a power takes two points, its error three")
    y = jnp.log(jnp.asarray(widths))
    x = jnp.log(jnp.asarray(depths, y.dtype))
    dx, dy = x - jnp.mean(x), y - jnp.mean(y)
    power = safe_ratio(jnp.sum(dx * dy), jnp.sum(jnp.square(dx)))
    residual = jnp.sum(jnp.square(dy - power * dx))
    freedom = jnp.asarray(len(depths) - 2, y.dtype)
    error = jnp.sqrt(safe_ratio(residual, freedom * jnp.sum(jnp.square(dx))))
    return Growth(power, error, jnp.exp(jnp.mean(y) - power * jnp.mean(x)))
