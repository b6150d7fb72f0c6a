"""Sine modes: their random amplitudes, and the fields they make."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stabjax._arguments import as_key
from stabjax._numerics import HIGHEST
from stabjax._types import Coefficients, Field, PRNGKey, Scalar
from stabjax.fields._checks import check_scalar, check_spatial_shape, mode_count


def coefficients(key: PRNGKey, cutoff: Scalar, *, max_cutoff: int | None = None, ndim: int = 2) -> Coefficients:
    """Draw random amplitudes ``C^a_i ~ N(0, 1/|i|^2)``, zero where ``|i|^2 >= (c + 1/2)^2``.

    The normals are drawn in shells of ``max(i)``, so with JAX's default generator the same key gives the same low modes
    whatever ``max_cutoff``.

    Args:
        key: one key.
        cutoff: ``c``, at least 1; may be traced.
        max_cutoff: number of modes ``m`` along each axis; needed beside a traced cutoff. A traced cutoff above it
            gives NaN.
        ndim: number of axes, 1 to 3.

    Returns:
        ``(ndim, m, ..., m)``; the first index is the component, index ``i_k - 1`` belongs to axis ``k``.

    Raises:
        ValueError: a cutoff below 1 (2 in three dimensions, where 1 keeps no mode) or above ``max_cutoff``, or a
            traced one without ``max_cutoff``.
    """
    if not 1 <= ndim <= 3:
        raise ValueError(f"expected ndim 1, 2 or 3, got {ndim}")
    return _draw(as_key(key), check_scalar("cutoff", cutoff), mode_count(cutoff, max_cutoff, ndim), ndim)


@partial(jax.jit, static_argnums=(2, 3))
def _draw(key: PRNGKey, cutoff: Float[Array, ""], modes: int, ndim: int) -> Coefficients:
    """Draw normals, one row of components per mode in shell order, and scale them by ``1 / |i|``."""
    amplitude = np.asarray(1 / np.sqrt(square_frequency(modes, ndim)), cutoff.dtype)
    # Modes outside are drawn and set to zero: shapes do not depend on a traced cutoff.
    scale = jnp.where(is_inside_cutoff(cutoff, modes, ndim), amplitude, 0)
    scale = jnp.where(cutoff <= modes, scale, jnp.nan)
    # Row r is the mode of rank r. More modes add rows behind, and the first numbers of the default generator do not
    # depend on how many follow. Then (rank, ndim) -> (modes, ..., modes, ndim) -> (ndim, modes, ..., modes).
    normals = jax.random.normal(key, (modes**ndim, ndim), cutoff.dtype)
    return jnp.moveaxis(normals[shell_order(modes, ndim)], -1, 0) * scale[None]


def square_frequency(modes: int, ndim: int) -> Int[np.ndarray, "*modes"]:
    """Compute ``|i|^2`` of every mode, ``(modes, ..., modes)``."""
    return np.sum(np.square(np.indices((modes,) * ndim) + 1), axis=0)


def is_inside_cutoff(cutoff: Float[Array, ""], modes: int, ndim: int) -> Bool[Array, "*modes"]:
    """Tell which modes the cutoff keeps, ``|i|^2 < (c + 1/2)^2``; ``(modes, ..., modes)``."""
    return jnp.asarray(square_frequency(modes, ndim), cutoff.dtype) < jnp.square(cutoff + 0.5)


def shell_order(modes: int, ndim: int) -> Int[np.ndarray, "*modes"]:
    """Rank every mode by ``max(i)``, then row by row; ``(modes, ..., modes)``.

    In two dimensions, where more modes come behind the ones before::

        0 1 4
        2 3 5
        6 7 8
    """
    index = np.indices((modes,) * ndim).reshape(ndim, -1)
    # lexsort takes the last key first: max(i), then the axes in order. argsort of the order is the rank.
    rank = np.argsort(np.lexsort((*index[::-1], index.max(axis=0))))
    return rank.reshape((modes,) * ndim)


def synthesize(coefficients: Coefficients, shape: Sequence[int], temperature: Scalar) -> Field:
    """Compute the field ``tau = n sqrt(T) sum_i C_i prod_k sin(i_k pi u_k)`` in pixels.

    The derivative by the temperature at zero, which is infinite, is taken as zero.

    Args:
        coefficients: ``(ndim, m, ..., m)``.
        shape: the sides of the image in pixels, ``ndim`` of them.
        temperature: ``T >= 0``; may be traced (a negative one then gives NaN).

    Returns:
        ``(ndim, *shape)``, pixels.

    Raises:
        ValueError: shapes that do not fit together, or a negative temperature.
    """
    shape, coefficients = check_shapes(shape, jnp.asarray(coefficients))
    return _synthesize(coefficients, check_scalar("temperature", temperature, dtype=coefficients.dtype), shape)


def sample(
    key: PRNGKey, shape: Sequence[int], *, temperature: Scalar, cutoff: Scalar, max_cutoff: int | None = None
) -> Field:
    """Draw a random field: `coefficients`, then `synthesize`.

    Args:
        key: one key.
        shape: the sides of the image in pixels, one to three.
        temperature: ``T >= 0``; may be traced.
        cutoff: ``c >= 1``; may be traced, beside ``max_cutoff``.
        max_cutoff: the largest cutoff of a sweep; the number of modes drawn.

    Returns:
        ``(ndim, *shape)``, pixels.
    """
    shape = check_spatial_shape(shape)
    return synthesize(coefficients(key, cutoff, max_cutoff=max_cutoff, ndim=len(shape)), shape, temperature)


def check_shapes(
    shape: Sequence[int], coefficients: Float[Array, "..."]
) -> tuple[tuple[int, ...], Float[Array, " ndim *modes"]]:
    """Return shape and coefficients; raise ``ValueError`` unless they belong to one number of axes."""
    shape = check_spatial_shape(shape)
    ndim = len(shape)
    if coefficients.ndim != ndim + 1 or coefficients.shape[0] != ndim:
        raise ValueError(
            f"expected coefficients of shape ({ndim}, {', '.join('m' * ndim)}) for the shape {shape}, "
            f"got {coefficients.shape}; use jax.vmap over several fields"
        )
    return shape, coefficients


@partial(jax.jit, static_argnums=2)
def _synthesize(
    coefficients: Float[Array, " ndim *modes"], temperature: Float[Array, ""], shape: tuple[int, ...]
) -> Float[Array, " ndim *spatial"]:
    tables = [sines(n, m) for n, m in zip(shape, coefficients.shape[1:])]
    return separable_sum(coefficients * (pixels(shape) * safe_sqrt(temperature)), tables)


def pixels(shape: tuple[int, ...]) -> float:
    """Return the pixels per unit length of the unit box: the geometric mean of the sides."""
    return math.prod(shape) ** (1 / len(shape))


def safe_sqrt(temperature: Float[Array, ""]) -> Float[Array, ""]:
    """Take the square root, with derivative zero at zero."""
    # The inner `where` keeps sqrt away from zero, or its infinite slope times zero would be a NaN gradient.
    zero = temperature == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, temperature)))


def phases(n: int, modes: int) -> Float[np.ndarray, " modes n"]:
    """Compute ``i pi u`` of modes ``i = 1..modes`` at the pixels of one axis."""
    return np.pi * np.arange(1, modes + 1)[:, None] * np.linspace(0, 1, n)


def sines(n: int, modes: int) -> Float[np.ndarray, " modes n"]:
    """Compute ``sin(i pi u)``, exactly zero at both ends."""
    table = np.sin(phases(n, modes))
    # sin(i pi) is about 1e-16 in floating point: the border would move.
    table[:, -1] = 0
    return table


def separable_sum(
    coefficients: Float[Array, " ndim *modes"], tables: Sequence[Float[np.ndarray, "_ _"]]
) -> Float[Array, " ndim *spatial"]:
    """Compute ``sum_i C_i prod_k table_k[i_k, s_k]``, one axis after the other."""
    out = coefficients
    for table in tables:
        # Contract the first axis of modes with its table; the axis of pixels goes to the end, so all get their turn.
        # Zero modes up to a multiple of eight: XLA's CPU product over 3 terms takes five times as long as over 8.
        missing = -len(table) % 8
        table = jnp.asarray(np.pad(table, ((0, missing), (0, 0))), coefficients.dtype)
        out = jnp.pad(out, [(0, missing if axis == 1 else 0) for axis in range(out.ndim)])
        # (ndim, m_1, m_2) -> (ndim, m_2, n_1) -> (ndim, n_1, n_2)
        out = jnp.tensordot(out, table, axes=((1,), (0,)), precision=HIGHEST)
    return out
