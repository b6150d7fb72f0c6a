"""Power iteration: a lower bound on the norm of a linear map, given as a function."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from stabjax.lipschitz._gram import safe_sqrt


def power_iteration(
    f: Callable[[Array], Array], shape: tuple[int, ...], dtype: jnp.dtype, steps: int
) -> Float[Array, ""]:
    """Bound the norm from below by ``|A v|``, ``v <- A'A v / |A'A v|``: at most the norm, to rounding, and rising.

    The gradient is that of ``|A v|`` with ``v`` held, which at convergence is the gradient of the norm.

    Args:
        f: the linear map ``A``.
        shape: of its argument.
        dtype: of its argument.
        steps: number of iterations.
    """
    transpose = jax.linear_transpose(f, jax.ShapeDtypeStruct(shape, dtype))
    start = _start_vector(shape, dtype)

    def step(v: Array, _: None) -> tuple[Array, None]:
        (new,) = transpose(f(v))
        norm = _norm(new)
        # Once nothing is left, the start serves as well as any direction.
        return jnp.where(norm > 0, new / jnp.where(norm > 0, norm, 1), start), None

    v, _ = lax.scan(step, start, length=steps)
    # At a singular vector the norm is stationary in v, so holding v leaves the derivative with respect to the map
    # right.
    return _norm(f(lax.stop_gradient(v)))


def _norm(x: Array) -> Array:
    """Compute the Euclidean norm by the norms of the rows, which keeps small entries."""
    return safe_sqrt(jnp.sum(jnp.square(safe_sqrt(jnp.sum(jnp.square(x), axis=-1)))))


def _start_vector(shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Return a unit vector in general position, without chance: the fractions of ``k^2`` times the golden ratio.

    A constant vector would be orthogonal to all that an edge kernel sees.
    """
    k = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    # 2654435769 = 2^32 / golden ratio; the product wraps around at 2^32, which leaves the fraction.
    fraction = k * k * jnp.uint32(2654435769)
    x = jnp.reshape(fraction.astype(dtype), shape) * 2.0**-32 - 0.5
    return x / _norm(x)
