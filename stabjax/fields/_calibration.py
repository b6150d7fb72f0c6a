"""Calibration of fields: how large a displacement a temperature makes, and the inverse.

``"rms"`` is exact on the pixel grid: the root mean square length of the displacement over fields and pixels, all
components together. ``"paper"`` is the asymptotic formula of Petrini, Favero, Geiger, Wyart 2021 (appendix A), about a
fifth too large: at a nominal pixel the root mean square is 0.816 pixels for n = 32, c = 3.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stabjax._numerics import safe_ratio
from stabjax._types import AnyArray, Scalar
from stabjax.fields._checks import check_scalar, check_spatial_shape, concrete_value, mode_count
from stabjax.fields._modes import is_inside_cutoff, phases, pixels, square_frequency

Convention = Literal["rms", "paper"]


def temperature(
    displacement: Scalar,
    cutoff: Scalar,
    shape: Sequence[int],
    *,
    convention: Convention = "rms",
    max_cutoff: int | None = None,
) -> Float[Array, ""]:
    """Compute the temperature at which a typical displacement is ``displacement`` pixels.

    Args:
        displacement: ``delta >= 0`` in pixels; may be traced.
        cutoff: ``c >= 1``; may be traced, beside ``max_cutoff`` where the convention is ``"rms"``.
        shape: the sides of the image in pixels.
        convention: ``"rms"``: ``T = delta^2 / <|tau|^2>_{T=1}``, exact mode sums on the grid, in one to three
            dimensions. ``"paper"``: ``T = 4 delta^2 / (pi n^2 ln c)``, in two dimensions and above cutoff 1.
        max_cutoff: the largest cutoff of a sweep.

    Raises:
        ValueError: a negative displacement, an unknown convention, or ``"paper"`` where it is undefined (a traced
            cutoff of 1 gives NaN).
    """
    delta = check_scalar("displacement", displacement)
    # <|tau|^2> is proportional to T: delta^2 = T <|tau|^2>_{T=1}.
    return _ratio_of_squares(delta, _square_displacement(cutoff, shape, convention, max_cutoff))


@jax.jit
def _ratio_of_squares(delta: Float[Array, ""], square: Float[Array, ""]) -> Float[Array, ""]:
    """Compute ``delta^2 / square``. One program: here and below each operation by itself would be one to compile."""
    return safe_ratio(jnp.square(delta), square)


def displacement(
    temperature: Scalar,
    cutoff: Scalar,
    shape: Sequence[int],
    *,
    convention: Convention = "rms",
    max_cutoff: int | None = None,
) -> Float[Array, ""]:
    """Compute the typical displacement in pixels at this temperature: the inverse of `temperature`, same arguments."""
    strength = check_scalar("temperature", temperature)
    return jnp.sqrt(strength * _square_displacement(cutoff, shape, convention, max_cutoff))


def temperature_range(
    cutoff: Scalar, shape: Sequence[int], *, convention: Convention = "paper", max_cutoff: int | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the temperatures ``(T_min, T_max)`` of typical displacements of half a pixel and ``n / (pi c)`` pixels.

    Below, a deformation is hardly visible; above, its gradient is of order one. With ``"paper"``,
    ``T_min = 1 / (pi n^2 ln c)`` and ``T_max = 4 / (pi^3 c^2 ln c)`` (Petrini, Favero, Geiger, Wyart 2021, appendix A).
    The range is empty, ``T_max < T_min``, where ``c > 2n/pi``. Even below ``T_max`` a field may fold: see
    `fold_probability`. Arguments and errors as in `temperature`.
    """
    c = check_scalar("cutoff", cutoff)
    # A sine of n / (pi c) pixels and frequency c has slope one: pi c / n times its amplitude.
    longest = pixels(check_spatial_shape(shape)) / (math.pi * c)
    square = _square_displacement(cutoff, shape, convention, max_cutoff)
    # T_min of delta = 1/2, T_max of delta = n / (pi c).
    return safe_ratio(jnp.full_like(square, 0.25), square), safe_ratio(jnp.square(longest), square)


def _square_displacement(
    cutoff: Scalar, shape: Sequence[int], convention: str, max_cutoff: int | None
) -> Float[Array, ""]:
    """Compute ``<|tau|^2>`` in square pixels at temperature one."""
    sides = check_spatial_shape(shape)
    if convention == "rms":
        modes = mode_count(cutoff, max_cutoff, len(sides))
        return _mode_sum(check_scalar("cutoff", cutoff), _square_lengths(sides, modes))
    if convention != "paper":
        raise ValueError(f"expected a convention out of {get_args(Convention)}, got {convention!r}")
    if len(sides) != 2:
        raise ValueError(f"the convention 'paper' needs two spatial axes, got the shape {sides}; use 'rms'")
    # Two components, <sin^2 sin^2> = 1/4, and sum 1/|i|^2 ~ int_1^c (pi/2) r dr / r^2 = (pi/2) ln c over the quarter
    # plane: n^2 * 2 * 1/4 * (pi/2) ln c.
    return math.pi / 4 * pixels(sides) ** 2 * _log_cutoff(cutoff)


def _log_cutoff(cutoff: Scalar) -> Float[Array, ""]:
    """Compute ``ln c``; a traced cutoff of 1 gives NaN, a concrete one raises ``ValueError``."""
    known = concrete_value(cutoff)
    if known is not None and not (known > 1).all():
        raise ValueError(f"the convention 'paper' needs a cutoff above 1, got {known}; use 'rms'")
    return _log_above_one(check_scalar("cutoff", cutoff))


@jax.jit
def _log_above_one(c: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(c > 1, jnp.log(c), jnp.nan)


@jax.jit
def _mode_sum(cutoff: Float[Array, ""], terms: Float[AnyArray, "*modes"]) -> Float[Array, ""]:
    """Sum terms over the modes inside the cutoff; NaN where the cutoff lies above the modes at hand."""
    modes = len(terms)
    # The shape is that of all modes, static; a traced cutoff only chooses which of them count.
    total = jnp.sum(jnp.where(is_inside_cutoff(cutoff, modes, terms.ndim), jnp.asarray(terms, cutoff.dtype), 0))
    return jnp.where(cutoff <= modes, total, jnp.nan)


def _square_lengths(shape: tuple[int, ...], modes: int) -> Float[np.ndarray, "*modes"]:
    """Compute what each mode adds to ``<|tau|^2>`` at temperature one, in square pixels.

    ``ndim n^2 / |i|^2 prod_k <sin^2>``, with ``<sin^2>`` the mean over the pixels of axis ``k``.
    """
    ndim = len(shape)
    # (modes, n) -> (modes,) for each axis: (n - 1) / (2 n), and not 1/2, as both ends are zero; 0 where i is a multiple
    # of n - 1, a mode that the grid does not see.
    squares = [np.mean(np.sin(phases(n, modes)) ** 2, axis=1) for n in shape]
    return ndim * pixels(shape) ** 2 / square_frequency(modes, ndim) * reduce(np.multiply.outer, squares)
