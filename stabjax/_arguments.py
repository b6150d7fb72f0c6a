"""What callers hand over in several forms, made one."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key


def as_key(key: Any) -> Key[Array, ""]:
    """One key as JAX types it, whether typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).

    A raw key is one of the default generator: both kinds of one seed give the same numbers. Every public function with
    a key calls this first, so that all say the same about what is none.

    Args:
        key: a typed key of any generator; or its numbers, uint32 in one dimension, those of the default generator.

    Raises:
        TypeError: a seed, None, several keys, or anything else.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim == 0:
            return key
        raise TypeError(f"expected one key, got {_several(key.shape)}")
    if not isinstance(key, jax.Array | np.ndarray) or key.dtype != np.uint32 or key.ndim == 0:
        raise TypeError(f"expected one key, got {_described(key)}: make it with jax.random.key(seed)")
    words = _words(jax.default_prng_impl.value)
    if key.shape == words:
        return jax.random.wrap_key_data(jnp.asarray(key))
    if key.shape[1:] == words:
        raise TypeError(f"expected one key, got {_several(key.shape[:1])}")
    raise TypeError(
        f"expected one key, got the numbers of one, {key.shape}, that are not of the default generator, {words}: make "
        "it with jax.random.key(seed), or of these with jax.random.wrap_key_data(key, impl=...)"
    )


def whole(name: str, value: Any) -> int:
    """A whole number as Python has it; raises ``TypeError`` for another, and for what is none."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"expected {name} as a whole number, got {value!r}: give e.g. 64") from error


@functools.lru_cache
def _words(generator: str) -> tuple[int, ...]:
    """Shape of the numbers of a key."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=generator))).shape


def _several(shape: tuple[int, ...]) -> str:
    return (
        f"several, of shape {shape}: take one of them, as keys[0], or jax.vmap over all; jax.random.key(seed) makes one"
    )


def _described(key: Any) -> str:
    if isinstance(key, jax.Array | np.ndarray):
        return f"an array {key.dtype}{list(key.shape)}"
    kind = type(key).__name__
    return f"{key!r} of type {kind}" if isinstance(key, int | float | np.number) else f"something of type {kind}"
