"""A number that bounds a norm, what it is worth, and the methods that make one."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from stabjax._types import AnyArray

Kind: TypeAlias = Literal["upper", "exact", "lower"]
Method: TypeAlias = Literal["gram", "exact", "power"]

DEFAULT_STEPS: dict[Method, int] = {"gram": 6, "exact": 0, "power": 100}
_KINDS: dict[Method, Kind] = {"gram": "upper", "exact": "exact", "power": "lower"}
_RELATION = {"upper": "<=", "exact": "=", "lower": ">="}


# Unflattening builds bounds of placeholders: nothing to check there.
@jax.tree_util.register_dataclass
@no_type_check
@dataclass(frozen=True, eq=False, repr=False)
class Bound:
    """A bound on a Lipschitz constant or spectral norm.

    A frozen pytree whose only leaf is the value, so that bounds stack under `vmap` and ``bound.value`` can be
    differentiated.

    Attributes:
        value: the bound, ``()``, with the axes of `vmap` in front; NaN where a parameter is not finite.
        kind: ``"upper"``: not below the norm; ``"exact"``: the norm, to rounding; ``"lower"``: not above, to rounding.
        certified: whether the value is never below the norm, the rounding of its own computation included.
    """

    value: Float[Array, "..."]
    kind: Kind = field(metadata={"static": True})
    certified: bool = field(metadata={"static": True})

    def __repr__(self) -> str:
        """Return ``Bound(norm <= 3.414, certified)``."""
        value = self.value if isinstance(self.value, Tracer) else np.array2string(np.asarray(self.value), precision=6)
        return f"Bound(norm {_RELATION[self.kind]} {value}, {'' if self.certified else 'not '}certified)"


def resolve_steps(method: Method, steps: int | None) -> int:
    """Return the number of steps, by default that of the method; raise ``ValueError`` where the two do not fit."""
    if method not in get_args(Method):
        raise ValueError(f"expected method to be one of {get_args(Method)}, got {method!r}")
    if steps is not None and (method == "exact" or isinstance(steps, bool) or steps < 0):
        takes = "none for method 'exact', which does not iterate" if method == "exact" else "a number >= 0"
        raise ValueError(f"expected steps to be {takes}, got {steps}")
    return DEFAULT_STEPS[method] if steps is None else steps


def promote_kernel(kernel: AnyArray) -> Array:
    """Return the kernel in single precision at least; raise unless it is real and has entries."""
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(f"expected a real floating-point kernel, got {kernel.dtype}: convert it first")
    if 0 in kernel.shape:
        raise ValueError(f"expected a kernel with entries, got shape {kernel.shape}")
    kernel = jnp.asarray(kernel)
    return kernel if kernel.dtype == jnp.float64 else kernel.astype(jnp.float32)


def as_bound(value: Array, method: Method) -> Bound:
    """Label a value by the method that computed it; only Gram iteration certifies."""
    return Bound(value, kind=_KINDS[method], certified=method == "gram")
