"""What comes in: shapes are checked always, numbers where they are concrete."""

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
    """float32, or float64 when x64 is on."""
    return jax.dtypes.canonicalize_dtype(float)


def concrete(value: Any) -> np.ndarray | None:
    """The number, or None for a traced one."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def spatial_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """``shape`` as a tuple of one to three sides of at least two pixels."""
    sides = tuple(operator.index(n) for n in shape)
    if not 1 <= len(sides) <= 3 or min(sides, default=0) < 2:
        raise ValueError(
            f"expected a spatial shape of one to three sides of at least 2 pixels, got {sides}; "
            "leave out the batch and channel axes"
        )
    return sides


def scalar(name: str, value: Scalar, *, dtype: Any = None) -> Float[Array, ""]:
    """``value`` as a scalar array; a concrete one must not be negative."""
    known = concrete(value)
    if known is not None and (known < 0).any():
        raise ValueError(f"expected {name} >= 0, got {known}")
    array = jnp.asarray(value, dtype or float_dtype())
    if array.ndim:
        raise ValueError(f"expected a scalar {name}, got shape {array.shape}; use jax.vmap over several")
    return array


def mode_count(cutoff: Scalar, max_cutoff: int | None, ndim: int) -> int:
    """Number of modes along each axis, which is static: ``max_cutoff``, or the cutoff where that is a number."""
    known = concrete(cutoff)
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
    if ndim >= (known.item() + 0.5) ** 2:
        raise ValueError(
            f"no mode of {ndim} axes has |i|^2 < (c + 1/2)^2 at cutoff {known}; take a cutoff of 2 or more"
        )
    modes = math.ceil(known.item())
    if max_cutoff is not None and modes > max_cutoff:
        raise ValueError(f"expected cutoff <= max_cutoff, got {known} > {max_cutoff}; raise max_cutoff")
    return max_cutoff or modes
