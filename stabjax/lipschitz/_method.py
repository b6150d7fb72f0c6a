"""The three ways to a norm, and what each takes."""

from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
from jaxtyping import Array

from stabjax._types import AnyArray
from stabjax.lipschitz._bound import Bound, Kind

Method: TypeAlias = Literal["gram", "exact", "power"]

STEPS: dict[Method, int] = {"gram": 6, "exact": 0, "power": 100}
_KIND: dict[Method, Kind] = {"gram": "upper", "exact": "exact", "power": "lower"}


def steps_of(method: Method, steps: int | None) -> int:
    """How many steps; raises for an unknown method, and for steps that are no number."""
    if method not in get_args(Method):
        raise ValueError(f"expected method to be one of {get_args(Method)}, got {method!r}")
    if steps is not None and (method == "exact" or isinstance(steps, bool) or steps < 0):
        takes = "none for method 'exact', which does not iterate" if method == "exact" else "a number >= 0"
        raise ValueError(f"expected steps to be {takes}, got {steps}")
    return STEPS[method] if steps is None else steps


def wide(kernel: AnyArray) -> Array:
    """The kernel in the precision to compute with, single at least; raises unless it is real and has entries."""
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(f"expected a real floating-point kernel, got {kernel.dtype}: convert it first")
    if 0 in kernel.shape:
        raise ValueError(f"expected a kernel with entries, got shape {kernel.shape}")
    kernel = jnp.asarray(kernel)
    return kernel if kernel.dtype == jnp.float64 else kernel.astype(jnp.float32)


def bound(value: Array, method: Method) -> Bound:
    """The value with what the method makes of it."""
    return Bound(value, kind=_KIND[method], certified=method == "gram")
