"""A number that bounds a norm, and what it is worth."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, no_type_check

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

Kind: TypeAlias = Literal["upper", "exact", "lower"]

_SAYS = {"upper": "<=", "exact": "=", "lower": ">="}


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
        """``Bound(norm <= 3.414, certified)``."""
        shown = self.value if isinstance(self.value, Tracer) else np.array2string(np.asarray(self.value), precision=6)
        return f"Bound(norm {_SAYS[self.kind]} {shown}, {'' if self.certified else 'not '}certified)"
