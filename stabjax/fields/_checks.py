"""Checks of arguments: of shapes always, of numbers where they are concrete."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax._types import Scalar


def float_dtype() -> np.dtype:
    """Return float32, or float64 when x64 is on."""
    return jax.dtypes.canonicalize_dtype(float)


def concrete_value(value: Any) -> np.ndarray | None:
    """Return the number, or None for a traced one."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def check_spatial_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple; raise ``ValueError`` unless it has one to three sides of two pixels or more."""
    sides = tuple(operator.index(n) for n in shape)
    if not 1 <= len(sides) <= 3 or min(sides, default=0) < 2:
        raise ValueError(
            f"expected a spatial shape of one to three sides of at least 2 pixels, got {sides}; "
            "leave out the batch and channel axes"
        )
    return sides


def check_scalar(name: str, value: Scalar, *, dtype: Any = None) -> Float[Array, ""]:
    """Return a value as a scalar array; raise ``ValueError`` if it is none, or known to be negative."""
    known = concrete_value(value)
    if known is not None and (known < 0).any():
        raise ValueError(f"expected {name} >= 0, got {known}")
    array = jnp.asarray(value, dtype or float_dtype())
    if array.ndim:
        raise ValueError(f"expected a scalar {name}, got shape {array.shape}; use jax.vmap over several")
    return array


def mode_count(cutoff: Scalar, max_cutoff: int | None, ndim: int) -> int:
    """Return the number of modes along each axis, which is static: ``max_cutoff``, or a concrete cutoff."""
    known = concrete_value(cutoff)
    if max_cutoff is not None:
        max_cutoff = operator.index(max_cutoff)
        if max_cutoff < 1:
            raise ValueError(f"expected max_cutoff >= 1, got {max_cutoff}")
    if known is None:
        if max_cutoff is None:
            raise ValueError("expected max_cutoff beside a traced cutoff, got none; it sets the number of modes")
        return max_cutoff
    if known.size != 1:
        raise ValueError(f"expected a scalar cutoff, got shape {known.shape}; use jax.vmap and max_cutoff")
    if not 1 <= float(known.item()) < math.inf:
        raise ValueError(f"expected a finite cutoff >= 1, got {known}")
    # The lowest mode, all ones, has |i|^2 = ndim.
    if ndim >= (known.item() + 0.5) ** 2:
        raise ValueError(
            f"no mode of {ndim} axes has |i|^2 < (c + 1/2)^2 at cutoff {known}; take a cutoff of 2 or more"
        )
    # On one axis i < c + 1/2, so no mode is above ceil(c).
    modes = math.ceil(known.item())
    if max_cutoff is not None and modes > max_cutoff:
        raise ValueError(f"expected cutoff <= max_cutoff, got {known} > {max_cutoff}; raise max_cutoff")
    return max_cutoff or modes
