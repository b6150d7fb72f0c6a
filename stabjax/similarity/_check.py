"""What every measure asks of its arguments."""

import jax.numpy as jnp

from stabjax._types import AnyArray


def check(x: AnyArray, y: AnyArray, *, least: int = 2) -> None:
    """Raises unless both are real activations of the same samples, at least so many."""
    for name, z in (("x", x), ("y", y)):
        if not jnp.issubdtype(z.dtype, jnp.floating):
            raise TypeError(f"expected real floating-point activations, got {name} of {z.dtype}")
        if z.ndim != 2 or z.shape[1] == 0:
            raise ValueError(
                f"expected {name} as (n, units), samples in rows, got shape {z.shape}: make samples of maps by "
                "similarity.positions, average, resized or fourier, or flatten them"
            )
    if len(x) != len(y):
        raise ValueError(f"expected the same samples on both sides, got {len(x)} and {len(y)}")
    if len(x) < least:
        raise ValueError(f"expected at least {least} samples, got {len(x)}")
