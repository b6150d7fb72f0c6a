"""The few unsafe operations, once, each with its reason."""

import contextlib
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from stabjax._types import AnyArray


@contextlib.contextmanager
def permit_nan() -> Iterator[None]:
    """Let NaN be an answer, in a block or (as ``@permit_nan()``) in a function, whatever ``jax_debug_nans`` says.

    That option makes an error of every NaN, ``jax_debug_infs`` of every infinity; a measurement marks with NaN what is
    undefined. They look at what compiled programs return, so within a caller's own `jit` it is the caller's program
    that returns NaN, and nothing here can help.
    """
    if jax.debug_nans.value or jax.debug_infs.value:
        with jax.debug_nans(False), jax.debug_infs(False):
            yield
    else:
        yield


def safe_norm(x: Float[AnyArray, "..."], *, axis: int | tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """Return the Euclidean norm over ``axis``; its gradient at zero is zero, where that of a plain norm is NaN."""
    square = jnp.sum(jnp.square(x), axis=axis)
    # Two `where`: the outer one sets the value at zero, the inner one keeps the infinite slope of the root out of the
    # gradient, where it would become NaN (0 times infinity).
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def safe_ratio(numerator: Float[AnyArray, "..."], denominator: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """Return ``numerator / denominator``, NaN where the denominator is not positive.

    A dead layer has pair distance zero: its stability is undefined, and a small number added to the denominator would
    hide it. The inner `where` keeps the gradient of the defined entries finite.
    """
    defined = jnp.asarray(denominator) > 0
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), jnp.nan)


def extremes(x: Shaped[AnyArray, "..."]) -> tuple[float, float]:
    """Return the smallest and largest number of a concrete array, NaN left out; NaN where nothing else is there.

    On a CPU, NumPy takes them: no program to compile, and ``fmin`` has not the warning of ``nanmin``. On an accelerator
    the array stays where it is: a minimum that is NaN shows that NaN has to be left out.
    """
    if x.size == 0:
        return math.nan, math.nan
    if isinstance(x, jax.Array) and not _on_cpu(x):
        with jax.debug_nans(False):
            low, high = float(jnp.min(x)), float(jnp.max(x))
            return (float(jnp.nanmin(x)), float(jnp.nanmax(x))) if math.isnan(low) else (low, high)
    # Shard by shard, where they lie: an array over several devices is not gathered.
    parts = [np.asarray(shard.data) for shard in x.addressable_shards] if isinstance(x, jax.Array) else [np.asarray(x)]
    lows, highs = ([float(f.reduce(part, axis=None)) for part in parts if part.size] for f in (np.fmin, np.fmax))
    return float(np.fmin.reduce(lows)), float(np.fmax.reduce(highs))


def _on_cpu(x: Array) -> bool:
    return all(device.platform == "cpu" for device in x.devices())


def column_sum(x: Float[Array, "n m"]) -> Float[Array, " m"]:
    """Sum over the rows of a batch, as a product with a vector of ones: ten times as fast on a CPU.

    It adds in one chain, which costs digits over thousands of rows; see `row_sum`.
    """
    return jnp.matmul(jnp.ones(len(x), x.dtype), x, precision=HIGHEST)


def row_sum(x: Float[AnyArray, " n *rest"]) -> Float[Array, " n"]:
    """Sum over all axes but the first, flattened so that the compiler may add in blocks.

    Not a product with ones, which is as fast but adds in long chains: off by 1e-3 over a million equal numbers in
    single precision, where this is off by 1e-7.
    """
    return jnp.sum(jnp.reshape(x, (x.shape[0], -1)), axis=1)


def centered(
    x: Float[AnyArray, " n *units"], *, weights: Float[AnyArray, " n"] | None = None
) -> tuple[Float[Array, "*units"], Float[Array, " n"]]:
    """Return the mean of the rows, and the squared distance of every row to it.

    The rows are shifted by the first one before they are averaged, and squared only after the mean is gone:
    ``<f^2> - <f>^2`` loses every digit once the mean is a thousand times the spread, and equal rows must give exactly
    zero, because that is how a dead layer is known.

    Args:
        x: Points, ``(n, *units)``.
        weights: How often each row counts, ``(n,)``; once by default. A row of weight zero, which may hold NaN, has no
            part in the mean, and its distance says nothing.
    """
    rows = jnp.reshape(x, (x.shape[0], -1))
    if weights is None:
        weights = jnp.ones((x.shape[0],), rows.dtype)
        first = rows[0]
    else:
        weights = jnp.asarray(weights, rows.dtype)
        counted = weights > 0
        # NaN times a weight of zero would be NaN. Blank at once: what is left are sums of differences, products and
        # squares, which XLA hands to a library, where a choice among them would be a loop to compile.
        rows = jnp.where(counted[:, None], rows, 0)
        first = rows[jnp.argmax(counted)]
    shifted = rows - first[None]
    # The mean of the rows less the first: zero, exactly, where all are equal. Two equal rows of weights make it a
    # product of matrices, which is a call of a library; one vector would be a loop to compile for every shape.
    share = weights / jnp.maximum(jnp.sum(weights), 1)
    mean = jnp.matmul(jnp.stack([share, share]), shifted, precision=HIGHEST)[0]
    return jnp.reshape(first + mean, x.shape[1:]), row_sum(jnp.square(shifted - mean[None]))


HIGHEST = jax.lax.Precision.HIGHEST
"""Matmul precision of every statistic: accelerators round float32 products to bfloat16 or TF32 by default."""
