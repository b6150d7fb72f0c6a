"""Gram iteration: an upper bound on the largest singular value of one matrix, certified at every step.

``G_0 = W``, ``G_t+1 = G_t* G_t``, ``|W|_2 = |G_t|_2^(1/2^t) <= |G_t|_F^(1/2^t)``, which is too large by at most the
factor ``rank^(1/2^(t+1))`` (Delattre, Barthelemy, Araujo, Allauzen 2023, arXiv 2305.16173, theorem 1). Each ``G`` is
divided by a power of two near its norm: nothing overflows, and nothing is rounded.

The rounding of the products is measured on the way instead of hoped for. If ``Y = G* G + E`` is what was computed, then

    |G|_2^2 = |G* G|_2 <= |Y|_2 + |E|_2,        |E|_2 <= |E|_F <= c u | |G|* |G| |_F <= c u |G|_F^2,

so that from ``a_T = |G_T|_F`` backwards ``a_t = sqrt(a_t+1 + c u |G_t|_F^2)`` bounds ``|G_t|_2``. Here ``c`` is the
length of the longest chain of additions behind an entry: any order of ``k`` terms is off by at most ``k u`` of the sum
of their absolute values, ``u = eps / 2`` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), and a
complex entry, which has two parts, by sqrt(2) times that. Long sums are cut into blocks so that ``c`` is about
``_BLOCK + k / _BLOCK`` and not ``k``. A reserve of a fifth covers terms of second order, the rounding of the norms, and
what underflows. Arithmetic is assumed to be IEEE, with numbers below the smallest normal one counted as zero.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from stabjax._numerics import HIGHEST

Parts = tuple[Array, ...]
"""A matrix as its real part, or as its real and its imaginary part, ``(rows, columns)`` each."""

_BLOCK = 128


def above(parts: Parts, steps: int) -> Float[Array, ""]:
    """At least the largest singular value, after so many steps; differentiable, with gradient zero at zero."""
    rows, columns = parts[0].shape
    if rows < columns:
        parts = tuple(part.T for part in parts)
    eps = float(jnp.finfo(parts[0].dtype).eps)
    scale = power_of_two(jnp.max(jnp.abs(jnp.stack(parts))))
    parts = tuple(part / scale for part in parts)
    slack = 1 + (rows + columns + 16) * eps
    if not steps:
        return scale * frobenius(parts) * slack
    parts, first = _step(parts, None)
    parts, rest = lax.scan(_step, parts, length=steps - 1)
    value, _ = lax.scan(_back, frobenius(parts) * slack, rest, reverse=True)
    value, _ = _back(value, first)
    return scale * value * (1 + 8 * eps)


def _step(parts: Parts, _: None) -> tuple[Parts, tuple[Array, Array]]:
    """``G* G`` of the scaled matrix, the scale, and the most that rounding can have taken away."""
    norm = lax.stop_gradient(frobenius(parts))
    scale = power_of_two(norm)
    eps = float(jnp.finfo(norm.dtype).eps)
    lost = rounding(len(parts) * len(parts[0]), len(parts), eps) * jnp.square(norm / scale)
    return _gram(tuple(part / scale for part in parts)), (scale, lost)


def _back(value: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
    """A bound on ``|G_t|_2`` from one on ``|G_t+1|_2``."""
    scale, lost = step
    return scale * root(value + lost), None


def _gram(parts: Parts) -> Parts:
    """``G* G``, exactly Hermitian: ``A'A + B'B`` and ``A'B - (A'B)'``."""
    stacked = jnp.concatenate(parts)
    real = product(stacked, stacked)
    if len(parts) == 1:
        return (real,)
    cross = product(*parts)
    return real, cross - cross.T


def product(a: Float[Array, "k m"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """``a'b``, with no chain of additions longer than `rounding` counts."""
    whole = len(a) // _BLOCK * _BLOCK
    if len(a) <= _BLOCK:
        return jnp.matmul(a.T, b, precision=HIGHEST)

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.matmul(block[0].T, block[1], precision=HIGHEST), None

    rest = jnp.matmul(a[whole:].T, b[whole:], precision=HIGHEST)
    one, two = (jnp.reshape(z[:whole], (-1, _BLOCK, z.shape[1])) for z in (a, b))
    return lax.scan(add, rest, (one, two))[0]


def rounding(length: int, parts: int, eps: float, *, further: int = 1) -> float:
    """``c u`` of sums of so many products, with ``further`` roundings of the terms, and the reserve."""
    return 1.2 * math.sqrt(parts) * (min(length, _BLOCK) + -(-length // _BLOCK) + further) * eps / 2


def frobenius(parts: Parts) -> Float[Array, ""]:
    """``|G|_F``, by the norms of the rows: one sum of all squares would lose the small ones in a long chain."""
    rows = root(jnp.sum(jnp.square(jnp.concatenate(parts, axis=1)), axis=1))
    return root(jnp.sum(jnp.square(rows)))


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root with gradient zero at zero; NaN stays NaN."""
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def power_of_two(x: Float[Array, ""]) -> Float[Array, ""]:
    """The largest power of two that is at most ``x``; 1 where ``x`` is zero or not finite. A constant to gradients."""
    x = lax.stop_gradient(x)
    usual = (x > 0) & jnp.isfinite(x)
    bits, exponent = (jnp.uint32, 0x7F80_0000) if x.dtype == jnp.float32 else (jnp.uint64, 0x7FF0_0000_0000_0000)
    power = lax.bitcast_convert_type(lax.bitcast_convert_type(x, bits) & bits(exponent), x.dtype)
    return jnp.where(usual, power, 1)


def scaled(x: Array) -> tuple[Array, Array]:
    """The array over a power of two near its largest entry, and that power."""
    scale = power_of_two(jnp.max(jnp.abs(x)))
    return x / scale, scale
